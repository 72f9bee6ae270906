"""The rules of one row: which format it is in, whether that fits the method, and what must be in it.

In: a parsed row. Out: issues in an `IssueLog`, and a `RowFacts` with what the checks between rows need.
Not covered: text that is not JSON (`_jsonl`), rules between rows and counts per file (checker.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from dspy_finetune._jsonl import MISSING, decode, kind, read_python, shown
from dspy_finetune.errors import RowError
from dspy_finetune.export.checks.report import IssueLog
from dspy_finetune.export.dialects import HostRules, is_trained
from dspy_finetune.export.formats import (
    MEDIA,
    METHOD_OF,
    SHARED,
    WEIGHT_SPELLINGS,
    RowFormat,
    as_openai,
    from_json,
    other_method,
    sniff,
)

# Rows of nothing but text, which have no fault: nearly all rows of a file, told by a glance.

_ROLES = frozenset({"system", "user", "assistant"})

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
    """The row, if all of it is plain: SFT messages with the answer last, or a preference's prompt and two answers.

    None where it wants a closer look.
    """
    if method == "sft":
        found = _texts(row.get("messages")) if len(row) == 1 else None
        if found is None or found[0][-1] != "assistant":
            return None
        roles, texts = found
        asked, said, answer = roles[:-1], texts[:-1], texts[-1]
        system = said[0] if asked and asked[0] == "system" else None
        return PlainRow(roles, hash((asked, said)), hash(answer), _last_user(asked, said), system, (answer,))
    if method != "dpo" or len(row) != 3:
        return None
    given = row.get("input")
    prompt = _texts(given.get("messages")) if type(given) is dict and len(given) == 1 else None
    chosen, rejected = _texts(row.get("preferred_output")), _texts(row.get("non_preferred_output"))
    if prompt is None or chosen is None or rejected is None or chosen == rejected:
        return None
    asked, said = prompt
    if asked[-1] != "user" or "assistant" in asked or not chosen[0] == rejected[0] == ("assistant",):
        return None
    answers = (chosen[1][0], rejected[1][0])
    system = said[0] if asked[0] == "system" else None
    roles = (*asked, "assistant", "assistant")
    return PlainRow(roles, hash(prompt), pair_hash(hash(answers[0]), hash(answers[1])), said[-1], system, answers)


def _texts(messages: Any) -> _Texts | None:
    """The roles and texts of messages that have nothing else, and texts that are not blank; None for all others."""
    if type(messages) is not list or not messages:
        return None
    roles: list[str] = []
    texts: list[str] = []
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return None
        role, text = message.get("role"), message.get("content")
        if type(text) is not str or not text or text.isspace() or type(role) is not str or role not in _ROLES:
            return None
        roles.append(role)
        texts.append(text)
    return tuple(roles), tuple(texts)


def _last_user(roles: tuple[str, ...], texts: tuple[str, ...]) -> str:
    if roles and roles[-1] == "user":
        return texts[-1]
    return next((text for role, text in zip(reversed(roles), reversed(texts), strict=True) if role == "user"), "")


# The rules of tools, tool calls and tool messages.
#
# In: messages and the row's list of tools. Out: issues in an `IssueLog`.
# Whether the arguments fit the tool's schema is not checked: neither does the host look.

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_MAX_FUNCTIONS = 128


def decode_arguments(arguments: Any) -> tuple[str | None, str, Any]:
    """What is wrong with the arguments of a tool call.

    Returns:
        (code or None, message, the arguments as they should be written or `MISSING`).
    """
    if not isinstance(arguments, str):
        mended = json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else MISSING
        return "arguments-not-string", f"arguments are {kind(arguments)}, not a string of JSON", mended
    try:
        value = decode(arguments)
    except ValueError as error:
        if not arguments.strip():
            return "arguments-not-json", "arguments are an empty text, which is not JSON", "{}"
        value = read_python(arguments)
        if isinstance(value, dict):
            mended = json.dumps(value, ensure_ascii=False)
            return "arguments-python-repr", f"arguments are Python's repr: {shown(arguments)}", mended
        return "arguments-not-json", f"arguments are not JSON ({error}): {shown(arguments)}", MISSING
    inner, depth = value, 0
    while isinstance(inner, str) and depth < 8:
        depth += 1
        try:
            inner = decode(inner)
        except ValueError:
            inner = read_python(inner)
    if depth and isinstance(inner, dict):
        mended = json.dumps(inner, ensure_ascii=False)
        return "arguments-double-encoded", f"arguments were encoded {depth + 1} times: {shown(arguments)}", mended
    if not isinstance(value, dict):
        return "arguments-not-object", f"arguments are {kind(value)}, not an object: {shown(arguments)}", MISSING
    return None, "", arguments


def is_name(name: str) -> bool:
    """Whether hosts take the name of a function."""
    return _NAME.match(name) is not None


def check_function_name(log: IssueLog, line: int, path: str, name: Any) -> None:
    """A function's name has 1 to 64 letters, digits, underscores and hyphens."""
    if not isinstance(name, str) or not _NAME.match(name):
        found = f"{str(name)[:80]!r}" if isinstance(name, str) else kind(name)
        log.add(
            line, path, "function-name", f"the function's name is {found}; allowed are a-z A-Z 0-9 _ - (64 at most)"
        )


