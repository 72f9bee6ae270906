"""Rows that stand there twice, and labels that contradict each other.

In: examples. Out: reports that name the rows (counted from 1), and the examples without their duplicates.
Two texts are the same "exact"ly, or "normalized": alike after Unicode NFKC and without case, punctuation and outer or
double spaces (`normalize_text` has the details). Rewordings are not recognised.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal

import dspy

from dspy_finetune.data.fields import check_names
from dspy_finetune.data.items import (
    By,
    How,
    check_how,
    check_rows,
    input_names,
    item_key,
    pair_base,
    row_keys,
    values_of,
)
from dspy_finetune.data.pairs import read_preferred
from dspy_finetune.errors import RowError, RowsError, UsageError
from dspy_finetune.values import Unparseable

_log = logging.getLogger(__name__)

_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conflict:
    """Rows that hold the same item and another label."""

    text: str
    """The item as its first row has it."""
    rows: tuple[int, ...]
    """The rows' numbers, counted from 1."""
    labels: tuple[Any, ...]
    """Each row's label (a tuple of values where several fields make the label); of a pair, the preferred item."""

    def __str__(self) -> str:
        shown = ", ".join(
            f"row {row}: {label!r}" for row, label in list(zip(self.rows, self.labels, strict=True))[:_SHOWN]
        )
        return f"{self.text[:80]!r} has contradicting labels ({shown})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A row that was left out because an earlier one holds the same."""

    row: int
    """The row that was left out, counted from 1."""
    first_row: int
    """The row that was kept instead."""
    text: str
    """The item as the left-out row has it."""


class Deduplicated(list[dspy.Example]):
    """The examples without duplicates, and what was left out."""

    def __init__(
        self,
        examples: Iterable[dspy.Example] = (),
        *,
        duplicates: Sequence[Duplicate] = (),
        conflicts: Sequence[Conflict] = (),
    ) -> None:
        super().__init__(examples)
        self.duplicates = list(duplicates)
        """The rows left out because an earlier row holds the same item."""
        self.conflicts = list(conflicts)
        """The items among them whose rows have contradicting labels."""

    def summary(self, *, shown: int = 10) -> str:
        """A few lines for people: how many rows are left, which went, which labels contradict each other."""
        n, n_conflicts = len(self.duplicates), len(self.conflicts)
        lines = [f"{len(self)} rows kept, {n} left out, {n_conflicts} item{'s' * (n_conflicts != 1)} in conflict"]
        lines += [
            f"  row {gone.row} repeats row {gone.first_row}: {gone.text[:80]!r}" for gone in self.duplicates[:shown]
        ]
        lines += [f"  ... and {n - shown} more"] * (n > shown)
        lines += [f"  {conflict}" for conflict in self.conflicts[:shown]]
        lines += [f"  ... and {n_conflicts - shown} more"] * (n_conflicts > shown)
        return "\n".join(lines)


def deduplicate(
    examples: Iterable[dspy.Example],
    *,
    by: By | None = None,
    how: How = "exact",
    label: str | Sequence[str] | None = None,
    on_conflict: Literal["first", "drop", "raise"] = "first",
) -> Deduplicated:
    """Keep the first row of each item.

    >>> rows = [dspy.Example(title="Ants!", liked=True), dspy.Example(title="ants", liked=False)]
    >>> print(deduplicate(rows, by="title", how="normalized", label="liked").summary())
    1 rows kept, 1 left out, 1 item in conflict
      row 2 repeats row 1: 'ants'
      'Ants!' has contradicting labels (row 1: True, row 2: False)

    Args:
        examples: The rows.
        by: What makes a row the same: a field, several fields together, or a function of the row; a row where it is
            missing (None, NaN, an empty text) repeats no other. None: the fields marked as inputs, or all fields
            where none is marked.
        how: "exact", or "normalized": without regard to case, punctuation, spaces and Unicode form.
        label: The field or fields that must agree between duplicates. None: all labels of rows with marked inputs;
            nothing where no inputs are marked.
        on_conflict: What becomes of an item whose rows have different labels: its "first" row is kept and the conflict
            is reported, all its rows are left out ("drop"), or RowsError ("raise").

    Raises:
        RowsError: Labels contradict each other and on_conflict="raise".
        EmptyDatasetError: There are no rows.
    """
    check_how(how)
    if on_conflict not in ("first", "drop", "raise"):
        raise UsageError(f'on_conflict={on_conflict!r} is not known; use "first", "drop" or "raise"')
    rows = check_rows(examples, "deduplicate")
    keys = row_keys(rows, by, how)
    labels = _labels(rows, by, label)
    conflicts = [] if labels is None else _conflicts(rows, by, keys, labels, [label_key(found) for found in labels])
    if conflicts and on_conflict == "raise":
        raise RowsError([RowError(str(found), line=found.rows[1], remedy="decide on one label") for found in conflicts])
    first_of: dict[Hashable, int] = {}
    for index, key in enumerate(keys):
        first_of.setdefault(key, index)
    dropped = {row for found in conflicts for row in found.rows} if on_conflict == "drop" else set()
    duplicates = [
        Duplicate(row=index + 1, first_row=first_of[key] + 1, text=_text(rows[index], by))
        for index, key in enumerate(keys)
        if first_of[key] != index or index + 1 in dropped
    ]
    gone = {duplicate.row for duplicate in duplicates}
    if conflicts:
        what = "1 item has" if len(conflicts) == 1 else f"{len(conflicts)} items have"
        _log.warning("%s contradicting labels; the first: %s", what, conflicts[0])
    kept = [row for number, row in enumerate(rows, start=1) if number not in gone]
    return Deduplicated(kept, duplicates=duplicates, conflicts=conflicts)


