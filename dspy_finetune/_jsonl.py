"""The one tolerant reader of JSONL: a file of rows, however badly it was written, as `Entry(line, value, faults)`.

In: a path or an open stream. Out: entries in the order of the file: rows, blank lines, faults of the whole file. The
loader raises the faults, the check reports them, the fix and the conversion write the values anew, and `read_jsonl` is
the strict way for files that programs wrote. Memory holds one row at a time: arrays and rows over several lines are
read piece by piece.
Not covered: what a row must hold (export/checks knows), and which faults a caller forgives.
"""

from __future__ import annotations

import ast
import codecs
import contextlib
import io
import json
import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, NamedTuple

import orjson

from dspy_finetune._files import BOM, file_error, packed_kind
from dspy_finetune.errors import RowError

MISSING: Final = object()
"""The value of a text that cannot be read."""

SAVE_UTF8 = "save the file as UTF-8"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LITERAL_LIMIT = 4 << 20
_DEEP = "nested too deeply"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong with a text."""

    code: str
    """Its stable name; export/checks/codes.py has them all."""
    message: str
    """What was found."""
    path: str = ""
    """Where inside the value, for duplicate keys."""
    remedy: str = "one JSON object per line"
    """What to do in the file itself."""


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A text, read."""

    value: Any
    """`MISSING` where nothing could be read."""
    faults: tuple[Fault, ...] = ()
    """Empty where the text is plain JSON."""
    rest: tuple[str, ...] = ()
    """The other values of the text, where it holds several."""


class _NotANumber(ValueError):
    """The text holds NaN or Infinity."""


class _Object(dict[str, Any]):
    """An object that remembers which of its keys came twice."""

    twice: tuple[str, ...] = ()


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = _Object(pairs)
    if len(made) < len(pairs):
        n_times = Counter(key for key, _ in pairs)
        made.twice = tuple(key for key, n in n_times.items() if n > 1)
    return made


def _refuse_constant(name: str) -> Any:
    raise _NotANumber(name)


_STRICT = json.JSONDecoder(parse_constant=_refuse_constant)
_LOOSE = json.JSONDecoder(parse_constant=_refuse_constant, strict=False)
_KEYS = json.JSONDecoder(object_pairs_hook=_pairs, strict=False)
# A string, or a comma that has only space before a closing bracket: strings are matched first, so a comma inside one
# is safe.
_COMMAS = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])')


def decode(text: str, decoder: json.JSONDecoder = _STRICT) -> Any:
    """The JSON value of a text. Raises ValueError, for depth beyond Python's stack as well."""
    try:
        return decoder.decode(text)
    except RecursionError as error:
        raise ValueError(_DEEP) from error


