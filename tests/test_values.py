"""One table says what each text reads as: that of docs/values.md. Every caller is held to it, case by case."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import dspy
import numpy
import pytest
from dspy.utils import DummyLM

from dspy_finetune.data import load_examples
from dspy_finetune.errors import AnswerError, DataError, RowError, RowsError
from dspy_finetune.evaluation import baselines, metrics
from dspy_finetune.export import export_sft, preferences_from_mistakes
from dspy_finetune.predictors import Cascade, Ensemble, rank
from dspy_finetune.predictors.calibrate import _label_of
from dspy_finetune.prompts import LabelSet, NumberFormat, PromptFormat, number
from dspy_finetune.values import Unparseable, label_text, load_number, match_label, read_number, same_label
from tests.evaluation.comparing import compare_programs

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
            for place, text in enumerate(codes(texts)):
                answer = answers.split("; ")[place] if "; " in answers else answers
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


@pytest.mark.parametrize(
    "text",
    ["**a" * 50_000, "```" + " " * 50_000, ".a" * 50_000 + ",", "1 a" * 50_000, "<think>" * 20_000,
     "answer" + " " * 50_000, "[[ ## a ## ]]" * 10_000, "{" * 50_000, "_ _" * 30_000, "<a>" * 30_000,
     "</s> " * 50_000 + "x", "-" * 4_000 + "1"],
    ids=lambda text: text[:6],
)  # fmt: skip
def test_a_long_text_is_refused_without_long_thought(text: str) -> None:
    """A pattern that tries every split of 100,000 characters takes minutes."""
    for decode in (LabelSet({True: "true", False: "false"}).decode, NumberFormat().decode):
        with pytest.raises(AnswerError) as caught:
            decode(text)
        assert caught.value.text == text
    with pytest.raises(Unparseable):
        load_number(text)
    assert label_text(text)


# -- prompts ----------------------------------------------------------------------------------------------------------


@every_case
def test_a_tuned_models_answer(case: Case) -> None:
    check(found_by(lambda: prompt_of(case).parse(case.text)["answer"]), case.value)


@every_case
def test_what_is_written_is_read_back(case: Case) -> None:
    if case.answer != FAILURE:
        prompt = prompt_of(case)
        check(prompt.parse(prompt.completion({"answer": case.value}))["answer"], case.value)


LAYOUTS = {
    "chat": "[[ ## answer ## ]]\n{}\n\n[[ ## why ## ]]\nIt is.\n\n[[ ## completed ## ]]",
    "xml": "<answer>\n{}\n</answer>\n<why>\nIt is.\n</why>",
    "lines": "<think>\n\n</think>\n\n{}\nWhy: It is.",
}


@every_case
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_answer_beside_another_output(case: Case, layout: str) -> None:
    """In DSPy's own layouts and in lines of a template, a label or number is read by the same table."""
    if re.search(r"\n|[<\[]|^\s|```", case.text) or (layout == "lines" and not case.labels):
        return  # its own marks would be taken for the layout's
    fields: dict[str, Any] = {"x": (str, dspy.InputField()), "answer": (case.annotation, dspy.OutputField())}
    signature = dspy.Signature(fields).append("why", dspy.OutputField(), type_=str)
    prompt = PromptFormat(signature) if layout == "lines" else PromptFormat.from_adapter(signature, layout)
    if "written" not in case.heading:  # an adapter has no number format
        expected = FAILURE if case.value == FAILURE else {"answer": case.value, "why": "It is."}
        assert found_by(lambda: prompt.parse(LAYOUTS[layout].format(case.text))) == expected


@every_case
def test_an_answer_without_the_adapters_marks(case: Case) -> None:
    fields: dict[str, Any] = {"x": (str, dspy.InputField()), "answer": (case.annotation, dspy.OutputField())}
    prompt = PromptFormat.from_adapter(dspy.Signature(fields), dspy.ChatAdapter())
    if "written" not in case.heading:
        check(found_by(lambda: prompt.parse(case.text)["answer"]), case.value)


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


