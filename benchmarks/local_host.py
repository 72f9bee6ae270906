"""The local host against plain TRL and plain transformers, as ratios of processor time in one run.

    python benchmarks/local_host.py --rounds 2 --part training

Everything runs on one thread of one process, in turns, on the packaged model; processor time is told, so that other
work on the machine counts for little. The rows are those of a label task: a rubric that all share, a title, one word.

- training: tokens of rows per processor second of `local.training.train` in float32 and in the format that is chosen by
  itself, of TRL's SFTTrainer with the same settings in float32, and with TRL's own defaults (batches of 8, bfloat16,
  layers computed again in the backward pass).
- precision: one step in bfloat16 against float32, for a small and a larger batch.
- serving: 32 requests at once to the engine, against `generate` one at a time.
- accuracy: the recipe "lora" on the quickstart's titles in float32 and in bfloat16, over --rounds seeds.
- neighbour: steps per second of the wall's clock as torch starts and as a job does, alone and beside one busy process.
- servers: 32 requests at once to the local host and to `transformers serve --continuous-batching`, each a process.
Not measured: several threads, GPUs (`benchmarks/gpu.sh`).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PACKAGED = "smollm2-135m-instruct"
RUBRIC = "You judge headlines. " + " ".join(f"Rule {n}: prefer plain words to loud ones." for n in range(1, 40))
TOPICS = ("time", "people", "water", "day", "world", "life", "house", "point", "music", "river", "stone", "paper")


def conversations(n_rows: int, rubric_words: int, title_words: int = 16) -> list[list[dict[str, str]]]:
    """Chats that share their rubric."""
    draw = random.Random(0)
    system = " ".join(RUBRIC.split()[:rubric_words])
    return [
        [
            {"role": "system", "content": system},
            {"role": "user", "content": "Title: " + " ".join(draw.choices(TOPICS, k=title_words))},
        ]
        for _ in range(n_rows)
    ]


def write_rows(path: Path, n_rows: int, rubric_words: int = 60, title_words: int = 16) -> Path:
    answers = ["true", "false"]
    rows = [
        {"messages": [*chat, {"role": "assistant", "content": answers[number % 2]}]}
        for number, chat in enumerate(conversations(n_rows, rubric_words, title_words))
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


def serving_rates(
    base: Path, n_requests: int, *, device: str = "cpu", clock: Callable[[], float] = time.process_time
) -> dict[str, Callable[[Path], float]]:
    """Requests per second of the clock: by itself the processor's."""
    import torch

    from dspy_finetune.local.chat import encode_prompt
    from dspy_finetune.local.engine import Engine, Source
    from dspy_finetune.local.models import load_model, load_tokenizer
    from dspy_finetune.local.sampling import Settings

    chats = conversations(n_requests, 215)
    engine = Engine({"base": Source(folder=base)}.__getitem__, device=device, n_threads=1)
    model, tokenizer = load_model(base, [], device=device, dtype=engine.dtype), load_tokenizer(base)
    settings = Settings(max_tokens=1, temperature=0, n_top=5)
    engine.submit("base", conversations(1, 5)[0], settings).result()

    def at_once(folder: Path) -> float:
        started = clock()
        for future in [engine.submit("base", chat, settings) for chat in chats]:
            future.result()
        return n_requests / (clock() - started)

    def one_by_one(folder: Path) -> float:
        part = chats[:3]
        started = clock()
        for chat in part:
            ids = torch.tensor([encode_prompt(tokenizer, chat)], device=device)
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
        return len(part) / (clock() - started)

    print(json.dumps({"tokens of a prompt": len(encode_prompt(tokenizer, chats[0]))}), flush=True)
    return {"engine, all at once": at_once, "generate, one at a time": one_by_one}


