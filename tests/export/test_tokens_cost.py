"""Tokens are tiktoken's own, offline; costs follow from them by the published formula; what is unknown is said."""

from __future__ import annotations

import base64
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from dspy_finetune.catalog import load_catalog
from dspy_finetune.errors import FileError, RowError, UsageError
from dspy_finetune.export import (
    TokenCounter,
    count_messages,
    count_tokens,
    default_epochs,
    evaluation_cost,
    export_dpo,
    export_sft,
    inference_cost,
    tokens,
    training_cost,
)
from dspy_finetune.export.tokens import encoding_for, image_size, image_tokens, load_encoding
from dspy_finetune.prompts import binary, pairwise

MINI = "gpt-4.1-mini-2025-04-14"
ROWS: list[dict[str, Any]] = [
    {"title": f"Das Café Nr. {n} — 東京 <|endoftext|>", "is_favorite": n % 2 == 0} for n in range(20)
]


def plain_count(messages: list[dict[str, Any]]) -> int:
    """The cookbook's formula, once more, with nothing remembered."""
    table = load_encoding("o200k_base")
    total = 3
    for message in messages:
        total += 3 + sum(len(table.encode(str(value), disallowed_special=())) for value in message.values())
        total += 1 if "name" in message else 0
    return total


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt-4.1", "o200k_base"),
        ("ft:gpt-4.1-mini-2025-04-14:acme::abc", "o200k_base"),
        ("openai/ft:gpt-4o-mini-2024-07-18:acme:x:abc:ckpt-step-3", "o200k_base"),
        ("ft:gpt-3.5-turbo-0125:acme::abc", "cl100k_base"),
        ("ft:o4-mini-2025-04-16:acme::abc", "o200k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("gpt-4.1-2025-04-14.ft-0e45ab", "o200k_base"),
        ("smollm2-135m-instruct", None),
        ("meta-llama/Llama-3.3-70B", None),
        ("gpt2", None),
        (None, None),
    ],
)
def test_each_model_has_its_own_table(model: str | None, expected: str | None) -> None:
    assert encoding_for(model) == expected


def test_counts_are_tiktokens() -> None:
    prompt = binary("Likes bees.")
    counter = TokenCounter.for_model(MINI)
    assert counter is not None
    for _ in range(2):  # the second time from what is remembered
        for row in ROWS:
            messages = prompt.training_messages(row)
            assert counter.add({"messages": messages}) == counter.messages(messages) == plain_count(messages)
    assert counter.n_tokens == 2 * sum(plain_count(prompt.training_messages(row)) for row in ROWS)
    named = [{"role": "user", "name": "anna", "content": "hello"}]
    assert count_messages(named, MINI) == plain_count(named)
    assert count_tokens("hello world", MINI) == 2
    assert count_tokens("hello", "smollm2-135m-instruct") is None
    assert count_messages(named, "smollm2-135m-instruct") is None


def test_a_tokenizer_of_ones_own_counts_where_no_table_is_known(tmp_path: Path) -> None:
    dataset = export_sft(ROWS, binary(), tmp_path / "s.jsonl", base_model="smollm2-135m-instruct", tokenizer=len)
    assert dataset.n_tokens is not None
    assert dataset.manifest.encoding is None
    unknown = export_sft(ROWS, binary(), tmp_path / "t.jsonl", base_model="smollm2-135m-instruct")
    assert unknown.n_tokens is None


def test_a_pair_counts_its_prompt_once_and_both_outputs(tmp_path: Path) -> None:
    prompt = pairwise("Likes bees.")
    rows = [{"title_a": f"a {n}", "title_b": f"b {n}", "preferred": "A"} for n in range(10)]
    dataset = export_dpo(rows, prompt, tmp_path / "d.jsonl", base_model=MINI)
    answers = [{"role": "assistant", "content": text} for text in ("A", "B")]
    assert dataset.n_tokens == sum(plain_count([*prompt.messages(row), *answers]) for row in rows)


