"""What a training file asks for, and the recipe that the local host takes for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dspy_finetune import tasks


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["true", "false"] * 6, "labels"),
        (["very good", "very bad", "very bad", "very good"], "labels"),
        (["1", "2", "10", "1", "2", "10"], "labels"),
        ([str(number) for number in range(64)] * 2, "labels"),
        ([f"label {number}" for number in range(65)] * 2, "text"),
        (["true", "false", "maybe", "true", "false"], "text"),
        (["true"] * 12, "text"),
        (["$3.50", "$12.00", "$1,999.99"], "numbers"),
        (["3", "4.5", "12"], "numbers"),
        (["3 kg", "4 kg", "12 kg"], "numbers"),
        (["USD 3", "USD 4", "USD 12"], "numbers"),
        (['{"price": 3}', '{"price": 4}', '{"price": 12}'], "numbers"),
        (["-3", "0", "4.5"], "numbers"),
        (["\u22123", "0", "+4"], "numbers"),
        (["-$5.00", "$3.00", "$1,200.00"], "numbers"),
        (["12%", "3%", "45%"], "numbers"),
        (["1.2e-05", "0.034", "5e+16", "12.0"], "numbers"),
        (["$3E4", "$2.5e4", "$7"], "numbers"),
        (["1e999", "2.5", "3"], "text"),
        (["3elms", "4elms", "5elms"], "numbers"),
        (["1.299,00 €", "12,50 €", "999,99 €"], "numbers"),
        (["1 299,5", "12,5", "0,199"], "numbers"),
        (["1'299.00", "12.50", "3.00"], "numbers"),
        ([f"${number}.00" for number in range(12)] * 2, "numbers"),
        ([f"{number / 2}" for number in range(11)] * 2, "labels"),
        (["00017", "00123", "01000"], "text"),
        (["2024-01-31", "2023-05-12", "2022-11-30"], "text"),
        (["12:30", "09:15", "23:59"], "text"),
        (["1.2.3", "1.3.0", "2.0.1"], "text"),
        (["yes"] * 20 + ["no"] * 19 + ["unsure"], "labels"),
        (["yes"] * 9 + ["no"] * 9 + ["unsure"], "text"),
        (["yes"] * 39 + ["no"], "text"),
        (["3 kg", "4 lb", "5 kg"], "text"),
        (["from 3 to 4", "from 4 to 6", "from 1 to 2"], "text"),
        (["A: It shows.", "B: It tells.", "A: Short."], "text"),
    ],
)
def test_answers_are_labels_numbers_or_text(answers: list[str], kind: str) -> None:
    assert tasks.task_of_answers(answers).kind == kind


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([f"label {number}" for number in range(65)] * 2, "labels"),
        ([f"label {number}" for number in range(500)] * 2, "labels"),
        ([f"label {number}" for number in range(501)] * 2, "text"),
        ([f"label {number}" for number in range(300)], "text"),
        ([str(number) for number in range(65)] * 2, "numbers"),
        (["true", "false"] * 6, "labels"),
    ],
)
def test_a_head_that_is_asked_for_takes_more_labels(answers: list[str], kind: str) -> None:
    assert tasks.task_of_answers(answers, tasks.MAX_LABELS).kind == kind


@pytest.mark.parametrize(
    ("answers", "value", "written"),
    [
        (["$3.50", "$12.00", "$19.99"], 72.1, "$72.10"),
        (["3", "4.5", "12.25"], 72.5, "72.5"),
        (["1,200 EUR", "900 EUR", "12,000 EUR"], 1234.4, "1,234 EUR"),
        (["-3", "2", "0"], -0.2, "0"),
        (["-$5.00", "$3.00", "$1.50"], -1234.5, "-$1234.50"),
        (["$-5", "$3", "$1"], -2.0, "$-2"),
        (["\u22123", "0", "+4"], -2.0, "\u22122"),
        (["\u22123", "0", "+4"], 2.0, "+2"),
        (["\u22123", "0", "+4"], 0.0, "0"),
        (["€1.299,00", "€12,50", "€999,99"], 1234567.891, "€1.234.567,89"),
        (["1 299,5", "12,5", "3"], 1234.5, "1 234,5"),
        (["1'299.00", "12.50", "3.00"], 1234.5, "1'234.50"),
        (["12 %", "3 %", "45 %"], 7.4, "7 %"),
        (["1.2e-05", "0.034", "5e+16"], 0.0000123, "1.2e-05"),
        (["$1.25e-05", "-$0.034", "$12"], -1230.0, "-$1.23e+03"),
        (["1.2e-05", "0.034", "12"], 0.0, "0"),
        (["11.655505379404008", "0.00012140880961720626", "3"], 11.655505379404008, "11.655505379404008"),
        (["1.299 €", "2.500 €", "3.750 €", "1.100 €", "4.990 €", "999 €"], 1300.4, "1.300 €"),
        (["1.299", "2.5", "3.75", "1.1", "4.99", "9"], 1.25, "1.25"),
        (["0.125", "0.250", "0.375", "0.500", "0.625", "1"], 0.75, "0.75"),
    ],
)
def test_a_number_is_written_as_the_rows_write_it(answers: list[str], value: float, written: str) -> None:
    style = tasks.number_style(answers)
    assert style is not None
    assert style.write(value) == written
    assert style.read(written) == pytest.approx(value, abs=1 if style.decimals == 0 else 0.01)
    again = [style.write(style.read(answer) or 0.0) for answer in answers]
    assert [style.read(one) for one in again] == [style.read(one) for one in answers]
    assert again == answers or not style.is_fixed
    assert style.read("7 or 8") is None


def test_whole_numbers_that_are_taken_for_names_are_told_how_to_be_amounts() -> None:
    ages = [str(18 + number % 20) for number in range(60)]
    assert "whole numbers without a unit are taken for names" in tasks.task_of_answers(ages).found
    assert "taken for names" not in tasks.task_of_answers(["1", "2", "3", "4", "5"] * 9).found
    assert tasks.task_of_answers([f"{age}.0" for age in ages]).kind == "numbers"
    assert tasks.task_of_answers(ages, told="numbers").kind == "numbers"
    assert tasks.task_of_answers(["1", "2", "3", "4", "5"] * 9, told="numbers").kind == "labels"


def test_what_is_odd_about_labels_is_said() -> None:
    found = tasks.task_of_answers(["yes"] * 20 + ["Yes "] * 20 + ["no"] * 19 + ["unsure"]).found
    assert found.endswith("'unsure' 1), of which 1 is seen once; some differ in case or blanks alone")


def test_a_file_that_trains_on_two_turns_is_no_file_of_labels(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "true"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "true"},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    assert tasks.task_of(path).kind == "text"
    messages[1]["weight"] = 0  # type: ignore[assignment]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    rows = tasks.rows_of(path)
    assert rows is not None
    assert (rows[0][0], rows[1]) == (messages[:3], ["true"])


def test_hundreds_of_labels_with_three_rows_of_each_are_labels() -> None:
    """As of 77 intents: an adapter would take hours for them, and free text is not what is asked for."""
    assert tasks.task_of_answers([f"intent {number}" for number in range(77)] * 3).kind == "labels"
    assert tasks.task_of_answers([f"intent {number}" for number in range(77)] * 2).kind == "text"
    assert tasks.task_of_answers([str(number) for number in range(77)] * 3).kind == "numbers"


def test_more_labels_are_told_of_the_head_that_takes_them(tmp_path: Path) -> None:
    answers = [f"ward {number}" for number in range(70) for _ in range(2)]
    path = tmp_path / "train.jsonl"
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": one}]} for one in answers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = []
    for asked in ("auto", "head"):
        found = tasks.task_of(path, tasks.max_labels(asked, base="toy"))
        told.append(tasks.choose_recipe(found, asked, base="toy"))
    assert [choice.recipe for choice in told] == ["lora", "head"]
    assert 'for which the recipe "head" can be asked for' in str(told[0])
    assert "every answer is one of 70 labels ('ward 0' 2, " in str(told[1])
    encoder = tasks.task_of(path, tasks.max_labels("auto", base=tasks.PACKAGED_ENCODER))
    assert tasks.choose_recipe(encoder, "auto", base=tasks.PACKAGED_ENCODER).recipe == "head"
