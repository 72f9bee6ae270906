"""Real data through the public API: heads on the local host against TF-IDF, the encoder alone, LoRA and SetFit.

    python benchmarks/real_data.py --data FOLDER [--sets hn:440,upworthy:500] [--splits 8] [--setfit 2] [--to FILE]

FOLDER holds hn_titles.jsonl (title, is_favorite), upworthy_pairs.jsonl (title_a, title_b, preferred, test_id) and
pricer_items.jsonl (description, price); `titles` are the packaged ones. Every method of a split sees the same training
rows and the same test rows, and chooses on training rows alone. The table has means, standard deviations over splits,
splits won against the TF-IDF baseline, ECE, and seconds of a training.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.resources
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy

import dspy_finetune as ft
from dspy_finetune.evaluation import StatisticsOptions

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
Trainer(model=model, args=TrainingArguments(output_dir=task["folder"], report_to="none"), train_dataset=rows).train()
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
    auc: list[float] = field(default_factory=list)
    ece: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def load(name: str, folder: Path) -> Set:
    """A data set by its name."""
    if name == "titles":
        text = (importlib.resources.files("dspy_finetune.quickstart") / "titles.jsonl").read_text(encoding="utf-8")
        rows = [dspy.Example(**json.loads(line)).with_inputs("title") for line in text.splitlines()]
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
    from dspy_finetune.local.models import packaged_encoder

    task = {
        "encoder": os.fspath(packaged_encoder() or ""),
        "folder": os.fspath(folder / "setfit"),
        "train": [row.title for row in train],
        "labels": [int(row[data.label]) for row in train],
        "test": [row.title for row in test],
    }
    (folder / "task.json").write_text(json.dumps(task))
    (folder / "setfit.py").write_text(SETFIT)
    arguments = [python, folder / "setfit.py", folder / "task.json", folder / "answers.json"]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
        chosen = [first]
        if data.label != "preferred":
            chosen += [metrics.roc_auc(data.label), metrics.ece(data.label)]
    options = StatisticsOptions(n_resamples=100, group_by=group)
    report = ft.compare(programs, test, chosen, train=train, statistics=options, num_threads=16)
    for row in report.comparison.programs:
        figures = table.setdefault(row.name, Figures())
        values = [math.nan if one.value is None else one.value for one in row.scores.values()]
        figures.main.append(values[0])
        if len(values) > 1:
            figures.auc.append(values[1])
            figures.ece.append(values[2])
    print(report.verdict, file=sys.stderr)


def rendered(title: str, table: dict[str, Figures], n_test: int, is_error: bool) -> str:
    """One set as Markdown."""
    baseline = next((figures for name, figures in table.items() if name.startswith("TF-IDF")), None)
    lines = [
        f"### {title} ({n_test} test rows)",
        "",
        f"| method | splits | {'MAE in $' if is_error else 'accuracy'} | AUC | won against TF-IDF | ECE | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in table.items():
        use_auc = bool(one.auc) and baseline is not None and bool(baseline.auc)
        mine, other = (one.auc, baseline.auc) if use_auc and baseline else (one.main, baseline.main if baseline else [])
        pairs = list(zip(mine, other, strict=False))
        won = sum(a < b if is_error and not use_auc else a > b for a, b in pairs)
        cells = [
            name,
            str(len(one.main)),
            _mean(one.main, 1 if is_error else 3),
            _mean(one.auc, 3),
            "" if one is baseline or not pairs else f"{won} of {len(pairs)}",
            _mean(one.ece, 3),
            f"{statistics.mean(one.seconds):.0f}" if one.seconds else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float], decimals: int) -> str:
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{decimals}f} ± {spread:.{decimals}f}"


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
    return f"{datetime.date.today().isoformat()}, {name}, {n_cores} cores{busy}"


def main() -> None:
    """Run the sets that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sets", default="titles:440")
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--lora", type=int, default=0, help="on so many splits also LoRA")
    parser.add_argument("--setfit", type=int, default=0, help="on so many splits also SetFit (titles and hn)")
    parser.add_argument("--setfit-env", type=Path, default=Path(tempfile.gettempdir()) / "real-data-setfit")
    parser.add_argument("--to", type=Path, help="append the tables to this Markdown file")
    given = parser.parse_args()
    if given.data is None and given.sets != "titles:440":
        parser.error("--data FOLDER is needed for other sets than titles")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        host = ft.Host.local(root=folder / "host")
        for asked in given.sets.split(","):
            name, _, n_train = asked.partition(":")
            data = load(name, given.data or Path())
            table: dict[str, Figures] = {}
            n_test = 0
            for seed in range(given.splits):
                train, test = draw(data, int(n_train), given.test, seed)
                n_test = len(test)
                ways = {"head (auto)": (BASE, "auto"), "encoder + linear": (ENCODER, "head")}
                if seed < given.lora:
                    ways["LoRA"] = (BASE, "lora")
                programs: dict[str, Any] = {}
                for way, (base, recipe) in ways.items():
                    programs[way], seconds, said = trained(data, train, host, folder, base, recipe)
                    table.setdefault(way, Figures()).seconds.append(seconds)
                    print(f"{asked} split {seed}: {way}, {seconds:.0f} s. {said}", file=sys.stderr, flush=True)
                if seed < given.setfit and name in ("titles", "hn"):
                    python = setfit_python(given.setfit_env)
                    programs["SetFit"], seconds = setfit(data, train, test, python, folder)
                    table.setdefault("SetFit", Figures()).seconds.append(seconds)
                measure(data, programs, train, test, table, data.group)
            text = rendered(f"{name}, {n_train} training rows", table, n_test, data.label == "price")
            print(text, flush=True)
            if given.to is not None:
                given.to.parent.mkdir(parents=True, exist_ok=True)
                with given.to.open("a", encoding="utf-8") as stream:
                    stream.write(f"{text}\n\n{machine()}\n\n")


if __name__ == "__main__":
    main()
