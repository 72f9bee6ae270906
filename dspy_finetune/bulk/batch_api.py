"""batch_api.py: `predict` by a host's batch interface: half the price, within a day, at most one batch for each file.

In: a predictor and rows. Out: the same file that `bulk.predict` writes. What was cut, sent and answered stands in the
folder `OUTPUT.batch`, so that the same call goes on after any crash, on any day:

    run.json        what the run is, and its parts; written last, before anything is sent
    rows.jsonl      a line for each row; part-0001.jsonl, ...: its requests (batch_files.py)
    journal.jsonl   uploaded, creating, created, not_created, ended, collected: each written before the next step

A request to create a batch whose fate is unknown is settled by the host's own list, where a batch carries its part's
name. A batch that was refused because the queue is full waits until others have ended; what expired, or failed in a way
that may pass, goes into another batch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from dspy_finetune._files import atomic_writer, read_jsonl, write_json
from dspy_finetune.bulk.asking import RowFailedError, outcome_of
from dspy_finetune.bulk.batch_files import ENDPOINT, MAX_BYTES, MAX_REQUESTS, Answers, Part, custom_id, cut, saved_rows
from dspy_finetune.bulk.concurrent import describe
from dspy_finetune.bulk.output import OutputFormat, output_format, write_output
from dspy_finetune.bulk.progress import Meter, Prices, Progress
from dspy_finetune.bulk.result import BulkResult
from dspy_finetune.bulk.rows import Outcome, Rows, fingerprint
from dspy_finetune.bulk.tokens import Tokens
from dspy_finetune.data.sources import Format
from dspy_finetune.errors import BudgetError, HostError, UsageError
from dspy_finetune.export.tokens import TokenCounter
from dspy_finetune.hosts.failures import never_sent
from dspy_finetune.jobs.clock import Clock
from dspy_finetune.jobs.journal import Entry, Journal
from dspy_finetune.predictors.base import FinetunedPredictor
from dspy_finetune.predictors.wire import is_wired

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Batches for one part; those refused because the queue was full are not counted."""
FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
QUEUE_CODES = frozenset({"token_limit_exceeded", "request_limit_exceeded", "rate_limit_exceeded"})
"""Codes of a batch that failed because too much was waiting already."""
FULL_SECONDS = 60.0
"""The first pause after a full queue; it doubles up to 15 minutes."""
CLOCK_SKEW_SECONDS = 300.0
RUN_KEY, PART_KEY = "dspy_finetune_bulk", "dspy_finetune_part"


