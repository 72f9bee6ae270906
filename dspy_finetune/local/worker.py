"""The child process that runs one job: `python -m dspy_finetune.local.worker JOB_FOLDER`.

In: JOB_FOLDER/task.json, written by the scheduler. Out: events appended to events.jsonl, then result.json, then
result.csv's content inside it; the exit code says nothing that result.json does not.
The server hands it the lock on worker.lock, held as long as this process lives: how a restarted server knows.
It stops between two steps when JOB_FOLDER/control appears, or on SIGTERM; the recipe then leaves a checkpoint to go on.
Before its first step, SIGTERM ends it at once.
Of several processes that `accelerate launch` starts, the first one tells and writes; all of them train.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from dspy_finetune._files import AppendLog, process_lock, write_json
from dspy_finetune.errors import DataError, FileError, FinetuneError, UsageError
from dspy_finetune.local.hardware import THREADS_SECONDS, Threads
from dspy_finetune.local.schemas import Trainer, TrainResult, TrainSpec
from dspy_finetune.local.store import append_event, derived_id, is_no_space
from dspy_finetune.tasks import Recipe

COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
"""The columns of OpenAI's result file."""
CANDIDATE_COLUMNS = ("valid_loss_error", "candidate")
"""Further ones where candidates were compared: the loss's standard error, and the candidate in words."""


class Metrics:
    """The figures of each step, kept across restarts; a step that is trained again replaces its figures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = AppendLog(folder / "work" / "metrics.jsonl")
        self.steps: dict[int, dict[str, Any]] = {}
        for _, metrics in self._log.rows():
            self._take(metrics)

    def _take(self, metrics: dict[str, Any]) -> None:
        self.steps.setdefault(int(metrics["step"]), {}).update(metrics)

    def emit(self, metrics: dict[str, Any]) -> None:
        """Record one step's figures and tell them as an event in OpenAI's words."""
        if not is_first():
            return
        if "message" in metrics:
            append_event(
                self.folder, metrics["message"], event_id=derived_id("ftevent-", self.folder.name, *metrics.values())
            )
            return
        metrics = {name: value for name, value in metrics.items() if value is not None}
        self._take(metrics)
        self._log.append(metrics, sync=False)
        named = {
            "training loss": "train_loss",
            "validation loss": "valid_loss",
            "full validation loss": "full_valid_loss",
        }
        parts = [f"{name}={metrics[key]:.2f}" for name, key in named.items() if key in metrics]
        message = f"Step {metrics['step']}/{metrics.get('total_steps', '?')}: {', '.join(parts)}"
        event_id = None
        if "candidate" in metrics:
            message = _candidate(metrics)
            # A job that goes on tells again what it knows; a candidate's figures are an event once.
            event_id = derived_id("ftevent-", self.folder.name, message)
        append_event(self.folder, message, kind="metrics", data=metrics, event_id=event_id)

    def csv(self) -> str:
        """The result file: one row for each step, blank where nothing was measured."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        # A head's steps are candidates, and those before the first of a LoRA are rates: what was tried stands there.
        more = CANDIDATE_COLUMNS if any("candidate" in metrics for metrics in self.steps.values()) else ()
        writer.writerow((*COLUMNS, *more))
        for step, metrics in sorted(self.steps.items()):
            valid_accuracy = metrics.get("valid_mean_token_accuracy", metrics.get("full_valid_mean_token_accuracy"))
            valid_loss = metrics.get("valid_loss", metrics.get("full_valid_loss"))
            row = (
                step,
                metrics.get("train_loss"),
                metrics.get("train_mean_token_accuracy"),
                valid_loss,
                valid_accuracy,
                *(metrics.get(name) for name in more),
            )
            writer.writerow("" if value is None else value for value in row)
        return stream.getvalue()


def _candidate(metrics: dict[str, Any]) -> str:
    # Heads are compared in the place of steps, rates before the first step: at -2, -1 and 0.
    is_before = metrics["step"] < 1
    name = metrics["candidate"] if is_before else f"{metrics['step']}/{metrics['total_steps']}: {metrics['candidate']}"
    if "valid_loss" not in metrics:
        return f"Candidate {name}: no finite loss"
    kind = "held-out" if is_before else "cross-validated"
    return f"Candidate {name}: {kind} loss {metrics['valid_loss']:.4g} ± {metrics['valid_loss_error']:.2g}"


