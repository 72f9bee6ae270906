"""The metric that fits an output, for whoever has no wish of their own.

In: a prompt and one of its outputs. Out: the name of a metric in evaluation/metrics.py.
"""

from __future__ import annotations

from dspy_finetune.prompts import PromptFormat


def usual_metric(prompt: PromptFormat, field: str) -> str:
    """accuracy for a label, mean_absolute_error for a number, exact_match for text."""
    if field == prompt.label_field:
        return "accuracy"
    return "mean_absolute_error" if prompt.signature.output_fields[field].annotation in (int, float) else "exact_match"
