"""A planned job: validated, counted and priced before anything is uploaded; and the one way to start it.

In: checked files, a base model, a method, a host. Out: a `Plan` whose `start` makes at most one paid job, however often
it is called and whatever dies when. Its options (suffix, seed, metadata, Weights & Biases) are checked before anything
is sent. The epochs are resolved here and sent as a number, as they multiply the bill; the other hyperparameters are
the host's unless given.
Not covered: following the job (job.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

from dspy_finetune._optional import require
from dspy_finetune.catalog import Catalog, HostFacts, load_catalog, parse_model_id, strip_model_id
from dspy_finetune.errors import BudgetError, DataError, EmptyDatasetError, UsageError
from dspy_finetune.export.checks.report import CheckReport
from dspy_finetune.export.cost import default_epochs, training_cost
from dspy_finetune.export.dataset import TrainingFile
from dspy_finetune.export.tokens import Tokenizer, encoding_for, load_encoding
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.embedded import tokenizer_file
from dspy_finetune.hosts.host import check_host
from dspy_finetune.hosts.protocol import TAG_CHARS, HostKind
from dspy_finetune.jobs.job import Job
from dspy_finetune.jobs.model import FinetunedModel, lifetime_warnings, model_warnings, shutdown_date
from dspy_finetune.jobs.records import CLOCK, Journal, catalog_name, journal_of
from dspy_finetune.jobs.submit import DATA_KEY, PROMPT_KEY, RESERVED_KEYS, Order, Submission, Upload
from dspy_finetune.report.blocks import Bullets, Facts, Heading, Section
from dspy_finetune.report.page import Reported
from dspy_finetune.tasks import (
    HUB_ID,
    MAX_CV_ROWS,
    RECIPES,
    Answers,
    Recipe,
    RecipeChoice,
    choose_recipe,
    max_labels,
    sweep_of,
    task_of,
)

logger = logging.getLogger(__name__)


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


Method = Literal["sft", "dpo"]
Value = int | float | bool | Recipe | Answers
Origin = Literal["given", "rule", "host default"]

NAMES: dict[Method, tuple[str, ...]] = {
    "sft": ("n_epochs", "batch_size", "learning_rate_multiplier"),
    "dpo": ("n_epochs", "batch_size", "learning_rate_multiplier", "beta"),
}
RECIPE = "recipe"
ANSWERS = "answers"
"""What the local host is told of a file's answers, by its prompt alone."""
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
    if RECIPE in given and (host is None or not host.kind.has_recipes):
        who = f"the host {host.name if host else 'given'}"
        raise UsageError(f'{who} has no hyperparameter "{RECIPE}"; jobs of the local host have it')
    recipe = given.pop(RECIPE, None)
    if recipe is not None and recipe not in RECIPES:
        raise UsageError(f"hyperparameter {RECIPE}={recipe!r}: expected {', '.join(RECIPES)}")
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise UsageError(f'method "{method}" has no hyperparameter "{unknown[0]}"; it has {", ".join(names)}')
    settled = []
    for name in names:
        if given.get(name) is not None:
            value = checked_value(name, given[name], kind)
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


def checked_value(name: str, value: Any, kind: HostKind | None = None) -> Value:
    """A hyperparameter's value, if a host of the kind takes it. Raises UsageError, which says what is accepted."""
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
    if isinstance(value, bool) or not fits_type or not math.isfinite(value) or not least <= value <= most or not value:
        raise UsageError(f'hyperparameter {name}={value!r}: expected {words}, or "auto"')
    checked: int | float = value
    return checked


START_SECONDS = 12.0
"""Until a worker has imported torch and opened its models: beside other work 18 s of a head, 21 s of an adapter."""
HEAD_FIT_SECONDS = 0.0065
"""Choosing and fitting a head, for each row that it chooses by: 1.5 s on 220 titles, 5.5 s on 880, on one core."""
ESTIMATE_MARGIN = 1.15
"""Open models' tokenizers split some texts into more tokens than OpenAI's table does: a budget must still hold."""


@dataclass(frozen=True, kw_only=True)
class TokenEstimate:
    """How the tokens of a model are counted of which no table is known."""

    tokenizer: Tokenizer
    """Counts those of a text."""
    factor: float = 1.0
    """What the count is multiplied by."""
    remark: str = ""
    """What is said of it."""


