"""`compare`: same items, several programs, paired differences, one verdict.

In: programs by name, labelled examples, metrics. Out: a `ComparisonReport`. Here stand the order of the work, which
differences are tested and how they are corrected together. Not covered: asking (collect.py), scores and tests
(scoring.py, statistics.py), the rule of the verdict (scoring.py), which baselines fit (baselines.py), showing
(comparison_report.py).

Which difference decides: the *candidate* (by default the first program given) minus the *reference*. The reference is
the one the user names, else the program that did best among the others by the first metric. Picking the best baseline
on the same items flatters the baseline, so the choice errs against the candidate, never for it. Differences to all
other programs are tested too, and corrected together (Holm).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics as plain_statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy
import numpy as np

from dspy_finetune._progress import ProgressBar
from dspy_finetune.catalog import load_catalog, parse_model_id
from dspy_finetune.errors import EmptyDatasetError, UsageError
from dspy_finetune.evaluation import scoring, statistics
from dspy_finetune.evaluation.baselines import (
    BaselineOptions,
    LabelBaseline,
    NearestAnswer,
    NumberBaseline,
    n_in_training,
    with_baselines,
)
from dspy_finetune.evaluation.collect import (
    Answer,
    Collected,
    CompareProgress,
    Program,
    Reader,
    RunOptions,
    ask_again,
    collect,
    inputs_text,
    jsonable,
    kept_if_lost,
    lacks_lm,
    modules_of,
    read_field_of,
    reader_of,
    with_parse_failures,
)
from dspy_finetune.evaluation.comparison_report import ComparisonReport
from dspy_finetune.evaluation.metrics import AnyMetric, Metric, OwnLabel, SetMetric, positive_label
from dspy_finetune.evaluation.scoring import (
    Comparison,
    Difference,
    InBothOrders,
    Item,
    MetricFacts,
    ProgramRow,
    Resampling,
    Scored,
    StatisticsOptions,
    decide,
    n_more_items,
    parts_of,
    subgroup_rows,
)
from dspy_finetune.predictors import FinetunedPredictor
from dspy_finetune.prompts import PromptFormat
from dspy_finetune.report.blocks import figure
from dspy_finetune.values import LabelSet, read_number, same_label

MAX_LABELS = 8
"""Labels that a card counts one by one."""

Columns = dict[str, dict[str, Scored]]
"""Scores by metric and program."""


def compare(
    programs: Mapping[str, Program],
    examples: Sequence[Any],
    metrics: Sequence[AnyMetric] | AnyMetric,
    *,
    candidate: str | None = None,
    reference: str | None = None,
    margin: float | None = None,
    train: Sequence[Any] | None = None,
    num_threads: int = 8,
    title: str = "Comparison",
    baselines: BaselineOptions | None = None,
    statistics: StatisticsOptions | None = None,
    running: RunOptions | None = None,
) -> ComparisonReport:
    """Compare programs on the same items, with paired statistics and a verdict.

    Global DSPy settings stay as they are. Wrong answers, parse failures, answers that were refused or cut off, and
    failed calls are four counts; the latter three count as not right in accuracy. A program of whose calls more than a
    tenth fails is not compared, and named.

    Args:
        programs: Name to program: a `dspy.Module` or any callable that takes the input fields and returns a prediction.
        examples: Labelled `dspy.Example`s with their inputs marked.
        metrics: From `dspy_finetune.metrics`, or plain functions `metric(example, prediction, trace=None)`; one, or
            several of which the first decides.
        candidate: The program whose worth is asked; default: the first.
        reference: The program it has to beat; default: the one that does best among the others on these items.
        margin: A difference smaller than this, in the first metric's unit, does not matter to you; allows "equivalent".
        train: What the tuned program was trained on: adds baselines that were fitted on the same rows.
        num_threads: Concurrent requests. Programs are asked one after the other, so their times do not disturb each
            other.
        title: Heading of the report; `report.annotated(...)` adds cards and loss curves.
        baselines: Which baselines `train` adds, and the untuned model.
        statistics: Confidence, resampling, cluster column, subgroups, re-runs.
        running: Checkpoint, retries, progress, prices.

    Raises:
        EmptyDatasetError: There are no examples.
        DataError: An example's label is empty, or not a number where a metric needs one.
        UsageError: An argument is wrong: a name that is not there, examples without inputs, a metric's field; or a
            metric raised or returned no score: the answers are kept, in `checkpoint` or in a file that a warning names.
        MissingExtraError: The extra `eval` is not installed.
        FileError: The checkpoint cannot be written.
    """
    options = statistics or StatisticsOptions()
    if not isinstance(programs, Mapping):
        raise UsageError('programs: names and programs are needed, such as compare({"tuned": tuned}, ...)')
    metrics = _told_apart(metrics if isinstance(metrics, Sequence) else (metrics,))
    given, rows = dict(programs), list(examples)
    if train is not None or baselines is not None:
        programs = with_baselines(given, train, metrics, baselines or BaselineOptions())
    with ProgressBar() as line:
        run = running or RunOptions()
        if run.on_progress is None:
            run = dataclasses.replace(
                run, on_progress=lambda look: line.show(f"asking {look.program}", look.n_asked, look.n_items)
            )
        roles = candidate or next((name for name in given if name != reference), None), reference
        comparison = _compared(programs, rows, metrics, roles, margin, num_threads, options, run)
    if train is not None and (n_seen := n_in_training(train, rows)):
        told = f"Unseen items: {n_seen} of {len(comparison.items)} stand in the training examples too; that flatters."
        comparison = dataclasses.replace(comparison, not_checked=(told, *comparison.not_checked))
    return ComparisonReport(comparison=comparison, title=title, cards=_cards(comparison, programs, metrics))


def _told_apart(metrics: Sequence[AnyMetric]) -> list[AnyMetric]:
    """Metrics of one name that read different outputs, with the output in their names ("accuracy of topic")."""
    counts = Counter(one.name for one in metrics if isinstance(one, (Metric, SetMetric)))
    return [
        dataclasses.replace(one, name=f"{one.name} of {one.field}")
        if isinstance(one, (Metric, SetMetric)) and counts[one.name] > 1
        else one
        for one in metrics
    ]


def _compared(
    programs: Mapping[str, Program],
    rows: Sequence[Any],
    metrics: Sequence[AnyMetric],
    roles: tuple[str | None, str | None],
    margin: float | None,
    num_threads: int,
    options: StatisticsOptions,
    run: RunOptions,
) -> Comparison:
    """Ask all programs about all examples and test the differences; `roles` are candidate and reference."""
    candidate, reference = _checked(programs, rows, metrics, roles, margin)
    parts = parts_of(rows, options.subgroups) if options.subgroups else {}
    how = Resampling.of(options, rows)
    inputs = [dict(row.inputs().items()) for row in rows]
    prices = run.usd_per_million_tokens or {}
    collected = {
        name: dataclasses.replace(one, answers=tuple(answer.priced(prices.get(name)) for answer in one.answers))
        for name, one in collect(programs, inputs, num_threads, run).items()
    }
    # A function of the user's sees what the programs said; metrics see it read, in one way for all programs.
    metrics, readers = _with_readers(metrics, rows, programs)
    read = {name: _read(one, readers) for name, one in collected.items()}
    with kept_if_lost(collected, inputs, run):
        facts, columns = _score(metrics, rows, collected, read, how, num_threads, run.on_progress)
    deciding = read if _is_read(metrics[0]) else collected
    n_twice = len(rows) if options.noise_floor is True else min(int(options.noise_floor), len(rows))
    again = ask_again(programs, inputs[:n_twice], num_threads, run) if n_twice else {}
    again = {name: _read(one, readers) if _is_read(metrics[0]) else one for name, one in again.items()}
    told = {
        name: dataclasses.replace(one, answers=with_parse_failures(one.answers, next(iter(readers), "")))
        for name, one in read.items()
    }
    others = [name for name in programs if name != candidate]
    silent = {name: why for name in programs if (why := _why_silent(collected[name].answers, run.max_failed_share))}
    able = [name for name in others if name not in silent] or others
    chosen = (
        reference if reference is not None or not others else _best(able, candidate, facts[0], columns[facts[0].name])
    )
    return Comparison(
        candidate=candidate,
        reference=chosen,
        is_reference_chosen=reference is None and chosen is not None,
        metrics=facts,
        programs=tuple(
            _program_row(name, told[name], facts, columns, is_scored=name not in silent) for name in programs
        ),
        differences=tuple(
            one
            for fact in facts
            # The margin is in the unit of the metric that decides.
            for one in _differences(fact, columns, candidate, others, silent, margin if fact is facts[0] else None, how)
        ),
        items=tuple(
            Item(inputs=jsonable(one), labels=jsonable(dict(row.labels().items())))
            for one, row in zip(inputs, rows, strict=True)
        ),
        answers={name: told[name].answers for name in programs},
        item_scores={
            fact.name: {name: one.scores for name, one in columns[fact.name].items() if one.scores is not None}
            for fact in facts
            if fact.kind != "set"
        },
        positive=_positive(metrics, rows),
        confidence=options.confidence,
        margin=margin,
        seed=options.seed,
        not_checked=(
            *_nothing_untuned(programs, candidate),
            *_not_checked(inputs, facts, columns, margin, is_grouped=options.group_by is not None, n_twice=n_twice),
        ),
        n_groups=len(set(how.groups)) if how.groups is not None else None,
        noise_floor=scoring.noise_floors(
            metrics[0], facts[0], columns[facts[0].name], rows[:n_twice], deciding, again, how, num_threads
        )
        if n_twice
        else (),
        subgroups=subgroup_rows(
            parts,
            metrics[0],
            facts[0],
            columns[facts[0].name],
            rows,
            {name: deciding[name].answers for name in programs},
            (candidate, chosen) if chosen is not None else None,
            how,
        )
        if parts
        else (),
        not_compared=silent,
        tuned=tuple(name for name, program in programs.items() if is_tuned(program) is True),
        untuned=tuple(name for name, program in programs.items() if is_tuned(program) is False),
    )


def _checked(
    programs: Mapping[str, Program],
    rows: Sequence[Any],
    metrics: Sequence[AnyMetric],
    roles: tuple[str | None, str | None],
    margin: float | None,
) -> tuple[str, str | None]:
    candidate, reference = roles
    if not programs:
        raise UsageError('compare needs at least one program, such as {"tuned": predictor}')
    for role, name in (("candidate", candidate), ("reference", reference)):
        if name is not None and name not in programs:
            raise UsageError(f'{role}="{name}" is not among the programs: {", ".join(programs)}')
    candidate = next((name for name in programs if name != reference), None) if candidate is None else candidate
    if candidate is None or candidate == reference:
        raise UsageError(f'"{reference}" cannot be candidate and reference at once')
    for name, program in programs.items():
        if not callable(program):
            raise UsageError(f'the program "{name}" cannot be called: it is a {type(program).__name__}')
        if lacks_lm(program):
            raise UsageError(
                f'the program "{name}" has no language model: give it one with load_optimized(..., lm=...) or '
                "program.set_lm(lm), or configure one with dspy.configure(lm=...)"
            )
    names = [scoring.metric_name(metric) for metric in metrics]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"metrics must be a list of at least one metric with different names; got {names}")
    if margin is not None and not margin > 0:
        raise UsageError(f"margin is a difference that does not matter, such as 0.02; got {margin}")
    if not rows:
        raise EmptyDatasetError("there are no examples to compare on; check the split or the file they come from")
    for number, row in enumerate(rows, start=1):
        # Example.inputs() raises a bare ValueError when no inputs are marked, and only at the first call.
        if not isinstance(row, dspy.Example) or not getattr(row, "_input_keys", None):
            raise UsageError(
                f"example {number} does not say which fields are inputs: mark them with example.with_inputs(...), "
                "or load them with load_examples(..., inputs=[...])"
            )
    for metric in metrics:
        if isinstance(metric, (Metric, SetMetric)):
            metric.check(rows)  # missed only when scores are counted, a wrong name would cost all answers
    return candidate, reference


def _is_read(metric: AnyMetric) -> bool:
    return isinstance(metric, (Metric, SetMetric)) and metric.reads not in ("answer", "item")


def _with_readers(
    metrics: Sequence[AnyMetric], rows: Sequence[Any], programs: Mapping[str, Program]
) -> tuple[list[AnyMetric], dict[str, Reader]]:
    """The metrics with the labels that answers are read among, and how each field of a label or number is read."""
    found: list[AnyMetric] = []
    readers: dict[str, Reader] = {}
    for metric in metrics:
        if isinstance(metric, (Metric, SetMetric)) and metric.reads in ("label", "number"):
            labels = [row[metric.field] for row in rows if metric.field in row]
            reader = reader_of(metric.field, labels, programs.values(), is_number=metric.reads == "number")
            if reader is not None:
                readers.setdefault(metric.field, reader)
                if metric.labels is None and isinstance(reader, LabelSet):
                    metric = dataclasses.replace(metric, labels=reader)
        found.append(metric)
    return found, readers


def _read(collected: Collected, readers: Mapping[str, Reader]) -> Collected:
    answers = collected.answers
    for name, reader in readers.items():
        answers = read_field_of(answers, name, reader)
    return dataclasses.replace(collected, answers=answers)


def _score(
    metrics: Sequence[AnyMetric],
    rows: Sequence[Any],
    collected: Mapping[str, Collected],
    read: Mapping[str, Collected],
    how: Resampling,
    num_threads: int,
    on_progress: Callable[[CompareProgress], None] | None,
) -> tuple[tuple[MetricFacts, ...], Columns]:
    facts: list[MetricFacts] = []
    columns: Columns = {}
    for metric in metrics:
        said = read if _is_read(metric) else collected
        answers = {name: one.answers for name, one in said.items()}
        tell = _told(on_progress, scoring.metric_name(metric), len(rows))
        fact, column = scoring.score_columns(metric, rows, answers, how, num_threads=num_threads, on_scored=tell)
        facts.append(fact)
        columns[fact.name] = column
    return tuple(facts), columns


def _told(
    on_progress: Callable[[CompareProgress], None] | None, metric: str, n_items: int
) -> Callable[[str, int], object]:
    """Tells how far a metric is that asks a model about a program's answers, as a program of its own."""

    def tell(name: str, n_done: int) -> None:
        if on_progress is not None:
            on_progress(
                CompareProgress(
                    program=f"{metric} of {name}",
                    n_done=n_done,
                    n_total=n_items,
                    n_asked=n_done,
                    n_items=n_items,
                    n_parse_failures=0,
                    n_failed=0,
                    n_resumed=0,
                )
            )

    return tell


