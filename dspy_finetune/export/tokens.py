"""How many tokens a training row has, as OpenAI counts them.

In: rows in OpenAI's or TRL's shape, or texts, and a model. Out: counts; None where no table for the model is known.

The formula (OpenAI cookbook, "How to count tokens with tiktoken"): 3 for each message, the tokens of its role and
content, 1 more and its tokens for a `name`, and 3 once for the primer of the reply. On top of it, as estimates:

- a DPO row counts its prompt once and both outputs;
- tools count by the cookbook's formula for functions, nested properties like flat ones; a tool call counts its name,
  its arguments and 3;
- an image counts 85 at `detail: low`, else 85 + 170 for each 512-pixel tile after it is scaled into 2048 x 2048 and to
  a shorter side of 768; the size is read from a data URL, and taken as 1024 x 1024 (765 tokens) behind an http address.
"""

from __future__ import annotations

import contextlib
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspy_finetune.errors import RowError
from dspy_finetune.export.dialects import from_any
from dspy_finetune.export.encodings import encoding_for, load_encoding
from dspy_finetune.export.images import image_tokens
from dspy_finetune.hosts.catalog import load_catalog

Tokenizer = Callable[[str], int]
"""Counts the tokens of a text."""

PER_MESSAGE = 3
PER_NAME = 1
REPLY_PRIMER = 3
PER_TOOL_CALL = 3
# Cookbook, "Tool/function calling" for gpt-4o and gpt-4o-mini.
_PER_FUNCTION, _PER_PROPERTIES, _PER_PROPERTY, _PER_ENUM, _PER_ENUM_ITEM, _AFTER_FUNCTIONS = 7, 3, 3, -3, 3, 12

_CACHED_CHARS = 40
"""Texts up to this length are remembered: labels repeat. Longer ones are counted each time, but for system prompts."""
_CACHE_SIZE = 4096


_TRL_KEYS = frozenset({"prompt", "completion", "chosen", "rejected"})


