"""The report: says the verdict, keeps every fact in JSON, and shows text from data as text."""

import inspect
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import dspy
import pytest
import sklearn.metrics

from dspy_finetune.errors import AnswerError, DataError, FileError, UsageError
from dspy_finetune.evaluation import metrics
from dspy_finetune.report import Report, compare, html, plots, tables, write_html

EVIL = "<script>alert(1)</script> | *bold* & $x$"
ROWS = [dspy.Example(title=EVIL if n == 3 else f"title {n}", liked=n % 2 == 0).with_inputs("title") for n in range(30)]
LABELS = {row.title: row.liked for row in ROWS}


class Guesses:
    """A program with probabilities: right except for every `every`-th item."""

    def __init__(self, every: int) -> None:
        self.every = every

    def __call__(self, title: str) -> dspy.Prediction:
        number = list(LABELS).index(title)
        if number == 7 and self.every == 3:
            raise AnswerError("not a label: <i>hm</i>", text="hm")
        yes = LABELS[title] != (number % self.every == 0)
        return dspy.Prediction(liked=yes, probability=0.6 + number / 100 if yes else 0.4 - number / 100)


@pytest.fixture(scope="module")
def report() -> Report:
    return compare(
        {"tuned <b>": Guesses(10), "rival | one": Guesses(3)},
        ROWS,
        [metrics.accuracy("liked"), metrics.roc_auc("liked")],
        n_resamples=150,
        title="Titles & more",
        cards={"Data": {"source": EVIL}},
    )


def test_the_text_table_is_aligned_and_holds_the_counts(report):
    lines = report.table().splitlines()
    assert lines[0].split()[:3] == ["program", "accuracy", "[95%]"]
    assert "unreadable" in lines[0]
    assert "failed" in lines[0]
    assert {len(line) for line in lines[1:]} == {len(lines[1])}
    assert "0.900 [0.744, 0.965]" in lines[2]


def test_the_verdict_stands_in_one_sentence_and_one_exit_code(report):
    assert report.verdict.startswith(
        "tuned <b> is better than rival | one: accuracy 0.900 against 0.633, difference +0.267"
    )
    assert (report.outcome, report.exit_code) == ("better", 0)
    worse = compare({"a": Guesses(2), "b": Guesses(100)}, ROWS, [metrics.accuracy("liked")])
    assert (worse.outcome, worse.exit_code) == ("worse", 4)
    assert worse.verdict.endswith("Keep b.")
    open_ = compare({"a": Guesses(10), "b": Guesses(9)}, ROWS, [metrics.accuracy("liked")])
    assert (open_.outcome, open_.exit_code) == ("undecided", 3)
    assert "more items would decide" in open_.verdict
    alone = compare({"a": Guesses(10)}, ROWS, [metrics.accuracy("liked")])
    assert (alone.outcome, alone.exit_code) == (None, 0)


def test_json_keeps_the_whole_report(report, tmp_path):
    report.to_json(tmp_path / "report.json")
    again = Report.from_json(tmp_path / "report.json")
    assert again == report
    assert again.html() == report.html()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"other.json.*not a report"):
        Report.from_json(tmp_path / "other.json")
    with pytest.raises(FileError):
        Report.from_json(tmp_path / "missing.json")


def test_text_from_data_shows_as_text(report, tmp_path):
    report.to_html(tmp_path / "report.html", training={EVIL: [(1, 2.0), (2, 1.0)]})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>" not in page
    assert "<i>" not in page
    fragment = report._repr_html_()
    assert "<b>" not in fragment
    assert "tuned &lt;b&gt;" in fragment


