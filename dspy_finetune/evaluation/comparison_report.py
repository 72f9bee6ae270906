"""`ComparisonReport`: a comparison that says its verdict, prints its table, and writes itself as HTML, Markdown, JSON.

In: a `Comparison`, a title, cards of facts about the data and the prompts. Out: texts and files, by blocks that
`report/` renders. Beside its tables it shows confusion, position, length and price bias, probabilities, numbers and
items. A number is *near* within a share of the true one or a fixed distance of it, whichever is wider, *fair* within
twice that, and *far* beyond. By default that is 20 % or 40 and 40 % or 80, as usual for prices in dollars. Points of
ROC, precision-recall and calibration curves are scikit-learn's. Not covered: how the figures came about (compare.py,
scoring.py), how pictures are drawn (report/plots.py).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from dspy_finetune._files import read_json, write_json
from dspy_finetune._optional import require
from dspy_finetune.errors import AnswerError, DataError
from dspy_finetune.evaluation.collect import Answer
from dspy_finetune.evaluation.metrics import read_probability
from dspy_finetune.evaluation.scoring import (
    Comparison,
    Difference,
    PairwiseBias,
    ProgramRow,
    Verdict,
    number_in,
    pairwise_bias,
)
from dspy_finetune.evaluation.statistics import Interval, mcnemar, mean_interval
from dspy_finetune.report import page, plots
from dspy_finetune.report.blocks import (
    MISSING,
    Block,
    Bullets,
    Curves,
    Facts,
    Heading,
    Item,
    ItemList,
    Plot,
    Plots,
    Said,
    Section,
    Table,
    Text,
    as_text,
    count,
    figure,
    p_text,
    with_interval,
)
from dspy_finetune.report.plots import Training, loss_curves
from dspy_finetune.tasks import sides_of
from dspy_finetune.values import label_text, same_label, shown_label

Band: TypeAlias = Literal["near", "fair", "far"]
"""How far off a number is."""

NEAR = (0.2, 40.0)
"""(share of the true number, distance in its own unit): near is within the wider of the two."""

MAX_POINTS = 2000
"""Points in a scatter plot: more would only cover one another."""

MAX_LABELS = 8
"""Labels that a confusion table holds at most."""

POSITION_BIAS = "position_bias"
"""The field in which a prediction that was asked in both orders says what the first place added."""
MIN_POSITION_BIAS = 0.01
"""A smaller one moves no answer that is worth a word; a linear head's is 0 but for rounding."""
_BOTH_ORDERS = "export_sft(..., both_orders=True), or `dspy-finetune export --both-orders`"

# Shapes, so that the bands can be told apart without colour.
_LOOKS: dict[Band, tuple[str, str]] = {"near": (plots.GOOD, "o"), "fair": (plots.FAIR, "^"), "far": (plots.BAD, "x")}


def answer_text(answer: Answer, field: str | None) -> str:
    """What a program said, or what became of the question."""
    if answer.outcome != "answered":
        return answer.outcome.replace("_", " ")
    value = answer.outputs.get(field) if field is not None else None
    if isinstance(value, float):
        # More digits tell nothing beside a label; small numbers keep theirs.
        return (
            f"{value:.{4 if abs(value) < 100 else 2}f}".rstrip("0").rstrip(".") if abs(value) >= 1 else f"{value:.6g}"
        )
    return str(value if value is not None else ", ".join(f"{name}: {one}" for name, one in answer.outputs.items()))


def confusion(comparison: Comparison) -> Table | None:
    """The candidate's answers by label, for up to eight labels; None for free text and numbers."""
    field = comparison.field
    if field is None or any(field not in item.labels for item in comparison.items):
        return None
    shown = {label_text(item.labels[field]): shown_label(item.labels[field]) for item in comparison.items}
    labels = sorted(shown)
    if len(labels) > MAX_LABELS or len(labels) == len(comparison.items):
        return None
    counts: Counter[tuple[str, str]] = Counter()
    for item, answer in zip(comparison.items, comparison.answers[comparison.candidate], strict=True):
        said = (
            answer.outcome.replace("_", " ") if answer.outcome != "answered" else label_text(answer.outputs.get(field))
        )
        if answer.outcome == "answered" and said not in labels:
            said = "another"
        counts[label_text(item.labels[field]), said] += 1
    columns = labels + [
        one for one in ("another", "parse failure", "no answer", "failed") if any(said == one for _, said in counts)
    ]
    totals = {label: sum(counts[label, column] for column in columns) for label in labels}
    return Table(
        head=("label", *(f"said {shown.get(column, column)}" for column in columns)),
        rows=tuple((shown[label], *(str(counts[label, column]) for column in columns)) for label in labels),
        shares=tuple(tuple(counts[label, column] / totals[label] for column in columns) for label in labels),
        label="Confusion",
    )


