"""The journal survives crashes, other processes and older versions, and holds no secret."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
import traceback
from pathlib import Path

import pytest

from dspy_finetune.errors import FileError, HostError, JobError
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import Journal, plan
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import FakeTime

SECRET = "sk-planted-4f8c2e71d9aa"


def test_what_is_written_is_read_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "journal.jsonl")
    assert journal.entries() == []
    for number in range(3):
        journal.append("a" if number % 2 else "b", f"event{number}", at=float(number), text="zwölf\nlines")
    assert [entry.event for entry in journal.entries()] == ["event0", "event1", "event2"]
    assert [entry.event for entry in journal.entries("b")] == ["event0", "event2"]
    assert journal.entries()[0].facts == {"text": "zwölf\nlines"}
    assert journal.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("cut", range(1, 56, 7))
def test_a_torn_last_line_is_passed_over_and_written_after(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("a", "first", at=1.0)
    journal.append("a", "second", at=2.0)
    journal.path.write_bytes(journal.path.read_bytes()[:-cut])
    with caplog.at_level(logging.WARNING):
        assert [entry.event for entry in journal.entries()] in (["first"], ["first", "second"])
    journal.append("a", "third", at=3.0)
    events = [entry.event for entry in journal.entries()]
    assert (events[0], events[-1]) == ("first", "third")


def _append_many(path: Path, name: str) -> None:
    for number in range(50):
        Journal(path).append(name, "event", at=float(number), filler="x" * 5000)


def test_lines_of_two_processes_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_append_many, args=(path, name)) for name in "ab"]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    assert [len(Journal(path).entries(name)) for name in "ab"] == [50, 50]


def test_a_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({"v": 99, "at": 1, "intent": "a", "event": "created"}) + "\n")
    with pytest.raises(JobError, match=r"journal\.jsonl:1.*upgrade"):
        Journal(path).entries()


def test_the_first_schema_is_still_understood(
    tmp_path: Path, sft_file: Path, host: Host, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(sft_file, base_model="gpt-4.1-mini-2025-04-14", host=host)
    fake.create({"model": made.base_model, "training_file": "file-1"})
    recorded = (Path(__file__).parent / "journal_v1.jsonl").read_text(encoding="utf-8")
    home = tmp_path / "old"
    home.mkdir()
    (home / "journal.jsonl").write_text(recorded.replace("INTENT", made.intent))
    monkeypatch.setenv("DSPY_FINETUNE_HOME", str(home))
    job = made.start()
    assert (job.id, job.is_new, len(fake.jobs)) == ("ftjob-0001", False, 1)


def test_a_journal_that_cannot_be_written_stops_before_money(tmp_path: Path, sft_file: Path, host: Host) -> None:
    (tmp_path / "file").write_text("")
    made = plan(sft_file, base_model="gpt-4.1-mini-2025-04-14", host=host)
    with pytest.raises(FileError, match="part of the path is a file"):
        made.start(journal=Journal(tmp_path / "file" / "journal.jsonl"))


def test_a_planted_key_is_nowhere(
    sft_file: Path,
    fake: FakeOpenAI,
    time: FakeTime,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    texts: list[str] = []
    for host in (Host.openai(), Host.openai(SECRET), Host.compatible(fake.url, SECRET, "other")):
        made = plan(sft_file, base_model="gpt-4.1-mini-2025-04-14", host=host)
        fake.drop("POST /fine_tuning/jobs")
        job = made.start(clock=time.clock())
        model = job.wait()
        texts += [repr(made), str(made.to_dict()), repr(job), repr(model), str(model.to_dict())]
        texts += [pickle.dumps(value).decode("latin-1") for value in (made, model)]
        fake.fail("GET /fine_tuning/jobs/*", status=401, body={"error": {"message": f"bad key {SECRET}"}})
        with pytest.raises(HostError) as caught:
            job.refresh()
        texts += [repr(caught.value), pickle.dumps(caught.value).decode("latin-1")]
        texts.append("".join(traceback.format_exception_only(caught.value)))
    assert any(SECRET in str(headers) for headers in fake.headers)
    # The client's own debug log shows what the server sent; ours shows nothing of it.
    texts.append("\n".join(record.getMessage() for record in caplog.records if record.name.startswith("dspy_finetune")))
    texts += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in texts if SECRET in text]
