"""A learning curve, shown: the table, the sentence on the next examples, pictures and files."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from dspy_finetune.errors import DataError, UsageError
from dspy_finetune.evaluation import CurvePoint, CurveRun, LearningCurve, MarginalValue, MetricFacts
from dspy_finetune.evaluation.statistics import Interval

EVIL = "<script>m</script>"


def interval(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half, n=50, method="t")


def curve(*, higher: bool = False, change: Interval | None = None, error: str | None = None) -> LearningCurve:
    runs = tuple(
        CurveRun(
            base_model=EVIL, n_epochs=1, n_rows=n, seed=0, job_id=f"j{n}", is_new=True,
            model=None if error else f"m{n}", score=None if error else interval(0.5, 0.1), n_parse_failures=0,
            n_failed=0, estimated_cost_usd=1.0, cost_usd=n / 100,
            error=error,
        )
        for n in (50, 100)
    )  # fmt: skip
    margin = MarginalValue(
        base_model=EVIL, n_epochs=1, n_rows=100, n_more=100, change=change or interval(-0.05, 0.02), cost_usd=1.0,
        extrapolated=0.41, measured=0.4,
    )  # fmt: skip
    return LearningCurve(
        metric=MetricFacts(name="error", kind="mean", higher_is_better=higher, field="y"),
        runs=runs,
        points=()
        if error
        else tuple(
            CurvePoint(base_model=EVIL, n_epochs=1, n_rows=n, n_runs=1, score=interval(40 / n, 0.1), cost_usd=n / 100)
            for n in (50, 100)
        ),
        margins=() if error else (margin,),
        n_test=50,
        seeds=(0,),
        confidence=0.95,
        not_checked=("Plateaus.",),
    )


def test_the_table_has_a_row_per_size_with_score_and_cost():
    lines = curve().table().splitlines()
    assert lines[0].startswith(f"rows  {EVIL}, 1 epoch: error [95%]   USD")
    assert lines[2].split() == ["50", "0.800", "[0.700,", "0.900]", "0.50"]
    assert curve().cost_usd == 1.5


@pytest.mark.parametrize(("higher", "change", "doubts"), [
    (False, interval(-0.05, 0.02), False),
    (False, interval(-0.05, 0.06), True),
    (True, interval(-0.05, 0.02), True),
    (True, interval(0.05, 0.02), False),
])  # fmt: skip
def test_the_sentence_says_whether_more_examples_surely_help(higher, change, doubts):
    (sentence,) = curve(higher=higher, change=change).sentences
    assert "100 examples beyond 100 would change error by" in sentence
    assert "for $1.00 more per training" in sentence
    assert ("does not exclude that they bring nothing" in sentence) is doubts
    assert "Extrapolated from the smaller sizes: 0.410 at 100 rows; measured: 0.400" in sentence


def test_the_page_and_the_pictures_are_well_formed_and_escape_names(tmp_path: Path):
    one = curve()
    one.to_html(tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    assert "<script" not in page
    ElementTree.fromstring(one.svg() or "")
    for ending, start in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        one.plot(tmp_path / f"c.{ending}")
        assert (tmp_path / f"c.{ending}").read_bytes().startswith(start)
    with pytest.raises(UsageError, match=r"\.svg, \.png, \.pdf"):
        one.plot(tmp_path / "c.gif")


def test_json_keeps_the_whole_curve_and_markdown_the_facts(tmp_path: Path):
    one = curve()
    one.to_json(tmp_path / "c.json")
    assert LearningCurve.from_json(tmp_path / "c.json") == one
    one.to_markdown(tmp_path / "c.md")
    assert "- Plateaus." in (tmp_path / "c.md").read_text()
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(DataError, match="not a learning curve"):
        LearningCurve.from_json(tmp_path / "x.json")


def test_runs_without_a_model_are_told_and_draw_nothing(tmp_path: Path):
    one = curve(error="the job failed")
    assert str(one).count("no model: the job failed") == 2
    assert one.svg() is None
    assert "<figure" not in one.html()
    with pytest.raises(UsageError, match="nothing to draw"):
        one.plot(tmp_path / "c.svg")
