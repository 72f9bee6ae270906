"""Sweeps: every candidate within one budget, chosen by validation rows, and no figure lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_finetune import prompts
from dspy_finetune.errors import BudgetError, DataError, EmptyDatasetError, LeakageError, UsageError
from dspy_finetune.evaluation import CurveJobs, StatisticsOptions, Sweep, metrics, sweep
from dspy_finetune.hosts import Host
from dspy_finetune.jobs.records import CLOCK
from tests.fake_hosts import FakeNebius
from tests.fake_openai import FakeOpenAI

MODEL = "gpt-4.1-mini-2025-04-14"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def rows(name: str, n: int) -> list[dspy.Example]:
    return [dspy.Example(title=f"{name} {k}", is_favorite=k % 2 == 0).with_inputs("title") for k in range(n)]


TRAIN, VALIDATION, TEST = rows("Title", 20), rows("Held", 40), rows("Unseen", 30)


class Settled(FakeOpenAI):
    """A model of two epochs is right about every validation row and wrong about every test row; of one, about half."""

    def respond(self, body: dict[str, Any]) -> str:
        job = self.jobs[f"ftjob-{int(body['model'].split(':')[-1]):04d}"]
        title = body["messages"][-1]["content"]
        number = int(title.split()[-1])
        is_even = number % 2 == 0
        if job["method"]["supervised"]["hyperparameters"]["n_epochs"] == 2:
            return str(is_even == ("Held" in title)).lower()
        return str(is_even == (number % 4 < 2)).lower()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Settled]:
    server = Settled()
    server.answer = server.respond
    server.script = ["running", "succeeded"]
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("DSPY_FINETUNE_HOME", str(tmp_path / "home"))

    def sleep(seconds: float) -> None:
        server.now += seconds

    monkeypatch.setattr(CLOCK, "now", lambda: float(server.now))
    monkeypatch.setattr(CLOCK, "sleep", sleep)
    yield server
    server.close()


@pytest.fixture
def host(fake: Settled) -> Iterator[Host]:
    one = Host.openai()
    yield one
    one.close()


def swept(host: Host, **changes: Any) -> Sweep:
    arguments: dict[str, Any] = {
        "models": MODEL,
        "hyperparameters": {"n_epochs": [1, 2]},
        "host": host,
        "validation": VALIDATION,
        "prompt": prompts.binary(),
        "metric": metrics.accuracy("is_favorite"),
        "statistics": StatisticsOptions(n_resamples=200),
        **changes,
    }
    return sweep(arguments.pop("train", TRAIN), **arguments)


def asked(fake: Settled, word: str) -> int:
    chats = [body for route, body in fake.requests if route == "POST /chat/completions"]
    return sum(word in body["messages"][-1]["content"] for body in chats)


def test_the_best_is_chosen_by_validation_rows_and_alone_asked_about_test_rows(fake: Settled, host: Host) -> None:
    """The chosen one is wrong about every test row: it stays chosen, and the report says so."""
    found = swept(host, test=TEST)
    best, other = found.candidates
    assert found.best == best
    assert best.hyperparameters == {"n_epochs": 2}
    assert (best.score and best.score.value, other.score and other.score.value) == (1.0, 0.5)
    assert other.behind is not None
    assert other.behind.value == -0.5
    assert other.behind.high is not None
    assert other.behind.high < 0
    assert (found.test_score and found.test_score.value, found.n_test) == (0.0, 30)
    assert (asked(fake, "Held"), asked(fake, "Unseen")) == (80, 30)
    assert str(found.model) == found.runs[1].model
    assert any("which chose nothing: accuracy 0.000" in one for one in found.sentences)
    assert not any("Not clearly worse" in one for one in found.sentences)


def test_each_host_tries_what_it_has_within_one_budget(
    fake: Settled, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FakeNebius()
    other.answer = lambda body: str(int(body["messages"][-1]["content"].split()[-1]) % 2 == 0).lower()
    other.script = ["succeeded"]
    monkeypatch.setenv("NEBIUS_BASE_URL", other.url)
    monkeypatch.setenv("NEBIUS_API_KEY", "k")
    nebius = Host.nebius()
    values = {"n_epochs": [1, 2], "learning_rate": [1e-5, 1e-4], "learning_rate_multiplier": [2.0]}
    both: dict[str, Any] = {"models": [MODEL, (LLAMA, nebius)], "hyperparameters": values}
    with pytest.raises(BudgetError, match=r"the 6 jobs cost .*on nebius \$.*fewer models, values or seeds"):
        swept(host, **both, max_usd=0.0001)
    assert not fake.jobs
    assert not other.jobs
    found = swept(host, **both, max_usd=5)
    assert [dict(run.hyperparameters) for run in found.runs] == [
        *({"n_epochs": n, "learning_rate_multiplier": 2.0} for n in (1, 2)),
        *({"n_epochs": n, "learning_rate": rate} for n in (1, 2) for rate in (1e-5, 1e-4)),
    ]
    sent = [body["hyperparameters"] for route, body in other.requests if route == "POST /fine_tuning/jobs"]
    assert {(one["n_epochs"], one["learning_rate"]) for one in sent} == {(n, r) for n in (1, 2) for r in (1e-5, 1e-4)}
    # All but one are right about every row: the cheaper one is taken.
    costs = [one.cost_usd or 0.0 for one in found.candidates[:5]]
    assert costs == sorted(costs)
    assert found.candidates[-1].hyperparameters == {"n_epochs": 1, "learning_rate_multiplier": 2.0}
    assert f"{LLAMA} on nebius" in found.table()
    assert any(one.startswith("Not clearly worse: ") for one in found.sentences)
    n_asked = fake.count("POST /chat/completions")
    again = swept(host, **both, max_usd=5)
    assert (len(fake.jobs), len(other.jobs), fake.count("POST /chat/completions")) == (2, 4, n_asked)
    assert again.candidates == found.candidates
    assert [run.is_new for run in again.runs] == [False] * 6
    nebius.close()
    other.close()


def test_a_candidate_without_a_model_keeps_its_reason_and_stands_last(
    fake: Settled, host: Host, tmp_path: Path
) -> None:
    def fail_two(job: dict[str, Any]) -> None:
        if job["method"]["supervised"]["hyperparameters"]["n_epochs"] == 2:
            job.update(status="failed", error={"code": "bad", "message": "Line 3 is wrong.", "param": None})
        else:
            FakeOpenAI.succeed(fake, job)

    fake.succeed = fail_two  # type: ignore[method-assign]
    found = swept(host)
    assert [one.score is None for one in found.candidates] == [False, True]
    assert "n_epochs=2, seed 0: no model: " in str(found)
    assert any("1 of 2 jobs gave no model" in one for one in found.not_checked)
    assert any("flattered by the choice" in one for one in found.not_checked)
    found.to_json(tmp_path / "sweep.json")
    assert Sweep.from_json(tmp_path / "sweep.json") == found
    assert "n\\_epochs" in found.markdown()
    with pytest.raises(DataError, match="not a sweep"):
        Sweep.from_dict({**found.to_dict(), "format": 9})
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"other\.json: this is not a sweep"):
        Sweep.from_json(tmp_path / "other.json")


def test_seeds_are_one_candidate_and_the_better_model_of_the_best_is_kept(fake: Settled, host: Host) -> None:
    found = swept(host, jobs=CurveJobs(seeds=(0, 1)), validation=VALIDATION[:8])
    assert [(one.hyperparameters["n_epochs"], one.n_runs) for one in found.candidates] == [(2, 2), (1, 2)]
    assert [(run.hyperparameters["n_epochs"], run.seed) for run in found.runs] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    assert found.candidates[0].cost_usd == pytest.approx(sum(found.runs[at].cost_usd or 0.0 for at in (1, 3)))
    assert str(found.model) == found.runs[1].model


def test_an_error_is_best_when_it_is_least(fake: Settled, host: Host) -> None:
    metric = metrics.Metric(
        name="wrong", field="is_favorite", function=lambda one, two: float(one != two), higher_is_better=False
    )
    assert [one.hyperparameters["n_epochs"] for one in swept(host, metric=metric).candidates] == [2, 1]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"validation": []}, EmptyDatasetError, "20 training and 0 validation"),
        ({"test": []}, EmptyDatasetError, "0 test"),
        ({"validation": TRAIN[:2]}, LeakageError, "2 items in both sets"),
        ({"test": VALIDATION[:1]}, LeakageError, "1 item"),
        ({"hyperparameters": {"n_epochs": []}}, UsageError, "holds no value"),
        ({"hyperparameters": {"learning_rate": [1e-5]}}, UsageError, "no host of this sweep has .*learning_rate"),
        ({"hyperparameters": {"n_epochs": [0]}}, UsageError, "n_epochs=0"),
        ({"jobs": CurveJobs(hyperparameters={"n_epochs": 1})}, UsageError, "leave one out"),
        ({"models": []}, UsageError, "names no model"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_uploaded(
    fake: Settled, host: Host, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        swept(host, **changes)
    assert fake.count("POST /files") == 0
