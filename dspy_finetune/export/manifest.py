"""The manifest beside each exported file: what went in, what came out, and what it takes to trust or repeat it.

In: the figures of one export. Out: `<path>.manifest.json`, written last, so that its presence means that the file is
complete.
Not covered: the file's rows (writer.py) and their faults (checks.py).
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from dspy_finetune._files import file_error, read_json, write_json
from dspy_finetune.errors import DataError, FileError
from dspy_finetune.export.formats import Method

FORMAT_VERSION = 1
SHOWN_ROWS = 100
"""So many skipped rows are listed one by one; beyond that they are only counted."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one exported file holds and where it comes from."""

    file: str
    """The data file's name, without its folder: the two travel together."""
    method: Method
    """What the rows train: `"sft"` or `"dpo"`."""
    dialect: str
    """The line format, such as `"openai"` or `"trl"`."""
    base_model: str | None
    """The model whose token table and limits were used."""
    n_rows_in: int
    """Examples that were given, with those that their loader left out."""
    n_rows_out: int
    """Lines that were written."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> number of examples left out for it."""
    skipped_rows: list[dict[str, Any]] = field(default_factory=list)
    """The first skipped examples: their row number (from 1; of rows that could not be read, in their file) and why."""
    sha256: str
    """Of the data file's bytes."""
    size_bytes: int
    """Of the data file."""
    n_tokens: int | None = None
    """Tokens of the whole file, once over; None when no table for the model is known."""
    n_billed_tokens: int | None = None
    """The same with each example cut at the model's training context: what one epoch is billed for."""
    encoding: str | None = None
    """Name of the token table that was used."""
    prompt_digest: str | None = None
    """Digest of the prompt the rows were rendered with."""
    prompt: dict[str, Any] | None = None
    """The whole prompt: `PromptFormat.from_dict` brings it back."""
    seed: int | None = None
    """Seed of the random choices behind the rows, where there were any."""
    issues: dict[str, int] = field(default_factory=dict)
    """Code -> number of issues that the check of the file reported."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Python and of the packages that had a part in the bytes."""
    created_at: str = ""
    """UTC, ISO 8601."""
    format_version: int = FORMAT_VERSION
    """Of this manifest's own layout."""

    @property
    def n_skipped(self) -> int:
        """Examples that were read and not written."""
        return sum(self.skipped.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, as it stands in the file."""
        return asdict(self)

    def write(self, data_path: str | os.PathLike[str]) -> Path:
        """Write the manifest beside its data file, atomically; returns the manifest's path. Raises FileError."""
        path = manifest_path(data_path)
        write_json(path, self.to_dict())
        return path

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Build a manifest from its JSON form; fields this version does not know are left out.

        Raises:
            DataError: It is not a manifest, or one of a later layout.
        """
        version = values.get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise DataError(
                f"manifest has format_version {version!r}, this version reads up to {FORMAT_VERSION}; "
                "upgrade dspy-finetune, or export the data again"
            )
        known = {item.name for item in fields(cls)}
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except TypeError as error:
            raise DataError(f"manifest is incomplete ({error}); export the data again") from error

    @classmethod
    def read(cls, data_path: str | os.PathLike[str]) -> Manifest | None:
        """The manifest beside a data file, or None when there is none.

        Raises:
            DataError: There is one and it cannot be understood.
            FileError: There is one and it cannot be read.
        """
        path = manifest_path(data_path)
        try:
            return cls.from_dict(read_json(path, "a manifest", "export the data again"))
        except FileError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise


def manifest_path(data_path: str | os.PathLike[str]) -> Path:
    """Where the manifest of a data file stands: `<path>.manifest.json`."""
    path = Path(data_path)
    return path.with_name(path.name + ".manifest.json")


def forget_manifest(data_path: str | os.PathLike[str]) -> None:
    """Remove the manifest of a file that is about to be replaced: an old manifest must never describe new bytes."""
    path = manifest_path(data_path)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise file_error(error, path, "replace") from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that have a part in an exported file's bytes."""
    found = {"python": platform.python_version()}
    for package in ("dspy-finetune", "dspy", "tiktoken"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def now() -> str:
    """The time, UTC, to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
