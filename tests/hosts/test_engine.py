"""The engines of a host's predictors send and read what DSPy's own engine sends and reads."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Config, Message, Request, response_from_openai_chat
from dspy.utils.exceptions import LMAuthError, LMRateLimitError

import dspy_finetune as ft
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.lm import AsyncHostEngine, HostEngine, engines_for, positions_of, positions_on_wire
from tests.fake_openai import FakeOpenAI

TUNED = "ft:gpt-4.1-mini-2025-04-14:acme::abc12345"
SCHEMA = {"type": "json_schema", "name": "answer", "strict": False, "schema": {"type": "object"}}
CONFIGS = [
    Config(max_tokens=1, temperature=0.0, logprobs=20),
    Config(max_tokens=96, temperature=1.0, stop=("\n", "Q:")),
    Config(response_format=SCHEMA),
    Config(),
]


@pytest.fixture(autouse=True)
def cache_of_its_own() -> Iterator[None]:
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    yield
    dspy.cache = before


def request(config: Config, model: str = f"openai/{TUNED}") -> Request:
    turns = (Message.user("Title: Ünder {braces}\n☃"), Message.assistant("true"), Message.user("Title: Gates"))
    return Request(model=model, system="Be brief.", messages=turns, config=config)


class Body:
    """An HTTP response as DSPy's wire code reads it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def json(self) -> Any:
        return json.loads(self.text)


def own(fake: FakeOpenAI, **options: Any) -> dspy.LM:
    host = Host.compatible(fake.url, "k")
    return host.lm(TUNED, **engines_for(host, {"cache": False, "num_retries": 0, **options}))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("is_async", [False, True])
def test_the_body_and_the_headers_are_those_of_dspys_own_engine(
    fake: FakeOpenAI, config: Config, is_async: bool
) -> None:
    native = Host.compatible(fake.url, "k").lm(TUNED, cache=False)
    answers = []
    for lm in (native, own(fake)):
        one = asyncio.run(lm.acall(request(config))) if is_async else lm(request(config))
        answers.append((one.text, one.usage, one.finish_reason, one.model))
    assert answers[0] == answers[1]
    (_, first), (_, second) = fake.requests
    assert first == second
    assert first["model"] == TUNED
    ours, theirs = fake.headers[-1], fake.headers[-2]
    assert {name: ours[name] for name in theirs} == theirs


def test_history_usage_cache_and_callbacks_go_on_working(fake: FakeOpenAI) -> None:
    lm = own(fake, cache=True)
    with dspy.track_usage() as tracker:
        lm(request(CONFIGS[0]))
        lm(request(CONFIGS[0]))
    assert len(fake.requests) == 1
    assert len(lm.history) == 2
    assert lm.history[0]["model"] == f"openai/{TUNED}"
    assert tracker.get_total_tokens()[f"openai/{TUNED}"]["total_tokens"] == lm.history[0]["usage"]["total_tokens"]


def test_dspy_retries_what_can_be_retried_and_names_the_rest(fake: FakeOpenAI) -> None:
    fake.fail("POST /chat/completions", status=429, headers={"Retry-After": "0"})
    assert own(fake, num_retries=1)(request(CONFIGS[0])).text == "true"
    fake.fail("POST /chat/completions", status=429, headers={"Retry-After": "0"})
    with pytest.raises(LMRateLimitError):
        own(fake)(request(CONFIGS[0]))
    fake.fail("POST /chat/completions", status=401)
    with pytest.raises(LMAuthError):
        asyncio.run(own(fake).acall(request(CONFIGS[0])))


def test_every_event_loop_has_its_own_connections(fake: FakeOpenAI) -> None:
    lm = own(fake)
    for _ in range(3):
        assert asyncio.run(lm.acall(request(CONFIGS[0]))).text == "true"

    async def twice() -> None:
        await lm.acall(request(CONFIGS[0]))
        engine = lm._async_engine_spec
        assert len(engine._wires) == 1  # those of the ended loops are gone
        await engine.aclose()
        assert engine._wires == {}
        await lm.acall(request(CONFIGS[0]))

    asyncio.run(twice())
    assert fake.count("POST /chat/completions") == 5


def test_a_closed_engine_connects_again(fake: FakeOpenAI) -> None:
    lm = own(fake)
    lm(request(CONFIGS[0]))
    lm.engine.close()
    assert lm(request(CONFIGS[0])).text == "true"


