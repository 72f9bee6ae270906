"""The real worker with a recipe that pretends: ten steps, as slow as TOY_STEP_SECONDS, and a fixed adapter.

Like the real recipes it leaves a checkpoint when it is stopped and goes on from it, and with RATE_ROWS rows it finds
that twice the rate is better, where the rate is its own to choose.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from dspy_finetune.local import worker
from dspy_finetune.local.schemas import Emit, TrainResult, TrainSpec
from tests.local.toy import write_toy_adapter

STEPS = 10
RATE_ROWS = 30


def train(spec: TrainSpec, *, emit: Emit, should_stop: Callable[[], bool]) -> TrainResult:
    seconds = float(os.environ.get("TOY_STEP_SECONDS", "0.01"))
    progress = spec.output_folder / "progress"
    done = int(progress.read_text()) if progress.exists() else 0
    stopped = False
    for step in range(done + 1, STEPS + 1):
        time.sleep(seconds)
        emit({"step": step, "total_steps": STEPS, "train_loss": 1 / step, "train_mean_token_accuracy": step / STEPS})
        progress.write_text(str(step))
        if stopped := should_stop():
            break
    n_rows = len(spec.train_file.read_text().splitlines())
    adapter = write_toy_adapter(spec.output_folder / "adapter")
    middle = write_toy_adapter(spec.output_folder / "checkpoint-5", scale=0.5)
    last = write_toy_adapter(spec.output_folder / "checkpoint-10")
    return TrainResult(
        trained_tokens=n_rows * 10,
        steps=STEPS,
        adapter=adapter,
        stopped=stopped,
        checkpoints=((5, middle), (10, last)),
        learning_rate=2 * spec.learning_rate if spec.finds_rate and n_rows >= RATE_ROWS else None,
    )


if __name__ == "__main__":
    worker.trainer = lambda method, recipe: train
    worker.main()
