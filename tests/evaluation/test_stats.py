"""Statistics: against scipy on the same numbers, and by simulation within the binomial error of the simulation."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from dspy_finetune.evaluation import statistics
from dspy_finetune.evaluation.scoring import decide, n_more_items, pairwise_bias, swap_agreement
from dspy_finetune.evaluation.statistics import Interval, PairedTest


def test_wilson_equals_its_formula():
    for n_right, n in [(0, 10), (3, 10), (10, 10), (81, 120)]:
        z, p = scipy.stats.norm.ppf(0.975), n_right / n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        found = statistics.wilson(n_right, n)
        assert (found.value, found.low, found.high) == pytest.approx((p, centre - half, centre + half), abs=1e-12)
    empty = statistics.wilson(0, 0)
    assert (empty.value, empty.low, empty.high) == (None, 0.0, 1.0)


def test_the_mean_has_students_interval_and_none_for_one_item():
    values = [1.0, 4.0, 2.5, 3.0]
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    found = statistics.mean_interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert statistics.mean_interval([2.0]) == Interval(value=2.0, low=None, high=None, n=1, method="none")


def test_mcnemar_is_the_binomial_test_of_the_items_only_one_side_got_right():
    assert statistics.mcnemar(3, 11) == pytest.approx(scipy.stats.binomtest(3, 14).pvalue)
    assert statistics.mcnemar(0, 0) == 1.0


def test_the_sign_flip_test_equals_scipys_exact_permutation():
    differences = [0.4, -0.1, 0.3, 0.25, 0.0, 0.6, -0.2, 0.15]
    exact = scipy.stats.permutation_test(
        (np.array(differences),), np.mean, permutation_type="samples", vectorized=False, n_resamples=10_000
    ).pvalue
    found = statistics.sign_flips(differences, n_resamples=20_000).p_value
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))
    assert statistics.sign_flips([0.0, 0.0]).p_value == 1.0
    one, two = (statistics.sign_flips(differences, seed=5) for _ in range(2))
    assert (one.p_value, one.interval(0.9)) == (two.p_value, two.interval(0.9))


def test_holm_equals_its_definition():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == []


def test_newcombes_interval_equals_a_published_example():
    # Newcombe 1998, Stat. Med. 17:2635-2650, table III, first of the examples with n = 50: cells 36, 12, 2, 0.
    one = [1.0] * 36 + [1.0] * 12 + [0.0] * 2
    other = [1.0] * 36 + [0.0] * 12 + [1.0] * 2
    found = statistics.newcombe(one, other)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-4)


def _holds(interval: Interval, truth: float) -> bool:
    return interval.low is not None and interval.high is not None and interval.low <= truth <= interval.high


def _mean_of(scores: statistics.Floats) -> Callable[[npt.NDArray[np.int64]], float]:
    return lambda indices: float(scores[indices].mean())


def _share_within(hits: int, n: int, expected: float) -> bool:
    """Whether a simulated share is no further than four standard errors from what it should be."""
    return abs(hits / n - expected) <= 4 * math.sqrt(expected * (1 - expected) / n)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    n_rounds, n = 300, 60
    hits = {"wilson": 0, "newcombe": 0, "t": 0, "bootstrap": 0}
    for _ in range(n_rounds):
        shared = rng.random(n)
        one = (shared < 0.75).astype(float)
        other = (0.5 * shared + 0.5 * rng.random(n) < 0.6).astype(float)
        found = statistics.wilson(int(one.sum()), n)
        hits["wilson"] += _holds(found, 0.75)
        # P(U/2 + V/2 < 0.6) = 1 - 2 * 0.4**2
        found = statistics.paired_proportions(one, other).interval(0.95)
        hits["newcombe"] += _holds(found, 0.75 - 0.68)
        scores = rng.normal(0.3, 1, n)
        found = statistics.mean_interval(scores)
        hits["t"] += _holds(found, 0.3)
        draws = statistics.resample(n, _mean_of(scores), n_resamples=150, seed=3)
        found = statistics.percentile_interval(float(scores.mean()), draws, n)
        hits["bootstrap"] += _holds(found, 0.3)
    assert _share_within(hits["t"], n_rounds, 0.95)
    # Score intervals of counts are conservative by design, the bootstrap's are known to be: never below, little above.
    for name in ("wilson", "newcombe", "bootstrap"):
        assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / n_rounds) <= hits[name] / n_rounds <= 0.99, (name, hits)


def test_without_a_difference_the_tests_cry_wolf_no_more_often_than_they_say():
    rng = np.random.default_rng(2)
    n_rounds, alarms = 300, {"mcnemar": 0, "sign flip": 0}
    for seed in range(n_rounds):
        one, other = rng.random(60) < 0.7, rng.random(60) < 0.7
        alarms["mcnemar"] += statistics.mcnemar(int((one & ~other).sum()), int((~one & other).sum())) <= 0.05
        alarms["sign flip"] += statistics.sign_flips(rng.laplace(0, 1, 60), n_resamples=399, seed=seed).p_value <= 0.05
    assert _share_within(alarms["sign flip"], n_rounds, 0.05)
    assert alarms["mcnemar"] / n_rounds <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / n_rounds)  # exact tests are conservative


def test_the_number_of_items_gives_the_power_it_promises():
    n = statistics.items_needed(0.3, 1.0)
    assert n is not None
    rng = np.random.default_rng(3)
    found = sum(scipy.stats.ttest_1samp(rng.normal(0.3, 1.0, n), 0).pvalue <= 0.05 for _ in range(500))
    assert _share_within(found, 500, 0.8)
    assert statistics.items_needed(0.0, 1.0) is None


def _test(wide: tuple[float, float], narrow: tuple[float, float]) -> PairedTest:
    def interval(confidence: float) -> Interval:
        low, high = wide if confidence > 0.92 else narrow
        return Interval(value=(low + high) / 2, low=low, high=high, n=100, method="t")

    return PairedTest(p_value=0.5, test="any", interval=interval, deviation=1.0)


@pytest.mark.parametrize(
    ("wide", "narrow", "higher", "margin", "verdict", "confidence"),
    [
        ((0.02, 0.18), (0.03, 0.17), True, None, "better", 0.95),
        ((0.02, 0.18), (0.03, 0.17), False, None, "worse", 0.95),
        ((-0.18, -0.02), (-0.17, -0.03), True, None, "worse", 0.95),
        ((-0.01, 0.2), (0.01, 0.19), True, None, "undecided", 0.95),
        ((0.0, 0.2), (0.01, 0.19), True, None, "undecided", 0.95),
        ((-0.06, 0.06), (-0.02, 0.04), True, 0.05, "equivalent", 0.9),
        ((0.01, 0.049), (0.02, 0.04), True, 0.05, "equivalent", 0.9),
        ((-0.02, 0.08), (-0.01, 0.07), True, 0.05, "undecided", 0.95),
    ],
)
def test_the_verdict_is_read_from_the_interval_that_is_shown(wide, narrow, higher, margin, verdict, confidence):
    word, level = decide(_test(wide, narrow), higher_is_better=higher, alpha=0.05, margin=margin)
    assert word == verdict
    assert level == pytest.approx(confidence)
    assert decide(None, higher_is_better=higher, alpha=0.05, margin=margin)[0] == "undecided"


LEVELS = [0.05, 0.025, 0.01, 0.05 / 3, 0.001]


def _excludes_zero(interval: Interval) -> bool:
    return interval.low is not None and interval.high is not None and not interval.low <= 0 <= interval.high


@pytest.mark.parametrize("n", [2, 5, 7, 12, 40, 150])
def test_no_interval_contradicts_its_p_value(n):
    """Proportions, means, means of groups and bootstrapped scores, at every level, skewed and tied ones too."""
    rng = np.random.default_rng(n)
    seen = {True: 0, False: 0}
    for round_ in range(60):
        shift = rng.uniform(-0.6, 0.6)
        one, other = rng.random(n) < 0.5 + shift / 2, rng.random(n) < 0.5
        skewed = rng.choice([rng.exponential(1, n) ** 3 + shift, rng.integers(-1, 3, n) + 0.0, rng.normal(shift, 1, n)])
        skewed[rng.random(n) < 0.05] *= 30
        draws = statistics.resample(n, _mean_of(skewed), n_resamples=rng.choice([199, 250]), seed=round_)
        tests = [
            statistics.paired_proportions(one, other),
            statistics.sign_flips(skewed, n_resamples=499, seed=round_),
            statistics.sign_flips(skewed, rng.integers(0, max(n // 3, 2), n).tolist(), n_resamples=499, seed=round_),
            statistics.paired_bootstrap(float(skewed.mean()), draws, n),
        ]
        for test in tests:
            for alpha in LEVELS:
                assert test is not None
                found = test.interval(1 - alpha)
                if found.low is not None and found.high is not None and found.value is not None:
                    assert found.low <= found.value <= found.high
                assert _excludes_zero(found) == (test.p_value <= alpha), (test, alpha, found)
                seen[_excludes_zero(found)] += 1
    assert min(seen.values()) > 5 or n < 7


def test_the_sign_flip_interval_holds_the_means_that_the_test_does_not_reject():
    """By the plain definition: shift the differences and test anew, with the same signs."""
    rng = np.random.default_rng(0)
    differences = rng.exponential(1.0, 25) - 0.4
    found = statistics.sign_flips(differences, n_resamples=999, seed=1).interval(0.95)
    assert found.low is not None
    assert found.high is not None
    for end, inside in ((found.low, 1), (found.high, -1)):
        kept = statistics.sign_flips(differences - (end + inside * 1e-6), n_resamples=999, seed=1).p_value
        lost = statistics.sign_flips(differences - (end - inside * 1e-6), n_resamples=999, seed=1).p_value
        assert lost <= 0.05 < kept


def test_sign_flip_intervals_cover_the_mean_as_often_as_they_say():
    rng, n_rounds = np.random.default_rng(11), 400
    hits = 0
    for seed in range(n_rounds):
        values = rng.laplace(0.3, 1.0, 40)
        hits += _holds(statistics.sign_flips(values, n_resamples=399, seed=seed).interval(0.95), 0.3)
    assert _share_within(hits, n_rounds, 0.95)


def test_holms_levels_reject_what_holms_p_values_reject():
    rng = np.random.default_rng(0)
    for _ in range(300):
        p_values = (rng.random(rng.integers(1, 7)) ** 3 / 2).tolist()
        levels = statistics.holm_levels(p_values, 0.05)
        rejected = [p <= level for p, level in zip(p_values, levels, strict=True)]
        assert rejected == [p <= 0.05 for p in statistics.holm(p_values)]
    assert statistics.holm_levels([0.001, 0.04, 0.03], 0.05) == pytest.approx([0.05 / 3, 0.025, 0.025])
    assert statistics.holm_levels([], 0.05) == []


def test_more_items_are_counted_from_those_there_are():
    assert n_more_items(0.3, 1.0, 50, alpha=0.05) == (statistics.items_needed(0.3, 1.0) or 0) - 50
    assert n_more_items(0.0, 1.0, 50, alpha=0.05) is None


def test_pairwise_bias_is_shares_of_the_choices_made():
    found = pairwise_bias(["long text", "x", "same"], ["y", "longer", "size"], ["A", "A", None])
    assert (found.prefers_first.value, found.prefers_longer.value) == (1.0, 0.5)
    assert swap_agreement(["A", "B", "A", None], ["B", "B", "B", "A"]).value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("scores", "bounds"),
    [
        ([0.0, 0.0, 30.0], (0.0, None)),
        ([0.0, 0.0, 0.0, 0.0, 30.0], (0.0, None)),
        ([0.0, 1e-100], (0.0, None)),
        ([0.0, 1.0], (0.0, 1.0)),
        ([1.0, 1.0, 0.999], (0.0, 1.0)),
        ([-1.0, 1.0, 1.0], (-1.0, 1.0)),
        ([1.0, 1.0, 1.0], (0.0, 1.0)),
        ([0.0] * 4, (0.0, 1.0)),
    ],
)
def test_an_interval_stays_where_the_scores_can_lie(scores, bounds):
    """A mean absolute error is not below zero, whatever Student's t says."""
    low, high = bounds
    for found in (
        statistics.mean_interval(scores, 0.95, bounds),
        statistics.clustered_mean_interval(scores, range(len(scores)), 0.95, bounds),
    ):
        assert found.value == pytest.approx(sum(scores) / len(scores))
        assert found.value is not None
        assert found.low is not None
        assert found.high is not None
        assert low <= found.low <= found.value <= found.high
        assert high is None or found.high <= high
        assert found.low < found.high


