"""One word for a paired difference: better, worse, equivalent within a margin, or undecided.

In: the difference with its interval and p-value, the direction in which the metric is good, a margin. Out: a
`Verdict`, and the number of further items that would decide. Not covered: the tests themselves (stats.py).

The rule: *equivalent* when a margin was given and the interval at 1 - 2 alpha lies inside it (two one-sided tests,
Schuirmann 1987); else *better* or *worse* when the p-value is at most alpha; else *undecided*. Equivalence goes
first: a difference that is surely smaller than what the user cares about is no reason to act, however significant.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from dspy_finetune.evaluation.stats import Interval, items_needed

Verdict: TypeAlias = Literal["better", "worse", "equivalent", "undecided"]
"""What a comparison found, seen from the candidate."""


def decide(
    difference: float | None,
    p_value: float | None,
    *,
    higher_is_better: bool,
    alpha: float,
    narrow: Interval | None = None,
    margin: float | None = None,
) -> Verdict:
    """The verdict on candidate minus other; `narrow` is the interval at confidence 1 - 2 alpha, used with `margin`."""
    if difference is None or p_value is None:
        return "undecided"
    if (
        margin is not None
        and narrow is not None
        and narrow.low is not None
        and narrow.high is not None
        and -margin < narrow.low
        and narrow.high < margin
    ):
        return "equivalent"
    if p_value > alpha or difference == 0.0:
        return "undecided"
    return "better" if (difference > 0) == higher_is_better else "worse"


def n_more_items(difference: float, deviation: float, n: int, *, alpha: float) -> int | None:
    """How many items more would decide with a chance of 80 %, if the difference stays as seen; None.

    No number would.
    """
    needed = items_needed(difference, deviation, alpha=alpha)
    return None if needed is None else max(needed - n, 1)
