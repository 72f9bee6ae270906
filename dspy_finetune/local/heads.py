"""Linear heads on frozen features: the fit, and the small model that is kept.

In: the answers of a training file (tasks.py), and the features of its prompts (features.py). Out: a `Head`:
probabilities of labels or a number in the trained format, chosen among candidates by cross-validation on the training
rows alone.

- labels: multinomial logistic regression; where answers hold several labels, one for each place of the answer, joined
  by how often they come together. Two fields that two labels name ("A", "B") are compared: the difference of
  the fields without an intercept, so that exchanging them exchanges the probabilities (no position bias).
- numbers: ridge on the plain or the logarithmic scale, shifted to the median, which absolute error asks for; intervals
  by quantiles of the out-of-fold residuals (split conformal, with folds in the place of the split).

Duplicates, and pairs that share an item, are kept in one fold. The strengths that win are small (C of 1e-4 to 1e-2 on
hundreds of standardised features): on 440 titles they beat C = 1 by five to ten points.
All layers side by side beat the best single layer: AUC .654 against .647 on 440 news titles, and accuracy .681 against
.665 on 500 headline pairs whose fields were read alone; read one behind the other, .648.
Not covered: free text, which is LoRA's (training.py). numpy alone is needed to answer; scikit-learn to fit.
"""

from __future__ import annotations

import functools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspy_finetune._files import write_json
from dspy_finetune._optional import fitting
from dspy_finetune.errors import DataError
from dspy_finetune.tasks import MAX_CV_ROWS, NumberStyle, Task

Array = NDArray[np.float32]
Wide = NDArray[np.float64]
Mode = Literal["whole", "fields", "agreement", "difference"]

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
"""scikit-learn's C, over standardised features: small means strongly regularised. The large ones are for many labels:
100 labels of 4 rows each had a log loss of 1.9 at .3, although 91 % were right, and of 1.4 at 3."""
RIDGES = (30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0)
"""Ridge's alpha, over standardised features."""
WEIGHTS = {"encoder": math.sqrt(2.0)}
"""The encoder has 384 features beside the base's 2,304: counted twice it was better on three sets of four."""
WORDS_LENGTH = 48.0
"""The length of a text's vector of words: its square is that of 2,304 standardised features. A word is not standardised
for itself, which would make the rarest the loudest."""
TOGETHER_ROWS = 30.0
"""Labels of one answer are taken to come together by chance, as if seen so on so many rows more. On 500 reviews with a
rating, a recommendation and a department, 5 to 300 did alike: 47 % of the answers were right as a whole, by one
regression over all combinations 42 %; of a department and the kind of garment 60 % against 58 %."""
MIN_DECADES = 3
"""Numbers of which four in five lie over so many powers of ten are of many sizes."""
N_QUANTILES = 20
"""A number's distribution is this many equally likely values."""


def numbers_of(style: NumberStyle, answers: Sequence[str]) -> Wide:
    """The numbers of answers in one style."""
    values = [style.read(answer) for answer in answers]
    assert None not in values  # the style was taken from them
    return np.array(values, dtype=np.float64)


# Folds.


