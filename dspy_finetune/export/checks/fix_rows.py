"""Mend one row: the faults that have one right answer.

In: a parsed row. Out: the mended row and what was changed. Nothing is guessed: a weight of 0.5, a role nobody knows,
a missing output stay as they are. Not covered: text that is not JSON (check_text.py), faults of the file (fix.py).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from dspy_finetune._jsonl import MISSING
from dspy_finetune.export.checks.rules import ROLES, decode_arguments, sniff

_PREFERRED = ("preferred_output", "preferred_completion", "preferred", "chosen")
_REJECTED = ("non_preferred_output", "non_preferred_completion", "non_preferred", "rejected")
_SHARED = ("tools", "parallel_tool_calls")
_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_FORMAT_CODES = {
    "trl-preference": "trl-preference-format",
    "prompt-completion": "prompt-completion-format",
    "sharegpt": "sharegpt-format",
}


@dataclass
class Mended:
    """A row and what was done to it."""

    row: Any
    """The row as it should be."""
    changes: list[tuple[str, str, str]] = field(default_factory=list)
    """(code, path, what was done) of each change."""

    def note(self, code: str, path: str, message: str) -> None:
        """Record a change."""
        self.changes.append((code, path, message))


def mend_row(value: Any, method: str | None, *, is_trl: bool = False) -> Mended:
    """Mend a row; `value` is left as it was.

    Args:
        value: The parsed row.
        method: `sft`, `dpo` or `rft`; None goes by the row's format.
        is_trl: Leave TRL's own formats alone.
    """
    mended = Mended(copy.deepcopy(value))
    if isinstance(value, list) and value and all(isinstance(item, dict) and "role" in item for item in value):
        mended.row = {"messages": mended.row}
        mended.note("row-not-object", "", 'put the messages into {"messages": [...]}')
    if not isinstance(mended.row, dict):
        return mended
    _mend_format(mended, is_trl=is_trl)
    row, form = mended.row, sniff(mended.row)
    if form == "preference":
        _mend_outputs(mended)
        given = row.get("input")
        if isinstance(given, dict):
            _mend_messages(mended, given.get("messages"), "input.messages", "dpo")
        for name in (_PREFERRED[0], _REJECTED[0]):
            _mend_messages(mended, row.get(name), name, "dpo")
    elif form in ("chat", "reinforcement"):
        by_form = "rft" if form == "reinforcement" else "sft"
        _mend_messages(mended, row.get("messages"), "messages", "rft" if method == "rft" else by_form)
    return mended


def respell(row: dict[str, Any], *, is_trl: bool = False) -> dict[str, Any] | None:
    """The row in the host's format, where it is in another spelling that says the same; None where it is not."""
    form = sniff(row)
    made: dict[str, Any] | None = None
    lacks_input = form == "preference" and "input" not in row and isinstance(row.get("messages"), list)
    is_foreign = form == "trl-preference" and not is_trl
    if form in ("preference-wrong-spelling", "preference-old-names") or is_foreign or lacks_input:
        made = _as_preference(row)
    elif form == "prompt-completion" and not is_trl:
        before, after = _as_messages(row["prompt"], "user"), _as_messages(row["completion"], "assistant")
        if before is not None and after is not None:
            rest = {key: item for key, item in row.items() if key not in ("prompt", "completion")}
            made = {"messages": [*before, *after], **rest}
    elif form == "sharegpt":
        made = _from_sharegpt(row)
    return made if made is not None and sniff(made) in ("preference", "chat", "reinforcement") else None


def _mend_format(mended: Mended, *, is_trl: bool) -> None:
    form, made = sniff(mended.row), respell(mended.row, is_trl=is_trl)
    if made is not None:
        code = "input-missing" if form == "preference" else _FORMAT_CODES.get(form, form)
        mended.row = made
        mended.note(code, "", f"rewritten as {'/'.join(list(made)[:3])}")


