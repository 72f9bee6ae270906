"""A training file from one host's format to another's.

In: a file of any format (formats.py). Out: a `TrainingFile` in the dialect asked for, checked, with a manifest; the
prompt in the input's manifest goes along. Rows stay rows, except that TRL's format needs one row for each trained turn
of a conversation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_finetune._files import packed_kind, sha256_file
from dspy_finetune._jsonl import MISSING
from dspy_finetune.errors import EmptyDatasetError, RowError, RowsError, UsageError
from dspy_finetune.export.checks.checker import entries_of
from dspy_finetune.export.checks.codes import CODES
from dspy_finetune.export.dataset import Manifest, TrainingFile
from dspy_finetune.export.dialects import dialect_named
from dspy_finetune.export.formats import SHARED, Method, Row, as_openai, from_any, is_trl, method_of, shape_named, sniff
from dspy_finetune.export.tokens import Tokenizer
from dspy_finetune.export.writer import OnError, RowCounts, write_file

if TYPE_CHECKING:
    from dspy_finetune.prompts import PromptFormat

_MAX_LEADING_ERRORS = 100
"""A file that starts with so many broken lines is given up: it is not a training file."""
_NO_ROW = ("not JSON", "not a JSON object", "unknown line format", "not UTF-8")
"""How the errors of lines begin that are no training rows."""


def convert(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str,
    from_: str | None = None,
    base_model: str | None = None,
    on_error: OnError = "raise",
    dedupe: bool = False,
    tokenizer: Tokenizer | None = None,
) -> TrainingFile:
    """Write a copy of a training file in another dialect.

    Args:
        path: The file; it is never touched.
        out: The copy; its manifest goes to `<out>.manifest.json`.
        to: `"openai"`, `"azure"`, `"together"`, `"fireworks"`, `"nebius"` or `"trl"`.
        from_: The file's dialect; lines of another are then errors. None takes each line as what it is, and so also
            mends files with older or wrong keys, such as `preferred_completion` or `messages` / `preferred` /
            `rejected`.
        base_model: Counts tokens with this model's table; None takes the one in the file's manifest, if any.
        on_error: What happens to lines that cannot be converted: `"raise"` lists them all and writes nothing, `"skip"`
            leaves them out and counts them in the manifest.
        dedupe: Leave out rows whose line equals an earlier one.
        tokenizer: Counts the tokens of a text, for models without a known table.

    Raises:
        RowsError: With `on_error="raise"`: every line that could not be converted, by `path:line`.
        RowError: The file is of another dialect than `from_` throughout.
        EmptyDatasetError: Nothing is left to write.
        FileError: A file cannot be read or written.
        UsageError: A dialect is unknown, or `out` is the input itself.
    """
    dialect_named(to)
    if from_ is not None:
        dialect_named(from_)
    if Path(out).exists() and os.path.samefile(path, out):
        raise UsageError(f"{os.fspath(out)} is the input itself; name another file to write to")
    if from_ is not None:
        _check_dialect(path, from_)
    method = _method(path, from_)
    manifest, prompt = _provenance(path)
    progress = RowCounts()
    return write_file(
        _rows(path, from_, progress, method=method, to=to),
        out,
        progress=progress,
        method=method,
        dialect=to,
        base_model=base_model or (manifest.base_model if manifest is not None else None),
        prompt=prompt,
        seed=manifest.seed if manifest is not None else None,
        on_error=on_error,
        dedupe=dedupe,
        tokenizer=tokenizer,
    )


def _check_dialect(path: str | os.PathLike[str], from_: str) -> None:
    """See whether the first lines are of the dialect; where none is, that is one fault, not one of each line."""
    first: tuple[int, Row] | None = None
    for entry in islice(entries_of(path), _MAX_LEADING_ERRORS):
        row, number = entry.value, entry.line or 1
        if not isinstance(row, dict):
            continue
        if is_trl(row) != dialect_named(from_).messages:
            return
        first = first or (number, row)
    if first is not None:
        number, row = first
        meant = "trl" if is_trl(row) else "openai"
        raise RowError(
            f"the file is not in {from_}'s format: its lines are in {shape_named(row)}",
            path=os.fspath(path),
            line=number,
            value=list(row),
            remedy=f'leave out from_ / --from, or give it as "{meant}"',
        )


def _method(path: str | os.PathLike[str], from_: str | None) -> Method:
    """What the first line that can be read trains."""
    errors: list[RowError] = []
    for row in _rows(path, from_, RowCounts()):
        if not isinstance(row, RowError):
            return method_of(row)
        errors.append(row)
        if len(errors) == _MAX_LEADING_ERRORS:
            break
    if errors:
        raise _told_once(errors, path)
    raise EmptyDatasetError(f"{os.fspath(path)} holds no rows; check that it is the right file")


def _told_once(errors: list[RowError], path: str | os.PathLike[str]) -> RowError | RowsError:
    """One error where no line is a training row at all, as in a file of labelled rows; else every line's."""
    first = errors[0]
    with open(path, "rb") as stream:
        packed = packed_kind(stream.read(4))
    if packed is not None:
        remedy = "unpack it, or write its rows as JSON, one per line"
        return RowError(f"the file is {packed}", path=first.path, line=1, remedy=remedy)
    # What other errors say is of a training row.
    if len(errors) == 1 or not all(error.problem.startswith(_NO_ROW) for error in errors):
        return RowsError(errors)
    n = "the other" if len(errors) < _MAX_LEADING_ERRORS else "the next"
    problem = f"{first.problem}; {n} {len(errors) - 1} lines are no better: this is no training file"
    remedy = "labelled rows are made one by export_sft or `dspy-finetune export`"
    return RowError(problem, path=first.path, line=first.line, value=first.value, remedy=remedy)


