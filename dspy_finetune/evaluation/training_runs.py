"""Many training jobs as one: planned together, within one budget, each followed, and every model asked the same items.

In: rows, a prompt, what is to be tried. Out: `Trained` for each job, its answers, and its scores with their bootstrap
draws, so that the jobs of a curve (learning_curve.py) and of a sweep (sweep.py) are made, found again and measured
in one way. Not covered: what follows from the scores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from dspy_finetune._files import read_dataclass
from dspy_finetune._progress import ProgressBar
from dspy_finetune.errors import BudgetError, EmptyDatasetError, JobCancelledError, JobFailedError, UsageError
from dspy_finetune.evaluation import statistics
from dspy_finetune.evaluation.baselines import predictor_for
from dspy_finetune.evaluation.collect import Answer, CompareProgress, Program, RunOptions, collect, jsonable
from dspy_finetune.evaluation.metrics import AnyMetric
from dspy_finetune.evaluation.scoring import MetricFacts, Resampling, Scored, score_columns
from dspy_finetune.evaluation.statistics import Floats, Interval
from dspy_finetune.export import export_dpo, export_sft
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.embedded import home
from dspy_finetune.jobs import FinetunedModel, Job, Plan, plan
from dspy_finetune.jobs.plan import unknown_price
from dspy_finetune.prompts import PromptFormat
from dspy_finetune.values import label_text


@dataclass(frozen=True, kw_only=True)
class CurveRun:
    """One job of a curve or sweep, and how its model did."""

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
    """The metric on the items that were asked; None without a model."""
    n_parse_failures: int
    """Answers that could not be read."""
    n_failed: int
    """Calls that failed."""
    error: str | None
    """Why there is no model, or of its answers none that can be measured; None where there is a score."""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """What a sweep tried with it, the epochs among them where they were; empty in a curve."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CurveRun:
        """From JSON. Raises ValueError."""
        return read_dataclass(cls, values)

    @property
    def paid_usd(self) -> float | None:
        """The bill, else the plan's estimate; 0 for a job that was not started."""
        if self.job_id is None:
            return 0.0
        return self.cost_usd if self.cost_usd is not None else self.estimated_cost_usd


def paid_together(runs: Sequence[CurveRun]) -> float | None:
    """What jobs cost together; None where one is unknown."""
    paid = [run.paid_usd for run in runs]
    return None if None in paid else math.fsum(one for one in paid if one is not None)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run's score."""

    n_rows: int
    """Training examples."""
    seed: int
    """Which nested order."""
    value: float
    """The score over all items."""
    draws: Floats
    """The score over resampled items; the same items for every run, shape (n_resamples,)."""
    interval: Interval
    """The score's own interval."""


def draws_over_seeds(runs: Sequence[Measured], *, seed: int) -> Floats:
    """The bootstrap of the mean of several runs: over the items, and over the runs. Shape (n_resamples,).

    Drawing k runs with replacement shows (k - 1) / k of the variance between trainings: with two or three seeds the
    interval is still too narrow, though less so than without them.
    """
    if len(runs) == 1:
        return runs[0].draws
    draws = np.stack([run.draws for run in runs])  # (n_runs, n_resamples)
    picks = np.random.default_rng(seed).integers(0, len(runs), size=draws.shape)
    drawn: Floats = np.take_along_axis(draws, picks, axis=0).mean(axis=0)
    return drawn


def mean_value(runs: Sequence[Measured]) -> float:
    """The mean of the runs' scores."""
    return math.fsum(run.value for run in runs) / len(runs)


def mean_over_seeds(runs: Sequence[Measured], *, confidence: float, seed: int) -> Interval:
    """The mean of runs that differ in their seeds; of one run its own interval, of several a bootstrap."""
    if len(runs) == 1:
        return runs[0].interval
    n_items = min(run.interval.n for run in runs)
    return statistics.percentile_interval(mean_value(runs), draws_over_seeds(runs, seed=seed), n_items, confidence)


