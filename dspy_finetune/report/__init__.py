"""Results as pages: blocks in, one HTML page, Markdown or a terminal's table out.

    >>> from dspy_finetune.report import Section, Table, markdown
    >>> table = Table(head=("program", "accuracy"), rows=(("tuned", "0.812"), ("majority", "0.667")))
    >>> print(markdown(Section(title="Titles", verdict="tuned is better.", blocks=(table,))))
    # Titles
    <BLANKLINE>
    tuned is better.
    <BLANKLINE>
    | program | accuracy |
    | :-- | --: |
    | tuned | 0.812 |
    | majority | 0.667 |
    <BLANKLINE>

What `compare`, `learning_curve`, `plan`, `check` and all others return is `Reported`: it says which blocks it is, so it
has `to_html`, `to_markdown` and a notebook's view; `write_html` puts several on one page.
"""

from dspy_finetune.report.blocks import (
    Bullets,
    Facts,
    Heading,
    ItemList,
    Plot,
    Plots,
    Section,
    Table,
    Text,
    as_text,
    markdown,
)
from dspy_finetune.report.page import Reported, write_html

__all__ = [
    "Bullets",
    "Facts",
    "Heading",
    "ItemList",
    "Plot",
    "Plots",
    "Reported",
    "Section",
    "Table",
    "Text",
    "as_text",
    "markdown",
    "write_html",
]
