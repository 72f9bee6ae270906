"""A tuned predictor as the lm of a plain dspy.Predict with decision outputs: the wire is the trained prompt's."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from dspy.experimental import Noul

import dspy_finetune as ft

from .conftest import ChatServer


class Taste(dspy.Signature):
    """Instructions that the tuned model was not trained with."""

    title: str = dspy.InputField()
    is_favorite: bool = dspy.OutputField(desc="Would the reader like it?")


class Evidence(dspy.Signature):
    """The same, with DSPy's own type."""

    title: str = dspy.InputField()
    is_favorite: Noul = dspy.OutputField(desc="Would the reader like it?")


class Triage(dspy.Signature):
    """Sort the ticket."""

    ticket: str = dspy.InputField()
    queue: Literal["billing", "bug"] = dspy.OutputField(desc="Whose it is.")


def tuned(chat: ChatServer, prompt: Any = None, **options: Any) -> ft.OpenAIPredictor:
    return ft.OpenAIPredictor(
        prompt or ft.prompts.binary("Likes locks."), "ft:m", host=chat.host, cache=False, **options
    )


@pytest.mark.parametrize("is_async", [False, True])
def test_a_bool_is_decided_by_the_probability_and_the_wire_is_the_trained_prompt(
    is_async: bool, chat: ChatServer
) -> None:
    chat.answer = lambda body: [("true", {"true": 0.6, "false": 0.2})]
    predict = dspy.Predict(Taste)
    predict.lm = ft.DecisionLM(tuned(chat))
    predict.demos = [dspy.Example(title="y", is_favorite=True)]
    prediction = asyncio.run(predict.acall(title="x")) if is_async else predict(title="x")
    assert prediction.is_favorite is True
    assert chat.bodies[-1]["messages"] == tuned(chat).render(title="x")
    predict.fields = {"is_favorite": {"threshold": 0.8}}
    assert predict(title="x").is_favorite is False


def test_dspys_own_type_carries_the_probability(chat: ChatServer) -> None:
    chat.answer = lambda body: [("true", {"true": 0.6, "false": 0.2})]
    with dspy.context(lm=ft.DecisionLM(tuned(chat))):
        found = dspy.Predict(Evidence)(title="x").is_favorite
    assert (bool(found.value), found.probability) == (True, pytest.approx(0.75))


def test_a_literal_is_the_most_probable_label(chat: ChatServer) -> None:
    chat.answer = lambda body: [("bug", {"bug": 0.5, "billing": 0.3})]
    predict = dspy.Predict(Triage)
    predict.lm = ft.DecisionLM(tuned(chat, ft.PromptFormat(Triage)))
    assert predict(ticket="It crashes").queue == "bug"
    predict.fields = {"queue": {"weights": {"billing": 3.0}}}
    assert predict(ticket="It crashes").queue == "billing"


def test_it_is_saved_with_the_program(chat: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPBACK_API_KEY", "another-key")
    predict = dspy.Predict(Taste)
    predict.lm = ft.DecisionLM(tuned(chat, threshold=0.9))
    predict.save(tmp_path / "program.json")
    assert "test-key" not in (tmp_path / "program.json").read_text()
    again = dspy.Predict(Taste)
    again.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert again(title="x").is_favorite is True
    assert again.lm.predictor.dump_state() == predict.lm.predictor.dump_state()
    assert chat.bodies[-1]["messages"] == tuned(chat).render(title="x")
    assert pickle.loads(pickle.dumps(predict.lm)).predictor.model == "ft:m"


def test_no_probability_is_invented(chat: ChatServer) -> None:
    chat.sends_logprobs = False
    predict = dspy.Predict(Taste)
    predict.lm = ft.DecisionLM(tuned(chat))
    with pytest.raises(ft.errors.LogprobsError, match="a decision needs a probability"):
        predict(title="x")


def test_other_fields_and_predictors_are_refused(chat: ChatServer) -> None:
    predict = dspy.Predict(Triage)
    predict.lm = ft.DecisionLM(tuned(chat))
    with pytest.raises(ft.errors.UsageError, match=r"gives ticket and asks for queue \(choice\)"):
        predict(ticket="x")
    with pytest.raises(ft.errors.UsageError, match="has labels"):
        ft.DecisionLM(tuned(chat, ft.prompts.number()))
    assert chat.bodies == []
