"""how far a run is: rows, rate, time left, tokens and cost; and the budget that it may not pass.

In: outcomes as they come. Out: `Progress`, a value for whoever shows it. Prices are the catalog's; where one is unknown
the cost is None, never 0.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dspy_finetune.bulk.reader import STATUSES
from dspy_finetune.bulk.requests import Tokens
from dspy_finetune.errors import BudgetError
from dspy_finetune.export.cost import InferenceCost, inference_cost
from dspy_finetune.predictors.base import FinetunedPredictor

_MILLION = 1_000_000
_RATE_SECONDS = 60.0
"""The rate shown is that of the last minute."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    n_done: int
    """Rows with an outcome, those of an earlier run among them."""
    n_total: int | None
    """Rows of the input; None where that cannot be known beforehand. Lines of a text file, so an estimate for CSV."""
    n_errors: int
    """Rows without an answer: unreadable, failed and bad ones."""
    n_reused: int
    """Rows that an earlier run had answered."""
    rows_per_second: float | None
    """Over the last minute; None until there are two looks."""
    eta_seconds: float | None
    """Time left at this rate; None where rate or total is unknown."""
    cost_usd: float | None
    """Of all answers so far, earlier runs among them; None where a price is unknown."""
    n_in_flight: int
    """Requests under way."""
    concurrency: int
    """Requests that may be under way at the moment."""
    n_retries: int
    """Requests that were sent again."""

    def __str__(self) -> str:
        """One line for people.

        >>> print(Progress(n_done=500, n_total=2000, n_errors=3, n_reused=0, rows_per_second=50.0, eta_seconds=30.0,
        ...                cost_usd=0.0123, n_in_flight=8, concurrency=8, n_retries=1))
        500/2000 rows, 3 errors, 50.0 rows/s, 30 s left, $0.0123
        """
        parts = [f"{self.n_done}/{self.n_total} rows" if self.n_total else f"{self.n_done} rows"]
        if self.n_errors:
            parts.append(f"{self.n_errors} errors")
        if self.rows_per_second is not None:
            parts.append(f"{self.rows_per_second:,.1f} rows/s")
        if self.eta_seconds is not None:
            parts.append(f"{self.eta_seconds:,.0f} s left")
        if self.cost_usd is not None:
            parts.append(f"${self.cost_usd:,.4f}")
        return ", ".join(parts)


class Meter:
    """Counts outcomes and tells the progress."""

    def __init__(
        self, *, n_total: int | None, cost: Callable[[Tokens], float | None], clock: Callable[[], float]
    ) -> None:
        self.n_total = n_total
        self.counts: Counter[str] = Counter(dict.fromkeys(STATUSES, 0))
        self.n_reused = 0
        self.tokens = Tokens()
        self._cost = cost
        self._clock = clock
        self._looks: deque[tuple[float, int]] = deque([(clock(), 0)])

    def count(self, status: str, tokens: Tokens, *, is_reused: bool = False) -> None:
        """Take in a row's outcome."""
        self.counts[status] += 1
        self.n_reused += is_reused
        self.tokens += tokens

    @property
    def cost_usd(self) -> float | None:
        """Of all answers so far; None where a price is unknown."""
        return self._cost(self.tokens)

    def look(self, *, n_in_flight: int, concurrency: int, n_retries: int) -> Progress:
        """How far it is now."""
        now, n_done = self._clock(), sum(self.counts.values())
        n_fresh = n_done - self.n_reused
        rate = None
        while len(self._looks) > 1 and now - self._looks[0][0] > _RATE_SECONDS:
            self._looks.popleft()
        since, n_before = self._looks[0]
        if now > since and n_fresh > n_before:
            rate = (n_fresh - n_before) / (now - since)
        self._looks.append((now, n_fresh))
        left = None if rate is None or self.n_total is None else max(self.n_total - n_done, 0) / rate
        return Progress(
            n_done=n_done,
            n_total=self.n_total,
            n_errors=n_done - self.counts["answered"],
            n_reused=self.n_reused,
            rows_per_second=rate,
            eta_seconds=left,
            cost_usd=self.cost_usd,
            n_in_flight=n_in_flight,
            concurrency=concurrency,
            n_retries=n_retries,
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
        """The whole reckoning; None for programs without a known model."""
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
        if max_usd is not None and prices.unknown is not None:
            raise BudgetError(f"max_usd={max_usd} cannot be kept: {prices.unknown}; leave max_usd out to go on without")

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


# ----------------------------------------------------------------------------------------------------
# what a finished bulk run did, as counts, tokens and cost.
#
# In: a run's counts. Out: a `BulkResult`, as a line or as JSON.


@dataclass(frozen=True, kw_only=True)
class BulkResult:
    """What a finished run did."""

    output: Path
    """The file."""
    n_rows: int
    """Its rows: those of the input."""
    n_answered: int
    """Rows with a prediction."""
    n_unreadable: int
    """Rows whose answer cannot be read."""
    n_failed: int
    """Rows that got no answer."""
    n_bad_rows: int
    """Rows of the input that could not be asked."""
    n_reused: int
    """Rows that an earlier run, which did not finish, had answered."""
    n_requests: int
    """Answered requests, those of earlier runs among them."""
    n_retries: int
    """Requests of this run that were sent again."""
    n_input_tokens: int
    """Prompt tokens, as the host counted them."""
    n_output_tokens: int
    """Answer tokens."""
    cost_usd: float | None
    """Of all of it; None where a price is unknown."""
    seconds: float
    """This run took so long."""

    @classmethod
    def of(cls, meter: Meter, output: Path, *, n_retries: int, seconds: float) -> BulkResult:
        """What the meter has counted."""
        counts, tokens = meter.counts, meter.tokens
        return cls(
            output=output,
            n_rows=sum(counts.values()),
            n_answered=counts["answered"],
            n_unreadable=counts["unreadable"],
            n_failed=counts["failed"],
            n_bad_rows=counts["bad_row"],
            n_reused=meter.n_reused,
            n_requests=tokens.n_requests,
            n_retries=n_retries,
            n_input_tokens=tokens.n_input,
            n_output_tokens=tokens.n_output,
            cost_usd=meter.cost_usd,
            seconds=seconds,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "output": os.fspath(self.output)}

    def __str__(self) -> str:
        """A line for people."""
        parts = [f"{self.output}: {self.n_answered} of {self.n_rows} rows answered"]
        for n, what in ((self.n_unreadable, "unreadable"), (self.n_failed, "failed"), (self.n_bad_rows, "bad rows")):
            if n:
                parts.append(f"{n} {what}")
        if self.n_reused:
            parts.append(f"{self.n_reused} from an earlier run")
        if self.cost_usd is not None:
            parts.append(f"${self.cost_usd:,.4f}")
        return ", ".join(parts)