def bias_table(comparison: Comparison) -> Table | None:
    """For pairs: how often each program, and the labels, prefer the first, the longer and the higher-priced side."""
    field = comparison.field
    sides = _pair_fields(comparison)
    if field is None or sides is None:
        return None
    texts = [[str(item.inputs[side]) for item in comparison.items] for side in sides]
    prices = [[{**item.labels, **item.inputs}.get(f"price_{side}") for item in comparison.items] for side in "ab"]
    has_prices = any(one is not None for one in prices[0])

    def measured(choices: Sequence[Any]) -> PairwiseBias:
        known = [one if one is not None and label_text(one) in {"a", "b"} else None for one in choices]
        return pairwise_bias(
            texts[0],
            texts[1],
            known,
            prices_a=prices[0] if has_prices else None,
            prices_b=prices[1] if has_prices else None,
            confidence=comparison.confidence,
        )

    found = {"(the labels)": measured([item.labels.get(field) for item in comparison.items])}
    for name, answers in comparison.answers.items():
        found[name] = measured([answer.outputs.get(field) for answer in answers])
    added = first_place_adds(comparison)
    rows = []
    for name, one in found.items():
        cells = [name, with_interval(one.prefers_first), with_interval(one.prefers_longer)]
        if has_prices:
            cells.append(MISSING if one.prefers_more_expensive is None else with_interval(one.prefers_more_expensive))
        if added:
            cells.append(with_interval(added[name], sign=True) if name in added else MISSING)
        rows.append(tuple(cells))
    head = (
        "program",
        "prefers the first",
        "prefers the longer",
        *(["prefers the higher price"] if has_prices else []),
        *(["first place adds"] if added else []),
    )
    return Table(head=head, rows=tuple(rows), label="Bias", marked=comparison.candidate)


def first_place_adds(comparison: Comparison) -> dict[str, Interval]:
    """For each program that was asked in both orders what the first place adds to a text's probability, on average."""
    found = {}
    for name, answers in comparison.answers.items():
        values = _position_biases(answers)
        if len(values) > 1:
            found[name] = mean_interval(values, comparison.confidence)
    return found


def position_findings(comparison: Comparison) -> dict[str, str]:
    """For each pairwise program whose answers depend on the place of a text, a sentence that says so and what helps.

    Asked in one order: the exact McNemar test of the choices against the labels, which may prefer a side themselves.
    Asked in both: whether the interval of what the first place adds leaves out 0. Both corrected by Bonferroni.
    """
    field = comparison.field
    if field is None or _pair_fields(comparison) is None:
        return {}
    added = first_place_adds(comparison)
    limit = (1 - comparison.confidence) / max(len(comparison.answers), 1)
    wanted = [label_text(item.labels.get(field)) == "a" for item in comparison.items]
    findings = {}
    for name, answers in comparison.answers.items():
        if name in added:
            one = mean_interval(_position_biases(answers), 1 - limit)
            if one.value is None or one.low is None or one.high is None or abs(one.value) < MIN_POSITION_BIAS:
                continue
            if one.low * one.high > 0:
                findings[name] = (
                    f"{name} gives the {'first' if one.value > 0 else 'second'} text {abs(one.value):.3f} more for its "
                    "place. Asking in both orders averages that away; to train it away, write both orders "
                    f"({_BOTH_ORDERS}) or compare scores of single items (PairwisePredictor.from_scores)."
                )
            continue
        said = [(label_text(answer.outputs.get(field)), right) for answer, right in zip(answers, wanted, strict=True)]
        said = [(side, right) for side, right in said if side in ("a", "b")]
        to_first = sum(side == "a" and not right for side, right in said)
        to_second = sum(side == "b" and right for side, right in said)
        p = mcnemar(to_first, to_second)
        if p < limit:
            share, own = (sum(values) / len(said) for values in ([s == "a" for s, _ in said], [r for _, r in said]))
            findings[name] = (
                f"{name} prefers the first text in {share:.0%} of {len(said):,} pairs, the labels in {own:.0%} "
                f"(p {_p(p)}): a position bias. Ask in both orders (PairwisePredictor(..., both_orders=True)), "
                f"train on both ({_BOTH_ORDERS}), or compare scores of single items (PairwisePredictor.from_scores)."
            )
    return findings


def _position_biases(answers: Sequence[Answer]) -> list[float]:
    told = [answer.outputs.get(POSITION_BIAS) for answer in answers if answer.outcome == "answered"]
    return [float(one) for one in told if isinstance(one, (int, float))]


def _p(value: float | None) -> str:
    text = p_text(value)
    return text if text.startswith("<") else f"= {text}"


def _pair_fields(comparison: Comparison) -> tuple[str, str] | None:
    """The two texts that are compared; prices beside them are none."""
    pairs = [pair for pair in sides_of(comparison.items[0].inputs).items() if pair[0] != "price_a"]
    return pairs[0] if len(pairs) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One answer that is a number."""

    index: int
    """The item, from 0."""
    truth: float
    """The label."""
    predicted: float
    """What the program said."""
    band: Band
    """How far off that is."""

    @property
    def absolute_error(self) -> float:
        """Distance between the two, in the label's unit."""
        return abs(self.predicted - self.truth)


def band(truth: float, predicted: float, near: tuple[float, float] = NEAR) -> Band:
    """How far off a number is.

    >>> [band(100, one) for one in (139, 179, 181)], band(1000, 1190)
    (['near', 'fair', 'far'], 'near')
    """
    margin = max(near[0] * abs(truth), near[1])
    error = abs(predicted - truth)
    return "near" if error <= margin else "fair" if error <= 2 * margin else "far"


def guesses(comparison: Comparison, program: str, near: tuple[float, float] = NEAR) -> list[Guess]:
    """A program's answers that are numbers, in the order of the items; empty where the labels are none."""
    field = comparison.number_field
    found: list[Guess] = []
    if field is None:
        return found
    for index, (item, answer) in enumerate(zip(comparison.items, comparison.answers[program], strict=True)):
        if answer.outcome != "answered" or field not in answer.outputs:
            continue
        truth, predicted = number_in(item.labels[field]), number_in(answer.outputs[field])
        if truth is not None and predicted is not None:
            found.append(Guess(index=index, truth=truth, predicted=predicted, band=band(truth, predicted, near)))
    return found


