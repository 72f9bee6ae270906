"""A chat server on loopback whose answers a test chooses, and which keeps the bodies it was sent."""

from __future__ import annotations

import http.server
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from dspy_finetune.hosts import Host
from tests.fake_openai import FakeOpenAI

Token = tuple[str, dict[str, float]]
"""A token of the answer, and the probabilities of the tokens listed at its place."""


@dataclass
class ChatServer:
    """What the server was asked, and what it answers."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], list[Token]] = lambda body: [("true", {"true": 0.9, "false": 0.1})]
    sends_logprobs: bool = True

    @property
    def host(self) -> Host:
        return Host.compatible(self.url, "test-key", name="loopback")

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
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
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "".join(token for token, _ in tokens)},
                    "logprobs": {"content": listed} if self.sends_logprobs and body.get("logprobs") else None,
                }
            ],
            "usage": {"prompt_tokens": 11, "completion_tokens": len(tokens), "total_tokens": 11 + len(tokens)},
        }


def as_stream(completion: dict[str, Any]) -> bytes:
    """The same answer as server-sent events: a chunk for each token, the end, the usage."""
    choice = completion["choices"][0]
    shared = {**{name: completion[name] for name in ("id", "created", "model")}, "object": "chat.completion.chunk"}
    listed = (choice["logprobs"] or {}).get("content")
    parts = [[one] for one in listed] if listed else [None]
    chunks: list[dict[str, Any]] = []
    for part in parts:
        text = part[0]["token"] if part else choice["message"]["content"]
        delta = {"role": "assistant", "content": text}
        logprobs = {"content": part} if part else None
        chunks.append({"choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}]})
    chunks.append({"choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]})
    chunks.append({"choices": [], "usage": completion["usage"]})
    lines = [json.dumps({**shared, **chunk}) for chunk in chunks] + ["[DONE]"]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    server = ChatServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            payload = as_stream(server.reply(body)) if body.get("stream") else json.dumps(server.reply(body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream" if body.get("stream") else "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.daemon_threads = True
    server.url = f"http://127.0.0.1:{http_server.server_port}/v1"
    thread = threading.Thread(target=http_server.serve_forever, daemon=True)
    thread.start()
    yield server
    http_server.shutdown()
    http_server.server_close()
    thread.join()


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    yield server
    server.close()
