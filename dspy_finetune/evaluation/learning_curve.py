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
import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dspy_finetune._files import atomic_writer, read_json, write_json
from dspy_finetune._optional import require
from dspy_finetune._progress import ProgressBar
from dspy_finetune.data import find_leakage
from dspy_finetune.errors import (
    BudgetError,
    DataError,
    EmptyDatasetError,
    JobCancelledError,
    JobFailedError,
    UsageError,
)
from dspy_finetune.evaluation import scoring, statistics
from dspy_finetune.evaluation.baselines import predictor_for
from dspy_finetune.evaluation.collect import Answer, CompareProgress, Program, RunOptions, collect, jsonable
from dspy_finetune.evaluation.metrics import AnyMetric, Metric, SetMetric
from dspy_finetune.evaluation.scoring import MetricFacts, Resampling, Scored, StatisticsOptions
from dspy_finetune.evaluation.statistics import Floats, Interval
from dspy_finetune.export import export_dpo, export_sft
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.embedded import home
from dspy_finetune.jobs import FinetunedModel, Job, Plan, plan
from dspy_finetune.jobs.plan import unknown_price
from dspy_finetune.prompts import PromptFormat
from dspy_finetune.report import plots
from dspy_finetune.report.blocks import Plot, Plots, Section, Table, Text
from dspy_finetune.report.page import Reported
from dspy_finetune.report.text import MISSING, as_text, figure, with_interval
from dspy_finetune.values import label_text

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
        values = read_json(path, "a learning curve", "`to_json` writes one")
        if "curve" not in values:
            raise DataError(f'{os.fspath(path)}: this is not a learning curve: it has no "curve"')
        return cls.from_dict(values["curve"])

    def _repr_html_(self) -> str:
        # With the picture, which a notebook shows as the page does.
        return super()._repr_html_() + (self.svg() or "")


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


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run's score."""

    n_rows: int
    """Training examples."""
    seed: int
    """Which nested order."""
    value: float
    """The score over all test items."""
    draws: Floats
    """The score over resampled items; the same items for every run, shape (n_resamples,)."""
    interval: Interval
    """The score's own interval."""


def mean_over_seeds(runs: Sequence[Measured], *, confidence: float, seed: int) -> Interval:
    """The mean of runs of one size; of one run its own interval, of several a bootstrap over items and runs.

    Drawing k runs with replacement shows (k - 1) / k of the variance between trainings: with two or three seeds the
    interval is still too narrow, though less so than without them.
    """
    if len(runs) == 1:
        return runs[0].interval
    # Imported here: numpy costs 0.1 s, which `import dspy_finetune` must not.
    import numpy as np

    draws = np.stack([run.draws for run in runs])  # (n_runs, n_resamples)
    picks = np.random.default_rng(seed).integers(0, len(runs), size=draws.shape)
    drawn = np.take_along_axis(draws, picks, axis=0).mean(axis=0)
    value = math.fsum(run.value for run in runs) / len(runs)
    return statistics.percentile_interval(value, drawn, min(run.interval.n for run in runs), confidence)


def change_by_more(runs: Sequence[Measured], n_more: int, *, confidence: float) -> Interval:
    """By how much the score changes with `n_more` examples beyond the largest size; no interval with one size."""
    # Imported here: see mean_over_seeds.
    import numpy as np

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
    student = require("scipy.stats", "eval", "a learning curve").t.ppf((1 + confidence) / 2, degrees)
    half = float(student) * deviation * reach
    if 2 * half <= found.high - found.low:
        return found
    return Interval(value=slope * reach, low=slope * reach - half, high=slope * reach + half, n=n_items, method="t")


