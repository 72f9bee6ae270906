"""Which of two is preferred: asked in both orders, by the score of each item, or with the reason why.

In: the two items of a pairwise prompt (`title_a`, `title_b`). Out: `preferred`, its `probability`, the position bias.
`PairwisePredictor` asks about the pair, in both orders so that the place of an item does not decide;
`PairwisePredictor.from_scores` asks a yes/no predictor about each item; `DPOPredictor` prefers and explains.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, ClassVar, Literal

import dspy

from dspy_finetune.errors import UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.lm import Answer
from dspy_finetune.jobs import FinetunedModel
from dspy_finetune.predictors.base import TOP_LOGPROBS, FinetunedPredictor, predictor_of
from dspy_finetune.predictors.calibrate import log_odds, sigmoid
from dspy_finetune.prompts import PromptFormat
from dspy_finetune.prompts.format import AnyPrompt
from dspy_finetune.tasks import exchanged, sides_of
from dspy_finetune.values import is_yes_no


def sides(prompt: PromptFormat) -> dict[str, str]:
    """For each input field of the first item its counterpart of the second: {"title_a": "title_b"}.

    Raises:
        UsageError: The prompt is not pairwise: no such fields, or not two labels.
    """
    found = sides_of(prompt.input_fields)
    if not found or prompt.labels is None or len(prompt.labels.texts) != 2:
        raise UsageError(
            "a pairwise prompt needs input fields that end in _a and _b and an output with two labels; "
            f"found inputs {', '.join(prompt.input_fields)} and outputs {', '.join(prompt.output_fields)}"
        )
    return found


def swapped(prompt: PromptFormat, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with the two items in the other order."""
    return exchanged(inputs, sides(prompt))


