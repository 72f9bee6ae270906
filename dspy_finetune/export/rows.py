"""One training row in OpenAI's shape, and its bytes.

In: rows as dicts: `{"messages": [...]}` for SFT, `{"input": {...}, "preferred_output": [...], "non_preferred_output":
[...]}` for DPO.
Out: the bytes of their JSONL lines, equal to `json.dumps(row, ensure_ascii=False, separators=(",", ":"))`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from json.encoder import encode_basestring
from typing import Any

from dspy_finetune.errors import FinetuneError, RowError, RowsError

# The json module's general encoder takes 3.8 us for a row of three short messages, most of it in Python; rows here are
# nearly always a dict of lists of {"role", "content"}, and for those the C string encoder alone does it in 0.9 us.
# orjson takes 0.2 us, but writes floats otherwise (1e16 for json's 1e+16), so the bytes of a file would depend on what
# is installed.
_encode_any = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

_OPENINGS = {role: f'{{"role":"{role}","content":' for role in ("system", "user", "assistant")}
# A system prompt is the same in every row of a file, and longer than all the rest of it.
_encode_repeated = functools.lru_cache(maxsize=16)(encode_basestring)

encode_text = encode_basestring
"""A text as a JSON string, characters beyond ASCII as they are."""


def encode_row(row: Mapping[str, Any]) -> bytes:
    """The row's line without its end.

    Raises:
        RowError: A text cannot be written as UTF-8 (a lone surrogate), or a value is not JSON.
    """
    try:
        return (_encode_plain(row) or _encode_mapping(row)).encode("utf-8")
    except UnicodeEncodeError as error:
        found = error.object[error.start : error.end]
        raise RowError(
            f"character {found!r} is half of a surrogate pair, which UTF-8 cannot hold",
            value=error.object[max(0, error.start - 40) : error.end + 40],
            remedy="the text was decoded wrongly; read its source again as UTF-8, or remove the character",
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(
            f"cannot be written as JSON ({error})", value=row, remedy="use text, numbers, booleans, lists and dicts"
        ) from error


def _encode_plain(row: Mapping[str, Any]) -> str | None:
    """A row of nothing but plain text messages, or None; nearly every row of a file is one."""
    messages = row.get("messages")
    if len(row) != 1 or type(messages) is not list:
        return None
    parts = []
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return None
        (first, role), (second, content) = message.items()
        if first != "role" or second != "content" or type(role) is not str or type(content) is not str:
            return None
        before = _OPENINGS.get(role)
        if before is None:
            return None
        parts.append(before + (_encode_repeated(content) if role == "system" else encode_basestring(content)))
    return '{"messages":[' + "},".join(parts) + "}]}" if parts else None


def _encode_mapping(row: Mapping[str, Any]) -> str:
    parts = []
    for key, value in row.items():
        if type(value) is list:
            text = "[" + ",".join([_encode_item(item) for item in value]) + "]"
        elif type(value) is dict:
            text = _encode_mapping(value)
        elif type(value) is str:
            text = encode_basestring(value)
        else:
            text = _encode_any(value)
        parts.append((encode_basestring(key) if type(key) is str else _key(key)) + ":" + text)
    return "{" + ",".join(parts) + "}"


def _encode_item(item: Any) -> str:
    if type(item) is dict:
        if len(item) == 2 and type(role := item.get("role")) is str and type(content := item.get("content")) is str:
            if next(iter(item)) == "role":
                return f'{{"role":{encode_basestring(role)},"content":{encode_basestring(content)}}}'
            return f'{{"content":{encode_basestring(content)},"role":{encode_basestring(role)}}}'
        return _encode_mapping(item)
    return _encode_any(item)


def _key(key: Any) -> str:
    # What the json module makes of keys that are not strings, in its own words.
    return _encode_any({key: 0})[1:-3]


def row_error(error: FinetuneError, number: int) -> RowError:
    """Whatever rendering an example raised, as a RowError that names the row."""
    if isinstance(error, RowsError):
        error = error.errors[0]
    if isinstance(error, RowError):
        if error.line is not None:
            return error
        return RowError(error.problem, line=number, field=error.field, value=error.value, remedy=error.remedy)
    return RowError(str(error), line=number)
