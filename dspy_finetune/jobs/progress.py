"""One look at a running job, for people: how far, how well, how long still, how dear so far.

In: the job's facts and events. Out: `Progress`. Not covered: showing it (cli/).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dspy_finetune.jobs.records import Event, JobFacts


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One look at a job."""

    facts: JobFacts
    """All that the host says."""
    events: tuple[Event, ...]
    """So far, oldest first."""
    step: int | None
    """The last training step that was told of."""
    total_steps: int | None
    """How many there will be."""
    losses: tuple[tuple[int, float], ...]
    """(step, training loss), for a curve."""
    elapsed_seconds: float
    """Since the job was created."""
    eta_seconds: float | None
    """Until its end: by the host, else by the steps; None where neither says."""
    cost_usd: float | None
    """What has been trained so far, at the price of training; None where a figure is unknown."""

    @property
    def status(self) -> str:
        """The host's word."""
        return self.facts.status

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None where the steps are unknown."""
        if self.facts.status == "succeeded":
            return 1.0
        return min(self.step / self.total_steps, 1.0) if self.step is not None and self.total_steps else None

    @property
    def message(self) -> str:
        """The last thing that the host said."""
        return self.events[-1].message if self.events else ""

    def __str__(self) -> str:
        """In words: `running, 125 s, step 10/25, loss 1.234, about 180 s left`; only what is known."""
        parts = [self.status, f"{self.elapsed_seconds:,.0f} s"]
        if self.step is not None:
            parts.append(f"step {self.step:,}" + (f"/{self.total_steps:,}" if self.total_steps else ""))
        if self.losses:
            parts.append(f"loss {self.losses[-1][1]:.3f}")
        if self.eta_seconds and self.step is not None:
            parts.append(f"about {self.eta_seconds:,.0f} s left")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, for `--json`."""
        return {
            "job_id": self.facts.id,
            "status": self.status,
            "step": self.step,
            "total_steps": self.total_steps,
            "train_loss": self.losses[-1][1] if self.losses else None,
            "elapsed_seconds": self.elapsed_seconds,
            "eta_seconds": self.eta_seconds,
            "cost_usd": self.cost_usd,
            "message": self.message,
        }


def make_progress(
    facts: JobFacts,
    events: Sequence[Event],
    *,
    n_tokens: int | None,
    cost: Callable[[JobFacts, int | None], float | None],
    now: float,
) -> Progress:
    """Draw a look together.

    Args:
        facts: What the host says of the job.
        events: Oldest first.
        n_tokens: Of all epochs, by the plan.
        cost: The price of so many trained tokens of this job.
        now: The hour.
    """
    steps = [event for event in events if isinstance(event.data.get("step"), (int, float))]
    step = int(steps[-1].data["step"]) if steps else None
    total = next(
        (int(e.data["total_steps"]) for e in reversed(steps) if isinstance(e.data.get("total_steps"), (int, float))),
        None,
    )
    losses = tuple(
        (int(event.data["step"]), float(event.data["train_loss"]))
        for event in steps
        if isinstance(event.data.get("train_loss"), (int, float))
    )
    done = step / total if step is not None and total else None
    trained = facts.trained_tokens
    if trained is None and n_tokens is not None and done is not None:
        trained = round(n_tokens * done)
    return Progress(
        facts=facts,
        events=tuple(events),
        step=step,
        total_steps=total,
        losses=losses,
        elapsed_seconds=max(now - facts.created_at, 0.0) if facts.created_at else 0.0,
        eta_seconds=_eta(facts, steps, step, total, now),
        cost_usd=cost(facts, trained) if trained is not None else None,
    )


def _eta(facts: JobFacts, steps: Sequence[Event], step: int | None, total: int | None, now: float) -> float | None:
    if facts.is_final:
        return 0.0
    if facts.estimated_finish is not None:
        return max(facts.estimated_finish - now, 0.0)
    first = steps[0] if steps else None
    if first is None or first.created_at is None or step is None or not total:
        return None
    done = step - int(first.data["step"])
    return (total - step) * (now - first.created_at) / done if done > 0 else None
