r"""One prompt for training, serving and cost: `PromptFormat`.

In: a dspy.Signature, and optionally a rubric, templates, labels. Out: the messages of an example, the assistant text
that is trained, and the reading of that text, as an object that is saved with the model. The same example always gives
the same bytes.

- **system**: `system`, by default the signature's instructions. A rubric stands where the template says `{rubric}`,
  and is appended as "\n\nTaste rubric:\n..." where it does not. `{instructions}` stands for the signature's
  instructions. `system=""` without a rubric sends no system message.
- **user**: `user`, by default one line "Field name: {field_name}" per input.
- **completion**: `completion`, a template or "json"; defaults in answers.py.

The template language and the rule that keeps values from being read as template stand in template.py. Control tokens
of chat templates inside a field, such as `<|im_start|>`, are data and stay byte for byte: hosts take the text of a
message as text. A host of one's own must tokenise message contents without reading special tokens from them, as
`dspy_finetune.local` does.

It is saved as JSON with its signature (`dump_signature`, `load_signature`), which comes back without importing
anybody's code. Kept: names, types, descriptions, constraints as text, defaults that JSON can hold, instructions. Types:
str, int, float, bool, Decimal, date, datetime, Any, Literal, Enum, list, dict with str keys, unions of these,
dspy.Image, and pydantic models made of these. A model is rebuilt from its fields: one whose JSON schema does not
survive (aliases, constraints, validators that show in the schema, recursion) is refused, and so is any other type.
Validators that do not show in the schema are lost.
"""

from __future__ import annotations

import difflib
import enum
import functools
import hashlib
import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Optional, TypeAlias, Union, get_args, get_origin

import dspy
import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dspy_finetune.errors import AnswerError, UsageError
from dspy_finetune.prompts.answers import (
    Codec,
    JsonLayout,
    TemplateLayout,
    codec_of,
    default_source,
    is_optional,
    is_structured,
    renderer,
    title,
    user_parts,
)
from dspy_finetune.prompts.template import Template, literal
from dspy_finetune.values import LabelSet, NumberFormat

_RUBRIC_HEADING = "Taste rubric:\n"


def system_source(signature: type[dspy.Signature], system: str | None, rubric: str | None) -> str:
    """The source of the system template, with the instructions and the rubric in it. Raises UsageError."""
    source = literal(signature.instructions) if system is None else system
    # Only author's texts go in here; what an example holds is inserted later, by slots.
    words = {"instructions": signature.instructions, "rubric": rubric}
    for name, text in words.items():
        placeholder = f"{{{name}}}"
        is_asked = _has_placeholder(source, name)
        if name in signature.input_fields:
            if name == "rubric" and rubric is not None:
                raise UsageError(
                    'rubric: the signature has an input "rubric" too; rename the field, or write the rubric into system'
                )
            continue
        if is_asked and text is None:
            raise UsageError("system: {rubric} stands in the template, but no rubric is given")
        if is_asked and text is not None:
            source = _fill(source, placeholder, literal(text))
        elif name == "rubric" and text is not None:
            source = "\n\n".join(part for part in (source, _RUBRIC_HEADING + literal(text)) if part)
    return source


def _has_placeholder(source: str, name: str) -> bool:
    return f"{{{name}}}" in source.replace("{{", "").replace("}}", "")


def _fill(source: str, placeholder: str, text: str) -> str:
    """Replace a placeholder, but not the same letters between doubled braces."""
    return text.join(
        piece.replace("\0", "{{").replace("\1", "}}")
        for piece in source.replace("{{", "\0").replace("}}", "\1").split(placeholder)
    )


def make_codecs(
    signature: type[dspy.Signature], labels: Mapping[Any, str] | Sequence[str] | None, number: NumberFormat | None
) -> dict[str, Codec]:
    """How each output is written and read. Raises UsageError where labels or a number format fit none of them."""
    annotations = {name: field.annotation for name, field in signature.output_fields.items()}
    codecs: dict[str, Codec] = {}
    for name, annotation in annotations.items():
        is_number = number is not None and codec_of(annotation).kind == "number"
        codecs[name] = codec_of(annotation, number=number if is_number else None)
    if number is not None and not any(codec.kind == "number" for codec in codecs.values()):
        raise UsageError("number: no output is int, float or Decimal")
    if labels is None:
        return codecs
    target = next((name for name, codec in codecs.items() if codec.kind == "label"), next(iter(codecs)))
    codecs[target] = codec_of(annotations[target], labels=_custom_labels(labels, codecs[target], target))
    return codecs


