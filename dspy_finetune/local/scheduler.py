"""Moves jobs along: checks their files, starts one worker at a time, watches it, publishes what it made.

In: the store. Out: job records that change, models and result files that appear.
The scheduler is the only writer of job.json. A job that was running when the server died is watched again if its worker
still lives (it holds worker.lock), else queued again; the recipe goes on from its newest checkpoint, or from the start.
A job that cannot be moved fails, with the reason as its error; the others move on.

It runs in a `Supervised` thread, as batches do: where a round of work fails, the thread says so (`/healthz` has its
health), waits a moment and works on; it ends when it is told to, never by an error.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_finetune._files import is_locked, try_lock, write_json
from dspy_finetune.errors import RowError, UsageError
from dspy_finetune.local.models import base_name
from dspy_finetune.local.schemas import (
    BASE_LEARNING_RATE,
    FINAL,
    ApiError,
    JobRecord,
    Method,
    learning_rate,
    read_rows,
    resolve,
)
from dspy_finetune.local.store import Store, append_event, derived_id, finite, new_event, will_pass
from dspy_finetune.tasks import (
    Answers,
    Recipe,
    RecipeChoice,
    check_row,
    choose_recipe,
    is_encoder_base,
    max_labels,
    task_of,
)

logger = logging.getLogger(__name__)

MIN_EXAMPLES = 10
"""As OpenAI asks for."""


class TrainingFileError(Exception):
    """The file cannot be trained on; `.code` is OpenAI's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_training_file(path: Path, method: Method, *, min_examples: int = MIN_EXAMPLES) -> int:
    """Count the examples of a file that can be trained on by this method.

    Raises:
        TrainingFileError: `invalid_training_file` with the line, or `invalid_n_examples`.
    """
    n_examples = 0
    try:
        for line, row in read_rows(path):
            n_examples += 1
            try:
                check_row(row, method)
            except UsageError as error:
                raise _invalid(f"Invalid file format. Line {line}: {error}") from error
    except RowError as error:
        raise _invalid(f"Invalid file format. Line {error.line}: {error.problem}") from error
    if n_examples < min_examples:
        message = f"Training file has {n_examples} example(s), but must have at least {min_examples} examples"
        raise TrainingFileError("invalid_n_examples", message)
    return n_examples


def _invalid(message: str) -> TrainingFileError:
    return TrainingFileError("invalid_training_file", f"The job failed due to an invalid training file. {message}")


MAX_CRASHES = 10
"""A job whose worker vanished with the server this often is failed: it probably takes the machine down with it."""

STOP_SECONDS = 20.0
"""How long a worker may take to stop between two steps before it is killed."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How jobs are trained, as the server was asked."""

    dtype: str = "auto"
    """The number format of products; "auto": what is fast on the device."""
    memory_bytes: int | None = None
    """What a job may take; None: what is free."""
    n_processes: int = 1
    """Processes that train one job together: one for each GPU."""
    launch_config: Path | None = None
    """A file of `accelerate config`, which says how to start them; None: on this machine."""

    @property
    def is_launched(self) -> bool:
        """Whether `accelerate launch` starts the workers."""
        return self.n_processes > 1 or self.launch_config is not None

    def command(self, module: str, folder: Path) -> list[str]:
        """The command that runs the job of a folder."""
        worker = ["-m", module, os.fspath(folder)]
        if not self.is_launched:
            return [sys.executable, *worker]
        how = ["--config_file", os.fspath(self.launch_config)] if self.launch_config else [
            "--multi_gpu", "--num_processes", str(self.n_processes), "--num_machines", "1", "--main_process_port", "0",
            "--mixed_precision", "no", "--dynamo_backend", "no",
        ]  # fmt: skip
        return [sys.executable, "-m", "accelerate.commands.launch", *how, *worker]


