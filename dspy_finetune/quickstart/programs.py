"""What the tuned models are compared with: DSPy's few-shot program on the untuned model, and titles scored one by one.

In: the untuned model, training examples. Out: programs that take the same inputs as the tuned predictors.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dspy

from dspy_finetune.evaluation import metrics
from dspy_finetune.predictors import OpenAIPredictor

N_TRIED = 16
"""Training examples that the optimizer may try for demonstrations."""
MAX_ANSWER_TOKENS = 32
"""DSPy's layout of one short field takes 21; a small model that has lost the thread is cut off here."""


def few_shot(
    signature: type[dspy.Signature],
    instructions: str,
    train: Sequence[dspy.Example],
    *,
    lm: dspy.LM,
    on_try: Callable[[int], object] = lambda n_tried: None,
) -> dspy.Module:
    """DSPy's own way with the same data: instructions and demonstrations in the prompt of the untuned model.

    `BootstrapFewShot` keeps up to 2 of the model's own right answers as demonstrations and adds labelled examples up
    to 4 in all. With 8 the prompt had 1,070 tokens, and this baseline took more time than all the training.

    Args:
        signature: What is predicted.
        instructions: What the tuned model reads as its instructions.
        train: Labelled examples; the first 16 are tried.
        lm: The untuned model.
        on_try: Is told how many examples have been tried.
    """
    field = next(iter(signature.output_fields))
    is_right = metrics.accuracy(field)
    n_tried = 0

    def counted(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        nonlocal n_tried
        n_tried += 1
        on_try(n_tried)
        return is_right(example, prediction, trace)

    student = dspy.Predict(signature.with_instructions(instructions))
    # It gives up at max_errors: one more than there are, so that a model which fails at each goes on untaught.
    optimizer = dspy.BootstrapFewShot(
        metric=counted, max_bootstrapped_demos=2, max_labeled_demos=4, max_rounds=1, max_errors=N_TRIED + 1
    )
    # The optimizer draws a bar of its own on stderr and prints what it did: neither belongs to this job's own bars.
    silence = io.StringIO()
    with (
        dspy.context(lm=lm, disable_history=True),
        contextlib.redirect_stderr(silence),
        contextlib.redirect_stdout(silence),
    ):
        compiled = optimizer.compile(student, trainset=list(train[:N_TRIED]))
    compiled.set_lm(lm)  # compiling starts from a fresh copy, which has no model
    return compiled


@contextlib.contextmanager
def quiet_dspy() -> Iterator[None]:
    """Without DSPy's remarks on single answers: a small untuned model earns hundreds, and they are counted apart."""
    loggers = [logging.getLogger(name) for name in ("dspy.clients.lm", "dspy.teleprompt.bootstrap", "dspy.adapters")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


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
