"""What a job costs and how long it takes, as far as anybody knows.

In: the catalog's prices, the journal's finished jobs. Out: US dollars and seconds; None where unknown, never 0.
"""

from __future__ import annotations

from statistics import median
from typing import Literal

from dspy_finetune.export.cost import training_cost
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.catalog import Catalog, strip_model_id
from dspy_finetune.hosts.embedded import home
from dspy_finetune.jobs.journal import Journal


def journal_of(host: Host) -> Journal:
    """Where a host's jobs are written down: in the embedded server's own folder, or in the library's."""
    if host.root is not None and host.to_dict().get("base_url") is None:
        return Journal(host.root / "journal.jsonl")
    return Journal(home() / "journal.jsonl")


def catalog_name(host: Host, catalog: Catalog) -> str:
    """The catalog's name of a host: its own or its kind's if there is such an entry; else its own, for which no limits
    and prices are known."""
    return next((name for name in (host.name, host.kind.name) if catalog.host(name) is not None), host.name)


def billed_cost(base: str, method: str, trained_tokens: int | None, host: str, catalog: Catalog) -> float | None:
    """What a finished job cost: the tokens that the host counted, all epochs, times the price; None where unknown."""
    if method not in {"sft", "dpo"}:
        return None
    kind: Literal["sft", "dpo"] = "dpo" if method == "dpo" else "sft"
    cost = training_cost(
        base_model=base, method=kind, n_rows=1, n_tokens=trained_tokens, n_epochs=1, host=host, catalog=catalog
    )
    return cost.cost_usd


def estimate_seconds(journal: Journal, host_name: str, base: str, n_tokens: int | None) -> float | None:
    """By the median speed of this journal's finished jobs on the same host and base model."""
    if n_tokens is None:
        return None
    intents: dict[str, tuple[str, str]] = {}
    speeds = []
    for entry in journal.entries():
        if entry.event == "intent":
            described = entry.facts.get("host") or {}
            intents[entry.intent] = (str(described.get("name")), strip_model_id(str(entry.facts.get("base_model"))))
        seconds, tokens = entry.facts.get("seconds"), entry.facts.get("trained_tokens")
        if entry.event == "ended" and seconds and tokens and intents.get(entry.intent) == (host_name, base):
            speeds.append(tokens / seconds)
    return n_tokens / median(speeds) if speeds else None
