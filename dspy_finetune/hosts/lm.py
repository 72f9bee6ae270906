"""The dspy.LM of a host: DSPy's native route, the host's key at the last moment, and a cache of its own.

In: a host and a model id. Out: a `dspy.LM` that predictors and programs use. Four things a plain dspy.LM does not do:

- DSPy's cache key holds the model's name but not the address, so two hosts with a model of one name would share
  answers. Hosts other than OpenAI's own mix their identity into `rollout_id`, the field of the key that is not sent.
- With OPENAI_BASE_URL or OPENAI_API_BASE set, DSPy's "auto" leaves the native engine; here it is asked for by name.
- A pickled dspy.LM holds its key; this one drops key and address and asks its host again.
- DSPy's table of what models can do has no row for a tuned id, so its JSONAdapter would send a tuned model no schema
  where it sends its base one: collecting data and serving would differ. A tuned model can do what its base can.

Kept apart from host.py because it imports dspy, which costs most of a second.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import dspy
from dspy.lm15 import AsyncLMRouter, LMRouter, Request, Response, RouterConfig, Timeouts

from dspy_finetune.catalog import parse_model_id

if TYPE_CHECKING:
    from dspy_finetune.hosts.host import Host


# ----------------------------------------------------------------------------------------------------
# The log-probabilities of an answer's tokens, kept in one text.
#
# In: the responses of DSPy's wire code. Out: the same responses with their log-probabilities as one text among the
# provider's data, and the positions read back from any response.
#
# Why: DSPy's history holds 10,000 answers, each with some sixty objects for twenty listed tokens: in the response, and
# once more in what it shows. The garbage collector goes through all of them while every caller waits. A text is one
# object, which it does not look at.

Position = tuple[str, Mapping[str, float]]
"""The token that the model chose, and the log-probability of each listed token (the chosen one among them)."""

_KEY = "logprobs"


def packed(response: Response) -> Response:
    """The response with its log-probabilities as a text of its `provider_data`."""
    if not response.logprobs:
        return response
    data = dict(response.provider_data or {})
    for choice in data.get("choices", ()):
        choice.pop("logprobs", None)  # the same once more, as the host wrote it
    data[_KEY] = json.dumps(_positions(response.logprobs), separators=(",", ":"))
    return dataclasses.replace(response, logprobs=None, provider_data=data)


def positions_of(response: Any) -> list[Position] | None:
    """The positions of a response, packed or as DSPy gives it; None where the host sent no log-probabilities."""
    if response.logprobs:
        return _positions(response.logprobs)
    text = (response.provider_data or {}).get(_KEY)
    return None if text is None else [(token, listed) for token, listed in json.loads(text)]


def positions_on_wire(content: Sequence[Mapping[str, Any]]) -> list[Position]:
    """The positions of a choice's `logprobs.content`, as OpenAI's chat completions have it."""
    return [
        _position(
            one["token"],
            one["logprob"],
            one.get("bytes"),
            [(top["token"], top["logprob"], top.get("bytes")) for top in one.get("top_logprobs") or ()],
        )
        for one in content
    ]


def spelling(token: str, codes: Sequence[int] | None) -> str:
    r"""A token's text; of a part of a character, which hosts write as "bytes:..." or U+FFFD, its bytes, escaped.

    >>> spelling(" true", None), spelling("bytes:f09f", [0xF0, 0x9F]).encode("utf-8", "surrogateescape")
    (' true', b'\xf0\x9f')
    """
    if codes and (token.startswith("bytes:") or "\ufffd" in token):
        return bytes(codes).decode("utf-8", "surrogateescape")
    return token


def _positions(tokens: Sequence[Any]) -> list[Position]:
    return [
        _position(one.token, one.logprob, one.bytes, [(top.token, top.logprob, top.bytes) for top in one.top])
        for one in tokens
    ]


def _position(
    token: str, logprob: float, codes: Sequence[int] | None, top: Sequence[tuple[str, float, Sequence[int] | None]]
) -> Position:
    chosen = spelling(token, codes)
    return chosen, {spelling(text, part): share for text, share, part in top} | {chosen: logprob}


# ----------------------------------------------------------------------------------------------------
# The engines of a host's predictors: DSPy's own wire code, without what it does beside it at every call.
#
# In: a host. Out: a pair of engines for `dspy.LM(engine=..., async_engine=...)`, which send a Request and read a
# Response as DSPy's native engine does; the tests compare the bytes. Log-probabilities alone are kept in another way
# (logprobs.py). DSPy keeps doing what it does around an engine: cache, retries, history, usage, callbacks.
#
# Why: for a model that its price list does not hold (every tuned one) DSPy reads the whole list twice after each
# answer, only to say that the price is unknown, and it chooses the provider anew at each call. That is two thirds of
# the processor time of a call (benchmarks/one_call.py). An engine of one's own is asked for neither. Not covered:
# settings that only DSPy's LiteLLM route carries, and answers whose price DSPy knows: those keep its route.

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


# ----------------------------------------------------------------------------------------------------
# dspy/clients/backend_selection.py: client settings that only DSPy's LiteLLM route carries.
_NOT_NATIVE = frozenset(
    {"headers", "extra_headers", "api_version", "azure_ad_token_provider", "organization", "project", "extra_query"}
    | {"custom_llm_provider", "extra_body"}
)
_CONNECTION = ("api_key", "api_base")


class HostLM(dspy.LM):
    """A dspy.LM bound to a host; saved in a program's JSON it is a plain dspy.LM without address or key."""

    kwargs: dict[str, Any]

    def __init__(self, model: str, *, host: Host, **kwargs: Any) -> None:
        self._host = host
        self._cache_tag = host.cache_namespace()
        # An engine of its own holds the connection, and DSPy lets nothing about it into the settings then.
        self._has_own_engine = not isinstance(kwargs.get("engine", ""), str)
        self._is_connected = False
        if "engine" not in kwargs and not (_NOT_NATIVE & kwargs.keys()) and kwargs.get("model_type", "chat") != "text":
            kwargs["engine"] = "lm15"
        super().__init__(model, **kwargs)

    @property
    def host(self) -> Host:
        """Where the model answers."""
        return self._host

    @property
    def supports_function_calling(self) -> bool:
        """As dspy.LM; of a tuned model: whether its base does."""
        return super().supports_function_calling or self._base.supports_function_calling

    @property
    def supports_reasoning(self) -> bool:
        """As dspy.LM; of a tuned model: whether its base does."""
        return super().supports_reasoning or self._base.supports_reasoning

    @property
    def supports_response_schema(self) -> bool:
        """As dspy.LM; of a tuned model: whether its base does."""
        return super().supports_response_schema or self._base.supports_response_schema

    @property
    def supported_params(self) -> set[str]:
        """As dspy.LM; of a tuned model: those of its base too."""
        own: set[str] = super().supported_params
        return own | self._base.supported_params

    @property
    def _base(self) -> _Abilities:
        named = parse_model_id(self.model)
        return _abilities(named.base) if named.is_tuned and self.model_type == "chat" else _Abilities()

    def __call__(self, prompt: Any = None, **kwargs: Any) -> Any:
        """As dspy.LM: a Request gives a Response, other calls a list."""
        self._connect()
        try:
            return super().__call__(prompt, **self._with_tag(kwargs))
        except Exception as error:  # whatever it is goes on to the caller, without the key that a host repeated in it
            self._host.scrub(error)
            raise

    async def acall(self, prompt: Any = None, **kwargs: Any) -> Any:
        """As dspy.LM.acall."""
        self._connect()
        try:
            return await super().acall(prompt, **self._with_tag(kwargs))
        except Exception as error:  # as above
            self._host.scrub(error)
            raise

    def _connect(self) -> None:
        if self._has_own_engine:
            return
        if not self._is_connected or not self._host.is_connected():
            base_url, key = self._host.connection()
            # One assignment, so that another thread sees the old connection or the new one.
            self.kwargs = {**self.kwargs, **({"api_base": base_url} if base_url else {}), "api_key": key}
            self._is_connected = True

    def _with_tag(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if not self._cache_tag:
            return kwargs
        rollout = kwargs.get("rollout_id", self.kwargs.get("rollout_id"))
        return {**kwargs, "rollout_id": _tagged(self._cache_tag, rollout)}

    def _warn_zero_temp_rollout(self, temperature: float | None, rollout_id: Any) -> None:
        # The tag is not the user's wish for another sample: DSPy's warning is for that alone.
        wished = self.kwargs.get("rollout_id") if self._cache_tag else rollout_id
        super()._warn_zero_temp_rollout(temperature, wished)

    def dump_state(self) -> dict[str, Any]:
        """The state of a plain dspy.LM: loadable without trusting a class, and without address or key."""
        state: dict[str, Any] = super().dump_state()
        own = f"{type(self).__module__}.{type(self).__qualname__}"
        plain = {name: "dspy.clients.lm.LM" if value == own else value for name, value in state.items()}
        if isinstance(self.engine, HostEngine):
            # A way to ask, not a part of the model: saved is the route that asks the same.
            del plain["async_engine"]
            plain |= {"engine": "lm15"} | ({} if self.engine.timeout is None else {"timeout": self.engine.timeout})
        return {name: value for name, value in plain.items() if name not in _CONNECTION}

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state["kwargs"] = {name: value for name, value in state["kwargs"].items() if name not in _CONNECTION}
        state["_is_connected"] = False
        return state


@dataclass(frozen=True, kw_only=True)
class _Abilities:
    supports_function_calling: bool = False
    supports_reasoning: bool = False
    supports_response_schema: bool = False
    supported_params: frozenset[str] = frozenset()


@functools.lru_cache(maxsize=64)
def _abilities(base: str) -> _Abilities:
    """What DSPy knows of a base model; little where it does not know it."""
    lm = dspy.LM(f"openai/{base}", engine="lm15")
    return _Abilities(
        supports_function_calling=lm.supports_function_calling,
        supports_reasoning=lm.supports_reasoning,
        supports_response_schema=lm.supports_response_schema,
        supported_params=frozenset(lm.supported_params),
    )


def _tagged(namespace: str, rollout_id: Any) -> int:
    """A whole number, as DSPy's field wants, that differs by host and by the caller's own rollout."""
    digest = hashlib.sha256(f"{namespace}\x00{rollout_id!r}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
