"""How fast `check` is, beside the least that any check must do, and how much memory it takes.

    python benchmarks/check_speed.py [--size-mb 50] [--rounds 3] [--system]

The least: `json.loads` of each line and tiktoken's `encode` of each content, on one core. Both run in
child processes in turn; the ratio is that of the best rounds (time on the clock, and processor time), the memory is the
peak above the imports'.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
MODEL = "gpt-4.1-mini-2025-04-14"
import json, resource, sys, time
from dspy_finetune.export import check
from dspy_finetune.export.tokens import load_encoding
encoding = load_encoding("o200k_base")
encoding.encode("warm")
path, kind = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
clock, processor = time.perf_counter(), time.process_time()
n_tokens = 0
if kind == "least":
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            for message in json.loads(line)["messages"]:
                n_tokens += len(encoding.encode(message["content"]))
else:
    report = check(path, base_model=MODEL)
    assert report.ok, report
    n_tokens = report.stats.tokens.total
print(json.dumps({
    "wall_seconds": time.perf_counter() - clock,
    "cpu_seconds": time.process_time() - processor,
    "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    "n_tokens": n_tokens,
}))
"""


def make_file(path: Path, size_mb: float, *, system: bool) -> int:
    """Write rows of a question and an answer until the file has the size; returns how many."""
    generator = random.Random(0)
    letters = "aeioulnrst"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(5000)]
    head = [{"role": "system", "content": "You judge titles by one reader's taste. " * 8}] if system else []
    size = n_rows = 0
    with path.open("w", encoding="utf-8") as stream:
        while size < size_mb * 1e6:
            question, answer = (" ".join(generator.choices(words, k=n)) for n in (90, 30))
            row = {"messages": [*head, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            size += stream.write(json.dumps(row) + "\n")
            n_rows += 1
    return n_rows


def run(path: Path, kind: str) -> dict[str, float]:
    """One round in a process of its own."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(path), kind], check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    """Make the file, run both in turn, print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--system", action="store_true", help="give every row one system prompt")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        n_rows = make_file(path, options.size_mb, system=options.system)
        rounds = [(run(path, "least"), run(path, "check")) for _ in range(options.rounds)]
    best = {
        kind: {
            name: round(min(pair[i][name] for pair in rounds), 2)
            for name in ("wall_seconds", "cpu_seconds", "memory_mb")
        }
        for i, kind in enumerate(("least", "check"))
    }
    ratios = {
        name: round(best["least"][f"{name}_seconds"] / best["check"][f"{name}_seconds"], 2) for name in ("wall", "cpu")
    }
    print(json.dumps({"size_mb": options.size_mb, "n_rows": n_rows, **best, "times_as_fast": ratios}, indent=2))


if __name__ == "__main__":
    main()
