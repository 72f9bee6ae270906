"""Memory of `bulk.predict` from 10,000 to 1,000,000 rows: it must not grow with the rows.

Run: python benchmarks/bulk_memory.py [--rows 10000 100000 1000000]. Each run is a fresh process that streams rows
from a JSONL file against a loopback server with its cheapest answer (no log-probabilities). Prints a JSON line for
each: rows, seconds, rows per second, and the peak of the resident memory in MB (1e6 bytes), in all and above that after
the imports. The promise: the last line's peak is within 20 MB of the first one's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

RUNNER = """
import json, sys, time
import aiohttp
import dspy_finetune as ft

def peak_bytes():
    # VmHWM, not getrusage: ru_maxrss of a child starts at its parent's size.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

url, source, output = sys.argv[1:]
host = ft.Host.compatible(url, "key", name="loopback")
predictor = ft.OpenAIPredictor(ft.prompts.binary("Likes bees."), "m", host=host, logprobs=False)
before, start = peak_bytes(), time.perf_counter()
done = ft.bulk.predict(predictor, source, output)
seconds = time.perf_counter() - start
print(json.dumps({
    "rows": done.n_rows,
    "answered": done.n_answered,
    "seconds": round(seconds, 1),
    "rows_per_second": round(done.n_rows / seconds),
    "peak_mb": round(peak_bytes() / 1e6, 1),
    "added_mb": round((peak_bytes() - before) / 1e6, 1),
}))
"""


@contextlib.contextmanager
def server(*options: str) -> Iterator[str]:
    """The address of a loopback server that ends with the block."""
    command = [sys.executable, str(Path(__file__).parent / "support" / "loopback.py"), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


def measure(url: str, n_rows: int) -> dict[str, float]:
    """One run in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        with open(source, "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"title": f"Title {number}"}) + "\n" for number in range(n_rows))
        command = [sys.executable, "-c", RUNNER, url, str(source), str(output)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    with server("--plain") as url:
        for n_rows in parser.parse_args().rows:
            print(json.dumps(measure(url, n_rows)), flush=True)