def duplicate_keys(text: str) -> list[Fault]:
    """A fault for each key that an object of this JSON text has twice."""
    try:
        value = decode(text, _KEYS)
    except ValueError:
        return []
    faults: list[Fault] = []
    stack: list[tuple[str, Any]] = [("", value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, _Object):
            for key in item.twice:
                faults.append(
                    Fault(
                        code="duplicate-key",
                        message=f'the key "{key}" stands twice in one object',
                        path=join(path, key),
                        remedy="keep one of them",
                    )
                )
            stack.extend((join(path, key), child) for key, child in reversed(item.items()))
        elif isinstance(item, list):
            stack.extend((f"{path}[{i}]", child) for i, child in reversed(list(enumerate(item))))
    return faults


def join(path: str, key: str) -> str:
    """The JSON path of a key."""
    return f"{path}.{key}" if path else key


def read_python(text: str) -> Any:
    """The value of Python's repr of JSON-like data; `MISSING` where it is none."""
    text = text.strip()
    if not text or text[0] not in "{[('\"" or len(text) > _LITERAL_LIMIT or "\0" in text:
        return MISSING
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the data are the data's business
            value = ast.literal_eval(text)
        # Sets, bytes and complex numbers have no JSON; tuples become lists, as json.dumps makes them.
        return json.loads(json.dumps(value, allow_nan=False))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return MISSING


def parse_line(line: bytes, *, offset: int = 0) -> Parsed:
    """Read one line that a fast reader refused.

    Args:
        line: The line's bytes, without its end.
        offset: Where the line starts in the file; named in messages about bytes.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"not UTF-8: byte 0x{line[error.start]:02x} at byte offset {offset + error.start} of the file"
        return Parsed(value=MISSING, faults=(Fault(code="invalid-utf8", message=message, remedy=SAVE_UTF8),))
    if "\0" in text:
        at = text.index("\0")
        problem = f"NUL byte at character {at + 1}"
        remedy = "write the row again; the file is damaged or binary"
        with contextlib.suppress(ValueError):
            decode(text, _LOOSE)  # inside a string it is one control character more
            problem = f"not JSON (Invalid control character at column {at + 1})"
            remedy = f"write {text[at]!r} as an escape such as \\u0000, or take it out"
        return Parsed(value=MISSING, faults=(Fault(code="nul-byte", message=problem, remedy=remedy),))
    return parse_text(text)


def parse_text(text: str) -> Parsed:
    """Read a text as JSON, then as JSON with each of the common mistakes, then as Python."""
    try:
        value = decode(text)
        return Parsed(value=value, faults=(*_half_characters(text, value), *duplicate_keys(text)))
    except _NotANumber as error:
        return Parsed(
            value=MISSING,
            faults=(Fault(code="not-a-number", message=f"{error} is not JSON", remedy="write null or a number"),),
        )
    except ValueError as error:
        problem = reason_of(error)
    for attempt in (_control, _trailing_comma, _several, _python):
        parsed = attempt(text)
        if parsed is not None:
            return parsed
    remedy = Fault.remedy
    if text.startswith("\ufeff"):
        remedy = "a byte-order mark stands before the row, as where files were joined; take it out"
    found = f"not JSON ({problem}): {shown(text)}"
    return Parsed(value=MISSING, faults=(Fault(code="not-json", message=found, remedy=remedy),))


def reason_of(error: ValueError) -> str:
    """Python's reason without its "line 1", which is not the line of the file."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg.removesuffix(' at')} at column {error.colno}"


def _half_characters(text: str, value: Any) -> list[Fault]:
    if not _SURROGATE.search(text):
        return []
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"the text holds half a character (\\u{ord(error.object[error.start]):04x} without its other half)"
        return [Fault(code="lone-surrogate", message=found, remedy="mend the text where it was cut")]
    return []


def shown(text: str, width: int = 60) -> str:
    """The beginning of a text, on one line and without control characters."""
    cut = text[: width + 1]
    return repr(cut if len(cut) <= width else cut[:width] + "...")


def _control(text: str) -> Parsed | None:
    try:
        value = decode(text, _LOOSE)
    except ValueError:
        return None
    try:
        _STRICT.decode(text)
    except json.JSONDecodeError as error:
        found = text[error.pos]
        remedy = f"write {found!r} as an escape such as \\u{ord(found):04x}, or take it out"
        fault = Fault(code="control-character", message=f"not JSON ({reason_of(error)})", remedy=remedy)
        return Parsed(value=value, faults=(fault,))
    return None


def _trailing_comma(text: str) -> Parsed | None:
    mended = _COMMAS.sub(lambda match: match[1] or "", text.rstrip().rstrip(","))
    if mended == text:
        return None
    try:
        value = decode(mended)
    except ValueError:
        return None
    return Parsed(value=value, faults=(Fault(code="trailing-comma", message="a comma stands where nothing follows"),))


def _several(text: str) -> Parsed | None:
    values, at = [], 0
    pieces: list[str] = []
    try:
        while at < len(text):
            value, end = _STRICT.raw_decode(text, at)
            values.append(value)
            pieces.append(text[at:end])
            while end < len(text) and text[end] in " \t\r\n,":
                end += 1
            at = end
    except (ValueError, RecursionError):
        return None
    if len(values) < 2 or not all(isinstance(value, dict) for value in values):
        return None
    cr = ": the lines end with CR alone" if "\r" in text.rstrip("\r\n") else ""
    remedy = "save the file with LF line ends" if cr else "put each on a line of its own"
    fault = Fault(code="several-values", message=f"{len(values)} JSON objects stand on one line{cr}", remedy=remedy)
    return Parsed(value=values[0], faults=(fault,), rest=tuple(pieces[1:]))


def _python(text: str) -> Parsed | None:
    value = read_python(text)
    if not isinstance(value, (dict, list)):
        return None
    remedy = "this is Python's notation with single quotes; write the row with json.dumps"
    fault = Fault(code="python-repr", message=f"Python's repr, not JSON: {shown(text)}", remedy=remedy)
    return Parsed(value=value, faults=(fault,))


def kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return next((name for cls, name in names.items() if isinstance(value, cls)), "of another kind")


# A file, piece by piece.

_PIECE = 1 << 20
_LONGEST = 64 << 20
"""Maximum number of characters of one value."""
_MAX_LINES = 1 << 16
"""Maximum number of lines that are tried as one row."""
_MAX_FAILURES = 20
"""Maximum number of lines that look like the start of a row and are none; then lines are taken one by one."""
_MAX_DEPTH = 100

_PLAIN = json.JSONDecoder()
_SPACE = re.compile(r"[\s,]*")
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_STRINGS = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'')


