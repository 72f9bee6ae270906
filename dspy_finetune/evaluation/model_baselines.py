"""Baselines that ask an untuned model: with the tuned model's prompt, the nearest examples, or an optimized prompt.

In: training examples, a prompt or a signature, a model. Out: programs. What they cost is what their prompts cost:
examples in the prompt are paid for at every question, training is paid for once. Not covered: baselines without a
model (baselines.py), searching long for a prompt (DSPy's own optimizers; `optimized` takes any of them).
"""

from __future__ import annotations

import contextlib
import logging
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

import dspy

from dspy_finetune._optional import require
from dspy_finetune.errors import AnswerError, EmptyDatasetError, UsageError
from dspy_finetune.evaluation.metrics import Embed
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import FinetunedModel
from dspy_finetune.predictors import DPOPredictor, FinetunedPredictor, OpenAIPredictor, PairwisePredictor
from dspy_finetune.prompts import PromptFormat


def predictor_for(prompt: PromptFormat, model: str | FinetunedModel, *, host: Host | None = None) -> FinetunedPredictor:
    """The predictor that fits a prompt: for a choice of two with or without an explanation, else the plain one."""
    try:
        kind = PairwisePredictor if len(prompt.output_fields) == 1 else DPOPredictor
        return kind(prompt, model, host=host)
    except UsageError:  # not a pairwise prompt
        return OpenAIPredictor(prompt, model, host=host)


def untuned(prompt: PromptFormat, base_model: str, *, host: Host | None = None) -> FinetunedPredictor:
    """The base model, asked with the prompt that the tuned model was trained with: what training itself brought.

    Args:
        prompt: The tuned model's prompt.
        base_model: The base model's name on the host.
        host: Where it answers; OpenAI by default.
    """
    return predictor_for(prompt, base_model, host=host)


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
        if embed is not None:
            self._rows = _unit(embed(texts))
            return
        vectorizers = require("sklearn.feature_extraction.text", "eval", "the nearest-neighbour baseline")
        # Its rows have length 1, so that a product of two is their cosine. Single characters count as words: a text
        # may hold nothing longer.
        self._vectorizer = vectorizers.TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode", token_pattern=r"(?u)\b\w+\b"
        )
        try:
            self._rows = self._vectorizer.fit_transform(texts)
        except ValueError as error:  # "empty vocabulary"
            raise UsageError("the texts hold no word; name other fields with text=(...), or give embed=") from error

    def nearest(self, **inputs: Any) -> list[dspy.Example]:
        """The examples most like the inputs, the nearest last; of equal ones the first in training."""
        query = [self._text(inputs)]
        if self.embed is not None:
            closeness = (self._rows @ _unit(self.embed(query)).T)[:, 0]
        else:
            closeness = (self._rows @ self._vectorizer.transform(query).T).toarray()[:, 0]
        order = sorted(range(len(self.train)), key=lambda index: (-closeness[index], index))
        return [self.train[index] for index in reversed(order[: self.n_shots])]

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Ask with the nearest examples in the prompt."""
        return self.predict(demos=self.nearest(**inputs), **inputs)

    def _text(self, row: Any) -> str:
        return "\n".join(str(row[name]) for name in self.text)


def _unit(vectors: Any) -> Any:
    # Imported here: numpy costs 0.1 s, which `import dspy_finetune` must not.
    import numpy as np

    rows = np.atleast_2d(np.asarray(vectors, dtype=float))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0.0, 1.0, lengths)


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
