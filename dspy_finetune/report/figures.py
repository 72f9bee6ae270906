"""Which pictures a report shows, each with a caption and a text that says the same.

In: a `Report`. Out: `Figure`s; those that have nothing to draw are left out. Not covered: drawing (plots.py,
probability_plots.py, number_plots.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from dspy_finetune.evaluation.result import Comparison
from dspy_finetune.report import plots, tables

if TYPE_CHECKING:
    from dspy_finetune.report.numbers import Report


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture."""

    svg: str
    """The `<svg>` element; the texts inside it were escaped by matplotlib."""
    caption: str
    """What it shows."""
    alt: str
    """Its content in words, for those who do not see it."""


def of_report(report: Report, number: int) -> list[Figure]:
    """All pictures of a report that is the section of that number on its page."""
    comparison = report.comparison
    known = [
        *_scores(comparison, number),
        *_numbers(report, number),
        *_probabilities(comparison, number),
        *_spending(comparison, number),
    ]
    return [Figure(svg=svg, caption=caption, alt=alt) for svg, caption, alt in known if svg is not None]


def of_training(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure | None:
    """The loss curves; None without any."""
    svg = plots.training(curves, "training")
    if svg is None:
        return None
    return Figure(svg=svg, caption="Loss over the steps of the training.", alt="Loss: " + "; ".join(losses(curves)))


def losses(curves: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    """Each curve in words: where it begins and ends."""
    known = {name: plots.finite(rows) for name, rows in curves.items()}
    return [
        f"{name} from {rows[0][1]:.3g} to {rows[-1][1]:.3g} in {rows[-1][0]:,.0f} steps"
        for name, rows in known.items()
        if rows
    ]


_Drawn: TypeAlias = "tuple[str | None, str, str]"
"""A picture that may have nothing to draw, its caption, its alt text."""


def _scores(comparison: Comparison, number: int) -> list[_Drawn]:
    candidate, metric = comparison.candidate, comparison.main_metric.name
    percent = f"{comparison.confidence:.0%}"
    better_side = "Right" if comparison.main_metric.higher_is_better else "Left"
    return [
        (
            plots.scores(comparison, f"scores{number}"),
            f"{metric} of each program with its {percent} interval.",
            "; ".join(f"{row.name} {tables.with_interval(row.scores[metric])}" for row in comparison.programs),
        ),
        (
            plots.differences(comparison, f"forest{number}"),
            f"{candidate} minus each other program, with {percent} intervals. "
            + f"{better_side} of zero the candidate is better.",
            "; ".join(
                f"against {one.other} {tables.with_interval(one.interval, sign=True)}"
                for one in comparison.differences_of(metric)
            ),
        ),
    ]


def _numbers(report: Report, number: int) -> list[_Drawn]:
    """Predicted against true, of the candidate and of the program it has to beat."""
    comparison, near = report.comparison, report.near
    found: list[_Drawn] = []
    for name in dict.fromkeys(one for one in (comparison.candidate, comparison.reference) if one is not None):
        guesses = plots.guesses(comparison, name, near)
        if not guesses:
            continue
        counts = plots.counts(guesses)
        share = counts["near"] / len(guesses)
        rule = f"within {near[0]:.0%} or {near[1]:g} of the true number, whichever is wider"
        caption = (
            f"{name}: predicted against true. Green dots are near ({rule}), orange triangles within twice that, red "
            f"crosses farther off."
        )
        left = comparison.row(name).n - len(guesses)
        if left:
            caption += f" {left:,} answers that are no numbers are not shown."
        if len(guesses) > plots.MAX_POINTS:
            caption += f" Every {math.ceil(len(guesses) / plots.MAX_POINTS)}th answer is shown."
        alt = (
            f"Of {len(guesses):,} answers {counts['near']:,} ({share:.0%}) are near, {counts['fair']:,} fair, "
            f"{counts['far']:,} far"
        )
        place = len(found)
        found.append((plots.scatter(comparison, name, f"scatter{number}-{place}", near), caption, alt))
    return found


def _probabilities(comparison: Comparison, number: int) -> list[_Drawn]:
    candidate = comparison.candidate
    pairs = plots.probabilities(comparison)
    names = ", ".join(pairs)
    own = pairs.get(candidate, [])
    bins = plots.reliability(own)
    means = [
        f"{plots.mean_share(own, truth):.2f} on average where the label is {what}"
        for truth, what in ((1.0, str(comparison.positive)), (0.0, "another"))
        if any(one == truth for one, _ in own)
    ]
    return [
        (
            plots.roc(comparison, f"roc{number}"),
            "ROC curves: at every threshold, the positives found against the negatives taken for positives.",
            f"ROC curves of {names}",
        ),
        (
            plots.precision_recall(comparison, f"recall{number}"),
            "Precision-recall curves: at every threshold, how many of the items named are right, against how many of "
            "the right ones are named. The flat line is chance.",
            f"Precision-recall curves of {names}",
        ),
        (
            plots.histogram(comparison, f"histogram{number}"),
            f"{candidate}'s probabilities, by what the label says.",
            f"Histogram of {candidate}'s probabilities: {', '.join(means)}",
        ),
        (
            plots.calibration(comparison, f"calibration{number}"),
            f"Calibration of {candidate}: on the diagonal, probabilities come true as often as they say. "
            "Larger dots hold more items.",
            "Calibration: " + "; ".join(f"said {said:.2f}, was {was:.2f} (n = {n})" for said, was, n in bins),
        ),
    ]


def _spending(comparison: Comparison, number: int) -> list[_Drawn]:
    rows = comparison.programs
    return [
        (
            plots.latency(comparison, f"latency{number}"),
            "Time of one answer: the dot is the median, the line ends at the 95th percentile. Waiting for a busy "
            "server counts.",
            "; ".join(f"{one.name} {tables.count(one.latency_p50_ms)} ms" for one in rows),
        ),
        (
            plots.cost(comparison, f"cost{number}"),
            "Cost of answering, by the prices given. Training is not in it.",
            "; ".join(f"{one.name} {1000 * one.cost_usd / one.n:.4f} USD" for one in rows if one.cost_usd is not None),
        ),
    ]
