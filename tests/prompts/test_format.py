"""The rules of PromptFormat: what goes where, what is refused, what is saved, what is an image."""

from __future__ import annotations

import enum
import json
import pickle
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

import dspy
import numpy
import pydantic
import pytest

import dspy_finetune.prompts.format as format_module
from dspy_finetune.errors import AnswerError, RowError, UsageError
from dspy_finetune.prompts import NumberFormat, PromptFormat, binary, number, pairwise
from dspy_finetune.prompts.answers import codec_of


class Tone(enum.Enum):
    """How it sounds."""

    WARM = "warm"
    COLD = "cold"


class Source(pydantic.BaseModel):
    """Where it stood."""

    name: str
    pages: list[int] = pydantic.Field(default=[], description="Pages.")
    year: int | None = None


@dataclass
class Point:
    x: int
    y: float


def contents(prompt: PromptFormat, **inputs: Any) -> list[Any]:
    return [message["content"] for message in prompt.messages(inputs)]


# Templates


def test_defaults_come_from_the_signature() -> None:
    prompt = PromptFormat("page_title, author -> is_favorite: bool")
    assert contents(prompt, page_title="Bees", author="Ann") == [
        "Given the fields `page_title`, `author`, produce the fields `is_favorite`.",
        "Page title: Bees\nAuthor: Ann",
    ]
    assert prompt.completion({"is_favorite": False}) == "false"
    assert (prompt.input_fields, prompt.output_fields) == (("page_title", "author"), ("is_favorite",))
    assert prompt.label_field == "is_favorite"
    assert prompt.labels is not None
    assert prompt.labels.texts == ("true", "false")


def test_the_rubric_stands_where_the_template_says_or_at_the_end() -> None:
    assert contents(PromptFormat("a -> b", rubric="Bees {x}", system="Mind {rubric}!"), a="1")[0] == "Mind Bees {x}!"
    assert (
        contents(PromptFormat("a -> b", rubric="Bees {x}", system="Judge."), a="1")[0]
        == "Judge.\n\nTaste rubric:\nBees {x}"
    )
    assert contents(PromptFormat("a -> b", rubric="Bees", system=""), a="1")[0] == "Taste rubric:\nBees"
    assert contents(PromptFormat("a -> b", system="{{rubric}} {instructions}"), a="1")[0].startswith(
        "{rubric} Given the"
    )
    assert contents(PromptFormat("a -> b", system=""), a="1") == ["A: 1"]
    assert (
        contents(PromptFormat("a, rubric -> b", system="By {rubric}.", user="{a}"), a="1", rubric="x\ny")[0]
        == "By x\\ny."
    )
    with pytest.raises(UsageError, match="no rubric is given"):
        PromptFormat("a -> b", system="{rubric}")
    with pytest.raises(UsageError, match="rename the field"):
        PromptFormat("a, rubric -> b", rubric="x")


def test_how_a_value_is_written_follows_from_where_it_stands() -> None:
    two = "one\ntwo"
    assert contents(PromptFormat("a -> b", system="", user="{a}"), a=two) == [two]
    assert contents(PromptFormat("a -> b", system="", user="Read:\n\n{a}\n\nNow."), a=two) == [
        f"Read:\n\n{two}\n\nNow."
    ]
    assert contents(PromptFormat("a -> b", system="", user="Read: {a}"), a=two) == ["Read: one\\ntwo"]
    assert contents(PromptFormat("a, c -> b", system="", user="{a} or {c}"), a=two, c='"') == ['"one\\ntwo" or "\\""']
    assert contents(PromptFormat("a, c -> b", system="", user="Q: {c}\n{a:text}"), a=two, c=two) == [
        "Q: one\\ntwo\none\ntwo"
    ]
    assert contents(PromptFormat("a -> b", system="", user="{a:json}"), a=two) == ['"one\\ntwo"']
    assert contents(PromptFormat("a -> b", system="", user="{a:line}"), a=two) == ["one\\ntwo"]
    assert contents(PromptFormat("a -> b", system="", user="{{a}} {a}"), a="{a}") == ["{a} {a}"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"user": "{x} {a}"}, r"unknown placeholder \{x\}; known here: \{a\}, \{c\}"),
        ({"user": "{a!r} {c}"}, "unknown placeholder"),
        ({"user": "{} {a} {c}"}, "unknown placeholder"),
        ({"user": "{a.x} {c}"}, "unknown placeholder"),
        ({"user": "{a:>9} {c}"}, "unknown placeholder"),
        ({"user": "{a"}, "lone"),
        ({"user": "a} {a} {c}"}, "lone"),
        ({"user": "{a}{c}"}, "touch"),
        ({"user": "{a} and{c}x {a}y"}, "put a space"),
        ({"user": "{a:text} {c}"}, "could not be read back"),
        ({"user": "{a:line} {c}"}, "another slot"),
        ({"user": "{a}"}, r"\{c\} stands in no template"),
        ({"user": ""}, "stands in no template"),
        ({"user": "{b} {a} {c}"}, "unknown placeholder"),
        ({"system": "{b}"}, "unknown placeholder"),
        ({"completion": "{a}"}, "unknown placeholder"),
        ({"completion": "yes"}, r"\{b\} has no place"),
        ({"completion": "{b} or {b}"}, "twice"),
        ({"labels": {True: "x", False: "y"}}, "labels are for"),
        ({"number": NumberFormat()}, "no output is"),
    ],
)
def test_templates_that_cannot_work_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        PromptFormat("a, c -> b", **options)


