"""`rank`: an order of many items, with scores and intervals, from a predictor that prefers one of two.

In: items and a pairwise predictor, or any program that answers A or B. Out: a `Ranking`. The pairs are chosen as the
answers come in, where they tell most, so that far fewer are asked than there are; with a checkpoint, a run that was
killed goes on without asking twice. Needs the extra `ranking`.
Not covered: more than a few thousand items (the covariance of all scores is kept in memory), several judges at once
(make them an `Ensemble`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import dspy
import numpy as np

from dspy_finetune._files import AppendLog, HeldLog
from dspy_finetune._optional import fitting, require
from dspy_finetune.errors import DataError, UsageError
from dspy_finetune.predictors.ask import (
    PARSE_FAILURES,
    in_threads,
    labels_of,
    output_of,
    read_answer,
    read_shares,
)
from dspy_finetune.predictors.pairwise import ItemScorePredictor, sides
from dspy_finetune.report.blocks import Facts, Section, Table
from dspy_finetune.report.page import Reported
from dspy_finetune.values import match_label

# Scores from comparisons (Bradley-Terry with a term for the first place), and which pair to ask next.
#
# In: who stood first, who second, and the probability that the first is preferred. Out: `Fit`: scores with their
# covariance. The model (Bradley and Terry, 1952; Davidson and Beaver, 1977, for the place):
#
#     log-odds(first preferred) = score[first] - score[second] + position
#
# with a normal prior on each score. It is a logistic regression, and scikit-learn's is the solver: choix and evalica,
# which fit the plain model, have no term for the place. On comparisons without one the tests hold it against choix.

PRIOR_DEVIATION = 3.0
"""Of a score, in log-odds: weak, but it keeps an item that won everything finite."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Scores of items 0 to n - 1, in log-odds, with mean 0."""

    scores: Any  # (n,)
    """The scores."""
    covariance: Any  # (n, n)
    """Of the scores."""
    position: float | None
    """What standing first adds, in log-odds; None where it was not fitted."""


@fitting("sklearn.linear_model", "ranking", "rank(items, predictor)")
def fit(n_items: int, comparisons: Sequence[tuple[int, int, float]], *, has_position: bool) -> Fit:
    """Fit (first, second, probability that the first is preferred); there must be at least one comparison."""
    feature = "rank(items, predictor)"
    sparse = require("scipy.sparse", "ranking", feature)
    linear = require("sklearn.linear_model", "ranking", feature)
    first, second, share = (np.array(column) for column in zip(*comparisons, strict=True))
    n = len(share)
    rows, ones = np.arange(n), np.ones(n)
    design = sparse.csr_matrix((ones, (rows, first)), (n, n_items + has_position))
    design -= sparse.csr_matrix((ones, (rows, second)), design.shape)
    if has_position:
        design += sparse.csr_matrix((ones, (rows, np.full(n, n_items))), design.shape)
    # A probability is a win and a loss, weighted. newton-cg: 15 times as fast as lbfgs at 100 items, and more exact.
    weights = np.concatenate([share, 1.0 - share])
    told = weights > 0
    outcomes = np.concatenate([ones, 0 * ones])
    if len(set(outcomes[told])) < 2:  # whoever stood first always won or always lost: the solver wants both outcomes
        told[:] = True
    model = linear.LogisticRegression(
        C=PRIOR_DEVIATION**2, fit_intercept=False, solver="newton-cg", max_iter=1000, tol=1e-6
    )
    model.fit(sparse.vstack([design, design]).tocsr()[told], outcomes[told], weights[told])
    values = model.coef_[0]
    expected = 1.0 / (1.0 + np.exp(-(design @ values)))
    information = (design.T @ sparse.diags(expected * (1.0 - expected)) @ design).toarray()
    # The curvature: enough to choose pairs by. How sure the scores are, `posterior` says.
    covariance = np.linalg.inv(information + np.eye(len(values)) / PRIOR_DEVIATION**2)
    centre = np.eye(n_items) - 1.0 / n_items
    scores = values[:n_items]
    return Fit(
        scores=scores - scores.mean(),
        covariance=centre @ covariance[:n_items, :n_items] @ centre,
        position=float(values[n_items]) if has_position else None,
    )


def first_pairs(n_items: int, generator: random.Random) -> list[tuple[int, int]]:
    """A ring through all items in random order: each stands in two pairs, once first and once second."""
    order = list(range(n_items))
    generator.shuffle(order)
    if n_items == 2:
        return [(order[0], order[1])]
    return [(order[place], order[(place + 1) % n_items]) for place in range(n_items)]


