"""Intervals from held-out errors: they cover what they promise, are saved, and need enough examples."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune.hosts.lm import Answer
from dspy_finetune.predictors import Residuals

from .conftest import ChatServer


class Noisy(ft.OpenAIPredictor):
    """A predictor of numbers whose answers come from a function instead of a model."""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        text = f"${float(inputs['product']):.2f}"
        return self._read(Answer(text))


def noisy() -> Noisy:
    return Noisy(ft.prompts.number(), "m", host=ft.Host.compatible("http://127.0.0.1:9/v1"))


def draw(generator: random.Random, n: int) -> list[dspy.Example]:
    """What the model would say (`product`) and the truth: skewed, heavy-tailed errors in proportion to the price."""
    rows = []
    for _ in range(n):
        said = round(math.exp(generator.gauss(4, 1)), 2)
        error = said * 0.2 * generator.choice([1, 1, 1, 5]) * (generator.expovariate(1) - 0.5)
        rows.append(dspy.Example(product=str(said), price=round(max(said + error, 0.01), 2)).with_inputs("product"))
    return rows


@pytest.mark.parametrize("how", ["absolute", "relative"])
@pytest.mark.parametrize("level", [0.8, 0.9])
def test_the_interval_covers_what_it_promises(how: Any, level: float) -> None:
    """Over 200 simulated calibrations the mean coverage is level to level + 1 / (n + 1), its spread as the law says."""
    generator = random.Random(0)
    shares, n = [], 99
    for _ in range(200):
        held_out, new = draw(generator, n), draw(generator, 200)
        # The same rule as calibrate_interval, which a test below holds to it; 200 runs over calls would take minutes.
        half = sorted(
            abs(row.price - float(row.product)) / (float(row.product) if how == "relative" else 1) for row in held_out
        )[math.ceil((n + 1) * level) - 1]
        found = Residuals(scale=how, level=level, half_width=half, n=n)
        inside = [low <= row.price <= high for row in new for low, high in [found.interval(float(row.product))]]
        shares.append(sum(inside) / len(inside))
    expected = math.hypot(found.coverage_deviation, math.sqrt(level * (1 - level) / 200))
    error = 4 * expected / math.sqrt(200)
    assert level - error <= statistics.mean(shares) <= level + 1 / (n + 1) + error
    assert statistics.stdev(shares) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("how", ["absolute", "relative"])
def test_the_half_width_is_the_stated_order_statistic(how: Any) -> None:
    rows = draw(random.Random(1), 39)
    found = ft.calibrate_interval(noisy(), rows, level=0.9, scale=how)
    errors = sorted(
        abs(row.price - float(row.product)) / (float(row.product) if how == "relative" else 1) for row in rows
    )
    assert found.half_width == pytest.approx(errors[35])  # the 36th of 39: ceil(40 * 0.9)
    assert (found.n, found.n_parse_failures) == (39, 0)


@pytest.mark.parametrize("number", [10.0, -10.0])
def test_an_interval_in_proportion_ends_at_zero(number: float) -> None:
    low, high = sorted(map(abs, Residuals(scale="relative", level=0.9, half_width=1.5, n=50).interval(number)))
    assert (low, high) == (0.0, 25.0)
    assert Residuals(scale="absolute", level=0.9, half_width=15.0, n=50).interval(10.0) == (-5.0, 25.0)


@pytest.mark.parametrize(("n_crossed", "is_held"), [(2, True), (3, False)])
def test_a_number_on_the_other_side_of_zero_is_outside_of_every_interval_in_proportion(n_crossed: int, is_held: bool):
    rows = [dspy.Example(product="10", price=-1.0 if n < n_crossed else 35.0).with_inputs("product") for n in range(29)]
    if not is_held:
        with pytest.raises(ft.errors.DataError, match=r"3 of 29 numbers have the other sign .* scale=\"absolute\""):
            ft.calibrate_interval(noisy(), rows, level=0.9, scale="relative")
        return
    found = ft.calibrate_interval(noisy(), rows, level=0.9, scale="relative")
    assert (found.half_width, found.interval(10.0)) == (2.5, (0.0, 35.0))


def test_predictions_carry_it_and_the_file_keeps_it(chat: ChatServer, tmp_path: Path) -> None:
    chat.answer = lambda body: [("$100.00", {})]
    tuned = ft.OpenAIPredictor(ft.prompts.number(), "m", host=chat.host, cache=False)
    rows = [dspy.Example(product=f"{n}", price=100.0 + n).with_inputs("product") for n in range(1, 21)]
    found = ft.calibrate_interval(tuned, rows, level=0.8)
    assert found.half_width == 17.0  # ceil(21 * 0.8)
    assert tuned(product="x").interval == (83.0, 117.0)
    tuned.save(tmp_path / "x.json")
    loaded: Any = ft.load_predictor(tmp_path / "x.json")
    assert loaded.residuals == found
    assert tuned.deepcopy()(product="x").interval == (83.0, 117.0)
    plain = ft.OpenAIPredictor(ft.prompts.number(), "m", host=chat.host)
    plain.save(tmp_path / "plain.json")
    loaded.load(tmp_path / "plain.json")
    assert loaded.residuals is None


def test_it_takes_the_place_of_the_samples_spread(chat: ChatServer) -> None:
    chat.answer = lambda body: [("$10.00", {})]
    tuned = ft.OpenAIPredictor(ft.prompts.number(), "m", host=chat.host, cache=False, n_samples=3)
    tuned.residuals = Residuals(scale="relative", level=0.9, half_width=0.5, n=50)
    found = tuned(product="x")
    assert (found.interval, found.samples) == ((5.0, 15.0), [10.0, 10.0, 10.0])


def test_unreadable_answers_are_left_out_and_counted(chat: ChatServer) -> None:
    chat.answer = lambda body: [("dear" if "odd" in body["messages"][-1]["content"] else "$10.00", {})]
    tuned = ft.OpenAIPredictor(ft.prompts.number(), "m", host=chat.host, cache=False)
    rows = [dspy.Example(product="odd" if n < 2 else f"{n}", price=10.0).with_inputs("product") for n in range(22)]
    found = ft.calibrate_interval(tuned, rows, level=0.5)
    assert (found.n, found.n_parse_failures) == (20, 2)


def test_too_few_examples_and_wrong_predictors_are_refused(chat: ChatServer) -> None:
    rows = draw(random.Random(2), 30)
    with pytest.raises(ft.errors.DataError, match="19 examples are too few"):
        ft.calibrate_interval(noisy(), rows[:19])
    with pytest.raises(ft.errors.DataError, match=r"level 0\.99: at least 99"):
        ft.calibrate_interval(noisy(), rows, level=0.99)
    with pytest.raises(ft.errors.DataError, match="predicted 0"):
        ft.calibrate_interval(
            noisy(), [dspy.Example(product="0", price=1.0).with_inputs("product")] * 20, scale="relative"
        )
    with pytest.raises(ft.errors.UsageError, match="for labels there is calibrate"):
        ft.calibrate_interval(ft.OpenAIPredictor(ft.prompts.binary(), "m", host=chat.host), rows)
    with pytest.raises(ft.errors.UsageError, match="level between 0 and 1"):
        ft.calibrate_interval(noisy(), rows, level=1.0)
    with pytest.raises(ft.errors.UsageError, match="for a number there is calibrate_interval"):
        ft.calibrate(noisy(), rows)
    with pytest.raises(ft.errors.DataError, match="not saved residuals"):
        Residuals.from_dict({"half": 3})
