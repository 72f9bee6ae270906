"""The server of the call benchmarks: the least that answers a chat completion, in a process of its own.

Started by the benchmarks: it prints its address, and serves until its standard input is closed.
It answers every request with one label and its log-probabilities (20 listed), as `logprobs` asks (with `--plain`: the
label alone), and spends as little as Python can: no framework, no parsing of the body, one fixed answer.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys

LISTED = {"true": 0.8, "false": 0.15} | {f" word{number}": 0.05 / 18 for number in range(18)}


def answer(*, has_logprobs: bool) -> bytes:
    """The whole HTTP response."""
    top = [
        {"token": token, "logprob": math.log(share), "bytes": list(token.encode())} for token, share in LISTED.items()
    ]
    logprobs = {"content": [{**top[0], "top_logprobs": top}], "refusal": None}
    body = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "ft:gpt-4.1-mini-2025-04-14:acme:taste:abc12345",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "true", "refusal": None},
                    "logprobs": logprobs if has_logprobs else None,
                }
            ],
            "usage": {"prompt_tokens": 31, "completion_tokens": 1, "total_tokens": 32},
        }
    ).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One kept-alive connection; counts Content-Length bytes and answers."""

    whole = answer(has_logprobs="--plain" not in sys.argv)
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            place = head.find(b"content-length:")
            length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
            if len(self.data) < end + 4 + length:
                return
            self.data = self.data[end + 4 + length :]
            self.transport.write(self.whole)


async def serve() -> None:
    """Serve until standard input is closed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
