"""What `import dspy_finetune` adds to `import dspy`, what the first use of the names adds, and what `--help` costs.

    python benchmarks/import_cost.py [--rounds 15]

Each round starts fresh processes in turn: one for dspy alone, one for both, one that then touches every public name,
one that builds a predictor, and the command line's help. Each reports its processor time (user and system) at the end.
Prints JSON lines: the least and the median of each in milliseconds, what it adds to dspy alone (difference of the
least, and median of the rounds' own differences), and the ratio to dspy alone. Processor time, because a crowded
machine stretches the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

TARGET_MS = 60
HELP = """
import contextlib, io
from dspy_finetune.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["--help"])
"""
"""No DSPy is imported for it."""
CASES = {
    "dspy": "import dspy",
    "dspy + dspy_finetune": "import dspy, dspy_finetune",
    "and a predictor": "import dspy, dspy_finetune as ft; ft.OpenAIPredictor(ft.prompts.binary(), 'ft:m')",
    "and every public name": "import dspy, dspy_finetune as ft; [getattr(ft, name) for name in ft.__all__]",
    "dspy-finetune --help, without dspy": HELP,
}
REPORT = "\nimport time; print(time.process_time())"


def cpu_ms(code: str) -> float:
    """Processor time of a fresh process that runs the code, in milliseconds."""
    done = subprocess.run([sys.executable, "-c", code + REPORT], capture_output=True, text=True, check=True)
    return 1000 * float(done.stdout)


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for code in CASES.values():
        cpu_ms(code)  # compiles what is not compiled yet, and warms the disk
    rounds = [{name: cpu_ms(code) for name, code in CASES.items()} for _ in range(options.rounds)]
    base = min(one["dspy"] for one in rounds)
    for name in CASES:
        least = min(one[name] for one in rounds)
        row = {
            "imports": name,
            "cpu_ms": round(least),
            "median_cpu_ms": round(statistics.median(one[name] for one in rounds)),
            "adds_ms": round(least - base),
            "median_adds_ms": round(statistics.median(one[name] - one["dspy"] for one in rounds)),
            "ratio": round(least / base, 3),
        }
        if name == "dspy + dspy_finetune":
            row["target_ms"] = TARGET_MS
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
