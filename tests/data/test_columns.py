"""Inputs, label and task are told from the rows, and what cannot be told is asked for by name."""

from __future__ import annotations

from collections.abc import Sequence

import dspy
import pytest

from dspy_finetune.data import load_examples
from dspy_finetune.data.fields import guess_columns
from dspy_finetune.errors import DataError, UsageError


def rows(**columns: Sequence[object]) -> list[dspy.Example]:
    return load_examples([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


TEXTS = [f"A title about thing number {n}" for n in range(24)]


@pytest.mark.parametrize(
    ("columns", "task", "inputs", "label"),
    [
        ({"id": list(range(24)), "headline": TEXTS, "liked": ["yes", "no"] * 12}, "binary", ("headline",), "liked"),
        ({"title": TEXTS, "points": list(range(24)), "is_favorite": [True, False] * 12}, "binary", ("title",), None),
        ({"text": TEXTS, "label": ["spam", "ham", "other"] * 8}, "labels", ("text",), "label"),
        ({"text": TEXTS, "label": [1, 2, 3] * 8}, "labels", ("text",), "label"),
        ({"name": TEXTS, "description": TEXTS, "price": [n * 1.5 for n in range(24)]}, "number", None, "price"),
        ({"question": TEXTS, "answer": [f"Because of {n} and more" for n in range(24)]}, "text", ("question",), None),
        ({"title_a": TEXTS, "title_b": TEXTS[::-1], "preferred": ["A", "B"] * 12}, "pairs", None, "preferred"),
    ],
)
def test_inputs_label_and_task_are_told_from_the_rows(
    columns: dict[str, Sequence[object]], task: str, inputs: tuple[str, ...] | None, label: str | None
) -> None:
    found = guess_columns(rows(**columns))
    assert found.task == task
    if inputs is not None:
        assert found.inputs == inputs
    if label is not None:
        assert found.label == label


def test_an_empty_cell_is_no_answer_and_an_empty_column_no_label() -> None:
    found = guess_columns(rows(text=TEXTS, verdict=["yes", "no", "maybe"] * 7 + ["", " ", "yes"], note=[""] * 24))
    assert (found.task, found.label) == ("labels", "verdict")
    assert set(found.labels) == {"yes", "no", "maybe"}


def test_prices_with_a_currency_and_a_decimal_comma_are_numbers_and_no_input() -> None:
    prices = [f"1.{n:03},00 €" if n % 2 else f"{n},50 €" for n in range(100, 124)]
    assert guess_columns(rows(text=TEXTS, price=prices)).task == "number"
    assert guess_columns(rows(text=TEXTS, price=prices, liked=["yes", "no"] * 12), label="liked").inputs == ("text",)


def test_two_columns_that_fit_are_both_named() -> None:
    data = rows(text=TEXTS, label=["a", "b"] * 12, category=["x", "y"] * 12)
    with pytest.raises(DataError, match="label or category"):
        guess_columns(data)
    assert guess_columns(data, label="category").label == "category"


def test_a_field_that_no_row_has_is_named_with_those_that_are_there() -> None:
    with pytest.raises(UsageError, match=r"'likes'; the fields are text, liked"):
        guess_columns(rows(text=TEXTS, liked=[True, False] * 12), label="likes")


def test_a_label_that_is_seen_once_does_not_make_a_column_free_text() -> None:
    sections = ["net", "doc", "games"] * 8
    assert guess_columns(rows(text=TEXTS, section=[*sections[:-1], "zope"])).task == "labels"
    assert guess_columns(rows(text=TEXTS, answer=[*sections[:-3], "a", "b", "c"])).task == "text"


def test_spellings_of_a_label_that_differ_in_case_alone_are_one_label() -> None:
    found = guess_columns(rows(text=TEXTS, kind=["Spam", "ham", "spam ", "ham", "Spam", "HAM"] * 4))
    assert (found.task, set(found.labels)) == ("labels", {"Spam", "ham"})
    assert "letter case" in found.why


@pytest.mark.parametrize(
    ("sides", "answers"),
    [
        (("text_left", "text_right"), ("left", "right")),
        (("first", "second"), ("second", "first")),
        (("title_1", "title_2"), ("A", "B")),
        (("q1", "q2"), ("1", "2")),
    ],
)
def test_two_sides_are_known_by_the_names_that_people_give_them(
    sides: tuple[str, str], answers: tuple[str, str]
) -> None:
    found = guess_columns(rows(**{sides[0]: TEXTS, sides[1]: TEXTS[::-1], "winner": answers * 12}))
    assert (found.task, found.inputs, set(found.labels)) == ("pairs", sides, set(answers))
    assert guess_columns(rows(question=TEXTS, answer=TEXTS[::-1], winner=answers * 12)).task != "pairs"


def test_the_one_column_of_numbers_beside_texts_is_the_label() -> None:
    assert guess_columns(rows(word=TEXTS, concreteness=[n / 7 for n in range(24)])).label == "concreteness"


def test_a_column_whose_name_is_no_field_is_found_under_the_fields_name() -> None:
    data = [{"Film Title": "Bees", "Cost Total $": "3.5", "class": "x", "other": 1}]
    loaded = load_examples(data, signature="Film_Title, class_ -> Cost_Total: float")
    assert loaded[0].toDict() == {"Film_Title": "Bees", "Cost_Total": 3.5, "class_": "x", "other": 1}
    with pytest.raises(UsageError, match="no column 'Film_Title'"):  # two columns that fit are none
        load_examples([{"Film Title": "Bees", "Film-Title": "Ants"}], inputs=["Film_Title"])


def test_lists_and_objects_are_no_labels_and_no_fault_of_the_program() -> None:
    tags = rows(text=TEXTS, label=[["a", "b"]] * 24, kind=[{"x": 1}] * 24)
    assert guess_columns(tags, label="label").task == "text"
    assert guess_columns(rows(text=TEXTS, label=["yes", "no"] * 12, tags=[["a"]] * 24)).label == "label"
    chats = rows(messages=[[{"role": "user", "content": text}] for text in TEXTS])
    with pytest.raises(DataError, match="training rows already"):
        guess_columns(chats)


@pytest.mark.parametrize("label", ["no", "17"])
def test_a_first_line_that_is_a_row_is_asked_about(label: str) -> None:
    values = ["yes", "no"] * 12 if label == "no" else list(range(24))
    table = rows(**{"A title about nothing": TEXTS, label: values})
    with pytest.raises(DataError, match="reads like a row"):
        guess_columns(table)
    assert guess_columns(table, label=label).label == label
    assert guess_columns(rows(text=TEXTS, spam=["spam", "ham"] * 12)).label == "spam"
