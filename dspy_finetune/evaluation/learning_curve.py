"""`learning_curve`: how much more data would help? One job per training size, model and number of epochs.

In: training examples, test examples, a prompt, sizes, models, epochs, a host, a budget. Out: a `LearningCurve`.
All jobs are planned and priced before the first is started; a second call finds each job again by its plan's intent,
and each answer in the folder, so nothing is paid for twice.

What more examples would bring is extrapolated by the line score = a + b ln(size), by least squares over all runs. It is
the simplest form that falls ever slower, as error does with data (Hestness et al. 2017 find power laws; over the one or
two doublings that a sweep measures, the two cannot be told apart, and a power law's three numbers cannot be had from
three points). The interval of a change is the wider of two: the bootstrap, which knows the test items, and Student's t
from the runs' distances to the line, which knows the noise between trainings and a line that does not fit. With as many
runs as the line has numbers, only the first exists.

The `LearningCurve` is frozen values: what each training size gave, what it cost, what more examples would bring; the
table, the sentences and the picture of them as text, HTML, Markdown and JSON.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dspy_finetune._files import atomic_writer, write_json
from dspy_finetune.data import find_leakage
from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation import statistics
from dspy_finetune.evaluation.metrics import AnyMetric, Metric, SetMetric
from dspy_finetune.evaluation.scoring import MetricFacts, Resampling, StatisticsOptions, from_saved, read_saved
from dspy_finetune.evaluation.statistics import Interval
from dspy_finetune.evaluation.training_runs import (
    CurveJobs,
    CurveRun,
    Measured,
    Ran,
    cell_of,
    check_arguments,
    folder_of,
    mean_over_seeds,
    missing,
    paid_together,
    placed,
    told,
    told_of_runs,
    train_and_measure,
    write_parts,
)
from dspy_finetune.hosts import Host
from dspy_finetune.prompts.format import AnyPrompt, as_prompt
from dspy_finetune.report import plots
from dspy_finetune.report.blocks import MISSING, Plot, Plots, Section, Table, Text, as_text, figure, with_interval
from dspy_finetune.report.page import Reported

FORMAT = 1
"""Version of the JSON form."""


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
class LearningCurve(Reported):
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
        return paid_together(self.runs)

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
        return from_saved(cls, values, "a learning curve")

    @property
    def sentences(self) -> tuple[str, ...]:
        """For each model and number of epochs, what the next 100 examples would bring."""
        return tuple(_sentence(self, one) for one in self.margins)

    def table(self) -> str:
        """Training size by model: score and cost, as aligned plain text."""
        return as_text(curve_table(self))

    def __str__(self) -> str:
        return "\n".join([self.table(), *(["", *self.sentences] if self.sentences else []), *_errors(self)])

    def svg(self, name: str = "curve") -> str | None:
        """The picture as an `<svg>` element for a page, its ids beginning with `name`; None without a point."""
        if not self.points:
            return None
        return plots.draw(
            name,
            (plots.WIDTH, 3.3 + 0.23 * len(_lines(self))),
            lambda axes: plots.paint_by_size(axes, _lines(self), self.metric.name),
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
        return cls.from_dict(read_saved(path, "curve", "a learning curve"))

    def _repr_html_(self) -> str:
        # With the picture, which a notebook shows as the page does.
        return super()._repr_html_() + (self.svg() or "")


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
        f"{_series(run.base_model, run.n_epochs)}, {run.n_rows} rows, seed {run.seed}: {missing(run)}: {run.error}"
        for run in curve.runs
        if run.error is not None
    ]


def change_by_more(runs: Sequence[Measured], n_more: int, *, confidence: float) -> Interval:
    """By how much the score changes with `n_more` examples beyond the largest size; no interval with one size."""
    sizes = np.log([run.n_rows for run in runs])
    spread = float(((sizes - sizes.mean()) ** 2).sum())
    n_items = min(run.interval.n for run in runs)
    if not spread:
        return Interval(value=None, low=None, high=None, n=n_items, method="none")
    weights = (sizes - sizes.mean()) / spread  # the slope is this weighted sum of the scores
    # Counted from the first run's, which changes no slope: scores that are all the same then give exactly zero.
    values = np.array([run.value for run in runs]) - runs[0].value
    draws = np.stack([run.draws for run in runs]) - runs[0].draws  # (n_runs, n_resamples)
    slope = float(weights @ values)
    largest = max(run.n_rows for run in runs)
    reach = math.log((largest + n_more) / largest)
    found = statistics.percentile_interval(slope * reach, reach * (weights @ draws), n_items, confidence)
    degrees = len(runs) - 2
    if degrees < 1 or found.low is None or found.high is None:
        return found
    residuals = values - values.mean() - slope * (sizes - sizes.mean())
    deviation = math.sqrt(float((residuals**2).sum()) / degrees / spread)
    by_runs = statistics.around(slope * reach, deviation * reach, n=n_items, degrees=degrees, confidence=confidence)
    assert by_runs.low is not None
    assert by_runs.high is not None
    return found if by_runs.high - by_runs.low <= found.high - found.low else by_runs


def extrapolate_largest(runs: Sequence[Measured]) -> float | None:
    """The largest size's score on the line through the smaller sizes; None with fewer than three sizes."""
    largest = max(run.n_rows for run in runs)
    smaller = [run for run in runs if run.n_rows < largest]
    if len({run.n_rows for run in smaller}) < 2:
        return None
    sizes = np.log([run.n_rows for run in smaller])
    values = np.array([run.value for run in smaller])
    slope = float(((sizes - sizes.mean()) * values).sum() / ((sizes - sizes.mean()) ** 2).sum())
    return float(values.mean() + slope * (math.log(largest) - sizes.mean()))


