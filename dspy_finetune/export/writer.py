"""Rows to a finished file: written, checked, counted and digested in one pass, with a manifest beside it.

In: an iterator of rows in OpenAI's shape, with a RowError in place of each example that could not be rendered.
Out: a `TrainingFile`. The file appears under its name only when it is whole; the manifest is written last. Memory does
not grow with the rows, except for 16-byte digests when `dedupe` is asked for (about 90 bytes a row) and the errors that
are listed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import orjson

from dspy_finetune._files import BOM, atomic_writer
from dspy_finetune.data import Examples, ExampleStream
from dspy_finetune.errors import EmptyDatasetError, RowError, RowsError, UsageError
from dspy_finetune.export.checks.checker import RowChecker
from dspy_finetune.export.dataset import SHOWN_ROWS, Manifest, TrainingFile, forget_manifest, now, versions
from dspy_finetune.export.dialects import Dialect, dialect_named
from dspy_finetune.export.formats import Method, Row
from dspy_finetune.export.preferences import Preferences
from dspy_finetune.export.tokens import TokenCounter, Tokenizer, fast_counter
from dspy_finetune.values import with_column_decimals

if TYPE_CHECKING:
    from dspy_finetune.prompts import PromptFormat


logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
DUPLICATE = "duplicate of an earlier row"
_MAX_REASONS = 50
_MAX_ERRORS = 10_000
_BATCH_LINES = 256
"""Lines that are digested and written together."""


@dataclass(kw_only=True)
class RowCounts:
    """How far the reading of the examples has come: the renderers count while the writer pulls rows from them."""

    n_rows_in: int = 0
    """Examples read so far."""
    line: int | None = None
    """The line of the one in hand, where the source has lines."""
    path: str | None = None
    """The file that those lines are of."""
    left_behind: dict[str, int] = field(default_factory=dict)
    """Keys of the lines that the new file has no place for, with the number of their rows."""

    @property
    def number(self) -> int:
        """What the example in hand is called: its line, or its number from 1."""
        return self.n_rows_in if self.line is None else self.line


@dataclass(kw_only=True)
class _Skipped:
    """What was left out, and why."""

    reasons: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)

    def add(self, number: int, reason: str) -> None:
        # Reasons may quote a value: without a bound a large broken file would fill the memory with them.
        key = reason if reason in self.reasons or len(self.reasons) < _MAX_REASONS else "other reasons"
        self.reasons[key] = self.reasons.get(key, 0) + 1
        if len(self.rows) < SHOWN_ROWS:
            self.rows.append({"row": number, "reason": reason})

    def add_error(self, number: int, error: RowError) -> None:
        self.add(number, _reason(error))
        if len(self.errors) < _MAX_ERRORS:
            self.errors.append(error)

    def add_unread(self, examples: object) -> int:
        """What was left out before it came here, by the loader or where preferences were made; returns how much."""
        if isinstance(examples, Preferences):
            for reason, n in examples.skipped.items():
                self.reasons[reason] = self.reasons.get(reason, 0) + n
            return sum(examples.skipped.values())
        if not isinstance(examples, Examples | ExampleStream):
            return 0
        for error in examples.skipped:
            self.add(error.line or 0, _reason(error))
        n = examples.n_skipped if isinstance(examples, ExampleStream) else len(examples.skipped)
        if n > len(examples.skipped):
            self.reasons["other reasons"] = self.reasons.get("other reasons", 0) + n - len(examples.skipped)
        return n


def _reason(error: RowError) -> str:
    return f"{error.field}: {error.problem}" if error.field else error.problem


def encode_row(row: Mapping[str, Any]) -> bytes:
    """The row's line without its end: compact JSON in UTF-8, characters beyond ASCII as they are.

    Raises:
        RowError: A text cannot be written as UTF-8 (a lone surrogate), or a value is not JSON.
    """
    try:
        line = orjson.dumps(row, option=_PLAIN)
        # orjson writes NaN as null; the json module refuses it.
        return _encode_any(row) if b"null" in line else line
    except orjson.JSONEncodeError:
        return _encode_any(row)  # which says what is wrong, or writes integers beyond 64 bits


_PLAIN = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS


def _encode_any(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        found = error.object[error.start : error.end]
        raise RowError(
            f"character {found!r} is half of a surrogate pair, which UTF-8 cannot hold",
            value=error.object[max(0, error.start - 40) : error.end + 40],
            remedy="the text was decoded wrongly; read its source again as UTF-8, or remove the character",
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(
            f"cannot be written as JSON ({error})", value=row, remedy="use text, numbers, booleans, lists and dicts"
        ) from error


class _Lines:
    """Turns rows into lines of a dialect: each is encoded, compared with earlier ones, checked, counted and written."""

    def __init__(
        self, stream: BinaryIO, dialect: Dialect, checker: RowChecker, counter: TokenCounter | None, *, dedupe: bool
    ) -> None:
        self._stream = stream
        self._dialect = dialect
        self._checker = checker
        self._counter = counter
        self._seen: set[bytes] | None = set() if dedupe else None
        self._digest = hashlib.sha256()
        self._batch: list[bytes] = []
        self.size_bytes = 0
        """Of all lines so far."""
        self.n_lines = 0
        """Lines so far."""
        if dialect.bom:
            self._put(BOM)

    def write(self, row: Row) -> bool:
        """Write one row; False when it is a duplicate. Raises RowError when it cannot be written."""
        if self._dialect.messages:
            return self._write_line(encode_row(row), row)
        # All turns are rendered before the first is written: a row goes into the file whole or not at all.
        lines = [(encode_row(turn), turn) for turn in self._dialect.lines(row)]
        written = [self._write_line(line, turn) for line, turn in lines]
        return any(written)

    def sha256(self) -> str:
        """Of all bytes so far, as 64 hexadecimal digits."""
        return self._digest.hexdigest()

    def _write_line(self, line: bytes, row: Row) -> bool:
        if self._seen is not None:
            digest = hashlib.blake2b(line, digest_size=16).digest()
            if digest in self._seen:
                return False
            self._seen.add(digest)
        self._batch.append(line)
        self.n_lines += 1
        if len(self._batch) >= _BATCH_LINES:
            self.flush()
        n_tokens = self._counter.add(row) if self._counter is not None else None
        self._checker.row(self.n_lines, row, len(line), n_tokens=n_tokens)
        return True

    def flush(self) -> None:
        """Write the lines that wait."""
        if self._batch:
            self._batch.append(b"")
            self._put(b"\n".join(self._batch))
            self._batch.clear()

    def _put(self, data: bytes) -> None:
        self.size_bytes += len(data)
        self._digest.update(data)
        self._stream.write(data)


def write_file(
    rows: Iterable[Row | RowError],
    path: str | os.PathLike[str],
    *,
    progress: RowCounts,
    source: object = None,
    method: Method,
    dialect: str = "openai",
    base_model: str | None = None,
    prompt: PromptFormat | None = None,
    seed: int | None = None,
    on_error: OnError = "raise",
    dedupe: bool = False,
    tokenizer: Tokenizer | None = None,
) -> TrainingFile:
    """Write the rows and hand back the finished file; export_sft, export_dpo and convert are this with their own rows.

    `source` is where the rows were made from: what its loader left out is told in the manifest too.

    Raises:
        RowsError: With `on_error="raise"`: every example that could not be rendered; nothing is written.
        EmptyDatasetError: No row is left to write; nothing is written.
        FileError: The file cannot be written.
        UsageError: An argument is not one of the accepted values, or the file is the one that the examples came from.
    """
    if on_error not in ("raise", "skip"):
        raise UsageError(f'on_error={on_error!r} is unknown; choose "raise" or "skip"')
    target, form = Path(path), dialect_named(dialect)
    _keep_source(source, target)
    counter = fast_counter(base_model, tokenizer)
    checker = RowChecker(method=method, base_model=base_model, host=form.name, tokenizer=tokenizer)
    skipped = _Skipped()
    with atomic_writer(target) as stream:
        lines = _Lines(stream, form, checker, counter, dedupe=dedupe)
        for row in rows:
            if isinstance(row, RowError):
                skipped.add_error(progress.number, row)
            else:
                _write_one(lines, row, progress.number, skipped, progress.path)
        lines.flush()
        n_unread = skipped.add_unread(source)
        if skipped.errors and on_error == "raise":
            raise RowsError(with_column_decimals(skipped.errors))
        if not lines.n_lines:
            raise EmptyDatasetError(_nothing(progress.n_rows_in, skipped, target))
        if progress.left_behind:
            keys = ", ".join(f'"{key}" ({n:,} rows)' for key, n in progress.left_behind.items())
            logger.warning("%s has no place for %s", target, keys)
        # Between the two renames a reader must not meet the new file beside the old manifest.
        forget_manifest(target)
    report = checker.finish(size_bytes=lines.size_bytes, path=os.fspath(target))
    manifest = Manifest(
        file=target.name,
        method=method,
        dialect=form.name,
        base_model=base_model,
        n_rows_in=progress.n_rows_in + n_unread,
        n_rows_out=lines.n_lines,
        skipped=skipped.reasons,
        skipped_rows=skipped.rows,
        sha256=lines.sha256(),
        size_bytes=lines.size_bytes,
        n_tokens=counter.n_tokens if counter is not None else None,
        n_billed_tokens=counter.n_billed_tokens if counter is not None else None,
        encoding=counter.encoding if counter is not None else None,
        prompt_digest=prompt.digest if prompt is not None else None,
        prompt=prompt.to_dict() if prompt is not None else None,
        seed=seed,
        left_behind=progress.left_behind,
        issues=dict(report.counts),
        versions=versions(),
        created_at=now(),
    )
    manifest.write(target)
    return TrainingFile.written(target, manifest, report, prompt, checker.seen)


def _keep_source(source: object, target: Path) -> None:
    """Refuse to replace the labelled data by what is made from it. Raises UsageError."""
    if not isinstance(source, Examples | ExampleStream) or not os.path.isfile(source.source):
        return
    if target.exists() and os.path.samefile(source.source, target):
        raise UsageError(f"{target} is the file that the examples come from; name another file to write to")


def _write_one(lines: _Lines, row: Row, number: int, skipped: _Skipped, path: str | None) -> None:
    try:
        if not lines.write(row):
            skipped.add(number, DUPLICATE)
    except RowError as error:
        skipped.add_error(number, _numbered(error, number, path))


def _numbered(error: RowError, number: int, path: str | None) -> RowError:
    """The same error with the row's number, or its file and line, in its message."""
    if error.line is not None:
        return error
    return RowError(
        error.problem, path=error.path or path, line=number, field=error.field, value=error.value, remedy=error.remedy
    )


def _nothing(n_rows_in: int, skipped: _Skipped, target: Path) -> str:
    if not n_rows_in:
        return f"nothing to export to {target}: there are no examples; check the source, or its split and filters"
    reasons = "; ".join(f"{reason} ({n})" for reason, n in skipped.reasons.items())
    who = f"all {n_rows_in} examples were" if n_rows_in > 1 else "the one example was"
    return f"nothing to export to {target}: {who} left out: {reasons}"
