"""The fields of a row: one raw row -> one dspy.Example, renamed, typed, its inputs marked; and which column is what.

In: a dict with its place. Out: an Example, or a RowError that names the field, the value and the remedy.
A `RowPlan` also remembers which names no row had, since that is a wrong argument rather than wrong rows.

`guess_columns` says of loaded examples which columns are the inputs, which is the label, and what kind of task that
makes. Nothing that the rows tell is asked for; where two columns fit equally well, the error names both and the option
that decides. Not covered: reading files (load.py), the prompt for the task (prompts/presets.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import enum
import functools
import itertools
import keyword
import re
import types
import typing
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import dspy

from dspy_finetune.errors import DataError, RowError, UsageError
from dspy_finetune.tasks import (
    MAX_CHOICES,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_NUMBER_LABELS,
    MIN_EACH,
    compared_fields,
    compared_pair,
    is_closed_set,
)
from dspy_finetune.values import (
    FALSE_WORDS,
    TIE_WORDS,
    TRUE_WORDS,
    DecimalMark,
    NumberColumn,
    Unparseable,
    choice_loader,
    currency_of,
    decimals_needed,
    fold,
    load_bool,
    load_int,
    load_number,
    negative_of,
    shown,
    split_unit,
    usual_currency,
)

# Nothing is guessed: a value that can be read in two ways is refused. bool, int, float, Literal and Enum are read by
# values.py, by the column "in a file" of docs/values.md. Text stays as it is, a whole number becomes its digits; a
# boolean, a fraction or a list is refused. Of X | None, null, an empty cell and a missing field become None. Any other
# type leaves the value as it is.

Converter = Callable[[Any], Any]


def converter_for(annotation: Any, decimal: DecimalMark = ".") -> Converter:
    """The function that turns a column's raw values into those of this type; of a type not named, values pass through.

    >>> converter_for(float)("$1,199.99")
    1199.99
    """
    if accepts_none(annotation):
        return _optional(converter_for(_without_none(annotation), decimal))
    simple: dict[Any, Converter] = {
        bool: load_bool,
        float: NumberColumn(functools.partial(load_number, decimal=decimal)),
        int: NumberColumn(functools.partial(load_int, decimal=decimal)),
        str: _parse_text,
    }
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
        decimal: DecimalMark = ".",
    ) -> None:
        if decimal not in typing.get_args(DecimalMark):
            raise UsageError(f'decimal={decimal!r} is no decimal mark; use "." or ","')
        marked, wanted = signature_types(signature) if signature is not None else (None, {})
        wanted = {**wanted, **check_types(types or {})}
        self._inputs = marked if inputs is None else check_names(inputs, "inputs")
        self._rename = _checked_rename(rename or {})
        self._converters: dict[str, Converter] = {name: converter_for(kind, decimal) for name, kind in wanted.items()}
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
            row = self._with_field_names(row, missing)
            missing = [name for name in missing if name not in row]
        if missing:
            return self._missing(missing[0], row, path, line)
        self._is_any_row_complete = True
        wrong = self._convert(row, path, line) if self._converters else None
        if wrong is not None:
            return wrong
        example = dspy.Example(row)
        return example if inputs is None else example.with_inputs(*inputs)

    def _with_field_names(self, row: dict[str, Any], missing: Sequence[str]) -> dict[str, Any]:
        """The row with the columns that are called `Major Genre` under the name wanted, `Major_Genre`."""
        known: dict[str, list[str]] = {}
        for column in row:
            if column not in self._required:
                known.setdefault(field_name(column), []).append(column)
        names = {known[name][0]: name for name in missing if len(known.get(name, ())) == 1}
        return {names.get(column, column): value for column, value in row.items()} if names else row

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


def field_name(column: str) -> str:
    """A column's name as a field of a signature can have it: `Major Genre` is `Major_Genre`, `class` is `class_`.

    >>> [field_name(name) for name in ("title", "Cost Total $", "class", "2020", "Größe (cm)")]
    ['title', 'Cost_Total', 'class_', 'field_2020', 'Größe_cm']
    """
    name = re.sub(r"\W+", "_", column).strip("_") or "field"
    name = name if name.isidentifier() else f"field_{name}"
    # A field that is called like a part of dspy.Signature would hide it.
    return f"{name}_" if keyword.iskeyword(name) or hasattr(dspy.Signature, name) else name


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


Task = Literal["binary", "labels", "pairs", "number", "text"]

_LABEL_NAMES = re.compile(
    r"(^|_)(labels?|class|category|target|answer|response|output|completion|liked?|favou?rite|preferred|preference|"
    r"price|rating|score|sentiment|spam|intent|outcome|verdict|grade|stars|y)($|_)",
    re.IGNORECASE,
)
_ID_NAMES = re.compile(
    r"(^|[\W_])(ids?|uuid|guid|url|link|index|idx|row|date|time|timestamp|created|updated)($|[\W_])|[ _](no|nr|ref|#)$"
    r"|^unnamed: \d+$",  # what pandas calls an index that it wrote and read again
    re.IGNORECASE,
)
_PREFERENCE = re.compile(r"(^|_)(prefer|winner|better|best|larger|greater|choice|chosen)", re.IGNORECASE)
_CONTEXT_NAMES = re.compile(r"^(user_)?(question|prompt|query|instructions?|context|request|task)s?$", re.IGNORECASE)
"""What two answers are preferred for."""
_REASON_NAMES = re.compile(r"(label_)?(reason|reasoning|rationale|explanation|justification)s?", re.IGNORECASE)
_FLAG_NAMES = re.compile(r"^(is|has|was|should|can)_", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """What a table's columns mean."""

    task: Task
    """binary (yes or no), labels (one of a closed set), pairs (A or B), number, or text."""
    inputs: tuple[str, ...]
    """The fields that a model reads, in the order of the table."""
    label: str
    """The field that it answers with."""
    labels: tuple[Any, ...]
    """The distinct answers of a binary, labels or pairs task, the most frequent first; else empty."""
    why: str
    """One line: how this was told."""
    is_whole: bool = False
    """Whether every answer is a whole number."""

    @property
    def sides(self) -> tuple[str, ...]:
        """Of a pairs task the two inputs of which one is preferred; else none.

        >>> Columns(task="pairs", inputs=("question", "a", "b"), label="best", labels=("A", "B"), why="").sides
        ('a', 'b')
        """
        labels = [str(label) for label in self.labels]
        return tuple(compared_pair(self.inputs, labels) or ()) if self.task == "pairs" else ()

    @property
    def is_a_or_b(self) -> bool:
        """Whether this is a pair whose fields end in _a and _b, and whose label says A or B."""
        ends = [field_name(name)[-2:] for name in self.inputs if name in self.sides]
        labels = {str(label).strip().casefold() for label in self.labels}
        return self.task == "pairs" and ends == ["_a", "_b"] and labels == {"a", "b"}

    @property
    def annotation(self) -> str:
        """The label's type, as Python writes it.

        >>> columns = Columns(task="labels", inputs=("text",), label="stars", labels=(2, 1), why="")
        >>> columns.annotation
        'Literal[1, 2]'
        """
        if self.is_a_or_b:
            return "Literal['A', 'B']"
        if self.task in ("labels", "pairs"):
            texts = [str(label) for label in self.labels]
            is_whole = all(re.fullmatch(r"0|-?[1-9]\d*", text) for text in texts)  # 007 is a name
            labels = sorted(map(int, texts)) if is_whole else sorted(texts)
            return f"Literal[{', '.join(map(repr, labels))}]"
        return {"binary": "bool", "number": "int" if self.is_whole else "float"}.get(self.task, "str")

    def check_fields(self, table: object) -> None:
        """Raise UsageError where two of the columns would be one field of a signature."""
        names = Counter(map(field_name, (*self.inputs, self.label)))
        if twice := [name for name, n in names.items() if n > 1]:
            raise UsageError(f"two columns would both be the field {twice[0]!r}; rename one of them in {table}")


