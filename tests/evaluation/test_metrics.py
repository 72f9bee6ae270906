"""Metrics: each number against scikit-learn or a plain definition; what a parse failure does to it."""

import copy
import enum
import math
import pickle
import random

import dspy
import pytest
import sklearn.metrics as reference

from dspy_finetune.errors import AnswerError, DataError, UsageError
from dspy_finetune.evaluation import metrics
from dspy_finetune.values import read_number

LABELS = ("red", "green", "blue")


def example(**fields: object) -> dspy.Example:
    return dspy.Example(text="x", **fields).with_inputs("text")


def test_a_label_is_right_whatever_its_case_and_type():
    right = metrics.accuracy("good")
    assert right(example(good=True), dspy.Prediction(good="true ")) == 1.0
    assert right(example(good="A"), dspy.Prediction(good="a")) == 1.0
    assert right(example(good=True), dspy.Prediction(good=False)) == 0.0


def test_an_empty_answer_counts_zero_in_accuracy_and_is_an_error_in_losses():
    assert metrics.accuracy("good")(example(good=True), dspy.Prediction(good=None)) == 0.0
    with pytest.raises(AnswerError):
        metrics.brier("good")(example(good=True), dspy.Prediction(good=True))
    with pytest.raises(AnswerError, match="not a number"):
        metrics.mean_absolute_error("price")(example(price=1.0), dspy.Prediction(price="cheap"))


def test_a_field_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UsageError, match=r'"goood".*text, good'):
        metrics.accuracy("goood")(example(good=True), dspy.Prediction(good=True))


def test_metrics_survive_pickling_and_copying():
    for metric in (metrics.accuracy("y"), metrics.within("y", relative=0.2), metrics.f1("y"), metrics.ece("y")):
        assert pickle.loads(pickle.dumps(metric)).name == copy.deepcopy(metric).name == metric.name


def test_dspy_evaluate_takes_an_item_metric():
    rows = [example(good=bool(n % 2)) for n in range(10)]

    class Always(dspy.Module):
        def forward(self, text):
            return dspy.Prediction(good=True)

    evaluate = dspy.Evaluate(devset=rows, metric=metrics.accuracy("good"), num_threads=1, display_progress=False)
    assert evaluate(Always()).score == 50.0


def test_a_set_metric_says_that_it_is_not_for_one_item():
    with pytest.raises(UsageError, match="whole set"):
        metrics.roc_auc("good")(example(good=True), dspy.Prediction(good=True))


@pytest.mark.parametrize("seed", range(5))
def test_label_scores_equal_scikit_learn(seed):
    rng = random.Random(seed)
    truth = [rng.choice(LABELS) for _ in range(50)]
    said = [rng.choice([*LABELS, "mauve"]) for _ in truth]
    rows, answers = [example(y=one) for one in truth], [dspy.Prediction(y=one) for one in said]
    kept = {"labels": sorted(set(truth)), "zero_division": 0.0}
    for name, ours, theirs in [
        ("f1", metrics.f1, reference.f1_score),
        ("precision", metrics.precision, reference.precision_score),
        ("recall", metrics.recall, reference.recall_score),
    ]:
        for average in ("macro", "micro"):
            assert ours("y", average=average)(rows, answers) == pytest.approx(
                theirs(truth, said, average=average, **kept)
            ), name
        one = theirs(truth, said, labels=["red"], average="macro", zero_division=0.0)
        assert ours("y", positive="red")(rows, answers) == pytest.approx(one)
    assert metrics.mcc("y")(rows, answers) == pytest.approx(reference.matthews_corrcoef(truth, said))
    recalls = [
        sum(a == b == label for a, b in zip(truth, said, strict=True)) / truth.count(label) for label in set(truth)
    ]
    assert metrics.balanced_accuracy("y")(rows, answers) == pytest.approx(sum(recalls) / len(recalls))


