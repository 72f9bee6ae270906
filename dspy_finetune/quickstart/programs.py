"""What the tuned models are compared with: DSPy's few-shot program on the untuned model, and titles scored one by one.

In: the untuned model, training examples. Out: programs that take the same inputs as the tuned predictors.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import dspy

from dspy_finetune.evaluation import metrics
from dspy_finetune.predictors import OpenAIPredictor

MAX_ANSWER_TOKENS = 48
"""Enough for DSPy's layout of one short field; a small model that has lost the thread is cut off there."""


def few_shot(
    signature: type[dspy.Signature], instructions: str, train: Sequence[dspy.Example], *, lm: dspy.LM
) -> dspy.Module:
    """DSPy's own way with the same data: instructions and demonstrations in the prompt of the untuned model.

    `BootstrapFewShot` keeps up to 4 of the model's own right answers as demonstrations and adds labelled examples up
    to 8 in all.
    """
    student = dspy.Predict(signature.with_instructions(instructions))
    student.set_lm(lm)
    field = next(iter(signature.output_fields))
    optimizer = dspy.BootstrapFewShot(
        metric=metrics.accuracy(field), max_bootstrapped_demos=4, max_labeled_demos=8, max_rounds=1, max_errors=1000
    )
    # The optimizer prints a bar of its own and logs each answer that it cannot read.
    logging.getLogger("dspy.teleprompt.bootstrap").setLevel(logging.CRITICAL)
    with dspy.context(lm=lm, disable_history=True):
        return optimizer.compile(student, trainset=list(train[:40]))


class ByScore:
    """Which of two titles scores higher with a binary predictor: a pairwise program without pairwise training."""

    def __init__(self, predictor: OpenAIPredictor, *, inputs: tuple[str, str] = ("title_a", "title_b")) -> None:
        self.predictor = predictor
        self.inputs = inputs

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        """Ask about both titles; the odds of the two are weighed against each other, as Bradley and Terry have it."""
        (name,) = self.predictor.prompt.input_fields
        first, second = (self.predictor(**{name: inputs[field]}).probability for field in self.inputs)
        odds_first, odds_second = (share / max(1.0 - share, 1e-9) for share in (first, second))
        of_a = odds_first / max(odds_first + odds_second, 1e-12)
        return dspy.Prediction(
            preferred="A" if of_a >= 0.5 else "B",
            probability=max(of_a, 1.0 - of_a),
            probabilities={"A": of_a, "B": 1.0 - of_a},
        )
