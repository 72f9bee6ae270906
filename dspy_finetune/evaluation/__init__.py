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

from dspy_finetune.evaluation import baselines, metrics, stats
from dspy_finetune.evaluation.answers import Answer, Outcome, Program
from dspy_finetune.evaluation.bias import PairwiseBias, in_both_orders, pairwise_bias, swap_agreement
from dspy_finetune.evaluation.collect import Progress
from dspy_finetune.evaluation.compare import compare_programs
from dspy_finetune.evaluation.comparison import (
    Comparison,
    Difference,
    Item,
    MetricFacts,
    NoiseFloor,
    ProgramRow,
    SubgroupRow,
)
from dspy_finetune.evaluation.curve import learning_curve
from dspy_finetune.evaluation.curve_jobs import CurveProgress
from dspy_finetune.evaluation.curve_result import CurvePoint, CurveRun, LearningCurve, MarginalValue
from dspy_finetune.evaluation.saved_programs import load_optimized
from dspy_finetune.evaluation.stats import Interval
from dspy_finetune.evaluation.verdict import Verdict

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
    "stats",
    "swap_agreement",
]
