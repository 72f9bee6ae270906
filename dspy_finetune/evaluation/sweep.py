"""`sweep`: which base model, host and hyperparameters? One job for each candidate, chosen on validation rows.

In: training and validation examples, a prompt, models (each with its host), values of hyperparameters to try, a budget.
Out: a `Sweep`: every candidate with its score, the best first, how far each is behind it, and the best one's model.
Jobs are made as those of a learning curve are (training_runs.py): all planned and priced before the first is started,
found again by a second call. Candidates are chosen by the validation rows alone; test rows, where they are given, are
put to the chosen model once it is chosen, since the best of several scores is flattered by the choice.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspy_finetune._files import write_json
from dspy_finetune.data import find_leakage
from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation import statistics as intervals
from dspy_finetune.evaluation.metrics import AnyMetric, Metric, SetMetric
from dspy_finetune.evaluation.scoring import (
    MetricFacts,
    Resampling,
    StatisticsOptions,
    from_saved,
    read_saved,
    score_columns,
)
from dspy_finetune.evaluation.statistics import Interval
from dspy_finetune.evaluation.training_runs import (
    CurveJobs,
    CurveRun,
    Measured,
    ask,
    cell_of,
    check_arguments,
    draws_over_seeds,
    folder_of,
    mean_over_seeds,
    mean_value,
    missing,
    paid_together,
    placed,
    told,
    told_of_runs,
    train_and_measure,
    write_parts,
)
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import FinetunedModel
from dspy_finetune.jobs.plan import RECIPE, names_of
from dspy_finetune.prompts.format import AnyPrompt, as_prompt
from dspy_finetune.report.blocks import MISSING, Section, Table, Text, as_text, with_interval
from dspy_finetune.report.page import Reported

FORMAT = 1
"""Version of the JSON form."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model with one set of hyperparameters: all its seeds."""

    base_model: str
    """What was trained; with its host where that is another one."""
    hyperparameters: Mapping[str, Any]
    """What was tried with it; the host chose the others."""
    n_runs: int
    """Runs that gave a model; the score is their mean."""
    score: Interval | None
    """The metric on the validation rows; None where no run gave a model."""
    behind: Interval | None
    """Its score less the best one's, on the same rows; None for the best, and without a score."""
    cost_usd: float | None
    """Of all its runs; None where one is unknown."""

    @property
    def name(self) -> str:
        """For people."""
        return _named(self.base_model, self.hyperparameters)


@dataclass(frozen=True, kw_only=True)
class Sweep(Reported):
    """All candidates, the best first."""

    metric: MetricFacts
    """What was measured."""
    candidates: tuple[Candidate, ...]
    """The best on the validation rows first; of equals the cheaper one; those without a model last."""
    runs: tuple[CurveRun, ...]
    """Every job, in the order in which they were started."""
    model: FinetunedModel | None
    """The best candidate's model, of its best seed; None where no job gave one."""
    n_validation: int
    """Rows that every model was asked about, and by which the best was chosen."""
    test_score: Interval | None
    """The chosen model's on the test rows; None without test rows."""
    n_test: int
    """Rows that the chosen model alone was asked about."""
    seeds: tuple[int, ...]
    """Of the rows' orders and of the jobs."""
    confidence: float
    """Of all intervals."""
    not_checked: tuple[str, ...]
    """What the sweep does not tell, in sentences."""

    @property
    def best(self) -> Candidate | None:
        """The best on the validation rows; None where no job gave a model."""
        return self.candidates[0] if self.candidates and self.candidates[0].score is not None else None

    @property
    def cost_usd(self) -> float | None:
        """Of all jobs, those found from an earlier call included; None where one is unknown."""
        return paid_together(self.runs)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Which is best, which others are not clearly worse, and what the test rows say."""
        best = self.best
        if best is None or best.score is None:
            return ("No job gave a model.",)
        lines = [
            f"{best.name} is the best of {len(self.candidates)} on {self.n_validation} validation rows:"
            f" {self.metric.name} {with_interval(best.score)}."
        ]
        near = [one for one in self.candidates[1:] if one.behind is not None and not self._is_worse(one.behind)]
        if near:
            told = "; ".join(f"{one.name} ({_signed(one.behind)})" for one in near)
            lines.append(f"Not clearly worse: {told}. More validation rows would tell them apart.")
        if self.test_score is not None:
            lines.append(
                f"On {self.n_test} test rows, which chose nothing: {self.metric.name} {with_interval(self.test_score)}."
            )
        return tuple(lines)

    def _is_worse(self, behind: Interval) -> bool:
        if behind.low is None or behind.high is None:
            return False
        return behind.high < 0 if self.metric.higher_is_better else behind.low > 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"format": FORMAT, "cost_usd": self.cost_usd, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sweep:
        """From JSON.

        Raises:
            DataError: It is not a sweep, or of another version.
        """
        return from_saved(cls, values, "a sweep")

    def table(self) -> str:
        """Candidates with score, distance and cost, the best first, as aligned plain text."""
        return as_text(_table(self))

    def __str__(self) -> str:
        return "\n".join([self.table(), "", *self.sentences, *_errors(self)])

    def section(self) -> Section:
        """The blocks that the sweep consists of, for a page of several."""
        return Section(
            title=f"Sweep: {self.metric.name}",
            verdict=self.sentences[0],
            blocks=(*(Text(text=one) for one in (*self.sentences[1:], *_errors(self))), _table(self)),
            not_checked=self.not_checked,
        )

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON; `from_json` reads it back. Raises FileError."""
        write_json(path, {"sentences": list(self.sentences), "sweep": self.to_dict()})

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Sweep:
        """Read a sweep that `to_json` wrote.

        Raises:
            FileError: The file cannot be read.
            DataError: It holds something else.
        """
        return cls.from_dict(read_saved(path, "sweep", "a sweep"))


