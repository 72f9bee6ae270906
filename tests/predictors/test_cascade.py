"""Cascades: who is asked, who decides, and the threshold that is picked."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspy_finetune as ft


def cheap(title: str, share: float) -> dspy.Prediction:
    return dspy.Prediction(liked=share >= 0.5, probability=share, probabilities={True: share, False: 1 - share})


def expensive(title: str, share: float) -> dspy.Prediction:
    return dspy.Prediction(liked=title == "good")


def test_the_expensive_program_is_asked_only_in_doubt() -> None:
    cascade = ft.Cascade([cheap, expensive], min_confidence=0.8, output="liked")
    sure = cascade(title="bad", share=0.85)
    assert (sure.liked, sure.escalated, sure.confidence) == (True, False, 0.85)
    no = cascade(title="good", share=0.1)
    assert (no.liked, no.escalated, no.confidence) == (False, False, 0.9)
    doubt = cascade(title="good", share=0.3)
    assert (doubt.liked, doubt.escalated, doubt.confidence) == (True, True, 0.7)
    assert dict(asyncio.run(cascade.acall(title="good", share=0.3)).items()) == dict(doubt.items())


def test_no_confidence_and_no_readable_answer_are_doubt() -> None:
    def mumbles(**inputs: Any) -> Any:
        raise ft.errors.AnswerError("what?", text="hm")

    for program in (mumbles, lambda **inputs: dspy.Prediction(liked=False)):
        found = ft.Cascade([program, expensive], min_confidence=0.0, output="liked")(title="good", share=0.5)
        assert (found.liked, found.escalated, found.confidence) == (True, True, None)

    def fails(**inputs: Any) -> Any:
        raise ConnectionError("dead")

    with pytest.raises(ConnectionError):
        ft.Cascade([fails, expensive], output="liked")(title="good", share=0.5)


def test_the_confidence_of_an_ensemble_of_votes_is_its_agreement() -> None:
    votes = [lambda **i: dspy.Prediction(liked=True)] * 3 + [lambda **i: dspy.Prediction(liked=False)]
    cascade = ft.Cascade([ft.Ensemble(votes, voting="majority", output="liked"), expensive], min_confidence=0.7)
    found = cascade(title="bad", share=0.0)
    assert (found.liked, found.escalated, found.confidence) == (True, False, 0.75)


def rows(n: int) -> list[Any]:
    """The cheap program is right as often as it says; the expensive one nine times of ten."""
    generator = random.Random(4)
    found = []
    for _ in range(n):
        share = generator.random()
        liked = generator.random() < share
        title = "good" if liked == (generator.random() < 0.9) else "bad"
        found.append(dspy.Example(title=title, share=share, liked=liked).with_inputs("title", "share"))
    return found


def test_a_threshold_is_chosen_for_a_target_accuracy() -> None:
    data = rows(500)
    chosen = ft.Cascade.choose([cheap, expensive], data, target_accuracy=0.88, costs=(1.0, 20.0), output="liked")
    outcomes = [chosen.cascade(**row.inputs()) for row in data]
    share = sum(found.escalated for found in outcomes) / len(data)
    right = sum(found.liked == row.liked for found, row in zip(outcomes, data, strict=True)) / len(data)
    assert [chosen.share_escalated, chosen.accuracy] == pytest.approx([share, right])
    assert right >= 0.88
    assert 0.1 < share < 0.7
    assert chosen.cheap_accuracy < 0.8 < 0.87 < chosen.expensive_accuracy
    assert chosen.accuracy_interval[0] < right < chosen.accuracy_interval[1]
    assert chosen.cost == pytest.approx(1 + 20 * share)
    assert (chosen.cheap_cost, chosen.expensive_cost, chosen.n) == (1.0, 20.0, 500)
    fewer = [point for point in chosen.curve if point.share_escalated < share - 1e-9]
    assert all(point.accuracy < 0.88 for point in fewer)


def test_a_threshold_is_chosen_for_a_budget() -> None:
    data = rows(500)
    chosen = ft.Cascade.choose([cheap, expensive], data, max_escalated=0.25, output="liked")
    assert chosen.share_escalated <= 0.25
    assert chosen.accuracy == max(point.accuracy for point in chosen.curve if point.share_escalated <= 0.25)
    assert chosen.cost is None
    none = ft.Cascade.choose([cheap, expensive], data, max_escalated=0.0, output="liked")
    assert [none.share_escalated, none.accuracy] == pytest.approx([0.0, none.cheap_accuracy])


def test_what_cannot_be_reached_is_said_with_what_can() -> None:
    with pytest.raises(ft.errors.DataError, match=r"no threshold reaches an accuracy of 1.0: the best is 0\.\d+, with"):
        ft.Cascade.choose([cheap, expensive], rows(200), target_accuracy=1.0, output="liked")
    with pytest.raises(ft.errors.DataError, match="too few"):
        ft.Cascade.choose([cheap, expensive], rows(5), output="liked")
    with pytest.raises(ft.errors.UsageError, match="max_escalated"):
        ft.Cascade.choose([cheap, expensive], rows(50), max_escalated=3, output="liked")
    with pytest.raises(ft.errors.UsageError, match="every example needs"):
        ft.Cascade.choose([cheap, expensive], rows(50), output="other")
    with pytest.raises(ft.errors.DataError, match="gives no confidence"):
        ft.Cascade.choose([expensive, expensive], rows(50), max_escalated=0.5, output="liked")
    with pytest.raises(ft.errors.UsageError, match="a cheap program and an expensive one"):
        ft.Cascade([cheap], output="liked")
    with pytest.raises(ft.errors.UsageError, match="min_confidence"):
        ft.Cascade([cheap, expensive], min_confidence=-1, output="liked")


def test_the_threshold_is_saved_with_the_program(tmp_path: Path) -> None:
    class Program(dspy.Module):
        def __init__(self, min_confidence: float) -> None:
            super().__init__()
            self.steps = [ft.Cascade([cheap, expensive], min_confidence=min_confidence, output="liked")]

    Program(0.93).save(tmp_path / "program.json")
    fresh = Program(0.1)
    fresh.load(tmp_path / "program.json")
    assert fresh.steps[0].min_confidence == 0.93
    assert fresh.deepcopy().steps[0].min_confidence == 0.93


def test_a_number_that_is_no_probability_is_doubt() -> None:
    """95 where 0.95 is meant would always be above the threshold."""
    cascade = ft.Cascade(
        [lambda q: dspy.Prediction(out=True, probability=95), lambda q: dspy.Prediction(out=False)], output="out"
    )
    found = cascade(q="x")
    assert (found.out, found.escalated, found.confidence) == (False, True, None)


@pytest.mark.parametrize("costs", [(1,), ("a", "b"), (1, -1), 3])
def test_costs_are_two_prices(costs: Any) -> None:
    asked: list[str] = []

    def program(q: str) -> dict[str, Any]:
        asked.append(q)
        return {"out": True}

    with pytest.raises(ft.errors.UsageError, match="costs"):
        ft.Cascade.choose([program, program], [dspy.Example(q="x", out=True)] * 20, costs=costs, output="out")
    assert asked == []
