"""Rankings: against choix, against the truth, under a budget, resumed after a crash."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import choix
import dspy
import numpy
import pytest
from scipy.stats import kendalltau

import dspy_finetune as ft
from dspy_finetune.predictors.ranking import PRIOR_DEVIATION, fit

from .conftest import ChatServer


def worths(n: int, seed: int = 0) -> dict[str, float]:
    generator = random.Random(seed)
    return {f"item {number}": generator.gauss(0, 1.5) for number in range(n)}


class Judge:
    """Prefers by worth, leans to the first place, counts what it is asked; in words or with probabilities."""

    def __init__(self, truth: dict[str, float], lean: float = 0.0, *, in_words: bool = False) -> None:
        self.truth = truth
        self.lean = lean
        self.in_words = in_words
        self.asked: list[tuple[str, str]] = []

    def __call__(self, item_a: str, item_b: str) -> dspy.Prediction:
        self.asked.append((item_a, item_b))
        share = 1 / (1 + math.exp(-(self.truth[item_a] - self.truth[item_b] + self.lean)))
        if self.in_words:
            return dspy.Prediction(preferred="A" if random.Random(item_a + item_b).random() < share else "B")
        return dspy.Prediction(preferred="A" if share >= 0.5 else "B", probabilities={"A": share, "B": 1 - share})


def rank(truth: dict[str, float], judge: Any, **options: Any) -> ft.predictors.Ranking:
    return ft.rank(list(truth), judge, **{"fields": {"item_a": "item_b"}, "output": "preferred", **options})


def tau(ranking: Any, truth: dict[str, float]) -> float:
    return float(kendalltau([one.score for one in ranking.items], [truth[one.item] for one in ranking.items]).statistic)


def test_without_a_place_the_scores_are_those_of_choix() -> None:
    """A second implementation of the same penalised likelihood, by another optimizer."""
    generator = random.Random(1)
    wins = [(first, (first + generator.randrange(1, 12)) % 12) for first in generator.choices(range(12), k=150)]
    found = fit(12, [(first, second, 1.0) for first, second in wins], has_position=False)
    expected = choix.opt_pairwise(12, wins, alpha=1 / (2 * PRIOR_DEVIATION**2), tol=1e-10)
    assert found.scores == pytest.approx(expected - expected.mean(), abs=1e-4)


@pytest.mark.parametrize("in_words", [True, False])
def test_the_intervals_hold_the_truth_as_often_as_they_say(in_words: bool) -> None:
    """Pairs chosen by the answers, a lean to the first place: near 95 of 100, where the curvature alone gave 62."""
    inside: list[bool] = []
    for seed in range(10):
        generator = random.Random(seed)
        truth = {f"{seed} {number}": generator.gauss(0, 1) for number in range(20)}

        def noisy(item_a: str, item_b: str, truth: dict[str, float] = truth) -> dspy.Prediction:
            own = random.Random(item_a + item_b)
            share = 1 / (1 + math.exp(-(truth[item_a] - truth[item_b] + 0.3 + own.gauss(0, 0.7))))
            return dspy.Prediction(preferred="A", probabilities={"A": share, "B": 1 - share})

        ranking = rank(truth, Judge(truth, 0.3, in_words=True) if in_words else noisy, budget=160, num_threads=1)
        middle = numpy.mean(list(truth.values()))
        inside += [one.low < truth[one.item] - middle < one.high for one in ranking.items]
    assert 0.86 < sum(inside) / len(inside) <= 1.0


def test_the_order_is_found_with_a_part_of_the_pairs() -> None:
    truth = worths(30)
    judge = Judge(truth)
    ranking = rank(truth, judge, budget=120)
    assert (len(judge.asked), ranking.n_comparisons, ranking.n_pairs) == (120, 120, 435)
    assert tau(ranking, truth) > 0.95
    assert [one.rank for one in ranking.items] == list(range(1, 31))
    assert ranking.order[0] == max(truth, key=lambda item: truth[item])
    assert all(one.low < one.score < one.high for one in ranking.items)
    assert sum(one.n_comparisons for one in ranking.items) == 240


def test_a_lean_to_the_first_place_is_told_apart_from_the_scores() -> None:
    truth = worths(30)
    for in_words in (False, True):
        ranking = rank(truth, Judge(truth, lean=1.0, in_words=in_words), budget=300)
        assert ranking.position_bias is not None
        assert ranking.position_bias[1] < 1.0 < ranking.position_bias[2]
        assert tau(ranking, truth) > (0.7 if in_words else 0.95)


def test_every_item_stands_first_about_as_often_as_second() -> None:
    truth = worths(20)
    judge = Judge(truth)
    rank(truth, judge, budget=150)
    for item in truth:
        n_first = sum(item == first for first, _ in judge.asked)
        n_second = sum(item == second for _, second in judge.asked)
        assert abs(n_first - n_second) <= 5


def test_the_same_seed_gives_the_same_ranking() -> None:
    truth = worths(12)
    judge = Judge(truth)
    assert rank(truth, judge, seed=3, num_threads=4) == rank(truth, judge, seed=3, num_threads=1)


def test_no_pair_is_asked_twice_in_one_order() -> None:
    truth = worths(6)
    judge = Judge(truth)
    ranking = rank(truth, judge, budget=1000)
    assert len(judge.asked) == len(set(judge.asked)) == ranking.n_comparisons == 30


@pytest.mark.parametrize("n_before", [1, 17, 45])
def test_a_run_that_died_goes_on_without_asking_twice(n_before: int, tmp_path: Path) -> None:
    """And gives what an unbroken run gives; a line torn by the crash is asked again."""
    truth = worths(15)
    path = tmp_path / "answers.jsonl"
    expected = rank(truth, Judge(truth), budget=60)

    class Dies(Judge):
        def __call__(self, item_a: str, item_b: str) -> dspy.Prediction:
            if len(self.asked) == n_before:
                raise ConnectionError("the line is dead")
            return super().__call__(item_a, item_b)

    with pytest.raises(ConnectionError):
        rank(truth, Dies(truth), budget=60, checkpoint=path, num_threads=1)
    with path.open("ab") as stream:
        stream.write(b'{"first": 3, "sec')
    judge = Judge(truth)
    again = rank(truth, judge, budget=60, checkpoint=path)
    assert (len(judge.asked), again.n_resumed) == (60 - n_before, n_before)
    assert again.items == expected.items
    with pytest.raises(ft.errors.DataError, match="not the checkpoint of these items and this seed"):
        rank(truth, judge, budget=60, checkpoint=path, seed=9)
    path.write_text(path.read_text() + json.dumps({"first": 1}) + "\n")
    with pytest.raises(ft.errors.DataError, match=r"answers\.jsonl:62: not a line"):
        rank(truth, judge, budget=60, checkpoint=path)


def test_answers_that_cannot_be_read_are_counted_and_say_nothing() -> None:
    truth = worths(10)

    def mumbles(item_a: str, item_b: str) -> dspy.Prediction:
        if "item 3" in (item_a, item_b):
            raise ft.errors.AnswerError("neither", text="both")
        return Judge(truth)(item_a, item_b)

    ranking = rank(truth, mumbles, budget=40)
    assert ranking.n_parse_failures > 0
    assert {one.item: one.n_comparisons for one in ranking.items}["item 3"] == 0
    with pytest.raises(ft.errors.DataError, match="none of 10 comparisons could be read"):
        rank(truth, lambda item_a, item_b: dspy.Prediction(preferred="C"))


def test_a_pairwise_predictor_ranks_titles(chat: ChatServer) -> None:
    """Both orders are asked: no term for the place, and the fields come from the prompt."""
    titles = ["Why lock gates lean upstream", "How tides turn", "Ten gadgets", "Ten habits of founders"]

    def answer(body: dict[str, Any]) -> list[Any]:
        first, second = (
            titles.index(line[3:])
            for line in body["messages"][-1]["content"].splitlines()
            if line[:3] in ("A: ", "B: ")
        )
        of_a = 1 / (1 + math.exp(first - second - 0.8))
        return [("A" if of_a >= 0.5 else "B", {"A": of_a, "B": 1 - of_a})]

    chat.answer = answer
    predictor = ft.PairwisePredictor(ft.prompts.pairwise(), "ft:m", host=chat.host, cache=False)
    ranking = ft.rank([{"title": title} for title in titles[::-1]], predictor)
    assert [item["title"] for item in ranking.order] == titles
    assert (ranking.position_bias, ranking.n_comparisons, len(chat.bodies)) == (None, 6, 12)


def test_wrong_arguments_are_told() -> None:
    truth = worths(5)
    judge = Judge(truth)
    for items, options, message in (
        (["a"], {}, "at least two"),
        (["a", "b", "a"], {}, "items 0 and 2 are the same"),
        (list(truth), {"budget": 3}, "at least 5 comparisons"),
        ([{"name": "a"}, {"name": "b"}], {}, 'no field "item"'),
        (["a", "b"], {"fields": {"x_a": "x_b", "y_a": "y_b"}}, "texts fit one field"),
        (["a", "b"], {"fields": None}, "fields: name the fields"),
    ):
        with pytest.raises(ft.errors.UsageError, match=message):
            ft.rank(items, judge, **{"fields": {"item_a": "item_b"}, "output": "preferred", **options})  # type: ignore[arg-type]
    assert judge.asked == []


def test_nothing_is_asked_with_a_level_that_is_none() -> None:
    asked: list[str] = []
    for level in (0, 1, 95):
        with pytest.raises(ft.errors.UsageError, match="level"):
            ft.rank(["a", "b"], lambda **pair: asked.append("x"), fields={"x_a": "x_b"}, output="y", level=level)
    assert asked == []


def test_items_may_be_counted_off_and_must_be_texts_or_have_fields() -> None:
    def judge(x_a: str, x_b: str) -> dict[str, str]:
        return {"y": "A" if x_a < x_b else "B"}

    assert ft.rank(iter(["b", "a"]), judge, fields={"x_a": "x_b"}, output="y").order == ["a", "b"]  # type: ignore[arg-type]
    with pytest.raises(ft.errors.UsageError, match="item 0 is 1; give texts"):
        ft.rank([1, 2], judge, fields={"x_a": "x_b"}, output="y")


def test_the_answers_of_another_model_are_not_taken_up(chat: ChatServer, tmp_path: Path) -> None:
    chat.answer = lambda body: [("A", {"A": 0.6, "B": 0.4})]
    titles = ["Lock gates", "Bees", "Ten habits"]

    def judge(model: str) -> ft.PairwisePredictor:
        return ft.PairwisePredictor(ft.prompts.pairwise("Bees."), model, host=chat.host, cache=False)

    ft.rank(titles, judge("one"), checkpoint=tmp_path / "kept.jsonl")
    with pytest.raises(ft.errors.DataError, match="this predictor"):
        ft.rank(titles, judge("two"), checkpoint=tmp_path / "kept.jsonl")
    assert ft.rank(titles, judge("one"), checkpoint=tmp_path / "kept.jsonl").n_resumed == 3