def _why_silent(answers: Sequence[Answer], max_failed_share: float) -> str | None:
    """Why a program cannot be compared: too many of its calls failed; None where it can."""
    errors = [answer.error for answer in answers if answer.outcome == "failed"]
    if len(errors) <= max_failed_share * len(answers):
        return None
    return f"{len(errors)} of {len(answers)} calls failed, the first with {errors[0]}"


def _best(names: Sequence[str], candidate: str, fact: MetricFacts, column: Mapping[str, Scored]) -> str:
    """The one that is furthest ahead of the candidate on the items that both could be scored on.

    By its own mean alone, one that answered the easy items and was not understood on the others would come first.
    """
    sign = 1 if fact.higher_is_better else -1

    def lead(name: str) -> float:
        value = scoring.shared_difference(column[name], column[candidate])
        return -float("inf") if value is None else sign * value

    return max(names, key=lead)


def _differences(
    fact: MetricFacts,
    columns: Columns,
    candidate: str,
    others: Sequence[str],
    silent: Mapping[str, str],
    margin: float | None,
    how: Resampling,
) -> list[Difference]:
    column = columns[fact.name]
    tests = {
        name: None if {candidate, name} & set(silent) else scoring.paired(column[candidate], column[name], fact, how)
        for name in others
    }
    p_values = {name: test.p_value for name, test in tests.items() if test is not None}
    corrected = dict(zip(p_values, statistics.holm(list(p_values.values())), strict=True))
    levels = dict(zip(p_values, statistics.holm_levels(list(p_values.values()), 1 - how.confidence), strict=True))
    found: list[Difference] = []
    for name in others:
        test, alpha = tests[name], levels.get(name, 1 - how.confidence)
        verdict, confidence = decide(test, higher_is_better=fact.higher_is_better, alpha=alpha, margin=margin)
        if {candidate, name} & set(silent):
            verdict = "not compared"
        interval = test.interval(confidence) if test is not None else scoring.NOTHING
        more = None
        if verdict == "undecided" and test is not None and interval.value is not None:
            more = n_more_items(interval.value, test.deviation, interval.n, alpha=alpha)
        found.append(
            Difference(
                metric=fact.name,
                other=name,
                interval=interval,
                p_value=p_values.get(name),
                p_holm=corrected.get(name),
                test=test.test if test is not None else "none",
                verdict=verdict,
                n_more_items=more,
                confidence=confidence,
            )
        )
    return found