def check_tools(log: IssueLog, line: int, row: dict[str, Any], at: str = "") -> None:
    """The lists `tools` and `functions` and the flag beside them; `at` is the path of the object that holds them."""
    if "tools" in row and row["tools"] is not None:
        tools = row["tools"]
        if not isinstance(tools, list):
            log.add(line, f"{at}tools", "tools-invalid", f"tools are {kind(tools)}, not a list")
        else:
            for i, tool in enumerate(tools):
                _check_tool(log, line, f"{at}tools[{i}]", tool)
    if "functions" in row and row["functions"] is not None:
        functions = row["functions"]
        if not isinstance(functions, list) or not 1 <= len(functions) <= _MAX_FUNCTIONS:
            n = f"{len(functions)} of them" if isinstance(functions, list) else kind(functions)
            log.add(
                line, f"{at}functions", "tools-invalid", f"functions must be a list of 1 to {_MAX_FUNCTIONS}; found {n}"
            )
        else:
            for i, function in enumerate(functions):
                _check_function(log, line, f"{at}functions[{i}]", function)
    parallel = row.get("parallel_tool_calls")
    if not isinstance(parallel, bool | None):
        log.add(
            line,
            f"{at}parallel_tool_calls",
            "tools-invalid",
            f"parallel_tool_calls is {kind(parallel)}, not true or false",
        )


def _check_tool(log: IssueLog, line: int, path: str, tool: Any) -> None:
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        log.add(line, path, "tools-invalid", 'a tool is {"type": "function", "function": {"name", "parameters"}}')
        return
    _check_function(log, line, f"{path}.function", tool["function"])


def _check_function(log: IssueLog, line: int, path: str, function: Any) -> None:
    if not isinstance(function, dict):
        log.add(line, path, "tools-invalid", f"a function is {kind(function)}, not an object")
        return
    check_function_name(log, line, f"{path}.name", function.get("name"))
    if not isinstance(function.get("parameters", {}), dict):
        log.add(
            line, f"{path}.parameters", "tools-invalid", f"parameters are {kind(function['parameters'])}, not an object"
        )
    if not isinstance(function.get("strict"), (bool, type(None))):
        log.add(line, f"{path}.strict", "tools-invalid", f"strict is {kind(function['strict'])}, not true or false")


def check_tool_calls(log: IssueLog, line: int, path: str, calls: Any) -> None:
    """The `tool_calls` of an assistant message."""
    if not isinstance(calls, list) or not calls:
        log.add(line, path, "tool-call-invalid", f"tool_calls are {'an empty list' if calls == [] else kind(calls)}")
        return
    for i, call in enumerate(calls):
        here = f"{path}[{i}]"
        if not isinstance(call, dict):
            log.add(line, here, "tool-call-invalid", f"a tool call is {kind(call)}, not an object")
            continue
        if not isinstance(call.get("id"), str) or not call["id"]:
            log.add(line, f"{here}.id", "tool-call-invalid", "the tool call has no id")
        if call.get("type") != "function":
            log.add(line, f"{here}.type", "tool-call-invalid", f'the type is {call.get("type")!r:.40}, not "function"')
        check_called_function(log, line, f"{here}.function", call.get("function"))


def check_called_function(log: IssueLog, line: int, path: str, function: Any) -> None:
    """The `function` of a tool call, or the older `function_call`: a name and arguments as a JSON string."""
    if not isinstance(function, dict):
        log.add(line, path, "tool-call-invalid", f"the called function is {kind(function)}, not an object")
        return
    check_function_name(log, line, f"{path}.name", function.get("name"))
    if "arguments" not in function:
        log.add(
            line, f"{path}.arguments", "tool-call-invalid", "the called function has no arguments", remedy='write "{}"'
        )
        return
    code, message, _ = decode_arguments(function["arguments"])
    if code is not None:
        log.add(line, f"{path}.arguments", code, message)


