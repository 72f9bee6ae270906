"""`calibrate` and `calibrate_interval`: what a predictor says of its own certainty, made true on held-out examples.

In: a tuned predictor and labelled examples that it was not trained on. Out: for labels a `Calibration` (probabilities
that mean what they say, and a threshold), for one number its `Residuals` (an interval around every number); the
predictor applies it from then on and saves it with itself.

Labels: the token probabilities of a tuned model are often too sure; the curve is fitted by scikit-learn (extra
`eval`), which is imported when something is fitted, and applying it needs nothing. How many examples: at least 20 for
"temperature" (one number is fitted), 50 for "platt" (two), 200 for "isotonic" (a curve), and at least 5 of each label.
Below that the fit would be noise, and `calibrate` refuses.

Numbers: the rule is split conformal prediction (Papadopoulos et al. 2002; Lei et al. 2018, algorithm 2): of n errors on
held-out examples, the ceil((n + 1) * level)-th smallest is the half width. For a new example drawn as the held-out
ones were, the interval holds the truth with a probability of at least `level`, and at most level + 1 / (n + 1) where no
two errors are equal, whatever the model and the data. That is an average over examples: cheap and expensive
items need not be covered alike, which is what scale="relative" is for.
Not covered: texts; data that drift away from the held-out examples.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args

import dspy
import numpy as np

from dspy_finetune._files import read_dataclass
from dspy_finetune._optional import fitting, require
from dspy_finetune.errors import AnswerError, DataError, LogprobsError, RowError, UsageError
from dspy_finetune.predictors.ask import PARSE_FAILURES, in_threads, inputs_of
from dspy_finetune.values import LabelSet, Unparseable, is_yes_no, load_number

Method: TypeAlias = Literal["temperature", "platt", "isotonic"]
"""The ways to calibrate, from the stiffest to the most supple."""

Fitted = TypeVar("Fitted")

N_FOLDS = 5
"""Parts of a cross-fit: each item is judged by a curve that was fitted without it."""

_LEAST = 1e-7


class LabelPredictor(Protocol):
    """What `calibrate` needs of a predictor: labels, probabilities, and a place for what was fitted."""

    prompt: Any
    model: str
    calibration: Calibration | None

    def __call__(self, **inputs: Any) -> Any:
        """A prediction with `probabilities`."""

    def deepcopy(self) -> Any:
        """A copy that shares its language model."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """From a probability to a better one: a sigmoid over its log-odds, or straight lines between knots."""

    slope: float = 1.0
    """Of the sigmoid: below 1 for a model that is too sure."""
    intercept: float = 0.0
    """Of the sigmoid."""
    knots: tuple[tuple[float, float], ...] = ()
    """(probability, calibrated probability), rising; where there are any, they are the curve."""

    def __call__(self, share: float) -> float:
        """The calibrated probability, before the labels are scaled to sum to 1."""
        if not self.knots:
            return sigmoid(self.slope * log_odds(share) + self.intercept)
        said, calibrated = zip(*self.knots, strict=True)
        return float(np.interp(share, said, calibrated))


def log_odds(share: float) -> float:
    """log(p / (1 - p)); p is kept 1e-7 away from 0 and 1, where a single token's rounding would decide everything."""
    share = min(max(share, _LEAST), 1.0 - _LEAST)
    return math.log(share / (1.0 - share))


def sigmoid(value: float) -> float:
    """The inverse of the log-odds, without overflow."""
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    power = math.exp(value)
    return power / (1.0 + power)


def cooled(shares: Sequence[float], temperature: float) -> list[float]:
    """The probabilities at another temperature: each to the power of 1 / temperature, scaled to sum to 1."""
    logs = [math.log(max(share, _LEAST)) / temperature for share in shares]
    powers = [math.exp(value - max(logs)) for value in logs]
    return [power / sum(powers) for power in powers]


def fit_temperature(shares: Sequence[Sequence[float]], right: Sequence[int]) -> float:
    """The temperature with the least log loss, between 1/20 and 20 (Guo et al., 2017).

    Raises:
        DataError: The probabilities point the wrong way, so that no temperature helps.
    """
    optimize = require("scipy.optimize", "eval", 'calibrate(method="temperature")')

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        return -sum(
            math.log(max(cooled(row, temperature)[index], 1e-300)) for row, index in zip(shares, right, strict=True)
        )

    limit = math.log(20.0)
    found = float(optimize.minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x)
    if found > 0.999 * limit:
        raise DataError(
            "the model's probabilities say nothing about these examples, or the reverse: no temperature helps; "
            "check that the examples are of the task that the model was trained for"
        )
    return math.exp(found)


