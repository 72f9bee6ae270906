"""Does a program hold a tuned model? Asked so that a report can advise against tuning.

In: a program. Out: True, False, or None where nothing can be known of a callable. A model counts as tuned when its name
says so (`ft:...`), and when it is a predictor's and no known base model: Azure and others name tuned models freely.
"""

from __future__ import annotations

from typing import Any

import dspy

from dspy_finetune.evaluation.answers import Program
from dspy_finetune.evaluation.baselines import LabelBaseline, NearestAnswer, NumberBaseline
from dspy_finetune.evaluation.bias import InBothOrders
from dspy_finetune.hosts.catalog import load_catalog, parse_model_id
from dspy_finetune.predictors import FinetunedPredictor


def is_tuned(program: Program) -> bool | None:
    """Whether a program holds a tuned model; None for a callable that is neither a module nor a baseline."""
    if isinstance(program, InBothOrders):
        return is_tuned(program.program)
    if isinstance(program, (LabelBaseline, NearestAnswer, NumberBaseline)):
        return False
    if not isinstance(program, dspy.Module):
        return None
    return any(_holds_tuned(part) for part in (program, *(part for _, part in program.named_sub_modules())))


def _holds_tuned(part: Any) -> bool:
    if isinstance(part, FinetunedPredictor):
        named = parse_model_id(part.model)
        return named.is_tuned or load_catalog().model(named.base) is None
    lm = getattr(part, "lm", None)
    return isinstance(lm, dspy.BaseLM) and parse_model_id(str(lm.model)).is_tuned
