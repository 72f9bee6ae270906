"""When are two texts the same item, which items a row holds, and which rows stand there twice or contradict each other.

In: values and rows. Out: keys that compare equal when the items are the same, groups of rows that share items; reports
that name the rows (counted from 1), and the examples without their duplicates. A pair row holds two items ("title_a",
"title_b"); any other row holds one, its inputs together.
Two texts are the same "exact"ly, or "normalized": alike after Unicode NFKC and without case, punctuation and outer or
double spaces (`normalize_text` has the details). Rewordings are not recognised.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import dspy

from dspy_finetune.data.fields import Columns, check_names, columns_hint
from dspy_finetune.errors import EmptyDatasetError, RowError, RowsError, UsageError
from dspy_finetune.tasks import are_sides, compared_fields, sides_of
from dspy_finetune.values import TIE_WORDS, Unparseable, fold

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
    bases = [name[:-2] for name in sides_of(names)]
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
        raise UsageError(f"the table has no field {name!r}; {columns_hint(name, row.keys())}")
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
    if len(names) == 2 and are_sides(names):
        return item_key(row[names[0]], how), item_key(row[names[1]], how)
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


def group_numbers(items: Sequence[Sequence[str]]) -> list[int]:
    """For each row the number of its group, as `connected_rows` makes them."""
    numbers = [0] * len(items)
    for number, rows in enumerate(connected_rows(items)):
        for row in rows:
            numbers[row] = number
    return numbers


# Which side of a pair row is preferred, however it is spelled: the preference stands under `preferred`, `preference` or
# `preferred_title`, as a side ("A", "b", "title_a"), as the text of the preferred side, or as a word for a tie.

Side = Literal["A", "B", "tie"]


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
        Unparseable: No such field, a value that is neither a side nor one of the texts, or two fields that disagree.
    """
    names = preference_names(base) if names is None else names
    found = {name: _read(row[name], row, base) for name in names if name in row}
    if not found:
        raise Unparseable("no preference", f"give one of the fields {', '.join(names)}")
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} says {side}" for name, side in found.items())
        raise Unparseable(f"the fields disagree: {told}", "keep the one that is right")
    return next(iter(found.values()))


def _read(value: Any, row: dspy.Example, base: str) -> Side:
    text_a, text_b = row[f"{base}_a"], row[f"{base}_b"]
    word = value.strip().casefold() if isinstance(value, str) else None
    named: Side | None = None
    if word in ("a", f"{base}_a".casefold()):
        named = "A"
    elif word in ("b", f"{base}_b".casefold()):
        named = "B"
    elif word in TIE_WORDS:
        named = "tie"
    is_a, is_b = item_key(value) == item_key(text_a), item_key(value) == item_key(text_b)
    remedy = f'write "A", "B", "tie", or the preferred {base} itself'
    if is_a and is_b:
        if named is not None:
            return named
        raise Unparseable(f"{_shown(value)} is the text of both sides", remedy)
    by_text: Side | None = "A" if is_a else "B" if is_b else None
    if named is not None and by_text is not None and named != by_text:
        raise Unparseable(
            f"{_shown(value)} names side {named} and is the text of side {by_text}", 'write "title_a" or "title_b"'
        )
    if named is None and by_text is None:
        raise Unparseable(f"{_shown(value)} is neither a side nor one of the two texts", remedy)
    return named or by_text or "tie"


def decided_pairs(rows: Sequence[dspy.Example], columns: Columns) -> list[dspy.Example]:
    """Pair rows whose label names a side by one of `columns.labels`; a text of a side becomes that side's name.

    Rows in which neither side is preferred are left out: ties, no answer, an answer that is the text of both.

    >>> rows = [dspy.Example(left="Ants", right="Bees", best=best) for best in ("Bees", "tie")]
    >>> columns = Columns(task="pairs", inputs=("left", "right"), label="best", labels=("left", "right"), why="")
    >>> [row.best for row in decided_pairs(rows, columns)]
    ['right']

    Raises:
        RowsError: Answers that are neither a side, nor its text, nor a tie; each is listed.
    """
    texts = [str(label) for label in columns.labels]
    named = columns.sides
    order = compared_fields(named, texts)
    if order is None:
        return list(rows)
    sides = {fold(text) for text in texts}
    kept: list[dspy.Example] = []
    wrong: list[RowError] = []
    for number, row in enumerate(rows, start=1):
        value = row.get(columns.label)
        if is_missing(value) or (fold(str(value)) in TIE_WORDS and fold(str(value)) not in sides):
            continue
        if fold(str(value)) in sides:
            kept.append(row)
            continue
        same = [place for place, name in zip(order, named, strict=True) if str(row.get(name)) == str(value)]
        if len(same) == 1:
            kept.append(row.copy(**{columns.label: columns.labels[same[0]]}))
        elif not same:
            remedy = f"write {texts[0]!r} or {texts[1]!r}, or the text of the preferred side"
            problem = "neither a side nor one of the two texts"
            wrong.append(RowError(problem, line=number, field=columns.label, value=value, remedy=remedy))
    if wrong:
        raise RowsError(wrong)
    return kept


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# Rows that stand there twice, and labels that contradict each other.

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
