"""What a training recipe is given and what it gives back: the one interface between the worker and sft.py, dpo.py.

In: a `TrainSpec` with every hyperparameter already resolved. Out: a `TrainResult`. No torch is imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Method = Literal["sft", "dpo"]
"""The two ways to train; on the wire they are called `supervised` and `dpo`."""

Emit = Callable[[dict[str, Any]], None]
"""Takes one step's metrics: step, total_steps, train_loss, and what else was measured at that step."""


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """One training run, resolved: nothing in it is left to choose."""

    method: Method
    model_folder: Path
    """A folder with merged safetensors and a tokenizer: a base model's, or a tuned model's."""
    train_file: Path
    """JSONL in OpenAI's schema of the method."""
    validation_file: Path | None
    output_folder: Path
    """The recipe writes `adapter/` (PEFT's save_pretrained) here, and `checkpoint-<step>/` after each epoch."""
    n_epochs: int
    batch_size: int
    learning_rate: float
    """The real rate of the optimizer, the multiplier applied."""
    beta: float
    """DPO's pull towards the starting model; sft ignores it."""
    seed: int
    device: str
    """"cpu", "cuda" or "cuda:N"."""
    n_threads: int | None
    """Threads for torch on the CPU; None leaves torch's own choice."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished, or stopped, training run left behind."""

    trained_tokens: int
    """Tokens of all examples times the epochs: what OpenAI bills."""
    steps: int
    adapter: Path
    """The folder with the LoRA adapter."""
    stopped: bool
    """True when `should_stop` ended the run early."""
    checkpoints: tuple[tuple[int, Path], ...]
    """(step, adapter folder) for each epoch, oldest first."""


class Recipe(Protocol):
    """The signature of `sft.train` and `dpo.train`."""

    def __call__(self, spec: TrainSpec, *, emit: Emit, should_stop: Callable[[], bool]) -> TrainResult:
        """Train, telling each step to `emit` and asking `should_stop` between steps."""
        ...
