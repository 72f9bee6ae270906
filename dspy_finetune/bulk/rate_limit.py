"""how many requests may be under way, and when the next may leave, learnt from what the host answers.

In: answers, their rate-limit headers, refusals (429). Out: a limit that doubles until the first refusal, then grows by
one for each round of answers and halves at a refusal (additive increase, multiplicative decrease: Chiu and Jain, 1989),
and a time before which nothing leaves. The clock and the generator are the caller's. Not covered: which failures are
worth another try (asking.py).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

FIRST_LIMIT = 8.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0

_KINDS = ("requests", "tokens")
_PART = re.compile(r"([0-9.]+)(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Pace:
    """The limit on requests under way, and the pause that is in force."""

    def __init__(self, *, most: int, clock: Callable[[], float], generator: random.Random) -> None:
        self.limit = min(FIRST_LIMIT, float(most))
        self.n_in_flight = 0
        self.n_refused = 0
        self.open_at = 0.0
        """Nothing leaves before this time of the clock."""
        self._most = most
        self._clock = clock
        self._generator = generator
        self._era = 0  # ends with each decrease: requests that left before it cause no second one
        self._n_growing = 0  # answers that count: a round of them when the limit was full, as others prove nothing
        self._is_doubling = True
        self._n_refused_in_a_row = 0
        self._tokens_each = 0.0

    def wait_seconds(self) -> float | None:
        """0 if a request may leave now, else how long until one may; None where an answer must come first."""
        if self.n_in_flight >= int(self.limit):
            return None
        return max(self.open_at - self._clock(), 0.0)

    def leave(self) -> int:
        """A request leaves; the number is handed back with its outcome."""
        self.n_in_flight += 1
        if self.n_in_flight >= int(self.limit):
            self._n_growing = self.n_in_flight
        return self._era

    def answered(self, era: int, headers: Mapping[str, str], n_tokens: int = 0) -> None:
        """A request was answered."""
        if self._n_growing > 0:
            self._n_growing -= 1
            self.limit = min(self.limit + (1.0 if self._is_doubling else 1.0 / self.limit), float(self._most))
        self.n_in_flight -= 1
        if era == self._era:
            self._n_refused_in_a_row = 0
        if n_tokens:
            self._tokens_each += (n_tokens - self._tokens_each) * (0.05 if self._tokens_each else 1.0)
        if "x-ratelimit-remaining-requests" in headers or "x-ratelimit-remaining-tokens" in headers:
            self._heed(headers)

    def refused(self, era: int, headers: Mapping[str, str]) -> None:
        """A request was answered with 429: halve the limit, once for all that were under way; wait as long as told."""
        self.n_refused += 1
        told = retry_after_seconds(headers)
        pause = told if told is not None else self._pause()
        self._shrink(era)
        self.n_in_flight -= 1
        self._hold(pause)

    def failed(self, era: int) -> None:
        """A request failed for another reason of the host's: halve the limit."""
        self._shrink(era)
        self.n_in_flight -= 1

    def dropped(self) -> None:
        """A request that says nothing about the host's load has ended."""
        self.n_in_flight -= 1

    def _shrink(self, era: int) -> None:
        if era != self._era:
            return
        self._era += 1
        self._n_growing = 0
        self._is_doubling = False
        self._n_refused_in_a_row += 1
        self.limit = max(min(self.limit, float(self.n_in_flight)) / 2, 1.0)

    def _pause(self) -> float:
        return backoff_seconds(self._n_refused_in_a_row, self._generator)

    def _hold(self, seconds: float) -> None:
        self.open_at = max(self.open_at, self._clock() + seconds)

    def _heed(self, headers: Mapping[str, str]) -> None:
        """Wait before the budget is gone rather than after: requests under way may not be counted yet."""
        for kind in _KINDS:
            remaining = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
            reset = reset_seconds(headers.get(f"x-ratelimit-reset-{kind}"))
            each = 1.0 if kind == "requests" else self._tokens_each
            if remaining is None or reset is None or each <= 0:
                continue
            missing = (self.n_in_flight + 1) * each - remaining
            if missing <= 0:
                continue
            # `reset` is the time until the whole budget is back; it comes back evenly.
            used = (_number(headers.get(f"x-ratelimit-limit-{kind}")) or 0.0) - remaining
            self._hold(min(reset * missing / used, reset) if used > 0 else reset)


def backoff_seconds(n_failures: int, generator: random.Random) -> float:
    """How long to wait after so many failures in a row: half to all of 0.5, 1, 2, ... 60 s."""
    longest = min(FIRST_PAUSE_SECONDS * 2.0 ** min(n_failures, 30), LONGEST_PAUSE_SECONDS)
    return longest * (0.5 + generator.random() / 2)


def retry_after_seconds(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """What `Retry-After-Ms` or `Retry-After` (seconds or a date) asks for; None where it is absent or makes no sense.

    >>> retry_after_seconds({"retry-after": "1.5"}), retry_after_seconds({"retry-after": "soon"})
    (1.5, None)
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    if text is None or (seconds := _number(text)) is not None:
        return None if text is None else seconds
    try:
        at = parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    if now is None:
        # The date is one of the world's clock, unlike the clock of the pace.
        import time

        now = time.time()
    return max(at - now, 0.0)


def reset_seconds(text: str | None) -> float | None:
    """A duration as the rate-limit headers write it.

    >>> [reset_seconds(text) for text in ("6m0s", "12ms", "1m30.5s", "2", "soon")]
    [360.0, 0.012, 90.5, 2.0, None]
    """
    if text is None:
        return None
    plain = _number(text)
    if plain is not None:
        return plain
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        return None
    try:
        return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    except ValueError:
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else -1.0
    except ValueError:
        return None
    return value if 0.0 <= value < 1e12 else None
