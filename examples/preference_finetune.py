"""DPO as a DSPy optimizer: a small model that seldom answers readably learns form and taste from its own answers.

Packaged titles, the local host, some minutes on two cores: `python examples/preference_finetune.py`
"""

import argparse
import logging
from pathlib import Path

import dspy

import dspy_finetune as ft
from dspy_finetune.optimizers import attach_adapter
from dspy_finetune.quickstart import load_titles


def main(folder: Path, n_train: int, n_test: int) -> ft.ComparisonReport:
    """Sample, train and compare in `folder`."""
    train, _, test = ft.split(load_titles(), (0.5, 0.1, 0.4), stratify_by="is_favorite")
    train, test = train[:n_train], test[:n_test]
    host = ft.Host.local(root=folder / "host")
    prompt = ft.prompts.binary()
    program = dspy.Predict(prompt.signature)
    # Four tokens hold any label; what the model would go on saying is not read anyway.
    program.set_lm(host.lm(host.base_model, max_tokens=4, temperature=0.0))
    attach_adapter(program, ft.prompts.as_adapter(prompt))
    # Answers are cut at four tokens on purpose, and many of the untuned model's cannot be read: DSPy would tell each.
    logging.getLogger("dspy").setLevel(logging.CRITICAL)

    metric = ft.metrics.accuracy("is_favorite")
    optimizer = ft.PreferenceFinetune(metric, strategy="all_pairs", num_threads=16)
    tuned = optimizer.compile(program, trainset=train)
    print(f"{len(train)} titles, {sum(tuned.tuning.n_pairs.values())} pairs, {tuned.tuning.skipped}")

    report = ft.compare({"tuned": tuned, "untuned": program}, test, metric)
    print(report.table(), report.verdict, sep="\n")
    report.to_json(folder / "report.json")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("preference-finetune"))
    parser.add_argument("--n-train", type=int, default=200)
    parser.add_argument("--n-test", type=int, default=150)
    given = parser.parse_args()
    main(given.folder, given.n_train, given.n_test)