def test_tools_and_tool_calls_count() -> None:
    counter = TokenCounter.for_model(MINI)
    assert counter is not None
    row: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    bare = counter.row(row)
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Its name."},
                    "unit": {"type": "string", "enum": ["C", "F"]},
                },
            },
        },
    }
    # By hand, from the cookbook's formula: 12 after all functions, 7 for one, 3 for its properties, 3 for each of them,
    # -3 + 3 for each choice.
    texts = ["get_weather:Weather of a city", "city:string:Its name", "unit:string:", "C", "F"]
    by_hand = 12 + 7 + 3 + 3 + 3 - 3 + 3 + 3 + sum(counter.text(text) for text in texts)
    assert counter.row({**row, "tools": [tool]}) - bare == by_hand
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert counter.messages([answer]) == 3 + 3 + counter.text("assistant") + 3 + counter.text("f") + counter.text("{}")


def png(width: float, height: float) -> str:
    body = b"IHDR" + struct.pack(">IIBBBBB", int(width), int(height), 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((512, 512), 255), ((1024, 1024), 765), ((2048, 4096), 1105), ((100, 50), 255), ((4000, 1000), 765)],
)
def test_images_count_by_tiles(size: tuple[float, float], tokens: int) -> None:
    """The first three are the examples of OpenAI's vision guide."""
    assert image_size(png(*size)) == size
    assert image_tokens(png(*size), "high") == image_tokens(png(*size)) == tokens
    assert image_tokens(png(*size), "low") == 85


def test_other_image_formats_are_measured() -> None:
    heads = {
        "gif": b"GIF89a" + struct.pack("<HH", 30, 20) + b"\0" * 20,
        "jpeg": b"\xff\xd8\xff\xe0\x00\x04\0\0\xff\xc0\x00\x11\x08" + struct.pack(">HH", 20, 30) + b"\0" * 20,
        "webp": b"RIFF\0\0\0\0WEBPVP8X\0\0\0\0\0\0\0\0" + (29).to_bytes(3, "little") + (19).to_bytes(3, "little"),
    }
    for kind, data in heads.items():
        assert image_size(f"data:image/{kind};base64,{base64.b64encode(data).decode()}") == (30, 20), kind
    assert image_size("data:image/png;base64,AAAA") is None
    assert image_size("data:image/png;base64,é") is None
    assert image_size("https://example.com/a.png") is None
    counter = TokenCounter.for_model(MINI)
    assert counter is not None
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}
    message = {"role": "user", "content": [{"type": "text", "text": "hi"}, image]}
    assert counter.messages([message]) == 3 + 3 + counter.text("user") + counter.text("hi") + 85


def test_counting_needs_no_network_and_leaves_the_environment(tmp_path: Path) -> None:
    """An empty home and cache, no name resolution, litellm never imported; the variable is put back."""
    code = (
        "import os, socket, sys\n"
        "def refuse(*a, **k): raise OSError('no network')\n"
        "socket.getaddrinfo = refuse\n"
        "from dspy_finetune.export.tokens import count_tokens\n"
        "before = dict(os.environ)\n"
        "print(count_tokens('hello world', 'gpt-4.1'), count_tokens('hello world', 'gpt-3.5-turbo'))\n"
        "assert dict(os.environ) == before\n"
        "assert 'litellm' not in sys.modules\n"
    )
    drop = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
    environment = {key: value for key, value in os.environ.items() if key not in drop}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["2", "2"]


def test_a_table_that_cannot_be_had_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    def refuse(name: str) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(tokens, "packaged_tables", lambda name: None)
    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    load_encoding.cache_clear()
    try:
        with pytest.raises(FileError, match="o200k_base") as caught:
            count_tokens("x", "gpt-4.1")
    finally:
        load_encoding.cache_clear()
    assert "\n" not in str(caught.value)
    assert "no network" in str(caught.value)


