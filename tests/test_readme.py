"""The README's figures are those that a script printed: each table under a mark stands in that script's results."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"<!-- figures: (?P<source>\S+) -->\n(?P<table>.*?)<!-- end -->", re.S)


def test_each_table_of_figures_is_in_the_results_that_it_names() -> None:
    found = list(MARKED.finditer((ROOT / "README.md").read_text(encoding="utf-8")))
    assert found
    for block in found:
        results = (ROOT / block["source"]).read_text(encoding="utf-8")
        rows = [line for line in block["table"].splitlines() if line.startswith("|")]
        assert len(rows) > 3
        assert [row for row in rows if row not in results] == [], block["source"]


def test_the_first_two_commands_are_make_quickstart_and_make_test() -> None:
    commands = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert commands[:2] == ["quickstart", "test"]
