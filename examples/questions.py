"""Questions and answers to a tuned model that answers in their form.

It runs on packaged data and this machine, in any folder: `python examples/questions.py`
"""

import dspy_finetune as ft
from dspy_finetune.quickstart import write_example

write_example("questions.csv", "questions")  # your own file stands here
rows = ft.load_examples("questions.csv", signature="question -> answer", limit=30)
train, _, test = ft.split(rows, (0.8, 0, 0.2))

prompt = ft.prompts.answer(system="You are a patient teacher. Answer in one sentence.")
training_file = ft.export_sft(train, prompt, "runs/questions/train.jsonl")

host = ft.Host.local()  # LoRA, as the answers are text
settings = {"n_epochs": 1}
model = ft.plan(training_file, host=host, hyperparameters=settings).start(max_usd=5).wait()
tuned = ft.OpenAIPredictor(prompt, model, host=host, max_tokens=40)
untuned = ft.OpenAIPredictor(prompt, host.base_model, host=host, max_tokens=40)

metrics = [ft.metrics.token_f1("answer"), ft.metrics.exact_match("answer")]
report = ft.compare({"tuned": tuned, "untuned": untuned}, test, metrics, train=train)
print(report.table(), report.verdict, sep="\n")
tuned.save("runs/questions/predictor.json")
