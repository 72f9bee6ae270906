"""`learning_curve`, shown: the table of training size by model, a picture, and the value of the next 100 examples.

In: a `LearningCurve` (evaluation/). Out: texts and files. Not covered: training and asking (evaluation/).
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, ParamSpec

from dspy_finetune._files import atomic_writer, read_text, write_json
from dspy_finetune._progress import ProgressLine
from dspy_finetune.errors import DataError, UsageError
from dspy_finetune.evaluation.learning_curve import CurvePoint, LearningCurve, MarginalValue
from dspy_finetune.evaluation.learning_curve import learning_curve as run_learning_curve
from dspy_finetune.report import plots, tables
from dspy_finetune.report.tables import MISSING, Table

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class CurveReport:
    """The outcome of `learning_curve`: numbers, and the ways to show them."""

    curve: LearningCurve
    """All numbers."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """For each model and number of epochs, what the next 100 examples would bring."""
        return tuple(_sentence(self.curve, one) for one in self.curve.margins)

    def table(self) -> str:
        """Training size by model: score and cost, as aligned plain text."""
        return tables.as_text(curve_table(self.curve))

    def __str__(self) -> str:
        return "\n".join([self.table(), *(["", *self.sentences] if self.sentences else []), *_errors(self.curve)])

    def markdown(self) -> str:
        """Table, marginal values and what was not checked, as Markdown."""
        parts = ["# Learning curve", tables.as_markdown(curve_table(self.curve))]
        parts += [tables.escape_markdown(one) for one in (*self.sentences, *_errors(self.curve))]
        parts += ["## Not checked", "\n".join(f"- {tables.escape_markdown(one)}" for one in self.curve.not_checked)]
        return "\n\n".join(parts) + "\n"

    def svg(self, name: str = "curve") -> str | None:
        """The picture as an `<svg>` element for a page, its ids beginning with `name`; None without a point."""
        return plots.learning_curve(self.curve, name)

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
        with atomic_writer(path) as stream:
            stream.write(plots.for_file(self.curve, ending))

    def html(self) -> str:
        """One self-contained HTML page. Raises MissingExtraError without the extra `report`."""
        style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Learning curve</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            f"<style>{style}</style></head><body><main>{self._repr_html_()}</main></body></html>\n"
        )

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the page. Raises FileError, and MissingExtraError without the extra `report`."""
        _write(path, self.html())

    def to_markdown(self, path: str | os.PathLike[str]) -> None:
        """Write the Markdown. Raises FileError."""
        _write(path, self.markdown())

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"sentences": list(self.sentences), "curve": self.curve.to_dict()}

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON; `from_json` reads it back. Raises FileError."""
        write_json(path, self.to_dict())

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> CurveReport:
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
        return cls(curve=LearningCurve.from_dict(values["curve"]))

    def _repr_html_(self) -> str:
        """Heading, picture and tables, for a notebook and for the page."""
        metric = self.curve.metric.name
        picture = self.svg()
        words = "; ".join(
            f"{_series(one.base_model, one.n_epochs)}, {one.n_rows} rows: {tables.figure(one.score.value)}"
            for one in self.curve.points
        )
        figure = (
            f'<figure role="img" aria-label="{escape(f"{metric} by training size: {words}", quote=True)}">{picture}'
            f"<figcaption>{escape(metric)} by training size, with {self.curve.confidence:.0%} intervals.</figcaption>"
            "</figure>"
            if picture is not None
            else ""
        )
        told = "".join(f"<p>{escape(one)}</p>" for one in (*self.sentences, *_errors(self.curve)))
        open_questions = "".join(f"<li>{escape(one)}</li>" for one in self.curve.not_checked)
        return (
            f"<h1>Learning curve: {escape(metric)}</h1>{told}{figure}"
            '<div class="scroll" role="region" aria-label="Scores" tabindex="0">'
            f"{_html_table(curve_table(self.curve))}</div>"
            f"<h2>Not checked</h2><ul>{open_questions}</ul>"
        )


def _as_report(run: Callable[P, LearningCurve]) -> Callable[P, CurveReport]:
    # All but __module__: it is found, and pickled, here.
    @functools.wraps(run, assigned=("__name__", "__qualname__", "__doc__"))
    def learning_curve(*args: P.args, **kwargs: P.kwargs) -> CurveReport:
        with ProgressLine() as line:
            if kwargs.get("on_progress") is None:
                kwargs["on_progress"] = lambda look: line.show(
                    f"{look.stage} {look.run}: {look.note}", look.n_done, look.n_total
                )
            return CurveReport(curve=run(*args, **kwargs))

    learning_curve.__annotations__ = {**run.__annotations__, "return": "CurveReport"}
    return learning_curve


learning_curve = _as_report(run_learning_curve)
"""`evaluation.learning_curve` with a result that can draw itself; its docstring and parameters are that one's."""


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
    return Table(head=tuple(head), rows=tuple(rows))


def _cells(point: CurvePoint | None) -> Sequence[str]:
    if point is None:
        return (MISSING, MISSING)
    return (tables.with_interval(point.score), MISSING if point.cost_usd is None else f"{point.cost_usd:.2f}")


def _series(model: str, n_epochs: int) -> str:
    return f"{model}, {n_epochs} epoch{'s' * (n_epochs != 1)}"


def _sentence(curve: LearningCurve, one: MarginalValue) -> str:
    who, change = _series(one.base_model, one.n_epochs), one.change
    cost = "" if one.cost_usd is None else f", for ${one.cost_usd:,.2f} more per training"
    text = (
        f"{who}: {one.n_more} examples beyond {one.n_rows:,} would change {curve.metric.name} by "
        f"{tables.with_interval(change, sign=True)}{cost}, if the curve goes on as it went."
    )
    if change.low is None or change.high is None:
        return text
    good = change.low > 0 if curve.metric.higher_is_better else change.high < 0
    if not good:
        text += " The interval does not exclude that they bring nothing."
    if one.foretold is not None:
        text += (
            f" (The smaller sizes foretell {tables.figure(one.foretold)} at {one.n_rows:,} rows; "
            f"measured: {tables.figure(one.measured)}.)"
        )
    return text


def _errors(curve: LearningCurve) -> list[str]:
    return [
        f"{_series(run.base_model, run.n_epochs)}, {run.n_rows} rows, seed {run.seed}: no model: {run.error}"
        for run in curve.runs
        if run.error is not None
    ]


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _write(path: str | os.PathLike[str], text: str) -> None:
    with atomic_writer(path) as stream:
        stream.write(text.encode("utf-8", "replace"))