def extrapolate_largest(runs: Sequence[Measured]) -> float | None:
    """The largest size's score on the line through the smaller sizes; None with fewer than three sizes."""
    # Imported here: see mean_over_seeds.
    import numpy as np

    largest = max(run.n_rows for run in runs)
    smaller = [run for run in runs if run.n_rows < largest]
    if len({run.n_rows for run in smaller}) < 2:
        return None
    sizes = np.log([run.n_rows for run in smaller])
    values = np.array([run.value for run in smaller])
    slope = float(((sizes - sizes.mean()) * values).sum() / ((sizes - sizes.mean()) ** 2).sum())
    return float(values.mean() + slope * (math.log(largest) - sizes.mean()))


# The jobs: nested parts of the data, one budget, and every job followed to its end.


@dataclass(frozen=True, kw_only=True)
class CurveProgress:
    """How far a learning curve is: given to `on_progress` at each sign of life."""

    stage: Literal["training", "asking"]
    """What is being done."""
    run: str
    """Which run: model, rows, epochs, seed."""
    n_done: int
    """Runs trained, or answers had."""
    n_total: int
    """Of how many."""
    note: str
    """The job's status and step, or the answers' faults."""

    @property
    def label(self) -> str:
        """What is being done, and of which run."""
        return f"{self.stage} {self.run}"

    def __str__(self) -> str:
        return f"{self.label}: {self.note}, {self.n_done}/{self.n_total}"


Tell: TypeAlias = Callable[[CurveProgress], object]
"""Takes each sign of progress."""


MakePredictor: TypeAlias = Callable[[FinetunedModel], Program]
"""Makes a program of a tuned model."""


@dataclass(frozen=True, kw_only=True)
class CurveJobs:
    """How the jobs of a learning curve are made and followed."""

    method: Literal["sft", "dpo"] = "sft"
    """sft or dpo."""
    hyperparameters: Mapping[str, Any] | None = None
    """For every job, besides the epochs."""
    suffix: str | None = None
    """A part of the new models' names."""
    seeds: Sequence[int] = (0,)
    """Random seeds of the rows' orders, each a curve of its own; several show the run-to-run variance of training."""
    allow_unknown_price: bool = False
    """Start although nobody knows a price."""
    allow_unknown_model: bool = False
    """Plan although the catalog does not know that the host trains the model."""
    n_concurrent: int = 4
    """Jobs that the host works on or queues at once."""
    retry_failed: bool = False
    """Make a new job for one that had failed or was cancelled."""
    predictor: MakePredictor | None = None
    """Makes a program of a tuned model; default: the predictor that fits the prompt."""
    folder: str | os.PathLike[str] | None = None
    """Where training files and answers are kept; default: a folder of this data in the library's home."""
    on_progress: Tell | None = None
    """Called at each sign of progress; without it a line on stderr."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run to be made."""

    n_rows: int
    """Training examples."""
    seed: int
    """Of the order they were taken from, and of the job."""
    plan: Plan
    """The job."""
    is_elsewhere: bool = False
    """Whether it is trained on another host than the curve's own."""

    @property
    def base_model(self) -> str:
        """What is trained; with its host where that is another one."""
        return f"{self.plan.base_model} on {self.plan.host.name}" if self.is_elsewhere else self.plan.base_model

    @property
    def name(self) -> str:
        """For people."""
        epochs = f"{self.plan.n_epochs} epoch{'s' * (self.plan.n_epochs != 1)}"
        return f"{self.base_model}, {self.n_rows} rows, {epochs}, seed {self.seed}"


@dataclass
class Trained:
    """What became of a cell."""

    cell: Cell
    """What was to be made."""
    job: Job | None = None
    """Its job; None where it was not started."""
    model: FinetunedModel | None = None
    """Its model; None until there is one."""
    error: str | None = None
    """Why there is none."""

    @property
    def paid_usd(self) -> float:
        """The bill, else the estimate."""
        if self.job is None:
            return 0.0
        billed = self.model.cost_usd if self.model is not None else None
        return (billed if billed is not None else self.cell.plan.cost_usd) or 0.0


