"""Ctrl-C in any phase: exit code 130, one word, no process left, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dspy_finetune.cli.main import main
from dspy_finetune.export import export_sft
from dspy_finetune.jobs import Plan
from dspy_finetune.prompts import binary
from dspy_finetune.quickstart import load_titles
from tests.local.toy import build_toy_model

SECONDS = 240
"""How long a phase may take to begin on a busy machine."""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_model(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture
def titles(tmp_path: Path) -> Path:
    path = tmp_path / "titles.jsonl"
    rows = [row.toDict() for row in load_titles()[:100]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def processes(root: Path) -> list[str]:
    """Command lines that name the folder: servers and workers of ours."""
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if str(root) in line]


def jobs(root: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in root.glob("jobs/*/job.json")]


def interrupt(arguments: list[str], began: object, folder: Path) -> tuple[int, str]:
    """Run the command in a session of its own, press Ctrl-C once `began()` holds, and return code and stderr."""
    assert callable(began)
    log = folder / "stderr"
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "dspy_finetune.cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
        deadline = time.monotonic() + SECONDS
        while not began() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        # As the terminal does: to the whole group, so a child that is not kept apart gets it too.
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(SECONDS)
    # As a shell counts: where Ctrl-C fell into an exec() of some import, Python itself dies by the signal at its end.
    return (128 - code if code < 0 else code), log.read_text()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("phase", ["pairing", "starting the host", "training"])
def test_the_quickstart_leaves_nothing_running_and_nothing_half_written(
    phase: str, tmp_path: Path, toy: Path, titles: Path
) -> None:
    place = tmp_path / "run"

    def began() -> bool:
        if phase == "training":
            return any(place.glob("host/jobs/*/worker.json"))
        told = (tmp_path / "stderr").read_text()
        return ("1/7" if phase == "pairing" else "3/7") in told

    options = ["--size", "small", "--data", str(titles), "--model", str(toy), "--out", str(place)]
    code, told = interrupt(["quickstart", *options], began, tmp_path)
    assert code == 130, told
    assert told.splitlines()[-1] == "interrupted"
    assert "Traceback" not in told
    assert processes(tmp_path) == []
    assert not list(tmp_path.rglob("*.part"))
    assert not (place / "report.html").exists()
    assert not (place / "host" / "server.json").exists()
    # Left as it was, the job would go on when the host is started next, for a report that nobody writes.
    assert [job["status"] for job in jobs(place / "host")] == ["cancelled"] * (phase == "training")
    for path in place.glob("*.jsonl"):
        assert path.read_text().endswith("\n")


@pytest.mark.timeout(600)
def test_train_leaves_its_job_to_go_on_and_says_how(tmp_path: Path, toy: Path) -> None:
    rows = [{"title": f"A quiet town, part {n}", "is_favorite": n % 2 == 0} for n in range(40)]
    dataset = export_sft(rows, binary(), tmp_path / "train.jsonl")
    root = tmp_path / "root"

    def began() -> bool:
        return any(root.glob("jobs/*/worker.json")) and " started" in (tmp_path / "stderr").read_text()

    options = ["--host", "local", "--root", str(root), "--model", str(toy)]
    code, told = interrupt(["train", str(dataset.path), *options], began, tmp_path)
    assert code == 130, told
    assert "Traceback" not in told
    assert "dspy-finetune jobs follow ftjob-" in told
    # It stops with the command, so nothing goes on by itself.
    assert "the local host stops with this command" in told
    assert processes(tmp_path) == []
    assert not (root / "server.json").exists()
    (job,) = jobs(root)
    assert job["status"] in {"queued", "running"}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_train_interrupted_while_it_starts_says_how_to_go_on(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(plan: Plan, *args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Plan, "start", start)
    rows = [{"title": f"A quiet town, part {n}", "is_favorite": n % 2 == 0} for n in range(40)]
    dataset = export_sft(rows, binary(), tmp_path / "train.jsonl")
    with pytest.raises(SystemExit) as left:
        main(["train", str(dataset.path), "--host", "local", "--root", str(tmp_path / "root"), "--model", str(toy)])
    assert left.value.code == 130
    told = capsys.readouterr().err.splitlines()
    assert told[-2:] == [
        "a job may have begun: the same command goes on with it, and does not start a second one",
        "interrupted",
    ]
