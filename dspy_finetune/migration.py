"""`migrate`: train a tuned model again on another host, and compare the new one with the old.

In: a tuned model (its id, its job's, a saved predictor), and where to. Out: a `Migration`: a plan that costs nothing,
its start, and a report of new against old, by the old one's answers of before or by fresh ones. How the model was made
comes from this machine's journal and the manifest beside the file; what is missing there from the host, as long as it
still answers. Not covered: the statistics (evaluation/).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy

from dspy_finetune._files import atomic_writer, sha256_file
from dspy_finetune._jsonl import read_jsonl
from dspy_finetune.catalog import Catalog, parse_model_id
from dspy_finetune.errors import DataError, EmptyDatasetError, HostError, UsageError
from dspy_finetune.evaluation import ComparisonReport, compare
from dspy_finetune.evaluation import metrics as all_metrics
from dspy_finetune.evaluation.baselines import predictor_for, usual_metric
from dspy_finetune.evaluation.collect import Program
from dspy_finetune.evaluation.metrics import AnyMetric
from dspy_finetune.evaluation.saved_programs import StoredAnswers, stored_answers
from dspy_finetune.export import convert
from dspy_finetune.export.dataset import Manifest
from dspy_finetune.export.dialects import DIALECTS
from dspy_finetune.export.formats import method_of
from dspy_finetune.hosts import Host, load_catalog
from dspy_finetune.hosts.embedded import home
from dspy_finetune.hosts.protocol import present
from dspy_finetune.jobs.job import attach, list_jobs
from dspy_finetune.jobs.model import FinetunedModel
from dspy_finetune.jobs.plan import ANSWERS, NAMES, RECIPE, Method, Plan, checked_value, names_of, plan
from dspy_finetune.jobs.records import JobFacts, Journal, catalog_name, journal_of
from dspy_finetune.jobs.sequence import SequenceJob, section_of, together
from dspy_finetune.jobs.submit import DATA_KEY
from dspy_finetune.predictors import load_predictor
from dspy_finetune.predictors.base import FinetunedPredictor
from dspy_finetune.prompts import PromptFormat
from dspy_finetune.prompts.format import AnyPrompt, as_prompt
from dspy_finetune.report.blocks import Section
from dspy_finetune.report.page import Reported

# How the model was made: data, prompt, method, hyperparameters, by journal, manifest and host.

LISTED_JOBS = 1000
_PORTABLE = ("n_epochs", "beta")
"""A host's own choice of the others follows from its scale: OpenAI's multiplier of 1.8 means nothing to another."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model was made."""

    model: str
    """What it made."""
    host: Host
    """Where."""
    job_id: str | None
    """The job that made it; None where nobody knows."""
    base_model: str
    """Where its training started: a base model, or a tuned one."""
    method: Method
    """sft or dpo."""
    train: Path
    """The training file, on this machine."""
    validation: Path | None
    """The file that was measured on; None without, or where it is gone."""
    hyperparameters: dict[str, Any]
    """As they were asked for; by the host's account only those that mean the same everywhere."""
    suffix: str | None
    """A part of its name."""
    seed: int | None
    """The random seed."""
    prompt: PromptFormat | None
    """What the rows were rendered with; None without a manifest."""
    notes: tuple[str, ...] = field(default=())
    """What could not be found, in sentences."""


