"""How programs of any kind are asked and read: concurrent calls, which output is meant, which label, how sure.

In: a program (a tuned predictor, a `dspy.Module`, any callable that takes the input fields by name) and predictions.
Out: answers in order; a prediction's label as one of the known labels, its probabilities, its confidence. Used by
calibration, ensembles, cascades and ranking. Not covered: what a tuned model's tokens mean (probabilities.py).
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist
from typing import Any, TypeVar

import dspy
from dspy.utils.exceptions import AdapterParseError

from dspy_finetune.errors import AnswerError, UsageError
from dspy_finetune.values import NUMBER, NumberFormat, label_text, match_label

Row = TypeVar("Row")
Result = TypeVar("Result")

PARSE_FAILURES = (AnswerError, AdapterParseError)
"""The errors that say: the model spoke, but no answer can be read from it."""


def in_threads(
    function: Callable[[Row], Result],
    rows: Iterable[Row],
    num_threads: int,
    *,
    on_done: Callable[[int], object] = lambda n_done: None,
) -> list[Result]:
    """The function's results in the order of the rows, each call in a copy of the caller's context.

    The context carries `dspy.context(lm=...)` and the usage tracker into the threads. The first error is raised when
    the calls in flight have ended; calls not yet begun are not made. Inside `dspy.streamify` the calls come one by one.
    `on_done` is told after each result, in the calling thread.
    """
    rows = list(rows)
    # Inside dspy.streamify DSPy hands each token on through the thread that it started itself, and through no other.
    is_streamed = dspy.settings.send_stream is not None
    pool = ThreadPoolExecutor(max_workers=max(min(num_threads, len(rows)), 1), thread_name_prefix="dspy-finetune")
    try:
        results: Iterator[Result]
        if num_threads <= 1 or len(rows) <= 1 or is_streamed:
            results = map(function, rows)
        else:
            futures = [pool.submit(contextvars.copy_context().run, function, row) for row in rows]
            results = (future.result() for future in futures)
        found = []
        for result in results:
            found.append(result)
            on_done(len(found))
        return found
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


async def ask_async(program: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    """One answer without blocking the event loop: by `acall` where the program has an async way, else in a thread."""
    # Every dspy.Module has acall, but without an aforward of its own it ends in AttributeError.
    if hasattr(program, "aforward"):
        return await program.acall(**inputs)  # type: ignore[attr-defined]  # a dspy.Module, which carries no types
    if asyncio.iscoroutinefunction(program):
        return await program(**inputs)
    # anyio's threads rather than asyncio's: inside dspy.streamify DSPy hands tokens on through them alone. Imported
    # here because `import dspy` does without it.
    import anyio.to_thread

    return await anyio.to_thread.run_sync(functools.partial(program, **inputs))


def inputs_of(example: Any) -> dict[str, Any]:
    """The input fields of an example: those marked as inputs, or all of a mapping or an unmarked example."""
    marked = getattr(example, "_input_keys", None)
    return dict(example.inputs().items()) if marked else dict(example.items())


def output_of(programs: Iterable[Any], output: str | None) -> str:
    """The output field that is meant: as given, else the one that the first telling program has.

    Raises:
        UsageError: No program says which of its fields is the answer.
    """
    if output is not None:
        return output
    for program in programs:
        prompt = getattr(program, "prompt", None)
        if prompt is not None and hasattr(prompt, "output_fields"):
            return str(prompt.label_field or prompt.output_fields[0])
        signature = getattr(program, "signature", None)
        if signature is not None and len(getattr(signature, "output_fields", ())) == 1:
            return str(next(iter(signature.output_fields)))
        for name in ("output", "label"):
            if isinstance(field := getattr(program, name, None), str):
                return field
    raise UsageError('output: name the field that holds the answer, such as output="is_favorite"')


def labels_of(programs: Iterable[Any]) -> tuple[Any, ...]:
    """The label values of the first program that knows them; empty where none does."""
    for program in programs:
        prompt = getattr(program, "prompt", None)
        if prompt is not None and getattr(prompt, "labels", None) is not None:
            return tuple(prompt.labels)
        if known := getattr(program, "labels", None):
            return tuple(known)
    return ()


def read_answer(prediction: Any, field: str) -> Any:
    """The answer of a prediction or mapping.

    Raises:
        AnswerError: There is no prediction, or the field is None.
        UsageError: It is no prediction, or there is no such field; names those that there are.
    """
    if prediction is None:
        raise AnswerError("the program gave no prediction", text="")
    if not isinstance(prediction, (Mapping, dspy.Example)):
        raise UsageError(
            f"a program gives a dspy.Prediction or a mapping, such as {{{field!r}: ...}}; found {prediction!r:.60}"
        )
    if field not in prediction:
        raise UsageError(f'the prediction has no field "{field}", only {", ".join(map(str, prediction.keys()))}')
    if prediction[field] is None:
        raise AnswerError(f'the prediction\'s field "{field}" is empty', text="")
    return prediction[field]


def number_of(programs: Iterable[Any], output: str) -> NumberFormat:
    """How the numbers of an output are read: in the first telling program's own format, else as bare numbers."""
    for program in programs:
        prompt = getattr(program, "prompt", None)
        if prompt is not None and output in getattr(prompt, "output_fields", ()) and hasattr(prompt, "codec"):
            found: NumberFormat | None = prompt.codec(output).number
            if found is not None:
                return found
    return NUMBER