def guess_columns(
    examples: Sequence[dspy.Example],
    *,
    label: str | None = None,
    inputs: Sequence[str] | None = None,
    decimal: DecimalMark = ".",
) -> Columns:
    """Tell inputs, label and task from the rows.

    >>> rows = [dspy.Example(id=n, headline=f"Headline number {n}", liked=n % 3 == 0) for n in range(30)]
    >>> found = guess_columns(rows)
    >>> found.task, found.inputs, found.label
    ('binary', ('headline',), 'liked')

    Args:
        examples: Rows as `load_examples` gives them; text that reads as a boolean or a number counts as text here.
        label: The label's field, where it is known.
        inputs: The input fields, where they are known.
        decimal: The decimal mark of the cells.

    Raises:
        UsageError: A field that was named is in no row.
        DataError: There are no rows, or no column or more than one can be the label.
    """
    if not examples:
        raise DataError("no rows: give a file with labelled rows")
    values = {
        # An empty cell is no answer, and no kind of one.
        name: [None if isinstance(value, str) and not value.strip() else value for value in column]
        for name, column in _values(examples).items()
    }
    for name in [*(inputs or ()), *([label] if label is not None else ())]:
        if name not in values:
            raise UsageError(f"the table has no field {name!r}; {columns_hint(name, values)}")
    pair = _pair(values, label, inputs)
    if pair is not None:
        return pair
    chosen = label if label is not None else _label(values, inputs or ())
    task, labels = _task(values[chosen])
    read = tuple(inputs) if inputs is not None else _inputs(values, chosen)
    if not read:
        remedy = _nested_hint(values) or "name the inputs"
        raise DataError(f"no column beside {chosen!r} holds text to read; {remedy}")
    if label is None and _is_row((chosen, *read), values):
        raise DataError(
            f"the columns are called {', '.join(map(repr, values))}, which reads like a row: give the file a first "
            "line of column names, or name the label's column with label= (--label)"
        )
    kind = {"binary": "yes or no", "number": "numbers", "text": "free text"}.get(
        task, f"{len(labels)} distinct answers"
    )
    if task == "labels" and len(labels) < len(_distinct(values[chosen])):
        kind += " (spellings that differ in letter case or blanks are one)"
    is_whole = _are_whole(values[chosen], decimal)
    return Columns(task=task, inputs=read, label=chosen, labels=labels, why=f"{chosen} holds {kind}", is_whole=is_whole)


