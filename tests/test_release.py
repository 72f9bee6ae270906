"""What a release needs to agree on: one version everywhere, and the names that the package gives of itself."""

from __future__ import annotations

import re
from pathlib import Path

import dspy_finetune as ft

ROOT = Path(__file__).parents[1]


def found(pattern: str, name: str) -> list[str]:
    return re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"), re.M)


def test_the_version_is_the_same_everywhere() -> None:
    assert found(r'^version = "([^"]+)"', "pyproject.toml") == [ft.__version__]
    assert found(r"^version: (\S+)", "CITATION.cff") == [ft.__version__]
    assert found(r"^## (\d\S*)", "CHANGELOG.md")[0] == ft.__version__


def test_each_hook_runs_a_command_of_the_environment() -> None:
    entries = found(r"^ +entry: (.+)", ".pre-commit-config.yaml")
    # No second set of versions beside constraints.txt.
    assert found(r"^ +language: (.+)", ".pre-commit-config.yaml") == ["system"] * len(entries)
    assert all(".venv/bin/" in entry for entry in entries)
