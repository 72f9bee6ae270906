"""What an export hands back, a checked training file: `TrainingFile`; and the `Manifest` that lies beside it.

In: the results of an export (writer.py), or a file on disk. Out: one value from the export over the plan to the upload:
what was checked and hashed once is not checked and hashed again, as long as the file on disk is the same.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_finetune._files import file_error, read_json, sha256_file, write_json
from dspy_finetune.catalog import Catalog, load_catalog, strip_model_id
from dspy_finetune.errors import DataError, FileError
from dspy_finetune.export.checks.checker import RowChecker, SeenRows, check_file
from dspy_finetune.export.checks.report import CheckReport, IssueLog
from dspy_finetune.export.formats import Method
from dspy_finetune.export.tokens import Tokenizer
from dspy_finetune.report.blocks import Facts, Section
from dspy_finetune.report.page import Reported

if TYPE_CHECKING:
    from dspy_finetune.prompts import PromptFormat

FORMAT_VERSION = 1
SHOWN_ROWS = 100
"""Maximum number of skipped rows that are listed one by one; the others are only counted."""


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
    both_orders: bool = False
    """Whether every pair was written twice, with its sides exchanged."""
    seed: int | None = None
    """Seed of the random choices behind the rows, where there were any."""
    left_behind: dict[str, int] = field(default_factory=dict)
    """Key -> number of rows whose key was left behind, because the format has no place for it."""
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
    def of(cls, report: CheckReport, path: Path, sha256: str) -> Manifest:
        """Of a file that no export wrote: what its check found. It is not written down."""
        n, tokens = report.stats.n_rows, report.stats.tokens
        return cls(
            file=path.name,
            method="dpo" if report.method == "dpo" else "sft",
            dialect=report.host,
            base_model=report.base_model,
            n_rows_in=n,
            n_rows_out=n,
            sha256=sha256,
            size_bytes=report.stats.size_bytes,
            n_tokens=tokens.total if tokens is not None else None,
            issues=dict(report.counts),
        )

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


@dataclass(frozen=True, kw_only=True)
class TrainingFile(Reported):
    """One checked training file, from the export over the plan to the upload."""

    path: Path
    """The JSONL file."""
    sha256: str
    """Of its bytes."""
    size_bytes: int
    """Of the file."""
    report: CheckReport
    """Every issue of the file, under the method, model and host that it was checked for."""
    manifest: Manifest
    """What the export wrote down beside it; of a file without one, or changed since, what the check found."""
    prompt: PromptFormat | None
    """What the rows were rendered with; None when they came as ready messages."""
    is_changed: bool = False
    """Whether a manifest lies beside it that describes other bytes."""
    is_estimated: bool = False
    """Whether its tokens were counted by a tokenizer that was given, for want of a table of the model's."""
    seen: SeenRows | None = field(default=None, repr=False, compare=False)
    """Hashes of its rows, for the comparison with a validation file; None once it was pickled."""
    modified_ns: int | None = field(default=None, repr=False, compare=False)
    """The file's time when it was read: tells whether it is still the same."""

    @property
    def method(self) -> Method:
        """What the rows train: `"sft"` or `"dpo"`."""
        return self.manifest.method

    @property
    def n_rows(self) -> int:
        """Lines of the file."""
        return self.report.stats.n_rows

    @property
    def n_tokens(self) -> int | None:
        """Tokens of the whole file, once over; None when no token table is known for the model."""
        tokens = self.report.stats.tokens
        return tokens.total if tokens is not None else None

    @property
    def n_billed_tokens(self) -> int | None:
        """The same with each example cut at the model's training context, where the export counted it so."""
        counted, wanted = self.manifest.base_model, self.report.base_model
        if counted and wanted and strip_model_id(counted) == strip_model_id(wanted):
            return self.manifest.n_billed_tokens or self.n_tokens
        return self.n_tokens

    @property
    def prompt_digest(self) -> str | None:
        """Digest of the prompt it was rendered with; None without a manifest."""
        return self.manifest.prompt_digest

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the check found, short of errors: one line for each code."""
        found = []
        for _, n, issue in self.report.by_code():
            if issue.severity == "warning":
                place = f"{self.path.name}:{issue.line}" if issue.line else self.path.name
                more = f" (and {n - 1:,} more)" if n > 1 else ""
                found.append(f"{place}: {issue.message}{more}; {issue.remedy}")
        if self.is_changed:
            found.append(f"{self.path.name}: changed after it was exported; its manifest is passed over")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """The facts that a plan shows, JSON-safe."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "n_rows": self.n_rows,
            "n_tokens": self.n_billed_tokens,
            "prompt_digest": self.prompt_digest,
            "warnings": list(self.warnings),
        }

    def section(self) -> Section:
        """The blocks of a report: what the file is, and its check."""
        facts = {"sha256": self.sha256, "prompt": self.prompt_digest or "none: ready messages"}
        checked = self.report.section()
        blocks = (Facts(facts=facts), *checked.blocks)
        return replace(checked, title=f"Training file {self.path}", blocks=blocks)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrainingFile:
        """Open an exported file again, by its manifest, and check it anew.

        Raises:
            DataError: There is no manifest, or the file was changed after it was exported.
            FileError: The file cannot be read.
        """
        manifest = Manifest.read(path)
        if manifest is None:
            raise DataError(f"{os.fspath(path)}: no manifest beside it; export the data again, or use check()")
        found = sha256_file(path)
        if found != manifest.sha256:
            raise DataError(
                f"{os.fspath(path)}: changed after it was exported (sha256 {found[:12]}..., the manifest says "
                f"{manifest.sha256[:12]}...); export the data again"
            )
        return cls.read(path, method=manifest.method, base_model=manifest.base_model, host=manifest.dialect)

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        method: str | None = None,
        base_model: str | None = None,
        host: str = "openai",
        role: str = "train",
        catalog: Catalog | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> TrainingFile:
        """Check any file for a method, a model and a host, by the catalog's limits, and hash it.

        Args:
            path: The JSONL file.
            method: `sft`, `dpo` or `rft`; None reads it off the first row.
            base_model: Whose limits apply and whose tokens are counted.
            host: Whose limits apply: a name of the catalog.
            role: `train` or `validation`, which have different limits.
            catalog: Where the limits stand; the packaged one by default.
            tokenizer: Counts the tokens of a text, for a model without a known table.

        Raises:
            FileError: The file cannot be read.
            UsageError: The method is unknown.
        """
        target = Path(path)
        checker = RowChecker(
            method=method, base_model=base_model, host=host, role=role, tokenizer=tokenizer, catalog=catalog
        )
        report = check_file(checker, target, host)
        sha256, manifest = sha256_file(target), Manifest.read(target)
        is_changed = manifest is not None and manifest.sha256 != sha256
        if manifest is None or is_changed:
            manifest = Manifest.of(report, target, sha256)
        made = cls._made(target, manifest, report, checker.seen, is_changed=is_changed)
        return made if tokenizer is None else replace(made, is_estimated=True)

    @classmethod
    def written(
        cls, path: Path, manifest: Manifest, report: CheckReport, prompt: PromptFormat | None, seen: SeenRows
    ) -> TrainingFile:
        """The file that an export has just written: nothing is read again."""
        return cls._made(path, manifest, report, seen, prompt=prompt)

    @classmethod
    def _made(
        cls,
        path: Path,
        manifest: Manifest,
        report: CheckReport,
        seen: SeenRows,
        *,
        prompt: PromptFormat | None = None,
        is_changed: bool = False,
    ) -> TrainingFile:
        if prompt is None and manifest.prompt is not None:
            from dspy_finetune.prompts import PromptFormat  # lazy: dspy is heavy, and a file of messages has no prompt

            prompt = PromptFormat.from_dict(manifest.prompt)
        try:
            stat = path.stat()
        except OSError as error:
            raise file_error(error, path, "read") from error
        return cls(
            path=path,
            sha256=manifest.sha256,
            size_bytes=stat.st_size,
            report=report,
            manifest=manifest,
            prompt=prompt,
            is_changed=is_changed,
            seen=seen,
            modified_ns=stat.st_mtime_ns,
        )

    def checked_for(
        self,
        *,
        method: str,
        base_model: str | None,
        host: str,
        role: str = "train",
        catalog: Catalog | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> TrainingFile:
        """The file checked and counted for these; itself where that was done and the file on disk is the same.

        `read` documents the arguments.

        Raises:
            FileError: The file cannot be read.
        """
        report = self.report
        is_short = role != "train" and "too-few-examples" in report.codes  # no fault of a validation file
        same = (report.method, report.base_model, report.host) == (method, base_model, host)
        same = same and (catalog is None or catalog == load_catalog())
        same = same and (tokenizer is None or self.n_tokens is not None)
        if same and not is_short and self.seen is not None and self._is_on_disk():
            return self
        return TrainingFile.read(
            self.path,
            method=method,
            base_model=base_model,
            host=host,
            role=role,
            catalog=catalog,
            tokenizer=tokenizer,
        )

    def compared_with(self, validation: TrainingFile) -> TrainingFile:
        """The same with what its rows have in common with the validation file's, neither read again."""
        log = IssueLog()
        if self.seen is not None and validation.seen is not None:
            self.seen.report_overlap(log, validation.seen)
        issues = tuple(sorted((*self.report.issues, *log.kept), key=lambda issue: issue.line or 0))
        counts = {**self.report.counts, **log.counts}
        report = replace(self.report, issues=issues, counts=counts, validation=validation.report)
        return replace(self, report=report)

    def _is_on_disk(self) -> bool:
        try:
            stat = self.path.stat()
        except OSError as error:
            raise file_error(error, self.path, "read") from error
        return (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.modified_ns)

    def __getstate__(self) -> dict[str, Any]:
        # Hashes hold within one process, and may lie in an open file.
        return {**self.__dict__, "seen": None}
