"""`calibrate_interval`: how far off a number may be, from the predictor's own errors on held-out examples.

In: a tuned predictor of one number, and labelled examples that it was not trained on. Out: `Residuals`; from then on
every prediction carries an `interval` around its number, and the file of the predictor holds them.

The rule is split conformal prediction (Papadopoulos et al. 2002; Lei et al. 2018, algorithm 2): of n errors on
held-out examples, the ceil((n + 1) * level)-th smallest is the half width. For a new example drawn as the held-out
ones were, the interval holds the truth with a probability of at least `level`, and at most level + 1 / (n + 1) where no
two errors are equal, whatever the model and the data. That is an average over examples: cheap and expensive
items need not be covered alike, which is what scale="relative" is for.
Not covered: labels (calibrate.py) and texts; data that drift away from the held-out examples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

import dspy

from dspy_finetune.errors import DataError, RowError, UsageError
from dspy_finetune.predictors.ask import PARSE_FAILURES, in_threads, inputs_of
from dspy_finetune.values import Unparseable, load_number

Scale: TypeAlias = Literal["absolute", "relative"]
"""In what errors are measured: the number's unit, or shares of the predicted number."""

MINIMUM_ERRORS = 20
"""The fewest readable examples: with 20 the share that a 90 % interval covers varies by 6 points (one deviation)."""


class NumberPredictor(Protocol):
    """What `calibrate_interval` needs of a predictor: its prompt, its number, and a place for what was measured."""

    prompt: Any
    residuals: Residuals | None

    @property
    def number_field(self) -> str | None:
        """The one output, where it is a number."""

    def __call__(self, **inputs: Any) -> Any:
        """A prediction with that number."""


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """A predictor's errors on held-out examples, as the half width of an interval.

    >>> Residuals(scale="relative", level=0.9, half_width=0.2, n=100).interval(50.0)
    (40.0, 60.0)
    """

    scale: Scale
    """In what the errors were measured."""
    level: float
    """The least share of new items whose truth lies inside, between 0 and 1."""
    half_width: float
    """Half the interval, in the number's unit or as a share of the predicted number."""
    n: int
    """Errors it was taken from."""
    n_parse_failures: int = 0
    """Examples left out because the answer could not be read."""

    @property
    def coverage_deviation(self) -> float:
        """The standard deviation of the share covered, over draws of the held-out examples.

        Given the examples, the share is Beta(k, n + 1 - k) distributed, k = ceil((n + 1) * level) (Vovk 2012).
        """
        k = _order(self.n, self.level)
        return math.sqrt(k * (self.n + 1 - k) / ((self.n + 1) ** 2 * (self.n + 2)))

    def interval(self, number: float) -> tuple[float, float]:
        """(low, high) around a predicted number."""
        half = self.half_width * (abs(number) if self.scale == "relative" else 1.0)
        return number - half, number + half

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Residuals:
        """The inverse of `to_dict`.

        Raises:
            DataError: Not saved residuals.
        """
        data = {("scale" if name == "how" else name): value for name, value in data.items()}  # "how" until 0.1
        data = {("n_parse_failures" if name == "n_unreadable" else name): value for name, value in data.items()}
        try:
            return cls(**data)
        except TypeError as error:
            raise DataError(f"not saved residuals ({error}); calibrate the predictor's interval again") from error


def calibrate_interval(
    predictor: NumberPredictor,
    examples: Sequence[Any],
    *,
    level: float = 0.9,
    scale: Scale = "absolute",
    num_threads: int = 8,
) -> Residuals:
    """Measure a number predictor's errors on held-out examples; its predictions carry an `interval` from then on.

    Args:
        predictor: A tuned predictor whose one output is an int or a float.
        examples: Labelled examples that were not in the training file, drawn like those to come.
        level: The least share of new items whose truth is to lie inside the interval.
        scale: "absolute": the same width for every number. "relative": a width in proportion to the predicted number,
            for quantities such as prices; a predicted 0 then has an interval without width.
        num_threads: Concurrent calls.

    Raises:
        DataError: Too few examples for the level (n + 1 must be at least 1 / (1 - level), and n at least 20), or, for
            "relative", a predicted 0 where the truth is another number.
        UsageError: The predictor's output is no number, or an argument is out of range.
        RowError: An example lacks the number.
    """
    if getattr(predictor, "number_field", None) is None:
        raise UsageError(
            "calibrate_interval needs a tuned predictor whose one output is an int or a float; "
            "for labels there is calibrate(predictor, examples)"
        )
    if scale not in get_args(Scale) or not 0.0 < level < 1.0:
        raise UsageError(f'scale is "absolute" or "relative" and level between 0 and 1; got {scale!r} and {level}')
    field = predictor.prompt.output_fields[0]
    examples = list(examples)
    truths = [_truth(example, line, field) for line, example in enumerate(examples, start=1)]
    _check_enough(len(truths), level)

    def ask(example: Any) -> float | None:
        try:
            return float(predictor(**inputs_of(example))[field])
        except PARSE_FAILURES:
            return None

    with dspy.context(disable_history=True, trace=None):
        numbers = in_threads(ask, examples, num_threads)
    pairs = [(number, truth) for number, truth in zip(numbers, truths, strict=True) if number is not None]
    _check_enough(len(pairs), level)
    errors = sorted(_error(number, truth, scale) for number, truth in pairs)
    found = Residuals(
        scale=scale,
        level=level,
        half_width=errors[_order(len(errors), level) - 1],
        n=len(errors),
        n_parse_failures=len(numbers) - len(pairs),
    )
    predictor.residuals = found
    return found


def _truth(example: Any, line: int, field: str) -> float:
    """An example's number: "$1,199.99" from a file and 1199.99 are the same."""
    if field not in example:
        raise RowError("missing", line=line, field=field, remedy="calibrate_interval needs the example's own number")
    try:
        return load_number(example[field])
    except Unparseable as error:
        raise RowError(error.problem, line=line, field=field, value=example[field], remedy=error.remedy) from error


def _order(n: int, level: float) -> int:
    # Rounded first, as 10 * 0.7 is a little above 7 in binary.
    return math.ceil(round((n + 1) * level, 9))


def _error(number: float, truth: float, scale: Scale) -> float:
    distance = abs(number - truth)
    if scale == "absolute" or distance == 0.0:
        return distance
    if number == 0.0:
        raise DataError('scale="relative": a predicted 0 has no relative error; use scale="absolute"')
    return distance / abs(number)


def _check_enough(n: int, level: float) -> None:
    # Below this the rule would ask for an error larger than any that was seen.
    least = max(MINIMUM_ERRORS, math.ceil(round(level / (1.0 - level), 9)))
    if n < least:
        raise DataError(f"{n} examples are too few for intervals of level {level}: at least {least} are needed")
