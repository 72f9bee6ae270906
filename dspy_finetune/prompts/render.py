"""From examples and a template to text: `renderer`, `column_renderer`, `user_parts`.

In: compiled templates, examples (mappings or dspy.Example). Out: functions from an example, or from many, to the
contents of messages; errors name the field. Exports render a hundred thousand rows, so there a whole field's texts are
looked at together, and stand as they are where none of them needs an escape.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from dspy_finetune.errors import RowError, UsageError
from dspy_finetune.prompts.codecs import checked_text, image_parts, input_json, input_text
from dspy_finetune.prompts.template import LINE_BREAKS, Slot, Template, escape_line


def renderer(template: Template) -> Callable[[Any], str]:
    """A function from an example to a template's text. It raises RowError, naming the field."""
    parts = template.parts

    def render(example: Any) -> str:
        return "".join([part if isinstance(part, str) else slot_text(part, example) for part in parts])

    return render


class Columns(NamedTuple):
    """The renderers of many examples under one system message: the same texts as one by one."""

    system: str | None
    """The system message of all; None for none."""
    questions: Callable[[Sequence[Any]], list[str]]
    """The user messages of examples. Raises RowError."""
    answers: Callable[[Sequence[Any]], list[str]]
    """The assistant messages of examples. Raises RowError."""


def column_renderer(template: Template) -> Callable[[Sequence[Any]], list[str]]:
    """`renderer` for many examples, a whole field at a time. It raises RowError, naming the field."""
    parts = template.parts

    def render(examples: Sequence[Any]) -> list[str]:
        columns = (
            repeat(part, len(examples)) if isinstance(part, str) else _slot_texts(part, examples) for part in parts
        )
        return list(map("".join, zip(*columns, strict=True)))

    return render


def _slot_texts(slot: Slot, examples: Sequence[Any]) -> list[str]:
    """The texts of one slot. Raises RowError, naming the field."""
    if slot.mode != "json":
        try:
            values = [example[slot.name] for example in examples]
        except (KeyError, TypeError):
            values = []  # slot_text says what is wrong
        if are_verbatim(values, one_line=slot.mode == "line"):
            return values
    return [slot_text(slot, example) for example in examples]


def are_verbatim(values: Sequence[Any], *, one_line: bool) -> bool:
    """Whether all values are texts that a slot takes as they are; judged on all of them joined, at C's speed."""
    if set(map(type, values)) != {str}:
        return False
    joined = "".join(values)
    try:
        checked_text(joined)
    except RowError:
        return False
    # What escape_line would change: line breaks, and backslashes that read as one.
    return not one_line or ("\\" not in joined and len(joined.splitlines()) < 2 and joined[-1:] not in LINE_BREAKS)


def slot_text(slot: Slot, example: Any) -> str:
    """The text of one slot. Raises RowError, naming the field."""
    if slot.mode == "line":
        return escape_line(field_text(slot.name, input_text, example))
    return str(field_text(slot.name, input_json if slot.mode == "json" else input_text, example))


def field_text(name: str, text_of: Callable[[Any], Any], example: Any) -> Any:
    """Apply a function to one field's value. Raises RowError, naming the field."""
    try:
        value = example[name]
    except KeyError as error:
        raise RowError("is missing", field=name, remedy="give the example this field, or rename its column") from error
    except TypeError as error:
        raise UsageError(f"example: a mapping or a dspy.Example is needed, got {type(example).__name__}") from error
    try:
        return text_of(value)
    except RowError as error:
        raise RowError(error.problem, field=name, value=value, remedy=error.remedy) from error


def user_parts(template: Template, images: Collection[str], example: Any) -> list[dict[str, Any]]:
    """The user content as parts, where some fields are images. Raises RowError, naming the field."""
    parts: list[dict[str, Any]] = []
    text = ""
    for part in template.parts:
        if isinstance(part, Slot) and part.name in images:
            if text:
                parts.append({"type": "text", "text": text})
                text = ""
            parts += field_text(part.name, image_parts, example)
        else:
            text += part if isinstance(part, str) else slot_text(part, example)
    return [*parts, {"type": "text", "text": text}] if text else parts
