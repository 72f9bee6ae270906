"""A host is a small value: it travels without clients and keys, and speaks for its server."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from pathlib import Path
from typing import Any

import openai
import pytest

import dspy_finetune as ft
from dspy_finetune.errors import HostError, ModelGoneError, TrainingClosedError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.failures import redact
from tests.fake_openai import FakeOpenAI

SECRET = "sk-planted-4f8c2e71d9"

HOSTS = [
    Host.openai(),
    Host.azure("https://res.openai.azure.com", training_type="GlobalStandard"),
    Host.local(),
    Host.local("http://127.0.0.1:8000", root="somewhere"),
    Host.compatible("https://llm.example.com/v1", name="example"),
    Host.compatible("https://llm.example.com/v1", api_key_variable="OTHER_KEY"),
]


@pytest.mark.parametrize("host", HOSTS, ids=repr)
def test_a_host_survives_dict_pickle_and_deepcopy(host: Host) -> None:
    assert Host.from_dict(json.loads(json.dumps(host.to_dict()))) == host
    assert pickle.loads(pickle.dumps(host)) == host
    assert copy.deepcopy(host) == host
    assert hash(pickle.loads(pickle.dumps(host))) == hash(host)
    assert host.name in repr(host).lower()


def test_a_key_is_in_no_repr_dict_pickle_or_lm_state(fake: FakeOpenAI) -> None:
    host = Host.compatible(fake.url, SECRET, name="example")
    host.client()
    lm = host.lm("m", cache=False)
    assert lm("hello") == ["true"]
    assert fake.headers[-1]["Authorization"] == f"Bearer {SECRET}"
    for seen in (repr(host), str(host.to_dict()), repr(lm), str(lm.dump_state())):
        assert SECRET not in seen
    for value in (host, lm):
        assert SECRET.encode() not in pickle.dumps(value)


def test_a_copy_in_memory_keeps_the_key_and_an_unpickled_one_asks_the_environment(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host.compatible("https://llm.example.com/v1", SECRET, name="example")
    assert copy.deepcopy(host).api_key() == SECRET
    thawed = pickle.loads(pickle.dumps(host))
    with pytest.raises(HostError, match="EXAMPLE_API_KEY"):
        thawed.api_key()
    monkeypatch.setenv("EXAMPLE_API_KEY", "later")
    assert thawed.api_key() == "later"


def test_the_key_is_read_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host.openai()
    with pytest.raises(HostError, match="OPENAI_API_KEY"):
        host.client()
    monkeypatch.setenv("OPENAI_API_KEY", "first")
    assert host.client().api_key == "first"
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    assert host.client().api_key == "second"
    host.close()


def test_openai_follows_its_base_url_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Host.openai().base_url is None
    monkeypatch.setenv("OPENAI_BASE_URL", "https://user:pw@gate.example.com/v1/")
    assert Host.openai().base_url == "https://gate.example.com/v1"


def test_openai_organisation_is_not_told_to_other_hosts(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    Host.compatible(fake.url).client().models.list()
    assert "org-mine" not in str(fake.headers[-1])
    assert SECRET not in str(fake.headers[-1])


def test_azure_takes_the_v1_address() -> None:
    assert Host.azure("https://res.openai.azure.com/openai/").base_url == "https://res.openai.azure.com/openai/v1"
    assert Host.azure("https://res.openai.azure.com/").base_url == "https://res.openai.azure.com/openai/v1"
    assert Host.azure("https://res.openai.azure.com/openai/v1/").base_url == "https://res.openai.azure.com/openai/v1"
    with pytest.raises(UsageError, match="endpoint"):
        Host.azure()
    with pytest.raises(UsageError, match="developerTier"):
        Host.azure("https://res.openai.azure.com", training_type="fast")


def test_clients_are_shared_and_differ_by_options(fake: FakeOpenAI) -> None:
    host = Host.compatible(fake.url, "k")
    assert host.client() is host.client()
    assert host.client(max_retries=0) is not host.client()
    assert host.client(max_retries=0).max_retries == 0
    host.close()


def test_a_copy_of_a_client_outlives_the_host_and_the_client_it_was_made_of(fake: FakeOpenAI) -> None:
    client = Host.local(fake.url).client().with_options(max_retries=0)
    gc.collect()
    assert client.models.list().data == []


def test_a_forgotten_client_closes_its_connections_even_from_a_reference_cycle(fake: FakeOpenAI) -> None:
    """Left to the collector, an open socket is an error of this test by `filterwarnings`."""
    cycle: list[Any] = [Host.local(fake.url).client()]
    cycle[0].models.list()
    cycle.append(cycle)
    transport = cycle[0]._client._transport
    del cycle
    gc.collect()
    assert not transport._pool.connections


def test_the_callers_own_http_client_stays_open(fake: FakeOpenAI) -> None:
    with openai.DefaultHttpxClient(trust_env=False) as own:
        Host.local(fake.url).client(http_client=own)
        gc.collect()
        assert not own.is_closed


def test_loopback_is_reached_whatever_proxy_is_set(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert Host.local(fake.url).client(max_retries=0).models.list().data == []


@pytest.mark.parametrize(
    ("status", "retryable"), [(400, False), (401, False), (403, False), (429, True), (500, True), (503, True)]
)
def test_an_answered_error_keeps_status_request_id_and_whether_to_retry(
    fake: FakeOpenAI, status: int, retryable: bool
) -> None:
    fake.fail("GET /models", status=status)
    host = Host.compatible(fake.url, SECRET)
    with pytest.raises(HostError) as caught, host.talking("list the models"):
        host.client(max_retries=0).models.list()
    error = caught.value
    assert (error.status, error.retryable) == (status, retryable)
    assert error.request_id == "req_1"
    assert "cannot list the models" in str(error)
    assert error.__cause__ is not None
    assert pickle.loads(pickle.dumps(error)).status == status


def test_an_address_without_an_api_is_said_to_be_one(fake: FakeOpenAI) -> None:
    """A web server answers 404 with a page of its own; the API's own 404 says what is missing."""
    fake.fail("GET /models", status=404, body=b"<html>not here</html>")
    host = Host.compatible(fake.url, "k")
    with pytest.raises(HostError, match=r"check the address, with /v1") as caught, host.talking("list the models"):
        host.client(max_retries=0).models.list()
    assert caught.value.status == 404
    with pytest.raises(HostError, match="no route") as caught, host.talking("ask"):
        host.client().get("/nowhere", cast_to=dict)
    assert "check the address" not in str(caught.value)