def _program_row(
    name: str, collected: Collected, facts: Sequence[MetricFacts], columns: Columns, *, is_scored: bool
) -> ProgramRow:
    answers = collected.answers
    answered = [answer for answer in answers if answer.outcome == "answered"]
    latencies = [answer.latency_ms for answer in answered if not answer.is_cached and not answer.is_first]
    p50, p95 = np.percentile(latencies, [50, 95]).tolist() if latencies else (None, None)
    sent = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
    received = [answer.completion_tokens for answer in answers if answer.completion_tokens is not None]
    costs = [answer.cost_usd for answer in answers if answer.cost_usd is not None]
    return ProgramRow(
        name=name,
        n=len(answers),
        n_wrong=_n_wrong(name, answers, facts, columns) if is_scored else None,
        n_parse_failures=sum(answer.outcome == "parse_failure" for answer in answers),
        n_no_answer=sum(answer.outcome == "no_answer" for answer in answers),
        n_failed=sum(answer.outcome == "failed" for answer in answers),
        seconds=collected.seconds,
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        n_cached=sum(answer.is_cached for answer in answers),
        prompt_tokens=sum(sent) if sent else None,
        completion_tokens=sum(received) if received else None,
        cost_usd=sum(costs) if costs else None,
        scores={fact.name: columns[fact.name][name].interval if is_scored else scoring.NOTHING for fact in facts},
        n_unjudged={fact.name: n for fact in facts if (n := columns[fact.name][name].n_unjudged)},
    )


