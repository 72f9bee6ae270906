"""Loading: the same rows from every kind of source, names and marks as asked for, wrong arguments told."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_finetune.data import iter_examples, load_examples
from dspy_finetune.errors import EmptyDatasetError, FileError, RowsError, UsageError

ROWS = [{"title": "Ants", "is_favorite": True}, {"title": "Bees, 2", "is_favorite": False}]
# csv cannot tell a lone CR inside a cell from a line end on reading back in text mode, and NUL is refused before 3.11.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)


def as_dicts(examples: Any) -> list[dict[str, Any]]:
    return [example.toDict() for example in examples]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries({"t": TEXT, "n": st.integers() | st.none() | st.booleans()}), min_size=1, max_size=5
    )
)
def test_json_and_jsonl_give_back_what_was_written(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    for ascii_only in (True, False):
        lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
        (folder / "x.jsonl").write_bytes("\r\n\n".join(lines).encode())
        (folder / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
        (folder / "x.json").write_bytes(json.dumps(rows, ensure_ascii=ascii_only, indent=2).encode())
        (folder / "data.json").write_bytes(json.dumps({"about": {"data": 1}, "data": rows, "n": 2}).encode())
        for name in ("x.jsonl", "bom.jsonl", "x.json", "data.json"):
            assert as_dicts(load_examples(folder / name)) == rows


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), mark=st.sampled_from([",", ";", "\t"]))
def test_csv_gives_back_what_was_written_with_the_right_lines(
    rows: list[tuple[str, str]], mark: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / ("x.tsv" if mark == "\t" else "x.csv")
    with open(path, "w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream, delimiter=mark, quoting=csv.QUOTE_ALL)
        writer.writerows([("a", "b"), *rows])
        stream.write(f"one{mark}two{mark}three\n")
    text = path.read_bytes().decode("utf-8-sig")
    stream_of = iter_examples(path, on_error="skip")
    assert [(row.a, row.b) for row in stream_of] == rows
    assert [error.line for error in stream_of.skipped] == [text[: text.rindex("one")].count("\n") + 1]


def test_streaming_and_loading_agree_and_count(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n[]\n")
    stream = iter_examples(path, on_error="skip")
    loaded = load_examples(path, on_error="skip")
    assert list(stream) == loaded
    assert (stream.n_examples, stream.n_skipped, len(loaded.skipped)) == (2, 1, 1)
    assert stream.summary() == loaded.summary()
    assert loaded.source == str(path)
    assert pickle.loads(pickle.dumps(loaded)).summary() == loaded.summary()


def test_no_example_follows_a_bad_row_when_errors_are_raised() -> None:
    stream = iter_examples([{"n": 1}, {"n": "x"}, {"n": 2}, {"n": "y"}], types={"n": int})
    assert next(stream).n == 1
    with pytest.raises(RowsError) as caught:
        next(stream)
    assert [error.line for error in caught.value.errors] == [2, 4]


def test_a_json_file_of_lines_is_read_as_lines(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert [row.a for row in load_examples(tmp_path / "x.json")] == [1, 2]


@pytest.mark.parametrize("name", ["rows", "rows.txt", "rows.dat"])
def test_the_format_is_told_by_the_first_bytes_or_given(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for text in (json.dumps(ROWS), json.dumps({"data": ROWS}, indent=1), "\n".join(map(json.dumps, ROWS))):
        path.write_text(text)
        assert as_dicts(load_examples(path)) == ROWS
    path.write_text("title\nAnts\n")
    assert as_dicts(load_examples(path, format="csv")) == [{"title": "Ants"}]


def test_inputs_are_marked_as_asked_or_as_they_came() -> None:
    assert load_examples(ROWS, inputs=["title"])[0].inputs().toDict() == {"title": "Ants"}
    assert load_examples(ROWS, inputs="title")[0].labels().toDict() == {"is_favorite": True}
    marked = [dspy.Example(headline="x", y=1).with_inputs("headline")]
    assert load_examples(marked, rename={"headline": "title"})[0].inputs().toDict() == {"title": "x"}
    with pytest.raises(ValueError, match="Inputs have not been set"):
        load_examples(ROWS)[0].inputs()


def test_loading_never_changes_what_it_was_given() -> None:
    rows = [{"n": "1"}]
    load_examples(rows, types={"n": int}, rename={"n": "n"})
    assert rows == [{"n": "1"}]


def test_names_can_be_exchanged_but_not_doubled() -> None:
    assert load_examples([{"a": 1, "b": 2}], rename={"a": "b", "b": "a"})[0].toDict() == {"b": 1, "a": 2}
    with pytest.raises(UsageError, match="'a' cannot be renamed to 'b', which is there already"):
        load_examples([{"a": 1, "b": 2}] * 3, rename={"a": "b"})
    with pytest.raises(RowsError, match=r"row 2: .*which is there already"):
        load_examples([{"a": 1}, {"a": 1, "b": 2}], rename={"a": "b"})
    with pytest.raises(UsageError, match="more than one column"):
        load_examples([{"a": 1, "b": 2}], rename={"a": "c", "b": "c"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inputs": ["titel"]}, r"no column 'titel'; it has: title, is_favorite; did you mean \"title\""),
        ({"types": {"Is_Favourite": bool}}, r"did you mean \"is_favorite\""),
        ({"rename": {"headline": "title"}}, r"no column 'headline'.*perhaps {\"title\": \"headline\"}"),
        ({"limit": 0}, "limit=0"),
        ({"limit": True}, "limit=True"),
        ({"on_error": "ignore"}, "raise.*skip"),
        ({"inputs": [1]}, "does not hold field names"),
        ({"signature": "title"}, "not a dspy.Signature"),
        ({"format": "csv"}, "is for files"),
        ({"split": "train"}, "splits"),
        ({"rename": ["a"]}, "not a mapping"),
    ],
)
@pytest.mark.parametrize("how", ["list", "csv"])
def test_a_wrong_argument_is_told_with_what_is_accepted(
    options: dict[str, Any], said: str, how: str, tmp_path: Path
) -> None:
    source: Any = ROWS
    if how == "csv" and "format" not in options:
        source = tmp_path / "x.csv"
        source.write_text("title,is_favorite\na,true\n")
    with pytest.raises(UsageError, match=said):
        load_examples(source, **options)


def test_a_column_that_only_some_rows_lack_is_a_matter_of_those_rows() -> None:
    with pytest.raises(RowsError, match='row 1: field "title": missing; it has: n') as caught:
        load_examples([{"n": 1}, {"title": "a"}], inputs=["title"])
    assert len(caught.value.errors) == 1


def test_missing_files_are_told_before_the_first_row_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        iter_examples(tmp_path / "none.jsonl")
    with pytest.raises(FileError, match="check the path"):
        iter_examples("nul\x00byte")


def test_a_limit_stops_before_later_rows_are_read() -> None:
    def rows() -> Any:
        yield {"a": 1}
        raise AssertionError("read too far")

    assert len(load_examples(rows(), limit=1)) == 1


def test_when_all_rows_are_skipped_the_data_set_is_empty() -> None:
    with pytest.raises(EmptyDatasetError, match="all 2 rows were skipped"):
        load_examples([{"a": "x"}, {"a": "y"}], types={"a": int}, on_error="skip")


def test_a_file_of_nothing_but_bad_rows_stops_after_ten_thousand() -> None:
    with pytest.raises(RowsError) as caught:
        load_examples(({"a": "x"} for _ in range(20_000)), types={"a": int})
    assert len(caught.value.errors) == 10_000
    assert str(caught.value).startswith("10000 bad rows, where reading stopped: ")


@pytest.mark.parametrize("source", [None, 5, b"x", {"title": ["a"]}, dspy.Example(a=1)])
def test_what_is_no_source_is_refused(source: object) -> None:
    with pytest.raises(UsageError, match="cannot read examples from"):
        load_examples(source)


@pytest.mark.parametrize(("bad", "escape"), [("\x00", r"\u0000"), ("\x1b", r"\u001b")])
def test_a_raw_control_character_is_named_with_its_escape(tmp_path: Path, bad: str, escape: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"title": "a{bad}b"}}\n')
    with pytest.raises(RowsError) as caught:
        load_examples(path)
    assert "not JSON (Invalid control character at column 13); write" in str(caught.value)
    assert f"as an escape such as {escape}" in str(caught.value)


@pytest.mark.parametrize(("place", "says"), [("", "the path is empty"), ("https://a.b/rows.csv", "download the file")])
def test_what_is_no_path_is_told(place: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_examples(place)


def test_a_mark_between_joined_files_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}\n')
    with pytest.raises(RowsError, match=r"rows.jsonl:2: .* a byte-order mark stands before the row"):
        load_examples(path)


@pytest.mark.parametrize("codec", ["utf-16", "utf-32", "utf-16-be"])
def test_a_table_in_excels_unicode_text_is_read(codec: str, tmp_path: Path) -> None:
    """Tabs, UTF-16 and a byte-order mark; a line end in a cell, which is no end of a row, and none of Unicode's."""
    text = 'title\tn\r\n"Möwen\nund Meer"\t1\r\na\u2028b\t2\r\n'
    mark = b"\xfe\xff" if codec == "utf-16-be" else b""
    path = tmp_path / "x.txt.csv"
    path.write_bytes(mark + text.encode(codec))
    read = load_examples(path, inputs=["title"], types={"n": int})
    assert [(row.title, row.n) for row in read] == [("Möwen\nund Meer", 1), ("a\u2028b", 2)]


