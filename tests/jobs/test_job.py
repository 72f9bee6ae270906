"""A job is followed to its end whatever the host says on the way, and its facts survive unknown words."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_finetune.errors import HostError, JobCancelledError, JobError, JobFailedError, JobTimeoutError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import FinetunedModel, Job, JobProgress, attach, list_jobs, plan
from dspy_finetune.jobs.job import make_progress
from dspy_finetune.jobs.records import FINAL_STATUSES, event, job_facts, metrics_from_events, parse_metrics
from tests.fake_openai import STEPS, FakeOpenAI
from tests.jobs.conftest import FakeTime

BASE = "gpt-4.1-mini-2025-04-14"
LOOK = "GET /fine_tuning/jobs/*"
TABLE = [
    {"step": 1, "train_loss": 2.5, "train_accuracy": 0.4, "valid_loss": None, "valid_mean_token_accuracy": None},
    {"step": 2, "train_loss": 1.25, "train_accuracy": 0.7, "valid_loss": 1.5, "valid_mean_token_accuracy": 0.6},
]


@pytest.fixture
def job(sft_file: Path, host: Host, time: FakeTime) -> Job:
    return plan(sft_file, base_model=BASE, host=host, suffix="taste").start()


def test_waiting_ends_with_the_model_and_all_that_is_known_of_it(job: Job, sft_file: Path) -> None:
    seen: list[JobProgress] = []
    model = job.wait(on_progress=seen.append)
    assert str(model) == "ft:gpt-4.1-mini-2025-04-14:fake:taste:00000001"
    assert (model.base, model.method, model.host_name, model.job_id) == (BASE, "sft", "openai", job.id)
    assert model.trained_tokens == 1200
    assert model.cost_usd == pytest.approx(0.006)
    assert model.estimated_cost_usd == pytest.approx(0.015)
    assert model.hyperparameters["learning_rate_multiplier"] == 1.8
    assert [look.status for look in seen] == ["validating_files", "queued", "running", "succeeded"]
    assert (seen[2].fraction, seen[-1].fraction) == (0.5, 1.0)
    assert seen[-1].losses == ((1, 2.5), (2, 1.25))
    assert FinetunedModel.from_dict(model.to_dict()) == model


def test_who_waits_is_told_step_and_loss(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing long is silent, and a status with its seconds alone says nothing of how far or how well."""
    for name in ("SHORT_SECONDS", "EVERY_SECONDS"):
        monkeypatch.setattr(f"dspy_finetune._progress.{name}", -1.0)
    monkeypatch.delenv("DSPY_FINETUNE_QUIET", raising=False)
    job.wait()
    told = capsys.readouterr().err
    assert f"{job.id} on openai: running" in told
    assert "running 1/2, loss 2.500" in told
    assert "2/2, loss 1.250" in told


def test_unknown_statuses_are_waited_through(job: Job, fake: FakeOpenAI) -> None:
    fake.script = ["pending", "paused_by_the_moon", "running", "post_training_checks", "succeeded"]
    assert job.wait().id.startswith("ft:")


@pytest.mark.parametrize(
    ("word", "status"), [("canceled", "cancelled"), ("Completed", "succeeded"), ("error", "failed"), ("Odd", "odd")]
)
def test_other_words_for_the_end_end_a_job(word: str, status: str) -> None:
    """Else a job that has ended would be followed for ever."""
    facts = job_facts({"id": "j", "status": word})
    assert (facts.status, facts.is_final) == (status, status != "odd")


def test_pauses_grow_while_nothing_changes_and_shrink_when_it_does(job: Job, fake: FakeOpenAI, time: FakeTime) -> None:
    fake.script = ["queued"] * 10 + ["running"] * 2 + ["succeeded"]
    job.wait()
    assert time.slept[:9] == pytest.approx([5.0 * 1.5**n if n < 7 else 60.0 for n in range(9)])
    assert max(time.slept) == 60.0
    assert time.slept[10] == 5.0


