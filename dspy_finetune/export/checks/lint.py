"""Look for what silently spoils training: shortcuts, imbalance, a lost system prompt, contradictory preferences.

In: a training file, or examples. Out: a `LintReport`: issues of the same kind as a check's, and the figures behind
them. `check` reports the same warnings; here are the figures, the system prompt, and the comparison with the prompt
that will be served.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspy_finetune._jsonl import MISSING, read_entries
from dspy_finetune.errors import FinetuneError, UsageError
from dspy_finetune.export.checks.checker import RowChecker
from dspy_finetune.export.checks.report import Issue, by_code, issue_of, issue_tables
from dspy_finetune.export.checks.shortcuts import (
    LintFigures,
    PairGraph,
    Sample,
    Sampled,
    choice_of,
    graph_of,
    measure,
    shortcuts,
)
from dspy_finetune.export.dataset import Manifest
from dspy_finetune.report.blocks import Facts, Section
from dspy_finetune.report.page import Reported
from dspy_finetune.tasks import sides_of

if TYPE_CHECKING:
    from dspy_finetune.prompts import PromptFormat
    from dspy_finetune.prompts.format import AnyPrompt

_LISTED = ("phrases", "styles")
"""The figures that are lists: each of their entries is an issue."""
_LABELS = ("preferred", "preference", "choice", "preferred_title", "label", "answer")


@dataclass(frozen=True, kw_only=True)
class LintReport(Reported):
    """What a lint found."""

    path: str | None
    """The file; None for examples."""
    issues: tuple[Issue, ...]
    """Issues of the whole set first, then by line."""
    figures: LintFigures
    """The figures behind them."""
    system_prompt: str | None
    """The system prompt that all rows share; the model must be served with it."""
    not_checked: tuple[str, ...] = ()
    """What could not be looked at, and why."""

    @property
    def ok(self) -> bool:
        """True where nothing graver than an info was found."""
        return all(issue.severity == "info" for issue in self.issues)

    @property
    def codes(self) -> frozenset[str]:
        """The codes that occur."""
        return frozenset(issue.code for issue in self.issues)

    def to_dict(self) -> dict[str, Any]:
        """The whole report, ready for JSON."""
        figures = {name: getattr(self.figures, name) for name in self.figures.__dataclass_fields__}
        for name in _LISTED:
            figures[name] = [vars(phrase) for phrase in figures[name]]
        return {
            "path": self.path,
            "ok": self.ok,
            "issues": [issue.to_dict() for issue in self.issues],
            "figures": figures,
            "system_prompt": self.system_prompt,
            "not_checked": list(self.not_checked),
        }

    def __str__(self) -> str:
        found = [f"  {issue}" for issue in self.issues]
        return "\n".join([self._head(), *found, *(f"  not checked: {reason}" for reason in self.not_checked)])

    def section(self) -> Section:
        """The blocks of a report: the count, a line per code, the figures."""
        figures = {
            name.removeprefix("n_").replace("_", " "): value
            for name, value in vars(self.figures).items()
            if name not in _LISTED
        }
        facts = {
            **{name: _figure(value) for name, value in figures.items() if value is not None},
            **({"system prompt": self.system_prompt} if self.system_prompt else {}),
        }
        counts = Counter(issue.code for issue in self.issues)
        return Section(
            title=f"Lint of {self.path or 'the examples'}",
            verdict=self._head(),
            outcome="equivalent" if self.ok else "worse",
            blocks=(*issue_tables(by_code(self.issues, counts)), Facts(facts=facts)),
            not_checked=self.not_checked,
        )

    def _head(self) -> str:
        n = len(self.issues)
        return f"{self.path or 'examples'}: {self.figures.n_rows:,} rows looked at, {n} issue{'s' if n != 1 else ''}"


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def lint(
    source: str | os.PathLike[str] | Iterable[Any], *, prompt: AnyPrompt | None = None, method: str | None = None
) -> LintReport:
    """Look for what silently spoils training.

    Args:
        source: A training file, or labelled pairs (examples or dicts with fields such as `title_a`, `title_b` and
        `preferred`),
            of which only the preferences are looked at.
        prompt: What the model will be asked with; rows that were written with another one are an error.
        method: `sft`, `dpo` or `rft`; None reads it off the file.

    Raises:
        FileError: The file cannot be read.
        UsageError: The method is unknown, or the source is neither a file nor examples.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _lint_examples(source)
    if prompt is not None:
        from dspy_finetune.prompts.format import as_prompt  # here: it loads dspy, which ready rows do not need

        prompt = as_prompt(prompt)
    checker = RowChecker(method=method, count=False)
    for line, value, _, raw, _ in read_entries(source):
        if value is not MISSING:
            checker.row(line or 1, value, len(raw))
    sample, labels = checker.texts()
    figures = measure(sample.rows, labels)
    system = sample.constant_system
    issues = [*shortcuts(figures, labels), *graph_of(sample.rows).issues()]
    not_checked: list[str] = []
    if system and sample.n_rows:
        found = f"all {sample.n_rows:,} rows have the system prompt {system!r}"
        issues.append(issue_of("constant-system-prompt", found))
    if prompt is not None:
        issues += _compare(source, sample, prompt, not_checked)
    if not sample.is_open:
        not_checked.append(f"rows behind line {sample.last_line}")
    ordered = sorted(issues, key=lambda found: (found.line or 0, found.severity != "error"))
    return LintReport(
        path=os.fspath(source),
        issues=tuple(ordered),
        figures=figures,
        system_prompt=system,
        not_checked=tuple(not_checked),
    )


