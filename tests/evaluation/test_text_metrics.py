"""Metrics of free text, of orders and of ranks: against published examples and plain definitions."""

import functools
import math
import pickle
import random

import dspy
import numpy as np
import pytest
import scipy.stats

from dspy_finetune.errors import AnswerError, UsageError
from dspy_finetune.evaluation import in_both_orders, metrics, pairwise_bias
from dspy_finetune.evaluation.metrics import longest_common_words
from tests.evaluation.comparing import compare_programs


def score(metric: metrics.Metric, expected: object, predicted: object) -> float:
    return metric(dspy.Example(y=expected), dspy.Prediction(y=predicted))


def test_rouge_l_gives_the_figures_of_its_paper():
    # Lin 2004, section 3.1: reference S1, candidates S2 to S4, all of equal length, so that F is recall.
    reference = "police killed the gunman"
    for candidate, value in [
        ("police kill the gunman", 3 / 4),
        ("the gunman kill police", 2 / 4),
        ("the gunman police killed", 2 / 4),
    ]:
        assert score(metrics.rouge_l("y"), reference, candidate) == value


def test_common_words_equal_their_definition():
    rng = random.Random(0)

    def by_definition(one: list[str], other: list[str]) -> int:
        @functools.cache
        def longest(i: int, j: int) -> int:
            if i == len(one) or j == len(other):
                return 0
            if one[i] == other[j]:
                return 1 + longest(i + 1, j + 1)
            return max(longest(i + 1, j), longest(i, j + 1))

        return longest(0, 0)

    for _ in range(50):
        one, other = ([rng.choice("abcd") for _ in range(rng.randrange(9))] for _ in range(2))
        assert longest_common_words(one, other) == by_definition(one, other)


def test_texts_of_any_script_empty_texts_and_lists_have_a_rouge_l():
    rouge = metrics.rouge_l("y")
    assert score(rouge, "Кошка спит дома", "кошка спит") == pytest.approx(0.8)
    for metric in (rouge, metrics.token_f1("y")):  # no blanks between words: each character is one
        assert score(metric, "猫在家睡觉", "猫睡觉") == pytest.approx(0.75)
    assert (score(rouge, "", ""), score(rouge, "a", ""), score(rouge, "", "!")) == (1.0, 0.0, 1.0)
    assert score(rouge, ["nothing", "the cat"], "The cat.") == 1.0
    assert score(rouge, "a", None) == 0.0


