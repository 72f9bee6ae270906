"""DSPy's optimizers around a program with a tuned predictor: they teach the rest of it and leave that alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Message, Response, Usage

import dspy_finetune as ft

from .conftest import ChatServer

TITLES = ["Why lock gates lean", "How tides turn", "What yeast eats", "Ten gadgets", "Who founded it", "A new phone"]


class Scripted:
    """An engine that answers whatever fields ChatAdapter asks for, and GEPA's reflection with an instruction."""

    def __init__(self) -> None:
        self.n_asked = 0

    def complete(self, request: Any) -> Response:
        self.n_asked += 1
        asked = str(request.messages[-1].text).partition("Respond with the corresponding output fields")[2]
        fields = [name for name in re.findall(r"\[\[ ## (\w+) ## \]\]", asked) if name != "completed"]
        parts = [f"[[ ## {name} ## ]]\nSay {self.n_asked} in a few words." for name in fields]
        text = "\n\n".join([*parts, "[[ ## completed ## ]]"]) if fields else f"```\nBe kind, {self.n_asked}.\n```"
        usage = Usage(input_tokens=1, output_tokens=1, total_tokens=2)
        return Response(
            id=None, model=request.model, message=Message.assistant(text), finish_reason="stop", usage=usage
        )


class Program(dspy.Module):
    """A tuned predictor judges; a prompted one writes a note about the judgement."""

    def __init__(self, chat: ChatServer) -> None:
        super().__init__()
        prompt = ft.prompts.binary("Likes pieces that explain how things work.")
        self.judge = ft.OpenAIPredictor(prompt, "ft:tuned", host=chat.host, cache=False, threshold=0.3)
        self.note = dspy.Predict("title, liked -> note")

    def forward(self, title: str) -> dspy.Prediction:
        judged = self.judge(title=title)
        noted = self.note(title=title, liked=str(judged.is_favorite))
        return dspy.Prediction(is_favorite=judged.is_favorite, note=noted.note)


def score(example: Any, prediction: Any, trace: Any = None, name: Any = None, steps: Any = None) -> float:
    """Never perfect, so that every optimizer goes on trying; a longer note is better."""
    return 0.5 + min(len(str(prediction.note)), 100) / 1000


def with_feedback(example: Any, prediction: Any, trace: Any = None, name: Any = None, steps: Any = None) -> Any:
    return dspy.Prediction(score=score(example, prediction), feedback="Be kinder.")


def few_shot(program: Program, rows: list[Any], lm: dspy.LM) -> Any:
    return dspy.BootstrapFewShot(metric=score, max_rounds=1).compile(program, trainset=rows)


def mipro(program: Program, rows: list[Any], lm: dspy.LM) -> Any:
    optimizer = dspy.MIPROv2(
        metric=score, prompt_model=lm, task_model=lm, auto=None, num_candidates=2, max_bootstrapped_demos=1,
        max_labeled_demos=1, num_threads=1,
    )  # fmt: skip
    return optimizer.compile(program, trainset=rows[:3], valset=rows[3:], num_trials=2, minibatch=False)


def gepa(program: Program, rows: list[Any], lm: dspy.LM) -> Any:
    optimizer = dspy.GEPA(metric=with_feedback, reflection_lm=lm, max_metric_calls=12, num_threads=1)
    return optimizer.compile(program, trainset=rows[:3], valset=rows[3:])


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # DSPy's choice of sampler
@pytest.mark.parametrize("optimize", [few_shot, mipro, gepa])
def test_the_predictor_comes_out_as_it_went_in(
    optimize: Callable[[Program, list[Any], dspy.LM], Any], chat: ChatServer, tmp_path: Path
) -> None:
    """Model, threshold and messages are the same; the prompted part was asked; the result saves and loads."""
    engine = Scripted()
    lm = dspy.LM("scripted/one", engine=engine, cache=False)
    rows = [dspy.Example(title=title, is_favorite=True, note="Nice.").with_inputs("title") for title in TITLES]
    program = Program(chat)
    with dspy.context(lm=lm):
        compiled = optimize(program, rows, lm)
        answer = compiled(title="Bees")
    assert engine.n_asked > len(rows) / 2
    assert answer.is_favorite is True
    assert type(compiled.judge) is ft.OpenAIPredictor
    assert (compiled.judge.model, compiled.judge.threshold) == ("ft:tuned", 0.3)
    sent = {body["messages"][-1]["content"]: body["messages"] for body in chat.bodies}
    assert sent == {
        f"Title: {title}": program.judge.render(title=title) for title in [*TITLES, "Bees"] if f"Title: {title}" in sent
    }
    assert "Title: Bees" in sent
    assert {body["model"] for body in chat.bodies} == {"ft:tuned"}
    compiled.save(tmp_path / "program.json")
    loaded = Program(chat)
    loaded.judge.threshold = 0.9
    loaded.load(tmp_path / "program.json")
    assert loaded.judge.threshold == 0.3
    assert loaded.note.dump_state() == compiled.note.dump_state()
    assert loaded.judge.dump_state() == program.judge.dump_state()


def test_set_lm_and_reset_copies_leave_it_alone(chat: ChatServer) -> None:
    program = Program(chat)
    program.set_lm(dspy.LM("openai/other", api_base=chat.url, api_key="k"))
    for twin in (program.reset_copy(), program.deepcopy()):
        assert twin.judge(title="x").is_favorite is True
    assert {body["model"] for body in chat.bodies} == {"ft:tuned"}
