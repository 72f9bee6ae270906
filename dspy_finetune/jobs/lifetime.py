"""How long a model still lives: the host's own date, else the catalog's; and what to say about it in time.

In: a model, a host, today's date. Out: a date, and warnings from 60 days before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from dspy_finetune.errors import HostError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.catalog import Catalog, load_catalog, parse_model_id
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
    return _told_date(answer)


def _told_date(model: Any) -> date | None:
    # The field is in OpenAI's description and not yet in the client's types.
    text = getattr(model, "shutdown_date", None)
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


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """A model that a host offers."""

    id: str
    """The name to ask it by."""
    base: str
    """The base model's name."""
    is_tuned: bool
    """Whether a job made it."""
    created_at: int | None
    """Seconds since 1970."""
    shutdown_date: date | None
    """From this day on it does not answer; by the host, else by the catalog; None where neither knows."""
    warnings: tuple[str, ...]
    """What should be known before using it."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        day = self.shutdown_date.isoformat() if self.shutdown_date else None
        return {**self.__dict__, "shutdown_date": day, "warnings": list(self.warnings)}


def list_models(
    host: Host, *, tuned_only: bool = True, today: date, catalog: Catalog | None = None
) -> list[ListedModel]:
    """The models that a host offers, newest first.

    Args:
        host: Where.
        tuned_only: Leave base models out.
        today: The day, for warnings.
        catalog: Dates for when the host names none; the packaged ones by default.

    Raises:
        HostError: The host refused, or did not answer.
    """
    catalog = catalog or load_catalog()
    name = catalog_name(host, catalog)
    found = []
    with host.talking("list the models"):
        for value in host.client().models.list():
            named = parse_model_id(value.id)
            if tuned_only and not named.is_tuned:
                continue
            ends = _told_date(value) or shutdown_date(value.id, name, catalog)
            found.append(
                ListedModel(
                    id=value.id,
                    base=named.base,
                    is_tuned=named.is_tuned,
                    created_at=value.created,
                    shutdown_date=ends,
                    warnings=tuple(lifetime_warnings(value.id, name, ends=ends, catalog=catalog, today=today)),
                )
            )
    return sorted(found, key=lambda one: -(one.created_at or 0))