def steps(base: Path, seconds: float, follows_load: bool, told: Any) -> None:
    """In a process of its own: tokens per second of steps forward and backward, told after `seconds`."""
    # Read when torch is imported. Without it the library's own choice: threads that wait by turning round and round.
    os.environ.pop("OMP_WAIT_POLICY", None)
    if follows_load:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.pop("OMP_NUM_THREADS", None)
    import torch
    from peft import get_peft_model

    from dspy_finetune.local import training
    from dspy_finetune.local.hardware import Threads
    from dspy_finetune.local.memory import Setup
    from dspy_finetune.local.schemas import TrainSpec

    warnings.simplefilter("ignore")
    spec = TrainSpec(
        method="sft", model_folder=base, train_file=base, validation_file=None, output_folder=base, n_epochs=1,
        batch_size=4, learning_rate=1e-3, beta=0.1, seed=0, device="cpu", n_threads=None,
    )  # fmt: skip
    model: Any = get_peft_model(training.load(spec, Setup()), training.adapter())
    model.train()
    ids = torch.randint(3, 40_000, (4, 45), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, training.IGNORED)
    labels[:, -1] = ids[:, -1]
    threads, every = Threads(), seconds / 5
    started = until = time.monotonic()
    n_steps, n_threads = 0, []
    while time.monotonic() < started + seconds:
        if follows_load and time.monotonic() >= until:
            torch.set_num_threads(threads.now())
            until = time.monotonic() + every
        n_threads.append(torch.get_num_threads())
        training.score_rows(model.get_base_model(), ids, torch.ones_like(ids), labels).loss().backward()
        model.zero_grad()
        n_steps += 1
    told.put((n_steps * ids.numel() / (time.monotonic() - started), statistics.mean(n_threads)))


def turn() -> None:
    """A neighbour that keeps one processor busy."""
    while True:
        pass


def neighbour_rates(base: Path, seconds: float) -> None:
    """Tokens per second of training as torch starts it and as a job does, alone and beside one busy process.

    By the wall's clock: what is measured is the waiting. Other work on the machine is in the figures.
    """
    spawn = multiprocessing.get_context("spawn")
    for n_neighbours in (0, 1):
        others = [spawn.Process(target=turn, daemon=True) for _ in range(n_neighbours)]
        for other in others:
            other.start()
        rates: list[float] = []
        for follows_load in (False, True):
            told = spawn.Queue()
            child = spawn.Process(target=steps, args=(base, seconds, follows_load, told))
            before = psutil.cpu_times()
            child.start()
            rate, n_threads = told.get()
            child.join()
            after = psutil.cpu_times()
            rates.append(rate)
            found = {
                "neighbours": n_neighbours, "setting": "as a job" if follows_load else "as torch starts",
                "tokens per second": round(rate, 1), "threads": round(n_threads, 2),
                "idle share of the machine": round((after.idle - before.idle) / (sum(after) - sum(before)), 2),
            }  # fmt: skip
            print(json.dumps(found), flush=True)
        print(f"as a job / as torch starts, {n_neighbours} neighbours: {rates[1] / rates[0]:.2f}", flush=True)
        for other in others:
            other.kill()


