"""Calibration: the numbers against plain definitions, what it is applied to, what it refuses, how it is saved."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune.predictors import Calibration
from dspy_finetune.predictors.calibrate import reliability, sigmoid

from .conftest import ChatServer

HOWS = ["temperature", "platt", "isotonic"]


class Stub(dspy.BaseLM):
    """A model that answers with the probabilities that a function gives for the user's message."""

    def __init__(self, shares: Callable[[str], dict[str, float]]) -> None:
        super().__init__("stub")
        self.shares = shares

    def __call__(self, request: Any = None, **options: Any) -> Any:
        found = self.shares(request.messages[-1].parts[0].text)
        best = max(found, key=lambda text: found[text])
        top = [Listed(token=text, logprob=math.log(max(share, 1e-12)), bytes=None) for text, share in found.items()]
        return Answer(text=best, logprobs=[Listed(token=best, logprob=math.log(found[best]), bytes=None, top=top)])


class Listed(dspy.Example):
    """A token with its log-probability."""


class Answer(dspy.Example):
    """What a predictor reads of a response."""


def too_sure(n: int, factor: float = 3.0, lean: float = 0.0) -> tuple[list[Any], Callable[[str], dict[str, float]]]:
    """Titles whose true log-odds the model overstates by a factor, plus a lean to True."""
    generator = random.Random(1)
    odds = {f"title {number}": generator.gauss(0, 1) for number in range(n)}
    rows = [
        dspy.Example(title=title, is_favorite=generator.random() < sigmoid(value)).with_inputs("title")
        for title, value in odds.items()
    ]

    def shares(message: str) -> dict[str, float]:
        of_true = sigmoid(factor * odds[message.removeprefix("Title: ")] + lean)
        return {"true": of_true, "false": 1 - of_true}

    return rows, shares


def predictor(shares: Callable[[str], dict[str, float]], **options: Any) -> ft.OpenAIPredictor:
    return ft.OpenAIPredictor(ft.prompts.binary(), "ft:m", lm=Stub(shares), **options)


@pytest.mark.parametrize("how", HOWS)
def test_a_model_that_is_too_sure_is_mended(how: Any) -> None:
    """Cross-fitted loss and error fall, and the predictor gives the new probabilities from then on."""
    rows, shares = too_sure(600, lean=1.0 if how == "platt" else 0.0)
    tuned = predictor(shares)
    raw = tuned(title="title 0").probability
    found = ft.calibrate(tuned, rows, method=how)
    assert found.before is not None
    assert found.after is not None
    assert found.after.log_loss < found.before.log_loss - 0.1
    assert found.after.brier_loss < found.before.brier_loss
    assert found.after.calibration_error < 0.6 * found.before.calibration_error
    assert (found.n, found.before.n, sum(one.n for one in found.before.bins)) == (600, 600, 600)
    after = tuned(title="title 0")
    assert after.probability == pytest.approx(found.apply([raw, 1 - raw])[0])
    assert sum(after.probabilities.values()) == pytest.approx(1.0)
    if how == "temperature":
        assert found.temperature == pytest.approx(3.0, rel=0.25)
    if how == "platt":
        assert found.curves[0].slope == pytest.approx(1 / 3, rel=0.25)


def test_calibrating_again_starts_from_the_model_itself() -> None:
    rows, shares = too_sure(200)
    tuned = predictor(shares)
    first = ft.calibrate(tuned, rows)
    assert ft.calibrate(tuned, rows) == first


def test_brier_log_loss_and_calibration_error_by_hand() -> None:
    found = reliability([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], [0, 1, 1])
    assert found.brier_loss == pytest.approx((0.1**2 + 0.8**2 + 0.3**2) / 3)
    assert found.log_loss == pytest.approx(-(math.log(0.9) + math.log(0.2) + math.log(0.7)) / 3)
    assert found.calibration_error == pytest.approx((0.1 + 0.8 + 0.3) / 3)
    several = reliability([[0.5, 0.3, 0.2]], [1])
    assert several.brier_loss == pytest.approx(0.5**2 + 0.7**2 + 0.2**2)


