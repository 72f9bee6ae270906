"""batch_progress.py: how far the batches of a run are: rows, rate, time left and cost, from what the host counts.

In: looks at batches, and the answers that were fetched. Out: `Progress`. Batches are answered in bursts, so that the
rate is that since this run began to look. The cost is that of the answers that are here, and of the tokens that the
host has counted for others: never an estimate.
"""

from __future__ import annotations

from typing import Any

from dspy_finetune.bulk.batch_files import Answers, Part
from dspy_finetune.bulk.batch_folder import BatchFolder
from dspy_finetune.bulk.progress import Prices, Progress
from dspy_finetune.bulk.tokens import Tokens
from dspy_finetune.jobs.clock import Clock


class BatchProgress:
    """Counts what the batches of a run have answered."""

    def __init__(self, folder: BatchFolder, prices: Prices, clock: Clock) -> None:
        self._folder = folder
        self._prices = prices
        self._clock = clock
        self._began_at = clock.now()
        self._n_answered: dict[str, int] = {}
        self._n_failed: dict[str, int] = {}
        self._n_earlier = 0
        self._collected: dict[str, Tokens] = {}
        self._counted: dict[str, Tokens] = {}

    def heard(self, part: Part, batch: Any) -> None:
        """Take in a look at a part's batch, which may hold a part of its requests."""
        counts = batch.request_counts
        if counts is not None and counts.total:
            n_before = part.n_requests - counts.total
            self._n_answered[part.name] = n_before + counts.completed + counts.failed
            self._n_failed[part.name] = counts.failed
        usage = getattr(batch, "usage", None)
        if usage is not None:
            details = getattr(usage, "input_tokens_details", None)
            self._counted[part.name] = Tokens(
                n_input=usage.input_tokens or 0,
                n_cached=getattr(details, "cached_tokens", 0) or 0,
                n_output=usage.output_tokens or 0,
            )

    def collected(self, part: Part, answers: Answers, *, is_earlier: bool = False) -> None:
        """Take in the answers that were fetched: all of a part's, of an earlier run or just now."""
        self._counted.pop(part.name, None)
        self._collected[part.name] = answers.tokens
        self._n_answered[part.name] = len(answers)
        self._n_failed[part.name] = answers.n_failed
        if is_earlier:
            self._n_earlier += len(answers)

    def look(self, *, n_retries: int) -> Progress:
        """How far it is now."""
        n_requests = self._folder.n_requests
        n_answered = min(sum(self._n_answered.values()), n_requests)
        seconds = self._clock.now() - self._began_at
        n_fresh = n_answered - self._n_earlier
        rate = self._rows(n_fresh) / seconds if seconds > 0 and n_fresh > 0 else None
        n_done, n_rows = self._rows(n_answered), self._folder.n_rows
        used = sum([*self._collected.values(), *self._counted.values()], Tokens())
        return Progress(
            n_done=round(n_done),
            n_total=n_rows,
            n_errors=round(self._rows(sum(self._n_failed.values()))),
            n_reused=round(self._rows(self._n_earlier)),
            rows_per_second=rate,
            eta_seconds=None if rate is None else (n_rows - n_done) / rate,
            cost_usd=self._prices.usd(used),
            n_in_flight=n_requests - n_answered,
            concurrency=n_requests,
            n_retries=n_retries,
        )

    def _rows(self, n_requests: int) -> float:
        """Rows of so many requests: a pair that is asked in both orders is one row of two."""
        return self._folder.n_rows * n_requests / self._folder.n_requests
