"""The display: what is trained is marked, and nothing in the data can change the display or the terminal."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from dspy_finetune.errors import UsageError
from dspy_finetune.export import show
from dspy_finetune.export.checks.show import REJECTED, TRAINED, render, visible

from .test_checks import BROKEN, GOOD, json_values, write


def styled(text: Text, style: str) -> str:
    return "|".join(text.plain[span.start : span.end] for span in text.spans if span.style == style)


def test_trained_answers_stand_out_and_untrained_ones_do_not() -> None:
    rows = list(show(GOOD / "tools_and_weights.jsonl", 12))
    assert styled(rows[0], TRAINED) == "answer 0"
    assert styled(rows[11], TRAINED) == "last"
    assert "look_up" in styled(rows[10], TRAINED)


def test_preferred_and_rejected_outputs_have_their_own_colour() -> None:
    [row] = show(GOOD / "preference.jsonl", 1)
    assert (styled(row, TRAINED), styled(row, REJECTED)) == ("B", "A")
    [wrong] = show(BROKEN / "preference-wrong-spelling.jsonl", 1)
    assert wrong.plain == row.plain


def test_markup_and_escapes_of_the_data_are_text() -> None:
    text = render({"messages": [{"role": "assistant", "content": "[red]x[/red] \x1b[31m \u202e \x07"}]})
    assert "[red]x[/red] \\x1b[31m \\u202e \\x07" in text.plain


def test_lines_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    text = list(show(BROKEN / "nested-too-deeply.jsonl", 4))[3]
    assert "line 4" in text.plain
    with pytest.raises(UsageError, match="n=0"):
        list(show(tmp_path, 0))


@given(st.text())
def test_visible_text_has_no_control_characters(text: str) -> None:
    shown = visible(text)
    assert all(c in "\n\t" or c.isprintable() or c.isspace() or ord(c) > 0x9F for c in shown)
    assert "\x1b" not in shown


@given(st.lists(json_values, min_size=1, max_size=4))
def test_no_json_makes_the_display_crash(values: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        list(show(write(Path(folder) / "fuzz.jsonl", values), 4))


def test_of_a_long_text_the_beginning_and_the_end_are_shown(tmp_path: Path) -> None:
    question = {"role": "user", "content": "a" * 1_000_000 + "the end"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [question, {"role": "assistant", "content": "yes"}]}) + "\n")
    [row] = show(path, 1)
    assert len(row.plain) < 4_000
    assert "(996,507 characters more)" in row.plain
    assert "the end\n  trained assistant: yes" in row.plain