def read_shares(prediction: Any) -> dict[Any, float] | None:
    """The probabilities of a prediction by its own label keys; None where it carries none, or knows only some of them.

    Raises:
        AnswerError: They are no probabilities: not numbers in [0, 1] that sum to 1 at most.
    """
    shares = told_shares(prediction)
    return None if shares is None or None in shares.values() else {key: share or 0.0 for key, share in shares.items()}


def told_shares(prediction: Any) -> dict[Any, float | None] | None:
    """The same, with None for a label of which the host told nothing. Raises as `read_shares`."""
    shares = prediction.get("probabilities", None)
    if not isinstance(shares, Mapping) or not shares:
        return None
    found = {label: None if share is None else read_share(share) for label, share in shares.items()}
    if (total := sum(share or 0.0 for share in found.values())) > 1.001:  # rounded ones may sum to a little more
        raise AnswerError(f"the probabilities sum to {total:.3g}, not to 1", text=str(dict(shares)))
    return found


def read_share(value: Any) -> float:
    """A probability.

    Raises:
        AnswerError: It is no number in [0, 1]; a program may let a model write it.
    """
    try:
        share = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        share = math.nan
    if not 0.0 <= share <= 1.0 + 1e-9:
        raise AnswerError(f"{value!r:.60} is no probability between 0 and 1", text=str(value))
    return min(share, 1.0)


def confidence_of(prediction: Any, field: str, labels: Sequence[Any] = ()) -> float | None:
    """The probability of the answer that the prediction returns, in [0, 1]; None where it carries none.

    From `probabilities`; else from `probability`: of True for a bool answer, otherwise of the answer; else from
    `agreement`, the share of an ensemble's votes. Where the host told of the answer alone, that is its share of all
    that the model could have said: never more than is known.

    Raises:
        AnswerError: The answer is empty or none of the labels, if they are given; or a probability is none.
    """
    answer = read_answer(prediction, field)
    if labels and match_label(answer, labels) is None:
        raise AnswerError(f"the answer {answer!r:.60} is none of the labels", text=str(answer))
    shares = told_shares(prediction)
    if shares is not None:
        label = match_label(answer, list(shares))
        return shares[label] if label is not None else None
    share = prediction.get("probability", None)
    if share is None:
        share = prediction.get("agreement", None)
        return None if share is None else read_share(share)
    # Of a bool, written as text by some programs; "no" may be a label of its own, whose probability this is.
    return 1.0 - read_share(share) if label_text(answer) == "false" else read_share(share)


def check_members(members: Sequence[Any]) -> None:
    """Raises UsageError where one of them cannot be called."""
    for number, member in enumerate(members):
        if not callable(member):
            raise UsageError(f"members: a program that can be called is needed, member {number} is {member!r:.60}")


def wilson(n_right: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson, 1927), within [0, 1]; (0, 1) for n = 0.

    >>> tuple(round(bound, 3) for bound in wilson(8, 10))
    (0.49, 0.943)
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = n_right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)