def check_conversation(log: IssueLog, line: int, path: str, messages: list[Any], tools: Any, *, complete: bool) -> None:
    """Calls and answers fit together: each answer has its call, each call its answer, each called tool is declared.

    Args:
        log: Where issues go.
        line: Line of the row.
        path: Path of the list of messages.
        messages: The conversation.
        tools: The row's list of tools, if any.
        complete: True where a call at the very end is the answer that is trained, not one that waits for its tool.
    """
    declared = _declared(tools)
    open_calls: dict[str, str] = {}
    made: set[str] = set()
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        here = f"{path}[{i}]"
        if message.get("role") == "tool":
            answered = message.get("tool_call_id")
            if isinstance(answered, str) and answered not in made:
                log.add(line, f"{here}.tool_call_id", "tool-call-id-unknown", f"no call has the id {answered[:60]!r}")
            open_calls.pop(answered, None) if isinstance(answered, str) else None
        if message.get("role") != "assistant":
            continue
        calls = message.get("tool_calls")
        for j, call in enumerate(calls if isinstance(calls, list) else []):
            if not isinstance(call, dict):
                continue
            if isinstance(call.get("id"), str):
                made.add(call["id"])
                if not (complete and i == len(messages) - 1):
                    open_calls[call["id"]] = f"{here}.tool_calls[{j}]"
            function = call.get("function")
            name = function.get("name") if isinstance(function, dict) else None
            if declared is not None and isinstance(name, str) and name not in declared:
                place = f"{here}.tool_calls[{j}].function.name"
                log.add(line, place, "tool-undeclared", f"the row's tools do not list {name[:64]!r}")
    for identity, place in open_calls.items():
        log.add(line, place, "tool-call-unanswered", f"no tool message answers the call {identity[:60]!r}")


def _declared(tools: Any) -> set[str] | None:
    if not isinstance(tools, list):
        return None
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    return {f["name"] for f in functions if isinstance(f, dict) and isinstance(f.get("name"), str)}


# The rules of one list of messages: roles, contents, parts, images, weights.
#
# In: a list of messages and the method that trains on them. Out: issues in an `IssueLog`, and what was counted on the
# way.

ROLES = {
    "sft": frozenset({"system", "user", "assistant", "tool", "function"}),
    "dpo": frozenset({"system", "user", "assistant", "tool", "function"}),
    "rft": frozenset({"developer", "user", "assistant", "tool"}),
}
"""The roles of each method's schema: `developer` is known in reinforcement rows alone, `system` in the others."""

_MEANING = frozenset({*WEIGHT_SPELLINGS, "loss_scale", "mask"})
_KEYS = frozenset({"role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call", "refusal"})
_IMAGE_TYPES = ("image/jpeg", "image/jpg", "image/png", "image/webp")
_MAX_IMAGE_BYTES = 10 << 20
_DETAILS = ("low", "high", "auto")


@dataclass(kw_only=True)
class Counted:
    """What a list of messages holds."""

    n_images: int = 0
    """Image parts."""
    n_assistant: int = 0
    """Messages of the assistant."""
    n_trained: int = 0
    """Messages of the assistant whose weight is not 0."""


NULLABLE = frozenset({"content", "refusal", "function_call"})
"""Keys of a message that may hold null by OpenAI's API description."""


def check_messages(log: IssueLog, line: int, path: str, messages: list[Any], method: str, rules: HostRules) -> Counted:
    """Check each message of a list; the list itself is known to be one and not to be empty."""
    counted = Counted()
    before = None
    for i, message in enumerate(messages):
        here = f"{path}[{i}]"
        if not isinstance(message, dict):
            log.add(line, here, "message-not-object", f"a message is {kind(message)}, not an object")
            continue
        role = message.get("role")
        _check_role(log, line, here, message, ROLES[method] if method == "rft" else rules.roles, method)
        _check_weight(log, line, here, message, rules)
        if rules.must_alternate and role is not None and role == before and role != "tool":
            found = f"the message before it is of the role {role_name(role)} too"
            log.add(line, f"{here}.role", "roles-not-alternating", found)
        if rules.is_system_first and role == "system" and i:
            log.add(line, f"{here}.role", "system-not-first", "a system message stands behind others")
        before = role
        if role == "assistant":
            counted.n_assistant += 1
            counted.n_trained += is_trained(message)
            if message.get("tool_calls") is not None:
                check_tool_calls(log, line, f"{here}.tool_calls", message["tool_calls"])
            if message.get("function_call") is not None:
                check_called_function(log, line, f"{here}.function_call", message["function_call"])
        if role == "tool" and (not isinstance(message.get("tool_call_id"), str) or not message["tool_call_id"]):
            log.add(line, f"{here}.tool_call_id", "tool-call-id-missing", "the tool message names no call")
        counted.n_images += _check_content(log, line, here, message)
        for key, value in message.items():
            if value is None:
                if key not in NULLABLE:
                    log.add(line, f"{here}.{key}", "null-value", f"{key[:60]!r} is null")
            elif key in _MEANING and role == "assistant":
                found = f"{key!r} says what of the message is trained, and the host does not read it"
                log.add(line, f"{here}.{key}", "weight-invalid", found)
            elif key not in _KEYS:
                log.add(line, f"{here}.{key}", "unknown-key", f"a message has no key {key[:60]!r}")
    return counted


