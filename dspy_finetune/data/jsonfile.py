"""jsonfile.py: JSON and JSONL files as (line number, row), with every fault named.

In: an open binary stream and the name that errors show. Out: an iterator of (line number from 1, dict), where a row
that cannot be read is a RowError in the dict's place, so that the caller decides to stop or to skip; a fault after
which no further row can be trusted is raised. JSONL is read line by line; a JSON file is read whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from dspy_finetune._files import BOM
from dspy_finetune.data.encoding import Row, check_encoding, decoded_lines, not_utf8
from dspy_finetune.errors import EmptyDatasetError, RowError


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


def read_jsonl(stream: BinaryIO, name: str) -> Iterator[Row]:
    """One JSON object per line; blank lines are passed over."""
    first = True
    for number, text, wrong in decoded_lines(stream, name):
        if wrong is not None:
            yield number, wrong
        elif text.strip():
            if first and text.strip() in ("{", "["):
                raise RowError(
                    "the first line is a lone bracket: this is JSON over several lines, not JSONL",
                    path=name,
                    line=number,
                    value=text.strip(),
                    remedy='name the file .json or give format="json"',
                )
            yield number, _json_line(text, name, number)
            first = False


def _json_line(text: str, name: str, number: int) -> dict[str, Any] | RowError:
    remedy = "one JSON object per line"
    try:
        value = _DECODER.decode(text)
    except _BadJsonValue as error:
        return RowError(str(error), path=name, line=number, value=text[:80])
    except RecursionError:
        return RowError("nested too deeply", path=name, line=number, value=text[:80], remedy=remedy)
    except ValueError as error:
        stripped = text.strip()
        if stripped.startswith("{'"):
            remedy = "this is Python's notation with single quotes; write the row with json.dumps"
        elif stripped.startswith("\ufeff"):
            remedy = "a byte-order mark stands before the row, as where files were joined; take it out"
        elif "\r" in stripped:
            remedy = "the lines end with CR alone; save the file with LF line ends"
        elif isinstance(error, json.JSONDecodeError) and error.msg.startswith("Invalid control character"):
            remedy = f"write {text[error.pos]!r} as an escape such as \\u{ord(text[error.pos]):04x}, or take it out"
        problem = f"not JSON ({_json_reason(error)})"
        return RowError(problem, path=name, line=number, value=stripped[:80], remedy=remedy)
    return checked_object(value, text, name, number)


def _json_reason(error: ValueError) -> str:
    """Python's reason without its "line 1", which is not the line of the file."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg.removesuffix(' at')} at column {error.colno}"


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


class _JsonFile:
    """A walk through the text of one JSON file, which knows the line it is on."""

    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name
        self.position, self._line, self._counted = 0, 1, 0

    def rows(self) -> Iterator[Row]:
        if self._next() == "{":
            self._enter_data()
        if self._next() != "[":
            raise self._error("neither a list nor an object", 'write a list of objects, or {"data": [...]}')
        self.position += 1
        while self._next() != "]":
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
        return self._line

    def _broken(self, error: Exception) -> RowError:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        if isinstance(error, json.JSONDecodeError):
            self.position, reason = max(error.pos, self._counted), _json_reason(error)
        remedy = "mend the file"
        if self.text.lstrip()[:2] in ("['", "{'", "[{'") or self.text[self.position : self.position + 1] == "'":
            remedy = "this is Python's notation with single quotes; write the file with json.dump"
        return self._error(f"not JSON ({reason})", remedy)

    def _error(self, problem: str, remedy: str) -> RowError:
        value = self.text[self.position : self.position + 80]
        return RowError(problem, path=self.name, line=self._line_now(), value=value, remedy=remedy)
