"""Every answer of the host in the eyes of OpenAI's own client when it takes no liberties with the types."""

from __future__ import annotations

import enum
import hashlib
import json
import time
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.local.test_batches import lines, submit
from tests.local.test_batches import wait as wait_for_batch
from tests.local.test_jobs import CHAT_ROWS, PAIR_ROWS, upload, wait
from tests.local.toy_server import ToyServer, start_server

ROWS = b"".join(json.dumps(row).encode() + b"\n" for row in CHAT_ROWS)
ASK: Any = {"model": "toy", "messages": [{"role": "user", "content": "Title: x"}], "temperature": 0, "max_tokens": 8}
COLOUR: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "paint", "description": "Paints.", "parameters": COLOUR}}


def strict(server: ToyServer) -> Any:
    return server.client(_strict_response_validation=True)


def test_files_models_jobs_and_batches_have_openais_types(server: ToyServer) -> None:
    client = strict(server)
    file = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    assert client.files.retrieve(file.id) == file
    assert file.id in [one.id for one in client.files.list()]
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}}
    integrations: Any = [{"type": "wandb", "wandb": {"project": "p"}}]
    for rows, given in ((CHAT_ROWS, None), (PAIR_ROWS, method)):
        made = client.fine_tuning.jobs.create(
            model="toy",
            training_file=upload(client, rows),
            integrations=integrations,
            **({"method": given} if given else {}),
        )
        done = wait(client, made.id)
        assert (done.status, done.integrations[0].wandb.project) == ("succeeded", "p")
        assert isinstance(done.hyperparameters.n_epochs, int)
        list(client.fine_tuning.jobs.list_events(made.id))
        assert len(client.fine_tuning.jobs.checkpoints.list(made.id).data) == 2
        client.models.retrieve(done.fine_tuned_model)
    client.fine_tuning.jobs.list(metadata={"x": "y"})
    client.models.list()
    batch = wait_for_batch(client, submit(client, lines(2)))
    assert batch.id in [one.id for one in client.batches.list()]
    bad = wait_for_batch(client, submit(client, lines(1) + lines(1)))
    assert bad.errors.data[0].line == 2
    assert client.files.delete(file.id).deleted


def test_a_paused_job_has_openais_types_wherever_it_is_seen(server: ToyServer) -> None:
    """Its status is `queued`, for the types know no `paused`; the field beside tells the two apart."""
    jobs = strict(server).fine_tuning.jobs
    job = jobs.create(model="toy", training_file=upload(server.client(), CHAT_ROWS))
    seen = [jobs.pause(job.id), jobs.retrieve(job.id), next(one for one in jobs.list() if one.id == job.id)]
    assert [(one.status, one.paused) for one in seen] == [("queued", True)] * 3
    assert not jobs.resume(job.id).paused
    assert not jobs.cancel(job.id).paused