def text_of(message: Any) -> str:
    """A message's text: its content, or its text parts one after the other."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return ""


def seen_text(message: Any) -> str:
    """All that a message says, for comparing rows: its text, its images by name, its tool calls."""
    if not isinstance(message, dict):
        return ""
    content = message.get("content")
    parts = [text_of(message)]
    if isinstance(content, list):
        kinds = [part.get("type") for part in content if isinstance(part, dict)]
        parts += [f"[{name}]" for name in kinds if isinstance(name, str) and name != "text"]
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in [*functions, message.get("function_call")]:
        if isinstance(function, dict):
            parts.append(f"{function.get('name')}({function.get('arguments')})")
    return " ".join(part for part in parts if part)


def _check_role(
    log: IssueLog, line: int, here: str, message: dict[str, Any], roles: frozenset[str], method: str
) -> None:
    role = message.get("role")
    if role is None:
        log.add(line, f"{here}.role", "role-missing", "the message has no role")
    elif not isinstance(role, str) or role not in roles:
        known = ", ".join(sorted(roles))
        if role == "developer":
            log.add(line, f"{here}.role", "role-developer", f'"developer" is not a role of {method.upper()} rows')
        elif role == "system":
            log.add(line, f"{here}.role", "role-system", '"system" is not a role of RFT rows')
        else:
            found = repr(role[:60]) if isinstance(role, str) else kind(role)
            log.add(line, f"{here}.role", "role-unknown", f"the role is {found}; known are {known}")


def _check_weight(log: IssueLog, line: int, here: str, message: dict[str, Any], rules: HostRules) -> None:
    weight = message.get("weight")
    if weight is None:
        return
    if message.get("role") != "assistant" and not rules.has_weights_everywhere:
        log.add(line, f"{here}.weight", "weight-not-assistant", "only assistant messages have a weight")
    elif isinstance(weight, bool) or not isinstance(weight, int) or weight not in (0, 1):
        log.add(
            line, f"{here}.weight", "weight-invalid", f"the weight is {weight!r:.40}; it must be the integer 0 or 1"
        )


def _check_content(log: IssueLog, line: int, here: str, message: dict[str, Any]) -> int:
    """Check a content; returns the number of its images."""
    role, content, path = message.get("role"), message.get("content"), f"{here}.content"
    if isinstance(content, str):
        if not content.strip() and not _calls(message):
            log.add(line, path, "content-empty", f"the content of the {role_name(role)} message is empty")
        return 0
    if content is None:
        if role == "function" and "content" in message:
            return 0
        if not (role == "assistant" and (_calls(message) or isinstance(message.get("refusal"), str))):
            log.add(line, path, "content-missing", f"the {role_name(role)} message has no content")
        return 0
    if not isinstance(content, list):
        log.add(line, path, "content-type", f"the content is {kind(content)}, not text")
        return 0
    if role == "tool":
        log.add(line, path, "tool-content-not-string", "a tool's content is a list of parts")
    if not content:
        log.add(line, path, "content-empty", "the content has no part")
    n_images = n_refusals = 0
    for i, part in enumerate(content):
        part_type = part.get("type") if isinstance(part, dict) else None
        if part_type == "image_url":
            n_images += 1
            _check_image(log, line, f"{path}[{i}]", part, role)
        elif part_type == "refusal" and role == "assistant" and isinstance(part.get("refusal"), str):
            n_refusals += 1
        elif part_type != "text" or not isinstance(part.get("text"), str):
            found = (
                f"a part of type {part_type!r:.60}" if isinstance(part_type, str) else f"a part that is {kind(part)}"
            )
            what = f"{found} has no text" if part_type == "text" else f"{found} cannot be trained on here"
            log.add(line, f"{path}[{i}]", "part-invalid", what)
    if n_refusals and (n_refusals > 1 or len(content) > 1):
        log.add(line, path, "part-invalid", "a refusal must be the only part of its message")
    return n_images


def _check_image(log: IssueLog, line: int, path: str, part: dict[str, Any], role: Any) -> None:
    if role != "user":
        log.add(line, path, "image-role", f"an image stands in a message of the role {role_name(role)}")
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(image, dict) or not isinstance(url, str):
        log.add(line, path, "part-invalid", 'an image part is {"type": "image_url", "image_url": {"url": ...}}')
        return
    if image.get("detail", "auto") not in _DETAILS:
        log.add(line, f"{path}.image_url.detail", "image-detail", f"the detail is {image['detail']!r:.40}")
    head = url[:64].lower()
    if head.startswith("data:"):
        if not head.startswith(tuple(f"data:{name}" for name in _IMAGE_TYPES)):
            log.add(
                line, f"{path}.image_url.url", "image-skipped", f"the image is {head[5:].split(';')[0].split(',')[0]!r}"
            )
        elif (size := len(url) * 3 // 4) > _MAX_IMAGE_BYTES:
            log.add(line, f"{path}.image_url.url", "image-skipped", f"the image has about {size / (1 << 20):.1f} MB")
    elif not head.startswith("https://"):
        log.add(line, f"{path}.image_url.url", "image-url", f"the image's address starts {url[:24]!r}")


def _calls(message: dict[str, Any]) -> bool:
    return bool(message.get("tool_calls")) or message.get("function_call") is not None


def role_name(role: Any) -> str:
    """A role for a message, whatever it is."""
    return role[:40] if isinstance(role, str) else "nameless"


_CHAT_KEYS = frozenset({"messages", "tools", "parallel_tool_calls", "functions"})
_PREFERENCE_KEYS = frozenset({"input", "preferred_output", "non_preferred_output"})
_INPUT_KEYS = frozenset({"messages", "tools", "parallel_tool_calls"})


@dataclass(kw_only=True)
class RowFacts:
    """What a row holds, for the checks between rows; hashes rather than texts."""

    prompt: int
    """Hash of all that stands before the answer."""
    outputs: tuple[int, ...]
    """Hash of the answer; of the preferred and the rejected one for preference rows."""
    question: str
    """Text of the last user message."""
    system: str | None
    """Text of the system message, if there is one."""
    answers: tuple[str, ...]
    """Text of the answer, or of preferred and rejected."""
    roles: list[str]
    """The role of each message."""
    n_images: int = 0
    """Image parts."""


def needs_reading(row: dict[str, Any], form: str) -> str | None:
    """The code of a row whose parts stand in the wrong place or are JSON strings; None for a row as it should be."""
    if form in ("chat", "reinforcement"):
        if any(_is_json_text(row.get(key)) for key in ("messages", "tools")):
            return "json-string"
        return "key-misplaced" if isinstance(row.get("system"), str) and form == "chat" else None
    if form != "preference":
        return None
    given = row.get("input")
    if not isinstance(given, dict) or "messages" not in given:
        return "input-missing"
    if any(_is_json_text(place.get(key)) for place in (row, given) for key in ("messages", "tools")):
        return "json-string"
    if any(row.get(key) is not None for key in ("system", *SHARED)):
        return "key-misplaced"
    outputs = [row.get(name) for name in ("preferred_output", "non_preferred_output")]
    several = [output for output in outputs if isinstance(output, list) and len(output) > 1]
    starts = [output[0] for output in several if isinstance(output[0], dict)]
    is_whole = any(first.get("role") in ("system", "user", "developer") for first in starts)
    return "output-several" if is_whole else None


def _is_json_text(value: Any) -> bool:
    """Whether a value is a string that holds a JSON list or object."""
    return isinstance(value, str) and from_json(value) is not value


def check_row(
    log: IssueLog,
    line: int,
    row: dict[str, Any],
    method: str,
    *,
    rules: HostRules,
    is_given: bool = True,
    max_images: int | None = 10,
) -> RowFacts | None:
    """Check one row under a method; None where nothing can be said about its content.

    Args:
        log: Where issues go.
        line: Line of the row.
        row: The parsed row.
        method: `sft`, `dpo` or `rft`.
        rules: What the host takes.
        is_given: False where the method was read off the rows before: another format then mixes them.
        max_images: Most images in one row; None where the host has no limit.
    """
    form = sniff(row)
    if form in rules.formats and METHOD_OF[form] == method:
        return _check_plain_format(log, line, row, form, rules, max_images)
    if form == "unknown":
        keys = ", ".join(repr(key[:40]) for key in list(row)[:6]) or "none"
        log.add(line, "", "unknown-format", f"the row is in no known format; its keys: {keys}")
        return None
    if form == "other-method":
        log.add(line, "", "other-method", "the row is for KTO: one answer, and whether it is wanted")
        return None
    if method == "dpo" and form == "preference":
        return _check_preference(log, line, row, rules)
    if (method, form) in (("sft", "chat"), ("rft", "chat"), ("rft", "reinforcement")):
        return _check_chat(log, line, row, method, rules, max_images)
    _check_other(log, line, row, form, method, is_given=is_given)
    return None


def _check_plain_format(
    log: IssueLog, line: int, row: dict[str, Any], form: RowFormat, rules: HostRules, max_images: int | None
) -> RowFacts | None:
    """A row in another format that the host takes: text, prompt and completion, or TRL's preferences."""
    if form == "text":
        if not row["text"].strip():
            log.add(line, "text", "content-empty", "the text is empty")
        return RowFacts(
            prompt=digest(None), outputs=(digest(row["text"]),), question="", system=None, answers=(), roles=[]
        )
    both = [name for name in ("messages", "text") if row.get(name) is not None]
    if both:
        log.add(line, "", "mixed-formats", f"the row holds {form.replace('-', '/')} and {' and '.join(both)}")
    try:
        read = as_openai(row)
    except RowError as error:
        log.add(line, error.field or "", "unknown-format", error.problem, remedy=error.remedy)
        return None
    own = IssueLog()
    if form == "trl-preference":
        facts = _check_preference(own, line, read.row, rules)
    else:
        facts = _check_chat(own, line, read.row, "sft", rules, max_images)
    for issue in own.kept:
        log.add(line, "", issue.code, issue.message, remedy=issue.remedy)
    return facts


