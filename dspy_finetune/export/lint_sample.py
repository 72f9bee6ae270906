"""The texts that the lint looks at: the first rows of a file, up to a bound, and its system prompt.

In: rows one by one. Out: a `Sample`. Statistics of shortcuts are settled by some hundred rows; what is kept must not
grow with the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

MAX_ROWS = 20_000
MAX_CHARS = 4_000_000
"""Kept of all texts together; some 10 MB of memory at most."""
_MAX_ROW_CHARS = MAX_CHARS // 10
"""A longer row is passed over: it must not take the place of all that follow."""


class Sampled(NamedTuple):
    """One row."""

    line: int
    """Its line in the file."""
    question: str
    """Text of the last user message."""
    answers: tuple[str, ...]
    """The answer, or the preferred and the rejected one."""


class Sample:
    """The first rows of a file, and what all of them say of the system prompt."""

    def __init__(self) -> None:
        self.rows: list[Sampled] = []
        self.is_open = True
        """False once the bound is reached."""
        self.last_line = 0
        """The last line that is in the sample."""
        self.system: str | None = None
        """The system prompt of the first row."""
        self.is_constant = True
        """Whether every row has the first row's system prompt."""
        self.n_rows = 0
        """Rows seen, in the sample or not."""
        self._chars = 0

    def add(self, line: int, question: str, answers: tuple[str, ...]) -> None:
        """Keep a row."""
        n_chars = len(question) + sum(map(len, answers))
        if n_chars > _MAX_ROW_CHARS:
            return
        self._chars += n_chars
        if len(self.rows) >= MAX_ROWS or self._chars > MAX_CHARS:
            self.is_open = False
            return
        self.rows.append(Sampled(line, question, answers))
        self.last_line = line

    def add_system(self, system: str | None) -> None:
        """Note a row's system prompt."""
        if not self.n_rows:
            self.system = system
        elif self.is_constant and system != self.system:
            self.is_constant = False
        self.n_rows += 1

    def add_many(
        self, line: int, system: str | None, questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> None:
        """Keep rows of consecutive lines, and note their common system prompt; `answers` are columns, one or two."""
        if self.is_open:
            n_chars = self._chars + sum(sum(map(len, column)) for column in (questions, *answers))
            if len(self.rows) + len(questions) <= MAX_ROWS and n_chars <= MAX_CHARS:
                self.rows += map(Sampled, count(line), questions, zip(*answers, strict=True))
                self._chars, self.last_line = n_chars, line + len(questions) - 1
            else:
                rows = zip(count(line), questions, zip(*answers, strict=True), strict=False)  # count has no end
                for at, question, texts in rows:
                    if self.is_open:
                        self.add(at, question, texts)
        self.add_system(system)
        self.n_rows += len(questions) - 1

    @property
    def constant_system(self) -> str | None:
        """The system prompt that all rows share, if there is one."""
        return self.system if self.is_constant else None
