"""Same items, several programs, paired differences, one verdict.

In: programs by name, labelled examples, metrics. Out: a `Comparison`, a plain value. The public `ft.compare` lives
one layer further right, in report/, because what it returns can draw itself: `Report(comparison)`. So evaluation
never imports report. Not covered: asking (collect.py), scores and tests (scoring.py, stats.py), pictures (report/).

Which difference decides: the *candidate* (by default the first program given) minus the *reference*. The reference is
the one the user names, else the program that did best among the others by the first metric. Picking the best rival on
the same items flatters the rival, so the choice errs against the candidate, never for it. Differences to all other
programs are tested too, and their p-values are corrected together (Holm).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dspy
import numpy as np

from dspy_finetune.catalog import load_catalog, parse_model_id
from dspy_finetune.data.items import By
from dspy_finetune.errors import EmptyDatasetError, UsageError
from dspy_finetune.evaluation import baselines, scoring, statistics
from dspy_finetune.evaluation.answers import (
    Answer,
    Collected,
    Program,
    Progress,
    collect,
    jsonable,
    read_field_of,
    reader_of,
    with_parse_failures,
)
from dspy_finetune.evaluation.baselines import LabelBaseline, NearestAnswer, NumberBaseline, Task
from dspy_finetune.evaluation.metric import AnyMetric, Metric, SetMetric, positive_label
from dspy_finetune.evaluation.result import (
    Comparison,
    Difference,
    Item,
    MetricFacts,
    NoiseFloor,
    ProgramRow,
    decide,
    n_more_items,
)
from dspy_finetune.evaluation.scoring import Resampling, Scored
from dspy_finetune.evaluation.slices import InBothOrders, Subgroups, parts_of, subgroup_rows
from dspy_finetune.predictors import FinetunedPredictor
from dspy_finetune.prompts import PromptFormat
from dspy_finetune.prompts.codecs import Codec
from dspy_finetune.values import label_text, same_label

# ----------------------------------------------------------------------------------------------------
# Does a program hold a tuned model? Asked so that a report can advise against tuning.
#
# In: a program. Out: True, False, or None where nothing can be known of a callable. A model counts as tuned when its
# name says so (`ft:...`), and when it is a predictor's and no known base model: Azure and others name tuned models
# freely.


def is_tuned(program: Program) -> bool | None:
    """Whether a program holds a tuned model; None for a callable that is neither a module nor a baseline."""
    if isinstance(program, InBothOrders):
        return is_tuned(program.program)
    if isinstance(program, (LabelBaseline, NearestAnswer, NumberBaseline)):
        return False
    if not isinstance(program, dspy.Module):
        return None
    return any(_holds_tuned(part) for part in (program, *(part for _, part in program.named_sub_modules())))


def _holds_tuned(part: Any) -> bool:
    if isinstance(part, FinetunedPredictor):
        named = parse_model_id(part.model)
        return named.is_tuned or load_catalog().model(named.base) is None
    lm = getattr(part, "lm", None)
    return isinstance(lm, dspy.BaseLM) and parse_model_id(str(lm.model)).is_tuned


# ----------------------------------------------------------------------------------------------------
# The metric that fits an output, for whoever has no wish of their own.
#
# In: a prompt and one of its outputs. Out: the name of a metric in evaluation/metrics.py.


def usual_metric(prompt: PromptFormat, field: str) -> str:
    """accuracy for a label, mean_absolute_error for a number, exact_match for text."""
    if field == prompt.label_field:
        return "accuracy"
    return "mean_absolute_error" if prompt.signature.output_fields[field].annotation in (int, float) else "exact_match"


# ----------------------------------------------------------------------------------------------------
# Which baselines a comparison gets by itself: those that fit its metric, its tuned program and the training examples.
#
# In: the programs, what the model was trained on, the metrics. Out: the programs with baselines behind them; and how
# many items stand in the training examples. Not covered: the baselines themselves (baselines.py, model_baselines.py).

_TASKS: dict[str, Task] = {"accuracy": "label", "mean_absolute_error": "number", "exact_match": "text"}


def with_baselines(
    programs: Mapping[str, Program],
    train: Sequence[Any] | None,
    metrics: Sequence[AnyMetric],
    *,
    base_model: str | None = None,
) -> dict[str, Program]:
    """The programs, and behind them `baselines.usual` of the field that the metrics read; without `train` the untuned.

    Programs of the same name stay as they are. Raises as `baselines.usual`, and UsageError where no metric names a
    field, or where a base model was named and no program has a prompt and a host to ask it with.
    """
    parts = [part for program in programs.values() for part in _parts(program)]
    tuned = next((part for part in parts if isinstance(part, FinetunedPredictor)), None)
    if base_model is not None and (tuned is None or tuned.host is None):
        raise UsageError(
            "base_model=... is asked with the prompt and on the host of a tuned program, and there is none among the "
            "programs: add ft.baselines.untuned(prompt, model, host=...) to them"
        )
    if train is None:
        if base_model is None or tuned is None:
            return dict(programs)
        name = f"{base_model}, untuned"
        return dict(programs) | {name: baselines.untuned(tuned.prompt, base_model, host=tuned.host)}
    rows = list(train)
    if not rows:
        raise EmptyDatasetError("train=[]: there are no examples to fit baselines on")
    field = next((one.field for one in metrics if isinstance(one, (Metric, SetMetric))), None)
    if field is None:
        raise UsageError(
            "train=... adds baselines for the field of the first metric from ft.metrics, and there is none"
        )
    if any(not isinstance(row, dspy.Example) or not getattr(row, "_input_keys", None) for row in rows):
        raise UsageError("train: each example must say which fields are inputs; see example.with_inputs(...)")
    prompt = tuned.prompt if tuned is not None else None
    is_output = prompt is not None and field in prompt.output_fields
    found = baselines.usual(
        rows,
        label=field,
        text=prompt.input_fields if prompt is not None else None,
        task=_TASKS[usual_metric(prompt, field)] if prompt is not None and is_output else None,
        prompt=prompt,
        base_model=base_model,
        host=tuned.host if tuned is not None else None,
        with_optimized=not any(isinstance(part, dspy.Predict) for part in parts),
    )
    return {**programs, **{name: one for name, one in found.items() if name not in programs}}


def _parts(program: Program) -> Iterator[Any]:
    yield program
    if isinstance(program, dspy.Module):
        yield from (part for _, part in program.named_sub_modules())


def n_in_training(train: Sequence[Any], items: Sequence[Any]) -> int:
    """How many items have the inputs of a training example."""
    known = {_inputs(row) for row in train}
    return sum(_inputs(row) in known for row in items)


def _inputs(row: Any) -> str:
    return json.dumps(jsonable(dict(row.inputs().items())), sort_keys=True, ensure_ascii=False)


# ----------------------------------------------------------------------------------------------------
# The noise floor: the same program asked the same questions twice.
#
# In: programs and items. Out: second answers, asked past DSPy's cache, and what they change (`NoiseFloor`). Not
# covered: caches that are not DSPy's; where the second answers report no tokens and the first did, the result says
# so.

AGAIN = " (asked again)"
"""What a program's name ends in where its second answers stand."""


