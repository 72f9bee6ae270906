"""Whatever becomes of one job, the others move on; and each says truly what became of it."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from dspy_finetune._files import try_lock
from dspy_finetune.local import worker
from dspy_finetune.local.api import Host, create_app
from dspy_finetune.local.scheduler import Scheduler, Supervised, estimated_finish, last_step
from dspy_finetune.local.schemas import JobRecord
from dspy_finetune.local.store import Store, append_event, next_sequence
from tests.local.test_guards import send
from tests.local.test_jobs import CHAT_ROWS, upload, wait
from tests.local.test_survival import started, steps
from tests.local.toy_server import start_server


def test_a_file_deleted_before_its_job_begins_fails_that_job_alone(tmp_path: Path, toy_model: Path) -> None:
    server = start_server(tmp_path / "root", toy_model, step_seconds=0.5)
    try:
        client = server.client()
        running = started(server)
        second, third = (upload(client, CHAT_ROWS) for _ in range(2))
        queued = [client.fine_tuning.jobs.create(model="toy", training_file=one).id for one in (second, third)]
        wait(client, queued[1], "queued")
        client.files.delete(second)
        client.fine_tuning.jobs.cancel(running)
        failed = wait(client, queued[0])
        assert (failed.status, failed.error.code, failed.error.param) == ("failed", "file_not_found", "training_file")
        assert wait(client, queued[1], "running", "succeeded").id == queued[1]
        assert send(server, "GET", "/healthz")[1]["status"] == "ok"
    finally:
        server.stop()


def job_in(store: Store, number: int, **fields: Any) -> JobRecord:
    given = {"status": "queued", "training_file": "file-1", "resolved": {"n_epochs": 1, "batch_size": 1}, **fields}
    job = JobRecord(
        id=f"ftjob-{number}", created_at=number, sequence=number, model="toy", method="sft", seed=0, **given
    )
    store.job_folder(job.id).mkdir()
    store.save_job(job)
    return job


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC])
def test_a_machine_that_is_short_of_something_fails_no_job(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand idle clients take all open files: the job waits, with its lock free for the next try."""
    scheduler = Scheduler(Store(tmp_path))
    content = tmp_path / "files" / "file-1" / "content"
    content.parent.mkdir()
    content.write_bytes(b"{}\n")
    monkeypatch.setattr(scheduler.store, "content", lambda _: content)
    resolved = {"n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 1.0}
    job = job_in(scheduler.store, 1, resolved=resolved)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("dspy_finetune.local.scheduler.subprocess.Popen", refuse)
    for _ in range(12):
        with pytest.raises(OSError, match=r"."):
            scheduler.tick()
    assert (scheduler.store.job(job.id).status, scheduler.store.job(job.id).crashes) == ("queued", 0)
    lock = try_lock(scheduler.store.job_folder(job.id) / "worker.lock")
    assert lock is not None
    os.close(lock)


def test_a_clock_that_goes_back_neither_exchanges_jobs_nor_ends_them_in_the_past(tmp_path: Path) -> None:
    """What is made after the jump stands behind what was there; a pace below zero is none."""
    later = time.time_ns() + 10**15
    assert next_sequence([later, 5]) == later + 1
    assert next_sequence([5]) > time.time_ns() - 10**12
    job = job_in(Store(tmp_path), 1, status="running", started_at=100.0)
    for second, expected in ((1, 120), (-1, None)):
        events = [
            {"created_at": 110 + second * step, "type": "metrics", "data": {"step": step, "total_steps": 10}}
            for step in range(1, 9)
        ]
        assert estimated_finish(job, lambda _, told=events: told) == expected  # type: ignore[misc]


def test_an_error_of_any_kind_fails_its_job_and_the_next_one_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    jobs = Scheduler(store)
    for number in range(3):
        job_in(store, number)
    seen = []

    def launch(job: JobRecord) -> bool:
        seen.append(job.id)
        raise [KeyError("resolved"), RuntimeError("odd"), RecursionError("deep")][len(seen) - 1]

    monkeypatch.setattr(jobs, "_launch", launch)
    jobs.tick()
    assert seen == ["ftjob-0", "ftjob-1", "ftjob-2"]
    errors = [store.job(one).error for one in seen]
    assert [one and one["code"] for one in errors] == ["server_error"] * 3
    assert "odd" in str(errors[1])


def test_a_full_disk_waits_and_then_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    jobs = Scheduler(store, tick_seconds=0.01)
    jobs.thread.pause_seconds = 0.01
    job_in(store, 1)
    client = TestClient(create_app(Host(store, jobs, base_models=[])), base_url="http://127.0.0.1")
    n_tries = 0
    told: list[dict[str, Any]] = []

    def launch(job: JobRecord) -> bool:
        nonlocal n_tries
        n_tries += 1
        told.extend(client.get(f"/v1/fine_tuning/jobs/{job.id}/events").json()["data"])
        if n_tries < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        store.update_job(job.id, status="cancelled")
        return True

    monkeypatch.setattr(jobs, "_launch", launch)
    jobs.start()
    deadline = time.monotonic() + 60
    while store.job("ftjob-1").status == "queued" and time.monotonic() < deadline:
        time.sleep(0.01)
    jobs.close()
    assert store.job("ftjob-1").status == "cancelled"
    assert (jobs.thread.n_failures, "No space" in str(jobs.thread.last_error)) == (2, True)
    # Who follows the job is told meanwhile, though it stands in no log: as one event, however often it is listed.
    assert [one["message"].partition(":")[0] for one in told] == ["The host cannot move the job on"] * 2
    assert told[0]["id"] == told[1]["id"]
    assert client.get("/v1/fine_tuning/jobs/ftjob-1/events").json()["data"] == []


def test_a_worker_without_room_fails_its_job_as_no_space(tmp_path: Path) -> None:
    store = Store(tmp_path)
    jobs = Scheduler(store)
    job = job_in(store, 1)
    log = store.job_folder(job.id) / "worker.log"
    log.write_text("Traceback\nOSError: [Errno 28] No space left on device: 'x'\n")
    assert jobs._why_gone(job, 1)[0] == "no_space"
    log.write_text("Traceback\nValueError: odd\n")
    assert jobs._why_gone(job, 1)[0] == "server_error"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # What safetensors and torch raise, which are no OSError.
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0: No space left on device"),
    ],
)
def test_a_recipe_that_meets_a_full_disk_fails_its_job_as_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def train(*given: Any) -> Any:
        raise error

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "work").mkdir()
    (tmp_path / "task.json").write_text('{"n_threads": 1}')
    worker.run_job(tmp_path)
    assert json.loads((tmp_path / "result.json").read_bytes())["error"]["code"] == "no_space"


