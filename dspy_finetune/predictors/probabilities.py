"""From token log-probabilities to a probability for each label.

In: the positions of an answer, each with its most likely tokens, and the label texts. Out: the probability mass that
the model puts on each label. A number that the model *writes* is never used.

A label may be several tokens long, and two labels may begin with the same token; tokens come with or without a leading
space and in any case (labels that differ in case alone are told apart by it). The rules, at the first position:

1. A listed token gives its mass to the label that it begins. "1" begins 1 and 10; where "10" is listed too, it is what
   a model that means 10 writes, and "1" is 1 alone.
2. The mass of a token that begins several labels goes to them as the next position says, if the model went that way. An
   answer that ends there is the label that ends there.
3. If the model went another way, nobody knows how it would have gone on: the mass goes to the labels that it begins in
   equal parts. So the label that was answered has its own probability, and only the others share a guess.

`coverage`, the sum of all label masses, says how much of the model's belief was on the labels at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

from dspy_finetune.hosts.lm import Position


def label_masses(positions: Sequence[Position], labels: Sequence[str]) -> dict[str, float]:
    """The probability mass on each label text, each in [0, 1]; their sum is the coverage, at most 1.

    Args:
        positions: The answer's tokens from its start, from `hosts.logprobs`.
        labels: The label texts, distinct when stripped.
    """
    texts = {label: label.strip() for label in labels}
    folded = [text.casefold() for text in texts.values()]
    cased = {label for label, text in texts.items() if folded.count(text.casefold()) > 1}
    rests = {label: (text if label in cased else text.casefold()).encode() for label, text in texts.items()}
    return _masses(positions, rests, cased, is_start=True)


def normalised(masses: Mapping[str, float]) -> dict[str, float] | None:
    """The masses scaled to sum to 1, or None where the model put nothing on any label."""
    total = sum(masses.values())
    return {label: mass / total for label, mass in masses.items()} if total > 0 else None


def _masses(
    positions: Sequence[Position], rests: Mapping[str, bytes], cased: Set[str], *, is_start: bool
) -> dict[str, float]:
    # `rests`: what is still to come of each label that the tokens so far have begun.
    masses = dict.fromkeys(rests, 0.0)
    ended = [label for label, rest in rests.items() if not rest]  # one at most: the labels are distinct
    if not positions:
        return masses | dict.fromkeys(ended, 1.0)
    chosen, listed = positions[0]
    begun = {token: _begun(token, rests, cased, is_start) for token in listed}
    longest = {label: max(found.get(label, 0) for found in begun.values()) for label in rests}
    deeper: dict[str, float] | None = None
    for token, logprob in listed.items():
        mass, found = math.exp(logprob), begun[token]
        if len(found) > 1 and found == begun[chosen]:
            # The chosen token, or the same one in another case, which would have gone on in the same way.
            if deeper is None:
                left = {label: rests[label][size:] for label, size in found.items()}
                deeper = _masses(positions[1:], left, cased, is_start=not any(found.values()))
            parts = deeper
        elif found and any(found.values()):
            meant = [label for label, size in found.items() if size == longest[label]] or list(found)
            parts = dict.fromkeys(meant, 1.0 / len(meant))
        else:
            # "yes" against "yes sir": any other continuation means that the shorter label was the whole answer.
            parts = {} if found else dict.fromkeys(ended, 1.0)
        for label, part in parts.items():
            masses[label] += mass * part
    return masses


def _begun(token: str, rests: Mapping[str, bytes], cased: Set[str], is_start: bool) -> dict[str, int]:
    """The labels that a token begins, each with how many of its bytes the token is."""
    # A leading space or line break belongs to the tokenizer's spelling of a word, not to the label.
    text = token.lstrip() if is_start else token
    found: dict[str, int] = {}
    for label, rest in rests.items():
        piece = (text if label in cased else text.casefold()).encode("utf-8", "surrogateescape")
        if rest and rest.startswith(piece):
            found[label] = len(piece)
        elif rest and piece.rstrip() == rest:
            found[label] = len(rest)
    return found
