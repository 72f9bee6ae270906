"""The one language model of predictors: DSPy's wire code, the host's key at the last moment, one reader of completions.

In: a host and a model id. Out: a `dspy.LM` (`HostLM`) with the engines that carry its requests, and `Answer`: what a
completion says, or why it says nothing. Single calls and bulk read completions by the same code. What a plain dspy.LM
does not do:

- DSPy's cache key holds the model's name but not the address, so two hosts with a model of one name would share
  answers. Hosts other than OpenAI's own mix their identity into `rollout_id`, the field of the key that is not sent.
- With OPENAI_BASE_URL or OPENAI_API_BASE set, DSPy's "auto" leaves the native engine; here it is asked for by name.
- A pickled dspy.LM holds its key; this one drops key and address and asks its host again.
- DSPy's table of what models can do has no row for a tuned id, so its JSONAdapter would send a tuned model no schema
  where it sends its base one: collecting data and serving would differ. A tuned model can do what its base can.
- DSPy's price list holds no tuned model; the `cost` of its history entries is the catalog's.
- A log-probability or token count that makes no sense (null, -Infinity, text) is passed over: it costs no answer.

Kept apart from host.py because it imports dspy, which costs most of a second. It stands below host.py and knows a host
by what it asks of one (`Connection`).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import json
import math
import pkgutil
import re
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

import dspy
from dspy.clients.costs import estimate_cost
from dspy.lm15 import RETRYABLE_ERRORS, AsyncLMRouter, LMRouter, Request, Response, RouterConfig, Timeouts

from dspy_finetune.catalog import parse_model_id
from dspy_finetune.export.cost import inference_cost
from dspy_finetune.hosts.failures import LONGEST_TOLD_SECONDS, tell_wait


class Connection(Protocol):
    """What a language model asks of its host."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    @property
    def kind(self) -> Any:
        """The facts of its kind, of which the name is read."""

    def connection(self) -> tuple[str | None, str]:
        """The address and the key."""

    def is_connected(self) -> bool:
        """Whether the last connection still holds."""

    def cache_namespace(self) -> str:
        """What keeps this host's answers apart in DSPy's cache."""

    def scrub(self, exception: BaseException) -> None:
        """Take the host's keys out of an exception."""

    def to_dict(self) -> dict[str, str]:
        """The host as JSON values, without a key."""


Position = tuple[str, Mapping[str, float]]
"""The token that the model chose, and the log-probability of each token that the host tells (most often the chosen one
among them)."""

Problem = Literal["refusal", "content_filter", "length", "reasoning_only", "tool_calls", "no_choices"]
"""Why a completion holds no answer; "length": not the whole of one."""

_ABOVE_ZERO = 1e-3  # above 0 by more than rounding is no log-probability
_ABOUT_N = re.compile(r"""['"`]n['"`]|\bn must\b|\bparameter:? n\b""")
_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


class Answer(NamedTuple):
    """What a completion says."""

    text: str
    """Without the <think> block before it; empty where the host sent none."""
    positions: Sequence[Position] | None = None
    """The text's tokens with their log-probabilities; None where the host sent none."""
    problem: Problem | None = None
    """Why this is no answer, or not the whole of one."""
    detail: str = ""
    """The host's own words for it: its refusal, its finish_reason."""


def read_completion(body: Mapping[str, Any]) -> Answer:
    """The answer in a chat completion, as hosts write one.

    >>> read_completion({"choices": [{"message": {"content": None, "refusal": "I cannot."}, "finish_reason": "stop"}]})
    Answer(text='', positions=None, problem='refusal', detail='I cannot.')
    """
    logprobs = (_choice(body) or {}).get("logprobs")
    listed = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    return _read(body, positions_on_wire(listed) if isinstance(listed, list) else None)


def read_response(response: Any) -> Answer:
    """The answer in DSPy's form of a completion: read from the host's own body where it holds that."""
    data = getattr(response, "provider_data", None)
    if isinstance(data, Mapping) and ("message" in (_choice(data) or {}) or data.get("object") == "chat.completion"):
        return _read(data, positions_of(response))
    parts = response.message.parts if hasattr(response, "message") else ()  # a language model of the user's own
    said = {part.type: getattr(part, "text", "") for part in parts}
    message = {"content": response.text, "refusal": said.get("refusal"), "reasoning": said.get("thinking")}
    choice = {"message": message, "finish_reason": getattr(response, "finish_reason", None)}
    return _read({"choices": [choice]}, positions_of(response))


