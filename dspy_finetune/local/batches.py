"""Batches: a file of requests answered in the background, and their records, whole after a kill -9 at any moment.

    root/batches/<batch id>/    batch.json (written by the server alone), output.jsonl and errors.jsonl (appended)

In: uploaded files of purpose `batch`. Out: batch objects in OpenAI's shape, and files of purpose `batch_output`. One
batch is answered at a time, several requests of it at once, by the code that answers a chat. After a crash the lines
that are whole count, and the other requests are answered again; files of results have ids derived from the batch's.
A request that fails is its own error line; a batch that cannot go on fails, and the next one is answered.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from dspy_finetune._files import AppendLog, write_json
from dspy_finetune.errors import RowError
from dspy_finetune.local.scheduler import Supervised
from dspy_finetune.local.schemas import ApiError, Body, ExpiresAfter, Metadata, Name, read_rows
from dspy_finetune.local.store import Store, derived_id, new_id, next_sequence, will_pass

logger = logging.getLogger(__name__)

MAX_REQUESTS = 50_000
"""As OpenAI's."""
AT_ONCE = 16
"""Requests that the engine is given at the same time; it answers them together where it can."""
WINDOW_SECONDS = 24 * 3600
STOP_SECONDS = 5.0
"""How long the requests in work may take to be given up; they are answered at the next start."""
FINAL = frozenset({"failed", "completed", "expired", "cancelled"})

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
Complete = Callable[[Any], Awaitable[dict[str, Any]]]
"""Answers one request, given its body; raises ApiError where it cannot."""


class CreateBatch(Body):
    """The body of POST /batches."""

    input_file_id: Name
    endpoint: Name
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchRecord(BaseModel):
    """A batch on the disk, in OpenAI's fields."""

    id: str
    sequence: int
    """Nanoseconds of creation: the order of the queue, where seconds tie."""
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    metadata: dict[str, str] | None = None
    output_expires_after_seconds: int | None = None
    errors: list[dict[str, Any]] = []
    output_file_id: str | None = None
    error_file_id: str | None = None
    n_total: int = 0
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    def wire(self, n_completed: int, n_failed: int) -> dict[str, Any]:
        """OpenAI's batch object."""
        facts = self.model_dump(exclude={"sequence", "n_total", "errors", "output_expires_after_seconds"})
        errors = {"object": "list", "data": self.errors} if self.errors else None
        counts = {"total": self.n_total, "completed": n_completed, "failed": n_failed}
        return {**facts, "object": "batch", "errors": errors, "request_counts": counts}


