"""Types: what is read, what is refused, and that nothing is guessed."""

from __future__ import annotations

import enum
from typing import Any, Literal

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_finetune.data import load_examples
from dspy_finetune.data.fields import converter_for
from dspy_finetune.errors import RowsError, UsageError
from dspy_finetune.values import Unparseable, load_bool, load_number


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


@pytest.mark.parametrize("word", ["true", "TRUE", " Yes ", "y", "T", "1", "1.0", True, 1, 1.0])
def test_what_means_true(word: object) -> None:
    assert load_bool(word) is True


@pytest.mark.parametrize("word", ["false", "No", "n", "f", "0", "0.0", False, 0, 0.0])
def test_what_means_false(word: object) -> None:
    assert load_bool(word) is False


@pytest.mark.parametrize("word", ["", "maybe", "on", "2", 2, 0.5, None, [], "1.5", "yes please"])
def test_what_is_no_boolean(word: object) -> None:
    with pytest.raises(Unparseable) as caught:
        load_bool(word)
    assert "true or false" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("$1,199.99", 1199.99),
        ("1199.99", 1199.99),
        ("-$5", -5),
        ("$-5", -5),
        ("−5.5", -5.5),
        ("12 €", 12),
        ("1199.99 USD", 1199.99),
        ("EUR 5", 5),
        ("£ 1,000,000", 1e6),
        (".5", 0.5),
        ("5.", 5),
        ("1e3", 1000),
        (7, 7),
        (" 3 ", 3),
    ],
)
def test_what_is_a_number(text: object, number: float) -> None:
    assert load_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "12,50", "1.199,99", "1,19", "1,1999", "45%", "1.2k", "nan", "inf", "1_000", "٣", "--5", "$", "$$5", "1 000",
     "0,199", "about 40", "$12 EUR",
     True, None, float("nan"), float("inf"), 10**400, "1e999", "5-6", [1]],
)  # fmt: skip
def test_what_is_no_number_or_an_ambiguous_one(text: object) -> None:
    with pytest.raises(Unparseable) as caught:
        load_number(text)
    assert "1199.99" in caught.value.remedy


@settings(max_examples=50, deadline=None)
@given(value=st.decimals(min_value=-(10**9), max_value=10**9, places=2))
def test_a_price_written_with_sign_and_separators_is_read_back(value: Any) -> None:
    number = float(value)
    sign = "-" if number < 0 else ""
    assert load_number(f"{sign}${abs(number):,.2f}") == number
    assert load_number(repr(number)) == number


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, "1,200", 1200),
        (int, "5.0", 5),
        (int, str(2**60 + 1), 2**60 + 1),
        (str, 1984, "1984"),
        (str, "", ""),
        (Literal["A", "B"], " a ", "A"),
        (Literal[1, 2], "2", 2),
        (Literal[1, 0], "1.0", 1),
        (Literal[1, 0], 0.0, 0),
        (Literal["1", "0"], "0.0", "0"),
        (int, "9007199254740993.0", 9007199254740993),
        (Literal[True, "x"], True, True),
        (Mood, "good", Mood.GOOD),
        (Mood, "BAD", Mood.BAD),
        (float | None, "", None),
        (float | None, "$5", 5.0),
        (str | None, "", ""),
        (list[str], ["a"], ["a"]),
        (int | str, "5", "5"),
    ],
)
def test_a_value_becomes_its_fields_type(annotation: Any, value: object, expected: object) -> None:
    found = converter_for(annotation)(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(int, "5.5"), (int, True), (str, None), (str, 1.5), (str, True), (Literal["a", "A"], " a "), (Literal["a"], None),
     (Literal[1, 2], True), (Mood, "ugly"), (float | None, "x")],
)  # fmt: skip
def test_a_value_that_is_not_of_the_type_is_refused(annotation: Any, value: object) -> None:
    with pytest.raises(Unparseable):
        converter_for(annotation)(value)


class Priced(dspy.Signature):
    """Estimate the price."""

    summary: str = dspy.InputField()
    price: float = dspy.OutputField()


def test_a_signature_gives_types_inputs_and_required_fields() -> None:
    examples = load_examples([{"summary": "A pan", "price": "$1,199.99", "id": "7"}], signature=Priced)
    assert examples[0].toDict() == {"summary": "A pan", "price": 1199.99, "id": "7"}
    assert examples[0].inputs().toDict() == {"summary": "A pan"}
    with pytest.raises(UsageError, match="no column 'price'"):
        load_examples([{"summary": "A pan"}], signature=Priced)


def test_types_override_the_signature() -> None:
    examples = load_examples([{"summary": "A pan", "price": "5"}], signature=Priced, types={"price": str})
    assert examples[0].price == "5"


def test_every_bad_row_is_listed_with_field_value_and_remedy() -> None:
    rows = [{"p": "1"}, {"p": "x"}, {"p": "2"}, {"p": None, "b": 1}, {}]
    with pytest.raises(RowsError) as caught:
        load_examples(rows, types={"p": float})
    assert [(error.line, error.field, error.value) for error in caught.value.errors] == [
        (2, "p", "'x'"),
        (4, "p", "None"),
        (5, "p", "None"),
    ]
    assert all(error.remedy for error in caught.value.errors)
    assert str(caught.value).count("\n") == 3


def test_a_row_with_several_bad_fields_is_one_error_that_names_them() -> None:
    with pytest.raises(RowsError, match=r"also bad in this row: b"):
        load_examples([{"a": "x", "b": "x"}], types={"a": int, "b": bool})


@pytest.mark.parametrize("types", [{"a": "int"}, {"a": 5}, [int], {1: int}])
def test_types_that_are_none_are_refused(types: Any) -> None:
    with pytest.raises(UsageError, match="types"):
        load_examples([{"a": 1}], types=types)


def test_a_column_of_numbers_has_one_unit_or_none() -> None:
    """What the first row has every row has to have; the row that has not is named, with both."""
    for cells, numbers in (
        (["83%", "7 %", "0.5%"], [83.0, 7.0, 0.5]),
        (["0.04 MB", "1,200 MB"], [0.04, 1200.0]),
        (["-3 °C", "\u22124 °C"], [-3.0, -4.0]),
    ):
        found = load_examples([{"size": cell} for cell in cells], types={"size": float})
        assert [row.size for row in found] == numbers
    for cells, problem in (
        (["0.04 MB", "1 GB"], "'1 GB' is in GB, and a row before it is in MB"),
        (["0.04 MB", "1"], "'1' is without a unit, and a row before it is in MB"),
        (["12", "83%"], "'83%' is in %, and a row before it is without a unit"),
        (["1 kg", "5k"], "'5k' is not a number"),
        (["1.299,99 kg", "5 kg"], "'1.299,99' is ambiguous: the comma does not part groups"),
    ):
        with pytest.raises(RowsError) as raised:
            load_examples([{"size": cell} for cell in cells], types={"size": float | None})
        assert [problem in str(error) for error in raised.value.errors] == [True], raised.value
