"""Signatures as JSON: `dump_signature` and `load_signature`.

In: a dspy.Signature. Out: JSON types, and the signature back without importing anybody's code.

Kept: names, types, descriptions, constraints as text, defaults that JSON can hold, instructions. Types: str, int,
float, bool, Decimal, date, datetime, Any, Literal, Enum, list, dict with str keys, unions of these, dspy.Image, and
pydantic models made of these. A model is rebuilt from its fields: one whose JSON schema does not survive (aliases,
constraints, validators that show in the schema, recursion) is refused, and so is any other type. Validators that do
not show in the schema are lost.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin

import dspy
import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dspy_finetune.errors import UsageError

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
        f'field "{where}": a prompt with the type {getattr(annotation, "__name__", annotation)} cannot be saved; '
        "use str, numbers, bool, Literal, Enum, list, dict with str keys, dspy.Image, or a pydantic model of these"
    )


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
    return annotation.__dict__.get("__doc__")


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
