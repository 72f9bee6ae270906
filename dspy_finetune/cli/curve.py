"""`dspy-finetune curve` and `sweep`: many trainings in one budget: on growing parts of the data, or of candidates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import dspy_finetune as ft
from dspy_finetune._optional import require
from dspy_finetune._progress import ProgressBar
from dspy_finetune.cli.app import print_json, remark, say, talk
from dspy_finetune.cli.export import Preset, prompt_named
from dspy_finetune.cli.options import (
    AsJson,
    CellDelimiter,
    Decimal,
    Embedder,
    EnvPath,
    HostText,
    JudgeHost,
    JudgeModel,
    JudgeRubric,
    Judging,
    RootPath,
    a_metric,
    delimiter_of,
    host_named,
    load_env,
    metrics_named,
)
from dspy_finetune.cli.train import AllowUnknownModel, Suffix, hyperparameters, save_predictor
from dspy_finetune.errors import UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.values import DecimalMark

TrainRows = Annotated[str, typer.Argument(help="Labelled rows to train on: JSONL, JSON, CSV, Parquet.")]
PresetName = Annotated[Preset | None, typer.Option("--preset", help="A ready-made prompt.")]
PromptPath = Annotated[Path | None, typer.Option("--prompt", help="A saved prompt, or a manifest that holds one.")]
RubricText = Annotated[str | None, typer.Option("--rubric", help="Text for the preset's system message, or @FILE.")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", help="Base model, or MODEL@HOST for one on another host; repeat it. Default: the host's usual one."
    ),
]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Repeat it: several show the noise of training.")]
SweepMethod = Annotated[Literal["sft", "dpo"], typer.Option("--method", help="sft or dpo.")]
MostUsd = Annotated[float | None, typer.Option("--max-usd", min=0.0, help="For all jobs together.")]
AllowUnknownPrice = Annotated[bool, typer.Option("--allow-unknown-price", help="Start although nobody knows a price.")]
MetricName = Annotated[
    str | None,
    typer.Option("--metric", help="As for `compare`; the usual one for the field without it.", autocompletion=a_metric),
]
FieldName = Annotated[str | None, typer.Option("--field", help="The output to score; default: the prompt's label.")]
KeptFolder = Annotated[Path | None, typer.Option("--folder", help="Keep training files and answers here.")]
JobsAtOnce = Annotated[int, typer.Option("--jobs-at-once", min=1, help="Concurrent jobs.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Concurrent requests.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="New jobs for those that had failed.")]
JsonTo = Annotated[Path | None, typer.Option("--json-to", help="Write every number as JSON.")]


def _values(name: str, words: str) -> Any:
    return typer.Option(name, help=f"{words}; several with commas, or repeat it.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("curve")(curve_command)
    app.command("sweep")(sweep_command)


def curve_command(
    train: TrainRows,
    test: Annotated[str, typer.Option(help="Labelled rows that every model is asked about.")],
    preset: PresetName = None,
    prompt: PromptPath = None,
    rubric: RubricText = None,
    sizes: Annotated[
        str | None, typer.Option(help="Rows to train on, such as 50,100,200; doubling without it.")
    ] = None,
    model: Models = None,
    epochs: Annotated[list[int] | None, typer.Option(min=1, help="Repeat it. Default: what the host chooses.")] = None,
    seed: Seeds = None,
    method: SweepMethod = "sft",
    host: HostText = "openai",
    root: RootPath = None,
    max_usd: MostUsd = None,
    allow_unknown_price: AllowUnknownPrice = False,
    allow_unknown_model: AllowUnknownModel = False,
    metric: MetricName = None,
    judge: JudgeModel = None,
    judge_rubric: JudgeRubric = None,
    embedder: Embedder = None,
    judge_host: JudgeHost = "openai",
    field: FieldName = None,
    delimiter: CellDelimiter = None,
    decimal: Decimal = ".",
    folder: KeptFolder = None,
    n_concurrent: JobsAtOnce = 4,
    num_threads: Threads = 8,
    retry_failed: RetryFailed = False,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page with table and picture.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the picture: .svg, .png or .pdf.")] = None,
    json_to: JsonTo = None,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """One job per training size, model and number of epochs; then the value of the next 100 examples.

    All jobs are priced before the first is started. The same command again finds the same jobs and answers.

    Example: dspy-finetune curve train.jsonl --test test.jsonl --preset binary --host local
    """
    if html is not None or plot is not None:
        require("matplotlib", "report", "a picture")  # missed only at the end, it would be missed after hours
    load_env(env_file)
    form = prompt_named(preset, prompt, rubric)
    judging = Judging(judge=judge, rubric=judge_rubric, embedder=embedder, host=judge_host)
    rows = _reader(form, delimiter, decimal)
    with _followed(host, root, model) as (where, models, show):
        curve = ft.learning_curve(
            rows(train),
            sizes=_numbers(sizes),
            models=models,
            epochs=epochs or None,
            host=where,
            test=rows(test),
            prompt=form,
            metric=_metric(form, metric, field, judging),
            max_usd=max_usd,
            num_threads=num_threads,
            jobs=ft.evaluation.CurveJobs(
                method=method,
                seeds=seed or (0,),
                allow_unknown_price=allow_unknown_price,
                allow_unknown_model=allow_unknown_model,
                n_concurrent=n_concurrent,
                retry_failed=retry_failed,
                folder=folder,
                on_progress=show,
            ),
        )
    if as_json:
        print_json({"sentences": list(curve.sentences), "curve": curve.to_dict()})
    else:
        say(str(curve))
    _written((html, curve.to_html), (plot, curve.plot), (json_to, curve.to_json))
    if not curve.points:
        raise typer.Exit(1)


def sweep_command(
    train: TrainRows,
    validation: Annotated[str, typer.Option(help="Labelled rows that every model is asked about, to choose by.")],
    test: Annotated[
        str | None, typer.Option(help="Labelled rows that the chosen model alone is asked about, once it is chosen.")
    ] = None,
    preset: PresetName = None,
    prompt: PromptPath = None,
    rubric: RubricText = None,
    model: Models = None,
    epochs: Annotated[list[str] | None, _values("--epochs", "1 to 50, or auto")] = None,
    batch_size: Annotated[list[str] | None, _values("--batch-size", "1 to 256, or auto")] = None,
    learning_rate_multiplier: Annotated[
        list[str] | None, _values("--learning-rate-multiplier", "Above 0, on hosts that take one")
    ] = None,
    learning_rate: Annotated[
        list[str] | None, _values("--learning-rate", "The rate itself, on nebius, together and fireworks")
    ] = None,
    lora_rank: Annotated[list[str] | None, _values("--lora-rank", "Of the adapter, on the same hosts")] = None,
    beta: Annotated[list[str] | None, _values("--beta", "With dpo: above 0, up to 2")] = None,
    recipe: Annotated[list[str] | None, _values("--recipe", "On the local host: auto, head, lora, head+lora")] = None,
    seed: Seeds = None,
    method: SweepMethod = "sft",
    suffix: Suffix = None,
    host: HostText = "openai",
    root: RootPath = None,
    max_usd: MostUsd = None,
    allow_unknown_price: AllowUnknownPrice = False,
    allow_unknown_model: AllowUnknownModel = False,
    metric: MetricName = None,
    judge: JudgeModel = None,
    judge_rubric: JudgeRubric = None,
    embedder: Embedder = None,
    judge_host: JudgeHost = "openai",
    field: FieldName = None,
    delimiter: CellDelimiter = None,
    decimal: Decimal = ".",
    folder: KeptFolder = None,
    n_concurrent: JobsAtOnce = 4,
    num_threads: Threads = 8,
    retry_failed: RetryFailed = False,
    save: Annotated[Path | None, typer.Option(help="Save the chosen model's predictor here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page with the table.")] = None,
    json_to: JsonTo = None,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """Train every combination of models, hosts and hyperparameters within one budget; choose by the validation rows.

    A hyperparameter is tried on the hosts that have it. All jobs are priced before the first is started. The same
    command again finds the same jobs and answers.

    Example: dspy-finetune sweep train.jsonl --validation validation.jsonl --preset binary --host local --epochs 1,3
    """
    if html is not None:
        require("jinja2", "report", "an HTML report")
    load_env(env_file)
    form = prompt_named(preset, prompt, rubric)
    judging = Judging(judge=judge, rubric=judge_rubric, embedder=embedder, host=judge_host)
    given = {
        "n_epochs": epochs,
        "batch_size": batch_size,
        "learning_rate_multiplier": learning_rate_multiplier,
        "learning_rate": learning_rate,
        "lora_rank": lora_rank,
        "beta": beta,
        "recipe": recipe,
    }
    rows = _reader(form, delimiter, decimal)
    with _followed(host, root, model) as (where, models, show):
        found = ft.evaluation.sweep(
            rows(train),
            models=models,
            hyperparameters={name: _tried(name, texts) for name, texts in given.items() if texts},
            host=where,
            validation=rows(validation),
            test=None if test is None else rows(test),
            prompt=form,
            metric=_metric(form, metric, field, judging),
            max_usd=max_usd,
            num_threads=num_threads,
            jobs=ft.evaluation.CurveJobs(
                method=method,
                suffix=suffix,
                seeds=seed or (0,),
                allow_unknown_price=allow_unknown_price,
                allow_unknown_model=allow_unknown_model,
                n_concurrent=n_concurrent,
                retry_failed=retry_failed,
                folder=folder,
                on_progress=show,
            ),
        )
        if save is not None and found.model is not None:
            save_predictor(form, found.model, save)
    if as_json:
        print_json({"sentences": list(found.sentences), "sweep": found.to_dict()})
    else:
        say(str(found))
    _written((html, found.to_html), (json_to, found.to_json))
    if found.model is None:
        raise typer.Exit(1)


def _reader(form: ft.PromptFormat, delimiter: str | None, decimal: DecimalMark) -> Callable[[str], list[Any]]:
    """What reads the labelled rows of a file for this prompt."""

    def read(path: str) -> list[Any]:
        return ft.load_examples(
            path, signature=form.signature, delimiter=delimiter_of(path, delimiter), decimal=decimal
        )

    return read


@contextlib.contextmanager
def _followed(
    host: str, root: Path | None, models: list[str] | None
) -> Iterator[tuple[Host, list[str | tuple[str, Host]], Callable[[ft.evaluation.CurveProgress], None]]]:
    """The host, the models with theirs, and what shows the progress; all hosts are closed at the end."""
    where = host_named(host, root=root)
    placed = [_placed(text) for text in models or [where.base_model]]
    try:
        with ProgressBar(waits=False, stays=False) as bar:
            yield where, placed, _shown(bar)
    except KeyboardInterrupt:
        remark("jobs that were started go on; the same command again follows them")
        raise
    finally:
        for one in [where, *(one[1] for one in placed if not isinstance(one, str))]:
            one.close()


def _placed(text: str) -> str | tuple[str, Host]:
    """A model, with its host where it names one; a folder's name may hold an `@`, too."""
    name, at, where = text.partition("@")
    if not at or Path(text).exists():
        return text
    try:
        return name, host_named(where)
    except UsageError as error:
        raise UsageError(f"--model {text}: expected MODEL@HOST ({error})") from error


def _metric(form: Any, name: str | None, field: str | None, judging: Judging) -> Any:
    label = field or form.label_field or form.output_fields[0]
    return metrics_named([name or ft.evaluation.baselines.usual_metric(form, label)], label, judging)[0]


def _tried(name: str, texts: list[str]) -> list[Any]:
    parts = [part.strip() for text in texts for part in text.split(",")]
    return [hyperparameters(**{name: part})[name] for part in parts]


def _written(*files: tuple[Path | None, Callable[[Path], None]]) -> None:
    for path, write in files:
        if path is not None:
            write(path)
            talk().print(f"wrote {path}", highlight=False, soft_wrap=True)


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--sizes {text}: expected whole numbers with commas, such as 50,100,200") from error


def _shown(bar: ProgressBar) -> Callable[[ft.evaluation.CurveProgress], None]:
    def show(progress: ft.evaluation.CurveProgress) -> None:
        bar.show(
            progress.stage,
            progress.n_done,
            progress.n_total,
            ": ".join(part for part in (progress.run, progress.note) if part),
        )

    return show
