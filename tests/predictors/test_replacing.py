"""Swapping a dspy.Predict for a tuned predictor inside a program, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
import pytest

import dspy_finetune as ft

from .conftest import ChatServer

SIGNATURE = "title -> is_favorite: bool"


class Inner(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generate = dspy.Predict(SIGNATURE)

    def forward(self, title: str) -> Any:
        return self.generate(title=title)


class Program(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.judge = dspy.Predict(SIGNATURE)
        self.inner = Inner()
        self.steps = [dspy.Predict("question -> answer"), dspy.Predict(SIGNATURE)]
        self.named = {"third": dspy.Predict(SIGNATURE)}
        self.fixed = (dspy.Predict(SIGNATURE),)
        self.thought = dspy.ChainOfThought(SIGNATURE)

    def forward(self, title: str) -> Any:
        return self.inner(title=title)


@pytest.fixture
def tuned(chat: ChatServer) -> ft.OpenAIPredictor:
    return ft.OpenAIPredictor(ft.prompts.binary(), "ft:m", host=chat.host, cache=False)


@pytest.mark.parametrize(
    "name", ["judge", "inner.generate", "steps[1]", "named['third']", "named[third]", "self.judge"]
)
def test_a_predictor_is_swapped_and_put_back(name: str, tuned: ft.OpenAIPredictor) -> None:
    program = Program()
    names = [one for one, _ in program.named_parameters()]
    before = ft.replace(program, name, tuned)
    assert isinstance(before, dspy.Predict)
    assert tuned in program.parameters()
    assert [one for one, _ in program.named_parameters()] == names
    assert ft.replace(program, name, before) is tuned
    assert before in program.parameters()


def test_the_program_then_answers_with_the_tuned_model(chat: ChatServer, tuned: Any, tmp_path: Path) -> None:
    """And its file holds the tuned predictor under the same name."""
    program = Program()
    ft.replace(program, "inner.generate", tuned)
    assert program(title="x").probability == pytest.approx(0.9)
    program.save(tmp_path / "program.json")
    fresh = Program()
    ft.replace(fresh, "inner.generate", ft.OpenAIPredictor(ft.prompts.binary(), "other", host=chat.host))
    fresh.load(tmp_path / "program.json")
    assert fresh.inner.generate.model == "ft:m"


def test_every_name_that_dspy_gives_can_be_replaced(tuned: ft.OpenAIPredictor) -> None:
    program = Program()
    for name, predictor in program.named_predictors():
        if set(predictor.signature.output_fields) == {"is_favorite"} and "fixed" not in name:
            ft.replace(program, name, tuned.deepcopy())


class Shared(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict(SIGNATURE)
        self.again = self.first
        self.held: dict[str, Any] = {"list": [self.first, dspy.Predict(SIGNATURE)]}


def test_a_module_that_stands_at_several_places_is_replaced_at_all_of_them(tuned: ft.OpenAIPredictor) -> None:
    """DSPy names it once; the program may call it by the other name."""
    program = Shared()
    before = ft.replace(program, "first", tuned)
    assert program.first is program.again is program.held["list"][0] is tuned
    assert isinstance(program.held["list"][1], dspy.Predict)
    assert ft.replace(program, "again", before) is tuned
    assert program.first is program.again is program.held["list"][0] is before
    ft.replace(program, "first", tuned)
    ft.replace(program, "held['list'][1]", tuned)
    ft.replace(program, "first", before)
    assert program.first is program.again is before
    assert program.held["list"][1] is tuned, "where another one was before"
    ft.replace(program, "first", tuned)
    other = program.deepcopy()
    ft.replace(program, "held['list'][1]", dspy.Predict(SIGNATURE))
    assert program.first is program.again is tuned, "whichever is undone first"
    ft.replace(other, "first", before)
    assert other.first is other.again is before
    assert isinstance(other.held["list"][1], ft.OpenAIPredictor), "in a copy of the program too"
    fixed = Shared()
    fixed.held["tuple"] = (fixed.first,)
    with pytest.raises(ft.errors.UsageError, match="stands in a tuple"):
        ft.replace(fixed, "first", tuned)
    assert isinstance(fixed.first, dspy.Predict), "all places, or none"


def test_a_program_keeps_no_trace_of_what_was_undone(tuned: ft.OpenAIPredictor) -> None:
    """Nor does the next program, which may stand where a list of the first one stood in memory."""
    program = Shared()
    attributes = dict(vars(program))
    first, second = program.first, program.held["list"][1]
    ft.replace(program, "first", tuned)
    assert set(vars(program)) == set(attributes), "nothing to tell apart yet"
    ft.replace(program, "held['list'][1]", tuned)
    ft.replace(program, "held['list'][1]", second)
    ft.replace(program, "first", first)
    assert vars(program) == attributes
    program.held["list"] = [tuned, tuned]  # by hand: one module at two places
    ft.replace(program, "held['list'][0]", second)
    assert program.held["list"] == [second, second]


def test_a_module_that_dspy_does_not_see_is_refused(tuned: ft.OpenAIPredictor) -> None:
    """Behind an object that is no module: DSPy would neither save nor load it."""

    class Settings:
        judge = dspy.Predict(SIGNATURE)

    program = Program()
    program.settings = Settings()
    with pytest.raises(ft.errors.UsageError, match=r'has no module "settings.judge"'):
        ft.replace(program, "settings.judge", tuned)


@pytest.mark.parametrize("name", ["nobody", "inner.nobody", "steps[7]", "steps[x]", "", "a b", "callbacks"])
def test_an_unknown_name_is_refused(name: str, tuned: ft.OpenAIPredictor) -> None:
    with pytest.raises(ft.errors.UsageError, match=r"has no module .* it has: judge"):
        ft.replace(Program(), name, tuned)


def test_a_module_without_fields_of_its_own_can_be_replaced(tuned: ft.OpenAIPredictor) -> None:
    assert isinstance(ft.replace(Program(), "inner", tuned), Inner)


def test_the_names_in_the_message_are_complete(tuned: ft.OpenAIPredictor) -> None:
    with pytest.raises(ft.errors.UsageError) as caught:
        ft.replace(Program(), "nobody", tuned)
    listed = str(caught.value).partition("it has: ")[2].split(", ")
    assert {"judge", "inner.generate", "steps[0]", "steps[1]", "named['third']", "thought.predict"} <= set(listed)


def test_fields_that_do_not_match_are_refused(tuned: ft.OpenAIPredictor) -> None:
    program = Program()
    with pytest.raises(ft.errors.UsageError, match=r"question -> answer, the replacement has title -> is_favorite"):
        ft.replace(program, "steps[0]", tuned)
    with pytest.raises(ft.errors.UsageError, match="is_favorite, reasoning, the replacement"):
        ft.replace(program, "thought.predict", tuned)
    with pytest.raises(ft.errors.UsageError, match="tuple"):
        ft.replace(program, "fixed[0]", tuned)
    with pytest.raises(ft.errors.UsageError, match="callable"):
        ft.replace(program, "judge", "ft:m")
    assert isinstance(program.judge, dspy.Predict)


def test_the_fields_of_a_whole_chain_of_thought_are_checked(tuned: ft.OpenAIPredictor, chat: ChatServer) -> None:
    """Its reasoning is its own affair: what it gives besides must be given."""
    program = Program()
    wrong = ft.OpenAIPredictor("question -> answer", "m", host=chat.host)
    with pytest.raises(ft.errors.UsageError, match=r"title -> is_favorite, the replacement has question -> answer"):
        ft.replace(program, "thought", wrong)
    assert isinstance(ft.replace(program, "thought", tuned), dspy.ChainOfThought)
