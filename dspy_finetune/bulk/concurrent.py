"""concurrent.py: `predict`: every row of a source asked, many at a time, into one file, across any number of crashes.

In: a program and rows. Out: one output row for each input row, in order. Memory does not grow with the rows: at most
`checkpoint.WINDOW` rows lie between the oldest one that has no answer and the newest one that has.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import dspy

from dspy_finetune.bulk.asking import Gate, Persistence, ProgramAsker, Suspicion, Timing, WireAsker
from dspy_finetune.bulk.checkpoint import WINDOW, Checkpoint, Entry
from dspy_finetune.bulk.output import OutputFormat, output_format, write_output
from dspy_finetune.bulk.pacing import Pace
from dspy_finetune.bulk.progress import Budget, Meter, Prices, Progress
from dspy_finetune.bulk.rows import InputRow, Outcome, Rows, dump_json, fingerprint, load_json
from dspy_finetune.bulk.tokens import Tokens
from dspy_finetune.bulk.transport import Transport
from dspy_finetune.data.sources import Format
from dspy_finetune.errors import DataError, FileError, UsageError
from dspy_finetune.predictors.base import FinetunedPredictor
from dspy_finetune.predictors.wire import is_wired

logger = logging.getLogger(__name__)

SYNC_SECONDS = 5.0
"""Answers outlive the process at once, and the machine after this time."""
LOOK_SECONDS = 0.5
"""Between two calls of `on_progress`."""
DRAIN_SECONDS = 60.0
"""So long the requests under way may end when a run ends early: they are paid for."""

T = TypeVar("T")


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


def predict(
    predictor: Callable[..., Any],
    examples: Any,
    output: str | os.PathLike[str],
    *,
    inputs: Sequence[str] | None = None,
    keep: Literal["inputs", "all"] | Sequence[str] = "inputs",
    prefix: str = "",
    rename: Mapping[str, str] | None = None,
    format: Format | None = None,
    split: str | None = None,
    limit: int | None = None,
    output_format: OutputFormat | None = None,
    concurrency: int = 64,
    max_retries: int = 5,
    timeout_seconds: float = 120.0,
    patience_seconds: float = 600.0,
    max_usd: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    timing: Timing | None = None,
) -> BulkResult:
    """Ask a program about every row, and write every row with its answer or with the reason why there is none.

    The output holds, for each row of the input and in its order, the kept fields, the prediction's fields, and
    `status` ("answered", "unreadable", "failed", "bad_row"), `error` and `answer_text` (what the model said where that
    cannot be read). It appears under its name when it is complete. Until then every answer is kept in
    `OUTPUT.checkpoint`: the same call after a crash goes on where it was, and asks for no answered row again.

    A predictor of this library is asked over a lean HTTP path with the messages of its prompt, and read by its own
    code; DSPy's cache, history, callbacks and usage tracker do not see these calls. Any other program is called by its
    `acall`, or in threads.

    Args:
        predictor: Who is asked: a predictor, any `dspy.Module`, any callable that takes the input fields by name.
        examples: A path, a data frame, an iterable of rows: all that `iter_examples` takes.
        output: The file: .jsonl or .parquet (the extra `data`).
        inputs: The fields that the program is called with, where neither it nor the examples say so.
        keep: Fields of the input that go into the output: "inputs", "all", or names.
        prefix: Put before the names of the prediction's fields.
        rename: From the name in the source to the name wanted.
        format: Of the source, where its name does not tell.
        split: Of a data set with several.
        limit: Take the first so many rows.
        output_format: "jsonl" or "parquet", where the name does not tell.
        concurrency: The most requests under way. The number in force follows the host: it doubles from 8, halves at a
            429, and waits as the rate-limit headers and Retry-After say.
        max_retries: Further tries of a request that the host failed; refusals (429) are not counted.
        timeout_seconds: For one answer.
        patience_seconds: So long without a single answer, and the run ends with HostError.
        max_usd: The most to spend, earlier runs of this checkpoint among it.
        checkpoint: Where answers are kept until the output is complete.
        overwrite: Replace an output that is there already.
        on_progress: Called twice a second with the `Progress`.
        timing: Clock, sleep and chance.

    Raises:
        UsageError: An argument is wrong, the output exists, or the checkpoint belongs to another run.
        DataError: The input is not the one that was begun with.
        HostError: The host refuses every row, or is silent; what was answered is kept.
        BudgetError: max_usd is spent, or cannot be kept; what was answered is kept.
        FileError: A file cannot be read or written.
        MissingExtraError: Parquet without the extra `data`.
    """
    if concurrency < 1 or max_retries < 0 or timeout_seconds <= 0 or patience_seconds <= 0:
        raise UsageError(
            "concurrency must be at least 1, max_retries at least 0, timeout_seconds and patience_seconds above 0"
        )
    target = Path(output)
    kind = _output_format(target, output_format)
    kept_at = Path(checkpoint) if checkpoint is not None else target.with_name(f"{target.name}.checkpoint")
    if target.exists() and not kept_at.exists() and not overwrite:
        raise UsageError(f"{target} is there already; choose another output, or overwrite=True replaces it")
    rows = Rows(
        predictor,
        examples,
        inputs=inputs,
        keep=keep,
        prefix=prefix,
        rename=rename,
        format=format,
        split=split,
        limit=limit,
    )
    marks = fingerprint(examples)
    settings = {"keep": keep if isinstance(keep, str) else list(keep), "prefix": prefix, "rename": dict(rename or {})}
    run = {**describe(predictor), "input": marks.get("sha256"), "limit": limit, "settings": settings}
    kept = Checkpoint(kept_at, run)
    try:
        one = _Run(
            program=predictor,
            rows=rows,
            kept=kept,
            n_total=_n_total(examples, marks, limit),
            concurrency=concurrency,
            persistence=Persistence(max_retries=max_retries, patience_seconds=patience_seconds),
            timeout_seconds=timeout_seconds,
            max_usd=max_usd,
            on_progress=on_progress,
            timing=timing or Timing(),
        )
        started = time.monotonic()
        try:
            _in_loop(one.answer_all)
        except BaseException:
            if not one.has_answers:
                kept.remove()  # nothing is lost with it, and a call that is put right must not be refused
            raise
        write_output(target, kind, lambda: (entry.row for entry in kept.in_order()))
        kept.remove()
        return one.result(target, time.monotonic() - started)
    finally:
        kept.close()


_output_format = output_format  # the argument of the same name hides it


class _Run:
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
        counts, tokens = self._meter.counts, self._meter.tokens
        last = self._look()
        return BulkResult(
            output=output,
            n_rows=sum(counts.values()),
            n_answered=counts["answered"],
            n_unreadable=counts["unreadable"],
            n_failed=counts["failed"],
            n_bad_rows=counts["bad_row"],
            n_reused=self._meter.n_reused,
            n_requests=tokens.n_requests,
            n_retries=self._gate.n_retries,
            n_input_tokens=tokens.n_input,
            n_output_tokens=tokens.n_output,
            cost_usd=last.cost_usd,
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


def describe(program: Any) -> dict[str, Any]:
    """What a program is, for the checkpoint: enough to refuse another one, and nothing secret.

    The state of a program that is not one of this library's predictors may hold headers with keys, so that only its
    hash is written. What a plain function does cannot be told: it goes by its name.
    """
    if isinstance(program, FinetunedPredictor):
        state = load_json(dump_json(program.dump_state()))
        del state["prompt"]  # its digest stands for it
        named = {"program": "predictor", "model": "model", "host": "host", "prompt": "prompt_digest"}
        return {name: state.pop(key) for name, key in named.items()} | {"options": state}
    kind = program if isinstance(program, type) or hasattr(program, "__qualname__") else type(program)
    saved = program.dump_state() if isinstance(program, dspy.Module) else None
    return {"program": f"{kind.__module__}.{kind.__qualname__}", "options": _hash(saved)}


def _hash(state: Any) -> str:
    return hashlib.sha256(dump_json(state)).hexdigest()


def _n_total(examples: Any, marks: Mapping[str, Any], limit: int | None) -> int | None:
    found: int | None = None
    if marks:
        suffix = Path(examples).suffix.lower()
        if suffix in (".jsonl", ".ndjson"):
            found = marks["n_lines"]
        elif suffix in (".csv", ".tsv", ".tab"):
            found = max(marks["n_lines"] - 1, 0)
    elif hasattr(examples, "__len__"):
        found = len(examples)
    if found is None:
        return None
    return found if limit is None else min(found, limit)


def _in_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run to the end in an event loop of its own; beside one that runs already, as in a notebook, in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    results: list[T] = []
    errors: list[BaseException] = []
    context = contextvars.copy_context()

    def run() -> None:
        try:
            results.append(context.run(asyncio.run, main()))
        except BaseException as error:  # whatever it is, the caller's thread raises it
            errors.append(error)

    thread = threading.Thread(target=run, name="dspy-finetune-bulk")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
