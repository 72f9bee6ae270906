"""The notebook runs from top to bottom on the real small model, and shows tables and plots inline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


def kinds(cells: list[Any]) -> list[list[str]]:
    """For each code cell, the kinds of what it shows as a value or a picture."""
    return [
        [kind for output in cell["outputs"] for kind in output.get("data", {}) if kind != "text/plain"]
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def test_the_notebook_as_it_is_kept_shows_its_results_and_no_path_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    shown = [kind for cell in kinds(json.loads(text)["cells"]) for kind in cell]
    assert shown.count("text/html") == 3  # the advice, the plan, the report
    assert shown.count("image/png") == 1
    assert not [place for place in ("/tmp/", "/home/", "/root/", "/Users/") if place in text]


@pytest.mark.local
@pytest.mark.timeout(1800)
# The kernel speaks over loopback without encryption, and jupyter_client says so.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("DSPY_FINETUNE_HOME", str(tmp_path / "home"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before = kinds(notebook.cells)
    client = nbclient.NotebookClient(
        notebook, timeout=1700, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert kinds(notebook.cells) == before
    assert (tmp_path / "runs" / "notebook" / "report.html").exists()
