"""Cheap programs to beat: the majority label, the median, TF-IDF with a linear model.

In: training examples, the names of the text fields and of the label. Out: a callable that takes the input fields by
name and returns a `dspy.Prediction` with the label field, like any program. Label baselines add `probability` (of True
for yes/no labels, otherwise of the label returned) and `probabilities` (every label's share). They are deterministic,
can be pickled, and need no model and no network.
`nearest_few_shot` and `untuned` ask a model; they are at home in model_baselines.py.

    >>> import dspy
    >>> from dspy_finetune.evaluation import baselines
    >>> rows = [("tides", True), ("moon and tides", True), ("tax", False)]
    >>> train = [dspy.Example(title=title, is_favorite=label) for title, label in rows]
    >>> usual = baselines.majority(train, label="is_favorite")
    >>> usual(title="anything at all").is_favorite
    True
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_finetune._optional import require
from dspy_finetune.errors import EmptyDatasetError, UsageError
from dspy_finetune.evaluation.model_baselines import NearestFewShot, nearest_few_shot, untuned
from dspy_finetune.evaluation.reading import label_text, to_number

__all__ = [
    "LabelBaseline",
    "NearestFewShot",
    "NumberBaseline",
    "majority",
    "median",
    "nearest_few_shot",
    "tfidf_logistic",
    "tfidf_pairs",
    "tfidf_ridge",
    "untuned",
]


@dataclass(frozen=True, kw_only=True)
class LabelBaseline:
    """A program that answers with one of the labels it has seen."""

    name: str
    """What it is, for tables."""
    label: str
    """The field it predicts."""
    labels: tuple[Any, ...]
    """The labels, in the order of the model's classes."""
    shares: tuple[float, ...] | None
    """Fixed probabilities, for a model that does not look; None: the model is asked."""
    text: tuple[str, ...] = ()
    """The fields it reads."""
    vectorizer: Any = None
    """From text to numbers."""
    model: Any = None
    """From numbers to probabilities."""
    is_difference: bool = False
    """Whether it looks at the first text minus the second."""

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        """Answer one item."""
        shares = self.shares
        if shares is None:
            features = _features(self.vectorizer, [_texts(inputs, self.text)], self.is_difference)
            shares = tuple(map(float, self.model.predict_proba(features)[0]))
        # As the predictors have it: keyed by the label's value; of True for yes/no labels, else of the label returned.
        by_label = dict(zip(self.labels, shares, strict=True))
        best = self.labels[max(range(len(shares)), key=shares.__getitem__)]
        by_text = {label_text(label): share for label, share in by_label.items()}
        probability = by_text.get("true", 0.0) if set(by_text) <= {"true", "false"} else max(shares)
        return dspy.Prediction(**{self.label: best}, probability=probability, probabilities=by_label)


@dataclass(frozen=True, kw_only=True)
class NumberBaseline:
    """A program that answers with a number."""

    name: str
    """What it is, for tables."""
    label: str
    """The field it predicts."""
    constant: float | None
    """The one answer it gives; None: the model is asked."""
    text: tuple[str, ...] = ()
    """The fields it reads."""
    vectorizer: Any = None
    """From text to numbers."""
    model: Any = None
    """From numbers to the answer."""

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        """Answer one item."""
        value = self.constant
        if value is None:
            features = _features(self.vectorizer, [_texts(inputs, self.text)], is_difference=False)
            value = float(self.model.predict(features)[0])
        return dspy.Prediction(**{self.label: value})


def majority(train: Sequence[Any], *, label: str) -> LabelBaseline:
    """Always the label that is most frequent in training, with the labels' shares as probabilities. Ties.

    The first seen.

    Raises:
        EmptyDatasetError: There are no training examples.
        UsageError: An example has no such field.
    """
    values = _column(train, label)
    counts = Counter(label_text(value) for value in values)
    originals = {label_text(value): value for value in reversed(values)}
    ranked = [name for name, _ in counts.most_common()]
    return LabelBaseline(
        name="majority label",
        label=label,
        labels=tuple(originals[name] for name in ranked),
        shares=tuple(counts[name] / len(values) for name in ranked),
    )


def median(train: Sequence[Any], *, label: str) -> NumberBaseline:
    """Always the median of the training numbers, which no constant beats in mean absolute error.

    Raises as `majority`.
    """
    middle = statistics.median(to_number(value) for value in _column(train, label))
    return NumberBaseline(name="median", label=label, constant=float(middle))


