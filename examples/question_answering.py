"""Questions and answers: prepare the data with a token check and statistics, train, run test cases, keep the results.

Packaged questions and the local host: `python examples/question_answering.py --size small` takes about a minute on two
cores. Your own file: `--data questions.jsonl --answer-field best_answer`. OpenAI: `--host openai`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy

import dspy_finetune as ft
from dspy_finetune.export import TokenCounter

DATA = Path(ft.__file__).with_name("quickstart_questions.jsonl")
SYSTEM = "You are a patient teacher. Answer in one sentence."
MAX_TOKENS = 4096
"""A training row may have so many."""
COUNTED_AS = "gpt-4.1-mini-2025-04-14"
"""Whose tokens are counted: there is no public table for the local model, and the counts are near enough."""
SIZES = {"small": (24, 5, 1), "full": (10_000, 150, 2)}
"""Name to (rows to train on, test cases, epochs); smaller data is used whole."""
CASES = ("What is photosynthesis?", "What does Newton's first law say?")


def prepare(examples: Sequence[dspy.Example], prompt: ft.PromptFormat, path: Path) -> tuple[Any, dict[str, int]]:
    """Write the training file, without rows that are too long; returns the data set and the statistics."""
    counter = TokenCounter.for_model(COUNTED_AS)
    assert counter is not None  # the catalog knows that model's table
    valid = [row for row in examples if counter.messages(prompt.training_messages(row)) <= MAX_TOKENS]
    stats = {"total": len(examples), "valid": len(valid), "invalid": len(examples) - len(valid)}
    dataset = ft.export_sft(valid, prompt, path)
    report = ft.check(path, base_model=COUNTED_AS)
    print(report)
    print("tokens of a row:", report.stats.tokens.to_dict() if report.stats.tokens else None)
    print("statistics:", stats)
    return dataset, stats


def tune(dataset: Any, host: ft.Host, base_model: str, n_epochs: int) -> ft.Job:
    """Start the job and follow it to its end."""
    plan = ft.plan(dataset, base_model=base_model, host=host, suffix="teacher", hyperparameters={"n_epochs": n_epochs})
    print(plan)
    job = plan.start(max_usd=5)
    job.wait()
    return job


def run_cases(programs: dict[str, Any], cases: Sequence[dspy.Example]) -> list[dict[str, Any]]:
    """What each program answers, beside what was expected."""
    overlap = ft.metrics.token_f1("answer")
    results = []
    for number, case in enumerate(cases, start=1):
        row: dict[str, Any] = {"question": case.question, "expected": case.answer}
        for name, program in programs.items():
            prediction = program(question=case.question)
            row[name] = {"generated": prediction.answer, "token_f1": round(overlap(case, prediction), 3)}
        results.append(row)
        print(f"  case {number}/{len(cases)}", file=sys.stderr)
    return results


def main(
    folder: Path,
    host: ft.Host,
    *,
    size: str = "full",
    data: Path = DATA,
    answer_field: str = "answer",
    base_model: str | None = None,
) -> ft.ComparisonReport:
    """Do the job in `folder`."""
    n_train, n_test, n_epochs = SIZES[size]
    base_model = base_model or host.base_model
    rows = ft.load_examples(
        data, inputs=["question"], rename={answer_field: "answer"} if answer_field != "answer" else {}
    )
    examples = [row for row in rows if row.question not in CASES]
    known = [row for row in rows if row.question in CASES]
    split = ft.split(examples, (0.7, 0.0, 0.3))
    prompt = ft.prompts.answer(SYSTEM)
    train = split.train[:n_train]
    dataset, stats = prepare(train, prompt, folder / "training_data.jsonl")

    job = tune(dataset, host, base_model, n_epochs)
    tuned = ft.OpenAIPredictor(prompt, job.model(), host=host, max_tokens=40)
    untuned = ft.OpenAIPredictor(prompt, base_model, host=host, max_tokens=40)
    tuned.save(folder / "teacher.json")

    results = run_cases({"tuned": tuned, "untuned": untuned}, known or split.test[:2])
    (folder / "test_results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False), encoding="utf-8")
    print(json.dumps(results, indent=2, ensure_ascii=False))

    # DSPy's own way with the same data: the nearest questions with their answers in the untuned model's prompt.
    signature = prompt.signature.with_instructions(SYSTEM)
    lm = host.lm(base_model, max_tokens=100, temperature=0.0)  # its layout takes more tokens than the answer
    # A small untuned model earns many remarks on single answers; the report counts them.
    logging.getLogger("dspy").setLevel(logging.ERROR)
    few_shot = ft.baselines.nearest_few_shot(train, signature, lm=lm, n_shots=4)
    report = ft.compare(
        {"tuned": tuned, "untuned": untuned, "DSPy few-shot": few_shot},
        split.test[:n_test],
        [ft.metrics.token_f1("answer"), ft.metrics.exact_match("answer")],
        train=train,  # adds the answer of the nearest question
        title="Questions and answers",
    ).annotated(
        cards={"Data": {"file": data.name, **{name: str(n) for name, n in stats.items()}}},
        training={"teacher": job},
    )
    report.to_html(folder / "report.html")
    print(report.table(), report.verdict, sep="\n")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("question-answering"))
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--answer-field", default="answer")
    parser.add_argument("--host", choices=["local", "openai"], default="local")
    parser.add_argument("--base-model", help="default: the host's small one")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    main(
        given.folder,
        ft.Host.openai() if given.host == "openai" else ft.Host.local(root=given.folder / "host"),
        size=given.size,
        data=given.data,
        answer_field=given.answer_field,
        base_model=given.base_model or (COUNTED_AS if given.host == "openai" else None),
    )
