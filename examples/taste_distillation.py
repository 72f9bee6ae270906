"""Taste distillation: from one reader's labelled titles to a tuned model inside DSPy and a verdict.

Runs on the packaged titles and the local host; a few minutes on two cores. `python examples/taste_distillation.py`
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy_finetune as ft
from dspy_finetune.quickstart import load_rubric, load_titles


def main(folder: Path, n_titles: int | None = None) -> None:
    """Do the job in `folder`, with all packaged titles or the first `n_titles`."""
    examples = load_titles()[:n_titles]
    train, _, test = ft.split(examples, (0.6, 0.1, 0.3), stratify_by="is_favorite")
    prompt = ft.prompts.binary(load_rubric())
    dataset = ft.export_sft(train, prompt, folder / "train.jsonl")

    host = ft.Host.local()  # ft.Host.openai() is the only change for OpenAI
    plan = ft.plan(dataset, base_model=host.base_model, host=host, suffix="taste", hyperparameters={"n_epochs": 2})
    print(plan)
    model = plan.start(max_usd=5).wait(on_progress=lambda look: print(f"\r{look.status} {look.step}", end=""))

    tuned = ft.OpenAIPredictor(prompt, model, host=host)
    programs: dict[str, Callable[..., Any]] = {
        "tuned": tuned,
        "untuned": ft.OpenAIPredictor(prompt, host.base_model, host=host),
        "TF-IDF": ft.baselines.tfidf_logistic(train, label="is_favorite"),
        "majority": ft.baselines.majority(train, label="is_favorite"),
    }
    report = ft.compare(programs, test, [ft.metrics.accuracy("is_favorite"), ft.metrics.roc_auc("is_favorite")])
    report.to_html(folder / "report.html")
    tuned.save(folder / "tuned.json")
    print("\n" + report.table(), report.verdict, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
