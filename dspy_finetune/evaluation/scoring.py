"""From answers to scores: one metric over one program's answers, its interval, and the paired test of two programs.

In: a metric, the examples, each program's answers. Out: `Scored` columns, `PairedTest`s, noise floors.
Not covered: asking (collect.py), which differences are looked at and what they mean (compare.py, result.py).
"""

from __future__ import annotations

import contextvars
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

from dspy_finetune.data.items import By
from dspy_finetune.errors import AnswerError, JudgeError, UsageError
from dspy_finetune.evaluation import statistics
from dspy_finetune.evaluation.collect import Answer, Collected
from dspy_finetune.evaluation.metric import AnyMetric, Metric, SetMetric
from dspy_finetune.evaluation.result import Kind, MetricFacts, NoiseFloor
from dspy_finetune.evaluation.statistics import Interval, PairedTest

Subgroups: TypeAlias = Sequence[str] | Mapping[str, Callable[[Any], Any]]
"""Fields of the examples, or names with functions of the example."""


@dataclass(frozen=True, kw_only=True)
class StatisticsOptions:
    """How intervals and tests are drawn, and what is measured besides."""

    confidence: float = 0.95
    """Of the intervals; 1 - confidence is the error rate of the verdict."""
    n_resamples: int = 1000
    """Bootstrap draws for set metrics such as ROC AUC; the sign-flip test takes ten times as many."""
    seed: int = 0
    """Random seed of the resampling."""
    group_by: By | None = None
    """Cluster column, for cluster-robust intervals: what items share that makes them no independent evidence.

    A field (the same author), several fields each of which holds an item (both titles of a pair), or a function of the
    example, as for `split`. Intervals and tests then take the groups as independent, not the items.
    """
    subgroups: Subgroups = ()
    """Report the first metric per value of these columns: fields, or names with functions of the example.

    For `compare` alone.
    """
    noise_floor: bool | int = False
    """Re-run every program, past DSPy's cache, to measure run-to-run variance: on all items (True) or on the first N.

    It costs as many calls again. For `compare` alone.
    """


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How intervals and p-values are drawn."""

    confidence: float
    """Of the intervals."""
    n_resamples: int
    """Draws of the bootstrap; the sign-flip test takes ten times as many, they cost less."""
    seed: int
    """Of both."""
    groups: tuple[int, ...] | None = None
    """Each item's group, where items share one; None takes the items as independent."""

    @classmethod
    def of(cls, options: StatisticsOptions, rows: Sequence[Any]) -> Resampling:
        """For these rows. Raises MissingExtraError, and UsageError where the groups cannot be told apart."""
        statistics.wilson(0, 1)  # a missing extra is told now, not after an hour of asking
        return cls(
            confidence=options.confidence,
            n_resamples=options.n_resamples,
            seed=options.seed,
            groups=statistics.groups_of(rows, options.group_by) if options.group_by is not None else None,
        )

    def on(self, places: Sequence[int]) -> Resampling:
        """The same for a part of the items."""
        groups = None if self.groups is None else tuple(self.groups[place] for place in places)
        return dataclasses.replace(self, groups=groups)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One metric over one program's answers."""

    scores: tuple[float | None, ...] | None
    """Per item, for item metrics; None for set metrics."""
    interval: Interval
    """The figure over all items that could be scored."""
    draws: statistics.Floats | None
    """The bootstrap distribution, for set metrics: the same items are drawn for every program."""
    is_scored: tuple[bool, ...]
    """Per item, whether it counts."""
    n_unjudged: int = 0
    """Items for which a judge gave no verdict that could be read."""
    judge_error: str | None = None
    """Why, for the first of them."""


def describe(metric: AnyMetric, is_proportion: bool) -> MetricFacts:
    """The facts of a metric that outlive it. `is_proportion`: all scores of a user's function were 0 or 1."""
    if isinstance(metric, (Metric, SetMetric)):
        kind: Kind = "set" if isinstance(metric, SetMetric) else "proportion" if metric.is_proportion else "mean"
        return MetricFacts(
            name=metric.name,
            kind=kind,
            higher_is_better=metric.higher_is_better,
            field=metric.field,
            bounds=metric.bounds if isinstance(metric, Metric) else (None, None),
        )
    kind = "proportion" if is_proportion else "mean"
    return MetricFacts(name=metric_name(metric), kind=kind, higher_is_better=True, field=None)


