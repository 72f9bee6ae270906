"""From answers to scores, and the result of a comparison as plain values: per program, per value of a column, paired.

In: a metric, the examples, each program's answers. Out: `Scored` columns, `PairedTest`s, noise floors; `SubgroupRow`s;
for pairwise programs their position, length and price bias as `PairwiseBias`; and the `Comparison` that holds it all,
frozen values that become JSON and come back (`to_dict`, `from_dict`).
A subgroup is looked at because it is there, not because somebody had a reason to: its tests are corrected for the
number of subgroups (Holm), and each interval has the level of its own test.
Not covered: asking (collect.py), which differences are looked at (compare.py), showing them (comparison_report.py),
correcting a bias.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import dspy

from dspy_finetune._files import read_dataclass, read_json
from dspy_finetune.data.items import By
from dspy_finetune.errors import AnswerError, DataError, FinetuneError, JudgeError, UsageError
from dspy_finetune.evaluation import statistics
from dspy_finetune.evaluation.collect import Answer, Collected, Program, first_line, inputs_text
from dspy_finetune.evaluation.metrics import ORDERS_AGREE, AnyMetric, Metric, SetMetric
from dspy_finetune.evaluation.statistics import Interval, PairedTest, items_needed, wilson
from dspy_finetune.predictors.ask import in_threads
from dspy_finetune.tasks import exchanged, sides_of
from dspy_finetune.values import label_text, read_number, score_value

Key = TypeVar("Key", bound=Hashable)
Saved = TypeVar("Saved")

Verdict: TypeAlias = Literal["better", "worse", "equivalent", "undecided", "not compared"]
"""What a comparison found, seen from the candidate; *not compared* where a program mostly did not answer."""


def decide(
    test: PairedTest | None, *, higher_is_better: bool, alpha: float, margin: float | None = None
) -> tuple[Verdict, float]:
    """The verdict on candidate minus other, and the confidence of the interval that it rests on.

    *equivalent* where a margin was given and the interval at 1 - 2 alpha lies inside it (two one-sided tests,
    Schuirmann 1987); else *better* or *worse* where the interval at 1 - alpha excludes zero; else *undecided*.
    Equivalence goes first: a difference that is surely smaller than what the user cares about is no reason to act,
    however significant.
    """
    if test is None:
        return "undecided", 1 - alpha
    if margin is not None:
        narrow = test.interval(1 - 2 * alpha)
        if narrow.low is not None and narrow.high is not None and -margin < narrow.low and narrow.high < margin:
            return "equivalent", 1 - 2 * alpha
    found = test.interval(1 - alpha)
    if found.low is None or found.high is None or found.low <= 0.0 <= found.high:
        return "undecided", 1 - alpha
    return ("better" if (found.low > 0) == higher_is_better else "worse"), 1 - alpha


def n_more_items(difference: float, deviation: float, n: int, *, alpha: float) -> int | None:
    """How many items more would decide with a chance of 80 %, if the difference stays as seen; None if no number."""
    needed = items_needed(difference, deviation, alpha=alpha)
    return None if needed is None else max(needed - n, 1)


FORMAT = 1
"""Version of the JSON form."""

Kind: TypeAlias = Literal["proportion", "mean", "set"]
"""Which statistics hold: binomial, those of a mean, or resampling only."""


@dataclass(frozen=True, kw_only=True)
class MetricFacts:
    """What the report needs to know of a metric after it has run."""

    name: str
    """What tables call it."""
    kind: Kind
    """Which statistics were used."""
    higher_is_better: bool
    """False for errors and losses."""
    field: str | None
    """The output field it reads; None for a user's own function."""
    bounds: tuple[float | None, float | None] = (None, None)
    """Within which every score of an item lies; None where there is no end, or it is not known."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MetricFacts:
        """From JSON. Raises ValueError."""
        return read_dataclass(cls, values)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item that all programs were asked about."""

    inputs: Mapping[str, Any]
    """What the programs saw."""
    labels: Mapping[str, Any]
    """The other fields of the example."""