def predict(
    predictor: FinetunedPredictor,
    examples: Any,
    output: str | os.PathLike[str],
    *,
    keep: Literal["inputs", "all"] | Sequence[str] = "inputs",
    prefix: str = "",
    rename: Mapping[str, str] | None = None,
    format: Format | None = None,
    split: str | None = None,
    limit: int | None = None,
    output_format: OutputFormat | None = None,
    max_usd: float | None = None,
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
    poll_seconds: float = 30.0,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    clock: Clock | None = None,
) -> BulkResult:
    """Ask a predictor about every row by batches; see `bulk.predict` for what comes out and for the shared arguments.

    Args:
        predictor: One of this library's predictors, on a host with a batch interface.
        examples: See `bulk.predict`, as for the next seven.
        output: The file.
        keep: Fields for the output.
        prefix: Put before the prediction's fields.
        rename: Columns.
        format: Of the source.
        split: Of a data set.
        limit: The first so many rows.
        output_format: "jsonl" or "parquet".
        max_usd: Nothing is sent if the estimate, by the batch prices and with every answer as long as it may be, is
            above this.
        max_requests: Requests in one file.
        max_bytes: Bytes in one file.
        poll_seconds: Between two looks at the batches.
        overwrite: Replace an output that is there already.
        on_progress: Called after each look.
        clock: Time; tests bring their own.

    Raises:
        UsageError: An argument is wrong, or the folder belongs to another run.
        BudgetError: The estimate is above max_usd, or unknown.
        HostError: The host refuses; the same call goes on later.
    """
    if not is_wired(predictor):
        raise UsageError("batch_api takes a predictor of this library on its own host; use bulk.predict for others")
    target = Path(output)
    kind = _output_format(target, output_format)
    folder = target.with_name(f"{target.name}.batch")
    if target.exists() and not folder.exists() and not overwrite:
        raise UsageError(f"{target} is there already; choose another output, or overwrite=True replaces it")
    rows = Rows(predictor, examples, keep=keep, prefix=prefix, rename=rename, format=format, split=split, limit=limit)
    settings = {"keep": keep if isinstance(keep, str) else list(keep), "prefix": prefix, "rename": dict(rename or {})}
    described = {**describe(predictor), "input": fingerprint(examples).get("sha256"), "limit": limit}
    started = time.monotonic()
    journal = Journal(folder / "journal.jsonl")
    with journal.lock("run"):
        parts, run_id = _cut_once(folder, {**described, "settings": settings}, rows, max_requests, max_bytes)
        prices = Prices(predictor, is_batch=True)
        if max_usd is not None and not journal.entries():
            _check_budget(predictor, folder, parts, prices, max_usd)
        run = _Run(predictor, folder, parts, run_id, journal, clock or Clock(), prices, on_progress)
        run.finish(poll_seconds)
        passes: list[Meter] = []  # Parquet reads the rows twice: the figures are those of the last pass

        def finished() -> Iterator[bytes]:
            passes.append(Meter(n_total=None, cost=prices.usd, clock=time.monotonic))
            return run.output(rows, passes[-1])

        write_output(target, kind, finished)
        meter = passes[-1]
        shutil.rmtree(folder, ignore_errors=True)
    counts, tokens = meter.counts, meter.tokens
    return BulkResult(
        output=target,
        n_rows=sum(counts.values()),
        n_answered=counts["answered"],
        n_unreadable=counts["unreadable"],
        n_failed=counts["failed"],
        n_bad_rows=counts["bad_row"],
        n_reused=0,
        n_requests=tokens.n_requests,
        n_retries=run.n_retries,
        n_input_tokens=tokens.n_input,
        n_output_tokens=tokens.n_output,
        cost_usd=prices.usd(tokens),
        seconds=time.monotonic() - started,
    )


_output_format = output_format  # the argument of the same name hides it


