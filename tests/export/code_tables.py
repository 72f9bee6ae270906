"""The tables of docs/troubleshooting.md that repeat checks/codes.py.

`python -m tests.error_messages --write` writes them anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from dspy_finetune.export.checks import codes

DOCS = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
SECTIONS = {
    "The file": codes.FILE_CODES,
    "Lines as text": codes.LINE_CODES,
    "Formats of rows": codes.FORMAT_CODES,
    "Messages": codes.MESSAGE_CODES,
    "Tools": codes.TOOL_CODES,
    "Images": codes.IMAGE_CODES,
    "Preferences": codes.PREFERENCE_CODES,
    "The base model": codes.MODEL_CODES,
    "Rows together": codes.SET_CODES,
    "What spoils training": codes.LINT_CODES,
}
HEAD = "| code | severity | cause | remedy | source | fix |\n|---|---|---|---|---|---|\n"
BEGIN, END = "<!-- check codes -->", "<!-- end of check codes -->"


def tables() -> str:
    """All codes as Markdown."""
    parts = []
    for title, table in SECTIONS.items():
        rows = [
            f"| `{code}` | {about.severity} | {about.meaning} | {about.remedy} | {about.source} |"
            f" {'yes' if about.fixable else ''} |\n"
            for code, about in table.items()
        ]
        parts.append(f"### {title}\n\n{HEAD}{''.join(rows)}")
    return "\n".join(parts)


def documented() -> str:
    """What stands between the two marks of the page."""
    found = re.search(f"{BEGIN}\n\n(.*)\n{END}", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def write() -> None:
    """Write them into the page anew."""
    page = DOCS.read_text(encoding="utf-8")
    begin, end = page.index(BEGIN), page.index(END)
    DOCS.write_text(f"{page[:begin]}{BEGIN}\n\n{tables()}\n{page[end:]}", encoding="utf-8")
