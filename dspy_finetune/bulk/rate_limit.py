"""What holds requests back: adaptive rate limiter, concurrency limiter, retry policy, circuit breaker, budget.

In: answers, their rate-limit headers, refusals (429), failures, prices. Out: when the next request may leave, whether a
failed one is sent again, and when a run ends because no request will get an answer or the money is spent. Not covered:
which failures are worth another try (requests.py).

The adaptive rate limiter doubles the number of requests under way until the first refusal, then adds one for each round
of answers and halves at a refusal (additive increase, multiplicative decrease: Chiu and Jain, 1989).
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dspy_finetune.bulk.reader import Outcome, Tokens
from dspy_finetune.errors import BudgetError, HostError, UsageError
from dspy_finetune.export.cost import InferenceCost, inference_cost
from dspy_finetune.hosts.failures import header_number, retry_after_seconds, tell_wait
from dspy_finetune.predictors.base import FinetunedPredictor

FIRST_LIMIT = 8.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
FAILURES_BEFORE_BREAK = 50
"""Failed rows before the first answer that open the circuit breaker: something is wrong with all of them."""

_KINDS = ("requests", "tokens")
_PART = re.compile(r"([0-9.]+)(ms|s|m|h|d)")
_MILLION = 1_000_000
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Clock, sleep and chance; tests bring their own."""

    clock: Callable[[], float] = time.monotonic
    """Seconds, from any start."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    """Waits for a number of seconds."""
    generator: random.Random = field(default_factory=random.Random)
    """For jitter."""


SYSTEM_TIMING = Timing()
"""What runs go by."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """When a request is sent again, and when a run ends."""

    max_retries: int = 5
    """Further tries of a request that the host failed; refusals (429) are not counted."""
    timeout_seconds: float = 120.0
    """For one answer."""
    patience_seconds: float = 600.0
    """Without a single answer for this time the run ends with HostError."""

    def __post_init__(self) -> None:
        if self.max_retries < 0 or self.timeout_seconds <= 0 or self.patience_seconds <= 0:
            raise UsageError(
                "max_retries must be at least 0, timeout_seconds and patience_seconds above 0; found "
                f"{self.max_retries}, {self.timeout_seconds} and {self.patience_seconds}"
            )


DEFAULT_RETRY = RetryPolicy()


class AdaptiveRateLimiter:
    """The limit on requests under way, and the pause that is in force."""

    def __init__(self, *, most: int, clock: Callable[[], float], generator: random.Random) -> None:
        self.limit = min(FIRST_LIMIT, float(most))
        self.n_in_flight = 0
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
        told = retry_after_seconds(headers)
        pause = told if told is not None else backoff_seconds(self._n_refused_in_a_row, self._generator)
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

    def _hold(self, seconds: float) -> None:
        self.open_at = max(self.open_at, self._clock() + seconds)

    def _heed(self, headers: Mapping[str, str]) -> None:
        """Wait before the budget is gone rather than after: requests under way may not be counted yet."""
        for kind in _KINDS:
            remaining = header_number(headers.get(f"x-ratelimit-remaining-{kind}"))
            reset = reset_seconds(headers.get(f"x-ratelimit-reset-{kind}"))
            each = 1.0 if kind == "requests" else self._tokens_each
            if remaining is None or reset is None or each <= 0:
                continue
            missing = (self.n_in_flight + 1) * each - remaining
            if missing <= 0:
                continue
            # `reset` is the time until the whole budget is back; it comes back evenly.
            used = (header_number(headers.get(f"x-ratelimit-limit-{kind}")) or 0.0) - remaining
            self._hold(min(reset * missing / used, reset) if used > 0 else reset)


class ConcurrencyLimiter:
    """Lets requests leave as the rate limiter says, and learns from how they end."""

    def __init__(self, rate: AdaptiveRateLimiter, timing: Timing, policy: RetryPolicy, host: str) -> None:
        self.rate = rate
        self.host = host
        self.timing = timing
        self.policy = policy
        self.n_retries = 0
        self.last_answer_at = timing.clock()
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> int:
        """Wait until a request may leave."""
        while (wait := self.rate.wait_seconds()) != 0.0:
            if wait is None:
                turn = asyncio.get_running_loop().create_future()
                self._waiting.append(turn)
                await turn
            else:
                await self.pause(wait, 429)
        return self.rate.leave()

    async def pause(self, seconds: float, status: int | None) -> None:
        """Wait, and say so where it is long; `status` is what the host answered, None where it did not."""
        tell_wait(self.host, seconds, status)
        await self.timing.sleep(seconds)

    def wake(self) -> None:
        """A request has ended: let as many go on as now may."""
        free = int(self.rate.limit) - self.rate.n_in_flight
        while free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1

    def alive(self) -> None:
        """The host has answered."""
        self.last_answer_at = self.timing.clock()

    def gives_up(self, n_failures: int, first_at: float, *, is_away: bool) -> bool:
        """Whether a row's next try is one too many: only where it is the row that fails, not the host that is gone."""
        is_host_up = self.last_answer_at > first_at or not is_away
        return n_failures > self.policy.max_retries and is_host_up

    def has_lost_patience(self) -> bool:
        """Whether the host has been silent too long."""
        return self.timing.clock() - self.last_answer_at > self.policy.patience_seconds


