"""What a report is made of: headings, verdicts, tables, plots, lists of items, as plain values; and the same as text.

In: the texts and figures of a result, which says in its own file which blocks it is. Out: `Section`s; those as
Markdown, tables for a terminal, figures as they are read: three decimals below ten and fewer above. In text pictures
are left out, and of a list of items only the first disputed ones are shown.
Nothing here knows what a comparison or a learning curve is. Not covered: HTML (page.py).
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

Curves: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]
"""Losses: a name, and its rows of (step, loss)."""


@dataclass(frozen=True, kw_only=True)
class Heading:
    """Begins a part of a section."""

    text: str
    """As it is read."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str
    """As it is read; `*word*` is emphasis in Markdown and plain on the page."""
    is_note: bool = False
    """Whether it explains what stands above it, in small print."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text, ready for any output."""

    head: tuple[str, ...]
    """Column names."""
    rows: tuple[tuple[str, ...], ...]
    """Cells; the first column is a name, the others are figures."""
    label: str = "Figures"
    """What it holds, for those who do not see it."""
    marked: str | None = None
    """The name of the row that stands out."""
    shares: tuple[tuple[float, ...], ...] | None = None
    """For a confusion table: the share of its row that each figure is, which shades the cell."""
    holds_text: bool = False
    """Whether the cells are words rather than figures: written to the left, and broken over lines on the page."""
    has_long_names: bool = False
    """Whether the column names may be broken on paper."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture, drawn only where it is shown."""

    name: str
    """Begins the ids in it."""
    draw: Callable[[str], str | None]
    """Takes a name that is unique on the page and gives an `<svg>` element; None where there is nothing to draw."""
    caption: str
    """What it shows."""
    alt: str
    """Its content in words, for those who do not see it; stands for it in Markdown."""


@dataclass(frozen=True, kw_only=True)
class Plots:
    """Pictures side by side; left out of Markdown, where the tables say the same."""

    plots: tuple[Plot, ...]
    """In reading order."""


@dataclass(frozen=True, kw_only=True)
class Bullets:
    """A list of sentences."""

    lines: tuple[str, ...]
    """One each."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and what they stand for."""

    facts: Mapping[str, str]
    """By name."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """One answer in a list of items."""

    text: str
    """The answer, or what became of the question."""
    detail: str
    """The error, the probability of the positive label, or the distance from the true number."""
    mark: str
    """right, wrong, near, fair, far, none (there is no answer) or plain."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One line of a list of items."""

    number: int
    """From 1, in the order of the items."""
    is_disputed: bool
    """Whether the answers differ."""
    inputs: tuple[str, ...]
    """What was asked."""
    label: str
    """What is right."""
    answers: tuple[Said, ...]
    """In the order of the programs."""


@dataclass(frozen=True, kw_only=True)
class ItemList:
    """Items with all answers, to search and sort on the page; in Markdown the first disputed ones."""

    inputs: tuple[str, ...]
    """Names of the input columns."""
    programs: tuple[str, ...]
    """Names of the answer columns."""
    items: tuple[Item, ...]
    """Those with different answers first."""

    @property
    def n_disputed(self) -> int:
        """Items on which the answers differ."""
        return sum(one.is_disputed for one in self.items)


Block: TypeAlias = Heading | Text | Table | Plots | Bullets | Facts | ItemList
"""A part of a section."""

Outcome: TypeAlias = Literal["better", "worse", "equivalent", "undecided", "not compared"]
"""How a verdict is coloured."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One result on a page."""

    title: str
    """Its heading."""
    verdict: str | None = None
    """The finding in a sentence or two; None for a result without one."""
    outcome: Outcome | None = None
    """The finding in one word; None where there is nothing to compare with."""
    blocks: tuple[Block, ...]
    """In reading order."""
    training: Curves = field(default_factory=dict)
    """Losses of the training, shown after all sections of the page."""
    not_checked: tuple[str, ...] = ()
    """What the result does not tell, in sentences; ends the page."""


