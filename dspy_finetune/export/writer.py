"""Rows to a finished file: written, checked, counted and digested in one pass, with a manifest beside it.

In: an iterator of rows in OpenAI's shape, with a RowError in place of each example that could not be rendered.
Out: a Dataset. The file appears under its name only when it is whole; the manifest is written last. Memory does not
grow with the rows, except for 16-byte digests when `dedupe` is asked for (about 90 bytes a row) and the errors that are
listed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from dspy_finetune._files import BOM, atomic_writer
from dspy_finetune.data import Examples, ExampleStream
from dspy_finetune.errors import EmptyDatasetError, RowError, RowsError, UsageError
from dspy_finetune.export.blocks import Block
from dspy_finetune.export.checks.check import RowChecker
from dspy_finetune.export.dataset import Dataset
from dspy_finetune.export.dialects import Dialect, dialect_named
from dspy_finetune.export.formats import Method, Row
from dspy_finetune.export.manifest import SHOWN_ROWS, Manifest, forget_manifest, now, versions
from dspy_finetune.export.preferences import Preferences
from dspy_finetune.export.rows import encode_row
from dspy_finetune.export.tokens import TokenCounter, Tokenizer
from dspy_finetune.values import with_column_decimals

if TYPE_CHECKING:
    from dspy_finetune.prompts import PromptFormat


# ----------------------------------------------------------------------------------------------------
# Lines to an open file: counted, digested, and written while the next ones are made.
#
# In: lines, one by one or many at once. Out: the file's bytes, their number and their SHA-256.
# Not covered: the file's name, which it gets when it is whole (`_files.atomic_writer`).

_BATCH_BYTES = 1 << 20
"""So much is handed over at once: two batches in memory, and few waits for the interpreter's lock between threads."""


