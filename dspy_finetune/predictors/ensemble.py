"""`Ensemble`: several programs asked at the same time, and one answer by a stated rule.

In: members of any kind (tuned predictors, DSPy programs, classical models, any callable that takes the input fields by
name). Out: a prediction with the answer, its probability, how far the members disagree, and how many could not answer.
Not covered: asking an expensive program only in doubt (cascade.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias, get_args

import dspy

from dspy_finetune._optional import fitting, require
from dspy_finetune.errors import AnswerError, DataError, HostError, MissingExtraError, UsageError
from dspy_finetune.predictors.ask import (
    PARSE_FAILURES,
    ask_async,
    check_members,
    in_threads,
    inputs_of,
    labels_of,
    number_of,
    output_of,
    read_answer,
    read_share,
    read_shares,
)
from dspy_finetune.predictors.base import SavedSettings
from dspy_finetune.values import BOOL, NUMBER, LabelSet, NumberFormat, bare_label, is_yes_no, match_label

# How the answers of several members become one: shares, votes, the middle number. Every rule is deterministic and
# does not depend on the order in which answers arrive.


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
    values = [*answers, *(key for one in shares for key in one or ())]
    if LabelSet.among(values) is BOOL:  # even where a classical member wrote it as text first
        return [True, False]
    for value in values:
        # What equals a label of another type, as 1 does True, is no label beside it.
        with contextlib.suppress(AnswerError):
            label = bare_label(value)
            if match_label(label, known) is None and label not in known:
                known.append(label)
    return known


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
    is_lone = prediction.get("probabilities", None) is None and prediction.get("probability", None) is not None
    if shares is None and is_yes_no(labels) and is_lone:
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


# A fitted combiner of several members: of labels a logistic regression on their log-odds, of numbers a regression
# without negative weights (Breiman 1996, "Stacked regressions"). scikit-learn fits; applying needs nothing. A member
# that gives no probability enters as 0.9 on its answer, a member that did not answer with its mean in fitting: the
# regression finds out what either is worth.

MINIMUM = 20
"""The fewest examples; and at least 5 of each label."""
N_FOLDS = 5
"""Parts of the cross-validation that chooses the scale of numbers."""
MOST_NUMBER_LABELS = 10
"""Maximum number of different whole numbers that are taken for labels where no member says what its labels are."""

_VOTE_SHARE = 0.9
_LEAST = 1e-6


def features(votes: Sequence[Vote], labels: Sequence[Any], n_members: int) -> list[float | None]:
    """For each member and each label but the first, log(share / share of the first); None where it did not answer."""
    by_member = {vote.member: vote for vote in votes}
    row: list[float | None] = []
    for member in range(n_members):
        vote = by_member.get(member)
        if vote is None:
            row += [None] * (len(labels) - 1)
            continue
        rest = (1.0 - _VOTE_SHARE) / (len(labels) - 1)
        shares = vote.shares or {label: _VOTE_SHARE if label == vote.answer else rest for label in labels}
        logs = [math.log(min(max(shares[label], _LEAST), 1.0 - _LEAST)) for label in labels]
        row += [value - logs[0] for value in logs[1:]]
    return row


@fitting("sklearn.linear_model", "eval", 'Ensemble(voting="stack")')
def fit(rows: Sequence[Sequence[float | None]], right: Sequence[int], n_labels: int) -> dict[str, Any]:
    """The coefficients, as JSON values.

    Raises:
        DataError: Too few examples, or too few of a label.
    """
    counts = Counter(right)
    if len(right) < MINIMUM or len(counts) < n_labels or min(counts.values()) < 5:
        raise DataError(
            f"stacking needs at least {MINIMUM} examples and 5 of each label; found {len(right)}, "
            f"by label {[counts[label] for label in range(n_labels)]}"
        )
    means = _means(rows)
    linear = require("sklearn.linear_model", "eval", 'Ensemble(voting="stack")')
    model = linear.LogisticRegression(C=1.0, max_iter=2000)
    model.fit([_filled(row, means) for row in rows], right)
    slopes, intercepts = model.coef_.tolist(), model.intercept_.tolist()
    if n_labels == 2:  # scikit-learn keeps one row, for the second label
        slopes, intercepts = [[0.0] * len(means), slopes[0]], [0.0, intercepts[0]]
    return {"slopes": slopes, "intercepts": intercepts, "means": means, "n": len(right)}


def apply(fitted: dict[str, Any], row: Sequence[float | None]) -> list[float]:
    """The probability of each label."""
    filled = _filled(row, fitted["means"])
    scores = [
        intercept + sum(slope * value for slope, value in zip(slopes, filled, strict=True))
        for slopes, intercept in zip(fitted["slopes"], fitted["intercepts"], strict=True)
    ]
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def fit_numbers(rows: Sequence[Sequence[float | None]], right: Sequence[float]) -> dict[str, Any]:
    """The coefficients, as JSON values, on the scale (plain or logarithmic) of the lesser cross-validated error.

    Raises:
        DataError: Too few examples.
    """
    if len(right) < MINIMUM:
        raise DataError(f"stacking needs at least {MINIMUM} examples; found {len(right)}")
    told = [value for row in rows for value in row if value is not None]
    can_be_log = min([*right, *told]) > 0
    folds = [index % N_FOLDS for index in range(len(right))]
    random.Random(0).shuffle(folds)
    errors: dict[bool, float] = {}
    for is_log in (False, True) if can_be_log else (False,):
        errors[is_log] = 0.0
        for fold in range(N_FOLDS):
            train, test = ([i for i, one in enumerate(folds) if (one == fold) is is_test] for is_test in (False, True))
            fitted = _fit_numbers([rows[i] for i in train], [right[i] for i in train], is_log)
            errors[is_log] += sum(abs(apply_numbers(fitted, rows[i]) - right[i]) for i in test)
    return _fit_numbers(rows, right, min(errors, key=lambda is_log: errors[is_log]))


@fitting("sklearn.linear_model", "eval", 'Ensemble(voting="stack")')
def _fit_numbers(rows: Sequence[Sequence[float | None]], right: Sequence[float], is_log: bool) -> dict[str, Any]:
    scaled = [[_scaled(value, is_log) for value in row] for row in rows]
    means = _means(scaled)
    linear = require("sklearn.linear_model", "eval", 'Ensemble(voting="stack")')
    model = linear.LinearRegression(positive=True)
    model.fit([_filled(row, means) for row in scaled], [_scaled(value, is_log) for value in right])
    weights, start = model.coef_.tolist(), float(model.intercept_)
    return {"weights": weights, "intercept": start, "means": means, "is_log": is_log, "n": len(right)}


def apply_numbers(fitted: dict[str, Any], row: Sequence[float | None]) -> float:
    """The number of a fitted combiner."""
    filled = _filled([_scaled(value, fitted["is_log"]) for value in row], fitted["means"])
    value = fitted["intercept"] + sum(weight * one for weight, one in zip(fitted["weights"], filled, strict=True))
    return math.exp(value) if fitted["is_log"] else float(value)


def _scaled(value: float | None, is_log: bool) -> float | None:
    if not is_log or value is None:
        return value
    return math.log(value) if value > 0 else None  # a member that says 0 or less has, on this scale, not answered


def _means(rows: Sequence[Sequence[float | None]]) -> list[float]:
    """The mean of each column over the members that answered; 0 where none did."""
    columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    return [sum(values) / len(values) if values else 0.0 for values in columns]


def _filled(row: Sequence[float | None], means: Sequence[float]) -> list[float]:
    return [mean if value is None else value for value, mean in zip(row, means, strict=True)]


logger = logging.getLogger(__name__)

Voting: TypeAlias = Literal["probability", "majority", "median", "stack"]
"""How the members' answers become one."""


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What asking one member came to: a prediction or an error."""

    prediction: Any = None
    error: Exception | None = None


class Ensemble(dspy.Module):
    """Several programs as one.

    The rules:

    - "probability": the weighted mean of each label's probability; for True and False, True from `threshold` on. A
      member that gives no probability counts as a whole vote for its answer; if no member gives one, votes decide and
      the prediction's probability is None.
    - "majority": the label with the most weighted votes. A tie goes to the label of greater mean probability, then to
      the first label. The prediction has no probability, but `agreement`, the winner's share of the votes.
    - "median": for numbers, the weighted median.
    - "stack": a regression on the members' log-odds, or on their numbers, fitted by `fit` on held-out examples and
      saved. Members may be of any kind: a tuned model beside a linear model on an encoder's features.

    A member that fails (any error) or whose answer cannot be read is left out and counted; the others decide as long as
    at least `min_members` have answered. A wrong set-up (UsageError, MissingExtraError) is raised at once.

    The prediction carries the output field and `disagreement`: for labels the weighted share of the answering members
    whose own answer is another, in [0, 1]; for numbers the weighted mean distance from the answer. Then `n_members`,
    `n_failed`, `n_parse_failures`; for labels `probability` and `probabilities` as `OpenAIPredictor` has them,
    `agreement` and `is_tie`; for numbers `samples`, the members' numbers in order. The answer does not depend on who is
    first.

    >>> ensemble = Ensemble([lambda title: {"topic": "A"}, lambda title: {"topic": "B"}, lambda title: {"topic": "A"}],
    ...                     voting="majority", output="topic")
    >>> prediction = ensemble(title="Lock gates")
    >>> prediction.topic, round(prediction.disagreement, 2)
    ('A', 0.33)

    Args:
        members: The programs; predictors among them are saved and loaded with the ensemble.
        weights: One positive number for each member; equal by default. Not for stacking.
        voting: The rule.
        output: The field that holds the answer; by default the label field or only output of the first member that
            tells.
        threshold: For True and False: the least probability of True that counts as True.
        min_members: How many members must answer.
        num_threads: How many members are asked at the same time; by default all. 1 asks one after the other.

    Raises:
        AnswerError: On a call: fewer than `min_members` answered, and every other answer could not be read.
        HostError: On a call: fewer than `min_members` answered, and some failed; the first failure is chained.
        UsageError: The arguments do not fit together.
    """

    def __init__(
        self,
        members: Sequence[Callable[..., Any]],
        *,
        weights: Sequence[float] | None = None,
        voting: Voting = "probability",
        output: str | None = None,
        threshold: float = 0.5,
        min_members: int = 1,
        num_threads: int | None = None,
    ) -> None:
        super().__init__()
        if not members:
            raise UsageError("members: at least one program is needed")
        if voting not in get_args(Voting):
            raise UsageError(f'voting: "probability", "majority", "median" or "stack"; got {voting!r}')
        check_members(members)
        if weights is not None and (voting == "stack" or not _are_weights(weights, len(members))):
            raise UsageError(
                f"weights: {len(members)} positive numbers, one for each member, and none for stacking; got {weights!r}"
            )
        if not 1 <= min_members <= len(members):
            raise UsageError(f"min_members must be between 1 and {len(members)}, got {min_members}")
        if not 0.0 <= threshold <= 1.0:
            raise UsageError(f"threshold must be between 0 and 1, found {threshold}")
        self.members = list(members)
        self.output = output_of(members, output)
        self.num_threads = num_threads or len(self.members)
        self.settings = SavedSettings(
            "Ensemble",
            voting=voting,
            weights=[float(weight) for weight in weights] if weights is not None else [1.0] * len(members),
            threshold=threshold,
            min_members=min_members,
            fitted=None,
        )

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Ask all members at the same time, in threads."""
        return self._combine(in_threads(lambda member: _said(member, inputs), self.members, self.num_threads))

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Ask all members at the same time, without blocking the event loop."""

        async def ask(member: Any) -> _Said:
            try:
                return _Said(prediction=await ask_async(member, inputs))
            except (UsageError, MissingExtraError):
                raise
            except Exception as error:  # as in _said
                return _Said(error=error)

        return self._combine(await asyncio.gather(*(ask(member) for member in self.members)))

    def fit(self, examples: Sequence[Any], *, num_threads: int = 8) -> Ensemble:
        """Fit the combiner of `voting="stack"` on labelled examples that no member was trained on.

        Numbers are fitted on a logarithmic scale where all are positive and the cross-validated absolute error is less
        there.

        Args:
            examples: With the output field.
            num_threads: Concurrent calls.

        Raises:
            DataError: Fewer than 20 examples, or fewer than 5 of a label.
            UsageError: The ensemble has another rule, or an example lacks the output field.
        """
        if self.settings["voting"] != "stack":
            raise UsageError(f'fit is for Ensemble(voting="stack"), this one has voting="{self.settings["voting"]}"')
        examples = list(examples)
        for number, example in enumerate(examples, start=1):
            if self.output not in example:
                raise UsageError(f'example {number} has no field "{self.output}", the label that fit needs')
        jobs = [(member, inputs_of(example)) for example in examples for member in self.members]
        with dspy.context(disable_history=True, trace=None):
            said = in_threads(lambda job: _said(*job), jobs, num_threads)
        expected = [example[self.output] for example in examples]
        size = len(self.members)
        answers = [said[start : start + size] for start in range(0, len(said), size)]
        if self._are_numbers(expected, said):
            numbers = [self._numbers(one) for one in answers]
            self.settings["fitted"] = fit_numbers(numbers, [float(value) for value in expected])
            return self
        labels = known_labels(expected, [], labels_of(self.members))
        right: list[int] = []
        for value in expected:
            label = match_label(value, labels)
            if label is None:
                raise UsageError(f"the label {value!r:.60} is none of {', '.join(map(repr, labels))}")
            right.append(labels.index(label))
        rows = [features(self._votes(one, labels)[0], labels, size) for one in answers]
        plain = [label if isinstance(label, (bool, int, str)) else label.value for label in labels]
        self.settings["fitted"] = {**fit(rows, right, len(labels)), "labels": plain}
        return self

    # -- from answers to one answer -------------------------------------------------------------------------------

    def _votes(self, said: Sequence[_Said], labels: Sequence[Any] | None) -> tuple[list[Vote], list[Exception]]:
        """The votes of the members that answered, and the errors of those that did not. Without labels: numbers."""
        votes: list[Vote] = []
        errors: list[Exception] = []
        number = number_of(self.members, self.output)
        for member, (one, weight) in enumerate(zip(said, self.settings["weights"], strict=True)):
            try:
                if one.error is not None:
                    raise one.error
                answer = read_answer(one.prediction, self.output)
                if labels is not None:
                    votes.append(read_vote(member, weight, answer, one.prediction, labels))
                else:
                    votes.append(Vote(member=member, weight=weight, answer=_number(answer, number), shares=None))
            except UsageError:
                raise
            except Exception as error:  # the member's own failure, whatever its kind, is what is counted here
                errors.append(error)
        return votes, errors

    def _are_numbers(self, expected: Sequence[Any], said: Sequence[_Said]) -> bool:
        """Whether the answers are numbers to be weighed rather than labels to be chosen among."""
        if labels_of(self.members) or not all(_is_number(value) for value in expected):
            return False
        has_shares = any(one.prediction is not None and one.prediction.get("probabilities", None) for one in said)
        is_few = len({*expected}) <= MOST_NUMBER_LABELS and all(float(value).is_integer() for value in expected)
        return not has_shares and not is_few

    def _numbers(self, said: Sequence[_Said]) -> list[float | None]:
        """Each member's number; None where it did not answer."""
        by_member = {vote.member: float(vote.answer) for vote in self._votes(said, None)[0]}
        return [by_member.get(member) for member in range(len(self.members))]

    def _labels(self, said: Sequence[_Said]) -> list[Any]:
        fitted = self.settings["fitted"]
        given = labels_of(self.members) or (tuple(fitted.get("labels", ())) if fitted else ())
        answers: list[Any] = []
        shares: list[dict[Any, float] | None] = []
        for one in said:
            with contextlib.suppress(*PARSE_FAILURES):  # counted when the votes are read
                if one.error is None:
                    answers.append(read_answer(one.prediction, self.output))
                    shares.append(read_shares(one.prediction))
        return known_labels(answers, shares, given)

    def _combine(self, said: Sequence[_Said]) -> dspy.Prediction:
        voting: Voting = self.settings["voting"]
        if voting == "stack" and self.settings["fitted"] is None:
            raise UsageError('Ensemble(voting="stack") is not fitted; call .fit(examples) with held-out examples')
        is_number = voting == "median" or (voting == "stack" and "weights" in self.settings["fitted"])
        labels = None if is_number else self._labels(said)
        votes, errors = self._votes(said, labels)
        n_parse_failures = sum(isinstance(error, PARSE_FAILURES) for error in errors)
        if len(votes) < self.settings["min_members"]:
            raise _too_few(len(votes), len(said), self.settings["min_members"], errors)
        for error in errors:
            logger.debug("a member did not answer: %s: %s", type(error).__name__, error)
        counts = {
            "n_members": len(said),
            "n_failed": len(errors) - n_parse_failures,
            "n_parse_failures": n_parse_failures,
        }
        if labels is None:
            return self._number_prediction(votes, counts)
        return self._label_prediction(voting, votes, labels, counts)

    def _number_prediction(self, votes: Sequence[Vote], counts: dict[str, int]) -> dspy.Prediction:
        middle = weighted_median(votes)
        if self.settings["voting"] == "stack":
            by_member = {vote.member: vote.answer for vote in votes}
            row = [by_member.get(member) for member in range(len(self.members))]
            middle = apply_numbers(self.settings["fitted"], row)
        distance = sum(vote.weight * abs(vote.answer - middle) for vote in votes) / sum(vote.weight for vote in votes)
        numbers = [vote.answer for vote in votes]
        return dspy.Prediction(**{self.output: middle}, disagreement=distance, samples=numbers, **counts)

    def _label_prediction(
        self, voting: Voting, votes: Sequence[Vote], labels: Sequence[Any], counts: dict[str, int]
    ) -> dspy.Prediction:
        answer, is_tie = decide_votes(votes, labels)
        shares: dict[Any, float] | None = None
        if voting == "stack":
            row = features(votes, labels, len(self.members))
            shares = dict(zip(labels, apply(self.settings["fitted"], row), strict=True))
        elif voting == "probability" and any(vote.shares is not None for vote in votes):
            # A member without a probability counts as a whole vote.
            whole = [
                vote
                if vote.shares is not None
                else dataclasses.replace(vote, shares={label: float(label == vote.answer) for label in labels})
                for vote in votes
            ]
            shares = mean_shares(whole, labels)
        if shares is not None:
            answer = max(labels, key=lambda label: shares[label])
            is_tie = sorted(shares.values())[-2:] == [shares[answer]] * 2
        if shares is not None and is_yes_no(labels):
            answer = shares[True] >= self.settings["threshold"]
        agreement = vote_shares(votes, labels).get(answer, 0.0)
        return dspy.Prediction(
            **{self.output: answer},
            probability=None if shares is None else shares[True if is_yes_no(labels) else answer],
            probabilities=shares,
            agreement=agreement,
            disagreement=1.0 - agreement,
            is_tie=is_tie,
            **counts,
        )


