"""Conversions between dialects: what goes to TRL comes back, older spellings are mended, bad lines are all named."""

from __future__ import annotations

import gzip
import json
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_finetune.errors import EmptyDatasetError, FileError, RowError, RowsError, UsageError
from dspy_finetune.export import convert, export_dpo, export_sft
from dspy_finetune.export.dialects import DIALECTS
from dspy_finetune.export.formats import from_any
from dspy_finetune.prompts import pairwise

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
ARGUMENTS = st.dictionaries(TEXT, TEXT | st.integers() | st.booleans(), max_size=3).map(
    lambda value: json.dumps(value, ensure_ascii=False)
)
CALL = st.fixed_dictionaries(
    {
        "id": st.text(string.ascii_letters, min_size=1, max_size=5),
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": st.just("weather"), "arguments": ARGUMENTS}),
    }
)
USER = st.fixed_dictionaries({"role": st.just("user"), "content": TEXT})
PLAIN_ANSWER = st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXT})
CALL_ANSWER = st.fixed_dictionaries(
    {"role": st.just("assistant"), "tool_calls": st.lists(CALL, min_size=1, max_size=2)}
)
ANSWER = PLAIN_ANSWER | CALL_ANSWER
UNTRAINED = PLAIN_ANSWER.map(lambda message: {**message, "weight": 0})
TOOLS = st.fixed_dictionaries(
    {},
    optional={
        "tools": st.just([{"type": "function", "function": {"name": "weather"}}]),
        "parallel_tool_calls": st.booleans(),
    },
)
PROMPT = st.lists(USER | UNTRAINED, min_size=1, max_size=4)
SFT = st.builds(lambda prompt, answer, extra: {"messages": [*prompt, answer], **extra}, PROMPT, ANSWER, TOOLS)
DPO = st.builds(
    lambda prompt, good, bad, extra: {
        "input": {"messages": prompt, **extra},
        "preferred_output": [good],
        "non_preferred_output": [bad],
    },
    st.lists(USER, min_size=1, max_size=3),
    ANSWER,
    ANSWER,
    TOOLS,
)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[Any]:
    # Bytes: a str is also split at characters such as U+0085, which may stand inside a line.
    return [json.loads(line) for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()]


@settings(max_examples=25, deadline=None)
@given(st.lists(SFT, min_size=1, max_size=4) | st.lists(DPO, min_size=1, max_size=4), st.sampled_from(sorted(DIALECTS)))
def test_what_goes_to_a_dialect_comes_back(rows: list[Any], dialect: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = write(folder / "a.jsonl", rows)
        there = convert(first, folder / "b.jsonl", to=dialect)
        back = convert(there.path, folder / "c.jsonl", to="openai", from_=dialect)
        assert read(back.path) == rows
        assert there.n_rows == back.n_rows == len(rows)
        assert there.path.read_bytes().startswith(b"\xef\xbb\xbf") == (dialect == "azure")


def test_trl_rows_have_trls_keys(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Brno"}'}}
    user, answer = {"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}
    path = write(tmp_path / "a.jsonl", [{"messages": [user, answer], "tools": []}])
    (row,) = read(convert(path, tmp_path / "b.jsonl", to="trl").path)
    assert list(row) == ["prompt", "completion", "tools"]
    assert row["completion"][0]["tool_calls"][0]["function"]["arguments"] == {"city": "Brno"}
    pair = {"input": {"messages": [user]}, "preferred_output": [answer], "non_preferred_output": [answer]}
    (row,) = read(convert(write(tmp_path / "d.jsonl", [pair]), tmp_path / "e.jsonl", to="trl").path)
    assert list(row) == ["prompt", "chosen", "rejected"]


def test_each_trained_turn_becomes_a_trl_row(tmp_path: Path) -> None:
    """What is trained on OpenAI is trained in TRL, and nothing else: weight 0 is not."""
    turns = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "3"},
        {"role": "assistant", "content": "c", "weight": 1},
        {"role": "user", "content": "4"},
    ]
    dataset = convert(write(tmp_path / "a.jsonl", [{"messages": turns}]), tmp_path / "b.jsonl", to="trl")
    rows = read(dataset.path)
    assert [row["completion"][0]["content"] for row in rows] == ["a", "c"]
    assert [len(row["prompt"]) for row in rows] == [1, 5]
    assert all("weight" not in message for row in rows for message in [*row["prompt"], *row["completion"]])
    assert (dataset.manifest.n_rows_in, dataset.manifest.n_rows_out) == (1, 2)
    back = read(convert(dataset.path, tmp_path / "c.jsonl", to="openai").path)
    assert [message.get("weight") for message in back[1]["messages"]] == [None, 0, None, 0, None, None]


QUESTION, GOOD, BAD = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "good"},
    {"role": "assistant", "content": "bad"},
)