# -- evaluation -------------------------------------------------------------------------------------------------------


def example_of(value: Any) -> dspy.Example:
    return dspy.Example(x="?", answer=value).with_inputs("x")


@every_label
def test_accuracy_of_one_item(case: Case) -> None:
    metric = dataclasses.replace(metrics.accuracy("answer"), if_parse_failure=None, labels=LabelSet.of(case.annotation))
    for label in case.labels:
        found = found_by(functools.partial(metric, example_of(label), dspy.Prediction(answer=case.text)))
        assert found == (FAILURE if case.answer == FAILURE else float(label == case.value))


@every_number
def test_the_error_of_one_item(case: Case) -> None:
    if case.heading == "float":
        metric = metrics.mean_absolute_error("answer")
        found = found_by(lambda: metric(example_of(100.0), dspy.Prediction(answer=case.text)))
        assert found == (FAILURE if case.answer == FAILURE else abs(case.value - 100.0))


class Says:
    """A program that answers with one text, and knows its labels."""

    def __init__(self, text: Any, labels: list[Any]) -> None:
        self.text = text
        self.labels = labels
        self.output = "answer"

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        return dspy.Prediction(answer=self.text)


class Declares(dspy.Module):
    """A program with a typed prompt, whose module says what it likes."""

    def __init__(self, case: Case, value: Any) -> None:
        super().__init__()
        self.prompt = prompt_of(case)
        self.value = value

    def forward(self, **inputs: Any) -> dspy.Prediction:
        return dspy.Prediction(answer=self.value)


def rows_for(case: Case) -> list[dspy.Example]:
    values = case.labels * 2 or ([12, 40] if case.annotation is int else [12.5, 40.25])
    return [dspy.Example(x=str(place), answer=value).with_inputs("x") for place, value in enumerate(values)]


@pytest.mark.parametrize("heading", dict.fromkeys(case.heading for case in CASES))
def test_compare(heading: str) -> None:
    """Programs that answer in text beside a tuned one: their parse failures are counted, and never as wrong."""
    cases = [case for case in CASES if case.heading == heading]
    rows = rows_for(cases[0])
    metric = metrics.accuracy("answer") if cases[0].labels else metrics.within("answer", absolute=0.0)
    programs: dict[str, Any] = {
        "tuned": Declares(cases[0], rows[0].answer),
        **{case.text: Says(case.text, []) for case in cases},
    }
    found = compare_programs(programs, rows, [metric], n_resamples=10)
    for case, row in zip(cases, found.programs[1:], strict=True):
        failures = len(rows) if case.answer == FAILURE else 0
        right = 0 if case.answer == FAILURE else sum(one.answer == case.value for one in rows)
        assert (row.n_parse_failures, row.n_wrong) == (failures, len(rows) - failures - right), case
        read = None if case.answer == FAILURE else case.value
        assert [answer.outputs["answer"] for answer in found.answers[case.text]] == [read] * len(rows)


@every_label
def test_a_score_of_a_set(case: Case) -> None:
    rows = rows_for(case)
    metric = dataclasses.replace(metrics.balanced_accuracy("answer"), labels=LabelSet.of(case.annotation))
    _, read = metric.columns(rows, [dspy.Prediction(answer=case.text)] * len(rows))
    labels = LabelSet.of(case.annotation)
    assert labels is not None
    assert read == [None if case.answer == FAILURE else labels.key(case.value)] * len(rows)


def test_labels_that_differ_in_case_alone_are_told_apart_in_scores() -> None:
    labels = LabelSet.of(Literal["a", "A", "x"])
    rows = [example_of("a"), example_of("A"), example_of("x")]
    said = [dspy.Prediction(answer=text) for text in ("A.", "A", "X")]
    accuracy = dataclasses.replace(metrics.accuracy("answer"), labels=labels)
    assert [accuracy(row, one) for row, one in zip(rows, said, strict=True)] == [0.0, 1.0, 1.0]
    recall = dataclasses.replace(metrics.recall("answer", positive="a"), labels=labels)
    precision = dataclasses.replace(metrics.precision("answer", positive="A"), labels=labels)
    assert (recall(rows, said), precision(rows, said)) == (0.0, 0.5)


