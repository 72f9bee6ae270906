"""leakage.py: items that stand on two sides of a split.

In: two sets of examples, of items or of pairs. Out: a `Leakage` that names the shared items and their rows (from 1).
Texts are compared normalised (`normalize_text`) unless "exact" is asked for. Rewordings are not recognised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import dspy

from dspy_finetune.data.items import By, How, check_how, check_rows, row_items
from dspy_finetune.errors import LeakageError

_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeakedItem:
    """One item that stands in both sets."""

    text: str
    """The item as it is compared (normalised, unless asked otherwise)."""
    rows_a: tuple[int, ...]
    """The rows of the first set that hold it, counted from 1."""
    rows_b: tuple[int, ...]
    """The rows of the second set that hold it, counted from 1."""

    def __str__(self) -> str:
        return (
            f"{self.text[:80]!r} stands in {_rows(self.rows_a)} of the first set and {_rows(self.rows_b)} of the second"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leakage:
    """What two sets share; true if they share anything."""

    items: tuple[LeakedItem, ...]
    """The shared items, in the order of the second set."""
    n_rows_a: int
    """How many rows of the first set hold a shared item."""
    n_rows_b: int
    """How many rows of the second set hold a shared item."""
    size_a: int
    """How many rows the first set has."""
    size_b: int
    """How many rows the second set has."""

    def __bool__(self) -> bool:
        return bool(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[LeakedItem]:
        return iter(self.items)

    def summary(self, *, shown: int = _SHOWN) -> str:
        """A few lines for people: how much is shared, and the first offending rows."""
        if not self.items:
            return f"no leakage: no item of the {self.size_a} and {self.size_b} rows stands in both sets"
        n = len(self.items)
        lines = [
            f"leakage: {n} item{'s' * (n != 1)} in both sets "
            f"({self.n_rows_a} of {self.size_a} and {self.n_rows_b} of {self.size_b} rows)"
        ]
        lines += [f"  {item}" for item in self.items[:shown]]
        lines += [f"  ... and {n - shown} more"] * (n > shown)
        return "\n".join(lines)

    def raise_if_any(self) -> None:
        """Raise LeakageError with the first offending rows, if anything is shared."""
        if self.items:
            raise LeakageError(
                self.summary() + "\nsplit the items before making pairs, or use split(), which keeps them apart"
            )


def find_leakage(
    a: Iterable[dspy.Example], b: Iterable[dspy.Example], *, by: By | None = None, how: How = "normalized"
) -> Leakage:
    """Which items stand in both of two sets.

    >>> pairs = [dspy.Example(title_a="Ants", title_b="Bees", preferred="A")]
    >>> print(find_leakage(pairs, [dspy.Example(title="bees!").with_inputs("title")]).summary())
    leakage: 1 item in both sets (1 of 1 and 1 of 1 rows)
      'bees' stands in row 1 of the first set and row 1 of the second

    Args:
        a: The one set, such as the training rows.
        b: The other set, such as the test rows.
        by: The field that holds the item; several fields, each of which holds an item (title_a, title_b); or a function
            of the row. None: both sides of a pair row, the inputs of any other row.
        how: "normalized" or "exact".
    """
    check_how(how)
    rows_a, rows_b = list(a), list(b)
    held_a, held_b = (_rows_of_items(rows, by, how) for rows in (rows_a, rows_b))
    shared = [item for item in held_b if item in held_a]
    return Leakage(
        items=tuple(LeakedItem(text=item, rows_a=tuple(held_a[item]), rows_b=tuple(held_b[item])) for item in shared),
        n_rows_a=len({row for item in shared for row in held_a[item]}),
        n_rows_b=len({row for item in shared for row in held_b[item]}),
        size_a=len(rows_a),
        size_b=len(rows_b),
    )


def _rows_of_items(rows: Sequence[Any], by: By | None, how: How) -> dict[str, list[int]]:
    held: dict[str, list[int]] = {}
    if not rows:  # an empty set shares nothing
        return held
    for number, items in enumerate(row_items(check_rows(rows, "compare"), by, how), start=1):
        for item in dict.fromkeys(items):
            held.setdefault(item, []).append(number)
    return held


def _rows(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"row{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers[:_SHOWN]))}{more}"