def _custom_labels(labels: Any, codec: Codec, name: str) -> LabelSet:
    if not isinstance(labels, Mapping):
        labels = {text: text for text in labels}
    made = labels if isinstance(labels, LabelSet) else LabelSet(labels)
    own = LabelSet.of(codec.annotation)
    if own is not None and set(map(repr, own)) != set(map(repr, made)):
        raise UsageError(f"labels: the output {name} has the values {list(own)}, the labels are for {list(made)}")
    if own is None and (codec.annotation is not str or not all(isinstance(value, str) for value in made)):
        raise UsageError(
            f"labels: the output {name} is of type {codec.annotation!r}; labels are for bool, Literal, Enum and str"
        )
    return made


def saved_labels(codecs: Mapping[str, Codec]) -> list[list[Any]] | None:
    """Value and text of each label of the one output that labels were given for, if they are not its type's own."""
    for codec in codecs.values():
        if codec.labels is not None and codec.labels != LabelSet.of(codec.annotation):
            return [[getattr(value, "value", value), text] for value, text in codec.labels.items()]
    return None


def loaded_labels(signature: type[dspy.Signature], saved: list[list[Any]] | None) -> Mapping[Any, str] | None:
    """Saved labels; the members of a rebuilt Enum stand for their values."""
    if saved is None:
        return None
    for field in signature.output_fields.values():
        own = LabelSet.of(field.annotation)
        if own is not None:
            members = {repr(getattr(value, "value", value)): value for value in own}
            return {members[repr(value)]: text for value, text in saved}
    return dict(map(tuple, saved))


