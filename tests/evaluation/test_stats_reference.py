"""Intervals and tests on the same numbers as statsmodels; and verdicts as often wrong as they say."""

import math
from typing import Any

import dspy
import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower, TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from dspy_finetune.evaluation import metrics, statistics
from dspy_finetune.evaluation.statistics import Interval
from tests.evaluation.comparing import compare_programs


def ends(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_shares_and_means_have_statsmodels_intervals(confidence):
    for n_right, n in [(0, 7), (3, 40), (40, 40), (611, 1000)]:
        expected = proportion_confint(n_right, n, alpha=1 - confidence, method="wilson")
        assert ends(statistics.wilson(n_right, n, confidence)) == pytest.approx(expected, abs=1e-9)
    values = np.random.default_rng(0).exponential(size=35)
    expected = DescrStatsW(values).tconfint_mean(alpha=1 - confidence)
    assert ends(statistics.mean_interval(values, confidence)) == pytest.approx(expected)


def test_mcnemar_and_holm_are_statsmodels():
    for only_one, only_other in [(0, 5), (3, 11), (20, 21)]:
        expected = mcnemar([[9, only_one], [only_other, 4]], exact=True).pvalue
        assert statistics.mcnemar(only_one, only_other) == pytest.approx(expected)
    p_values = [0.04, 0.001, 0.6, 0.013, 0.013]
    assert statistics.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_the_number_of_items_is_statsmodels():
    # NormalIndPower with ratio 0 is the one-sample z test, which the paired test is.
    expected = NormalIndPower(ddof=0).solve_power(effect_size=0.3, alpha=0.05, power=0.8, ratio=0)
    assert statistics.items_needed(0.3, 1.0) == math.ceil(expected)
    assert (
        abs((statistics.items_needed(0.3, 1.0) or 0) - TTestPower().solve_power(effect_size=0.3, alpha=0.05, power=0.8))
        < 3
    )


def test_equivalence_is_two_one_sided_tests():
    """The narrow interval lies inside the margin exactly where statsmodels' TOST rejects at 5 %."""
    rng, agreed = np.random.default_rng(4), {True: 0, False: 0}
    for _ in range(60):
        differences = rng.normal(rng.uniform(-0.3, 0.3), 1.0, 80)
        low, high = ends(statistics.mean_interval(differences, 0.9))
        is_inside = low > -0.3 and high < 0.3
        assert is_inside == (DescrStatsW(differences).ttost_mean(-0.3, 0.3)[0] < 0.05)
        agreed[is_inside] += 1
    assert min(agreed.values()) > 5


class Right:
    """A program that is right where a row of chances says so."""

    def __init__(self, is_right: np.ndarray) -> None:
        self.is_right = is_right

    def __call__(self, number: int) -> dspy.Prediction:
        return dspy.Prediction(liked=bool(self.is_right[number]), probability=0.75 if self.is_right[number] else 0.25)


ROWS = [dspy.Example(number=n, liked=True).with_inputs("number") for n in range(50)]


def test_verdicts_are_wrong_no_more_often_than_they_say():
    """Whole comparisons of programs that are equally good: better or worse in at most 5 % of them, with three others
    corrected together; and equivalent, for a difference as large as the margin, in at most 5 %."""
    rng, n_rounds = np.random.default_rng(6), 150
    alarms = {"accuracy": 0, "Brier score": 0}
    for _ in range(n_rounds):
        programs = {name: Right(rng.random(50) < 0.7) for name in ("candidate", "one", "other")}
        found = compare_programs(
            programs, ROWS, [metrics.accuracy("liked"), metrics.brier("liked")], reference="one", num_threads=1,
            n_resamples=20,
        )  # fmt: skip
        for name in alarms:
            alarms[name] += any(one.verdict in ("better", "worse") for one in found.differences_of(name))
    bound = 0.05 + 4 * math.sqrt(0.05 * 0.95 / n_rounds)
    assert {name: n / n_rounds <= bound for name, n in alarms.items()} == dict.fromkeys(alarms, True), alarms


def test_a_difference_of_the_margins_size_is_seldom_called_equivalent():
    rng, n_rounds, n = np.random.default_rng(7), 400, 200
    false = 0
    for _ in range(n_rounds):
        differences = rng.normal(0.2, 1.0, n)
        low, high = ends(statistics.mean_interval(differences, 0.9))
        false += low > -0.2 and high < 0.2
    assert false / n_rounds <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / n_rounds)


def test_the_bootstrap_of_a_set_metric_covers_its_truth():
    """ROC AUC of two normal distributions one deviation apart: Phi(1 / sqrt 2)."""
    truth, rng, n_rounds, hits = float(scipy.stats.norm.cdf(1 / math.sqrt(2))), np.random.default_rng(8), 120, 0
    auc: Any = metrics.roc_auc("y").function
    for _ in range(n_rounds):
        labels = (rng.random(80) < 0.5).astype(float)
        shares = rng.normal(labels, 1.0)

        def on(index: Any, labels: Any = labels, shares: Any = shares) -> float:
            return float(auc(labels[index], shares[index]))

        draws = statistics.resample(80, on, n_resamples=150, seed=2)
        low, high = ends(statistics.percentile_interval(auc(labels, shares), draws, 80))
        hits += low <= truth <= high
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / n_rounds) <= hits / n_rounds
