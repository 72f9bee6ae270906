"""The line formats of the hosts: OpenAI, Azure, Together, Fireworks, TRL.

In: rows in OpenAI's shape (rows.py), or lines of any dialect. Out: lines of a dialect, or rows in OpenAI's shape.
Not covered: files (convert.py, writer.py) and limits such as the least number of rows (catalog.json, read by
checks.py).

| dialect | SFT line | DPO line | file |
|---|---|---|---|
| openai, together, fireworks | `messages` | `input.messages`, `preferred_output`, `non_preferred_output` | UTF-8 |
| azure | the same | the same | UTF-8 with a byte-order mark |
| trl | `prompt`, `completion` | `prompt`, `chosen`, `rejected` (lists of messages) | UTF-8 |

A TRL row trains the whole completion and nothing else, so a conversation in which several assistant messages are
trained becomes one TRL row for each of them, with all that stands before it as the prompt. On the way back the
assistant messages in a prompt get `weight: 0`. Tool-call arguments are a JSON string for OpenAI and an object for TRL's
chat templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dspy_finetune.errors import RowError, UsageError
from dspy_finetune.export.manifest import Method
from dspy_finetune.export.rows import Row

DialectName = Literal["openai", "azure", "together", "fireworks", "trl"]

_SHARED = ("tools", "parallel_tool_calls", "functions")
"""Keys beside the messages that belong to a row in every dialect."""
_DPO_SPELLINGS = (
    ("preferred_output", "non_preferred_output"),
    # OpenAI's published schema until April 2025, and what clients generated from it still write.
    ("preferred_completion", "non_preferred_completion"),
    ("chosen", "rejected"),
    ("preferred", "rejected"),
    ("preferred", "non_preferred"),
)


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one host wants its files."""

    name: DialectName
    """As in `dialect=` and `--dialect`."""
    bom: bool = False
    """The file starts with a byte-order mark."""
    messages: bool = True
    """Lines are in OpenAI's shape; otherwise TRL's prompt, completion, chosen, rejected."""

    def lines(self, row: Row) -> list[Row]:
        """The row's lines in this dialect: one, or one for each trained turn in TRL's. Raises RowError."""
        return [row] if self.messages else [_to_trl(turn) for turn in split_turns(row)]


DIALECTS: dict[str, Dialect] = {
    "openai": Dialect(name="openai"),
    "azure": Dialect(name="azure", bom=True),
    "together": Dialect(name="together"),
    "fireworks": Dialect(name="fireworks"),
    "trl": Dialect(name="trl", messages=False),
}


def dialect_named(name: str) -> Dialect:
    """The dialect of that name. Raises UsageError, which lists the names."""
    if name not in DIALECTS:
        raise UsageError(f'unknown dialect "{name}"; choose one of {", ".join(get_args(DialectName))}')
    return DIALECTS[name]


def method_of(row: Mapping[str, Any]) -> Method:
    """What a line of any dialect trains: `"dpo"` when it holds two answers, else `"sft"`."""
    return "dpo" if any(rejected in row for _, rejected in _DPO_SPELLINGS) else "sft"


def split_turns(row: Row) -> list[Row]:
    """A conversation as rows that each train their last message alone; a DPO row, and one such row, stay as they are.

    Raises:
        RowError: No assistant message is trained.
    """
    if method_of(row) == "dpo":
        return [row]
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise RowError(
            "no list of messages", field="messages", value=messages, remedy="see the line format in docs/export.md"
        )
    trained = [index for index, message in enumerate(messages) if is_trained(message)]
    if not trained:
        raise RowError(
            "no assistant message to train on", field="messages", remedy="add the answer, or give it weight 1"
        )
    turns = []
    for index in trained:
        before = [{**message, "weight": 0} if _is_assistant(message) else message for message in messages[:index]]
        turns.append({**row, "messages": [*before, messages[index]]})
    return turns


def is_trained(message: Any) -> bool:
    """Whether a message of an SFT row is learned: an assistant message whose weight is not 0."""
    return _is_assistant(message) and message.get("weight") != 0


