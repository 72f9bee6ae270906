"""The small options of a job, each checked before anything is sent: suffix, seed, metadata, Weights & Biases.

In: what the user gave. Out: the same, or a UsageError that says what is accepted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from dspy_finetune._jsonl import read_jsonl
from dspy_finetune._optional import require
from dspy_finetune.catalog import Catalog, HostFacts, strip_model_id
from dspy_finetune.errors import UsageError
from dspy_finetune.export.cost import default_epochs, training_cost
from dspy_finetune.export.tokens import TokenCounter, load_encoding
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.embedded import home, tokenizer_file
from dspy_finetune.hosts.protocol import TAG_CHARS, HostKind
from dspy_finetune.jobs.records import Journal
from dspy_finetune.jobs.submit import RESERVED_KEYS

MOST_PAIRS = 16 - len(RESERVED_KEYS)
MOST_SEED = 2_147_483_647


@dataclass(frozen=True, kw_only=True)
class WandB:
    """Where the host reports a job's figures to; its key is in the host's dashboard, or in WANDB_API_KEY."""

    project: str
    """The project's name."""
    name: str | None = None
    """The run's name; the job's id without it."""
    entity: str | None = None
    """The user or team."""
    tags: tuple[str, ...] = ()
    """Up to 50, each up to 64 characters."""

    def __post_init__(self) -> None:
        if not self.project:
            raise UsageError("wandb needs a project's name")
        if len(self.tags) > 50 or any(not 0 < len(tag) <= 64 for tag in self.tags):
            raise UsageError("wandb takes up to 50 tags of 1 to 64 characters each")

    def wire(self, *, needs_key: bool = False) -> dict[str, Any]:
        """As the create request wants it; with the key on hosts that know none.

        Raises:
            UsageError: The key is not in the environment.
        """
        named: dict[str, Any] = {"name": self.name, "entity": self.entity, "tags": list(self.tags) or None}
        if needs_key:
            key = os.environ.get("WANDB_API_KEY", "").strip()
            if not key:
                raise UsageError("this host reports to Weights & Biases by a key of each job; set WANDB_API_KEY")
            named["api_key"] = key
        given = {key: value for key, value in named.items() if value is not None}
        return {"type": "wandb", "wandb": {"project": self.project, **given}}


def check_suffix(suffix: str | None, facts: HostFacts | None, host: Host) -> str | None:
    """A suffix that the host takes; an empty one is none."""
    if not suffix:
        return None
    host_name = host.name
    most = (facts.max_suffix_chars if facts is not None else None) or 64
    if not host.kind.has_metadata:
        most -= TAG_CHARS  # the intent's digest stands behind it
    if len(suffix) > most:
        raise UsageError(f"suffix {suffix!r} has {len(suffix)} characters; {host_name} takes up to {most}")
    forbidden = (facts.suffix_forbidden if facts is not None else "") + ":"
    bad = sorted(set(suffix) & set(forbidden))
    if bad or not suffix.isprintable() or any(character.isspace() for character in suffix):
        shown = " ".join(repr(character) for character in bad) or "space or a character that cannot be printed"
        raise UsageError(f"suffix {suffix!r} holds {shown}, which {host_name} does not take; use letters, digits and -")
    return suffix


def check_seed(seed: int | None) -> int | None:
    """A seed in the API's range."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MOST_SEED):
        raise UsageError(f"seed={seed!r}: expected a whole number from 0 to {MOST_SEED}")
    return seed


def check_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The user's own pairs, with room left for this library's."""
    pairs = dict(metadata or {})
    if len(pairs) > MOST_PAIRS:
        raise UsageError(f"metadata holds {len(pairs)} pairs; up to {MOST_PAIRS} are yours")
    for key, value in pairs.items():
        if key in RESERVED_KEYS:
            raise UsageError(f'metadata key "{key}" is this library\'s own; use another')
        if not isinstance(key, str) or not isinstance(value, str) or not 0 < len(key) <= 64 or len(value) > 512:
            raise UsageError(f"metadata {key!r}: keys are texts of 1 to 64 characters, values of up to 512")
    return pairs


