"""`predict`: every row of a source asked, many at a time, into one file, across any number of crashes.

In: a program and rows. Out: one output row for each input row, in order, and a `BulkResult`. Prices are the catalog's;
where one is unknown, the cost is None. Memory does not grow with the rows: at most `WINDOW` rows lie between the oldest
one that has no answer and the newest one that has.

Every answer is in the `Checkpoint` as soon as it is there, so that a killed run never asks for it again: one file with
a line of JSON that says which run it is, then a line for each row in the order of answering: index, digest, status,
requests, input, cached and output tokens, the output row; separated by tabs, which JSON escapes. `flush` hands lines to
the system, where they outlive the process; a line torn by a crash is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import hashlib
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, ParamSpec, TypeVar

import dspy

from dspy_finetune._files import AppendLog, file_error
from dspy_finetune.bulk import rate_limit
from dspy_finetune.bulk.rate_limit import (
    DEFAULT_RETRY,
    AdaptiveRateLimiter,
    Budget,
    CircuitBreaker,
    ConcurrencyLimiter,
    Prices,
    RetryPolicy,
    host_name,
)
from dspy_finetune.bulk.reader import (
    DEFAULT_FILES,
    STATUSES,
    FileOptions,
    InputRow,
    Outcome,
    OutputFormat,
    Rows,
    Tokens,
    dump_json,
    fingerprint,
    load_json,
    output_format,
    write_output,
)
from dspy_finetune.bulk.requests import HostRequester, ProgramRequester, Transport, is_wired, known_bodies
from dspy_finetune.errors import DataError, FileError, UsageError
from dspy_finetune.predictors.base import FinetunedPredictor
from dspy_finetune.report.blocks import Facts, Section
from dspy_finetune.report.page import Reported

VERSION = 2
WINDOW = 10_000
"""How far ahead of the oldest unanswered row another may be answered."""

_N_FIELDS = 8


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An answered row as the checkpoint holds it."""

    index: int
    """Which row of the input."""
    digest: str
    """Of the row that was asked."""
    status: str
    """See `Outcome`."""
    tokens: Tokens
    """See `Outcome`."""
    row: bytes
    """The output row, as JSON."""


