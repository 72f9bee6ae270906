"""`DecisionLM`: a tuned predictor as the `lm` of a plain `dspy.Predict` whose outputs are decisions.

In: a tuned predictor with labels. Out: what DSPy calls a decision-request client: `dspy.Predict` hands it the inputs
and asks for probabilities, and DSPy's own types (`Noul`, `Choice`, or a plain bool or Literal), its thresholds and its
weights do the rest. What is sent is the trained prompt; instructions and demos of the program are not.
Not covered: `Score` outputs, several outputs, and streaming, which DSPy has not got here. DSPy calls the hook
experimental.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import dspy
from dspy.clients.base_lm import LM_CLASS_STATE_KEY

from dspy_finetune.errors import LogprobsError, UsageError
from dspy_finetune.predictors.base import FinetunedPredictor, predictor_of
from dspy_finetune.values import is_yes_no, match_label

logger = logging.getLogger(__name__)


class DecisionLM(dspy.BaseLM):
    """A tuned predictor where DSPy takes a language model that answers with probabilities.

    Each output needs a description, as DSPy asks for one: `dspy.OutputField(desc=...)`. The probabilities are the
    predictor's, calibrated if it is; the threshold is DSPy's (`predict.fields`), not the predictor's.

    Use it as `predict.lm = DecisionLM(predictor)`. A program with it is saved, prompt and all, and loaded with
    `program.load(path, allow_unsafe_lm_state=True)`, as DSPy asks for every class of its own.

    Args:
        predictor: A tuned predictor with labels, on a host that gives log-probabilities.

    Raises:
        UsageError: The predictor has no labels.
    """

    supports_decision_requests = True

    def __init__(self, predictor: FinetunedPredictor) -> None:
        if not isinstance(predictor, FinetunedPredictor) or predictor.prompt.labels is None:
            raise UsageError("DecisionLM: a tuned predictor whose first output has labels (bool, Literal, Enum)")
        super().__init__(model=predictor.model)
        self.predictor = predictor
        self._has_warned = False

    def __call__(self, state: Mapping[str, Any], questions: Mapping[str, Any]) -> dict[str, Any]:
        """The probabilities of the asked output, in DSPy's shape.

        Raises:
            AnswerError: The answer cannot be read.
            LogprobsError: The host gave no log-probabilities: nothing is invented in their place.
            UsageError: The program asks for other fields than the predictor has.
        """
        return self._answers(self.predictor(**self._inputs(state, questions)), questions)

    async def acall(self, state: Mapping[str, Any], questions: Mapping[str, Any]) -> dict[str, Any]:
        """As a call."""
        return self._answers(await self.predictor.acall(**self._inputs(state, questions)), questions)

    def _inputs(self, state: Mapping[str, Any], questions: Mapping[str, Any]) -> dict[str, Any]:
        prompt, inputs = self.predictor.prompt, dict(state["inputs"])
        kinds = {name: question["type"] for name, question in questions.items()}
        if set(kinds) != {prompt.label_field} or set(inputs) != set(prompt.input_fields) or "score" in kinds.values():
            asked = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise UsageError(
                f"the program gives {', '.join(inputs)} and asks for {asked}; "
                f"the predictor takes {', '.join(prompt.input_fields)} and decides {prompt.label_field}"
            )
        if state.get("demos") and not self._has_warned:
            self._has_warned = True
            logger.warning("%d demos are not sent: %s was trained without demos", len(state["demos"]), self.model)
        return inputs

    def _answers(self, prediction: dspy.Prediction, questions: Mapping[str, Any]) -> dict[str, Any]:
        shares = prediction.probabilities
        if shares is None:
            raise LogprobsError(f"{self.model} gives no log-probabilities, and a decision needs a probability")
        ((name, question),) = questions.items()
        if question["type"] == "noul":
            if not is_yes_no(shares):
                raise UsageError(f"{name}: the program asks yes or no, the labels are {', '.join(map(str, shares))}")
            return {name: {"noul": shares[True]}}
        options = {}
        for option in question["criteria"]:
            label = match_label(option, list(shares))
            if label is None:
                raise UsageError(f"{name}: {option!r} is none of the labels {', '.join(map(str, shares))}")
            options[option] = shares[label]
        return {name: {"probabilities": options, "confidence": max(options.values())}}

    def dump_state(self) -> dict[str, Any]:
        """The predictor's state; never a key."""
        return {
            LM_CLASS_STATE_KEY: f"{type(self).__module__}.{type(self).__qualname__}",
            "predictor": self.predictor.dump_state(),
        }

    @classmethod
    def load_state(cls, state: Mapping[str, Any], *, allow_custom_lm_class: bool = False) -> DecisionLM:
        """The inverse of `dump_state`; the key comes from the environment."""
        return cls(predictor_of(state["predictor"]))
