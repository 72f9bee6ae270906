"""What the server works out before it serves, and how it stops."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dspy_finetune.local import server as host
from dspy_finetune.local.server import Log, is_loopback
from tests.local.test_batches import lines, submit
from tests.local.test_batches import wait as wait_for_batch
from tests.local.test_jobs import CHAT_ROWS, upload, wait
from tests.local.toy_server import ToyServer, start_server


def test_only_loopback_needs_no_key() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "localhost", "::1")))
    assert not any(
        map(is_loopback, ("0.0.0.0", "::", "", "10.0.0.1", "192.168.1.5", "my.machine", "127.0.0.1.example"))
    )


def sent(
    server: ToyServer, path: str, body: bytes, *, kind: str = "application/json", n_bytes: int = 0
) -> socket.socket:
    """A connection over which a request went out, or the beginning of one of `n_bytes`."""
    address = urlsplit(server.url)
    connection = socket.create_connection((str(address.hostname), address.port or 0), timeout=60)
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: {kind}\r\n"
    connection.sendall(f"{head}Content-Length: {n_bytes or len(body)}\r\n\r\n".encode() + body)
    return connection


def answer(connection: socket.socket) -> str:
    """All that comes until the server closes."""
    return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def test_a_stop_answers_what_is_open_and_loses_no_job_and_no_batch(
    tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long answers, half an upload, an idle connection, a batch and a job: nothing of it holds up a stop."""
    monkeypatch.setenv("TOY_GRACE_SECONDS", "0.4")
    server = start_server(tmp_path / "root", toy_model, step_seconds=0.05)
    client = server.client()
    client.models.list()  # leaves a connection open
    batch_id = submit(client, lines(30))
    job_id = client.fine_tuning.jobs.create(model="toy", training_file=upload(client, CHAT_ROWS)).id
    asked = {"model": "toy", "messages": [{"role": "user", "content": "x"}], "max_tokens": 200, "n": 50}
    # No model ends in so short a time: the first answers come seconds after a start, which imports torch.
    with contextlib.ExitStack() as stack:
        chats = [json.dumps(one).encode() for one in (asked, asked, asked, {**asked, "stream": True})]
        connections = [stack.enter_context(sent(server, "/v1/chat/completions", chat)) for chat in chats]
        upload_kind = "multipart/form-data; boundary=b"
        connections.append(stack.enter_context(sent(server, "/v1/files", b"--b\r\n", kind=upload_kind, n_bytes=10_000)))
        connections.append(stack.enter_context(sent(server, "/v1/chat/completions", b"", n_bytes=10)))
        for _ in range(3):
            client.models.list()  # once these are answered, what was sent before has been read

        said = server.stopped()
        assert "stopping; waiting for 6 requests" in said
        assert "Traceback" not in said
        for connection in connections:
            assert "server_stopping" in answer(connection)

    again = start_server(tmp_path / "root", toy_model)
    try:
        assert wait(again.client(), job_id).status == "succeeded"
        done = wait_for_batch(again.client(), batch_id)
        assert (done.request_counts.completed, done.request_counts.failed) == (30, 0)
    finally:
        again.stop()


def test_a_log_that_nobody_reads_holds_up_nobody() -> None:
    """A pipe takes 64 KB; what is logged beyond that waits for a reader, and what logged it does not."""
    reading, writing = os.pipe()
    log = Log(writing, most=20)
    for number in range(100):
        log.emit(logging.LogRecord("x", logging.WARNING, "", 0, f"{number:03} {'.' * 10_000}", None, None))
    log.flush()
    whole = b""
    while whole.count(b"\n") < 20:
        whole += os.read(reading, 65536)
    assert [line[:3] for line in whole.splitlines()[:3]] == [b"000", b"001", b"002"]
    os.close(reading)
    log.flush()
    os.close(writing)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((1024, 500_000), (8192, 500_000)),
        ((256, resource.RLIM_INFINITY), (8192, resource.RLIM_INFINITY)),
        ((1024, 4096), (4096, 4096)),
        ((20_000, 20_000), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_a_server_asks_for_as_many_open_files_as_it_has_clients(
    limits: tuple[int, int], expected: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: asked.append(wanted))
    host._raise_open_files()
    assert asked == ([] if expected is None else [expected])
