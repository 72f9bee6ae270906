"""A file of rows, however badly it was written, to its rows with the faults of each.

In: a path. Out: `Entry` values in the order of the file: rows, blank lines, faults of the whole file. Memory holds
one row at a time: arrays and rows over several lines are read piece by piece. Shared by the check, the fix and the
display.
Not covered: what a row must hold (check_rows.py).
"""

from __future__ import annotations

import ast
import codecs
import json
import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, NamedTuple

from dspy_finetune._files import BOM, file_error, packed_kind

# ----------------------------------------------------------------------------------------------------
# One piece of text to one value, however badly it was written, with the names of its faults.
#
# In: the bytes of a line, or the text of tool-call arguments. Out: `Parsed`: the value where one can be read, and what
# is wrong with the text. Shared by the check, which reports the faults, and the fix, which writes the value anew.
# Not covered: what the value means (check_rows.py), rows over several lines (check_file.py).

MISSING: Final = object()
"""The value of a text that cannot be read."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LITERAL_LIMIT = 4 << 20
_DEEP = "nested too deeply"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong with a text."""

    code: str
    """A code of check_codes.py."""
    message: str
    """What was found."""
    path: str = ""
    """Where inside the value, for duplicate keys."""


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
                    Fault(code="duplicate-key", message=f'the key "{key}" stands twice', path=join(path, key))
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
        found = line[error.start : error.start + 4].hex(" ")
        message = (
            f"byte {error.start + 1} of the line (offset {offset + error.start} of the file) is not UTF-8: {found}"
        )
        return Parsed(value=MISSING, faults=(Fault(code="invalid-utf8", message=message),))
    if "\0" in text:
        return Parsed(
            value=MISSING, faults=(Fault(code="nul-byte", message=f"NUL byte at character {text.index(chr(0)) + 1}"),)
        )
    return parse_text(text)


def parse_text(text: str) -> Parsed:
    """Read a text as JSON, then as JSON with each of the common mistakes, then as Python."""
    try:
        value = decode(text)
        return Parsed(value=value, faults=(*_half_characters(text, value), *duplicate_keys(text)))
    except _NotANumber as error:
        return Parsed(value=MISSING, faults=(Fault(code="not-a-number", message=f"{error} is not JSON"),))
    except ValueError as error:
        problem = str(error)
    for attempt in (_control, _trailing_comma, _several, _python):
        parsed = attempt(text)
        if parsed is not None:
            return parsed
    return Parsed(value=MISSING, faults=(Fault(code="not-json", message=f"not JSON ({problem}): {shown(text)}"),))


def _half_characters(text: str, value: Any) -> list[Fault]:
    if not _SURROGATE.search(text):
        return []
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        return [Fault(code="lone-surrogate", message=f"{error.object[error.start]!r} is half of a surrogate pair")]
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
    return Parsed(
        value=value, faults=(Fault(code="control-character", message="a raw control character stands in a string"),)
    )


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
    fault = Fault(code="several-values", message=f"{len(values)} JSON objects stand on one line")
    return Parsed(value=values[0], faults=(fault,), rest=tuple(pieces[1:]))


def _python(text: str) -> Parsed | None:
    value = read_python(text)
    if not isinstance(value, (dict, list)):
        return None
    return Parsed(value=value, faults=(Fault(code="python-repr", message=f"Python's repr, not JSON: {shown(text)}"),))


def decode_arguments(arguments: Any) -> tuple[str | None, str, Any]:
    """What is wrong with the arguments of a tool call.

    Returns:
        (code or None, message, the arguments as they should be written or `MISSING`).
    """
    if not isinstance(arguments, str):
        mended = json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else MISSING
        return "arguments-not-string", f"arguments are {kind(arguments)}, not a string of JSON", mended
    try:
        value = decode(arguments)
    except ValueError as error:
        value = read_python(arguments)
        if isinstance(value, dict):
            mended = json.dumps(value, ensure_ascii=False)
            return "arguments-python-repr", f"arguments are Python's repr: {shown(arguments)}", mended
        return "arguments-not-json", f"arguments are not JSON ({error}): {shown(arguments)}", MISSING
    inner, depth = value, 0
    while isinstance(inner, str) and depth < 8:
        depth += 1
        try:
            inner = decode(inner)
        except ValueError:
            inner = read_python(inner)
    if depth and isinstance(inner, dict):
        mended = json.dumps(inner, ensure_ascii=False)
        return "arguments-double-encoded", f"arguments were encoded {depth + 1} times: {shown(arguments)}", mended
    if not isinstance(value, dict):
        return "arguments-not-object", f"arguments are {kind(value)}, not an object: {shown(arguments)}", MISSING
    return None, "", arguments


def kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return next((name for cls, name in names.items() if isinstance(value, cls)), "of another kind")


# ----------------------------------------------------------------------------------------------------
_PIECE = 1 << 20
_LONGEST = 64 << 20
"""A value that is not complete after so many characters is given up."""
_MAX_LINES = 1 << 16
"""So many lines are tried as one row."""
_MAX_FAILURES = 20
"""After so many lines that look like the start of a row and are none, lines are taken one by one."""
_MAX_DEPTH = 100

