"""One table says what each text reads as: that of docs/values.md. Every caller is held to it, case by case."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import dspy
import numpy
import pytest

from dspy_finetune.data import load_examples
from dspy_finetune.errors import AnswerError, RowError, RowsError
from dspy_finetune.prompts import LabelSet, NumberFormat, PromptFormat
from dspy_finetune.values import match_label, read_number, same_label

PAGE = (Path(__file__).parents[1] / "docs" / "values.md").read_text(encoding="utf-8")
FAILURE = "*parse failure*"
ASKED = "asked"
CODE = re.compile(r"(?P<ticks>`+)(?P<code>.*?)(?<!`)(?P=ticks)(?!`)")


@dataclass(frozen=True)
class Case:
    """One text of the table."""

    heading: str
    """The field's type, as the section says it."""
    text: str
    """What is read."""
    answer: str
    """What the table says that an answer reads as."""
    cell: str
    """What it says of a cell in a file."""

    @property
    def annotation(self) -> Any:
        return annotation_of(self.heading)

    @property
    def number(self) -> NumberFormat | None:
        return NumberFormat(decimals=2, currency="$") if "written" in self.heading else None

    @property
    def value(self) -> Any:
        """What an answer reads as, or FAILURE."""
        return value_of(self.answer, self.annotation)

    @property
    def labels(self) -> list[Any]:
        """The labels of the field, none where it is a number."""
        found = LabelSet.of(self.annotation)
        return list(found) if found is not None else []


def annotation_of(heading: str) -> Any:
    return eval(heading.partition(", written")[0], {"Literal": Literal})


def value_of(text: str, annotation: Any) -> Any:
    if text in (FAILURE, ASKED):
        return text
    if annotation is bool:
        return {"True": True, "False": False}[text]
    if annotation in (int, float):
        return annotation(text)
    return next(label for label in annotation.__args__ if str(label) == text)


def codes(cell: str) -> list[str]:
    """The code spans of a cell; one blank beside backticks belongs to Markdown."""
    found = [match["code"] for match in CODE.finditer(cell)]
    return [
        (code[1:-1] if code[:1] == code[-1:] == " " and "`" in code else code).replace("\\|", "|").replace("\\n", "\n")
        for code in found
    ]


def rows_of(section: str) -> list[list[str]]:
    return [
        [part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in section.splitlines()
        if line.startswith("| ") and not line.startswith(("| ---", "| an answer", "| the field"))
    ]


def cases() -> list[Case]:
    found: list[Case] = []
    for section in PAGE.split("\n## ")[1:]:
        heading = section.partition("\n")[0]
        if heading.startswith(("Values", "Writing")):
            continue
        for texts, answers, cell in rows_of(section):
            for number, text in enumerate(codes(texts)):
                answer = answers.split("; ")[number] if "; " in answers else answers
                found.append(Case(heading, text, answer, cell))
    return found


CASES = cases()
LABEL_CASES = [case for case in CASES if case.labels]
NUMBER_CASES = [case for case in CASES if not case.labels]


def named(case: Case) -> str:
    return f"{case.heading}: {case.text!a}"


every_case = pytest.mark.parametrize("case", CASES, ids=named)
every_label = pytest.mark.parametrize("case", LABEL_CASES, ids=named)
every_number = pytest.mark.parametrize("case", NUMBER_CASES, ids=named)


def found_by(read: Callable[[], Any]) -> Any:
    """What a caller reads, or FAILURE."""
    try:
        return read()
    except AnswerError:
        return FAILURE


def check(found: Any, expected: Any) -> None:
    assert found == expected
    assert type(found) is type(expected)


def prompt_of(case: Case) -> PromptFormat:
    fields: dict[str, Any] = {"x": (str, dspy.InputField()), "answer": (case.annotation, dspy.OutputField())}
    return PromptFormat(dspy.Signature(fields), number=case.number)


def test_the_whole_table_is_seen() -> None:
    """A change of the page's form must not leave cases out."""
    assert len(LABEL_CASES) > 200
    assert len(NUMBER_CASES) > 120
    assert sum(case.answer == FAILURE for case in CASES) > 100
    assert len({named(case) for case in CASES}) == len(CASES), "a text stands twice"


# -- prompts ----------------------------------------------------------------------------------------------------------


@every_case
def test_a_tuned_models_answer(case: Case) -> None:
    check(found_by(lambda: prompt_of(case).parse(case.text)["answer"]), case.value)


@every_case
def test_what_is_written_is_read_back(case: Case) -> None:
    if case.answer != FAILURE:
        prompt = prompt_of(case)
        check(prompt.parse(prompt.completion({"answer": case.value}))["answer"], case.value)


# -- data -------------------------------------------------------------------------------------------------------------


@every_case
def test_a_cell_of_a_file(case: Case) -> None:
    def load() -> Any:
        try:
            return load_examples([{"answer": case.text}], types={"answer": case.annotation})[0].answer
        except (RowError, RowsError) as error:
            return ASKED if re.search(r'field "answer": .*; write ', str(error)) else str(error)

    check(load(), value_of(case.cell, case.annotation))


# -- values -----------------------------------------------------------------------------------------------------------


@every_label
def test_a_label_among_others(case: Case) -> None:
    found = match_label(case.text, case.labels)
    check(FAILURE if found is None else found, case.value)


@every_label
def test_the_same_label(case: Case) -> None:
    if "'a', 'A'" in case.heading:
        return  # told apart by their case only where all labels are known
    same = [label for label in case.labels if same_label(label, case.text)]
    assert same == ([] if case.answer == FAILURE else [case.value])


@every_number
def test_a_bare_number(case: Case) -> None:
    if case.heading == "float":
        check(found_by(lambda: read_number(case.text)), case.value)


VALUES = [
    (field, code, expected)
    for field, texts, expected in rows_of(PAGE.partition("## Values that")[2].partition("\n## ")[0])
    for code in codes(texts)
]


@pytest.mark.parametrize(("field", "code", "expected"), VALUES)
def test_a_value_that_is_no_text(field: str, code: str, expected: str) -> None:
    value, annotation = eval(code, {"numpy": numpy, "Decimal": Decimal}), annotation_of(field)
    labels = LabelSet.of(annotation)
    reader: Any = NumberFormat() if labels is None else labels
    check(found_by(lambda: reader.read(value)), value_of(expected, annotation))
