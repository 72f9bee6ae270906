"""The numbers as words: verdict sentence, tables as plain text, as Markdown, and as small HTML for notebooks.

In: a `Comparison`. Out: text. Figures carry three decimals for shares and four digits for everything else.
Not covered: whole documents (html.py, markdown.py).
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dspy_finetune.evaluation.result import Comparison, Difference
from dspy_finetune.evaluation.statistics import Interval

MISSING = "–"
"""What stands where there is no figure."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text, ready for any output."""

    head: tuple[str, ...]
    """Column names."""
    rows: tuple[tuple[str, ...], ...]
    """Cells; the first column is a name, the others are figures."""


def figure(value: float | None, *, sign: bool = False) -> str:
    """A figure: three decimals below ten, then whole thousands with commas."""
    if value is None or not math.isfinite(value):
        return MISSING
    plus = "+" if sign else ""
    if abs(value) < 10:
        return f"{value:{plus}.3f}".replace("-", "−")
    return f"{value:{plus},.{1 if abs(value) < 1000 else 0}f}".replace("-", "−")


def with_interval(interval: Interval, *, sign: bool = False) -> str:
    """A figure and its interval: `0.812 [0.741, 0.867]`."""
    text = figure(interval.value, sign=sign)
    if interval.value is None or interval.low is None:
        return text
    return f"{text} [{figure(interval.low, sign=sign)}, {figure(interval.high, sign=sign)}]"


def count(value: float | None) -> str:
    """A whole number with thousands apart."""
    return MISSING if value is None else f"{value:,.0f}"


def p_text(value: float | None) -> str:
    """A p-value as it is read: `p = 0.012`, `p < 0.001`."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def program_table(comparison: Comparison) -> Table:
    """One row per program, with the columns that hold anything."""
    percent = f"{comparison.confidence:.0%}"
    rows = comparison.programs
    columns: list[tuple[str, list[str]]] = [("program", [row.name for row in rows])]
    for metric in comparison.metrics:
        columns.append(
            (f"{metric.name} [{percent}]", [with_interval(row.scores[metric.name]) for row in rows]),
        )
    columns.append(("n", [count(row.n) for row in rows]))
    if any(row.n_wrong is not None for row in rows):
        columns.append(("wrong", [count(row.n_wrong) for row in rows]))
    columns += [
        ("unreadable", [count(row.n_unreadable) for row in rows]),
        ("failed", [count(row.n_failed) for row in rows]),
        *(
            [("unjudged", [count(sum(row.n_unjudged.values())) for row in rows])]
            if any(row.n_unjudged for row in rows)
            else []
        ),
        ("seconds", [f"{row.seconds:,.1f}" for row in rows]),
        ("ms p50", [count(row.latency_p50_ms) for row in rows]),
        ("ms p95", [count(row.latency_p95_ms) for row in rows]),
    ]
    if any(row.prompt_tokens is not None for row in rows):
        columns.append(("tokens in", [count(row.prompt_tokens) for row in rows]))
        columns.append(("tokens out", [count(row.completion_tokens) for row in rows]))
    if any(row.cost_usd is not None for row in rows):
        columns.append(("USD", [MISSING if row.cost_usd is None else f"{row.cost_usd:.4f}" for row in rows]))
    return Table(
        head=tuple(name for name, _ in columns), rows=tuple(zip(*(cells for _, cells in columns), strict=True))
    )


def difference_table(comparison: Comparison) -> Table:
    """One row per difference: candidate minus other."""
    head = (
        "candidate minus",
        "metric",
        f"difference [{comparison.confidence:.0%}]",
        "p",
        "p (Holm)",
        "test",
        "verdict",
    )
    return Table(head=head, rows=tuple(_difference_cells(one) for one in comparison.differences))


def _difference_cells(one: Difference) -> tuple[str, ...]:
    return (
        one.other,
        one.metric,
        with_interval(one.interval, sign=True),
        p_text(one.p_value),
        p_text(one.p_holm),
        one.test if one.p_value is not None else MISSING,
        one.verdict,
    )


def subgroup_table(comparison: Comparison) -> Table | None:
    """One row per part of the items: each program's figure, and candidate minus reference; None without parts."""
    if not comparison.subgroups:
        return None
    names = [row.name for row in comparison.programs]
    head = ("part", "n", *names, "difference", "p (Holm)")
    rows = tuple(
        (
            f"{one.field}: {one.value}",
            count(one.n),
            *(with_interval(one.scores[name]) if name in one.scores else MISSING for name in names),
            MISSING if one.difference is None else with_interval(one.difference, sign=True),
            p_text(one.p_holm),
        )
        for one in comparison.subgroups
    )
    return Table(head=head, rows=rows)


