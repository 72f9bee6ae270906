"""DPO as a DSPy optimizer: a small model that seldom answers readably learns form and taste from its own answers.

Packaged titles, the local host, a quarter of an hour on two cores: `python examples/preference_finetune.py`
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

import dspy_finetune as ft
from dspy_finetune.optimizers import attach_adapter
from dspy_finetune.quickstart import load_titles


def is_right(example: dspy.Example, prediction: Any, trace: object = None) -> bool:
    """The metric: the reader's own label."""
    return bool(prediction.is_favorite == example.is_favorite)


def main(folder: Path, n_train: int, n_test: int) -> tuple[float, float]:
    """Sample, train and compare in `folder`; returns the accuracies before and after."""
    train, _, test = ft.split(load_titles(), (0.5, 0.1, 0.4), stratify_by="is_favorite")
    train, test = train[:n_train], test[:n_test]
    host = ft.Host.local(root=folder / "host")
    prompt = ft.prompts.binary()
    program = dspy.Predict(prompt.signature)
    # Four tokens hold any label; what the model would go on saying is not read anyway.
    program.set_lm(host.lm(host.base_model, max_tokens=4, temperature=0.0))
    attach_adapter(program, ft.prompts.as_adapter(prompt))

    # Answers are cut at four tokens on purpose, and many of the untuned model's cannot be read.
    logging.getLogger("dspy").setLevel(logging.CRITICAL)
    started = time.monotonic()
    optimizer = ft.PreferenceFinetune(is_right, strategy="all_pairs", hyperparameters={"n_epochs": 3}, num_threads=16)
    tuned = optimizer.compile(program, trainset=train)
    seconds = time.monotonic() - started
    tuning = tuned.tuning
    print(f"{len(train)} titles, {sum(tuning.n_pairs.values())} pairs, {tuning.skipped}, {seconds:.0f} s")

    report = ft.compare({"tuned": tuned, "untuned": program}, test, [ft.metrics.accuracy("is_favorite")])
    print(report.table(), report.verdict, sep="\n")
    report.to_json(folder / "report.json")
    before, after = (mean_score(one, test) for one in (program, tuned))
    print(f"metric on {len(test)} held-out titles: {before:.3f} before, {after:.3f} after")
    host.close()
    return before, after


def mean_score(program: Any, examples: list[dspy.Example]) -> float:
    """The mean metric; an answer that cannot be read scores 0. DSPy's cache has the answers of the comparison."""
    scores = []
    for example in examples:
        try:
            scores.append(float(is_right(example, program(**example.inputs()))))
        except AdapterParseError:
            scores.append(0.0)
    return sum(scores) / len(scores)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("preference-finetune"))
    parser.add_argument("--n-train", type=int, default=200)
    parser.add_argument("--n-test", type=int, default=150)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    before, after = main(given.folder, given.n_train, given.n_test)
    sys.exit(0 if after > before else 1)
