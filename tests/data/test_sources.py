"""Sources: tables, data sets, records and standard input give the same examples as a list of dicts."""

from __future__ import annotations

import collections
import dataclasses
import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import datasets
import dspy
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

from dspy_finetune.data import iter_examples, load_examples
from dspy_finetune.data.readers import decoder_of
from dspy_finetune.errors import DataError, EmptyDatasetError, FileError, MissingExtraError, RowsError, UsageError

ROWS = [{"title": f"Title {n}", "n": n} for n in range(5)]


@dataclasses.dataclass
class Record:
    title: str
    n: int


class Model(pydantic.BaseModel):
    title: str
    n: int


Named = collections.namedtuple("Named", ["title", "n"])


@pytest.fixture
def rows_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data sets as save_to_disk and as data files, and no cache of the user's."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk("saved")
    datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk("saved_splits")
    for name in ("files", "empty", "broken"):
        Path(name).mkdir()
    Path("files/train.jsonl").write_text('{"title": "a", "n": 1}\n{"title": "b", "n": 2}\n')
    Path("files/test.jsonl").write_text('{"title": "c", "n": 3}\n')
    Path("broken/train.jsonl").write_text('{"title": \n')
    return tmp_path


def as_dicts(examples: Any) -> list[dict[str, Any]]:
    return [example.toDict() for example in examples]


@pytest.mark.parametrize(
    "source",
    [
        ROWS,
        tuple(ROWS),
        {"data": ROWS},
        [dspy.Example(row) for row in ROWS],
        [Record(**row) for row in ROWS],  # type: ignore[arg-type]  # the dict's values are of two types
        [Model(**row) for row in ROWS],  # type: ignore[arg-type]  # the dict's values are of two types
        [Named(**row) for row in ROWS],
        pd.DataFrame(ROWS),
        pl.DataFrame(ROWS),
        pl.DataFrame(ROWS).lazy(),
        pa.Table.from_pylist(ROWS),
        datasets.Dataset.from_list(ROWS),
    ],
    ids=lambda source: type(source[0] if isinstance(source, list) else source).__name__,
)
def test_every_kind_of_table_or_record_gives_the_same_examples(source: Any) -> None:
    assert as_dicts(load_examples(source)) == ROWS
    assert as_dicts(iter_examples(source, limit=2)) == ROWS[:2]


def test_a_generator_is_read_as_it_comes() -> None:
    assert as_dicts(load_examples(row for row in ROWS)) == ROWS


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.Table.from_pylist])
def test_missing_values_of_a_table_are_none(make: Any) -> None:
    frame = make([{"t": "a", "n": 1.5}, {"t": None, "n": None}])
    assert as_dicts(load_examples(frame)) == [{"t": "a", "n": 1.5}, {"t": None, "n": None}]