class Sink:
    """The open file. A large one is written, and goes to the disk, beside the making of its lines.

    Args:
        stream: The file, open for writing bytes.
        disk: Two threads: one writes, one waits for the disk.
    """

    def __init__(self, stream: BinaryIO, disk: Executor) -> None:
        self._stream = stream
        self._disk = disk
        self._writing: Future[int] | None = None
        self._syncing: Future[None] | None = None
        self._batch = bytearray()
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        """Of all lines so far."""
        self.n_lines = 0
        """Lines so far."""

    def add(self, data: bytes, n_lines: int = 1) -> None:
        """Take lines, each with its end. Raises OSError: what an earlier batch met."""
        self.n_lines += n_lines
        self.size_bytes += len(data)
        self._digest.update(data)
        self._batch += data
        if len(self._batch) >= _BATCH_BYTES:
            self._written()
            batch, self._batch = self._batch, bytearray()
            self._writing = self._disk.submit(self._stream.write, batch)
            if self._syncing is None or self._syncing.done():
                self._synced()
                self._syncing = self._disk.submit(os.fsync, self._stream.fileno())

    def _written(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _synced(self) -> None:
        if self._syncing is not None:
            self._syncing.result()

    def close(self) -> None:
        """Write what is left. Raises OSError: what the disk could not take."""
        self._written()
        self._stream.write(self._batch)
        self._synced()

    def sha256(self) -> str:
        """Of all bytes so far, as 64 hexadecimal digits."""
        return self._digest.hexdigest()


# ----------------------------------------------------------------------------------------------------
OnError = Literal["raise", "skip"]
DUPLICATE = "duplicate of an earlier row"
_MAX_REASONS = 50
_MAX_ERRORS = 10_000


@dataclass(kw_only=True)
class RowCounts:
    """How far the reading of the examples has come: the renderers count while the writer pulls rows from them."""

    n_rows_in: int = 0
    """Examples read so far."""
    line: int | None = None
    """The line of the one in hand, where the source has lines."""
    path: str | None = None
    """The file that those lines are of."""

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


class _Lines:
    """Turns rows into lines of a dialect: each is encoded, compared with earlier ones, checked, counted and written."""

    def __init__(
        self, sink: Sink, dialect: Dialect, checker: RowChecker, counter: TokenCounter | None, *, dedupe: bool
    ) -> None:
        self._sink = sink
        self._dialect = dialect
        self._checker = checker
        self._counter = counter
        self._seen: set[bytes] | None = set() if dedupe else None

    def write(self, row: Row) -> bool:
        """Write one row; False when it is a duplicate. Raises RowError when it cannot be written."""
        if self._dialect.messages:
            return self._write_line(encode_row(row), row)
        # All turns are rendered before the first is written: a row goes into the file whole or not at all.
        lines = [(encode_row(turn), turn) for turn in self._dialect.lines(row)]
        written = [self._write_line(line, turn) for line, turn in lines]
        return any(written)

    def write_block(self, block: Block) -> None:
        """Write many rows at once. Raises UnicodeEncodeError, before anything is written."""
        data = block.encode()
        line = self._sink.n_lines + 1
        n_tokens = block.count(self._counter) if self._counter is not None else None
        self._sink.add(data, len(block))
        if not self._checker.block(line, block, n_tokens=n_tokens):
            for i, row in enumerate(block.rows()):
                self._checker.row(line + i, row, n_tokens=n_tokens[i] if n_tokens is not None else None)

    def _write_line(self, line: bytes, row: Row) -> bool:
        if self._seen is not None:
            digest = hashlib.blake2b(line, digest_size=16).digest()
            if digest in self._seen:
                return False
            self._seen.add(digest)
        self._sink.add(line + b"\n")
        n_tokens = self._counter.add(row) if self._counter is not None else None
        self._checker.row(self._sink.n_lines, row, len(line), n_tokens=n_tokens)
        return True


def write_dataset(
    rows: Iterable[Row | Block | RowError],
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
) -> Dataset:
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
    counter = TokenCounter.for_model(base_model, tokenizer=tokenizer)
    checker = RowChecker(method=method, base_model=base_model, host=form.name, tokenizer=tokenizer)
    skipped = _Skipped()
    with atomic_writer(target) as stream, ThreadPoolExecutor(max_workers=2) as disk:
        sink = Sink(stream, disk)
        if form.bom:
            sink.add(BOM, 0)
        lines = _Lines(sink, form, checker, counter, dedupe=dedupe)
        for row in rows:
            if isinstance(row, RowError):
                skipped.add_error(progress.number, row)
                continue
            if isinstance(row, Block):
                try:
                    lines.write_block(row)
                except UnicodeEncodeError:  # one by one, to name the row
                    for number, single in enumerate(row.rows(), start=row.first):
                        _write_one(lines, single, number, skipped, progress.path)
                continue
            _write_one(lines, row, progress.number, skipped, progress.path)
        sink.close()
        n_unread = skipped.add_unread(source)
        if skipped.errors and on_error == "raise":
            raise RowsError(with_column_decimals(skipped.errors))
        if not sink.n_lines:
            raise EmptyDatasetError(_nothing(progress.n_rows_in, skipped, target))
        # Between the two renames a reader must not meet the new file beside the old manifest.
        forget_manifest(target)
    report = checker.finish(size_bytes=sink.size_bytes, path=os.fspath(target))
    manifest = Manifest(
        file=target.name,
        method=method,
        dialect=form.name,
        base_model=base_model,
        n_rows_in=progress.n_rows_in + n_unread,
        n_rows_out=sink.n_lines,
        skipped=skipped.reasons,
        skipped_rows=skipped.rows,
        sha256=sink.sha256(),
        size_bytes=sink.size_bytes,
        n_tokens=counter.n_tokens if counter is not None else None,
        n_billed_tokens=counter.n_billed_tokens if counter is not None else None,
        encoding=counter.encoding if counter is not None else None,
        prompt_digest=prompt.digest if prompt is not None else None,
        prompt=prompt.to_dict() if prompt is not None else None,
        seed=seed,
        issues=dict(report.counts),
        versions=versions(),
        created_at=now(),
    )
    manifest.write(target)
    return Dataset(path=target, manifest=manifest, report=report, prompt=prompt)


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
