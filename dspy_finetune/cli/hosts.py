"""`dspy-finetune hosts`: what each host trains, and at what price; with a file, who can train it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import dspy_finetune as ft
from dspy_finetune.cli.app import print_json, say, warn
from dspy_finetune.cli.jobs import duration
from dspy_finetune.cli.options import AsJson, one_of
from dspy_finetune.errors import UsageError
from dspy_finetune.report.blocks import Table, as_text

ASK = "ask the host"
"""Where no dated public source tells a price or a model: never 0."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("hosts")(hosts)


def hosts(
    file: Annotated[Path | None, typer.Argument(help="A training file: who can train it, and for how much.")] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="sft or dpo; as the file was exported.", autocompletion=one_of("sft", "dpo")),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="One base model for all; each one's cheapest.")] = None,
    as_json: AsJson = False,
) -> None:
    """What each host trains, its prices and its end; with a file, who can train it, ready to copy. Nothing is sent.

    Example: dspy-finetune hosts train.jsonl
    """
    if file is None and (method is not None or model is not None):
        raise UsageError("--method and --model are about a file; name it: dspy-finetune hosts train.jsonl")
    if method not in {None, "sft", "dpo"}:
        raise UsageError(f"--method {method}: expected sft or dpo")
    if file is None:
        _table(as_json)
        return
    advice = ft.advise_host(file, method="dpo" if method == "dpo" else "sft" if method else None, base_model=model)
    if as_json:
        print_json(advice.to_dict())
    else:
        _advice(advice)


def _table(as_json: bool) -> None:
    rows = ft.jobs.offers.host_rows()
    if as_json:
        print_json([one.to_dict() for one in rows])
        return
    cells = [
        (
            one.host,
            ", ".join(one.methods),
            (one.base_models[0].rpartition("/")[2] if one.base_models else ASK)
            + (f" and {len(one.base_models) - 1} more" if one.base_models[1:] else ""),
            _range(one.training_usd),
            ASK if one.inference_usd is None else "/".join(f"{price:g}" for price in one.inference_usd),
            "yes" if one.gives_weights else "no",
            one.ends.isoformat() if one.ends else "",
        )
        for one in rows
    ]
    head = ("host", "methods", "base models", "training", "asking", "weights", "ends")
    say(as_text(Table(head=head, rows=tuple(cells), holds_text=True)) + "\n")
    say(
        "training: USD per million trained tokens; asking: USD per million tokens in and out of the cheapest tuned"
        f" model; weights: the adapter or the model can be downloaded; figures read {_read(rows)}, told by --json with"
        " all models and sources"
    )
    for one in rows:
        if one.serving:
            say(f"{one.host}: {one.serving}", indent=2)


def _read(rows: Sequence[ft.jobs.offers.HostRow]) -> str:
    days = sorted(one.as_of.isoformat() for one in rows if one.as_of)
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


def _range(prices: tuple[float, float] | None) -> str:
    if prices is None:
        return ASK
    least, most = prices
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def _advice(advice: ft.jobs.offers.HostAdvice) -> None:
    cells = [
        (
            one.host,
            one.base_model.rpartition("/")[2],
            one.how,
            "unknown" if one.n_tokens is None else f"{one.n_tokens:,}",
            ft.jobs.offers.cost_text(one.cost_usd),
            "" if one.eta_seconds is None else f"about {duration(one.eta_seconds)}",
            "yes" if one.gives_weights else "no",
            one.ends.isoformat() if one.ends else "",
        )
        for one in advice.possible
    ]
    head = ("host", "model", "method", "tokens", "cost", "time", "weights", "ends")
    table = as_text(Table(head=head, rows=tuple(cells), holds_text=True)) + "\n"
    say(table if cells else "no host takes this file")
    for one in advice.offers:
        say(f"{one.host}: {one.reason}" if one.reason else one.command, indent=2)
    hosts_by_note: dict[str, list[str]] = {}
    for one in advice.possible:
        for note in dict.fromkeys(one.warnings):
            hosts_by_note.setdefault(note, []).append(one.host)
    warn(tuple(f"{', '.join(hosts)}: {note}" for note, hosts in hosts_by_note.items()))