class Entry(NamedTuple):
    """A piece of the file."""

    line: int | None
    """Its first line, from 1; None for what is said of the whole file."""
    value: Any
    """The row; `MISSING` for a blank line, a fault of the file, or a text that cannot be read."""
    faults: tuple[Fault, ...] = ()
    """What is wrong with the text."""
    raw: bytes = b""
    """The text as it stands, without the end of the line; empty for what is not one plain line."""
    place: str = ""
    """Which row of the line it is, such as `[2]`, where a line holds several (an array, rows run together)."""


FORGIVEN = frozenset({"bom", "blank-line", "crlf"})
"""Faults that change no value: every reader but the check passes over them."""


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of each line that is not blank: the strict way, for files that programs wrote.

    Raises:
        FileError: The file cannot be opened or read.
        RowError: A line is not UTF-8 or not JSON; names path, line and remedy.
    """
    for entry in read_entries(path):
        for fault in entry.faults:
            if fault.code not in FORGIVEN:
                raise row_error(fault, os.fspath(path), entry.line)
        if entry.value is not MISSING:
            yield entry.line or 1, entry.value


def row_error(fault: Fault, path: str, line: int | None) -> RowError:
    """A fault as the error of its line."""
    return RowError(fault.message, path=path, line=line or 1, remedy=fault.remedy)


def read_entries(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """Every piece of a file.

    Raises:
        FileError: The file cannot be opened or read.
    """
    try:
        with open(path, "rb") as opened:
            yield from stream_entries(opened)
    except OSError as error:
        raise file_error(error, path, "read") from error


def stream_entries(stream: io.BufferedReader[Any]) -> Iterator[Entry]:
    """Every piece of an open file. Raises OSError."""
    head = stream.peek(4)[:4]
    packed = packed_kind(head)
    if packed is not None:
        yield _fault(None, "binary-file", f"the file is {packed}")
        return
    wide = wide_encoding(head)
    if wide is None:
        yield from _read_stream(stream)
        return
    encoding, message = wide
    yield _fault(None, "utf-16", message, SAVE_UTF8)
    with tempfile.TemporaryFile() as narrow:
        broken = transcode(stream, encoding, narrow)
        if broken:
            yield _fault(None, "invalid-utf8", broken)
        narrow.seek(0)
        yield from _read_stream(narrow)


# UTF-32 first: its little-endian mark begins with UTF-16's.
WIDE_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def wide_encoding(head: bytes) -> tuple[str, str] | None:
    """The codec of a file whose first four bytes are those of UTF-16 or UTF-32, and how they show; None for others."""
    for mark, encoding in WIDE_MARKS:
        if head.startswith(mark):
            return encoding, f"the file is {encoding.upper()} (its byte-order mark is at byte offset 0)"
    # Without a mark, plain text in UTF-16 shows by its zero bytes: one beside every ASCII character, three in UTF-32.
    n_zeros = head[:4].count(0)
    if n_zeros < 2 or n_zeros > 3 or len(head) < 4:
        return None
    name = "utf-16" if n_zeros == 2 else "utf-32"
    order = "be" if head[0] == 0 else "le"
    return f"{name}-{order}", f"the file looks like {name.upper()} (zero byte at byte offset {head.index(0)})"


def transcode(wide: IO[bytes], encoding: str, narrow: IO[bytes]) -> str:
    """Copy to UTF-8; returns what stopped it, or nothing."""
    decoder = codecs.getincrementaldecoder(encoding)()
    while True:
        block = wide.read(_PIECE)
        try:
            narrow.write(decoder.decode(block, final=not block).encode("utf-8"))
        except UnicodeError as error:
            return f"not {encoding.upper()} all the way ({error.args[-1] if error.args else error})"
        if not block:
            return ""


def _fault(line: int | None, code: str, message: str, remedy: str = Fault.remedy) -> Entry:
    return Entry(line, MISSING, (Fault(code=code, message=message, remedy=remedy),))


def _read_stream(opened: IO[bytes]) -> Iterator[Entry]:
    stream, offset = _Stream(opened), 0
    first = stream.look()
    if first.startswith(BOM):
        yield _fault(None, "bom", "the file starts with a byte-order mark (EF BB BF)")
        offset = len(BOM)
        stream.skip(offset)
        first = first[offset:]
    kind, parsed = _array_kind(first)
    if kind == "array":
        yield _fault(None, "json-array", "the file is one JSON array", _AS_JSON)
        yield from _read_array(stream)
    elif parsed is not None and not stream.look().strip():
        yield _fault(None, "json-array", "the file is one JSON array", _AS_JSON)
        for fault in parsed.faults:
            yield Entry(1, MISSING, (fault,))
        for i, value in enumerate(parsed.value):
            yield Entry(1, value, place=f"[{i}]")
    elif (start := _data_start(stream)) is not None:
        yield _fault(None, "json-array", 'the file is one JSON object, whose "data" is the list of rows', _AS_JSON)
        yield from _read_array(stream, start)
    else:
        yield from _read_lines(_Source(stream, offset))


_DATA = re.compile(rb'\s*\{\s*"data"\s*:\s*(?=\[\s*[{\]])')
"""How a file begins that is one object with its rows under "data"."""
_MAX_HEAD_LINES = 8
_AS_JSON = 'name the file .json or give format="json"'


def _data_start(stream: _Stream) -> bytes | None:
    """What stands before the list of rows of {"data": [...]}; None where the file is none such."""
    head = stream.seen()
    while len(stream.ahead) < _MAX_HEAD_LINES and not _DATA.match(head):
        line = stream.look()
        if not line:
            break
        head = stream.seen()
    found = _DATA.match(head)
    if found is None:
        return None
    # One object that is whole on its line, with another line behind it, is a row that has a key "data".
    first, _, rest = head.partition(b"\n")
    with contextlib.suppress(ValueError):
        orjson.loads(first)
        if (rest or stream.look()).strip():
            return None
    return found[0]


class _Stream:
    """A binary stream of which some lines have been looked at already."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.ahead: list[bytes] = []

    def look(self) -> bytes:
        """The next line, or its first megabyte; it will be read again."""
        line = self._stream.readline(_PIECE)
        if line:
            self.ahead.append(line)
        return line

    def seen(self) -> bytes:
        """All that was looked at."""
        return b"".join(self.ahead)

    def skip(self, n: int) -> None:
        """Drop bytes from the start of what was looked at."""
        self.ahead[0] = self.ahead[0][n:]

    def readline(self) -> bytes:
        if not self.ahead:
            return self._stream.readline()
        line = self.ahead.pop(0)
        # A long line was looked at up to a bound; what it lacks follows.
        return line if line.endswith(b"\n") or self.ahead else line + self._stream.readline()

    def read(self, size: int) -> bytes:
        if self.ahead:
            return self.ahead.pop(0) or self.read(size)
        return self._stream.read(size)


