"""`predict`: every row of a source asked, many at a time, into one file, across any number of crashes.

In: a program and rows. Out: one output row for each input row, in order. Memory does not grow with the rows: at most
`checkpoint.WINDOW` rows lie between the oldest one that has no answer and the newest one that has.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import hashlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import dspy

from dspy_finetune.bulk.rate_limit import DEFAULT_RETRY, RetryPolicy
from dspy_finetune.bulk.reader import (
    DEFAULT_FILES,
    FileOptions,
    OutputFormat,
    Rows,
    dump_json,
    fingerprint,
    load_json,
    output_format,
    write_output,
)
from dspy_finetune.bulk.requests import known_bodies
from dspy_finetune.bulk.run import BulkProgress, BulkResult, Checkpoint, Run
from dspy_finetune.errors import UsageError
from dspy_finetune.predictors.base import FinetunedPredictor

# A coroutine brought to its end from code that does not wait for coroutines. It runs in an event loop of its own,
# in this thread or, beside a loop that runs already (a notebook), in another. Ctrl-C there, or a cancelled `await`
# elsewhere, ends it: nothing goes on asking, and paying, behind the caller's back.

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
            raise UsageError(f"{output} is there already; choose another output, or overwrite=True replaces it")
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