class Scheduler:
    """One thread that moves jobs along, every `tick_seconds`."""

    def __init__(
        self,
        store: Store,
        *,
        device: str | None = None,
        n_threads: int | None = None,
        training: Training | None = None,
        worker_module: str = "dspy_finetune.local.worker",
        tick_seconds: float = 0.1,
    ) -> None:
        self.store = store
        self.device = device
        self.n_threads = n_threads
        self.training = training or Training()
        self.worker_module = worker_module
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._orphans: set[str] = set()  # jobs whose worker was started by an earlier server and still lives
        self.thread = Supervised(self.tick, name="scheduler", tick_seconds=tick_seconds)

    def start(self) -> None:
        """Take up what an earlier server left, and begin."""
        for job in self.store.jobs():
            if is_locked(self.store.job_folder(job.id) / "worker.lock"):
                self._orphans.add(job.id)
        self.thread.start()

    def begin_close(self) -> list[JobRecord]:
        """Start no more workers, and ask those that run to stop; the jobs whose workers still do."""
        self.thread.closing.set()
        with self.store.lock:  # a worker that is being started is there once the lock is free
            running = [job for job in self.store.jobs() if self._is_alive(job)]
        for job in running:
            self._signal(job, signal.SIGTERM)
        return running

    def close(self) -> None:
        """Stop the thread and the workers; their jobs are queued again at the next start."""
        running = self.begin_close()
        deadline = time.monotonic() + STOP_SECONDS
        self.thread.close(timeout_seconds=STOP_SECONDS)
        while time.monotonic() < deadline and any(self._is_alive(job) for job in running):
            time.sleep(0.05)
        for job in running:
            if self._is_alive(job):
                self._signal(job, signal.SIGKILL)

    # What clients ask for

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a job that has not ended."""
        with self.store.lock:
            job = self.store.job(job_id)
            if job.status in FINAL:
                raise ApiError(400, f"Job has already {job.status}: {job_id}", code="invalid_job_status")
            self._control(job, "cancel")
            job = self.store.update_job(job_id, status="cancelled", finished_at=int(time.time()))
            self._say(job, "Fine-tuning job cancelled")
            self._signal(job, signal.SIGKILL)  # there is nothing to keep
            return job

    def pause(self, job_id: str) -> JobRecord:
        """Pause a job; a running one stops after its step and keeps a checkpoint."""
        with self.store.lock:
            job = self.store.job(job_id)
            if job.status not in ("queued", "running", "validating_files"):
                raise ApiError(400, f"Job is {job.status} and cannot be paused: {job_id}", code="invalid_job_status")
            self._control(job, "pause")
            self._say(job, "Fine-tuning job paused", unique=False)
            return self.store.update_job(job_id, status="paused")

    def resume(self, job_id: str) -> JobRecord:
        """Put a paused job back into the queue."""
        with self.store.lock:
            job = self.store.job(job_id)
            if job.status != "paused":
                raise ApiError(400, f"Job is {job.status}, not paused: {job_id}", code="invalid_job_status")
            self._say(job, "Fine-tuning job resumed", unique=False)
            return self.store.update_job(job_id, status="queued" if job.resolved else "validating_files")

    def trouble(self, job: JobRecord) -> list[dict[str, Any]]:
        """The event of a job that cannot be moved on now, which a full disk keeps from its log; else empty."""
        health = self.thread.health()
        if job.status in FINAL or health["ok"] or health["last_error"] is None:
            return []
        message = f"The host cannot move the job on: {health['last_error']}"
        return [new_event(message, level="warn", event_id=derived_id("ftevent-", job.id, message))]

    # The loop

    def tick(self) -> None:
        """Move every job that can move."""
        jobs = sorted(self.store.jobs(), key=lambda job: job.sequence)
        for job in jobs:
            if job.status == "validating_files":
                self._move(job, self._validate)
            elif job.status == "running":
                self._move(job, self._watch)
        if self.thread.closing.is_set() or any(self._is_alive(job) for job in jobs):
            return
        for job in jobs:
            job = self.store.job(job.id)
            if job.status == "queued" and self._move(job, self._launch):
                return

    def _move(self, job: JobRecord, step: Callable[[JobRecord], bool | None]) -> bool | None:
        """Move one job; what stops it fails it, and no other."""
        try:
            return step(job)
        except ApiError as error:
            self._fail(job, error.code or "server_error", error.message, error.param)
        except OSError as error:
            if will_pass(error):
                raise  # nothing is lost: the next round tries again
            self._fail(job, "server_error", str(error), None)
        except Exception as error:
            logger.exception("job %s failed", job.id)
            self._fail(job, "server_error", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", None)
        return None

    def _validate(self, job: JobRecord) -> None:
        self._say(job, f"Validating training file: {job.training_file}")
        param = "training_file"
        try:
            n_examples = check_training_file(self._content(job.training_file, param), job.method)
            if job.validation_file:
                param = "validation_file"
                self._say(job, f"Validating validation file: {job.validation_file}")
                check_training_file(self._content(job.validation_file, param), job.method, min_examples=1)
        except TrainingFileError as error:
            self._fail(job, error.code, str(error), param)
        else:
            resolved = resolve(job.method, job.given, n_examples)
            chosen = self._choose_recipe(job)
            resolved["recipe"] = chosen.recipe
            if told := job.given.get("answers"):
                resolved["answers"] = told
            if chosen.recipe == "head":  # each row is read once
                resolved |= {"n_epochs": 1, "batch_size": 1}
            with self.store.lock:
                if self.store.job(job.id).status == "validating_files":
                    self._say(job, "Files validated, moving job to queued state")
                    self._say(job, str(chosen))
                    if chosen.recipe == "lora" and self.store.head(job.model) is not None:
                        why = "The linear head of the model that is trained on is left out: the adapter decides alone"
                        self._say(job, why, level="warn")
                    self.store.update_job(job.id, status="queued", resolved=resolved)

    def _choose_recipe(self, job: JobRecord) -> RecipeChoice:
        """What the job trains."""
        tuned = self.store.model(job.model)
        base = tuned.base if tuned else job.model
        asked: Recipe = job.given.get("recipe") or "auto"
        told: Answers = job.given.get("answers") or "auto"
        task = task_of(self.store.content(job.training_file), max_labels(asked, base=base), told)
        try:
            return choose_recipe(task, asked, base=base)
        except UsageError as error:
            param = "model" if is_encoder_base(base) else "hyperparameters.recipe"
            raise ApiError(400, str(error), code="invalid_recipe", param=param) from error

    def _content(self, file_id: str, param: str) -> Path:
        try:
            return self.store.content(file_id)
        except ApiError as error:
            message = f"The file {file_id} was deleted before the job began"
            raise ApiError(400, message, code="file_not_found", param=param) from error

    def _launch(self, job: JobRecord) -> bool:
        """Start the job's worker. False: it did not start."""
        folder = self.store.job_folder(job.id)
        tuned = self.store.model(job.model)
        if job.model.startswith("ft:") and tuned is None:
            message = f"The model {job.model} was deleted before the job began"
            raise ApiError(404, message, code="model_not_found", param="model")
        resolved = job.resolved or {}
        task = {
            "method": job.method,
            "base": tuned.base if tuned else job.model,
            "adapters": [os.fspath(path) for path in self.store.adapters(job.model)],
            "head": (head := self.store.head(job.model)) and os.fspath(head),
            "train_file": os.fspath(self._content(job.training_file, "training_file")),
            "validation_file": job.validation_file and os.fspath(self._content(job.validation_file, "validation_file")),
            "n_epochs": resolved["n_epochs"],
            "batch_size": resolved["batch_size"],
            "learning_rate": learning_rate(job.method, resolved),
            "beta": resolved.get("beta", 0.1),
            "recipe": resolved.get("recipe", "lora"),
            "has_openings": resolved.get("recipe") == "head+lora" and bool(self._choose_recipe(job).task.openings),
            "answers": resolved.get("answers", "auto"),
            # A rate that was left to the host may be searched for; so it is again where a job goes on after a crash.
            "finds_rate": job.given.get("learning_rate_multiplier") in (None, "auto"),
            "seed": job.seed,
            "device": self.device,
            "n_threads": self.n_threads,
            "dtype": self.training.dtype,
            "memory_bytes": self.training.memory_bytes,
        }
        with self.store.lock:
            if self.store.job(job.id).status != "queued" or self.thread.closing.is_set():
                return False
            for name in ("result.json", "control", "worker.json"):
                (folder / name).unlink(missing_ok=True)
            write_json(folder / "task.json", task)
            job = self.store.update_job(job.id, status="running", attempt=job.attempt + 1, started_at=time.time())
            self._say(job, "Fine-tuning job started")
            # The worker is born with the lock: no moment is left in which a restarted server could start a second one.
            lock = try_lock(folder / "worker.lock")
            if lock is None:
                return True
            try:
                with open(folder / "worker.log", "ab") as log:
                    # A session of its own: Ctrl-C in the terminal must reach the server alone, which stops its workers.
                    self._children[job.id] = subprocess.Popen(
                        self.training.command(self.worker_module, folder),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        pass_fds=(lock,),
                    )
            except OSError:  # no worker, so nobody to watch: the next round tries again
                self.store.update_job(job.id, status="queued")
                raise
            finally:
                os.close(lock)
            write_json(folder / "worker.json", {"pid": self._children[job.id].pid})
            return True

    def _watch(self, job: JobRecord) -> None:
        if self._is_alive(job):
            return
        child = self._children.pop(job.id, None)
        result = self._result(job)
        with self.store.lock:
            if self.store.job(job.id).status != "running":
                return
        if result is not None and result.get("stopped"):
            self._requeue(job, f"The server was stopped; {self._where_on(job)}")
        elif result is None and child is None:
            self._requeue(job, f"The training process is gone; {self._where_on(job)}", crashes=job.crashes + 1)
        elif result is None:
            self._fail(job, *self._why_gone(job, child.returncode if child else None), None)
        elif "error" in result:
            error = result["error"]
            self._fail(job, error["code"], error["message"], error["param"])
        else:
            self._publish(job, result)

    def _publish(self, job: JobRecord, result: dict[str, Any]) -> None:
        """Models first, then the result file, then the job's record: after a crash in between it is all done again."""
        tuned = self.store.model(job.model)
        base = tuned.base if tuned else job.model
        chain = self.store.adapters(job.model)
        suffix = re.sub(r"[^A-Za-z0-9._-]+", "-", job.suffix or "")
        model_id = f"ft:{base_name(base)}:local:{suffix}:{derived_id('', job.id, length=8)}"
        head = Path(result["head"]) if result.get("head") else None
        epochs = result["checkpoints"][-3:]  # as OpenAI does, the last three epochs are kept
        checkpoints = []
        for epoch in epochs:
            is_last = epoch["step"] == result["steps"]
            name = model_id if is_last else f"{model_id}:ckpt-step-{epoch['step']}"
            if not is_last:
                adapters = [*chain, Path(epoch["adapter"])]
                self.store.add_model(name, base=base, adapters=adapters, head=head, job_id=job.id)
            checkpoints.append(
                {
                    "id": derived_id("ftckpt_", job.id, epoch["step"]),
                    "object": "fine_tuning.job.checkpoint",
                    "created_at": int(time.time()),
                    "fine_tuned_model_checkpoint": name,
                    "step_number": epoch["step"],
                    "metrics": epoch["metrics"],
                    "fine_tuning_job_id": job.id,
                }
            )
        adapters = [*chain, Path(result["adapter"])] if result["adapter"] else chain
        self.store.add_model(model_id, base=base, adapters=adapters, head=head, job_id=job.id)
        table = self.store.job_folder(job.id) / "result.csv"
        # In base64, as OpenAI serves result files.
        table.write_bytes(base64.b64encode(result["csv"].encode()))
        file_id = derived_id("file-", job.id, "results")
        with open(table, "rb") as stream:
            self.store.add_file(stream, "step_metrics.csv", "fine-tune-results", file_id=file_id)
        self._say(job, f"New fine-tuned model created: {model_id}")
        self._say(job, "The job has successfully completed")
        with self.store.lock:
            if self.store.job(job.id).status != "running":
                return
            self.store.update_job(
                job.id,
                status="succeeded",
                resolved=self._with_rate(job, result.get("learning_rate")),
                fine_tuned_model=model_id,
                finished_at=int(time.time()),
                trained_tokens=result["trained_tokens"],
                result_files=[file_id],
                checkpoints=checkpoints,
            )
        shutil.rmtree(self.store.job_folder(job.id) / "work", ignore_errors=True)

    # Small things

    def _with_rate(self, job: JobRecord, rate: float | None) -> dict[str, Any] | None:
        """The hyperparameters as they were trained with: the rate may have been the job's own choice."""
        if rate is None or job.resolved is None:
            return job.resolved
        return job.resolved | {"learning_rate_multiplier": round(rate / BASE_LEARNING_RATE[job.method], 6)}

    def _requeue(self, job: JobRecord, why: str, *, crashes: int | None = None) -> None:
        crashes = job.crashes if crashes is None else crashes
        if crashes >= MAX_CRASHES:
            self._fail(job, "server_error", f"The training process vanished {crashes} times with the server", None)
            return
        with self.store.lock:
            if self.store.job(job.id).status == "running":
                self._say(job, why, level="warn")
                self.store.update_job(job.id, status="queued", crashes=crashes)

    def _fail(self, job: JobRecord, code: str, message: str, param: str | None) -> None:
        with self.store.lock:
            if self.store.job(job.id).status in FINAL:
                return
            error = {"code": code, "message": message, "param": param}
            self._say(job, message, level="error")
            self.store.update_job(job.id, status="failed", error=error, finished_at=int(time.time()))

    def _say(self, job: JobRecord, message: str, *, level: str = "info", unique: bool = True) -> None:
        # A milestone is told once for each attempt, even if a crash makes the server pass it again.
        event_id = derived_id("ftevent-", job.id, job.attempt, message) if unique else None
        append_event(self.store.job_folder(job.id), message, level=level, event_id=event_id)

    def _control(self, job: JobRecord, word: str) -> None:
        (self.store.job_folder(job.id) / "control").write_text(word, encoding="utf-8")

    def _result(self, job: JobRecord) -> dict[str, Any] | None:
        # Atomically written by the worker: what cannot be read is as good as not there.
        with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
            result = json.loads((self.store.job_folder(job.id) / "result.json").read_bytes())
            return finite(result) if isinstance(result, dict) else None
        return None

    def _where_on(self, job: JobRecord) -> str:
        """Where the next attempt begins: after the newest whole checkpoint, else at step 1."""
        done = last_step(self.store.job_folder(job.id) / "work" / "output")
        return f"the job goes on from step {done + 1}" if done else "the job starts again from step 1"

    def _is_alive(self, job: JobRecord) -> bool:
        child = self._children.get(job.id)
        if child is not None:
            return child.poll() is None
        if job.id in self._orphans and not is_locked(self.store.job_folder(job.id) / "worker.lock"):
            self._orphans.discard(job.id)
        return job.id in self._orphans

    def _signal(self, job: JobRecord, number: signal.Signals) -> None:
        if not self._is_alive(job):
            return
        child = self._children.get(job.id)
        with contextlib.suppress(OSError, ValueError):
            text = (self.store.job_folder(job.id) / "worker.json").read_bytes() if child is None else b"{}"
            pid = child.pid if child is not None else int(json.loads(text).get("pid", 0))
            if pid > 1:
                # A launcher that is killed leaves its workers alone; asked to end, it ends them.
                os.kill(pid, signal.SIGTERM if self.training.is_launched else number)

    def _why_gone(self, job: JobRecord, code: int | None) -> tuple[str, str]:
        """(code, message) for a worker that ended without a result."""
        if code == -signal.SIGKILL:
            what = "the machine may be out of memory: use a smaller batch_size or model"
            return "server_error", f"The training process was killed; {what}"
        log = self.store.job_folder(job.id) / "worker.log"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        last = lines[-1][:300] if lines else "no output"
        if "no space left" in last.lower() or "quota exceeded" in last.lower():
            return "no_space", f"The disk is full: {last}; free some space and start the job again"
        return "server_error", f"The training process ended with code {code}: {last} (see {log})"