@pytest.mark.parametrize(
    "content",
    [
        b"sep=;\r\ntitle;n\r\nAnts, bees;1\r\n",
        b"\xef\xbb\xbfsep=;\r\ntitle;n\r\nAnts, bees;1\r\n",
        b'"sep=|"\ntitle|n\nAnts, bees|1\n',
        b"title|n\nAnts, bees|1\n",
        b"title;n\nAnts, bees;1\n",
        b"title\tn\nAnts, bees\t1\n",
        b'title,n,,\n"Ants, bees",1,,\n',
        b'title,n\n"Ants, bees",1,\n',
        b"title;n;\nAnts, bees;1;\n",
        b'"title, short";n\nAnts, bees;1\n',
    ],
)
@pytest.mark.parametrize("name", ["x.csv", "x"])
def test_spreadsheets_write_csv_in_many_ways(content: bytes, name: str, tmp_path: Path) -> None:
    """Excel's first line `sep=;`, semicolons, tabs, bars, delimiters at the end of every line."""
    path = tmp_path / name
    path.write_bytes(content)
    (row,) = load_examples(path)
    assert list(row.toDict().values()) == ["Ants, bees", "1"]
    assert all("," not in column or column == "title, short" for column in row.keys())  # noqa: SIM118 -- no dict


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (
            "id;text\n1;'bees; wasps'\n2;'it''s a \"gate\"'\r\n\n3;'two\nlines'\n",
            ["bees; wasps", 'it\'s a "gate"', "two\nlines"],
        ),
        ("'id','text'\n1,'bees, wasps'\n", ["bees, wasps"]),
        ("id,text\n1,'Twas\n2,'bees'\n3,gates\n", ["'Twas", "'bees'", "gates"]),
        ("id,text\n1,\"'a', b\"\n2,\"'c'\"\n3,\"'d'\"\n", ["'a', b", "'c'", "'d'"]),
    ],
)
def test_single_quotes_around_cells_are_read_where_a_column_or_the_header_has_them_throughout(
    content: str, rows: list[str], tmp_path: Path
) -> None:
    """Else an apostrophe is the text's own: at the beginning of one cell or around it, or inside double quotes."""
    (tmp_path / "x.csv").write_text(content, newline="")
    assert [row["text"] for row in as_dicts(load_examples(tmp_path / "x.csv"))] == rows