_PLAIN = json.JSONDecoder()
_SPACE = re.compile(r"[\s,]*")
_STRINGS = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'')


def _fast_loads() -> Callable[[bytes], Any]:
    try:
        import orjson  # comes with DSPy 3.4; four times as fast as the json module, which does as well
    except ModuleNotFoundError:
        return lambda raw: decode(raw.decode("utf-8"))
    loads: Callable[[bytes], Any] = orjson.loads
    return loads


class Entry(NamedTuple):
    """A piece of the file."""

    line: int | None
    """Its first line, from 1; None for what is said of the whole file."""
    value: Any
    """The row; `MISSING` for a blank line, a fault of the file, or a text that cannot be read."""
    raw: bytes
    """The text as it stands, without the end of the line; empty for what is not one plain line."""
    faults: tuple[Fault, ...]
    """What is wrong with the text."""


def read_entries(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """Every piece of a file.

    Raises:
        FileError: The file cannot be opened or read.
    """
    try:
        with open(path, "rb") as opened:
            head = opened.peek(4)[:4]
            packed = packed_kind(head)
            if packed is not None:
                yield _fault(None, "binary-file", f"the file is {packed}")
                return
            encoding = _wide_encoding(head)
            if encoding is None:
                yield from _read_stream(opened)
                return
            yield _fault(None, "utf-16", f"the file is {encoding.upper()}")
            with tempfile.TemporaryFile() as narrow:
                broken = _transcode(opened, encoding, narrow)
                if broken:
                    yield _fault(None, "invalid-utf8", broken)
                narrow.seek(0)
                yield from _read_stream(narrow)
    except OSError as error:
        raise file_error(error, path, "read") from error


def _wide_encoding(head: bytes) -> str | None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if len(head) == 4 and head[0] and not head[1] and head[2] and not head[3]:
        return "utf-16-le"
    if len(head) == 4 and not head[0] and head[1] and not head[2] and head[3]:
        return "utf-16-be"
    return None


def _transcode(wide: IO[bytes], encoding: str, narrow: IO[bytes]) -> str:
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


def _fault(line: int | None, code: str, message: str) -> Entry:
    return Entry(line, MISSING, b"", (Fault(code=code, message=message),))


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
        yield _fault(None, "json-array", "the file is one JSON array")
        yield from _read_array(stream)
    elif parsed is not None and not stream.look().strip():
        yield _fault(None, "json-array", "the file is one JSON array")
        for fault in parsed.faults:
            yield Entry(1, MISSING, b"", (fault,))
        for value in parsed.value:
            yield Entry(1, value, b"", ())
    else:
        yield from _read_lines(_Source(stream, offset))


class _Stream:
    """A binary stream of which some lines have been looked at already."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._seen: list[bytes] = []

    def look(self) -> bytes:
        """The next line, or its first megabyte; it will be read again."""
        line = self._stream.readline(_PIECE)
        if line:
            self._seen.append(line)
        return line

    def skip(self, n: int) -> None:
        """Drop bytes from the start of what was looked at."""
        self._seen[0] = self._seen[0][n:]

    def readline(self) -> bytes:
        if not self._seen:
            return self._stream.readline()
        line = self._seen.pop(0)
        # A long line was looked at up to a bound; what it lacks follows.
        return line if line.endswith(b"\n") or self._seen else line + self._stream.readline()

    def read(self, size: int) -> bytes:
        if self._seen:
            return self._seen.pop(0) or self.read(size)
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
        return "lines", (None if is_messages or not _all_objects(parsed.value) else parsed)
    return ("array", None) if inner.startswith(b"{") else ("lines", None)


def _all_objects(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _read_array(stream: _Stream) -> Iterator[Entry]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, at, line, size, is_whole = "", 0, 1, _PIECE, False
    opened = False
    while True:
        end = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # the pattern matches anywhere
        line += text.count("\n", at, end)
        at = end
        if at < len(text) and not opened:
            opened, at = True, at + 1
            continue
        if at < len(text) and text[at] == "]":
            rest = text[at + 1 :].strip()
            if rest:
                yield _fault(line, "not-json", f"more follows after the end of the array: {shown(rest)}")
            return
        stop = _value_end(text, at) if at < len(text) else None
        if stop is not None and (stop < len(text) or is_whole):
            parsed = _deep(parse_text(text[at:stop]))
            yield Entry(line, parsed.value, b"", parsed.faults)
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
            text, at = text[at:] + decoder.decode(block, final=is_whole), 0
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
    loads = _fast_loads()
    n_failures = 0
    for number, offset, raw in source:
        try:
            value = loads(raw)
            if _is_flat(value, raw) or n_keys(value) == _n_written_keys(raw):
                yield Entry(number, value, raw, ())
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
                yield Entry(number, whole.value, b"", whole.faults)
                continue
            n_failures += 1
        yield Entry(number, parsed.value, b"" if parsed.faults else raw, parsed.faults)
        for text in parsed.rest:
            more = _deep(parse_text(text))
            yield Entry(number, more.value, b"", more.faults)
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
        fault = Fault(code="pretty-printed", message=f"the row is spread over {n_used + 1} lines")
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
