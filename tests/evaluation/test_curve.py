"""Learning curves: nested parts, one budget, no job paid for twice, and an honest value of the next examples."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from dspy_finetune import prompts
from dspy_finetune.errors import BudgetError, DataError, EmptyDatasetError, LeakageError, UsageError
from dspy_finetune.evaluation import (
    CurveJobs,
    CurveProgress,
    CurveRun,
    LearningCurve,
    StatisticsOptions,
    learning_curve,
    metrics,
    statistics,
)
from dspy_finetune.evaluation.learning_curve import change_by_more, extrapolate_largest
from dspy_finetune.evaluation.statistics import Interval
from dspy_finetune.evaluation.training_runs import Measured, mean_over_seeds, nested_order
from dspy_finetune.hosts import Host
from dspy_finetune.jobs.records import CLOCK
from tests.fake_hosts import FakeNebius
from tests.fake_openai import FakeOpenAI

MODEL = "gpt-4.1-mini-2025-04-14"
ROWS = [dspy.Example(title=f"Title {n}", is_favorite=n % 4 == 0).with_inputs("title") for n in range(80)]
TEST = [dspy.Example(title=f"Unseen {n}", is_favorite=n % 2 == 0).with_inputs("title") for n in range(60)]
RIGHT = metrics.accuracy("is_favorite")


class Learning(FakeOpenAI):
    """Its models are the more often right the more rows they were trained on; their answers are no chance."""

    def respond(self, body: dict[str, Any]) -> str:
        job = self.jobs[f"ftjob-{int(body['model'].split(':')[-1]):04d}"]
        n_rows = self.contents[job["training_file"]].count(b"\n")
        title = body["messages"][-1]["content"]
        luck = hashlib.sha256(title.encode()).digest()[0] / 256
        is_even = int(title.split()[-1]) % 2 == 0
        return str(is_even == (luck < 1 - 2 / math.sqrt(n_rows))).lower()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Learning]:
    server = Learning()
    server.answer = server.respond
    server.script = ["running", "succeeded"]
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("DSPY_FINETUNE_HOME", str(tmp_path / "home"))
    yield server
    server.close()


@pytest.fixture
def host(fake: Learning) -> Iterator[Host]:
    one = Host.openai()
    yield one
    one.close()


@pytest.fixture(autouse=True)
def clock(fake: Learning, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time moves only when something sleeps."""

    def sleep(seconds: float) -> None:
        fake.now += seconds

    monkeypatch.setattr(CLOCK, "now", lambda: float(fake.now))
    monkeypatch.setattr(CLOCK, "sleep", sleep)


_OF_JOBS = {one.name for one in dataclasses.fields(CurveJobs)}


def curve(fake: Learning, host: Host, **changes: Any) -> LearningCurve:
    arguments: dict[str, Any] = {
        "sizes": [10, 20, 40],
        "models": [MODEL],
        "epochs": [3],
        "host": host,
        "test": TEST,
        "prompt": prompts.binary(),
        "metric": RIGHT,
        "statistics": StatisticsOptions(n_resamples=200, group_by=changes.pop("group_by", None)),
        "train": ROWS,
        "jobs": CurveJobs(**{name: changes.pop(name) for name in _OF_JOBS & set(changes)}),
        **changes,
    }
    return learning_curve(arguments.pop("train"), **arguments)


def rows_of(fake: Learning, job: str) -> list[str]:
    content = fake.contents[fake.jobs[job]["training_file"]].decode()
    return [json.loads(line)["messages"][-2]["content"] for line in content.splitlines()]


