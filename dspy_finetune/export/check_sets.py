"""The checks between rows: duplicates, contradictions, rows on both sides of a split.

In: two 64-bit hashes and a line number per row. Out: issues. Memory is bounded: beyond `_IN_MEMORY` rows the hashes
(20 bytes a row) wait in a temporary file, and the rows that may stand twice are looked at some at a time.
Hashes are Python's own, keyed anew in each process; two different rows of two million meet by chance once in ten
million files.
"""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator
from typing import IO

from dspy_finetune.export.check_report import IssueLog

_IN_MEMORY = 150_000
"""Rows whose hashes are kept in memory: 3 MB, and as much again while they are read back. A file of no more is first
asked as a whole whether any prompt stands twice: a set of the hashes takes 10 MB.
"""
_AT_ONCE = 30_000
"""Repeated rows whose hashes are compared together: their dicts take up to 10 MB, those of two million 500 MB."""
_MARKS = 1 << 22
"""Most bytes of the marks that tell which prompts may stand twice."""

Seen = tuple[int, int, int]
"""A row: the hash of its prompt, that of its output, its line."""


def pair_hash(chosen: int, rejected: int) -> int:
    """One hash of two outputs, the same in both orders but for its last bit, which says which came first.

    So a duplicate and a reversed preference are told apart without a third hash.
    """
    if chosen < rejected:
        return hash((chosen, rejected)) | 1
    return hash((rejected, chosen)) & ~1


class SeenRows:
    """The hashes of the rows seen so far."""

    def __init__(self) -> None:
        self._columns = _columns()
        self._spilled: IO[bytes] | None = None
        self._pieces: list[int] = []  # rows of each piece of the temporary file

    def __len__(self) -> int:
        return sum(self._pieces) + len(self._columns[0])

    def add(self, line: int, prompt: int, outputs: tuple[int, ...]) -> None:
        """Remember a row: the hashes of its prompt, and of its output or of the preferred and the rejected one."""
        self.add_hashes(line, prompt, pair_hash(*outputs) if len(outputs) == 2 else outputs[0] if outputs else 0)

    def add_hashes(self, line: int, prompt: int, output: int) -> None:
        """Remember a row whose outputs are one hash already."""
        prompts, answers, lines = self._columns
        prompts.append(prompt)
        answers.append(output)
        lines.append(line & 0xFFFFFFFF)
        if len(prompts) >= _IN_MEMORY:
            self._spill()

    def add_many(self, line: int, prompts: Iterable[int], outputs: Iterable[int], n: int) -> None:
        """Remember n rows of consecutive lines whose outputs are one hash already."""
        for column, values in zip(self._columns, (prompts, outputs, range(line, line + n)), strict=True):
            column.extend(values)
        if len(self._columns[0]) >= _IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        # Without room for a temporary file the hashes stay where they are: the check goes on, in more memory.
        with contextlib.suppress(OSError):
            if self._spilled is None:
                self._spilled = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the rows
                weakref.finalize(self, self._spilled.close)
            self._spilled.seek(20 * sum(self._pieces))
            for column in self._columns:
                self._spilled.write(column.tobytes())
            self._spilled.flush()
            self._pieces.append(len(self._columns[0]))
            self._columns = _columns()

    def _parts(self) -> Iterator[tuple[array[int], array[int], array[int]]]:
        """The columns, piece by piece, in the order of the rows."""
        if self._spilled is not None:
            self._spilled.seek(0)
            for n in self._pieces:
                columns = _columns()
                for column in columns:
                    column.frombytes(self._spilled.read(n * column.itemsize))
                yield columns
        yield self._columns

    def _prompts(self) -> Iterator[int]:
        for prompts, _, _ in self._parts():
            yield from prompts

    def _rows(self, marks: _Marks, bucket: int, n_buckets: int) -> Iterator[Seen]:
        """Those rows of a bucket whose prompts stand twice, but for a few that do not."""
        return (
            (prompt, output, line)
            for part in self._parts()
            for prompt, output, line in zip(*part, strict=True)
            if prompt % n_buckets == bucket and marks.is_repeated(prompt)
        )

    def report(self, log: IssueLog, *, preferences: bool) -> None:
        """Report duplicates and contradictions."""
        prompts = self._columns[0]
        if not self._pieces and len(set(prompts)) == len(prompts):
            return
        marks, n_buckets = _repeated(self)
        for bucket in range(n_buckets):
            _report_rows(log, self._rows(marks, bucket, n_buckets), preferences=preferences)

    def report_overlap(self, log: IssueLog, validation: SeenRows) -> None:
        """Report the rows and prompts that are in the validation rows as well."""
        marks, n_buckets = _repeated(self, validation)
        for bucket in range(n_buckets):
            _report_overlap(log, self._rows(marks, bucket, n_buckets), validation._rows(marks, bucket, n_buckets))


