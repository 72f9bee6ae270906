"""Asks every program about the same items: answers, outcomes, threads, and a checkpoint that survives a crash.

In: programs (a `dspy.Module` or any callable that takes the input fields and returns a prediction) and the inputs of
the items. Out: for each program its `Answer`s in the order of the items, with outputs, latency, tokens and an outcome
that is never mixed with another: *answered*; *parse_failure* (the model spoke, but no answer can be read from it);
*no_answer* (it refused, or was cut off); *failed* (anything else went wrong).

With a checkpoint, an answer is on disk before the next progress is told; a second run with the same file asks only what
is missing, and what had *failed*, which is most often an outage (`retry_failed`). A program is known in the file by its
name: after changing a program, give it another name or the comparison another file. The file is JSONL: `{"format": 1}`
first, then one line per answer and one per program with the seconds it took. Not covered: whether the answers are right
(scoring.py).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import enum
import hashlib
import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError

from dspy_finetune._files import AppendLog, HeldLog
from dspy_finetune.errors import AnswerError, MissingExtraError, NoAnswerError, RowError, UsageError
from dspy_finetune.predictors import FinetunedPredictor
from dspy_finetune.prompts import PromptFormat
from dspy_finetune.prompts.answers import codec_of
from dspy_finetune.values import NUMBER, LabelSet, NumberFormat

logger = logging.getLogger(__name__)

Outcome: TypeAlias = Literal["answered", "parse_failure", "no_answer", "failed"]
"""What became of a question; no_answer: the model refused, was cut off, or only reasoned."""

Program: TypeAlias = Callable[..., Any]
"""A `dspy.Module`, or any callable that takes the input fields by name and returns a `dspy.Prediction` or a mapping."""


def modules_of(program: Program) -> list[tuple[str, Any]]:
    """A program's modules by name, itself first; of any other callable, that alone."""
    return list(program.named_sub_modules()) if isinstance(program, dspy.Module) else [("", program)]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One program's answer to one item."""

    outcome: Outcome
    """Whether there is an answer to score."""
    outputs: Mapping[str, Any]
    """The prediction's fields, as JSON can hold them; empty where the program gave none."""
    latency_ms: float
    """Wall time of the call, waiting for a busy server included."""
    is_cached: bool = False
    """Whether all of its questions to models were answered from DSPy's cache: its time is no model's."""
    is_first: bool = False
    """Whether it was asked alone, before all others: a model may have been loaded in its time."""
    prompt_tokens: int | None = None
    """Tokens sent, as the model reported them; None where no model reported (a baseline, an answer from the cache)."""
    completion_tokens: int | None = None
    """Tokens received; None as above."""
    cost_usd: float | None = None
    """Its tokens times the prices given to `compare`; None without prices or tokens."""
    error: str | None = None
    """Why it cannot be read or failed: the error's kind and first line, cut to 300 characters."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Answer:
        """From JSON; version 0.1 called a parse failure unreadable. Raises TypeError."""
        old = {"outcome": "parse_failure"} if values.get("outcome") == "unreadable" else {}
        return cls(**{**values, **old})

    def prediction(self) -> dspy.Prediction | None:
        """The outputs as a prediction, for metrics; None when there is nothing to score."""
        return dspy.Prediction(**self.outputs) if self.outcome == "answered" else None

    def priced(self, usd_per_million: tuple[float, float] | None) -> Answer:
        """The same with its cost, by the price of a million prompt tokens and of a million completion tokens."""
        if usd_per_million is None or self.prompt_tokens is None:
            return self
        cost = self.prompt_tokens * usd_per_million[0] + (self.completion_tokens or 0) * usd_per_million[1]
        return dataclasses.replace(self, cost_usd=cost / 1e6)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


def ask(program: Program, inputs: Mapping[str, Any]) -> Answer:
    """Ask one program about one item. Global DSPy settings stay as they are.

    Raises:
        MissingExtraError: The program needs a package that is not installed: no item can succeed.
        UsageError: The program was set up wrongly: no item can succeed.
    """
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        # Entered here, in the worker thread: settings live in context variables, and usage tracked around a thread pool
        # is lost (the tracker is copied per thread). Without disable_history every call would be kept in memory. A
        # tracker of our own, because DSPy's keeps no usage of a call that ends in an error, and a parse failure
        # was paid for.
        calls = _LMCalls()
        callbacks = [*(dspy.settings.callbacks or ()), calls]
        stack.enter_context(dspy.context(disable_history=True, trace=None, track_usage=True, callbacks=callbacks))
        tracker = stack.enter_context(dspy.track_usage())
        n_fresh = _count_fresh(tracker)
        outcome, outputs, prediction, error = _call(program, inputs)
        latency_ms = (time.perf_counter() - start) * 1000
        usage = tracker.get_total_tokens()
    if not usage and isinstance(prediction, dspy.Prediction):
        usage = prediction.get_lm_usage()  # of a program that keeps its own books
    return Answer(
        outcome=outcome,
        outputs=outputs,
        latency_ms=latency_ms,
        is_cached=outcome == "answered" and calls.n > 0 and not n_fresh,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        error=error,
    )


class _LMCalls(BaseCallback):
    """How many questions were put to language models."""

    def __init__(self) -> None:
        self.n = 0

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """One more."""
        self.n += 1


def _count_fresh(tracker: Any) -> list[str]:
    """Fills with the model of each answer that did not come from the cache: DSPy tells its tracker of no other."""
    fresh: list[str] = []
    add = tracker.add_usage

    def counted(lm: str, usage: dict[str, Any]) -> None:
        fresh.append(lm)
        add(lm, usage)

    tracker.add_usage = counted
    return fresh


def _call(program: Program, inputs: Mapping[str, Any]) -> tuple[Outcome, dict[str, Any], Any, str | None]:
    try:
        prediction = program(**inputs)
        return "answered", {name: jsonable(value) for name, value in _fields(prediction).items()}, prediction, None
    except NoAnswerError as error:
        return "no_answer", {}, None, first_line(error)
    except (AnswerError, AdapterParseError) as error:
        return "parse_failure", {}, None, first_line(error)
    except (MissingExtraError, UsageError):
        raise
    except Exception as error:  # whatever a program raises is an outcome to count; the others go on
        return "failed", {}, None, first_line(error)


def first_line(error: Exception) -> str:
    """An error's kind and first line, cut to 300 characters."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:300]