@dataclass(frozen=True, kw_only=True)
class ProgramRow:
    """One program's line in the table."""

    name: str
    """As the user called it."""
    n: int
    """Items asked."""
    n_wrong: int | None
    """Answers that were read and are not right by the first metric of kind proportion; None without such a metric."""
    n_parse_failures: int
    """Answers that could not be read."""
    n_no_answer: int = 0
    """Answers that are none: the model refused, was cut off, or only reasoned."""
    n_failed: int
    """Calls that failed."""
    seconds: float
    """Wall time for all items, with all threads."""
    latency_p50_ms: float | None
    """Median time of one call that was answered, without the first, which may load a model, and the cached."""
    latency_p95_ms: float | None
    """95th percentile of it."""
    n_cached: int = 0
    """Answers from DSPy's cache; their times stand in no figure but `seconds`."""
    prompt_tokens: int | None
    """Sum over the items; None where no model reported any."""
    completion_tokens: int | None
    """As above."""
    cost_usd: float | None
    """Tokens times the prices given; None without prices or tokens."""
    scores: Mapping[str, Interval]
    """The figure of each metric, by the metric's name; `n` counts the items that could be scored."""
    n_unjudged: Mapping[str, int] = field(default_factory=dict)
    """By metric, items for which its judge gave no verdict that could be read; only metrics that have such items."""

    @property
    def is_mostly_silent(self) -> bool:
        """Whether the model refused, was cut off or only reasoned on more than half of the items."""
        return self.n_no_answer > self.n / 2


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The candidate against one other program, on the items that both could be scored on."""

    metric: str
    """The metric's name."""
    other: str
    """The program that is compared with the candidate."""
    interval: Interval
    """Candidate minus other, at the confidence below: the interval that the verdict is read from."""
    p_value: float | None
    """Two-sided; None where there is nothing to test."""
    p_holm: float | None
    """Corrected for the number of other programs, within this metric (Holm)."""
    test: str
    """Exact McNemar, sign-flip permutation, or bootstrap."""
    verdict: Verdict
    """Seen from the candidate: better or worse exactly where the interval excludes zero."""
    n_more_items: int | None
    """For an undecided difference: about how many items more would decide, if it stays as seen."""
    confidence: float = 0.95
    """Of the interval.

    Above the comparison's own where several programs are corrected together: the level at which Holm's procedure tests
    this one. For an equivalent difference 1 - 2 alpha (two one-sided tests).
    """


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """One program against itself: asked the same items a second time, past DSPy's cache."""

    program: str
    """As the user called it."""
    n: int
    """Items asked twice."""
    n_changed: int
    """Of those, the ones whose second answer differs from the first, in outcome or in the field that is scored."""
    difference: Interval
    """Second minus first by the first metric; a difference between programs within this interval may be mere noise."""
    is_from_cache: bool
    """True where the second answers reported no tokens though the first did: some cache gave them, and the noise is
    not measured."""


