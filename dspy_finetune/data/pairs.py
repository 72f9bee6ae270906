"""Examples -> pairs (title_a, title_b, preferred), the two orders in balance.

In: labelled items, rated items, or rows that are pairs already. Out: dspy.Examples with both sides marked as inputs and
`preferred` "A" or "B" ("tie" on request). The same rows and seed give the same pairs in every process.
Make pairs after the split, inside each side: pairs that share a title must not part.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import dspy

from dspy_finetune.data.fields import check_names
from dspy_finetune.data.items import (
    Side,
    check_rows,
    input_names,
    item_key,
    pair_base,
    preference_names,
    read_preferred,
    values_of,
)
from dspy_finetune.errors import DataError, RowError, RowsError, UsageError
from dspy_finetune.tasks import exchanged, sides_of
from dspy_finetune.values import Unparseable, load_bool, load_number

logger = logging.getLogger(__name__)


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
    swapped = pair.copy(**exchanged(dict(pair.items()), sides_of(pair.keys())))
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two rows, the preferred one first (of a tie: either); `extra` are fields of the pair itself."""

    better: dict[str, Any]
    worse: dict[str, Any]
    is_tie: bool = False
    is_turned: bool | None = None
    """Of a pair that came as one: whether the preferred side stood as B."""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


def make_pairs(
    examples: Iterable[dspy.Example],
    *,
    text: str = "title",
    label: str = "is_favorite",
    n_per_positive: int = 5,
    min_difference: float | None = None,
    ties: Literal["drop", "keep"] = "drop",
    both_orders: bool = False,
    balance: bool = True,
    carry: Sequence[str] | str = (),
    seed: int = 0,
) -> list[dspy.Example]:
    """Make pairs of items, of which one is preferred.

    Three kinds of rows are told apart by their fields:

    - Pairs already (`title_a`, `title_b`, and the preference under `preferred`, `preference` or `preferred_title`, as a
      side or as the preferred text): read, freed of repeats, their order balanced.
    - Rated items (`min_difference` is given; `label` names the rating): pairs that differ by at least that much.
    - Labelled items (`label` is true or false): pairs of one positive and one negative item.

    >>> liked, other = dspy.Example(title="Ants", is_favorite=True), dspy.Example(title="10 deals", is_favorite=False)
    >>> make_pairs([liked, other], both_orders=True)[0].preferred in ("A", "B")
    True

    Args:
        examples: The rows.
        text: The field that holds the item; the sides are named after it, f"{text}_a" and f"{text}_b".
        label: The field that holds the label (true or false) or the rating (a number).
        n_per_positive: How many pairs each positive item gets, each with another negative (fewer if there are fewer).
            All negatives are used equally often, but for one. For ratings: how many pairs each item may win.
        min_difference: Take `label` as a rating, and pair items that differ by at least this much.
        ties: "keep" adds pairs without a winner, `preferred` "tie": rated items too close to each other, and given
            pairs that say so. "drop" leaves them out. Labelled items make none.
        both_orders: Give every pair twice, in both orders, one after the other.
        balance: Draw the order so that A is preferred as often as B, but for one. False: given pairs keep their order,
            others have a random one.
        carry: Further fields to bring along: of items, for each side (reason -> reason_a, reason_b); of given pairs,
            for each side or as one field of the pair, as they are there.
        seed: Another seed draws other pairs and orders.

    Raises:
        RowsError: Rows are bad: no text, no readable label, a preference that names neither side; each is listed.
        DataError: No pair can be made, such as without a negative item.
        UsageError: An argument is wrong, or a field is in no row.
        EmptyDatasetError: There are no rows.
    """
    _check_arguments(n_per_positive, min_difference, ties, seed)
    rows = check_rows(examples, "make pairs of")
    extras = check_names(carry, "carry")
    generator = random.Random(seed)
    if all(f"{text}_a" in row and f"{text}_b" in row for row in rows):
        if min_difference is not None:
            raise UsageError(f"min_difference={min_difference!r} is for rated items; these rows are pairs already")
        pairs = _given_pairs(rows, text, label, extras)
    else:
        items = _items(rows, text, label, extras, is_rating=min_difference is not None)
        if min_difference is None:
            if ties == "keep":
                raise UsageError('ties="keep" is for ratings and given pairs; labelled items make no ties')
            pairs = _labelled_pairs(items, label, n_per_positive, generator)
        else:
            pairs = _rated_pairs(items, label, n_per_positive, min_difference, generator, with_ties=ties == "keep")
        generator.shuffle(pairs)
    if ties == "drop":
        pairs = [pair for pair in pairs if not pair.is_tie]
    if not pairs:
        raise DataError('every pair is a tie; keep them with ties="keep", or give rows that prefer a side')
    return _written(pairs, text, generator, balance=balance, both_orders=both_orders)


