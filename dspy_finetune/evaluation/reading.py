"""How a metric reads an example and a prediction: fields, labels as text, numbers, the positive label's probability.

In: a `dspy.Example` or `dspy.Prediction`. Out: values; AnswerError where a prediction holds nothing to read,
UsageError where the caller named a field that is not there. Not covered: what is computed from the values
(item_metrics.py, set_metrics.py).
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dspy_finetune.errors import AnswerError, DataError, UsageError

_ROUNDING = 1e-6
"""So much beyond 0 or 1 a sum of shares may come to."""

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")


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
    try:
        return to_number(value)
    except AnswerError as error:
        raise DataError(f'{metric}: the label "{field}" is {error}') from error


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
    if {said, wanted} <= {"true", "false"}:
        said = "true"
    if said == wanted:
        return _share(share)
    if {said, wanted} in ({"a", "b"}, {"true", "false"}):
        return 1.0 - _share(share)
    raise AnswerError(f"the prediction carries no probability of {positive}; give it .probabilities", text="")


def _share(value: Any) -> float:
    number = to_number(value)
    if not -_ROUNDING <= number <= 1 + _ROUNDING:
        raise AnswerError(f"{str(value)[:80]} is no probability: it must be from 0 to 1", text=str(value))
    return min(max(number, 0.0), 1.0)


def label_text(value: Any) -> str:
    """A label as text, the same for True, "True" and " true ", for 3 and 3.0, for a member of an Enum and its value."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a table with one empty cell reads all its whole numbers as 3.0
    return str(value).strip().casefold()


def same_label(one: Any, other: Any) -> bool:
    """Whether two labels are the same; letter case and outer blanks do not count."""
    return label_text(one) == label_text(other)


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


def to_number(value: Any) -> float:
    """A number from a number or from text such as "$1,199.99".

    Raises:
        AnswerError: It is not one number, or not finite.
    """
    if isinstance(value, str):
        text = value.strip().lstrip("$€£").strip()
        number = float(text.replace(",", "")) if _NUMBER.fullmatch(text) and any(map(str.isdigit, text)) else math.nan
    else:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        raise AnswerError(f"{str(value)[:80]!r} is not a number", text=str(value))
    return number
