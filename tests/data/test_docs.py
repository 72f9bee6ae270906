"""The how-to of this room runs as it stands, block after block, in an empty folder; so do the docstrings' examples."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import dspy_finetune.data

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in Path(dspy_finetune.data.__file__).parent.glob("*.py"))


def test_every_python_block_of_the_how_to_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/data.md", "exec"), names)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_show_what_happens(name: str) -> None:
    module = importlib.import_module("dspy_finetune.data" + ("" if name == "__init__" else f".{name}"))
    assert doctest.testmod(module).failed == 0
