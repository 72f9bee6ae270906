"""How often the intervals of `rank` hold the true score, where the pairs are chosen by the answers.

    python benchmarks/ranking_coverage.py [--items 40] [--seeds 10]

Simulated judges with a lean of 0.3 to the first place: true scores from a normal distribution, answers in words (one
toss of the probability) or probabilities with noise (deviation 0.7 in log-odds). Prints a JSON line for each setting:
the share of true scores inside the 95 % intervals, those of `rank` and, beside them, those that the curvature of the
fit alone would give, and how wide both are. Needs the extra `ranking`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter

import numpy as np

from dspy_finetune.predictors.ranking import first_pairs, fit, next_pairs, posterior


def asked_as_rank_does(worths: list[float], budget: int, seed: int, *, in_words: bool) -> list[tuple[int, int, float]]:
    """The comparisons, with the answers of a judge who always says the same about a pair."""
    generator = random.Random(seed)
    asked: Counter[tuple[int, int]] = Counter()
    comparisons: list[tuple[int, int, float]] = []
    batch = first_pairs(len(worths), generator)
    while batch:
        asked.update(batch)
        for first, second in batch:
            own = random.Random(f"{seed} {first} {second}")
            noise = 0.0 if in_words else own.gauss(0, 0.7)
            share = 1 / (1 + math.exp(-(worths[first] - worths[second] + 0.3 + noise)))
            comparisons.append((first, second, float(own.random() < share) if in_words else share))
        size = min(len(worths) // 2, budget - asked.total())
        found = fit(len(worths), comparisons, has_position=True)
        batch = next_pairs(found, asked, size, 2, generator) if size > 0 else []
    return comparisons


def main() -> None:
    """Print a line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    n = options.items
    for in_words in (True, False):
        for deviation in (1.0, 2.0):
            for factor in (2, 4, 8):
                inside: list[tuple[float, float]] = []
                widths: list[tuple[float, float]] = []
                for seed in range(options.seeds):
                    generator = random.Random(seed)
                    worths = [generator.gauss(0, deviation) for _ in range(n)]
                    rows = asked_as_rank_does(worths, factor * n, seed, in_words=in_words)
                    truth = np.array(worths) - np.mean(worths)
                    found = fit(n, rows, has_position=True)
                    sure = posterior(rows, found, seed)
                    spans = (1.96 * sure.deviations, 1.96 * np.sqrt(found.covariance.diagonal()))
                    inside.append(
                        (
                            float((abs(sure.scores - truth) <= spans[0]).mean()),
                            float((abs(found.scores - truth) <= spans[1]).mean()),
                        )
                    )
                    widths.append((float(2 * spans[0].mean()), float(2 * spans[1].mean())))
                shares, wide = np.mean(inside, axis=0), np.mean(widths, axis=0)
                row = {"judge": "words" if in_words else "probabilities", "true_deviation": deviation}
                row |= {"comparisons_per_item": 2 * factor, "covered": round(float(shares[0]), 3)}
                row |= {"width": round(float(wide[0]), 2), "covered_by_curvature": round(float(shares[1]), 3)}
                print(json.dumps({**row, "width_of_curvature": round(float(wide[1]), 2)}), flush=True)


if __name__ == "__main__":
    main()
