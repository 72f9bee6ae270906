"""What else drives a pairwise program's choice: the position of a side, its length, its price.

In: pairs with both texts and the side that was preferred. Out: shares with Wilson intervals; 0.5 means no lean.
A lean towards the first side is a fault when the pairs are balanced. A lean towards the longer or dearer side is one
only as far as it exceeds the labels' own: compare with the same figure on the labels.
`in_both_orders(program)` asks a program twice, so that `metrics.order_agreement()` can be taken.
Not covered: correcting for a lean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_finetune.errors import AnswerError, UsageError
from dspy_finetune.evaluation.answers import Program
from dspy_finetune.evaluation.item_metrics import ORDERS_AGREE
from dspy_finetune.evaluation.reading import label_text, to_number
from dspy_finetune.evaluation.stats import Interval, wilson


@dataclass(frozen=True, kw_only=True)
class PairwiseBias:
    """The leanings of a set of choices."""

    prefers_first: Interval
    """Share of choices for side A."""
    prefers_longer: Interval
    """Share of choices for the text with more characters, among pairs of unequal length."""
    prefers_dearer: Interval | None = None
    """Share of choices for the side with the higher number, among pairs with two that differ; None without prices."""


def pairwise_bias(
    texts_a: Sequence[str],
    texts_b: Sequence[str],
    preferred: Sequence[str | None],
    *,
    prices_a: Sequence[Any] | None = None,
    prices_b: Sequence[Any] | None = None,
    confidence: float = 0.95,
) -> PairwiseBias:
    """The leanings of choices.

    Args:
        texts_a: The first texts.
        texts_b: The second texts.
        preferred: A or B; None stands for no answer and is left out.
        prices_a: A number of each first side, or a text such as "$12"; None where it is not known.
        prices_b: The same of each second side.
        confidence: Of the intervals.

    Raises:
        UsageError: A choice is neither A nor B.
    """
    chosen = [(a, b, _side(side)) for a, b, side in zip(texts_a, texts_b, preferred, strict=True) if side is not None]
    unequal = [(len(a) > len(b)) == (side == "a") for a, b, side in chosen if len(a) != len(b)]
    dearer = None
    if prices_a is not None and prices_b is not None:
        priced = [
            (one, other, _side(side))
            for a, b, side in zip(prices_a, prices_b, preferred, strict=True)
            if side is not None and (one := _price(a)) is not None and (other := _price(b)) is not None
        ]
        higher = [(one > other) == (side == "a") for one, other, side in priced if one != other]
        dearer = wilson(sum(higher), len(higher), confidence)
    return PairwiseBias(
        prefers_first=wilson(sum(side == "a" for _, _, side in chosen), len(chosen), confidence),
        prefers_longer=wilson(sum(unequal), len(unequal), confidence),
        prefers_dearer=dearer,
    )


def _price(value: Any) -> float | None:
    try:
        return None if value is None else to_number(value)
    except (AnswerError, TypeError, ValueError):
        return None


class InBothOrders:
    """A pairwise program that is asked twice; `in_both_orders` makes it."""

    def __init__(self, program: Program, field: str) -> None:
        self.program = program
        self.field = field

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        """The answer in the order given, and whether the other order's names the same text."""
        stems = [name[:-2] for name in inputs if name.endswith("_a") and name[:-2] + "_b" in inputs]
        if not stems:
            raise UsageError(f"in_both_orders swaps inputs that end in _a and _b; found {', '.join(inputs)}")
        partner = {f"{stem}_{side}": f"{stem}_{other}" for stem in stems for side, other in ("ab", "ba")}
        first = self.program(**inputs)
        second = self.program(**{partner.get(name, name): value for name, value in inputs.items()})
        agree = _side(first[self.field]) != _side(second[self.field])
        return dspy.Prediction(**{**dict(first.items()), ORDERS_AGREE: agree})


def in_both_orders(program: Program, *, field: str = "preferred") -> InBothOrders:
    """A program that asks `program` about each pair in both orders and answers as it does in the order given.

    The prediction notes under `orders_agree` whether both name the same text, for `metrics.order_agreement()`. A
    predictor that asks both orders by itself (`both_orders=True`) agrees always but for ties: wrap one that does not.
    An answer that cannot be read, in either order, makes the item unreadable.
    """
    return InBothOrders(program, field)


def swap_agreement(
    preferred: Sequence[str | None], preferred_swapped: Sequence[str | None], *, confidence: float = 0.95
) -> Interval:
    """Share of pairs in which the same text is preferred in both orders; 1 is the best, a coin gives 0.5.

    Args:
        preferred: The choices with the texts as given.
        preferred_swapped: The choices with both texts exchanged, in the words of that order: the same text preferred
        means A here where `preferred` says B.
        confidence: Of the interval.
    """
    both = [
        (_side(one), _side(other))
        for one, other in zip(preferred, preferred_swapped, strict=True)
        if one is not None and other is not None
    ]
    return wilson(sum(one != other for one, other in both), len(both), confidence)


def _side(value: str) -> str:
    side = label_text(value)
    if side not in {"a", "b"}:
        raise UsageError(f"a choice is A or B; got {value!r}")
    return side
