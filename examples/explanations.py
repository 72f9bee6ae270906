"""Which of two, and why? Pairs with reasons to a model trained by SFT, then DPO.

It runs on packaged data and this machine, in any folder: `python examples/explanations.py`
"""

import dspy_finetune as ft
from dspy_finetune.quickstart import write_example

write_example("pairs.csv", "pairs")  # your own file stands here
prompt = ft.prompts.explained_pairwise()
rows = ft.load_examples("pairs.csv", signature=prompt.signature, limit=32)
train, _, test = ft.split(rows, (0.7, 0, 0.3))

# The rejected answer is the other label with the same reason, so that no phrase tells the two apart.
training_file = ft.export_dpo(train, prompt, "runs/explanations/train.jsonl")

host = ft.Host.local()
settings = {"n_epochs": 1}
# First SFT on the preferred answers, then DPO from that model: one plan, one budget.
plan = ft.sft_then_dpo(training_file, host=host, sft_hyperparameters=settings, dpo_hyperparameters=settings)
tuned = ft.DPOPredictor(prompt, plan.start(max_usd=5).wait(), host=host, max_tokens=32)

report = ft.compare({"tuned": tuned}, test, [ft.metrics.pairwise_accuracy()], train=train)
print(report.table(), report.verdict, sep="\n")
print(tuned(**test[0].inputs().toDict()).explanation)
tuned.save("runs/explanations/predictor.json")
