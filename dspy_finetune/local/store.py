"""Everything the host remembers, as files under one root, whole after a kill -9 at any moment.

    root/server.json                      where the running server is (mode 600)
    root/files/<file id>/                 content, file.json (written last: without it the upload never happened)
    root/jobs/<job id>/                   job.json (written by the server alone), events.jsonl (appended by both),
                                          task.json -> worker -> result.json, control, worker.lock, worker.log, work/
    root/uploads/<upload id>/             upload.json, and <part id>.part for each part
    root/models/<folder>/                 model.json, adapter-0/ ...: a base's name and adapters to merge in this order

In: records (schemas.py). Out: records. Every file is written beside and renamed; an event line cut off by a crash is
skipped. Ids that publish a job's outcome derive from the job's id, so that doing it twice makes it once.
A record that cannot be read, whatever damaged it, is renamed to `<name>.damaged` and named in `Store.damaged`: it stops
neither a list nor a start.
An upload in parts (`Uploads`) takes them in any order, and at the end the order that is meant; it becomes a file like
any other, checked like any other. A part is in its file before its id is told. An upload that nobody completes is gone
an hour after it was made.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import math
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from dspy_finetune._files import AppendLog, atomic_writer, file_error, write_json
from dspy_finetune.local.schemas import ApiError, Body, Event, ExpiresAfter, FileRecord, JobRecord, ModelRecord, Name

logger = logging.getLogger(__name__)

Record = TypeVar("Record", bound=BaseModel)


def new_id(prefix: str) -> str:
    """A fresh id such as `file-3f2a...`."""
    return prefix + uuid.uuid4().hex[:24]


def derived_id(prefix: str, *parts: object, length: int = 24) -> str:
    """An id that is the same each time for the same parts."""
    return prefix + hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:length]


def append_event(
    job_folder: Path,
    message: str,
    *,
    level: str = "info",
    kind: str = "message",
    data: dict[str, Any] | None = None,
    event_id: str | None = None,
) -> None:
    """Add one event to a job's log in one write, on a line of its own even after a line that was cut off."""
    event = new_event(message, level=level, kind=kind, data=data, event_id=event_id)
    AppendLog(job_folder / "events.jsonl").append(event, sync=False)


def new_event(
    message: str,
    *,
    level: str = "info",
    kind: str = "message",
    data: dict[str, Any] | None = None,
    event_id: str | None = None,
) -> dict[str, Any]:
    """An event of now, as clients see it."""
    return {
        "id": event_id or new_id("ftevent-"),
        "object": "fine_tuning.job.event",
        "created_at": int(time.time()),
        "level": level,
        "message": message,
        "type": kind,
        "data": finite(data or {}),
    }


def finite(value: Any) -> Any:
    """The same JSON value with null where a figure is no number: a run that diverged has a loss of NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list) else value


def next_sequence(earlier: Iterable[int]) -> int:
    """Where a new record stands in its queue: now, in nanoseconds, or behind all others where the clock went back.

    Examples:
        >>> next_sequence([10**30, 5]) - 10**30
        1
    """
    return max(time.time_ns(), max(earlier, default=0) + 1)


def is_no_space(error: BaseException | None) -> bool:
    """Whether a full disk, or a full quota, is behind the error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # safetensors and torch tell what the system said in a text of their own.
        if any(text in str(error) for text in ("No space left on device", "Disk quota exceeded", "(os error 28)")):
            return True
        error = error.__cause__
    return False


_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)


