"""From token log-probabilities to a probability for each label, or to the distribution of a number.

In: the positions of an answer, each with its most likely tokens, and the label texts. Out: the probability mass that
the model puts on each label, and of each label that no listed token begins, how much of it may have stayed untold. A
number that the model *writes* is never used.

A label may be several tokens long, and two labels may begin with the same token; tokens come with or without a leading
space and in any case (labels that differ in case alone are told apart by it). The rules, at the first position:

1. A listed token gives its mass to the label that it begins. "1" begins 1 and 10; where "10" is listed too, it is what
   a model that means 10 writes, and "1" is 1 alone.
2. The mass of a token that begins several labels goes to them as the next position says, if the model went that way. An
   answer that ends there is the label that ends there.
3. If the model went another way, it is unknown how it would have gone on: the mass goes to the labels that it begins in
   equal parts. So the label that was answered has its own probability, and only the others share a guess.
4. A label that no listed token begins is not a label without probability. All that is known is a bound: no unlisted
   token has more than the least of the listed ones, nor more than what they leave. Where a host lists the chosen token
   alone, that is everything but the chosen token's own mass.

`coverage`, the sum of all label masses, says how much of the model's belief was on the labels at all.

Of a number, the tokens that the model might have written instead tell other numbers: "$72.10" with "9" at the place of
its 7 is a number from 90 to 100, taken as 95, with the mass of that "9". So are all alternatives at all places; the
number that was written has what is left. How many digits an alternative would have had is not told: it is taken to have
as many as were written.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dspy_finetune.errors import AnswerError
from dspy_finetune.hosts.lm import Position

NEGLIGIBLE = 0.06
"""Untold mass up to this share of what is told counts as none: no probability is off by more."""
NEGLIGIBLE_UNRANKED = 0.001
"""The same where the host listed no alternatives at all, so that nothing bounds the untold but what is left over."""


def label_masses(positions: Sequence[Position], labels: Sequence[str]) -> dict[str, float]:
    """The probability mass on each label text, each in [0, 1]; their sum is the coverage, at most 1.

    Args:
        positions: The answer's tokens from its start (see `hosts.lm.Answer`).
        labels: The label texts, distinct when stripped.
    """
    return _told(positions, labels).masses


def label_shares(positions: Sequence[Position], labels: Sequence[str]) -> tuple[dict[str, float | None] | None, float]:
    """(the probability of each label, the coverage).

    The probabilities sum to 1 over the labels. Where the host did not tell enough for that, a label has the mass that
    was told of it, unscaled, or None where nothing was; where it told of no label, all of it is None.

    >>> told = [("true", {"true": math.log(0.4), "false": math.log(0.4)})]
    >>> label_shares(told, ["true", "false"])[0]
    {'true': 0.5, 'false': 0.5}
    >>> alone = [("true", {"true": math.log(0.2)})]
    >>> label_shares(alone, ["true", "false"])
    ({'true': 0.2, 'false': None}, 0.2)
    """
    told = _told(positions, labels)
    coverage = sum(told.masses.values())
    if coverage <= 0:
        return None, 0.0
    ranked, unranked = sum(told.untold.values()), sum(told.unranked.values())
    if ranked <= NEGLIGIBLE * coverage and unranked <= NEGLIGIBLE_UNRANKED * coverage:
        return {label: mass / coverage for label, mass in told.masses.items()}, coverage
    is_open = {label: told.untold[label] + told.unranked[label] > 0 for label in told.masses}
    return {label: mass if mass > 0 or not is_open[label] else None for label, mass in told.masses.items()}, coverage


class _Told(NamedTuple):
    """What positions tell of the labels."""

    masses: dict[str, float]
    """The mass of each label's listed tokens."""
    untold: dict[str, float]
    """The most that each label can have beside it, where the list of tokens bounds that."""
    unranked: dict[str, float]
    """The same where the list is no ranking: the chosen token alone, or nothing."""


