"""A tuned model as a value: its id and its provenance (base, method, job, prompt, data, cost).

In: a finished job. Out: `FinetunedModel`, which is its id wherever a text is wanted, and travels as JSON.
Not covered: asking it (predictors/).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from typing import Any

from dspy_finetune._progress import told_if_slow
from dspy_finetune.catalog import Catalog, load_catalog, parse_model_id
from dspy_finetune.errors import HostError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.protocol import HostModel
from dspy_finetune.jobs.model_export import ExportedModel, ModelFormat, Weights, export_model
from dspy_finetune.jobs.records import CLOCK, catalog_name

logger = logging.getLogger(__name__)

READY_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class FinetunedModel:
    """A model that a job made; `str(model)` is its id."""

    id: str
    """The name to ask it by."""
    base: str
    """The base model's name."""
    host_name: str
    """Where it was trained."""
    host_description: dict[str, str] = field(default_factory=dict)
    """`Host.to_dict()`: address, never a key."""
    method: str = "sft"
    """sft or dpo."""
    job_id: str | None = None
    """The job that made it."""
    prompt_digest: str | None = None
    """Digest of the prompt it was trained with; predictors compare it with theirs."""
    data_sha256: str | None = None
    """Of the training file."""
    trained_tokens: int | None = None
    """As the host counted them."""
    cost_usd: float | None = None
    """Trained tokens times the price; None where one of them is unknown."""
    estimated_cost_usd: float | None = None
    """What the plan said."""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """As the host resolved them."""
    seed: int | None = None
    """The random seed."""

    def __str__(self) -> str:
        return self.id

    @property
    def host(self) -> Host:
        """Where it answers; the key comes from the environment."""
        return Host.from_dict(self.host_description) if self.host_description else Host.openai()

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; `from_dict` brings it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FinetunedModel:
        """The model that `to_dict` described; fields this version does not know are left out.

        Raises:
            UsageError: It is not such a description.
        """
        known = {item.name for item in fields(cls)}
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except TypeError as error:
            raise UsageError(f"not a model's description ({error})") from error

    def export(
        self,
        folder: str | os.PathLike[str],
        *,
        format: ModelFormat = "merged",
        precision: str | None = None,
        host: Host | None = None,
        repo: str | None = None,
        weights: Weights = "merged",
        private: bool = True,
        predictor: Any = None,
        report: Any = None,
        data_license: str | None = None,
        on_progress: Callable[[str], object] | None = None,
    ) -> ExportedModel:
        """Write the model into a folder for another server, with a card and the lines that serve it.

        Args:
            folder: A new or empty one; it appears whole or not at all.
            format: `peft`, `merged`, `gguf`, `ollama`, `hub`, or `head` for a linear head.
            precision: The weights' numbers: f32, f16 or bf16, and q8_0 for gguf; without it f16, and bf16 for merged
                weights of a family for which f16 is too narrow.
            host: Where the model is; where it was made without it.
            repo: For `hub`: the repository, `owner/name`; the token is HF_TOKEN's or that of `hf auth login`.
            weights: For `hub`: what is pushed.
            private: For `hub`: only you see a repository that is made anew.
            predictor: A predictor, or its saved file: prompt and calibration go into the card, the file beside it.
            report: A report of `compare`, or its JSON file: its figures go into the card.
            data_license: Of the training data, for the card.
            on_progress: Is told what happens, in a few words.

        Raises:
            UsageError: An argument is wrong, the host gives no models away, or this model has no such form.
            HostError: The host does not know the model, refused, or could not convert it.
            FileError: The folder cannot be written, for want of space for one.
        """
        return export_model(
            self.to_dict(),
            folder,
            host=host or self.host,
            format=format,
            precision=precision,
            repo=repo,
            weights=weights,
            private=private,
            predictor=predictor,
            report=report,
            data_license=data_license,
            on_progress=on_progress,
        )

    def wait_until_ready(self, *, host: Host | None = None, timeout_seconds: float = READY_SECONDS) -> bool:
        """Wait until the host knows the model: after a job's success it can answer 404 for minutes.

        Returns:
            False if the time ran out; the model may still come.

        Raises:
            HostError: The host refused for another reason.
        """
        host = host or self.host
        left, pause = timeout_seconds, 1.0
        with told_if_slow(f"waiting for {host.name} to serve {self.id}", logger.warning):
            while True:
                try:
                    with host.talking(f"ask for the model {self.id}"):
                        host.api().model(self.id)
                    return True
                except HostError as error:
                    if error.status != 404 and not error.retryable:
                        raise
                    why = "does not know" if error.status == 404 else "cannot be asked for"
                if left < pause:
                    break
                CLOCK.sleep(pause)
                left -= pause
                pause = min(pause * 2, 30.0)
        logger.warning("%s %s %s: it was deleted there, or does not answer yet", host.name, why, self.id)
        return False


