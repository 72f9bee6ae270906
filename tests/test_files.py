"""The append-only log: a line is whole or absent, whoever dies when, and one process holds a checkpoint at a time."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from dspy_finetune._files import AppendLog, is_locked, try_lock
from dspy_finetune.errors import DataError, FileError


@pytest.mark.parametrize("cut", [1, 2, 9])
def test_a_torn_end_is_never_read_and_goes_with_the_next_row(tmp_path: Path, cut: int) -> None:
    log = AppendLog(tmp_path / "log.jsonl")
    log.append({"n": 1}, {"n": 2})
    log.path.write_bytes(log.path.read_bytes()[:-cut])
    assert list(log.rows()) == [(1, {"n": 1})]
    log.append({"n": 3})
    assert log.path.read_bytes() == b'{"n": 1}\n{"n": 3}\n'


def test_a_file_that_is_something_else_stays_as_it_is(tmp_path: Path) -> None:
    """A wrong path given as a checkpoint costs nobody's file its last line."""
    path = tmp_path / "notes.txt"
    path.write_bytes(b"one\ntwo without an end")
    with AppendLog(path, "checkpoint").hold() as held, pytest.raises(DataError, match=r"notes\.txt:1: not a line of a"):
        list(held.rows())
    assert path.read_bytes() == b"one\ntwo without an end"


def test_half_a_character_is_kept(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log.jsonl")
    log.append("\ud83d", "é")
    assert [row for _, row in log.rows()] == ["\ud83d", "é"]


def test_a_reader_goes_on_where_it_stopped(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log.jsonl")
    assert log.tail(0) == ([], 0)
    log.append(1, 2)
    rows, end = log.tail(0)
    with log.path.open("ab") as stream:
        stream.write(b"3")
    assert (rows, log.tail(end)) == ([1, 2], ([], end))
    log.append(4)
    assert log.tail(end)[0] == [4]


def _hold(path: str, said: Path) -> None:
    try:
        AppendLog(path).hold()
        said.write_text("held")
    except FileError as error:
        said.write_text(str(error))
    os._exit(0)  # as a process that is killed: nothing is closed


def test_one_process_holds_a_log_until_it_dies(tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "log.jsonl")

    def ask() -> str:
        child = multiprocessing.get_context("spawn").Process(target=_hold, args=(path, tmp_path / "said"))
        child.start()
        child.join(60)
        return (tmp_path / "said").read_text()

    held = AppendLog(path).hold()
    assert is_locked(path)
    assert try_lock(path) is None
    assert "another process is at work" in ask()
    held.close()
    assert ask() == "held"
    assert not is_locked(path)
