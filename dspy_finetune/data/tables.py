"""tables.py: Parquet files, data frames, Arrow tables and Hugging Face datasets as (row number, row).

In: a path, a frame, or a data set's name. Out: an iterator of (row number from 1, dict of Python values); missing
values (NaN, NaT, NA, null) are None. Parquet is read one batch of a row group at a time; a data set from the hub is
streamed. pyarrow, pandas and datasets are imported only when such a source is given.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dspy_finetune._optional import require
from dspy_finetune.data.encoding import Row
from dspy_finetune.errors import DataError, FileError, UsageError

_BATCH_ROWS = 1024
_PATIENCE_SECONDS = 8.0
"""How long the hub may take to answer."""


def library_of(source: object) -> str:
    """The top-level package that defines the source's class, such as "pandas"; no import needed."""
    return type(source).__module__.partition(".")[0]


def check_columns(columns: Sequence[Any], name: str) -> None:
    """Refuse column names that are not text, or that stand twice. Raises DataError."""
    strange = [column for column in columns if not isinstance(column, str)]
    if strange:
        raise DataError(
            f"{name}: the column name {strange[0]!r} is not text; rename the columns, such as frame.columns = [...]"
        )
    twice = sorted({column for column in columns if list(columns).count(column) > 1})
    if twice:
        raise DataError(
            f"{name}: the columns {', '.join(map(repr, twice))} stand there more than once; rename or drop them"
        )


def read_frame(frame: Any, name: str) -> Iterator[Row]:
    """Rows of a pandas or polars DataFrame, a polars LazyFrame, or a pyarrow Table."""
    library = library_of(frame)
    if library == "polars" and hasattr(frame, "collect"):
        frame = frame.collect()
    if not hasattr(frame, "columns"):
        raise UsageError(
            f"a {type(frame).__name__} of {library} is not a table; give a DataFrame, such as series.to_frame()"
        )
    check_columns(frame.column_names if library == "pyarrow" else list(frame.columns), name)
    if library == "pandas":
        rows: Iterable[dict[str, Any]] = _pandas_rows(frame)
    elif library == "polars":
        rows = frame.iter_rows(named=True)
    else:
        rows = (row for batch in frame.to_batches(_BATCH_ROWS) for row in batch.to_pylist())
    for number, row in enumerate(rows, start=1):
        yield number, {column: plain_value(value) for column, value in row.items()}


def _pandas_rows(frame: Any) -> Iterator[dict[str, Any]]:
    # By slices: to_dict on the whole frame would hold every row twice.
    for start in range(0, len(frame), _BATCH_ROWS):
        yield from frame.iloc[start : start + _BATCH_ROWS].to_dict("records")


def plain_value(value: Any) -> Any:
    """The value without numpy, and None for what stands for "missing", inside lists and dicts as well."""
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, dict):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if library_of(value) == "numpy":
        return plain_value(value.tolist())
    return None if isinstance(value, float) and value != value else value


