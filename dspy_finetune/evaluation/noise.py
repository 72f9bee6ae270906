"""The noise floor: the same program asked the same questions twice.

In: a program. Out: the program with every cache between it and its models switched off, so that a second answer is a
second answer. Not covered: asking (collect.py), what a second answer that differs means (compare.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import dspy

from dspy_finetune.evaluation.answers import Program
from dspy_finetune.predictors import FinetunedPredictor


def uncached(program: Program) -> Program:
    """A copy of a DSPy module whose language models pass by DSPy's cache; any other callable as it is.

    A model that a module takes from `dspy.settings` is passed by the cache too.
    """
    if not isinstance(program, dspy.Module):
        return program
    twin = program.deepcopy()
    for _, part in [("", twin), *twin.named_sub_modules()]:
        if isinstance(part, FinetunedPredictor):
            _without_cache(part)
        elif isinstance(getattr(part, "lm", None), dspy.BaseLM):
            part.lm = part.lm.copy(cache=False)
    return _Uncached(twin)


def _without_cache(predictor: FinetunedPredictor) -> None:
    predictor.lm_options = {**predictor.lm_options, "cache": False}
    if predictor._given_lm is not None:
        predictor._given_lm = predictor._given_lm.copy(cache=False)
    predictor._lm = None


class _Uncached:
    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self, **inputs: Any) -> Any:
        with _settings_uncached():
            return self.program(**inputs)


@contextlib.contextmanager
def _settings_uncached() -> Iterator[None]:
    lm = dspy.settings.lm
    if not isinstance(lm, dspy.BaseLM):
        yield
        return
    with dspy.context(lm=lm.copy(cache=False)):
        yield
