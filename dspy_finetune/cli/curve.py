"""`dspy-finetune curve`: train on growing parts of the data, and say what more examples would bring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from dspy_finetune._optional import require
from dspy_finetune._progress import ProgressBar
from dspy_finetune.cli.app import print_json, talk
from dspy_finetune.cli.export import Preset, prompt_named
from dspy_finetune.cli.options import (
    AsJson,
    CellDelimiter,
    Embedder,
    EnvPath,
    HostText,
    JudgeHost,
    JudgeModel,
    JudgeRubric,
    Judging,
    RootPath,
    delimiter_of,
    host_named,
    load_env,
    metrics_named,
)
from dspy_finetune.cli.train import AllowUnknownModel
from dspy_finetune.data import load_examples
from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation import CurveJobs, CurveProgress, learning_curve
from dspy_finetune.evaluation.baselines import usual_metric


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("curve")(curve_command)


def curve_command(
    train: Annotated[str, typer.Argument(help="Labelled rows to train on: JSONL, JSON, CSV, Parquet.")],
    test: Annotated[str, typer.Option(help="Labelled rows that every model is asked about.")],
    preset: Annotated[Preset | None, typer.Option(help="A ready-made prompt.")] = None,
    prompt: Annotated[Path | None, typer.Option(help="A saved prompt, or a manifest that holds one.")] = None,
    rubric: Annotated[str | None, typer.Option(help="Text for the preset's system message, or @FILE.")] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Rows to train on, such as 50,100,200; doubling without it.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Base model; repeat it. Default: the host's usual one.")
    ] = None,
    epochs: Annotated[list[int] | None, typer.Option(min=1, help="Repeat it. Default: what the host chooses.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Repeat it: several show the noise of training.")] = None,
    method: Annotated[Literal["sft", "dpo"], typer.Option(help="sft or dpo.")] = "sft",
    host: HostText = "openai",
    root: RootPath = None,
    max_usd: Annotated[float | None, typer.Option("--max-usd", min=0.0, help="For all jobs together.")] = None,
    allow_unknown_price: Annotated[
        bool, typer.Option("--allow-unknown-price", help="Start although nobody knows a price.")
    ] = False,
    allow_unknown_model: AllowUnknownModel = False,
    metric: Annotated[
        str | None, typer.Option(help="As for `compare`; the usual one for the field without it.")
    ] = None,
    judge: JudgeModel = None,
    judge_rubric: JudgeRubric = None,
    embedder: Embedder = None,
    judge_host: JudgeHost = "openai",
    field: Annotated[str | None, typer.Option(help="The output to score; default: the prompt's label.")] = None,
    delimiter: CellDelimiter = None,
    folder: Annotated[Path | None, typer.Option(help="Keep training files and answers here.")] = None,
    n_concurrent: Annotated[int, typer.Option("--jobs-at-once", min=1, help="Concurrent jobs on the host.")] = 4,
    num_threads: Annotated[int, typer.Option("--threads", min=1, help="Concurrent requests.")] = 8,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="New jobs for those that had failed.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page with table and picture.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the picture: .svg, .png or .pdf.")] = None,
    json_to: Annotated[Path | None, typer.Option("--json-to", help="Write every number as JSON.")] = None,
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
    label = field or form.label_field or form.output_fields[0]
    judging = Judging(judge=judge, rubric=judge_rubric, embedder=embedder, host=judge_host)
    measured = metrics_named([metric or usual_metric(form, label)], label, judging)[0]
    where = host_named(host, root=root)
    try:
        with ProgressBar(waits=False) as bar:
            curve = learning_curve(
                load_examples(train, signature=form.signature, delimiter=delimiter_of(train, delimiter)),
                sizes=_numbers(sizes),
                models=model or [where.base_model],
                epochs=epochs or None,
                host=where,
                test=load_examples(test, signature=form.signature, delimiter=delimiter_of(test, delimiter)),
                prompt=form,
                metric=measured,
                max_usd=max_usd,
                num_threads=num_threads,
                jobs=CurveJobs(
                    method=method,
                    seeds=seed or (0,),
                    allow_unknown_price=allow_unknown_price,
                    allow_unknown_model=allow_unknown_model,
                    n_concurrent=n_concurrent,
                    retry_failed=retry_failed,
                    folder=folder,
                    on_progress=_shown(bar),
                ),
            )
    except KeyboardInterrupt:
        talk().print("jobs that were started go on; the same command again follows them", highlight=False)
        raise
    finally:
        where.close()
    if as_json:
        print_json({"sentences": list(curve.sentences), "curve": curve.to_dict()})
    else:
        print(curve)
    for path, write in ((html, curve.to_html), (plot, curve.plot), (json_to, curve.to_json)):
        if path is not None:
            write(path)
            talk().print(f"wrote {path}", highlight=False, soft_wrap=True)
    if not curve.points:
        raise typer.Exit(1)


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--sizes {text}: expected whole numbers with commas, such as 50,100,200") from error


def _shown(bar: ProgressBar) -> Callable[[CurveProgress], None]:
    def show(progress: CurveProgress) -> None:
        bar.show(progress.stage, progress.n_done, progress.n_total, f"{progress.run}: {progress.note}")

    return show