class Checkpoint:
    """The file of one run, held by one process at a time.

    Args:
        path: Where.
        run: What the run is: JSON values, all of which must be the same when it is taken up again.

    Raises:
        FileError: The file cannot be written, or another process is at work on it.
        UsageError: It belongs to another run; says in what it differs.
        DataError: It is no checkpoint.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        self._log = AppendLog(path, "checkpoint").hold()
        self.is_new = self._log.is_new
        try:
            if self.is_new:
                self._log.append({"checkpoint": VERSION, **run})
            else:
                self._check(run)
            self._log.write(b"")  # the torn end of a killed run goes
        except BaseException:
            self.close()
            raise
        self._lines: list[bytes] = []
        self._ahead: dict[int, Entry] = {}
        self._earlier = self._entries(self._log.size_bytes)
        self._furthest = -1

    def find(self, index: int) -> Entry | None:
        """The row's answer from an earlier run, or None. Rows must be asked for in rising order."""
        while index not in self._ahead and self._furthest <= index + WINDOW:
            entry = next(self._earlier, None)
            if entry is None:
                break
            self._furthest = max(self._furthest, entry.index)
            if entry.index >= index:
                self._ahead[entry.index] = entry
        return self._ahead.pop(index, None)

    def is_used_up(self) -> bool:
        """Whether every answer of earlier runs was found."""
        if not self._ahead and (entry := next(self._earlier, None)) is not None:
            self._furthest = max(self._furthest, entry.index)
            self._ahead[entry.index] = entry
        return not self._ahead

    def add(self, row: InputRow, outcome: Outcome, output: bytes) -> None:
        """Keep an answer, with the next `flush`."""
        used = outcome.tokens
        numbers = (used.n_requests, used.n_input, used.n_cached, used.n_output)
        head = "\t".join(map(str, (row.index, row.digest, outcome.status, *numbers)))
        self._lines.append(head.encode("ascii") + b"\t" + output + b"\n")

    def flush(self) -> None:
        """Hand the lines to the system: when this returns, they outlive the process. Raises FileError."""
        lines, self._lines = self._lines, []
        self._log.write(b"".join(lines))

    def sync(self) -> None:
        """Bring all of it to the disk, where it outlives the machine. Raises FileError."""
        self._log.sync()

    def entries(self) -> Iterator[Entry]:
        """All answers in the order of answering."""
        return self._entries(self._log.size_bytes)

    def in_order(self) -> Iterator[Entry]:
        """All answers in the input's order. Raises DataError where one is missing."""
        wanted, ahead = 0, {}
        for entry in self.entries():
            ahead[entry.index] = entry
            while wanted in ahead:
                yield ahead.pop(wanted)
                wanted += 1
        if ahead:
            raise DataError(f"{self.path}: the answer to row {wanted + 1} is missing; remove the file and start afresh")

    def close(self) -> None:
        """Let go of the file; it stays."""
        self._log.close()

    def remove(self) -> None:
        """The run is complete: the file goes."""
        self._log.remove()

    def _check(self, run: Mapping[str, Any]) -> None:
        with open(self.path, "rb") as stream:
            line = stream.readline()
        try:
            found = json.loads(line)
            version = found.pop("checkpoint")
        except (ValueError, AttributeError, KeyError) as error:
            raise DataError(
                f"{self.path} is not a checkpoint; choose another checkpoint=, or remove the file"
            ) from error
        if version != VERSION:
            raise DataError(
                f"{self.path} was written by another release (version {version}); remove it to start afresh"
            )
        for name, value in run.items():
            if found.get(name) != value:
                raise UsageError(
                    f"{self.path} holds the answers of another run: its {name} is {_short(found.get(name))}, here it "
                    f"is {_short(value)}; finish that run, choose another output, or remove the file to start afresh"
                )

    def _entries(self, size: int) -> Iterator[Entry]:
        try:
            with open(self.path, "rb", buffering=1 << 18) as stream:
                stream.readline()
                while stream.tell() < size:
                    yield self._entry(stream)
        except OSError as error:
            raise file_error(error, self.path, "read the checkpoint") from error

    def _entry(self, stream: BinaryIO) -> Entry:
        parts = stream.readline()[:-1].split(b"\t", _N_FIELDS - 1)
        try:
            index, digest, status, *numbers, row = parts
            n_requests, n_input, n_cached, n_output = map(int, numbers)
            return Entry(
                index=int(index),
                digest=digest.decode("ascii"),
                status=status.decode("ascii"),
                tokens=Tokens(n_requests=n_requests, n_input=n_input, n_cached=n_cached, n_output=n_output),
                row=row,
            )
        except ValueError as error:
            raise DataError(
                f"{self.path} is damaged at byte {stream.tell()}; remove the file to start afresh"
            ) from error


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


SYNC_SECONDS = 5.0
"""Answers outlive the process at once, and the machine after this time."""
LOOK_SECONDS = 0.5
"""Between two calls of `on_progress`."""
DRAIN_SECONDS = 60.0
"""Timeout of the requests under way when a run ends early: they are paid for."""


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
        policy: RetryPolicy,
        max_usd: float | None,
        on_progress: Callable[[BulkProgress], None] | None,
    ) -> None:
        self._program = program
        self._rows = rows
        self._kept = kept
        self._concurrency = concurrency
        self._timeout_seconds = policy.timeout_seconds
        self._on_progress = on_progress
        timing = rate_limit.SYSTEM_TIMING
        prices = Prices(program)
        earlier = Tokens()
        self.has_answers = False
        if not kept.is_new:
            for entry in kept.entries():
                earlier += entry.tokens
                self.has_answers = self.has_answers or entry.status != "bad_row"
        self._budget = Budget(max_usd, prices, earlier)
        self._meter = Meter(n_total=n_total, cost=prices.usd, clock=timing.clock)
        rate = AdaptiveRateLimiter(most=concurrency, clock=timing.clock, generator=timing.generator)
        self._limiter = ConcurrencyLimiter(rate, timing, policy, host_name(program))
        self._breaker = CircuitBreaker()
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
                requester: HostRequester | ProgramRequester
                if is_wired(self._program):
                    assert isinstance(self._program, FinetunedPredictor)
                    assert self._program.host is not None
                    self._program.check_root()
                    transport = await stack.enter_async_context(
                        Transport(
                            self._program.host,
                            max_connections=self._concurrency,
                            timeout_seconds=self._timeout_seconds,
                        )
                    )
                    requester = HostRequester(self._program, transport, self._limiter, self._budget)
                else:
                    requester = ProgramRequester(self._program, self._limiter)
                housekeeping = asyncio.ensure_future(self._keep_house())
                try:
                    await self._work(requester)
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
        return BulkResult.of(self._meter, output, n_retries=self._limiter.n_retries, seconds=seconds)

    async def _work(self, requester: HostRequester | ProgramRequester) -> None:
        workers = [asyncio.ensure_future(self._worker(requester)) for _ in range(self._concurrency)]
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

    async def _worker(self, requester: HostRequester | ProgramRequester) -> None:
        while (row := await self._next_row()) is not None:
            outcome = await requester.ask(row)
            self._record(row, outcome)
            self._breaker.check(outcome)
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
                self._gaps.append(row)  # no more than WINDOW of them: see `Checkpoint`
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

    def _tell(self) -> None:
        if self._on_progress is not None:
            rate, n_retries = self._limiter.rate, self._limiter.n_retries
            look = self._meter.look(n_in_flight=rate.n_in_flight, concurrency=int(rate.limit), n_retries=n_retries)
            self._on_progress(look)