def _fields(prediction: Any) -> dict[str, Any]:
    if isinstance(prediction, (dspy.Example, Mapping)):
        return dict(prediction.items())
    raise TypeError(f"the program returned {type(prediction).__name__}; it must return a dspy.Prediction")


def _count(usage: Any, key: str) -> int | None:
    """The sum over the models that were asked; None when none reported."""
    counts = [entry.get(key) for entry in (usage or {}).values() if isinstance(entry, Mapping)]
    known = [int(count) for count in counts if count is not None]
    return sum(known) if known else None


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it, so that a resumed comparison sees what the first one saw.

    Plain values stay; members of an Enum become their values; mappings get text keys (True becomes "true"); pydantic
    models become mappings; numpy scalars Python ones; anything else its text.
    """
    if isinstance(value, enum.Enum):
        return jsonable(value.value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, str) else json.dumps(jsonable(key)): jsonable(item) for key, item in value.items()
        }
    if isinstance(value, dspy.Example):
        return jsonable(dict(value.items()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    for method in ("model_dump", "item"):  # pydantic models; numpy and torch scalars
        if callable(convert := getattr(value, method, None)):
            return jsonable(convert())
    return str(value)


def inputs_text(inputs: Mapping[str, Any]) -> str:
    """An item's inputs as one text: equal for equal inputs, whatever the order of the fields."""
    return json.dumps(jsonable(inputs), sort_keys=True, ensure_ascii=False)


def item_key(inputs: Mapping[str, Any], seen: dict[str, int]) -> str:
    """A key by which an item is found again: a digest of its inputs, and which of its equals it is. Fills `seen`.

    Labels are not part of it: a corrected label needs no new answer.
    """
    digest = hashlib.sha256(inputs_text(inputs).encode("utf-8", "surrogatepass")).hexdigest()[:20]
    seen[digest] = seen.get(digest, 0) + 1
    return f"{digest}-{seen[digest]}"