def _check_other(
    log: IssueLog, line: int, row: dict[str, Any], form: RowFormat, method: str, *, is_given: bool
) -> None:
    """A row that must be rewritten first, or that belongs to another method."""
    remedy = _why_not(row)
    if form == "preference-wrong-spelling":
        keys = "/".join(key for key in ("messages", "preferred", "chosen", "rejected", "non_preferred") if key in row)
        found = f"the row is spelled {keys}, not input.messages/preferred_output/non_preferred_output"
        log.add(line, "", form, found, remedy=remedy)
    elif form == "preference-old-names":
        found = "preferred_completion/non_preferred_completion are the names of before 2025-05"
        log.add(line, "", form, found, remedy=remedy)
    elif form == "trl-preference":
        log.add(line, "", "trl-preference-format", "the row is spelled prompt/chosen/rejected", remedy=remedy)
    elif form == "prompt-completion":
        found = "the row is a prompt/completion pair, not chat messages"
        log.add(line, "", "prompt-completion-format", found, remedy=remedy)
    elif form == "sharegpt":
        log.add(line, "", "sharegpt-format", "the row is spelled conversations/from/value", remedy=remedy)
    elif form.startswith("foreign"):
        keys = "/".join(key for key in list(row)[:4])
        log.add(line, "", "foreign-format", f"the row is spelled {keys}, as another program reads it", remedy=remedy)
    elif form == "text":
        log.add(line, "text", "text-format", "the row is plain text, without a question and an answer")
    for key in row:
        if key != "label" or form not in ("trl-preference", "preference-wrong-spelling"):
            meant = other_method({key: row[key]})
            if meant is not None:
                found = f"{key!r} changes what is trained, and the host does not read it"
                log.add(line, key, "other-method", found, remedy=meant)
    if METHOD_OF[form] != method:
        named = {"sft": "supervised chat", "dpo": "preference", "rft": "reinforcement"}
        if is_given:
            found = f"the row is in the {named[METHOD_OF[form]]} format, but the method is {method}"
            remedy = f"choose the method {METHOD_OF[form]}, or export the rows again for {method}"
            log.add(line, "", "format-method-mismatch", found, remedy=remedy)
        else:
            found = f"the row is in the {named[METHOD_OF[form]]} format, the rows before in the {named[method]} format"
            log.add(line, "", "mixed-formats", found)


