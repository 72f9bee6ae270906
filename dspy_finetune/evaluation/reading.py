"""How a metric reads an example and a prediction: fields, labels as text, numbers, the positive label's probability.

In: a `dspy.Example` or `dspy.Prediction`. Out: values; AnswerError where a prediction holds nothing to read,
UsageError where the caller named a field that is not there. Not covered: what is computed from the values
(item_metrics.py, set_metrics.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dspy_finetune.errors import AnswerError, UsageError

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")


def read_field(row: Any, field: str, kind: str, metric: str) -> Any:
    """A field of an example or a prediction. Raises UsageError that names the fields there are."""
    if field not in row:
        raise UsageError(
            f'{metric} reads the field "{field}", but the {kind} has only: {", ".join(map(str, row.keys()))}'
        )
    return row[field]


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
        AnswerError: The prediction carries neither, or not for this label.
    """
    shares = prediction.get("probabilities", None)
    if isinstance(shares, Mapping):
        for label, share in shares.items():
            if same_label(label, positive):
                return float(share)
    share, answer = prediction.get("probability", None), prediction.get(field, None)
    if share is None:
        raise AnswerError("the prediction carries no probability", text="")
    said, wanted = label_text(answer), label_text(positive)
    if {said, wanted} <= {"true", "false"}:
        said = "true"
    if said == wanted:
        return float(share)
    if {said, wanted} in ({"a", "b"}, {"true", "false"}):
        return 1.0 - float(share)
    raise AnswerError(f"the prediction carries no probability of {positive}; give it .probabilities", text="")


def label_text(value: Any) -> str:
    """A label as text, the same for True, "True" and " true "."""
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
        AnswerError: The text is not one number, or it is not finite.
    """
    if isinstance(value, str):
        text = value.strip().lstrip("$€£").strip()
        number = float(text.replace(",", "")) if _NUMBER.fullmatch(text) and any(map(str.isdigit, text)) else math.nan
    else:
        number = float(value)
    if not math.isfinite(number):
        raise AnswerError(f"{str(value)[:80]!r} is not a number", text=str(value))
    return number
