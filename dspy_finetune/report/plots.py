"""Pictures as inline SVG: intervals, ROC curves, probability histograms, calibration, training curves.

In: a `Comparison`, or rows of (step, loss). Out: an `<svg>` element as text, or None where there is nothing to draw.
Drawn by matplotlib without a display, with text kept as text and the colours exchanged for the page's CSS variables,
so that one picture serves light and dark. The same numbers give the same bytes. Not covered: titles and alt texts,
which the page gives.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspy_finetune._optional import require
from dspy_finetune.errors import AnswerError
from dspy_finetune.evaluation.answers import Answer
from dspy_finetune.evaluation.comparison import Comparison
from dspy_finetune.evaluation.curve_result import LearningCurve
from dspy_finetune.evaluation.reading import read_probability, same_label
from dspy_finetune.report import curve_plot

# Colours that no picture uses by chance, and the CSS variables they stand for.
INK, FAINT, BACK = "#010203", "#010204", "#010205"
SERIES = tuple(f"#0102{16 + index:02x}" for index in range(8))
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", BACK: "var(--back)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)
}
_STYLES = ("-", "--", "-.", ":")  # so that curves can be told apart without colour
WIDTH = 4.8  # inches: narrow, so that a phone shows the pictures with readable text
_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in a program's name is a dollar sign
    "font.size": 11,
    "font.family": "sans-serif",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.5,
    "legend.frameon": False,
}


def _draw(name: str, size: tuple[float, float], paint: Callable[[Any], None]) -> str:
    matplotlib = require("matplotlib", "report", "a report with pictures")
    figures = require("matplotlib.figure", "report", "a report with pictures")
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = figures.Figure(figsize=size, layout="constrained")
        paint(figure.subplots())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(stream.getvalue(), name)


def _for_page(svg: str, name: str) -> str:
    """Only the element, sized by the page, its colours as CSS variables and its ids unique on the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', r'\1 style="max-width:\2pt"', svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", svg, count=1)
    svg = svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'xlink:href="#{name}-', svg)
    return re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", svg)


def scores(comparison: Comparison, name: str) -> str | None:
    """The programs' figures by the first metric, with their intervals."""
    rows = [(row.name, row.scores[comparison.main_metric.name]) for row in comparison.programs]
    drawn = [(label, one.value, one.low, one.high) for label, one in rows if one.value is not None]
    return _intervals(name, drawn, comparison.main_metric.name, zero=False) if drawn else None


def differences(comparison: Comparison, name: str) -> str | None:
    """Forest plot: candidate minus each other program by the first metric."""
    metric = comparison.main_metric.name
    drawn = [
        (f"− {one.other}", one.interval.value, one.interval.low, one.interval.high)
        for one in comparison.differences_of(metric)
        if one.interval.value is not None
    ]
    return _intervals(name, drawn, f"difference in {metric}", zero=True) if drawn else None


def _intervals(
    name: str, rows: Sequence[tuple[str, float, float | None, float | None]], axis: str, *, zero: bool
) -> str:
    def paint(axes: Any) -> None:
        for place, (_, value, low, high) in enumerate(rows):
            colour = SERIES[0] if zero else SERIES[place % len(SERIES)]
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([value], [place], marker="o", markersize=7, color=colour)
        if zero:
            axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [_short(label) for label, *_ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis)
        axes.grid(axis="x")

    return _draw(name, (WIDTH, 0.9 + 0.38 * len(rows)), paint)


def _short(label: str) -> str:
    return label if len(label) <= 24 else label[:23] + "…"


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


def roc(comparison: Comparison, name: str) -> str | None:
    """ROC curves of all programs that give probabilities."""
    order = [row.name for row in comparison.programs]
    curves = {program: roc_points(pairs) for program, pairs in probabilities(comparison).items()}
    curves = {program: points for program, points in curves.items() if points}
    if not curves:
        return None

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
        for program, points in curves.items():
            index = order.index(program)
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=SERIES[index % len(SERIES)],
                linestyle=_STYLES[index % len(_STYLES)],
                linewidth=1.8,
                label=_short(program),
            )
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.set_aspect("equal")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)

    return _draw(name, (WIDTH, 4.3 + 0.25 * math.ceil(len(curves) / 2)), paint)


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

    return _draw(name, (WIDTH, 3.2), paint)


def calibration(comparison: Comparison, name: str, n_bins: int = 10) -> str | None:
    """How often the positive label was true, against the candidate's probability, in bins of equal width."""
    pairs = probabilities(comparison).get(comparison.candidate)
    if not pairs:
        return None
    bins: dict[int, list[tuple[float, float]]] = {}
    for truth, share in pairs:
        bins.setdefault(min(int(share * n_bins), n_bins - 1), []).append((truth, share))
    points = [
        (math.fsum(share for _, share in one) / len(one), math.fsum(truth for truth, _ in one) / len(one), len(one))
        for _, one in sorted(bins.items())
    ]

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

    return _draw(name, (WIDTH, 4.3), paint)


def training(curves: Mapping[str, Sequence[tuple[float, float]]], name: str) -> str | None:
    """Training loss over steps, one line per curve."""
    known = {
        label: [(step, loss) for step, loss in rows if loss is not None and math.isfinite(loss)]
        for label, rows in curves.items()
    }
    known = {label: rows for label, rows in known.items() if rows}
    if not known:
        return None

    def paint(axes: Any) -> None:
        for index, (label, rows) in enumerate(known.items()):
            axes.plot(
                [step for step, _ in rows],
                [loss for _, loss in rows],
                color=SERIES[index % len(SERIES)],
                linestyle=_STYLES[index % len(_STYLES)],
                linewidth=1.6,
                marker="o" if len(rows) == 1 else None,
                label=_short(label),
            )
        axes.set_xlabel("step")
        axes.set_ylabel("training loss")
        axes.set_ylim(bottom=0)
        axes.grid()
        axes.legend(loc="upper right")

    return _draw(name, (WIDTH, 3.2), paint)


def learning_curve(curve: LearningCurve, name: str) -> str | None:
    """Score over training size, one line per model and number of epochs; None without a point."""
    if not curve.points:
        return None
    return _draw(name, (WIDTH, 3.6), lambda axes: curve_plot.paint(axes, curve, SERIES))
