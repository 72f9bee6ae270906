"""Pairs and rankings from a yes/no predictor's scores of single items."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune.predictors.calibrate import sigmoid

from .conftest import ChatServer

WORTH = {"Lock gates": 2.0, "How bees count": 0.5, "Ten habits": -1.0, "You won't believe": -2.5}


def scores(chat: ChatServer, worth: dict[str, float], **options: Any) -> ft.PairwisePredictor:
    """The comparison by a model whose log-odds for a title are known."""

    def answer(body: dict[str, Any]) -> Any:
        share = sigmoid(worth[body["messages"][-1]["content"].removeprefix("Title: ")])
        return [("true" if share >= 0.5 else "false", {"true": share, "false": 1 - share})]

    chat.answer = answer
    scorer = ft.OpenAIPredictor(ft.prompts.binary("Likes locks."), "tuned", host=chat.host, cache=False)
    return ft.PairwisePredictor.from_scores(scorer, **options)


def test_the_preference_is_the_sigmoid_of_the_difference(chat: ChatServer) -> None:
    """Both orders say the same, by construction."""
    judge = scores(chat, WORTH)
    for one, two in itertools.permutations(WORTH, 2):
        found = judge(title_a=one, title_b=two)
        share = sigmoid(WORTH[one] - WORTH[two])
        assert found.preferred == ("A" if share > 0.5 else "B")
        assert found.probabilities == pytest.approx({"A": share, "B": 1 - share})
        assert found.probability == pytest.approx(max(share, 1 - share))
        assert (found.position_bias, found.is_tie, found.coverage) == (0.0, False, pytest.approx(1.0))
        assert (found.score_a, found.score_b) == (pytest.approx(WORTH[one]), pytest.approx(WORTH[two]))
    assert asyncio.run(judge.acall(title_a="Lock gates", title_b="Ten habits")).preferred == "A"
    assert chat.bodies[-1]["messages"][0]["content"].endswith("Likes locks.")


def test_a_ranking_takes_one_call_for_each_item(chat: ChatServer, tmp_path: Path) -> None:
    judge = scores(chat, WORTH)
    found = ft.rank(list(WORTH), judge, checkpoint=tmp_path / "kept.jsonl")
    assert len(chat.bodies) == len(WORTH)
    assert found.order == list(WORTH)
    mean = sum(WORTH.values()) / len(WORTH)
    assert [item.score for item in found.items] == pytest.approx([worth - mean for worth in WORTH.values()])
    assert (found.items[0].low, found.n_comparisons, found.n_parse_failures) == (-math.inf, 4, 0)
    again = ft.rank(list(WORTH), judge, checkpoint=tmp_path / "kept.jsonl")
    assert (len(chat.bodies), again.n_resumed, again.order) == (4, 4, found.order)


def test_it_is_calibrated_on_pairs(chat: ChatServer) -> None:
    """Preferences less steep than the scores say: a temperature mends the probabilities."""
    generator = random.Random(5)
    worth = {f"title {number}": generator.gauss(0, 2) for number in range(60)}
    judge = scores(chat, worth)
    pairs = []
    for _ in range(200):
        one, two = generator.sample(sorted(worth), 2)
        is_first = generator.random() < sigmoid((worth[one] - worth[two]) / 3)
        pairs.append(
            dspy.Example(title_a=one, title_b=two, preferred="A" if is_first else "B").with_inputs("title_a", "title_b")
        )
    found = ft.calibrate(judge, pairs, num_threads=4)
    apart = [worth[pair.title_a] - worth[pair.title_b] for pair in pairs]
    signs = [1 if pair.preferred == "A" else -1 for pair in pairs]

    def loss(temperature: float) -> float:
        return -sum(math.log(sigmoid(sign * one / temperature)) for sign, one in zip(signs, apart, strict=True))

    best = min((1 + step / 100 for step in range(1000)), key=loss)
    assert found.is_symmetric
    assert found.temperature is not None
    assert found.temperature == pytest.approx(best, abs=0.02)
    assert best > 2
    said = judge(title_a="title 1", title_b="title 2").probabilities["A"]
    assert said == pytest.approx(sigmoid((worth["title 1"] - worth["title 2"]) / found.temperature))


def test_it_is_saved_and_loaded_alone_and_in_programs(chat: ChatServer, tmp_path: Path) -> None:
    judge = scores(chat, WORTH, margin=0.1)
    pair = {"title_a": "Lock gates", "title_b": "How bees count"}
    judge.save(tmp_path / "judge.json")
    again = ft.load_predictor(tmp_path / "judge.json", host=chat.host)
    assert again(**pair).probabilities == judge(**pair).probabilities
    assert judge.deepcopy()(**pair).preferred == "A"
    assert "test-key" not in (tmp_path / "judge.json").read_text("utf-8")

    class Program(dspy.Module):
        def __init__(self, worth: dict[str, float]) -> None:
            super().__init__()
            self.judge = scores(chat, worth)

        def forward(self, **inputs: Any) -> Any:
            return self.judge(**inputs)

    Program(WORTH).save(tmp_path / "program.json")
    fresh = Program(WORTH)
    fresh.load(tmp_path / "program.json")
    assert fresh(**pair).preferred == "A"
    rows = [dspy.Example(**pair, preferred="A").with_inputs(*pair)] * 2
    report = ft.compare(
        {"scores": judge, "other": lambda **pair: {"preferred": "B"}}, rows, [ft.metrics.accuracy("preferred")]
    )
    assert "1.0" in report.table()


def test_a_score_that_is_not_told_decides_by_the_words(chat: ChatServer) -> None:
    judge = scores(chat, WORTH)
    chat.answer = lambda body: (
        [("true", {"true": 0.3})] if "Lock" in str(body["messages"][1]) else [("false", {"false": 0.4})]
    )
    found = judge(title_a="Ten habits", title_b="Lock gates")
    assert (found.preferred, found.probabilities, found.score_a, found.is_tie) == ("B", None, None, False)
    with pytest.raises(ft.errors.DataError, match="none of 4 items has a score"):
        ft.rank(list(WORTH), judge)
    with pytest.raises(ft.errors.UsageError, match="True and False"):
        ft.PairwisePredictor.from_scores(ft.OpenAIPredictor(ft.prompts.number(), "m", host=chat.host))


def test_items_and_pairs_go_both_ways() -> None:
    """The items of pairs that come from scores have the order of the scores."""
    generator = random.Random(2)
    worth = {f"title {number}": number for number in range(12)}
    rows = []
    for one, two in itertools.combinations(worth, 2):
        first, second = (one, two) if generator.random() < 0.5 else (two, one)
        row = {"title_a": first, "title_b": second, "preferred": "A" if worth[first] > worth[second] else "B"}
        rows.append(dspy.Example(**row, week=7, reason_a="x", reason_b="y").with_inputs("title_a", "title_b"))
    items = ft.items_from_pairs(rows)
    assert {item.title: item.is_favorite for item in items} == {title: number > 5 for title, number in worth.items()}
    assert (items[0].inputs().toDict(), items[0].week) == ({"title": items[0].title}, 7)
    prompt = ft.prompts.binary()
    assert prompt.completion(items[0]) in ("true", "false")


def test_what_says_nothing_is_left_out_and_wrong_pairs_are_named(caplog: pytest.LogCaptureFixture) -> None:
    def pair(a: str, b: str, preferred: str) -> dspy.Example:
        return dspy.Example(title_a=a, title_b=b, preferred=preferred).with_inputs("title_a", "title_b")

    found = ft.items_from_pairs([pair("x", "y", "A"), pair("y", "X ", "tie"), pair("z", "y", "B")], label="liked")
    assert {item.title: item.liked for item in found} == {"x": True, "z": False}
    assert "1 of 3 items were preferred as often as not" in caplog.text
    with pytest.raises(ft.errors.DataError, match="nothing to learn"):
        ft.items_from_pairs([pair("x", "y", "A"), pair("y", "x", "A")])
    with pytest.raises(ft.errors.RowsError, match="row 2"):
        ft.items_from_pairs([pair("x", "y", "A"), pair("x", "y", "perhaps")])
    with pytest.raises(ft.errors.RowsError, match="not a pair"):
        ft.items_from_pairs([dspy.Example(title="x")])


def test_the_score_is_the_log_odds(chat: ChatServer) -> None:
    judge: Any = scores(chat, WORTH)
    assert judge.item_score(title="Ten habits") == pytest.approx(math.log(sigmoid(-1.0) / (1 - sigmoid(-1.0))))
