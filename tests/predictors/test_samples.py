"""Numbers sampled for an interval, and texts with their own stop and length."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspy_finetune as ft

from .conftest import ChatServer


@pytest.fixture
def own_cache() -> Iterator[None]:
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    yield
    dspy.cache = before


def prices(chat: ChatServer, *texts: str) -> None:
    supply = itertools.cycle(texts)
    chat.answer = lambda body: [(next(supply), {})]


def priced(chat: ChatServer, **options: Any) -> ft.OpenAIPredictor:
    return ft.OpenAIPredictor(ft.prompts.number(), "ft:m", host=chat.host, **{"cache": False, **options})


def test_the_number_is_the_median_and_the_interval_holds_the_middle(chat: ChatServer) -> None:
    prices(chat, "$10.00", "$20.00", "$30.00", "$40.00", "$1,000.00")
    found = priced(chat, n_samples=5, interval_level=0.5)(product="A lamp")
    assert (found.price, found.interval, found.n_parse_failures) == (30.0, (20.0, 40.0), 0)
    assert sorted(found.samples) == [10.0, 20.0, 30.0, 40.0, 1000.0]
    assert {body["temperature"] for body in chat.bodies} == {1.0}
    wide = priced(chat, n_samples=5, interval_level=0.9)(product="A lamp").interval
    assert wide == pytest.approx((12.0, 808.0))


def test_a_single_answer_is_asked_for_at_temperature_0_and_has_no_interval(chat: ChatServer) -> None:
    prices(chat, "$10.00")
    found = priced(chat)(product="A lamp")
    assert (found.price, "interval" in found, chat.bodies[0]["temperature"]) == (10.0, False, 0.0)


def test_samples_that_are_no_number_are_counted_up_to_half(chat: ChatServer) -> None:
    prices(chat, "$10.00", "$12.00", "dear")
    found = priced(chat, n_samples=3)(product="A lamp")
    assert (found.price, found.n_parse_failures) == (11.0, 1)
    prices(chat, "$10.00", "dear")
    with pytest.raises(ft.errors.AnswerError, match="1 of 2 samples are no number") as caught:
        priced(chat, n_samples=2)(product="A lamp")
    assert caught.value.text == "dear"


def test_samples_are_distinct_in_the_cache_and_kept_by_it(chat: ChatServer, own_cache: None) -> None:
    """Three requests for three samples; asked again, none."""
    prices(chat, "$10.00", "$20.00", "$30.00")
    tuned = priced(chat, n_samples=3, cache=True)
    first = tuned(product="A lamp")
    assert (sorted(first.samples), len(chat.bodies)) == ([10.0, 20.0, 30.0], 3)
    assert (tuned(product="A lamp").samples, len(chat.bodies)) == (first.samples, 3)


def test_sampling_without_blocking_the_event_loop(chat: ChatServer) -> None:
    prices(chat, "$10.00", "$20.00", "$30.00")
    assert asyncio.run(priced(chat, n_samples=3).acall(product="A lamp")).price == 20.0


def by_n(chat: ChatServer, **options: Any) -> ft.OpenAIPredictor:
    """The same on a host that gives several answers to one request."""
    options = {"cache": False, **options}
    return ft.OpenAIPredictor(ft.prompts.number(), "ft:m", host=ft.Host.local(chat.url), **options)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_host_with_n_is_asked_once_for_all_samples(chat: ChatServer, own_cache: None, is_async: bool) -> None:
    """One request, whose prompt counts once; the same number, interval and samples as by one request each."""
    prices(chat, "$10.00", "$20.00", "$30.00", "dear", "$40.00")
    tuned = by_n(chat, n_samples=5, temperature=0.7, cache=True)

    def ask() -> dspy.Prediction:
        return asyncio.run(tuned.acall(product="A lamp")) if is_async else tuned(product="A lamp")

    with dspy.track_usage() as usage:
        found = ask()
    assert (found.price, found.samples, found.n_parse_failures) == (25.0, [10.0, 20.0, 30.0, 40.0], 1)
    assert [(body["n"], body["temperature"]) for body in chat.bodies] == [(5, 0.7)]
    (counts,) = usage.get_total_tokens().values()
    assert (counts["prompt_tokens"], counts["completion_tokens"]) == (11, 5)
    assert (ask().samples, len(chat.bodies)) == (found.samples, 1), "the cache keeps all of them"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_host_that_refuses_n_is_asked_for_each_sample(
    chat: ChatServer, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    prices(chat, "$10.00", "$20.00", "$30.00")
    told = "Unsupported value: 'n' does not support 3 with this model. Only the default (1) value is supported."
    chat.fault = lambda body, n: (400, {}, {"error": {"message": told, "param": "n"}}) if "n" in body else None
    tuned = by_n(chat, n_samples=3)
    for _ in range(2):
        found = asyncio.run(tuned.acall(product="A lamp")) if is_async else tuned(product="A lamp")
        assert sorted(found.samples) == [10.0, 20.0, 30.0]
    assert sum("n" in body for body in chat.bodies) == 1
    assert caplog.text.count("each sample is a request of its own from now on") == 1


def test_a_host_that_overlooks_n_is_asked_for_the_rest(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    prices(chat, "$10.00", "$20.00", "$30.00")
    monkeypatch.setattr(chat, "completions", chat.completion)
    assert sorted(by_n(chat, n_samples=3)(product="A lamp").samples) == [10.0, 20.0, 30.0]
    assert len(chat.bodies) == 3


def test_another_failure_of_a_request_with_n_is_raised(chat: ChatServer) -> None:
    chat.fault = lambda body, n: (400, {}, {"error": {"message": "the context is too long"}})
    with pytest.raises(Exception, match="the context is too long"):
        by_n(chat, n_samples=3)(product="A lamp")
    assert len(chat.bodies) == 1


def test_samples_of_a_stream_are_asked_for_one_by_one(chat: ChatServer) -> None:
    """Pieces of several answers would arrive as those of one."""
    prices(chat, "$10.00", "$20.00", "$30.00")

    async def last() -> Any:
        return [piece async for piece in dspy.streamify(by_n(chat, n_samples=3))(product="A lamp")][-1]

    assert sorted(asyncio.run(last()).samples) == [10.0, 20.0, 30.0]
    assert not any("n" in body for body in chat.bodies)


def test_sampling_is_for_one_number(chat: ChatServer, tmp_path: Path) -> None:
    for prompt, options in (
        (ft.prompts.binary(), {"n_samples": 3}),
        (ft.prompts.answer(), {"n_samples": 3}),
        (ft.prompts.number(), {"n_samples": 0}),
        (ft.prompts.number(), {"temperature": 0.0}),
        (ft.prompts.number(), {"interval_level": 1.0}),
    ):
        with pytest.raises(ft.errors.UsageError):
            ft.OpenAIPredictor(prompt, "m", host=chat.host, **options)
    priced(chat, n_samples=7, temperature=0.5, interval_level=0.9).save(tmp_path / "x.json")
    loaded: Any = ft.load_predictor(tmp_path / "x.json")
    assert (loaded.n_samples, loaded.temperature, loaded.interval_level) == (7, 0.5, 0.9)


def test_an_int_stays_an_int(chat: ChatServer) -> None:
    prices(chat, "3", "4")
    tuned = ft.OpenAIPredictor(
        ft.PromptFormat("title -> stars: int"), "m", host=chat.host, cache=False, n_samples=4, logprobs=False
    )
    assert tuned(title="x").stars == 3


def test_stop_and_length_of_a_text_reach_the_host(chat: ChatServer, tmp_path: Path) -> None:
    chat.answer = lambda body: [("Because water is heavy.", {})]
    tuned = ft.OpenAIPredictor(
        ft.prompts.answer(), "m", host=chat.host, cache=False, stop=["\n\n", "Q:"], max_tokens=40
    )
    assert tuned(question="Why?").answer == "Because water is heavy."
    body = chat.bodies[-1]
    assert body["stop"] == ["\n\n", "Q:"]
    assert 40 in (body.get("max_tokens"), body.get("max_completion_tokens"))
    tuned.save(tmp_path / "x.json")
    loaded = ft.load_predictor(tmp_path / "x.json")
    assert (loaded.stop, loaded.max_tokens) == (("\n\n", "Q:"), 40)
