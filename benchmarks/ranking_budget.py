"""How many comparisons `rank` needs for Kendall tau 0.9 with 100 items, against the full round robin of 4,950 pairs.

Run: python benchmarks/ranking_budget.py [--items 100] [--seeds 3]. The judge is simulated: worths from a normal
distribution (standard deviation 2 in log-odds), a lean of 0.3 to the first place, and either probabilities with noise
(deviation 0.7 in log-odds, as a tuned model gives them) or answers in words (one toss of the probability). Tau is taken
against the true worths. Prints JSON lines: the tau for each budget, then the least budget tried whose mean tau reaches
0.9. "random" asks random pairs instead of chosen ones. Needs the extra `ranking`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from typing import Any

import dspy
from scipy.stats import kendalltau

import dspy_finetune as ft
from dspy_finetune.predictors.ranking import fit

TARGET = 0.9


def simulated(n_items: int, seed: int, *, in_words: bool) -> tuple[list[float], Callable[[int, int], float]]:
    """The true worths, and a judge: the probability that the first is preferred, or 1 and 0 in words.

    The answer to a pair is always the same, as that of a model at temperature 0 is.
    """
    generator = random.Random(seed)
    worths = [generator.gauss(0, 2) for _ in range(n_items)]

    def judge(first: int, second: int) -> float:
        own = random.Random(f"{seed} {first} {second}")
        share = 1 / (1 + math.exp(-(worths[first] - worths[second] + 0.3 + (0 if in_words else own.gauss(0, 0.7)))))
        return float(own.random() < share) if in_words else share

    return worths, judge


def chosen(n_items: int, budget: int, seed: int, *, in_words: bool) -> float:
    """Tau of `rank` with this budget."""
    worths, judge = simulated(n_items, seed, in_words=in_words)

    def program(item_a: str, item_b: str) -> dspy.Prediction:
        share = judge(int(item_a), int(item_b))
        return dspy.Prediction(preferred="A" if share >= 0.5 else "B", probabilities={"A": share, "B": 1 - share})

    ranking = ft.rank(
        [str(number) for number in range(n_items)], program, budget=budget, seed=seed, fields={"item_a": "item_b"},
        output="preferred", num_threads=1,
    )  # fmt: skip
    return float(
        kendalltau([one.score for one in ranking.items], [worths[one.index] for one in ranking.items]).statistic
    )


def at_random(n_items: int, budget: int, seed: int, *, in_words: bool) -> float:
    """Tau of the same model on random pairs; with the whole budget, the full round robin."""
    worths, judge = simulated(n_items, seed, in_words=in_words)
    generator = random.Random(seed)
    pairs = [(one, two) for one in range(n_items) for two in range(one)]
    pairs = [pair if generator.random() < 0.5 else pair[::-1] for pair in generator.sample(pairs, budget)]
    found = fit(n_items, [(*pair, judge(*pair)) for pair in pairs], has_position=True)
    return float(kendalltau(found.scores, worths).statistic)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    n = options.items
    everything = n * (n - 1) // 2
    budgets = sorted(
        {min(round(n * factor), everything) for factor in (1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)} | {everything}
    )
    ways: dict[str, Callable[..., float]] = {"chosen": chosen, "random": at_random}
    for in_words in (False, True):
        judge = "words" if in_words else "probabilities"
        least: dict[str, Any] = {}
        for name, way in ways.items():
            for budget in budgets:
                start = time.process_time()
                taus = [way(n, budget, seed, in_words=in_words) for seed in range(options.seeds)]
                tau = sum(taus) / len(taus)
                seconds = (time.process_time() - start) / len(taus)
                row = {"judge": judge, "pairs": name, "comparisons": budget, "tau": round(tau, 3)}
                print(json.dumps({**row, "cpu_seconds": round(seconds, 2)}), flush=True)
                if tau >= TARGET:
                    least[name] = budget
                    break
        tau = sum(at_random(n, everything, seed, in_words=in_words) for seed in range(options.seeds)) / options.seeds
        print(
            json.dumps({"judge": judge, "round_robin": everything, "tau": round(tau, 3), f"least_for_{TARGET}": least})
        )


if __name__ == "__main__":
    main()
