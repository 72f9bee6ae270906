"""`dspy-finetune plan` and `train`: what a job will do and cost, and that job, started within a budget and followed.

`plan` uploads nothing. `train` takes the same options and starts at most one paid job for the same plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

import dspy_finetune as ft
from dspy_finetune._jsonl import read_jsonl
from dspy_finetune.catalog import load_catalog
from dspy_finetune.cli.app import out, print_json, remark, talk, warn
from dspy_finetune.cli.jobs import duration, follow_job, tell_model
from dspy_finetune.cli.options import AsJson, EnvPath, HostText, RootPath, host_named, load_env, one_of
from dspy_finetune.errors import DataError, EmptyDatasetError, RowError, UsageError
from dspy_finetune.hosts.host import host_option
from dspy_finetune.tasks import RECIPES

if TYPE_CHECKING:
    from dspy_finetune.prompts import PromptFormat

TrainPath = Annotated[Path, typer.Argument(help="The JSONL file to train on, as `export` writes it.")]
ValidationPath = Annotated[Path | None, typer.Option("--validation", help="Rows to measure on while training.")]
ModelName = Annotated[str | None, typer.Option("--model", help="Base or tuned model; the host's usual one without.")]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="sft or dpo; without it as the file was exported, or as its rows are.",
        autocompletion=one_of("sft", "dpo"),
    ),
]
Epochs = Annotated[str | None, typer.Option("--epochs", help="1 to 50, or auto.")]
BatchSize = Annotated[str | None, typer.Option("--batch-size", help="1 to 256, or auto.")]
Multiplier = Annotated[str | None, typer.Option("--learning-rate-multiplier", help="Above 0, or auto.")]
Rate = Annotated[
    str | None, typer.Option("--learning-rate", help="The rate itself, on nebius, together and fireworks: 1e-5.")
]
LoraRank = Annotated[str | None, typer.Option("--lora-rank", help="Of the adapter, on the same hosts.")]
Full = Annotated[bool, typer.Option("--full", help="All weights and no adapter, on nebius and together.")]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="On the local host: auto (looks at the rows), head, lora, head+lora.",
        autocompletion=one_of(*RECIPES),
    ),
]
Beta = Annotated[str | None, typer.Option("--beta", help="With dpo: above 0, up to 2, or auto.")]
Suffix = Annotated[str | None, typer.Option("--suffix", help="A part of the new model's name.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of the training.")]
Metadata = Annotated[list[str] | None, typer.Option("--metadata", help="KEY=VALUE; may be repeated.")]
AllowUnknownModel = Annotated[
    bool,
    typer.Option(
        "--allow-unknown-model", help="Take a model that the catalog does not know on this host: a newer one."
    ),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Start, and do not follow.")]
New = Annotated[bool, typer.Option("--new", help="Make another job although this plan has one.")]
WandbProject = Annotated[str | None, typer.Option("--wandb", help="A project of Weights & Biases to report to.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("plan")(plan)
    app.command("train")(train)


def plan(
    train: TrainPath,
    validation: ValidationPath = None,
    model: ModelName = None,
    method: MethodName = None,
    host: HostText = "openai",
    root: RootPath = None,
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
    evaluate: Annotated[
        Path | None, typer.Option(help="Rows to ask the tuned model afterwards: what that costs is shown, too.")
    ] = None,
    n_calls: Annotated[
        int, typer.Option("--calls", min=1, help="With --evaluate: calls for each row; 2 for both orders of pairs.")
    ] = 1,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """Check the files and show tokens, epochs, cost and warnings; nothing is uploaded.

    Example: dspy-finetune plan train.jsonl --host local
    """
    load_env(env_file)
    made = settle(
        train,
        validation=validation,
        model=model,
        method=method,
        host=host,
        root=root,
        given=hyperparameters(
            n_epochs=epochs,
            batch_size=batch_size,
            learning_rate_multiplier=learning_rate_multiplier,
            learning_rate=learning_rate,
            lora_rank=lora_rank,
            lora=False if full else None,
            beta=beta,
            recipe=recipe,
        ),
        suffix=suffix,
        seed=seed,
        metadata=metadata,
        wandb=wandb,
        allow_unknown_model=allow_unknown_model,
    )
    costs = evaluation(made, evaluate, n_calls) if evaluate is not None else None
    if as_json:
        asked = {} if costs is None else {"evaluation": {name: asdict(cost) for name, cost in costs.items()}}
        print_json({**made.to_dict(), **asked})
        return
    show(made, out(), costs)
    warn(made.warnings)


def train(
    train: TrainPath,
    validation: ValidationPath = None,
    model: ModelName = None,
    method: MethodName = None,
    host: HostText = "openai",
    root: RootPath = None,
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
    max_usd: Annotated[float | None, typer.Option("--max-usd", help="Refuse a plan that costs more.", min=0.0)] = None,
    allow_unknown_price: Annotated[
        bool, typer.Option("--allow-unknown-price", help="Start although nobody knows the price.")
    ] = False,
    new: New = False,
    no_wait: NoWait = False,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Stop following after this many seconds.")] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Save the predictor here: `compare`, `predict` and Python load it.")
    ] = None,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """Train: plan, start at most one paid job, follow it. The same command again finds the same job.

    Ctrl-C leaves the job alive and prints the command that follows it again.

    Example: dspy-finetune train train.jsonl --host local --save predictor.json
    """
    load_env(env_file)
    prompt = _prompt_of(train) if save is not None else None
    if save is not None and no_wait:
        raise UsageError("--save needs the finished model; leave --no-wait out")
    made = settle(
        train,
        validation=validation,
        model=model,
        method=method,
        host=host,
        root=root,
        given=hyperparameters(
            n_epochs=epochs,
            batch_size=batch_size,
            learning_rate_multiplier=learning_rate_multiplier,
            learning_rate=learning_rate,
            lora_rank=lora_rank,
            lora=False if full else None,
            beta=beta,
            recipe=recipe,
        ),
        suffix=suffix,
        seed=seed,
        metadata=metadata,
        wandb=wandb,
        allow_unknown_model=allow_unknown_model,
    )
    show(made, talk())
    warn(made.warnings)
    try:
        try:
            job = made.start(max_usd, new=new, allow_unknown_price=allow_unknown_price)
        except KeyboardInterrupt:
            note = "a job may have begun: the same command goes on with it, and does not start a second one"
            remark(note)
            raise
        tell_begun(job)
        if no_wait:
            tell_left(job, as_json=as_json)
            return
        finished = follow_job(job, made.host, timeout)
        tell_model(finished, as_json=as_json)
        if save is not None and prompt is not None:
            save_predictor(prompt, finished, save)
    finally:
        made.host.close()


def tell_begun(job: ft.Job) -> None:
    """Whether a job was made just now or found."""
    begun = "started" if job.is_new else "found, as this plan was started before"
    talk().print(f"{job.id} {begun}", highlight=False)


def tell_left(job: ft.Job, *, as_json: bool) -> None:
    """A job that is not followed: the command that follows it, or its facts."""
    if as_json:
        print_json(job.facts.to_dict())
    else:
        out().print(f"dspy-finetune jobs follow {job.id} {host_option(job.host)}", highlight=False)
    if job.host.stops_with_process():
        talk().print("the local host stops with this command; that one starts it again with its job")


def evaluation(made: ft.Plan, rows: Path, n_calls: int) -> dict[str, ft.export.cost.InferenceCost]:
    """What asking the tuned model about every row of a training file costs: at once, and by the batch interface.

    Raises:
        DataError: A row cannot be read, or has no answer.
        FileError: The file cannot be read.
    """
    host = ft.jobs.records.catalog_name(made.host, load_catalog())

    def cost(is_batch: bool) -> ft.export.cost.InferenceCost:
        return ft.export.cost.evaluation_cost(
            _rows(rows), None, made.base_model, n_calls_per_example=n_calls, is_batch=is_batch, is_tuned=True, host=host
        )

    costs = {"standard": cost(False), "batch": cost(True)}
    if not costs["batch"].n_requests:
        raise EmptyDatasetError(f"{rows} holds no rows to ask about; check that it is the right file")
    return costs


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, row in read_jsonl(path):
        try:
            yield ft.export.formats.from_any(row)
        except RowError as error:
            raise RowError(
                error.problem, path=str(path), line=number, value=error.value, remedy=error.remedy
            ) from error


def settle(
    train: Path,
    *,
    validation: Path | None,
    model: str | None,
    method: str | None,
    host: str,
    root: Path | None,
    given: dict[str, Any],
    suffix: str | None,
    seed: int | None,
    metadata: list[str] | None,
    wandb: str | None,
    allow_unknown_model: bool,
) -> ft.Plan:
    """The plan that the options of `plan` and `train` ask for.

    Raises:
        UsageError: An option is wrong.
        DataError: The host would refuse a file.
    """
    chosen: Literal["sft", "dpo"] | None = None
    if method is not None:
        if method not in {"sft", "dpo"}:
            raise UsageError(f"--method {method}: expected sft or dpo")
        chosen = "dpo" if method == "dpo" else "sft"
    where = host_named(host, root=root)
    return ft.plan(
        train,
        validation=validation,
        base_model=model or where.base_model,
        method=chosen,
        host=where,
        hyperparameters=given,
        suffix=suffix,
        seed=seed,
        metadata=pairs(metadata),
        wandb=wandb,
        allow_unknown_model=allow_unknown_model,
    )


def hyperparameters(**given: str | bool | None) -> dict[str, Any]:
    """The given ones by their names in the API, as numbers where they are numbers.

    >>> hyperparameters(n_epochs="3", learning_rate="1e-5", recipe="head", lora=None)
    {'n_epochs': 3, 'learning_rate': 1e-05, 'recipe': 'head'}
    """
    return {name: _number(text) if isinstance(text, str) else text for name, text in given.items() if text is not None}


def pairs(texts: list[str] | None) -> dict[str, str]:
    """KEY=VALUE texts as a dict.

    Raises:
        UsageError: A text without `=`.
    """
    found = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--metadata {text}: expected KEY=VALUE")
        found[key] = value
    return found


def show(
    made: ft.Plan, console: Console, evaluation_costs: Mapping[str, ft.export.cost.InferenceCost] | None = None
) -> None:
    """A plan as a table."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    validation = f", {made.validation.n_rows:,} to measure on" if made.validation is not None else ""
    table.add_row("model", f"{made.base_model} on {made.host.name}, by {made.method}")
    table.add_row("rows", f"{made.train.n_rows:,}{validation}")
    if made.choice is not None:
        table.add_row(
            "recipe", f"{made.choice.recipe}, {made.choice.what} ({made.choice.by}): {made.choice.task.found}"
        )
    if made.settings:
        table.add_row("hyperparameters", ", ".join(str(one) for one in made.settings))
    tokens = "unknown" if made.n_tokens is None else f"{made.n_tokens:,}, {made.passes}"
    table.add_row("tokens", tokens)
    table.add_row("cost", _usd(made.cost_usd))
    eta = "unknown: no finished job to go by" if made.eta_seconds is None else f"about {duration(made.eta_seconds)}"
    table.add_row("time", eta)
    if evaluation_costs is not None:
        now, later = evaluation_costs["standard"], evaluation_costs["batch"]
        found = f"{_usd(now.cost_usd)} for {now.n_requests:,} requests, in a batch {_usd(later.cost_usd)}"
        table.add_row("evaluation", f"unknown: {now.unknown}" if now.unknown else found)
    console.print(table)


