"""Ensembles: each rule by hand, members that fail, threads, async, saving."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune.predictors.calibrate import sigmoid

from .conftest import ChatServer


def says(answer: Any, share: float | None = None, field: str = "liked") -> Any:
    """A callable that always answers so; `share` is its probability of True."""

    def member(title: str) -> dspy.Prediction:
        if share is None:
            return dspy.Prediction(**{field: answer})
        return dspy.Prediction(**{field: answer}, probabilities={True: share, False: 1 - share})

    return member


def fails(title: str) -> dspy.Prediction:
    raise ConnectionError("the line is dead")


def mumbles(title: str) -> dspy.Prediction:
    raise ft.errors.AnswerError("neither true nor false", text="maybe")


def test_probabilities_are_averaged_by_weight() -> None:
    members = [says(True, 0.9), says(False, 0.2), says(False, 0.3)]
    plain = ft.Ensemble(members, output="liked")(title="x")
    assert (plain.liked, plain.probability) == (False, pytest.approx(1.4 / 3))
    assert plain.probabilities == pytest.approx({True: 1.4 / 3, False: 1.6 / 3})
    assert plain.disagreement == pytest.approx(1 / 3)
    weighted = ft.Ensemble(members, weights=[2, 1, 1], output="liked")(title="x")
    assert (weighted.liked, weighted.probability) == (True, pytest.approx(2.3 / 4))
    assert ft.Ensemble(members, output="liked", threshold=0.4)(title="x").liked is True


def test_a_member_without_a_probability_is_a_whole_vote() -> None:
    mixed = ft.Ensemble([says(True, 0.6), says(False)], output="liked")(title="x")
    assert mixed.probability == pytest.approx(0.3)
    bare = ft.Ensemble([says(True), says(True), says(False)], output="liked")(title="x")
    assert (bare.liked, bare.probability, bare.agreement) == (True, None, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    "answers", [("A", "B", "A"), ("a", "the", "a"), (True, False, True), (3, 4, 3), (0, 1, 0), ("true", False, True)]
)
def test_the_majority_wins_whatever_the_labels_are(answers: tuple[Any, ...]) -> None:
    """Also where dspy.majority drops the label ("A", "a", "the") or raises (True, 3)."""
    found = ft.Ensemble([says(answer) for answer in answers], voting="majority", output="liked")(title="x")
    assert str(found.liked).lower() == str(answers[0]).lower()
    assert isinstance(found.liked, bool) == any(isinstance(answer, bool) for answer in answers)
    assert (found.agreement, found.disagreement) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found.is_tie is False


def test_ties_are_decided_by_probability_and_not_by_order() -> None:
    members = [says(True, 0.55), says(False, 0.1)]
    for order in (members, members[::-1]):
        found = ft.Ensemble(order, voting="majority", output="liked")(title="x")
        assert (found.liked, found.is_tie) == (False, True)


def test_the_median_of_numbers() -> None:
    members = [says(number, field="price") for number in (10, 12.5, 1000)]
    found = ft.Ensemble(members, voting="median", output="price")(title="x")
    assert (found.price, found.samples) == (12.5, [10.0, 12.5, 1000.0])
    assert found.disagreement == pytest.approx((2.5 + 987.5) / 3)
    assert ft.Ensemble(members, voting="median", output="price", weights=[3, 1, 1])(title="x").price == 10
    assert ft.Ensemble(members[:2], voting="median", output="price")(title="x").price == 11.25
    odd = ft.Ensemble([*members, says("a lot", field="price")], voting="median", output="price")(title="x")
    assert (odd.price, odd.n_parse_failures) == (12.5, 1)


def test_members_that_fail_are_counted_and_the_others_decide() -> None:
    found = ft.Ensemble([fails, says(True, 0.8), mumbles, says("perhaps"), says(None)], output="liked")(title="x")
    # "perhaps" is no label of a yes/no question, but no member says what the labels are.
    assert (found.n_members, found.n_failed, found.n_parse_failures) == (5, 1, 2)
    tuned_first = ft.Ensemble([says(True, 0.8), fails, mumbles], output="liked", min_members=1)(title="x")
    assert (tuned_first.liked, tuned_first.n_failed, tuned_first.n_parse_failures) == (True, 1, 1)


def test_too_few_answers_are_an_error_with_its_cause() -> None:
    with pytest.raises(
        ft.errors.HostError, match=r"0 of 2 members answered.*ConnectionError: the line is dead"
    ) as failed:
        ft.Ensemble([mumbles, fails], output="liked")(title="x")
    assert isinstance(failed.value.__cause__, ConnectionError)
    with pytest.raises(ft.errors.AnswerError, match="0 of 2 members") as unread:
        ft.Ensemble([mumbles, mumbles], output="liked")(title="x")
    assert unread.value.text == "maybe"
    with pytest.raises(ft.errors.HostError, match="1 of 2 members answered, min_members is 2"):
        ft.Ensemble([says(True), fails], output="liked", min_members=2)(title="x")


def test_a_wrong_setup_is_raised_at_once() -> None:
    def lacks(title: str) -> Any:
        raise ft.errors.MissingExtraError("pip install it")

    with pytest.raises(ft.errors.MissingExtraError):
        ft.Ensemble([says(True), lacks], output="liked")(title="x")
    with pytest.raises(ft.errors.UsageError, match='no field "other", only liked'):
        ft.Ensemble([says(True)], output="other")(title="x")
    wrong: list[dict[str, Any]] = [
        {"weights": [1]}, {"weights": [1, 0]}, {"voting": "mean"}, {"min_members": 3}, {"output": None},
        {"threshold": 2},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(ft.errors.UsageError):
            ft.Ensemble([says(True), says(False)], **{"output": "liked", **options})
    with pytest.raises(ft.errors.UsageError, match="at least one"):
        ft.Ensemble([])


lm_seen: list[Any] = []


def notes_lm(title: str) -> dspy.Prediction:
    lm_seen.append((dspy.settings.lm, threading.current_thread().name))
    time.sleep(0.2)
    return dspy.Prediction(liked=True)


class Waits(dspy.Module):
    async def aforward(self, title: str) -> dspy.Prediction:
        lm_seen.append((dspy.settings.lm, "async"))
        await asyncio.sleep(0.2)
        return dspy.Prediction(liked=True)


def test_members_are_asked_at_the_same_time_in_the_callers_context() -> None:
    """Five members of 0.2 s take well under one second, in threads and in async, and see dspy.context's lm."""
    sync = ft.Ensemble([notes_lm] * 5, output="liked")
    mixed = ft.Ensemble([Waits(), notes_lm, Waits(), notes_lm, Waits()], output="liked")
    marker = dspy.LM("openai/marker", api_key="k")
    with dspy.context(lm=marker):
        for is_async in (False, True):
            lm_seen.clear()
            start = time.perf_counter()
            found = asyncio.run(mixed.acall(title="x")) if is_async else sync(title="x")
            assert found.liked is True
            assert time.perf_counter() - start < 0.8
            assert [lm for lm, _ in lm_seen] == [marker] * 5


