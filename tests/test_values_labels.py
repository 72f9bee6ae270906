"""A label is read where one label alone can be meant, and refused everywhere else."""

from __future__ import annotations

import enum
from typing import Any, Literal

import numpy
import pytest

from dspy_finetune.errors import AnswerError, RowError, UsageError
from dspy_finetune.values import LabelSet

BOOL = LabelSet({True: "true", False: "false"})


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@pytest.mark.parametrize(
    "text",
    [
        "true",
        " true\n",
        "TRUE",
        "True.",
        '"true"',
        "'True'",
        "`true`",
        "“true”",
        "**true**",
        '"true."',
        '"true".',
        "true!",
        "yes",
        "T",
        "1",
    ],
)
def test_case_space_quotes_one_mark_and_other_words_are_forgiven(text: str) -> None:
    assert BOOL.decode(text) is True


@pytest.mark.parametrize(
    "text", ["", " ", "on", "2", "10", "not true", "true false", "true!!", "true, because", "truefalse", '"']
)
def test_anything_else_is_refused_and_kept(text: str) -> None:
    with pytest.raises(AnswerError) as caught:
        BOOL.decode(text)
    assert caught.value.text == text


def test_a_label_that_begins_another_is_its_own() -> None:
    labels = LabelSet({"A": "A", "AB": "AB", "A B": "A B"})
    assert [labels.decode(text) for text in ("a.", "ab", '"A B"')] == ["A", "AB", "A B"]


def test_where_case_tells_labels_apart_the_case_must_match() -> None:
    labels = LabelSet({"lower": "a", "upper": "A", "other": "x"})
    assert (labels.decode("a."), labels.decode("A."), labels.decode("X")) == ("lower", "upper", "other")
    with pytest.raises(AnswerError, match="more than one"):
        LabelSet({1: "Yes", 2: "yEs"}).decode("yes")


def test_marks_and_quotes_that_belong_to_a_label_are_read_as_such() -> None:
    labels = LabelSet({1: "yes", 2: "yes.", 3: '"yes"'})
    assert [labels.decode(text) for text in ("yes", "yes.", '"yes"')] == [1, 2, 3]
    with pytest.raises(AnswerError, match="more than one"):
        labels.decode("'yes.'")


@pytest.mark.parametrize(
    ("annotation", "texts"),
    [
        (bool, ("true", "false")),
        (Literal["A", "B"], ("A", "B")),
        (Literal[1, 2, 3], ("1", "2", "3")),
        (Literal[True, False], ("true", "false")),
        (Size, ("small", "large")),
    ],
)
def test_the_texts_follow_from_the_type(annotation: Any, texts: tuple[str, ...]) -> None:
    labels = LabelSet.of(annotation)
    assert labels is not None
    assert labels.texts == texts
    assert [labels.encode(labels.decode(text)) for text in texts] == list(texts)
    assert LabelSet.of(annotation) == labels
    assert len(labels) == len(texts) == len(list(labels))


@pytest.mark.parametrize("annotation", [str, int, float, list[str], Any, bool | None])
def test_other_types_have_no_labels(annotation: Any) -> None:
    assert LabelSet.of(annotation) is None


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"a": "x"}, "at least two"),
        ({"a": "x", "b": "x"}, "the text 'x'"),
        ({"a": "x", "b": " x "}, "the text 'x'"),
        ({"a": "x", "b": " "}, "must hold something"),
        ({"a": "x", "b": ""}, "must hold something"),
        ({"a": "x", "b": 3}, "must hold something"),
    ],
)
def test_labels_that_could_not_be_told_apart_are_refused(labels: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        LabelSet(labels)


@pytest.mark.parametrize("annotation", [Literal[1, "1"], Literal[1, True], Literal["true", True], Literal["a", None]])
def test_types_whose_texts_coincide_are_refused(annotation: Any) -> None:
    with pytest.raises(UsageError):
        LabelSet.of(annotation)


@pytest.mark.parametrize("value", [1, 0, "true", "True", None, 1.0, [True]])
def test_what_merely_looks_like_a_label_is_not_written(value: Any) -> None:
    with pytest.raises(RowError, match="none of the labels"):
        BOOL.encode(value)


def test_what_is_the_same_label_in_other_clothes_is_written() -> None:
    sizes = LabelSet.of(Size)
    assert sizes is not None
    assert sizes.encode("small") == sizes.encode(Size.SMALL) == "small"
    assert LabelSet({"small": "s", "large": "l"}).encode(Size.LARGE) == "l"
    assert BOOL.encode(numpy.True_) == "true"
    assert LabelSet({"A": "A", "B": "B"}).encode(numpy.str_("B")) == "B"
