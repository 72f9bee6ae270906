"""SFT, then DPO: the recommended order, as one plan with one budget; and any other chain of jobs on one model.

In: a preference file, or plans. Out: a plan of jobs, each from the model of the one before. Interrupted anywhere, the
same call goes on where it was: each of the jobs is found again as any plan is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dspy_finetune._files import atomic_writer, sha256_file
from dspy_finetune._jsonl import read_jsonl
from dspy_finetune.errors import BudgetError, RowError
from dspy_finetune.export.dataset import Manifest
from dspy_finetune.hosts import Host
from dspy_finetune.jobs.job import JobProgress
from dspy_finetune.jobs.model import FinetunedModel
from dspy_finetune.jobs.plan import RECIPE, Plan, Source, path_of, plan, unknown_price
from dspy_finetune.report.blocks import Block, Bullets, Heading, Section
from dspy_finetune.report.page import Reported


@dataclass(frozen=True, kw_only=True)
class SequencePlan(Reported):
    """Two jobs that have not been started."""

    sft: Plan
    """The first: the preferred answers."""
    dpo: Plan
    """The second; it starts from the first one's model when that is there."""

    @property
    def cost_usd(self) -> float | None:
        """Of both; None where one is unknown."""
        return together((self.sft, self.dpo))

    @property
    def n_tokens(self) -> int | None:
        """Of both, all epochs; None where one is unknown."""
        counts = (self.sft.n_tokens, self.dpo.n_tokens)
        return None if counts[0] is None or counts[1] is None else counts[0] + counts[1]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of both, each once."""
        return tuple(dict.fromkeys((*self.sft.warnings, *self.dpo.warnings)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {"sft": self.sft.to_dict(), "dpo": self.dpo.to_dict(), "cost_usd": self.cost_usd}

    def __str__(self) -> str:
        return f"1. {self.sft}\n2. {self.dpo}"

    def section(self) -> Section:
        """The blocks of a report: each job, what both cost, and what should be known before."""
        title = f"Plan of two jobs on {self.sft.host.name}: SFT, then DPO"
        return section_of((self.sft, self.dpo), title=title, warnings=self.warnings)

    def start(
        self,
        max_usd: float | None = None,
        *,
        new: bool = False,
        allow_unknown_price: bool = False,
    ) -> SequenceJob:
        """Start the first job; the second follows in `wait`.

        Args:
            max_usd: For both together.
            new: Make other jobs although this plan has some.
            allow_unknown_price: Start although a price is unknown.

        Raises:
            BudgetError: The two cost more than allowed, or a price is unknown; nothing was uploaded.
            JobError: As `Plan.start`.
            HostError: As `Plan.start`.
        """
        return SequenceJob((self.sft, self.dpo), max_usd, new=new, allow_unknown_price=allow_unknown_price)


def section_of(plans: Sequence[Plan], *, title: str, warnings: Sequence[str]) -> Section:
    """The blocks of a report on several jobs: each one's plan, what all cost, and what should be known before."""
    cost = together(plans)
    blocks: list[Block] = []
    for number, one in enumerate(plans, start=1):
        (facts, *_) = one.section().blocks
        blocks += [Heading(text=f"{number}. {one}"), facts]
    if warnings:
        blocks += [Heading(text="Before it is started"), Bullets(lines=tuple(warnings))]
    jobs = f"{len(plans)} job{'s' if len(plans) != 1 else ''}"
    price = "price unknown" if cost is None else f"${cost:,.2f}"
    return Section(title=title, verdict=f"{jobs}, {price}", blocks=tuple(blocks))