@dataclass(frozen=True, kw_only=True)
class CurveProgress:
    """How far a curve or sweep is: given to `on_progress` at each sign of life."""

    stage: Literal["training", "asking"]
    """What is being done."""
    run: str
    """Which run: model, rows, epochs, what else was tried, seed."""
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
    """How the jobs of a learning curve or sweep are made and followed."""

    method: Literal["sft", "dpo"] = "sft"
    """sft or dpo."""
    hyperparameters: Mapping[str, Any] | None = None
    """For every job, besides those that are tried."""
    suffix: str | None = None
    """A part of the new models' names."""
    seeds: Sequence[int] = (0,)
    """Random seeds of the rows' orders and of the jobs, each a training of its own; several show training's run-to-run
    variance."""
    allow_unknown_price: bool = False
    """Start although a price is unknown."""
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


@contextlib.contextmanager
def told(jobs: CurveJobs | None) -> Iterator[CurveJobs]:
    """The jobs, with a line on stderr where nobody else is told of their progress."""
    made = jobs or CurveJobs()
    with ProgressBar() as line:

        def tell(look: CurveProgress) -> None:
            line.show(f"{look.stage} {look.run}", look.n_done, look.n_total, look.note)

        yield made if made.on_progress is not None else dataclasses.replace(made, on_progress=tell)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run to be made."""

    n_rows: int
    """Training examples."""
    seed: int
    """Of the order they were taken from, and of the job."""
    plan: Plan
    """The job."""
    place: str = ""
    """What tells its host from that of the others; empty on the host of the curve or sweep."""
    tried: Mapping[str, Any] = field(default_factory=dict)
    """The hyperparameters that a sweep tries with it."""

    @property
    def base_model(self) -> str:
        """What is trained; with its host where that is another one."""
        return f"{self.plan.base_model} on {self.place}" if self.place else self.plan.base_model

    @property
    def name(self) -> str:
        """For people."""
        others = [f"{name}={value}" for name, value in self.tried.items() if name != "n_epochs"]
        return ", ".join([self.base_model, f"{self.n_rows} rows", self.plan.passes, *others, f"seed {self.seed}"])


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


def _check_budget(cells: Sequence[Cell], max_usd: float | None, allow_unknown_price: bool) -> None:
    """Refuse jobs that cost more together than allowed. Raises BudgetError: what each size or model costs."""
    unknown = sorted({cell.plan.base_model for cell in cells if cell.plan.cost_usd is None})
    if unknown and not allow_unknown_price:
        where = next(cell.plan.host for cell in cells if cell.plan.cost_usd is None)
        raise unknown_price(", ".join(unknown), where, max_usd)
    total = sum(cell.plan.cost_usd or 0.0 for cell in cells)
    if max_usd is not None and total > max_usd:
        by_size = len({cell.n_rows for cell in cells}) > 1
        parts: dict[str, float] = {}
        for cell in cells:
            part = f"{cell.n_rows} rows" if by_size else cell.base_model
            parts[part] = parts.get(part, 0.0) + (cell.plan.cost_usd or 0.0)
        shown = ", ".join(f"{part} ${cost:,.2f}" for part, cost in parts.items())
        less = "fewer or smaller sizes, fewer epochs, models or seeds" if by_size else "fewer models, values or seeds"
        raise BudgetError(
            f"the {len(cells)} jobs cost ${total:,.2f}, more than the allowed ${max_usd:,.2f} ({shown}); take {less},"
            " or allow more"
        )


def _train(cells: Sequence[Cell], max_usd: float | None, jobs: CurveJobs) -> list[Trained]:
    """Each cell's fate, in the order given, a few jobs at once; Ctrl-C leaves those that were started alive."""
    every: list[Trained] = []
    waiting: list[Trained] = []
    for cell in cells:
        if len(waiting) >= jobs.n_concurrent:
            _follow(waiting.pop(0), every, len(cells), max_usd, jobs)
        one = Trained(cell=cell)
        _start(one, every, max_usd, jobs)
        every.append(one)
        if one.job is not None:
            waiting.append(one)
    for one in waiting:
        _follow(one, every, len(cells), max_usd, jobs)
    return every


def _start(
    one: Trained, before: Sequence[Trained], max_usd: float | None, jobs: CurveJobs, *, new: bool = False
) -> None:
    # The bills of the jobs before may be above their plans: what is left counts, not what was planned. A rounding error
    # of the sum is no reason to leave out the last job.
    left = None if max_usd is None else max_usd - sum(other.paid_usd for other in before) + 1e-9
    try:
        one.job = one.cell.plan.start(left, new=new, allow_unknown_price=jobs.allow_unknown_price)
    except BudgetError as error:
        one.error = f"not started: {error}"


