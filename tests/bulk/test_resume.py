"""However a run ends, the next goes on: no answered row is asked again, and the output is that of an unbroken run."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dspy_finetune as ft
from dspy_finetune import bulk
from dspy_finetune.bulk import run
from dspy_finetune.errors import DataError, HostError
from tests.loopback import Loopback

REPOSITORY = Path(__file__).parents[2]

CHILD = """
import sys
import dspy_finetune as ft
from dspy_finetune import bulk

url, source, output = sys.argv[1:]
host = ft.Host.compatible(url, "key", name="loopback")
predictor = ft.OpenAIPredictor(ft.prompts.binary("Likes bees."), "m", host=host)
print(bulk.predict(predictor, source, output, concurrency=8).n_reused)
"""


def test_a_run_that_is_killed_again_and_again_asks_for_each_answered_row_once(
    loopback: Loopback, tmp_path: Path
) -> None:
    n_rows, n_kills = 240, 3
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"title": f"row {number}"}) + "\n" for number in range(n_rows)))
    loopback.delay_seconds = lambda question: 0.02
    command = [sys.executable, "-c", CHILD, loopback.url, str(source), str(output)]
    kept = tmp_path / "out.jsonl.checkpoint"
    n_kept = 0
    for number in range(n_kills):
        child = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
        deadline = time.monotonic() + 300
        while len(loopback.answered) < 50 * (number + 1):
            assert child.poll() is None, "the child ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert not output.exists()
        assert kept.read_bytes().count(b"\n") - 1 > n_kept  # each run adds to what there was
        n_kept = kept.read_bytes().count(b"\n") - 1
    whole_lines = kept.read_bytes().splitlines(keepends=True)[1:]
    known = {int(line.split(b"\t", 1)[0]) for line in whole_lines if line.endswith(b"\n")}
    before = Counter(loopback.asked)
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert int(done.stdout) == len(known)
    # Not one of the rows on the disk was asked for again, and of the others only those under way at a kill.
    again = {question for question, n in loopback.asked.items() if n > 1}
    assert not {f"Title: row {index}" for index in known} & set((loopback.asked - before).keys())
    assert len(again) <= n_kills * 8
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["title"] for row in rows] == [f"row {number}" for number in range(n_rows)]
    assert {row["status"] for row in rows} == {"answered"}
    assert not kept.exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_rows=st.integers(1, 40),
    bad=st.sets(st.integers(0, 39)),
    odd=st.sets(st.integers(0, 39)),
    stops=st.lists(st.integers(1, 40), max_size=3),
    concurrency=st.integers(1, 9),
    window=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_order_and_content_do_not_depend_on_where_a_run_broke(
    n_rows: int, bad: set[int], odd: set[int], stops: list[int], concurrency: int, window: int, seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(run, "WINDOW", window)
    rows = [{"n": number} if number not in bad else "no row" for number in range(n_rows)]
    answered: Counter[int] = Counter()
    until = 10**9

    async def program(n: int) -> dspy.Prediction:
        for _ in range((n * 7919 + seed) % 5):
            await asyncio.sleep(0)
        if sum(answered.values()) >= until:
            raise HostError("gone", status=401)
        answered[n] += 1
        if n in odd:
            raise ft.errors.AnswerError("odd", text=str(n))
        return dspy.Prediction(twice=2 * n)

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.jsonl"
        for stop in sorted(stops):
            until = stop
            try:
                bulk.predict(program, rows, output, concurrency=concurrency, overwrite=True)
                break
            except HostError:
                assert not output.exists()
        until = 10**9
        if not output.exists():
            bulk.predict(program, rows, output, concurrency=concurrency)
        found = [json.loads(line) for line in output.read_text().splitlines()]
        assert sorted(path.name for path in Path(folder).iterdir()) == ["out.jsonl"]
    assert set(answered.values()) <= {1}
    expected = [
        "bad_row" if number in bad else "parse_failure" if number in odd else "answered" for number in range(n_rows)
    ]
    assert [row["status"] for row in found] == expected
    assert [row.get("twice") for row, status in zip(found, expected, strict=True) if status == "answered"] == [
        2 * number for number, status in enumerate(expected) if status == "answered"
    ]


def test_a_torn_line_is_asked_again_and_a_damaged_file_is_refused(loopback: Loopback, tmp_path: Path) -> None:
    output, kept = tmp_path / "out.jsonl", tmp_path / "elsewhere" / "kept"
    predictor = ft.OpenAIPredictor(ft.prompts.binary("Bees."), "m", host=loopback.host)
    rows = [{"title": f"row {number}"} for number in range(12)]
    loopback.fault = lambda body, n: (401, {}, {}) if len(loopback.answered) >= 6 else None
    with pytest.raises(HostError):
        bulk.predict(predictor, rows, output, files=bulk.FileOptions(checkpoint=kept), concurrency=1)
    loopback.fault = lambda body, n: None
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-9])
    assert bulk.predict(predictor, rows, output, files=bulk.FileOptions(checkpoint=kept)).n_reused == 5
    assert len(output.read_text().splitlines()) == 12

    kept.write_bytes(whole.replace(b"\t", b" ", 3))
    with pytest.raises(DataError, match="damaged"):
        bulk.predict(predictor, rows, output, files=bulk.FileOptions(checkpoint=kept), overwrite=True)
    kept.write_bytes(b"something else\n")
    with pytest.raises(DataError, match="not a checkpoint"):
        bulk.predict(predictor, rows, output, files=bulk.FileOptions(checkpoint=kept), overwrite=True)
    assert kept.read_bytes() == b"something else\n"


def test_a_crash_between_the_output_and_the_end_is_no_new_run(loopback: Loopback, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    predictor = ft.OpenAIPredictor(ft.prompts.binary("Bees."), "m", host=loopback.host)
    rows = [{"title": f"row {number}"} for number in range(5)]
    loopback.fault = lambda body, n: (401, {}, {}) if len(loopback.answered) >= 3 else None
    with pytest.raises(HostError):
        bulk.predict(predictor, rows, output, concurrency=1)
    output.write_text("the file of the moment before\n")
    loopback.fault = lambda body, n: None
    assert bulk.predict(predictor, rows, output).n_reused == 3
    assert set(loopback.answered.values()) == {1}


def test_a_program_that_never_waits_is_written_down_all_the_same(tmp_path: Path) -> None:
    kept = tmp_path / "out.jsonl.checkpoint"
    most_unwritten = 0

    async def program(n: int) -> dspy.Prediction:
        nonlocal most_unwritten
        n_written = kept.read_bytes().count(b"\n") - 1
        most_unwritten = max(most_unwritten, n - n_written)
        return dspy.Prediction(twice=2 * n)

    rows = [{"n": number} for number in range(300)]
    assert bulk.predict(program, rows, tmp_path / "out.jsonl", concurrency=4).n_answered == 300
    assert most_unwritten <= 8
