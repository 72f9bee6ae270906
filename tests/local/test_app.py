"""Chat, files and error bodies through OpenAI's own client, on a real server process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.local.toy_server import ToyServer, start_server

ASK: dict[str, Any] = {"model": "toy", "messages": [{"role": "user", "content": "Title: x"}], "temperature": 0}


def test_a_stream_tells_the_same_as_the_whole_answer(server: ToyServer) -> None:
    client = server.client()
    whole = client.chat.completions.create(**ASK, max_tokens=20, logprobs=True, top_logprobs=2)
    chunks = list(
        client.chat.completions.create(
            **ASK, max_tokens=20, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}
        )
    )
    choice = whole.choices[0]
    parts = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(part.delta.content or "" for part in parts) == choice.message.content
    assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
    tokens = [token.token for part in parts if part.logprobs for token in part.logprobs.content]
    assert tokens == [token.token for token in choice.logprobs.content]
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == len(tokens)


def test_several_choices_and_a_stop_string(server: ToyServer) -> None:
    answer = server.client().chat.completions.create(
        **{**ASK, "temperature": 1.5}, n=3, seed=1, max_completion_tokens=5
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.logprobs is None for choice in answer.choices)


@pytest.mark.parametrize(
    ("changes", "kind", "code", "param"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found", "model"),
        ({"messages": []}, openai.BadRequestError, "invalid_value", "messages"),
        (
            {"messages": [{"role": "boss", "content": "x"}]},
            openai.BadRequestError,
            "invalid_value",
            "messages[0].role",
        ),
        (
            {"messages": [{"role": "user", "content": "x " * 400}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        ({"top_logprobs": 21, "logprobs": True}, openai.BadRequestError, "invalid_value", "top_logprobs"),
        ({"top_logprobs": 2}, openai.BadRequestError, None, "top_logprobs"),
        ({"max_tokens": 0}, openai.BadRequestError, "invalid_value", "max_tokens"),
        ({"functions": [{"name": "f"}]}, openai.BadRequestError, "unsupported_parameter", "functions"),
        ({"frequency_penalty": 3}, openai.BadRequestError, "invalid_value", "frequency_penalty"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value", "temperature"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_gets_openais_error_body(
    server: ToyServer,
    changes: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str | None,
    param: str,
    stream: bool,
) -> None:
    with pytest.raises(kind) as caught:
        server.client().chat.completions.create(**{**ASK, **changes}, stream=stream)
    body: Any = caught.value.body
    assert (body["code"], body["param"], body["type"]) == (code, param, "invalid_request_error")
    assert body["message"]


def test_files_are_kept_listed_read_and_deleted(server: ToyServer) -> None:
    client = server.client()
    content = b'{"messages": []}\n'
    record = client.files.create(file=("rows.jsonl", content), purpose="fine-tune")
    assert (record.filename, record.bytes, record.status) == ("rows.jsonl", len(content), "processed")
    assert client.files.content(record.id).content == content
    assert client.files.retrieve(record.id).id in [file.id for file in client.files.list(limit=1)]
    assert client.files.delete(record.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(record.id)


@pytest.mark.parametrize(
    ("content", "purpose", "param"),
    [
        (b'{"a": 1}\n[1]\n', "fine-tune", "file"),
        (b"\xff\xfe", "fine-tune", "file"),
        (b"", "fine-tune", "file"),
        (b'{"a": 1}\n', "assistants", "purpose"),
    ],
)
def test_a_bad_upload_is_refused_and_leaves_nothing(
    server: ToyServer, content: bytes, purpose: Any, param: str
) -> None:
    client = server.client()
    before = [file.id for file in client.files.list()]
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("rows.jsonl", content), purpose=purpose)
    body: Any = caught.value.body
    assert body["param"] == param
    assert [file.id for file in client.files.list()] == before


def test_a_job_with_wrong_arguments_is_refused(server: ToyServer) -> None:
    client = server.client()
    with pytest.raises(openai.BadRequestError, match="No such File"):
        client.fine_tuning.jobs.create(model="toy", training_file="file-none")
    with pytest.raises(openai.BadRequestError, match="does not exist"):
        client.fine_tuning.jobs.create(model="nobody", training_file="file-none")
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}
    with pytest.raises(openai.BadRequestError, match="beta"):
        client.fine_tuning.jobs.create(model="toy", training_file="file-none", method=method)
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-none")
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("toy")


def test_a_key_is_asked_for_only_when_one_was_given(tmp_path: Path, toy_model: Path) -> None:
    server = start_server(tmp_path / "root", toy_model, api_key="secret")
    try:
        described = tmp_path / "root" / "server.json"
        assert described.stat().st_mode & 0o777 == 0o600
        assert json.loads(described.read_bytes())["api_key"] == "secret"
        assert "secret" not in json.dumps(server.facts)
        assert server.client(api_key="secret").models.list().data[0].id.endswith("toy")
        with pytest.raises(openai.AuthenticationError):
            server.client(api_key="other").models.list()
        # A second server on this root, and one on this port, end at once with one line.
        for options in (
            ["--root", str(tmp_path / "root")],
            ["--root", str(tmp_path / "b"), "--port", server.url[-8:-3].lstrip(":")],
        ):
            ended = subprocess.run(
                [sys.executable, "-m", "dspy_finetune.local", "--model", str(toy_model), *options],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                env={**os.environ, "DSPY_FINETUNE_QUIET": "1"},  # else a slow start says what it waits for
            )
            assert ended.returncode == 1
            assert ended.stderr.startswith("error: ")
            assert ended.stderr.count("\n") == 1
            assert "in use" in ended.stderr or "another server" in ended.stderr
    finally:
        server.stop()


def test_the_server_ends_with_the_process_that_it_belongs_to(tmp_path: Path, toy_model: Path) -> None:
    parent = subprocess.Popen(["sleep", "600"])
    server = start_server(tmp_path / "root", toy_model, die_with=parent.pid)
    parent.kill()
    parent.wait()
    assert server.process.wait(60) == 0
    server.stop()