def test_async_gives_what_sync_gives() -> None:
    ensemble = ft.Ensemble([says(True, 0.9), fails, says(False, 0.3)], output="liked")
    assert dict(asyncio.run(ensemble.acall(title="x")).items()) == dict(ensemble(title="x").items())


def taste_rows(n: int) -> list[Any]:
    generator = random.Random(5)
    rows = []
    for number in range(n):
        worth = generator.gauss(0, 1)
        rows.append(
            dspy.Example(
                title=f"{number}", worth=worth, is_favorite=generator.random() < sigmoid(2 * worth)
            ).with_inputs("worth")
        )
    return rows


def knows(worth: float) -> dspy.Prediction:
    share = sigmoid(6 * worth)  # much too sure
    return dspy.Prediction(is_favorite=share >= 0.5, probabilities={"true": share, "false": 1 - share})


def guesses(worth: float) -> dspy.Prediction:
    share = 0.9 if f"{worth:.6f}"[-1] in "13579" else 0.1
    return dspy.Prediction(is_favorite=share >= 0.5, probabilities={True: share, False: 1 - share})


def test_stacking_learns_whom_to_believe(tmp_path: Path) -> None:
    """Better log loss than the plain mean on other rows; saved and loaded with the program."""
    rows = taste_rows(400)
    stacked = ft.Ensemble([guesses, knows], voting="stack", output="is_favorite")
    with pytest.raises(ft.errors.UsageError, match="not fitted"):
        stacked(worth=1.0)
    stacked.fit(rows[:200])
    mean = ft.Ensemble([guesses, knows], output="is_favorite")

    def score(program: Any) -> float:
        return -sum(math.log(program(**row.inputs()).probabilities[row.is_favorite]) for row in rows[200:]) / 200

    assert score(stacked) < score(mean)
    stacked.save(tmp_path / "stacked.json")
    fresh = ft.Ensemble([guesses, knows], voting="stack", output="is_favorite")
    fresh.load(tmp_path / "stacked.json")
    assert fresh(worth=0.4).probability == stacked(worth=0.4).probability
    assert isinstance(fresh(worth=0.4).is_favorite, bool)
    with pytest.raises(ft.errors.DataError, match="at least 20 examples"):
        stacked.fit(rows[:10])
    with pytest.raises(ft.errors.UsageError, match="fit is for"):
        mean.fit(rows)