@pytest.mark.parametrize("case", [case for case in LABEL_CASES if case.heading == "Literal[1, 2, 3, 4, 5]"], ids=named)
def test_a_judges_grade(case: Case) -> None:
    lm = DummyLM([{"grade": case.text}] * 3, adapter=dspy.ChatAdapter())
    metric = dataclasses.replace(
        metrics.rubric_score("answer", rubric="Good answers are short.", lm=lm), if_parse_failure=None
    )
    found = found_by(lambda: metric(example_of("good"), dspy.Prediction(answer="fine")))
    assert found == (FAILURE if case.answer == FAILURE else (case.value - 1) / 4)


@pytest.mark.parametrize("case", [case for case in CASES if case.answer not in (FAILURE,)], ids=named)
def test_baselines_count_labels_as_they_read(case: Case) -> None:
    if "'a', 'A'" in case.heading or case.heading.startswith("float, written"):
        return  # told apart by their case, or by their format, only where these are known
    if case.labels:
        other = next(label for label in case.labels if label != case.value)
        train = [example_of(value) for value in (case.value, case.text, other)]
        assert baselines.majority(train, label="answer")().answer == case.value
    elif case.cell != ASKED and case.value < 2**53:  # the median is a float
        assert baselines.median([example_of(case.text)], label="answer")().answer == case.value


def test_a_bool_is_no_number() -> None:
    """True given for a price was scored as 1.0."""
    rows = [example_of(1.0), example_of(2.0), example_of(3.0)]
    said = [dspy.Prediction(answer=value) for value in (True, 2.0, 3.0)]
    with pytest.raises(AnswerError):
        metrics.mean_absolute_error("answer")(rows[0], said[0])
    for metric in (metrics.kendall_tau("answer"), metrics.root_mean_squared_error("answer")):
        assert metric.columns(rows, said)[1] == [None, 2.0, 3.0]
    assert metrics.within("answer", absolute=1.0)(rows[0], said[0]) == 0.0


# -- predictors -------------------------------------------------------------------------------------------------------


@every_label
def test_an_ensembles_member(case: Case) -> None:
    ensemble = Ensemble([Says(case.text, case.labels)], voting="majority", output="answer")
    check(found_by(lambda: ensemble(x="?").answer), case.value)


@every_number
def test_an_ensembles_number(case: Case) -> None:
    ensemble = Ensemble([DeclaredOutput(case)], voting="median", output="answer")
    expected = case.value if case.answer == FAILURE else float(case.value)  # the median is a float
    check(found_by(lambda: ensemble(x="?").answer), expected)


class DeclaredOutput:
    """A program with a prompt, whose answer is still a text."""

    def __init__(self, case: Case) -> None:
        self.prompt = prompt_of(case)
        self.text = case.text

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        return dspy.Prediction(answer=self.text)


@every_label
def test_an_answer_that_stands_in_a_cascade(case: Case) -> None:
    """One that cannot be read is in doubt, whatever its probability."""
    sure = Says(case.text, case.labels)
    cheap = lambda **inputs: dspy.Prediction(**sure(**inputs).toDict(), agreement=1.0)  # noqa: E731 -- one line of a test
    cascade = Cascade([cheap, Says(case.labels[0], case.labels)], output="answer")
    assert cascade(x="?").escalated is (case.answer == FAILURE)


@every_label
def test_a_cascades_accuracy(case: Case) -> None:
    rows = [dspy.Example(x=str(place), answer=label).with_inputs("x") for place, label in enumerate(case.labels * 10)]
    choice = Cascade.choose([Says(case.text, case.labels), Says(None, case.labels)], rows, output="answer")
    assert choice.cheap_accuracy == (0.0 if case.answer == FAILURE else 1 / len(case.labels))


