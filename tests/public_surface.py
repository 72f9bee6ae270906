"""The public surface as one JSON file: every public name, parameter, default, field, method, command, option, JSON key.

`python -m tests.public_surface --write` writes tests/public_surface.json anew, without `--write` it shows what changed.
tests/test_public_names.py and tests/cli/test_json_keys.py compare.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import inspect
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer

import dspy_finetune as ft
from dspy_finetune.cli.app import build_app
from tests.json_keys import json_keys

FILE = Path(__file__).with_suffix(".json")
SUBPACKAGES = [
    "bulk", "data", "errors", "evaluation", "export", "hosts", "integrations", "jobs", "migration", "optimizers",
    "predictors", "prompts", "report", "verification",
]  # fmt: skip


def surface() -> dict[str, Any]:
    """All that a user can type: names, parameters, fields, commands."""
    described: dict[str, Any] = {}
    for subpackage in SUBPACKAGES:
        _describe_module(importlib.import_module(f"dspy_finetune.{subpackage}"), described)
    top = {name: _home(name, getattr(ft, name), described) for name in sorted(ft.__all__)}
    return {"ft": top, "subpackages": described, "commands": dict(_commands(typer.main.get_command(build_app())))}


def recorded() -> dict[str, Any]:
    """What the file holds: the surface, and under "json" the keys that each command prints with `--json`."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def changes(before: Any, after: Any) -> str:
    """What differs, as a unified diff; empty if nothing does."""
    one, other = (_text(each).splitlines() for each in (before, after))
    return "\n".join(difflib.unified_diff(one, other, "recorded", "found", n=2, lineterm=""))


def _text(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)


HOW = (
    "If the change is meant: `python -m tests.public_surface --write`, and a line in CHANGELOG.md (a break: with its"
    " replacement)."
)


def _home(name: str, value: object, described: dict[str, Any]) -> str:
    """Which of the described names a name of the package is."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, ModuleType):
        return _short(value.__name__)
    wanted = _short(f"{value.__module__}.{value.__qualname__}")  # type: ignore[attr-defined]  # classes and functions
    homes = [known for known in described if known.rpartition(".")[2] == name]
    assert homes, f"ft.{name} ({wanted}) is in no subpackage's __all__"
    return homes[0]


def _describe_module(module: ModuleType, described: dict[str, Any]) -> None:
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    for name in names:
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            _describe_module(value, described)
        else:
            described[f"{_short(module.__name__)}.{name}"] = _describe(value)


def _describe(value: Any) -> Any:
    if _is_class(value):
        return _describe_class(value)
    if inspect.isfunction(value):
        return _parameters(value)
    return _shown(value)


def _is_class(value: object) -> bool:
    """To Python 3.10 an alias such as `Callable[..., Any]` is a class too."""
    return inspect.isclass(value) and not isinstance(value, types.GenericAlias)


def _describe_class(value: type) -> dict[str, Any]:
    found: dict[str, Any] = {
        "bases": [base.__name__ for base in value.__bases__ if base is not object],
        "methods": {},
        "attributes": [],
    }
    if dataclasses.is_dataclass(value):
        found["fields"] = [_field(one) for one in dataclasses.fields(value) if not one.name.startswith("_")]
    elif "__init__" in vars(value) or any("__init__" in vars(base) for base in _own(value)):
        found["parameters"] = _parameters(value.__init__)  # type: ignore[misc]  # of this very class
    for base in _own(value):
        for name, member in vars(base).items():
            plain = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            if name.startswith("_") and name != "__call__":
                continue
            if inspect.isfunction(plain):
                found["methods"].setdefault(name, _parameters(plain))
            elif name not in getattr(value, "__dataclass_fields__", {}):
                found["attributes"].append(name)
    found["attributes"] = sorted(set(found["attributes"]))
    return {name: entry for name, entry in found.items() if entry}


def _own(value: type) -> list[type]:
    """The class and those of its bases that this package defines."""
    return [base for base in value.__mro__ if base.__module__.startswith("dspy_finetune")]


def _parameters(function: Any) -> list[str]:
    shown: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in {"self", "cls"}:
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not any(one.startswith("*") for one in shown):
            shown.append("*")
        stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        annotation = "" if parameter.annotation is inspect.Parameter.empty else f": {_type(parameter.annotation)}"
        default = "" if parameter.default is inspect.Parameter.empty else f" = {_shown(parameter.default)}"
        shown.append(f"{stars}{parameter.name}{annotation}{default}")
    return shown


def _field(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        default = f" = {_shown(field.default_factory)}()"
    else:
        default = "" if field.default is dataclasses.MISSING else f" = {_shown(field.default)}"
    return f"{field.name}: {_type(field.type)}{default}"


def _type(annotation: object) -> str:
    if isinstance(annotation, str):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):  # Python 3.10 reads `X | None = None` as Optional[X]
        parts = (part for part in get_args(annotation) if part is not types.NoneType)
        return " | ".join([*map(_type, parts), *(["None"] if types.NoneType in get_args(annotation) else [])])
    return inspect.formatannotation(annotation).replace("pathlib._local.", "pathlib.")  # where Python 3.13 keeps Path


def _shown(value: Any) -> str:
    if _is_class(value) or inspect.isroutine(value):
        return str(value.__name__)
    # An address says where an object lies in memory, not what it is.
    return re.sub(r"<([\w.]+).* at 0x[0-9a-f]+>", r"<\1>", repr(value))


def _short(name: str) -> str:
    return name.removeprefix("dspy_finetune.")


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from _commands(below, (*path, name))
        return
    hints = get_type_hints(inspect.unwrap(command.callback))
    shown = []
    for one in command.params:
        if one.name not in hints:
            continue  # --help
        needed = " required" if one.required else ""
        default = "" if one.default is None or one.required else f" = {one.default!r}"
        shown.append(f"{'/'.join([*one.opts, *one.secondary_opts])}: {_type(hints[one.name])}{needed}{default}")
    yield " ".join(path), shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the file anew")
    made = surface() | {"json": json_keys()}
    if parser.parse_args().write:
        FILE.write_text(_text(made) + "\n", encoding="utf-8")
        print(f"wrote {FILE}")
    else:
        print(changes(recorded(), made) or "no change")