def _usd(amount: float | None) -> str:
    if amount is None:
        return "unknown"
    # A small job costs less than a cent, and that is not nothing.
    return f"${amount:,.2f}" if amount >= 0.01 or not amount else f"${amount:.4f}"


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _prompt_of(train: Path) -> PromptFormat:
    """The prompt that a training file was rendered with, from its manifest. Raises DataError, FileError."""
    from dspy_finetune.export.dataset import Manifest  # here: --help must not wait for dspy

    prompt = None if Manifest.read(train) is None else ft.TrainingFile.load(train).prompt
    if prompt is None:
        raise DataError(
            f"{train}: no manifest beside it holds a prompt, so --save has none for the predictor; export the file with"
            " dspy-finetune export, or train without --save and make the predictor in Python"
        )
    return prompt


def save_predictor(prompt: PromptFormat, model: ft.FinetunedModel, path: Path) -> None:
    """Write the predictor of a finished model, and say how it is used."""
    from dspy_finetune.evaluation.baselines import predictor_for  # here: --help must not wait for dspy

    predictor_for(prompt, model, host=model.host).save(path)
    talk().print(
        f"wrote {path}; use it: dspy-finetune compare TEST.jsonl --program tuned={path} --train TRAIN.jsonl",
        highlight=False,
        soft_wrap=True,
    )
