"""Who can train a file, by what method, on which model, at what price: `advise_host`; and the hosts as one table.

In: a training file, and the catalog's dated figures. Out: an offer for each host, ready to copy, with the reason where
one cannot. Nothing is sent and no key is needed. Not covered: what a host offers today, which only the host knows.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, get_args

from dspy_finetune.catalog import Catalog, HostFacts, Prices, load_catalog
from dspy_finetune.errors import DataError, FinetuneError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.host import KINDS, NAMED_HOSTS
from dspy_finetune.hosts.protocol import KindName
from dspy_finetune.jobs.model import training_ends
from dspy_finetune.jobs.plan import Method, Source, path_of, plan
from dspy_finetune.jobs.records import CLOCK
from dspy_finetune.report.blocks import Section, Table
from dspy_finetune.report.page import Reported

_AZURE = "https://RESOURCE.openai.azure.com"


@dataclass(frozen=True, kw_only=True)
class HostOffer:
    """What one host could do with a file."""

    host: str
    """As in `--host`."""
    base_model: str
    """What would be trained."""
    method: str
    """sft or dpo."""
    reason: str
    """Why the host cannot train the file, in one line; empty where it can."""
    price_usd: float | None
    """Per million trained tokens; None where unknown, 0 where nothing is billed."""
    n_tokens: int | None
    """Trained, all epochs; estimated where the model's tokenizer is not at hand."""
    cost_usd: float | None
    """Of the training; None where unknown."""
    eta_seconds: float | None
    """How long it takes; None where nothing is known to go by."""
    recipe: str | None
    """What the local host will train for these rows: head, lora or head+lora; None elsewhere."""
    ends: date | None
    """No new job from this day on."""
    gives_weights: bool
    """The adapter, or the model, can be downloaded."""
    serving: str
    """What has to happen before the model answers."""
    warnings: tuple[str, ...]
    """What should be known before money is spent."""
    command: str
    """Ready to copy; empty where the host cannot."""
    as_of: date | None
    """When the figures were read."""

    @property
    def is_possible(self) -> bool:
        """Whether the host would take the file."""
        return not self.reason

    @property
    def how(self) -> str:
        """The method, and the recipe where the host has some."""
        return self.method if self.recipe is None else f"{self.method} ({self.recipe})"

    @property
    def time(self) -> str:
        """How long it takes, to be added to a line; empty where unknown."""
        return "" if self.eta_seconds is None else f", about {self.eta_seconds:,.0f} s"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return _plain(self.__dict__)


