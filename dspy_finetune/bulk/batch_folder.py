"""batch_folder.py: the folder of one run by batches: what was cut, what came back, and what is still missing.

In: a task. Out: a `BatchFolder` with its parts; the requests of a part that have no answer yet; every row with its
outcome. Everything is found again after any crash. Not covered: what was sent and created (the journal, batch_run.py).
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dspy_finetune._files import atomic_writer, read_json, read_jsonl, write_json
from dspy_finetune.bulk.asking import RowFailedError, outcome_of
from dspy_finetune.bulk.batch_files import Answers, Part, custom_id, cut, saved_rows
from dspy_finetune.bulk.rows import InputRow, Outcome, Rows
from dspy_finetune.bulk.task import Task
from dspy_finetune.errors import DataError, FileError, UsageError
from dspy_finetune.jobs.journal import Journal
from dspy_finetune.predictors.base import FinetunedPredictor

MAX_ATTEMPTS = 3
"""Batches for one part; those refused because the queue was full are not counted."""


class BatchFolder:
    """`OUTPUT.batch`: of this task, cut now or by an earlier run.

    Args:
        path: The folder.
        task: What is asked.
        max_requests: Of one part.
        max_bytes: Of one part.

    Raises:
        UsageError: It holds another run, of which something was sent.
        DataError: The rows are not those that were cut, or the folder is damaged.
        FileError: It cannot be read or written.
    """

    def __init__(self, path: Path, task: Task, *, max_requests: int, max_bytes: int) -> None:
        self.path = path
        self.journal = Journal(path / "journal.jsonl")
        found = self._found(task)
        if found is None:
            parts = cut(task.rows, path, max_requests=max_requests, max_bytes=max_bytes)
            found = {"id": uuid.uuid4().hex, "run": task.described, "parts": [asdict(part) for part in parts]}
            write_json(path / "run.json", found)  # nothing is sent before it is there
        self.id = str(found["id"])
        self.parts = [Part(**part) for part in found["parts"]]

    @property
    def n_rows(self) -> int:
        """Of all parts."""
        return sum(part.n_rows for part in self.parts)

    @property
    def n_requests(self) -> int:
        """Of all parts."""
        return sum(part.n_requests for part in self.parts)

    def answer_file(self, part: Part, attempt: int, kind: str) -> Path:
        """Where the answers of an attempt stand: "output" or "errors"."""
        return self.path / f"{part.name}.{attempt}.{kind}.jsonl"

    def answers(self, part: Part) -> Answers:
        """All answers to a part that are here."""
        attempts = range(1, MAX_ATTEMPTS + 1)
        files = [self.answer_file(part, attempt, kind) for attempt in attempts for kind in ("errors", "output")]
        return Answers([path for path in files if path.exists()])

    def missing(self, part: Part) -> set[str]:
        """The requests of a part that have no answer, or one that another try may better."""
        answers = self.answers(part)
        asked = (row["custom_id"] for _, row in read_jsonl(self.path / f"{part.name}.jsonl"))
        return {identity for identity in asked if identity not in answers or identity in answers.retryable}

    def requests(self, part: Part, attempt: int) -> Path:
        """The file of an attempt: the part itself, or those of its requests that have no answer yet."""
        first = self.path / f"{part.name}.jsonl"
        path = self.path / f"{part.name}.{attempt}.jsonl"
        if attempt == 1 or path.exists():
            return first if attempt == 1 else path
        missing = self.missing(part)
        with open(first, "rb") as source, atomic_writer(path) as target:
            for line in source:
                if json.loads(line)["custom_id"] in missing:
                    target.write(line)
        return path

    def bodies(self) -> Iterator[Mapping[str, Any]]:
        """The body of every request."""
        for part in self.parts:
            for _, request in read_jsonl(self.path / f"{part.name}.jsonl"):
                yield request["body"]

    def outcomes(self, predictor: FinetunedPredictor) -> Iterator[tuple[InputRow, Outcome]]:
        """Every row with what became of it, in order."""
        saved = saved_rows(self.path)
        for part in self.parts:
            answers = self.answers(part)
            for _ in range(part.n_rows):
                row, n_requests = next(saved)
                if row.problem is not None:
                    yield row, Outcome(status="bad_row", error=row.problem)
                    continue
                found = [answers.completion(custom_id(row.index, number)) for number in range(n_requests)]
                failures = [one for one in found if isinstance(one, RowFailedError)]
                completions = [one for one in found if not isinstance(one, RowFailedError)]
                yield row, outcome_of(predictor, row, completions, failures[0] if failures else None)

    def remove(self) -> None:
        """The run is complete: the folder goes."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _found(self, task: Task) -> dict[str, Any] | None:
        """What an earlier run wrote, or None."""
        try:
            found = read_json(self.path / "run.json", "a run by batches", "remove the folder to start afresh")
        except FileError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        differing = [name for name, value in _plain(task.described).items() if found["run"].get(name) != value]
        if differing and not self.journal.entries():
            return None  # nothing was sent, so nothing is lost; a call that is put right must not be refused
        if differing:
            raise UsageError(
                f"{self.path} holds another run: its {differing[0]} differs; finish that one, choose another output, "
                "or remove the folder to start afresh"
            )
        if task.described["input"] is None:
            self._check_rows(task.rows)
        return found

    def _check_rows(self, rows: Rows) -> None:
        # A file is known by its hash, rows in memory one by one.
        for saved, row in zip_longest(saved_rows(self.path), rows):
            if saved is None or row is None or saved[0].digest != row.digest:
                place = row.place if row is not None else "the end of the rows"
                raise DataError(
                    f"{place} is not what was asked before ({self.path} holds what was sent): the input or its order "
                    "has changed; bring the old one back, or remove the folder to start afresh"
                )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
