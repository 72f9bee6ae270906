"""sides.py: the two sides of a pair row: which one is preferred, however it is spelled, and the pair turned round.

In: rows with two sides, "title_a" and "title_b". Out: "A", "B" or "tie"; the swapped row.
The preference stands under `preferred`, `preference` or `preferred_title`, as a side ("A", "b", "title_a"), as the text
of the preferred side, or as a word for a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import dspy

from dspy_finetune.data.coerce import Unreadable
from dspy_finetune.data.items import item_key, pair_base
from dspy_finetune.errors import UsageError

Side = Literal["A", "B", "tie"]

_TIES = frozenset({"tie", "tied", "draw", "equal", "both", "neither", "same"})


def preference_names(base: str) -> tuple[str, ...]:
    """The fields under which the preference may stand: preferred, preference, preferred_title."""
    return ("preferred", "preference", f"preferred_{base}")


def read_preferred(row: dspy.Example, base: str, names: Sequence[str] | None = None) -> Side:
    """Which side the row prefers.

    Args:
        row: A pair row with f"{base}_a" and f"{base}_b".
        base: The name that the sides share, such as "title".
        names: The fields to look under; None: the three usual ones. Where several are there, they must agree.

    Raises:
        Unreadable: No such field, a value that is neither a side nor one of the texts, or two fields that disagree.
    """
    names = preference_names(base) if names is None else names
    found = {name: _read(row[name], row, base) for name in names if name in row}
    if not found:
        raise Unreadable("no preference", f"give one of the fields {', '.join(names)}")
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} says {side}" for name, side in found.items())
        raise Unreadable(f"the fields disagree: {told}", "keep the one that is right")
    return next(iter(found.values()))


def _read(value: Any, row: dspy.Example, base: str) -> Side:
    text_a, text_b = row[f"{base}_a"], row[f"{base}_b"]
    word = value.strip().casefold() if isinstance(value, str) else None
    named: Side | None = None
    if word in ("a", f"{base}_a".casefold()):
        named = "A"
    elif word in ("b", f"{base}_b".casefold()):
        named = "B"
    elif word in _TIES:
        named = "tie"
    is_a, is_b = item_key(value) == item_key(text_a), item_key(value) == item_key(text_b)
    remedy = f'write "A", "B", "tie", or the preferred {base} itself'
    if is_a and is_b:
        if named is not None:
            return named
        raise Unreadable(f"{_shown(value)} is the text of both sides", remedy)
    by_text: Side | None = "A" if is_a else "B" if is_b else None
    if named is not None and by_text is not None and named != by_text:
        raise Unreadable(
            f"{_shown(value)} names side {named} and is the text of side {by_text}", 'write "title_a" or "title_b"'
        )
    if named is None and by_text is None:
        raise Unreadable(f"{_shown(value)} is neither a side nor one of the two texts", remedy)
    return named or by_text or "tie"


def swap(pair: dspy.Example, *, text: str | None = None) -> dspy.Example:
    """The same pair with its sides exchanged: every x_a with its x_b, and the preference with them.

    A preference that is the text of a side stays, since the text has moved; `swap(swap(pair)) == pair`. Texts that
    speak of "A" and "B", such as an explanation, are not rewritten.

    >>> swap(dspy.Example(title_a="Ants", title_b="Bees", preferred="A"))
    Example({'title_a': 'Bees', 'title_b': 'Ants', 'preferred': 'B'}) (input_keys=None)

    Args:
        pair: A row with two sides.
        text: The name that the sides share, such as "title"; None finds it.

    Raises:
        UsageError: The row has no two sides of that name.
    """
    base = pair_base(pair) if text is None else text
    if base is None or f"{base}_a" not in pair or f"{base}_b" not in pair:
        wanted = f"{text or 'x'}_a and {text or 'x'}_b"
        raise UsageError(f"not a pair: the row has no fields {wanted}; it has: {', '.join(pair.keys())}")
    swapped = pair.copy()
    for name in pair.keys():  # noqa: SIM118 -- Example is no dict
        other = f"{name[:-2]}_b" if name.endswith("_a") else f"{name[:-2]}_a" if name.endswith("_b") else None
        if other is not None and other in pair:
            swapped[name] = pair[other]
    for name in preference_names(base):
        if name in pair:
            swapped[name] = _turned(pair[name], base)
    return swapped


def _turned(value: Any, base: str) -> Any:
    """The name of the other side in the same spelling; anything that names no side stays."""
    word = value.strip() if isinstance(value, str) else ""
    if word.casefold() not in ("a", "b", f"{base}_a".casefold(), f"{base}_b".casefold()):
        return value
    return value.replace(word, word[:-1] + {"a": "b", "b": "a", "A": "B", "B": "A"}[word[-1]])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
