"""The report: says the verdict, keeps every fact in JSON, and shows text from data as text."""

import dataclasses
import inspect
import math
import re
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
import sklearn.metrics
from dspy.utils import DummyLM

import dspy_finetune
from dspy_finetune.errors import AnswerError, DataError, FileError, UsageError
from dspy_finetune.evaluation import ComparisonReport, RunOptions, StatisticsOptions, compare, metrics
from dspy_finetune.evaluation import comparison_report as details
from dspy_finetune.evaluation.collect import Answer
from dspy_finetune.evaluation.compare import prompt_cards
from dspy_finetune.evaluation.comparison_report import difference_table
from dspy_finetune.predictors import OpenAIPredictor
from dspy_finetune.report import blocks, plots, write_html
from dspy_finetune.report import page as pages
from dspy_finetune.report.plots import loss_curves

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
def report() -> ComparisonReport:
    return compare(
        {"tuned <b>": Guesses(10), "rival | one": Guesses(3)},
        ROWS,
        [metrics.accuracy("liked"), metrics.roc_auc("liked")],
        statistics=StatisticsOptions(n_resamples=150),
        title="Titles & more",
    ).annotated(cards={"Data": {"source": EVIL}})


def test_the_text_table_is_aligned_and_holds_the_counts(report):
    lines = report.table().splitlines()
    assert lines[0].split()[:3] == ["program", "accuracy", "[95%]"]
    assert "parse failures" in lines[0]
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
    again = ComparisonReport.from_json(tmp_path / "report.json")
    assert again == report
    assert again.html() == report.html()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"other.json.*not a report"):
        ComparisonReport.from_json(tmp_path / "other.json")
    with pytest.raises(FileError):
        ComparisonReport.from_json(tmp_path / "missing.json")


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


def test_nothing_is_checked_after_what_was_not(report):
    """The page ends with what was not checked, for each report."""
    page = pages.render([report.section(), report.section()], title="x", training={"sft": [(1, 2.0), (2, 1.0)]})
    after = page[page.index(">Not checked</h2>") :]
    assert page.index("Loss over the steps") < page.index(">Not checked</h2>")
    assert after.count("<li>") == 2 * len(report.comparison.not_checked)
    assert "<h2" not in after[5:]


def test_the_page_needs_no_network_and_its_ids_are_unique(report):
    page = pages.render([report.section(), report.section()], title="Two", training={"sft": [(1, 2.0), (2, 1.0)]})
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
        details.scores(report.comparison, "a"),
        details.differences(report.comparison, "b"),
        details.roc(report.comparison, "c"),
        details.histogram(report.comparison, "d"),
        details.calibration(report.comparison, "e"),
        plots.losses({"x": [(1, 0.5)]}, "f"),
        details.latency(report.comparison, "g"),
        details.precision_recall(report.comparison, "h"),
    ):
        assert svg is not None
        ElementTree.fromstring(svg)
        assert "var(--ink, currentColor)" in svg
        assert "#0102" not in svg


def test_there_is_no_picture_without_numbers(report):
    silent = compare({"a": lambda title: dspy.Prediction(liked=True)}, ROWS, [metrics.accuracy("liked")]).comparison
    assert details.roc(silent, "a") is None
    assert details.histogram(silent, "a") is None
    assert details.differences(silent, "a") is None
    assert plots.losses({"x": []}, "a") is None
    assert pages.render([ComparisonReport(comparison=silent).section()], title="x")


def test_the_roc_curve_encloses_the_roc_auc():
    pairs = [(1.0, 0.9), (0.0, 0.8), (1.0, 0.8), (1.0, 0.3), (0.0, 0.2), (0.0, 0.1)]
    points = details.roc_points(pairs)
    expected = sklearn.metrics.roc_auc_score([truth for truth, _ in pairs], [share for _, share in pairs])
    assert sklearn.metrics.auc([x for x, _ in points], [y for _, y in points]) == pytest.approx(expected)