def read_completions(body: Mapping[str, Any]) -> list[Answer]:
    """All answers in a chat completion that was asked for by `n`; of one without choices the one that says so."""
    choices = body.get("choices")
    listed = choices if isinstance(choices, list) and choices else [None]
    return [read_completion({"choices": [choice]}) for choice in listed]


def read_responses(response: Any) -> list[Answer]:
    """The same in DSPy's form of a completion."""
    others = (getattr(response, "provider_data", None) or {}).get(_OTHERS)
    listed = json.loads(others) if isinstance(others, str) else []
    return [read_response(response), *(read_completion({"choices": [choice]}) for choice in listed)]


def refuses_n(refusal: str) -> bool:
    """Whether a host's refusal is about several answers to one request.

    >>> refuses_n("Unsupported value: 'n' does not support 9 with this model.")
    True
    """
    return _ABOUT_N.search(refusal) is not None


def _choice(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, Sequence) and choices else None
    return first if isinstance(first, Mapping) else None


def _read(body: Mapping[str, Any], positions: Sequence[Position] | None) -> Answer:
    choice = _choice(body)
    if choice is None:
        return Answer("", None, "no_choices", "the completion has no choices")
    message = choice.get("message") or {}
    written, finish, refusal = _text_of(message.get("content")), choice.get("finish_reason"), message.get("refusal")
    thought = _THOUGHT.match(written)
    text = written if thought is None else written[thought.end() :]
    if thought is not None and positions is not None:
        positions = _after(positions, len(written[: thought.end()].rstrip()))
    if refusal and isinstance(refusal, str):
        return Answer(text, positions, "refusal", refusal)
    if finish == "content_filter":
        return Answer(text, positions, "content_filter", "finish_reason content_filter")
    if finish == "length":
        return Answer(text, positions, "length", "finish_reason length")
    if not text and message.get("tool_calls"):
        return Answer(text, positions, "tool_calls", f"finish_reason {finish}")
    has_thought = thought is not None or message.get("reasoning_content") or message.get("reasoning")
    if (not text and has_thought) or text.lstrip().startswith("<think>"):
        return Answer(text, positions, "reasoning_only", f"finish_reason {finish}")
    return Answer(text, positions)


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _after(positions: Sequence[Position], n_characters: int) -> Sequence[Position]:
    """The positions after so many characters of text."""
    for number, (token, _) in enumerate(positions):
        if n_characters <= 0:
            return positions[number:]
        n_characters -= len(token)
    return []


_KEY = "logprobs"
"""Where a response of these engines holds its positions, as one text among the provider's data. DSPy's history keeps
10,000 answers, each with some sixty objects for twenty listed tokens: in the response, and once more in what it shows.
The garbage collector goes through all of them while every caller waits. A text is one object, which it does not look
at."""

_OTHERS = "other_choices"
"""Where it holds the choices after the first, as one text: DSPy reads one and refuses a body with several."""


def positions_of(response: Any) -> Sequence[Position] | None:
    """The positions of a response of these engines, or of DSPy's own; None where the host sent none."""
    if response.logprobs:
        return [
            _position(one.token, one.logprob, one.bytes, [(top.token, top.logprob, top.bytes) for top in one.top])
            for one in response.logprobs
        ]
    text = (getattr(response, "provider_data", None) or {}).get(_KEY)
    return None if not isinstance(text, str) else [(token, listed) for token, listed in json.loads(text)]


def positions_on_wire(content: Sequence[Any]) -> list[Position]:
    """The positions of a choice's `logprobs.content`, in OpenAI's form, as far as they are sound."""
    found: list[Position] = []
    for one in content:
        token = one.get("token") if isinstance(one, dict) else None
        if not isinstance(token, str):
            break  # what follows stands at another place than it says
        top = one.get("top_logprobs") or ()
        alternatives = [
            (each.get("token"), each.get("logprob"), each.get("bytes")) for each in top if isinstance(each, dict)
        ]
        found.append(_position(token, one.get("logprob"), one.get("bytes"), alternatives))
    return found