def next_pairs(
    found: Fit, asked: Counter[tuple[int, int]], n_pairs: int, n_orders: int, generator: random.Random
) -> list[tuple[int, int]]:
    """The pairs that tell most, each item in one pair of a round, most telling first.

    What a comparison tells is p (1 - p) times the variance of the difference of the two scores: the larger, the more
    the determinant of the covariance shrinks. A pair is asked at most once in each of `n_orders` orders; the item that
    has stood first less often is put first.
    """
    n_items = len(found.scores)
    low, high = np.triu_indices(n_items, k=1)
    variance = found.covariance.diagonal()
    spread = variance[low] + variance[high] - 2.0 * found.covariance[low, high]
    share = 1.0 / (1.0 + np.exp(found.scores[high] - found.scores[low]))
    # Rounded, so that equal gains are equal on every machine; the order of the pairs then decides.
    order = np.argsort(-np.round(share * (1.0 - share) * spread, 9), kind="stable")
    n_first = Counter(first for first, _ in asked.elements())
    used: set[int] = set()
    pairs: list[tuple[int, int]] = []
    for place in order:
        one, two = int(low[place]), int(high[place])
        open_orders = [pair for pair in ((one, two), (two, one)) if not asked[pair]]
        if one in used or two in used or len(open_orders) <= 2 - n_orders:
            continue
        balance = {pair: n_first[pair[0]] - n_first[pair[1]] for pair in open_orders}
        best = min(balance.values())
        pairs.append(generator.choice([pair for pair in open_orders if balance[pair] == best]))
        used |= {one, two}
        if len(pairs) == n_pairs:
            break
    return pairs


# How sure a ranking is: scores and their deviations given the comparisons, with the spread of the scores unknown.
#
# In: comparisons, and the `Fit` to start from. Out: `Posterior`. The curvature at the fitted scores, the usual way to
# an interval, fails here: pairs are chosen where the fit is in doubt, so a spread that was fitted too wide is never
# corrected, and in simulations intervals of 95 % covered 62 % of the true scores. Here the scores' spread is unknown
# and is averaged over, which bounds what choosing the pairs can do: the comparisons that were not asked say nothing
# about the answers (the likelihood principle), given that the spread is right.
#
# The model is the one above with scores from a normal distribution whose deviation has a half-Cauchy prior
# of scale 2 (Gelman 2006). It is averaged by Gibbs sampling with Polya-gamma weights (Polson, Scott and Windle 2013),
# whose infinite sum is cut after 40 terms with the mean of the rest added. Answers that are probabilities tell more
# than a toss of a coin: their weight is 1 / phi, phi being the Pearson dispersion of the fit (quasi-likelihood,
# McCullagh and Nelder 1989, chapter 9), at most 1. Reported are means of the conditional means and covariances rather
# than of the draws, so that the noise of the sampling is small.

SPREAD_SCALE = 2.0
"""Of the half-Cauchy prior of the scores' deviation, in log-odds."""

