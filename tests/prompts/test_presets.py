"""The presets' bytes are pinned in golden files; their answers are read by the documented rules."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_finetune.errors import AnswerError, RowError, UsageError
from dspy_finetune.prompts import NumberFormat, PromptFormat, answer, binary, explained_pairwise, number, pairwise

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


class Favorite(dspy.Signature):
    """Does this reader finish the article?"""

    title: str = dspy.InputField()
    is_favorite: bool = dspy.OutputField()


@pytest.mark.parametrize(
    ("of_a_signature", "of_names"),
    [
        (binary("title -> is_favorite: bool", rubric=RUBRIC), binary(rubric=RUBRIC)),
        (pairwise("title_a, title_b -> preferred: Literal['A', 'B']"), pairwise()),
        (
            explained_pairwise("title_a, title_b -> preferred: Literal['A', 'B'], explanation", rubric=RUBRIC),
            explained_pairwise(RUBRIC),
        ),
        (answer("question -> answer"), answer()),
        (answer("question -> answer", system="You teach."), answer("You teach.")),
        (number("product -> price: float"), number()),
    ],
)
def test_a_signature_gives_the_prompt_that_its_field_names_give(
    of_a_signature: PromptFormat, of_names: PromptFormat
) -> None:
    assert of_a_signature.digest == of_names.digest


def test_a_signatures_own_instructions_are_the_system_message() -> None:
    prompt = binary(Favorite, rubric="Likes bees.")
    assert prompt.messages({"title": "Bees"}) == [
        {"role": "system", "content": "Does this reader finish the article?\n\nTaste rubric:\nLikes bees."},
        {"role": "user", "content": "Title: Bees"},
    ]
    assert prompt.signature.equals(Favorite)
    assert answer(dspy.Signature("q -> a", "Be brief.")).messages({"q": "x"})[0]["content"] == "Be brief."
    task = number(dspy.Signature("flat -> rent: int", "What is the {monthly} rent?"), currency="€", position="after")
    assert task.training_messages({"flat": "two rooms", "rent": 900}) == [
        {"role": "user", "content": "What is the {monthly} rent?\n\ntwo rooms"},
        {"role": "assistant", "content": "900 €"},
    ]


def test_a_signature_may_have_more_inputs_and_other_labels() -> None:
    flagged = binary("subject, body -> is_spam: Literal['spam', 'ham']")
    assert flagged.system == "Choose for the item: is spam. Answer spam or ham."
    assert flagged.messages({"subject": "Hi", "body": "x"})[1]["content"] == "Subject: Hi\nBody: x"
    both = pairwise("reader, title_a, by_a, title_b, by_b -> preferred: Literal['A', 'B']")
    row = {"reader": "Ana", "title_a": "Bees", "by_a": "Bo", "title_b": "Rust", "by_b": "Cy"}
    assert both.messages(row)[1]["content"] == "Reader: Ana\nA title: Bees\nA by: Bo\nB title: Rust\nB by: Cy"
    asked = answer("context, question -> answer")
    assert asked.messages({"context": "x", "question": "y"})[1]["content"] == "Context: x\nQuestion: y"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: binary("title -> liked"), "binary: an output with two labels is needed"),
        (lambda: binary("title -> liked: Mood"), "is no signature"),
        (lambda: binary(dspy.Example(title="x")), "a dspy.Signature is needed first"),
        (lambda: binary("Likes bees.", rubric="Likes bees."), "rubric= is given twice"),
        (lambda: pairwise("title_a, title_b -> preferred: bool"), "does not say which item"),
        (lambda: pairwise("title_a, title_b -> preferred: Literal['B', 'A']"), "the first label names the first item"),
        (lambda: pairwise("title -> preferred: Literal['A', 'B']"), "two inputs"),
        (lambda: explained_pairwise("title_a, title_b -> preferred: Literal['A', 'B']"), "one text output"),
        (lambda: number("product -> price"), "no output is int, float or Decimal"),
    ],
)
def test_a_signature_that_does_not_fit_is_told(make: Callable[[], PromptFormat], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()


@pytest.mark.parametrize("value", [0.0, 0.99, 12.5, 1199.99, 1e6])
def test_a_number_on_the_log_scale_comes_back_to_half_a_percent(value: float) -> None:
    prompt = number("product -> price: float", scale="log")
    text = prompt.completion({"price": value})
    assert text == f"{math.log(1 + value):.2f}"
    assert prompt.parse(text)["price"] == pytest.approx(value, rel=0.006, abs=0.005)
    # What another program says in a text is the price itself.
    assert prompt.codec("price").read("$40.00") == 40.0
    loaded = PromptFormat.from_dict(prompt.to_dict())
    assert (loaded.digest, loaded.completion({"price": value})) == (prompt.digest, text)


def test_whole_numbers_are_rounded_back_from_the_log_scale() -> None:
    prompt = number("post -> votes: int", scale="log", decimals=4)
    for value in (0, 1, 17, 250):
        assert prompt.parse(prompt.completion({"votes": value})) == {"votes": value}


def test_a_plain_scale_leaves_the_saved_prompt_as_it_was() -> None:
    saved = number("product -> price: float").to_dict()["number"]
    assert saved == {
        "decimals": 2,
        "currency": "$",
        "position": "before",
        "thousands": False,
        "strict": False,
        "kind": "float",
    }


def test_what_has_no_logarithm_is_refused() -> None:
    prompt = number("product -> price: float", scale="log")
    with pytest.raises(RowError, match=r"-1.5 has no logarithm.*plain"):
        prompt.completion({"price": -1.5})
    with pytest.raises(AnswerError, match="too large for a logarithm"):
        prompt.parse("1199.99")
    with pytest.raises(UsageError, match="a JSON answer holds the number itself"):
        PromptFormat("product -> price: float", completion="json", number=NumberFormat(scale="log"))
    with pytest.raises(UsageError, match='scale: "plain" or "log"'):
        NumberFormat(scale="log10")  # type: ignore[arg-type]


def test_a_label_that_is_no_taste_is_asked_about_by_its_own_name() -> None:
    assert binary("message -> urgent: bool").system == "Does this hold for the message: urgent? Answer true or false."
    assert binary("headline -> liked: bool").system == "Would this reader like the headline? Answer true or false."
    assert pairwise("a, b -> bigger: Literal['A', 'B']").system == "Which one: bigger? Answer A or B."
    assert (
        explained_pairwise("text_a, text_b -> clearer: Literal['A', 'B'], why").system
        == "Which text: clearer? Answer A or B, then why."
    )


@pytest.mark.parametrize(
    ("signature", "expected"),
    [("text -> score: float", "3.80"), ("text -> sale_price: float", "$3.80"), ("text -> salary: float", "$3.80")],
)
def test_numbers_are_dollars_where_the_name_says_money(signature: str, expected: str) -> None:
    """A score was trained as an amount of money."""
    prompt = number(signature)
    assert prompt.completion({next(iter(prompt.signature.output_fields)): 3.8}) == expected
