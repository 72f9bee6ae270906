"""One self-contained HTML page: verdict, tables, pictures, the items, and what was not checked.

In: one or several reports, loss curves, a title. Out: a page that needs no network, follows light and dark, and fits a
phone. Everything that comes from data passes through jinja2's autoescape or matplotlib's own escaping: a title with
`<script>` in it shows as text; and the page's own policy lets nothing run but its own script, and nothing be fetched.
Not covered: the look (page.html.jinja), pictures (figures.py), numbers (evaluation/).
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_finetune._files import atomic_writer
from dspy_finetune._optional import require
from dspy_finetune.errors import UsageError
from dspy_finetune.report import figures, items, tables
from dspy_finetune.report.plots import Training, loss_curves

if TYPE_CHECKING:
    from dspy_finetune.report.numbers import Report

MAX_ITEMS = 2000
"""Items shown in the searchable table; JSON holds all."""

MAX_TEXT = 2000
"""Characters of a text shown there, the first 300 before it is opened."""


def write(
    path: str | os.PathLike[str],
    sections: Sequence[Report],
    *,
    training: Training | None = None,
    title: str = "Was the tuned model worth it?",
) -> None:
    """Write one page for several reports, with the loss curves of their training.

    Args:
        path: The HTML file; it appears complete or not at all.
        sections: The reports, in order; each one's `title` heads its section.
        training: A name, and a `Job` or rows of (step, loss); by default the reports' own.
        title: Of the page.

    Raises:
        UsageError: There are no sections.
        FileError: The file cannot be written.
        HostError: A job in `training` cannot be asked for its figures.
        MissingExtraError: The extra `report` is not installed.
    """
    page = render(sections, title=title, training=training)
    with atomic_writer(path) as stream:
        stream.write(page.encode("utf-8", "replace"))


def render(sections: Sequence[Report], *, title: str, training: Training | None = None) -> str:
    """The page as text; `write` documents the arguments."""
    if not sections:
        raise UsageError("a report page needs at least one report in sections=[...]")
    jinja2 = require("jinja2", "report", "an HTML report")
    # Markup: the texts inside a picture were escaped by matplotlib, and the script is the package's own file.
    markup = require("markupsafe", "report", "an HTML report").Markup
    if training is None:
        training = {name: rows for report in sections for name, rows in report.training.items()}
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["as_drawn"] = markup
    script = (folder / "page.js").read_text(encoding="utf-8")
    page: str = environment.get_template("page.html.jinja").render(
        title=title,
        style=markup((folder / "page.css").read_text(encoding="utf-8")),
        script=markup(script),
        max_text=MAX_TEXT,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sections=[_section(report, number) for number, report in enumerate(sections, start=1)],
        training=figures.of_training(loss_curves(training)),
    )
    return page


def _section(report: Report, number: int) -> dict[str, Any]:
    comparison = report.comparison
    rows = items.listing(comparison, report.near)
    return {
        "number": number,
        "title": report.title,
        "verdict": report.verdict,
        "outcome": report.outcome or "alone",
        "table": tables.program_table(comparison),
        "footnote": tables.footnote(comparison).replace("*", ""),
        "differences": tables.difference_table(comparison) if comparison.differences else None,
        "figures": figures.of_report(report, number),
        "confusion": items.confusion(comparison),
        "leanings": items.leanings(comparison),
        "parts": tables.subgroup_table(comparison),
        "noise": tables.noise_table(comparison),
        "inputs": list(comparison.items[0].inputs),
        "programs": [row.name for row in comparison.programs],
        "rows": rows[:MAX_ITEMS],
        "n_disputed": sum(row.is_disputed for row in rows),
        "n_items": len(comparison.items),
        "max_items": MAX_ITEMS,
        "cards": report.cards,
        "not_checked": comparison.not_checked,
        "errors": items.errors(comparison),
        "candidate": comparison.candidate,
    }
