"""The fix: what it mends stays mended, what it cannot mend is listed, and the input is never touched."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_finetune.errors import UsageError
from dspy_finetune.export import check, fix
from dspy_finetune.export.checks.codes import CODES

from .test_checks import BROKEN, GOOD, chat, json_values, pieces, write

# Codes that this file's fault shows but that need a person's decision.
UNFIXABLE = {
    "arguments-not-json",
    "dpo-input-missing",
    "dpo-output-several",
    "role-unknown",
    "weight-fraction",
    "tool-call-without-id",
}


@pytest.mark.parametrize("path", sorted(BROKEN.iterdir()), ids=lambda path: path.name)
def test_a_fixed_file_has_none_of_the_fixed_codes(path: Path, tmp_path: Path) -> None:
    before, out = path.read_bytes(), tmp_path / "out.jsonl"
    fixed = fix(path, out, count=False)
    assert path.read_bytes() == before
    found = check(path, count=False).codes
    fixable = {code for code in found if CODES[code].fixable}
    if path.stem not in UNFIXABLE:
        assert set(fixed.counts) >= fixable
        assert not fixed.report.codes & fixable
    assert fixed.counts.keys() <= {code for code, about in CODES.items() if about.fixable} | {"row-not-object"}
    # What the fix leaves has a remedy that a person can follow: not "--fix OUT" once more.
    assert not [issue for issue in fixed.report.issues if "--fix OUT" in issue.remedy]
    assert json.loads(json.dumps(fixed.to_dict()))["n_rows"] == fixed.n_rows
    assert str(out) in str(fixed)
    again = fix(out, tmp_path / "again.jsonl", count=False)
    assert (tmp_path / "again.jsonl").read_bytes() == out.read_bytes()
    assert again.changes == ()


@pytest.mark.parametrize("path", sorted(GOOD.iterdir()), ids=lambda path: path.name)
def test_a_good_file_is_copied_byte_for_byte(path: Path, tmp_path: Path) -> None:
    fixed = fix(path, tmp_path / "out.jsonl", count=False)
    assert fixed.changes == ()
    assert fixed.ok
    assert (tmp_path / "out.jsonl").read_bytes() == path.read_bytes()


def test_every_row_of_a_differently_written_file_comes_back(tmp_path: Path) -> None:
    good = [json.loads(line) for line in (GOOD / "chat.jsonl").read_text().splitlines()]
    for name in (
        "array-pretty",
        "array-one-line",
        "pretty-printed",
        "pretty-printed-indent-0",
        "python-repr",
        "utf-16",
        "crlf",
    ):
        out = tmp_path / f"{name}.jsonl"
        assert fix(BROKEN / f"{name}.jsonl", out, count=False).ok
        assert [json.loads(line) for line in out.read_text().splitlines()] == good


def test_preferences_in_every_spelling_become_the_hosts(tmp_path: Path) -> None:
    good = [json.loads(line) for line in (GOOD / "preference.jsonl").read_text().splitlines()]
    for name in ("preference-wrong-spelling", "preference-old-names", "trl-preference-format"):
        out = tmp_path / f"{name}.jsonl"
        assert fix(BROKEN / f"{name}.jsonl", out, count=False).ok
        assert [json.loads(line) for line in out.read_text().splitlines()] == good


def test_arguments_become_one_json_string(tmp_path: Path) -> None:
    for name in ("arguments-object", "arguments-python-repr", "arguments-double-encoded"):
        out = tmp_path / f"{name}.jsonl"
        assert fix(BROKEN / f"{name}.jsonl", out, count=False).ok
        row = json.loads(out.read_text().splitlines()[3])
        arguments = json.loads(row["messages"][1]["tool_calls"][0]["function"]["arguments"])
        assert arguments["q"] == "x"


def test_what_cannot_be_read_is_left_out_and_listed(tmp_path: Path) -> None:
    fixed = fix(BROKEN / "latin-1.jsonl", tmp_path / "out.jsonl", count=False)
    assert [(change.line, change.code) for change in fixed.left_out] == [(7, "invalid-utf8")]
    assert fixed.n_rows == 12
    assert not fixed.ok


def test_the_input_cannot_be_the_output(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [chat(1)])
    (tmp_path / "link.jsonl").symlink_to(path)
    for out in (path, tmp_path / "." / "rows.jsonl", tmp_path / "link.jsonl"):
        with pytest.raises(UsageError, match="overwrite its input"):
            fix(path, out)
    assert json.loads(path.read_text()) == chat(1)


def test_azure_gets_its_mark_and_openai_loses_it(tmp_path: Path) -> None:
    azure = fix(GOOD / "chat.jsonl", tmp_path / "azure.jsonl", host="azure")
    assert (tmp_path / "azure.jsonl").read_bytes().startswith(b"\xef\xbb\xbf")
    assert set(azure.counts) == {"bom-missing"}
    back = fix(tmp_path / "azure.jsonl", tmp_path / "openai.jsonl")
    assert set(back.counts) == {"bom"}
    assert (tmp_path / "openai.jsonl").read_bytes() == (GOOD / "chat.jsonl").read_bytes()


def test_large_integers_keep_their_digits(tmp_path: Path) -> None:
    row = chat(1) | {"id": 123456789012345678901234567890}
    row["messages"][1]["weight"] = True
    path = write(tmp_path / "rows.jsonl", [row])
    fix(path, tmp_path / "out.jsonl", count=False)
    assert json.loads((tmp_path / "out.jsonl").read_text())["id"] == row["id"]


def fixed_twice(data: bytes, method: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.jsonl").write_bytes(data)
        first = fix(folder / "in.jsonl", folder / "one.jsonl", method=method, count=False)
        second = fix(folder / "one.jsonl", folder / "two.jsonl", method=method, count=False)
        assert (folder / "one.jsonl").read_bytes() == (folder / "two.jsonl").read_bytes()
        assert second.changes == ()
        text_codes = {"bom", "crlf", "blank-line", "json-array", "python-repr", "pretty-printed", "duplicate-row"}
        assert not first.report.codes & (text_codes - {change.code for change in first.kept})


@given(st.lists(json_values, max_size=6), st.sampled_from([None, "sft", "dpo", "rft"]))
def test_fixing_twice_changes_nothing_for_any_json(values: list[Any], method: str | None) -> None:
    fixed_twice("".join(json.dumps(value) + "\n" for value in values).encode(), method)


@given(st.lists(pieces | st.binary(max_size=12), max_size=20).map(b"".join))
def test_fixing_twice_changes_nothing_for_any_bytes(data: bytes) -> None:
    fixed_twice(data)


def test_roles_are_mended_by_the_names_that_data_sets_use(tmp_path: Path) -> None:
    """In `messages` as in `conversations`."""
    row = {"messages": [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}]}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    fix(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    (found,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["role"] for one in found["messages"]] == ["user", "assistant"]
