"""sources.py: whatever the user calls "my data", opened as numbered rows.

In: a path, "-", "hf://...", a data frame, a data set, or any iterable of records. Out: a `Source`: the name that errors
show, and an iterator of (line or row number from 1, dict | RowError). What the fields mean is not known here.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import dspy
import pydantic

from dspy_finetune._files import BOM, file_error
from dspy_finetune.data.csvfile import read_csv
from dspy_finetune.data.encoding import Row
from dspy_finetune.data.jsonfile import read_json, read_jsonl
from dspy_finetune.data.rows import MarkedRow
from dspy_finetune.data.tables import guarded_rows, library_of, open_dataset, read_dataset, read_frame, read_parquet
from dspy_finetune.errors import DataError, FileError, RowError, UsageError

Format = Literal["json", "jsonl", "csv", "tsv", "parquet"]

FORMATS: tuple[Format, ...] = ("json", "jsonl", "csv", "tsv", "parquet")
_SUFFIXES: dict[str, Format] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_HEAD_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Opened data: where it comes from, and its rows."""

    name: str
    """What errors call it: the path, "<stdin>", "hf://owner/name", or the kind of object."""
    path: str | None
    """The name again where errors show `path:line`; None for objects in memory, whose errors say `row 3`."""
    rows: Iterator[Row]
    """(number from 1, row): a file's line, or a table's or an iterable's row."""


