"""The learning rate that suits a job's rows: a few are tried on a small share of them, and the choice is kept.

In: how many rows, epochs and rows a step a job has; then each held-out row's loss under each rate. Out: how long each
rate is tried, the rate that is taken, and a file of the cache in which the same job finds what was measured before.
Not covered: the training (training.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dspy_finetune._files import read_json, sha256_file, write_json
from dspy_finetune.errors import DataError, FileError
from dspy_finetune.local.models import cache_folder

MIN_FASTER = 0.1
"""A larger rate has to win by so much of what the usual one has learned. Leads of .054, .059 and .085 after 16 steps, 4
to 6 % of that, were gone after whole jobs on 240 questions: test losses of 1.585, 1.505 and 1.609 instead of 1.590,
1.498 and 1.620."""
SEED = 0
"""Of the rows that are drawn: the job's own seed changes nothing, so that jobs that differ by it share the choice."""
RULE = 1
"""Goes up when the choice is made in another way: what was kept before is then measured anew."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One rate, and how it did."""

    rate: float
    """0: nothing was trained."""
    losses: tuple[float, ...]
    """Of each held-out row: of labels the log loss among the labels, of texts the mean over tokens."""
    accuracy: float
    """Share of the trained tokens of held-out rows that were the most likely one."""

    @property
    def loss(self) -> float:
        """The mean over the held-out rows."""
        return statistics.fmean(self.losses)

    @property
    def loss_error(self) -> float:
        """Its standard error."""
        return _standard_error(self.losses)

    @property
    def name(self) -> str:
        """In words."""
        return f"learning rate {self.rate:.3g}" if self.rate else "no training"


def best(trials: Sequence[Trial], default: float) -> tuple[Trial, str]:
    """(the trial that is taken, why): the default rate, unless another is better by more than its noise.

    A rate is better where its losses are lower than the default's by more than one standard error of the difference,
    row by row; and it must have learned: where no training at all does as well, the steps were too few to tell. After
    16 steps on 240 titles nothing was learned under any of three rates (a loss of .73 and more on two labels in
    balance), and on one split of three 0.3 times the usual rate was ahead by .22 ± .08: it had gone astray the least.
    A larger rate learns the same sooner, which is no gain where the usual one gets there in time: see MIN_FASTER.

    Args:
        trials: First the one without training.
        default: The usual rate.
    """
    untrained, *tried = trials
    usual = next(trial for trial in tried if trial.rate == default)
    lowest = min((trial for trial in tried if math.isfinite(trial.loss)), key=lambda trial: trial.loss, default=usual)
    if lowest is usual:
        return usual, "the usual rate has the lowest held-out loss"
    gain, error = _gain(untrained, lowest)
    if not gain > error:
        return usual, f"{lowest.name} has learned nothing yet that could be compared: the usual rate stays"
    if not math.isfinite(usual.loss):
        return lowest, "the usual rate has no finite held-out loss"
    gain, error = _gain(usual, lowest)
    figures = f"{lowest.name} is better by {gain:.2g} ± {error:.2g} on {len(lowest.losses)} held-out rows"
    if not gain > error:
        return usual, f"{figures}, within one standard error: the usual rate stays"
    if lowest.rate > default and gain < MIN_FASTER * (untrained.loss - usual.loss):
        share = f"less than {MIN_FASTER:.0%} of what the usual rate has learned by then"
        return usual, f"{figures}, {share}, and the job's further steps make up for that: the usual rate stays"
    return lowest, f"{figures}, more than one standard error"


def _gain(worse: Trial, better: Trial) -> tuple[float, float]:
    """(by how much the one loss is lower, the standard error of that), row by row."""
    gains = [before - after for before, after in zip(worse.losses, better.losses, strict=True)]
    return statistics.fmean(gains), _standard_error(gains)


def _standard_error(values: Sequence[float]) -> float:
    is_known = len(values) > 1 and all(map(math.isfinite, values))
    return statistics.stdev(values) / math.sqrt(len(values)) if is_known else math.inf


# What was measured, kept: a job that goes on after a crash, or comes again with the same rows, measures nothing twice.


def base_digest(folder: Path) -> str:
    """The SHA-256 of a model's configuration and weights."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def kept_at(facts: Mapping[str, Any]) -> Path:
    """The file of the cache for what these facts say: all that the held-out losses depend on."""
    text = json.dumps({"rule": RULE, **facts}, sort_keys=True)
    return cache_folder() / "rates" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def kept(path: Path) -> list[Trial]:
    """What was measured so far; nothing where the file is missing or damaged."""
    with contextlib.suppress(FileError, DataError, TypeError, KeyError, ValueError):
        found = read_json(path, "a list of learning rates that were tried", "delete it")["trials"]
        return [Trial(**{**one, "losses": tuple(map(float, one["losses"]))}) for one in found]
    return []


def keep(path: Path, facts: Mapping[str, Any], trials: Sequence[Trial]) -> None:
    """Write what was measured so far. A cache that cannot be written costs a second measurement, not the job."""
    with contextlib.suppress(FileError):
        write_json(path, {"what": "learning rates that were tried", **facts, "trials": [asdict(one) for one in trials]})
