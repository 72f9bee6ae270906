"""From an example and a template to text, fast: `renderer`, `user_parts`.

In: compiled templates, examples (mappings or dspy.Example). Out: functions from an example to a message's content;
errors name the field. Exports render a hundred thousand rows, so a printable text takes a short way that copies it as
it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from dspy_finetune.errors import RowError, UsageError
from dspy_finetune.prompts.template import Slot, Template, escape_line
from dspy_finetune.prompts.values import image_parts, input_json, input_text


def renderer(template: Template) -> Callable[[Any], str]:
    """A function from an example to a template's text. It raises RowError, naming the field."""
    parts = template.parts

    def render(example: Any) -> str:
        return "".join([part if isinstance(part, str) else slot_text(part, example) for part in parts])

    slots = [part for part in parts if isinstance(part, Slot)]
    if not slots or any(slot.mode == "json" for slot in slots):
        return render
    pieces, after = _pieces(parts)
    if len(pieces) == 1 and slots[0].mode == "text":
        return partial(_render_text, render, pieces[0][0], pieces[0][1], after)
    if len(pieces) == 1:
        before, name = pieces[0]

        def render_one(example: Any) -> str:
            try:
                value = example[name]
            except (KeyError, TypeError):
                return render(example)  # which says what is wrong
            # A printable text holds no line break and no half surrogate: it stands as it is.
            if type(value) is str and value.isprintable() and "\\" not in value:
                return before + value + after
            return render(example)

        return render_one

    def render_many(example: Any) -> str:
        text = ""
        try:
            for before, name in pieces:
                value = example[name]
                if type(value) is not str or not value.isprintable() or "\\" in value:
                    return render(example)
                text += before + value
        except (KeyError, TypeError):
            return render(example)
        return text + after

    return render_many


def _render_text(render: Callable[[Any], str], before: str, name: str, after: str, example: Any) -> str:
    """The template of one slot that takes texts as they are: what is ASCII holds no half surrogate."""
    try:
        value = example[name]
    except (KeyError, TypeError):
        return render(example)
    return before + value + after if type(value) is str and value.isascii() else render(example)


def _pieces(parts: tuple[str | Slot, ...]) -> tuple[list[tuple[str, str]], str]:
    """(literal before, field) for each slot, and the literal after the last."""
    pieces: list[tuple[str, str]] = []
    before = ""
    for part in parts:
        if isinstance(part, str):
            before = part
        else:
            pieces.append((before, part.name))
            before = ""
    return pieces, before


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