def token_estimate(host: Host, base: str, catalog: Catalog) -> TokenEstimate | None:
    """How a file's tokens are estimated; None where the model's table is known, or its price is unknown.

    On the local host by the model's own tokenizer, if it is on this machine; else by OpenAI's table, high rather than
    low where somebody is billed.
    """
    if encoding_for(base) is not None:
        return None
    if host.kind.name != "local":
        prices = catalog.prices(base, catalog_name(host, catalog))
        if prices is None or prices.training is None:
            return None
        remark = f"the tokens for {base} are estimated: OpenAI's o200k_base and {ESTIMATE_MARGIN - 1:.0%} more"
        return TokenEstimate(tokenizer=_openai_tokens, factor=ESTIMATE_MARGIN, remark=remark)
    file = tokenizer_file(base)
    if file is None:
        remark = f"the tokenizer of {base} is not on this machine yet; tokens are estimated by OpenAI's o200k_base"
        return TokenEstimate(tokenizer=_openai_tokens, remark=remark)
    library = require("tokenizers", "local", "counting the tokens of a local model")
    encode = library.Tokenizer.from_file(str(file)).encode
    return TokenEstimate(tokenizer=lambda text: len(encode(text, add_special_tokens=False).ids))


def _openai_tokens(text: str) -> int:
    return len(load_encoding("o200k_base").encode_ordinary(text))


def estimate_seconds(
    journal: Journal,
    host: Host,
    base: str,
    n_tokens: int | None,
    *,
    recipe: Recipe | None = None,
    nominal: float | None = None,
) -> float | None:
    """By the median pace of this journal's finished jobs on the same host and base model and by the same recipe.

    Args:
        journal: The jobs that ended.
        host: Where this one will run.
        base: Its base model.
        n_tokens: Tokens trained on, all epochs.
        recipe: What the local host will train; None elsewhere.
        nominal: How long it takes by the catalog's measured speeds. It holds where no such job has ended, and the
            pace of those that have is seconds for one of these, else seconds for a token.
    """
    nominals: dict[str, float | None] = {}
    paces, speeds = [], []
    for entry in journal.entries():
        if entry.event == "intent":
            described = (entry.facts.get("host") or {}).get("name")
            found = described, strip_model_id(str(entry.facts.get("base_model"))), entry.facts.get("trains")
            nominals.pop(entry.intent, None)
            if found == (host.name, base, recipe):
                nominals[entry.intent] = entry.facts.get("nominal_seconds")
        seconds, tokens = entry.facts.get("seconds"), entry.facts.get("trained_tokens")
        if entry.event == "ended" and seconds and tokens and entry.intent in nominals:
            speeds.append(tokens / seconds)
            if before := nominals[entry.intent]:
                paces.append(seconds / before)
    if nominal is not None:
        return nominal * (median(paces) if paces else 1.0)
    return n_tokens / median(speeds) if speeds and n_tokens is not None else None


def _choice(path: Path, settled: Sequence[Hyperparameter], host: Host, base: str) -> RecipeChoice | None:
    """What the local host will train; it asks the same functions.

    Raises:
        DataError: The recipe does not fit the rows, or the host takes no such row.
    """
    if not host.kind.has_recipes:
        return None
    asked: Recipe = next(
        (one for one in RECIPES for given in settled if (given.name, given.value) == (RECIPE, one)), "auto"
    )
    told: Answers = "numbers" if any(one.name == ANSWERS for one in settled) else "auto"
    try:
        return choose_recipe(task_of(path, max_labels(asked, base=base), told), asked, base=base)
    except UsageError as error:
        raise DataError(f"{path}: {error}") from error


def _told_answers(file: TrainingFile, host: Host) -> tuple[Hyperparameter, ...]:
    """Of a prompt whose answer may be a bare whole number, that it is one: the local host would take it for a name."""
    if not host.kind.has_recipes or file.prompt is None or len(file.prompt.output_fields) > 1:
        return ()
    number = file.prompt.codec(file.prompt.output_fields[0]).number
    if number is None or number.currency or number.decimals:
        return ()
    return (Hyperparameter(name=ANSWERS, value="numbers", origin="rule"),)


