"""Exported files: every line fits OpenAI's schema, the manifest tells the truth, and a file is whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import jsonschema
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_finetune.data import iter_examples, load_examples
from dspy_finetune.errors import DataError, EmptyDatasetError, FileError, RowError, RowsError, UsageError
from dspy_finetune.evaluation import baselines
from dspy_finetune.export import (
    Manifest,
    Preference,
    TrainingFile,
    evaluation_cost,
    export_dpo,
    export_sft,
    lint,
    preferences_from_corrections,
    preferences_from_mistakes,
)
from dspy_finetune.export.checks.checker import check
from dspy_finetune.export.dataset import forget_manifest, manifest_path
from dspy_finetune.export.writer import encode_row
from dspy_finetune.predictors import OpenAIPredictor
from dspy_finetune.prompts import PromptFormat, answer, as_adapter, binary, explained_pairwise, pairwise

SCHEMAS = Path(__file__).parent / "schemas"
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]
TITLES = [f"Title number {n} — „quoted“ \\ {{brace}}" for n in range(12)]


def titles() -> list[dspy.Example]:
    return [dspy.Example(title=text, is_favorite=n % 3 == 0).with_inputs("title") for n, text in enumerate(TITLES)]


def pairs() -> list[dspy.Example]:
    return [
        dspy.Example(title_a=text, title_b=text[::-1], preferred="AB"[n % 2], explanation=f"reason {n}").with_inputs(
            "title_a", "title_b"
        )
        for n, text in enumerate(TITLES)
    ]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()]


def schema(method: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{method}.json").read_text()))


def test_each_line_of_the_three_files_fits_openais_schema(tmp_path: Path) -> None:
    """Binary SFT, pairwise SFT and pairwise DPO, and the bytes are the prompt's own messages."""
    for name, prompt, rows in (
        ("binary", binary("Likes bees."), titles()),
        ("pairwise", pairwise("Likes bees."), pairs()),
        ("explained", explained_pairwise("Likes bees."), pairs()),
    ):
        dataset = export_sft(rows, prompt, tmp_path / f"{name}.jsonl")
        found = lines(dataset.path)
        assert [row["messages"] for row in found] == [prompt.training_messages(example) for example in rows]
        for row in found:
            schema("sft").validate(row)
        assert dataset.report.ok
    for name, prompt in (("pairwise", pairwise("Likes bees.")), ("explained", explained_pairwise("Likes bees."))):
        dataset = export_dpo(pairs(), prompt, tmp_path / f"{name}.dpo.jsonl")
        for row, example in zip(lines(dataset.path), pairs(), strict=True):
            schema("dpo").validate(row)
            assert row["input"]["messages"] == prompt.messages(example)
            assert row["preferred_output"] == [{"role": "assistant", "content": prompt.completion(example)}]
            assert row["non_preferred_output"] != row["preferred_output"]
        assert dataset.report.ok


def test_our_schemas_refuse_what_openai_refuses() -> None:
    good: dict[str, Any] = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}]
    }
    assert schema("sft").is_valid(good)
    for change in ({"weight": 0.5}, {"weight": 2}, {"role": "developer"}, {"content": 3}):
        assert not schema("sft").is_valid({"messages": [good["messages"][0], {**good["messages"][1], **change}]})
    assert not schema("dpo").is_valid({"input": good, "preferred_output": [good["messages"][1]]})
    assert not schema("dpo").is_valid({"messages": good["messages"], "preferred": "A", "rejected": "B"})


def test_rejected_answers_differ_in_the_label_alone(tmp_path: Path) -> None:
    """The explanation stays, so no phrase tells chosen from rejected."""
    dataset = export_dpo(pairs(), explained_pairwise(), tmp_path / "d.jsonl")
    for row in lines(dataset.path):
        chosen, rejected = (row[key][0]["content"] for key in ("preferred_output", "non_preferred_output"))
        assert {chosen[0], rejected[0]} == {"A", "B"}
        assert chosen[1:] == rejected[1:]


