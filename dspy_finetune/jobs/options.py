"""The small options of a job, each checked before anything is sent: suffix, seed, metadata, Weights & Biases.

In: what the user gave. Out: the same, or a UsageError that says what is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dspy_finetune.errors import UsageError
from dspy_finetune.hosts.catalog import HostFacts
from dspy_finetune.jobs.submit import RESERVED_KEYS

MOST_PAIRS = 16 - len(RESERVED_KEYS)
MOST_SEED = 2_147_483_647


@dataclass(frozen=True, kw_only=True)
class WandB:
    """Where the host reports a job's figures to; its key is registered in the host's dashboard, never here."""

    project: str
    """The project's name."""
    name: str | None = None
    """The run's name; the job's id without it."""
    entity: str | None = None
    """The user or team."""
    tags: tuple[str, ...] = ()
    """Up to 50, each up to 64 characters."""

    def __post_init__(self) -> None:
        if not self.project:
            raise UsageError("wandb needs a project's name")
        if len(self.tags) > 50 or any(not 0 < len(tag) <= 64 for tag in self.tags):
            raise UsageError("wandb takes up to 50 tags of 1 to 64 characters each")

    def wire(self) -> dict[str, Any]:
        """As the create request wants it."""
        named = {"name": self.name, "entity": self.entity, "tags": list(self.tags) or None}
        given = {key: value for key, value in named.items() if value is not None}
        return {"type": "wandb", "wandb": {"project": self.project, **given}}


def check_suffix(suffix: str | None, host: HostFacts | None, host_name: str) -> str | None:
    """A suffix that the host takes; an empty one is none."""
    if not suffix:
        return None
    most = (host.max_suffix_chars if host is not None else None) or 64
    if len(suffix) > most:
        raise UsageError(f"suffix {suffix!r} has {len(suffix)} characters; {host_name} takes up to {most}")
    forbidden = (host.suffix_forbidden if host is not None else "") + ":"
    bad = sorted(set(suffix) & set(forbidden))
    if bad or not suffix.isprintable() or any(character.isspace() for character in suffix):
        shown = " ".join(repr(character) for character in bad) or "space or a character that cannot be printed"
        raise UsageError(f"suffix {suffix!r} holds {shown}, which {host_name} does not take; use letters, digits and -")
    return suffix


def check_seed(seed: int | None) -> int | None:
    """A seed in the API's range."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MOST_SEED):
        raise UsageError(f"seed={seed!r}: expected a whole number from 0 to {MOST_SEED}")
    return seed


def check_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The user's own pairs, with room left for this library's."""
    pairs = dict(metadata or {})
    if len(pairs) > MOST_PAIRS:
        raise UsageError(f"metadata holds {len(pairs)} pairs; up to {MOST_PAIRS} are yours")
    for key, value in pairs.items():
        if key in RESERVED_KEYS:
            raise UsageError(f'metadata key "{key}" is this library\'s own; use another')
        if not isinstance(key, str) or not isinstance(value, str) or not 0 < len(key) <= 64 or len(value) > 512:
            raise UsageError(f"metadata {key!r}: keys are texts of 1 to 64 characters, values of up to 512")
    return pairs
