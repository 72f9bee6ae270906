"""What both training recipes share: the model with its adapter, the trainer's settings, and telling how it goes.

In: a `TrainSpec`. Out: a loaded model, TRL settings, a callback that reports each step, and the `TrainResult` of a run.
The settings were measured on SmolLM2-135M: few steps want a high rate and small batches (see `hyperparameters.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

from dspy_finetune.local.spec import Emit, TrainResult, TrainSpec

LORA_RANK = 8
LORA_ALPHA = 16
WARMUP_SHARE = 0.1
"""The first tenth of the steps: with 0.05 and a rate of 2e-3 the adapter's first steps broke the model for good."""
# TRL turns it on: memory that a small model does not need, for a third more time. transformers 5.21 renamed it.
CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in transformers.TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)


def prepare(spec: TrainSpec) -> tuple[Any, Any]:
    """Load (model, tokenizer) for training, with threads and seeds set."""
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(spec.seed)
    if spec.n_threads:
        torch.set_num_threads(spec.n_threads)
    tokenizer = AutoTokenizer.from_pretrained(spec.model_folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # float32: on processors without bfloat16 units half precision is slower and loses small updates.
    model = AutoModelForCausalLM.from_pretrained(spec.model_folder, dtype=torch.float32, attn_implementation="sdpa")
    return model, tokenizer


def adapter() -> LoraConfig:
    """The low-rank adapter on all linear layers."""
    return LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


def settings(spec: TrainSpec) -> dict[str, Any]:
    """The keyword arguments that SFTConfig and DPOConfig share."""
    return {
        "output_dir": os.fspath(spec.output_folder),
        "num_train_epochs": spec.n_epochs,
        "per_device_train_batch_size": spec.batch_size,
        "per_device_eval_batch_size": max(spec.batch_size, 8),
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": WARMUP_SHARE,
        "max_grad_norm": 1.0,
        "seed": spec.seed,
        "data_seed": spec.seed,
        "use_cpu": spec.device == "cpu",
        "bf16": False,
        CHECKPOINTING: False,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "eval_strategy": "epoch" if spec.validation_file else "no",
        # The trainer's own checkpoints keep optimizer and order: a paused or killed run goes on where it was.
        "save_strategy": "epoch",
        "save_total_limit": 3,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "max_length": None,
    }


class Reporter(TrainerCallback):
    """Tells each step to `emit`, and stops between two steps when asked to."""

    def __init__(self, emit: Emit, should_stop: Callable[[], bool]) -> None:
        self.emit = emit
        self.should_stop = should_stop
        self.stopped = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """One step's figures, under OpenAI's names."""
        logs = logs or {}
        if "loss" not in logs:
            return
        metrics: dict[str, Any] = {
            "step": state.global_step,
            "total_steps": state.max_steps,
            "train_loss": logs["loss"],
            "train_mean_token_accuracy": logs.get("mean_token_accuracy"),
        }
        for name in ("rewards/accuracies", "rewards/margins"):
            if name in logs:
                metrics["train_" + name.replace("/", "_")] = logs[name]
        self.emit(metrics)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """The whole validation file's figures, after each epoch."""
        metrics = metrics or {}
        self.emit(
            {
                "step": state.global_step,
                "total_steps": state.max_steps,
                "full_valid_loss": metrics.get("eval_loss"),
                "full_valid_mean_token_accuracy": metrics.get("eval_mean_token_accuracy"),
            }
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Stop, with a checkpoint, as soon as somebody asks for it."""
        if self.should_stop():
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True
        return control


def checkpoints(folder: Path) -> tuple[tuple[int, Path], ...]:
    """The (step, folder) of each complete checkpoint, oldest first."""
    found = []
    for path in folder.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        # trainer_state.json is written last: without it the checkpoint was cut off while being written.
        if match and (path / "trainer_state.json").is_file() and (path / "adapter_config.json").is_file():
            found.append((int(match[1]), path))
    return tuple(sorted(found))


def run(trainer: Any, spec: TrainSpec, reporter: Reporter, n_tokens: int) -> TrainResult:
    """Train from the newest checkpoint, if there is one, and save the adapter.

    Args:
        trainer: A TRL trainer with its PEFT model.
        spec: What it was built from.
        reporter: Its callback.
        n_tokens: Tokens of all examples, once.
    """
    trainer.remove_callback(PrinterCallback)
    done = checkpoints(spec.output_folder)
    trainer.train(resume_from_checkpoint=os.fspath(done[-1][1]) if done else None)
    folder = spec.output_folder / "adapter"
    trainer.model.save_pretrained(folder)
    state = trainer.state
    return TrainResult(
        trained_tokens=n_tokens * spec.n_epochs,
        steps=state.global_step,
        adapter=folder,
        stopped=reporter.stopped,
        checkpoints=checkpoints(spec.output_folder),
    )