def test_a_table_whose_columns_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(DataError, match="more than once"):
        load_examples(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(DataError, match="not text"):
        load_examples(pd.DataFrame([[1, 2]]))
    with pytest.raises(UsageError, match="not a table"):
        load_examples(pd.Series([1]))


def test_rows_of_a_table_are_named_by_their_number() -> None:
    with pytest.raises(RowsError, match=r'row 2: field "n"'):
        load_examples(pd.DataFrame({"n": ["1", "x"]}), types={"n": int})


def test_parquet_is_read_over_several_row_groups(tmp_path: Path) -> None:
    rows = [{"n": n} for n in range(2500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=700)
    assert as_dicts(load_examples(tmp_path / "x.parquet")) == rows
    with pytest.raises(RowsError, match=r"x\.parquet:3: ") as caught:
        load_examples(tmp_path / "x.parquet", types={"n": bool})
    assert len(caught.value.errors) == 2498


@pytest.mark.parametrize(
    ("place", "split", "n_rows"),
    [
        ("saved", None, 5),
        ("hf://./saved", None, 5),
        ("hf://saved_splits", "test", 1),
        ("saved_splits", "train", 5),
        ("hf://./files", "train", 2),
        ("files", "test", 1),
    ],
)
def test_a_dataset_folder_is_read(place: str, split: str | None, n_rows: int, rows_folder: Path) -> None:
    assert len(load_examples(place, split=split)) == n_rows
    assert len(load_examples(Path(place) if "://" not in place else place, split=split, limit=1)) == 1


def test_a_dataset_with_several_splits_asks_which(rows_folder: Path) -> None:
    for source in ("saved_splits", "hf://./files", datasets.load_from_disk("saved_splits")):
        with pytest.raises(UsageError, match="has the splits train, test"):
            load_examples(source)
        with pytest.raises(UsageError, match="no split 'val'; it has train, test"):
            load_examples(source, split="val")


def test_what_is_no_dataset_is_told(rows_folder: Path) -> None:
    with pytest.raises(FileError, match="no such folder"):
        load_examples("hf://./none")
    with pytest.raises(FileError, match="data files"):
        load_examples("empty")
    with pytest.raises(UsageError, match="hf://owner/name"):
        load_examples("hf://name")
    with pytest.raises((FileError, DataError), match="broken"):
        load_examples("hf://./broken")
    with pytest.raises(UsageError, match="is a file"):
        load_examples("files/train.jsonl", split="train")


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens at the address; the `datasets` package, which would try again and again, is not asked."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(FileError, match=r"hf://owner/name: http://127.0.0.1:9 cannot be reached \(.*check the network"):
        load_examples("hf://owner/name")


def test_a_hub_whose_name_is_looked_up_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()
    monkeypatch.setattr("dspy_finetune.data.readers._PATIENCE_SECONDS", -0.9)

    def open_late(*_: Any, **__: Any) -> io.BytesIO:
        is_over.wait()
        return io.BytesIO()

    monkeypatch.setattr("urllib.request.urlopen", open_late)
    with pytest.raises(FileError, match=r"cannot be reached \(it does not answer\)"):
        load_examples("hf://owner/name")
    is_over.set()


def test_what_the_hub_says_against_a_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(FileError, match=r"cannot read hf://owner/name: Couldn't reach.*check the name, the network"):
        load_examples("hf://owner/name")


def test_a_hub_name_may_carry_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def fake(path: str, config: str | None, *, streaming: bool) -> dict[str, list[dict[str, Any]]]:
        asked.append((path, config, streaming))
        return {"train": ROWS}

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert len(load_examples("hf://owner/name/main", split="train", limit=3)) == 3
    assert asked == [("owner/name", "main", True)]


def test_without_the_package_the_pip_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "dspy-finetune\[data\]"'):
        load_examples("hf://owner/name")


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def test_standard_input_is_read_in_every_format(stdin: Any, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    for content in (b'{"a": 1}\n', b'[{"a": 1}]', b'\xef\xbb\xbf{"data": [{"a": 1}]}', b'{\n"data": [\n{"a": 1}]}'):
        stdin(content)
        assert as_dicts(load_examples("-")) == [{"a": 1}]
        assert not sys.stdin.buffer.closed
    stdin(b"a,b\n1,2\n")
    assert as_dicts(load_examples("-")) == [{"a": "1", "b": "2"}]
    stdin(b"a\n1\n")
    assert as_dicts(load_examples("-", format="csv")) == [{"a": "1"}]
    stdin((tmp_path / "x.parquet").read_bytes())
    assert as_dicts(load_examples("-")) == ROWS


def test_faults_of_standard_input_name_it(stdin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(b"")
    with pytest.raises(EmptyDatasetError, match="<stdin>"):
        load_examples("-")
    stdin(b'{"a": 1}\n{"a"\n')
    with pytest.raises(RowsError, match="<stdin>:2: not JSON"):
        load_examples("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input"):
        load_examples("-")


def test_what_is_no_row_is_named_and_can_be_skipped() -> None:
    rows: list[Any] = [{"a": 1}, "text", {2: "x"}, Record]
    examples = load_examples(rows, on_error="skip")
    assert [error.line for error in examples.skipped] == [2, 3, 4]


def test_missing_values_inside_lists_and_structs_are_none(tmp_path: Path) -> None:
    table = pa.table({"tags": [[float("nan"), 1.0], None], "about": [{"k": float("nan")}, {"k": 2.0}]})
    pq.write_table(table, tmp_path / "rows.parquet")
    frame = pd.DataFrame({"tags": [np.array([1, np.nan])], "about": [{"k": [np.float64(2), pd.NA]}]})
    assert [row.toDict() for row in load_examples(tmp_path / "rows.parquet")] == [
        {"tags": [None, 1.0], "about": {"k": None}},
        {"tags": None, "about": {"k": 2.0}},
    ]
    assert load_examples(frame)[0].toDict() == {"tags": [1.0, None], "about": {"k": [2.0, None]}}


CLASSES = datasets.Features(
    {
        "title": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["yes", "no"]),
        "topics": datasets.Sequence(datasets.ClassLabel(names=["sea", "land"])),
        "parts": [{"kind": datasets.ClassLabel(names=["head", "body"])}],
    }
)
CLASS_ROWS = [
    {"title": "Ants", "label": 0, "topics": [1], "parts": [{"kind": 1}]},
    {"title": "Bees", "label": 1, "topics": [0, 1], "parts": []},
    {"title": "Cats", "label": -1, "topics": [], "parts": [{"kind": -1}]},
]
NAMED = [
    {"title": "Ants", "label": "yes", "topics": ["land"], "parts": [{"kind": "body"}]},
    {"title": "Bees", "label": "no", "topics": ["sea", "land"], "parts": []},
    {"title": "Cats", "label": None, "topics": [], "parts": [{"kind": None}]},
]


def of_classes(path: Path, way: str) -> Any:
    """The same class labels by the ways in which a data set comes."""
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(CLASS_ROWS, features=CLASSES)
    if way == "parquet":
        made.to_parquet(path / "x.parquet")
        return path / "x.parquet"
    if way == "folder":
        made.save_to_disk(path / "x")
        return path / "x"
    ways = {"dataset": made, "stream": made.to_iterable_dataset(), "arrow table": made.data.table}
    return ways[way] if way in ways else made.with_format(way)


WAYS = ["dataset", "stream", "arrow table", "parquet", "folder", "pandas", "numpy", "torch", "arrow", "polars"]


@pytest.mark.parametrize("way", WAYS)
def test_class_labels_are_their_names_and_no_label_is_missing(tmp_path: Path, way: str) -> None:
    """Hugging Face stores numbers and keeps the names beside them; the number 0 may well mean yes."""
    found = load_examples(of_classes(tmp_path, way))
    assert [dict(one.items()) for one in found] == NAMED
    labelled = load_examples(of_classes(tmp_path, way), types={"label": bool}, on_error="skip")
    assert [one.label for one in labelled] == [True, False]
    assert "missing (null)" in str(labelled.skipped[0])
    chosen = load_examples(of_classes(tmp_path, way), types={"label": Literal["yes", "no"]}, limit=2)
    assert [one.label for one in chosen] == ["yes", "no"]


def test_a_sequence_of_objects_stored_as_lists_has_its_names_too() -> None:
    """As older releases of `datasets` describe and store it."""
    decode = decoder_of({"feature": {"kind": {"names": ["head", "body"], "_type": "ClassLabel"}}, "_type": "Sequence"})
    assert decode is not None
    assert decode({"kind": [0, -1, 1], "n": [1, 2, 3]}) == {"kind": ["head", None, "body"], "n": [1, 2, 3]}
    assert decode([{"kind": 1}]) == [{"kind": "body"}]
    assert decoder_of({"title": {"dtype": "string", "_type": "Value"}}) is None


def test_a_transform_of_the_users_own_is_kept() -> None:
    made = datasets.Dataset.from_list(CLASS_ROWS, features=CLASSES)
    loud = made.with_transform(lambda batch: {"title": [title.upper() for title in batch["title"]]})
    assert [one.title for one in load_examples(loud)] == ["ANTS", "BEES", "CATS"]


def categories(library: str) -> Any:
    if library == "pandas":
        return pd.DataFrame({"label": pd.Categorical(["yes", None, "no"], categories=["no", "yes"])})
    if library == "polars":
        return pl.DataFrame({"label": ["yes", None, "no"]}, schema={"label": pl.Categorical()})
    codes = pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.int8()), pa.array(["no", "yes"]))
    return pa.table({"label": codes})


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "parquet"])
def test_categories_are_their_values(library: str, tmp_path: Path) -> None:
    source = categories(library if library != "parquet" else "pyarrow")
    if library == "parquet":
        pq.write_table(source, tmp_path / "x.parquet")
        source = tmp_path / "x.parquet"
    assert [one.label for one in load_examples(source)] == ["yes", None, "no"]
    assert [one.label for one in load_examples(source, types={"label": bool}, on_error="skip")] == [True, False]


def frame() -> pd.DataFrame:
    return pd.DataFrame({"text": ["a", "b"], "score": np.array([3.8, 0.1], np.float32)})


@pytest.mark.parametrize(
    "source",
    [
        frame(),
        pl.from_pandas(frame()),
        pa.Table.from_pandas(frame()),
        datasets.Dataset.from_pandas(frame()),
        [{"text": "a", "score": np.float32(3.8)}, {"text": "b", "score": np.float32(0.1)}],
    ],
    ids=["pandas", "polars", "arrow", "datasets", "numpy"],
)
def test_float32_has_the_digits_that_were_written(source: Any) -> None:
    """As 3.799999952316284, which it is to a float64, it was learned as an answer's format."""
    assert [row.score for row in load_examples(source, inputs=["text"])] == [3.8, 0.1]


def test_float32_in_parquet_has_the_digits_that_were_written(tmp_path: Path) -> None:
    """Of the STS benchmark's scores, for one."""
    frame().to_parquet(tmp_path / "rows.parquet")
    assert [row.score for row in load_examples(tmp_path / "rows.parquet", inputs=["text"])] == [3.8, 0.1]