def _why_not(row: dict[str, Any]) -> str | None:
    """What keeps a row from being rewritten, as a remedy; None where nothing does."""
    try:
        as_openai(row)
    except RowError as error:
        place = f"{error.field}: " if error.field else ""
        return f"mend the row first: {place}{error.problem}" + (f" ({error.remedy})" if error.remedy else "")
    return None


def _check_keys(log: IssueLog, line: int, row: dict[str, Any], known: frozenset[str], at: str, what: str) -> None:
    """Keys that a row or its input has beside the known ones: misplaced, of another method, or merely unknown."""
    for key in row.keys() - known:
        path, value = f"{at}{key}", row[key]
        if value is None or (key in MEDIA and value == []):
            log.add(line, path, "null-value", f"{key[:60]!r} is {'null' if value is None else 'empty'}")
        elif key == "system" or (key in SHARED and not at):
            if isinstance(value, str) or key != "system":
                remedy = _why_not(row)
                found = f"{key!r} stands beside the messages, not among them"
                log.add(line, path, "key-misplaced", found, remedy=remedy)
            else:
                found = f"{key!r} is {kind(value)}, beside the messages"
                log.add(line, path, "key-misplaced", found, remedy="write a text")
        elif (meant := other_method({key: value})) is not None or key in ("weight", *WEIGHT_SPELLINGS):
            found = f"{key!r} changes what is trained, and the host does not read it"
            log.add(line, path, "other-method", found, remedy=meant or "give the messages a weight of 0 or 1")
        else:
            log.add(line, path, "unknown-key", f"{what} has no key {key[:60]!r}")
    for key in row.keys() & known:
        if row[key] is None:
            log.add(line, f"{at}{key}", "null-value", f"{key!r} is null")