# ---- Hyperparameters
# The epochs are settled here and sent as a number, as they multiply the bill; the others are the host's unless given.

Method = Literal["sft", "dpo"]
Recipe = Literal["auto", "head", "lora", "head+lora"]
Value = int | float | bool | Recipe
Origin = Literal["given", "rule", "host default"]

NAMES: dict[Method, tuple[str, ...]] = {
    "sft": ("n_epochs", "batch_size", "learning_rate_multiplier"),
    "dpo": ("n_epochs", "batch_size", "learning_rate_multiplier", "beta"),
}
RECIPE = "recipe"
RECIPES: tuple[Recipe, ...] = ("auto", "head", "lora", "head+lora")
"""What a supervised job of the local host trains; "auto" looks at the rows."""
RATES = ("learning_rate_multiplier", "learning_rate")
"""A factor on the host's own rate, and the rate itself: a host takes one of the two."""
LIKELY_ABSOLUTE = 0.01
"""A factor so far below 1 is most likely a rate that was meant absolutely."""
WIRE_METHOD: dict[Method, str] = {"sft": "supervised", "dpo": "dpo"}

_RANGES: dict[str, tuple[bool, float, float, str]] = {
    # name: (whole number, least, most, in words); the API's own bounds. 0 itself is outside.
    "n_epochs": (True, 1, 50, "a whole number from 1 to 50"),
    "batch_size": (True, 1, 256, "a whole number from 1 to 256"),
    "learning_rate_multiplier": (False, 0, float("inf"), "a number above 0"),
    "learning_rate": (False, 0, 1, "a number above 0, up to 1"),
    "lora_rank": (True, 1, 1024, "a whole number from 1 to 1024"),
    "beta": (False, 0, 2, "a number above 0, up to 2"),
}


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """One setting of the training."""

    name: str
    """As the API calls it."""
    value: Value
    """What is sent; "auto" leaves the choice to the host."""
    origin: Origin
    """given: by you. rule: worked out here. host default: the host chooses."""

    def __str__(self) -> str:
        return f"{self.name}={self.value} ({self.origin})"


def resolve(
    method: Method, given: Mapping[str, Any] | None, *, n_rows: int, host: Host | None = None
) -> tuple[Hyperparameter, ...]:
    """Resolve every hyperparameter of a method. `host` says whether it has recipes; None: it has none.

    Raises:
        UsageError: An unknown name, or a value outside its range; says what is accepted.
    """
    given = dict(given or {})
    kind = host.kind if host is not None else None
    names = names_of(method, kind)
    _check_rate(given, host)
    if RECIPE in given and (method != "sft" or host is None or not host.kind.has_recipes):
        who = f'method "{method}"' if method != "sft" else f"the host {host.name if host else 'given'}"
        raise UsageError(f'{who} has no hyperparameter "{RECIPE}"; supervised jobs of the local host have it')
    recipe = given.pop(RECIPE, None)
    if recipe is not None and recipe not in RECIPES:
        raise UsageError(f"hyperparameter {RECIPE}={recipe!r}: expected {', '.join(RECIPES)}")
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise UsageError(f'method "{method}" has no hyperparameter "{unknown[0]}"; it has {", ".join(names)}')
    settled = []
    for name in names:
        if given.get(name) is not None:
            value = _checked(name, given[name], kind)
            if name == "lora" and value is False and kind is not None and not kind.has_full:
                raise UsageError(f"lora=False: {host.name if host else 'the host'} trains adapters alone")
            settled.append(Hyperparameter(name=name, value=value, origin="given"))
        elif name == "n_epochs":
            most = (kind.bounds or {}).get(name, (1, 50))[1] if kind is not None else 50
            settled.append(Hyperparameter(name=name, value=min(default_epochs(n_rows), int(most)), origin="rule"))
        elif name == "lora":
            # Said, since some hosts train all weights without it.
            settled.append(Hyperparameter(name=name, value=True, origin="rule"))
        else:
            settled.append(Hyperparameter(name=name, value="auto", origin="host default"))
    if recipe is not None:
        settled.append(Hyperparameter(name=RECIPE, value=recipe, origin="given"))
    return tuple(settled)


