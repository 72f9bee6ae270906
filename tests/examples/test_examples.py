"""The examples run from end to end at their small size, on the real small model, and leave what they promise."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dspy_finetune as ft
from examples import make_products, pricer, question_answering, taste_distillation

ROOT = Path(__file__).parents[2]
slow = [pytest.mark.local, pytest.mark.timeout(1800)]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[ft.Host]:
    one = ft.Host.local(root=tmp_path / "host")
    yield one
    one.close()


def page_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    assert "Not checked" in text
    return text


class TestQuestions:
    pytestmark = slow

    def test_from_questions_to_results(self, tmp_path: Path, host: ft.Host, capsys: pytest.CaptureFixture[str]) -> None:
        report = question_answering.main(tmp_path, host, size="small")
        assert {row.name for row in report.rows} == {"tuned", "untuned", "DSPy few-shot", "nearest answer"}
        assert {(row.n, row.n_failed) for row in report.rows} == {(5, 0)}
        results = json.loads((tmp_path / "test_results.json").read_text(encoding="utf-8"))
        assert [row["question"] for row in results] == list(question_answering.CASES)
        assert all(row[name] for row in results for name in ("tuned", "untuned"))
        assert ft.load_predictor(tmp_path / "teacher.json", host=host).prompt.system == question_answering.SYSTEM
        assert "teacher from" in page_of(tmp_path / "report.html")  # the loss of the training
        told = capsys.readouterr()
        assert "Statistics: {'total': 24, 'valid': 24, 'invalid': 0}" in told.out
        assert "running" in told.err


class TestPricer:
    pytestmark = slow

    def test_from_items_to_the_table_over_training_sizes(
        self, tmp_path: Path, host: ft.Host, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = pricer.main(tmp_path, host, size="small")
        assert {row.name for row in report.rows} == {"tuned", "untuned", "TF-IDF + ridge", "median"}
        assert {row.n for row in report.rows} == {8}
        assert len((tmp_path / "fine_tune_train.jsonl").read_text(encoding="utf-8").splitlines()) == 60
        assert len((tmp_path / "fine_tune_validation.jsonl").read_text(encoding="utf-8").splitlines()) == 10
        page = page_of(tmp_path / "report.html")
        assert "true price" in page  # the scatter's axis
        assert "pricer, validation from" in page
        curve = page_of(tmp_path / "curve.html")
        assert "50 rows" in curve
        assert "60 rows" in curve
        assert "pricer" in capsys.readouterr().out


class TestTaste:
    pytestmark = slow

    def test_three_models_and_an_ensemble(self, tmp_path: Path, host: ft.Host) -> None:
        titles, pairs = taste_distillation.main(tmp_path, host, size="small")
        assert "tuned + DSPy few-shot" in {row.name for row in titles.rows}
        assert {"tuned, pairwise", "tuned, DPO"} <= {row.name for row in pairs.rows}
        assert not [row.name for row in (*titles.rows, *pairs.rows) if row.n_failed]
        found = {job.facts.method: job.facts for job in ft.list_jobs(host=host)}
        assert set(found) == {"sft", "dpo"}
        page = page_of(tmp_path / "report.html")
        assert "dpo from" in page
        assert "Position, length and price bias" in page


def test_the_packaged_products_are_what_their_script_makes(tmp_path: Path) -> None:
    make_products.main(tmp_path / "products.jsonl")
    assert (tmp_path / "products.jsonl").read_bytes() == pricer.DATA.read_bytes()


def test_no_packaged_question_is_asked_twice() -> None:
    rows = ft.load_examples(question_answering.DATA, inputs=["question"])
    assert not ft.data.find_conflicts(rows, label="answer")
    assert len({row.question for row in rows}) == len(rows) == 96
    assert set(question_answering.CASES) <= {row.question for row in rows}


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "how-to").glob("*.md")), ids=lambda page: page.stem)
def test_a_how_to_page_shows_its_example_which_the_tests_of_documents_run(page: Path) -> None:
    """One text in two places: under a docstring as a file, in a block on the page."""
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    example = (ROOT / "examples" / f"{page.stem.replace('-', '_')}.py").read_text(encoding="utf-8")
    assert example.partition('\n"""\n\n')[2] == block
    assert len(page.read_text(encoding="utf-8").splitlines()) < 80


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda example: example.stem)
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) < 80
