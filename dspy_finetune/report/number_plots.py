"""The picture of numbers: predicted against true, coloured by how far off they are.

In: a `Comparison` whose labels are numbers, a program, what counts as near. Out: `Guess`es with their `Band`, and an
`<svg>` element. A number is *near* within a share of the true one or a fixed distance of it, whichever is wider, *fair*
within twice that, and *far* beyond. By default that is 20 % or 40 and 40 % or 80, as usual for prices in dollars. Not
covered: how pictures are drawn (plots.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from dspy_finetune.errors import AnswerError
from dspy_finetune.evaluation.comparison import Comparison
from dspy_finetune.evaluation.reading import label_text, to_number
from dspy_finetune.report.plots import BAD, FAINT, FAIR, GOOD, WIDTH, draw

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
            to_number(label)
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
            truth, predicted = to_number(item.labels[field]), to_number(answer.outputs[field])
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