def test_labels_that_cannot_be_told_apart_in_a_layout_are_refused() -> None:
    with pytest.raises(UsageError, match="could not be told"):
        PromptFormat("a -> b: Literal['x', 'x: y'], c", completion="{b}: {c}")
    with pytest.raises(UsageError, match="which a number could hold"):
        PromptFormat("a -> b: float, c", completion="{b}.{c}")
    fine = PromptFormat("a -> b: Literal['x', 'xy'], c", completion="{b}: {c}")
    assert fine.parse("xy: x: 1") == {"b": "xy", "c": "x: 1"}


# Values


def test_none_is_written_where_the_inputs_type_has_it() -> None:
    made = dspy.Signature({"text": (str | None, dspy.InputField()), "ok": (bool, dspy.OutputField())}, "Is it?")
    prompt = PromptFormat.from_dict(PromptFormat(made).to_dict())
    assert prompt.messages({"text": None})[-1]["content"] == "Text: null"
    assert prompt.messages({"text": "a"})[-1]["content"] == "Text: a"
    beside = PromptFormat(made, user="{text:json} is it")
    assert beside.messages({"text": None})[-1]["content"] == "null is it"
    with pytest.raises(RowError, match='field "text": is missing'):
        prompt.messages({})


def test_a_type_that_cannot_be_saved_is_named_as_it_was_written() -> None:
    for annotation, name in ((Literal[1, None], r"Literal\[1, None\]"), (tuple[int, int], r"tuple\[int, int\]")):
        made = dspy.Signature({"text": (str, dspy.InputField()), "kind": (annotation, dspy.OutputField())}, "Which?")
        with pytest.raises(UsageError, match=f"the type {name} cannot be saved"):
            PromptFormat(made)


def test_a_missing_or_empty_field_is_named() -> None:
    prompt = pairwise()
    with pytest.raises(RowError, match='field "title_b": is missing'):
        prompt.messages({"title_a": "x"})
    with pytest.raises(RowError, match='field "title_a": is None'):
        prompt.messages(dspy.Example(title_a=None, title_b="x"))
    with pytest.raises(RowError, match='field "preferred": is missing'):
        prompt.completion({"title_a": "x"})
    with pytest.raises(RowError, match=r'field "preferred": .*none of the labels "A", "B"'):
        prompt.completion({"preferred": "C"})
    with pytest.raises(RowError, match='field "title_a": character 1 is half of a surrogate pair'):
        prompt.messages({"title_a": "x\ud83d", "title_b": "x"})
    with pytest.raises(UsageError, match=r"mapping or a dspy.Example"):
        prompt.messages(None)
    with pytest.raises(UsageError, match=r"mapping or a dspy.Example"):
        prompt.messages("x")
    with pytest.raises(AnswerError):
        prompt.parse(None)  # type: ignore[arg-type]  # the mistake itself


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (0.5, "0.5"),
        (True, "true"),
        ([1, "ü\n"], '[1, "ü\\n"]'),
        ({"k": [None]}, '{"k": [null]}'),
        (Tone.WARM, "warm"),
        (Point(x=1, y=2.0), '{"x": 1, "y": 2.0}'),
        (Source(name="n"), '{"name": "n", "pages": [], "year": null}'),
        (Decimal("1.50"), "1.50"),
        (date(2026, 1, 2), "2026-01-02"),
        (numpy.int64(3), "3"),
        (numpy.array([1, 2]), "[1, 2]"),
        (numpy.str_("x"), "x"),
        (["\u2028"], '["\\u2028"]'),
    ],
)
def test_inputs_that_are_no_text_are_written_as_json(value: Any, text: str) -> None:
    annotation = list if isinstance(value, list) else str
    signature = dspy.Signature({"a": (annotation, dspy.InputField()), "b": (str, dspy.OutputField())})
    prompt = PromptFormat(signature, system="", user="A: {a}")
    assert contents(prompt, a=value) == [f"A: {text}"]
    assert prompt.inputs(prompt.messages({"a": value})) == {"a": value if annotation is list else text}


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], object(), {1, object()}])
def test_inputs_without_a_json_form_are_refused(value: Any) -> None:
    with pytest.raises(RowError, match='field "a"'):
        PromptFormat("a -> b").messages({"a": value})


