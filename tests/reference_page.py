"""docs/reference.md and the list of files in docs/architecture.md: `python -m tests.reference_page --write`.

In the reference each public name stands under its subpackage, by the module that defines it, for mkdocstrings to fill
in. The list has each file of the package with the first line of its docstring.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

import dspy_finetune as ft

FILE = Path(__file__).parents[1] / "docs" / "reference.md"
ARCHITECTURE = FILE.with_name("architecture.md")
LIST = re.compile(r"(?<=<!-- files -->\n).*(?=<!-- end of files -->)", re.S)
TITLES = {
    "data": "Data",
    "prompts": "Prompts",
    "export": "Training files",
    "hosts": "Hosts",
    "jobs": "Jobs",
    "optimizers": "Optimizers",
    "predictors": "Predictors",
    "bulk": "Many rows",
    "evaluation": "Evaluation",
    "migration": "Migration",
}
MODULES = {
    "prompts": "dspy_finetune.prompts.presets",
    "bulk": "dspy_finetune.bulk.run",
    "metrics": "dspy_finetune.evaluation.metrics",
    "baselines": "dspy_finetune.evaluation.baselines",
    "errors": "dspy_finetune.errors",
    "integrations": "dspy_finetune.integrations",
}


def text() -> str:
    """The whole page."""
    by_room: dict[str, list[str]] = {}
    for name in ft.__all__:
        value = getattr(ft, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            by_room.setdefault(value.__module__.split(".")[1], []).append(f"{value.__module__}.{value.__qualname__}")
    lines = ["# Python reference", "", "Every public name of `import dspy_finetune as ft`, with its parameters.", ""]
    rooms = {TITLES.get(room, room.capitalize()): sorted(names) for room, names in sorted(by_room.items(), key=_place)}
    for title, names in rooms.items():
        lines += [f"## {title}", "", *(line for name in names for line in (f"::: {name}", ""))]
    for name, module in MODULES.items():
        lines += [f"## `ft.{name}`", "", f"::: {module}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)


def _place(item: tuple[str, list[str]]) -> int:
    order = list(TITLES)
    return order.index(item[0]) if item[0] in order else len(order)


def files() -> str:
    """One line for each file of the package, by room: those of the ground floor first."""
    package = Path(inspect.getfile(ft)).parent
    rooms: dict[Path, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        line = f"- `{path.name}`: {first}" if path.name != "__init__.py" else first
        rooms.setdefault(path.parent, []).append(line)
    lines: list[str] = []
    for room, (opening, *rest) in sorted(
        (room, sorted(of, key=lambda one: one[:2] == "- ")) for room, of in rooms.items()
    ):
        lines += ["", f"### {room.relative_to(package.parent)}/", "", opening, "", *rest]
    return "\n".join(lines) + "\n\n"


def architecture() -> str:
    """The page with its list of files written anew."""
    return LIST.sub(lambda _: files(), ARCHITECTURE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    if "--write" in sys.argv:
        FILE.write_text(text(), encoding="utf-8")
        ARCHITECTURE.write_text(architecture(), encoding="utf-8")
    else:
        print(text())
