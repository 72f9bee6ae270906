"""The check: each broken file gives its codes and no others, good files none, and no bytes make it crash."""

from __future__ import annotations

import errno
import html
import json
import pickle
import random
import re
import statistics
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_finetune.errors import FileError, UsageError
from dspy_finetune.export import RowChecker, check
from dspy_finetune.export.checks.checker import SeenRows
from dspy_finetune.export.checks.codes import CODES
from dspy_finetune.export.checks.report import KEPT_PER_CODE, IssueLog
from dspy_finetune.export.dialects import DIALECTS
from dspy_finetune.export.tokens import PieceCounter, TokenCounter, load_encoding

from . import code_tables

BROKEN = Path(__file__).parent / "broken"
GOOD = Path(__file__).parent / "good"

# File of tests/export/broken -> the codes that its check reports. The name of any other file is its code.
EXPECTED: dict[str, set[str]] = {
    "arguments-object": {"arguments-not-string"},
    "array-line-per-row": {"json-array"},
    "array-not-closed": {"json-array", "not-json"},
    "array-one-line": {"json-array"},
    "array-pretty": {"json-array"},
    "carriage-returns": {"several-values"},
    "content-null": {"content-missing"},
    "dpo-image": {"image-in-dpo"},
    "dpo-input-empty": {"input-empty"},
    "dpo-input-has-assistant": {"input-has-assistant"},
    "dpo-input-missing": {"input-missing"},
    "dpo-output-empty-list": {"output-missing"},
    "dpo-output-empty-text": {"output-empty"},
    "dpo-output-missing": {"output-missing"},
    "dpo-output-not-list": {"output-not-list"},
    "dpo-output-role": {"output-role"},
    "dpo-output-several": {"output-several"},
    "dpo-outputs-identical": {"outputs-identical"},
    "empty": {"empty-file"},
    "image-gif": {"image-skipped"},
    "image-http": {"image-url"},
    "image-in-assistant": {"image-role"},
    "latin-1": {"invalid-utf8"},
    "nan": {"not-a-number"},
    "nested-too-deeply": {"not-json"},
    "preference-reversed": {"preference-reversed", "preference-contradiction"},
    "pretty-printed-indent-0": {"pretty-printed"},
    "pretty-printed-one-row": {"pretty-printed"},
    "python-repr-one-line": {"python-repr"},
    "role-capitalised": {"role-unknown"},
    "row-is-list-of-messages": {"row-not-object"},
    "shortcut-length": {"shortcut-length", "shortcut-phrase"},
    "shortcut-phrase": {"shortcut-length", "shortcut-phrase"},
    "tool-call-id-missing": {"tool-call-id-missing", "tool-call-unanswered"},
    "tool-call-id-unknown": {"tool-call-id-unknown", "tool-call-unanswered"},
    "tool-call-without-id": {"tool-call-invalid"},
    "tool-content-list": {"tool-content-not-string"},
    "tools-not-list": {"tools-invalid"},
    "truncated-line": {"not-json"},
    "utf-16-be-no-bom": {"utf-16"},
    "weight-fraction": {"weight-invalid"},
    "weight-text": {"weight-invalid"},
    "weight-true": {"weight-invalid"},
}


def chat(number: int, **message: Any) -> dict[str, Any]:
    answer = {"role": "assistant", "content": f"answer {number}", **message}
    return {"messages": [{"role": "user", "content": f"question {number}"}, answer]}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(BROKEN.iterdir()), ids=lambda path: path.name)
def test_a_broken_file_gives_its_codes_and_no_others(path: Path) -> None:
    report = check(path, count=path.stem == "context-length")
    assert report.codes == EXPECTED.get(path.stem, {path.stem})
    for issue in report.issues:
        assert issue.message
        assert issue.remedy
        assert issue.severity == CODES[issue.code].severity
        assert "\n" not in str(issue)
    assert report.ok == all(CODES[code].severity != "error" for code in report.codes)


@pytest.mark.parametrize("path", sorted(GOOD.iterdir()), ids=lambda path: path.name)
def test_a_good_file_has_no_issue(path: Path) -> None:
    report = check(path, base_model=None if path.stem == "reinforcement" else "gpt-4.1-mini-2025-04-14")
    assert report.issues == ()
    assert report.ok


def test_lines_and_places_are_named() -> None:
    [issue] = check(BROKEN / "arguments-object.jsonl", count=False).issues
    assert (issue.line, issue.path) == (4, "messages[1].tool_calls[0].function.arguments")
    [issue] = check(BROKEN / "latin-1.jsonl", count=False).issues
    data = (BROKEN / "latin-1.jsonl").read_bytes()
    assert issue.line == 7
    assert f"offset {data.index(0xE9)} of the file" in issue.message


