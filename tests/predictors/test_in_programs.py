"""What DSPy does around a program that holds predictors, an ensemble and a cascade."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

import dspy_finetune as ft
from dspy_finetune.errors import UsageError

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


def test_inputs_without_a_name_are_told_how(chat: ChatServer) -> None:
    predictor = ft.OpenAIPredictor(ft.prompts.binary(), "ft:m0", host=chat.host)
    with pytest.raises(UsageError, match=r"predictor\(title=\.\.\.\)"):
        predictor("Lock gates")
    with pytest.raises(UsageError, match=r"predictor\(title=\.\.\.\)"):
        asyncio.run(predictor.acall("Lock gates"))
    assert not chat.bodies


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


class Note(dspy.Module):
    """A tuned text part, and a plain one."""

    def __init__(self, chat: ChatServer) -> None:
        super().__init__()
        self.note = ft.OpenAIPredictor("title -> note", "tuned", host=chat.host, cache=False)
        self.judge = dspy.Predict("note -> liked: bool")

    def forward(self, title: str) -> dspy.Prediction:
        return self.note(title=title)


class Tuned(dspy.Module):
    """A program of tuned parts alone, with two models."""

    def __init__(self, chat: ChatServer) -> None:
        super().__init__()
        self.one = ft.OpenAIPredictor("title -> note", "one", host=chat.host, cache=False)
        self.two = ft.OpenAIPredictor(ft.prompts.binary(), "two", host=chat.host, cache=False)

    def forward(self, title: str) -> dspy.Prediction:
        return self.one(title=title)


@pytest.mark.parametrize("kind", [dspy.BestOfN, dspy.Refine])
@pytest.mark.parametrize("program", [Note, Tuned])
def test_resampling_works_around_tuned_parts(kind: Any, program: Any, chat: ChatServer) -> None:
    """A tuned part is not part of the question which model a program samples from."""
    chat.answer = lambda body: [("Because.", {})]
    with dspy.context(lm=dspy.LM("openai/other", api_base=chat.url, api_key="k", cache=False)):
        best = kind(program(chat), N=2, reward_fn=lambda inputs, found: 1.0, threshold=1.0)
        assert best(title="x").note == "Because."
    assert kind(Tuned(chat), N=2, reward_fn=lambda inputs, found: 1.0, threshold=1.0)(title="x").note == "Because."


def test_refine_gets_its_advice_where_a_tuned_part_gives_probabilities(
    chat: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the program gave is written as JSON, and its labels are True and False."""

    class Program(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.judge = ft.OpenAIPredictor(ft.prompts.binary(), "two", host=chat.host, cache=False)
            self.note = dspy.Predict("title, liked -> note")

        def forward(self, title: str) -> dspy.Prediction:
            judged = self.judge(title=title)
            note = self.note(title=title, liked=str(judged.is_favorite)).note
            return dspy.Prediction(note=note, probabilities=judged.probabilities)

    lm = dspy.utils.DummyLM([{"note": "n"}, {"discussion": "d", "advice": '{"note": "shorter"}'}, {"note": "m"}])
    with dspy.context(lm=lm):
        refined = dspy.Refine(Program(), N=2, reward_fn=lambda inputs, found: float(found.note == "m"), threshold=1.0)
        assert refined(title="x").note == "m"
    assert "failed" not in capsys.readouterr().out


class Judged(dspy.Module):
    """A plain part before the one that is replaced by a tuned one."""

    def __init__(self) -> None:
        super().__init__()
        self.note = dspy.Predict("title -> note")
        self.judge = dspy.Predict("note -> liked: bool")

    def forward(self, title: str) -> dspy.Prediction:
        return self.judge(note=self.note(title=title).note)


def test_simba_improves_the_plain_parts_around_a_tuned_one(chat: ChatServer, caplog: pytest.LogCaptureFixture) -> None:
    """By rules that a model writes from the whole trajectory; the tuned part is asked as it was trained."""
    scores, rule = itertools.cycle([0.0, 0.5, 1.0]), '{"note": "Be short."}'
    fields = {"note": "x", "discussion": "x", "module_advice": rule}
    said = "".join(f"[[ ## {name} ## ]]\n{text}\n\n" for name, text in fields.items()) + "[[ ## completed ## ]]"
    chat.answer = lambda body: [("true", {"true": 0.9, "false": 0.1})] if body["model"] == "tuned" else [(said, {})]
    program, examples = Judged(), [dspy.Example(title=f"t{number}").with_inputs("title") for number in range(2)]
    ft.replace(program, "judge", ft.OpenAIPredictor("note -> liked: bool", "tuned", host=chat.host, cache=False))
    simba = dspy.SIMBA(
        metric=lambda example, found, trace=None: next(scores),
        bsize=2,
        num_candidates=3,
        max_steps=1,
        max_demos=0,
        num_threads=1,
    )
    with dspy.context(lm=dspy.LM("openai/other", api_base=chat.url, api_key="k", cache=False)):
        better = simba.compile(program, trainset=examples, seed=0)
        assert better(title="t0").liked is True
    asked = [body["messages"] for body in chat.bodies]
    assert any("module_advice" in str(messages) for messages in asked)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert {len(body["messages"]) for body in chat.bodies if body["model"] == "tuned"} == {len(asked[1])}


def test_models_of_plain_parts_are_counted_as_before(chat: ChatServer) -> None:
    program, one, two = Note(chat), dspy.LM("openai/one", api_key="k"), dspy.LM("openai/two", api_key="k")
    assert program.get_lm() is None or dspy.settings.lm is not None
    program.judge.lm = one
    assert program.get_lm() is one
    program.more = dspy.Predict("note -> liked: bool")
    program.more.lm = two
    with pytest.raises(ValueError, match="Multiple LMs"):
        program.get_lm()


def test_a_tuned_field_streams_to_a_listener(chat: ChatServer) -> None:
    """As the model writes it, with the last token named so; found by its field, or given."""
    chat.answer = lambda body: [("Bees ", {"Bees ": 1.0}), ("count ", {"count ": 1.0}), ("well.", {"well.": 1.0})]

    async def heard(program: Any, field: str = "note", **given: Any) -> list[Any]:
        listener = dspy.streaming.StreamListener(field, **given)
        streamed = dspy.streamify(program, stream_listeners=[listener])
        return [item async for item in streamed(title="x")]

    program = Note(chat)
    ways: list[dict[str, Any]] = [{}, {"predict": program.note, "predict_name": "note"}]
    for given in ways:
        items = asyncio.run(heard(program, **given))
        assert "".join(item.chunk for item in items[:-1]) == "Bees count well."
        assert (items[-2].is_last_chunk, items[-2].predict_name, items[-2].signature_field_name) == (
            True,
            "note",
            "note",
        )
        assert items[-1].note == "Bees count well."
    chat.answer = lambda body: [("tr", {"tr": 0.9, "false": 0.1}), ("ue", {"ue": 1.0})]
    judge = ft.OpenAIPredictor(ft.prompts.binary(), "m", host=chat.host, cache=False)
    *chunks, last = asyncio.run(heard(judge, "is_favorite"))
    assert [(item.chunk, item.is_last_chunk) for item in chunks] == [("tr", False), ("ue", True)]
    assert (last.is_favorite, last.probability) == (True, pytest.approx(0.9))
    with pytest.raises(ft.errors.UsageError, match="streams its whole answer"):
        dspy.streamify(
            ft.DPOPredictor(ft.prompts.explained_pairwise(), "m", host=chat.host),
            stream_listeners=[dspy.streaming.StreamListener("explanation")],
        )