def test_a_deadline_leaves_the_job_alive_and_says_how_to_follow_it(job: Job, fake: FakeOpenAI, time: FakeTime) -> None:
    fake.script = ["running"]
    with pytest.raises(JobTimeoutError, match="attach") as caught:
        job.wait(timeout_seconds=100)
    assert isinstance(caught.value, TimeoutError)
    assert sum(time.slept) == pytest.approx(100)
    assert fake.jobs[job.id]["status"] == "running"


def test_an_outage_is_waited_through(job: Job, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *args, **kwargs: 0.0)
    fake.fail(LOOK, status=503, times=7)
    fake.drop(LOOK, done=False)
    assert job.wait().id.startswith("ft:")


def test_an_hour_of_silence_ends_the_wait(
    job: Job, fake: FakeOpenAI, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *args, **kwargs: 0.0)
    fake.fail(LOOK, status=503, times=10_000)
    with pytest.raises(HostError) as caught:
        job.wait(poll_seconds=600)
    assert caught.value.status == 503
    assert sum(time.slept) >= 3600


def test_a_laptop_that_slept_for_hours_goes_on(
    job: Job, fake: FakeOpenAI, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *args, **kwargs: 0.0)
    fake.script = ["running", "running", "running", "succeeded"]

    def close_the_lid(look: JobProgress) -> None:
        if not fake.faults and look.status == "running":
            fake.now += 8 * 3600
            fake.fail(LOOK, status=503, times=3)  # the network is not up yet when it wakes

    assert job.wait(on_progress=close_the_lid).id.startswith("ft:")


def test_a_key_that_is_refused_ends_the_wait_at_once(job: Job, fake: FakeOpenAI, time: FakeTime) -> None:
    fake.fail(LOOK, status=401)
    with pytest.raises(HostError):
        job.wait()
    assert time.slept == []


def test_a_failed_job_raises_the_hosts_code_message_and_param(job: Job, fake: FakeOpenAI) -> None:
    fake.script = ["running", "failed"]
    with pytest.raises(JobFailedError, match=r"Line 3 is wrong.*new=True") as caught:
        job.wait()
    assert (caught.value.code, caught.value.param) == ("invalid_training_file", "training_file")
    assert caught.value.job_id == job.id


def test_a_cancelled_job_raises(job: Job, fake: FakeOpenAI) -> None:
    assert job.cancel().status == "cancelled"
    with pytest.raises(JobCancelledError, match=r"new=True \(--new\) makes another job"):
        job.wait()


def test_pause_and_resume(job: Job) -> None:
    assert job.pause().status == "paused"
    assert job.status == "paused"
    assert job.resume().status == "queued"
    with pytest.raises(JobError, match="has not ended"):
        job.model()


def test_events_are_paged_none_lost_and_none_doubled(job: Job, fake: FakeOpenAI) -> None:
    for number in range(250):
        fake.emit(job.id, f"step {number}", step=number + 1, total_steps=250, train_loss=1.0)
    first = [one.id for one in job.events()]
    for number in range(130):
        fake.emit(job.id, f"more {number}")
    every = [one.id for one in job.events()]
    assert every[: len(first)] == first
    assert every == [one["id"] for one in fake.events[job.id]]
    assert len(every) == len(set(every)) == 381


def test_events_that_come_late_twice_or_without_an_id_are_all_there_once(job: Job, fake: FakeOpenAI) -> None:
    listed = fake.events[job.id]
    for number in range(3):
        fake.emit(job.id, f"event {number}")
        fake.now += 1
    assert len(job.events()) == 4
    late = {**listed[1], "id": "late", "message": "one that was slow"}
    listed.insert(1, late)
    listed.append({**listed[2]})
    fake.emit(job.id, "event 3")
    told = [one.message for one in job.events()]
    assert sorted(told[1:3]) == ["event 0", "one that was slow"]
    assert told[3:] == ["event 1", "event 2", "event 3"]
    for one in listed:
        one["id"] = None
    assert {one.message for one in attach(job.id, host=job.host).events()} == set(told)


