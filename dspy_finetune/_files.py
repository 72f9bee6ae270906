"""Crash-safe files: written beside and renamed, grown by whole lines, locked between processes.

In: paths; rows or lines, from any number of processes. Out: small files read with one line of error, SHA-256; files
that appear complete or not at all; append-only JSONL in which each line is whole or absent: a process that dies while
it writes leaves half a line at the end, which is never read as a row and never glued to the next one. The journal,
every checkpoint and the local host keep their state in such logs.
Not covered: JSONL as others wrote it (`_jsonl`).

>>> import tempfile
>>> log = AppendLog(tempfile.mkdtemp() + "/journal.jsonl")
>>> log.append({"event": "created"}, {"event": "ended"})
>>> list(log.rows())
[(1, {'event': 'created'}), (2, {'event': 'ended'})]

Two ways to write a log: `AppendLog.append` opens the file, locks it, writes and closes, so several processes share one;
`AppendLog.hold` takes the file for one run, and refuses a second process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from dspy_finetune.errors import DataError, FileError, UsageError

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

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


def read_dataclass(cls: type[Value], values: Any) -> Value:
    """A dataclass, and all that it holds, from its JSON form; keys that it does not know are left out.

    Raises:
        ValueError: It is something else; says what and where.
    """
    import pydantic  # here: it takes a tenth of a second

    try:
        return pydantic.TypeAdapter(cls).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


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


# The lock between processes. The operating system releases it when its holder dies, however it dies.

_GUARD = threading.Lock()
_THREADS: dict[str, threading.RLock] = {}


def _lock(descriptor: int, *, wait: bool) -> None:
    """Raises OSError where another holds it and `wait` is False."""
    if sys.platform == "win32":
        import msvcrt

        # Far behind the end: on Windows a locked byte cannot be read either.
        os.lseek(descriptor, 1 << 40, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _open(path: Path, flags: int, doing: str, mode: int = 0o600) -> int:
    flags |= os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, mode)
    except OSError as error:
        raise file_error(error, path, doing) from error


@contextlib.contextmanager
def process_lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of this path for a block: one process and one thread at a time; waits for whoever holds it.

    The file stays; it holds nothing.

    Raises:
        FileError: The lock file cannot be made.
    """
    target = Path(path).absolute()
    with _GUARD:
        thread_lock = _THREADS.setdefault(str(target), threading.RLock())
    with thread_lock:
        descriptor = _open(target, os.O_RDWR, "lock")
        try:
            _lock(descriptor, wait=True)
            yield
        finally:
            # Closing releases the lock on every platform, and so does the death of the process.
            os.close(descriptor)