def band_counts(of: Sequence[Guess]) -> dict[Band, int]:
    """How many are near, fair and far."""
    return {name: sum(guess.band == name for guess in of) for name in _LOOKS}


def band_table(comparison: Comparison, near: tuple[float, float]) -> Table | None:
    """How many numbers of each program are near, fair and far; None where the labels are no numbers."""
    rows = []
    for row in comparison.programs:
        found = guesses(comparison, row.name, near)
        if found:
            rows.append((row.name, *(f"{n:,}" for n in band_counts(found).values())))
    head = ("program", "near", "fair", "far")
    return Table(head=head, rows=tuple(rows), label="Near and far", marked=comparison.candidate) if rows else None


def scatter(comparison: Comparison, program: str, name: str, near: tuple[float, float] = NEAR) -> str | None:
    """A program's numbers against the true ones, coloured by how far off they are; on the same axes for all drawn."""
    found = guesses(comparison, program, near)
    shown = found[:: math.ceil(len(found) / MAX_POINTS) or 1]
    dots = [
        plots.Dots(
            label=f"{one}: {n}",
            colour=_LOOKS[one][0],
            marker=_LOOKS[one][1],
            points=[(guess.truth, guess.predicted) for guess in shown if guess.band == one],
        )
        for one, n in band_counts(found).items()
    ]
    field = comparison.number_field or ""
    drawn = {program: found} | {one: guesses(comparison, one, near) for one in _in_scatters(comparison)}
    values = [value for one in drawn.values() for guess in one for value in (guess.truth, guess.predicted)]
    span = (min(values), max(values)) if values else None
    return plots.scatter(name, dots, (f"true {field}", f"predicted {field}"), span=span)


def _in_scatters(comparison: Comparison) -> list[str]:
    """The candidate, and the program that it has to beat."""
    return list(dict.fromkeys(one for one in (comparison.candidate, comparison.reference) if one is not None))


def probabilities(comparison: Comparison) -> dict[str, list[tuple[float, float]]]:
    """Per program: (1.0 where the positive label is true, else 0.0; its probability), for the items that have one."""
    field = comparison.field
    found: dict[str, list[tuple[float, float]]] = {}
    if field is None or comparison.positive is None:
        return found
    for name, answers in comparison.answers.items():
        pairs = []
        for item, answer in zip(comparison.items, answers, strict=True):
            share = positive_share(answer, comparison.positive, field)
            if share is not None and field in item.labels:
                pairs.append((float(same_label(item.labels[field], comparison.positive)), share))
        if pairs:
            found[name] = pairs
    return found


def positive_share(answer: Answer, positive: Any, field: str) -> float | None:
    """The probability of the positive label in an answer; None where it gives none."""
    try:
        return read_probability(answer.outputs, positive, field) if answer.outcome == "answered" else None
    except AnswerError:
        return None


def _sklearn(module: str) -> Any:
    return require(f"sklearn.{module}", "eval", "curves of probabilities")


