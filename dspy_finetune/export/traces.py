"""Preferences from a program's own runs: several answers to the same prompt, ordered by a metric.

In: any DSPy program, examples and a metric. Out: `Preferences`, one prompt of one predictor each.
Not covered: programs that call a model without dspy.Predict; they leave no trace.

Each example is run several times. A run's score is given to the answer of every predictor in it; answers of the same
predictor to the same inputs are compared, so a later step of a program is compared only where the steps before it
agreed. Equal answers share the mean of their scores. A run that ends because an answer could not be read can take part
too: the text itself is then the worse answer, which teaches the form.
"""

from __future__ import annotations

import contextvars
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from dspy_finetune.errors import DataError, UsageError
from dspy_finetune.export.preferences import Preference, Preferences

if TYPE_CHECKING:
    import dspy

logger = logging.getLogger(__name__)

How = Literal["best_vs_worst", "all_pairs"]


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One answer of one predictor in one run."""

    predictor: str
    n_before: int
    inputs: dict[str, Any]
    outputs: dict[str, Any] | str
    """By name; the text itself where it could not be read."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One run of the program: its score, or why it has none."""

    score: float | None
    calls: tuple[_Call, ...]
    error: str | None = None


def preferences_from_program(
    program: dspy.Module,
    examples: Iterable[dspy.Example],
    metric: Callable[..., Any],
    *,
    n_samples: int = 4,
    min_difference: float = 0.0,
    how: How = "best_vs_worst",
    temperature: float = 1.0,
    predictors: Sequence[str] | None = None,
    num_threads: int = 1,
    seed: int = 0,
    unreadable_score: float | None = None,
) -> Preferences:
    """Run the program `n_samples` times on each example and make preferences of what scored better and worse.

    Args:
        program: Any program; it is copied, never changed.
        examples: With their inputs marked.
        metric: `metric(example, prediction) -> float | bool`, higher is better; None counts as not scored.
        n_samples: Runs of each example. Each has a `rollout_id` of its own, so that the cache does not answer them
            alike, and repeating the call with the same seed is answered by the cache.
        min_difference: Pairs whose scores differ by less are left out; equal scores always are.
        how: `"best_vs_worst"`: at most one pair for each prompt; `"all_pairs"`: every pair that differs enough.
        temperature: Of every model call; at 0 all runs are alike.
        predictors: Names, as in `program.named_predictors()`, to keep; None keeps all. A file needs one prompt format,
            so a program of several predictors is exported one predictor at a time.
        num_threads: Runs at the same time.
        seed: Chooses the rollout ids.
        unreadable_score: The score of a run that ends because the adapter cannot read an answer; its text is then a
            candidate for the worse answer, never for the better one. None counts such a run as failed.

    Returns:
        The preferences, in the order of the examples; `.skipped` counts the runs that failed or could not be scored and
        the prompts that gave no pair.

    Raises:
        UsageError: An argument is not one of the accepted values.
        DataError: Every single run failed; names the first error.
    """
    if how not in ("best_vs_worst", "all_pairs"):
        raise UsageError(f'how={how!r} is unknown; choose "best_vs_worst" or "all_pairs"')
    if n_samples < 2:
        raise UsageError(f"n_samples={n_samples}: it takes two answers to prefer one; give 2 or more")
    if temperature <= 0:
        raise UsageError(f"temperature={temperature}: all samples would be alike; give a value above 0, such as 1.0")
    names = [name for name, _ in program.named_predictors()]
    unknown = sorted(set(predictors or ()) - set(names))
    if unknown:
        raise UsageError(f"no predictor named {', '.join(unknown)}; the program has {', '.join(names) or 'none'}")
    kept = set(names if predictors is None else predictors)

    found, skipped, n_examples = list[Preference](), dict[str, int](), 0
    n_scored, first_error = 0, ""
    with ThreadPoolExecutor(max_workers=max(1, num_threads)) as pool:
        for example in examples:
            rollouts = [(seed * 1_000_003 + n_examples) * n_samples + sample + 1 for sample in range(n_samples)]
            n_examples += 1
            runs = list(
                # The context of the caller (dspy.context, dspy.configure) goes along into each thread.
                pool.map(
                    lambda task, example=example: task[0].run(
                        _run, program, example, metric, task[1], temperature, unreadable_score
                    ),
                    [(contextvars.copy_context(), rollout) for rollout in rollouts],
                )
            )
            for run in runs:
                if run.error is not None:
                    first_error = first_error or run.error
                    _count(skipped, "run failed")
                elif run.score is None:
                    _count(skipped, "run not scored")
                else:
                    n_scored += 1
            found += _prefer(runs, kept, how, min_difference, skipped)
    if n_examples and not n_scored:
        raise DataError(
            f"no run of the program could be scored; the first error: {first_error or 'the metric gave None'}"
        )
    return Preferences(found, n_examples=n_examples, skipped=skipped)


