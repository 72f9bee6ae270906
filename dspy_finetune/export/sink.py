"""Lines to an open file: counted, digested, and written while the next ones are made.

In: lines, one by one or many at once. Out: the file's bytes, their number and their SHA-256.
Not covered: the file's name, which it gets when it is whole (`_files.atomic_writer`).
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Executor, Future
from typing import BinaryIO

_BATCH_BYTES = 1 << 20
"""So much is handed over at once: two batches in memory, and few waits for the interpreter's lock between threads."""


class Sink:
    """The open file. A large one is written, and goes to the disk, beside the making of its lines.

    Args:
        stream: The file, open for writing bytes.
        disk: Two threads: one writes, one waits for the disk.
    """

    def __init__(self, stream: BinaryIO, disk: Executor) -> None:
        self._stream = stream
        self._disk = disk
        self._writing: Future[int] | None = None
        self._syncing: Future[None] | None = None
        self._batch = bytearray()
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        """Of all lines so far."""
        self.n_lines = 0
        """Lines so far."""

    def add(self, data: bytes, n_lines: int = 1) -> None:
        """Take lines, each with its end. Raises OSError: what an earlier batch met."""
        self.n_lines += n_lines
        self.size_bytes += len(data)
        self._digest.update(data)
        self._batch += data
        if len(self._batch) >= _BATCH_BYTES:
            self._written()
            batch, self._batch = self._batch, bytearray()
            self._writing = self._disk.submit(self._stream.write, batch)
            if self._syncing is None or self._syncing.done():
                self._synced()
                self._syncing = self._disk.submit(os.fsync, self._stream.fileno())

    def _written(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _synced(self) -> None:
        if self._syncing is not None:
            self._syncing.result()

    def close(self) -> None:
        """Write what is left. Raises OSError: what the disk could not take."""
        self._written()
        self._stream.write(self._batch)
        self._synced()

    def sha256(self) -> str:
        """Of all bytes so far, as 64 hexadecimal digits."""
        return self._digest.hexdigest()