def metric_name(metric: AnyMetric) -> str:
    """What tables call a metric."""
    if isinstance(metric, (Metric, SetMetric)):
        return metric.name
    return getattr(metric, "__name__", type(metric).__name__).replace("_", " ")


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """What an item metric says of one program's answers."""

    scores: tuple[float | None, ...]
    """Per item; None where it cannot be scored."""
    n_unjudged: int = 0
    """Of those, the ones for which a judge gave no verdict that could be read."""
    judge_error: str | None = None
    """Why, for the first of them."""


def item_scores(
    metric: Metric | Callable[..., Any],
    examples: Sequence[Any],
    answers: Sequence[Answer],
    *,
    num_threads: int = 1,
    on_scored: Callable[[int], object] = lambda n_done: None,
) -> ItemScores:
    """Each item's score by an item metric.

    Items without an answer get the metric's `if_parse_failure`; under a user's own function they count 0, as in
    dspy.Evaluate. A metric that asks a model is asked with threads, and `on_scored` is told after each item.
    """
    without_answer = metric.if_parse_failure if isinstance(metric, Metric) else 0.0
    errors: list[str] = []

    def score(example: Any, answer: Answer) -> float | None:
        prediction = answer.prediction()
        try:
            return without_answer if prediction is None else score_value(metric(example, prediction))
        except JudgeError as error:
            errors.append(str(error))
            return None
        except AnswerError:
            return without_answer

    if not (isinstance(metric, Metric) and metric.asks_a_model):
        scores = tuple(map(score, examples, answers))
    else:
        with ThreadPoolExecutor(max_workers=max(1, num_threads), thread_name_prefix="score") as pool:
            futures = [
                # A copy of the caller's context each, so that `with dspy.context(...)` reaches the metric.
                pool.submit(contextvars.copy_context().run, score, example, answer)
                for example, answer in zip(examples, answers, strict=True)
            ]
            found: list[float | None] = []
            try:
                for future in futures:
                    found.append(future.result())
                    on_scored(len(found))
            finally:
                pool.shutdown(cancel_futures=True)
        scores = tuple(found)
    return ItemScores(scores=scores, n_unjudged=len(errors), judge_error=errors[0] if errors else None)


def score_value(value: Any) -> float:
    """A metric's return value as a float: a number, a bool, or a prediction with a `score`, as DSPy allows.

    Raises:
        UsageError: It is neither, or not finite.
    """
    try:
        score = float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"a metric returned {value!r}; it must return a number, a bool or a prediction with a score"
        ) from error
    if not math.isfinite(score):
        raise UsageError(f"a metric returned {score}; leave an item out by raising AnswerError")
    return score


def score_items(given: ItemScores, fact: MetricFacts, how: Resampling) -> Scored:
    """The mean of item scores: Wilson's interval when all are 0 or 1, else Student's t within the metric's bounds."""
    scores = given.scores
    known = [score for score in scores if score is not None]
    groups = _groups_of_known(scores, how)
    if fact.kind == "proportion":
        interval = (
            statistics.wilson(round(sum(known)), len(known), how.confidence)
            if groups is None
            else statistics.proportion_interval(known, groups, how.confidence)
        )
    else:
        interval = (
            statistics.mean_interval(known, how.confidence, fact.bounds)
            if groups is None
            else statistics.clustered_mean_interval(known, groups, how.confidence, fact.bounds)
        )
    return Scored(
        scores=scores,
        interval=interval,
        draws=None,
        is_scored=tuple(one is not None for one in scores),
        n_unjudged=given.n_unjudged,
        judge_error=given.judge_error,
    )


def _groups_of_known(scores: Sequence[object], how: Resampling) -> list[int] | None:
    if how.groups is None:
        return None
    return [group for group, score in zip(how.groups, scores, strict=True) if score is not None]


