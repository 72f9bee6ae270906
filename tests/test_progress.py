"""Nothing long is silent, and nothing short is loud."""

from __future__ import annotations

import io

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune._progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(stream: io.StringIO, seconds: list[float], n_total: int | None) -> str:
    """What is shown when something is told of at these seconds."""
    at = iter([0.0, *seconds])
    with ProgressLine(stream, lambda: next(at)) as line:
        for n_done in range(1, len(seconds) + 1):
            line.show("asking", n_done, n_total)
    return stream.getvalue()


def test_what_is_short_shows_nothing() -> None:
    assert told(io.StringIO(), [0.5, 1.0, 2.0], 3) == ""
    assert told(Terminal(), [0.5, 1.0, 2.0], 3) == ""


def test_more_than_two_seconds_or_fifty_items_are_shown() -> None:
    assert told(io.StringIO(), [0.5, 2.1, 3.0], 40) == "asking 2/40\n"
    assert told(io.StringIO(), [0.1, 0.2], 51) == "asking 1/51\n"


def test_a_log_gets_a_line_now_and_then_and_the_last() -> None:
    assert told(io.StringIO(), [3.0, 4.0, 19.0, 20.0], 4) == "asking 1/4\nasking 3/4\nasking 4/4\n"


def test_a_terminal_keeps_one_line() -> None:
    assert told(Terminal(), [3.0, 3.1, 4.0], 3) == "\rasking 1/3\rasking 3/3\n"


def test_it_can_be_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_FINETUNE_QUIET", "1")
    assert told(io.StringIO(), [3.0, 30.0], 100) == ""


@pytest.mark.parametrize("n_items", [50, 51])
def test_compare_tells_of_more_than_fifty_items(n_items: int, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [dspy.Example(title=str(n), liked=True).with_inputs("title") for n in range(n_items)]
    programs = {"majority": ft.baselines.majority(rows, label="liked")}
    ft.compare(programs, rows, [ft.metrics.accuracy("liked")])
    shown = capsys.readouterr()
    assert shown.out == ""
    if n_items > 50:
        assert shown.err.splitlines()[-1] == "asking majority 51/51"
    ft.compare(
        programs, rows, [ft.metrics.accuracy("liked")], running=ft.evaluation.RunOptions(on_progress=lambda look: None)
    )
    assert capsys.readouterr().err == ""
