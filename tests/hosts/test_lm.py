"""A host's dspy.LM takes DSPy's native route and shares no cached answer with another host."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import dspy
import pytest

from dspy_finetune.hosts import Host
from tests.fake_openai import FakeOpenAI

REQUEST_TEXT = "Is this title liked?"


@pytest.fixture
def two() -> Iterator[tuple[FakeOpenAI, FakeOpenAI]]:
    first, second = FakeOpenAI(), FakeOpenAI()
    first.reply, second.reply = "true", "false"
    yield first, second
    first.close()
    second.close()


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path) -> Iterator[None]:
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    yield
    dspy.cache = before


def ask(lm: dspy.LM) -> str:
    request = dspy.lm15.Request(model=lm.model, messages=dspy.lm15.Message.user(REQUEST_TEXT))
    return str(lm(request).text)


def test_two_hosts_with_a_model_of_one_name_do_not_share_answers(two: tuple[FakeOpenAI, FakeOpenAI]) -> None:
    lms = [Host.compatible(fake.url, "k").lm("m", temperature=0.0) for fake in two]
    assert [lm(REQUEST_TEXT) for lm in lms] == [["true"], ["false"]]
    assert [ask(lm) for lm in lms] == ["true", "false"]
    assert [asyncio.run(lm.acall(REQUEST_TEXT)) for lm in lms] == [["true"], ["false"]]


def test_one_host_answers_from_its_cache_and_a_rollout_asks_anew(fake: FakeOpenAI) -> None:
    for _ in range(2):
        lm = Host.compatible(fake.url, "k").lm("m", temperature=1.0)
        assert [ask(lm), ask(lm)] == ["true", "true"]
    assert fake.count("POST /chat/completions") == 1
    lm("again", rollout_id=1)
    lm("again", rollout_id=2)
    lm.copy(rollout_id=3)("again")
    assert fake.count("POST /chat/completions") == 4


def test_the_tag_warns_nobody_at_temperature_zero(fake: FakeOpenAI) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Host.compatible(fake.url, "k").lm("m", temperature=0.0)("hello") == ["true"]


@pytest.mark.parametrize("variable", ["OPENAI_API_BASE", "OPENAI_BASE_URL"])
def test_the_native_route_is_taken_whatever_the_environment_says(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9/v1")
    monkeypatch.setitem(sys.modules, "litellm", None)  # an import of it fails, whatever was imported before
    lm = Host.compatible(fake.url, "k").lm("ft:gpt-4.1-mini-2025-04-14:acme::abc12345")
    assert lm("hello") == ["true"]
    assert fake.requests[-1][1]["model"] == "ft:gpt-4.1-mini-2025-04-14:acme::abc12345"


def test_it_is_a_dspy_lm_through_copy_deepcopy_pickle_and_state(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPATIBLE_API_KEY", "k")
    lm = Host.compatible(fake.url).lm("m", temperature=0.5, max_tokens=3)
    assert isinstance(lm, dspy.LM)
    lm("first")
    for twin in (lm.copy(temperature=0.7), copy.deepcopy(lm), pickle.loads(pickle.dumps(lm))):
        assert twin("hello") == ["true"]
    state = lm.dump_state()
    assert "api_base" not in state
    loaded = dspy.LM.load_state(dict(state))
    assert type(loaded) is dspy.LM
    assert (loaded.model, loaded.kwargs["max_tokens"]) == ("openai/m", 3)


def test_a_program_with_it_saves_and_loads_without_trusting_a_class(fake: FakeOpenAI, tmp_path: Path) -> None:
    program = dspy.Predict("title -> liked")
    program.lm = Host.compatible(fake.url, "k").lm("m")
    program.save(tmp_path / "program.json")
    again = dspy.Predict("title -> liked")
    again.load(tmp_path / "program.json")
    assert again.lm.model == "openai/m"


ABILITIES = ("supports_function_calling", "supports_reasoning", "supports_response_schema", "supported_params")
BASE = "gpt-4.1-mini-2025-04-14"


@pytest.mark.parametrize("suffix", ["acme::abc12345", "acme:taste:abc12345:ckpt-step-88"])
def test_a_tuned_model_can_do_what_its_base_can(suffix: str) -> None:
    tuned, base = Host.openai().lm(f"ft:{BASE}:{suffix}"), Host.openai().lm(BASE)
    assert {name: getattr(tuned, name) for name in ABILITIES} == {name: getattr(base, name) for name in ABILITIES}
    assert tuned.supports_response_schema
    assert {"response_format", "logprobs", "tools"} <= tuned.supported_params
    stranger = Host.openai().lm("ft:my-own-model:acme::abc12345")
    assert not stranger.supports_response_schema


def test_the_json_adapter_sends_a_tuned_model_the_schema_that_it_sends_the_base(fake: FakeOpenAI) -> None:
    """Else data would be collected with one request and the tuned model served with another."""
    fake.reply = '{"is_favorite": true, "why": "boats"}'
    sent = []
    for name in (BASE, f"ft:{BASE}:acme::abc12345"):
        program = dspy.Predict("title -> is_favorite: bool, why: str")
        program.lm = Host.compatible(fake.url, "k").lm(name, cache=False)
        with dspy.context(adapter=dspy.JSONAdapter()):
            assert program(title="Boat").is_favorite is True
        body = dict(fake.requests[-1][1])
        assert body.pop("model") == name
        sent.append(body)
    assert sent[0] == sent[1]
    assert sent[0]["response_format"]["type"] == "json_schema"


def test_threads_share_one_lm(fake: FakeOpenAI) -> None:
    lm = Host.compatible(fake.url, "k").lm("m", cache=False)
    parallel = dspy.Parallel(num_threads=4, disable_progress_bar=True)
    assert parallel([(lm, {"prompt": f"title {i}"}) for i in range(8)]) == [["true"]] * 8
