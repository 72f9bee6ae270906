"""The way of the data: each layer imports only layers to its left, and importing the package costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dspy_finetune"
LAYERS = [
    "report", "data", "prompts", "export", "hosts", "jobs", "optimizers", "predictors", "verification", "bulk",
    "evaluation", "migration", "integrations", "cli",
]  # fmt: skip
SHARED = {"errors", "_optional", "_files", "_jsonl", "_progress", "values", "tasks", "catalog"}
ALLOWED = {
    # The command that is the server, and the main job.
    ("cli", "local"),
    ("cli", "quickstart"),
}
HEAVY = [
    "openai", "litellm", "torch", "tiktoken", "pandas", "pyarrow", "datasets", "sklearn", "scipy", "rich", "typer",
    "numpy", "dspy",
]  # fmt: skip


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, anywhere in it, without the package's name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "dspy_finetune" else []
            found.update(names or [node.module])
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name.removeprefix("dspy_finetune.") for name in found if name.startswith("dspy_finetune.")}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_layers_to_its_left(layer: str) -> None:
    left = set(LAYERS[: LAYERS.index(layer) + 1]) | SHARED
    module = PACKAGE / f"{layer}.py"
    for path in [module] if module.exists() else sorted((PACKAGE / layer).rglob("*.py")):
        for name in imports(path):
            room = name.split(".")[0]
            allowed = room in left or any((layer, name[: len(other)]) == (of, other) for of, other in ALLOWED)
            assert allowed, f"{path.relative_to(PACKAGE)} imports {name}"


def test_the_local_host_stands_apart() -> None:
    """It is reached over HTTP: of the rest of the package it knows the shared modules only."""
    for path in sorted((PACKAGE / "local").rglob("*.py")):
        if path.name == "__main__.py":
            continue  # the module run as a program is the command `serve`
        for name in imports(path):
            assert name.split(".")[0] in SHARED | {"local"}, f"{path.name} imports {name}"


def test_torch_is_imported_in_the_local_host_alone() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.is_relative_to(PACKAGE / "local"):
            continue
        text = path.read_text(encoding="utf-8")
        assert "import torch" not in text, path
        assert "from torch" not in text, path


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, dspy_finetune; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_each_layer_can_be_imported_first() -> None:
    """Names are imported when they are used, so any layer may come first: none leans on another's import."""
    code = f"""
import importlib, sys
for layer in {LAYERS!r}:
    for name in [name for name in sys.modules if name.partition(".")[0] == "dspy_finetune"]:
        del sys.modules[name]
    importlib.import_module("dspy_finetune." + layer)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "done", done.stderr


def test_each_module_opens_with_its_contract() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"
