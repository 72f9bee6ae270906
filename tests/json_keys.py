"""The keys that each command prints with `--json`, found by running the commands on a small OpenAI in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import dspy_finetune as ft
from dspy_finetune.cli.main import main
from dspy_finetune.hosts.host import KINDS
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import write_sft

BASE = "gpt-4.1-mini-2025-04-14"
HOST = ["--host", "openai"]
RUNS = {
    "check": ["train.jsonl"],
    "export": ["sft", "rows.jsonl", "--preset", "binary", "--out", "exported.jsonl"],
    "convert": ["train.jsonl", "converted.jsonl", "--to", "trl"],
    "split": ["rows.jsonl", "--out", "parts"],
    "init": ["rows.jsonl"],
    "advise": ["more.jsonl", "--encoder", "none"],
    "run": ["rows.jsonl", "--dry-run"],
    "doctor": [],
    "predict": ["tuned.json", "rows.jsonl", "--out", "answers.jsonl"],
    "compare": ["rows.jsonl", "--program", "tuned=tuned.json", "--train", "more.jsonl"],
    "curve": ["more.jsonl", "--test", "rows.jsonl", "--preset", "binary", "--sizes", "10,20", "--model", BASE],
    "sweep": ["more.jsonl", "--validation", "rows.jsonl", "--preset", "binary", "--epochs", "1,2", "--model", BASE],
    "plan": ["train.jsonl", "--model", BASE, "--evaluate", "train.jsonl"],
    "train": ["train.jsonl", "--model", BASE],
    "jobs list": HOST,
    "jobs show": ["ftjob-0001", *HOST],
    "jobs follow": ["ftjob-0001", *HOST],
    "jobs events": ["ftjob-0001", *HOST],
    "jobs metrics": ["ftjob-0001", *HOST],
    "jobs checkpoints": ["ftjob-0001", *HOST],
    "models": HOST,
    "hosts": ["train.jsonl"],
}
"""Command -> its arguments; the job that some look at is made by `project`."""


@contextlib.contextmanager
def project() -> Iterator[FakeOpenAI]:
    """A folder with files, a saved predictor and a host that answers at once."""
    server = FakeOpenAI()
    server.script = ["succeeded"]
    fast = dataclasses.replace(KINDS["openai"], poll_seconds=(0.01, 0.02))
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        os.chdir(folder)
        stack.callback(os.chdir, before)
        environment = {
            "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "k", "DSPY_FINETUNE_HOME": f"{folder}/home",
            "DSPY_FINETUNE_QUIET": "1",
        }  # fmt: skip
        with mock.patch.dict(os.environ, environment), mock.patch.dict(KINDS, {"openai": fast}):
            for name, n in (("rows", 12), ("more", 24)):
                rows = [{"title": f"{name} \N{HONEYBEE} {i}", "is_favorite": i % 2 == 0} for i in range(n)]
                Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            write_sft(Path("train.jsonl"))
            predictor = ft.OpenAIPredictor(ft.prompts.binary(), f"ft:{BASE}:o::1", host=ft.Host.openai())
            predictor.save(Path("tuned.json"))
            examples = ft.load_examples("more.jsonl", inputs=["title"])
            file = ft.export_sft(examples, ft.prompts.binary(), "own.jsonl")
            ft.plan(file, base_model=BASE, host=ft.Host.openai()).start().wait()
            yield server
    server.close()


def printed(command: str) -> Any:
    """What a command prints on stdout with `--json`."""
    out, talk = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(talk), contextlib.suppress(SystemExit):
        main([*command.split(), *RUNS[command], "--json"])
    try:
        return json.loads(out.getvalue())
    except ValueError as error:
        raise AssertionError(f"{command}: no JSON on stdout: {out.getvalue()!r} {talk.getvalue()!r}") from error


def keys(value: Any, path: str = "") -> set[str]:
    """Every path to a value: `plans[].cost_usd`."""
    if isinstance(value, dict):
        return {deeper for key, below in value.items() for deeper in keys(below, f"{path}.{key}" if path else key)}
    if isinstance(value, list):
        return {deeper for below in value for deeper in keys(below, f"{path}[]")} or {f"{path}[]"}
    return {path}


def json_keys() -> dict[str, list[str]]:
    """Command -> its keys."""
    with project():
        return {command: sorted(keys(printed(command))) for command in RUNS}
