"""Many plain rows at once: the short way of nearly every SFT export.

In: the questions and answers of consecutive examples under one system prompt. Out: their lines as one piece of
bytes, and their tokens. The bytes, counts and checks are the same as row by row; a test holds them to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dspy_finetune.export.rows import Row, encode_text
from dspy_finetune.export.tokens import TokenCounter

BLOCK_ROWS = 512


@dataclass(kw_only=True)
class Block:
    """Rows that differ in their question and answer alone."""

    system: str | None
    """The system prompt of all; None for no system message."""
    first: int
    """Number of the first example; the others follow it."""
    questions: list[str] = field(default_factory=list)
    """The user messages."""
    answers: list[str] = field(default_factory=list)
    """The assistant messages."""

    def rows(self) -> list[Row]:
        """The rows one by one."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [
            {"messages": [*head, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            for question, answer in zip(self.questions, self.answers, strict=True)
        ]

    def encode(self) -> bytes:
        """The lines, each with its end. Raises UnicodeEncodeError where a text holds half a surrogate pair."""
        before = '{"messages":['
        if self.system is not None:
            before += f'{{"role":"system","content":{encode_text(self.system)}}},'
        before += '{"role":"user","content":'
        # Labels repeat: each distinct answer of a block is encoded once.
        after = {a: f'}},{{"role":"assistant","content":{encode_text(a)}}}]}}\n' for a in set(self.answers)}
        pairs = zip(self.questions, self.answers, strict=True)
        return "".join([before + encode_text(question) + after[answer] for question, answer in pairs]).encode("utf-8")

    def count(self, counter: TokenCounter) -> list[int]:
        """The tokens of each row, which the counter adds to its sums."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages += [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
        return counter.add_pairs(counter.messages(messages), self.questions, self.answers)