def epochs_of(settled: Sequence[Hyperparameter], n_rows: int) -> int:
    """The number of epochs; by the published rule where the host chooses."""
    value = next(one.value for one in settled if one.name == "n_epochs")
    return default_epochs(n_rows) if value == "auto" else int(value)


def wire_method(method: Method, settled: Sequence[Hyperparameter]) -> dict[str, Any]:
    """`method` of the create request; what is left to the host is left out."""
    name = WIRE_METHOD[method]
    sent = {one.name: one.value for one in settled if one.origin != "host default"}
    return {"type": name, name: {"hyperparameters": sent} if sent else {}}


def names_of(method: Method, kind: HostKind | None) -> tuple[str, ...]:
    """The hyperparameters that a method has on hosts of a kind; None: as on OpenAI.

    >>> names_of("sft", None)
    ('n_epochs', 'batch_size', 'learning_rate_multiplier')
    """
    if kind is None:
        return NAMES[method]
    rate = RATES[0] if kind.takes_rate == "multiplier" else RATES[1]
    names = tuple(rate if name in RATES else name for name in NAMES[method])
    return (*names, "lora", "lora_rank") if kind.has_adapters else names


def _check_rate(given: Mapping[str, Any], host: Host | None) -> None:
    """A rate by the other name is the most expensive of mistakes: 2e-5 as a factor trains nothing at all."""
    if host is None:
        return
    taken = RATES[0] if host.kind.takes_rate == "multiplier" else RATES[1]
    for name in RATES:
        if given.get(name) is None or name == taken:
            continue
        if taken == "learning_rate":
            raise UsageError(
                f"{host.name} takes an absolute learning_rate, such as 1e-5, and no {name}={given[name]}: elsewhere"
                " that is a factor on a rate that the host chooses (Nebius's examples write the one and mean the other)"
            )
        raise UsageError(
            f"{host.name} takes a learning_rate_multiplier, a factor on a rate of its own such as 2.0, and no"
            f" {name}={given[name]}"
        )


def rate_warnings(settled: Sequence[Hyperparameter]) -> list[str]:
    """What is said of a factor that looks like a rate."""
    return [
        f"{one}: a factor on the host's own rate, not the rate itself; 1.0 keeps the host's"
        for one in settled
        if one.name == RATES[0] and isinstance(one.value, float) and one.value < LIKELY_ABSOLUTE
    ]


def _checked(name: str, value: Any, kind: HostKind | None = None) -> Value:
    if name == "lora":
        if not isinstance(value, bool):
            raise UsageError(f"hyperparameter lora={value!r}: expected True (an adapter) or False (all weights)")
        return value
    if value == "auto":
        return "auto"
    is_whole, least, most, words = _RANGES[name]
    if kind is not None and kind.bounds is not None and name in kind.bounds:
        least, most = kind.bounds[name]
        words = f"a {'whole ' if is_whole else ''}number from {least:g} to {most:g} on {kind.name}"
    fits_type = isinstance(value, int) if is_whole else isinstance(value, (int, float))
    if isinstance(value, bool) or not fits_type or not (least <= value <= most) or value == 0 or value != value:
        raise UsageError(f'hyperparameter {name}={value!r}: expected {words}, or "auto"')
    if value == float("inf"):
        raise UsageError(f'hyperparameter {name}={value!r}: expected {words}, or "auto"')
    checked: int | float = value
    return checked


# ---- Cost and time


