"""What a host says of a job, read leniently: unknown statuses, missing fields and extra ones all pass.

In: the client's objects, or their dicts. Out: `JobFacts`, `Event`, `Checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dspy_finetune.hosts.failures import redact

SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
FINAL_STATUSES = frozenset({SUCCEEDED, FAILED, CANCELLED})
"""After these nothing changes any more. Every other status, known or not, means: still going."""

_METHODS = {"supervised": "sft", "dpo": "dpo", "reinforcement": "rft"}


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """One look at a job."""

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
    """Figures of a metrics event."""


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


def plain(value: Any) -> dict[str, Any]:
    """The dict behind a client's object, fields it does not know included."""
    if isinstance(value, Mapping):
        return dict(value)
    dump = getattr(value, "model_dump", None)
    return dict(dump(mode="python", warnings=False)) if callable(dump) else {}


def job_facts(value: Any) -> JobFacts:
    """Read a job as the client gives it."""
    job = plain(value)
    method = job.get("method") if isinstance(job.get("method"), Mapping) else {}
    assert isinstance(method, Mapping)
    kind = str(method.get("type") or "supervised")
    # A healthy job carries {} or {"code": None, ...}: only a code or a message makes it an error.
    error = job.get("error") if isinstance(job.get("error"), Mapping) else {}
    assert isinstance(error, Mapping)
    chosen = method.get(kind)
    inner = chosen.get("hyperparameters") if isinstance(chosen, Mapping) else None
    top = job.get("hyperparameters")
    hyperparameters = {**(inner if isinstance(inner, Mapping) else {}), **_settled(top)}
    return JobFacts(
        id=str(job.get("id") or ""),
        status=str(job.get("status") or "unknown"),
        model=str(job.get("model") or ""),
        method=_METHODS.get(kind, kind),
        fine_tuned_model=_text(job.get("fine_tuned_model")),
        created_at=_whole(job.get("created_at")),
        finished_at=_whole(job.get("finished_at")),
        estimated_finish=_whole(job.get("estimated_finish")),
        trained_tokens=_whole(job.get("trained_tokens")),
        training_file=_text(job.get("training_file")),
        validation_file=_text(job.get("validation_file")),
        result_files=tuple(str(one) for one in job.get("result_files") or ()),
        hyperparameters={name: value for name, value in hyperparameters.items() if value is not None},
        seed=_whole(job.get("seed")),
        metadata={str(name): str(value) for name, value in (job.get("metadata") or {}).items()},
        error_code=_text(error.get("code")),
        error_message=redact(str(error["message"])) if error.get("message") else None,
        error_param=_text(error.get("param")),
    )


def event(value: Any) -> Event:
    """Read an event as the client gives it."""
    seen = plain(value)
    data = seen.get("data")
    return Event(
        id=str(seen.get("id") or ""),
        created_at=_whole(seen.get("created_at")),
        level=str(seen.get("level") or "info"),
        message=redact(str(seen.get("message") or "")),
        type=str(seen.get("type") or "message"),
        data=dict(data) if isinstance(data, Mapping) else {},
    )


def checkpoint(value: Any) -> Checkpoint:
    """Read a checkpoint as the client gives it."""
    seen = plain(value)
    metrics = seen.get("metrics")
    return Checkpoint(
        id=str(seen.get("id") or ""),
        model=str(seen.get("fine_tuned_model_checkpoint") or ""),
        step=_whole(seen.get("step_number")),
        metrics={k: v for k, v in metrics.items() if v is not None} if isinstance(metrics, Mapping) else {},
    )


def _settled(top: Any) -> dict[str, Any]:
    return dict(top) if isinstance(top, Mapping) else {}


def _text(value: Any) -> str | None:
    return str(value) if value else None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