class PairwisePredictor(FinetunedPredictor):
    """A tuned model that prefers one of two items.

    The prediction carries the prompt's label field (such as `preferred`, the first or second label), and

    - `probability`: of the label returned, in [0, 1]; averaged over both orders when `both_orders`;
    - `probabilities`: {label: probability}, which sum to 1;
    - `position_bias`: the mean probability given to the first place, minus one half: 0 is fair, +0.5 always takes the
      first. None when only one order was asked;
    - `coverage`: the smaller of the two orders' mass on the labels;
    - `is_tie`: True where the two probabilities are no more than `margin` apart.

    Where the host sends no log-probabilities, the answers in words decide; two orders that contradict each other give
    `is_tie` True and the first order's answer, and the probabilities are None. So it is where the host lists too few
    tokens to tell how the two labels share what it left out; the label returned has the share that was told of it.

    Args:
        prompt: A pairwise format: input fields ending in `_a` and `_b`, two labels.
        model: The tuned model's id, or the `FinetunedModel` of a finished job.
        both_orders: Ask A/B and B/A and average: twice the price, no bias to a place. By default True.
        margin: The largest difference of the two probabilities that counts as a tie.
        host: See `FinetunedPredictor`, as for all that follow.
        lm: A ready language model instead of the host's.
        logprobs: Whether log-probabilities must come.
        top_logprobs: How many tokens to ask for at each position.
        max_tokens: The longest answer.
        **lm_options: For `host.lm`.

    Raises:
        AnswerError: An answer of either order cannot be read (on each call).
        UsageError: The prompt is not pairwise.
    """

    default_both_orders: ClassVar[bool] = True

    def __init__(
        self,
        prompt: AnyPrompt,
        model: str | FinetunedModel,
        *,
        host: Host | None = None,
        both_orders: bool | None = None,
        margin: float = 0.0,
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
        self._check_prompt()
        if not 0.0 <= margin <= 1.0:
            raise UsageError(f"margin must be between 0 and 1, found {margin}")
        self.both_orders = self.default_both_orders if both_orders is None else both_orders
        self.margin = margin

    @classmethod
    def from_scores(
        cls, scorer: FinetunedPredictor, *, output: str = "preferred", margin: float = 0.0
    ) -> ItemScorePredictor:
        """A comparison of two items by what a yes/no predictor says of each alone.

        n items take n calls instead of n² / 2, the place of an item decides nothing, and `rank` takes the scores as
        they are. On 12,000 set-ups scoring items singly was ahead of comparing pairs (arXiv 2411.04991). The training
        rows are those of `ft.items_from_pairs`; `ft.calibrate(it, pairs)` makes its probabilities those of pairs.

        Args:
            scorer: A predictor of True and False, such as `OpenAIPredictor(prompts.binary(...), model)`, on a host that
                gives log-probabilities. Its input `title` becomes `title_a` and `title_b`.
            output: The field of the answer, "A" or "B".
            margin: The largest difference of the two probabilities that counts as a tie.

        Raises:
            UsageError: The predictor's answer is not True or False.
        """
        labels = getattr(getattr(scorer, "prompt", None), "labels", None)
        if not isinstance(scorer, FinetunedPredictor) or labels is None or not is_yes_no(labels):
            raise UsageError("from_scores: a tuned predictor of True and False, such as one over prompts.binary()")
        fields: dict[str, tuple[Any, Any]] = {}
        for name, given in scorer.prompt.signature.input_fields.items():
            fields |= {f"{name}_{side}": (given.annotation, dspy.InputField()) for side in ("a", "b")}
        answer: Any = Literal["A", "B"]
        signature = dspy.Signature({**fields, output: (answer, dspy.OutputField())}, "Which one is preferred?")
        return ItemScorePredictor(PromptFormat(signature), scorer.model, host=scorer.host, scorer=scorer, margin=margin)

    def _check_prompt(self) -> None:
        sides(self.prompt)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Ask once, or once in each order."""
        first = self._ask(inputs)
        second = self._ask(swapped(self.prompt, inputs)) if self.both_orders else None
        return self._read(inputs, first, second)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Ask once, or both orders at the same time."""
        if not self.both_orders:
            return self._read(inputs, await self._aask(inputs), None)
        first, second = await asyncio.gather(self._aask(inputs), self._aask(swapped(self.prompt, inputs)))
        return self._read(inputs, first, second)

    def _own_state(self) -> dict[str, Any]:
        return {"both_orders": self.both_orders, "margin": self.margin}

    def _read(self, inputs: dict[str, Any], first: Answer, second: Answer | None) -> dspy.Prediction:
        labels, field = self.prompt.labels, self.prompt.label_field
        assert labels is not None
        assert field is not None
        label_a, label_b = (labels.decode(text) for text in labels.texts)
        values = self._values(first)
        turned = self._values(second) if second is not None else None
        if turned is not None:  # what the second order calls B stands first in the inputs
            turned[field] = label_a if turned[field] == label_b else label_b
        told = [self._shares(answer) for answer in (first, second) if answer is not None]
        coverages = [coverage for _, coverage in told if coverage is not None]
        extras: dict[str, Any] = {
            "probability": None,
            "probabilities": None,
            "coverage": min(coverages) if len(coverages) == len(told) else None,
            "position_bias": None,
            "is_tie": turned is not None and turned[field] != values[field],
        }
        pairs = [(shares or {}).get(label) for shares, _ in told for label in (label_a, label_b)]
        if None not in pairs:
            on_first = [share for share in pairs[::2] if share is not None]
            of_a = (on_first[0] + 1.0 - on_first[1]) / 2 if second is not None else on_first[0]
            of_a = self._calibrated({label_a: of_a, label_b: 1.0 - of_a})[label_a]
            choice = label_a if of_a >= 0.5 else label_b
            if turned is not None and values[field] != choice:
                values = turned  # the words of the order that made the final choice
            values = {**values, field: choice}
            extras |= {
                "probability": max(of_a, 1.0 - of_a),
                "probabilities": {label_a: of_a, label_b: 1.0 - of_a},
                "position_bias": sum(on_first) / 2 - 0.5 if second is not None else None,
                "is_tie": abs(2 * of_a - 1.0) <= self.margin,
            }
        elif not extras["is_tie"]:
            # Too few tokens were listed to tell how the two share what was left out: what is known is the answer's own.
            chosen = values[field]
            other = label_b if chosen == label_a else label_a
            places = [chosen, other][: len(told)]  # in the second order the chosen item has the other label
            known = [(shares or {}).get(label) for (shares, _), label in zip(told, places, strict=True)]
            if None not in known:
                share = sum(one for one in known if one is not None) / len(known)
                extras |= {"probability": share, "probabilities": {chosen: share, other: None}}
        return self._finish(values, inputs, extras)

    def _finish(self, values: dict[str, Any], inputs: dict[str, Any], extras: dict[str, Any]) -> dspy.Prediction:
        return dspy.Prediction(**values, **extras)


class ItemScorePredictor(PairwisePredictor):
    """A comparison by item scores; made by `PairwisePredictor.from_scores`.

    The score of an item is the log-odds of True. The first is preferred with the probability
    sigmoid(score_a - score_b), the Bradley-Terry model with the predictor's own scores. The prediction is that of a
    `PairwisePredictor` asked in both orders, whose `position_bias` is 0, with `score_a` and `score_b`; all but the
    label None where the host tells too few log-probabilities. The prompt is never sent: it says what the fields are.

    Args:
        prompt: The pairwise format.
        model: The model of the yes/no predictor.
        host: Where it is served.
        scorer: The yes/no predictor.
        margin: The largest difference of the two probabilities that counts as a tie.
    """

    def __init__(
        self,
        prompt: PromptFormat,
        model: str,
        *,
        host: Host | None = None,
        scorer: FinetunedPredictor | None = None,
        margin: float = 0.0,
    ) -> None:
        lm = scorer.lm if scorer is not None and scorer.host is None else None
        super().__init__(prompt, model, host=host, lm=lm, margin=margin, both_orders=True)
        self._scorer = scorer

    @property
    def scorer(self) -> FinetunedPredictor:
        """The yes/no predictor."""
        assert self._scorer is not None  # `from_scores` gives it, and `load_state`
        return self._scorer

    def item_score(self, **inputs: Any) -> float | None:
        """The log-odds of True for one item, by the yes/no predictor's own fields; None where they are not told.

        Raises:
            AnswerError: The answer cannot be read.
        """
        return _score(self.scorer(**inputs))

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Ask about each of the two."""
        first, second = (self.scorer(**self._item(inputs, side)) for side in ("a", "b"))
        return self._compared(first, second)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Ask about both at the same time."""
        asked = [self.scorer.acall(**self._item(inputs, side)) for side in ("a", "b")]
        return self._compared(*await asyncio.gather(*asked))

    def _item(self, inputs: dict[str, Any], side: str) -> dict[str, Any]:
        return {name: inputs[f"{name}_{side}"] for name in self.scorer.prompt.input_fields}

    def _compared(self, first: dspy.Prediction, second: dspy.Prediction) -> dspy.Prediction:
        labels, field = self.prompt.labels, self.prompt.label_field
        assert labels is not None
        assert field is not None
        label_a, label_b = (labels.decode(text) for text in labels.texts)
        scores = [_score(first), _score(second)]
        extras: dict[str, Any] = {"score_a": scores[0], "score_b": scores[1], "position_bias": 0.0}
        if scores[0] is None or scores[1] is None:
            answer_field = str(self.scorer.prompt.label_field)
            likes_a, likes_b = bool(first[answer_field]), bool(second[answer_field])
            told = dict.fromkeys(("probability", "probabilities", "coverage"))
            values = {field: label_b if likes_b and not likes_a else label_a}
            return dspy.Prediction(**values, **told, **extras, is_tie=likes_a == likes_b)
        of_a = sigmoid(scores[0] - scores[1])
        of_a = self._calibrated({label_a: of_a, label_b: 1.0 - of_a})[label_a]
        return dspy.Prediction(
            **{field: label_a if of_a >= 0.5 else label_b},
            probability=max(of_a, 1.0 - of_a),
            probabilities={label_a: of_a, label_b: 1.0 - of_a},
            coverage=min(first.coverage, second.coverage),
            is_tie=abs(2 * of_a - 1.0) <= self.margin,
            **extras,
        )

    def _own_state(self) -> dict[str, Any]:
        scorer = None if self._scorer is None else self._scorer.dump_state()
        return {"margin": self.margin, "scorer": scorer}

    def _state_version(self) -> int:
        return 3 if self._scorer is None else max(4, self._scorer._state_version())

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> ItemScorePredictor:
        """Take over a saved state. Raises as `FinetunedPredictor.load_state`."""
        kept = dict(state)
        saved = kept.pop("scorer", None)
        super().load_state(kept, allow_unsafe_lm_state=allow_unsafe_lm_state)
        if saved is not None:
            self._scorer = predictor_of(saved, host=self.host)
        return self


def _score(prediction: dspy.Prediction) -> float | None:
    shares = prediction.probabilities
    return None if shares is None or None in shares.values() else log_odds(shares[True])


_WORD = re.compile(r"\w{4,}")


def argues_for(explanation: str, chosen: str, other: str) -> bool | None:
    """Does the explanation speak of the chosen item rather than of the other one?

    Counts the words of four letters or more that the explanation shares with only one of the two items, the first five
    letters deciding (so that "bridge" meets "bridges").

    Returns:
        True or False by the larger count, None where it shares no such word or as many with both: cannot be told.

    >>> argues_for("Shows how a lock gate holds back a river", "Why lock gates lean upstream", "Ten habits of founders")
    True
    >>> argues_for("A fine read.", "Why lock gates lean upstream", "Ten habits of founders") is None
    True
    """
    words, of_chosen, of_other = (
        {word[:5].lower() for word in _WORD.findall(text)} for text in (explanation, chosen, other)
    )
    for_chosen, for_other = len(words & (of_chosen - of_other)), len(words & (of_other - of_chosen))
    return None if for_chosen == for_other else for_chosen > for_other


class DPOPredictor(PairwisePredictor):
    """A tuned model that prefers one of two items and says why.

    The prediction carries what `PairwisePredictor` gives, the prompt's other outputs (such as `explanation`, in the
    words of the order whose answer is the final choice), and

    - `consistent`: True where the explanation speaks of the chosen item, False where it speaks of the other one, None
      where that cannot be told (see `argues_for`).

    The choice is read from the model's own words; an answer that names no label, or both, raises AnswerError.

    Args:
        prompt: An explained pairwise format: a label and at least one text output.
        model: The tuned model's id, or the `FinetunedModel` of a finished job.
        both_orders: Ask A/B and B/A and average the probabilities: two explanations are written, one is returned. By
            default False.
        margin: The largest difference of the two probabilities that counts as a tie.
        host: See `FinetunedPredictor`, as for all that follow.
        lm: A ready language model instead of the host's.
        logprobs: Whether log-probabilities must come.
        top_logprobs: How many tokens to ask for at each position.
        max_tokens: The longest answer.
        **lm_options: For `host.lm`.

    Raises:
        AnswerError: An answer cannot be read (on each call).
        UsageError: The prompt is not pairwise, or has no output besides the label.
    """

    default_max_tokens: ClassVar[int] = 96

    default_both_orders: ClassVar[bool] = False

    def _check_prompt(self) -> None:
        super()._check_prompt()
        if len(self.prompt.output_fields) < 2:
            raise UsageError(
                f"a DPOPredictor explains its choice: the prompt needs a text output besides "
                f"{self.prompt.label_field!r}; see dspy_finetune.prompts.explained_pairwise"
            )

    def _finish(self, values: dict[str, Any], inputs: dict[str, Any], extras: dict[str, Any]) -> dspy.Prediction:
        labels, field = self.prompt.labels, self.prompt.label_field
        assert labels is not None
        assert field is not None
        pairs = sides(self.prompt)
        item_a = " ".join(str(inputs[name]) for name in pairs)
        item_b = " ".join(str(inputs[name]) for name in pairs.values())
        is_first = values[field] == labels.decode(labels.texts[0])
        words = " ".join(str(values[name]) for name in self.prompt.output_fields if name != field)
        chosen, other = (item_a, item_b) if is_first else (item_b, item_a)
        return dspy.Prediction(**values, **extras, consistent=argues_for(words, chosen, other))
