"""From token log-probabilities to a probability for each label.

In: the positions of an answer, each with its most likely tokens, and the label texts. Out: the probability mass that
the model puts on each label. A number that the model *writes* is never used.

A label may be several tokens long, and two labels may begin with the same token; tokens come with or without a leading
space and in any case. The rule: at the first position each listed token gives its mass to the one label that it begins.
A token that begins several labels gives its mass to them in proportion to the next position, if the model itself went
that way; the mass of roads that the model did not take cannot be told apart and is left out. `coverage`, the sum of all
label masses, says how much of the model's belief was on the labels at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dspy_finetune.hosts.logprobs import Position


def label_masses(positions: Sequence[Position], labels: Sequence[str]) -> dict[str, float]:
    """The probability mass on each label text, each in [0, 1]; their sum is the coverage, at most 1.

    Args:
        positions: The answer's tokens from its start.
        labels: The label texts, distinct when lower-cased and stripped.
    """
    return _masses(positions, {label: label.strip().lower() for label in labels}, start=True)


def _masses(positions: Sequence[Position], rests: Mapping[str, str], *, start: bool) -> dict[str, float]:
    # `rests`: what is still to come of each label that the tokens so far have begun.
    masses = dict.fromkeys(rests, 0.0)
    if not positions:
        return masses
    chosen, listed = positions[0]
    ended = [label for label, rest in rests.items() if not rest]
    for token, logprob in listed.items():
        mass = math.exp(logprob)
        # A leading space or line break belongs to the tokenizer's spelling of a word, not to the label.
        piece = (token.lstrip() if start else token).lower()
        if start and not piece:
            begun: list[str] = []
        else:
            begun = [
                label for label, rest in rests.items() if rest and (rest.startswith(piece) or piece.rstrip() == rest)
            ]
        if len(begun) == 1:
            masses[begun[0]] += mass
        elif begun and token == chosen:
            deeper = _masses(positions[1:], {label: rests[label][len(piece) :] for label in begun}, start=False)
            total = sum(deeper.values())
            for label, share in deeper.items():
                masses[label] += mass * share if total else 0.0
        elif not begun and len(ended) == 1:
            # "yes" against "yes sir": any other continuation means that the shorter label was the whole answer.
            masses[ended[0]] += mass
    return masses


def normalised(masses: Mapping[str, float]) -> dict[str, float] | None:
    """The masses scaled to sum to 1, or None where the model put nothing on any label."""
    total = sum(masses.values())
    return {label: mass / total for label, mass in masses.items()} if total > 0 else None