def test_the_confusion_table_counts_every_item(report):
    table = details.confusion(report.comparison)
    assert table is not None
    assert sum(int(cell) for row in table.rows for cell in row[1:]) == len(ROWS)
    assert table.shares is not None
    assert [sum(row) for row in table.shares] == pytest.approx([1.0, 1.0])
    rival = compare({"rival": Guesses(3)}, ROWS, [metrics.accuracy("liked")])
    table = details.confusion(rival.comparison)
    assert table is not None
    assert table.head == ("label", "said false", "said true", "said parse failure")


def test_the_confusion_table_has_the_labels_as_the_rows_write_them():
    rows = [dspy.Example(text=f"Text {n}", kind=["Spam", "Not Spam"][n % 2]).with_inputs("text") for n in range(10)]

    def spam(text: str) -> dspy.Prediction:
        return dspy.Prediction(kind="spam.")

    table = details.confusion(compare({"spam": spam}, rows, [metrics.exact_match("kind")]).comparison)
    assert table is not None
    assert table.head == ("label", "said Not Spam", "said Spam")
    assert table.rows == (("Not Spam", "0", "5"), ("Spam", "0", "5"))


def test_pairs_get_their_bias():
    rows = [
        dspy.Example(title_a="x" * (n + 1), title_b="yyy", preferred="A" if n % 2 else "B").with_inputs(
            "title_a", "title_b"
        )
        for n in range(10)
    ]

    def first(**inputs: str) -> dspy.Prediction:
        return dspy.Prediction(preferred="A", probability=0.7)

    page = compare({"first": first}, rows, [metrics.pairwise_accuracy()]).html()
    assert "Position, length and price bias" in page
    assert "1.000 [0.722, 1.000]" in page


def test_a_position_bias_is_told_with_what_helps():
    """Against the labels' own share, by the exact sign test; where both orders were asked, by what they say."""
    rows = [
        dspy.Example(title_a=f"x{n}", title_b=f"y{n}", preferred="A" if n % 3 else "B").with_inputs(
            "title_a", "title_b"
        )
        for n in range(30)
    ]
    number = {row.title_a: n for n, row in enumerate(rows)}

    def answering(choose: Callable[[int], str], **more: Callable[[int], float]) -> Callable[..., dspy.Prediction]:
        def program(title_a: str, title_b: str) -> dspy.Prediction:
            n = number[title_a]
            return dspy.Prediction(preferred=choose(n), **{name: value(n) for name, value in more.items()})

        return program

    programs = {
        "first": answering(lambda n: "A"),  # 10 times against the labels, never the other way: p = 2 / 2**10
        "labels": answering(lambda n: "A" if n % 3 else "B"),
        "leans": answering(lambda n: "A" if n % 3 else "B", position_bias=lambda n: 0.1 + 0.01 * (n % 2)),
        "fair": answering(lambda n: "A" if n % 3 else "B", position_bias=lambda n: 0.1 * (-1) ** n),
        "head": answering(lambda n: "A" if n % 3 else "B", position_bias=lambda n: 1e-9),
    }
    report = compare(programs, rows, [metrics.pairwise_accuracy()], candidate="first")
    told = details.position_findings(report.comparison)
    assert set(told) == {"first", "leans"}
    assert told["first"].startswith("first prefers the first text in 100% of 30 pairs, the labels in 67% (p = 0.002)")
    assert told["leans"].startswith("leans gives the first text 0.105 more for its place.")
    for one in told.values():
        assert "export_sft(..., both_orders=True)" in one
        assert one.replace("`", "") in report.html().replace("<code>", "").replace("</code>", "").replace("`", "")
    assert told["first"] in report.verdict
    assert told["leans"] not in report.verdict
    table = details.bias_table(report.comparison)
    assert table is not None
    assert {row[0]: row[-1].split()[0] for row in table.rows}["leans"] == "+0.105"


