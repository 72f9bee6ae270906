"""The noise floor: the same program asked the same questions twice.

In: programs and items. Out: second answers, asked past DSPy's cache, and what they change (`NoiseFloor`). Not covered:
caches that are not DSPy's; where the second answers report no tokens and the first did, the result says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dspy

from dspy_finetune.evaluation import scoring
from dspy_finetune.evaluation.answers import Answer, Program
from dspy_finetune.evaluation.collect import Collected, collect
from dspy_finetune.evaluation.comparison import MetricFacts, NoiseFloor
from dspy_finetune.evaluation.metric_types import AnyMetric, SetMetric
from dspy_finetune.evaluation.scoring import Resampling, Scored
from dspy_finetune.predictors import FinetunedPredictor

AGAIN = " (asked again)"
"""What a program's name ends in where its second answers stand."""


def ask_again(
    programs: Mapping[str, Program], inputs: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> dict[str, Collected]:
    """Each program's second answers, past DSPy's cache, under names of their own in the checkpoint."""
    twins = {name + AGAIN: uncached(program) for name, program in programs.items()}
    found = collect(twins, inputs, **options)
    return {name: found[name + AGAIN] for name in programs}


def noise_floors(
    metric: AnyMetric,
    fact: MetricFacts,
    column: Mapping[str, Scored],
    rows: Sequence[Any],
    collected: Mapping[str, Collected],
    again: Mapping[str, Collected],
    how: Resampling,
    n_threads: int,
) -> tuple[NoiseFloor, ...]:
    """What the second answers changed.

    Args:
        metric: The metric that decides.
        fact: Its facts.
        column: The first answers' scores, by program.
        rows: The examples that were asked twice, the first ones of the comparison.
        collected: The first answers, by program.
        again: The second ones.
        how: Of the interval, for these rows.
        n_threads: For a metric that asks a model.
    """
    found = []
    for name, second in again.items():
        first = collected[name].answers[: len(rows)]
        if isinstance(metric, SetMetric):
            later, earlier = (scoring.score_set(metric, rows, one, how) for one in (second.answers, first))
        else:
            scores = column[name].scores
            assert scores is not None
            given = [
                scoring.item_scores(metric, rows, second.answers, n_threads=n_threads),
                scoring.ItemScores(scores=scores[: len(rows)]),
            ]
            later, earlier = (scoring.score_items(one, fact, how) for one in given)
        reported = [any(answer.prompt_tokens for answer in one) for one in (first, second.answers)]
        found.append(
            NoiseFloor(
                program=name,
                n=len(rows),
                n_changed=sum(
                    _said(one, fact.field) != _said(other, fact.field)
                    for one, other in zip(first, second.answers, strict=True)
                ),
                difference=scoring.paired(later, earlier, fact, how).interval,
                is_from_cache=reported == [True, False],
            )
        )
    return tuple(found)


def _said(answer: Answer, field: str | None) -> tuple[str, Any]:
    """What counts of an answer when two are compared: latency and tokens do not."""
    return answer.outcome, answer.outputs.get(field) if field is not None else dict(answer.outputs)


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
