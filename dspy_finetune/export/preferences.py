"""Preferences: one prompt, the better answer and the worse one, from labels, corrections and model mistakes.

In: examples with what is known of their answers. Out: `Preference` values, which `export_dpo` writes.
Not covered: preferences from a program's scored traces (traces.py).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dspy_finetune.errors import RowError

if TYPE_CHECKING:
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
    if name not in outputs:
        raise RowError("missing", field=name, value=outputs, remedy="each example needs its right label")
    right = labels.encode(outputs[name])
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