def test_chats_and_their_streams_have_openais_types(server: ToyServer) -> None:
    client = strict(server)
    whole = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=3)
    chunks = list(
        client.chat.completions.create(**ASK, logprobs=True, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(one.choices[0].delta.content or "" for one in chunks[:-1]) == whole.choices[0].message.content
    # OpenAI sends the field on each chunk, and the figures on the last.
    assert [one.usage for one in chunks] == [None] * (len(chunks) - 1) + [whole.usage]
    assert all("usage" in one.model_fields_set for one in chunks)
    again = [*ASK["messages"], whole.choices[0].message.model_dump(), {"role": "user", "content": "and?"}]
    client.chat.completions.create(**{**ASK, "messages": again})


def test_files_of_one_second_keep_their_order_and_expire(server: ToyServer) -> None:
    client = strict(server)
    made = [client.files.create(file=(f"{n}.jsonl", ROWS), purpose="fine-tune").id for n in range(5)]
    newest = [one.id for one in client.files.list(limit=2)]
    assert newest[:5] == made[::-1]
    assert [one.id for one in client.files.list(order="asc")][-5:] == made
    expires: Any = {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=("x.jsonl", ROWS), purpose="fine-tune", expires_after=expires)
    assert file.expires_at == file.created_at + 3600
    with pytest.raises(openai.BadRequestError, match="3600"):
        client.files.create(file=("x.jsonl", ROWS), purpose="fine-tune", expires_after={**expires, "seconds": 1})


def test_an_expired_file_is_gone(tmp_path: Path, toy_model: Path) -> None:
    server = start_server(tmp_path / "root", toy_model)
    try:
        client = strict(server)
        file = client.files.create(file=("x.jsonl", ROWS), purpose="fine-tune")
        record = tmp_path / "root" / "files" / file.id / "file.json"
        record.write_text(json.dumps({**json.loads(record.read_bytes()), "expires_at": int(time.time()) - 1}))
        assert list(client.files.list()) == []
        with pytest.raises(openai.NotFoundError):
            client.files.content(file.id)
        assert not record.parent.exists()
    finally:
        server.stop()


def test_an_upload_in_parts_is_the_file_in_one(server: ToyServer) -> None:
    client = strict(server)
    parts = [ROWS[:100], ROWS[100:777], ROWS[777:]]
    made: Any = {"bytes": len(ROWS), "filename": "rows.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}
    begun = client.uploads.create(**made)
    # Sent in another order than meant, and one of them twice.
    ids = {number: client.uploads.parts.create(begun.id, data=parts[number]).id for number in (2, 0, 1, 1)}
    with pytest.raises(openai.BadRequestError, match="bytes"):
        client.uploads.complete(begun.id, part_ids=[ids[0], ids[1]])
    with pytest.raises(openai.BadRequestError, match="MD5"):
        client.uploads.complete(begun.id, part_ids=[ids[0], ids[1], ids[2]], md5="0" * 32)
    with pytest.raises(openai.BadRequestError, match="No such part"):
        client.uploads.complete(begun.id, part_ids=["../upload"])
    digest = hashlib.md5(ROWS, usedforsecurity=False).hexdigest()
    done = client.uploads.complete(begun.id, part_ids=[ids[0], ids[1], ids[2]], md5=digest)
    assert (done.status, done.file.bytes, done.file.filename) == ("completed", len(ROWS), "rows.jsonl")
    assert client.files.content(done.file.id).content == ROWS
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.uploads.cancel(begun.id)
    cancelled = client.uploads.create(**made)
    assert client.uploads.cancel(cancelled.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.uploads.parts.create(cancelled.id, data=b"x")
    with pytest.raises(openai.NotFoundError):
        client.uploads.parts.create("upload_none", data=b"x")
    whole = client.uploads.upload_file_chunked(
        file=ROWS,
        filename="r.jsonl",
        bytes=len(ROWS),
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=500,
    )
    assert client.files.content(whole.file.id).content == ROWS


class Paint(pydantic.BaseModel):
    colour: Literal["red", "green"]
    sure: bool


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Wall(pydantic.BaseModel):
    paints: list[Paint] = pydantic.Field(max_length=2)
    size: Size


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_schema_is_kept_to_whatever_the_model_would_say(server: ToyServer, temperature: float) -> None:
    client = strict(server)
    asked = {**ASK, "temperature": temperature, "max_tokens": 200, "seed": 3}
    for kind in (Paint, Wall):
        choice = client.chat.completions.parse(**asked, response_format=kind).choices[0]
        assert isinstance(choice.message.parsed, kind)
        assert choice.finish_reason == "stop"
    with client.chat.completions.stream(**asked, response_format=Wall) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Wall)
    found = client.chat.completions.create(**{**asked, "max_tokens": 60}, response_format={"type": "json_object"})
    text = found.choices[0].message.content
    assert text.startswith("{")
    if found.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_schema_that_cannot_be_kept_to_is_refused_by_name(server: ToyServer) -> None:
    for schema, words in (({"not": {"type": "string"}}, "not"), ({"type": "strin"}, "strin")):
        form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.BadRequestError, match=words) as caught:
            strict(server).chat.completions.create(**ASK, response_format=form)
        assert caught.value.param == "response_format"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "paint"}}])
