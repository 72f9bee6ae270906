"""The host's own light check of a training file: is it JSONL, is it the method's format, are there ten examples?

In: a path and a method. Out: the number of examples, or a `TrainingFileError` with OpenAI's code and the line.
Not covered: everything that makes data good; the library's own checks run before the upload.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dspy_finetune._files import read_jsonl
from dspy_finetune.errors import RowError, UsageError
from dspy_finetune.local.chat import message_text
from dspy_finetune.local.spec import Method

MIN_EXAMPLES = 10
"""As OpenAI asks for."""


class TrainingFileError(Exception):
    """The file cannot be trained on; `.code` is OpenAI's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_training_file(path: Path, method: Method, *, min_examples: int = MIN_EXAMPLES) -> int:
    """Count the examples of a file that can be trained on by this method.

    Raises:
        TrainingFileError: `invalid_training_file` with the line, or `invalid_n_examples`.
    """
    n_examples = 0
    try:
        for line, row in read_jsonl(path):
            n_examples += 1
            try:
                _check_row(row, method)
            except UsageError as error:
                raise _invalid(f"Invalid file format. Line {line}: {error}") from error
    except RowError as error:
        raise _invalid(f"Invalid file format. Line {error.line}: {error.problem}") from error
    if n_examples < min_examples:
        message = f"Training file has {n_examples} example(s), but must have at least {min_examples} examples"
        raise TrainingFileError("invalid_n_examples", message)
    return n_examples


def _invalid(message: str) -> TrainingFileError:
    return TrainingFileError("invalid_training_file", f"The job failed due to an invalid training file. {message}")


def _check_row(row: Any, method: Method) -> None:
    if not isinstance(row, Mapping):
        raise UsageError("expected a JSON dictionary")
    is_chat, is_preference = "messages" in row, "input" in row or "preferred_output" in row
    if method == "dpo" and is_chat and not is_preference:
        raise UsageError("the file is in the fine-tune-chat format, but the job's method is dpo")
    if method == "sft" and is_preference and not is_chat:
        raise UsageError("the file is in the preference format, but the job's method is supervised")
    if method == "sft":
        messages = _messages(row, "messages")
        if not any(message.get("role") == "assistant" and message.get("weight", 1) != 0 for message in messages):
            raise UsageError("messages: no assistant message to train on")
        return
    given = row.get("input")
    if not isinstance(given, Mapping):
        raise UsageError("input: expected a dictionary with messages")
    _messages(given, "messages")
    for key in ("preferred_output", "non_preferred_output"):
        output = _messages(row, key)
        if len(output) != 1 or output[0].get("role") != "assistant":
            raise UsageError(f"{key}: expected exactly one assistant message")


def _messages(row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    messages = row.get(key)
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{key}: expected a list with at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UsageError(f"{key}[{index}]: expected a dictionary with role and content")
        try:
            message_text(message)
        except UsageError as error:
            raise UsageError(f"{key}[{index}]: {error}") from error
        if message.get("weight", 1) not in (0, 1):
            raise UsageError(f"{key}[{index}].weight: expected 0 or 1, found {message.get('weight')!r}")
    return messages
