"""`dspy-finetune train`: start a job within a budget and follow it to its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dspy_finetune.cli.app import out, print_json, talk
from dspy_finetune.cli.follow import follow
from dspy_finetune.cli.options import host_option, load_env
from dspy_finetune.cli.plan import (
    AllowUnknownModel,
    AsJson,
    BatchSize,
    Beta,
    EnvPath,
    Epochs,
    HostText,
    Metadata,
    MethodName,
    ModelName,
    Multiplier,
    Recipe,
    RootPath,
    Seed,
    Suffix,
    TrainPath,
    ValidationPath,
    WandbProject,
    hyperparameters,
    settle,
    show,
    warn,
)
from dspy_finetune.errors import DataError, UsageError
from dspy_finetune.export import TrainingFile
from dspy_finetune.jobs import FinetunedModel

if TYPE_CHECKING:
    from dspy_finetune.prompts import PromptFormat


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train")(train)


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
    new: Annotated[bool, typer.Option("--new", help="Make another job although this plan has one.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Start, and do not follow.")] = False,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Stop following after this many seconds.")] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Save the predictor here: `compare`, `predict` and Python load it.")
    ] = None,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """Train: plan, start at most one paid job, follow it. The same command again finds the same job.

    Ctrl-C leaves the job alive and prints the command that follows it again.
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
        given=hyperparameters(epochs, batch_size, learning_rate_multiplier, beta, recipe),
        suffix=suffix,
        seed=seed,
        metadata=metadata,
        wandb=wandb,
        allow_unknown_model=allow_unknown_model,
    )
    show(made, talk())
    warn(made.warnings)
    try:
        job = made.start(max_usd, new=new, allow_unknown_price=allow_unknown_price)
        begun = "started" if job.is_new else "found, as this plan was started before"
        talk().print(f"{job.id} {begun}", highlight=False)
        if no_wait:
            if as_json:
                print_json(job.facts.to_dict())
            else:
                out().print(f"dspy-finetune jobs follow {job.id} {host_option(made.host)}", highlight=False)
            if made.host.stops_with_process():
                talk().print("the local host stops with this command; that one starts it again with its job")
            return
        finished = follow(job, made.host, talk(), timeout)
        tell_model(finished, as_json=as_json)
        if save is not None and prompt is not None:
            save_predictor(prompt, finished, save)
    finally:
        made.host.close()


def _prompt_of(train: Path) -> PromptFormat:
    """The prompt that a training file was rendered with, from its manifest. Raises DataError, FileError."""
    dataset = TrainingFile.load(train)
    if dataset.prompt is None:
        raise DataError(
            f"{train}: its manifest holds no prompt, so --save has none for the predictor; export the file with"
            " dspy-finetune export, or build the predictor in Python"
        )
    return dataset.prompt


def save_predictor(prompt: PromptFormat, model: FinetunedModel, path: Path) -> None:
    """Write the predictor of a finished model, and say how it is used."""
    from dspy_finetune.evaluation.baselines import predictor_for  # here: --help must not wait for dspy

    predictor_for(prompt, model, host=model.host).save(path)
    talk().print(
        f"wrote {path}; use it: dspy-finetune compare TEST.jsonl --program tuned={path} --train TRAIN.jsonl",
        highlight=False,
        soft_wrap=True,
    )


def tell_model(model: FinetunedModel, *, as_json: bool) -> None:
    """A finished model: its id on stdout, what it cost and what is left to do on stderr."""
    if as_json:
        print_json(model.to_dict())
    else:
        out().print(model.id, highlight=False, soft_wrap=True)
    if model.cost_usd is not None and model.estimated_cost_usd:
        talk().print(f"cost ${model.cost_usd:,.2f}; planned ${model.estimated_cost_usd:,.2f}", highlight=False)
    command = model.host.deployment_command(model, deployment="NAME", resource_group="GROUP")
    if command:
        talk().print(
            f"it answers after a deployment, billed by the hour:\n  {command}", highlight=False, soft_wrap=True
        )
