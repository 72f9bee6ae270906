"""Pictures as inline SVG, of plain figures: intervals, bars, curves, histograms, scatter plots, losses.

In: names and numbers. Out: an `<svg>` element as text, or None where there is nothing to draw; or the bytes of a file.
Drawn by matplotlib without a display, with text kept as text and the colours exchanged for the page's CSS variables,
so that one picture serves light and dark. The same numbers give the same bytes. Not covered: what the figures are,
captions and alt texts, which the results give.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from dspy_finetune._optional import require
from dspy_finetune.report.blocks import Curves

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
FORMATS = ("svg", "png", "pdf")
"""What a picture can be written as."""
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
    """An `<svg>` element of a size in inches, painted by `paint(axes)`; `name` makes its ids unique on the page.

    Raises:
        MissingExtraError: The extra `report` is not installed.
    """
    matplotlib = require("matplotlib", "report", "a report with pictures")
    figures = require("matplotlib.figure", "report", "a report with pictures")
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = figures.Figure(figsize=size, layout="constrained")
        paint(figure.subplots())
        stream = io.StringIO()
        with warnings.catch_warnings():
            # The text stays text, for the fonts of the reader: what matplotlib's own font lacks is only measured.
            warnings.filterwarnings("ignore", message=r"Glyph \d+")
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


def in_plain_colours(ending: str, paint: Callable[[Any, Sequence[str]], None]) -> bytes:
    """A picture as a file of one of `FORMATS`, painted by `paint(axes, colours)`.

    Raises:
        MissingExtraError: The extra `report` is not installed.
    """
    figures = require("matplotlib.figure", "report", "a picture")
    figure = figures.Figure(figsize=(7.0, 4.5), layout="constrained")
    paint(figure.subplots(), tuple(f"C{index}" for index in range(8)))
    stream = io.BytesIO()
    figure.savefig(stream, format=ending, dpi=150)
    return stream.getvalue()


def short(label: str) -> str:
    """A name that fits beside a picture; names of one beginning most often differ in their ends."""
    return label if len(label) <= 24 else f"{label[:11]}…{label[-12:]}"


def _n_columns(labels: Iterable[str]) -> int:
    return 1 if max(map(len, labels)) > 16 else 2


def _legend(axes: Any, place: str = "outside lower center") -> None:
    """Above or below the picture, which keeps its size: two names beside each other where they are short."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc=place, ncols=_n_columns(labels))


def _colour(colours: Sequence[str], place: int) -> str:
    """A program has one colour in all pictures: that of its place."""
    return colours[place % len(colours)]


def _by_row(name: str, labels: Sequence[str], axis: str, paint: Callable[[Any], None]) -> str | None:
    """A picture with a named row for each of the labels; None without any."""
    if not labels:
        return None

    def with_rows(axes: Any) -> None:
        paint(axes)
        axes.set_yticks(range(len(labels)), [short(label) for label in labels])
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis)
        # Few ticks: their numbers must not run into one another.
        axes.locator_params(axis="x", **({"numticks": 6} if axes.get_xscale() == "log" else {"nbins": 5}))
        axes.grid(axis="x")

    return draw(name, (WIDTH, 0.9 + 0.38 * len(labels)), with_rows)


def _curve(axes: Any, place: int, label: str, points: Sequence[tuple[float, float]], **look: Any) -> None:
    x, y = zip(*points, strict=True)
    axes.plot(x, y, color=_colour(SERIES, place), linestyle=_colour(STYLES, place), label=short(label), **look)


def intervals(
    name: str, rows: Sequence[tuple[str, float | None, float | None, float | None]], axis: str, *, zero: bool
) -> str | None:
    """Figures with their intervals, one row each: (label, value, low, high); `zero` draws the line of no difference."""

    def paint(axes: Any) -> None:
        for place, (_, value, low, high) in enumerate(rows):
            colour = SERIES[0] if zero else _colour(SERIES, place)
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            if value is not None:
                axes.plot([value], [place], marker="o", markersize=7, color=colour)
        if zero:
            axes.axvline(0, color=INK, linewidth=1)

    return _by_row(name, [label for label, *_ in rows], axis, paint)