def recipe_of(
    model: str | FinetunedModel,
    *,
    folder: Path,
    host: Host | None = None,
    train: Path | None = None,
    validation: Path | None = None,
) -> Recipe:
    """Find out how a model was made.

    Args:
        model: Its id, a checkpoint's, or that of the job that made it.
        folder: Where files go that are fetched from the host.
        host: Where it was made; without it this machine's journal is asked, and OpenAI for its own form of id.
        train: The training file, where it is not where it was.
        validation: The file to measure on, likewise.

    Raises:
        UsageError: Nobody knows the model, or its training file.
        DataError: The training file is not the one that it was trained on.
        HostError: The host refused, or did not answer, and the journal does not know enough.
    """
    named = str(model).removeprefix("openai/").split(":ckpt-step-")[0]
    noted = _noted(named, host)
    if isinstance(model, FinetunedModel):
        noted = {"job_id": model.job_id, "host": model.host_description or None, **noted}
    host = host or _host_of(named, noted)
    notes = ["a checkpoint: the whole of its job is trained again"] if ":ckpt-step-" in str(model) else []
    made = named if parse_model_id(named).is_tuned else noted.get("model")
    facts = None
    if not noted.get("base_model") or not made or (train is None and _noted_file(noted) is None):
        # A host that has closed, or is not running, is asked only for what nobody else knows.
        # Once the host has closed, the model's name and the file given are all that is left.
        is_told = train is not None and parse_model_id(named).is_tuned
        facts = _facts(named, host, noted.get("job_id"), notes, is_known=bool(noted.get("base_model")) or is_told)
        if facts is None and train is not None and is_told and not noted.get("base_model"):
            noted = {**noted, "base_model": parse_model_id(named).base, "method": _method_in(train)}
            notes.append(
                "the base is read off the model's name, data and prompt come from the file; settings are the defaults"
            )
    if facts is None and not noted.get("base_model"):
        raise UsageError(
            f"nobody knows how {named} was made: neither this machine's journal nor the jobs of {host.name}; name the"
            " host it was trained on, or plan the training anew: dspy-finetune plan FILE --host ..."
        )
    made = facts.fine_tuned_model if facts else made
    if not made:
        raise UsageError(
            f"{named} has made no model (it is {facts.status if facts else 'unknown'}); nothing can be moved"
        )
    method = str(noted.get("method") or (facts.method if facts else "sft"))
    if method not in NAMES:
        raise UsageError(
            f"{named} was trained by {method}, which no host offers any more; only sft and dpo can be moved"
        )
    sha256 = noted.get("data_sha256") or (facts.metadata.get(DATA_KEY) if facts else None)
    train = _training_file(named, train, noted, facts, host, sha256, folder)
    return Recipe(
        model=made,
        host=host,
        job_id=facts.id if facts else noted.get("job_id"),
        base_model=str(facts.model if facts else noted["base_model"]),
        method="dpo" if method == "dpo" else "sft",
        train=train,
        validation=validation or _validation_file(noted, facts, host, folder, notes),
        hyperparameters=_hyperparameters(noted, facts, notes),
        suffix=noted["suffix"] if "suffix" in noted else parse_model_id(named).suffix,
        seed=noted.get("seed", facts.seed if facts else None),
        prompt=_prompt(train),
        notes=tuple(notes),
    )


def _noted(named: str, host: Host | None) -> dict[str, Any]:
    """What the journals of this machine know: the notes of the intent that became the model or the job."""
    journals = [journal_of(host)] if host is not None else [Journal(home() / "journal.jsonl"), journal_of(Host.local())]
    for journal in journals:
        entries = journal.entries()
        for entry in reversed(entries):
            if named in (entry.facts.get("model"), entry.facts.get("job_id")):
                meant = [one for one in entries if one.intent == entry.intent and one.event == "intent"]
                if meant:
                    kept = {name: entry.facts.get(name) for name in ("job_id", "model")}
                    return {**meant[-1].facts, **kept}
    return {}


def _host_of(named: str, noted: Mapping[str, Any]) -> Host:
    if noted.get("host"):
        return Host.from_dict(noted["host"])
    known = parse_model_id(named)
    if known.organisation == "local":
        return Host.local()
    if known.organisation is not None:
        return Host.openai()
    raise UsageError(f"this machine's journal does not know {named}; say where it was trained (host=..., --from ...)")


def _facts(named: str, host: Host, job_id: str | None, notes: list[str], *, is_known: bool) -> JobFacts | None:
    """What the host says of the job; None where it does not say and the journal knows enough."""
    try:
        if job_id is not None or not parse_model_id(named).is_tuned:
            return attach(job_id or named, host=host).facts
        return next(
            (one.facts for one in list_jobs(host=host, limit=LISTED_JOBS) if one.facts.fine_tuned_model == named), None
        )
    except HostError as error:
        if not is_known:
            raise
        notes.append(f"{host.name} could not be asked for the job ({error}); what is known here is used")
        return None


