"""Which baselines a comparison gets by itself: those that fit its metric, its tuned program and the training examples.

In: the programs, what the model was trained on, the metrics. Out: the programs with baselines behind them; and how many
items stand in the training examples. Not covered: the baselines themselves (baselines.py, model_baselines.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dspy

from dspy_finetune.errors import EmptyDatasetError, UsageError
from dspy_finetune.evaluation import baselines
from dspy_finetune.evaluation.answers import Program, jsonable
from dspy_finetune.evaluation.baselines import Task
from dspy_finetune.evaluation.metric_types import AnyMetric, Metric, SetMetric
from dspy_finetune.evaluation.usual import usual_metric
from dspy_finetune.predictors import FinetunedPredictor

_TASKS: dict[str, Task] = {"accuracy": "label", "mean_absolute_error": "number", "exact_match": "text"}


def with_baselines(
    programs: Mapping[str, Program],
    train: Sequence[Any] | None,
    metrics: Sequence[AnyMetric],
    *,
    base_model: str | None = None,
) -> dict[str, Program]:
    """The programs, and behind them `baselines.usual` of the field that the metrics read; without `train` the untuned.

    Programs of the same name stay as they are. Raises as `baselines.usual`, and UsageError where no metric names a
    field, or where a base model was named and no program has a prompt and a host to ask it with.
    """
    parts = [part for program in programs.values() for part in _parts(program)]
    tuned = next((part for part in parts if isinstance(part, FinetunedPredictor)), None)
    if base_model is not None and (tuned is None or tuned.host is None):
        raise UsageError(
            "base_model=... is asked with the prompt and on the host of a tuned program, and there is none among the "
            "programs: add ft.baselines.untuned(prompt, model, host=...) to them"
        )
    if train is None:
        if base_model is None or tuned is None:
            return dict(programs)
        name = f"{base_model}, untuned"
        return dict(programs) | {name: baselines.untuned(tuned.prompt, base_model, host=tuned.host)}
    rows = list(train)
    if not rows:
        raise EmptyDatasetError("train=[]: there are no examples to fit baselines on")
    field = next((one.field for one in metrics if isinstance(one, (Metric, SetMetric))), None)
    if field is None:
        raise UsageError(
            "train=... adds baselines for the field of the first metric from ft.metrics, and there is none"
        )
    if any(not isinstance(row, dspy.Example) or not getattr(row, "_input_keys", None) for row in rows):
        raise UsageError("train: each example must say which fields are inputs; see example.with_inputs(...)")
    prompt = tuned.prompt if tuned is not None else None
    is_output = prompt is not None and field in prompt.output_fields
    found = baselines.usual(
        rows,
        label=field,
        text=prompt.input_fields if prompt is not None else None,
        task=_TASKS[usual_metric(prompt, field)] if prompt is not None and is_output else None,
        prompt=prompt,
        base_model=base_model,
        host=tuned.host if tuned is not None else None,
        with_optimized=not any(isinstance(part, dspy.Predict) for part in parts),
    )
    return {**programs, **{name: one for name, one in found.items() if name not in programs}}


def _parts(program: Program) -> Iterator[Any]:
    yield program
    if isinstance(program, dspy.Module):
        yield from (part for _, part in program.named_sub_modules())


def n_in_training(train: Sequence[Any], items: Sequence[Any]) -> int:
    """How many items have the inputs of a training example."""
    known = {_inputs(row) for row in train}
    return sum(_inputs(row) in known for row in items)


def _inputs(row: Any) -> str:
    return json.dumps(jsonable(dict(row.inputs().items())), sort_keys=True, ensure_ascii=False)
