"""The commands put together, and how an error is told in one line.

Each command lives in a module of its own beside this one and offers `register(app)`; add the module's name to COMMANDS.
"""

from __future__ import annotations

import importlib
from typing import Any

import typer
from rich.console import Console

from dspy_finetune._files import json_text
from dspy_finetune.errors import FinetuneError, UsageError

COMMANDS: tuple[str, ...] = (
    "quickstart",
    "check",
    "serve",
    "export",
    "convert",
    "predict",
    "compare",
    "curve",
    "plan",
    "train",
    "jobs",
    "models",
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
