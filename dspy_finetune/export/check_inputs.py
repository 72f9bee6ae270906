"""Inputs that are empty: a question such as "Title: ", which ends where those of the other rows go on.

In: the questions of rows and their lines. Out: `input-empty` issues. What belongs to the template is read off the rows
themselves, so that a file of any origin can be checked: a line "Title:" with nothing behind it counts where at least
half of the looked-at rows have a line that begins so, and some of them with something behind it.
Not covered: an empty value inside a line ("Bees in , today"), and a field that is empty in nearly all rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from dspy_finetune.export.check_report import KEPT_PER_CODE, IssueLog

_LABEL = r"[^\n:]{1,80}:"
_BARE = re.compile(rf"^({_LABEL})[^\S\n]*$(?=\Z|\n{_LABEL}(?:[^\S\n]|$))", re.MULTILINE)
"""A label with nothing behind it, at the end or before another label."""
_HEADED = re.compile(r"^(\[\[ ## \w+ ## \]\])\n[^\S\n]*\n|^(<(\w+)>)\n[^\S\n]*\n</\3>$", re.MULTILINE)
"""An empty field as DSPy's adapters write it."""
_LAST = itemgetter(-1)
_MOST_PLACES, _MOST_CHARS = 1000, 500
_ASKED = 500
"""So many questions tell what the template is."""
_LEAST_SHARE, _LEAST_FILLED = 0.5, 0.05


def may_lack(question: str) -> bool:
    """Whether a question is worth a closer look; nearly none is."""
    return (
        question[-1:] == ":"
        or question[-1:].isspace()
        or ("\n" in question and (": \n" in question or ":\n" in question or "\n\n" in question))
    )


@dataclass
class _Place:
    """Rows in which nothing stands at one place."""

    n_rows: int = 0
    at: list[tuple[int, str]] = field(default_factory=list)  # line and JSON path of the first of them


class EmptyInputs:
    """Finds the rows whose question may lack an input, and tells those that do.

    >>> found, log = EmptyInputs(), IssueLog()
    >>> questions = ["Title: Bees", "Title: Ants", "Title: "]
    >>> found.look_many(1, questions, "messages[0].content")
    >>> found.report(log, questions)
    >>> [(issue.line, issue.message) for issue in log.issues()]
    [(3, 'nothing stands behind "Title:"')]
    """

    def __init__(self) -> None:
        self._labels: dict[str, _Place] = {}  # by label
        self._ends: dict[str, _Place] = {}  # by the question up to its last word and a blank
        self._alone: dict[str, _Place] = {}  # by the first label of questions that are nothing but labels
        self._headed: dict[str, _Place] = {}  # by an adapter's heading

    def look_many(self, first: int, questions: list[str], path: str) -> None:
        """Look at the questions of consecutive lines, none blank; nearly always all are whole, told at once."""
        # The ends of lines: to search the texts for ": \n" takes several times as long.
        lines = "\n".join(questions).split("\n") if "\n" in "".join(questions) else []
        ends = set(map(_LAST, questions))
        if ":" not in ends and not any(map(str.isspace, ends.union(map(_LAST, filter(None, lines))))):
            return
        for line, question in enumerate(questions, start=first):
            if may_lack(question):
                self.note(line, question, path)

    def note(self, line: int, question: str, path: str) -> None:
        """Take a row that may lack an input; `path` is the question's place in it."""
        whole = question.rstrip()
        headed = [match[1] or match[2] for match in _HEADED.finditer(question)]
        labels = [match[1] for match in _BARE.finditer(question)]
        if labels and not _BARE.sub("", question).strip():
            _add(self._alone, labels[0], line, path)
        elif headed:
            _add(self._headed, headed[0], line, path)
        elif labels:
            for label in labels:
                _add(self._labels, label, line, path)
        elif whole != question and len(whole) <= _MOST_CHARS:
            _add(self._ends, question[: len(whole) + 1], line, path)

    def report(self, log: IssueLog, questions: Sequence[str]) -> None:
        """Report the rows that lack an input, going by the questions of the first rows."""
        questions = questions[:: len(questions) // _ASKED + 1]
        for label, place in self._headed.items():
            _tell(log, place, f"nothing stands behind {_quoted(label)}")
        for places, least_filled in ((self._labels, _LEAST_FILLED), (self._alone, -1.0)):
            for label, place in places.items():
                if _is_template(label, questions, least_filled):
                    _tell(log, place, f"nothing stands behind {_quoted(label)}")
        for start, place in self._ends.items():
            longer = sum(question.startswith(start) and len(question.rstrip()) > len(start) for question in questions)
            if longer >= _LEAST_SHARE * len(questions) > 0:
                _tell(log, place, f"the question ends where others go on, behind {_quoted(start.rstrip()[-40:])}")


def _is_template(label: str, questions: Sequence[str], least_filled: float) -> bool:
    """Whether a label is part of what the rows share, and has something behind it in more than so many of them."""
    beginning = re.compile(rf"^{re.escape(label)}([^\S\n]*\S)?", re.MULTILINE)
    n_rows = n_filled = 0
    for question in questions:
        found = beginning.search(question)
        n_rows += found is not None
        n_filled += found is not None and found[1] is not None
    return n_rows >= _LEAST_SHARE * len(questions) and n_filled > least_filled * len(questions)


def _add(places: dict[str, _Place], key: str, line: int, path: str) -> None:
    place = places.get(key)
    if place is None:
        if len(places) >= _MOST_PLACES:
            return
        place = places[key] = _Place()
    place.n_rows += 1
    if len(place.at) < KEPT_PER_CODE:
        place.at.append((line, path))


def _tell(log: IssueLog, place: _Place, message: str) -> None:
    for line, path in place.at:
        log.add(line, path, "input-empty", message)
    log.counts["input-empty"] += place.n_rows - len(place.at)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