def nested_order(rows: Sequence[Any], *, label: str | None, seed: int) -> list[int]:
    """An order of the rows whose every beginning is a fair part: at random, and with the labels in the whole's shares.

    Each row is put at its place within its own label, (k + 1/2) / n, so a label's share in any beginning is off by one
    row at most.
    """
    generator = random.Random(seed)
    shuffled = list(range(len(rows)))
    generator.shuffle(shuffled)
    if label is None:
        return shuffled
    by_label: dict[str, list[int]] = {}
    for index in shuffled:
        by_label.setdefault(label_text(rows[index].get(label, "")), []).append(index)
    placed = [
        ((position + 0.5) / len(indices), generator.random(), index)
        for indices in by_label.values()
        for position, index in enumerate(indices)
    ]
    return [index for _, _, index in sorted(placed)]


def write_parts(
    rows: Sequence[Any],
    sizes: Sequence[int],
    seeds: Sequence[int],
    prompt: PromptFormat,
    method: str,
    folder: Path,
) -> Iterator[tuple[int, int, Path]]:
    """(seed, size, training file), the small sizes first; the same rows give the same bytes and so the same jobs."""
    folder.mkdir(parents=True, exist_ok=True)
    orders = {seed: nested_order(rows, label=prompt.label_field, seed=seed) for seed in seeds}
    for size in sizes:
        for seed in seeds:
            part = [rows[index] for index in orders[seed][:size]]
            file = folder / f"{method}-{size}-rows-seed-{seed}.jsonl"
            if method == "sft":
                export_sft(part, prompt, file, seed=seed)
            else:
                export_dpo(part, prompt, file, seed=seed)
            yield seed, size, file


def check_budget(cells: Sequence[Cell], max_usd: float | None, allow_unknown_price: bool) -> None:
    """Refuse jobs that cost more together than allowed. Raises BudgetError, which tells what each size costs."""
    unknown = sorted({cell.plan.base_model for cell in cells if cell.plan.cost_usd is None})
    if unknown and not allow_unknown_price:
        where = next(cell.plan.host for cell in cells if cell.plan.cost_usd is None)
        raise unknown_price(", ".join(unknown), where, max_usd)
    total = sum(cell.plan.cost_usd or 0.0 for cell in cells)
    if max_usd is not None and total > max_usd:
        by_size: dict[int, float] = {}
        for cell in cells:
            by_size[cell.n_rows] = by_size.get(cell.n_rows, 0.0) + (cell.plan.cost_usd or 0.0)
        shown = ", ".join(f"{size} rows ${cost:,.2f}" for size, cost in by_size.items())
        raise BudgetError(
            f"the {len(cells)} jobs cost ${total:,.2f}, more than the allowed ${max_usd:,.2f} ({shown}); take fewer or "
            "smaller sizes, fewer epochs, models or seeds, or allow more"
        )


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Starts the jobs, a few at once, and follows each to its end."""

    max_usd: float | None
    """For all together."""
    jobs: CurveJobs
    """How they are made."""

    def run(self, cells: Sequence[Cell]) -> list[Trained]:
        """Each cell's fate, in the order given; Ctrl-C leaves the jobs that were started alive on the host."""
        every: list[Trained] = []
        waiting: list[Trained] = []
        for cell in cells:
            if len(waiting) >= self.jobs.n_concurrent:
                self._follow(waiting.pop(0), every, len(cells))
            one = Trained(cell=cell)
            self._start(one, every)
            every.append(one)
            if one.job is not None:
                waiting.append(one)
        for one in waiting:
            self._follow(one, every, len(cells))
        return every

    def _start(self, one: Trained, before: Sequence[Trained], *, new: bool = False) -> None:
        # The bills of the jobs before may be above their plans: what is left counts, not what was planned.
        left = None if self.max_usd is None else self.max_usd - sum(other.paid_usd for other in before)
        try:
            one.job = one.cell.plan.start(
                # A rounding error of the sum is no reason to leave out the last job.
                None if left is None else left + 1e-9,
                new=new,
                allow_unknown_price=self.jobs.allow_unknown_price,
            )
        except BudgetError as error:
            one.error = f"not started: {error}"

    def _follow(self, one: Trained, every: Sequence[Trained], n_total: int) -> None:
        def tell(note: str) -> None:
            n_done = sum(other.model is not None or other.error is not None for other in every)
            if self.jobs.on_progress is not None:
                self.jobs.on_progress(
                    CurveProgress(stage="training", run=one.cell.name, n_done=n_done, n_total=n_total, note=note)
                )

        def look(progress: Any) -> None:
            tell(str(progress))

        for is_retry in (False, True):
            assert one.job is not None
            tell(f"{one.job.id} {'started' if one.job.is_new else 'found'}")
            try:
                one.model, one.error = one.job.wait(on_progress=look), None
            except (JobFailedError, JobCancelledError) as error:
                one.error = str(error)
                if self.jobs.retry_failed and not one.job.is_new and not is_retry:
                    self._start(one, [other for other in every if other is not one], new=True)
                    continue
            break
        tell("done" if one.error is None else one.error)


