"""What a terminal of few columns shows of lines and tables: all of it, and nothing broken."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_finetune.report.blocks import Table, as_text, fitted

WORDS = st.text("abc", min_size=1, max_size=9)
LINES = st.lists(st.lists(WORDS, min_size=1, max_size=12).map(" ".join), min_size=1, max_size=4)


# The longest word fits behind the widest indent.
@given(lines=LINES, width=st.integers(9 + 4, 60), indent=st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_lines_are_broken_between_words_and_lose_none(lines: list[str], width: int, indent: int) -> None:
    text = fitted("\n".join(lines), width, indent=indent)
    assert all(len(line) <= width for line in text.split("\n"))
    assert text.split() == " ".join(lines).split()


@given(
    cells=st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=2, max_size=5, unique_by=lambda row: row[0]),
    width=st.integers(20, 60),
)
@settings(max_examples=50, deadline=None)
def test_a_table_in_parts_has_each_cell_beside_its_row(cells: list[tuple[str, ...]], width: int) -> None:
    head, *rows = cells
    text = fitted(as_text(Table(head=head, rows=tuple(rows))), width)
    assert all(len(line) <= width for line in text.split("\n"))
    found: dict[str, list[str]] = {row[0]: [] for row in cells}
    for line in text.split("\n"):
        if line and "─" not in line:
            name, *others = line.split()
            found[name] += others
    assert found == {name: others for name, *others in cells}


def test_what_fits_and_what_is_copied_stays_as_it_is() -> None:
    command = "dspy-finetune train train.jsonl --host local --save predictor.json"
    text = f"name  n\n────  ─\na     1\n\n{command}\n  $ {command}\n- short"
    assert fitted(text, 20) == text
    assert fitted("- some words that go on", 14) == "- some words\n  that go on"
    assert fitted("    -> some words that go on", 18) == "    -> some words\n       that go on"