class Shown(Protocol):
    """A result that says which blocks it is."""

    def section(self) -> Section:
        """The blocks under their title."""


# The same as text.

MISSING = "–"
"""What stands where there is no figure."""

LISTED_ITEMS = 30
"""Disputed items that are listed."""

LISTED_CHARS = 160
"""Characters of an input or an answer."""


class Ranged(Protocol):
    """A figure with its confidence interval."""

    @property
    def value(self) -> float | None:
        """The figure; None where it is not defined."""

    @property
    def low(self) -> float | None:
        """Lower end; None without an interval."""

    @property
    def high(self) -> float | None:
        """Upper end."""


def figure(value: float | None, *, sign: bool = False) -> str:
    """A figure: three decimals below ten, then whole thousands with commas; two digits that count where it is tiny.

    >>> figure(0.8125), figure(15282.45), figure(0.00071098), figure(-2.5e-06, sign=True), figure(0.0)
    ('0.812', '15,282', '0.00071', '−2.5e−06', '0.000')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    plus = "+" if sign else ""
    if 1e-12 < abs(value) < 0.001:  # a dose in grams: three decimals would all be 0
        return f"{value:{plus}.2g}".replace("-", "−")
    if abs(value) < 10:
        return f"{value:{plus}.3f}".replace("-", "−")
    return f"{value:{plus},.{1 if abs(value) < 1000 else 0}f}".replace("-", "−")


def with_interval(interval: Ranged, *, sign: bool = False) -> str:
    """A figure and its interval: `0.812 [0.741, 0.867]`."""
    text = figure(interval.value, sign=sign)
    if interval.value is None or interval.low is None:
        return text
    return f"{text} [{figure(interval.low, sign=sign)}, {figure(interval.high, sign=sign)}]"


def count(value: float | None) -> str:
    """A whole number with thousands apart."""
    return MISSING if value is None else f"{value:,.0f}"


def p_text(value: float | None) -> str:
    """A p-value as it is read: `0.012`, `< 0.001`."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def as_text(table: Table) -> str:
    """Aligned columns: names and words to the left, figures to the right."""
    cells = [table.head, *table.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.head))]
    lines = [
        "  ".join(
            cell.rjust(width) if column and not table.holds_text else cell.ljust(width)
            for column, (cell, width) in enumerate(pairs)
        )
        for pairs in (zip(row, widths, strict=True) for row in cells)
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def fitted(text: str, width: int, *, indent: int = 0) -> str:
    """Text for a terminal of this width: lines are broken between words, wide tables between columns.

    The columns that do not fit stand in a table below, behind the first one again. A command stays on its line, as it
    is there to be copied.

    Args:
        text: Lines, and tables as `as_text` makes them, each followed by an empty line or the end.
        width: Columns of the terminal.
        indent: Blanks before the second and further lines of each line that is broken.

    >>> print(fitted("name   score   n\\n─────  ─────  ──\\nfirst   0.90  32", 14))
    name   score
    ─────  ─────
    first   0.90
    <BLANKLINE>
    name    n
    ─────  ──
    first  32
    """
    lines = text.split("\n")
    found: list[str] = []
    while lines:
        rule = lines[1] if len(lines) > 1 else ""
        if "─" in rule and not rule.strip("─ "):
            end = next((at for at, line in enumerate(lines) if not line.strip()), len(lines))
            found += _narrow_tables(lines[:end], width)
            del lines[:end]
        else:
            found += _broken(lines.pop(0), width, indent)
    return "\n".join(found)


def _broken(line: str, width: int, indent: int) -> list[str]:
    if len(line) <= width or line.lstrip().startswith(("dspy-finetune ", "$ ")):
        return [line]
    margin = len(line) - len(re.sub(r"^\s*(-|->) |^\s*", "", line))
    further = " " * min(max(indent, margin), width // 2)
    return textwrap.wrap(line, width, subsequent_indent=further, break_long_words=False, break_on_hyphens=False)


def _narrow_tables(lines: Sequence[str], width: int) -> Iterator[str]:
    """A table in parts of at most this width, each with the first column."""
    spans = [match.span() for match in re.finditer("─+", lines[1])]
    first, *others = spans
    while others:
        taken = [others.pop(0)]
        room = width - (first[1] - first[0]) - 2 - (taken[0][1] - taken[0][0])
        while others and (room := room - 2 - (others[0][1] - others[0][0])) >= 0:
            taken.append(others.pop(0))
        yield from ("  ".join(line[a:b].ljust(b - a) for a, b in (first, *taken)).rstrip() for line in lines)
        if others:
            yield ""
    if len(spans) == 1:
        yield from lines


def as_markdown(table: Table) -> str:
    """A Markdown table; bars and markup in names are escaped."""
    lines = [
        table.head,
        tuple("--:" if column and not table.holds_text else ":--" for column in range(len(table.head))),
        *table.rows,
    ]
    return "\n".join(
        "| " + " | ".join(cell if number == 1 else escape_markdown(cell) for cell in line) + " |"
        for number, line in enumerate(lines)
    )


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = " ".join(text.split())
    for character in "\\`*_|[]#":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown(section: Section) -> str:
    """The whole section as a Markdown document."""
    parts = [f"# {escape_markdown(section.title)}"]
    if section.verdict is not None:
        parts.append(escape_markdown(section.verdict))
    for block in section.blocks:
        parts += _markdown_of(block)
    told = losses(section.training)
    if told:
        parts += ["## Training loss", "\n".join(f"- {escape_markdown(one)}" for one in told)]
    if section.not_checked:
        parts += ["## Not checked", "\n".join(f"- {escape_markdown(one)}" for one in section.not_checked)]
    return "\n\n".join(parts) + "\n"


def _markdown_of(block: Block) -> Iterator[str]:
    if isinstance(block, Heading):
        yield f"## {escape_markdown(block.text)}"
    elif isinstance(block, Text):
        # A note carries its own emphasis; any other text is shown as it is.
        yield block.text if block.is_note else escape_markdown(block.text)
    elif isinstance(block, Table):
        yield as_markdown(block)
    elif isinstance(block, Bullets):
        yield "\n".join(f"- {escape_markdown(one)}" for one in block.lines)
    elif isinstance(block, Facts):
        yield "\n".join(f"- {escape_markdown(key)}: {escape_markdown(value)}" for key, value in block.facts.items())
    elif isinstance(block, ItemList):
        yield from _disputed(block)
    else:
        assert isinstance(block, Plots)  # the tables say the same


def _disputed(block: ItemList) -> Iterator[str]:
    if not block.n_disputed:
        return
    told = f"## Where the programs disagree: {block.n_disputed:,} of {len(block.items):,} items"
    yield told + (f", the first {LISTED_ITEMS}" if block.n_disputed > LISTED_ITEMS else "")
    shown = [one for one in block.items if one.is_disputed][:LISTED_ITEMS]
    rows = tuple(
        (str(one.number), *map(_cut, (*one.inputs, one.label, *(said.text for said in one.answers)))) for one in shown
    )
    yield as_markdown(Table(head=("#", *block.inputs, "label", *block.programs), rows=rows))


def _cut(text: str) -> str:
    return text if len(text) <= LISTED_CHARS else text[: LISTED_CHARS - 1] + "…"


def losses(curves: Curves) -> list[str]:
    """Each loss curve in words: where it begins and ends."""
    known = {name: [(step, loss) for step, loss in rows if math.isfinite(loss)] for name, rows in curves.items()}
    return [
        f"{name} from {rows[0][1]:.3g} to {rows[-1][1]:.3g} in {rows[-1][0]:,.0f} steps"
        for name, rows in known.items()
        if rows
    ]
