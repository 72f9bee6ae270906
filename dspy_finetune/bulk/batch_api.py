"""`predict` by a host's batch interface: half the price, within a day, at most one batch for each file.

In: a predictor and rows. Out: the same file that `bulk.predict` writes. What was cut, sent and answered stands in the
folder `OUTPUT.batch`, so that the same call goes on after any crash, on any day:

    run.json        what the run is, and its parts; written before anything is sent
    rows.jsonl      a line for each row; part-0001.jsonl, ...: its requests
    journal.jsonl   what was sent, and what became of it

A batch that was refused because the queue is full waits until others have ended; what expired, or failed in a way that
may pass, goes into another batch, and so does what was refused for its number of alternatives (`top_logprobs`), with
the number that the host's own error asks for.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from dspy_finetune._files import atomic_writer, read_json, write_json
from dspy_finetune._jsonl import read_jsonl
from dspy_finetune.bulk.rate_limit import Prices
from dspy_finetune.bulk.reader import (
    DEFAULT_FILES,
    FileOptions,
    InputRow,
    Outcome,
    Rows,
    Tokens,
    dump_json,
    write_output,
)
from dspy_finetune.bulk.requests import RowFailedError, is_completion, is_wired, outcome_of
from dspy_finetune.bulk.run import BulkProgress, BulkResult, Meter, Task
from dspy_finetune.errors import BudgetError, DataError, FileError, HostError, UsageError
from dspy_finetune.export.tokens import TokenCounter
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.failures import RETRYABLE_STATUSES, never_sent
from dspy_finetune.hosts.protocol import pages, present, whole
from dspy_finetune.hosts.protocol import part as part_of
from dspy_finetune.jobs.records import CLOCK, Entry, Journal
from dspy_finetune.predictors.base import FinetunedPredictor, lower_top_logprobs

logger = logging.getLogger(__name__)

MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
"""Of one file, as OpenAI's guide has them."""
ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """The size of a file of requests, and how often the host is asked what became of it."""

    max_requests: int = MAX_REQUESTS
    """Requests in one file."""
    max_bytes: int = MAX_BYTES
    """Bytes in one file."""
    poll_seconds: float = 30.0
    """Between two looks at the batches."""


DEFAULT_LIMITS = BatchLimits()


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of requests."""

    name: str
    """part-0001, ..."""
    n_rows: int
    """Rows of the input that it covers, bad ones among them."""
    n_requests: int
    """Its lines."""
    n_bytes: int
    """Its size; 0 where there is nothing to ask."""


def cut(rows: Iterable[InputRow], folder: Path, limits: BatchLimits) -> list[Part]:
    """Write `rows.jsonl` and the parts; a row's requests stand in one of them. Raises FileError."""
    parts: list[Part] = []
    stream = iter(rows)
    row = next(stream, None)
    with atomic_writer(folder / "rows.jsonl") as kept:
        while row is not None:
            name = f"part-{len(parts) + 1:04d}"
            n_rows = n_requests = n_bytes = 0
            with atomic_writer(folder / f"{name}.jsonl") as target:
                while row is not None:
                    lines = [request_line(custom_id(row.index, number), body) for number, body in enumerate(row.bodies)]
                    size = sum(map(len, lines))
                    is_full = n_requests + len(lines) > limits.max_requests or n_bytes + size > limits.max_bytes
                    if n_rows and is_full:
                        break
                    target.writelines(lines)
                    kept.write(_row_line(row))
                    n_rows, n_requests, n_bytes = n_rows + 1, n_requests + len(lines), n_bytes + size
                    row = next(stream, None)
            parts.append(Part(name=name, n_rows=n_rows, n_requests=n_requests, n_bytes=n_bytes))
    return parts


def saved_rows(folder: Path) -> Iterator[tuple[InputRow, int]]:
    """The rows of `rows.jsonl`, each with the number of its requests."""
    for _, saved in read_jsonl(folder / "rows.jsonl"):
        n_requests = saved.pop("n_requests")
        yield InputRow(**saved, bodies=()), n_requests


def custom_id(index: int, number: int) -> str:
    """What joins a request and its answer."""
    return f"row-{index}-{number}"


