"""A comparison with its options given one by one, for tests that look at the figures alone."""

from __future__ import annotations

from typing import Any

from dspy_finetune.evaluation import Comparison, RunOptions, StatisticsOptions, compare

_STATISTICS = {"confidence", "n_resamples", "seed", "group_by", "subgroups", "noise_floor"}
_RUNNING = {"checkpoint", "retry_failed", "on_progress", "usd_per_million_tokens"}


def compare_programs(programs: Any, examples: Any, metrics: Any, **options: Any) -> Comparison:
    """The figures of a comparison; all options by name, those of `StatisticsOptions` and `RunOptions` too."""
    statistics = {name: options.pop(name) for name in _STATISTICS & set(options)}
    running = {name: options.pop(name) for name in _RUNNING & set(options)}
    return compare(
        programs,
        examples,
        metrics,
        statistics=StatisticsOptions(**statistics),
        running=RunOptions(**running),
        **options,
    ).comparison
