"""Questions and answers: prepare the data with a token check and statistics, train, run test cases, keep the results.

Packaged questions and the local host: `python examples/question_answering.py --size small` takes about a minute on two
cores. Your own file: `--data questions.jsonl --answer-field best_answer`. OpenAI: `--host openai`.
"""

import argparse
import json
from pathlib import Path

import dspy_finetune as ft

DATA = Path(ft.__file__).with_name("quickstart_questions.jsonl")
SYSTEM = "You are a patient teacher. Answer in one sentence."
MAX_TOKENS, COUNTED_AS = 4096, "gpt-4.1-mini-2025-04-14"
"""A training row may have so many tokens of that model; there is no public table for the local one."""
SIZES = {"small": (24, 5, 1), "full": (10_000, 150, 2)}
"""Name to (rows to train on, test cases, epochs); smaller data is used whole."""
CASES = ("What is photosynthesis?", "What does Newton's first law say?")


def main(
    folder: Path, host: ft.Host, *, size: str = "full", data: Path = DATA, answer_field: str = "answer"
) -> ft.ComparisonReport:
    """Do the job in `folder`."""
    n_train, n_test, n_epochs = SIZES[size]
    rows = ft.load_examples(data, signature="question -> answer", rename={answer_field: "answer"})
    train, _, test = ft.split([row for row in rows if row.question not in CASES], (0.7, 0, 0.3))
    train, test = train[:n_train], test[:n_test]
    cases = [row for row in rows if row.question in CASES] or test[:2]

    prompt = ft.prompts.answer(SYSTEM)
    counter = ft.export.TokenCounter.for_model(COUNTED_AS)
    assert counter is not None  # the table of that model's tokens is public
    valid = [row for row in train if counter.messages(prompt.training_messages(row)) <= MAX_TOKENS]
    stats = {"total": len(train), "valid": len(valid), "invalid": len(train) - len(valid)}
    training_file = ft.export_sft(valid, prompt, folder / "training_data.jsonl", base_model=COUNTED_AS)
    print(training_file.report, training_file.report.stats.tokens, f"Statistics: {stats}", sep="\n")
    settings = {"n_epochs": n_epochs}
    plan = ft.plan(training_file, host=host, suffix="teacher", hyperparameters=settings)
    print(plan)
    job = plan.start(max_usd=5)
    tuned = ft.OpenAIPredictor(prompt, job.wait(), host=host, max_tokens=40)
    untuned = ft.OpenAIPredictor(prompt, host.base_model, host=host, max_tokens=40)
    tuned.save(folder / "teacher.json")

    results = [
        {
            "question": case.question,
            "expected": case.answer,
            "tuned": tuned(question=case.question).answer,
            "untuned": untuned(question=case.question).answer,
        }
        for case in cases
    ]
    (folder / "test_results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False), encoding="utf-8")
    print(json.dumps(results, indent=2, ensure_ascii=False))

    # DSPy's own way with the same data: the nearest questions with their answers in the untuned model's prompt.
    lm = host.lm(host.base_model, max_tokens=100, temperature=0.0)  # its layout takes more tokens than the answer
    few_shot = ft.baselines.nearest_few_shot(train, prompt.signature.with_instructions(SYSTEM), lm=lm, n_shots=4)
    metrics = [ft.metrics.token_f1("answer"), ft.metrics.exact_match("answer")]
    # `train` adds the answer of the nearest question.
    report = ft.compare({"tuned": tuned, "untuned": untuned, "DSPy few-shot": few_shot}, test, metrics, train=train)
    report.annotated(title="Questions and answers", training={"teacher": job}).to_html(folder / "report.html")
    print(report.table(), report.verdict, sep="\n")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("question-answering"))
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--answer-field", default="answer")
    parser.add_argument("--host", choices=["local", "openai"], default="local")
    given = parser.parse_args()
    host = ft.Host.openai() if given.host == "openai" else ft.Host.local(root=given.folder / "host")
    main(given.folder, host, size=given.size, data=given.data, answer_field=given.answer_field)
