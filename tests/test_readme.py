"""Figures in README and docs are those that a script printed: each table under a mark stands in its results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import readme_table

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"<!-- figures: (?P<source>\S+) -->\n(?P<table>.*?)<!-- end -->", re.S)


CURVES = ("hn", "upworthy", "pricer")
PAGES = {page: page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))}


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name) for page, text in PAGES.items() if MARKED.search(text)]
)
def test_each_table_of_figures_is_in_the_results_that_it_names(page: Path) -> None:
    for block in MARKED.finditer(PAGES[page]):
        results = (ROOT / block["source"]).read_text(encoding="utf-8")
        rows = [line for line in block["table"].splitlines() if line.startswith("|")]
        assert len(rows) > 3
        assert [row for row in rows if row not in results] == [], block["source"]


def test_readme_and_the_page_on_data_size_have_such_tables() -> None:
    assert {page.name for page, text in PAGES.items() if MARKED.search(text)} >= {"README.md", "data-size.md"}


def test_each_learning_curve_on_real_data_has_the_tuned_head_beside_what_needs_no_fine_tuning() -> None:
    curves = [block["table"] for block in MARKED.finditer(PAGES[ROOT / "docs" / "data-size.md"])]
    methods = [[line.split("|")[1].strip() for line in curve.splitlines() if " ± " in line] for curve in curves]
    assert methods == [[f"{name}, {one}" for one in ("TF-IDF", "encoder", "tuned head")] for name in CURVES]


def test_the_table_on_real_data_is_the_one_that_the_results_give() -> None:
    """Written by `python -m tests.readme_table --write`."""
    (block,) = readme_table.BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert block[1] == readme_table.text()


def test_a_method_or_a_set_that_is_measured_later_gets_its_line_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a method in two sections the line of more splits counts; what no set has is left out."""
    head = "| method | splits | {} | AUC | won against TF-IDF | ECE | seconds |\n|" + " --- |" * 7
    sections = [
        (
            "hn, 440 training rows (400 test rows)",
            "accuracy",
            ["| TF-IDF + logistic | 1 | 0.1 ± 0.0 |  |  |  |  |", "| SetFit | 2 | 0.4 ± 0.1 |  |  |  | 9 |"],
        ),
        (
            "hn, 440 training rows (400 test rows)",
            "accuracy",
            ["| head (auto) | 8 | 0.6 ± 0.1 |  |  |  | 71 |", "| SetFit | 2 | 0.5 ± 0.1 |  |  |  | 9 |"],
        ),
        ("hn, 440 training rows (400 test rows)", "accuracy", ["| head (auto) | 2 | 0.7 ± 0.1 |  |  |  | 70 |"]),
        (
            "hn, 440 training rows (400 test rows)",
            "accuracy",
            ["| DSPy few-shot: 4 nearest | 1 | 0.5 [0.4, 0.6] |  |  |  |  |", "| head (auto) | 1 | 0.6 |  |  |  |  |"],
        ),
        ("pricer, 300 training rows (200 test rows)", "MAE in $", ["| head (auto) | 8 | 61.2 ± 1.0 |  |  |  |  |"]),
        ("titles, 440 training rows (463 test rows)", "accuracy", ["| head (auto) | 8 | 0.9 ± 0.1 |  |  |  | 30 |"]),
    ]
    written = "".join(f"\n### {title}\n\n{head.format(name)}\n" + "\n".join(rows) for title, name, rows in sections)
    (tmp_path / "results.md").write_text("# Results\n" + written, encoding="utf-8")
    monkeypatch.setattr(readme_table, "RESULTS", tmp_path / "results.md")
    assert readme_table.text().splitlines() == [
        "| method | Hacker News titles, accuracy (440 + 400) | prices, error in $ (300 + 200) |",
        "| --- | --- | --- |",
        "| TF-IDF + linear model | 0.1 ± 0.0 |  |",
        "| SetFit | 0.5 ± 0.1; 9 s |  |",
        "| **tuned: the default** | 0.6 ± 0.1; 71 s | 61.2 ± 1.0 |",
        "",
        "| method | Hacker News titles, accuracy (440 + 400) |",
        "| --- | --- |",
        "| DSPy few-shot | 0.5 [0.4, 0.6] |",
        "| **tuned: the default** | 0.6 |",
    ]


def test_the_first_two_commands_are_make_quickstart_and_make_test() -> None:
    commands = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert commands[:2] == ["quickstart", "test"]