class TokenCounter:
    """Counts the tokens of rows and adds them up; each distinct system prompt, label and set of tools is counted once.

    >>> counter = TokenCounter.for_model("gpt-4.1-mini")
    >>> counter.messages([{"role": "user", "content": "Title: A quiet town"}, {"role": "assistant", "content": "true"}])
    17
    """

    def __init__(self, count: Tokenizer, *, encoding: str | None = None, max_row_tokens: int | None = None) -> None:
        self.encoding = encoding
        """Name of the table; None with a tokenizer of the user's own."""
        self.n_tokens = 0
        """Sum over the rows that were added."""
        self.n_billed_tokens = 0
        """The same, each row cut at the model's training context."""
        self._count = count
        self._max_row_tokens = max_row_tokens
        self._known: dict[str, int] = {}
        self._known_tools: dict[str, int] = {}

    @classmethod
    def for_model(cls, model: str | None, *, tokenizer: Tokenizer | None = None) -> TokenCounter | None:
        """A counter for a model; None when no table is known and no tokenizer is given. Raises FileError."""
        facts = load_catalog().model(model) if model is not None else None
        limit = facts.train_context_tokens if facts is not None else None
        if tokenizer is not None:
            return cls(tokenizer, max_row_tokens=limit)
        name = encoding_for(model)
        if name is None:
            return None
        # encode_ordinary takes a control token such as <|endoftext|> in a text as the characters it is made of, as a
        # host does. tiktoken's batch call is no help for short texts: its threads make it ten times slower a text than
        # this.
        encode = load_encoding(name).encode_ordinary
        return cls(lambda text: len(encode(text)), encoding=name, max_row_tokens=limit)

    def add(self, row: Mapping[str, Any]) -> int:
        """Count a row and add it to the sums."""
        n = self.row(row)
        self.n_tokens += n
        limit = self._max_row_tokens
        self.n_billed_tokens += n if limit is None or n <= limit else limit
        return n

    def add_columns(self, n_before: int, columns: Sequence[Sequence[str]]) -> list[int]:
        """Count rows that share all but some texts, given as one column for each, and add them to the sums."""
        counts = [n_before] * len(columns[0])
        for column in columns:
            known = {text: self._count(text) for text in set(column)}  # labels repeat
            counts = list(map(operator.add, counts, map(known.__getitem__, column)))
        limit = self._max_row_tokens
        self.n_tokens += sum(counts)
        self.n_billed_tokens += sum(counts) if limit is None else sum(min(n, limit) for n in counts)
        return counts

    def row(self, row: Mapping[str, Any]) -> int:
        """Tokens of one SFT or DPO row, in OpenAI's shape or TRL's; what is not a message counts nothing."""
        given = row.get("input")
        if isinstance(given, Mapping):
            n = self._conversation(given.get("messages")) + self._tools(given)
            for key in ("preferred_output", "non_preferred_output"):
                n += self._conversation(row.get(key))
            return n + REPLY_PRIMER
        if "messages" not in row and not _TRL_KEYS.isdisjoint(row):
            with contextlib.suppress(RowError):  # neither shape: counts as a row without messages
                return self.row(from_any(row))
        return self._conversation(row.get("messages")) + self._tools(row) + REPLY_PRIMER

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of a conversation, with the primer of the reply."""
        return self._conversation(messages) + REPLY_PRIMER

    def text(self, text: str) -> int:
        """Tokens of a text alone."""
        return self._count(text)

    def _conversation(self, messages: Any) -> int:
        if not isinstance(messages, (list, tuple)):
            return 0
        n = 0
        for message in messages:
            if type(message) is dict or isinstance(message, Mapping):
                n += self._message(message)
        return n

    def _message(self, message: Mapping[str, Any]) -> int:
        role, content = message.get("role"), message.get("content")
        n = PER_MESSAGE
        if isinstance(role, str):
            n += self._repeated(role)
        if isinstance(content, str):
            repeats = role == "system" or role == "developer" or len(content) <= _CACHED_CHARS
            n += self._repeated(content) if repeats else self._count(content)
        elif isinstance(content, list):
            n += sum(self._part(part) for part in content if isinstance(part, Mapping))
        if len(message) > 2 or "content" not in message:  # a message that calls tools may have no content
            n += self._extras(message)
        return n

    def _extras(self, message: Mapping[str, Any]) -> int:
        n = 0
        if isinstance(name := message.get("name"), str):
            n += PER_NAME + self._repeated(name)
        for key in ("refusal", "tool_call_id"):
            if isinstance(text := message.get(key), str):
                n += self._count(text)
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            function = call.get("function") if isinstance(call, Mapping) else None
            if isinstance(function, Mapping):
                n += PER_TOOL_CALL + self._count(str(function.get("name", "")))
                arguments = function.get("arguments", "")
                n += self._count(arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
        return n

    def _part(self, part: Mapping[str, Any]) -> int:
        if isinstance(text := part.get("text"), str):
            return self._count(text)
        if isinstance(text := part.get("refusal"), str):
            return self._count(text)
        image = part.get("image_url")
        if isinstance(image, Mapping):
            return image_tokens(str(image.get("url", "")), str(image.get("detail", "auto")))
        return 0

    def _repeated(self, text: str) -> int:
        n = self._known.get(text)
        if n is None:
            if len(self._known) >= _CACHE_SIZE:
                self._known.clear()
            n = self._known[text] = self._count(text)
        return n

    def _tools(self, row: Mapping[str, Any]) -> int:
        tools = row.get("tools")
        if not isinstance(tools, list) or not tools:
            return 0
        key = json.dumps(tools, sort_keys=True, default=str)
        n = self._known_tools.get(key)
        if n is None:
            if len(self._known_tools) >= _CACHE_SIZE:
                self._known_tools.clear()
            functions = [
                tool["function"]
                for tool in tools
                if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)
            ]
            n = self._known_tools[key] = _AFTER_FUNCTIONS + sum(self._function(function) for function in functions)
        return n

    def _function(self, function: Mapping[str, Any]) -> int:
        description = str(function.get("description") or "").removesuffix(".")
        return (
            _PER_FUNCTION
            + self._count(f"{function.get('name', '')}:{description}")
            + self._properties(function.get("parameters"))
        )

    def _properties(self, schema: Any) -> int:
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        if not isinstance(properties, Mapping) or not properties:
            return 0
        n = _PER_PROPERTIES
        for name, about in properties.items():
            n += _PER_PROPERTY
            if not isinstance(about, Mapping):
                continue
            choices = about.get("enum")
            if isinstance(choices, list):
                n += _PER_ENUM + sum(_PER_ENUM_ITEM + self._count(str(choice)) for choice in choices)
            description = str(about.get("description") or "").removesuffix(".")
            n += self._count(f"{name}:{about.get('type', '')}:{description}")
            n += self._properties(about) + self._properties(about.get("items"))
        return n


def count_tokens(text: str, base_model: str) -> int | None:
    """Tokens of a text for a base or tuned model; None when no table for it is known (local models).

    >>> count_tokens("A quiet town", "gpt-4.1-mini-2025-04-14")
    3

    Raises:
        FileError: The table is not on this machine and cannot be downloaded.
    """
    name = encoding_for(base_model)
    return None if name is None else len(load_encoding(name).encode_ordinary(text))


def count_messages(messages: Sequence[Mapping[str, Any]], base_model: str) -> int | None:
    """Tokens of a conversation, with the chat overhead; None when no table for the model is known. Raises FileError."""
    counter = TokenCounter.for_model(base_model)
    return None if counter is None else counter.messages(messages)