def spelling(token: str, codes: Sequence[int] | None) -> str:
    r"""A token's text; of a part of a character, which hosts write as "bytes:..." or U+FFFD, its bytes, escaped.

    >>> spelling(" true", None), spelling("bytes:f09f", [0xF0, 0x9F]).encode("utf-8", "surrogateescape")
    (' true', b'\xf0\x9f')
    """
    if codes and (token.startswith("bytes:") or "\ufffd" in token):
        try:
            return bytes(codes).decode("utf-8", "surrogateescape")
        except (TypeError, ValueError):
            return token
    return token


def _position(token: str, logprob: Any, codes: Any, top: Sequence[tuple[Any, Any, Any]]) -> Position:
    # Twenty alternatives a token, and bulk reads thousands of tokens a second: what is usual is asked first.
    listed: dict[str, float] = {}
    for text, value, part in top:
        if isinstance(text, str) and (-math.inf < value < _ABOVE_ZERO if type(value) is float else _is_told(value)):
            listed[spelling(text, part) if part and (text[:6] == "bytes:" or "\ufffd" in text) else text] = value
    chosen = spelling(token, codes)
    if _is_told(logprob):
        listed[chosen] = logprob
    return chosen, listed


def _is_told(logprob: Any) -> bool:
    # -Infinity is what hosts write for "pruned", null for "none".
    return isinstance(logprob, (int, float)) and not isinstance(logprob, bool) and -math.inf < logprob < _ABOVE_ZERO


# The engines: DSPy's own wire code, without what it does beside it at every call.
#
# They send a Request and read a Response as DSPy's native engine does; the tests compare the bytes. DSPy keeps doing
# what it does around an engine: cache, retries, history, usage, callbacks.
#
# Why: for a model that its price list does not hold (every tuned one) DSPy reads the whole list twice after each
# answer, only to say that the price is unknown, and it chooses the provider anew at each call. That is two thirds of
# the processor time of a call (benchmarks/one_call.py). An engine of one's own is asked for neither. Not covered:
# settings that only DSPy's LiteLLM route carries.

_ROUTE = "openai-chat"
_MAX_CONNECTIONS = 1000  # as many as openai's own client: bulk scoring has more than DSPy's 100 under way
_PRICED_KINDS = ("openai", "azure")
_HOST_CLASS = "dspy_finetune.hosts:Host"
_OWN_SETTINGS = frozenset({"cache", "num_retries", "callbacks", "rollout_id", "timeout"})


class _Tries:
    """How often a call was tried in a row without an answer, and how often DSPy tries it again."""

    def __init__(self, n_retries: int) -> None:
        self.n_retries = n_retries
        self.n_failed = 0


_tries: contextvars.ContextVar[_Tries | None] = contextvars.ContextVar("dspy_finetune_tries", default=None)


class _Engine:
    def __init__(self, host: Connection, *, timeout: float | None = None) -> None:
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

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        """An attempt, after whose failure DSPy waits in silence: a long wait is told, and none is longer than ours."""
        tries = _tries.get()
        try:
            yield
        except RETRYABLE_ERRORS as error:
            if error.retry_after is not None:
                error.retry_after = min(error.retry_after, LONGEST_TOLD_SECONDS)
            if tries is not None and tries.n_failed < tries.n_retries:
                # As dspy/clients/execution.py waits.
                pause = min(2.0**tries.n_failed, 60.0) if error.retry_after is None else error.retry_after
                tries.n_failed += 1
                tell_wait(self.host.name, pause, error.status)
            raise
        if tries is not None:
            tries.n_failed = 0

    def dump_state(self) -> dict[str, Any]:
        """Host and timeout as JSON values; never a key."""
        return {"host": self.host.to_dict(), "timeout": self.timeout}

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> Any:
        """The inverse of `dump_state`."""
        # By name, as DSPy itself loads an engine: this module stands below the class.
        return cls(pkgutil.resolve_name(_HOST_CLASS).from_dict(state["host"]), timeout=state["timeout"])

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
        with self._heard():
            return self._connected().complete(_bare(request))

    def stream(self, request: Request) -> Iterator[Any]:
        """The same answer, event by event."""
        with self._heard():
            yield from self._connected().stream(_bare(request))

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
        with self._heard():
            return await (await self._connected()).complete(_bare(request))

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """The same answer, event by event."""
        with self._heard():
            async for event in (await self._connected()).stream(_bare(request)):
                yield event

    async def aclose(self) -> None:
        """Close the running loop's connections."""
        found = self._wires.pop(asyncio.get_running_loop(), None)
        if found is not None:
            await found[1].aclose()


