"""The rules of one row: which format it is in, whether that fits the method, and what must be in it.

In: a parsed row. Out: issues in an `IssueLog`, and a `RowFacts` with what the checks between rows need.
Not covered: text that is not JSON (check_text.py), rules between rows (check_sets.py), counts per file (checks.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from dspy_finetune.export.check_messages import check_messages, role_name, text_of
from dspy_finetune.export.check_report import IssueLog
from dspy_finetune.export.check_text import kind
from dspy_finetune.export.check_tools import check_conversation, check_tools

RowFormat = Literal[
    "chat",
    "reinforcement",
    "preference",
    "preference-wrong-spelling",
    "preference-old-names",
    "trl-preference",
    "prompt-completion",
    "sharegpt",
    "unknown",
]

METHOD_OF: dict[str, str] = {
    "chat": "sft",
    "prompt-completion": "sft",
    "sharegpt": "sft",
    "reinforcement": "rft",
    "preference": "dpo",
    "preference-wrong-spelling": "dpo",
    "preference-old-names": "dpo",
    "trl-preference": "dpo",
}
"""What each format is meant to train."""

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


def sniff(row: dict[str, Any]) -> RowFormat:
    """The format of a row, by its keys."""
    if "preferred_output" in row or "non_preferred_output" in row:
        return "preference"
    if "preferred_completion" in row or "non_preferred_completion" in row:
        return "preference-old-names"
    rejected = "rejected" in row or "non_preferred" in row
    if "chosen" in row and rejected and "prompt" in row:
        return "trl-preference"
    # A lone "preferred" beside messages may be a grader's key of a reinforcement row; with its counterpart it is a
    # preference.
    if ("preferred" in row or "chosen" in row) and (rejected or isinstance(row.get("preferred"), list)):
        return "preference-wrong-spelling"
    if isinstance(row.get("input"), dict) and "messages" in row["input"]:
        return "preference"
    if "messages" in row:
        return "reinforcement" if _is_reinforcement(row) else "chat"
    if "prompt" in row and "completion" in row:
        return "prompt-completion"
    return "sharegpt" if isinstance(row.get("conversations"), list) else "unknown"


def _is_reinforcement(row: dict[str, Any]) -> bool:
    messages = row["messages"]
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        return False
    roles = [message.get("role") for message in messages]
    # Keys beside the messages feed graders; without an answer to imitate they are what the row trains on.
    return roles[-1] == "user" and "assistant" not in roles and not row.keys() <= _CHAT_KEYS and "system" not in roles


def check_row(
    log: IssueLog, line: int, row: dict[str, Any], method: str, *, is_given: bool = True, max_images: int | None = 10
) -> RowFacts | None:
    """Check one row under a method; None where nothing can be said about its content.

    Args:
        log: Where issues go.
        line: Line of the row.
        row: The parsed row.
        method: `sft`, `dpo` or `rft`.
        is_given: False where the method was read off the rows before: another format then mixes them.
        max_images: Most images in one row; None where the host has no limit.
    """
    form = sniff(row)
    if form == "unknown":
        keys = ", ".join(repr(key[:40]) for key in list(row)[:6]) or "none"
        log.add(line, "", "unknown-format", f"the row is in no known format; its keys: {keys}")
        return None
    if method == "dpo" and form == "preference":
        return _check_preference(log, line, row)
    if (method, form) in (("sft", "chat"), ("rft", "chat"), ("rft", "reinforcement")):
        return _check_chat(log, line, row, method, max_images)
    _check_other(log, line, row, form, method, is_given=is_given)
    return None


def _check_other(
    log: IssueLog, line: int, row: dict[str, Any], form: RowFormat, method: str, *, is_given: bool
) -> None:
    """A row that must be rewritten first, or that belongs to another method."""
    if form == "preference-wrong-spelling":
        keys = "/".join(key for key in ("messages", "preferred", "chosen", "rejected", "non_preferred") if key in row)
        log.add(line, "", form, f"the row is spelled {keys}, not input.messages/preferred_output/non_preferred_output")
    elif form == "preference-old-names":
        log.add(line, "", form, "preferred_completion/non_preferred_completion are the names of before 2025-05")
    elif form == "trl-preference":
        log.add(line, "", "trl-preference-format", "the row is spelled prompt/chosen/rejected")
    elif form == "prompt-completion":
        log.add(line, "", "prompt-completion-format", "the row is a prompt/completion pair, not chat messages")
    elif form == "sharegpt":
        log.add(line, "", "sharegpt-format", "the row is spelled conversations/from/value")
    if METHOD_OF[form] != method:
        named = {"sft": "supervised chat", "dpo": "preference", "rft": "reinforcement"}
        if is_given:
            found = f"the row is in the {named[METHOD_OF[form]]} format, but the method is {method}"
            remedy = f"choose the method {METHOD_OF[form]}, or export the rows again for {method}"
            log.add(line, "", "format-method-mismatch", found, remedy=remedy)
        else:
            found = f"the row is in the {named[METHOD_OF[form]]} format, the rows before in the {named[method]} format"
            log.add(line, "", "mixed-formats", found)


def _check_chat(log: IssueLog, line: int, row: dict[str, Any], method: str, max_images: int | None) -> RowFacts | None:
    messages = row.get("messages")
    if method == "sft":
        for key in row.keys() - _CHAT_KEYS:
            log.add(line, key, "unknown-key", f"a supervised row has no key {key[:60]!r}")
    if not _is_list(log, line, "messages", messages):
        return None
    assert isinstance(messages, list)
    counted = check_messages(log, line, "messages", messages, method)
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
    at = [i for i, message in enumerate(messages) if isinstance(message, dict) and message.get("role") == "assistant"]
    # What is left of the row without its last answer; a hole marks the place, since what follows is not part of the
    # prompt.
    before = [*messages[: at[-1]], None, *messages[at[-1] + 1 :]] if at else messages
    outputs = [[messages[at[-1]]]] if at else []
    extra = {key: value for key, value in row.items() if key != "messages"}
    return _facts(before, outputs, messages, extra, counted.n_images)


def _check_preference(log: IssueLog, line: int, row: dict[str, Any]) -> RowFacts | None:
    for key in row.keys() - _PREFERENCE_KEYS:
        log.add(line, key, "unknown-key", f"a preference row has no key {key[:60]!r}")
    given = row.get("input")
    messages: list[Any] = []
    n_images = 0
    if not isinstance(given, dict) or "messages" not in given:
        log.add(
            line,
            "input.messages" if isinstance(given, dict) else "input",
            "input-missing",
            "the row has no input.messages",
        )
    elif _is_list(log, line, "input.messages", given["messages"]):
        messages = given["messages"]
        for key in given.keys() - _INPUT_KEYS:
            log.add(line, f"input.{key}", "unknown-key", f"the input has no key {key[:60]!r}")
        counted = check_messages(log, line, "input.messages", messages, "dpo")
        check_tools(log, line, given, "input.")
        check_conversation(log, line, "input.messages", messages, given.get("tools"), complete=False)
        n_images += counted.n_images
        if counted.n_assistant:
            found = f"the input holds {counted.n_assistant} assistant message{'s' if counted.n_assistant > 1 else ''}"
            log.add(line, "input.messages", "input-has-assistant", found)
    outputs = []
    for name in ("preferred_output", "non_preferred_output"):
        output, images = _check_output(log, line, name, row)
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


def _check_output(log: IssueLog, line: int, name: str, row: dict[str, Any]) -> tuple[list[Any] | None, int]:
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
    counted = check_messages(own, line, name, output, "dpo")
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
        question=text_of(users[-1]) if users else "",
        system=text_of(systems[0]) if systems else None,
        answers=tuple("\n".join(text_of(message) for message in output) for output in outputs),
        roles=[role_name(message.get("role")) for message in objects],
        n_images=n_images,
    )


def digest(value: Any) -> int:
    """A 64-bit hash of a JSON value, whatever the order of its keys; valid within this process."""
    return hash(json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")))
