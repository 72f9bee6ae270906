"""Intervals and tests where items share a group: what is alike within a group is no new evidence.

In: scores with a group number for each item. Out: `Interval`s and p-values that take the groups as independent, and
the items within one as anything. Sources: the sandwich variance of a mean over clusters (Liang and Zeger 1986) with
G / (G - 1), as statsmodels has it (tests compare them); Wilson's interval at the design-effective number of items
(Korn and Graubard 1998 do so with Clopper and Pearson's); sign flips and bootstrap draws of whole groups.
With fewer than about 20 groups all of these are rough. Not covered: groups within groups.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from dspy_finetune._optional import require
from dspy_finetune.data.items import By, connected_rows, row_items
from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation import stats
from dspy_finetune.evaluation.stats import Floats, Interval, Numbers


def groups_of(rows: Sequence[Any], by: By) -> tuple[int, ...]:
    """Each item's group number: items that share a value of `by`, also through others, are one group.

    `by` is what `split` takes: a field, several fields each of which holds an item (both texts of a pair), a function.

    Raises:
        UsageError: A field is in no row, or all items are one group.
    """
    found = connected_rows(row_items(rows, by, "normalized"))
    if len(found) < 2:
        raise UsageError(
            f"group_by={by!r}: all {len(rows)} items hang together as one group, which leaves nothing to compare; "
            "group by something finer, or draw pairs so that fewer share a text"
        )
    numbers = [0] * len(rows)
    for number, indices in enumerate(found):
        for index in indices:
            numbers[index] = number
    return tuple(numbers)


def group_sums(values: Numbers, groups: Sequence[int]) -> Floats:
    """The sum of each group's values, in the order of the groups' numbers; groups without a value are left out."""
    # Imported here: numpy costs 0.1 s, which `import dspy_finetune` must not.
    import numpy as np

    _, places = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(places, weights=np.asarray(values, dtype=float)).astype(np.float64)


def standard_error(values: Numbers, groups: Sequence[int]) -> float:
    """Of the mean, by the groups' sums of distances to it; NaN with fewer than two groups."""
    n = len(values)
    if n == 0:
        return math.nan
    mean = math.fsum(values) / n
    sums = group_sums([value - mean for value in values], groups)
    n_groups = len(sums)
    return math.sqrt(n_groups / (n_groups - 1) * float((sums**2).sum())) / n if n_groups > 1 else math.nan


def mean_interval(
    values: Numbers, groups: Sequence[int], confidence: float, bounds: tuple[float | None, float | None] = (None, None)
) -> Interval:
    """The mean, with Student's t at as many degrees as groups less one; no interval with fewer than two groups.

    Within the bounds of the scores, as `stats.around` draws it.
    """
    n = len(values)
    error = standard_error(values, groups)
    if math.isnan(error):
        return Interval(value=math.fsum(values) / n if n else None, low=None, high=None, n=n, method="none")
    found = stats.around(
        math.fsum(values) / n, error, n=n, degrees=len(set(groups)) - 1, confidence=confidence, bounds=bounds
    )
    return dataclasses.replace(found, method=f"clustered {found.method}")


def proportion_interval(values: Numbers, groups: Sequence[int], confidence: float) -> Interval:
    """Wilson's interval as if there were only as many items as the groups' spread allows.

    That number is p(1 - p) / variance, never above n, times (z / t)² for the few degrees that the groups leave. Where
    all items agree no spread is seen, and it is the number of groups.
    """
    n, n_groups = len(values), len(set(groups))
    if n_groups < 2:
        return stats.wilson(round(math.fsum(values)), n, confidence)
    share, error = math.fsum(values) / n, standard_error(values, groups)
    n_effective = min(float(n), share * (1 - share) / error**2) if error else float(n_groups)
    z, t = _z(confidence), _t(confidence, n_groups - 1)
    n_effective *= (z / t) ** 2
    centre = (share + z * z / (2 * n_effective)) / (1 + z * z / n_effective)
    half = (
        z
        / (1 + z * z / n_effective)
        * math.sqrt(share * (1 - share) / n_effective + z * z / (4 * n_effective * n_effective))
    )
    return Interval(
        value=share, low=max(centre - half, 0.0), high=min(centre + half, 1.0), n=n, method="clustered Wilson"
    )


def sign_flip(differences: Numbers, groups: Sequence[int], *, n_resamples: int, seed: int) -> float:
    """Permutation p-value, two-sided, of a mean paired difference: the signs of whole groups are flipped at random."""
    return stats.sign_flip(group_sums(differences, groups), n_resamples=n_resamples, seed=seed)


def resample(groups: Sequence[int], statistic: Callable[[Any], float], *, n_resamples: int, seed: int) -> Floats:
    """The bootstrap distribution of a statistic of item indices; whole groups are drawn, the same for the same seed."""
    # Imported here: see group_sums.
    import numpy as np

    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    parts = [np.asarray(indices, dtype=np.int64) for indices in members.values()]

    def on(drawn: Any) -> float:
        return statistic(np.concatenate([parts[number] for number in drawn]))

    return stats.resample(len(parts), on, n_resamples=n_resamples, seed=seed)


def _t(confidence: float, degrees: int) -> float:
    return float(require("scipy.stats", "eval", "clustered intervals").t.ppf((1 + confidence) / 2, degrees))


def _z(confidence: float) -> float:
    return float(require("scipy.stats", "eval", "clustered intervals").norm.ppf((1 + confidence) / 2))
