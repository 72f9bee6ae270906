"""A chat host on loopback in a thread of its own: answers by rule, faults on order, and counts of what it was asked.

For load, faults and log-probabilities of one's choice; files, jobs and batches are `fake_openai.FakeOpenAI`'s.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from dspy_finetune.hosts import Host

Fault = tuple[int, dict[str, str], dict[str, Any]]
"""Status, headers and body of an answer that is none; status 0 cuts the line."""


class Loopback:
    """`fault(body, n)` may give a fault for the n-th request (from 1) for these messages; None lets it be answered."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.fault: Callable[[dict[str, Any], int], Fault | None] = lambda body, n: None
        self.headers: Callable[[int], dict[str, str]] = lambda n: {}
        self.reply: Callable[[str], str] = lambda question: str(len(question) % 2 == 0).lower()
        self.delay_seconds: Callable[[str], float] = lambda question: 0.0
        self.sends_logprobs = True
        self.n_open = self.most_open = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                with contextlib.suppress(ConnectionError):
                    outer.serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    @property
    def host(self) -> Host:
        return Host.compatible(self.url, "sk-test-key-1234567890", name="loopback")

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def serve(self, request: Any) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        question = question if isinstance(question, str) else json.dumps(question)
        with self.lock:
            self.asked[question] += 1
            self.bodies.append(body)
            self.keys.add(request.headers["Authorization"])
            n_asked, n_total = self.asked[question], len(self.bodies)
            self.n_open += 1
            self.most_open = max(self.most_open, self.n_open)
            fault = self.fault(body, n_asked)
        try:
            if delay := self.delay_seconds(question):
                time.sleep(delay)
            if fault is None:
                status, headers, answer = 200, self.headers(n_total), self.completions(body, question)
            else:
                status, headers, answer = fault
            if status == 0:
                request.close_connection = True
                return
            is_stream = status == 200 and bool(body.get("stream"))
            payload = as_stream(answer) if is_stream else json.dumps(answer).encode()
            request.send_response(status)
            request.send_header("Content-Type", "text/event-stream" if is_stream else "application/json")
            for name, value in {"Content-Length": str(len(payload)), **headers}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(payload)
            if fault is None:
                with self.lock:
                    self.answered[question] += 1
        finally:
            with self.lock:
                self.n_open -= 1

    def completions(self, body: dict[str, Any], question: str) -> dict[str, Any]:
        """One completion with `n` choices, whose prompt counts once; a single one as it was made, odd as it may be."""
        made = [self.completion(body, question) for _ in range(body.get("n") or 1)]
        whole = made[0]
        if len(made) == 1:
            return whole
        whole["choices"] = [{**one["choices"][0], "index": index} for index, one in enumerate(made)]
        n_out = sum(one["usage"]["completion_tokens"] for one in made)
        n_in = whole["usage"]["prompt_tokens"]
        whole["usage"] = {"prompt_tokens": n_in, "completion_tokens": n_out, "total_tokens": n_in + n_out}
        return whole

    def completion(self, body: dict[str, Any], question: str) -> dict[str, Any]:
        text = self.reply(question)
        tops = [{"token": text, "logprob": -0.25, "bytes": None}, {"token": "?", "logprob": -2.0, "bytes": None}]
        logprobs = {"content": [{**tops[0], "top_logprobs": tops}]}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": text},
                    "logprobs": logprobs if body.get("logprobs") and self.sends_logprobs else None,
                }
            ],
            "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
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


def refusal(status: int, code: str | None = None, **headers: str) -> Fault:
    """An error as OpenAI writes it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    error = {"message": f"no ({status})", "type": "test", "param": None, "code": code}
    return status, named, {"error": error}
