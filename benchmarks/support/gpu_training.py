"""What `benchmarks/gpu.sh` runs: training beside TRL and serving beside `generate`, on one device.

The model has the sizes of Qwen3-0.6B, random weights and the tests' small tokenizer.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.local_host import Bench, serving_rates, write_rows
from tests.local.toy import build_toy_model

BATCH_SIZE = 16
ROUNDS = 2


def build(folder: Path, n_layers: int) -> Path:
    """A model folder with random weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokens = build_toy_model(folder / "toy")
    config = Qwen3Config(
        vocab_size=151_936 if n_layers > 4 else 1000, hidden_size=1024 if n_layers > 4 else 64,
        intermediate_size=3072 if n_layers > 4 else 128, num_hidden_layers=n_layers, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128 if n_layers > 4 else 16, tie_word_embeddings=True, eos_token_id=2,
        pad_token_id=2, bos_token_id=1,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    for path in tokens.glob("tokenizer*"):
        (folder / "model" / path.name).write_bytes(path.read_bytes())
    for path in tokens.glob("*.jinja"):
        (folder / "model" / path.name).write_bytes(path.read_bytes())
    return folder / "model"


def synchronized() -> float:
    """The time when the GPU has done what it was given."""
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def train(bench: Bench, folder: Path) -> None:
    """Tokens of rows per second of `local.training.train`, of TRL with the same settings, and of TRL as it comes."""
    from dspy_finetune.local import training

    on_cpu = bench.device == "cpu"
    same = {"per_device_train_batch_size": BATCH_SIZE, "bf16": not on_cpu, training.CHECKPOINTING: False}
    ways: dict[str, Callable[[Path], float]] = {
        "ours": lambda folder: bench.ours(folder, batch_size=BATCH_SIZE),
        "TRL, same settings": lambda folder: bench.plain(folder, **same),
        "TRL, its defaults": lambda folder: bench.plain(folder),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(ROUNDS):
        for way, run in ways.items():
            rates[way].append(run(folder / f"{turn} {way}"))
    told(rates, "tokens of rows per second")


def told(rates: dict[str, list[float]], unit: str) -> None:
    """Print the figures and what the first way makes of each other one, round by round."""
    first, *others = rates
    print(json.dumps({"unit": unit, **{way: [round(rate, 1) for rate in of_way] for way, of_way in rates.items()}}))
    for other in others:
        ratios = [round(one / two, 2) for one, two in zip(rates[first], rates[other], strict=True)]
        print(json.dumps({f"{first} / {other}": ratios}), flush=True)


def main() -> None:
    """Run all parts."""
    warnings.simplefilter("ignore")
    device, n_rows = os.environ["DEVICE"], int(os.environ["ROWS"])
    clock: Any = time.perf_counter if device == "cpu" else synchronized
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = build(folder, int(os.environ["LAYERS"]))
        kinds = {"a rubric that all rows share": (60, 16), "rows that share nothing": (0, 100)}
        for kind, words in kinds.items():
            print(json.dumps({"training": kind}), flush=True)
            rows = write_rows(folder / f"{words[0]}.jsonl", n_rows, *words)
            train(Bench(base=base, rows=rows, device=device, clock=clock), folder / str(words[0]))
        print(json.dumps({"serving": "32 requests for one label"}), flush=True)
        ways = serving_rates(base, 32, device=device, clock=clock)
        rates = {way: [run(folder) for _ in range(ROUNDS + 1)][1:] for way, run in ways.items()}
        told(rates, "requests per second")


if __name__ == "__main__":
    main()
