"""A comparison: same items for all, three counts, a checkpoint that is never asked twice, and an honest verdict."""

import enum
import json
import tempfile
import threading
from collections.abc import Callable, Iterable
from typing import Any

import dspy
import numpy as np
import pytest
from dspy.utils.exceptions import AdapterParseError

from dspy_finetune.errors import AnswerError, DataError, EmptyDatasetError, FileError, RowError, UsageError
from dspy_finetune.evaluation import (
    CompareProgress,
    Comparison,
    ComparisonReport,
    RunOptions,
    compare,
    metrics,
    statistics,
)
from dspy_finetune.evaluation.collect import jsonable
from dspy_finetune.evaluation.comparison_report import verdict_sentence
from tests.evaluation.comparing import compare_programs

ROWS = [dspy.Example(title=f"title {n}", liked=n % 2 == 0).with_inputs("title") for n in range(40)]
RIGHT = metrics.accuracy("liked")


def number(title: str) -> int:
    return int(title.split()[1])


class Knows:
    """A program that knows the labels, except for the numbers it gets wrong; keeps what it was asked."""

    def __init__(self, wrong: Iterable[int] = (), raises: dict[int, BaseException] | None = None) -> None:
        self.wrong, self.raises = set(wrong), raises or {}
        self.asked: list[str] = []
        self.lock = threading.Lock()

    def __call__(self, title: str) -> dspy.Prediction:
        with self.lock:
            self.asked.append(title)
        if number(title) in self.raises:
            raise self.raises[number(title)]
        return dspy.Prediction(liked=(number(title) % 2 == 0) != (number(title) in self.wrong))


def test_wrong_unreadable_and_failed_are_three_counts():
    parse_error = AdapterParseError("ChatAdapter", dspy.Signature("title -> liked"), "mumble")
    program = Knows(
        wrong=[1, 2], raises={3: AnswerError("no label", text="hm"), 4: parse_error, 5: RuntimeError("reset\nby peer")}
    )
    found = compare_programs({"one": program}, ROWS, [RIGHT])
    row = found.programs[0]
    assert (row.n, row.n_wrong, row.n_parse_failures, row.n_failed) == (40, 2, 2, 1)
    assert row.scores["accuracy"].value == pytest.approx(35 / 40)
    assert found.answers["one"][5].error == "RuntimeError: reset"
    assert found.answers["one"][3].error == "AnswerError: no label"
    assert found.decisive is None


def test_a_program_that_was_read_on_the_easy_items_alone_is_not_the_best():
    """Its own mean is the least, and on the items that both answered it is behind."""
    prices = [10.0, 11.0, 12.0, 13.0, 14.0, 900.0, 800.0, 700.0]
    rows = [dspy.Example(title=str(n), price=price).with_inputs("title") for n, price in enumerate(prices)]

    def off_by(easy: float, hard: float | None) -> Callable[[str], dspy.Prediction]:
        def program(title: str) -> dspy.Prediction:
            error = easy if int(title) < 5 else hard
            return dspy.Prediction(price="no idea" if error is None else prices[int(title)] + error)

        return program

    programs = {"tuned": off_by(3, 100), "steady": off_by(4, 80), "partial": off_by(5, None)}
    error = metrics.mean_absolute_error("price")
    assert compare_programs(programs, rows, [error]).reference == "steady"
    del programs["steady"]
    verdict = verdict_sentence(compare_programs(programs, rows, [error]))
    assert "difference \N{MINUS SIGN}2.000" in verdict
    assert "n = 5 (what both have a figure for, of 8 and 5)" in verdict


def test_the_better_program_is_called_better_and_every_difference_is_paired():
    programs = {"tuned": Knows(wrong=[0]), "rival": Knows(wrong=range(12)), "coin": Knows(wrong=range(20))}
    found = compare_programs(programs, ROWS, [RIGHT])
    assert (found.candidate, found.reference, found.is_reference_chosen) == ("tuned", "rival", True)
    decisive = found.decisive
    assert decisive is not None
    assert decisive.verdict == "better"
    assert decisive.interval.value == pytest.approx(11 / 40)
    assert decisive.p_value == pytest.approx(2 * 0.5**11)  # eleven items, all on one side
    assert decisive.p_holm is not None
    assert decisive.p_holm == pytest.approx(decisive.p_value)  # the larger of two p-values keeps its size under Holm
    turned = compare_programs(programs, ROWS, [RIGHT], candidate="coin", reference="tuned").decisive
    assert turned is not None
    assert turned.verdict == "worse"