def test_markdown_escapes_what_would_be_markup(report, tmp_path):
    report.to_markdown(tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Titles &amp; more\n")
    assert "tuned &lt;b&gt;" in text
    assert "rival \\| one" in text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()[4:8]}
    assert len(widths) == 1
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[-1] == "## Not checked"
    assert "## Where the programs disagree: 12 of 30 items" in headings
    assert (
        "- rival | one, parse failure 1 ×: AnswerError: not a label: &lt;i&gt;hm&lt;/i&gt;".replace("|", "\\|") in text
    )


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
    assert blocks.figure(value) == text


def test_the_template_travels_with_the_package():
    assert (Path(pages.__file__).parent / "page.html.jinja").is_file()


# ---- numbers


@pytest.fixture(scope="module")
def prices() -> ComparisonReport:
    """Prices from 10 to 1000; the answers are off by 0, 30, 60, 90 ... in turn; two are no numbers."""
    rows = [dspy.Example(product=f"pump {n}", price=10.0 + 10 * n).with_inputs("product") for n in range(100)]

    def guess(product: str) -> dspy.Prediction:
        n = int(product.removeprefix("pump "))
        if n in (50, 51):
            return dspy.Prediction(price="dear")
        return dspy.Prediction(price=10.0 + 10 * n + 30 * (n % 4))

    def flat(product: str) -> dspy.Prediction:
        return dspy.Prediction(price="$100.00")

    wanted = [metrics.mean_absolute_error("price"), metrics.within("price", absolute=40, relative=0.2)]
    return compare({"tuned": guess, "flat": flat}, rows, wanted)


@pytest.mark.parametrize(
    ("truth", "predicted", "expected"),
    [
        (100, 140, "near"),
        (100, 141, "fair"),
        (100, 20, "fair"),
        (100, 19, "far"),
        (500, 599, "near"),
        (500, 701, "far"),
    ],
)
def test_a_number_is_near_within_20_percent_or_40(truth: float, predicted: float, expected: str):
    assert details.band(truth, predicted) == expected


def test_as_many_are_near_as_the_metric_within_counts(prices):
    counts = details.band_counts(details.guesses(prices.comparison, "tuned"))
    share = prices.rows[0].scores["within 20% or 40"].value
    assert counts["near"] == round(share * 100)
    assert sum(counts.values()) == 98
    page = prices.html()
    assert f"Of 98 answers {counts['near']} (" in page
    assert "2 answers that are no numbers are not shown" in page
    assert f"| tuned | {counts['near']} | {counts['fair']} | {counts['far']} |" in prices.markdown()


def test_the_scatter_holds_a_point_for_each_number_in_its_bands_colour(prices):
    svg = details.scatter(prices.comparison, "tuned", "s")
    assert svg is not None
    counts = details.band_counts(details.guesses(prices.comparison, "tuned"))
    looks: list[tuple[str, details.Band]] = [("--right", "near"), ("--none", "fair"), ("--wrong", "far")]
    for variable, band in looks:
        drawn = len(re.findall(rf"<use [^>]*style=\"[^\"]*var\({variable},", svg))
        # The legend shows one more of each band.
        assert drawn == counts[band] + 1
    assert prices.comparison.number_field == "price"


def test_scatters_beside_each_other_have_the_same_axes():
    rows = [dspy.Example(name=f"n{n}", price=10.0 + n).with_inputs("name") for n in range(40)]

    def near(name):
        return {"price": 11.0 + int(name[1:])}

    def far(name):
        return {"price": 1000.0 + int(name[1:])}

    found = compare({"near": near, "far": far}, rows, metrics.mean_absolute_error("price")).comparison
    texts = [re.findall(r"<text[^>]*>([^<]*)<", details.scatter(found, one, "s") or "") for one in ("near", "far")]
    axes = ["10", "100", "1,000", "true price", "10", "100", "1,000", "predicted price"]
    assert [one[: len(axes)] for one in texts] == [axes, axes]


