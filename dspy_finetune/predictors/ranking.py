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
from pathlib import Path
from statistics import NormalDist
from typing import Any, BinaryIO

import dspy

from dspy_finetune._files import file_error, read_jsonl
from dspy_finetune.errors import DataError, UsageError
from dspy_finetune.predictors.pairwise import sides
from dspy_finetune.predictors.ranking_fit import first_pairs, fit, next_pairs
from dspy_finetune.predictors.ranking_posterior import Posterior, posterior
from dspy_finetune.predictors.reading import (
    UNREADABLE,
    in_threads,
    labels_of,
    match_label,
    output_of,
    read_answer,
    read_shares,
)

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
    """Lower end of the score's interval."""
    high: float
    """Upper end."""
    n_comparisons: int
    """How many readable comparisons it stood in."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The items in order, the best first."""

    items: tuple[RankedItem, ...]
    """Best first; equal scores in the order given."""
    level: float
    """Of the intervals, such as 0.95."""
    position_bias: tuple[float, float, float] | None
    """What standing first adds, in log-odds, as (estimate, low, high); None where both orders were asked."""
    n_comparisons: int
    """Comparisons asked in all, those from the checkpoint included."""
    n_unreadable: int
    """Of them, those whose answer could not be read; they count against the budget and say nothing."""
    n_resumed: int
    """Of them, those that came from the checkpoint."""
    n_pairs: int
    """How many pairs there are: what a full round robin would ask."""

    @property
    def order(self) -> list[Any]:
        """The items themselves, best first."""
        return [one.item for one in self.items]


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
    n_threads: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> Ranking:
    """Rank items by asking which of two is preferred.

    The first comparisons go once round all items in random order; then, round by round, the pairs are asked whose
    answer tells most. Where the predictor asks both orders itself (`PairwisePredictor(both_orders=True)`), a comparison
    is two requests and has no lean to a place; otherwise each item stands first about as often as second, and the lean
    is fitted as a term of the model. The same items, answers and seed give the same ranking.

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
        n_threads: Calls at the same time.
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
    n_unreadable = n_resumed = 0
    batch = first_pairs(n, generator)
    with (
        _opened(checkpoint, _digest(rows, pairs, seed, predictor)) as kept,
        dspy.context(disable_history=True, trace=None),
    ):
        while batch:
            new = [pair for pair in batch if pair not in kept.answers]
            n_resumed += len(batch) - len(new)
            in_threads(lambda pair: kept.keep(pair, judge(pair)), new, n_threads)
            asked.update(batch)
            for pair in batch:
                share = kept.answers[pair]
                if share is None:
                    n_unreadable += 1
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
    return _ranking(items, sure, comparisons, level, asked.total(), n_unreadable, n_resumed)


def _ranking(
    items: Sequence[Any],
    found: Posterior,
    comparisons: Sequence[tuple[int, int, float]],
    level: float,
    n_asked: int,
    n_unreadable: int,
    n_resumed: int,
) -> Ranking:
    z = NormalDist().inv_cdf(0.5 + level / 2)
    scores = [float(score) for score in found.scores]
    spans = [z * float(deviation) for deviation in found.deviations]
    counts = Counter(index for first, second, _ in comparisons for index in (first, second))
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    position = None
    if found.position is not None and found.position_deviation is not None:
        span = z * found.position_deviation
        position = (found.position, found.position - span, found.position + span)
    return Ranking(
        items=tuple(
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
        ),
        level=level,
        position_bias=position,
        n_comparisons=n_asked,
        n_unreadable=n_unreadable,
        n_resumed=n_resumed,
        n_pairs=len(items) * (len(items) - 1) // 2,
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
        except UNREADABLE:
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
        self.stream: BinaryIO | None = None
        self.lock = threading.Lock()

    def keep(self, pair: tuple[int, int], share: float | None) -> None:
        with self.lock:
            self.answers[pair] = share
            self.write({"first": pair[0], "second": pair[1], "share": share})

    def write(self, row: dict[str, Any]) -> None:
        if self.stream is not None:
            self.stream.write(json.dumps(row).encode() + b"\n")
            self.stream.flush()  # a crash of this process loses nothing


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
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            _read(target, digest, kept)
        stream = target.open("ab")
    except OSError as error:
        raise file_error(error, path, "write") from error
    with stream:
        kept.stream = stream
        if not stream.tell():
            kept.write({"format": FORMAT, "digest": digest})
        yield kept


def _read(path: Path, digest: str, kept: _Kept) -> None:
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):  # the last line was torn by a crash
        os.truncate(path, content.rfind(b"\n") + 1)
    for number, row in read_jsonl(path):
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