def _method_in(train: Path) -> Method:
    """What the rows of a file train, by the first of them."""
    for _, row in read_jsonl(train):
        return method_of(row)
    raise EmptyDatasetError(f"{train} has no rows")


def _training_file(
    named: str,
    given: Path | None,
    noted: Mapping[str, Any],
    facts: JobFacts | None,
    host: Host,
    sha256: str | None,
    folder: Path,
) -> Path:
    """The very bytes that the model was trained on: as given, where they were, or from the host."""
    if given is not None:
        if sha256 is not None and given.is_file() and sha256_file(given) != sha256:
            raise DataError(
                f"{given}: not the file that {named} was trained on (sha256 {sha256[:12]}...); give that one, or train"
                " on this one as a job of its own: dspy-finetune train"
            )
        return given
    here = _noted_file(noted)
    if here is not None:
        return here
    where = f"{noted['train']} is gone or changed" if noted.get("train") else "this machine has no copy"
    if facts is None or facts.training_file is None:
        raise UsageError(f"the training file of {named} is not to be had: {where}; name it (train=..., --train FILE)")
    try:
        fetched = _fetch(facts.training_file, host, folder)
    except HostError as error:
        raise UsageError(
            f"the training file of {named} is not to be had: {where}, and {host.name} does not give"
            f" {facts.training_file} ({error}); name it (train=..., --train FILE)"
        ) from error
    if sha256 is not None and sha256_file(fetched) != sha256:
        raise DataError(f"{host.name} gave another file than {named} was trained on; name it (train=..., --train FILE)")
    return fetched


def _noted_file(noted: Mapping[str, Any]) -> Path | None:
    """The training file where the journal says that it lay, if it still holds the same bytes."""
    if not noted.get("train"):
        return None
    path, sha256 = Path(str(noted["train"])), noted.get("data_sha256")
    return path if path.is_file() and (sha256 is None or sha256_file(path) == sha256) else None


def _validation_file(
    noted: Mapping[str, Any], facts: JobFacts | None, host: Host, folder: Path, notes: list[str]
) -> Path | None:
    """The file that was measured on; its bytes do not decide the model, so a missing one is a note."""
    if noted.get("validation") and Path(noted["validation"]).is_file():
        return Path(noted["validation"])
    if facts is None or facts.validation_file is None:
        return None
    try:
        return _fetch(facts.validation_file, host, folder)
    except HostError as error:
        notes.append(f"the validation file is not to be had ({error}); nothing is measured while training")
        return None


def _fetch(file_id: str, host: Host, folder: Path) -> Path:
    with host.talking(f"fetch the file {file_id}"):
        content = host.api().content(file_id)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"fetched-{hashlib.sha256(content).hexdigest()[:16]}.jsonl"
    with atomic_writer(path) as stream:
        stream.write(content)
    return path


def _hyperparameters(noted: Mapping[str, Any], facts: JobFacts | None, notes: list[str]) -> dict[str, Any]:
    if "hyperparameters" in noted:
        # What was left to the old host is left to the new one.
        return {name: value for name, value in noted["hyperparameters"].items() if value != "auto"}
    told = facts.hyperparameters if facts is not None else {}
    kept = {name: told[name] for name in _PORTABLE if isinstance(told.get(name), (int, float))}
    left = sorted(name for name in told if name not in kept)
    if left:
        notes.append(f"{', '.join(left)}: known only as the old host settled it; the new host chooses its own")
    return kept


def _prompt(train: Path) -> PromptFormat | None:
    manifest = Manifest.read(train)
    if manifest is None or manifest.prompt is None or manifest.sha256 != sha256_file(train):
        return None
    return PromptFormat.from_dict(manifest.prompt)


# The plan on the new host: a model that was tuned from a tuned one is made again from the start, job by job.