class Embeds:
    """A hashing bag of words in place of a model; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> list[list[float]]:
        self.asked += texts
        return [[float(sum(word == of for word in text.split())) for of in "abcd"] for text in texts]


def test_similarity_is_the_cosine_and_asks_about_each_text_once():
    embed = Embeds()
    alike = metrics.semantic_similarity("y", embed)
    found = score(alike, "a b", "a c")
    assert found == pytest.approx(np.dot([1, 1], [1, 0]) / 2)
    assert score(alike, "a b", "a b") == 1.0
    assert score(alike, ["d", "a b"], "a c") == pytest.approx(found)
    assert (score(alike, "", ""), score(alike, "a", " "), score(alike, "a b", "x")) == (1.0, 0.0, 0.0)
    assert sorted(embed.asked) == ["a b", "a c", "d", "x"]
    assert score(pickle.loads(pickle.dumps(alike)), "a", "b") == 0.0
    with pytest.raises(UsageError, match="shape"):
        score(metrics.semantic_similarity("y", lambda texts: [1.0] * len(texts)), "a", "b")


def test_a_dspy_embedder_can_be_given():
    embedder = dspy.Embedder(lambda texts: np.eye(len(texts)))
    assert score(metrics.semantic_similarity("y", embedder), "one", "other") == 0.0


def test_kendalls_tau_is_scipys_and_reads_numbers_strictly():
    rng = random.Random(1)
    truth, said = ([rng.randrange(8) for _ in range(30)] for _ in range(2))
    rows = [dspy.Example(y=one) for one in truth]
    tau = metrics.kendall_tau("y")
    assert tau(rows, [dspy.Prediction(y=str(one)) for one in said]) == pytest.approx(
        scipy.stats.kendalltau(truth, said).statistic
    )
    assert tau(rows, [dspy.Prediction(y="cheap"), *(dspy.Prediction(y=one) for one in said[1:])]) == pytest.approx(
        scipy.stats.kendalltau(truth[1:], said[1:]).statistic
    )
    assert math.isnan(tau(rows[:1], [dspy.Prediction(y=1)]))
    assert math.isnan(tau(rows, [dspy.Prediction(y=1)] * 30))


def test_every_class_has_its_own_precision_recall_and_f1():
    rows = [dspy.Example(y=one) for one in ["a", "a", "b", True]]
    said = [dspy.Prediction(y=one) for one in ["a", "b", "b", "b"]]
    found = {metric.name: metric(rows, said) for metric in metrics.per_class("y", ["a", "b", True])}
    assert found == {
        "precision of a": 1.0, "recall of a": 0.5, "F1 of a": pytest.approx(2 / 3),
        "precision of b": pytest.approx(1 / 3), "recall of b": 1.0, "F1 of b": 0.5,
        "precision of True": 0.0, "recall of True": 0.0, "F1 of True": 0.0,
    }  # fmt: skip
    with pytest.raises(UsageError, match="labels"):
        metrics.per_class("y", [])


def test_a_program_that_prefers_the_first_place_agrees_with_itself_never():
    pairs = [
        dspy.Example(title_a=f"{'owls' if n % 2 else 'tax'} {n}", title_b=f"{'tax' if n % 2 else 'owls'} {n}",
                     preferred="A" if n % 2 else "B").with_inputs("title_a", "title_b")
        for n in range(12)
    ]  # fmt: skip

    def first(title_a: str, title_b: str) -> dspy.Prediction:
        return dspy.Prediction(preferred="A", probability=0.9)

    def owls(title_a: str, title_b: str) -> dspy.Prediction:
        if "tax 3" in (title_a, title_b):
            raise AnswerError("mumble", text="?")
        return dspy.Prediction(preferred="A" if "owls" in title_a else "B")

    found = compare_programs(
        {"owls": in_both_orders(owls), "first": in_both_orders(first)},
        pairs,
        [metrics.pairwise_accuracy(), metrics.order_agreement()],
    )
    scores = {row.name: row.scores["order agreement"].value for row in found.programs}
    assert scores == {"owls": pytest.approx(11 / 12), "first": 0.0}
    assert found.answers["first"][0].outputs == {"preferred": "A", "probability": 0.9, "orders_agree": False}
    with pytest.raises(UsageError, match="_a and _b"):
        in_both_orders(lambda x: dspy.Prediction(preferred="A"))(x="t")
    with pytest.raises(UsageError, match="orders_agree"):
        metrics.order_agreement()(pairs[0], dspy.Prediction(preferred="A"))


def test_a_lean_to_the_dearer_side_is_found():
    found = pairwise_bias(
        ["x"] * 5, ["y"] * 5, ["A", "B", "A", None, "B"], prices_a=["$5", 1, 2, 3, "cheap"], prices_b=[1, 2.5, 2, 1, 9]
    )
    assert found.prefers_more_expensive is not None
    assert (found.prefers_more_expensive.value, found.prefers_more_expensive.n) == (1.0, 2)
    assert pairwise_bias(["x"], ["y"], ["A"]).prefers_more_expensive is None


LABELLED = [dspy.Example(y=one, t="x") for one in (True, False, True)]


@pytest.mark.parametrize(
    "name", sorted(set(metrics.__all__) - {"Metric", "SetMetric", "per_class", "order_agreement"} - {"rubric_score"}
                   - {"rubric_preference", "semantic_similarity", "within"})
)  # fmt: skip
def test_unreadable_answers_and_empty_sets_are_what_the_table_of_the_documents_says(name):
    """0 or left out for single items; for sets the value of "not right", or the value without the item."""
    metric = getattr(metrics, name)("y")
    numbers = name.startswith(("mean_abs", "root", "median", "kendall"))
    rows = [dspy.Example(y=one) for one in (1.0, 2.0, 4.0)] if numbers else LABELLED
    answers = [dspy.Prediction(y=row.y, probability=0.8 if row.y else 0.3) for row in rows]
    nothing = dspy.Prediction(y=None, probability=None)
    if isinstance(metric, metrics.SetMetric):
        assert math.isnan(metric([], []))
        whole = metric(rows, [*answers[:2], nothing])
        without = metric(rows[:2], answers[:2])
        # What was never named cannot make precision worse.
        lowers = metric.counts_parse_failures and name != "precision"
        assert (whole < without) if lowers else (whole == pytest.approx(without, nan_ok=True))
    elif metric.if_parse_failure is None:
        with pytest.raises(AnswerError):
            metric(rows[0], nothing)
    else:
        assert metric(rows[0], nothing) == 0.0


def test_the_documents_name_every_metric_with_its_range():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    lines = page[page.index("| metric | kind |") :].split("\n\n")[0].splitlines()
    table = "\n".join(line for line in lines if line.startswith("| `"))
    missing = [name for name in metrics.__all__ if name.islower() and f"`{name}`" not in table]
    assert missing == []
    assert all(len(line.split("|")) == 7 for line in table.splitlines())