def ask_again(
    programs: Mapping[str, Program], inputs: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> dict[str, Collected]:
    """Each program's second answers, past DSPy's cache, under names of their own in the checkpoint."""
    twins = {name + AGAIN: uncached(program) for name, program in programs.items()}
    found = collect(twins, inputs, **options)
    return {name: found[name + AGAIN] for name in programs}


def noise_floors(
    metric: AnyMetric,
    fact: MetricFacts,
    column: Mapping[str, Scored],
    rows: Sequence[Any],
    collected: Mapping[str, Collected],
    again: Mapping[str, Collected],
    how: Resampling,
    n_threads: int,
) -> tuple[NoiseFloor, ...]:
    """What the second answers changed.

    Args:
        metric: The metric that decides.
        fact: Its facts.
        column: The first answers' scores, by program.
        rows: The examples that were asked twice, the first ones of the comparison.
        collected: The first answers, by program.
        again: The second ones.
        how: Of the interval, for these rows.
        n_threads: For a metric that asks a model.
    """
    found = []
    for name, second in again.items():
        first = collected[name].answers[: len(rows)]
        if isinstance(metric, SetMetric):
            later, earlier = (scoring.score_set(metric, rows, one, how) for one in (second.answers, first))
        else:
            scores = column[name].scores
            assert scores is not None
            given = [
                scoring.item_scores(metric, rows, second.answers, n_threads=n_threads),
                scoring.ItemScores(scores=scores[: len(rows)]),
            ]
            later, earlier = (scoring.score_items(one, fact, how) for one in given)
        reported = [any(answer.prompt_tokens for answer in one) for one in (first, second.answers)]
        found.append(
            NoiseFloor(
                program=name,
                n=len(rows),
                n_changed=sum(
                    _said(one, fact.field) != _said(other, fact.field)
                    for one, other in zip(first, second.answers, strict=True)
                ),
                difference=scoring.paired(later, earlier, fact, how).interval,
                is_from_cache=reported == [True, False],
            )
        )
    return tuple(found)


def _said(answer: Answer, field: str | None) -> tuple[str, Any]:
    """What counts of an answer when two are compared: latency and tokens do not."""
    return answer.outcome, answer.outputs.get(field) if field is not None else dict(answer.outputs)


def uncached(program: Program) -> Program:
    """A copy of a DSPy module whose language models pass by DSPy's cache; any other callable as it is.

    A model that a module takes from `dspy.settings` is passed by the cache too.
    """
    if not isinstance(program, dspy.Module):
        return program
    twin = program.deepcopy()
    for _, part in [("", twin), *twin.named_sub_modules()]:
        if isinstance(part, FinetunedPredictor):
            _without_cache(part)
        elif isinstance(getattr(part, "lm", None), dspy.BaseLM):
            part.lm = part.lm.copy(cache=False)
    return _Uncached(twin)


def _without_cache(predictor: FinetunedPredictor) -> None:
    predictor.lm_options = {**predictor.lm_options, "cache": False}
    if predictor._given_lm is not None:
        predictor._given_lm = predictor._given_lm.copy(cache=False)
    predictor._lm = None


class _Uncached:
    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self, **inputs: Any) -> Any:
        with _settings_uncached():
            return self.program(**inputs)


