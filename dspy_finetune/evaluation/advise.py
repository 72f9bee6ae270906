"""Whether these labelled rows are worth a fine-tuned model, before anything is trained.

In: labelled examples and, where it is known, the signature. Out: `Advice`: what the task is, how far the cheap
baselines get by cross-validation, the learning curve's slope, label noise seen in duplicates, how many test rows a
difference of five points needs, and a plain recommendation with the figures behind it. No model is asked.

The scores are out of fold: each row is answered by baselines that were fitted on the other folds; rows that share an
item stay in one fold. Not covered: what a tuned model reaches (only training tells), baselines that ask a model.
"""

from __future__ import annotations

import math
import random
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import dspy

from dspy_finetune._optional import require
from dspy_finetune.data.fields import Columns, Task, check_decimal, guess_columns
from dspy_finetune.data.items import decided_pairs, group_numbers, is_missing, row_items
from dspy_finetune.errors import AnswerError, DataError, EmptyDatasetError, UsageError
from dspy_finetune.evaluation import baselines
from dspy_finetune.evaluation.collect import Reader
from dspy_finetune.evaluation.metrics import Embed, Vectors
from dspy_finetune.evaluation.statistics import Interval, clustered_mean_interval, items_needed, proportion_interval
from dspy_finetune.report.blocks import Bullets, Facts, Section, Table, as_text, figure
from dspy_finetune.report.page import Reported
from dspy_finetune.tasks import MAX_CHOICES, MIN_EACH
from dspy_finetune.values import BOOL, NUMBER, is_label, label_text, read_number, split_unit

Recommendation: TypeAlias = Literal["do not fine-tune", "head", "LoRA", "more labels first"]

MIN_ROWS = 60
"""Below this many independent rows every figure here is noise."""
GOOD_ENOUGH = 0.97
"""A cheap baseline with this accuracy leaves a tuned model nothing to win."""

MIN_TEST_ROWS = 30
"""Below this many the normal approximation behind `n_test_rows` does not hold, however alike two baselines are."""

_CONSTANT = ("majority", "median")
RARE = 0.8
"""Where one label has so many of the rows, a share of right answers says little: probabilities are looked at, too."""


@dataclass(frozen=True, kw_only=True)
class BaselineEstimate:
    """One cheap baseline, by cross-validation."""

    name: str
    """As in the table of `compare`."""
    interval: Interval
    """Mean over all rows, each answered out of fold: accuracy, or the absolute error of a number."""


@dataclass(frozen=True, kw_only=True)
class CurveStep:
    """The best baseline, trained on a share of the rows."""

    n_train: int
    """Rows it was trained on, on average over the folds."""
    value: float
    """Mean over the folds, in the metric's unit."""
    deviation: float
    """Standard deviation over the folds."""


