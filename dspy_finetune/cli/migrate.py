"""`dspy-finetune migrate`: train a tuned model again on another host, and compare the new one with the old."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import dspy_finetune as ft
from dspy_finetune._optional import require
from dspy_finetune._progress import ProgressBar
from dspy_finetune.cli.app import out, print_json, remark, talk, warn
from dspy_finetune.cli.jobs import follow_job, tell_model
from dspy_finetune.cli.options import AsJson, CellDelimiter, EnvPath, RootPath, a_host, host_named, load_env
from dspy_finetune.cli.train import (
    AllowUnknownModel,
    BatchSize,
    Beta,
    Epochs,
    Full,
    LoraRank,
    Metadata,
    Multiplier,
    New,
    NoWait,
    Rate,
    Recipe,
    Seed,
    Suffix,
    WandbProject,
    hyperparameters,
    pairs,
    show,
    tell_begun,
    tell_left,
)
from dspy_finetune.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("migrate")(migrate)


def migrate(
    model: Annotated[str, typer.Argument(help="The tuned model's id, its job's id, or a saved predictor's file.")],
    to: Annotated[
        str, typer.Option("--to", help="Where to train it again: as --host of `train`.", autocompletion=a_host)
    ],
    origin: Annotated[
        str | None,
        typer.Option(
            "--from", help="Where it is now; without it this machine's journal is asked.", autocompletion=a_host
        ),
    ] = None,
    root: RootPath = None,
    base_model: Annotated[
        str | None,
        typer.Option("--model", help="What is tuned there; the same base, or the host's usual one, without."),
    ] = None,
    train: Annotated[Path | None, typer.Option("--train", help="The training file, where it has moved.")] = None,
    validation: Annotated[
        Path | None, typer.Option("--validation", help="The file to measure on, where it has moved.")
    ] = None,
    examples: Annotated[
        str | None, typer.Option("--examples", help="Labelled rows to compare on; without: the validation file.")
    ] = None,
    delimiter: CellDelimiter = None,
    stored: Annotated[
        Path | None, typer.Option("--stored", help="The old model's answers: a report that `compare --json-to` wrote.")
    ] = None,
    margin: Annotated[
        float | None, typer.Option("--margin", help="A difference that does not matter; allows 'equivalent'.")
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate_multiplier: Multiplier = None,
    learning_rate: Rate = None,
    lora_rank: LoraRank = None,
    full: Full = False,
    beta: Beta = None,
    recipe: Recipe = None,
    suffix: Suffix = None,
    seed: Seed = None,
    metadata: Metadata = None,
    wandb: WandbProject = None,
    allow_unknown_model: AllowUnknownModel = False,
    max_usd: Annotated[float | None, typer.Option("--max-usd", help="Refuse what costs more.", min=0.0)] = None,
    allow_unknown_price: Annotated[
        bool, typer.Option("--allow-unknown-price", help="Start although nobody knows the price.")
    ] = False,
    new: New = False,
    no_wait: NoWait = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; upload nothing.")] = False,
    no_compare: Annotated[bool, typer.Option("--no-compare", help="Train, and compare later.")] = False,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Stop following after this many seconds.")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the new predictor here (JSON).")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML page.")] = None,
    json_to: Annotated[
        Path | None, typer.Option("--json-to", help="Write the report with all answers as JSON.")
    ] = None,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """Train a tuned model again elsewhere, from the same data, prompt and hyperparameters, and compare new with old.

    The same command again finds the same job. Exits as `compare` does: 3 if undecided, 4 if the new one is worse.

    Example: dspy-finetune migrate predictor.json --to local
    """
    load_env(env_file)
    if html is not None:
        # Missed only when the page is written, it would cost the answers.
        require("jinja2", "report", "an HTML report")
        require("matplotlib", "report", "an HTML report")
    if no_wait:
        for option, value in (("--save", save), ("--html", html), ("--json-to", json_to)):
            if value is not None:
                raise UsageError(f"{option} needs the finished model; leave --no-wait out")
    given = hyperparameters(
        n_epochs=epochs,
        batch_size=batch_size,
        learning_rate_multiplier=learning_rate_multiplier,
        learning_rate=learning_rate,
        lora_rank=lora_rank,
        lora=False if full else None,
        beta=beta,
        recipe=recipe,
    )
    target = host_named(to, root=root, option="--to")
    made = ft.migrate(
        model,
        to=target,
        host=host_named(origin, option="--from") if origin else None,
        base_model=base_model,
        train=train,
        validation=validation,
        hyperparameters=given,
        suffix=suffix,
        seed=seed,
        allow_unknown_model=allow_unknown_model,
        metadata=pairs(metadata),
        wandb=wandb,
    )
    for planned in made.plan.plans:
        show(planned, out() if dry_run and not as_json else talk())
    warn(made.plan.warnings)
    if dry_run:
        if as_json:
            print_json(made.to_dict())
        return
    if not (no_compare or no_wait) and examples is None and made.plan.old.validation is None:
        raise UsageError("nothing to compare on: give --examples FILE with labelled rows, or --no-compare")
    try:
        job = made.start(max_usd, new=new, allow_unknown_price=allow_unknown_price)
        tell_begun(job.jobs[-1])
        if no_wait:
            tell_left(job.jobs[-1], as_json=as_json)
            left = len(made.plan.plans) - len(job.jobs)
            more = f"{left} more job{'s' if left > 1 else ''} and " if left else ""
            talk().print(f"the same command without --no-wait goes on: {more}the comparison", highlight=False)
            return
        moved = follow_job(job, target, timeout)
        if save is not None:
            made.new_predictor(moved).save(save)
            talk().print(f"wrote {save}", highlight=False, soft_wrap=True)
        if no_compare:
            tell_model(moved, as_json=as_json)
            return
        report = _compared(made, moved, examples, delimiter, stored, margin)
    finally:
        target.close()
        made.plan.old.host.close()
    if as_json:
        print_json({"model": moved.to_dict(), "outcome": report.outcome, **report.to_dict()})
    else:
        tell_model(moved, as_json=False)
        remark(f"{report.table()}\n\n{report.verdict}")
    for path, write in ((html, report.to_html), (json_to, report.to_json)):
        if path is not None:
            write(path)
            talk().print(f"wrote {path}", highlight=False, soft_wrap=True)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _compared(
    made: ft.migration.Migration,
    moved: ft.FinetunedModel,
    data: str | None,
    delimiter: str | None,
    stored: Path | None,
    margin: float | None,
) -> ft.ComparisonReport:
    rows: Any = None
    if data is not None:
        if made.old_predictor is None:
            raise UsageError(
                f"--examples needs the prompt, and {made.plan.old.train.name} has no manifest with it; name a saved"
                " predictor's file instead of the model"
            )
        rows = ft.load_examples(data, signature=made.old_predictor.prompt.signature, delimiter=delimiter)
    with ProgressBar(waits=False, stays=False) as bar:

        def tell(progress: ft.evaluation.CompareProgress) -> None:
            bar.show(f"asking {progress.program}", progress.n_asked, progress.n_items, progress.note)

        return made.compare(
            moved, rows, stored=stored, margin=margin, running=ft.evaluation.RunOptions(on_progress=tell)
        )
