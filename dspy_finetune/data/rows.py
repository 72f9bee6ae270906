"""rows.py: one raw row -> one dspy.Example: renamed, complete, typed, its inputs marked.

In: a dict with its place. Out: an Example, or a RowError that names the field, the value and the remedy.
A `RowPlan` also remembers which names no row had, since that is a wrong argument rather than wrong rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy

from dspy_finetune.data.coerce import Converter, Unreadable, accepts_none, check_types, converter_for, signature_types
from dspy_finetune.errors import RowError, UsageError

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
        first: tuple[str, Unreadable] | None = None
        others: list[str] = []
        values: dict[str, Any] = {}
        for name, convert in self._converters.items():
            try:
                values[name] = convert(row.get(name))
            except Unreadable as error:
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
