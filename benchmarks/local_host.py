"""The local host against plain TRL and plain transformers, as ratios of processor time in one run.

    python benchmarks/local_host.py --rounds 2 --part training

Everything runs on one thread of one process, in turns, on the packaged model; processor time is told, so that other
work on the machine counts for little. The rows are those of a label task: a rubric that all share, a title, one word.

- training: tokens of rows per processor second of `local.training.train` in float32 and in the format that is chosen by
  itself, of TRL's SFTTrainer with the same settings in float32, and with TRL's own defaults (batches of 8, bfloat16,
  layers computed again in the backward pass).
- precision: one step in bfloat16 against float32, for a small and a larger batch.
- serving: 32 requests at once to the engine, against `generate` one at a time.
Not measured: several threads, GPUs (`benchmarks/gpu.sh`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUBRIC = "You judge headlines. " + " ".join(f"Rule {n}: prefer plain words to loud ones." for n in range(1, 40))
TOPICS = ("time", "people", "water", "day", "world", "life", "house", "point", "music", "river", "stone", "paper")


def conversations(n_rows: int, rubric_words: int) -> list[list[dict[str, str]]]:
    """Chats that share their rubric."""
    draw = random.Random(0)
    system = " ".join(RUBRIC.split()[:rubric_words])
    return [
        [
            {"role": "system", "content": system},
            {"role": "user", "content": "Title: " + " ".join(draw.choices(TOPICS, k=16))},
        ]
        for _ in range(n_rows)
    ]


def write_rows(path: Path, n_rows: int) -> Path:
    answers = ["true", "false"]
    rows = [
        {"messages": [*chat, {"role": "assistant", "content": answers[number % 2]}]}
        for number, chat in enumerate(conversations(n_rows, 60))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Watch:
    """Seconds from the end of the first step to the end of the last: what is set up once counts for none."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.ends: list[float] = []

    def tick(self) -> None:
        self.ends.append(self.clock())

    def rate(self, tokens_per_step: float) -> float:
        return tokens_per_step * (len(self.ends) - 1) / (self.ends[-1] - self.ends[0])


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What both trainers are given, and how time is told."""

    base: Path
    rows: Path
    device: str = "cpu"
    clock: Callable[[], float] = time.process_time

    def ours(self, folder: Path, *, dtype: str = "auto", batch_size: int = 4) -> float:
        """Tokens of rows per second of `local.training.train`."""
        from dspy_finetune.local import training
        from dspy_finetune.local.schemas import TrainSpec

        watch = Watch(self.clock)

        def emit(told: dict[str, Any]) -> None:
            if "train_loss" in told:
                watch.tick()
            if "message" in told:
                print(json.dumps({"ours": told["message"]}), flush=True)

        spec = TrainSpec(
            method="sft", model_folder=self.base, train_file=self.rows, validation_file=None, output_folder=folder,
            n_epochs=1, batch_size=batch_size, learning_rate=1e-3, beta=0.1, seed=0, device=self.device, n_threads=None,
            dtype=dtype,
        )  # fmt: skip
        result = training.train(spec, emit=emit, should_stop=lambda: False)
        return watch.rate(result.trained_tokens / result.steps)

    def plain(self, folder: Path, **changes: Any) -> float:
        """The same of TRL's own trainer, loss on the answer."""
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
        from trl import SFTConfig, SFTTrainer

        from dspy_finetune.local import training

        watch = Watch(self.clock)

        class Tick(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                watch.tick()

        lines = [json.loads(line)["messages"] for line in self.rows.read_text().splitlines()]
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        n_tokens = sum(len(row["input_ids"]) for row in training.load_rows(tokenizer, self.rows))
        on_cpu = self.device == "cpu"
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32 if on_cpu else torch.bfloat16),
            args=SFTConfig(
                output_dir=os.fspath(folder), num_train_epochs=1, use_cpu=on_cpu, report_to="none", disable_tqdm=True,
                save_strategy="no", completion_only_loss=True, **changes,
            ),
            train_dataset=Dataset.from_list([{"prompt": one[:2], "completion": one[2:]} for one in lines]),
            peft_config=training.adapter(),
            callbacks=[Tick()],
        )  # fmt: skip
        trainer.train()
        return watch.rate(n_tokens / len(watch.ends))


def training_rates(base: Path, n_rows: int) -> dict[str, Callable[[Path], float]]:
    from dspy_finetune.local import training

    bench = Bench(base=base, rows=write_rows(Path(tempfile.mkdtemp()) / "rows.jsonl", n_rows))
    same = {training.CHECKPOINTING: False, "bf16": False, "per_device_train_batch_size": 4}
    return {
        "ours, float32": lambda folder: bench.ours(folder, dtype="float32"),
        "ours, chosen format": lambda folder: bench.ours(folder),
        "TRL, same settings": lambda folder: bench.plain(folder, **same),
        "TRL, its defaults": lambda folder: bench.plain(folder),
    }