def _run(
    program: Any,
    example: Any,
    metric: Callable[..., Any],
    rollout: int,
    temperature: float,
    unreadable_score: float | None,
) -> _Run:
    import dspy  # lazy: importing the package must not load it
    from dspy.utils.exceptions import AdapterParseError

    attempt = program.deepcopy()
    for predictor in attempt.predictors():
        lm = predictor.lm or dspy.settings.lm
        if lm is None:
            raise UsageError("the program has no language model; use dspy.configure(lm=...) or program.set_lm(...)")
        predictor.lm = lm.copy(rollout_id=rollout, temperature=temperature)
    names = {id(predictor): name for name, predictor in attempt.named_predictors()}
    asked: dict[int, dict[str, Any]] = {}
    if unreadable_score is not None:
        for predictor in attempt.predictors():
            predictor.forward = _noting(predictor, asked)
    trace: list[Any] = []
    raw: Any
    try:
        with dspy.context(trace=trace):
            prediction = attempt(**example.inputs())
        raw = metric(example, prediction)
    except UsageError:
        raise
    except AdapterParseError as error:
        if unreadable_score is None or not asked or not error.lm_response.strip():
            logger.warning("a run of the program failed: %s", error)
            return _Run(score=None, calls=(), error=f"{type(error).__name__}: {error}")
        raw = unreadable_score
        last = next(reversed(asked))
        failed = next(predictor for predictor in attempt.predictors() if id(predictor) == last)
        trace.append((failed, asked[last], error.lm_response))
    except Exception as error:  # the program and the metric are the user's: one failed run must not lose the others
        logger.warning("a run of the program failed: %s", error)
        return _Run(score=None, calls=(), error=f"{type(error).__name__}: {error}")
    calls, n_calls = list[_Call](), dict[str, int]()
    for predictor, inputs, outputs in trace:
        name = names.get(id(predictor))
        if name is None:
            continue
        signature = predictor.signature
        calls.append(
            _Call(
                predictor=name,
                n_before=n_calls.get(name, 0),
                inputs={key: value for key, value in inputs.items() if key in signature.input_fields},
                outputs=outputs
                if isinstance(outputs, str)
                else {key: value for key, value in outputs.items() if key in signature.output_fields},
            )
        )
        n_calls[name] = n_calls.get(name, 0) + 1
    score = getattr(raw, "score", raw)
    return _Run(score=None if score is None else float(score), calls=tuple(calls))


def _noting(predictor: Any, asked: dict[int, dict[str, Any]]) -> Callable[..., Any]:
    """The predictor's forward, noting which predictor was asked last and what: a failed call leaves no trace."""
    forward = object.__getattribute__(predictor, "forward")  # the plain way logs a warning

    def noting(**inputs: Any) -> Any:
        asked.pop(id(predictor), None)
        asked[id(predictor)] = inputs
        return forward(**inputs)

    return noting


def _prefer(
    runs: Sequence[_Run], kept: set[str], how: How, min_difference: float, skipped: dict[str, int]
) -> list[Preference]:
    """The preferences of one example's runs."""
    groups: dict[tuple[str, int, str], dict[str, tuple[_Call, list[float]]]] = {}
    for run in runs:
        for call in run.calls:
            if call.predictor in kept and run.score is not None:
                answers = groups.setdefault((call.predictor, call.n_before, _text(call.inputs)), {})
                answers.setdefault(_text(call.outputs), (call, []))[1].append(run.score)
    found = []
    for answers in groups.values():
        scored = [(sum(scores) / len(scores), call) for call, scores in answers.values()]
        scored.sort(key=lambda item: item[0], reverse=True)  # stable: among equals the first run stays first
        if len(scored) < 2:
            _count(skipped, "all answers alike")
            continue
        pairs = [(scored[0], scored[-1])] if how == "best_vs_worst" else list(combinations(scored, 2))
        pairs = [
            (best, worst)
            for best, worst in pairs
            if best[0] > worst[0] and best[0] - worst[0] >= min_difference and not isinstance(best[1].outputs, str)
        ]
        if not pairs:
            _count(skipped, "scores too close")
        found += [
            Preference(
                inputs=best.inputs,
                chosen=best.outputs,
                rejected=worst.outputs,
                origin="trace",
                predictor=best.predictor,
                chosen_score=high,
                rejected_score=low,
            )
            for (high, best), (low, worst) in pairs
        ]
    return found


def _text(values: dict[str, Any] | str) -> str:
    return json.dumps(values, sort_keys=True, default=repr, ensure_ascii=False)


def _count(counts: dict[str, int], reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1