def test_a_host_that_does_not_answer_is_retryable_and_says_where_to_look() -> None:
    host = Host.compatible("http://127.0.0.1:9/v1", "k")
    with pytest.raises(HostError, match="no answer") as caught, host.talking("list the models"):
        host.client(max_retries=0).models.list()
    assert caught.value.retryable
    assert caught.value.status is None


def test_a_refused_key_is_not_repeated_in_the_message(fake: FakeOpenAI) -> None:
    fake.key = "right"
    host = Host.compatible(fake.url, "wrong-secret-value")
    with pytest.raises(HostError) as caught, host.talking("list the models"):
        host.client().models.list()
    assert caught.value.code == "invalid_api_key"
    assert "wrong-secret-value" not in str(caught.value)


@pytest.mark.parametrize("code", ["invalid_organization", "mismatched_organization", "mismatched_project"])
def test_an_organisation_that_is_none_of_the_keys_is_told_as_that(fake: FakeOpenAI, code: str) -> None:
    fake.fail("GET /models", status=401, body={"error": {"message": "No such organization.", "code": code}})
    with pytest.raises(HostError, match=r"check OPENAI_ORG_ID and OPENAI_PROJECT_ID"):
        _listed(Host.compatible(fake.url, SECRET))


def _listed(host: Host) -> list[object]:
    with host.talking("list the models"):
        return list(host.api().models())


def test_closed_training_says_since_when_and_where_else(fake: FakeOpenAI) -> None:
    body = {"error": {"message": "winding down", "code": "training_not_available", "param": None}}
    fake.fail("POST /fine_tuning/jobs", status=403, body=body)
    host = Host.compatible(fake.url, "k")
    with pytest.raises(TrainingClosedError, match=r"2026-05-07.*Host\.local") as caught, host.talking("create the job"):
        host.client().fine_tuning.jobs.create(model="m", training_file="file-1")
    assert caught.value.status == 403


def test_an_unknown_model_is_gone(fake: FakeOpenAI) -> None:
    host = Host.compatible(fake.url, "k")
    with pytest.raises(ModelGoneError, match="does not exist"), host.talking("ask for the model"):
        host.client().models.retrieve("nope")


def test_an_id_goes_to_dspy_with_its_provider_once() -> None:
    assert Host.openai().dspy_name("ft:gpt-4.1:o::x") == "openai/ft:gpt-4.1:o::x"
    assert Host.openai().dspy_name("openai/gpt-4.1") == "openai/gpt-4.1"


@pytest.mark.parametrize("key", ["sk-plain\n", "  sk-plain", "sk-plain \t\r\n", '"sk-plain"', " 'sk-plain' \n"])
def test_white_space_around_a_key_is_no_part_of_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert Host.openai().api_key() == Host.openai(key).api_key() == "sk-plain"
    monkeypatch.setenv("OPENAI_API_KEY", " \n")
    with pytest.raises(HostError, match="set OPENAI_API_KEY"):
        Host.openai().api_key()


@pytest.mark.parametrize("odd", ["\u200b", "\ufeff", "\n", "é", " "])
def test_what_no_key_holds_names_the_variable_and_not_the_key(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"sk-{odd}plain")
    with pytest.raises(HostError, match=rf"OPENAI_API_KEY holds .* \(U\+{ord(odd):04X}, character 4 of 9\)") as caught:
        Host.openai().lm("m")("hello")
    assert caught.value.code == "invalid_api_key"
    assert "plain" not in str(caught.value)
    with pytest.raises(HostError, match="the given api_key holds"):
        Host.openai(f"sk-{odd}plain").client()


@pytest.mark.parametrize("key", ["k", "ab", "abc", "local-key", "a.b"])
def test_keys_of_any_length_are_taken_out(key: str) -> None:
    """A short one where it stands alone: a message of other words stays readable."""
    text = f"Incorrect key provided: {key}. Ask: walk about, abc-like words"
    found = redact(text, [key, ""])
    assert f": {key}." not in found
    assert found.startswith("Incorrect key provided: ***.")
    assert "walk about" in found


def test_a_hosts_name_is_no_host(tmp_path: Path) -> None:
    """The command line takes names; Python says what to write in their place."""
    with pytest.raises(UsageError, match=r"ft\.Host\.local\(\)"):
        ft.plan(tmp_path / "train.jsonl", base_model="toy", host="local")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"host='openai'"):
        ft.OpenAIPredictor("title -> liked: bool", "ft:toy", host="openai")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"host='local'"):
        ft.list_jobs(host="local")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"host='local'"):
        ft.attach("ftjob-1", host="local")  # type: ignore[arg-type]
