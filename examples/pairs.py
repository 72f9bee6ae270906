"""Which of two titles is preferred? Pairs to a tuned predictor, a verdict, and an order of many.

It runs on packaged data and this machine, in any folder: `python examples/pairs.py`
"""

import dspy_finetune as ft
from dspy_finetune.quickstart import write_example

write_example("pairs.csv", "pairs")  # your own file stands here
prompt = ft.prompts.pairwise()
rows = ft.load_examples("pairs.csv", signature=prompt.signature, limit=60)
train, _, test = ft.split(rows, (0.7, 0, 0.3))

training_file = ft.export_sft(train, prompt, "runs/pairs/train.jsonl")

host = ft.Host.local()
model = ft.plan(training_file, host=host).start(max_usd=5).wait()
tuned = ft.PairwisePredictor(prompt, model, host=host)  # asks both orders, and averages

report = ft.compare({"tuned": tuned}, test, [ft.metrics.pairwise_accuracy()], train=train)
print(report.table(), report.verdict, sep="\n")

ranking = ft.rank([row.title_a for row in test[:6]], tuned, budget=12)
print(ranking.items[0].item)
tuned.save("runs/pairs/predictor.json")
