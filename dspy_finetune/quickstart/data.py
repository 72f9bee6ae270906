"""The packaged titles: what one reader likes to read, written for this package.

In: `titles.jsonl` and `rubric.txt`, which lie beside this module. Out: `dspy.Example`s with `id`, `title` (the input),
`is_favorite` and, for most rows, `reason`. The reader is invented, the titles are not headlines of any publication,
and all of it was written for this package under its licence (MIT). Labels follow the rubric, with no noise added.
The wording is as varied as the subjects on either side, so that counting words helps little: here a model that reads
leads TF-IDF by more than it would on most real feeds.
Not covered: splitting and pairing, which belong to `dspy_finetune.data`.
"""

import json
import os
from importlib.resources import files

import dspy

from dspy_finetune._files import read_text
from dspy_finetune.data import load_examples
from dspy_finetune.errors import UsageError


def load_rubric() -> str:
    """Return the reader's taste in a few sentences.

    Example:
        >>> load_rubric().startswith("The reader likes")
        True
    """
    return files("dspy_finetune.quickstart").joinpath("rubric.txt").read_text(encoding="utf-8").strip()


def load_titles() -> list[dspy.Example]:
    """Return every packaged title as a `dspy.Example` whose input is `title`.

    Example:
        >>> example = load_titles()[0]
        >>> sorted(example.inputs().keys())
        ['title']
    """
    text = files("dspy_finetune.quickstart").joinpath("titles.jsonl").read_text(encoding="utf-8")
    return [dspy.Example(**json.loads(line)).with_inputs("title") for line in text.splitlines()]


def read_titles(
    path: str | os.PathLike[str] | None, *, text: str, label: str, rubric: str | os.PathLike[str] | None
) -> tuple[list[dspy.Example], str]:
    """Return the titles of a file of the user's own with their rubric, or the packaged ones where there is no file.

    The fields come out as `title` and `is_favorite`, whatever the file calls them; a field that has one of these names
    and was not chosen is left out.

    Raises:
        UsageError: A rubric without a file, or one that is not UTF-8.
        FileError: A file cannot be read.
        RowsError: Rows are wrong; all are named.
    """
    if path is None:
        if rubric is not None:
            raise UsageError("--rubric belongs to data of your own: give --data too")
        return load_titles(), load_rubric()
    examples = [
        dspy.Example(**{**row.toDict(), "title": row[text], "is_favorite": row[label]}).with_inputs("title")
        for row in load_examples(path, inputs=[text], types={label: bool})
    ]
    if rubric is None:
        return examples, ""
    return examples, read_text(rubric)


RUBRIC = load_rubric()
"""The taste rubric, as `load_rubric()` returns it."""