MOST_STEPS = 16
"""Tuned from a tuned model, from a tuned model ...: more than this is a circle."""


@dataclass(frozen=True, kw_only=True)
class MigrationPlan(Reported):
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
    ) -> SequenceJob:
        """Start the first job; the others follow in `wait`. The same migration again finds the same jobs.

        Args:
            max_usd: For all jobs together.
            new: Make other jobs although these plans have some.
            allow_unknown_price: Start although nobody knows the price.

        Raises:
            BudgetError: They cost more than allowed, or a price is unknown; nothing was uploaded.
            JobError: As `Plan.start`.
            HostError: As `Plan.start`.
        """
        return SequenceJob(self.plans, max_usd, new=new, allow_unknown_price=allow_unknown_price)

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
        return f"{self._title()}:\n{steps}"

    def section(self) -> Section:
        """The blocks of a report: each job on the new host, what they cost, and what should be known before."""
        return section_of(self.plans, title=self._title(), warnings=self.warnings)

    def _title(self) -> str:
        return f"{self.old.model} of {self.old.host.name} again, on {self.host.name}"


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
    **options: Any,
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
        given = dict(hyperparameters or {} if recipe is recipes[-1] else {})
        settled = _carried(recipe, to, given, notes) | given
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
                **options,
            )
        )
    notes += [note for one in plans for note in one.warnings]
    return MigrationPlan(recipes=tuple(recipes), plans=tuple(plans), warnings=tuple(dict.fromkeys(notes)))


