"""The examples of the evaluation and report rooms run: docs/evaluation.md and the docstrings."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_the_page_on_evaluation_runs_from_top_to_bottom(capsys):
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    assert "tfidf is better than majority" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["evaluation", "evaluation.metrics", "evaluation.baselines", "report"])
def test_docstring_examples_give_what_they_show(name):
    found = doctest.testmod(importlib.import_module(f"dspy_finetune.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
