"""One row's question until it has an outcome: a predictor's requests, the connection, the answers, another try.

In: an `InputRow`. Out: an `Outcome`. A row's own fault (400, an answer that is none or cannot be read) is the row's
outcome; a fault that every row would meet (a wrong key, an unknown model, an empty account) ends the run with
HostError; a host that is silent is waited for, up to the policy's `patience_seconds`.

A predictor of this library is asked over HTTP with the bodies that its calls send, and read by its own code. DSPy's
cache, history and callbacks are not in between: they cost more than the answer. A predictor with a language model of
its own, or with options that only DSPy carries out, has no such bodies, and is called as any program is.
"""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import dspy

from dspy_finetune.bulk.rate_limit import Budget, ConcurrencyLimiter, backoff_seconds
from dspy_finetune.bulk.reader import InputRow, Outcome, Tokens, load_json, no_reading
from dspy_finetune.errors import AnswerError, HostError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.failures import RETRYABLE_STATUSES, describe_failure, retry_after_seconds
from dspy_finetune.hosts.lm import read_completion, read_completions, refuses_n
from dspy_finetune.predictors.ask import PARSE_FAILURES, ask_async
from dspy_finetune.predictors.base import FinetunedPredictor, lower_top_logprobs
from dspy_finetune.predictors.openai import OpenAIPredictor
from dspy_finetune.predictors.pairwise import PairwisePredictor, swapped

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)

