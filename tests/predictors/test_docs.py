"""The examples of docs/predictors.md and of the room's docstrings give what they show."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "predictors.md"


def test_the_page_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    """Each output that a comment shows is printed, in that order."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    printed = iter(capsys.readouterr().out.splitlines())
    for shown in re.findall(r"^print\(.*\)  # (.*)$", "\n".join(blocks), re.MULTILINE):
        assert shown in printed


@pytest.mark.parametrize(
    "name", ["", ".calibration", ".cascade", ".dpo", ".ensemble", ".reading", ".replacing", ".saved"]
)
def test_docstring_examples_give_what_they_show(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"dspy_finetune.predictors{name}"))
    assert found.attempted > 0
    assert found.failed == 0
