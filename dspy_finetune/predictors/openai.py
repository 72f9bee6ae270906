"""`OpenAIPredictor`: a tuned model for any signature, with a label's probability where the host has log-probabilities.

In: the signature's inputs. Out: a prediction with the signature's outputs; for a label prompt also `probability`,
`probabilities` and `coverage`; a number is read from its text, from the distribution that its tokens tell, or from
several samples with an `interval`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import dspy
import numpy as np

from dspy_finetune.errors import AnswerError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.lm import Answer, HostEngine, HostLM, read_responses, refuses_n
from dspy_finetune.jobs import FinetunedModel
from dspy_finetune.predictors.ask import in_threads
from dspy_finetune.predictors.base import TOP_LOGPROBS, FinetunedPredictor
from dspy_finetune.predictors.calibrate import Residuals
from dspy_finetune.predictors.probabilities import number_masses, numbers_are_told, weighted_middle
from dspy_finetune.prompts.format import AnyPrompt
from dspy_finetune.values import is_yes_no

logger = logging.getLogger(__name__)

Decoding: TypeAlias = Literal["text", "median", "mean"]
"""Which number an answer is: the one written, or that of the distribution which its tokens tell."""

_MOST_THREADS = 16
"""Samples of one question that are asked for at the same time, where each is a request of its own."""

_MOST_ANSWERS = 128
"""To one request, as OpenAI's API bounds `n`."""