@pytest.mark.parametrize(
    "line",
    [
        {"input": {"messages": [QUESTION]}, "preferred_completion": [GOOD], "non_preferred_completion": [BAD]},
        {"messages": [QUESTION], "preferred": [GOOD], "rejected": [BAD]},
        {"messages": [QUESTION], "preferred": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [QUESTION], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [QUESTION], "chosen": GOOD, "rejected": BAD},
        {"chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
        {"input": {"messages": [QUESTION]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    ],
)
def test_every_spelling_of_a_pair_is_read(line: Any) -> None:
    # A "messages" beside the answers stands for the prompt, as in "input".
    assert from_any(line) == {
        "input": {"messages": [QUESTION]},
        "preferred_output": [GOOD],
        "non_preferred_output": [BAD],
    }


def test_plain_text_prompts_are_read() -> None:
    assert from_any({"prompt": "q", "completion": "good"}) == {"messages": [QUESTION, GOOD]}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ([], "not a JSON object"),
        ({}, "unknown line format"),
        ({"prompt": "q"}, "unknown line format"),
        ({"prompt": 3, "completion": "x"}, "neither text nor a list"),
        ({"input": {"messages": []}, "non_preferred_output": []}, "one answer is missing"),
    ],
)
def test_a_line_of_no_dialect_is_named(line: Any, says: str) -> None:
    with pytest.raises(RowError, match=says):
        from_any(line)


def test_all_bad_lines_are_listed_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps({"messages": [QUESTION, GOOD]}).encode()
    pair = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}).encode()
    path.write_bytes(b"\n".join([b"{", good, b"\xff", b"", pair, b"[]", good]) + b"\n")
    with pytest.raises(RowsError) as caught:
        convert(path, tmp_path / "b.jsonl", to="trl")
    assert [(error.path, error.line) for error in caught.value.errors] == [(str(path), n) for n in (1, 3, 5, 6)]
    assert not (tmp_path / "b.jsonl").exists()
    dataset = convert(path, tmp_path / "b.jsonl", to="trl", on_error="skip")
    assert (dataset.manifest.n_rows_in, dataset.n_rows, dataset.manifest.n_skipped) == (6, 2, 4)
    assert [row["row"] for row in dataset.manifest.skipped_rows] == [1, 3, 5, 6]


def test_the_prompt_goes_along(tmp_path: Path) -> None:
    prompt = pairwise("Likes bees.")
    rows = [{"title_a": f"a{n}", "title_b": f"b{n}", "preferred": "A"} for n in range(10)]
    first = export_dpo(rows, prompt, tmp_path / "a.jsonl", base_model="gpt-4.1-mini", seed=3)
    second = convert(first.path, tmp_path / "b.jsonl", to="trl")
    assert second.prompt == prompt
    assert (second.manifest.base_model, second.manifest.seed) == ("gpt-4.1-mini", 3)
    assert second.n_tokens == first.n_tokens
    first.path.write_bytes(first.path.read_bytes() * 2)
    assert convert(first.path, tmp_path / "c.jsonl", to="trl").prompt is None


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": [QUESTION, GOOD]}])
    with pytest.raises(UsageError, match="unknown dialect"):
        convert(path, tmp_path / "b.jsonl", to="nobody")
    with pytest.raises(UsageError, match="unknown dialect"):
        convert(path, tmp_path / "b.jsonl", to="trl", from_="nobody")
    with pytest.raises(UsageError, match="is the input itself"):
        convert(path, path, to="trl")
    with pytest.raises(FileError, match="no such file"):
        convert(tmp_path / "none.jsonl", tmp_path / "b.jsonl", to="trl")
    with pytest.raises(RowsError, match="no assistant message"):
        convert(write(tmp_path / "c.jsonl", [{"messages": [QUESTION]}]), tmp_path / "b.jsonl", to="trl")
    with pytest.raises(EmptyDatasetError, match="holds no rows"):
        convert(write(tmp_path / "d.jsonl", []), tmp_path / "b.jsonl", to="trl")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_wrong_dialect_is_said_once(tmp_path: Path, on_error: Any) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": [QUESTION, GOOD]}] * 30)
    path.write_text("not json\n" + path.read_text())
    with pytest.raises(RowError, match=r"a.jsonl:2: the file is not in trl's .* OpenAI's shape .* \"openai\"$"):
        convert(path, tmp_path / "b.jsonl", to="openai", from_="trl", on_error=on_error)
    turned = convert(path, tmp_path / "t.jsonl", to="trl", on_error="skip")
    with pytest.raises(RowError, match=r"t.jsonl:1: the file is not in azure's .* TRL's shape .* \"trl\"$"):
        convert(turned.path, tmp_path / "b.jsonl", to="openai", from_="azure", on_error=on_error)


