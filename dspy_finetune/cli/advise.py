"""`dspy-finetune advise`: whether labelled rows are worth a fine-tuned model, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dspy_finetune._files import write_json
from dspy_finetune.cli.app import print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("advise")(advise_command)


def advise_command(
    data: Annotated[str, typer.Argument(help="Labelled rows: json, jsonl, csv, tsv, parquet, or - for stdin.")],
    label: Annotated[
        str | None, typer.Option(help="The label's column, where it cannot be told from the rows.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="An input column; may be repeated.")] = None,
    signature: Annotated[
        str | None, typer.Option(help='The task as a DSPy signature, such as "headline -> liked: bool".')
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(help="The sentence encoder of one baseline; auto: minilm-l6 if installed; none: leave it out."),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Random seed of the folds and of the sample.")] = 0,
    json_to: Annotated[Path | None, typer.Option("--json-to", help="Write the figures as JSON to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Say whether fine-tuning on these rows is worth trying, which way, and why; nothing is trained or asked.

    Example: dspy-finetune advise titles.csv --label liked
    """
    from dspy_finetune.data import load_examples  # here: --help must not wait for dspy
    from dspy_finetune.evaluation import advise

    rows = load_examples(data, inputs=text or None, signature=signature)
    found = advise(rows, signature, label=label, encoder=None if encoder == "none" else encoder, seed=seed)
    if json_to is not None:
        write_json(json_to, found.to_dict())
    if as_json:
        print_json(found.to_dict())
    else:
        print(found)
