"""What goes in and what comes out: a numbered input row with its digest, its outcome, and the output row it becomes.

In: any source that `iter_examples` takes, and the program that will be asked. Out: an `InputRow` for each row of the
source, those that cannot be read among them; the JSON of each output row; all of them as one file, JSONL or Parquet,
which appears complete under its name or not at all. Nothing is dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
import pydantic

from dspy_finetune._files import atomic_writer, file_error
from dspy_finetune._optional import require
from dspy_finetune.data.fields import RowPlan
from dspy_finetune.data.readers import Format, open_source
from dspy_finetune.errors import AnswerError, EmptyDatasetError, NoAnswerError, RowError, UsageError
from dspy_finetune.hosts.lm import sound_usage
from dspy_finetune.predictors.ask import inputs_of

logger = logging.getLogger(__name__)

Status = Literal["answered", "parse_failure", "no_answer", "failed", "bad_row"]
STATUSES: tuple[Status, ...] = ("answered", "parse_failure", "no_answer", "failed", "bad_row")
OutputFormat = Literal["jsonl", "parquet"]
RESERVED = ("status", "error", "answer_text")
"""Fields of every output row that are about the answer rather than of it."""


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How the source is read, and where and how the answers are kept, where the defaults will not do."""

    rename: Mapping[str, str] | None = None
    """From the name in the source to the name wanted."""
    format: Format | None = None
    """Of the source, where its name does not tell."""
    delimiter: str | None = None
    """Between the cells of a CSV file; None reads it off the first line."""
    split: str | None = None
    """Of a data set with several."""
    limit: int | None = None
    """Maximum number of rows."""
    output_format: OutputFormat | None = None
    """"jsonl" or "parquet", where the output's name does not tell."""
    checkpoint: str | os.PathLike[str] | None = None
    """Where answers are kept until the output is complete; `OUTPUT.checkpoint` without it."""


DEFAULT_FILES = FileOptions()


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Counts, which can be added.

    >>> Tokens(n_requests=1, n_input=40) + Tokens(n_requests=1, n_input=2, n_output=1)
    Tokens(n_requests=2, n_input=42, n_cached=0, n_output=1)
    """

    n_requests: int = 0
    """Answered requests."""
    n_input: int = 0
    """Prompt tokens, cached ones among them."""
    n_cached: int = 0
    """Prompt tokens from the host's cache."""
    n_output: int = 0
    """Answer tokens."""

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            n_requests=self.n_requests + other.n_requests,
            n_input=self.n_input + other.n_input,
            n_cached=self.n_cached + other.n_cached,
            n_output=self.n_output + other.n_output,
        )

    @classmethod
    def of(cls, completion: Mapping[str, Any]) -> Tokens:
        """One answer's; 0 where the host counts nothing."""
        usage = sound_usage(completion.get("usage"))
        return cls(
            n_requests=1,
            n_input=usage.get("prompt_tokens", 0),
            n_cached=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
            n_output=usage.get("completion_tokens", 0),
        )


NO_TOKENS = Tokens()


@dataclass(frozen=True, kw_only=True)
class InputRow:
    """One row of the source."""

    index: int
    """From 0, counting every row of the source."""
    place: str
    """Where it stands, for messages: "titles.jsonl:17"."""
    inputs: Mapping[str, Any]
    """What the program is called with; empty for a bad row."""
    kept: Mapping[str, Any]
    """Fields that go along into the output row."""
    bodies: tuple[bytes, ...]
    """The requests, where they are known; else empty."""
    digest: str
    """16 hexadecimal digits of all the above: tells whether a row is the one that was answered before."""
    problem: str | None
    """Why the row cannot be asked; None for a good one."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a row."""

    status: Status
    """answered, parse_failure (the model spoke, but not so that it can be read), no_answer (it refused, was cut off or
    only reasoned), failed (no completion came), bad_row."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The prediction."""
    error: str | None = None
    """Why there is no answer."""
    answer_text: str | None = None
    """What the model said, where that cannot be read."""
    tokens: Tokens = NO_TOKENS
    """What the host counted."""


