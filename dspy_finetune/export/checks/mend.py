"""Mend one row: the faults that have one right answer.

In: a parsed row. Out: the mended row and what was changed. Nothing is guessed and nothing is lost: a weight of 0.5, a
unknown role, a missing output stay as they are, and so do keys that have no place. Not covered: text that is not
JSON (`_jsonl`), faults of the file (fix.py).
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Any

from dspy_finetune._jsonl import MISSING
from dspy_finetune.errors import RowError
from dspy_finetune.export.checks.rules import NULLABLE, ROLES, decode_arguments, is_name, needs_reading
from dspy_finetune.export.dialects import HostRules
from dspy_finetune.export.formats import PREFERRED, REJECTED, SHARED, SPEAKERS, WEIGHT_SPELLINGS, as_openai, sniff

_FORMAT_CODES = {
    "trl-preference": "trl-preference-format",
    "prompt-completion": "prompt-completion-format",
    "sharegpt": "sharegpt-format",
    "foreign-sft": "foreign-format",
    "foreign-preference": "foreign-format",
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


def mend_row(value: Any, method: str | None, rules: HostRules | None = None) -> Mended:
    """Mend a row; `value` is left as it was.

    Args:
        value: The parsed row.
        method: `sft`, `dpo` or `rft`; None goes by the row's format.
        rules: What the host takes; formats that it takes are left alone. None is OpenAI's.
    """
    rules = rules or HostRules()
    mended = Mended(copy.deepcopy(value))
    if isinstance(value, list) and value and all(isinstance(item, dict) and "role" in item for item in value):
        mended.row = {"messages": mended.row}
        mended.note("row-not-object", "", 'put the messages into {"messages": [...]}')
    if not isinstance(mended.row, dict):
        return mended
    if sniff(mended.row) in rules.formats:
        return mended
    _drop_nulls(mended, mended.row, "", keep=sniff(mended.row) == "reinforcement")
    _mend_format(mended)
    row, form = mended.row, sniff(mended.row)
    if form == "preference":
        _mend_outputs(mended)
        given = row.get("input")
        if isinstance(given, dict):
            _drop_nulls(mended, given, "input", keep=False)
            _mend_messages(mended, given.get("messages"), "input.messages", "dpo", rules)
        for name in (PREFERRED[0], REJECTED[0]):
            _mend_messages(mended, row.get(name), name, "dpo", rules)
        _mend_names(mended, given, row.get(PREFERRED[0]), row.get(REJECTED[0]))
    elif form in ("chat", "reinforcement"):
        by_form = "rft" if form == "reinforcement" else "sft"
        _mend_messages(mended, row.get("messages"), "messages", "rft" if method == "rft" else by_form, rules)
        _mend_names(mended, row)
    return mended


def _drop_nulls(mended: Mended, given: dict[str, Any], path: str, *, keep: bool) -> None:
    """Take out keys that hold null; a grader may read those of a reinforcement row."""
    for key in [key for key, item in given.items() if item is None and (not keep or key in SHARED)]:
        del given[key]
        mended.note("null-value", f"{path}.{key}" if path else key, "deleted: null is absent")


def _mend_format(mended: Mended) -> None:
    """Write the row in OpenAI's shape, with all keys that have no place in it."""
    row, form = mended.row, sniff(mended.row)
    code = needs_reading(row, form) or _FORMAT_CODES.get(form) or (form if form.startswith("preference-") else None)
    if code is None:
        return
    try:
        read = as_openai(row)
    except RowError:
        return  # the check says what is missing
    made = {**read.row, **read.rest}
    if made == row or sniff(made) not in ("preference", "chat", "reinforcement"):
        return
    mended.row = made
    mended.note(code, "", "; ".join((f"rewritten as {'/'.join(list(read.row)[:3])}", *read.notes)))


def _mend_outputs(mended: Mended) -> None:
    for name in (PREFERRED[0], REJECTED[0]):
        output = mended.row.get(name)
        if isinstance(output, str) or (isinstance(output, dict) and "content" in output):
            mended.row[name] = [{"role": "assistant", "content": output}] if isinstance(output, str) else [output]
            mended.note("output-not-list", name, "put into a list with one assistant message")


