"""A fitted combiner of several members: logistic regression on their log-odds.

In: the members' probabilities on labelled examples. Out: coefficients as JSON values, and probabilities from them.
scikit-learn fits; applying needs nothing. A member that gives no probability enters as 0.9 on its answer, a member that
did not answer with its mean log-odds in fitting: the regression finds out what either is worth.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dspy_finetune._optional import require
from dspy_finetune.errors import DataError
from dspy_finetune.predictors.votes import Vote

MINIMUM = 20
"""The fewest examples; and at least 5 of each label."""

_VOTE_SHARE = 0.9
_LEAST = 1e-6


def features(votes: Sequence[Vote], labels: Sequence[Any], n_members: int) -> list[float | None]:
    """For each member and each label but the first, log(share / share of the first); None where it did not answer."""
    by_member = {vote.member: vote for vote in votes}
    row: list[float | None] = []
    for member in range(n_members):
        vote = by_member.get(member)
        if vote is None:
            row += [None] * (len(labels) - 1)
            continue
        rest = (1.0 - _VOTE_SHARE) / (len(labels) - 1)
        shares = vote.shares or {label: _VOTE_SHARE if label == vote.answer else rest for label in labels}
        logs = [math.log(min(max(shares[label], _LEAST), 1.0 - _LEAST)) for label in labels]
        row += [value - logs[0] for value in logs[1:]]
    return row


def fit(rows: Sequence[Sequence[float | None]], right: Sequence[int], n_labels: int) -> dict[str, Any]:
    """The coefficients, as JSON values.

    Raises:
        DataError: Too few examples, or too few of a label.
    """
    counts = Counter(right)
    if len(right) < MINIMUM or len(counts) < n_labels or min(counts.values()) < 5:
        raise DataError(
            f"stacking needs at least {MINIMUM} examples and 5 of each label; found {len(right)}, "
            f"by label {[counts[label] for label in range(n_labels)]}"
        )
    means = []
    for column in zip(*rows, strict=True):
        values = [value for value in column if value is not None]
        means.append(sum(values) / len(values) if values else 0.0)
    linear = require("sklearn.linear_model", "eval", 'Ensemble(how="stacking")')
    model = linear.LogisticRegression(C=1.0, max_iter=2000)
    model.fit([_filled(row, means) for row in rows], right)
    slopes, intercepts = model.coef_.tolist(), model.intercept_.tolist()
    if n_labels == 2:  # scikit-learn keeps one row, for the second label
        slopes, intercepts = [[0.0] * len(means), slopes[0]], [0.0, intercepts[0]]
    return {"slopes": slopes, "intercepts": intercepts, "means": means, "n": len(right)}


def apply(fitted: dict[str, Any], row: Sequence[float | None]) -> list[float]:
    """The probability of each label."""
    filled = _filled(row, fitted["means"])
    scores = [
        intercept + sum(slope * value for slope, value in zip(slopes, filled, strict=True))
        for slopes, intercept in zip(fitted["slopes"], fitted["intercepts"], strict=True)
    ]
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def _filled(row: Sequence[float | None], means: Sequence[float]) -> list[float]:
    return [mean if value is None else value for value, mean in zip(row, means, strict=True)]