_USUAL_DECIMALS = 2
_MAX_DECIMALS = 12


def number_options(cells: Sequence[Any], name: str, decimal: DecimalMark = ".") -> dict[str, Any]:
    """What `prompts.number` has to be told, so that it writes these numbers as they are.

    Its own defaults are dollars where the name says money, and two decimals of a float. The noise of float32
    (3.799999952316284) is no decimals.

    >>> number_options(["0.125", "3"], "ratio"), number_options(["€5", "€7.50"], "price"), number_options([3], "price")
    ({'currency': '', 'decimals': 3}, {'currency': '€'}, {})
    >>> number_options(["0.04 MB", "3 MB"], "size")
    {'currency': 'MB', 'position': 'after'}

    Args:
        cells: The label's cells; what is no number is passed over.
        name: The label's column: a bare number under `price` is money, under `size` it is none.
        decimal: The decimal mark of the cells.

    Raises:
        DataError: The amounts are in several currencies.
    """
    signs: set[str] = set()
    units: set[str] = set()
    n_decimals = 0
    for cell in cells:
        with contextlib.suppress(Unparseable):
            text, unit = split_unit(cell)
            needed = decimals_needed(load_number(text or cell, decimal))
            units |= {unit} if unit else set()
            signs |= {sign} if (sign := currency_of(cell)) else set()
            n_decimals = max(n_decimals, needed)
    if len(signs) > 1:
        raise DataError(
            f"{name!r} holds amounts in several currencies ({', '.join(sorted(signs))}): convert them to one"
        )
    sign = min(signs) if signs else usual_currency(name)
    options: dict[str, Any] = {} if sign == "$" == usual_currency(name) else {"currency": sign}
    if units:
        options = {"currency": min(units), "position": "after"}
    if n_decimals > _USUAL_DECIMALS:
        options["decimals"] = min(n_decimals, _MAX_DECIMALS)
    return options


def check_decimal(cells: Sequence[Any], name: str, decimal: DecimalMark = ".") -> None:
    """Raise DataError where a column of numbers has none, the other decimal mark than the one read, or parentheses.

    >>> check_decimal(["1.299,50", "12"], "price", ",")
    """
    found: dict[DecimalMark, list[Any]] = {}
    for mark in typing.get_args(DecimalMark):
        found[mark] = [cell for cell in cells if cell is not None and not _is_read(split_unit(cell)[0] or cell, mark)]
    if decimal == "." and found["."] and not found[","]:
        raise DataError(
            f'{name!r} holds numbers with a decimal comma ({shown(found["."][0])}): say decimal="," (--decimal ,)'
        )
    for cell in found[decimal]:
        if negative_of(cell, decimal):
            try:
                load_number(cell, decimal)
            except Unparseable as error:
                raise DataError(f"{name!r}: {error.problem}; {error.remedy}") from error
    n_told = sum(cell is not None for cell in cells)
    if n_told and all(len(unread) == n_told for unread in found.values()):
        raise DataError(f"{name!r} holds no numbers ({shown(found['.'][0])}): if they are labels, say label= (--label)")


def _is_read(cell: Any, decimal: DecimalMark) -> bool:
    with contextlib.suppress(Unparseable):
        load_number(cell, decimal)
        return True
    return False


