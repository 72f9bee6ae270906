"""csvfile.py: CSV and TSV files as (line number, row), with every fault named.

In: an open binary stream and the name that errors show. Out: an iterator of (line number from 1, dict of text),
where a row that cannot be read is a RowError in the dict's place; a header that cannot be trusted, or a quote that
never closes, is raised. The rules are RFC 4180's: a comma (or tab, or semicolon) between cells, double quotes around
a cell that holds one or a line end, a quote inside a cell doubled. Cells stay text; types are the loader's business.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import BinaryIO

from dspy_finetune.data.encoding import Row, decoded_lines
from dspy_finetune.errors import EmptyDatasetError, RowError

_MAX_CELL = 1 << 26


def read_csv(stream: BinaryIO, name: str, delimiter: str | None) -> Iterator[Row]:
    """A header and one row per record; a row's number is the line where it begins, since cells may hold line ends.

    Args:
        stream: The open file.
        name: What errors call it.
        delimiter: None reads it off the header: a comma, or else the semicolon or tab that is there instead.
    """
    lines = _CsvLines(stream, name)
    head = lines.peek()
    reader = csv.reader(lines, delimiter=delimiter or _delimiter_of(head), strict=True)
    # The limit belongs to the whole process and starts at 128 KB, which one long article exceeds; it is only ever
    # raised.
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL))
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            fault = lines.take_error() or _csv_error(error, name, start, lines)
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
            header = _checked_header(cells, name, start)
        elif wrong is not None:
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
        self._error: RowError | None = None
        self._peeked: list[tuple[int, str, RowError | None]] = []
        self.number = 0
        self.ended = False

    def peek(self) -> str:
        """The first line that is not blank, left in place; blank lines before it are kept for the line numbers."""
        for item in self._lines:
            self._peeked.append(item)
            if item[1].strip():
                return item[1]
        return ""

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
        self._error = self._error or wrong
        return text


def _csv_error(error: csv.Error, name: str, start: int, lines: _CsvLines) -> RowError:
    reason = str(error)
    if lines.ended:
        span = f"lines {start} to {lines.number}" if lines.number > start else f"line {start}"
        # Raised, not listed: where the quote should have closed is unknown, so every later row may be lost in this one.
        raise RowError(
            f"a quoted cell is never closed; {span} would be one row",
            path=name,
            line=start,
            remedy='close the quote, and write a quote inside a cell as ""',
        ) from error
    if "new-line character" in reason:
        problem, remedy = "a carriage return (CR) stands inside a cell without quotes", "save with LF or CRLF line ends"
    elif "expected after" in reason:
        problem, remedy = "text follows a closing quote", 'write a quote inside a cell as "", and quote the whole cell'
    else:
        problem, remedy = f"not CSV ({reason})", "mend the line"
    return RowError(problem, path=name, line=start, remedy=remedy)


def _delimiter_of(header: str) -> str:
    return next((mark for mark in ",;\t" if mark in header), ",")


def _checked_header(cells: list[str], name: str, line: int) -> list[str]:
    header = [cell.strip() for cell in cells]
    for position, column in enumerate(header, start=1):
        if not column:
            remedy = "name it; a table saved by pandas needs to_csv(..., index=False)" if position == 1 else "name it"
            raise RowError(
                f"column {position} of the header has no name", path=name, line=line, value=cells, remedy=remedy
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
