"""At most one job per plan: whatever the host answers, and whoever dies when."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from dspy_finetune.errors import (
    AmbiguousJobError,
    BudgetError,
    DataError,
    FileError,
    HostError,
    TrainingClosedError,
)
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.protocol import ATTEMPT_KEY, INTENT_KEY
from dspy_finetune.jobs import Journal, Plan, plan, submit
from dspy_finetune.jobs.records import CLOCK
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import FakeTime, write_sft

BASE = "gpt-4.1-mini-2025-04-14"
CREATE = "POST /fine_tuning/jobs"
LIST = "GET /fine_tuning/jobs"


@pytest.fixture
def made(sft_file: Path, host: Host) -> Plan:
    return plan(sft_file, base_model=BASE, host=host)


def events_of(made: Plan) -> list[str]:
    return [entry.event for entry in Journal(Path(os.environ["DSPY_FINETUNE_HOME"]) / "journal.jsonl").entries()]


def start_and_wait(made: Plan) -> None:
    made.start().wait(1.0)


def in_child(target: Callable[[Plan], object], made: Plan) -> SpawnProcess:
    child = multiprocessing.get_context("spawn").Process(target=target, args=(made,))
    child.start()
    return child


# ---- one plan, one job


def test_the_steps_are_written_down_before_and_after(made: Plan, fake: FakeOpenAI) -> None:
    job = made.start()
    assert job.is_new
    assert events_of(made) == ["intent", "uploading", "uploaded", "creating", "created"]
    body = next(body for route, body in fake.requests if route == CREATE)
    assert body["metadata"][INTENT_KEY] == made.intent
    assert "hyperparameters" not in body
    assert body["method"] == {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5}}}


def test_the_same_plan_gives_its_job_again_and_new_makes_another(made: Plan, fake: FakeOpenAI) -> None:
    first = made.start()
    assert made.start().id == first.id
    second = made.start(new=True)
    assert second.id != first.id
    assert made.start().id == second.id
    assert len(fake.jobs) == 2
    assert fake.count("POST /files") == 1


def test_another_machine_finds_the_job_without_the_journal(
    made: Plan, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = made.start()
    monkeypatch.setenv("DSPY_FINETUNE_HOME", str(tmp_path / "elsewhere"))
    again = made.start()
    assert (again.id, again.is_new, len(fake.jobs)) == (first.id, False, 1)
    made.start(new=True)
    assert sorted(job["metadata"][ATTEMPT_KEY] for job in fake.jobs.values()) == ["1", "2"]


def test_an_identical_file_on_the_host_is_used_again(
    made: Plan, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made.start()
    monkeypatch.setenv("DSPY_FINETUNE_HOME", str(tmp_path / "elsewhere"))
    made.start(new=True)
    assert fake.count("POST /files") == 1
    for file_id in list(fake.files):
        del fake.files[file_id]
    made.start(new=True)
    assert fake.count("POST /files") == 2


def test_a_file_that_was_changed_after_the_plan_is_not_sent(made: Plan, fake: FakeOpenAI, sft_file: Path) -> None:
    """Else other rows would be trained, and lie on the host under the digest of those that were planned."""
    write_sft(sft_file, seed=1)
    with pytest.raises(DataError, match=r"train\.jsonl: it was changed after it was planned; plan it again"):
        made.start()
    assert (fake.files, fake.jobs) == ({}, {})
    write_sft(sft_file)
    assert made.start().is_new


def test_two_threads_with_one_plan_make_one_job(made: Plan, fake: FakeOpenAI) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(made.start().id)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(fake.jobs) == 1


def test_two_processes_with_one_plan_make_one_job(made: Plan, fake: FakeOpenAI) -> None:
    hold = fake.hold("POST /files", phase="after")
    children = [in_child(Plan.start, made) for _ in range(3)]
    assert hold.reached.wait(120)
    hold.release()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    assert len(fake.jobs) == 1


# ---- killed at each step


@pytest.mark.parametrize(
    ("route", "phase"),
    [
        ("GET /fine_tuning/jobs", "before"),  # before the intent is written
        ("GET /files", "before"),  # after the intent
        ("POST /files", "before"),  # during the upload
        ("POST /files", "after"),  # after the upload, before it is written
        (CREATE, "before"),  # during create, and the host has not seen it
        (CREATE, "after"),  # the host has made the job, and nobody wrote it down
        ("GET /fine_tuning/jobs/*", "before"),  # while polling
    ],
)
def test_a_process_killed_at_any_step_and_started_again_leaves_one_job(
    made: Plan, fake: FakeOpenAI, time: FakeTime, route: str, phase: str
) -> None:
    hold = fake.hold(route, phase=phase)
    child = in_child(start_and_wait, made)
    assert hold.reached.wait(120)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(10)
    before = len(fake.jobs)
    if phase == "before" and route == CREATE:
        fake.holds.clear()  # a request that reached nobody
        hold.released.clear()
    fake.now = int(_journal_time(made)) or fake.now
    job = made.start()
    assert len(fake.jobs) == 1
    assert job.is_new == (before == 0)
    assert fake.count("POST /files") <= 2
    assert len([one for one in fake.files.values() if one["purpose"] == "fine-tune"]) <= 2


def _journal_time(made: Plan) -> float:
    entries = Journal(Path(os.environ["DSPY_FINETUNE_HOME"]) / "journal.jsonl").entries(made.intent)
    return entries[-1].at if entries else 0.0


# ---- replies that are lost


def test_a_job_whose_reply_was_lost_is_found_by_its_metadata(made: Plan, fake: FakeOpenAI, time: FakeTime) -> None:
    fake.drop(CREATE)
    job = made.start()
    assert (len(fake.jobs), fake.count(CREATE)) == (1, 1)
    assert job.id in fake.jobs


def test_a_host_that_takes_too_long_to_answer_is_asked_for_the_job(
    made: Plan, fake: FakeOpenAI, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "CREATE_SECONDS", 0.5)
    hold = fake.hold(CREATE, phase="after")
    job = made.start()
    assert hold.reached.is_set()
    assert (len(fake.jobs), fake.count(CREATE), job.id) == (1, 1, "ftjob-0001")


def test_a_lag_is_counted_from_when_the_reply_was_given_up(
    made: Plan, fake: FakeOpenAI, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host takes two minutes, makes the job at the end of them, and lists it later still."""
    monkeypatch.setattr(submit, "CREATE_SECONDS", 0.5)
    fake.listing_lag = 3
    hold = fake.hold(CREATE, phase="after")

    def let_time_pass() -> None:
        hold.reached.wait()
        fake.now += 120

    passing = threading.Thread(target=let_time_pass)
    passing.start()
    job = made.start()
    passing.join()
    assert (len(fake.jobs), fake.count(CREATE), job.id) == (1, 1, "ftjob-0001")


