"""Items that share a group: intervals and tests against statsmodels, and by simulation."""

import math

import dspy
import numpy as np
import pytest
import statsmodels.api as statsmodels

from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation import metrics, statistics
from tests.evaluation.comparing import compare_programs


def pairs(n: int, rng: np.random.Generator) -> list[dspy.Example]:
    return [
        dspy.Example(title_a=f"t{n_a}", title_b=f"u{number}", preferred="A").with_inputs("title_a", "title_b")
        for number, n_a in enumerate(rng.integers(0, n // 3, n))
    ]


def test_the_standard_error_is_statsmodels():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 12, 70)
    values = rng.normal(size=70) + rng.normal(size=12)[groups]
    fitted = statsmodels.OLS(values, np.ones(70)).fit(cov_type="cluster", cov_kwds={"groups": groups})
    assert statistics.standard_error(values.tolist(), groups.tolist()) == pytest.approx(float(fitted.bse[0]))
    found = statistics.clustered_mean_interval(values.tolist(), groups.tolist(), 0.95)
    fitted = statsmodels.OLS(values, np.ones(70)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    assert (found.low, found.high) == pytest.approx(tuple(fitted.conf_int()[0]))


def test_groups_of_one_item_are_items():
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    alone = list(range(8))
    one, other = statistics.clustered_mean_interval(values, alone, 0.95), statistics.mean_interval(values)
    assert (one.low, one.high) == pytest.approx((other.low, other.high))
    draws = statistics.clustered_resample(alone, lambda index: float(np.mean(index)), n_resamples=20, seed=4)
    assert (
        draws.tolist() == statistics.resample(8, lambda index: float(np.mean(index)), n_resamples=20, seed=4).tolist()
    )
    grouped, single = (
        statistics.sign_flips([0.4, 0.1, -0.2], groups, n_resamples=99, seed=0) for groups in ([7, 8, 9], None)
    )
    assert (grouped.p_value, grouped.interval(0.6)) == (single.p_value, single.interval(0.6))


def test_a_share_in_groups_keeps_to_its_bounds_and_is_wider_than_wilsons():
    groups = [number // 5 for number in range(60)]
    together = [float(group % 2) for group in groups]  # a group is all right or all wrong: 12 items, in truth
    found, wilson = statistics.proportion_interval(together, groups, 0.95), statistics.wilson(30, 60)
    assert found.low is not None
    assert found.high is not None
    assert wilson.low is not None
    assert found.low < wilson.low
    twelve = statistics.wilson(6, 12)
    assert found.low == pytest.approx(twelve.low or math.nan, abs=0.04)
    every = statistics.proportion_interval([1.0] * 60, groups, 0.95)
    assert every.high == 1.0
    assert (every.low or 0.0) < (statistics.wilson(12, 12).low or 0.0)
    spread = [float(number % 2) for number in range(60)]  # groups alike: never surer than 60 items allow
    assert statistics.proportion_interval(spread, groups, 0.95).low == pytest.approx(wilson.low, abs=0.02)


def _simulated(rng: np.random.Generator) -> tuple[list[int], list[float], list[float]]:
    """Groups of unequal size; per item a score and a share, both alike within a group, of mean 0 and 0.7."""
    groups = np.repeat(np.arange(30), rng.integers(1, 8, 30))
    shift = rng.normal(size=30)[groups]
    scores = (shift + rng.normal(size=len(groups))) / math.sqrt(2)
    shares = (0.6 * shift + 0.8 * rng.normal(size=len(groups)) < 0.5244).astype(float)  # the 70 % point of a normal
    return groups.tolist(), scores.tolist(), shares.tolist()


def test_intervals_cover_and_the_test_keeps_its_level_where_those_of_independent_items_do_not():
    rng = np.random.default_rng(3)
    n_rounds = 300
    covers = {"mean": 0, "share": 0, "independent": 0}
    alarms = 0
    for seed in range(n_rounds):
        groups, scores, shares = _simulated(rng)
        for name, interval, truth in (
            ("mean", statistics.clustered_mean_interval(scores, groups, 0.95), 0.0),
            ("share", statistics.proportion_interval(shares, groups, 0.95), 0.7),
            ("independent", statistics.mean_interval(scores), 0.0),
        ):
            assert interval.low is not None
            assert interval.high is not None
            covers[name] += interval.low <= truth <= interval.high
        alarms += statistics.sign_flips(scores, groups, n_resamples=199, seed=seed).p_value <= 0.05
    error = 4 * math.sqrt(0.95 * 0.05 / n_rounds)
    assert abs(covers["mean"] / n_rounds - 0.95) <= error
    assert 0.95 - error <= covers["share"] / n_rounds
    assert covers["independent"] / n_rounds < 0.95 - error
    assert abs(alarms / n_rounds - 0.05) <= error


def test_a_comparison_takes_groups_as_they_are():
    rows = pairs(90, np.random.default_rng(1))
    right = {row.title_a: number % 4 > 0 for number, row in enumerate(rows)}

    def program(title_a: str, title_b: str) -> dspy.Prediction:
        return dspy.Prediction(preferred="A" if right[title_a] else "B", probability=0.8)

    def rival(title_a: str, title_b: str) -> dspy.Prediction:
        return dspy.Prediction(preferred="AB"[int(title_b[1:]) % 2], probability=0.8)

    metric: list[metrics.Metric | metrics.SetMetric] = [
        metrics.pairwise_accuracy(),
        metrics.f1("preferred", positive="A"),
        metrics.brier("preferred"),
    ]
    programs = {"a": program, "b": rival}
    plain = compare_programs(programs, rows, metric, n_resamples=150)
    grouped = compare_programs(programs, rows, metric, n_resamples=150, group_by=["title_a", "title_b"])
    assert (plain.n_groups, grouped.n_groups) == (None, len({row.title_a for row in rows}))
    assert [row.scores["pairwise accuracy"].value for row in grouped.programs] == [
        row.scores["pairwise accuracy"].value for row in plain.programs
    ]
    scores = grouped.programs[0].scores
    assert {name: one.method for name, one in scores.items()} == {
        "pairwise accuracy": "clustered Wilson", "F1 of A": "bootstrap", "Brier score": "clustered logit t",
    }  # fmt: skip
    assert {one.test for one in grouped.differences if one.metric != "F1 of A"} == {"sign-flip permutation of groups"}
    assert any("share a text" in one for one in plain.not_checked)
    assert not any("share a text" in one for one in grouped.not_checked)
    assert grouped.decisive is not None
    assert plain.decisive is not None
    assert (grouped.decisive.p_value or 0) > (plain.decisive.p_value or 0)


def test_one_group_of_all_is_refused():
    rows = [dspy.Example(title=f"t{n}", author="one", liked=True).with_inputs("title") for n in range(4)]
    with pytest.raises(UsageError, match="one group"):
        compare_programs({"a": lambda title: {}}, rows, [metrics.accuracy("liked")], group_by="author")


def test_an_item_that_comes_again_is_no_new_evidence():
    """Ten items, each six times, are ten: what one wrong answer of ten says, sixty rows do not say better."""
    few = [dspy.Example(x=str(number), y=True).with_inputs("x") for number in range(10)]
    programs = {
        "right": lambda x: dspy.Prediction(y=True),
        "wrong": lambda x: dspy.Prediction(y=x != "3"),
    }
    once = compare_programs(programs, few, [metrics.accuracy("y")])
    often = compare_programs(programs, few * 6, [metrics.accuracy("y")])
    assert (once.n_groups, often.n_groups, len(often.items)) == (None, 10, 60)
    assert (once.differences[0].verdict, often.differences[0].verdict) == ("undecided", "undecided")
    assert often.differences[0].p_value == 1.0
    assert not any("share a text" in one for one in often.not_checked)
    (row,) = (one for one in often.programs if one.name == "wrong")
    assert (row.scores["accuracy"].low or 0.0) < (statistics.wilson(54, 60).low or 0.0) - 0.1
