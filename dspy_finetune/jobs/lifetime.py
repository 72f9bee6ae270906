"""How long a model still lives: the host's own date, else the catalog's; and what to say about it in time.

In: a model, a host, today's date. Out: a date, and warnings from 60 days before it.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from dspy_finetune.errors import HostError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.catalog import Catalog
from dspy_finetune.jobs.pricing import catalog_name

WARN_DAYS = 60


def shutdown_date(model: str, host_name: str, catalog: Catalog) -> date | None:
    """The catalog's date; a date holds only on the host that it was read for."""
    facts = catalog.model(model)
    return facts.shutdown_date if facts is not None and facts.host == host_name else None


def ask_shutdown_date(model: str, host: Host) -> date | None:
    """The host's own date of a model, which wins over the catalog's; None if it names none or does not know the model.

    Raises:
        HostError: The host refused for another reason, or did not answer.
    """
    try:
        with host.talking(f"ask for the model {model}"):
            answer: Any = host.client().models.retrieve(model)
    except HostError as error:
        if error.status in {404, 405}:
            return None
        raise
    # The field is in OpenAI's description and not yet in the client's types.
    text = getattr(answer, "shutdown_date", None)
    try:
        return date.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None


def model_warnings(model: str, host: Host, *, catalog: Catalog, today: date) -> list[str]:
    """What to know before using a model, with the host asked for its date, which wins over the catalog's.

    Args:
        model: A base model, or a tuned one.
        host: Where it answers.
        catalog: Dates for when the host names none.
        today: The day.

    Raises:
        HostError: The host refused, or did not answer.
    """
    name = catalog_name(host, catalog)
    told = ask_shutdown_date(model, host) if host.kind.lists_models else None
    ends = told or shutdown_date(model, name, catalog)
    return lifetime_warnings(model, name, ends=ends, catalog=catalog, today=today)


def lifetime_warnings(model: str, host_name: str, *, ends: date | None, catalog: Catalog, today: date) -> list[str]:
    """What to know before training or using a model, in full sentences; empty while there is time."""
    notes = []
    facts = catalog.model(model)
    if ends is not None:
        days = (ends - today).days
        if days < 0:
            notes.append(f"{model} was shut down on {ends} on {host_name}; it does not answer any more")
        elif days <= WARN_DAYS:
            notes.append(
                f"{model} and what is tuned from it answer on {host_name} for {days} more days, until {ends};"
                " the same file trains on Host.local() or another host"
            )
    at_host = catalog.host(host_name)
    of_model = facts.training_ends if facts is not None and facts.host == host_name else None
    last = of_model or (at_host.training_ends if at_host is not None else None)
    if last is not None:
        days = (last - today).days
        if days <= 0:
            notes.append(f"{host_name} has trained {model} for nobody since {last}; expect to be refused")
        elif days <= WARN_DAYS:
            notes.append(f"{host_name} trains {model} for {days} more days, until {last}")
    return notes
