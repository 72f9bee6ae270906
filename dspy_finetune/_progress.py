"""A line on stderr that tells how far something long is: what is shown where nobody gave an `on_progress`.

In: a text, and how many of how many. Out: on a terminal one line that is drawn again, elsewhere a line now and then;
and nothing at all for what is short: up to 50 of something that take no more than 2 seconds. `DSPY_FINETUNE_QUIET=1`
silences it. Not covered: bars and curves, which the command line draws.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

MANY = 50
"""More than so many items are told of from the first on."""

SHORT_SECONDS = 2.0
"""Less than this is not told of."""

EVERY_SECONDS = 15.0
"""Between two lines where nothing can be drawn again."""

REDRAW_SECONDS = 0.2
"""Between two drawings on a terminal."""


class ProgressLine:
    """Shows the last text it was given, not too often; as a context manager it ends its line.

    Args:
        stream: Where; stderr as it is when something is shown.
        clock: For tests.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._began = clock()
        self._shown_at: float | None = None
        self._width = 0
        self.is_quiet = os.environ.get("DSPY_FINETUNE_QUIET", "") not in ("", "0")
        """Whether nothing will be shown, so that nothing need be found out for it."""

    def show(self, text: str, n_done: int | None = None, n_total: int | None = None) -> None:
        """Tell how far it is; the last of all items is always shown if any was."""
        now = self._clock()
        is_long = now - self._began > SHORT_SECONDS or (n_total or 0) > MANY
        if self.is_quiet or not is_long:
            return
        stream = self._stream or sys.stderr
        is_terminal = stream.isatty()
        is_last = n_done is not None and n_done == n_total
        since = None if self._shown_at is None else now - self._shown_at
        if since is not None and not is_last and since < (REDRAW_SECONDS if is_terminal else EVERY_SECONDS):
            return
        self._shown_at = now
        line = text if n_done is None else f"{text} {n_done:,}" + (f"/{n_total:,}" if n_total else "")
        if is_terminal:
            stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            stream.write(line + "\n")
        stream.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            stream = self._stream or sys.stderr
            stream.write("\n")
            stream.flush()
            self._width = 0
