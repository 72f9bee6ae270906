"""The journal: what was meant, sent and answered, written down before and after each step that costs money.

In: events of an intent. Out: the same, from any process, after any crash (`_appendlog`).
Not covered: what the events mean for the next step (submit.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dspy_finetune._appendlog import AppendLog, process_lock
from dspy_finetune.errors import JobError

SCHEMA_VERSION = 2
"""1: paths as they were given, so that a process in another folder could not find the files. 2: whole paths, and in the
intent the suffix and the seed, so that `migrate` can make the model again. Older journals are read as they stand."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the journal."""

    at: float
    """When, in seconds since 1970."""
    intent: str
    """Which piece of paid work: the hash of data, model, method, hyperparameters and host."""
    event: str
    """intent, uploading, uploaded, creating, not_created, created, adopted, ended."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else belongs to the event."""


class Journal:
    """An append-only JSONL file that several processes share."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._log = AppendLog(path, "journal")

    def __repr__(self) -> str:
        return f"Journal({str(self.path)!r})"

    def append(self, intent: str, event: str, *, at: float, **facts: Any) -> Entry:
        """Write one event; when this returns, it is on the disk.

        Raises:
            FileError: It could not be written; nothing that costs money may follow.
        """
        self._log.append({"v": SCHEMA_VERSION, "at": at, "intent": intent, "event": event, **facts})
        return Entry(at=at, intent=intent, event=event, facts=dict(facts))

    def entries(self, intent: str | None = None) -> list[Entry]:
        """All events in the order in which they were written, of one intent or of all.

        Raises:
            JobError: The file was written by a newer version of this library.
            FileError: It cannot be read.
        """
        return [entry for entry in self._read() if intent is None or entry.intent == intent]

    def lock(self, intent: str) -> AbstractContextManager[None]:
        """Held while one intent is submitted: a second process with the same plan waits and then finds the job."""
        return process_lock(self.path.with_name(f"{self.path.name}.locks") / intent)

    def _read(self) -> Iterator[Entry]:
        for number, values in self._log.rows():
            if isinstance(values, dict):
                yield self._entry(values, number)

    def _entry(self, values: Mapping[str, Any], number: int) -> Entry:
        version = values.get("v")
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise JobError(
                f"{self.path}:{number}: written by a newer version (schema {version}, this one reads up to"
                f" {SCHEMA_VERSION}); upgrade dspy-finetune"
            )
        facts = {name: value for name, value in values.items() if name not in {"v", "at", "intent", "event"}}
        return Entry(
            at=float(values.get("at") or 0.0),
            intent=str(values.get("intent") or ""),
            event=str(values.get("event") or ""),
            facts=facts,
        )
