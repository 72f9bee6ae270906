"""`plan`, `train`, `jobs` and `models`: the library's facts on stdout, talk on stderr, and nothing lost by Ctrl-C."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dspy_finetune.cli.jobs import curve, duration, follow_job
from dspy_finetune.cli.main import main
from dspy_finetune.cli.options import host_named, load_env
from dspy_finetune.errors import FileError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.host import KINDS, host_option
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import write_sft

BASE = "gpt-4.1-mini-2025-04-14"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("DSPY_FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    # The small server's jobs end after a few looks: no need to wait between them.
    monkeypatch.setitem(KINDS, "openai", dataclasses.replace(KINDS["openai"], poll_seconds=(0.01, 0.02)))
    yield server
    server.close()


@pytest.fixture
def train_file(fake: FakeOpenAI, tmp_path: Path) -> str:
    return str(write_sft(tmp_path / "train.jsonl"))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_plan_shows_the_cost_and_uploads_nothing(
    train_file: str, fake: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", train_file, "--model", BASE, "--epochs", "2", "--batch-size", "auto", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["n_epochs"] == 2
    assert facts["cost_usd"] == pytest.approx(facts["n_tokens"] * 5 / 1e6)
    assert run("plan", train_file) == 0
    assert "20" in capsys.readouterr().out
    assert not fake.requests


def test_an_unknown_model_is_wrong_usage_unless_it_is_allowed(
    train_file: str, fake: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("plan", "train"):
        assert run(command, train_file, "--model", "gpt-4.1-mimi") == 2
        assert "did you mean gpt-4.1-mini-2025-04-14" in capsys.readouterr().err
    assert not fake.requests
    assert run("plan", train_file, "--model", "gpt-5", "--allow-unknown-model") == 0
    assert "gpt-5 is not among the models that openai is known to train" in capsys.readouterr().err


def test_plan_tells_what_a_planned_evaluation_costs(
    train_file: str, fake: FakeOpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once and in a batch, by the prices of the tuned model, for as many calls as are planned."""
    planned = ("plan", train_file, "--model", BASE, "--evaluate", train_file, "--calls", "2")
    assert run(*planned, "--json") == 0
    facts = json.loads(capsys.readouterr().out)["evaluation"]
    for name, (price_in, price_out) in {"standard": (0.80, 3.20), "batch": (0.40, 1.60)}.items():
        cost = facts[name]
        n_in, n_out = cost["n_input_tokens"], cost["n_output_tokens"]
        assert cost["cost_usd"] == pytest.approx((n_in * price_in + n_out * price_out) / 1e6)
    assert facts["standard"]["n_requests"] == 2 * len(Path(train_file).read_text().splitlines())
    assert run(*planned) == 0
    assert "in a batch $0.0" in capsys.readouterr().out
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}\n{"a": 1}\n'
    )
    assert run("plan", train_file, "--evaluate", str(bad)) == 1
    assert f"{bad}:2: unknown line format" in capsys.readouterr().err
    bad.write_text("")
    assert run("plan", train_file, "--evaluate", str(bad)) == 1
    assert "holds no rows to ask about" in capsys.readouterr().err
    assert not fake.requests


