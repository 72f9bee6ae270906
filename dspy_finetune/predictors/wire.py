"""wire.py: a predictor's requests and answers as a chat-completions host reads and writes them, for millions of calls.

In: a predictor and the inputs of one call. Out: the bodies that this call sends, and the prediction read from the
completions that come back, by the predictor's own reading. What goes between, and DSPy's cache, history and callbacks,
is the caller's business (bulk). A predictor with a language model of its own, or with options that only DSPy carries
out, has no such bodies: it is called as any program is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy

from dspy_finetune.hosts.logprobs import positions_on_wire
from dspy_finetune.predictors.base import TOP_LOGPROBS, Answer, FinetunedPredictor
from dspy_finetune.predictors.openai import OpenAIPredictor
from dspy_finetune.predictors.pairwise import PairwisePredictor, swapped

_NEUTRAL_OPTIONS = frozenset({"cache", "num_retries", "timeout"})
"""Options of the language model that change no byte of a request."""


def is_wired(program: object) -> bool:
    """Whether the program's calls are known as requests: one of this library's predictors, on its host.

    A subclass with a `forward` of its own is asked through that.
    """
    if not isinstance(program, FinetunedPredictor) or program.host is None or program._given_lm is not None:
        return False
    forward = type(program).forward
    known = (OpenAIPredictor.forward, PairwisePredictor.forward)
    return forward in known and program.lm_options.keys() <= _NEUTRAL_OPTIONS


def bodies_of(predictor: FinetunedPredictor) -> Callable[[Mapping[str, Any]], list[dict[str, Any]]]:
    """A function from the inputs of a call to the bodies it sends: one, or one for each order or sample."""
    prompt = predictor.prompt
    n_samples = predictor.n_samples if isinstance(predictor, OpenAIPredictor) else 1
    has_both = isinstance(predictor, PairwisePredictor) and predictor.both_orders
    temperature = predictor.temperature if isinstance(predictor, OpenAIPredictor) and n_samples > 1 else 0.0
    fixed: dict[str, Any] = {
        "max_completion_tokens": predictor.max_tokens or prompt.max_tokens or predictor.default_max_tokens,
        "temperature": temperature,
    }
    if stop := [*(prompt.stop or ()), *predictor.stop]:
        fixed["stop"] = stop
    if predictor.logprobs is not False and prompt.labels is not None:
        fixed |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    if predictor._response_format() is not None:  # not every host can be held to a schema
        wire = prompt.response_format or {}
        # In the order in which DSPy writes it: a host's cache of prompts goes by bytes.
        fixed["response_format"] = {"type": wire["type"], "json_schema": dict(sorted(wire["json_schema"].items()))}
    # `openai/` is DSPy's prefix, not a part of the host's name for the model.
    model = predictor.model.removeprefix("openai/")

    def bodies(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        asked = [{"model": model, "messages": prompt.messages(inputs), **fixed}]
        if has_both:
            asked.append({**asked[0], "messages": prompt.messages(swapped(prompt, dict(inputs)))})
        return asked * n_samples

    return bodies


def read_completions(
    predictor: FinetunedPredictor, inputs: Mapping[str, Any], completions: Sequence[Mapping[str, Any]]
) -> dspy.Prediction:
    """The prediction from the completions of `bodies_of`, in their order.

    Raises:
        AnswerError: An answer cannot be read.
        LogprobsError: Log-probabilities were asked for and are not there.
    """
    answers = [_answer(body) for body in completions]
    if isinstance(predictor, PairwisePredictor):
        return predictor._read(dict(inputs), answers[0], answers[1] if len(answers) > 1 else None)
    assert isinstance(predictor, OpenAIPredictor)
    return predictor._read(answers[0]) if predictor.n_samples == 1 else predictor._read_samples(answers)


def _answer(body: Mapping[str, Any]) -> Answer:
    choice = body["choices"][0]
    content = (choice.get("message") or {}).get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text") or "") for part in content)
    listed = (choice.get("logprobs") or {}).get("content")
    return Answer(content or "", positions_on_wire(listed) if listed else None)
