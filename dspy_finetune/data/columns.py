"""Which columns of a labelled table are the inputs, which is the label, and what kind of task that makes.

In: loaded examples, and whatever the user named already. Out: `Columns`: task, input fields, label field, and why.
Nothing that the rows tell is asked for; where two columns fit equally well, the error names both and the option that
decides. Not covered: reading files (load.py), the prompt for the task (prompts/presets.py).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import dspy

from dspy_finetune.errors import DataError, UsageError
from dspy_finetune.values import FALSE_WORDS, TRUE_WORDS

Task = Literal["binary", "labels", "pairs", "number", "text"]

MAX_LABELS = 64
"""More distinct answers than this are free text, not classes."""

_LABEL_NAMES = re.compile(
    r"(^|_)(labels?|class|category|target|answer|response|output|completion|liked?|favou?rite|preferred|preference|"
    r"price|rating|score|sentiment|spam|y)($|_)",
    re.IGNORECASE,
)
_ID_NAMES = re.compile(r"(^|_)(ids?|uuid|guid|url|link|index|idx|row|date|time|timestamp|created|updated)($|_)", re.I)
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


def guess_columns(
    examples: Sequence[dspy.Example], *, label: str | None = None, inputs: Sequence[str] | None = None
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

    Raises:
        UsageError: A field that was named is in no row.
        DataError: There are no rows, or no column or more than one can be the label.
    """
    if not examples:
        raise DataError("no rows: give a file with labelled rows")
    values = _values(examples)
    for name in [*(inputs or ()), *([label] if label is not None else ())]:
        if name not in values:
            raise UsageError(f"no row has a field {name!r}; the fields are {', '.join(values)}")
    pair = _pair(values, label)
    if pair is not None and inputs is None:
        sides, preferred = pair
        return Columns(
            task="pairs",
            inputs=sides,
            label=preferred,
            labels=_distinct(values[preferred]),
            why=f"{sides[0]} and {sides[1]} are two sides, and {preferred} names one of them",
        )
    chosen = label if label is not None else _label(values, inputs or ())
    task, labels = _task(values[chosen])
    read = tuple(inputs) if inputs is not None else _inputs(values, chosen)
    if not read:
        raise DataError(f"no column beside {chosen!r} holds text to read; name the inputs")
    kind = f"{len(labels)} distinct answers" if labels else {"number": "numbers"}.get(task, "free text")
    return Columns(task=task, inputs=read, label=chosen, labels=labels, why=f"{chosen} holds {kind}")


def _values(examples: Sequence[dspy.Example]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for example in examples for name in example.keys())  # noqa: SIM118  # no mapping
    return {name: [example.get(name) for example in examples] for name in names}


def _distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    counts: dict[Hashable, int] = {}
    for value in values:
        if value is not None and isinstance(value, Hashable):
            counts[value] = counts.get(value, 0) + 1
    return tuple(sorted(counts, key=lambda value: (-counts[value], str(value))))


def _pair(values: Mapping[str, list[Any]], label: str | None) -> tuple[tuple[str, str], str] | None:
    """The two sides of pair rows and the field that names the better one."""
    for name in values:
        for first, second in (("_a", "_b"), ("_1", "_2"), ("_left", "_right")):
            base = name.removesuffix(first)
            if base == name or base + second not in values:
                continue
            for chosen in [label] if label is not None else ("preferred", "preference", f"preferred_{base}", "winner"):
                if chosen in values and len(_distinct(values[chosen])) in (2, 3):
                    return (name, base + second), chosen
    return None


def _task(values: Sequence[Any]) -> tuple[Task, tuple[Any, ...]]:
    """What answering with this column is, and its closed set of answers if it has one."""
    known = [value for value in values if value is not None]
    distinct = _distinct(known)
    texts = {str(value).strip().casefold() for value in distinct}
    if texts and texts <= {*TRUE_WORDS, *FALSE_WORDS}:
        return "binary", distinct
    n_seldom = sum(1 for value in distinct if known.count(value) < 2) if len(distinct) <= MAX_LABELS else len(distinct)
    if distinct and len(distinct) <= MAX_LABELS and not n_seldom and not all(_is_number(value) for value in distinct):
        return "labels", distinct
    if known and all(_is_number(value) for value in known):
        few = len(distinct) <= 10 and not n_seldom and all(float(str(value)).is_integer() for value in distinct)
        return ("labels", distinct) if few else ("number", ())
    return "text", ()


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return True
    return isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value.strip()) is not None


def _label(values: Mapping[str, list[Any]], inputs: Sequence[str]) -> str:
    candidates = [name for name in values if name not in inputs and not _is_identifier(name, values[name])]
    named = [name for name in candidates if _LABEL_NAMES.search(name) or _FLAG_NAMES.match(name)]
    closed = [name for name in candidates if _task(values[name])[0] in ("binary", "labels")]
    # A telling name first, then a closed set of answers; of several, those that are both.
    for found in (named, [name for name in named if name in closed], closed if not named else []):
        if len(found) == 1:
            return found[0]
    if not candidates:
        raise DataError(f"no column can be the label; the fields are {', '.join(values)}: name it with label=")
    options = named or closed or candidates
    raise DataError(f"cannot tell the label: it may be {' or '.join(options[:6])}; name it with label=")


def _inputs(values: Mapping[str, list[Any]], label: str) -> tuple[str, ...]:
    names = [name for name in values if name != label and not _is_identifier(name, values[name])]
    texts = [name for name in names if any(isinstance(value, str) and value.strip() for value in values[name])]
    # A column with the label's meaning in other words (points beside is_favorite) is no input: text alone is read.
    worded = [name for name in texts if _mean_words(values[name]) >= 2]
    return tuple(worded or texts)


def _mean_words(values: Sequence[Any]) -> float:
    texts = [value for value in values if isinstance(value, str)]
    return sum(len(text.split()) for text in texts) / len(texts) if texts else 0.0


def _is_identifier(name: str, values: Sequence[Any]) -> bool:
    """A key, an address, a date: told by its name, and by values that hold no words."""
    return _ID_NAMES.search(name) is not None and _mean_words(values) < 2
