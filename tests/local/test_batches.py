"""Batches of the local host: what OpenAI's own client sees, and what a kill -9 leaves."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest

import dspy_finetune as ft
from dspy_finetune.local.batches import Batches, BatchRecord
from dspy_finetune.local.store import Store
from tests.local.toy_server import ToyServer, start_server


def lines(count: int, **body: Any) -> bytes:
    rows = [
        {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "toy", "messages": [{"role": "user", "content": f"Title: {number}"}], "max_tokens": 2,
                "temperature": 0, "logprobs": True, "top_logprobs": 3, **body,
            },
        }
        for number in range(count)
    ]  # fmt: skip
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def submit(client: Any, content: bytes, **options: Any) -> str:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **options
    )
    return str(batch.id)


def wait(client: Any, batch_id: str) -> Any:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        batch = client.batches.retrieve(batch_id)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
        time.sleep(0.05)
    raise AssertionError("the batch did not end")


def results(client: Any, file_id: str) -> dict[str, Any]:
    rows = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows)
    return {row["custom_id"]: row for row in rows}


def test_a_batch_gives_the_answers_that_single_chats_give(server: ToyServer) -> None:
    client = server.client()
    batch = wait(client, submit(client, lines(5), metadata={"mine": "1"}))
    assert (batch.status, batch.metadata, batch.error_file_id) == ("completed", {"mine": "1"}, None)
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (5, 5, 0)
    found = results(client, batch.output_file_id)
    body = json.loads(lines(4).splitlines()[3])["body"]
    alone = client.chat.completions.create(**body)
    answer = found["row-3"]["response"]["body"]
    assert answer["choices"][0]["message"]["content"] == alone.choices[0].message.content
    logprob = answer["choices"][0]["logprobs"]["content"][0]["logprob"]
    assert logprob == pytest.approx(alone.choices[0].logprobs.content[0].logprob, abs=1e-3)
    assert batch.id in [one.id for one in client.batches.list()]
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.batches.cancel(batch.id)


def test_a_predictor_by_batches_says_what_it_says_one_by_one(server: ToyServer, tmp_path: Path) -> None:
    predictor = ft.OpenAIPredictor(ft.prompts.binary("Bees."), "toy", host=ft.Host.local(server.url))
    rows = [{"title": f"title {number}"} for number in range(7)]
    one_by_one, by_batches = tmp_path / "one.jsonl", tmp_path / "batch.jsonl"
    ft.bulk.predict(predictor, rows, one_by_one)
    ft.bulk.batch_api.predict(
        predictor, rows, by_batches, limits=ft.bulk.batch_api.BatchLimits(max_requests=3, poll_seconds=0.1)
    )
    found, expected = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (by_batches, one_by_one)
    )
    for name in ("title", "is_favorite", "status", "answer_text"):
        assert [row[name] for row in found] == [row[name] for row in expected]


def test_what_is_wrong_fails_the_request_or_the_batch(server: ToyServer) -> None:
    client = server.client()
    batch = wait(client, submit(client, lines(2) + lines(1, n=200).replace(b"row-0", b"odd")))
    assert (batch.status, batch.request_counts.failed) == ("completed", 1)
    assert results(client, batch.error_file_id)["odd"]["response"]["status_code"] == 400
    twice = wait(client, submit(client, lines(2) + lines(1)))
    assert (twice.status, twice.errors.data[0].code, twice.errors.data[0].line) == ("failed", "duplicate_custom_id", 3)
    assert wait(client, submit(client, lines(1, model="nobody"))).request_counts.failed == 1
    file = client.files.create(file=("in.jsonl", lines(1)), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")


def test_a_batch_survives_a_killed_server(tmp_path: Path, toy_model: Path) -> None:
    root = tmp_path / "root"
    server = start_server(root, toy_model)
    client: Any = server.client()
    batch_id = submit(client, lines(300))
    deadline = time.monotonic() + 300
    while client.batches.retrieve(batch_id).request_counts.completed < 5:
        assert time.monotonic() < deadline
    server.kill()
    path = root / "batches" / batch_id / "output.jsonl"
    before = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    with open(path, "ab") as stream:
        stream.write(b'{"id": "batch_req_torn", "custom')
    again = start_server(root, toy_model)
    try:
        client = again.client()
        batch = wait(client, batch_id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 300)
        content = client.files.content(batch.output_file_id).content
        assert content.startswith(b"".join(before))
        assert set(results(client, batch.output_file_id)) == {f"row-{number}" for number in range(300)}
    finally:
        again.stop()


@pytest.mark.parametrize("end", ["expired", "cancelled"])
def test_what_was_answered_before_the_end_is_kept(tmp_path: Path, end: str) -> None:
    store = Store(tmp_path)
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(40))
    with open(path, "rb") as stream:
        file = store.add_file(stream, "in.jsonl", "batch")
    n_answered = 0

    async def complete(body: Any) -> dict[str, Any]:
        nonlocal n_answered
        n_answered += 1
        if n_answered == 20 and end == "cancelled":
            batches.cancel("batch_1")
        if n_answered == 20 and end == "expired":
            batches._update("batch_1", expires_at=0)
        return {"choices": []}

    batches = Batches(store, {"/v1/chat/completions": complete})
    record = BatchRecord(
        id="batch_1", sequence=1, endpoint="/v1/chat/completions", input_file_id=file.id, completion_window="24h",
        created_at=0, expires_at=2**40,
    )  # fmt: skip
    batches._save(record)
    batches.start()
    deadline = time.monotonic() + 120
    while batches.retrieve("batch_1")["status"] != end:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    batches.close()
    found = batches.retrieve("batch_1")
    output = store.content(found["output_file_id"]).read_bytes().splitlines()
    assert 20 <= len(output) < 40
    if end == "expired":
        errors = [json.loads(line) for line in store.content(found["error_file_id"]).read_bytes().splitlines()]
        assert len(errors) + len(output) == 40
        assert {one["error"]["code"] for one in errors} == {"batch_expired"}
    # Another start knows all of it.
    assert Batches(store, {"/v1/chat/completions": complete}).retrieve("batch_1") == found