def test_one_of_several_other_labels_is_drawn_with_the_seed(tmp_path: Path) -> None:
    prompt = PromptFormat("title -> genre: Literal['history', 'craft', 'war', 'food']")
    rows = [{"title": text, "genre": "craft"} for text in TITLES * 20]
    first, again, other = (
        export_dpo(rows, prompt, tmp_path / f"{name}.jsonl", seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.path.read_bytes() == again.path.read_bytes() != other.path.read_bytes()
    drawn = {row["non_preferred_output"][0]["content"] for row in lines(first.path)}
    assert drawn == {"history", "war", "food"}
    assert first.manifest.seed == 0


@pytest.mark.parametrize(
    "pair",
    [
        Preference(inputs={"question": "q"}, chosen={"answer": "good"}, rejected={"answer": "bad"}),
        Preference(inputs={"question": "q"}, chosen="good", rejected="bad"),
        {"question": "q", "answer": "good", "rejected_answer": "bad"},
        {"question": "q", "answer": "good", "rejected": "bad"},
        {"question": "q", "chosen": {"answer": "good"}, "rejected": {"answer": "bad"}},
        dspy.Example(question="q", chosen="good", rejected="bad").with_inputs("question"),
    ],
)
def test_every_spelling_of_a_pair_gives_the_same_line(tmp_path: Path, pair: Any) -> None:
    dataset = export_dpo([pair], answer("Be brief."), tmp_path / "d.jsonl")
    assert lines(dataset.path) == [
        {
            "input": {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]},
            "preferred_output": [{"role": "assistant", "content": "good"}],
            "non_preferred_output": [{"role": "assistant", "content": "bad"}],
        }
    ]


def test_tools_go_into_every_row(tmp_path: Path) -> None:
    sft = export_sft(titles(), binary(), tmp_path / "s.jsonl", tools=TOOLS, parallel_tool_calls=False)
    dpo = export_dpo(pairs(), pairwise(), tmp_path / "d.jsonl", tools=TOOLS, parallel_tool_calls=False)
    for row in lines(sft.path):
        schema("sft").validate(row)
        assert (row["tools"], row["parallel_tool_calls"]) == (TOOLS, False)
    for row in lines(dpo.path):
        schema("dpo").validate(row)
        assert (row["input"]["tools"], row["input"]["parallel_tool_calls"]) == (TOOLS, False)


def test_ready_rows_pass_through_whole(tmp_path: Path) -> None:
    """Weights, tool calls and image parts come out as they went in."""
    row: dict[str, Any] = {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
                ],
            },
            {"role": "assistant", "content": "A cat", "weight": 0},
            {"role": "user", "content": "And outside?"},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Brno"}'}}
                ],
            },
        ],
        "tools": TOOLS,
        "parallel_tool_calls": False,
    }
    schema("sft").validate(row)
    dataset = export_sft([row, dspy.Example(row)], None, tmp_path / "s.jsonl")
    assert lines(dataset.path) == [row, row]
    assert dataset.prompt is None
    assert dataset.manifest.prompt is None


def test_the_manifest_tells_the_truth(tmp_path: Path) -> None:
    prompt = binary("Likes bees.")
    rows: list[Any] = [*titles(), titles()[0], dspy.Example(title="no label").with_inputs("title")]
    path = tmp_path / "deep" / "train.jsonl"
    dataset = export_sft(
        iter(rows), prompt, path, base_model="ft:gpt-4.1-mini:a::b", on_error="skip", dedupe=True, seed=7
    )
    data = path.read_bytes()
    manifest = Manifest.read(path)
    assert manifest == dataset.manifest
    assert manifest is not None
    assert manifest.sha256 == hashlib.sha256(data).hexdigest()
    assert (manifest.size_bytes, manifest.n_rows_in, manifest.n_rows_out) == (len(data), 14, 12)
    assert manifest.n_skipped == 2
    assert sorted(manifest.skipped.values()) == [1, 1]
    assert [row["row"] for row in manifest.skipped_rows] == [13, 14]
    assert (manifest.prompt_digest, manifest.prompt) == (prompt.digest, prompt.to_dict())
    assert (manifest.encoding, manifest.seed, manifest.method, manifest.dialect) == ("o200k_base", 7, "sft", "openai")
    assert {"python", "dspy", "tiktoken"} <= set(manifest.versions)
    assert dataset.n_rows == data.count(b"\n") == 12
    assert TrainingFile.load(path) == dataset
    assert TrainingFile.load(path).prompt == prompt


