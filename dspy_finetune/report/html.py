"""One self-contained HTML page: verdict, tables, pictures, the items, and what was not checked.

In: one or several reports, training curves, a title. Out: a page that needs no network, follows light and dark, and
fits a phone. Everything that comes from data passes through jinja2's autoescape or matplotlib's own escaping: a
title with `<script>` in it shows as text. Not covered: the look (page.html.jinja), the pictures (plots.py), the
numbers (evaluation/).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_finetune._files import atomic_writer
from dspy_finetune._optional import require
from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation.answers import Answer
from dspy_finetune.evaluation.bias import PairwiseBias, pairwise_bias
from dspy_finetune.evaluation.comparison import Comparison
from dspy_finetune.evaluation.reading import label_text
from dspy_finetune.report import plots, tables

if TYPE_CHECKING:
    from dspy_finetune.report.numbers import Curves, Report

MAX_ITEMS = 2000
"""Items shown in the searchable table; JSON holds all."""


def write(
    path: str | os.PathLike[str],
    sections: Sequence[Report],
    *,
    training: Curves | None = None,
    title: str = "Was the tuned model worth it?",
) -> None:
    """Write one page for several reports, with the training curves they share.

    Args:
        path: The HTML file; it appears complete or not at all.
        sections: The reports, in order; each one's `title` heads its section.
        training: Name to rows of (step, loss).
        title: Of the page.

    Raises:
        UsageError: There are no sections.
        FileError: The file cannot be written.
        MissingExtraError: The extra `report` is not installed.
    """
    page = render(sections, title=title, training=training)
    with atomic_writer(path) as stream:
        stream.write(page.encode("utf-8", "replace"))


def render(sections: Sequence[Report], *, title: str, training: Curves | None = None) -> str:
    """The page as text; `write` documents the arguments."""
    if not sections:
        raise UsageError("a report page needs at least one report in sections=[...]")
    jinja2 = require("jinja2", "report", "an HTML report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    # Markup: the texts inside a picture were escaped by matplotlib.
    markup = require("markupsafe", "report", "an HTML report").Markup

    def figure(svg: str | None, caption: str, alt: str) -> dict[str, Any] | None:
        return None if svg is None else {"svg": markup(svg), "caption": caption, "alt": alt}

    curves = plots.training(training or {}, "training")
    page: str = environment.get_template("page.html.jinja").render(
        title=title,
        sections=[_section(report, number, figure) for number, report in enumerate(sections, start=1)],
        training=figure(curves, "Training loss over steps.", _training_alt(training or {})),
    )
    return page


def _section(report: Report, number: int, figure: Any) -> dict[str, Any]:
    comparison = report.comparison
    candidate, metric = comparison.candidate, comparison.main_metric.name
    percent = f"{comparison.confidence:.0%}"
    better_side = "Right" if comparison.main_metric.higher_is_better else "Left"
    figures = [
        figure(
            plots.scores(comparison, f"scores{number}"),
            f"{metric} of each program with its {percent} interval.",
            "; ".join(f"{row.name} {tables.with_interval(row.scores[metric])}" for row in comparison.programs),
        ),
        figure(
            plots.differences(comparison, f"forest{number}"),
            f"{candidate} minus each other program, with {percent} intervals. "
            + f"{better_side} of zero the candidate is better.",
            "; ".join(
                f"against {one.other} {tables.with_interval(one.interval, sign=True)}"
                for one in comparison.differences_of(metric)
            ),
        ),
        figure(
            plots.roc(comparison, f"roc{number}"),
            "ROC curves: at every threshold, the positives found against the negatives taken for positives.",
            f"ROC curves of {', '.join(plots.probabilities(comparison))}",
        ),
        figure(
            plots.histogram(comparison, f"histogram{number}"),
            f"{candidate}'s probabilities, by what the label says.",
            f"Histogram of {candidate}'s probabilities by label",
        ),
        figure(
            plots.calibration(comparison, f"calibration{number}"),
            f"Calibration of {candidate}: on the diagonal, probabilities come true as often as they say. "
            "Larger dots hold more items.",
            f"Calibration curve of {candidate}",
        ),
    ]
    return {
        "number": number,
        "title": report.title,
        "verdict": report.verdict,
        "outcome": report.outcome or "alone",
        "table": tables.program_table(comparison),
        "footnote": tables.footnote(comparison).replace("*", ""),
        "differences": tables.difference_table(comparison) if comparison.differences else None,
        "figures": [one for one in figures if one is not None],
        "confusion": confusion(comparison),
        "bias": _bias_rows(comparison),
        "listing": _items(comparison),
        "n_items": len(comparison.items),
        "max_items": MAX_ITEMS,
        "cards": report.cards,
        "not_checked": comparison.not_checked,
        "errors": _errors(comparison),
        "candidate": candidate,
    }


def _training_alt(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    ends = [f"{name} from {rows[0][1]:.3g} to {rows[-1][1]:.3g}" for name, rows in curves.items() if rows]
    return "Training loss: " + "; ".join(ends)


def _label_field(comparison: Comparison) -> str | None:
    return next((metric.field for metric in comparison.metrics if metric.field), None)


def _answer_text(answer: Answer, field: str | None) -> str:
    if answer.outcome != "answered":
        return answer.outcome
    value = answer.outputs.get(field) if field is not None else None
    return str(value if value is not None else ", ".join(f"{name}: {one}" for name, one in answer.outputs.items()))


def confusion(comparison: Comparison) -> dict[str, Any] | None:
    """The candidate's answers by label, for up to eight labels; None for free text and numbers."""
    field = _label_field(comparison)
    if field is None or any(field not in item.labels for item in comparison.items):
        return None
    labels = sorted({label_text(item.labels[field]) for item in comparison.items})
    if len(labels) > 8 or len(labels) == len(comparison.items):
        return None
    counts: Counter[tuple[str, str]] = Counter()
    for item, answer in zip(comparison.items, comparison.answers[comparison.candidate], strict=True):
        said = label_text(_answer_text(answer, field))
        if answer.outcome == "answered" and said not in labels:
            said = "another"
        counts[label_text(item.labels[field]), said] += 1
    columns = labels + [one for one in ("another", "unreadable", "failed") if any(said == one for _, said in counts)]
    rows = []
    for label in labels:
        total = sum(counts[label, column] for column in columns)
        cells = [{"n": counts[label, column], "share": counts[label, column] / total} for column in columns]
        rows.append({"label": label, "cells": cells})
    return {"columns": columns, "rows": rows}


