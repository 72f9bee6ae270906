"""Every answer on the disk as soon as it is there, so that a killed run never asks for it again.

In: answered rows, in any order. Out: the same rows found again by their number, and all of them in the input's order.

One file: a line of JSON that says which run it is, then a line for each row in the order of answering: index, digest,
status, requests, input, cached and output tokens, the output row; separated by tabs, which JSON escapes. `flush` hands
lines to the system, where they outlive the process; a line torn by a crash is cut off. No row is answered more than
`WINDOW` rows ahead of the oldest one that is not, so a window of lines is all that is ever held.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dspy_finetune._appendlog import AppendLog
from dspy_finetune._files import file_error
from dspy_finetune.bulk.reader import InputRow, Outcome, Tokens
from dspy_finetune.errors import DataError, UsageError

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
