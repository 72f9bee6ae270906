"""What one program said about one item: `Answer`, and how it is asked.

In: a program (a `dspy.Module` or any callable that takes the input fields and returns a prediction) and the inputs of
an item. Out: an `Answer` with the outputs, its latency and tokens, and one of three outcomes that are never mixed:
*answered*; *unreadable* (the model spoke, but no answer can be read from it); *failed* (anything else went wrong).
Not covered: whether the answer is right (metrics), many items at once and the checkpoint (collect.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import dspy
from dspy.utils.exceptions import AdapterParseError

from dspy_finetune.errors import AnswerError, MissingExtraError, UsageError

Outcome: TypeAlias = Literal["answered", "unreadable", "failed"]
"""What became of a question."""

Program: TypeAlias = Callable[..., Any]
"""A `dspy.Module`, or any callable that takes the input fields by name and returns a `dspy.Prediction` or a mapping."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One program's answer to one item."""

    outcome: Outcome
    """Whether there is an answer to score."""
    outputs: Mapping[str, Any]
    """The prediction's fields, as JSON can hold them; empty unless answered."""
    latency_ms: float
    """Wall time of the call, waiting for a busy server included."""
    prompt_tokens: int | None = None
    """Tokens sent, as the model reported them; None where no model reported (a baseline, an answer from the cache)."""
    completion_tokens: int | None = None
    """Tokens received; None as above."""
    cost_usd: float | None = None
    """Its tokens times the prices given to `compare`; None without prices or tokens."""
    error: str | None = None
    """Why it is unreadable or failed: the error's kind and first line, cut to 300 characters."""

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
        # tracker of our own, because DSPy's keeps no usage of a call that ends in an error, and an unreadable answer
        # was paid for.
        stack.enter_context(dspy.context(disable_history=True, trace=None, track_usage=True))
        tracker = stack.enter_context(dspy.track_usage())
        outcome, outputs, prediction, error = _call(program, inputs)
        latency_ms = (time.perf_counter() - start) * 1000
        usage = tracker.get_total_tokens()
    if not usage and isinstance(prediction, dspy.Prediction):
        usage = prediction.get_lm_usage()  # of a program that keeps its own books
    return Answer(
        outcome=outcome,
        outputs=outputs,
        latency_ms=latency_ms,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        error=error,
    )


def _call(program: Program, inputs: Mapping[str, Any]) -> tuple[Outcome, dict[str, Any], Any, str | None]:
    try:
        prediction = program(**inputs)
        return "answered", {name: jsonable(value) for name, value in _fields(prediction).items()}, prediction, None
    except (AnswerError, AdapterParseError) as error:
        return "unreadable", {}, None, _first_line(error)
    except (MissingExtraError, UsageError):
        raise
    except Exception as error:  # whatever a program raises is an outcome to count; the others go on
        return "failed", {}, None, _first_line(error)


def _first_line(error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"[:300]


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


def item_key(inputs: Mapping[str, Any], seen: dict[str, int]) -> str:
    """A key by which an item is found again: a digest of its inputs, and which of its equals it is. Fills `seen`.

    Labels are not part of it: a corrected label needs no new answer.
    """
    text = json.dumps(jsonable(inputs), sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
    seen[digest] = seen.get(digest, 0) + 1
    return f"{digest}-{seen[digest]}"