def _bias_rows(comparison: Comparison) -> list[tuple[str, str, str]]:
    """For pairs: how often each program, and the labels, go for the first and for the longer side."""
    field = _label_field(comparison)
    sides = _pair_fields(comparison)
    if field is None or sides is None:
        return []
    texts = [[str(item.inputs[side]) for item in comparison.items] for side in sides]

    def leanings(choices: Sequence[Any]) -> PairwiseBias:
        known = [one if one is not None and label_text(one) in {"a", "b"} else None for one in choices]
        return pairwise_bias(texts[0], texts[1], known, confidence=comparison.confidence)

    found = {"(the labels)": leanings([item.labels.get(field) for item in comparison.items])}
    for name, answers in comparison.answers.items():
        found[name] = leanings([answer.outputs.get(field) for answer in answers])
    return [
        (name, tables.with_interval(one.prefers_first), tables.with_interval(one.prefers_longer))
        for name, one in found.items()
    ]


def _pair_fields(comparison: Comparison) -> tuple[str, str] | None:
    names = list(comparison.items[0].inputs)
    stems = [name[:-2] for name in names if name.endswith("_a") and f"{name[:-2]}_b" in names]
    return (f"{stems[0]}_a", f"{stems[0]}_b") if len(stems) == 1 else None


def _items(comparison: Comparison) -> dict[str, Any]:
    """The items as table rows, those on which the programs disagree first."""
    field = _label_field(comparison)
    metric = next((one.name for one in comparison.metrics if one.kind != "set"), None)
    by_program = comparison.item_scores.get(metric, {}) if metric is not None else {}
    rows = []
    for index, item in enumerate(comparison.items):
        scores = {name: by_program[name][index] for name in by_program}
        answers = [comparison.answers[row.name][index] for row in comparison.programs]
        rows.append(
            {
                "number": index + 1,
                "disagree": len({_answer_text(answer, field) for answer in answers}) > 1,
                "inputs": [str(value) for value in item.inputs.values()],
                "label": str(item.labels.get(field, "")) if field is not None else "",
                "answers": [
                    {
                        "text": _answer_text(answer, field)[:400],
                        "detail": answer.error or _probability(answer, comparison.positive, field),
                        "mark": _mark(answer, scores.get(row.name)),
                    }
                    for row, answer in zip(comparison.programs, answers, strict=True)
                ],
            }
        )
    rows.sort(key=lambda row: (not row["disagree"], row["number"]))
    return {
        "inputs": list(comparison.items[0].inputs),
        "programs": [row.name for row in comparison.programs],
        "rows": rows[:MAX_ITEMS],
        "n_disagree": sum(bool(row["disagree"]) for row in rows),
    }


def _probability(answer: Answer, positive: Any, field: str | None) -> str:
    share = plots.positive_share(answer, positive, field) if field is not None and positive is not None else None
    return "" if share is None else f"p({positive}) {share:.2f}"


def _mark(answer: Answer, score: float | None) -> str:
    if answer.outcome != "answered":
        return "none"
    return {1.0: "right", 0.0: "wrong"}.get(-1.0 if score is None else score, "plain")


def _errors(comparison: Comparison) -> list[tuple[str, str, str, int]]:
    """(program, outcome, message, how often): the five most frequent of each program."""
    found: list[tuple[str, str, str, int]] = []
    for name, answers in comparison.answers.items():
        counts = Counter((answer.outcome, answer.error or "") for answer in answers if answer.outcome != "answered")
        found += [(name, outcome, message, n) for (outcome, message), n in counts.most_common(5)]
    return found
