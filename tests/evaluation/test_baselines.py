"""Baselines: deterministic, picklable programs with the fields and probabilities of any other."""

import itertools
import pickle
import random
import statistics
import warnings
from types import SimpleNamespace
from typing import Any

import dspy
import numpy as np
import pytest
import threadpoolctl
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from dspy_finetune.errors import DataError, EmptyDatasetError, UsageError
from dspy_finetune.evaluation import BaselineOptions, baselines, compare, metrics
from dspy_finetune.hosts import Host
from dspy_finetune.predictors import OpenAIPredictor
from dspy_finetune.prompts import PromptFormat

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


# ---- what cross-validation chooses


WORDS = ["moss", "tide", "tax", "golf", "owl", "rope", "bell", "kiln"]


def priced(n: int, seed: int, spread: float) -> list[dspy.Example]:
    """Products whose price is a product of what their words are worth, times noise."""
    rng = np.random.default_rng(seed)
    words = [f"{word}{end}" for word in WORDS for end in ("", "ling")]
    worth = np.random.default_rng(99).normal(0, spread, len(words))
    rows = []
    for number in range(n):
        found = rng.choice(len(words), 4, replace=False)
        title = f"{' '.join(words[k] for k in found)} number{number}"
        price = float(np.exp(3 + worth[found].sum() + rng.normal(0, 0.2)))
        rows.append(dspy.Example(title=title, price=price).with_inputs("title"))
    return rows


def test_prices_are_learned_on_their_logarithm_and_plain_numbers_as_they_are():
    train, test = priced(150, 0, 0.8), priced(100, 1, 0.8)
    found = baselines.tfidf_ridge(train, label="price")
    assert found.is_log
    assert "logarithm, by 5-fold cross-validation" in found.card["scale"]
    error = float(np.mean([abs(found(title=row.title).price - row.price) for row in test]))
    # By the plain definition: the same words, ridge regression on dollars, whatever its strength.
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode")
    words = vectorizer.fit_transform([row.title for row in train])
    plain = [
        float(
            np.mean(
                np.abs(
                    Ridge(alpha=1 / strength)
                    .fit(words, [row.price for row in train])
                    .predict(vectorizer.transform([row.title for row in test]))
                    - [row.price for row in test]
                )
            )
        )
        for strength in baselines.STRENGTHS
    ]
    assert error < min(plain)
    even = [row.copy(price=float(number % 10)).with_inputs("title") for number, row in enumerate(train)]
    assert not baselines.tfidf_ridge(even, label="price").is_log
    owed = [row.copy(price=row.price - 30).with_inputs("title") for row in train]  # some below zero have no logarithm
    assert not baselines.tfidf_ridge(owed, label="price").is_log


@pytest.mark.parametrize(
    ("label", "value", "fit"),
    [
        ("liked", None, baselines.majority),
        ("liked", None, baselines.tfidf_logistic),
        ("price", float("nan"), baselines.tfidf_ridge),
        ("price", "n/a", baselines.median),
        ("title", None, baselines.nearest_answer),
    ],
)
def test_the_training_example_without_a_label_is_named(label: str, value: Any, fit: Any):
    """None was a label like any other, and a majority of them an answer."""
    rows = [
        row.copy(**({label: value} if number == 3 else {})).with_inputs("title") for number, row in enumerate(TRAIN)
    ]
    with pytest.raises(DataError, match=f'^training example 4: the baseline: the label "{label}" is (empty|no number)'):
        fit(rows, label=label)


def test_counts_with_zeros_are_learned_on_the_logarithm_of_one_more():
    """On their own scale the fit follows the few large ones, and loses to the median that looks at nothing."""
    rng = np.random.default_rng(5)
    rows = [row.copy(price=float(rng.negative_binomial(1, 1 / (1 + row.price / 12)))) for row in priced(210, 0, 0.8)]
    train, test = rows[:150], rows[150:]
    assert min(row.price for row in train) == 0.0
    found = baselines.tfidf_ridge(train, label="price")
    assert found.card["scale"] == "logarithm of 1 more, by 5-fold cross-validation"

    def error(answer: Any) -> float:
        return float(np.mean([abs(answer(title=row.title).price - row.price) for row in test]))

    assert error(found) < error(baselines.median(train, label="price"))
    assert found.features is not None
    words = found.features([test[0].title])
    assert found(title=test[0].title).price == pytest.approx(float(np.expm1(found.model.predict(words)[0])))