def test_a_changed_file_is_no_longer_the_manifests(tmp_path: Path) -> None:
    dataset = export_sft(titles(), binary(), tmp_path / "s.jsonl")
    dataset.path.write_bytes(dataset.path.read_bytes() + b"{}\n")
    with pytest.raises(DataError, match="changed after it was exported"):
        TrainingFile.load(dataset.path)
    forget_manifest(dataset.path)
    with pytest.raises(DataError, match="no manifest"):
        TrainingFile.load(dataset.path)


@pytest.mark.parametrize(
    ("text", "says"), [("{", "not JSON"), ("[]", "not a manifest"), ('{"format_version": 99}', "99")]
)
def test_a_faulty_manifest_is_an_error(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "s.jsonl"
    manifest_path(path).write_text(text)
    with pytest.raises(DataError, match=says):
        Manifest.read(path)


def test_all_bad_rows_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    rows: list[Any] = titles()
    rows[2] = dspy.Example(is_favorite=True)
    rows[5] = {"title": "x", "is_favorite": "perhaps"}
    rows[7] = {"title": "half \ud800 a pair", "is_favorite": True}
    path = tmp_path / "s.jsonl"
    with pytest.raises(RowsError) as caught:
        export_sft(rows, binary(), path)
    assert [error.line for error in caught.value.errors] == [3, 6, 8]
    assert list(tmp_path.iterdir()) == []
    dataset = export_sft(rows, binary(), path, on_error="skip")
    assert (dataset.manifest.n_rows_in, dataset.n_rows, dataset.manifest.n_skipped) == (12, 9, 3)


def test_equal_answers_are_no_pair(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "same", "rejected": "same"}
    with pytest.raises(RowsError, match="row 1: chosen and rejected are the same"):
        export_dpo([row], answer(), tmp_path / "d.jsonl")
    with pytest.raises(RowsError, match="no rejected answer"):
        export_dpo([{"question": "q", "answer": "text"}], answer(), tmp_path / "d.jsonl")


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    with pytest.raises(EmptyDatasetError, match="there are no examples"):
        export_sft([], binary(), path)
    with pytest.raises(EmptyDatasetError, match="the one example was left out"):
        export_sft([{}], binary(), path, on_error="skip")
    with pytest.raises(UsageError, match='unknown dialect "opanai"'):
        export_sft(titles(), binary(), path, dialect="opanai")
    with pytest.raises(UsageError, match="on_error"):
        export_sft(titles(), binary(), path, on_error="ignore")  # type: ignore[arg-type]  # the wrong value is the test
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        export_sft(titles(), binary(), tmp_path / "file" / "s.jsonl")
    with pytest.raises(RowsError, match="row 1"):
        export_sft(["text"], None, path)
    with pytest.raises(RowsError, match="row 1"):
        export_dpo([{"messages": []}], None, path)
    assert not path.exists()


def test_a_source_that_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    def stream() -> Any:
        yield from titles()
        raise RowError("broken", path="in.jsonl", line=13)

    with pytest.raises(RowError, match=r"in\.jsonl:13"):
        export_sft(stream(), binary(), tmp_path / "s.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_while_the_file_is_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def fail_once(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 1:  # the disk tells of a lost block once; asked again, it says that all is well
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail_once)
    rows = ({"title": f"{n} {'long ' * 200}", "is_favorite": n % 2 == 0} for n in range(6_000))
    with pytest.raises(FileError, match=r"cannot write .*train\.jsonl: Input/output error"):
        export_sft(rows, binary("a rubric"), tmp_path / "train.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [export_sft, export_dpo])
@pytest.mark.parametrize(
    ("examples", "prompt", "says"),
    [
        ("rows.jsonl", binary(), "load the file with load_examples"),
        (Path("rows.jsonl"), binary(), "load the file with load_examples"),
        ({"title": "Bees", "is_favorite": True}, binary(), "a list or an iterator of examples is needed, got dict"),
        (None, binary(), "got NoneType"),
        (pd.DataFrame({"title": ["Bees"], "is_favorite": [True]}), binary(), "a DataFrame is a table; load it"),
        ([{"title": "Bees", "is_favorite": True}], "binary", "must be a PromptFormat"),
    ],
)
def test_what_is_no_list_of_examples_is_refused(
    tmp_path: Path, write: Any, examples: Any, prompt: Any, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        write(examples, prompt, tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("load", [load_examples, iter_examples])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_labelled_data_is_never_replaced(tmp_path: Path, load: Any, method: str) -> None:
    """Under whatever name the file is given."""
    path, other = tmp_path / "rows.jsonl", tmp_path / "other.jsonl"
    rows = "".join(json.dumps({"title": f"Title {n}", "is_favorite": n % 2 == 0}) + "\n" for n in range(12))
    path.write_text(rows)
    other.symlink_to(path)
    write = export_sft if method == "sft" else export_dpo
    for out in (path, other):
        with pytest.raises(UsageError, match="is the file that the examples come from"):
            write(load(path, signature=binary().signature), binary(), out)
    assert path.read_text() == rows
    assert write(load(path, signature=binary().signature), binary(), tmp_path / "new.jsonl").n_rows == 12


def test_the_old_manifest_never_describes_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    export_sft(titles(), binary(), path)
    os.chmod(tmp_path, 0o700)
    second = export_sft(titles()[:10], binary(), path)
    assert Manifest.read(path) == second.manifest


def test_kill_9_leaves_no_file_under_the_final_name(tmp_path: Path) -> None:
    """A child exports an endless stream and is killed in the middle of it; an earlier file stays as it was."""
    code = textwrap.dedent(
        """
        import sys, itertools
        from dspy_finetune.export import export_sft
        rows = ({"messages": [{"role": "user", "content": "x" * 500}, {"role": "assistant", "content": str(n)}]}
                for n in itertools.count())
        export_sft(rows, None, sys.argv[1])
        """
    )
    old = export_sft(titles(), binary(), tmp_path / "old.jsonl")
    before = old.path.read_bytes()
    for path in (tmp_path / "new.jsonl", old.path):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)])
        try:
            deadline = time.monotonic() + 60
            while not any(part.stat().st_size > 1 << 20 for part in tmp_path.glob(f".{path.name}.*.part")):
                assert child.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    assert not (tmp_path / "new.jsonl").exists()
    assert not manifest_path(tmp_path / "new.jsonl").exists()
    assert old.path.read_bytes() == before
    assert TrainingFile.load(old.path).manifest == old.manifest


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """60,000 title rows with checks and manifest, from a stream: under 20 MB above what a first small export takes."""
    code = textwrap.dedent(
        """
        import sys
        from dspy_finetune import prompts
        from dspy_finetune.export import export_sft
        prompt = prompts.binary("Likes essays on craft.")
        def rows(n):
            for i in range(n):
                yield {"title": f"Why corner shop number {i} outlives the chain store", "is_favorite": i % 2 == 0}
        export_sft(rows(20), prompt, sys.argv[1])
        def peak_mb():
            # Not ru_maxrss: a child starts with its parent's.
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
        before = peak_mb()
        dataset = export_sft(rows(60_000), prompt, sys.argv[1])
        assert dataset.n_rows == 60_000
        print(peak_mb() - before)
        """
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s.jsonl")], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 20


def test_examples_give_the_same_file_and_report_as_their_ready_rows(tmp_path: Path) -> None:
    """Bad, blank and over-long ones among them."""
    prompt = answer("Be brief.")
    rows: list[Any] = [{"question": f"Q {n} é", "answer": f"A {n % 7}" if n % 11 else "x" * 200} for n in range(1500)]
    rows[3] = {"question": "no answer"}
    rows[700] = {"question": " ", "answer": "blank question"}
    rows[1400] = {"question": "long " * 70_000, "answer": "cut"}
    rows[1401] = rows[1402]
    model = "gpt-4.1-mini"
    made = export_sft(rows, prompt, tmp_path / "a.jsonl", base_model=model, on_error="skip")
    ready = [{"messages": prompt.training_messages(row)} for row in rows if "answer" in row]
    slow = export_sft(ready, None, tmp_path / "b.jsonl", base_model=model)
    assert made.path.read_bytes() == slow.path.read_bytes()
    assert made.manifest.sha256 == slow.manifest.sha256
    assert (made.n_tokens, made.manifest.n_billed_tokens) == (slow.n_tokens, slow.manifest.n_billed_tokens)
    assert replace(made.report, path=None) == replace(slow.report, path=None)
    assert {"context-length", "duplicate-row"} <= made.report.codes
    assert made.report == check(made.path, method="sft", base_model=model)
    assert [row["row"] for row in made.manifest.skipped_rows] == [4]


def test_preferences_give_the_same_file_and_report_as_their_ready_rows(tmp_path: Path) -> None:
    """Every spelling of a pair, bad and blank ones among them."""
    prompt = explained_pairwise("Likes bees.")
    rows: list[Any] = [
        {"title_a": f'Title {n} "é"', "title_b": f"Other {n}\nx", "preferred": "AB"[n % 2], "explanation": f"why {n}"}
        for n in range(1700)
    ]
    rows[5] = {**rows[5], "rejected_explanation": "another reason"}
    rows[6] = {**rows[6], "rejected": "B: a text of its own", "chosen": {"preferred": "A", "explanation": "so"}}
    rows[7] = Preference(inputs=rows[7], chosen="A: a text", rejected="B: a text")
    rows[600] = {**rows[600], "preferred": "C"}
    rows[601] = Preference(inputs=rows[601], chosen="same", rejected="same")
    rows[1200] = Preference(inputs=rows[1200], chosen="A: x", rejected="  ")
    rows[1690] = rows[1691]
    rows[1692] = {**rows[1691], "preferred": "AB"[1692 % 2]}
    model = "gpt-4.1-mini"
    made = export_dpo(rows, prompt, tmp_path / "a.jsonl", base_model=model, on_error="skip")
    assert [row["row"] for row in made.manifest.skipped_rows] == [601, 602]
    slow = export_dpo(lines(made.path), None, tmp_path / "b.jsonl", base_model=model)
    one = export_dpo(iter([*rows[:600], *rows[602:]]), prompt, tmp_path / "c.jsonl", base_model=model, dedupe=True)
    assert made.path.read_bytes() == slow.path.read_bytes()
    assert one.n_rows == made.n_rows - 1
    assert (made.n_tokens, made.manifest.n_billed_tokens) == (slow.n_tokens, slow.manifest.n_billed_tokens)
    assert replace(made.report, path=None) == replace(slow.report, path=None)
    assert {"duplicate-row", "preference-reversed", "output-empty"} <= made.report.codes
    assert made.report == check(made.path, method="dpo", base_model=model)
    for row, example in zip(lines(made.path)[8:12], rows[8:12], strict=True):
        assert row["input"]["messages"] == prompt.messages(example)
        assert row["preferred_output"][0]["content"] == prompt.completion(example)
        assert row["non_preferred_output"][0]["content"][1:] == prompt.completion(example)[1:]


def test_a_broken_system_prompt_is_named_for_each_row(tmp_path: Path) -> None:
    with pytest.raises((RowsError, UsageError), match="surrogate"):
        export_sft(titles(), binary("half \ud800 a pair"), tmp_path / "a.jsonl")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries({"role": st.text(max_size=9), "content": JSON}) | st.fixed_dictionaries(
    {"content": st.text(), "role": st.text(max_size=9)}
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=8), JSON | st.lists(MESSAGE, max_size=3), max_size=4))
def test_rows_are_encoded_as_json_that_reads_back_to_them(row: dict[str, Any]) -> None:
    """Compact, in the order of the keys; orjson writes floats otherwise than the json module (1e16 for 1e+16)."""
    line = encode_row(row)
    assert json.loads(line) == row
    assert list(json.loads(line)) == list(row)
    expected = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()
    assert line == expected or any(type(value) is float for value in _leaves(row))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