@pytest.mark.parametrize("seed", range(5))
def test_probability_scores_equal_scikit_learn(seed):
    rng = random.Random(seed)
    truth = [rng.random() < 0.4 for _ in range(60)]
    shares = [round(rng.betavariate(2, 3), 1) for _ in truth]  # rounded, so that there are ties
    rows = [example(y=one) for one in truth]
    answers = [dspy.Prediction(y=share >= 0.5, probability=share) for share in shares]
    assert metrics.roc_auc("y")(rows, answers) == pytest.approx(reference.roc_auc_score(truth, shares))
    assert metrics.average_precision("y")(rows, answers) == pytest.approx(
        reference.average_precision_score(truth, shares)
    )
    means = {
        name: sum(metric(row, answer) for row, answer in zip(rows, answers, strict=True)) / len(rows)
        for name, metric in [("brier", metrics.brier("y")), ("loss", metrics.log_loss("y"))]
    }
    assert means["brier"] == pytest.approx(reference.brier_score_loss(truth, shares))
    held_off = [min(max(share, 1e-15), 1 - 1e-15) for share in shares]
    assert means["loss"] == pytest.approx(reference.log_loss(truth, held_off))
    gaps = []
    for low in range(10):
        inside = [(y, p) for y, p in zip(truth, shares, strict=True) if min(int(p * 10), 9) == low]
        gaps.append(abs(sum(p - y for y, p in inside)) / len(rows))
    assert metrics.ece("y")(rows, answers) == pytest.approx(sum(gaps))


def test_number_scores_equal_their_definitions_and_read_prices():
    truth, said = [10.0, 20.0, 40.0], ["$12", "19.50", "1,040.00"]
    rows, answers = [example(y=one) for one in truth], [dspy.Prediction(y=one) for one in said]
    read = [12.0, 19.5, 1040.0]
    assert metrics.root_mean_squared_error("y")(rows, answers) == pytest.approx(
        math.sqrt(reference.mean_squared_error(truth, read))
    )
    assert metrics.root_mean_squared_log_error("y")(rows, answers) == pytest.approx(
        math.sqrt(reference.mean_squared_log_error(truth, read))
    )
    assert metrics.median_absolute_error("y")(rows, answers) == reference.median_absolute_error(truth, read)
    assert metrics.mean_absolute_error("y")(rows[0], answers[0]) == 2.0
    close = metrics.within("y", relative=0.2, absolute=1.0)
    assert [close(row, answer) for row, answer in zip(rows, answers, strict=True)] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("text", ["", "$", "cheap", "12 or 13", "1,2,3", "True", "nan", "inf", "--3", "1.2.3"])
def test_text_that_is_not_one_number_is_unreadable(text):
    with pytest.raises(AnswerError):
        read_number(text)


@pytest.mark.parametrize(("text", "value"), [("$1,199.99", 1199.99), (" -3 ", -3.0), ("1e3", 1000.0), (".5", 0.5)])
def test_numbers_are_read_as_people_write_them(text, value):
    assert read_number(text) == value


def test_scores_that_are_not_defined_are_nan():
    rows, answers = [example(y=True)] * 3, [dspy.Prediction(y=True, probability=0.5)] * 3
    assert math.isnan(metrics.roc_auc("y")(rows, answers))
    assert math.isnan(metrics.root_mean_squared_error("y")([], []))


def test_the_probability_of_a_label_follows_the_predictors_convention():
    read = metrics.brier("y", positive="A")
    row = example(y="A")
    assert read(row, dspy.Prediction(y="B", probability=0.9)) == pytest.approx(0.81)  # 0.9 is that of B
    assert read(row, dspy.Prediction(y="A", probability=0.9)) == pytest.approx(0.01)
    assert read(row, dspy.Prediction(y="B", probability=0.9, probabilities={"A": 0.3, "B": 0.7})) == pytest.approx(0.49)
    assert metrics.brier("y")(example(y=True), dspy.Prediction(y=False, probability=0.4)) == pytest.approx(0.36)
    with pytest.raises(UsageError, match="positive"):
        metrics.roc_auc("y")([example(y="red")], [dspy.Prediction(y="red", probability=1.0)])


