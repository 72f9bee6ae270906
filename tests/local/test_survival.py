"""Jobs that are cancelled, paused, and outlive a killed server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, get_args

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from dspy_finetune._files import write_json
from dspy_finetune.jobs.records import job_facts
from dspy_finetune.local import worker
from dspy_finetune.local.schemas import TrainResult
from dspy_finetune.local.store import Store, append_event
from tests.local.test_jobs import CHAT_ROWS, upload, wait
from tests.local.toy_server import ToyServer, start_server


def started(server: ToyServer, n_steps: int = 1) -> str:
    """A job that has made its first steps."""
    client = server.client()
    job = client.fine_tuning.jobs.create(model="toy", training_file=upload(client, CHAT_ROWS))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if len(steps(client, job.id)) >= n_steps:
            return job.id
        time.sleep(0.02)
    raise AssertionError("the job made no step")


def steps(client: Any, job_id: str) -> list[int]:
    events = client.fine_tuning.jobs.list_events(job_id, limit=100).data
    return [event.data["step"] for event in reversed(events) if event.type == "metrics"]


def is_paused(job: Any) -> bool:
    """As this library reads it, in a status that OpenAI's types know."""
    assert job.status in get_args(FineTuningJob.model_fields["status"].annotation)
    return job_facts(job).status == "paused"


def worker_pid(root: Path, job_id: str) -> int:
    return int(json.loads((root / "jobs" / job_id / "worker.json").read_bytes())["pid"])


def test_cancel_pause_and_resume(tmp_path: Path, toy_model: Path) -> None:
    server = start_server(tmp_path / "root", toy_model, step_seconds=0.3)
    try:
        client = server.client()
        job_id = started(server, 2)
        assert is_paused(client.fine_tuning.jobs.pause(job_id))
        # Another job may train while this one is paused; cancelling it while it runs leaves nothing running.
        other = started(server)
        assert client.fine_tuning.jobs.cancel(other).status == "cancelled"
        with pytest.raises(openai.BadRequestError, match="already cancelled"):
            client.fine_tuning.jobs.cancel(other)
        assert is_paused(client.fine_tuning.jobs.retrieve(job_id))
        before = steps(client, job_id)
        resumed = client.fine_tuning.jobs.resume(job_id)
        assert (resumed.status, is_paused(resumed)) == ("queued", False)
        assert wait(client, job_id).status == "succeeded"
        # It went on where it was: no step was made twice.
        assert steps(client, job_id) == list(range(1, 11))
        assert len(before) < 10
        with pytest.raises(openai.BadRequestError, match="not paused"):
            client.fine_tuning.jobs.resume(job_id)
    finally:
        server.stop()


@pytest.mark.parametrize("worker_dies_too", [False, True])
def test_a_job_survives_a_killed_server(tmp_path: Path, toy_model: Path, worker_dies_too: bool) -> None:
    root = tmp_path / "root"
    server = start_server(root, toy_model, step_seconds=0.3)
    job_id = started(server)
    server.kill()
    if worker_dies_too:
        os.kill(worker_pid(root, job_id), signal.SIGKILL)
    again = start_server(root, toy_model, step_seconds=0.01)
    try:
        client = again.client()
        done = wait(client, job_id)
        assert done.status == "succeeded", done.error
        assert [job.id for job in client.fine_tuning.jobs.list()] == [job_id]
        assert sorted(set(steps(client, job_id))) == list(range(1, 11))
        tuned = [model.id for model in client.models.list() if model.id.startswith("ft:") and "ckpt" not in model.id]
        assert tuned == [done.fine_tuned_model]
    finally:
        again.stop()


def test_a_stopped_server_stops_its_worker_and_the_job_goes_on_later(tmp_path: Path, toy_model: Path) -> None:
    root = tmp_path / "root"
    server = start_server(root, toy_model, step_seconds=0.3)
    job_id = started(server)
    pid = worker_pid(root, job_id)
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not (root / "server.json").exists()
    again = start_server(root, toy_model)
    try:
        assert wait(again.client(), job_id).status == "succeeded"
        assert steps(again.client(), job_id) == list(range(1, 11))
    finally:
        again.stop()


def test_a_worker_that_dies_fails_the_job_with_a_reason(tmp_path: Path, toy_model: Path) -> None:
    root = tmp_path / "root"
    server = start_server(root, toy_model, step_seconds=0.3)
    try:
        job_id = started(server)
        os.kill(worker_pid(root, job_id), signal.SIGKILL)
        failed = wait(server.client(), job_id)
        assert (failed.status, failed.error.code) == ("failed", "server_error")
        assert "memory" in failed.error.message
    finally:
        server.stop()


def test_an_event_that_was_cut_off_is_skipped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    from dspy_finetune.local.schemas import JobRecord

    store = Store(tmp_path)
    job = JobRecord(id="ftjob-1", created_at=1, sequence=1, model="toy", method="sft", training_file="file-1", seed=0)
    store.save_job(job)
    append_event(store.job_folder(job.id), "one")
    with open(store.job_folder(job.id) / "events.jsonl", "ab") as stream:
        stream.write(b'{"id": "ftevent-2", "mess')
    assert [event["message"] for event in store.events(job.id)] == ["one"]
    append_event(store.job_folder(job.id), "three", event_id="x")
    append_event(store.job_folder(job.id), "three", event_id="x")
    assert [event["message"] for event in store.events(job.id)] == ["one", "three"]
    assert [event["message"] for event in Store(tmp_path).events(job.id)] == ["one", "three"]


class Ended(BaseException):
    """In the place of a process's end."""


@pytest.mark.parametrize("n_steps", [0, 1])
def test_a_worker_that_is_asked_to_stop_ends_at_once_before_its_first_step_and_else_after_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_steps: int
) -> None:
    handlers: dict[int, Any] = {}

    def end(code: int) -> None:
        raise Ended

    def train(folder: Path, task: Any, metrics: Any, should_stop: Any) -> TrainResult:
        assert [should_stop() for _ in range(n_steps)] == [False] * n_steps
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        return TrainResult(trained_tokens=1, steps=7, adapter=None, stopped=should_stop(), checkpoints=())

    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(worker, "_train", train)
    (tmp_path / "work").mkdir()
    write_json(tmp_path / "task.json", {"n_threads": 1})
    with pytest.raises(Ended) if n_steps == 0 else contextlib.nullcontext():
        worker.run_job(tmp_path)
    result = json.loads((tmp_path / "result.json").read_bytes())
    assert (result["stopped"], result.get("steps")) == (True, 7 if n_steps else None)
