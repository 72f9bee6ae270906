"""What a value's text is: input values for prompts, output codecs for completions.

In: a field's value or annotation. Out: `input_text` for prompts; `codec_of(annotation)` with `encode` and `decode` for
answers. Inputs: a str stands as it is, an Enum member of str as its value; numbers, bools, lists, dicts, dataclasses
and pydantic models as JSON. Outputs: labels and numbers by their codecs, str as it is, everything else as JSON. Not
covered: layout (answers.py), the codecs of labels and numbers themselves (values.py).
"""

from __future__ import annotations

import contextlib
import enum
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal, get_origin

import dspy
import pydantic
import pydantic_core

from dspy_finetune.errors import AnswerError, RowError, UsageError
from dspy_finetune.prompts.template import Slot, Template, escape_line, json_line
from dspy_finetune.values import LabelSet, NumberFormat, answer_text

CodecKind = Literal["text", "label", "number", "json"]


def plain_value(value: Any) -> Any:
    """A value as JSON types, a str kind as str. Raises RowError where JSON cannot hold it."""
    if value is None:
        raise RowError("is None", value=value, remedy="give every field a value, or drop the row")
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, dspy.Image):
        raise RowError("is an image in a field of text", value=value, remedy="annotate the field as dspy.Image")
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    try:
        return pydantic_core.to_jsonable_python(value, inf_nan_mode="constants")
    except (ValueError, TypeError) as error:
        raise RowError(
            f"a {type(value).__name__} has no JSON form", value=value, remedy="give text, numbers, lists or models"
        ) from error


def input_text(value: Any) -> str:
    """The text of an input value: a str as it is, anything else as JSON on one line. Raises RowError."""
    plain = plain_value(value)
    return checked_text(plain) if isinstance(plain, str) else input_json(plain)


def input_json(value: Any) -> str:
    """The JSON text of an input value, a str in double quotes. Raises RowError."""
    try:
        return checked_text(json_line(plain_value(value)))
    except ValueError as error:
        if isinstance(error, RowError):
            raise
        raise RowError(
            f"{value!r:.80} holds a number that is not finite", value=value, remedy="correct the row"
        ) from error


def is_structured(annotation: Any) -> bool:
    """Whether a type's values are lists, dicts or models, which stand in prompts as JSON."""
    if annotation in (list, dict) or get_origin(annotation) in (list, dict):
        return True
    return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def checked_text(text: str) -> str:
    """The text itself. Raises RowError for half a surrogate pair, which neither a UTF-8 file nor a host can carry."""
    if text.isascii():  # which is known without looking at it
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(
            f"character {error.start} is half of a surrogate pair ({text[error.start]!r})",
            value=text,
            remedy="repair the text's encoding",
        ) from error
    return text


