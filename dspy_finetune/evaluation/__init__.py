"""Same items, several programs, paired differences, one verdict: metrics, statistics, baselines.

    >>> import dspy
    >>> from dspy_finetune.evaluation import baselines, compare_programs, metrics
    >>> rows = [dspy.Example(title=f"tides {n}" if n % 3 else f"taxes {n}", is_favorite=bool(n % 3)) for n in range(60)]
    >>> rows = [row.with_inputs("title") for row in rows]
    >>> programs = {
    ...     "tfidf": baselines.tfidf_logistic(rows[:30], text=["title"], label="is_favorite"),
    ...     "majority": baselines.majority(rows[:30], label="is_favorite"),
    ... }
    >>> result = compare_programs(programs, rows[30:], [metrics.accuracy("is_favorite")])
    >>> result.decisive.verdict, round(result.decisive.interval.value, 2)
    ('better', 0.33)

`dspy_finetune.compare` asks the same and returns a report that can draw itself.
"""

from dspy_finetune.evaluation import baselines, metrics, statistics
from dspy_finetune.evaluation.answers import Answer, Outcome, Program, Progress
from dspy_finetune.evaluation.compare import compare_programs
from dspy_finetune.evaluation.learning_curve import (
    CurvePoint,
    CurveProgress,
    CurveRun,
    LearningCurve,
    MarginalValue,
    learning_curve,
)
from dspy_finetune.evaluation.result import (
    Comparison,
    Difference,
    Item,
    MetricFacts,
    NoiseFloor,
    ProgramRow,
    SubgroupRow,
    Verdict,
)
from dspy_finetune.evaluation.saved_programs import load_optimized
from dspy_finetune.evaluation.slices import PairwiseBias, in_both_orders, pairwise_bias, swap_agreement
from dspy_finetune.evaluation.statistics import Interval

__all__ = [
    "Answer",
    "Comparison",
    "CurvePoint",
    "CurveProgress",
    "CurveRun",
    "Difference",
    "Interval",
    "Item",
    "LearningCurve",
    "MarginalValue",
    "MetricFacts",
    "NoiseFloor",
    "Outcome",
    "PairwiseBias",
    "Program",
    "ProgramRow",
    "Progress",
    "SubgroupRow",
    "Verdict",
    "baselines",
    "compare_programs",
    "in_both_orders",
    "learning_curve",
    "load_optimized",
    "metrics",
    "pairwise_bias",
    "statistics",
    "swap_agreement",
]
