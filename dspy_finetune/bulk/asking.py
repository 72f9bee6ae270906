"""asking.py: one row's question until it has an outcome, at the pace that the host allows, tried again where it helps.

In: an `InputRow`. Out: an `Outcome`. A row's own fault (400, an answer that cannot be read) is the row's outcome; a
fault that every row would meet (a wrong key, an unknown model, an empty account) ends the run with HostError; a host
that is silent is waited for, up to `patience_seconds`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dspy_finetune.bulk.progress import Budget
from dspy_finetune.bulk.rate_limit import Pace, backoff_seconds, retry_after_seconds
from dspy_finetune.bulk.reader import InputRow, Outcome, load_json, unread
from dspy_finetune.bulk.requests import HttpFailure, NoReplyError, Reply, Tokens, Transport, read_completions
from dspy_finetune.errors import AnswerError, HostError
from dspy_finetune.hosts.failures import RETRYABLE_STATUSES, describe_failure
from dspy_finetune.predictors.ask import UNREADABLE, ask_async
from dspy_finetune.predictors.base import FinetunedPredictor

_HOPELESS_STATUSES = frozenset({401, 402, 403, 404, 410})
_HOPELESS_CODES = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "account_deactivated", "invalid_api_key"}
)
_AWAY_STATUSES = frozenset({502, 503, 504})
"""The host may be gone for a while, which is no row's fault."""
_SUSPICIOUS = 50
"""So many failed rows before the first answer: something is wrong with all of them."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Clock, sleep and chance; tests bring their own."""

    clock: Callable[[], float] = time.monotonic
    """Seconds, from any start."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    """Waits so many seconds."""
    generator: random.Random = field(default_factory=random.Random)
    """For jitter."""


@dataclass(frozen=True, kw_only=True)
class Persistence:
    """When to try again, and when to stop."""

    max_retries: int = 5
    """Further tries of one request, refusals (429) not counted."""
    patience_seconds: float = 600.0
    """So long without a single answer, and the run ends."""


class Gate:
    """Lets requests leave at the pace's rate, and learns from how they end."""

    def __init__(self, pace: Pace, timing: Timing, persistence: Persistence) -> None:
        self.pace = pace
        self.timing = timing
        self.persistence = persistence
        self.n_retries = 0
        self.last_answer_at = timing.clock()
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> int:
        """Wait until a request may leave."""
        while (wait := self.pace.wait_seconds()) != 0.0:
            if wait is None:
                turn = asyncio.get_running_loop().create_future()
                self._waiting.append(turn)
                await turn
            else:
                await self.timing.sleep(wait)
        return self.pace.leave()

    def wake(self) -> None:
        """A request has ended: let as many go on as now may."""
        free = int(self.pace.limit) - self.pace.n_in_flight
        while free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1

    def alive(self) -> None:
        """The host has answered."""
        self.last_answer_at = self.timing.clock()

    def gives_up(self, n_failures: int, first_at: float, *, is_away: bool) -> bool:
        """Whether a row's next try is one too many: only where it is the row that fails, not the host that is gone."""
        is_host_up = self.last_answer_at > first_at or not is_away
        return n_failures > self.persistence.max_retries and is_host_up

    def has_lost_patience(self) -> bool:
        """Whether the host has been silent too long."""
        return self.timing.clock() - self.last_answer_at > self.persistence.patience_seconds


class RowFailedError(Exception):
    """The row has no answer, and no further try would get one."""


