"""A chat host that costs as little as it can: a process of its own, one answer for every request, kept in bytes.

In: `with running() as url`; run as a program it prints its address and serves until its standard input ends. The answer is that of a label prompt: one token, with the 20 most likely at its place; `--plain`
leaves them out. It measures nothing, so that what is measured beside it is the client.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator

LABELS = ("true", "false")


def completion(*, has_logprobs: bool) -> bytes:
    """The one answer."""
    names = [*LABELS, *(f"word{number}" for number in range(18))]
    top = [{"token": name, "logprob": -0.1 - number, "bytes": list(name.encode())} for number, name in enumerate(names)]
    value = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "loopback",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": LABELS[0], "refusal": None, "annotations": []},
                "logprobs": {"content": [{**top[0], "top_logprobs": top}], "refusal": None} if has_logprobs else None,
            }
        ],
        "usage": {"prompt_tokens": 40, "completion_tokens": 1, "total_tokens": 41},
    }
    body = json.dumps(value, separators=(",", ":")).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One connection: counts requests as they end, and answers each."""

    answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            place = head.find(b"content-length:")
            size = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
            if len(self.buffer) < end + 4 + size:
                return
            self.buffer = self.buffer[end + 4 + size :]
            self.transport.write(self.answer)


async def serve(answer: bytes) -> None:
    """Print the address, and serve until standard input ends."""
    Connection.answer = answer
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    ended = asyncio.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)), daemon=True).start()
    await ended.wait()


@contextlib.contextmanager
def running(*, has_logprobs: bool = True) -> Iterator[str]:
    """The address of a server that ends with the block."""
    command = [sys.executable, __file__, *([] if has_logprobs else ["--plain"])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", action="store_true", help="no log-probabilities")
    asyncio.run(serve(completion(has_logprobs=not parser.parse_args().plain)))
