"""Uploads in parts: put together without a copy in memory or on the disk."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from dspy_finetune.local.api import add_upload
from dspy_finetune.local.schemas import ApiError
from dspy_finetune.local.store import CompleteUpload, CreateUpload, Joined, Store, Uploads

LINE = b'{"text": "' + b"x" * 1000 + b'"}\n'


def begun(uploads: Uploads, parts: list[bytes]) -> tuple[str, list[str]]:
    size = sum(map(len, parts))
    body = CreateUpload(bytes=size, filename="x.jsonl", mime_type="text/plain", purpose="fine-tune")
    upload_id = str(uploads.create(body)["id"])
    return upload_id, [str(uploads.add_part(upload_id, io.BytesIO(part))["id"]) for part in parts]


def test_files_behind_one_another_read_as_one(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(4)]
    for path, content in zip(paths, (b"a\nb", b"", b"c\n", b"d"), strict=True):
        path.write_bytes(content)
    with Joined(paths) as raw, io.BufferedReader(raw, 2) as whole:
        assert whole.readlines() == [b"a\n", b"bc\n", b"d"]
        whole.seek(0)
        assert whole.read() == b"a\nbc\nd"


def test_an_upload_is_put_together_in_little_memory(tmp_path: Path) -> None:
    store = Store(tmp_path)
    uploads = Uploads(store, lambda *given: add_upload(store, *given))
    content = LINE * 8000  # 8 MB, cut in the middle of lines
    parts = [content[start : start + 3_000_001] for start in range(0, len(content), 3_000_001)]
    upload_id, part_ids = begun(uploads, parts)
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    tracemalloc.start()
    try:
        done = uploads.complete(upload_id, CompleteUpload(part_ids=part_ids, md5=digest))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert store.content(done["file"]["id"]).read_bytes() == content
    assert peak < 4 * 2**20
    assert not list(tmp_path.glob("uploads/*/*.part"))


def test_one_upload_that_is_completed_holds_up_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entered, go_on = threading.Event(), threading.Event()

    def slowly(content: Any, filename: str, *rest: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            assert go_on.wait(60)
        return add_upload(store, content, filename, *rest)

    uploads = Uploads(store, slowly)
    (slow, slow_parts), (quick, quick_parts) = begun(uploads, [LINE]), begun(uploads, [LINE])
    thread = threading.Thread(target=uploads.complete, args=(slow, CompleteUpload(part_ids=slow_parts)))
    thread.start()
    try:
        assert entered.wait(60)
        assert uploads.complete(quick, CompleteUpload(part_ids=quick_parts))["status"] == "completed"
        with pytest.raises(ApiError, match="by another request"):
            uploads.cancel(slow)
    finally:
        go_on.set()
        thread.join()
    with pytest.raises(ApiError, match="is completed"):
        uploads.cancel(slow)


def test_an_upload_that_nobody_completes_frees_the_disk_while_the_server_runs(tmp_path: Path) -> None:
    uploads = Uploads(Store(tmp_path), lambda *_: pytest.fail("nothing is completed"))
    asked = CreateUpload(bytes=3, filename="a.jsonl", mime_type="text/jsonl", purpose="batch")
    late, early = uploads.create(asked)["id"], uploads.create(asked)["id"]
    uploads.add_part(late, io.BytesIO(b"abc"))
    record = uploads._pending(late)
    uploads._save(record.model_copy(update={"expires_at": int(time.time()) - 1}))
    uploads.create(asked)
    assert not (uploads.folder / late).exists()
    assert (uploads.folder / early).exists()
