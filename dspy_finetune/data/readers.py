"""Whatever the user calls "my data", opened as numbered rows.

In: a path, "-", "hf://...", a data frame, a data set, or any iterable of records. Out: a `Source`: the name that errors
show, and an iterator of (line or row number from 1, dict | RowError). What the fields mean is not known here.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import io
import json
import os
import re
import ssl
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import dspy
import pydantic

from dspy_finetune._files import BOM, file_error
from dspy_finetune._jsonl import (
    FORGIVEN,
    MISSING,
    SAVE_UTF8,
    WIDE_MARKS,
    reason_of,
    row_error,
    stream_entries,
    transcode,
    wide_encoding,
)
from dspy_finetune._optional import require
from dspy_finetune.data.fields import MarkedRow
from dspy_finetune.errors import DataError, EmptyDatasetError, FileError, RowError, UsageError
from dspy_finetune.values import shortest_single

Row = tuple[int, "dict[str, Any] | RowError"]
"""A line number and the row that begins there, or the reason why it cannot be read."""


def check_encoding(head: bytes, name: str) -> None:
    """Refuse a file whose first bytes are those of UTF-16 or UTF-32. Raises RowError."""
    wide = wide_encoding(head)
    if wide is not None:
        raise RowError(wide[1], path=name, line=1, value=head[:4], remedy=SAVE_UTF8)


def decoded_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str, RowError | None]]:
    """Yield (line number, text with its line end, the line's encoding error if it has one)."""
    offset = 0
    for number, raw in enumerate(stream, start=1):
        line = raw
        if number == 1:
            check_encoding(raw[:4], name)
            if raw.startswith(BOM):
                line = raw[len(BOM) :]
                offset = len(BOM)
        try:
            yield number, line.decode("utf-8"), None
        except UnicodeDecodeError as error:
            yield number, line.decode("utf-8", "surrogateescape"), not_utf8(error, offset, name, number)
        offset += len(line)


def not_utf8(error: UnicodeDecodeError, offset: int, name: str, line: int) -> RowError:
    """The error for bytes that are not UTF-8: names the offset in the file, the byte, the line."""
    found = error.object[error.start : error.start + 8]
    return RowError(
        f"not UTF-8: byte 0x{found[0]:02x} at byte offset {offset + error.start} of the file",
        path=name,
        line=line,
        value=found,
        remedy=SAVE_UTF8,
    )


# CSV and TSV:
# RFC 4180: double quotes around a cell that holds the delimiter or a line end, a quote inside it doubled. Single quotes
# are read as such where the first rows leave no doubt (`_quote_of`). A row that
# cannot be read is a RowError in its place; a header that cannot be trusted, or a quote that never closes, is raised.

_MAX_CELL = 1 << 26
DELIMITERS = (",", ";", "\t", "|")
"""Between cells, the likeliest first; any other is given with `delimiter=`."""
INDEX = "index"
"""What a first column of row numbers without a name is called."""


@contextlib.contextmanager
def _as_utf8(stream: io.BufferedReader[Any], name: str) -> Iterator[BinaryIO]:
    """A table that says by its byte-order mark that it is UTF-16, as Excel's "Unicode Text" does, in UTF-8.

    Without the mark it would be a guess, and is refused by `check_encoding`. Raises RowError where it breaks off.
    """
    head = stream.peek()[:4]
    encoding = next((encoding for mark, encoding in WIDE_MARKS if head.startswith(mark)), None)
    if encoding is None:
        yield stream
        return
    with tempfile.TemporaryFile() as narrow:
        broken = transcode(stream, encoding, narrow)
        narrow.seek(0)
        if broken:
            raise RowError(broken, path=name, line=1 + sum(line.endswith(b"\n") for line in narrow), remedy=SAVE_UTF8)
        yield narrow


def read_csv(stream: BinaryIO, name: str, delimiter: str | None) -> Iterator[Row]:
    """A header and one row per record; a row's number is the line where it begins, since cells may hold line ends.

    Args:
        stream: The open file.
        name: What errors call it.
        delimiter: None reads it off the header: the comma, semicolon, tab or bar that stands there most often. The
            line `sep=;`, which Excel writes before the header, says it too.
    """
    lines = _CsvLines(stream, name)
    head = lines.peek()
    said = _excel_delimiter(head)
    if said is not None:
        lines.skip()
        head = lines.peek()
    delimiter = delimiter or said or _delimiter_of(head)
    quote = _quote_of(lines.peek_rows(), delimiter)
    reader = csv.reader(lines, delimiter=delimiter, quotechar=quote, strict=True)
    # The limit belongs to the whole process and starts at 128 KB, which one long article exceeds; it is only ever
    # raised.
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL))
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1 + lines.n_skipped
        try:
            cells = next(reader, None)
        except csv.Error as error:
            fault = lines.take_error() or _csv_error(error, name, start, lines, quote)
            if header is None:
                raise fault from error
            yield start, fault
            continue
        if cells is None:
            break
        wrong = lines.take_error()
        if not cells or (len(cells) == 1 and not cells[0].strip() and (header is None or len(header) > 1)):
            continue  # a blank line
        if header is None:
            if wrong is not None:
                raise wrong
            # Tables saved by pandas or R begin with a column of row numbers, which has no name.
            is_numbered = re.match(rf'"?\d+"?{re.escape(delimiter)}', lines.peek()) is not None
            header = _checked_header(_trimmed(cells, 1), name, start, is_numbered=is_numbered)
            lines.n_tabbed = len(header) if delimiter == "\t" and quote == '"' else 0
            continue
        cells = _trimmed(cells, len(header))
        if wrong is not None:
            yield start, wrong
        elif len(cells) != len(header):
            yield start, _wrong_count(cells, header, name, start)
        else:
            yield start, dict(zip(header, cells, strict=True))
    if header is None:
        raise EmptyDatasetError(f"{name} is empty; it should begin with a line of column names")