def test_integers_beyond_64_bits_keep_their_digits() -> None:
    assert encode_row({"messages": [], "id": 10**30}) == b'{"messages":[],"id":1' + b"0" * 30 + b"}"


@pytest.mark.parametrize("value", [float("nan"), object(), {1: {2, 3}}])
def test_what_is_not_json_is_named(value: Any) -> None:
    with pytest.raises(RowError, match="cannot be written as JSON"):
        encode_row({"messages": [{"role": "user", "content": value}]})


@pytest.mark.parametrize("base_model", [None, "gpt-4.1-mini"])
@pytest.mark.parametrize("dialect", ["openai", "azure", "together", "fireworks", "trl"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_report_is_the_same_as_checking_the_file(
    tmp_path: Path, method: str, dialect: str, base_model: str | None
) -> None:
    """Checked while it is written or afterwards: the same issues, duplicates and contradictions among them."""
    prompt = binary("Likes bees.") if method == "sft" else pairwise("Likes bees.")
    rows: list[Any] = titles() if method == "sft" else pairs()
    rows = [*rows, rows[0], rows[1]]
    if method == "sft":
        rows.append(dspy.Example(title=TITLES[0], is_favorite=False))
    else:
        rows.append(dspy.Example(title_a=TITLES[0], title_b=TITLES[0][::-1], preferred="B"))
    export = export_sft if method == "sft" else export_dpo
    dataset = export(rows, prompt, tmp_path / "s.jsonl", dialect=dialect, base_model=base_model)
    assert dataset.report == check(dataset.path, method=method, host=dialect, base_model=base_model)
    assert dataset.manifest.issues == dataset.report.counts
    assert dataset.report.counts
    if base_model is not None:
        assert dataset.report.stats.tokens is not None
        assert dataset.report.stats.tokens.total == dataset.n_tokens


@pytest.mark.parametrize("load", [load_examples, iter_examples], ids=["list", "stream"])
@pytest.mark.parametrize("write", [export_sft, export_dpo], ids=["sft", "dpo"])
def test_rows_that_the_loader_left_out_stand_in_the_manifest(load: Any, write: Any, tmp_path: Path) -> None:
    source = tmp_path / "titles.jsonl"
    rows = [json.dumps({"title": text, "is_favorite": n % 2 == 0}) for n, text in enumerate(TITLES)]
    source.write_text(
        "\n".join([*rows[:3], "{broken", *rows[3:], json.dumps({"title": "x", "is_favorite": "perhaps"})])
    )
    prompt = binary()
    examples = load(source, signature=prompt.signature, on_error="skip")
    manifest = write(examples, prompt, tmp_path / "out.jsonl").manifest
    assert (manifest.n_rows_in, manifest.n_rows_out, manifest.n_skipped) == (14, 12, 2)
    assert [row["row"] for row in manifest.skipped_rows] == [4, 14]
    assert any("is_favorite" in reason for reason in manifest.skipped)
    assert Manifest.read(tmp_path / "out.jsonl") == manifest


def test_many_rows_that_the_loader_left_out_are_counted_all(tmp_path: Path) -> None:
    source = tmp_path / "titles.jsonl"
    good = [json.dumps({"title": text, "is_favorite": True}) for text in TITLES]
    source.write_text("\n".join([*good, *["{broken"] * 1500]))
    prompt = binary()
    examples = iter_examples(source, signature=prompt.signature, on_error="skip")
    examples.max_kept = 100
    manifest = export_sft(examples, prompt, tmp_path / "out.jsonl").manifest
    assert (manifest.n_rows_in, manifest.n_rows_out, manifest.n_skipped) == (1512, 12, 1500)


def test_a_signature_is_taken_wherever_a_prompt_is(tmp_path: Path) -> None:
    """What is trained from the text of a signature is what a predictor of the same text asks."""
    text = "title -> liked: bool"
    rows = [dspy.Example(title=f"Title {n}", liked=n % 2 == 0).with_inputs("title") for n in range(12)]
    made = export_sft(rows, text, tmp_path / "sft.jsonl")
    assert made.prompt is not None
    assert made.prompt.digest == PromptFormat(text).digest == OpenAIPredictor(text, "ft:x:y::z").prompt.digest
    assert export_dpo(rows, dspy.Signature(text), tmp_path / "dpo.jsonl").n_rows == 12
    assert as_adapter(text).prompt.digest == made.prompt.digest
    assert lint(made.path, prompt=text).codes == lint(made.path, prompt=made.prompt).codes
    asked = [
        evaluation_cost(rows, prompt, "gpt-4.1-mini-2025-04-14", tokenizer=lambda text: len(text.split()))
        for prompt in (text, made.prompt)
    ]
    assert asked[0] == asked[1]
    corrected = [dspy.Example(title="Bees", liked=True, said="false")]
    assert len(preferences_from_corrections(corrected, text)) == 1
    assert len(preferences_from_mistakes(rows, [{"liked": True}] * 12, text)) == 6
    assert baselines.untuned(text, "base").prompt.digest == made.prompt.digest