def request_line(identity: str, body: bytes) -> bytes:
    """One line of a request file; the body goes in as it is."""
    head = f'{{"custom_id":"{identity}","method":"POST","url":"{ENDPOINT}","body":'
    return head.encode("ascii") + body + b"}\n"


class Answers:
    """The answers of one part, in files in the order of the attempts: a later answer replaces an earlier failure.

    Only their places are held in memory, never the answers.

    Args:
        files: The answers.
        top_logprobs: How many alternatives were asked for; 0 for none.
    """

    def __init__(self, files: Sequence[Path], top_logprobs: int = 0) -> None:
        self._files = files
        self._top_logprobs = top_logprobs
        self.lowered: set[int] = set()
        """How many alternatives the host's refusals ask for instead."""
        self._places: dict[str, tuple[int, int]] = {}
        self._failed: set[str] = set()
        self.retryable: set[str] = set()
        """Requests whose failure may pass."""
        self.tokens = Tokens()
        """What the host counted for all of them."""
        for number, path in enumerate(files):
            place = 0
            with open(path, "rb") as stream:
                for line in stream:
                    if line.strip():
                        self._take_in(line, number, place)
                    place += len(line)

    def _take_in(self, line: bytes, number: int, place: int) -> None:
        try:
            answer = json.loads(line)
            identity = answer["custom_id"]
        except (ValueError, KeyError, TypeError):
            # Whose answer it was cannot be told: that request has none, and is asked again.
            logger.warning("%s: byte %d begins no answer; passed over", self._files[number], place)
            return
        self._places[identity] = (number, place)
        self.retryable.discard(identity)
        self._failed.discard(identity)
        body = (answer.get("response") or {}).get("body")
        if body is not None and is_completion(body):
            self.tokens += Tokens.of(body)
        else:
            self._failed.add(identity)
        if _is_passing(answer) or self._is_for_alternatives(answer):
            self.retryable.add(identity)

    def _is_for_alternatives(self, answer: Mapping[str, Any]) -> bool:
        response = answer.get("response") or {}
        if response.get("status_code") not in (400, 422):
            return False
        lower = lower_top_logprobs(_refusal(answer), self._top_logprobs)
        self.lowered |= set() if lower is None else {lower}
        return lower is not None

    def __len__(self) -> int:
        return len(self._places)

    @property
    def n_failed(self) -> int:
        """Answers that are failures."""
        return len(self._failed)

    def __contains__(self, identity: object) -> bool:
        return identity in self._places

    def completion(self, identity: str) -> Any:
        """The completion, or the RowFailedError that says why there is none."""
        found = self._places.get(identity)
        if found is None:
            return RowFailedError("the batch holds no answer to this request")
        with open(self._files[found[0]], "rb") as stream:
            stream.seek(found[1])
            answer = json.loads(stream.readline())
        response = answer.get("response") or {}
        body = response.get("body")
        if response.get("status_code") == 200 and is_completion(body):
            return body
        message = _refusal(answer)
        return RowFailedError(f"HTTP {response.get('status_code')}: {message}" if response else message)


def _refusal(answer: Mapping[str, Any]) -> str:
    """The host's own words of why a request has no completion."""
    body = (answer.get("response") or {}).get("body")
    error = answer.get("error") or (body.get("error") if isinstance(body, Mapping) else None) or {}
    return str(error.get("message") if isinstance(error, Mapping) else error)


def _is_passing(answer: Mapping[str, Any]) -> bool:
    response = answer.get("response")
    if not response:
        return True  # expired, or never begun
    status = response.get("status_code")
    is_odd = status == 200 and not is_completion(response.get("body"))
    return is_odd or status in RETRYABLE_STATUSES or (isinstance(status, int) and status >= 500)


def _row_line(row: InputRow) -> bytes:
    saved = {
        "index": row.index,
        "place": row.place,
        "inputs": row.inputs,
        "kept": row.kept,
        "digest": row.digest,
        "problem": row.problem,
        "n_requests": len(row.bodies),
    }
    return dump_json(saved) + b"\n"


# The folder of a run: what was cut, what came back, and what is still missing.