class _CsvLines:
    """Decoded lines for csv.reader, which remember the encoding error of the record being read."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._lines = decoded_lines(stream, name)
        self._name = name
        self._error: RowError | None = None
        self._peeked: list[tuple[int, str, RowError | None]] = []
        self.number = 0
        self.n_skipped = 0
        self.n_tabbed = 0
        """Cells of a whole row, where tabs stand between them: there a quote may be the text's own."""
        self.ended = False

    def skip(self) -> None:
        """Pass over the lines that `peek` has read; `n_skipped` counts them."""
        self.n_skipped += len(self._peeked)
        self._peeked.clear()

    def peek(self) -> str:
        """The first line that is not blank, left in place; blank lines before it are kept for the line numbers."""
        for _, text, _ in self._peeked:
            if text.strip():
                return text
        for item in self._lines:
            self._peeked.append(item)
            if item[1].strip():
                return item[1]
        return ""

    def peek_rows(self) -> list[str]:
        """The header and the lines after it, as many as tell how cells are quoted, left in place."""
        while len(self._peeked) < _N_TOLD and (item := next(self._lines, None)) is not None:
            self._peeked.append(item)
        return [text for _, text, _ in self._peeked if text.strip()]

    def take_error(self) -> RowError | None:
        error, self._error = self._error, None
        return error

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        item = self._peeked.pop(0) if self._peeked else next(self._lines, None)
        if item is None:
            self.ended = True
            raise StopIteration
        self.number, text, wrong = item
        self._error = self._error or wrong or _nul_error(text, self._name, self.number)
        text = text.replace("\0", "")
        return self._with_own_quotes(text) if self.n_tabbed and '"' in text else text

    def _with_own_quotes(self, text: str) -> str:
        """A row whose cells begin with quotes that close nowhere, or before the cell ends, as csv.reader takes it."""
        cells = text.rstrip("\r\n").split("\t")
        own = [cell.startswith('"') and not _QUOTED.fullmatch(cell) for cell in cells]
        if len(cells) != self.n_tabbed or not any(own):
            return text
        if own[-1]:  # or it goes on in the next line
            following = self.peek()
            if following and following.count("\t") + 1 != self.n_tabbed:
                return text
        quoted = [
            '"' + cell.replace('"', '""') + '"' if is_own else cell for cell, is_own in zip(cells, own, strict=True)
        ]
        return "\t".join(quoted) + text[len(text.rstrip("\r\n")) :]


