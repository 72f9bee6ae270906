"""What DSPy does around a program that holds predictors, an ensemble and a cascade."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

import dspy_finetune as ft

from .conftest import ChatServer


class Program(dspy.Module):
    """A cascade over an ensemble and a single predictor."""

    def __init__(self, chat: ChatServer, *, cache: bool = False) -> None:
        super().__init__()
        first, second, third = (
            ft.OpenAIPredictor(ft.prompts.binary(), f"ft:m{number}", host=chat.host, cache=cache) for number in range(3)
        )
        self.judge = ft.Cascade([ft.Ensemble([first, second]), third], min_confidence=0.8)

    def forward(self, title: str) -> dspy.Prediction:
        return self.judge(title=title)

    async def aforward(self, title: str) -> dspy.Prediction:
        return await self.judge.acall(title=title)


@pytest.fixture
def own_cache() -> Iterator[None]:
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    yield
    dspy.cache = before


def unsure(chat: ChatServer) -> None:
    chat.answer = lambda body: [("true", {"true": 0.6, "false": 0.4})]


def test_streaming_ends_in_the_prediction(chat: ChatServer) -> None:
    """dspy.streamify without listeners, which only know DSPy's own adapters."""

    async def collect(program: Any) -> list[Any]:
        return [item async for item in program(title="x")]

    items = asyncio.run(collect(dspy.streamify(Program(chat))))
    assert isinstance(items[-1], dspy.Prediction)
    assert all(body["stream"] for body in chat.bodies)
    assert (items[-1].is_favorite, items[-1].escalated) == (True, False)
    assert items[-1].probability == pytest.approx(0.9)


def test_set_lm_changes_nothing(chat: ChatServer) -> None:
    program = Program(chat)
    program.set_lm(dspy.LM("openai/other", api_base=chat.url, api_key="k"))
    unsure(chat)
    assert program(title="x").escalated is True
    assert {body["model"] for body in chat.bodies} == {"ft:m0", "ft:m1", "ft:m2"}


def test_parallel_and_batch(chat: ChatServer) -> None:
    program = Program(chat)
    examples = [dspy.Example(title=f"{number}").with_inputs("title") for number in range(6)]
    parallel = dspy.Parallel(num_threads=3, disable_progress_bar=True)
    assert [found.is_favorite for found in parallel([(program, example) for example in examples])] == [True] * 6
    assert [found.is_favorite for found in program.batch(examples, num_threads=3, disable_progress_bar=True)] == [
        True
    ] * 6


class Notes(BaseCallback):
    def __init__(self) -> None:
        self.started: list[str] = []

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.started.append(type(instance).__name__)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.started.append("lm")


@pytest.mark.parametrize("is_async", [False, True])
def test_callbacks_see_every_module_and_every_call(is_async: bool, chat: ChatServer) -> None:
    notes = Notes()
    program = Program(chat)
    with dspy.context(callbacks=[notes]):
        asyncio.run(program.acall(title="x")) if is_async else program(title="x")
    assert sorted(notes.started) == ["Cascade", "Ensemble", "OpenAIPredictor", "OpenAIPredictor", "Program", "lm", "lm"]


def test_history_holds_every_call(chat: ChatServer) -> None:
    program = Program(chat)
    unsure(chat)
    program(title="Lock gates")
    cheap: Any = program.judge.members[0]
    members: list[Any] = [*cheap.members, program.judge.members[1]]
    for member in members:
        assert len(member.lm.history) == 1
        assert "Lock gates" in str(member.lm.history[0])
        assert "test-key" not in str(member.lm.history[0])


def test_the_cache_answers_a_second_time_and_can_be_off(chat: ChatServer, own_cache: None) -> None:
    cached = Program(chat, cache=True)
    first = cached(title="x")
    assert dict(cached(title="x").items()) == dict(first.items())
    assert len(chat.bodies) == 2
    bare = Program(chat)
    bare(title="x")
    bare(title="x")
    assert len(chat.bodies) == 6


def test_the_whole_program_is_saved_as_a_folder_and_loaded(chat: ChatServer, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LOOPBACK_API_KEY", "another-key")
    cascade = Program(chat).judge
    cascade.save(tmp_path / "folder", save_program=True)
    loaded = dspy.load(tmp_path / "folder", allow_pickle=True)
    assert dict(loaded(title="x").items()) == dict(cascade(title="x").items())
    assert b"test-key" not in b"".join(path.read_bytes() for path in (tmp_path / "folder").iterdir())
