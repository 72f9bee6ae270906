"""What else drives a pairwise program's choice: the position of a side, or its length.

In: pairs with both texts and the side that was preferred. Out: shares with Wilson intervals; 0.5 means no lean.
A lean towards the first side is a fault when the pairs are balanced. A lean towards the longer text is one only as
far as it exceeds the labels' own: compare with the same figure on the labels.
Not covered: dearer or newer sides, and correcting for a lean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation.reading import label_text
from dspy_finetune.evaluation.stats import Interval, wilson


@dataclass(frozen=True, kw_only=True)
class PairwiseBias:
    """The leanings of a set of choices."""

    prefers_first: Interval
    """Share of choices for side A."""
    prefers_longer: Interval
    """Share of choices for the text with more characters, among pairs of unequal length."""


def pairwise_bias(
    texts_a: Sequence[str], texts_b: Sequence[str], preferred: Sequence[str | None], *, confidence: float = 0.95
) -> PairwiseBias:
    """The leanings of choices; None in `preferred` stands for no answer and is left out.

    Raises:
        UsageError: A choice is neither A nor B.
    """
    chosen = [(a, b, _side(side)) for a, b, side in zip(texts_a, texts_b, preferred, strict=True) if side is not None]
    unequal = [(len(a) > len(b)) == (side == "a") for a, b, side in chosen if len(a) != len(b)]
    return PairwiseBias(
        prefers_first=wilson(sum(side == "a" for _, _, side in chosen), len(chosen), confidence),
        prefers_longer=wilson(sum(unequal), len(unequal), confidence),
    )


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
