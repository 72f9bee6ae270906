"""curve.py: how much more data would help? One job per training size, model and number of epochs, and what each gave.

In: training examples, test examples, a prompt, sizes, models, epochs, a host, a budget. Out: a `LearningCurve`.
All jobs are planned and priced before the first is started; a second call finds each job again by its plan's intent,
and each answer in the folder, so nothing is paid for twice. Not covered: the fit (curve_fit.py), showing it (report/).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dspy_finetune.data import find_leakage
from dspy_finetune.data.items import By
from dspy_finetune.errors import EmptyDatasetError, UsageError
from dspy_finetune.evaluation import clusters, curve_fit, scoring, stats
from dspy_finetune.evaluation.answers import Answer, Program, jsonable
from dspy_finetune.evaluation.collect import Progress, collect
from dspy_finetune.evaluation.comparison import MetricFacts
from dspy_finetune.evaluation.curve_fit import Measured
from dspy_finetune.evaluation.curve_jobs import Cell, CurveProgress, Tell, Trained, Trainer, check_budget, write_parts
from dspy_finetune.evaluation.curve_result import CurvePoint, CurveRun, LearningCurve, MarginalValue
from dspy_finetune.evaluation.metric_types import AnyMetric, Metric, SetMetric
from dspy_finetune.evaluation.model_baselines import predictor_for
from dspy_finetune.evaluation.scoring import Resampling, Scored
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.embedded import home
from dspy_finetune.jobs import SYSTEM_CLOCK, Clock, FinetunedModel, plan
from dspy_finetune.prompts import PromptFormat

MORE_ROWS = 100
"""The step whose value is told: the next hundred examples."""


MakePredictor: TypeAlias = Callable[[FinetunedModel], Program]
"""Makes a program of a tuned model."""


def learning_curve(
    train: Sequence[Any],
    *,
    sizes: Sequence[int] | None = None,
    models: str | Sequence[str],
    epochs: Sequence[int] | None = None,
    host: Host,
    test: Sequence[Any],
    prompt: PromptFormat,
    metric: AnyMetric,
    max_usd: float | None = None,
    allow_unknown_price: bool = False,
    method: Literal["sft", "dpo"] = "sft",
    hyperparameters: Mapping[str, Any] | None = None,
    suffix: str | None = None,
    seeds: Sequence[int] = (0,),
    predictor: MakePredictor | None = None,
    folder: str | os.PathLike[str] | None = None,
    n_jobs_at_once: int = 4,
    n_threads: int = 8,
    retry_failed: bool = False,
    on_progress: Tell | None = None,
    group_by: By | None = None,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    clock: Clock = SYSTEM_CLOCK,
) -> LearningCurve:
    """Train on growing parts of the data and say what each size gave, what it cost, and what more would bring.

    The parts are nested: the first 50 rows are among the first 100. Where the prompt has labels, every part has them in
    the shares of the whole. Calling again with the same arguments finds the jobs and answers of the first call.

    Args:
        train: Labelled examples; for `method="dpo"` pairs as `export_dpo` takes them.
        sizes: How many rows to train on; default: 50, 100, 200, ... and all.
        models: Base models, by the host's names.
        epochs: Times through the rows, each tried; default: what the host chooses.
        host: Where to train and ask.
        test: Labelled examples that every model is asked about; none may stand in `train`.
        prompt: How examples are rendered, for training and asking.
        metric: What is measured: from `dspy_finetune.metrics`, or a plain function.
        max_usd: The most that all jobs together may cost by their plans; nothing is started above it. Asking the
            models is not in it.
        allow_unknown_price: Start although nobody knows a price.
        method: sft or dpo.
        hyperparameters: For every job, besides the epochs.
        suffix: A part of the new models' names.
        seeds: Orders of the rows, each a curve of its own; several show the noise between trainings.
        predictor: Makes a program of a tuned model; default: the predictor that fits the prompt.
        folder: Where training files and answers are kept; default: a folder of this data in the library's home.
        n_jobs_at_once: Jobs that the host works on or queues at once.
        n_threads: Calls at once when a model is asked.
        retry_failed: Make a new job for one that had failed or was cancelled.
        on_progress: Called at each sign of progress.
        group_by: What test items share that makes them no independent evidence, as for `compare`.
        confidence: Of the intervals.
        n_resamples: Bootstrap draws.
        clock: For tests.

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
    rows, items = list(train), list(test)
    sizes = _checked_sizes(sizes, rows, items, epochs, seeds, n_jobs_at_once)
    if isinstance(metric, (Metric, SetMetric)):
        metric.check(items)  # missed only when scores are counted, a wrong name would cost every training
    find_leakage(rows, items).raise_if_any()
    groups = clusters.groups_of(items, group_by) if group_by is not None else None
    stats.wilson(0, 1)  # a missing extra is told now, not after an hour of training
    place = Path(folder) if folder is not None else home() / "curves" / _digest(rows, prompt, method)
    cells = [
        Cell(
            n_rows=size,
            seed=seed,
            plan=plan(
                file,
                base_model=model,
                method=method,
                host=host,
                hyperparameters={**(hyperparameters or {}), **({} if n_epochs is None else {"n_epochs": n_epochs})},
                suffix=suffix,
                seed=seed,
                clock=clock,
            ),
        )
        for seed, size, file in write_parts(rows, sizes, seeds, prompt, method, place)
        for model in ([models] if isinstance(models, str) else models)
        for n_epochs in (list(epochs) if epochs is not None else [None])
    ]
    check_budget(cells, max_usd, allow_unknown_price)
    trainer = Trainer(
        max_usd=max_usd,
        allow_unknown_price=allow_unknown_price,
        retry_failed=retry_failed,
        n_at_once=n_jobs_at_once,
        clock=clock,
        tell=on_progress or (lambda progress: None),
    )
    trained = trainer.run(cells)
    make = predictor or (lambda model: predictor_for(prompt, model, host=host))
    answers = _ask(trained, items, make, place, n_threads, on_progress)
    how = Resampling(confidence=confidence, n_resamples=n_resamples, seed=min(seeds), groups=groups)
    return _summary(trained, answers, items, metric, how, tuple(seeds), n_threads)


