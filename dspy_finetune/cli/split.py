"""`dspy-finetune split`: one labelled file into train, validation and test, with no item on two sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dspy_finetune._files import atomic_writer
from dspy_finetune.cli.app import print_json, talk


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("split")(split)


def split(
    data: Annotated[str, typer.Argument(help="Labelled rows: json, jsonl, csv, tsv, parquet, or - for stdin.")],
    to: Annotated[Path, typer.Option("--out", help="The folder for train.jsonl, validation.jsonl and test.jsonl.")],
    fractions: Annotated[
        str, typer.Option(help="Shares of train, validation and test; they sum to 1.")
    ] = "0.8,0.1,0.1",
    group_by: Annotated[
        list[str] | None, typer.Option("--group-by", help="Rows with equal values stay together; repeat for pairs.")
    ] = None,
    stratify_by: Annotated[
        str | None, typer.Option("--stratify-by", help="Spread this column's values evenly over the three files.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed: another seed gives another split.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print paths and row counts as JSON.")] = False,
) -> None:
    """Split a labelled file into train, validation and test files; duplicates never part.

    Example: dspy-finetune split titles.csv --stratify-by liked --out data/
    """
    from dspy_finetune.data import load_examples  # here: --help must not wait for dspy
    from dspy_finetune.data import split as split_examples
    from dspy_finetune.errors import UsageError

    try:
        shares = tuple(float(part) for part in fractions.split(","))
    except ValueError as error:
        raise UsageError(f"--fractions {fractions}: write three numbers, such as 0.8,0.1,0.1") from error
    by = None if not group_by else group_by[0] if len(group_by) == 1 else tuple(group_by)
    parts = split_examples(load_examples(data), shares, group_by=by, stratify_by=stratify_by, seed=seed)
    to.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, rows in zip(("train", "validation", "test"), parts, strict=True):
        if not rows:  # a fraction of 0 asks for no such file
            continue
        path = to / f"{name}.jsonl"
        with atomic_writer(path) as file:
            file.writelines(json.dumps(dict(row), ensure_ascii=False, default=str).encode() + b"\n" for row in rows)
        written[name] = {"path": str(path), "rows": len(rows)}
    if as_json:
        print_json(written)
        return
    for name, facts in written.items():
        print(f"{facts['path']}: {facts['rows']:,} rows ({name})")
    talk().print(parts.summary(), highlight=False, soft_wrap=True)