@dataclass(frozen=True, kw_only=True)
class Advice(Reported):
    """What the rows say about fine-tuning on them."""

    recommendation: Recommendation
    """The one thing to do now."""
    reasons: tuple[str, ...]
    """The figures behind it, a sentence each."""
    columns: Columns
    """Task, inputs and label."""
    n_rows: int
    """Rows that were looked at."""
    n_groups: int
    """Independent rows: those that share an item count once."""
    metric: Literal["accuracy", "absolute error", "none"]
    """What the scores are; none for free text."""
    baselines: tuple[BaselineEstimate, ...]
    """The best first."""
    curve: tuple[CurveStep, ...]
    """The best baseline that learns, at a quarter, half and all of the training rows."""
    gain_per_doubling: float | None
    """What twice the rows brought the best baseline, in the metric's unit, positive when better; None if not known."""
    gain_error: float | None
    """Its standard error over the folds."""
    n_duplicates: int
    """Groups of rows with equal inputs."""
    n_conflicts: int
    """Those whose labels differ."""
    ceiling: float | None
    """Accuracy that nothing can pass on the duplicates: the share of each group's most frequent label; None without,
    and for numbers."""
    n_test_rows: int | None
    """Test rows that show a difference of five points (of 5 % for a number) with a power of 0.8."""
    seconds: float
    """Wall time of the look."""

    def __str__(self) -> str:
        facts = [f"{name}: {value}" for name, value in self._facts().items()]
        parts = [f"{self.recommendation.capitalize()}.", "\n".join(f"- {reason}" for reason in self.reasons)]
        parts += [*map(as_text, self._tables()), "\n".join(facts)]
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-safe."""
        return asdict(self)

    def section(self) -> Section:
        """The blocks of a report: verdict, reasons, tables."""
        return Section(
            title="Advice",
            verdict=f"{self.recommendation.capitalize()}.",
            blocks=(Bullets(lines=self.reasons), *self._tables(), Facts(facts=self._facts())),
        )

    def _tables(self) -> list[Table]:
        tables = []
        if self.baselines:
            rows = tuple((one.name, _figure(one.interval), str(one.interval.n)) for one in self.baselines)
            tables.append(Table(head=("baseline, cross-validated", f"{self.metric} [95%]", "n"), rows=rows))
        if self.curve:
            steps = tuple((f"{one.n_train:,}", figure(one.value), figure(one.deviation)) for one in self.curve)
            head = ("training rows", f"{self.metric}, best baseline", "deviation over folds")
            tables.append(Table(head=head, rows=steps))
        return tables

    def _facts(self) -> dict[str, str]:
        return {
            "task": f"{self.columns.task}: {self.columns.why}",
            "inputs": ", ".join(self.columns.inputs),
            "rows": f"{self.n_rows:,}, of which {self.n_groups:,} independent",
            "equal inputs": f"groups: {self.n_duplicates:,}; with different labels: {self.n_conflicts:,}",
            "time": f"{self.seconds:.0f} s",
        }


def advise(
    examples: Sequence[Any],
    signature: type[dspy.Signature] | str | None = None,
    *,
    label: str | None = None,
    encoder: str | Embed | None = "auto",
    n_folds: int = 5,
    max_rows: int = 1000,
    seed: int = 0,
) -> Advice:
    """Say whether fine-tuning on these rows is worth trying, which way, and why, in under a minute.

    >>> rows = [dspy.Example(title=f"{'bees' if n % 2 else 'taxes'} {n}", liked=n % 2 == 1) for n in range(80)]
    >>> advise(rows, "title -> liked: bool", encoder=None).recommendation
    'do not fine-tune'

    Args:
        examples: Labelled rows.
        signature: The task's; without it inputs and label are told from the rows (`label` decides where two fit).
        label: The label's field.
        encoder: Adds a linear model on a sentence encoder's vectors: its name on the local host, or a function from
            texts to vectors. "auto": `minilm-l6` where it is installed, which starts the local host; None: none.
        n_folds: Folds of the cross-validation.
        max_rows: More rows are sampled down to this many.
        seed: Random seed of the folds and the sample.

    Raises:
        EmptyDatasetError: There are no rows.
        DataError: The label cannot be told, or a row's cannot be read as the number or the yes or no that it should be.
        UsageError: A field is missing.
        MissingExtraError: scikit-learn is not installed (extra `eval`).
    """
    began = time.monotonic()
    rows = list(examples)
    if not rows:
        raise EmptyDatasetError("no rows to look at; give labelled examples")
    if len(rows) > max_rows:
        rows = random.Random(seed).sample(rows, max_rows)
    columns = _columns(rows, signature, label)
    n_given = len(rows)
    rows = [dspy.Example(**row.toDict()).with_inputs(*columns.inputs) for row in rows if has_value(row, columns.label)]
    if not rows:
        raise EmptyDatasetError(f"no row has a value of {columns.label!r}; give labelled examples")
    n_ties = 0
    if columns.task == "pairs" and signature is None:
        decided = decided_pairs(rows, columns)
        n_ties, rows = len(rows) - len(decided), decided
        if not rows:
            raise EmptyDatasetError(f"no row prefers a side in {columns.label!r}; give pairs that do")
    if columns.task == "number":
        check_decimal([row[columns.label] for row in rows], columns.label)
        for row in rows:
            if number := split_unit(row[columns.label])[0]:
                row[columns.label] = number
    _check_labels(rows, columns)
    groups = group_numbers(row_items(rows, None, "normalized"))
    metric = _metric(columns.task)
    n_groups, is_constant = max(groups) + 1, len({label_text(row[columns.label]) for row in rows}) == 1
    has_figures = metric != "none" and n_groups >= 2 * n_folds and not is_constant
    embed = _embedder(encoder, rows, columns) if has_figures else None
    look = _Look(rows=rows, columns=columns, groups=groups, embed=embed, seed=seed)
    n_duplicates, n_conflicts, ceiling = _noise(rows, columns)
    scores: dict[str, list[float]] = {}
    surprises: dict[str, list[float]] = {}
    curve: tuple[CurveStep, ...] = ()
    gain = error = None
    if has_figures:
        folds = look.folds(n_folds)
        scores, surprises = look.out_of_fold(folds)
        learning = {name: values for name, values in scores.items() if not name.startswith(_CONSTANT)}
        if learning:
            best = min(learning, key=lambda name: _loss(learning[name], metric))
            curve, gain, error = look.curve(folds, best, scores[best])
    ranked = sorted(scores, key=lambda name: _loss(scores[name], metric))
    estimates = tuple(BaselineEstimate(name=name, interval=_interval(scores[name], groups, metric)) for name in ranked)
    advice = Advice(
        recommendation="head",
        reasons=(),
        columns=columns,
        n_rows=len(rows),
        n_groups=n_groups,
        metric=metric,
        baselines=estimates,
        curve=curve,
        gain_per_doubling=gain,
        gain_error=error,
        n_duplicates=n_duplicates,
        n_conflicts=n_conflicts,
        ceiling=ceiling,
        n_test_rows=_test_rows(scores, ranked, metric),
        seconds=time.monotonic() - began,
    )
    recommendation, reasons = _recommend(advice, scores, surprises, groups)
    if is_constant and len(rows) > 1:
        recommendation, reasons = "more labels first", (only_label(columns.label, rows[0][columns.label]),)
    if len(rows) + n_ties < n_given:
        reasons += (f"Left out, as {columns.label!r} is empty: {n_given - n_ties - len(rows):,} of {n_given:,} rows.",)
    if n_ties:
        reasons += (f"Left out, as neither side is preferred: {n_ties:,} of {n_given:,} rows.",)
    return replace(advice, recommendation=recommendation, reasons=reasons)


def _check_labels(rows: Sequence[dspy.Example], columns: Columns) -> None:
    """Raises DataError for the first label that is no number, or neither yes nor no, where that is the task."""
    readers: dict[Task, Reader] = {"number": NUMBER, "binary": BOOL}
    if columns.task not in readers:
        return
    for row in rows:
        try:
            readers[columns.task].read(row[columns.label])
        except AnswerError as error:
            inputs = ", ".join(f"{name}={row[name]!r:.60}" for name in columns.inputs)
            raise DataError(
                f"the label {columns.label!r} of {inputs}: {error}; correct the row or leave it out"
            ) from error


def only_label(label: str, value: Any) -> str:
    """What is said of rows that all have one label."""
    return f"Every row has the same {label}, {value!r:.60}: there is nothing to tell apart; label others, too."


def has_value(row: Any, label: str) -> bool:
    """Whether a row has a label: not None, NaN or blanks alone."""
    return not is_missing(row.get(label))


def _embedder(encoder: str | Embed | None, rows: Sequence[dspy.Example], columns: Columns) -> Embed | None:
    if encoder == "auto":
        encoder = baselines.ENCODER if baselines.has_encoder() else None
    if encoder is None:
        return None
    vectors = Vectors(baselines.HostEmbedder(encoder) if isinstance(encoder, str) else encoder)
    # As the baselines read a row: its fields joined, or the two sides of a pair apart.
    texts = [[str(row[name]) for name in columns.inputs] for row in rows]
    joined = [one for row in texts for one in row] if columns.task == "pairs" else ["\n".join(row) for row in texts]
    vectors(joined)  # all at once, in large requests; every fold takes them from there
    return vectors


def _columns(rows: Sequence[Any], signature: type[dspy.Signature] | str | None, label: str | None) -> Columns:
    if signature is None:
        marked = tuple(rows[0].inputs().keys()) if getattr(rows[0], "_input_keys", None) else None
        return guess_columns(rows, label=label, inputs=marked)
    made = dspy.Signature(signature) if isinstance(signature, str) else signature
    outputs = list(made.output_fields)
    chosen = label if label is not None else outputs[0]
    if chosen not in outputs:
        raise UsageError(f"the signature has no output {chosen!r}; its outputs are {', '.join(outputs)}")
    told = guess_columns(rows, label=chosen, inputs=tuple(made.input_fields))
    annotation = made.output_fields[chosen].annotation
    task: Task = told.task
    if annotation is bool:
        task = "binary"
    elif annotation in (int, float):
        task = "number"
    elif told.task == "pairs" or (set(get_args(annotation)) == {"A", "B"} and len(made.input_fields) >= 2):
        task = "pairs"
    elif get_args(annotation):
        task = "labels"
    others = ", ".join(name for name in outputs if name != chosen)
    why = (
        f"as the signature says; of {chosen} alone, not of {others}: name one as the label"
        if others
        else "as the signature says"
    )
    return Columns(task=task, inputs=told.inputs, label=chosen, labels=told.labels, why=why)


def _metric(task: Task) -> Literal["accuracy", "absolute error", "none"]:
    return "absolute error" if task == "number" else "none" if task == "text" else "accuracy"


def _loss(values: Sequence[float], metric: str) -> float:
    """Lower is better, for any metric."""
    return statistics.fmean(values) if metric == "absolute error" else -statistics.fmean(values)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """The rows, and how baselines are fitted on a part of them and asked about another."""

    rows: list[dspy.Example]
    columns: Columns
    groups: list[int]
    embed: Embed | None
    seed: int

    def folds(self, n_folds: int) -> list[list[int]]:
        """Row numbers of each fold: groups stay together, labels are spread evenly."""
        selection = require("sklearn.model_selection", "eval", "cross-validation")
        strata = baselines.common_strata(self._strata(), n_folds)
        splitter = selection.StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=self.seed)
        with warnings.catch_warnings():  # of a label on fewer rows than folds: then some folds do not test it
            warnings.filterwarnings("ignore", message="The least populated class")
            return [[int(row) for row in test] for _, test in splitter.split(strata, strata, self.groups)]

    def _strata(self) -> list[str]:
        values = [row[self.columns.label] for row in self.rows]
        if self.columns.task != "number":
            return [label_text(value) for value in values]
        numbers = [read_number(value) for value in values]
        cuts = statistics.quantiles(numbers, n=5)
        return [str(sum(number > cut for cut in cuts)) for number in numbers]

    def fit(self, train: Sequence[int], *, only: str | None = None) -> Mapping[str, Any]:
        """The baselines that fit the task, fitted on these rows; `only` names the one that is needed."""
        rows = [self.rows[row] for row in train]
        label, fields = self.columns.label, self.columns.inputs
        task: Literal["label", "number"] = "number" if self.columns.task == "number" else "label"
        is_words = only is not None and only.startswith("TF-IDF")
        if only is not None and self.embed is not None and not is_words:
            return {only: baselines.encoder_linear(rows, label=label, text=fields, task=task, embed=self.embed)}
        embed = None if is_words else self.embed
        return baselines.usual(rows, label=label, text=fields, task=task, embedder=embed)

    def surprise(self, program: Any, row: int) -> float:
        """The log loss of the right label; 0 for a number."""
        if self.columns.task == "number":
            return 0.0
        example = self.rows[row]
        shares = program(**example.inputs().toDict()).probabilities
        right = [share for label, share in shares.items() if is_label(example[self.columns.label], label)]
        return -math.log(max([*right, 1e-6]))

    def score(self, program: Any, row: int) -> float:
        """1 or 0 for a label, the absolute error of a number."""
        example = self.rows[row]
        given = program(**example.inputs().toDict())[self.columns.label]
        expected = example[self.columns.label]
        if self.columns.task == "number":
            return abs(read_number(given) - read_number(expected))
        try:
            return float(is_label(expected, given))
        except AnswerError:
            return 0.0

    def out_of_fold(self, folds: Sequence[Sequence[int]]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Each baseline's score, and its log loss, on every row, in the order of the rows."""
        scores: dict[str, list[float]] = {}
        surprises: dict[str, list[float]] = {}
        for test in folds:
            held_out = set(test)
            fitted = self.fit([row for row in range(len(self.rows)) if row not in held_out])
            for name, program in fitted.items():
                given = scores.setdefault(name, [0.0] * len(self.rows))
                lost = surprises.setdefault(name, [0.0] * len(self.rows))
                for row in test:
                    given[row], lost[row] = self.score(program, row), self.surprise(program, row)
        return scores, surprises

    def curve(
        self, folds: Sequence[Sequence[int]], best: str, whole: Sequence[float]
    ) -> tuple[tuple[CurveStep, ...], float | None, float | None]:
        """The best baseline at a quarter, half and all of the training rows; the last doubling's gain and its error."""
        values: dict[float, list[float]] = {0.25: [], 0.5: [], 1.0: []}
        counts: dict[float, list[int]] = {share: [] for share in values}
        for test in folds:
            held_out = set(test)
            train = [row for row in range(len(self.rows)) if row not in held_out]
            random.Random(self.seed).shuffle(train)
            values[1.0].append(statistics.fmean(whole[row] for row in test))
            counts[1.0].append(len(train))
            for share, scores in values.items():
                if share == 1.0:
                    continue
                part = train[: max(round(share * len(train)), 2)]
                program = self.fit(part, only=best).get(best)
                if program is None:  # a part with one label only
                    continue
                scores.append(statistics.fmean(self.score(program, row) for row in test))
                counts[share].append(len(part))
        steps = tuple(
            CurveStep(
                n_train=round(statistics.fmean(counts[share])),
                value=statistics.fmean(scores),
                deviation=statistics.stdev(scores) if len(scores) > 1 else 0.0,
            )
            for share, scores in values.items()
            if scores
        )
        if len(values[1.0]) != len(values[0.5]) or len(values[1.0]) < 2:
            return steps, None, None
        sign = -1.0 if self.columns.task == "number" else 1.0
        gains = [sign * (whole - half) for whole, half in zip(values[1.0], values[0.5], strict=True)]
        return steps, statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(len(gains))