def _provenance(path: str | os.PathLike[str]) -> tuple[Manifest | None, PromptFormat | None]:
    """The manifest of the input and its prompt, when the manifest describes these very bytes."""
    manifest = Manifest.read(path)
    if manifest is None or manifest.sha256 != sha256_file(path):
        return None, None
    if manifest.prompt is None:
        return manifest, None
    from dspy_finetune.prompts import PromptFormat  # lazy: it loads dspy, which a plain conversion does not need

    return manifest, PromptFormat.from_dict(manifest.prompt)


def _rows(
    path: str | os.PathLike[str],
    from_: str | None,
    progress: RowCounts,
    *,
    method: Method | None = None,
    to: str | None = None,
) -> Iterator[Row | RowError]:
    """Each line as a row in OpenAI's shape, or what is wrong with it; lines of another method are errors."""
    progress.path = os.fspath(path)
    for entry in entries_of(path):
        fault = next((fault for fault in entry.faults if not CODES[fault.code].fixable), None)
        if fault is None and entry.value is MISSING:
            continue  # a blank line, a byte-order mark, the brackets of an array: mended by being read
        progress.n_rows_in += 1
        progress.line = number = entry.line or 1
        if fault is not None:
            yield _line_error(RowError(fault.message, value=entry.raw[:80], remedy=fault.remedy), path, number)
            continue
        try:
            _check_line(entry.value, from_)
            row = from_any(entry.value)
            for key in _left_behind(entry.value, row, to):
                progress.left_behind[key] = progress.left_behind.get(key, 0) + 1
            if method is not None and method_of(row) != method:
                raise RowError(
                    f"a {method_of(row)} row in a file of {method} rows",
                    value=list(row),
                    remedy="keep the two in files of their own",
                )
            yield row
        except RowError as error:
            yield _line_error(error, path, number)


def _left_behind(line: Any, row: Row, to: str | None) -> Iterator[str]:
    """Keys of a line that the copy has no place for; those that change what is trained are errors already."""
    if to is None:
        return
    rest = as_openai(line).rest
    if sniff(line) != "chat":
        yield from rest
    elif not dialect_named(to).messages:
        yield from row.keys() - {"messages", *SHARED}


def _check_line(row: Any, from_: str | None) -> None:
    """Refuse a line that is not of the dialect asked for. Raises RowError."""
    if from_ is not None and isinstance(row, dict) and is_trl(row) == dialect_named(from_).messages:
        found = f"the line is in {shape_named(row)}, not {from_}'s"
        raise RowError(found, value=list(row), remedy="leave out from_ / --from")


def _line_error(error: RowError, path: str | os.PathLike[str], number: int) -> RowError:
    return RowError(
        error.problem, path=os.fspath(path), line=number, field=error.field, value=error.value, remedy=error.remedy
    )
