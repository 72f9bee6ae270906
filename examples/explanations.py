"""Which of two, and why? Pairs with reasons to a model trained by SFT, then DPO.

It runs on packaged data and this machine, from the folder of the repository: `python examples/explanations.py`
"""

import dspy

import dspy_finetune as ft
from dspy_finetune.quickstart import load_titles

# Your own: ft.load_examples("pairs.csv", signature="title_a, title_b -> preferred: Literal['A', 'B'], explanation")
rows = [row for row in load_titles() if row.get("reason")][:32]
train, _, test = ft.split(rows, (0.7, 0, 0.3), stratify_by="is_favorite")


def explained(titles: list[dspy.Example]) -> list[dspy.Example]:
    """Pairs whose reason is that of the preferred title."""
    pairs = ft.make_pairs(titles, n_per_positive=1, carry=("reason",))
    return [pair.copy(explanation=pair["reason_a" if pair.preferred == "A" else "reason_b"]) for pair in pairs]


prompt = ft.prompts.explained_pairwise()
# The rejected answer is the other label with the same reason, so that no phrase tells the two apart.
training_file = ft.export_dpo(explained(train), prompt, "runs/explanations/train.jsonl")

host = ft.Host.local()
settings = {"n_epochs": 1}
# First SFT on the preferred answers, then DPO from that model: one plan, one budget.
plan = ft.sft_then_dpo(
    training_file,
    base_model=host.base_model,
    host=host,
    sft_hyperparameters=settings,
    dpo_hyperparameters=settings,
)
tuned = ft.DPOPredictor(prompt, plan.start(max_usd=5).wait(), host=host, max_tokens=32)

test_pairs = explained(test)
report = ft.compare({"tuned": tuned}, test_pairs, [ft.metrics.pairwise_accuracy()], train=explained(train))
print(report.table(), report.verdict, sep="\n")
print(tuned(**test_pairs[0].inputs().toDict()).explanation)
tuned.save("runs/explanations/predictor.json")