def _n_wrong(name: str, answers: Sequence[Answer], facts: Sequence[MetricFacts], columns: Columns) -> int | None:
    fact = next((fact for fact in facts if fact.kind == "proportion"), None)
    scores = columns[fact.name][name].scores if fact is not None else None
    if scores is None:
        return None
    return sum(1 for answer, score in zip(answers, scores, strict=True) if answer.outcome == "answered" and not score)


def _positive(metrics: Sequence[AnyMetric], rows: Sequence[Any]) -> Any:
    """The label that probabilities speak of: as a metric names it, else True or A where the labels are of that kind."""
    known = [one for one in metrics if isinstance(one, (Metric, SetMetric))]
    field = known[0].field if known else None
    if field is None or any(field not in row for row in rows):
        return None
    read = [one.positive for one in known if one.reads == "probability"]
    named = next((positive for positive in read if positive is not OwnLabel.OWN), None)
    labels = [row[field] for row in rows]
    try:
        positive = positive_label(labels, named)
    except UsageError:  # labels of another kind, and none was named
        return None
    return next((jsonable(label) for label in labels if same_label(label, positive)), jsonable(positive))


def _nothing_untuned(programs: Mapping[str, Program], candidate: str) -> tuple[str, ...]:
    if is_tuned(programs[candidate]) is not True or any(is_tuned(one) is False for one in programs.values()):
        return ()
    return (
        f"Whether tuning was worth it: {candidate} is tuned, and nothing without tuning was compared; train=... adds "
        "the usual baselines.",
    )


