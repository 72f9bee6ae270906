"""What differs between hosts, as data: one row per kind, so that no other module asks which kind it has.

In: nothing. Out: `KINDS`, the facts of each kind of host.
Not covered: what a host's models can do and cost (catalog.py).
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
    suffix_max: int
    """The longest suffix that the host takes, in characters."""
    suffix_refuses: str
    """Characters that a suffix must not hold."""
    keeps_metadata: bool
    """A job made with metadata is known to be listed with it; False means that the host must show it first."""
    listing_lag_seconds: float
    """A job that is not listed this long after its creation does not exist."""
    bills_training: bool
    """Training costs money, so a budget needs a price."""
    needs_deployment: bool
    """A tuned model answers only after a deployment outside this API."""
    min_rows: int
    """The fewest examples that a training file may hold."""


KINDS: dict[KindName, HostKind] = {
    "openai": HostKind(
        name="openai",
        key_variables=("OPENAI_API_KEY",),
        suffix_max=64,
        suffix_refuses="",
        keeps_metadata=True,
        # Nobody publishes a bound; ten minutes is far above anything seen, and a second paid job is dearer than a wait.
        listing_lag_seconds=600.0,
        bills_training=True,
        needs_deployment=False,
        min_rows=10,
    ),
    "azure": HostKind(
        name="azure",
        key_variables=("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
        suffix_max=18,
        suffix_refuses=".",
        keeps_metadata=False,
        listing_lag_seconds=600.0,
        bills_training=True,
        needs_deployment=True,
        min_rows=10,
    ),
    "local": HostKind(
        name="local",
        key_variables=("DSPY_FINETUNE_LOCAL_KEY",),
        suffix_max=64,
        suffix_refuses="",
        keeps_metadata=True,
        # The embedded server stores a job before it answers; the seconds are for a request still in its socket.
        listing_lag_seconds=5.0,
        bills_training=False,
        needs_deployment=False,
        min_rows=1,
    ),
    "compatible": HostKind(
        name="compatible",
        key_variables=(),
        suffix_max=64,
        suffix_refuses="",
        keeps_metadata=False,
        listing_lag_seconds=600.0,
        bills_training=True,
        needs_deployment=False,
        min_rows=1,
    ),
}
