"""split.py: examples -> train, validation, test, with no item on two sides.

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
from collections.abc import Iterable, Iterator, Sequence

import dspy

from dspy_finetune.data.items import By, check_rows, connected_rows, row_items, values_of
from dspy_finetune.data.quality import label_key
from dspy_finetune.data.rows import check_names
from dspy_finetune.errors import DataError, UsageError

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

    def __iter__(self) -> Iterator[list[dspy.Example]]:
        return iter((self.train, self.validation, self.test))

    def summary(self) -> str:
        """One line for people: the rows of each side."""
        counts = ", ".join(f"{name} {len(side)}" for name, side in zip(_SIDES, self, strict=True))
        return f"{counts} rows ({self.n_groups} groups that stay together)"


def split(
    examples: Iterable[dspy.Example],
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    *,
    group_by: By | None = None,
    stratify_by: By | None = None,
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
            normalised. None: both sides of pair rows, the inputs of other rows, so that duplicates do not part.
        stratify_by: The field, fields or function whose values are spread over the sides in equal shares.
        seed: Another seed gives another split.

    Raises:
        UsageError: The fractions are not three numbers from 0 that sum to 1, or a field is in no row.
        DataError: There are fewer groups than sides to fill, or the groups are too big to fill them.
        EmptyDatasetError: There are no rows.
    """
    shares = _checked_fractions(fractions)
    rows = check_rows(examples, "split")
    groups = connected_rows(row_items(rows, group_by, "normalized"))
    labels = _strata(rows, stratify_by)
    n_sides = sum(share > 0 for share in shares)
    if len(groups) < n_sides:
        rule = "rows" if len(groups) == len(rows) else f"groups ({len(rows)} rows that share items)"
        raise DataError(
            f"{len(groups)} {rule} cannot fill {n_sides} sides; "
            "give more rows, or a fraction of 0 to the sides not needed"
        )
    targets = _targets(labels, groups, shares, by_label=stratify_by is not None)
    generator = random.Random(seed)
    generator.shuffle(groups)
    sides = _assign(groups, labels, targets)
    _check_sides(sides, shares, groups, len(rows))
    for side in sides:
        generator.shuffle(side)
    train, validation, test = ([rows[index] for index in side] for side in sides)
    return Split(train=train, validation=validation, test=test, n_groups=len(groups))


def _checked_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    shares = tuple(fractions)
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


def _targets(
    labels: Sequence[str], groups: Sequence[Sequence[int]], shares: tuple[float, ...], *, by_label: bool
) -> dict[str, list[int]]:
    """How many rows of each label each side should get: whole numbers, at least one each, the shares kept over all."""
    n_rows = Counter(labels)
    n_groups = Counter(label for group in groups for label in {labels[index] for index in group})
    wanted = [index for index, share in enumerate(shares) if share > 0]
    if by_label:
        rare = [label for label in n_rows if n_groups[label] < len(wanted)]
        if rare:
            name, n = rare[0].partition(":")[2], n_groups[rare[0]]
            raise DataError(
                f"stratify_by: the value {name} has {n} row{'s' * (n != 1)} or group{'s' * (n != 1)}, too few for "
                f"{len(wanted)} sides ({len(rare)} such values); give more rows, or coarser values by a function"
            )
    targets: dict[str, list[int]] = {}
    n_before, given = 0, [0, 0, 0]
    for label, n in sorted(n_rows.items()):
        n_before += n
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
            raise DataError(
                f"the {name} side would be empty: the largest group of rows that share items holds {largest} of "
                f"{n_rows} rows; split the items before making pairs, or group by something finer"
            )
        if abs(len(side) - share * n_rows) > max(2.0, 0.2 * share * n_rows):
            _log.warning(
                "%s has %d of %d rows instead of %.0f: groups cannot be parted", name, len(side), n_rows, share * n_rows
            )