def _not_checked(
    inputs: Sequence[Mapping[str, Any]],
    facts: Sequence[MetricFacts],
    columns: Columns,
    margin: float | None,
    *,
    is_grouped: bool,
    n_twice: int,
) -> tuple[str, ...]:
    """What the numbers do not tell, in sentences."""
    told = ["Whether these items resemble those that the program will meet in use."]
    if not n_twice:
        told.append("The noise floor: no program was asked twice about the same item.")
    owners: dict[str, set[int]] = {}
    distinct = {inputs_text(row): row for row in inputs}.values()  # equal ones are one group as it is
    for index, row in enumerate(distinct):
        for value in row.values():
            if isinstance(value, str) and value.strip():
                owners.setdefault(value, set()).add(index)
    n_shared = len(set().union(*(indices for indices in owners.values() if 1 < len(indices) < len(distinct)), set()))
    if n_shared and not is_grouped:
        told.append(
            f"Dependence between items: {n_shared} of {len(distinct)} share a text with another item; the intervals "
            "take the items as independent and are too narrow for that; group_by=... takes them as they are."
        )
    if margin is None:
        told.append("Equivalence: no margin was given, so a small difference can only be undecided.")
    for fact in facts:
        for name, one in columns[fact.name].items():
            n_out = len(inputs) - sum(one.is_scored)
            if one.n_unjudged:
                told.append(
                    f"{fact.name} of {name}: the judge gave no verdict that could be read for {one.n_unjudged} of "
                    f"{len(inputs)} items, which are left out ({one.judge_error})."
                )
                n_out -= one.n_unjudged
            if n_out:
                told.append(
                    f"{fact.name} of {name} leaves out {n_out} of {len(inputs)} items, which could not be scored."
                )
    return tuple(told)


