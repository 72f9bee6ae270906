"""The hosts: how each wants its files, and what each takes in a row.

In: rows in OpenAI's shape (formats.py). Out: lines for a host, and the `HostRules` that the check holds rows to.
Not covered: files (writer.py), numbers such as the least number of rows (catalog.json), how a row of another format
reads (formats.py).

| dialect | SFT line | DPO line | file |
|---|---|---|---|
| openai | `messages` | `input.messages`, `preferred_output`, `non_preferred_output` | UTF-8 |
| together, fireworks, nebius | the same | the same | UTF-8 |
| azure | the same | the same | UTF-8 with a byte-order mark |
| trl | `prompt`, `completion` | `prompt`, `chosen`, `rejected` (lists of messages) | UTF-8 |

A TRL row trains the whole completion and nothing else, so a conversation in which several assistant messages are
trained becomes one TRL row for each of them, with all that stands before it as the prompt. On the way back the
assistant messages in a prompt get `weight: 0`. Tool-call arguments are a JSON string for OpenAI and an object for TRL's
chat templates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from dspy_finetune.errors import RowError, UsageError
from dspy_finetune.export.formats import SHARED, Row, method_of
from dspy_finetune.tasks import check_row

DialectName = Literal["openai", "azure", "together", "fireworks", "nebius", "trl"]


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
    "nebius": Dialect(name="nebius"),
    "trl": Dialect(name="trl", messages=False),
}


def dialect_named(name: str) -> Dialect:
    """The dialect of that name. Raises UsageError, which lists the names."""
    if name not in DIALECTS:
        raise UsageError(f'unknown dialect "{name}"; choose one of {", ".join(get_args(DialectName))}')
    return DIALECTS[name]


# What each host takes in a row.

_OPENAI_ROLES = frozenset({"system", "user", "assistant", "tool", "function"})


@dataclass(frozen=True, kw_only=True)
class HostRules:
    """What a host takes in a row, by its own documents."""

    formats: frozenset[str] = frozenset()
    """Row formats (formats.py) that it takes beside chat, preference and reinforcement rows."""
    roles: frozenset[str] = _OPENAI_ROLES
    """Roles of supervised and preference rows."""
    has_weights_everywhere: bool = False
    """Whether messages of every role may have a weight."""
    must_alternate: bool = False
    """Whether two messages of one role in a row are refused."""
    is_system_first: bool = False
    """Whether a system message must be the first one."""
    ends_with_answer: bool = False
    """Whether the last message must be the assistant's text."""
    takes_long_inputs: bool = False
    """Whether the input of a preference row may hold earlier answers, as long as it does not end with one."""
    suffixes: frozenset[str] = frozenset()
    """Endings of file names that it takes; empty: any."""
    check: Callable[[Row, str], None] | None = None
    """What the host itself asks of a row and its method, where it is known here: raises UsageError."""
    source: str = ""
    """Where the rules are from."""

    def takes_order(self, roles: tuple[str, ...]) -> bool:
        """Whether the order of the roles of a row of plain text is one that the host takes."""
        if self.is_system_first and "system" in roles[1:]:
            return False
        return not self.must_alternate or all(a != b for a, b in pairwise(roles))


RULES: dict[str, HostRules] = {
    "openai": HostRules(suffixes=frozenset({".jsonl"}), source="OpenAI's API description and guides"),
    "azure": HostRules(suffixes=frozenset({".jsonl"}), source="Azure's guide"),
    "together": HostRules(
        formats=frozenset({"prompt-completion", "text"}),
        roles=frozenset({"system", "user", "assistant", "tool"}),
        has_weights_everywhere=True,
        must_alternate=True,
        takes_long_inputs=True,
        # Its client takes CSV as well, for evaluations; the check says so.
        suffixes=frozenset({".jsonl", ".parquet", ".csv"}),
        source="docs.together.ai/docs/fine-tuning/data-preparation and the file check of Together's client",
    ),
    "fireworks": HostRules(
        roles=frozenset({"system", "user", "assistant", "tool"}),
        has_weights_everywhere=True,
        is_system_first=True,
        suffixes=frozenset({".jsonl"}),
        source="docs.fireworks.ai/fine-tuning/fine-tuning-models and /dpo-fine-tuning",
    ),
    "nebius": HostRules(
        formats=frozenset({"prompt-completion", "text"}),
        roles=frozenset({"system", "user", "assistant", "tool"}),
        ends_with_answer=True,
        suffixes=frozenset({".jsonl"}),
        source="docs.tokenfactory.nebius.com/post-training/datasets",
    ),
    "trl": HostRules(
        formats=frozenset({"prompt-completion", "trl-preference", "text"}),
        roles=frozenset({"system", "user", "assistant", "tool", "developer"}),
        takes_long_inputs=True,
        source="huggingface.co/docs/trl/dataset_formats",
    ),
    "local": HostRules(check=check_row, source="this package's local host, which reads what OpenAI reads, as text"),
}


def rules_of(host: str) -> HostRules:
    """A host's rules; OpenAI's without its file names for a host that is not known, since most follow them."""
    return RULES.get(host) or HostRules()


# Lines for TRL.


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
    if not _is_assistant(message):
        return False
    weight = message.get("weight", 1)
    return not (isinstance(weight, int | float) and weight == 0)


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
        kept["tool_calls"] = [_call_to_trl(call) for call in calls]
    return kept


def _call_to_trl(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    return {**call, "function": {**function, "arguments": _parsed(function["arguments"])}}


def _parsed(arguments: Any) -> Any:
    """Arguments as the object that chat templates expect; what is not a JSON object stays as it is."""
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _is_assistant(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "assistant"


def _shared(row: Mapping[str, Any]) -> Row:
    return {key: row[key] for key in SHARED if row.get(key) is not None}