def test_loopback_is_asked_without_a_proxy(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert own(fake)(request(CONFIGS[0])).text == "true"
    assert asyncio.run(own(fake).acall(request(CONFIGS[0]))).text == "true"


def test_copies_and_pickles_hold_no_key_and_ask_again(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPATIBLE_API_KEY", "key-of-the-environment")
    host = Host.compatible(fake.url, "key-in-memory")
    lm = host.lm(TUNED, **engines_for(host, {"cache": False, "timeout": 30}))
    lm(request(CONFIGS[0]))
    asyncio.run(lm.acall(request(CONFIGS[0])))
    pickled = pickle.dumps(lm)
    assert b"key-in-memory" not in pickled
    for twin in (lm.copy(rollout_id=3), copy.deepcopy(lm), pickle.loads(pickled)):
        assert twin(request(CONFIGS[0])).text == "true"
        assert asyncio.run(twin.acall(request(CONFIGS[0]))).text == "true"


def test_the_saved_state_is_that_of_dspys_own_route(fake: FakeOpenAI) -> None:
    host = Host.compatible(fake.url, "key-in-memory")
    options = {"cache": False, "num_retries": 5, "timeout": 30}
    state = host.lm(TUNED, **engines_for(host, options)).dump_state()
    assert state == host.lm(TUNED, **options).dump_state()
    assert dspy.LM.load_state(dict(state)).kwargs["timeout"] == 30
    for kind in (HostEngine, AsyncHostEngine):
        saved = kind(host, timeout=3.0).dump_state()
        assert "key-in-memory" not in str(saved)
        assert (kind.load_state(saved).host, kind.load_state(saved).timeout) == (host, 3.0)


def test_what_an_engine_does_not_carry_keeps_dspys_route(fake: FakeOpenAI) -> None:
    host = Host.compatible(fake.url, "k")
    for given in ({"headers": {"x": "y"}}, {"model_type": "responses"}, {"engine": "litellm"}, {"timeout": object()}):
        assert engines_for(host, given) == given
    assert set(engines_for(Host.openai(), {"timeout": 3})) == {"engine", "async_engine"}


def test_a_predictor_asks_through_them(fake: FakeOpenAI, tmp_path: Path) -> None:
    tuned = ft.OpenAIPredictor(ft.prompts.binary(), TUNED, host=Host.compatible(fake.url, "k"), timeout=20)
    assert isinstance(tuned.lm, dspy.LM)
    assert isinstance(tuned.lm.engine, HostEngine)
    assert tuned.lm.engine.timeout == 20
    assert tuned(title="x").is_favorite is True


def test_log_probabilities_are_kept_in_one_text(fake: FakeOpenAI) -> None:
    """The response has them once, as no object that a collector of garbage goes through, and they read as before."""
    wire = HostEngine(Host.compatible(fake.url, "k"))._connected()
    listed = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in (("true", -0.1), ('"\n', -3.0))]
    content: list[dict[str, Any]] = [
        {**listed[0], "top_logprobs": listed},
        {"token": "!", "logprob": -9999.0, "top_logprobs": []},
    ]
    choice = {"index": 0, "message": {"role": "assistant", "content": "true!"}, "finish_reason": "stop"}
    raw = {"id": "1", "model": "m", "usage": {}, "choices": [{**choice, "logprobs": {"content": content}}]}
    before = positions_of(response_from_openai_chat(copy.deepcopy(raw), model="m"))
    after = wire.parse_response(request(CONFIGS[0]), Body(json.dumps(raw)))
    expected = [("true", {"true": -0.1, '"\n': -3.0}), ("!", {"!": -9999.0})]
    assert before == positions_of(after) == positions_on_wire(content) == expected
    assert after.logprobs is None
    assert "logprobs" not in after.provider_data["choices"][0]
    assert after.provider_data["choices"][0]["message"]["content"] == "true!"


def test_an_answer_leaves_few_objects_in_the_history(fake: FakeOpenAI) -> None:
    """DSPy keeps 10,000 answers: what each leaves decides how long and how often a collection stops all callers."""
    fake.listed = {token: -1.0 - number for number, token in enumerate(["true", *"abcdefghijklmnopqrs"])}
    tuned = ft.OpenAIPredictor(ft.prompts.binary(), TUNED, host=Host.compatible(fake.url, "k"), cache=False)
    tuned(title="warm")
    gc.collect()
    before = len(gc.get_objects())
    for number in range(20):
        assert tuned(title=f"title {number}").probability is not None
    gc.collect()
    assert len(gc.get_objects()) - before < 20 * 40


def test_a_server_that_moved_is_found_again(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an embedded server does that was killed: it comes back at another port."""
    moved = FakeOpenAI()
    moved.reply = "false"
    host = Host.compatible(fake.url, "k")
    lm = host.lm(TUNED, **engines_for(host, {"cache": False}))

    async def ask() -> str:
        return str((await lm.acall(request(CONFIGS[0]))).text)

    assert (lm(request(CONFIGS[0])).text, asyncio.run(ask())) == ("true", "true")
    monkeypatch.setattr(host, "is_connected", lambda: False)
    monkeypatch.setattr(host, "connection", lambda: (moved.url, "k"))
    assert (lm(request(CONFIGS[0])).text, asyncio.run(ask())) == ("false", "false")
    moved.close()
