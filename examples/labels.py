"""Does the reader like it? Labelled titles to a tuned predictor with probabilities and a verdict.

It runs on packaged data and this machine, in any folder: `python examples/labels.py`
"""

import dspy_finetune as ft
from dspy_finetune.quickstart import write_example

write_example("titles.csv")  # your own file stands here
rows = ft.load_examples("titles.csv", signature="headline -> liked: bool", limit=80)
train, _, test = ft.split(rows, (0.7, 0, 0.3), stratify_by="liked")

prompt = ft.prompts.binary("headline -> liked: bool", rubric="Likes pieces that explain how something works.")
training_file = ft.export_sft(train, prompt, "runs/labels/train.jsonl")

host = ft.Host.local()  # trains and serves on this machine; a linear head, as the answers are labels
model = ft.plan(training_file, host=host).start(max_usd=5).wait()
tuned = ft.OpenAIPredictor(prompt, model, host=host)

report = ft.compare(
    {"tuned": tuned},
    test,
    [ft.metrics.accuracy("liked"), ft.metrics.roc_auc("liked")],
    train=train,  # adds TF-IDF and the most frequent label
)
print(report.table(), report.verdict, sep="\n")

prediction = tuned(headline="How lock gates hold a river back")
print(prediction.liked, round(prediction.probability, 2))
tuned.save("runs/labels/predictor.json")
