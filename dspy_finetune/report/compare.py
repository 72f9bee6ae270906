"""`compare`: ask all programs about the same items and get a `Report`.

In: programs by name, labelled examples, metrics. Out: a `Report`. The work is done one layer to the left, in
evaluation/compare.py, which knows nothing of reports; this door only wraps its result.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspy_finetune._progress import ProgressLine
from dspy_finetune.data.items import By
from dspy_finetune.evaluation.answers import Program, Progress
from dspy_finetune.evaluation.compare import compare_programs, n_in_training, with_baselines
from dspy_finetune.evaluation.metric import AnyMetric
from dspy_finetune.evaluation.slices import Subgroups
from dspy_finetune.report.cards import make as make_cards
from dspy_finetune.report.numbers import Report
from dspy_finetune.report.plots import NEAR, Training, loss_curves


def compare(
    programs: Mapping[str, Program],
    examples: Sequence[Any],
    metrics: Sequence[AnyMetric],
    *,
    candidate: str | None = None,
    reference: str | None = None,
    margin: float | None = None,
    group_by: By | None = None,
    subgroups: Subgroups = (),
    noise_floor: bool | int = False,
    n_threads: int = 8,
    checkpoint: str | os.PathLike[str] | None = None,
    retry_failed: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    usd_per_million_tokens: Mapping[str, tuple[float, float]] | None = None,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    train: Sequence[Any] | None = None,
    base_model: str | None = None,
    title: str = "Comparison",
    cards: Mapping[str, Mapping[str, str]] | None = None,
    training: Training | None = None,
    near: tuple[float, float] = NEAR,
) -> Report:
    """Compare programs on the same items, with paired statistics and a verdict.

    Global DSPy settings stay as they are. Wrong, unreadable and failed answers are three counts; unreadable and
    failed ones count as not right in accuracy.

    Args:
        programs: Name to program: a `dspy.Module` or any callable that takes the input fields and returns a prediction.
        examples: Labelled `dspy.Example`s with their inputs marked.
        metrics: From `dspy_finetune.metrics`, or plain functions `metric(example, prediction, trace=None)`. The
            first decides.
        candidate: The program whose worth is asked; default: the first.
        reference: The program it has to beat; default: the one that does best among the others on these items.
        margin: A difference smaller than this, in the first metric's unit, does not matter to you; allows "equivalent".
        group_by: What items share that makes them no independent evidence: a field (the same author), several fields
            each of which holds an item (both titles of a pair), or a function of the example, as for `split`. Intervals
            and tests then take the groups as independent, not the items.
        subgroups: Fields, or names with functions of the example, by whose values the first metric is told apart.
        noise_floor: Ask every program twice, past DSPy's cache: about all items (True) or the first so many. It costs
            as many calls again.
        n_threads: Calls at once. Programs are asked one after the other, so their times do not disturb each other.
        checkpoint: A JSONL file that keeps every answer; run again with it to ask only what is missing. Programs are
            known in it by their names.
        retry_failed: Whether a resumed run asks again what had failed.
        on_progress: Called after each answer; without it a line on stderr tells of runs over 50 items or 2 seconds.
        usd_per_million_tokens: Program name to (price of a million prompt tokens, of a million completion tokens).
        confidence: Of the intervals; 1 - confidence is the error rate of the verdict.
        n_resamples: Bootstrap draws for set metrics such as ROC AUC.
        seed: Of the resampling.
        train: What the tuned program was trained on: adds the baselines of `baselines.usual` that need no model.
        base_model: Adds this untuned model with the prompt and on the host of the first tuned program; with `train`
            also with the nearest examples in its prompt, and with a prompt that DSPy optimized, unless a DSPy program
            is compared already. These ask the model, and cost what it costs.
        title: Of the report.
        cards: Facts to show in it, such as {"Data": {"source": "titles.jsonl"}}; what the items and the prompts tell
            by themselves is added.
        training: Losses to show in it: a name, and a `Job` or rows of (step, loss).
        near: For numbers: (share of the true one, distance in its unit); an answer within the wider of the two counts
            as near in the picture, within twice that as fair.

    Raises:
        EmptyDatasetError: There are no examples.
        DataError: An example's label is empty, or not a number where a metric needs one.
        UsageError: An argument is wrong.
        MissingExtraError: The extra `eval` is not installed.
        FileError: The checkpoint cannot be written.
        HostError: A job in `training` cannot be asked for its figures.
    """
    curves = loss_curves(training or {})
    given, rows = dict(programs), list(examples)
    programs = with_baselines(given, train, metrics, base_model=base_model)
    with ProgressLine() as line:
        tell = on_progress or (lambda look: line.show(f"asking {look.program}", look.n_asked, look.n_items))
        comparison = compare_programs(
            programs,
            rows,
            metrics,
            candidate=candidate or next((name for name in given if name != reference), None),
            reference=reference,
            margin=margin,
            group_by=group_by,
            subgroups=subgroups,
            noise_floor=noise_floor,
            n_threads=n_threads,
            checkpoint=checkpoint,
            retry_failed=retry_failed,
            on_progress=tell,
            usd_per_million_tokens=usd_per_million_tokens,
            confidence=confidence,
            n_resamples=n_resamples,
            seed=seed,
        )
    n_seen = n_in_training(train or (), rows)
    if n_seen:
        told = f"Unseen items: {n_seen} of {len(comparison.items)} stand in the training examples too; that flatters."
        comparison = dataclasses.replace(comparison, not_checked=(told, *comparison.not_checked))
    return Report(
        comparison=comparison,
        title=title,
        cards=make_cards(comparison, programs, cards or {}, metrics),
        training=curves,
        near=near,
    )
