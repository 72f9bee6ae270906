"""Files, tables, Hugging Face datasets -> dspy.Example.

In: any source of rows, and what is wanted of its fields: names, types, which are inputs. Out: examples -- all at once
(`load_examples`) or one by one (`iter_examples`). No row is dropped silently: a bad one is named by file and line,
with all the others, in one RowsError; or, on request, skipped, counted, kept and shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import dspy

from dspy_finetune.data.fields import RowPlan
from dspy_finetune.data.readers import Format, Source, open_source
from dspy_finetune.errors import EmptyDatasetError, RowError, RowsError, UsageError
from dspy_finetune.values import DecimalMark

OnError = Literal["raise", "skip"]

MAX_LISTED = 10_000
"""Bad rows that are listed before reading stops: beyond that, the file is wrong rather than its rows."""


class Examples(list[dspy.Example]):
    """A list of examples that knows where they came from and what was left out."""

    def __init__(
        self, examples: Iterable[dspy.Example] = (), *, source: str = "", skipped: Sequence[RowError] = ()
    ) -> None:
        super().__init__(examples)
        self.source = source
        """The path, "<stdin>", the data set's name, or the kind of object."""
        self.skipped = list(skipped)
        """Why each row that was left out is bad, in the order of the rows."""

    def summary(self, *, shown: int = 10) -> str:
        """A few lines for people: how many rows were loaded, how many skipped, and why.

        >>> print(Examples([dspy.Example(title="a")], source="titles.csv").summary())
        titles.csv: 1 example loaded, 0 rows skipped
        """
        return _summary(self.source, len(self), len(self.skipped), self.skipped, shown)


class ExampleStream(Iterator[dspy.Example]):
    """Examples one by one, in the memory of one; what `iter_examples` returns.

    With `on_error="raise"`, no example follows a bad row: the stream reads on to list the other bad rows, then raises.
    """

    def __init__(self, source: Source, plan: RowPlan, *, limit: int | None, on_error: OnError) -> None:
        self.source = source.name
        """The path, "<stdin>", the data set's name, or the kind of object."""
        self.skipped: list[RowError] = []
        """Why rows were left out: the first `max_kept` of them."""
        self.max_kept: int | None = MAX_LISTED
        """How many reasons are kept; None keeps all."""
        self.n_skipped = 0
        """How many rows were left out so far."""
        self.n_examples = 0
        """How many examples were given so far."""
        self._rows = self._read(source, plan, limit, on_error)

    def __iter__(self) -> ExampleStream:
        return self

    def __next__(self) -> dspy.Example:
        return next(self._rows)

    def summary(self, *, shown: int = 10) -> str:
        """A few lines for people: how many rows were given so far, how many skipped, and why."""
        return _summary(self.source, self.n_examples, self.n_skipped, self.skipped, shown)

    def _read(self, source: Source, plan: RowPlan, limit: int | None, on_error: OnError) -> Iterator[dspy.Example]:
        for number, row in source.rows:
            made = plan.example(row, source.path, number)
            if isinstance(made, RowError):
                self.n_skipped += 1
                if self.max_kept is None or len(self.skipped) < self.max_kept:
                    self.skipped.append(made)
                if on_error == "raise" and self.n_skipped == MAX_LISTED:
                    break
            elif not (self.skipped and on_error == "raise"):
                self.n_examples += 1
                yield made
                if self.n_examples == limit:
                    break
        plan.check_columns(self.source)
        if self.skipped and on_error == "raise":
            raise RowsError(self.skipped, is_cut=self.n_skipped == MAX_LISTED)
        if not self.n_examples and self.n_skipped:
            raise EmptyDatasetError(
                f"{self.source}: all {self.n_skipped} rows were skipped; the first: {self.skipped[0]}"
            )
        if not self.n_examples:
            raise EmptyDatasetError(f"{self.source} holds no rows; there is nothing to work with")


