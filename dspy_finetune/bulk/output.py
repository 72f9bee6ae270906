"""output.py: the finished rows as one file, JSONL or Parquet, which appears complete under its name or not at all.

In: output rows as JSON, in order, as often as they are asked for. Out: the file. Parquet needs the extra `data`; its
columns are those that any row has, each of the type that fits all rows, read in two passes of bounded memory.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from dspy_finetune._files import atomic_writer
from dspy_finetune._optional import require
from dspy_finetune.bulk.rows import load_json
from dspy_finetune.errors import UsageError

OutputFormat = Literal["jsonl", "parquet"]

_BLOCK = 8192
"""Rows in memory at a time, and of one Parquet row group."""


def output_format(path: Path, wanted: OutputFormat | None = None) -> OutputFormat:
    """The format that is wanted, else the one that the name tells; what it needs is installed.

    Raises:
        UsageError: Neither tells.
        MissingExtraError: Parquet without pyarrow.
    """
    by_name: dict[str, OutputFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
    found = wanted or by_name.get(path.suffix.lower())
    if found not in ("jsonl", "parquet"):
        raise UsageError(f"{path}: name the output .jsonl or .parquet, or give output_format=")
    if found == "parquet":
        require("pyarrow.parquet", "data", "Parquet output")
    return found


def write_output(path: Path, kind: OutputFormat, rows: Callable[[], Iterable[bytes]]) -> None:
    """Write all rows.

    Args:
        path: The file; missing folders are made.
        kind: Its format.
        rows: Makes an iterator of JSON rows; called once for JSONL, twice for Parquet.

    Raises:
        FileError: The file cannot be written.
    """
    if kind == "jsonl":
        with atomic_writer(path) as stream:
            for row in rows():
                stream.write(row + b"\n")
        return
    arrow = require("pyarrow", "data", "Parquet output")
    parquet = require("pyarrow.parquet", "data", "Parquet output")
    schema, as_text = _schema(arrow, rows())
    with atomic_writer(path) as stream, parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        for block in _blocks(rows()):
            columns = {name: [_cell(row.get(name), name in as_text) for row in block] for name in schema.names}
            writer.write_table(arrow.table(columns, schema=schema), row_group_size=_BLOCK)


def _blocks(rows: Iterable[bytes]) -> Iterator[list[dict[str, Any]]]:
    stream = iter(rows)
    while block := [load_json(row) for row in itertools.islice(stream, _BLOCK)]:
        yield block


def _schema(arrow: Any, rows: Iterable[bytes]) -> tuple[Any, set[str]]:
    """The columns' types, and the names of those that hold JSON because no type fits all their values."""
    types: dict[str, Any] = {}
    as_text: set[str] = set()
    for block in _blocks(rows):
        for name in dict.fromkeys(name for row in block for name in row):
            if name in as_text:
                continue
            try:
                found = arrow.array([row.get(name) for row in block]).type
                types[name] = _joined(arrow, name, types.get(name, arrow.null()), found)
            except (arrow.ArrowInvalid, arrow.ArrowTypeError, arrow.ArrowNotImplementedError, OverflowError):
                as_text.add(name)
                types[name] = arrow.string()
    types = {name: arrow.string() if arrow.types.is_null(kind) else kind for name, kind in types.items()}
    # A struct without fields, as of rows that are all {}, cannot be written.
    for name, kind in types.items():
        if arrow.types.is_struct(kind) and kind.num_fields == 0:
            as_text.add(name)
    fields = [arrow.field(name, arrow.string() if name in as_text else kind) for name, kind in types.items()]
    return arrow.schema(fields), as_text


def _joined(arrow: Any, name: str, one: Any, other: Any) -> Any:
    schemas = [arrow.schema([arrow.field(name, kind)]) for kind in (one, other)]
    return arrow.unify_schemas(schemas, promote_options="permissive").field(name).type


def _cell(value: Any, as_text: bool) -> Any:
    return json.dumps(value, ensure_ascii=False) if as_text and value is not None else value