def _carried(recipe: Recipe, to: Host, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The recorded hyperparameters that the new host takes; what it does not take is told in `notes`."""
    names, kept = names_of(recipe.method, to.kind), {}
    for name, value in recipe.hyperparameters.items():
        if name in given or name == ANSWERS:  # the prompt tells it anew
            continue
        if name == RECIPE and not to.kind.has_recipes:
            notes.append(f"{RECIPE}={value}: {to.name} has no recipes, and trains as it does")
        elif name != RECIPE and name not in names:
            notes.append(f"{name}={value}: {to.name} has no such setting, and chooses its own")
        elif name == RECIPE or value is None or _takes(name, value, to):
            kept[name] = value
        else:
            notes.append(f"{name}={value}: {to.name} does not take that value, and another is chosen")
    return kept


def _takes(name: str, value: Any, to: Host) -> bool:
    try:
        return not (checked_value(name, value, to.kind) is False and not to.kind.has_full)
    except UsageError:
        return False


def _path(given: str | Path | None) -> Path | None:
    return Path(given) if given is not None else None


def _same_base(recipe: Recipe, to: Host, catalog: Catalog) -> str:
    """The base that the old model had, where the new host trains it; else the new host's usual one."""
    name = catalog_name(to, catalog)
    at_host = catalog.host(name)
    if at_host is not None and at_host.trains and recipe.base_model not in catalog.trained(name):
        return to.base_model  # it trains more than the catalog names, and this one may be another host's
    offered = catalog.methods(recipe.base_model, name)
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


NEW, OLD = "new", "old"
"""What the two are called in the report."""


@dataclass(frozen=True, kw_only=True)
class Migration(Reported):
    """A model on its way to another host; nothing has been started."""

    plan: MigrationPlan
    """What is trained there, what it costs, and what should be known before."""
    old_predictor: FinetunedPredictor | None
    """The old model in use; None where its prompt is not known."""

    def start(
        self,
        max_usd: float | None = None,
        *,
        new: bool = False,
        allow_unknown_price: bool = False,
    ) -> SequenceJob:
        """Start it; `.wait()` of what is returned gives the new model. As `Plan.start`: paid once."""
        return self.plan.start(max_usd, new=new, allow_unknown_price=allow_unknown_price)

    def new_predictor(self, model: FinetunedModel | str, *, host: Host | None = None) -> FinetunedPredictor:
        """The old predictor with the new model in its place; save it, and load it where the old one was.

        Args:
            model: What the job made.
            host: Where it answers; the new host without it.

        Raises:
            UsageError: The prompt is not known.
        """
        if self.old_predictor is None:
            raise UsageError(
                f"{self.plan.old.train.name} has no manifest with its prompt; give a saved predictor instead of the"
                " model's id, or build one with the prompt: OpenAIPredictor(prompt, model)"
            )
        place = host or self.plan.host
        # The calibration stays behind: it was fitted to the old model's probabilities.
        state = {name: value for name, value in self.old_predictor.dump_state().items() if name != "calibration"}
        made = type(self.old_predictor)(self.old_predictor.prompt, str(model), host=place)
        return made.load_state({**state, "model": str(model), "host": place.to_dict()})

    def compare(
        self,
        model: FinetunedModel | str,
        examples: Sequence[Any] | None = None,
        metrics: Sequence[AnyMetric] | None = None,
        *,
        stored: str | os.PathLike[str] | StoredAnswers | None = None,
        margin: float | None = None,
        host: Host | None = None,
        **options: Any,
    ) -> ComparisonReport:
        """Hold the new model against the old one on the same items.

        Args:
            model: What the job made.
            examples: Labelled examples that neither was trained on. None takes the file that the training was measured
                on, as chat messages with their answers.
            metrics: As for `compare`; the usual one for the prompt without them.
            stored: The old model's answers of before, as `report.to_json` keeps them; None asks it now.
            margin: A difference that does not matter; allows "equivalent", which is what a move hopes for.
            host: Where the new model answers, if not at the new host's own address.
            **options: For `compare`: num_threads, statistics, running.

        Raises:
            UsageError: There is nothing to compare on, or the old model does not answer any more and no answers are
                stored.
            HostError: A host refused.
        """
        place = host or self.plan.host
        programs: dict[str, Program]
        if examples is None:
            rows = _chat_rows(self.plan)
            chosen: Sequence[AnyMetric] = metrics or [all_metrics.exact_match("answer")]
            old = self.plan.old
            programs = {NEW: _Chat(str(model), place), OLD: _Chat(old.model, old.host)}
        else:
            rows = list(examples)
            made = self.new_predictor(model, host=place)
            assert self.old_predictor is not None
            chosen = metrics or [_usual(made.prompt)]
            programs = {NEW: made, OLD: self.old_predictor}
        if stored is not None:
            before = stored if isinstance(stored, StoredAnswers) else stored_answers(stored)
            rows = [row for row in rows if before.knows(dict(row.inputs().items()))]
            if not rows:
                raise UsageError(
                    f"none of the items is among the {len(before)} that {before.program} was asked about when its"
                    " answers were stored; give the same rows"
                )
            programs[OLD] = before
        else:
            self._need_old()
        cards = {
            "Models": {NEW: f"{model} on {place.name}", OLD: f"{self.plan.old.model} on {self.plan.old.host.name}"},
            "Old answers": {"are": "fresh" if stored is None else "stored", "items": str(len(rows))},
        }
        return compare(
            programs,
            rows,
            chosen,
            candidate=NEW,
            reference=OLD,
            margin=margin,
            title=f"{self.plan.old.model} moved to {place.name}",
            **options,
        ).annotated(cards=cards)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return self.plan.to_dict()

    def __str__(self) -> str:
        return str(self.plan)

    def section(self) -> Section:
        """The blocks of a report: those of the plan."""
        return self.plan.section()

    def _need_old(self) -> None:
        old = self.plan.old
        if not old.host.kind.lists_models:
            return
        try:
            with old.host.talking(f"ask for the model {old.model}"):
                old.host.api().model(old.model)
        except HostError as error:
            if error.status != 404:
                raise
            raise UsageError(
                f"{old.model} does not answer any more on {old.host.name}; compare with answers that were kept before:"
                " stored=... (--stored REPORT.json), from report.to_json(path) or compare --json-to"
            ) from error


def migrate(
    model: str | os.PathLike[str] | FinetunedModel | FinetunedPredictor,
    *,
    to: Host,
    host: Host | None = None,
    base_model: str | None = None,
    train: str | Path | None = None,
    validation: str | Path | None = None,
    prompt: AnyPrompt | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    suffix: str | None = None,
    seed: int | None = None,
    allow_unknown_model: bool = False,
    **options: Any,
) -> Migration:
    """Plan to train the same model on another host: same data, same prompt, same hyperparameters.

    Nothing is uploaded. `migration.start(max_usd=...)` trains, at most once; `migration.compare(model, examples)` tells
    whether the new one is worse.

    Args:
        model: The tuned model: its id, the id of the job that made it, a `FinetunedModel`, a predictor, or the file of
            a saved one. A model that was tuned from a tuned model is made again from the start.
        to: The new host.
        host: The old one; this machine's journal knows it without being told.
        base_model: What is tuned there; without it the same base where the new host trains it, else its usual one.
        train: The training file, where it is neither where it was nor to be had from the old host.
        validation: The file to measure on, likewise.
        prompt: What the rows were rendered with, where no manifest says so.
        hyperparameters: To change some of the recorded ones.
        suffix: Another one than the old model's.
        seed: Another one than the old job's.
        allow_unknown_model: Plan although the catalog does not know that the new host trains `base_model`.
        options: metadata and wandb of the new jobs, as for `plan`.

    Raises:
        UsageError: Nobody knows how the model was made, or an argument is wrong.
        DataError: A file is not the one it was trained on, or the new host would refuse it.
        HostError: The old host refused, or did not answer, and the journal does not know enough.
    """
    prompt = None if prompt is None else as_prompt(prompt)
    predictor = _predictor_of(model)
    name: str | FinetunedModel = predictor.model if predictor is not None else _named(model)
    planned = plan_migration(
        name,
        to=to,
        host=host or (predictor.host if predictor is not None else None),
        base_model=base_model,
        train=train,
        validation=validation,
        hyperparameters=hyperparameters,
        suffix=suffix,
        seed=seed,
        allow_unknown_model=allow_unknown_model,
        **options,
    )
    known = prompt or planned.old.prompt
    if predictor is None and known is not None:
        predictor = predictor_for(known, planned.old.model, host=planned.old.host)
    return Migration(plan=planned, old_predictor=predictor)


def _predictor_of(model: object) -> FinetunedPredictor | None:
    if isinstance(model, FinetunedPredictor):
        return model
    if isinstance(model, FinetunedModel):
        return None
    path = Path(str(model))
    return load_predictor(path) if path.suffix == ".json" else None


def _named(model: Any) -> str | FinetunedModel:
    return model if isinstance(model, FinetunedModel) else str(model)


def _usual(prompt: PromptFormat) -> AnyMetric:
    field = prompt.label_field or prompt.output_fields[0]
    metric: AnyMetric = getattr(all_metrics, usual_metric(prompt, field))(field)
    return metric


class _Chat:
    """A model as it stands: messages in, its text out."""

    def __init__(self, model: str, host: Host) -> None:
        self._model = model
        self._host = host

    def __call__(self, messages: Any) -> dspy.Prediction:
        with self._host.talking(f"ask {self._model}"):
            asked = self._host.client().chat.completions.create(
                model=self._model, messages=messages, temperature=0, max_tokens=256
            )
            answered = present(asked, "choices.message")
        return dspy.Prediction(answer=answered.choices[0].message.content or "")


def _chat_rows(plan: MigrationPlan) -> list[dspy.Example]:
    """The rows that the training was measured on, as questions with their right answers."""
    path = plan.old.validation
    if path is None:
        raise UsageError(
            f"there is nothing to compare on: {plan.old.model} was trained without a validation file; give labelled"
            " rows that it was not trained on (examples=..., --examples FILE)"
        )
    rows = []
    for _, row in read_jsonl(path):
        if method_of(row) == "dpo":
            messages, answer = row["input"]["messages"], row["preferred_output"][-1]["content"]
        else:
            messages, answer = row["messages"][:-1], row["messages"][-1]["content"]
        rows.append(dspy.Example(messages=messages, answer=answer).with_inputs("messages"))
    return rows
