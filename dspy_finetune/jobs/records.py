"""A job's records: facts, events, checkpoints and metrics as the host reports them, and the write-ahead journal.

In: the client's objects, read leniently (unknown statuses, missing and extra fields all pass); events of an intent.
Out: `JobFacts`, `Event`, `Checkpoint`, metrics as a table; `Journal`, the same from any process, after any crash.
Not covered: what the journal's events mean for the next step (submit.py).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import csv
import io
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any, Literal

from dspy_finetune._files import AppendLog, process_lock
from dspy_finetune.catalog import Catalog
from dspy_finetune.errors import FileError, JobError
from dspy_finetune.export.cost import training_cost
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.embedded import home
from dspy_finetune.hosts.failures import redact
from dspy_finetune.hosts.protocol import plain, whole

logger = logging.getLogger(__name__)

SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
FINAL_STATUSES = frozenset({SUCCEEDED, FAILED, CANCELLED})
"""After these nothing changes any more. Every other status, known or not, means: still going."""

_SPELLINGS = {"canceled": CANCELLED, "completed": SUCCEEDED, "error": FAILED}
"""Other words for the end of a job: Azure's older API has the first."""

_METHODS = {"supervised": "sft", "dpo": "dpo", "reinforcement": "rft"}


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """A job as the host describes it at one poll."""

    id: str
    """The host's id."""
    status: str
    """validating_files, queued, running, paused, succeeded, failed, cancelled, or what else the host says."""
    model: str
    """What was trained: a base, or a tuned model."""
    method: str
    """sft or dpo; rft and others pass through."""
    fine_tuned_model: str | None
    """The new model's id; None before success."""
    created_at: int | None
    """Seconds since 1970."""
    finished_at: int | None
    """Seconds since 1970."""
    estimated_finish: int | None
    """Seconds since 1970, where the host guesses."""
    trained_tokens: int | None
    """What is billed; None until the host has counted."""
    training_file: str | None
    """The host's id of the training file."""
    validation_file: str | None
    """The host's id of the validation file."""
    result_files: tuple[str, ...]
    """Ids of the metrics files."""
    hyperparameters: dict[str, Any]
    """As the host resolved them; empty where it does not say."""
    seed: int | None
    """The random seed."""
    metadata: dict[str, str]
    """As given at creation; empty where the host keeps none."""
    error_code: str | None
    """Why it failed, for programs."""
    error_message: str | None
    """Why it failed, for people."""
    error_param: str | None
    """Which argument was at fault."""

    @property
    def is_final(self) -> bool:
        """Whether nothing changes any more."""
        return self.status in FINAL_STATUSES

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, for `--json`."""
        return {**self.__dict__, "result_files": list(self.result_files)}


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of a job's log."""

    id: str
    """The host's id; the same event is never given twice."""
    created_at: int | None
    """Seconds since 1970."""
    level: str
    """info, warn or error."""
    message: str
    """For people."""
    type: str
    """message, metrics, or what else the host says."""
    data: dict[str, Any] = field(default_factory=dict)
    """The values of a metrics event."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model from before the end of the training; it can be asked like any other after success."""

    id: str
    """The host's id of the checkpoint."""
    model: str
    """The name to ask it by."""
    step: int | None
    """The training step at which it was taken."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Losses at that step."""

    def __str__(self) -> str:
        return self.model


def job_facts(value: Any) -> JobFacts:
    """Read a job as the client gives it."""
    job = plain(value)
    method, error = _mapping(job.get("method")), _mapping(job.get("error"))
    kind = str(method.get("type") or "supervised")
    inner = _mapping(method.get(kind)).get("hyperparameters")
    hyperparameters = {**_mapping(inner), **_mapping(job.get("hyperparameters"))}
    status = str(job.get("status") or "unknown").lower()
    return JobFacts(
        id=str(job.get("id") or ""),
        # The local host says so beside a status that all clients' types know; others say it in the status.
        status="paused" if job.get("paused") is True else _SPELLINGS.get(status, status),
        model=str(job.get("model") or ""),
        method=_METHODS.get(kind, kind),
        fine_tuned_model=_text(job.get("fine_tuned_model")),
        created_at=whole(job.get("created_at")),
        finished_at=whole(job.get("finished_at")),
        estimated_finish=whole(job.get("estimated_finish")),
        trained_tokens=whole(job.get("trained_tokens")),
        training_file=_text(job.get("training_file")),
        validation_file=_text(job.get("validation_file")),
        result_files=tuple(map(str, results)) if isinstance(results := job.get("result_files"), (list, tuple)) else (),
        hyperparameters={name: value for name, value in hyperparameters.items() if value is not None},
        seed=whole(job.get("seed")),
        metadata={str(name): str(value) for name, value in _mapping(job.get("metadata")).items()},
        # A healthy job carries {} or {"code": None, ...}: only a code or a message makes it an error.
        error_code=_text(error.get("code")),
        error_message=redact(str(error["message"])) if error.get("message") else None,
        error_param=_text(error.get("param")),
    )


def event(value: Any) -> Event:
    """Read an event as the client gives it."""
    seen = plain(value)
    message, created_at = redact(str(seen.get("message") or "")), whole(seen.get("created_at"))
    data = _mapping(seen.get("data"))
    for name in ("step", "total_steps"):
        if name in data and whole(data[name]) is None:
            del data[name]  # no step at all, or one that is no number
    return Event(
        # A host without ids: what an event says, and when, tells it from others.
        id=str(seen.get("id") or f"{created_at} {message}"),
        created_at=created_at,
        level=str(seen.get("level") or "info"),
        message=message,
        type=str(seen.get("type") or "message"),
        data=data,
    )