@pytest.mark.parametrize(
    ("target", "reached"), [({"precision": 0.8}, "precision"), ({"recall": 0.9}, "recall"), ({"cost": (3, 1)}, "cost")]
)
def test_a_threshold_is_chosen_for_precision_recall_or_cost(target: dict[str, Any], reached: str) -> None:
    rows, shares = too_sure(400)
    tuned = predictor(shares)
    found = ft.calibrate(tuned, rows, threshold_for=target)
    assert tuned.threshold == found.threshold
    if reached == "cost":
        assert found.threshold == 0.75
    else:
        value = found.threshold_precision if reached == "precision" else found.threshold_recall
        assert value is not None
        assert value >= target[reached]
    assert tuned(title="title 3").is_favorite is (tuned(title="title 3").probability >= tuned.threshold)


def test_a_literal_is_calibrated_over_all_its_labels() -> None:
    class Triage(dspy.Signature):
        """Sort the ticket."""

        ticket: str = dspy.InputField()
        queue: Literal["billing", "bug", "other"] = dspy.OutputField()

    generator = random.Random(2)
    names = ("billing", "bug", "other")
    truth = {f"t{number}": [generator.gauss(0, 1) for _ in names] for number in range(300)}

    def softmax(values: list[float], factor: float) -> list[float]:
        powers = [math.exp(factor * value) for value in values]
        return [power / sum(powers) for power in powers]

    def shares(message: str) -> dict[str, float]:
        return dict(zip(names, softmax(truth[message.removeprefix("Ticket: ")], 3.0), strict=True))

    rows = [
        dspy.Example(ticket=ticket, queue=generator.choices(names, softmax(values, 1.0))[0]).with_inputs("ticket")
        for ticket, values in truth.items()
    ]
    for how in HOWS:
        tuned = ft.OpenAIPredictor(ft.PromptFormat(Triage), "ft:m", lm=Stub(shares))
        found = ft.calibrate(tuned, rows, method=how)  # type: ignore[arg-type]  # the three names
        assert found.before is not None
        assert found.after is not None
        assert found.after.log_loss < found.before.log_loss
        assert sum(tuned(ticket="t1").probabilities.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("how", HOWS)
def test_a_pair_asked_in_both_orders_stays_symmetric(how: Any) -> None:
    """Swapping the items swaps the calibrated probabilities."""
    generator = random.Random(3)
    worth = {f"t{number}": generator.gauss(0, 1) for number in range(60)}

    def shares(message: str) -> dict[str, float]:
        first, second = (line[3:] for line in message.splitlines())
        of_a = sigmoid(3 * (worth[first] - worth[second]) + 0.5)
        return {"A": of_a, "B": 1 - of_a}

    pairs = [generator.sample(sorted(worth), 2) for _ in range(250)]
    rows = [
        dspy.Example(
            title_a=one, title_b=two, preferred="A" if generator.random() < sigmoid(worth[one] - worth[two]) else "B"
        ).with_inputs("title_a", "title_b")
        for one, two in pairs
    ]
    tuned = ft.PairwisePredictor(ft.prompts.pairwise(), "ft:m", lm=Stub(shares))
    found = ft.calibrate(tuned, rows, method=how)
    assert found.is_symmetric
    assert found.before is not None
    assert found.after is not None
    assert found.after.log_loss < found.before.log_loss
    there, back = tuned(title_a="t1", title_b="t2"), tuned(title_a="t2", title_b="t1")
    assert there.probabilities["A"] == pytest.approx(back.probabilities["B"], abs=1e-6)


def test_what_cannot_be_calibrated_is_refused_and_nothing_changes() -> None:
    rows, shares = too_sure(300)
    tuned = predictor(shares)
    with pytest.raises(ft.errors.DataError, match="19 examples are too few"):
        ft.calibrate(tuned, rows[:19])
    with pytest.raises(ft.errors.DataError, match='at least 200 are needed; method="temperature" needs 20'):
        ft.calibrate(tuned, rows[:199], method="isotonic")
    with pytest.raises(ft.errors.DataError, match="all examples have the label True"):
        ft.calibrate(tuned, [row for row in rows if row.is_favorite])
    with pytest.raises(ft.errors.DataError, match="fewer than 5 examples of the label False"):
        ft.calibrate(tuned, [row for row in rows if row.is_favorite] + [row for row in rows if not row.is_favorite][:4])
    with pytest.raises(ft.errors.DataError, match="no threshold reaches a precision of 1"):
        ft.calibrate(predictor(lambda message: {"true": 0.5, "false": 0.5}), rows, method="platt",
                     threshold_for={"precision": 1.0})  # fmt: skip
    with pytest.raises(ft.errors.DataError, match="the reverse"):
        ft.calibrate(
            predictor(lambda message: dict(zip(("false", "true"), shares(message).values(), strict=True))), rows
        )
    with pytest.raises(ft.errors.UsageError, match="has labels"):
        ft.calibrate(ft.OpenAIPredictor(ft.prompts.number(), "m", lm=Stub(shares)), rows)
    with pytest.raises(ft.errors.UsageError, match="threshold_for"):
        ft.calibrate(tuned, rows, threshold_for={"f1": 0.5})
    with pytest.raises(ft.errors.UsageError, match='no field "is_favorite"'):
        ft.calibrate(tuned, [dspy.Example(title="title 1").with_inputs("title")] * 30)
    assert tuned.calibration is None


@pytest.mark.parametrize("target", [{"recall": "high"}, {"cost": ("a", "b")}, {"precision": None}])
def test_a_target_that_is_no_number_is_refused(target: dict[str, Any]) -> None:
    with pytest.raises(ft.errors.UsageError, match="threshold_for"):
        ft.calibrate(predictor(too_sure(1)[1]), [], threshold_for=target)


def test_without_log_probabilities_there_is_nothing_to_calibrate(chat: ChatServer) -> None:
    chat.sends_logprobs = False
    rows = too_sure(20)[0]
    tuned = ft.OpenAIPredictor(ft.prompts.binary(), "m", host=chat.host, cache=False)
    with pytest.raises(ft.errors.LogprobsError, match="no log-probabilities"):
        ft.calibrate(tuned, rows)


class Program(dspy.Module):
    def __init__(self, tuned: ft.OpenAIPredictor) -> None:
        super().__init__()
        self.steps = [tuned]


@pytest.mark.parametrize("how", HOWS)
def test_a_calibration_is_saved_loaded_and_copied_with_its_predictor(how: Any, tmp_path: Path) -> None:
    rows, shares = too_sure(200)
    tuned = predictor(shares)
    found = ft.calibrate(tuned, rows, method=how, threshold_for={"recall": 0.9})
    expected = dict(tuned(title="title 7").items())
    assert dict(tuned.deepcopy()(title="title 7").items()) == expected
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    tuned.save(tmp_path / "one.json")
    loaded = ft.load_predictor(tmp_path / "one.json")
    assert loaded.calibration == found
    Program(tuned).save(tmp_path / "program.json")
    fresh = Program(predictor(shares))
    fresh.load(tmp_path / "program.json")
    assert dict(fresh.steps[0](title="title 7").items()) == expected


def test_a_file_saved_without_calibration_still_loads(tmp_path: Path) -> None:
    """Also one of an older release, which knows none of the later settings."""
    tuned = predictor(too_sure(20)[1], threshold=0.3)
    state = tuned.dump_state()
    assert state["version"] == 1
    for name in ("stop", "n_samples", "temperature", "interval_level"):
        del state[name]
    (tmp_path / "old.json").write_text(json.dumps(state))
    loaded = ft.load_predictor(tmp_path / "old.json")
    assert isinstance(loaded, ft.OpenAIPredictor)
    assert (loaded.threshold, loaded.calibration, loaded.n_samples, loaded.stop) == (0.3, None, 1, ())
    with pytest.raises(ft.errors.DataError, match="not a saved calibration"):
        Calibration.from_dict({"how": "platt"})


def test_the_reliability_is_drawn(tmp_path: Path) -> None:
    rows, shares = too_sure(50)
    ft.calibrate(predictor(shares), rows).plot(tmp_path / "reliability.svg")
    assert (tmp_path / "reliability.svg").read_text().count("<svg") == 1
    with pytest.raises(ft.errors.UsageError, match="no report"):
        Calibration(method="temperature", labels=("a", "b"), n=1, temperature=1.0).plot(tmp_path / "x.svg")
