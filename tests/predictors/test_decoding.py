"""A number from the distribution that its tokens tell: median and mean against sums done by hand."""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune import bulk
from dspy_finetune.hosts.lm import Position
from dspy_finetune.predictors.probabilities import number_masses

from .conftest import ChatServer

PRICE = ft.prompts.number()


def at(chosen: str, **shares: float) -> Position:
    return chosen, {token.removeprefix("_"): math.log(share) for token, share in shares.items()}


def dollars(text: str) -> float:
    return float(PRICE.parse(text)["price"])


def test_alternatives_are_numbers_at_the_middle_of_what_they_could_be() -> None:
    """$ 7 2 . 1 0 by single digits: each place's alternatives with the mass of what led there."""
    positions = [
        ("$", {"$": math.log(0.9), "About": math.log(0.1)}),
        at("7", _7=0.6, _2=0.3, The=0.1),
        at("2", _2=0.5, _8=0.25, **{".": 0.25}),
        (".", {".": math.log(0.8), "5": math.log(0.1), "<end>": math.log(0.1)}),
        at("1", _1=1.0),
        at("0", _0=1.0),
    ]
    found = number_masses(positions, dollars)
    expected = [
        (7.5, 0.9 * 0.6 * 0.25),  # $7. and the middle of its cents
        (25.0, 0.9 * 0.3),  # $2 and the middle of 20 to 30
        (72.0, 0.9 * 0.6 * 0.5 * 0.1),  # $72 ends there
        (72.1, 0.9 * 0.6 * 0.5 * 0.8),  # what was written
        (78.5, 0.9 * 0.6 * 0.25),
        (725.5, 0.9 * 0.6 * 0.5 * 0.1),  # one digit more
    ]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected])
    assert [mass for _, mass in found] == pytest.approx([mass for _, mass in expected])


def test_whole_numbers_as_one_token_and_no_number_at_all() -> None:
    positions = [at("72", _72=0.5, _120=0.3, _about=0.2)]
    assert [value for value, _ in number_masses(positions, float)] == [72.0, 120.0]
    assert [mass for _, mass in number_masses(positions, float)] == pytest.approx([0.5, 0.3])
    assert number_masses([at("none", none=1.0)], float) == []
    assert number_masses([("7", {})], float) == []


@pytest.mark.parametrize(
    ("decode", "price"), [("text", 30.0), ("median", 50.0), ("mean", (0.4 * 30 + 0.3 * 50 + 0.2 * 80) / 0.9)]
)
def test_a_predictor_decodes_alone_awaited_and_in_bulk(
    decode: Any, price: float, chat: ChatServer, tmp_path: Path
) -> None:
    chat.answer = lambda body: [("30", {"30": 0.4, "50": 0.3, "80": 0.2, "the": 0.1})]
    tuned = ft.OpenAIPredictor(PRICE, "tuned", host=chat.host, decode=decode, cache=False)
    found = tuned(product="A lamp")
    assert found.price == pytest.approx(price)
    assert asyncio.run(tuned.acall(product="A lamp")).price == pytest.approx(price)
    bulk.predict(tuned, [{"product": "A lamp"}], tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text("utf-8"))["price"] == pytest.approx(price)
    assert ("logprobs" in chat.bodies[-1]) == (decode != "text")
    assert found.get("coverage", None) == (None if decode == "text" else pytest.approx(0.9))
    tuned.save(tmp_path / "tuned.json")
    again = ft.load_predictor(tmp_path / "tuned.json", host=chat.host)
    assert again(product="A lamp").price == pytest.approx(price)
    assert json.loads((tmp_path / "tuned.json").read_text("utf-8"))["version"] == (1 if decode == "text" else 4)


def test_whole_numbers_stay_whole_and_samples_have_a_mean(chat: ChatServer) -> None:
    chat.answer = lambda body: [("3", {"3": 0.5, "8": 0.5})]
    stars = ft.OpenAIPredictor("review -> stars: int", "m", host=chat.host, decode="mean", cache=False)(
        review="x"
    ).stars
    assert (stars, type(stars)) == (6, int)
    replies = iter(["10", "20", "90"])
    chat.answer = lambda body: [(next(replies), {})]
    sampled = ft.OpenAIPredictor(PRICE, "m", host=chat.host, n_samples=3, decode="mean", cache=False)(product="x")
    assert sampled.price == statistics.mean([10, 20, 90])
    assert "logprobs" not in chat.bodies[-1]


