"""What training and using a tuned model will cost.

In: counts of tokens, or a TrainingFile, and a model. Out: USD with the figures it is made of; None, with the reason,
where a price or a count is unknown. Prices are those of catalog.json or of the user's own file.
Not covered: what was billed in the end; the job says that.

The formula (OpenAI guide): price per million x tokens of the file, each example cut at the training context, x epochs.
Validation tokens are not billed. A DPO row counts its prompt and both outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from dspy_finetune.catalog import Catalog, HostPrices, ModelFacts, Prices, load_catalog, parse_model_id, strip_model_id
from dspy_finetune.errors import RowError, UsageError
from dspy_finetune.export.dataset import TrainingFile
from dspy_finetune.export.formats import from_any
from dspy_finetune.export.tokens import TokenCounter, Tokenizer

if TYPE_CHECKING:
    import dspy

    from dspy_finetune.prompts.format import AnyPrompt

_MILLION = 1_000_000

# OpenAI cookbook, Chat_finetuning_data_prep: the rule by which the host itself picks the epochs ("auto").
_TARGET_EPOCHS, _MIN_TARGET_ROWS, _MAX_TARGET_ROWS, _MIN_EPOCHS, _MAX_EPOCHS = 3, 100, 25_000, 1, 25


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """What one training job will cost, and why."""

    cost_usd: float | None
    """None when it cannot be known; `unknown` says why."""
    unknown: str | None
    """What is missing; None when the cost is known."""
    base_model: str
    """The model that is trained."""
    method: Literal["sft", "dpo", "rft"]
    """How it is trained."""
    n_tokens: int | None
    """Billed tokens of one epoch: each example cut at the training context."""
    n_epochs: int
    """Passes over the file."""
    is_default_epochs: bool
    """Whether the number of epochs is the host's own rule."""
    price_usd: float | None
    """Per million tokens; per hour for reinforcement."""
    as_of: date | None
    """When the price was read."""


@dataclass(frozen=True, kw_only=True)
class InferenceCost:
    """What a number of answers will cost, and why."""

    cost_usd: float | None
    """None when it cannot be known; `unknown` says why."""
    unknown: str | None
    """What is missing; None when the cost is known."""
    model: str
    """The model that answers."""
    n_requests: int
    """Calls of the model."""
    n_input_tokens: int | None
    """Of all prompts."""
    n_cached_tokens: int
    """Those of them that are expected from the host's prompt cache."""
    n_output_tokens: int | None
    """Of all answers."""
    is_batch: bool
    """Whether the batch interface's prices were used."""
    price_usd: Mapping[str, float | None] = field(default_factory=dict)
    """Per million tokens: input, cached_input, output."""


