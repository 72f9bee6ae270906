"""Several processes train one job as one process would on the same batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dspy_finetune._files import write_json
from dspy_finetune.local import training, worker
from dspy_finetune.local.scheduler import Training
from tests.local.test_recipes import chat_rows, write
from tests.local.toy_server import REPOSITORY

pytestmark = [
    pytest.mark.local,  # two more processes that import torch and TRL
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore::FutureWarning:trl"),
]


def job_folder(folder: Path, toy: Path, train_file: Path) -> Path:
    task: dict[str, Any] = {
        "method": "sft", "base": os.fspath(toy), "adapters": [], "train_file": os.fspath(train_file),
        "validation_file": None, "n_epochs": 2, "batch_size": 4, "learning_rate": 0.05, "beta": 0.1, "recipe": "lora",
        "seed": 0, "device": "cpu", "n_threads": 1, "dtype": "float32",
    }  # fmt: skip
    (folder / "work").mkdir(parents=True)
    write_json(folder / "task.json", task)
    return folder


def told(folder: Path) -> tuple[dict[str, Any], list[float]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    losses = [event["data"]["train_loss"] for event in events if event["type"] == "metrics"]
    return json.loads((folder / "result.json").read_bytes()), losses


def test_two_processes_average_their_gradients_into_those_of_one(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses step for step and the same adapter: each process has half of each batch of four."""
    from safetensors.torch import load_file

    rows = write(tmp_path / "rows.jsonl", chat_rows(16))
    both = job_folder(tmp_path / "two", toy_model, rows)
    command = Training(n_processes=2).command("tests.local.undropped_worker", both)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[:20_000]

    monkeypatch.setattr(training, "LORA_DROPOUT", 0.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    alone = job_folder(tmp_path / "one", toy_model, rows)
    worker.run_job(alone)

    (of_two, losses_of_two), (of_one, losses_of_one) = told(both), told(alone)
    assert len(losses_of_one) == 8
    assert losses_of_two == pytest.approx(losses_of_one, rel=1e-4)
    assert [one["step"] for one in of_two["checkpoints"]] == [one["step"] for one in of_one["checkpoints"]] == [4, 8]
    adapters = [load_file(Path(one["adapter"]) / "adapter_model.safetensors") for one in (of_two, of_one)]
    assert all(adapters[0][name].allclose(adapters[1][name], atol=1e-4) for name in adapters[1])
