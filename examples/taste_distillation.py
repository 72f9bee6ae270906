"""Taste distillation: three tuned models of one reader's taste, a vote with a DSPy program, and a verdict on each.

A binary model (would they like it?), a pairwise one (which of two?), and one trained on preferences (which, and why);
each starts from the one before. Packaged titles and the local host: `python examples/taste_distillation.py --size
small` takes about two minutes on two cores. Your own titles: `--data titles.jsonl`, with `title`, `is_favorite` and a
`reason` where there is one. OpenAI: `--host openai`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

import dspy_finetune as ft
from dspy_finetune.quickstart import load_rubric, load_titles

# A base model that both supervised tuning and DPO are offered for.
OPENAI_MODEL = "gpt-4.1-mini-2025-04-14"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of it; smaller data is used whole."""

    n_titles: int
    """Titles to train on."""
    n_pairs: int
    """Pairs to train on."""
    n_explained: int
    """Pairs with a reason."""
    n_test: int
    """Titles that all programs are asked about, and pairs."""
    n_epochs: int
    """Times through the titles."""


SIZES = {
    "small": Size(n_titles=24, n_pairs=12, n_explained=10, n_test=5, n_epochs=1),
    "full": Size(n_titles=440, n_pairs=320, n_explained=100, n_test=150, n_epochs=2),
}


def explained_pairs(titles: Sequence[dspy.Example]) -> list[dspy.Example]:
    """Pairs with the reason why one is preferred; none where titles come without reasons."""
    told = [row for row in titles if row.get("reason")]
    if len({row.is_favorite for row in told}) < 2:
        return []
    return [
        pair.copy(explanation=pair["reason_a" if pair["preferred"] == "A" else "reason_b"])
        for pair in ft.make_pairs(told, n_per_positive=1, carry=("reason",))
    ]


def main(
    folder: Path,
    host: ft.Host,
    *,
    size: str = "full",
    data: Path | None = None,
    base_model: str | None = None,
) -> list[ft.ComparisonReport]:
    """Do the job in `folder`; the reports on titles and on pairs."""
    how = SIZES[size]
    base_model = base_model or host.base_model
    rubric = load_rubric() if data is None and size == "full" else None
    examples = load_titles() if data is None else ft.load_examples(data, inputs=["title"], types={"is_favorite": bool})
    # Split first, pair inside each side: no title stands on both.
    train, _, test = ft.split(examples, (0.6, 0.1, 0.3), stratify_by="is_favorite")
    train, test = train[: how.n_titles], test[: how.n_test]
    train_pairs = ft.make_pairs(train, n_per_positive=3)[: how.n_pairs]
    test_pairs = ft.make_pairs(test, n_per_positive=2)[: how.n_test]
    explained = explained_pairs(train)[: how.n_explained]
    has_reasons = len(explained) >= 10  # as many rows as hosts ask for
    if not has_reasons:
        explained = train_pairs[: how.n_explained]

    binary, pairwise = ft.prompts.binary(rubric), ft.prompts.pairwise(rubric)
    # Without reasons the preference alone is trained and asked for.
    why = ft.prompts.explained_pairwise(rubric) if has_reasons else pairwise
    files = {
        "binary": ft.export_sft(train, binary, folder / "binary.jsonl"),
        "pairwise": ft.export_sft(train_pairs, pairwise, folder / "pairwise.jsonl"),
        "dpo": ft.export_dpo(explained, why, folder / "dpo.jsonl"),
    }
    # (model, file, the model it starts from, settings). The local host fits linear heads for labels, which leave the
    # weights as they were, and preferences train weights: there an adapter learns titles and pairs, too, before DPO.
    steps: list[tuple[str, str, str | None, dict[str, Any]]] = [
        ("binary", "binary", None, {"n_epochs": how.n_epochs}),
        ("pairwise", "pairwise", "binary", {"n_epochs": 1}),
    ]
    if host.kind.has_recipes:
        steps += [
            ("titles by LoRA", "binary", None, {"n_epochs": how.n_epochs, "recipe": "lora"}),
            ("pairs by LoRA", "pairwise", "titles by LoRA", {"n_epochs": 1, "recipe": "lora"}),
        ]
    steps.append(("dpo", "dpo", steps[-1][0], {"n_epochs": 1}))
    models: dict[str, ft.FinetunedModel] = {}
    jobs: dict[str, ft.Job] = {}
    for name, file, before, settings in steps:
        start = models[before] if before else base_model
        plan = ft.plan(files[file], base_model=start, host=host, suffix=f"taste-{file}", hyperparameters=settings)
        print(plan)
        jobs[name] = plan.start(max_usd=5)
        models[name] = jobs[name].wait()

    # No cache: the ensemble asks what was asked before, and its time is part of the verdict.
    tuned = ft.OpenAIPredictor(binary, models["binary"], host=host, cache=False)
    tuned_pairs = ft.PairwisePredictor(pairwise, models["pairwise"], host=host)
    tuned_why = (ft.DPOPredictor if has_reasons else ft.PairwisePredictor)(
        why, models["dpo"], host=host, max_tokens=32 if has_reasons else None
    )
    tuned.save(folder / "binary.predictor.json")
    # DSPy's own way with the same data: the same instructions, and demonstrations, in the prompt of the untuned model.
    program = dspy.Predict(binary.signature.with_instructions(binary.system))
    few_shot = dspy.LabeledFewShot(k=4).compile(program, trainset=train)
    few_shot.set_lm(host.lm(base_model, max_tokens=32, temperature=0.0, cache=False))
    # A small untuned model earns many remarks on single answers; the report counts them.
    logging.getLogger("dspy").setLevel(logging.ERROR)

    titles: dict[str, Callable[..., Any]] = {
        "tuned": tuned,
        "tuned + DSPy few-shot": ft.Ensemble([tuned, few_shot], weights=[2.0, 1.0]),
        "DSPy few-shot": few_shot,
        "untuned": ft.OpenAIPredictor(binary, base_model, host=host),
        "TF-IDF": ft.baselines.tfidf_logistic(train, label="is_favorite"),
        "majority": ft.baselines.majority(train, label="is_favorite"),
    }
    pairs: dict[str, Callable[..., Any]] = {
        "tuned, pairwise": tuned_pairs,
        "tuned, DPO": tuned_why,
        "untuned": ft.PairwisePredictor(pairwise, base_model, host=host),
        "TF-IDF": ft.baselines.tfidf_pairs(train_pairs),
    }
    reports = [
        ft.compare(
            titles,
            test,
            [ft.metrics.accuracy("is_favorite"), ft.metrics.roc_auc("is_favorite")],
            title="Is it a favorite?",
        ).annotated(training=jobs),
        ft.compare(pairs, test_pairs, [ft.metrics.pairwise_accuracy()], title="Which of two is preferred?"),
    ]
    ft.report.write_html(folder / "report.html", reports, title="One reader's taste")
    for report in reports:
        print(report.table(), report.verdict, sep="\n")
    if has_reasons:
        print("why:", tuned_why(**test_pairs[0].inputs().toDict()).explanation)
    return reports


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("taste-distillation"))
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--data", type=Path, help="titles of your own; default: the packaged ones")
    parser.add_argument("--host", choices=["local", "openai"], default="local")
    parser.add_argument("--base-model", help="default: the host's small one")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    main(
        given.folder,
        ft.Host.openai() if given.host == "openai" else ft.Host.local(root=given.folder / "host"),
        size=given.size,
        data=given.data,
        base_model=given.base_model or (OPENAI_MODEL if given.host == "openai" else None),
    )