def test_a_listing_that_lags_is_waited_for(made: Plan, fake: FakeOpenAI, time: FakeTime) -> None:
    fake.listing_lag = 6
    fake.drop(CREATE)
    made.start()
    assert (len(fake.jobs), fake.count(CREATE)) == (1, 1)
    assert sum(time.slept) < 60


def test_a_request_that_reached_nobody_is_sent_again_after_the_lag(
    made: Plan, fake: FakeOpenAI, time: FakeTime
) -> None:
    fake.drop(CREATE, done=False)
    made.start()
    assert (len(fake.jobs), fake.count(CREATE)) == (1, 2)
    assert sum(time.slept) >= 60


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504])
@pytest.mark.parametrize("done", [True, False])
def test_an_error_that_may_hide_a_job_is_looked_into(
    made: Plan, fake: FakeOpenAI, time: FakeTime, status: int, done: bool
) -> None:
    fake.fail(CREATE, status=status, done=done)
    made.start()
    assert len(fake.jobs) == 1
    assert fake.count(CREATE) == (1 if done else 2)


NINE_SECONDS_ON = formatdate(1_795_000_009, usegmt=True)  # the small server's clock stands at 1_795_000_000


@pytest.mark.parametrize(
    ("after", "slept"),
    [("7", 7.0), ("0.5", 0.5), ("9999", 120.0), (None, 1.0), ("soon", 1.0), ("nan", 1.0), (NINE_SECONDS_ON, 9.0)],
)
def test_too_many_requests_waits_as_the_host_says(
    made: Plan, fake: FakeOpenAI, time: FakeTime, after: str | None, slept: float
) -> None:
    fake.fail(CREATE, status=429, headers={"Retry-After": after} if after else {})
    made.start()
    assert time.slept == [slept]
    assert (len(fake.jobs), fake.count(CREATE)) == (1, 2)


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize(("after", "slept"), [("7", 7.0), (None, 1.0)])
def test_a_fault_is_looked_into_and_then_waited_out_as_the_host_says(
    made: Plan, fake: FakeOpenAI, time: FakeTime, status: int, after: str | None, slept: float
) -> None:
    fake.fail(CREATE, status=status, headers={"Retry-After": after} if after else {})
    made.start()
    assert time.slept[-1] == slept
    assert sum(time.slept[:-1]) >= 60
    assert (len(fake.jobs), fake.count(CREATE)) == (1, 2)