@pytest.mark.parametrize(
    ("n_rows", "n_epochs"),
    [(1, 25), (4, 25), (5, 20), (10, 10), (33, 3), (34, 3), (100, 3), (8_333, 3), (8_334, 2), (12_500, 2), (25_001, 1)],
)
def test_default_epochs_are_openais_rule(n_rows: int, n_epochs: int) -> None:
    # Second definition, after the cookbook: aim at 3; at least 100 and at most 25,000 examples seen; 1 to 25 epochs.
    expected = 3
    if n_rows * 3 < 100:
        expected = min(25, 100 // n_rows)
    elif n_rows * 3 > 25_000:
        expected = max(1, 25_000 // n_rows)
    assert default_epochs(n_rows) == expected == n_epochs
    with pytest.raises(UsageError):
        default_epochs(0)


def test_the_guides_own_example() -> None:
    """OpenAI's guide: 100,000 tokens, three epochs, gpt-4o-mini: 0.90 USD."""
    cost = training_cost(base_model="gpt-4o-mini", n_rows=1000, n_tokens=100_000, n_epochs=3)
    assert cost.cost_usd == pytest.approx(0.90)
    assert cost.unknown is None


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_training_cost_of_a_dataset_is_price_times_tokens_times_epochs(tmp_path: Path, method: str) -> None:
    rows = [{"title_a": f"a {n}", "title_b": f"b {n}", "preferred": "A"} for n in range(20)]
    export = export_sft if method == "sft" else export_dpo
    dataset = export(rows, pairwise(), tmp_path / "d.jsonl", base_model=MINI)
    cost = training_cost(dataset)
    assert dataset.n_tokens is not None
    assert cost.cost_usd == pytest.approx(5.00 / 1e6 * dataset.n_tokens * 5)  # 20 rows: 100 // 20 epochs
    assert (cost.method, cost.n_epochs, cost.is_default_epochs, cost.price_usd) == (method, 5, True, 5.0)
    assert training_cost(dataset, n_epochs=1).cost_usd == pytest.approx(5.00 / 1e6 * dataset.n_tokens)
    assert training_cost(dataset, host="local").cost_usd == 0.0


def test_long_rows_are_billed_up_to_the_training_context(tmp_path: Path) -> None:
    rows = [{"title": "word " * 70_000, "is_favorite": True}, {"title": "short", "is_favorite": False}]
    dataset = export_sft(rows, binary(), tmp_path / "s.jsonl", base_model=MINI)
    prompt = binary()
    sizes = [plain_count(prompt.training_messages(row)) for row in rows]
    assert dataset.manifest.n_tokens == sum(sizes)
    assert dataset.manifest.n_billed_tokens == 65_536 + sizes[1]


def test_what_is_unknown_is_said_and_never_zero(tmp_path: Path) -> None:
    cases = [
        training_cost(base_model="my-model", n_rows=10, n_tokens=1000),
        training_cost(base_model=MINI, n_rows=10),
        training_cost(base_model=MINI, n_rows=10, n_tokens=1000, host="azure"),
        training_cost(base_model=MINI, n_rows=10, n_tokens=1000, host="together"),
        training_cost(base_model="o4-mini", method="rft", n_rows=10, n_tokens=1000),
    ]
    for cost in cases:
        assert cost.cost_usd is None
        assert cost.unknown
    hours = training_cost(base_model="o4-mini", method="rft", n_rows=10, n_hours=1.5)
    assert hours.cost_usd == pytest.approx(150.0)
    dataset = export_sft(ROWS, binary(), tmp_path / "s.jsonl")
    assert training_cost(dataset, base_model=MINI).cost_usd is None
    with pytest.raises(UsageError, match="base_model"):
        training_cost(dataset)
    with pytest.raises(UsageError, match="base_model"):
        training_cost()


def test_inference_cost_is_price_times_tokens() -> None:
    tuned = f"ft:{MINI}:acme::abc"
    million: dict[str, Any] = {"n_requests": 10, "n_input_tokens": 1_000_000, "n_output_tokens": 100_000}
    cost = inference_cost(tuned, **million, n_cached_tokens=400_000)
    assert cost.cost_usd == pytest.approx(0.6 * 0.80 + 0.4 * 0.20 + 0.1 * 3.20)
    batch = inference_cost(tuned, **million, is_batch=True)
    assert batch.cost_usd == pytest.approx(0.40 + 0.1 * 1.60)
    base = inference_cost(MINI, **million)
    assert base.cost_usd == pytest.approx(0.40 + 0.1 * 1.60)
    planned = inference_cost(MINI, **{**million, "n_output_tokens": 0}, is_tuned=True)
    assert planned.cost_usd == pytest.approx(0.80)
    few: dict[str, Any] = {"n_requests": 1, "n_input_tokens": 10, "n_output_tokens": 10}
    for unknown in (
        inference_cost("my-model", **few),
        inference_cost(tuned, n_requests=1, n_input_tokens=None, n_output_tokens=10),
        inference_cost(MINI, **few, is_batch=True),
        inference_cost("gpt-3.5-turbo", **few, n_cached_tokens=3, is_tuned=True),
    ):
        assert unknown.cost_usd is None
        assert unknown.unknown
    local = inference_cost("smollm2", n_requests=1, n_input_tokens=None, n_output_tokens=None, host="local")
    assert local.cost_usd == 0.0


@pytest.mark.parametrize("wrong", [{"n_epochs": 0}, {"n_epochs": -3}, {"n_tokens": -1}, {"n_hours": -0.5}])
def test_amounts_below_nothing_have_no_price(wrong: dict[str, Any]) -> None:
    """Rather than a cost of 0, or one below."""
    with pytest.raises(UsageError, match=next(iter(wrong))):
        training_cost(base_model=MINI, **{"n_rows": 10, "n_tokens": 5, **wrong})
    for name in ("n_input_tokens", "n_output_tokens", "n_cached_tokens"):
        amounts: dict[str, Any] = {"n_input_tokens": 1, "n_output_tokens": 1, name: -1}
        with pytest.raises(UsageError, match=name):
            inference_cost(MINI, n_requests=1, **amounts)
    with pytest.raises(UsageError, match="more than all of the 3"):
        inference_cost(MINI, n_requests=1, n_input_tokens=3, n_output_tokens=0, n_cached_tokens=4)


def test_a_planned_evaluation_is_priced_by_its_own_prompts() -> None:
    prompt = binary("Likes bees.")
    cost = evaluation_cost(ROWS, prompt, MINI, is_tuned=True, n_calls_per_example=2)
    n_in = 2 * sum(plain_count(prompt.messages(row)) for row in ROWS)
    assert (cost.n_requests, cost.n_input_tokens, cost.n_output_tokens) == (40, n_in, 40)
    assert cost.cost_usd == pytest.approx(n_in / 1e6 * 0.80 + 40 / 1e6 * 3.20)
    unlabelled = [{"title": row["title"]} for row in ROWS]
    assert evaluation_cost(unlabelled, prompt, MINI, n_answer_tokens=7).n_output_tokens == 140
    unknown = evaluation_cost(ROWS, prompt, "nobody-knows")
    assert unknown.cost_usd is None


@pytest.mark.parametrize("dialect", ["openai", "trl"])
def test_the_rows_of_a_file_cost_what_their_examples_cost(tmp_path: Path, dialect: str) -> None:
    prompt = binary("Likes bees.")
    sft = export_sft(ROWS, prompt, tmp_path / "sft.jsonl", dialect=dialect)
    dpo = export_dpo(ROWS, prompt, tmp_path / "dpo.jsonl", dialect=dialect)
    same = evaluation_cost(ROWS, prompt, MINI, is_tuned=True, is_batch=True)
    for dataset in (sft, dpo):
        rows = [json.loads(line) for line in dataset.path.read_text().splitlines()]
        assert evaluation_cost(rows, None, MINI, is_tuned=True, is_batch=True) == same
    tool = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    asked = [{"role": "user", "content": "Where?"}]
    called = {"messages": [*asked, {"role": "assistant", "tool_calls": [tool]}]}
    assert evaluation_cost([called], None, MINI).n_output_tokens == 3 + (count_tokens("look", MINI) or 0) + (
        count_tokens("{}", MINI) or 0
    )
    for without in ({"messages": asked}, {"messages": "none"}):
        with pytest.raises(RowError, match="row 2: no answer whose length"):
            evaluation_cost([called, without], None, MINI)
    assert evaluation_cost([{"messages": asked}], None, MINI, n_answer_tokens=9).n_output_tokens == 9


def test_a_users_price_is_used(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"models": {"my-model": {"host": "together", "prices": {"training": 2.5}}}}')
    cost = training_cost(
        base_model="my-model", n_rows=100, n_tokens=1_000_000, n_epochs=1, host="together", catalog=load_catalog(path)
    )
    assert cost.cost_usd == 2.5
