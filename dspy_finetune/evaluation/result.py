"""The result of a comparison as plain values: who was asked what, what they said, how it scored, and what follows.

In: JSON, or what compare.py computes. Out: frozen values, and JSON again (`to_dict`, `from_dict`).
Not covered: computing them (compare.py), showing them (the report).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from dspy_finetune.errors import AnswerError, DataError
from dspy_finetune.evaluation.collect import Answer
from dspy_finetune.evaluation.statistics import Interval, PairedTest, items_needed
from dspy_finetune.values import label_text, read_number

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
        """From JSON. Raises TypeError and ValueError."""
        low, high = values.get("bounds", (None, None))
        return cls(**{**values, "bounds": (low, high)})


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
    """Median time of one call that was answered."""
    latency_p95_ms: float | None
    """95th percentile of it."""
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
        try:
            for label in labels:
                read_number(label)
        except (AnswerError, TypeError, ValueError):
            return None
        return field

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

        The strongest finding comes first: a program that is better, then one that is equivalent within the margin, then
        one that is not shown to be worse and did at least as well on these items.
        """
        if self.candidate not in self.tuned:
            return None
        found = {one.other: one for one in self.differences_of(self.main_metric.name) if one.other in self.untuned}
        for verdict, words in (("worse", "is better"), ("equivalent", "is as good, within the margin")):
            names = [name for name, one in found.items() if one.verdict == verdict]
            if names:
                return f"Do not fine-tune: {names[0]}, which needs no training, {words}."
        sign = 1 if self.main_metric.higher_is_better else -1
        values = {name: one.interval.value for name, one in found.items() if one.verdict == "undecided"}
        level = [name for name, value in values.items() if value is not None and sign * value <= 0]
        if level:
            return f"Do not fine-tune on this evidence: {level[0]}, needing no training, did as well on these items."
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
        try:
            given = dict(values)
            if given.pop("format") != FORMAT:
                raise ValueError(f"format {values['format']}")
            given["metrics"] = tuple(MetricFacts.from_dict(one) for one in given["metrics"])
            given["programs"] = tuple(_program_row(one) for one in given["programs"])
            given["differences"] = tuple(
                Difference(**{**one, "interval": Interval(**one["interval"])}) for one in given["differences"]
            )
            given["items"] = tuple(Item(**one) for one in given["items"])
            given["answers"] = {
                name: tuple(map(Answer.from_dict, answers)) for name, answers in given["answers"].items()
            }
            given["item_scores"] = {
                metric: {name: tuple(scores) for name, scores in by_program.items()}
                for metric, by_program in given["item_scores"].items()
            }
            given["not_checked"] = tuple(given["not_checked"])
            given["noise_floor"] = tuple(
                NoiseFloor(**{**one, "difference": Interval(**one["difference"])})
                for one in given.get("noise_floor", ())
            )
            given["tuned"], given["untuned"] = tuple(given.get("tuned", ())), tuple(given.get("untuned", ()))
            given["subgroups"] = tuple(_subgroup(one) for one in given.get("subgroups", ()))
            return cls(**given)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"this is not a comparison of format {FORMAT} ({type(error).__name__}: {error})") from error


def _program_row(values: Mapping[str, Any]) -> ProgramRow:
    scores = {name: Interval(**one) for name, one in values["scores"].items()}
    given = {("n_parse_failures" if name == "n_unreadable" else name): value for name, value in values.items()}
    return ProgramRow(**{**given, "scores": scores})


def _subgroup(values: Mapping[str, Any]) -> SubgroupRow:
    scores = {name: Interval(**one) for name, one in values["scores"].items()}
    difference = None if values["difference"] is None else Interval(**values["difference"])
    return SubgroupRow(**{**values, "scores": scores, "difference": difference})
