"""The metric per value of a column, and position, length and price bias of pairwise programs.

In: scored columns, the examples, fields; or pairs with the side preferred. Out: `SubgroupRow`s; `PairwiseBias`.
A part is looked at because it is there, not because somebody had a reason to: its tests are corrected for the number of
parts (Holm), and each interval has the level of its own test.
Not covered: which parts are worth looking at, correcting a bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_finetune.errors import AnswerError, UsageError
from dspy_finetune.evaluation import scoring, statistics
from dspy_finetune.evaluation.collect import Answer, Program
from dspy_finetune.evaluation.metric import AnyMetric, SetMetric
from dspy_finetune.evaluation.metrics import ORDERS_AGREE
from dspy_finetune.evaluation.result import MetricFacts, SubgroupRow
from dspy_finetune.evaluation.scoring import Resampling, Scored, Subgroups
from dspy_finetune.evaluation.statistics import Interval, PairedTest, wilson
from dspy_finetune.values import label_text, read_number

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
    numbers = _numbers(values)
    if len({str(value) for value in values}) > MAX_VALUES and numbers is not None:
        return _quartiles(numbers)
    places: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(str(value), []).append(place)
    kept = sorted(places, key=lambda value: -len(places[value]))[: MAX_VALUES - 1]
    if len(places) > MAX_VALUES:
        rest = sorted(place for value in places if value not in kept for place in places[value])
        places = {value: places[value] for value in kept} | {REST: rest}
    return places


def _numbers(values: Sequence[Any]) -> list[float] | None:
    try:
        return [read_number(value) for value in values]
    except (AnswerError, TypeError, ValueError):
        return None


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
            tests.append(scoring.paired(cut[pair[0]], cut[pair[1]], fact, how_part) if pair is not None else None)
            rows_of.append(
                SubgroupRow(
                    field=name,
                    value=value,
                    n=len(places),
                    scores={program: one.interval for program, one in cut.items()},
                    difference=None if pair is None else scoring.NOTHING,
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
        return scoring.score_set(metric, [rows[place] for place in places], [answers[place] for place in places], how)
    assert whole.scores is not None
    given = scoring.ItemScores(scores=tuple(whole.scores[place] for place in places))
    return scoring.score_items(given, fact, how)


# ---- what else drives a pairwise program's choice: position, length and price bias
#
# Shares with Wilson intervals; 0.5 means no bias. A preference for the first side is a fault when the pairs are
# balanced. One for the longer or the higher-priced side is a fault only as far as it exceeds the labels' own.


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
            if side is not None and (one := _price(a)) is not None and (other := _price(b)) is not None
        ]
        higher = [(one > other) == (side == "a") for one, other, side in priced if one != other]
        more_expensive = wilson(sum(higher), len(higher), confidence)
    return PairwiseBias(
        prefers_first=wilson(sum(side == "a" for _, _, side in chosen), len(chosen), confidence),
        prefers_longer=wilson(sum(unequal), len(unequal), confidence),
        prefers_more_expensive=more_expensive,
    )


def _price(value: Any) -> float | None:
    try:
        return None if value is None else read_number(value)
    except (AnswerError, TypeError, ValueError):
        return None


class InBothOrders:
    """A pairwise program that is asked twice; `in_both_orders` makes it."""

    def __init__(self, program: Program, field: str) -> None:
        self.program = program
        self.field = field

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        """The answer in the order given, and whether the other order's names the same text."""
        stems = [name[:-2] for name in inputs if name.endswith("_a") and name[:-2] + "_b" in inputs]
        if not stems:
            raise UsageError(f"in_both_orders swaps inputs that end in _a and _b; found {', '.join(inputs)}")
        partner = {f"{stem}_{side}": f"{stem}_{other}" for stem in stems for side, other in ("ab", "ba")}
        first = self.program(**inputs)
        second = self.program(**{partner.get(name, name): value for name, value in inputs.items()})
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