class _Run:
    """The batches of one run."""

    def __init__(
        self,
        predictor: FinetunedPredictor,
        folder: Path,
        parts: Sequence[Part],
        run_id: str,
        journal: Journal,
        clock: Clock,
        prices: Prices,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        assert predictor.host is not None
        self._predictor = predictor
        self._host = predictor.host
        self._folder = folder
        self._parts = parts
        self._run_id = run_id
        self._journal = journal
        self._clock = clock
        self._prices = prices
        self._on_progress = on_progress
        self._full_until = 0.0
        self._full_pause = FULL_SECONDS
        self._n_answered: dict[str, int] = {}
        self.n_retries = 0

    def finish(self, poll_seconds: float) -> None:
        """Bring every part to its answers."""
        waiting = [part for part in self._parts if part.n_requests]
        while waiting:
            waiting = [part for part in waiting if not self._advance(part)]
            self._tell()
            if waiting:
                self._clock.sleep(poll_seconds)

    def output(self, rows: Rows, meter: Meter) -> Iterator[bytes]:
        """The output rows, in order."""
        saved = saved_rows(self._folder)
        for part in self._parts:
            answers = Answers(self._files(part))
            for _ in range(part.n_rows):
                row, n_requests = next(saved)
                if row.problem is not None:
                    outcome = Outcome(status="bad_row", error=row.problem)
                else:
                    found = [answers.completion(custom_id(row.index, number)) for number in range(n_requests)]
                    failures = [one for one in found if isinstance(one, RowFailedError)]
                    completions = [one for one in found if not isinstance(one, RowFailedError)]
                    outcome = outcome_of(self._predictor, row, completions, failures[0] if failures else None)
                meter.count(outcome.status, outcome.tokens)
                yield rows.output(row, outcome)

    # One part

    def _advance(self, part: Part) -> bool:
        """Take a part's next step; True when it has its answers."""
        entries = self._journal.entries(part.name)
        last = entries[-1] if entries else None
        attempt = int(last.facts.get("attempt", 1)) if last is not None else 1
        if last is not None and last.event == "collected":
            if not self._missing(part) or attempt >= MAX_ATTEMPTS:
                return True
            attempt += 1
            self.n_retries += len(self._missing(part))
            last = None
        if last is not None and last.event == "creating":
            last = self._settle(part, last, attempt)
        if last is not None and last.event == "created":
            return self._look(part, attempt, str(last.facts["batch_id"]))
        if self._clock.now() >= self._full_until:
            self._submit(part, attempt, last)
        return False

    def _submit(self, part: Part, attempt: int, last: Entry | None) -> None:
        path = self._requests(part, attempt)
        client = self._host.client(max_retries=0)
        if last is not None and last.facts.get("file_id") and last.facts.get("attempt") == attempt:
            file_id = str(last.facts["file_id"])
        else:
            with self._host.talking(f"upload {path.name}"), open(path, "rb") as stream:
                file_id = client.files.create(file=(path.name, stream), purpose="batch").id
            self._write(part, "uploaded", attempt=attempt, file_id=file_id)
        self._write(part, "creating", attempt=attempt, file_id=file_id)
        metadata = {RUN_KEY: self._run_id, PART_KEY: self._name(part)}
        try:
            with self._host.talking("create a batch"):
                batch = client.batches.create(
                    input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata=metadata
                )
        except HostError as error:
            is_answer = error.status is not None and error.status < 500
            if is_answer or (error.__cause__ is not None and never_sent(error.__cause__)):
                self._write(part, "not_created", attempt=attempt, file_id=file_id, why=str(error))
            if error.status == 429 and error.code != "insufficient_quota":
                self._wait_for_the_queue()
                return
            if is_answer or not error.retryable:
                raise
            return  # the list of batches will tell what became of it
        self._write(part, "created", attempt=attempt, file_id=file_id, batch_id=batch.id)

    def _settle(self, part: Part, creating: Entry, attempt: int) -> Entry:
        """What became of a request to create a batch whose answer was lost: the host's list tells."""
        file_id = creating.facts.get("file_id")
        while True:
            with self._host.talking("list the batches"):
                for number, batch in enumerate(self._host.client().batches.list(limit=100)):
                    if number >= 1000 or (batch.created_at or 0) < creating.at - CLOCK_SKEW_SECONDS:
                        break
                    metadata = batch.metadata or {}
                    is_named = metadata.get(RUN_KEY) == self._run_id
                    if is_named and metadata.get(PART_KEY) == self._name(part):
                        return self._write(part, "created", attempt=attempt, file_id=file_id, batch_id=batch.id)
            if self._clock.now() >= creating.at + self._host.kind.listing_lag_seconds:
                return self._write(part, "not_created", attempt=attempt, file_id=file_id, why="not listed")
            self._clock.sleep(1.0)

    def _look(self, part: Part, attempt: int, batch_id: str) -> bool:
        try:
            with self._host.talking(f"ask for the batch {batch_id}"):
                batch = self._host.client().batches.retrieve(batch_id)
        except HostError as error:
            if not error.retryable:
                raise
            logger.warning("%s", error)  # the next look may succeed
            return False
        counts = batch.request_counts
        self._n_answered[part.name] = (counts.completed + counts.failed) if counts is not None else 0
        if batch.status not in FINAL:
            return False
        for name, file_id in (("output", batch.output_file_id), ("errors", batch.error_file_id)):
            path = self._folder / f"{part.name}.{attempt}.{name}.jsonl"
            if file_id and not path.exists():
                with self._host.talking(f"download {file_id}"), atomic_writer(path) as stream:
                    for block in self._host.client().files.content(file_id).iter_bytes(1 << 20):
                        stream.write(block)
        if batch.status == "failed":
            self._failed(part, attempt, batch)
            return False
        self._write(part, "collected", attempt=attempt, batch_id=batch_id, status=batch.status)
        missing = self._missing(part)
        if missing and batch.status == "cancelled":
            raise HostError(
                f"the batch {batch_id} was cancelled; {len(missing)} requests have no answer: run again to send them"
            )
        return not missing or attempt >= MAX_ATTEMPTS

    def _failed(self, part: Part, attempt: int, batch: Any) -> None:
        errors = list(batch.errors.data or []) if batch.errors is not None else []
        codes = {error.code for error in errors}
        why = "; ".join(f"line {one.line}: {one.message}" if one.line else str(one.message) for one in errors[:3])
        self._write(part, "not_created", attempt=attempt, why=why)
        if codes & QUEUE_CODES:
            self._wait_for_the_queue()
            return
        raise HostError(f"{self._host.name}: the batch {batch.id} failed: {why or 'no reason given'}")

    def _wait_for_the_queue(self) -> None:
        self._full_until = self._clock.now() + self._full_pause
        logger.warning("the host's queue is full; trying again in %.0f s", self._full_pause)
        self._full_pause = min(self._full_pause * 2, 900.0)

    def _requests(self, part: Part, attempt: int) -> Path:
        """The file of an attempt: the part itself, or those of its requests that have no answer yet."""
        first = self._folder / f"{part.name}.jsonl"
        path = self._folder / f"{part.name}.{attempt}.jsonl"
        if attempt == 1 or path.exists():
            return first if attempt == 1 else path
        missing = self._missing(part)
        with open(first, "rb") as source, atomic_writer(path) as target:
            for line in source:
                if json.loads(line)["custom_id"] in missing:
                    target.write(line)
        return path

    def _missing(self, part: Part) -> set[str]:
        answers = Answers(self._files(part))
        asked = (row["custom_id"] for _, row in read_jsonl(self._folder / f"{part.name}.jsonl"))
        return {identity for identity in asked if identity not in answers or identity in answers.retryable}

    def _files(self, part: Part) -> list[Path]:
        names = [
            f"{part.name}.{attempt}.{kind}.jsonl"
            for attempt in range(1, MAX_ATTEMPTS + 1)
            for kind in ("errors", "output")
        ]
        return [path for name in names if (path := self._folder / name).exists()]

    def _name(self, part: Part) -> str:
        """The part and which of its requests to create a batch is the last one."""
        n_requests = sum(entry.event == "creating" for entry in self._journal.entries(part.name))
        return f"{part.name}.{n_requests}"

    def _write(self, part: Part, event: str, **facts: Any) -> Entry:
        return self._journal.append(part.name, event, at=self._clock.now(), **facts)

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        n_requests = sum(part.n_requests for part in self._parts)
        n_rows = sum(part.n_rows for part in self._parts)
        n_answered = min(sum(self._n_answered.values()), n_requests)
        self._on_progress(
            Progress(
                n_done=n_rows * n_answered // n_requests if n_requests else n_rows,
                n_total=n_rows,
                n_errors=0,
                n_reused=0,
                rows_per_second=None,
                eta_seconds=None,
                cost_usd=None,
                n_in_flight=n_requests - n_answered,
                concurrency=n_requests,
                n_retries=self.n_retries,
            )
        )


def _cut_once(
    folder: Path, described: Mapping[str, Any], rows: Rows, max_requests: int, max_bytes: int
) -> tuple[list[Part], str]:
    """The parts and the run's name: those of `run.json`, else cut now. Nothing is sent before it is written."""
    path = folder / "run.json"
    described = json.loads(json.dumps(described))
    with contextlib.suppress(FileNotFoundError):
        found = json.loads(path.read_bytes())
        for name, value in described.items():
            if found["run"].get(name) != value:
                raise UsageError(
                    f"{folder} holds another run: its {name} differs; finish that one, choose another output, or "
                    "remove the folder to start afresh"
                )
        return [Part(**part) for part in found["parts"]], found["id"]
    parts = cut(rows, folder, max_requests=max_requests, max_bytes=max_bytes)
    run_id = uuid.uuid4().hex
    write_json(path, {"id": run_id, "run": described, "parts": [asdict(part) for part in parts]})
    return parts, run_id


def _check_budget(
    predictor: FinetunedPredictor, folder: Path, parts: Sequence[Part], prices: Prices, max_usd: float
) -> None:
    if prices.unknown is not None:
        raise BudgetError(f"max_usd={max_usd} cannot be kept: {prices.unknown}; leave max_usd out to go on without")
    counter = TokenCounter.for_model(predictor.model)
    n_input = n_output = 0
    for part in parts:
        for _, request in read_jsonl(folder / f"{part.name}.jsonl"):
            body = request["body"]
            # A token is a byte or more: where the model's tokens are unknown, bytes are the bound.
            n_input += len(json.dumps(body)) if counter is None else counter.messages(body["messages"])
            n_output += body["max_completion_tokens"]
    estimate = prices.usd(Tokens(n_input=n_input, n_output=n_output)) or 0.0
    if estimate > max_usd:
        raise BudgetError(
            f"the batches may cost ${estimate:.4f} ({n_input} input tokens, at most {n_output} output tokens), which "
            f"is above max_usd={max_usd}; nothing was sent"
        )
