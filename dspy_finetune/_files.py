"""Files: written beside and renamed, read with one line of error, SHA-256.

In: paths. Out: small files read whole; files that appear complete or not at all.
Not covered: rows of JSONL (`_jsonl`), logs that grow (`_appendlog`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dspy_finetune.errors import DataError, FileError, UsageError

BOM = b"\xef\xbb\xbf"

_PACKED = {b"\x1f\x8b": "a gzip file", b"PK\x03\x04": "a zip or xlsx file", b"PAR1": "a Parquet file"}


def file_error(error: OSError, path: str | os.PathLike[str], doing: str) -> FileError:
    """Turn an operating-system error into one line that says what to do."""
    remedies = {
        errno.ENOENT: "no such file or folder; check the path",
        errno.EACCES: "permission denied; check who owns it, or choose another place",
        errno.EISDIR: "it is a folder; name a file",
        errno.ENOTDIR: "a part of the path is a file, not a folder; choose another place",
        errno.EEXIST: "a part of the path is a file, not a folder; choose another place",  # what making folders raises
        errno.ENOSPC: "no space left on the device; free some space or choose another place",
        errno.EFBIG: "the file is larger than is allowed here; choose another place",
        errno.EROFS: "the file system is read-only; choose another place",
    }
    why = remedies.get(error.errno or 0, error.strerror or str(error))
    return FileError(f"cannot {doing} {os.fspath(path)}: {why}", path=os.fspath(path))


def packed_kind(head: bytes) -> str | None:
    """What a file with these first bytes is, where it is no text: gzip, zip or Parquet."""
    return next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), None)


@contextlib.contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when the block ends without an error.

    Missing folders are made. The bytes are written to a temporary file beside the target, flushed to the disk and
    renamed.

    Raises:
        FileError: The file cannot be written, for want of space or of permission.
    """
    target = Path(path)
    temporary = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        with os.fdopen(handle, "wb", buffering=1 << 16) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files that only the owner can read; a result is an ordinary file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
        temporary = ""
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise file_error(error, path, "write") from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def json_text(value: Any, *, default: Callable[[Any], Any] | None = None) -> str:
    """JSON for people and programs, which any encoding to UTF-8 takes: half a character stands as its escape."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=default)
    # A lone surrogate, as broken text holds it, has no UTF-8; JSON's own escape for it reads back as it was.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a small file, without what is blank around it; a byte-order mark is passed over.

    Raises:
        FileError: The file cannot be read.
        UsageError: It is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise file_error(error, path, "read") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{os.fspath(path)} is not UTF-8 (byte {error.start + 1}); save it as UTF-8") from error


def read_json(path: str | os.PathLike[str], what: str, remedy: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        path: The file; a byte-order mark is passed over.
        what: What it ought to be, with its article: "a saved predictor".
        remedy: How to come by a good one.

    Raises:
        FileError: The file cannot be read.
        DataError: It holds no JSON object in UTF-8.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise file_error(error, path, "read") from error
    except ValueError as error:
        raise DataError(f"{os.fspath(path)} is not {what}: not JSON in UTF-8 ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise DataError(f"{os.fspath(path)} is not {what}: it holds a {type(value).__name__}; {remedy}")
    return value


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write one JSON value, indented, atomically. Raises FileError."""
    with atomic_writer(path) as stream:
        stream.write(json_text(value).encode("utf-8") + b"\n")


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The file's SHA-256 as 64 hexadecimal digits. Raises FileError."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise file_error(error, path, "read") from error
    return digest.hexdigest()