def is_tuned(program: Program) -> bool | None:
    """Whether a program holds a tuned model; None for a callable that is neither a module nor a baseline."""
    if isinstance(program, InBothOrders):
        return is_tuned(program.program)
    if isinstance(program, (LabelBaseline, NearestAnswer, NumberBaseline)):
        return False
    if not isinstance(program, dspy.Module):
        return None
    return any(_holds_tuned(part) for _, part in modules_of(program))


def _holds_tuned(part: Any) -> bool:
    if isinstance(part, FinetunedPredictor):
        named = parse_model_id(part.model)
        return named.is_tuned or load_catalog().model(named.base) is None
    lm = getattr(part, "lm", None)
    return isinstance(lm, dspy.BaseLM) and parse_model_id(str(lm.model)).is_tuned


# Cards: what the items were and how each program was asked, as facts beside the numbers.


def _cards(
    comparison: Comparison, programs: Mapping[str, Any], metrics: Sequence[AnyMetric]
) -> dict[str, dict[str, str]]:
    """What items, programs and judges tell by themselves."""
    judges = {
        one.name[:1].upper() + one.name[1:]: dict(one.card) for one in metrics if isinstance(one, Metric) and one.card
    }
    fitted = {name: dict(card) for name, one in programs.items() if (card := getattr(one, "card", None))}
    return {"Data": data_card(comparison), **prompt_cards(programs), **fitted, **judges}


