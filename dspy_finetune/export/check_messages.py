"""The rules of one list of messages: roles, contents, parts, images, weights.

In: a list of messages and the method that trains on them. Out: issues in an `IssueLog`, and what was counted on the
way.
Not covered: which list of messages a row must have (check_rows.py), whether calls and answers fit (check_tools.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dspy_finetune.export.check_report import IssueLog
from dspy_finetune.export.check_text import kind
from dspy_finetune.export.check_tools import check_called_function, check_tool_calls

ROLES = {
    "sft": frozenset({"system", "user", "assistant", "tool", "function"}),
    "dpo": frozenset({"system", "user", "assistant", "tool", "function"}),
    "rft": frozenset({"developer", "user", "assistant", "tool"}),
}
"""The roles of each method's schema: `developer` is known in reinforcement rows alone, `system` in the others."""

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


def check_messages(log: IssueLog, line: int, path: str, messages: list[Any], method: str) -> Counted:
    """Check each message of a list; the list itself is known to be one and not to be empty."""
    counted = Counted()
    for i, message in enumerate(messages):
        here = f"{path}[{i}]"
        if not isinstance(message, dict):
            log.add(line, here, "message-not-object", f"a message is {kind(message)}, not an object")
            continue
        role = message.get("role")
        _check_role(log, line, here, message, method)
        _check_weight(log, line, here, message)
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
        for key in message:
            if key not in _KEYS:
                log.add(line, f"{here}.{key}", "unknown-key", f"a message has no key {key[:60]!r}")
    return counted


def is_trained(message: dict[str, Any]) -> bool:
    """True where the host trains on this assistant message: its weight is not 0."""
    weight = message.get("weight", 1)
    return not (isinstance(weight, (int, float)) and weight == 0)


def text_of(message: Any) -> str:
    """A message's text: its content, or its text parts one after the other."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return ""


def _check_role(log: IssueLog, line: int, here: str, message: dict[str, Any], method: str) -> None:
    role = message.get("role")
    if role is None:
        log.add(line, f"{here}.role", "role-missing", "the message has no role")
    elif not isinstance(role, str) or role not in ROLES[method]:
        known = ", ".join(sorted(ROLES[method]))
        if role == "developer":
            log.add(line, f"{here}.role", "role-developer", f'"developer" is not a role of {method.upper()} rows')
        elif role == "system":
            log.add(line, f"{here}.role", "role-system", '"system" is not a role of RFT rows')
        else:
            found = repr(role[:60]) if isinstance(role, str) else kind(role)
            log.add(line, f"{here}.role", "role-unknown", f"the role is {found}; known are {known}")


def _check_weight(log: IssueLog, line: int, here: str, message: dict[str, Any]) -> None:
    if "weight" not in message:
        return
    weight = message["weight"]
    if message.get("role") != "assistant":
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