def _follow(one: Trained, every: Sequence[Trained], n_total: int, max_usd: float | None, jobs: CurveJobs) -> None:
    def tell(note: object) -> None:
        n_done = sum(other.model is not None or other.error is not None for other in every)
        if jobs.on_progress is not None:
            jobs.on_progress(
                CurveProgress(stage="training", run=one.cell.name, n_done=n_done, n_total=n_total, note=str(note))
            )

    for is_retry in (False, True):
        assert one.job is not None
        tell(f"{one.job.id} {'started' if one.job.is_new else 'found'}")
        try:
            one.model, one.error = one.job.wait(on_progress=tell), None
        except (JobFailedError, JobCancelledError) as error:
            one.error = str(error)
            if jobs.retry_failed and not one.job.is_new and not is_retry:
                _start(one, [other for other in every if other is not one], max_usd, jobs, new=True)
                continue
        break
    tell("done" if one.error is None else one.error)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A model, and the host that trains it."""

    model: str
    """By the host's name for it."""
    host: Host
    """Where."""
    name: str
    """What tells its host from that of the others; empty on the host of the curve or sweep."""


def placed(models: str | Sequence[str | tuple[str, Host]], host: Host) -> list[Place]:
    """Each model with the host that trains it, named by its address where another host has the same name."""
    listed = [models] if isinstance(models, str) else models
    if not listed:
        raise UsageError("models names no model to train")
    pairs = [(one, host) if isinstance(one, str) else one for one in listed]
    hosts = list(dict.fromkeys([host, *(where for _, where in pairs)]))
    names = [one.name for one in hosts]

    def name(where: Host) -> str:
        if where == host:
            return ""
        return where.name if names.count(where.name) == 1 else str(where.base_url or where.to_dict().get("root"))

    return [Place(model=model, host=where, name=name(where)) for model, where in pairs]


def cell_of(part: tuple[int, int, Path], where: Place, tried: Mapping[str, Any], jobs: CurveJobs) -> Cell:
    """One run to be made: a part (seed, size, training file) of the rows, a model, and what is tried; planned."""
    seed, n_rows, file = part
    return Cell(
        place=where.name,
        n_rows=n_rows,
        seed=seed,
        tried=tried,
        plan=plan(
            file,
            base_model=where.model,
            method=jobs.method,
            host=where.host,
            hyperparameters={**(jobs.hyperparameters or {}), **tried},
            suffix=jobs.suffix,
            seed=seed,
            allow_unknown_model=jobs.allow_unknown_model,
        ),
    )


def check_arguments(what: str, rows: Mapping[str, Sequence[Any]], jobs: CurveJobs) -> None:
    """What curve and sweep want of their rows and jobs. Raises UsageError, EmptyDatasetError."""
    counts = " and ".join(f"{len(found)} {name}" for name, found in rows.items())
    if not all(rows.values()):
        raise EmptyDatasetError(f"{what} needs {' and '.join(rows)} examples; got {counts}")
    if any(not hasattr(row, "inputs") for found in rows.values() for row in found):
        raise UsageError(
            f"{' and '.join(rows)} rows are dspy.Examples with their inputs marked; see load_examples(..., inputs=)"
        )
    if not jobs.seeds or len(set(jobs.seeds)) < len(jobs.seeds):
        raise UsageError("seeds must hold at least one value, and none twice")
    if jobs.n_concurrent < 1:
        raise UsageError(f"n_concurrent={jobs.n_concurrent} must be 1 or more")


def folder_of(rows: Sequence[Any], prompt: PromptFormat, jobs: CurveJobs) -> Path:
    """Where training files and answers are kept: as told, or a folder of these rows in the library's home."""
    if jobs.folder is not None:
        return Path(jobs.folder)
    return home() / "curves" / _digest(rows, prompt, jobs.method)