def _told(positions: Sequence[Position], labels: Sequence[str]) -> _Told:
    texts = {label: label.strip() for label in labels}
    folded = [text.casefold() for text in texts.values()]
    cased = frozenset(label for label, text in texts.items() if folded.count(text.casefold()) > 1)
    rests = {label: (text if label in cased else text.casefold()).encode() for label, text in texts.items()}
    return _masses(positions, rests, cased, is_start=True)


def _masses(
    positions: Sequence[Position], rests: Mapping[str, bytes], cased: frozenset[str], *, is_start: bool
) -> _Told:
    # `rests`: what is still to come of each label that the tokens so far have begun.
    masses, untold, unranked = (dict.fromkeys(rests, 0.0) for _ in range(3))
    ended = [label for label, rest in rests.items() if not rest]  # one at most: the labels are distinct
    if not positions:  # the answer ends here: it is the label that ends here, or it was cut off and could be any
        is_cut = 0.0 if ended else 1.0
        return _Told(masses | dict.fromkeys(ended, 1.0), untold, dict.fromkeys(rests, is_cut))
    chosen, listed = positions[0]
    key = tuple(rests.items())
    begun = {token: _begun(token, key, cased, is_start) for token in {chosen: None, **listed}}
    longest: dict[str, int] = {}
    for token in listed:
        for label, size in begun[token].items():
            longest[label] = max(longest.get(label, 0), size)
    shares = {token: min(math.exp(logprob), 1.0) for token, logprob in listed.items()}
    left = max(1.0 - sum(shares.values()), 0.0)
    is_ranking = len(shares) > 1 and chosen in listed  # one token may be the chosen one, whatever its rank
    deeper: _Told | None = None
    for token, mass in shares.items():
        found = begun[token]
        if len(found) > 1 and found == begun[chosen]:
            # The chosen token, or the same one in another case, which would have gone on in the same way.
            if deeper is None:
                rest = {label: rests[label][size:] for label, size in found.items()}
                deeper = _masses(positions[1:], rest, cased, is_start=not any(found.values()))
            parts = deeper.masses
            for label in found:
                untold[label] += mass * deeper.untold[label]
                unranked[label] += mass * deeper.unranked[label]
        elif found and any(found.values()):
            meant = [label for label, size in found.items() if size == longest[label]] or list(found)
            parts = dict.fromkeys(meant, 1.0 / len(meant))
        else:
            # "yes" against "yes sir": any other continuation means that the shorter label was the whole answer.
            parts = {} if found else dict.fromkeys(ended, 1.0)
        for label, part in parts.items():
            masses[label] += mass * part
    unlisted = [label for label, rest in rests.items() if rest and label not in longest]
    for label in unlisted:  # together they can have no more than what is left
        if is_ranking:
            untold[label] += min(left / len(unlisted), *shares.values())
        else:
            unranked[label] += left / len(unlisted)
    return _Told(masses, untold, unranked)


@functools.lru_cache(maxsize=8192)
def _begun(
    token: str, rests: tuple[tuple[str, bytes], ...], cased: frozenset[str], is_start: bool
) -> Mapping[str, int]:
    """The labels that a token begins, each with how many of its bytes the token is."""
    # Remembered: the same twenty tokens are listed for row after row, and bulk reads thousands of rows a second.
    # A leading space or line break belongs to the tokenizer's spelling of a word, not to the label.
    text = token.lstrip() if is_start else token
    folded = text.casefold().encode("utf-8", "surrogateescape")
    exact = text.encode("utf-8", "surrogateescape") if cased else folded
    found: dict[str, int] = {}
    for label, rest in rests:
        piece = exact if label in cased else folded
        if rest and rest.startswith(piece):
            found[label] = len(piece)
        elif rest and piece.startswith(rest) and rest in (piece.rstrip(), piece.partition(b"\n")[0].rstrip()):
            found[label] = len(rest)  # the label and its line's end, or, of a head, an answer of several lines
    return found


