"""`Report`: a comparison that can say its verdict, print its table, and write itself as HTML, Markdown and JSON.

In: a `Comparison` (evaluation/), a title, cards of facts about the data and the prompt. Out: texts and files.
Not covered: statistics (evaluation/), and how things look (tables.py, plots.py, html.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dspy_finetune._files import atomic_writer, read_text, write_json
from dspy_finetune.errors import DataError
from dspy_finetune.evaluation.result import Comparison, Difference, ProgramRow, Verdict
from dspy_finetune.report import tables
from dspy_finetune.report.plots import NEAR, Curves, Training, loss_curves


@dataclass(frozen=True, kw_only=True)
class Report:
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

    @property
    def verdict(self) -> str:
        """The finding in one or two sentences."""
        return tables.verdict_sentence(self.comparison)

    @property
    def outcome(self) -> Verdict | None:
        """The finding in one word, seen from the candidate; None with a single program."""
        decisive = self.comparison.decisive
        return decisive.verdict if decisive is not None else None

    @property
    def exit_code(self) -> Literal[0, 3, 4]:
        """For a gate in CI: 0 better or equivalent (or nothing to compare with), 3 undecided, 4 worse."""
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
        return tables.as_text(tables.program_table(self.comparison))

    def __str__(self) -> str:
        return f"{self.title}\n{self.table()}\n{self.verdict}"

    def markdown(self) -> str:
        """The report as Markdown: all numbers, and the first items on which the programs disagree."""
        from dspy_finetune.report import markdown  # it reads this module's class

        return markdown.render(self)

    def html(self, *, training: Training | None = None) -> str:
        """The report as one HTML page, by default with its own loss curves.

        Raises:
            MissingExtraError: The extra `report` is not installed.
            HostError: A job in `training` cannot be asked for its figures.
        """
        # jinja2 and matplotlib are optional and slow to load.
        from dspy_finetune.report import html

        return html.render([self], title=self.title, training=self.training if training is None else training)

    def to_html(self, path: str | os.PathLike[str], *, training: Training | None = None) -> None:
        """Write one self-contained HTML file. Raises FileError, and as `html`."""
        page = self.html(training=training)
        with atomic_writer(path) as stream:
            stream.write(page.encode("utf-8", "replace"))

    def to_markdown(self, path: str | os.PathLike[str]) -> None:
        """Write the report as Markdown. Raises FileError."""
        text = self.markdown()
        with atomic_writer(path) as stream:
            stream.write(text.encode("utf-8", "replace"))

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
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
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
    def from_json(cls, path: str | os.PathLike[str]) -> Report:
        """Read a report that `to_json` wrote.

        Raises:
            FileError: The file cannot be read.
            DataError: It holds something else.
        """
        text = read_text(path).encode("utf-8")
        try:
            return cls.from_dict(_parse(text))
        except DataError as error:
            raise DataError(f"{os.fspath(path)}: {error}") from error

    def _repr_html_(self) -> str:
        return tables.as_html_fragment(self.title, self.comparison)


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise DataError(f"not JSON ({error})") from error