def _digest(rows: Sequence[Any], prompt: PromptFormat, method: str) -> str:
    text = json.dumps([prompt.digest, method, [jsonable(row) for row in rows]], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def ask(
    trained: Sequence[Trained],
    items: Sequence[Any],
    prompt: PromptFormat,
    folder: Path,
    num_threads: int,
    jobs: CurveJobs,
) -> dict[int, tuple[Answer, ...]]:
    """Every model's answers, by the place of its run."""
    # A tuned model's id may come again on another host; with its job's id it does not.
    keys = {place: f"{one.model.id} {one.model.job_id}" for place, one in enumerate(trained) if one.model is not None}
    names = {key: trained[place].cell.name for place, key in keys.items()}
    programs = {key: _program(trained[place], prompt, jobs) for place, key in keys.items()}

    def tell(progress: CompareProgress) -> None:
        if jobs.on_progress is not None:
            jobs.on_progress(
                CurveProgress(
                    stage="asking",
                    run=names[progress.program],
                    n_done=progress.n_done,
                    n_total=progress.n_total,
                    note=progress.note,
                )
            )

    collected = collect(
        programs,
        [dict(item.inputs().items()) for item in items],
        num_threads,
        RunOptions(checkpoint=folder / "answers.jsonl", on_progress=tell),
    )
    return {place: collected[key].answers for place, key in keys.items()}


def _program(one: Trained, prompt: PromptFormat, jobs: CurveJobs) -> Any:
    assert one.model is not None
    if jobs.predictor is not None:
        return jobs.predictor(one.model)
    return predictor_for(prompt, one.model, host=one.cell.plan.host)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """All jobs of a curve or sweep, and how their models did; the lists are in the order of the cells."""

    trained: list[Trained]
    """What became of each."""
    facts: MetricFacts
    """What was measured."""
    runs: tuple[CurveRun, ...]
    """The same as plain values."""
    measured: list[Measured | None]
    """Each score with its bootstrap draws; None without a score."""


def train_and_measure(
    cells: Sequence[Cell],
    items: Sequence[Any],
    metric: AnyMetric,
    how: Resampling,
    prompt: PromptFormat,
    folder: Path,
    *,
    max_usd: float | None,
    num_threads: int,
    jobs: CurveJobs,
) -> Ran:
    """Train every cell within the budget, ask every model about the items, and score the answers.

    Raises:
        BudgetError: All together cost more than allowed; nothing was started.
    """
    _check_budget(cells, max_usd, jobs.allow_unknown_price)
    trained = _train(cells, max_usd, jobs)
    answers = ask(trained, items, prompt, folder, num_threads, jobs)
    facts, scored = score_columns(metric, items, answers, how, num_threads=num_threads)
    runs = tuple(_run_of(one, scored.get(place), answers.get(place, ())) for place, one in enumerate(trained))
    measured = [_measured(run, scored.get(place), how) for place, run in enumerate(runs)]
    return Ran(trained=trained, facts=facts, runs=runs, measured=measured)


def _measured(run: CurveRun, scored: Scored | None, how: Resampling) -> Measured | None:
    if scored is None or scored.interval.value is None:
        return None
    draws = scored.draws
    if draws is None:
        assert scored.scores is not None
        values = np.array([np.nan if one is None else one for one in scored.scores], dtype=float)
        known = ~np.isnan(values)

        def mean(indices: Any) -> float:
            kept = known[indices]
            return float(values[indices][kept].mean()) if kept.any() else float("nan")

        draws = how.draws(len(values), mean)
    return Measured(
        n_rows=run.n_rows, seed=run.seed, value=scored.interval.value, draws=draws, interval=scored.interval
    )


def _run_of(one: Trained, scored: Scored | None, answers: Sequence[Answer]) -> CurveRun:
    error = one.error
    if error is None and scored is not None and scored.interval.value is None:
        error = next((answer.error for answer in answers if answer.error), "no answer can be measured")
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
        error=error,
        hyperparameters=dict(one.cell.tried),
    )


def missing(run: CurveRun) -> str:
    """What a run with an error has not."""
    return "no model" if run.model is None else "no score"


def told_of_runs(runs: Sequence[CurveRun], seeds: Sequence[int]) -> list[str]:
    """What the runs do not tell, in sentences."""
    told = []
    if len(seeds) == 1:
        told.append(
            "The noise between trainings: one order of the rows was tried, and intervals of single points hold the "
            "items' chance alone; seeds=(0, 1, 2) would show it."
        )
    lost = sum(run.model is None for run in runs)
    if lost:
        told.append(f"{lost} of {len(runs)} jobs gave no model; their reasons stand with the runs.")
    return told
