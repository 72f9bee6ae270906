"""When are two texts the same item, and which items does a row hold.

In: values and rows. Out: keys that compare equal when the items are the same, and groups of rows that share items.
A pair row holds two items ("title_a", "title_b"); any other row holds one, its inputs together.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import dspy

from dspy_finetune.data.fields import check_names, columns_hint
from dspy_finetune.errors import EmptyDatasetError, RowError, RowsError, UsageError

How = Literal["normalized", "exact"]
By = str | Sequence[str] | Callable[[dspy.Example], Any]

# Marks that make another thing of a word (C, C#; 5, 5%) are kept; symbols such as + and $ are no punctuation anyway.
_KEPT_MARKS = frozenset("#%&@")
_APOSTROPHES = frozenset("'’ʼ`´")
_PLAIN = re.compile(r"[a-z0-9]+(?: [a-z0-9]+)*")


def normalize_text(text: str) -> str:
    """The text as it is compared: Unicode NFKC, no case, no punctuation (but # % & @), single spaces.

    Apostrophes vanish, other punctuation parts words as a space does; a text of nothing but punctuation stays as it is.

    >>> normalize_text("  Don’t  PANIC: state-of-the-art C#! ")
    'dont panic state of the art c#'
    """
    if _PLAIN.fullmatch(text):
        return text
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(_kept(character) for character in folded)
    return " ".join(kept.split()) or " ".join(text.split())


def _kept(character: str) -> str:
    if character.isalnum() or character in _KEPT_MARKS:
        return character
    if character in _APOSTROPHES:
        return ""
    category = unicodedata.category(character)
    # Cf: zero-width joiners and soft hyphens, which nobody sees.
    return "" if category == "Cf" else " " if category[0] == "P" else character


def item_key(value: Any, how: How = "normalized") -> str:
    """A text that is equal for equal items: of text, the normalised text; of anything else, its JSON or its repr."""
    if isinstance(value, str):
        return normalize_text(value) if how == "normalized" else value
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, default=repr)
    except (TypeError, ValueError):
        return repr(value)


def check_how(how: str) -> None:
    """Refuse an unknown way to compare. Raises UsageError."""
    if how not in ("normalized", "exact"):
        raise UsageError(f'how={how!r} is not known; use "normalized" or "exact"')


def check_rows(rows: Iterable[dspy.Example], doing: str) -> list[dspy.Example]:
    """The rows as a list, plain dicts among them as examples.

    Raises:
        EmptyDatasetError: There are none.
        RowsError: Some are neither examples nor dicts.
        UsageError: They are a path or a table, which are to be loaded first, or no rows at all.
    """
    is_table = type(rows).__module__.partition(".")[0] in ("pandas", "polars", "pyarrow")
    if is_table or isinstance(rows, (str, bytes, os.PathLike, Mapping, dspy.Example)) or not isinstance(rows, Iterable):
        raise UsageError(
            f"a {type(rows).__name__} is no list of examples to {doing}; load them with load_examples first"
        )
    listed = [dspy.Example(row) if isinstance(row, dict) else row for row in rows]
    if not listed:
        raise EmptyDatasetError(f"there are no examples to {doing}")
    remedy = "load the rows with load_examples"
    wrong = [
        RowError(f"a {type(row).__name__} is not an example", line=number, value=row, remedy=remedy)
        for number, row in enumerate(listed, start=1)
        if not isinstance(row, dspy.Example)
    ]
    if wrong:
        raise RowsError(wrong)
    return listed


def pair_base(row: dspy.Example) -> str | None:
    """Of a pair row the name that its two sides share ("title" of title_a and title_b), else None.

    Where several names come in two, the one marked as input counts: reason_a and reason_b may ride along.
    """
    names = row.keys()
    bases = [name[:-2] for name in names if name.endswith("_a") and f"{name[:-2]}_b" in names]
    marked = [base for base in bases if f"{base}_a" in input_names(row)]
    found: list[str] = marked or bases
    return found[0] if found else None


def input_names(row: dspy.Example) -> tuple[str, ...]:
    """The fields marked as inputs, in the row's order; all fields where none is marked."""
    marks = getattr(row, "_input_keys", None)
    names = [name for name in row.keys() if marks is None or name in marks]  # noqa: SIM118 -- Example is no dict
    return tuple(names)


def values_of(rows: Sequence[dspy.Example], names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Each row's values of these fields. Raises RowsError that lists every row without them, UsageError if all are."""
    missing = [(number, name, row) for number, row in enumerate(rows, start=1) for name in names if name not in row]
    if missing and len({number for number, _, _ in missing}) == len(rows):
        _, name, row = missing[0]
        raise UsageError(f"the examples have no field {name!r}; {columns_hint(name, row.keys())}")
    if missing:
        hint = [columns_hint(name, row.keys()) for _, name, row in missing]
        raise RowsError(
            [RowError("missing", line=n, field=name, remedy=hint[i]) for i, (n, name, _) in enumerate(missing)]
        )
    return [tuple(row[name] for name in names) for row in rows]


def is_missing(value: Any) -> bool:
    """Whether a value says nothing: None, NaN, or a text of nothing but spaces, as an empty cell of a CSV file."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def row_keys(rows: Sequence[dspy.Example], by: By | None, how: How) -> list[Hashable]:
    """One key per row: equal where the rows are the same thing, whole (a pair A, B is another row than B, A).

    A row that has no value of `by` is like no other.
    """
    if by is None:
        return [tuple((name, item_key(row[name], how)) for name in input_names(row)) for row in rows]
    if callable(by):
        found: list[tuple[Any, ...]] = [(by(row),) for row in rows]
    else:
        found = values_of(rows, check_names(by, "by"))
    return [
        ("no value", index) if all(map(is_missing, values)) else tuple(item_key(value, how) for value in values)
        for index, values in enumerate(found)
    ]


def row_items(rows: Sequence[dspy.Example], by: By | None, how: How) -> list[tuple[str, ...]]:
    """The items that each row holds.

    by: one field name, whose value is the item; several, each of whose values is an item; a function of the row, whose
    result is the item (a tuple or list: several). None: both sides of a pair row, else the inputs together.
    A value that is missing is no item: a row without any shares nothing with another.
    """
    if by is None:
        return [_own_items(row, how) for row in rows]
    if callable(by):
        given = [by(row) for row in rows]
        found = [tuple(value) if isinstance(value, (tuple, list)) else (value,) for value in given]
    else:
        found = values_of(rows, check_names(by, "by"))
    return [tuple(item_key(value, how) for value in values if not is_missing(value)) for values in found]


def _own_items(row: dspy.Example, how: How) -> tuple[str, ...]:
    base = pair_base(row)
    if base is not None:
        return item_key(row[f"{base}_a"], how), item_key(row[f"{base}_b"], how)
    names = input_names(row)
    if len(names) == 1:  # comparable with the sides of pairs
        return (item_key(row[names[0]], how),)
    return (json.dumps([[name, item_key(row[name], how)] for name in names], ensure_ascii=False),)


def connected_rows(items: Sequence[Sequence[str]]) -> list[list[int]]:
    """Groups of row indices such that no item stands in two groups, each as small as can be; in the rows' order."""
    parent = list(range(len(items)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_row: dict[str, int] = {}
    for index, held in enumerate(items):
        for item in held:
            other = root(first_row.setdefault(item, index))
            mine = root(index)
            parent[max(other, mine)] = min(other, mine)
    groups: dict[int, list[int]] = {}
    for index in range(len(items)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())