@fitting("sklearn.linear_model", "eval", 'calibrate(method="platt")')
def fit_platt(said: Sequence[float], was: Sequence[bool], *, is_symmetric: bool) -> Curve:
    """Platt's sigmoid over the log-odds, with his smoothed targets (Platt, 1999): finite even where classes part."""
    linear = require("sklearn.linear_model", "eval", 'calibrate(method="platt")')
    n_true = sum(was)
    high, low = (n_true + 1) / (n_true + 2), 1 / (len(was) - n_true + 2)
    targets = [high if event else low for event in was]
    features = [[log_odds(share)] for share in said]
    # A target between 0 and 1 is one row of each class, weighted. C so large that nothing is shrunk.
    model = linear.LogisticRegression(C=1e6, fit_intercept=not is_symmetric, max_iter=1000)
    model.fit(features * 2, [1] * len(was) + [0] * len(was), [*targets, *(1 - target for target in targets)])
    return Curve(slope=float(model.coef_[0][0]), intercept=0.0 if is_symmetric else float(model.intercept_[0]))


@fitting("sklearn.isotonic", "eval", 'calibrate(method="isotonic")')
def fit_isotonic(said: Sequence[float], was: Sequence[bool]) -> Curve:
    """The best rising step curve; never 0 or 1, which n examples cannot prove."""
    isotonic = require("sklearn.isotonic", "eval", 'calibrate(method="isotonic")')
    edge = 1.0 / (len(was) + 2)
    model = isotonic.IsotonicRegression(y_min=edge, y_max=1.0 - edge, out_of_bounds="clip")
    model.fit(list(said), [float(event) for event in was])
    knots = zip(map(float, model.X_thresholds_), map(float, model.y_thresholds_), strict=True)
    return Curve(knots=tuple(knots))


def fit_curves(
    method: Literal["platt", "isotonic"], shares: Sequence[Sequence[float]], right: Sequence[int], *, is_symmetric: bool
) -> tuple[Curve, ...]:
    """One curve for the first of two labels, or one for each of more labels."""
    if is_symmetric:  # the same question with the items in the other order, and so the other answer
        shares = [*shares, *([row[1], row[0]] for row in shares)]
        right = [*right, *(1 - index for index in right)]
    n_curves = 1 if len(shares[0]) == 2 else len(shares[0])
    curves = []
    for label in range(n_curves):
        said, was = [row[label] for row in shares], [index == label for index in right]
        curves.append(fit_platt(said, was, is_symmetric=is_symmetric) if method == "platt" else fit_isotonic(said, was))
    return tuple(curves)


