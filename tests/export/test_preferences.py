"""Preferences say what was better and what was worse, from every origin, and count what gave none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.dummies import DummyLM

from dspy_finetune.errors import DataError, RowsError, UsageError
from dspy_finetune.export import (
    Preferences,
    export_dpo,
    preferences_from_corrections,
    preferences_from_mistakes,
    preferences_from_program,
)
from dspy_finetune.prompts import PromptFormat, answer, binary, explained_pairwise, number

PROMPT = answer("Be brief.")


def test_corrections_choose_what_the_user_wrote(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"question": "1 + 1?", "said": "3", "answer": "2"},
        {"question": "2 + 2?", "said": {"answer": "4"}, "answer": "4"},
        dspy.Example(question="3 + 3?", said="six, I guess", answer="6").with_inputs("question"),
    ]
    found = preferences_from_corrections(rows, PROMPT)
    assert [(pair.chosen, pair.rejected, pair.origin) for pair in found] == [
        ({"answer": "2"}, "3", "correction"),
        ({"answer": "6"}, "six, I guess", "correction"),
    ]
    assert (found.n_examples, found.skipped) == (3, {"answer left as it was": 1})
    dataset = export_dpo(found, PROMPT, tmp_path / "d.jsonl")
    line = json.loads(dataset.path.read_text().splitlines()[1])
    assert line["preferred_output"] == [{"role": "assistant", "content": "6"}]
    assert line["non_preferred_output"] == [{"role": "assistant", "content": "six, I guess"}]


def test_a_correction_may_stand_in_a_field_of_its_own() -> None:
    rows = [{"question": "1 + 1?", "before": "3", "after": "2"}]
    found = preferences_from_corrections(rows, PROMPT, said="before", written="after")
    assert (found[0].chosen, found[0].rejected) == ("2", "3")
    with pytest.raises(RowsError, match="row 1"):
        preferences_from_corrections(rows, PROMPT)


def test_a_correction_of_the_form_alone_is_none() -> None:
    """Answers are compared as what they say: a boolean, a label or a number; an unreadable one is another answer."""
    rows = [
        {"title": "a", "said": "Yes", "is_favorite": True},
        {"title": "b", "said": {"is_favorite": "1"}, "is_favorite": True},
        {"title": "c", "said": "no", "is_favorite": True},
        {"title": "d", "said": "perhaps", "is_favorite": True},
    ]
    found = preferences_from_corrections(rows, binary())
    assert ([pair.inputs["title"] for pair in found], found.skipped) == (["c", "d"], {"answer left as it was": 2})
    priced = [{"product": "x", "said": said, "price": 12.0} for said in ("$12.00", "12", "about $15")]
    found = preferences_from_corrections(priced, number())
    assert [pair.rejected for pair in found] == ["about $15"]


def test_mistakes_choose_the_right_answer() -> None:
    rows = [{"title": f"t{n}", "is_favorite": True} for n in range(4)]
    answers = [dspy.Prediction(is_favorite=True), dspy.Prediction(is_favorite=False), None, {"is_favorite": False}]
    found = preferences_from_mistakes(rows, answers, binary())
    assert [pair.inputs["title"] for pair in found] == ["t1", "t3"]
    assert found[0].chosen == {"is_favorite": True}
    assert found[0].rejected == {"is_favorite": False}
    assert found.skipped == {"answer was right": 1, "no answer": 1}


def test_a_mistake_is_in_the_label_not_in_the_words() -> None:
    """Another explanation of the right choice is no mistake."""
    row = {"title_a": "a", "title_b": "b", "preferred": "A", "explanation": "mine"}
    right = {"preferred": "A", "explanation": "its own"}
    wrong = {"preferred": "B", "explanation": "its own"}
    found = preferences_from_mistakes([row, row], [right, wrong], explained_pairwise())
    assert len(found) == 1
    assert found[0].rejected == wrong


def test_what_gave_no_preference_stands_in_the_manifest(tmp_path: Path) -> None:
    rows = [dspy.Example(title=f"Title {n}", is_favorite=True).with_inputs("title") for n in range(12)]
    found = preferences_from_mistakes(rows, [{"is_favorite": n > 1} for n in range(12)], binary())
    manifest = export_dpo(found, binary(), tmp_path / "dpo.jsonl").manifest
    assert (manifest.n_rows_in, manifest.n_rows_out, manifest.n_skipped) == (12, 2, 10)
    assert manifest.skipped == found.skipped


def test_mistakes_need_one_answer_for_each_example() -> None:
    row = {"title": "t", "is_favorite": True}
    with pytest.raises(UsageError, match="fewer"):
        preferences_from_mistakes([row, row], [None], binary())
    with pytest.raises(UsageError, match="more"):
        preferences_from_mistakes([row], [None, None], binary())
    with pytest.raises(RowsError, match="is_favorite"):
        preferences_from_mistakes([row], [{}], binary())


def sampled(answers: list[str]) -> Any:
    """A dummy model: each rollout gives the next of the answers."""

    class Rolling(DummyLM):
        def copy(self, **kwargs: Any) -> Any:
            taken.append(kwargs)
            return DummyLM([{"reasoning": "r", "answer": answers[kwargs["rollout_id"] % len(answers)]}] * 4)

    taken: list[dict[str, Any]] = []
    lm = Rolling([{"answer": "never"}])
    lm.taken = taken
    return lm


def length(example: Any, prediction: Any, trace: Any = None) -> float:
    return float(len(prediction.answer))


def run(answers: list[str], **options: Any) -> Preferences:
    program = dspy.Predict("question -> answer")
    examples = [dspy.Example(question="q").with_inputs("question")]
    with dspy.context(lm=sampled(answers)):
        return preferences_from_program(program, examples, length, n_samples=len(answers), **options)


def test_best_is_chosen_over_worst(tmp_path: Path) -> None:
    found = run(["aa", "a", "aaaa", "aaa"])
    assert len(found) == 1
    (pair,) = found
    assert (pair.chosen, pair.rejected) == ({"answer": "aaaa"}, {"answer": "a"})
    assert (pair.chosen_score, pair.rejected_score, pair.origin, pair.predictor) == (4.0, 1.0, "trace", "self")
    assert pair.inputs == {"question": "q"}
    dataset = export_dpo(found, PromptFormat("question -> answer"), tmp_path / "d.jsonl")
    assert dataset.n_rows == 1


def test_all_pairs_that_differ_enough() -> None:
    found = run(["aa", "a", "aaaa", "aaa"], strategy="all_pairs", min_difference=2)
    chosen = sorted((len(pair.chosen["answer"]), len(pair.rejected["answer"])) for pair in found)  # type: ignore[index]  # outputs, not texts
    assert chosen == [(3, 1), (4, 1), (4, 2)]
    assert run(["aa", "a"], min_difference=1.5).skipped == {"scores too close": 1}


def test_equal_answers_and_equal_scores_give_no_pair() -> None:
    assert run(["aa", "aa"]).skipped == {"all answers alike": 1}
    assert run(["ab", "ba"]).skipped == {"scores too close": 1}


def test_each_run_is_a_rollout_of_its_own_at_the_given_temperature() -> None:
    lm = sampled(["a", "aa", "aaa"])
    examples = [dspy.Example(question=str(n)).with_inputs("question") for n in range(3)]
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=lm):
        preferences_from_program(program, examples, length, n_samples=3, temperature=0.7, num_threads=2)
    assert sorted(taken["rollout_id"] for taken in lm.taken) == list(range(1, 10))
    assert {taken["temperature"] for taken in lm.taken} == {0.7}
    assert program.lm is None


class Two(dspy.Module):
    """Two steps: the second sees what the first wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.second = dspy.Predict("question, draft -> answer")

    def forward(self, question: str) -> Any:
        draft = self.first(question=question).answer
        return self.second(question=question, draft=draft)


