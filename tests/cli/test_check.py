"""`dspy-finetune check`: exit codes, JSON, the corrected copy, standard input."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dspy_finetune.cli.main import main
from dspy_finetune.export.checks.checker import check
from dspy_finetune.report.blocks import fitted

EXPORT = Path(__file__).parents[1] / "export"
GOOD, BROKEN = EXPORT / "good", EXPORT / "broken"


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["check", *map(str, arguments)])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_a_good_file_exits_with_0_and_a_broken_one_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(GOOD / "chat.jsonl") == 0
    assert "ok: 12 rows" in capsys.readouterr().out
    assert run(BROKEN / "python-repr.jsonl") == 1
    shown = capsys.readouterr()
    assert "python-repr" in shown.out
    assert "--fix OUT" in shown.err
    assert run(BROKEN / "bom.jsonl") == 0  # a warning alone


@pytest.mark.parametrize("width", [40, 60])
def test_a_remedy_can_be_read_in_a_narrow_terminal(width: int, tmp_path: Path) -> None:
    """Nothing is indented by more than a remedy's own arrow."""
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompts": "Is it one?"}\n{"messages": 3}\n')
    lines = fitted(str(check(path)), width, indent=4).splitlines()
    assert any(line.startswith("    -> ") for line in lines)
    assert max(len(line) - len(line.lstrip()) for line in lines) <= len("    -> ")


def test_json_holds_the_report_and_the_fix(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(BROKEN / "python-repr.jsonl", "--json", "--fix", tmp_path / "out.jsonl") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"python-repr": 12}
    assert found["fix"]["counts"] == {"python-repr": 12}
    assert run(tmp_path / "out.jsonl") == 0


def test_rows_are_shown_without_terminal_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(GOOD / "chat.jsonl", "--show", "2", "--method", "sft", "--model", "gpt-4.1-mini-2025-04-14") == 0
    assert "trained assistant: answer 1" in capsys.readouterr().out


def test_standard_input_is_read(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO((GOOD / "chat.jsonl").read_bytes())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data, isatty=lambda: False))
    assert run("-", "--json") == 0
    assert json.loads(capsys.readouterr().out)["stats"]["n_rows"] == 12


def test_wrong_usage_exits_with_2_and_a_missing_file_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(GOOD / "chat.jsonl", "--method", "ppo") == 2
    assert run(GOOD / "chat.jsonl", "--fix", GOOD / "chat.jsonl") == 2
    assert run("absent.jsonl") == 1
    assert "Traceback" not in capsys.readouterr().err


def test_without_a_host_it_is_said_whose_limits_apply(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join((GOOD / "chat.jsonl").read_text().splitlines(keepends=True)[:3]))
    assert run(few) == 1
    assert "limits of openai, as no host is named" in " ".join(capsys.readouterr().err.split())
    assert run(few, "--host", "openai") == 1
    assert "no host is named" not in " ".join(capsys.readouterr().err.split())
    assert run(few, "--host", "local") == 1
    assert run(few, "--host", "fireworks") == 0