class WireAsker:
    """Asks for one of this library's predictors, straight over HTTP."""

    def __init__(self, predictor: FinetunedPredictor, transport: Transport, gate: Gate, budget: Budget) -> None:
        assert predictor.host is not None
        self._predictor = predictor
        self._host = predictor.host
        self._transport = transport
        self._gate = gate
        self._budget = budget
        self._max_tokens = predictor.max_tokens or predictor.prompt.max_tokens or predictor.default_max_tokens

    async def ask(self, row: InputRow) -> Outcome:
        """The row's outcome.

        Raises:
            HostError: No row would get an answer.
            BudgetError: The budget is spent.
        """
        if len(row.bodies) == 1:
            results = [await self._complete(row.bodies[0])]
        else:
            results = await gathered([self._complete(body) for body in row.bodies])
        failures = [one for one in results if isinstance(one, RowFailedError)]
        completions = [one for one in results if not isinstance(one, RowFailedError)]
        return outcome_of(self._predictor, row, completions, failures[0] if failures else None)

    async def _complete(self, body: bytes) -> Any:
        """The completion, or the RowFailedError that says why there is none: a pair's other order is still paid for."""
        gate = self._gate
        n_failures, first_at = 0, gate.timing.clock()
        while True:
            era, reserved = await self._enter(body)
            used: Tokens | None = None
            pause: float | None
            try:
                reply = await self._transport.post("/chat/completions", body)
                completion = load_completion(reply)
                if completion is not None:
                    used = Tokens.of(completion)
                    gate.alive()
                    gate.pace.answered(era, reply.headers, used.n_input + used.n_output)
                    return completion
                used = Tokens()  # what was refused is not billed
                error = self._error(reply)
                if _is_hopeless(error):
                    gate.pace.dropped()
                    raise error
                if reply.status == 429:
                    gate.pace.refused(era, reply.headers)
                    pause = None  # the gate waits for all
                elif not _is_retryable(reply, error):
                    gate.alive()
                    gate.pace.answered(era, reply.headers)
                    return RowFailedError(str(error))
                else:
                    gate.pace.failed(era)
                    n_failures += 1
                    told = retry_after_seconds(reply.headers)
                    pause = told if told is not None else backoff_seconds(n_failures, gate.timing.generator)
                is_away = reply.status in _AWAY_STATUSES or reply.status == 429
            except NoReplyError as failure:
                gate.pace.failed(era)
                n_failures += 1
                error = self._host.error(failure, "ask")
                pause, is_away = backoff_seconds(n_failures, gate.timing.generator), True
            except asyncio.CancelledError:
                gate.pace.dropped()
                raise
            finally:
                self._budget.settle(reserved, used)
                gate.wake()
            if gate.has_lost_patience():
                raise error
            if gate.gives_up(n_failures, first_at, is_away=is_away):
                return RowFailedError(str(error))
            gate.n_retries += 1
            if pause is not None:
                await gate.timing.sleep(pause)

    async def _enter(self, body: bytes) -> tuple[int, float]:
        """Wait for a place and for the money, which is set aside; raises BudgetError where no money will come."""
        era = await self._gate.enter()
        while (reserved := self._budget.reserve(body, self._max_tokens)) is None:
            self._gate.pace.dropped()
            self._gate.wake()
            if not self._budget.is_waiting:
                raise self._budget.error()
            await asyncio.sleep(0.01)
            era = await self._gate.enter()
        return era, reserved

    def _error(self, reply: Reply) -> HostError:
        try:
            body = load_json(reply.content)
        except ValueError:
            body = {"message": reply.content[:200].decode("utf-8", "replace")}
        error = self._host.error(HttpFailure(reply, body if isinstance(body, Mapping) else {}), "ask")
        error.__cause__ = None  # the reply is in the message; a chain of our own making would only hide it
        return error


class ProgramAsker:
    """Asks any program: a dspy.Module by its acall, else in a thread. It makes its own requests and retries."""

    def __init__(self, program: Callable[..., Any], gate: Gate) -> None:
        self._program = program
        self._gate = gate

    async def ask(self, row: InputRow) -> Outcome:
        """The row's outcome.

        Raises:
            HostError: No row would get an answer.
        """
        gate = self._gate
        n_failures, first_at = 0, gate.timing.clock()
        while True:
            era = await gate.enter()
            try:
                prediction = await ask_async(self._program, row.inputs)
                gate.alive()
                gate.pace.answered(era, {})
                return Outcome(status="answered", values=dict(prediction.items()), tokens=Tokens(n_requests=1))
            except UNREADABLE as error:
                gate.alive()
                gate.pace.answered(era, {})
                return unread(error, getattr(error, "lm_response", None))
            except asyncio.CancelledError:
                gate.pace.dropped()
                raise
            # A program may raise anything, and one row's error must not end a million others.
            except Exception as error:
                told = error if isinstance(error, HostError) else describe_failure(error, host="the program")
                if _is_hopeless(told):
                    gate.pace.dropped()
                    raise told from error
                if told.status == 429:
                    gate.pace.refused(era, {})
                elif told.retryable:
                    gate.pace.failed(era)
                    n_failures += 1
                else:
                    gate.pace.answered(era, {})
                    return Outcome(status="failed", error=f"{type(error).__name__}: {' '.join(str(error).split())}")
                last = told
            finally:
                gate.wake()
            if gate.has_lost_patience():
                raise last
            if gate.gives_up(n_failures, first_at, is_away=last.status in (None, 429, *_AWAY_STATUSES)):
                return Outcome(status="failed", error=str(last))
            gate.n_retries += 1
            await gate.timing.sleep(backoff_seconds(n_failures, gate.timing.generator))


class Suspicion:
    """Ends a run whose first rows all fail: the rest would, too."""

    def __init__(self) -> None:
        self._n_failed: int | None = 0

    def check(self, outcome: Outcome) -> None:
        """Take in an outcome; raises HostError at the fiftieth failure before any answer."""
        if outcome.status in ("answered", "unreadable"):
            self._n_failed = None
        elif outcome.status == "failed" and self._n_failed is not None:
            self._n_failed += 1
            if self._n_failed >= _SUSPICIOUS:
                raise HostError(
                    f"the first {_SUSPICIOUS} rows that were asked all failed, the last one so: {outcome.error}"
                )


def outcome_of(
    predictor: FinetunedPredictor,
    row: InputRow,
    completions: list[Any],
    failure: BaseException | None = None,
) -> Outcome:
    """Read a row's completions as the predictor itself does.

    Raises:
        HostError: Log-probabilities were asked for and are not there, for any row.
    """
    tokens = sum(map(Tokens.of, completions), Tokens())
    if failure is not None:
        return Outcome(status="failed", error=str(failure), tokens=tokens)
    try:
        prediction = read_completions(predictor, row.inputs, completions)
    except AnswerError as error:
        return Outcome(status="unreadable", error=str(error), answer_text=error.text, tokens=tokens)
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
