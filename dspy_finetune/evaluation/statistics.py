"""Intervals and paired tests: plain functions on numbers.

In: scores, counts, a confidence, a seed. Out: `Interval`s and p-values. A paired test gives both from one rule: the
interval excludes zero exactly where the p-value is at most one minus the confidence.
Sources: Wilson 1927; Newcombe 1998 (Stat. Med. 17:2635, method 10) for paired proportions; McNemar 1947 in the exact
binomial form; sign-flip permutation (Pitman 1937); percentile bootstrap (Efron 1979); Holm 1979; the t interval of a
bounded mean on a transformed scale by the delta method (Oehlert 1992, Am. Stat. 46:27).
Not covered: what the numbers mean for the user (scoring.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dspy_finetune._optional import require
from dspy_finetune.data.items import By, group_numbers, row_items
from dspy_finetune.errors import UsageError
from dspy_finetune.predictors.ask import wilson as wilson_ends

Floats: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = Sequence[float] | Floats
"""One number per item."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its confidence interval."""

    value: float | None
    """The figure itself; None where it is not defined."""
    low: float | None
    """Lower end; None where there are too few items for an interval."""
    high: float | None
    """Upper end."""
    n: int
    """How many items it rests on."""
    method: str
    """How the interval was made: Wilson, t, log t, logit t, bootstrap, Newcombe, clustered ..., none."""


def _scipy_stats() -> Any:
    return require("scipy.stats", "eval", "a comparison with intervals")


def _t_quantile(confidence: float, degrees: int) -> float:
    """How many standard errors Student's t interval reaches to either side."""
    return float(_scipy_stats().t.ppf((1 + confidence) / 2, degrees))


