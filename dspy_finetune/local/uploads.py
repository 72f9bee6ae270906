"""Uploads in parts: /v1/uploads, for files that one request should not carry.

    root/uploads/<upload id>/    upload.json, and <part id>.part for each part

In: parts in any order, and at the end the order that is meant. Out: a file like any other, checked like any other.
A part is in its file before its id is told. An upload that nobody completes is gone an hour after it was made.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, Field

from dspy_finetune._files import atomic_writer, file_error, write_json
from dspy_finetune.local.schemas import ApiError, Body, ExpiresAfter, FileRecord, Name
from dspy_finetune.local.store import Store, is_id, new_id

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
        for record in store.records(UploadRecord, self.folder, "upload.json"):
            if record.status != "pending" or record.expires_at < time.time():
                shutil.rmtree(self.folder / record.id, ignore_errors=True)

    def create(self, body: CreateUpload) -> dict[str, Any]:
        """Begin an upload."""
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
        """Put the parts together in the given order, and keep the file."""
        with self._lock:
            record = self._pending(upload_id)
            parts = [self._known_part(record, part_id) for part_id in body.part_ids]
            size = sum(path.stat().st_size for path in parts)
            if size != record.bytes:
                message = f"The parts have {size} bytes, and the upload was created for {record.bytes}."
                raise ApiError(400, message, param="part_ids", code="invalid_upload")
            with tempfile.TemporaryFile(dir=self._folder(record)) as whole:
                digest = _join(parts, whole)
                if body.md5 is not None and body.md5.lower() != digest:
                    message = f"The MD5 of the parts is {digest}, not {body.md5}."
                    raise ApiError(400, message, param="md5", code="invalid_checksum")
                file = self.add_file(whole, record.filename, record.purpose, record.expires_after_seconds)
            done = record.model_copy(update={"status": "completed", "file": file.wire()})
            self._end(done)
            return done.wire()

    def cancel(self, upload_id: str) -> dict[str, Any]:
        """End an upload without a file."""
        with self._lock:
            cancelled = self._pending(upload_id).model_copy(update={"status": "cancelled"})
            self._end(cancelled)
            return cancelled.wire()

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


def _join(parts: list[Path], whole: BinaryIO) -> str:
    """Copy the parts behind one another; the MD5 of the whole, as OpenAI's API has it."""
    digest = hashlib.md5(usedforsecurity=False)
    for path in parts:
        try:
            with open(path, "rb") as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    whole.write(block)
        except OSError as error:
            raise file_error(error, path, "put together the parts of") from error
    return digest.hexdigest()