def roc_points(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(false, true positive rate) at every threshold, from (0, 0) to (1, 1); empty with one label only."""
    if len({truth for truth, _ in pairs}) < 2:
        return []
    false, true, _ = _sklearn("metrics").roc_curve(*zip(*pairs, strict=True), drop_intermediate=False)
    return list(zip(false.tolist(), true.tolist(), strict=True))


def precision_recall_points(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(recall, precision) at every threshold, from the highest on; empty without positives."""
    if not any(truth for truth, _ in pairs):
        return []
    precision, recall, _ = _sklearn("metrics").precision_recall_curve(*zip(*pairs, strict=True))
    # scikit-learn ends with the point (0, 1), which no threshold gives.
    return list(zip(recall.tolist(), precision.tolist(), strict=True))[-2::-1]


def reliability(pairs: Sequence[tuple[float, float]], n_bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean probability, share that was positive, items) of each bin of equal width that holds any."""
    if not pairs:
        return []
    truth, shares = (np.asarray(column, dtype=float) for column in zip(*pairs, strict=True))
    was, said = _sklearn("calibration").calibration_curve(truth, shares, n_bins=n_bins, strategy="uniform")
    edges = np.linspace(0.0, 1.0, n_bins + 1)[1:-1]  # scikit-learn's bins, whose sizes it does not tell
    sizes = np.bincount(np.searchsorted(edges, shares), minlength=n_bins)
    return list(zip(said.tolist(), was.tolist(), sizes[sizes > 0].tolist(), strict=True))


def roc(comparison: Comparison, name: str) -> str | None:
    """ROC curves of all programs that give probabilities."""
    return _curves(comparison, name, roc_points, ("false positive rate", "true positive rate"), ((0, 1), (0, 1)))


def precision_recall(comparison: Comparison, name: str) -> str | None:
    """Precision-recall curves of all programs that give probabilities; chance is the share of positives."""
    pairs = next(iter(probabilities(comparison).values()), [])
    share = sum(truth for truth, _ in pairs) / len(pairs) if pairs else 0.0

    def from_recall_0(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        points = precision_recall_points(pairs)
        return [(0.0, points[0][1]), *points] if points else []

    return _curves(comparison, name, from_recall_0, ("recall", "precision"), ((0, 1), (share, share)))


def _curves(
    comparison: Comparison,
    name: str,
    points: Callable[[Sequence[tuple[float, float]]], list[tuple[float, float]]],
    axis_names: tuple[str, str],
    chance: tuple[tuple[float, float], tuple[float, float]],
) -> str | None:
    curves = [(one, _place(comparison, one), points(pairs)) for one, pairs in probabilities(comparison).items()]
    return plots.unit_curves(name, curves, axis_names, chance=chance)


def _place(comparison: Comparison, program: str) -> int:
    return [row.name for row in comparison.programs].index(program)


def histogram(comparison: Comparison, name: str) -> str | None:
    """The candidate's probabilities, apart for the items where the positive label is true and where it is not."""
    pairs = probabilities(comparison).get(comparison.candidate, [])
    groups = {
        f"label is {comparison.positive}": [share for truth, share in pairs if truth == 1.0],
        "label is another": [share for truth, share in pairs if truth == 0.0],
    }
    return plots.histogram(name, groups, f"probability of {comparison.positive}")


def calibration(comparison: Comparison, name: str) -> str | None:
    """How often the positive label was true, against the candidate's probability, in bins of equal width."""
    pairs = probabilities(comparison).get(comparison.candidate, [])
    return plots.reliability_diagram(name, reliability(pairs), f"mean probability of {comparison.positive}")


def pictures(comparison: Comparison, near: tuple[float, float]) -> tuple[Plot, ...]:
    """All pictures of a comparison, each with a caption and a text that says the same.

    In three columns, filled in this order, they leave no hole: the low ones of numbers stand above one another, and
    those of labels above and below the tall ones.
    """
    return (
        *_scores(comparison),
        *_probabilities(comparison),
        *_spending(comparison),
        *_scatters(comparison, near),
    )


def scores(comparison: Comparison, name: str) -> str | None:
    """The programs' figures by the first metric, with their intervals; an empty row where one has none."""
    rows = [(row.name, row.scores[comparison.main_metric.name]) for row in comparison.programs]
    if all(one.value is None for _, one in rows):
        return None
    drawn = [(label, one.value, one.low, one.high) for label, one in rows]
    return plots.intervals(name, drawn, comparison.main_metric.name, zero=False)


def differences(comparison: Comparison, name: str) -> str | None:
    """Forest plot: candidate minus each other program by the first metric."""
    metric = comparison.main_metric.name
    drawn = [
        (f"− {one.other}", one.interval.value, one.interval.low, one.interval.high)
        for one in comparison.differences_of(metric)
        if one.interval.value is not None
    ]
    return plots.intervals(name, drawn, f"difference in {metric}", zero=True)


def latency(comparison: Comparison, name: str) -> str | None:
    """Each program's time of one call, from the median to the 95th percentile."""
    rows = [
        (one.name, place, one.latency_p50_ms, one.latency_p95_ms or one.latency_p50_ms)
        for place, one in enumerate(comparison.programs)
        if one.latency_p50_ms is not None
    ]
    return plots.latencies(name, rows)


def cost(comparison: Comparison, name: str) -> str | None:
    """What a thousand answers of each program cost, for those whose price was given."""
    rows = [
        (one.name, place, 1000 * one.cost_usd / one.n)
        for place, one in enumerate(comparison.programs)
        if one.cost_usd is not None
    ]
    return plots.bars(name, rows, "USD for 1,000 answers")


def _scores(comparison: Comparison) -> Iterator[Plot]:
    candidate, metric = comparison.candidate, comparison.main_metric.name
    percent = f"{comparison.confidence:.0%}"
    better_side = "Right" if comparison.main_metric.higher_is_better else "Left"
    yield Plot(
        name="scores",
        draw=partial(scores, comparison),
        caption=f"{metric[:1].upper()}{metric[1:]} of each program with its {percent} interval.",
        alt="; ".join(f"{row.name} {with_interval(row.scores[metric])}" for row in comparison.programs),
    )
    yield Plot(
        name="forest",
        draw=partial(differences, comparison),
        caption=f"{candidate} minus each other program, with the intervals that the verdicts rest on. "
        f"{better_side} of zero the candidate is better.",
        alt="; ".join(
            f"against {one.other} {with_interval(one.interval, sign=True)}" for one in comparison.differences_of(metric)
        ),
    )


def _scatters(comparison: Comparison, near: tuple[float, float]) -> Iterator[Plot]:
    """Predicted against true, of the candidate and of the program it has to beat."""
    rule = f"within {near[0]:.0%} or {near[1]:g} of the true number, whichever is wider"
    for place, name in enumerate(_in_scatters(comparison)):
        found = guesses(comparison, name, near)
        if not found:
            continue
        counts = band_counts(found)
        caption = (
            f"{name}: predicted against true. Green dots are near ({rule}), orange triangles within twice that, red "
            f"crosses farther off."
        )
        left = comparison.row(name).n - len(found)
        if left:
            caption += f" {left:,} answers that are no numbers are not shown."
        if len(found) > MAX_POINTS:
            caption += f" Every {math.ceil(len(found) / MAX_POINTS)}th answer is shown."
        alt = (
            f"Of {len(found):,} answers {counts['near']:,} ({counts['near'] / len(found):.0%}) are near, "
            f"{counts['fair']:,} fair, {counts['far']:,} far"
        )
        yield Plot(
            name=f"scatter{place}-", draw=partial(scatter, comparison, name, near=near), caption=caption, alt=alt
        )


def mean_share(pairs: Sequence[tuple[float, float]], wanted: float) -> float:
    """The mean probability of the items whose truth is `wanted`, 1.0 or 0.0; NaN without any."""
    shares = [share for truth, share in pairs if truth == wanted]
    return math.fsum(shares) / len(shares) if shares else math.nan


def _probabilities(comparison: Comparison) -> Iterator[Plot]:
    candidate = comparison.candidate
    pairs = probabilities(comparison)
    if not pairs:
        return
    own = pairs.get(candidate, [])
    means = [
        f"{mean_share(own, truth):.2f} on average where the label is {what}"
        for truth, what in ((1.0, str(comparison.positive)), (0.0, "another"))
        if any(one == truth for one, _ in own)
    ]
    yield Plot(
        name="roc",
        draw=partial(roc, comparison),
        caption="ROC curves: at every threshold, the positives found against the negatives taken for positives.",
        alt=f"ROC curves of {', '.join(pairs)}",
    )
    yield Plot(
        name="recall",
        draw=partial(precision_recall, comparison),
        caption="Precision-recall curves: at every threshold, how many of the items named are right, against how many "
        "of the right ones are named. The flat line is chance.",
        alt=f"Precision-recall curves of {', '.join(pairs)}",
    )
    yield Plot(
        name="histogram",
        draw=partial(histogram, comparison),
        caption=f"{candidate}'s probabilities, by what the label says.",
        alt=f"Histogram of {candidate}'s probabilities: {', '.join(means)}",
    )
    yield Plot(
        name="calibration",
        draw=partial(calibration, comparison),
        caption=f"Calibration of {candidate}: on the diagonal, probabilities come true as often as they say. "
        "Larger dots hold more items.",
        alt="Calibration: "
        + "; ".join(f"said {said:.2f}, was {was:.2f} (n = {n})" for said, was, n in reliability(own)),
    )


def _spending(comparison: Comparison) -> Iterator[Plot]:
    rows = comparison.programs
    yield Plot(
        name="latency",
        draw=partial(latency, comparison),
        caption="Time of one answer: the dot is the median, the line ends at the 95th percentile. Waiting for a busy "
        "server counts; answers from a cache and each program's first, which may load its model, are left out.",
        alt="; ".join(f"{one.name} {count(one.latency_p50_ms)} ms" for one in rows),
    )
    yield Plot(
        name="cost",
        draw=partial(cost, comparison),
        caption="Cost of answering, by the prices given. Training is not in it.",
        alt="; ".join(f"{one.name} {1000 * one.cost_usd / one.n:.4f} USD" for one in rows if one.cost_usd is not None),
    )


def item_list(comparison: Comparison, near: tuple[float, float] = NEAR) -> ItemList:
    """The items with all answers, those on which the programs disagree first."""
    field = comparison.field
    metric = next((one.name for one in comparison.metrics if one.kind != "set"), None)
    scored = comparison.item_scores.get(metric, {}) if metric is not None else {}
    names = [row.name for row in comparison.programs]
    numbers = {name: {one.index: one for one in guesses(comparison, name, near)} for name in names}

    def said(name: str, index: int) -> Said:
        answer, guess = comparison.answers[name][index], numbers[name].get(index)
        detail = answer.error or ""
        if guess is not None:
            detail = f"off by {figure(guess.absolute_error)}"
        elif not detail:
            detail = _probability(answer, comparison.positive, field)
        mark = guess.band if guess is not None else _mark(answer, scored[name][index] if name in scored else None)
        return Said(text=answer_text(answer, field)[:400], detail=detail, mark=mark)

    def disputed(index: int) -> bool:
        # A failed call is no opinion; two numbers differ where one is nearer than the other by a band.
        given = [name for name in names if comparison.answers[name][index].outcome != "failed"]
        bands = [numbers[name][index].band if index in numbers[name] else None for name in given]
        texts = [answer_text(comparison.answers[name][index], field) for name in given]
        return len({text if one is None else one for text, one in zip(texts, bands, strict=True)}) > 1

    items = [
        Item(
            number=index + 1,
            is_disputed=disputed(index),
            inputs=tuple(str(value) for value in item.inputs.values()),
            label=_label_text(item.labels.get(field, "")) if field is not None else "",
            answers=tuple(said(name, index) for name in names),
        )
        for index, item in enumerate(comparison.items)
    ]
    return ItemList(
        inputs=tuple(comparison.items[0].inputs),
        programs=tuple(names),
        items=tuple(sorted(items, key=lambda one: (not one.is_disputed, one.number))),
    )


def _label_text(label: Any) -> str:
    """A label as people read it: several answers that are right stand beside each other."""
    return " / ".join(map(str, label)) if isinstance(label, (list, tuple)) else str(label)


def _probability(answer: Answer, positive: Any, field: str | None) -> str:
    share = positive_share(answer, positive, field) if field is not None and positive is not None else None
    return "" if share is None else f"p({positive}) {share:.2f}"


def _mark(answer: Answer, score: float | None) -> str:
    if answer.outcome != "answered":
        return "none"
    return {1.0: "right", 0.0: "wrong"}.get(-1.0 if score is None else score, "plain")


def errors(comparison: Comparison) -> list[str]:
    """Why answers are missing: the five most frequent messages of each program."""
    found: list[str] = []
    for name, answers in comparison.answers.items():
        counts = Counter((answer.outcome, answer.error or "") for answer in answers if answer.outcome != "answered")
        found += [
            f"{name}, {outcome.replace('_', ' ')} {n} ×: {message}" for (outcome, message), n in counts.most_common(5)
        ]
    return found


@dataclass(frozen=True, kw_only=True)
class ComparisonReport(page.Reported):
    """The outcome of `compare`: numbers, a verdict, and the ways to show them."""

    comparison: Comparison
    """All numbers, answers and items."""
    title: str = "Comparison"
    """Heading of the report, or of its section in a report on several tasks."""
    cards: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Facts to show below the numbers, such as {"Data": {"source": "titles.jsonl"}, "Prompt": {"system": "..."}}."""
    training: Curves = field(default_factory=dict)
    """Losses of the training: a name, and its rows of (step, loss)."""
    near: tuple[float, float] = NEAR
    """For numbers: (share of the true one, distance in its unit); an answer is near within the wider of the two."""

    def annotated(
        self,
        *,
        title: str | None = None,
        cards: Mapping[str, Mapping[str, str]] | None = None,
        training: Training | None = None,
        near: tuple[float, float] | None = None,
    ) -> ComparisonReport:
        """The same report with more to show; the numbers stay.

        Args:
            title: Its heading.
            cards: Facts to show in it, such as {"Data": {"source": "titles.jsonl"}}; what the items and the prompts
                tell by themselves stays behind them.
            training: Losses to show in it: a name, and a `Job` or rows of (step, loss).
            near: For numbers: (share of the true one, distance in its unit); an answer within the wider of the two
                counts as near, within twice that as fair.

        Raises:
            HostError: A job in `training` cannot be asked for its figures.
        """
        merged = {name: dict(card) for name, card in (cards or {}).items()}
        for name, card in self.cards.items():
            merged[name] = {**merged.get(name, {}), **{k: v for k, v in card.items() if k not in merged.get(name, {})}}
        return dataclasses.replace(
            self,
            title=self.title if title is None else title,
            cards=merged,
            training=self.training if training is None else loss_curves(training),
            near=self.near if near is None else near,
        )

    @property
    def verdict(self) -> str:
        """The finding in one or two sentences."""
        return verdict_sentence(self.comparison)

    @property
    def outcome(self) -> Verdict | None:
        """The finding in one word, seen from the candidate; None with a single program."""
        decisive = self.comparison.decisive
        return decisive.verdict if decisive is not None else None

    @property
    def exit_code(self) -> Literal[0, 1, 3, 4]:
        """For a gate in CI: 0 better or equivalent (or nothing to compare with), 3 undecided, 4 worse.

        1 where a program was not compared because its calls failed.
        """
        if self.comparison.not_compared:
            return 1
        if self.outcome == "worse":
            return 4
        return 3 if self.outcome == "undecided" else 0

    @property
    def rows(self) -> tuple[ProgramRow, ...]:
        """One line per program."""
        return self.comparison.programs

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Candidate minus each other program, with intervals and p-values."""
        return self.comparison.differences

    def table(self) -> str:
        """The table as aligned plain text, for a terminal."""
        return as_text(program_table(self.comparison))

    def __str__(self) -> str:
        return f"{self.title}\n{self.table()}\n{self.verdict}"

    def section(self) -> Section:
        """The blocks that the report consists of, for a page of several."""
        return Section(
            title=self.title,
            verdict=self.verdict,
            outcome=self.outcome,
            blocks=tuple(_blocks(self)),
            training=self.training,
            not_checked=self.comparison.not_checked,
        )

    def html(self, *, training: Training | None = None) -> str:
        """The report as one HTML page, by default with its own loss curves.

        Raises:
            MissingExtraError: The extra `report` is not installed.
            HostError: A job in `training` cannot be asked for its figures.
        """
        return page.render([self.section()], title=self.title, training=training)

    def to_html(self, path: str | os.PathLike[str], *, training: Training | None = None) -> None:
        """Write one self-contained HTML file. Raises FileError, and as `html`."""
        page.write_text(path, self.html(training=training))

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with every item and answer."""
        return {
            "title": self.title,
            "verdict": self.verdict,
            "cards": {name: dict(card) for name, card in self.cards.items()},
            "training": {name: [list(row) for row in rows] for name, rows in self.training.items()},
            "near": list(self.near),
            "comparison": self.comparison.to_dict(),
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON; `from_json` reads it back. Raises FileError."""
        write_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ComparisonReport:
        """From what `to_dict` gave. Raises DataError when it is something else."""
        if not isinstance(values, Mapping) or not {"title", "cards", "comparison"} <= set(values):
            raise DataError('this is not a report: it has no "title", "cards" and "comparison"')
        try:
            share, distance = values.get("near", NEAR)
            training = loss_curves(values.get("training", {}))
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f'this is not a report: "near" or "training" cannot be read ({error})') from error
        return cls(
            comparison=Comparison.from_dict(values["comparison"]),
            title=values["title"],
            cards=values["cards"],
            training=training,
            near=(float(share), float(distance)),
        )

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> ComparisonReport:
        """Read a report that `to_json` wrote.

        Raises:
            FileError: The file cannot be read.
            DataError: It holds something else.
        """
        values = read_json(path, "a report", "`compare` writes one by `to_json` or `--json-out`")
        try:
            return cls.from_dict(values)
        except DataError as error:
            raise DataError(f"{os.fspath(path)}: {error}") from error