def test_the_strength_is_the_one_with_the_least_loss_out_of_fold():
    """Against scikit-learn's own cross-validation of the same pipeline on the same folds."""
    rng = np.random.default_rng(3)
    rows = [
        dspy.Example(
            title=f"{WORDS[number % 8]} {WORDS[(number * 3) % 8]} item{number}",
            liked=bool((number % 8 < 4) != (rng.random() < 0.3)),
        ).with_inputs("title")
        for number in range(90)
    ]
    found = baselines.tfidf_logistic(rows, label="liked")
    texts, labels = [(row.title,) for row in rows], [str(row.liked).lower() for row in rows]
    folds = baselines._folds(texts, labels)
    assert len(folds) == 5
    losses = []
    for strength in baselines.STRENGTHS:
        pipeline = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode"),
            LogisticRegression(C=strength, max_iter=2000),
        )
        scores = cross_val_score(pipeline, [text for (text,) in texts], labels, cv=folds, scoring="neg_log_loss")
        losses.append(-sum(score * len(test) for score, (_, test) in zip(scores, folds, strict=True)))
    best = baselines.STRENGTHS[int(np.argmin(losses))]
    assert found.card["strength"] == f"C = {best:g}, by 5-fold cross-validation"
    assert best == found.model.C


def test_rows_that_share_a_text_stand_in_one_fold():
    rows = [(f"title {number // 3}",) for number in range(60)]
    for train, test in baselines._folds(rows, ["a", "b"] * 30):
        assert not {rows[place] for place in train} & {rows[place] for place in test}
    pairs = [(f"left {number // 2}", f"right {(number + 1) // 2 % 30}") for number in range(0, 60, 2)]
    for train, test in baselines._folds(pairs, None):
        seen = {text for place in train for text in pairs[place]}
        assert not seen & {text for place in test for text in pairs[place]}
    assert baselines._folds(rows[:15], None) == []


def test_the_marked_inputs_are_read_whatever_they_are_called():
    rows = [
        dspy.Example(headline=f"{'owls' if n % 2 else 'golf'} {n}", note=f"n{n}", liked=bool(n % 2)).with_inputs(
            "headline"
        )
        for n in range(30)
    ]
    found = baselines.tfidf_logistic(rows, label="liked")
    assert found.text == ("headline",)
    assert found(headline="owls at dusk").liked is True
    bare = [dspy.Example(**row) for row in rows]
    assert baselines.tfidf_logistic(bare, label="liked").text == ("headline", "note")
    with pytest.raises(UsageError, match="name some with text="):
        baselines.tfidf_logistic([dspy.Example(n=1, liked=True)], label="liked")


# ---- an encoder


