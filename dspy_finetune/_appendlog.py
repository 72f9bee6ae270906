"""A lock between processes: one holder per file, released by the operating system when its process dies.

In: a path. Out: a context that is entered by one process (and one thread) at a time. The file stays; it holds nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from dspy_finetune._files import file_error

_GUARD = threading.Lock()
_THREADS: dict[str, threading.RLock] = {}


def _lock_file(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextlib.contextmanager
def process_lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of this path; waits for whoever holds it.

    Raises:
        FileError: The lock file cannot be made.
    """
    target = Path(path).absolute()
    with _GUARD:
        thread_lock = _THREADS.setdefault(str(target), threading.RLock())
    with thread_lock:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(target, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError as error:
            raise file_error(error, target, "lock") from error
        try:
            _lock_file(descriptor)
            yield
        finally:
            # Closing releases the lock on every platform, and so does the death of the process.
            os.close(descriptor)