def test_stacking_goes_on_without_a_member() -> None:
    is_down = False

    def sometimes(worth: float) -> dspy.Prediction:
        if is_down:
            raise ConnectionError
        return guesses(worth)

    stacked = ft.Ensemble([sometimes, knows], voting="stack", output="is_favorite").fit(taste_rows(100))
    is_down = True
    found = stacked(worth=2.0)
    assert (found.is_favorite, found.n_failed) == (True, 1)


def test_tuned_predictors_inside_are_saved_loaded_and_listed(chat: ChatServer, tmp_path: Path) -> None:
    def build(model: str) -> ft.Ensemble:
        tuned = [
            ft.OpenAIPredictor(ft.prompts.binary(), f"{model}{number}", host=chat.host, cache=False)
            for number in (1, 2)
        ]
        return ft.Ensemble([*tuned, dspy.Predict("title -> is_favorite: bool")], weights=[2, 1, 1])

    class Program(dspy.Module):
        def __init__(self, model: str) -> None:
            super().__init__()
            self.judge = build(model)

    program = Program("ft:old")
    assert [name for name, _ in program.named_predictors()] == ["judge.members[2]"]
    program.save(tmp_path / "program.json")
    fresh = Program("ft:new")
    fresh.judge.settings["weights"] = [1.0, 1.0, 1.0]
    fresh.load(tmp_path / "program.json")
    loaded: list[Any] = fresh.judge.members
    assert [member.model for member in loaded[:2]] == ["ft:old1", "ft:old2"]
    assert fresh.judge.settings["weights"] == [2.0, 1.0, 1.0]
    assert fresh.judge.output == "is_favorite"
    copy: Any = fresh.deepcopy()
    assert copy.judge.members[0].model == "ft:old1"
    ensemble = ft.Ensemble(fresh.judge.members[:2])
    with dspy.context(track_usage=True):
        prediction = ensemble(title="x")
    assert prediction.probability == pytest.approx(0.9)
    assert sum(usage["total_tokens"] for usage in prediction.get_lm_usage().values()) == 24


def test_settings_of_another_module_are_refused(tmp_path: Path) -> None:
    ft.Ensemble([says(True)], output="liked").save(tmp_path / "x.json")
    cascade = ft.Cascade([says(True), says(True)], output="liked")
    with pytest.raises(ft.errors.DataError, match="are of 'Ensemble', not of 'Cascade'"):
        cascade.load(tmp_path / "x.json")


def test_classical_and_tuned_members_agree_on_what_a_label_is(chat: ChatServer) -> None:
    """A baseline writes the keys of its probabilities as text, a tuned predictor has values."""
    train = [dspy.Example(title=f"owls {n}" if n % 2 else f"golf {n}", is_favorite=bool(n % 2)) for n in range(30)]
    tuned = ft.OpenAIPredictor(ft.prompts.binary(), "m", host=chat.host, cache=False)
    baseline = ft.baselines.tfidf_logistic(train, text=["title"], label="is_favorite")
    orders: list[list[Any]] = [[tuned, baseline], [baseline, tuned]]
    for members in orders:
        found = ft.Ensemble(members)(title="owls at night")
        assert found.is_favorite is True
        assert found.probability == pytest.approx((0.9 + baseline(title="owls at night").probability) / 2)


@pytest.mark.parametrize(
    "shares", [{"A": 60, "B": 40}, {"A": 0.9, "B": 0.8}, {"A": float("nan"), "B": 0.5}, {"A": "sure", "B": 0.1}]
)
def test_numbers_that_are_no_probabilities_are_not_averaged(shares: dict[str, Any]) -> None:
    """A program may let a model write them."""
    members = [lambda q: {"out": "A", "probabilities": shares}, lambda q: {"out": "B", "probabilities": {"B": 1.0}}]
    found = ft.Ensemble(members, output="out")(q="x")
    assert (found.out, found.probability, found.n_parse_failures) == ("B", 1.0, 1)


