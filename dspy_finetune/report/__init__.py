"""The verdict, shown: a table to print, a page to read, JSON to keep.

    >>> import dspy
    >>> from dspy_finetune.evaluation import baselines, metrics
    >>> from dspy_finetune.report import compare
    >>> titles = [f"tides {n}" if n % 3 else f"taxes {n}" for n in range(60)]
    >>> rows = [dspy.Example(title=title, is_favorite="tides" in title).with_inputs("title") for title in titles]
    >>> programs = {
    ...     "tfidf": baselines.tfidf_logistic(rows[:30], text=["title"], label="is_favorite"),
    ...     "majority": baselines.majority(rows[:30], label="is_favorite"),
    ... }
    >>> report = compare(programs, rows[30:], [metrics.accuracy("is_favorite")])
    >>> print(report.verdict)  # doctest: +ELLIPSIS
    tfidf is better than majority: accuracy 1.000 against 0.667, difference +0.333 [...], p = 0.002, n = 30.

`report.to_html("report.html")`, `.to_markdown(...)` and `.to_json(...)` write it. `write_html` puts several on one
page.
"""

from dspy_finetune.report.compare import compare
from dspy_finetune.report.curve import CurveReport, learning_curve
from dspy_finetune.report.html import write as write_html
from dspy_finetune.report.numbers import Report

__all__ = ["CurveReport", "Report", "compare", "learning_curve", "write_html"]