_TERMS = 40
_SPREADS = (0.05, 12.0, 100)  # the grid of deviations that are averaged over: from, to, how many
_LEAST_DISPERSION = 1e-3


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Scores of items 0 to n - 1, in log-odds, with mean 0."""

    scores: Any  # (n,)
    """Their means."""
    deviations: Any  # (n,)
    """Their standard deviations."""
    position: float | None
    """What standing first adds, in log-odds; None where it was not fitted."""
    position_deviation: float | None
    """Its standard deviation."""


@fitting("scipy.sparse", "ranking", "rank(items, predictor)")
def posterior(comparisons: Sequence[tuple[int, int, float]], found: Fit, seed: int) -> Posterior:
    """Average over what the comparisons leave open.

    Args:
        comparisons: (first, second, probability that the first is preferred), as `fit` was given.
        found: What `fit` made of them.
        seed: Of the sampling.
    """
    sparse = require("scipy.sparse", "ranking", "rank(items, predictor)")
    generator = np.random.default_rng(seed)
    n, has_position = len(found.scores), found.position is not None
    first, second, share = (np.array(column) for column in zip(*comparisons, strict=True))
    rows, ones = np.arange(len(share)), np.ones(len(share))
    cells = [(first, ones), (second, -ones)] + [(np.full(len(share), n), ones)] * has_position
    columns, entries = (np.concatenate(part) for part in zip(*cells, strict=True))
    places = (np.tile(rows, len(cells)), columns)
    design = sparse.csr_matrix((entries, places), (len(share), n + has_position))  # (comparisons, unknowns)
    values = np.array(found.scores if found.position is None else [*found.scores, found.position])
    weight = 1.0 / _dispersion(design @ values, share, n)
    pull = design.T @ (weight * (share - 0.5))
    spreads = np.geomspace(*_SPREADS)
    spread_prior = -np.log1p((spreads / SPREAD_SCALE) ** 2) - (n - 1) * np.log(spreads)  # on the log scale
    spread = max(float(values[:n].std()), _SPREADS[0])
    centre = np.eye(n) - 1.0 / n
    # Each draw inverts a matrix as large as there are items: fewer draws for many items, which need no more.
    n_draws = min(300, max(60, 20_000_000 // n**2))
    means: list[Any] = []
    variances: list[Any] = []
    for draw in range(-(n_draws // 5), n_draws):
        omega = _polya_gamma(generator, weight, design @ values)
        precision = (design.T @ sparse.diags(omega) @ design).toarray()
        prior = np.full(n + has_position, PRIOR_DEVIATION**-2.0)
        prior[:n] = spread**-2.0
        covariance = np.linalg.inv(precision + np.diag(prior))
        mean = covariance @ pull
        values = mean + np.linalg.cholesky(covariance) @ generator.standard_normal(len(mean))
        chances = spread_prior - 0.5 * float(values[:n] @ values[:n]) / spreads**2
        chances = np.exp(chances - chances.max())
        spread = float(generator.choice(spreads, p=chances / chances.sum()))
        if draw >= 0:
            middle = centre @ covariance[:n, :n] @ centre
            means.append(np.append(mean[:n] - mean[:n].mean(), mean[n:]))
            variances.append(np.append(middle.diagonal(), covariance.diagonal()[n:]))
    scores = np.mean(means, axis=0)
    deviations = np.sqrt(np.mean(variances, axis=0) + np.var(means, axis=0))
    return Posterior(
        scores=scores[:n],
        deviations=deviations[:n],
        position=float(scores[n]) if has_position else None,
        position_deviation=float(deviations[n]) if has_position else None,
    )


def _dispersion(odds: Any, share: Any, n_items: int) -> float:
    """Phi: 1 for answers in words, below where probabilities scatter less around the fit than tosses would."""
    if ((share == 0.0) | (share == 1.0)).all():
        return 1.0
    expected = 1.0 / (1.0 + np.exp(-odds))
    scatter = float(((share - expected) ** 2 / (expected * (1.0 - expected))).sum())
    # The prior is weak: nearly every item uses up one comparison's freedom.
    return min(1.0, max(_LEAST_DISPERSION, scatter / max(len(share) - n_items, 1)))


def _polya_gamma(generator: np.random.Generator, weight: float, odds: Any) -> Any:
    """A draw of PG(weight, odds) for each comparison."""
    places = np.arange(1, _TERMS + 1)[:, None] - 0.5
    gammas = generator.standard_gamma(weight, size=(_TERMS, len(odds)))
    terms = gammas / (places**2 + (odds / (2.0 * math.pi)) ** 2)
    rest = weight / _TERMS  # the sum of weight / place**2 over the places that were left out
    return (terms.sum(axis=0) + rest) / (2.0 * math.pi**2)


FORMAT = 1
"""Version of the checkpoint file."""


@dataclass(frozen=True, kw_only=True)
class RankedItem:
    """One item's place."""

    item: Any
    """As it was given."""
    index: int
    """Its place among the items given, from 0."""
    rank: int
    """1 for the best."""
    score: float
    """In log-odds; the mean over all items is 0. A difference of 1 is a preference of 73 %."""
    low: float
    """Lower end of the score's interval; -inf where items are scored one by one, which says nothing of it."""
    high: float
    """Upper end."""
    n_comparisons: int
    """How many readable comparisons it stood in; 0 where items are scored one by one."""


