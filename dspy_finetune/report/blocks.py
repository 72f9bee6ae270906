"""What a page is made of: headings, verdicts, texts, tables, plots, facts and lists of items, as plain values.

In: the texts and figures of a result, which says in its own file which blocks it is. Out: `Section`s that `page` writes
as HTML and `text` as Markdown and for a terminal. Nothing here knows what a comparison or a learning curve is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