_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def _csv_error(error: csv.Error, name: str, start: int, lines: _CsvLines, quote: str) -> RowError:
    reason = str(error)
    if lines.ended:
        span = f"lines {start} to {lines.number}" if lines.number > start else f"line {start}"
        # Raised, not listed: where the quote should have closed is unknown, so every later row may be lost in this one.
        raise RowError(
            f"a quoted cell is never closed; {span} would be one row",
            path=name,
            line=start,
            remedy=f"close the quote, and write a quote inside a cell as {quote * 2}",
        ) from error
    if "new-line character" in reason:
        problem, remedy = "a carriage return (CR) stands inside a cell without quotes", "save with LF or CRLF line ends"
    elif "expected after" in reason:
        problem, remedy = (
            "text follows a closing quote",
            f"write a quote inside a cell as {quote * 2}, and quote the whole cell",
        )
    else:
        problem, remedy = f"not CSV ({reason})", "mend the line"
    return RowError(problem, path=name, line=start, remedy=remedy)


def _nul_error(text: str, name: str, line: int) -> RowError | None:
    if "\0" not in text:
        return None
    return RowError(
        f"{text.count(chr(0))} NUL character{'s' * (text.count(chr(0)) != 1)} in the line",
        path=name,
        line=line,
        value=text.strip()[:80],
        remedy="take them out, or write the file again",
    )


def _excel_delimiter(head: str) -> str | None:
    """What Excel's own first line says: `sep=;`, in quotes or not."""
    found = re.fullmatch(r'"?sep=(.)"?[\r\n]*', head, re.IGNORECASE)
    return found.group(1) if found else None


def _delimiter_of(header: str) -> str:
    bare = re.sub(r'"(?:[^"]|"")*"', "", header)
    return max(DELIMITERS, key=bare.count)


_N_TOLD = 100
"""Lines that are looked at for how cells are quoted."""


def _quote_of(rows: Sequence[str], delimiter: str) -> str:
    """What stands around cells: double quotes, or single ones where a column has them in every row.

    A text may begin and end with an apostrophe of its own; in every row of a column, at least three, it does not.
    """
    between = re.escape(delimiter)
    if not any("'" in row for row in rows) or any(re.search(rf'(^|{between})"', row) for row in rows):
        return '"'
    found: list[list[str]] = [[]]
    for cell in re.finditer(rf"('(?:[^']|'')*'|[^{between}\r\n]*)({between}|\r?\n|\Z)", "".join(rows)):
        found[-1].append(cell[1])
        if cell[2] != delimiter:
            found.append([])
    header, *read = [row for row in found if row not in ([], [""])]
    if any(len(row) != len(header) for row in read):
        return '"'
    columns = list(zip(*read, strict=True)) if len(read) >= 3 else []
    return (
        "'" if any(all(re.fullmatch(r"'.*'", cell, re.DOTALL) for cell in each) for each in (header, *columns)) else '"'
    )


def _trimmed(cells: list[str], n_columns: int) -> list[str]:
    """The cells without the empty ones at the end that no column of the header stands above."""
    n_kept = len(cells)
    while n_kept > n_columns and not cells[n_kept - 1].strip():
        n_kept -= 1
    return cells[:n_kept]


def _checked_header(cells: list[str], name: str, line: int, *, is_numbered: bool = False) -> list[str]:
    """The names without blanks around them; of a first column of row numbers that has none it is "index"."""
    header = [cell.strip() for cell in cells]
    if is_numbered and not header[0] and INDEX not in header:
        header[0] = INDEX
    for position, column in enumerate(header, start=1):
        if not column:
            raise RowError(
                f"column {position} of the header has no name", path=name, line=line, value=cells, remedy="name it"
            )
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        problem = f"the header names {', '.join(map(repr, twice))} more than once"
        raise RowError(problem, path=name, line=line, value=cells, remedy="give every column a name of its own")
    return header


def _wrong_count(cells: list[str], header: list[str], name: str, line: int) -> RowError:
    remedy = (
        "quote the cells that hold the delimiter"
        if len(cells) > len(header)
        else "fill the row up, or quote its line ends"
    )
    problem = f"{len(cells)} cell{'s' if len(cells) != 1 else ''}, but the header has {len(header)} columns"
    return RowError(problem, path=name, line=line, value=cells, remedy=remedy)


# JSON and JSONL:
# A fault after which no further row can be trusted is raised. JSONL is read line by line, a JSON file whole.


