"""Advice is what the rows say: each recommendation on rows made for it, and scores that are out of fold."""

from __future__ import annotations

import json
import math
import random
import re
from typing import Any

import dspy
import pytest

from dspy_finetune.errors import DataError, EmptyDatasetError, UsageError
from dspy_finetune.evaluation import Advice
from dspy_finetune.evaluation import advise as advise_by_any

WORDS = [f"word{n}" for n in range(60)]


def advise(*given: Any, **options: Any) -> Advice:
    """Without an encoder: these rows are told by their words."""
    return advise_by_any(*given, **{"encoder": None, **options})


def titles(n: int, *, signal: float, seed: int = 0) -> list[dspy.Example]:
    """Titles whose label is told by one word as often as `signal` says, the rest at random."""
    draw = random.Random(seed)
    rows = []
    for number in range(n):
        label = draw.random() < 0.5
        told = label if draw.random() < signal else not label
        text = " ".join([*draw.sample(WORDS, 6), "bees" if told else "taxes", f"n{number}"])
        rows.append(dspy.Example(title=text, liked=label).with_inputs("title"))
    return rows


@pytest.mark.parametrize(
    ("signal", "n", "recommendation"),
    [
        (1.0, 200, "do not fine-tune"),  # TF-IDF is right everywhere
        (0.8, 300, "head"),  # something is there, and something left to win
        (0.5, 200, "more labels first"),  # nothing tells the label
        (1.0, 40, "more labels first"),  # too few rows to tell anything
    ],
)
def test_each_recommendation_on_rows_made_for_it(signal: float, n: int, recommendation: str) -> None:
    assert advise(titles(n, signal=signal), "title -> liked: bool").recommendation == recommendation


def test_scores_are_out_of_fold_and_near_what_the_words_allow() -> None:
    advice = advise(titles(400, signal=0.8), "title -> liked: bool")
    best = advice.baselines[0]
    assert best.name.startswith("TF-IDF")
    # In-sample TF-IDF would be right nearly everywhere; 0.8 is all that the one word tells.
    assert best.interval.value == pytest.approx(0.8, abs=0.07)
    assert best.interval.n == advice.n_rows == 400
    assert [step.n_train for step in advice.curve] == [80, 160, 320]


def test_rows_that_share_an_item_stay_in_one_fold() -> None:
    """Every title stands there twice with random labels: were a twin in training, looking it up would seem to work."""
    draw = random.Random(1)
    once = [(" ".join(draw.sample(WORDS, 6)) + f" n{n}", draw.random() < 0.5) for n in range(100)]
    rows = [dspy.Example(title=text, liked=label).with_inputs("title") for text, label in once * 2]
    advice = advise(rows, "title -> liked: bool")
    assert advice.n_groups == 100
    assert (advice.n_duplicates, advice.n_conflicts, advice.ceiling) == (100, 0, 1.0)
    assert advice.recommendation == "more labels first"


def test_contradictions_in_duplicates_bound_what_can_be_reached() -> None:
    rows = titles(100, signal=0.9)
    twice = [dspy.Example(title=row.title, liked=not row.liked).with_inputs("title") for row in rows[:10]]
    advice = advise([*rows, *twice], "title -> liked: bool")
    assert (advice.n_duplicates, advice.n_conflicts, advice.ceiling) == (10, 10, 0.5)
    assert any("10 of 10 groups" in reason for reason in advice.reasons)


def test_numbers_are_measured_by_their_absolute_error() -> None:
    draw = random.Random(2)
    rows = [
        dspy.Example(title=f"{size} box {draw.choice(WORDS)}", price=value * draw.uniform(0.8, 1.2)).with_inputs(
            "title"
        )
        for size, value in draw.choices([("large", 90.0), ("small", 10.0)], k=200)
    ]
    advice = advise(rows, "title -> price: float")
    assert advice.metric == "absolute error"
    by_name = {one.name: one.interval.value or 0.0 for one in advice.baselines}
    assert by_name["TF-IDF + ridge"] < 0.75 * by_name["median"]
    assert advice.recommendation == "head"


def test_figures_of_tiny_and_of_large_numbers_can_be_read() -> None:
    """Doses in grams were 0.000 [0.000, 0.000], and people 15282.453."""
    for scale, shown in ((1e-6, r"e−0[67] \["), (1e4, r"[1-9],\d{3} \[")):
        rows = [dspy.Example(title=f"{WORDS[n % 2]} {n}", dose=scale * (1 + n % 2 + n / 900)) for n in range(80)]
        told = str(advise(rows, "title -> dose: float", encoder=None))
        assert re.search(shown, told)
        assert " 0.000" not in told


def test_advice_on_numbers_speaks_of_numbers_and_asks_for_no_handful_of_test_rows() -> None:
    """Words tell nothing here, so two baselines that say the same: a difference of theirs has next to no spread."""
    rows = [dspy.Example(title=f"box {n // 2}", price=1000 + n % 2 + n / 1e4) for n in range(120)]
    advice = advise(rows, "title -> price: float")
    assert (advice.n_conflicts, advice.ceiling, advice.n_test_rows) == (60, None, 30)
    told = " ".join(advice.reasons)
    assert "60 of 60 groups with equal inputs have different numbers." in told
    assert "A difference of 5 % of the error takes about 30 test rows to show." in told


