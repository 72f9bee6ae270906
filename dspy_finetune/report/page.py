"""One self-contained HTML page: verdicts, tables, pictures, the items, and what was not checked.

In: sections of blocks, loss curves, a title. Out: a page that needs no network, follows light and dark, and fits a
phone. Everything that comes from data passes through jinja2's autoescape or matplotlib's own escaping: a title with
`<script>` in it shows as text; and the page's own policy lets nothing run but its own script, and nothing be fetched.
Not covered: the look (page.html.jinja, page.css), pictures (plots.py), what the blocks say (the results).
"""

from __future__ import annotations

import abc
import base64
import hashlib
import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dspy_finetune._files import atomic_writer
from dspy_finetune._optional import require
from dspy_finetune.errors import UsageError
from dspy_finetune.report import plots
from dspy_finetune.report.blocks import (
    Block,
    Bullets,
    Facts,
    Heading,
    ItemList,
    Plot,
    Plots,
    Section,
    Shown,
    Table,
    Text,
    losses,
    markdown,
)
from dspy_finetune.report.plots import Training, loss_curves

MAX_ITEMS = 2000
"""Items shown in the searchable table; JSON holds all."""

MAX_TEXT = 2000
"""Characters of a text shown there, the first 300 before it is opened."""


def write_html(
    path: str | os.PathLike[str],
    sections: Sequence[Shown],
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
    write_text(path, render([one.section() for one in sections], title=title, training=training))


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write a page or a Markdown document; it appears complete or not at all. Raises FileError."""
    with atomic_writer(path) as stream:
        stream.write(content.encode("utf-8", "replace"))


def render(sections: Sequence[Section], *, title: str, training: Training | None = None) -> str:
    """The page as text; `write_html` documents the arguments."""
    if not sections:
        raise UsageError("a report page needs at least one report in sections=[...]")
    jinja2 = require("jinja2", "report", "an HTML report")
    # Markup: the texts inside a picture were escaped by matplotlib, and the script is the package's own file.
    markup = require("markupsafe", "report", "an HTML report").Markup
    curves = (
        {name: rows for one in sections for name, rows in one.training.items()}
        if training is None
        else loss_curves(training)
    )
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
    training_losses = Plot(
        name="training",
        draw=lambda name: plots.losses(curves, name),
        caption="Loss over the steps of the training.",
        alt="Loss: " + "; ".join(losses(curves)),
    )
    page: str = environment.get_template("page.html.jinja").render(
        title=title,
        style=markup((folder / "page.css").read_text(encoding="utf-8")),
        # A page without a list of items has nothing to search or to sort.
        script=markup(script) if any(isinstance(one, ItemList) for part in sections for one in part.blocks) else "",
        max_text=MAX_TEXT,
        max_items=MAX_ITEMS,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sections=[_drawn(section, number) for number, section in enumerate(sections, start=1)],
        training=_pictures([training_losses], ""),
    )
    return page


class Reported(abc.ABC):
    """A result that says which blocks it is, and so writes itself as a page, as Markdown, and in a notebook."""

    @abc.abstractmethod
    def section(self) -> Section:
        """The blocks that it consists of, for a page of several."""

    def markdown(self) -> str:
        """The whole as Markdown."""
        return markdown(self.section())

    def html(self) -> str:
        """One self-contained HTML page. Raises MissingExtraError without the extra `report`."""
        section = self.section()
        return render([section], title=section.title)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the page. Raises FileError, and MissingExtraError without the extra `report`."""
        write_text(path, self.html())

    def to_markdown(self, path: str | os.PathLike[str]) -> None:
        """Write the Markdown. Raises FileError."""
        write_text(path, self.markdown())

    def _repr_html_(self) -> str:
        return fragment(self.section())


def fragment(section: Section) -> str:
    """A heading, the verdict and the first table, for a notebook; without figures in a table, all that is words."""
    table = next((one for one in section.blocks if isinstance(one, Table) and not one.holds_text), None)
    verdict = "" if section.verdict is None else f"<p>{html.escape(section.verdict)}</p>"
    if table is not None:
        shown = _html_table(table)
    else:
        shown = "".join(map(_html_block, section.blocks)) + _html_block(Bullets(lines=section.not_checked))
    return f"<h3>{html.escape(section.title)}</h3>{verdict}{shown}"


def _html_block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h4>{html.escape(block.text)}</h4>"
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Bullets):
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in block.lines)
        return f"<ul>{lines}</ul>" if lines else ""
    if isinstance(block, Facts):
        rows = (f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in block.facts.items())
        return f"<table><tbody>{''.join(rows)}</tbody></table>"
    return _html_table(block) if isinstance(block, Table) else ""


def _html_table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in table.rows)
    return f"<table><thead>{row(table.head, 'th')}</thead><tbody>{body}</tbody></table>"


def _drawn(section: Section, number: int) -> dict[str, Any]:
    """A section as the template reads it: its pictures drawn, with ids that are unique on the page."""
    return {
        "number": number,
        "title": section.title,
        "verdict": section.verdict,
        "outcome": (section.outcome or "alone").replace(" ", "-"),
        "blocks": [_block(block, number) for block in section.blocks],
        "not_checked": section.not_checked,
    }


def _block(block: Block, number: int) -> dict[str, Any]:
    kind = type(block).__name__
    if isinstance(block, Plots):
        return {"kind": kind, "plots": _pictures(block.plots, str(number))}
    return {"kind": kind, "block": block}


def _pictures(drawn: Sequence[Plot], number: str) -> list[dict[str, str]]:
    """The pictures that have something to draw."""
    found = [(one, one.draw(f"{one.name}{number}")) for one in drawn]
    return [{"svg": svg, "caption": one.caption, "alt": one.alt} for one, svg in found if svg is not None]