class _BadJsonValue(ValueError):
    """JSON that Python's reader would let through and that nobody means."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise _BadJsonValue(f'the key "{twice}" stands twice in one object; keep one of them')
    return row


def _constant(word: str) -> Any:
    raise _BadJsonValue(f"{word} is not JSON; write null or a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
_LAX_DECODER = json.JSONDecoder()


def read_jsonl(stream: io.BufferedReader[Any], name: str) -> Iterator[Row]:
    """One JSON object per line; blank lines are passed over, every other fault is the row's error."""
    for entry in stream_entries(stream):
        fault = next((fault for fault in entry.faults if fault.code not in FORGIVEN), None)
        if fault is not None and entry.line is None:
            raise row_error(fault, name, None)  # of the whole file
        if fault is not None:
            yield entry.line or 1, row_error(fault, name, entry.line)
        elif entry.value is not MISSING:
            yield entry.line or 1, checked_object(entry.value, entry.raw.decode("utf-8"), name, entry.line or 1)


def checked_object(value: Any, source: str, name: str, number: int) -> dict[str, Any] | RowError:
    """The value if it is an object with sound text, else the row's error. `source` is the JSON it was read from."""
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
        remedy = 'a row is an object such as {"title": "..."}'
        if isinstance(value, list):
            remedy += '; for a file that is one list, name it .json or give format="json"'
        return RowError(
            f"the row is {kind}, not an object", path=name, line=number, value=source.strip()[:80], remedy=remedy
        )
    if "\\ud" in source or "\\uD" in source:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            return RowError(
                f"the text holds half a character (\\u{ord(half):04x} without its other half)",
                path=name,
                line=number,
                value=source.strip()[:80],
                remedy="mend the text where it was cut",
            )
    return value


def read_json(stream: BinaryIO, name: str) -> Iterator[Row]:
    """A list of objects, or an object whose "data" is such a list; line numbers are where each object begins."""
    raw = stream.read()
    check_encoding(raw[:4], name)
    start = len(BOM) if raw.startswith(BOM) else 0
    try:
        text = raw[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, start + error.start) + 1
        raise not_utf8(error, start, name, line) from error
    del raw
    if not text.strip():
        raise EmptyDatasetError(f"{name} is empty; it should hold a list of objects")
    yield from _JsonFile(text, name).rows()


class _RowOfLine(int):
    """The number of a line that holds several rows; it reads with the row's own: "1 (row 3)"."""

    def __new__(cls, line: int, row: int) -> _RowOfLine:
        made = super().__new__(cls, line)
        made.row = row
        return made

    row: int
    """From 1."""

    def __str__(self) -> str:
        return f"{int(self)} (row {self.row})"

    def __format__(self, spec: str) -> str:
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (int(self), self.row)


class _JsonFile:
    """A walk through the text of one JSON file, which knows the line it is on, and the row where all are on one."""

    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name
        self.position, self._line, self._counted = 0, 1, 0
        self._is_one_line = "\n" not in text.strip()
        self._n_rows = 0

    def rows(self) -> Iterator[Row]:
        if self._next() == "{":
            self._enter_data()
        if self._next() != "[":
            raise self._error("neither a list nor an object", 'write a list of objects, or {"data": [...]}')
        self.position += 1
        while self._next() != "]":
            self._n_rows += 1
            line = self._line_now()
            yield line, self._item(line)
            if self._next() not in (",", "]"):
                raise self._error("not JSON (expected a comma or ] after a row)", "mend the file")
            if self._next() == ",":
                self.position += 1
                if self._next() == "]":
                    raise self._error("not JSON (a comma before ])", "take the last comma out")
        self.position += 1
        if self._at_top and self._next():
            raise self._error("not JSON (more text after the list)", 'for one object per line give format="jsonl"')

    _at_top = True

    def _enter_data(self) -> None:
        """Move to the list under "data" of the outermost object."""
        keys: list[str] = []
        self._at_top = False
        self.position += 1
        while self._next() != "}":
            key = self._value()
            keys.append(str(key))
            if self._next() != ":":
                raise self._error("not JSON (expected a colon after a key)", "mend the file")
            self.position += 1
            self._next()
            if key == "data":
                return
            self._value()
            if self._next() == ",":
                self.position += 1
            elif self._next() != "}":
                raise self._error("not JSON (expected a comma or } in the object)", "mend the file")
        self.position += 1
        more = bool(self._next())
        remedy = (
            'this looks like one object per line: give format="jsonl"' if more else 'write a list, or {"data": [...]}'
        )
        raise RowError(
            f'the object has no "data" (its keys: {", ".join(keys) or "none"})', path=self.name, line=1, remedy=remedy
        )

    def _item(self, line: int) -> dict[str, Any] | RowError:
        start = self.position
        try:
            value, self.position = _DECODER.raw_decode(self.text, start)
        except _BadJsonValue as error:
            self._value()  # only to find where the row ends
            return RowError(str(error), path=self.name, line=line, value=self.text[start : start + 80])
        except (ValueError, RecursionError) as error:
            raise self._broken(error) from error
        return checked_object(value, self.text[start : self.position], self.name, line)

    def _value(self) -> Any:
        try:
            value, self.position = _LAX_DECODER.raw_decode(self.text, self.position)
        except (ValueError, RecursionError) as error:
            raise self._broken(error) from error
        return value

    def _next(self) -> str:
        """Skip white space; the character that follows, or "" at the end."""
        while self.position < len(self.text) and self.text[self.position] in " \t\r\n":
            self.position += 1
        return self.text[self.position : self.position + 1]

    def _line_now(self) -> int:
        self._line += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        return _RowOfLine(self._line, self._n_rows) if self._is_one_line and self._n_rows else self._line

    def _broken(self, error: Exception) -> RowError:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        if isinstance(error, json.JSONDecodeError):
            self.position, reason = max(error.pos, self._counted), reason_of(error)
        remedy = "mend the file"
        if self.text.lstrip()[:2] in ("['", "{'", "[{'") or self.text[self.position : self.position + 1] == "'":
            remedy = "this is Python's notation with single quotes; write the file with json.dump"
        return self._error(f"not JSON ({reason})", remedy)

    def _error(self, problem: str, remedy: str) -> RowError:
        value = self.text[self.position : self.position + 80]
        return RowError(problem, path=self.name, line=self._line_now(), value=value, remedy=remedy)


