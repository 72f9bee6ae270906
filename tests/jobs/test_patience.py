"""On every host: what passes is waited out with a line, what stays ends with one, and no second job is ever paid."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from dspy_finetune.cli.main import main
from dspy_finetune.errors import AmbiguousJobError
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import plan
from dspy_finetune.jobs.records import CLOCK, event, job_facts
from tests.fake_hosts import FakeFireworks, FakeNebius, FakeTogether
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import FakeTime, write_sft


@dataclass
class Place:
    """One host: its double, how the command line names it, its routes and words."""

    fake: FakeOpenAI
    host: str
    model: str
    time: FakeTime
    look: str = "GET /fine_tuning/jobs/*"
    create: str = "POST /fine_tuning/jobs"
    upload: str = "POST /files"

    @property
    def n_jobs(self) -> int:
        return len(getattr(self.fake, "tuned", None) or self.fake.jobs)


KINDS = ["openai", "azure", "compatible", "local", "nebius", "together", "fireworks"]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    kind = request.param
    double = {"nebius": FakeNebius, "together": FakeTogether, "fireworks": FakeFireworks}.get(kind, FakeOpenAI)
    fake = double(key="own-key")
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *args, **kwargs: 0.0)
    time = FakeTime(fake)
    monkeypatch.setattr(CLOCK, "now", time.now)
    monkeypatch.setattr(CLOCK, "sleep", time.sleep)
    for variable in ("OPENAI", "AZURE_OPENAI", "EX", "DSPY_FINETUNE_LOCAL", "NEBIUS", "TOGETHER", "FIREWORKS"):
        monkeypatch.setenv(f"{variable}_API_KEY", "own-key")
    url = fake.inference_url if isinstance(fake, FakeFireworks) else fake.url
    monkeypatch.setenv(f"{kind.upper()}_BASE_URL", url)
    hosts = {"azure": f"azure={url.removesuffix('/v1')}", "compatible": f"ex={url}", "local": f"local={url}"}
    made = Place(fake, hosts.get(kind, kind), Host.openai().base_model, time)
    if kind == "local":
        made.model = "smollm2-135m-instruct"
    if kind == "nebius":
        made.model = "meta-llama/Llama-3.1-8B-Instruct"
    if kind == "together":
        made.model, made.look, made.create = "Qwen/Qwen3-8B", "GET /fine-tunes/*", "POST /fine-tunes"
        made.upload = "POST /files/upload"
    if kind == "fireworks":
        made.model, made.upload = "accounts/fireworks/models/qwen3-8b", "POST /*/*/datasets"
        made.look, made.create = "GET /*/*/supervisedFineTuningJobs/*", "POST /*/*/supervisedFineTuningJobs"
    yield made
    fake.close()


def train(place: Place, folder: Path, *options: str) -> int:
    """The exit code of the command."""
    path = folder / "train.jsonl"
    if not path.exists():
        write_sft(path)
    return run("train", str(path), "--host", place.host, "--model", place.model, "--allow-unknown-price", *options)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *(["--allow-unknown-model"] if arguments[0] == "train" else [])])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_what_passes_is_waited_out_with_a_line(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Before the job, in the request that pays, and while it is followed."""
    fake = place.fake
    for route in (place.create.replace("POST", "GET"), place.upload, place.create):
        for status in (500, 502, 503):
            fake.fail(route, status=status)
    for status in (429, 500, 502, 503) * 3:
        fake.fail(place.look, status=status)
    fake.drop(place.look, done=False)
    fake.fail(place.look, status=404)
    assert train(place, tmp_path) == 0, capsys.readouterr().err
    assert place.n_jobs == 1
    lines = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert any(re.search(r"ask for the job .*HTTP 50.*asking again in [\d.]+ s", one) for one in lines)
    assert len(lines) < 16
    assert train(place, tmp_path) == 0
    assert place.n_jobs == 1


def test_a_pause_that_the_host_asks_for_is_kept(place: Place, tmp_path: Path) -> None:
    """By a date, though the host's clock is ten minutes ahead of ours."""
    place.fake.now += 600
    told = formatdate(place.fake.now + 90, usegmt=True)
    CLOCK.now = lambda: place.fake.now - 600
    place.fake.fail(place.look, status=429, times=3, headers={"Retry-After": told})
    assert train(place, tmp_path) == 0
    assert place.time.slept[0] == 90
    assert place.n_jobs == 1


def test_a_key_that_is_refused_says_that_the_job_goes_on_and_how_to_follow_it(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place.fake.fail(place.look, status=401 if len(place.host) % 2 else 403, times=9)
    assert train(place, tmp_path) == 1
    told = capsys.readouterr().err
    (line,) = (one for one in told.splitlines() if one.startswith("error: "))
    assert "the job itself goes on at" in line
    assert "Traceback" not in told
    again = line.split("or dspy-finetune ")[1].split()
    place.fake.faults.clear()
    assert run(*again) == 0
    assert train(place, tmp_path) == 0
    assert place.n_jobs == 1


def test_a_job_that_vanishes_is_told_in_one_line(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place.fake.fail(place.look, status=404, times=999)
    assert train(place, tmp_path) == 1
    told = capsys.readouterr().err
    assert "no more: it may have been deleted there" in told
    assert f"dspy-finetune jobs list --host {place.host.partition('=')[0]}" in told
    assert place.n_jobs == 1


def test_following_waits_for_a_host_that_is_down(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(place, tmp_path, "--no-wait") == 0
    again = capsys.readouterr().out.split()
    place.fake.fail(place.look, status=503, times=9)
    assert run(*again[1:]) == 0
    assert len(place.time.slept) >= 3


def test_an_odd_answer_does_not_end_the_following(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A proxy's page, a list, an empty object; a status that is new, or null."""
    answers: list[Any] = ["<html>busy</html>", b"<html>busy</html>", {}, ["x"], None]
    for odd in answers:
        place.fake.fail(place.look, status=200, body=odd)
    assert train(place, tmp_path) == 0, capsys.readouterr().err
    assert place.n_jobs == 1


@pytest.mark.parametrize("apart", [-600.0, 600.0])
def test_a_clock_that_is_wrong_makes_no_second_job(
    fake: FakeOpenAI, host: Host, time: FakeTime, sft_file: Path, monkeypatch: pytest.MonkeyPatch, apart: float
) -> None:
    """The host keeps no metadata and its clock is ten minutes off; the reply is lost."""
    fake.keeps_metadata = False
    fake.drop("POST /fine_tuning/jobs")
    monkeypatch.setattr(CLOCK, "now", lambda: fake.now + apart)
    with pytest.raises(AmbiguousJobError, match="ftjob-0001"):
        plan(sft_file, base_model=host.base_model, host=host).start()
    assert fake.count("POST /fine_tuning/jobs") == len(fake.jobs) == 1


def test_a_wrong_address_is_not_waited_for(
    host: Host, time: FakeTime, sft_file: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeOpenAI
) -> None:
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *args, **kwargs: 0.0)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(Exception, match="no answer"):
        plan(sft_file, base_model=host.base_model, host=host).start()
    assert time.slept == []


def test_numbers_that_are_none_are_no_steps() -> None:
    facts = job_facts(
        {"id": "j", "created_at": float("inf"), "metadata": ["x"], "result_files": 5, "seed": float("nan")}
    )
    assert (facts.created_at, facts.seed, facts.metadata, facts.result_files) == (None, None, {}, ())
    assert event({"id": "e", "data": {"step": float("nan"), "total_steps": 3, "train_loss": 1.0}}).data == {
        "total_steps": 3,
        "train_loss": 1.0,
    }