def _values(examples: Sequence[dspy.Example]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for example in examples for name in example.keys())  # noqa: SIM118  # no mapping
    return {name: [example.get(name) for example in examples] for name in names}


def _distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    counts: dict[Hashable, int] = {}
    for value in values:
        if value is not None and isinstance(value, Hashable):
            counts[value] = counts.get(value, 0) + 1
    return tuple(sorted(counts, key=lambda value: (-counts[value], str(value))))


def _pair(values: Mapping[str, list[Any]], label: str | None, inputs: Sequence[str] | None) -> Columns | None:
    """Of pair rows the two sides and the field that says which is the better one, by its name or by its text."""
    given = tuple(inputs) if inputs is not None else tuple(name for name in values if not _ID_NAMES.search(name))
    labels = [label] if label is not None else [name for name in given or values if _PREFERENCE.search(name)]
    for chosen in labels or list(values):
        answers = _distinct(values[chosen])
        decided = [value for value in answers if fold(str(value)) not in TIE_WORDS]
        ties = "" if len(decided) == len(answers) else ", or says that neither is better"
        for sides in itertools.combinations([name for name in given if name != chosen], 2):
            told = "names one of them"
            labelled = tuple(decided)
            if len(decided) > 2 and _repeats_a_side(values, chosen, sides):
                told = "repeats the text of one of them"
                letters = ("A", "B")
                labelled = letters if compared_fields(sides, letters) is not None else sides
            elif compared_fields(sides, [str(value) for value in decided]) is None:
                continue
            why = f"{sides[0]} and {sides[1]} are two sides, and {chosen} {told}{ties}"
            # What both answer is read with them; what else stands beside them (a site, a reader) is not asked about.
            shared = [name for name in given if name not in (chosen, *sides)]
            if inputs is None:
                shared = [name for name in shared if _CONTEXT_NAMES.search(name) and _mean_words(values[name]) >= 2]
            read = (*shared, *sides)
            if compared_pair(read, [str(label) for label in labelled]) is None:
                continue
            return Columns(task="pairs", inputs=read, label=chosen, labels=labelled, why=why)
    return None


def _repeats_a_side(values: Mapping[str, list[Any]], label: str, sides: tuple[str, str]) -> bool:
    """Whether each answer but ties is the text of one of the two sides, and each side is preferred somewhere."""
    rows = zip(values[label], values[sides[0]], values[sides[1]], strict=True)
    found: set[str] = set()
    for answer, *texts in rows:
        if answer is None or fold(str(answer)) in TIE_WORDS:
            continue
        same = [name for name, text in zip(sides, texts, strict=True) if text is not None and str(text) == str(answer)]
        if not same:
            return False
        found.update(same)
    return len(found) == 2


def _task(values: Sequence[Any]) -> tuple[Task, tuple[Any, ...]]:
    """What answering with this column is, and its closed set of answers if it has one."""
    known = [value for value in values if value is not None]
    if not all(isinstance(value, Hashable) for value in known):  # lists, objects
        return "text", ()
    distinct = _distinct(known)
    texts = {str(value).strip().casefold() for value in distinct}
    if texts and texts <= {*TRUE_WORDS, *FALSE_WORDS}:
        return "binary", distinct
    if known and all(_is_number(value) for value in distinct):
        counts = Counter(known)
        few = len(distinct) <= 10 and min(counts.values()) > 1 and all(_is_whole(value) for value in distinct)
        return ("labels", distinct) if few else ("number", ())
    has_unit = bool(distinct) and _has_one_unit(distinct)
    if has_unit and len(distinct) > MAX_NUMBER_LABELS:  # 12 °C is no name of a class, however often it comes
        return "number", ()
    spellings: dict[str, str] = {}
    for value in distinct:  # the most frequent first: it stands for the other spellings of the same label
        spellings.setdefault(fold(str(value)), str(value))
    counts = Counter(fold(str(value)) for value in known)
    has_many = len(known) >= MIN_EACH * len(counts) and max(map(len, counts), default=0) <= MAX_LABEL_CHARS
    is_closed = is_closed_set(counts, MAX_LABELS if has_many else MAX_CHOICES)
    if is_closed:
        return "labels", tuple(spellings.values())
    return ("number" if has_unit else "text"), ()


def _has_one_unit(values: Sequence[Any]) -> bool:
    found = [split_unit(value) for value in values]
    return len({unit for _, unit in found}) == 1 and all(number and _is_number(number) for number, _ in found)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return True
    return any(_is_read(value, mark) or negative_of(value, mark) for mark in typing.get_args(DecimalMark))