# How an answer is read: in one way for all programs, with the same tolerance for a baseline that answers in text.


Reader: TypeAlias = LabelSet | NumberFormat
"""How a field's answers are read: as one of its labels, or as a number."""


def reader_of(
    name: str, labels: Sequence[Any], programs: Iterable[Program], *, is_number: bool = False
) -> Reader | None:
    """How a field is read: as the first program with a prompt or a signature declares it, else as its labels tell.

    None where the labels are of too many kinds to say what else is one (see `LabelSet.among`).
    """
    kind = NumberFormat if is_number else LabelSet
    for reader in (reader for program in programs for reader in _declared(program, name)):
        if isinstance(reader, kind) and _reads_all(reader, labels):
            return reader
    return NUMBER if is_number else LabelSet.among(labels)


def _declared(program: Program, name: str) -> Iterator[Reader | None]:
    for _, part in modules_of(program):
        prompt = getattr(part, "prompt", None)
        if isinstance(prompt, PromptFormat):
            if name in prompt.output_fields:
                yield prompt.codec(name).reader
            continue
        outputs = getattr(getattr(part, "signature", None), "output_fields", None) or {}
        if name in outputs:
            with contextlib.suppress(UsageError):  # a Literal whose members cannot be told apart by their texts
                yield codec_of(outputs[name].annotation).reader


def _reads_all(reader: Reader, labels: Sequence[Any]) -> bool:
    try:
        for label in labels:
            reader.read(label)
    except AnswerError:
        return False
    return True


def read_field_of(answers: Sequence[Answer], name: str, reader: Reader) -> tuple[Answer, ...]:
    """The answers with one field read; None stands in it, and the reason in `error`, for a parse failure."""
    found = []
    for answer in answers:
        if answer.outcome != "answered" or name not in answer.outputs:
            found.append(answer)
            continue
        said = answer.outputs[name]
        # A baseline may answer a whole number with 12.5: a number is a number, only texts are read by the format.
        own = NUMBER if isinstance(reader, NumberFormat) and not isinstance(said, str) else reader
        try:
            value, error = jsonable(own.read(said, name=name)), answer.error
        except AnswerError as failure:
            value, error = None, first_line(failure)
        found.append(dataclasses.replace(answer, outputs={**answer.outputs, name: value}, error=error))
    return tuple(found)


def with_parse_failures(answers: Sequence[Answer], name: str) -> tuple[Answer, ...]:
    """The answers; those whose field `read_field_of` could not read are parse failures."""
    return tuple(
        dataclasses.replace(answer, outcome="parse_failure")
        if answer.outcome == "answered" and answer.error is not None and answer.outputs.get(name, "") is None
        else answer
        for answer in answers
    )


FORMAT = 1
"""Version of the checkpoint file."""