def _table(found: Sweep) -> Table:
    tried = list(dict.fromkeys(name for one in found.candidates for name in one.hyperparameters))
    head = ("model", *tried, f"{found.metric.name} [{found.confidence:.0%}]", "behind the best", "USD")
    rows = [
        (
            one.base_model,
            *(str(one.hyperparameters.get(name, MISSING)) for name in tried),
            MISSING if one.score is None else with_interval(one.score),
            MISSING if one.behind is None else _signed(one.behind),
            MISSING if one.cost_usd is None else f"{one.cost_usd:.2f}",
        )
        for one in found.candidates
    ]
    return Table(head=head, rows=tuple(rows), label="Candidates")


def _signed(change: Interval | None) -> str:
    return MISSING if change is None else with_interval(change, sign=True)


def _named(base_model: str, tried: Mapping[str, Any]) -> str:
    return ", ".join([base_model, *(f"{name}={value}" for name, value in tried.items())])


def _errors(found: Sweep) -> list[str]:
    return [
        f"{_named(run.base_model, run.hyperparameters)}, seed {run.seed}: {missing(run)}: {run.error}"
        for run in found.runs
        if run.error is not None
    ]


def sweep(
    train: Sequence[Any],
    *,
    models: str | Sequence[str | tuple[str, Host]],
    hyperparameters: Mapping[str, Sequence[Any]] | None = None,
    host: Host,
    validation: Sequence[Any],
    test: Sequence[Any] | None = None,
    prompt: AnyPrompt,
    metric: AnyMetric,
    max_usd: float | None = None,
    num_threads: int = 8,
    jobs: CurveJobs | None = None,
    statistics: StatisticsOptions | None = None,
) -> Sweep:
    """Train every candidate on the same rows, within one budget, and choose the best by the validation rows.

    A candidate is a model (on its host) with one value of each hyperparameter that its host has. Calling again with the
    same arguments finds the jobs and answers of the first call.

    Args:
        train: Labelled examples; for `method="dpo"` pairs as `export_dpo` takes them.
        models: Base models, by the host's names; `(name, another_host)` for one that is trained elsewhere, within the
            same budget.
        hyperparameters: Values to try, by name: `{"n_epochs": [1, 3], "learning_rate": [1e-5, 1e-4]}`. All
            combinations are tried; a name that a host does not have is not tried there.
        host: Where to train and ask.
        validation: Labelled examples that every model is asked about; none may stand in `train`.
        test: Labelled examples that the chosen model alone is asked about, once it is chosen.
        prompt: How examples are rendered, for training and asking; or a signature.
        metric: What is measured: from `dspy_finetune.metrics`, or a plain function.
        max_usd: The most that all jobs together may cost by their plans; nothing is started above it. Asking the
            models is not in it.
        num_threads: Concurrent requests when a model is asked.
        jobs: Method, hyperparameters of every job, seeds, folder, progress.
        statistics: Confidence, bootstrap draws, and the cluster column of the rows that are asked.

    Raises:
        UsageError: An argument is wrong.
        EmptyDatasetError: There are no training, validation or test examples.
        LeakageError: An item stands in two of the sets.
        DataError: A label is empty or no number where the metric needs one; or a host would refuse the training file.
        BudgetError: All jobs together cost more than allowed, or a price is unknown; nothing was started.
        JobError: A job may exist already (AmbiguousJobError); says what to check. A failed job is part of the result.
        HostError: A host refused or did not answer; call again to go on.
    """
    prompt = as_prompt(prompt)
    with told(jobs) as made:
        sets = {"training": list(train), "validation": list(validation)}
        if test is not None:
            sets["test"] = list(test)
        check_arguments("a sweep", sets, made)
        for one, other in itertools.combinations(sets.values(), 2):
            find_leakage(one, other).raise_if_any()
        rows, items = sets["training"], sets["validation"]
        if isinstance(metric, (Metric, SetMetric)):
            for name in ("validation", "test"):
                metric.check(sets.get(name, items))  # before anything is trained
        how = Resampling.of(statistics or StatisticsOptions(), items)
        place = folder_of(rows, prompt, made)
        chosen = placed(models, host)
        tried = _settings(hyperparameters or {}, [one.host for one in chosen], made)
        cells = [
            cell_of(part, where, settings, made)
            for part in write_parts(rows, [len(rows)], made.seeds, prompt, made.method, place)
            for where, listed in zip(chosen, tried, strict=True)
            for settings in listed
        ]
        ran = train_and_measure(
            cells, items, metric, how, prompt, place, max_usd=max_usd, num_threads=num_threads, jobs=made
        )
        candidates, best = _ranked(ran.runs, ran.measured, len(made.seeds), ran.facts, how)
        test_score = None
        if best is not None and "test" in sets:
            test_how = Resampling.of(statistics or StatisticsOptions(), sets["test"])
            told_test = ask([ran.trained[best]], sets["test"], prompt, place, num_threads, made)
            _, of_test = score_columns(metric, sets["test"], told_test, test_how, num_threads=num_threads)
            test_score = of_test[0].interval
        return Sweep(
            metric=ran.facts,
            candidates=candidates,
            runs=ran.runs,
            model=None if best is None else ran.trained[best].model,
            n_validation=len(items),
            test_score=test_score,
            n_test=len(sets.get("test", ())),
            seeds=tuple(made.seeds),
            confidence=how.confidence,
            not_checked=_not_checked(ran.runs, made.seeds, test_score),
        )


