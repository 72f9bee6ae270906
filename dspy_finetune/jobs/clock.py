"""Time as a value: what jobs ask for the hour and how they pause, so that tests need not wait.

In: nothing. Out: `Clock`, the real one by default.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timezone


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The hour, and a way to let it pass."""

    now: Callable[[], float] = time.time
    """Seconds since 1970: for records, and for how long ago something was."""
    sleep: Callable[[float], object] = time.sleep
    """Lets so many seconds pass."""

    def today(self) -> date:
        """The day, UTC."""
        return datetime.fromtimestamp(self.now(), timezone.utc).date()


SYSTEM_CLOCK = Clock()