def find_conflicts(
    examples: Iterable[dspy.Example],
    *,
    by: By | None = None,
    label: str | Sequence[str] | None = None,
    how: How = "normalized",
) -> list[Conflict]:
    """Items that stand there with more than one label.

    In pair rows ("title_a", "title_b", "preferred") the order does not matter: A preferred in one row and the same item
    preferred as B in another agree.

    Args:
        examples: The rows.
        by: The field, the fields together, or the function that makes the item; None: the inputs, of pairs both sides.
        label: The label's field or fields. None: "preferred" of pair rows, else all fields not marked as inputs.
        how: "normalized" or "exact".

    Raises:
        UsageError: `label` is None and no inputs are marked, so that it cannot be known what the label is.
    """
    check_how(how)
    rows = check_rows(examples, "compare")
    if by is None and all(pair_base(row) is not None for row in rows):
        return _pair_conflicts(rows, label, how)
    labels = _labels(rows, by, label)
    if labels is None:
        raise UsageError(
            'label=None needs rows with marked inputs; give the label\'s field, such as label="is_favorite"'
        )
    return _conflicts(rows, by, row_keys(rows, by, how), labels, [label_key(found) for found in labels])


def label_key(label: Any) -> str:
    """A text that is equal for equal labels; True, 1 and "1" are three labels."""
    return f"{type(label).__name__}:{item_key(label, 'exact')}"


def _labels(rows: Sequence[dspy.Example], by: By | None, label: str | Sequence[str] | None) -> list[Any] | None:
    """Each row's label, a tuple where several fields make it; None where it is not known which they are."""
    if label is not None:
        values = values_of(rows, check_names(label, "label"))
        return [value[0] for value in values] if isinstance(label, str) else list(values)
    if any(getattr(row, "_input_keys", None) is None for row in rows):
        return None
    used = set(check_names(by, "by")) if by is not None and not callable(by) else set()
    names = [[name for name in row.keys() if name not in input_names(row) and name not in used] for row in rows]  # noqa: SIM118 -- Example is no dict
    found = [tuple(row[name] for name in own) for row, own in zip(rows, names, strict=True)]
    return [values[0] if len(values) == 1 else values for values in found]


def _conflicts(
    rows: Sequence[dspy.Example],
    by: By | None,
    keys: Sequence[Hashable],
    labels: Sequence[Any],
    meanings: Sequence[str],
) -> list[Conflict]:
    """Keys that come with more than one meaning of the label; `labels` is what a report shows."""
    held: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        held.setdefault(key, []).append(index)
    return [
        Conflict(
            text=_text(rows[found[0]], by),
            rows=tuple(index + 1 for index in found),
            labels=tuple(labels[index] for index in found),
        )
        for found in held.values()
        if len({meanings[index] for index in found}) > 1
    ]


def _pair_conflicts(rows: list[dspy.Example], label: str | Sequence[str] | None, how: How) -> list[Conflict]:
    names = None if label is None else check_names(label, "label")
    keys: list[Hashable] = []
    labels: list[str] = []
    wrong: list[RowError] = []
    for number, row in enumerate(rows, start=1):
        base = str(pair_base(row))
        texts = {"A": row[f"{base}_a"], "B": row[f"{base}_b"]}
        try:
            side = read_preferred(row, base, names)
        except Unparseable as error:
            wrong.append(RowError(error.problem, line=number, field="preferred", value=row, remedy=error.remedy))
            continue
        keys.append(tuple(sorted(item_key(text, how) for text in texts.values())))
        labels.append(str(texts.get(side, side)))
    if wrong:
        raise RowsError(wrong)
    return _conflicts(rows, None, keys, labels, [item_key(text, how) for text in labels])


def _text(row: dspy.Example, by: By | None) -> str:
    """What a person recognises the row by."""
    names = check_names(by, "by") if by is not None and not callable(by) else input_names(row)
    return " | ".join(str(row[name]) for name in names)
