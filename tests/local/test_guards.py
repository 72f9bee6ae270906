"""What no client may do: stop the server, reach it from a web page, or be given a fault for a mistake of its own."""

from __future__ import annotations

import errno
import gzip
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from dspy_finetune.local.completions import ChatRequest, EmbeddingRequest
from dspy_finetune.local.guards import _failure
from dspy_finetune.local.responses import ResponsesRequest
from dspy_finetune.local.schemas import MAX_VALUES, ApiError, CreateJob, JsonError, invalid, json_schema, strict_json
from dspy_finetune.local.store import CompleteUpload
from tests.local.test_jobs import CHAT_ROWS, upload
from tests.local.toy_server import ToyServer, start_server

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}


def send(
    server: ToyServer, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, dict[str, str]]:
    """(status, JSON answer, headers). A body that is no bytes goes as JSON, with whatever Python's JSON can spell."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=120)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    given = {"Content-Type": "application/json", **(headers or {})}
    try:
        connection.request(method, path, content, given)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None, {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()


def job(**changes: Any) -> dict[str, Any]:
    return {"model": "toy", "training_file": "file-none", **changes}


def message(content: Any) -> dict[str, Any]:
    return {**CHAT, "messages": [{"role": "user", "content": content}]}


def as_json(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def form(name: str) -> Any:
    return {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": {"type": 5}}}}


def tool(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "x", "parameters": {"type": "object", **parameters}}}


# Of a value that must fit all of these it takes hours to find out whether there is any.
MANY_PATTERNS = {"allOf": [{"type": "string", "pattern": f".*{one}.*"} for one in "abcdefghijklmnopqrstuvwxyz"]}
DEEP = b"[" * 100_000 + b"]" * 100_000
HALF = "\ud800"
JOBS, CHATS = "/v1/fine_tuning/jobs", "/v1/chat/completions"
BETA = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}
RATE = b'{"model":"toy","training_file":"f","hyperparameters":{"learning_rate_multiplier":1e999}}'
WANDB = [{"type": "wandb", "wandb": {"project": 1}}]
IMAGE = message([{"type": "image_url", "image_url": {"url": "x"}}])
MISTAKES: list[tuple[str, str, Any, str | None]] = [
    ("POST", JOBS, job(integrations=[{"type": HALF}]), None),
    ("POST", JOBS, job(integrations=WANDB), "integrations[0].wandb.project"),
    ("POST", JOBS, b'{"model":"toy","training_file":"f","metadata":' + DEEP + b"}", None),
    ("POST", JOBS, RATE, None),
    ("POST", JOBS, job(hyperparameters={"learning_rate_multiplier": float("nan")}), None),
    ("POST", JOBS, job(hyperparameters={"n_epochs": 51}), "hyperparameters.n_epochs"),
    ("POST", JOBS, job(hyperparameters={"n_epochs": "3"}), "hyperparameters.n_epochs"),
    ("POST", JOBS, job(hyperparameters={"n_epochs": True}), "hyperparameters.n_epochs"),
    ("POST", JOBS, job(method=BETA), "method.dpo.hyperparameters.beta"),
    ("POST", JOBS, job(sufix="x"), "sufix"),
    ("POST", JOBS, job(seed=2**80), None),
    ("POST", JOBS, job(model="~nosuchuser/x"), "model"),
    ("POST", JOBS, job(model="a" * 100_000), "model"),
    ("POST", JOBS, job(model="a\x00b/c"), "model"),
    ("POST", JOBS, job(metadata={"a": 1}), "metadata.a"),
    ("POST", JOBS, [], None),
    ("POST", JOBS, b"", None),
    ("POST", JOBS, b"\xff", None),
    ("POST", CHATS, {**CHAT, "response_format": "json"}, "response_format"),
    ("POST", CHATS, {**CHAT, "response_format": {"type": "xml"}}, "response_format.type"),
    ("POST", CHATS, form("x"), "response_format"),
    ("POST", CHATS, message(HALF), None),
    ("POST", CHATS, IMAGE, "messages[0].content[0]"),
    ("POST", CHATS, message(5), "messages[0].content"),
    ("POST", CHATS, message({"type": "text"}), "messages[0].content"),
    ("POST", CHATS, {**CHAT, "model": HALF}, None),
    ("POST", CHATS, {**CHAT, "model": "~nosuchuser/x"}, "model"),
    ("POST", CHATS, {**CHAT, "model": "../" * 80}, "model"),
    ("POST", CHATS, {**CHAT, "temperature": "1"}, "temperature"),
    ("POST", CHATS, {**CHAT, "max_tokens": 1.5}, "max_tokens"),
    ("POST", CHATS, {**CHAT, "max_completion_tokens": 2}, "max_tokens"),
    ("POST", CHATS, {**CHAT, "stream_options": {"include_usage": True}}, "stream_options"),
    ("POST", CHATS, {**CHAT, "audio": {"voice": "a", "format": "wav"}}, "audio"),
    ("POST", CHATS, {**CHAT, "logit_bias": {"x": 1}}, "logit_bias.x"),
    ("POST", CHATS, {**CHAT, "logit_bias": {"999999": 1}}, "logit_bias"),
    ("POST", CHATS, {**CHAT, "tool_choice": "required"}, "tool_choice"),
    ("POST", CHATS, {**CHAT, "temprature": 1}, "temprature"),
    ("POST", CHATS, {**CHAT, "messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages[0]"),
    ("POST", CHATS, {**CHAT, "response_format": as_json({"$ref": "#"})}, "response_format"),
    ("POST", CHATS, {**CHAT, "response_format": as_json({"type": "banana"})}, "response_format"),
    ("POST", CHATS, {**CHAT, "response_format": as_json({"properties": {"a": MANY_PATTERNS}})}, "response_format"),
    ("POST", CHATS, {**CHAT, "tools": [tool({"properties": {"a": MANY_PATTERNS}})]}, "tools"),
    ("POST", CHATS, {**CHAT, "response_format": as_json({"allOf": 5})}, "response_format"),
    ("GET", "/v1/files?order=sideways", None, "order"),
    ("GET", "/v1/files?limt=3", None, "limt"),
    ("GET", "/v1/files?limit[x]=3", None, "limit[x]"),
    ("GET", "/v1/fine_tuning/jobs?limit=0", None, "limit"),
    ("GET", "/v1/fine_tuning/jobs?after=" + "x" * 1000, None, "after"),
    ("GET", "/v1/models/~nosuchuser/x", None, "model"),
    ("GET", "/v1/models/nobody/no-such-model", None, "model"),
    ("POST", JOBS, job(model="nobody/no-such-model"), "model"),
    ("POST", CHATS, {**CHAT, "model": "nobody/no-such-model"}, "model"),
    ("GET", "/v1/models/" + "x" * 5000, None, "model_id"),
    ("DELETE", "/v1/models/%00", None, "model"),
    ("GET", "/v1/files/%ff%00..", None, "id"),
    ("GET", "/v1/batches/" + "x" * 300, None, "batch_id"),
    ("POST", "/v1/batches", {"input_file_id": "f", "endpoint": "/v1/x", "completion_window": "24h"}, "endpoint"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "param"), MISTAKES)
def test_a_mistake_is_the_clients_and_is_named(
    server: ToyServer, method: str, path: str, body: Any, param: str | None
) -> None:
    """Never a 5xx: a status of 4xx, OpenAI's body, and the parameter that is wrong."""
    status, answer, _ = send(server, method, path, body)
    assert 400 <= status < 500, answer
    error = answer["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]


def test_a_schema_that_cannot_be_followed_is_told_without_its_grammar(server: ToyServer) -> None:
    schemas = {"Invalid type: banana": {"type": "banana"}, "no JSON value that ends can fit it": {"$ref": "#"}}
    for words, schema in schemas.items():
        _, told, _ = send(server, "POST", CHATS, {**CHAT, "response_format": as_json(schema)})
        assert told["error"]["message"].rstrip(".") == f"Invalid schema for 'response_format': {words}"


def test_a_compressed_body_is_refused_by_its_name(server: ToyServer) -> None:
    body = gzip.compress(json.dumps(CHAT).encode())
    status, told, _ = send(server, "POST", CHATS, body, {"Content-Encoding": "gzip"})
    assert (status, told["error"]["code"]) == (415, "unsupported_content_encoding")


def test_messages_say_what_is_right(server: ToyServer) -> None:
    told = {
        "from 1 to 50, found 51": job(hyperparameters={"n_epochs": 51}),
        "Did you mean 'suffix'?": job(sufix="x"),
        "expected an integer, but got a string": {**job(), "seed": "1"},
        "content of type 'image_url' is not supported": IMAGE,
        "expected a number from 0 to 2, found 3": {**CHAT, "temperature": 3},
        "expected an integer from 1 to 128, found 0": {**CHAT, "n": 0},
        "expected a number from -100 to 100, found 101": {**CHAT, "logit_bias": {"5": 101}},
        "expected an integer at least 1, found -1": {**CHAT, "max_tokens": -1},
        "expected at least 1 entries, found 0": {**CHAT, "messages": []},
        "expected at most 4 entries, found 5": {**CHAT, "stop": ["a"] * 5},
        "expected from 1 to 64 characters, found 65": job(suffix="x" * 65),
        "expected at most 16 entries, found 17": job(metadata={str(number): "x" for number in range(17)}),
        "expected at most 512 characters, found 513": job(metadata={"a": "x" * 513}),
        "pattern '(?=a)b': look-around": {**CHAT, "response_format": as_json({"type": "string", "pattern": "(?=a)b"})},
        "expected a string or an array, but got an integer": message(5),
    }
    for words, body in told.items():
        path = "/v1/chat/completions" if "messages" in body else "/v1/fine_tuning/jobs"
        assert words in send(server, "POST", path, body)[1]["error"]["message"]


def test_a_query_is_told_its_range_and_may_say_a_thing_once(server: ToyServer) -> None:
    told = {
        "limit=0": 'expected an integer from 1 to 10000, found "0"',
        "limit=": 'expected an integer from 1 to 10000, found ""',
        "limit=1e9": "expected an integer from 1 to 10000",
        "limit=1&limit=2": "Duplicate parameter: 'limit'",
    }
    for query, words in told.items():
        status, answer, _ = send(server, "GET", f"/v1/files?{query}")
        assert (status, answer["error"]["param"]) == (400, "limit")
        assert words in answer["error"]["message"]


def test_a_form_is_read_as_strictly_as_json(server: ToyServer) -> None:
    def part(name: str, value: str, more: str = "") -> str:
        return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'

    purpose, file = part("purpose", "batch"), part("file", '{"a": 1}', '; filename="a.jsonl"')
    forms = {
        purpose + part("purposse", "batch") + file: ("Unknown parameter: 'purposse'", "purposse"),
        purpose + file + file: ("Duplicate parameter: 'file'", "file"),
        purpose + part("file", "{}"): ("expected a file, but got a string", "file"),
        purpose: ("Missing required parameter: 'file'", "file"),
    }
    multipart = {"Content-Type": "multipart/form-data; boundary=x"}
    before = send(server, "GET", "/v1/files")[1]
    for body, (words, param) in forms.items():
        status, answer, _ = send(server, "POST", "/v1/files", (body + "--x--\r\n").encode(), multipart)
        assert (status, answer["error"]["param"]) == (400, param)
        assert words in answer["error"]["message"]
    assert send(server, "GET", "/v1/files")[1] == before
    assert send(server, "POST", "/v1/files", {"purpose": "batch"})[0] == 415


def test_every_spelling_of_a_request_that_http_has_is_understood(server: ToyServer) -> None:
    """HEAD, the whole address in the request's first line, and which methods an address takes."""
    address, path = urlsplit(server.url).netloc, "/v1/fine_tuning/jobs"
    status, _, headers = send(server, "HEAD", "/v1/models/toy")
    assert (status, int(headers["content-length"]) > 0) == (200, True)
    assert send(server, "HEAD", "/v1/models/nobody")[0] == 404
    assert send(server, "GET", f"http://{address}{path}?limit=1")[0] == 200
    assert send(server, "GET", f"http://evil.example{path}", headers={"Host": address})[0] == 403
    for method, where, allowed in (("PUT", path, "GET, HEAD, POST"), ("GET", CHATS, "POST"), ("HEAD", CHATS, "POST")):
        status, _, headers = send(server, method, where)
        assert (status, headers["allow"]) == (405, allowed)
    assert send(server, "PUT", path)[1]["error"]["code"] == "method_not_supported"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": ' + DEEP + b"}", "nested deeper"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "too large"),
        (b"[1]", "not a JSON dictionary"),
    ],
)
def test_a_line_that_no_later_code_could_read_is_refused_with_its_number(
    server: ToyServer, line: bytes, words: str
) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="Line 2") as caught:
        server.client().files.create(file=("x.jsonl", b'{"a": 1}\n' + line + b"\n"), purpose="fine-tune")
    assert words in str(caught.value)


