"""Pictures as inline SVG: how they are drawn, and those of any comparison: intervals, latency, cost, loss curves.

In: a `Comparison`, or rows of (step, loss). Out: an `<svg>` element as text, or None where there is nothing to draw.
Drawn by matplotlib without a display, with text kept as text and the colours exchanged for the page's CSS variables,
so that one picture serves light and dark. The same numbers give the same bytes. Not covered: probabilities
(probability_plots.py), numbers (number_plots.py), titles and alt texts, which the page gives.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspy_finetune._optional import require
from dspy_finetune.evaluation.comparison import Comparison
from dspy_finetune.evaluation.curve_result import LearningCurve
from dspy_finetune.report import curve_plot

# Colours that no picture uses by chance, and the CSS variables they stand for.
INK, FAINT, BACK = "#010203", "#010204", "#010205"
GOOD, FAIR, BAD = "#010206", "#010207", "#010208"
SERIES = tuple(f"#0102{16 + index:02x}" for index in range(8))
# The page's own colours; what follows the comma serves where there is no such page, as in a notebook.
_VARIABLES = {
    INK: "var(--ink, currentColor)",
    FAINT: "var(--faint, #8a929b)",
    BACK: "var(--back, none)",
    GOOD: "var(--right, #0b6b3a)",
    FAIR: "var(--none, #9a5b00)",
    BAD: "var(--wrong, #a3261b)",
} | {
    colour: f"var(--series-{index}, {plain})"
    for index, (colour, plain) in enumerate(
        zip(
            SERIES,
            ("#1f5fbf", "#c2500a", "#177a4b", "#8b3fb0", "#a8224f", "#4a6572", "#7a6a00", "#00707f"),
            strict=True,
        )
    )
}
STYLES = ("-", "--", "-.", ":")  # so that curves can be told apart without colour
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


def draw(name: str, size: tuple[float, float], paint: Callable[[Any], None]) -> str:
    """An `<svg>` element of so many inches, painted by `paint(axes)`; `name` makes its ids unique on the page.

    Raises:
        MissingExtraError: The extra `report` is not installed.
    """
    matplotlib = require("matplotlib", "report", "a report with pictures")
    figures = require("matplotlib.figure", "report", "a report with pictures")
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = figures.Figure(figsize=size, layout="constrained")
        paint(figure.subplots())
        stream = io.StringIO()
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            bbox_inches="tight",
            pad_inches=0.04,
            metadata={"Date": None, "Creator": None},
        )
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
        _rows(axes, [label for label, *_ in rows], axis)

    return draw(name, (WIDTH, 0.9 + 0.38 * len(rows)), paint)


def short(label: str) -> str:
    """A name that fits beside a picture."""
    return label if len(label) <= 24 else label[:23] + "…"


def latency(comparison: Comparison, name: str) -> str | None:
    """Each program's time of one call, from the median to the 95th percentile."""
    rows = [(one.name, one.latency_p50_ms, one.latency_p95_ms) for one in comparison.programs]
    known = [(label, p50, p95 if p95 is not None else p50) for label, p50, p95 in rows if p50 is not None]
    if not known:
        return None
    # A baseline answers in microseconds, a model in seconds: a linear axis would show one of them only.
    floor = 0.1
    spread = max(p95 for _, _, p95 in known) / max(min(p50 for _, p50, _ in known), floor)

    def paint(axes: Any) -> None:
        for place, (label, p50, p95) in enumerate(known):
            colour = SERIES[_place(comparison, label) % len(SERIES)]
            axes.plot([max(p50, floor), max(p95, floor)], [place, place], color=colour, linewidth=2)
            axes.plot([max(p50, floor)], [place], marker="o", markersize=7, color=colour)
        if spread > 30:
            axes.set_xscale("log")
        else:
            axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.xaxis.set_major_locator(_few_ticks(is_log=spread > 30))
        _rows(axes, [label for label, *_ in known], "milliseconds for one answer")

    return draw(name, (WIDTH, 0.9 + 0.38 * len(known)), paint)


def cost(comparison: Comparison, name: str) -> str | None:
    """What a thousand answers of each program cost, for those whose price was given."""
    known = [(one.name, 1000 * one.cost_usd / one.n) for one in comparison.programs if one.cost_usd is not None]
    if not known:
        return None

    def paint(axes: Any) -> None:
        for place, (label, usd) in enumerate(known):
            axes.barh(place, usd, height=0.5, color=SERIES[_place(comparison, label) % len(SERIES)])
        axes.set_xlim(left=0)
        _rows(axes, [label for label, _ in known], "USD for 1,000 answers")

    return draw(name, (WIDTH, 0.9 + 0.38 * len(known)), paint)


def _few_ticks(*, is_log: bool) -> Any:
    """Ticks whose numbers do not run into one another."""
    ticker = require("matplotlib.ticker", "report", "a report with pictures")
    return ticker.LogLocator(numticks=6) if is_log else ticker.MaxNLocator(nbins=4)


def _place(comparison: Comparison, program: str) -> int:
    """A program has one colour in all pictures."""
    return [row.name for row in comparison.programs].index(program)


def _rows(axes: Any, labels: Sequence[str], axis: str) -> None:
    axes.set_yticks(range(len(labels)), [short(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(axis)
    axes.grid(axis="x")


def training(curves: Mapping[str, Sequence[tuple[float, float]]], name: str) -> str | None:
    """Loss over steps, one line per curve; a curve of a few points, such as a validation loss, shows them as dots."""
    known = {label: finite(rows) for label, rows in curves.items()}
    known = {label: rows for label, rows in known.items() if rows}
    if not known:
        return None

    def paint(axes: Any) -> None:
        for index, (label, rows) in enumerate(known.items()):
            axes.plot(
                [step for step, _ in rows],
                [loss for _, loss in rows],
                color=SERIES[index % len(SERIES)],
                linestyle=STYLES[index % len(STYLES)],
                linewidth=1.6,
                marker="o" if len(rows) <= 12 else None,
                label=short(label),
            )
        axes.set_xlabel("step")
        axes.locator_params(axis="x", integer=True)  # there is no step 1.25
        axes.set_ylabel("loss")
        axes.set_ylim(bottom=0)
        axes.grid()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)

    return draw(name, (WIDTH, 3.2 + 0.25 * math.ceil(len(known) / 2)), paint)


def finite(rows: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The rows whose loss is a number."""
    return [(step, loss) for step, loss in rows if loss is not None and math.isfinite(loss)]


def learning_curve(curve: LearningCurve, name: str) -> str | None:
    """Score over training size, one line per model and number of epochs; None without a point."""
    if not curve.points:
        return None
    return draw(name, (WIDTH, 3.6), lambda axes: curve_plot.paint(axes, curve, SERIES))
