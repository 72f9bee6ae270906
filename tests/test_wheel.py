"""What is installed: the package with its data files, and nothing of the repository around it."""

from __future__ import annotations

import subprocess
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
DATA = {
    "dspy_finetune/py.typed",
    "dspy_finetune/catalog.json",
    "dspy_finetune/quickstart_titles.jsonl",
    "dspy_finetune/quickstart_products.jsonl",
    "dspy_finetune/quickstart_questions.jsonl",
    "dspy_finetune/quickstart_rubric.txt",
    "dspy_finetune/report/page.html.jinja",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # What `pip wheel . --no-deps` does, without the network that its separate environment needs.
    builder = WheelBuilder(str(ROOT))
    (made,) = builder.build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return Path(made)


def test_the_wheel_holds_the_package_and_its_data(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names >= DATA
    # Nothing but the package: no tests, docs, benchmarks, caches.
    assert {name.split("/")[0] for name in names} == {"dspy_finetune"}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".md"))]


def test_the_wheel_holds_every_tracked_file_of_the_package(wheel: Path) -> None:
    shown = subprocess.run(["git", "ls-files", "dspy_finetune"], cwd=ROOT, capture_output=True, text=True, check=False)
    tracked = {name for name in shown.stdout.split() if (ROOT / name).exists()}
    if not tracked:  # an unpacked archive has no git
        tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dspy_finetune").rglob("*.py")}
    assert tracked <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_names_its_command_and_extras(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    assert b"dspy-finetune = dspy_finetune.cli.main:main" in archive.read(f"{info}/entry_points.txt")
    facts = message_from_bytes(archive.read(f"{info}/METADATA"))
    assert set(facts.get_all("Provides-Extra") or []) >= {"cli", "data", "eval", "report", "local", "all"}
    assert any("LICENSE" in name for name in archive.namelist())
