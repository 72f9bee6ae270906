"""Answers that were given before, as a program: what a model said while it still answered.

In: a comparison that was kept as JSON (`report.to_json(path)`, `compare --json-to`). Out: a callable for `compare` that
gives the same answers again, unreadable ones included. Not covered: items that it was never asked; `knows` tells.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import dspy

from dspy_finetune._files import read_json
from dspy_finetune.errors import AnswerError, DataError, UsageError
from dspy_finetune.evaluation.answers import Answer, jsonable
from dspy_finetune.evaluation.comparison import Comparison


class StoredAnswers:
    """One program's answers from a comparison; called with an item's inputs it gives the answer of then."""

    def __init__(self, comparison: Comparison, program: str | None = None) -> None:
        name = program if program is not None else comparison.candidate
        if name not in comparison.answers:
            raise UsageError(f'no answers of "{name}" are stored; there are those of: {", ".join(comparison.answers)}')
        self.program = name
        # What failed was no answer of the model's.
        self._answers = {
            _key(item.inputs): answer
            for item, answer in zip(comparison.items, comparison.answers[name], strict=True)
            if answer.outcome != "failed"
        }

    def __len__(self) -> int:
        return len(self._answers)

    def knows(self, inputs: Mapping[str, Any]) -> bool:
        """Whether there is an answer to these inputs."""
        return _key(inputs) in self._answers

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        """The answer of then.

        Raises:
            AnswerError: It could not be read then.
            DataError: The model was not asked about this item.
        """
        answer: Answer | None = self._answers.get(_key(inputs))
        if answer is None:
            raise DataError(f"{self.program} was not asked about this item when its answers were stored")
        prediction = answer.prediction()
        if prediction is None:
            raise AnswerError(answer.error or "the stored answer cannot be read", text="")
        return prediction


def stored_answers(path: str | os.PathLike[str], program: str | None = None) -> StoredAnswers:
    """Read one program's answers from a report's JSON.

    Args:
        path: What `report.to_json(path)` or `compare --json-to` wrote.
        program: Its name there; the candidate's without one.

    Raises:
        FileError: The file cannot be read.
        DataError: It is not a report.
        UsageError: It has no such program.
    """
    remedy = "write one with report.to_json(path)"
    values = read_json(path, "a report", remedy)
    if "comparison" not in values:
        raise DataError(f'{os.fspath(path)} is not a report: it has no "comparison"; {remedy}')
    try:
        return StoredAnswers(Comparison.from_dict(values["comparison"]), program)
    except (DataError, UsageError) as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


def _key(inputs: Mapping[str, Any]) -> str:
    return json.dumps(jsonable(inputs), sort_keys=True, ensure_ascii=False)
