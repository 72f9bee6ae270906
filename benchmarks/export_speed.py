"""Exporting titles: rows per second beside DSPy's own formatting, and memory above the import baseline.

Both sides run in turn in the same process on the same examples. Each is measured on the clock and in processor time; a
ratio is taken within each round, and the median of the rounds is reported. The targets are held to the clock: an export
writes its file beside the making of the rows. Memory is measured in child processes, one for each figure.

    python benchmarks/export_speed.py [--rows 100000] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dspy

from dspy_finetune import prompts
from dspy_finetune.export import export_dpo, export_sft

BASE_MODEL = "gpt-4.1-mini-2025-04-14"
TARGETS = {"sft": 15.0}
MAX_MEMORY_MB = 25.0
RUBRIC = (
    "Likes quiet, specific stories about how ordinary things are made, kept and repaired, written by people who did "
    "the work. Likes local history and second thoughts. Dislikes lists, funding rounds, celebrity, outrage and "
    "anything that promises to change your life."
)
PLACES = ("harbour", "library", "bakery", "workshop", "railway", "orchard", "archive", "observatory")


def titles(n: int) -> list[dspy.Example]:
    """Labelled titles, no two alike."""
    return [
        dspy.Example(
            title=f"How the {PLACES[i % 8]} on corner {i} outlived every plan to replace it", is_favorite=i % 3 == 0
        ).with_inputs("title")
        for i in range(n)
    ]


def pairs(n: int) -> list[dspy.Example]:
    """Labelled pairs of titles, no two alike."""
    return [
        dspy.Example(
            title_a=f"How the {PLACES[i % 8]} on corner {i} outlived every plan",
            title_b=f"Ten ways to fund your {PLACES[i % 7]} number {i}",
            preferred="AB"[i % 2],
        ).with_inputs("title_a", "title_b")
        for i in range(n)
    ]


class Favourite(dspy.Signature):
    """Would this reader like the title? Answer true or false."""

    title: str = dspy.InputField()
    is_favorite: bool = dspy.OutputField()


def export_with_dspy(examples: list[dspy.Example]) -> None:
    """DSPy's own way: format each example with the adapter, then save all rows."""
    from dspy.clients.utils_finetune import save_data

    adapter = dspy.ChatAdapter()
    signature = Favourite.with_instructions(f"{Favourite.instructions}\n\n{RUBRIC}")
    save_data(
        [
            adapter.format_finetune_data(
                signature=signature, demos=[], inputs=dict(example.inputs()), outputs=dict(example.labels())
            )
            for example in examples
        ]
    )


def seconds(task: Callable[[], object]) -> tuple[float, float]:
    """Processor time and time on the clock of a task. What earlier tasks left behind is collected before."""
    gc.collect()
    processor, clock = time.process_time(), time.perf_counter()
    task()
    return time.process_time() - processor, time.perf_counter() - clock


def medians(
    rounds: list[dict[str, tuple[float, float]]], n: int, which: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Rows per second of each task, and how many times DSPy's: by processor time (0) or the clock (1)."""
    names = list(rounds[0])
    rates = {name: n / statistics.median(turn[name][which] for turn in rounds) for name in names}
    ratios = {name: statistics.median(turn["dspy"][which] / turn[name][which] for turn in rounds) for name in names}
    return rates, ratios


MEMORY = """
import resource, sys
def peak_mb():
    # Not ru_maxrss on Linux: a child starts with its parent's.
    try:
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
from dspy_finetune import prompts
from dspy_finetune.export import export_sft
prompt, n, path, model = prompts.binary(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] or None
title = "How the harbour on corner {} outlived every plan to replace it"
rows = ({"title": title.format(i), "is_favorite": i % 3 == 0} for i in range(n))
before = peak_mb()
if model:
    from dspy_finetune.export.tokens import encoding_for, load_encoding
    load_encoding(encoding_for(model))
    before = peak_mb()
assert export_sft(rows, prompt, path, base_model=model).n_rows == n
print(peak_mb() - before)
"""


def memory_mb(n: int, folder: str, model: str = "") -> float:
    """Peak memory of an export from a stream, above what the imports (and the token table) take."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, RUBRIC, str(n), f"{folder}/memory.jsonl", model],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(run.stdout)


def main() -> int:
    """Measure, print, and fail when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    n = options.rows
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DSPY_FINETUNEDIR"] = folder
        examples, title_pairs = titles(n), pairs(n)
        sft, dpo = prompts.binary(RUBRIC), prompts.pairwise(RUBRIC)
        path = Path(folder) / "train.jsonl"
        export_sft(examples[:1000], sft, path, base_model=BASE_MODEL)  # loads the token table once, outside the clock
        tasks: dict[str, Callable[[], object]] = {
            "dspy": lambda: export_with_dspy(examples),
            "sft": lambda: export_sft(examples, sft, path),
            "sft with tokens": lambda: export_sft(examples, sft, path, base_model=BASE_MODEL),
            "dpo": lambda: export_dpo(title_pairs, dpo, path),
            "dpo with tokens": lambda: export_dpo(title_pairs, dpo, path, base_model=BASE_MODEL),
        }
        rounds = [{name: seconds(task) for name, task in tasks.items()} for _ in range(options.rounds)]
        memory = {
            "sft": memory_mb(n, folder),
            "sft with tokens": memory_mb(n, folder, BASE_MODEL),
            "sft, ten times the rows": memory_mb(10 * n, folder),
        }
    _, ratios_of_processor = medians(rounds, n, 0)
    rates, ratios = medians(rounds, n, 1)
    missed = [name for name, least in TARGETS.items() if ratios[name] < least]
    missed += ["memory"] if memory["sft"] >= MAX_MEMORY_MB else []
    if options.json:
        machine = {"python": platform.python_version(), "dspy": dspy.__version__, "cpus": os.cpu_count()}
        figures = {"rows": n, "rows_per_second": rates, "ratio": ratios, "ratio_of_processor_time": ratios_of_processor}
        figures |= {"memory_mb": memory, "machine": machine}
        print(json.dumps(figures))
    else:
        print(f"{n:,} rows, median of {options.rounds} rounds, on the clock, checks and manifest included")
        for name, rate in rates.items():
            target = f"   target {TARGETS[name]:.0f}x" if name in TARGETS else ""
            print(
                f"  {name:<24} {rate:>10,.0f} rows/s   {ratios[name]:>6.1f}x   "
                f"{ratios_of_processor[name]:>6.1f}x in processor time{target}"
            )
        for name, size in memory.items():
            print(f"  {name:<24} {size:>10.1f} MB above the import baseline")
    for name in missed:
        print(f"missed: {name}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
