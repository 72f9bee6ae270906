"""What does it cost? Products with prices to a tuned predictor with intervals.

It runs on packaged data and this machine, in any folder: `python examples/prices.py`
"""

import dspy_finetune as ft
from dspy_finetune.quickstart import write_example

write_example("prices.csv", "prices")  # your own file stands here
# "$1,199.99" and "1199.99 USD" are read as numbers; "12,50" is asked about.
rows = ft.load_examples("prices.csv", signature="product -> price: float", limit=90)
train, held_out, test = ft.split(rows, (0.5, 0.25, 0.25))

prompt = ft.prompts.number()
training_file = ft.export_sft(train, prompt, "runs/prices/train.jsonl")

host = ft.Host.local()
model = ft.plan(training_file, host=host).start(max_usd=5).wait()
tuned = ft.OpenAIPredictor(prompt, model, host=host)

metrics = [ft.metrics.mean_absolute_error("price"), ft.metrics.within("price", absolute=40, relative=0.2)]
report = ft.compare({"tuned": tuned}, test, metrics, train=train)
print(report.table(), report.verdict, sep="\n")

ft.calibrate_interval(tuned, held_out, level=0.8, scale="relative")
prediction = tuned(product=test[0].product)
low, high = prediction.interval
print(f"{prediction.price:.2f}, between {low:.2f} and {high:.2f}; it costs {test[0].price:.2f}")
tuned.save("runs/prices/predictor.json")
