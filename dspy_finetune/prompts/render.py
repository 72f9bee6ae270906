"""From examples and a template to text: `renderer`, `user_parts`.

In: compiled templates, examples (mappings or dspy.Example). Out: functions from an example to the contents of messages;
errors name the field.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from dspy_finetune.errors import RowError, UsageError
from dspy_finetune.prompts.codecs import image_parts, input_json, input_text
from dspy_finetune.prompts.template import Slot, Template, escape_line


def renderer(template: Template) -> Callable[[Any], str]:
    """A function from an example to a template's text. It raises RowError, naming the field."""
    parts = template.parts

    def render(example: Any) -> str:
        return "".join([part if isinstance(part, str) else slot_text(part, example) for part in parts])

    return render


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
