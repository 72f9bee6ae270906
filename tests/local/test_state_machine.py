"""Jobs under everything that can happen to them, in any order: each ends, once, and leaves one model or none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import openai
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.local.test_guards import send
from tests.local.test_jobs import CHAT_ROWS, upload
from tests.local.toy import build_toy_model
from tests.local.toy_server import ToyServer, start_server

FINAL = {"succeeded", "failed", "cancelled"}
LAST_WORDS = {
    "succeeded": "The job has successfully completed",
    "cancelled": "Fine-tuning job cancelled",
}
# A longer look: DSPY_FINETUNE_EXAMPLES=50 DSPY_FINETUNE_STEPS=40 pytest tests/local/test_state_machine.py
N_EXAMPLES = int(os.environ.get("DSPY_FINETUNE_EXAMPLES", "2"))
N_STEPS = int(os.environ.get("DSPY_FINETUNE_STEPS", "14"))


class Jobs(RuleBasedStateMachine):
    """One root folder, one server at a time, and whatever hypothesis thinks of."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="jobs-"))
        self.root = self.folder / "root"
        self.model = build_toy_model(self.folder / "toy")
        self.server: ToyServer = start_server(self.root, self.model, step_seconds=0.05)
        self.jobs: list[str] = []
        self.files: dict[str, str] = {}

    @property
    def client(self) -> Any:
        return self.server.client()

    def some(self, data: st.DataObject) -> str | None:
        return data.draw(st.sampled_from(self.jobs)) if self.jobs else None

    @rule()
    def create(self) -> None:
        file_id = upload(self.client, CHAT_ROWS)
        job = self.client.fine_tuning.jobs.create(model="toy", training_file=file_id)
        self.jobs.append(job.id)
        self.files[job.id] = file_id

    @rule(data=st.data(), action=st.sampled_from(["cancel", "pause", "resume"]))
    def act(self, data: st.DataObject, action: str) -> None:
        job_id = self.some(data)
        if job_id:
            # What does not fit the job's state is refused; nothing else may happen.
            with contextlib.suppress(openai.BadRequestError):
                getattr(self.client.fine_tuning.jobs, action)(job_id)

    @rule(data=st.data())
    def delete_file(self, data: st.DataObject) -> None:
        job_id = self.some(data)
        if job_id:
            with contextlib.suppress(openai.NotFoundError):
                self.client.files.delete(self.files[job_id])

    @rule(data=st.data())
    def kill_worker(self, data: st.DataObject) -> None:
        job_id = self.some(data)
        if job_id:
            with contextlib.suppress(OSError, ValueError):
                facts = json.loads((self.root / "jobs" / job_id / "worker.json").read_bytes())
                command = Path(f"/proc/{facts['pid']}/cmdline").read_bytes()
                if b"toy_worker" in command and str(self.root).encode() in command:
                    os.kill(facts["pid"], signal.SIGKILL)

    @rule(gently=st.booleans())
    def restart(self, gently: bool) -> None:
        if gently:
            self.server.stop()
        else:
            self.server.kill()
        self.server = start_server(self.root, self.model, step_seconds=0.05)

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0]))
    def pass_time(self, seconds: float) -> None:
        time.sleep(seconds)

    def teardown(self) -> None:
        if not hasattr(self, "server"):
            return
        try:
            self.end()
        finally:
            self.server.stop()
            shutil.rmtree(self.folder, ignore_errors=True)

    def end(self) -> None:
        # However many there are: a job that hangs is one of which nothing is heard for long.
        deadline, moved = time.monotonic() + 300, -1
        jobs: list[Any] = []
        while time.monotonic() < deadline:
            jobs = list(self.client.fine_tuning.jobs.list(limit=100))
            if moved != (moved := sum(job.status in FINAL for job in jobs)):
                deadline = time.monotonic() + 300
            for job in jobs:
                if job.paused:
                    self.client.fine_tuning.jobs.resume(job.id)
            if all(job.status in FINAL for job in jobs):
                break
            time.sleep(0.1)
        assert [job.id for job in jobs] == self.jobs[::-1]
        models = [model.id for model in self.client.models.list() if model.id.startswith("ft:")]
        assert len(set(models)) == len(models)
        for job in jobs:
            assert job.status in FINAL
            messages = [event.message for event in self.client.fine_tuning.jobs.list_events(job.id, limit=100)]
            for status, words in LAST_WORDS.items():
                assert messages.count(words) == (job.status == status), (job, messages)
            assert (job.error is not None and job.error.message is not None) == (job.status == "failed")
            assert (job.fine_tuned_model in models) == (job.status == "succeeded")
            assert len(job.result_files) == (job.status == "succeeded")
        assert send(self.server, "GET", "/healthz")[1]["status"] == "ok"


TestJobs = Jobs.TestCase
TestJobs.settings = settings(
    max_examples=N_EXAMPLES,
    stateful_step_count=N_STEPS,
    deadline=None,
    derandomize="DSPY_FINETUNE_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
    database=None,
)