def _compare(
    path: str | os.PathLike[str], sample: Sample, prompt: PromptFormat, not_checked: list[str]
) -> Iterable[Issue]:
    """The rows' prompt against the one that will be served: by the manifest's digest, and by the system's text."""
    manifest = Manifest.read(path)
    if manifest is not None and manifest.prompt_digest is not None and manifest.prompt_digest != prompt.digest:
        found = f"the manifest says prompt {manifest.prompt_digest[:12]}, the given one is {prompt.digest[:12]}"
        yield issue_of("prompt-mismatch", found)
    try:
        messages = prompt.messages(dict.fromkeys(prompt.input_fields, "x"))
    except FinetuneError as error:
        not_checked.append(f"the text of the prompt: it cannot be rendered without an example ({error})")
        return
    served = next((message["content"] for message in messages if message["role"] == "system"), None)
    if not sample.is_constant:
        yield issue_of("prompt-mismatch", "the rows have different system prompts; the given prompt has one")
    elif served != sample.system:
        found = f"the rows' system prompt is {_shown(sample.system)}, the given prompt's is {_shown(served)}"
        yield issue_of("prompt-mismatch", found)


def _shown(text: str | None) -> str:
    return "missing" if text is None else repr(text if len(text) <= 200 else text[:200] + "…")


def _lint_examples(examples: Iterable[Any]) -> LintReport:
    graph, sample, n_unread = PairGraph(), Sample(), 0
    for number, example in enumerate(examples, start=1):
        to_dict = getattr(example, "toDict", None)
        fields = to_dict() if callable(to_dict) else example
        if not isinstance(fields, Mapping):
            raise UsageError(f"row {number} is {type(example).__name__}; expected examples or dicts")
        pair = next(iter(sides_of(fields).items()), None)
        label = next((fields[name] for name in _LABELS if name in fields), None)
        if pair is None or label is None:
            n_unread += 1
            continue
        a, b = (str(fields[name]) for name in pair)
        choice = choice_of(str(label)) or {a: "A", b: "B"}.get(str(label))
        if choice is None:
            n_unread += 1
        else:
            graph.add(number, *((a, b) if choice == "A" else (b, a)))
            sample.add(number, f"A: {' '.join(a.split())}\nB: {' '.join(b.split())}", (choice,))
    figures = measure([Sampled(*row) for row in sample.rows], None)
    issues = (*shortcuts(figures, None), *graph.issues())
    unread = (f"{n_unread:,} examples without two texts and a choice between them",) if n_unread else ()
    return LintReport(path=None, issues=issues, figures=figures, system_prompt=None, not_checked=unread)
