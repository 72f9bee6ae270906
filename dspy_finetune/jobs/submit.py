"""Idempotent submission of a plan: a write-ahead journal, an idempotency key in the job, recovery after a crash.

In: an order (what is to be trained, on which host) and the journal. Out: its one job.

    intent      what is wanted is written down
    uploaded    the files are on the host; an identical file already there is used again
    creating    the request that costs money is about to leave; from here on its fate may be unknown
    ambiguous   it stayed unknown, and a person was told so
    created     the host's answer is written down
    not_created the host's answer says that there is no job

A process that dies after `creating`, or a reply that is lost, leaves a question. It is answered by the host: a job
carries its intent, the idempotency key, in `metadata`. One match is the job. None, after the time that a new job may
take to be listed, means there is none. Two, or a job of the same file whose metadata the host did not keep, cannot be
told apart: AmbiguousJobError, and never a second job.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dspy_finetune._files import file_error, sha256_file
from dspy_finetune._progress import told_if_slow
from dspy_finetune.errors import AmbiguousJobError, DataError, HostError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.failures import Patience, never_sent, told_pause_seconds
from dspy_finetune.hosts.protocol import ATTEMPT_KEY, INTENT_KEY, HostApi, HostFile
from dspy_finetune.jobs.records import CLOCK, Entry, JobFacts, Journal, job_facts, note_down

logger = logging.getLogger(__name__)

PROMPT_KEY = "dspy_finetune_prompt"
DATA_KEY = "dspy_finetune_data"
RESERVED_KEYS = (INTENT_KEY, ATTEMPT_KEY, PROMPT_KEY, DATA_KEY)

CREATE_TRIES = 5
CREATE_SECONDS = 120.0
"""Timeout of the create request; after that the host is asked whether it made the job."""
LISTED_JOBS = 1000
CLOCK_SKEW_SECONDS = 86_400.0
"""Maximum clock skew between the host and this machine: a wrong time zone is hours."""
OUTAGE_SECONDS = 300.0
"""Timeout of a host that does not answer, before anything is paid."""
FILE_SECONDS = 1800.0
"""Timeout of a file that the host reads; after it the host itself says whether it takes the job."""
FILE_POLL_SECONDS = 2.0

_NOT_OFFERED = frozenset({400, 404, 405, 422, 501})
"""What hosts answer to a route or a filter that they do not have."""
_NOT_THERE = frozenset({"error", "incomplete", "deleting", "deleted"})
"""States of a file that cannot be used again."""
_NOT_READ = frozenset({"uploaded", "pending", "running", "not_started", "incomplete"})
"""States of a file that the host still reads."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file that the job needs."""

    path: Path
    """Where it lies."""
    sha256: str
    """Of its bytes."""
    size_bytes: int
    """Of the file."""

    @property
    def name(self) -> str:
        """What it is called on the host: the hash in it lets any machine find it there again."""
        return f"{self.path.stem[:80]}-{self.sha256[:16]}.jsonl"


@dataclass(frozen=True, kw_only=True)
class Order:
    """All that decides a job."""

    intent: str
    """The idempotency key: the hash of the rest."""
    host: Host
    """Where."""
    train: Upload
    """The training file."""
    validation: Upload | None
    """The validation file."""
    base: str
    """The base model, also of a tuned model that is trained on."""
    body: dict[str, Any]
    """The create request, but for the files and the metadata."""
    metadata: dict[str, str]
    """The user's and ours, but for intent and attempt."""
    notes: dict[str, Any]
    """What the journal keeps beside: estimate, rows, tokens, host."""