def cross_fit(
    shares: Sequence[Sequence[float]],
    right: Sequence[int],
    fit: Callable[[Sequence[Sequence[float]], Sequence[int]], Fitted],
    apply: Callable[[Fitted, Sequence[float]], list[float]],
    seed: int,
) -> list[list[float]]:
    """Each item's calibrated probabilities by a fit that has not seen it. The folds hold like shares of each label."""
    order = list(range(len(right)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda index: right[index])
    fold_of = {index: place % N_FOLDS for place, index in enumerate(order)}
    found: dict[int, list[float]] = {}
    for fold in range(N_FOLDS):
        rest = [index for index in range(len(right)) if fold_of[index] != fold]
        fitted: Any = fit([shares[index] for index in rest], [right[index] for index in rest])
        found |= {index: apply(fitted, shares[index]) for index in fold_of if fold_of[index] == fold}
    return [found[index] for index in range(len(right))]


N_BINS = 10
"""Bins of equal width, as the expected calibration error is usually stated (Guo et al., 2017)."""

_LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The items whose probability fell into one stretch of [0, 1]."""

    low: float
    """Lower edge, included."""
    high: float
    """Upper edge, excluded but for the last bin."""
    n: int
    """How many items."""
    mean_probability: float
    """What the model said on average; 0 for an empty bin."""
    share: float
    """How often it was so; 0 for an empty bin."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How well probabilities agree with what was right (reliability)."""

    n: int
    """Items."""
    brier_loss: float
    """Mean squared error of the probability: for two labels of the first one; for more, summed over the labels."""
    log_loss: float
    """Mean of -log(probability of the right label), in nats; probabilities below 1e-12 count as that."""
    calibration_error: float
    """Expected calibration error, in [0, 1]: the mean distance of said and seen over the bins, weighted by their n."""
    bins: tuple[Bin, ...]
    """For two labels over the probability of the first one; for more over that of the most probable one."""


def reliability(shares: Sequence[Sequence[float]], right: Sequence[int]) -> Reliability:
    """Hold probabilities against what was right.

    Args:
        shares: For each item the probability of each label; at least one item.
        right: For each item the index of the label that was right.
    """
    n = len(shares)
    if len(shares[0]) == 2:
        events = [(row[0], index == 0) for row, index in zip(shares, right, strict=True)]
        brier = sum((said - was) ** 2 for said, was in events) / n
    else:
        tops = [max(range(len(row)), key=row.__getitem__) for row in shares]
        events = [(row[top], top == index) for row, top, index in zip(shares, tops, right, strict=True)]
        brier = sum(
            sum((share - (index == label)) ** 2 for label, share in enumerate(row))
            for row, index in zip(shares, right, strict=True)
        ) / n  # fmt: skip
    losses = [-math.log(max(row[index], _LEAST_PROBABILITY)) for row, index in zip(shares, right, strict=True)]
    bins = _bins(events)
    return Reliability(
        n=n,
        brier_loss=brier,
        log_loss=sum(losses) / n,
        calibration_error=sum(one.n * abs(one.mean_probability - one.share) for one in bins) / n,
        bins=bins,
    )


def _bins(events: Sequence[tuple[float, bool]]) -> tuple[Bin, ...]:
    filled: list[list[tuple[float, bool]]] = [[] for _ in range(N_BINS)]
    for said, was in events:
        filled[min(int(said * N_BINS), N_BINS - 1)].append((said, was))
    return tuple(
        Bin(
            low=number / N_BINS,
            high=(number + 1) / N_BINS,
            n=len(inside),
            mean_probability=sum(said for said, _ in inside) / len(inside) if inside else 0.0,
            share=sum(was for _, was in inside) / len(inside) if inside else 0.0,
        )
        for number, inside in enumerate(filled)
    )


_RENAMED = {"how": "method", "n_unreadable": "n_parse_failures"}
"""Names in files of 0.1."""

MINIMUM: Mapping[Method, int] = {"temperature": 20, "platt": 50, "isotonic": 200}
"""The fewest examples for each way."""

MINIMUM_PER_LABEL = 5
"""The fewest examples of each label."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted correction of probabilities, and what it was worth.

    >>> halved = Calibration(method="temperature", labels=("true", "false"), n=100, temperature=2.0)
    >>> [round(share, 2) for share in halved.apply([0.9, 0.1])]
    [0.75, 0.25]
    """

    method: Method
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
    n_parse_failures: int = 0
    """Examples left out because the answer could not be read."""
    before: Reliability | None = None
    """The reliability of the model's own probabilities on the examples."""
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
            return read_dataclass(cls, {_RENAMED.get(name, name): value for name, value in data.items()})
        except (TypeError, ValueError, AttributeError) as error:
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
    predictor: LabelPredictor,
    examples: Sequence[Any],
    *,
    method: Method = "temperature",
    threshold_for: Mapping[str, Any] | None = None,
    num_threads: int = 8,
    seed: int = 0,
) -> Calibration:
    """Fit a calibration on held-out examples; the predictor applies it from then on.

    A predictor that is calibrated already is calibrated afresh, from the model's own probabilities. If anything goes
    wrong, the predictor stays as it was.

    Args:
        predictor: A tuned predictor with labels, on a host that gives log-probabilities.
        examples: Labelled examples that were not in the training file.
        method: "temperature" keeps the order of the labels and needs the least data; "platt" also mends a lean to one
            label; "isotonic" mends any bend and needs the most.
        threshold_for: Also set the predictor's threshold, for yes/no labels: {"precision": 0.9} takes the lowest
            threshold that reaches it, {"recall": 0.9} the highest, and {"cost": (false_positive, false_negative)} the
            one of least expected cost, false_positive / (false_positive + false_negative).
        num_threads: Concurrent calls.
        seed: Of the folds in which `after` is measured.

    Raises:
        DataError: Too few examples, one label only, or a target that no threshold reaches.
        UsageError: The predictor has no labels, or no threshold where one is asked for.
        LogprobsError: The host gives no log-probabilities.
    """
    if method not in MINIMUM:
        raise UsageError(f'method: "temperature", "platt" or "isotonic"; got {method!r}')
    target = _target(predictor, threshold_for)
    labels, examples = _ordered_labels(predictor), list(examples)
    _check_enough(_expected(predictor, examples, labels), labels, method)
    shares, right, n_parse_failures = _ask(predictor, examples, labels, num_threads)
    _check_enough(right, labels, method)
    texts = predictor.prompt.labels
    assert texts is not None
    base = Calibration(
        method=method,
        labels=tuple(texts.encode(label) for label in labels),
        n=len(right),
        is_symmetric=bool(getattr(predictor, "both_orders", False)),
        n_parse_failures=n_parse_failures,
    )

    def fit(rows: Sequence[Sequence[float]], indexes: Sequence[int]) -> Calibration:
        if method == "temperature":
            return dataclasses.replace(base, temperature=fit_temperature(rows, indexes))
        return dataclasses.replace(base, curves=fit_curves(method, rows, indexes, is_symmetric=base.is_symmetric))

    honest = cross_fit(shares, right, fit, Calibration.apply, seed)
    chosen = _threshold(target, [row[0] for row in honest], [index == 0 for index in right])
    found = dataclasses.replace(
        fit(shares, right), before=reliability(shares, right), after=reliability(honest, right), **chosen
    )
    predictor.calibration = found
    if found.threshold is not None:
        with_threshold: Any = predictor  # `_target` has looked
        with_threshold.threshold = found.threshold
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
    return [texts.index(codec.encode(_label_of(example[field], codec))) for example in examples]


