"""Examples -> train, validation, test, with no item on two sides.

In: examples, the sides' fractions, what must stay together, what must be spread evenly. Out: `Split`, three lists.
The same rows and seed give the same split in every process. Where a side would stay empty -- too few rows, one group
that holds nearly all -- an error says so.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import random
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import dspy

from dspy_finetune.data.fields import check_names
from dspy_finetune.data.items import By, How, check_how, check_rows, connected_rows, label_key, row_items, values_of
from dspy_finetune.errors import DataError, LeakageError, UsageError
from dspy_finetune.report.blocks import Section, Table
from dspy_finetune.report.page import Reported

_log = logging.getLogger(__name__)

_SIDES = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Three lists of examples; unpacks as `train, validation, test = split(...)`."""

    train: list[dspy.Example]
    """The rows to learn from, shuffled."""
    validation: list[dspy.Example]
    """The rows to choose by, shuffled."""
    test: list[dspy.Example]
    """The rows to measure on, shuffled."""
    n_groups: int
    """How many groups of rows had to stay together; as many as rows where none shared an item."""
    n_ungrouped: int = 0
    """How many rows have no value of `group_by`; each is a group of its own."""
    rare: tuple[str, ...] = ()
    """The values of `stratify_by` that are on too few rows for every side: with `rare="train"` all theirs are trained
    on."""

    def __iter__(self) -> Iterator[list[dspy.Example]]:
        return iter((self.train, self.validation, self.test))

    def summary(self) -> str:
        """One line for people: the rows of each side."""
        counts = ", ".join(f"{name} {len(side)}" for name, side in zip(_SIDES, self, strict=True))
        alone = f"; {self.n_ungrouped} rows without a group, each its own" if self.n_ungrouped else ""
        told = f"{counts} rows ({self.n_groups} groups that stay together{alone})"
        if not self.rare:
            return told
        shown = ", ".join(repr(value) for value in self.rare[:_SHOWN])
        more = f" and {len(self.rare) - _SHOWN} more" if len(self.rare) > _SHOWN else ""
        return f"{told}; in training alone, as too rare to stand on every side: {shown}{more}"


def split(
    examples: Iterable[dspy.Example],
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    *,
    group_by: By | None = None,
    stratify_by: By | None = None,
    rare: Literal["raise", "train"] = "raise",
    seed: int = 0,
) -> Split:
    """Split examples into train, validation and test.

    Rows that share an item never part, and neither do rows connected through others: the pairs (a, b), (b, c) and
    (c, d) are one group. So pairs drawn at random from few items can hang together as one group that fills no side:
    split the items first and make pairs inside each side.

    >>> rows = [dspy.Example(title=f"Title {n}", liked=n % 2 == 0).with_inputs("title") for n in range(20)]
    >>> train, validation, test = split(rows, stratify_by="liked", seed=1)
    >>> len(train), len(validation), len(test)
    (16, 2, 2)

    Args:
        examples: The rows.
        fractions: The shares of train, validation and test; they sum to 1, and 0 leaves a side empty.
        group_by: What keeps rows together: a field (all rows with its value), several fields each of which holds an
            item (("title_a", "title_b"): rows that share any item), or a function of the row. Text is compared
            normalised. A row whose value is missing (None, NaN, an empty text) is a group of its own. None: both sides
            of pair rows, the inputs of other rows, so that duplicates do not part.
        stratify_by: The field, fields or function whose values are spread over the sides in equal shares.
        rare: What is done where a value of `stratify_by` has fewer rows or groups than there are sides: "raise" an
            error, or "train" on all of them. Such a value is learned, and never tested.
        seed: Another seed gives another split.

    Raises:
        UsageError: The fractions are not three numbers from 0 that sum to 1, or a field is in no row.
        DataError: There are fewer groups than sides to fill, or the groups are too big to fill them.
        EmptyDatasetError: There are no rows.
    """
    shares = _checked_fractions(fractions)
    rows = check_rows(examples, "split")
    items = row_items(rows, group_by, "normalized")
    n_ungrouped = sum(not held for held in items)
    if n_ungrouped:
        _log.warning("%d of %d rows have no value to group by; each is a group of its own", n_ungrouped, len(rows))
    groups = connected_rows(items)
    labels = _strata(rows, stratify_by)
    n_sides = sum(share > 0 for share in shares)
    if len(groups) < n_sides:
        rule = "rows" if len(groups) == len(rows) else f"groups ({len(rows)} rows that share items)"
        raise DataError(
            f"{len(groups)} {rule} cannot fill {n_sides} sides; "
            "give more rows, or a fraction of 0 to the sides not needed"
        )
    n_groups = Counter(label for group in groups for label in {labels[index] for index in group})
    rare_labels = [label for label, n in n_groups.items() if n < n_sides] if stratify_by is not None else []
    if rare_labels and (rare == "raise" or shares[0] == 0):
        raise _too_rare(rare_labels, n_groups, n_sides)
    targets = _targets(labels, shares, set(rare_labels))
    generator = random.Random(seed)
    generator.shuffle(groups)
    sides = _assign(groups, labels, targets)
    _check_sides(sides, shares, groups, len(rows))
    for side in sides:
        generator.shuffle(side)
    train, validation, test = ([rows[index] for index in side] for side in sides)
    return Split(
        train=train,
        validation=validation,
        test=test,
        n_groups=len(groups),
        n_ungrouped=n_ungrouped,
        rare=tuple(label.partition(":")[2] for label in rare_labels),
    )


