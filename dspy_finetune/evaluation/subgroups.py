"""How the programs do on parts of the items: by any field, or by any function of the example.

In: scored columns, the examples, fields. Out: `SubgroupRow`s. A part is looked at because it is there, not because
somebody had a reason to: its p-values are corrected for the number of parts (Holm), its intervals are not.
Not covered: which parts are worth looking at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspy_finetune.errors import AnswerError, UsageError
from dspy_finetune.evaluation import scoring, stats
from dspy_finetune.evaluation.answers import Answer
from dspy_finetune.evaluation.comparison import MetricFacts, SubgroupRow
from dspy_finetune.evaluation.metric_types import AnyMetric, SetMetric
from dspy_finetune.evaluation.reading import to_number
from dspy_finetune.evaluation.scoring import Resampling, Scored

MAX_VALUES = 12
"""More values than these are binned where they are numbers, and the rarest are put together where they are not."""
N_BINS = 4
"""Bins of numbers, at their quartiles."""
REST = "(others)"
"""The part that holds the rare values."""

Subgroups = Sequence[str] | Mapping[str, Callable[[Any], Any]]
"""Fields of the examples, or names with functions of the example."""


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
        return [to_number(value) for value in values]
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
        tested: list[tuple[SubgroupRow, float | None]] = []
        for value, places in by_value.items():
            how_part = how.on(places)
            cut = {
                program: _cut(metric, fact, one, rows, answers[program], places, how_part)
                for program, one in column.items()
            }
            test = scoring.paired(cut[pair[0]], cut[pair[1]], fact, how_part) if pair is not None else None
            row = SubgroupRow(
                field=name,
                value=value,
                n=len(places),
                scores={program: one.interval for program, one in cut.items()},
                difference=test.interval if test is not None else None,
                p_holm=None,
            )
            p_value = test.p_value if test is not None else None
            tested.append((row, None if p_value is None or math.isnan(p_value) else p_value))
        corrected = iter(stats.holm([p_value for _, p_value in tested if p_value is not None]))
        found += [row if p_value is None else row.with_p(next(corrected)) for row, p_value in tested]
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