def default_epochs(n_rows: int) -> int:
    """The number of epochs that OpenAI picks for a file, by its rows.

    >>> [default_epochs(n) for n in (10, 30, 34, 1000, 10_000, 30_000)]
    [10, 3, 3, 3, 2, 1]

    Raises:
        UsageError: There are no rows.
    """
    if n_rows < 1:
        raise UsageError(f"n_rows={n_rows}: an epoch needs at least one row")
    if n_rows * _TARGET_EPOCHS < _MIN_TARGET_ROWS:
        return min(_MAX_EPOCHS, _MIN_TARGET_ROWS // n_rows)
    if n_rows * _TARGET_EPOCHS > _MAX_TARGET_ROWS:
        return max(_MIN_EPOCHS, _MAX_TARGET_ROWS // n_rows)
    return _TARGET_EPOCHS


def training_cost(
    file: TrainingFile | None = None,
    *,
    base_model: str | None = None,
    method: Literal["sft", "dpo", "rft"] | None = None,
    n_rows: int | None = None,
    n_tokens: int | None = None,
    n_epochs: int | None = None,
    n_hours: float | None = None,
    is_full: bool = False,
    host: str = "openai",
    catalog: Catalog | None = None,
) -> TrainingCost:
    """The cost of training on a file, or on a file known by its figures.

    Args:
        file: An exported file: brings its rows, billed tokens, method and base model.
        base_model: The model, or the tuned model to go on from (billed like its base).
        method: `"sft"` and `"dpo"` are billed by tokens, `"rft"` by the hour.
        n_rows: Without a file: rows of the file, for the number of epochs.
        n_tokens: Without a file: billed tokens of one epoch.
        n_epochs: None takes the host's own rule.
        n_hours: Hours of reinforcement training, where the method is billed so.
        is_full: All weights are trained, and not an adapter, where the host bills the two apart.
        host: Whose bill it is; on your own machine nothing is billed.
        catalog: Prices; None loads the packaged ones and the user's over them.

    Raises:
        UsageError: Neither a file nor a base model and the number of rows were given, or an amount is below 0.
    """
    if file is not None:
        base_model = base_model or file.manifest.base_model
        method = method or file.method
        n_rows = file.n_rows if n_rows is None else n_rows
        same = base_model == file.manifest.base_model
        n_tokens = file.manifest.n_billed_tokens if n_tokens is None and same else n_tokens
    if base_model is None or n_rows is None:
        raise UsageError("give base_model and either a file or n_rows: the cost follows from them")
    if n_epochs is not None and n_epochs < 1:
        raise UsageError(f"n_epochs={n_epochs}: a training has at least one")
    _check_amounts(n_tokens=n_tokens, n_hours=n_hours)
    catalog = load_catalog() if catalog is None else catalog
    method = method or "sft"
    epochs = default_epochs(n_rows) if n_epochs is None else n_epochs
    facts = catalog.model(base_model)
    by_hour = method == "rft"
    name = "training_hour" if by_hour else _training_field(catalog.prices(base_model, host), method, is_full)
    price, unknown = _price(facts, name, base_model, host, catalog)
    amount = n_hours if by_hour else n_tokens
    if amount is None and price:
        unknown = "the hours of training are unknown" if by_hour else f"the tokens are not counted for {base_model}"
    cost: float | None = None
    if price == 0:
        cost, unknown = 0.0, None
    elif price is not None and amount is not None:
        cost = price * amount if by_hour else price * amount * epochs / _MILLION
    return TrainingCost(
        cost_usd=cost,
        unknown=unknown,
        base_model=base_model,
        method=method,
        n_tokens=n_tokens,
        n_epochs=epochs,
        is_default_epochs=n_epochs is None,
        price_usd=price,
        as_of=facts.as_of if facts is not None else None,
    )


def inference_cost(
    model: str,
    *,
    n_requests: int,
    n_input_tokens: int | None,
    n_output_tokens: int | None,
    n_cached_tokens: int = 0,
    is_batch: bool = False,
    is_tuned: bool | None = None,
    host: str = "openai",
    catalog: Catalog | None = None,
) -> InferenceCost:
    """The cost of a number of tokens in and out of a model.

    Args:
        model: A tuned model's id, or a base model.
        n_requests: Calls of the model; kept for the record.
        n_input_tokens: Of all prompts, cached ones among them; None when they could not be counted.
        n_output_tokens: Of all answers; None when they could not be counted.
        n_cached_tokens: Prompt tokens that the host finds in its cache and bills lower.
        is_batch: Use the batch interface's prices.
        is_tuned: Use the tuned model's prices; None decides by the form of the id. Give True for a model yet to be
            trained.
        host: Whose bill it is.
        catalog: Prices; None loads the packaged ones and the user's over them.

    Raises:
        UsageError: An amount is below 0, or more tokens are cached than asked.
    """
    _check_amounts(n_input_tokens=n_input_tokens, n_output_tokens=n_output_tokens, n_cached_tokens=n_cached_tokens)
    if n_input_tokens is not None and n_cached_tokens > n_input_tokens:
        raise UsageError(f"n_cached_tokens={n_cached_tokens}: more than all of the {n_input_tokens} input tokens")
    catalog = load_catalog() if catalog is None else catalog
    facts = catalog.model(model)
    tuned = parse_model_id(model).is_tuned if is_tuned is None else is_tuned
    before = "batch_" if is_batch else ""
    kind = "" if tuned else "base:"
    amounts = {"input": n_input_tokens, "cached_input": n_cached_tokens, "output": n_output_tokens}
    prices: dict[str, float | None] = {}
    unknown: str | None = None
    cost: float | None = 0.0
    if n_input_tokens is not None:
        amounts["input"] = n_input_tokens - n_cached_tokens
    for name, amount in amounts.items():
        price, why = _price(facts, f"{kind}{before}{name}", model, host, catalog)
        prices[name] = price
        if amount == 0 or price == 0:
            continue
        if price is None or amount is None:
            unknown = unknown or why or f"the tokens are not counted for {model}"
            cost = None
        elif cost is not None:
            cost += price * amount / _MILLION
    return InferenceCost(
        cost_usd=cost,
        unknown=unknown,
        model=model,
        n_requests=n_requests,
        n_input_tokens=n_input_tokens,
        n_cached_tokens=n_cached_tokens,
        n_output_tokens=n_output_tokens,
        is_batch=is_batch,
        price_usd=prices,
    )


def evaluation_cost(
    examples: Iterable[dspy.Example | Mapping[str, Any]],
    prompt: AnyPrompt | None,
    model: str,
    *,
    n_calls_per_example: int = 1,
    n_answer_tokens: int | None = None,
    is_batch: bool = False,
    is_tuned: bool | None = None,
    host: str = "openai",
    catalog: Catalog | None = None,
    tokenizer: Tokenizer | None = None,
) -> InferenceCost:
    """The cost of asking a model about each example: prompts are counted as they will be sent, answers as the right
    ones.

    Args:
        examples: With the right outputs, whose lengths stand for the answers' lengths. With `prompt=None` each is a
            row of a training file, whose last answer (of preferences the preferred one) is the right one.
        prompt: What the model is asked with.
        model: A tuned model's id, or a base model.
        n_calls_per_example: 2 when both orders of a pair are asked.
        n_answer_tokens: Tokens of one answer, for examples without right outputs; None counts the right ones.
        is_batch: Use the batch interface's prices.
        is_tuned: Use the tuned model's prices; None decides by the form of the id.
        host: Whose bill it is.
        catalog: Prices; None loads the packaged ones and the user's over them.
        tokenizer: Counts the tokens of a text, for models without a known table.

    Raises:
        DataError: An example cannot be rendered, or has no answer.
        FileError: The token table is not on this machine and cannot be downloaded.
    """
    if prompt is not None:
        from dspy_finetune.prompts.format import as_prompt  # here: it loads dspy, which ready rows do not need

        prompt = as_prompt(prompt)
    counter = TokenCounter.for_model(model, tokenizer=tokenizer)
    n_examples = n_input = n_output = 0
    for example in examples:
        n_examples += 1
        if counter is None:
            continue
        if prompt is None:
            asked, answered = _row_tokens(example, counter, n_examples, n_answer_tokens)
        else:
            asked = counter.messages(prompt.messages(example))
            answered = counter.text(prompt.completion(example)) if n_answer_tokens is None else n_answer_tokens
        n_input, n_output = n_input + asked, n_output + answered
    return inference_cost(
        model,
        n_requests=n_examples * n_calls_per_example,
        n_input_tokens=None if counter is None else n_input * n_calls_per_example,
        n_output_tokens=None if counter is None else n_output * n_calls_per_example,
        is_batch=is_batch,
        is_tuned=is_tuned,
        host=host,
        catalog=catalog,
    )


def _check_amounts(**amounts: float | None) -> None:
    for name, amount in amounts.items():
        if amount is not None and amount < 0:
            raise UsageError(f"{name}={amount}: an amount that is billed cannot be below 0")


def _row_tokens(
    row: dspy.Example | Mapping[str, Any], counter: TokenCounter, number: int, n_answer_tokens: int | None
) -> tuple[int, int]:
    """Tokens of a training row's question and of its answer. Raises RowError."""
    meant = from_any(dict(row.items()))
    given = meant.get("input", meant)
    messages = given["messages"] if isinstance(given["messages"], list) else []
    at = [
        i for i, message in enumerate(messages) if isinstance(message, Mapping) and message.get("role") == "assistant"
    ]
    if "preferred_output" in meant:
        answer = meant["preferred_output"]
    elif at:
        messages, answer = messages[: at[-1]], [messages[at[-1]]]
    else:
        answer = []
    if not answer and n_answer_tokens is None:
        raise RowError("no answer whose length could be counted", line=number, remedy="give n_answer_tokens")
    blank = {"role": "assistant", "content": ""}
    asked = counter.row({**given, "messages": messages})
    if n_answer_tokens is not None:
        return asked, n_answer_tokens
    return asked, counter.messages(answer) - counter.messages([blank] * len(answer))


def _training_field(prices: Prices | None, method: str, is_full: bool) -> str:
    """Which of a host's prices is meant; where a host has one price for all, that one."""
    if not isinstance(prices, HostPrices):
        return "training"
    return "training" + ("_full" if is_full else "") + ("_dpo" if method == "dpo" else "")


def _price(
    facts: ModelFacts | None, name: str, model: str, host: str, catalog: Catalog
) -> tuple[float | None, str | None]:
    """A price per million tokens, or None and why it is unknown. A `base:` name is one of the untuned model's."""
    at_host = catalog.host(host)
    if at_host is not None and not at_host.is_billed:
        return 0.0, None
    table, _, field_name = name.rpartition(":")
    here = catalog.prices(model, host)
    if at_host is not None and isinstance(here, HostPrices):
        price = getattr(here, field_name)
        words = f'the {field_name.replace("_", " ")} price of "{strip_model_id(model)}" on {host} is unknown'
        return price, None if price is not None else f"{words}; add it to a catalog of your own"
    if facts is None:
        return None, f'no price of "{model}" is known; add it to a catalog file of your own (see docs/export.md)'
    if facts.host != host:
        return (
            None,
            f'no price of "{facts.id}" on {host} is known (only on {facts.host}); add it to a catalog of your own',
        )
    price = getattr(facts.base_prices if table else facts.prices, field_name, None)
    if price is None:
        return (
            None,
            f'the {field_name.replace("_", " ")} price of "{facts.id}" is unknown; add it to a catalog of your own',
        )
    return float(price), None
