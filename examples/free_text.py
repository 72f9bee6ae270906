"""Free text for any signature: a listing to its description.

It runs on packaged data and this machine, from the folder of the repository: `python examples/free_text.py`
"""

import dspy

import dspy_finetune as ft


class Describe(dspy.Signature):
    """Describe the product in one sentence."""

    listing: str = dspy.InputField()
    description: str = dspy.OutputField()


products = ft.load_examples("examples/data/products.jsonl", limit=30)
rows = [
    dspy.Example(listing=first, description=second).with_inputs("listing")
    for first, _, second in (row["product"].partition("\n") for row in products)
]
train, _, test = ft.split(rows, (0.8, 0, 0.2))

prompt = ft.PromptFormat(Describe)
training_file = ft.export_sft(train, prompt, "runs/free-text/train.jsonl")

host = ft.Host.local()
settings = {"n_epochs": 1}
model = ft.plan(training_file, base_model=host.base_model, host=host, hyperparameters=settings).start(max_usd=5).wait()
tuned = ft.OpenAIPredictor(prompt, model, host=host, max_tokens=30)

report = ft.compare({"tuned": tuned}, test, [ft.metrics.rouge_l("description")], train=train)
print(report.table(), report.verdict, sep="\n")
tuned.save("runs/free-text/predictor.json")