def _check_chat(
    log: IssueLog, line: int, row: dict[str, Any], method: str, rules: HostRules, max_images: int | None
) -> RowFacts | None:
    messages = row.get("messages")
    if method == "sft":
        _check_keys(log, line, row, _CHAT_KEYS, "", "a supervised row")
        both = [name for name in ("text", "prompt", "completion") if name in row and rules.formats]
        if both:
            log.add(line, "", "mixed-formats", f"the row holds messages and {' and '.join(both)}")
    if needs_reading(row, "chat") == "json-string":
        log.add(line, "messages", "json-string", "messages or tools are a JSON string", remedy=_why_not(row))
        row = _as_read(row)
        messages = row.get("messages")
    if not _is_list(log, line, "messages", messages):
        return None
    assert isinstance(messages, list)
    counted = check_messages(log, line, "messages", messages, method, rules)
    check_tools(log, line, row)
    check_conversation(log, line, "messages", messages, row.get("tools"), complete=True)
    if max_images is not None and counted.n_images > max_images:
        log.add(
            line,
            "messages",
            "too-many-images",
            f"the row has {counted.n_images} images; at most {max_images} are taken",
        )
    if method == "sft":
        last = messages[-1]
        if not counted.n_assistant:
            log.add(line, "messages", "no-assistant", "the row has no assistant message")
        elif not counted.n_trained:
            log.add(
                line, "messages", "weights-all-zero", f"all {counted.n_assistant} assistant messages have the weight 0"
            )
        if counted.n_assistant and isinstance(last, dict) and last.get("role") != "assistant":
            found = f"the last message is of the role {role_name(last.get('role'))}"
            log.add(line, f"messages[{len(messages) - 1}]", "last-not-assistant", found)
        elif rules.ends_with_answer and isinstance(last, dict) and _calls(last) and not text_of(last):
            found = "the row ends with a tool call; the host wants the answer in words"
            log.add(line, f"messages[{len(messages) - 1}]", "last-not-assistant", found)
    at = [i for i, message in enumerate(messages) if isinstance(message, dict) and message.get("role") == "assistant"]
    # What is left of the row without its last answer; a hole marks the place, since what follows is not part of the
    # prompt.
    before = [*messages[: at[-1]], None, *messages[at[-1] + 1 :]] if at else messages
    outputs = [[messages[at[-1]]]] if at else []
    extra = {key: value for key, value in row.items() if key != "messages"}
    return _facts(before, outputs, messages, extra, counted.n_images)


def _as_read(row: dict[str, Any]) -> dict[str, Any]:
    """The row in OpenAI's shape, or as it stands where it cannot be read."""
    try:
        read = as_openai(row)
    except RowError:
        return row
    return {**read.row, **read.rest}