class _Source:
    """Lines with their numbers and offsets, and a way to put some back."""

    def __init__(self, stream: _Stream, offset: int) -> None:
        self._stream = stream
        self._offset = offset
        self._number = 0
        self._back: list[tuple[int, int, bytes]] = []
        self.n_crlf = 0

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        while True:
            if self._back:
                yield self._back.pop()
                continue
            raw = self._stream.readline()
            if not raw:
                return
            self._number += 1
            if raw.endswith(b"\r\n"):
                self.n_crlf += 1
            self._offset += len(raw)
            yield self._number, self._offset - len(raw), raw

    def put_back(self, lines: list[tuple[int, int, bytes]]) -> None:
        self._back.extend(reversed(lines))


def _array_kind(first: bytes) -> tuple[str, Parsed | None]:
    """Whether the file is an array to be read piece by piece, or lines; its first line, if that is an array of rows."""
    start = first.lstrip()
    if not start.startswith(b"["):
        return "lines", None
    inner = start[1:].lstrip()
    if len(first) >= _PIECE or not inner:
        return "array", None
    parsed = parse_line(first.strip())
    if isinstance(parsed.value, list):
        # A list of messages is a row that lacks its frame; a list of rows, or an empty one, is a file that is an array.
        is_messages = all(isinstance(item, dict) and "role" in item for item in parsed.value) and bool(parsed.value)
        is_rows = all(isinstance(item, dict) for item in parsed.value) and not is_messages
        return "lines", parsed if is_rows else None
    return ("array", None) if inner.startswith(b"{") else ("lines", None)


