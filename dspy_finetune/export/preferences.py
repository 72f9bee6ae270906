"""Preferences: one prompt, the better answer and the worse one, from labels, corrections and model mistakes.

In: examples with what is known of their answers. Out: `Preference` values, which `export_dpo` writes.
Not covered: writing them (writer.py).
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from dspy_finetune._progress import ProgressBar
from dspy_finetune.errors import AnswerError, DataError, FinetuneError, RowError, RowsError, UsageError
from dspy_finetune.values import score_value

if TYPE_CHECKING:
    import dspy

    from dspy_finetune.prompts import PromptFormat
    from dspy_finetune.prompts.answers import Codec
    from dspy_finetune.prompts.format import AnyPrompt

Origin = Literal["label", "pair", "correction", "mistake", "trace"]
Answer = Mapping[str, Any] | str
"""Outputs by name, rendered by the prompt; or the answer's text, taken as it is."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """One prompt with a chosen and a rejected answer."""

    inputs: Mapping[str, Any]
    """The input fields."""
    chosen: Answer
    """The better answer: outputs by name, or its text."""
    rejected: Answer
    """The worse answer: outputs by name, or its text."""
    origin: Origin = "pair"
    """Where it comes from."""
    predictor: str | None = None
    """The predictor of the program whose trace it is."""
    chosen_score: float | None = None
    """The metric's score of the run that gave the chosen answer."""
    rejected_score: float | None = None
    """The metric's score of the run that gave the rejected answer."""


