"""How a tuned model was made (data, prompt, method, hyperparameters), so that the same can be made again elsewhere.

In: a tuned model's id, or a job's. Out: a `Recipe`, with its files on this machine. What is known comes from this
machine's journal and the manifest beside the file; what is missing there from the host, as long as it still answers.
Not covered: making it again (migration.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dspy_finetune._files import atomic_writer, sha256_file
from dspy_finetune.errors import DataError, HostError, UsageError
from dspy_finetune.export.manifest import Manifest
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.catalog import parse_model_id
from dspy_finetune.hosts.embedded import home
from dspy_finetune.jobs.hyperparameters import NAMES, Method
from dspy_finetune.jobs.job import attach, jobs
from dspy_finetune.jobs.journal import Journal
from dspy_finetune.jobs.model import FinetunedModel
from dspy_finetune.jobs.pricing import journal_of
from dspy_finetune.jobs.records import JobFacts
from dspy_finetune.jobs.submit import DATA_KEY
from dspy_finetune.prompts import PromptFormat

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
        facts = _facts(named, host, noted.get("job_id"), notes, is_known=bool(noted.get("base_model")))
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
            (one.facts for one in jobs(host=host, limit=LISTED_JOBS) if one.facts.fine_tuned_model == named), None
        )
    except HostError as error:
        if not is_known:
            raise
        notes.append(f"{host.name} could not be asked for the job ({error}); what this machine's journal knows is used")
        return None


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
        content: bytes = host.client().files.content(file_id).content
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