def load_examples(
    source: Any,
    *,
    inputs: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    types: Mapping[str, Any] | None = None,
    signature: type[dspy.Signature] | str | None = None,
    format: Format | None = None,
    delimiter: str | None = None,
    decimal: DecimalMark = ".",
    split: str | None = None,
    limit: int | None = None,
    on_error: OnError = "raise",
) -> Examples:
    """Load all rows of a source as `dspy.Example`s.

    >>> rows = [{"headline": "Ants farm fungi", "liked": "yes"}]
    >>> load_examples(rows, rename={"headline": "title"}, types={"liked": bool})
    [Example({'title': 'Ants farm fungi', 'liked': True}) (input_keys=None)]

    Args:
        source: A path (.json, .jsonl, .csv, .tsv, .parquet; others by their first bytes), "-" for standard input,
            "hf://owner/name" or a dataset folder, a pandas or polars DataFrame, a pyarrow Table, a `datasets`
            object, or any iterable of dicts, dspy.Examples, pydantic models, dataclasses or named tuples.
        inputs: Names of the fields to mark as inputs. None takes the signature's inputs; without a signature, examples
            keep the marks they came with, and other rows get none.
        rename: From the name in the source to the name wanted: {"headline": "title"}. Applied before all else.
        types: What fields hold: bool, int, float, str, a Literal, an Enum, or one of these or None. Each value is
            read as that type ("$1,199.99" as a number, "yes" as a boolean) or its row is bad. Overrides the
            signature's types.
        signature: A dspy.Signature or its short form ("title -> is_favorite: bool"): gives types, inputs, and the
            fields that every row must have.
        format: "json", "jsonl", "csv", "tsv" or "parquet", where the file's name does not tell.
        delimiter: The character between the cells of a CSV file; None reads it off the first line.
        decimal: What stands before the decimals in fields of the type float or int: "," reads "1.199,99 €" as
            1199.99.
        split: For data sets with several splits: which one.
        limit: Stop after this many examples; None reads all. Rows after the limit are not looked at.
        on_error: "raise" lists every bad row in one RowsError; "skip" leaves them out and keeps why in `.skipped`.

    Raises:
        RowsError: Rows are bad (on_error="raise"); `.errors` has path, line, field, value and remedy of each.
        EmptyDatasetError: There is no row, or none is left.
        FileError: A file or folder is missing or cannot be read.
        UsageError: An argument is wrong, such as a column that no row has.
        DataError: The whole file is wrong: its encoding, its header, its format.
    """
    stream = iter_examples(
        source,
        inputs=inputs,
        rename=rename,
        types=types,
        signature=signature,
        format=format,
        delimiter=delimiter,
        decimal=decimal,
        split=split,
        limit=limit,
        on_error=on_error,
    )
    stream.max_kept = None  # a list holds all rows; it can hold what was wrong with the others
    return Examples(stream, source=stream.source, skipped=stream.skipped)


def iter_examples(
    source: Any,
    *,
    inputs: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    types: Mapping[str, Any] | None = None,
    signature: type[dspy.Signature] | str | None = None,
    format: Format | None = None,
    delimiter: str | None = None,
    decimal: DecimalMark = ".",
    split: str | None = None,
    limit: int | None = None,
    on_error: OnError = "raise",
) -> ExampleStream:
    """The same as `load_examples`, one example at a time, in memory that does not grow with the rows.

    Arguments and files are checked at once; rows when they are asked for. A JSON file (not JSONL) is held whole.

    >>> stream = iter_examples([{"n": "1"}, {"n": "many"}], types={"n": int}, on_error="skip")
    >>> [example.n for example in stream], stream.n_skipped
    ([1], 1)
    """
    plan = RowPlan(inputs=inputs, rename=rename, types=types, signature=signature, decimal=decimal)
    _check_options(limit, on_error)
    opened = open_source(source, format=format, split=split, delimiter=delimiter)
    return ExampleStream(opened, plan, limit=limit, on_error=on_error)


def _check_options(limit: int | None, on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise UsageError(f'on_error={on_error!r} is not known; use "raise" or "skip"')
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise UsageError(f"limit={limit!r} is not a count of rows; use a whole number from 1, or None for all")


def _summary(source: str, n_examples: int, n_skipped: int, skipped: Sequence[RowError], shown: int) -> str:
    head = f"{source}: {n_examples} example{'' if n_examples == 1 else 's'} loaded"
    lines = [f"{head}, {n_skipped} row{'' if n_skipped == 1 else 's'} skipped"]
    lines += [f"  {error}" for error in skipped[:shown]]
    if n_skipped > shown:
        lines.append(f"  ... and {n_skipped - shown} more")
    return "\n".join(lines)