def wilson(n_right: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; (0, 1) without items."""
    if not n:
        return Interval(value=None, low=0.0, high=1.0, n=0, method="Wilson")
    ends = _scipy_stats().binomtest(n_right, n).proportion_ci(confidence, method="wilson")
    return Interval(value=n_right / n, low=float(ends.low), high=float(ends.high), n=n, method="Wilson")


def mean_interval(
    scores: Numbers, confidence: float = 0.95, bounds: tuple[float | None, float | None] = (None, None)
) -> Interval:
    """The mean with Student's t interval, within the bounds of the scores (`around`); none for fewer than two items."""
    n = len(scores)
    if n < 2:
        return Interval(value=float(scores[0]) if n else None, low=None, high=None, n=n, method="none")
    values = np.asarray(scores, dtype=float)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    return around(float(values.mean()), error, n=n, degrees=n - 1, confidence=confidence, bounds=bounds)


def around(
    mean: float,
    error: float,
    *,
    n: int,
    degrees: int,
    confidence: float,
    bounds: tuple[float | None, float | None] = (None, None),
) -> Interval:
    """Student's t interval of a mean by its standard error, drawn where the mean cannot leave its bounds.

    An error of prices is never below zero and has a long tail upwards: around the mean, t goes below zero and too
    seldom reaches far enough up. So the interval is drawn on the logarithm of the distance to the one bound, or on the
    logit between two (delta method), and carried back. For exponential scores the 95 % interval then holds the truth
    93 times in 100 at 5 items (t: 88; BCa bootstrap: 81) and 94 times at 10 (t: 90; BCa: 89); for normal ones and for
    many items all agree. At 2 to 4 independent scores the logarithm runs off, and t is cut at the bound.

    Scores that all lie on a bound of two show no spread: then the interval is Wilson's for no hit, which holds for any
    scores between the two.

    Args:
        mean: Of the scores.
        error: Its standard error.
        n: Items.
        degrees: Of freedom: items, or groups of items, less one.
        confidence: Of the interval.
        bounds: The least and the greatest value of a score; None where there is no end.
    """
    low, high = bounds
    quantile = _t_quantile(confidence, degrees)

    def found(ends: tuple[float, float], method: str) -> Interval:
        return Interval(value=mean, low=ends[0], high=ends[1], n=n, method=method)

    if low is not None and high is not None and low <= mean <= high:
        return found(_on_logit(mean, error, quantile, degrees + 1, low, high), "logit t")
    if low is not None and high is None and mean > low and degrees >= MIN_DEGREES:
        factor = math.exp(quantile * error / (mean - low))
        return found((low + (mean - low) / factor, low + (mean - low) * factor), "log t")
    ends = mean - quantile * error, mean + quantile * error
    return found((ends[0] if low is None else max(ends[0], low), ends[1] if high is None else min(ends[1], high)), "t")


MIN_DEGREES = 4
"""Fewer degrees of freedom than these, and an interval on the logarithm runs off."""


def _on_logit(mean: float, error: float, quantile: float, n: int, low: float, high: float) -> tuple[float, float]:
    span = high - low
    share = (mean - low) / span
    if share in (0.0, 1.0):
        reach = span * quantile**2 / (n + quantile**2)
        return (low, low + reach) if share == 0.0 else (high - reach, high)
    step = quantile * error / span / (share * (1 - share))
    odds = share / (1 - share)
    # 1 / (1 + exp(step) / odds) cannot overflow where exp(step) would.
    step = min(step, 700.0)
    return (
        low + span / (1 + math.exp(step) / odds),
        low + span / (1 + math.exp(-step) / odds),
    )


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A paired difference with its p-value and intervals at any level, which never disagree.

    The interval at confidence 1 - alpha excludes zero exactly where the p-value is at most alpha.
    """

    p_value: float
    """Two-sided."""
    test: str
    """Its name."""
    interval: Callable[[float], Interval]
    """Takes a confidence; first minus second."""
    deviation: float
    """Standard deviation of one item's difference, for power."""


def paired_proportions(one: Numbers, other: Numbers) -> PairedTest:
    """Exact McNemar test of two proportions on the same items, with the intervals that go with it.

    The interval spans Newcombe's square-and-add interval (his method 10), which knows how many items both sides may be
    right on, and the exact one that inverts McNemar's test (Clopper and Pearson's for the share of the items that only
    the first got right, among those that only one did). On which side of zero it ends, McNemar's test says: where that
    rejects and Newcombe's interval alone would reach zero, as it does in 1 of 100 tables, the exact end counts.
    """
    first, second = np.asarray(one, dtype=bool), np.asarray(other, dtype=bool)
    n, only_first, only_second = len(first), int((first & ~second).sum()), int((~first & second).sum())
    n_apart = only_first + only_second

    def interval(confidence: float) -> Interval:
        wide = newcombe(first, second, confidence)
        if not n_apart or wide.low is None or wide.high is None:
            return wide
        exact = _scipy_stats().binomtest(only_first, n_apart).proportion_ci(confidence, method="exact")
        least, most = ((2 * float(end) - 1) * n_apart / n for end in (exact.low, exact.high))
        low, high = min(wide.low, least), max(wide.high, most)
        if least > 0:
            low = low if low > 0 else least
        if most < 0:
            high = high if high < 0 else most
        return dataclasses.replace(wide, low=low, high=high, method="Newcombe + exact")

    return PairedTest(
        p_value=mcnemar(only_first, only_second),
        test="exact McNemar",
        interval=interval,
        deviation=float(np.std(first.astype(float) - second, ddof=1)) if n > 1 else math.nan,
    )


def newcombe(one: Numbers, other: Numbers, confidence: float = 0.95) -> Interval:
    """The difference of two proportions on the same items, with Newcombe's square-and-add interval (his method 10)."""
    n = len(one)
    first, second = np.asarray(one, dtype=bool), np.asarray(other, dtype=bool)
    if not n:
        return Interval(value=None, low=None, high=None, n=0, method="Newcombe")
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    rates = [wilson(both + only_first, n, confidence), wilson(both + only_second, n, confidence)]
    (p1, low1, high1), (p2, low2, high2) = ((rate.value or 0.0, rate.low or 0.0, rate.high or 0.0) for rate in rates)
    product = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    covariance = float(both * neither - only_first * only_second)
    if covariance > 0:  # Newcombe's continuity correction
        covariance = max(covariance - n / 2, 0.0)
    phi = covariance / math.sqrt(product) if product else 0.0

    def reach(below: float, above: float) -> float:
        return math.sqrt(max(below**2 - 2 * phi * below * above + above**2, 0.0))

    value = p1 - p2
    return Interval(
        value=value,
        low=value - reach(p1 - low1, high2 - p2),
        high=value + reach(high1 - p1, p2 - low2),
        n=n,
        method="Newcombe",
    )


def mcnemar(n_only_first: int, n_only_second: int) -> float:
    """Exact McNemar p-value, two-sided: are the items that only one side got right a fair coin's? 1 without any."""
    n = n_only_first + n_only_second
    return float(_scipy_stats().binomtest(n_only_first, n, 0.5).pvalue) if n else 1.0


def sign_flips(
    differences: Numbers, groups: Sequence[int] | None = None, *, n_resamples: int = 9999, seed: int = 0
) -> PairedTest:
    """Permutation test of a mean paired difference: the signs of the differences are flipped at random.

    The interval inverts the test. Flipping the signs of the differences to a supposed mean makes their sum as large as
    it is just where that mean lies between the means of the flipped and of the unflipped items; so the ends of the
    interval are order statistics of these subset means (typical values, Hartigan 1969). Below six items no confidence
    of 95 % can be had: there is no interval.

    Exact for differences that are symmetric about their mean; docs/evaluation.md says how far off for skewed ones.

    Args:
        differences: One per item.
        groups: Each item's group: the signs of whole groups are flipped.
        n_resamples: Random sets of signs.
        seed: Random seed.
    """
    values = np.asarray(differences, dtype=float)
    numbers = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sums = np.bincount(numbers, weights=values).astype(np.float64)
    sizes = np.bincount(numbers).astype(np.float64)
    lower, upper = _subset_means(sums, sizes, n_resamples, seed)
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    # Sums that are equal but for rounding are equal.
    rounding = 1e-9 * max(float(np.abs(values).max(initial=0.0)), abs(mean) if n else 0.0)

    def interval(confidence: float) -> Interval:
        place = math.floor((1 - confidence) * (n_resamples + 1) + 1e-9)
        none = Interval(value=mean if n else None, low=None, high=None, n=n, method="none")
        if n < 2 or place < 1:
            return none
        low = min(float(lower[place - 1]), mean)
        high = max(float(upper[-place]), mean)
        if not math.isfinite(low) or not math.isfinite(high):
            return none
        low, high = (0.0 if abs(end) <= rounding else end for end in (low, high))
        return dataclasses.replace(none, low=low, high=high, method="sign flips")

    n_as_far = int((lower <= rounding).sum()) if mean > 0 else int((upper >= -rounding).sum())
    return PairedTest(
        p_value=1.0 if not n or abs(mean) <= rounding else (n_as_far + 1) / (n_resamples + 1),
        test="sign-flip permutation" if groups is None else "sign-flip permutation of groups",
        interval=interval,
        # Of groups: as if the items were independent and spread so much.
        deviation=(float(np.std(values, ddof=1)) if n > 1 else math.nan)
        if groups is None
        else standard_error(values, groups) * math.sqrt(n),
    )


def _subset_means(sums: Floats, sizes: Floats, n_resamples: int, seed: int) -> tuple[Floats, Floats]:
    """The smaller and the larger of the means of a random part and of the rest, each sorted; infinite if one is empty.

    Args:
        sums: Of each group's values, shape (n_groups,).
        sizes: Of each group, shape (n_groups,).
        n_resamples: Random parts.
        seed: Random seed.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // max(len(sums), 1))
    lower, upper = [np.empty(0)], [np.empty(0)]
    for start in range(0, n_resamples, chunk):
        is_flipped = rng.integers(0, 2, size=(min(chunk, n_resamples - start), len(sums)), dtype=np.int8)  # (R, G)
        total, size = is_flipped @ sums, is_flipped @ sizes
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.stack([total / size, (sums.sum() - total) / (sizes.sum() - size)])
        is_whole = (size == 0) | (size == sizes.sum())
        lower.append(np.where(is_whole, -np.inf, means.min(axis=0)))
        upper.append(np.where(is_whole, np.inf, means.max(axis=0)))
    return np.sort(np.concatenate(lower)), np.sort(np.concatenate(upper))


def resample(n: int, statistic: Callable[[npt.NDArray[np.int64]], float], *, n_resamples: int, seed: int) -> Floats:
    """The bootstrap distribution of a statistic of item indices.

    The same n and seed draw the same items, so that the draws of two programs are paired.
    """
    rng = np.random.default_rng(seed)
    return np.array([statistic(rng.integers(0, n, size=n)) for _ in range(n_resamples)], dtype=float)


def percentile_interval(value: float, draws: Floats, n: int, confidence: float = 0.95) -> Interval:
    """The percentile interval of a bootstrap distribution; draws where the score is not defined are left out.

    No interval for fewer than two items, or where the draws are too few for the confidence.
    """
    draws = np.sort(draws[np.isfinite(draws)])
    # The end is the draw with which `bootstrap_p` reaches the level: interval and p-value never disagree.
    place = math.floor((1 - confidence) / 2 * (len(draws) + 1) + 1e-9)
    if not math.isfinite(value) or n < 2 or len(draws) < 100 or place < 1:
        return Interval(value=value if math.isfinite(value) else None, low=None, high=None, n=n, method="none")
    low, high = float(draws[place - 1]), float(draws[-place])
    return Interval(value=value, low=low, high=high, n=n, method="bootstrap")


def bootstrap_p(draws: Floats) -> float:
    """Two-sided p-value from a bootstrap distribution of a difference.

    Twice the share of draws beyond zero, at most 1.
    """
    draws = draws[np.isfinite(draws)]
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(draws) + 1))


def paired_bootstrap(value: float, draws: Floats, n: int) -> PairedTest | None:
    """The test of a difference by its bootstrap distribution over the same items; None where it is not defined.

    Draws that agree would give the least p-value there is, even for three items; no paired test of n items can give
    less than n coins that all fall alike.
    """
    least = min(1.0, 2.0 ** (1 - n))

    def interval(confidence: float) -> Interval:
        found = percentile_interval(value, draws, n, confidence)
        is_sure = found.low is not None and found.high is not None and not found.low <= 0.0 <= found.high
        if is_sure and least > 1 - confidence:
            return dataclasses.replace(found, low=None, high=None, method="none")
        return found

    if percentile_interval(value, draws, n).low is None:
        return None
    return PairedTest(
        p_value=max(bootstrap_p(draws), least),
        test="paired bootstrap",
        interval=interval,
        deviation=float(np.nanstd(draws)) * math.sqrt(n),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given: each p-value corrected for the number of comparisons."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def holm_levels(p_values: Sequence[float], alpha: float) -> list[float]:
    """The level at which Holm's procedure tests each hypothesis, in the order given.

    The smallest p-value is tested at alpha / m, the next at alpha / (m - 1), and so on up to the first that is not
    rejected; the others fall with it, at its level. An interval at confidence 1 - level excludes zero exactly where
    `holm` corrects the p-value to at most alpha.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, levels = holm(p_values), [alpha] * len(p_values)
    for rank, index in enumerate(order):
        level = alpha / (len(order) - rank)
        levels[index] = level
        if corrected[index] > alpha:
            for other in order[rank:]:
                levels[other] = level
            break
    return levels


def items_needed(difference: float, deviation: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """How many items a two-sided paired test needs to find this difference with this power (normal approximation).

    Args:
        difference: The mean paired difference that is assumed to hold.
        deviation: Standard deviation of the items' paired differences.

    Returns:
        The number of items, or None when the difference is zero: no number would do.
    """
    if difference == 0.0 or not math.isfinite(difference) or not math.isfinite(deviation):
        return None
    norm = _scipy_stats().norm
    quantiles = float(norm.ppf(1 - alpha / 2)) + float(norm.ppf(power))
    return math.ceil((quantiles * deviation / abs(difference)) ** 2)


# Items that share a group (clusters): what is alike within a group is no new evidence.
#
# The sandwich variance of a mean over clusters (Liang and Zeger 1986) with G / (G - 1), as statsmodels has it (tests
# compare them); Wilson's interval at the design-effective number of items (Korn and Graubard 1998 do so with Clopper
# and Pearson's); sign flips and bootstrap draws of whole groups. With fewer than about 20 groups all are rough.


def groups_of(rows: Sequence[Any], by: By) -> tuple[int, ...]:
    """Each item's group number: items that share a value of `by`, also through others, are one group.

    `by` is what `split` takes: a field, several fields each of which holds an item (both texts of a pair), a function.

    Raises:
        UsageError: A field is in no row, or all items are one group.
    """
    numbers = tuple(group_numbers(row_items(rows, by, "normalized")))
    if len(set(numbers)) < 2:
        raise UsageError(
            f"group_by={by!r}: all {len(rows)} items hang together as one group, which leaves nothing to compare; "
            "group by something finer, or draw pairs so that fewer share a text"
        )
    return numbers


def group_sums(values: Numbers, groups: Sequence[int]) -> Floats:
    """The sum of each group's values, in the order of the groups' numbers; groups without a value are left out."""
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


def clustered_mean_interval(
    values: Numbers, groups: Sequence[int], confidence: float, bounds: tuple[float | None, float | None] = (None, None)
) -> Interval:
    """The mean, with Student's t at as many degrees as groups less one; no interval with fewer than two groups.

    Within the bounds of the scores, as `stats.around` draws it.
    """
    n = len(values)
    error = standard_error(values, groups)
    if math.isnan(error):
        return Interval(value=math.fsum(values) / n if n else None, low=None, high=None, n=n, method="none")
    found = around(
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
        return wilson(round(math.fsum(values)), n, confidence)
    share, error = math.fsum(values) / n, standard_error(values, groups)
    n_effective = min(float(n), share * (1 - share) / error**2) if error else float(n_groups)
    n_effective *= (NormalDist().inv_cdf((1 + confidence) / 2) / _t_quantile(confidence, n_groups - 1)) ** 2
    low, high = wilson_ends(share * n_effective, n_effective, confidence)
    return Interval(value=share, low=low, high=high, n=n, method="clustered Wilson")


def clustered_resample(
    groups: Sequence[int], statistic: Callable[[Any], float], *, n_resamples: int, seed: int
) -> Floats:
    """The bootstrap distribution of a statistic of item indices; whole groups are drawn, the same for the same seed."""
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    parts = [np.asarray(indices, dtype=np.int64) for indices in members.values()]

    def on(drawn: Any) -> float:
        return statistic(np.concatenate([parts[number] for number in drawn]))

    return resample(len(parts), on, n_resamples=n_resamples, seed=seed)