def _blocks(report: ComparisonReport) -> Iterator[Block]:
    comparison = report.comparison
    yield program_table(comparison)
    yield Text(text=footnote(comparison), is_note=True)
    yield Plots(plots=pictures(comparison, report.near))
    for title, table, note in _tables(report):
        if table is not None:
            yield Heading(text=title)
            yield table
            if note:
                yield Text(text=note, is_note=True)
    biased = position_findings(comparison)
    if biased:
        yield Bullets(lines=tuple(biased.values()))
    missing = errors(comparison)
    if missing:
        yield Heading(text="Why answers are missing")
        yield Bullets(lines=tuple(missing))
    yield item_list(comparison, report.near)
    for name, card in report.cards.items():
        yield Heading(text=name)
        yield Facts(facts=card)


def _tables(report: ComparisonReport) -> Iterator[tuple[str, Table | None, str]]:
    comparison, near = report.comparison, report.near
    if comparison.differences:
        yield f"Differences: {comparison.candidate} minus …", difference_table(comparison), ""
    yield (
        "Near and far",
        band_table(comparison, near),
        f"Near is within {near[0]:.0%} or {near[1]:g} of the true number, whichever is wider; fair within twice that; "
        "far beyond.",
    )
    yield f"What {comparison.candidate} said, by label", confusion(comparison), ""
    yield "By parts of the items", subgroup_table(comparison), ""
    yield (
        "Each program against itself",
        noise_table(comparison),
        "A difference between two programs that is no larger than a program's own may be mere noise.",
    )
    yield (
        "Position, length and price bias",
        bias_table(comparison),
        "0.5 is no bias. A preference for the longer text is a fault only as far as it exceeds the labels' own.",
    )


