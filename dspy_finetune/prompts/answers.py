"""Values as text: `input_text` for prompts, a `Codec` per output, and how answers are laid out and read back.

In: a field's value or annotation. Out: its text in a prompt; `codec_of(annotation)` with `encode` and `decode` for
answers; and `TemplateLayout` and `JsonLayout` over the codecs in order: `write` (values -> assistant text) and `read`
(text -> values), each other's inverse.

Inputs: a str stands as it is, an Enum member of str as its value; numbers, bools, lists, dicts, dataclasses and
pydantic models as JSON; None, where the type has it, as null. Outputs: labels and numbers by their codecs (values.py),
str as it is, everything else as JSON.

Default layouts: a single output is its own text. Several outputs of which the first is a label: the label on the first
line, then one line `Name: value` per output, line breaks inside a value as visible escapes. Any other several outputs:
one JSON object with every output as a key, which hosts with structured output can be held to (`response_format`).

Reading tries the exact layout first, then, for a template, the same with other letter case and spacing, then the same
without the reasoning and the end marks around it; labels and numbers in it are read by values.py. For a label
followed by one text ("A: because ...") it also accepts a label with another mark ("A. because", "A - because", "A"),
and a lead such as "I would choose A: because". A lead that names two labels, or none, raises `AnswerError`; so does an
answer in which a later line opens with another label.
"""

from __future__ import annotations

import contextlib
import enum
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property, partial
from typing import Any, Literal, get_args, get_origin

import dspy
import pydantic
import pydantic_core

from dspy_finetune.errors import AnswerError, RowError, UsageError
from dspy_finetune.prompts.template import Slot, Template, escape_line, json_line
from dspy_finetune.values import LabelSet, NumberFormat, answer_text, label_lead

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


def is_optional(annotation: Any) -> bool:
    """Whether None is one of a type's values: `str | None`."""
    return annotation is type(None) or type(None) in get_args(annotation)


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

    @property
    def reader(self) -> LabelSet | NumberFormat | None:
        """What reads a program's answer, a text or a value; None for a text or JSON, which is taken as it is."""
        return self.labels if self.labels is not None else self.number

    def read(self, value: Any, *, name: str | None = None) -> Any:
        """The label or number that a program's answer is, a text or a value; anything else as it is.

        Raises:
            AnswerError: It is none.
        """
        return value if self.reader is None else self.reader.read(value, name=name)

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


def renderer(template: Template) -> Callable[[Any], str]:
    """A function from an example to a template's text. It raises RowError, naming the field."""
    parts = template.parts

    def render(example: Any) -> str:
        return "".join([part if isinstance(part, str) else slot_text(part, example) for part in parts])

    return render


def slot_text(slot: Slot, example: Any) -> str:
    """The text of one slot. Raises RowError, naming the field."""
    text_of = input_json if slot.mode == "json" else input_text
    if slot.is_optional:
        text_of = partial(_text_or_null, text_of)
    text = str(field_text(slot.name, text_of, example))
    return escape_line(text) if slot.mode == "line" else text


def _text_or_null(text_of: Callable[[Any], str], value: Any) -> str:
    return "null" if value is None else text_of(value)


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


_AFTER_LABEL = r"[\"'`*)\]]*\s*(?:[:.,;)\u2013\u2014]|-+(?=\s)|\s-+\s|\n|(?=\s+because\b)|$)\s*"


def default_source(codecs: Mapping[str, Codec]) -> str:
    """The default layout's template, or "json"."""
    names = list(codecs)
    if len(names) == 1:
        return f"{{{names[0]}}}"
    if codecs[names[0]].kind != "label":
        return "json"
    return "\n".join([f"{{{names[0]}}}", *(f"{title(name)}: {{{name}}}" for name in names[1:])])


def title(name: str) -> str:
    """A field's name as words: `title_a` -> "Title a"."""
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


class JsonLayout:
    """One JSON object per answer, its keys in the signature's order."""

    source = "json"
    label_field: str | None = None
    is_one_line = True

    def __init__(self, codecs: Mapping[str, Codec]) -> None:
        self._codecs = dict(codecs)

    def write(self, values: Any) -> str:
        """The assistant text. Raises RowError naming the field."""
        return checked_text(
            json_line({name: field_text(name, codec.to_json, values) for name, codec in self._codecs.items()})
        )

    def read(self, text: str) -> dict[str, Any]:
        """The values. Raises AnswerError: not JSON, keys missing or unknown, a value of the wrong type."""
        found = loads(text)
        if not isinstance(found, dict) or set(found) != set(self._codecs):
            keys = ", ".join(self._codecs)
            raise AnswerError(f"the answer {text!r:.80} is not a JSON object with exactly the keys {keys}", text=text)
        return {name: codec.from_json(found[name], text) for name, codec in self._codecs.items()}

    def response_format(self) -> dict[str, Any]:
        """What the OpenAI wire calls `response_format`: a strict JSON schema of the answer."""
        properties: dict[str, Any] = {}
        definitions: dict[str, Any] = {}
        for name, codec in self._codecs.items():
            schema = codec.json_schema()
            definitions.update(schema.pop("$defs", {}))
            properties[name] = schema
        schema = {"type": "object", "properties": properties}
        if definitions:
            schema["$defs"] = definitions
        strict = _close(schema)
        return {"type": "json_schema", "json_schema": {"name": "answer", "strict": strict, "schema": schema}}