def test_a_forced_tool_is_called_with_arguments_that_fit(roomy_server: ToyServer, choice: Any) -> None:
    client = strict(roomy_server)
    asked = {**ASK, "max_tokens": 120, "tools": [TOOL], "tool_choice": choice}
    found = client.chat.completions.create(**asked).choices[0]
    [call] = found.message.tool_calls
    assert (call.function.name, found.message.content) == ("paint", None)
    assert found.finish_reason == ("tool_calls" if choice == "required" else "stop")
    Paint.model_validate_json(call.function.arguments)
    deltas = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    [streamed] = [one for part in deltas for one in part.delta.tool_calls or ()]
    assert streamed.function.arguments == call.function.arguments
    assert not any(part.delta.content for part in deltas)
    again = [*ASK["messages"], found.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    answer = client.chat.completions.create(**{**asked, "messages": again, "tool_choice": "none"}).choices[0]
    assert answer.message.tool_calls is None


def test_with_a_free_choice_a_text_stays_a_text_and_streams(roomy_server: ToyServer) -> None:
    client = strict(roomy_server)
    asked = {**ASK, "tools": [TOOL], "temperature": 1, "seed": 1}
    whole = client.chat.completions.create(**asked).choices[0].message
    parts = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
    assert whole.tool_calls is None
    assert "".join(parts) == whole.content
    assert not whole.content.startswith("<tool_call>")


def test_biases_and_penalties_change_the_choice_and_not_the_figures(server: ToyServer) -> None:
    client = strict(server)

    def answer(**changes: Any) -> Any:
        found = client.chat.completions.create(**{**ASK, **changes}, logprobs=True, top_logprobs=20).choices[0]
        return found.logprobs.content

    plain = answer()
    # Token 5 is one byte of the alphabet: whatever the model prefers, +100 makes it come, with its own figure.
    forced = answer(logit_bias={"5": 100})
    assert len({one.token for one in forced}) == 1
    # A prefix read from the cache rounds the last bits otherwise.
    before, after = ({one.token: one.logprob for one in said[0].top_logprobs} for said in (plain, forced))
    assert after == pytest.approx(before, abs=1e-4)
    assert forced[0].logprob <= plain[0].logprob + 1e-4
    both = answer(logit_bias={"5": 100, "6": 100}, presence_penalty=2, frequency_penalty=2)
    assert {one.token for one in both} == {forced[0].token, answer(logit_bias={"6": 100})[0].token}
    assert answer(top_p=0, temperature=2)[0].token == plain[0].token


def test_responses_say_what_chats_say(roomy_server: ToyServer) -> None:
    client = strict(roomy_server)
    chat = client.chat.completions.create(**ASK)
    found = client.responses.create(model="toy", input="Title: x", temperature=0, max_output_tokens=8)
    assert found.output_text == chat.choices[0].message.content
    assert (found.usage.input_tokens, found.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    expected = "incomplete" if chat.choices[0].finish_reason == "length" else "completed"
    assert found.status == expected
    events = list(
        client.responses.create(model="toy", input="Title: x", temperature=0, max_output_tokens=8, stream=True)
    )
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == found.output_text
    assert [one.sequence_number for one in events] == list(range(len(events)))
    assert events[-1].type == f"response.{expected}"
    assert events[-1].response.output_text == found.output_text
    # Its own answer goes back in.
    turns = [{"role": "user", "content": "Title: x"}, *found.output, {"role": "user", "content": "and?"}]
    client.responses.create(
        model="toy",
        instructions="Be brief.",
        input=turns,
    )


def test_responses_keep_to_schemas_and_call_functions(roomy_server: ToyServer) -> None:
    client = strict(roomy_server)
    parsed = client.responses.parse(model="toy", input="x", text_format=Wall, max_output_tokens=200, temperature=1.5)
    assert isinstance(parsed.output_parsed, Wall)
    tool: Any = {"type": "function", "name": "paint", "parameters": COLOUR, "strict": True}
    asked = {"model": "toy", "input": "x", "tools": [tool], "tool_choice": "required", "max_output_tokens": 120}
    [call] = client.responses.create(**asked).output
    assert (call.type, call.name) == ("function_call", "paint")
    Paint.model_validate_json(call.arguments)
    events = list(client.responses.create(**asked, stream=True))
    assert "response.function_call_arguments.done" in [one.type for one in events]
    back = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    client.responses.create(model="toy", input=[{"role": "user", "content": "x"}, call, back])
    for name, value in {"previous_response_id": "resp_1", "background": True, "reasoning": {"effort": "low"}}.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="toy", input="x", **{name: value})
        assert caught.value.param == name


def test_a_batch_may_be_of_responses(server: ToyServer) -> None:
    client = strict(server)
    row = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"model": "toy", "input": "x"}}
    odd = {**row, "custom_id": "b", "body": {"model": "toy", "input": 5}}
    content = b"".join(json.dumps(one).encode() + b"\n" for one in (row, odd))
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    done = wait_for_batch(client, made.id)
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 1, 1)


def test_a_batch_of_embeddings_gives_the_vectors_that_single_requests_give(server: ToyServer) -> None:
    client = strict(server)
    asked: Any = {"model": "toy", "input": "Title: x", "encoding_format": "float"}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": asked}
    file = client.files.create(file=("in.jsonl", json.dumps(row).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    done = wait_for_batch(client, made.id)
    answer = json.loads(client.files.content(done.output_file_id).text)["response"]["body"]
    alone = client.embeddings.create(**asked).data[0].embedding
    assert answer["data"][0]["embedding"] == pytest.approx(alone, abs=1e-5)


def test_token_ids_are_refused_with_what_to_send_instead(server: ToyServer) -> None:
    """LangChain sends ids of OpenAI's tokenizer: read as this model's own, they would be another text."""
    for given in ([5, 6], [[5], [6]]):
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as caught:
            strict(server).embeddings.create(model="toy", input=given)
        assert caught.value.param == "input"


def test_what_is_wrong_with_a_response_has_the_names_of_its_own_api(server: ToyServer) -> None:
    client = strict(server)
    schema: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "banana"}}}
    lone: Any = [{"type": "function_call_output", "call_id": "call_1", "output": "x"}]
    faults: list[tuple[str, str, dict[str, Any]]] = [
        ("input", "shorten the input", {"input": "x " * 500}),
        ("text.format", "banana", {"input": "x", "text": schema}),
        ("input", "call_1", {"input": lone}),
    ]
    for stream in (False, True):
        for param, words, given in faults:
            with pytest.raises(openai.BadRequestError, match=words) as caught:
                client.responses.create(model="toy", **given, stream=stream)
            assert caught.value.param == param
            assert "messages" not in caught.value.message
