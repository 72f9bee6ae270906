"""batch_run.py: every part of a run sent as a batch, looked at and collected, across crashes, full queues and expiry.

In: a folder of requests and its journal: uploaded, creating, created, not_created, ended, collected, each written
before the next step. Out: the folder with the answers. At most one batch is under way for a part: a request to create
one whose fate is unknown is settled by the host's own list, where a batch carries its part's name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from dspy_finetune._files import atomic_writer
from dspy_finetune.bulk.batch_files import ENDPOINT, Part
from dspy_finetune.bulk.batch_folder import MAX_ATTEMPTS, BatchFolder
from dspy_finetune.bulk.batch_progress import BatchProgress
from dspy_finetune.bulk.progress import Prices, Progress
from dspy_finetune.errors import HostError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.failures import never_sent
from dspy_finetune.jobs.clock import Clock
from dspy_finetune.jobs.journal import Entry

logger = logging.getLogger(__name__)

FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
QUEUE_CODES = frozenset({"token_limit_exceeded", "request_limit_exceeded", "rate_limit_exceeded"})
"""Codes of a batch that failed because too much was waiting already."""
FULL_SECONDS = 60.0
"""The first pause after a full queue; it doubles up to 15 minutes."""
CLOCK_SKEW_SECONDS = 300.0
RUN_KEY, PART_KEY = "dspy_finetune_bulk", "dspy_finetune_part"


class BatchRun:
    """The batches of one run.

    Args:
        host: With a batch interface.
        folder: What is sent, and where answers go.
        prices: Of the predictor's tokens, for the progress.
        clock: Time.
        on_progress: Called after each look at all parts.
    """

    def __init__(
        self,
        host: Host,
        folder: BatchFolder,
        prices: Prices,
        clock: Clock,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._host = host
        self._folder = folder
        self._journal = folder.journal
        self._clock = clock
        self._on_progress = on_progress
        self._progress = BatchProgress(folder, prices, clock)
        self._full_until = 0.0
        self._full_pause = FULL_SECONDS
        self.n_retries = 0

    def finish(self, poll_seconds: float) -> None:
        """Bring every part to its answers.

        Raises:
            HostError: The host refuses, a batch is wrong, or somebody cancelled one.
            FileError: The folder cannot be written.
        """
        waiting = [part for part in self._folder.parts if part.n_requests]
        for part in waiting:
            if any(entry.event == "collected" for entry in self._journal.entries(part.name)):
                self._progress.collected(part, self._folder.answers(part), is_earlier=True)
        while waiting:
            waiting = [part for part in waiting if not self._advance(part)]
            if self._on_progress is not None:
                self._on_progress(self._progress.look(n_retries=self.n_retries))
            if waiting:
                self._clock.sleep(poll_seconds)

    def _advance(self, part: Part) -> bool:
        """Take a part's next step; True when it has its answers."""
        entries = self._journal.entries(part.name)
        last = entries[-1] if entries else None
        attempt = int(last.facts.get("attempt", 1)) if last is not None else 1
        if last is not None and last.event == "collected":
            missing = self._folder.missing(part)
            if not missing or attempt >= MAX_ATTEMPTS:
                return True
            attempt += 1
            self.n_retries += len(missing)
            last = None
        if last is not None and last.event == "creating":
            last = self._settle(part, last, attempt)
        if last is not None and last.event == "created":
            return self._look(part, attempt, str(last.facts["batch_id"]))
        if self._clock.now() >= self._full_until:
            self._submit(part, attempt, last)
        return False

    def _submit(self, part: Part, attempt: int, last: Entry | None) -> None:
        path = self._folder.requests(part, attempt)
        client = self._host.client(max_retries=0)
        if last is not None and last.facts.get("file_id") and last.facts.get("attempt") == attempt:
            file_id = str(last.facts["file_id"])
        else:
            with self._host.talking(f"upload {path.name}"), open(path, "rb") as stream:
                file_id = client.files.create(file=(path.name, stream), purpose="batch").id
            self._write(part, "uploaded", attempt=attempt, file_id=file_id)
        self._write(part, "creating", attempt=attempt, file_id=file_id)
        metadata = {RUN_KEY: self._folder.id, PART_KEY: self._name(part)}
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
                    is_named = metadata.get(RUN_KEY) == self._folder.id
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
        self._progress.heard(part, batch)
        if batch.status not in FINAL:
            return False
        for name, file_id in (("output", batch.output_file_id), ("errors", batch.error_file_id)):
            path = self._folder.answer_file(part, attempt, name)
            if file_id and not path.exists():
                with self._host.talking(f"download {file_id}"), atomic_writer(path) as stream:
                    for block in self._host.client().files.content(file_id).iter_bytes(1 << 20):
                        stream.write(block)
        if batch.status == "failed":
            self._failed(part, attempt, batch)
            return False
        self._write(part, "collected", attempt=attempt, batch_id=batch_id, status=batch.status)
        self._progress.collected(part, self._folder.answers(part))
        missing = self._folder.missing(part)
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

    def _name(self, part: Part) -> str:
        """The part and which of its requests to create a batch is the last one."""
        n_requests = sum(entry.event == "creating" for entry in self._journal.entries(part.name))
        return f"{part.name}.{n_requests}"

    def _write(self, part: Part, event: str, **facts: Any) -> Entry:
        return self._journal.append(part.name, event, at=self._clock.now(), **facts)