def _settings(tried: Mapping[str, Sequence[Any]], hosts: Sequence[Host], jobs: CurveJobs) -> list[list[dict[str, Any]]]:
    """For each model's host all combinations of what it has.

    Raises:
        UsageError: No host has a hyperparameter, there is no value of it, or it is fixed for every job, too.
    """
    listed = {
        name: list(dict.fromkeys([values] if isinstance(values, (str, int, float)) else values))
        for name, values in tried.items()
    }
    known = [{*names_of(jobs.method, one.kind), *([RECIPE] if one.kind.has_recipes else ())} for one in hosts]
    for name, values in listed.items():
        if not values:
            raise UsageError(f'hyperparameters["{name}"] holds no value to try')
        if name in (jobs.hyperparameters or {}):
            raise UsageError(f"{name} stands among the values to try and among those of every job; leave one out")
        if not any(name in names for names in known):
            every = ", ".join(sorted(set().union(*known)))
            raise UsageError(f'no host of this sweep has a hyperparameter "{name}"; they have {every}')
    found = []
    for names in known:
        own = [name for name in listed if name in names]
        found.append(
            [dict(zip(own, values, strict=True)) for values in itertools.product(*(listed[one] for one in own))]
        )
    return found


def _ranked(
    runs: Sequence[CurveRun], found: Sequence[Measured | None], n_seeds: int, facts: MetricFacts, how: Resampling
) -> tuple[tuple[Candidate, ...], int | None]:
    """(the candidates, best first; the place of the best one's best run). `runs` holds the candidates seed by seed."""
    n_candidates = len(runs) // n_seeds
    sign = -1.0 if facts.higher_is_better else 1.0
    ranked = []
    for number in range(n_candidates):
        own = range(number, len(runs), n_candidates)
        scores = [one for one in (found[at] for at in own) if one is not None]
        cost = paid_together([runs[at] for at in own])
        key = (not scores, sign * mean_value(scores) if scores else 0.0, cost is None, cost or 0.0, number)
        ranked.append((key, own, scores, cost))
    ranked.sort(key=lambda one: one[0])
    leader = ranked[0][2]
    candidates = []
    for number, (_, own, scores, cost) in enumerate(ranked):
        behind = None
        if number and scores:
            change = draws_over_seeds(scores, seed=how.seed + number) - draws_over_seeds(leader, seed=how.seed)
            value, n_items = mean_value(scores) - mean_value(leader), min(one.interval.n for one in scores)
            behind = intervals.percentile_interval(value, change, n_items, how.confidence)
        candidates.append(
            Candidate(
                base_model=runs[own[0]].base_model,
                hyperparameters=runs[own[0]].hyperparameters,
                n_runs=len(scores),
                score=mean_over_seeds(scores, confidence=how.confidence, seed=how.seed) if scores else None,
                behind=behind,
                cost_usd=cost,
            )
        )
    of_best = [(sign * one.value, at) for at in ranked[0][1] if (one := found[at]) is not None]
    return tuple(candidates), min(of_best)[1] if of_best else None


def _not_checked(runs: Sequence[CurveRun], seeds: Sequence[int], test_score: Interval | None) -> tuple[str, ...]:
    notes = told_of_runs(runs, seeds)
    if test_score is None:
        notes.append(
            "The best one on rows that chose nothing: the best of several scores is flattered by the choice; test rows"
            " (test=..., --test) would show by how much."
        )
    return (
        "Values between and beyond those that were tried.",
        "Asking the models is not in the costs.",
        *notes,
    )