# The jobs: nested parts of the data, one budget, and every job followed to its end.


MORE_ROWS = 100
"""The step whose value is told: the next hundred examples."""


def learning_curve(
    train: Sequence[Any],
    *,
    sizes: Sequence[int] | None = None,
    models: str | Sequence[str | tuple[str, Host]] | None = None,
    epochs: Sequence[int] | None = None,
    host: Host,
    test: Sequence[Any],
    prompt: AnyPrompt,
    metric: AnyMetric,
    max_usd: float | None = None,
    num_threads: int = 8,
    jobs: CurveJobs | None = None,
    statistics: StatisticsOptions | None = None,
) -> LearningCurve:
    """Train on growing parts of the data and say what each size gave, what it cost, and what more would bring.

    The parts are nested: the first 50 rows are among the first 100. Where the prompt has labels, every part has them in
    the shares of the whole. Calling again with the same arguments finds the jobs and answers of the first call.

    Args:
        train: Labelled examples; for `method="dpo"` pairs as `export_dpo` takes them.
        sizes: How many rows to train on; default: 50, 100, 200, ... and all.
        models: Base models, by the host's names; `(name, another_host)` for one that is trained elsewhere, within the
            same budget; default: the host's own, `host.base_model`.
        epochs: Times through the rows, each tried; default: what the host chooses.
        host: Where to train and ask.
        test: Labelled examples that every model is asked about; none may stand in `train`.
        prompt: How examples are rendered, for training and asking; or a signature.
        metric: What is measured: from `dspy_finetune.metrics`, or a plain function.
        max_usd: The most that all jobs together may cost by their plans; nothing is started above it. Asking the
            models is not in it.
        num_threads: Concurrent requests when a model is asked.
        jobs: Method, hyperparameters, seeds, folder, progress.
        statistics: Confidence, bootstrap draws, and the cluster column of the test items.

    Raises:
        UsageError: An argument is wrong.
        EmptyDatasetError: There are no training or test examples.
        LeakageError: A test item stands in the training rows.
        DataError: A test label is empty or no number where the metric needs one; or the host would refuse a training
            file, because it is too short, for one.
        BudgetError: All jobs together cost more than allowed, or a price is unknown; nothing was started.
        JobError: A job may exist already (AmbiguousJobError); says what to check. A failed job is part of the result.
        HostError: The host refused or did not answer; call again to go on.
    """
    prompt = as_prompt(prompt)
    with told(jobs) as made:
        options = statistics or StatisticsOptions()
        rows, items = list(train), list(test)
        check_arguments("a learning curve", {"training": rows, "test": items}, made)
        sizes = _checked_sizes(sizes, rows, epochs)
        if isinstance(metric, (Metric, SetMetric)):
            metric.check(items)  # missed only when scores are counted, a wrong name would cost every training
        find_leakage(rows, items).raise_if_any()
        how = Resampling.of(options, items)
        place = folder_of(rows, prompt, made)
        cells = [
            cell_of(part, where, {} if n_epochs is None else {"n_epochs": n_epochs}, made)
            for part in write_parts(rows, sizes, made.seeds, prompt, made.method, place)
            for where in placed(host.base_model if models is None else models, host)
            for n_epochs in (list(epochs) if epochs is not None else [None])
        ]
        ran = train_and_measure(
            cells, items, metric, how, prompt, place, max_usd=max_usd, num_threads=num_threads, jobs=made
        )
        return _summary(ran, len(items), how, tuple(made.seeds))