def try_lock(path: str | os.PathLike[str]) -> int | None:
    """Take the lock and return its descriptor, or None where another holds it. Closing it releases it.

    A child process that inherits the descriptor holds the lock too, from its first moment to its last.

    Raises:
        FileError: The lock file cannot be made.
    """
    descriptor = _open(Path(path), os.O_RDWR, "lock")
    try:
        _lock(descriptor, wait=False)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Whether a process holds the lock."""
    if not Path(path).exists():
        return False
    descriptor = try_lock(path)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


# The append-only log.


def _encode(row: Any) -> bytes:
    # Half of a surrogate pair has no UTF-8, and a log must not fail over a text that it is given.
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


class AppendLog:
    """A log of rows that several processes may append to.

    Args:
        path: The file; it appears with the first row.
        what: What errors call it: "write the journal".
    """

    def __init__(self, path: str | os.PathLike[str], what: str = "log") -> None:
        self.path = Path(path)
        self.what = what

    def append(self, *rows: Any, sync: bool = True) -> None:
        """Write rows; when this returns they are on the disk, or with `sync=False` in the system's hands.

        Raises:
            FileError: They could not be written.
        """
        data = b"".join(map(_encode, rows))
        descriptor = _open(self.path, os.O_RDWR | os.O_APPEND, f"write the {self.what}")
        try:
            _lock(descriptor, wait=True)
            _cut_torn_line(self.path, descriptor)
            _write(descriptor, data)
            if sync:
                os.fsync(descriptor)
        except OSError as error:
            raise file_error(error, self.path, f"write the {self.what}") from error
        finally:
            os.close(descriptor)

    def rows(self) -> Iterator[tuple[int, Any]]:
        """(line number from 1, row) of each whole line; what a crash tore, or is no JSON, is passed over and logged.

        Raises:
            FileError: The file cannot be read; a missing file has no rows.
        """
        for number, line in self.lines():
            if line.strip():
                try:
                    yield number, json.loads(line.decode("utf-8", "surrogatepass"))
                except ValueError:
                    logger.warning("%s:%d: torn by a crash; passed over", self.path, number)

    def lines(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """(line number from 1, its bytes without the end) of each line that has an end. Raises FileError.

        Args:
            start: Bytes to pass over; lines are numbered from there.
        """
        try:
            with open(self.path, "rb", buffering=1 << 18) as stream:
                stream.seek(start)
                for number, line in enumerate(stream, start=1):
                    if not line.endswith(b"\n"):
                        return
                    yield number, line[:-1]
        except FileNotFoundError:
            return
        except OSError as error:
            raise file_error(error, self.path, f"read the {self.what}") from error

    def tail(self, start: int) -> tuple[list[Any], int]:
        """The rows behind the first `start` bytes, and where those begin that are still to come. Raises FileError."""
        found, end = [], start
        for _, line in self.lines(start):
            end += len(line) + 1
            with contextlib.suppress(ValueError):
                found.append(json.loads(line.decode("utf-8", "surrogatepass")))
        return found, end

    def hold(self) -> HeldLog:
        """Take the log for this process alone, until it is closed.

        Raises:
            FileError: Another process holds it, or it cannot be written.
        """
        return HeldLog(self)


class HeldLog:
    """A log that one process holds, as a run holds its checkpoint. Calls from several threads are safe.

    A torn end is cut off with the first write, not before: a file that turns out to be something else stays as it is.
    """

    def __init__(self, log: AppendLog) -> None:
        self.log = log
        self._guard = threading.Lock()
        self._file = self._opened()
        self.is_new = os.fstat(self._file).st_size == 0
        """Whether nothing was in it."""
        self._is_whole = False

    def _opened(self) -> int:
        path = self.log.path
        while True:
            descriptor = _open(path, os.O_RDWR | os.O_APPEND, f"write the {self.log.what}", 0o644)
            try:
                _lock(descriptor, wait=False)
            except OSError as error:
                os.close(descriptor)
                raise FileError(
                    f"another process is at work on {path}; wait for it, or choose another output",
                    path=os.fspath(path),
                ) from error
            # Between opening and locking, the process that held it may have finished and removed it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
            os.close(descriptor)

    def rows(self) -> Iterator[tuple[int, Any]]:
        """(line number from 1, row) of each whole line.

        Raises:
            DataError: A line is no JSON: the file is not such a log.
            FileError: The file cannot be read.
        """
        for number, line in self.log.lines():
            try:
                yield number, json.loads(line.decode("utf-8", "surrogatepass"))
            except ValueError as error:
                raise DataError(
                    f"{self.log.path}:{number}: not a line of a {self.log.what} ({error}); name another file, or "
                    "remove this one to start afresh"
                ) from error

    @property
    def size_bytes(self) -> int:
        """Of the file now."""
        return os.fstat(self._file).st_size

    def append(self, row: Any) -> None:
        """Hand one row to the system: when this returns, it outlives the process. Raises FileError."""
        self.write(_encode(row))

    def write(self, lines: bytes) -> None:
        """The same with whole lines, each with its end."""
        with self._guard:
            try:
                if not self._is_whole:
                    _cut_torn_line(self.log.path, self._file)
                    self._is_whole = True
                _write(self._file, lines)
            except OSError as error:
                raise file_error(error, self.log.path, f"write the {self.log.what}") from error

    def sync(self) -> None:
        """Bring all of it to the disk, where it outlives the machine. Raises FileError."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise file_error(error, self.log.path, f"write the {self.log.what}") from error

    def close(self) -> None:
        """Let go of the file; it stays."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """The run is complete: the file goes."""
        with contextlib.suppress(OSError):
            os.unlink(self.log.path)
        self.close()

    def __enter__(self) -> HeldLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _cut_torn_line(path: Path, descriptor: int) -> None:
    """Cut off what follows the last line end: what a crash left of a line that was never told to be written."""
    size = end = os.fstat(descriptor).st_size
    with open(path, "rb") as stream:
        if size and stream.seek(size - 1) and stream.read(1) == b"\n":
            return
        while end:
            start = max(end - (1 << 16), 0)
            stream.seek(start)
            place = stream.read(end - start).rfind(b"\n")
            if place >= 0:
                end = start + place + 1
                break
            end = start
    if end < size:
        os.ftruncate(descriptor, end)