def test_a_small_difference_is_undecided_and_says_how_many_items_more():
    found = compare_programs({"a": Knows(wrong=[1]), "b": Knows(wrong=[2, 3])}, ROWS, [RIGHT]).decisive
    assert found is not None
    assert found.verdict == "undecided"
    assert found.n_more_items is not None
    assert found.n_more_items > 500


def test_a_margin_allows_equivalence():
    found = compare_programs({"a": Knows(wrong=[1]), "b": Knows(wrong=[1])}, ROWS, [RIGHT], margin=0.15).decisive
    assert found is not None
    assert found.verdict == "equivalent"


def test_all_kinds_of_metric_stand_side_by_side():
    class Shares:
        def __call__(self, title):
            share = 0.9 if number(title) % 2 == 0 else 0.2
            return dspy.Prediction(liked=share > 0.5, probability=share)

    def length(example, prediction, trace=None):
        return len(example.title) / 10

    found = compare_programs(
        {"sure": Shares(), "mute": Knows()},
        ROWS,
        [RIGHT, metrics.roc_auc("liked"), metrics.brier("liked"), metrics.f1("liked"), length],
        n_resamples=200,
    )
    scores = {row.name: row.scores for row in found.programs}
    assert scores["sure"]["ROC AUC"].value == 1.0
    assert scores["sure"]["Brier score"].value == pytest.approx((0.01 + 0.04) / 2)
    assert scores["mute"]["ROC AUC"].value is None
    assert scores["mute"]["Brier score"].n == 0
    assert scores["sure"]["length"].method == "t"
    assert [metric.kind for metric in found.metrics] == ["proportion", "set", "mean", "set", "mean"]
    assert any("Brier score of mute leaves out 40 of 40" in one for one in found.not_checked)
    assert found.positive is True


def test_the_same_seed_gives_the_same_numbers():
    programs = {"a": Knows(wrong=range(5)), "b": Knows(wrong=range(3, 15))}
    one, two = (compare_programs(programs, ROWS, [metrics.f1("liked")], n_resamples=200) for _ in range(2))
    assert one.differences == two.differences


