"""Hyperparameters: each with its range, its value and where the value comes from.

In: what the user gave, the method, the number of rows. Out: one `Hyperparameter` for each, and `method=` for the API.
The epochs are settled here and sent as a number, as they multiply the bill; the others are the host's unless given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dspy_finetune.errors import UsageError
from dspy_finetune.export.cost import default_epochs

Method = Literal["sft", "dpo"]
Value = int | float | Literal["auto"]
Origin = Literal["given", "rule", "host default"]

NAMES: dict[Method, tuple[str, ...]] = {
    "sft": ("n_epochs", "batch_size", "learning_rate_multiplier"),
    "dpo": ("n_epochs", "batch_size", "learning_rate_multiplier", "beta"),
}
WIRE_METHOD: dict[Method, str] = {"sft": "supervised", "dpo": "dpo"}

_RANGES: dict[str, tuple[bool, float, float, str]] = {
    # name: (whole number, least, most, in words); the API's own bounds. 0 itself is outside.
    "n_epochs": (True, 1, 50, "a whole number from 1 to 50"),
    "batch_size": (True, 1, 256, "a whole number from 1 to 256"),
    "learning_rate_multiplier": (False, 0, float("inf"), "a number above 0"),
    "beta": (False, 0, 2, "a number above 0, up to 2"),
}


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """One setting of the training."""

    name: str
    """As the API calls it."""
    value: Value
    """What is sent; "auto" leaves the choice to the host."""
    origin: Origin
    """given: by you. rule: worked out here. host default: the host chooses."""

    def __str__(self) -> str:
        return f"{self.name}={self.value} ({self.origin})"


def resolve(method: Method, given: Mapping[str, Any] | None, *, n_rows: int) -> tuple[Hyperparameter, ...]:
    """Settle every hyperparameter of a method.

    Raises:
        UsageError: An unknown name, or a value outside its range; says what is accepted.
    """
    given = dict(given or {})
    names = NAMES[method]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise UsageError(f'method "{method}" has no hyperparameter "{unknown[0]}"; it has {", ".join(names)}')
    settled = []
    for name in names:
        if given.get(name) is not None:
            settled.append(Hyperparameter(name=name, value=_checked(name, given[name]), origin="given"))
        elif name == "n_epochs":
            settled.append(Hyperparameter(name=name, value=default_epochs(n_rows), origin="rule"))
        else:
            settled.append(Hyperparameter(name=name, value="auto", origin="host default"))
    return tuple(settled)


def epochs_of(settled: Sequence[Hyperparameter], n_rows: int) -> int:
    """How often the data will be gone through; the published rule where the host chooses."""
    value = next(one.value for one in settled if one.name == "n_epochs")
    return default_epochs(n_rows) if value == "auto" else int(value)


def wire_method(method: Method, settled: Sequence[Hyperparameter]) -> dict[str, Any]:
    """`method` of the create request; what is left to the host is left out."""
    name = WIRE_METHOD[method]
    sent = {one.name: one.value for one in settled if one.origin != "host default"}
    return {"type": name, name: {"hyperparameters": sent} if sent else {}}


def _checked(name: str, value: Any) -> Value:
    if value == "auto":
        return "auto"
    is_whole, least, most, words = _RANGES[name]
    fits_type = isinstance(value, int) if is_whole else isinstance(value, (int, float))
    if isinstance(value, bool) or not fits_type or not (least <= value <= most) or value == 0 or value != value:
        raise UsageError(f'hyperparameter {name}={value!r}: expected {words}, or "auto"')
    if value == float("inf"):
        raise UsageError(f'hyperparameter {name}={value!r}: expected {words}, or "auto"')
    checked: int | float = value
    return checked