def digest_of(identity: dict[str, Any]) -> str:
    """SHA-256 of JSON types, whatever the order of keys."""
    text = json.dumps(identity, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """What differs, as a unified diff from one identity to the other; empty if nothing does."""
    lines = difflib.unified_diff(
        _lines(one), _lines(other), f"prompt {digest_of(one)[:12]}", f"prompt {digest_of(other)[:12]}", lineterm=""
    )
    return "\n".join(lines)


def _lines(identity: dict[str, Any]) -> list[str]:
    """One readable line per fact, texts line by line."""
    lines: list[str] = []
    for key, value in identity.items():
        if isinstance(value, str):
            lines += [f"{key}: {line}" for line in value.split("\n")]
        elif isinstance(value, list):
            lines += [f"{key}: {json.dumps(item, ensure_ascii=False)}" for item in value]
        elif isinstance(value, dict):
            lines += [f"{key}.{name}: {json.dumps(item, ensure_ascii=False)}" for name, item in value.items()]
        else:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    return lines


RENDERING_VERSION = 1
"""Changes whenever the same prompt would give other bytes; part of every digest."""


class PromptFormat:
    """How an example becomes messages, and an answer becomes values.

    Example:
        >>> prompt = PromptFormat("title -> is_favorite: bool", system="Liked? {rubric}", rubric="Likes bees.")
        >>> prompt.messages({"title": "Bees"})[1], prompt.completion({"is_favorite": True}), prompt.parse("True.")
        ({'role': 'user', 'content': 'Title: Bees'}, 'true', {'is_favorite': True})

    Args:
        signature: A dspy.Signature class, or its short form "title -> is_favorite: bool".
        rubric: A text for the system message.
        system: Template of the system message: input fields, `{rubric}`, `{instructions}`.
        user: Template of the user message: input fields. Every input must stand in one of the two.
        labels: Value -> text, for the first output that has labels; for a str output, also a list of texts.
        completion: Template of the answer over the output fields, or "json".
        number: How the outputs that are numbers are written.

    Raises:
        UsageError: A template names an unknown field or leaves one out, labels do not fit, a type cannot be saved.
    """

    _kinds: ClassVar[dict[str, Any]] = {}
    """Prompts of another kind than templates, by the word that their saved form has for it; each adds itself."""

    def __init_subclass__(cls, *, kind: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        PromptFormat._kinds[kind] = cls

    def __init__(
        self,
        signature: type[dspy.Signature] | str,
        *,
        rubric: str | None = None,
        system: str | None = None,
        user: str | None = None,
        labels: Mapping[Any, str] | Sequence[str] | None = None,
        completion: str | None = None,
        number: NumberFormat | None = None,
    ) -> None:
        self._signature: type[dspy.Signature] = dspy.Signature(signature) if isinstance(signature, str) else signature
        self.input_fields: tuple[str, ...] = tuple(self._signature.input_fields)
        self.output_fields: tuple[str, ...] = tuple(self._signature.output_fields)
        if not self.input_fields or not self.output_fields:
            raise UsageError("signature: at least one input and one output field are needed")
        self._saved_signature = dump_signature(self._signature)
        self.rubric = rubric
        self._number = number
        self._codecs = make_codecs(self._signature, labels, number)
        self._images = frozenset(
            name for name, field in self._signature.input_fields.items() if _holds_image(field.annotation)
        )
        structured = [
            name
            for name, field in self._signature.input_fields.items()
            if name not in self._images and is_structured(field.annotation)
        ]
        optional = [name for name, field in self._signature.input_fields.items() if is_optional(field.annotation)]
        source = system_source(self._signature, system, rubric)
        self._system = Template(source, self.input_fields, what="system", structured=structured, optional=optional)
        source = "\n".join(f"{title(name)}: {{{name}}}" for name in self.input_fields) if user is None else user
        self._user = Template(source, self.input_fields, what="user", structured=structured, optional=optional)
        self._check_inputs()
        source = default_source(self._codecs) if completion is None else completion
        if source == "json" and number is not None and number.scale == "log":
            raise UsageError('number: a JSON answer holds the number itself; scale="log" is for templates')
        self._layout = JsonLayout(self._codecs) if source == "json" else TemplateLayout(source, self._codecs)
        self._render_system = renderer(self._system)
        self._render_user: Callable[[Any], Any] = renderer(self._user)
        if self._images:
            self._render_user = partial(user_parts, self._user, self._images)
        self._has_system = bool(self._system.parts)
        self._fixed_system = self._system.parts[0] if len(self._system.parts) == 1 and not self._system.names else None
        self._digest = digest_of(self._identity())

    # What it is

    @property
    def signature(self) -> type[dspy.Signature]:
        """The signature."""
        return self._signature

    @property
    def system(self) -> str:
        """The system template, the rubric in it; empty for no system message."""
        return self._system.source

    @property
    def user(self) -> str:
        """The user template."""
        return self._user.source

    @property
    def label_field(self) -> str | None:
        """The output that has labels and opens the completion: its probability stands at the first token. Else None."""
        return self._layout.label_field

    @property
    def labels(self) -> LabelSet | None:
        """The labels of `label_field`."""
        return self._codecs[self.label_field].labels if self.label_field else None

    def codec(self, output: str) -> Codec:
        """How an output is written and read. Raises UsageError for a name that is none."""
        if output not in self._codecs:
            raise UsageError(f'the prompt has no output "{output}", only {", ".join(self._codecs)}')
        return self._codecs[output]

    @functools.cached_property
    def choice(self) -> tuple[str, LabelSet] | None:
        """The output that chooses between labels, wherever it stands in the completion, and its labels; None without.

        `label_field` where there is one, else the first output with labels.
        """
        names = [self.label_field, *self.output_fields]
        found = ((name, self._codecs[name].labels) for name in names if name is not None)
        return next(((name, labels) for name, labels in found if labels is not None), None)

    @property
    def response_format(self) -> dict[str, Any] | None:
        """The JSON schema that a host with structured output can be held to; None where answers are not JSON."""
        return self._layout.response_format() if isinstance(self._layout, JsonLayout) else None

    @property
    def max_tokens(self) -> int | None:
        """A limit that no readable answer exceeds: the longest label's bytes, 24 for a number; None for texts."""
        if len(self._codecs) > 1:
            return None
        codec = next(iter(self._codecs.values()))
        if codec.labels is not None:
            return max(len(text.encode()) for text in codec.labels.texts)
        return 24 if codec.number is not None else None

    @property
    def stop(self) -> tuple[str, ...]:
        """What can only come after a complete answer: a line break, where several outputs stand on one line."""
        return ("\n",) if self._layout.is_one_line and len(self._codecs) > 1 and self.response_format is None else ()

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of all that changes a byte of the prompt or the reading of an answer."""
        return self._digest

    # What it does

    def messages(self, example: Mapping[str, Any] | dspy.Example) -> list[dict[str, Any]]:
        """The messages of an example: system, if any, and user. Only input fields are read.

        Raises:
            RowError: An input is missing, None, or cannot be written; names the field.
        """
        user = {"role": "user", "content": self._render_user(example)}
        if self._fixed_system is not None:
            return [{"role": "system", "content": self._fixed_system}, user]
        if self._has_system:
            return [{"role": "system", "content": self._render_system(example)}, user]
        return [user]

    def completion(self, example: Mapping[str, Any] | dspy.Example) -> str:
        """The assistant text that is trained.

        Raises:
            RowError: An output is missing, or its value is none of its type; names the field.
        """
        return self._layout.write(example)

    def training_messages(self, example: Mapping[str, Any] | dspy.Example) -> list[dict[str, Any]]:
        """The messages with the completion as the assistant's. Raises RowError."""
        return [*self.messages(example), {"role": "assistant", "content": self.completion(example)}]

    def parse(self, text: str) -> dict[str, Any]:
        """The output values of an answer; `parse(completion(x))` gives x back.

        Raises:
            AnswerError: The answer cannot be read; `.text` keeps it. There is no default.
        """
        if not isinstance(text, str):
            raise AnswerError(f"the answer is {type(text).__name__}, not text", text="")
        return self._layout.read(text)

    def inputs(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The input texts back from rendered messages; what JSON wrote comes back as JSON types.

        Raises:
            UsageError: The messages were not made by this prompt, or hold images.
        """
        found: dict[str, Any] = {}
        for role, template in (("system", self._system), ("user", self._user)):
            content = next((message["content"] for message in messages if message["role"] == role), "")
            values = template.read(content) if isinstance(content, str) else None
            if values is None:
                raise UsageError(f"messages: the {role} message does not have this prompt's form")
            found = {**values, **found}
        return found

    # Saving and comparing

    def to_dict(self) -> dict[str, Any]:
        """All of the prompt as JSON types; `from_dict` rebuilds it without importing anybody's code."""
        return {
            "kind": "template",
            "version": RENDERING_VERSION,
            "signature": self._saved_signature,
            "system": self.system,
            "rubric": self.rubric,
            "user": self.user,
            "completion": self._layout.source,
            "labels": saved_labels(self._codecs),
            "number": None if self._number is None else self._number.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PromptFormat:
        """The inverse of `to_dict`.

        Raises:
            UsageError: Not a saved prompt, or saved by a release that renders otherwise.
        """
        if data.get("version") != RENDERING_VERSION:
            raise UsageError(
                f"prompt: rendering version {data.get('version')!r} was saved, this release renders version "
                f"{RENDERING_VERSION}; "
                "use the release that trained the model"
            )
        if data.get("kind") in cls._kinds:
            loaded: PromptFormat = cls._kinds[data["kind"]].load(data)
            return loaded
        try:
            signature, number = load_signature(data["signature"]), data["number"]
            prompt = cls(
                signature,
                system=data["system"],
                user=data["user"],
                completion=data["completion"],
                labels=loaded_labels(signature, data["labels"]),
                number=None if number is None else NumberFormat(**number),
            )
            prompt.rubric = data["rubric"]
        except (KeyError, TypeError) as error:
            raise UsageError(f"prompt: not a saved prompt ({type(error).__name__}: {error})") from error
        return prompt

    @classmethod
    def from_adapter(
        cls, signature: type[dspy.Signature] | str, adapter: Any = None, demos: Sequence[Mapping[str, Any]] = ()
    ) -> PromptFormat:
        """The prompt that DSPy's own adapter sends: same interface, same bytes.

        Args:
            signature: The signature.
            adapter: A dspy.ChatAdapter (the default), JSONAdapter or XMLAdapter.
            demos: Few-shot examples, as dspy.Predict keeps them.

        Raises:
            UsageError: Another adapter, or a type that cannot be saved.
        """
        made: PromptFormat = cls._kinds["adapter"](signature, adapter, demos)
        return made

    def diff(self, other: PromptFormat) -> str:
        """What differs, as a unified diff from this prompt to the other; empty if nothing does."""
        return difference(self._identity(), other._identity())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptFormat) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"PromptFormat({self._signature.signature}, digest={self.digest[:12]})"

    def __copy__(self) -> PromptFormat:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptFormat:
        # Immutable: a copy could only cost.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Signature classes made from strings cannot be pickled; their saved form can.
        return PromptFormat.from_dict, (self.to_dict(),)

    # How it is built

    def _check_inputs(self) -> None:
        used = {*self._system.names, *self._user.names}
        for name in self.input_fields:
            if name not in used:
                raise UsageError(
                    f"user: the input {{{name}}} stands in no template, so the model would never see it; "
                    f'add it, or use signature.delete("{name}")'
                )
        if not self._user.parts:
            raise UsageError("user: the template is empty")
        for name in self._images:
            if name in self._system.names:
                raise UsageError(f"system: {{{name}}} is an image, and images go into user messages only")

    def _identity(self) -> dict[str, Any]:
        """All that changes a byte. Descriptions and instructions count where they stand in the templates."""
        return {
            "kind": "template",
            "version": RENDERING_VERSION,
            "system": self.system,
            "user": self.user,
            "completion": self._layout.source,
            "labels": saved_labels(self._codecs),
            "number": None if self._number is None else self._number.to_dict(),
            "inputs": {field["name"]: field["type"] for field in self._saved_signature["inputs"]},
            "outputs": [[field["name"], field["type"]] for field in self._saved_signature["outputs"]],
        }


def _holds_image(annotation: Any) -> bool:
    return annotation is dspy.Image or (get_origin(annotation) is list and get_args(annotation) == (dspy.Image,))


_PLAIN: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "decimal": Decimal,
    "date": date,
    "datetime": datetime,
    "any": Any,
    "null": type(None),
}


AnyPrompt: TypeAlias = PromptFormat | type[dspy.Signature] | str
"""What a prompt is given as: the prompt itself, or the signature that `PromptFormat` makes one of."""


def as_prompt(prompt: AnyPrompt) -> PromptFormat:
    """The prompt, or what `PromptFormat` makes of a signature, a class or text.

    >>> as_prompt("title -> liked: bool").digest == PromptFormat("title -> liked: bool").digest
    True

    Raises:
        UsageError: It is neither.
    """
    if isinstance(prompt, PromptFormat):
        return prompt
    is_text = isinstance(prompt, str) and "->" in prompt
    if not is_text and not (isinstance(prompt, type) and issubclass(prompt, dspy.Signature)):
        raise UsageError(
            "prompt must be a PromptFormat, such as prompts.binary(), or a dspy.Signature, such as "
            f'"title -> liked: bool"; found {prompt!r:.80}'
        )
    return PromptFormat(prompt)


def dump_signature(signature: type[dspy.Signature]) -> dict[str, Any]:
    """The signature as JSON types. Raises UsageError naming the field whose type cannot be kept."""
    return {
        "name": signature.__name__,
        "instructions": signature.instructions,
        "inputs": [_dump_field(name, field) for name, field in signature.input_fields.items()],
        "outputs": [_dump_field(name, field) for name, field in signature.output_fields.items()],
    }


def load_signature(data: dict[str, Any]) -> type[dspy.Signature]:
    """The inverse of `dump_signature`. Raises UsageError on what it did not write."""
    fields: dict[str, Any] = {}
    try:
        for side, make in (("inputs", dspy.InputField), ("outputs", dspy.OutputField)):
            for field in data[side]:
                fields[field["name"]] = _load_field(field, make)
        signature: type[dspy.Signature] = dspy.Signature(fields, data["instructions"], signature_name=data["name"])
    except (KeyError, TypeError) as error:
        raise UsageError(f"signature: not a saved signature ({type(error).__name__}: {error})") from error
    return signature


def _dump_field(name: str, field: FieldInfo) -> dict[str, Any]:
    extra: dict[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    dumped = {"name": name, "type": dump_type(field.annotation, name), "desc": extra.get("desc", f"${{{name}}}")}
    if extra.get("constraints"):
        dumped["constraints"] = extra["constraints"]
    if field.default_factory is not None:
        raise UsageError(f'field "{name}": a default factory cannot be saved; give a plain default, or none')
    if field.default is not PydanticUndefined:
        if not isinstance(field.default, (str, int, float, bool, type(None))):
            raise UsageError(
                f'field "{name}": the default {field.default!r:.60} cannot be saved; use text, a number or a bool'
            )
        dumped["default"] = field.default.value if isinstance(field.default, enum.Enum) else field.default
    return dumped


def _load_field(field: dict[str, Any], make: Callable[..., Any]) -> tuple[Any, Any]:
    options = {"default": field["default"]} if "default" in field else {}
    made = make(desc=field["desc"], **options)
    if "constraints" in field:
        made.json_schema_extra["constraints"] = field["constraints"]
    return load_type(field["type"]), made


def dump_type(annotation: Any, where: str) -> dict[str, Any]:
    """A type as JSON. Raises UsageError naming `where`."""
    for name, plain in _PLAIN.items():
        if annotation is plain:
            return {"type": name}
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return dump_type(arguments[0], where)
    if origin is Literal and all(isinstance(value, (str, int, bool)) for value in arguments):
        return {"literal": [value.value if isinstance(value, enum.Enum) else value for value in arguments]}
    if annotation is list or origin is list:
        return {"list": dump_type(arguments[0] if arguments else Any, where)}
    if annotation is dict or (origin is dict and arguments[0] is str):
        return {"dict": dump_type(arguments[1] if arguments else Any, where)}
    if origin in (Union, types.UnionType):
        return {"union": [dump_type(argument, where) for argument in arguments]}
    if annotation is dspy.Image:
        return {"dspy": "Image"}
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _dump_enum(annotation, where)
    is_model = isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)
    if is_model and not annotation.__module__.startswith("dspy."):
        return _dump_model(annotation, where)
    raise UsageError(
        f'field "{where}": a prompt with the type {type_text(annotation)} cannot be saved; '
        "use str, numbers, bool, Literal, Enum, list, dict with str keys, dspy.Image, or a pydantic model of these"
    )


def type_text(annotation: Any) -> str:
    """A type as its author wrote it: `Literal[1, None]`, `tuple[int, int]`, `bytes`."""
    is_plain = isinstance(annotation, type) and not get_args(annotation)
    return annotation.__name__ if is_plain else repr(annotation).replace("typing.", "")


def _dump_enum(annotation: type[enum.Enum], where: str) -> dict[str, Any]:
    members = [[member.name, member.value] for member in annotation]
    if not all(isinstance(value, (str, int)) for _, value in members):
        raise UsageError(f'field "{where}": the members of {annotation.__name__} must be str or int to be saved')
    base = "str" if issubclass(annotation, str) else "int" if issubclass(annotation, int) else None
    return {"enum": annotation.__name__, "base": base, "doc": _own_doc(annotation), "members": members}


def _dump_model(annotation: type[pydantic.BaseModel], where: str) -> dict[str, Any]:
    fields = []
    try:
        for name, field in annotation.model_fields.items():
            dumped = {"name": name, "type": dump_type(field.annotation, f"{where}.{name}"), "desc": field.description}
            if not field.is_required():
                dumped["default"] = pydantic.TypeAdapter(Any).dump_python(
                    field.get_default(call_default_factory=True), mode="json"
                )
            fields.append(dumped)
        made = {"model": annotation.__name__, "doc": _own_doc(annotation), "fields": fields}
        kept = pydantic.TypeAdapter(load_type(made)).json_schema() == pydantic.TypeAdapter(annotation).json_schema()
    except RecursionError:
        kept = False
    if not kept:
        raise UsageError(
            f'field "{where}": the model {annotation.__name__} has aliases, constraints or recursion, '
            "which cannot be saved; use a model of plain fields"
        )
    return made


def _own_doc(annotation: type) -> str | None:
    """Without its indentation, which Python 3.13 leaves out by itself: a prompt has one digest on every Python."""
    doc = annotation.__dict__.get("__doc__")
    return doc and inspect.cleandoc(doc)


def load_type(spec: dict[str, Any]) -> Any:
    """The inverse of `dump_type`."""
    if "type" in spec:
        return _PLAIN[spec["type"]]
    if "literal" in spec:
        return Literal[tuple(spec["literal"])]
    if "list" in spec:
        return list[load_type(spec["list"])]  # type: ignore[misc]  # a type built at run time
    if "dict" in spec:
        return dict[str, load_type(spec["dict"])]  # type: ignore[misc]  # a type built at run time
    if "union" in spec:
        members = tuple(load_type(member) for member in spec["union"])
        if len(members) == 2 and members[1] is type(None):
            return Optional[members[0]]  # noqa: UP045  # built at run time
        return Union[members]  # noqa: UP007  # built at run time
    if "dspy" in spec:
        return dspy.Image
    if "enum" in spec:
        base = {"str": (str, enum.Enum), "int": (int, enum.Enum)}.get(spec["base"], (enum.Enum,))
        return types.new_class(spec["enum"], base, exec_body=lambda body: _fill_enum(body, spec))
    fields: dict[str, Any] = {}
    for field in spec["fields"]:
        default = field.get("default", ...) if "default" in field else ...
        fields[field["name"]] = (load_type(field["type"]), pydantic.Field(default, description=field["desc"]))
    return pydantic.create_model(spec["model"], __doc__=spec["doc"], **fields)


def _fill_enum(body: dict[str, Any], spec: dict[str, Any]) -> None:
    if spec["doc"]:
        body["__doc__"] = spec["doc"]
    for name, value in spec["members"]:
        body[name] = value
