"""A small OpenAI whose answers depend on what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.fake_openai import FakeOpenAI


class AnsweringOpenAI(FakeOpenAI):
    """`answer(body)` makes the reply; without one, `reply` stands."""

    answer: Callable[[dict[str, Any]], str] | None = None
    fixed: str = "true"

    # The base class keeps the reply as an attribute; here it is made for the request that was noted last.
    @property
    def reply(self) -> str:
        return self.answer(self.requests[-1][1]) if self.answer is not None else self.fixed

    @reply.setter
    def reply(self, text: str) -> None:
        self.fixed = text