def test_a_file_that_trains_nothing_is_told_once(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"title": f"Title {n}", "liked": True} for n in range(150)])
    with pytest.raises(RowError, match=r"rows.jsonl:1: unknown .* keys liked, title; the next 99 lines are no better"):
        convert(rows, tmp_path / "b.jsonl", to="trl")
    rows.write_text("a\nb\nc\n")
    with pytest.raises(
        RowError, match=r"rows.jsonl:1: not JSON .* the other 2 lines are no better: this is no training"
    ):
        convert(rows, tmp_path / "b.jsonl", to="trl")
    rows.write_text(json.dumps({"a": [1, 2]}, indent=1))
    with pytest.raises(RowsError, match=r"rows.jsonl:1: unknown line format with the keys a"):
        convert(rows, tmp_path / "b.jsonl", to="trl")
    rows.write_bytes(gzip.compress(b"{}\n" * 1000))
    with pytest.raises(RowError, match="the file is a gzip file; unpack it"):
        convert(rows, tmp_path / "b.jsonl", to="trl")
    assert not (tmp_path / "b.jsonl").exists()


def test_rows_that_a_dialect_cannot_hold_are_named_by_file_and_line(tmp_path: Path) -> None:
    muted = {"messages": [QUESTION, {**GOOD, "weight": 0}]}
    path = write(tmp_path / "a.jsonl", [{"messages": [QUESTION, GOOD]}, muted])
    path.write_text("\n" + path.read_text())
    with pytest.raises(RowsError, match=r"a.jsonl:3: field \"messages\": no assistant message to train on"):
        convert(path, tmp_path / "b.jsonl", to="trl")


def test_what_fix_reads_convert_reads(tmp_path: Path) -> None:
    """One reader, one list of formats: ShareGPT in a pretty-printed array needs no fix before."""
    told = [{"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}] * 2
    path = tmp_path / "c.json"
    path.write_text(json.dumps(told, indent=2))
    expected = [{"prompt": [{"role": "user", "content": "?"}], "completion": [{"role": "assistant", "content": "!"}]}]
    assert read(convert(path, tmp_path / "b.jsonl", to="trl").path) == expected * 2


def test_single_lines_of_another_dialect_are_listed(tmp_path: Path) -> None:
    mixed = [{"messages": [QUESTION, GOOD]}, {"prompt": "q", "completion": "a"}, {"prompt": "r", "completion": "a"}]
    with pytest.raises(RowsError, match="not openai's") as caught:
        convert(write(tmp_path / "a.jsonl", mixed), tmp_path / "b.jsonl", to="trl", from_="openai")
    assert [error.line for error in caught.value.errors] == [2, 3]


def test_a_conversation_for_trl_is_exported_in_turns(tmp_path: Path) -> None:
    turns = [QUESTION, GOOD, QUESTION, BAD]
    dataset = export_sft(
        [{"messages": turns}, {"messages": turns}], None, tmp_path / "a.jsonl", dialect="trl", dedupe=True
    )
    assert [row["completion"] for row in read(dataset.path)] == [[GOOD], [BAD]]
    assert dataset.manifest.skipped == {"duplicate of an earlier row": 1}