MAX_ATTEMPTS = 3
"""Batches for one part; those refused because the queue was full are not counted."""


class BatchFolder:
    """`OUTPUT.batch`: of this task, cut now or by an earlier run.

    Args:
        path: The folder.
        task: What is asked.
        limits: Of one part.
        top_logprobs: How many alternatives the requests ask for; 0 for none.

    Raises:
        UsageError: It holds another run, of which something was sent.
        DataError: The rows are not those that were cut, or the folder is damaged.
        FileError: It cannot be read or written.
    """

    def __init__(self, path: Path, task: Task, limits: BatchLimits, *, top_logprobs: int) -> None:
        self.path = path
        self.journal = Journal(path / "journal.jsonl")
        found = self._found(task)
        if found is None:
            parts = cut(task.rows, path, limits)
            found = {"id": uuid.uuid4().hex, "run": task.described, "parts": [asdict(part) for part in parts]}
            write_json(path / "run.json", found)  # nothing is sent before it is there
        self.id = str(found["id"])
        self._top_logprobs = top_logprobs
        self.parts = [Part(**part) for part in found["parts"]]

    @property
    def n_rows(self) -> int:
        """Of all parts."""
        return sum(part.n_rows for part in self.parts)

    @property
    def n_requests(self) -> int:
        """Of all parts."""
        return sum(part.n_requests for part in self.parts)

    def answer_file(self, part: Part, attempt: int, kind: str) -> Path:
        """Where the answers of an attempt stand: "output" or "errors"."""
        return self.path / f"{part.name}.{attempt}.{kind}.jsonl"

    def answers(self, part: Part) -> Answers:
        """All answers to a part that are here."""
        attempts = range(1, MAX_ATTEMPTS + 1)
        files = [self.answer_file(part, attempt, kind) for attempt in attempts for kind in ("errors", "output")]
        return Answers([path for path in files if path.exists()], self._top_logprobs)

    def lowers_top_logprobs(self, refusal: str) -> int | None:
        """How many alternatives a refusal asks for; None where it is about something else."""
        return lower_top_logprobs(refusal, self._top_logprobs)

    def missing(self, part: Part) -> set[str]:
        """The requests of a part that have no answer, or one that another try may better."""
        answers = self.answers(part)
        asked = (row["custom_id"] for _, row in read_jsonl(self.path / f"{part.name}.jsonl"))
        return {identity for identity in asked if identity not in answers or identity in answers.retryable}

    def requests(self, part: Part, attempt: int) -> Path:
        """The file of an attempt: the part itself, or those of its requests that have no answer yet."""
        first = self.path / f"{part.name}.jsonl"
        path = self.path / f"{part.name}.{attempt}.jsonl"
        if attempt == 1 or path.exists():
            return first if attempt == 1 else path
        missing, lowest = self.missing(part), self._lowest(part)
        with open(first, "rb") as source, atomic_writer(path) as target:
            for line in source:
                request = json.loads(line)
                if request["custom_id"] not in missing:
                    continue
                if lowest < self._top_logprobs:
                    request["body"]["top_logprobs"] = lowest
                    line = request_line(request["custom_id"], dump_json(request["body"]))
                target.write(line)
        return path

    def _lowest(self, part: Part) -> int:
        """How many alternatives the host takes, by what it has refused: it may have refused the whole file."""
        told = {int(one.facts["top_logprobs"]) for one in self.journal.entries() if "top_logprobs" in one.facts}
        return min({self._top_logprobs} | told | self.answers(part).lowered)

    def bodies(self) -> Iterator[Mapping[str, Any]]:
        """The body of every request."""
        for part in self.parts:
            for _, request in read_jsonl(self.path / f"{part.name}.jsonl"):
                yield request["body"]

    def outcomes(self, predictor: FinetunedPredictor) -> Iterator[tuple[InputRow, Outcome]]:
        """Every row with what became of it, in order."""
        saved = saved_rows(self.path)
        for part in self.parts:
            answers = self.answers(part)
            for _ in range(part.n_rows):
                row, n_requests = next(saved)
                if row.problem is not None:
                    yield row, Outcome(status="bad_row", error=row.problem)
                    continue
                found = [answers.completion(custom_id(row.index, number)) for number in range(n_requests)]
                yield row, outcome_of(predictor, row, found)

    def remove(self) -> None:
        """The run is complete: the folder goes."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _found(self, task: Task) -> dict[str, Any] | None:
        """What an earlier run wrote, or None."""
        try:
            found = read_json(self.path / "run.json", "a run by batches", "remove the folder to start afresh")
        except FileError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        differing = [name for name, value in _plain(task.described).items() if found["run"].get(name) != value]
        if differing and not self.journal.entries():
            return None  # nothing was sent, so nothing is lost; a call that is put right must not be refused
        if differing:
            raise UsageError(
                f"{self.path} holds another run: its {differing[0]} differs; finish that one, choose another output, "
                "or remove the folder to start afresh"
            )
        if task.described["input"] is None:
            self._check_rows(task.rows)
        return found

    def _check_rows(self, rows: Rows) -> None:
        # A file is known by its hash, rows in memory one by one.
        for saved, row in zip_longest(saved_rows(self.path), rows):
            if saved is None or row is None or saved[0].digest != row.digest:
                place = row.place if row is not None else "the end of the rows"
                raise DataError(
                    f"{place} is not what was asked before ({self.path} holds what was sent): the input or its order "
                    "has changed; bring the old one back, or remove the folder to start afresh"
                )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


# How far the batches of a run are. They are answered in bursts, so that the rate is that since this run began to
# look. The cost is that of the answers that are here, and of the tokens that the host has counted for others: never an
# estimate.


class BatchProgress:
    """Counts what the batches of a run have answered."""

    def __init__(self, folder: BatchFolder, prices: Prices) -> None:
        self._folder = folder
        self._prices = prices
        self._began_at = CLOCK.now()
        self._n_answered: dict[str, int] = {}
        self._n_failed: dict[str, int] = {}
        self._n_earlier = 0
        self._collected: dict[str, Tokens] = {}
        self._counted: dict[str, Tokens] = {}

    def heard(self, part: Part, batch: Any) -> None:
        """Take in a look at a part's batch, which may hold a part of its requests."""
        counts = batch.request_counts
        if counts is not None and counts.total:
            n_before = part.n_requests - counts.total
            self._n_answered[part.name] = n_before + counts.completed + counts.failed
            self._n_failed[part.name] = counts.failed
        usage = getattr(batch, "usage", None)
        if usage is not None:
            details = getattr(usage, "input_tokens_details", None)
            self._counted[part.name] = Tokens(
                n_input=usage.input_tokens or 0,
                n_cached=getattr(details, "cached_tokens", 0) or 0,
                n_output=usage.output_tokens or 0,
            )

    def collected(self, part: Part, answers: Answers, *, is_earlier: bool = False) -> None:
        """Take in the answers that were fetched: all of a part's, of an earlier run or just now."""
        self._counted.pop(part.name, None)
        self._collected[part.name] = answers.tokens
        self._n_answered[part.name] = len(answers)
        self._n_failed[part.name] = answers.n_failed
        if is_earlier:
            self._n_earlier += len(answers)

    def look(self, *, n_retries: int) -> BulkProgress:
        """How far it is now."""
        n_requests = self._folder.n_requests
        n_answered = min(sum(self._n_answered.values()), n_requests)
        seconds = CLOCK.now() - self._began_at
        n_fresh = n_answered - self._n_earlier
        rate = self._rows(n_fresh) / seconds if seconds > 0 and n_fresh > 0 else None
        n_done, n_rows = self._rows(n_answered), self._folder.n_rows
        used = sum([*self._collected.values(), *self._counted.values()], Tokens())
        return BulkProgress(
            n_done=round(n_done),
            n_total=n_rows,
            n_errors=round(self._rows(sum(self._n_failed.values()))),
            n_reused=round(self._rows(self._n_earlier)),
            rows_per_second=rate,
            eta_seconds=None if rate is None else (n_rows - n_done) / rate,
            cost_usd=self._prices.usd(used),
            n_in_flight=n_requests - n_answered,
            concurrency=n_requests,
            n_retries=n_retries,
        )

    def _rows(self, n_requests: int) -> float:
        """The rows that a number of requests makes: a pair that is asked in both orders is one row of two."""
        return self._folder.n_rows * n_requests / self._folder.n_requests