class SequenceJob:
    """A chain of running jobs, each of which starts from the model of the one before; the first is started here.

    Raises:
        BudgetError: They cost more than allowed together, or a price is unknown; nothing was uploaded.
        JobError: As `Plan.start`.
        HostError: As `Plan.start`.
    """

    def __init__(self, plans: Sequence[Plan], max_usd: float | None, *, new: bool, allow_unknown_price: bool) -> None:
        # Before the first job, not between two of them.
        cost = together(plans)
        if cost is None and not allow_unknown_price:
            raise unknown_price(plans[0].base_model, plans[0].host, max_usd)
        if max_usd is not None and cost is not None and cost > max_usd:
            raise BudgetError(f"the jobs together cost ${cost:,.2f}, more than the allowed ${max_usd:,.2f}")
        self._plans = tuple(plans)
        self._max_usd = max_usd
        self._options: dict[str, Any] = {"new": new, "allow_unknown_price": allow_unknown_price}
        self.jobs = [self._plans[0].start(max_usd, **self._options)]
        """Those that were started, in their order."""

    @property
    def id(self) -> str:
        """The id of the job that is running."""
        return self.jobs[-1].id

    def wait(
        self, timeout_seconds: float | None = None, on_progress: Callable[[JobProgress], object] | None = None
    ) -> FinetunedModel:
        """Follow the first job, start the next from its model, follow that, and so on; gives the last one's model.

        Args:
            timeout_seconds: For each of the jobs.
            on_progress: Called after each poll.

        Raises:
            JobError: As `Job.wait`; BudgetError if one cost so much that the next would go above the budget.
            HostError: As `Job.wait`.
        """
        left = self._max_usd
        for number, planned in enumerate(self._plans, start=1):
            model = self.jobs[number - 1].wait(timeout_seconds, on_progress)
            if left is not None:
                paid = model.cost_usd if model.cost_usd is not None else planned.cost_usd
                left = max(left - (paid or 0.0), 0.0)
            if number == len(self.jobs) < len(self._plans):
                following = replace(self._plans[number], base_model=model.id)
                self.jobs.append(following.start(left, **self._options))
        return model


def together(plans: Sequence[Plan]) -> float | None:
    """What plans cost together, in US dollars; None where one is unknown."""
    costs = [one.cost_usd for one in plans]
    return None if None in costs else sum(cost or 0.0 for cost in costs)


def sft_then_dpo(
    pairs: Source,
    *,
    sft: Source | None = None,
    base_model: str | FinetunedModel | None = None,
    host: Host,
    sft_hyperparameters: Mapping[str, Any] | None = None,
    dpo_hyperparameters: Mapping[str, Any] | None = None,
    **options: Any,
) -> SequencePlan:
    """Plan SFT on the preferred answers, then DPO from that model.

    Args:
        pairs: What `export_dpo` gave, or a file of preferences.
        sft: Other rows for the first job; None takes the preferred answers of the pairs, written to
            `<pairs>.preferred.jsonl`.
        base_model: Where the first job starts; None takes the host's own, `host.base_model`.
        host: Where to train.
        sft_hyperparameters: Of the first job.
        dpo_hyperparameters: Of the second.
        options: suffix, seed, metadata, wandb, as for `plan`.

    Raises:
        UsageError: An argument is wrong.
        DataError: The host would refuse a file.
        FileError: A file cannot be read or written.
    """
    first = sft if sft is not None else write_preferred(path_of(pairs))
    if host.kind.has_recipes:
        # Preferences train the weights: a linear head on a frozen base would leave them nothing to start from.
        sft_hyperparameters = {RECIPE: "lora", **(sft_hyperparameters or {})}
    return SequencePlan(
        sft=plan(first, base_model=base_model, method="sft", host=host, hyperparameters=sft_hyperparameters, **options),
        dpo=plan(pairs, base_model=base_model, method="dpo", host=host, hyperparameters=dpo_hyperparameters, **options),
    )


def write_preferred(pairs: Path) -> Path:
    """Write the preferred answers of a preference file as SFT rows beside it, each once; returns the new file.

    Raises:
        RowError: A row is not a pair in OpenAI's schema.
        FileError: A file cannot be read or written.
    """
    target = pairs.with_name(f"{pairs.stem}.preferred.jsonl")
    seen: set[str] = set()
    with atomic_writer(target) as stream:
        for number, row in read_jsonl(pairs):
            try:
                given, preferred = row["input"], row["preferred_output"]
                rest = {name: value for name, value in given.items() if name != "messages"}
                line = json.dumps({"messages": [*given["messages"], *preferred], **rest}, ensure_ascii=False)
            except (TypeError, KeyError, AttributeError) as error:
                raise RowError(
                    "not a pair of answers",
                    path=str(pairs),
                    line=number,
                    value=row,
                    remedy="a row holds input.messages, preferred_output and non_preferred_output",
                ) from error
            if line not in seen:
                seen.add(line)
                stream.write(line.encode("utf-8") + b"\n")
    manifest = Manifest.read(pairs)
    if manifest is not None:
        # The prompt is the same, and what a model was trained with must follow it through both jobs.
        replace(
            manifest,
            file=target.name,
            method="sft",
            n_rows_out=len(seen),
            sha256=sha256_file(target),
            size_bytes=target.stat().st_size,
            n_tokens=None,
            n_billed_tokens=None,
        ).write(target)
    return target