def test_one_label_alone_and_a_handful_of_rows_are_told_at_once() -> None:
    """Neither needs an encoder: it would take most of a minute to start."""

    def encoder(texts: list[str]) -> list[list[float]]:
        raise AssertionError("asked about texts that no figure is made of")

    one = advise([dspy.Example(title=f"box {n}", liked="yes") for n in range(100)], label="liked", encoder=encoder)
    assert one.recommendation == "more labels first"
    assert one.reasons == ("Every row has the same liked, 'yes': there is nothing to tell apart; label others, too.",)
    few = advise([dspy.Example(title=f"box {n}", liked=n % 2 == 0) for n in range(5)], encoder=encoder)
    assert few.reasons[0].startswith("5 independent rows")
    assert not few.baselines


def test_free_text_asks_for_lora_and_pairs_are_seen() -> None:
    answers = [dspy.Example(question=f"Why {w} and {n}?", answer=f"Since {n} {w}") for n, w in enumerate(WORDS * 2)]
    assert advise(answers, "question -> answer").recommendation == "LoRA"
    pairs = [
        dspy.Example(title_a=a.title, title_b=b.title, preferred="A" if a.liked else "B")
        for a, b in zip(titles(120, signal=1.0), titles(120, signal=1.0, seed=9), strict=True)
        if a.liked != b.liked
    ]
    assert advise(pairs).columns.task == "pairs"


def test_what_cannot_be_looked_at_is_one_error() -> None:
    with pytest.raises(EmptyDatasetError, match="no rows"):
        advise([])
    with pytest.raises(UsageError, match="no output 'likes'"):
        advise(titles(20, signal=1.0), "title -> liked: bool", label="likes")


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_label_that_is_missing_is_left_out_and_one_that_cannot_be_read_is_named(kind: str) -> None:
    """NaN is what an empty cell of a table becomes."""

    def rows(odd: Any) -> list[dspy.Example]:
        labels = [odd if n == 7 else n % 2 == 0 if kind == "bool" else float(n % 9) for n in range(30)]
        return [dspy.Example(title=f"title {n}", liked=label).with_inputs("title") for n, label in enumerate(labels)]

    advice = advise(rows(math.nan), f"title -> liked: {kind}", encoder=None)
    assert advice.reasons[-1] == "Left out, as 'liked' is empty: 1 of 30 rows."
    with pytest.raises(
        DataError, match=r"^the label 'liked' of title='title 7': the answer 'maybe' is .*; correct the"
    ):
        advise(rows("maybe"), f"title -> liked: {kind}", encoder=None)


def test_of_several_outputs_it_says_which_one_was_looked_at() -> None:
    rows = [row.copy(kind="news") for row in titles(40, signal=0.8)]
    assert "of liked alone, not of kind" in str(advise(rows, "title -> liked: bool, kind: str"))


def test_the_figures_are_json_and_text_says_the_same() -> None:
    advice = advise(titles(200, signal=0.8), "title -> liked: bool")
    facts = json.loads(json.dumps(advice.to_dict()))
    assert facts["recommendation"] == advice.recommendation
    assert f"{advice.baselines[0].interval.value:.3f}" in str(advice)
    assert advice.reasons[0] in str(advice)


def test_an_encoder_sees_what_words_do_not_and_is_asked_once_about_each_text() -> None:
    """Titles in which every word is new: TF-IDF is blind, vectors tell the label."""
    draw = random.Random(5)
    rows, vectors = [], {}
    for number in range(120):
        liked = number % 2 == 0
        title = f"w{number}a w{number}b"
        vectors[title] = [1.0 if liked else -1.0, draw.random(), draw.random()]
        rows.append(dspy.Example(title=title, liked=liked).with_inputs("title"))
    asked: list[str] = []

    def encoder(texts: list[str]) -> list[list[float]]:
        asked.extend(texts)
        return [vectors[text] for text in texts]

    blind = advise(rows, "title -> liked: bool")
    seeing = advise(rows, "title -> liked: bool", encoder=encoder)
    assert blind.recommendation == "more labels first"
    assert seeing.recommendation == "do not fine-tune"
    assert seeing.baselines[0].interval.value == 1.0
    assert sorted(asked) == sorted(vectors)


def test_a_rare_label_that_the_text_tells_is_seen_although_hardly_an_answer_changes() -> None:
    """Where 4 % of the rows are positive, always saying no is right in 96 %: the probabilities tell more."""
    generator = random.Random(5)
    rows = []
    for n in range(500):
        is_rare = n % 25 == 0
        words = [f"w{generator.randrange(60)}" for _ in range(6)]
        clue = ["bees"] if generator.random() < (0.95 if is_rare else 0.07) else []
        rows.append(dspy.Example(title=" ".join([*words, *clue]), liked=is_rare).with_inputs("title"))
    advice = advise(rows, "title -> liked: bool", encoder=None)
    assert advice.recommendation == "head"
    assert any("96.0% of the rows have one label" in reason for reason in advice.reasons)
    assert not any("Nothing in the text" in reason for reason in advice.reasons)
