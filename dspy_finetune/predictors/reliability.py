"""How far probabilities can be believed: Brier score, log loss, calibration error, reliability bins.

In: for each item the probability of every label and which label was right. Out: `Reliability`. The definitions are the
plain ones, without numpy, so that a report can be made anywhere. Not covered: making them better (calibration.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

N_BINS = 10
"""Bins of equal width, as the expected calibration error is usually stated (Guo et al., 2017)."""

_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The items whose probability fell into one stretch of [0, 1]."""

    low: float
    """Lower edge, included."""
    high: float
    """Upper edge, excluded but for the last bin."""
    n: int
    """How many items."""
    mean_probability: float
    """What the model said on average; 0 for an empty bin."""
    share: float
    """How often it was so; 0 for an empty bin."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Probabilities held against what was right."""

    n: int
    """Items."""
    brier_loss: float
    """Mean squared error of the probability: for two labels of the first one; for more, summed over the labels."""
    log_loss: float
    """Mean of -log(probability of the right label), in nats; probabilities below 1e-12 count as that."""
    calibration_error: float
    """Expected calibration error, in [0, 1]: the mean distance of said and seen over the bins, weighted by their n."""
    bins: tuple[Bin, ...]
    """For two labels over the probability of the first one; for more over that of the most probable one."""


def reliability(shares: Sequence[Sequence[float]], right: Sequence[int]) -> Reliability:
    """Hold probabilities against what was right.

    Args:
        shares: For each item the probability of each label; at least one item.
        right: For each item the index of the label that was right.
    """
    n = len(shares)
    if len(shares[0]) == 2:
        events = [(row[0], index == 0) for row, index in zip(shares, right, strict=True)]
        brier = sum((said - was) ** 2 for said, was in events) / n
    else:
        tops = [max(range(len(row)), key=row.__getitem__) for row in shares]
        events = [(row[top], top == index) for row, top, index in zip(shares, tops, right, strict=True)]
        brier = sum(
            sum((share - (index == label)) ** 2 for label, share in enumerate(row))
            for row, index in zip(shares, right, strict=True)
        ) / n  # fmt: skip
    losses = [-math.log(max(row[index], _LEAST)) for row, index in zip(shares, right, strict=True)]
    bins = _bins(events)
    return Reliability(
        n=n,
        brier_loss=brier,
        log_loss=sum(losses) / n,
        calibration_error=sum(one.n * abs(one.mean_probability - one.share) for one in bins) / n,
        bins=bins,
    )


def _bins(events: Sequence[tuple[float, bool]]) -> tuple[Bin, ...]:
    filled: list[list[tuple[float, bool]]] = [[] for _ in range(N_BINS)]
    for said, was in events:
        filled[min(int(said * N_BINS), N_BINS - 1)].append((said, was))
    return tuple(
        Bin(
            low=number / N_BINS,
            high=(number + 1) / N_BINS,
            n=len(inside),
            mean_probability=sum(said for said, _ in inside) / len(inside) if inside else 0.0,
            share=sum(was for _, was in inside) / len(inside) if inside else 0.0,
        )
        for number, inside in enumerate(filled)
    )