# Parquet, data frames, Arrow tables, Hugging Face datasets:
# Missing values (NaN, NaT, NA, null) are None. Parquet is read batch by batch, a data set from the hub is streamed.

_BATCH_ROWS = 1024
_PATIENCE_SECONDS = 8.0
"""How long the hub may take to answer."""


def library_of(source: object) -> str:
    """The top-level package that defines the source's class, such as "pandas"; no import needed."""
    return type(source).__module__.partition(".")[0]


def check_columns(columns: Sequence[Any], name: str) -> None:
    """Refuse column names that are not text, or that stand twice. Raises DataError."""
    strange = [column for column in columns if not isinstance(column, str)]
    if strange:
        raise DataError(
            f"{name}: the column name {strange[0]!r} is not text; rename the columns, such as frame.columns = [...]"
        )
    twice = sorted({column for column in columns if list(columns).count(column) > 1})
    if twice:
        raise DataError(
            f"{name}: the columns {', '.join(map(repr, twice))} stand there more than once; rename or drop them"
        )


# What a column's own description says of its values: Hugging Face names the classes of a label, and stores numbers.


def decoder_of(spec: Any) -> Callable[[Any], Any] | None:
    """From stored values to the ones meant, for a feature as `datasets` describes it in JSON; None where nothing is
    to be done. A class label's number becomes its name, -1 (no label) becomes None, in lists and objects as well.

    >>> decoder_of({"names": ["ham", "spam"], "_type": "ClassLabel"})(1)
    'spam'
    """
    if isinstance(spec, list):
        return _list_decoder(spec[0]) if spec else None
    if not isinstance(spec, dict):
        return None
    if spec.get("_type") == "ClassLabel":
        return _class_decoder(spec.get("names"))
    if "_type" in spec and "feature" in spec:  # Sequence, List, LargeList
        return _list_decoder(spec["feature"])
    inner = {name: made for name, below in spec.items() if (made := decoder_of(below)) is not None}
    return _object_decoder(inner) if inner else None