WARN_DAYS = 60


def shutdown_date(model: str, host_name: str, catalog: Catalog) -> date | None:
    """The catalog's date; a date holds only on the host that it was read for."""
    facts = catalog.model(model)
    return facts.shutdown_date if facts is not None and facts.host == host_name else None


def training_ends(model: str, host_name: str, catalog: Catalog) -> date | None:
    """The day from which on a host makes no new job on a model, by the catalog; None where it names none."""
    facts = catalog.model(model)
    return facts.training_ends if facts is not None and facts.host == host_name else None


def ask_shutdown_date(model: str, host: Host) -> date | None:
    """The host's own date of a model, which wins over the catalog's; None if it names none or does not know the model.

    Raises:
        HostError: The host refused for another reason, or did not answer.
    """
    try:
        with host.talking(f"ask for the model {model}"):
            answer = host.api().model(model)
    except HostError as error:
        if error.status in {404, 405}:
            return None
        raise
    return _told_date(answer)


def _told_date(model: HostModel) -> date | None:
    try:
        return date.fromisoformat(model.shutdown_date) if model.shutdown_date else None
    except ValueError:
        return None


def model_warnings(model: str, host: Host, *, catalog: Catalog, today: date) -> list[str]:
    """What to know before using a model, with the host asked for its date, which wins over the catalog's.

    Args:
        model: A base model, or a tuned one.
        host: Where it answers.
        catalog: Dates for when the host names none.
        today: The day.

    Raises:
        HostError: The host refused, or did not answer.
    """
    name = catalog_name(host, catalog)
    told = ask_shutdown_date(model, host) if host.kind.lists_models else None
    ends = told or shutdown_date(model, name, catalog)
    return lifetime_warnings(model, name, ends=ends, catalog=catalog, today=today)


def lifetime_warnings(model: str, host_name: str, *, ends: date | None, catalog: Catalog, today: date) -> list[str]:
    """What to know before training or using a model, in full sentences; empty while there is time."""
    notes = []
    if ends is not None:
        days = (ends - today).days
        if days < 0:
            notes.append(f"{model} was shut down on {ends} on {host_name}; it does not answer any more")
        elif days <= WARN_DAYS:
            notes.append(
                f"{model} and what is tuned from it answer on {host_name} for {days} more days, until {ends};"
                " the same file trains on Host.local() or another host"
            )
    at_host = catalog.host(host_name)
    named = model if catalog.methods(model, host_name) is not None else "models"
    last = training_ends(model, host_name, catalog) or (at_host.training_ends if at_host is not None else None)
    if last is not None:
        days = (last - today).days
        if days <= 0:
            notes.append(f"{host_name} has trained {named} for nobody since {last}; expect to be refused")
        elif days <= WARN_DAYS:
            notes.append(f"{host_name} trains {named} for {days} more days, until {last}")
    return notes


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """A model that a host offers."""

    id: str
    """The name to ask it by."""
    base: str
    """The base model's name."""
    is_tuned: bool
    """Whether a job made it."""
    created_at: int | None
    """Seconds since 1970."""
    shutdown_date: date | None
    """From this day on it does not answer; by the host, else by the catalog; None where neither knows."""
    warnings: tuple[str, ...]
    """What should be known before using it."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        day = self.shutdown_date.isoformat() if self.shutdown_date else None
        return {**self.__dict__, "shutdown_date": day, "warnings": list(self.warnings)}


def list_models(
    host: Host, *, tuned_only: bool = True, today: date, catalog: Catalog | None = None
) -> list[ListedModel]:
    """The models that a host offers, newest first.

    Args:
        host: Where.
        tuned_only: Leave base models out.
        today: The day, for warnings.
        catalog: Dates for when the host names none; the packaged ones by default.

    Raises:
        HostError: The host refused, or did not answer.
    """
    catalog = catalog or load_catalog()
    name = catalog_name(host, catalog)
    found = []
    with host.talking("list the models"):
        for value in host.api().models():
            named = parse_model_id(value.id)
            is_tuned = named.is_tuned or value.base is not None
            if tuned_only and not is_tuned:
                continue
            ends = _told_date(value) or shutdown_date(value.id, name, catalog)
            found.append(
                ListedModel(
                    id=value.id,
                    base=value.base or named.base,
                    is_tuned=is_tuned,
                    created_at=value.created_at,
                    shutdown_date=ends,
                    warnings=tuple(lifetime_warnings(value.id, name, ends=ends, catalog=catalog, today=today)),
                )
            )
    return sorted(found, key=lambda one: -(one.created_at or 0))