def _checked_sizes(
    sizes: Sequence[int] | None,
    rows: Sequence[Any],
    items: Sequence[Any],
    epochs: Sequence[int] | None,
    seeds: Sequence[int],
    n_jobs_at_once: int,
) -> list[int]:
    if not rows or not items:
        raise EmptyDatasetError(f"a learning curve needs training and test examples; got {len(rows)} and {len(items)}")
    if any(not hasattr(row, "inputs") for row in (*rows, *items)):
        raise UsageError("train and test are dspy.Examples with their inputs marked; see load_examples(..., inputs=)")
    if sizes is None:
        sizes = [50 * 2**power for power in range(20) if 50 * 2**power < len(rows)] + [len(rows)]
    if not sizes or len(set(sizes)) < len(sizes) or min(sizes) < 1 or max(sizes) > len(rows):
        raise UsageError(f"sizes={list(sizes)} must be different whole numbers from 1 to the {len(rows)} training rows")
    if not seeds or len(set(seeds)) < len(seeds) or (epochs is not None and not epochs):
        raise UsageError("seeds and epochs must hold at least one value, and no seed twice")
    if n_jobs_at_once < 1:
        raise UsageError(f"n_jobs_at_once={n_jobs_at_once} must be 1 or more")
    return sorted(sizes)


def _digest(rows: Sequence[Any], prompt: PromptFormat, method: str) -> str:
    text = json.dumps([prompt.digest, method, [jsonable(row) for row in rows]], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def _ask(
    trained: Sequence[Trained],
    items: Sequence[Any],
    make: MakePredictor,
    folder: Path,
    n_threads: int,
    on_progress: Tell | None,
) -> dict[int, tuple[Answer, ...]]:
    """Every model's answers, by the place of its run."""
    # A tuned model's id may come again on another host; with its job's id it does not.
    keys = {place: f"{one.model.id} {one.model.job_id}" for place, one in enumerate(trained) if one.model is not None}
    names = {key: trained[place].cell.name for place, key in keys.items()}
    programs = {key: make(one.model) for place, key in keys.items() if (one := trained[place]).model is not None}

    def tell(progress: Progress) -> None:
        if on_progress is not None:
            on_progress(
                CurveProgress(
                    stage="asking",
                    run=names[progress.program],
                    n_done=progress.n_done,
                    n_total=progress.n_total,
                    note=f"{progress.n_unreadable} unreadable, {progress.n_failed} failed",
                )
            )

    collected = collect(
        programs,
        [dict(item.inputs().items()) for item in items],
        n_threads=n_threads,
        checkpoint=folder / "answers.jsonl",
        on_progress=tell,
    )
    return {place: collected[key].answers for place, key in keys.items()}


def _summary(
    trained: Sequence[Trained],
    answers: Mapping[int, tuple[Answer, ...]],
    items: Sequence[Any],
    metric: AnyMetric,
    how: Resampling,
    seeds: tuple[int, ...],
    n_threads: int,
) -> LearningCurve:
    facts, scored = _scores(metric, items, answers, how, n_threads)
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
                    score=curve_fit.mean_over_seeds(
                        [one for _, one in found], confidence=how.confidence, seed=how.seed
                    ),
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
                    change=curve_fit.change_by_more(measured_runs, MORE_ROWS, confidence=how.confidence),
                    cost_usd=None if last.cost_usd is None else last.cost_usd * MORE_ROWS / last.n_rows,
                    foretold=curve_fit.foretell_largest(measured_runs),
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
    n_threads: int,
) -> tuple[MetricFacts, dict[int, Scored]]:
    if isinstance(metric, SetMetric):
        facts = scoring.describe(metric, is_proportion=False)
        return facts, {place: scoring.score_set(metric, items, given, how) for place, given in answers.items()}
    scores = {place: scoring.item_scores(metric, items, given, n_threads=n_threads) for place, given in answers.items()}
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
            draws = stats.resample(len(values), mean, n_resamples=how.n_resamples, seed=how.seed)
        else:
            draws = clusters.resample(how.groups, mean, n_resamples=how.n_resamples, seed=how.seed)
    return Measured(
        n_rows=run.n_rows, seed=run.seed, value=scored.interval.value, draws=draws, interval=scored.interval
    )


def _run(one: Trained, scored: Scored | None, answers: Sequence[Answer]) -> CurveRun:
    return CurveRun(
        base_model=one.cell.plan.base_model,
        n_epochs=one.cell.plan.n_epochs,
        n_rows=one.cell.n_rows,
        seed=one.cell.seed,
        job_id=one.job.id if one.job is not None else None,
        model=one.model.id if one.model is not None else None,
        is_new=one.job is not None and one.job.is_new,
        estimated_cost_usd=one.cell.plan.cost_usd,
        cost_usd=one.model.cost_usd if one.model is not None else None,
        score=scored.interval if scored is not None else None,
        n_unreadable=sum(answer.outcome == "unreadable" for answer in answers),
        n_failed=sum(answer.outcome == "failed" for answer in answers),
        error=one.error,
    )


def _not_checked(runs: Sequence[CurveRun], seeds: Sequence[int]) -> tuple[str, ...]:
    told = [
        "Whether the curve goes on as a line over the logarithm of the rows: a plateau or a jump beyond the largest "
        "size is not foretold.",
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
