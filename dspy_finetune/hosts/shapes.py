"""What a host answered, held to the shape that its API describes, before anything is read from it.

In: a client's object or JSON. Out: the same, known to hold what is named; else a MalformedResponseError, which
`Host.talking` completes with the host's name: a proxy's page, an empty object, a text where a list was promised. A
fault of this library's own code is no such error and comes out as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from dspy_finetune.errors import MalformedResponseError

Value = TypeVar("Value")
SHOWN_CHARS = 80


def present(value: Value, *paths: str) -> Value:
    """The value itself, if each path leads to something in it: `choices.message` looks into every one of a list.

    Raises:
        MalformedResponseError: Something is missing; names it.

    >>> present({"id": "ftjob-1", "data": [{"id": 1}]}, "id", "data.id")["id"]
    'ftjob-1'
    """
    for path in paths:
        level: list[Any] = [value]
        for name in path.split("."):
            found: list[Any] = []
            for one in level:
                part = one.get(name) if isinstance(one, Mapping) else getattr(one, name, None)
                found += part if isinstance(part, list) else [part]
            if not found or any(one is None for one in found):
                raise MalformedResponseError(f'it has no "{path}": {_shown(value)}')
            level = found
    return value


def part(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object in an answer; empty where it is left out or null.

    Raises:
        MalformedResponseError: It is something else.
    """
    found = value.get(name)
    if found is not None and not isinstance(found, Mapping):
        raise MalformedResponseError(f'"{name}" is no object: {_shown(found)}')
    return found or {}


def rows(value: Any, name: str | None = None) -> list[dict[str, Any]]:
    """The objects of a list: of the answer itself, or of a field of it; empty where the field is left out or null.

    Raises:
        MalformedResponseError: It is no list of objects.
    """
    found = value if name is None else whole_answer(value).get(name)
    if found is None and name is not None:
        return []
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise MalformedResponseError(f"{'the answer' if name is None else name} is no list of objects: {_shown(found)}")
    return [dict(one) for one in found]


def whole_answer(value: Any) -> dict[str, Any]:
    """An answer that is an object.

    Raises:
        MalformedResponseError: It is something else.
    """
    if not isinstance(value, Mapping):
        raise MalformedResponseError(f"it is no object: {_shown(value)}")
    return dict(value)


def page(response: Any) -> dict[str, Any]:
    """One page of a list of OpenAI's, from a client's raw response.

    Raises:
        MalformedResponseError: It is no such list.
    """
    told = whole_answer(_parsed(response.content))
    if not isinstance(told.get("data"), list):
        raise MalformedResponseError(f'it has no "data": {_shown(told)}')
    return told


def pages(ask: Callable[..., Any], **options: Any) -> Iterator[dict[str, Any]]:
    """What a list of OpenAI's holds, page after page; a host that gives the same page again is not asked for ever.

    Args:
        ask: A client's `list` with its raw response.
        options: What it is asked with.

    Raises:
        MalformedResponseError: A page is no list.
    """
    seen: Any = None
    while True:
        told = page(ask(**options))
        found = rows(told, "data")
        first = found[0].get("id") if found else None
        if first is None or first == seen:
            yield from (found if first is None else ())
            return
        yield from found
        if told.get("has_more") is False or found[-1].get("id") is None:
            return
        seen, options = first, {**options, "after": found[-1]["id"]}


def whole(value: Any) -> int | None:
    """A number as a whole one; None where it is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return int(value) if is_number else None


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise MalformedResponseError(f"it is no JSON: {_shown(content.decode('utf-8', 'replace'))}") from error


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"
