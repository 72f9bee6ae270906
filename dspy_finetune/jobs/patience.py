"""`Patience`: how long to wait after a host's failure before it is asked again, and when to stop asking.

In: failures, one after the other, and how long the caller bears with each kind. Out: seconds to wait, or None. A host
that says `Retry-After` is heeded. One line tells the first failure, and again now and then while it lasts.
"""

from __future__ import annotations

import logging

from dspy_finetune.errors import HostError
from dspy_finetune.hosts.failures import told_pause_seconds
from dspy_finetune.jobs.records import CLOCK

logger = logging.getLogger(__name__)

BACKOFF = 1.5
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_TOLD_SECONDS = 120.0
"""A host that asks for a longer pause is asked again all the same: a Retry-After of a day is seldom meant."""
TELL_AGAIN_SECONDS = 120.0


class Patience:
    """Failures in a row; their time is counted in our own pauses: a laptop that slept for hours has not been refused
    for hours."""

    def __init__(self, first_seconds: float = 1.0, longest_seconds: float = LONGEST_PAUSE_SECONDS) -> None:
        self._first = first_seconds
        self._longest = max(first_seconds, longest_seconds)
        self.answered()

    def answered(self) -> None:
        """The host has answered: the next failure is a first one."""
        # Apart, so that a long outage leaves a 404 behind it its own time.
        self._waited = {True: 0.0, False: 0.0}
        self._pause = self._first
        self._tell_at = 0.0
        self._told: int | None = -1

    def pause_after(self, error: HostError, limit_seconds: float) -> float | None:
        """Seconds to wait before the host is asked again; None where it has failed for longer than the limit.

        Args:
            error: What came.
            limit_seconds: So long failures like this one are waited out; 0 for one that will not pass.
        """
        waited = self._waited[error.retryable]
        if waited >= limit_seconds:
            return None
        told = told_pause_seconds(error, CLOCK.now())
        pause = max(self._pause, min(told or 0.0, LONGEST_TOLD_SECONDS))
        if waited >= self._tell_at or error.status != self._told:
            logger.warning("%s; asking again in %g s", error, round(pause, 1))
            self._told, self._tell_at = error.status, max(2 * waited, TELL_AGAIN_SECONDS)
        self._waited[error.retryable] += pause
        self._pause = min(self._pause * BACKOFF, self._longest)
        return pause
