"""A thread that serves others: where its work fails, it says so, waits a moment and works on.

In: a function that does one round of work. Out: a thread that ends when it is told to, never by an error; and its
health, for `/healthz`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 2.0
"""Between a failure and the next round: a full disk is not emptied by asking faster."""


class Supervised:
    """Calls `work` again and again until closed."""

    def __init__(self, work: Callable[[], object], *, name: str, tick_seconds: float = 0.1) -> None:
        self.work = work
        self.name = name
        self.tick_seconds = tick_seconds
        self.pause_seconds = PAUSE_SECONDS
        self.closing = threading.Event()
        self.n_failures = 0
        self.last_error: str | None = None
        self._failed_at = 0.0
        self._succeeded_at = 0.0
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after the round that is going on."""
        self.closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def health(self) -> dict[str, Any]:
        """Whether it works, how often a round failed, and the last failure."""
        is_ok = self._thread.is_alive() and self._failed_at <= self._succeeded_at
        return {"ok": is_ok, "n_failures": self.n_failures, "last_error": self.last_error}

    def _loop(self) -> None:
        while not self.closing.wait(self.tick_seconds):
            try:
                self.work()
                self._succeeded_at = time.monotonic()
            except Exception as error:  # whatever fails, this thread has others to serve
                self.n_failures += 1
                self.last_error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                self._failed_at = time.monotonic()
                # The same failure again and again is told once in a while, not every two seconds for a night.
                if self.n_failures & (self.n_failures - 1) == 0:
                    logger.warning("%s cannot move on: %s", self.name, self.last_error, exc_info=error)
                self.closing.wait(self.pause_seconds)