def journal_of(host: Host) -> Journal:
    """Where a host's jobs are written down: in the embedded server's own folder, or in the library's."""
    if host.root is not None and host.to_dict().get("base_url") is None:
        return Journal(host.root / "journal.jsonl")
    return Journal(home() / "journal.jsonl")


def catalog_name(host: Host, catalog: Catalog) -> str:
    """The catalog's name of a host: its own or its kind's if there is such an entry; else its own, for which no limits
    and prices are known."""
    return next((name for name in (host.name, host.kind.name) if catalog.host(name) is not None), host.name)


def billed_cost(
    base: str, method: str, trained_tokens: int | None, host: str, catalog: Catalog, *, is_full: bool = False
) -> float | None:
    """What a finished job cost: the tokens that the host counted, all epochs, times the price; None where unknown."""
    if method not in {"sft", "dpo"}:
        return None
    kind: Literal["sft", "dpo"] = "dpo" if method == "dpo" else "sft"
    cost = training_cost(
        base_model=base,
        method=kind,
        n_rows=1,
        n_tokens=trained_tokens,
        n_epochs=1,
        is_full=is_full,
        host=host,
        catalog=catalog,
    )
    return cost.cost_usd


ESTIMATE_MARGIN = 1.15
"""Open models' tokenizers split some texts into more tokens than OpenAI's table does: a budget must still hold."""


def estimated_tokens(path: Path, host: Host, base: str, catalog: Catalog) -> tuple[int | None, str]:
    """(the tokens of a file's rows where no table of the model is known, a remark on them); (None, "") without a price.

    On the local host by the model's own tokenizer, if it is on this machine; else by OpenAI's table, high rather than
    low where somebody is billed.
    """
    if host.kind.name != "local":
        prices = catalog.prices(base, catalog_name(host, catalog))
        if prices is None or prices.training is None:
            return None, ""
        table = load_encoding("o200k_base")
        counter = TokenCounter(lambda text: len(table.encode(text, disallowed_special=())))
        n_tokens = sum(counter.row(row) for _, row in read_jsonl(path))
        remark = f"the tokens for {base} are estimated: OpenAI's o200k_base and {ESTIMATE_MARGIN - 1:.0%} more"
        return round(n_tokens * ESTIMATE_MARGIN), remark
    file, remark = tokenizer_file(base), ""
    if file is not None:
        library = require("tokenizers", "local", "counting the tokens of a local model")
        encode = library.Tokenizer.from_file(str(file)).encode
        counter = TokenCounter(lambda text: len(encode(text, add_special_tokens=False).ids))
    else:
        table = load_encoding("o200k_base")
        counter = TokenCounter(lambda text: len(table.encode(text, disallowed_special=())))
        remark = f"the tokenizer of {base} is not on this machine yet; tokens are estimated by OpenAI's o200k_base"
    return sum(counter.row(row) for _, row in read_jsonl(path)), remark


def estimate_seconds(
    journal: Journal, host: Host, base: str, n_tokens: int | None, catalog: Catalog | None = None
) -> float | None:
    """By the median speed of this journal's finished jobs on the same host and base model.

    Without any, on this machine, by the catalog's measured speed and the processor's cores.
    """
    if n_tokens is None:
        return None
    intents: dict[str, tuple[str, str]] = {}
    speeds = []
    for entry in journal.entries():
        if entry.event == "intent":
            described = entry.facts.get("host") or {}
            intents[entry.intent] = (str(described.get("name")), strip_model_id(str(entry.facts.get("base_model"))))
        seconds, tokens = entry.facts.get("seconds"), entry.facts.get("trained_tokens")
        if entry.event == "ended" and seconds and tokens and intents.get(entry.intent) == (host.name, base):
            speeds.append(tokens / seconds)
    if speeds:
        return float(n_tokens / median(speeds))
    facts = catalog.model(base) if catalog is not None else None
    if facts is None or facts.train_tokens_per_second is None or not host.is_this_machine():
        return None
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return n_tokens / (facts.train_tokens_per_second * n_cores / 2)