_DIGIT = re.compile(r"\d")
_SURE = 0.95
"""From this share on, what is written is taken for certain."""


def number_masses(positions: Sequence[Position], read: Callable[[str], float]) -> list[tuple[float, float]]:
    """(a number, its mass) for the number that was written and for those that the alternatives tell, rising.

    >>> positions = [("7", {"7": math.log(0.75), "9": math.log(0.25)}), ("2", {"2": 0.0})]
    >>> number_masses(positions, float)
    [(72.0, 0.75), (95.0, 0.25)]

    Args:
        positions: The answer's tokens from its start.
        read: The number of a text; raises AnswerError or ValueError where that is none.
    """
    tokens = [token for token, _ in positions]
    found: list[tuple[float, float]] = []
    share = 1.0
    for place, (chosen, listed) in enumerate(positions):
        before, after = "".join(tokens[:place]), "".join(tokens[place + 1 :])
        for token, logprob in listed.items():
            if token != chosen:
                _add(found, _other(before, chosen, token, after), share * math.exp(logprob), read)
        share *= min(math.exp(listed[chosen]), 1.0) if chosen in listed else 0.0
    _add(found, "".join(tokens), share, read)
    return sorted(found)


def numbers_are_told(positions: Sequence[Position]) -> bool:
    """Whether `number_masses` knows how many digits the other numbers have.

    What follows "$1" is told, not what would have followed "$2": where tokens are single digits and more of them may
    follow the first one, the alternatives to it can be of any size. Tokens of several digits are numbers as they stand.

    >>> digits = {digit: math.log(0.1) for digit in "0123456789"}
    >>> numbers_are_told([("7", digits), ("2", digits)]), numbers_are_told([("7", digits), (".", {".": 0.0})])
    (False, True)
    """
    written = sum(listed.get(chosen, -math.inf) for chosen, listed in positions)
    if math.exp(min(written, 0.0)) >= _SURE or any(len(_DIGIT.findall(chosen)) > 1 for chosen, _ in positions):
        return True
    first = next((place for place, (chosen, _) in enumerate(positions) if _DIGIT.search(chosen)), len(positions))
    _, listed = positions[first + 1] if first + 1 < len(positions) else ("", {})
    longer = sum(math.exp(logprob) for token, logprob in listed.items() if _DIGIT.search(token) or token == ",")
    return longer <= (1.0 - _SURE) * sum(map(math.exp, listed.values()))


def _add(found: list[tuple[float, float]], text: str | None, mass: float, read: Callable[[str], float]) -> None:
    if text is None or mass <= 0.0:
        return
    with contextlib.suppress(AnswerError, ValueError):  # "about 12 to" and the like: another answer, but no number
        found.append((read(text), mass))


def _other(before: str, chosen: str, token: str, after: str) -> str | None:
    """The text with another token in the place of the chosen one, its unknown rest at the middle; None: no number."""
    has_number = _DIGIT.search(before) is not None
    if not _DIGIT.search(token):
        if "." in token and has_number:
            return before + token + _middle(after.split(".", 1)[-1])
        return before if has_number else None  # the number ends here
    if not _DIGIT.search(chosen):
        return before + token + chosen + _middle(after) if has_number else None  # one digit more before the point
    return before + token + _middle(after.split(".", 1)[-1] if "." in token else after)


def _middle(digits: str) -> str:
    """The text with its first digit 5 and the others 0: the middle of all numbers that it could be."""
    return _DIGIT.sub("5", _DIGIT.sub("0", digits), count=1)


def weighted_middle(points: Sequence[tuple[float, float]]) -> float:
    """The median of rising (number, mass): the first at which half of the mass is reached."""
    half, passed = sum(mass for _, mass in points) / 2, 0.0
    for number, mass in points:
        passed += mass
        if passed >= half:
            return number
    return points[-1][0]
