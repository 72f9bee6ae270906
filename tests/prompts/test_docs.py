"""The examples of the documentation and of the docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MODULES = ["", ".adapter", ".completion", ".format", ".labels", ".number_text", ".presets", ".template"]


def test_the_page_runs_from_top_to_bottom() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 7
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/prompts.md", "exec"), names)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_show_what_happens(name: str) -> None:
    module = importlib.import_module(f"dspy_finetune.prompts{name}")
    assert doctest.testmod(module).failed == 0
