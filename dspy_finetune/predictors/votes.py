"""How the answers of several members become one: shares, votes, the middle number.

In: `Vote`s, one per member that answered. Out: a dict of prediction fields. Every rule is deterministic and does not
depend on the order in which answers arrive. Not covered: asking the members (ensemble.py), fitting (stacking.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspy_finetune.errors import AnswerError
from dspy_finetune.predictors.reading import is_yes_no, match_label, read_share, read_shares


@dataclass(frozen=True, kw_only=True)
class Vote:
    """What one member said."""

    member: int
    """Its place among the members."""
    weight: float
    """How much it counts."""
    answer: Any
    """The label, as one of the known labels; or the number."""
    shares: dict[Any, float] | None
    """The probability of each known label, or None where the member gives none."""


def known_labels(
    answers: Sequence[Any], shares: Sequence[Mapping[Any, float] | None], labels: Sequence[Any]
) -> list[Any]:
    """The given labels, or where none are given every label that was answered or has a probability, in that order."""
    if labels:
        return list(labels)
    known: list[Any] = []
    keys = [key for one in shares for key in one or ()]
    for value in [*answers, *keys]:
        # What equals a label of another type, as 1 does True, is no label beside it.
        if match_label(value, known) is None and value not in known:
            known.append(value)
    # A bool among the labels is meant as one, even where a classical member wrote it as text first.
    texts = {str(value).strip().casefold() for value in known}
    return [True, False] if texts and texts <= {"true", "false"} else known


def read_vote(member: int, weight: float, answer: Any, prediction: Any, labels: Sequence[Any]) -> Vote:
    """A member's answer in terms of the known labels.

    Raises:
        AnswerError: The answer is none of them.
    """
    label = match_label(answer, labels)
    if label is None:
        raise AnswerError(
            f"the answer {answer!r:.60} is none of the labels {', '.join(map(repr, labels))}", text=str(answer)
        )
    shares = read_shares(prediction)
    if shares is None and is_yes_no(labels) and prediction.get("probability", None) is not None:
        said = read_share(prediction["probability"])
        shares = {True: said, False: 1.0 - said}
    if shares is not None:
        matched = {match_label(key, labels): share for key, share in shares.items()}
        shares = {one: matched.get(one, 0.0) for one in labels}
    return Vote(member=member, weight=weight, answer=label, shares=shares)


def mean_shares(votes: Sequence[Vote], labels: Sequence[Any]) -> dict[Any, float] | None:
    """The weighted mean probability of each label, over the members that give one; None where no member does."""
    telling = [vote for vote in votes if vote.shares is not None and vote.weight > 0]
    total = sum(vote.weight for vote in telling)
    if not telling:
        return None
    return {
        label: sum(vote.weight * vote.shares[label] for vote in telling if vote.shares is not None) / total
        for label in labels
    }


def vote_shares(votes: Sequence[Vote], labels: Sequence[Any]) -> dict[Any, float]:
    """The share of the weighted votes for each label that has any."""
    total = sum(vote.weight for vote in votes)
    shares = {label: sum(vote.weight for vote in votes if vote.answer == label) / total for label in labels}
    return {label: share for label, share in shares.items() if share > 0}


def decide_votes(votes: Sequence[Vote], labels: Sequence[Any]) -> tuple[Any, bool]:
    """The label with most votes, and whether there was a tie.

    A tie goes to the label of greater mean probability, then to the one that comes first among the labels.
    """
    shares = vote_shares(votes, labels)
    most = max(shares.values())
    tied = [label for label in labels if shares.get(label, 0.0) >= most - 1e-12]
    means = mean_shares(votes, labels) or {}
    return max(tied, key=lambda label: means.get(label, 0.0)), len(tied) > 1


def weighted_median(votes: Sequence[Vote]) -> float:
    """The number with at most half the weight on either side; midway where two numbers share the middle."""
    rank = sorted(votes, key=lambda vote: (vote.answer, vote.member))
    half = sum(vote.weight for vote in rank) / 2
    passed = 0.0
    for place, vote in enumerate(rank):
        passed += vote.weight
        if abs(passed - half) < 1e-12 and place + 1 < len(rank):
            return float((vote.answer + rank[place + 1].answer) / 2)
        if passed > half:
            return float(vote.answer)
    return float(rank[-1].answer)