_RATE_SECONDS = 60.0
"""The rate shown is that of the last minute."""


@dataclass(frozen=True, kw_only=True)
class BulkProgress:
    """How far a run is."""

    n_done: int
    """Rows with an outcome, those of an earlier run among them."""
    n_total: int | None
    """Rows of the input; None where that cannot be known beforehand. Lines of a text file, so an estimate for CSV."""
    n_errors: int
    """Rows without an answer: failed and bad ones, and those whose answer is none or cannot be read."""
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

    @property
    def label(self) -> str:
        """What is being done."""
        return "asking"

    @property
    def note(self) -> str:
        """What there is to say beside a bar, which tells the position and the time by itself."""
        return ", ".join(filter(None, (*self._pace(), self._cost())))

    def _pace(self) -> tuple[str, str]:
        rate = "" if self.rows_per_second is None else f"{self.rows_per_second:,.1f} rows/s"
        return (f"{self.n_errors} errors" if self.n_errors else ""), rate

    def _cost(self) -> str:
        return f"${self.cost_usd:,.4f}" if self.cost_usd else ""

    def __str__(self) -> str:
        """One line for people.

        >>> print(BulkProgress(n_done=500, n_total=2000, n_errors=3, n_reused=0, rows_per_second=50.0, eta_seconds=30.0,
        ...                cost_usd=0.0123, n_in_flight=8, concurrency=8, n_retries=1))
        500/2000 rows, 3 errors, 50.0 rows/s, 30 s left, $0.0123
        """
        left = "" if self.eta_seconds is None else f"{self.eta_seconds:,.0f} s left"
        position = f"{self.n_done}/{self.n_total} rows" if self.n_total else f"{self.n_done} rows"
        return ", ".join(filter(None, (position, *self._pace(), left, self._cost())))


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

    def look(self, *, n_in_flight: int, concurrency: int, n_retries: int) -> BulkProgress:
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
        return BulkProgress(
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


@dataclass(frozen=True, kw_only=True)
class BulkResult(Reported):
    """What a finished run did."""

    output: Path
    """The file."""
    n_rows: int
    """Its rows: those of the input."""
    n_answered: int
    """Rows with a prediction."""
    n_parse_failures: int
    """Rows whose answer cannot be read."""
    n_no_answer: int
    """Rows whose model refused, was cut off or only reasoned; `error` says which."""
    n_failed: int
    """Rows for which no completion came."""
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
    """Wall time of this run."""

    @classmethod
    def of(cls, meter: Meter, output: Path, *, n_retries: int, seconds: float) -> BulkResult:
        """What the meter has counted."""
        counts, tokens = meter.counts, meter.tokens
        return cls(
            output=output,
            n_rows=sum(counts.values()),
            n_answered=counts["answered"],
            n_parse_failures=counts["parse_failure"],
            n_no_answer=counts["no_answer"],
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
        parts += [f"{n} {what}" for n, what in self._errors() if n]
        if self.n_reused:
            parts.append(f"{self.n_reused} from an earlier run")
        if self.cost_usd:
            parts.append(f"${self.cost_usd:,.4f}")
        return ", ".join(parts)

    def section(self) -> Section:
        """The blocks of a report: what became of the rows, and what it took."""
        facts = {
            **{what: f"{n:,}" for n, what in self._errors() if n},
            "requests": f"{self.n_requests:,}, {self.n_retries:,} sent again",
            "tokens": f"{self.n_input_tokens:,} read, {self.n_output_tokens:,} written",
            "time": f"{self.seconds:,.1f} s",
        }
        return Section(title=f"Predictions in {self.output}", verdict=str(self), blocks=(Facts(facts=facts),))

    def _errors(self) -> list[tuple[int, str]]:
        return [
            (self.n_parse_failures, "parse failures"),
            (self.n_no_answer, "without an answer (refused, cut off or only reasoned)"),
            (self.n_failed, "failed"),
            (self.n_bad_rows, "bad rows"),
        ]


T = TypeVar("T")
P = ParamSpec("P")


class Stop:
    """Ends a coroutine that runs in another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def set(self) -> None:
        """End it, now or as soon as it begins."""
        with self._lock:
            self._is_set = True
            if self._running is not None:
                loop, task = self._running
                loop.call_soon_threadsafe(task.cancel)

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run it in this thread; raises CancelledError where it was ended."""
        return asyncio.run(self._watched(main))

    async def _watched(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = asyncio.current_task()
        assert task is not None
        with self._lock:
            if self._is_set:
                raise asyncio.CancelledError
            self._running = asyncio.get_running_loop(), task
        try:
            return await main()
        finally:
            with self._lock:
                self._running = None


_outer: contextvars.ContextVar[Stop | None] = contextvars.ContextVar("dspy_finetune_bulk_stop", default=None)


def run_to_end(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run to the end in an event loop of its own; beside one that runs already, in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return (_outer.get() or Stop()).run(main)
    stop, context = Stop(), contextvars.copy_context()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="dspy-finetune-bulk") as pool:
        running = pool.submit(context.run, stop.run, main)
        try:
            return running.result()
        except BaseException:
            stop.set()  # Ctrl-C came here, and not there; the pool waits for the end
            raise


def in_thread(function: Callable[P, T], *, name: str, doc: str) -> Callable[P, Awaitable[T]]:
    """The function as a coroutine function: in a thread, and ended when the coroutine is cancelled."""

    @functools.wraps(function)  # the same parameters
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        stop, context = Stop(), contextvars.copy_context()
        context.run(_outer.set, stop)
        running = asyncio.get_running_loop().run_in_executor(
            None, functools.partial(context.run, function, *args, **kwargs)
        )
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.gather(running, return_exceptions=True)
            raise

    call.__name__ = call.__qualname__ = name
    call.__doc__ = doc
    return call


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked, and where the answers go."""

    rows: Rows
    """What is asked."""
    n_total: int | None
    """How many rows there are; None where that cannot be known beforehand. Lines of a text file."""
    output: Path
    """The file."""
    format: OutputFormat
    """Its format."""
    described: dict[str, Any]
    """What the run is, as JSON values without secrets: all of them must be the same when it is taken up again."""

    @classmethod
    def of(
        cls,
        program: Callable[..., Any],
        examples: Any,
        output: Path,
        *,
        kept_at: Path,
        inputs: Sequence[str] | None = None,
        keep: Literal["inputs", "all"] | Sequence[str] = "inputs",
        prefix: str = "",
        overwrite: bool = False,
        files: FileOptions = DEFAULT_FILES,
    ) -> Task:
        """The arguments of `bulk.predict` made into a task; `kept_at` is where a run under way keeps its answers.

        Raises:
            UsageError: An argument is wrong, or the output is there already.
            FileError: The source cannot be read.
            MissingExtraError: Parquet without the extra `data`.
        """
        kind = output_format(output, files.output_format)
        if output.exists() and not kept_at.exists() and not overwrite:
            raise UsageError(
                f"{output} is there already; choose another output, or replace it by --overwrite (overwrite=True)"
            )
        bodies = known_bodies(program)
        rows = Rows(program, examples, bodies=bodies, inputs=inputs, keep=keep, prefix=prefix, files=files)
        marks = fingerprint(examples)
        kept = keep if isinstance(keep, str) else list(keep)
        settings = {"keep": kept, "prefix": prefix, "rename": dict(files.rename or {})}
        return cls(
            rows=rows,
            n_total=_n_total(examples, marks, files.limit),
            output=output,
            format=kind,
            described={**_describe(program), "input": marks.get("sha256"), "limit": files.limit, "settings": settings},
        )


def _describe(program: Any) -> dict[str, Any]:
    """What a program is: enough to refuse another one, and nothing secret.

    The state of a program that is not one of this library's predictors may hold headers with keys, so that only its
    hash is written. What a plain function does cannot be told: it goes by its name.
    """
    if isinstance(program, FinetunedPredictor):
        state = load_json(dump_json(program.dump_state()))
        del state["prompt"]  # its digest stands for it
        state.pop("top_logprobs", None)  # it changes no answer's words; a host may have had it lowered
        named = {"program": "predictor", "model": "model", "host": "host", "prompt": "prompt_digest"}
        return {name: state.pop(key) for name, key in named.items()} | {"options": state}
    kind = program if isinstance(program, type) or hasattr(program, "__qualname__") else type(program)
    saved = program.dump_state() if isinstance(program, dspy.Module) else None
    digest = hashlib.sha256(dump_json(saved)).hexdigest()
    return {"program": f"{kind.__module__}.{kind.__qualname__}", "options": digest}


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


def predict(
    predictor: Callable[..., Any],
    examples: Any,
    output: str | os.PathLike[str],
    *,
    inputs: Sequence[str] | None = None,
    keep: Literal["inputs", "all"] | Sequence[str] = "inputs",
    prefix: str = "",
    concurrency: int = 64,
    max_usd: float | None = None,
    overwrite: bool = False,
    on_progress: Callable[[BulkProgress], None] | None = None,
    retry: RetryPolicy = DEFAULT_RETRY,
    files: FileOptions = DEFAULT_FILES,
) -> BulkResult:
    """Ask a program about every row, and write every row with its answer or with the reason why there is none.

    The output holds, for each row of the input and in its order, the kept fields, the prediction's fields, and
    `status` ("answered", "parse_failure", "no_answer", "failed", "bad_row"), `error` and `answer_text` (what the model
    said where that is no answer). It appears under its name when it is complete. Until then every answer is kept in
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
        concurrency: Maximum number of concurrent requests. The number in force follows the host: it doubles from 8,
            halves at a 429, and waits as the rate-limit headers and Retry-After say.
        max_usd: The most to spend, earlier runs of this checkpoint among it.
        overwrite: Replace an output that is there already.
        on_progress: Called twice a second with the `BulkProgress`.
        retry: When a failed request is sent again, its timeout, and how long a silent host is waited for.
        files: How the source is read (`rename`, `format`, `split`, `limit`), and where and how the answers are kept
            (`output_format`, `checkpoint`).

    Raises:
        UsageError: An argument is wrong, the output exists, or the checkpoint belongs to another run.
        DataError: The input is not the one that was begun with.
        HostError: The host refuses every row, or is silent; what was answered is kept.
        BudgetError: max_usd is spent, or cannot be kept; what was answered is kept.
        FileError: A file cannot be read or written.
        MissingExtraError: Parquet without the extra `data`.
    """
    if concurrency < 1:
        raise UsageError(f"concurrency must be at least 1, found {concurrency}")
    target = Path(output)
    kept_at = Path(files.checkpoint) if files.checkpoint else target.with_name(f"{target.name}.checkpoint")
    task = Task.of(
        predictor, examples, target, kept_at=kept_at, inputs=inputs, keep=keep, prefix=prefix, overwrite=overwrite,
        files=files,
    )  # fmt: skip
    kept = Checkpoint(kept_at, task.described)
    one: Run | None = None
    try:
        one = Run(
            program=predictor,
            rows=task.rows,
            kept=kept,
            n_total=task.n_total,
            concurrency=concurrency,
            policy=retry,
            max_usd=max_usd,
            on_progress=on_progress,
        )
        started = time.monotonic()
        run_to_end(one.answer_all)
        write_output(target, task.format, lambda: (entry.row for entry in kept.in_order()))
        kept.remove()
        return one.result(target, time.monotonic() - started)
    except BaseException:
        if kept.is_new if one is None else not one.has_answers:
            kept.remove()  # nothing is lost with it, and a call that is put right must not be refused
        raise
    finally:
        kept.close()


apredict = in_thread(
    predict,
    name="apredict",
    doc="""`predict` where an event loop runs, with the same arguments: `await apredict(...)`.

    It works in a thread, so that the caller's loop stays free; `on_progress` is called there. Cancelled, it ends as
    after Ctrl-C: what was answered is kept, and the same call goes on from there.

    Raises:
        Exception: As `predict`.
    """,
)