def will_pass(error: BaseException) -> bool:
    """Whether the machine is short of something for now: of disk space, open files, memory or processes.

    A thousand idle clients take all open files that a process may have; no job or batch is to fail for that.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _PASSING:
            return True
        cause = cause.__cause__
    return is_no_space(error)


class Store:
    """The records under one root folder. Calls from several threads of one server are safe."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        self.damaged: list[str] = []
        """Records that were set aside, as paths below the root."""
        self._jobs: dict[str, JobRecord] = {}
        self._events: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        try:
            for folder in (self.files_folder, self.jobs_folder, self.models_folder):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise file_error(error, root, "write to") from error
        self.damaged += sorted(os.fspath(path.relative_to(root)) for path in root.glob("*/*/*.json.damaged"))
        for job in self.records(JobRecord, self.jobs_folder, "job.json"):
            self._jobs[job.id] = job

    @property
    def files_folder(self) -> Path:
        """Uploaded and result files."""
        return self.root / "files"

    @property
    def jobs_folder(self) -> Path:
        """One folder for each job."""
        return self.root / "jobs"

    @property
    def models_folder(self) -> Path:
        """One folder for each tuned model."""
        return self.root / "models"

    # Reading records

    def records(self, kind: type[Record], folder: Path, name: str) -> Iterator[Record]:
        """All records of a kind that can be read."""
        for path in folder.glob(f"*/{name}"):
            record = self.read(kind, path)
            if record is not None:
                yield record

    def read(self, kind: type[Record], path: Path) -> Record | None:
        """One record; None where there is none. A damaged one is set aside."""
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if path.is_file():
                raise file_error(error, path, "read") from error
            self._set_aside(path, "it is no file")
            return None
        try:
            record = kind.model_validate_json(content)
        except (ValidationError, ValueError, RecursionError) as error:
            self._set_aside(path, " ".join(str(error).split())[:200])
            return None
        name = getattr(record, "id", None)
        if kind is not ModelRecord and name != path.parent.name:
            self._set_aside(path, f"it is the record of {str(name)[:100]}")
            return None
        return record

    def _set_aside(self, path: Path, why: str) -> None:
        logger.warning("%s is damaged and was set aside: %s", path, why)
        aside = path.with_name(f"{path.name}.damaged")
        with self.lock:
            with contextlib.suppress(OSError):
                os.replace(path, aside)
            name = os.fspath(aside.relative_to(self.root))
            if name not in self.damaged:
                self.damaged.append(name)

    # Files

    def add_file(
        self,
        source: BinaryIO,
        filename: str,
        purpose: str,
        *,
        file_id: str | None = None,
        expires_after_seconds: int | None = None,
    ) -> FileRecord:
        """Keep a copy of the stream's content. The record is written last."""
        file_id = file_id or new_id("file-")
        folder = self.files_folder / file_id
        now = int(time.time())
        try:
            with atomic_writer(folder / "content") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            record = FileRecord(
                id=file_id,
                bytes=(folder / "content").stat().st_size,
                created_at=now,
                filename=filename,
                purpose=purpose,
                sequence=time.time_ns(),
                expires_at=None if expires_after_seconds is None else now + expires_after_seconds,
            )
            write_json(folder / "file.json", record.model_dump())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return record

    def file(self, file_id: str, *, param: str | None = None) -> FileRecord:
        """One file's record, or a 404 (400 where a job names it by `param`)."""
        record = self.read(FileRecord, self.files_folder / file_id / "file.json") if is_id(file_id) else None
        if record is not None and self._is_expired(record):
            record = None
        if record is None:
            raise ApiError(400 if param else 404, f"No such File object: {file_id}", param=param or "id")
        return record

    def content(self, file_id: str) -> Path:
        """Where the file's bytes are."""
        return self.files_folder / self.file(file_id).id / "content"

    def files(self) -> list[FileRecord]:
        """All files, newest first."""
        found = [
            record
            for record in self.records(FileRecord, self.files_folder, "file.json")
            if not self._is_expired(record)
        ]
        return sorted(found, key=lambda record: (-record.created_at, -record.sequence, record.id))

    def _is_expired(self, record: FileRecord) -> bool:
        if record.expires_at is None or time.time() < record.expires_at:
            return False
        self._forget_file(record.id)
        return True

    def delete_file(self, file_id: str) -> None:
        """Forget a file."""
        self._forget_file(self.file(file_id).id)

    def _forget_file(self, file_id: str) -> None:
        # The record goes first, so that a crash leaves no file without its bytes.
        folder = self.files_folder / file_id
        (folder / "file.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    # Jobs

    def job_folder(self, job_id: str) -> Path:
        """The job's folder."""
        return self.jobs_folder / job_id

    def save_job(self, job: JobRecord) -> None:
        """Write the record, then let others see it."""
        with self.lock:
            write_json(self.job_folder(job.id) / "job.json", job.model_dump())
            self._jobs[job.id] = job

    def update_job(self, job_id: str, **changes: Any) -> JobRecord:
        """Change fields of a job, on the disk first."""
        with self.lock:
            job = self._jobs[job_id].model_copy(update=changes)
            self.save_job(job)
            return job

    def job(self, job_id: str) -> JobRecord:
        """One job, or a 404."""
        with self.lock:
            job = self._jobs.get(job_id)
        if job is None:
            raise ApiError(
                404, f"Could not find fine tune: {job_id}", code="fine_tune_not_found", param="fine_tuning_job_id"
            )
        return job

    def jobs(self) -> list[JobRecord]:
        """All jobs, newest first."""
        with self.lock:
            return sorted(self._jobs.values(), key=lambda job: -job.sequence)

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """All events of a job, oldest first, each id once; what the last reading took in is not read again."""
        path = self.job_folder(self.job(job_id).id) / "events.jsonl"
        with self.lock:
            offset, events = self._events.get(job_id, (0, []))
            seen = {event["id"] for event in events}
            rows, offset = AppendLog(path).tail(offset)
            for row in rows:
                with contextlib.suppress(ValidationError):  # a damaged line is no event
                    event = finite(Event.model_validate(row).model_dump())
                    if event["id"] not in seen:
                        seen.add(event["id"])
                        events.append(event)
            self._events[job_id] = (offset, events)
            return list(events)

    # Models

    def models(self) -> list[ModelRecord]:
        """All tuned models, oldest first."""
        found = self.records(ModelRecord, self.models_folder, "model.json")
        return sorted(found, key=lambda record: (record.created_at, record.sequence, record.id))

    def model(self, model_id: str) -> ModelRecord | None:
        """One tuned model, or None."""
        record = self.read(ModelRecord, self.model_folder(model_id) / "model.json")
        return record if record is not None and record.id == model_id else None

    def model_folder(self, model_id: str) -> Path:
        """The folder of a tuned model; the hash keeps names of any spelling apart and inside the root."""
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", model_id)[:80].strip(".-")
        return self.models_folder / f"{readable}-{derived_id('', model_id, length=8)}"

    def adapters(self, model_id: str) -> list[Path]:
        """The adapters of a tuned model in the order of merging."""
        record = self.model(model_id)
        return [] if record is None else [self.model_folder(model_id) / name for name in record.adapters]

    def head(self, model_id: str) -> Path | None:
        """The linear head of a tuned model, or None."""
        record = self.model(model_id)
        return self.model_folder(model_id) / record.head if record is not None and record.head else None

    def add_model(
        self, model_id: str, *, base: str, adapters: list[Path], job_id: str, head: Path | None = None
    ) -> None:
        """Publish a tuned model with copies of all its parts; a second call with the same id does nothing."""
        if self.model(model_id) is not None:
            return
        folder = self.model_folder(model_id)
        shutil.rmtree(folder, ignore_errors=True)
        names = []
        try:
            for index, adapter in enumerate(adapters):
                name = f"adapter-{index}"
                (folder / name).mkdir(parents=True)
                # Only what serving needs: a trainer's checkpoint holds the optimizer's state too.
                for part in ("adapter_config.json", "adapter_model.safetensors"):
                    shutil.copyfile(adapter / part, folder / name / part)
                names.append(name)
            if head is not None:
                (folder / "head").mkdir(parents=True)
                for part in ("head.json", "head.safetensors"):
                    shutil.copyfile(head / part, folder / "head" / part)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise file_error(error, folder, "write") from error
        record = ModelRecord(
            id=model_id,
            base=base,
            adapters=names,
            head="head" if head is not None else None,
            job_id=job_id,
            created_at=int(time.time()),
            sequence=time.time_ns(),
        )
        write_json(folder / "model.json", record.model_dump())

    def delete_model(self, model_id: str) -> bool:
        """Forget a tuned model; models that were trained on from it keep their own copies. False: there is none."""
        if self.model(model_id) is None:
            return False
        folder = self.model_folder(model_id)
        (folder / "model.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        return True


def is_id(text: str) -> bool:
    """Whether the text can be an id of this host, and so the name of a folder."""
    return re.fullmatch(r"[A-Za-z0-9_-]{1,100}", text) is not None


MAX_PART_BYTES = 64 * 2**20
"""As OpenAI's."""
MAX_UPLOAD_BYTES = 8 * 2**30
"""As OpenAI's."""
LIFE_SECONDS = 3600

AddFile = Callable[[BinaryIO, str, str, "int | None"], FileRecord]
"""Checks and keeps a whole file: content, name, purpose, seconds until it goes."""


class CreateUpload(Body):
    """The body of POST /uploads."""

    bytes: Annotated[int, Field(ge=1, le=MAX_UPLOAD_BYTES)]
    filename: Name
    mime_type: Name
    purpose: Literal["fine-tune", "batch"]
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Body):
    """The body of POST /uploads/{id}/complete."""

    part_ids: Annotated[list[Name], Field(min_length=1, max_length=10_000)]
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


class UploadRecord(BaseModel):
    """An upload on the disk."""

    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"] = "pending"
    expires_after_seconds: int | None = None
    file: dict[str, Any] | None = None

    def wire(self) -> dict[str, Any]:
        """OpenAI's upload object."""
        return {**self.model_dump(exclude={"expires_after_seconds"}), "object": "upload"}


class Uploads:
    """The uploads of a store."""

    def __init__(self, store: Store, add_file: AddFile) -> None:
        self.store = store
        self.folder = store.root / "uploads"
        self.add_file = add_file
        self._lock = threading.Lock()
        self._ending: set[str] = set()
        for record in store.records(UploadRecord, self.folder, "upload.json"):
            if record.status != "pending" or record.expires_at < time.time():
                shutil.rmtree(self.folder / record.id, ignore_errors=True)

    def create(self, body: CreateUpload) -> dict[str, Any]:
        """Begin an upload."""
        self._sweep()
        now = int(time.time())
        record = UploadRecord(
            id=new_id("upload_"),
            bytes=body.bytes,
            created_at=now,
            expires_at=now + LIFE_SECONDS,
            filename=body.filename,
            purpose=body.purpose,
            expires_after_seconds=body.expires_after.seconds if body.expires_after else None,
        )
        self._save(record)
        return record.wire()

    def _sweep(self) -> None:
        """Free the disk of what nobody completed in its hour; a server may run for months."""
        for record in self.store.records(UploadRecord, self.folder, "upload.json"):
            with self._lock:
                if record.expires_at < time.time() and record.id not in self._ending:
                    shutil.rmtree(self._folder(record), ignore_errors=True)

    def add_part(self, upload_id: str, data: BinaryIO) -> dict[str, Any]:
        """Keep a part."""
        record = self._pending(upload_id)
        part_id = new_id("part_")
        size = data.seek(0, 2)
        if size > MAX_PART_BYTES:
            raise ApiError(413, f"The part is larger than {MAX_PART_BYTES // 2**20} MB.", param="data")
        n_bytes = sum(path.stat().st_size for path in self._folder(record).glob("*.part"))
        if n_bytes + size > 2 * record.bytes + MAX_PART_BYTES:  # parts may be sent again, but not without end
            raise ApiError(400, f"The parts are larger than the upload's {record.bytes} bytes.", param="data")
        data.seek(0)
        with atomic_writer(self._part(record, part_id)) as target:
            shutil.copyfileobj(data, target, 1 << 20)
        return {
            "id": part_id,
            "object": "upload.part",
            "created_at": int(time.time()),
            "upload_id": record.id,
        }

    def complete(self, upload_id: str, body: CompleteUpload) -> dict[str, Any]:
        """Read the parts as one file in the given order, check it, and keep it."""
        with self._alone(upload_id):
            record = self._pending(upload_id)
            parts = [self._known_part(record, part_id) for part_id in body.part_ids]
            size = sum(path.stat().st_size for path in parts)
            if size != record.bytes:
                message = f"The parts have {size} bytes, and the upload was created for {record.bytes}."
                raise ApiError(400, message, param="part_ids", code="invalid_upload")
            with Joined(parts) as raw, io.BufferedReader(raw, 1 << 20) as whole:
                digest = _md5(whole) if body.md5 is not None else ""
                if body.md5 is not None and body.md5.lower() != digest:
                    message = f"The MD5 of the parts is {digest}, not {body.md5}."
                    raise ApiError(400, message, param="md5", code="invalid_checksum")
                file = self.add_file(whole, record.filename, record.purpose, record.expires_after_seconds)
            done = record.model_copy(update={"status": "completed", "file": file.wire()})
            self._end(done)
            return done.wire()

    def cancel(self, upload_id: str) -> dict[str, Any]:
        """End an upload without a file."""
        with self._alone(upload_id):
            cancelled = self._pending(upload_id).model_copy(update={"status": "cancelled"})
            self._end(cancelled)
            return cancelled.wire()

    @contextlib.contextmanager
    def _alone(self, upload_id: str) -> Iterator[None]:
        """One request at a time ends an upload; 8 GB of one do not hold up the others."""
        with self._lock:
            if upload_id in self._ending:
                message = f"Upload {upload_id[:100]} is being completed or cancelled by another request."
                raise ApiError(409, message, param="upload_id", code="invalid_upload")
            self._ending.add(upload_id)
        try:
            yield
        finally:
            with self._lock:
                self._ending.discard(upload_id)

    def _end(self, record: UploadRecord) -> None:
        self._save(record)
        for path in self._folder(record).glob("*.part"):
            path.unlink(missing_ok=True)

    def _pending(self, upload_id: str) -> UploadRecord:
        path = self.folder / upload_id / "upload.json"
        record = self.store.read(UploadRecord, path) if is_id(upload_id) else None
        if record is None:
            raise ApiError(404, f"No such Upload object: {upload_id[:100]}", param="upload_id")
        status = record.status
        if status == "pending" and record.expires_at < time.time():
            status = "expired"
        if status != "pending":
            raise ApiError(400, f"Upload {record.id} is {status}.", param="upload_id", code="invalid_upload")
        return record

    def _folder(self, record: UploadRecord) -> Path:
        return self.folder / record.id

    def _part(self, record: UploadRecord, part_id: str) -> Path:
        return self._folder(record) / f"{part_id}.part"

    def _known_part(self, record: UploadRecord, part_id: str) -> Path:
        path = self._part(record, part_id)
        if not is_id(part_id) or not path.is_file():
            raise ApiError(400, f"No such part: {part_id[:100]}", param="part_ids", code="invalid_part")
        return path

    def _save(self, record: UploadRecord) -> None:
        write_json(self._folder(record) / "upload.json", record.model_dump())


class Joined(io.RawIOBase):
    """Files behind one another as one stream that is read from its beginning; no copy is made of them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self.paths = paths
        self._next, self._position = 0, 0
        self._open: io.FileIO | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """To its beginning."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go back to the beginning, or tell where one is."""
        if offset or whence == io.SEEK_END:
            raise io.UnsupportedOperation("only to the beginning")
        if whence == io.SEEK_SET:
            self._shut()
            self._next = self._position = 0
        return self._position

    def readinto(self, buffer: Any) -> int:
        """As much as the next file has."""
        while True:
            try:
                if self._open is None:
                    if self._next == len(self.paths):
                        return 0
                    self._open = io.FileIO(self.paths[self._next])
                    self._next += 1
                if size := self._open.readinto(buffer):
                    self._position += size
                    return size
            except OSError as error:
                raise file_error(error, self.paths[self._next - 1], "put together the parts of") from error
            self._shut()

    def close(self) -> None:
        """Shut what is open."""
        self._shut()
        super().close()

    def _shut(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def _md5(stream: BinaryIO) -> str:
    """The MD5 of the whole, as OpenAI's API has it."""
    digest = hashlib.md5(usedforsecurity=False)
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
