"""Nebius Token Factory: each request held to its published description, one paid job whatever dies, clear refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_finetune.errors import HostError, ModelGoneError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.protocol import INTENT_KEY
from dspy_finetune.jobs import Journal, attach, list_jobs, list_models, plan
from dspy_finetune.jobs.records import CLOCK, journal_of
from dspy_finetune.predictors import OpenAIPredictor
from dspy_finetune.prompts import PromptFormat
from tests.fake_hosts import NEBIUS_JOB, FakeNebius, held_to
from tests.jobs.conftest import FakeTime, write_dpo, write_sft

BASE = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture
def nebius(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNebius]:
    server = FakeNebius(key="nebius-key")
    monkeypatch.setenv("NEBIUS_BASE_URL", server.url)
    monkeypatch.setenv("NEBIUS_API_KEY", "nebius-key")
    clock = FakeTime(server)
    monkeypatch.setattr(CLOCK, "now", clock.now)
    monkeypatch.setattr(CLOCK, "sleep", clock.sleep)
    yield server
    server.close()


@pytest.fixture
def host(nebius: FakeNebius) -> Iterator[Host]:
    one = Host.nebius()
    yield one
    one.close()


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_sft(tmp_path / "train.jsonl")


def test_from_plan_to_answer(host: Host, nebius: FakeNebius, train: Path) -> None:
    made = plan(
        train,
        base_model=BASE,
        host=host,
        suffix="titles",
        seed=3,
        hyperparameters={"learning_rate": 2e-5, "lora_rank": 16},
    )
    job = made.start(allow_unknown_price=True)
    sent = next(body for route, body in nebius.requests if route == "POST /fine_tuning/jobs")
    assert sent["hyperparameters"] == {"n_epochs": 5, "learning_rate": 2e-5, "lora": True, "lora_r": 16}
    assert sent["seed"] == 3
    assert sent["suffix"].startswith("titles-df")
    model = job.wait()
    assert model.id == f"{BASE}-LoRa:{sent['suffix']}-Ab01"
    assert model.base == BASE
    # The price is that of a model below 20 billion parameters, of the tokens that the host counted.
    assert model.cost_usd == pytest.approx(1200 * 0.40 / 1e6)
    nebius.reply = "true"
    prompt = PromptFormat("title -> liked: bool")
    asked = OpenAIPredictor(prompt, model, host=host)(title="Sailing")
    assert asked.liked is True
    assert [one.id for one in list_models(host, today=CLOCK.today())] == [model.id]
    assert [one["step"] for one in job.metrics()] == [1]
    assert [one.step for one in job.checkpoints()] == [1, 2]


def test_a_second_start_finds_the_job_with_and_without_the_journal(
    host: Host, nebius: FakeNebius, train: Path, tmp_path: Path
) -> None:
    made = plan(train, base_model=BASE, host=host)
    first = made.start(allow_unknown_price=True)
    again = made.start(allow_unknown_price=True)
    elsewhere = made.start(allow_unknown_price=True, journal=Journal(tmp_path / "another.jsonl"))
    assert first.id == again.id == elsewhere.id
    assert nebius.count("POST /fine_tuning/jobs") == 1
    assert list_jobs(host=host)[0].facts.metadata[INTENT_KEY] == made.intent[:12]


def test_a_reply_that_is_lost_makes_no_second_job(host: Host, nebius: FakeNebius, train: Path) -> None:
    nebius.drop("POST /fine_tuning/jobs")
    job = plan(train, base_model=BASE, host=host).start(allow_unknown_price=True)
    assert len(nebius.jobs) == 1
    assert job.id in nebius.jobs


def test_a_rate_as_a_multiplier_is_refused_in_one_line(host: Host, train: Path) -> None:
    with pytest.raises(UsageError, match=r"absolute learning_rate.*no learning_rate_multiplier=2e-05") as caught:
        plan(train, base_model=BASE, host=host, hyperparameters={"learning_rate_multiplier": 2e-5})
    assert "\n" not in str(caught.value)


def test_elsewhere_a_multiplier_that_looks_like_a_rate_is_warned_of(train: Path) -> None:
    made = plan(
        train,
        base_model="gpt-4.1-mini-2025-04-14",
        host=Host.openai(),
        hyperparameters={"learning_rate_multiplier": 2e-5},
    )
    assert any("not the rate itself" in one for one in made.warnings)
    with pytest.raises(UsageError, match="learning_rate_multiplier, a factor"):
        plan(train, base_model="gpt-4.1-mini-2025-04-14", host=Host.openai(), hyperparameters={"learning_rate": 2e-5})


@pytest.mark.parametrize(
    ("name", "value"), [("n_epochs", 21), ("batch_size", 65), ("lora_rank", 4), ("learning_rate", 2), ("lora", "yes")]
)
def test_a_value_outside_the_description_is_refused_before_anything_is_sent(
    host: Host, nebius: FakeNebius, train: Path, name: str, value: object
) -> None:
    with pytest.raises(UsageError, match=f"{name}="):
        plan(train, base_model=BASE, host=host, hyperparameters={name: value})
    assert nebius.requests == []


def test_preferences_are_refused_as_the_description_has_no_such_method(host: Host, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be trained by dpo on nebius"):
        plan(write_dpo(tmp_path / "pairs.jsonl"), base_model=BASE, host=host, method="dpo")


def test_a_suffix_leaves_room_for_the_digest(host: Host, train: Path) -> None:
    with pytest.raises(UsageError, match="takes up to 44"):
        plan(train, base_model=BASE, host=host, suffix="s" * 45)
    made = plan(train, base_model=BASE, host=host, suffix="s" * 44)
    job = made.start(allow_unknown_price=True)
    assert job.host == host


def test_a_base_that_is_not_served_gives_its_checkpoint(host: Host, train: Path) -> None:
    job = plan(train, base_model="Qwen/Qwen3-8B", host=host).start(allow_unknown_price=True)
    *_, last = job.follow()
    assert last.facts.fine_tuned_model == f"{job.id}:ftckpt_{job.id}_2"


def test_a_model_that_cannot_be_asked_for_is_not_told_as_a_job_that_is_gone(
    host: Host, nebius: FakeNebius, train: Path
) -> None:
    job = plan(train, base_model=BASE, host=host).start(allow_unknown_price=True)
    nebius.script = ["succeeded"]
    nebius.fail("GET /v0/models", status=404, times=9)
    with pytest.raises(HostError, match=r"has succeeded, and its model cannot be asked for .*\.weights\(") as caught:
        list(job.follow())
    assert "knows the job" not in str(caught.value)


def test_somebody_elses_job_is_looked_at_and_not_published(host: Host, nebius: FakeNebius) -> None:
    made = nebius.create(
        {"model": BASE, "training_file": "file-1", "suffix": "theirs", "hyperparameters": {"lora": True}}
    )
    nebius.script = ["succeeded"]
    assert attach(made["id"], host=host).facts.fine_tuned_model == f"{made['id']}:ftckpt_{made['id']}_2"
    assert nebius.custom == {}


def test_failures_are_one_line_each(
    host: Host, nebius: FakeNebius, train: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HostError, match="offers cancel alone"):
        plan(train, base_model=BASE, host=host).start(allow_unknown_price=True).pause()
    with pytest.raises(ModelGoneError, match="does not exist"):
        _ask(host, "gone")
    monkeypatch.setenv("NEBIUS_API_KEY", "wrong-key-of-nebius")
    with pytest.raises(HostError, match="check the key") as caught:
        list_jobs(host=Host.nebius())
    assert "wrong-key-of-nebius" not in str(caught.value)
    monkeypatch.delenv("NEBIUS_API_KEY")
    with pytest.raises(HostError, match="set NEBIUS_API_KEY"):
        list_jobs(host=Host.nebius())


def _ask(host: Host, model: str) -> None:
    with host.talking("ask for the model"):
        host.api().model(model)


def test_the_journal_holds_no_key(host: Host, train: Path) -> None:
    plan(train, base_model=BASE, host=host).start(allow_unknown_price=True)
    text = journal_of(host).path.read_text(encoding="utf-8")
    assert "nebius-key" not in text
    assert json.loads(text.splitlines()[0])["host"]["kind"] == "nebius"


def test_the_mock_refuses_what_the_examples_write() -> None:
    """The double itself: the field of the cookbook's example is not in the description."""
    wrong = held_to(
        NEBIUS_JOB, {"model": BASE, "training_file": "f", "hyperparameters": {"learning_rate_multiplier": 2e-5}}
    )
    assert wrong is not None
    assert "learning_rate_multiplier" in wrong
