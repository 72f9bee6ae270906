"""`calibrate`: make a predictor's probabilities mean what they say, and choose its threshold on held-out examples.

In: a tuned predictor with labels, and labelled examples that it was not trained on. Out: a `Calibration` that the
predictor applies from then on and saves with itself. The token probabilities of a tuned model are often too sure; the
curve is fitted by scikit-learn (extra `eval`), and applying it needs nothing.

How many examples: at least 20 for "temperature" (one number is fitted), 50 for "platt" (two), 200 for "isotonic" (a
curve), and at least 5 of each label. Below that the fit would be noise, and `calibrate` refuses.
Not covered: numbers (residuals.py) and texts.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import dspy

from dspy_finetune._optional import require
from dspy_finetune.errors import DataError, LogprobsError, UsageError
from dspy_finetune.predictors.calibration_fit import Curve, How, cooled, cross_fit, fit_curves, fit_temperature
from dspy_finetune.predictors.reading import UNREADABLE, in_threads, inputs_of, is_yes_no
from dspy_finetune.predictors.reliability import Bin, Reliability, reliability

if TYPE_CHECKING:
    from dspy_finetune.predictors.base import FinetunedPredictor

MINIMUM: Mapping[How, int] = {"temperature": 20, "platt": 50, "isotonic": 200}
"""The fewest examples for each way."""

MINIMUM_PER_LABEL = 5
"""The fewest examples of each label."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted correction of probabilities, and what it was worth.

    >>> halved = Calibration(how="temperature", labels=("true", "false"), n=100, temperature=2.0)
    >>> [round(share, 2) for share in halved.apply([0.9, 0.1])]
    [0.75, 0.25]
    """

    how: How
    """The way it was fitted."""
    labels: tuple[str, ...]
    """The label texts in the order of the probabilities; for yes/no labels that of True is first."""
    n: int
    """Examples it was fitted on."""
    temperature: float | None = None
    """Above 1: the model is too sure. None for the other ways."""
    curves: tuple[Curve, ...] = ()
    """For two labels that of the first; for more one for each. Empty for a temperature."""
    is_symmetric: bool = False
    """Whether swapping the two items of a pair swaps the probabilities, as for a predictor that asks both orders."""
    n_unreadable: int = 0
    """Examples left out because the answer could not be read."""
    before: Reliability | None = None
    """The model's own probabilities held against the examples."""
    after: Reliability | None = None
    """The calibrated ones, cross-fitted: each example judged by a curve fitted without it."""
    threshold: float | None = None
    """The threshold that was chosen, or None."""
    threshold_precision: float | None = None
    """Cross-fitted, at the threshold: how many of those called True are."""
    threshold_recall: float | None = None
    """Cross-fitted, at the threshold: how many of the True ones are called so."""

    def apply(self, shares: Sequence[float]) -> list[float]:
        """Calibrated probabilities, in [0, 1], summing to 1; in the order of `labels`."""
        if self.temperature is not None:
            return cooled(shares, self.temperature)
        if len(shares) == 2:
            first = self.curves[0](shares[0])
            if self.is_symmetric:
                first = (first + 1.0 - self.curves[0](shares[1])) / 2
            return [first, 1.0 - first]
        raw = [curve(share) for curve, share in zip(self.curves, shares, strict=True)]
        total = sum(raw)
        return [value / total for value in raw]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_dict`, from JSON too.

        Raises:
            DataError: Not a saved calibration.
        """
        try:
            curves = tuple(
                Curve(**{**curve, "knots": tuple((float(x), float(y)) for x, y in curve["knots"])})
                for curve in data["curves"]
            )
            read = {
                name: None
                if data[name] is None
                else Reliability(**{**data[name], "bins": tuple(Bin(**one) for one in data[name]["bins"])})
                for name in ("before", "after")
            }
            return cls(**{**data, **read, "curves": curves, "labels": tuple(data["labels"])})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"not a saved calibration ({type(error).__name__}: {error}); calibrate the predictor again"
            ) from error

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the reliability before and after into an image file (.svg, .png, .pdf); needs the extra `report`.

        Raises:
            UsageError: It was built by hand, without a report.
        """
        if self.before is None or self.after is None:
            raise UsageError("this calibration carries no report to draw; make one with calibrate(predictor, examples)")
        require("matplotlib", "report", "Calibration.plot")
        # The object interface, without pyplot: it keeps no global state and opens no window.
        figure = require("matplotlib.figure", "report", "Calibration.plot").Figure(figsize=(4.5, 4.5))
        axes = figure.add_subplot(xlabel="probability said", ylabel="share that was so", xlim=(0, 1), ylim=(0, 1))
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for name, one in (("before", self.before), ("after", self.after)):
            points = [(each.mean_probability, each.share) for each in one.bins if each.n]
            axes.plot(*zip(*points, strict=True), marker="o", label=f"{name}: error {one.calibration_error:.3f}")
        axes.legend()
        figure.savefig(os.fspath(path), bbox_inches="tight")


def calibrate(
    predictor: FinetunedPredictor,
    examples: Sequence[Any],
    *,
    how: How = "temperature",
    threshold_for: Mapping[str, Any] | None = None,
    n_threads: int = 8,
    seed: int = 0,
) -> Calibration:
    """Fit a calibration on held-out examples; the predictor applies it from then on.

    A predictor that is calibrated already is calibrated afresh, from the model's own probabilities. If anything goes
    wrong, the predictor stays as it was.

    Args:
        predictor: A tuned predictor with labels, on a host that gives log-probabilities.
        examples: Labelled examples that were not in the training file.
        how: "temperature" keeps the order of the labels and needs the least data; "platt" also mends a lean to one
            label; "isotonic" mends any bend and needs the most.
        threshold_for: Also set the predictor's threshold, for yes/no labels: {"precision": 0.9} takes the lowest
            threshold that reaches it, {"recall": 0.9} the highest, and {"cost": (false_positive, false_negative)} the
            one of least expected cost, false_positive / (false_positive + false_negative).
        n_threads: Calls at the same time.
        seed: Of the folds in which `after` is measured.

    Raises:
        DataError: Too few examples, one label only, or a target that no threshold reaches.
        UsageError: The predictor has no labels, or no threshold where one is asked for.
        LogprobsError: The host gives no log-probabilities.
    """
    if how not in MINIMUM:
        raise UsageError(f'how: "temperature", "platt" or "isotonic"; got {how!r}')
    target = _target(predictor, threshold_for)
    labels, examples = _ordered_labels(predictor), list(examples)
    _check_enough(_expected(predictor, examples, labels), labels, how)
    shares, right, n_unreadable = _ask(predictor, examples, labels, n_threads)
    _check_enough(right, labels, how)
    texts = predictor.prompt.labels
    assert texts is not None
    base = Calibration(
        how=how,
        labels=tuple(texts.encode(label) for label in labels),
        n=len(right),
        is_symmetric=bool(getattr(predictor, "both_orders", False)),
        n_unreadable=n_unreadable,
    )

    def fit(rows: Sequence[Sequence[float]], indexes: Sequence[int]) -> Calibration:
        if how == "temperature":
            return dataclasses.replace(base, temperature=fit_temperature(rows, indexes))
        return dataclasses.replace(base, curves=fit_curves(how, rows, indexes, is_symmetric=base.is_symmetric))

    honest = cross_fit(shares, right, fit, Calibration.apply, seed)
    chosen = _threshold(target, [row[0] for row in honest], [index == 0 for index in right])
    found = dataclasses.replace(
        fit(shares, right), before=reliability(shares, right), after=reliability(honest, right), **chosen
    )
    predictor.calibration = found
    if found.threshold is not None:
        predictor.threshold = found.threshold
    return found


def _ordered_labels(predictor: Any) -> list[Any]:
    if getattr(getattr(predictor, "prompt", None), "labels", None) is None or not hasattr(predictor, "calibration"):
        raise UsageError(
            "calibrate needs a tuned predictor whose first output has labels (bool, Literal, Enum), "
            f"found {type(predictor).__name__}; for a number there is calibrate_interval"
        )
    labels = list(predictor.prompt.labels)
    return [True, False] if is_yes_no(labels) else labels


def _target(predictor: Any, threshold_for: Mapping[str, Any] | None) -> tuple[str, Any] | None:
    if threshold_for is None:
        return None
    if len(threshold_for) != 1 or next(iter(threshold_for)) not in ("precision", "recall", "cost"):
        raise UsageError(
            f'threshold_for: {{"precision": 0.9}}, {{"recall": 0.9}} or {{"cost": (fp, fn)}}; got {dict(threshold_for)}'
        )
    if not hasattr(predictor, "threshold") or not is_yes_no(predictor.prompt.labels or ()):
        raise UsageError("threshold_for: only a predictor of True and False has a threshold")
    kind, value = next(iter(threshold_for.items()))
    if kind == "cost":
        numbers = list(value) if isinstance(value, (list, tuple)) else []
        if len(numbers) != 2 or not all(map(_is_number, numbers)) or min(numbers) < 0 or sum(numbers) <= 0:
            raise UsageError(f"threshold_for: the costs of a false positive and a false negative, got {value!r}")
    elif not _is_number(value) or not 0 < value <= 1:
        raise UsageError(f"threshold_for: {kind} must be above 0 and at most 1, got {value!r}")
    return kind, value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _expected(predictor: Any, examples: Sequence[Any], labels: Sequence[Any]) -> list[int]:
    field, codec = predictor.prompt.label_field, predictor.prompt.labels
    texts = [codec.encode(label) for label in labels]
    for number, example in enumerate(examples, start=1):
        if field not in example:
            raise UsageError(f'example {number} has no field "{field}", the label that calibrate needs')
    return [texts.index(codec.encode(example[field])) for example in examples]


def _check_enough(right: Sequence[int], labels: Sequence[Any], how: How) -> None:
    if len(right) < MINIMUM[how]:
        raise DataError(
            f'{len(right)} examples are too few to calibrate by "{how}": at least {MINIMUM[how]} are needed'
            + ('; how="temperature" needs 20' if how != "temperature" and len(right) >= 20 else "")
        )
    counts = Counter(right)
    if len(counts) < 2:
        raise DataError(f"all examples have the label {labels[right[0]]!r}: calibration needs examples of each label")
    scarce = [repr(labels[index]) for index in range(len(labels)) if counts[index] < MINIMUM_PER_LABEL]
    if scarce:
        raise DataError(f"fewer than {MINIMUM_PER_LABEL} examples of the label {', '.join(scarce)}: add some of each")


def _ask(
    predictor: Any, examples: Sequence[Any], labels: Sequence[Any], n_threads: int
) -> tuple[list[list[float]], list[int], int]:
    bare = predictor.deepcopy()
    bare.calibration = None

    def ask(example: Any) -> list[float] | None:
        try:
            prediction = bare(**inputs_of(example))
        except UNREADABLE:
            return None
        if prediction.probabilities is None:
            raise LogprobsError(f"{predictor.model} gives no log-probabilities, so there is nothing to calibrate")
        return [prediction.probabilities[label] for label in labels]

    with dspy.context(disable_history=True, trace=None):
        answers = in_threads(ask, examples, n_threads)
    right = _expected(predictor, examples, labels)
    kept = [(row, index) for row, index in zip(answers, right, strict=True) if row is not None]
    return [row for row, _ in kept], [index for _, index in kept], len(answers) - len(kept)


def _threshold(target: tuple[str, Any] | None, said: Sequence[float], was: Sequence[bool]) -> dict[str, Any]:
    if target is None:
        return {}
    kind, value = target
    if kind == "cost":
        # For calibrated probabilities this is the least expected cost (Elkan, 2001); looking for it on the examples
        # would only add noise.
        threshold = value[0] / (value[0] + value[1])
    else:
        candidates = sorted(set(said))
        reached = [one for one in candidates if _rates(one, said, was)[kind == "recall"] >= value]
        if not reached:
            best = max(_rates(one, said, was)[0] for one in candidates)
            raise DataError(f"no threshold reaches a precision of {value} on these examples: the best is {best:.3f}")
        threshold = reached[-1] if kind == "recall" else reached[0]
    precision, recall = _rates(threshold, said, was)
    return {"threshold": threshold, "threshold_precision": precision, "threshold_recall": recall}


def _rates(threshold: float, said: Sequence[float], was: Sequence[bool]) -> tuple[float, float]:
    called = [event for share, event in zip(said, was, strict=True) if share >= threshold]
    return (sum(called) / len(called) if called else 1.0), sum(called) / sum(was)
