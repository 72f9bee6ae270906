"""One raw row -> one dspy.Example: renamed, complete, typed, its inputs marked.

In: a dict with its place. Out: an Example, or a RowError that names the field, the value and the remedy.
A `RowPlan` also remembers which names no row had, since that is a wrong argument rather than wrong rows.
"""

from __future__ import annotations

import difflib
import enum
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import dspy

from dspy_finetune.errors import RowError, UsageError
from dspy_finetune.values import Unparseable, choice_loader, load_bool, load_int, load_number, shown

# ---- From what a file holds ("$1,199.99", "yes") to what a field means (1199.99, True)
# Nothing is guessed: a value that can be read in two ways is refused. bool, int, float, Literal and Enum are read by
# values.py, by the column "in a file" of docs/values.md. Text stays as it is, a whole number becomes its digits; a
# boolean, a fraction or a list is refused. Of X | None, null, an empty cell and a missing field become None. Any other
# type leaves the value as it is.

Converter = Callable[[Any], Any]


def converter_for(annotation: Any) -> Converter:
    """The function that turns a raw value into one of this type; of a type not named above, values pass through.

    >>> converter_for(float)("$1,199.99")
    1199.99
    """
    if accepts_none(annotation):
        return _optional(converter_for(_without_none(annotation)))
    simple: dict[Any, Converter] = {bool: load_bool, float: load_number, int: load_int, str: _parse_text}
    # isinstance first: an annotation such as an unhashable Annotated cannot be looked up.
    if isinstance(annotation, type) and annotation in simple:
        return simple[annotation]
    if typing.get_origin(annotation) is Literal:
        return choice_loader({str(option): option for option in typing.get_args(annotation)})
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        by_name: dict[str, Any] = {member.name: member for member in annotation}
        return choice_loader({**by_name, **{str(member.value): member for member in annotation}})
    return lambda value: value


def accepts_none(annotation: Any) -> bool:
    """Whether a field of this type may be missing: `float | None`, `Optional[str]`."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return union and type(None) in typing.get_args(annotation)


def signature_types(signature: type[dspy.Signature] | str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The input fields' names and every field's type, from a signature class or its short form.

    >>> signature_types("title -> is_favorite: bool")
    (('title',), {'title': <class 'str'>, 'is_favorite': <class 'bool'>})

    Raises:
        UsageError: The text is not a signature.
    """
    try:
        loaded: Any = dspy.ensure_signature(signature)
        fields = {**loaded.input_fields, **loaded.output_fields}
    except (ValueError, TypeError, AttributeError, SyntaxError) as error:
        raise UsageError(
            f"signature={signature!r} is not a dspy.Signature ({error}); like: title -> is_favorite: bool"
        ) from error
    return tuple(loaded.input_fields), {name: field.annotation for name, field in fields.items()}


