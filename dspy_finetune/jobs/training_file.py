"""A file that is to be trained on: checked, counted, and known by its hash.

In: a Dataset or a path. Out: `TrainingFile`. Raises before anything is uploaded if the host would refuse the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dspy_finetune._files import sha256_file
from dspy_finetune.errors import DataError, EmptyDatasetError
from dspy_finetune.export.checks import CheckReport, check
from dspy_finetune.export.dataset import Dataset
from dspy_finetune.export.manifest import Manifest
from dspy_finetune.hosts.catalog import strip_model_id
from dspy_finetune.jobs.submit import Upload

Source = Dataset | str | os.PathLike[str]

SHOWN_ISSUES = 5


@dataclass(frozen=True, kw_only=True)
class TrainingFile:
    """One checked file."""

    path: Path
    """Where it lies."""
    sha256: str
    """Of its bytes."""
    size_bytes: int
    """Of the file."""
    n_rows: int
    """Examples."""
    n_tokens: int | None
    """Tokens that one epoch is billed for; None where no table for the model is known."""
    prompt_digest: str | None
    """Digest of the prompt it was rendered with; None without a manifest."""
    warnings: tuple[str, ...] = field(default=())
    """What the check found, short of errors."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {**self.__dict__, "path": str(self.path), "warnings": list(self.warnings)}

    def upload(self) -> Upload:
        """The same, as the submission wants it."""
        return Upload(path=self.path, sha256=self.sha256, size_bytes=self.size_bytes)


def path_of(data: Source) -> Path:
    """Where the file lies."""
    return data.path if isinstance(data, Dataset) else Path(data)


def method_of(data: Source) -> str | None:
    """What the file's maker says that it trains; None if nobody says."""
    if isinstance(data, Dataset):
        return data.method
    manifest = Manifest.read(data)
    return manifest.method if manifest is not None else None


def read_training_files(
    train: Source, validation: Source | None, *, method: str, base_model: str, host: str
) -> tuple[TrainingFile, TrainingFile | None]:
    """Check the files against host, model and method and against each other, and count them.

    Args:
        train: What an export gave, or a path.
        validation: The same, to measure on.
        method: sft or dpo.
        base_model: The base model's name.
        host: The catalog's name of the host.

    Raises:
        DataError: The host would refuse one of them; shows the first issues.
        EmptyDatasetError: One has no rows.
        FileError: One cannot be read.
    """
    path = path_of(train)
    held_out = path_of(validation) if validation is not None else None
    report = check(path, method=method, base_model=base_model, host=host, validation=held_out)
    file = _file(path, report, base_model)
    if held_out is None or report.validation is None:
        return file, None
    return file, _file(held_out, report.validation, base_model)


def _file(path: Path, report: CheckReport, base_model: str) -> TrainingFile:
    if report.errors:
        raise _refused(path, report)
    sha256 = sha256_file(path)
    warnings = [f"{path.name}: {issue.message}; {issue.remedy}" for issue in _one_per_code(report)]
    manifest = Manifest.read(path)
    if manifest is not None and manifest.sha256 != sha256:
        warnings.append(f"{path.name}: changed after it was exported; its manifest is passed over")
        manifest = None
    n_tokens = report.stats.tokens.total if report.stats.tokens is not None else None
    if manifest is not None and manifest.base_model and strip_model_id(manifest.base_model) == base_model:
        # The export cut each example at the model's training context, as the bill does.
        n_tokens = manifest.n_billed_tokens or n_tokens
    if not report.stats.n_rows:
        raise EmptyDatasetError(f"{path}: no rows to train on; export some examples")
    return TrainingFile(
        path=path,
        sha256=sha256,
        size_bytes=path.stat().st_size,
        n_rows=report.stats.n_rows,
        n_tokens=n_tokens,
        prompt_digest=manifest.prompt_digest if manifest is not None else None,
        warnings=tuple(warnings),
    )


def _one_per_code(report: CheckReport) -> list[Any]:
    first: dict[str, Any] = {}
    for issue in report.warnings:
        first.setdefault(issue.code, issue)
    return list(first.values())


def _refused(path: Path, report: CheckReport) -> DataError:
    errors = report.errors
    shown = "\n  ".join(str(issue) for issue in errors[:SHOWN_ISSUES])
    more = f"\n  and {len(errors) - SHOWN_ISSUES} more" if len(errors) > SHOWN_ISSUES else ""
    return DataError(
        f"{path}: the host would refuse it ({len(errors)} error{'s' if len(errors) != 1 else ''};"
        f" dspy-finetune check shows all):\n  {shown}{more}"
    )
