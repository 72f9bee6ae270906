"""Inputs, label and task are told from the rows, and what cannot be told is asked for by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dspy
import pytest

from dspy_finetune.data import load_examples
from dspy_finetune.data.fields import check_decimal, guess_columns, number_options
from dspy_finetune.data.items import decided_pairs
from dspy_finetune.errors import DataError, RowsError, UsageError
from dspy_finetune.evaluation import advise
from dspy_finetune.values import DecimalMark


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


@pytest.mark.parametrize(
    "text", [",title,#1 ID,liked\n{}", '"","title","#1 ID","liked"\n{}', "Unnamed: 0,title,#1 ID,liked\n{}"]
)
def test_row_numbers_that_pandas_and_r_write_are_neither_label_nor_refused(text: str, tmp_path: Path) -> None:
    """Both write them as a first column without a name, which pandas reads as "Unnamed: 0"."""
    rows = "".join(f'{n},"title, number {n}",{7 * n},{n % 3}\n' for n in range(12))
    (tmp_path / "x.csv").write_text(text.format(rows))
    examples = load_examples(tmp_path / "x.csv")
    assert len(examples) == 12
    assert list(examples[3].toDict().values()) == ["3", "title, number 3", "21", "0"]
    found = guess_columns(examples)
    assert (found.inputs, found.label) == (("title",), "liked")
    (tmp_path / "y.csv").write_text(f",index,title\n{rows}")
    with pytest.raises(DataError, match="column 1 of the header has no name"):
        load_examples(tmp_path / "y.csv")


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
    with pytest.raises(UsageError, match="the table has no field 'likes'; it has: text, liked; did you mean"):
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


def test_amounts_with_a_unit_are_numbers_however_often_they_come() -> None:
    """They became 36 labels, where the local host takes them for numbers and answers with others."""
    degrees = [f"{n % 12 - 3}°C" for n in range(48)]
    assert guess_columns(rows(note=TEXTS * 2, temp=degrees), label="temp").task == "number"
    stars = guess_columns(rows(note=TEXTS, rating=[f"{n % 4 + 2} stars" for n in range(24)]))
    assert (stars.task, len(stars.labels)) == ("labels", 4)


def test_a_column_called_label_is_the_label_and_a_reason_is_no_input() -> None:
    table = rows(tags=[["a", "b"]] * 24, active=[True, False] * 12, label=["skip", "keep"] * 12)
    with pytest.raises(DataError, match=r"beside 'label' holds text to read; 'tags' holds lists or objects"):
        guess_columns(table)
    told = rows(text=TEXTS, reason=TEXTS[::-1], verdict=["good", "bad"] * 12)
    assert guess_columns(told).inputs == ("text",)
    assert guess_columns(told, inputs=["text", "reason"]).inputs == ("text", "reason")
    assert guess_columns(rows(reason=TEXTS, verdict=["good", "bad"] * 12)).inputs == ("reason",)


def test_the_question_of_two_answers_is_read_with_them() -> None:
    """It was left out, so that a model had to prefer one of two answers to it knew not what."""
    table = rows(
        question=TEXTS,
        answer_a=TEXTS[::-1],
        answer_b=TEXTS[3:] + TEXTS[:3],
        better=["A", "B", "tie"] * 8,
        site=["x"] * 24,
    )
    found = guess_columns(table)
    assert (found.task, found.inputs) == ("pairs", ("question", "answer_a", "answer_b"))
    assert found.sides == ("answer_a", "answer_b")
    assert found.is_a_or_b
    assert [row.better for row in decided_pairs(table, found)] == ["A", "B"] * 8
    named = guess_columns(table, label="better", inputs=["answer_a", "answer_b", "site"])
    assert named.inputs == ("site", "answer_a", "answer_b")
    assert guess_columns(table, label="better", inputs=["answer_a", "answer_b"]).inputs == ("answer_a", "answer_b")


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


def test_words_are_read_and_the_number_beside_them_is_answered() -> None:
    campaigns, rates = ["news to all", "sale to new ones", "survey to all"] * 8, [f"{n / 7:.1f}%" for n in range(24)]
    found = guess_columns(rows(campaign=campaigns, open_rate=rates))
    assert (found.label, found.inputs, found.task) == ("open_rate", ("campaign",), "number")


def test_a_closed_set_beside_amounts_is_asked_about() -> None:
    """A canton beside what was paid may be a property of the row as well as its label."""
    data = rows(
        claim_no=list(range(1000, 1024)),
        description=TEXTS,
        canton=["ZH", "BE", "GE"] * 8,
        amount=[f"CHF {n}'299.50" for n in range(1, 25)],
    )
    with pytest.raises(DataError, match="may be canton or amount"):
        guess_columns(data)
    assert guess_columns(data, label="amount").task == "number"


def test_objects_are_named_where_no_column_holds_text() -> None:
    posts, likes = [{"title": text} for text in TEXTS], [{"yes": True}, {"yes": False}] * 12
    with pytest.raises(DataError, match="'post' holds objects: write their values"):
        guess_columns(rows(post=posts, label=["a", "b"] * 12))
    with pytest.raises(
        DataError, match=r"no column can be the label; .*: 'post', 'by' and 'label' hold objects: write"
    ):
        guess_columns(rows(post=posts, by=posts, label=likes))


@pytest.mark.parametrize(
    ("sides", "labels"),
    [(("title_a", "title_b"), ("A", "B")), (("old", "new"), ("old", "new"))],
)
def test_a_side_is_preferred_by_its_text_and_ties_are_no_third_label(
    sides: tuple[str, str], labels: tuple[str, str]
) -> None:
    best = [TEXTS[n] if n % 3 == 0 else TEXTS[-n - 1] if n % 3 == 1 else "tie" for n in range(24)]
    data = rows(**{sides[0]: TEXTS, sides[1]: TEXTS[::-1], "preferred_title": best})
    found = guess_columns(data)
    assert (found.task, found.inputs, found.label, found.labels) == ("pairs", sides, "preferred_title", labels)
    told = [row.preferred_title for row in decided_pairs(data, found)]
    assert told == [labels[n % 3] for n in range(24) if n % 3 != 2]
    lettered = rows(title_a=TEXTS, title_b=TEXTS[::-1], preferred=["A", "B", "tie"] * 8)
    assert guess_columns(lettered).task == "pairs"
    assert [row.preferred for row in decided_pairs(lettered, guess_columns(lettered))] == ["A", "B"] * 8


def test_an_answer_that_is_neither_side_is_named_by_its_row() -> None:
    columns = guess_columns(rows(left=TEXTS, right=TEXTS[::-1], better=[*TEXTS[:12], *TEXTS[11::-1]]))
    with pytest.raises(RowsError, match="neither a side"):
        decided_pairs(rows(left=["Ants"], right=["Bees"], better=["Wasps"]), columns)


def test_a_decimal_comma_is_told_where_the_other_mark_is_read() -> None:
    german = ["1.299,50", "12,00", "3"]
    with pytest.raises(DataError, match="decimal comma"):
        check_decimal(german, "price")
    check_decimal(german, "price", ",")
    check_decimal(["CHF 1'299.50", "$3", None, "45"], "price")
    with pytest.raises(DataError, match="decimal comma"):
        advise(rows(text=TEXTS, price=[f"{n},50" for n in range(24)]), label="price", encoder=None)


def test_a_column_without_a_number_is_told_before_anything_is_made_of_it() -> None:
    with pytest.raises(DataError, match=r"'good' holds no numbers \('yes'\): if they are labels, say label= "):
        check_decimal(["yes", None, "no"], "good")
    check_decimal(["yes", "2"], "good")
    check_decimal([None], "good")


@pytest.mark.parametrize(("cell", "decimal"), [("(1,234.00)", "."), ("$(5)", "."), ("(1.234,00 €)", ",")])
def test_an_amount_in_parentheses_is_named_for_what_it_means(cell: str, decimal: DecimalMark) -> None:
    columns = guess_columns(rows(text=TEXTS, result=[f"{n}" for n in range(23)] + [cell]))
    assert columns.task == "number"
    with pytest.raises(DataError, match=r"'result': .* in accounting it means -.*; write it with a minus, or without"):
        check_decimal(["12", cell], "result", decimal)


def test_many_labels_that_come_again_and_again_are_no_free_text() -> None:
    many = [f"intent_{n % 80}" for n in range(400)]
    found = guess_columns(rows(text=[f"Do the thing number {n}" for n in range(400)], intent=many))
    assert (found.task, len(found.labels)) == ("labels", 80)
    twice = [f"answer {n % 80}" for n in range(160)]
    assert guess_columns(rows(text=TEXTS * 6 + TEXTS[:16], answer=twice), label="answer").task == "text"


def test_the_noise_of_float32_is_no_decimals() -> None:
    """Twelve decimals were written, and so learned, of marks with one."""
    noisy = [3.799999952316284, "2.5999999046325684", "5.0"]
    assert number_options(noisy, "score") == {"currency": ""}
    assert number_options(["$5"], "fair_value") == {"currency": "$"}