def _read_array(stream: _Stream, before: bytes = b"") -> Iterator[Entry]:
    """The elements of the array that makes up the file; `before` is what stands before it, and a brace then closes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, at, line, size, is_whole = "", len(before.decode("utf-8")), 1 + before.count(b"\n"), _PIECE, False
    opened, n_elements = False, 0
    while True:
        if at <= len(text):
            end = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # the pattern matches anywhere
            line += text.count("\n", at, end)
            at = end
        if at < len(text) and not opened:
            opened, at = True, at + 1
            continue
        if at < len(text) and text[at] == "]":
            rest = text[at + 1 :].strip()
            if before and (rest.startswith(",") or rest == "}"):
                return  # other keys of the object hold no rows
            if rest:
                yield _fault(line, "not-json", f"more follows after the end of the array: {shown(rest)}")
            return
        stop = _value_end(text, at) if at < len(text) else None
        if stop is not None and (stop < len(text) or is_whole):
            parsed = _deep(parse_text(text[at:stop]))
            yield Entry(line, parsed.value, parsed.faults, place=f"[{n_elements}]")
            n_elements += 1
            line += text.count("\n", at, stop)
            at = stop
            continue
        if is_whole or len(text) - at > _LONGEST:
            what = (
                "the array is not closed"
                if at >= len(text)
                else f"an element of the array is not JSON: {shown(text[at:])}"
            )
            yield _fault(line, "not-json", what)
            return
        block = stream.read(size)
        is_whole = not block
        try:
            more = decoder.decode(block, final=is_whole)
            text, at = text[at:] + more, max(0, at - len(text))
        except UnicodeDecodeError as error:
            yield _fault(
                line,
                "invalid-utf8",
                f"bytes after this line are not UTF-8: {error.object[error.start : error.start + 4].hex(' ')}",
            )
            return
        size = max(_PIECE, len(text))


def _value_end(text: str, at: int) -> int | None:
    try:
        return _PLAIN.raw_decode(text, at)[1]
    except (ValueError, RecursionError):
        return None


def _read_lines(source: _Source) -> Iterator[Entry]:
    n_failures = 0
    for number, offset, raw in source:
        try:
            # orjson is four times as fast as the json module, and rounds integers beyond 64 bits.
            value = orjson.loads(raw)
            if (_is_flat(value, raw) or n_keys(value) == _n_written_keys(raw)) and not _LONG_NUMBER.search(raw):
                yield Entry(number, value, (), raw)
                continue
        except ValueError:
            pass
        if not raw.strip():
            yield _fault(number, "blank-line", "the line is blank")
            continue
        parsed = _deep(parse_line(raw.rstrip(b"\r\n"), offset=offset))
        if (
            parsed.faults
            and parsed.faults[0].code == "not-json"
            and raw.lstrip()[:1] in (b"{", b"[")
            and n_failures < _MAX_FAILURES
        ):
            whole = _join_lines(source, (number, offset, raw))
            if whole is not None:
                yield Entry(number, whole.value, whole.faults)
                continue
            n_failures += 1
        first = "[0]" if parsed.rest else ""
        yield Entry(number, parsed.value, parsed.faults, b"" if parsed.faults else raw, first)
        for i, text in enumerate(parsed.rest, start=1):
            more = _deep(parse_text(text))
            yield Entry(number, more.value, more.faults, place=f"[{i}]")
    if source.n_crlf:
        yield _fault(None, "crlf", f"{source.n_crlf:,} line{'s' if source.n_crlf != 1 else ''} end with CR LF")


def _join_lines(source: _Source, first: tuple[int, int, bytes]) -> Parsed | None:
    """One value out of a line that only begins it and of those that follow; None where they make none."""
    lines, want = [first], 2
    incoming = iter(source)
    while True:
        is_whole = False
        while len(lines) < want and not is_whole:
            following = next(incoming, None)
            is_whole = following is None
            if following is not None:
                lines.append(following)
        text = b"".join(raw for _, _, raw in lines).decode("utf-8", errors="replace")
        try:
            end = _PLAIN.raw_decode(text, len(text) - len(text.lstrip()))[1]
        except json.JSONDecodeError as error:
            # Strings cannot run over lines, so a text that is only incomplete fails at its very end.
            if error.pos >= len(text.rstrip()) and not is_whole and len(lines) < _MAX_LINES and len(text) < _LONGEST:
                want = 2 * want
                continue
            end = _balanced_end(text)
        except (ValueError, RecursionError):
            end = 0
        parsed = _deep(parse_text(text[:end])) if end else None
        if parsed is None or any(fault.code == "not-json" for fault in parsed.faults):
            source.put_back(lines[1:])
            return None
        n_used = text.count("\n", 0, end)
        rest = text[end:].split("\n", 1)[0].strip(" \t\r,")
        after = lines[n_used + 1 :]
        if rest:
            after.insert(0, (lines[n_used][0], lines[n_used][1], rest.encode("utf-8") + b"\n"))
        source.put_back(after)
        fault = Fault(
            code="pretty-printed",
            message=f"the row is spread over {n_used + 1} lines: this is JSON over several lines, not JSONL",
            remedy='name the file .json or give format="json"',
        )
        return Parsed(value=parsed.value, faults=(fault, *parsed.faults))


def _balanced_end(text: str) -> int:
    """Where the first bracket of a text that is not quite JSON closes; 0 if it does not, or on its first line."""
    blank = _STRINGS.sub(lambda match: "x" * len(match[0]), text)
    depth = 0
    for match in re.finditer(r"[\[{}\]]", blank):
        depth += 1 if match[0] in "[{" else -1
        if depth == 0:
            return match.end() if "\n" in text[: match.end()] else 0
    return 0


def _deep(parsed: Parsed) -> Parsed:
    """The same, unless it is nested more deeply than any row, so that nothing behind this runs out of stack."""
    try:
        n_keys(parsed.value)
    except ValueError as error:
        return Parsed(value=MISSING, faults=(Fault(code="not-json", message=str(error)),))
    return parsed


def _n_written_keys(raw: bytes) -> int:
    """How many keys a line of JSON shows; more than its value has when one is written twice.

    A quote before a colon ends a key, unless it is escaped or begins a string that starts with a colon: then the
    numbers differ as well, and the line is read again, slowly.
    """
    return raw.count(b'":') - raw.count(b'\\":')


def _is_flat(value: Any, raw: bytes) -> bool:
    """True for messages without deeper objects and repeated keys, by counting alone: a third of n_keys' time."""
    if type(value) is not dict or len(value) != 1 or raw.count(b"[") > _MAX_DEPTH:
        return False
    messages = value.get("messages")
    if type(messages) is not list:
        return False
    try:
        return 1 + sum(map(len, messages)) == _n_written_keys(raw) and all(
            type(message) is dict for message in messages
        )
    except TypeError:
        return False


def n_keys(value: Any, depth: int = 0) -> int:
    """Number of keys of all objects in a value. Raises ValueError beyond 100 levels."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested more than {_MAX_DEPTH} levels deep")
    n = 0
    if type(value) is dict:
        n = len(value)
        value = value.values()
    elif type(value) is not list:
        return 0
    for item in value:
        kind = type(item)
        if kind is dict or kind is list:
            n += n_keys(item, depth + 1)
    return n