def latencies(name: str, rows: Sequence[tuple[str, int, float, float]]) -> str | None:
    """Times of one call: (label, place of its colour, median, 95th percentile), in milliseconds."""
    # A baseline answers in microseconds, a model in seconds: a linear axis would show one of them only.
    floor = 0.1

    def paint(axes: Any) -> None:
        spread = max(p95 for *_, p95 in rows) / max(min(p50 for _, _, p50, _ in rows), floor)
        for place, (_, colour, p50, p95) in enumerate(rows):
            axes.plot([max(p50, floor), max(p95, floor)], [place, place], color=_colour(SERIES, colour), linewidth=2)
            axes.plot([max(p50, floor)], [place], marker="o", markersize=7, color=_colour(SERIES, colour))
        if spread > 30:
            axes.set_xscale("log")
        else:
            axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")

    return _by_row(name, [label for label, *_ in rows], "milliseconds for one answer", paint)


def bars(name: str, rows: Sequence[tuple[str, int, float]], axis: str) -> str | None:
    """Bars from zero: (label, place of its colour, length)."""

    def paint(axes: Any) -> None:
        for place, (_, colour, length) in enumerate(rows):
            axes.barh(place, length, height=0.5, color=_colour(SERIES, colour))
        axes.set_xlim(left=0)

    return _by_row(name, [label for label, *_ in rows], axis, paint)


def unit_curves(
    name: str,
    curves: Sequence[tuple[str, int, Sequence[tuple[float, float]]]],
    axis_names: tuple[str, str],
    *,
    chance: tuple[tuple[float, float], tuple[float, float]],
) -> str | None:
    """Curves in the unit square, as ROC has them: (label, place of its colour, points); `chance` is a plain line."""
    known = [one for one in curves if one[2]]
    if not known:
        return None

    def paint(axes: Any) -> None:
        axes.plot(*chance, color=FAINT, linewidth=1)
        for label, place, points in known:
            _curve(axes, place, label, points, linewidth=1.8)
        _unit_square(axes, axis_names)
        _legend(axes)

    n_rows = math.ceil(len(known) / _n_columns(short(label) for label, *_ in known))
    return draw(name, (WIDTH, 4.4 + 0.23 * n_rows), paint)


def _unit_square(axes: Any, axis_names: tuple[str, str]) -> None:
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(axis_names[0])
    axes.set_ylabel(axis_names[1])
    axes.set_aspect("equal")


def histogram(name: str, groups: Mapping[str, Sequence[float]], axis: str) -> str | None:
    """Shares from 0 to 1 in twenty bins, the groups stacked."""
    if not any(groups.values()):
        return None
    edges = [index / 20 for index in range(21)]

    def paint(axes: Any) -> None:
        colours = [_colour(SERIES, place) for place in range(len(groups))]
        names = list(map(short, groups))
        axes.hist(list(groups.values()), bins=edges, color=colours, label=names, stacked=True, edgecolor=BACK)
        axes.set_xlim(0, 1)
        axes.set_xlabel(axis)
        axes.set_ylabel("items")
        axes.grid(axis="y")
        _legend(axes, "outside upper center")

    return draw(name, (WIDTH, 3.2), paint)


def reliability_diagram(name: str, points: Sequence[tuple[float, float, int]], axis: str) -> str | None:
    """How often what was said came true: (mean probability, share that was true, items) of each bin."""
    if not points:
        return None
    n_items = sum(n for *_, n in points)

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=SERIES[0], linewidth=1)
        areas = [20 + 280 * n / n_items for *_, n in points]
        axes.scatter([x for x, _, _ in points], [y for _, y, _ in points], s=areas, color=SERIES[0])
        _unit_square(axes, (axis, "share that was"))
        axes.grid()

    return draw(name, (WIDTH, 4.3), paint)


@dataclass(frozen=True, kw_only=True)
class Dots:
    """Points of one look in a scatter plot."""

    label: str
    """For the legend."""
    colour: str
    """`GOOD`, `FAIR` or `BAD`."""
    marker: str
    """A shape of matplotlib's, so that the looks can be told apart without colour."""
    points: Sequence[tuple[float, float]]
    """(true, predicted)."""


