"""The metrics a user names, in one place: `ft.metrics.accuracy("is_favorite")`.

Item metrics are called by DSPy and by `compare` as `metric(example, prediction, trace=None)`; set metrics, which
exist only over many items, as `metric(examples, predictions)`, and `compare` takes them too. What each does with
answers that cannot be read is in its docstring.

    >>> import dspy
    >>> from dspy_finetune.evaluation import metrics
    >>> right = metrics.accuracy("is_favorite")
    >>> right(dspy.Example(title="Tides", is_favorite=True), dspy.Prediction(is_favorite=True))
    1.0
"""

from __future__ import annotations

from dspy_finetune.evaluation.item_metrics import (
    accuracy,
    brier,
    exact_match,
    log_loss,
    mean_absolute_error,
    order_agreement,
    pairwise_accuracy,
    token_f1,
    within,
)
from dspy_finetune.evaluation.judge import rubric_preference, rubric_score
from dspy_finetune.evaluation.metric_types import Metric, SetMetric
from dspy_finetune.evaluation.set_metrics import (
    average_precision,
    balanced_accuracy,
    ece,
    f1,
    kendall_tau,
    mcc,
    median_absolute_error,
    per_class,
    precision,
    recall,
    roc_auc,
    root_mean_squared_error,
    root_mean_squared_log_error,
)
from dspy_finetune.evaluation.text_metrics import rouge_l, semantic_similarity

__all__ = [
    "Metric",
    "SetMetric",
    "accuracy",
    "average_precision",
    "balanced_accuracy",
    "brier",
    "ece",
    "exact_match",
    "f1",
    "kendall_tau",
    "log_loss",
    "mcc",
    "mean_absolute_error",
    "median_absolute_error",
    "order_agreement",
    "pairwise_accuracy",
    "per_class",
    "precision",
    "recall",
    "roc_auc",
    "root_mean_squared_error",
    "root_mean_squared_log_error",
    "rouge_l",
    "rubric_preference",
    "rubric_score",
    "semantic_similarity",
    "token_f1",
    "within",
]