def test_single_digits_do_not_tell_how_long_other_numbers_would_be(
    chat: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    """After "1" come two more digits; whether they would have come after "2" is not told."""
    follows = {"8": 0.5, "4": 0.4, ".": 0.1}
    chat.answer = lambda body: [
        ("$", {"$": 1.0}),
        ("1", {"1": 0.3, "2": 0.7}),
        ("8", follows),
        (".", {".": 0.5, "9": 0.5}),
    ]
    tuned = ft.OpenAIPredictor(PRICE, "m", host=chat.host, decode="median", cache=False)
    for _ in range(2):
        found = tuned(product="x")
        assert (found.price, found.coverage) == (18.0, None)
    assert [record.message for record in caplog.records].count(
        "m writes numbers in single digits, which do not tell how long other numbers would be: the answer is the number"
        ' that was written; ask for samples (n_samples=9), or train on the scale "log"'
    ) == 1
    chat.answer = lambda body: [("1", {"1": 0.99, "2": 0.01}), ("8", {"8": 0.99, "9": 0.01})]  # a linear head's answer
    assert tuned(product="x").coverage == pytest.approx(1.0, abs=0.02)


def test_the_mean_is_taken_on_the_scale_that_is_trained(chat: ChatServer) -> None:
    """ "42.5" in the place of "4.25" is a price of e^42: one in a thousand of it outweighed everything."""
    logarithms = ft.prompts.number(scale="log")
    point = {".": 0.999, "2": 0.001}
    chat.answer = lambda body: [("4", {"4": 0.5, "3": 0.5}), (".", point), ("5", {"5": 1.0}), ("0", {"0": 1.0})]
    price = ft.OpenAIPredictor(logarithms, "m", host=chat.host, decode="mean", cache=False)(product="x").price
    assert math.log1p(price) == pytest.approx(4.0, abs=0.05)
    replies = iter(["4.50", "3.50", "4.00"])
    chat.answer = lambda body: [(next(replies), {})]
    tuned = ft.OpenAIPredictor(logarithms, "m", host=chat.host, n_samples=3, decode="mean", cache=False)
    assert math.log1p(tuned(product="x").price) == pytest.approx(4.0)


def test_without_log_probabilities_it_is_the_number_that_was_written(chat: ChatServer) -> None:
    chat.sends_logprobs = False
    chat.answer = lambda body: [("$12.50", {})]
    found = ft.OpenAIPredictor(PRICE, "m", host=chat.host, decode="median", cache=False)(product="x")
    assert (found.price, found.coverage) == (12.5, None)
    with pytest.raises(ft.errors.LogprobsError):
        ft.OpenAIPredictor(PRICE, "m", host=chat.host, decode="median", logprobs=True, cache=False)(product="x")
    with pytest.raises(ft.errors.UsageError, match="one output of type int or float"):
        ft.OpenAIPredictor(ft.prompts.binary(), "m", host=chat.host, decode="median")
    with pytest.raises(ft.errors.UsageError, match='decode: "text"'):
        ft.OpenAIPredictor(PRICE, "m", host=chat.host, decode="mode")  # type: ignore[arg-type]  # the test


def test_the_median_is_nearer_than_the_most_likely_text_and_has_an_interval(chat: ChatServer) -> None:
    """Where the most likely digit is not the middle one; the interval is that of the decoded number's own errors."""
    generator = random.Random(4)
    truths = [generator.choice([20, 20, 50, 60, 60, 70, 80]) + generator.random() for _ in range(120)]

    def answer(body: dict[str, Any]) -> Any:
        return [("20", {"20": 0.29, "50": 0.14, "60": 0.28, "70": 0.14, "80": 0.14})]

    chat.answer = answer
    rows = [
        dspy.Example(product=str(n), price=round(truth, 2)).with_inputs("product") for n, truth in enumerate(truths)
    ]
    errors = {}
    ways: list[Any] = ["text", "median"]
    for decode in ways:
        tuned = ft.OpenAIPredictor(PRICE, "m", host=chat.host, decode=decode, cache=False)
        errors[decode] = statistics.mean(abs(tuned(product="x").price - truth) for truth in truths)
    assert errors["median"] < 0.75 * errors["text"]
    residuals = ft.calibrate_interval(tuned, rows, level=0.8, num_threads=1)
    low, high = tuned(product="x").interval
    assert (low + high) / 2 == pytest.approx(tuned(product="x").price)
    assert sum(low <= truth <= high for truth in truths) >= 0.8 * len(truths)
    assert residuals.n == 120