def scatter(
    name: str, dots: Sequence[Dots], axis_names: tuple[str, str], *, span: tuple[float, float] | None = None
) -> str | None:
    """Predicted against true; on logarithmic axes where all numbers are positive and span much.

    `span` is the least and the largest number where several such plots stand side by side.
    """
    values = [value for one in dots for point in one.points for value in point]
    if not values:
        return None
    low, high = span or (min(values), max(values))
    is_log = low > 0 and high / low > 50

    def paint(axes: Any) -> None:
        axes.plot([low, high], [low, high], color=FAINT, linewidth=1)
        for one in dots:
            truth, predicted = zip(*one.points, strict=True) if one.points else ((), ())
            axes.scatter(truth, predicted, s=22, c=one.colour, marker=one.marker, alpha=0.75, label=one.label)
        room = (high / low) ** 0.05 if is_log else 0.05 * (high - low) or 1.0
        limits = (low / room, high * room) if is_log else (low - room, high + room)
        if is_log:
            axes.set_xscale("log")
            axes.set_yscale("log")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set_xlim(*limits)
        axes.set_ylim(*limits)
        axes.set_xlabel(axis_names[0])
        axes.set_ylabel(axis_names[1])
        axes.set_aspect("equal")
        axes.grid()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, handletextpad=0.1)

    return draw(name, (WIDTH, 4.9), paint)


@dataclass(frozen=True, kw_only=True)
class SizedLine:
    """A score over training sizes."""

    label: str
    """For the legend."""
    points: Sequence[tuple[int, float, float | None, float | None]]
    """(size, score, low, high)."""


def paint_by_size(axes: Any, lines: Sequence[SizedLine], axis: str, colours: Sequence[str] = SERIES) -> None:
    """Scores over training size, one line each, with their intervals."""
    for index, line in enumerate(lines):
        colour, sizes = _colour(colours, index), [size for size, *_ in line.points]
        axes.plot(
            sizes,
            [value for _, value, _, _ in line.points],
            color=colour,
            linestyle=_colour(STYLES, index),
            marker="o",
            label=line.label[:48],
        )
        for size, _, low, high in line.points:
            if low is not None:
                axes.plot([size] * 2, [low, high], color=colour, linewidth=1.2, alpha=0.7)
    every = sorted({size for line in lines for size, *_ in line.points})
    axes.set_xscale("log")
    axes.set_xticks(every, [f"{size:,}" for size in every])
    axes.minorticks_off()
    axes.set_xlabel("training examples")
    axes.set_ylabel(axis)
    axes.grid()
    _legend(axes, "outside upper center")


@runtime_checkable
class HasMetrics(Protocol):
    """A `Job`, or whatever tells the figures of a training."""

    def metrics(self) -> list[dict[str, Any]]:
        """One row per step, with `step`, `train_loss` and perhaps `valid_loss`."""


Training: TypeAlias = Mapping[str, "HasMetrics | Sequence[tuple[float, float]]"]
"""A name, and the job or its rows of (step, loss)."""

_KINDS = (("train_loss", ""), ("valid_loss", ", validation"))


def loss_curves(training: Training) -> dict[str, tuple[tuple[float, float], ...]]:
    """The curves of jobs, and those that are curves already. Asks the host of each job; raises HostError."""
    curves: dict[str, tuple[tuple[float, float], ...]] = {}
    for name, source in training.items():
        if not isinstance(source, HasMetrics):
            curves[name] = tuple((float(step), float(loss)) for step, loss in source)
            continue
        rows = source.metrics()
        for key, suffix in _KINDS:
            known = tuple(
                (float(row["step"]), float(row[key]))
                for row in rows
                # Below 1 stands what the local host tried before its first step.
                if _is_number(row.get("step")) and _is_number(row.get(key)) and row["step"] > 0
            )
            if known:
                curves[name + suffix] = known
    return curves


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def losses(curves: Curves, name: str) -> str | None:
    """Loss over steps, one line per curve; a curve of a few points, such as a validation loss, shows them as dots."""
    known = {label: [(step, loss) for step, loss in rows if math.isfinite(loss)] for label, rows in curves.items()}
    known = {label: rows for label, rows in known.items() if rows}
    if not known:
        return None

    def paint(axes: Any) -> None:
        for index, (label, rows) in enumerate(known.items()):
            _curve(axes, index, label, rows, linewidth=1.6, marker="o" if len(rows) <= 12 else None)
        axes.set_xlabel("step")
        axes.locator_params(axis="x", integer=True)  # there is no step 1.25
        axes.set_ylabel("loss")
        axes.set_ylim(bottom=0)
        axes.grid()
        _legend(axes)

    return draw(name, (WIDTH, 3.2 + 0.23 * math.ceil(len(known) / _n_columns(map(short, known)))), paint)
