"""What stands behind the numbers, item by item: confusion, leanings, errors, and the listing of all answers.

In: a `Comparison`. Out: plain values that the page and Markdown both show. Not covered: numbers (tables.py), pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dspy_finetune.evaluation.answers import Answer
from dspy_finetune.evaluation.result import Comparison
from dspy_finetune.evaluation.slices import PairwiseBias, pairwise_bias
from dspy_finetune.report import plots, tables
from dspy_finetune.report.plots import NEAR, positive_share
from dspy_finetune.values import label_text


def label_field(comparison: Comparison) -> str | None:
    """The field that the metrics read; None where they are the user's own functions."""
    return next((metric.field for metric in comparison.metrics if metric.field), None)


def answer_text(answer: Answer, field: str | None) -> str:
    """What a program said, or what became of the question."""
    if answer.outcome != "answered":
        return answer.outcome
    value = answer.outputs.get(field) if field is not None else None
    if isinstance(value, float):
        # Digits behind the fourth place tell nothing beside a label; small numbers keep theirs.
        return f"{value:.4f}".rstrip("0").rstrip(".") if abs(value) >= 1 else f"{value:.6g}"
    return str(value if value is not None else ", ".join(f"{name}: {one}" for name, one in answer.outputs.items()))


def confusion(comparison: Comparison) -> dict[str, Any] | None:
    """The candidate's answers by label, for up to eight labels; None for free text and numbers."""
    field = label_field(comparison)
    if field is None or any(field not in item.labels for item in comparison.items):
        return None
    labels = sorted({label_text(item.labels[field]) for item in comparison.items})
    if len(labels) > 8 or len(labels) == len(comparison.items):
        return None
    counts: Counter[tuple[str, str]] = Counter()
    for item, answer in zip(comparison.items, comparison.answers[comparison.candidate], strict=True):
        said = answer.outcome if answer.outcome != "answered" else label_text(answer.outputs.get(field))
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


def leanings(comparison: Comparison) -> tables.Table | None:
    """For pairs: how often each program, and the labels, go for the first, the longer and the dearer side."""
    field = label_field(comparison)
    sides = _pair_fields(comparison)
    if field is None or sides is None:
        return None
    texts = [[str(item.inputs[side]) for item in comparison.items] for side in sides]
    prices = [[{**item.labels, **item.inputs}.get(f"price_{side}") for item in comparison.items] for side in "ab"]
    has_prices = any(one is not None for one in prices[0])

    def lean(choices: Sequence[Any]) -> PairwiseBias:
        known = [one if one is not None and label_text(one) in {"a", "b"} else None for one in choices]
        return pairwise_bias(
            texts[0],
            texts[1],
            known,
            prices_a=prices[0] if has_prices else None,
            prices_b=prices[1] if has_prices else None,
            confidence=comparison.confidence,
        )

    found = {"(the labels)": lean([item.labels.get(field) for item in comparison.items])}
    for name, answers in comparison.answers.items():
        found[name] = lean([answer.outputs.get(field) for answer in answers])
    rows = []
    for name, one in found.items():
        cells = [name, tables.with_interval(one.prefers_first), tables.with_interval(one.prefers_longer)]
        if has_prices:
            cells.append(tables.MISSING if one.prefers_dearer is None else tables.with_interval(one.prefers_dearer))
        rows.append(tuple(cells))
    head = ("program", "prefers the first", "prefers the longer", *(["prefers the dearer"] if has_prices else []))
    return tables.Table(head=head, rows=tuple(rows))


def _pair_fields(comparison: Comparison) -> tuple[str, str] | None:
    """The two texts that are compared; prices beside them are none."""
    names = list(comparison.items[0].inputs)
    stems = [name[:-2] for name in names if name.endswith("_a") and f"{name[:-2]}_b" in names and name[:-2] != "price"]
    return (f"{stems[0]}_a", f"{stems[0]}_b") if len(stems) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Said:
    """One program's answer in the listing."""

    text: str
    """The answer, cut to 400 characters, or what became of the question."""
    detail: str
    """The error, the probability of the positive label, or the distance from the true number."""
    mark: str
    """right, wrong, near, fair, far, none (there is no answer) or plain."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One item in the listing."""

    number: int
    """From 1, in the order of the items."""
    is_disputed: bool
    """Whether the programs' answers differ; for numbers, whether some are nearer to the truth than others by a band."""
    inputs: tuple[str, ...]
    """What the programs saw."""
    label: str
    """What is right."""
    answers: tuple[Said, ...]
    """In the order of the programs."""


def listing(comparison: Comparison, near: tuple[float, float] = NEAR) -> list[Row]:
    """The items with all answers, those on which the programs disagree first."""
    field = label_field(comparison)
    metric = next((one.name for one in comparison.metrics if one.kind != "set"), None)
    scores = comparison.item_scores.get(metric, {}) if metric is not None else {}
    names = [row.name for row in comparison.programs]
    guesses = {name: {one.index: one for one in plots.guesses(comparison, name, near)} for name in names}

    def said(name: str, index: int) -> Said:
        answer, guess = comparison.answers[name][index], guesses[name].get(index)
        detail = answer.error or ""
        if guess is not None:
            detail = f"off by {tables.figure(guess.absolute_error)}"
        elif not detail:
            detail = _probability(answer, comparison.positive, field)
        mark = guess.band if guess is not None else _mark(answer, scores[name][index] if name in scores else None)
        return Said(text=answer_text(answer, field)[:400], detail=detail, mark=mark)

    def disputed(index: int) -> bool:
        # A failed call is no opinion; two numbers differ where one is nearer than the other by a band.
        given = [name for name in names if comparison.answers[name][index].outcome != "failed"]
        bands = [guesses[name][index].band if index in guesses[name] else None for name in given]
        texts = [answer_text(comparison.answers[name][index], field) for name in given]
        return len({text if one is None else one for text, one in zip(texts, bands, strict=True)}) > 1

    rows = [
        Row(
            number=index + 1,
            is_disputed=disputed(index),
            inputs=tuple(str(value) for value in item.inputs.values()),
            label=_label_text(item.labels.get(field, "")) if field is not None else "",
            answers=tuple(said(name, index) for name in names),
        )
        for index, item in enumerate(comparison.items)
    ]
    return sorted(rows, key=lambda row: (not row.is_disputed, row.number))


def _label_text(label: Any) -> str:
    """A label as people read it: several answers that are right stand beside each other."""
    return " / ".join(map(str, label)) if isinstance(label, (list, tuple)) else str(label)


def _probability(answer: Answer, positive: Any, field: str | None) -> str:
    share = positive_share(answer, positive, field) if field is not None and positive is not None else None
    return "" if share is None else f"p({positive}) {share:.2f}"


def _mark(answer: Answer, score: float | None) -> str:
    if answer.outcome != "answered":
        return "none"
    return {1.0: "right", 0.0: "wrong"}.get(-1.0 if score is None else score, "plain")


def errors(comparison: Comparison) -> list[tuple[str, str, str, int]]:
    """(program, outcome, message, how often): the five most frequent of each program."""
    found: list[tuple[str, str, str, int]] = []
    for name, answers in comparison.answers.items():
        counts = Counter((answer.outcome, answer.error or "") for answer in answers if answer.outcome != "answered")
        found += [(name, outcome, message, n) for (outcome, message), n in counts.most_common(5)]
    return found