class Means:
    """An encoder for which owls and tides are one thing, golf and tax another; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> list[list[float]]:
        self.asked += texts
        return [
            [sum(word in text for word in ("owl", "tide")), sum(word in text for word in ("golf", "tax")), 0.3]
            for text in texts
        ]


def test_an_encoder_knows_what_words_that_were_not_trained_on_mean():
    rows = [
        dspy.Example(
            title=f"{'owl' if n % 2 else 'golf'} {n}", liked=bool(n % 2), price=float(np.exp(1 + 3 * (n % 2) + n / 99))
        ).with_inputs("title")
        for n in range(40)
    ]
    embed = Means()
    found = baselines.encoder_linear(rows, label="liked", embed=embed)
    assert isinstance(found, baselines.LabelBaseline)
    assert (found(title="tides").liked, found(title="tax").liked) == (True, False)
    assert len(embed.asked) == len(set(embed.asked))  # each text once, folds and all
    assert pickle.loads(pickle.dumps(found))(title="tides").probability == found(title="tides").probability
    prices = baselines.encoder_linear(rows, label="price", task="number", embed=Means())
    assert isinstance(prices, baselines.NumberBaseline)
    assert prices(title="tides").price > 5 * prices(title="tax").price


def test_an_encoders_pairs_have_no_position_bias():
    pairs = [row.with_inputs("title_a", "title_b") for row in PAIRS]
    found = baselines.encoder_linear(pairs, label="preferred", embed=Means())
    assert isinstance(found, baselines.LabelBaseline)
    assert found.reading == "difference"
    forward, backward = found(title_a="an owl", title_b="golf"), found(title_a="golf", title_b="an owl")
    assert forward.preferred == "A"
    assert forward.probabilities["A"] == pytest.approx(backward.probabilities["B"])


def test_an_encoder_sees_whether_two_texts_agree():
    """Which of eight things two texts are about says nothing; whether it is the same one says all."""
    generator = np.random.default_rng(0)
    things = {str(n): vector for n, vector in enumerate(generator.normal(size=(8, 16)))}

    def embed(texts: list[str]) -> list[Any]:
        return [sum(things[word] for word in text.split()) for text in texts]

    drawn = [tuple(map(int, generator.integers(0, 8, 2))) for _ in range(60)]
    pairs = [(one, one if place % 2 else other) for place, (one, other) in enumerate(drawn)]
    rows = [
        dspy.Example(
            first=str(one), second=str(other), same=one == other, likeness=1.0 + 4 * (one == other)
        ).with_inputs("first", "second")
        for one, other in pairs
    ]
    labels = baselines.encoder_linear(rows[:40], label="same", embed=embed)
    assert isinstance(labels, baselines.LabelBaseline)
    assert labels.card["reads"] == "first, second, and how they agree"
    assert all(labels(**row.inputs()).same == row.same for row in rows[40:])
    numbers = baselines.encoder_linear(rows[:40], label="likeness", task="number", embed=embed)
    assert statistics.mean(abs(numbers(**row.inputs()).likeness - row.likeness) for row in rows[40:]) < 0.8


def test_compare_adds_the_encoder_where_it_is_asked_for_and_tells_what_was_chosen():
    def rule(title: str) -> dspy.Prediction:
        return dspy.Prediction(liked="owls" in title)

    chosen = BaselineOptions(encoder=Means())
    report = compare({"rule": rule}, LABELLED[:30], [metrics.accuracy("liked")], train=LABELLED[30:], baselines=chosen)
    assert [row.name for row in report.rows] == ["rule", "encoder + logistic", "TF-IDF + logistic", "majority"]
    assert "by 5-fold cross-validation" in report.cards["encoder + logistic"]["strength"]
    quiz = [
        dspy.Example(question=f"Who saw {n} owls?", answer=f"Nobody {n}").with_inputs("question") for n in range(30)
    ]
    assert list(baselines.usual(quiz, label="answer", embedder=Means())) == [
        "nearest answer by encoder",
        "nearest answer",
    ]


def test_a_host_gives_vectors_in_order_and_in_batches(monkeypatch):
    asked: list[list[str]] = []

    class Embeddings:
        def create(self, *, model: str, input: list[str]) -> Any:
            assert model == "minilm-l6"
            asked.append(input)
            data = [SimpleNamespace(index=n, embedding=[float(len(text))]) for n, text in enumerate(input)]
            return SimpleNamespace(data=data[::-1])

    host = Host.compatible("http://127.0.0.1:9/v1")
    monkeypatch.setattr(Host, "client", lambda self, **options: SimpleNamespace(embeddings=Embeddings()))
    texts = ["x" * n for n in range(1, 300)]
    assert baselines.HostEmbedder(host=host)(texts) == [[float(n)] for n in range(1, 300)]
    assert [len(part) for part in asked] == [128, 128, 43]


def test_a_metric_of_ones_own_gets_the_baselines_of_the_tuned_programs_label():
    rows = [dspy.Example(title=f"On {n}", liked=n % 2 == 0).with_inputs("title") for n in range(20)]
    tuned = OpenAIPredictor("title -> liked: bool", "some-model", host=Host.compatible("http://127.0.0.1:9/v1"))

    def right(example, prediction, trace=None):
        return example.liked == prediction.liked

    found = baselines.with_baselines({"tuned": tuned}, rows, [right], BaselineOptions())
    assert set(found) == {"tuned", "majority", "TF-IDF + logistic"}
    assert found["majority"](title="On 3").liked in (True, False)
    with pytest.raises(UsageError, match="there is neither"):
        baselines.with_baselines({"mine": lambda title: None}, rows, [right], BaselineOptions())
    # An output that the training rows lack is told before anybody is asked, not when its answers are scored.
    both = [metrics.exact_match("liked"), metrics.exact_match("reason")]
    with pytest.raises(UsageError, match='reads the field "reason", but the example has only: title, liked'):
        baselines.with_baselines({"tuned": tuned}, rows, both, BaselineOptions())


def test_a_label_that_is_seen_once_leaves_the_strength_to_cross_validation() -> None:
    pytest.importorskip("sklearn")
    rows = [
        dspy.Example(text=f"{['bees and heather', 'taxes and rent'][n % 2]} {n}", kind=["a", "b"][n % 2]).with_inputs(
            "text"
        )
        for n in range(40)
    ]
    rows.append(dspy.Example(text="a thing of its own", kind="odd").with_inputs("text"))
    found = baselines.tfidf_logistic(rows, label="kind")
    assert "by 5-fold cross-validation" in found.card["strength"]
    assert found(text="heather")["kind"] == "a"


def test_many_labels_on_few_rows_are_fitted_without_a_word() -> None:
    """scikit-learn asks whether so many classes are numbers: a user cannot act on it."""
    rows = [dspy.Example(text=f"word{n % 40} and {n}", kind=f"kind {n % 40}").with_inputs("text") for n in range(60)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert baselines.tfidf_logistic(rows, label="kind")(text="word3 and 99").kind == "kind 3"


@pytest.mark.parametrize(("model", "labels"), [(LogisticRegression, ["a", "b", "c"]), (Ridge, [1.5, 2.5, 7.25])])
def test_linear_baselines_are_fitted_by_one_thread(model: Any, labels: list[Any], monkeypatch: pytest.MonkeyPatch):
    """On small matrices threads wait for each other: minutes of a busy machine for what takes seconds."""
    seen: set[int] = set()
    original = model.fit

    def fit(self: Any, *given: Any) -> Any:
        seen.update(one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas")
        return original(self, *given)

    monkeypatch.setattr(model, "fit", fit)
    rows = [dspy.Example(text=f"thing {n} {n % 3}", y=labels[n % 3]).with_inputs("text") for n in range(30)]
    with threadpoolctl.threadpool_limits(2):
        baselines.usual(rows, label="y", task="number" if model is Ridge else "label")
    assert seen == {1}


def test_dozens_of_labels_with_three_rows_of_each_are_no_free_text():
    rows = [
        dspy.Example(text=f"about thing{n % 30} {n}", intent=f"intent {n % 30}").with_inputs("text") for n in range(90)
    ]
    assert list(baselines.usual(rows, label="intent")) == ["TF-IDF + logistic", "majority"]
    assert list(baselines.usual(rows[:60], label="intent")) == ["nearest answer"]


@pytest.mark.parametrize("annotations", ["topic: str, tone: Literal['calm', 'loud']", "tone: str, topic: str"])
@pytest.mark.parametrize("field", ["topic", "tone"])
def test_labels_are_told_by_the_rows_where_the_signature_says_text(annotations: str, field: str):
    """The nearest answer alone would be a straw man beside a model that chooses among three topics."""
    rows = [
        dspy.Example(text=f"on {topic} {n}", topic=topic, tone=("calm", "loud")[n % 2]).with_inputs("text")
        for n in range(20)
        for topic in ("bees", "tax", "code")
    ]
    tuned = OpenAIPredictor(PromptFormat(f"text -> {annotations}"), "ft:any", host=Host.openai("sk-none"))
    found = baselines.with_baselines({"tuned": tuned}, rows, [metrics.exact_match(field)], BaselineOptions())
    assert list(found) == ["tuned", "TF-IDF + logistic", "majority"]


def test_several_outputs_are_compared_with_baselines_that_answer_each():
    rows = [
        dspy.Example(text=f"{topic} {'quickly' if n % 2 else 'slowly'} {n}", topic=topic, is_fast=bool(n % 2), pages=n)
        for n in range(30)
        for topic in ("bees", "tax", "code")
    ]
    rows = [row.with_inputs("text") for row in rows]

    def rule(text: str) -> dspy.Prediction:
        return dspy.Prediction(topic=text.split()[0], is_fast="quickly" in text, pages=15)

    read = [metrics.accuracy("topic"), metrics.accuracy("is_fast"), metrics.mean_absolute_error("pages")]
    report = compare({"rule": rule}, rows[60:], read, train=rows[:60], baselines=BaselineOptions(encoder=Means()))
    names = ["encoder + logistic / encoder + ridge", "TF-IDF + logistic / TF-IDF + ridge", "majority / median"]
    assert [row.name for row in report.rows] == ["rule", *names]
    assert report.rows[2].scores["accuracy of topic"].value == 1.0
    assert list(report.rows[2].scores) == ["accuracy of topic", "accuracy of is_fast", "mean absolute error"]
    assert "topic: strength" in report.cards[names[1]]
    tuned = OpenAIPredictor(PromptFormat("text -> topic: str, is_fast: bool"), "ft:any", host=Host.openai("sk-none"))
    chosen = BaselineOptions(base_model="gpt-any")
    found = baselines.with_baselines({"tuned": tuned, "few": dspy.Predict("text -> topic")}, rows, read[:2], chosen)
    assert list(found)[2:] == ["TF-IDF + logistic", "majority", "gpt-any, untuned", "gpt-any, nearest few-shot"]
    assert found["majority"](text="bees").toDict() == {"topic": "bees", "is_fast": False}
