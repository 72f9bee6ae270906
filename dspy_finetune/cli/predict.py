"""`dspy-finetune predict`: a saved predictor asked about every row of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import dspy_finetune as ft
from dspy_finetune._progress import ProgressBar
from dspy_finetune.cli.app import out, print_json, remark
from dspy_finetune.cli.export import renames
from dspy_finetune.cli.options import CellDelimiter, EnvPath, load_env


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict")(predict)


def predict(
    saved: Annotated[Path, typer.Argument(help="What predictor.save(FILE) wrote.")],
    rows: Annotated[str, typer.Argument(help="JSONL, JSON, CSV, Parquet, hf://owner/name, or - for standard input.")],
    output: Annotated[Path, typer.Option("--out", help="The file: .jsonl or .parquet.")],
    keep: Annotated[
        list[str] | None, typer.Option(help="A column to keep; repeat it. Default: the inputs; `all` keeps all.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Put before the names of the prediction's fields.")] = "",
    rename: Annotated[list[str] | None, typer.Option(help="old=new, for a column; may be repeated.")] = None,
    delimiter: CellDelimiter = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of rows.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Maximum number of concurrent requests.")] = 64,
    batch: Annotated[
        bool, typer.Option("--batch", help="By the host's batch interface: half the price, within a day.")
    ] = False,
    max_usd: Annotated[float | None, typer.Option("--max-usd", min=0.0, help="The most to spend.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there already.")] = False,
    env_file: EnvPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Ask a saved predictor about every row; the same command after a crash goes on where it was.

    Exits with 0 when the output is complete, rows without an answer in it or not.

    Example: dspy-finetune predict predictor.json titles.csv --out answers.jsonl
    """
    load_env(env_file)
    predictor = ft.load_predictor(saved)
    kept: Literal["inputs", "all"] | list[str] = "inputs" if not keep else "all" if keep == ["all"] else keep
    files = ft.bulk.FileOptions(rename=renames(rename or []), limit=limit, delimiter=delimiter)
    try:
        with ProgressBar(waits=False, stays=False) as bar:

            def show(progress: ft.bulk.BulkProgress) -> None:
                bar.tell(progress, progress.note)

            if batch:
                done = ft.bulk.batch_api.predict(
                    predictor, rows, output, keep=kept, prefix=prefix, max_usd=max_usd, overwrite=overwrite,
                     on_progress=show, files=files,
                )  # fmt: skip
            else:
                done = ft.bulk.predict(
                    predictor, rows, output, keep=kept, prefix=prefix, max_usd=max_usd, overwrite=overwrite,
                     on_progress=show, files=files, concurrency=concurrency,
                )  # fmt: skip
    except KeyboardInterrupt:
        remark("what was sent and answered is kept: the same command goes on from there")
        raise
    finally:
        if predictor.host is not None:
            predictor.host.close()
    if as_json:
        print_json(done.to_dict())
    else:
        out().print(str(done), highlight=False, soft_wrap=True)