def test_train_ends_with_the_models_id_on_stdout(
    train_file: str, fake: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", train_file, "--model", BASE, "--suffix", "taste", "--max-usd", "1", "--metadata", "who=me") == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == "ft:gpt-4.1-mini-2025-04-14:fake:taste:00000001"
    assert "ftjob-0001 started" in shown.err
    assert "loss 1.250" in shown.err
    assert fake.jobs["ftjob-0001"]["metadata"]["who"] == "me"
    assert run("train", train_file, "--model", BASE, "--suffix", "taste", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["job_id"] == "ftjob-0001"
    assert "found" in shown.err
    assert len(fake.jobs) == 1


def test_a_predictor_is_saved_only_of_a_file_whose_prompt_is_known(
    train_file: str, fake: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", train_file, "--model", BASE, "--save", "predictor.json") == 1
    assert "no manifest beside it holds a prompt, so --save has none for the predictor" in capsys.readouterr().err
    assert not fake.jobs


def test_a_budget_that_is_too_small_is_exit_code_1(
    train_file: str, fake: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", train_file, "--model", BASE, "--max-usd", "0.001") == 1
    assert "more than the allowed" in capsys.readouterr().err
    assert not fake.jobs


@pytest.mark.parametrize(
    "wrong",
    [["--method", "rlhf"], ["--host", "nowhere"], ["--metadata", "novalue"], ["--epochs", "many"], ["--epochs", "99"]],
)
def test_a_wrong_option_is_exit_code_2(train_file: str, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", train_file, "--model", BASE, *wrong) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_jobs_of_others_are_listed_shown_and_steered(
    train_file: str, fake: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.create({"model": BASE, "training_file": "file-[1]"})
    assert run("jobs", "list") == 0
    assert "ftjob-0001" in capsys.readouterr().out
    assert run("jobs", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == "ftjob-0001"
    assert run("jobs", "show", "ftjob-0001", "--host", "openai") == 0
    assert "file-[1]" in capsys.readouterr().out
    for command, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        assert run("jobs", command, "ftjob-0001", "--host", "openai", "--json") == 0
        shown = capsys.readouterr()
        assert json.loads(shown.out)["status"] == status
    assert "billed" in shown.err
    assert run("jobs", "follow", "ftjob-0001", "--host", "openai") == 1
    assert "was cancelled" in capsys.readouterr().err


def test_a_job_of_this_machine_needs_no_host(
    train_file: str, fake: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", train_file, "--model", BASE, "--no-wait") == 0
    assert capsys.readouterr().out.split() == ["dspy-finetune", "jobs", "follow", "ftjob-0001", "--host", "openai"]
    assert run("jobs", "follow", "ftjob-0001") == 0
    assert capsys.readouterr().out.startswith("ft:")
    assert run("jobs", "metrics", "ftjob-0001", "--json") == 0
    assert json.loads(capsys.readouterr().out)[1]["train_loss"] == 1.25
    for command in ("metrics", "events", "checkpoints"):
        assert run("jobs", command, "ftjob-0001") == 0
        assert capsys.readouterr().out
    assert run("jobs", "show", "ftjob-9999") == 2
    told = capsys.readouterr().err
    assert "dspy-finetune jobs show ftjob-9999 --host openai" in told
    assert "jobs list" in told
    assert run("jobs", "show", "ftjob-9999", "--host", "openai") == 1
    assert "jobs list" in capsys.readouterr().err


def test_a_page_shows_a_job_while_it_runs(fake: FakeOpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file, which loads itself anew until the job has ended."""
    seen: list[str] = []

    def wait(timeout: object, show: Callable[[object], None]) -> None:
        for look in looks:
            show(look)
            seen.append(page.read_text())

    job = SimpleNamespace(id="ftjob-1", wait=wait)
    facts = {"id": "ftjob-1", "model": "base", "fine_tuned_model": None, "is_final": False}
    shared: dict[str, Any] = {
        "events": [],
        "eta_seconds": None,
        "elapsed_seconds": 60.0,
        "cost_usd": None,
        "total_steps": 4,
    }
    half = {"status": "running", "step": 2, "fraction": 0.5, "losses": [(1, 2.0), (2, 1.0)]}
    done = {"status": "succeeded", "step": 4, "fraction": 1.0, "losses": [(4, 0.5)]}
    ended = {**facts, "fine_tuned_model": "ft:<base>", "is_final": True}
    looks = [
        SimpleNamespace(facts=SimpleNamespace(**given), **shared, **look)
        for given, look in ((facts, half), (ended, done))
    ]
    page = tmp_path / "job.html"
    follow_job(cast("Any", job), cast("Any", None), None, page)
    assert 'http-equiv="refresh"' in seen[0]
    assert "step 2 of 4" in seen[0]
    assert 'value="0.500"' in seen[0]
    assert "refresh" not in seen[1]
    assert "ft:&lt;base&gt;" in seen[1]
    assert "succeeded, loss 0.500" in capsys.readouterr().err


def test_models_tells_until_when_they_answer(fake: FakeOpenAI, capsys: pytest.CaptureFixture[str]) -> None:
    for name, day in (
        ("ft:gpt-4.1-mini-2025-04-14:o::aaaaaaaa", "2099-01-01"),
        ("ft:gpt-4.1-2025-04-14:o::b", None),
        (BASE, None),
    ):
        fake.models[name] = {"id": name, "object": "model", "created": 1, "owned_by": "o", "shutdown_date": day}
    assert run("models", "--json") == 0
    facts = {one["id"]: one["shutdown_date"] for one in json.loads(capsys.readouterr().out)}
    assert facts == {
        "ft:gpt-4.1-mini-2025-04-14:o::aaaaaaaa": "2099-01-01",
        "ft:gpt-4.1-2025-04-14:o::b": "2027-01-14",
    }
    assert run("models", "--all") == 0
    assert BASE in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_ctrl_c_exits_130_prints_the_command_and_leaves_the_job(train_file: str, fake: FakeOpenAI) -> None:
    fake.script = ["running"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dspy_finetune.cli.main", "train", train_file, "--model", BASE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "running" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "dspy-finetune jobs follow ftjob-0001 --host openai" in rest
    assert "Traceback" not in "".join(lines) + rest
    assert fake.jobs["ftjob-0001"]["status"] == "running"


def test_a_key_in_the_env_file_is_used_and_the_environment_wins(
    train_file: str, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake.key = "from-file"
    (tmp_path / ".env").write_text("OPENAI_API_KEY='from-file'\n")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert run("jobs", "list") == 0
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    assert run("jobs", "list") == 1
    with pytest.raises(FileError, match="no such file"):
        load_env(tmp_path / "missing.env")


def test_env_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["A=1", " export B = two words # c", "C='x # y' # z", 'D="q"', "#E=1", "F=", "=g", "H=a#b", "I=${A}", "J"]
    names = [f"ENV_{letter}" for letter in "ABCDEFGHIJ"]
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is taken away again
        monkeypatch.delenv(name)
    text = re.sub(r"(?m)^( export |#|)([A-J])\b", r"\1ENV_\2", "\n".join(lines))
    (tmp_path / "mine.env").write_text("\ufeff" + text, encoding="utf-8")
    load_env(tmp_path / "mine.env")
    found = {name[4:]: os.environ[name] for name in names if name in os.environ}
    # Nothing is expanded: a key may hold a dollar sign.
    assert found == {"A": "1", "B": "two words", "C": "x # y", "D": "q", "F": "", "H": "a#b", "I": "${A}"}


@pytest.mark.parametrize(
    "text",
    [
        "openai",
        "local",
        "local=http://127.0.0.1:8000/v1",
        "azure=https://r.openai.azure.com/openai/v1",
        "https://llm.example.com/v1",
        "my-host=https://llm.example.com/v1",
    ],
)
def test_a_host_is_named_by_the_text_that_names_it_again(text: str) -> None:
    assert host_option(host_named(text)) == f"--host {text}"


def test_a_root_is_named_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert host_option(Host.local(root=tmp_path)) == f"--host local --root {tmp_path}"
    with pytest.raises(UsageError, match=r"--host somewhere: .*NAME=ADDRESS"):
        host_named("somewhere")
    for command, option in (("verify", "--at"), ("migrate", "--to")):
        assert run(command, "m", option, "somewhere") == 2
        assert f"error: {option} somewhere: expected" in capsys.readouterr().err


def test_a_curve_keeps_its_shape_in_little_room() -> None:
    assert len(curve([float(n) for n in range(1000)])) == 24
    assert curve([1.0, 1.0]) == "▁▁"
    assert [duration(s) for s in (0, 59.6, 3600)] == ["0 s", "1 min 0 s", "1 h 0 min"]