@dataclass(frozen=True, kw_only=True)
class SubgroupRow:
    """The programs on a part of the items, by the first metric."""

    field: str
    """What the items are parted by."""
    value: str
    """The part: a value, a range of numbers, or the rare values together."""
    n: int
    """Items in it."""
    scores: Mapping[str, Interval]
    """By program."""
    difference: Interval | None
    """Candidate minus reference; None with one program."""
    p_holm: float | None
    """Two-sided, corrected for the number of parts of this field (Holm); None where there is nothing to test."""
    confidence: float = 0.95
    """Of the difference's interval: as Holm tests this part, so that it excludes zero exactly where p_holm is small."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of a comparison."""

    candidate: str
    """The program whose worth is asked."""
    reference: str | None
    """The program it has to beat; None when it stands alone."""
    is_reference_chosen: bool
    """True when the reference is simply the best of the others on these items; False when the user named it."""
    metrics: tuple[MetricFacts, ...]
    """In the order given; the first decides the verdict."""
    programs: tuple[ProgramRow, ...]
    """In the order given."""
    differences: tuple[Difference, ...]
    """Candidate minus each other program, for each metric."""
    items: tuple[Item, ...]
    """The items, in the order given."""
    answers: Mapping[str, tuple[Answer, ...]]
    """By program, in the order of the items."""
    item_scores: Mapping[str, Mapping[str, tuple[float | None, ...]]]
    """By metric (item metrics only) and program, in the order of the items; None where an item could not be scored."""
    positive: Any
    """The label that `probability` speaks of; None when there is no such label."""
    confidence: float
    """Of all intervals."""
    margin: float | None
    """Differences smaller than this do not matter to the user; None: not stated."""
    seed: int
    """Of the resampling."""
    not_checked: tuple[str, ...]
    """What this comparison does not tell, in sentences."""
    n_groups: int | None = None
    """Groups of items that intervals and tests take as independent; None: each item is taken so."""
    noise_floor: tuple[NoiseFloor, ...] = ()
    """Each program asked twice; empty where that was not asked for."""
    subgroups: tuple[SubgroupRow, ...] = ()
    """By field and value; empty where that was not asked for."""
    not_compared: Mapping[str, str] = field(default_factory=dict)
    """Programs whose calls failed too often to be scored, and why: how many, and the first error."""
    tuned: tuple[str, ...] = ()
    """Programs that are known to hold a tuned model."""
    untuned: tuple[str, ...] = ()
    """Programs that are known to hold none: baselines, untuned models, optimized prompts."""

    @property
    def field(self) -> str | None:
        """The field that the metrics read; None where they are the user's own functions."""
        return next((metric.field for metric in self.metrics if metric.field), None)

    @property
    def number_field(self) -> str | None:
        """The label field where it holds numbers, more than two different ones; else None."""
        field = self.field
        if field is None or any(field not in item.labels for item in self.items):
            return None
        labels = [item.labels[field] for item in self.items]
        if any(isinstance(label, bool) for label in labels) or len({label_text(label) for label in labels}) < 3:
            return None
        return field if all(number_in(label) is not None for label in labels) else None

    @property
    def main_metric(self) -> MetricFacts:
        """The metric that decides."""
        return self.metrics[0]

    @property
    def decisive(self) -> Difference | None:
        """The difference that decides: candidate against reference by the first metric."""
        return next((one for one in self.differences_of(self.main_metric.name) if one.other == self.reference), None)

    @property
    def advice(self) -> str | None:
        """Plain words where the candidate is tuned and something without tuning does as well; else None.

        None, too, where most of its items have no answer: that says nothing about tuning.

        The strongest finding comes first: a program that is better, then one that is equivalent within the margin, then
        one that is not shown to be worse and did at least as well on these items.
        """
        if self.candidate not in self.tuned or self.row(self.candidate).is_mostly_silent:
            return None
        found = {one.other: one for one in self.differences_of(self.main_metric.name) if one.other in self.untuned}
        for verdict, words in (("worse", "is better"), ("equivalent", "is as good, within the margin")):
            names = [name for name, one in found.items() if one.verdict == verdict]
            if names:
                return f"Do not fine-tune: {names[0]}, which needs no fine-tuning, {words}."
        sign = 1 if self.main_metric.higher_is_better else -1
        values = {name: one.interval.value for name, one in found.items() if one.verdict == "undecided"}
        level = [name for name, value in values.items() if value is not None and sign * value <= 0]
        if level:
            return f"{level[0]}, which needs no fine-tuning, did as well on these items."
        return None

    def differences_of(self, metric: str) -> tuple[Difference, ...]:
        """The differences by one metric."""
        return tuple(one for one in self.differences if one.metric == metric)

    def row(self, program: str) -> ProgramRow:
        """A program's line."""
        return next(row for row in self.programs if row.name == program)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        """From JSON.

        Raises:
            DataError: It is not a comparison, or of another version.
        """
        return from_saved(cls, values, "a comparison")


def from_saved(cls: type[Saved], values: Mapping[str, Any], what: str) -> Saved:
    """A result from its JSON form, that of version 0.1 among them, which called a parse failure unreadable.

    Raises:
        DataError: It is something else, or of another format.
    """
    try:
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}")
        return read_dataclass(cls, _renamed(values))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"this is not {what} of format {FORMAT} ({type(error).__name__}: {error})") from error


