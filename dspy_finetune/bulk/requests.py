"""a predictor's requests and answers as a chat-completions host reads and writes them, for millions of calls.

In: a predictor and the inputs of one call. Out: the bodies that this call sends, and the prediction read from the
completions that come back, by the predictor's own reading. What goes between, and DSPy's cache, history and callbacks,
is the caller's business (bulk). A predictor with a language model of its own, or with options that only DSPy carries
out, has no such bodies: it is called as any program is.
"""

from __future__ import annotations

import asyncio
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import dspy

from dspy_finetune.hosts import Host
from dspy_finetune.hosts.lm import read_completion, sound_usage
from dspy_finetune.predictors.base import FinetunedPredictor
from dspy_finetune.predictors.openai import OpenAIPredictor
from dspy_finetune.predictors.pairwise import PairwisePredictor, swapped

if TYPE_CHECKING:
    import aiohttp

_NEUTRAL_OPTIONS = frozenset({"cache", "num_retries", "timeout"})
"""Options of the language model that change no byte of a request."""


def is_wired(program: object) -> bool:
    """Whether the program's calls are known as requests: one of this library's predictors, on its host.

    A subclass with a `forward` of its own is asked through that.
    """
    if not isinstance(program, FinetunedPredictor) or program.host is None or program._given_lm is not None:
        return False
    forward = type(program).forward
    known = (OpenAIPredictor.forward, PairwisePredictor.forward)
    return forward in known and program.lm_options.keys() <= _NEUTRAL_OPTIONS


def bodies_of(predictor: FinetunedPredictor) -> Callable[[Mapping[str, Any]], list[dict[str, Any]]]:
    """A function from the inputs of a call to the bodies it sends: one, or one for each order or sample."""
    prompt = predictor.prompt
    n_samples = predictor.n_samples if isinstance(predictor, OpenAIPredictor) else 1
    has_both = isinstance(predictor, PairwisePredictor) and predictor.both_orders
    temperature = predictor.temperature if isinstance(predictor, OpenAIPredictor) and n_samples > 1 else 0.0
    fixed: dict[str, Any] = {
        "max_completion_tokens": predictor.max_tokens or prompt.max_tokens or predictor.default_max_tokens,
        "temperature": temperature,
    }
    if stop := [*(prompt.stop or ()), *predictor.stop]:
        fixed["stop"] = stop
    if predictor.logprobs is not False and prompt.labels is not None:
        fixed |= {"logprobs": True, "top_logprobs": predictor.top_logprobs}
    if predictor._response_format() is not None:  # not every host can be held to a schema
        wire = prompt.response_format or {}
        # In the order in which DSPy writes it: a host's cache of prompts goes by bytes.
        fixed["response_format"] = {"type": wire["type"], "json_schema": dict(sorted(wire["json_schema"].items()))}
    # `openai/` is DSPy's prefix, not a part of the host's name for the model.
    model = predictor.model.removeprefix("openai/")

    def bodies(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        asked = [{"model": model, "messages": prompt.messages(inputs), **fixed}]
        if has_both:
            asked.append({**asked[0], "messages": prompt.messages(swapped(prompt, dict(inputs)))})
        return asked * n_samples

    return bodies


def read_completions(
    predictor: FinetunedPredictor, inputs: Mapping[str, Any], completions: Sequence[Mapping[str, Any]]
) -> dspy.Prediction:
    """The prediction from the completions of `bodies_of`, in their order.

    Raises:
        AnswerError: An answer cannot be read.
        LogprobsError: Log-probabilities were asked for and are not there.
    """
    answers = [read_completion(body) for body in completions]
    if isinstance(predictor, PairwisePredictor):
        return predictor._read(dict(inputs), answers[0], answers[1] if len(answers) > 1 else None)
    assert isinstance(predictor, OpenAIPredictor)
    return predictor._read(answers[0]) if predictor.n_samples == 1 else predictor._read_samples(answers)


# ----------------------------------------------------------------------------------------------------
# one pooled HTTP connection to a host, for many small requests.
#
# In: a host and bodies. Out: replies: status, headers, bytes. The key travels in a header and stands nowhere else. The
# `openai` client spends most of its time on types that bulk use does not need; here a reply is bytes until a predictor
# reads it. aiohttp, whose parser is written in C, works beside any version of the `openai` package.

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


# ----------------------------------------------------------------------------------------------------
# what a host counted: requests and tokens, as they stand in the `usage` of its answers.


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Counts, which can be added.

    >>> Tokens(n_requests=1, n_input=40) + Tokens(n_requests=1, n_input=2, n_output=1)
    Tokens(n_requests=2, n_input=42, n_cached=0, n_output=1)
    """

    n_requests: int = 0
    """Answered requests."""
    n_input: int = 0
    """Prompt tokens, cached ones among them."""
    n_cached: int = 0
    """Prompt tokens from the host's cache."""
    n_output: int = 0
    """Answer tokens."""

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            n_requests=self.n_requests + other.n_requests,
            n_input=self.n_input + other.n_input,
            n_cached=self.n_cached + other.n_cached,
            n_output=self.n_output + other.n_output,
        )

    @classmethod
    def of(cls, completion: Mapping[str, Any]) -> Tokens:
        """One answer's; 0 where the host counts nothing."""
        usage = sound_usage(completion.get("usage"))
        return cls(
            n_requests=1,
            n_input=usage.get("prompt_tokens", 0),
            n_cached=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
            n_output=usage.get("completion_tokens", 0),
        )
