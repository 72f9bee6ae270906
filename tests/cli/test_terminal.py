"""What a command writes to a terminal, to one without colours, to one that knows no codes, and to a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

from dspy_finetune.cli.main import main

TABLE = (
    "title;liked\r\n" + "".join(f"A quiet town, part {n};{'yes' if n % 2 else 'no'}\r\n" for n in range(40)) + "B;\r\n"
)
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def written(argv: list[str], monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> tuple[int, str]:
    """Exit code and all that a command writes to both streams, of a terminal or of a pipe."""
    reader, writer = os.openpty() if is_terminal else os.pipe()
    os.set_blocking(reader, False)
    with os.fdopen(writer, "w", encoding="utf-8", buffering=1) as stream:
        with monkeypatch.context() as streams:
            streams.setattr(sys, "stdout", stream)
            streams.setattr(sys, "stderr", stream)
            with pytest.raises(SystemExit) as stop:
                main(argv)
        stream.flush()
        found = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(reader, 65536):
                found += part
    os.close(reader)
    assert isinstance(stop.value.code, int)
    return stop.value.code, found.decode()


@pytest.mark.parametrize("terminal", ["dumb", "xterm"])
def test_a_plan_fits_a_narrow_terminal(terminal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    rows = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "yes"}]
    lines = [json.dumps({"messages": [{**rows[0], "content": f"Is it {n}?"}, rows[1]]}) for n in range(12)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    code, text = written(["plan", str(tmp_path / "train.jsonl"), "--host", "local"], monkeypatch, is_terminal=True)
    assert code == 0
    plain = CODES.sub("", text).splitlines()
    assert any(line.startswith("rows") for line in plain)
    assert max(len(line) for line in plain if line.startswith(("model", "recipe", " "))) <= 40


@pytest.mark.parametrize(
    ("environment", "is_terminal", "colours"),
    [
        ({}, False, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_colours_are_for_terminals_that_want_them(
    environment: dict[str, str],
    is_terminal: bool,
    colours: bool,
    quiet: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "rows.csv").write_text(TABLE, encoding="utf-8")
    argv = ["split", str(tmp_path / "rows.csv"), "--label", "liked", "--out", str(tmp_path / "data"), *quiet]
    code, said = written(argv, monkeypatch, is_terminal=is_terminal)
    assert code == 0
    assert bool(CODES.search(said)) is colours
    plain = CODES.sub("", said)
    assert plain.count("1 of 41 rows have no 'liked'") == 1, "a warning is no remark, and stands there once"
    assert plain.count("stay together") == (not quiet)
    assert plain.count(": 32 rows (train)") == 1


def test_no_line_in_a_pipe_ends_with_blanks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.jsonl"
    turns = [("user", "A quiet town, part {n}"), ("assistant", "{yes}")]
    rows = [
        [{"role": role, "content": text.format(n=n, yes="yes" if n % 2 else "no")} for role, text in turns]
        for n in range(40)
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    code, said = written(["plan", str(path), "--host", "local"], monkeypatch, is_terminal=False)
    assert code == 0
    lines = [line for line in said.splitlines() if not line.startswith("warning")]
    assert lines[2].startswith("recipe  head, a linear head on the frozen base")
    assert [line for line in lines if line != line.rstrip()] == []