def _nominal_seconds(
    file: TrainingFile,
    choice: RecipeChoice | None,
    n_once: int | None,
    n_epochs: int,
    host: Host,
    base: str,
    catalog: Catalog,
    *,
    has_sweep: bool,
) -> float | None:
    """How long a job takes on this machine by the catalog's measured speeds; None where they are not known.

    With `has_sweep` learning rates are tried before, where the job is long enough for it.
    """
    facts = catalog.model(base)
    if facts is None or n_once is None or not host.is_this_machine():
        return None
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    recipe = choice.recipe if choice is not None else "lora"
    seconds = START_SECONDS
    if recipe != "head":
        if facts.train_tokens_per_second is None:
            return None
        batch_size = 4 if file.n_rows <= 2000 else 8  # the local host's rule
        has_sweep = has_sweep and choice is not None and (recipe == "lora" or choice.task.kind == "text")
        sweep = sweep_of(file.n_rows, n_epochs, batch_size) if has_sweep else None
        tried = sweep.share(file.n_rows, n_epochs, batch_size) if sweep is not None else 0.0
        seconds += n_once * n_epochs * (1 + tried) / (facts.train_tokens_per_second * n_cores / 2)
    if recipe != "lora":
        if facts.read_tokens_per_second is None:
            return None
        share = choice.task.read_share if choice is not None else 1.0
        seconds += n_once * share / (facts.read_tokens_per_second * n_cores / 2)
        seconds += min(file.n_rows, MAX_CV_ROWS) * HEAD_FIT_SECONDS
    return seconds


Source = TrainingFile | str | os.PathLike[str]
"""What an export gave, or the path of a JSONL file."""

SHOWN_ISSUES = 5


def path_of(data: Source) -> Path:
    """Where the file lies."""
    return data.path if isinstance(data, TrainingFile) else Path(data)


def _checked(data: Source, method: Method | None, role: str, **wanted: Any) -> TrainingFile:
    """The file, checked and counted; what an export checked so is not read again. Without a method the rows tell it."""
    if isinstance(data, TrainingFile):
        return data.checked_for(method=method or data.method, role=role, **wanted)
    return TrainingFile.read(data, method=method, role=role, **wanted)


def _accepted(file: TrainingFile) -> TrainingFile:
    """The file, if the host would take it."""
    if file.report.errors:
        raise _refused(file.path, file.report)
    if not file.n_rows:
        raise EmptyDatasetError(f"{file.path}: no rows to train on; export some examples")
    return file


def _upload(file: TrainingFile) -> Upload:
    return Upload(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes)


def _refused(path: Path, report: CheckReport) -> DataError:
    errors = report.errors
    shown = "\n  ".join(str(issue) for issue in errors[:SHOWN_ISSUES])
    more = f"\n  and {len(errors) - SHOWN_ISSUES} more" if len(errors) > SHOWN_ISSUES else ""
    return DataError(
        f"{path}: the host would refuse it ({len(errors)} error{'s' if len(errors) != 1 else ''};"
        f" dspy-finetune check shows all):\n  {shown}{more}"
    )