class Rows:
    """The rows of a source for one program.

    Args:
        program: Who will be asked.
        source: See `iter_examples`.
        bodies: The requests that a call with these inputs sends, where they are known.
        inputs: The fields that the program is called with, where it does not say itself.
        keep: Fields for the output: the inputs, all, or those named.
        prefix: Put before the names of the prediction's fields.
        files: How the source is read.

    Raises:
        UsageError: An argument is wrong; a kept field has a name that the output row needs.
        FileError: The file is missing or cannot be read.
    """

    def __init__(
        self,
        program: Any,
        source: Any,
        *,
        bodies: Callable[[Mapping[str, Any]], list[dict[str, Any]]] | None = None,
        inputs: Sequence[str] | None = None,
        keep: Literal["inputs", "all"] | Sequence[str] = "inputs",
        prefix: str = "",
        files: FileOptions = DEFAULT_FILES,
    ) -> None:
        signature = getattr(getattr(program, "prompt", None), "signature", None) or getattr(program, "signature", None)
        fields = getattr(signature, "input_fields", None)
        self.input_fields: tuple[str, ...] | None = tuple(fields or inputs or ()) or None
        self.output_fields: tuple[str, ...] = tuple(getattr(signature, "output_fields", None) or ())
        types = {name: one.annotation for name, one in fields.items()} if fields else None
        self._plan = RowPlan(inputs=self.input_fields, rename=files.rename, types=types, signature=None)
        self._source = open_source(source, format=files.format, split=files.split, delimiter=files.delimiter)
        self._limit = files.limit
        self._prefix = prefix
        self._keep: tuple[str, ...] | None = None if isinstance(keep, str) else tuple(keep)
        if isinstance(keep, str) and keep not in ("inputs", "all"):
            raise UsageError(f'keep={keep!r}: use "inputs", "all" or a list of field names')
        self._keeps_all = keep == "all"
        self._bodies = bodies
        self._check_names(self._keep or self.input_fields or () if not self._keeps_all else ())
        self.name = self._source.name

    def __iter__(self) -> Iterator[InputRow]:
        """The rows, in order.

        Raises:
            UsageError: No row has a column that was asked for.
            EmptyDatasetError: There is no row.
        """
        index = 0
        for number, row in self._source.rows:
            yield self._row(index, number, row)
            index += 1
            if index == self._limit:
                break
        self._plan.check_columns(self.name)
        if not index:
            raise EmptyDatasetError(f"{self.name} holds no rows; there is nothing to work with")

    def output(self, row: InputRow, outcome: Outcome) -> bytes:
        """The output row as JSON: what was kept, the prediction, `status`, `error` and `answer_text`.

        Raises:
            UsageError: A kept field has the name of one of the prediction's.
        """
        values = {f"{self._prefix}{name}": value for name, value in outcome.values.items()}
        if not values:
            values = {f"{self._prefix}{name}": None for name in self.output_fields}
        for name in row.kept:
            if name in values or name in RESERVED:
                raise self._clash(name)
        about = {"status": outcome.status, "error": outcome.error, "answer_text": outcome.answer_text}
        return dump_json({**row.kept, **values, **about})

    def _row(self, index: int, number: int, raw: dict[str, Any] | RowError) -> InputRow:
        place = f"{self._source.path}:{number}" if self._source.path else f"row {number}"
        made = self._plan.example(raw, self._source.path, number)
        if isinstance(made, RowError):
            return self._bad(index, place, str(made), {} if isinstance(raw, RowError) else raw)
        absent = [name for name in self._keep or () if index == 0 and name not in made]
        if absent:  # rows may differ in their fields, so that this is no error; but it is most often a slip
            logger.warning("keep: %s has no %s; the output holds null where a row has none", place, ", ".join(absent))
        inputs = inputs_of(made) if self.input_fields is None else {name: made[name] for name in self.input_fields}
        kept = self._kept(dict(made.items()), inputs)
        bodies: tuple[bytes, ...] = ()
        if self._bodies is not None:
            try:
                bodies = tuple(map(dump_json, self._bodies(inputs)))
            except RowError as error:
                return self._bad(index, place, f"{place}: {error}", dict(made.items()))
        digest = _digest(dump_json(kept), *(bodies or (dump_json(inputs),)))
        return InputRow(index=index, place=place, inputs=inputs, kept=kept, bodies=bodies, digest=digest, problem=None)

    def _bad(self, index: int, place: str, problem: str, raw: Mapping[str, Any]) -> InputRow:
        found = {name: raw.get(name) for name in self.input_fields or raw}
        kept = self._kept(raw, found)
        digest = _digest(dump_json(kept), problem.encode("utf-8", "replace"))
        return InputRow(index=index, place=place, inputs={}, kept=kept, bodies=(), digest=digest, problem=problem)

    def _kept(self, everything: Mapping[str, Any], inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._keep is not None:
            return {name: everything.get(name) for name in self._keep}
        return everything if self._keeps_all else inputs

    def _check_names(self, kept: Sequence[str]) -> None:
        for name in kept:
            if name in RESERVED or name in {f"{self._prefix}{field}" for field in self.output_fields}:
                raise self._clash(name)

    def _clash(self, name: str) -> UsageError:
        return UsageError(
            f'the field "{name}" stands in the rows and in the answers: leave it out of keep=, give the answers a '
            'prefix="predicted_", or rename={...} it'
        )


def fingerprint(source: Any) -> dict[str, Any]:
    """What tells one source from another before its rows are read: a file's hash and number of lines.

    Raises:
        FileError: The file cannot be read.
    """
    if not isinstance(source, (str, Path)) or not Path(source).is_file():
        return {}
    digest, n_lines, last = hashlib.sha256(), 0, b"\n"
    try:
        with open(source, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                n_lines += block.count(b"\n")
                last = block[-1:]
    except OSError as error:
        raise file_error(error, source, "read") from error
    return {"sha256": digest.hexdigest(), "n_lines": n_lines + (last != b"\n")}


def dump_json(value: Any) -> bytes:
    """JSON on one line; label values become keys, Enums their values, models their fields, anything else its text."""
    with contextlib.suppress(TypeError):  # half a character, or a number above 64 bits: the json module writes both
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    return json.dumps(_with_text_keys(value), ensure_ascii=True, default=_plain, separators=(",", ":")).encode("ascii")


def load_json(text: bytes) -> Any:
    """The value of a JSON text. Raises ValueError."""
    with contextlib.suppress(ValueError):  # half a character: the json module reads it
        return orjson.loads(text)
    return json.loads(text)


def no_reading(error: BaseException, tokens: Tokens = NO_TOKENS) -> Outcome:
    """The outcome of an answer that is none, or that cannot be read."""
    text = error.text if isinstance(error, AnswerError) else getattr(error, "lm_response", None)
    status: Status = "no_answer" if isinstance(error, NoAnswerError) else "parse_failure"
    return Outcome(status=status, error=str(error), answer_text=text, tokens=tokens)


def _plain(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if isinstance(value, Mapping):
        return dict(value)
    return str(getattr(value, "value", value))


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(name): _with_text_keys(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_text_keys(one) for one in value]
    return None if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))) else value


def _key(name: Any) -> str:
    name = getattr(name, "value", name)
    return str(name).lower() if isinstance(name, bool) or name is None else str(name)


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


# The output file. Parquet needs the extra `data`; its columns are those that any row has, each of the type that
# fits all rows, read in two passes of bounded memory.

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
