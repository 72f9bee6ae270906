"""`dspy-finetune compare`: saved predictors on the same labelled file, with baselines, a verdict and an exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dspy_finetune._optional import require
from dspy_finetune.cli.app import print_json, talk
from dspy_finetune.cli.display import Display
from dspy_finetune.data import load_examples
from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation import baselines, metrics
from dspy_finetune.evaluation.answers import Answer, Program
from dspy_finetune.evaluation.collect import Progress
from dspy_finetune.evaluation.saved_programs import is_dspy_program, load_optimized
from dspy_finetune.evaluation.usual import usual_metric
from dspy_finetune.predictors import FinetunedPredictor, load_predictor
from dspy_finetune.prompts import PromptFormat
from dspy_finetune.report import compare

_NEED_MORE = {"within", "per_class", "order_agreement", "rubric_preference", "rubric_score", "semantic_similarity"}
METRICS = tuple(name for name in metrics.__all__ if name.islower() and name not in _NEED_MORE)
"""The metrics that need nothing but a field."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare_command)


def compare_command(
    data: Annotated[str, typer.Argument(help="Labelled rows: JSONL, JSON, CSV, Parquet.")],
    program: Annotated[
        list[str], typer.Option(help="NAME=FILE of a saved predictor or DSPy program; repeat it. The first is judged.")
    ],
    train: Annotated[
        str | None, typer.Option(help="The rows the model was trained on: adds majority and TF-IDF baselines.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model", help="Adds this untuned model, on the first program's host; with --train also few-shot."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help=f"Repeat it; the first decides. {', '.join(METRICS)}.")
    ] = None,
    field: Annotated[str | None, typer.Option(help="The output to score; default: the prompt's label.")] = None,
    reference: Annotated[str | None, typer.Option(help="The program to beat; default: the best of the others.")] = None,
    margin: Annotated[
        float | None, typer.Option(help="A difference that does not matter; allows 'equivalent'.")
    ] = None,
    group_by: Annotated[
        list[str] | None,
        typer.Option(
            "--group-by", help="A column whose equal values are no independent evidence; repeat it for pairs."
        ),
    ] = None,
    subgroup: Annotated[
        list[str] | None, typer.Option(help="A column by whose values the first metric is told apart; may be repeated.")
    ] = None,
    noise_floor: Annotated[
        int, typer.Option("--noise-floor", min=0, help="Ask every program a second time about the first so many rows.")
    ] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many rows.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Keep every answer here; run again to go on.")] = None,
    n_threads: Annotated[int, typer.Option("--threads", min=1, help="Calls at once.")] = 8,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the report as Markdown.")] = None,
    json_to: Annotated[
        Path | None, typer.Option("--json-to", help="Write the report with all answers as JSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of the table.")] = False,
) -> None:
    """Compare saved predictors on the same rows.

    Exits with 0 if the first is better or equivalent, 3 if undecided, 4 if worse.
    """
    if html is not None:
        # Missed only when the page is written, after all programs were asked, they would cost the answers.
        require("jinja2", "report", "an HTML report")
        require("matplotlib", "report", "an HTML report")
    files = dict(map(_named, program))
    if len(files) < len(program):
        raise UsageError("two programs have the same name; each --program NAME=FILE needs its own")
    saved = {name: load_predictor(path) for name, path in files.items() if not is_dspy_program(path)}
    if not saved:
        raise UsageError("--program: at least one file must be a saved predictor, which holds the prompt and the host")
    first = next(iter(saved.values()))
    prompt = first.prompt
    examples = load_examples(data, signature=prompt.signature, limit=limit)
    label = field or prompt.label_field or prompt.output_fields[0]
    lm = first.host.lm(base_model) if base_model is not None and first.host is not None else None
    programs: dict[str, Program] = {
        name: saved[name] if name in saved else load_optimized(prompt.signature, path, lm=lm)
        for name, path in files.items()
    }
    if train is not None:
        training = load_examples(train, signature=prompt.signature)
        _tell_overlap(training, examples, prompt)
        programs |= _baselines(training, prompt, label)
    if base_model is not None:
        programs |= _of_base_model(base_model, first, training if train is not None else [])
    _tell_missing(train is not None, base_model is not None)
    with Display(talk()) as display:
        report = compare(
            programs,
            examples,
            [metric_named(name, label) for name in metric or [usual_metric(prompt, label)]],
            reference=reference,
            margin=margin,
            group_by=group_by or None,
            subgroups=subgroup or (),
            noise_floor=noise_floor,
            n_threads=n_threads,
            checkpoint=checkpoint,
            on_progress=_shown(display),
            title=f"{' against '.join(programs)} on {Path(data).name}",
            cards={"Data": {"file": data, "rows": str(len(examples))}},
        )
    _tell_failures(report.comparison.answers)
    # First what was paid for, then the files, which a full disk may refuse.
    if as_json:
        print_json(report.to_dict() | {"outcome": report.outcome})
    else:
        print(f"{report.table()}\n\n{report.verdict}")
    for path, write in ((html, report.to_html), (markdown, report.to_markdown), (json_to, report.to_json)):
        if path is not None:
            write(path)
            talk().print(f"wrote {path}", highlight=False, soft_wrap=True)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _named(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise UsageError(f"--program takes NAME=FILE, such as tuned=predictor.json; got {text!r}")
    return name, path


def metric_named(name: str, field: str) -> Any:
    """A metric by the name that `--metric` takes. Raises UsageError, which lists the names."""
    if name not in METRICS:
        raise UsageError(f"no metric {name!r}; there are: {', '.join(METRICS)}")
    return getattr(metrics, name)(field)


def _tell_overlap(train: Sequence[Any], examples: Sequence[Any], prompt: PromptFormat) -> None:
    seen = {tuple(str(row[name]) for name in prompt.input_fields) for row in train}
    n_seen = sum(tuple(str(row[name]) for name in prompt.input_fields) in seen for row in examples)
    if n_seen:
        talk().print(
            f"warning: {n_seen} of {len(examples)} rows stand in the training file too; a verdict on them is flattery",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def _tell_failures(answers: Mapping[str, Sequence[Answer]]) -> None:
    """A lost connection counts as not right: without its reason the figure would pass for the model's."""
    for name, given in answers.items():
        errors = Counter(answer.error for answer in given if answer.outcome == "failed")
        for error, n_failed in errors.most_common(1):
            text = f"warning: {name}: {errors.total()} of {len(given)} calls failed, {n_failed} of them with {error}"
            talk().print(text, style="yellow", highlight=False, soft_wrap=True, markup=False)


def _baselines(train: Sequence[Any], prompt: PromptFormat, label: str) -> dict[str, Program]:
    """What is worth beating, fitted on the same rows: for labels, pairs and numbers; none for free text."""
    usual = usual_metric(prompt, label)
    text = prompt.input_fields
    if usual == "mean_absolute_error":
        return {
            "TF-IDF + ridge": baselines.tfidf_ridge(train, text=text, label=label),
            "median": baselines.median(train, label=label),
        }
    if usual == "exact_match":
        return {}
    is_pair = [name[:-2] for name in text] == [text[0][:-2]] * 2 and [name[-2:] for name in text] == ["_a", "_b"]
    fit = baselines.tfidf_pairs if is_pair else baselines.tfidf_logistic
    return {
        "TF-IDF + logistic": fit(train, text=text, label=label),
        "majority": baselines.majority(train, label=label),
    }


def _of_base_model(name: str, saved: FinetunedPredictor, train: Sequence[Any]) -> dict[str, Program]:
    """The model before its training, with the same prompt; and with the nearest examples in DSPy's own."""
    programs: dict[str, Program] = {f"{name}, untuned": baselines.untuned(saved.prompt, name, host=saved.host)}
    if len(train):
        if saved.host is None:
            raise UsageError("--base-model: the first program names no host to ask the untuned model on")
        few_shot = baselines.nearest_few_shot(train, saved.prompt.signature, lm=saved.host.lm(name))
        programs[f"{name}, nearest few-shot"] = few_shot
    return programs


def _tell_missing(has_train: bool, has_base_model: bool) -> None:
    """What the tuned model was not held against: a verdict without it says less."""
    missing = [] if has_train else ["majority and TF-IDF baselines (--train)"]
    missing += [] if has_base_model else ["the untuned model (--base-model)"]
    if missing:
        talk().print(f"not compared with: {'; '.join(missing)}", style="dim", highlight=False, soft_wrap=True)


def _shown(display: Display) -> Callable[[Progress], None]:
    """Programs are asked one after the other, so each has a bar of its own."""

    def show(progress: Progress) -> None:
        note = f"{progress.n_unreadable} unreadable, {progress.n_failed} failed"
        display.show(f"asking {progress.program}", progress.n_asked, progress.n_items, note)

    return show