def test_labels_are_no_numbers(report):
    assert report.comparison.number_field is None
    assert details.scatter(report.comparison, "tuned <b>", "s") is None


def test_what_counts_as_near_is_the_users_to_say(prices, tmp_path):
    strict = dataclasses.replace(prices, near=(0.0, 1.0))
    strict.to_json(tmp_path / "strict.json")
    again = ComparisonReport.from_json(tmp_path / "strict.json")
    assert again == strict
    assert "| tuned | 25 | 0 | 73 |" in again.markdown()


# ---- curves, cards, spending


def test_the_precision_recall_curve_is_scikit_learns():
    pairs = [(1.0, 0.9), (0.0, 0.8), (1.0, 0.8), (1.0, 0.3), (0.0, 0.2), (0.0, 0.1)]
    points = details.precision_recall_points(pairs)
    precision, recall, _ = sklearn.metrics.precision_recall_curve(
        [truth for truth, _ in pairs], [share for _, share in pairs]
    )
    # Ours begins at the highest threshold and has no point at recall 0.
    expected = list(zip(recall.tolist(), precision.tolist(), strict=True))[:-1][::-1]
    assert points == [pytest.approx(one) for one in expected]


class Trained:
    """Stands for a job that has ended."""

    def metrics(self) -> list[dict[str, Any]]:
        return [
            {
                "step": 0,
                "train_loss": None,
                "valid_loss": 0.5,
                "candidate": "learning rate 0.001",
            },  # before the training
            {"step": 1, "train_loss": 2.0, "valid_loss": None},
            {"step": 2, "train_loss": float("nan"), "valid_loss": 1.5},
            {"step": 3, "train_loss": 1.0, "valid_loss": 1.25},
        ]


def test_a_job_gives_its_training_and_validation_loss(report, tmp_path):
    known = {"sft": ((1.0, 2.0), (3.0, 1.0)), "sft, validation": ((2.0, 1.5), (3.0, 1.25))}
    assert loss_curves({"sft": Trained()}) == known
    told = compare({"a": Guesses(10)}, ROWS, [metrics.accuracy("liked")]).annotated(training={"sft": Trained()})
    assert told.training == known
    told.to_json(tmp_path / "told.json")
    assert ComparisonReport.from_json(tmp_path / "told.json") == told
    assert "sft, validation from 1.5 to 1.25 in 3 steps" in told.html()
    assert "- sft from 2 to 1 in 3 steps" in told.markdown()


def test_cards_tell_of_the_items_and_of_each_prompt_once():
    prompt = dspy_finetune.prompts.binary("Likes bees.", output="liked")
    tuned, untuned = (OpenAIPredictor(prompt, name, lm=DummyLM([{}])) for name in ("ft:mini:x", "mini"))
    program = dspy.ChainOfThought(dspy.Signature("title -> liked: bool", "Would they like it?"))
    program.predict.demos = [dspy.Example(title="Bees", liked=True)]
    comparison = compare({"a": Guesses(10)}, ROWS, [metrics.accuracy("liked")]).annotated(
        cards={"Data": {"items": "mine"}}
    )
    assert comparison.cards["Data"]["items"] == "mine"
    assert comparison.cards["Data"]["liked"] == "True: 15, False: 15"
    cards = prompt_cards({"tuned": tuned, "untuned": untuned, "few-shot": program, "rule": Guesses(2)})
    assert set(cards) == {"Prompt of tuned", "Prompt of few-shot"}
    card = cards["Prompt of tuned"]
    assert (card["asked by"], card["models"]) == ("tuned, untuned", "ft:mini:x, mini")
    assert "Likes bees." in card["system"]
    assert card["answer"] == "liked: true, false"
    assert cards["Prompt of few-shot"]["demonstrations"] == "1"