def test_a_resumed_comparison_asks_nothing_twice_and_finds_the_same(tmp_path):
    path = tmp_path / "deep" / "answers.jsonl"
    first, gate = Knows(wrong=[1, 2, 3]), threading.Event()

    def slow_after_ten(title):
        if number(title) >= 10:
            gate.wait(5)
        return first(title=title)

    def interrupt(progress):  # as Ctrl-C reaches the main thread
        if progress.n_done == 10:
            threading.Timer(0.2, gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_programs({"a": slow_after_ten}, ROWS, [RIGHT], checkpoint=path, num_threads=2, on_progress=interrupt)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert len([row for row in kept if "outcome" in row]) == len(first.asked) < 15  # the two calls in flight are kept
    with path.open("ab") as stream:
        stream.write(b'{"program": "a", "item": "torn')  # as a crash in the middle of a line leaves it
    resumed = Knows(wrong=[1, 2, 3])
    told: list[CompareProgress] = []
    found = compare_programs({"a": resumed}, ROWS, [RIGHT], checkpoint=path, on_progress=told.append)
    assert sorted(first.asked + resumed.asked) == sorted(row.title for row in ROWS)
    fresh = compare_programs({"a": Knows(wrong=[1, 2, 3])}, ROWS, [RIGHT])
    assert found.programs[0].scores == fresh.programs[0].scores
    assert found.item_scores == fresh.item_scores
    assert (told[-1].n_done, told[-1].n_total, told[-1].n_resumed) == (40, 40, len(first.asked))
    again = Knows()
    compare_programs({"a": again}, ROWS, [RIGHT], checkpoint=path)
    assert again.asked == []


def test_what_failed_is_asked_again_unless_told_otherwise(tmp_path):
    path = tmp_path / "answers.jsonl"
    raises: dict[int, BaseException] = {3: RuntimeError("down"), 4: AnswerError("no label", text="hm")}
    compare_programs({"a": Knows(raises=raises)}, ROWS, [RIGHT], checkpoint=path)
    leave = Knows()
    compare_programs({"a": leave}, ROWS, [RIGHT], checkpoint=path, retry_failed=False)
    assert leave.asked == []
    retry = Knows()
    assert compare_programs({"a": retry}, ROWS, [RIGHT], checkpoint=path).programs[0].n_failed == 0
    assert retry.asked == ["title 3"]


def _raises(example, prediction, trace=None):
    return len(prediction["lost"]) if number(example.title) == 3 else 1.0


def _raises_over_all(expected, predicted):
    raise ZeroDivisionError("no\nitems")


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (_raises, r"^ raises, example 4 \(title='title 3'\): the metric raised KeyError: 'lost'; mend it, or let it "),
        (
            metrics.SetMetric(name="mine", field="liked", function=_raises_over_all),
            "^mine: the metric raised ZeroDivisionError: no for 40 items; mend it",
        ),
    ],
)
def test_no_answer_is_lost_when_a_metric_breaks(tmp_path, monkeypatch, caplog, metric, said):
    """Neither those in a checkpoint nor those without one; what would be asked again for the noise is not yet asked."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fresh = compare_programs({"one": Knows(wrong=[5])}, ROWS, [RIGHT])

    program = Knows(wrong=[5])
    with pytest.raises(UsageError, match=said):
        compare_programs({"one": program}, ROWS, [metric], noise_floor=True)
    assert len(program.asked) == 40
    path = caplog.records[-1].getMessage().partition(" kept in ")[2].partition(";")[0]
    again = Knows(wrong=[5])
    assert compare_programs({"one": again}, ROWS, [RIGHT], checkpoint=path).item_scores == fresh.item_scores
    with pytest.raises(UsageError, match=said):
        compare_programs({"one": again}, ROWS, [metric], checkpoint=path)
    assert again.asked == []
    assert len(list(tmp_path.iterdir())) == 1, "the checkpoint is enough"


def test_another_file_is_not_taken_for_a_checkpoint(tmp_path):
    path = tmp_path / "titles.jsonl"
    path.write_text('{"title": "Tides"}\n')
    with pytest.raises(RowError, match=r"titles.jsonl:1.*not a checkpoint"):
        compare_programs({"a": Knows()}, ROWS, [RIGHT], checkpoint=path)
    with pytest.raises(FileError):
        compare_programs({"a": Knows()}, ROWS, [RIGHT], checkpoint=tmp_path)


def test_equal_items_are_asked_one_by_one(tmp_path):
    rows, program = [ROWS[0]] * 3, Knows()
    found = compare_programs({"a": program}, rows, [RIGHT], checkpoint=tmp_path / "c.jsonl")
    assert (len(program.asked), found.programs[0].n) == (3, 3)


def test_usage_is_kept_per_program_and_settings_stay_as_they_are():
    lm = dspy.utils.DummyLM([{"liked": "True"}] * 100)

    class Spends(dspy.Module):
        def forward(self, title):
            assert dspy.settings.track_usage
            assert dspy.settings.disable_history
            assert dspy.settings.lm is lm  # the caller's context reaches the worker threads
            dspy.settings.usage_tracker.add_usage("m", {"prompt_tokens": 7, "completion_tokens": 2})
            if title == "title 3":
                raise AnswerError("no label", text="hm")  # was paid for all the same
            return dspy.Prediction(liked=True)

    before = dict(dspy.settings.config)
    with dspy.context(lm=lm):
        found = compare_programs(
            {"a": Spends(), "b": Knows()}, ROWS, [RIGHT], usd_per_million_tokens={"a": (1.0, 10.0), "b": (1.0, 1.0)}
        )
    assert dict(dspy.settings.config) == before
    spends, free = found.programs
    assert (spends.n_failed, spends.prompt_tokens, spends.completion_tokens) == (0, 280, 80)
    assert spends.cost_usd == pytest.approx((280 + 800) / 1e6)
    assert found.answers["a"][3].cost_usd == pytest.approx((7 + 20) / 1e6)
    assert (free.prompt_tokens, free.cost_usd) == (None, None)


def test_a_program_that_is_set_up_wrongly_stops_the_comparison():
    with pytest.raises(UsageError, match="no host"):
        compare_programs({"a": Knows(raises={7: UsageError("no host")})}, ROWS, [RIGHT])


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"examples": []}, EmptyDatasetError, "no examples"),
        ({"examples": [dspy.Example(title="x", liked=True)]}, UsageError, "with_inputs"),
        ({"examples": [{"title": "x"}]}, UsageError, "example 1"),
        ({"programs": {}}, UsageError, "at least one program"),
        ({"programs": {"a": "model-name"}}, UsageError, "cannot be called"),
        ({"metrics": []}, UsageError, "at least one metric"),
        ({"metrics": [RIGHT, RIGHT]}, UsageError, "different names"),
        ({"reference": "b"}, UsageError, "not among the programs: a"),
        ({"reference": "a"}, UsageError, "at once"),
        ({"confidence": 95}, UsageError, "0.95"),
        ({"n_resamples": 0}, UsageError, "n_resamples must be 1 or more"),
        ({"noise_floor": -3}, UsageError, "noise_floor 0 or more"),
        ({"margin": 0}, UsageError, "margin is a difference"),
    ],
)
def test_a_wrong_argument_is_named(change, error, said):
    arguments = {"programs": {"a": Knows()}, "examples": ROWS, "metrics": [RIGHT], **change}
    with pytest.raises(error, match=said):
        compare_programs(**arguments)


def test_json_keeps_everything():
    found = compare_programs({"a": Knows(wrong=[1]), "b": Knows()}, ROWS, [RIGHT, metrics.f1("liked")], n_resamples=150)
    assert Comparison.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(DataError, match="not a comparison"):
        Comparison.from_dict({"format": 99})


def test_programs_that_were_read_on_no_item_in_common_show_no_difference():
    rows = [dspy.Example(x=str(n), y=float(n)).with_inputs("x") for n in range(20)]
    programs = {
        "even": lambda x: dspy.Prediction(y="?" if int(x) % 2 else x),
        "odd": lambda x: dspy.Prediction(y=x if int(x) % 2 else "?"),
    }
    found = compare_programs(programs, rows, [metrics.mean_absolute_error("y")])
    assert "n = 0 (what both have a figure for, of 10 and 10). The two have no figure in common" in verdict_sentence(
        found
    )


def test_shared_texts_are_told_as_dependence():
    rows = [
        dspy.Example(a=f"t{n // 2}", b=f"u{n}", topic="same", preferred="A").with_inputs("a", "b", "topic")
        for n in range(10)
    ]

    def always_a(**inputs: str) -> dspy.Prediction:
        return dspy.Prediction(preferred="A")

    found = compare_programs({"x": always_a}, rows, [metrics.pairwise_accuracy()])
    assert any("10 of 10 share a text" in one for one in found.not_checked)


def test_values_become_what_json_can_hold():
    class Scalar:
        def item(self):
            return 1.5

    value = {True: (1, {2}), "n": float("nan"), "s": Scalar(), "o": object}
    assert jsonable(value) == {"true": [1, [2]], "n": "nan", "s": 1.5, "o": str(object)}


@pytest.mark.parametrize(
    ("metric", "label", "said"),
    [
        (metrics.accuracy("like"), True, '"like"'),
        (metrics.accuracy("liked"), None, "example 40: accuracy"),
        (metrics.root_mean_squared_error("liked"), "dear", "example 40: root mean squared error"),
        (metrics.brier("liked"), "maybe", "positive"),
        (metrics.roc_auc("liked"), "maybe", "positive"),
    ],
)
def test_what_labels_make_impossible_is_told_before_any_program_is_asked(metric, label, said):
    """Told only when scores are counted, a wrong name would cost every answer."""
    program = Knows()
    with pytest.raises((UsageError, DataError), match=said):
        compare_programs({"a": program}, [*ROWS[:39], ROWS[39].copy(liked=label).with_inputs("title")], [metric])
    assert program.asked == []


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


def test_labels_of_an_enum_are_right_in_a_resumed_comparison_too(tmp_path):
    rows = [dspy.Example(title=f"title {n}", colour=Colour.RED).with_inputs("title") for n in range(3)]
    programs = {"red": lambda title: dspy.Prediction(colour=Colour.RED)}
    for _ in range(2):
        found = compare_programs(programs, rows, [metrics.accuracy("colour")], checkpoint=tmp_path / "answers.jsonl")
        assert found.programs[0].scores["accuracy"].value == 1.0
    assert Comparison.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_few_items_that_are_all_right_are_no_certainty():
    """All resamples of nothing but right answers are right: the bootstrap sees no spread, and gives no interval."""
    found = compare_programs({"a": Knows(), "b": Knows(wrong=[0])}, ROWS[:6], [metrics.f1("liked")])
    whole = found.programs[0].scores["F1"]
    assert (whole.value, whole.low, whole.method) == (1.0, None, "none")


def test_three_items_are_no_proof_whatever_the_bootstrap_says():
    """All of them right against all of them wrong: resamples agree, but so do three coins in 1 of 4 cases."""
    rows = [dspy.Example(title=f"title {n}", liked=True).with_inputs("title") for n in (0, 2, 4)]
    found = compare_programs({"a": Knows(), "b": Knows(wrong=[0, 2, 4])}, rows, [metrics.f1("liked")])
    assert found.decisive is not None
    assert (found.decisive.p_value, found.decisive.verdict) == (0.25, "undecided")
    alike = compare_programs({"a": Knows(), "b": Knows()}, ROWS, [metrics.f1("liked")], margin=0.1)
    assert alike.decisive is not None
    assert alike.decisive.verdict == "equivalent"


@pytest.mark.parametrize(
    ("metric", "is_known"),
    [(metrics.token_f1("said"), True), (metrics.f1("liked"), True), (metrics.mean_absolute_error("price"), False)],
)
@pytest.mark.parametrize("n", [12, 200])
def test_the_same_score_on_every_item_is_no_certainty(metric, is_known, n):
    """The interval is that of no item in n."""
    rows = [row.copy(said="yes", price=2.0).with_inputs("title") for row in (ROWS * 5)[:n]]
    rows = [row.copy(title=f"title {number}").with_inputs("title") for number, row in enumerate(rows)]
    programs = dict.fromkeys("ab", lambda title: dspy.Prediction(liked=number(title) % 2 == 0, said="yes", price=3.0))
    for groups in (None, lambda row: number(row.title) // 2):
        found = compare_programs(programs, rows, [metric], margin=0.05, group_by=groups).decisive
        assert found is not None
        reach = statistics.wilson(0, n if groups is None else n // 2, found.confidence).high or 0.0
        assert found.interval.high == (pytest.approx(reach) if is_known else None)
        assert found.interval.low == (pytest.approx(-reach) if is_known else None)
        assert found.verdict == ("equivalent" if is_known and reach < 0.05 else "undecided")
        assert found.p_value == 1.0


def down(title: str) -> dspy.Prediction:
    raise ConnectionError("the server is down")


def test_a_program_that_never_answers_is_not_beaten():
    """All of its calls fail, which says nothing of its answers: there is no verdict, and the first error is told."""
    report = compare({"tuned": Knows(), "plain": down}, ROWS, [RIGHT, metrics.f1("liked")])
    assert (report.outcome, report.exit_code) == ("not compared", 1)
    assert report.verdict.startswith(
        "plain was not compared: 40 of 40 calls failed, the first with ConnectionError: the server is down."
    )
    assert "better" not in report.verdict
    assert {one.verdict for one in report.differences} == {"not compared"}
    assert [one.p_value for one in report.differences] == [None, None]
    assert report.rows[1].scores["accuracy"].value is None
    assert ComparisonReport.from_dict(json.loads(json.dumps(report.to_dict()))).exit_code == 1
    turned = compare({"plain": down, "tuned": Knows()}, ROWS, [RIGHT])
    assert (turned.outcome, turned.exit_code) == ("not compared", 1)
    alone = compare({"plain": down}, ROWS, [RIGHT])
    assert (alone.outcome, alone.exit_code) == (None, 1)
    assert "There is no verdict." in alone.verdict


def test_the_others_are_compared_without_a_program_that_does_not_answer():
    programs: dict[str, Any] = {"tuned": Knows(), "plain": down, "weak": Knows(wrong=range(20))}
    report = compare(programs, ROWS, [RIGHT])
    assert report.comparison.reference == "weak"
    decisive = report.comparison.decisive
    assert decisive is not None
    assert (decisive.verdict, decisive.p_holm) == ("better", decisive.p_value)  # one test, nothing to correct
    assert "plain was not compared" in report.verdict
    assert "tuned is better than weak" in report.verdict
    assert report.exit_code == 1


@pytest.mark.parametrize(("n_failed", "is_compared"), [(4, True), (5, False)])
def test_a_tenth_of_the_calls_may_fail(n_failed, is_compared):
    flaky = Knows(raises={n: TimeoutError("slow") for n in range(n_failed)})
    report = compare({"tuned": Knows(), "flaky": flaky}, ROWS, [RIGHT])
    assert (report.outcome != "not compared") is is_compared
    assert f"{n_failed} of 40 calls" in report.verdict
    patient = RunOptions(max_failed_share=0.5)
    assert compare({"tuned": Knows(), "flaky": flaky}, ROWS, [RIGHT], running=patient).outcome != "not compared"


def test_a_verdict_on_a_program_that_can_hardly_be_read_says_so():
    mumbles = Knows(raises={n: AnswerError("no label", text="hm") for n in range(21)})
    report = compare({"tuned": Knows(), "mumbles": mumbles}, ROWS, [RIGHT])
    assert report.outcome == "better"
    assert "Most answers of mumbles could not be read (21 of 40 are parse failures)" in report.verdict


def test_a_dspy_program_without_a_model_is_told_before_anything_is_asked():
    asked = Knows()
    for lacking in (dspy.Predict("title -> liked: bool"), dspy.ChainOfThought("title -> liked: bool")):
        with pytest.raises(UsageError, match=r'"plain" has no language model: .*load_optimized\(\.\.\., lm='):
            compare({"tuned": asked, "plain": lacking}, ROWS, [RIGHT])
    assert asked.asked == []
    with dspy.context(lm=dspy.utils.DummyLM([{"liked": "True"}] * 80)):
        plain = dspy.Predict("title -> liked: bool")
        assert compare({"tuned": asked, "plain": plain}, ROWS, [RIGHT]).outcome == "better"


def test_no_verdict_contradicts_the_interval_that_is_shown():
    """Heavy tails, several baselines, small samples, margins: the rule holds for every difference of every metric."""
    rng = np.random.default_rng(0)
    seen = set()
    for round_ in range(25):
        n = int(rng.integers(4, 60))
        rows = [
            dspy.Example(title=str(k), price=float(rng.exponential(50)), liked=bool(k % 2)).with_inputs("title")
            for k in range(n)
        ]
        truth = {row.title: row for row in rows}

        def program(noise: float, tail: float, right: float, seed: int, truth: Any = truth) -> Any:
            def answer(title: str) -> dspy.Prediction:
                own = np.random.default_rng([seed, int(title)])
                price = truth[title].price + own.normal(0, noise) * (tail if own.random() < 0.05 else 1)
                said = truth[title].liked if own.random() < right else not truth[title].liked
                return dspy.Prediction(price=price, liked=said, probability=0.8 if said else 0.2)

            return answer

        programs = {f"p{k}": program(10.0 + 10 * k, 30.0, 0.9 - 0.1 * k, round_ * 7 + k) for k in range(4)}
        chosen = [metrics.accuracy("liked"), metrics.mean_absolute_error("price"), metrics.f1("liked")]
        found = compare_programs(programs, rows, chosen, n_resamples=200, margin=0.3, subgroups=["liked"])
        for one in found.differences:
            low, high, value = one.interval.low, one.interval.high, one.interval.value
            excludes = low is not None and high is not None and not low <= 0 <= high
            if one.verdict == "equivalent":
                assert low is not None
                assert high is not None
                assert -0.3 < low <= high < 0.3
            else:
                assert (
                    excludes == (one.verdict in ("better", "worse")) == (one.p_holm is not None and one.p_holm <= 0.05)
                )
            if value is not None and low is not None and high is not None:
                assert low <= value <= high
            seen.add(one.verdict)
        for part in found.subgroups:
            assert part.difference is not None
            low, high = part.difference.low, part.difference.high
            excludes = low is not None and high is not None and not low <= 0 <= high
            assert excludes == (part.p_holm is not None and part.p_holm <= 0.05)
    assert seen >= {"better", "undecided"}


def test_one_metric_needs_no_list_and_programs_need_names():
    def same(example, prediction, trace=None):
        return float(example.liked == prediction.liked)

    alone = compare({"one": Knows(wrong=[1])}, ROWS, same).comparison
    assert alone.programs[0].scores["same"].value == pytest.approx(39 / 40)
    with pytest.raises(UsageError, match=r'compare\(\{"tuned": tuned\}'):
        compare(Knows(), ROWS, [same])  # type: ignore[arg-type]
