"""The two kinds of metric: `Metric` scores one item, `SetMetric` scores a whole set of items at once.

In: an example with its labels and a prediction (or lists of both). Out: a float.
A mean of per-item scores can be tested item by item; a ROC AUC or an F1 exists only over a set, and its interval
comes from resampling the items. `compare` takes both kinds, and any plain function `metric(example, prediction,
trace=None)`. Not covered: which metrics there are (metrics.py), and intervals (statistics.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from dspy_finetune.errors import AnswerError, DataError, JudgeError, UsageError
from dspy_finetune.values import (
    LabelSet,
    Unparseable,
    check_answer,
    free_text,
    label_column,
    label_text,
    load_number,
    match_label,
    read_number,
    same_label,
)

# How a metric reads an example and a prediction; what a text reads as, values.py says.

_ROUNDING = 1e-6
"""So much beyond 0 or 1 a sum of shares may come to."""


def read_field(row: Any, field: str, kind: str, metric: str) -> Any:
    """A field of an example or a prediction. Raises UsageError that names the fields there are."""
    if field not in row:
        raise UsageError(
            f'{metric} reads the field "{field}", but the {kind} has only: {", ".join(map(str, row.keys()))}'
        )
    return row[field]


def read_label(example: Any, field: str, metric: str, *, is_number: bool = False) -> Any:
    """The label of an example; a number where the metric needs one.

    Raises:
        UsageError: There is no such field.
        DataError: It is empty, or not a number: nothing can be right or wrong by it.
    """
    value = read_field(example, field, "example", metric)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f'{metric}: the label "{field}" is empty ({value}); label the example or leave it out')
    if not is_number:
        return value
    if isinstance(value, bool):  # a person's own yes and no may be scored as 1 and 0; an answer's may not
        return float(value)
    try:
        return load_number(value)
    except Unparseable as error:
        raise DataError(f'{metric}: the label "{field}" is no number: {error.problem}; {error.remedy}') from error


def read_answer(prediction: Any, field: str, metric: str) -> Any:
    """The predicted value. Raises AnswerError when it is None: the program gave no answer."""
    value = read_field(prediction, field, "prediction", metric)
    if value is None:
        raise AnswerError(f'the prediction\'s field "{field}" is empty', text="")
    return value


def read_probability(prediction: Any, positive: Any, field: str) -> float:
    """The probability of the positive label.

    Read from `.probabilities` (label to share). Without it from `.probability`, which by this library's convention is
    that of True for yes/no answers and that of the label returned for others; so for A and B the share of B is turned
    round.

    Raises:
        AnswerError: The prediction carries neither, or not for this label, or no number from 0 to 1.
    """
    shares = prediction.get("probabilities", None)
    if isinstance(shares, Mapping):
        for label, share in shares.items():
            if same_label(label, positive):
                return _share(share)
    share, answer = prediction.get("probability", None), prediction.get(field, None)
    if share is None:
        raise AnswerError("the prediction carries no probability", text="")
    said, wanted = label_text(answer), label_text(positive)
    if wanted in ("true", "false") and match_label(answer, [True, False]) is not None:
        said = "true"
    if said == wanted:
        return _share(share)
    if {said, wanted} in ({"a", "b"}, {"true", "false"}):
        return 1.0 - _share(share)
    raise AnswerError(f"the prediction carries no probability of {positive}; give it .probabilities", text="")


def _share(value: Any) -> float:
    number = read_number(value)
    if not -_ROUNDING <= number <= 1 + _ROUNDING:
        raise AnswerError(f"{str(value)[:80]} is no probability: it must be from 0 to 1", text=str(value))
    return min(max(number, 0.0), 1.0)


def positive_label(expected: Sequence[Any], positive: Any = None) -> Any:
    """The label whose probability is meant: as given, else True for yes/no labels and A for pairs.

    Raises:
        UsageError: The labels are of another kind and none was named.
    """
    if positive is not None:
        return positive
    seen = {label_text(value) for value in expected}
    if seen <= {"true", "false"}:
        return True
    if seen <= {"a", "b"}:
        return "A"
    raise UsageError(f"which label is the positive one? Name it with positive=...; the labels are {sorted(seen)[:10]}")


Reads: TypeAlias = Literal["answer", "label", "number", "probability", "item"]
"""What a metric looks at.