def test_a_host_that_stays_busy_is_given_up_with_its_answer(made: Plan, fake: FakeOpenAI, time: FakeTime) -> None:
    fake.fail(CREATE, status=429, times=9)
    with pytest.raises(HostError) as caught:
        made.start()
    assert caught.value.status == 429
    assert fake.count(CREATE) == 5
    assert events_of(made)[-1] == "not_created"
    fake.faults.clear()
    assert made.start().is_new


def test_a_host_that_kept_no_metadata_leaves_a_question_and_no_second_job(
    made: Plan, fake: FakeOpenAI, time: FakeTime
) -> None:
    fake.keeps_metadata = False
    fake.drop(CREATE)
    with pytest.raises(AmbiguousJobError, match=r"ftjob-0001.*attach") as caught:
        made.start()
    assert caught.value.job_id == "ftjob-0001"
    with pytest.raises(AmbiguousJobError):
        made.start()
    assert (len(fake.jobs), fake.count(CREATE)) == (1, 1)


def test_a_host_that_lists_no_jobs_leaves_a_question_and_no_second_job(
    made: Plan, fake: FakeOpenAI, time: FakeTime
) -> None:
    fake.fail(LIST, status=404, times=99)
    fake.drop(CREATE)
    with pytest.raises(AmbiguousJobError, match="does not list"):
        made.start()
    assert fake.count(CREATE) == 1


def die_in_the_request(made: Plan, fake: FakeOpenAI, *, attempt: int) -> None:
    """What a process leaves that was killed between the request for a job and its answer."""
    journal = Journal(Path(os.environ["DSPY_FINETUNE_HOME"]) / "journal.jsonl")
    journal.append(made.intent, "creating", at=fake.now, attempt=attempt, training_file="file-0001")
    metadata = {INTENT_KEY: made.intent, ATTEMPT_KEY: str(attempt)}
    fake.create({"model": BASE, "training_file": "file-0001", "metadata": metadata})


@pytest.mark.parametrize("lists", [True, False])
def test_a_new_job_is_made_once_the_question_was_told(
    made: Plan, fake: FakeOpenAI, time: FakeTime, lists: bool
) -> None:
    """As its line says; a `new` that was itself killed in the request is told first, and pays nothing."""
    fake.keeps_metadata = False
    die_in_the_request(made, fake, attempt=1)
    fake.fail(LIST, status=404, times=0 if lists else 99)
    for new in (True, False):
        with pytest.raises(AmbiguousJobError, match="start with new=True"):
            made.start(new=new)
    assert len(fake.jobs) == 1
    assert made.start(new=True).is_new
    assert len(fake.jobs) == 2


def test_a_new_job_whose_reply_was_lost_is_that_new_job(made: Plan, fake: FakeOpenAI, time: FakeTime) -> None:
    first = made.start()
    die_in_the_request(made, fake, attempt=2)
    second = made.start(new=True)
    assert second.id != first.id
    assert len(fake.jobs) == 2
    assert made.start(new=True).is_new


def test_two_jobs_of_one_plan_are_not_chosen_between(made: Plan, fake: FakeOpenAI, time: FakeTime) -> None:
    made.start()
    twin = fake.create({"model": BASE, "training_file": "file-1", "metadata": fake.jobs["ftjob-0001"]["metadata"]})
    Path(os.environ["DSPY_FINETUNE_HOME"], "journal.jsonl").unlink()
    with pytest.raises(AmbiguousJobError, match=twin["id"]):
        made.start()
    assert fake.count(CREATE) == 1


def test_a_host_that_ignores_the_filter_gives_no_stranger(made: Plan, fake: FakeOpenAI, time: FakeTime) -> None:
    fake.filters_metadata = False
    for number in range(30):
        fake.create({"model": BASE, "training_file": f"file-x{number}", "metadata": {INTENT_KEY: "other"}})
    assert made.start().id == "ftjob-0031"


def test_a_job_that_the_host_does_not_know_is_a_question(made: Plan, fake: FakeOpenAI, time: FakeTime) -> None:
    made.start()
    fake.jobs.clear()
    with pytest.raises(AmbiguousJobError, match="ftjob-0001"):
        made.start()
    assert made.start(new=True).is_new


