"""What is known of models and hosts: methods, limits, prices, end dates. Data, not code: catalog.json beside this file.

In: the packaged catalog.json and, merged over it, the user's own file. Out: frozen facts, each with source and date.
An unknown figure is None, never 0. Not covered: asking a host what it offers today.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from dspy_finetune._files import read_json
from dspy_finetune.errors import DataError

CATALOG_VARIABLE = "DSPY_FINETUNE_CATALOG"
_PACKAGED = Path(__file__).with_name("catalog.json")


class _Facts(BaseModel):
    # Unknown keys are refused: a misspelt price in a user's file must not leave the packaged one in force unnoticed.
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prices(_Facts):
    """USD per million tokens on a fine-tuned model; None where unknown."""

    training: NonNegativeFloat | None = None
    """Per million training tokens, each epoch anew."""
    training_hour: NonNegativeFloat | None = None
    """Per hour of training, for methods that are billed so."""
    input: NonNegativeFloat | None = None
    """Prompt tokens."""
    cached_input: NonNegativeFloat | None = None
    """Prompt tokens found in the host's prompt cache."""
    output: NonNegativeFloat | None = None
    """Answer tokens."""
    batch_input: NonNegativeFloat | None = None
    """Prompt tokens in the batch interface."""
    batch_cached_input: NonNegativeFloat | None = None
    """Cached prompt tokens in the batch interface."""
    batch_output: NonNegativeFloat | None = None
    """Answer tokens in the batch interface."""


class HostPrices(Prices):
    """Prices of one model on one host, by what is trained; a figure that is not there is unknown, not the next one."""

    training_dpo: NonNegativeFloat | None = None
    """Per million training tokens of preference pairs."""
    training_full: NonNegativeFloat | None = None
    """Per million training tokens where all weights are trained."""
    training_full_dpo: NonNegativeFloat | None = None
    """The same, of preference pairs."""


class BasePrices(_Facts):
    """USD per million tokens on the untuned base model, for comparison; None where unknown."""

    input: NonNegativeFloat | None = None
    """Prompt tokens."""
    output: NonNegativeFloat | None = None
    """Answer tokens."""


class ModelFacts(_Facts):
    """What is known of one base model."""

    id: str
    """The snapshot's name, as `model` in a job."""
    host: str = "openai"
    """The host whose prices and dates these are."""
    aliases: tuple[str, ...] = ()
    """Names that mean this snapshot."""
    methods: tuple[str, ...] = ()
    """What it can be trained by: `"sft"`, `"dpo"`, `"rft"`."""
    has_vision: bool = False
    """Whether training rows may hold images."""
    encoding: str | None = None
    """Name of its tiktoken table."""
    train_context_tokens: PositiveInt | None = None
    """A training row is cut at so many tokens, from its end."""
    train_tokens_per_second: PositiveFloat | None = None
    """Measured on two processor cores, where it trains on your own machine."""
    read_tokens_per_second: PositiveFloat | None = None
    """The same where it is only read, for a linear head. A beginning that all rows share counts once."""
    context_tokens: PositiveInt | None = None
    """Prompt and answer together, on the tuned model."""
    prices: Prices = Prices()
    """Of training, and of the tuned model."""
    base_prices: BasePrices | None = None
    """Of the untuned model."""
    training_ends: date | None = None
    """No new job from this day on."""
    shutdown_date: date | None = None
    """The model, and what was tuned from it, no longer answers from this day on."""
    source: str = ""
    """Names in the catalog's table of sources."""
    as_of: date | None = None
    """When the figures were read."""
    note: str = ""
    """What the figures do not say."""


