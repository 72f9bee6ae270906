"""Pictures of probabilities: ROC and precision-recall curves, histogram, calibration.

In: a `Comparison`. Out: an `<svg>` element as text, or None where no program gives probabilities of a positive label.
Not covered: how pictures are drawn (plots.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dspy_finetune.errors import AnswerError
from dspy_finetune.evaluation.answers import Answer
from dspy_finetune.evaluation.comparison import Comparison
from dspy_finetune.evaluation.reading import read_probability, same_label
from dspy_finetune.report.plots import BACK, FAINT, SERIES, STYLES, WIDTH, draw, short


def probabilities(comparison: Comparison) -> dict[str, list[tuple[float, float]]]:
    """Per program: (1.0 where the positive label is true, else 0.0; its probability), for the items that have one."""
    field = next((metric.field for metric in comparison.metrics if metric.field), None)
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


def roc_points(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(false, true positive rate) at every threshold, from (0, 0) to (1, 1); empty with one label only."""
    n_positive = sum(truth for truth, _ in pairs)
    n_negative = len(pairs) - n_positive
    if not n_positive or not n_negative:
        return []
    points, hits, misses = [(0.0, 0.0)], 0.0, 0.0
    ranked = sorted(pairs, key=lambda pair: -pair[1])
    for index, (truth, probability) in enumerate(ranked):
        hits, misses = hits + truth, misses + 1 - truth
        if index + 1 == len(ranked) or ranked[index + 1][1] != probability:
            points.append((misses / n_negative, hits / n_positive))
    return points


def precision_recall_points(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(recall, precision) at every threshold, from the highest on; empty without positives."""
    n_positive = sum(truth for truth, _ in pairs)
    if not n_positive:
        return []
    points, hits = [], 0.0
    ranked = sorted(pairs, key=lambda pair: -pair[1])
    for index, (truth, probability) in enumerate(ranked, start=1):
        hits += truth
        if index == len(ranked) or ranked[index][1] != probability:
            points.append((hits / n_positive, hits / index))
    return points


def roc(comparison: Comparison, name: str) -> str | None:
    """ROC curves of all programs that give probabilities."""
    curves = {program: roc_points(pairs) for program, pairs in probabilities(comparison).items()}
    return _curves(comparison, name, curves, ("false positive rate", "true positive rate"), chance=((0, 1), (0, 1)))


def precision_recall(comparison: Comparison, name: str) -> str | None:
    """Precision-recall curves of all programs that give probabilities; chance is the share of positives."""
    found = probabilities(comparison)
    curves = {
        # A curve begins at recall 0 with the precision of its first point, as scikit-learn draws it.
        program: [(0.0, points[0][1]), *points] if (points := precision_recall_points(pairs)) else []
        for program, pairs in found.items()
    }
    pairs = next(iter(found.values()), [])
    share = sum(truth for truth, _ in pairs) / len(pairs) if pairs else 0.0
    return _curves(comparison, name, curves, ("recall", "precision"), chance=((0, 1), (share, share)))


def _curves(
    comparison: Comparison,
    name: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    axis_names: tuple[str, str],
    *,
    chance: tuple[tuple[float, float], tuple[float, float]],
) -> str | None:
    order = [row.name for row in comparison.programs]
    known = {program: points for program, points in curves.items() if points}
    if not known:
        return None

    def paint(axes: Any) -> None:
        axes.plot(*chance, color=FAINT, linewidth=1)
        for program, points in known.items():
            index = order.index(program)
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=SERIES[index % len(SERIES)],
                linestyle=STYLES[index % len(STYLES)],
                linewidth=1.8,
                label=short(program),
            )
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(axis_names[0])
        axes.set_ylabel(axis_names[1])
        axes.set_aspect("equal")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)

    return draw(name, (WIDTH, 4.3 + 0.25 * math.ceil(len(known) / 2)), paint)


def histogram(comparison: Comparison, name: str) -> str | None:
    """The candidate's probabilities, apart for the items where the positive label is true and where it is not."""
    pairs = probabilities(comparison).get(comparison.candidate)
    if not pairs:
        return None
    edges = [index / 20 for index in range(21)]

    def paint(axes: Any) -> None:
        groups = [[share for truth, share in pairs if truth == wanted] for wanted in (1.0, 0.0)]
        names = [f"label is {comparison.positive}", "label is another"]
        axes.hist(groups, bins=edges, color=[SERIES[0], SERIES[1]], label=names, stacked=True, edgecolor=BACK)
        axes.set_xlim(0, 1)
        axes.set_xlabel(f"probability of {comparison.positive}")
        axes.set_ylabel("items")
        axes.grid(axis="y")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)

    return draw(name, (WIDTH, 3.2), paint)


def reliability(pairs: Sequence[tuple[float, float]], n_bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean probability, share that was positive, items) of each bin of equal width that holds any."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for truth, share in pairs:
        bins.setdefault(min(int(share * n_bins), n_bins - 1), []).append((truth, share))
    return [
        (math.fsum(share for _, share in one) / len(one), math.fsum(truth for truth, _ in one) / len(one), len(one))
        for _, one in sorted(bins.items())
    ]


def mean_share(pairs: Sequence[tuple[float, float]], wanted: float) -> float:
    """The mean probability of the items whose truth is `wanted`, 1.0 or 0.0; NaN without any."""
    shares = [share for truth, share in pairs if truth == wanted]
    return math.fsum(shares) / len(shares) if shares else math.nan


def calibration(comparison: Comparison, name: str, n_bins: int = 10) -> str | None:
    """How often the positive label was true, against the candidate's probability, in bins of equal width."""
    pairs = probabilities(comparison).get(comparison.candidate)
    if not pairs:
        return None
    points = reliability(pairs, n_bins)

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=SERIES[0], linewidth=1)
        areas = [20 + 280 * n / len(pairs) for _, _, n in points]
        axes.scatter([x for x, _, _ in points], [y for _, y, _ in points], s=areas, color=SERIES[0])
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(f"mean probability of {comparison.positive}")
        axes.set_ylabel("share that was")
        axes.set_aspect("equal")
        axes.grid()

    return draw(name, (WIDTH, 4.3), paint)