@dataclass(frozen=True, kw_only=True)
class CompareProgress:
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
    n_parse_failures: int
    """Of this program's answers, those that could not be read."""
    n_failed: int
    """Of this program's calls, those that failed."""
    n_resumed: int
    """Answers that came from the checkpoint."""

    @property
    def label(self) -> str:
        """What is being done."""
        return f"asking {self.program}"

    @property
    def note(self) -> str:
        """What went wrong so far; empty where nothing did."""
        parts = [f"{self.n_parse_failures} parse failures"] if self.n_parse_failures else []
        return ", ".join(parts + ([f"{self.n_failed} failed"] if self.n_failed else []))

    def __str__(self) -> str:
        return f"{self.label} {self.n_asked}/{self.n_items}"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How programs are asked: checkpoint, retries, progress, prices."""

    checkpoint: str | os.PathLike[str] | None = None
    """A JSONL file that keeps every answer; run again with it to ask only what is missing.

    Programs are known in it by their names.
    """
    retry_failed: bool = True
    """Whether a resumed run asks again what had failed."""
    on_progress: Callable[[CompareProgress], None] | None = None
    """Called after each answer; without it a line on stderr tells of runs over 50 items or 2 seconds."""
    max_failed_share: float = 0.1
    """A program of whose calls more than this share fails is not compared: its failures say nothing of its answers."""
    usd_per_million_tokens: Mapping[str, tuple[float, float]] | None = None
    """Program name to (price of a million prompt tokens, of a million completion tokens)."""


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
    log: HeldLog | None = None

    def keep(self, row: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.append(row)


def collect(
    programs: Mapping[str, Program],
    inputs: Sequence[Mapping[str, Any]],
    num_threads: int = 8,
    run: RunOptions | None = None,
) -> dict[str, Collected]:
    """Ask each program in turn about all items.

    Ctrl-C lets the calls in flight end, keeps them, and goes on upwards.
    """
    run = run or RunOptions()
    on_progress = run.on_progress
    seen: dict[str, int] = {}
    keys = [item_key(one, seen) for one in inputs]
    collected: dict[str, Collected] = {}
    n_total, n_before, n_resumed = len(programs) * len(inputs), 0, 0
    with _opened(run.checkpoint) as kept:
        for name, program in programs.items():
            known = {key: answer for (owner, key), answer in kept.answers.items() if owner == name}
            if run.retry_failed:
                known = {key: answer for key, answer in known.items() if answer.outcome != "failed"}
            found = {index: known[key] for index, key in enumerate(keys) if key in known}
            n_resumed += len(found)

            def save(index: int, answer: Answer, name: str = name) -> None:
                kept.keep(_row(name, keys[index], answer))

            def tell(outcomes: Counter[str], name: str = name, before: int = n_before, old: int = n_resumed) -> None:
                if on_progress is not None:
                    on_progress(
                        CompareProgress(
                            program=name,
                            n_done=before + outcomes.total(),
                            n_total=n_total,
                            n_asked=outcomes.total(),
                            n_items=len(inputs),
                            n_parse_failures=outcomes["parse_failure"],
                            n_failed=outcomes["failed"],
                            n_resumed=old,
                        )
                    )

            start = time.perf_counter()
            try:
                with _each_remark_once(name):
                    _ask_missing(program, inputs, found, num_threads, save, tell)
            finally:
                seconds = time.perf_counter() - start
                kept.keep({"program": name, "seconds": seconds})
            n_before += len(inputs)
            answers = tuple(found[index] for index in range(len(inputs)))
            collected[name] = Collected(answers=answers, seconds=kept.seconds.get(name, 0.0) + seconds)
    return collected


def _row(name: str, key: str, answer: Answer) -> dict[str, Any]:
    return {"program": name, "item": key, **answer.to_dict()}


@contextlib.contextmanager
def kept_if_lost(
    collected: Mapping[str, Collected], inputs: Sequence[Mapping[str, Any]], run: RunOptions
) -> Iterator[None]:
    """Write the answers to a new checkpoint where what is done with them breaks, and the run has none of its own."""
    try:
        yield
    except BaseException:  # Ctrl-C too: a judge may be asked for hours
        if run.checkpoint is None:
            seen: dict[str, int] = {}
            keys = [item_key(one, seen) for one in inputs]
            rows = [
                _row(name, *pair) for name, one in collected.items() for pair in zip(keys, one.answers, strict=True)
            ]
            times = [{"program": name, "seconds": one.seconds} for name, one in collected.items()]
            file, path = tempfile.mkstemp(prefix="answers-", suffix=".jsonl")
            os.close(file)
            AppendLog(path, "checkpoint").append({"format": FORMAT}, *rows, *times)
            logger.warning("the answers are kept in %s; give it as the checkpoint, and none is asked for again", path)
        raise


class _Once(logging.Filter):
    """Lets each remark pass once, by its place in the code, and counts how often it came."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[tuple[str, int], tuple[str, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place = (record.pathname, record.lineno)
        text, n = self.said.get(place, (record.getMessage(), 0))
        self.said[place] = (text, n + 1)
        return n == 0


@contextlib.contextmanager
def _each_remark_once(name: str) -> Iterator[None]:
    """Let DSPy say a thing once about a program, and then how often: an untuned model earns a remark on each answer."""
    filters = [(handler, _Once()) for handler in logging.getLogger("dspy").handlers]
    for handler, once in filters:
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler, once in filters:
            handler.removeFilter(once)
        for text, n in filters[0][1].said.values() if filters else ():
            if n > 1:
                logger.warning("%s: DSPy said %d times: %s", name, n, text)


