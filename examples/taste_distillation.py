"""Taste distillation: three tuned models of one reader's taste, a vote with a DSPy program, and a verdict on each.

A binary model (would they like it?), a pairwise one (which of two?), one trained on preferences (which, and why?). On
packaged titles and the local host: `python examples/taste_distillation.py --size small`, some minutes on two cores.
Your own titles: `--data titles.jsonl` with `title`, `is_favorite` and perhaps a `reason`. OpenAI: `--host openai`.
"""

import argparse
from pathlib import Path

import dspy

import dspy_finetune as ft
from dspy_finetune.quickstart import load_rubric, load_titles

SIZES = {"small": (48, 12, 10, 5), "full": (440, 320, 100, 150)}
"""Name to how many titles, pairs and preferences train, and how many items test; smaller data is used whole."""


def main(folder: Path, host: ft.Host, *, size: str = "full", data: Path | None = None) -> list[ft.ComparisonReport]:
    """Do the job in `folder`; the reports on titles and on pairs, with baselines of the same rows beside."""
    n_titles, n_pairs, n_preferences, n_test = SIZES[size]
    rubric = load_rubric() if data is None and size == "full" else None
    titles = load_titles() if data is None else ft.load_examples(data, signature="title -> is_favorite: bool")
    # Split first, pair inside each side: no title stands on both.
    train, _, test = ft.split(titles, (0.6, 0.1, 0.3), stratify_by="is_favorite")
    train, test = train[:n_titles], test[:n_test]
    pairs, test_pairs = ft.make_pairs(train, n_per_positive=3)[:n_pairs], ft.make_pairs(test, n_per_positive=2)[:n_test]
    told = [row for row in train if row.get("reason")] or [row.copy(reason="closer to the taste") for row in train]
    explained = ft.make_pairs(told, n_per_positive=1, carry="reason")[:n_preferences]
    explained = [pair.copy(explanation=pair[f"reason_{pair.preferred.lower()}"]) for pair in explained]
    binary, pairwise = ft.prompts.binary(rubric), ft.prompts.pairwise(rubric)
    why = ft.prompts.explained_pairwise(rubric)
    titles_file = ft.export_sft(train, binary, folder / "binary.jsonl")
    pairs_file = ft.export_sft(pairs, pairwise, folder / "pairwise.jsonl")
    titles_plan = ft.plan(titles_file, host=host, suffix="taste-binary")
    pairs_plan = ft.plan(pairs_file, host=host, suffix="taste-pairwise")
    print(titles_plan, pairs_plan, sep="\n")
    tuned = ft.OpenAIPredictor(binary, titles_plan.start(max_usd=5).wait(), host=host)
    tuned_pairs = ft.PairwisePredictor(pairwise, pairs_plan.start(max_usd=5).wait(), host=host)
    once = {"n_epochs": 1}
    preferences = ft.export_dpo(explained, why, folder / "dpo.jsonl")
    why_plan = ft.sft_then_dpo(preferences, host=host, sft_hyperparameters=once, dpo_hyperparameters=once, suffix="why")
    print(why_plan)
    job = why_plan.start(max_usd=5)
    tuned_why = ft.DPOPredictor(why, job.wait(), host=host, max_tokens=32)
    tuned.save(folder / "binary.predictor.json")
    # DSPy's own way with the same data: the same instructions, and demonstrations, in the prompt of the untuned model.
    program = dspy.Predict(binary.signature.with_instructions(binary.system))
    few_shot = dspy.LabeledFewShot(k=4).compile(program, trainset=train)
    few_shot.set_lm(host.lm(host.base_model, max_tokens=32, temperature=0.0))
    vote = ft.Ensemble([tuned, few_shot], weights=[2.0, 1.0])
    untuned = ft.OpenAIPredictor(binary, host.base_model, host=host)
    untuned_pairs = ft.PairwisePredictor(pairwise, host.base_model, host=host)
    programs = {"tuned": tuned, "tuned + DSPy few-shot": vote, "DSPy few-shot": few_shot, "untuned": untuned}
    pair_programs = {"tuned, pairwise": tuned_pairs, "tuned, DPO": tuned_why, "untuned": untuned_pairs}
    accuracy, area = ft.metrics.accuracy("is_favorite"), ft.metrics.roc_auc("is_favorite")
    on_titles = ft.compare(programs, test, [accuracy, area], train=train, title="Is it a favorite?")
    on_pairs = ft.compare(pair_programs, test_pairs, ft.metrics.pairwise_accuracy(), train=pairs, title="Which of two?")
    reports = [on_titles, on_pairs.annotated(training={"dpo": job.jobs[-1]})]
    ft.report.write_html(folder / "report.html", reports, title="One reader's taste")
    print(on_titles.table(), on_titles.verdict, on_pairs.table(), on_pairs.verdict, sep="\n")
    print("why:", tuned_why(**test_pairs[0].inputs()).explanation)
    return reports


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("taste-distillation"))
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--data", type=Path, help="titles of your own; default: the packaged ones")
    parser.add_argument("--host", choices=["local", "openai"], default="local")
    given = parser.parse_args()
    host = ft.Host.openai() if given.host == "openai" else ft.Host.local(root=given.folder / "host")
    main(given.folder, host, size=given.size, data=given.data)