def open_source(source: Any, *, format: Format | None, split: str | None) -> Source:
    """Open any kind of source; files and arguments are checked at once, rows are read as they are asked for.

    Raises:
        UsageError: The source is of no known kind, or `format` or `split` does not suit it.
        FileError: A file or folder is missing or cannot be read.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"format={format!r} is not known; use one of: {', '.join(FORMATS)}")
    if isinstance(source, (str, os.PathLike)):
        return _open_named(os.fspath(source), format, split)
    name = type(source).__name__
    if format is not None:
        raise UsageError(f"format={format!r} is for files; leave it out for a {name}")
    if library_of(source) == "datasets":
        return Source(name=name, path=None, rows=read_dataset(source, name, split))
    if split is not None:
        raise UsageError(
            f'split={split!r} is for data sets with splits ("hf://owner/name", a folder); leave it out for a {name}'
        )
    if library_of(source) in ("pandas", "polars", "pyarrow"):
        return Source(name=name, path=None, rows=read_frame(source, name))
    if isinstance(source, Mapping) and isinstance(source.get("data"), list):
        source = source["data"]
    if isinstance(source, (Mapping, bytes, io.IOBase, dspy.Example, pydantic.BaseModel)) or not isinstance(
        source, Iterable
    ):
        raise UsageError(
            f"cannot read examples from a {name}; "
            "give a path, a data frame, or a list of dicts, examples, models or dataclasses"
        )
    return Source(name=name, path=None, rows=_records(source))


def _open_named(place: str | bytes, format: Format | None, split: str | None) -> Source:
    if isinstance(place, bytes):
        raise UsageError(f"a path must be text, not bytes: {place!r}")
    if not place:
        raise UsageError('the path is empty; name a file, a folder, "hf://owner/name", or "-" for standard input')
    if place.startswith(("http://", "https://", "s3://", "gs://")):
        raise UsageError(f"{place} is an address, and only hf:// is read from the network; download the file first")
    if place.startswith("hf://") or Path(place).is_dir():
        if format is not None:
            raise UsageError(f"format={format!r} is for files; {place} is a data set")
        return Source(name=place, path=place, rows=_lazy_dataset(place, split))
    if split is not None:
        raise UsageError(
            f'split={split!r} is for data sets with splits ("hf://owner/name", a folder); {place} is a file'
        )
    if place == "-":
        return Source(name="<stdin>", path="<stdin>", rows=_stdin_rows(format))
    try:
        # Not opened yet: a stream that nobody reads would stay open, and a pipe can be opened only once.
        os.stat(place)
        if not os.access(place, os.R_OK):
            raise PermissionError(errno.EACCES, "permission denied")
    except (OSError, ValueError) as error:
        raise _unreadable(error, place) from error
    return Source(name=place, path=place, rows=_path_rows(place, format or _by_suffix(place)))


def _unreadable(error: OSError | ValueError, place: str) -> FileError:
    if isinstance(error, OSError):
        return file_error(error, place, "read")
    return FileError(f"cannot read {place!r}: {error}; check the path", path=place)


def _lazy_dataset(place: str, split: str | None) -> Iterator[Row]:
    table = open_dataset(place.removeprefix("hf://"), place, split)
    yield from guarded_rows(read_dataset(table, place, None), place)


def _by_suffix(path: str) -> Format | None:
    return _SUFFIXES.get(Path(path).suffix.lower())


def _path_rows(path: str, format: Format | None) -> Iterator[Row]:
    try:
        with io.BufferedReader(io.FileIO(path), _HEAD_BYTES) as stream:
            yield from _file_rows(stream, stream.peek(), path, format)
    except OSError as error:
        raise error if isinstance(error, FileError) else file_error(error, path, "read") from error


def _file_rows(stream: BinaryIO, head: bytes, name: str, format: Format | None) -> Iterator[Row]:
    found = _checked_format(head, name, format)
    if found == "parquet":
        # Its table of contents stands at the end, where a pipe cannot go.
        yield from read_parquet(stream if stream.seekable() else io.BytesIO(stream.read()), name)
    elif found == "json":
        yield from read_json(stream, name)
    elif found == "jsonl":
        yield from read_jsonl(stream, name)
    else:
        yield from read_csv(stream, name, "\t" if found == "tsv" else None)


def _checked_format(head: bytes, name: str, format: Format | None) -> Format:
    """The format given or told by the name, else by the first bytes. Raises DataError where neither tells."""
    for magic, kind, remedy in ((b"\x1f\x8b", "gzip", "gunzip"), (b"PK\x03\x04", "zip or xlsx", "unzip or export")):
        if head.startswith(magic):
            raise DataError(f"{name} is a {kind} file; {remedy} it first")
    if format == "json" and _looks_like_lines(head):
        return "jsonl"  # many tools call JSONL files .json; one object per line cannot be anything else
    if format is not None:
        return format
    text = head.removeprefix(BOM).lstrip()
    if head.startswith(b"PAR1"):
        return "parquet"
    if text.startswith(b"["):
        return "json"
    if text.startswith(b"{"):
        return "json" if _looks_like_data(text) else "jsonl"
    first = text.partition(b"\n")[0]
    if b"," in first or b";" in first or b"\t" in first:
        return "csv"
    if not text:
        return "jsonl"  # empty: every reader says so
    raise DataError(
        f"cannot tell the format of {name} from its name or its first line; give format= one of {', '.join(FORMATS)}"
    )


def _looks_like_lines(head: bytes) -> bool:
    """Whether the text is one JSON object per line, and more than one."""
    first, _, rest = head.removeprefix(BOM).lstrip().partition(b"\n")
    if not first.startswith(b"{") or not rest.strip():
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _looks_like_data(text: bytes) -> bool:
    """Whether the text begins with an object over several lines, or with {"data": [...]} on one."""
    first = text.partition(b"\n")[0]
    compact = first.replace(b" ", b"")
    return first.strip() == b"{" or compact.startswith(b'{"data":[')


def _stdin_rows(format: Format | None) -> Iterator[Row]:
    # sys.stdin may have been replaced by something without a buffer, or be None in a windowed program.
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        raise UsageError('"-" means standard input, and there is none here; give a path')
    stream = io.BufferedReader(_Unclosed(buffer), _HEAD_BYTES)
    yield from _file_rows(stream, stream.peek(), "<stdin>", format)


class _Unclosed(io.RawIOBase):
    """Another stream's bytes; closing this one leaves that one open, because standard input is not ours."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read1(len(buffer)) if hasattr(self._stream, "read1") else self._stream.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def _records(records: Iterable[Any]) -> Iterator[Row]:
    for number, record in enumerate(records, start=1):
        yield number, _record(record, number)


def _record(record: Any, number: int) -> dict[str, Any] | RowError:
    """One record of any accepted kind as a dict."""
    row: dict[str, Any]
    if isinstance(record, dict):
        row = dict(record)
    elif isinstance(record, dspy.Example):
        row = marked = MarkedRow(record.items())
        marks = getattr(record, "_input_keys", None)
        marked.inputs = None if marks is None else tuple(sorted(marks))
    elif isinstance(record, pydantic.BaseModel):
        row = record.model_dump()
    elif dataclasses.is_dataclass(record) and not isinstance(record, type):
        row = dataclasses.asdict(record)
    elif isinstance(record, tuple) and hasattr(record, "_asdict"):
        row = record._asdict()
    elif isinstance(record, Mapping):
        row = dict(record)
    else:
        remedy = "give dicts, dspy.Examples, pydantic models, dataclasses or named tuples"
        return RowError(f"a {type(record).__name__} is not a row", line=number, value=record, remedy=remedy)
    strange = [key for key in row if not isinstance(key, str)]
    if strange:
        return RowError(
            f"the field name {strange[0]!r} is not text", line=number, value=record, remedy="name fields with text"
        )
    return row