def program_table(comparison: Comparison) -> Table:
    """One row per program, with the columns that hold anything."""
    rows, percent = comparison.programs, f"{comparison.confidence:.0%}"
    has_tokens = any(row.prompt_tokens is not None for row in rows)
    columns = [  # name, cells, whether they hold anything
        ("program", [row.name for row in rows], True),
        *(
            (f"{metric.name} [{percent}]", [with_interval(row.scores[metric.name]) for row in rows], True)
            for metric in comparison.metrics
        ),
        ("n", [count(row.n) for row in rows], True),
        ("wrong", [count(row.n_wrong) for row in rows], any(row.n_wrong is not None for row in rows)),
        ("parse failures", [count(row.n_parse_failures) for row in rows], True),
        ("no answer", [count(row.n_no_answer) for row in rows], any(row.n_no_answer for row in rows)),
        ("failed", [count(row.n_failed) for row in rows], True),
        ("unjudged", [count(sum(row.n_unjudged.values())) for row in rows], any(row.n_unjudged for row in rows)),
        ("seconds", [f"{row.seconds:,.1f}" for row in rows], True),
        ("ms p50", [count(row.latency_p50_ms) for row in rows], True),
        ("ms p95", [count(row.latency_p95_ms) for row in rows], True),
        ("from cache", [count(row.n_cached) for row in rows], any(row.n_cached for row in rows)),
        ("tokens in", [count(row.prompt_tokens) for row in rows], has_tokens),
        ("tokens out", [count(row.completion_tokens) for row in rows], has_tokens),
        (
            "USD",
            [MISSING if row.cost_usd is None else f"{row.cost_usd:.4f}" for row in rows],
            any(row.cost_usd is not None for row in rows),
        ),
    ]
    shown = [(name, cells) for name, cells, holds_any in columns if holds_any]
    return Table(
        head=tuple(name for name, _ in shown),
        rows=tuple(zip(*(cells for _, cells in shown), strict=True)),
        label="Scores",
        marked=comparison.candidate,
    )


