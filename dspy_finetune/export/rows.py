"""SFT and DPO rows from examples, and the two exports that write them.

In: examples with their right answers, preferences, or ready rows, from a list or a stream, read once. Out: a
`TrainingFile`.
Not covered: splitting and cleaning (data/), where preferences come from (preferences.py), the bytes and the checks
(writer.py).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from dspy_finetune.errors import FinetuneError, RowError, UsageError
from dspy_finetune.export.dataset import TrainingFile
from dspy_finetune.export.formats import Row
from dspy_finetune.export.preferences import Preference, as_preference, render_preference, row_error
from dspy_finetune.export.tokens import Tokenizer
from dspy_finetune.export.writer import OnError, RowCounts, write_file

if TYPE_CHECKING:
    import dspy

    from dspy_finetune.prompts import PromptFormat

Turn: TypeAlias = Callable[[Any], Mapping[str, Any]]
"""The same pair with its sides and its label exchanged."""


def export_sft(
    examples: Iterable[dspy.Example | Mapping[str, Any]],
    prompt: PromptFormat | None,
    path: str | os.PathLike[str],
    *,
    base_model: str | None = None,
    dialect: str = "openai",
    on_error: OnError = "raise",
    dedupe: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    parallel_tool_calls: bool | None = None,
    seed: int | None = None,
    tokenizer: Tokenizer | None = None,
    both_orders: bool = False,
) -> TrainingFile:
    """Write one training conversation for each example.

    Args:
        examples: A list or any iterator, read once. With `prompt=None` each is a ready row, `{"messages": [...]}` with
            all it may hold: `weight`, `tools`, tool calls, image parts.
        prompt: What renders the examples; the same object serves the tuned model.
        path: The JSONL file; its manifest goes to `<path>.manifest.json`.
        base_model: Counts tokens with this model's table and checks against its limits; an `ft:` id counts as its base.
        dialect: `"openai"`, `"azure"`, `"together"`, `"fireworks"`, `"nebius"` or `"trl"`.
        on_error: What happens to examples that cannot be rendered: `"raise"` lists them all and writes nothing,
            `"skip"` leaves them out and counts them in the manifest.
        dedupe: Leave out rows whose line equals an earlier one; costs about 90 bytes of memory a row.
        tools: Tool definitions that every row carries.
        parallel_tool_calls: Goes into every row that carries tools; OpenAI's default is true.
        seed: Of the split or the sampling behind the examples; recorded in the manifest, used for nothing.
        tokenizer: Counts the tokens of a text, for models without a known table.
        both_orders: Of a pairwise prompt: write every pair a second time with its sides and its label exchanged, so
            that no side is right more often. An explanation that speaks of A and B is not rewritten.

    Raises:
        RowsError: With `on_error="raise"`: every example that could not be rendered.
        EmptyDatasetError: Nothing is left to write.
        FileError: The file cannot be written.
        UsageError: An argument is not one of the accepted values.
    """
    check_given(examples, prompt)
    extra = tool_keys(tools, parallel_tool_calls)
    progress = RowCounts()
    turn = _turn(prompt) if both_orders else None
    rows = (
        _ready_rows(examples, extra, progress) if prompt is None else _sft_rows(examples, prompt, extra, progress, turn)
    )
    return write_file(
        rows,
        path,
        progress=progress,
        source=examples,
        method="sft",
        dialect=dialect,
        base_model=base_model,
        prompt=prompt,
        seed=seed,
        on_error=on_error,
        dedupe=dedupe,
        tokenizer=tokenizer,
    )


def _sft_rows(
    examples: Iterable[Any], prompt: PromptFormat, extra: Row, progress: RowCounts, turn: Turn | None
) -> Iterator[Row | RowError]:
    render = prompt.training_messages
    for number, example in enumerate(examples, start=1):
        progress.n_rows_in = number
        try:
            rendered = [render(example)] if turn is None else [render(example), render(turn(example))]
        except FinetuneError as error:
            yield row_error(error, number)
            continue
        for messages in rendered:
            yield {"messages": messages, **extra} if extra else {"messages": messages}


def _turn(prompt: PromptFormat | None) -> Turn:
    """What exchanges the two sides of a pair and its label. Raises UsageError where the prompt is not pairwise."""
    names = () if prompt is None else prompt.input_fields
    partner = {name: f"{name[:-2]}_b" for name in names if name.endswith("_a") and f"{name[:-2]}_b" in names}
    if prompt is None or not partner or prompt.labels is None or len(prompt.labels.texts) != 2:
        raise UsageError("both_orders: the prompt must have inputs that end in _a and _b and two labels")
    labels, field = prompt.labels, str(prompt.label_field)
    partner |= {second: first for first, second in partner.items()}
    first, second = labels.texts

    def turn(example: Any) -> Mapping[str, Any]:
        values = as_mapping(example)
        if values is None or field not in values:
            raise RowError(
                f'no label "{field}" to turn round', value=example, remedy="give labelled pairs, or both_orders=False"
            )
        other = labels.decode(second if labels.encode(values[field]) == first else first)
        return {**{partner.get(name, name): value for name, value in values.items()}, field: other}

    return turn


def _ready_rows(examples: Iterable[Any], extra: Row, progress: RowCounts) -> Iterator[Row | RowError]:
    for number, example in enumerate(examples, start=1):
        progress.n_rows_in = number
        yield _ready(example, extra, number)


def _ready(example: Any, extra: Row, number: int) -> Row | RowError:
    values = as_mapping(example)
    if values is None or not isinstance(values.get("messages"), list):
        return RowError(
            'no list "messages"',
            line=number,
            value=example,
            remedy='with prompt=None each example is {"messages": [...]}; give a prompt to render other fields',
        )
    return {**values, **extra}


def as_mapping(example: Any) -> Mapping[str, Any] | None:
    """The fields of an example or a dict; None when it is neither."""
    if isinstance(example, Mapping):
        return example
    fields = getattr(example, "toDict", None)
    return dict(example.items()) if callable(fields) else None


def check_given(examples: object, prompt: object) -> None:
    """Refuse what can be no examples or no prompt, before it is taken for many bad rows. Raises UsageError."""
    if isinstance(examples, (str, bytes, os.PathLike)):
        raise UsageError(
            f"examples: {examples!r:.80} is a path or a text; load the file with load_examples or iter_examples"
        )
    if type(examples).__module__.partition(".")[0] in ("pandas", "polars", "pyarrow"):
        raise UsageError(f"examples: a {type(examples).__name__} is a table; load it with load_examples")
    if isinstance(examples, Mapping) or not isinstance(examples, Iterable):
        raise UsageError(f"examples: a list or an iterator of examples is needed, got {type(examples).__name__}")
    if prompt is not None and not hasattr(prompt, "training_messages"):
        raise UsageError(f"prompt: a PromptFormat is needed, such as prompts.binary(), got {prompt!r:.80}")


def tool_keys(tools: Sequence[Mapping[str, Any]] | None, parallel_tool_calls: bool | None) -> Row:
    """The keys that every row carries because of its tools."""
    keys: Row = {} if tools is None else {"tools": [dict(tool) for tool in tools]}
    if parallel_tool_calls is not None:
        keys["parallel_tool_calls"] = parallel_tool_calls
    return keys


def export_dpo(
    pairs: Iterable[Preference | dspy.Example | Mapping[str, Any]],
    prompt: PromptFormat | None,
    path: str | os.PathLike[str],
    *,
    base_model: str | None = None,
    dialect: str = "openai",
    on_error: OnError = "raise",
    dedupe: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    parallel_tool_calls: bool | None = None,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    both_orders: bool = False,
) -> TrainingFile:
    """Write one line for each pair of a chosen and a rejected answer to the same prompt.

    A pair is one of:

    - a `Preference`;
    - an example with the prompt's input fields and its right outputs. The rejected answer is the other label, with all
      other outputs (an explanation) the same, so that the two differ in the choice alone; with more than two labels it
      is one of the others, drawn with `seed`;
    - the same with `rejected_<output>` for the outputs that differ, such as `rejected_explanation`;
    - an example with `chosen` and `rejected`: dicts of outputs, or the answers' texts.

    Args:
        pairs: A list or any iterator, read once. With `prompt=None` each is a ready line in OpenAI's shape.
        prompt: What renders the pairs; the same object serves the tuned model.
        path: The JSONL file; its manifest goes to `<path>.manifest.json`.
        base_model: Counts tokens with this model's table and checks against its limits; an `ft:` id counts as its base.
        dialect: `"openai"`, `"azure"`, `"together"`, `"fireworks"`, `"nebius"` or `"trl"`.
        on_error: What happens to pairs that cannot be rendered: `"raise"` lists them all and writes nothing, `"skip"`
            leaves them out and counts them in the manifest.
        dedupe: Leave out rows whose line equals an earlier one; costs about 90 bytes of memory a row.
        tools: Tool definitions that every row carries.
        parallel_tool_calls: Goes into every row that carries tools; OpenAI's default is true.
        seed: Draws the rejected label where there are several.
        tokenizer: Counts the tokens of a text, for models without a known table.
        both_orders: Of a pairwise prompt: write every pair a second time with its sides and its label exchanged, so
            that no side is right more often. An explanation that speaks of A and B is not rewritten.

    Raises:
        RowsError: With `on_error="raise"`: every pair that could not be rendered.
        EmptyDatasetError: Nothing is left to write.
        FileError: The file cannot be written.
        UsageError: An argument is not one of the accepted values.
    """
    check_given(pairs, prompt)
    progress = RowCounts()
    extra = tool_keys(tools, parallel_tool_calls)
    if prompt is None:
        rows = _ready_dpo_rows(pairs, extra, progress)
    else:
        turn = _turn(prompt) if both_orders else None
        rows = _dpo_rows(pairs, prompt, extra, progress, random.Random(seed), turn)
    return write_file(
        rows,
        path,
        progress=progress,
        source=pairs,
        method="dpo",
        dialect=dialect,
        base_model=base_model,
        prompt=prompt,
        seed=seed,
        on_error=on_error,
        dedupe=dedupe,
        tokenizer=tokenizer,
    )


def _dpo_rows(
    pairs: Iterable[Any],
    prompt: PromptFormat,
    extra: Row,
    progress: RowCounts,
    rng: random.Random,
    turn: Turn | None,
) -> Iterator[Row | RowError]:
    for number, pair in enumerate(pairs, start=1):
        progress.n_rows_in = number
        try:
            both = [pair] if turn is None else [pair, turn(pair)]
            rendered = [render_preference(as_preference(one, prompt, rng=rng), prompt) for one in both]
        except FinetuneError as error:
            yield row_error(error, number)
            continue
        for messages, chosen, rejected in rendered:
            yield {
                "input": {"messages": messages, **extra} if extra else {"messages": messages},
                "preferred_output": [{"role": "assistant", "content": chosen}],
                "non_preferred_output": [{"role": "assistant", "content": rejected}],
            }


def _ready_dpo_rows(pairs: Iterable[Any], extra: Row, progress: RowCounts) -> Iterator[Row | RowError]:
    for number, pair in enumerate(pairs, start=1):
        progress.n_rows_in = number
        try:
            yield _ready_dpo(pair, extra)
        except FinetuneError as error:
            yield row_error(error, number)


def _ready_dpo(pair: Any, extra: Row) -> Row:
    given = pair.get("input") if isinstance(pair, Mapping) else None
    if not isinstance(given, Mapping) or "preferred_output" not in pair or "non_preferred_output" not in pair:
        raise RowError(
            'no "input", "preferred_output" and "non_preferred_output"',
            value=pair,
            remedy="with prompt=None each pair is a ready line in OpenAI's shape; give a prompt to render other fields",
        )
    return {**pair, "input": {**given, **extra}}