def test_the_delimiter_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("title^n\nAnts, bees^1\n")
    assert as_dicts(load_examples(path, delimiter="^")) == [{"title": "Ants, bees", "n": "1"}]
    assert as_dicts(iter_examples(path, delimiter="^", format="csv")) == [{"title": "Ants, bees", "n": "1"}]
    for wrong in ("", "::", '"', "\n"):
        with pytest.raises(UsageError, match="the one character between cells"):
            load_examples(path, delimiter=wrong)
    with pytest.raises(UsageError, match="is for files"):
        load_examples([{"n": 1}], delimiter=";")
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"n": 1}\n')
    with pytest.raises(UsageError, match="is for CSV files"):
        load_examples(lines, delimiter=";", format="jsonl")


def test_booleans_and_labels_as_pandas_writes_them(tmp_path: Path) -> None:
    """A column of 1 and 0 with a gap becomes floats in pandas, and so 1.0 and 0.0 in its CSV."""
    path = tmp_path / "x.csv"
    path.write_text("liked,stars\n1.0,3.0\n0.0,1.0\n")
    found = load_examples(path, types={"liked": bool, "stars": Literal[1, 3]})
    assert [(one.liked, one.stars) for one in found] == [(True, 3), (False, 1)]


def test_quotes_of_the_text_itself_stand_in_a_table_between_tabs(tmp_path: Path) -> None:
    """Research data is written without quoting; Excel and pandas quote. Both are read, line by line."""
    lines = [
        "text\tlabel",
        '"Run," he said\t1',
        '"never closed\t0',
        'a "word" within\t1',
        '"quoted ""twice"" by Excel"\t0',
        '"with a\ttab"\t1',
        '"over\nlines"\t0',
        '"\t1',
        'x\t"y" z',
        'over\t"two\nlines"',
        'last\t"one',
    ]
    (tmp_path / "x.tsv").write_text("\n".join(lines) + "\n")
    told = [(row.text, row.label) for row in load_examples(tmp_path / "x.tsv")]
    assert told == [
        ('"Run," he said', "1"),
        ('"never closed', "0"),
        ('a "word" within', "1"),
        ('quoted "twice" by Excel', "0"),
        ("with a\ttab", "1"),
        ("over\nlines", "0"),
        ('"', "1"),
        ("x", '"y" z'),
        ("over", "two\nlines"),
        ("last", '"one'),
    ]
