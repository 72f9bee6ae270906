"""What holds for any text, any label and any number: round trips, injectivity, and no answer read by guess."""

from __future__ import annotations

import copy
import enum
import functools
import json
import pickle
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal

import dspy
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dspy_finetune.errors import AnswerError, UsageError
from dspy_finetune.prompts import (
    LabelSet,
    NumberFormat,
    PromptFormat,
    answer,
    binary,
    explained_pairwise,
    number,
    pairwise,
)
from dspy_finetune.prompts.template import LINE_BREAKS, escape_line, unescape_line

quick = settings(max_examples=40, deadline=None)

TEXT = st.text()
NASTY = st.one_of(
    TEXT,
    st.text(alphabet='\\nru{}AB:\n\r\u2028\x85"0 ', max_size=12),
    st.sampled_from(["x\nB: y", "{title_b}", "{{rubric}}", "<|im_start|>system", "C:\\new", "\\", "\\\\n", "a\\u2028"]),
)


class Colour(str, enum.Enum):
    RED = "red"
    GREEN = "green"


@functools.cache
def everything() -> list[PromptFormat]:
    """A prompt of every shape."""
    return [
        binary("Likes {braces} and bees."),
        pairwise("Likes bees.", inputs=("left", "right")),
        explained_pairwise("Likes bees."),
        answer(),
        number(),
        PromptFormat("question, context -> answer, confidence: float"),
        PromptFormat("title -> colour: Literal['red', 'green'], why, score: int"),
        PromptFormat("a, b -> c", user="{a} against {b}!", completion="So: {c}"),
        PromptFormat("a, n: int -> c: list[str]", user="{n} times\n\n{a:text}"),
        PromptFormat(_enum_signature(), labels={Colour.RED: "r", Colour.GREEN: "g"}, completion="json"),
    ]


def read_or_none(read: Callable[[str], Any], text: str) -> Any:
    """What was read, or None for an AnswerError that keeps the text; any other error is a failure."""
    try:
        return read(text)
    except AnswerError as error:
        kept = error.text
    assert kept == text
    return None


def _enum_signature() -> type[dspy.Signature]:
    fields = {
        "title": (str, dspy.InputField()),
        "colour": (Colour, dspy.OutputField()),
        "why": (str, dspy.OutputField()),
    }
    signature: type[dspy.Signature] = dspy.Signature(fields, "Name the colour.")
    return signature


@quick
@given(NASTY)
@example("a\\" + "\n")
def test_a_text_on_one_line_comes_back_and_stays_on_one_line(text: str) -> None:
    line = escape_line(text)
    assert unescape_line(line) == text
    assert not set(line) & set(LINE_BREAKS)


@quick
@given(st.text(alphabet=st.characters(exclude_characters=LINE_BREAKS + "\\", exclude_categories=["Cs"])))
def test_ordinary_text_stays_byte_for_byte(text: str) -> None:
    assert escape_line(text) == text


@quick
@given(NASTY)
def test_any_text_in_any_field_comes_back_from_the_messages(text: str) -> None:
    for prompt in everything():
        for name in prompt.input_fields:
            inputs: dict[str, Any] = dict.fromkeys(prompt.input_fields, "plain") | {name: text}
            if "n" in inputs:
                inputs["n"] = 3
                if name == "n":
                    continue
            found = prompt.inputs(prompt.messages(inputs))
            assert found == {key: str(value) if key == "n" else value for key, value in inputs.items()}


@quick
@given(st.lists(NASTY, min_size=4, max_size=4))
def test_different_inputs_give_different_messages(texts: list[str]) -> None:
    for prompt in everything():
        if len(prompt.input_fields) == 2 and "n" not in prompt.input_fields:
            first = dict(zip(prompt.input_fields, texts[:2], strict=True))
            second = dict(zip(prompt.input_fields, texts[2:], strict=True))
            assert (prompt.messages(first) == prompt.messages(second)) == (first == second)


@quick
@given(NASTY, NASTY)
def test_no_text_makes_a_second_line_or_another_role(left: str, right: str) -> None:
    messages = pairwise("Likes bees.").messages({"title_a": left, "title_b": right})
    assert [message["role"] for message in messages] == ["system", "user"]
    lines = messages[1]["content"].splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("A: ")
    assert lines[1].startswith("B: ")
    assert messages[0] == pairwise("Likes bees.").messages({"title_a": "", "title_b": ""})[0]


@quick
@given(NASTY)
def test_any_text_answer_comes_back(text: str) -> None:
    assert answer().parse(answer().completion({"answer": text})) == {"answer": text}
    for label in ("A", "B"):
        values = {"preferred": label, "explanation": text}
        prompt = explained_pairwise()
        assert prompt.completion(values).startswith(f"{label}: ")
        assert prompt.parse(prompt.completion(values)) == values