def _repeated(*sets: SeenRows) -> tuple[_Marks, int]:
    """Marks that tell which prompts stand twice, and in how many parts to look at their rows one after the other.

    Marked twice over: of a million different prompts some 60,000 share a slot of the first marks, and a hundred of
    those one of the second, which other bits of the hash name.
    """
    first = _Marks(sum(map(len, sets)))
    n_shared = sum([first.add(rows._prompts()) for rows in sets])
    if not n_shared:
        return first, 0
    second = _Marks(4 * n_shared, shift=32)
    n_repeated = sum([second.add(filter(first.is_repeated, rows._prompts())) for rows in sets])
    # The first row of each repeated prompt was not counted.
    return second, 2 * n_repeated // _AT_ONCE + 1 if n_repeated else 0


class _Marks:
    """Two bits for each of some slots; a prompt's hash, from the bit `shift` on, names its slot.

    Different prompts may share a slot, and then look repeated: marks say which prompts need no closer look.
    """

    def __init__(self, n_rows: int, *, shift: int = 0) -> None:
        size = 1
        while size < min(4 * n_rows, _MARKS):
            size *= 2
        self._bits = bytearray(size)
        self._mask = size - 1
        self._shift = shift

    def add(self, prompts: Iterable[int]) -> int:
        """Mark prompts; how many of them found their slot marked."""
        bits, mask, shift, n_repeated = self._bits, self._mask, self._shift, 0
        for prompt in prompts:
            prompt >>= shift
            # Four slots to a byte, two bits each: seen, and seen again.
            at, seen = (prompt >> 2) & mask, 1 << ((prompt & 3) << 1)
            found = bits[at]
            if found & seen:
                n_repeated += 1
                bits[at] = found | seen << 1
            else:
                bits[at] = found | seen
        return n_repeated

    def is_repeated(self, prompt: int) -> bool:
        """Whether a prompt's slot was marked twice."""
        prompt >>= self._shift
        return bool(self._bits[(prompt >> 2) & self._mask] & 2 << ((prompt & 3) << 1))


def _columns() -> tuple[array[int], array[int], array[int]]:
    return array("q"), array("q"), array("I")


def _report_rows(log: IssueLog, rows: Iterable[Seen], *, preferences: bool) -> None:
    groups: dict[int, dict[int, int]] = {}
    for prompt, output, line in rows:
        group = groups.setdefault(prompt, {})
        if output in group:
            log.add(line, "", "duplicate-row", f"the row is the same as line {group[output]}")
            continue
        if preferences and output ^ 1 in group:
            found = f"the outputs that line {group[output ^ 1]} prefers and rejects are reversed here"
            log.add(line, "", "preference-reversed", found)
        elif group and not preferences:
            first = next(iter(group.values()))
            log.add(line, "", "conflicting-rows", f"line {first} has the same prompt and another output")
        group[output] = line


def _report_overlap(log: IssueLog, mine: Iterable[Seen], theirs: Iterable[Seen]) -> None:
    known: dict[int, dict[int, int]] = {}
    for prompt, output, line in theirs:
        known.setdefault(prompt, {}).setdefault(output, line)
    for prompt, output, line in mine:
        outputs = known.get(prompt)
        if outputs is None:
            continue
        same = outputs.get(output)
        if same is not None:
            found = f"the row is also line {same} of the validation file"
            log.add(line, "", "train-validation-overlap", found)
        else:
            first = next(iter(outputs.values()))
            found = f"line {first} of the validation file has the same prompt and another output"
            log.add(line, "", "train-validation-same-prompt", found)