def _close(schema: dict[str, Any]) -> bool:
    """Require every key of every object and forbid others, as strict mode asks. False where an object stays open."""
    named = [part for key in ("properties", "$defs") for part in schema.get(key, {}).values()]
    parts = [*named, *schema.get("anyOf", []), *([schema["items"]] if "items" in schema else [])]
    closed = min(map(_close, parts), default=True)  # min, not all: every part is to be closed
    schema.pop("default", None)
    if "properties" in schema:
        schema["required"], schema["additionalProperties"] = list(schema["properties"]), False
        return closed
    return closed and bool(schema) and schema.get("type") != "object"


class TemplateLayout:
    """A template with output slots.

    Raises:
        UsageError: An output has no slot, or the layout could not be read back.
    """

    def __init__(self, source: str, codecs: Mapping[str, Codec]) -> None:
        self.source = source
        self._codecs = dict(codecs)
        of_kind = {kind: [name for name in codecs if codecs[name].kind in kinds] for kind, kinds in _KINDS.items()}
        self._template = Template(
            source, tuple(codecs), what="completion", coded=of_kind["coded"], structured=of_kind["json"]
        )
        for name in codecs:
            if name not in self._template.names:
                raise UsageError(
                    f"completion: the output {{{name}}} has no place in {source!r}; known here: {_braced(codecs)}"
                )
        parts = self._template.parts
        self._slots = [part for part in parts if isinstance(part, Slot)]
        if len(self._slots) != len(codecs):
            raise UsageError(f"completion: an output stands twice in {source!r}; name each once")
        self._is_whole = len(parts) == 1
        self._ends = self._check_ends()
        befores = ["", *(part if isinstance(part, str) else "" for part in parts)]
        self._steps = [
            (befores[index], part.name, self._writer(part))
            for index, part in enumerate(parts)
            if isinstance(part, Slot)
        ]
        self._tail = parts[-1] if isinstance(parts[-1], str) else ""
        first = parts[0]
        is_label_first = isinstance(first, Slot) and codecs[first.name].labels is not None
        self.label_field = first.name if is_label_first and isinstance(first, Slot) else None
        self.is_one_line = "\n" not in source and all(slot.mode != "text" for slot in self._slots)
        self._pair = self._find_pair()

    def _find_pair(self) -> tuple[str, LabelSet, str] | None:
        """(label field, labels, text field) where the layout is a label, a mark and one text."""
        parts = self._template.parts
        if self.label_field is None or len(parts) != 3 or not isinstance(parts[2], Slot):
            return None
        labels = self._codecs[self.label_field].labels
        assert labels is not None
        assert isinstance(parts[1], str)
        is_mark = re.fullmatch(r"\s*[:.,;\u2013\u2014-]\s*", parts[1])
        return (
            (self.label_field, labels, parts[2].name)
            if is_mark and self._codecs[parts[2].name].kind == "text"
            else None
        )

    def _check_ends(self) -> dict[str, Callable[[str, int, str], int]]:
        """How each label and number is found to end; refuses what could be read in two ways."""
        ends: dict[str, Callable[[str, int, str], int]] = {}
        parts = self._template.parts
        for index, slot in enumerate(parts):
            if not isinstance(slot, Slot) or slot.mode != "coded":
                continue
            after = parts[index + 1] if index + 1 < len(parts) else ""
            assert isinstance(after, str), "slots never touch"
            labels = self._codecs[slot.name].labels
            if labels is None:
                if after and re.match(r"[\w.,+-]", after):
                    raise UsageError(
                        f"completion: {{{slot.name}}} is followed by {after[:1]!r}, which a number could hold"
                    )
                ends[slot.name] = _number_end
                continue
            texts = sorted(labels.texts, key=len, reverse=True)
            for text in texts:
                for other in texts:
                    if text != other and after and (other + after).startswith(text + after):
                        raise UsageError(
                            f"completion: {text + after!r} could not be told from {other + after!r}; "
                            "choose other labels"
                        )
            ends[slot.name] = _label_end(texts)
        return ends

    def _writer(self, slot: Slot) -> Callable[[Any], str]:
        """A function from an output's value to what stands in its slot. It raises RowError."""
        codec = self._codecs[slot.name]
        if codec.kind != "text":
            return codec.encode
        if slot.mode == "json":
            return lambda value: json_line(codec.encode(value))
        if slot.mode == "text":
            return lambda value: value if type(value) is str and value.isascii() else codec.encode(value)
        return lambda value: escape_line(value if type(value) is str and value.isascii() else codec.encode(value))

    def write(self, values: Any) -> str:
        """The assistant text. Raises RowError naming the field."""
        text = ""
        for literal, name, writer in self._steps:
            try:
                text += literal + writer(values[name])
            except (KeyError, TypeError, RowError):
                field_text(name, writer, values)  # which fails again, with the field's name
                raise
        return text + self._tail

    def read(self, text: str) -> dict[str, Any]:
        """The values. Raises AnswerError."""
        if self._is_whole:
            return {name: codec.decode(text, name=name) for name, codec in self._codecs.items()}
        try:
            return self._read(text)
        except AnswerError:
            body = answer_text(text)
            if body == text.strip():
                raise
        try:
            return self._read(body)
        except AnswerError as error:
            raise AnswerError(str(error), text=text) from error

    def _read(self, text: str) -> dict[str, Any]:
        if self._pair:
            self._refuse_second_label(text, self._pair[1])
        found = self._template.read(text, self._ends)
        if found is None:
            found = self._template.read(text.strip(), self._ends)
        if found is not None:
            return {name: self._decode(name, found[name], text) for name in self._codecs}
        if self._pair:
            return self._read_pair(text, *self._pair)
        return self._read_loosely(text)

    def _decode(self, name: str, found: Any, text: str) -> Any:
        codec = self._codecs[name]
        slot = next(slot for slot in self._slots if slot.name == name)
        if slot.mode == "json" and codec.kind == "text":
            if not isinstance(found, str):
                raise AnswerError(f"the answer {text!r:.80} holds no text for {name}", text=text)
            return found
        try:
            return codec.from_json(found, text) if slot.mode == "json" else codec.decode(found, name=name)
        except AnswerError as error:
            raise AnswerError(f"{name}: {error}", text=text) from error

    def _read_loosely(self, text: str) -> dict[str, Any]:
        """The template's form with any letter case and spacing in its own words."""
        pattern = ""
        for part in self._template.parts:
            if isinstance(part, str):
                pattern += r"\s*".join(re.escape(word) for word in re.split(r"\s+", part))
            elif part.mode == "json":
                pattern += rf'(?P<{part.name}>"(?:[^"\\]|\\.)*"|.*?)'
            else:
                pattern += rf"(?P<{part.name}>.*?)"
        match = re.fullmatch(rf"\s*{pattern}\s*", text, re.IGNORECASE | re.DOTALL)
        if match is None:
            raise AnswerError(f"the answer {text!r:.80} does not have the form {self.source!r}", text=text)
        read: dict[str, Any] = {}
        for slot in self._slots:
            found: Any = match[slot.name].strip()
            if slot.mode == "json":
                found = loads(found)
            read[slot.name] = self._decode(slot.name, found, text)
        return read

    def _refuse_second_label(self, text: str, labels: LabelSet) -> None:
        lines = [line for line in text.splitlines() if line.strip()]
        for line in lines[1:]:
            if any(re.match(rf"{re.escape(label)}\s*[:.)]", line.strip()) for label in labels.texts):
                raise AnswerError(f"the answer {text!r:.80} names two labels", text=text)

    def _read_pair(self, text: str, label_field: str, labels: LabelSet, text_field: str) -> dict[str, Any]:
        body = text.strip().lstrip("\"'`*([").lstrip()
        lead = label_lead(label_field).match(body)
        rest = body[lead.end() :].lstrip("\"'`*([ ") if lead else body
        names = "|".join(re.escape(label) for label in sorted(labels.spellings, key=len, reverse=True))
        match = re.match(rf"(?P<label>{names}){_AFTER_LABEL}", rest, re.IGNORECASE)
        if match is None:
            raise AnswerError(
                f"the answer {text!r:.80} does not open with one of the labels {', '.join(labels.texts)}", text=text
            )
        return {label_field: labels.decode(match["label"]), text_field: rest[match.end() :].strip()}


_KINDS = {"coded": ("label", "number"), "json": ("json",)}


def _braced(names: Mapping[str, Any]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


def _number_end(text: str, start: int, after: str) -> int:
    if after:
        return text.find(after, start)
    line_end = text.find("\n", start)
    return len(text) if line_end < 0 else line_end


def _label_end(texts: list[str]) -> Callable[[str, int, str], int]:
    def end(text: str, start: int, after: str) -> int:
        for label in texts:
            stop = start + len(label)
            if text.startswith(label, start) and (text.startswith(after, stop) if after else stop == len(text)):
                return stop
        return -1

    return end
