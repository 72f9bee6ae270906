"""Metrics of free text: how much of the expected wording, or of its meaning, an answer holds.

In: an expected and a predicted text. Out: a float; each docstring states the range. Two empty texts are alike (1), an
empty and a full one are not (0). Unreadable answers count 0. A list of expected texts: the best of them counts.
ROUGE-L is computed here: the package of that name has had no release since 2022, draws in nltk, and reads letters other
than a to z as blanks. Not covered: judging by a rubric (judge.py).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation.metric_types import Metric

Embed: TypeAlias = Callable[[list[str]], Any]
"""Texts to vectors, one row each: a `dspy.Embedder`, or a SentenceTransformer's `encode`."""

_WORD = re.compile(r"\w+")


def longest_common_words(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words stand in both texts in the same order, others between them or not.

    >>> longest_common_words("police killed the gunman".split(), "the gunman kill police".split())
    2
    """
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for column, against in enumerate(other, start=1):
            diagonal, row[column] = row[column], diagonal + 1 if word == against else max(row[column], row[column - 1])
    return row[-1]


def rouge_l_overlap(expected: Any, predicted: Any) -> float:
    """ROUGE-L of two texts, 0 to 1: the F1 of their longest common subsequence of words (Lin 2004).

    Lin weighs recall over precision by a factor that later use has set to 1, as here. Words are letters and digits of
    any script, without case and without stemming; a whole text is one sequence.
    """
    if isinstance(expected, (list, tuple)):
        return max((rouge_l_overlap(one, predicted) for one in expected), default=0.0)
    one, other = (_WORD.findall(str(text).casefold()) for text in (expected, predicted))
    if not one or not other:
        return float(one == other)
    return 2 * longest_common_words(one, other) / (len(one) + len(other))


def rouge_l(field: str) -> Metric:
    """Mean ROUGE-L, 0 to 1: the words shared in the same order. Unreadable answers count 0."""
    return Metric(name="ROUGE-L", field=field, function=rouge_l_overlap, if_unreadable=0.0, bounds=(0.0, 1.0))


def semantic_similarity(field: str, embed: Embed) -> Metric:
    """Mean cosine of the two texts' vectors, -1 to 1. Unreadable answers count 0.

    The number means nothing without the embedding model: compare figures of one model only, and expect unrelated
    texts well above 0.

    Args:
        field: The text output.
        embed: Takes a list of texts and gives one vector each; yours: `dspy.Embedder("openai/text-embedding-3-small")`,
            or `SentenceTransformer(...).encode`. Each text is asked about once.

    Raises:
        UsageError: On call, when `embed` gives something other than one vector per text.
    """
    model = getattr(embed, "model", None)
    name = model if isinstance(model, str) else None
    return Metric(
        name="semantic similarity" if name is None else f"semantic similarity by {name}",
        card={} if name is None else {"embedding model": name},
        field=field,
        function=Similarity(embed),
        if_unreadable=0.0,
        asks_a_model=True,
        bounds=(-1.0, 1.0),
    )


class Similarity:
    """The function behind `semantic_similarity`: keeps the vectors of texts it has seen."""

    def __init__(self, embed: Embed) -> None:
        self.embed = embed
        self._seen: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, expected: Any, predicted: Any) -> float:
        """The cosine of two texts."""
        if isinstance(expected, (list, tuple)):
            return max((self(one, predicted) for one in expected), default=0.0)
        one, other = str(expected).strip(), str(predicted).strip()
        if not one or not other or one == other:
            return float(one == other)
        first, second = self._vectors([one, other])
        length = float((first @ first) ** 0.5 * (second @ second) ** 0.5)
        return float(first @ second) / length if length else 0.0

    def _vectors(self, texts: list[str]) -> list[Any]:
        # Imported here: numpy costs 0.1 s, which `import dspy_finetune` must not.
        import numpy as np

        with self._lock:
            missing = [text for text in texts if text not in self._seen]
        if missing:
            found = np.asarray(self.embed(missing), dtype=float)
            if found.ndim != 2 or len(found) != len(missing):
                raise UsageError(
                    f"embed gave an array of shape {found.shape} for {len(missing)} texts; see dspy.Embedder"
                )
            with self._lock:
                self._seen.update(zip(missing, found, strict=True))
        with self._lock:
            return [self._seen[text] for text in texts]

    def __getstate__(self) -> dict[str, Any]:
        return {"embed": self.embed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.embed, self._seen, self._lock = state["embed"], {}, threading.Lock()  # a lock cannot be pickled
