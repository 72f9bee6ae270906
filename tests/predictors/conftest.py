"""A chat server on loopback whose answers a test chooses, token by token, and which keeps the bodies it was sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fake_openai import FakeOpenAI
from tests.loopback import Loopback

Token = tuple[str, dict[str, float]]
"""A token of the answer, and the probabilities of the tokens listed at its place."""


class ChatServer(Loopback):
    """Answers with the tokens that `answer` gives for a body."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Callable[[dict[str, Any]], list[Token]] = lambda body: [("true", {"true": 0.9, "false": 0.1})]

    def completion(self, body: dict[str, Any], question: str) -> dict[str, Any]:
        tokens = self.answer(body)
        listed = [
            {
                "token": token,
                "logprob": math.log(shares.get(token, 1e-9)),
                "bytes": None,
                "top_logprobs": [
                    {"token": name, "logprob": math.log(share), "bytes": None} for name, share in shares.items()
                ],
            }
            for token, shares in tokens
        ]
        made = super().completion(body, question)
        choice = made["choices"][0]
        choice["message"]["content"] = "".join(token for token, _ in tokens)
        choice["logprobs"] = {"content": listed} if self.sends_logprobs and body.get("logprobs") else None
        made["usage"] = {"prompt_tokens": 11, "completion_tokens": len(tokens), "total_tokens": 11 + len(tokens)}
        return made


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    yield server
    server.close()