def read_saved(path: str | os.PathLike[str], key: str, what: str) -> Any:
    """What stands under a key of a result's file.

    Raises:
        FileError: The file cannot be read.
        DataError: It holds something else.
    """
    values = read_json(path, what, "`to_json` writes one")
    if key not in values:
        raise DataError(f'{os.fspath(path)}: this is not {what}: it has no "{key}"')
    return values[key]


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    renamed = dict(values)
    if "programs" in renamed:
        renamed["programs"] = [{"n_parse_failures": one.get("n_unreadable"), **one} for one in renamed["programs"]]
    if "answers" in renamed:
        renamed["answers"] = {
            name: [{**one, "outcome": "parse_failure"} if one["outcome"] == "unreadable" else one for one in answers]
            for name, answers in renamed["answers"].items()
        }
    return renamed


def number_in(value: Any) -> float | None:
    """The number that a value is; None where it is none."""
    try:
        return None if value is None else read_number(value)
    except (AnswerError, TypeError, ValueError):
        return None


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
    example, as for `split`. Intervals and tests then take the groups as independent, not the items. Without it items
    of the very same inputs are one group.
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
        """For these rows. Raises MissingExtraError, and UsageError for a wrong option or one group of all items."""
        if not 0.5 < options.confidence < 1:
            raise UsageError(f"confidence is a share such as 0.95; got {options.confidence}")
        if options.n_resamples < 1 or options.noise_floor < 0:
            raise UsageError(
                f"n_resamples must be 1 or more and noise_floor 0 or more; got {options.n_resamples} and "
                f"{options.noise_floor}"
            )
        statistics.wilson(0, 1)  # a missing extra is told now, not after an hour of asking
        return cls(
            confidence=options.confidence,
            n_resamples=options.n_resamples,
            seed=options.seed,
            groups=statistics.groups_of(rows, options.group_by) if options.group_by is not None else _repeated(rows),
        )

    def draws(self, n: int, statistic: Callable[[Any], float]) -> statistics.Floats:
        """The bootstrap distribution of a statistic of the places of n items, or of whole groups of them."""
        if self.groups is None:
            return statistics.resample(n, statistic, n_resamples=self.n_resamples, seed=self.seed)
        return statistics.clustered_resample(self.groups, statistic, n_resamples=self.n_resamples, seed=self.seed)

    def on(self, places: Sequence[int]) -> Resampling:
        """The same for a part of the items."""
        groups = None if self.groups is None else tuple(self.groups[place] for place in places)
        return dataclasses.replace(self, groups=groups)