def _told(
    surprises: Mapping[str, Sequence[float]], constant: str, groups: Sequence[int]
) -> tuple[str, Interval] | None:
    """The baseline with the least log loss, and by how much it is lower than that of the labels' shares; None where
    that may be chance."""
    name = min(surprises, key=lambda one: statistics.fmean(surprises[one]))
    gains = [a - b for a, b in zip(surprises[constant], surprises[name], strict=True)]
    gain = clustered_mean_interval(gains, groups, 0.95)
    return (name, gain) if name != constant and gain.low is not None and gain.low > 0 else None


def _noise(rows: Sequence[dspy.Example], columns: Columns) -> tuple[int, int, float | None]:
    """Groups with equal inputs, those with different labels, and the accuracy that their labels allow."""
    labels: dict[tuple[str, ...], list[str]] = {}
    for row, items in zip(rows, row_items(rows, list(columns.inputs), "normalized"), strict=True):
        labels.setdefault(tuple(items), []).append(label_text(row[columns.label]))
    repeated = [given for given in labels.values() if len(given) > 1]
    conflicts = [given for given in repeated if len(set(given)) > 1]
    if not repeated:
        return 0, 0, None
    if columns.task == "number":  # two prices of one thing bound no share of right answers
        return len(repeated), len(conflicts), None
    right = sum(Counter(given).most_common(1)[0][1] for given in repeated)
    return len(repeated), len(conflicts), right / sum(map(len, repeated))


