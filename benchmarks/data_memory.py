"""How much memory streaming takes: `iter_examples` over a JSONL file of two million rows.

Run: python benchmarks/data_memory.py [--rows 2000000]. Prints one JSON object: rows, seconds, rows per second, and the
peak of the resident memory above the peak after `import dspy_finetune.data`, in MB (1e6 bytes). The promise: under 60.
A fresh process does the reading, so that nothing but the reading is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

READER = """
import json, sys, time
from dspy_finetune.data import iter_examples

def peak_bytes():
    # VmHWM, not getrusage: ru_maxrss of a child starts at its parent's size.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

before, start = peak_bytes(), time.perf_counter()
n_rows = sum(1 for _ in iter_examples(sys.argv[1], signature="title -> is_favorite: bool"))
seconds = time.perf_counter() - start
print(json.dumps({
    "rows": n_rows,
    "seconds": round(seconds, 1),
    "rows_per_second": round(n_rows / seconds),
    "import_mb": round(before / 1e6, 1),
    "added_mb": round((peak_bytes() - before) / 1e6, 1),
}))
"""


def write_rows(path: Path, n_rows: int) -> None:
    """A JSONL file of titles, each of them different."""
    with open(path, "w", encoding="utf-8") as stream:
        for number in range(n_rows):
            title = f"Title {number}: why the harbour town of {number % 977} keeps {number % 31} lighthouses"
            stream.write(json.dumps({"id": number, "title": title, "is_favorite": number % 3 == 0}) + "\n")


def measure(n_rows: int) -> dict[str, float]:
    """Write the file, read it in a fresh process, and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "titles.jsonl"
        write_rows(path, n_rows)
        done = subprocess.run([sys.executable, "-c", READER, str(path)], check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    print(json.dumps(measure(parser.parse_args().rows)))
