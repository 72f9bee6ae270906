"""The engines of a host's predictors: DSPy's own wire code, without what it does beside it at every call.

In: a host. Out: a pair of engines for `dspy.LM(engine=..., async_engine=...)`, which send a Request and read a
Response as DSPy's native engine does; the tests compare the bytes. Log-probabilities alone are kept in another way
(logprobs.py). DSPy keeps doing what it does around an engine: cache, retries, history, usage, callbacks.

Why: for a model that its price list does not hold (every tuned one) DSPy reads the whole list twice after each answer,
only to say that the price is unknown, and it chooses the provider anew at each call. That is two thirds of the
processor time of a call (benchmarks/one_call.py). An engine of one's own is asked for neither.
Not covered: settings that only DSPy's LiteLLM route carries, and answers whose price DSPy knows: those keep its route.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dspy.lm15 import AsyncLMRouter, LMRouter, Request, Response, RouterConfig, Timeouts

from dspy_finetune.hosts.logprobs import packed

if TYPE_CHECKING:
    from dspy_finetune.hosts.host import Host

_ROUTE = "openai-chat"
_MAX_CONNECTIONS = 1000  # as many as openai's own client: bulk scoring has more than DSPy's 100 under way
_PRICED_KINDS = ("openai", "azure")
_OWN_SETTINGS = frozenset({"cache", "num_retries", "callbacks", "rollout_id", "timeout"})


class _Engine:
    def __init__(self, host: Host, *, timeout: float | None = None) -> None:
        self.host = host
        self.timeout = timeout
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()

    def _config(self) -> RouterConfig:
        base_url, key = self.host.connection()
        # The timeouts as DSPy's own engine reads a number; connecting keeps its short default.
        timeouts = None if self.timeout is None else Timeouts(read=self.timeout, write=self.timeout, pool=self.timeout)
        return RouterConfig(
            env={},
            api_keys={_ROUTE: key},
            base_urls={_ROUTE: base_url} if base_url else None,
            timeouts=timeouts,
            max_connections=_MAX_CONNECTIONS,
        )

    def dump_state(self) -> dict[str, Any]:
        """Host and timeout as JSON values; never a key."""
        return {"host": self.host.to_dict(), "timeout": self.timeout}

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> Any:
        """The inverse of `dump_state`."""
        # host.py imports this module's neighbours only when they are needed, and so does this one.
        from dspy_finetune.hosts.host import Host

        return cls(Host.from_dict(state["host"]), timeout=state["timeout"])

    def __getstate__(self) -> dict[str, Any]:
        return {"host": self.host, "timeout": self.timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self  # a connection, not a part of a program


class HostEngine(_Engine):
    """A host's models for synchronous calls; its connections are shared by threads."""

    def _reset(self) -> None:
        super()._reset()
        self._wire: Any = None

    def _connected(self) -> Any:
        wire = self._wire
        if wire is None or not self.host.is_connected():
            with self._lock:
                if self._wire is None or not self.host.is_connected():
                    self._wire = _wire(LMRouter, self._config())
                wire = self._wire
        return wire

    def complete(self, request: Request) -> Response:
        """One attempt; errors are DSPy's own."""
        return packed(self._connected().complete(_bare(request)))

    def stream(self, request: Request) -> Iterator[Any]:
        """The same answer, event by event."""
        return self._connected().stream(_bare(request))  # type: ignore[no-any-return]  # DSPy carries no types

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()


class AsyncHostEngine(_Engine):
    """A host's models for asynchronous calls; each event loop has connections of its own."""

    def _reset(self) -> None:
        super()._reset()
        self._wires: dict[asyncio.AbstractEventLoop, tuple[RouterConfig, Any]] = {}

    async def _connected(self) -> Any:
        loop = asyncio.get_running_loop()
        found = self._wires.get(loop)
        if found is None or not self.host.is_connected():
            # In a thread: it may start the embedded server.
            config = await asyncio.to_thread(self._config)
            found = self._wires.get(loop)
            if found is None or found[0] != config:
                for ended in [one for one in self._wires if one.is_closed()]:
                    self._wires.pop(ended, None)  # its sockets are closed when they are collected
                found = self._wires[loop] = (config, _wire(AsyncLMRouter, config))
        return found[1]

    async def complete(self, request: Request) -> Response:
        """One attempt; errors are DSPy's own."""
        return packed(await (await self._connected()).complete(_bare(request)))

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """The same answer, event by event."""
        async for event in (await self._connected()).stream(_bare(request)):
            yield event

    async def aclose(self) -> None:
        """Close the running loop's connections."""
        found = self._wires.pop(asyncio.get_running_loop(), None)
        if found is not None:
            await found[1].aclose()


def engines_for(host: Host, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options for `host.lm` that make it ask through these engines; as given where DSPy's own route is wanted.

    DSPy's own route is kept for settings that an engine does not carry, and for a host's untuned models whose price
    DSPy knows.
    """
    timeout = options.get("timeout")
    is_plain = options.keys() <= _OWN_SETTINGS and (timeout is None or isinstance(timeout, (int, float)))
    is_priced = host.kind.name in _PRICED_KINDS and not model.removeprefix("openai/").startswith("ft:")
    if not is_plain or is_priced:
        return dict(options)
    kept = {name: value for name, value in options.items() if name != "timeout"}
    pair = {
        "engine": HostEngine(host, timeout=timeout),
        "async_engine": AsyncHostEngine(host, timeout=timeout),
    }
    return {**kept, **pair}


def _wire(router: type[LMRouter] | type[AsyncLMRouter], config: RouterConfig) -> Any:
    wire = router(config).lm(f"{_ROUTE}:any")
    if urlsplit((config.base_urls or {}).get(_ROUTE, "")).hostname in ("127.0.0.1", "localhost", "::1"):
        # Loopback is never behind a proxy, whatever HTTP_PROXY says; to look for one costs a sixth of a call.
        wire.transport = type(wire.transport)(trust_env=False, **config.transport_kwargs())
    return wire


def _bare(request: Request) -> Request:
    # DSPy writes openai/<id>; the host knows the id.
    return dataclasses.replace(request, model=request.model.removeprefix("openai/"))