def score_set(metric: SetMetric, examples: Sequence[Any], answers: Sequence[Answer], how: Resampling) -> Scored:
    """A set metric with its percentile bootstrap over the items."""
    expected, predicted = metric.columns(examples, [answer.prediction() for answer in answers])
    counted = tuple(metric.counts_parse_failures or value is not None for value in predicted)
    value = metric.over(expected, predicted)

    def on(indices: Any) -> float:
        return metric.over([expected[i] for i in indices], [predicted[i] for i in indices])

    # All items are drawn from, also those that cannot be scored, so that every program sees the same draws.
    if how.groups is None:
        draws = statistics.resample(len(expected), on, n_resamples=how.n_resamples, seed=how.seed)
    else:
        draws = statistics.clustered_resample(how.groups, on, n_resamples=how.n_resamples, seed=how.seed)
    interval = statistics.percentile_interval(value, draws, sum(counted), how.confidence)
    if interval.low is not None and interval.low == interval.high:
        # Draws that agree show no spread, as where few items are all right: that is no certainty.
        interval = dataclasses.replace(interval, low=None, high=None, method="none")
    return Scored(scores=None, interval=interval, draws=draws, is_scored=counted)


def paired(one: Scored, other: Scored, fact: MetricFacts, how: Resampling) -> PairedTest | None:
    """First minus second, on the items that both could be scored on (set metrics: on each one's own items).

    None where there is nothing to test.
    """
    if one.draws is not None and other.draws is not None:
        n = sum(a and b for a, b in zip(one.is_scored, other.is_scored, strict=True))
        values = one.interval.value, other.interval.value
        value = math.nan if values[0] is None or values[1] is None else values[0] - values[1]
        return statistics.paired_bootstrap(value, one.draws - other.draws, n)
    assert one.scores is not None
    assert other.scores is not None
    both = [(a, b) for a, b in zip(one.scores, other.scores, strict=True) if a is not None and b is not None]
    if not both:
        return None
    if fact.kind == "proportion" and how.groups is None:
        return statistics.paired_proportions([a for a, _ in both], [b for _, b in both])
    known = [None if a is None or b is None else a - b for a, b in zip(one.scores, other.scores, strict=True)]
    return statistics.sign_flips(
        [a - b for a, b in both],
        _groups_of_known(known, how),
        n_resamples=10 * how.n_resamples - 1,
        seed=how.seed,
    )


NOTHING = Interval(value=None, low=None, high=None, n=0, method="none")
"""The difference of two programs that could not both be scored on any item."""


def noise_floors(
    metric: AnyMetric,
    fact: MetricFacts,
    column: Mapping[str, Scored],
    rows: Sequence[Any],
    collected: Mapping[str, Collected],
    again: Mapping[str, Collected],
    how: Resampling,
    num_threads: int,
) -> tuple[NoiseFloor, ...]:
    """What the second answers changed.

    Args:
        metric: The metric that decides.
        fact: Its facts.
        column: The first answers' scores, by program.
        rows: The examples that were asked twice, the first ones of the comparison.
        collected: The first answers, by program.
        again: The second ones.
        how: Of the interval.
        num_threads: For a metric that asks a model.
    """
    how = how.on(range(len(rows)))
    found = []
    for name, second in again.items():
        first = collected[name].answers[: len(rows)]
        if isinstance(metric, SetMetric):
            later, earlier = (score_set(metric, rows, one, how) for one in (second.answers, first))
        else:
            scores = column[name].scores
            assert scores is not None
            given = [
                item_scores(metric, rows, second.answers, num_threads=num_threads),
                ItemScores(scores=scores[: len(rows)]),
            ]
            later, earlier = (score_items(one, fact, how) for one in given)
        test = paired(later, earlier, fact, how)
        reported = [any(answer.prompt_tokens for answer in one) for one in (first, second.answers)]
        found.append(
            NoiseFloor(
                program=name,
                n=len(rows),
                n_changed=sum(
                    _said(one, fact.field) != _said(other, fact.field)
                    for one, other in zip(first, second.answers, strict=True)
                ),
                difference=test.interval(how.confidence) if test is not None else NOTHING,
                is_from_cache=reported == [True, False],
            )
        )
    return tuple(found)


def _said(answer: Answer, field: str | None) -> tuple[str, Any]:
    """What counts of an answer when two are compared: latency and tokens do not."""
    return answer.outcome, answer.outputs.get(field) if field is not None else dict(answer.outputs)
