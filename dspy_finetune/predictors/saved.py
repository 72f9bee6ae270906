"""Settings of a module that DSPy saves: weights, thresholds, fitted coefficients.

DSPy saves a program's parameters and nothing else; what a plain module keeps in its own attributes is lost without a
word. A `SavedSettings` held by a module is saved and loaded with it, nested or not.
"""

from __future__ import annotations

from typing import Any

from dspy.predict.parameter import Parameter

from dspy_finetune.errors import DataError


class SavedSettings(Parameter):
    """JSON values under names; they stand in the program's file beside its predictors.

    >>> settings = SavedSettings("Cascade", min_confidence=0.8)
    >>> settings.dump_state()
    {'of': 'Cascade', 'min_confidence': 0.8}
    """

    def __init__(self, of: str, **values: Any) -> None:
        self.of = of
        self.values = values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.values[name] = value

    def reset(self) -> None:
        """Nothing to reset: an optimizer that starts afresh keeps what was fitted."""

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The values, and whose they are."""
        return {"of": self.of, **self.values}

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """Take over saved values; names that the file lacks keep theirs.

        Raises:
            DataError: The values are of another kind of module.
        """
        if state.get("of") != self.of:
            raise DataError(f"the saved settings are of {state.get('of')!r}, not of {self.of!r}")
        self.values = {name: state.get(name, value) for name, value in self.values.items()}
