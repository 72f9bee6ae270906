"""The jobs of a learning curve: nested parts of the data, one budget, and every job followed to its end.

In: rows, sizes, plans, a budget. Out: training files, and for each plan its model or the reason why there is none.
Not covered: asking the models and what their answers mean (curve.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dspy_finetune.errors import BudgetError, JobCancelledError, JobFailedError
from dspy_finetune.evaluation.reading import label_text
from dspy_finetune.export import export_dpo, export_sft
from dspy_finetune.jobs import Clock, FinetunedModel, Job, Plan
from dspy_finetune.jobs.plan import unknown_price
from dspy_finetune.prompts import PromptFormat


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


Tell: TypeAlias = Callable[[CurveProgress], object]
"""Takes each sign of progress."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run to be made."""

    n_rows: int
    """Training examples."""
    seed: int
    """Of the order they were taken from, and of the job."""
    plan: Plan
    """The job."""

    @property
    def name(self) -> str:
        """For people."""
        epochs = f"{self.plan.n_epochs} epoch{'s' * (self.plan.n_epochs != 1)}"
        return f"{self.plan.base_model}, {self.n_rows} rows, {epochs}, seed {self.seed}"


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
        raise unknown_price(", ".join(unknown), cells[0].plan.host, max_usd)
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
    """Starts the jobs, so many at once, and follows each to its end."""

    max_usd: float | None
    """For all together."""
    allow_unknown_price: bool
    """Start although nobody knows a price."""
    retry_failed: bool
    """Make a new job for one that an earlier call had seen fail."""
    n_at_once: int
    """Jobs that may be on the host at once."""
    clock: Clock
    """The hour."""
    tell: Tell
    """Takes each sign of progress."""

    def run(self, cells: Sequence[Cell]) -> list[Trained]:
        """Each cell's fate, in the order given; Ctrl-C leaves the jobs that were started alive on the host."""
        every: list[Trained] = []
        waiting: list[Trained] = []
        for cell in cells:
            if len(waiting) >= self.n_at_once:
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
                allow_unknown_price=self.allow_unknown_price,
                clock=self.clock,
            )
        except BudgetError as error:
            one.error = f"not started: {error}"

    def _follow(self, one: Trained, every: Sequence[Trained], n_total: int) -> None:
        def tell(note: str) -> None:
            n_done = sum(other.model is not None or other.error is not None for other in every)
            self.tell(CurveProgress(stage="training", run=one.cell.name, n_done=n_done, n_total=n_total, note=note))

        def look(progress: Any) -> None:
            tell(str(progress))

        for is_retry in (False, True):
            assert one.job is not None
            tell(f"{one.job.id} {'started' if one.job.is_new else 'found'}")
            try:
                one.model, one.error = one.job.wait(on_progress=look), None
            except (JobFailedError, JobCancelledError) as error:
                one.error = str(error)
                if self.retry_failed and not one.job.is_new and not is_retry:
                    self._start(one, [other for other in every if other is not one], new=True)
                    continue
            break
        tell("done" if one.error is None else one.error)