def difference_table(comparison: Comparison) -> Table:
    """One row per difference: candidate minus other."""
    head = ("candidate minus", "metric", "difference [interval]", "level", "p", "p (Holm)", "test", "verdict")
    rows = tuple(
        (
            one.other,
            one.metric,
            with_interval(one.interval, sign=True),
            _percent(one.confidence),
            p_text(one.p_value),
            p_text(one.p_holm),
            one.test if one.p_value is not None else MISSING,
            one.verdict,
        )
        for one in comparison.differences
    )
    return Table(head=head, rows=rows, label="Differences")


def subgroup_table(comparison: Comparison) -> Table | None:
    """One row per part of the items: each program's figure, and candidate minus reference; None without parts."""
    if not comparison.subgroups:
        return None
    names = [row.name for row in comparison.programs]
    head = ("part", "n", *names, "difference [interval]", "level", "p (Holm)")
    rows = tuple(
        (
            f"{one.field}: {one.value}",
            count(one.n),
            *(with_interval(one.scores[name]) if name in one.scores else MISSING for name in names),
            MISSING if one.difference is None else with_interval(one.difference, sign=True),
            MISSING if one.p_holm is None else _percent(one.confidence),
            p_text(one.p_holm),
        )
        for one in comparison.subgroups
    )
    return Table(head=head, rows=rows, label="Parts", has_long_names=True)


def noise_table(comparison: Comparison) -> Table | None:
    """One row per program that was asked twice; None where none was."""
    if not comparison.noise_floor:
        return None
    percent = f"{comparison.confidence:.0%}"
    head = ("program", "asked twice", "answers that changed", f"second minus first [{percent}]", "remark")
    rows = tuple(
        (
            one.program,
            count(one.n),
            count(one.n_changed),
            with_interval(one.difference, sign=True),
            "from a cache: not measured" if one.is_from_cache else MISSING,
        )
        for one in comparison.noise_floor
    )
    return Table(head=head, rows=rows, label="Noise floor", marked=comparison.candidate)


def verdict_sentence(comparison: Comparison) -> str:
    """The finding, with what it rests on and what follows."""
    failed = [f"{name} was not compared: {why}." for name, why in comparison.not_compared.items()]
    biased = position_findings(comparison).get(comparison.candidate)
    return " ".join(filter(None, (*failed, _finding(comparison), *_hardly_read(comparison), biased, comparison.advice)))