# Every part sent as a batch, looked at and collected, across crashes, full queues and expiry. The journal says
# uploaded, creating, created, not_created, ended, collected, each written before the next step. At most one batch is
# under way for a part: a request to create one whose fate is unknown is settled by the host's own list, where a batch
# carries its part's name.

FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
QUEUE_CODES = frozenset({"token_limit_exceeded", "request_limit_exceeded", "rate_limit_exceeded"})
"""Codes of a batch that failed because too much was waiting already."""
FULL_SECONDS = 60.0
"""The first pause after a full queue; it doubles up to 15 minutes."""
CLOCK_SKEW_SECONDS = 86_400.0
RUN_KEY, PART_KEY = "dspy_finetune_bulk", "dspy_finetune_part"


class BatchRun:
    """The batches of one run.

    Args:
        host: With a batch interface.
        folder: What is sent, and where answers go.
        prices: Of the predictor's tokens, for the progress.
        on_progress: Called after each look at all parts.
    """

    def __init__(
        self,
        host: Host,
        folder: BatchFolder,
        prices: Prices,
        on_progress: Callable[[BulkProgress], None] | None,
    ) -> None:
        self._host = host
        self._folder = folder
        self._journal = folder.journal
        self._on_progress = on_progress
        self._progress = BatchProgress(folder, prices)
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
                CLOCK.sleep(poll_seconds)

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
        if CLOCK.now() >= self._full_until:
            self._submit(part, attempt, last)
        return False

    def _submit(self, part: Part, attempt: int, last: Entry | None) -> None:
        path = self._folder.requests(part, attempt)
        client = self._host.client(max_retries=0)
        if last is not None and last.facts.get("file_id") and last.facts.get("attempt") == attempt:
            file_id = str(last.facts["file_id"])
        else:
            with self._host.talking(f"upload {path.name}"), open(path, "rb") as stream:
                sent = client.files.create(file=(path.name, stream), purpose="batch")
                file_id = present(sent, "id").id
            self._write(part, "uploaded", attempt=attempt, file_id=file_id)
        self._write(part, "creating", attempt=attempt, file_id=file_id)
        metadata = {RUN_KEY: self._folder.id, PART_KEY: self._name(part)}
        try:
            with self._host.talking("create a batch"):
                made = client.batches.create(
                    input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata=metadata
                )
                batch = present(made, "id")
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
        logger.warning("%s: the reply to a batch's creation was lost; looking for the batch", self._host.name)
        while True:
            with self._host.talking("list the batches"):
                for number, batch in enumerate(pages(self._host.client().with_raw_response.batches.list, limit=100)):
                    if number >= 1000 or (whole(batch.get("created_at")) or 0) < creating.at - CLOCK_SKEW_SECONDS:
                        break
                    metadata = part_of(batch, "metadata")
                    is_named = metadata.get(RUN_KEY) == self._folder.id
                    if is_named and metadata.get(PART_KEY) == self._name(part):
                        return self._write(part, "created", attempt=attempt, file_id=file_id, batch_id=batch["id"])
            if CLOCK.now() >= creating.at + self._host.kind.listing_lag_seconds:
                return self._write(part, "not_created", attempt=attempt, file_id=file_id, why="not listed")
            CLOCK.sleep(1.0)

    def _look(self, part: Part, attempt: int, batch_id: str) -> bool:
        try:
            with self._host.talking(f"ask for the batch {batch_id}"):
                batch = present(self._host.client().batches.retrieve(batch_id), "id", "status")
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
        answers = self._folder.answers(part)
        told = {"top_logprobs": min(answers.lowered)} if answers.lowered else {}
        self._write(part, "collected", attempt=attempt, batch_id=batch_id, status=batch.status, **told)
        self._progress.collected(part, answers)
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
        lowers = [lower for one in errors if (lower := self._folder.lowers_top_logprobs(str(one.message))) is not None]
        if lowers and attempt < MAX_ATTEMPTS:  # nothing was answered: all of it goes into the next attempt
            self._write(part, "collected", attempt=attempt, batch_id=batch.id, top_logprobs=min(lowers))
            return
        self._write(part, "not_created", attempt=attempt, why=why)
        if codes & QUEUE_CODES:
            self._wait_for_the_queue()
            return
        raise HostError(f"{self._host.name}: the batch {batch.id} failed: {why or 'no reason given'}")

    def _wait_for_the_queue(self) -> None:
        self._full_until = CLOCK.now() + self._full_pause
        logger.warning("the host's queue is full; trying again in %.0f s", self._full_pause)
        self._full_pause = min(self._full_pause * 2, 900.0)

    def _name(self, part: Part) -> str:
        """The part and which of its requests to create a batch is the last one."""
        n_requests = sum(entry.event == "creating" for entry in self._journal.entries(part.name))
        return f"{part.name}.{n_requests}"

    def _write(self, part: Part, event: str, **facts: Any) -> Entry:
        return self._journal.append(part.name, event, at=CLOCK.now(), **facts)


