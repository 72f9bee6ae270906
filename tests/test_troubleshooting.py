"""docs/troubleshooting.md lists every class, code and message of an error or warning that the code can give."""

from __future__ import annotations

import pytest

from dspy_finetune import errors
from tests import error_messages


def test_the_page_holds_every_message_of_the_code_and_no_other() -> None:
    assert error_messages.differences() == [], "python -m tests.error_messages --write"


def test_every_class_of_errors_is_told() -> None:
    tree = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    raised = {one.kind for one in error_messages.messages()}

    assert tree - {"FinetuneError"} <= set(error_messages.CLASSES)
    assert raised <= set(error_messages.CLASSES)


def test_what_is_explained_by_hand_is_a_message_of_the_code() -> None:
    explained = list(error_messages.frequent())

    assert len(explained) >= 15
    assert set(explained) <= {one.text for one in error_messages.messages()}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("cannot … …: permission denied", "FileError"),  # from a table, through a variable and a helper
        ("…: the answer was cut off by its length (…)", "NoAnswerError"),
        ("the answer … is none of the labels …", "AnswerError"),
        ("not JSON (a comma before ])", "RowError"),  # given to a method that makes the error
        ("The model `…` does not exist or you do not have access to it.", "ApiError"),
        ("… sends no log-probabilities: probability is None", "warning"),
    ],
)
def test_a_message_is_found_however_it_is_put_together(text: str, kind: str) -> None:
    assert (text, kind) in {(one.text, one.kind) for one in error_messages.messages()}