def _hardly_read(comparison: Comparison) -> Iterator[str]:
    """What the difference rests on where a side mostly could not be read, or did not always answer."""
    for row in comparison.programs:
        if row.name not in (comparison.candidate, comparison.reference) or row.name in comparison.not_compared:
            continue
        if row.n_parse_failures > row.n / 2:
            yield (
                f"Most answers of {row.name} could not be read ({row.n_parse_failures} of {row.n} are parse failures): "
                "its figures say so, not how good its answers are."
            )
        if row.n_no_answer:
            yield _no_answers(comparison, row)
        told = _unanswered(comparison, row)
        if told:
            yield told


def _no_answers(comparison: Comparison, row: ProgramRow) -> str:
    """How often the model gave none, and the first time why: a limit that is too low is soon raised."""
    first = next(one for one in comparison.answers[row.name] if one.outcome == "no_answer")
    why = f"; the first: {first.error}" if first.error else ""
    beyond = " Its figures say so, not how good its answers are." if row.is_mostly_silent else ""
    return f"{row.name} gave no answer to {row.n_no_answer} of {row.n} items{why}.{beyond}"


def _unanswered(comparison: Comparison, row: ProgramRow) -> str:
    """What the figure makes of items without an answer: it may be better for them."""
    metric, n_out = comparison.main_metric, row.n_failed + row.n_parse_failures + row.n_no_answer
    n_scored = row.scores[metric.name].n
    if n_out and n_scored < row.n:
        return (
            f"{metric.name} leaves out {row.n - n_scored} of {row.n} items of {row.name}, which have no answer or one "
            "that could not be read: it does not say how good it is on those."
        )
    if n_out and metric.kind == "set":
        return (
            f"{n_out} of {row.n} items of {row.name} have no answer or one that could not be read, which counts as "
            "naming no label: neither right nor a false alarm."
        )
    return f"{row.n_failed} of {row.n} calls of {row.name} failed, which counts as not right." if row.n_failed else ""


def _finding(comparison: Comparison) -> str:
    one, metric = comparison.decisive, comparison.main_metric
    candidate, other = comparison.candidate, comparison.reference
    if candidate in comparison.not_compared or other in comparison.not_compared:
        return "There is no verdict." if other is None else f"There is no verdict on {candidate} against {other}."
    if one is None or other is None:
        own = comparison.row(candidate).scores[metric.name]
        return f"{candidate}: {metric.name} {with_interval(own)} on {own.n} items. There is nothing to compare it with."
    sides = [comparison.row(name).scores[metric.name] for name in (candidate, other)]
    values = [figure(side.value) for side in sides]
    n_others = len(comparison.programs) - 1
    who = f"{other}, the best of the {n_others} others" if comparison.is_reference_chosen and n_others > 1 else other
    facts = (
        f"{metric.name} {values[0]} against {values[1]}, difference {_difference(comparison, one)}, "
        f"p {_p(one.p_holm)}, n = {one.interval.n}{_shared(one.interval.n, [side.n for side in sides])}"
    )
    if one.verdict == "better":
        return f"{candidate} is better than {who}: {facts}."
    if one.verdict == "worse":
        return f"{candidate} is worse than {who}: {facts}. Keep {other}."
    if one.verdict == "equivalent":
        others = f"{who}," if who != other else who
        return (
            f"{candidate} and {others} are equivalent within ±{comparison.margin:g}: {facts}. Choose the cheaper one."
        )
    return f"Undecided between {candidate} and {who}: {facts}. {_what_would_decide(one)}"


def _shared(n: int, own: Sequence[int]) -> str:
    """Where a side has figures for more items than the other: which ones the difference is about."""
    return "" if set(own) == {n} else f" (what both have a figure for, of {' and '.join(map(str, own))})"


def _difference(comparison: Comparison, one: Difference) -> str:
    """The difference with its interval, and the interval's level where it is not the comparison's own."""
    text = with_interval(one.interval, sign=True)
    if one.interval.low is None or math.isclose(one.confidence, comparison.confidence):
        return text
    why = "two one-sided tests" if one.verdict == "equivalent" else "several programs are tested"
    return f"{text} ({_percent(one.confidence)} interval: {why})"


def _percent(confidence: float) -> str:
    """95%, 97.5%, 99.17%."""
    return f"{100 * confidence:.2f}".rstrip("0").rstrip(".") + "%"


def _what_would_decide(one: Difference) -> str:
    if not one.interval.n:
        return "The two have no figure in common: there is nothing to test."
    if one.n_more_items is None and one.interval.value:
        return "The items are too few, or too much alike, to say how many more would decide."
    if one.n_more_items is None:
        return "No difference was seen, so no number of further items can be named that would show one."
    many = f"About {one.n_more_items:,}" if one.n_more_items > 1 else "A few"
    return f"{many} more items would decide in 4 of 5 cases, if the difference stays as seen."


def footnote(comparison: Comparison) -> str:
    """What the columns count."""
    by_wrong = next((one.name for one in comparison.metrics if one.kind == "proportion"), None)
    wrong = f"*Wrong* counts answers that were read and are not right by {by_wrong}. " if by_wrong else ""
    return (
        f"{wrong}*Parse failures* are answers that cannot be read, *no answer* is one that was refused or cut off, "
        "*failed* are calls that ended in an error: all count as not right in shares of right answers, and are left "
        "out of errors, losses and probability scores. "
        f"Brackets hold the {comparison.confidence:.0%} interval. A difference is better or worse exactly where its "
        "interval excludes zero: *p (Holm)* is corrected for the number of programs compared with the candidate, and "
        "the interval has the *level* at which Holm's procedure tests it."
    )