def test_scores_all_at_one_end_have_wilsons_interval():
    found = statistics.mean_interval([0.0] * 400, 0.95, (0.0, 1.0))
    assert (found.low, found.high) == pytest.approx((0.0, statistics.wilson(0, 400).high), abs=1e-4)


def test_many_items_have_students_interval_whatever_the_bounds():
    scores = np.random.default_rng(0).uniform(0.2, 0.9, 20_000)
    plain = statistics.mean_interval(scores)
    for bounds in ((0.0, None), (0.0, 1.0), (-1.0, 1.0)):
        found = statistics.mean_interval(scores, 0.95, bounds)
        assert (found.low, found.high) == pytest.approx((plain.low, plain.high), rel=1e-4)


def test_errors_with_a_long_tail_are_covered_more_often_on_the_logarithm():
    """Exponential errors of 8 items: nearer to 95 % than Student's t, and below zero never."""
    rng, n_rounds = np.random.default_rng(5), 1500
    hits = {"t": 0, "log t": 0, "logit t": 0}
    for _ in range(n_rounds):
        errors, shares = rng.exponential(1.0, 8), rng.beta(0.5, 0.5, 8)
        hits["t"] += _holds(statistics.mean_interval(errors), 1.0)
        hits["log t"] += _holds(statistics.mean_interval(errors, 0.95, (0.0, None)), 1.0)
        hits["logit t"] += _holds(statistics.mean_interval(shares, 0.95, (0.0, 1.0)), 0.5)
    covered = {name: one / n_rounds for name, one in hits.items()}
    assert covered["t"] + 0.015 < covered["log t"] <= 0.95 + 4 * math.sqrt(0.95 * 0.05 / n_rounds)
    assert covered["log t"] > 0.91
    assert 0.92 < covered["logit t"] < 0.985
