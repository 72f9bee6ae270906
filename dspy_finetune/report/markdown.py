"""The report as Markdown: for a pull request, an issue, a terminal.

In: a `Report`. Out: text with the numbers of the HTML page; pictures become the words that stand for them there. Of the
items only the first on which the programs disagree are listed; JSON holds all. Not covered: the tables (tables.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspy_finetune.report import figures, items, plots, tables
from dspy_finetune.report.tables import Table, as_markdown, escape_markdown

if TYPE_CHECKING:
    from dspy_finetune.report.numbers import Report

MAX_ITEMS = 30
"""Disputed items that are listed."""

MAX_TEXT = 160
"""Characters of an input or an answer."""


def render(report: Report) -> str:
    """The whole document."""
    comparison = report.comparison
    parts = [
        f"# {escape_markdown(report.title)}",
        escape_markdown(report.verdict),
        as_markdown(tables.program_table(comparison)),
        tables.footnote(comparison),
    ]
    if comparison.differences:
        parts += [
            f"## Differences: {escape_markdown(comparison.candidate)} minus …",
            as_markdown(tables.difference_table(comparison)),
        ]
    parts += _numbers(report) + _labels(report) + _tables(report) + _errors(report) + _training(report)
    parts += _disputed(report)
    for name, card in report.cards.items():
        facts = "\n".join(f"- {escape_markdown(key)}: {escape_markdown(value)}" for key, value in card.items())
        parts += [f"## {escape_markdown(name)}", facts]
    parts += ["## Not checked", "\n".join(f"- {escape_markdown(one)}" for one in comparison.not_checked)]
    return "\n\n".join(parts) + "\n"


def _numbers(report: Report) -> list[str]:
    rows = []
    for row in report.rows:
        guesses = plots.guesses(report.comparison, row.name, report.near)
        if guesses:
            rows.append((row.name, *(f"{n:,}" for n in plots.counts(guesses).values())))
    if not rows:
        return []
    share, distance = report.near
    rule = (
        f"Near is within {share:.0%} or {distance:g} of the true number, whichever is wider; fair within twice that; "
        "far beyond."
    )
    return ["## Near and far", as_markdown(Table(head=("program", "near", "fair", "far"), rows=tuple(rows))), rule]


def _labels(report: Report) -> list[str]:
    found = items.confusion(report.comparison)
    if found is None:
        return []
    head = ("label", *(f"said {column}" for column in found["columns"]))
    rows = tuple((row["label"], *(str(cell["n"]) for cell in row["cells"])) for row in found["rows"])
    return [
        f"## What {escape_markdown(report.comparison.candidate)} said, by label",
        as_markdown(Table(head=head, rows=rows)),
    ]


def _tables(report: Report) -> list[str]:
    known = (
        ("By parts of the items", tables.subgroup_table(report.comparison)),
        ("Each program against itself", tables.noise_table(report.comparison)),
        ("Leanings", items.leanings(report.comparison)),
    )
    return [part for title, table in known if table is not None for part in (f"## {title}", as_markdown(table))]


def _errors(report: Report) -> list[str]:
    found = items.errors(report.comparison)
    if not found:
        return []
    lines = [f"- {escape_markdown(f'{name}, {outcome} {n} ×: {message}')}" for name, outcome, message, n in found]
    return ["## Why answers are missing", "\n".join(lines)]


def _training(report: Report) -> list[str]:
    found = figures.losses(report.training)
    return ["## Training loss", "\n".join(f"- {escape_markdown(one)}" for one in found)] if found else []


def _disputed(report: Report) -> list[str]:
    comparison = report.comparison
    disputed = [row for row in items.listing(comparison, report.near) if row.is_disputed]
    if not disputed:
        return []
    head = ("#", *comparison.items[0].inputs, "label", *(row.name for row in comparison.programs))
    rows = tuple(
        (str(row.number), *(_cut(text) for text in (*row.inputs, row.label, *(said.text for said in row.answers))))
        for row in disputed[:MAX_ITEMS]
    )
    told = f"## Where the programs disagree: {len(disputed):,} of {len(comparison.items):,} items"
    if len(disputed) > MAX_ITEMS:
        told += f", the first {MAX_ITEMS}"
    return [told, as_markdown(Table(head=head, rows=rows))]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
