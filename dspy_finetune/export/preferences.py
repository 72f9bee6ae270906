"""Preferences: one prompt, the better answer and the worse one, from labels, corrections and model mistakes.

In: examples with what is known of their answers. Out: `Preference` values, which `export_dpo` writes.
Not covered: preferences from a program's scored traces (traces.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dspy_finetune.errors import FinetuneError, RowError, RowsError, UsageError
from dspy_finetune.export.rows import row_error

if TYPE_CHECKING:
    import dspy

    from dspy_finetune.prompts import PromptFormat

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
    prompt: PromptFormat,
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

    def make(values: dict[str, Any]) -> Preference | str:
        outputs = {name: values[name] for name in prompt.output_fields if name in values}
        chosen = outputs if written is None else _needed(values, written)
        preference = Preference(inputs=values, chosen=chosen, rejected=_needed(values, said), origin="correction")
        same = _text(preference.chosen, prompt) == _text(preference.rejected, prompt)
        return "answer left as it was" if same else preference

    return _collect(examples, make)


def preferences_from_mistakes(
    examples: Iterable[dspy.Example | Mapping[str, Any]],
    predictions: Iterable[dspy.Prediction | Mapping[str, Any] | None],
    prompt: PromptFormat,
) -> Preferences:
    """The example's own answer is chosen where the model gave another one, and the model's is rejected.

    Args:
        examples: Each with the prompt's input fields and the right outputs.
        predictions: What the model answered to each, in the same order; None where it gave no answer.
        prompt: Says which output is the label; without one any output that differs is a mistake.

    Returns:
        One preference for each wrong answer; `.skipped` counts right and missing ones.

    Raises:
        RowsError: Examples or predictions lack the outputs to compare; all of them are listed.
        UsageError: There are more examples than predictions, or fewer.
    """
    answers = iter(predictions)
    compared = (prompt.label_field,) if prompt.label_field is not None else prompt.output_fields

    def make(values: dict[str, Any]) -> Preference | str:
        try:
            answer = next(answers)
        except StopIteration:
            raise UsageError("fewer predictions than examples; give one for each, None where there is none") from None
        if answer is None:
            return "no answer"
        right = {name: values[name] for name in prompt.output_fields if name in values}
        given = {name: answer[name] for name in prompt.output_fields if name in answer}
        for name in compared:
            _needed(right, name)
            _needed(given, name)
        if all(right[name] == given[name] for name in compared):
            return "answer was right"
        return Preference(inputs=values, chosen=right, rejected={**right, **given}, origin="mistake")

    found = _collect(examples, make)
    if next(answers, _NOTHING) is not _NOTHING:
        raise UsageError("more predictions than examples; give one for each")
    return found


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


def _needed(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise RowError("missing", field=name, value=list(values), remedy="each example needs it")
    return values[name]


def as_preference(pair: Any, prompt: PromptFormat, *, rng: random.Random) -> Preference:
    """A preference from any of the spellings that `export_dpo` takes. Raises RowError."""
    if isinstance(pair, Preference):
        return pair
    if not isinstance(pair, Mapping) and not hasattr(pair, "items"):
        raise RowError(
            "neither an example nor a dict", value=pair, remedy="give the input fields and the right outputs"
        )
    values = dict(pair.items())
    outputs = {name: values[name] for name in prompt.output_fields if name in values}
    if "rejected" in values and "rejected" not in prompt.output_fields:
        return Preference(inputs=values, chosen=values.get("chosen", outputs), rejected=values["rejected"])
    replaced = {name: values[f"rejected_{name}"] for name in prompt.output_fields if f"rejected_{name}" in values}
    if replaced:
        return Preference(inputs=values, chosen=outputs, rejected={**outputs, **replaced})
    return Preference(inputs=values, chosen=outputs, rejected=other_label(outputs, prompt, rng=rng), origin="label")


def other_label(outputs: Mapping[str, Any], prompt: PromptFormat, *, rng: random.Random) -> dict[str, Any]:
    """The same outputs with another label: the wrong choice, and nothing else changed.

    Raises:
        RowError: The prompt has no label to change, or the example lacks it.
        AnswerError: The label is none of the prompt's.
    """
    name, labels = prompt.label_field, prompt.labels
    if name is None or labels is None:
        raise RowError(
            "no rejected answer, and the prompt has no label whose opposite could be one",
            value=outputs,
            remedy='add "rejected", or rejected_<output> for the outputs that differ',
        )
    right = labels.encode(_needed(outputs, name))
    others = [text for text in labels.texts if text != right]
    return {**outputs, name: labels.decode(others[0] if len(others) == 1 else rng.choice(others))}


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