def _repeated(rows: Sequence[Any]) -> tuple[int, ...] | None:
    """Each item's group, where items of the same inputs come again: no new evidence. None where all are different."""
    numbers: dict[str, int] = {}
    groups = tuple(numbers.setdefault(inputs_text(dict(row.inputs().items())), len(numbers)) for row in rows)
    return groups if 1 < len(numbers) < len(groups) else None


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

    Raises:
        UsageError: The metric raised something else than an AnswerError, or returned no score; names the item.
    """
    without_answer = metric.if_parse_failure if isinstance(metric, Metric) else 0.0
    errors: list[str] = []

    def score(number: int, example: Any, answer: Answer) -> float | None:
        prediction = answer.prediction()
        if prediction is None:
            return without_answer
        try:
            return score_value(metric(example, prediction))
        except JudgeError as error:
            errors.append(str(error))
            return None
        except AnswerError:
            return without_answer
        except UsageError as error:
            raise UsageError(f"{place(number, example)}: {error}") from error
        except FinetuneError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise UsageError(
                f"{place(number, example)}: the metric raised {first_line(error)}; mend it, or let it raise "
                'ft.errors.JudgeError("why", text="") for what it cannot score, which is then left out and counted'
            ) from error

    def place(number: int, example: Any) -> str:
        inputs = ", ".join(f"{name}={value!r:.60}" for name, value in example.inputs().items())
        return f"{metric_name(metric)}, example {number} ({inputs})"

    pairs = [(number, *pair) for number, pair in enumerate(zip(examples, answers, strict=True), start=1)]
    if isinstance(metric, Metric) and metric.asks_a_model:
        scores = in_threads(lambda pair: score(*pair), pairs, num_threads, on_done=on_scored)
    else:
        scores = [score(*pair) for pair in pairs]
    return ItemScores(scores=tuple(scores), n_unjudged=len(errors), judge_error=errors[0] if errors else None)


def score_columns(
    metric: AnyMetric,
    examples: Sequence[Any],
    answers: Mapping[Key, Sequence[Answer]],
    how: Resampling,
    *,
    num_threads: int = 1,
    on_scored: Callable[[Key, int], object] = lambda key, n_done: None,
) -> tuple[MetricFacts, dict[Key, Scored]]:
    """What was measured, and the scores of each program's answers, by the program's key.

    `on_scored` is told after each item of a metric that asks a model.
    """
    if isinstance(metric, SetMetric):
        facts = describe(metric, is_proportion=False)
        return facts, {key: score_set(metric, examples, own, how) for key, own in answers.items()}
    scores = {
        key: item_scores(metric, examples, own, num_threads=num_threads, on_scored=partial(on_scored, key))
        for key, own in answers.items()
    }
    seen = {score for one in scores.values() for score in one.scores if score is not None}
    facts = describe(metric, is_proportion=bool(seen) and seen <= {0.0, 1.0})
    return facts, {key: score_items(one, facts, how) for key, one in scores.items()}


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
    draws = how.draws(len(expected), on)
    interval = statistics.percentile_interval(value, draws, sum(counted), how.confidence)
    if interval.low is not None and interval.low == interval.high:
        # Draws that agree show no spread, as where few items are all right: that is no certainty.
        interval = dataclasses.replace(interval, low=None, high=None, method="none")
    return Scored(scores=None, interval=interval, draws=draws, is_scored=counted)


def paired(one: Scored, other: Scored, fact: MetricFacts, how: Resampling) -> PairedTest | None:
    """First minus second, on the items that both could be scored on (set metrics: on each one's own items).

    Scores that are the same on all items show no spread, and that is no certainty: then the interval is that of no item
    in n, Wilson's, times the span of a score, as if items differed wholly or not at all. None where there is nothing to
    test.
    """
    test = _paired(one, other, fact, how)
    if test is None or test.deviation != 0.0:
        return test
    low, high = (0.0, 1.0) if fact.kind == "set" else fact.bounds

    def interval(confidence: float) -> Interval:
        found = test.interval(confidence)
        if (found.low, found.high) != (0.0, 0.0):
            return found
        if low is None or high is None:
            return dataclasses.replace(found, low=None, high=None, method="none")
        n = found.n if how.groups is None else min(found.n, len(set(how.groups)))
        reach = (high - low) * (wilson(0, n, confidence).high or 0.0)
        return dataclasses.replace(found, low=-reach, high=reach, method="Wilson")

    return dataclasses.replace(test, interval=interval)


def _paired(one: Scored, other: Scored, fact: MetricFacts, how: Resampling) -> PairedTest | None:
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


def shared_difference(one: Scored, other: Scored) -> float | None:
    """First minus second on the items that both could be scored on (set metrics: on each one's own items), or None."""
    if one.scores is None or other.scores is None:
        values = one.interval.value, other.interval.value
        return None if values[0] is None or values[1] is None else values[0] - values[1]
    known = [a - b for a, b in zip(one.scores, other.scores, strict=True) if a is not None and b is not None]
    return math.fsum(known) / len(known) if known else None


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


MAX_VALUES = 12
"""More values than these are binned where they are numbers, and the rarest are put together where they are not."""
N_BINS = 4
"""Bins of numbers, at their quartiles."""
REST = "(others)"
"""The part that holds the rare values."""


def parts_of(rows: Sequence[Any], subgroups: Subgroups) -> dict[str, dict[str, list[int]]]:
    """By field and value, the places of the items; numbers in quartiles, rare values together.

    Raises:
        UsageError: An example has no such field.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for name in subgroups:
        read = subgroups[name] if isinstance(subgroups, Mapping) else _field(name)
        found[name] = _parts([read(row) for row in rows])
    return found


def _field(name: str) -> Callable[[Any], Any]:
    def read(row: Any) -> Any:
        if name not in row:
            raise UsageError(f'subgroups names "{name}", but an example has only: {", ".join(map(str, row.keys()))}')
        return row[name]

    return read


def _parts(values: Sequence[Any]) -> dict[str, list[int]]:
    numbers = [number for value in values if (number := number_in(value)) is not None]
    if len({str(value) for value in values}) > MAX_VALUES and len(numbers) == len(values):
        return _quartiles(numbers)
    places: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(str(value), []).append(place)
    kept = sorted(places, key=lambda value: -len(places[value]))[: MAX_VALUES - 1]
    if len(places) > MAX_VALUES:
        rest = sorted(place for value in places if value not in kept for place in places[value])
        places = {value: places[value] for value in kept} | {REST: rest}
    return places


def _quartiles(numbers: Sequence[float]) -> dict[str, list[int]]:
    ordered = sorted(numbers)
    edges = sorted({ordered[round(part * (len(ordered) - 1) / N_BINS)] for part in range(1, N_BINS)})
    places: dict[str, list[int]] = {}
    for place, number in sorted(enumerate(numbers), key=lambda one: one[1]):
        bin_number = sum(number > edge for edge in edges)
        low = "" if bin_number == 0 else f"above {edges[bin_number - 1]:g}"
        high = "" if bin_number == len(edges) else f"up to {edges[bin_number]:g}"
        places.setdefault(", ".join(filter(None, (low, high))), []).append(place)
    return {name: sorted(held) for name, held in places.items()}


def subgroup_rows(
    parts: Mapping[str, Mapping[str, Sequence[int]]],
    metric: AnyMetric,
    fact: MetricFacts,
    column: Mapping[str, Scored],
    rows: Sequence[Any],
    answers: Mapping[str, Sequence[Answer]],
    pair: tuple[str, str] | None,
    how: Resampling,
) -> tuple[SubgroupRow, ...]:
    """The rows of the table.

    Args:
        parts: What `parts_of` gave.
        metric: The metric that decides.
        fact: Its facts.
        column: Its scores over all items, by program.
        rows: The examples.
        answers: By program.
        pair: Candidate and reference, for the difference; None with one program.
        how: Of intervals and tests.
    """
    found: list[SubgroupRow] = []
    for name, by_value in parts.items():
        rows_of: list[SubgroupRow] = []
        tests: list[PairedTest | None] = []
        for value, places in by_value.items():
            how_part = how.on(places)
            cut = {
                program: _cut(metric, fact, one, rows, answers[program], places, how_part)
                for program, one in column.items()
            }
            tests.append(paired(cut[pair[0]], cut[pair[1]], fact, how_part) if pair is not None else None)
            rows_of.append(
                SubgroupRow(
                    field=name,
                    value=value,
                    n=len(places),
                    scores={program: one.interval for program, one in cut.items()},
                    difference=None if pair is None else NOTHING,
                    p_holm=None,
                )
            )
        p_values = [test.p_value for test in tests if test is not None]
        corrected = zip(statistics.holm(p_values), statistics.holm_levels(p_values, 1 - how.confidence), strict=True)
        for row, test in zip(rows_of, tests, strict=True):
            if test is None:
                found.append(row)
                continue
            p_holm, level = next(corrected)
            found.append(
                dataclasses.replace(row, difference=test.interval(1 - level), p_holm=p_holm, confidence=1 - level)
            )
    return tuple(found)


def _cut(
    metric: AnyMetric,
    fact: MetricFacts,
    whole: Scored,
    rows: Sequence[Any],
    answers: Sequence[Answer],
    places: Sequence[int],
    how: Resampling,
) -> Scored:
    """One program's scores on a part; item scores are taken as they are, so that no judge is asked twice."""
    if isinstance(metric, SetMetric):
        return score_set(metric, [rows[place] for place in places], [answers[place] for place in places], how)
    assert whole.scores is not None
    given = ItemScores(scores=tuple(whole.scores[place] for place in places))
    return score_items(given, fact, how)


@dataclass(frozen=True, kw_only=True)
class PairwiseBias:
    """Position, length and price bias of a set of choices."""

    prefers_first: Interval
    """Share of choices for side A."""
    prefers_longer: Interval
    """Share of choices for the text with more characters, among pairs of unequal length."""
    prefers_more_expensive: Interval | None = None
    """Share of choices for the side with the higher number, among pairs with two that differ; None without prices."""


def pairwise_bias(
    texts_a: Sequence[str],
    texts_b: Sequence[str],
    preferred: Sequence[str | None],
    *,
    prices_a: Sequence[Any] | None = None,
    prices_b: Sequence[Any] | None = None,
    confidence: float = 0.95,
) -> PairwiseBias:
    """Position, length and price bias of choices.

    Args:
        texts_a: The first texts.
        texts_b: The second texts.
        preferred: A or B; None stands for no answer and is left out.
        prices_a: A number of each first side, or a text such as "$12"; None where it is not known.
        prices_b: The same of each second side.
        confidence: Of the intervals.

    Raises:
        UsageError: A choice is neither A nor B.
    """
    chosen = [(a, b, _side(side)) for a, b, side in zip(texts_a, texts_b, preferred, strict=True) if side is not None]
    unequal = [(len(a) > len(b)) == (side == "a") for a, b, side in chosen if len(a) != len(b)]
    more_expensive = None
    if prices_a is not None and prices_b is not None:
        priced = [
            (one, other, _side(side))
            for a, b, side in zip(prices_a, prices_b, preferred, strict=True)
            if side is not None and (one := number_in(a)) is not None and (other := number_in(b)) is not None
        ]
        higher = [(one > other) == (side == "a") for one, other, side in priced if one != other]
        more_expensive = wilson(sum(higher), len(higher), confidence)
    return PairwiseBias(
        prefers_first=wilson(sum(side == "a" for _, _, side in chosen), len(chosen), confidence),
        prefers_longer=wilson(sum(unequal), len(unequal), confidence),
        prefers_more_expensive=more_expensive,
    )


class InBothOrders:
    """A pairwise program that is asked twice; `in_both_orders` makes it."""

    def __init__(self, program: Program, field: str) -> None:
        self.program = program
        self.field = field

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        """The answer in the order given, and whether the other order's names the same text."""
        sides = sides_of(inputs)
        if not sides:
            raise UsageError(f"in_both_orders swaps inputs that end in _a and _b; found {', '.join(inputs)}")
        first = self.program(**inputs)
        second = self.program(**exchanged(inputs, sides))
        agree = _side(first[self.field]) != _side(second[self.field])
        return dspy.Prediction(**{**dict(first.items()), ORDERS_AGREE: agree})


def in_both_orders(program: Program, *, field: str = "preferred") -> InBothOrders:
    """A program that asks `program` about each pair in both orders and answers as it does in the order given.

    The prediction notes under `orders_agree` whether both name the same text, for `metrics.order_agreement()`. A
    predictor that asks both orders by itself (`both_orders=True`) agrees always but for ties: wrap one that does not.
    An answer that cannot be read, in either order, makes the item a parse failure.
    """
    return InBothOrders(program, field)


def swap_agreement(
    preferred: Sequence[str | None], preferred_swapped: Sequence[str | None], *, confidence: float = 0.95
) -> Interval:
    """Share of pairs in which the same text is preferred in both orders; 1 is the best, a coin gives 0.5.

    Args:
        preferred: The choices with the texts as given.
        preferred_swapped: The choices with both texts exchanged, in the words of that order: the same text preferred
        means A here where `preferred` says B.
        confidence: Of the interval.
    """
    both = [
        (_side(one), _side(other))
        for one, other in zip(preferred, preferred_swapped, strict=True)
        if one is not None and other is not None
    ]
    return wilson(sum(one != other for one, other in both), len(both), confidence)


def _side(value: str) -> str:
    side = label_text(value)
    if side not in {"a", "b"}:
        raise UsageError(f"a choice is A or B; got {value!r}")
    return side