def precision_rates(base: Path, n_rows: int, length: int) -> dict[str, Callable[[Path], float]]:
    """Tokens per processor second of one step forward and backward, on rows that share nothing."""
    import torch
    from peft import get_peft_model

    from dspy_finetune.local import training
    from dspy_finetune.local.memory import Setup
    from dspy_finetune.local.schemas import TrainSpec

    spec = TrainSpec(
        method="sft", model_folder=base, train_file=base, validation_file=None, output_folder=base, n_epochs=1,
        batch_size=n_rows, learning_rate=1e-3, beta=0.1, seed=0, device="cpu", n_threads=1,
    )  # fmt: skip

    def way(dtype: str) -> Callable[[Path], float]:
        model: Any = get_peft_model(training.load(spec, Setup(dtype=dtype)), training.adapter())
        model.train()
        ids = torch.randint(3, 40_000, (n_rows, length), generator=torch.Generator().manual_seed(0))
        labels = torch.full_like(ids, training.IGNORED)
        labels[:, -1] = ids[:, -1]

        def step(folder: Path) -> float:
            started = time.process_time()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != "float32"):
                loss = training.score_rows(model.get_base_model(), ids, torch.ones_like(ids), labels).loss()
            loss.backward()
            model.zero_grad()
            return n_rows * length / (time.process_time() - started)

        return step

    return {f"{dtype}, {n_rows * length} tokens": way(dtype) for dtype in ("float32", "bfloat16")}


def serving_rates(base: Path, n_requests: int) -> dict[str, Callable[[Path], float]]:
    """Requests per processor second."""
    import torch

    from dspy_finetune.local.chat import encode_prompt
    from dspy_finetune.local.engine import Engine, Source
    from dspy_finetune.local.models import load_model, load_tokenizer
    from dspy_finetune.local.sampling import Settings

    chats = conversations(n_requests, 215)
    model, tokenizer = load_model(base, []), load_tokenizer(base)
    engine = Engine({"base": Source(folder=base)}.__getitem__, device="cpu", n_threads=1)
    settings = Settings(max_tokens=1, temperature=0, n_top=5)
    engine.submit("base", conversations(1, 5)[0], settings).result()

    def at_once(folder: Path) -> float:
        started = time.process_time()
        for future in [engine.submit("base", chat, settings) for chat in chats]:
            future.result()
        return n_requests / (time.process_time() - started)

    def one_by_one(folder: Path) -> float:
        part = chats[:3]
        started = time.process_time()
        for chat in part:
            ids = torch.tensor([encode_prompt(tokenizer, chat)])
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
        return len(part) / (time.process_time() - started)

    print(json.dumps({"tokens of a prompt": len(encode_prompt(tokenizer, chats[0]))}), flush=True)
    return {"engine, all at once": at_once, "generate, one at a time": one_by_one}


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--rounds", type=int, default=2)
    asked.add_argument("--part", choices=["training", "precision", "serving", "all"], default="all")
    asked.add_argument("--rows", type=int, default=24)
    given = asked.parse_args()
    warnings.simplefilter("ignore")
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is imported
    import torch

    from dspy_finetune.local.models import PACKAGED_MODEL, base_folder

    torch.set_num_threads(1)
    base = base_folder(PACKAGED_MODEL)
    runs: dict[str, Callable[[Path], float]] = {}
    if given.part in ("training", "all"):
        runs |= training_rates(base, given.rows)
    if given.part in ("precision", "all"):
        runs |= precision_rates(base, 4, 45) | precision_rates(base, 4, 70) | precision_rates(base, 8, 80)
    if given.part in ("serving", "all"):
        runs |= serving_rates(base, 32)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(given.rounds):
        for name, run in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(run(Path(folder)))
            print(json.dumps({name: round(found[name][-1], 2)}), flush=True)
    for name, against in (
        ("ours, chosen format", "ours, float32"),
        ("ours, float32", "TRL, same settings"),
        ("ours, chosen format", "TRL, same settings"),
        ("ours, chosen format", "TRL, its defaults"),
        ("bfloat16, 180 tokens", "float32, 180 tokens"),
        ("bfloat16, 280 tokens", "float32, 280 tokens"),
        ("bfloat16, 640 tokens", "float32, 640 tokens"),
        ("engine, all at once", "generate, one at a time"),
    ):
        if name in found:
            ratios = [one / other for one, other in zip(found[name], found[against], strict=True)]
            print(f"{name} / {against}: {statistics.median(ratios):.2f} ({', '.join(f'{one:.2f}' for one in ratios)})")
    os._exit(0)  # the engine's thread waits for requests


if __name__ == "__main__":
    main()