def run_job(folder: Path) -> None:
    """Run the job of a folder to its end, and write what came out to result.json."""
    task = json.loads((folder / "task.json").read_bytes())
    stop_signals: list[int] = []
    has_begun = False

    def on_stop(number: int, frame: object) -> None:
        stop_signals.append(number)
        if not has_begun and is_alone():
            # Models are loaded for minutes, and there is nothing to keep.
            write_json(folder / "result.json", {"stopped": True})
            os._exit(0)

    signal.signal(signal.SIGTERM, on_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the server's terminal is the server's to handle

    threads = Threads() if task["n_threads"] is None and "OMP_NUM_THREADS" not in os.environ else None
    threads_until = 0.0

    def should_stop() -> bool:
        nonlocal threads_until, has_begun
        has_begun = True
        if threads is not None and time.monotonic() >= threads_until:
            _set_threads(threads.now())
            threads_until = time.monotonic() + THREADS_SECONDS
        return bool(stop_signals) or (folder / "control").exists()

    metrics = Metrics(folder)
    try:
        result = _train(folder, task, metrics, should_stop)
    except FinetuneError as error:
        blame = "training_file" if isinstance(error, DataError | UsageError) else None
        if isinstance(error, MemoryError):
            is_head = task.get("recipe", "lora").startswith("head")
            blame = "training_file" if is_head else "hyperparameters.batch_size"
        _fail(folder, _code(error), str(error), blame)
    except Exception as error:  # whatever a recipe raises must become the job's error, or the client waits for ever
        traceback.print_exc()
        message = " ".join(str(error).split())[:500]
        code = "no_space" if is_no_space(error) else "server_error"
        _fail(folder, code, f"Training failed with {type(error).__name__}: {message}", None)
    else:
        if result is None or not is_first():
            return
        outcome = {
            "stopped": result.stopped,
            "trained_tokens": result.trained_tokens,
            "steps": result.steps,
            "adapter": result.adapter and os.fspath(result.adapter),
            "head": result.head and os.fspath(result.head),
            "learning_rate": result.learning_rate,
            "checkpoints": [
                {"step": step, "adapter": os.fspath(path), "metrics": metrics.steps.get(step, {})}
                for step, path in result.checkpoints
            ],
            "csv": metrics.csv(),
        }
        write_json(folder / "result.json", outcome)


def _train(folder: Path, task: dict[str, Any], metrics: Metrics, should_stop: Any) -> TrainResult | None:
    """Train; None for a process that has nothing to do beside the first one."""
    recipe: Recipe = task.get("recipe", "lora")
    has_openings = bool(task.get("has_openings"))  # a head decides with which label the answers begin
    if not is_first() and recipe != "lora" and not has_openings:
        return None
    device = choose_gpu(task["device"]) or _device()
    # torch and the recipes are imported here, after a wrong task has had its chance to fail quickly.
    from dspy_finetune.local.models import base_folder, merged_folder, packaged_encoder

    work = folder / "work"

    def say(text: str) -> None:
        if is_first():
            append_event(folder, text, event_id=derived_id("ftevent-", folder.name, text))

    start = base_folder(task["base"], progress=say)
    if task["adapters"]:
        with process_lock(work / "start.lock"):
            start = merged_folder(start, [Path(path) for path in task["adapters"]], work / "start")
    spec = TrainSpec(
        method=task["method"],
        model_folder=start,
        train_file=Path(task["train_file"]),
        validation_file=Path(task["validation_file"]) if task["validation_file"] else None,
        output_folder=work / "output",
        n_epochs=task["n_epochs"],
        batch_size=task["batch_size"],
        learning_rate=task["learning_rate"],
        beta=task["beta"],
        seed=task["seed"],
        device=device,
        n_threads=task["n_threads"],
        dtype=task.get("dtype", "auto"),
        memory_bytes=task.get("memory_bytes"),
        recipe=recipe,
        answers=task.get("answers", "auto"),
        finds_rate=task.get("finds_rate", False),
        base=task["base"],
        encoder_folder=packaged_encoder(),
        start_head=Path(task["head"]) if task.get("head") else None,
        n_adapters=len(task["adapters"]),
    )
    spec.output_folder.mkdir(parents=True, exist_ok=True)
    head: Path | None = None
    if has_openings and is_first():
        from dspy_finetune.local.features import train_opening

        decided = train_opening(spec, emit=metrics.emit, should_stop=should_stop)
        if decided.stopped:
            return decided
        head = decided.head
    train = trainer(task["method"], "lora" if has_openings else recipe)
    result = train(spec, emit=metrics.emit, should_stop=should_stop)
    result = replace(result, head=head or result.head)
    if not is_alone():
        from dspy_finetune.local.training import leave_group  # with torch, as above

        leave_group()
    if is_first():
        shutil.rmtree(work / "start", ignore_errors=True)
    return result


def is_first() -> bool:
    """Whether this is the first of the processes that train together."""
    return os.environ.get("RANK", "0") == "0"


def is_alone() -> bool:
    """Whether no other process trains the same job."""
    return "RANK" not in os.environ


def _set_threads(n_threads: int) -> None:
    torch = sys.modules.get("torch")  # a recipe without it has no threads to set
    if torch is not None and torch.get_num_threads() != n_threads:
        torch.set_num_threads(n_threads)


def trainer(method: str, recipe: Recipe) -> Trainer:
    """What trains by this method and recipe."""
    # Each brings what takes seconds to import: only the one that is needed.
    if recipe == "head":
        from dspy_finetune.local import features

        return features.train_head
    from dspy_finetune.local import training

    if recipe == "head+lora":
        return training.train_head_lora
    return training.train_dpo if method == "dpo" else training.train


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_gpu(device: str | None) -> str | None:
    """One GPU for one process, which it then calls "cuda"; said before torch is imported, which looks once.

    The trainer would spread over all GPUs that it sees, by a way that our losses do not go.
    """
    if "LOCAL_RANK" in os.environ:  # accelerate gives each process its own
        return f"cuda:{os.environ['LOCAL_RANK']}" if device != "cpu" and _device() == "cuda" else "cpu"
    if device != "cpu":
        seen = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
        number = int(device.partition(":")[2] or 0) if device else 0
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[number] if number < len(seen) else str(number)
    return device and device.partition(":")[0]


def _code(error: FinetuneError) -> str:
    if isinstance(error, FileError):
        return "no_space" if is_no_space(error) else "server_error"
    if isinstance(error, MemoryError):
        return "insufficient_memory"
    return "invalid_training_file" if isinstance(error, DataError | UsageError) else "server_error"


def _fail(folder: Path, code: str, message: str, param: str | None) -> None:
    write_json(folder / "result.json", {"error": {"code": code, "message": message, "param": param}})


def main() -> None:
    """Run the job whose folder is named on the command line."""
    folder = Path(sys.argv[1])
    (folder / "work").mkdir(exist_ok=True)
    run_job(folder)


if __name__ == "__main__":
    main()