def test_free_texts_are_counted_not_listed_and_figures_are_cut():
    rows = [dspy.Example(q=f"q{n}", a=f"a long answer {n}").with_inputs("q") for n in range(5)]
    told = compare({"a": lambda q: dspy.Prediction(a="x")}, rows, [metrics.exact_match("a")])
    assert told.cards["Data"]["a"] == "5 different ones"
    answers = [Answer(outcome="answered", outputs={"p": p}, latency_ms=1.0) for p in (276.3912128, 45.0, 0.00012345)]
    assert [details.answer_text(one, "p") for one in answers] == ["276.39", "45", "0.00012345"]


def test_what_answers_cost_is_shown_where_prices_are_known():
    def answers(title: str) -> dspy.Prediction:
        prediction = dspy.Prediction(liked=True)
        prediction.set_lm_usage({"m": {"prompt_tokens": 1000, "completion_tokens": 0}})
        return prediction

    priced = compare(
        {"a": answers}, ROWS, [metrics.accuracy("liked")], running=RunOptions(usd_per_million_tokens={"a": (2.0, 8.0)})
    )
    assert "a 2.0000 USD" in priced.html()
    unpriced = compare({"a": answers}, ROWS, [metrics.accuracy("liked")])
    assert details.cost(unpriced.comparison, "x") is None


def test_every_parameter_of_compare_is_told():
    told = inspect.getdoc(compare) or ""  # without the indentation, which Python 3.13 leaves out by itself
    assert [name for name in inspect.signature(compare).parameters if f"    {name}: " not in told] == []


def test_parts_noise_and_bias_stand_on_the_page_and_in_markdown():
    rows = [
        dspy.Example(
            title_a="x" * (n + 1),
            title_b="y" * 5,
            price_a=n,
            price_b=5.5,
            preferred="AB"[n % 2],
            kind=["even", "odd"][n % 2],
        ).with_inputs("title_a", "title_b")
        for n in range(12)
    ]

    def dearer(title_a: str, title_b: str) -> dspy.Prediction:
        return dspy.Prediction(preferred="A" if len(title_a) > 6 else "B")

    told = compare(
        {"dearer": dearer, "first": lambda title_a, title_b: dspy.Prediction(preferred="A")},
        rows,
        [metrics.pairwise_accuracy()],
        statistics=StatisticsOptions(subgroups=["kind"], noise_floor=True),
    )
    table = details.bias_table(told.comparison)
    assert table is not None
    assert table.head == ("program", "prefers the first", "prefers the longer", "prefers the higher price")
    assert {row[0]: row[3].split()[0] for row in table.rows}["dearer"] == "1.000"
    for shown in (told.html(), told.markdown()):
        assert "By parts of the items" in shown
        assert "kind: odd" in shown
        assert "Each program against itself" in shown
        assert "prefers the higher price" in shown


def test_half_a_character_is_written_and_read_back(tmp_path):
    """Broken text holds lone surrogates, which UTF-8 does not have; the whole report was lost over one."""
    rows = [dspy.Example(title=f"half \ud83d {n}", liked=True).with_inputs("title") for n in range(3)]
    whole = compare({"a": lambda title: dspy.Prediction(liked=True)}, rows, [metrics.accuracy("liked")])
    whole.to_json(tmp_path / "report.json")
    assert ComparisonReport.from_json(tmp_path / "report.json") == whole
    whole.to_html(tmp_path / "report.html")
    whole.to_markdown(tmp_path / "report.md")


def test_a_failed_call_is_no_opinion_and_near_numbers_do_not_disagree():
    def fails(**inputs: object) -> dspy.Prediction:
        raise ConnectionError("gone")

    rows = [dspy.Example(n=n, price=100.0 + n).with_inputs("n") for n in range(5)]
    programs: dict[str, Any] = {
        "near": lambda n: dspy.Prediction(price=101.0 + n),
        "nearer": lambda n: dspy.Prediction(price=100.5 + n if n else 900.0),
        "fails": fails,
    }
    found = compare(programs, rows, [metrics.mean_absolute_error("price")]).comparison
    assert [(row.number, row.is_disputed) for row in details.item_list(found).items][:2] == [(1, True), (2, False)]
    assert difference_table(found).rows[1][5] == blocks.MISSING  # nothing was tested against what always fails


