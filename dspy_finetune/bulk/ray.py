"""The same predictor over a Ray Dataset, so that scoring outgrows one machine.

In: a dataset with the prompt's input columns, a predictor. Out: the dataset with the answers' columns, `status`,
`error` and `answer_text`, computed when it is read. Each actor of a pool keeps its connections and learns its own
rate. Ray gives the rows of an actor that dies to another one, so none is lost or doubled; those under way are asked
again. Keys never travel with a predictor: the workers' environment must hold them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from dspy_finetune._optional import require
from dspy_finetune.bulk.rate_limit import (
    DEFAULT_RETRY,
    AdaptiveRateLimiter,
    Budget,
    ConcurrencyLimiter,
    Prices,
    RetryPolicy,
    Timing,
    host_name,
)
from dspy_finetune.bulk.reader import RESERVED, InputRow, Outcome, Rows, Tokens, load_json
from dspy_finetune.bulk.requests import HostRequester, ProgramRequester, Transport, is_wired, known_bodies
from dspy_finetune.errors import UsageError
from dspy_finetune.predictors.base import FinetunedPredictor


def predict(
    dataset: Any,
    predictor: FinetunedPredictor,
    *,
    n_actors: int = 2,
    batch_size: int = 256,
    concurrency: int = 32,
    keep: Literal["inputs", "all"] | Sequence[str] = "all",
    prefix: str = "",
    retry: RetryPolicy = DEFAULT_RETRY,
    **ray_options: Any,
) -> Any:
    """Give a Ray Dataset the columns of the predictor's answers.

    Args:
        dataset: With a column for each input of the prompt.
        predictor: One of this library's predictors.
        n_actors: Processes that ask.
        batch_size: Rows that an actor is given at a time, and that are asked again where it dies.
        concurrency: Maximum number of concurrent requests of one actor.
        keep: Columns that go along: "all", "inputs", or names.
        prefix: Put before the names of the prediction's fields.
        retry: See `bulk.predict`.
        **ray_options: For `Dataset.map_batches`, such as `num_cpus`.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: Another kind of program, or a column has the name of an answer's.
    """
    data = require("ray.data", "ray", "bulk.ray")
    if not isinstance(predictor, FinetunedPredictor):
        raise UsageError("bulk.ray takes a predictor of this library; map other programs with Dataset.map_batches")
    # Checked here, before a cluster is busy with it.
    Rows(predictor, [], keep=keep if keep != "all" else list(dataset.columns() or ()), prefix=prefix)
    return dataset.map_batches(
        Scorer,
        fn_constructor_kwargs={
            "predictor": predictor,
            "concurrency": concurrency,
            "keep": keep,
            "prefix": prefix,
            "policy": retry,
        },
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(size=n_actors),
        **ray_options,
    )


class Scorer:
    """An actor: answers a table of rows at a time."""

    def __init__(
        self,
        *,
        predictor: FinetunedPredictor,
        concurrency: int,
        keep: Literal["inputs", "all"] | Sequence[str],
        prefix: str,
        policy: RetryPolicy,
    ) -> None:
        self._predictor = predictor
        self._keep = keep
        self._prefix = prefix
        self._concurrency = concurrency
        self._loop = asyncio.new_event_loop()
        timing = Timing(generator=random.Random(time.time_ns()))
        rate = AdaptiveRateLimiter(most=concurrency, clock=timing.clock, generator=timing.generator)
        self._limiter = ConcurrencyLimiter(rate, timing, policy, host_name(predictor))
        self._requester: HostRequester | ProgramRequester = ProgramRequester(predictor, self._limiter)
        if is_wired(predictor):
            assert predictor.host is not None
            predictor.check_root()
            transport = Transport(predictor.host, max_connections=concurrency, timeout_seconds=policy.timeout_seconds)
            self._loop.run_until_complete(transport.__aenter__())  # it lives as long as the actor
            budget = Budget(None, Prices(predictor), Tokens())
            self._requester = HostRequester(predictor, transport, self._limiter, budget)

    def __call__(self, table: Any) -> Any:
        """The table with the answers' columns."""
        rows = Rows(
            self._predictor,
            table.to_pylist(),
            bodies=known_bodies(self._predictor),
            keep=self._keep,
            prefix=self._prefix,
        )
        return self._table(self._loop.run_until_complete(self._answer(rows)))

    async def _answer(self, rows: Rows) -> list[dict[str, Any]]:
        self._limiter.alive()  # the patience is for a host, not for the time between two tables
        source = iter(rows)
        found: dict[int, dict[str, Any]] = {}

        async def work() -> None:
            for row in source:
                found[row.index] = load_json(rows.output(row, await self._ask(row)))

        await asyncio.gather(*(work() for _ in range(self._concurrency)))
        return [found[index] for index in range(len(found))]

    async def _ask(self, row: InputRow) -> Outcome:
        if row.problem is not None:
            return Outcome(status="bad_row", error=row.problem)
        return await self._requester.ask(row)

    def _table(self, rows: list[dict[str, Any]]) -> Any:
        arrow = require("pyarrow", "ray", "bulk.ray")
        names = dict.fromkeys(name for row in rows for name in row)
        known = {f"{self._prefix}{name}": kind for name, kind in answer_types(arrow, self._predictor).items()}
        known |= dict.fromkeys(RESERVED, arrow.string())
        # The same types in each table: one in which a column is all null must fit the others.
        arrays = {name: arrow.array([row.get(name) for row in rows], type=known.get(name)) for name in names}
        for name, kind in known.items():
            arrays.setdefault(name, arrow.nulls(len(rows), type=kind))
        return arrow.table(arrays)


def answer_types(arrow: Any, predictor: FinetunedPredictor) -> dict[str, Any]:
    """The Arrow types of a predictor's answers, as far as its prompt tells."""
    plain = {bool: arrow.bool_(), int: arrow.int64(), float: arrow.float64(), str: arrow.string()}
    found: dict[str, Any] = {}
    for name, one in predictor.prompt.signature.output_fields.items():
        kind = one.annotation
        if get_origin(kind) is Literal:
            kinds = {type(value) for value in get_args(kind)}
            kind = kinds.pop() if len(kinds) == 1 else None
        if kind in plain:
            found[name] = plain[kind]
    labels = predictor.prompt.labels
    if labels is not None:
        keys = [str(getattr(value, "value", value)) for value in labels]
        keys = [key.lower() if key in ("True", "False") else key for key in keys]
        found["probabilities"] = arrow.struct([(key, arrow.float64()) for key in keys])
        found |= dict.fromkeys(("probability", "coverage"), arrow.float64())
    return found
