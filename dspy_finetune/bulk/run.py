"""run.py: one call of `bulk.predict` under way: workers that take rows, ask, and keep each outcome in the checkpoint.

In: a program, rows and a checkpoint. Out: a checkpoint that holds an outcome for every row, and a `BulkResult`. At most
`checkpoint.WINDOW` rows lie between the oldest one that has no answer and the newest one that has.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy

from dspy_finetune.bulk.asking import Gate, Persistence, ProgramAsker, Suspicion, Timing, WireAsker
from dspy_finetune.bulk.checkpoint import WINDOW, Checkpoint, Entry
from dspy_finetune.bulk.progress import Budget, BulkResult, Meter, Prices, Progress
from dspy_finetune.bulk.rate_limit import Pace
from dspy_finetune.bulk.reader import InputRow, Outcome, Rows
from dspy_finetune.bulk.requests import Tokens, Transport, is_wired
from dspy_finetune.errors import DataError, FileError
from dspy_finetune.predictors.base import FinetunedPredictor

SYNC_SECONDS = 5.0
"""Answers outlive the process at once, and the machine after this time."""
LOOK_SECONDS = 0.5
"""Between two calls of `on_progress`."""
DRAIN_SECONDS = 60.0
"""So long the requests under way may end when a run ends early: they are paid for."""


class Run:
    """One call of `predict` under way."""

    def __init__(
        self,
        *,
        program: Callable[..., Any],
        rows: Rows,
        kept: Checkpoint,
        n_total: int | None,
        concurrency: int,
        persistence: Persistence,
        timeout_seconds: float,
        max_usd: float | None,
        on_progress: Callable[[Progress], None] | None,
        timing: Timing,
    ) -> None:
        self._program = program
        self._rows = rows
        self._kept = kept
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._on_progress = on_progress
        self._timing = timing
        prices = Prices(program)
        earlier = Tokens()
        self.has_answers = False
        if not kept.is_new:
            earlier = self._earlier()
        self._budget = Budget(max_usd, prices, earlier)
        self._meter = Meter(n_total=n_total, cost=prices.usd, clock=timing.clock)
        pace = Pace(most=concurrency, clock=timing.clock, generator=timing.generator)
        self._gate = Gate(pace, timing, persistence)
        self._suspicion = Suspicion()
        self._source = iter(rows)
        self._gaps: deque[InputRow] = deque()
        self._n_taken = 0
        self._oldest = 0
        self._ended: set[int] = set()  # rows with an outcome beyond the oldest that has none
        self._moved = asyncio.Event()
        self._is_over = False
        self._is_flushing = False
        self._write_error: FileError | None = None

    async def answer_all(self) -> None:
        """Give every row an outcome, in the checkpoint."""
        # A million traces and histories would fill the memory, and nobody reads them.
        with dspy.context(disable_history=True, trace=None):
            self._take_up()
            async with contextlib.AsyncExitStack() as stack:
                asker: WireAsker | ProgramAsker
                if is_wired(self._program):
                    assert isinstance(self._program, FinetunedPredictor)
                    assert self._program.host is not None
                    transport = await stack.enter_async_context(
                        Transport(
                            self._program.host,
                            max_connections=self._concurrency,
                            timeout_seconds=self._timeout_seconds,
                        )
                    )
                    asker = WireAsker(self._program, transport, self._gate, self._budget)
                else:
                    asker = ProgramAsker(self._program, self._gate)
                housekeeping = asyncio.ensure_future(self._keep_house())
                try:
                    await self._work(asker)
                finally:
                    housekeeping.cancel()
                    await asyncio.gather(housekeeping, return_exceptions=True)
                    self._kept.flush()
                    self._tell()
        if self._write_error is not None:
            raise self._write_error
        self._kept.sync()

    def result(self, output: Path, seconds: float) -> BulkResult:
        """What was done."""
        return BulkResult.of(
            self._meter,
            output,
            n_retries=self._gate.n_retries,
            seconds=seconds,
        )

    def _earlier(self) -> Tokens:
        total = Tokens()
        for entry in self._kept.entries():
            total += entry.tokens
            self.has_answers = self.has_answers or entry.status != "bad_row"
        return total

    async def _work(self, asker: WireAsker | ProgramAsker) -> None:
        workers = [asyncio.ensure_future(self._worker(asker)) for _ in range(self._concurrency)]
        try:
            ended, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            errors = [error for task in ended if (error := task.exception()) is not None]
            if errors:
                # What is under way is paid for: it may end, but nothing new begins.
                self._is_over = True
                self._moved.set()
                await asyncio.wait(workers, timeout=DRAIN_SECONDS)
                raise errors[0]
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _worker(self, asker: WireAsker | ProgramAsker) -> None:
        while (row := await self._next_row()) is not None:
            outcome = await asker.ask(row)
            self._record(row, outcome)
            self._suspicion.check(outcome)
            # A program that answers without ever waiting would keep the loop from writing what it has answered.
            await asyncio.sleep(0)

    def _take_up(self) -> None:
        """Find the rows that earlier runs answered, before anything is asked: if one is another, nothing may be."""
        while not self._kept.is_used_up():
            row = next(self._source, None)
            if row is None:
                raise DataError(
                    f"{self._rows.name} has {self._n_taken} rows, and {self._kept.path} holds answers to more: it is "
                    "not the input that was begun with; bring that back, or remove the checkpoint to start afresh"
                )
            self._n_taken += 1
            entry = self._kept.find(row.index)
            if entry is None:
                self._gaps.append(row)  # no more than WINDOW of them: see checkpoint.py
            else:
                self._reuse(row, entry)

    async def _next_row(self) -> InputRow | None:
        """The next row that is to be asked; bad ones are done with on the way."""
        n_passed = 0
        while not self._has_ended():
            row = self._gaps.popleft() if self._gaps else None
            while row is None and self._n_taken >= self._oldest + WINDOW and not self._has_ended():
                self._moved.clear()
                await self._moved.wait()
            if self._has_ended():
                break  # a row from beyond the window could not be found again
            if row is None:
                row = next(self._source, None)
                self._n_taken += 1
            if row is None:
                self._is_over = True
                self._moved.set()
                return None
            if row.problem is None:
                return row
            self._record(row, Outcome(status="bad_row", error=row.problem))
            n_passed += 1
            if n_passed % 256 == 0:
                await asyncio.sleep(0)  # others have answers to read meanwhile
        return None

    def _has_ended(self) -> bool:
        """Whether nothing new may begin; another worker may have seen to that during any await."""
        return self._is_over

    def _reuse(self, row: InputRow, entry: Entry) -> None:
        if entry.digest != row.digest:
            raise DataError(
                f"{row.place} is not the row that was asked before ({self._kept.path} holds the answers): the input "
                "or its order has changed; bring the old one back, or remove the checkpoint to start afresh"
            )
        self._meter.count(entry.status, entry.tokens, is_reused=True)
        self._end(row.index)

    def _record(self, row: InputRow, outcome: Outcome) -> None:
        if self._write_error is not None:
            raise self._write_error
        self._kept.add(row, outcome, self._rows.output(row, outcome))
        if not self._is_flushing:
            # The answers that came in the same turn of the loop are written together: a write can cost more than all
            # the rest of an answer.
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self._flush)
        self.has_answers = self.has_answers or outcome.status != "bad_row"
        self._meter.count(outcome.status, outcome.tokens)
        self._end(row.index)

    def _flush(self) -> None:
        self._is_flushing = False
        try:
            self._kept.flush()
        except FileError as error:
            self._write_error = error  # for the next row; nothing more is asked for

    def _end(self, index: int) -> None:
        self._ended.add(index)
        while self._oldest in self._ended:
            self._ended.remove(self._oldest)
            self._oldest += 1
        self._moved.set()

    async def _keep_house(self) -> None:
        synced_at = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._tell()
            if time.monotonic() - synced_at >= SYNC_SECONDS:
                await asyncio.to_thread(self._kept.sync)
                synced_at = time.monotonic()

    def _look(self) -> Progress:
        pace = self._gate.pace
        return self._meter.look(
            n_in_flight=pace.n_in_flight, concurrency=int(pace.limit), n_retries=self._gate.n_retries
        )

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._look())