def test_a_text_of_many_thousand_characters_is_opened_on_demand_and_cut():
    """It would push every other item off the screen, and the page beyond any bearable size."""
    rows = [dspy.Example(title=f"{n} " + "long " * 2000, liked=True).with_inputs("title") for n in range(20)]
    page = compare({"a": lambda title: dspy.Prediction(liked=True)}, rows, [metrics.accuracy("liked")]).html()
    assert page.count("<details><summary>") == 20
    assert "(10,002 characters; the JSON report holds all)" in page
    assert 20 * 2000 < len(page) < 20 * 3000 + 60_000


def test_a_step_of_training_is_a_whole_number():
    svg = plots.losses({"job": [(1, 2.0), (2, 1.5), (3, 1.1)]}, "t")
    assert svg is not None
    assert "1.25" not in svg


def _drawn_size(svg: str | None) -> tuple[float, float]:
    """Width and height of the space between the axes of a picture."""
    assert svg is not None
    found = re.search(r'id="[^"]*patch_2">\s*<path d="([^"]*)"', svg)
    assert found is not None
    x, y = zip(*re.findall(r"([\d.]+) ([\d.]+)", found[1]), strict=True)
    return max(map(float, x)) - min(map(float, x)), max(map(float, y)) - min(map(float, y))


def test_many_long_names_leave_a_picture_its_size():
    """They took it for themselves: of the curves of two programs with long names a stamp was left."""
    points = [(0.0, 0.0), (0.5, 0.9), (1.0, 1.0)]

    def size(names: list[str]) -> list[float]:
        curves = [(name, place, points) for place, name in enumerate(names)]
        lines = [
            plots.SizedLine(label=name, points=[(n + 1, y, None, None) for n, (_, y) in enumerate(points)])
            for name in names
        ]
        roc = plots.unit_curves("r", curves, ("x", "y"), chance=((0, 1), (0, 1)))
        loss = plots.losses(dict.fromkeys(names, points), "l")
        sized = plots.draw(
            "s", (plots.WIDTH, 3.3 + 0.23 * len(names)), lambda axes: plots.paint_by_size(axes, lines, "y")
        )
        return [length for one in (roc, loss, sized) for length in _drawn_size(one)]

    few = size(["tuned", "base"])
    for many in (
        ["a program with a very long name " + end for end in "ab"],
        [f"a program with a long name {n}" for n in range(12)],
    ):
        assert size(many) == pytest.approx(few, rel=0.15)


def test_long_names_of_one_beginning_stay_apart_in_pictures():
    names = [f"gpt-4.1-mini-2025-04-14, optimized prompt {n}" for n in range(12)]
    assert len({plots.short(name) for name in names}) == 12
    assert max(len(plots.short(name)) for name in names) == 24


def test_a_program_keeps_its_colour_where_the_one_before_it_has_no_figure():
    def down(title: str) -> dspy.Prediction:
        raise ConnectionError("down")

    def likes(title: str) -> dspy.Prediction:
        return dspy.Prediction(liked=True)

    for programs, colours in (({"down": down, "b": likes}, {"1"}), ({"b": likes, "down": down}, {"0"})):
        svg = details.scores(compare(programs, ROWS, [metrics.accuracy("liked")]).comparison, "s")
        assert set(re.findall(r"--series-(\d)", str(svg))) == colours
        assert "down" in str(svg)
    assert details.scores(compare({"down": down}, ROWS, [metrics.accuracy("liked")]).comparison, "s") is None


