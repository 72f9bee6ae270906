"""The picture of a learning curve: score over training size, one line per model and number of epochs.

In: a `LearningCurve`, matplotlib's axes. Out: the drawn axes, or the bytes of a file. On a page plots.py draws it.
"""

from __future__ import annotations

import io
from typing import Any

from dspy_finetune._optional import require
from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation.curve_result import LearningCurve

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