def test_predictors_are_compared_on_equal_inputs_alone() -> None:
    """The second step's inputs differ from run to run, so only the first gives a pair."""
    examples = [dspy.Example(question="q").with_inputs("question")]
    with dspy.context(lm=sampled(["a", "aa"])):
        found = preferences_from_program(Two(), examples, length, n_samples=2)
    assert [pair.predictor for pair in found] == ["first"]
    assert found.of("second") == []
    with dspy.context(lm=sampled(["a", "aa"])):
        none = preferences_from_program(Two(), examples, length, n_samples=2, predictors=["second"])
    assert len(none) == 0


def test_failed_runs_are_counted_not_lost() -> None:
    def picky(example: Any, prediction: Any, trace: Any = None) -> float | None:
        if prediction.answer == "a":
            raise ValueError("too short")
        return None if prediction.answer == "aa" else len(prediction.answer)

    program = dspy.Predict("question -> answer")
    examples = [dspy.Example(question="q").with_inputs("question")]
    with dspy.context(lm=sampled(["a", "aa", "aaa", "aaaa"])):
        found = preferences_from_program(program, examples, picky, n_samples=4)
    assert found.skipped == {"run failed": 1, "run not scored": 1}
    assert len(found) == 1
    with dspy.context(lm=sampled(["a", "a"])), pytest.raises(DataError, match="too short"):
        preferences_from_program(program, examples, picky, n_samples=2)


@pytest.mark.parametrize("said", ["good", [], float("nan"), float("inf")])
def test_a_metric_that_gives_no_number_is_named(said: Any) -> None:
    program = dspy.Predict("question -> answer")
    examples = [dspy.Example(question="q").with_inputs("question")]
    with (
        dspy.context(lm=sampled(["a", "aa"])),
        pytest.raises(UsageError, match=r"a metric returned .*; it must return a"),
    ):
        preferences_from_program(program, examples, lambda *_: said, n_samples=2)


def test_sampling_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    program = dspy.Predict("question -> answer")
    examples = [dspy.Example(question=str(number)).with_inputs("question") for number in range(30)]
    with dspy.context(lm=sampled(["a", "aa"])):
        preferences_from_program(program, examples, length, n_samples=2)
    assert "sampling the program 60/60" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [{"strategy": "some"}, {"n_samples": 1}, {"temperature": 0.0}, {"predictors": ["nobody"]}, {}]
)
def test_wrong_arguments_are_named(options: dict[str, Any]) -> None:
    program = dspy.Predict("question -> answer")
    examples = [dspy.Example(question="q").with_inputs("question")]
    with dspy.context(lm=None), pytest.raises(UsageError):
        preferences_from_program(program, examples, length, **options)
