"""`DPOPredictor`: which of two is preferred and why, from a model tuned by direct preference optimisation.

In: the two items of an explained pairwise prompt. Out: what `PairwisePredictor` gives, the model's `explanation`, and
whether that explanation argues for the choice (`consistent`).
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import dspy

from dspy_finetune.errors import UsageError
from dspy_finetune.predictors.pairwise import PairwisePredictor, sides

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
