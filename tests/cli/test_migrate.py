"""`migrate`: one call of the library, shown as a plan, a model's id and a report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import dspy_finetune as ft
from dspy_finetune.cli.main import main
from dspy_finetune.hosts.host import KINDS
from tests.fake_openai import FakeOpenAI

BASE = "gpt-4.1-mini-2025-04-14"
PROMPT = ft.prompts.binary("Likes sailing.")
ROWS = [{"title": f"{'Boat' if n % 2 else 'Tax'} {n}", "is_favorite": n % 2 == 1} for n in range(30)]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[FakeOpenAI]]:
    both = [FakeOpenAI(), FakeOpenAI()]
    for one in both:
        one.answer = lambda body: "true" if "Boat" in body["messages"][-1]["content"] else "false"
        one.script = ["succeeded"]
    monkeypatch.setenv("OPENAI_BASE_URL", both[0].url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("DSPY_FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for kind in ("openai", "local"):
        monkeypatch.setitem(KINDS, kind, dataclasses.replace(KINDS[kind], poll_seconds=(0.01, 0.02)))
    yield both
    for one in both:
        one.close()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_migrate_shows_trains_saves_and_compares(
    servers: list[FakeOpenAI], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ft.export_sft(ROWS[:20], PROMPT, tmp_path / "train.jsonl", base_model=BASE)
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[20:]))
    assert run("train", "train.jsonl", "--model", BASE, "--suffix", "taste") == 0
    old = capsys.readouterr().out.strip()
    there = f"local={servers[1].url}"

    assert run("migrate", old, "--to", there, "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["model"], planned["cost_usd"], planned["plans"][0]["suffix"]) == (old, 0.0, "taste")
    assert planned["plans"][0]["metadata"] == {}
    noted = ("--metadata", "who=me", "--wandb", "titles")
    assert run("migrate", old, "--to", there, *noted, "--dry-run", "--json") == 0
    (moving,) = json.loads(capsys.readouterr().out)["plans"]
    assert (moving["metadata"], moving["wandb"]["project"]) == ({"who": "me"}, "titles")
    assert run("migrate", old, "--to", there, "--metadata", "who") == 2
    assert "expected KEY=VALUE" in capsys.readouterr().err
    assert run("migrate", old, "--to", there, "--no-wait", "--save", "new.json") == 2
    assert "--save needs the finished model" in capsys.readouterr().err
    assert run("migrate", old, "--to", there) == 2
    assert "--examples" in capsys.readouterr().err
    assert not servers[1].jobs

    assert run("migrate", old, "--to", there, "--no-wait") == 0
    shown = capsys.readouterr()
    assert shown.out.split() == ["dspy-finetune", "jobs", "follow", "ftjob-0001", "--host", there]
    assert "the same command without --no-wait goes on: the comparison" in shown.err
    code = run(
        "migrate", old, "--to", there, "--examples", "test.jsonl", "--save", "new.json", "--json-to", "report.json"
    )
    shown = capsys.readouterr()
    assert code == 3, shown.err  # equal on ten rows, and no margin was given
    assert shown.out.strip() == "ft:smollm2-135m-instruct:fake:taste:00000001"
    assert "undecided" in shown.err.lower() or "no difference" in shown.err.lower()
    assert ft.load_predictor("new.json").model == shown.out.strip()
    assert json.loads(Path("report.json").read_text())["cards"]["Old answers"] == {"are": "fresh", "items": "10"}

    servers[0].models.clear()
    stored = ["--examples", "test.jsonl", "--stored", "report.json", "--margin", "0.9", "--json"]
    assert run("migrate", old, "--to", there, *stored) in {0, 3}
    report = json.loads(capsys.readouterr().out)
    assert report["model"]["id"] == "ft:smollm2-135m-instruct:fake:taste:00000001"
    assert report["cards"]["Old answers"]["are"] == "stored"
    assert len(servers[1].jobs) == 1

    assert run("migrate", "ft:gpt-4.1-mini-2025-04-14:fake::nobody00", "--to", there) == 2
    assert "nobody knows" in capsys.readouterr().err


def test_the_new_hosts_own_settings_are_given_as_for_train(
    servers: list[FakeOpenAI], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ft.export_sft(ROWS[:20], PROMPT, tmp_path / "train.jsonl", base_model=BASE)
    assert run("train", "train.jsonl", "--model", BASE) == 0
    old = capsys.readouterr().out.strip()
    options = ("--learning-rate", "2e-5", "--lora-rank", "16", "--dry-run", "--json")
    assert run("migrate", old, "--to", "nebius", *options) == 0
    (planned,) = json.loads(capsys.readouterr().out)["plans"]
    given = {one["name"]: one["value"] for one in planned["hyperparameters"] if one["origin"] == "given"}
    assert given == {"n_epochs": 5, "learning_rate": 2e-5, "lora_rank": 16}
    assert run("migrate", old, "--to", "nebius", "--full", "--dry-run", "--json") == 0
    (planned,) = json.loads(capsys.readouterr().out)["plans"]
    assert {one["name"]: one["value"] for one in planned["hyperparameters"]}["lora"] is False
    assert run("migrate", old, "--to", "local", "--recipe", "head", "--dry-run", "--json") == 0
    (planned,) = json.loads(capsys.readouterr().out)["plans"]
    assert {one["name"]: one["value"] for one in planned["hyperparameters"]}["recipe"] == "head"