Fold: TypeAlias = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Training rows and validation rows."""


def folds_of(items: Sequence[Sequence[str]], n_folds: int, seed: int) -> list[Fold]:
    """(training rows, validation rows) of each fold; no item stands on both sides of one.

    Args:
        items: For each row the texts that it is about: one title, or the two of a pair.
        n_folds: How many.
        seed: Of the order.

    Rows that share an item are kept together. Where that leaves one large cluster (each title in many pairs), items are
    drawn into folds instead: a pair is validated where both of its titles are left out, and trained on where none is.
    Where so few pairs are validated by it, clusters are kept together however large; in one cluster each row is left
    out alone, with those that share an item, or, where all do (one reference in every pair), with its equals. Empty
    where all rows are the same.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(item for row in items for item in row))}
    parent = list(range(len(names)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for row in items:
        for item in row[1:]:
            parent[root(names[item])] = root(names[row[0]])
    clusters = np.array([root(names[row[0]]) for row in items])
    sizes = np.bincount(clusters, minlength=len(names))
    if sizes.max() > max(2, 1.5 * len(items) / n_folds):
        generator = np.random.default_rng(seed)
        drawn = generator.permutation(np.arange(len(names)) % n_folds)
        places = [{int(drawn[names[item]]) for item in row} for row in items]
        folds = _filled(
            (
                [row for row, its in enumerate(places) if fold not in its],
                [row for row, its in enumerate(places) if its == {fold}],
            )
            for fold in range(n_folds)
        )
        if sum(len(valid) for _, valid in folds) >= n_folds:
            return folds
    if sizes.max() < len(items):
        return _whole_groups(clusters, n_folds, seed)
    apart = [[row for row, its in enumerate(items) if not set(its) & set(left_out)] for left_out in items]
    folds = _filled((train, [row]) for row, train in enumerate(apart))
    if folds:
        return folds
    numbers = {key: number for number, key in enumerate(dict.fromkeys(tuple(sorted(row)) for row in items))}
    return _whole_groups(np.array([numbers[tuple(sorted(row))] for row in items]), n_folds, seed)


def _whole_groups(groups: NDArray[np.intp], n_folds: int, seed: int) -> list[Fold]:
    """Folds of like size, in which no group is on both sides."""
    generator = np.random.default_rng(seed)
    sizes = np.bincount(groups)
    fold_of = np.zeros(len(sizes), dtype=int)
    filled = np.zeros(n_folds)
    order = generator.permutation(np.unique(groups))
    for group in order[np.argsort(-sizes[order], kind="stable")]:  # large groups first: folds of like size
        fold_of[group] = int(np.argmin(filled))
        filled[fold_of[group]] += sizes[group]
    own = fold_of[groups]
    return _filled((np.flatnonzero(own != fold), np.flatnonzero(own == fold)) for fold in range(n_folds))


def _filled(parts: Iterable[tuple[ArrayLike, ArrayLike]]) -> list[Fold]:
    """Those with rows on both sides."""
    folds = [(np.asarray(train, dtype=np.intp), np.asarray(valid, dtype=np.intp)) for train, valid in parts]
    return [(train, valid) for train, valid in folds if len(train) and len(valid)]


# The fit.


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to fit the head, and how it did on rows that its fold had left out."""

    blocks: tuple[str, ...]
    """Which features: "base", "encoder", "words"."""
    mode: Mode
    strengths: tuple[float, ...]
    """C of each label of an answer, or alpha of its number."""
    scale: Literal["plain", "log"] = "plain"
    loss: float
    """Cross-validated log loss, or absolute error."""
    loss_error: float
    """Its standard error over rows."""
    accuracy: float | None = None
    """Cross-validated share of right answers; None for numbers."""

    @property
    def name(self) -> str:
        """In words."""
        names = {"base": "the base", "encoder": "the sentence encoder", "words": "the words"}
        *others, last = (names[block] for block in self.blocks)
        what = f"{', '.join(others)} and {last}" if others else last
        how = {
            "whole": "",
            "fields": ", an average for each field",
            "agreement": ", which says how the fields agree",
            "difference": ", difference of the two fields",
        }
        scale = ", on the logarithm" if self.scale == "log" else ""
        letter = "C" if self.accuracy is not None else "alpha"
        return f"{what}{how[self.mode]}{scale}, {letter}={' and '.join(f'{one:g}' for one in self.strengths)}"


@dataclass(kw_only=True)
class Head:
    """A fitted head: it answers by numpy alone."""

    kind: Literal["labels", "numbers"]
    blocks: tuple[str, ...]
    mode: Mode
    weights: Array
    """(features, labels), or (features, 1): standardisation is multiplied in."""
    bias: Array
    """(labels,), or (1,)."""
    labels: tuple[str, ...] = ()
    outputs: tuple[tuple[str, ...], ...] = ()
    """Of answers that hold several labels, those of each place; `labels` are all their combinations."""
    openings: tuple[tuple[int, ...], ...] = ()
    """Of a head that decides with which label an answer begins, the tokens of each; the adapter writes what follows."""
    n_adapters: int | None = None
    """So many of the model's adapters does the head read through; None: all."""
    style: NumberStyle | None = None
    scale: Literal["plain", "log"] = "plain"
    residuals: tuple[float, ...] = ()
    """Quantiles of the out-of-fold residuals, on the scale of the fit, at N_QUANTILES mid-points."""
    interval: tuple[float, float] = (0.0, 0.0)
    """The conformal interval of 90 %, as residuals on the scale of the fit."""
    bounds: tuple[float, float] = (0.0, 0.0)
    """The least and the greatest number of the training rows: no answer goes beyond."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What a reader of the saved model wants to know: the base, the rows, every candidate's figures, the shape."""

    def scores(self, blocks: Mapping[str, Array]) -> Wide:
        """(rows, labels) of log-odds, or (rows, 1)."""
        values = np.concatenate([blocks[name] for name in self.blocks], axis=1).astype(np.float64)
        result: Wide = values @ self.weights.astype(np.float64) + self.bias.astype(np.float64)
        return result

    def log_probabilities(self, blocks: Mapping[str, Array]) -> Wide:
        """(rows, labels)."""
        scores = self.scores(blocks)
        scores = scores - scores.max(axis=1, keepdims=True)
        result: Wide = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return result

    def numbers(self, blocks: Mapping[str, Array]) -> list[float]:
        """The median of each row's number."""
        return [self._value(score) for score in self.scores(blocks)[:, 0]]

    def quantiles(self, blocks: Mapping[str, Array]) -> list[list[float]]:
        """N_QUANTILES equally likely values of each row's number, rising."""
        scores = self.scores(blocks)[:, 0]
        return [[self._value(score + residual) for residual in self.residuals] for score in scores]

    def intervals(self, blocks: Mapping[str, Array]) -> list[tuple[float, float]]:
        """The interval of 90 % of each row's number."""
        low, high = self.interval
        return [(self._value(score + low), self._value(score + high)) for score in self.scores(blocks)[:, 0]]

    def values(self, scores: Wide) -> Wide:
        """The numbers that scores say, none beyond those of the training rows."""
        result: Wide = np.clip(_from_scale(scores, self.scale), *self.bounds)
        return result

    def _value(self, score: float) -> float:
        return float(self.values(np.array(score)))

    def save(self, folder: Path) -> None:
        """Write head.safetensors and, last, head.json."""
        from safetensors.numpy import save_file  # comes with the extra `local`

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"weights": np.ascontiguousarray(self.weights), "bias": np.ascontiguousarray(self.bias)}
        save_file(tensors, os.fspath(folder / "head.safetensors"))
        facts = {key: value for key, value in self.__dict__.items() if key not in ("weights", "bias")}
        facts["style"] = asdict(self.style) if self.style else None
        write_json(folder / "head.json", {"what": "base frozen, linear head", **facts})

    @classmethod
    def load(cls, folder: Path) -> Head:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        facts = json.loads((folder / "head.json").read_bytes())
        facts.pop("what")
        tensors = load_file(os.fspath(folder / "head.safetensors"))
        style = NumberStyle(**facts.pop("style")) if facts["style"] else facts.pop("style")
        for name in ("blocks", "labels", "residuals", "interval", "bounds"):
            facts[name] = tuple(facts[name])
        for name in ("outputs", "openings"):
            facts[name] = tuple(map(tuple, facts.get(name, ())))
        return cls(weights=tensors["weights"], bias=tensors["bias"], style=style, **facts)


Blocks = Mapping[str, Array]
_Tried: TypeAlias = tuple[Candidate, Wide, Wide]
"""A candidate, its out-of-fold predictions, and the loss of each row; NaN where no fold left the row out alone."""


def fit(
    task: Task,
    answers: Sequence[str],
    blocks: Mapping[Mode, Blocks],
    items: Sequence[Sequence[str]],
    *,
    sets: Sequence[tuple[str, ...]] | None = None,
    seed: int = 0,
    tell: Callable[[Candidate], None] = lambda candidate: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Head, list[Candidate]] | None:
    """Choose among all candidates by cross-validation, and fit the best to all rows.

    Args:
        task: What the answers are: labels or numbers.
        answers: One for each row.
        blocks: For each way to average, each model's features (rows, width), and those of the words; for "difference"
            the first label's field minus the second's.
        items: The texts of each row, for the folds.
        sets: Which features are tried together; default: `sets_of`.
        seed: Of the folds.
        tell: Is given the best strength of each set of features, as it is known.
        should_stop: Asked between two sets of features.

    Returns:
        The head and the candidates, best first; None where it was stopped.
    """
    # Small matrices: on two busy cores the fits of 440 rows took 53 s with the library's threads, and 9 s with one.
    with fitting("sklearn.linear_model", "local", "a head"), warnings.catch_warnings():
        # Two rows for each label are few, and still labels.
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        return _fit(task, answers, blocks, items, sets, seed, tell, should_stop)


def _fit(
    task: Task,
    answers: Sequence[str],
    blocks: Mapping[Mode, Blocks],
    items: Sequence[Sequence[str]],
    sets: Sequence[tuple[str, ...]] | None,
    seed: int,
    tell: Callable[[Candidate], None],
    should_stop: Callable[[], bool],
) -> tuple[Head, list[Candidate]] | None:
    n_rows = len(answers)
    chosen_rows = np.arange(n_rows)
    if n_rows > MAX_CV_ROWS:
        chosen_rows = np.sort(np.random.default_rng(seed).permutation(n_rows)[:MAX_CV_ROWS])
    n_folds = max(2, min(5 if n_rows <= 1000 else 3, n_rows))
    folds = folds_of([items[row] for row in chosen_rows.tolist()], n_folds, seed)
    if not folds:
        raise DataError(
            f"all {n_rows:,} prompts are the same, so that nothing tells their answers apart; "
            "check that the prompt holds the inputs"
        )
    targets = numbers_of(task.style, answers) if task.style is not None else None
    number_of = {label: number for number, label in enumerate(task.labels)}
    classes = None if targets is not None else np.array([number_of[answer] for answer in answers])
    sizes = tuple(map(len, task.outputs)) or (len(task.labels),)
    found: list[_Tried] = []
    for mode, of_mode in blocks.items():
        for names in sets or sets_of(of_mode, mode):
            if should_stop():
                return None
            values = _standardised(of_mode, names, is_centred=mode != "difference")[0][chosen_rows]
            if targets is not None:
                found += _number_candidates(values, targets[chosen_rows], folds, names, mode)
            elif classes is not None:
                found.append(_label_candidate(values, classes[chosen_rows], sizes, folds, names, mode))
            tell(min((one for one, *_ in found if one.blocks == names and one.mode == mode), key=lambda one: one.loss))
    found = _best_first(found, is_wide=targets is not None and _is_wide(targets))
    best, out_of_fold, _ = found[0]
    values, center, spread = _standardised(blocks[best.mode], best.blocks, is_centred=best.mode != "difference")
    if targets is not None:
        head = _fit_numbers(values, targets, best, out_of_fold, targets[chosen_rows])
        head.style = task.style
    else:
        assert classes is not None
        head = _fit_labels(values, classes, best, sizes)
        head.labels, head.outputs = task.labels, task.outputs
    # Standardisation goes into the weights: (x - m) / s @ w + b == x @ (w / s) + (b - m @ (w / s)).
    weights = head.weights.astype(np.float64) / spread[:, None]
    head.bias = (head.bias - center @ weights).astype(np.float32)
    head.weights = weights.astype(np.float32)
    candidates = [one for one, *_ in found]
    head.facts["candidates"] = [{"name": one.name, **asdict(one)} for one in candidates]
    return head, candidates


def _best_first(found: Sequence[_Tried], *, is_wide: bool = False) -> list[_Tried]:
    """By loss; one with words comes first only where it wins by more than the standard error of the difference.

    Words are thousands of features: on 440 news titles they were chosen by .001 to .012 of log loss, which one standard
    error is, and were right less often; where they tell the label they win by several.
    Numbers of many sizes take the logarithm likewise unless it loses by more: what the few large ones say of the
    plain scale is noise, and on it the small ones would all be answered with the same large number.
    """
    ordered = sorted(found, key=lambda one: one[0].loss)
    ordered = _first_unless_worse(ordered, lambda one: "words" not in one.blocks)
    return _first_unless_worse(ordered, lambda one: one.scale == "log") if is_wide else ordered


def _first_unless_worse(ordered: list[_Tried], is_preferred: Callable[[Candidate], bool]) -> list[_Tried]:
    """The first that is preferred in front, unless it is worse by more than the standard error of the difference."""
    best = ordered[0]
    other = next((one for one in ordered if is_preferred(one[0])), best)
    gain = (other[2] - best[2])[~np.isnan(other[2] - best[2])]
    if other is not best and float(gain.mean()) <= _standard_error(gain):
        return [other, *(one for one in ordered if one is not other)]
    return ordered


def _is_wide(targets: Wide) -> bool:
    """Whether most numbers are above zero and lie over MIN_DECADES powers of ten."""
    low, high = np.quantile(targets, [0.1, 0.9])
    return bool(low > 0 and high / low >= 10**MIN_DECADES)


def sets_of(blocks: Blocks, mode: Mode = "whole") -> list[tuple[str, ...]]:
    """The features that are tried together: each model's, the models', the encoder's with the words, and all.

    How fields agree is the encoder's to say.

    Examples:
        >>> sets_of(dict.fromkeys(["base", "encoder", "words"]))[2:]
        [('base', 'encoder'), ('encoder', 'words'), ('base', 'encoder', 'words')]
    """
    names = tuple(blocks)
    models = tuple(name for name in names if name != "words")
    alone: list[tuple[str, ...]] = [(name,) for name in models]
    joined = [models, tuple(name for name in names if name != "base"), names]
    found = dict.fromkeys([*alone, *(one for one in joined if len(one) > 1)])
    return [one for one in found if mode != "agreement" or "encoder" in one]


def _standardised(blocks: Blocks, names: Sequence[str], *, is_centred: bool) -> tuple[Wide, Wide, Wide]:
    """Features side by side over what they deviate; (values, center, spread)."""
    values = np.concatenate([blocks[name] for name in names], axis=1).astype(np.float64)
    center = values.mean(axis=0) if is_centred else np.zeros(values.shape[1])
    spread = np.sqrt(((values - center) ** 2).mean(axis=0))
    is_word = np.concatenate([np.full(blocks[name].shape[1], name == "words") for name in names])
    weight = np.concatenate([np.full(blocks[name].shape[1], WEIGHTS.get(name, 1.0)) for name in names])
    spread = np.where(spread > 1e-9, spread, np.inf) / weight  # a feature that never differs says nothing
    spread = np.where(is_word, 1 / WORDS_LENGTH, spread)
    return (values - center) / spread, center, spread


def _rotated(train: Wide) -> tuple[Wide, Wide]:
    """(rows in at most as many coordinates as rows, the turn back): a fit under an L2 penalty stays the same."""
    if train.shape[0] >= train.shape[1]:
        return train, np.eye(train.shape[1])
    values, vectors = np.linalg.eigh(train @ train.T)
    if values.max() <= 0:  # all rows are the same: there is nothing to turn, and the intercept says all
        return np.zeros((len(train), 1)), np.zeros((train.shape[1], 1))
    kept = values > max(values.max(), 1e-12) * 1e-9
    root = np.sqrt(values[kept])
    return vectors[:, kept] * root, (train.T @ vectors[:, kept]) / root


def _label_candidate(
    values: Wide, classes: NDArray[Any], sizes: tuple[int, ...], folds: Any, names: tuple[str, ...], mode: Mode
) -> _Tried:
    """Each place of the answers at its best strength; `sizes` are the places' numbers of labels."""
    parts = []
    for train, valid in folds:
        rotated, turn = _rotated(values[train])
        parts.append((train, valid, rotated, values[valid] @ turn))
    tried = [_best_strength(parts, own, size, mode) for own, size in zip(_own(classes, sizes), sizes, strict=True)]
    log_probs = _all_combinations([log_probs for _, log_probs in tried])
    if len(sizes) > 1:
        for train, valid in folds:
            log_probs[valid] += _together(classes[train], sizes)
        log_probs -= np.logaddexp.reduce(log_probs, axis=1, keepdims=True)
    measured = np.where(~np.isnan(log_probs[:, 0]))[0]
    losses = -log_probs[measured, classes[measured]]
    candidate = Candidate(
        blocks=names,
        mode=mode,
        strengths=tuple(strength for strength, _ in tried),
        loss=float(losses.mean()),
        loss_error=_standard_error(losses),
        accuracy=float((log_probs[measured].argmax(axis=1) == classes[measured]).mean()),
    )
    return candidate, log_probs, _by_row(len(classes), measured, losses)


def _best_strength(parts: Any, classes: NDArray[Any], n_labels: int, mode: Mode) -> tuple[float, Wide]:
    """(the strength with the least loss, its out-of-fold log-probabilities) of one place of the answers."""
    n_rows = len(classes)
    models = [_logistic(mode) for _ in parts]
    best: tuple[float, Wide] = (STRENGTHS[0], np.empty(0))
    least, n_worse = math.inf, 0
    for strength in STRENGTHS:  # rising: each fit starts from the one before
        log_probs = np.full((n_rows, n_labels), np.nan)
        for (train, valid, rotated, asked), model in zip(parts, models, strict=True):
            seen = np.unique(classes[train])
            # A label that this fold has never seen keeps a small share: one in the number of rows.
            probs = np.full((len(valid), n_labels), 1.0 / n_rows)
            if len(seen) > 1:
                model.set_params(C=strength)
                probs[:, seen] = model.fit(rotated, classes[train]).predict_proba(asked)
            else:
                probs[:, seen] = 1.0
            log_probs[valid] = np.log(np.clip(probs, 1e-6, None) / probs.sum(axis=1, keepdims=True))
        measured = np.where(~np.isnan(log_probs[:, 0]))[0]
        loss = float(-log_probs[measured, classes[measured]].mean())
        if loss < least:
            best, least, n_worse = (strength, log_probs), loss, 0
        else:
            n_worse += 1
            if n_worse == 2:  # weaker ones only go on rising, and are the slow ones
                break
    return best


def _own(classes: NDArray[Any], sizes: tuple[int, ...]) -> tuple[NDArray[Any], ...]:
    """The label at each place of the answers, (rows,) each; `classes` number all combinations."""
    return np.unravel_index(classes, sizes)


def _all_combinations(parts: Sequence[Wide]) -> Wide:
    """The sum of one column of each part, for all combinations, the last part's fastest: (rows, product of widths)."""
    return functools.reduce(lambda one, other: (one[:, :, None] + other[:, None, :]).reshape(len(one), -1), parts)


def _together(classes: NDArray[Any], sizes: tuple[int, ...]) -> Wide:
    """For each combination of labels, the logarithm of how much more often it comes than by chance, (combinations,)."""
    n_rows = len(classes)
    counts = np.bincount(classes, minlength=math.prod(sizes))
    shares = [
        (np.bincount(own, minlength=size) + 1) / (n_rows + size)
        for own, size in zip(_own(classes, sizes), sizes, strict=True)
    ]
    by_chance = np.exp(_all_combinations([np.log(one)[None] for one in shares])[0])
    result: Wide = np.log((counts + TOGETHER_ROWS * by_chance) / (n_rows + TOGETHER_ROWS) / by_chance)
    return result


def _by_row(n_rows: int, measured: NDArray[Any], losses: Wide) -> Wide:
    result = np.full(n_rows, np.nan)
    result[measured] = losses
    return result


def _standard_error(values: Wide) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def _logistic(mode: Mode, strength: float = 1.0) -> Any:
    from sklearn.linear_model import LogisticRegression  # takes a second to import, and only training needs it

    has_intercept = mode != "difference"
    return LogisticRegression(C=strength, fit_intercept=has_intercept, max_iter=500, tol=1e-4, warm_start=True)


def _fit_labels(values: Wide, classes: NDArray[Any], best: Candidate, sizes: tuple[int, ...]) -> Head:
    rotated, turn = _rotated(values)
    weights, biases = [], []
    for own, size, strength in zip(_own(classes, sizes), sizes, best.strengths, strict=True):
        model = _logistic(best.mode, strength).fit(rotated, own)
        weight, bias = turn @ model.coef_.T, np.atleast_2d(model.intercept_).astype(float)
        if size == 2:  # one column of log-odds becomes two of half its size: the same probabilities
            weight, bias = np.concatenate([-weight, weight], axis=1) / 2, np.concatenate([-bias, bias], axis=1) / 2
        weights.append(weight)
        biases.append(bias if best.mode != "difference" else np.zeros((1, size)))
    bias = _all_combinations(biases)[0]
    return Head(
        kind="labels",
        blocks=best.blocks,
        mode=best.mode,
        weights=_all_combinations(weights).astype(np.float32),
        bias=(bias + _together(classes, sizes) if len(sizes) > 1 else bias).astype(np.float32),
    )


def _number_candidates(values: Wide, targets: Wide, folds: Any, names: tuple[str, ...], mode: Mode) -> list[_Tried]:
    scales: list[Literal["plain", "log"]] = ["plain", "log"] if targets.min() > -1 else ["plain"]
    predicted = {scale: np.full((len(RIDGES), len(targets)), np.nan) for scale in scales}
    for train, valid in folds:
        rotated, turn = _rotated(values[train])
        asked = values[valid] @ turn
        for scale in scales:
            for index, alpha in enumerate(RIDGES):
                weights, bias = _ridge(rotated, to_scale(targets[train], scale), alpha)
                predicted[scale][index, valid] = asked @ weights + bias
    found = []
    for scale in scales:
        measured = np.where(~np.isnan(predicted[scale][0]))[0]
        wanted = to_scale(targets[measured], scale)
        shifts = np.median(wanted - predicted[scale][:, measured], axis=1, keepdims=True)
        answers = _from_scale(predicted[scale][:, measured] + shifts, scale)
        errors = np.abs(np.clip(answers, targets.min(), targets.max()) - targets[measured])
        best = int(errors.mean(axis=1).argmin())
        candidate = Candidate(
            blocks=names,
            mode=mode,
            strengths=(RIDGES[best],),
            scale=scale,
            loss=float(errors[best].mean()),
            loss_error=_standard_error(errors[best]),
        )
        found.append((candidate, predicted[scale][best], _by_row(len(targets), measured, errors[best])))
    return found


def _ridge(values: Wide, targets: Wide, alpha: float) -> tuple[Wide, float]:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=alpha).fit(values, targets)
    return model.coef_, float(model.intercept_)


