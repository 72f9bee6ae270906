"""What a time in the table is: the model's, without answers from a cache and without the loading of a model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune.evaluation.collect import collect
from dspy_finetune.hosts import Host
from tests.fake_openai import FakeOpenAI


@pytest.fixture
def predictor() -> Iterator[ft.OpenAIPredictor]:
    before, fake = dspy.cache, FakeOpenAI()
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    yield ft.OpenAIPredictor(ft.prompts.binary(), "m", host=Host.compatible(fake.url, "sk-key-0123456789"))
    dspy.cache = before
    fake.close()


def titles(n: int) -> list[dspy.Example]:
    return [dspy.Example(title=f"title {number}", is_favorite=True).with_inputs("title") for number in range(n)]


def test_answers_from_the_cache_are_marked_and_their_times_left_out(predictor: ft.OpenAIPredictor) -> None:
    predictor(title="title 1")
    programs: dict[str, Any] = {"tuned": predictor, "constant": lambda title: {"is_favorite": True}}
    report = ft.compare(programs, titles(3), [ft.metrics.accuracy("is_favorite")], num_threads=4)
    answers = report.comparison.answers
    assert [answer.is_cached for answer in answers["tuned"]] == [False, True, False]
    assert [answer.is_cached for answer in answers["constant"]] == [False] * 3
    tuned, constant = report.comparison.programs
    assert (tuned.n_cached, constant.n_cached) == (1, 0)
    asked = sorted(answer.latency_ms for answer in answers["tuned"] if not answer.is_cached)
    assert tuned.latency_p50_ms == pytest.approx(sum(asked) / 2)
    assert "from cache" in report.table()
    again = ft.compare({"tuned": predictor}, titles(3), [ft.metrics.accuracy("is_favorite")], num_threads=4)
    assert (again.comparison.programs[0].n_cached, again.comparison.programs[0].latency_p50_ms) == (3, None)


def test_the_first_question_is_asked_alone_and_its_time_left_out() -> None:
    """What loads a model would otherwise be in the time of every question that waits for it."""
    lock, under_way, most_before = threading.Lock(), [0], []

    def program(title: str) -> dict[str, Any]:
        with lock:
            under_way[0] += 1
            most_before.append(under_way[0])
        time.sleep(0.05 if title == "title 0" else 0.0)
        with lock:
            under_way[0] -= 1
        return {"is_favorite": True}

    report = ft.compare({"tuned": program}, titles(6), [ft.metrics.accuracy("is_favorite")], num_threads=3)
    answers = report.comparison.answers["tuned"]
    assert most_before[:2] == [1, 1]
    assert [answer.is_first for answer in answers] == [True] + [False] * 5
    rest = sorted(answer.latency_ms for answer in answers[1:])
    assert report.comparison.programs[0].latency_p50_ms == pytest.approx(rest[2])
    # As many threads as items: nothing has to wait for anything.
    few = collect({"tuned": program}, [{"title": "x"}, {"title": "y"}], num_threads=2)["tuned"].answers
    assert not any(answer.is_first for answer in few)


def test_dspy_says_a_thing_once_about_a_program_and_then_how_often(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    def program(title: str) -> dict[str, Any]:
        logging.getLogger("dspy.clients.lm").warning("%s was cut off", title)
        return {"is_favorite": True}

    handler = Kept()
    logging.getLogger("dspy").addHandler(handler)
    try:
        collect({"a": program, "b": program}, [row.inputs() for row in titles(3)], num_threads=1)
        assert told == ["title 0 was cut off"] * 2
        ours = [record.getMessage() for record in caplog.records if record.name.startswith("dspy_finetune")]
        assert ours == [f"{name}: DSPy said 3 times: title 0 was cut off" for name in ("a", "b")]
        program("afterwards")
        assert told[-1] == "afterwards was cut off"
    finally:
        logging.getLogger("dspy").removeHandler(handler)
