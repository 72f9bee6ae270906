"""`Cascade`: a cheap program first, the expensive one only where the cheap one is in doubt.

In: two programs of any kind. Out: the cheap one's prediction where its confidence reaches the threshold, else the
expensive one's, with `escalated` and `confidence`. `Cascade.choose` picks the threshold on held-out examples.
Not covered: asking both and combining them (ensemble.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import dspy

from dspy_finetune.errors import DataError, UsageError
from dspy_finetune.predictors.ask import (
    PARSE_FAILURES,
    ask_async,
    check_members,
    confidence_of,
    in_threads,
    inputs_of,
    labels_of,
    output_of,
    read_answer,
    wilson,
)
from dspy_finetune.predictors.base import SavedSettings
from dspy_finetune.values import match_label


class Cascade(dspy.Module):
    """A cheap program, and an expensive one for the doubtful cases.

    Confidence is the probability of the answer that the cheap program returns: from its `probabilities`, its
    `probability`, or an ensemble's `agreement`. Where it carries none of them, or its answer cannot be read, the
    confidence is None and the expensive program is asked. Other errors of either program are raised.

    The prediction is that of the program that decided, with

    - `escalated`: whether the expensive program was asked;
    - `confidence`: that of the cheap program, in [0, 1] or None.

    >>> cheap = lambda title: dspy.Prediction(liked=True, probabilities={True: 0.9, False: 0.1})
    >>> expensive = lambda title: dspy.Prediction(liked=False)
    >>> cascade = Cascade([cheap, expensive], min_confidence=0.8, output="liked")
    >>> cascade(title="Lock gates").escalated
    False

    Args:
        members: The cheap program and the expensive one.
        min_confidence: The least confidence with which the cheap answer stands; above 1 always escalates.
        output: The field that holds the answer; by default as in `Ensemble`.

    Raises:
        UsageError: Not two programs, or no program tells its output field.
    """

    def __init__(
        self, members: Sequence[Callable[..., Any]], *, min_confidence: float = 0.8, output: str | None = None
    ) -> None:
        super().__init__()
        if len(members) != 2:
            raise UsageError(
                f"members: a cheap program and an expensive one, got {len(members)}; nest cascades for more"
            )
        check_members(members)
        if min_confidence < 0.0 or math.isnan(min_confidence):
            raise UsageError(f"min_confidence must be at least 0, found {min_confidence}")
        self.members = list(members)
        self.output = output_of(members, output)
        self.settings = SavedSettings("Cascade", min_confidence=float(min_confidence))

    @property
    def min_confidence(self) -> float:
        """The least confidence with which the cheap answer stands; saved with the program."""
        return float(self.settings["min_confidence"])

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Ask the cheap program, and the expensive one in doubt."""
        try:
            found = self.members[0](**inputs)
            confidence = confidence_of(found, self.output, labels_of(self.members))
        except PARSE_FAILURES:
            confidence = None
        if confidence is not None and confidence >= self.min_confidence:
            return _marked(found, confidence, escalated=False)
        return _marked(self.members[1](**inputs), confidence, escalated=True)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """As `forward`, without blocking the event loop."""
        try:
            found = await ask_async(self.members[0], inputs)
            confidence = confidence_of(found, self.output, labels_of(self.members))
        except PARSE_FAILURES:
            confidence = None
        if confidence is not None and confidence >= self.min_confidence:
            return _marked(found, confidence, escalated=False)
        return _marked(await ask_async(self.members[1], inputs), confidence, escalated=True)

    @classmethod
    def choose(
        cls,
        members: Sequence[Callable[..., Any]],
        examples: Sequence[Any],
        *,
        target_accuracy: float | None = None,
        max_escalated: float | None = None,
        costs: tuple[float, float] | None = None,
        output: str | None = None,
        num_threads: int = 8,
    ) -> CascadeChoice:
        """Ask both programs about held-out examples and pick the threshold.

        - `target_accuracy`: the threshold that escalates least and reaches it;
        - `max_escalated`: the most accurate threshold that escalates no greater share than this, and of equally
          accurate ones that which escalates least;
        - both: the first rule, within the budget of the second; neither: the second rule without a budget.

        The figures are those of the examples on which the threshold was picked, so a little too good: judge the
        cascade once more on others, with `compare`.

        Args:
            members: The cheap program and the expensive one.
            examples: Labelled examples; at least 20.
            target_accuracy: In (0, 1].
            max_escalated: In [0, 1].
            costs: Price of one call of each, in any currency, for the report.
            output: As in `Cascade`.
            num_threads: Concurrent calls.

        Raises:
            DataError: Too few examples, or no threshold does what is asked; says what is in reach.
            UsageError: An argument is out of range, or an example lacks the output field.
        """
        for name, value in (("target_accuracy", target_accuracy), ("max_escalated", max_escalated)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise UsageError(f"{name} must be between 0 and 1, found {value}")
        if costs is not None and not _are_costs(costs):
            raise UsageError(f"costs: the price of a call of each program, two numbers of at least 0; got {costs!r}")
        cascade, examples = cls(members, output=output), list(examples)
        if len(examples) < 20:
            raise DataError(f"{len(examples)} examples are too few to choose a threshold: at least 20 are needed")
        if any(cascade.output not in example for example in examples):
            raise UsageError(f'every example needs the field "{cascade.output}", the right answer')
        jobs = [(member, example) for member in members for example in examples]
        labels = labels_of(members)
        with dspy.context(disable_history=True, trace=None):
            asked = in_threads(lambda job: _judged(job[0], job[1], cascade.output, labels), jobs, num_threads)
        cheap, expensive = asked[: len(examples)], asked[len(examples) :]
        points = _curve(cheap, expensive)
        point = _pick(points, target_accuracy, max_escalated)
        cascade.settings["min_confidence"] = point.min_confidence
        return CascadeChoice(
            cascade=cascade,
            n=len(examples),
            min_confidence=point.min_confidence,
            share_escalated=point.share_escalated,
            accuracy=point.accuracy,
            accuracy_interval=wilson(round(point.accuracy * len(examples)), len(examples)),
            cheap_accuracy=sum(right for right, _ in cheap) / len(cheap),
            expensive_accuracy=sum(right for right, _ in expensive) / len(expensive),
            cost=None if costs is None else costs[0] + point.share_escalated * costs[1],
            cheap_cost=None if costs is None else costs[0],
            expensive_cost=None if costs is None else costs[1],
            curve=points,
        )


@dataclass(frozen=True, kw_only=True)
class CascadePoint:
    """What one threshold gives on the examples."""

    min_confidence: float
    """The threshold."""
    share_escalated: float
    """How often the expensive program is asked, in [0, 1]."""
    accuracy: float
    """Share of right answers; an answer that cannot be read is not right."""


@dataclass(frozen=True, kw_only=True)
class CascadeChoice:
    """The threshold that was picked, and what it gives against each program alone."""

    cascade: Cascade
    """The cascade, ready for use."""
    n: int
    """Examples."""
    min_confidence: float
    """The threshold."""
    share_escalated: float
    """How often the expensive program is asked, in [0, 1]."""
    accuracy: float
    """Of the cascade."""
    accuracy_interval: tuple[float, float]
    """Wilson's 95 % interval of it."""
    cheap_accuracy: float
    """Of the cheap program alone."""
    expensive_accuracy: float
    """Of the expensive program alone."""
    cost: float | None
    """Per item: the cheap call always, the expensive one where escalated. None without `costs`."""
    cheap_cost: float | None
    """Per item, the cheap program alone."""
    expensive_cost: float | None
    """Per item, the expensive program alone."""
    curve: tuple[CascadePoint, ...]
    """Every threshold that makes a difference, from no escalation to all."""


def _are_costs(costs: Any) -> bool:
    two = list(costs) if isinstance(costs, (list, tuple)) else []
    return len(two) == 2 and all(isinstance(one, Real) and 0 <= float(one) < math.inf for one in two)


def _marked(found: Any, confidence: float | None, *, escalated: bool) -> dspy.Prediction:
    # A Prediction keeps its usage and completions; a mapping becomes one.
    prediction = found if isinstance(found, dspy.Prediction) else dspy.Prediction(**found)
    prediction["escalated"] = escalated
    prediction["confidence"] = confidence
    return prediction


def _judged(member: Callable[..., Any], example: Any, output: str, labels: Sequence[Any]) -> tuple[bool, float | None]:
    """Whether the answer is right, and the confidence."""
    try:
        prediction = member(**inputs_of(example))
        answer = read_answer(prediction, output)
        confidence = confidence_of(prediction, output, labels)
        expected = match_label(example[output], labels) if labels else example[output]
        return match_label(answer, labels or [expected]) == expected, confidence
    except PARSE_FAILURES:
        return False, None


def _curve(
    cheap: Sequence[tuple[bool, float | None]], expensive: Sequence[tuple[bool, float | None]]
) -> tuple[CascadePoint, ...]:
    n = len(cheap)
    sure = sorted({confidence for _, confidence in cheap if confidence is not None})
    # Between two confidences any threshold does the same; the middle is the safest against rounding.
    between = [(low + high) / 2 for low, high in itertools.pairwise(sure)]
    points = []
    for threshold in [0.0, *between, *([math.nextafter(sure[-1], 2.0)] if sure else [])]:
        stays = [confidence is not None and confidence >= threshold for _, confidence in cheap]
        n_right = sum((one if stay else two)[0] for one, two, stay in zip(cheap, expensive, stays, strict=True))
        points.append(CascadePoint(min_confidence=threshold, share_escalated=1 - sum(stays) / n, accuracy=n_right / n))
    return tuple(points)


def _pick(points: Sequence[CascadePoint], target_accuracy: float | None, max_escalated: float | None) -> CascadePoint:
    within = [one for one in points if max_escalated is None or one.share_escalated <= max_escalated + 1e-12]
    if not within:
        least = min(one.share_escalated for one in points)
        raise DataError(
            f"at least a share of {least:.3f} is escalated, because the cheap program gives no confidence there"
        )
    best = max(within, key=lambda one: (one.accuracy, -one.share_escalated))
    if target_accuracy is None:
        return best
    reached = [one for one in within if one.accuracy >= target_accuracy - 1e-12]
    if not reached:
        raise DataError(
            f"no threshold reaches an accuracy of {target_accuracy}: the best is {best.accuracy:.3f}, "
            f"with a share of {best.share_escalated:.3f} escalated"
        )
    return min(reached, key=lambda one: (one.share_escalated, -one.accuracy))
