"""Which of two titles is preferred? Pairs to a tuned predictor, a verdict, and an order of many.

It runs on packaged data and this machine, from the folder of the repository: `python examples/pairs.py`
"""

import dspy_finetune as ft
from dspy_finetune.quickstart import load_titles

# Your own: ft.load_examples("pairs.csv", signature="title_a, title_b -> preferred: Literal['A', 'B']")
rows = load_titles()[:60]
train, _, test = ft.split(rows, (0.7, 0, 0.3), stratify_by="is_favorite")
# Split first, then pair inside each side: no title stands on both.
train_pairs = ft.make_pairs(train, n_per_positive=2)
test_pairs = ft.make_pairs(test, n_per_positive=1)

prompt = ft.prompts.pairwise()
training_file = ft.export_sft(train_pairs, prompt, "runs/pairs/train.jsonl")

host = ft.Host.local()
model = ft.plan(training_file, base_model=host.base_model, host=host).start(max_usd=5).wait()
tuned = ft.PairwisePredictor(prompt, model, host=host)  # asks both orders, and averages

report = ft.compare({"tuned": tuned}, test_pairs, [ft.metrics.pairwise_accuracy()], train=train_pairs)
print(report.table(), report.verdict, sep="\n")

ranking = ft.rank([row.title for row in test[:6]], tuned, budget=12)
print(ranking.items[0].item)
tuned.save("runs/pairs/predictor.json")