def test_strict_json_reads_what_json_reads() -> None:
    values: tuple[Any, ...] = ({"a": [1, 2.5, None, True, "é😀", {}]}, [], "x", 2**63, -1e300)
    for value in values:
        assert strict_json(json.dumps(value).encode()) == value
        assert strict_json(json.dumps(value, ensure_ascii=False).encode()) == value
    for content in (b"", b"{", b"\xff", b'{"a": Infinity}', b'"\\udc00"', b'{"\\ud800": 1}', b"[" * 65 + b"]" * 65):
        with pytest.raises(JsonError):
            strict_json(content)
    assert strict_json(b"[" * 64 + b"]" * 64)
    with pytest.raises(JsonError, match=r"^holds an integer of more than 64 bits$"):
        strict_json(b"9" * 6000)


def test_a_body_of_millions_of_values_is_refused_before_it_is_read() -> None:
    """`[],` a million times is a gigabyte of lists; texts may be as long as ever, whatever stands in them."""
    for content in (
        b"[" + b"[]," * MAX_VALUES + b"0]",
        b"[" + b"1, " * MAX_VALUES + b"0]",
        b'["' + b'","' * MAX_VALUES,
    ):
        with pytest.raises(JsonError, match=r"^holds more than 200,000 names and values$"):
            strict_json(content)
    text = '[{"a": 1}, \\ \\" ' * MAX_VALUES
    assert strict_json(json.dumps([text, "b"]).encode()) == [text, "b"]
    most = [0] * (MAX_VALUES - 1)
    assert strict_json(json.dumps(most).encode()) == most