def data_card(comparison: Comparison) -> dict[str, str]:
    """What the programs were asked about: how many, how long, which labels, and a digest to know them again."""
    items = comparison.items
    inputs = [json.dumps(dict(item.inputs), sort_keys=True, ensure_ascii=False) for item in items]
    card = {"items": f"{len(items):,}"}
    if n_doubled := len(inputs) - len(set(inputs)):
        card["doubled"] = f"{n_doubled:,} have the inputs of another"
    for name in items[0].inputs:
        lengths = [len(str(item.inputs.get(name, ""))) for item in items]
        card[f"length of {name}"] = (
            f"{plain_statistics.median(lengths):,.0f} characters (median), {max(lengths):,} at most"
        )
    for name in {metric.field for metric in comparison.metrics if metric.field}:
        if all(name in item.labels for item in items):
            card[name] = _labels(comparison, name)
    text = "\n".join(inputs).encode("utf-8", "surrogatepass")
    card["sha256 of the items"] = hashlib.sha256(text).hexdigest()[:16]
    return card


def _labels(comparison: Comparison, field: str) -> str:
    labels = [item.labels[field] for item in comparison.items]
    if comparison.number_field == field:
        numbers = sorted(map(read_number, labels))
        return f"from {figure(numbers[0])} to {figure(numbers[-1])}, median {figure(plain_statistics.median(numbers))}"
    counts = Counter(str(label) for label in labels)
    if len(counts) > MAX_LABELS or len(counts) == len(labels) > 2:
        return f"{len(counts):,} different ones"
    return ", ".join(f"{label}: {n:,}" for label, n in counts.most_common())


def prompt_cards(programs: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """How the programs ask their models: one card per prompt, and one per DSPy program; none for what asks no model."""
    cards: dict[str, dict[str, str]] = {}
    owner: dict[str, str] = {}
    for name, program in programs.items():
        modules = modules_of(program)
        n_predictors = sum(isinstance(module, dspy.Predict) for _, module in modules)
        for inner, module in modules:
            prompt = getattr(module, "prompt", None)
            if isinstance(prompt, PromptFormat):
                model = str(getattr(module, "model", ""))
                # The same prompt under several programs is one card.
                title = owner.setdefault(prompt.digest, f"Prompt of {name}")
                card = cards.setdefault(title, _prompt_card(prompt))
                _add(card, "asked by", name)
                _add(card, "models", model)
            elif isinstance(module, dspy.Predict):
                card = cards.setdefault(f"Prompt of {name}", {})
                where = f" of {inner.removeprefix('self.')}" if n_predictors > 1 else ""
                card[f"instructions{where}"] = str(module.signature.instructions)
                card[f"demonstrations{where}"] = f"{len(module.demos):,}"
                _add(card, "models", str(getattr(module.lm, "model", "") or ""))
    return cards


def _prompt_card(prompt: PromptFormat) -> dict[str, str]:
    outputs = ", ".join(prompt.output_fields)
    if prompt.labels is not None:
        outputs = f"{prompt.label_field}: {', '.join(prompt.labels.texts)}"
    return {
        "asked by": "",
        "models": "",
        "system": prompt.system or "(none)",
        "user": prompt.user,
        "answer": outputs,
        "digest": prompt.digest[:16],
    }


def _add(card: dict[str, str], key: str, text: str) -> None:
    """Add a text to a list of texts, once."""
    known = [one for one in card.get(key, "").split(", ") if one]
    if text and text not in known:
        known.append(text)
    if known:
        card[key] = ", ".join(known)
