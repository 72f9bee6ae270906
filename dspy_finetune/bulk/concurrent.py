"""concurrent.py: `predict`: every row of a source asked, many at a time, into one file, across any number of crashes.

In: a program and rows. Out: one output row for each input row, in order. Memory does not grow with the rows: at most
`checkpoint.WINDOW` rows lie between the oldest one that has no answer and the newest one that has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dspy_finetune.bulk.asking import Persistence, Timing
from dspy_finetune.bulk.checkpoint import Checkpoint
from dspy_finetune.bulk.loop import in_thread, run_to_end
from dspy_finetune.bulk.output import OutputFormat, write_output
from dspy_finetune.bulk.progress import Progress
from dspy_finetune.bulk.result import BulkResult
from dspy_finetune.bulk.run import Run
from dspy_finetune.bulk.task import Task
from dspy_finetune.data.sources import Format
from dspy_finetune.errors import UsageError


def predict(
    predictor: Callable[..., Any],
    examples: Any,
    output: str | os.PathLike[str],
    *,
    inputs: Sequence[str] | None = None,
    keep: Literal["inputs", "all"] | Sequence[str] = "inputs",
    prefix: str = "",
    rename: Mapping[str, str] | None = None,
    format: Format | None = None,
    split: str | None = None,
    limit: int | None = None,
    output_format: OutputFormat | None = None,
    concurrency: int = 64,
    max_retries: int = 5,
    timeout_seconds: float = 120.0,
    patience_seconds: float = 600.0,
    max_usd: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    timing: Timing | None = None,
) -> BulkResult:
    """Ask a program about every row, and write every row with its answer or with the reason why there is none.

    The output holds, for each row of the input and in its order, the kept fields, the prediction's fields, and
    `status` ("answered", "unreadable", "failed", "bad_row"), `error` and `answer_text` (what the model said where that
    cannot be read). It appears under its name when it is complete. Until then every answer is kept in
    `OUTPUT.checkpoint`: the same call after a crash goes on where it was, and asks for no answered row again.

    A predictor of this library is asked over a lean HTTP path with the messages of its prompt, and read by its own
    code; DSPy's cache, history, callbacks and usage tracker do not see these calls. Any other program is called by its
    `acall`, or in threads.

    Args:
        predictor: Who is asked: a predictor, any `dspy.Module`, any callable that takes the input fields by name.
        examples: A path, a data frame, an iterable of rows: all that `iter_examples` takes.
        output: The file: .jsonl or .parquet (the extra `data`).
        inputs: The fields that the program is called with, where neither it nor the examples say so.
        keep: Fields of the input that go into the output: "inputs", "all", or names.
        prefix: Put before the names of the prediction's fields.
        rename: From the name in the source to the name wanted.
        format: Of the source, where its name does not tell.
        split: Of a data set with several.
        limit: Take the first so many rows.
        output_format: "jsonl" or "parquet", where the name does not tell.
        concurrency: The most requests under way. The number in force follows the host: it doubles from 8, halves at a
            429, and waits as the rate-limit headers and Retry-After say.
        max_retries: Further tries of a request that the host failed; refusals (429) are not counted.
        timeout_seconds: For one answer.
        patience_seconds: So long without a single answer, and the run ends with HostError.
        max_usd: The most to spend, earlier runs of this checkpoint among it.
        checkpoint: Where answers are kept until the output is complete.
        overwrite: Replace an output that is there already.
        on_progress: Called twice a second with the `Progress`.
        timing: Clock, sleep and chance.

    Raises:
        UsageError: An argument is wrong, the output exists, or the checkpoint belongs to another run.
        DataError: The input is not the one that was begun with.
        HostError: The host refuses every row, or is silent; what was answered is kept.
        BudgetError: max_usd is spent, or cannot be kept; what was answered is kept.
        FileError: A file cannot be read or written.
        MissingExtraError: Parquet without the extra `data`.
    """
    if concurrency < 1 or max_retries < 0 or timeout_seconds <= 0 or patience_seconds <= 0:
        raise UsageError(
            "concurrency must be at least 1, max_retries at least 0, timeout_seconds and patience_seconds above 0"
        )
    target = Path(output)
    kept_at = Path(checkpoint) if checkpoint is not None else target.with_name(f"{target.name}.checkpoint")
    task = Task.of(
        predictor, examples, target, kept_at=kept_at, inputs=inputs, keep=keep, prefix=prefix, rename=rename,
        format=format, split=split, limit=limit, output_format=output_format, overwrite=overwrite,
    )  # fmt: skip
    kept = Checkpoint(kept_at, task.described)
    one: Run | None = None
    try:
        one = Run(
            program=predictor,
            rows=task.rows,
            kept=kept,
            n_total=task.n_total,
            concurrency=concurrency,
            persistence=Persistence(max_retries=max_retries, patience_seconds=patience_seconds),
            timeout_seconds=timeout_seconds,
            max_usd=max_usd,
            on_progress=on_progress,
            timing=timing or Timing(),
        )
        started = time.monotonic()
        run_to_end(one.answer_all)
        write_output(target, task.format, lambda: (entry.row for entry in kept.in_order()))
        kept.remove()
        return one.result(target, time.monotonic() - started)
    except BaseException:
        if kept.is_new if one is None else not one.has_answers:
            kept.remove()  # nothing is lost with it, and a call that is put right must not be refused
        raise
    finally:
        kept.close()


apredict = in_thread(
    predict,
    name="apredict",
    doc="""`predict` where an event loop runs, with the same arguments: `await apredict(...)`.

    It works in a thread, so that the caller's loop stays free; `on_progress` is called there. Cancelled, it ends as
    after Ctrl-C: what was answered is kept, and the same call goes on from there.

    Raises:
        Exception: As `predict`.
    """,
)