def _as_preference(row: dict[str, Any]) -> dict[str, Any] | None:
    given = row.get("input")
    if not isinstance(given, dict):
        prompt = row.get("messages", row.get("prompt"))
        messages = _as_messages(prompt, "user")
        if messages is None:
            return None
        given = {"messages": messages, **{key: row[key] for key in _SHARED if key in row}}
    made: dict[str, Any] = {"input": given}
    used = {"messages", "prompt", *_SHARED} if "input" not in row else {"input"}
    for name, spellings in (("preferred_output", _PREFERRED), ("non_preferred_output", _REJECTED)):
        key = next((key for key in spellings if key in row), None)
        if key is not None:
            output = row[key]
            made[name] = _as_messages(output, "assistant") or output
            used.add(key)
    return {**made, **{key: item for key, item in row.items() if key not in used}}


def _as_messages(value: Any, role: str) -> list[Any] | None:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict) and "content" in value:
        return [value]
    return value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else None


def _from_sharegpt(row: dict[str, Any]) -> dict[str, Any] | None:
    messages = [{"role": "system", "content": row["system"]}] if isinstance(row.get("system"), str) else []
    for turn in row["conversations"]:
        role = (
            _SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn, dict) and isinstance(turn.get("from"), str) else None
        )
        if role is None or not isinstance(turn.get("value"), str):
            return None
        messages.append({"role": role, "content": turn["value"]})
    used = {"conversations", "system"} if isinstance(row.get("system"), str) else {"conversations"}
    return {"messages": messages, **{key: item for key, item in row.items() if key not in used}}


def _mend_outputs(mended: Mended) -> None:
    for name in (_PREFERRED[0], _REJECTED[0]):
        output = mended.row.get(name)
        if isinstance(output, (str, dict)):
            messages = _as_messages(output, "assistant")
            if messages is not None:
                mended.row[name] = messages
                mended.note("output-not-list", name, "put into a list with one assistant message")


def _mend_messages(mended: Mended, messages: Any, path: str, method: str) -> None:
    for i, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        here = f"{path}[{i}]"
        _mend_role(mended, message, here, method)
        _mend_weight(mended, message, here)
        content = message.get("content")
        if message.get("role") == "tool" and isinstance(content, list):
            texts = [
                part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
            ]
            if all(isinstance(text, str) for text in texts):
                message["content"] = "".join(text for text in texts if text)
                mended.note("tool-content-not-string", f"{here}.content", "joined the parts to one text")
        if message.get("role") == "assistant":
            calls = message.get("tool_calls")
            for j, call in enumerate(calls if isinstance(calls, list) else ()):
                if isinstance(call, dict):
                    _mend_arguments(mended, call.get("function"), f"{here}.tool_calls[{j}].function")
            _mend_arguments(mended, message.get("function_call"), f"{here}.function_call")


def _mend_role(mended: Mended, message: dict[str, Any], here: str, method: str) -> None:
    role = message.get("role")
    if not isinstance(role, str) or role in ROLES[method]:
        return
    plain = role.strip().lower()
    swapped = {"developer": "system", "system": "developer"}.get(plain, plain)
    new = plain if plain in ROLES[method] else swapped
    if new in ROLES[method]:
        code = {"developer": "role-developer", "system": "role-system"}.get(role, "role-unknown")
        message["role"] = new
        mended.note(code, f"{here}.role", f"{role[:40]!r} became {new!r}")


def _mend_weight(mended: Mended, message: dict[str, Any], here: str) -> None:
    if "weight" not in message:
        return
    weight = message["weight"]
    if message.get("role") != "assistant":
        if isinstance(message.get("role"), str):
            del message["weight"]
            mended.note("weight-not-assistant", f"{here}.weight", "deleted")
        return
    if isinstance(weight, int) and not isinstance(weight, bool) and weight in (0, 1):
        return
    meant = {"0": 0, "1": 1}.get(weight.strip()) if isinstance(weight, str) else None
    if isinstance(weight, (bool, float)) and weight in (0, 1):
        meant = int(weight)
    if meant is not None:
        message["weight"] = meant
        mended.note("weight-invalid", f"{here}.weight", f"{weight!r:.40} became {meant}")


def _mend_arguments(mended: Mended, function: Any, here: str) -> None:
    if not isinstance(function, dict) or "arguments" not in function:
        return
    code, _, arguments = decode_arguments(function["arguments"])
    if code is not None and arguments is not MISSING:
        function["arguments"] = arguments
        mended.note(code, f"{here}.arguments", f"written as the JSON string {arguments[:60]!r}")
