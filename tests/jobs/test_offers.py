"""Who can train a file: each host's limits, methods, formats and prices, without a request."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from dspy_finetune.catalog import load_catalog
from dspy_finetune.cli.main import main
from dspy_finetune.errors import FileError, UsageError
from dspy_finetune.hosts.host import NAMED_HOSTS
from dspy_finetune.jobs.offers import advise_host, host_rows
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import FakeTime, write_dpo, write_sft


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_every_host_says_whether_and_for_how_much(sft_file: Path, fake: FakeOpenAI, time: FakeTime) -> None:
    advice = advise_host(sft_file)
    by_host = {one.host: one for one in advice.offers}
    assert set(by_host) == set(NAMED_HOSTS)
    assert advice.possible == advice.offers
    assert by_host["local"].cost_usd == 0
    nebius = by_host["nebius"]
    # The plain definition: tokens of all epochs times the price of a model below 20 billion parameters.
    assert nebius.n_tokens is not None
    assert nebius.cost_usd == pytest.approx(nebius.n_tokens * 0.40 / 1e6)
    assert by_host["together"].cost_usd is None
    known = [one.cost_usd for one in advice.offers if one.cost_usd is not None]
    assert known == sorted(known)
    assert fake.requests == []


def test_a_host_that_cannot_says_why_in_one_line(tmp_path: Path, time: FakeTime) -> None:
    pairs = {one.host: one for one in advise_host(write_dpo(tmp_path / "pairs.jsonl"), method="dpo").offers}
    assert "cannot be trained by dpo" in pairs["nebius"].reason
    assert pairs["nebius"].command == ""
    # Fireworks bills preferences by the token, too, at a price that the catalog does not know: unknown, never 0.
    assert (pairs["fireworks"].price_usd, pairs["fireworks"].cost_usd) == (None, None)
    assert "--allow-unknown-price" in pairs["fireworks"].command
    few = {one.host: one for one in advise_host(write_sft(tmp_path / "few.jsonl", n=5)).offers}
    assert "10" in few["openai"].reason
    assert "\n" not in few["openai"].reason
    assert few["fireworks"].is_possible  # it takes 3 rows


def test_after_its_end_a_host_is_out(sft_file: Path, time: FakeTime) -> None:
    time.fake.now = 1_800_000_000  # 2027-01-15
    offers = {one.host: one for one in advise_host(sft_file).offers}
    assert "2027-01-06" in offers["openai"].reason
    assert offers["azure"].is_possible
    assert not next(one for one in host_rows() if one.host == "openai").base_models


def test_the_command_is_one_that_the_command_line_reads(
    sft_file: Path, time: FakeTime, capsys: pytest.CaptureFixture[str]
) -> None:
    offer = next(one for one in advise_host(sft_file, hosts=["nebius"]).offers)
    words = shlex.split(offer.command)
    budget = float(words[words.index("--max-usd") + 1])
    assert offer.cost_usd is not None
    assert budget > offer.cost_usd
    plan = ["plan", *words[2 : words.index("--max-usd")], "--json"]
    assert run(*plan) == 0
    assert json.loads(capsys.readouterr().out)["cost_usd"] == pytest.approx(offer.cost_usd)


def test_the_table_holds_what_the_catalog_says(capsys: pytest.CaptureFixture[str], time: FakeTime) -> None:
    assert run("hosts", "--json") == 0
    rows = {one["host"]: one for one in json.loads(capsys.readouterr().out)}
    assert rows["nebius"]["training_usd"] == [0.4, 2.8]
    assert rows["nebius"]["methods"] == ["sft"]
    assert rows["together"]["methods"] == ["sft", "dpo"]
    assert [rows[name]["gives_weights"] for name in NAMED_HOSTS] == [True, False, False, True, True, True]
    sources = load_catalog().sources
    assert all(source in sources for row in rows.values() for source in row["source"].split(", "))
    assert run("hosts") == 0
    shown = capsys.readouterr().out
    assert "2027-01-06" in shown
    together = next(line for line in shown.splitlines() if line.startswith("together "))
    assert together.count("ask the host") == 2  # training and asking


def test_bad_input_is_one_line(sft_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="unknown host"):
        advise_host(sft_file, hosts=["nowhere"])
    with pytest.raises(FileError, match="no such file"):
        advise_host(tmp_path / "missing.jsonl")
    assert run("hosts", str(sft_file), "--method", "rl") == 2
    assert run("hosts", "--method", "sft") == 2
    assert "name it" in capsys.readouterr().err


def test_what_is_so_on_several_hosts_is_said_once(
    tmp_path: Path, time: FakeTime, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sft(tmp_path / "twice.jsonl", n=12)
    path.write_bytes(path.read_bytes() * 2)
    assert run("hosts", str(path)) == 0
    (told,) = [line for line in capsys.readouterr().err.split("warning: ") if "the row is the same" in line]
    assert told.startswith("local, nebius")
    assert "twice.jsonl:13: the row is the same as line 1 (and 11 more); " in " ".join(told.split())
