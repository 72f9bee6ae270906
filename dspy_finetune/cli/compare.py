"""`dspy-finetune compare`: saved predictors on the same labelled file, with baselines, a verdict and an exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import dspy_finetune as ft
from dspy_finetune._optional import require
from dspy_finetune._progress import ProgressBar
from dspy_finetune.cli.app import print_json, remark, say, talk, warn
from dspy_finetune.cli.options import (
    CellDelimiter,
    Decimal,
    Embedder,
    EnvPath,
    JudgeHost,
    JudgeModel,
    JudgeRubric,
    Judging,
    MetricNames,
    a_host,
    delimiter_of,
    host_named,
    load_env,
    metrics_named,
    one_of,
)
from dspy_finetune.errors import UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.tasks import PACKAGED_ENCODER


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare_command)


def compare_command(
    data: Annotated[str, typer.Argument(help="Labelled rows: JSONL, JSON, CSV, Parquet.")],
    program: Annotated[
        list[str], typer.Option(help="NAME=FILE of a saved predictor or DSPy program; repeat it. The first is judged.")
    ],
    train: Annotated[
        str | None, typer.Option(help="The rows the model was trained on: adds the baselines that fit the task.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            help="Adds this untuned model, on the first program's host; with --train also with the nearest examples "
            "and with an optimized prompt.",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            help="With --train: adds a linear model on this sentence encoder's vectors; the local host has minilm-l6.",
            autocompletion=one_of(PACKAGED_ENCODER),
        ),
    ] = None,
    encoder_host: Annotated[
        str,
        typer.Option("--encoder-host", help="Where the encoder answers: as --host of `plan`.", autocompletion=a_host),
    ] = "local",
    lm: Annotated[
        str | None,
        typer.Option(
            "--lm", help="The model of DSPy programs that were saved without one, on the first predictor's host."
        ),
    ] = None,
    metric: MetricNames = None,
    judge: JudgeModel = None,
    judge_rubric: JudgeRubric = None,
    embedder: Embedder = None,
    judge_host: JudgeHost = "openai",
    field: Annotated[str | None, typer.Option(help="The output to score; default: the prompt's label.")] = None,
    reference: Annotated[str | None, typer.Option(help="The program to beat; default: the best of the others.")] = None,
    margin: Annotated[
        float | None, typer.Option(help="A difference that does not matter; allows 'equivalent'.")
    ] = None,
    group_by: Annotated[
        list[str] | None,
        typer.Option(
            "--group-by", help="Cluster column, for cluster-robust intervals; repeat it for the two sides of pairs."
        ),
    ] = None,
    subgroup: Annotated[
        list[str] | None, typer.Option(help="Report the metric per value of this column; may be repeated.")
    ] = None,
    noise_floor: Annotated[
        int, typer.Option("--noise-floor", min=0, help="Re-run on the first N rows to measure run-to-run variance.")
    ] = 0,
    delimiter: CellDelimiter = None,
    decimal: Decimal = ".",
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of rows.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Keep every answer here; run again to go on.")] = None,
    num_threads: Annotated[int, typer.Option("--threads", min=1, help="Concurrent requests.")] = 8,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the report as Markdown.")] = None,
    json_to: Annotated[
        Path | None, typer.Option("--json-to", help="Write the report with all answers as JSON.")
    ] = None,
    env_file: EnvPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of the table.")] = False,
) -> None:
    """Compare saved predictors and DSPy programs on the same rows, with baselines, intervals and a verdict.

    Exits with 0 if the first is better or equivalent, 1 if a program was not compared because its calls failed, 3 if
    undecided, 4 if worse.

    Example: dspy-finetune compare test.jsonl --program tuned=predictor.json --train train.jsonl
    """
    if html is not None:
        # Missed only when the page is written, after all programs were asked, they would cost the answers.
        require("jinja2", "report", "an HTML report")
        require("matplotlib", "report", "an HTML report")
    load_env(env_file)
    files = dict(map(_named, program))
    if len(files) < len(program):
        raise UsageError("two programs have the same name; each --program NAME=FILE needs its own")
    saved = {
        name: ft.load_predictor(path)
        for name, path in files.items()
        if not ft.evaluation.saved_programs.is_dspy_program(path)
    }
    if not saved:
        raise UsageError("--program: at least one file must be a saved predictor, which holds the prompt and the host")
    first = next(iter(saved.values()))
    prompt = first.prompt
    examples = ft.load_examples(
        data, signature=prompt.signature, limit=limit, delimiter=delimiter_of(data, delimiter), decimal=decimal
    )
    label = field or prompt.label_field or prompt.output_fields[0]
    asked = lm or base_model
    model = first.host.lm(asked) if asked is not None and first.host is not None else None
    programs: dict[str, ft.evaluation.collect.Program] = {
        name: saved[name] if name in saved else ft.load_optimized(prompt.signature, path, lm=model)
        for name, path in files.items()
    }
    for name, one in programs.items():
        if ft.evaluation.collect.lacks_lm(one):
            raise UsageError(
                f"--program {name}={files[name]}: the file names no language model; add --lm MODEL, which is asked on "
                "the host of the first predictor"
            )
    if encoder is not None and train is None:
        raise UsageError("--encoder is fitted on the rows of --train; add --train FILE")
    training = None
    if train is not None:
        training = ft.load_examples(
            train, signature=prompt.signature, delimiter=delimiter_of(train, delimiter), decimal=decimal
        )
    if training is not None:
        _tell_overlap(training, examples)
    _tell_missing(train is not None, base_model is not None)
    chosen = metrics_named(
        metric or [ft.evaluation.baselines.usual_metric(prompt, label)],
        label,
        Judging(judge=judge, rubric=judge_rubric, embedder=embedder, host=judge_host),
    )
    with ProgressBar(waits=False, stays=False) as bar:
        report = ft.compare(
            programs,
            examples,
            chosen,
            reference=reference,
            margin=margin,
            train=training,
            num_threads=num_threads,
            title=f"{' against '.join(programs)} on {Path(data).name}",
            baselines=ft.evaluation.BaselineOptions(
                base_model=base_model,
                encoder=encoder,
                encoder_host=_encoder_host(encoder_host, first.host) if encoder is not None else None,
            ),
            statistics=ft.evaluation.StatisticsOptions(
                group_by=group_by or None, subgroups=subgroup or (), noise_floor=noise_floor
            ),
            running=ft.evaluation.RunOptions(checkpoint=checkpoint, on_progress=_shown(bar)),
        ).annotated(cards={"Data": {"file": data, "rows": str(len(examples))}})
    _tell_failures(report.comparison.answers)
    # First what was paid for, then the files, which a full disk may refuse.
    if as_json:
        print_json(report.to_dict() | {"outcome": report.outcome})
    else:
        say(f"{report.table()}\n\n{report.verdict}")
    for path, write in ((html, report.to_html), (markdown, report.to_markdown), (json_to, report.to_json)):
        if path is not None:
            write(path)
            talk().print(f"wrote {path}", highlight=False, soft_wrap=True)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _encoder_host(text: str, predictors: Host | None) -> Host:
    """The local host of a predictor serves the encoder too: another one would load everything once more."""
    return (
        predictors if text == "local" and predictors is not None and predictors.kind.has_recipes else host_named(text)
    )


def _named(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise UsageError(f"--program takes NAME=FILE, such as tuned=predictor.json; got {text!r}")
    return name, path


def _tell_overlap(train: Sequence[Any], examples: Sequence[Any]) -> None:
    n_seen = ft.evaluation.baselines.n_in_training(train, examples)
    if n_seen:
        warn([f"{n_seen} of {len(examples)} rows stand in the training file too: the verdict on them is too good"])


def _tell_failures(answers: Mapping[str, Sequence[ft.evaluation.collect.Answer]]) -> None:
    """A lost connection counts as not right: without its reason the figure would pass for the model's."""
    for name, given in answers.items():
        errors = Counter(answer.error for answer in given if answer.outcome == "failed")
        for error, n_failed in errors.most_common(1):
            warn([f"{name}: {errors.total()} of {len(given)} calls failed, {n_failed} of them with {error}"])


def _tell_missing(has_train: bool, has_base_model: bool) -> None:
    """Baselines that the comparison lacks: a verdict without them says less."""
    missing = [] if has_train else ["baselines on the same rows (--train)"]
    missing += [] if has_base_model else ["the untuned model (--base-model)"]
    if missing:
        remark(f"not compared with: {'; '.join(missing)}", style="dim")


def _shown(bar: ProgressBar) -> Callable[[ft.evaluation.collect.CompareProgress], None]:
    """Programs are asked one after the other, so each has a bar of its own."""

    def show(progress: ft.evaluation.collect.CompareProgress) -> None:
        bar.show(f"asking {progress.program}", progress.n_asked, progress.n_items, progress.note)

    return show