class Preferences(list[Preference]):
    """A list of preferences that also says what was left out."""

    def __init__(
        self, items: Iterable[Preference] = (), *, n_examples: int = 0, skipped: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(items)
        self.n_examples = n_examples
        """Examples that were looked at."""
        self.skipped: dict[str, int] = dict(skipped or {})
        """Reason -> how often nothing came of an example, a run or a prompt."""

    def of(self, predictor: str) -> Preferences:
        """Those of one predictor of the program alone."""
        kept = [preference for preference in self if preference.predictor == predictor]
        return Preferences(kept, n_examples=self.n_examples, skipped=self.skipped)


def preferences_from_corrections(
    examples: Iterable[dspy.Example | Mapping[str, Any]],
    prompt: AnyPrompt,
    *,
    said: str = "said",
    written: str | None = None,
) -> Preferences:
    """What the user wrote is chosen, what the model had said is rejected.

    Args:
        examples: Each with the prompt's input fields, the model's answer and the user's.
        prompt: Renders the answers, to find those that the user left as they were.
        said: The field with the model's answer: its text, or a dict of outputs.
        written: The field with the user's answer: its text, or a dict of outputs. None takes the prompt's output
            fields.

    Returns:
        One preference for each answer that the user changed; `.skipped` counts the unchanged ones.

    Raises:
        RowsError: Examples lack an answer, or cannot be rendered; all of them are listed.
    """
    from dspy_finetune.prompts.format import as_prompt  # here: it loads dspy

    made = as_prompt(prompt)

    def make(values: dict[str, Any]) -> Preference | str:
        outputs = {name: values[name] for name in made.output_fields if name in values}
        chosen = outputs if written is None else _needed(values, written)
        preference = Preference(inputs=values, chosen=chosen, rejected=_needed(values, said), origin="correction")
        return "answer left as it was" if _is_unchanged(preference, made) else preference

    return _collect(examples, make)


def preferences_from_mistakes(
    examples: Iterable[dspy.Example | Mapping[str, Any]],
    predictions: Iterable[dspy.Prediction | Mapping[str, Any] | None],
    prompt: AnyPrompt,
) -> Preferences:
    """The example's own answer is chosen where the model gave another one, and the model's is rejected.

    Args:
        examples: Each with the prompt's input fields and the right outputs.
        predictions: What the model answered to each, in the same order; None where it gave no answer.
        prompt: Says which output is the label; without one any output that differs is a mistake.

    Returns:
        One preference for each wrong answer; `.skipped` counts right and missing ones, and those that cannot be read.

    Raises:
        RowsError: Examples or predictions lack the outputs to compare; all of them are listed.
        UsageError: There are more examples than predictions, or fewer.
    """
    from dspy_finetune.prompts.format import as_prompt  # here: it loads dspy

    made = as_prompt(prompt)
    answers = iter(predictions)
    compared = (made.label_field,) if made.label_field is not None else made.output_fields

    def make(values: dict[str, Any]) -> Preference | str:
        try:
            answer = next(answers)
        except StopIteration:
            raise UsageError("fewer predictions than examples; give one for each, None where there is none") from None
        if answer is None:
            return "no answer"
        right = {name: values[name] for name in made.output_fields if name in values}
        given = {name: answer[name] for name in made.output_fields if name in answer}
        for name in compared:
            _needed(right, name)
            _needed(given, name)
        try:
            read = {name: made.codec(name).read(given[name], name=name) for name in compared}
        except AnswerError:  # it shows no other answer that could be the rejected one
            return "answer could not be read"
        if all(_is_same(made.codec(name), right[name], read[name]) for name in compared):
            return "answer was right"
        given |= read
        return Preference(inputs=values, chosen=right, rejected={**right, **given}, origin="mistake")

    found = _collect(examples, make)
    if next(answers, _NOTHING) is not _NOTHING:
        raise UsageError("more predictions than examples; give one for each")
    return found


def _is_unchanged(preference: Preference, prompt: PromptFormat) -> bool:
    """Whether both answers say the same: "Yes" and true do, and 12 and "$12.00"."""
    try:
        chosen, rejected = (_read(answer, prompt) for answer in (preference.chosen, preference.rejected))
    except (AnswerError, KeyError):  # what cannot be read may still be the same text
        return _text(preference.chosen, prompt) == _text(preference.rejected, prompt)
    return all(_is_same(prompt.codec(name), chosen[name], rejected[name]) for name in prompt.output_fields)


def _read(answer: Answer, prompt: PromptFormat) -> dict[str, Any]:
    if isinstance(answer, str):
        return prompt.parse(answer)
    return {name: prompt.codec(name).read(answer[name], name=name) for name in prompt.output_fields}


def _is_same(codec: Codec, right: Any, read: Any) -> bool:
    with contextlib.suppress(AnswerError):
        right = codec.read(right)
    return bool(type(right) is type(read) and right == read) if codec.labels is not None else bool(right == read)


_NOTHING = object()


def _collect(examples: Iterable[Any], make: Callable[[dict[str, Any]], Preference | str]) -> Preferences:
    """The preferences of all examples, or all their errors; a text says why an example gives none."""
    found, skipped, errors, number = list[Preference](), dict[str, int](), list[RowError](), 0
    for number, example in enumerate(examples, start=1):
        try:
            made = make(dict(example.items()))
        except UsageError:
            raise
        except FinetuneError as error:
            errors.append(row_error(error, number))
            continue
        if isinstance(made, Preference):
            found.append(made)
        else:
            skipped[made] = skipped.get(made, 0) + 1
    if errors:
        raise RowsError(errors)
    return Preferences(found, n_examples=number, skipped=skipped)


def row_error(error: FinetuneError, number: int, path: str | None = None) -> RowError:
    """Whatever reading or rendering a row raised, as a RowError that names the row, or its file and line."""
    if isinstance(error, RowsError):
        error = error.errors[0]
    if not isinstance(error, RowError):
        return RowError(str(error), path=path, line=number)
    if error.line is not None:
        return error
    return RowError(
        error.problem, path=error.path or path, line=number, field=error.field, value=error.value, remedy=error.remedy
    )


def _needed(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise RowError("missing", field=name, value=list(values), remedy="each example needs it")
    return values[name]


def as_preference(pair: Any, prompt: PromptFormat, *, rng: random.Random) -> Preference:
    """A preference from any of the spellings that `export_dpo` takes. Raises RowError."""
    if isinstance(pair, Preference):
        return pair
    if not hasattr(pair, "items"):
        raise RowError(
            "neither an example nor a dict", value=pair, remedy="give the input fields and the right outputs"
        )
    values, names = dict(pair.items()), prompt.output_fields
    outputs = {name: values[name] for name in names if name in values}
    if "rejected" in values and "rejected" not in names:
        return Preference(inputs=values, chosen=values.get("chosen", outputs), rejected=values["rejected"])
    replaced = {name: values[f"rejected_{name}"] for name in names if f"rejected_{name}" in values}
    if replaced:
        return Preference(inputs=values, chosen=outputs, rejected={**outputs, **replaced})
    return Preference(inputs=values, chosen=outputs, rejected=other_label(outputs, prompt, rng=rng), origin="label")


def other_label(outputs: Mapping[str, Any], prompt: PromptFormat, *, rng: random.Random) -> dict[str, Any]:
    """The same outputs with another label: the wrong choice, and nothing else changed.

    Raises:
        RowError: The prompt has no label to change, or the example lacks it.
        AnswerError: The label is none of the prompt's.
    """
    choice = prompt.choice
    if choice is None:
        raise RowError(
            "no rejected answer, and the prompt has no label whose opposite could be one",
            value=outputs,
            remedy='add "rejected", or rejected_<output> for the outputs that differ',
        )
    name, labels = choice
    right = labels.encode(_needed(outputs, name))
    others = [value for value, text in labels.items() if text != right]
    return {**outputs, name: others[0] if len(others) == 1 else rng.choice(others)}


def render_preference(preference: Preference, prompt: PromptFormat) -> tuple[list[dict[str, Any]], str, str]:
    """The prompt's messages, the chosen and the rejected text.

    Raises:
        RowError: The two answers are the same text.
        DataError: A field is missing or cannot be rendered.
    """
    messages = prompt.messages(preference.inputs)
    chosen, rejected = (_text(answer, prompt) for answer in (preference.chosen, preference.rejected))
    if chosen == rejected:
        raise RowError(
            "chosen and rejected are the same text", value=chosen, remedy="leave the pair out: it teaches nothing"
        )
    return messages, chosen, rejected


def _text(answer: Answer, prompt: PromptFormat) -> str:
    return answer if isinstance(answer, str) else prompt.completion(answer)


# Preferences from a program's own runs: several answers to the same prompt, ordered by a metric.
#
# In: any DSPy program, examples and a metric. Out: `Preferences`, one prompt of one predictor each. Not covered:
# programs that call a model without dspy.Predict; they leave no trace.
#
# Each example is run several times. A run's score is given to the answer of every predictor in it; answers of the
# same predictor to the same inputs are compared, so a later step of a program is compared only where the steps before
# it agreed. Equal answers share the mean of their scores. A run that ends because an answer could not be read can
# take part too: the text itself is then the worse answer, which teaches the form.

logger = logging.getLogger(__name__)

Strategy = Literal["best_vs_worst", "all_pairs"]


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
    strategy: Strategy = "best_vs_worst",
    temperature: float = 1.0,
    predictors: Sequence[str] | None = None,
    num_threads: int = 1,
    seed: int = 0,
    parse_failure_score: float | None = None,
) -> Preferences:
    """Run the program `n_samples` times on each example and make preferences of what scored better and worse.

    Args:
        program: Any program; it is copied, never changed.
        examples: With their inputs marked.
        metric: `metric(example, prediction) -> float | bool`, higher is better; None counts as not scored.
        n_samples: Runs of each example. Each has a `rollout_id` of its own, so that the cache does not answer them
            alike, and repeating the call with the same seed is answered by the cache.
        min_difference: Pairs whose scores differ by less are left out; equal scores always are.
        strategy: `"best_vs_worst"`: at most one pair for each prompt; `"all_pairs"`: every pair that differs enough.
        temperature: Of every model call; at 0 all runs are alike.
        predictors: Names, as in `program.named_predictors()`, to keep; None keeps all. A file needs one prompt format,
            so a program of several predictors is exported one predictor at a time.
        num_threads: Runs at the same time.
        seed: Chooses the rollout ids.
        parse_failure_score: The score of a run that ends because the adapter cannot read an answer; its text is then a
            candidate for the worse answer, never for the better one. None counts such a run as failed.

    Returns:
        The preferences, in the order of the examples; `.skipped` counts the runs that failed or could not be scored and
        the prompts that gave no pair.

    Raises:
        UsageError: An argument is not one of the accepted values, or the metric returned no finite number.
        DataError: Every single run failed; names the first error.
    """
    if strategy not in ("best_vs_worst", "all_pairs"):
        raise UsageError(f'strategy={strategy!r} is unknown; choose "best_vs_worst" or "all_pairs"')
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
    n_runs = len(examples) * n_samples if isinstance(examples, Sized) else None
    with ThreadPoolExecutor(max_workers=max(1, num_threads)) as pool, ProgressBar() as line:
        for example in examples:
            rollouts = [(seed * 1_000_003 + n_examples) * n_samples + sample + 1 for sample in range(n_samples)]
            n_examples += 1
            runs = list(
                # The context of the caller (dspy.context, dspy.configure) goes along into each thread.
                pool.map(
                    lambda task, example=example: task[0].run(
                        _run, program, example, metric, task[1], temperature, parse_failure_score
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
            line.show("sampling the program", n_examples * n_samples, n_runs)
            found += _prefer(runs, kept, strategy, min_difference, skipped)
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
    parse_failure_score: float | None,
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
    if parse_failure_score is not None:
        for predictor in attempt.predictors():
            predictor.forward = _noting(predictor, asked)
    trace: list[Any] = []
    try:
        with dspy.context(trace=trace):
            prediction = attempt(**example.inputs())
        score = score_of(metric(example, prediction))
    except UsageError:
        raise
    except AdapterParseError as error:
        if parse_failure_score is None or not asked or not error.lm_response.strip():
            logger.warning("a run of the program failed: %s", error)
            return _Run(score=None, calls=(), error=f"{type(error).__name__}: {error}")
        score = parse_failure_score
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
    return _Run(score=score, calls=tuple(calls))


def score_of(said: Any) -> float | None:
    """What a metric said, as a number; None where it did not score. Raises UsageError for anything else."""
    score = getattr(said, "score", said)
    return None if score is None else score_value(score)


def _noting(predictor: Any, asked: dict[int, dict[str, Any]]) -> Callable[..., Any]:
    """The predictor's forward, noting which predictor was asked last and what: a failed call leaves no trace."""
    forward = object.__getattribute__(predictor, "forward")  # the plain way logs a warning

    def noting(**inputs: Any) -> Any:
        asked.pop(id(predictor), None)
        asked[id(predictor)] = inputs
        return forward(**inputs)

    return noting


def _prefer(
    runs: Sequence[_Run], kept: set[str], strategy: Strategy, min_difference: float, skipped: dict[str, int]
) -> list[Preference]:
    """The preferences of one example's runs."""
    groups: dict[tuple[str, int, str], dict[str, tuple[_Call, list[float]]]] = {}
    for run in runs:
        for call in run.calls:
            if call.predictor in kept and run.score is not None:
                answers = groups.setdefault((call.predictor, call.n_before, _trace_text(call.inputs)), {})
                answers.setdefault(_trace_text(call.outputs), (call, []))[1].append(run.score)
    found = []
    for answers in groups.values():
        scored = [(sum(scores) / len(scores), call) for call, scores in answers.values()]
        scored.sort(key=lambda item: item[0], reverse=True)  # stable: among equals the first run stays first
        if len(scored) < 2:
            _count(skipped, "all answers alike")
            continue
        pairs = [(scored[0], scored[-1])] if strategy == "best_vs_worst" else list(combinations(scored, 2))
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


def _trace_text(values: dict[str, Any] | str) -> str:
    return json.dumps(values, sort_keys=True, default=repr, ensure_ascii=False)


def _count(counts: dict[str, int], reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1
