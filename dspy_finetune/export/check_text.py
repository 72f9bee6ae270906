"""One piece of text to one value, however badly it was written, with the names of its faults.

In: the bytes of a line, or the text of tool-call arguments. Out: `Parsed`: the value where one can be read, and what
is wrong with the text. Shared by the check, which reports the faults, and the fix, which writes the value anew.
Not covered: what the value means (check_rows.py), rows over several lines (check_file.py).
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

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
