"""Loss curves: rows of (step, loss) by name, from jobs or as they are.

In: a mapping from a name to a job, or to rows of (step, loss). Out: `Curves`; a job gives its training loss and,
where it was measured, its validation loss. Not covered: drawing (plots.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

Curves: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]
"""A name, and its rows of (step, loss)."""


@runtime_checkable
class HasMetrics(Protocol):
    """A `Job`, or whatever tells the figures of a training."""

    def metrics(self) -> list[dict[str, Any]]:
        """One row per step, with `step`, `train_loss` and perhaps `valid_loss`."""


Training: TypeAlias = Mapping[str, "HasMetrics | Sequence[tuple[float, float]]"]
"""What the user gives."""

_KINDS = (("train_loss", ""), ("valid_loss", ", validation"))


def loss_curves(training: Training) -> dict[str, tuple[tuple[float, float], ...]]:
    """The curves of jobs, and those that are curves already. Asks the host of each job; raises HostError."""
    curves: dict[str, tuple[tuple[float, float], ...]] = {}
    for name, source in training.items():
        if not isinstance(source, HasMetrics):
            curves[name] = tuple((float(step), float(loss)) for step, loss in source)
            continue
        rows = source.metrics()
        for key, suffix in _KINDS:
            known = tuple(
                (float(row["step"]), float(row[key]))
                for row in rows
                if _is_number(row.get("step")) and _is_number(row.get(key))
            )
            if known:
                curves[name + suffix] = known
    return curves


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