def test_the_tokens_lost_at_the_end_are_counted() -> None:
    report = check(BROKEN / "context-length.jsonl", base_model="gpt-4.1-mini-2025-04-14")
    [issue] = report.issues
    assert report.stats.tokens is not None
    lost = report.stats.tokens.max - 65_536
    assert f"the last {lost:,} tokens" in issue.message
    assert "the whole answer" in issue.message
    assert issue.path == "messages[1]"


def test_a_method_that_does_not_fit_the_format_is_named() -> None:
    assert check(GOOD / "chat.jsonl", method="dpo", count=False).codes == {"format-method-mismatch"}
    assert check(GOOD / "preference.jsonl", method="supervised", count=False).codes == {"format-method-mismatch"}
    assert check(GOOD / "reinforcement.jsonl", method="sft", count=False).codes == {"format-method-mismatch"}
    with pytest.raises(UsageError, match="sft, dpo, rft"):
        check(GOOD / "chat.jsonl", method="ppo")


def test_models_are_known_by_method_and_end(tmp_path: Path) -> None:
    assert "model-method" in check(GOOD / "preference.jsonl", base_model="gpt-4o-mini-2024-07-18").codes
    assert "model-unknown" in check(GOOD / "chat.jsonl", base_model="gpt-9").codes
    assert "model-shut-down" in check(GOOD / "chat.jsonl", base_model="gpt-4.1-nano-2025-04-14").codes
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    rows = [{"messages": [{"role": "user", "content": [part]}, *chat(i)["messages"]]} for i in range(10)]
    images = write(tmp_path / "images.jsonl", rows)
    assert "model-no-images" in check(images, base_model="gpt-4.1-mini-2025-04-14").codes
    assert check(images, base_model="gpt-4o-2024-08-06").codes <= {"model-shut-down"}


def test_hosts_have_their_own_limits(tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", [chat(i) for i in range(4)])
    assert check(few).codes == {"too-few-examples"}
    assert check(few, host="fireworks").codes == set()
    assert check(few, host="my-own-host").codes == set()
    assert "bom-missing" in check(few, host="azure").codes
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + few.read_bytes())
    assert check(marked, host="azure").codes == {"too-few-examples"}
    assert check(BROKEN / "trl-preference-format.jsonl", host="trl").codes == set()


def test_rows_on_both_sides_of_a_split_are_found(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [chat(i) for i in range(12)])
    other = chat(5, content="another answer")
    validation = write(tmp_path / "validation.jsonl", [chat(3), other, chat(99)])
    report = check(train, validation=validation)
    assert {(issue.line, issue.code) for issue in report.issues} == {
        (4, "train-validation-overlap"),
        (6, "train-validation-same-prompt"),
    }
    assert report.validation is not None
    assert report.validation.issues == ()
    assert not report.ok


def test_another_spelling_does_not_hide_the_other_faults(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (BROKEN / "shortcut-phrase.jsonl").read_text().splitlines()]
    taste = [
        {
            "messages": row["input"]["messages"],
            "preferred": row["preferred_output"],
            "rejected": row["non_preferred_output"],
        }
        for row in rows
    ]
    report = check(write(tmp_path / "taste.jsonl", taste), count=False)
    assert {"preference-wrong-spelling", "shortcut-phrase"} <= report.codes


