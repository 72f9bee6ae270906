"""Does a job's short sweep over learning rates choose better than the fixed rate? Held-out losses on real rows.

    python benchmarks/learning_rates.py --data FOLDER --sets truthfulqa titles --splits 3

FOLDER holds truthfulqa.jsonl (question, best_answer); `titles` are the packaged ones, labels under the recipe "lora".
For each split `find_rate` of the local host is given --rows training rows and chooses; where that is another rate than
the fixed one, jobs at both are trained, as a user's would be, and their losses on --test other rows are compared. Where
it is the fixed one, the job is the same. --all trains at every rate. The sweep has --steps for each rate, since so few
rows would not be searched: that takes 3 x --steps x 4 row-steps, beside the job's --rows x --epochs.
Not measured: bases other than the packaged one.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import dspy_finetune as ft
from dspy_finetune.quickstart import load_titles

TITLES = "titles"


def rows_of(name: str, folder: Path | None) -> tuple[list[dict[str, Any]], Any]:
    """(rows, prompt) of a set."""
    if name == TITLES:
        return [dict(title) for title in load_titles()], ft.prompts.binary()
    assert folder is not None  # asked for by main
    lines = (folder / "truthfulqa.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{"question": row["question"], "answer": row["best_answer"]} for row in map(json.loads, lines)]
    return rows, ft.prompts.answer("question -> answer")


def write(path: Path, rows: list[dict[str, Any]], prompt: Any) -> Path:
    """A training file of these rows."""
    chats = [[*prompt.messages(row), {"role": "assistant", "content": prompt.completion(row)}] for row in rows]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    return path


def measure(name: str, seed: int, given: argparse.Namespace) -> None:
    """One split: the sweep, then the jobs it asks for; prints a line for each."""
    from dspy_finetune.local import rates, training
    from dspy_finetune.local.chat import encode_completion
    from dspy_finetune.local.memory import Setup
    from dspy_finetune.local.models import base_folder
    from dspy_finetune.local.schemas import BASE_LEARNING_RATE, TrainSpec
    from dspy_finetune.tasks import MULTIPLIERS, Sweep, task_of

    vars(training)["sweep_of"] = lambda *sizes: Sweep(n_steps=given.steps, n_held_out=given.held_out)
    rates.kept = lambda path: []  # measured anew, whatever was measured before
    rows, prompt = rows_of(name, given.data)
    drawn = random.Random(seed).sample(rows, given.rows + given.test)
    usual = BASE_LEARNING_RATE["sft"]
    with tempfile.TemporaryDirectory() as work:
        train = write(Path(work) / "train.jsonl", drawn[: given.rows], prompt)
        test = write(Path(work) / "test.jsonl", drawn[given.rows :], prompt)

        def spec(rate: float) -> TrainSpec:
            return TrainSpec(
                method="sft",
                model_folder=base_folder(given.model),
                train_file=train,
                validation_file=None,
                output_folder=Path(work) / f"{rate:g}",
                n_epochs=given.epochs,
                batch_size=4,
                learning_rate=rate,
                beta=0.1,
                seed=seed,
                device="cpu",
                n_threads=given.threads,
                dtype="float32",
            )

        tokenizer = training.load_tokenizer(spec(usual))
        task = task_of(train)
        closed = [encode_completion(tokenizer, label) for label in task.labels]
        choices = training.choices_of(closed) if closed else None
        job = training.SftJob(spec=spec(usual), setup=Setup(), tokenizer=tokenizer, choices=choices)
        told: list[dict[str, Any]] = []
        begun = time.process_time()
        model = training.load(job.spec, Setup())
        found = training.find_rate(
            job, model, training.load_rows(tokenizer, train), emit=told.append, should_stop=lambda: False
        )
        assert found is not None  # nobody stops it
        for one in told:
            if "candidate" in one:
                figures = f"held-out loss {one['valid_loss']:.3f} ± {one['valid_loss_error']:.3f}"
                print(f"{name} split {seed}: {one['candidate']}: {figures}", flush=True)
        print(f"{name} split {seed}: {told[-1]['message']} ({time.process_time() - begun:.0f} CPU s)", flush=True)
        wanted = [usual * factor for factor in MULTIPLIERS] if given.all else sorted({usual, found})
        for rate in wanted if given.all or found != usual else []:
            begun = time.process_time()
            result = training.train(spec(rate), emit=lambda row: None, should_stop=lambda: False)
            assert result.adapter is not None  # LoRA leaves one
            line = f"{_tested(job, result.adapter, test)} ({time.process_time() - begun:.0f} CPU s)"
            print(f"{name} split {seed}: job at {rate:g}, kept step {result.steps}: {line}", flush=True)


def _tested(job: Any, adapter: Path, test: Path) -> str:
    from peft import PeftModel
    from transformers import TrainerCallback

    from dspy_finetune.local import training

    model = training.load(job.spec, job.setup)
    rows = training.load_rows(job.tokenizer, test)
    trainer = job.trainer(
        model, training.settings(job.spec, job.setup, is_validated=False), rows, None, TrainerCallback()
    )
    trainer.model = PeftModel.from_pretrained(trainer.model.unload(), adapter)
    tested = training.measured(trainer, rows, job.spec.learning_rate)
    return f"test loss {tested.loss:.3f} ± {tested.loss_error:.3f}, token accuracy {tested.accuracy:.3f}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sets", nargs="+", choices=["truthfulqa", TITLES], default=[TITLES])
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--all", action="store_true", help="train at every rate")
    given = parser.parse_args()
    if given.data is None and given.sets != [TITLES]:
        parser.error("--data FOLDER is needed for other sets than titles")
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL reads names that transformers is about to drop
    for seed in range(given.splits):
        for name in given.sets:
            measure(name, seed, given)


if __name__ == "__main__":
    main()