def _said(member: Callable[..., Any], inputs: dict[str, Any]) -> _Said:
    try:
        return _Said(prediction=member(**inputs))
    except (UsageError, MissingExtraError):
        raise
    except Exception as error:  # a member may be anybody's code: whatever goes wrong in it, the others still decide
        return _Said(error=error)


def _are_weights(weights: Sequence[Any], n_members: int) -> bool:
    return len(weights) == n_members and all(isinstance(one, Real) and 0 < float(one) < math.inf for one in weights)


def _number(answer: Any, style: NumberFormat) -> float:
    # Members may answer a whole number with 12.5: a number is a number, only texts are read by the format.
    return float(style.read(answer) if isinstance(answer, str) else NUMBER.read(answer))


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def _too_few(n_answered: int, n_members: int, least: int, errors: Sequence[Exception]) -> Exception:
    failed = [error for error in errors if not isinstance(error, PARSE_FAILURES)]
    first = (failed or errors)[0]
    problem = (
        f"{n_answered} of {n_members} members answered, min_members is {least}; "
        f"the first that did not: {type(first).__name__}: {str(first)[:200]}"
    )
    found: Exception
    if failed:
        found = HostError(problem, retryable=bool(getattr(first, "retryable", False)))
    else:
        found = AnswerError(problem, text=str(getattr(first, "text", "")))
    found.__cause__ = first
    return found