@dataclass(frozen=True, kw_only=True)
class Plan(Reported):
    """A job that has not been started."""

    train: TrainingFile
    """What is trained on."""
    validation: TrainingFile | None
    """What is measured on; None without."""
    base_model: str
    """What is asked for: a base model, or a tuned model that is trained on."""
    base: str
    """The base model, also where a tuned model is trained on."""
    method: Method
    """sft or dpo."""
    host: Host
    """Where."""
    hyperparameters: tuple[Hyperparameter, ...]
    """Each with its origin."""
    suffix: str | None
    """A part of the new model's name."""
    seed: int | None
    """The random seed; None leaves it to the host."""
    metadata: dict[str, str]
    """The user's own."""
    wandb: WandB | None
    """Weights & Biases, where the host reports to it."""
    choice: RecipeChoice | None
    """What the local host will train, by the rule that it goes by itself; None for other hosts and methods."""
    n_tokens: int | None
    """Tokens trained on, all epochs (a head reads once); None where no table for the model is known."""
    n_epochs: int
    """Epochs: passes over the training data."""
    cost_usd: float | None
    """What training costs; None where no price is known, 0 where nothing is billed."""
    eta_seconds: float | None
    """How long it will take, by finished jobs of this journal on the same host and model and by the same recipe, else
    on this machine by the model's measured speed; None where neither is known."""
    nominal_seconds: float | None = field(default=None, repr=False)
    """The same by the model's measured speed alone, which finished jobs are held against."""
    warnings: tuple[str, ...] = field(default=())
    """What should be known before money is spent."""

    @property
    def intent(self) -> str:
        """The hash of all that decides the result: data, model, method, hyperparameters, suffix, seed, host."""
        host = self.host.to_dict()
        decisive = {
            "train": self.train.sha256,
            "validation": self.validation.sha256 if self.validation else None,
            "model": self.base_model,
            "method": wire_method(self.method, self.hyperparameters),
            "suffix": self.suffix,
            "seed": self.seed,
            "host": [host["kind"], self.host.cache_namespace(), host.get("training_type")],
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:40]

    def start(
        self,
        max_usd: float | None = None,
        *,
        new: bool = False,
        allow_unknown_price: bool = False,
        journal: Journal | None = None,
    ) -> Job:
        """Upload what is not there yet, and create the job; a plan that was started before gives its job again.

        Args:
            max_usd: Refuse a plan that costs more.
            new: Make another job although this plan has one.
            allow_unknown_price: Start although the price is unknown.
            journal: Where the steps are written down; beside the embedded server's data, or in the user's data.

        Raises:
            BudgetError: It costs more than allowed, or the price is unknown; nothing was uploaded.
            AmbiguousJobError: A job may exist already; says what to check.
            TrainingClosedError: The host no longer trains for this organisation.
            HostError: The host refused, or did not answer.
        """
        self._check_budget(max_usd, allow_unknown_price)
        journal = journal or journal_of(self.host)
        # The host's own date wins over the catalog's; the plan was made without asking it.
        for note in model_warnings(self.base_model, self.host, catalog=load_catalog(), today=CLOCK.today()):
            if note not in self.warnings:
                logger.warning(note)
        facts, is_new = Submission(self._order(), journal).run(new=new)
        return Job(
            facts.id,
            self.host,
            facts=facts,
            estimated_cost_usd=self.cost_usd,
            prompt_digest=self.train.prompt_digest,
            data_sha256=self.train.sha256,
            n_tokens=self.n_tokens,
            intent=self.intent,
            journal=journal,
            is_new=is_new,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: what `dspy-finetune plan --json` prints."""
        return {
            "intent": self.intent,
            "host": self.host.to_dict(),
            "base_model": self.base_model,
            "method": self.method,
            "train": self.train.to_dict(),
            "validation": self.validation.to_dict() if self.validation else None,
            "hyperparameters": [dict(one.__dict__) for one in self.hyperparameters],
            "suffix": self.suffix,
            "seed": self.seed,
            "metadata": self.metadata,
            "wandb": dict(self.wandb.__dict__) if self.wandb else None,
            "n_rows": self.train.n_rows,
            "recipe": self.choice.recipe if self.choice else None,
            "recipe_reason": str(self.choice) if self.choice else None,
            "n_tokens": self.n_tokens,
            "n_epochs": self.n_epochs,
            "cost_usd": self.cost_usd,
            "eta_seconds": self.eta_seconds,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        cost = "price unknown" if self.cost_usd is None else f"${self.cost_usd:,.2f}"
        tokens = "tokens unknown" if self.n_tokens is None else f"{self.n_tokens:,} tokens"
        return (
            f"{self.method} of {self.base_model} on {self.host.name}: {self.train.n_rows:,} rows, {self.passes},"
            f" {tokens}, {cost}"
        )

    @property
    def passes(self) -> str:
        """How often the rows are gone through, in words."""
        if self.choice is not None and self.choice.recipe == "head":
            return "read once for a head"
        return f"{self.n_epochs} epoch{'s' if self.n_epochs != 1 else ''}"

    @property
    def settings(self) -> tuple[Hyperparameter, ...]:
        """The hyperparameters that the recipe goes by: a head has but those that were given."""
        is_head = self.choice is not None and self.choice.recipe == "head"
        return tuple(one for one in self.hyperparameters if not is_head or one.name == RECIPE)

    def section(self) -> Section:
        """The blocks of a report: what the job does and costs, and what should be known before."""
        facts = {
            "training file": str(self.train.path),
            "validation file": None if self.validation is None else str(self.validation.path),
            "rows": f"{self.train.n_rows:,}",
            "recipe": None if self.choice is None else f"{self.choice.recipe}, {self.choice.what} ({self.choice.by})",
            "hyperparameters": ", ".join(map(str, self.settings)) or None,
            "suffix": self.suffix,
            "seed": None if self.seed is None else str(self.seed),
            "tokens": None if self.n_tokens is None else f"{self.n_tokens:,}, {self.passes}",
            "cost": None if self.cost_usd is None else f"${self.cost_usd:,.2f}",
            "time": None if self.eta_seconds is None else f"about {self.eta_seconds:,.0f} s",
        }
        return Section(
            title=f"Plan of a job on {self.host.name}",
            verdict=str(self),
            blocks=(
                Facts(facts={name: value for name, value in facts.items() if value is not None}),
                *((Heading(text="Warnings"), Bullets(lines=self.warnings)) if self.warnings else ()),
            ),
        )

    def _check_budget(self, max_usd: float | None, allow_unknown_price: bool) -> None:
        if self.cost_usd is None and not allow_unknown_price:
            raise unknown_price(self.base_model, self.host, max_usd)
        if max_usd is not None and self.cost_usd is not None and self.cost_usd > max_usd:
            raise BudgetError(
                f"the plan costs ${self.cost_usd:,.2f}, more than the allowed ${max_usd:,.2f}; train on fewer rows or"
                " epochs, on a cheaper model, or allow more"
            )

    def _order(self) -> Order:
        body: dict[str, Any] = {"model": self.base_model, "method": wire_method(self.method, self.hyperparameters)}
        if self.suffix is not None:
            body["suffix"] = self.suffix
        if self.seed is not None:
            body["seed"] = self.seed
        if self.wandb is not None:
            body["integrations"] = [self.wandb.wire(needs_key=self.host.kind.wandb_key)]
        if extra := self.host.training_options():
            body["extra_body"] = extra
        metadata = {**self.metadata, DATA_KEY: self.train.sha256}
        if self.train.prompt_digest:
            metadata[PROMPT_KEY] = self.train.prompt_digest
        return Order(
            intent=self.intent,
            host=self.host,
            train=_upload(self.train),
            validation=_upload(self.validation) if self.validation else None,
            base=self.base,
            body=body,
            metadata=metadata,
            notes={
                "host": self.host.to_dict(),
                "base_model": self.base_model,
                "method": self.method,
                "train": str(self.train.path.absolute()),
                "validation": str(self.validation.path.absolute()) if self.validation else None,
                "suffix": self.suffix,
                "seed": self.seed,
                "hyperparameters": {one.name: one.value for one in self.hyperparameters},
                "data_sha256": self.train.sha256,
                "prompt_digest": self.train.prompt_digest,
                "n_tokens": self.n_tokens,
                "trains": self.choice.recipe if self.choice else None,
                "nominal_seconds": self.nominal_seconds,
                "estimated_cost_usd": self.cost_usd,
            },
        )


def plan(
    train: Source,
    *,
    validation: Source | None = None,
    base_model: str | FinetunedModel | None = None,
    method: Method | None = None,
    host: Host,
    hyperparameters: Mapping[str, Any] | None = None,
    suffix: str | None = None,
    seed: int | None = None,
    metadata: Mapping[str, str] | None = None,
    wandb: WandB | str | None = None,
    allow_unknown_model: bool = False,
    catalog: Catalog | None = None,
) -> Plan:
    """Plan a job without uploading anything: validate files, count tokens, estimate the cost, resolve hyperparameters.

    Args:
        train: What an export gave, or a JSONL file.
        validation: The same, to measure on while training.
        base_model: A base model's name, or a tuned model to train on; None takes the host's own, `host.base_model`.
        method: sft or dpo; None takes what the data was exported for, and of a bare file what its rows are.
        host: Where to train.
        hyperparameters: `n_epochs`, `batch_size`, `learning_rate_multiplier`, and `beta` for dpo; "auto" leaves one to
            the host. On the local host a job takes `recipe`, too: "auto" (looks at the rows), "head" (a linear head on
            the frozen base), "lora", or "head+lora".
        suffix: A part of the new model's name.
        seed: From 0 to 2147483647.
        metadata: Up to 12 pairs of your own.
        wandb: A project of Weights & Biases to report to.
        allow_unknown_model: Plan although the catalog, which names all models that this host trains, lacks this one.
        catalog: Limits and prices; the packaged ones by default.

    Raises:
        UsageError: An argument is wrong; says what is accepted.
        DataError: The host would refuse a file.
        FileError: A file cannot be read.
    """
    catalog = catalog or load_catalog()
    check_host(host)
    if base_model is None:
        base_model = host.base_model
    asked = _asked_model(base_model, host, catalog)
    base = base_model.base if isinstance(base_model, FinetunedModel) else strip_model_id(asked)
    named = _named_method(method)
    dialect = catalog_name(host, catalog)
    if named is not None:  # before a large file is read
        _check_method(named, base, dialect, catalog)
    host_facts = catalog.host(dialect)
    is_known = _check_known(base, dialect, catalog, allow_unknown_model)
    estimate = token_estimate(host, base, catalog)
    wanted: dict[str, Any] = {"base_model": base, "host": dialect, "catalog": catalog}
    wanted["tokenizer"] = estimate.tokenizer if estimate is not None else None
    file = _checked(train, named, "train", **wanted)
    chosen = _method_of(file, named)
    _check_method(chosen, base, dialect, catalog)
    held_out = _checked(validation, chosen, "validation", **wanted) if validation is not None else None
    file = _accepted(file if held_out is None else file.compared_with(held_out))
    held_out = _accepted(held_out) if held_out is not None else None
    if held_out is not None and held_out.sha256 == file.sha256:
        raise UsageError("train and validation are the same file; give rows that are not trained on, or none")
    settled = resolve(chosen, hyperparameters, n_rows=file.n_rows, host=host) + _told_answers(file, host)
    n_epochs = epochs_of(settled, file.n_rows)
    n_once = _billed_tokens(file, estimate)
    if held_out is not None and host.kind.bills_validation and n_once is not None:
        # Measured on once an epoch, and billed like trained tokens.
        n_once += _billed_tokens(held_out, estimate) or 0
    choice = _choice(file.path, settled, host, base)
    is_head = choice is not None and choice.recipe == "head"
    n_tokens = n_once * (1 if is_head else n_epochs) if n_once is not None else None
    has_rate = any(one.name == "learning_rate_multiplier" and one.value != "auto" for one in settled)
    has_sweep = choice is not None and chosen == "sft" and not has_rate
    nominal = _nominal_seconds(file, choice, n_once, n_epochs, host, base, catalog, has_sweep=has_sweep)
    notes = [*file.warnings, *(held_out.warnings if held_out else ())]
    if estimate is not None and estimate.remark and file.is_estimated:
        notes.append(estimate.remark)
    notes += _host_notes(host, settled, seed, metadata)
    if is_head and (unused := [one for one in settled if one.origin == "given" and one.name != RECIPE]):
        names = ", ".join(map(str, unused))
        notes.append(f"{names}: a head has none of these, and passes them over; recipe=lora trains with them")
    if any(one.name == "n_epochs" and one.value == "auto" for one in settled):
        notes.append(f'n_epochs="auto": the host chooses; cost and tokens are estimated for {n_epochs}')
    if not is_known:
        notes.append(f"{base} is not among the models that {dialect} is known to train; it may refuse the job")
    if host.is_this_machine() and parse_model_id(asked).id is None:
        notes += _unknown_here(base, catalog)
    ends = shutdown_date(base, dialect, catalog)
    notes += lifetime_warnings(asked, dialect, ends=ends, catalog=catalog, today=CLOCK.today())
    cost = training_cost(
        base_model=base,
        method=chosen,
        n_rows=file.n_rows,
        n_tokens=n_once,
        n_epochs=n_epochs,
        is_full=any(one.name == "lora" and one.value is False for one in settled),
        host=dialect,
        catalog=catalog,
    )
    if cost.unknown:
        notes.append(f"the cost cannot be told: {cost.unknown}")
    return Plan(
        train=file,
        validation=held_out,
        base_model=asked,
        base=base,
        method=chosen,
        host=host,
        hyperparameters=settled,
        suffix=check_suffix(suffix, host_facts, host),
        seed=check_seed(seed),
        metadata=check_metadata(metadata),
        wandb=WandB(project=wandb) if isinstance(wandb, str) else wandb,
        choice=choice,
        n_tokens=n_tokens,
        n_epochs=n_epochs,
        cost_usd=cost.cost_usd,
        eta_seconds=estimate_seconds(
            journal_of(host), host, base, n_tokens, recipe=choice.recipe if choice else None, nominal=nominal
        ),
        nominal_seconds=nominal,
        warnings=tuple(notes),
    )


def _billed_tokens(file: TrainingFile, estimate: TokenEstimate | None) -> int | None:
    """What one epoch is billed for; None where nobody can count it."""
    counted = file.n_billed_tokens
    if counted is None or estimate is None or not file.is_estimated:
        return counted
    return round(counted * estimate.factor)


def _host_notes(
    host: Host, settled: Sequence[Hyperparameter], seed: int | None, metadata: Mapping[str, str] | None
) -> list[str]:
    """What of a plan the host does not take, or takes otherwise than it reads."""
    notes = rate_warnings(settled)
    if seed is not None and not host.kind.has_seed:
        notes.append(f"seed={seed}: {host.name} takes no seed; two runs differ")
    if metadata and not host.kind.has_metadata:
        notes.append(f"{host.name} keeps no metadata; yours is not sent")
    return notes


def unknown_price(model: str, host: Host, max_usd: float | None) -> BudgetError:
    """The error of an unknown price, with a budget or without one."""
    unkept = "" if max_usd is None else f", so ${max_usd:,.2f} cannot be kept"
    return BudgetError(
        f"nobody knows what {model} costs to train on {host.name}{unkept}; add its price to the catalog"
        " ($DSPY_FINETUNE_CATALOG), or start all the same with allow_unknown_price=True (--allow-unknown-price)"
    )


def _asked_model(base_model: str | FinetunedModel, host: Host, catalog: Catalog) -> str:
    if isinstance(base_model, FinetunedModel):
        if base_model.host_description and Host.from_dict(base_model.host_description) != host:
            raise UsageError(
                f"{base_model.id} was trained on {base_model.host_name} and is not known to {host.name}; train on from"
                " it there, or start from its base model"
            )
        return base_model.id
    name = base_model.strip().removeprefix("openai/")
    if not name:
        raise UsageError("base_model is empty; name a model, such as gpt-4.1-mini-2025-04-14 or smollm2-135m-instruct")
    facts = catalog.model(name)
    # Jobs want the snapshot's name, not the alias.
    return facts.id if facts is not None and name in facts.aliases else name


def _named_method(method: str | None) -> Method | None:
    if method is not None and method not in get_args(Method):
        raise UsageError(f'unknown method "{method}": expected sft or dpo')
    return None if method is None else "dpo" if method == "dpo" else "sft"


def _method_of(file: TrainingFile, named: Method | None) -> Method:
    """What the file trains: as it was exported, else as was named, else as its rows tell."""
    if named is not None and named != file.method:
        made_for = file.method
        raise UsageError(f'method="{named}", but the data was exported for {made_for}; export it again, or change one')
    if file.report.method not in (None, *get_args(Method)):
        raise UsageError(f"{file.path}: its rows train by {file.report.method}: expected sft or dpo")
    return file.method


def _check_known(base: str, dialect: str, catalog: Catalog, is_allowed: bool) -> bool:
    """Whether the catalog knows the model on this host; True where it does not name all that the host trains.

    Raises:
        UsageError: It does not, and that was not allowed.
    """
    host = catalog.host(dialect)
    facts = catalog.model(base)
    is_elsewhere = host is not None and bool(host.trains) and facts is not None and facts.host != dialect
    if host is None or not (host.names_all_models or is_elsewhere) or catalog.methods(base, dialect) is not None:
        return True
    if is_allowed:
        return False
    near = catalog.nearest(base, dialect)
    words = f"did you mean {' or '.join(near)}?" if near else f"it trains {', '.join(catalog.trained(dialect))}."
    raise UsageError(
        f"{dialect} is not known to train {base}: {words} For a model newer than the catalog of {catalog.as_of}, add it"
        " to a catalog of your own ($DSPY_FINETUNE_CATALOG), or give allow_unknown_model=True"
        " (--allow-unknown-model)"
    )


def _unknown_here(base: str, catalog: Catalog) -> list[str]:
    """What is said of a base that the local host of this machine will probably not find."""
    if base in catalog.trained("local") or Path(base).expanduser().is_dir() or re.fullmatch(HUB_ID, base):
        return []
    near = catalog.nearest(base, "local", n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    names = ", ".join(catalog.trained("local"))
    return [
        f"{base} is no folder, no Hugging Face id (owner/name) and none of the packaged models ({names}): the local"
        f" host will refuse it unless it was started with a model of that name{meant}"
    ]


def _check_method(method: Method, base: str, dialect: str, catalog: Catalog) -> None:
    offered = catalog.methods(base, dialect)
    if offered is not None and method not in offered:
        able = sorted(name for name in catalog.models if method in (catalog.methods(name, dialect) or ()))
        raise UsageError(
            f"{base} cannot be trained by {method} on {dialect} (it offers: {', '.join(offered) or 'nothing'});"
            f" models that can: {', '.join(able) or 'none known'}"
        )
