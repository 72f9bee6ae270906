"""How much data do linear models on TF-IDF and on a sentence encoder need? Learning curves on real data sets.

    python benchmarks/learning_curves.py --data FOLDER [--sets hn,upworthy,pricer] [--splits 6] [--to FILE]

FOLDER holds the files of benchmarks/real_data.py, whose sets and splits these are. For each split the training sets are
nested, and all are asked about the same test rows. The encoder reads each text once. The table has the mean and the
standard deviation over splits of accuracy, or of the mean absolute error of prices in dollars.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from real_data import Set, draw, load, machine  # type: ignore[import-not-found]  # beside this file

import dspy_finetune as ft

SIZES = (60, 120, 240, 480, 960)
N_TEST = 400


class Remembered:
    """An encoder that is asked about each text once."""

    def __init__(self, embedder: ft.baselines.HostEmbedder) -> None:
        self.embedder = embedder
        self.model = embedder.model
        self.known: dict[str, list[float]] = {}

    def __call__(self, texts: list[str]) -> list[list[float]]:
        """One vector for each."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        self.known.update(zip(new, self.embedder(new) if new else [], strict=True))
        return [self.known[text] for text in texts]


def curve(data: Set, embed: Remembered, splits: int) -> dict[tuple[str, int], list[float]]:
    """By method and size: the figure of each split."""
    metric = ft.metrics.mean_absolute_error("price") if data.label == "price" else ft.metrics.accuracy(data.label)
    # All at once: one text at a time takes ten times as long.
    embed([str(value) for row in data.rows for value in row.inputs().toDict().values()])
    found: dict[tuple[str, int], list[float]] = {}
    for seed in range(splits):
        rows, test = draw(data, len(data.rows) - N_TEST, N_TEST, seed)
        for size in (size for size in SIZES if size <= len(rows)):
            train = rows[:size]
            words: Any
            if data.label == "price":
                words = ft.baselines.tfidf_ridge(train, label="price")
            elif data.label == "preferred":
                words = ft.baselines.tfidf_pairs(train)
            else:
                words = ft.baselines.tfidf_logistic(train, label=data.label)
            programs = {"TF-IDF": words, "encoder": ft.baselines.encoder_linear(train, label=data.label, embed=embed)}
            report = ft.compare(programs, test, [metric], num_threads=1)
            for row in report.rows:
                (score,) = row.scores.values()
                found.setdefault((row.name, size), []).append(score.value if score.value is not None else float("nan"))
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
    parser.add_argument("--splits", type=int, default=6)
    parser.add_argument("--to", type=Path, help="append the tables to this Markdown file")
    given = parser.parse_args()
    if given.data is None:
        print("--data FOLDER is not given: nothing to measure")
        return
    with tempfile.TemporaryDirectory() as place:
        host = ft.Host.local(root=Path(place) / "host")
        embed = Remembered(ft.baselines.HostEmbedder(host=host))
        for name in given.sets.split(","):
            data = load(name, given.data)
            text = rendered(name, curve(data, embed, given.splits), data.label == "price")
            print(text, flush=True)
            if given.to is not None:
                with given.to.open("a", encoding="utf-8") as stream:
                    stream.write(f"{text}\n\n{given.splits} splits, {N_TEST} test rows; {machine()}\n\n")
        host.close()


if __name__ == "__main__":
    main()
