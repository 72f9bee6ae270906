"""No client waits for a host longer than two seconds without one line that says so."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune.hosts import failures
from dspy_finetune.hosts import host as hosts
from tests.fake_openai import FakeOpenAI

ASK = "POST /chat/completions"


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The pauses of the clients, which take no time."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    failures._told_until.clear()
    monkeypatch.setattr(time, "sleep", found.append)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    yield found
    failures._told_until.clear()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if one.levelno == logging.WARNING and "waiting" in one.message]


@pytest.mark.parametrize(
    ("status", "after", "line"),
    [
        (429, "30", "rate limited by acme, waiting 30 s"),
        (503, "7", "acme answered HTTP 503, waiting 7 s"),
        (429, "1", None),
    ],
)
def test_the_client_of_jobs_and_files_says_what_it_waits_for(
    status: int, after: str, line: str | None, fake: FakeOpenAI, slept: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    fake.fail("GET /models", status=status, headers={"Retry-After": after})
    client = ft.Host.compatible(fake.url, "k", name="acme").client()
    client.with_options(timeout=30).models.list()
    assert (slept, lines(caplog)) == ([float(after)], [] if line is None else [line])
    fake.fail("GET /models", status=429, headers={"Retry-After": "30"})
    with pytest.raises(Exception, match="429"):
        client.with_options(max_retries=0).models.list()
    assert len(lines(caplog)) == (line is not None), "who does not wait says nothing"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("status", "after", "times", "pauses", "told"),
    [
        (429, "30", 1, [30.0], ["rate limited by acme, waiting 30 s"]),
        (429, "86400", 1, [120.0], ["rate limited by acme, waiting 120 s"]),
        (500, None, 3, [1.0, 2.0, 4.0], ["acme answered HTTP 500, waiting 4 s"]),
    ],
)
def test_a_predictor_says_what_it_waits_for(
    is_async: bool, status: int, after: str | None, times: int, pauses: list[float], told: list[str],
    fake: FakeOpenAI, slept: list[float], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """As DSPy waits, between the tries that it makes; a pause of a day is seldom meant."""
    fake.reply = "true"
    fake.fail(ASK, status=status, times=times, headers={"Retry-After": after} if after else {})
    tuned = ft.OpenAIPredictor(
        ft.prompts.binary(), "m", host=ft.Host.compatible(fake.url, "k", name="acme"), cache=False
    )
    ask: Any = (lambda: asyncio.run(tuned.acall(title="x"))) if is_async else (lambda: tuned(title="x"))
    assert ask().is_favorite is True
    assert ([one for one in slept if one], lines(caplog)) == (pauses, told)


def test_a_call_that_is_not_tried_again_says_nothing(
    fake: FakeOpenAI, slept: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    fake.fail(ASK, status=429, times=9, headers={"Retry-After": "30"})
    host = ft.Host.compatible(fake.url, "k", name="acme")
    tuned = ft.OpenAIPredictor(ft.prompts.binary(), "m", host=host, cache=False, num_retries=0)
    with pytest.raises(dspy.LMRateLimitError):
        tuned(title="x")
    assert (slept, lines(caplog)) == ([], [])


def test_a_host_that_has_the_request_and_says_nothing_is_named_once(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its silence is not waited out for the half hour that the client takes for it."""
    monkeypatch.setattr("dspy_finetune._progress.SHORT_SECONDS", 0.0)
    monkeypatch.delenv("DSPY_FINETUNE_QUIET", raising=False)
    monkeypatch.setattr(failures, "_told_slow", {})
    monkeypatch.setattr(hosts, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *args, **kwargs: 0.0)
    host = ft.Host.compatible(fake.url, "k", name="acme")
    hold = fake.hold("GET /fine_tuning/jobs/*", phase="before")
    fake.create({"model": "m", "training_file": "file-1"})
    assert ft.attach("ftjob-0001", host=host).id == "ftjob-0001"
    hold.release()
    ft.attach("ftjob-0001", host=host)
    told = [one.message for one in caplog.records if "waiting" in one.message]
    assert told == ["waiting for the answer of acme: ask for the job ftjob-0001"]
    host.close()


def test_many_that_wait_for_one_host_say_so_once(slept: list[float], caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(16):
        failures.tell_wait("acme", 30.0, 429)
    failures.tell_wait("other", 30.0, 429)
    failures.tell_wait("acme", 60.0)
    told = ["rate limited by acme, waiting 30 s", "rate limited by other, waiting 30 s"]
    assert lines(caplog) == [*told, "no answer from acme, waiting 60 s"]
