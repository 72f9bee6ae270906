"""Nothing long is silent, and nothing short is loud."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from typing import Any

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune import _progress
from dspy_finetune._progress import Progress, ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Seconds:
    """The time that the bar sees."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Seconds:
    made = Seconds()
    monkeypatch.setattr(_progress, "time", made)
    return made


def told(stream: io.StringIO, seconds: list[float], n_total: int | None, clock: Seconds, **options: Any) -> str:
    """What is shown when something is told of at these seconds."""
    clock.now = 0.0
    with ProgressBar(stream, **options) as bar:
        for n_done, clock.now in enumerate(seconds, start=1):
            bar.show("asking", n_done, n_total)
    return stream.getvalue()


def test_what_is_short_shows_nothing(clock: Seconds) -> None:
    assert told(io.StringIO(), [0.5, 1.0, 2.0], 3, clock) == ""
    assert told(Terminal(), [0.5, 1.0, 2.0], 3, clock) == ""


def test_more_than_two_seconds_or_fifty_items_are_shown(clock: Seconds) -> None:
    assert told(io.StringIO(), [0.5, 2.1, 3.0], 40, clock) == "asking 2/40\n"
    assert told(io.StringIO(), [0.1, 0.2], 51, clock) == "asking 1/51\n"


def test_a_log_gets_a_line_now_and_then_and_the_last(clock: Seconds) -> None:
    """The time left goes by the pace since the first: two in 16 seconds, one to go."""
    lines = "asking 1/4\nasking 3/4, about 8 s left\nasking 4/4\n"
    assert told(io.StringIO(), [3.0, 4.0, 19.0, 20.0], 4, clock) == lines


def test_a_log_is_not_told_again_what_says_nothing_new(clock: Seconds) -> None:
    """Without a count, "running" after "running" would be a column of the same word."""
    stream = io.StringIO()
    with ProgressBar(stream, waits=False) as bar:
        for clock.now, note in ((0.0, ""), (16.0, ""), (32.0, "loading"), (48.0, "")):
            bar.show("running", note=note)
    assert stream.getvalue() == "running\nrunning, loading\nrunning\n"


def test_the_end_is_told_once(clock: Seconds) -> None:
    """A job that has done its steps is still looked at until its model is there."""
    stream = io.StringIO()
    with ProgressBar(stream, waits=False) as bar:
        for clock.now in (0.0, 1.0, 2.0, 20.0):
            bar.show("running", 3, 3)
    assert stream.getvalue() == "running 3/3\n" * 2


def test_a_terminal_keeps_one_line(clock: Seconds) -> None:
    shown = told(Terminal(), [3.0, 3.05, 4.0], 3, clock)
    assert shown.count("\n") == 1
    assert shown.endswith("\n")
    drawn = [line for line in shown.split("\r") if line.strip()]
    assert [text in drawn[at] for at, text in ((0, "1/3"), (-1, "3/3"))] == [True, True]
    assert not any("2/3" in line for line in drawn)  # too soon after the first
    assert all("asking" in line for line in drawn)


@pytest.mark.parametrize("n_total", [None, 4])
def test_a_narrow_terminal_cuts_the_line_and_keeps_it_one(
    n_total: int | None, monkeypatch: pytest.MonkeyPatch, clock: Seconds
) -> None:
    """A line that is wider than the terminal would leave its first half behind at every drawing."""
    monkeypatch.setattr(os, "get_terminal_size", lambda _file=None: os.terminal_size((41, 24)))
    stream = Terminal()
    monkeypatch.setattr(stream, "fileno", lambda: 2)
    with ProgressBar(stream, waits=False) as bar:
        for clock.now in (0.0, 1.0):
            bar.show("ftjob-0123456789abcdef on local: running", None if n_total is None else 1, n_total, "loss 1.2")
    drawn = stream.getvalue().replace("\n", "\r").split("\r")
    assert max(map(len, drawn)) == 40
    assert all(line.startswith("ftjob-") for line in drawn if line.strip())


def test_a_terminal_that_knows_no_codes_gets_the_lines_of_a_log(
    monkeypatch: pytest.MonkeyPatch, clock: Seconds
) -> None:
    seconds = [float(n) for n in range(40)]
    monkeypatch.setenv("TERM", "dumb")
    assert told(Terminal(), seconds, 40, clock) == told(io.StringIO(), seconds, 40, clock)