def test_what_a_callback_raises_comes_out_with_a_line_that_says_how_to_go_on(
    job: Job, fake: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ZeroDivisionError):
        job.wait(on_progress=lambda look: 1 / 0)
    (line,) = (one.getMessage() for one in caplog.records if "on_progress" in one.getMessage())
    assert "the job itself goes on at openai" in line
    assert f"attach('{job.id}'" in line
    assert str(job.wait()) in fake.models


def test_a_model_that_was_deleted_is_said_to_be_and_not_waited_for(
    job: Job, fake: FakeOpenAI, time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    made = job.wait()
    fake.models.clear()
    fake.now += 86_400
    time.slept.clear()
    assert attach(job.id, host=job.host).wait() == made
    assert time.slept == []
    assert f"openai does not know {made}: it was deleted there" in caplog.text


def test_metrics_come_from_the_result_file_or_from_events(job: Job, fake: FakeOpenAI) -> None:
    fake.emit(job.id, "Step 1/2", step=1, total_steps=2, train_loss=2.5)
    assert job.metrics() == [{"step": 1, "train_loss": 2.5}]
    job.wait()
    assert job.metrics() == TABLE
    assert [str(one) for one in job.checkpoints()] == [f"{job.model()}:ckpt-step-1"]


@pytest.mark.parametrize(
    "content",
    [
        STEPS.encode(),
        b"\xef\xbb\xbf" + STEPS.encode(),
        STEPS.replace("\n", "\r\n").encode(),
        base64.b64encode(STEPS.encode()),
        base64.encodebytes(STEPS.encode()),
    ],
)
def test_a_result_file_is_read_in_every_form(content: bytes) -> None:
    assert parse_metrics(content) == TABLE


@pytest.mark.parametrize("content", [b"", b"not a table", b"\x00\xff\x00"])
def test_a_result_file_without_a_table_gives_no_rows(content: bytes) -> None:
    assert parse_metrics(content) == []


def test_metrics_events_of_one_step_are_put_together() -> None:
    events = [
        event({"id": "1", "type": "metrics", "data": {"step": 2, "total_steps": 2, "train_loss": 1.0}}),
        event({"id": "2", "type": "metrics", "data": {"step": 1, "train_loss": 3.0}}),
        event({"id": "3", "type": "metrics", "data": {"step": 2, "valid_loss": 1.5}}),
        event({"id": "4", "type": "moderation_checks", "data": {"step": 9}}),
    ]
    assert metrics_from_events(events) == [
        {"step": 1, "train_loss": 3.0, "valid_loss": None},
        {"step": 2, "train_loss": 1.0, "valid_loss": 1.5},
    ]


def test_another_machine_follows_without_the_journal(
    job: Job, host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sft_file: Path, time: FakeTime
) -> None:
    monkeypatch.setenv("DSPY_FINETUNE_HOME", str(tmp_path / "elsewhere"))
    model = attach(job.id, host=host).wait()
    assert model.data_sha256 == plan(sft_file, base_model=BASE, host=host).train.sha256
    with pytest.raises(UsageError, match="host="):
        attach(job.id)


def test_this_machine_follows_by_the_id_alone(job: Job, time: FakeTime) -> None:
    again = attach(job.id)
    assert again.host == job.host
    assert again.wait().estimated_cost_usd == pytest.approx(0.015)


def test_jobs_lists_those_that_others_started(job: Job, host: Host, fake: FakeOpenAI) -> None:
    for number in range(45):
        fake.create({"model": BASE, "training_file": f"file-{number}"})
    assert len(list_jobs(host=host)) == 20
    everything = list_jobs(host=host, limit=100)
    assert len(everything) == 46
    assert everything[0].id == "ftjob-0046"
    assert list_jobs(host=host, metadata={"dspy_finetune_attempt": "1"})[0].id == job.id


def test_an_unknown_job_is_said_to_be_unknown(host: Host) -> None:
    with pytest.raises(HostError, match="ftjob-nope"):
        attach("ftjob-nope", host=host)


def test_a_new_model_that_answers_404_is_waited_for(job: Job, fake: FakeOpenAI, time: FakeTime) -> None:
    fake.fail("GET /models/*", status=404, times=4)
    model = job.wait()
    assert fake.count("GET /models/*") >= 5
    before = len(time.slept)
    fake.fail("GET /models/*", status=404, times=1000)
    assert not model.wait_until_ready(timeout_seconds=120)
    assert sum(time.slept[before:]) <= 120
    fake.faults.clear()
    assert model.wait_until_ready()


def test_ctrl_c_leaves_the_job_alive(job: Job, fake: FakeOpenAI) -> None:
    def stop(progress: JobProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.wait(on_progress=stop)
    assert fake.jobs[job.id]["status"] not in FINAL_STATUSES
    assert job.wait().id


def test_a_host_without_events_is_followed_by_the_job_alone(job: Job, fake: FakeOpenAI) -> None:
    fake.fail("GET /fine_tuning/jobs/*/events", status=404, times=99)
    assert job.wait(on_progress=lambda look: None).id


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
fields = st.sampled_from(
    ["id", "status", "model", "fine_tuned_model", "created_at", "trained_tokens", "training_file", "seed", "extra"]
)


@given(st.dictionaries(fields, json_values, max_size=9), st.none() | st.just({}) | st.just({"code": None}))
def test_whatever_fields_a_job_has_it_is_read(values: dict[str, object], error: object) -> None:
    facts = job_facts({**values, "error": error, "method": None})
    assert facts.error_code is None
    assert isinstance(facts.status, str)


@pytest.mark.parametrize("error", [None, {}, {"code": None, "message": None, "param": None}])
def test_an_empty_error_is_none(error: object) -> None:
    facts = job_facts({"id": "j", "status": "running", "error": error})
    assert (facts.error_code, facts.error_message, facts.error_param) == (None, None, None)


@pytest.mark.parametrize(("finished_at", "seconds"), [(None, 900.0), (160, 60.0)])
def test_a_finished_job_took_what_it_took_whenever_it_is_looked_at(finished_at: int | None, seconds: float) -> None:
    facts = job_facts({"id": "j", "status": "succeeded", "created_at": 100, "finished_at": finished_at})
    look = make_progress(facts, [], n_tokens=None, cost=lambda facts, n_tokens: None, now=1000.0)
    assert look.elapsed_seconds == seconds


def test_what_is_tried_before_the_first_step_is_no_progress() -> None:
    facts = job_facts({"id": "j", "status": "running", "created_at": 100})
    tried = [event({"id": str(n), "type": "metrics", "data": {"step": n - 2, "valid_loss": 0.5}}) for n in range(3)]
    look = make_progress(facts, tried, n_tokens=90, cost=lambda facts, n_tokens: None, now=200.0)
    assert (look.step, look.total_steps, look.losses, look.eta_seconds) == (None, None, (), None)
    assert [row["step"] for row in metrics_from_events(tried)] == [-2, -1, 0]


def test_a_notebook_shows_the_last_poll_without_polling_again(job: Job, host: Host, fake: FakeOpenAI) -> None:
    before = len(fake.requests)
    assert "job.refresh() polls again" in job._repr_html_()
    assert "not polled yet" in Job("ftjob-<b>", host)._repr_html_()
    assert "<b>ftjob" not in Job("ftjob-<b>", host)._repr_html_()
    assert len(fake.requests) == before
    fake.script = ["failed"]
    job.refresh()
    shown = job._repr_html_()
    assert f"Job {job.id}: failed" in shown
    assert "<th>error</th>" in shown
    assert "polls again" not in shown
