"""SFT, then DPO from its model: one plan, one budget, two jobs however often it is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dspy_finetune.errors import BudgetError, RowError
from dspy_finetune.hosts import Host
from dspy_finetune.jobs.sequence import sft_then_dpo, write_preferred
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import FakeTime

BASE = "gpt-4.1-mini-2025-04-14"


def test_the_second_job_starts_from_the_first_ones_model(
    dpo_file: Path, host: Host, fake: FakeOpenAI, time: FakeTime
) -> None:
    made = sft_then_dpo(dpo_file, base_model=BASE, host=host, dpo_hyperparameters={"beta": 0.2})
    assert made.cost_usd == pytest.approx((made.sft.cost_usd or 0) + (made.dpo.cost_usd or 0))
    model = made.start(max_usd=1.0).wait()
    bodies = [body for route, body in fake.requests if route == "POST /fine_tuning/jobs"]
    assert [body["method"]["type"] for body in bodies] == ["supervised", "dpo"]
    assert bodies[1]["model"] == "ft:gpt-4.1-mini-2025-04-14:fake::00000001"
    assert bodies[1]["method"]["dpo"]["hyperparameters"]["beta"] == 0.2
    assert (model.method, model.base) == ("dpo", BASE)
    again = made.start(max_usd=1.0).wait()
    assert (again.id, len(fake.jobs)) == (model.id, 2)


def test_the_budget_is_for_both(dpo_file: Path, host: Host, fake: FakeOpenAI) -> None:
    made = sft_then_dpo(dpo_file, base_model=BASE, host=host)
    assert made.sft.cost_usd is not None
    with pytest.raises(BudgetError, match="jobs together cost"):
        made.start(max_usd=made.sft.cost_usd * 1.01)
    assert not fake.requests


def test_a_report_shows_both_jobs_and_what_they_cost(dpo_file: Path, host: Host) -> None:
    made = sft_then_dpo(dpo_file, base_model=BASE, host=host)
    text = made.markdown()
    assert f"2 jobs, ${made.cost_usd:,.2f}" in text
    assert f"2. {made.dpo}" in text
    assert made.warnings
    assert all(f"- {warning}" in text.replace("\\", "") for warning in made.warnings)


def test_an_unknown_price_is_refused_before_the_first_job(dpo_file: Path, fake: FakeOpenAI) -> None:
    made = sft_then_dpo(dpo_file, base_model="some-model", host=Host.compatible(fake.url, "k"))
    for budget in (5.0, None):
        with pytest.raises(BudgetError, match="allow_unknown_price"):
            made.start(max_usd=budget)
    assert not fake.requests


def test_preferred_answers_become_rows_each_once(dpo_file: Path) -> None:
    lines = dpo_file.read_text().splitlines()
    dpo_file.write_text("\n".join([*lines, lines[0]]) + "\n")
    rows = [json.loads(line) for line in write_preferred(dpo_file).read_text().splitlines()]
    assert len(rows) == len(lines)
    first = json.loads(lines[0])
    assert rows[0] == {"messages": [*first["input"]["messages"], *first["preferred_output"]]}


def test_a_row_that_is_no_pair_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"messages": []}\n')
    with pytest.raises(RowError, match=r"pairs\.jsonl:1.*preferred_output"):
        write_preferred(path)