MORE_ROWS = 100
"""The step whose value is told: the next hundred examples."""


def learning_curve(
    train: Sequence[Any],
    *,
    sizes: Sequence[int] | None = None,
    models: str | Sequence[str | tuple[str, Host]],
    epochs: Sequence[int] | None = None,
    host: Host,
    test: Sequence[Any],
    prompt: PromptFormat,
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
            same budget.
        epochs: Times through the rows, each tried; default: what the host chooses.
        host: Where to train and ask.
        test: Labelled examples that every model is asked about; none may stand in `train`.
        prompt: How examples are rendered, for training and asking.
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
    with ProgressBar() as line:

        def tell(look: CurveProgress) -> None:
            line.show(f"{look.stage} {look.run}: {look.note}", look.n_done, look.n_total)

        made = jobs or CurveJobs()
        made = made if made.on_progress is not None else dataclasses.replace(made, on_progress=tell)
        options = statistics or StatisticsOptions()
        rows, items = list(train), list(test)
        sizes = _checked_sizes(sizes, rows, items, epochs, made)
        if isinstance(metric, (Metric, SetMetric)):
            metric.check(items)  # missed only when scores are counted, a wrong name would cost every training
        find_leakage(rows, items).raise_if_any()
        how = Resampling.of(options, items)
        place = Path(made.folder) if made.folder is not None else home() / "curves" / _digest(rows, prompt, made.method)
        cells = [
            _cell(size, seed, file, model, n_epochs, where, made, is_elsewhere=where != host)
            for seed, size, file in write_parts(rows, sizes, made.seeds, prompt, made.method, place)
            for model, where in _placed(models, host)
            for n_epochs in (list(epochs) if epochs is not None else [None])
        ]
        check_budget(cells, max_usd, made.allow_unknown_price)
        trained = Trainer(max_usd=max_usd, jobs=made).run(cells)

        def make(one: Trained) -> Any:
            assert one.model is not None
            if made.predictor is not None:
                return made.predictor(one.model)
            return predictor_for(prompt, one.model, host=one.cell.plan.host)

        answers = _ask(trained, items, make, place, num_threads, made.on_progress)
        return _summary(trained, answers, items, metric, how, tuple(made.seeds), num_threads)


def _placed(models: str | Sequence[str | tuple[str, Host]], host: Host) -> list[tuple[str, Host]]:
    """Each model with the host that trains it."""
    listed = [models] if isinstance(models, str) else models
    return [(one, host) if isinstance(one, str) else one for one in listed]


def _cell(
    size: int,
    seed: int,
    file: Path,
    model: str,
    n_epochs: int | None,
    host: Host,
    jobs: CurveJobs,
    *,
    is_elsewhere: bool = False,
) -> Cell:
    return Cell(
        is_elsewhere=is_elsewhere,
        n_rows=size,
        seed=seed,
        plan=plan(
            file,
            base_model=model,
            method=jobs.method,
            host=host,
            hyperparameters={**(jobs.hyperparameters or {}), **({} if n_epochs is None else {"n_epochs": n_epochs})},
            suffix=jobs.suffix,
            seed=seed,
            allow_unknown_model=jobs.allow_unknown_model,
        ),
    )


def _checked_sizes(
    sizes: Sequence[int] | None,
    rows: Sequence[Any],
    items: Sequence[Any],
    epochs: Sequence[int] | None,
    jobs: CurveJobs,
) -> list[int]:
    if not rows or not items:
        raise EmptyDatasetError(f"a learning curve needs training and test examples; got {len(rows)} and {len(items)}")
    if any(not hasattr(row, "inputs") for row in (*rows, *items)):
        raise UsageError("train and test are dspy.Examples with their inputs marked; see load_examples(..., inputs=)")
    if sizes is None:
        sizes = [50 * 2**power for power in range(20) if 50 * 2**power < len(rows)] + [len(rows)]
    if not sizes or len(set(sizes)) < len(sizes) or min(sizes) < 1 or max(sizes) > len(rows):
        raise UsageError(f"sizes={list(sizes)} must be different whole numbers from 1 to the {len(rows)} training rows")
    if not jobs.seeds or len(set(jobs.seeds)) < len(jobs.seeds) or (epochs is not None and not epochs):
        raise UsageError("seeds and epochs must hold at least one value, and no seed twice")
    if jobs.n_concurrent < 1:
        raise UsageError(f"n_concurrent={jobs.n_concurrent} must be 1 or more")
    return sorted(sizes)


def _digest(rows: Sequence[Any], prompt: PromptFormat, method: str) -> str:
    text = json.dumps([prompt.digest, method, [jsonable(row) for row in rows]], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def _ask(
    trained: Sequence[Trained],
    items: Sequence[Any],
    make: Callable[[Trained], Any],
    folder: Path,
    num_threads: int,
    on_progress: Tell | None,
) -> dict[int, tuple[Answer, ...]]:
    """Every model's answers, by the place of its run."""
    # A tuned model's id may come again on another host; with its job's id it does not.
    keys = {place: f"{one.model.id} {one.model.job_id}" for place, one in enumerate(trained) if one.model is not None}
    names = {key: trained[place].cell.name for place, key in keys.items()}
    programs = {key: make(trained[place]) for place, key in keys.items()}

    def tell(progress: CompareProgress) -> None:
        if on_progress is not None:
            on_progress(
                CurveProgress(
                    stage="asking",
                    run=names[progress.program],
                    n_done=progress.n_done,
                    n_total=progress.n_total,
                    note=f"{progress.n_parse_failures} parse failures, {progress.n_failed} failed",
                )
            )

    collected = collect(
        programs,
        [dict(item.inputs().items()) for item in items],
        num_threads,
        RunOptions(checkpoint=folder / "answers.jsonl", on_progress=tell),
    )
    return {place: collected[key].answers for place, key in keys.items()}


def _summary(
    trained: Sequence[Trained],
    answers: Mapping[int, tuple[Answer, ...]],
    items: Sequence[Any],
    metric: AnyMetric,
    how: Resampling,
    seeds: tuple[int, ...],
    num_threads: int,
) -> LearningCurve:
    facts, scored = _scores(metric, items, answers, how, num_threads)
    runs = tuple(_run(one, scored.get(place), answers.get(place, ())) for place, one in enumerate(trained))
    groups: dict[tuple[str, int], dict[int, list[tuple[CurveRun, Measured]]]] = {}
    for place, run in enumerate(runs):
        measured = _measured(run, scored.get(place), how)
        if measured is not None:
            groups.setdefault((run.base_model, run.n_epochs), {}).setdefault(run.n_rows, []).append((run, measured))
    points: list[CurvePoint] = []
    margins: list[MarginalValue] = []
    for (base_model, n_epochs), by_size in groups.items():
        for n_rows, found in sorted(by_size.items()):
            costs = [run.paid_usd for run, _ in found]
            points.append(
                CurvePoint(
                    base_model=base_model,
                    n_epochs=n_epochs,
                    n_rows=n_rows,
                    n_runs=len(found),
                    score=mean_over_seeds([one for _, one in found], confidence=how.confidence, seed=how.seed),
                    cost_usd=None if None in costs else sum(one for one in costs if one is not None) / len(costs),
                )
            )
        if len(by_size) > 1:
            last = points[-1]
            measured_runs = [one for found in by_size.values() for _, one in found]
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
        metric=facts,
        runs=runs,
        points=tuple(points),
        margins=tuple(margins),
        n_test=len(items),
        seeds=seeds,
        confidence=how.confidence,
        not_checked=_not_checked(runs, seeds),
    )


def _scores(
    metric: AnyMetric,
    items: Sequence[Any],
    answers: Mapping[int, tuple[Answer, ...]],
    how: Resampling,
    num_threads: int,
) -> tuple[MetricFacts, dict[int, Scored]]:
    if isinstance(metric, SetMetric):
        facts = scoring.describe(metric, is_proportion=False)
        return facts, {place: scoring.score_set(metric, items, given, how) for place, given in answers.items()}
    scores = {
        place: scoring.item_scores(metric, items, given, num_threads=num_threads) for place, given in answers.items()
    }
    seen = {score for one in scores.values() for score in one.scores if score is not None}
    facts = scoring.describe(metric, is_proportion=bool(seen) and seen <= {0.0, 1.0})
    return facts, {place: scoring.score_items(one, facts, how) for place, one in scores.items()}


def _measured(run: CurveRun, scored: Scored | None, how: Resampling) -> Measured | None:
    if scored is None or scored.interval.value is None:
        return None
    draws = scored.draws
    if draws is None:
        # Imported here: numpy costs 0.1 s, which `import dspy_finetune` must not.
        import numpy as np

        assert scored.scores is not None
        values = np.array([np.nan if one is None else one for one in scored.scores], dtype=float)
        known = ~np.isnan(values)

        def mean(indices: Any) -> float:
            kept = known[indices]
            return float(values[indices][kept].mean()) if kept.any() else float("nan")

        if how.groups is None:
            draws = statistics.resample(len(values), mean, n_resamples=how.n_resamples, seed=how.seed)
        else:
            draws = statistics.clustered_resample(how.groups, mean, n_resamples=how.n_resamples, seed=how.seed)
    return Measured(
        n_rows=run.n_rows, seed=run.seed, value=scored.interval.value, draws=draws, interval=scored.interval
    )


def _run(one: Trained, scored: Scored | None, answers: Sequence[Answer]) -> CurveRun:
    return CurveRun(
        base_model=one.cell.base_model,
        n_epochs=one.cell.plan.n_epochs,
        n_rows=one.cell.n_rows,
        seed=one.cell.seed,
        job_id=one.job.id if one.job is not None else None,
        model=one.model.id if one.model is not None else None,
        is_new=one.job is not None and one.job.is_new,
        estimated_cost_usd=one.cell.plan.cost_usd,
        cost_usd=one.model.cost_usd if one.model is not None else None,
        score=scored.interval if scored is not None else None,
        n_parse_failures=sum(answer.outcome == "parse_failure" for answer in answers),
        n_failed=sum(answer.outcome == "failed" for answer in answers),
        error=one.error,
    )


def _not_checked(runs: Sequence[CurveRun], seeds: Sequence[int]) -> tuple[str, ...]:
    told = [
        "Whether the curve goes on as a line over the logarithm of the rows: a plateau or a jump beyond the largest "
        "size is not extrapolated.",
        "What labelling more examples, and asking the models, costs.",
    ]
    if len(seeds) == 1:
        told.append(
            "The noise between trainings: one order of the rows was tried, and intervals of single points hold the "
            "test items' chance alone; seeds=(0, 1, 2) would show it."
        )
    lost = sum(run.error is not None for run in runs)
    if lost:
        told.append(f"{lost} of {len(runs)} jobs gave no model; their reasons stand with the runs.")
    return tuple(told)