def _mend_messages(mended: Mended, messages: Any, path: str, method: str, rules: HostRules) -> None:
    for i, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        here = f"{path}[{i}]"
        for key in [key for key, item in message.items() if item is None and key not in NULLABLE]:
            del message[key]
            mended.note("null-value", f"{here}.{key}", "deleted: null is absent")
        _mend_role(mended, message, here, method)
        _mend_weight(mended, message, here, rules)
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
    swapped = {"developer": "system", "system": "developer"}.get(plain, SPEAKERS.get(plain, plain))
    new = plain if plain in ROLES[method] else swapped
    if new in ROLES[method]:
        code = {"developer": "role-developer", "system": "role-system"}.get(role, "role-unknown")
        message["role"] = new
        mended.note(code, f"{here}.role", f"{role[:40]!r} became {new!r}")


def _mend_weight(mended: Mended, message: dict[str, Any], here: str, rules: HostRules) -> None:
    for key in WEIGHT_SPELLINGS:
        if key in message and "weight" not in message and _as_weight(message[key]) is not None:
            message["weight"] = _as_weight(message.pop(key))
            mended.note("weight-invalid", f"{here}.{key}", f"became the weight {message['weight']}")
    if "weight" not in message:
        return
    weight = message["weight"]
    if message.get("role") != "assistant" and not rules.has_weights_everywhere:
        # No other message is trained, so a weight there says nothing that is lost.
        if isinstance(message.get("role"), str):
            del message["weight"]
            mended.note("weight-not-assistant", f"{here}.weight", "deleted")
        return
    if isinstance(weight, int) and not isinstance(weight, bool) and weight in (0, 1):
        return
    meant = _as_weight(weight)
    if meant is not None:
        message["weight"] = meant
        mended.note("weight-invalid", f"{here}.weight", f"{weight!r:.40} became {meant}")


def _as_weight(value: Any) -> int | None:
    """0 or 1 where a value says so without doubt."""
    if isinstance(value, str):
        return {"0": 0, "1": 1, "false": 0, "true": 1}.get(value.strip().lower())
    return int(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _mend_arguments(mended: Mended, function: Any, here: str) -> None:
    if not isinstance(function, dict) or "arguments" not in function:
        return
    code, _, arguments = decode_arguments(function["arguments"])
    if code is not None and arguments is not MISSING:
        function["arguments"] = arguments
        mended.note(code, f"{here}.arguments", f"written as the JSON string {arguments[:60]!r}")


def _mend_names(mended: Mended, given: Any, *outputs: Any) -> None:
    """Give functions names that a host takes, the same wherever a function is named in the row."""
    if not isinstance(given, dict):
        return
    named = list(_functions(given, outputs))
    names = {function["name"] for function in named}
    new = {name: re.sub(r"[^A-Za-z0-9_-]+", "_", name.strip())[:64] for name in names if not is_name(name)}
    taken = names - new.keys()
    if len({*new.values(), *taken}) < len(names) or not all(map(is_name, new.values())):
        return  # two functions would share a name
    for function in named:
        if (name := function["name"]) in new:
            function["name"] = new[name]
    for name, made in new.items():
        mended.note("function-name", "", f"{name[:60]!r} became {made!r}")


def _functions(given: dict[str, Any], outputs: tuple[Any, ...]) -> Any:
    """Every object of a row that names a function."""

    def objects(value: Any) -> list[dict[str, Any]]:
        return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []

    found = [tool.get("function") for tool in objects(given.get("tools"))] + objects(given.get("functions"))
    for messages in (given.get("messages"), *outputs):
        for message in objects(messages):
            found += [call.get("function") for call in objects(message.get("tool_calls"))]
            found.append(message.get("function_call"))
            found += [message] if message.get("role") in ("tool", "function") else []
    return (item for item in found if isinstance(item, dict) and isinstance(item.get("name"), str))