MANY = 1000
FAULTY: list[tuple[type[BaseModel], Any]] = [
    (ChatRequest, {"messages": [1] * MANY}),
    (ChatRequest, {"messages": [{"role": "user", "content": [1] * MANY}]}),
    (ChatRequest, {"messages": [{"role": "assistant", "content": [1] * MANY}]}),
    (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [1] * MANY}]}),
    (ChatRequest, {"metadata": {str(one): 1 for one in range(MANY)}}),
    (ChatRequest, {"logit_bias": {f"a{one}": 1 for one in range(5 * MANY)}}),
    (ChatRequest, {"tools": [1] * MANY}),
    (ChatRequest, {"stop": [1] * MANY}),
    (ChatRequest, {str(one): 1 for one in range(MANY)}),
    (ResponsesRequest, {"input": [1] * MANY}),
    (ResponsesRequest, {"input": [{"role": "user", "content": [1] * MANY}]}),
    (ResponsesRequest, {"include": [1] * MANY}),
    (ResponsesRequest, {"text": {str(one): 1 for one in range(MANY)}}),
    (EmbeddingRequest, {"input": [None] * 5 * MANY}),
    (CompleteUpload, {"part_ids": [1] * 20 * MANY}),
    (CreateJob, {"integrations": [1] * MANY}),
]


