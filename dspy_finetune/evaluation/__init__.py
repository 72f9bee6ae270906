"""Same items, several programs, paired differences, one verdict: metrics, statistics, baselines.

    >>> import dspy
    >>> from dspy_finetune.evaluation import baselines, compare, metrics
    >>> rows = [dspy.Example(title=f"tides {n}" if n % 3 else f"taxes {n}", is_favorite=bool(n % 3)) for n in range(60)]
    >>> rows = [row.with_inputs("title") for row in rows]
    >>> programs = {
    ...     "tfidf": baselines.tfidf_logistic(rows[:30], text=["title"], label="is_favorite"),
    ...     "majority": baselines.majority(rows[:30], label="is_favorite"),
    ... }
    >>> report = compare(programs, rows[30:], [metrics.accuracy("is_favorite")])
    >>> print(report.verdict)  # doctest: +ELLIPSIS
    tfidf is better than majority: accuracy 1.000 against 0.667, difference +0.333 [...], p = 0.002, n = 30.

`report.to_html("report.html")`, `.to_markdown(...)` and `.to_json(...)` write it; `ft.report.write_html` puts several
on one page.
"""

from dspy_finetune.evaluation import baselines, metrics, statistics
from dspy_finetune.evaluation.advise import Advice, advise
from dspy_finetune.evaluation.baselines import BaselineOptions
from dspy_finetune.evaluation.collect import Answer, CompareProgress, Outcome, Program, RunOptions
from dspy_finetune.evaluation.compare import compare
from dspy_finetune.evaluation.comparison_report import ComparisonReport
from dspy_finetune.evaluation.learning_curve import CurvePoint, LearningCurve, MarginalValue, learning_curve
from dspy_finetune.evaluation.saved_programs import load_optimized
from dspy_finetune.evaluation.scoring import (
    Comparison,
    Difference,
    Item,
    MetricFacts,
    NoiseFloor,
    PairwiseBias,
    ProgramRow,
    StatisticsOptions,
    SubgroupRow,
    Verdict,
    in_both_orders,
    pairwise_bias,
    swap_agreement,
)
from dspy_finetune.evaluation.statistics import Interval
from dspy_finetune.evaluation.sweep import Candidate, Sweep, sweep
from dspy_finetune.evaluation.training_runs import CurveJobs, CurveProgress, CurveRun

__all__ = [
    "Advice",
    "Answer",
    "BaselineOptions",
    "Candidate",
    "CompareProgress",
    "Comparison",
    "ComparisonReport",
    "CurveJobs",
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
    "RunOptions",
    "StatisticsOptions",
    "SubgroupRow",
    "Sweep",
    "Verdict",
    "advise",
    "baselines",
    "compare",
    "in_both_orders",
    "learning_curve",
    "load_optimized",
    "metrics",
    "pairwise_bias",
    "statistics",
    "swap_agreement",
    "sweep",
]