def _check_arguments(n_per_positive: int, min_difference: float | None, ties: str, seed: int) -> None:
    if not isinstance(n_per_positive, int) or isinstance(n_per_positive, bool) or n_per_positive < 1:
        raise UsageError(f"n_per_positive={n_per_positive!r} is not a count; use a whole number from 1")
    if min_difference is not None and not (isinstance(min_difference, (int, float)) and 0 <= min_difference < math.inf):
        raise UsageError(f"min_difference={min_difference!r} is not a difference of ratings; use a number from 0")
    if ties not in ("drop", "keep"):
        raise UsageError(f'ties={ties!r} is not known; use "drop" or "keep"')
    if not isinstance(seed, int):
        raise UsageError(f"seed={seed!r} is not a whole number")  # random would take text too, by its hash


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Item:
    """One distinct item with its label (0 or 1) or rating, and its fields without the side's ending."""

    value: float
    fields: dict[str, Any]


def _items(rows: list[dspy.Example], text: str, label: str, carry: tuple[str, ...], *, is_rating: bool) -> list[_Item]:
    """The distinct items in the rows' order; each row that has no readable text or label is an error."""
    read = load_number if is_rating else load_bool
    wrong: list[RowError] = []
    found: dict[str, tuple[int, _Item]] = {}
    for number, (row, values) in enumerate(zip(rows, values_of(rows, (text, label, *carry)), strict=True), start=1):
        try:
            _check_text(values[0])
        except Unparseable as error:
            wrong.append(RowError(error.problem, line=number, field=text, value=values[0], remedy=error.remedy))
            continue
        try:
            value = float(read(values[1]))
        except Unparseable as error:
            wrong.append(
                RowError(
                    error.problem, line=number, field=label, value=values[1], remedy=_label_remedy(error, is_rating)
                )
            )
            continue
        item = _Item(value=value, fields={name: row[name] for name in (text, *carry)})
        first, known = found.setdefault(item_key(values[0]), (number, item))
        if known.value != value:
            problem = f"the same {text} has another {label} in row {first}"
            remedy = 'decide on one; find_conflicts lists them all, deduplicate(..., how="normalized") keeps the first'
            wrong.append(RowError(problem, line=number, field=label, value=values[1], remedy=remedy))
    if wrong:
        raise RowsError(wrong)
    return [item for _, item in found.values()]


def _label_remedy(error: Unparseable, is_rating: bool) -> str:
    return error.remedy if is_rating else f"{error.remedy}; for ratings give min_difference="


def _check_text(value: Any) -> None:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Unparseable("no text", "fill it in, or take the row out")


def _labelled_pairs(items: list[_Item], label: str, n_per_positive: int, generator: random.Random) -> list[_Pair]:
    positives = [item for item in items if item.value]
    negatives = [item for item in items if not item.value]
    for kind, found in (("positive", positives), ("negative", negatives)):
        if not found:
            raise DataError(
                f'no pairs can be made: none of the {len(items)} items is {kind} (field "{label}"); '
                "add some, or split with stratify_by so that every side has both"
            )
    n_each = min(n_per_positive, len(negatives))
    deck: list[int] = []
    pairs: list[_Pair] = []
    for positive in positives:
        chosen: dict[int, None] = {}
        while len(chosen) < n_each:
            if not deck:
                deck = list(range(len(negatives)))
                generator.shuffle(deck)
            # A deck is dealt to its end before the next, so no negative is ever used twice more than another; the one
            # that this positive has already stays in the deck for the next.
            place = next(place for place in range(len(deck) - 1, -1, -1) if deck[place] not in chosen)
            chosen[deck.pop(place)] = None
        pairs += [_Pair(better=positive.fields, worse=negatives[index].fields) for index in chosen]
    return pairs


