"""Render training rows for the eye: who says what, and which of it is trained.

In: a training file. Out: rich texts; what is trained stands out in green, the rejected output in red, the rest is
dim. Text of the data is shown as it is, of long texts the beginning and the end: markup is not read, control characters
and terminal escapes are made visible.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dspy_finetune._jsonl import MISSING
from dspy_finetune._optional import require
from dspy_finetune.errors import UsageError
from dspy_finetune.export.checks.checker import entries_of
from dspy_finetune.export.checks.mend import mend_row
from dspy_finetune.export.checks.rules import role_name, seen_text
from dspy_finetune.export.dialects import is_trained
from dspy_finetune.export.formats import sniff

if TYPE_CHECKING:
    from rich.text import Text

_HEAD_CHARS, _TAIL_CHARS = 3000, 500
"""What is shown of a long text."""

TRAINED, REJECTED, CONTEXT = "bold green", "red", "dim"


def show(path: str | os.PathLike[str], n: int = 3, *, method: str | None = None) -> Iterator[Text]:
    """The first rows of a file, one rich text each.

    Rows in a spelling that `fix` mends are shown as it would write them; lines that cannot be read say so.

    Args:
        path: The file.
        n: Rows shown.
        method: `sft`, `dpo` or `rft`; None goes by each row.

    Raises:
        FileError: The file cannot be read.
        MissingExtraError: rich is not installed.
        UsageError: `n` is not positive.
    """
    if n < 1:
        raise UsageError(f"n={n}: at least one row must be shown")
    for entry in entries_of(path):
        if entry.line is None or (entry.value is MISSING and entry.faults[0].code == "blank-line"):
            continue
        if entry.value is MISSING:
            text = _text()
            text.append(f"line {entry.line}: ", style="bold")
            text.append(visible(entry.faults[0].message), style=REJECTED)
            yield text
        else:
            yield render(mend_row(entry.value, method).row, line=entry.line)
        n -= 1
        if not n:
            return


def render(row: Any, *, line: int | None = None) -> Text:
    """One row as a rich text. Raises MissingExtraError."""
    text = _text()
    if line is not None:
        text.append(f"line {line}\n", style="bold underline")
    if not isinstance(row, dict) or sniff(row) not in ("chat", "reinforcement", "preference"):
        text.append(visible(_cut(json.dumps(row, ensure_ascii=False, default=str))), style=CONTEXT)
        return text
    if sniff(row) == "preference":
        given = row.get("input")
        _append_messages(text, given.get("messages") if isinstance(given, dict) else None, CONTEXT, "")
        _append_messages(text, row.get("preferred_output"), TRAINED, "preferred ")
        _append_messages(text, row.get("non_preferred_output"), REJECTED, "rejected ")
        return text
    learns = sniff(row) == "chat"
    for message in row["messages"] if isinstance(row["messages"], list) else []:
        trained = learns and isinstance(message, dict) and message.get("role") == "assistant" and is_trained(message)
        _append_messages(text, [message], TRAINED if trained else CONTEXT, "trained " if trained else "")
    return text


def visible(text: str) -> str:
    r"""The text with control, format and half characters as escapes, but for newline and tab.

    >>> visible("red: \x1b[31m")
    'red: \\x1b[31m'
    """
    return "".join(
        c
        if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co")
        else c.encode("unicode_escape").decode()
        for c in text
    )


def _text() -> Text:
    made: Text = require("rich.text", "cli", "showing rows").Text()
    return made


def _append_messages(text: Text, messages: Any, style: str, mark: str) -> None:
    for message in messages if isinstance(messages, list) else []:
        role = role_name(message.get("role")) if isinstance(message, dict) else "not a message"
        text.append(f"  {mark}{visible(role)}: ", style="bold")
        text.append(visible(_cut(_said(message))).replace("\n", "\n    "), style=style)
        text.append("\n")


def _said(message: Any) -> str:
    return seen_text(message) if isinstance(message, dict) else json.dumps(message, ensure_ascii=False, default=str)


def _cut(text: str) -> str:
    n_hidden = len(text) - _HEAD_CHARS - _TAIL_CHARS
    if n_hidden <= 0:
        return text
    return f"{text[:_HEAD_CHARS]} … ({n_hidden:,} characters more) … {text[-_TAIL_CHARS:]}"
