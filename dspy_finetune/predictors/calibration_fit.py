"""Fitting the curves of a calibration: temperature, Platt's sigmoid, isotonic regression.

In: probabilities of each label and which label was right. Out: a temperature, or one `Curve` per label. The fitting is
scikit-learn's and scipy's; they are imported when something is fitted, and applying a curve needs neither.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from dspy_finetune._optional import require
from dspy_finetune.errors import DataError

How: TypeAlias = Literal["temperature", "platt", "isotonic"]
"""The ways to calibrate, from the stiffest to the most supple."""

Fitted = TypeVar("Fitted")

N_FOLDS = 5
"""Parts of a cross-fit: each item is judged by a curve that was fitted without it."""

_LEAST = 1e-7


@dataclass(frozen=True, kw_only=True)
class Curve:
    """From a probability to a better one: a sigmoid over its log-odds, or straight lines between knots."""

    slope: float = 1.0
    """Of the sigmoid: below 1 for a model that is too sure."""
    intercept: float = 0.0
    """Of the sigmoid."""
    knots: tuple[tuple[float, float], ...] = ()
    """(probability, calibrated probability), rising; where there are any, they are the curve."""

    def __call__(self, share: float) -> float:
        """The calibrated probability, before the labels are scaled to sum to 1."""
        if not self.knots:
            return sigmoid(self.slope * log_odds(share) + self.intercept)
        place = bisect.bisect_right(self.knots, (share, math.inf))
        if place in (0, len(self.knots)):
            return self.knots[min(place, len(self.knots) - 1)][1]
        (x0, y0), (x1, y1) = self.knots[place - 1], self.knots[place]
        return y0 + (y1 - y0) * (share - x0) / (x1 - x0)


def log_odds(share: float) -> float:
    """log(p / (1 - p)); p is kept 1e-7 away from 0 and 1, where a single token's rounding would decide everything."""
    share = min(max(share, _LEAST), 1.0 - _LEAST)
    return math.log(share / (1.0 - share))


def sigmoid(value: float) -> float:
    """The inverse of the log-odds, without overflow."""
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    power = math.exp(value)
    return power / (1.0 + power)


def cooled(shares: Sequence[float], temperature: float) -> list[float]:
    """The probabilities at another temperature: each to the power of 1 / temperature, scaled to sum to 1."""
    logs = [math.log(max(share, _LEAST)) / temperature for share in shares]
    powers = [math.exp(value - max(logs)) for value in logs]
    return [power / sum(powers) for power in powers]


def fit_temperature(shares: Sequence[Sequence[float]], right: Sequence[int]) -> float:
    """The temperature with the least log loss, between 1/20 and 20 (Guo et al., 2017).

    Raises:
        DataError: The probabilities point the wrong way, so that no temperature helps.
    """
    optimize = require("scipy.optimize", "eval", 'calibrate(how="temperature")')

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        return -sum(
            math.log(max(cooled(row, temperature)[index], 1e-300)) for row, index in zip(shares, right, strict=True)
        )

    limit = math.log(20.0)
    found = float(optimize.minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x)
    if found > 0.999 * limit:
        raise DataError(
            "the model's probabilities say nothing about these examples, or the reverse: no temperature helps; "
            "check that the examples are of the task that the model was trained for"
        )
    return math.exp(found)


def fit_platt(said: Sequence[float], was: Sequence[bool], *, is_symmetric: bool) -> Curve:
    """Platt's sigmoid over the log-odds, with his smoothed targets (Platt, 1999): finite even where classes part."""
    linear = require("sklearn.linear_model", "eval", 'calibrate(how="platt")')
    n_true = sum(was)
    high, low = (n_true + 1) / (n_true + 2), 1 / (len(was) - n_true + 2)
    targets = [high if event else low for event in was]
    features = [[log_odds(share)] for share in said]
    # A target between 0 and 1 is one row of each class, weighted. C so large that nothing is shrunk.
    model = linear.LogisticRegression(C=1e6, fit_intercept=not is_symmetric, max_iter=1000)
    model.fit(features * 2, [1] * len(was) + [0] * len(was), [*targets, *(1 - target for target in targets)])
    return Curve(slope=float(model.coef_[0][0]), intercept=0.0 if is_symmetric else float(model.intercept_[0]))


def fit_isotonic(said: Sequence[float], was: Sequence[bool]) -> Curve:
    """The best rising step curve; never 0 or 1, which n examples cannot prove."""
    isotonic = require("sklearn.isotonic", "eval", 'calibrate(how="isotonic")')
    edge = 1.0 / (len(was) + 2)
    model = isotonic.IsotonicRegression(y_min=edge, y_max=1.0 - edge, out_of_bounds="clip")
    model.fit(list(said), [float(event) for event in was])
    knots = zip(map(float, model.X_thresholds_), map(float, model.y_thresholds_), strict=True)
    return Curve(knots=tuple(knots))


def fit_curves(
    how: Literal["platt", "isotonic"], shares: Sequence[Sequence[float]], right: Sequence[int], *, is_symmetric: bool
) -> tuple[Curve, ...]:
    """One curve for the first of two labels, or one for each of more labels."""
    if is_symmetric:  # the same question with the items in the other order, and so the other answer
        shares = [*shares, *([row[1], row[0]] for row in shares)]
        right = [*right, *(1 - index for index in right)]
    n_curves = 1 if len(shares[0]) == 2 else len(shares[0])
    curves = []
    for label in range(n_curves):
        said, was = [row[label] for row in shares], [index == label for index in right]
        curves.append(fit_platt(said, was, is_symmetric=is_symmetric) if how == "platt" else fit_isotonic(said, was))
    return tuple(curves)


def cross_fit(
    shares: Sequence[Sequence[float]],
    right: Sequence[int],
    fit: Callable[[Sequence[Sequence[float]], Sequence[int]], Fitted],
    apply: Callable[[Fitted, Sequence[float]], list[float]],
    seed: int,
) -> list[list[float]]:
    """Each item's calibrated probabilities by a fit that has not seen it. The folds hold like shares of each label."""
    order = list(range(len(right)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda index: right[index])
    fold_of = {index: place % N_FOLDS for place, index in enumerate(order)}
    found: dict[int, list[float]] = {}
    for fold in range(N_FOLDS):
        rest = [index for index in range(len(right)) if fold_of[index] != fold]
        fitted: Any = fit([shares[index] for index in rest], [right[index] for index in rest])
        found |= {index: apply(fitted, shares[index]) for index in fold_of if fold_of[index] == fold}
    return [found[index] for index in range(len(right))]
