"""Thousands of mixed requests at the local host, with faults among them: no 5xx, no dead thread, memory stays flat.

    python -m tests.soak.mixed --requests 10000

Faults: clients that leave in the middle, bodies that are none, files deleted under their jobs, workers killed, lines of
batches that cannot be answered. Prints what was answered, and the server's memory as it went. Exit code 0: all well.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.local.test_batches import lines
from tests.local.test_guards import send
from tests.local.test_jobs import CHAT_ROWS
from tests.local.toy import build_toy_model
from tests.local.toy_server import ToyServer, start_server

ROWS = b"".join(json.dumps(row).encode() + b"\n" for row in CHAT_ROWS)
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}
MAX_GROWTH = 0.15
"""Of memory between the first fifth of the requests and the last."""


class Soak:
    """The requests, and what was answered."""

    def __init__(self, server: ToyServer, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.statuses: collections.Counter[str] = collections.Counter()
        self.faults: list[Any] = []
        self.jobs: list[str] = []
        self.lock = threading.Lock()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Send, count, and give the JSON."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        status, answer, _ = send(self.server, method, path, body, named)
        with self.lock:
            self.statuses[f"{method} {path.split('/')[2]} {status}"] += 1
            if status >= 500:
                self.faults.append((method, path, status, answer))
        return answer

    def upload(self, content: bytes, purpose: str) -> str:
        """A file's id."""
        mark = "----soak"
        head = f'--{mark}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n--{mark}\r\n'
        head += 'Content-Disposition: form-data; name="file"; filename="x.jsonl"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
        kind = f"multipart/form-data; boundary={mark}"
        return str(self.ask("POST", "/v1/files", body, Content_Type=kind)["id"])

    def chat(self, **changes: Any) -> None:
        """A chat with a text of its own."""
        text = f"Title: {self.random.random()}"
        body = {"model": "toy", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **changes}
        self.ask("POST", "/v1/chat/completions", body)

    def form(self) -> None:
        """A chat that keeps to a schema."""
        kept = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        self.chat(response_format=kept, max_tokens=40)

    def respond(self) -> None:
        """A response."""
        self.ask("POST", "/v1/responses", {"model": "toy", "input": "x", "max_output_tokens": 4})

    def leave(self) -> None:
        """A client that goes before its answer, streamed or not."""
        address = urlsplit(self.server.url)
        asked = {"model": "toy", "messages": [{"role": "user", "content": "x"}], "max_tokens": 100}
        body = json.dumps({**asked, "stream": self.random.random() < 0.5}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((str(address.hostname), address.port or 0), timeout=60) as connection:
            connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(self.random.random() * 0.05)

    def mistake(self) -> None:
        """Something that is no request."""
        bodies: list[Any] = [b"[" * 10_000, b"\xff", {"model": 5}, [], {"model": "toy", "messages": "x"}, b'{"a":NaN}']
        places = ["/v1/chat/completions", "/v1/responses", "/v1/fine_tuning/jobs", "/v1/batches", "/v1/uploads"]
        self.ask("POST", self.random.choice(places), self.random.choice(bodies))

    def file(self) -> None:
        """A file that comes and goes."""
        file_id = self.upload(ROWS, "fine-tune")
        self.ask("GET", f"/v1/files/{file_id}")
        self.ask("DELETE", f"/v1/files/{file_id}")

    def job(self) -> None:
        """A job; some lose their file, some their worker, some are cancelled or paused."""
        file_id = self.upload(ROWS, "fine-tune")
        job = self.ask("POST", "/v1/fine_tuning/jobs", {"model": "toy", "training_file": file_id})
        with self.lock:
            self.jobs.append(job["id"])
        fault = self.random.choice(["none", "file", "worker", "cancel", "pause"])
        if fault == "file":
            self.ask("DELETE", f"/v1/files/{file_id}")
        elif fault in ("cancel", "pause"):
            self.ask("POST", f"/v1/fine_tuning/jobs/{job['id']}/{fault}")
        elif fault == "worker":
            path = Path(self.server.facts["root"]) / "jobs" / self.random.choice(self.jobs) / "worker.json"
            with contextlib.suppress(OSError, ValueError):
                pid = json.loads(path.read_bytes())["pid"]
                if b"toy_worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    def batch(self) -> None:
        """A batch in which one line cannot be answered."""
        content = lines(2) + lines(1, response_format="json").replace(b"row-0", b"odd")
        body = {"input_file_id": self.upload(content, "batch"), "endpoint": "/v1/chat/completions"}
        self.ask("POST", "/v1/batches", {**body, "completion_window": "24h"})

    def look(self) -> None:
        """Lists."""
        self.ask("GET", self.random.choice(["/v1/files", "/v1/fine_tuning/jobs", "/v1/batches", "/v1/models"]))

    def one(self) -> None:
        """Any of these."""
        kinds: list[tuple[Callable[[], None], int]] = [
            (self.chat, 40), (self.form, 6), (self.respond, 6), (self.leave, 5), (self.mistake, 15), (self.file, 6),
            (self.look, 18), (self.job, 1), (self.batch, 1),
        ]  # fmt: skip
        [kind] = self.random.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
        kind()


def main() -> int:
    """Ask, and watch."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--requests", type=int, default=10_000)
    asked.add_argument("--minutes", type=float, default=120, help="end after the round that is going on then")
    asked.add_argument("--threads", type=int, default=8)
    asked.add_argument("--seed", type=int, default=1)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(Path(folder) / "root", build_toy_model(Path(folder) / "toy"))
        process = psutil.Process(server.process.pid)
        memory: list[float] = []
        try:
            soak = Soak(server, given.seed)
            soak.chat()
            started = time.monotonic()
            n_rounds = 20
            with concurrent.futures.ThreadPoolExecutor(given.threads) as pool:
                for number in range(n_rounds):
                    if time.monotonic() - started > given.minutes * 60:
                        break
                    for done in [pool.submit(soak.one) for _ in range(given.requests // n_rounds)]:
                        done.result()
                    memory.append(round(process.memory_info().rss / 2**20, 1))
                    told = {"round": number + 1, "memory_mb": memory[-1], "n_answers": soak.statuses.total()}
                    print(json.dumps(told), file=sys.stderr, flush=True)
            health = send(server, "GET", "/healthz")[1]
        finally:
            server.stop()
    early, late = sum(memory[2:5]) / 3, sum(memory[-3:]) / 3
    found = {
        "seconds": round(time.monotonic() - started),
        "answers": dict(sorted(soak.statuses.items())),
        "memory_mb": memory,
        "growth": round(late / early - 1, 3),
        "faults": soak.faults[:5],
        "health": {"status": health["status"], "threads": health["threads"], "damaged": health["damaged"]},
    }
    print(json.dumps(found, indent=2))
    is_well = not soak.faults and health["status"] == "ok" and not health["damaged"]
    return 0 if is_well and late <= early * (1 + MAX_GROWTH) else 1


if __name__ == "__main__":
    sys.exit(main())