def noise_table(comparison: Comparison) -> Table | None:
    """One row per program that was asked twice; None where none was."""
    if not comparison.noise_floor:
        return None
    percent = f"{comparison.confidence:.0%}"
    head = ("program", "asked twice", "answers that changed", f"second minus first [{percent}]", "remark")
    rows = tuple(
        (
            one.program,
            count(one.n),
            count(one.n_changed),
            with_interval(one.difference, sign=True),
            "from a cache: not measured" if one.is_from_cache else MISSING,
        )
        for one in comparison.noise_floor
    )
    return Table(head=head, rows=rows)


def verdict_sentence(comparison: Comparison) -> str:
    """The finding, with what it rests on and what follows."""
    return " ".join(filter(None, (_finding(comparison), comparison.advice)))


def _finding(comparison: Comparison) -> str:
    one, metric = comparison.decisive, comparison.main_metric
    candidate, other = comparison.candidate, comparison.reference
    if one is None or other is None:
        own = comparison.row(candidate).scores[metric.name]
        return f"{candidate}: {metric.name} {with_interval(own)} on {own.n} items. There is nothing to compare it with."
    values = [figure(comparison.row(name).scores[metric.name].value) for name in (candidate, other)]
    n_others = len(comparison.programs) - 1
    who = f"{other}, the best of the {n_others} others" if comparison.is_reference_chosen and n_others > 1 else other
    p = p_text(one.p_holm)
    facts = (
        f"{metric.name} {values[0]} against {values[1]}, difference {with_interval(one.interval, sign=True)}, "
        f"p {p if p.startswith('<') else '= ' + p}, n = {one.interval.n}"
    )
    if one.verdict == "better":
        return f"{candidate} is better than {who}: {facts}."
    if one.verdict == "worse":
        return f"{candidate} is worse than {who}: {facts}. Keep {other}."
    if one.verdict == "equivalent":
        others = f"{who}," if who != other else who
        return (
            f"{candidate} and {others} are equivalent within ±{comparison.margin:g}: {facts}. Choose the cheaper one."
        )
    return f"Undecided between {candidate} and {who}: {facts}. {_what_would_decide(one)}"


def _what_would_decide(one: Difference) -> str:
    if one.n_more_items is None:
        return "No difference was seen, so no number of further items can be named that would show one."
    many = f"About {one.n_more_items:,}" if one.n_more_items > 1 else "A few"
    return f"{many} more items would decide in 4 of 5 cases, if the difference stays as seen."


def as_text(table: Table) -> str:
    """Aligned columns: names to the left, figures to the right."""
    cells = [table.head, *table.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.head))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (zip(row, widths, strict=True) for row in cells)
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(table: Table) -> str:
    """A Markdown table; bars and markup in names are escaped."""
    lines = [table.head, tuple(":--" if not column else "--:" for column in range(len(table.head))), *table.rows]
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


def footnote(comparison: Comparison) -> str:
    """What the columns count."""
    by_wrong = next((one.name for one in comparison.metrics if one.kind == "proportion"), None)
    wrong = f"*wrong* counts answers that were read and are not right by {by_wrong}; " if by_wrong else ""
    return (
        f"{wrong}*unreadable* are answers that cannot be read, *failed* are calls that ended in an error: both count "
        "as not right in shares of right answers, and are left out of errors, losses and probability scores. Brackets "
        f"hold the {comparison.confidence:.0%} interval; *p (Holm)* is corrected for the number of programs compared "
        "with the candidate."
    )


def as_html_fragment(title: str, comparison: Comparison) -> str:
    """A heading, the verdict and the table, for a notebook."""
    return f"<h3>{html.escape(title)}</h3><p>{html.escape(verdict_sentence(comparison))}</p>" + _html_table(
        program_table(comparison)
    )


def _html_table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in table.rows)
    return f"<table><thead>{row(table.head, 'th')}</thead><tbody>{body}</tbody></table>"
