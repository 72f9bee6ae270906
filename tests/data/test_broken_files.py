"""Every broken file gives its own message: file and line, what was found, what to do; and no error of another kind."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dspy_finetune as ft
from dspy_finetune.data import load_examples
from dspy_finetune.errors import DataError, EmptyDatasetError, FinetuneError, RowError, RowsError

JSONL = b'{"title": "a", "is_favorite": true}\n'

BROKEN: dict[str, tuple[str, bytes, str]] = {
    # fault: (file name, its bytes, what the message must say)
    "latin1_in_jsonl": (
        "x.jsonl",
        JSONL + b'{"title": "caf\xe9"}\n',
        "x.jsonl:2: not UTF-8: byte 0xe9 at byte offset 50",
    ),
    "latin1_after_bom": (
        "x.jsonl",
        b"\xef\xbb\xbf" + JSONL + b'{"t": "\xe9"}\n',
        "x.jsonl:2: not UTF-8: byte 0xe9 at byte offset 46",
    ),
    "latin1_in_json": (
        "x.json",
        b'[{"title": "a"},\n {"title": "\xe9"}]',
        "x.json:2: not UTF-8: byte 0xe9 at byte offset 29",
    ),
    "latin1_in_csv": ("x.csv", b"title,n\na,1\n\xe9,2\n", "x.csv:3: not UTF-8: byte 0xe9 at byte offset 12"),
    "latin1_in_csv_header": ("x.csv", b"titl\xe9,n\na,1\n", "x.csv:1: not UTF-8: byte 0xe9 at byte offset 4"),
    "utf16_with_bom": ("x.jsonl", JSONL.decode().encode("utf-16"), "x.jsonl:1: the file is UTF-16"),
    "utf16_without_bom": (
        "x.jsonl",
        JSONL.decode().encode("utf-16-le"),
        "looks like UTF-16 (zero byte at byte offset 1)",
    ),
    "utf16_big_endian_csv": (
        "x.csv",
        "title,n\na,1\n".encode("utf-16-be"),
        "looks like UTF-16 (zero byte at byte offset 0)",
    ),
    "utf16_csv_cut_off": ("x.csv", "title,n\na,1\n".encode("utf-16")[:-1], "x.csv:2: not UTF-16 all the way"),
    "utf32": ("x.json", "[]".encode("utf-32"), "the file is UTF-32"),
    "gzip": ("x.jsonl", b"\x1f\x8b\x08\x00", "gzip file; gunzip it first"),
    "excel": ("x.csv", b"PK\x03\x04rest", "zip or xlsx"),
    "jsonl_broken_line": ("x.jsonl", JSONL + b'{"title": \n', "x.jsonl:2: not JSON (Expecting value"),
    "jsonl_single_quotes": ("x.jsonl", b"{'title': 'a'}\n", "single quotes; write the row with json.dumps"),
    "jsonl_pretty_printed": ("x.jsonl", b'{\n  "title": "a"\n}\n', "JSON over several lines, not JSONL"),
    "jsonl_is_one_list": ("x.jsonl", b'[{"title": "a"}]\n', 'give format="json"'),
    "jsonl_number": ("x.jsonl", b"5\n", "the row is a number, not an object"),
    "jsonl_nan": ("x.jsonl", b'{"title": NaN}\n', "NaN is not JSON"),
    "jsonl_double_key": ("x.jsonl", b'{"title": "a", "title": "b"}\n', 'the key "title" stands twice'),
    "jsonl_half_character": ("x.jsonl", b'{"title": "\\ud83d"}\n', "half a character"),
    "jsonl_deep": ("x.jsonl", b"[" * 100_000 + b"\n", "nested too deeply"),
    "jsonl_cr_line_ends": ("x.jsonl", b'{"a": 1}\r{"a": 2}\r', "CR alone"),
    "json_trailing_comma": ("x.json", b'[{"a": 1},\n]', "x.json:2: not JSON (a comma before ])"),
    "json_cut_off": ("x.json", b'[{"a": 1},\n {"a": ', "x.json:2: not JSON"),
    "json_text_after": ("x.json", b'[{"a": 1}]\nmore', "x.json:2: not JSON (more text after the list)"),
    "json_single_quotes": ("x.json", b"[{'a': 1}]", "single quotes; write the file with json.dump"),
    "json_no_data": ("x.json", b'{"rows": []}', 'the object has no "data" (its keys: rows)'),
    "json_scalar": ("x.json", b'"a"', "neither a list nor an object"),
    "json_deep": ("x.json", b"[" * 100_000, "nested too deeply"),
    "csv_nameless_column": (
        "x.csv",
        b",title\nx,a\n",
        "column 1 of the header has no name; name it",
    ),
    "csv_double_column": ("x.csv", b"title,n,title\na,1,b\n", "the header names 'title' more than once"),
    "csv_too_few_cells": ("x.csv", b'title,n\n"a\nb",1\nc\n', "x.csv:4: 1 cell, but the header has 2 columns"),
    "csv_too_many_cells": ("x.csv", b"title,n\na,b,1\n", "x.csv:2: 3 cells, but the header has 2 columns; quote"),
    "csv_open_quote": ("x.csv", b'title,n\n"a,1\nb,2\n', "x.csv:2: a quoted cell is never closed; lines 2 to 3"),
    "csv_text_after_quote": ("x.csv", b'title,n\n"a"b,1\n', "x.csv:2: text follows a closing quote"),
    "csv_cr_line_ends": ("x.csv", b"title,n\ra,1\rb,2\r", "x.csv:1: a carriage return"),
    "csv_nul": ("x.csv", b"title,n\na,1\nb\0c,2\n", "x.csv:3: 1 NUL character in the line"),
    "csv_text_beyond_the_header": ("x.csv", b"title,n,,\na,1,,\nb,2,x,\n", "x.csv:3: 3 cells, but the header has 2"),
    "csv_excel_line_count": ("x.csv", b"sep=;\r\ntitle;n\r\na\r\n", "x.csv:3: 1 cell, but the header has 2 columns"),
    "parquet_junk": ("x.parquet", b"junk", "not a Parquet file that can be read"),
    "no_format": ("x", b"hello\n", "cannot tell the format of"),
}
EMPTY = {
    "empty_jsonl": ("x.jsonl", b""),
    "blank_jsonl": ("x.jsonl", b"\n \n"),
    "empty_json": ("x.json", b" "),
    "empty_list": ("x.json", b"[]"),
    "empty_data": ("x.json", b'{"data": []}'),
    "empty_csv": ("x.csv", b""),
    "blank_csv": ("x.csv", b"\n  \n"),
    "header_only": ("x.csv", b"title,n\n"),
    "empty_without_suffix": ("x", b""),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_fault_has_its_own_message_with_the_place(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content, expected = BROKEN[fault]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_examples(name)
    assert expected in str(caught.value)
    for error in caught.value.errors if isinstance(caught.value, RowsError) else [caught.value]:
        assert name in str(error)
        if isinstance(error, RowError):
            assert error.path == name
            assert error.line is not None


@pytest.mark.parametrize("fault", EMPTY)
def test_a_source_without_rows_is_an_empty_dataset(fault: str, tmp_path: Path) -> None:
    name, content = EMPTY[fault]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EmptyDatasetError, match=name):
        load_examples(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "n_good", "bad_lines"),
    [
        ("x.jsonl", JSONL + b"\xff\n[1]\n" + JSONL, 2, [2, 3]),
        ("x.csv", b'title,n\n"a\n\nb",1\nc\n"\xff\nd",2\n\ne,3\n', 2, [5, 6]),
        ("x.json", b'[{"a": 1},\n{"a": NaN},\n3,\n{"a": 2}]', 2, [2, 3]),
    ],
)
def test_skipping_leaves_out_the_bad_rows_alone(
    name: str, content: bytes, n_good: int, bad_lines: list[int], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    examples = load_examples(tmp_path / name, on_error="skip")
    assert len(examples) == n_good
    assert [error.line for error in examples.skipped] == bad_lines
    assert f"{len(bad_lines)} rows skipped" in examples.summary()
    assert all(f":{line}: " in examples.summary() for line in bad_lines)


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".parquet", ""]))
def test_no_bytes_make_a_loader_fail_in_another_way(
    content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / f"x{suffix}"
    path.write_bytes(content)
    for on_error in ("raise", "skip"):
        with contextlib.suppress(FinetuneError):
            assert load_examples(path, on_error=on_error)


@settings(max_examples=50, deadline=None)
@given(
    position=st.integers(0, 300),
    junk=st.sampled_from([b"\xff", b'"', b"{", b"}", b",", b"\n", b"\x00", b"\\", b"[", b"\r", b"\xed\xa0\x80"]),
    kind=st.sampled_from([".jsonl", ".json", ".csv"]),
)
def test_one_wrong_byte_anywhere_never_makes_a_loader_fail_in_another_way(
    position: int, junk: bytes, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [f'{{"title": "Tïtle {n}", "n": {n}}}' for n in range(8)]
    good = {".jsonl": "\n".join(rows), ".json": f"[{', '.join(rows)}]", ".csv": "title,n\n" + '"Tïtle, 1",2\n' * 8}[
        kind
    ]
    content = good.encode()
    position %= len(content)
    path = tmp_path_factory.mktemp("fuzz") / f"x{kind}"
    path.write_bytes(content[:position] + junk + content[position:])
    with contextlib.suppress(FinetuneError):
        assert load_examples(path)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"liked": "yes"}, {"liked": "perhaps"}]', "x.json:1 (row 2): field"),
        ('{"data": [{"liked": "yes"}, 7]}', "x.json:1 (row 2): the row is a number"),
        ('[{"liked": "yes"}, {"liked": }]', "x.json:1 (row 2): not JSON"),
        ('[{"liked": "yes"},\n{"liked": "perhaps"}]', "x.json:2: field"),
    ],
)
def test_a_json_file_of_one_line_names_the_row(text: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ft.errors.DataError) as found:
        ft.load_examples(tmp_path / "x.json", types={"liked": bool})
    assert place in str(found.value)
    again = pickle.loads(pickle.dumps(found.value))
    assert str(again) == str(found.value)
    rows = again.errors if isinstance(again, ft.errors.RowsError) else [again]
    assert rows[0].line == int(place[7])
