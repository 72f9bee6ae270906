"""`dspy-finetune models`: the tuned models of a host, and how long they still answer."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from dspy_finetune.cli.app import out, print_json
from dspy_finetune.cli.options import host_named, load_env
from dspy_finetune.cli.plan import AsJson, EnvPath, HostText, RootPath, warn
from dspy_finetune.jobs.model import ListedModel, list_models
from dspy_finetune.jobs.records import CLOCK


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("models")(models)


def models(
    host: HostText = "openai",
    root: RootPath = None,
    every: Annotated[bool, typer.Option("--all", help="Base models too.")] = False,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """The tuned models of a host, with the day on which each is shut down."""
    load_env(env_file)
    where = host_named(host, root=root)
    try:
        found = list_models(where, tuned_only=not every, today=CLOCK.today())
    finally:
        where.close()
    if as_json:
        print_json([one.to_dict() for one in found])
        return
    table = Table("model", "base", "answers until", box=None, pad_edge=False)
    for one in found:
        table.add_row(*_row(one))
    out().print(table if found else "no tuned models")
    warn(tuple(dict.fromkeys(note for one in found for note in one.warnings)))


def _row(one: ListedModel) -> tuple[Any, ...]:
    return one.id, one.base, one.shutdown_date.isoformat() if one.shutdown_date else ""
