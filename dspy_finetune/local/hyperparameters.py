"""What "auto" means on the local host: one rule for each hyperparameter. No torch, since the scheduler asks too.

In: the method, what the request gave, the number of examples. Out: numbers, with nothing left to choose.
- n_epochs: OpenAI's published rule: 3, more where that would show fewer than 100 examples, fewer above 25,000.
- batch_size: 4 up to 2,000 examples, else 8: small models on few steps want small batches.
- learning_rate_multiplier: 1, times the base rate: 1e-3 (LoRA r=8 on all linear layers of a 135M
  model, batches of 4: 540 titles twice gave 0.97 on held-out ones at 1e-3; 300 titles at 2e-3 in batches of 8 under a
  system prompt of 75 tokens stayed at chance, and at 3e-4 nothing was learned in three epochs of 200. DPO on 100
  explained pairs wrote whole sentences at 1e-3, and loops or nothing at 5e-4).
- beta: 0.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dspy_finetune.local.schemas import Method

BASE_LEARNING_RATE: dict[Method, float] = {"sft": 1e-3, "dpo": 1e-3}
"""The optimizer's rate at learning_rate_multiplier 1."""


def auto_epochs(n_examples: int) -> int:
    """OpenAI's default number of epochs.

    Examples:
        >>> [auto_epochs(n) for n in (10, 33, 34, 1000, 20000)]
        [10, 3, 3, 3, 1]
    """
    if n_examples * 3 < 100:
        return max(1, min(25, 100 // max(1, n_examples)))
    if n_examples * 3 > 25_000:
        return max(1, 25_000 // n_examples)
    return 3


def resolve(method: Method, given: Mapping[str, Any], n_examples: int) -> dict[str, Any]:
    """The job's hyperparameters with nothing left to choose but `recipe`; `beta` stands there for dpo alone."""

    def chosen(name: str, default: int | float) -> int | float:
        value = given.get(name)
        return default if value is None or value == "auto" else value

    resolved: dict[str, Any] = {
        "n_epochs": chosen("n_epochs", auto_epochs(n_examples)),
        "batch_size": min(chosen("batch_size", 4 if n_examples <= 2000 else 8), max(1, n_examples)),
        "learning_rate_multiplier": chosen("learning_rate_multiplier", 1.0),
    }
    if method == "dpo":
        resolved["beta"] = chosen("beta", 0.1)
    return resolved


def learning_rate(method: Method, resolved: Mapping[str, Any]) -> float:
    """The optimizer's real rate."""
    return BASE_LEARNING_RATE[method] * float(resolved["learning_rate_multiplier"])