@dataclass(frozen=True, kw_only=True)
class Ranking(Reported):
    """The items in order, the best first."""

    items: tuple[RankedItem, ...]
    """Best first; equal scores in the order given."""
    level: float
    """Of the intervals, such as 0.95."""
    position_bias: tuple[float, float, float] | None
    """What standing first adds, in log-odds, as (estimate, low, high); None where both orders were asked."""
    n_comparisons: int
    """Comparisons asked in all, those from the checkpoint included; where items are scored one by one, the items."""
    n_parse_failures: int
    """Of them, those whose answer could not be read; they count against the budget and say nothing."""
    n_resumed: int
    """Of them, those that came from the checkpoint."""
    n_pairs: int
    """How many pairs there are: what a full round robin would ask."""

    @property
    def order(self) -> list[Any]:
        """The items themselves, best first."""
        return [one.item for one in self.items]

    def __str__(self) -> str:
        scores = (f"{one.rank}. {one.item} ({one.score:+.2f})" for one in self.items)
        return "\n".join([*scores, self._head()])

    def section(self) -> Section:
        """The blocks of a report: the items in order with their scores, and what was asked."""
        rows = tuple(
            (str(one.rank), str(one.item), f"{one.score:+.2f}", _ends(one), f"{one.n_comparisons:,}")
            for one in self.items
        )
        head = ("rank", "item", "score, log-odds", f"{self.level:.0%} interval", "comparisons")
        facts = {"answers that could not be read": f"{self.n_parse_failures:,}", "resumed": f"{self.n_resumed:,}"}
        if self.position_bias is not None:
            estimate, low, high = self.position_bias
            facts["standing first adds"] = f"{estimate:+.2f} [{low:+.2f}, {high:+.2f}] log-odds"
        return Section(
            title="Ranking",
            verdict=self._head(),
            blocks=(Table(head=head, rows=rows, label="Items, best first", holds_text=True), Facts(facts=facts)),
        )

    def _head(self) -> str:
        return f"{len(self.items):,} items, {self.n_comparisons:,} questions, where all pairs are {self.n_pairs:,}"


def _ends(one: RankedItem) -> str:
    return f"{one.low:+.2f} to {one.high:+.2f}" if math.isfinite(one.low) else ""


