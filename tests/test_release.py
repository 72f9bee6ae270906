"""What a release needs to agree on: one version everywhere, and the names that the package gives of itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dspy_finetune as ft
from tests import matrix

ROOT = Path(__file__).parents[1]


def found(pattern: str, name: str) -> list[str]:
    return re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"), re.M)


def test_the_version_is_the_same_everywhere() -> None:
    assert found(r'^version = "([^"]+)"', "pyproject.toml") == [ft.__version__]
    assert found(r"^version: (\S+)", "CITATION.cff") == [ft.__version__]
    assert found(r"^## (\d\S*)", "CHANGELOG.md")[0] == ft.__version__


def test_the_matrix_has_each_supported_python_at_both_ends_of_the_bounds() -> None:
    """As the classifiers have them; the lowest cell installs the lower bounds, the newest none."""
    named = found(r"Programming Language :: Python :: (3\.\d+)", "pyproject.toml")
    assert [cell.python for cell in matrix.cells(["lowest"])] == named == list(matrix.PYTHONS)
    assert [cell.name for cell in matrix.cells(["3.13"])] == ["3.13-lowest", "3.13-newest"]
    assert [cell.name for cell in matrix.cells(["3.10-newest"])] == ["3.10-newest"]
    lines = {bound: matrix.constraints(matrix.Cell("3.10", bound)).splitlines() for bound in matrix.BOUNDS}
    (dspy,) = found(r'^    "dspy-ai>=([\d.]+),', "pyproject.toml")
    (openai,) = found(r'^    "openai>=([\d.]+),', "pyproject.toml")
    bounded = {f"dspy-ai=={dspy}", f"dspy=={dspy}", f"openai=={openai}"}
    assert set(lines["lowest"]) - set(lines["newest"]) == bounded
    assert not [line for line in lines["newest"] if line.startswith(("dspy", "openai"))]
    with pytest.raises(SystemExit, match=r"error: 3\.9: expected 3\.10, 3\.11"):
        matrix.cells(["3.9"])


def test_a_python_that_is_not_there_is_a_cell_that_is_skipped_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix, "interpreter", lambda python: None)
    monkeypatch.setattr("sys.argv", ["matrix.py", "3.12-lowest"])
    assert matrix.main() == 0
    assert capsys.readouterr().out == "3.12-lowest  skipped: no python3.12 on the PATH or in ~/.pyenv/versions\n"


def test_each_hook_runs_a_command_of_the_environment() -> None:
    entries = found(r"^ +entry: (.+)", ".pre-commit-config.yaml")
    # No second set of versions beside constraints.txt.
    assert found(r"^ +language: (.+)", ".pre-commit-config.yaml") == ["system"] * len(entries)
    assert all(".venv/bin/" in entry for entry in entries)