def image_parts(value: Any) -> list[dict[str, Any]]:
    """The content parts of an image field: a dspy.Image, its URL, or a list of them. Raises RowError."""
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in image_parts(item)]
    url = value.url if isinstance(value, dspy.Image) else value
    if not isinstance(url, str) or not url.startswith(("http://", "https://", "data:image/")):
        raise RowError(
            f"{value!r:.60} is not an image",
            value=value,
            remedy="give a dspy.Image, an http(s) URL or a data:image/ URL",
        )
    return [{"type": "image_url", "image_url": {"url": url}}]


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How one output is written and read."""

    annotation: Any
    """The output's type."""
    labels: LabelSet | None = None
    """The labels, where the output is one of a few."""
    number: NumberFormat | None = None
    """The number format, where the output is a number."""

    @property
    def kind(self) -> CodecKind:
        """What the text is."""
        if self.labels is not None:
            return "label"
        if self.number is not None:
            return "number"
        return "text" if self.annotation is str else "json"

    def encode(self, value: Any) -> str:
        """The text of a value. Raises RowError."""
        if self.labels is not None:
            return self.labels.encode(value)
        if value is None and self.kind != "json":
            raise RowError("is None", value=value, remedy="give every output a value, or drop the row")
        if self.number is not None:
            return self.number.encode(value)
        if self.annotation is not str:
            return checked_text(json_line(self.to_json(value)))
        if not isinstance(value, str):
            raise RowError(
                f"{value!r:.80} ({type(value).__name__}) is not a text",
                value=value,
                remedy="convert it, or annotate the output",
            )
        return checked_text(str(value.value) if isinstance(value, enum.Enum) else value)

    def decode(self, text: str, *, name: str | None = None) -> Any:
        """The value of a text; `name` is the output's, which may stand before it. Raises AnswerError."""
        if self.labels is not None:
            return self.labels.decode(text, name=name)
        if self.number is not None:
            return self.number.decode(text, name=name)
        return text if self.annotation is str else self.from_json(loads(text), text)

    def read(self, value: Any, *, name: str | None = None) -> Any:
        """The label or number that a program's answer is, a text or a value; anything else as it is.

        Raises:
            AnswerError: It is none.
        """
        if self.labels is not None:
            return self.labels.read(value, name=name)
        return value if self.number is None else self.number.read(value, name=name)

    def to_json(self, value: Any) -> Any:
        """The value as JSON types, for a JSON answer. Raises RowError."""
        if self.labels is not None:
            text = self.labels.encode(value)
            return value_of_text if (value_of_text := self._native(text)) is not None else text
        if self.kind == "text":
            return self.encode(value)
        if self.number is not None:
            self.number.encode(value)  # refuses what is no number
            return (
                int(value) if self.number.kind == "int" else str(value) if isinstance(value, Decimal) else float(value)
            )
        try:
            # By way of JSON: a model or Enum of the user's and the one that a saved prompt rebuilt are the same there.
            bare = json.dumps(None if value is None else plain_value(value), allow_nan=False)
            checked = self._adapter.validate_json(bare, strict=True)
            plain = self._adapter.dump_python(checked, mode="json")
            written = json.dumps(plain, allow_nan=False)
            back = self._adapter.validate_json(written, strict=True)
        except RowError:
            raise
        except ValueError as error:
            raise RowError(
                f"{value!r:.80} does not fit the output's type ({_first_line(error)})",
                value=value,
                remedy="correct the row",
            ) from error
        if back != checked:  # a type of the user's own may round a date or a number as it is written
            raise RowError(
                f"{value!r:.80} is written as {written:.80}, which is read back as another value",
                value=value,
                remedy="write the output's type so that nothing is rounded, or round the column",
            )
        return plain

    def from_json(self, value: Any, text: str) -> Any:
        """The value from JSON types. Raises AnswerError."""
        if self.labels is not None or self.number is not None:
            is_text = isinstance(value, str) and self.annotation is not Decimal
            if self.number is not None and is_text:  # the layout says types, and a schema holds to them
                raise AnswerError(f"the answer {text!r:.80} holds the text {value!r:.40} for a number", text=text)
            try:
                return self.read(value)
            except AnswerError as error:
                raise AnswerError(f"the answer {text!r:.80} holds {value!r:.40}: {error}", text=text) from error
        try:
            # In JSON mode, strictly: "5" is no list, but a date is its text.
            return self._adapter.validate_json(json.dumps(value), strict=True)
        except ValueError as error:
            raise AnswerError(
                f"the answer {text!r:.80} does not fit the output's type ({_first_line(error)})", text=text
            ) from error

    def _native(self, text: str) -> bool | int | None:
        """A bool or int label stands in JSON as itself, if its text is the usual one."""
        assert self.labels is not None
        for label, label_text in self.labels.items():
            if label_text == text and type(label) in (bool, int) and text == json.dumps(label):
                return bool(label) if type(label) is bool else int(label)
        return None

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of the value in a JSON answer."""
        if self.labels is None:
            return self._adapter.json_schema()
        if all(type(label) is bool and self._native(text) is not None for label, text in self.labels.items()):
            return {"type": "boolean"}
        if all(type(label) is int and self._native(text) is not None for label, text in self.labels.items()):
            return {"type": "integer", "enum": list(self.labels)}
        return {"type": "string", "enum": [*self.labels.texts]}

    @cached_property
    def _adapter(self) -> pydantic.TypeAdapter[Any]:
        return pydantic.TypeAdapter(self.annotation)


def codec_of(annotation: Any, *, labels: LabelSet | None = None, number: NumberFormat | None = None) -> Codec:
    """The codec of an output's type. Raises UsageError where a number format is given to what is no number."""
    kinds: dict[Any, Literal["float", "int", "decimal"]] = {float: "float", int: "int", Decimal: "decimal"}
    kind = kinds.get(annotation) if isinstance(annotation, type) else None
    if number is not None and kind is None:
        raise UsageError(f"number: the output's type {annotation!r} is not int, float or Decimal")
    if labels is not None:
        return Codec(annotation=annotation, labels=labels)
    if kind is not None:
        return Codec(annotation=annotation, number=replace(number or NumberFormat(), kind=kind))
    return Codec(annotation=annotation, labels=LabelSet.of(annotation))


def loads(text: str) -> Any:
    """Parse a JSON answer strictly: one value, maybe in a fenced block; no doubled keys, no NaN. Raises AnswerError."""
    try:
        return _loads(text)
    except (ValueError, RecursionError) as error:
        body = answer_text(text)
        if body != text.strip():
            with contextlib.suppress(ValueError, RecursionError):
                return _loads(body)
        raise AnswerError(f"the answer {text!r:.80} is not JSON ({_first_line(error)})", text=text) from error


def _loads(text: str) -> Any:
    body = text.strip()
    if body.startswith("```") and body.endswith("```") and "\n" in body:
        body = body[3:-3].partition("\n")[2]
    return json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same key twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _first_line(error: BaseException) -> str:
    if isinstance(error, pydantic.ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# ----------------------------------------------------------------------------------------------------
# From examples and a template to text: `renderer`, `user_parts`.
#
# In: compiled templates, examples (mappings or dspy.Example). Out: functions from an example to the contents of
# messages; errors name the field.


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
