"""What a PromptFormat is built of: the source of its system template, and the codecs of its outputs.

In: a signature, and what the user asked for: a rubric, a template, labels, a number format. Out: a template's source;
codecs by output; labels as JSON types and back. Not covered: the template language (template.py), layouts
(completion.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from dspy_finetune.errors import UsageError
from dspy_finetune.prompts.labels import LabelSet
from dspy_finetune.prompts.number_text import NumberFormat
from dspy_finetune.prompts.template import literal
from dspy_finetune.prompts.values import Codec, codec_of

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
