"""encoding.py: the bytes of a text file as numbered lines of text, with every byte that is not UTF-8 named.

In: an open binary stream and the name that errors show. Out: (line number from 1, text, the line's encoding error or
None). UTF-8 with or without a byte-order mark is read; UTF-16 and UTF-32 are recognised and refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from dspy_finetune._files import BOM
from dspy_finetune.errors import RowError

Row = tuple[int, "dict[str, Any] | RowError"]
"""A line number and the row that begins there, or the reason why it cannot be read."""

_SAVE_UTF8 = "save the file as UTF-8"
# UTF-32 first: its little-endian mark begins with UTF-16's.
_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def check_encoding(head: bytes, name: str) -> None:
    """Refuse a file whose first bytes are those of UTF-16 or UTF-32. Raises RowError."""
    problem = None
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            problem = f"the file is {encoding} (its byte-order mark is at byte offset 0)"
            break
    else:
        # Without a mark, plain text in UTF-16 shows by its zero bytes: one beside every ASCII character, three in
        # UTF-32.
        n_zeros = head[:4].count(0)
        if n_zeros >= 2:
            problem = f"the file looks like UTF-{16 if n_zeros == 2 else 32} (zero byte at byte offset {head.index(0)})"
    if problem is not None:
        raise RowError(problem, path=name, line=1, value=head[:4], remedy=_SAVE_UTF8)


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
        remedy=_SAVE_UTF8,
    )