def _rated_pairs(
    items: list[_Item], label: str, n_each: int, min_difference: float, generator: random.Random, *, with_ties: bool
) -> list[_Pair]:
    ordered = sorted(items, key=lambda item: item.value)
    n_used = [0] * len(ordered)
    winners = list(range(len(ordered)))
    generator.shuffle(winners)
    pairs: list[_Pair] = []
    below = 0
    n_below = []  # of each item, how many are so far below it that it wins; the values ascend, so one pass finds all
    for item in ordered:
        while _wins(item.value, ordered[below].value, min_difference):
            below += 1
        n_below.append(below)
    for winner in winners:
        # Every pair is looked at from its higher item, so none can come twice.
        n_candidates = winner if with_ties else n_below[winner]
        # Of some random candidates the least used: near an even use of all, without looking at all for each winner.
        drawn = generator.sample(range(n_candidates), min(n_candidates, 8 * n_each))
        for loser in sorted(drawn, key=lambda index: n_used[index])[:n_each]:
            n_used[loser] += 1
            is_tie = loser >= n_below[winner]
            pairs.append(_Pair(better=ordered[winner].fields, worse=ordered[loser].fields, is_tie=is_tie))
    if not pairs:
        gap = ordered[-1].value - ordered[0].value
        raise DataError(
            f'no pairs can be made: no two of the {len(items)} items differ by {min_difference:g} in "{label}" '
            f"(the largest difference is {gap:g}); lower min_difference"
        )
    return pairs


def _wins(rating: float, other: float, min_difference: float) -> bool:
    gap = rating - other
    # 0.3 - 0.2 is a little less than 0.1 in floating point, and means 0.1.
    return gap > 0 and (gap >= min_difference or math.isclose(gap, min_difference, rel_tol=1e-9))


def _given_pairs(rows: list[dspy.Example], text: str, label: str, carry: tuple[str, ...]) -> list[_Pair]:
    pairs: list[_Pair] = []
    wrong: list[RowError] = []
    seen: set[tuple[Side, str, str]] = set()
    for number, row in enumerate(rows, start=1):
        text_a, text_b = row[f"{text}_a"], row[f"{text}_b"]
        try:
            _check_text(text_a)
            _check_text(text_b)
            key_a, key_b = item_key(text_a), item_key(text_b)
            if key_a == key_b:
                raise Unparseable("both sides hold the same text", "take the row out")
            side = read_preferred(row, text, (*preference_names(text), label))
            sides = _carried(row, text, carry)
        except Unparseable as error:
            wrong.append(RowError(error.problem, line=number, value=row.toDict(), remedy=error.remedy))
            continue
        first, second = (key_b, key_a) if side == "B" else (key_a, key_b)
        known: tuple[Side, str, str] = (
            ("A", first, second) if side != "tie" else ("tie", min(key_a, key_b), max(key_a, key_b))
        )
        if known in seen:
            continue
        seen.add(known)
        better, worse = (sides[1], sides[0]) if side == "B" else (sides[0], sides[1])
        pairs.append(_Pair(better=better, worse=worse, is_tie=side == "tie", is_turned=side == "B", extra=sides[2]))
    if wrong:
        raise RowsError(wrong)
    return pairs


