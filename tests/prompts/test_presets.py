"""The presets' bytes are pinned in golden files; their answers are read by the documented rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dspy_finetune.errors import AnswerError, UsageError
from dspy_finetune.prompts import PromptFormat, answer, binary, explained_pairwise, number, pairwise

GOLDEN = Path(__file__).parent / "golden"
RUBRIC = "Likes first-hand accounts of building things.\nDislikes lists, {gossip} and launches."

CASES: dict[str, tuple[PromptFormat, dict[str, Any]]] = {
    "binary": (binary(RUBRIC), {"title": 'How I "fixed" {my} kiln\nTitle: x', "is_favorite": True}),
    "pairwise": (pairwise(RUBRIC), {"title_a": "A year of bees", "title_b": "Ten apps\nB: C:\\new", "preferred": "A"}),
    "explained_pairwise": (
        explained_pairwise(RUBRIC),
        {"title_a": "A year of bees", "title_b": "Ten apps", "preferred": "B", "explanation": "It shows the work."},
    ),
    "answer": (
        answer("You are a helpful educational assistant."),
        {"question": "What is a mole?\nBe brief.", "answer": "A unit.\n\n6.022e23 things."},
    ),
    "number": (number(), {"product": "Copper kettle\n2 litres, {red}", "price": 1199.99}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_bytes_are_those_of_the_golden_file(name: str) -> None:
    """If this fails on purpose, raise RENDERING_VERSION: a model trained on the old bytes must not be served others."""
    prompt, row = CASES[name]
    made = {"messages": prompt.training_messages(row), "digest": prompt.digest}
    assert made == json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert prompt.parse(prompt.completion(row)) == {field: row[field] for field in prompt.output_fields}


def test_the_instructions_are_short() -> None:
    for prompt in (binary(), pairwise(), explained_pairwise()):
        assert len(prompt.system.split()) <= 16


def test_a_users_own_field_names_work() -> None:
    liked = binary(input="headline", output="liked")
    assert liked.training_messages({"headline": "Bees", "liked": False})[1:] == [
        {"role": "user", "content": "Headline: Bees"},
        {"role": "assistant", "content": "false"},
    ]
    assert "headline" in liked.system
    for made in (
        pairwise(inputs=("left", "right"), output="best"),
        explained_pairwise(inputs=("left", "right"), output="best"),
    ):
        row = {"left": "x", "right": "y", "best": "B", "explanation": "so"}
        assert made.messages(row)[1]["content"] == "A: x\nB: y"
        assert made.parse(made.completion(row))["best"] == "B"
    explained = explained_pairwise(explanation="reason")
    assert explained.parse("A: so") == {"preferred": "A", "reason": "so"}
    asked = answer("", input="prompt", output="reply")
    assert asked.messages({"prompt": "x"}) == [{"role": "user", "content": "x"}]
    priced = number("", input="summary", output="usd", currency="USD", position="after")
    assert priced.training_messages({"summary": "x", "usd": 5}) == [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "5.00 USD"},
    ]


def test_names_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="different names"):
        binary(input="x", output="x")
    with pytest.raises(UsageError, match="not a field name"):
        binary(input="not a name")
    with pytest.raises(UsageError, match="two fields"):
        pairwise(inputs="ab")  # type: ignore[arg-type]  # the mistake itself
    with pytest.raises(UsageError, match="different names"):
        pairwise(inputs=("a", "a"))


def test_the_first_token_is_the_label() -> None:
    for prompt in (binary(), pairwise(), explained_pairwise()):
        assert prompt.label_field == prompt.output_fields[0]
        assert prompt.labels is not None
        for value, text in prompt.labels.items():
            assert prompt.completion({prompt.output_fields[0]: value, "explanation": "so"}).startswith(text)
    assert answer().label_field is number().label_field is None


@pytest.mark.parametrize(
    ("text", "label", "why"),
    [
        ("A: because", "A", "because"),
        ("A. because", "A", "because"),
        ("A - because", "A", "because"),
        ("A — because", "A", "because"),
        ("(A) because", "A", "because"),
        ("**B**: because", "B", "because"),
        ("b: because", "B", "because"),
        ("B", "B", ""),
        ("B.", "B", ""),
        ("\n A: because\n", "A", "because\n"),
        ("A: one\ntwo", "A", "one\ntwo"),
        ("I would choose A: It shows. Good.", "A", "It shows. Good."),
        ("I'd pick B because it shows", "B", "because it shows"),
        ("I choose title A. It shows.", "A", "It shows."),
        ("My choice is B: so", "B", "so"),
        ("Answer: B\nIt shows.", "B", "It shows."),
        ("A: not B: x", "A", "not B: x"),
    ],
)
def test_an_explained_choice_is_read_by_the_documented_forms(text: str, label: str, why: str) -> None:
    found = explained_pairwise().parse(text)
    assert found["preferred"] == label
    assert found["explanation"].strip() == why.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "neither",
        "Both",
        "A or B",
        "A and B: hard",
        "A good title",
        "I would choose A or B",
        "I would not choose A",
        "AB: x",
        "C: x",
        "I would choose neither A nor B",
        "A: one\nB: two",
        "I would choose A: x\nB: y",
        "B is worse than A",
        "because",
        "I would choose C: x",
    ],
)
def test_a_choice_of_both_or_none_is_refused(text: str) -> None:
    with pytest.raises(AnswerError) as caught:
        explained_pairwise().parse(text)
    assert caught.value.text == text