def tfidf_logistic(train: Sequence[Any], *, text: Sequence[str] = ("title",), label: str) -> LabelBaseline:
    """Logistic regression on TF-IDF weights of words and word pairs. One label only in training: that label, always.

    Args:
        train: Labelled examples.
        text: The fields that are read, joined by a line break.
        label: The field that is predicted.

    Raises:
        EmptyDatasetError: There are no training examples.
        UsageError: A field is missing, or the texts hold no word.
        MissingExtraError: scikit-learn is not installed (extra `eval`).
    """
    return _fit_labels(train, text, label, is_difference=False, name="TF-IDF + logistic regression")


def tfidf_pairs(
    train: Sequence[Any], *, text: Sequence[str] = ("title_a", "title_b"), label: str = "preferred"
) -> LabelBaseline:
    """Logistic regression on the TF-IDF weights of the first text minus those of the second, without intercept.

    Swapping the two texts swaps the probabilities exactly, so it has no position bias. Raises as `tfidf_logistic`.
    """
    if len(text) != 2:
        raise UsageError(f"tfidf_pairs compares two texts; got the fields {list(text)}")
    return _fit_labels(train, text, label, is_difference=True, name="TF-IDF difference + logistic regression")


def tfidf_ridge(train: Sequence[Any], *, text: Sequence[str] = ("title",), label: str) -> NumberBaseline:
    """Ridge regression of a number on TF-IDF weights of words and word pairs. Raises as `tfidf_logistic`."""
    numbers = [to_number(value) for value in _column(train, label)]
    rows = [_texts(row, text) for row in train]
    vectorizer = _fit_vectorizer(rows)
    ridge = require("sklearn.linear_model", "eval", "the TF-IDF baseline").Ridge(alpha=1.0)
    model = ridge.fit(_features(vectorizer, rows, is_difference=False), numbers)
    return NumberBaseline(
        name="TF-IDF + ridge regression",
        label=label,
        constant=None,
        text=tuple(text),
        vectorizer=vectorizer,
        model=model,
    )


def _fit_labels(
    train: Sequence[Any], text: Sequence[str], label: str, *, is_difference: bool, name: str
) -> LabelBaseline:
    values = _column(train, label)
    rows = [_texts(row, text) for row in train]
    originals = {label_text(value): value for value in reversed(values)}
    if len(originals) == 1:
        return LabelBaseline(name=name, label=label, labels=tuple(originals.values()), shares=(1.0,))
    vectorizer = _fit_vectorizer(rows)
    linear = require("sklearn.linear_model", "eval", "the TF-IDF baseline")
    regression = linear.LogisticRegression(C=10.0, max_iter=2000, fit_intercept=not is_difference)
    model = regression.fit(_features(vectorizer, rows, is_difference), [label_text(value) for value in values])
    return LabelBaseline(
        name=name,
        label=label,
        labels=tuple(originals[str(one)] for one in model.classes_),
        shares=None,
        text=tuple(text),
        vectorizer=vectorizer,
        model=model,
        is_difference=is_difference,
    )


def _fit_vectorizer(rows: Sequence[tuple[str, ...]]) -> Any:
    text = require("sklearn.feature_extraction.text", "eval", "the TF-IDF baseline")
    vectorizer = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode")
    try:
        return vectorizer.fit([one for row in rows for one in row])
    except ValueError as error:  # "empty vocabulary"
        raise UsageError("the texts hold no word of two letters or more; name other fields with text=(...)") from error


def _features(vectorizer: Any, rows: Sequence[tuple[str, ...]], is_difference: bool) -> Any:
    if is_difference:
        return vectorizer.transform([row[0] for row in rows]) - vectorizer.transform([row[1] for row in rows])
    return vectorizer.transform(["\n".join(row) for row in rows])


def _texts(row: Any, fields: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(_field(row, field)) for field in fields)


def _column(train: Sequence[Any], label: str) -> list[Any]:
    if not len(train):
        raise EmptyDatasetError("a baseline needs training examples, and there are none")
    return [_field(row, label) for row in train]


def _field(row: Mapping[str, Any], field: str) -> Any:
    if field not in row:
        raise UsageError(
            f'the baseline reads the field "{field}", but there is only: {", ".join(map(str, row.keys()))}'
        )
    return row[field]