def last_step(output: Path) -> int:
    """The step of the newest checkpoint that is whole, as the trainer will find it; 0 where there is none."""
    # The trainer writes trainer_state.json last.
    whole = (path.parent.name for path in output.glob("checkpoint-*/trainer_state.json"))
    return max((int(name[1]) for name in map(_CHECKPOINT.fullmatch, whole) if name), default=0)


_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


ESTIMATE_AFTER_STEPS = 2


def estimated_finish(job: JobRecord, events: Callable[[str], list[dict[str, Any]]]) -> int | None:
    """When a running job will end, from the pace of this attempt's steps; None where nothing is known."""
    if job.status != "running" or job.started_at is None:
        return None
    steps = [
        (event["created_at"], event["data"]["step"], event["data"].get("total_steps", 0))
        for event in events(job.id)
        if event["type"] == "metrics"
        and event["created_at"] >= job.started_at
        and isinstance(event["data"].get("step"), int)
        and event["data"]["step"] > 0  # rates that are tried before the first are no pace
    ]
    if len(steps) < ESTIMATE_AFTER_STEPS:
        return None
    (started_at, first, _), (now, last, total) = steps[0], steps[-1]
    if last <= first or now < started_at:  # the clock went back
        return None
    return int(now + max(0, total - last) * (now - started_at) / (last - first))