def host_name(program: Any) -> str:
    """What a program's host is called in messages."""
    return program.host.name if isinstance(program, FinetunedPredictor) and program.host is not None else "the host"


class CircuitBreaker:
    """Ends a run whose first rows all fail: the rest would, too."""

    def __init__(self) -> None:
        self._n_failed: int | None = 0

    def check(self, outcome: Outcome) -> None:
        """Take in an outcome; raises HostError at the fiftieth failure before any answer."""
        if outcome.status in ("answered", "parse_failure", "no_answer"):
            self._n_failed = None
        elif outcome.status == "failed" and self._n_failed is not None:
            self._n_failed += 1
            if self._n_failed >= FAILURES_BEFORE_BREAK:
                raise HostError(
                    f"the first {FAILURES_BEFORE_BREAK} rows that were asked all failed, the last one so: "
                    f"{outcome.error}"
                )


class Prices:
    """What a predictor's tokens cost on its host."""

    def __init__(self, program: Any, *, is_batch: bool = False) -> None:
        self._model = program.model if isinstance(program, FinetunedPredictor) and program.host is not None else None
        self._host = program.host.kind.name if self._model is not None else ""
        self._is_batch = is_batch
        each = self.of(Tokens(n_input=_MILLION, n_output=_MILLION))
        self.unknown: str | None = each.unknown if each is not None else "only the prices of tuned predictors are known"
        """Why no cost can be told; None where it can."""
        prices = each.price_usd if each is not None else {}
        self._input, self._output = prices.get("input"), prices.get("output")
        cached = prices.get("cached_input")
        self._cached = self._input if cached is None else cached

    def of(self, tokens: Tokens) -> InferenceCost | None:
        """The whole cost; None for programs without a known model."""
        if self._model is None:
            return None
        return inference_cost(
            self._model,
            n_requests=tokens.n_requests,
            n_input_tokens=tokens.n_input,
            n_output_tokens=tokens.n_output,
            n_cached_tokens=tokens.n_cached,
            is_batch=self._is_batch,
            host=self._host,
        )

    def check_known(self, max_usd: float) -> None:
        """Raise BudgetError where a price is unknown, so that a limit could not be kept."""
        if self.unknown is not None:
            raise BudgetError(f"max_usd={max_usd} cannot be kept: {self.unknown}; leave max_usd out to go on without")

    def usd(self, tokens: Tokens) -> float | None:
        """The cost, or None where a price is unknown."""
        if self._input is None or self._output is None or self._cached is None:
            return None
        fresh = tokens.n_input - tokens.n_cached
        return (self._input * fresh + self._cached * tokens.n_cached + self._output * tokens.n_output) / _MILLION


class Budget:
    """Lets a request leave only while the budget holds even if it, and all that are under way, cost the most they can.

    Args:
        max_usd: The most that may be spent; None sets no limit.
        prices: The prices.
        spent: By earlier runs.

    Raises:
        BudgetError: A price is unknown, so the limit could not be kept.
    """

    def __init__(self, max_usd: float | None, prices: Prices, spent: Tokens) -> None:
        self.max_usd = max_usd
        self._prices = prices
        self._spent = prices.usd(spent) or 0.0
        self._reserved = 0.0
        self._n_reserved = 0
        if max_usd is not None:
            prices.check_known(max_usd)

    def reserve(self, body: bytes, max_tokens: int) -> float | None:
        """Set aside the most that a request can cost; None if that is not there now. Each token is a byte or more."""
        if self.max_usd is None:
            return 0.0
        most = self._prices.usd(Tokens(n_input=len(body), n_output=max_tokens)) or 0.0
        if self._spent + self._reserved + most > self.max_usd:
            return None
        self._reserved += most
        self._n_reserved += 1
        return most

    @property
    def is_waiting(self) -> bool:
        """Whether answers under way may free money."""
        return self._n_reserved > 0

    def settle(self, reserved: float, tokens: Tokens | None) -> None:
        """The request has ended: what it cost, or None where that is unknown, which counts as the most."""
        if self.max_usd is not None:
            self._n_reserved -= 1
            # With nothing under way the sum is zero, whatever rounding has left of it.
            self._reserved = self._reserved - reserved if self._n_reserved else 0.0
            self._spent += reserved if tokens is None else self._prices.usd(tokens) or 0.0

    def error(self) -> BudgetError:
        """The error of a budget that is spent."""
        return BudgetError(
            f"${self._spent:.4f} of max_usd={self.max_usd} is spent, and the next request could cost more than is "
            "left; every answer is kept: run again with a greater max_usd to go on"
        )


def backoff_seconds(n_failures: int, generator: random.Random) -> float:
    """Exponential backoff with jitter, by the number of failures in a row: half to all of 0.5, 1, 2, ... 60 s."""
    longest = min(FIRST_PAUSE_SECONDS * 2.0 ** min(n_failures, 30), LONGEST_PAUSE_SECONDS)
    return longest * (0.5 + generator.random() / 2)


def reset_seconds(text: str | None) -> float | None:
    """A duration as the rate-limit headers write it.

    >>> [reset_seconds(text) for text in ("6m0s", "12ms", "1m30.5s", "2", "soon")]
    [360.0, 0.012, 90.5, 2.0, None]
    """
    if text is None:
        return None
    plain = header_number(text)
    if plain is not None:
        return plain
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        return None
    try:
        return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    except ValueError:
        return None
