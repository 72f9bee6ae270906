"""How answers are laid out and read back: `TemplateLayout` and `JsonLayout`.

In: the output codecs, in order. Out: `write` (values -> assistant text) and `read` (text -> values), each other's
inverse.

Defaults: a single output is its own text. Several outputs of which the first is a label: the label on the first line,
then one line `Name: value` per output, line breaks inside a value as visible escapes. Any other several outputs: one
JSON object with every output as a key, which hosts with structured output can be held to (`response_format`).

Reading tries the exact layout first, then, for a template, the same with other letter case and spacing, then the same
without the reasoning and the end marks around it; labels and numbers in it are read by values.py. For a label
followed by one text ("A: because ...") it also accepts a label with another mark ("A. because", "A - because", "A"),
and a lead such as "I would choose A: because". A lead that names two labels, or none, raises `AnswerError`; so does an
answer in which a later line opens with another label.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from dspy_finetune.errors import AnswerError, RowError, UsageError
from dspy_finetune.prompts.codecs import Codec, checked_text, field_text, loads
from dspy_finetune.prompts.template import Slot, Template, escape_line, json_line
from dspy_finetune.values import LabelSet, answer_text, label_lead

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
