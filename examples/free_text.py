"""Free text for any signature: a listing to its description.

It runs on packaged data and this machine, in any folder: `python examples/free_text.py`
"""

import dspy

import dspy_finetune as ft
from dspy_finetune.quickstart import write_example


class Describe(dspy.Signature):
    """Describe the product in one sentence."""

    listing: str = dspy.InputField()
    description: str = dspy.OutputField()


write_example("prices.csv", "prices")  # products: a first line, and a description on the second
products = ft.load_examples("prices.csv", inputs=["product"], limit=30)
rows = [
    dspy.Example(listing=first, description=second).with_inputs("listing")
    for first, _, second in (row["product"].partition("\n") for row in products)
]
train, _, test = ft.split(rows, (0.8, 0, 0.2))

prompt = ft.PromptFormat(Describe)
training_file = ft.export_sft(train, prompt, "runs/free-text/train.jsonl")

host = ft.Host.local()
settings = {"n_epochs": 1}
model = ft.plan(training_file, host=host, hyperparameters=settings).start(max_usd=5).wait()
tuned = ft.OpenAIPredictor(prompt, model, host=host, max_tokens=30)  # these are short; what is cut off is no answer

report = ft.compare({"tuned": tuned}, test, [ft.metrics.rouge_l("description")], train=train)
print(report.table(), report.verdict, sep="\n")
tuned.save("runs/free-text/predictor.json")
