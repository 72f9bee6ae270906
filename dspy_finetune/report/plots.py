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
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from dspy_finetune._optional import require
from dspy_finetune.errors import AnswerError, UsageError
from dspy_finetune.evaluation.answers import Answer
from dspy_finetune.evaluation.learning_curve import LearningCurve
from dspy_finetune.evaluation.metric import read_probability
from dspy_finetune.evaluation.result import Comparison
from dspy_finetune.values import label_text, read_number, same_label

# ----------------------------------------------------------------------------------------------------
# The picture of a learning curve: score over training size, one line per model and number of epochs.
#
# In: a `LearningCurve`, matplotlib's axes. Out: the drawn axes, or the bytes of a file. On a page plots.py draws it.

FORMATS = ("svg", "png", "pdf")
"""What a picture can be written as."""

_STYLES = ("-", "--", "-.", ":")  # so that lines can be told apart without colour


def for_file(curve: LearningCurve, ending: str) -> bytes:
    """The picture in plain colours.

    Raises:
        UsageError: There is no point to draw.
        MissingExtraError: The extra `report` is not installed.
    """
    if not curve.points:
        raise UsageError("no run of the learning curve gave a model: there is nothing to draw")
    figures = require("matplotlib.figure", "report", "a picture of a learning curve")
    figure = figures.Figure(figsize=(7.0, 4.5), layout="constrained")
    paint(figure.subplots(), curve, tuple(f"C{index}" for index in range(8)))
    stream = io.BytesIO()
    figure.savefig(stream, format=ending, dpi=150)
    return stream.getvalue()


def paint(axes: Any, curve: LearningCurve, colours: tuple[str, ...]) -> None:
    """Draw the lines with their intervals."""
    series = list(dict.fromkeys((one.base_model, one.n_epochs) for one in curve.points))
    for index, key in enumerate(series):
        points = [one for one in curve.points if (one.base_model, one.n_epochs) == key and one.score.value is not None]
        colour, sizes = colours[index % len(colours)], [one.n_rows for one in points]
        axes.plot(
            sizes,
            [one.score.value for one in points],
            color=colour,
            linestyle=_STYLES[index % len(_STYLES)],
            marker="o",
            label=f"{key[0]}, {key[1]} epoch{'s' * (key[1] != 1)}"[:48],
        )
        for one in points:
            if one.score.low is not None:
                axes.plot([one.n_rows] * 2, [one.score.low, one.score.high], color=colour, linewidth=1.2, alpha=0.7)
    every = sorted({one.n_rows for one in curve.points})
    axes.set_xscale("log")
    axes.set_xticks(every, [f"{size:,}" for size in every])
    axes.minorticks_off()
    axes.set_xlabel("training examples")
    axes.set_ylabel(curve.metric.name)
    axes.grid()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=1)


# ----------------------------------------------------------------------------------------------------
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
    return draw(name, (WIDTH, 3.6), lambda axes: paint(axes, curve, SERIES))


# ----------------------------------------------------------------------------------------------------
# The picture of numbers: predicted against true, coloured by how far off they are.
#
# In: a `Comparison` whose labels are numbers, a program, what counts as near. Out: `Guess`es with their `Band`, and
# an `<svg>` element. A number is *near* within a share of the true one or a fixed distance of it, whichever is wider,
# *fair* within twice that, and *far* beyond. By default that is 20 % or 40 and 40 % or 80, as usual for prices in
# dollars. Not covered: how pictures are drawn (plots.py).

Band: TypeAlias = Literal["near", "fair", "far"]
"""How far off a number is."""

NEAR = (0.2, 40.0)
"""(share of the true number, distance in its own unit): near is within the wider of the two."""

MAX_POINTS = 2000
"""Points in a picture: more would only cover one another."""

# Shapes, so that the bands can be told apart without colour.
_LOOKS: dict[Band, tuple[str, str]] = {"near": (GOOD, "o"), "fair": (FAIR, "^"), "far": (BAD, "x")}


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


