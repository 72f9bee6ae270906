"""`predict`: a saved predictor, rows in, rows out; the same facts as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import dspy_finetune as ft
from dspy_finetune.cli.main import main
from tests.loopback import Loopback, refusal


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    monkeypatch.setenv("LOOPBACK_API_KEY", "key")
    server = Loopback()
    yield server
    server.close()


@pytest.fixture
def saved(loopback: Loopback, tmp_path: Path) -> str:
    predictor = ft.OpenAIPredictor(ft.prompts.binary("Bees."), "m", host=loopback.host)
    predictor.save(tmp_path / "tuned.json")
    return str(tmp_path / "tuned.json")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["predict", *arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_every_row_is_answered_and_told(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, output = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    rows.write_text("id,headline\n1,Ants\n2,Bees\n")
    options = ("--out", str(output), "--rename", "headline=title", "--keep", "id", "--prefix", "is_")
    assert run(saved, str(rows), *options, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["n_rows"], shown["n_answered"], shown["output"]) == (2, 2, str(output))
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in found] == ["1", "2"]
    assert "is_is_favorite" in found[0]
    assert run(saved, str(rows), *options) == 2
    assert "there already" in capsys.readouterr().err
    assert run(saved, str(rows), *options, "--overwrite", "--limit", "1") == 0
    assert "1 of 1 rows answered" in capsys.readouterr().out.replace("\n", "")


def test_a_refusing_host_and_an_unknown_price_are_told_in_one_line(
    saved: str, loopback: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"title": "Ants"}\n')
    loopback.fault = lambda body, n: refusal(401)
    assert run(saved, str(rows), "--out", str(tmp_path / "out.jsonl")) == 1
    assert "401" in capsys.readouterr().err
    assert run(saved, str(rows), "--out", str(tmp_path / "out.jsonl"), "--max-usd", "1") == 1
    assert "cannot be kept" in capsys.readouterr().err
    assert run(saved, str(rows), "--out", str(tmp_path / "out.jsonl"), "--batch") == 1
    assert not (tmp_path / "out.jsonl").exists()