def test_a_command_shows_each_step_at_once(clock: Seconds) -> None:
    stream = io.StringIO()
    with ProgressBar(stream, waits=False) as bar:
        bar.show("12 titles")
        bar.show("training", 0, 4, "queued")
        bar.show("training", 1, 4)
        clock.now = 20.0
        bar.show("training", 2, 4, "loss 1.2")
        bar.show("asking")
    assert stream.getvalue() == "12 titles\ntraining 0/4, queued\ntraining 2/4, about 40 s left, loss 1.2\nasking\n"


def test_it_can_be_silenced(monkeypatch: pytest.MonkeyPatch, clock: Seconds) -> None:
    monkeypatch.setenv("DSPY_FINETUNE_QUIET", "1")
    assert told(io.StringIO(), [3.0, 30.0], 100, clock) == ""
    assert told(io.StringIO(), [3.0, 30.0], 100, clock, waits=False) == ""


def test_what_callbacks_are_given_can_be_shown(clock: Seconds) -> None:
    """One protocol for jobs, comparisons, curves and bulk runs."""
    shared = {"n_done": 2, "n_total": 8}
    looks: list[Progress] = [
        ft.evaluation.CompareProgress(
            program="tuned", n_asked=2, n_items=4, n_parse_failures=0, n_failed=0, n_resumed=0, **shared
        ),
        ft.evaluation.CurveProgress(stage="training", run="m, 10 rows", note="running", **shared),
        ft.bulk.BulkProgress(
            n_errors=0, n_reused=0, rows_per_second=None, eta_seconds=None, cost_usd=None, n_in_flight=1,
            concurrency=1, n_retries=0, **shared,
        ),
    ]  # fmt: skip
    stream = io.StringIO()
    with ProgressBar(stream, waits=False) as bar:
        for look in looks:
            bar.tell(look)
    assert stream.getvalue() == "asking tuned 2/8\ntraining m, 10 rows 2/8\nasking 2/8\n"
    assert [str(look) for look in looks] == ["asking tuned 2/4", "training m, 10 rows: running, 2/8", "2/8 rows"]


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


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_silent_command_says_that_it_is_at_work(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the line goes when something else is written; in a log it stays, without control codes."""
    stream: io.StringIO = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(_progress, "SHORT_SECONDS", 0.0)
    monkeypatch.setattr(_progress.Heartbeat, "FIRST_IN_A_LOG_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", stream)
    with _progress.Heartbeat("advise"):
        deadline = time.monotonic() + 10
        while "at work" not in stream.getvalue() and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        print("done", file=sys.stderr)
    assert sys.stderr is stream
    said = stream.getvalue()
    assert said.rstrip("\r\x1b[K").endswith("done\n")
    if is_terminal:
        assert said.startswith("\radvise: at work, 0 s")
        assert "\r\x1b[Kdone" in said
    else:
        assert re.fullmatch(r"(advise: at work, \d+ s\n)+done\n", said)


def test_quiet_silences_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_FINETUNE_QUIET", "1")
    before = sys.stderr
    with _progress.Heartbeat("advise"), ProgressBar(stream := io.StringIO(), waits=False) as bar:
        assert sys.stderr is before
        bar.show("training", 1, 2)
        bar.say("validated")
    assert stream.getvalue() == ""


def test_a_line_that_stays_stands_above_the_bar(clock: Seconds) -> None:
    stream = Terminal()
    with ProgressBar(stream, waits=False) as bar:
        bar.show("training", 1, 2)
        bar.say("validated")
        clock.now = 1.0
        bar.show("training", 2, 2)
    lines = stream.getvalue().replace("\r", "\n").split("\n")
    assert "validated" in lines
    assert not ProgressBar.drawn


def test_what_is_waited_for_is_told_where_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    heard = threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        heard.set()

    with _progress.told_if_slow("short", tell):
        pass
    monkeypatch.setattr(_progress, "SHORT_SECONDS", 0.0)
    with _progress.told_if_slow("long", tell):
        assert heard.wait(60)
    assert told == ["long"]
    monkeypatch.setenv("DSPY_FINETUNE_QUIET", "1")
    with _progress.told_if_slow("quiet", tell):
        pass
    assert told == ["long"]