def engines_for(host: Connection, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options for `host.lm` that make it ask through these engines; as given where DSPy's own route is wanted.

    DSPy's own route is kept for settings that an engine does not carry: there an odd log-probability ends a call.
    """
    timeout = options.get("timeout")
    is_plain = options.keys() <= _OWN_SETTINGS and (timeout is None or isinstance(timeout, (int, float)))
    if not is_plain:
        return dict(options)
    kept = {name: value for name, value in options.items() if name != "timeout"}
    pair = {
        "engine": HostEngine(host, timeout=timeout),
        "async_engine": AsyncHostEngine(host, timeout=timeout),
    }
    return {**kept, **pair}


def _wire(router: type[LMRouter] | type[AsyncLMRouter], config: RouterConfig) -> Any:
    wire = router(config).lm(f"{_ROUTE}:any")
    reader = getattr(wire, "_inner", wire)  # the asynchronous wire reads by the synchronous one
    kind: Any = type(reader)
    reader.__class__ = _careful(kind)
    if urlsplit((config.base_urls or {}).get(_ROUTE, "")).hostname in ("127.0.0.1", "localhost", "::1"):
        # Loopback is never behind a proxy, whatever HTTP_PROXY says; to look for one costs a sixth of a call.
        wire.transport = type(wire.transport)(trust_env=False, **config.transport_kwargs())
    return wire


@functools.cache
def _careful(kind: Any) -> Any:
    """DSPy's reader of chat completions, which is handed no side data that could make it fail."""

    class Reader(kind):
        __slots__ = ()

        def parse_response(self, request: Request, response: Any) -> Response:
            return kind.parse_response(self, request, _Body(response))

    return Reader


class _Body:
    """An HTTP response whose completion has sound token counts, and its log-probabilities as one text."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)

    def json(self) -> Any:
        body = self._response.json()
        if not isinstance(body, dict):
            return body
        body.setdefault("object", "chat.completion")
        body["usage"] = sound_usage(body.get("usage"))
        choices = body.get("choices")
        if isinstance(choices, list) and len(choices) > 1:
            body["choices"], body[_OTHERS] = choices[:1], json.dumps(choices[1:], separators=(",", ":"))
        choice = _choice(body)
        logprobs = choice.pop("logprobs", None) if isinstance(choice, dict) else None
        listed = logprobs.get("content") if isinstance(logprobs, Mapping) else None
        if listed and isinstance(listed, list):
            body[_KEY] = json.dumps(positions_on_wire(listed), separators=(",", ":"))
        return body


def sound_usage(usage: Any) -> dict[str, Any]:
    """The token counts that are counts, at any depth.

    >>> sound_usage({"prompt_tokens": 9, "completion_tokens": None, "prompt_tokens_details": {"cached_tokens": "?"}})
    {'prompt_tokens': 9, 'prompt_tokens_details': {}}
    """
    found: dict[str, Any] = {}
    for name, value in usage.items() if isinstance(usage, Mapping) else ():
        if isinstance(value, Mapping):
            found[name] = sound_usage(value)
        elif str(name).endswith("_details") or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        elif value >= 0 and value == value // 1:
            found[name] = int(value)
    return found


N_ANSWERS = "n_answers"
"""The extension of a request by which these engines ask for several answers: DSPy refuses `n`, as its own read one."""


def _bare(request: Request) -> Request:
    # DSPy writes openai/<id>; the host knows the id.
    config, asked = request.config, request.config.extensions or {}
    if N_ANSWERS in asked:
        config = dataclasses.replace(config, extensions={"n": asked[N_ANSWERS]})
    return dataclasses.replace(request, model=request.model.removeprefix("openai/"), config=config)


# dspy/clients/backend_selection.py: client settings that only DSPy's LiteLLM route carries.
_NOT_NATIVE = frozenset(
    {"headers", "extra_headers", "api_version", "azure_ad_token_provider", "organization", "project", "extra_query"}
    | {"custom_llm_provider", "extra_body"}
)
_CONNECTION = ("api_key", "api_base")


class HostLM(dspy.LM):
    """A dspy.LM bound to a host; saved in a program's JSON it is a plain dspy.LM without address or key."""

    kwargs: dict[str, Any]

    def __init__(self, model: str, *, host: Connection, **kwargs: Any) -> None:
        self._host = host
        self._cache_tag = host.cache_namespace()
        # An engine of its own holds the connection, and DSPy lets nothing about it into the settings then.
        self._has_own_engine = not isinstance(kwargs.get("engine", ""), str)
        self._is_connected = False
        self._prices: tuple[Any, ...] | None = None  # per million tokens: input, cached input, output
        if "engine" not in kwargs and not (_NOT_NATIVE & kwargs.keys()) and kwargs.get("model_type", "chat") != "text":
            kwargs["engine"] = "lm15"
        super().__init__(model, **kwargs)

    @property
    def host(self) -> Any:
        """Where the model answers: a `Host`."""
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
        token = _tries.set(_Tries(self.num_retries))
        try:
            return super().__call__(prompt, **self._with_tag(kwargs))
        except Exception as error:  # whatever it is goes on to the caller, without the key that a host repeated in it
            self._host.scrub(error)
            raise
        finally:
            _tries.reset(token)

    async def acall(self, prompt: Any = None, **kwargs: Any) -> Any:
        """As dspy.LM.acall."""
        self._connect()
        token = _tries.set(_Tries(self.num_retries))
        try:
            return await super().acall(prompt, **self._with_tag(kwargs))
        except Exception as error:  # as above
            self._host.scrub(error)
            raise
        finally:
            _tries.reset(token)

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

    def update_history(self, entry: dict[str, Any]) -> None:
        """As dspy.LM; of an engine of this module with the cost by DSPy's price list, else by the catalog's."""
        if entry.get("cost") is None and entry.get("usage"):
            entry["cost"], details = self._listed_cost(entry)
            if entry["cost"] is None:
                entry["cost"] = self._cost(sound_usage(entry["usage"]))
                details = {"kind": "estimate", "source": "the catalog of dspy_finetune"}
            if entry["cost"] is not None:
                entry["cost_details"] = details
        super().update_history(entry)

    def _listed_cost(self, entry: Mapping[str, Any]) -> tuple[float | None, dict[str, Any]]:
        """As DSPy's own route to OpenAI and Azure gives it; a tuned model's price stands in no list of DSPy's."""
        response, named = entry.get("response"), parse_model_id(self.model)
        is_listed = self._host.kind.name in _PRICED_KINDS and self._has_own_engine and not named.is_tuned
        if not is_listed or not hasattr(response, "usage"):
            return None, {}
        name, request = self.model.removeprefix("openai/"), entry.get("request")
        cost, details = estimate_cost(response, provider=_ROUTE, requested_model=name, request=request)
        return cost, details

    def _cost(self, usage: Mapping[str, Any]) -> float | None:
        if self._host.kind.name not in _PRICED_KINDS:
            return None
        # Prices are looked up once: an answer of a tuned model takes half a millisecond of the processor in all.
        if self._prices is None:
            model, host = self.model.removeprefix("openai/"), self._host.kind.name
            known = inference_cost(model, n_requests=1, n_input_tokens=1, n_output_tokens=1, host=host).price_usd
            price, answer, cached = (known.get(name) for name in ("input", "output", "cached_input"))
            is_known = price is not None and answer is not None
            self._prices = (price, price if cached is None else cached, answer) if is_known else ()
        if not self._prices or "prompt_tokens" not in usage or "completion_tokens" not in usage:
            return None
        n_cached = min(usage.get("prompt_tokens_details", {}).get("cached_tokens", 0), usage["prompt_tokens"])
        amounts = (usage["prompt_tokens"] - n_cached, n_cached, usage["completion_tokens"])
        return float(sum(price * amount for price, amount in zip(self._prices, amounts, strict=True))) / 1_000_000

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