def test_the_figures_are_those_of_a_plain_count(tmp_path: Path) -> None:
    rows = [chat(i, content="yes " * (i % 7 + 1)) for i in range(700)]
    path = write(tmp_path / "rows.jsonl", rows)
    stats = check(path, base_model="gpt-4.1-mini-2025-04-14").stats
    counter = TokenCounter.for_model("gpt-4.1-mini-2025-04-14")
    assert counter is not None
    assert stats.tokens is not None
    tokens = sorted(counter.row(row) for row in rows)
    assert (stats.n_rows, stats.size_bytes) == (700, path.stat().st_size)
    assert (stats.tokens.total, stats.tokens.min, stats.tokens.max) == (sum(tokens), tokens[0], tokens[-1])
    assert stats.tokens.mean == pytest.approx(statistics.mean(tokens))
    assert stats.tokens.p95 == tokens[-(-95 * 700 // 100) - 1]
    assert stats.roles == {"user": 700, "assistant": 700}
    assert stats.labels == {"yes " * n: 100 for n in range(1, 8)}


def test_issues_of_one_code_are_counted_beyond_those_kept(tmp_path: Path) -> None:
    path = tmp_path / "noise.jsonl"
    path.write_text("noise\n" * (KEPT_PER_CODE + 5))
    report = check(path)
    assert report.counts["not-json"] == KEPT_PER_CODE + 5
    assert sum(issue.code == "not-json" for issue in report.issues) == KEPT_PER_CODE


def test_the_report_prints_escapes_and_survives(tmp_path: Path) -> None:
    row = {"messages": [{"role": "<script>", "content": "x"}, {"role": "assistant", "content": "y"}]}
    report = check(write(tmp_path / "<b>.jsonl", [row]), validation=GOOD / "chat.jsonl")
    assert "<script>" in str(report)
    assert "<script>" not in report._repr_html_()
    assert "<b>" not in report._repr_html_()
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False
    assert pickle.loads(pickle.dumps(report)) == report


def test_a_report_is_written_as_a_page_and_as_markdown(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]}
    report = check(write(tmp_path / "train.jsonl", [row] * 12), validation=GOOD / "chat.jsonl")
    report.to_html(tmp_path / "check.html")
    report.to_markdown(tmp_path / "check.md")
    page, text = (tmp_path / "check.html").read_text(), (tmp_path / "check.md").read_text()
    assert {"weight-invalid", "duplicate-row"} <= report.codes
    for code, _, issue in report.by_code():
        assert code in page
        assert issue.remedy in html.unescape(page)
        assert f"| {code} | {issue.severity} |" in text
    assert str(GOOD / "chat.jsonl") in page


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"absent\.jsonl"):
        check(tmp_path / "absent.jsonl")


def test_rows_checked_while_written_give_the_same_report_as_the_file(tmp_path: Path) -> None:
    rows = [chat(i % 9) for i in range(12)] + [chat(50, weight=3)]
    path = write(tmp_path / "rows.jsonl", rows)
    checker = RowChecker(method="sft", base_model="gpt-4.1-mini-2025-04-14")
    for number, row in enumerate(rows, start=1):
        checker.row(number, row)
    streamed = checker.finish(size_bytes=path.stat().st_size, path=str(path))
    assert streamed == check(path, method="sft", base_model="gpt-4.1-mini-2025-04-14")


@pytest.mark.parametrize("has_room", [True, False])
def test_large_sets_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_room: bool) -> None:
    """Spilled to a temporary file, few slots for many rows, a few rows at a time: the same issues as all at once."""
    train = write(tmp_path / "train.jsonl", [chat(i % 40, content=f"{i % 3}") for i in range(500)])
    validation = write(tmp_path / "validation.jsonl", [chat(i, content="0") for i in range(30, 600)])
    whole = check(train, validation=validation, count=False)
    monkeypatch.setattr("dspy_finetune.export.checks.checker._IN_MEMORY", 64)
    monkeypatch.setattr("dspy_finetune.export.checks.checker._AT_ONCE", 7)
    monkeypatch.setattr("dspy_finetune.export.checks.checker._MARKS", 1)
    if not has_room:

        def full() -> None:
            raise OSError(errno.ENOSPC, "no space left")

        monkeypatch.setattr("tempfile.TemporaryFile", full)
    pieces = check(train, validation=validation, count=False)
    assert set(pieces.issues) == set(whole.issues)
    assert pieces.counts == whole.counts
    assert {
        "duplicate-row",
        "conflicting-rows",
        "train-validation-overlap",
        "train-validation-same-prompt",
    } <= whole.codes
    assert pieces.counts["duplicate-row"] == 500 - 120


