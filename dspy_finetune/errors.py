"""One error tree: what the library raises, and what each error carries.

    FinetuneError
    ├── DataError (ValueError)              the rows or files are wrong
    │   ├── RowError                        one row: path, line, field, value, remedy
    │   ├── RowsError                       several rows at once: .errors holds the RowErrors
    │   ├── EmptyDatasetError               nothing to work with
    │   └── LeakageError                    the same item stands on two sides of a split
    ├── PromptMismatchError (ValueError)    the model was trained on another prompt; shows the difference
    ├── AnswerError (ValueError)            the model's answer cannot be read; keeps the text
    │   ├── NoAnswerError                   refused, filtered, cut off, only reasoned, no choices: .reason says which
    │   └── JudgeError                      a judge gave no verdict that can be read
    ├── UsageError (ValueError)             an argument is wrong; says which and what is accepted
    ├── FileError (OSError)                 a file or folder cannot be read or written; path and remedy
    ├── JobError (RuntimeError)             a fine-tuning job
    │   ├── JobFailedError                  the host's code, message and param
    │   ├── JobCancelledError
    │   ├── JobTimeoutError (TimeoutError)
    │   ├── BudgetError
    │   └── AmbiguousJobError
    ├── HostError (RuntimeError)            status, code, request_id, retryable
    │   ├── TrainingClosedError             403 training_not_available
    │   ├── ModelGoneError
    │   └── LogprobsError                   log-probabilities were asked for and the host sent none
    └── MissingExtraError (ImportError)     names the pip line

Every message is one line that says what was found, where, and what to do next. All errors survive pickling, with their
fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def _rebuild(cls: type[FinetuneError], args: tuple[Any, ...], state: dict[str, Any]) -> FinetuneError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class FinetuneError(Exception):
    """Anything this library raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions with keyword-only arguments cannot be rebuilt from .args alone, which is pickle's way.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class DataError(FinetuneError, ValueError):
    """The rows or the files are wrong."""


class RowError(DataError):
    """One row is wrong: where it stands, what was found there, and how to mend it."""

    def __init__(
        self,
        problem: str,
        *,
        path: str | None = None,
        line: int | None = None,
        field: str | None = None,
        value: object = None,
        remedy: str | None = None,
    ) -> None:
        place = f"{path}:{line}: " if path and line is not None else f"{path}: " if path else ""
        place = place or (f"row {line}: " if line is not None else "")
        where = f'field "{field}": ' if field else ""
        super().__init__(f"{place}{where}{problem}" + (f"; {remedy}" if remedy else ""))
        self.problem = problem
        self.path = path
        self.line = line
        self.field = field
        # A repr, cut: rows can be megabytes long, and the value must survive pickling.
        self.value = repr(value)[:200]
        self.remedy = remedy


class RowsError(DataError):
    """Several rows are wrong; all of them are listed in `.errors`, the first ones in the message."""

    def __init__(self, errors: Sequence[RowError], *, shown: int = 20, is_cut: bool = False) -> None:
        lines = [str(error) for error in errors[:shown]]
        if len(errors) > shown:
            lines.append(f"... and {len(errors) - shown} more")
        head = f"{len(errors)} bad rows{', where reading stopped' if is_cut else ''}: "
        super().__init__(head + "\n  ".join(["", *lines]) if len(errors) > 1 else lines[0])
        self.errors = list(errors)


class EmptyDatasetError(DataError):
    """There is nothing to work with."""


class LeakageError(DataError):
    """The same item stands on two sides of a split."""


class PromptMismatchError(FinetuneError, ValueError):
    """The model was trained on another prompt than the one it is about to be asked with."""


class AnswerError(FinetuneError, ValueError):
    """The model's answer cannot be read as the signature's output. `.text` keeps the answer."""

    def __init__(self, problem: str, *, text: str) -> None:
        super().__init__(problem)
        self.text = text


class NoAnswerError(AnswerError):
    """The model gave no answer, or not the whole of one. `.reason` says why: "refusal", "content_filter", "length",
    "reasoning_only", "tool_calls" or "no_choices"."""

    def __init__(self, problem: str, *, text: str, reason: str) -> None:
        super().__init__(problem, text=text)
        self.reason = reason


class JudgeError(AnswerError):
    """A judge of answers failed, or its verdict cannot be read: a fault of the measuring, not of what is measured."""


class UsageError(FinetuneError, ValueError):
    """An argument is wrong: says which one and what is accepted."""


class FileError(FinetuneError, OSError):
    """A file or a folder cannot be read or written."""

    def __init__(self, problem: str, *, path: str | None = None) -> None:
        super().__init__(problem)
        self.path = path

    def __str__(self) -> str:
        return str(self.args[0])


class JobError(FinetuneError, RuntimeError):
    """A fine-tuning job did not do what was asked."""

    def __init__(self, problem: str, *, job_id: str | None = None) -> None:
        super().__init__(problem)
        self.job_id = job_id


class JobFailedError(JobError):
    """The host reports that the job failed: `.code`, `.param` are the host's own."""

    def __init__(
        self, problem: str, *, job_id: str | None = None, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(problem, job_id=job_id)
        self.code = code
        self.param = param


class JobCancelledError(JobError):
    """The job was cancelled before it made a model."""


class JobTimeoutError(JobError, TimeoutError):
    """The job is still going when the caller's deadline is over; it was left alive."""


class BudgetError(JobError):
    """The plan costs more than was allowed, or nobody knows its price."""


class AmbiguousJobError(JobError):
    """It cannot be known whether the job exists already; nothing was created."""


class HostError(FinetuneError, RuntimeError):
    """A host answered with an error, or not at all."""

    def __init__(
        self,
        problem: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(problem)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retryable = retryable


class MalformedResponseError(HostError):
    """The answer is not what the host's API describes: a proxy's page, a field that is missing."""


class TrainingClosedError(HostError):
    """The host no longer trains for this organisation (403 `training_not_available`)."""


class ModelGoneError(HostError):
    """The model has been shut down or deleted."""


class LogprobsError(HostError):
    """Log-probabilities were asked for and the host sent none."""


class MissingExtraError(FinetuneError, ImportError):
    """An optional dependency is not installed; the message is the pip line that installs it."""