class HostFacts(_Facts):
    """What one host asks of a training file."""

    name: str
    """As in `Host.name` and `dialect=`."""
    min_rows: PositiveInt | None = None
    """A file with fewer rows is refused."""
    max_rows: PositiveInt | None = None
    """A file with more rows is refused."""
    suggested_rows: PositiveInt | None = None
    """The host's own advice for a first try."""
    max_file_bytes: PositiveInt | None = None
    """A larger upload is refused."""
    max_suffix_chars: PositiveInt | None = None
    """Longest suffix of a tuned model's name."""
    suffix_forbidden: str = ""
    """Characters that the suffix must not hold."""
    has_bom: bool = False
    """Whether files start with a byte-order mark."""
    max_images_per_row: PositiveInt | None = None
    """Images in one row."""
    max_image_rows: PositiveInt | None = None
    """Rows with images in one file."""
    max_image_bytes: PositiveInt | None = None
    """Of one image."""
    methods: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """Model -> methods where they differ from the model's own list."""
    trains: tuple[str, ...] = ()
    """Methods that it offers for models whose own list nobody recorded; empty: unknown."""
    prices: Mapping[str, HostPrices] = Field(default_factory=dict)
    """Model -> its prices here; a tuned model's tokens are billed as the base model's where both are served."""
    serving: str = ""
    """What has to happen before a tuned model answers, and how that is billed."""
    names_all_models: bool = False
    """Whether the catalog names every model that it trains; another name is then taken for a mistake."""
    is_billed: bool = True
    """False where nobody sends a bill: your own machine."""
    training_ends: date | None = None
    """No new job from this day on."""
    source: str = ""
    """Names in the catalog's table of sources."""
    as_of: date | None = None
    """When the figures were read."""
    note: str = ""
    """What the figures do not say."""


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """All models and hosts that are known.

    >>> facts = load_catalog().model("ft:gpt-4.1-mini-2025-04-14:acme:titles:Ajo5kvNY")
    >>> facts.id, facts.prices.training, facts.train_context_tokens
    ('gpt-4.1-mini-2025-04-14', 5.0, 65536)
    """

    models: Mapping[str, ModelFacts]
    """Snapshot name -> facts."""
    hosts: Mapping[str, HostFacts]
    """Host name -> facts."""
    sources: Mapping[str, Mapping[str, str]]
    """Source name -> address and what was read there."""
    as_of: date
    """When the packaged figures were last read."""

    def model(self, model: str) -> ModelFacts | None:
        """The facts of a base model, by any of its names or by the id of a model tuned from it; None when unknown."""
        base = strip_model_id(model)
        if base in self.models:
            return self.models[base]
        return next((facts for facts in self.models.values() if base in facts.aliases), None)

    def host(self, name: str) -> HostFacts | None:
        """The facts of a host; None when unknown."""
        return self.hosts.get(name)

    def methods(self, model: str, host: str = "openai") -> tuple[str, ...] | None:
        """What a host can train a model by; None when nobody recorded it."""
        facts = self.model(model)
        at_host = self.hosts.get(host)
        name = facts.id if facts is not None else strip_model_id(model)
        if at_host is not None and name in at_host.methods:
            return at_host.methods[name]
        if facts is not None and facts.host == host:
            return facts.methods
        return (at_host.trains or None) if at_host is not None and facts is None else None

    def prices(self, model: str, host: str) -> Prices | None:
        """A model's prices on a host; None when nobody recorded them."""
        facts, at_host = self.model(model), self.hosts.get(host)
        name = facts.id if facts is not None else strip_model_id(model)
        if at_host is not None and name in at_host.prices:
            return at_host.prices[name]
        return facts.prices if facts is not None and facts.host == host else None

    def trained(self, host: str) -> tuple[str, ...]:
        """The models that a host is known to train, by name.

        >>> "gpt-oss-20b" in load_catalog().trained("azure")
        True
        """
        at_host = self.hosts.get(host)
        own = [name for name, facts in self.models.items() if facts.host == host and facts.methods]
        return tuple(
            dict.fromkeys([*own, *(name for name, able in (at_host.methods if at_host else {}).items() if able)])
        )

    def nearest(self, model: str, host: str, *, n: int = 3) -> tuple[str, ...]:
        """The names that a host trains and that are most like this one; the aliases' models among them.

        >>> load_catalog().nearest("gpt-4.1-mimi", "openai", n=1)
        ('gpt-4.1-mini-2025-04-14',)
        """
        names = {name.lower(): name for name in self.trained(host)}
        names |= {
            alias.lower(): name for name in names.values() if name in self.models for alias in self.models[name].aliases
        }
        found = difflib.get_close_matches(strip_model_id(model).lower(), names, n=2 * n, cutoff=0.4)
        return tuple(dict.fromkeys(names[one] for one in found))[:n]


@dataclass(frozen=True, kw_only=True)
class ModelId:
    """A model's name taken apart.

    `ft:{base}:{organisation}:{suffix}:{id}[:ckpt-step-{N}]` on OpenAI and the hosts that follow it (the suffix may be
    empty), `{base}.ft-{hex}` on Azure, `{base}-LoRa:{suffix}-{id}` on Nebius; anything else is a base model.
    """

    base: str
    """The base model's name."""
    organisation: str | None = None
    """Whose model it is."""
    suffix: str | None = None
    """As given to the job; None when the name has none, or an empty one."""
    id: str | None = None
    """The host's own part."""
    step: int | None = None
    """The step of a checkpoint; None for the final model."""

    @property
    def is_tuned(self) -> bool:
        """Whether it names a fine-tuned model."""
        return self.id is not None or self.organisation is not None