def _ask_missing(
    program: Program,
    inputs: Sequence[Mapping[str, Any]],
    found: dict[int, Answer],
    num_threads: int,
    save: Callable[[int, Answer], None],
    tell: Callable[[Counter[str]], None],
) -> None:
    """Ask about the items that `found` lacks, in threads, and fill it.

    Where there are more of them than threads, the first is asked alone: what loads a model would be in the times of all
    that wait for it. Saving and telling happen in the calling thread.
    """
    pool = ThreadPoolExecutor(max_workers=max(1, num_threads), thread_name_prefix="compare")
    # Each call gets a copy of the caller's context, so that a program that relies on `with dspy.context(lm=...)`
    # finds it.
    pending: dict[Future[Answer], int] = {}
    missing = [index for index in range(len(inputs)) if index not in found]
    n_alone = 1 if len(missing) > num_threads > 1 else 0
    outcomes: Counter[str] = Counter(answer.outcome for answer in found.values())
    if found:
        tell(outcomes)
    try:
        for part in (missing[:n_alone], missing[n_alone:]):
            for index in part:
                pending[pool.submit(contextvars.copy_context().run, ask, program, inputs[index])] = index
            for future in as_completed(list(pending)):
                index = pending.pop(future)
                answer = dataclasses.replace(future.result(), is_first=index in missing[:n_alone])
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
    with AppendLog(path, "checkpoint").hold() as log:
        _read(log, kept)
        kept.log = log
        if log.is_new:
            kept.keep({"format": FORMAT})
        yield kept


def _read(log: HeldLog, kept: _Checkpoint) -> None:
    for line, row in log.rows():
        try:
            if "format" in row:
                if row["format"] != FORMAT:
                    raise ValueError(f"format {row['format']}")
            elif "seconds" in row:
                kept.seconds[row["program"]] = kept.seconds.get(row["program"], 0.0) + row["seconds"]
            else:
                name, key = row.pop("program"), row.pop("item")
                kept.answers[name, key] = Answer.from_dict(row)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise RowError(
                "this is not a checkpoint of a comparison",
                path=str(log.log.path),
                line=line,
                remedy="name another file, or delete this one to ask everything anew",
            ) from error


AGAIN = " (asked again)"
"""What a program's name ends in where its second answers stand."""


def ask_again(
    programs: Mapping[str, Program], inputs: Sequence[Mapping[str, Any]], num_threads: int, run: RunOptions
) -> dict[str, Collected]:
    """Each program's second answers, past DSPy's cache, under names of their own in the checkpoint."""
    twins = {name + AGAIN: uncached(program) for name, program in programs.items()}
    found = collect(twins, inputs, num_threads, run)
    return {name: found[name + AGAIN] for name in programs}


def lacks_lm(program: Program) -> bool:
    """Whether a DSPy module that asks a language model has none, and none is configured.

    Asked of DSPy's own modules, as a saved program is; a module of the user's may bring its model when it is called.
    """
    if not isinstance(program, dspy.Module) or type(program).__module__.partition(".")[0] != "dspy":
        return False
    if dspy.settings.lm is not None:
        return False
    predictors = [one for _, one in program.named_predictors()]
    return any(isinstance(one, dspy.Predict) and one.lm is None for one in predictors)


def uncached(program: Program) -> Program:
    """A copy of a DSPy module whose language models pass by DSPy's cache; any other callable as it is.

    A model that a module takes from `dspy.settings` is passed by the cache too.
    """
    if not isinstance(program, dspy.Module):
        return program
    twin = program.deepcopy()
    for _, part in modules_of(twin):
        if isinstance(part, FinetunedPredictor):
            part.lm_options = {**part.lm_options, "cache": False}
            if part._given_lm is not None:
                part._given_lm = part._given_lm.copy(cache=False)
            part._lm = None
        elif isinstance(getattr(part, "lm", None), dspy.BaseLM):
            part.lm = part.lm.copy(cache=False)
    return _Uncached(twin)


class _Uncached:
    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self, **inputs: Any) -> Any:
        lm = dspy.settings.lm
        with dspy.context(lm=lm.copy(cache=False)) if isinstance(lm, dspy.BaseLM) else contextlib.nullcontext():
            return self.program(**inputs)
