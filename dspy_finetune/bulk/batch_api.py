"""batch_api.py: `predict` by a host's batch interface: half the price, within a day, at most one batch for each file.

In: a predictor and rows. Out: the same file that `bulk.predict` writes. What was cut, sent and answered stands in the
folder `OUTPUT.batch`, so that the same call goes on after any crash, on any day:

    run.json        what the run is, and its parts; written before anything is sent (batch_folder.py)
    rows.jsonl      a line for each row; part-0001.jsonl, ...: its requests (batch_files.py)
    journal.jsonl   what was sent, and what became of it (batch_run.py)

A batch that was refused because the queue is full waits until others have ended; what expired, or failed in a way that
may pass, goes into another batch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_finetune.bulk.batch_files import MAX_BYTES, MAX_REQUESTS
from dspy_finetune.bulk.batch_folder import BatchFolder
from dspy_finetune.bulk.batch_run import BatchRun
from dspy_finetune.bulk.output import write_output
from dspy_finetune.bulk.progress import Meter, Prices, Progress
from dspy_finetune.bulk.result import BulkResult
from dspy_finetune.bulk.task import RowOptions, Task
from dspy_finetune.bulk.tokens import Tokens
from dspy_finetune.errors import BudgetError, UsageError
from dspy_finetune.export.tokens import TokenCounter
from dspy_finetune.jobs.clock import SYSTEM_CLOCK, Clock
from dspy_finetune.jobs.journal import Journal
from dspy_finetune.predictors.base import FinetunedPredictor
from dspy_finetune.predictors.wire import is_wired

if TYPE_CHECKING:
    from typing_extensions import Unpack


def predict(
    predictor: FinetunedPredictor,
    examples: Any,
    output: str | os.PathLike[str],
    *,
    max_usd: float | None = None,
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
    poll_seconds: float = 30.0,
    on_progress: Callable[[Progress], None] | None = None,
    clock: Clock = SYSTEM_CLOCK,
    **options: Unpack[RowOptions],
) -> BulkResult:
    """Ask a predictor about every row by batches; see `bulk.predict` for what comes out.

    Args:
        predictor: One of this library's predictors, on a host with a batch interface.
        examples: See `bulk.predict`.
        output: The file.
        max_usd: Nothing is sent if the estimate, by the batch prices and with every answer as long as it may be, is
            above this.
        max_requests: Requests in one file.
        max_bytes: Bytes in one file.
        poll_seconds: Between two looks at the batches.
        on_progress: Called with the `Progress` after each look. The cost is that of the answers that are here.
        clock: Time; tests bring their own.
        **options: `keep`, `prefix`, `rename`, `format`, `split`, `limit`, `output_format`, `overwrite`: as in
            `bulk.predict`.

    Raises:
        UsageError: An argument is wrong, or the folder belongs to another run.
        DataError: The rows are not those that were sent.
        BudgetError: The estimate is above max_usd, or unknown.
        HostError: The host refuses; the same call goes on later.
    """
    if not is_wired(predictor):
        raise UsageError("batch_api takes a predictor of this library on its own host; use bulk.predict for others")
    assert predictor.host is not None
    target = Path(output)
    path = target.with_name(f"{target.name}.batch")
    started = time.monotonic()
    task = Task.of(predictor, examples, target, kept_at=path, **options)
    prices = Prices(predictor, is_batch=True)
    with Journal(path / "journal.jsonl").lock("run"):
        folder = BatchFolder(path, task, max_requests=max_requests, max_bytes=max_bytes)
        if max_usd is not None and not folder.journal.entries():
            _check_budget(predictor, folder, prices, max_usd)
        run = BatchRun(predictor.host, folder, prices, clock, on_progress)
        run.finish(poll_seconds)
        passes: list[Meter] = []  # Parquet reads the rows twice: the figures are those of the last pass

        def finished() -> Iterator[bytes]:
            meter = Meter(n_total=None, cost=prices.usd, clock=time.monotonic)
            passes.append(meter)
            for row, outcome in folder.outcomes(predictor):
                meter.count(outcome.status, outcome.tokens)
                yield task.rows.output(row, outcome)

        write_output(target, task.format, finished)
        folder.remove()
    return BulkResult.of(passes[-1], target, n_retries=run.n_retries, seconds=time.monotonic() - started)


def _check_budget(predictor: FinetunedPredictor, folder: BatchFolder, prices: Prices, max_usd: float) -> None:
    if prices.unknown is not None:
        raise BudgetError(f"max_usd={max_usd} cannot be kept: {prices.unknown}; leave max_usd out to go on without")
    counter = TokenCounter.for_model(predictor.model)
    n_input = n_output = 0
    for body in folder.bodies():
        # A token is a byte or more: where the model's tokens are unknown, bytes are the bound.
        n_input += len(json.dumps(body)) if counter is None else counter.messages(body["messages"])
        n_output += body["max_completion_tokens"]
    estimate = prices.usd(Tokens(n_input=n_input, n_output=n_output)) or 0.0
    if estimate > max_usd:
        raise BudgetError(
            f"the batches may cost ${estimate:.4f} ({n_input} input tokens, at most {n_output} output tokens), which "
            f"is above max_usd={max_usd}; nothing was sent"
        )
