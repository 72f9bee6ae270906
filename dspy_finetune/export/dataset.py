"""What an export hands back: the file, its manifest, its report.

In: the results of sft.py, dpo.py or a file on disk. Out: one value that jobs and the command line take.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dspy_finetune._files import sha256_file
from dspy_finetune.errors import DataError
from dspy_finetune.export.checks.check import CheckReport, check
from dspy_finetune.export.formats import Method
from dspy_finetune.export.manifest import Manifest

if TYPE_CHECKING:
    from dspy_finetune.prompts import PromptFormat


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One exported training file."""

    path: Path
    """The JSONL file."""
    manifest: Manifest
    """What it holds; also at `<path>.manifest.json`."""
    report: CheckReport
    """Every issue of the file: the same as `check(path)` reports."""
    prompt: PromptFormat | None
    """What the rows were rendered with; None when they came as ready messages."""

    @property
    def method(self) -> Method:
        """What the rows train: `"sft"` or `"dpo"`."""
        return self.manifest.method

    @property
    def n_rows(self) -> int:
        """Lines of the file."""
        return self.manifest.n_rows_out

    @property
    def n_tokens(self) -> int | None:
        """Tokens of the whole file, once over; None when no token table is known for the model."""
        return self.manifest.n_tokens

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Dataset:
        """Open an exported file again, by its manifest, and check it anew.

        Raises:
            DataError: There is no manifest, or the file was changed after it was exported.
            FileError: The file cannot be read.
        """
        from dspy_finetune.prompts import PromptFormat  # lazy: dspy is heavy, and a file of messages has no prompt

        manifest = Manifest.read(path)
        if manifest is None:
            raise DataError(f"{os.fspath(path)}: no manifest beside it; export the data again, or use check()")
        found = sha256_file(path)
        if found != manifest.sha256:
            raise DataError(
                f"{os.fspath(path)}: changed after it was exported (sha256 {found[:12]}..., the manifest says "
                f"{manifest.sha256[:12]}...); export the data again"
            )
        prompt = PromptFormat.from_dict(manifest.prompt) if manifest.prompt is not None else None
        report = check(path, method=manifest.method, base_model=manifest.base_model, host=manifest.dialect)
        return cls(path=Path(path), manifest=manifest, report=report, prompt=prompt)