def rank(
    items: Sequence[Any],
    predictor: Callable[..., Any],
    *,
    budget: int | None = None,
    seed: int = 0,
    fields: Mapping[str, str] | None = None,
    output: str | None = None,
    level: float = 0.95,
    checkpoint: str | os.PathLike[str] | None = None,
    num_threads: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> Ranking:
    """Rank items by asking which of two is preferred.

    The first comparisons go once round all items in random order; then, round by round, the pairs are asked whose
    answer tells most. Where the predictor asks both orders itself (`PairwisePredictor(both_orders=True)`), a comparison
    is two requests and has no position bias; otherwise each item stands first about as often as second, and the bias is
    fitted as a term of the model. The same items, answers and seed give the same ranking.

    A predictor of `PairwisePredictor.from_scores` is asked once about each item, and its scores are the ranking:
    without intervals, without the extra, and without a budget. An item whose score cannot be read has the mean of the
    others.

    Args:
        items: Texts, or mappings or examples with the fields of one side (`title` for `title_a` and `title_b`).
        predictor: A `PairwisePredictor`, or any program that takes the fields of both sides by name.
        budget: The most comparisons that are asked; by default 2 n log2(n), and never more than there are.
        seed: Of the first order and of ties.
        fields: {"title_a": "title_b"}: for programs that are not pairwise predictors.
        output: The field that holds the answer, for programs that do not tell; its first label, or "A", is the first
            item.
        level: Of the intervals. They speak of the judge's own order, not of whether the judge is right.
        checkpoint: A JSONL file that keeps each answer as it comes; an existing one is continued. Functions look
            alike to it: take another file after changing one.
        num_threads: Concurrent calls.
        on_progress: Called with (comparisons so far, comparisons planned) after each round.

    Raises:
        UsageError: Fewer than two items, the same item twice, a budget below the number of items, unknown fields, a
            level that is none.
        DataError: The checkpoint is of other items, another predictor or another seed; or no answer could be read.
        FileError: The checkpoint cannot be read or written.
        MissingExtraError: The extra `ranking` is not installed.
    """
    if not 0.0 < level < 1.0:
        raise UsageError(f"level must be above 0 and below 1, such as 0.95; found {level}")
    items = list(items)
    pairs = dict(fields) if fields is not None else _fields_of(predictor)
    rows = _rows(items, pairs)
    if isinstance(predictor, ItemScorePredictor):
        return _scored(items, rows, predictor, level, checkpoint, num_threads, on_progress)
    n = len(rows)
    # Both orders in one comparison leave one to ask of each pair, otherwise there are two.
    n_orders = 1 if getattr(predictor, "both_orders", False) else 2
    most = n_orders * n * (n - 1) // 2
    planned = min(most, math.ceil(2 * n * math.log2(n)) if budget is None else budget)
    if planned < min(n, most):
        raise UsageError(f"budget: at least {min(n, most)} comparisons, once round all items; got {budget}")
    judge = _Judge(predictor, rows, pairs, output_of([predictor], output))
    generator = random.Random(seed)
    comparisons: list[tuple[int, int, float]] = []
    asked: Counter[tuple[int, int]] = Counter()
    n_parse_failures = n_resumed = 0
    batch = first_pairs(n, generator)
    with (
        _opened(checkpoint, _digest(rows, pairs, seed, predictor)) as kept,
        dspy.context(disable_history=True, trace=None),
    ):
        while batch:
            new = [pair for pair in batch if pair not in kept.answers]
            n_resumed += len(batch) - len(new)
            in_threads(lambda pair: kept.keep(pair, judge(pair)), new, num_threads)
            asked.update(batch)
            for pair in batch:
                share = kept.answers[pair]
                if share is None:
                    n_parse_failures += 1
                else:
                    comparisons.append((*pair, share))
            if not comparisons:
                raise DataError(f"none of {len(batch)} comparisons could be read: check the predictor on one pair")
            found = fit(n, comparisons, has_position=n_orders == 2)
            if on_progress is not None:
                on_progress(asked.total(), planned)
            # Half the items' pairs at a time: small enough to learn from, large enough for the threads.
            size = min(max(n // 2, 1), planned - asked.total())
            batch = next_pairs(found, asked, size, n_orders, generator) if size > 0 else []
    sure = posterior(comparisons, found, seed)
    return _ranking(items, sure, comparisons, level, asked.total(), n_parse_failures, n_resumed)


def _scored(
    items: Sequence[Any],
    rows: Sequence[dict[str, Any]],
    predictor: ItemScorePredictor,
    level: float,
    checkpoint: str | os.PathLike[str] | None,
    num_threads: int,
    on_progress: Callable[[int, int], None] | None,
) -> Ranking:
    """The order by the predictor's own scores: one call for each item."""

    def ask(index: int) -> None:
        try:
            score = predictor.item_score(**{name.removesuffix("_a"): value for name, value in rows[index].items()})
        except PARSE_FAILURES:
            score = None
        kept.keep((index, index), score)

    pairs = sides(predictor.prompt)
    with (
        _opened(checkpoint, _digest(rows, pairs, 0, predictor)) as kept,
        dspy.context(disable_history=True, trace=None),
    ):
        new = [index for index in range(len(rows)) if (index, index) not in kept.answers]
        in_threads(ask, new, num_threads)
    if on_progress is not None:
        on_progress(len(rows), len(rows))
    told = [score for score in kept.answers.values() if score is not None]
    if not told:
        raise DataError(f"none of {len(rows)} items has a score: check the predictor and its host's log-probabilities")
    mean = sum(told) / len(told)
    scores = [(0.0 if (score := kept.answers[index, index]) is None else score - mean) for index in range(len(rows))]
    return Ranking(
        items=_in_order(items, scores, [math.inf] * len(rows), Counter()),
        level=level,
        position_bias=None,
        n_comparisons=len(rows),
        n_parse_failures=len(rows) - len(told),
        n_resumed=len(rows) - len(new),
        n_pairs=math.comb(len(items), 2),
    )


def _in_order(
    items: Sequence[Any], scores: Sequence[float], spans: Sequence[float], counts: Mapping[int, int]
) -> tuple[RankedItem, ...]:
    """The items, best first, each with an interval of its span to either side of its score."""
    order = sorted(range(len(items)), key=lambda index: (-scores[index], index))
    return tuple(
        RankedItem(
            item=items[index],
            index=index,
            rank=place,
            score=scores[index],
            low=scores[index] - spans[index],
            high=scores[index] + spans[index],
            n_comparisons=counts[index],
        )
        for place, index in enumerate(order, start=1)
    )


def _ranking(
    items: Sequence[Any],
    found: Posterior,
    comparisons: Sequence[tuple[int, int, float]],
    level: float,
    n_asked: int,
    n_parse_failures: int,
    n_resumed: int,
) -> Ranking:
    z = NormalDist().inv_cdf(0.5 + level / 2)
    scores = [float(score) for score in found.scores]
    spans = [z * float(deviation) for deviation in found.deviations]
    counts = Counter(index for first, second, _ in comparisons for index in (first, second))
    position = None
    if found.position is not None and found.position_deviation is not None:
        span = z * found.position_deviation
        position = (found.position, found.position - span, found.position + span)
    return Ranking(
        items=_in_order(items, scores, spans, counts),
        level=level,
        position_bias=position,
        n_comparisons=n_asked,
        n_parse_failures=n_parse_failures,
        n_resumed=n_resumed,
        n_pairs=math.comb(len(items), 2),
    )


# -- asking ---------------------------------------------------------------------------------------------------------


class _Judge:
    """Asks the predictor about a pair of item numbers: the probability that the first is preferred, or None."""

    def __init__(self, predictor: Any, rows: Sequence[dict[str, Any]], pairs: dict[str, str], output: str) -> None:
        self.predictor = predictor
        self.rows = rows
        self.pairs = pairs
        self.output = output
        self.labels = labels_of([predictor]) or ("A", "B")

    def __call__(self, pair: tuple[int, int]) -> float | None:
        inputs = {
            name: self.rows[index][first]
            for first, second in self.pairs.items()
            for name, index in ((first, pair[0]), (second, pair[1]))
        }
        try:
            prediction = self.predictor(**inputs)
            label = match_label(read_answer(prediction, self.output), self.labels)
            shares = read_shares(prediction)
        except PARSE_FAILURES:
            return None
        for key, share in (shares or {}).items():
            if match_label(key, self.labels) == self.labels[0]:
                return share
        if prediction.get("is_tie", False):
            return 0.5
        return None if label is None else float(label == self.labels[0])


def _fields_of(predictor: Any) -> dict[str, str]:
    if not hasattr(predictor, "prompt"):
        raise UsageError('fields: name the fields of the two sides, such as fields={"title_a": "title_b"}')
    return sides(predictor.prompt)


def _rows(items: Sequence[Any], pairs: dict[str, str]) -> list[dict[str, Any]]:
    """Each item as {field of the first side: value}."""
    rows: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        if isinstance(item, str):
            if len(pairs) != 1:
                raise UsageError(f"items: texts fit one field, here there are {', '.join(pairs)}; give mappings")
            rows.append({next(iter(pairs)): item})
            continue
        row = {}
        for first in pairs:
            if not isinstance(item, (Mapping, dspy.Example)):
                raise UsageError(f"items: item {number} is {item!r:.60}; give texts, mappings or examples")
            name = first if first in item else first.removesuffix("_a")
            if name not in item:
                raise UsageError(f'items: item {number} has no field "{name}"')
            row[first] = item[name]
        rows.append(row)
    if len(rows) < 2:
        raise UsageError(f"items: at least two are needed, got {len(rows)}")
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        before = seen.setdefault(json.dumps(row, sort_keys=True, default=str), number)
        if before != number:
            raise UsageError(f"items: items {before} and {number} are the same; give each once")
    return rows


# -- the checkpoint -------------------------------------------------------------------------------------------------


class _Kept:
    """The answers so far, and the file that keeps them."""

    def __init__(self) -> None:
        self.answers: dict[tuple[int, int], float | None] = {}
        self.log: HeldLog | None = None
        self.lock = threading.Lock()

    def keep(self, pair: tuple[int, int], share: float | None) -> None:
        with self.lock:
            self.answers[pair] = share
            if self.log is not None:
                self.log.append({"first": pair[0], "second": pair[1], "share": share})


def _digest(rows: Sequence[dict[str, Any]], pairs: dict[str, str], seed: int, predictor: Any) -> str:
    # What a plain function does cannot be told.
    state = predictor.dump_state() if isinstance(predictor, dspy.Module) else None
    return hashlib.sha256(json.dumps([rows, pairs, seed, state], sort_keys=True, default=str).encode()).hexdigest()


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str] | None, digest: str) -> Iterator[_Kept]:
    kept = _Kept()
    if path is None:
        yield kept
        return
    with AppendLog(path, "checkpoint").hold() as log:
        _read(log, digest, kept)
        kept.log = log
        if log.is_new:
            log.append({"format": FORMAT, "digest": digest})
        yield kept


def _read(log: HeldLog, digest: str, kept: _Kept) -> None:
    path = log.log.path
    for number, row in log.rows():
        if number == 1:
            if not isinstance(row, dict) or row.get("format") != FORMAT or row.get("digest") != digest:
                raise DataError(
                    f"{path} is not the checkpoint of these items and this seed, asked of this predictor; "
                    "choose another file"
                )
            continue
        try:
            kept.answers[int(row["first"]), int(row["second"])] = None if row["share"] is None else float(row["share"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}:{number}: not a line of a checkpoint; choose another file") from error