@dataclass(frozen=True, kw_only=True)
class HostAdvice(Reported):
    """Every host's offer for a file: those that can first, the cheapest first of those whose price is known."""

    path: str
    """The file."""
    offers: tuple[HostOffer, ...]
    """One for each host."""

    @property
    def possible(self) -> tuple[HostOffer, ...]:
        """The hosts that would take it."""
        return tuple(one for one in self.offers if one.is_possible)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {"path": self.path, "offers": [one.to_dict() for one in self.offers]}

    def __str__(self) -> str:
        lines = [self._head()]
        for one in self.offers:
            lines.append(
                f"  {one.host}: {one.reason or f'{one.how} of {one.base_model}, {cost_text(one.cost_usd)}{one.time}'}"
            )
            if one.command:
                lines.append(f"    {one.command}")
        return "\n".join(lines)

    def section(self) -> Section:
        """The blocks of a report: a line per host, with its price and its command."""
        rows = tuple(
            (
                one.host,
                one.base_model,
                cost_text(one.cost_usd) + one.time if one.is_possible else "",
                "" if one.ends is None else one.ends.isoformat(),
                one.reason or "; ".join(one.warnings),
                one.command,
            )
            for one in self.offers
        )
        head = ("host", "base model", "training costs", "no new job from", "remarks", "command")
        table = Table(head=head, rows=rows, label="Hosts, the cheapest first", holds_text=True)
        return Section(title=f"Hosts for {self.path}", verdict=self._head(), blocks=(table,))

    def _head(self) -> str:
        return f"{self.path}: {len(self.possible)} of {len(self.offers)} hosts can train it"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-safe: days as texts, tuples as lists."""
    return {
        name: value.isoformat() if isinstance(value, date) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def advise_host(
    training_file: Source,
    *,
    method: Method | None = None,
    base_model: str | None = None,
    hosts: Iterable[str] | None = None,
    hyperparameters: dict[str, Any] | None = None,
    catalog: Catalog | None = None,
) -> HostAdvice:
    """Who can train this file, on what, at what price: every host's limits, methods and formats held to it.

    Args:
        training_file: What an export gave, or a JSONL file.
        method: sft or dpo; without it as the file was exported, or as its rows are.
        base_model: One model for all hosts; without it each host's cheapest, else its usual one.
        hosts: Only these, by name.
        hyperparameters: Those that every host has: `n_epochs`, `batch_size`, and `beta` for dpo.
        catalog: Prices, limits and end dates; the packaged ones by default.

    Raises:
        UsageError: There is no such host, or an argument is wrong.
        FileError: The file cannot be read.
    """
    catalog = catalog or load_catalog()
    names = tuple(hosts) if hosts is not None else NAMED_HOSTS
    for name in names:
        if name not in NAMED_HOSTS:
            raise UsageError(f'unknown host "{name}": expected {", ".join(NAMED_HOSTS)}')
    path = path_of(training_file)
    if not path.is_file():
        plan(training_file, base_model="-", host=Host.local())  # says what is wrong with the path
    offers = [_offer(training_file, name, method, base_model, hyperparameters, catalog) for name in names]
    offers.sort(key=lambda one: (not one.is_possible, one.cost_usd is None, one.cost_usd or 0.0))
    return HostAdvice(path=str(path), offers=tuple(offers))


def _offer(
    file: Source,
    name: str,
    method: Method | None,
    base_model: str | None,
    hyperparameters: dict[str, Any] | None,
    catalog: Catalog,
) -> HostOffer:
    kind = _kind(name)
    host = Host.azure(_AZURE) if name == "azure" else Host(kind)
    facts = catalog.hosts[name]
    model = base_model or _cheapest(name, method or "sft", catalog) or host.base_model
    reason, made = "", None
    try:
        made = plan(file, base_model=model, method=method, host=host, hyperparameters=hyperparameters, catalog=catalog)
        if facts.training_ends is not None and facts.training_ends <= CLOCK.today():
            reason = f"it has trained for nobody since {facts.training_ends}"
    except DataError as error:
        # The first of the issues, without the heading that names the file again.
        lines = [line.strip() for line in str(error).splitlines()]
        reason = lines[1] if len(lines) > 1 else lines[0]
    except FinetuneError as error:
        reason = str(error).splitlines()[0]
    used = made.method if made is not None else (method or "sft")
    prices = catalog.prices(model, name)
    return HostOffer(
        host=name,
        base_model=model,
        method=used,
        reason=reason,
        price_usd=training_price(prices, used) if facts.is_billed else 0.0,
        n_tokens=made.n_tokens if made is not None else None,
        cost_usd=made.cost_usd if made is not None else None,
        eta_seconds=made.eta_seconds if made is not None else None,
        recipe=made.choice.recipe if made is not None and made.choice is not None else None,
        ends=_ends(model, facts, catalog),
        gives_weights=KINDS[kind].gives_weights,
        serving=facts.serving,
        warnings=made.warnings if made is not None else (),
        command="" if reason or made is None else _command(path_of(file), name, model, used, made.cost_usd),
        as_of=facts.as_of,
    )


def _cheapest(name: str, method: str, catalog: Catalog) -> str | None:
    """The host's model whose training by this method costs least, among those that it still trains."""
    today = CLOCK.today()
    found = []
    for model in catalog.trained(name):
        last = training_ends(model, name, catalog)
        price = training_price(catalog.prices(model, name), method)
        if price is not None and method in (catalog.methods(model, name) or ()) and (last is None or last > today):
            found.append((price, model != KINDS[_kind(name)].base_model, model))
    return min(found)[2] if found else None