def _label_of(value: Any, codec: LabelSet) -> Any:
    """An example's label, written as a value or as text; what is neither stays, and encode refuses it."""
    try:
        return codec.read(value)
    except AnswerError:
        return value


def _check_enough(right: Sequence[int], labels: Sequence[Any], method: Method) -> None:
    if len(right) < MINIMUM[method]:
        raise DataError(
            f'{len(right)} examples are too few to calibrate by "{method}": at least {MINIMUM[method]} are needed'
            + ('; method="temperature" needs 20' if method != "temperature" and len(right) >= 20 else "")
        )
    counts = Counter(right)
    if len(counts) < 2:
        raise DataError(f"all examples have the label {labels[right[0]]!r}: calibration needs examples of each label")
    scarce = [repr(labels[index]) for index in range(len(labels)) if counts[index] < MINIMUM_PER_LABEL]
    if scarce:
        raise DataError(f"fewer than {MINIMUM_PER_LABEL} examples of the label {', '.join(scarce)}: add some of each")


def _ask(
    predictor: Any, examples: Sequence[Any], labels: Sequence[Any], num_threads: int
) -> tuple[list[list[float]], list[int], int]:
    bare = predictor.deepcopy()
    bare.calibration = None

    def ask(example: Any) -> list[float] | None:
        try:
            prediction = bare(**inputs_of(example))
        except PARSE_FAILURES:
            return None
        if prediction.probabilities is None:
            raise LogprobsError(f"{predictor.model} gives no log-probabilities, so there is nothing to calibrate")
        if None in prediction.probabilities.values():
            raise LogprobsError(
                f"{predictor.model} lists too few tokens to tell the labels' probabilities, so there is nothing to "
                "calibrate; ask for more with top_logprobs="
            )
        return [prediction.probabilities[label] for label in labels]

    with dspy.context(disable_history=True, trace=None):
        answers = in_threads(ask, examples, num_threads)
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
        """(low, high) around a predicted number; relative to it, neither lies on the other side of zero."""
        if self.scale == "absolute":
            return number - self.half_width, number + self.half_width
        half = self.half_width * abs(number)
        return (max(number - half, 0.0), number + half) if number >= 0 else (number - half, min(number + half, 0.0))

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
            for quantities such as prices, and cut off at zero; a predicted 0 then has an interval without width.
        num_threads: Concurrent calls.

    Raises:
        DataError: Too few examples for the level (n + 1 must be at least 1 / (1 - level), and n at least 20), or, for
            "relative", a predicted 0 where the truth is another number, or too many truths of the other sign.
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
    _check_enough_errors(len(truths), level)

    def ask(example: Any) -> float | None:
        try:
            return float(predictor(**inputs_of(example))[field])
        except PARSE_FAILURES:
            return None

    with dspy.context(disable_history=True, trace=None):
        numbers = in_threads(ask, examples, num_threads)
    pairs = [(number, truth) for number, truth in zip(numbers, truths, strict=True) if number is not None]
    _check_enough_errors(len(pairs), level)
    errors = sorted(_error(number, truth, scale) for number, truth in pairs)
    half_width = errors[_order(len(errors), level) - 1]
    if half_width == math.inf:
        n_crossed = errors.count(math.inf)
        raise DataError(
            f'scale="relative": {n_crossed} of {len(errors)} numbers have the other sign than what was predicted; use '
            'scale="absolute"'
        )
    found = Residuals(
        scale=scale,
        level=level,
        half_width=half_width,
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
    return distance / abs(number) if truth * number >= 0 else math.inf  # no interval of this scale holds it


def _check_enough_errors(n: int, level: float) -> None:
    # Below this the rule would ask for an error larger than any that was seen.
    least = max(MINIMUM_ERRORS, math.ceil(round(level / (1.0 - level), 9)))
    if n < least:
        raise DataError(f"{n} examples are too few for intervals of level {level}: at least {least} are needed")