def _check_preference(log: IssueLog, line: int, row: dict[str, Any], rules: HostRules) -> RowFacts | None:
    code = needs_reading(row, "preference")
    if code == "json-string":
        log.add(line, "input", code, "messages or tools are a JSON string", remedy=_why_not(row))
        row = _as_read(row)
    elif code == "output-several":
        log.add(line, "", code, "the outputs are whole chats", remedy=_why_not(row))
        row = _as_read(row)
    _check_keys(log, line, row, _PREFERENCE_KEYS, "", "a preference row")
    given = row.get("input")
    messages: list[Any] = []
    n_images = 0
    if not isinstance(given, dict) or "messages" not in given:
        at = "input.messages" if isinstance(given, dict) else "input"
        log.add(line, at, "input-missing", "the row has no input.messages", remedy=_why_not(row))
    elif _is_list(log, line, "input.messages", given["messages"]):
        messages = given["messages"]
        _check_keys(log, line, given, _INPUT_KEYS, "input.", "the input")
        counted = check_messages(log, line, "input.messages", messages, "dpo", rules)
        check_tools(log, line, given, "input.")
        check_conversation(log, line, "input.messages", messages, given.get("tools"), complete=False)
        n_images += counted.n_images
        ends = isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"
        if counted.n_assistant and (ends or not rules.takes_long_inputs):
            found = f"the input holds {counted.n_assistant} assistant message{'s' if counted.n_assistant > 1 else ''}"
            log.add(line, "input.messages", "input-has-assistant", found)
    outputs = []
    for name in ("preferred_output", "non_preferred_output"):
        output, images = _check_output(log, line, name, row, rules)
        n_images += images
        if output is not None:
            outputs.append(output)
    if n_images:
        log.add(line, "", "image-in-dpo", f"the row holds {n_images} image{'s' if n_images > 1 else ''}")
    if len(outputs) == 2 and outputs[0] == outputs[1]:
        log.add(line, "", "outputs-identical", "preferred_output and non_preferred_output are the same")
    if not messages or len(outputs) < 2:
        return None
    extra = {key: value for key, value in given.items() if key != "messages"} if isinstance(given, dict) else {}
    return _facts(messages, outputs, messages + outputs[0] + outputs[1], extra, n_images)


def _check_output(
    log: IssueLog, line: int, name: str, row: dict[str, Any], rules: HostRules
) -> tuple[list[Any] | None, int]:
    """Check one of the two outputs; returns it as a list of messages, and its images."""
    output = row.get(name)
    if output is None or output == []:
        log.add(line, name, "output-missing", f"the row has {'an empty' if output == [] else 'no'} {name}")
        return None, 0
    if not isinstance(output, list):
        log.add(line, name, "output-not-list", f"{name} is {kind(output)}, not a list with one assistant message")
        output = [output] if isinstance(output, dict) else [{"role": "assistant", "content": output}]
    if len(output) > 1:
        log.add(line, name, "output-several", f"{name} has {len(output)} messages; only one is taken")
    own = IssueLog()
    counted = check_messages(own, line, name, output, "dpo", rules)
    for issue in own.kept:
        # In an output, empty text is not one message among others: it is the answer.
        code = "output-empty" if issue.code == "content-empty" else issue.code
        log.add(line, issue.path, code, issue.message)
    for i, message in enumerate(output):
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(role, str) and role != "assistant":
            log.add(line, f"{name}[{i}].role", "output-role", f"the output's role is {role_name(role)}, not assistant")
    return output, counted.n_images


def _is_list(log: IssueLog, line: int, path: str, messages: Any) -> bool:
    if not isinstance(messages, list):
        log.add(line, path, "messages-missing", f"{path} is {kind(messages)}, not a list")
        return False
    if not messages:
        log.add(line, path, "messages-empty", f"{path} is an empty list")
        return False
    return True


def _facts(
    before: list[Any], outputs: list[list[Any]], messages: list[Any], extra: dict[str, Any], n_images: int
) -> RowFacts:
    objects = [message for message in messages if isinstance(message, dict)]
    users = [message for message in before if isinstance(message, dict) and message.get("role") == "user"]
    systems = [
        message for message in before if isinstance(message, dict) and message.get("role") in ("system", "developer")
    ]
    return RowFacts(
        prompt=digest([before, extra] if extra else before),
        outputs=tuple(digest(output) for output in outputs),
        question=seen_text(users[-1]) if users else "",
        system=text_of(systems[0]) if systems else None,
        answers=tuple("\n".join(seen_text(message) for message in output) for output in outputs),
        roles=[role_name(message.get("role")) for message in objects],
        n_images=n_images,
    )


def digest(value: Any) -> int:
    """A 64-bit hash of a JSON value, whatever the order of its keys; valid within this process."""
    return hash(json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")))


def pair_hash(chosen: int, rejected: int) -> int:
    """One hash of two outputs, the same in both orders but for its last bit, which says which came first.

    So a duplicate and a reversed preference are told apart without a third hash.
    """
    if chosen < rejected:
        return hash((chosen, rejected)) | 1
    return hash((rejected, chosen)) & ~1
