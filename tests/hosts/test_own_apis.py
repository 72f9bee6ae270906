"""Together and Fireworks: from plan to migration on doubles that hold each request to the published description."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_finetune.errors import HostError, JobFailedError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.fireworks import _job as fireworks_job
from dspy_finetune.hosts.protocol import INTENT_KEY
from dspy_finetune.hosts.together import TogetherApi
from dspy_finetune.hosts.together import _job as together_job
from dspy_finetune.jobs import Journal, attach, list_jobs, list_models, plan, sft_then_dpo
from dspy_finetune.jobs.model_export import export_model
from dspy_finetune.jobs.records import CLOCK
from dspy_finetune.migration import migrate
from dspy_finetune.predictors import OpenAIPredictor
from dspy_finetune.prompts import PromptFormat
from tests.fake_hosts import FakeFireworks, FakeTogether
from tests.jobs.conftest import FakeTime, write_dpo, write_sft

Fake = FakeTogether | FakeFireworks
CREATE = {"together": "POST /fine-tunes", "fireworks": "POST /*/*/supervisedFineTuningJobs"}


@pytest.fixture(params=["together", "fireworks"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    kind = FakeTogether if request.param == "together" else FakeFireworks
    server = kind(key="own-key")
    url = server.inference_url if isinstance(server, FakeFireworks) else server.url
    monkeypatch.setenv(f"{request.param.upper()}_BASE_URL", url)
    monkeypatch.setenv(f"{request.param.upper()}_API_KEY", "own-key")
    clock = FakeTime(server)
    monkeypatch.setattr(CLOCK, "now", clock.now)
    monkeypatch.setattr(CLOCK, "sleep", clock.sleep)
    yield server
    server.close()


@pytest.fixture
def host(fake: Fake) -> Iterator[Host]:
    one = Host("together" if isinstance(fake, FakeTogether) else "fireworks")
    yield one
    one.close()


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_sft(tmp_path / "train.jsonl")


def sent(fake: Fake) -> list[dict[str, Any]]:
    """The bodies of the requests that made a job."""
    return [body for route, body in fake.requests if route in {CREATE[_name(fake)], "POST /*/*/dpoJobs"}]


def _name(fake: Fake) -> str:
    return "together" if isinstance(fake, FakeTogether) else "fireworks"


def test_sft_from_plan_to_answer(host: Host, fake: Fake, train: Path, tmp_path: Path) -> None:
    made = plan(
        train,
        validation=write_sft(tmp_path / "held_out.jsonl", seed=1),
        base_model=host.base_model,
        host=host,
        suffix="titles",
        hyperparameters={"learning_rate": 2e-5, "lora_rank": 16},
    )
    looks = list(made.start(allow_unknown_price=True).follow())
    assert [one.status for one in looks][-1] == "succeeded"
    job = attach(looks[-1].facts.id, host=host)
    model = job.model()
    assert "titles-df" in model.id
    assert (model.base, model.method, model.trained_tokens) == (host.base_model, "sft", 1200)
    assert model.hyperparameters["n_epochs"] == 5
    assert [one.id for one in list_models(host, today=CLOCK.today())] == [model.id]
    answer = OpenAIPredictor(PromptFormat("title -> liked: bool"), model, host=host)(title="Sailing")
    assert answer.liked is True


def test_dpo_says_its_method_in_the_hosts_own_words(host: Host, fake: Fake, tmp_path: Path) -> None:
    pairs = write_dpo(tmp_path / "pairs.jsonl")
    job = plan(pairs, base_model=host.base_model, method="dpo", host=host, hyperparameters={"beta": 0.2}).start(
        allow_unknown_price=True
    )
    (body,) = sent(fake)
    if isinstance(fake, FakeTogether):
        assert body["training_method"] == {"method": "dpo", "dpo_beta": 0.2}
    else:
        assert body["lossConfig"] == {"method": "DPO", "dpo": {"beta": 0.2}}
    assert job.facts.method == "dpo"
    *_, last = job.follow()
    assert last.facts.fine_tuned_model


def test_sft_then_dpo_trains_on_from_the_first_model(host: Host, fake: Fake, train: Path, tmp_path: Path) -> None:
    pairs = write_dpo(tmp_path / "pairs.jsonl")
    both = sft_then_dpo(pairs, sft=train, base_model=host.base_model, host=host)
    both.start(allow_unknown_price=True).wait()
    first, second = sent(fake)
    tuned = next(one for one in fake.tuned.values())
    if isinstance(fake, FakeTogether):
        assert second["from_checkpoint"] == tuned["model_output_name"]
        assert second["model"] == first["model"]
    else:
        assert second["trainingConfig"]["warmStartFrom"] == f"accounts/me/models/{tuned['outputModel']}"
        assert "baseModel" not in second["trainingConfig"]


def test_a_second_start_finds_the_job_with_and_without_the_journal(
    host: Host, fake: Fake, train: Path, tmp_path: Path
) -> None:
    made = plan(train, base_model=host.base_model, host=host)
    first = made.start(allow_unknown_price=True)
    again = made.start(allow_unknown_price=True)
    elsewhere = made.start(allow_unknown_price=True, journal=Journal(tmp_path / "another.jsonl"))
    assert first.id == again.id == elsewhere.id
    assert len(sent(fake)) == 1
    assert list_jobs(host=host)[0].facts.metadata[INTENT_KEY] == made.intent[:12]


def test_a_reply_that_is_lost_makes_no_second_job(host: Host, fake: Fake, train: Path) -> None:
    fake.drop(CREATE[_name(fake)])
    job = plan(train, base_model=host.base_model, host=host).start(allow_unknown_price=True)
    assert len(fake.tuned) == 1
    assert job.is_new


def test_a_process_that_dies_in_the_request_leaves_one_job(host: Host, fake: Fake, train: Path) -> None:
    hold = fake.hold(CREATE[_name(fake)], phase="after")
    code = (
        "import sys; from dspy_finetune.hosts import Host; from dspy_finetune.jobs import plan\n"
        "host = Host(sys.argv[1]); made = plan(sys.argv[2], base_model=host.base_model, host=host)\n"
        "made.start(allow_unknown_price=True)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, _name(fake), str(train)], env=dict(os.environ))
    assert hold.reached.wait(60)
    child.kill()
    child.wait()
    hold.release()
    job = plan(train, base_model=host.base_model, host=host).start(allow_unknown_price=True)
    assert not job.is_new
    assert len(fake.tuned) == len(sent(fake)) == 1


def test_a_job_that_fails_says_why(host: Host, fake: Fake, train: Path) -> None:
    fake.script = ["error"] if isinstance(fake, FakeTogether) else ["FAILED"]
    with pytest.raises(JobFailedError, match="Line 3 is wrong"):
        plan(train, base_model=host.base_model, host=host).start(allow_unknown_price=True).wait()


def test_bad_input_is_one_line(host: Host, fake: Fake, train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="absolute learning_rate"):
        plan(train, base_model=host.base_model, host=host, hyperparameters={"learning_rate_multiplier": 2.0})
    with pytest.raises(UsageError, match="by a download of its own"):
        export_model({"id": "mine"}, train.parent / "out", host=host)
    with pytest.raises(UsageError, match="is not known to train gpt"):
        plan(train, base_model="gpt-4.1-mini", host=host)
    job = plan(train, base_model=host.base_model, host=host).start(allow_unknown_price=True)
    with pytest.raises(HostError, match="cannot pause"):
        job.pause()
    with pytest.raises(HostError, match="does not know the job"):
        attach("ft-none" if isinstance(fake, FakeTogether) else "dpoJobs/none", host=host)
    assert job.cancel().status == "cancelled"
    variable = f"{_name(fake).upper()}_API_KEY"
    monkeypatch.setenv(variable, "another-key-of-mine")
    with pytest.raises(HostError, match="check the key") as caught:
        list_jobs(host=Host(host.kind.name))
    assert "another-key-of-mine" not in str(caught.value)
    monkeypatch.delenv(variable)
    with pytest.raises(HostError, match=f"set {variable}"):
        list_jobs(host=Host(host.kind.name))


def test_what_the_host_does_not_take_is_said(host: Host, fake: Fake, train: Path) -> None:
    made = plan(train, base_model=host.base_model, host=host, seed=3, metadata={"who": "me"})
    assert any("keeps no metadata" in one for one in made.warnings)
    assert any("takes no seed" in one for one in made.warnings) == isinstance(fake, FakeFireworks)
    if isinstance(fake, FakeFireworks):
        with pytest.raises(UsageError, match="adapters alone"):
            plan(train, base_model=host.base_model, host=host, hyperparameters={"lora": False})


def test_a_model_is_moved_from_another_host_and_on_to_the_next(host: Host, fake: Fake, train: Path) -> None:
    model = plan(train, base_model=host.base_model, host=host).start(allow_unknown_price=True).wait()
    moved = migrate(model, to=Host.local())
    (there,) = moved.plan.plans
    assert moved.plan.old.model == model.id
    assert there.train.n_rows == 20
    assert there.base_model == "smollm2-135m-instruct"
    assert any("lora=True: local has no such setting" in one for one in moved.plan.warnings)
    back = migrate(model, to=Host.nebius())
    # The same base where the new host trains it, else the new host's usual one.
    same = isinstance(fake, FakeTogether)
    assert back.plan.plans[0].base_model == ("Qwen/Qwen3-8B" if same else "meta-llama/Llama-3.1-8B-Instruct")


def test_together_endpoints_and_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeTogether()
    monkeypatch.setenv("TOGETHER_API_KEY", "k-of-together")
    host = Host.together(base_url=server.url)
    api = host.api()
    assert isinstance(api, TogetherApi)
    made = api.deploy("me/model", hardware="1x_nvidia_h100_80gb_sxm")
    assert made["name"] == "me/me/model-1"
    api.undeploy(made["id"])
    assert server.endpoints == {}
    assert api.weights("ft-0001") == b"adapter of ft-0001"
    assert api.weights("ft-0001", merged=True) == b"merged of ft-0001"
    host.close()
    server.close()


@pytest.mark.parametrize("fake", ["together"], indirect=True)  # Fireworks has no events
def test_together_tells_messages_that_come_between_steps(host: Host, fake: Fake, train: Path) -> None:
    """Messages and steps are two lists there: what is known of one hides nothing of the other."""
    assert isinstance(fake, FakeTogether)
    job = plan(train, base_model=host.base_model, host=host).start(allow_unknown_price=True)
    assert [one.type for one in job.events()] == ["message", "metrics", "metrics"]
    fake.tuned[job.id]["events"].append(fake.event("job_running", "Training", "h-late"))
    assert [one.message for one in job.events()][:2] == ["Job created", "Training"]


def test_the_journal_holds_no_key_of_weights_and_biases(
    host: Host, fake: Fake, train: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="set WANDB_API_KEY"):
        plan(train, base_model=host.base_model, host=host, wandb="titles").start(allow_unknown_price=True)
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-wandb")
    journal = Journal(tmp_path / "journal.jsonl")
    plan(train, base_model=host.base_model, host=host, wandb="titles").start(allow_unknown_price=True, journal=journal)
    assert "secret-of-wandb" in json.dumps(sent(fake))
    fake.fail(CREATE[_name(fake)], status=400, body={"error": {"message": "no such key: secret-of-wandb"}})
    with pytest.raises(HostError, match=r"no such key: \*\*\*"):
        plan(train, base_model=host.base_model, host=host, wandb="other").start(
            new=True, allow_unknown_price=True, journal=journal
        )
    assert "secret-of-wandb" not in journal.path.read_text(encoding="utf-8")


def test_an_odd_answer_is_one_line_and_does_not_end_the_following(host: Host, fake: Fake, train: Path) -> None:
    """A proxy's page, an empty object, a list: told as what they are, and looked at again."""
    job = plan(train, base_model=host.base_model, host=host).start(allow_unknown_price=True)
    attach(job.id, host=host)
    route = fake.requests[-1][0]
    answers: list[Any] = ["<html>busy</html>", {}, ["x"]]
    for odd in answers:
        fake.fail(route, status=200, body=odd)
        with pytest.raises(HostError, match="the answer is not what its API describes") as caught:
            attach(job.id, host=host)
        assert "\n" not in str(caught.value)
        assert "own-key" not in str(caught.value)
    fake.fail(route, status=200, body={}, times=2)
    fake.fail(route, status=500)
    *_, last = job.follow()
    assert last.status == "succeeded"


def test_the_states_that_the_clients_know_besides_the_descriptions_end_a_job() -> None:
    """Else a job that is gone would be followed for ever."""
    told = {
        "id": "ft-1",
        "events": [{"level": "Error", "message": "Bad rows."}],
        "progress": {"estimate_available": True},
    }
    read = together_job({**told, "status": "user_error", "updated_at": "2026-11-26T18:00:00Z"})
    assert (read["status"], read["error"]["message"], read["estimated_finish"]) == ("failed", "Bad rows.", None)
    for state in ("DELETING", "DELETING_CLEANING_UP", "DELETED", "CANCELLED"):
        gone = {"name": "accounts/me/dpoJobs/one", "state": f"JOB_STATE_{state}"}
        assert fireworks_job(gone)["status"] == "cancelled"
    assert fireworks_job({"name": "accounts/me/dpoJobs/one", "state": "JOB_STATE_NEW"})["status"] == "new"