def test_a_host_out_of_reach_is_told_and_nothing_is_open(
    made: Plan, fake: FakeOpenAI, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *args, **kwargs: 0.0)
    with pytest.raises(HostError, match="no answer"):
        made.start()
    monkeypatch.setenv("OPENAI_BASE_URL", fake.url)


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_jumps_shortens_no_search_and_stretches_none(
    made: Plan, fake: FakeOpenAI, time: FakeTime, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """While the job is looked for, which is listed late."""
    fake.listing_lag = 6
    fake.drop(CREATE)

    def sleep(seconds: float) -> None:
        time.sleep(seconds + (hours * 3600 if not time.slept else 0))

    monkeypatch.setattr(CLOCK, "sleep", sleep)
    made.start()
    assert (len(fake.jobs), fake.count(CREATE)) == (1, 1)
    entries = Journal(Path(os.environ["DSPY_FINETUNE_HOME"]) / "journal.jsonl")
    entries.append(made.intent, "creating", at=fake.now + 36_000, attempt=2, training_file="file-0001")
    time.slept.clear()
    made.start()
    assert sum(time.slept[1:]) <= 60


# ---- files that are read slowly, and disks that are full


def test_a_host_that_reads_the_file_slowly_is_waited_for_with_a_line(
    made: Plan, fake: FakeOpenAI, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a second start, after the first died while it waited."""
    told: list[str] = []

    @contextlib.contextmanager
    def record(text: str, tell: object) -> Iterator[None]:
        told.append(text)
        yield

    monkeypatch.setattr(submit, "told_if_slow", record)
    fake.upload(made.train.path.stem + f"-{made.train.sha256[:16]}.jsonl", "fine-tune", made.train.path.read_bytes())
    fake.files["file-0001"]["status"] = "pending"

    def sleep(seconds: float) -> None:
        assert fake.jobs == {}
        time.sleep(seconds)
        if sum(time.slept) > 60:
            fake.files["file-0001"]["status"] = "processed"

    monkeypatch.setattr(CLOCK, "sleep", sleep)
    made.start()
    assert (len(fake.files), len(fake.jobs)) == (1, 1)
    assert sum(time.slept) > 60
    assert told[1:] == ["waiting for openai to read the file file-0001"]


def test_a_disk_that_is_full_after_the_job_was_made_loses_a_note_and_not_the_job(
    made: Plan, fake: FakeOpenAI, time: FakeTime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append = Journal.append

    def full(self: Journal, intent: str, event: str, **facts: object) -> object:
        if event in ("created", "ended"):
            raise FileError("cannot write journal.jsonl: No space left on device")
        return append(self, intent, event, **facts)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "append", full)
    assert str(made.start().wait()) in fake.models
    lines = [one.getMessage() for one in caplog.records if "No space" in one.getMessage()]
    assert ["goes on without this note (created)" in lines[0], "(ended)" in lines[1], len(lines)] == [True, True, 2]
    monkeypatch.undo()


# ---- refusals before money


def test_a_closed_host_says_so_and_leaves_nothing_open(made: Plan, fake: FakeOpenAI, time: FakeTime) -> None:
    fake.fail(CREATE, status=403, body={"error": {"message": "winding down", "code": "training_not_available"}})
    with pytest.raises(TrainingClosedError, match="local"):
        made.start()
    assert events_of(made)[-1] == "not_created"


def test_a_budget_is_kept_before_anything_is_uploaded(made: Plan, fake: FakeOpenAI) -> None:
    assert made.cost_usd == pytest.approx(0.015)
    with pytest.raises(BudgetError, match=r"\$0\.0"):
        made.start(max_usd=0.01)
    assert not fake.requests
    made.start(max_usd=0.02)
    assert len(fake.jobs) == 1


def test_an_unknown_price_is_refused_unless_told_otherwise(sft_file: Path, fake: FakeOpenAI) -> None:
    made = plan(sft_file, base_model="some-model", host=Host.compatible(fake.url, "k"))
    assert made.cost_usd is None
    for budget in (1000.0, None):
        with pytest.raises(BudgetError, match="allow_unknown_price"):
            made.start(max_usd=budget)
    assert not fake.requests
    assert made.start(max_usd=1000.0, allow_unknown_price=True).is_new
    assert not made.start(allow_unknown_price=True).is_new