@contextlib.contextmanager
def _settings_uncached() -> Iterator[None]:
    lm = dspy.settings.lm
    if not isinstance(lm, dspy.BaseLM):
        yield
        return
    with dspy.context(lm=lm.copy(cache=False)):
        yield


# ----------------------------------------------------------------------------------------------------
Columns = dict[str, dict[str, Scored]]
"""Scores by metric and program."""


def compare_programs(
    programs: Mapping[str, Program],
    examples: Sequence[Any],
    metrics: Sequence[AnyMetric],
    *,
    candidate: str | None = None,
    reference: str | None = None,
    margin: float | None = None,
    group_by: By | None = None,
    subgroups: Subgroups = (),
    noise_floor: bool | int = False,
    n_threads: int = 8,
    checkpoint: str | os.PathLike[str] | None = None,
    retry_failed: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    usd_per_million_tokens: Mapping[str, tuple[float, float]] | None = None,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Ask all programs about all examples and test the differences; `dspy_finetune.compare` documents the arguments.

    Raises:
        EmptyDatasetError: There are no examples.
        UsageError: An argument is wrong: a name that is not there, examples without inputs, a metric's field.
        DataError: An example's label is empty, or not a number where a metric needs one.
        MissingExtraError: scipy is not installed.
    """
    candidate, rows = _checked(programs, examples, metrics, candidate, reference, confidence)
    parts = parts_of(rows, subgroups)
    groups = statistics.groups_of(rows, group_by) if group_by is not None else None
    statistics.wilson(0, 1)  # a missing extra is told now, not after an hour of asking
    inputs = [dict(row.inputs().items()) for row in rows]
    options: dict[str, Any] = {
        "n_threads": n_threads,
        "checkpoint": checkpoint,
        "retry_failed": retry_failed,
        "on_progress": on_progress,
    }
    prices = usd_per_million_tokens or {}
    collected = {
        name: dataclasses.replace(one, answers=tuple(answer.priced(prices.get(name)) for answer in one.answers))
        for name, one in collect(programs, inputs, **options).items()
    }
    how = Resampling(confidence=confidence, n_resamples=n_resamples, seed=seed, groups=groups)
    n_twice = len(rows) if noise_floor is True else min(int(noise_floor), len(rows))
    again = ask_again(programs, inputs[:n_twice], options) if n_twice else {}
    # A function of the user's sees what the programs said; metrics see it read, by one codec for all programs.
    metrics, codecs = _with_codecs(metrics, rows, programs)
    read = {name: _read(one, codecs) for name, one in collected.items()}
    facts, columns = _score(metrics, rows, collected, read, how, n_threads, on_progress)
    deciding = read if _is_read(metrics[0]) else collected
    again = {name: _read(one, codecs) if _is_read(metrics[0]) else one for name, one in again.items()}
    told = {
        name: dataclasses.replace(one, answers=with_parse_failures(one.answers, next(iter(codecs), "")))
        for name, one in read.items()
    }
    others = [name for name in programs if name != candidate]
    chosen = reference if reference is not None or not others else _best(others, facts[0], columns[facts[0].name])
    return Comparison(
        candidate=candidate,
        reference=chosen,
        is_reference_chosen=reference is None and chosen is not None,
        metrics=facts,
        programs=tuple(_program_row(name, told[name], facts, columns) for name in programs),
        differences=tuple(
            one
            for fact in facts
            # The margin is in the unit of the metric that decides.
            for one in _differences(fact, columns, candidate, others, margin if fact is facts[0] else None, how)
        ),
        items=tuple(
            Item(inputs=jsonable(one), labels=jsonable(dict(row.labels().items())))
            for one, row in zip(inputs, rows, strict=True)
        ),
        answers={name: told[name].answers for name in programs},
        item_scores={
            fact.name: {name: one.scores for name, one in columns[fact.name].items() if one.scores is not None}
            for fact in facts
            if fact.kind != "set"
        },
        positive=_positive(metrics, rows),
        confidence=confidence,
        margin=margin,
        seed=seed,
        not_checked=(
            *_not_compared(programs, candidate),
            *_not_checked(inputs, facts, columns, margin, is_grouped=groups is not None, n_twice=n_twice),
        ),
        n_groups=len(set(groups)) if groups is not None else None,
        noise_floor=noise_floors(
            metrics[0],
            facts[0],
            columns[facts[0].name],
            rows[:n_twice],
            deciding,
            again,
            how.on(range(n_twice)),
            n_threads,
        ),
        subgroups=subgroup_rows(
            parts,
            metrics[0],
            facts[0],
            columns[facts[0].name],
            rows,
            {name: deciding[name].answers for name in programs},
            (candidate, chosen) if chosen is not None else None,
            how,
        ),
        tuned=tuple(name for name, program in programs.items() if is_tuned(program) is True),
        untuned=tuple(name for name, program in programs.items() if is_tuned(program) is False),
    )


def _checked(
    programs: Mapping[str, Program],
    examples: Sequence[Any],
    metrics: Sequence[AnyMetric],
    candidate: str | None,
    reference: str | None,
    confidence: float,
) -> tuple[str, list[Any]]:
    if not programs:
        raise UsageError('compare needs at least one program, such as {"tuned": predictor}')
    for role, name in (("candidate", candidate), ("reference", reference)):
        if name is not None and name not in programs:
            raise UsageError(f'{role}="{name}" is not among the programs: {", ".join(programs)}')
    candidate = next((name for name in programs if name != reference), None) if candidate is None else candidate
    if candidate is None or candidate == reference:
        raise UsageError(f'"{reference}" cannot be candidate and reference at once')
    for name, program in programs.items():
        if not callable(program):
            raise UsageError(f'the program "{name}" cannot be called: it is a {type(program).__name__}')
    names = [scoring.metric_name(metric) for metric in metrics]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"metrics must be a list of at least one metric with different names; got {names}")
    if not 0.5 < confidence < 1:
        raise UsageError(f"confidence is a share such as 0.95; got {confidence}")
    rows = list(examples)
    if not rows:
        raise EmptyDatasetError("there are no examples to compare on; check the split or the file they come from")
    for number, row in enumerate(rows, start=1):
        # Example.inputs() raises a bare ValueError when no inputs are marked, and only at the first call.
        if not isinstance(row, dspy.Example) or not getattr(row, "_input_keys", None):
            raise UsageError(
                f"example {number} does not say which fields are inputs: mark them with example.with_inputs(...), "
                "or load them with load_examples(..., inputs=[...])"
            )
    for metric in metrics:
        if isinstance(metric, (Metric, SetMetric)):
            metric.check(rows)  # missed only when scores are counted, a wrong name would cost all answers
    return candidate, rows


def _is_read(metric: AnyMetric) -> bool:
    return isinstance(metric, (Metric, SetMetric)) and metric.reads not in ("answer", "item")


def _with_codecs(
    metrics: Sequence[AnyMetric], rows: Sequence[Any], programs: Mapping[str, Program]
) -> tuple[list[AnyMetric], dict[str, Codec]]:
    """The metrics with the labels that answers are read among, and how each field of a label or number is read."""
    found: list[AnyMetric] = []
    codecs: dict[str, Codec] = {}
    for metric in metrics:
        if isinstance(metric, (Metric, SetMetric)) and metric.reads in ("label", "number"):
            labels = [row[metric.field] for row in rows if metric.field in row]
            codec = reader_of(metric.field, labels, programs.values(), is_number=metric.reads == "number")
            if codec is not None:
                codecs.setdefault(metric.field, codec)
                if metric.labels is None and metric.reads == "label":
                    metric = dataclasses.replace(metric, labels=codec.labels)
        found.append(metric)
    return found, codecs


def _read(collected: Collected, codecs: Mapping[str, Codec]) -> Collected:
    answers = collected.answers
    for name, codec in codecs.items():
        answers = read_field_of(answers, name, codec)
    return dataclasses.replace(collected, answers=answers)


def _score(
    metrics: Sequence[AnyMetric],
    rows: Sequence[Any],
    collected: Mapping[str, Collected],
    read: Mapping[str, Collected],
    how: Resampling,
    n_threads: int,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[tuple[MetricFacts, ...], Columns]:
    facts: list[MetricFacts] = []
    columns: Columns = {}
    for metric in metrics:
        said = read if _is_read(metric) else collected
        if isinstance(metric, SetMetric):
            fact = scoring.describe(metric, is_proportion=False)
            column = {name: scoring.score_set(metric, rows, one.answers, how) for name, one in said.items()}
        else:
            scores = {
                name: scoring.item_scores(
                    metric,
                    rows,
                    one.answers,
                    n_threads=n_threads,
                    on_scored=_told(on_progress, metric, name, len(rows)),
                )
                for name, one in said.items()
            }
            seen = {score for one in scores.values() for score in one.scores if score is not None}
            fact = scoring.describe(metric, is_proportion=seen <= {0.0, 1.0})
            column = {name: scoring.score_items(one, fact, how) for name, one in scores.items()}
        facts.append(fact)
        columns[fact.name] = column
    return tuple(facts), columns


def _told(
    on_progress: Callable[[Progress], None] | None, metric: AnyMetric, name: str, n_items: int
) -> Callable[[int], object]:
    """Tells how far a metric is that asks a model, as a program of its own."""

    def tell(n_done: int) -> None:
        if on_progress is not None:
            on_progress(
                Progress(
                    program=f"{scoring.metric_name(metric)} of {name}",
                    n_done=n_done,
                    n_total=n_items,
                    n_asked=n_done,
                    n_items=n_items,
                    n_unreadable=0,
                    n_failed=0,
                    n_resumed=0,
                )
            )

    return tell


def _best(names: Sequence[str], fact: MetricFacts, column: Mapping[str, Scored]) -> str:
    sign = 1 if fact.higher_is_better else -1

    def height(name: str) -> float:
        value = column[name].interval.value
        return -float("inf") if value is None else sign * value

    return max(names, key=height)


def _differences(
    fact: MetricFacts, columns: Columns, candidate: str, others: Sequence[str], margin: float | None, how: Resampling
) -> list[Difference]:
    column = columns[fact.name]
    tests = {name: scoring.paired(column[candidate], column[name], fact, how) for name in others}
    tested = [name for name in others if tests[name].p_value is not None]
    corrected = dict(zip(tested, statistics.holm([tests[name].p_value or 0.0 for name in tested]), strict=True))
    found: list[Difference] = []
    for name in others:
        test, p_holm, alpha = tests[name], corrected.get(name), 1 - how.confidence
        verdict = decide(
            test.interval.value,
            p_holm,
            higher_is_better=fact.higher_is_better,
            alpha=alpha,
            narrow=test.narrow,
            margin=margin,
        )
        more = None
        if verdict == "undecided" and test.interval.value is not None:
            # Of the smallest of the p-values that are corrected together, so much is asked by Holm's rule.
            strict = alpha / max(len(tested), 1)
            more = n_more_items(test.interval.value, test.deviation, test.interval.n, alpha=strict)
        found.append(
            Difference(
                metric=fact.name,
                other=name,
                interval=test.interval,
                p_value=test.p_value,
                p_holm=p_holm,
                test=test.test,
                verdict=verdict,
                n_more_items=more,
            )
        )
    return found


def _program_row(
    name: str,
    collected: Collected,
    facts: Sequence[MetricFacts],
    columns: Columns,
) -> ProgramRow:
    answers = collected.answers
    answered = [answer for answer in answers if answer.outcome == "answered"]
    latencies = [answer.latency_ms for answer in answered]
    p50, p95 = np.percentile(latencies, [50, 95]).tolist() if latencies else (None, None)
    sent = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
    received = [answer.completion_tokens for answer in answers if answer.completion_tokens is not None]
    costs = [answer.cost_usd for answer in answers if answer.cost_usd is not None]
    return ProgramRow(
        name=name,
        n=len(answers),
        n_wrong=_n_wrong(name, answers, facts, columns),
        n_unreadable=sum(answer.outcome == "unreadable" for answer in answers),
        n_failed=sum(answer.outcome == "failed" for answer in answers),
        seconds=collected.seconds,
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        prompt_tokens=sum(sent) if sent else None,
        completion_tokens=sum(received) if received else None,
        cost_usd=sum(costs) if costs else None,
        scores={fact.name: columns[fact.name][name].interval for fact in facts},
        n_unjudged={fact.name: n for fact in facts if (n := columns[fact.name][name].n_unjudged)},
    )


def _n_wrong(name: str, answers: Sequence[Answer], facts: Sequence[MetricFacts], columns: Columns) -> int | None:
    fact = next((fact for fact in facts if fact.kind == "proportion"), None)
    scores = columns[fact.name][name].scores if fact is not None else None
    if scores is None:
        return None
    return sum(1 for answer, score in zip(answers, scores, strict=True) if answer.outcome == "answered" and not score)


def _positive(metrics: Sequence[AnyMetric], rows: Sequence[Any]) -> Any:
    """The label that probabilities speak of: as a metric names it, else True or A where the labels are of that kind."""
    known = [one for one in metrics if isinstance(one, (Metric, SetMetric))]
    field = known[0].field if known else None
    if field is None or any(field not in row for row in rows):
        return None
    named = next((one.positive for one in known if one.reads == "probability"), None)
    labels = [row[field] for row in rows]
    if named is None and not {label_text(label) for label in labels} <= {"true", "false"}:
        named = "A" if {label_text(label) for label in labels} <= {"a", "b"} else None
        if named is None:
            return None
    positive = positive_label(labels, named)
    return next((jsonable(label) for label in labels if same_label(label, positive)), jsonable(positive))


def _not_compared(programs: Mapping[str, Program], candidate: str) -> tuple[str, ...]:
    if is_tuned(programs[candidate]) is not True or any(is_tuned(one) is False for one in programs.values()):
        return ()
    return (
        f"Whether tuning was worth it: {candidate} is tuned, and nothing without tuning was compared; train=... adds "
        "the usual baselines.",
    )


def _not_checked(
    inputs: Sequence[Mapping[str, Any]],
    facts: Sequence[MetricFacts],
    columns: Columns,
    margin: float | None,
    *,
    is_grouped: bool,
    n_twice: int,
) -> tuple[str, ...]:
    """What the numbers do not tell, in sentences."""
    told = ["Whether these items resemble those that the program will meet in use."]
    if not n_twice:
        told.append("The noise floor: no program was asked twice about the same item.")
    owners: dict[str, set[int]] = {}
    for index, row in enumerate(inputs):
        for value in row.values():
            if isinstance(value, str) and value.strip():
                owners.setdefault(value, set()).add(index)
    n_shared = len(set().union(*(indices for indices in owners.values() if 1 < len(indices) < len(inputs)), set()))
    if n_shared and not is_grouped:
        told.append(
            f"Dependence between items: {n_shared} of {len(inputs)} share a text with another item; the intervals take "
            "the items as independent and are too narrow for that; group_by=... takes them as they are."
        )
    if margin is None:
        told.append("Equivalence: no margin was given, so a small difference can only be undecided.")
    for fact in facts:
        for name, one in columns[fact.name].items():
            n_out = len(inputs) - sum(one.is_scored)
            if one.n_unjudged:
                told.append(
                    f"{fact.name} of {name}: the judge gave no verdict that could be read for {one.n_unjudged} of "
                    f"{len(inputs)} items, which are left out ({one.judge_error})."
                )
                n_out -= one.n_unjudged
            if n_out:
                told.append(
                    f"{fact.name} of {name} leaves out {n_out} of {len(inputs)} items, which could not be scored."
                )
    return tuple(told)
