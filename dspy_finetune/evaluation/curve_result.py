"""A learning curve as plain values: what was trained, how it scored, and what more examples would bring.

In: JSON, or what curve.py computes. Out: frozen values, and JSON again (`to_dict`, `from_dict`).
Not covered: running the jobs (curve.py), fitting (curve_fit.py), showing it (the report).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dspy_finetune.errors import DataError
from dspy_finetune.evaluation.comparison import MetricFacts
from dspy_finetune.evaluation.stats import Interval

FORMAT = 1
"""Version of the JSON form."""


@dataclass(frozen=True, kw_only=True)
class CurveRun:
    """One job of the sweep, and how its model did."""

    base_model: str
    """What was trained on."""
    n_epochs: int
    """Times through the rows, by the plan."""
    n_rows: int
    """Training examples."""
    seed: int
    """Which nested order of the examples it took its rows from; the job's own seed too."""
    job_id: str | None
    """The host's id; None where it was not started."""
    model: str | None
    """The tuned model; None without one."""
    is_new: bool
    """Whether this call made the job, or found it."""
    estimated_cost_usd: float | None
    """What the plan said; None where no price is known."""
    cost_usd: float | None
    """What the host billed by its own count of tokens; None where that is unknown."""
    score: Interval | None
    """The metric on the test items; None without a model."""
    n_unreadable: int
    """Test answers that could not be read."""
    n_failed: int
    """Test calls that failed."""
    error: str | None
    """Why there is no model; None when there is one."""

    @property
    def paid_usd(self) -> float | None:
        """The bill, else the plan's estimate; 0 for a job that was not started."""
        if self.job_id is None:
            return 0.0
        return self.cost_usd if self.cost_usd is not None else self.estimated_cost_usd


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One cell of the table: all seeds of one model, number of epochs and training size."""

    base_model: str
    """What was trained on."""
    n_epochs: int
    """Times through the rows."""
    n_rows: int
    """Training examples."""
    n_runs: int
    """Runs that gave a model; the score is their mean."""
    score: Interval
    """The metric; with several seeds the interval holds the spread between them as well."""
    cost_usd: float | None
    """Mean cost of one run; None where unknown."""


@dataclass(frozen=True, kw_only=True)
class MarginalValue:
    """What more examples would bring to one model at the end of its curve, if the curve goes on as it went."""

    base_model: str
    """What was trained on."""
    n_epochs: int
    """Times through the rows."""
    n_rows: int
    """The largest size that was measured."""
    n_more: int
    """How many examples more."""
    change: Interval
    """By how much the metric would change; below zero is good for errors, above zero for shares of right answers."""
    cost_usd: float | None
    """By how much one job would cost more; labelling is not in it. None where unknown."""
    foretold: float | None
    """The largest size's score as the smaller sizes foretell it; None with fewer than three sizes."""
    measured: float
    """The largest size's score as it is; far from `foretold`, the line is no good guide."""


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """All of a sweep."""

    metric: MetricFacts
    """What was measured."""
    runs: tuple[CurveRun, ...]
    """Every job, in the order in which they were started."""
    points: tuple[CurvePoint, ...]
    """The table: by model, epochs and size."""
    margins: tuple[MarginalValue, ...]
    """One for each model and number of epochs with two sizes or more."""
    n_test: int
    """Items that every model was asked about."""
    seeds: tuple[int, ...]
    """Of the nested orders."""
    confidence: float
    """Of all intervals."""
    not_checked: tuple[str, ...]
    """What the curve does not tell, in sentences."""

    @property
    def cost_usd(self) -> float | None:
        """Of all jobs, those found from an earlier call included; None where one is unknown."""
        paid = [run.paid_usd for run in self.runs]
        return None if None in paid else sum(one for one in paid if one is not None)

    def point(self, base_model: str, n_rows: int, *, n_epochs: int | None = None) -> CurvePoint | None:
        """One cell; None where no run gave a model. `n_epochs` may be left out when there is but one."""
        return next(
            (
                one
                for one in self.points
                if (one.base_model, one.n_rows) == (base_model, n_rows) and n_epochs in (None, one.n_epochs)
            ),
            None,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"format": FORMAT, "cost_usd": self.cost_usd, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LearningCurve:
        """From JSON.

        Raises:
            DataError: It is not a learning curve, or of another version.
        """
        try:
            given = dict(values)
            given.pop("cost_usd")
            if given.pop("format") != FORMAT:
                raise ValueError(f"format {values['format']}")
            given["metric"] = MetricFacts.from_dict(given["metric"])
            given["runs"] = tuple(CurveRun(**{**one, "score": _interval(one["score"])}) for one in given["runs"])
            given["points"] = tuple(CurvePoint(**{**one, "score": Interval(**one["score"])}) for one in given["points"])
            given["margins"] = tuple(
                MarginalValue(**{**one, "change": Interval(**one["change"])}) for one in given["margins"]
            )
            given["seeds"], given["not_checked"] = tuple(given["seeds"]), tuple(given["not_checked"])
            return cls(**given)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"this is not a learning curve of format {FORMAT} ({type(error).__name__}: {error})"
            ) from error


def _interval(values: Mapping[str, Any] | None) -> Interval | None:
    return None if values is None else Interval(**values)