def server_rates(base: Path, n_requests: int) -> None:
    """Requests per processor second of the local host and of `transformers serve --continuous-batching`.

    Each in a process of its own on one thread, asked by the same client: `n_requests` at once for one token, a shared
    rubric. By itself theirs takes all the memory there is for keys and values: it is given room for 16,384 tokens.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    chats = conversations(n_requests + 1, 215)
    root = tempfile.mkdtemp()
    ours = [sys.executable, "-m", "dspy_finetune.local", "--root", root, "--port", port]
    theirs = [
        str(Path(sys.executable).parent / "transformers"), "serve", str(base), "--continuous-batching", "--device",
        "cpu", "--dtype", "float32", "--port", port, "--cb-num-blocks", "512", "--cb-block-size", "32",
        "--cb-max-batch-tokens", "2048",
    ]  # fmt: skip
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    found: dict[str, float] = {}
    for name, command, model in (
        ("transformers serve", theirs, str(base)), ("local host", ours, PACKAGED),
    ):  # fmt: skip
        with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log, env=alone) as server:
            try:
                process = psutil.Process(server.pid)

                def ask(chat: list[dict[str, str]], model: str = model, port: str = port) -> str:
                    body = {"model": model, "messages": chat, "max_tokens": 1, "temperature": 0}
                    request = urllib.request.Request(
                        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
                        {"Content-Type": "application/json"},
                    )  # fmt: skip
                    with urllib.request.urlopen(request, timeout=600) as answer:
                        return str(json.load(answer)["choices"][0]["message"]["content"])

                until = time.monotonic() + 300
                while True:  # until it has loaded
                    try:
                        ask(chats[-1])
                        break
                    except OSError as error:
                        if server.poll() is not None or time.monotonic() > until:
                            raise RuntimeError(f"{name} does not answer: {error}") from error
                        time.sleep(1)
                before, started = sum(process.cpu_times()[:2]), time.monotonic()
                with concurrent.futures.ThreadPoolExecutor(n_requests) as pool:
                    answers = list(pool.map(ask, chats[:n_requests]))
                found[name] = n_requests / (sum(process.cpu_times()[:2]) - before)
                told = {
                    name: round(found[name], 2), "wall seconds": round(time.monotonic() - started, 1),
                    "first answers": answers[:3],
                }  # fmt: skip
                print(json.dumps(told), flush=True)
            except Exception as error:
                log.seek(0)
                last = log.read().decode(errors="replace").strip().splitlines()[-3:]
                print(json.dumps({name: f"{type(error).__name__}: {error}", "its last words": last}), flush=True)
            finally:
                server.kill()
    if len(found) == 2:
        print(f"local host / transformers serve: {found['local host'] / found['transformers serve']:.2f}")


def accuracies(base: Path, n_rows: int, n_seeds: int) -> None:
    """Held-out accuracy of the recipe "lora" on the quickstart's titles, products in float32 and in bfloat16.

    The same rows, order and start for both; the models are asked in float32. `n_rows` titles are trained for two
    epochs, 200 others are asked.
    """
    import torch

    from dspy_finetune.local import training
    from dspy_finetune.local.chat import encode_completion, encode_prompt
    from dspy_finetune.local.forward import PrefixCache, prefill
    from dspy_finetune.local.models import load_model, load_tokenizer
    from dspy_finetune.local.schemas import TrainSpec
    from dspy_finetune.quickstart import load_rubric, load_titles

    titles, rubric = [dict(title) for title in load_titles()], load_rubric()
    tokenizer = load_tokenizer(base)

    def chat(row: dict[str, Any]) -> list[dict[str, str]]:
        return [{"role": "system", "content": rubric}, {"role": "user", "content": f"Title: {row['title']}"}]

    answers = [encode_completion(tokenizer, word)[0] for word in ("false", "true")]
    for seed in range(n_seeds):
        random.Random(seed).shuffle(titles)
        train, held_out = titles[:n_rows], titles[n_rows : n_rows + 200]
        wanted = torch.tensor([row["is_favorite"] for row in held_out])
        for dtype in ("float32", "bfloat16"):
            place = Path(tempfile.mkdtemp())
            lines = [
                {"messages": [*chat(row), {"role": "assistant", "content": str(row["is_favorite"]).lower()}]}
                for row in train
            ]
            (place / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            spec = TrainSpec(
                method="sft", model_folder=base, train_file=place / "rows.jsonl", validation_file=None,
                output_folder=place / "out", n_epochs=2, batch_size=4, learning_rate=1e-3, beta=0.1, seed=seed,
                device="cpu", n_threads=1, dtype=dtype,
            )  # fmt: skip
            told: list[dict[str, Any]] = []
            started = time.process_time()
            done = training.train(spec, emit=told.append, should_stop=lambda: False)
            seconds = time.process_time() - started
            assert done.adapter is not None
            model = load_model(base, [done.adapter])
            scores = []
            for start in range(0, len(held_out), 25):
                rows = [encode_prompt(tokenizer, chat(row)) for row in held_out[start : start + 25]]
                logits = prefill(model, rows, PrefixCache()).logits
                scores.append(logits[:, answers[1]] - logits[:, answers[0]])
            score = torch.cat(scores)
            pairs = (score[wanted][:, None] - score[~wanted][None, :]).sign()
            losses = [one["train_loss"] for one in told if "train_loss" in one]
            found = {
                "seed": seed, "dtype": dtype, "n_train": n_rows, "n_held_out": len(held_out),
                "accuracy": round(float(((score > 0) == wanted).float().mean()), 3),
                "auc": round(float((pairs + 1).mean() / 2), 3),
                "last_losses": round(statistics.mean(losses[-10:]), 3),
                "cpu_seconds": round(seconds),
            }  # fmt: skip
            print(json.dumps(found), flush=True)


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--rounds", type=int, default=2)
    asked.add_argument(
        "--part", choices=["training", "precision", "serving", "accuracy", "neighbour", "servers", "all"], default="all"
    )
    asked.add_argument("--rows", type=int, default=24)
    given = asked.parse_args()
    warnings.simplefilter("ignore")
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is imported
    import torch

    from dspy_finetune.local.models import PACKAGED_MODEL, base_folder

    torch.set_num_threads(1)
    base = base_folder(PACKAGED_MODEL)
    if given.part == "accuracy":  # half an hour: not part of all
        accuracies(base, given.rows, given.rounds)
        return
    if given.part == "neighbour":
        neighbour_rates(base, 40 * given.rounds)
        return
    if given.part == "servers":
        server_rates(base, 32)
        return
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
