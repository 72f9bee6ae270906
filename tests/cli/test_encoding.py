"""Every command on a stream that cannot write every character: Windows' cp1252, where the output goes to a file."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator

import pytest

from dspy_finetune.cli import main as command_line
from tests import json_keys

BEE = "\N{HONEYBEE}"


@pytest.fixture(scope="module")
def folder() -> Iterator[None]:
    """A project whose titles hold an emoji."""
    with json_keys.project():
        yield


class Narrow(io.TextIOWrapper):
    """A stream of one encoding, which is or is not a terminal."""

    def __init__(self, encoding: str, is_terminal: bool = False) -> None:
        self.bytes = io.BytesIO()
        self.is_terminal = is_terminal
        super().__init__(self.bytes, encoding=encoding, errors="strict", write_through=True)

    def isatty(self) -> bool:
        return self.is_terminal


def run(arguments: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> tuple[str, str]:
    """(what stands on stdout, on stderr) after a command, which must not fail."""
    out, talk = Narrow(encoding), Narrow(encoding, is_terminal)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", talk)
    monkeypatch.delenv("DSPY_FINETUNE_QUIET", raising=False)
    with pytest.raises(SystemExit) as stop:
        command_line.main(arguments)
    texts = (out.bytes.getvalue().decode(encoding), talk.bytes.getvalue().decode(encoding))
    assert stop.value.code in {0, 3}, texts
    return texts


@pytest.mark.parametrize("command", json_keys.RUNS)
def test_no_command_fails_at_a_character(command: str, folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results, warnings and each line of progress, live bars among them."""
    talk = run([*command.split(), *json_keys.RUNS[command]], "cp1252", monkeypatch, is_terminal=True)[1]
    assert "UnicodeEncodeError" not in talk
    if command == "train":
        assert "loss 1.250" in talk
        assert "\\u25" not in talk  # bars are drawn with ASCII


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_json_is_the_same_in_every_encoding(encoding: str, folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run(["check", "train.jsonl", "--json"], encoding, monkeypatch, is_terminal=False)[0]
    assert json.loads(out)["ok"]
    line = ["compare", "rows.jsonl", "--program", "tuned=tuned.json", "--json"]
    found = json.loads(run(line, encoding, monkeypatch, is_terminal=False)[0])
    assert BEE in str(found["comparison"]["items"])


def test_half_a_character_is_no_fault_of_any_stream(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["check", "no-\udce9-file.jsonl"])
    assert b"no-\\udce9-file.jsonl" in capsysbinary.readouterr().err
