"""`ComparisonReport`: a comparison that says its verdict, prints its table, and writes itself as HTML, Markdown, JSON.

In: a `Comparison`, a title, cards of facts about the data and the prompts. Out: texts and files, by blocks that
`report/` renders. Not covered: how the figures came about (compare.py), details beside the tables
(comparison_details.py).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dspy_finetune._files import read_text, write_json
from dspy_finetune.errors import DataError
from dspy_finetune.evaluation import comparison_details as details
from dspy_finetune.evaluation.comparison_details import NEAR
from dspy_finetune.evaluation.result import Comparison, Difference, ProgramRow, Verdict
from dspy_finetune.report import page
from dspy_finetune.report.blocks import Block, Bullets, Curves, Facts, Heading, Plots, Section, Table, Text
from dspy_finetune.report.plots import Training, loss_curves
from dspy_finetune.report.text import MISSING, as_text, count, figure, markdown, p_text, with_interval


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """The outcome of `compare`: numbers, a verdict, and the ways to show them."""

    comparison: Comparison
    """All numbers, answers and items."""
    title: str = "Comparison"
    """Heading of the report, or of its section in a report on several tasks."""
    cards: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Facts to show below the numbers, such as {"Data": {"source": "titles.jsonl"}, "Prompt": {"system": "..."}}."""
    training: Curves = field(default_factory=dict)
    """Losses of the training: a name, and its rows of (step, loss)."""
    near: tuple[float, float] = NEAR
    """For numbers: (share of the true one, distance in its unit); an answer is near within the wider of the two."""

    def annotated(
        self,
        *,
        title: str | None = None,
        cards: Mapping[str, Mapping[str, str]] | None = None,
        training: Training | None = None,
        near: tuple[float, float] | None = None,
    ) -> ComparisonReport:
        """The same report with more to show; the numbers stay.

        Args:
            title: Its heading.
            cards: Facts to show in it, such as {"Data": {"source": "titles.jsonl"}}; what the items and the prompts
                tell by themselves stays behind them.
            training: Losses to show in it: a name, and a `Job` or rows of (step, loss).
            near: For numbers: (share of the true one, distance in its unit); an answer within the wider of the two
                counts as near, within twice that as fair.

        Raises:
            HostError: A job in `training` cannot be asked for its figures.
        """
        merged = {name: dict(card) for name, card in (cards or {}).items()}
        for name, card in self.cards.items():
            merged[name] = {**merged.get(name, {}), **{k: v for k, v in card.items() if k not in merged.get(name, {})}}
        return dataclasses.replace(
            self,
            title=self.title if title is None else title,
            cards=merged,
            training=self.training if training is None else loss_curves(training),
            near=self.near if near is None else near,
        )

    @property
    def verdict(self) -> str:
        """The finding in one or two sentences."""
        return verdict_sentence(self.comparison)

    @property
    def outcome(self) -> Verdict | None:
        """The finding in one word, seen from the candidate; None with a single program."""
        decisive = self.comparison.decisive
        return decisive.verdict if decisive is not None else None

    @property
    def exit_code(self) -> Literal[0, 1, 3, 4]:
        """For a gate in CI: 0 better or equivalent (or nothing to compare with), 3 undecided, 4 worse.

        1 where a program was not compared because its calls failed.
        """
        if self.comparison.not_compared:
            return 1
        if self.outcome == "worse":
            return 4
        return 3 if self.outcome == "undecided" else 0

    @property
    def rows(self) -> tuple[ProgramRow, ...]:
        """One line per program."""
        return self.comparison.programs

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Candidate minus each other program, with intervals and p-values."""
        return self.comparison.differences

    def table(self) -> str:
        """The table as aligned plain text, for a terminal."""
        return as_text(program_table(self.comparison))

    def __str__(self) -> str:
        return f"{self.title}\n{self.table()}\n{self.verdict}"

    def section(self) -> Section:
        """The blocks that the report consists of, for a page of several."""
        return Section(
            title=self.title,
            verdict=self.verdict,
            outcome=self.outcome,
            blocks=tuple(_blocks(self)),
            training=self.training,
            not_checked=self.comparison.not_checked,
        )

    def markdown(self) -> str:
        """The report as Markdown: all numbers, and the first items on which the programs disagree."""
        return markdown(self.section())

    def html(self, *, training: Training | None = None) -> str:
        """The report as one HTML page, by default with its own loss curves.

        Raises:
            MissingExtraError: The extra `report` is not installed.
            HostError: A job in `training` cannot be asked for its figures.
        """
        return page.render([self.section()], title=self.title, training=training)

    def to_html(self, path: str | os.PathLike[str], *, training: Training | None = None) -> None:
        """Write one self-contained HTML file. Raises FileError, and as `html`."""
        page.write_text(path, self.html(training=training))

    def to_markdown(self, path: str | os.PathLike[str]) -> None:
        """Write the report as Markdown. Raises FileError."""
        page.write_text(path, self.markdown())

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with every item and answer."""
        return {
            "title": self.title,
            "verdict": self.verdict,
            "cards": {name: dict(card) for name, card in self.cards.items()},
            "training": {name: [list(row) for row in rows] for name, rows in self.training.items()},
            "near": list(self.near),
            "comparison": self.comparison.to_dict(),
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON; `from_json` reads it back. Raises FileError."""
        write_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ComparisonReport:
        """From what `to_dict` gave. Raises DataError when it is something else."""
        if not isinstance(values, Mapping) or not {"title", "cards", "comparison"} <= set(values):
            raise DataError('this is not a report: it has no "title", "cards" and "comparison"')
        try:
            share, distance = values.get("near", NEAR)
            training = loss_curves(values.get("training", {}))
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f'this is not a report: "near" or "training" cannot be read ({error})') from error
        return cls(
            comparison=Comparison.from_dict(values["comparison"]),
            title=values["title"],
            cards=values["cards"],
            training=training,
            near=(float(share), float(distance)),
        )

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> ComparisonReport:
        """Read a report that `to_json` wrote.

        Raises:
            FileError: The file cannot be read.
            DataError: It holds something else.
        """
        text = read_text(path)
        try:
            return cls.from_dict(_parse(text))
        except DataError as error:
            raise DataError(f"{os.fspath(path)}: {error}") from error

    def _repr_html_(self) -> str:
        return page.fragment(self.section())


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"not JSON ({error})") from error


def _blocks(report: ComparisonReport) -> Iterator[Block]:
    comparison = report.comparison
    yield program_table(comparison)
    yield Text(text=footnote(comparison), is_note=True)
    yield Plots(plots=details.pictures(comparison, report.near))
    for title, table, note in _tables(report):
        if table is not None:
            yield Heading(text=title)
            yield table
            if note:
                yield Text(text=note, is_note=True)
    missing = details.errors(comparison)
    if missing:
        yield Heading(text="Why answers are missing")
        yield Bullets(lines=tuple(missing))
    yield details.item_list(comparison, report.near)
    for name, card in report.cards.items():
        yield Heading(text=name)
        yield Facts(facts=card)


def _tables(report: ComparisonReport) -> Iterator[tuple[str, Table | None, str]]:
    comparison, near = report.comparison, report.near
    if comparison.differences:
        yield f"Differences: {comparison.candidate} minus …", difference_table(comparison), ""
    yield (
        "Near and far",
        details.band_table(comparison, near),
        f"Near is within {near[0]:.0%} or {near[1]:g} of the true number, whichever is wider; fair within twice that; "
        "far beyond.",
    )
    yield f"What {comparison.candidate} said, by label", details.confusion(comparison), ""
    yield "By parts of the items", subgroup_table(comparison), ""
    yield (
        "Each program against itself",
        noise_table(comparison),
        "A difference between two programs that is no larger than a program's own may be mere noise.",
    )
    yield (
        "Position, length and price bias",
        details.bias_table(comparison),
        "0.5 is no bias. A preference for the longer text is a fault only as far as it exceeds the labels' own.",
    )


def program_table(comparison: Comparison) -> Table:
    """One row per program, with the columns that hold anything."""
    percent = f"{comparison.confidence:.0%}"
    rows = comparison.programs
    columns: list[tuple[str, list[str]]] = [("program", [row.name for row in rows])]
    for metric in comparison.metrics:
        columns.append(
            (f"{metric.name} [{percent}]", [with_interval(row.scores[metric.name]) for row in rows]),
        )
    columns.append(("n", [count(row.n) for row in rows]))
    if any(row.n_wrong is not None for row in rows):
        columns.append(("wrong", [count(row.n_wrong) for row in rows]))
    columns += [
        ("parse failures", [count(row.n_parse_failures) for row in rows]),
        *([("no answer", [count(row.n_no_answer) for row in rows])] if any(row.n_no_answer for row in rows) else []),
        ("failed", [count(row.n_failed) for row in rows]),
        *(
            [("unjudged", [count(sum(row.n_unjudged.values())) for row in rows])]
            if any(row.n_unjudged for row in rows)
            else []
        ),
        ("seconds", [f"{row.seconds:,.1f}" for row in rows]),
        ("ms p50", [count(row.latency_p50_ms) for row in rows]),
        ("ms p95", [count(row.latency_p95_ms) for row in rows]),
    ]
    if any(row.prompt_tokens is not None for row in rows):
        columns.append(("tokens in", [count(row.prompt_tokens) for row in rows]))
        columns.append(("tokens out", [count(row.completion_tokens) for row in rows]))
    if any(row.cost_usd is not None for row in rows):
        columns.append(("USD", [MISSING if row.cost_usd is None else f"{row.cost_usd:.4f}" for row in rows]))
    return Table(
        head=tuple(name for name, _ in columns),
        rows=tuple(zip(*(cells for _, cells in columns), strict=True)),
        label="Scores",
        marked=comparison.candidate,
    )


def difference_table(comparison: Comparison) -> Table:
    """One row per difference: candidate minus other."""
    head = (
        "candidate minus",
        "metric",
        "difference [interval]",
        "level",
        "p",
        "p (Holm)",
        "test",
        "verdict",
    )
    return Table(head=head, rows=tuple(_difference_cells(one) for one in comparison.differences), label="Differences")


def _difference_cells(one: Difference) -> tuple[str, ...]:
    return (
        one.other,
        one.metric,
        with_interval(one.interval, sign=True),
        _percent(one.confidence),
        p_text(one.p_value),
        p_text(one.p_holm),
        one.test if one.p_value is not None else MISSING,
        one.verdict,
    )


def subgroup_table(comparison: Comparison) -> Table | None:
    """One row per part of the items: each program's figure, and candidate minus reference; None without parts."""
    if not comparison.subgroups:
        return None
    names = [row.name for row in comparison.programs]
    head = ("part", "n", *names, "difference [interval]", "level", "p (Holm)")
    rows = tuple(
        (
            f"{one.field}: {one.value}",
            count(one.n),
            *(with_interval(one.scores[name]) if name in one.scores else MISSING for name in names),
            MISSING if one.difference is None else with_interval(one.difference, sign=True),
            MISSING if one.p_holm is None else _percent(one.confidence),
            p_text(one.p_holm),
        )
        for one in comparison.subgroups
    )
    return Table(head=head, rows=rows, label="Parts", has_long_names=True)


def noise_table(comparison: Comparison) -> Table | None:
    """One row per program that was asked twice; None where none was."""
    if not comparison.noise_floor:
        return None
    percent = f"{comparison.confidence:.0%}"
    head = ("program", "asked twice", "answers that changed", f"second minus first [{percent}]", "remark")
    rows = tuple(
        (
            one.program,
            count(one.n),
            count(one.n_changed),
            with_interval(one.difference, sign=True),
            "from a cache: not measured" if one.is_from_cache else MISSING,
        )
        for one in comparison.noise_floor
    )
    return Table(head=head, rows=rows, label="Noise floor", marked=comparison.candidate)


def verdict_sentence(comparison: Comparison) -> str:
    """The finding, with what it rests on and what follows."""
    failed = [f"{name} was not compared: {why}." for name, why in comparison.not_compared.items()]
    return " ".join(filter(None, (*failed, _finding(comparison), *_hardly_read(comparison), comparison.advice)))


def _hardly_read(comparison: Comparison) -> Iterator[str]:
    """What the difference rests on where a side mostly could not be read, or did not always answer."""
    for row in comparison.programs:
        if row.name not in (comparison.candidate, comparison.reference) or row.name in comparison.not_compared:
            continue
        if row.n_parse_failures > row.n / 2:
            yield (
                f"Most answers of {row.name} could not be read ({row.n_parse_failures} of {row.n} are parse failures): "
                "the difference says so, not how good its answers are."
            )
        if row.n_failed:
            yield f"{row.n_failed} of {row.n} calls of {row.name} failed, which counts as not right."


def _finding(comparison: Comparison) -> str:
    one, metric = comparison.decisive, comparison.main_metric
    candidate, other = comparison.candidate, comparison.reference
    if candidate in comparison.not_compared or other in comparison.not_compared:
        return "There is no verdict." if other is None else f"There is no verdict on {candidate} against {other}."
    if one is None or other is None:
        own = comparison.row(candidate).scores[metric.name]
        return f"{candidate}: {metric.name} {with_interval(own)} on {own.n} items. There is nothing to compare it with."
    values = [figure(comparison.row(name).scores[metric.name].value) for name in (candidate, other)]
    n_others = len(comparison.programs) - 1
    who = f"{other}, the best of the {n_others} others" if comparison.is_reference_chosen and n_others > 1 else other
    p = p_text(one.p_holm)
    facts = (
        f"{metric.name} {values[0]} against {values[1]}, difference {_difference(comparison, one)}, "
        f"p {p if p.startswith('<') else '= ' + p}, n = {one.interval.n}"
    )
    if one.verdict == "better":
        return f"{candidate} is better than {who}: {facts}."
    if one.verdict == "worse":
        return f"{candidate} is worse than {who}: {facts}. Keep {other}."
    if one.verdict == "equivalent":
        others = f"{who}," if who != other else who
        return (
            f"{candidate} and {others} are equivalent within ±{comparison.margin:g}: {facts}. Choose the cheaper one."
        )
    return f"Undecided between {candidate} and {who}: {facts}. {_what_would_decide(one)}"


def _difference(comparison: Comparison, one: Difference) -> str:
    """The difference with its interval, and the interval's level where it is not the comparison's own."""
    text = with_interval(one.interval, sign=True)
    if one.interval.low is None or math.isclose(one.confidence, comparison.confidence):
        return text
    why = "two one-sided tests" if one.verdict == "equivalent" else "several programs are tested"
    return f"{text} ({_percent(one.confidence)} interval: {why})"


def _percent(confidence: float) -> str:
    """95%, 97.5%, 99.17%."""
    return f"{100 * confidence:.2f}".rstrip("0").rstrip(".") + "%"


def _what_would_decide(one: Difference) -> str:
    if one.n_more_items is None:
        return "No difference was seen, so no number of further items can be named that would show one."
    many = f"About {one.n_more_items:,}" if one.n_more_items > 1 else "A few"
    return f"{many} more items would decide in 4 of 5 cases, if the difference stays as seen."


def footnote(comparison: Comparison) -> str:
    """What the columns count."""
    by_wrong = next((one.name for one in comparison.metrics if one.kind == "proportion"), None)
    wrong = f"*wrong* counts answers that were read and are not right by {by_wrong}; " if by_wrong else ""
    return (
        f"{wrong}*parse failures* are answers that cannot be read, *failed* are calls that ended in an error: both "
        "count as not right in shares of right answers, and are left out of errors, losses and probability scores. "
        f"Brackets hold the {comparison.confidence:.0%} interval. A difference is better or worse exactly where its "
        "interval excludes zero: *p (Holm)* is corrected for the number of programs compared with the candidate, and "
        "the interval has the *level* at which Holm's procedure tests it."
    )
