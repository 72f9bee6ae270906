"""Metrics of a whole set: scores that do not exist for one item, such as ROC AUC, F1 or the root mean squared error.

In: lists of expected and predicted values. Out: a float; NaN where the score is not defined (each docstring says when).
In label scores an unreadable answer is a label that is never right; in probability and number scores it is left out
and counted. scikit-learn computes what it has (extra `eval`). Not covered: scores of one item (item_metrics.py).
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from dspy_finetune._optional import require
from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation.metric_types import SetMetric
from dspy_finetune.evaluation.reading import label_text

UNREADABLE = "(unreadable)"
"""The label under which answers that could not be read stand in label scores and confusion tables."""


def _sklearn_metrics() -> Any:
    return require("sklearn.metrics", "eval", "this metric")


def _labels(expected: Sequence[Any], predicted: Sequence[Any]) -> tuple[list[str], list[str], list[str]]:
    truth = [label_text(value) for value in expected]
    answers = [UNREADABLE if value is None else label_text(value) for value in predicted]
    # The classes are those of the labels: what a model invents beyond them is an error, not a class of its own.
    return truth, answers, sorted(set(truth))


def _per_label(
    expected: Sequence[Any], predicted: Sequence[Any], *, score: str, positive: Any, average: str | None
) -> float:
    # Counted here: scikit-learn's f1_score gives the same numbers (tests compare them), but checks its input for 4 ms
    # at every call, and the bootstrap makes thousands of calls.
    truth, answers, classes = _labels(expected, predicted)
    chosen = [label_text(positive)] if average is None else classes
    is_true, is_named = Counter(truth), Counter(answers)
    is_both = Counter(one for one, other in zip(truth, answers, strict=True) if one == other)
    counts = [(is_both[label], is_named[label], is_true[label]) for label in chosen]
    if average == "micro":
        counts = [(sum(both), sum(named), sum(true)) for both, named, true in [tuple(zip(*counts, strict=True))]]
    return sum(_from_counts(score, *three) for three in counts) / len(counts)


def _from_counts(score: str, both: int, named: int, true: int) -> float:
    below = {"precision": named, "recall": true, "f1": (named + true) / 2}[score]
    return both / below if below else 0.0


def _label_metric(
    score: str,
    name: str,
    field: str,
    positive: Any,
    average: Literal["macro", "micro"] | None,
    *,
    names_label: bool = False,
) -> SetMetric:
    suffix = f", {average}" if average else "" if positive is True and not names_label else f" of {positive}"
    return SetMetric(
        name=name + suffix,
        field=field,
        function=functools.partial(_per_label, score=score, positive=positive, average=average),
        counts_unreadable=True,
    )


def f1(field: str, *, positive: Any = True, average: Literal["macro", "micro"] | None = None) -> SetMetric:
    """F1 of the positive label, 0 to 1, or the mean over all labels with `average`.

    0 when it is never named or never true.
    """
    return _label_metric("f1", "F1", field, positive, average)


def precision(field: str, *, positive: Any = True, average: Literal["macro", "micro"] | None = None) -> SetMetric:
    """Of the items named positive, the share that is, 0 to 1; 0 when none is named."""
    return _label_metric("precision", "precision", field, positive, average)


def recall(field: str, *, positive: Any = True, average: Literal["macro", "micro"] | None = None) -> SetMetric:
    """Of the positive items, the share that is named so, 0 to 1; 0 when there is none.

    Unreadable counts as not named.
    """
    return _label_metric("recall", "recall", field, positive, average)


def per_class(field: str, labels: Sequence[Any]) -> list[SetMetric]:
    """Precision, recall and F1 of each label, as a list to put into `compare(metrics=[..., *per_class(...)])`.

    Each is 0 to 1; 0 where a label is never named or never true. Raises UsageError without labels.
    """
    if not labels:
        raise UsageError("per_class needs the labels, such as per_class('topic', ['politics', 'sports'])")
    return [
        _label_metric(score, name, field, label, None, names_label=True)
        for label in labels
        for score, name in (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
    ]


def _balanced_accuracy(expected: Sequence[Any], predicted: Sequence[Any]) -> float:
    return _per_label(expected, predicted, score="recall", positive=None, average="macro")


def balanced_accuracy(field: str) -> SetMetric:
    """Mean recall over the labels, 0 to 1; always naming one of two labels gives 0.5.

    Unreadable counts as not right.
    """
    return SetMetric(name="balanced accuracy", field=field, function=_balanced_accuracy, counts_unreadable=True)


def _mcc(expected: Sequence[Any], predicted: Sequence[Any]) -> float:
    truth, answers, _ = _labels(expected, predicted)
    return float(_sklearn_metrics().matthews_corrcoef(truth, answers))


def mcc(field: str) -> SetMetric:
    """Matthews' correlation of labels and answers, -1 to 1; 0 when one side is constant.

    Unreadable is a label of its own.
    """
    return SetMetric(name="MCC", field=field, function=_mcc, counts_unreadable=True)


def _roc_auc(expected: Sequence[Any], predicted: Sequence[Any]) -> float:
    # Mann and Whitney's form, U / (n1 * n0): scikit-learn's roc_auc_score gives the same number (tests compare them)
    # at about 1 ms a call, and the bootstrap calls this thousands of times.
    positive = np.asarray(expected) == 1.0
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return math.nan
    ranks = require("scipy.stats", "eval", "ROC AUC").rankdata(np.asarray(predicted, dtype=float))
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def roc_auc(field: str, *, positive: Any = None) -> SetMetric:
    """Chance that a random positive gets a higher probability than a random negative, 0 to 1.

    NaN with one label only.
    """
    return SetMetric(name="ROC AUC", field=field, function=_roc_auc, reads="probability", positive=positive)


def _average_precision(expected: Sequence[Any], predicted: Sequence[Any]) -> float:
    if not any(expected):
        return math.nan
    return float(_sklearn_metrics().average_precision_score(expected, predicted))


def average_precision(field: str, *, positive: Any = None) -> SetMetric:
    """Area under precision over recall, 0 to 1; a coin gives the share of positives. NaN without positives."""
    return SetMetric(
        name="average precision", field=field, function=_average_precision, reads="probability", positive=positive
    )


def _ece(expected: Sequence[Any], predicted: Sequence[Any], *, n_bins: int) -> float:
    truth, shares = np.asarray(expected, dtype=float), np.asarray(predicted, dtype=float)
    bins = np.minimum((shares * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, weights=shares - truth, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(truth))


def ece(field: str, *, n_bins: int = 10, positive: Any = None) -> SetMetric:
    """Expected calibration error of the positive's probability, 0 to 1; lower is better. Bins of equal width.

    Guo et al. 2017 bin the probability of the chosen label; we bin the positive label's, which also shows a bias to
    one side. The value is biased upwards on few items: with 100 items a perfectly calibrated model shows about 0.1.
    """
    return SetMetric(
        name="ECE",
        field=field,
        function=functools.partial(_ece, n_bins=n_bins),
        reads="probability",
        higher_is_better=False,
        positive=positive,
    )


def _errors(expected: Sequence[Any], predicted: Sequence[Any], *, kind: str) -> float:
    truth, answers = np.asarray(expected, dtype=float), np.asarray(predicted, dtype=float)
    if kind == "rmse":
        return math.sqrt(float(np.mean((answers - truth) ** 2)))
    if kind == "median":
        return float(np.median(np.abs(answers - truth)))
    # A negative answer has no logarithm above -1; it is read as 0, as a price or count cannot be less.
    logs = np.log1p(np.maximum(answers, 0.0)) - np.log1p(np.maximum(truth, 0.0))
    return math.sqrt(float(np.mean(logs**2)))


def _number_metric(name: str, field: str, kind: str) -> SetMetric:
    return SetMetric(
        name=name, field=field, function=functools.partial(_errors, kind=kind), reads="number", higher_is_better=False
    )


def root_mean_squared_error(field: str) -> SetMetric:
    """Root of the mean squared error, from 0 up, in the label's unit.

    Answers that are no number are left out and counted.
    """
    return _number_metric("root mean squared error", field, "rmse")


def root_mean_squared_log_error(field: str) -> SetMetric:
    """Root mean squared difference of ln(1 + value), from 0 up; negative values are read as 0. No number: left out."""
    return _number_metric("root mean squared log error", field, "rmsle")


def median_absolute_error(field: str) -> SetMetric:
    """Median of |predicted - expected|, from 0 up, in the label's unit. No number: left out and counted."""
    return _number_metric("median absolute error", field, "median")


def _kendall(expected: Sequence[Any], predicted: Sequence[Any]) -> float:
    if len(expected) < 2:
        return math.nan
    return float(require("scipy.stats", "eval", "Kendall's tau").kendalltau(expected, predicted).statistic)


def kendall_tau(field: str) -> SetMetric:
    """Kendall's tau-b between the true and the predicted numbers or ranks, -1 to 1; 0 for a random order.

    NaN for fewer than two items or where one side is constant. Answers that are no number are left out and counted.
    """
    return SetMetric(name="Kendall tau", field=field, function=_kendall, reads="number")
