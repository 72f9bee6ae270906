"""Ask every program about the same items, with threads and a checkpoint that survives a crash.

In: programs by name, the inputs of the items, a number of threads, a checkpoint path. Out: for each program its
answers in the order of the items, and the wall time. With a checkpoint, an answer is on disk before the next progress
is told; a second run with the same file asks only what is missing, and what had *failed*, which is most often an
outage (`retry_failed`). A program is known in the file by its name: after changing a program, give it another name or
the comparison another file. Not covered: one call (answers.py), scores (compare.py).

The file is JSONL: `{"format": 1}` first, then one line per answer and one per program with the seconds it took. A
last line that was torn by a crash is cut off.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from dspy_finetune._files import file_error, read_jsonl
from dspy_finetune.errors import FileError, RowError
from dspy_finetune.evaluation.answers import Answer, Program, ask, item_key

FORMAT = 1
"""Version of the checkpoint file."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a comparison is: given to `on_progress` after each answer."""

    program: str
    """The program that is being asked."""
    n_done: int
    """Answers so far, over all programs, those from the checkpoint included."""
    n_total: int
    """Answers there will be: programs times items."""
    n_asked: int
    """Answers of this program so far."""
    n_items: int
    """Items each program is asked about."""
    n_unreadable: int
    """Of this program's answers, those that could not be read."""
    n_failed: int
    """Of this program's calls, those that failed."""
    n_resumed: int
    """Answers that came from the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """One program's answers."""

    answers: tuple[Answer, ...]
    """In the order of the items."""
    seconds: float
    """Wall time of asking, with all threads at work, summed over resumed runs."""


@dataclass
class _Checkpoint:
    """What a checkpoint file holds, and its open end."""

    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    stream: BinaryIO | None = None

    def keep(self, row: dict[str, Any]) -> None:
        if self.stream is not None:
            self.stream.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            self.stream.flush()  # a crash of this process loses nothing; a power cut may cost the last lines


def collect(
    programs: Mapping[str, Program],
    inputs: Sequence[Mapping[str, Any]],
    *,
    n_threads: int = 8,
    checkpoint: str | os.PathLike[str] | None = None,
    retry_failed: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Collected]:
    """Ask each program in turn about all items.

    Ctrl-C lets the calls in flight end, keeps them, and goes on upwards.
    """
    seen: dict[str, int] = {}
    keys = [item_key(one, seen) for one in inputs]
    collected: dict[str, Collected] = {}
    n_total, n_before, n_resumed = len(programs) * len(inputs), 0, 0
    with _opened(checkpoint) as kept:
        for name, program in programs.items():
            known = {key: answer for (owner, key), answer in kept.answers.items() if owner == name}
            if retry_failed:
                known = {key: answer for key, answer in known.items() if answer.outcome != "failed"}
            found = {index: known[key] for index, key in enumerate(keys) if key in known}
            n_resumed += len(found)

            def save(index: int, answer: Answer, name: str = name) -> None:
                kept.keep({"program": name, "item": keys[index], **answer.to_dict()})

            def tell(outcomes: Counter[str], name: str = name, before: int = n_before, old: int = n_resumed) -> None:
                if on_progress is not None:
                    on_progress(
                        Progress(
                            program=name,
                            n_done=before + outcomes.total(),
                            n_total=n_total,
                            n_asked=outcomes.total(),
                            n_items=len(inputs),
                            n_unreadable=outcomes["unreadable"],
                            n_failed=outcomes["failed"],
                            n_resumed=old,
                        )
                    )

            start = time.perf_counter()
            try:
                _ask_missing(program, inputs, found, n_threads, save, tell)
            finally:
                seconds = time.perf_counter() - start
                kept.keep({"program": name, "seconds": seconds})
            n_before += len(inputs)
            answers = tuple(found[index] for index in range(len(inputs)))
            collected[name] = Collected(answers=answers, seconds=kept.seconds.get(name, 0.0) + seconds)
    return collected


def _ask_missing(
    program: Program,
    inputs: Sequence[Mapping[str, Any]],
    found: dict[int, Answer],
    n_threads: int,
    save: Callable[[int, Answer], None],
    tell: Callable[[Counter[str]], None],
) -> None:
    """Ask about the items that `found` lacks, in threads, and fill it.

    Saving and telling happen in the calling thread.
    """
    pool = ThreadPoolExecutor(max_workers=max(1, n_threads), thread_name_prefix="compare")
    # Each call gets a copy of the caller's context, so that a program that relies on `with dspy.context(lm=...)`
    # finds it.
    pending: dict[Future[Answer], int] = {
        pool.submit(contextvars.copy_context().run, ask, program, one): index
        for index, one in enumerate(inputs)
        if index not in found
    }
    outcomes: Counter[str] = Counter(answer.outcome for answer in found.values())
    if found:
        tell(outcomes)
    try:
        for future in as_completed(list(pending)):
            answer = future.result()
            index = pending.pop(future)
            save(index, answer)
            found[index] = answer
            outcomes[answer.outcome] += 1
            tell(outcomes)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for future, index in pending.items():  # after Ctrl-C or an error: what had been asked by then is kept
            if not future.cancelled() and future.exception() is None:
                save(index, future.result())


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str] | None) -> Iterator[_Checkpoint]:
    kept = _Checkpoint()
    if path is None:
        yield kept
        return
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            _cut_torn_line(target)
            _read(target, kept)
        stream = target.open("ab")
    except OSError as error:
        raise error if isinstance(error, FileError) else file_error(error, path, "write") from error
    with stream:
        kept.stream = stream
        if not stream.tell():
            kept.keep({"format": FORMAT})
        yield kept


def _cut_torn_line(path: Path) -> None:
    """Cut off what follows the last line end: a crash in the middle of writing leaves half a line."""
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        with path.open("r+b") as stream:
            stream.truncate(content.rfind(b"\n") + 1)


def _read(path: Path, kept: _Checkpoint) -> None:
    for line, row in read_jsonl(path):
        try:
            if "format" in row:
                if row["format"] != FORMAT:
                    raise ValueError(f"format {row['format']}")
            elif "seconds" in row:
                kept.seconds[row["program"]] = kept.seconds.get(row["program"], 0.0) + row["seconds"]
            else:
                name, key = row.pop("program"), row.pop("item")
                kept.answers[name, key] = Answer(**row)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise RowError(
                "this is not a checkpoint of a comparison",
                path=str(path),
                line=line,
                remedy="name another file, or delete this one to ask everything anew",
            ) from error
