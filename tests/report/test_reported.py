"""Every result that a public function gives is shown in the same four ways: page, Markdown, notebook, words."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path

import dspy
import pytest

from dspy_finetune import bulk, data, evaluation, export, jobs, migration, predictors, verification
from dspy_finetune.bulk.run import Meter
from dspy_finetune.report import Reported
from tests.jobs.conftest import write_dpo, write_sft

EVIL = "<script>alert(1)</script>"
RESULTS: tuple[type, ...] = (
    *(bulk.BulkResult, data.Leakage, evaluation.Advice, evaluation.ComparisonReport, evaluation.LearningCurve),
    *(export.CheckReport, export.FixReport, export.LintReport, export.TrainingFile),
    *(jobs.HostAdvice, jobs.Job, jobs.Plan, jobs.SequencePlan),
    *(migration.Migration, migration.MigrationPlan, predictors.Ranking, verification.Verification),
)


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_is_written_by_the_one_mechanism(kind: type) -> None:
    assert issubclass(kind, Reported)
    assert kind.to_markdown is Reported.to_markdown
    assert kind.section is not Reported.section, "it says which blocks it is"


def lint(folder: Path) -> export.LintReport:
    said = {"system": "Be brief.", "user": EVIL, "assistant": "yes"}
    row = {"messages": [{"role": role, "content": content} for role, content in said.items()]}
    path = folder / "lint.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for _ in range(20)))
    return export.lint(path)


def fixed(folder: Path) -> export.FixReport:
    path = write_sft(folder / "train.jsonl", n=12)
    path.write_text(f"\ufeff{path.read_text()}{EVIL}\n")
    return export.fix(path, folder / "fixed.jsonl")


def leakage(folder: Path) -> data.Leakage:
    return data.find_leakage(*([dspy.Example(title=EVIL).with_inputs("title")] for _ in range(2)))


def verification_of(folder: Path) -> verification.Verification:
    return verification.Verification(
        model="ft:toy",
        at="http://127.0.0.1:1/v1",
        served_as=EVIL,
        n_prompts=50,
        n_wanted=60,
        source="rows.jsonl",
        labels=("false", "true"),
        verdict="different",
        difference=1.05,
        largest=2.5,
        noise=0.0004,
        n_changed=7,
        findings=("the adapter is missing",),
    )


def predicted(folder: Path) -> bulk.BulkResult:
    meter = Meter(n_total=None, cost=lambda tokens: None, clock=lambda: 0.0)
    meter.counts["answered"], meter.counts["failed"] = 1_000, 3
    return bulk.BulkResult.of(meter, folder / EVIL.replace("/", ""), n_retries=2, seconds=1.5)


def ranking(folder: Path) -> predictors.Ranking:
    item = predictors.RankedItem(item=EVIL, index=0, rank=1, score=0.5, low=0.1, high=0.9, n_comparisons=4)
    return predictors.Ranking(
        items=(item,),
        level=0.95,
        position_bias=(0.2, 0.1, 0.3),
        n_comparisons=4,
        n_parse_failures=0,
        n_resumed=0,
        n_pairs=6,
    )


def training_file(folder: Path) -> export.TrainingFile:
    return export.TrainingFile.read(write_sft(folder / f"{EVIL.replace('/', '')}.jsonl", n=12))


def advice(folder: Path) -> jobs.HostAdvice:
    return jobs.advise_host(write_dpo(folder / "pairs.jsonl"), method="dpo")


MADE: dict[Callable[[Path], Reported], tuple[str, ...]] = {
    lint: ("20 rows looked at", "constant-system-prompt", "majority share"),
    fixed: ("12 rows", "left out", "bom"),
    leakage: ("leakage: 1 item", "row 1"),
    verification_of: ("does NOT answer", "1.0500 nats", "the adapter is missing", "7 of 50 differ"),
    predicted: ("1000 of 1003 rows answered", "3 failed", "2 sent again"),
    ranking: ("+0.50", "+0.10 to +0.90", "+0.20 [+0.10, +0.30] log-odds"),
    training_file: ("12 rows", "sha256", "none: ready messages"),
    advice: ("hosts can train it", "nebius", "dspy-finetune train"),
}


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_a_result_shows_its_facts_as_a_page_as_markdown_and_in_a_notebook(
    make: Callable[[Path], Reported], tmp_path: Path
) -> None:
    result = make(tmp_path)
    result.to_html(tmp_path / "result.html")
    result.to_markdown(tmp_path / "result.md")
    page, text = (tmp_path / "result.html").read_text(), (tmp_path / "result.md").read_text()
    verdict = result.section().verdict
    assert verdict is not None
    assert verdict in html.unescape(page)
    assert verdict in html.unescape(result._repr_html_())
    for fact in MADE[make]:
        assert fact in html.unescape(page)
        assert fact in text.replace("\\", "")
    assert EVIL not in page
    assert EVIL not in result._repr_html_()
    assert str(result)
