"""transport.py: one pooled HTTP connection to a host, for many small requests.

In: a host and bodies. Out: replies: status, headers, bytes. The key travels in a header and stands nowhere else. The
`openai` client spends most of its time on types that bulk use does not need; here a reply is bytes until a predictor
reads it. aiohttp, whose parser is written in C, works beside any version of the `openai` package.
"""

from __future__ import annotations

import asyncio
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dspy_finetune.hosts import Host

if TYPE_CHECKING:
    import aiohttp

OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the host sent."""

    status: int
    """The HTTP status."""
    headers: Mapping[str, str]
    """Found whatever the case of their names."""
    content: bytes
    """The body."""


class NoReplyError(ConnectionError):
    """The host did not answer: no connection, a connection that broke, or no answer in time."""


class Transport:
    """An asynchronous context that posts to one host; `max_connections` at the same time."""

    def __init__(self, host: Host, *, max_connections: int, timeout_seconds: float) -> None:
        self._host = host
        self._max_connections = max_connections
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None
        self._url = ""
        self._headers: dict[str, str] = {}
        self._proxy: str | None = None

    async def __aenter__(self) -> Transport:
        import aiohttp  # costs a fifth of a second, which `import dspy_finetune` must not pay

        await self._connect()
        self._failures: tuple[type[Exception], ...] = (aiohttp.ClientError, OSError, asyncio.TimeoutError)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_connections, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=self._timeout_seconds, connect=min(30.0, self._timeout_seconds)),
            headers={"Content-Type": "application/json", "User-Agent": "dspy-finetune"},
            auto_decompress=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, path: str, body: bytes) -> Reply:
        """Send a body.

        Raises:
            NoReplyError: There was no answer.
        """
        assert self._session is not None
        try:
            # A redirect would carry the key to a place that nobody named.
            async with self._session.post(
                self._url + path, data=body, headers=self._headers, allow_redirects=False, proxy=self._proxy
            ) as response:
                content = await response.read()
                return Reply(status=response.status, headers=response.headers, content=content)
        except self._failures as error:
            if not self._host.is_connected():
                await self._connect()  # the embedded server has died: another one is started, on another port
            raise NoReplyError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error

    async def _connect(self) -> None:
        # In a thread: an embedded server may take a while to start.
        base_url, key = await asyncio.to_thread(self._host.connection)
        self._url = (base_url or OPENAI_URL).rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}
        # aiohttp would look the environment's proxies up for each request, in a thread. Loopback is behind none.
        self._proxy = None if self._host.kind.name == "local" else _proxy_of(self._url)


def _proxy_of(url: str) -> str | None:
    """The proxy that HTTPS_PROXY, ALL_PROXY and NO_PROXY name for an address, as other programs read them."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


class HttpFailure(Exception):
    """An HTTP error in the form that `Host.error` reads."""

    def __init__(self, reply: Reply, body: Any) -> None:
        super().__init__(f"HTTP {reply.status}")
        self.status_code = reply.status
        self.body = body
        self.request_id = reply.headers.get("x-request-id")
