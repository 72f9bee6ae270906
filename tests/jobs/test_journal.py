"""The journal survives crashes, other processes and older versions."""

from __future__ import annotations

import json
import logging
import multiprocessing
from pathlib import Path

import pytest

from dspy_finetune.errors import FileError, JobError
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import Journal, plan
from tests.fake_openai import FakeOpenAI


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


def test_a_journal_of_the_first_schema_is_written_on_in_the_present_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.path.write_text((Path(__file__).parent / "journal_v1.jsonl").read_text(encoding="utf-8"))
    before = journal.entries()
    journal.append("INTENT", "ended", at=9.0, job_id="ftjob-0001")
    assert [json.loads(line)["v"] for line in journal.path.read_text().splitlines()] == [1] * len(before) + [2]
    assert journal.entries("INTENT")[:-1] == before
    assert journal.entries("INTENT")[-1].facts == {"job_id": "ftjob-0001"}


def test_a_journal_that_cannot_be_written_stops_before_money(tmp_path: Path, sft_file: Path, host: Host) -> None:
    (tmp_path / "file").write_text("")
    made = plan(sft_file, base_model="gpt-4.1-mini-2025-04-14", host=host)
    with pytest.raises(FileError, match="part of the path is a file"):
        made.start(journal=Journal(tmp_path / "file" / "journal.jsonl"))