def _are_whole(values: Sequence[Any], decimal: DecimalMark) -> bool:
    """Whether a column holds whole numbers; what is no number is passed over.

    >>> _are_whole(["$53", "1,200", None], "."), _are_whole(["53", "1.5"], ".")
    (True, False)
    """
    numbers = []
    for value in values:
        with contextlib.suppress(Unparseable):
            numbers.append(load_number(split_unit(value)[0] or value, decimal))
    return bool(numbers) and all(number.is_integer() for number in numbers)


def _is_whole(value: Any) -> bool:
    return re.fullmatch(r"-?\d+(\.0*)?", str(value).strip()) is not None


def _nested_hint(values: Mapping[str, list[Any]]) -> str | None:
    """What to do about columns that hold lists or objects; None where none does."""
    nested = [name for name in values if any(isinstance(value, (Mapping, list)) for value in values[name])]
    if not nested:
        return None
    has_list = any(isinstance(value, list) for name in nested for value in values[name])
    *others, last = map(repr, nested[:4])
    names = f"{', '.join(others)} and {last} hold" if others else f"{last} holds"
    return f"{names} {'lists or objects' if has_list else 'objects'}: write their values as columns of their own"


def _label(values: Mapping[str, list[Any]], inputs: Sequence[str]) -> str:
    candidates = [
        name
        for name in values
        if name not in inputs
        and not _is_identifier(name, values[name])
        and any(one is not None and isinstance(one, Hashable) for one in values[name])
    ]
    # Where one of two columns is a number and the other words, the words are what is read.
    plain = [
        name for name in candidates if name.casefold() == "label" and _task(values[name])[0] in ("binary", "labels")
    ]
    candidates = [name for name in candidates if inputs or name in plain or _has_words(values, name)] or candidates
    named = [name for name in candidates if _LABEL_NAMES.search(name) or _FLAG_NAMES.match(name)]
    tasks = {name: _task(values[name])[0] for name in candidates}
    closed = [name for name in candidates if tasks[name] in ("binary", "labels")]
    told = [name for name in candidates if tasks[name] != "text"]
    # A telling name first, of several the one with a closed set of answers; else the one column that is no text. A
    # closed set beside numbers may be a property of the rows (a canton beside amounts), and is asked about.
    choices: list[list[str]] = [named, [name for name in named if name in closed]]
    for found in choices + ([] if named else [told]):
        if len(found) == 1:
            return found[0]
    if not candidates:
        if "messages" in values:
            raise DataError(
                "the rows hold messages: they are training rows already; check and train them as they are "
                "(dspy-finetune check FILE, dspy-finetune train FILE)"
            )
        remedy = _nested_hint(values) or "name it with label= (--label)"
        raise DataError(f"no column can be the label; the fields are {', '.join(values)}: {remedy}")
    options = named or told or candidates
    raise DataError(f"cannot tell the label: it may be {' or '.join(options[:6])}; name it with label= (--label)")


def _inputs(values: Mapping[str, list[Any]], label: str) -> tuple[str, ...]:
    names = [name for name in values if name != label and not _is_identifier(name, values[name])]
    texts = [name for name in names if any(isinstance(value, str) and value.strip() for value in values[name])]
    # A column with the label's meaning in other words (points beside is_favorite) is no input: text alone is read.
    worded = [name for name in texts if _mean_words(values[name]) >= 2 and _task(values[name])[0] != "number"]
    read = worded or texts
    # Why a label was given is written after it, and is not there where a model is asked.
    return tuple([name for name in read if not _REASON_NAMES.fullmatch(name)] or read)


def _has_words(values: Mapping[str, list[Any]], label: str) -> bool:
    """Whether another column than the label holds text that is no number."""
    read = _inputs(values, label)
    return any(_task(values[name])[0] != "number" for name in read)


def _is_row(columns: Sequence[str], values: Mapping[str, list[Any]]) -> bool:
    """Whether a label's and inputs' names are no header: one of the label's values, and a text of several words."""
    label, *inputs = columns
    is_value = (
        _is_number(label) if _task(values[label])[0] == "number" else fold(label) in map(fold, map(str, values[label]))
    )
    return is_value and any(len(name.split()) >= 3 for name in inputs)


def _mean_words(values: Sequence[Any]) -> float:
    texts = [value for value in values if isinstance(value, str)]
    return sum(len(text.split()) for text in texts) / len(texts) if texts else 0.0


def _is_identifier(name: str, values: Sequence[Any]) -> bool:
    """A key, an address, a date: told by its name, and by values that hold no words."""
    return _ID_NAMES.search(name) is not None and _mean_words(values) < 2
