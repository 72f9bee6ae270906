"""The commands put together, and how an error is told in one line.

Commands live in modules beside this one, alone or with those that belong to them; each module offers `register(app)`
and is named in COMMANDS.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from dspy_finetune._files import json_text, read_text
from dspy_finetune.errors import DataError, FinetuneError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMANDS: tuple[str, ...] = (
    "quickstart",
    "run",
    "data",
    "doctor",
    "check",
    "serve",
    "export",
    "predict",
    "compare",
    "curve",
    "train",
    "jobs",
    "export_model",
    "migrate",
)
"""Modules of this package, in the order in which `--help` shows their commands."""


def build_app() -> typer.Typer:
    """The whole command-line application."""
    app = typer.Typer(
        name="dspy-finetune",
        help="From labelled DSPy examples to a fine-tuned model inside a DSPy program, and an honest verdict.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        epilog="--debug, anywhere on the line, shows the whole traceback of an error.",
    )
    for name in COMMANDS:
        importlib.import_module(f"dspy_finetune.cli.{name}").register(app)
    return app


def user_defaults(command: Any, path: Path) -> dict[str, dict[str, Any]]:
    """The user's own defaults of each command: environment variables, and `[tool.dspy-finetune]` of a pyproject.toml.

    A variable is named DSPY_FINETUNE_COMMAND_OPTION (DSPY_FINETUNE_TRAIN_HOST) and wins over the file, whose tables are
    named as the commands and hold options without their dashes.

    Raises:
        DataError: The file is no TOML.
        UsageError: The file names a command or an option that there is not.
    """
    defaults: dict[str, dict[str, Any]] = {}
    tables = _tables(path)
    for name, table in tables.items():
        if name not in command.commands or not isinstance(table, dict):
            known = ", ".join(command.commands)
            raise UsageError(f"{path}: [tool.dspy-finetune.{name}] names no command; the commands are {known}")
    for name, one in command.commands.items():
        options = {opt[2:]: param for param in getattr(one, "params", []) for opt in param.opts if opt[:2] == "--"}
        given = tables.get(name, {})
        for option in given:
            if option not in options:
                raise UsageError(f"{path}: [tool.dspy-finetune.{name}] has no option {option!r}; see {name} --help")
        for option, param in options.items():
            variable = f"DSPY_FINETUNE_{name}_{option}".upper().replace("-", "_")
            value = os.environ.get(variable, given.get(option))
            if value is not None:
                is_list = getattr(param, "multiple", False) and isinstance(value, str)
                defaults.setdefault(name, {})[param.name] = value.split(",") if is_list else value
    return defaults


def _tables(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    text = read_text(path)
    if "dspy-finetune" not in text:
        return {}
    try:
        return dict(tomllib.loads(text).get("tool", {}).get("dspy-finetune", {}))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: not TOML ({error}); mend it, or run the command in another folder") from error


def describe_error(error: Exception) -> tuple[str, int]:
    """One line for the user and the exit code: 2 for wrong usage, 1 for everything else."""
    if isinstance(error, UsageError):
        return f"error: {error}", 2
    if isinstance(error, FinetuneError):
        return f"error: {error}", 1
    text = " ".join(str(error).split()) or "no message"
    return f"error: {type(error).__name__}: {text} (run again with --debug to see where)", 1


def print_json(value: Any) -> None:
    """Print one JSON value on stdout: what `--json` gives."""
    print(json_text(value, default=str))


def talk() -> Console:
    """Where progress and remarks go: stderr, so that stdout holds results alone."""
    return Console(stderr=True)


def out() -> Console:
    """Where results go: stdout."""
    return Console()


def warn(notes: Sequence[str]) -> None:
    """Remarks, on stderr."""
    console = talk()
    for note in notes:
        console.print(f"warning: {note}", highlight=False, soft_wrap=True, markup=False)