def test_outputs_of_every_type_come_back() -> None:
    class Everything(dspy.Signature):
        """Answer."""

        question: str = dspy.InputField()
        tone: Tone = dspy.OutputField()
        grade: Literal[1, 2] = dspy.OutputField()
        ok: bool = dspy.OutputField()
        text: str = dspy.OutputField()
        price: Decimal = dspy.OutputField()
        source: Source = dspy.OutputField()
        pairs: dict[str, list[float]] = dspy.OutputField()
        maybe: str | None = dspy.OutputField()
        day: date = dspy.OutputField()

    values = {
        "tone": Tone.COLD,
        "grade": 2,
        "ok": False,
        "text": 'x\n"y"\u2028',
        "price": Decimal("1.50"),
        "source": Source(name="n", pages=[1]),
        "pairs": {"k": [1.5]},
        "maybe": None,
        "day": date(2026, 1, 2),
    }
    for completion in ("json", None):
        prompt = PromptFormat(Everything, completion=completion)
        assert prompt.parse(prompt.completion(values)) == values
    loaded = PromptFormat.from_dict(json.loads(json.dumps(prompt.to_dict())))
    assert loaded == prompt
    assert loaded.completion(values) == prompt.completion(values)
    assert loaded.parse(prompt.completion(values))["tone"].value == "cold"
    schema = PromptFormat(Everything, completion="json").response_format
    assert schema is not None
    assert schema["json_schema"]["schema"]["properties"]["tone"] == {"type": "string", "enum": ["warm", "cold"]}
    assert schema["json_schema"]["schema"]["properties"]["grade"] == {"type": "integer", "enum": [1, 2]}
    assert schema["json_schema"]["strict"] is False  # a dict of any keys cannot be closed


def test_what_its_own_type_would_round_is_refused() -> None:
    """A date written by the day trains as another date, a float written with one digit as another number."""
    rounded = Annotated[float, pydantic.PlainSerializer(lambda number: round(number, 1))]
    by_day = Annotated[datetime, pydantic.PlainSerializer(lambda when: when.strftime("%Y-%m-%dT00:00:00"))]
    for annotation, good, bad in (
        (list[rounded], [0.1], [0.12]),
        (list[by_day], [datetime(2026, 1, 2)], [datetime(2026, 1, 2, 3)]),
    ):
        codec = codec_of(annotation)
        assert codec.decode(codec.encode(good)) == good
        with pytest.raises(RowError, match="read back as another value"):
            codec.encode(bad)
    for value in (date(2026, 1, 2), datetime(2026, 1, 2, 3, 4, 5, 678901), timedelta(microseconds=1), Decimal("1e-30")):
        codec = codec_of(type(value))
        assert codec.decode(codec.encode(value)) == value


def test_wrong_outputs_are_refused_by_name() -> None:
    prompt = PromptFormat("a -> b: list[int], c: float, d")
    good = {"b": [1], "c": 1.0, "d": "x"}
    for name, value in {"b": ["x"], "c": "1", "d": 3}.items():
        with pytest.raises(RowError, match=f'field "{name}"'):
            prompt.completion({**good, name: value})
        with pytest.raises(AnswerError):
            prompt.parse(json.dumps({**good, name: value}))
    for name in good:
        with pytest.raises(RowError, match=f'field "{name}": .*None'):
            prompt.completion({**good, name: None})


