"""Metrics of one item: plain functions on values, and the factories that make a `Metric` of them.

In: an expected and a predicted value. Out: a float; each docstring states the range.
A mean over no items is not defined (None in a report). Unreadable and failed answers count 0 in accuracy, exact match
and token F1, which ask "did it answer rightly?"; they are left out, and counted, in errors and losses, where no
honest number exists for them. Not covered: scores that exist only over a set (set_metrics.py).
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from typing import Any

from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation.metric_types import Metric
from dspy_finetune.evaluation.reading import same_label, to_number

ORDERS_AGREE = "orders_agree"
"""The field in which `in_both_orders` notes whether both answers name the same text."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def label_match(expected: Any, predicted: Any) -> float:
    """1.0 when both labels are the same, letter case and outer blanks aside, else 0.0."""
    return float(same_label(expected, predicted))


def absolute_error(expected: Any, predicted: Any) -> float:
    """|predicted - expected|, from 0 up, in the label's own unit."""
    return abs(to_number(predicted) - to_number(expected))


def squared_error(expected: Any, predicted: Any) -> float:
    """(predicted - expected) squared, from 0 up."""
    return (to_number(predicted) - to_number(expected)) ** 2


def normalize_text(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks: the normalisation of SQuAD's evaluation script."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", text).split())


def text_match(expected: Any, predicted: Any) -> float:
    """1.0 when both texts are equal after `normalize_text`, else 0.0. A list of expected texts: the best of them."""
    if isinstance(expected, (list, tuple)):
        return max((text_match(one, predicted) for one in expected), default=0.0)
    return float(normalize_text(str(expected)) == normalize_text(str(predicted)))


def token_overlap(expected: Any, predicted: Any) -> float:
    """F1 of the words that both texts share, 0 to 1, as in SQuAD; two empty texts give 1. A list of expected.

    The best.
    """
    if isinstance(expected, (list, tuple)):
        return max((token_overlap(one, predicted) for one in expected), default=0.0)
    one, other = normalize_text(str(expected)).split(), normalize_text(str(predicted)).split()
    if not one or not other:
        return float(one == other)
    n_common = sum((Counter(one) & Counter(other)).values())
    return 2 * n_common / (len(one) + len(other))


def squared_probability_error(expected: float, probability: float) -> float:
    """(probability - outcome) squared, 0 to 1: one item's share of the Brier score."""
    return (probability - expected) ** 2


def surprise(expected: float, probability: float) -> float:
    """-ln of the probability given to what came true, from 0 to 34.5; probabilities are held off 0 and 1 by 1e-15."""
    share = probability if expected == 1.0 else 1.0 - probability
    return abs(math.log(min(max(share, 1e-15), 1.0)))  # abs: -log(1) is -0.0


def accuracy(field: str) -> Metric:
    """Share of items whose label is right, 0 to 1. Unreadable and failed answers count as not right."""
    return Metric(name="accuracy", field=field, function=label_match, if_unreadable=0.0, is_proportion=True)


def pairwise_accuracy(field: str = "preferred") -> Metric:
    """Share of pairs in which the preferred side is named, 0 to 1; a coin gives 0.5.

    Unreadable answers count as not right.
    """
    return Metric(name="pairwise accuracy", field=field, function=label_match, if_unreadable=0.0, is_proportion=True)


def order_agreement() -> Metric:
    """Share of pairs in which the same text is preferred in both orders, 0 to 1; a coin gives 0.5, 1 is the best.

    For programs in `in_both_orders(program)`, which asks twice and notes whether the answers agree. Unreadable answers
    count 0. Raises UsageError, on call, for a prediction of another program.
    """
    return Metric(
        name="order agreement",
        field=ORDERS_AGREE,
        function=_is_true,
        reads="item",
        needs_label=False,
        if_unreadable=0.0,
        is_proportion=True,
    )


def _is_true(example: Any, agree: Any) -> float:
    return float(agree is True)


def exact_match(field: str) -> Metric:
    """Share of texts equal after SQuAD's normalisation, 0 to 1. Unreadable answers count 0."""
    return Metric(name="exact match", field=field, function=text_match, if_unreadable=0.0, is_proportion=True)


def token_f1(field: str) -> Metric:
    """Mean word-overlap F1, 0 to 1. Unreadable answers count 0."""
    return Metric(name="token F1", field=field, function=token_overlap, if_unreadable=0.0, bounds=(0.0, 1.0))


def within(field: str, *, absolute: float | None = None, relative: float | None = None) -> Metric:
    """Share of numbers close enough, 0 to 1.

    Within `absolute` or within `relative` times the expected, whichever is wider.

    Unreadable answers, and those that are no number, count 0.

    Raises:
        UsageError: Neither distance was given, or one is negative or not finite.
    """
    if absolute is None and relative is None:
        raise UsageError("within() needs absolute=... (in the label's unit) or relative=... (0.2 is 20 %)")
    if any(one is not None and not (one >= 0 and math.isfinite(one)) for one in (absolute, relative)):
        raise UsageError(f"within() needs finite numbers of 0 or more; got absolute={absolute}, relative={relative}")
    name = " or ".join(
        [f"{relative:.0%}" for _ in [0] if relative is not None]
        + [f"{absolute:g}" for _ in [0] if absolute is not None]
    )
    return Metric(
        name=f"within {name}",
        field=field,
        function=_Within(absolute=absolute or 0.0, relative=relative or 0.0),
        reads="number",
        if_unreadable=0.0,
        is_proportion=True,
    )


class _Within:
    """The function behind `within`; a class, because a closure cannot be pickled."""

    def __init__(self, *, absolute: float, relative: float) -> None:
        self.absolute = absolute
        self.relative = relative

    def __call__(self, expected: Any, predicted: Any) -> float:
        margin = max(self.absolute, self.relative * abs(to_number(expected)))
        return float(absolute_error(expected, predicted) <= margin)


def mean_absolute_error(field: str) -> Metric:
    """Mean of |predicted - expected|, from 0 up; lower is better. Unreadable answers are left out and counted."""
    return Metric(
        name="mean absolute error",
        field=field,
        function=absolute_error,
        reads="number",
        higher_is_better=False,
        bounds=(0.0, None),
    )


def brier(field: str, *, positive: Any = None) -> Metric:
    """Brier score: mean squared error of the positive label's probability, 0 to 1; lower is better, 0.25 is a coin's.

    Answers without a probability are left out and counted. `positive`: default True, or A for pairs.
    """
    return Metric(
        name="Brier score",
        field=field,
        function=squared_probability_error,
        reads="probability",
        higher_is_better=False,
        positive=positive,
        bounds=(0.0, 1.0),
    )


def log_loss(field: str, *, positive: Any = None) -> Metric:
    """Mean -ln(probability given to the truth), 0 to 34.5; lower is better, 0.693 is a coin's.

    Answers without a probability are left out and counted. `positive`: default True, or A for pairs.
    """
    return Metric(
        name="log loss",
        field=field,
        function=surprise,
        reads="probability",
        higher_is_better=False,
        positive=positive,
        bounds=(0.0, None),
    )