def test_text_scores_follow_squad():
    row, answer = example(y="The Eiffel Tower!"), dspy.Prediction(y="eiffel tower")
    assert metrics.exact_match("y")(row, answer) == 1.0
    assert metrics.token_f1("y")(example(y="in the north of France"), dspy.Prediction(y="north France")) == (
        pytest.approx(2 * 2 / (4 + 2))
    )
    assert metrics.token_f1("y")(example(y=["no", "north"]), dspy.Prediction(y="north")) == 1.0


class Colour(enum.Enum):
    RED = "red"


def test_a_whole_number_and_a_member_of_an_enum_are_their_values():
    """A table with one empty cell reads 3 as 3.0; a checkpoint keeps a member's value."""
    right = metrics.accuracy("stars")
    assert right(example(stars=3), dspy.Prediction(stars=3.0)) == 1.0
    assert right(example(stars=3.5), dspy.Prediction(stars=3)) == 0.0
    assert right(example(stars=Colour.RED), dspy.Prediction(stars="red")) == 1.0
    assert metrics.f1("stars", average="macro")([example(stars=3.0)], [dspy.Prediction(stars=3)]) == 1.0


def test_log_loss_of_many_labels_needs_no_positive_one():
    """-ln of what each answer gave to its item's label, as scikit-learn has it."""
    names, rng = ["high", "low", "middle"], random.Random(4)
    truth = [rng.choice(names) for _ in range(40)]
    given = [[rng.random() for _ in names] for _ in truth]
    given = [[one / sum(row) for one in row] for row in given]
    answers = [dspy.Prediction(y="low", probabilities=dict(zip(names, row, strict=True))) for row in given]
    rows = [example(y=one) for one in truth]
    loss = metrics.log_loss("y")
    loss.check(rows)
    mean = sum(loss(row, answer) for row, answer in zip(rows, answers, strict=True)) / len(rows)
    assert mean == pytest.approx(reference.log_loss(truth, given, labels=names))
    with pytest.raises(UsageError, match="which label is the positive one"):
        metrics.brier("y").check(rows)
    one = metrics.log_loss("y", positive="low")
    assert one(rows[0], answers[0]) == pytest.approx(-math.log(given[0][1] if truth[0] == "low" else 1 - given[0][1]))


@pytest.mark.parametrize("share", [math.nan, math.inf, 1.5, -0.1, "high", None])
def test_what_is_no_probability_is_unreadable(share):
    for made in (metrics.brier, metrics.log_loss):
        for said in ({"probability": share}, {"probabilities": {True: share}}):
            with pytest.raises(AnswerError):
                made("good")(example(good=True), dspy.Prediction(good=True, **said))
    both = [example(good=True), example(good=False)]
    answers = [dspy.Prediction(good=True, probability=one) for one in (share, 0.2)]
    assert metrics.ece("good")(both, answers) == pytest.approx(0.2)  # the other item alone
    assert math.isnan(metrics.roc_auc("good")(both, answers))
    assert metrics.log_loss("good")(both[0], dspy.Prediction(good=True, probability=1 + 1e-9)) == 0.0


@pytest.mark.parametrize("label", [None, math.nan, "about 5", [5]])
def test_a_label_that_is_no_number_is_the_datas_fault_not_the_programs(label):
    """Counted as a parse failure, it would pass for the program's."""
    for made in (
        metrics.mean_absolute_error("price"),
        metrics.within("price", absolute=5),
    ):
        with pytest.raises(DataError, match=r'"price" is'):
            made(example(price=label), dspy.Prediction(price=5))
    with pytest.raises(DataError, match=r'"price" is'):
        metrics.kendall_tau("price")([example(price=label)], [dspy.Prediction(price=5)])


def test_distances_are_not_negative_and_lists_are_of_one_length():
    for wrong in ({"absolute": -1}, {"relative": math.nan}, {}):
        with pytest.raises(UsageError, match="within"):
            metrics.within("price", **wrong)
    with pytest.raises(UsageError, match="1 examples and 0 predictions"):
        metrics.f1("good")([example(good=True)], [])