@quick
@given(NASTY, st.floats(allow_nan=False, allow_infinity=False), st.integers())
def test_several_outputs_come_back(text: str, score: float, count: int) -> None:
    confident = PromptFormat("question -> answer, confidence: float")
    values: dict[str, Any] = {"answer": text, "confidence": score}
    assert confident.parse(confident.completion(values)) == values
    lines = PromptFormat("title -> colour: Literal['red', 'green'], why, score: int")
    values = {"colour": "green", "why": text, "score": count}
    assert lines.parse(lines.completion(values)) == values
    assert len(lines.completion(values).splitlines()) == 3
    coded = PromptFormat("title -> why, ok: bool", completion="{why} ({ok})")
    values = {"why": text, "ok": False}
    assert coded.parse(coded.completion(values)) == values


@quick
@given(st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=6))
def test_every_label_comes_back_or_the_set_is_refused(texts: list[str]) -> None:
    annotation: Any = Literal[tuple(texts)]
    signature = dspy.Signature({"x": (str, dspy.InputField()), "y": (annotation, dspy.OutputField())})
    try:
        prompt = PromptFormat(signature)
    except UsageError:
        trimmed = [text.strip() for text in dict.fromkeys(texts)]
        assert len(trimmed) < 2 or len(set(trimmed)) < len(trimmed) or "" in trimmed
        return
    for text in texts:
        assert prompt.parse(prompt.completion({"y": text})) == {"y": text}


@quick
@given(st.text(), st.sampled_from([("true", "false"), ("A", "AB"), ("a", "A"), ("yes", "yes.")]))
def test_an_answer_is_a_label_only_if_it_says_so(text: str, texts: tuple[str, str]) -> None:
    labels = LabelSet({name: name for name in texts})
    found = read_or_none(labels.decode, text)
    if found is not None:
        assert found.casefold() in text.casefold()
        assert len(text.strip()) <= len(found) + 6


@quick
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_comes_back(value: float) -> None:
    plain = PromptFormat("x -> y: float")
    assert plain.parse(plain.completion({"y": value})) == {"y": value}
    assert NumberFormat(thousands=True).decode(NumberFormat(thousands=True).encode(value)) == value


@quick
@given(st.integers(), st.decimals(allow_nan=False, allow_infinity=False))
def test_every_integer_and_decimal_comes_back(whole: int, value: Decimal) -> None:
    prompt = PromptFormat("x -> y: int")
    assert prompt.parse(prompt.completion({"y": whole})) == {"y": whole}
    style = NumberFormat(kind="decimal")
    assert style.decode(style.encode(value)) == value


@quick
@given(
    st.integers(min_value=-(10**12), max_value=10**12),
    st.sampled_from(["$", "€", "USD", ""]),
    st.sampled_from(["before", "after"]),
    st.booleans(),
)
def test_every_price_comes_back(cents: int, currency: str, position: Any, thousands: bool) -> None:
    prompt = number(currency=currency, position=position, thousands=thousands, strict=True)
    assert prompt.parse(prompt.completion({"price": cents / 100})) == {"price": cents / 100}


@quick
@given(st.text())
def test_a_number_is_never_made_up(text: str) -> None:
    found = read_or_none(number().parse, text)
    assert found is None or any(character.isdigit() for character in text)


@settings(max_examples=10, deadline=None)
@given(st.text(), st.text(min_size=1))
def test_saving_keeps_the_digest_and_the_bytes(text: str, rubric: str) -> None:
    for prompt in [*everything(), binary(rubric), pairwise(rubric, system="Mind {rubric}! {{so}}")]:
        saved = json.loads(json.dumps(prompt.to_dict()))
        loaded = PromptFormat.from_dict(saved)
        assert (loaded, loaded.digest, hash(loaded)) == (prompt, prompt.digest, hash(prompt))
        assert loaded.to_dict() == prompt.to_dict()
        assert loaded.rubric == prompt.rubric
        inputs = {name: 3 if name == "n" else text for name in prompt.input_fields}
        assert loaded.messages(inputs) == prompt.messages(inputs)
        assert pickle.loads(pickle.dumps(prompt)) == copy.deepcopy(prompt) == copy.copy(prompt) == prompt


@quick
@given(st.text(min_size=1), st.text(min_size=1), st.sampled_from(["rubric", "system", "user", "labels", "completion"]))
def test_the_digest_changes_with_the_bytes(first: str, second: str, part: str) -> None:
    assume(first.strip() and second.strip() and "false" not in (first.strip(), second.strip()))

    def made(text: str) -> PromptFormat:
        escaped = text.replace("{", "{{").replace("}", "}}")
        options: dict[str, Any] = {
            "rubric": text,
            "system": escaped,
            "user": escaped + " {title}",
            "labels": {True: text, False: "false"},
            "completion": escaped + "{liked}",
        }
        return PromptFormat("title -> liked: bool", **{part: options[part]})

    one, other = made(first), made(second)
    row = {"title": "Bees", "liked": True}
    is_same = one.training_messages(row) == other.training_messages(row)
    assert (one.digest == other.digest) == is_same == (one == other)
    assert (one.diff(other) == "") == is_same


@quick
@given(st.text())
def test_an_answer_is_read_or_refused_and_nothing_else(text: str) -> None:
    for prompt in everything():
        found = read_or_none(prompt.parse, text)
        assert found is None or tuple(found) == prompt.output_fields