def from_any(line: Any, dialect: str | None = None) -> Row:
    """A line of any dialect as a row in OpenAI's shape.

    Reads OpenAI's shape, TRL's (conversations and plain strings, with the prompt apart or inside chosen and rejected),
    OpenAI's older names `preferred_completion` / `non_preferred_completion`, and `messages` / `preferred` / `rejected`.

    Args:
        line: The parsed line.
        dialect: Refuse a line that is not of this dialect; None takes whatever it is.

    Raises:
        RowError: The line is none of these.
    """
    if not isinstance(line, dict):
        raise RowError("not a JSON object", value=line, remedy="one object per line")
    if dialect is not None and is_trl(line) == dialect_named(dialect).messages:
        found = f"the line is in {shape_named(line)}, not {dialect}'s"
        raise RowError(found, value=list(line), remedy="leave out from_ / --from")
    if method_of(line) == "dpo":
        return _dpo_from_any(line)
    if "messages" in line:
        return dict(line)
    if "prompt" in line and "completion" in line:
        prompt, completion = _from_trl(line["prompt"], "user"), _from_trl(line["completion"], "assistant")
        before = [{**message, "weight": 0} if _is_assistant(message) else message for message in prompt]
        return {"messages": [*before, *completion], **_shared(line)}
    mends = isinstance(line.get("conversations"), list)
    raise RowError(
        f"unknown line format with the keys {', '.join(sorted(line)) or '(none)'}",
        value=list(line),
        remedy="run the check with --fix OUT, which rewrites such rows as messages"
        if mends
        else 'expected "messages", "prompt" and "completion", or a prompt with two answers',
    )


def is_trl(line: Mapping[str, Any]) -> bool:
    """Whether a line is in TRL's shape; otherwise it is taken for OpenAI's."""
    return any(key in line for key in ("prompt", "completion", "chosen", "rejected"))


def shape_named(line: Mapping[str, Any]) -> str:
    """The shape of a line, in words."""
    return "TRL's shape (prompt, completion, chosen, rejected)" if is_trl(line) else "OpenAI's shape (messages, input)"


def _dpo_from_any(line: Row) -> Row:
    spellings = [pair for pair in _DPO_SPELLINGS if pair[1] in line]
    chosen_key, rejected_key = next((pair for pair in spellings if pair[0] in line), spellings[0])
    if chosen_key not in line:
        raise RowError(
            "one answer is missing", field=chosen_key, value=list(line), remedy="a DPO line holds two answers"
        )
    chosen, rejected = _from_trl(line[chosen_key], "assistant"), _from_trl(line[rejected_key], "assistant")
    given = line.get("input", line)
    shared = _shared(line)
    if isinstance(given, dict) and "messages" in given:
        prompt, shared = given["messages"], {**shared, **_shared(given)}
    elif "prompt" in line:
        prompt = _from_trl(line["prompt"], "user")
    else:
        # TRL's implicit prompt: both conversations are whole, and share their beginning.
        n_same = next(
            (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
            min(len(chosen), len(rejected)),
        )
        prompt, chosen, rejected = chosen[:n_same], chosen[n_same:], rejected[n_same:]
    return {"input": {"messages": prompt, **shared}, "preferred_output": chosen, "non_preferred_output": rejected}


def _to_trl(row: Row) -> Row:
    if method_of(row) == "dpo":
        given = row.get("input")
        if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
            raise RowError("no list of messages", field="input.messages", value=given, remedy="see docs/export.md")
        both = {"chosen": row.get("preferred_output"), "rejected": row["non_preferred_output"]}
        for key, answer in both.items():
            if not isinstance(answer, list):
                raise RowError("no list of messages", field=key, value=answer, remedy="a DPO line holds two answers")
        answers = {
            key: [_message_to_trl(message) for message in answer] for key, answer in both.items() if answer is not None
        }
        return {"prompt": [_message_to_trl(message) for message in given["messages"]], **answers, **_shared(given)}
    *before, last = [_message_to_trl(message) for message in row["messages"]]
    return {"prompt": before, "completion": [last], **_shared(row)}


def _message_to_trl(message: Any) -> Any:
    if not isinstance(message, dict):
        raise RowError("a message is not an object", value=message, remedy='{"role": ..., "content": ...}')
    kept = {key: value for key, value in message.items() if key != "weight"}
    if isinstance(calls := kept.get("tool_calls"), list):
        kept["tool_calls"] = [_call_with(call, _parsed) for call in calls]
    return kept


def _from_trl(value: Any, role: str) -> list[Any]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError("neither text nor a list of messages", value=value, remedy="see docs/export.md")
    return [
        {**message, "tool_calls": [_call_with(call, _dumped) for call in message["tool_calls"]]}
        if isinstance(message, dict) and isinstance(message.get("tool_calls"), list)
        else message
        for message in value
    ]


def _call_with(call: Any, change: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    return {**call, "function": {**function, "arguments": change(function["arguments"])}}


def _parsed(arguments: Any) -> Any:
    """Arguments as the object that chat templates expect; what is not a JSON object stays as it is."""
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _dumped(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _shared(line: Mapping[str, Any]) -> Row:
    return {key: line[key] for key in _SHARED if key in line}


def _is_assistant(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "assistant"


def answer_texts(messages: Sequence[Any]) -> list[str]:
    """The plain texts of a list of messages, in order."""
    return [
        message["content"]
        for message in messages
        if isinstance(message, dict) and isinstance(message.get("content"), str)
    ]
