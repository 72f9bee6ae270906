"""Baselines: deterministic, picklable programs with the fields and probabilities of any other."""

import itertools
import pickle
import random

import dspy
import pytest

from dspy_finetune.errors import EmptyDatasetError, UsageError
from dspy_finetune.evaluation import BaselineOptions, baselines, compare, metrics

RNG = random.Random(0)
TRAIN = [
    dspy.Example(title=f"{'tides and owls' if n % 3 else 'tax and golf'} {n}", liked=bool(n % 3), price=10.0 + n % 3)
    for n in range(60)
]
PAIRS = [
    dspy.Example(title_a=a.title, title_b=b.title, preferred="A" if a.liked else "B")
    for a, b in itertools.pairwise(TRAIN)
    if a.liked != b.liked
]


def test_the_majority_answers_the_most_frequent_label_with_its_share():
    answer = baselines.majority(TRAIN, label="liked")(title="x")
    assert answer.liked is True
    assert answer.probability == pytest.approx(40 / 60)
    assert answer.probabilities == pytest.approx({True: 40 / 60, False: 20 / 60})
    assert baselines.majority(TRAIN[:1], label="liked")(title="x").probability == 0.0


def test_tfidf_learns_a_word_and_repeats_itself():
    one, two = (baselines.tfidf_logistic(TRAIN, label="liked") for _ in range(2))
    assert one(title="owls").liked is True
    assert one(title="golf").liked is False
    assert one(title="owls").probability == two(title="owls").probability
    assert pickle.loads(pickle.dumps(one))(title="golf").probability == one(title="golf").probability


def test_the_pair_baseline_has_no_position_bias():
    pairs = baselines.tfidf_pairs(PAIRS)
    assert pairs(title_a="owls", title_b="golf").preferred == "A"
    forward, backward = pairs(title_a="owls", title_b="golf"), pairs(title_a="golf", title_b="owls")
    assert forward.probabilities["A"] == pytest.approx(backward.probabilities["B"])
    assert forward.probability == pytest.approx(backward.probability)  # that of the side returned


def test_number_baselines_answer_numbers():
    assert baselines.median(TRAIN, label="price")(title="x").price == 11.0
    ridge = baselines.tfidf_ridge(TRAIN, label="price")
    assert ridge(title="tax and golf").price < ridge(title="tides and owls").price


def test_one_label_in_training_is_always_the_answer():
    assert baselines.tfidf_logistic(TRAIN[:1], label="liked")(title="x").liked is False


def test_wrong_input_is_named():
    with pytest.raises(EmptyDatasetError):
        baselines.majority([], label="liked")
    with pytest.raises(UsageError, match=r"titel.*title, liked, price"):
        baselines.tfidf_logistic(TRAIN, text=["titel"], label="liked")
    with pytest.raises(UsageError, match="no word"):
        baselines.tfidf_logistic([dspy.Example(title="?", y=1), dspy.Example(title="!", y=2)], label="y")
    with pytest.raises(UsageError, match="two texts"):
        baselines.tfidf_pairs(PAIRS, text=["title_a"])


LABELLED = [row.with_inputs("title") for row in TRAIN]


def test_the_usual_baselines_fit_the_task():
    """One call gives what is worth beating, whatever is answered."""
    quiz = [dspy.Example(question=f"Who built {n}?", answer=f"Nobody {n}").with_inputs("question") for n in range(30)]
    rated = [row.copy(price=float(n)).with_inputs("title") for n, row in enumerate(LABELLED)]
    pairs = [row.copy(price_a=1, price_b=2).with_inputs("title_a", "title_b", "price_a", "price_b") for row in PAIRS]
    names = {
        "liked": baselines.usual(LABELLED, label="liked"),
        "price": baselines.usual(rated, label="price"),
        "answer": baselines.usual(quiz, label="answer"),
        "preferred": baselines.usual(pairs, label="preferred"),
    }
    assert {name: list(one) for name, one in names.items()} == {
        "liked": ["TF-IDF + logistic", "majority"],
        "price": ["TF-IDF + ridge", "median"],
        "answer": ["nearest answer"],
        "preferred": ["TF-IDF + logistic", "majority"],
    }
    asked = dict(pairs[0].inputs().items())
    assert names["preferred"]["TF-IDF + logistic"](**asked).preferred in {"A", "B"}
    assert names["answer"]["nearest answer"](question="So who built 7, then?").answer == "Nobody 7"
    assert list(baselines.usual(LABELLED, label="price", task="number")) == ["TF-IDF + ridge", "median"]


def test_a_copied_answer_is_the_first_of_several_and_can_be_pickled():
    quiz = [dspy.Example(question="owls", answer=["one", "two"]), dspy.Example(question="golf", answer="three")]
    near = pickle.loads(pickle.dumps(baselines.nearest_answer(quiz, label="answer")))
    assert [near(question=one).answer for one in ("owls at dusk", "golf", "nothing known")] == ["one", "three", "one"]


def test_compare_adds_the_baselines_and_says_what_was_seen_before():
    def rule(title: str) -> dspy.Prediction:
        return dspy.Prediction(liked="owls" in title)

    report = compare({"rule": rule}, LABELLED[:30], [metrics.accuracy("liked")], train=LABELLED[20:])
    assert [row.name for row in report.rows] == ["rule", "TF-IDF + logistic", "majority"]
    assert report.comparison.candidate == "rule"
    assert "10 of 30 stand in the training examples too" in report.comparison.not_checked[0]
    own = compare({"majority": rule}, LABELLED[:5], [metrics.accuracy("liked")], train=LABELLED[20:])
    assert own.rows[0].n_wrong == 0  # the user's own program of that name stays
    with pytest.raises(UsageError, match=r"baselines\.untuned"):
        compare(
            {"rule": rule},
            LABELLED,
            [metrics.accuracy("liked")],
            train=LABELLED,
            baselines=BaselineOptions(base_model="gpt-4.1-nano"),
        )
    with pytest.raises(EmptyDatasetError, match="train"):
        compare({"rule": rule}, LABELLED, [metrics.accuracy("liked")], train=[])
