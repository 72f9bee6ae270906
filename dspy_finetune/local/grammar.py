"""Answers that keep to a form: any JSON object, a JSON schema, or the call of a tool. Enforced by llguidance.

In: JSON schemas and tools as OpenAI's API has them. Out: a grammar, checked before the model is asked; and, while an
answer grows, the tokens that may come next. llguidance has no dependencies and one wheel for each platform (3 MB).
JSON is written without spaces between its parts, and objects have the properties that their schema names: a small model
would otherwise add blanks and keys without end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dspy_finetune.local.schemas import ApiError

CALL_OPENS, CALL_CLOSES = "<tool_call>", "</tool_call>"
"""Around a tool's call where the answer may be text as well, as Qwen and Hermes models were trained to write it."""

_COMPACT = {"whitespace_flexible": False}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}


def json_grammar(schema: Mapping[str, Any] | None) -> str:
    """The grammar of one JSON value that fits the schema; None: any object."""
    return _lark(["start: value", f"value: {_json(schema or _ANY_OBJECT)}"])


def tool_grammar(
    tools: Mapping[str, Mapping[str, Any] | None], *, is_forced: bool, answer: Mapping[str, Any] | None = None
) -> str:
    """The grammar of an answer where tools are offered.

    Args:
        tools: The schema of each tool's arguments, by the tool's name; None: it has none.
        is_forced: The answer must be a call, and is written without its marks.
        answer: What an answer that is no call must fit; None: any text that does not begin like a call.
    """
    lines = [f"call: {' | '.join(f'call_{number}' for number in range(len(tools)))}"]
    for number, (name, schema) in enumerate(tools.items()):
        opening = json.dumps(f'{{"name":{json.dumps(name)},"arguments":')
        lines.append(f'call_{number}: {opening} arguments_{number} "}}"')
        lines.append(f"arguments_{number}: {_json(schema or _NO_ARGUMENTS)}")
    if is_forced:
        return _lark(["start: call", *lines])
    lines.append(f"marked: {json.dumps(CALL_OPENS)} call {json.dumps(CALL_CLOSES)}")
    if answer is not None:
        return _lark(["start: value | marked", f"value: {_json(answer)}", *lines])
    return _lark(["start: TEXT | marked", f"TEXT: /(?s:.*)/ & ~/(?s:{CALL_OPENS}.*)/", *lines])


def check_grammar(grammar: str, param: str) -> None:
    """Refuse a grammar that cannot be followed, with the reason: an unknown part of JSON schema, a bad pattern."""
    from llguidance import LLMatcher  # part of the extra `local`

    problem = LLMatcher.validate_grammar(grammar)
    if problem:
        message = f"Invalid schema for '{param}': {' '.join(problem.split())[:300]}"
        raise ApiError(400, message, code="invalid_json_schema", param=param)


def _lark(lines: Iterable[str]) -> str:
    from llguidance import LLMatcher  # part of the extra `local`

    return LLMatcher.grammar_from_lark("\n".join(lines))


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**_closed(schema), 'x-guidance': _COMPACT})}"


def _closed(schema: Any) -> Any:
    """The schema with objects closed that name their properties; what several schemas describe together stays open."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {
        key: value if key in ("allOf", "const", "enum", "default") else _closed(value) for key, value in schema.items()
    }
    is_alone = not {"allOf", "anyOf", "oneOf", "$ref", "additionalProperties", "patternProperties"} & set(schema)
    if is_alone and schema.get("type") == "object" and isinstance(schema.get("properties"), Mapping):
        closed["additionalProperties"] = False
    return closed


class Grammars:
    """What follows grammars in the tokens of one model."""

    def __init__(self, tokenizer: Any, ends: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = sorted(ends)
        self._tokens: Any = None

    def start(self, grammar: str) -> Guide:
        """A guide for one answer."""
        from llguidance import LLMatcher, hf  # part of the extra `local`

        if self._tokens is None:  # a second for a large vocabulary, once
            self._tokens = hf.from_tokenizer(self._tokenizer, eos_token=self._ends)
        return Guide(LLMatcher(self._tokens, grammar), self._tokens.vocab_size, self._ends)


class Guide:
    """Which tokens may come next in one answer."""

    def __init__(self, matcher: Any, n_tokens: int, ends: Sequence[int]) -> None:
        self._matcher = matcher
        self._n_tokens = n_tokens
        self._ends = list(ends)

    @property
    def is_over(self) -> bool:
        """Nothing can follow: the answer is complete."""
        return bool(self._matcher.is_stopped())

    def allowed(self, n_tokens: int) -> Any:
        """A numpy array of `n_tokens` booleans: the model's rows, of which a tokenizer may name fewer."""
        import numpy as np  # with torch, as every caller has it

        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        found = np.zeros(n_tokens, dtype=bool)
        known = np.unpackbits(bits, bitorder="little")[: min(n_tokens, self._n_tokens)].astype(bool)
        found[: len(known)] = known
        if self._matcher.is_error() or not found.any():
            problem = self._matcher.get_error() or "no token can follow"
            message = f"The answer's form cannot be followed: {' '.join(problem.split())[:300]}"
            raise ApiError(400, message, code="invalid_json_schema", param="response_format")
        return found

    def take(self, token: int) -> None:
        """Go on after a token."""
        if token not in self._ends:
            self._matcher.consume_token(token)