def test_what_repeats_by_chance_takes_no_memory() -> None:
    """Of 400,000 different rows many share a slot of the marks; they are told apart before their rows are kept."""
    rng = random.Random(0)
    seen, log = SeenRows(), IssueLog()
    for start in range(0, 400_000, 20_000):
        prompts = [rng.getrandbits(63) for _ in range(20_000)]
        for line, prompt in enumerate(prompts, start=start + 1):
            seen.add_hashes(line, prompt, prompt)
    seen.add_hashes(400_001, prompts[0], prompts[0])
    tracemalloc.start()
    try:
        seen.report(log, preferences=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [(issue.line, issue.code) for issue in log.issues()] == [(400_001, "duplicate-row")]
    assert peak < 9_500_000  # 2 MB of marks, one piece of the hashes (3 MB) twice


@pytest.mark.parametrize("n_rows", [3, 300])
def test_two_hashes_and_a_line_come_back_from_the_temporary_file(monkeypatch: pytest.MonkeyPatch, n_rows: int) -> None:
    monkeypatch.setattr("dspy_finetune.export.checks.checker._IN_MEMORY", 64)
    rows = [(hash(("prompt", i)), hash(("output", i)), i + 1) for i in range(n_rows)]
    seen = SeenRows()
    for prompt, output, line in rows:
        seen.add_hashes(line, prompt, output)
    assert len(seen) == n_rows
    found = [row for part in seen._parts() for row in zip(*part, strict=True)]
    assert found == rows


def test_without_a_model_rows_are_held_to_the_context_alone(tmp_path: Path) -> None:
    """Tokens are counted where a model is named; a row that is too long for every model is named in any case."""
    rows = [chat(i) for i in range(11)] + [chat(99, content="word " * 70_000)]
    path = write(tmp_path / "rows.jsonl", rows)
    report = check(path)
    assert report.stats.tokens is None
    assert any("no base model is named" in reason for reason in report.not_checked)
    [issue] = [issue for issue in report.issues if issue.code == "context-length"]
    [same] = [issue for issue in check(path, base_model="gpt-4.1-mini").issues if issue.code == "context-length"]
    assert issue == same
    assert issue.line == 12
    assert not check(path, host="together").codes & {"context-length"}
    assert not check(path, count=False).codes & {"context-length"}


ascii_texts = st.text(st.characters(max_codepoint=127), max_size=60)
written_texts = st.lists(st.sampled_from([" ", "\n", "\r", "'S", "'re", "Word", "wORD", "12345", "/", "--", "\t"])).map(
    "".join
)


@settings(deadline=None)  # the first text waits for the token table
@given(ascii_texts | written_texts | st.text(max_size=20))
def test_texts_have_the_tokens_that_tiktoken_counts(text: str) -> None:
    encoding = load_encoding("o200k_base")
    assert PieceCounter(encoding)(text) == len(encoding.encode_ordinary(text))


def test_words_that_never_come_again_are_left_to_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspy_finetune.export.tokens._MAX_PIECES", 20)
    encoding = load_encoding("o200k_base")
    count = PieceCounter(encoding)
    for i in range(60):
        text = f"unique{chr(97 + i % 26) * (i + 1)} word<|endoftext|>{i}"
        assert count(text) == len(encoding.encode_ordinary(text))


KEYS = [
    "messages",
    "role",
    "content",
    "weight",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "id",
    "type",
    "tools",
    "input",
    "preferred_output",
    "preferred",
    "non_preferred_output",
    "chosen",
    "rejected",
    "prompt",
    "completion",
    "conversations",
    "from",
    "value",
    "image_url",
    "url",
    "tool_call_id",
    "function_call",
    "functions",
    "parallel_tool_calls",
    "user",
    "assistant",
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner | st.sampled_from(["user", "assistant", "tool", "system", "function"]),
            max_size=4,
        )
    ),
    max_leaves=25,
)


@given(
    st.lists(json_values, max_size=6), st.sampled_from([None, "sft", "dpo", "rft"]), st.sampled_from(["openai", "trl"])
)
def test_no_json_makes_the_check_crash(values: list[Any], method: str | None, host: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "fuzz.jsonl", values)
        report = check(path, method=method, host=host)
        assert report.stats.n_rows == len(values) or "json-array" in report.codes
        json.dumps(report.to_dict())


pieces = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b"\n",
        b"\r\n",
        b"'",
        b'{"messages":[]}',
        b"\\",
        b"\0",
        b"\xff",
        b"NaN",
        b"None",
    ]
)


@given(st.lists(pieces | st.binary(max_size=12), max_size=20).map(b"".join))
def test_no_bytes_make_the_check_crash(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.jsonl"
        path.write_bytes(data)
        str(check(path, count=False))


def test_the_docs_list_every_code_and_none_more() -> None:
    assert code_tables.documented() == code_tables.tables(), "run python -m tests.error_messages --write"
    assert {code for table in code_tables.SECTIONS.values() for code in table} == CODES.keys()


def test_the_documents_and_helps_name_every_dialect() -> None:
    pages = {
        name: (code_tables.DOCS.parent / name).read_text(encoding="utf-8")
        for name in ("export.md", "check.md", "cli.md")
    }
    for dialect in DIALECTS:
        for name, text in pages.items():
            assert re.search(rf"\b{dialect}\b", text), (name, dialect)
        for line in pages["cli.md"].splitlines():
            if line.startswith(("| `--dialect` |", "| `--to` | `openai`")):
                assert f"`{dialect}`" in line