def read_parquet(stream: BinaryIO, name: str) -> Iterator[Row]:
    """Rows of a Parquet file, batch by batch. Raises DataError where the file is broken."""
    arrow = require("pyarrow", "data", "reading Parquet")
    parquet = require("pyarrow.parquet", "data", "reading Parquet")
    try:
        file = parquet.ParquetFile(stream)
        check_columns(file.schema_arrow.names, name)
        number = 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, {column: plain_value(value) for column, value in row.items()}
    except (arrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: not a Parquet file that can be read ({reason}); write it again") from error


def read_dataset(source: Any, name: str, split: str | None) -> Iterator[Row]:
    """Rows of an object of the `datasets` package; of a DatasetDict, the split that is asked for."""
    table = pick_split(source, name, split)
    for number, row in enumerate(table, start=1):
        yield number, {column: plain_value(value) for column, value in row.items()}


def guarded_rows(rows: Iterator[Row], name: str) -> Iterator[Row]:
    """The rows, with what the `datasets` package raises on a broken file told in one line. Raises DataError."""
    datasets = require("datasets", "data", "reading a Hugging Face dataset")
    arrow = require("pyarrow", "data", "reading a Hugging Face dataset")
    try:
        yield from rows
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        remedy = "load its files one by one to see which row is wrong"
        raise DataError(f"cannot read the rows of {name}: {reason}; {remedy}") from error


def pick_split(source: Any, name: str, split: str | None) -> Any:
    """The one table that is meant. Raises UsageError where none is named among several, or a wrong one."""
    if not isinstance(source, dict):
        own = str(getattr(source, "split", None) or "")
        if split is not None and split != own:
            raise UsageError(
                f"{name} has {f'only the split {own!r}' if own else 'no splits'}; leave split={split!r} out"
            )
        return source
    names = ", ".join(source)
    if split is None and len(source) == 1:
        return next(iter(source.values()))
    if split is None:
        raise UsageError(f'{name} has the splits {names}; say which one, such as split="{next(iter(source), "train")}"')
    if split not in source:
        raise UsageError(f"{name} has no split {split!r}; it has {names} (for a part of one, use limit=)")
    return source[split]


def open_dataset(place: str, name: str, split: str | None) -> Any:
    """Open `owner/name`, `owner/name/config`, or a folder, through the `datasets` package.

    A folder is either what `save_to_disk` wrote, or one that holds data files (train.jsonl, test.csv, data/*.parquet).

    Raises:
        FileError: There is no such folder, nothing to read in it, or the hub cannot be reached.
        MissingExtraError: The `datasets` package is not installed.
    """
    datasets = require("datasets", "data", "reading a Hugging Face dataset")
    is_path = place.startswith((".", "/", "~")) or os.path.isdir(place)
    folder = Path(place).expanduser()
    if is_path and not folder.is_dir():
        raise FileError(f"cannot read {name}: no such folder; check the path", path=str(folder))
    try:
        with _quiet(datasets):
            path, config = (str(folder.resolve()), None) if is_path else _hub_name(place, name)
            if is_path and any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
                return pick_split(datasets.load_from_disk(str(folder)), name, split)
            if not is_path:
                _check_hub(name)
            return pick_split(datasets.load_dataset(path, config, streaming=True), name, split)
    except (UsageError, FileError):
        raise
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        remedy = (
            "put data files (train.jsonl, test.csv ...) in it"
            if is_path
            else "check the name, the network and HF_TOKEN"
        )
        raise FileError(f"cannot read {name}: {reason}; {remedy}", path=place) from error


def _check_hub(name: str) -> None:
    """See whether the hub answers at all; the `datasets` package tries for more than a minute to find out.

    Raises:
        FileError: It does not.
    """
    import huggingface_hub.constants as hub  # lazy: it comes with the `datasets` package

    if hub.HF_HUB_OFFLINE:  # then only what is in the cache is read
        return
    problems: list[str] = []
    # In a thread: looking up a host's name has no timeout of its own.
    asked = threading.Thread(target=_ask, args=(hub.ENDPOINT, problems), daemon=True)
    asked.start()
    asked.join(_PATIENCE_SECONDS + 1)
    if asked.is_alive():
        problems.append("it does not answer")
    if problems:
        raise FileError(
            f"cannot read {name}: {hub.ENDPOINT} cannot be reached ({problems[0]}); check the network, or set "
            "HF_HUB_OFFLINE=1 to read a copy from the cache, or give a local folder",
            path=name,
        )


def _ask(url: str, problems: list[str]) -> None:
    """Add to the problems why nobody answers at an address. An answer of any kind is none."""
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE_SECONDS):
            pass
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        # A certificate that Python does not know may be known to the package that asks next.
        if not isinstance(reason, ssl.SSLError):
            problems.append(" ".join(str(reason).split())[:200] or type(reason).__name__)


def _hub_name(place: str, name: str) -> tuple[str, str | None]:
    parts = place.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(
            f"{name} is not a data set's name; write hf://owner/name, hf://owner/name/config or hf://./folder"
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No progress bars of another library in the middle of ours."""
    was_on = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            datasets.utils.logging.enable_progress_bar()