def _kind(name: str) -> KindName:
    return next(one for one in get_args(KindName) if one == name)


def _command(path: Any, name: str, model: str, method: str, cost_usd: float | None) -> str:
    host = f"azure={_AZURE}" if name == "azure" else name
    words = ["dspy-finetune", "train", str(path), "--host", host, "--model", model, "--method", method]
    if cost_usd is None:
        words.append("--allow-unknown-price")
    elif cost_usd:
        words += ["--max-usd", f"{cost_usd * 1.2 + 0.005:.2f}"]
    return shlex.join(words)


def _ends(model: str, facts: HostFacts, catalog: Catalog) -> date | None:
    days = [day for day in (training_ends(model, facts.name, catalog), facts.training_ends) if day is not None]
    return min(days, default=None)


def training_price(prices: Prices | None, method: str) -> float | None:
    """USD per million tokens of an adapter, or of the one kind of training that the host bills."""
    if prices is None:
        return None
    own = getattr(prices, "training_dpo", prices.training)
    return own if method == "dpo" else prices.training


def cost_text(cost_usd: float | None) -> str:
    """What a training costs, in words."""
    if cost_usd is None:
        return "price: ask the host"
    return "nothing is billed" if cost_usd == 0 else f"${cost_usd:,.2f}" if cost_usd >= 0.01 else f"${cost_usd:.4f}"


@dataclass(frozen=True, kw_only=True)
class HostRow:
    """What the catalog knows of one host."""

    host: str
    """As in `--host`."""
    methods: tuple[str, ...]
    """Methods that at least one of its models is trained by."""
    base_models: tuple[str, ...]
    """Models that it is known to train, those past their end left out."""
    training_usd: tuple[float, float] | None
    """Least and most per million trained tokens; None where no price is known."""
    inference_usd: tuple[float, float] | None
    """Of the cheapest model: per million tokens in and out of a tuned model; None where it is billed by the hour, or
    unknown."""
    gives_weights: bool
    """The adapter, or the model, can be downloaded."""
    ends: date | None
    """No new job from this day on."""
    serving: str
    """What has to happen before a tuned model answers."""
    source: str
    """Names in the catalog's table of sources."""
    as_of: date | None
    """When the figures were read."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return _plain(self.__dict__)


def host_rows() -> list[HostRow]:
    """What is known of each host: methods, models, prices, end dates, with sources and days."""
    catalog = load_catalog()
    return [_row(name, catalog) for name in NAMED_HOSTS]


def _row(name: str, catalog: Catalog) -> HostRow:
    facts, today = catalog.hosts[name], CLOCK.today()
    models, methods, training, inference = [], dict[str, None](), [], []
    for model in catalog.trained(name):
        last = training_ends(model, name, catalog)
        if last is not None and last <= today:
            continue
        models.append(model)
        methods.update(dict.fromkeys(catalog.methods(model, name) or ()))
        prices = catalog.prices(model, name) if facts.is_billed else Prices(training=0.0, input=0.0, output=0.0)
        if prices is not None and prices.training is not None:
            training.append(prices.training)
        if prices is not None and prices.input is not None and prices.output is not None:
            inference.append((prices.input, prices.output))
    return HostRow(
        host=name,
        methods=tuple(sorted(methods, reverse=True)),
        base_models=tuple(models),
        training_usd=(min(training), max(training)) if training else None,
        inference_usd=min(inference) if inference else None,
        gives_weights=KINDS[_kind(name)].gives_weights,
        ends=facts.training_ends,
        serving=facts.serving,
        source=facts.source,
        as_of=facts.as_of,
    )