def check_types(given: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of field names to types, once it is sure that it is one. Raises UsageError."""
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise UsageError(f'types={given!r} is not a mapping of field names to types; like: {{"price": float}}')
    for name, annotation in given.items():
        if not isinstance(annotation, type) and typing.get_origin(annotation) is None and annotation is not Any:
            raise UsageError(
                f'types: {annotation!r} (for "{name}") is not a type; use bool, int, float, str or a Literal'
            )
    return dict(given)


def _parse_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    found = "missing (null)" if value is None else f"{shown(value)} is not text"
    raise Unparseable(found, "write a text in quotes" if value is not None else "fill it in, or take the row out")


def _optional(inner: Converter) -> Converter:
    def convert(value: Any) -> Any:
        return None if value is None or (value == "" and inner is not _parse_text) else inner(value)

    return convert


def _without_none(annotation: Any) -> Any:
    kept = tuple(option for option in typing.get_args(annotation) if option is not type(None))
    # A union of several types is left as it is: none of them is the right one for sure.
    return kept[0] if len(kept) == 1 else Any


_MAX_COLUMNS_SHOWN = 40
_CLASH_REMEDY = "choose another name, or rename that one too"


class MarkedRow(dict[str, Any]):
    """The fields of a dspy.Example, with the names that it marks as inputs (None: it marks none)."""

    inputs: tuple[str, ...] | None = None


class RowPlan:
    """What is wanted of every row; checks its arguments when it is made. Raises UsageError."""

    def __init__(
        self,
        *,
        inputs: Sequence[str] | str | None,
        rename: Mapping[str, str] | None,
        types: Mapping[str, Any] | None,
        signature: type[dspy.Signature] | str | None,
    ) -> None:
        marked, wanted = signature_types(signature) if signature is not None else (None, {})
        wanted = {**wanted, **check_types(types or {})}
        self._inputs = marked if inputs is None else check_names(inputs, "inputs")
        self._rename = _checked_rename(rename or {})
        self._converters: dict[str, Converter] = {name: converter_for(kind) for name, kind in wanted.items()}
        self._optional = {name for name, kind in wanted.items() if accepts_none(kind)}
        self._required = [
            name for name in dict.fromkeys([*(self._inputs or ()), *wanted]) if name not in self._optional
        ]
        self._columns: dict[str, None] = {}
        self._found: set[str] = set()
        self._is_any_row_complete = False
        self._clash: tuple[str, str] | None = None

    def example(self, row: dict[str, Any] | RowError, path: str | None, line: int) -> dspy.Example | RowError:
        """Make the row's example, or say why it cannot be made."""
        if isinstance(row, RowError):
            return row
        inputs = self._inputs
        if inputs is None and isinstance(row, MarkedRow) and row.inputs is not None:
            inputs = tuple(self._rename.get(name, name) for name in row.inputs)
        if self._rename:
            renamed = self._renamed(row, path, line)
            if isinstance(renamed, RowError):
                return renamed
            row = renamed
        missing = [name for name in self._required if name not in row]
        if missing:
            return self._missing(missing[0], row, path, line)
        self._is_any_row_complete = True
        wrong = self._convert(row, path, line) if self._converters else None
        if wrong is not None:
            return wrong
        example = dspy.Example(row)
        return example if inputs is None else example.with_inputs(*inputs)

    def check_columns(self, source: str) -> None:
        """Call after the last row: refuse names that no row had, or could take. Raises UsageError."""
        if self._is_any_row_complete:
            return
        if self._clash is not None:
            raise UsageError(f"{source}: the column {self._clash[0]!r} {self._clash[1]}; {_CLASH_REMEDY}")
        if not self._columns:
            return
        for name in [*self._rename, *self._required]:
            if name not in self._found and name not in self._rename.values():
                raise UsageError(
                    f"{source} has no column {name!r}; {columns_hint(name, self._columns)}{self._turned(name)}"
                )

    def _turned(self, name: str) -> str:
        new = self._rename.get(name)
        if new is None or new not in self._columns:
            return ""
        return f'; rename goes from the name in the source to the name wanted, so perhaps {{"{new}": "{name}"}}'

    def _renamed(self, row: dict[str, Any], path: str | None, line: int) -> dict[str, Any] | RowError:
        for old, new in self._rename.items():
            if old not in row:
                return self._missing(old, row, path, line)
            if new in row and new not in self._rename:
                problem = f"cannot be renamed to {new!r}, which is there already"
                self._clash = self._clash or (old, problem)
                return RowError(problem, path=path, line=line, field=old, value=row[old], remedy=_CLASH_REMEDY)
        return {self._rename.get(name, name): value for name, value in row.items()}

    def _missing(self, name: str, row: dict[str, Any], path: str | None, line: int) -> RowError:
        self._columns.update(dict.fromkeys(list(row)[:1000]))
        self._found.update(set(row).intersection([*self._rename, *self._required]))
        return RowError("missing", path=path, line=line, field=name, value=None, remedy=columns_hint(name, row))

    def _convert(self, row: dict[str, Any], path: str | None, line: int) -> RowError | None:
        first: tuple[str, Unparseable] | None = None
        others: list[str] = []
        values: dict[str, Any] = {}
        for name, convert in self._converters.items():
            try:
                values[name] = convert(row.get(name))
            except Unparseable as error:
                if first is None:
                    first = name, error
                else:
                    others.append(name)
        if first is None:
            row.update(values)
            return None
        name, fault = first
        problem = fault.problem + (f" (also bad in this row: {', '.join(others)})" if others else "")
        return RowError(problem, path=path, line=line, field=name, value=row.get(name), remedy=fault.remedy)


def check_names(names: Sequence[str] | str, argument: str) -> tuple[str, ...]:
    """Field names as a tuple; one name may stand alone. Raises UsageError."""
    listed = (names,) if isinstance(names, str) else tuple(names)
    if not all(isinstance(name, str) and name for name in listed):
        raise UsageError(f'{argument}={names!r} does not hold field names; like: {argument}=["title"]')
    return listed


def columns_hint(name: str, columns: Iterable[str]) -> str:
    """The columns there are and the nearest to the one that was asked for.

    >>> columns_hint("titel", ["title", "url"])
    'it has: title, url; did you mean "title"?'
    """
    names = list(columns)
    more = f" and {len(names) - _MAX_COLUMNS_SHOWN} more" if len(names) > _MAX_COLUMNS_SHOWN else ""
    shown = ", ".join(names[:_MAX_COLUMNS_SHOWN]) or "none"
    folded = {column.casefold().strip(): column for column in reversed(names)}
    near = difflib.get_close_matches(name.casefold().strip(), folded, n=1, cutoff=0.5)
    return f"it has: {shown}{more}" + (f'; did you mean "{folded[near[0]]}"?' if near else "")


def _checked_rename(rename: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(rename, Mapping) or not all(
        isinstance(old, str) and isinstance(new, str) for old, new in rename.items()
    ):
        raise UsageError(f'rename={rename!r} is not a mapping of names to names; like: {{"headline": "title"}}')
    targets = list(rename.values())
    twice = next((new for new in targets if targets.count(new) > 1), None)
    if twice is not None:
        raise UsageError(f"rename gives the name {twice!r} to more than one column; a name can be given once")
    return dict(rename)