def test_a_job_of_many_labels_trains_a_head_where_it_is_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    jobs = Scheduler(store)
    chats = [
        [{"role": "user", "content": f"Title: {n}"}, {"role": "assistant", "content": f"ward {n % 70}"}]
        for n in range(140)
    ]
    content = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats).encode()
    file = store.add_file(io.BytesIO(content), "train.jsonl", "fine-tune")
    chosen = []
    for number, given in enumerate(({}, {"recipe": "head"}, {"recipe": "lora"})):
        job = job_in(store, number, training_file=file.id, given=given)
        chosen.append(jobs._choose_recipe(job))
    assert [choice and choice.recipe for choice in chosen] == ["lora", "head", "lora"]
    assert 'for which the recipe "head" can be asked for' in str(chosen[0])


def test_whole_numbers_train_as_numbers_where_a_job_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    jobs = Scheduler(store)
    chats = [[{"role": "user", "content": f"N: {n}"}, {"role": "assistant", "content": f"{n % 20}"}] for n in range(60)]
    content = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats).encode()
    file = store.add_file(io.BytesIO(content), "train.jsonl", "fine-tune")
    for number, given in enumerate(({}, {"answers": "numbers"})):
        job = job_in(store, number, training_file=file.id, given=given, status="validating_files")
        jobs._validate(job)
        kept = store.job(job.id)
        choice = jobs._choose_recipe(kept)
        assert choice is not None
        assert choice.task.kind == ("numbers" if given else "labels")
        assert (kept.resolved or {}).get("answers") == given.get("answers")


def test_the_event_says_from_which_step_a_job_goes_on(tmp_path: Path) -> None:
    """Step 1 where no checkpoint is whole, else the step after the newest whole one."""
    store = Store(tmp_path)
    jobs = Scheduler(store)
    job = job_in(store, 1, status="running")
    output = store.job_folder(job.id) / "work" / "output"
    (output / "checkpoint-9").mkdir(parents=True)  # cut off: the trainer had not finished it
    jobs._watch(job)
    assert store.events(job.id)[-1]["message"].endswith("the job starts again from step 1")
    (output / "checkpoint-7").mkdir()
    (output / "checkpoint-7" / "trainer_state.json").write_text("{}")
    assert last_step(output) == 7
    store.update_job(job.id, status="running", attempt=1)
    jobs._watch(store.job(job.id))
    assert store.events(job.id)[-1]["message"].endswith("the job goes on from step 8")


def test_a_job_paused_at_its_first_step_publishes_the_epochs_alone(tmp_path: Path, toy_model: Path) -> None:
    server = start_server(tmp_path / "root", toy_model, step_seconds=0.3)
    try:
        client = server.client()
        job_id = started(server)
        client.fine_tuning.jobs.pause(job_id)
        while (
            os.path.exists(tmp_path / "root" / "jobs" / job_id / "worker.json")
            and not (tmp_path / "root" / "jobs" / job_id / "result.json").exists()
        ):
            time.sleep(0.05)
        client.fine_tuning.jobs.resume(job_id)
        assert wait(client, job_id).status == "succeeded"
        assert [one.step_number for one in client.fine_tuning.jobs.checkpoints.list(job_id)] == [10, 5]
        assert steps(client, job_id) == list(range(1, 11))
    finally:
        server.stop()


def test_figures_that_are_no_numbers_are_told_as_null(tmp_path: Path) -> None:
    """A run that diverged has a loss of NaN, which JSON has not."""
    store = Store(tmp_path)
    job = job_in(store, 1)
    append_event(store.job_folder(job.id), "Step 1", kind="metrics", data={"step": 1, "train_loss": float("nan")})
    assert store.events(job.id)[0]["data"] == {"step": 1, "train_loss": None}
    json.dumps(store.events(job.id), allow_nan=False)


def test_a_supervised_thread_survives_its_work_and_tells(tmp_path: Path) -> None:
    rounds = []

    def work() -> None:
        rounds.append(1)
        if len(rounds) == 2:
            raise SystemError("odd")

    thread = Supervised(work, name="test", tick_seconds=0.001)
    thread.pause_seconds = 0.001
    assert not thread.health()["ok"]
    thread.start()
    deadline = time.monotonic() + 60
    while len(rounds) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    found = thread.health()
    thread.close()
    assert (found["ok"], found["n_failures"], found["last_error"]) == (True, 1, "SystemError: odd")
    assert not thread.health()["ok"]