_HOPELESS_STATUSES = frozenset({401, 402, 403, 404, 410})
_HOPELESS_CODES = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "account_deactivated", "invalid_api_key"}
)
_AWAY_STATUSES = frozenset({502, 503, 504})
"""The host may be gone for a while, which is no row's fault."""
_TOP_LOGPROBS = b'"top_logprobs":%d'
"""As it stands in a body; inside a text the quotes are escaped."""
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
    """A function from the inputs of a call to the bodies it sends: one, or one for each order, or for each sample where
    the host does not give them all for one request."""
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
    if predictor._asks_logprobs():
        fixed |= {"logprobs": True, "top_logprobs": predictor.top_logprobs}
    if predictor._response_format() is not None:  # not every host can be held to a schema
        wire = prompt.response_format or {}
        # In the order in which DSPy writes it: a host's cache of prompts goes by bytes.
        fixed["response_format"] = {"type": wire["type"], "json_schema": dict(sorted(wire["json_schema"].items()))}
    if isinstance(predictor, OpenAIPredictor) and predictor.asks_by_n():
        fixed["n"], n_samples = n_samples, 1
    # `openai/` is DSPy's prefix, not a part of the host's name for the model.
    model = predictor.model.removeprefix("openai/")

    def bodies(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        asked = [{"model": model, "messages": prompt.messages(inputs), **fixed}]
        if has_both:
            asked.append({**asked[0], "messages": prompt.messages(swapped(prompt, dict(inputs)))})
        return asked * n_samples

    return bodies


def known_bodies(program: Any) -> Callable[[Mapping[str, Any]], list[dict[str, Any]]] | None:
    """`bodies_of` the program, or None where its calls are not known as requests."""
    return bodies_of(program) if is_wired(program) else None


def read_row(
    predictor: FinetunedPredictor, inputs: Mapping[str, Any], completions: Sequence[Mapping[str, Any]]
) -> dspy.Prediction:
    """The prediction from the completions of `bodies_of`, in their order.

    Raises:
        AnswerError: An answer cannot be read.
        LogprobsError: Log-probabilities were asked for and are not there.
    """
    if isinstance(predictor, OpenAIPredictor) and predictor.n_samples > 1:
        return predictor._read_samples([answer for body in completions for answer in read_completions(body)])
    answers = [read_completion(body) for body in completions]
    if isinstance(predictor, PairwisePredictor):
        return predictor._read(dict(inputs), answers[0], answers[1] if len(answers) > 1 else None)
    assert isinstance(predictor, OpenAIPredictor)
    return predictor._read(answers[0])


# One pooled HTTP connection to a host. The key travels in a header and stands nowhere else. The `openai` client
# spends most of its time on types that bulk use does not need; here a reply is bytes until a predictor reads it.
# aiohttp, whose parser is written in C, works beside any version of the `openai` package.

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


class RowFailedError(Exception):
    """The row has no answer, and no further try would get one."""


class _RefusesNError(Exception):
    """The host does not give several answers to one request."""


class HostRequester:
    """Asks for one of this library's predictors, straight over HTTP."""

    def __init__(
        self, predictor: FinetunedPredictor, transport: Transport, limiter: ConcurrencyLimiter, budget: Budget
    ) -> None:
        assert predictor.host is not None
        self._predictor = predictor
        self._host = predictor.host
        self._transport = transport
        self._limiter = limiter
        self._budget = budget
        self._max_tokens = predictor.max_tokens or predictor.prompt.max_tokens or predictor.default_max_tokens
        self._top_logprobs = predictor.top_logprobs  # lower once the host has refused as many
        self._n = predictor.n_samples if isinstance(predictor, OpenAIPredictor) and predictor.asks_by_n() else 1
        self._by_n = b',"n":%d}' % self._n  # as the body of a request for several answers ends
        self._refuses_n = False

    async def ask(self, row: InputRow) -> Outcome:
        """The row's outcome.

        Raises:
            HostError: No row would get an answer.
            BudgetError: The budget is spent.
        """
        bodies: Sequence[bytes] = row.bodies
        if self._n > 1 and self._refuses_n:
            bodies = self._one_each(row)
        try:
            results = [await self._complete(bodies[0])] if len(bodies) == 1 else await self._complete_all(bodies)
        except _RefusesNError as refusal:
            if not self._refuses_n:
                logger.warning("%s; each sample is a request of its own from now on", refusal)
            self._refuses_n = True
            results = await self._complete_all(self._one_each(row))
        return outcome_of(self._predictor, row, results)

    async def _complete_all(self, bodies: Sequence[bytes]) -> list[Any]:
        return await gathered([self._complete(body) for body in bodies])

    def _one_each(self, row: InputRow) -> list[bytes]:
        """A request for each sample, in the place of one for all."""
        return [row.bodies[0].removesuffix(self._by_n) + b"}"] * self._n

    async def _complete(self, body: bytes) -> Any:
        """The completion, or the RowFailedError that says why there is none: a pair's other order is still paid for."""
        limiter = self._limiter
        n_failures, first_at = 0, limiter.timing.clock()
        while True:
            era, reserved = await self._enter(body)
            body = self._lowered(body)
            used: Tokens | None = None
            pause: float | None
            try:
                reply = await self._transport.post("/chat/completions", body)
                completion = load_completion(reply)
                if completion is not None:
                    used = Tokens.of(completion)
                    limiter.alive()
                    limiter.rate.answered(era, reply.headers, used.n_input + used.n_output)
                    return completion
                used = Tokens()  # what was refused is not billed
                error = self._error(reply)
                if _is_hopeless(error):
                    limiter.rate.dropped()
                    raise error
                if self._lowers_top_logprobs(error, body):
                    limiter.rate.answered(era, reply.headers)
                    continue
                if body.endswith(self._by_n) and refuses_n(str(error)):
                    limiter.alive()
                    limiter.rate.answered(era, reply.headers)
                    raise _RefusesNError(str(error))
                if reply.status == 429:
                    limiter.rate.refused(era, reply.headers)
                    pause = None  # the limiter waits for all
                elif not _is_retryable(reply, error):
                    limiter.alive()
                    limiter.rate.answered(era, reply.headers)
                    return RowFailedError(str(error))
                else:
                    limiter.rate.failed(era)
                    n_failures += 1
                    told = retry_after_seconds(reply.headers)
                    pause = told if told is not None else backoff_seconds(n_failures, limiter.timing.generator)
                is_away = reply.status in _AWAY_STATUSES or reply.status == 429
            except NoReplyError as failure:
                limiter.rate.failed(era)
                n_failures += 1
                error = self._host.error(failure, "ask")
                pause, is_away = backoff_seconds(n_failures, limiter.timing.generator), True
            except asyncio.CancelledError:
                limiter.rate.dropped()
                raise
            finally:
                self._budget.settle(reserved, used)
                limiter.wake()
            if limiter.has_lost_patience():
                raise error
            if limiter.gives_up(n_failures, first_at, is_away=is_away):
                return RowFailedError(str(error))
            limiter.n_retries += 1
            if pause is not None:
                await limiter.pause(pause, error.status)

    def _lowered(self, body: bytes) -> bytes:
        asked = self._predictor.top_logprobs
        if self._top_logprobs == asked:
            return body
        return body.replace(_TOP_LOGPROBS % asked, _TOP_LOGPROBS % self._top_logprobs)

    def _lowers_top_logprobs(self, error: HostError, body: bytes) -> bool:
        """Whether a request was refused for its number of alternatives, and can be sent again with fewer."""
        if _TOP_LOGPROBS % self._top_logprobs not in body:
            # Another request has learnt it while this one was under way.
            return lower_top_logprobs(str(error), self._predictor.top_logprobs) is not None
        lower = None
        if self._top_logprobs == self._predictor.top_logprobs:  # once
            lower = lower_top_logprobs(str(error), self._top_logprobs)
        if lower is None:
            return False
        logger.warning(
            "%s refuses top_logprobs=%d; asking for %d from now on (top_logprobs=%d says so beforehand)",
            self._predictor.model, self._top_logprobs, lower, lower,
        )  # fmt: skip
        self._top_logprobs = lower
        return True

    async def _enter(self, body: bytes) -> tuple[int, float]:
        """Wait for a place and for the money, which is set aside; raises BudgetError where no money will come."""
        era = await self._limiter.enter()
        n_tokens = self._max_tokens * (self._n if body.endswith(self._by_n) else 1)
        while (reserved := self._budget.reserve(body, n_tokens)) is None:
            self._limiter.rate.dropped()
            self._limiter.wake()
            if not self._budget.is_waiting:
                raise self._budget.error()
            await asyncio.sleep(0.01)
            era = await self._limiter.enter()
        return era, reserved

    def _error(self, reply: Reply) -> HostError:
        try:
            body = load_json(reply.content)
        except ValueError:
            body = {"message": reply.content[:200].decode("utf-8", "replace")}
        error = self._host.error(HttpFailure(reply, body if isinstance(body, Mapping) else {}), "ask")
        error.__cause__ = None  # the reply is in the message; a chain of our own making would only hide it
        return error


class ProgramRequester:
    """Asks any program: a dspy.Module by its acall, else in a thread. It makes its own requests and retries."""

    def __init__(self, program: Callable[..., Any], limiter: ConcurrencyLimiter) -> None:
        self._program = program
        self._limiter = limiter

    async def ask(self, row: InputRow) -> Outcome:
        """The row's outcome.

        Raises:
            HostError: No row would get an answer.
        """
        limiter = self._limiter
        n_failures, first_at = 0, limiter.timing.clock()
        while True:
            era = await limiter.enter()
            try:
                prediction = await ask_async(self._program, row.inputs)
                limiter.alive()
                limiter.rate.answered(era, {})
                return Outcome(status="answered", values=dict(prediction.items()), tokens=Tokens(n_requests=1))
            except PARSE_FAILURES as error:
                limiter.alive()
                limiter.rate.answered(era, {})
                return no_reading(error)
            except asyncio.CancelledError:
                limiter.rate.dropped()
                raise
            # A program may raise anything, and one row's error must not end a million others.
            except Exception as error:
                told = error if isinstance(error, HostError) else describe_failure(error, host="the program")
                if _is_hopeless(told):
                    limiter.rate.dropped()
                    raise told from error
                if told.status == 429:
                    limiter.rate.refused(era, {})
                elif told.retryable:
                    limiter.rate.failed(era)
                    n_failures += 1
                else:
                    limiter.rate.answered(era, {})
                    return Outcome(status="failed", error=f"{type(error).__name__}: {' '.join(str(error).split())}")
                last = told
            finally:
                limiter.wake()
            if limiter.has_lost_patience():
                raise last
            if limiter.gives_up(n_failures, first_at, is_away=last.status in (None, 429, *_AWAY_STATUSES)):
                return Outcome(status="failed", error=str(last))
            limiter.n_retries += 1
            await limiter.pause(backoff_seconds(n_failures, limiter.timing.generator), last.status)


def outcome_of(predictor: FinetunedPredictor, row: InputRow, results: Sequence[Any]) -> Outcome:
    """Read a row's completions as the predictor itself does; one RowFailedError among them fails the row.

    Raises:
        HostError: Log-probabilities were asked for and are not there, for any row.
    """
    completions = [one for one in results if not isinstance(one, RowFailedError)]
    failure = next((one for one in results if isinstance(one, RowFailedError)), None)
    tokens = sum(map(Tokens.of, completions), Tokens())
    if failure is not None:
        return Outcome(status="failed", error=str(failure), tokens=tokens)
    try:
        prediction = read_row(predictor, row.inputs, completions)
    except AnswerError as error:
        return no_reading(error, tokens)
    return Outcome(status="answered", values=dict(prediction.items()), tokens=tokens)


def load_completion(reply: Reply) -> Any | None:
    """The completion of a reply, or None where it is an error or no completion."""
    if reply.status != 200:
        return None
    try:
        body = load_json(reply.content)
        return body if is_completion(body) else None
    except ValueError:
        return None


def is_completion(body: Any) -> bool:
    """Whether a JSON value has the form of a chat completion."""
    choices = body.get("choices") if isinstance(body, dict) else None
    return isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)


async def gathered(asked: list[Any]) -> list[Any]:
    """All results; where one raises, the others are ended before it is raised."""
    tasks = [asyncio.ensure_future(one) for one in asked]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _is_hopeless(error: HostError) -> bool:
    return error.status in _HOPELESS_STATUSES or error.code in _HOPELESS_CODES or error.code == "model_not_found"


def _is_retryable(reply: Reply, error: HostError) -> bool:
    wish = reply.headers.get("x-should-retry")
    if wish in ("true", "false"):
        return wish == "true"
    # A 200 without a completion in it is a proxy's page or half an answer.
    return reply.status in RETRYABLE_STATUSES or reply.status >= 500 or reply.status == 200 or error.retryable