_NEBIUS = re.compile(r"(?P<base>.+)-LoRa:(?P<suffix>.+)-(?P<id>[A-Za-z0-9]+)")
_AZURE = re.compile(r"(?P<base>.+?)\.ft-(?P<id>[0-9a-fA-F]+)(?P<rest>[-:].*)?")
_STEP = re.compile(r"ckpt-step-(\d+)")


def parse_model_id(model: str) -> ModelId:
    """Take a model's name apart; a prefix such as `openai/` in front of `ft:` or of a known form is dropped.

    >>> parse_model_id("openai/ft:gpt-4.1-mini-2025-04-14:acme::Ajo5kvNY:ckpt-step-88")
    ModelId(base='gpt-4.1-mini-2025-04-14', organisation='acme', suffix=None, id='Ajo5kvNY', step=88)
    """
    name = _without_prefix(model.strip())
    if name.startswith("ft:"):
        # A base on the local host may be a folder or a Hugging Face id, with slashes, and on Windows with a colon: the
        # last fields are counted from the end.
        fields = name[3:].split(":")
        step = None
        if len(fields) > 1 and (found := _STEP.fullmatch(fields[-1])):
            step = int(found.group(1))
            fields = fields[:-1]
        if len(fields) < 4:
            padded: list[str | None] = [*fields, None, None, None]
            return ModelId(base=fields[0], organisation=padded[1], suffix=padded[2], id=padded[3], step=step)
        base, (organisation, suffix, own) = ":".join(fields[:-3]), fields[-3:]
        return ModelId(base=base, organisation=organisation or None, suffix=suffix or None, id=own or None, step=step)
    if found := _AZURE.fullmatch(name):
        return ModelId(base=found.group("base"), id=found.group("id"))
    if found := _NEBIUS.fullmatch(name):
        return ModelId(base=found.group("base"), suffix=found.group("suffix"), id=found.group("id"))
    return ModelId(base=name)


def strip_model_id(model: str) -> str:
    """The base model's name of any model name.

    >>> strip_model_id("ft:gpt-4o-mini-2024-07-18:personal::Ajo5kvNY")
    'gpt-4o-mini-2024-07-18'
    """
    return parse_model_id(model).base


def _without_prefix(name: str) -> str:
    # "openai/" and "azure/" are routes of DSPy; any other first part may be the owner of a Hugging Face model.
    for route in ("openai/", "azure/"):
        if name.startswith(route):
            return name[len(route) :]
    before, slash, after = name.partition("/")
    return after if slash and after.startswith("ft:") and ":" not in before else name


def load_catalog(path: str | os.PathLike[str] | None = None) -> Catalog:
    """The packaged catalog with the user's file merged over it, field by field.

    Args:
        path: A JSON file of the same form, holding only what is to differ: `{"models": {"my-model": {"prices":
            {"training": 2.5}}}}`. None takes the file named by the environment variable DSPY_FINETUNE_CATALOG, if any.

    Raises:
        FileError: The user's file cannot be read.
        DataError: The user's file is not JSON, or holds something the catalog does not know.
    """
    user = os.fspath(path) if path is not None else os.environ.get(CATALOG_VARIABLE) or None
    if user is None:
        return _packaged()
    remedy = 'it must be an object with "models" or "hosts", as the packaged catalog.json is'
    changed = _merge(_packaged_values(), read_json(user, "a catalog", remedy))
    return _build(changed, where=user)


@functools.lru_cache(maxsize=1)
def _packaged() -> Catalog:
    return _build(_packaged_values(), where=str(_PACKAGED))


def _packaged_values() -> dict[str, Any]:
    return read_json(_PACKAGED, "a catalog", "install the package again")


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _build(values: Mapping[str, Any], *, where: str) -> Catalog:
    try:
        return Catalog(
            models={name: ModelFacts(**{**facts, "id": name}) for name, facts in values["models"].items()},
            hosts={name: HostFacts(**{**facts, "name": name}) for name, facts in values["hosts"].items()},
            sources=values["sources"],
            as_of=date.fromisoformat(values["as_of"]),
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where}: {error.title}.{place}: {first['msg']}; correct the file") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{where}: not in the catalog's form ({error}); see the packaged catalog.json") from error