def test_each_size_is_a_job_on_nested_rows_with_the_labels_of_the_whole(fake, host):
    told: list[CurveProgress] = []
    found = curve(fake, host, on_progress=told.append)
    assert [(run.n_rows, run.is_new, run.error) for run in found.runs] == [(n, True, None) for n in (10, 20, 40)]
    parts = [rows_of(fake, str(run.job_id)) for run in found.runs]
    assert [len(part) for part in parts] == [10, 20, 40]
    assert set(parts[0]) < set(parts[1]) < set(parts[2])
    liked = {f"Title: {row.title}" for row in ROWS if row.is_favorite}
    assert [abs(len(liked & set(part)) - len(part) / 4) <= 1 for part in parts] == [True] * 3
    values = [point.score.value or 0.0 for point in found.points]
    assert values == sorted(values)
    assert values[0] < values[2]
    assert found.point(MODEL, 20) == found.points[1]
    assert found.cost_usd == pytest.approx(sum(run.cost_usd or math.nan for run in found.runs))
    margin = found.margins[0]
    assert (margin.n_rows, margin.n_more, margin.measured) == (40, 100, values[2])
    assert margin.change.value is not None
    assert margin.change.value > 0
    assert margin.cost_usd == pytest.approx((found.points[-1].cost_usd or math.nan) * 100 / 40)
    assert {one.stage for one in told} == {"training", "asking"}
    assert (told[-1].n_done, told[-1].n_total) == (180, 180)
    assert any("noise between trainings" in one for one in found.not_checked)
    assert LearningCurve.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(DataError, match="not a learning curve"):
        LearningCurve.from_dict({"format": 1})


def test_a_second_call_pays_for_nothing_and_finds_the_same(fake, host):
    first = curve(fake, host)
    n_asked = fake.count("POST /chat/completions")
    second = curve(fake, host)
    assert fake.count("POST /fine_tuning/jobs") == 3
    assert fake.count("POST /chat/completions") == n_asked
    assert [run.is_new for run in second.runs] == [False] * 3
    assert second.points == first.points
    # More sizes: only the new one is trained.
    curve(fake, host, sizes=[10, 20, 40, 60])
    assert fake.count("POST /fine_tuning/jobs") == 4


def test_ctrl_c_while_training_leaves_the_jobs_to_the_next_call(fake, host):
    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curve(fake, host, on_progress=interrupt)
    assert len(fake.jobs) == 3
    found = curve(fake, host)
    assert len(fake.jobs) == 3
    assert [run.error for run in found.runs] == [None] * 3


def test_nothing_is_started_above_the_budget(fake, host):
    with pytest.raises(BudgetError, match=r"3 jobs cost \$.*10 rows \$"):
        curve(fake, host, max_usd=0.000001)
    for max_usd in (5.0, None):
        with pytest.raises(BudgetError, match="unheard-of"):
            curve(fake, host, models=["unheard-of"], max_usd=max_usd, allow_unknown_model=True)
    assert fake.count("POST /files") == 0
    whole = sum(run.estimated_cost_usd or math.nan for run in curve(fake, host).runs)
    assert [run.error for run in curve(fake, host, max_usd=whole).runs] == [None] * 3


def test_a_bill_above_the_plan_stops_what_comes_after(fake, host):
    succeed = fake.succeed

    def dear(job):
        succeed(job)
        job["trained_tokens"] = 10**9

    fake.succeed = dear
    found = curve(fake, host, max_usd=1.0, n_concurrent=1)
    assert len(fake.jobs) == 1
    assert [run.job_id is None for run in found.runs] == [False, True, True]
    assert "not started: the plan costs" in (found.runs[1].error or "")
    assert any("2 of 3 jobs gave no model" in one for one in found.not_checked)


def test_a_failed_job_is_a_gap_and_can_be_tried_again(fake, host):
    fake.script = ["failed"]
    gap = curve(fake, host, sizes=[10, 20])
    assert [run.model for run in gap.runs] == [None, None]
    assert "Line 3 is wrong" in (gap.runs[0].error or "")
    assert (gap.points, gap.margins) == ((), ())
    fake.script = ["succeeded"]
    assert curve(fake, host, sizes=[10, 20]).points == ()
    again = curve(fake, host, sizes=[10, 20], retry_failed=True)
    assert [run.error for run in again.runs] == [None, None]
    assert len(fake.jobs) == 4


def test_models_epochs_and_seeds_are_a_sweep(fake, host):
    nano = "gpt-4.1-nano-2025-04-14"
    found = curve(fake, host, sizes=[10], models=[MODEL, nano], epochs=[1, 2], seeds=(0, 1), test=TEST[:20])
    assert len(found.runs) == 8
    assert {point.n_runs for point in found.points} == {2}
    assert {(one.base_model, one.n_epochs) for one in found.points} == {(m, n) for m in (MODEL, nano) for n in (1, 2)}
    assert found.margins == ()  # of one size there is no slope
    assert not any("noise between trainings" in one for one in found.not_checked)


