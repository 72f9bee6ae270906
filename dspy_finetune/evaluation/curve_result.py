"""`LearningCurve`: what each training size gave, what it cost, and what more examples would bring, and its pages.

In: JSON, or what learning_curve.py computes. Out: frozen values; the table, the sentences and the picture of them, as
text, HTML, Markdown and JSON. Not covered: running the jobs and the extrapolation (learning_curve.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_finetune._files import atomic_writer, read_text, write_json
from dspy_finetune.errors import DataError, UsageError
from dspy_finetune.evaluation.result import MetricFacts
from dspy_finetune.evaluation.statistics import Interval
from dspy_finetune.report import page, plots
from dspy_finetune.report.blocks import Plot, Plots, Section, Table, Text
from dspy_finetune.report.text import MISSING, as_text, figure, markdown, with_interval

FORMAT = 1
"""Version of the JSON form."""


@dataclass(frozen=True, kw_only=True)
class CurveRun:
    """One job of the sweep, and how its model did."""

    base_model: str
    """What was trained on."""
    n_epochs: int
    """Times through the rows, by the plan."""
    n_rows: int
    """Training examples."""
    seed: int
    """Which nested order of the examples it took its rows from; the job's own seed too."""
    job_id: str | None
    """The host's id; None where it was not started."""
    model: str | None
    """The tuned model; None without one."""
    is_new: bool
    """Whether this call made the job, or found it."""
    estimated_cost_usd: float | None
    """What the plan said; None where no price is known."""
    cost_usd: float | None
    """What the host billed by its own count of tokens; None where that is unknown."""
    score: Interval | None
    """The metric on the test items; None without a model."""
    n_parse_failures: int
    """Test answers that could not be read."""
    n_failed: int
    """Test calls that failed."""
    error: str | None
    """Why there is no model; None when there is one."""

    @property
    def paid_usd(self) -> float | None:
        """The bill, else the plan's estimate; 0 for a job that was not started."""
        if self.job_id is None:
            return 0.0
        return self.cost_usd if self.cost_usd is not None else self.estimated_cost_usd


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One cell of the table: all seeds of one model, number of epochs and training size."""

    base_model: str
    """What was trained on."""
    n_epochs: int
    """Times through the rows."""
    n_rows: int
    """Training examples."""
    n_runs: int
    """Runs that gave a model; the score is their mean."""
    score: Interval
    """The metric; with several seeds the interval holds the spread between them as well."""
    cost_usd: float | None
    """Mean cost of one run; None where unknown."""


@dataclass(frozen=True, kw_only=True)
class MarginalValue:
    """What more examples would bring to one model at the end of its curve, if the curve goes on as it went."""

    base_model: str
    """What was trained on."""
    n_epochs: int
    """Times through the rows."""
    n_rows: int
    """The largest size that was measured."""
    n_more: int
    """How many examples more."""
    change: Interval
    """By how much the metric would change; below zero is good for errors, above zero for shares of right answers."""
    cost_usd: float | None
    """By how much one job would cost more; labelling is not in it. None where unknown."""
    extrapolated: float | None
    """The largest size's score, extrapolated from the smaller sizes; None with fewer than three sizes."""
    measured: float
    """The largest size's score as it is; far from `extrapolated`, the line is no good guide."""


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """All of a sweep."""

    metric: MetricFacts
    """What was measured."""
    runs: tuple[CurveRun, ...]
    """Every job, in the order in which they were started."""
    points: tuple[CurvePoint, ...]
    """The table: by model, epochs and size."""
    margins: tuple[MarginalValue, ...]
    """One for each model and number of epochs with two sizes or more."""
    n_test: int
    """Items that every model was asked about."""
    seeds: tuple[int, ...]
    """Of the nested orders."""
    confidence: float
    """Of all intervals."""
    not_checked: tuple[str, ...]
    """What the curve does not tell, in sentences."""

    @property
    def cost_usd(self) -> float | None:
        """Of all jobs, those found from an earlier call included; None where one is unknown."""
        paid = [run.paid_usd for run in self.runs]
        return None if None in paid else sum(one for one in paid if one is not None)

    def point(self, base_model: str, n_rows: int, *, n_epochs: int | None = None) -> CurvePoint | None:
        """One cell; None where no run gave a model. `n_epochs` may be left out when there is but one."""
        return next(
            (
                one
                for one in self.points
                if (one.base_model, one.n_rows) == (base_model, n_rows) and n_epochs in (None, one.n_epochs)
            ),
            None,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"format": FORMAT, "cost_usd": self.cost_usd, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LearningCurve:
        """From JSON.

        Raises:
            DataError: It is not a learning curve, or of another version.
        """
        try:
            given = dict(values)
            given.pop("cost_usd")
            if given.pop("format") != FORMAT:
                raise ValueError(f"format {values['format']}")
            given["metric"] = MetricFacts.from_dict(given["metric"])
            given["runs"] = tuple(CurveRun(**{**one, "score": _interval(one["score"])}) for one in given["runs"])
            given["points"] = tuple(CurvePoint(**{**one, "score": Interval(**one["score"])}) for one in given["points"])
            given["margins"] = tuple(
                MarginalValue(**{**one, "change": Interval(**one["change"])}) for one in given["margins"]
            )
            given["seeds"], given["not_checked"] = tuple(given["seeds"]), tuple(given["not_checked"])
            return cls(**given)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"this is not a learning curve of format {FORMAT} ({type(error).__name__}: {error})"
            ) from error

    @property
    def sentences(self) -> tuple[str, ...]:
        """For each model and number of epochs, what the next 100 examples would bring."""
        return tuple(_sentence(self, one) for one in self.margins)

    def table(self) -> str:
        """Training size by model: score and cost, as aligned plain text."""
        return as_text(curve_table(self))

    def __str__(self) -> str:
        return "\n".join([self.table(), *(["", *self.sentences] if self.sentences else []), *_errors(self)])

    def markdown(self) -> str:
        """Table, marginal values and what was not checked, as Markdown."""
        return markdown(self.section())

    def svg(self, name: str = "curve") -> str | None:
        """The picture as an `<svg>` element for a page, its ids beginning with `name`; None without a point."""
        if not self.points:
            return None
        return plots.draw(
            name, (plots.WIDTH, 3.6), lambda axes: plots.paint_by_size(axes, _lines(self), self.metric.name)
        )

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write the picture; the file's ending says how: `.svg`, `.png` or `.pdf`.

        Raises:
            UsageError: Another ending, or no run gave a model.
            FileError: The file cannot be written.
            MissingExtraError: The extra `report` is not installed.
        """
        ending = Path(path).suffix.lower().lstrip(".")
        if ending not in plots.FORMATS:
            raise UsageError(f"plot({os.fspath(path)!r}): the file must end in .{', .'.join(plots.FORMATS)}")
        if not self.points:
            raise UsageError("no run of the learning curve gave a model: there is nothing to draw")
        content = plots.in_plain_colours(
            ending, lambda axes, colours: plots.paint_by_size(axes, _lines(self), self.metric.name, colours)
        )
        with atomic_writer(path) as stream:
            stream.write(content)

    def section(self) -> Section:
        """The blocks that the curve consists of, for a page of several."""
        words = "; ".join(
            f"{_series(one.base_model, one.n_epochs)}, {one.n_rows} rows: {figure(one.score.value)}"
            for one in self.points
        )
        picture = Plot(
            name="curve",
            draw=self.svg,
            caption=f"{self.metric.name} by training size, with {self.confidence:.0%} intervals.",
            alt=f"{self.metric.name} by training size: {words}",
        )
        return Section(
            title=f"Learning curve: {self.metric.name}",
            blocks=(
                *(Text(text=one) for one in (*self.sentences, *_errors(self))),
                Plots(plots=(picture,)),
                curve_table(self),
            ),
            not_checked=self.not_checked,
        )

    def html(self) -> str:
        """One self-contained HTML page. Raises MissingExtraError without the extra `report`."""
        return page.render([self.section()], title=self.section().title)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the page. Raises FileError, and MissingExtraError without the extra `report`."""
        page.write_text(path, self.html())

    def to_markdown(self, path: str | os.PathLike[str]) -> None:
        """Write the Markdown. Raises FileError."""
        page.write_text(path, self.markdown())

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON; `from_json` reads it back. Raises FileError."""
        write_json(path, {"sentences": list(self.sentences), "curve": self.to_dict()})

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> LearningCurve:
        """Read a curve that `to_json` wrote.

        Raises:
            FileError: The file cannot be read.
            DataError: It holds something else.
        """
        text = read_text(path)
        try:
            values = json.loads(text)
        except ValueError as error:
            raise DataError(f"{os.fspath(path)}: not JSON ({error})") from error
        if not isinstance(values, Mapping) or "curve" not in values:
            raise DataError(f'{os.fspath(path)}: this is not a learning curve: it has no "curve"')
        return cls.from_dict(values["curve"])

    def _repr_html_(self) -> str:
        # With the picture, which a notebook shows as the page does.
        return page.fragment(self.section()) + (self.svg() or "")


def _interval(values: Mapping[str, Any] | None) -> Interval | None:
    return None if values is None else Interval(**values)


def curve_table(curve: LearningCurve) -> Table:
    """One row per training size, for each model and number of epochs its score with the interval and its cost."""
    series = list(dict.fromkeys((one.base_model, one.n_epochs) for one in curve.points))
    sizes = sorted({run.n_rows for run in curve.runs})
    cells = {(one.base_model, one.n_epochs, one.n_rows): one for one in curve.points}
    head = ["rows"]
    for model, epochs in series:
        head += [f"{_series(model, epochs)}: {curve.metric.name} [{curve.confidence:.0%}]", "USD"]
    rows = [
        (f"{size:,}", *(cell for key in series for cell in _cells(cells.get((*key, size))))) for size in sizes if series
    ]
    return Table(head=tuple(head), rows=tuple(rows), label="Scores")


def _cells(point: CurvePoint | None) -> Sequence[str]:
    if point is None:
        return (MISSING, MISSING)
    return (with_interval(point.score), MISSING if point.cost_usd is None else f"{point.cost_usd:.2f}")


def _series(model: str, n_epochs: int) -> str:
    return f"{model}, {n_epochs} epoch{'s' * (n_epochs != 1)}"


def _lines(curve: LearningCurve) -> list[plots.SizedLine]:
    series = list(dict.fromkeys((one.base_model, one.n_epochs) for one in curve.points))
    return [
        plots.SizedLine(
            label=_series(*key),
            points=[
                (one.n_rows, one.score.value, one.score.low, one.score.high)
                for one in curve.points
                if (one.base_model, one.n_epochs) == key and one.score.value is not None
            ],
        )
        for key in series
    ]


def _sentence(curve: LearningCurve, one: MarginalValue) -> str:
    who, change = _series(one.base_model, one.n_epochs), one.change
    cost = "" if one.cost_usd is None else f", for ${one.cost_usd:,.2f} more per training"
    text = (
        f"{who}: {one.n_more} examples beyond {one.n_rows:,} would change {curve.metric.name} by "
        f"{with_interval(change, sign=True)}{cost}, if the curve goes on as it went."
    )
    if change.low is None or change.high is None:
        return text
    good = change.low > 0 if curve.metric.higher_is_better else change.high < 0
    if not good:
        text += " The interval does not exclude that they bring nothing."
    if one.extrapolated is not None:
        text += (
            f" (Extrapolated from the smaller sizes: {figure(one.extrapolated)} at {one.n_rows:,} rows; "
            f"measured: {figure(one.measured)}.)"
        )
    return text


def _errors(curve: LearningCurve) -> list[str]:
    return [
        f"{_series(run.base_model, run.n_epochs)}, {run.n_rows} rows, seed {run.seed}: no model: {run.error}"
        for run in curve.runs
        if run.error is not None
    ]
