"""How much data do tuned heads and linear models need? Learning curves on real data sets.

    python benchmarks/learning_curves.py --data FOLDER [--sets hn,upworthy,pricer] [--splits 4] [--to FILE]

FOLDER holds the files of benchmarks/real_data.py, whose sets, splits and fits in one process these are. For each split
the training sets are nested, and all are asked about the same test rows. Each text is read once. The table has the
mean and the standard deviation over splits of accuracy, or of the mean absolute error of prices in dollars.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from real_data import (  # type: ignore[import-not-found]  # beside this file
    RememberingReader,
    Set,
    direct,
    draw,
    load,
    machine,
    readers,
)

import dspy_finetune as ft

SIZES = (50, 100, 200, 400, 800)
N_TEST = 400


def words_alone(data: Set, train: list[Any]) -> Any:
    """A linear model on TF-IDF weights."""
    if data.label == "price":
        return ft.baselines.tfidf_ridge(train, label=data.label)
    if data.label == "preferred":
        return ft.baselines.tfidf_pairs(train)
    return ft.baselines.tfidf_logistic(train, label=data.label)


def figure(program: Any, test: list[Any], label: str) -> float:
    """The mean absolute error of a price, or the accuracy of a label."""
    pairs = [(row[label], program(**row.inputs())[label]) for row in test]
    if label == "price":
        return float(statistics.mean(abs(right - told) for right, told in pairs))
    return float(statistics.mean(right == told for right, told in pairs))


def curve(
    data: Set, both: RememberingReader, alone: RememberingReader, splits: int
) -> dict[tuple[str, int], list[float]]:
    """By method and size: the figure of each split."""
    found: dict[tuple[str, int], list[float]] = {}
    for seed in range(splits):
        rows, test = draw(data, len(data.rows) - N_TEST, N_TEST, seed)
        for size in (size for size in SIZES if size <= len(rows)):
            train = rows[:size]
            tuned, said = direct(data, train, test, both)
            print(f"split {seed}, {size} rows: {said}", file=sys.stderr, flush=True)
            programs = {
                "TF-IDF": words_alone(data, train),
                "encoder": ft.baselines.encoder_linear(train, label=data.label, embed=alone.embed_once),
                "tuned head": tuned,
            }
            for method, program in programs.items():
                found.setdefault((method, size), []).append(figure(program, test, data.label))
    return found


def rendered(name: str, figures: dict[tuple[str, int], list[float]], is_error: bool) -> str:
    """One set as Markdown."""
    sizes = [size for size in SIZES if any(key[1] == size for key in figures)]
    unit = "mean absolute error in $" if is_error else "accuracy"
    lines = [
        f"### {name}: {unit}",
        "",
        f"| training rows | {' | '.join(map(str, sizes))} |",
        "| --- |" + " --- |" * len(sizes),
    ]
    for method in dict.fromkeys(key[0] for key in figures):
        cells = []
        for size in sizes:
            values = figures[method, size]
            decimals = 1 if is_error else 3
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.{decimals}f} ± {spread:.{decimals}f}")
        lines.append(f"| {name}, {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables of the sets that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sets", default="hn,upworthy,pricer")
    parser.add_argument("--splits", type=int, default=4)
    parser.add_argument("--to", type=Path, help="append the tables to this Markdown file")
    given = parser.parse_args()
    if given.data is None:
        print("--data FOLDER is not given: nothing to measure")
        return
    both, alone = readers(None)
    for name in given.sets.split(","):
        data = load(name, given.data)
        text = rendered(name, curve(data, both, alone, given.splits), data.label == "price")
        print(text, flush=True)
        if given.to is not None:
            with given.to.open("a", encoding="utf-8") as stream:
                stream.write(f"{text}\n\n{given.splits} splits, {N_TEST} test rows; {machine().partition('; ')[0]}\n\n")


if __name__ == "__main__":
    main()