@pytest.mark.parametrize(("kind", "body"), FAULTY)
def test_a_thousand_faults_of_one_list_are_told_as_one(kind: type[BaseModel], body: Any) -> None:
    """Telling 200,000 of them held everybody up for ten seconds."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() < 20
    assert json_error(caught.value, body, kind).status == 400


def json_error(error: ValidationError, body: Any, kind: type[BaseModel]) -> ApiError:
    return invalid(error.errors(), body, json_schema(kind))


def test_nothing_that_was_refused_is_kept(server: ToyServer) -> None:
    """After all mistakes the lists are answered and nothing was set aside."""
    for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/models", "/v1/batches"):
        assert send(server, "GET", path)[0] == 200
    health = send(server, "GET", "/healthz")[1]
    assert (health["status"], health["damaged"]) == ("ok", [])


def test_a_file_whose_bytes_are_gone_is_no_fault_of_the_server(server: ToyServer) -> None:
    file_id = upload(server.client(), CHAT_ROWS)
    (Path(server.facts["root"]) / "files" / file_id / "content").unlink()
    status, said, _ = send(server, "GET", f"/v1/files/{file_id}/content")
    assert (status, said["error"]["param"]) == (404, "id")
    assert send(server, "DELETE", f"/v1/files/{file_id}")[0] == 200


def test_requests_of_web_pages_are_refused(server: ToyServer) -> None:
    own = urlsplit(server.url).netloc
    refused = [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
    ]
    for headers in refused:
        for method, path in (("GET", "/v1/files"), ("POST", "/v1/fine_tuning/jobs"), ("OPTIONS", "/v1/files")):
            status, _, told = send(server, method, path, None, headers)
            assert status == 403, headers
            assert not [name for name in told if name.startswith("access-control")]
    for headers in ({}, {"Origin": f"http://{own}"}, {"Sec-Fetch-Site": "none"}, {"Host": "localhost:1"}):
        assert send(server, "GET", "/v1/files", None, headers)[0] == 200
    # What a page may send without asking first is no JSON to this server.
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert send(server, "POST", "/v1/fine_tuning/jobs", job(), {"Content-Type": kind})[0] == 415


def test_a_body_beyond_its_limit_is_refused_before_it_has_come(server: ToyServer) -> None:
    huge = {"Content-Length": str(2**40)}
    status, told, _ = send(server, "POST", "/v1/fine_tuning/jobs", b"{}", huge)
    assert (status, told["error"]["message"]) == (413, "The request is larger than 32 MB.")
    form = {**huge, "Content-Type": "multipart/form-data; boundary=x"}
    assert send(server, "POST", "/v1/files", b"--x", form)[1]["error"]["message"] == "The file is larger than 512 MB."
    # Without a length it is counted as it comes.
    address = urlsplit(server.url)
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=120) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        block = b"%x\r\n" % 2**20 + b" " * 2**20 + b"\r\n"
        for _ in range(40):
            try:
                connection.sendall(block)
            except OSError:
                break
        assert b" 413 " in connection.recv(4096).splitlines()[0]


def test_a_full_disk_is_told_with_where_and_what_to_do() -> None:
    """Also where the system names no file, as for an upload that is still coming."""
    request = Request({"type": "http", "method": "POST", "path": "/v1/files", "headers": []})
    answer = _failure(request, OSError(errno.ENOSPC, "No space left on device"))
    told = json.loads(bytes(answer.body))["error"]
    assert (answer.status_code, told["code"]) == (507, "no_space")
    assert told["message"].startswith(f"cannot write to {tempfile.gettempdir()}: no space left")


def test_a_key_may_be_of_any_characters(tmp_path: Path, toy_model: Path) -> None:
    server = start_server(tmp_path / "root", toy_model, api_key="sécret")
    try:
        for key in ("other", "ö", "\xff"):
            assert send(server, "GET", "/v1/models", None, {"Authorization": f"Bearer {key}"})[0] == 401
        assert send(server, "GET", "/healthz")[0] == 200
    finally:
        server.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_that_others_reach_wants_a_key(tmp_path: Path, toy_model: Path, host: str) -> None:
    command = [sys.executable, "-m", "dspy_finetune.local", "--root", str(tmp_path), "--model", str(toy_model)]
    given = {name: value for name, value in os.environ.items() if name != "DSPY_FINETUNE_LOCAL_API_KEY"}
    ended = subprocess.run(
        [*command, "--host", host], capture_output=True, text=True, timeout=120, check=False, env=given
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert "--api-key" in ended.stderr
    server = start_server(tmp_path / "root", toy_model, host=host, api_key="k")
    try:
        port = urlsplit(server.url).port
        server.facts["url"] = f"http://127.0.0.1:{port}/v1"
        named = {"Host": "my.machine.example", "Authorization": "Bearer k"}
        assert send(server, "GET", "/v1/models", None, named)[0] == 200
        assert send(server, "GET", "/v1/models", None, {"Host": "my.machine.example"})[0] == 401
    finally:
        server.stop()


def test_one_concurrent_request_does_not_spoil_the_others(server: ToyServer) -> None:
    """Nine chats at once, of which one has the smallest temperature and one a token that the model has not."""
    import concurrent.futures

    odd = [{**CHAT, "temperature": 1e-300}, {**CHAT, "logit_bias": {"999999": 1}}]
    bodies = [*odd, *({**CHAT, "max_tokens": 4} for _ in range(7))]
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        found = list(pool.map(lambda body: send(server, "POST", "/v1/chat/completions", body)[0], bodies))
    assert found == [200, 400, *[200] * 7]


def test_a_chat_whose_client_has_left_is_not_computed_to_its_end(server: ToyServer) -> None:
    """Sixty-four rows of a client that has left make room: a later chat gets its answer while they would still run."""
    address = urlsplit(server.url)
    body = json.dumps({**CHAT, "max_tokens": 200, "n": 64, "logit_bias": {"2": -100}}).encode()
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=120) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.3)
    assert send(server, "POST", "/v1/chat/completions", CHAT)[0] == 200
    deadline = time.monotonic() + 120
    while send(server, "GET", "/healthz")[1]["threads"]["engine"]["n_rows"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert send(server, "GET", "/healthz")[1]["threads"]["engine"] == {"ok": True, "n_rows": 0}


def test_damaged_records_are_set_aside_and_named(tmp_path: Path, toy_model: Path) -> None:
    root = tmp_path / "root"
    server = start_server(root, toy_model)
    client = server.client()
    good = upload(client, CHAT_ROWS)
    kept = client.fine_tuning.jobs.create(model="toy", training_file=good).id
    server.stop()
    damage = {
        "jobs/ftjob-half/job.json": b'{"id": "ftjob-half", "integrations": [{"type": "\\ud800"}]}',
        "jobs/ftjob-deep/job.json": b'{"id": ' + DEEP + b"}",
        "jobs/ftjob-torn/job.json": b'{"id": "ftjob-t',
        "jobs/ftjob-other/job.json": (root / "jobs" / kept / "job.json").read_bytes(),
        "jobs/ftjob-empty/job.json": b"",
        "files/file-torn/file.json": b"\x00\xff",
        "files/file-number/file.json": b"5",
        "models/torn/model.json": b"{}",
        "batches/batch_torn/batch.json": b"[]",
    }
    for name, content in damage.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "files" / "file-folder" / "file.json").mkdir(parents=True)
    with open(root / "jobs" / kept / "events.jsonl", "ab") as stream:
        stream.write(b'{"id": 5}\n{"id": "x"}\nnull\n')
    for _ in range(2):  # and once more: what is set aside stays named
        server = start_server(root, toy_model)
        try:
            client = server.client()
            assert [one.id for one in client.fine_tuning.jobs.list()] == [kept]
            assert [one.id for one in client.files.list(purpose="fine-tune")] == [good]
            assert client.fine_tuning.jobs.list_events(kept).data
            client.models.list()
            client.batches.list()
            named = send(server, "GET", "/healthz")[1]["damaged"]
            assert sorted(named) == sorted(
                [*(f"{name}.damaged" for name in damage), "files/file-folder/file.json.damaged"]
            )
        finally:
            server.stop()