def test_json_answers_have_a_closed_schema() -> None:
    prompt = PromptFormat("q -> answer, source: list[str], confidence: float")
    assert prompt.response_format == {
        "type": "json_schema",
        "json_schema": {
            "name": "answer",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "answer": {"type": "string"},
                    "source": {"type": "array", "items": {"type": "string"}},
                    "confidence": {"type": "number"},
                },
                "required": ["answer", "source", "confidence"],
                "additionalProperties": False,
            },
        },
    }
    assert (prompt.label_field, prompt.stop, prompt.max_tokens) == (None, (), None)
    nested = dspy.Signature(
        {"q": (str, dspy.InputField()), "s": (list[Source], dspy.OutputField()), "t": (str, dspy.OutputField())}
    )
    schema = PromptFormat(nested).response_format["json_schema"]  # type: ignore[index]  # never None for JSON answers
    assert schema["strict"] is True
    assert schema["schema"]["$defs"]["Source"]["required"] == ["name", "pages", "year"]
    assert schema["schema"]["$defs"]["Source"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[]",
        '{"b": "x"}',
        '{"b": "x", "c": 1, "z": 1}',
        '{"b": "x", "b": "y", "c": 1}',
        '{"b": "x", "c": "1"}',
        '{"b": "x", "c": NaN}',
        '{"b": 1, "c": 1}',
        '{"b": "x", "c": true}',
        '{"b": "x", "c": 1} and',
        "[" * 100000,
    ],
)
def test_json_answers_are_read_strictly(text: str) -> None:
    prompt = PromptFormat("a -> b, c: float")
    with pytest.raises(AnswerError) as caught:
        prompt.parse(text)
    assert caught.value.text == text
    assert prompt.parse('```json\n{"c": 1, "b": "x"}\n```') == {"b": "x", "c": 1.0}


def test_the_first_label_opens_the_answer() -> None:
    prompt = PromptFormat("title -> ok: bool, why_so, score: int")
    row = {"ok": True, "why_so": "one\ntwo", "score": 3}
    assert prompt.completion(row) == "true\nWhy so: one\\ntwo\nScore: 3"
    assert prompt.parse("TRUE.\n\nwhy so:  one\nscore: 3 \n") == {"ok": True, "why_so": "one", "score": 3}
    assert (prompt.label_field, prompt.response_format) == ("ok", None)
    for text in ("true", "maybe\nWhy so: x\nScore: 3", "true\nWhy so: x", "true\nWhy so: x\nScore: many"):
        with pytest.raises(AnswerError):
            prompt.parse(text)
    middle = PromptFormat("title -> why, ok: bool", completion="Because {why}, {ok}")
    assert middle.completion({"why": "a, b", "ok": True}) == 'Because "a, b", true'
    assert middle.parse('because "a, b",  TRUE') == {"why": "a, b", "ok": True}
    assert middle.label_field is None


def test_labels_can_be_renamed_and_given_to_texts() -> None:
    prompt = PromptFormat("title -> ok: bool", labels={True: "yes", False: "no"})
    assert (prompt.completion({"ok": True}), prompt.parse("No."), prompt.max_tokens) == ("yes", {"ok": False}, 3)
    with pytest.raises(AnswerError):
        prompt.parse("maybe")
    assert prompt.parse("true") == {"ok": True}
    listed = PromptFormat("title -> mood", labels=["glad", "sad"])
    assert (listed.label_field, listed.parse("GLAD")) == ("mood", {"mood": "glad"})
    toned = dspy.Signature({"a": (str, dspy.InputField()), "tone": (Tone, dspy.OutputField())})
    renamed = PromptFormat(toned, labels={Tone.WARM: "w", Tone.COLD: "c"})
    assert renamed.parse("C") == {"tone": Tone.COLD}
    for each in (prompt, listed, renamed):
        loaded = PromptFormat.from_dict(json.loads(json.dumps(each.to_dict())))
        assert loaded == each
        assert loaded.labels is not None
        assert loaded.labels.texts == each.labels.texts  # type: ignore[union-attr]  # each has labels
    with pytest.raises(UsageError, match="labels are for"):
        PromptFormat("title -> ok: bool", labels={"yes": "yes", "no": "no"})


# Images


def test_images_become_content_parts() -> None:
    signature = dspy.Signature("picture: dspy.Image, more: list[dspy.Image], title -> answer")
    prompt = PromptFormat(signature, system="", user="See {picture} by {title}:\n{more}\nName it.")
    url = "https://example.com/bee.png"
    part = {"type": "image_url", "image_url": {"url": url}}
    row = {"picture": dspy.Image(url), "more": [url, dspy.Image(url)], "title": "x\ny"}
    assert prompt.messages(row)[0]["content"] == [
        {"type": "text", "text": "See "},
        part,
        {"type": "text", "text": ' by "x\\ny":\n'},
        part,
        part,
        {"type": "text", "text": "\nName it."},
    ]
    loaded = PromptFormat.from_dict(json.loads(json.dumps(prompt.to_dict())))
    assert loaded.messages(row) == prompt.messages(row)
    with pytest.raises(RowError, match=r'field "picture": .*not an image'):
        prompt.messages({**row, "picture": "bee.png"})
    with pytest.raises(RowError, match="is an image in a field of text"):
        prompt.messages({**row, "title": dspy.Image(url)})
    with pytest.raises(UsageError, match="user messages only"):
        PromptFormat(dspy.Signature("picture: dspy.Image -> answer"), system="{picture}", user="{picture}")