def _interval(values: Sequence[float], groups: Sequence[int], metric: str) -> Interval:
    if metric == "accuracy":
        return proportion_interval(values, groups, 0.95)
    return clustered_mean_interval(values, groups, 0.95, bounds=(0.0, None))


def _test_rows(scores: Mapping[str, Sequence[float]], ranked: Sequence[str], metric: str) -> int | None:
    """Test rows for a difference of five points, with the spread of the two best baselines' differences."""
    if len(ranked) < 2:
        return None
    one, other = scores[ranked[0]], scores[ranked[1]]
    spread = statistics.pstdev([a - b for a, b in zip(one, other, strict=True)])
    difference = 0.05 if metric == "accuracy" else 0.05 * statistics.fmean(one)
    needed = items_needed(difference, spread) if spread else None
    return None if needed is None else max(needed, MIN_TEST_ROWS)


def _figure(interval: Interval) -> str:
    value = "-" if interval.value is None else figure(interval.value)
    if interval.low is None or interval.high is None:
        return value
    return f"{value} [{figure(interval.low)}, {figure(interval.high)}]"


def _recommend(
    advice: Advice,
    scores: Mapping[str, Sequence[float]],
    surprises: Mapping[str, Sequence[float]],
    groups: Sequence[int],
) -> tuple[Recommendation, tuple[str, ...]]:
    task = advice.columns.task
    if task == "text":
        if advice.n_groups < MIN_ROWS:
            return "more labels first", (f"{advice.n_groups} independent rows; free text wants {MIN_ROWS} at least.",)
        return "LoRA", (
            f"{advice.n_groups:,} answers in free text: only a model that writes can give them, so LoRA.",
            "Compare it with a few-shot program: for free text that is the baseline to beat.",
        )
    if not advice.baselines or advice.n_groups < MIN_ROWS:
        is_pair = task == "pairs" and advice.n_groups < advice.n_rows
        sharing = f" among {advice.n_rows:,}, as pairs that share a text count as one" if is_pair else ""
        return "more labels first", (
            f"{advice.n_groups} independent rows{sharing}: fewer than {MIN_ROWS} are too few to choose a way by.",
        )
    best = advice.baselines[0]
    constant = next((name for name in scores if name.startswith(_CONSTANT)), None)
    is_better, reasons = True, []
    if constant is not None and best.name != constant:
        sign = -1.0 if advice.metric == "absolute error" else 1.0
        gains = [sign * (a - b) for a, b in zip(scores[best.name], scores[constant], strict=True)]
        gain = clustered_mean_interval(gains, groups, 0.95)
        is_better = gain.low is not None and gain.low > 0
        reasons.append(f"{best.name} is {_figure(gain)} better than always the {constant.split()[0]}.")
    elif constant is not None:
        is_better = False
        reasons.append(f"No cheap baseline beats always the {constant.split()[0]}.")
    usual = statistics.fmean(scores[constant]) if constant is not None and advice.metric == "accuracy" else 0.0
    if not is_better and constant is not None and usual >= RARE:
        told = _told(surprises, constant, groups)
        if told is not None:
            is_better = True
            reasons.append(
                f"Shares of right answers hardly show it, as {usual:.1%} of the rows have one label: by its"
                f" probabilities {told[0]} tells the label, its log loss {_figure(told[1])} lower. Look at ROC AUC or"
                " average precision, and choose the predictor's threshold on rows of their own."
            )
    rising = advice.gain_per_doubling is not None and advice.gain_error is not None
    if rising:
        assert advice.gain_per_doubling is not None
        assert advice.gain_error is not None
        reasons.append(
            f"Twice the rows brought {figure(advice.gain_per_doubling, sign=True)} "
            f"(standard error {figure(advice.gain_error)})."
        )
        rising = advice.gain_per_doubling > 2 * advice.gain_error
    is_number = task == "number"
    # Of two labels the rarer may be all that is wanted: where 98 % have the other, 98 % right is nothing.
    is_enough = best.interval.value is not None and best.interval.value >= max(GOOD_ENOUGH, 1 - (1 - usual) / 4)
    if advice.n_conflicts:
        found_twice = f"{advice.n_conflicts} of {advice.n_duplicates} groups with equal inputs have different"
        ceiling = "" if advice.ceiling is None else f": nothing passes {advice.ceiling:.3f} there"
        reasons.append(f"{found_twice} {'numbers' if is_number else 'labels'}{ceiling}.")
    if advice.n_test_rows is not None and usual <= 0.95:  # above, five points are more than there are to win
        difference = "5 % of the error" if is_number else "five points"
        reasons.append(f"A difference of {difference} takes about {advice.n_test_rows:,} test rows to show.")
    found: Recommendation
    if not is_better:
        found = "more labels first"
        reasons.append(
            "Nothing in the text is seen to tell the label yet: label more rows, or give the model other inputs."
        )
    elif advice.metric == "accuracy" and (best.interval.low or 0.0) >= GOOD_ENOUGH - 0.02 and is_enough:
        found = "do not fine-tune"
        reasons.append(f"{best.name} is right in {best.interval.value:.1%}: use it, a tuned model has nothing to win.")
    else:
        found = "head"
        n_labels = len(advice.columns.labels)
        asking = (
            "by itself (recipe auto)"
            if n_labels <= MAX_CHOICES or advice.n_rows >= MIN_EACH * n_labels
            else f"for {n_labels} labels where it is asked for (recipe head, as `run` does)"
        )
        reasons.append(
            "A linear head on a frozen model is the best first try at this size: minutes, no overfitting by epochs. "
            f"The local host trains it {asking}; recipe head+lora goes on from it with an adapter, and keeps that "
            "where it is better on held-out rows."
        )
        if rising:
            reasons.append("The curve still rises: more labels will help whatever is trained.")
    return found, tuple(reasons)
