"""What differs between hosts, as data: one row per kind, so that no other module asks which kind it has.

In: nothing. Out: `KINDS`, the facts of each kind of host.
Not covered: what a host's models can do and cost, and what it asks of a file (catalog.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KindName = Literal["openai", "azure", "local", "compatible"]


@dataclass(frozen=True, kw_only=True)
class HostKind:
    """The facts that hold for every host of one kind."""

    name: KindName
    """The kind's name, as it stands in saved files."""
    key_variables: tuple[str, ...]
    """Environment variables that may hold the key, in the order in which they are tried."""
    listing_lag_seconds: float
    """A job that is not listed this long after its creation does not exist."""
    needs_deployment: bool
    """A tuned model answers only after a deployment outside this API."""
    lists_models: bool
    """GET /models/{id} tells whether a tuned model answers yet."""
    has_structured_output: bool
    """It can hold answers to a JSON schema (`response_format`)."""
    poll_seconds: tuple[float, float]
    """The first and the longest pause between two looks at a job."""
    base_model: str | None
    """A model that it tunes, for whoever has no wish of their own; None where only the user can know."""


KINDS: dict[KindName, HostKind] = {
    "openai": HostKind(
        name="openai",
        key_variables=("OPENAI_API_KEY",),
        # Nobody publishes a bound; a minute is far above what was seen.
        listing_lag_seconds=60.0,
        needs_deployment=False,
        lists_models=True,
        has_structured_output=True,
        poll_seconds=(5.0, 60.0),
        base_model="gpt-4.1-mini-2025-04-14",
    ),
    "azure": HostKind(
        name="azure",
        key_variables=("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
        listing_lag_seconds=60.0,
        needs_deployment=True,
        lists_models=False,
        has_structured_output=True,
        poll_seconds=(10.0, 60.0),
        base_model="gpt-4.1-mini-2025-04-14",
    ),
    "local": HostKind(
        name="local",
        key_variables=("DSPY_FINETUNE_LOCAL_API_KEY",),
        # The embedded server stores a job before it answers; the seconds are for a request still in its socket.
        listing_lag_seconds=5.0,
        needs_deployment=False,
        lists_models=True,
        has_structured_output=False,
        poll_seconds=(0.5, 2.0),
        base_model="smollm2-135m-instruct",
    ),
    "compatible": HostKind(
        name="compatible",
        key_variables=(),
        listing_lag_seconds=60.0,
        needs_deployment=False,
        lists_models=False,
        has_structured_output=True,
        poll_seconds=(5.0, 60.0),
        base_model=None,
    ),
}