def test_an_int_that_equals_a_bool_makes_no_tie_with_it() -> None:
    members = [lambda q: {"out": True}, lambda q: {"out": 1}, lambda q: {"out": False}, lambda q: {"out": True}]
    found = ft.Ensemble(members, voting="majority", output="out")(q="x")
    assert (found.out, found.is_tie, found.n_parse_failures, found.agreement) == (True, False, 1, pytest.approx(2 / 3))


def test_what_is_no_number_has_no_part_in_the_median() -> None:
    members = [lambda q: {"out": float("nan")}, lambda q: {"out": 4}, lambda q: {"out": 6}, lambda q: {"out": math.inf}]
    found = ft.Ensemble(members, voting="median", output="out")(q="x")
    assert (found.out, found.disagreement, found.n_parse_failures) == (5.0, 1.0, 2)


def test_members_that_give_no_prediction_are_told() -> None:
    with pytest.raises(ft.errors.UsageError, match=r"a dspy.Prediction or a mapping.*found 'A'"):
        ft.Ensemble([lambda q: "A"], output="out")(q="x")
    found = ft.Ensemble([lambda q: None, lambda q: {"out": "A"}], output="out", voting="majority")(q="x")
    assert (found.out, found.n_parse_failures) == ("A", 1)
    with pytest.raises(ft.errors.UsageError, match=r"member 1 is 'tuned\.json'"):
        ft.Ensemble([lambda q: None, "tuned.json"], output="out")  # type: ignore[list-item]
    for weights in (["a"], [float("nan")], [0]):
        with pytest.raises(ft.errors.UsageError, match="weights"):
            ft.Ensemble([lambda q: None], output="out", weights=weights)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_log", [False, True])
def test_numbers_are_stacked_on_the_scale_that_fits(is_log: bool, tmp_path: Path) -> None:
    """A member that is off by a constant factor or amount is put right; one that knows nothing gets no weight."""
    generator = random.Random(3)
    truths = [math.exp(generator.gauss(4, 1)) if is_log else generator.gauss(500, 100) for _ in range(200)]
    rows = [dspy.Example(item=index, price=truth).with_inputs("item") for index, truth in enumerate(truths)]
    noise = [math.exp(generator.gauss(0, 0.1)) if is_log else generator.gauss(0, 5) for _ in truths]

    def off(item: int) -> Any:
        return {"price": truths[item] * noise[item] / 2 if is_log else truths[item] + noise[item] - 80}

    def blind(item: int) -> Any:
        if item % 7 == 0:
            raise RuntimeError("away")
        return {"price": random.Random(item).uniform(1, 1000)}

    members = [off, blind]
    stacked = ft.Ensemble(members, voting="stack", output="price").fit(rows[:120])
    assert stacked.settings["fitted"]["is_log"] is is_log
    errors = [abs(stacked(item=index).price - truths[index]) / truths[index] for index in range(120, 200)]
    assert statistics.mean(errors) < (0.11 if is_log else 0.02)
    alone = [abs(off(index)["price"] - truths[index]) / truths[index] for index in range(120, 200)]
    assert statistics.mean(alone) > 2 * statistics.mean(errors)
    stacked.save(tmp_path / "stacked.json")
    again = ft.Ensemble(members, voting="stack", output="price")
    again.load(tmp_path / "stacked.json")
    assert again(item=150).price == stacked(item=150).price
    with pytest.raises(ft.errors.DataError, match="at least 20 examples"):
        ft.Ensemble(members, voting="stack", output="price").fit(rows[:19])


def test_an_ensemble_saved_by_the_first_release_loads(tmp_path: Path) -> None:
    stacked = ft.Ensemble([says(True), says(False)], voting="majority", output="liked")
    stacked.save(tmp_path / "old.json")
    text = (tmp_path / "old.json").read_text("utf-8")
    (tmp_path / "old.json").write_text(text.replace('"voting": "majority"', '"how": "stacking"'), "utf-8")
    stacked.load(tmp_path / "old.json")
    assert stacked.settings["voting"] == "stack"