def test_the_page_needs_no_network_and_its_ids_are_unique(report):
    page = html.render([report, report], title="Two", training={"sft": [(1, 2.0), (2, 1.0)]})
    assert not re.findall(r'(?:src|href)="(?!#)[^"]+"', page.replace("xlink:href", "href").replace('href="#', 'x="#'))
    assert "@import" not in page
    assert "url(http" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:url\(#|href="#)([^)"]+)', page):
        assert target in ids
    assert page.count("<h1>") == 1
    assert [section in page for section in ('id="section-1"', 'id="section-2"')] == [True, True]


def test_the_same_numbers_give_the_same_bytes(report):
    assert report.html() == report.html()


def test_pictures_are_well_formed_and_follow_the_pages_colours(report):
    for svg in (
        plots.scores(report.comparison, "a"),
        plots.differences(report.comparison, "b"),
        plots.roc(report.comparison, "c"),
        plots.histogram(report.comparison, "d"),
        plots.calibration(report.comparison, "e"),
        plots.training({"x": [(1, 0.5)]}, "f"),
    ):
        assert svg is not None
        ElementTree.fromstring(svg)
        assert "var(--ink)" in svg
        assert "#0102" not in svg


def test_there_is_no_picture_without_numbers(report):
    silent = compare({"a": lambda title: dspy.Prediction(liked=True)}, ROWS, [metrics.accuracy("liked")]).comparison
    assert plots.roc(silent, "a") is None
    assert plots.histogram(silent, "a") is None
    assert plots.differences(silent, "a") is None
    assert plots.training({"x": []}, "a") is None
    assert html.render([Report(comparison=silent)], title="x")


def test_the_roc_curve_encloses_the_roc_auc():
    pairs = [(1.0, 0.9), (0.0, 0.8), (1.0, 0.8), (1.0, 0.3), (0.0, 0.2), (0.0, 0.1)]
    points = plots.roc_points(pairs)
    expected = sklearn.metrics.roc_auc_score([truth for truth, _ in pairs], [share for _, share in pairs])
    assert sklearn.metrics.auc([x for x, _ in points], [y for _, y in points]) == pytest.approx(expected)


def test_the_confusion_table_counts_every_item(report):
    table = html.confusion(report.comparison)
    assert table is not None
    assert sum(cell["n"] for row in table["rows"] for cell in row["cells"]) == len(ROWS)
    rival = compare({"rival": Guesses(3)}, ROWS, [metrics.accuracy("liked")])
    table = html.confusion(rival.comparison)
    assert table is not None
    assert table["columns"] == ["false", "true", "unreadable"]


def test_pairs_get_their_leanings():
    rows = [
        dspy.Example(title_a="x" * (n + 1), title_b="yyy", preferred="A" if n % 2 else "B").with_inputs(
            "title_a", "title_b"
        )
        for n in range(10)
    ]

    def first(**inputs: str) -> dspy.Prediction:
        return dspy.Prediction(preferred="A", probability=0.7)

    page = compare({"first": first}, rows, [metrics.pairwise_accuracy()]).html()
    assert "Leanings" in page
    assert "1.000 [0.722, 1.000]" in page


def test_markdown_escapes_what_would_be_markup(report, tmp_path):
    report.to_markdown(tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Titles &amp; more\n")
    assert "tuned &lt;b&gt;" in text
    assert "rival \\| one" in text
    assert "## Not checked" in text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()[4:8]}
    assert len(widths) == 1


def test_several_reports_share_one_page(report, tmp_path):
    target = tmp_path / "deep" / "all.html"
    write_html(target, [report, report], training={"sft": [(1, 2.0), (5, 1.0)]}, title="All of it")
    page = target.read_text(encoding="utf-8")
    assert "<title>All of it</title>" in page
    assert "sft from 2 to 1" in page
    with pytest.raises(UsageError, match="at least one"):
        write_html(target, [])


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0.8123, "0.812"), (-0.05, "−0.050"), (39.857, "39.9"), (12345.6, "12,346")],
)
def test_figures_are_short(value: Any, text: str):
    assert tables.figure(value) == text


def test_the_template_travels_with_the_package():
    assert (Path(html.__file__).parent / "page.html.jinja").is_file()


def test_the_public_compare_takes_what_the_statistics_take_and_no_other():
    """Two signatures, so that help and editors show every option where users meet it; they must not part."""
    from dspy_finetune.evaluation import compare_programs

    ours, theirs = (inspect.signature(one).parameters for one in (compare, compare_programs))
    assert {name: (ours[name].kind, ours[name].default, ours[name].annotation) for name in theirs} == {
        name: (one.kind, one.default, one.annotation) for name, one in theirs.items()
    }
    assert {"title", "cards"} <= set(ours) - set(theirs)
    told = compare.__doc__ or ""
    assert [name for name in ours if f"        {name}: " not in told] == []