def _fit_numbers(values: Wide, targets: Wide, best: Candidate, out_of_fold: Wide, measured_targets: Wide) -> Head:
    rotated, turn = _rotated(values)
    weights, bias = _ridge(rotated, to_scale(targets, best.scale), best.strengths[0])
    measured = ~np.isnan(out_of_fold)
    residuals = np.sort(to_scale(measured_targets[measured], best.scale) - out_of_fold[measured])
    shift = float(np.median(residuals))
    residuals = residuals - shift
    middles = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
    # Conformal: the k-th smallest of n residuals with k = ceil((n + 1) p), so that coverage is at least the level.
    n = len(residuals)
    low = residuals[max(0, math.floor((n + 1) * 0.05) - 1)]
    high = residuals[min(n - 1, math.ceil((n + 1) * 0.95) - 1)]
    return Head(
        kind="numbers",
        blocks=best.blocks,
        mode=best.mode,
        weights=(turn @ weights)[:, None].astype(np.float32),
        bias=np.array([bias + shift], dtype=np.float32),
        scale=best.scale,
        residuals=tuple(float(value) for value in np.quantile(residuals, middles)),
        interval=(float(low), float(high)),
        bounds=(float(targets.min()), float(targets.max())),
    )


def to_scale(values: Wide, scale: str) -> Wide:
    """Numbers on the scale of a fit."""
    result: Wide = np.log1p(values) if scale == "log" else values
    return result


def _from_scale(values: Wide, scale: str) -> Wide:
    result: Wide = np.expm1(np.clip(values, None, 50.0)) if scale == "log" else values
    return result