def checkpoint(value: Any) -> Checkpoint:
    """Read a checkpoint as the client gives it."""
    seen = plain(value)
    return Checkpoint(
        id=str(seen.get("id") or ""),
        model=str(seen.get("fine_tuned_model_checkpoint") or ""),
        step=whole(seen.get("step_number")),
        metrics={name: value for name, value in _mapping(seen.get("metrics")).items() if value is not None},
    )


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return str(value) if value else None


Row = dict[str, int | float | str | None]


def parse_metrics(content: bytes) -> list[Row]:
    """Read a result file. OpenAI sends it in base64, others as it is; both are taken.

    Returns:
        One row per step, `step` as a whole number; empty if the file holds no table.

    >>> parse_metrics(b"step,train_loss,valid_loss\\n1,2.5,\\n")
    [{'step': 1, 'train_loss': 2.5, 'valid_loss': None}]
    """
    text = _cell_text(content)
    rows = []
    # A file with NUL characters is no table; Python 3.10's reader would raise at them.
    for line in csv.DictReader(io.StringIO(text)) if "\0" not in text else ():
        row: Row = {name: _number(value) for name, value in line.items() if name}
        step = row.get("step")
        if isinstance(step, float):
            row["step"] = int(step)
        rows.append(row)
    return rows


def metrics_from_events(events: Iterable[Event]) -> list[Row]:
    """The same table from the metrics events, one row per step; a later event fills and replaces an earlier one's."""
    by_step: dict[Any, Row] = {}
    for event in events:
        step = event.data.get("step")
        if event.type != "metrics" or not isinstance(step, (int, float)):
            continue
        row = by_step.setdefault(int(step), {"step": int(step)})
        for name, value in event.data.items():
            if name not in {"step", "total_steps"} and isinstance(value, (int, float, str)):
                row[name] = value
    names = list(dict.fromkeys(name for row in by_step.values() for name in row))
    return [{name: row.get(name) for name in names} for _, row in sorted(by_step.items())]


def _cell_text(content: bytes) -> str:
    plain = content.lstrip(b"\xef\xbb\xbf")
    if not plain.lstrip().startswith(b"step"):
        with contextlib.suppress(binascii.Error, ValueError):  # neither: read as it stands
            plain = base64.b64decode(b"".join(plain.split()), validate=True)
    return plain.decode("utf-8-sig", "replace")


def _number(value: str | list[str] | None) -> int | float | str | None:
    if not isinstance(value, str) or not value.strip():
        return None
    try:
        number = float(value)
    except ValueError:
        return value
    if not math.isfinite(number):
        return None
    is_whole = "." not in value and "e" not in value.lower()
    return int(number) if is_whole else number


# The journal: what was written down before and after each step that costs money.

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
    """intent, uploading, uploaded, creating, ambiguous, not_created, created, adopted, ended."""
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


def note_down(journal: Journal, intent: str, event: str, **facts: Any) -> None:
    """Write down what has happened already. A journal that cannot be written is told, and stops nothing: the host has
    the job, and knows it by its intent."""
    try:
        journal.append(intent, event, at=CLOCK.now(), **facts)
    except FileError as error:
        job = f"the job {facts['job_id']}" if "job_id" in facts else "what follows"
        logger.warning("%s; %s goes on without this note (%s)", error, job, event)


def journal_of(host: Host) -> Journal:
    """Where a host's jobs are written down: in the embedded server's own folder, or in the library's."""
    if host.root is not None and host.to_dict().get("base_url") is None:
        return Journal(host.root / "journal.jsonl")
    return Journal(home() / "journal.jsonl")


def intent_of(journal: Journal, job_id: str) -> Entry | None:
    """The intent that became a job: what was wanted, with its notes; None where the journal does not know the job."""
    entries = journal.entries()
    intents = {entry.intent for entry in entries if entry.facts.get("job_id") == job_id}
    return next((one for one in reversed(entries) if one.event == "intent" and one.intent in intents), None)


def catalog_name(host: Host, catalog: Catalog) -> str:
    """The catalog's name of a host: its own or its kind's if there is such an entry; else its own, for which no limits
    and prices are known."""
    return next((name for name in (host.name, host.kind.name) if catalog.host(name) is not None), host.name)


def billed_cost(
    base: str, method: str, trained_tokens: int | None, host: str, catalog: Catalog, *, is_full: bool = False
) -> float | None:
    """What a finished job cost: the tokens that the host counted, all epochs, times the price; None where unknown."""
    if method not in {"sft", "dpo"}:
        return None
    kind: Literal["sft", "dpo"] = "dpo" if method == "dpo" else "sft"
    cost = training_cost(
        base_model=base,
        method=kind,
        n_rows=1,
        n_tokens=trained_tokens,
        n_epochs=1,
        is_full=is_full,
        host=host,
        catalog=catalog,
    )
    return cost.cost_usd


# Time, in one place, so that tests need not wait.


@dataclass(kw_only=True)
class Clock:
    """The current time, and `sleep`."""

    now: Callable[[], float] = time.time
    """Seconds since 1970: for records, and for how long ago something was."""
    sleep: Callable[[float], object] = time.sleep
    """Waits for a number of seconds."""

    def today(self) -> date:
        """The day, UTC."""
        return datetime.fromtimestamp(self.now(), timezone.utc).date()


CLOCK = Clock()
"""The one that all jobs and batches go by; a test sets its two functions."""
