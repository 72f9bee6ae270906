"""What `benchmarks/gpu.sh` runs: tokens per second of local.training.train and of TRL's trainer, on one device.

The model has the sizes of Qwen3-0.6B, random weights and the tests' small tokenizer. Not yet run on a GPU.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from benchmarks.local_host import Bench, write_rows
from tests.local.toy import build_toy_model

BATCH_SIZE = 16


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


def main() -> None:
    warnings.simplefilter("ignore")
    from dspy_finetune.local import training

    device, found = os.environ["DEVICE"], dict[str, float]()
    clock = time.perf_counter if device == "cpu" else synchronized
    same = {"per_device_train_batch_size": BATCH_SIZE, "bf16": True, training.CHECKPOINTING: False}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = build(folder, int(os.environ["LAYERS"]))
        rows = write_rows(folder / "rows.jsonl", int(os.environ["ROWS"]))
        bench = Bench(base=base, rows=rows, device=device, clock=clock)
        ways: dict[str, Callable[[Path], float]] = {
            "ours": lambda folder: bench.ours(folder, batch_size=BATCH_SIZE),
            "TRL": lambda folder: bench.plain(folder, **same),
        }
        for way, run in ways.items():
            found[way] = run(folder / way)
            print(json.dumps({way: round(found[way], 1), "unit": "tokens of rows per second"}), flush=True)
    print(json.dumps({"ours / TRL": round(found["ours"] / found["TRL"], 2)}))


if __name__ == "__main__":
    main()
