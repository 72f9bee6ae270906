"""`dspy-finetune quickstart`: the main job on the packaged titles, or on your own."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dspy_finetune._progress import ProgressBar
from dspy_finetune.cli.app import out, print_json, say
from dspy_finetune.cli.options import one_of
from dspy_finetune.cli.run import new_folder


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("quickstart")(quickstart)


def quickstart(
    size: Annotated[
        str,
        typer.Option(
            help="full, or small: fewer titles and steps on the same path.", autocompletion=one_of("full", "small")
        ),
    ] = "full",
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where files, predictors and the report go; a new folder in runs/.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="What is tuned: smollm2-135m-instruct, a Hugging Face id, or a folder.")
    ] = "smollm2-135m-instruct",
    seed: Annotated[int, typer.Option(help="Of the split, the pairs and the training.")] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Your own titles instead of the packaged ones: any format load_examples reads.")
    ] = None,
    text: Annotated[str, typer.Option(help="With --data: the column of the title.")] = "title",
    label: Annotated[str, typer.Option(help="With --data: the column of the yes or no.")] = "is_favorite",
    rubric: Annotated[Path | None, typer.Option(help="With --data: a text file with the reader's taste.")] = None,
    example: Annotated[
        Path | None,
        typer.Option("--example", help="Write packaged rows to this CSV file, to try `run` with, and end."),
    ] = None,
    kind: Annotated[
        Literal["titles", "pairs", "prices", "questions"], typer.Option(help="With --example: which rows.")
    ] = "titles",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Split, pair, export, tune three models, use them in DSPy, compare, report: the main job.

    Example: dspy-finetune quickstart --size small
    """
    # Imported here: `dspy-finetune --help` shall not wait for DSPy.
    from dspy_finetune.hosts import Host
    from dspy_finetune.quickstart import EXAMPLE_OPTIONS, Step, read_titles, run, size_of, write_example

    if example is not None:
        n_rows = write_example(example, kind)
        say(f"{example}: {n_rows} {kind}; next: dspy-finetune run {shlex.quote(str(example))} {EXAMPLE_OPTIONS[kind]}")
        return
    counts = size_of(size)
    examples, taste = read_titles(data, text=text, label=label, rubric=rubric)
    place = folder or new_folder("quickstart")
    began = time.monotonic()
    with ProgressBar(waits=False) as bar:

        def show(step: Step) -> None:
            if step.command:
                bar.say(f"$ {step.command}")
            else:
                n_done = step.n_done if step.n_total else None
                bar.show(f"{step.number}/7 {step.title}", n_done, step.n_total, step.note)

        bar.show(f"{len(examples)} titles")
        host = Host.local(root=place / "host", base_model=model)
        try:
            result = run(
                examples,
                taste,
                place,
                size=counts,
                base_model=model,
                host=host,
                seed=seed,
                on_step=show,
            )
        finally:
            host.close()
    if as_json:
        from dspy_finetune.quickstart import summary

        print_json(summary(result))
        return
    _print(result, time.monotonic() - began)


def _print(result: Any, seconds: float) -> None:
    console = out()
    if result.recipes:
        console.print("\nWhat was trained", style="bold", highlight=False)
        for name, said in result.recipes.items():
            say(f"  {name}: {said}", indent=4)
    for report in (result.titles, result.pairs):
        console.print(f"\n{report.title}", style="bold", highlight=False)
        say(f"{report.table()}\n\n{report.verdict}")
    print(f"\nDone in {seconds / 60:.1f} minutes. Written to {result.folder}:")
    print(f"  {result.report}  the report, for a browser")
    for path in sorted(result.folder.glob("*.json*")):
        print(f"  {path}")
    saved = result.predictors["binary"]
    print("\nUse the tuned model in Python:\n")
    print("  import dspy_finetune as ft")
    print(f"  predictor = ft.load_predictor({str(saved)!r})")
    print('  print(predictor(title="How lock gates hold back a river").probability)')
