"""Streaming holds one example at a time: the memory does not grow with the rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# A fresh process: what other tests allocated must not hide the growth. VmHWM is the process's own peak.
READER = """
import sys
from dspy_finetune.data import iter_examples

def peak_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

for _ in iter_examples(sys.argv[1], limit=10):
    pass
before = peak_bytes()
n_rows = sum(1 for _ in iter_examples(sys.argv[1], types={"n": int}, on_error="skip"))
print(n_rows, peak_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_reading_forty_megabytes_adds_less_than_ten(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    text = "an article's text " * 50
    with open(path, "w", encoding="utf-8") as stream:
        if kind == "csv":
            stream.write("text,n\n")
        for number in range(45_000):
            row = json.dumps({"text": text, "n": number}) if kind == "jsonl" else f'"{text}",{number}'
            stream.write(row + "\n")
    done = subprocess.run([sys.executable, "-c", READER, str(path)], check=True, capture_output=True, text=True)
    n_rows, added_bytes = map(int, done.stdout.split())
    assert n_rows == 45_000
    assert added_bytes < 10e6 < path.stat().st_size / 4