def test_set_metrics_and_a_program_of_ones_own_are_measured_too(fake, host):
    def make(model):
        return lambda title: dspy.Prediction(is_favorite=int(title.split()[1]) % 3 == 0)

    found = curve(fake, host, sizes=[10, 20], metric=metrics.f1("is_favorite"), predictor=make)
    assert found.metric.kind == "set"
    assert found.points[0].score.value == found.points[1].score.value
    assert (found.margins[0].change.low, found.margins[0].change.high) == (0.0, 0.0)


def test_test_items_that_share_a_group_are_taken_so(fake, host):
    def make(model):
        return lambda title: dspy.Prediction(is_favorite=int(title.split()[1]) % 20 < 10)

    grouped = [dspy.Example(**row, ten=int(row.title.split()[1]) // 10).with_inputs("title") for row in TEST]
    apart = curve(fake, host, sizes=[10], predictor=make).points[0].score
    together = curve(fake, host, sizes=[10], predictor=make, test=grouped, group_by="ten").points[0].score
    assert (apart.method, together.method) == ("Wilson", "clustered Wilson")
    assert apart.value == together.value


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"sizes": [10, 81]}, UsageError, "80 training rows"),
        ({"sizes": [10, 10]}, UsageError, "different"),
        ({"seeds": ()}, UsageError, "seeds"),
        ({"n_concurrent": 0}, UsageError, "n_concurrent"),
        ({"test": []}, EmptyDatasetError, "test"),
        ({"train": [{"title": "x"}]}, UsageError, "dspy.Examples"),
        ({"test": ROWS[:3]}, LeakageError, "3 items in both sets"),
        ({"sizes": [2, 20]}, DataError, "refuse"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_uploaded(fake, host, changes, error, said):
    with pytest.raises(error, match=said):
        curve(fake, host, **changes)
    assert fake.count("POST /files") == 0


def test_orders_are_seeded_and_fair_at_every_length():
    orders = [nested_order(ROWS, label="is_favorite", seed=seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(80))
    for length in range(1, 81):
        assert abs(sum(ROWS[index].is_favorite for index in orders[0][:length]) - length / 4) <= 1
    assert sorted(nested_order(ROWS, label=None, seed=3)) == list(range(80))


def measured(n_rows: int, value: float, draws: statistics.Floats, seed: int = 0) -> Measured:
    interval = Interval(value=value, low=None, high=None, n=100, method="t")
    return Measured(n_rows=n_rows, seed=seed, value=value, draws=draws, interval=interval)


def test_the_line_is_numpys_and_extrapolates_what_lies_on_it():
    sizes, noise = [50, 100, 200, 400], np.random.default_rng(0).normal(0, 0.01, 500)
    values = [0.9, 0.82, 0.77, 0.69]
    runs = [measured(size, value, value + noise) for size, value in zip(sizes, values, strict=True)]
    slope, _ = np.polyfit(np.log(sizes), values, 1)
    assert change_by_more(runs, 100, confidence=0.95).value == pytest.approx(slope * math.log(500 / 400))
    straight = [measured(size, 1 - 0.1 * math.log(size), noise) for size in sizes]
    assert extrapolate_largest(straight) == pytest.approx(1 - 0.1 * math.log(400))
    assert extrapolate_largest(straight[:2]) is None
    assert change_by_more(straight[:1], 100, confidence=0.95).value is None


def mean_of(scores: statistics.Floats) -> Callable[[Any], float]:
    return lambda index: float(scores[index].mean())


def test_the_change_covers_the_truth_with_noise_of_items_and_of_trainings():
    rng = np.random.default_rng(5)
    sizes, truth, hits, n_rounds = [50, 100, 200], -0.05 * math.log(300 / 200), 0, 150
    for _ in range(n_rounds):
        items = rng.normal(0, 0.3, 100)
        runs = []
        for size in sizes:
            for seed in range(2):
                scores = 1 - 0.05 * math.log(size) + rng.normal(0, 0.02) + items + rng.normal(0, 0.1, 100)
                draws = statistics.resample(100, mean_of(scores), n_resamples=120, seed=1)
                runs.append(measured(size, float(scores.mean()), draws, seed))
        found = change_by_more(runs, 100, confidence=0.95)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    # The wider of two intervals: never below its confidence but for the simulation's own error.
    assert hits / n_rounds >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / n_rounds)


def test_several_seeds_widen_the_interval_by_the_noise_between_trainings():
    draws = np.random.default_rng(1).normal(0, 0.01, 2000)
    runs = [measured(100, value, value + draws, seed) for seed, value in enumerate((0.6, 0.7, 0.8))]
    found = mean_over_seeds(runs, confidence=0.95, seed=0)
    assert found.value == pytest.approx(0.7)
    assert found.low is not None
    assert found.high is not None
    # The mean of three draws of three values has the deviation sqrt(2/3) * 0.1 / sqrt(3) = 0.047.
    assert 0.12 < found.high - found.low < 0.24
    assert mean_over_seeds(runs[:1], confidence=0.95, seed=0) == runs[0].interval


def test_a_job_that_was_not_started_cost_nothing():
    run = CurveRun(
        base_model="m", n_epochs=1, n_rows=1, seed=0, job_id=None, model=None, is_new=False, estimated_cost_usd=2.0,
        cost_usd=None, score=None, n_parse_failures=0, n_failed=0, error="x",
    )  # fmt: skip
    assert run.paid_usd == 0.0


@pytest.mark.parametrize(
    ("metric", "error"),
    [(metrics.accuracy("favourite"), UsageError), (metrics.mean_absolute_error("title"), DataError)],
)
def test_what_the_test_labels_make_impossible_is_told_before_anything_is_trained(fake, host, metric, error):
    with pytest.raises(error, match=metric.name):
        curve(fake, host, metric=metric)
    assert fake.jobs == {}


def test_several_hosts_are_one_plan_within_one_budget(
    fake: Learning, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FakeNebius()
    other.answer = lambda body: str(int(body["messages"][-1]["content"].split()[-1]) % 2 == 0).lower()
    other.script = ["succeeded"]
    monkeypatch.setenv("NEBIUS_BASE_URL", other.url)
    monkeypatch.setenv("NEBIUS_API_KEY", "k")
    nebius = Host.nebius()
    models = [MODEL, ("meta-llama/Llama-3.1-8B-Instruct", nebius)]
    with pytest.raises(BudgetError, match="the 6 jobs cost"):
        curve(fake, host, models=models, max_usd=0.0001)
    assert not fake.jobs
    assert not other.jobs
    found = curve(fake, host, models=models, max_usd=5)
    nebius.close()
    other.close()
    assert (len(fake.jobs), len(other.jobs)) == (3, 3)
    assert {run.base_model for run in found.runs} == {MODEL, "meta-llama/Llama-3.1-8B-Instruct on nebius"}
    assert all(run.score is not None for run in found.runs)
    assert [run.score.value for run in found.runs if run.score and "nebius" in run.base_model] == [1.0] * 3
    # Each run's cost is its own host's price: together they are what was held to the budget.
    assert sum(run.estimated_cost_usd or 0 for run in found.runs) < 5


def test_without_models_the_hosts_own_is_trained(fake, host):
    found = curve(fake, host, models=None, sizes=[10], epochs=None, test=TEST[:4])
    assert found.point(host.base_model, 10) == found.points[0]


def test_a_model_that_answers_nothing_has_no_score_and_says_why(fake, host):
    def make(model):
        def broken(title):
            raise RuntimeError("the head is broken")

        return broken

    found = curve(
        fake, host, sizes=[10], metric=metrics.log_loss("is_favorite"), predictor=make, epochs=[3], test=TEST[:4]
    )
    assert found.points == ()
    assert f"{MODEL}, 3 epochs, 10 rows, seed 0: no score: RuntimeError: the head is broken" in str(found)
    assert not any("gave no model" in one for one in found.not_checked)