# Saving and comparing


def test_types_that_cannot_be_saved_are_refused_by_name() -> None:
    class Aliased(pydantic.BaseModel):
        x: int = pydantic.Field(alias="y")

    class Bounded(pydantic.BaseModel):
        x: int = pydantic.Field(ge=3)

    for annotation in (Aliased, Bounded, set[str], tuple[int, int], bytes, dict[int, str], dspy.History, Point):
        signature = dspy.Signature({"a": (str, dspy.InputField()), "bad": (annotation, dspy.OutputField())})
        with pytest.raises(UsageError, match="bad"):
            PromptFormat(signature)


def test_saved_prompts_are_rebuilt_without_the_users_code() -> None:
    prompt = PromptFormat(
        dspy.Signature({"a": (Source, dspy.InputField()), "b": (Tone, dspy.OutputField(desc="How."))})
    )
    saved = json.dumps(prompt.to_dict())
    loaded = PromptFormat.from_dict(json.loads(saved))
    assert json.dumps(loaded.to_dict()) == saved
    assert loaded.signature.output_fields["b"].json_schema_extra["desc"] == "How."
    assert loaded.signature.instructions == prompt.signature.instructions
    assert pickle.loads(pickle.dumps(loaded)) == prompt


@pytest.mark.parametrize(
    "damage", [{"version": 99}, {"version": None}, {"signature": {}}, {"signature": None}, {"kind": "adapter"}]
)
def test_what_is_no_saved_prompt_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PromptFormat.from_dict({**binary().to_dict(), **damage})
    with pytest.raises(UsageError):
        PromptFormat.from_dict({"version": 1})


def test_the_digest_is_the_same_on_every_python() -> None:
    """Python 3.13 leaves the indentation of docstrings out; before, it is kept."""

    def prompt(doc: str) -> PromptFormat:
        class Kind(enum.Enum):
            BUG = "bug"
            ASK = "ask"

        class Report(pydantic.BaseModel):
            kind: Kind

        Kind.__doc__ = Report.__doc__ = doc
        return PromptFormat(dspy.Signature({"text": (str, dspy.InputField()), "report": (Report, dspy.OutputField())}))

    assert prompt("One.\n\n            Two.\n            ").digest == prompt("One.\n\nTwo.\n").digest
    assert prompt("One.").digest != prompt("Two.").digest


def test_the_digest_ignores_what_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PromptFormat("title -> ok: bool", system="Judge.")
    described = dspy.Signature(
        {"title": (str, dspy.InputField(desc="A headline.")), "ok": (bool, dspy.OutputField())}, "Other."
    )
    assert PromptFormat(described, system="Judge.", user="Title: {title}") == plain
    assert PromptFormat("title -> ok: bool", system="Judge.", labels={True: "true", False: "false"}) == plain
    assert plain != "Judge."
    assert len({plain, PromptFormat(described, system="Judge.")}) == 1
    assert number() != number(strict=True)
    assert number() != number(decimals=3)
    monkeypatch.setattr(format_module, "RENDERING_VERSION", 2)
    assert PromptFormat("title -> ok: bool", system="Judge.").digest != plain.digest


def test_a_difference_is_shown_line_by_line() -> None:
    assert binary("Bees.").diff(binary("Bees.")) == ""
    shown = binary("Bees.\nHives.").diff(binary("Bees.\nHoney."))
    assert "-system: Hives.\n+system: Honey." in shown
    assert "Bees" in repr(shown)
    assert len(repr(binary("x" * 999))) < 80
    assert repr(binary()).startswith("PromptFormat(title -> is_favorite, digest=")


def test_messages_are_fresh_each_time() -> None:
    prompt = binary("Bees.")
    prompt.messages({"title": "x"})[0]["content"] = "spoiled"
    assert prompt.messages({"title": "x"})[0]["content"] != "spoiled"


def test_inputs_are_read_back_only_from_this_prompts_messages() -> None:
    with pytest.raises(UsageError, match="this prompt's form"):
        pairwise().inputs(binary().messages({"title": "x"}))


def test_signatures_need_both_sides() -> None:
    with pytest.raises(UsageError, match="at least one input and one output"):
        PromptFormat(dspy.Signature({"a": (str, dspy.InputField())}, "x"))
