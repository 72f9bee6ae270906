"""Progress of something long: the `Progress` that callbacks are given, and the bar or lines that show it on stderr.

In: a label, and the parts done and in all. Out: on a terminal a bar of tqdm, elsewhere a line now and then. A caller's
own `on_progress` takes its place, and nothing is shown of what is short: up to 50 parts that take 2 seconds at most.
`DSPY_FINETUNE_QUIET=1` silences it. Not covered: a job's status and loss curve (cli/jobs.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, ClassVar, Protocol, TextIO, cast

MANY = 50
"""More than this many items are shown from the first on."""

SHORT_SECONDS = 2.0
"""What takes less is not shown."""

EVERY_SECONDS = 15.0
"""Between two lines where nothing can be drawn again."""

REDRAW_SECONDS = 0.1
"""Between two drawings on a terminal."""


def is_quiet() -> bool:
    """Whether the environment asks for no progress."""
    return os.environ.get("DSPY_FINETUNE_QUIET", "") not in ("", "0")


def can_draw(stream: Any) -> bool:
    """Whether a line of it can be written over: a terminal that knows control codes."""
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


class Progress(Protocol):
    """What every `on_progress` is called with; `str()` of it says the same in words."""

    @property
    def label(self) -> str:
        """What is being done."""

    @property
    def n_done(self) -> int | None:
        """How many of its parts are done; None where that is not known."""

    @property
    def n_total(self) -> int | None:
        """How many there are; None where that is not known."""


class ProgressBar:
    """Shows the last of what it was told, not too often; as a context manager it ends its line.

    Args:
        stream: Where; stderr as it is when something is shown.
        waits: Whether what is short stays unseen. A command shows each step at once.
        stays: Whether a bar stands on the terminal after its end; without it the next one takes its place.
    """

    drawn: ClassVar[list[Any]] = []
    """The bars of tqdm that stand on a terminal."""

    def __init__(self, stream: TextIO | None = None, *, waits: bool = True, stays: bool = True) -> None:
        self._stream = stream
        self._waits = waits
        self._stays = stays
        self._bar: Any = None
        self._label: str | None = None
        self._line: str | None = None
        self._created = self._began = time.monotonic()
        self._shown_at: float | None = None
        self._first: tuple[float, int] | None = None
        self._position_shown: tuple[int | None, int | None] | None = None
        self.is_quiet = is_quiet()
        """Whether nothing will be shown, so that nothing need be found out for it."""

    def show(self, label: str, n_done: int | None = None, n_total: int | None = None, note: str = "") -> None:
        """Say how far it is; another label begins another bar, and the last of all items is always shown if any was."""
        now = time.monotonic()
        if self.is_quiet or (self._waits and now - self._created <= SHORT_SECONDS and (n_total or 0) <= MANY):
            return
        stream = self._stream or sys.stderr
        is_new = label != self._label
        if is_new:
            self._end()
            self._label, self._began, self._first = label, now, None
        if n_done and self._first is None:
            self._first = (now, n_done)
        position = (n_done, n_total)
        is_last = n_done is not None and n_done == n_total and (is_new or position != self._position_shown)
        is_terminal = can_draw(stream)
        since = None if self._shown_at is None else now - self._shown_at
        is_due = since is None or since >= (REDRAW_SECONDS if is_terminal else EVERY_SECONDS)
        if not (is_due or is_last or (is_new and not self._waits)):
            return
        self._shown_at, self._position_shown = now, position
        if is_terminal:
            self._draw(stream, n_done, n_total, note, now)
        else:
            parts = [label, *([self._position(n_done, n_total, now)] if n_done is not None else [])]
            line = " ".join(parts) + (f", {note}" if note else "")
            if n_done is not None or line != self._line:
                stream.write(f"{line}\n")
                stream.flush()
            self._line = line

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        if self.is_quiet:
            return
        stream = self._stream or sys.stderr
        if self._bar is not None:
            self._bar.write(line, file=stream)
        else:
            stream.write(f"{line}\n")
            stream.flush()

    def tell(self, progress: Progress, note: str = "") -> None:
        """The same, of what a callback is given."""
        self.show(progress.label, progress.n_done, progress.n_total, note)

    def _draw(self, stream: TextIO, n_done: int | None, n_total: int | None, note: str, now: float) -> None:
        # Here: most programs are over before anything is shown.
        from tqdm import tqdm

        left = self._seconds_left(n_done, n_total, now)
        # A job is loaded before its steps are counted: the same bar shows both.
        # An invisible bar: older tqdm cuts a line to the terminal's width only where a bar stands in it.
        form = "{desc}{postfix} [{elapsed}]{bar:1b}"
        if n_done is not None:
            until = "?" if left is None else tqdm.format_interval(left)
            form = f"{{l_bar}}{{bar}}| {{n_fmt}}/{{total_fmt}} [{{elapsed}}<{until}{{postfix}}]"
            form = form if n_total else "{desc}: {n_fmt} [{elapsed}{postfix}]{bar:1b}"
        if self._bar is None:
            self._bar = tqdm(
                desc=self._label, initial=n_done or 0, total=n_total, file=stream, dynamic_ncols=True,
                bar_format=form, leave=self._stays,
            )  # fmt: skip
            ProgressBar.drawn.append(self._bar)
        self._bar.n, self._bar.total, self._bar.bar_format = n_done or 0, n_total, form
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.refresh()

    def _position(self, n_done: int, n_total: int | None, now: float) -> str:
        if not n_total:
            return f"{n_done:,}"
        left = self._seconds_left(n_done, n_total, now)
        return f"{n_done:,}/{n_total:,}" + (f", about {left:,.0f} s left" if left else "")

    def _seconds_left(self, n_done: int | None, n_total: int | None, now: float) -> float | None:
        """By the pace from the first sign of progress on: what came before (loading, queueing) does not come again."""
        if n_done is None or not n_total:
            return None
        since, at_first = self._first or (now, n_done)
        if n_done >= n_total:
            return 0.0
        return (now - since) / (n_done - at_first) * (n_total - n_done) if n_done > at_first else None

    def _end(self) -> None:
        if self._bar is not None:
            ProgressBar.drawn.remove(self._bar)
            self._bar.close()
            self._bar = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


class Heartbeat:
    """Says that a command is at work where it shows nothing for two seconds: on a terminal in a line that goes again.

    In a log it is a line after five seconds of silence at the start, and later one every thirty.

    Args:
        label: The command.
    """

    FIRST_IN_A_LOG_SECONDS = 5.0

    def __init__(self, label: str) -> None:
        self._label = label
        self._began = self._last = time.monotonic()
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._is_drawn = False
        self._streams: tuple[Any, Any] = (None, None)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        if not is_quiet():
            self._streams = sys.stdout, sys.stderr
            sys.stdout, sys.stderr = (cast("TextIO", _Heard(one, self)) for one in self._streams)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._streams[0] is not None:
            self._ended.set()
            self._thread.join()
            self.heard()
            sys.stdout, sys.stderr = self._streams

    def heard(self) -> None:
        """Something is about to be written."""
        with self._lock:
            if self._is_drawn:
                self._streams[1].write("\r\x1b[K")
                self._streams[1].flush()
            self._is_drawn = False
            self._last = time.monotonic()

    def _beat(self) -> None:
        stream = self._streams[1]
        is_terminal = can_draw(stream)
        pause = SHORT_SECONDS if is_terminal else self.FIRST_IN_A_LOG_SECONDS
        while not self._ended.wait(0.25):
            with self._lock:
                now = time.monotonic()
                if now - self._last < pause:
                    continue
                if ProgressBar.drawn:
                    # A bar stands there, and tqdm keeps its place: its clock goes on.
                    for bar in tuple(ProgressBar.drawn):
                        bar.refresh()
                    continue
                text = f"{self._label}: at work, {now - self._began:.0f} s"
                stream.write(f"\r{text}\x1b[K" if is_terminal else f"{text}\n")
                stream.flush()
                self._is_drawn = is_terminal
                if not is_terminal:
                    # Longer than between two lines of a bar, so that it does not speak between those.
                    self._last, pause = now, 2 * EVERY_SECONDS


@contextlib.contextmanager
def told_if_slow(text: str, tell: Callable[[str], object]) -> Iterator[None]:
    """Say by `tell`, in a thread of its own, what is being waited for where the block takes more than two seconds."""
    timer = threading.Timer(SHORT_SECONDS, tell, (text,))
    timer.daemon = True
    if not is_quiet():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Heard:
    """A stream that tells of each text before it is written."""

    def __init__(self, stream: Any, heartbeat: Heartbeat) -> None:
        self._stream = stream
        self._heartbeat = heartbeat

    def write(self, text: str) -> int:
        self._heartbeat.heard()
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
