"""The same model on another host: planned from how the old one was made, and trained as any plan is.

In: a tuned model, and where to. Out: a `MigrationPlan`; a model that was tuned from a tuned one is made again from the
start, job by job, each from the model of the one before.
Not covered: finding out how it was made (recipe.py), comparing new with old (report/migration.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dspy_finetune.errors import UsageError
from dspy_finetune.export import convert
from dspy_finetune.export.dialects import DIALECTS
from dspy_finetune.export.manifest import Manifest
from dspy_finetune.hosts import Host, load_catalog, parse_model_id
from dspy_finetune.hosts.catalog import Catalog
from dspy_finetune.jobs.clock import SYSTEM_CLOCK, Clock
from dspy_finetune.jobs.model import FinetunedModel
from dspy_finetune.jobs.plan import Plan, plan
from dspy_finetune.jobs.pricing import catalog_name, journal_of
from dspy_finetune.jobs.recipe import Recipe, recipe_of
from dspy_finetune.jobs.sequence import SequenceJob, together

MOST_STEPS = 16
"""Tuned from a tuned model, from a tuned model ...: more than this is a circle."""


@dataclass(frozen=True, kw_only=True)
class MigrationPlan:
    """A model's making, planned for another host and not started."""

    recipes: tuple[Recipe, ...]
    """How it was made, first job first."""
    plans: tuple[Plan, ...]
    """The same on the new host, first job first."""
    warnings: tuple[str, ...] = field(default=())
    """What should be known before it is started."""

    @property
    def old(self) -> Recipe:
        """How the model itself was made: the last of the jobs."""
        return self.recipes[-1]

    @property
    def host(self) -> Host:
        """Where to."""
        return self.plans[0].host

    @property
    def cost_usd(self) -> float | None:
        """Of all jobs; None where one is unknown."""
        return together(self.plans)

    def start(
        self,
        max_usd: float | None = None,
        *,
        new: bool = False,
        allow_unknown_price: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> SequenceJob:
        """Start the first job; the others follow in `wait`. The same migration again finds the same jobs.

        Args:
            max_usd: For all jobs together.
            new: Make other jobs although these plans have some.
            allow_unknown_price: Start although nobody knows the price.
            clock: For tests.

        Raises:
            BudgetError: They cost more than allowed, or a price is unknown; nothing was uploaded.
            JobError: As `Plan.start`.
            HostError: As `Plan.start`.
        """
        return SequenceJob(self.plans, max_usd, new=new, allow_unknown_price=allow_unknown_price, clock=clock)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "model": self.old.model,
            "from": self.old.host.to_dict(),
            "job_id": self.old.job_id,
            "to": self.host.to_dict(),
            "plans": [one.to_dict() for one in self.plans],
            "cost_usd": self.cost_usd,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        steps = "\n".join(f"{number}. {one}" for number, one in enumerate(self.plans, start=1))
        return f"{self.old.model} of {self.old.host.name} again, on {self.host.name}:\n{steps}"


def plan_migration(
    model: str | FinetunedModel,
    *,
    to: Host,
    host: Host | None = None,
    base_model: str | None = None,
    train: str | Path | None = None,
    validation: str | Path | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    suffix: str | None = None,
    seed: int | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> MigrationPlan:
    """Plan the training of the same model on another host; `dspy_finetune.migrate` documents the arguments.

    Raises:
        UsageError: Nobody knows how the model was made, or an argument is wrong.
        DataError: A file is not the one it was trained on, or the new host would refuse it.
        HostError: The old host refused, or did not answer, and the journal does not know enough.
    """
    catalog = load_catalog()
    folder = journal_of(to).path.parent / "migrated"
    recipes = [recipe_of(model, folder=folder, host=host, train=_path(train), validation=_path(validation))]
    while parse_model_id(recipes[0].base_model).is_tuned:
        if len(recipes) == MOST_STEPS:
            raise UsageError(f"{recipes[-1].model} was tuned from tuned models more than {MOST_STEPS} deep")
        recipes.insert(0, recipe_of(recipes[0].base_model, folder=folder, host=recipes[0].host))
    target = base_model or _same_base(recipes[0], to, catalog)
    if to == recipes[0].host and target == recipes[0].base_model:
        raise UsageError(
            f"{recipes[-1].model} is on {to.name} already, and {target} is what it was tuned from; name another host or"
            " base model"
        )
    plans, notes = [], [note for one in recipes for note in one.notes]
    if recipes[-1].prompt is None:
        notes.append(
            f"{recipes[-1].train.name} has no manifest with its prompt, so that the models are compared as they stand,"
            " on chat messages"
        )
    for recipe in recipes:
        settled = recipe.hyperparameters | dict(hyperparameters or {} if recipe is recipes[-1] else {})
        plans.append(
            plan(
                _in_dialect(recipe.train, to, catalog, folder),
                validation=_in_dialect(recipe.validation, to, catalog, folder) if recipe.validation else None,
                base_model=target,
                method=recipe.method,
                host=to,
                hyperparameters=settled,
                suffix=suffix if suffix is not None and recipe is recipes[-1] else recipe.suffix,
                seed=seed if seed is not None else recipe.seed,
                clock=clock,
            )
        )
    notes += [note for one in plans for note in one.warnings]
    return MigrationPlan(recipes=tuple(recipes), plans=tuple(plans), warnings=tuple(dict.fromkeys(notes)))


def _path(given: str | Path | None) -> Path | None:
    return Path(given) if given is not None else None


def _same_base(recipe: Recipe, to: Host, catalog: Catalog) -> str:
    """The base that the old model had, where the new host trains it; else the new host's usual one."""
    offered = catalog.methods(recipe.base_model, catalog_name(to, catalog))
    is_offered = recipe.method in offered if offered is not None else to.kind is recipe.host.kind
    return recipe.base_model if is_offered else to.base_model


def _in_dialect(path: Path, to: Host, catalog: Catalog, folder: Path) -> Path:
    """The file as the new host reads it: itself, or a converted copy."""
    dialect = catalog_name(to, catalog)
    manifest = Manifest.read(path)
    before = manifest.dialect if manifest is not None else "openai"
    wanted = dialect if dialect in DIALECTS else "openai"
    if wanted == before:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    return convert(path, folder / f"{path.stem}.{wanted}.jsonl", to=wanted).path
