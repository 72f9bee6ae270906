"""`OpenAIPredictor`: a tuned model for any signature, with a label's probability where the host has log-probabilities.

In: the signature's inputs. Out: a prediction with the signature's outputs, and for a label prompt also `probability`,
`probabilities` and `coverage`.
"""

from __future__ import annotations

from typing import Any

import dspy

from dspy_finetune.errors import UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import FinetunedModel
from dspy_finetune.predictors.base import FinetunedPredictor
from dspy_finetune.predictors.probabilities import normalised
from dspy_finetune.prompts import PromptFormat


class OpenAIPredictor(FinetunedPredictor):
    """A tuned model as a drop-in for `dspy.Predict(signature)`.

    For a prompt with labels the prediction also carries

    - `probability`: for a bool the probability of True, otherwise that of the label returned, in [0, 1];
    - `probabilities`: {label value: probability}, scaled to sum to 1 over the labels;
    - `coverage`: the model's own mass on the label set before scaling, in [0, 1]. Low coverage says that the model
      wanted to answer something else;

    all three None where the host sends no log-probabilities. The value is the most probable label; for a bool it is
    True when `probability >= threshold`.

    Args:
        prompt: The format that the model was trained with.
        model: The tuned model's id, or the `FinetunedModel` of a finished job.
        threshold: For a bool: the least probability of True that counts as True.
        host: See `FinetunedPredictor`, as for all that follow.
        lm: A ready language model instead of the host's.
        logprobs: Whether log-probabilities must come.
        max_tokens: The longest answer.
        **lm_options: For `host.lm`.

    Raises:
        AnswerError: The answer cannot be read (on each call).
        PromptMismatchError: The `FinetunedModel` was trained on another prompt.
    """

    def __init__(
        self,
        prompt: PromptFormat,
        model: str | FinetunedModel,
        *,
        host: Host | None = None,
        threshold: float = 0.5,
        lm: dspy.BaseLM | None = None,
        logprobs: bool | None = None,
        max_tokens: int | None = None,
        **lm_options: Any,
    ) -> None:
        super().__init__(prompt, model, host=host, lm=lm, logprobs=logprobs, max_tokens=max_tokens, **lm_options)
        if not 0.0 <= threshold <= 1.0:
            raise UsageError(f"threshold must be between 0 and 1, found {threshold}")
        self.threshold = threshold

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Ask the model once."""
        return self._read(self._ask(inputs))

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Ask the model once, without blocking the event loop."""
        return self._read(await self._aask(inputs))

    def _own_state(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

    def _read(self, response: Any) -> dspy.Prediction:
        # The text decides whether there is an answer; the probabilities only refine which label it is.
        values = self.prompt.parse(response.text or "")
        labels, field = self.prompt.labels, self.prompt.label_field
        if labels is None or field is None:
            return dspy.Prediction(**values)
        masses = self._masses(response)
        shares = normalised(masses) if masses is not None else None
        if masses is None or shares is None:
            return dspy.Prediction(**values, probability=None, probabilities=None, coverage=None)
        probabilities = {labels.decode(text): share for text, share in shares.items()}
        if set(probabilities) == {True, False}:
            probability = probabilities[True]
            values[field] = probability >= self.threshold
        else:
            values[field] = max(probabilities, key=lambda value: probabilities[value])
            probability = probabilities[values[field]]
        return dspy.Prediction(
            **values, probability=probability, probabilities=probabilities, coverage=min(sum(masses.values()), 1.0)
        )