def _checked_sizes(sizes: Sequence[int] | None, rows: Sequence[Any], epochs: Sequence[int] | None) -> list[int]:
    if sizes is None:
        sizes = [50 * 2**power for power in range(20) if 50 * 2**power < len(rows)] + [len(rows)]
    if not sizes or len(set(sizes)) < len(sizes) or min(sizes) < 1 or max(sizes) > len(rows):
        raise UsageError(f"sizes={list(sizes)} must be different whole numbers from 1 to the {len(rows)} training rows")
    if epochs is not None and not epochs:
        raise UsageError("epochs must hold at least one value")
    return sorted(sizes)


def _summary(ran: Ran, n_items: int, how: Resampling, seeds: tuple[int, ...]) -> LearningCurve:
    groups: dict[tuple[str, int], dict[int, list[tuple[CurveRun, Measured]]]] = {}
    for run, one in zip(ran.runs, ran.measured, strict=True):
        if one is not None:
            groups.setdefault((run.base_model, run.n_epochs), {}).setdefault(run.n_rows, []).append((run, one))
    points: list[CurvePoint] = []
    margins: list[MarginalValue] = []
    for (base_model, n_epochs), by_size in groups.items():
        for n_rows, found in sorted(by_size.items()):
            cost = paid_together([run for run, _ in found])
            points.append(
                CurvePoint(
                    base_model=base_model,
                    n_epochs=n_epochs,
                    n_rows=n_rows,
                    n_runs=len(found),
                    score=mean_over_seeds([one for _, one in found], confidence=how.confidence, seed=how.seed),
                    cost_usd=None if cost is None else cost / len(found),
                )
            )
        if len(by_size) > 1:
            last = points[-1]
            measured_runs = [of_run for found in by_size.values() for _, of_run in found]
            assert last.score.value is not None
            margins.append(
                MarginalValue(
                    base_model=base_model,
                    n_epochs=n_epochs,
                    n_rows=last.n_rows,
                    n_more=MORE_ROWS,
                    change=change_by_more(measured_runs, MORE_ROWS, confidence=how.confidence),
                    cost_usd=None if last.cost_usd is None else last.cost_usd * MORE_ROWS / last.n_rows,
                    extrapolated=extrapolate_largest(measured_runs),
                    measured=last.score.value,
                )
            )
    return LearningCurve(
        metric=ran.facts,
        runs=ran.runs,
        points=tuple(points),
        margins=tuple(margins),
        n_test=n_items,
        seeds=seeds,
        confidence=how.confidence,
        not_checked=(
            "Whether the curve goes on as a line over the logarithm of the rows: a plateau or a jump beyond the "
            "largest size is not extrapolated.",
            "What labelling more examples, and asking the models, costs.",
            *told_of_runs(ran.runs, seeds),
        ),
    )