PAUSE_SECONDS = 2.0
"""Between a failure and the next round: a full disk is not emptied by asking faster."""


class Supervised:
    """Calls `work` again and again until closed."""

    def __init__(self, work: Callable[[], object], *, name: str, tick_seconds: float = 0.1) -> None:
        self.work = work
        self.name = name
        self.tick_seconds = tick_seconds
        self.pause_seconds = PAUSE_SECONDS
        self.closing = threading.Event()
        self.n_failures = 0
        self.last_error: str | None = None
        self._failed_at = 0.0
        self._succeeded_at = 0.0
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, *, timeout_seconds: float | None = None) -> None:
        """End after the round that is going on, or leave it to end with the process after so long."""
        self.closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def health(self) -> dict[str, Any]:
        """Whether it works, how often a round failed, and the last failure."""
        is_ok = self._thread.is_alive() and self._failed_at <= self._succeeded_at
        return {"ok": is_ok, "n_failures": self.n_failures, "last_error": self.last_error}

    def _loop(self) -> None:
        while not self.closing.wait(self.tick_seconds):
            try:
                self.work()
                self._succeeded_at = time.monotonic()
            except Exception as error:  # whatever fails, this thread has others to serve
                self.n_failures += 1
                self.last_error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                self._failed_at = time.monotonic()
                # The same failure again and again is told once in a while, not every two seconds for a night.
                if self.n_failures & (self.n_failures - 1) == 0:
                    logger.warning("%s cannot move on: %s", self.name, self.last_error, exc_info=error)
                self.closing.wait(self.pause_seconds)