class OpenAIPredictor(FinetunedPredictor):
    """A tuned model as a drop-in for `dspy.Predict(signature)`.

    For a prompt with labels the prediction also carries

    - `probability`: for a bool the probability of True, otherwise that of the label returned, in [0, 1];
    - `probabilities`: {label value: probability}, scaled to sum to 1 over the labels;
    - `coverage`: the model's own mass on the label set before scaling, in [0, 1]. Low coverage says that the model
      wanted to answer something else;

    all three None where the host sends no log-probabilities; where it lists no token of any label, coverage is 0 and
    the other two are None. The value is the most probable label; for a bool it is True when
    `probability >= threshold`. Where the host lists too few tokens to tell how the labels share what it left out (the
    chosen one alone, at 22 %), the value is the answer's own words, a label has the mass that was told of it (0.22) and
    None where nothing was, and `probability` likewise.

    For a prompt whose one output is a number, `decode` says which number the answer is:

    - "text": the one that the model wrote;
    - "median", "mean": that of the distribution which the log-probabilities of its digits tell (see
      `probabilities.py`), or of the samples. The median is the best guess for the absolute error, the mean, which is
      taken on the scale that was trained, for the squared one (arXiv 2403.04182). The prediction then carries
      `coverage`, the mass of all numbers that were told, in [0, 1]. It is None, and the number the one that was
      written, where the host sends no log-probabilities, or where its tokens are single digits and the number has
      several before its point: they do not tell how many digits the other numbers have. Samples do, and so does a
      prompt on the scale "log".

    `n_samples` above 1 asks that often at `temperature`. The number is then the median of the samples (with
    decode="mean" their mean), and the prediction also carries

    - `interval`: (low, high), the quantiles that hold the middle `interval_level` of the samples, linear between them.
      It says how much the model varies, not how often it is right: check its coverage on held-out examples;
    - `samples`: the numbers, in the order of asking;
    - `n_parse_failures`: samples that were no number; where that is half of them or more, AnswerError is raised.

    After `calibrate_interval(predictor, held_out)` a number always carries an `interval`, of one request or many, and
    it is that of the held-out errors: it holds the truth as often as its level says.

    Args:
        prompt: The format that the model was trained with, or a `dspy.Signature` (class or string): a bool, a Literal,
            a number or a text, by its output.
        model: The tuned model's id, or the `FinetunedModel` of a finished job.
        threshold: For a bool: the least probability of True that counts as True.
        decode: For a number: "text", "median" or "mean".
        n_samples: For a number: how many answers are sampled for the interval. OpenAI, Azure and the local host give up
            to 128 for one request, which bills the prompt once; elsewhere each is a request of its own.
        temperature: Of the samples; above 0. A single answer is always asked for at 0.
        interval_level: The share of the samples inside the interval, between 0 and 1.
        host: See `FinetunedPredictor`, as for all that follow.
        lm: A ready language model instead of the host's.
        logprobs: Whether log-probabilities must come.
        top_logprobs: How many tokens to ask for at each position.
        max_tokens: The longest answer.
        **lm_options: For `host.lm`; `stop=` as well: texts that end the answer, besides the prompt's own.

    Raises:
        NoAnswerError: The model refused, was cut off, or only reasoned (on each call).
        AnswerError: The answer cannot be read (on each call).
        PromptMismatchError: The `FinetunedModel` was trained on another prompt.
    """

    def __init__(
        self,
        prompt: AnyPrompt,
        model: str | FinetunedModel,
        *,
        host: Host | None = None,
        threshold: float = 0.5,
        decode: Decoding = "text",
        n_samples: int = 1,
        temperature: float = 1.0,
        interval_level: float = 0.8,
        lm: dspy.BaseLM | None = None,
        logprobs: bool | None = None,
        top_logprobs: int = TOP_LOGPROBS,
        max_tokens: int | None = None,
        **lm_options: Any,
    ) -> None:
        super().__init__(
            prompt, model, host=host, lm=lm, logprobs=logprobs, top_logprobs=top_logprobs, max_tokens=max_tokens,
            **lm_options,
        )  # fmt: skip
        if not 0.0 <= threshold <= 1.0:
            raise UsageError(f"threshold must be between 0 and 1, found {threshold}")
        if n_samples < 1 or temperature <= 0.0 or not 0.0 < interval_level < 1.0:
            raise UsageError(
                "samples: n_samples must be at least 1, temperature above 0 and interval_level between 0 and 1; "
                f"found {n_samples}, {temperature} and {interval_level}"
            )
        if decode not in get_args(Decoding):
            raise UsageError(f'decode: "text", "median" or "mean"; found {decode!r}')
        if (n_samples > 1 or decode != "text") and self.number_field is None:
            raise UsageError(
                "n_samples and decode are for a prompt with one output of type int or float; labels have their "
                "probability instead"
            )
        self.threshold = threshold
        self.decode = decode
        self.n_samples = n_samples
        self.temperature = temperature
        self.interval_level = interval_level
        self.residuals: Residuals | None = None
        self._told_no_numbers = False
        self._refuses_n = False

    @property
    def number_field(self) -> str | None:
        """The one output, where it is an int or a float; else None."""
        kinds = [field.annotation for field in self.prompt.signature.output_fields.values()]
        return self.prompt.output_fields[0] if kinds in ([int], [float]) else None

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Ask the model for one answer, or for `n_samples` at the same time."""
        if self.n_samples == 1:
            return self._read(self._ask(inputs))

        def ask(rollout: int) -> Answer:
            return self._ask(inputs, temperature=self.temperature, rollout=rollout)

        answers: list[Answer] = []
        if self._has_one_request():
            try:
                answers = read_responses(self._send(inputs, **self._many()))
            except Exception as error:  # whatever it is, it is raised unless it is about `n`
                if not refuses_n(str(error)):
                    raise
        return self._read_samples([*answers, *in_threads(ask, self._missing(answers), _MOST_THREADS)])

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Ask the model for one answer, or for `n_samples` at the same time, without blocking the event loop."""
        if self.n_samples == 1:
            return self._read(await self._aask(inputs))
        answers: list[Answer] = []
        if self._has_one_request():
            try:
                answers = read_responses(await self._asend(inputs, **self._many()))
            except Exception as error:  # as above
                if not refuses_n(str(error)):
                    raise
        missing = self._missing(answers)
        asked = [self._aask(inputs, temperature=self.temperature, rollout=rollout) for rollout in missing]
        return self._read_samples([*answers, *await asyncio.gather(*asked)])

    def asks_by_n(self) -> bool:
        """Whether all samples are asked for in one request."""
        takes_n = self.host is not None and self.host.kind.takes_n and not self._refuses_n
        return takes_n and 1 < self.n_samples <= _MOST_ANSWERS

    def _has_one_request(self) -> bool:
        # DSPy's own engines read one answer of a response, and a stream's listener cannot tell several apart.
        is_read_here = isinstance(self.lm, HostLM) and isinstance(self.lm.engine, HostEngine)
        return self.asks_by_n() and is_read_here and dspy.settings.send_stream is None

    def _many(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "rollout": 1, "n": self.n_samples}

    def _missing(self, answers: Sequence[Answer]) -> range:
        """The numbers of the samples that are asked for one by one: of a host that gave fewer by `n`, or refused it."""
        if self._has_one_request() and len(answers) < self.n_samples:
            self._refuses_n = True
            logger.warning(
                "%s gave %d of %d answers to one request: each sample is a request of its own from now on",
                self.model, len(answers), self.n_samples,
            )  # fmt: skip
        return range(len(answers) + 1, self.n_samples + 1)

    def _own_state(self) -> dict[str, Any]:
        names = ("threshold", "decode", "n_samples", "temperature", "interval_level")
        state = {name: getattr(self, name) for name in names}
        return state if self.residuals is None else {**state, "residuals": self.residuals.to_dict()}

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> OpenAIPredictor:
        """Take over a saved state. Raises as `FinetunedPredictor.load_state`."""
        saved = state.get("residuals")
        residuals = None if saved is None else Residuals.from_dict(saved)
        super().load_state(state, allow_unsafe_lm_state=allow_unsafe_lm_state)
        self.residuals = residuals
        return self

    def _state_version(self) -> int:
        version = super()._state_version() if self.residuals is None else 3
        return version if self.decode == "text" else 4

    def _read_samples(self, answers: Sequence[Answer]) -> dspy.Prediction:
        field = self.prompt.output_fields[0]
        samples: list[float] = []
        unread: list[AnswerError] = []
        for answer in answers:
            try:
                samples.append(self._values(answer)[field])
            except AnswerError as error:
                unread.append(error)
        if len(unread) * 2 >= len(answers):
            raise AnswerError(
                f"{len(unread)} of {len(answers)} samples are no number, such as {unread[0].text!r:.60}",
                text=unread[0].text,
            )
        tail = (1.0 - self.interval_level) / 2
        # For an int the value must be an int too: of an even number of samples, the lower one of the two in the middle.
        middle = statistics.median_low(samples) if isinstance(samples[0], int) else statistics.median(samples)
        if self.decode == "mean":
            middle = _like(samples[0], self._mean(samples, [1.0] * len(samples)))
        low, high = np.quantile(samples, (tail, 1.0 - tail)).tolist()
        return dspy.Prediction(
            **{field: middle},
            interval=(low, high) if self.residuals is None else self.residuals.interval(middle),
            samples=samples,
            n_parse_failures=len(unread),
        )

    def _asks_logprobs(self) -> bool:
        is_decoded = self.decode != "text" and self.n_samples == 1 and self.logprobs is not False
        return is_decoded or super()._asks_logprobs()

    def _decoded(self, values: dict[str, Any], answer: Answer) -> tuple[dict[str, Any], dict[str, Any]]:
        """The number of the distribution that the tokens tell; as it was written where they tell none."""
        field = self.prompt.output_fields[0]
        if self.logprobs is False or not self._has_logprobs(answer):
            return values, {"coverage": None}
        assert answer.positions is not None
        if not numbers_are_told(answer.positions):
            if not self._told_no_numbers:
                self._told_no_numbers = True
                logger.warning(
                    "%s writes numbers in single digits, which do not tell how long other numbers would be: the answer "
                    'is the number that was written; ask for samples (n_samples=9), or train on the scale "log"',
                    self.model,
                )
            return values, {"coverage": None}
        points = number_masses(answer.positions, lambda text: float(self.prompt.parse(text)[field]))
        coverage = sum(mass for _, mass in points)
        if coverage <= 0:
            return values, {"coverage": 0.0}
        number = weighted_middle(points) if self.decode == "median" else self._mean(*zip(*points, strict=True))
        return {**values, field: _like(values[field], number)}, {"coverage": min(coverage, 1.0)}

    def _mean(self, numbers: Sequence[float], masses: Sequence[float]) -> float:
        """The mean on the scale that is trained: a thousandth of e^42 would outweigh all prices."""
        style = self.prompt.codec(self.prompt.output_fields[0]).number
        is_log = style is not None and style.scale == "log"
        scaled = np.log1p(numbers) if is_log else np.asarray(numbers)
        mean = float(np.average(scaled, weights=masses))
        return math.expm1(mean) if is_log else mean

    def _read(self, answer: Answer) -> dspy.Prediction:
        # The text decides whether there is an answer; the probabilities only refine which label it is.
        values = self._values(answer)
        extras: dict[str, Any] = {}
        if self.decode != "text":
            values, extras = self._decoded(values, answer)
        if self.residuals is not None:
            extras["interval"] = self.residuals.interval(values[self.prompt.output_fields[0]])
        if self.number_field is not None:
            return dspy.Prediction(**values, **extras)
        field = self.prompt.label_field
        if self.prompt.labels is None or field is None:
            return dspy.Prediction(**values)
        shares, coverage = self._shares(answer)
        if shares is None:
            return dspy.Prediction(**values, probability=None, probabilities=None, coverage=coverage)
        known = {label: share for label, share in shares.items() if share is not None}
        if len(known) == len(shares):
            shares = dict(self._calibrated(known))
            values[field] = max(known, key=lambda label: shares[label] or 0.0)
            if is_yes_no(shares):
                values[field] = (shares[True] or 0.0) >= self.threshold
        probability = shares[True] if is_yes_no(shares) else shares[values[field]]
        return dspy.Prediction(**values, probability=probability, probabilities=shares, coverage=coverage)


def _like(written: Any, number: float) -> Any:
    """The number in the type of the one that was written."""
    return round(number) if isinstance(written, int) else number