class Batches:
    """The batches of a store, and the thread that answers them."""

    def __init__(self, store: Store, endpoints: Mapping[str, Complete]) -> None:
        self.store = store
        self.folder = store.root / "batches"
        self.endpoints = endpoints
        """What answers the requests of each endpoint, such as `/v1/chat/completions`."""
        self.thread = Supervised(self.tick, name="batches")
        self._records: dict[str, BatchRecord] = {}
        self._counts: dict[str, tuple[int, int]] = {}
        self._lock = threading.RLock()
        for record in store.records(BatchRecord, self.folder, "batch.json"):
            self._records[record.id] = record
            folder = self.folder / record.id
            self._counts[record.id] = (
                len(_finished(folder / "output.jsonl")),
                len(_finished(folder / "errors.jsonl")),
            )

    def start(self) -> None:
        """Go on with what an earlier server left, and begin."""
        self.thread.start()

    def close(self) -> None:
        """Stop; what is not finished goes on at the next start."""
        self.thread.close(timeout_seconds=STOP_SECONDS)

    # What clients ask for

    def create(self, body: CreateBatch) -> dict[str, Any]:
        """Put a batch into the queue."""
        if body.endpoint not in self.endpoints:
            message = f"'{body.endpoint}' is not one of {list(self.endpoints)} - 'endpoint'"
            raise ApiError(400, message, param="endpoint", code="invalid_value")
        if self.store.file(body.input_file_id, param="input_file_id").purpose != "batch":
            raise ApiError(400, f"File {body.input_file_id} has another purpose than batch.", param="input_file_id")
        now = time.time()
        with self._lock:
            sequence = next_sequence(other.sequence for other in self._records.values())
        record = BatchRecord(
            id=new_id("batch_"),
            sequence=sequence,
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            completion_window=body.completion_window,
            metadata=body.metadata,
            output_expires_after_seconds=body.output_expires_after.seconds if body.output_expires_after else None,
            created_at=int(now),
            expires_at=int(now) + WINDOW_SECONDS,
        )
        self._save(record)
        return self.wire(record)

    def retrieve(self, batch_id: str) -> dict[str, Any]:
        """One batch, or a 404."""
        return self.wire(self._record(batch_id))

    def all(self) -> list[dict[str, Any]]:
        """All batches, newest first."""
        with self._lock:
            records = sorted(self._records.values(), key=lambda record: -record.sequence)
        return [self.wire(record) for record in records]

    def cancel(self, batch_id: str) -> dict[str, Any]:
        """Ask a batch to end; what is answered by then is kept."""
        with self._lock:
            record = self._record(batch_id)
            if record.status in FINAL:
                raise ApiError(400, f"Cannot cancel a batch with status '{record.status}'.", code="invalid_status")
            return self.wire(self._update(record.id, status="cancelling", cancelling_at=int(time.time())))

    def wire(self, record: BatchRecord) -> dict[str, Any]:
        """The object that clients see."""
        return record.wire(*self._counts.get(record.id, (0, 0)))

    # The thread

    def tick(self) -> None:
        """Move every batch that can move."""
        with self._lock:
            waiting = [record for record in self._records.values() if record.status not in FINAL]
        for record in sorted(waiting, key=lambda record: record.sequence):
            try:
                self._advance(self._record(record.id))
            except Exception as error:
                if will_pass(error):
                    raise  # nothing is lost: the next round tries again
                logger.exception("batch %s failed", record.id)
                message = error.message if isinstance(error, ApiError) else f"{type(error).__name__}: {error}"
                fault = {"code": "server_error", "line": None, "message": message[:500], "param": None}
                self._update(record.id, status="failed", errors=[fault], failed_at=int(time.time()))

    def _advance(self, record: BatchRecord) -> None:
        if record.status == "validating":
            errors, n_total = self._check(record)
            with self._lock:
                if self._record(record.id).status != "validating":
                    return
                now = int(time.time())
                if errors:
                    self._update(record.id, status="failed", errors=errors, failed_at=now)
                    return
                record = self._update(record.id, status="in_progress", n_total=n_total, in_progress_at=now)
        if record.status == "in_progress":
            asyncio.run(self._answer(record))
        self._finish(record.id)

    def _check(self, record: BatchRecord) -> tuple[list[dict[str, Any]], int]:
        errors: list[dict[str, Any]] = []
        seen: set[str] = set()
        models: set[str] = set()
        n_total = 0

        def add(line: int | None, code: str, message: str) -> None:
            errors.append({"code": code, "line": line, "message": message, "param": None})

        try:
            for line, row in self._requests(record):
                n_total += 1
                custom_id, body = row.get("custom_id"), row.get("body")
                if not isinstance(custom_id, str) or not custom_id:
                    add(line, "invalid_custom_id", "Each request needs a custom_id of its own.")
                elif custom_id in seen:
                    add(line, "duplicate_custom_id", f"The custom_id for this request is a duplicate: {custom_id}.")
                elif row.get("method") != "POST" or row.get("url") != record.endpoint:
                    add(line, "mismatched_endpoint", f"The request must be a POST to {record.endpoint}.")
                elif not isinstance(body, dict):
                    add(line, "invalid_body", "The request has no body.")
                else:
                    models.add(str(body.get("model"))[:200])
                seen.add(str(custom_id))
        except RowError as error:
            add(error.line, "invalid_json_line", error.problem)
        except ApiError as error:
            add(None, "invalid_file", error.message)
        if not n_total and not errors:
            add(None, "empty_file", "The input file holds no requests.")
        if n_total > MAX_REQUESTS:
            add(None, "too_many_tasks", f"The file holds {n_total} requests; the limit is {MAX_REQUESTS}.")
        if len(models) > 1:
            add(None, "mismatched_model", f"A batch is for one model; found {', '.join(sorted(models))}.")
        return errors[:100], n_total

    def _requests(self, record: BatchRecord) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from read_rows(self.store.content(record.input_file_id))

    async def _answer(self, record: BatchRecord) -> None:
        """Answer all requests that have no line yet, until done, cancelled, expired or closed."""
        folder = self.folder / record.id
        done = _finished(folder / "output.jsonl") | _finished(folder / "errors.jsonl")
        running: set[asyncio.Task[None]] = set()

        def is_wanted() -> bool:
            current = self._record(record.id)
            is_current = current.status == "in_progress" and time.time() < current.expires_at
            return is_current and not self.thread.closing.is_set()

        try:
            for _, row in self._requests(record):
                if row["custom_id"] in done:
                    continue
                while len(running) >= AT_ONCE and is_wanted():
                    ended, running = await asyncio.wait(
                        running, timeout=self.thread.tick_seconds, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in ended:
                        task.result()
                if not is_wanted():
                    break
                running.add(asyncio.ensure_future(self._one(record, row)))
            while running and is_wanted():
                ended, running = await asyncio.wait(running, timeout=self.thread.tick_seconds)
                for task in ended:
                    task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _one(self, record: BatchRecord, row: dict[str, Any]) -> None:
        try:
            status, answer = 200, await self.endpoints[record.endpoint](row["body"])
        except ApiError as error:
            status, answer = error.status, error.body()
        except Exception as error:  # one request's fault is its own
            logger.exception("a request of batch %s failed", record.id)
            fault = ApiError(500, f"{type(error).__name__} while answering; see the server's log", kind="server_error")
            status, answer = 500, fault.body()
        if status >= 500 and self.thread.closing.is_set():
            return  # the server stops: the request is answered after the next start
        response = {"status_code": status, "request_id": new_id("req_"), "body": answer}
        line = {"id": new_id("batch_req_"), "custom_id": row["custom_id"], "response": response, "error": None}
        self._append(record.id, is_error=status != 200, line=line)

    def _append(self, batch_id: str, *, is_error: bool, line: dict[str, Any]) -> None:
        path = self.folder / batch_id / ("errors.jsonl" if is_error else "output.jsonl")
        AppendLog(path).append(line, sync=False)
        with self._lock:
            n_completed, n_failed = self._counts.get(batch_id, (0, 0))
            self._counts[batch_id] = (n_completed + (not is_error), n_failed + is_error)

    def _finish(self, batch_id: str) -> None:
        """Publish the files, then the record; after a crash in between it is all done again."""
        record = self._record(batch_id)
        folder = self.folder / record.id
        names = ("output", "errors")
        done = set().union(*(_finished(folder / f"{name}.jsonl") for name in names))
        is_expired = record.status == "in_progress" and time.time() >= record.expires_at
        if record.status == "in_progress" and not is_expired and len(done) < record.n_total:
            return  # the server is closing
        if is_expired:
            missing = [row["custom_id"] for _, row in self._requests(record) if row["custom_id"] not in done]
            error = {"code": "batch_expired", "message": "This request could not be executed before the batch expired."}
            for custom_id in missing:
                line = {"id": new_id("batch_req_"), "custom_id": custom_id, "response": None, "error": error}
                self._append(record.id, is_error=True, line=line)
        files: dict[str, str | None] = {}
        for name, field in zip(names, ("output_file_id", "error_file_id"), strict=True):
            path = folder / f"{name}.jsonl"
            if _finished(path):
                files[field] = derived_id("file-", record.id, name)
                with open(path, "rb") as stream:
                    filename = f"{record.id}_{name}.jsonl"
                    seconds = record.output_expires_after_seconds
                    self.store.add_file(
                        stream, filename, "batch_output", file_id=files[field], expires_after_seconds=seconds
                    )
        now = int(time.time())
        with self._lock:
            if self._record(record.id).status == "cancelling":
                self._update(record.id, status="cancelled", cancelled_at=now, **files)
            elif is_expired:
                self._update(record.id, status="expired", expired_at=now, **files)
            else:
                self._update(record.id, status="completed", finalizing_at=now, completed_at=now, **files)

    # Records

    def _record(self, batch_id: str) -> BatchRecord:
        with self._lock:
            record = self._records.get(batch_id)
        if record is None:
            raise ApiError(404, f"No batch found with id '{batch_id}'.", param="batch_id")
        return record

    def _save(self, record: BatchRecord) -> None:
        with self._lock:
            write_json(self.folder / record.id / "batch.json", record.model_dump())
            self._records[record.id] = record

    def _update(self, batch_id: str, **changes: Any) -> BatchRecord:
        record = self._record(batch_id).model_copy(update=changes)
        self._save(record)
        return record


def _finished(path: Path) -> set[str]:
    """The custom ids of the whole lines of a file; a line torn by a crash is cut off."""
    if not path.exists():
        return set()
    log = AppendLog(path)
    log.append()
    # A damaged line stays, and its request is answered again.
    return {
        row["custom_id"] for _, row in log.rows() if isinstance(row, dict) and isinstance(row.get("custom_id"), str)
    }