def test_the_low_pictures_of_numbers_stand_first():
    """One above the other in the first of three columns: a tall one between them left a hole of half a screen."""
    rows = [dspy.Example(x=str(n), y=float(n)).with_inputs("x") for n in range(30)]
    programs = {"a": lambda x: dspy.Prediction(y=float(x) + 1), "b": lambda x: dspy.Prediction(y=15.0)}
    blocks_of = compare(programs, rows, [metrics.mean_absolute_error("y")]).section().blocks
    drawn = next(one for one in blocks_of if isinstance(one, blocks.Plots)).plots
    assert [one.name for one in drawn] == ["scores", "forest", "latency", "cost", "scatter0-", "scatter1-"]


def test_one_item_says_that_it_is_too_few_and_not_that_no_difference_was_seen():
    rows = [dspy.Example(x="1", y=True).with_inputs("x")]
    programs = {"a": lambda x: dspy.Prediction(y=True), "b": lambda x: dspy.Prediction(y=False)}
    report = compare(programs, rows, [metrics.accuracy("y")])
    assert str(report.verdict).endswith("The items are too few, or too much alike, to say how many more would decide.")


def test_names_in_any_script_are_drawn_without_a_warning():
    """A warning is an error here: matplotlib measures texts by a font of its own that lacks some."""
    rows = [dspy.Example(x=str(number), y=True).with_inputs("x") for number in range(9)]
    programs = {"模型 🎉": lambda x: dspy.Prediction(y=True), "b": lambda x: dspy.Prediction(y=x != "3")}
    assert "模型 🎉" in compare(programs, rows, [metrics.accuracy("y")]).html()


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, None, "good", "0.5", 10**400, np.ones(2), [1.0] * 999, dspy.Prediction(y=1)]
)
def test_what_is_no_score_is_named_by_metric_and_example(value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = [dspy.Example(x=str(number), y=True).with_inputs("x") for number in range(9)]

    def odd(example: Any, prediction: Any, trace: Any = None) -> Any:
        return value if example.x == "3" else 1.0

    with pytest.raises(UsageError, match=r"^odd, example 4 \(x='3'\): a metric returned .{,90}; it must") as caught:
        compare({"a": lambda x: dspy.Prediction(y=True)}, rows, [odd])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [1, True, np.float32(1), np.bool_(True), np.array(1.0), dspy.Prediction(score=1.0)])
def test_a_score_may_be_any_number(value: Any):
    rows = [dspy.Example(x=str(number), y=True).with_inputs("x") for number in range(9)]
    report = compare({"a": lambda x: dspy.Prediction(y=True)}, rows, lambda example, prediction, trace=None: value)
    assert report.rows[0].scores["<lambda>"].value == 1.0


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (metrics.accuracy("y"), "5 of 60 calls of a failed, which counts as not right."),
        (
            metrics.mean_absolute_error("p"),
            "leaves out 10 of 60 items of a, which have no answer or one that could not be read",
        ),
        (metrics.f1("y"), "10 of 60 items of a have no answer or one that could not be read, which counts as naming"),
    ],
)
def test_the_verdict_says_what_the_metric_makes_of_items_without_an_answer(metric: Any, told: str):
    """F1 of a program that does not answer where it would be wrong is 1: nobody should take that for skill."""
    rows = [dspy.Example(x=str(number), y=number % 2 == 1, p=1.0).with_inputs("x") for number in range(60)]

    def a(x: str) -> dspy.Prediction:
        if int(x) % 12 == 0:
            raise RuntimeError("lost")
        return dspy.Prediction(y="?" if int(x) % 12 == 2 else int(x) % 2 == 1, p="?" if int(x) % 12 == 2 else 1.0)

    programs = {"a": a, "b": lambda x: dspy.Prediction(y=int(x) % 2 == 1 or int(x) % 12 == 0, p=2.0)}
    assert told in str(compare(programs, rows, [metric]).verdict)
