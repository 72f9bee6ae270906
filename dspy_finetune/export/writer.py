"""Training files, from examples or from another host's format: rendered, encoded, checked, counted in one pass.

In: examples with their right answers, preferences, or ready rows in OpenAI's shape, from a list or a stream, read once;
or a file of any format (formats.py), whose rows stay rows, except that TRL's format needs one row for each trained turn
of a conversation; the prompt in its manifest goes along.
Out: a `TrainingFile`. The file appears under its name only when it is whole; the manifest is written last. Memory does
not grow with the rows, except for 16-byte digests when `dedupe` is asked for (about 90 bytes a row) and the errors that
are listed.
Not covered: splitting and cleaning (data/), where preferences come from (preferences.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import orjson

from dspy_finetune._files import BOM, atomic_writer, packed_kind, sha256_file
from dspy_finetune._jsonl import MISSING
from dspy_finetune.data import Examples, ExampleStream
from dspy_finetune.errors import EmptyDatasetError, FinetuneError, RowError, RowsError, UsageError
from dspy_finetune.export.checks.checker import RowChecker, entries_of
from dspy_finetune.export.checks.codes import CODES
from dspy_finetune.export.dataset import SHOWN_ROWS, Manifest, TrainingFile, forget_manifest, now, versions
from dspy_finetune.export.dialects import Dialect, dialect_named
from dspy_finetune.export.formats import SHARED, Method, Row, as_openai, from_any, is_trl, method_of, shape_named, sniff
from dspy_finetune.export.preferences import Preference, Preferences, as_preference, render_preference, row_error
from dspy_finetune.export.tokens import TokenCounter, Tokenizer, fast_counter
from dspy_finetune.tasks import exchanged, sides_of
from dspy_finetune.values import with_column_decimals

if TYPE_CHECKING:
    import dspy

    from dspy_finetune.prompts import PromptFormat
    from dspy_finetune.prompts.format import AnyPrompt

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
DUPLICATE = "duplicate of an earlier row"
_MAX_REASONS = 50
_MAX_ERRORS = 10_000
_BATCH_LINES = 256
"""Lines that are digested and written together."""

Turn: TypeAlias = Callable[[Any], Mapping[str, Any]]
"""The same pair with its sides and its label exchanged."""


def export_sft(
    examples: Iterable[dspy.Example | Mapping[str, Any]],
    prompt: AnyPrompt | None,
    path: str | os.PathLike[str],
    *,
    base_model: str | None = None,
    dialect: str = "openai",
    on_error: OnError = "raise",
    dedupe: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    parallel_tool_calls: bool | None = None,
    seed: int | None = None,
    tokenizer: Tokenizer | None = None,
    both_orders: bool = False,
) -> TrainingFile:
    """Write one training conversation for each example.

    Args:
        examples: A list or any iterator, read once. With `prompt=None` each is a ready row, `{"messages": [...]}` with
            all it may hold: `weight`, `tools`, tool calls, image parts.
        prompt: What renders the examples; the same object serves the tuned model. Of a signature,
            `PromptFormat(signature)`.
        path: The JSONL file; its manifest goes to `<path>.manifest.json`.
        base_model: Counts tokens with this model's table and checks against its limits; an `ft:` id counts as its base.
        dialect: `"openai"`, `"azure"`, `"together"`, `"fireworks"`, `"nebius"` or `"trl"`.
        on_error: What happens to examples that cannot be rendered: `"raise"` lists them all and writes nothing,
            `"skip"` leaves them out and counts them in the manifest.
        dedupe: Leave out rows whose line equals an earlier one; costs about 90 bytes of memory a row.
        tools: Tool definitions that every row carries.
        parallel_tool_calls: Goes into every row that carries tools; OpenAI's default is true.
        seed: Of the split or the sampling behind the examples; recorded in the manifest, used for nothing.
        tokenizer: Counts the tokens of a text, for models without a known table.
        both_orders: Of a pairwise prompt: write every pair a second time with its sides and its label exchanged, so
            that no side is right more often. An explanation that speaks of A and B is not rewritten.

    Raises:
        RowsError: With `on_error="raise"`: every example that could not be rendered.
        EmptyDatasetError: Nothing is left to write.
        FileError: The file cannot be written.
        UsageError: An argument is not one of the accepted values.
    """
    check_given(examples)
    prompt = given_prompt(prompt)
    extra = tool_keys(tools, parallel_tool_calls)
    progress = RowCounts(both_orders=both_orders)
    turn = _turn(prompt) if both_orders else None
    rows = (
        _ready_rows(examples, extra, progress) if prompt is None else _sft_rows(examples, prompt, extra, progress, turn)
    )
    return write_file(
        rows,
        path,
        progress=progress,
        source=examples,
        method="sft",
        dialect=dialect,
        base_model=base_model,
        prompt=prompt,
        seed=seed,
        on_error=on_error,
        dedupe=dedupe,
        tokenizer=tokenizer,
    )


def _sft_rows(
    examples: Iterable[Any], prompt: PromptFormat, extra: Row, progress: RowCounts, turn: Turn | None
) -> Iterator[Row | RowError]:
    render = prompt.training_messages
    for number, example in enumerate(examples, start=1):
        progress.n_rows_in = number
        try:
            rendered = [render(example)] if turn is None else [render(example), render(turn(example))]
        except FinetuneError as error:
            yield row_error(error, number)
            continue
        for messages in rendered:
            yield {"messages": messages, **extra} if extra else {"messages": messages}


def _turn(prompt: PromptFormat | None) -> Turn:
    """What exchanges the two sides of a pair and its label. Raises UsageError where the prompt is not pairwise."""
    sides = sides_of(() if prompt is None else prompt.input_fields)
    if prompt is None or not sides or prompt.labels is None or len(prompt.labels.texts) != 2:
        raise UsageError("both_orders: the prompt must have inputs that end in _a and _b and two labels")
    labels, field = prompt.labels, str(prompt.label_field)
    first, second = labels.texts

    def turn(example: Any) -> Mapping[str, Any]:
        values = as_mapping(example)
        if values is None or field not in values:
            raise RowError(
                f'no label "{field}" to turn round', value=example, remedy="give labelled pairs, or both_orders=False"
            )
        other = labels.decode(second if labels.encode(values[field]) == first else first)
        return {**exchanged(values, sides), field: other}

    return turn


def _ready_rows(examples: Iterable[Any], extra: Row, progress: RowCounts) -> Iterator[Row | RowError]:
    for number, example in enumerate(examples, start=1):
        progress.n_rows_in = number
        values = as_mapping(example)
        if values is not None and isinstance(values.get("messages"), list):
            yield {**values, **extra}
            continue
        yield RowError(
            'no list "messages"',
            line=number,
            value=example,
            remedy='with prompt=None each example is {"messages": [...]}; give a prompt to render other fields',
        )


def as_mapping(example: Any) -> Mapping[str, Any] | None:
    """The fields of an example or a dict; None when it is neither."""
    if isinstance(example, Mapping):
        return example
    fields = getattr(example, "toDict", None)
    return dict(example.items()) if callable(fields) else None


def given_prompt(prompt: AnyPrompt | None) -> PromptFormat | None:
    """The prompt, also of a signature; None of none. Raises UsageError."""
    if prompt is None:
        return None
    from dspy_finetune.prompts.format import as_prompt  # here: it loads dspy, which ready rows do not need

    return as_prompt(prompt)


def check_given(examples: object) -> None:
    """Refuse what can be no examples, before it is taken for many bad rows. Raises UsageError."""
    if isinstance(examples, (str, bytes, os.PathLike)):
        raise UsageError(
            f"examples: {examples!r:.80} is a path or a text; load the file with load_examples or iter_examples"
        )
    if type(examples).__module__.partition(".")[0] in ("pandas", "polars", "pyarrow"):
        raise UsageError(f"examples: a {type(examples).__name__} is a table; load it with load_examples")
    if isinstance(examples, Mapping) or not isinstance(examples, Iterable):
        raise UsageError(f"examples: a list or an iterator of examples is needed, got {type(examples).__name__}")


def tool_keys(tools: Sequence[Mapping[str, Any]] | None, parallel_tool_calls: bool | None) -> Row:
    """The keys that every row carries because of its tools."""
    keys: Row = {} if tools is None else {"tools": [dict(tool) for tool in tools]}
    if parallel_tool_calls is not None:
        keys["parallel_tool_calls"] = parallel_tool_calls
    return keys


def export_dpo(
    pairs: Iterable[Preference | dspy.Example | Mapping[str, Any]],
    prompt: AnyPrompt | None,
    path: str | os.PathLike[str],
    *,
    base_model: str | None = None,
    dialect: str = "openai",
    on_error: OnError = "raise",
    dedupe: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    parallel_tool_calls: bool | None = None,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    both_orders: bool = False,
) -> TrainingFile:
    """Write one line for each pair of a chosen and a rejected answer to the same prompt.

    A pair is one of:

    - a `Preference`;
    - an example with the prompt's input fields and its right outputs. The rejected answer is the other label, with all
      other outputs (an explanation) the same, so that the two differ in the choice alone; with more than two labels it
      is one of the others, drawn with `seed`;
    - the same with `rejected_<output>` for the outputs that differ, such as `rejected_explanation`;
    - an example with `chosen` and `rejected`: dicts of outputs, or the answers' texts.

    Args:
        pairs: A list or any iterator, read once. With `prompt=None` each is a ready line in OpenAI's shape.
        prompt: What renders the pairs; the same object serves the tuned model. Of a signature,
            `PromptFormat(signature)`.
        path: The JSONL file; its manifest goes to `<path>.manifest.json`.
        base_model: Counts tokens with this model's table and checks against its limits; an `ft:` id counts as its base.
        dialect: `"openai"`, `"azure"`, `"together"`, `"fireworks"`, `"nebius"` or `"trl"`.
        on_error: What happens to pairs that cannot be rendered: `"raise"` lists them all and writes nothing, `"skip"`
            leaves them out and counts them in the manifest.
        dedupe: Leave out rows whose line equals an earlier one; costs about 90 bytes of memory a row.
        tools: Tool definitions that every row carries.
        parallel_tool_calls: Goes into every row that carries tools; OpenAI's default is true.
        seed: Draws the rejected label where there are several.
        tokenizer: Counts the tokens of a text, for models without a known table.
        both_orders: Of a pairwise prompt: write every pair a second time with its sides and its label exchanged, so
            that no side is right more often. An explanation that speaks of A and B is not rewritten.

    Raises:
        RowsError: With `on_error="raise"`: every pair that could not be rendered.
        EmptyDatasetError: Nothing is left to write.
        FileError: The file cannot be written.
        UsageError: An argument is not one of the accepted values.
    """
    check_given(pairs)
    prompt = given_prompt(prompt)
    progress = RowCounts(both_orders=both_orders)
    extra = tool_keys(tools, parallel_tool_calls)
    turn = _turn(prompt) if both_orders else None
    if prompt is None:
        rows = _ready_dpo_rows(pairs, extra, progress)
    else:
        rows = _dpo_rows(pairs, prompt, extra, progress, random.Random(seed), turn)
    return write_file(
        rows,
        path,
        progress=progress,
        source=pairs,
        method="dpo",
        dialect=dialect,
        base_model=base_model,
        prompt=prompt,
        seed=seed,
        on_error=on_error,
        dedupe=dedupe,
        tokenizer=tokenizer,
    )


def _dpo_rows(
    pairs: Iterable[Any],
    prompt: PromptFormat,
    extra: Row,
    progress: RowCounts,
    rng: random.Random,
    turn: Turn | None,
) -> Iterator[Row | RowError]:
    for number, pair in enumerate(pairs, start=1):
        progress.n_rows_in = number
        try:
            both = [pair] if turn is None else [pair, turn(pair)]
            rendered = [render_preference(as_preference(one, prompt, rng=rng), prompt) for one in both]
        except FinetuneError as error:
            yield row_error(error, number)
            continue
        for messages, chosen, rejected in rendered:
            yield {
                "input": {"messages": messages, **extra} if extra else {"messages": messages},
                "preferred_output": [{"role": "assistant", "content": chosen}],
                "non_preferred_output": [{"role": "assistant", "content": rejected}],
            }


def _ready_dpo_rows(pairs: Iterable[Any], extra: Row, progress: RowCounts) -> Iterator[Row | RowError]:
    for number, pair in enumerate(pairs, start=1):
        progress.n_rows_in = number
        given = pair.get("input") if isinstance(pair, Mapping) else None
        if isinstance(given, Mapping) and "preferred_output" in pair and "non_preferred_output" in pair:
            yield {**pair, "input": {**given, **extra}}
            continue
        yield RowError(
            'no "input", "preferred_output" and "non_preferred_output"',
            line=number,
            value=pair,
            remedy="with prompt=None each pair is a ready line in OpenAI's shape; give a prompt to render other fields",
        )


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
    both_orders: bool = False
    """Whether every pair is written twice, with its sides exchanged."""

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
    dialect: str,
    base_model: str | None,
    prompt: PromptFormat | None,
    seed: int | None,
    on_error: OnError,
    dedupe: bool,
    tokenizer: Tokenizer | None,
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
        both_orders=progress.both_orders,
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
        skipped.add_error(number, row_error(error, number, path))


def _nothing(n_rows_in: int, skipped: _Skipped, target: Path) -> str:
    if not n_rows_in:
        return f"nothing to export to {target}: there are no examples; check the source, or its split and filters"
    reasons = "; ".join(f"{reason} ({n})" for reason, n in skipped.reasons.items())
    who = f"all {n_rows_in} examples were" if n_rows_in > 1 else "the one example was"
    return f"nothing to export to {target}: {who} left out: {reasons}"


# From one host's format to another's.

_MAX_LEADING_ERRORS = 100
"""Maximum number of broken lines that a file may start with: beyond them it is no training file."""
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
    method = _method_of_file(path, from_)
    manifest, prompt = _provenance(path)
    progress = RowCounts()
    return write_file(
        _rows_of_file(path, from_, progress, method=method, to=to),
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


def _method_of_file(path: str | os.PathLike[str], from_: str | None) -> Method:
    """What the first line that can be read trains."""
    errors: list[RowError] = []
    for row in _rows_of_file(path, from_, RowCounts()):
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


def _rows_of_file(
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
            yield RowError(fault.message, path=progress.path, line=number, value=entry.raw[:80], remedy=fault.remedy)
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
            yield row_error(error, number, progress.path)


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
