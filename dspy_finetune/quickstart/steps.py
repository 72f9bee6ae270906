"""Telling how far the main job is: one value for whoever shows it.

In: a callback. Out: a `Step` for each sign of progress. Not covered: showing it (the command line does).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

N_STEPS = 7


@dataclass(frozen=True, kw_only=True)
class Step:
    """One sign of progress."""

    number: int
    """From 1 to N_STEPS."""
    title: str
    """What is being done; a change of title begins a new bar."""
    n_done: int = 0
    """How far."""
    n_total: int | None = None
    """Of how many; None while that is unknown."""
    note: str = ""
    """The last figure, such as a loss."""


OnStep = Callable[[Step], None]
"""Takes each sign of progress."""
