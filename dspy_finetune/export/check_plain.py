"""Rows of nothing but text, which have no fault: nearly all rows of a file, told by a glance.

In: a parsed row and its method. Out: what the checks between rows need of it, or None where it wants a closer look
(check_rows.py). A row that comes in a block (blocks.py) has the same hashes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dspy_finetune.export.check_sets import pair_hash

_ROLES = frozenset({"system", "user", "assistant"})
_ASKING = frozenset({"system", "user"})
_ANSWERING = frozenset({"assistant"})

_Texts = tuple[tuple[str, ...], tuple[str, ...]]
"""The roles and the texts of messages."""


class PlainRow(NamedTuple):
    """What a plain row holds."""

    roles: tuple[str, ...]
    """The role of each message."""
    prompt_hash: int
    """Of all that stands before the answer."""
    output_hash: int
    """Of the answer, or of the preferred and the rejected one."""
    question: str
    """The last user message; empty where there is none."""
    system: str | None
    """The system message that opens the row, if one does."""
    answers: tuple[str, ...]
    """The answer, or the preferred and the rejected one."""


def plain_row(row: dict[str, Any], method: str | None) -> PlainRow | None:
    """The row, if all of it is plain: SFT messages with the answer last, or a preference's prompt and two answers."""
    if method == "sft" and len(row) == 1:
        found = _texts(row.get("messages"), _ROLES)
        if found is None or found[0][-1] != "assistant":
            return None
        roles, texts = found
        return _plain(roles, (roles[:-1], texts[:-1]), hash(texts[-1]), texts[-1:])
    if method != "dpo" or len(row) != 3:
        return None
    given = row.get("input")
    prompt = _texts(given.get("messages"), _ASKING) if type(given) is dict and len(given) == 1 else None
    chosen, rejected = (
        _texts(row.get("preferred_output"), _ANSWERING),
        _texts(row.get("non_preferred_output"), _ANSWERING),
    )
    if prompt is None or prompt[0][-1] != "user" or chosen is None or rejected is None or chosen == rejected:
        return None
    answers = (*chosen[1], *rejected[1])
    if len(answers) != 2:
        return None
    roles = (*prompt[0], "assistant", "assistant")
    return _plain(roles, prompt, pair_hash(hash(answers[0]), hash(answers[1])), answers)


def head_hash(roles: tuple[str, ...], texts: tuple[str, ...]) -> int:
    """Of a prompt but for its last text; `roles` are those of all its messages. `head ^ hash(last)` is the prompt's."""
    return hash((roles, texts))


def _plain(roles: tuple[str, ...], prompt: _Texts, output_hash: int, answers: tuple[str, ...]) -> PlainRow:
    asked, texts = prompt
    users = [text for role, text in zip(asked, texts, strict=True) if role == "user"]
    # A lone answer has no text before it.
    prompt_hash = head_hash(asked, texts[:-1]) ^ hash(texts[-1] if texts else None)
    system = texts[0] if asked and asked[0] == "system" else None
    return PlainRow(roles, prompt_hash, output_hash, users[-1] if users else "", system, answers)


def _texts(messages: Any, roles: frozenset[str]) -> _Texts | None:
    """The roles and texts of messages that have nothing else, and texts that are not blank; None for all others."""
    if type(messages) is not list:
        return None
    shape: list[str] = []
    texts: list[str] = []
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return None
        role, text = message.get("role"), message.get("content")
        if type(text) is not str or not text or text.isspace() or type(role) is not str or role not in roles:
            return None
        shape.append(role)
        texts.append(text)
    return (tuple(shape), tuple(texts)) if texts else None
