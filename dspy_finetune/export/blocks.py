"""Many plain rows at once: the short way of nearly every export.

In: the questions and answers of consecutive examples under one system prompt; for preferences the rejected answers
too. Out: their lines as one piece of bytes, and their tokens. The bytes, counts and checks are the same as row by row;
a test holds them to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from typing import Any

from dspy_finetune.export.formats import Row
from dspy_finetune.export.rows import encode_text
from dspy_finetune.export.tokens import TokenCounter

_BLOCK_ROWS = 1024
_ESCAPED = bytes(range(32)) + b'"\\'
"""What JSON does not take as it is; all of UTF-8's other bytes stand for themselves."""


def chunks(examples: Iterable[Any]) -> Iterator[list[Any]]:
    """The examples in pieces of a block's size."""
    source = iter(examples)
    while chunk := list(islice(source, _BLOCK_ROWS)):
        yield chunk


@dataclass(kw_only=True)
class Block:
    """Rows that differ in their question and answers alone."""

    system: str | None
    """The system prompt of all; None for no system message."""
    first: int
    """Number of the first example; the others follow it."""
    questions: list[str] = field(default_factory=list)
    """The user messages."""
    answers: list[str] = field(default_factory=list)
    """The assistant messages; of preferences the chosen ones."""
    rejected: list[str] | None = None
    """The rejected answers of preferences; None for SFT rows."""

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def columns(self) -> list[list[str]]:
        """The texts in which the rows differ."""
        return (
            [self.questions, self.answers] if self.rejected is None else [self.questions, self.answers, self.rejected]
        )

    def rows(self) -> list[Row]:
        """The rows one by one."""
        return [self._row(*texts) for texts in zip(*self.columns, strict=True)]

    def row(self, i: int) -> Row:
        """One row."""
        return self._row(*(column[i] for column in self.columns))

    def _row(self, question: str, answer: str, rejected: str | None = None) -> Row:
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages = [*head, {"role": "user", "content": question}]
        last = {"role": "assistant", "content": answer}
        if rejected is None:
            return {"messages": [*messages, last]}
        return {
            "input": {"messages": messages},
            "preferred_output": [last],
            "non_preferred_output": [{"role": "assistant", "content": rejected}],
        }

    def encode(self) -> bytes:
        """The lines, each with its end. Raises UnicodeEncodeError where a text holds half a surrogate pair."""
        head = "" if self.system is None else f'{{"role":"system","content":{encode_text(self.system)}}},'
        asked = f'{{"messages":[{head}{{"role":"user","content":'
        answered = '{"role":"assistant","content":'
        if self.rejected is None:
            between = [asked, f"}},{answered}", "}]}\n"]
        else:
            chosen, rejected = (f',"{name}":[{answered}' for name in ("preferred_output", "non_preferred_output"))
            between = [f'{{"input":{asked}', f"}}]}}{chosen}", f"}}]{rejected}", "}]}\n"]
        parts: list[Iterable[str]] = []
        before = between[0]
        for column, after in zip(self.columns, between[1:], strict=True):
            quote = '"' if _stand_for_themselves(column) else ""
            parts += [repeat(before + quote), column if quote else map(encode_text, column)]
            before = quote + after
        parts.append(repeat(before))
        return "".join(chain.from_iterable(zip(*parts, strict=False))).encode("utf-8")  # repeat has no end

    def count(self, counter: TokenCounter) -> list[int]:
        """The tokens of each row, which the counter adds to its sums."""
        blank = self._row(*("" for _ in self.columns))
        return counter.add_columns(counter.row(blank), self.columns)


def _stand_for_themselves(texts: Sequence[str]) -> bool:
    """Whether no text has a character that JSON escapes; all of them joined say so ten times as fast as each does."""
    joined = "".join(texts).encode("utf-8")
    return len(joined.translate(None, _ESCAPED)) == len(joined)