def predict(
    predictor: FinetunedPredictor,
    examples: Any,
    output: str | os.PathLike[str],
    *,
    keep: Literal["inputs", "all"] | Sequence[str] = "inputs",
    prefix: str = "",
    max_usd: float | None = None,
    overwrite: bool = False,
    on_progress: Callable[[BulkProgress], None] | None = None,
    files: FileOptions = DEFAULT_FILES,
    limits: BatchLimits = DEFAULT_LIMITS,
) -> BulkResult:
    """Ask a predictor about every row by batches; see `bulk.predict` for what comes out.

    Args:
        predictor: One of this library's predictors, on a host with a batch interface.
        examples: See `bulk.predict`.
        output: The file.
        keep: See `bulk.predict`.
        prefix: Put before the names of the prediction's fields.
        max_usd: Nothing is sent if the estimate, by the batch prices and with every answer as long as it may be, is
            above this.
        overwrite: Replace an output that is there already.
        on_progress: Called with the `BulkProgress` after each look. The cost is that of the answers that are here.
        files: See `bulk.predict`; `checkpoint` has no meaning here.
        limits: The size of a file of requests, and how often the host is asked.

    Raises:
        UsageError: An argument is wrong, or the folder belongs to another run.
        DataError: The rows are not those that were sent.
        BudgetError: The estimate is above max_usd, or unknown.
        HostError: The host refuses; the same call goes on later.
    """
    if not is_wired(predictor):
        raise UsageError("batch_api takes a predictor of this library on its own host; use bulk.predict for others")
    assert predictor.host is not None
    predictor.check_root()
    target = Path(output)
    path = target.with_name(f"{target.name}.batch")
    started = time.monotonic()
    task = Task.of(
        predictor, examples, target, kept_at=path, keep=keep, prefix=prefix, overwrite=overwrite, files=files,
    )  # fmt: skip
    prices = Prices(predictor, is_batch=True)
    with Journal(path / "journal.jsonl").lock("run"):
        folder = BatchFolder(
            path, task, limits, top_logprobs=predictor.top_logprobs if predictor._asks_logprobs() else 0
        )
        if max_usd is not None and not folder.journal.entries():
            prices.check_known(max_usd)
            _check_budget(predictor, folder, prices, max_usd)
        run = BatchRun(predictor.host, folder, prices, on_progress)
        run.finish(limits.poll_seconds)
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
    counter = TokenCounter.for_model(predictor.model)
    n_input = n_output = 0
    for body in folder.bodies():
        # A token is a byte or more: where the model's tokens are unknown, bytes are the bound.
        n_input += len(json.dumps(body)) if counter is None else counter.messages(body["messages"])
        n_output += body["max_completion_tokens"] * body.get("n", 1)
    estimate = prices.usd(Tokens(n_input=n_input, n_output=n_output)) or 0.0
    if estimate > max_usd:
        raise BudgetError(
            f"the batches may cost ${estimate:.4f} ({n_input} input tokens, at most {n_output} output tokens), which "
            f"is above max_usd={max_usd}; nothing was sent"
        )
