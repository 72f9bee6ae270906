"""What a learning curve says beyond its points: means over seeds, and the value of more examples.

In: scores of runs by training size, with bootstrap draws over the same test items. Out: `Interval`s.
The line: score = a + b ln(size), by least squares over all runs. It is the simplest form that falls ever slower, as
error does with data (Hestness et al. 2017 find power laws; over the one or two doublings that a sweep measures, the two
cannot be told apart, and a power law's three numbers cannot be had from three points).
The interval of a change is the wider of two: the bootstrap, which knows the test items, and Student's t from the runs'
distances to the line, which knows the noise between trainings and a line that does not fit. With as many runs as the
line has numbers, only the first exists. Not covered: asking and training (curve.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dspy_finetune._optional import require
from dspy_finetune.evaluation import stats
from dspy_finetune.evaluation.stats import Floats, Interval


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run's score."""

    n_rows: int
    """Training examples."""
    seed: int
    """Which nested order."""
    value: float
    """The score over all test items."""
    draws: Floats
    """The score over resampled items; the same items for every run, shape (n_resamples,)."""
    interval: Interval
    """The score's own interval."""


def mean_over_seeds(runs: Sequence[Measured], *, confidence: float, seed: int) -> Interval:
    """The mean of runs of one size; of one run its own interval, of several a bootstrap over items and runs.

    Drawing k runs with replacement shows (k - 1) / k of the variance between trainings: with two or three seeds the
    interval is still too narrow, though less so than without them.
    """
    if len(runs) == 1:
        return runs[0].interval
    # Imported here: numpy costs 0.1 s, which `import dspy_finetune` must not.
    import numpy as np

    draws = np.stack([run.draws for run in runs])  # (n_runs, n_resamples)
    picks = np.random.default_rng(seed).integers(0, len(runs), size=draws.shape)
    drawn = np.take_along_axis(draws, picks, axis=0).mean(axis=0)
    value = math.fsum(run.value for run in runs) / len(runs)
    return stats.percentile_interval(value, drawn, min(run.interval.n for run in runs), confidence)


def change_by_more(runs: Sequence[Measured], n_more: int, *, confidence: float) -> Interval:
    """By how much the score changes with `n_more` examples beyond the largest size; no interval with one size."""
    # Imported here: see mean_over_seeds.
    import numpy as np

    sizes = np.log([run.n_rows for run in runs])
    spread = float(((sizes - sizes.mean()) ** 2).sum())
    n_items = min(run.interval.n for run in runs)
    if not spread:
        return Interval(value=None, low=None, high=None, n=n_items, method="none")
    weights = (sizes - sizes.mean()) / spread  # the slope is this weighted sum of the scores
    # Counted from the first run's, which changes no slope: scores that are all the same then give exactly zero.
    values = np.array([run.value for run in runs]) - runs[0].value
    draws = np.stack([run.draws for run in runs]) - runs[0].draws  # (n_runs, n_resamples)
    slope = float(weights @ values)
    largest = max(run.n_rows for run in runs)
    reach = math.log((largest + n_more) / largest)
    found = stats.percentile_interval(slope * reach, reach * (weights @ draws), n_items, confidence)
    degrees = len(runs) - 2
    if degrees < 1 or found.low is None or found.high is None:
        return found
    residuals = values - values.mean() - slope * (sizes - sizes.mean())
    deviation = math.sqrt(float((residuals**2).sum()) / degrees / spread)
    student = require("scipy.stats", "eval", "a learning curve").t.ppf((1 + confidence) / 2, degrees)
    half = float(student) * deviation * reach
    if 2 * half <= found.high - found.low:
        return found
    return Interval(value=slope * reach, low=slope * reach - half, high=slope * reach + half, n=n_items, method="t")


def foretell_largest(runs: Sequence[Measured]) -> float | None:
    """The largest size's score as the line through the smaller sizes has it; None with fewer than three sizes."""
    # Imported here: see mean_over_seeds.
    import numpy as np

    largest = max(run.n_rows for run in runs)
    smaller = [run for run in runs if run.n_rows < largest]
    if len({run.n_rows for run in smaller}) < 2:
        return None
    sizes = np.log([run.n_rows for run in smaller])
    values = np.array([run.value for run in smaller])
    slope = float(((sizes - sizes.mean()) * values).sum() / ((sizes - sizes.mean()) ** 2).sum())
    return float(values.mean() + slope * (math.log(largest) - sizes.mean()))