The output field's value as it is, that value as a label or as a number, the probability of the positive label; or
("item", for metrics of one item) the whole example beside the value, for a judge that needs the question.
"""


Bounds: TypeAlias = tuple[float | None, float | None]
"""The least and the greatest value that a score can have; None where there is no end."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score for one item: `metric(example, prediction, trace=None) -> float`, as DSPy calls it.

    Raises:
        AnswerError: On call, when the prediction holds nothing that can be scored and `if_parse_failure` is None.
        JudgeError: On call, when the metric asks a judge and the judge gives nothing that can be read.
        UsageError: On call, when the example or the prediction has no such field.
        DataError: On call, when the example's label is empty, or not a number where one is needed.
    """

    name: str
    """What tables call it."""
    field: str
    """The output field it reads, in the example and in the prediction."""
    function: Callable[[Any, Any], float]
    """The plain function on values: (expected, predicted).

    For `reads="probability"`: (1 or 0, probability); for `reads="number"`: two floats; for `reads="item"`: (example,
    predicted).
    """
    reads: Reads = "answer"
    """What of the prediction it looks at."""
    higher_is_better: bool = True
    """False for errors and losses."""
    asks_a_model: bool = False
    """True when a score costs a call to a model, so that `compare` scores with threads and tells how far it is."""
    if_parse_failure: float | None = None
    """The score of an item whose answer could not be read or failed.

    None leaves the item out of the mean, and says so.
    """
    is_proportion: bool = False
    """True when every score is 0 or 1, so that binomial statistics hold."""
    positive: Any = None
    """The label whose probability is meant, for `reads="probability"`."""
    bounds: Bounds = (None, None)
    """Within which every score lies; its mean's interval then lies there too."""
    needs_label: bool = True
    """False where a score needs no label, as with a judge that sees no reference."""
    card: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What a report should tell of it beyond its name: who judges, and by what."""
    labels: LabelSet | None = None
    """For `reads="label"`: the labels that an answer is read among; `compare` takes them from programs and examples.

    Without them, an answer that is no label counts as another label.
    """

    def check(self, examples: Sequence[Any]) -> None:
        """Raise what a call would raise for the examples' labels, before any program is asked about them.

        Raises:
            UsageError: An example has no such field, or the positive label is not known.
            DataError: A label is empty, or not a number where one is needed; says which example's.
        """
        if self.needs_label:
            read = self._expected
            _each(examples, read if self.reads != "item" else lambda one: read_label(one, self.field, self.name))

    def _expected(self, example: Any) -> Any:
        if self.reads == "item":
            return example
        expected = read_label(example, self.field, self.name, is_number=self.reads == "number")
        return expected if self.reads != "probability" else (expected, positive_label([expected], self.positive))

    def __call__(self, example: Any, prediction: Any, trace: object = None) -> float:
        """The score of one item."""
        expected = self._expected(example)
        try:
            if self.reads == "probability":
                label, positive = expected
                share = read_probability(prediction, positive, self.field)
                return float(self.function(float(same_label(label, positive)), share))
            answer = read_answer(prediction, self.field, self.name)
            if self.reads == "label" and self.labels is not None:
                return float(self.function(*(_marked(self.labels, one) for one in (expected, answer))))
            if self.reads == "number":
                answer = read_number(answer)
            elif self.reads != "label" and isinstance(answer, str):
                answer = free_text(answer)
            return float(self.function(expected, answer))
        except JudgeError:  # says nothing about the answer
            raise
        except AnswerError:
            if self.if_parse_failure is None:
                raise
            return self.if_parse_failure


@dataclass(frozen=True, kw_only=True)
class SetMetric:
    """A score over many items at once: `metric(examples, predictions) -> float`; None in predictions is no answer.

    The value is NaN where the score is not defined, such as ROC AUC when all items carry the same label.
    """

    name: str
    """What tables call it."""
    field: str
    """The output field it reads."""
    function: Callable[[Sequence[Any], Sequence[Any]], float]
    """The plain function on lists: (expected, predicted).

    For `reads="probability"`: (1s and 0s, probabilities); for `reads="label"`: the labels' texts, in lower case.
    """
    reads: Reads = "answer"
    """What of the predictions it looks at."""
    higher_is_better: bool = True
    """False for errors and losses."""
    counts_parse_failures: bool = False
    """True when a parse failure counts as wrong (it reaches the function as None); False leaves the item out."""
    positive: Any = None
    """The label whose probability is meant, for `reads="probability"`."""
    labels: LabelSet | None = None
    """For `reads="label"`: the labels that an answer is read among; default: those of the examples."""

    def __call__(self, examples: Sequence[Any], predictions: Sequence[Any]) -> float:
        """The score of a set of items."""
        if isinstance(examples, Mapping) or hasattr(examples, "inputs"):
            raise UsageError(
                f"{self.name} is defined over a whole set, not for one item: give it to compare(), "
                "or call it with lists of examples and predictions"
            )
        if len(examples) != len(predictions):
            raise UsageError(f"{self.name} got {len(examples)} examples and {len(predictions)} predictions")
        expected, predicted = self.columns(examples, predictions)
        return self.over(expected, predicted)

    def check(self, examples: Sequence[Any]) -> None:
        """Raise what the examples' labels make impossible, as `Metric.check` does."""
        labels = _each(
            examples, lambda example: read_label(example, self.field, self.name, is_number=self.reads == "number")
        )
        if self.reads == "probability":
            positive_label(labels, self.positive)

    def columns(self, examples: Sequence[Any], predictions: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The values that the function will see, item by item; None where there is nothing to score."""
        is_number = self.reads == "number"
        expected = [read_label(example, self.field, self.name, is_number=is_number) for example in examples]
        read: Callable[[Any], Any] = lambda answer: answer  # noqa: E731 -- of other metrics, as it is
        if self.reads == "label":
            read = label_reader(expected) if self.labels is None else self.labels.key
            expected = label_column(expected)[0] if self.labels is None else list(map(self.labels.key, expected))
        positive = positive_label(expected, self.positive) if self.reads == "probability" else None
        predicted: list[Any] = []
        for prediction in predictions:
            try:
                if prediction is None:
                    predicted.append(None)
                elif self.reads == "probability":
                    predicted.append(read_probability(prediction, positive, self.field))
                else:
                    answer = read_answer(prediction, self.field, self.name)
                    predicted.append(read_number(answer) if is_number else read(answer))
            except AnswerError:
                predicted.append(None)
        if self.reads == "probability":
            expected = [float(same_label(value, positive)) for value in expected]
        return expected, predicted

    def over(self, expected: Sequence[Any], predicted: Sequence[Any]) -> float:
        """The score of columns as `columns` gives them."""
        if not self.counts_parse_failures:
            kept = [(one, other) for one, other in zip(expected, predicted, strict=True) if other is not None]
            expected, predicted = [one for one, _ in kept], [other for _, other in kept]
        return float(self.function(expected, predicted)) if len(expected) else math.nan


def _marked(labels: LabelSet, value: Any) -> Any:
    """A label; where letter case tells labels apart, its place, since comparing labels forgives letter case."""
    label = labels.read(value)
    return f"label {list(labels).index(label)}" if labels.is_case_sensitive else label


def label_reader(expected: Sequence[Any]) -> Callable[[Any], str]:
    """From an answer to the text of the label that it names, in a column of these labels.

    The function raises AnswerError for what cannot be read.
    """
    labels = LabelSet.among(expected)

    def read(answer: Any) -> str:
        if labels is None:
            check_answer(answer)
            return label_text(answer)
        return label_text(labels.read(answer))

    return read


def _each(examples: Sequence[Any], read: Callable[[Any], Any]) -> list[Any]:
    found = []
    for number, example in enumerate(examples, start=1):
        try:
            found.append(read(example))
        except DataError as error:
            raise DataError(f"example {number}: {error}") from error
    return found


AnyMetric: TypeAlias = Metric | SetMetric | Callable[..., Any]
"""What `compare` takes: the two kinds, or a plain function `metric(example, prediction, trace=None)`."""