def number_field(comparison: Comparison) -> str | None:
    """The label field where it holds numbers, more than two different ones; else None."""
    field = next((metric.field for metric in comparison.metrics if metric.field), None)
    if field is None or any(field not in item.labels for item in comparison.items):
        return None
    labels = [item.labels[field] for item in comparison.items]
    if any(isinstance(label, bool) for label in labels) or len({label_text(label) for label in labels}) < 3:
        return None
    try:
        for label in labels:
            read_number(label)
    except (AnswerError, TypeError, ValueError):
        return None
    return field


def guesses(comparison: Comparison, program: str, near: tuple[float, float] = NEAR) -> list[Guess]:
    """A program's answers that are numbers, in the order of the items; empty where the labels are none."""
    field = number_field(comparison)
    found: list[Guess] = []
    if field is None:
        return found
    for index, (item, answer) in enumerate(zip(comparison.items, comparison.answers[program], strict=True)):
        if answer.outcome != "answered" or answer.outputs.get(field) is None:
            continue
        try:
            truth, predicted = read_number(item.labels[field]), read_number(answer.outputs[field])
        except (AnswerError, TypeError, ValueError):
            continue
        found.append(Guess(index=index, truth=truth, predicted=predicted, band=band(truth, predicted, near)))
    return found


def counts(of: Sequence[Guess]) -> dict[Band, int]:
    """How many are near, fair and far."""
    return {name: sum(guess.band == name for guess in of) for name in _LOOKS}


def scatter(comparison: Comparison, program: str, name: str, near: tuple[float, float] = NEAR) -> str | None:
    """A program's numbers against the true ones; on logarithmic axes where they are positive and span much."""
    found = guesses(comparison, program, near)
    if not found:
        return None
    field = number_field(comparison) or ""
    shown = found[:: math.ceil(len(found) / MAX_POINTS)]
    values = [value for guess in shown for value in (guess.truth, guess.predicted)]
    low, high = min(values), max(values)
    is_log = low > 0 and high / low > 50

    def paint(axes: Any) -> None:
        axes.plot([low, high], [low, high], color=FAINT, linewidth=1)
        for one, n in counts(found).items():
            colour, marker = _LOOKS[one]
            points = [guess for guess in shown if guess.band == one]
            axes.scatter(
                [guess.truth for guess in points],
                [guess.predicted for guess in points],
                s=22,
                c=colour,
                marker=marker,
                alpha=0.75,
                label=f"{one}: {n}",
            )
        room = (high / low) ** 0.05 if is_log else 0.05 * (high - low) or 1.0
        limits = (low / room, high * room) if is_log else (low - room, high + room)
        if is_log:
            axes.set_xscale("log")
            axes.set_yscale("log")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set_xlim(*limits)
        axes.set_ylim(*limits)
        axes.set_xlabel(f"true {field}")
        axes.set_ylabel(f"predicted {field}")
        axes.set_aspect("equal")
        axes.grid()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, handletextpad=0.1)

    return draw(name, (WIDTH, 4.9), paint)


# ----------------------------------------------------------------------------------------------------
# Pictures of probabilities: ROC and precision-recall curves, histogram, calibration.
#
# In: a `Comparison`. Out: an `<svg>` element as text, or None where no program gives probabilities of a positive label.
# Not covered: how pictures are drawn (plots.py).


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


# ----------------------------------------------------------------------------------------------------
# Loss curves: rows of (step, loss) by name, from jobs or as they are.
#
# In: a mapping from a name to a job, or to rows of (step, loss). Out: `Curves`; a job gives its training loss and,
# where it was measured, its validation loss. Not covered: drawing (plots.py).

Curves: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]
"""A name, and its rows of (step, loss)."""


@runtime_checkable
class HasMetrics(Protocol):
    """A `Job`, or whatever tells the figures of a training."""

    def metrics(self) -> list[dict[str, Any]]:
        """One row per step, with `step`, `train_loss` and perhaps `valid_loss`."""


Training: TypeAlias = Mapping[str, "HasMetrics | Sequence[tuple[float, float]]"]
"""What the user gives."""

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
                if _is_number(row.get("step")) and _is_number(row.get(key))
            )
            if known:
                curves[name + suffix] = known
    return curves


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