def _class_decoder(names: Any) -> Callable[[Any], Any] | None:
    if not isinstance(names, list) or not names:
        return None

    def decode(value: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        return names[value] if 0 <= value < len(names) else None if value == -1 else value

    return decode


def _list_decoder(spec: Any) -> Callable[[Any], Any] | None:
    inner = decoder_of(spec)
    if inner is None:
        return None
    # A Sequence of objects is stored as one object of lists.
    columns = _object_decoder({name: _list_decoder(below) or _as_is for name, below in spec.items()})

    def decode(value: Any) -> Any:
        return [inner(item) for item in value] if isinstance(value, list) else columns(value)

    return decode


def _as_is(value: Any) -> Any:
    return value


def _object_decoder(inner: Mapping[str, Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: inner[key](item) if key in inner else item for key, item in value.items()}

    return decode


def arrow_decoder(schema: Any) -> Callable[[Any], Any] | None:
    """The same for a table or a Parquet file that `datasets` wrote, which keeps its features in the schema."""
    try:
        return decoder_of(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):
        return None


def _plain_rows(rows: Iterable[Mapping[str, Any]], decode: Callable[[Any], Any] | None = None) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        plain = {column: plain_value(value) for column, value in row.items()}
        yield number, plain if decode is None else decode(plain)


def read_frame(frame: Any, name: str) -> Iterator[Row]:
    """Rows of a pandas or polars DataFrame, a polars LazyFrame, or a pyarrow Table."""
    library = library_of(frame)
    if library == "polars" and hasattr(frame, "collect"):
        frame = frame.collect()
    if not hasattr(frame, "columns"):
        raise UsageError(
            f"a {type(frame).__name__} of {library} is not a table; give a DataFrame, such as series.to_frame()"
        )
    check_columns(frame.column_names if library == "pyarrow" else list(frame.columns), name)
    if library == "pandas":
        singles = [name for name, kind in frame.dtypes.items() if str(kind).lower() == "float32"]
        yield from _plain_rows(_shortened(_pandas_rows(frame), singles))
    elif library == "polars":
        singles = [name for name, kind in frame.schema.items() if str(kind) == "Float32"]
        yield from _plain_rows(_shortened(frame.iter_rows(named=True), singles))
    else:
        rows = (row for batch in frame.to_batches(_BATCH_ROWS) for row in batch.to_pylist())
        yield from _plain_rows(_shortened(rows, _arrow_singles(frame.schema)), arrow_decoder(frame.schema))


def _arrow_singles(schema: Any) -> list[str]:
    return [field.name for field in schema if str(field.type) == "float"]


def _shortened(rows: Iterable[Mapping[str, Any]], singles: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The rows; numbers of these columns, which are float32, with the digits that they were written with."""
    for row in rows:
        found = {name: shortest_single(row[name]) for name in singles if isinstance(row[name], float)}
        yield {**row, **found} if found else row


def _pandas_rows(frame: Any) -> Iterator[dict[str, Any]]:
    # By slices: to_dict on the whole frame would hold every row twice.
    for start in range(0, len(frame), _BATCH_ROWS):
        yield from frame.iloc[start : start + _BATCH_ROWS].to_dict("records")


def plain_value(value: Any) -> Any:
    """The value without numpy, and None for what stands for "missing", inside lists and dicts as well."""
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, dict):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if library_of(value) == "numpy":
        plain = value.tolist()
        return shortest_single(plain) if str(value.dtype) == "float32" and value.ndim == 0 else plain_value(plain)
    return None if isinstance(value, float) and value != value else value


def read_parquet(stream: BinaryIO, name: str) -> Iterator[Row]:
    """Rows of a Parquet file, batch by batch. Raises DataError where the file is broken."""
    arrow = require("pyarrow", "data", "reading Parquet")
    parquet = require("pyarrow.parquet", "data", "reading Parquet")
    try:
        file = parquet.ParquetFile(stream)
        check_columns(file.schema_arrow.names, name)
        rows = (row for batch in file.iter_batches(batch_size=_BATCH_ROWS) for row in batch.to_pylist())
        schema = file.schema_arrow
        yield from _plain_rows(_shortened(rows, _arrow_singles(schema)), arrow_decoder(schema))
    except (arrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: not a Parquet file that can be read ({reason}); write it again") from error


def read_dataset(source: Any, name: str, split: str | None) -> Iterator[Row]:
    """Rows of an object of the `datasets` package; of a DatasetDict, the split that is asked for.

    Values come as Python's own, whatever format (pandas, torch, arrow, ...) the data set is set to give.
    """
    table = pick_split(source, name, split)
    given = getattr(table, "format", None)
    kind = given.get("type") if isinstance(given, Mapping) else getattr(table, "_formatting", None)
    if kind not in (None, "custom"):  # a transform of the user's own makes the values, and is kept
        table = table.with_format(None)
    features = getattr(table, "features", None)
    singles = [key for key, kind in (features or {}).items() if getattr(kind, "dtype", None) == "float32"]
    decode = decoder_of(features.to_dict()) if features is not None else None
    yield from _plain_rows(_shortened(table, singles), decode)


def guarded_rows(rows: Iterator[Row], name: str) -> Iterator[Row]:
    """The rows, with what the `datasets` package raises on a broken file told in one line. Raises DataError."""
    datasets = require("datasets", "data", "reading a Hugging Face dataset")
    arrow = require("pyarrow", "data", "reading a Hugging Face dataset")
    try:
        yield from rows
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        remedy = "load its files one by one to see which row is wrong"
        raise DataError(f"cannot read the rows of {name}: {reason}; {remedy}") from error


def pick_split(source: Any, name: str, split: str | None) -> Any:
    """The one table that is meant. Raises UsageError where none is named among several, or a wrong one."""
    if not isinstance(source, dict):
        own = str(getattr(source, "split", None) or "")
        if split is not None and split != own:
            raise UsageError(
                f"{name} has {f'only the split {own!r}' if own else 'no splits'}; leave split={split!r} out"
            )
        return source
    names = ", ".join(source)
    if split is None and len(source) == 1:
        return next(iter(source.values()))
    if split is None:
        raise UsageError(f'{name} has the splits {names}; say which one, such as split="{next(iter(source), "train")}"')
    if split not in source:
        raise UsageError(f"{name} has no split {split!r}; it has {names} (for a part of one, use limit=)")
    return source[split]


def open_dataset(place: str, name: str, split: str | None) -> Any:
    """Open `owner/name`, `owner/name/config`, or a folder, through the `datasets` package.

    A folder is either what `save_to_disk` wrote, or one that holds data files (train.jsonl, test.csv, data/*.parquet).

    Raises:
        FileError: There is no such folder, nothing to read in it, or the hub cannot be reached.
        MissingExtraError: The `datasets` package is not installed.
    """
    datasets = require("datasets", "data", "reading a Hugging Face dataset")
    is_path = place.startswith((".", "/", "~")) or os.path.isdir(place)
    folder = Path(place).expanduser()
    if is_path and not folder.is_dir():
        raise FileError(f"cannot read {name}: no such folder; check the path", path=str(folder))
    try:
        with _quiet(datasets):
            path, config = (str(folder.resolve()), None) if is_path else _hub_name(place, name)
            if is_path and any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
                return pick_split(datasets.load_from_disk(str(folder)), name, split)
            if not is_path:
                _check_hub(name)
            return pick_split(datasets.load_dataset(path, config, streaming=True), name, split)
    except (UsageError, FileError):
        raise
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        remedy = (
            "put data files (train.jsonl, test.csv ...) in it"
            if is_path
            else "check the name, the network and HF_TOKEN"
        )
        raise FileError(f"cannot read {name}: {reason}; {remedy}", path=place) from error


def _check_hub(name: str) -> None:
    """See whether the hub answers at all; the `datasets` package tries for more than a minute to find out.

    Raises:
        FileError: It does not.
    """
    import huggingface_hub.constants as hub  # lazy: it comes with the `datasets` package

    if hub.HF_HUB_OFFLINE:  # then only what is in the cache is read
        return
    problems: list[str] = []
    # In a thread: looking up a host's name has no timeout of its own.
    asked = threading.Thread(target=_ask, args=(hub.ENDPOINT, problems), daemon=True)
    asked.start()
    asked.join(_PATIENCE_SECONDS + 1)
    if asked.is_alive():
        problems.append("it does not answer")
    if problems:
        raise FileError(
            f"cannot read {name}: {hub.ENDPOINT} cannot be reached ({problems[0]}); check the network, or set "
            "HF_HUB_OFFLINE=1 to read a copy from the cache, or give a local folder",
            path=name,
        )


def _ask(url: str, problems: list[str]) -> None:
    """Add to the problems why nobody answers at an address. An answer of any kind is none."""
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE_SECONDS):
            pass
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        # A certificate that Python does not know may be known to the package that asks next.
        if not isinstance(reason, ssl.SSLError):
            problems.append(" ".join(str(reason).split())[:200] or type(reason).__name__)


def _hub_name(place: str, name: str) -> tuple[str, str | None]:
    parts = place.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(
            f"{name} is not a data set's name; write hf://owner/name, hf://owner/name/config or hf://./folder"
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No progress bars of another library in the middle of ours."""
    was_on = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            datasets.utils.logging.enable_progress_bar()


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


def open_source(source: Any, *, format: Format | None, split: str | None, delimiter: str | None = None) -> Source:
    """Open any kind of source; files and arguments are checked at once, rows are read as they are asked for.

    Raises:
        UsageError: The source is of no known kind, or `format`, `split` or `delimiter` does not suit it.
        FileError: A file or folder is missing or cannot be read.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"format={format!r} is not known; use one of: {', '.join(FORMATS)}")
    if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n'):
        raise UsageError(f'delimiter={delimiter!r}: give the one character between cells, such as ";"')
    if isinstance(source, (str, os.PathLike)):
        return _open_named(os.fspath(source), format, split, delimiter)
    name = type(source).__name__
    for option, given in (("format", format), ("delimiter", delimiter)):
        if given is not None:
            raise UsageError(f"{option}={given!r} is for files; leave it out for a {name}")
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


def _open_named(place: str | bytes, format: Format | None, split: str | None, delimiter: str | None) -> Source:
    if isinstance(place, bytes):
        raise UsageError(f"a path must be text, not bytes: {place!r}")
    if not place:
        raise UsageError('the path is empty; name a file, a folder, "hf://owner/name", or "-" for standard input')
    if place.startswith(("http://", "https://", "s3://", "gs://")):
        raise UsageError(f"{place} is an address, and only hf:// is read from the network; download the file first")
    if place.startswith("hf://") or Path(place).is_dir():
        for option, given in (("format", format), ("delimiter", delimiter)):
            if given is not None:
                raise UsageError(f"{option}={given!r} is for files; {place} is a data set")
        return Source(name=place, path=place, rows=_lazy_dataset(place, split))
    if split is not None:
        raise UsageError(
            f'split={split!r} is for data sets with splits ("hf://owner/name", a folder); {place} is a file'
        )
    if place == "-":
        return Source(name="<stdin>", path="<stdin>", rows=_stdin_rows(format, delimiter))
    try:
        # Not opened yet: a stream that nobody reads would stay open, and a pipe can be opened only once.
        os.stat(place)
        if not os.access(place, os.R_OK):
            raise PermissionError(errno.EACCES, "permission denied")
    except (OSError, ValueError) as error:
        raise _unreadable(error, place) from error
    return Source(name=place, path=place, rows=_path_rows(place, format or _by_suffix(place), delimiter))


def _unreadable(error: OSError | ValueError, place: str) -> FileError:
    if isinstance(error, OSError):
        return file_error(error, place, "read")
    return FileError(f"cannot read {place!r}: {error}; check the path", path=place)


def _lazy_dataset(place: str, split: str | None) -> Iterator[Row]:
    table = open_dataset(place.removeprefix("hf://"), place, split)
    yield from guarded_rows(read_dataset(table, place, None), place)


def _by_suffix(path: str) -> Format | None:
    return _SUFFIXES.get(Path(path).suffix.lower())


def _path_rows(path: str, format: Format | None, delimiter: str | None) -> Iterator[Row]:
    try:
        with io.BufferedReader(io.FileIO(path), _HEAD_BYTES) as stream:
            yield from _file_rows(stream, path, format, delimiter)
    except OSError as error:
        raise error if isinstance(error, FileError) else file_error(error, path, "read") from error


def _file_rows(
    stream: io.BufferedReader[Any], name: str, format: Format | None, delimiter: str | None
) -> Iterator[Row]:
    found = _checked_format(stream.peek(), name, format or ("csv" if delimiter is not None else None))
    if delimiter is not None and found not in ("csv", "tsv"):
        raise UsageError(f"delimiter={delimiter!r} is for CSV files; {name} is read as {found}")
    if found == "parquet":
        # Its table of contents stands at the end, where a pipe cannot go.
        yield from read_parquet(stream if stream.seekable() else io.BytesIO(stream.read()), name)
    elif found == "json":
        yield from read_json(stream, name)
    elif found == "jsonl":
        yield from read_jsonl(stream, name)
    else:
        with _as_utf8(stream, name) as narrow:
            yield from read_csv(narrow, name, delimiter or ("\t" if found == "tsv" else None))


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
    if any(mark.encode() in first for mark in DELIMITERS):
        return "csv"
    if not text:
        return "jsonl"  # empty: every reader says so
    raise DataError(
        f"cannot tell the format of {name} from its name or its first line; let its name end as its format does "
        f"(.csv), or give format= one of {', '.join(FORMATS)}"
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


def _stdin_rows(format: Format | None, delimiter: str | None) -> Iterator[Row]:
    # sys.stdin may have been replaced by something without a buffer, or be None in a windowed program.
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        raise UsageError('"-" means standard input, and there is none here; give a path')
    stream = io.BufferedReader(_Unclosed(buffer), _HEAD_BYTES)
    yield from _file_rows(stream, "<stdin>", format, delimiter)


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
