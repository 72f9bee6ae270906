"""loop.py: a coroutine brought to its end from code that does not wait for coroutines, and ended where that code is.

In: a coroutine function. Out: its result. It runs in an event loop of its own, in this thread or, beside a loop that
runs already (a notebook), in another. Ctrl-C there, or a cancelled `await` elsewhere, ends it: nothing goes on asking,
and paying, behind the caller's back.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

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