def _carried(
    row: dspy.Example, text: str, carry: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The fields of side A, of side B, and of the pair itself."""
    side_a, side_b = {text: row[f"{text}_a"]}, {text: row[f"{text}_b"]}
    extra: dict[str, Any] = {}
    for name in carry:
        if f"{name}_a" in row and f"{name}_b" in row:
            side_a[name], side_b[name] = row[f"{name}_a"], row[f"{name}_b"]
        elif name in row:
            extra[name] = row[name]
        else:
            raise Unparseable(
                f'neither "{name}" nor "{name}_a" and "{name}_b" to carry', f"the row has: {', '.join(row.keys())}"
            )
    return side_a, side_b, extra


def _written(
    pairs: list[_Pair], text: str, generator: random.Random, *, balance: bool, both_orders: bool
) -> list[dspy.Example]:
    # As many Bs as As, dealt at random; the odd one goes to either.
    n_decided = sum(not pair.is_tie for pair in pairs)
    odd = int(generator.random() < 0.5)
    turns = [(place + odd) % 2 == 0 for place in range(n_decided)]
    generator.shuffle(turns)
    written: list[dspy.Example] = []
    for pair in pairs:
        if pair.is_turned is not None and not balance:
            is_b = pair.is_turned
        elif balance and not pair.is_tie:
            is_b = turns.pop()
        else:
            is_b = generator.random() < 0.5
        first, second = (pair.worse, pair.better) if is_b else (pair.better, pair.worse)
        preferred: Side = "tie" if pair.is_tie else "B" if is_b else "A"
        fields = {f"{text}_a": first[text], f"{text}_b": second[text], "preferred": preferred}
        for name in first:
            if name != text:
                fields |= {f"{name}_a": first[name], f"{name}_b": second[name]}
        row = dspy.Example({**fields, **pair.extra}).with_inputs(f"{text}_a", f"{text}_b")
        written += [row, swap(row, text=text)] if both_orders else [row]
    return written


def items_from_pairs(
    pairs: Iterable[dspy.Example], *, text: str | None = None, label: str = "is_favorite"
) -> list[dspy.Example]:
    """Labelled items from pairs, for a binary export: each text once, True where it was preferred more often than not.

    Fields that have no side (a group, a date) go along as they stand in the text's first pair. A tie counts for neither
    side; a text that was preferred as often as not says nothing and is left out, which is logged with its number.

    >>> pair = dspy.Example(title_a="Ants", title_b="Bees", preferred="B").with_inputs("title_a", "title_b")
    >>> [(item.title, item.is_favorite, list(item.inputs())) for item in items_from_pairs([pair])]
    [('Ants', False, ['title']), ('Bees', True, ['title'])]

    Args:
        pairs: Rows with two sides and the preference, as `make_pairs` gives them.
        text: The name that the sides share, such as "title"; None finds it.
        label: The name of the new field.

    Raises:
        RowsError: Rows that are no pairs, or whose preference cannot be read.
        DataError: No text was preferred more or less often than not.
    """
    wins: Counter[str] = Counter()
    items: dict[str, dspy.Example] = {}
    problems: list[RowError] = []
    for number, row in enumerate(pairs, start=1):
        base = pair_base(row) if text is None else text
        if base is None or f"{base}_a" not in row or f"{base}_b" not in row:
            found = ", ".join(row.keys())
            problems.append(RowError("not a pair: no fields x_a and x_b", line=number, remedy=f"it has {found}"))
            continue
        try:
            side = read_preferred(row, base)
        except Unparseable as problem:
            problems.append(RowError(problem.problem, line=number, remedy=problem.remedy))
            continue
        bases = [name[:-2] for name in sides_of(row.keys())]
        sided = {f"{name}_{letter}" for name in bases for letter in "ab"}
        told_names = preference_names(base)
        shared = {name: value for name, value in row.items() if name not in sided and name not in told_names}
        inputs = [base, *(name for name in shared if name in input_names(row))]
        for own in ("A", "B"):
            both = {name: row[f"{name}_{own.lower()}"] for name in bases}
            key = item_key(both[base])
            items.setdefault(key, dspy.Example(**both, **shared).with_inputs(*inputs))
            wins[key] += 0 if side == "tie" else 1 if side == own else -1
    if problems:
        raise RowsError(problems)
    told = [item.copy(**{label: wins[key] > 0}).with_inputs(*item.inputs()) for key, item in items.items() if wins[key]]
    if not told:
        raise DataError("no item was preferred more often than not; there is nothing to learn from these pairs")
    if len(told) < len(items):
        n_even = len(items) - len(told)
        logger.warning("%d of %d items were preferred as often as not and are left out", n_even, len(items))
    return told