@pytest.mark.parametrize("case", [case for case in LABEL_CASES if case.heading == "Literal['A', 'B']"], ids=named)
def test_a_pair_in_a_ranking(case: Case) -> None:
    says = Says(case.text, [])
    asked = functools.partial(rank, ["ants", "bees", "cats"], says, fields={"a": "b"}, output="answer")
    if case.answer == FAILURE:
        with pytest.raises(DataError, match="none of 3 comparisons could be read"):
            asked()
    else:
        assert asked().n_comparisons > 0


@every_label
def test_the_labels_that_calibration_reads(case: Case) -> None:
    labels = LabelSet.of(case.annotation)
    assert labels is not None
    found = _label_of(case.text, labels)
    check(case.text if case.answer == FAILURE else case.value, found)


# -- export -----------------------------------------------------------------------------------------------------------


@every_case
def test_a_mistake_is_another_label_and_not_another_spelling(case: Case) -> None:
    prompt = prompt_of(case)
    rows = rows_for(case)[: len(case.labels) or 2]
    found = preferences_from_mistakes(rows, [{"answer": case.text}] * len(rows), prompt)
    if case.answer == FAILURE:
        assert found.skipped == {"answer could not be read": len(rows)}
        return
    assert len(found) == sum(row.answer != case.value for row in rows)
    for preference in found:
        assert isinstance(preference.rejected, dict)
        assert preference.rejected["answer"] == case.value


def test_small_prices_are_not_trained_as_nothing(tmp_path: Path) -> None:
    """0.0012 was trained as $0.00; now every row that its decimals would change is told, with what holds them all."""
    prices = [12.99, 0.0012, 5.5, 0.00035, 0.1 + 0.2, float(numpy.float32(19.99))]
    rows = [dspy.Example(product=f"item {n}", price=price).with_inputs("product") for n, price in enumerate(prices)]
    with pytest.raises(RowsError) as caught:
        export_sft(rows, number(), tmp_path / "prices.jsonl")
    assert [(error.line, "decimals=5" in str(error.remedy)) for error in caught.value.errors] == [(2, True), (4, True)]
    assert not (tmp_path / "prices.jsonl").exists()
    prompt = number(decimals=5)
    lines = export_sft(rows, prompt, tmp_path / "prices.jsonl").path.read_text(encoding="utf-8").splitlines()
    trained = [prompt.parse(json.loads(line)["messages"][-1]["content"])["price"] for line in lines]
    assert trained == pytest.approx(prices, rel=1e-6)


def test_free_text_is_scored_without_a_templates_marks() -> None:
    exact = metrics.exact_match("answer")
    for text in ("Paris", "<think>\n\n</think>\n\nParis", "<think>Rome?</think>Paris.</s>", "Paris<|im_end|>\n"):
        assert exact(example_of("Paris"), dspy.Prediction(answer=text)) == 1.0
    assert metrics.token_f1("answer")(example_of("<s>a b</s> c"), dspy.Prediction(answer="<s>a b</s> c")) == 1.0
    for text in ("<think>Paris", "<think>Paris</think>"):
        with pytest.raises(AnswerError):
            dataclasses.replace(exact, if_parse_failure=None)(example_of("Paris"), dspy.Prediction(answer=text))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1.299,00 €", 1299.0),
        ("12,50", 12.5),
        ("1.299", 1299.0),
        ("-0,5 %", None),
        ("$1,199.99", None),
        (3.5, 3.5),
        ("7", 7),
    ],
)
def test_a_file_with_decimal_commas_is_read_when_it_is_said_once(text: object, number: float | None) -> None:
    if number is None:
        with pytest.raises(Unparseable, match="decimal comma"):
            load_number(text, ",")
    else:
        assert load_number(text, ",") == number