def _checked_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    shares = tuple(fractions) if isinstance(fractions, Sequence) else ()
    if len(shares) != 3 or not all(isinstance(share, (int, float)) and math.isfinite(share) for share in shares):
        raise UsageError(
            f"fractions={fractions!r}: give three numbers, for train, validation and test; like (0.8, 0.1, 0.1)"
        )
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(f"fractions={fractions!r} sum to {sum(shares):.6g}; they must be 0 or more and sum to 1")
    return tuple(float(share) for share in shares)


def _strata(rows: Sequence[dspy.Example], stratify_by: By | None) -> list[str]:
    if stratify_by is None:
        return [""] * len(rows)
    if callable(stratify_by):
        return [label_key(stratify_by(row)) for row in rows]
    values = values_of(rows, check_names(stratify_by, "stratify_by"))
    return [
        label_key(value[0]) if len(value) == 1 else label_key([label_key(part) for part in value]) for value in values
    ]


def _too_rare(rare: Sequence[str], n_groups: Mapping[str, int], n_sides: int) -> DataError:
    name, n = rare[0].partition(":")[2], n_groups[rare[0]]
    shown = name if name.strip() else repr(name)  # an empty one would not be seen
    return DataError(
        f"stratify_by: the value {shown} has {n} row{'s' * (n != 1)} or group{'s' * (n != 1)}, too few for "
        f"{n_sides} sides ({len(rare)} such values); give more rows, coarser values by a function, "
        'rare="train" to train on theirs, or leave stratify_by (--stratify-by) out'
    )


def _targets(labels: Sequence[str], shares: tuple[float, ...], rare: Container[str]) -> dict[str, list[int]]:
    """How many rows of each label each side should get: whole numbers, at least one each, the shares kept over all.

    All rows of a rare label go to the first side.
    """
    n_rows = Counter(labels)
    wanted = [index for index, share in enumerate(shares) if share > 0]
    targets: dict[str, list[int]] = {}
    n_before, given = 0, [0, 0, 0]
    for label, n in sorted(n_rows.items()):
        n_before += n
        if label in rare:
            targets[label] = [n, 0, 0]
            given[0] += n
            continue
        counts = [math.floor(share * n + 1e-9) for share in shares]
        # Rounding errors are carried from label to label: rounding each for itself could starve a small side.
        lag = {side: shares[side] * n_before - given[side] - counts[side] for side in wanted}
        for side in sorted(wanted, key=lambda side: -lag[side])[: n - sum(counts)]:
            counts[side] += 1
        for side in wanted:
            if counts[side] == 0:
                counts[counts.index(max(counts))] -= 1
                counts[side] = 1
        given = [before + now for before, now in zip(given, counts, strict=True)]
        targets[label] = counts
    return targets


def _assign(
    groups: Sequence[Sequence[int]], labels: Sequence[str], targets: dict[str, list[int]]
) -> tuple[list[int], list[int], list[int]]:
    """Give each group to the side that lacks most of its labels, the big groups first, while they still fit."""
    lacking = {label: list(counts) for label, counts in targets.items()}
    room = [sum(counts[side] for counts in targets.values()) for side in range(3)]
    open_sides = [side for side in range(3) if room[side] > 0]
    sides: tuple[list[int], list[int], list[int]] = ([], [], [])
    for group in sorted(groups, key=len, reverse=True):
        held = Counter(labels[index] for index in group)

        def need(side: int, held: Counter[str] = held) -> float:
            return sum(n * lacking[label][side] / max(1, targets[label][side]) for label, n in held.items())

        fitting = [side for side in open_sides if all(n <= lacking[label][side] for label, n in held.items())]
        fitting = fitting or [side for side in open_sides if len(group) <= room[side]]
        chosen = max(fitting, key=need) if fitting else max(open_sides, key=lambda side: room[side])
        sides[chosen].extend(group)
        room[chosen] -= len(group)
        for label, n in held.items():
            lacking[label][chosen] -= n
    return sides


def _check_sides(
    sides: Sequence[Sequence[int]], shares: tuple[float, ...], groups: Sequence[Sequence[int]], n_rows: int
) -> None:
    largest = max(len(group) for group in groups)
    for name, side, share in zip(_SIDES, sides, shares, strict=True):
        if share > 0 and not side:
            if largest == 1:
                raise DataError(
                    f"the {name} side would be empty: {n_rows} rows, or those of each label, are too few; label more"
                )
            raise DataError(
                f"the {name} side would be empty: the largest group of rows that share items holds {largest} of "
                f"{n_rows} rows; split the items before making pairs, or group by something finer"
            )
        if abs(len(side) - share * n_rows) > max(2.0, 0.2 * share * n_rows):
            _log.warning(
                "%s has %d of %d rows instead of %.0f: groups cannot be parted", name, len(side), n_rows, share * n_rows
            )


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
class Leakage(Reported):
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

    def __str__(self) -> str:
        return self.summary()

    def section(self) -> Section:
        """The blocks of a report: how much is shared, and where each shared item stands."""
        rows = tuple((item.text, _rows(item.rows_a), _rows(item.rows_b)) for item in self.items)
        head = ("item", "in the first set", "in the second set")
        return Section(
            title="Items on two sides",
            verdict=self.summary(shown=0).splitlines()[0],
            outcome="worse" if self.items else "equivalent",
            blocks=(Table(head=head, rows=rows, label="Shared items", holds_text=True),) if rows else (),
        )

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