class Submission:
    """The submission of one order; `run` gives its one job, new or found."""

    def __init__(self, order: Order, journal: Journal) -> None:
        self._order = order
        self._host = order.host
        self._journal = journal
        self._patience = Patience()
        self._is_reached = False

    def run(self, *, new: bool = False) -> tuple[JobFacts, bool]:
        """(the job, whether it was made now).

        Raises:
            AmbiguousJobError: It cannot be known whether the job exists; says what to check.
            HostError: The host refused, or did not answer.
            FileError: The journal or a file cannot be used.
            DataError: A file is not the one that was planned any more.
        """
        with contextlib.ExitStack() as held:
            with told_if_slow("another program starts this very plan; waiting for it", logger.warning):
                held.enter_context(self._journal.lock(self._order.intent))
            entries = self._journal.entries(self._order.intent)
            last = entries[-1] if entries else None
            attempt = max([int(entry.facts.get("attempt", 1)) for entry in entries], default=1)
            if last is not None and (last.event == "creating" or (last.event == "ambiguous" and not new)):
                # The fate of the last request is unknown: that comes before any wish for a new job, and a job of which
                # nobody was told is that new one.
                creating = next(entry for entry in reversed(entries) if entry.event == "creating")
                found = self._settle(creating, attempt)
                if found is not None and not (new and found.is_final):
                    return self._adopt(found, attempt)
            listed = self._matches()
            if listed is not None:
                attempt = max([attempt, *(_attempt(job) for job in listed)])
            if new:
                attempt += 1 if entries or listed else 0
            else:
                found = self._recorded(entries) or self._only(listed or [], attempt)
                if found is not None:
                    return self._adopt(found, attempt, is_recorded=_job_id(entries) == found.id)
            return self._create(attempt), True

    def _recorded(self, entries: Sequence[Entry]) -> JobFacts | None:
        job_id = _job_id(entries)
        if job_id is None:
            return None
        try:
            return self._ask(f"ask for the job {job_id}", lambda api: job_facts(api.job(job_id)))
        except HostError as error:
            if error.status != 404:
                raise
        raise AmbiguousJobError(
            f"the journal says that this plan became {job_id}, and {self._host.name} does not know that job;"
            " check that the key belongs to the same project, or start with new=True (--new)",
            job_id=job_id,
        )

    def _matches(self) -> list[JobFacts] | None:
        """The host's jobs of this intent; None if it cannot list jobs."""
        try:
            return _of(self._list({INTENT_KEY: self._order.intent}), self._order.intent)
        except HostError as error:
            if error.status not in _NOT_OFFERED:
                raise
            return None

    def _list(self, wanted: dict[str, str]) -> list[JobFacts]:
        return self._ask(
            "list the jobs", lambda api: [job_facts(job) for job in itertools.islice(api.jobs(wanted), LISTED_JOBS)]
        )

    def _only(self, listed: Sequence[JobFacts], attempt: int) -> JobFacts | None:
        of_attempt = [job for job in listed if _attempt(job) == attempt]
        if len(of_attempt) > 1:
            raise self._ambiguous("has several jobs of this very plan", of_attempt)
        return of_attempt[0] if of_attempt else None

    def _settle(self, creating: Entry, attempt: int, *, is_lost_now: bool = False) -> JobFacts | None:
        """Find out what became of a request whose reply is not known; None if it made no job."""
        logger.warning("%s: the reply to the job's creation was lost; looking for the job", self._host.name)
        try:
            return self._looked_for(creating, attempt, is_lost_now=is_lost_now)
        except AmbiguousJobError:
            self._note("ambiguous", attempt=attempt)  # whoever asks for a new job now has been told
            raise

    def _looked_for(self, creating: Entry, attempt: int, *, is_lost_now: bool) -> JobFacts | None:
        # Counted from when the reply was given up, as the host may have made the job only then; and in our own pauses,
        # as a clock may jump.
        lag = self._host.kind.listing_lag_seconds
        left = lag if is_lost_now else min(max(creating.at + lag - CLOCK.now(), 0.0), lag)
        pause = 0.5
        while True:
            try:
                listed = self._list({INTENT_KEY: self._order.intent})
                unnamed = self._list_unnamed(creating) if not _of(listed, self._order.intent) else []
            except HostError as error:
                if error.retryable:
                    raise
                raise AmbiguousJobError(
                    f"a job was asked for and the reply was lost, and {self._host.name} does not list its jobs"
                    f" (HTTP {error.status}); look at its own pages for a job of the file"
                    f" {creating.facts.get('training_file')}: if it is there, attach(its id), else start with"
                    " new=True (--new)"
                ) from error
            found = self._only(_of(listed, self._order.intent), attempt)
            if found is not None:
                return found
            if unnamed:
                raise self._ambiguous("lists a job of the same file, but kept no metadata to know it by", unnamed)
            if left <= 0:
                self._note("not_created", attempt=attempt, why="not listed")
                return None
            CLOCK.sleep(min(pause, left))
            left -= pause
            pause = min(pause * 2, 10.0)

    def _list_unnamed(self, creating: Entry) -> list[JobFacts]:
        """Jobs that could be ours and carry no metadata: the host does not keep it, or somebody else made them."""
        file_id = creating.facts.get("training_file")
        since = creating.at - CLOCK_SKEW_SECONDS
        # Jobs that other starts of the same file have made, or this one before.
        known = {str(one.facts["job_id"]) for one in self._journal.entries() if "job_id" in one.facts}

        def unnamed(api: HostApi) -> list[JobFacts]:
            found = []
            for job in itertools.islice(api.jobs(), LISTED_JOBS):
                facts = job_facts(job)
                if (facts.created_at or since) < since:
                    break
                if facts.training_file == file_id and INTENT_KEY not in facts.metadata and facts.id not in known:
                    found.append(facts)
            return found

        return self._ask("list the jobs", unnamed)

    def _ambiguous(self, what: str, jobs: Sequence[JobFacts]) -> AmbiguousJobError:
        ids = ", ".join(job.id for job in jobs)
        return AmbiguousJobError(
            f"{self._host.name} {what}: {ids}; nothing was created. Look at them, cancel what is not wanted, and follow"
            f" the right one with attach({jobs[0].id!r}), or start with new=True (--new)",
            job_id=jobs[0].id,
        )

    def _adopt(self, job: JobFacts, attempt: int, *, is_recorded: bool = False) -> tuple[JobFacts, bool]:
        if not is_recorded:
            self._note("adopted", attempt=attempt, job_id=job.id)
        return job, False

    def _create(self, attempt: int) -> JobFacts:
        self._write("intent", attempt=attempt, **self._order.notes)
        files = {"training_file": self._file(self._order.train)}
        if self._order.validation is not None:
            files["validation_file"] = self._file(self._order.validation)
        metadata = {**self._order.metadata, INTENT_KEY: self._order.intent, ATTEMPT_KEY: str(attempt)}
        body = {**self._order.body, **files, "metadata": metadata}
        for number in range(CREATE_TRIES):
            creating = self._write("creating", attempt=attempt, **files)
            try:
                with self._host.talking("create the job"):
                    api = self._host.api()
                    made = api.create_job(body, base=self._order.base, timeout_seconds=CREATE_SECONDS)
                    job = job_facts(made)
            except HostError as error:
                found = self._after_failure(error, creating, attempt)
                if found is not None:
                    return self._adopt(found, attempt)[0]
                if not error.retryable or number == CREATE_TRIES - 1:
                    raise
                told = told_pause_seconds(error, CLOCK.now())
                pause = 2.0**number if told is None else told
                logger.warning("%s; asking again in %g s", error, round(pause, 1))
                CLOCK.sleep(pause)
                continue
            self._note("created", attempt=attempt, job_id=job.id)
            return job
        raise AssertionError("the last try returns or raises")

    def _after_failure(self, error: HostError, creating: Entry, attempt: int) -> JobFacts | None:
        """The job that a failed request made all the same; None if there is none."""
        if _made_no_job(error):
            self._note("not_created", attempt=attempt, why=f"HTTP {error.status}" if error.status else "not sent")
            return None
        return self._settle(creating, attempt, is_lost_now=True)

    def _file(self, upload: Upload) -> str:
        file = self._known_file(upload) or self._sent(upload)
        self._await_file(file)
        return file.id

    def _sent(self, upload: Upload) -> HostFile:
        if sha256_file(upload.path) != upload.sha256:
            raise DataError(f"{upload.path}: it was changed after it was planned; plan it again")
        self._write("uploading", sha256=upload.sha256)

        def send(api: HostApi) -> HostFile:
            with open(upload.path, "rb") as stream:
                return api.upload(upload.name, stream)

        try:
            sent = self._ask(f"upload {upload.path}", send)
        except OSError as error:
            raise file_error(error, upload.path, "upload") from error
        self._write("uploaded", sha256=upload.sha256, file_id=sent.id)
        return sent

    def _known_file(self, upload: Upload) -> HostFile | None:
        """An identical file that is on the host: by the journal, else by its name, which holds the hash."""
        noted = [
            str(entry.facts.get("file_id"))
            for entry in self._journal.entries()
            if entry.event == "uploaded" and entry.facts.get("sha256") == upload.sha256
        ]
        for file_id in reversed(noted[-3:]):
            try:
                seen = self._seen(file_id)
            except HostError as error:
                if error.status in {400, 403, 404}:
                    continue  # of another host or project, or deleted
                raise
            if seen.size_bytes in {None, upload.size_bytes} and seen.status not in _NOT_THERE:
                return seen

        def same(api: HostApi) -> HostFile | None:
            for seen in itertools.islice(api.files(), LISTED_JOBS):
                is_same = seen.name == upload.name and seen.size_bytes in {None, upload.size_bytes}
                if is_same and seen.status not in _NOT_THERE:
                    return seen
            return None

        try:
            found = self._ask("list the files", same)
        except HostError as error:
            if error.status not in _NOT_OFFERED:
                raise
            return None
        if found is not None:
            self._write("uploaded", sha256=upload.sha256, file_id=found.id, found=True)
        return found

    def _seen(self, file_id: str) -> HostFile:
        return self._ask(f"ask for the file {file_id}", lambda api: api.file(file_id))

    def _await_file(self, file: HostFile) -> None:
        """OpenAI says "processed" at once; Azure takes its time, and refuses a job before that."""
        left = FILE_SECONDS
        with told_if_slow(f"waiting for {self._host.name} to read the file {file.id}", logger.warning):
            while file.status in _NOT_READ and left > 0:
                CLOCK.sleep(FILE_POLL_SECONDS)
                left -= FILE_POLL_SECONDS
                file = self._seen(file.id)
        if file.status == "error":
            raise HostError(
                f"{self._host.name}: refused the file {file.id} while reading it; check it and upload again"
            )

    def _ask(self, doing: str, call: Callable[[HostApi], Answer]) -> Answer:
        """What the host answers; one that is down or busy is waited for, with a line. Not for what costs money."""
        while True:
            try:
                with self._host.talking(doing):
                    answer = call(self._host.api())
            except HostError as error:
                # An address at which nobody has answered yet may be a wrong one.
                is_nobody = not self._is_reached and error.__cause__ is not None and never_sent(error.__cause__)
                limit = OUTAGE_SECONDS if error.retryable and not is_nobody else 0.0
                pause = self._patience.pause_after(error, limit, CLOCK.now())
                if pause is None:
                    raise
                CLOCK.sleep(pause)
            else:
                self._is_reached = True
                self._patience.answered()
                return answer

    def _note(self, event: str, **facts: Any) -> None:
        """Write down what has happened already: on a full disk the note is lost, and not the job."""
        note_down(self._journal, self._order.intent, event, **facts)

    def _write(self, event: str, **facts: Any) -> Entry:
        return self._journal.append(self._order.intent, event, at=CLOCK.now(), **facts)


def _of(jobs: Sequence[JobFacts], intent: str) -> list[JobFacts]:
    return [job for job in jobs if job.metadata.get(INTENT_KEY) == intent]


def _attempt(job: JobFacts) -> int:
    text = job.metadata.get(ATTEMPT_KEY, "1")
    return int(text) if text.isdigit() else 1


def _job_id(entries: Sequence[Entry]) -> str | None:
    named = [entry for entry in entries if entry.event in {"created", "adopted"}]
    return str(named[-1].facts["job_id"]) if named else None


def _made_no_job(error: HostError) -> bool:
    """True if the host's answer, or its absence, proves that no job was made."""
    if error.status is None:
        return error.__cause__ is not None and never_sent(error.__cause__)
    # 408, 502, 504 and their kin come from something in between, which cannot know what the host did.
    return error.status in range(400, 500) and error.status not in {408, 409}
