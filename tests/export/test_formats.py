"""Rows in the formats of other programs: read as what they mean, by the check, the fix and the conversion alike.

Each row is a sample of what users publish. Nothing that changes what is trained may get lost without a word: not a
weight, not a system prompt, not a second method's key.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dspy_finetune.errors import RowError, RowsError
from dspy_finetune.export import check, convert, fix
from dspy_finetune.export.formats import as_openai, from_any, method_of

USER = {"role": "user", "content": "Is it good?"}
GOOD = {"role": "assistant", "content": "Yes, it is."}
BAD = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be brief."}
PAIR = {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def write(path: Path, row: dict[str, Any], n: int = 12) -> Path:
    """Rows that differ in their texts alone: the number stands where the sample has "good"."""
    lines = [json.dumps(row).replace("good", f"good {i}").replace("Yes", f"Yes {i}") for i in range(n)]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def turn(who: str, said: Any, **more: Any) -> dict[str, Any]:
    return {"from": who, "value": said, **more}


ASKED = [turn("human", "Is it good?"), turn("gpt", "Yes, it is.")]
CALL = {"name": "look", "arguments": {"at": "it"}}
CALLED = {
    "role": "assistant",
    "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}],
}

FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # a row as it is published -> the row that it means
    "ShareGPT with a turn that is not trained": (
        {"conversations": [*ASKED, turn("human", "Sure?"), turn("gpt", "Bad turn", weight=0), *ASKED]},
        {
            "messages": [
                USER,
                GOOD,
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": "Bad turn", "weight": 0},
                USER,
                GOOD,
            ]
        },
    ),
    "ShareGPT of chatgpt": (
        {"conversations": [turn("human", "Is it good?"), turn("chatgpt", "Yes, it is.")], "system": "Be brief."},
        {"messages": [SYSTEM, USER, GOOD]},
    ),
    "conversations of role and content": ({"conversations": [USER, GOOD]}, {"messages": [USER, GOOD]}),
    "LLaMA-Factory with tools": (
        {
            "conversations": [
                turn("human", "Is it good?"),
                turn("function_call", json.dumps(CALL)),
                turn("observation", "fine"),
                turn("gpt", "Yes, it is."),
            ],
            "tools": json.dumps([TOOL["function"]]),
        },
        {
            "messages": [USER, CALLED, {"role": "tool", "content": "fine", "tool_call_id": "call_1"}, GOOD],
            "tools": [TOOL],
        },
    ),
    "LLaMA-Factory preference": (
        {"conversations": ASKED[:1], "chosen": ASKED[1], "rejected": turn("gpt", "No.")},
        PAIR,
    ),
    "Alpaca": (
        {
            "instruction": "Is it",
            "input": "good?",
            "output": "Yes, it is.",
            "system": "Be brief.",
            "history": [["a", "b"]],
        },
        {
            "messages": [
                SYSTEM,
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "Is it\ngood?"},
                GOOD,
            ]
        },
    ),
    "Alpaca preference": (
        {"instruction": "Is it good?", "input": "", "chosen": "Yes, it is.", "rejected": "No."},
        PAIR,
    ),
    "hh-rlhf": (
        {
            "chosen": "\n\nHuman: Is it good?\n\nAssistant: Yes, it is.",
            "rejected": "\n\nHuman: Is it good?\n\nAssistant: No.",
        },
        PAIR,
    ),
    "UltraFeedback": (
        {"prompt": "Is it good?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD]},
        PAIR,
    ),
    "whole chats alone": (
        {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        {**PAIR, "input": {"messages": [SYSTEM, USER]}},
    ),
    "whole chats under OpenAI's names": (
        {"input": {"messages": [USER]}, "preferred_output": [USER, GOOD], "non_preferred_output": [USER, BAD]},
        PAIR,
    ),
    "ms-swift preference": ({"messages": [USER, GOOD], "rejected_response": "No."}, PAIR),
    "ms-swift query": (
        {"query": "Is it good?", "response": "Yes, it is.", "system": "Be brief."},
        {"messages": [SYSTEM, USER, GOOD]},
    ),
    "ms-swift query preference": (
        {"query": "Is it good?", "response": "Yes, it is.", "rejected_response": "No."},
        PAIR,
    ),
    "a system prompt beside the messages": (
        {"system": "Be brief.", "messages": [USER, GOOD]},
        {"messages": [SYSTEM, USER, GOOD]},
    ),
    "tools beside the input": ({**PAIR, "tools": [TOOL]}, {**PAIR, "input": {"messages": [USER], "tools": [TOOL]}}),
    "separators of completion models": (
        {"prompt": "Is it good?\n\n###\n\n", "completion": " Yes, it is. END"},
        {"messages": [USER, GOOD]},
    ),
    "a prompt of TRL with an earlier answer": (
        {"prompt": [USER, BAD, USER], "completion": [GOOD]},
        {"messages": [USER, {**BAD, "weight": 0}, USER, GOOD]},
    ),
    "messages and tools as JSON strings": (
        {"messages": json.dumps([USER, GOOD]), "tools": json.dumps([TOOL])},
        {"messages": [USER, GOOD], "tools": [TOOL]},
    ),
    "Arrow's nulls": (
        {"messages": [USER, {**GOOD, "weight": None}], "tools": None, "parallel_tool_calls": None},
        {"messages": [USER, GOOD]},
    ),
    "a loss that is false": (
        {"messages": [USER, {**BAD, "loss": False}, USER, GOOD]},
        {"messages": [USER, {**BAD, "weight": 0}, USER, GOOD]},
    ),
    "arguments that are an empty text": (
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": ""}}],
                },
            ],
            "tools": [TOOL],
        },
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
                },
            ],
            "tools": [TOOL],
        },
    ),
    "a function's name with a blank": (
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look up", "arguments": "{}"}}],
                },
            ],
            "tools": [{"type": "function", "function": {"name": "look up"}}],
        },
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}],
                },
            ],
            "tools": [{"type": "function", "function": {"name": "look_up"}}],
        },
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_another_program_is_fixed_to_what_it_means(name: str, tmp_path: Path) -> None:
    """`check` tells it, `fix` mends it, and then `check` has nothing more to say of its form."""
    given, meant = FORMATS[name]
    path = write(tmp_path / "a.jsonl", given)
    before = check(path, count=False)
    told = [issue for issue in before.issues if issue.line == 1 and issue.severity != "info"]
    assert any("--fix OUT" in issue.remedy for issue in told), before
    fixed = fix(path, tmp_path / "b.jsonl", count=False)
    expected = json.loads(write(tmp_path / "c.jsonl", meant).read_text().splitlines()[3])
    made = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[3])
    assert {key: made[key] for key in expected} == expected
    assert fixed.report.ok, fixed
    assert not [issue for issue in fixed.report.issues if "--fix OUT" in issue.remedy]


@pytest.mark.parametrize(
    "name", [name for name in FORMATS if not name.startswith(("Arrow", "a loss", "arguments", "a fun"))]
)
def test_a_row_of_another_program_is_converted_to_what_it_means(name: str, tmp_path: Path) -> None:
    given, meant = FORMATS[name]
    assert from_any(given) == meant
    converted = convert(write(tmp_path / "a.jsonl", given), tmp_path / "b.jsonl", to="openai")
    assert converted.method == method_of(meant)
    assert converted.report.ok


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [USER, GOOD], "label": False}, "KTO"),
        ({"messages": [USER, GOOD], "label": True}, "KTO"),
        ({"prompt": "q", "completion": "a", "label": False}, "KTO"),
        ({"conversations": ASKED, "kto_tag": True}, "KTO"),
        ({"messages": [USER, GOOD], "label": 3}, "classifier"),
        ({"messages": [USER, GOOD], "images": ["a.png"]}, "multimodal"),
        ({"messages": [USER, GOOD], "videos": ["a.mp4"]}, "multimodal"),
        ({"messages": [USER, GOOD], "weight": 0.5}, "weight"),
        ({"conversations": ASKED, "images": ["a.png"]}, "multimodal"),
    ],
)
def test_a_row_of_another_method_is_an_error_that_names_it(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", row)
    report = check(path, count=False)
    told = [issue for issue in report.errors if issue.code == "other-method"]
    assert len(told) == 12, report
    assert says in told[0].message + told[0].remedy
    assert "unknown-key" not in report.codes
    assert not fix(path, tmp_path / "b.jsonl", count=False).ok
    with pytest.raises(RowsError, match=says):
        convert(path, tmp_path / "c.jsonl", to="trl")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": "Yes", "rejected": "No"}, "no prompt that they answer"),
        ({"prompt": "Else?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "not the one that the two chats"),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, BAD]}, "share no beginning"),
        ({"conversations": [turn("human", "?"), turn("narrator", "!")]}, "not known to speak"),
        ({"conversations": [turn("human", "?"), turn("observation", "!")]}, "nothing called it"),
        ({"system": "Be brief.", "messages": [{"role": "system", "content": "Be long."}, USER, GOOD]}, "keep one of"),
        ({"messages": [USER], "rejected_response": "No."}, "not the chosen answer"),
    ],
)
def test_what_is_not_certain_is_refused_with_a_remedy_for_a_person(
    row: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """No answer lands in the prompt, and no prompt is empty: the row stays as it is, and the report says why."""
    with pytest.raises(RowError, match=says):
        as_openai(row)
    path = write(tmp_path / "a.jsonl", row)
    fixed = fix(path, tmp_path / "b.jsonl", count=False)
    assert (tmp_path / "b.jsonl").read_text() == path.read_text()
    [first, *_] = [issue for issue in fixed.report.errors if issue.line == 1]
    assert "--fix OUT" not in first.remedy
    assert says in " ".join(issue.message + issue.remedy for issue in fixed.report.errors)


def test_a_duplicate_without_which_the_file_is_too_short_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": [USER, GOOD]}, 10)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[1], *lines[1:]]))
    [told] = [issue for issue in check(path, count=False).issues if issue.code == "duplicate-row"]
    assert "fewer than 10 rows" in told.remedy
    fixed = fix(path, tmp_path / "b.jsonl", count=False)
    assert (fixed.n_rows, fixed.ok) == (10, True)
    assert [change.code for change in fixed.kept] == ["duplicate-row"]
    assert "fewer than 10 rows would be left" in str(fixed)
    path.write_text("".join([*lines, *lines, lines[0]]))
    assert fix(path, tmp_path / "c.jsonl", count=False).n_rows == 10


def test_answers_that_are_calls_are_told_apart_and_images_are_no_empty_input(tmp_path: Path) -> None:
    def call(n: int) -> dict[str, Any]:
        function = {"name": ["look", "wait"][n % 2], "arguments": "{}"}
        return {"role": "assistant", "tool_calls": [{"id": f"c{n}", "type": "function", "function": function}]}

    def image(n: int) -> dict[str, Any]:
        address = {"type": "image_url", "image_url": {"url": f"https://a.b/{n}.png"}}
        return {"role": "user", "content": [{"type": "text", "text": "What is it: "}, address]}

    tools = [TOOL, {"type": "function", "function": {"name": "wait"}}]
    rows = [{"messages": [{**USER, "content": f"{n}?"}, call(n)], "tools": tools} for n in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check(tmp_path / "a.jsonl", count=False)
    assert report.codes == frozenset()
    assert report.stats.labels == {"look({})": 6, "wait({})": 6}
    rows = [{"messages": [image(n), {"role": "assistant", "content": f"number {n}"}]} for n in range(12)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check(tmp_path / "b.jsonl", count=False).codes == frozenset()


def test_faults_of_one_line_json_name_the_row(tmp_path: Path) -> None:
    rows = [{"messages": [{**USER, "content": f"{n}?"}, {**GOOD, "content": f"{n}"}]} for n in range(12)]
    rows[7]["messages"][1]["role"] = "asistant"
    for content in (json.dumps(rows), json.dumps({"data": rows}), json.dumps({"data": rows}, indent=1)):
        path = tmp_path / "a.jsonl"
        path.write_text(content)
        report = check(path, count=False)
        assert report.codes == {"json-array", "role-unknown", "no-assistant"}
        assert {issue.path for issue in report.issues if issue.code == "role-unknown"} == {"[7].messages[1].role"}
        assert fix(path, tmp_path / "b.jsonl", count=False).n_rows == 12


def test_a_row_that_has_a_key_data_is_no_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"data": [{"messages": []}]}\n{"data": [{"messages": []}]}\n')
    assert {issue.line for issue in check(path, count=False).issues if issue.code == "unknown-format"} == {1, 2}


CHAT = {"messages": [USER, GOOD]}


@pytest.mark.parametrize(
    ("host", "row", "codes"),
    [
        ("together", {"prompt": "Is it good?", "completion": "Yes, it is."}, set()),
        ("together", {"text": "Is it good? Yes, it is."}, set()),
        ("together", {"messages": [{**USER, "weight": 0}, GOOD]}, set()),
        ("together", {"messages": [USER, USER, GOOD]}, {"roles-not-alternating"}),
        ("together", {"messages": [USER, GOOD], "text": "good"}, {"mixed-formats", "unknown-key"}),
        ("together", {**PAIR, "input": {"messages": [USER, BAD, USER]}}, set()),
        ("together", {**PAIR, "input": {"messages": [USER, BAD]}}, {"input-has-assistant"}),
        ("openai", {"prompt": "Is it good?", "completion": "Yes, it is."}, {"prompt-completion-format"}),
        ("openai", {"text": "Is it good? Yes, it is."}, {"text-format"}),
        ("openai", {"messages": [{**USER, "weight": 0}, GOOD]}, {"weight-not-assistant"}),
        ("openai", {"messages": [USER, USER, GOOD]}, set()),
        ("openai", {**PAIR, "input": {"messages": [USER, BAD, USER]}}, {"input-has-assistant"}),
        ("azure", CHAT, {"bom-missing"}),
        ("fireworks", {"messages": [{**USER, "weight": 0}, GOOD]}, set()),
        ("fireworks", {"messages": [USER, SYSTEM, GOOD]}, {"system-not-first"}),
        ("fireworks", {"text": "Is it good? Yes, it is."}, {"text-format"}),
        ("nebius", {"prompt": "Is it good?", "completion": "Yes, it is."}, set()),
        ("nebius", {"messages": [USER, CALLED], "tools": [TOOL]}, {"last-not-assistant"}),
        ("trl", {"prompt": "Is it good?", "completion": "Yes, it is."}, set()),
        ("trl", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, set()),
        ("trl", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}, set()),
        ("local", CHAT, set()),
        ("local", {"prompt": "Is it good?", "completion": "Yes, it is."}, {"prompt-completion-format"}),
    ],
)
def test_each_host_is_held_to_its_own_documents(
    host: str, row: dict[str, Any], codes: set[str], tmp_path: Path
) -> None:
    report = check(write(tmp_path / "a.jsonl", row), host=host, count=False, lint=False)
    assert report.codes - {"duplicate-row", "conflicting-rows"} == codes, report


def test_the_number_of_rows_is_held_to_each_hosts_own_limit(tmp_path: Path) -> None:
    for n, host, is_enough in (
        (1, "together", True),
        (2, "fireworks", False),
        (3, "fireworks", True),
        (9, "openai", False),
    ):
        report = check(write(tmp_path / "a.jsonl", CHAT, n), host=host, count=False)
        assert ("too-few-examples" not in report.codes) == is_enough, (n, host)


def test_every_host_of_the_catalog_has_rules_of_its_own() -> None:
    from dspy_finetune.catalog import load_catalog
    from dspy_finetune.export.dialects import RULES

    assert load_catalog().hosts.keys() <= RULES.keys()
    assert all(rules.source for rules in RULES.values())


@pytest.mark.parametrize(
    ("chosen", "rejected", "says"),
    [
        ("The Quiet Life of Rivers {}", "the quiet life of rivers {}", "in Title Case"),
        ("an answer about it {}.", "an answer about it {}", "end with a full stop"),
        ("Das ist nicht der Weg {}", "This is not the way {}", "in German"),
        ("- one {}\n- two", "one {}, and two", "hold a list"),
        ("it is <b>{}</b>", "it is {} then", "hold HTML tags"),
        ("жизнь рек {}", "life of rivers {}", "Cyrillic"),
    ],
)
def test_a_style_that_tells_the_answers_apart_is_told(chosen: str, rejected: str, says: str, tmp_path: Path) -> None:
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"Title {n}?"}]},
            "preferred_output": [{"role": "assistant", "content": chosen.format(n)}],
            "non_preferred_output": [{"role": "assistant", "content": rejected.format(n)}],
        }
        for n in range(12)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = [
        issue.message for issue in check(tmp_path / "a.jsonl", count=False).issues if issue.code == "shortcut-style"
    ]
    assert any(says in message and "100% of the chosen" in message for message in found), found


def test_keys_that_a_conversion_leaves_behind_are_named_before_the_file_appears(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", {"conversations": ASKED, "id": "x7", "source": "web"})
    converted = convert(path, tmp_path / "b.jsonl", to="openai")
    assert converted.manifest.left_behind == {"id": 12, "source": 12}
    assert '"id" (12 rows), "source" (12 rows)' in caplog.text
    path = write(tmp_path / "c.jsonl", {"messages": [USER, GOOD], "id": "x7"})
    assert convert(path, tmp_path / "d.jsonl", to="openai").manifest.left_behind == {}
    assert json.loads((tmp_path / "d.jsonl").read_text().splitlines()[0])["id"] == "x7"
    assert convert(path, tmp_path / "e.jsonl", to="trl").manifest.left_behind == {"id": 12}


@pytest.mark.parametrize(("host", "codes"), [("together", set()), ("openai", {"csv-file", "file-extension"})])
def test_a_csv_file_is_read_and_fixed_to_jsonl(host: str, codes: set[str], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion\n" + "".join(f"question {n}?,answer {n}\n" for n in range(12)))
    report = check(path, host=host, count=False)
    assert report.codes - {"prompt-completion-format"} == codes
    assert report.stats.n_rows == 12
    fixed = fix(path, tmp_path / "b.jsonl", host=host, count=False)
    assert fixed.report.ok
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 12
    assert convert(path, tmp_path / "c.jsonl", to="openai").n_rows == 12
    path.write_bytes(path.read_bytes() + b"a\0b,c,d\n")
    [told] = [issue for issue in check(path, host=host, count=False).issues if issue.code == "csv-row"]
    assert told.line == 14


FIELDS = {"prompt": "Is it good?", "completion": "Yes, it is."}
TEXT = {"text": "Is it good? Yes, it is."}


@pytest.mark.parametrize("host", ["together", "nebius", "trl"])
@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ([CHAT] * 3 + [FIELDS, CHAT], {4}),
        ([TEXT, CHAT, TEXT, FIELDS], {2, 4}),
        ([FIELDS] * 4, set()),
        ([CHAT] * 4, set()),
    ],
)
def test_a_file_is_in_the_format_of_its_first_row(
    host: str, rows: list[dict[str, Any]], lines: set[int], tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check(path, host=host, count=False, lint=False)
    assert {issue.line for issue in report.issues if issue.code == "mixed-formats"} == lines
