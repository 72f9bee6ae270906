"""A number is written one way and read in the ways that mean that number alone."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy
import pytest

from dspy_finetune.errors import AnswerError, RowError, UsageError
from dspy_finetune.values import NumberFormat

PRICE = NumberFormat(decimals=2, currency="$")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$1199.99", 1199.99),
        ("$1,199.99", 1199.99),
        ("1199.99 USD", 1199.99),
        ("US$ 1199.99", 1199.99),
        ("$1,199.99 USD", 1199.99),
        ("1,199.99 dollars", 1199.99),
        ("1 199.99", 1199.99),
        ("1'199.99", 1199.99),
        ("1,199", 1199.0),
        ("1,234,567.5", 1234567.5),
        ("1.199,99", 1199.99),
        ("1.199.999", 1199999.0),
        ("1199,99", 1199.99),
        ("1,5", 1.5),
        ("0.199", 0.199),
        ("-5", -5.0),
        ("-$5", -5.0),
        ("$-5", -5.0),
        ("−5", -5.0),
        ("+5", 5.0),
        (" $5.\n", 5.0),
        ("**$5**", 5.0),
        ('"5"', 5.0),
        (".5", 0.5),
        ("The price is $12.99.", 12.99),
        ("The price of the Harbour lamp is approximately $150.", 150.0),
        ("The estimated cost for this would be about 1,199.99 dollars", 1199.99),
        ("Its value is 12", 12.0),
        ("Price: 12", 12.0),
        ("about 12", 12.0),
        ("~$12", 12.0),
        ("approx. 12", 12.0),
        ("12-15", 13.5),
        ("$12 – $15", 13.5),
        ("12 to 15", 13.5),
        ("about $10-$20", 15.0),
    ],
)
def test_a_price_is_read_by_the_documented_rules(text: str, value: float) -> None:
    assert PRICE.decode(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "$",
        "twelve",
        "€12",
        "$12 EUR",
        "12 EUR",
        "5k",
        "10%",
        "12 or 15",
        "1.199",
        "$1.199",
        "1,199,99",
        "1,1,1",
        "15-12",
        "(5)",
        "nan",
        "inf",
        "1_000",
        "١٢",
        "$12 each",
        "12 13",
        "--5",
        "0x10",
        "-5-10",
        "1.2.3",
        "$12 $15",
        "12/15",
        "The price of 2 lamps is $5",
        "The price of the lamp is not $5",
        "The price of the lamp is $5 or $6",
        "The price of the lamp. It is $5",
        "The price of the lamp is $5. The other is free",
    ],
)
def test_anything_else_is_refused_and_kept(text: str) -> None:
    with pytest.raises(AnswerError) as caught:
        PRICE.decode(text)
    assert caught.value.text == text


@pytest.mark.parametrize("text", ["about 12", "~12", "12-15", "The price is roughly $12"])
def test_strict_refuses_what_is_not_exact(text: str) -> None:
    with pytest.raises(AnswerError):
        NumberFormat(decimals=2, currency="$", strict=True).decode(text)


@pytest.mark.parametrize(
    ("style", "value", "text"),
    [
        (PRICE, 1199.99, "$1199.99"),
        (PRICE, 5, "$5.00"),
        (PRICE, -5.5, "-$5.50"),
        (PRICE, numpy.float32(2.5), "$2.50"),
        (PRICE, Decimal("2.5"), "$2.50"),
        (NumberFormat(decimals=2, currency="USD", position="after", thousands=True), 1199.99, "1,199.99 USD"),
        (NumberFormat(decimals=0), 12.0, "12"),
        (NumberFormat(), 0.1, "0.1"),
        (NumberFormat(kind="int"), 12, "12"),
        (NumberFormat(kind="int", thousands=True), 1200, "1,200"),
        (NumberFormat(kind="decimal"), Decimal("1E+3"), "1000"),
        (NumberFormat(kind="decimal"), 0.1, "0.1"),
    ],
)
def test_a_number_is_written_one_way(style: NumberFormat, value: Any, text: str) -> None:
    assert style.encode(value) == text


@pytest.mark.parametrize(
    ("style", "value", "needed"),
    [
        (PRICE, 0.0012, 4),
        (PRICE, -0.001, 3),
        (PRICE, 19.999, 3),
        (NumberFormat(decimals=0), 12.4, 1),
        (NumberFormat(decimals=1, kind="decimal"), Decimal("0.05"), 2),
        (PRICE, numpy.float32(0.0012), 4),
    ],
)
def test_a_number_that_the_decimals_would_change_is_not_written(style: NumberFormat, value: Any, needed: int) -> None:
    with pytest.raises(RowError, match=rf"decimals={needed}"):
        style.encode(value)
    assert NumberFormat(decimals=needed, kind=style.kind).encode(value).rstrip("0") != "0."


@pytest.mark.parametrize(("value", "text"), [(0.1 + 0.2, "$0.30"), (numpy.float32(19.99), "$19.99"), (1e9 + 0.1, None)])
def test_the_noise_of_binary_numbers_is_no_digit(value: Any, text: str | None) -> None:
    assert PRICE.encode(value) == (text or "$1000000000.10")


@pytest.mark.parametrize("value", ["12", None, True, float("nan"), float("inf"), [1], 1j])
def test_what_is_no_finite_number_is_not_written(value: Any) -> None:
    with pytest.raises(RowError):
        PRICE.encode(value)


def test_whole_numbers_are_whole() -> None:
    style = NumberFormat(kind="int")
    assert [style.decode(text) for text in ("12", "12.0", "1,200")] == [12, 12, 1200]
    for text in ("12.5", "12-15"):
        with pytest.raises(AnswerError, match="whole"):
            style.decode(text)
    with pytest.raises(RowError):
        style.encode(1.0)


def test_numbers_too_large_to_hold_are_refused_at_once() -> None:
    for kind in ("float", "int"):
        for text in (
            "1e999999",
            "1e999999999",
            "1e99999999999999999999",
            "9" * 5000,
            "1-" * 50_000,
            "1 a" * 50_000,
        ):
            with pytest.raises(AnswerError):
                NumberFormat(kind=kind).decode(text)
    with pytest.raises(AnswerError):
        NumberFormat().decode("1.9e308")
    with pytest.raises(RowError, match="too many digits"):
        NumberFormat(kind="int").encode(10**5000)


def test_a_bare_format_reads_any_known_currency_and_three_decimals() -> None:
    assert [NumberFormat().decode(text) for text in ("€12", "12 GBP", "1.199", "1e-7")] == [12.0, 12.0, 1.199, 1e-7]


@pytest.mark.parametrize("currency", ["GEM", "pts", "₺", "zł", "CHF", "kr", "฿", "Fr"])
@pytest.mark.parametrize("position", ["before", "after"])
def test_a_currency_of_ones_own_is_written_and_read(currency: str, position: Any) -> None:
    style = NumberFormat(decimals=2, currency=currency, position=position, thousands=True)
    for value in (1199.99, -5.5):
        assert style.decode(style.encode(value)) == value
    with pytest.raises(AnswerError):
        style.decode("5 EUR")


def test_odd_formats_are_refused() -> None:
    for options in ({"decimals": -1}, {"position": "left"}, {"currency": "1"}, {"currency": "a b"}):
        with pytest.raises(UsageError):
            NumberFormat(**options)
