"""The library against recorded exchanges of the real local host, byte for byte as it answered.

The cassettes are played, never recorded, unless DSPY_FINETUNE_RECORD=1 (`make record`): then the real server starts on
a model of a few thousand parameters, with a worker that pretends to train, and the same tests record what it says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_finetune.errors import HostError, JobCancelledError, JobFailedError, ModelGoneError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.protocol import INTENT_KEY
from dspy_finetune.jobs import JobProgress, attach, list_jobs, plan, sft_then_dpo
from tests.cassettes import FOLDER, recorder
from tests.jobs.conftest import FakeTime, write_dpo, write_sft
from tests.local.toy import build_toy_model
from tests.local.toy_server import start_server

IS_RECORDING = os.environ.get("DSPY_FINETUNE_RECORD") == "1"
PORT = 8377
"""Fixed, as the address is part of what makes a plan the same plan."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The real server, while recording; when playing there is none, and a request that is not recorded fails."""
    if not IS_RECORDING:
        yield
        return
    folder = tmp_path_factory.mktemp("recorded")
    running = start_server(folder / "root", build_toy_model(folder / "toy"), step_seconds=0.3, port=PORT)
    yield
    running.stop()


@pytest.fixture
def local(server: None, request: pytest.FixtureRequest) -> Iterator[Host]:
    one = Host.local(f"http://127.0.0.1:{PORT}/v1")
    name = request.node.name.removeprefix("test_").replace("_", "-")
    if IS_RECORDING:
        (FOLDER / f"{name}.json").unlink(missing_ok=True)  # vcrpy keeps what a new recording does not ask again
    with recorder("all" if IS_RECORDING else "none").use_cassette(f"{name}.json") as cassette:
        yield one
        one.close()
        assert IS_RECORDING or cassette.all_played


@pytest.fixture
def clock(request: pytest.FixtureRequest) -> FakeTime | None:
    """The real clock where a real server is recorded."""
    return None if IS_RECORDING else request.getfixturevalue("time")


def test_a_job_from_plan_to_answer(local: Host, clock: FakeTime | None, tmp_path: Path) -> None:
    train, validation = write_sft(tmp_path / "train.jsonl"), write_sft(tmp_path / "validation.jsonl", seed=1)
    made = plan(
        train, validation=validation, base_model="toy", host=local, suffix="taste", seed=3, metadata={"who": "tests"},
        hyperparameters={"n_epochs": 2},
    )  # fmt: skip
    looks: list[JobProgress] = []
    job = made.start(max_usd=0.0)
    assert job.is_new
    model = job.wait(on_progress=looks.append)
    assert model.id.startswith("ft:toy:local:taste:")
    assert (model.base, model.method, model.seed, model.trained_tokens) == ("toy", "sft", 3, 200)
    assert (model.cost_usd, model.data_sha256) == (0.0, made.train.sha256)
    assert model.hyperparameters["n_epochs"] == 2
    assert looks[-1].losses[-1] == (10, 0.1)
    assert [row["step"] for row in job.metrics()] == list(range(1, 11))
    assert {one.step for one in job.checkpoints()} == {5, 10}
    events = job.events()
    assert len({one.id for one in events}) == len(events)
    assert events[-1].message == "The job has successfully completed"
    again = made.start()
    assert (again.id, again.is_new) == (job.id, False)
    assert attach(job.id, host=local).facts.metadata[INTENT_KEY] == made.intent
    assert job.id in [one.id for one in list_jobs(host=local)]
    answer = local.client().chat.completions.create(
        model=model.id, messages=[{"role": "user", "content": "Title: tides"}], max_tokens=1, logprobs=True
    )
    assert answer.choices[0].logprobs is not None


def test_sft_then_dpo(local: Host, clock: FakeTime | None, tmp_path: Path) -> None:
    made = sft_then_dpo(write_dpo(tmp_path / "pairs.jsonl"), base_model="toy", host=local, suffix="pairs")
    model = made.start().wait()
    assert (model.method, model.base) == ("dpo", "toy")
    assert model.id.startswith("ft:toy:local:pairs:")
    assert model.job_id is not None
    assert attach(model.job_id, host=local).facts.model.startswith("ft:toy:local:pairs:")


def test_pause_resume_and_cancel(local: Host, clock: FakeTime | None, tmp_path: Path) -> None:
    job = plan(write_sft(tmp_path / "train.jsonl"), base_model="toy", host=local, suffix="steered").start()
    for look in job.follow(with_events=False):
        if look.status == "running":
            break
    job.pause()
    for look in job.follow(with_events=False):
        if look.status == "paused":
            break
    assert job.resume().status == "queued"
    job.cancel()
    with pytest.raises(JobCancelledError, match=job.id):
        job.wait()


def test_what_a_host_refuses(local: Host, clock: FakeTime | None, tmp_path: Path) -> None:
    """Too few rows fail the job; names that the host does not know are errors with its own code."""
    few = write_sft(tmp_path / "few.jsonl", n=7)
    client = local.client()
    with open(few, "rb") as stream:
        sent = client.files.create(file=("few.jsonl", stream), purpose="fine-tune")
    made = client.fine_tuning.jobs.create(model="toy", training_file=sent.id)
    with pytest.raises(JobFailedError, match="7 example") as failed:
        attach(made.id, host=local).wait()
    assert (failed.value.code, failed.value.param) == ("invalid_n_examples", "training_file")
    with pytest.raises(HostError) as unknown:
        attach("ftjob-nobody-knows-me", host=local)
    assert unknown.value.status == 404
    with pytest.raises(ModelGoneError) as gone, local.talking("ask"):
        client.chat.completions.create(model="ft:toy:local::00000000", messages=[{"role": "user", "content": "x"}])
    assert gone.value.code == "model_not_found"
    with pytest.raises(HostError) as refused, local.talking("create"):
        client.fine_tuning.jobs.create(model="no-such-model", training_file=sent.id)
    assert refused.value.status in {400, 404}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_cassette_holds_nothing_but_what_was_said(path: Path) -> None:
    """No header but the content type, no id of an organisation or a request, no key, no folder of a machine."""
    text = path.read_text(encoding="utf-8")
    for said in json.loads(text)["interactions"]:
        for side in ("request", "response"):
            assert {name.lower() for name in said[side]["headers"]} <= {"content-type"}
    assert not [word for word in ("Bearer", "sk-", "cookie", "/tmp/", "/home/", "/root/") if word in text]
