"""result.py: what a finished bulk run did, as counts, tokens and cost.

In: a run's counts. Out: a `BulkResult`, as a line or as JSON.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dspy_finetune.bulk.progress import Meter


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
