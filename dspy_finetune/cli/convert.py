"""`dspy-finetune convert`: a training file from one host's format to another's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dspy_finetune.cli.export import show_dataset


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def convert(
        path: Annotated[Path, typer.Argument(help="The training file; it is never touched.")],
        copy: Annotated[Path, typer.Argument(metavar="OUT", help="The copy; its manifest goes beside it.")],
        to: Annotated[str, typer.Option(help="openai, azure, together, fireworks, nebius or trl.")],
        from_: Annotated[
            str | None,
            typer.Option("--from", help="Refuse lines of another dialect; default: take each as what it is."),
        ] = None,
        base_model: Annotated[str | None, typer.Option(help="Count tokens and check limits for this model.")] = None,
        skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines out and count them.")] = False,
        dedupe: Annotated[bool, typer.Option("--dedupe", help="Leave out lines that equal an earlier one.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print the manifest and the report as JSON.")] = False,
    ) -> None:
        """Write a copy of a training file in another host's format."""
        # Imported here: --help must not wait for the tokenizer and the checks.
        from dspy_finetune.export import convert as convert_file

        dataset = convert_file(
            path,
            copy,
            to=to,
            from_=from_,
            base_model=base_model,
            on_error="skip" if skip_bad else "raise",
            dedupe=dedupe,
        )
        show_dataset(dataset, as_json=as_json)
