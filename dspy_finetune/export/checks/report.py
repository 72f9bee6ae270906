"""What a check found: `Issue`, the figures of the file, and the `CheckReport` that holds both.

In: issues one at a time, through `IssueLog`. Out: frozen values that print as a short table, as JSON, and as a page.
Not covered: finding the issues (rules.py, checker.py, shortcuts.py) and their texts (codes.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dspy_finetune.export.checks.codes import CODES, Severity
from dspy_finetune.report.blocks import Block, Facts, Heading, Section, Table
from dspy_finetune.report.page import Reported

KEPT_PER_CODE = 1000
"""Issues kept of one code; the rest are counted, so that a wholly broken 500 MB file does not fill the memory."""

_ORDER: dict[str, int] = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, kw_only=True)
class Issue:
    """One fault: where it stands, what it is, and how to mend it."""

    line: int | None
    """Line of the file from 1; None where the fault belongs to the whole file."""
    path: str
    """Place inside the row, such as `messages[2].content`; empty for the whole row or file."""
    severity: Severity
    """`error`: the host refuses the file. `warning`: it trains worse than you think. `info`: worth knowing."""
    code: str
    """Stable name of the fault, listed in docs/troubleshooting.md."""
    message: str
    """What was found, in one line."""
    remedy: str
    """What to do next, in one line."""

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        place = _place(self)
        return f"{self.severity} [{self.code}] {place + ': ' if place else ''}{self.message}; {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class TokenStats:
    """Tokens of the rows, chat overhead included."""

    total: int
    """All rows together; what one epoch trains on."""
    min: int
    """The shortest row."""
    mean: float
    """Average per row."""
    p95: int
    """The smallest count that at least 95 % of the rows do not exceed (nearest rank)."""
    max: int
    """The longest row."""

    @classmethod
    def of(cls, counts: Counter[int]) -> TokenStats | None:
        """From a histogram (tokens -> rows); None where nothing was counted."""
        n = sum(counts.values())
        if not n:
            return None
        total = sum(tokens * rows for tokens, rows in counts.items())
        rank, seen, p95 = -(-95 * n // 100), 0, 0
        for p95 in sorted(counts):
            seen += counts[p95]
            if seen >= rank:
                break
        return cls(total=total, min=min(counts), mean=total / n, p95=p95, max=max(counts))

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class CheckStats:
    """Figures of a file."""

    n_rows: int
    """Rows that could be read."""
    size_bytes: int
    """Bytes of the file (of the rows, while it is being written)."""
    tokens: TokenStats | None
    """None where tokens were not counted: no table for the model, or `count=False`."""
    labels: dict[str, int] | None
    """How often each output occurs, most frequent first; None where the outputs are not a few labels."""
    roles: dict[str, int]
    """Messages per role; preferred and rejected outputs count as assistant."""

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class CheckReport(Reported):
    """Everything that one check found."""

    path: str | None
    """The file; None where rows were checked while they were written."""
    method: str | None
    """`sft`, `dpo` or `rft`: as given, or as the rows show; None where neither says."""
    host: str
    """Whose limits were applied."""
    base_model: str | None
    """The model whose limits and token table were applied."""
    issues: tuple[Issue, ...]
    """File issues first, then by line; at most 1000 of each code (`counts` has them all)."""
    counts: dict[str, int]
    """Issues per code, those not kept included."""
    stats: CheckStats
    """Figures of the file."""
    not_checked: tuple[str, ...] = ()
    """What this check could not look at, and why."""
    validation: CheckReport | None = None
    """The report of the validation file, where one was given."""

    @property
    def ok(self) -> bool:
        """True where neither this file nor its validation file has an error."""
        return not self.errors and (self.validation is None or self.validation.ok)

    @property
    def errors(self) -> tuple[Issue, ...]:
        """The issues that make the host refuse the file."""
        return tuple(issue for issue in self.issues if issue.severity == "error")

    @property
    def warnings(self) -> tuple[Issue, ...]:
        """The issues that spoil the training."""
        return tuple(issue for issue in self.issues if issue.severity == "warning")

    @property
    def codes(self) -> frozenset[str]:
        """The codes that occur."""
        return frozenset(self.counts)

    def to_dict(self) -> dict[str, Any]:
        """The whole report, ready for JSON."""
        return {
            "path": self.path,
            "ok": self.ok,
            "method": self.method,
            "host": self.host,
            "base_model": self.base_model,
            "counts": self.counts,
            "issues": [issue.to_dict() for issue in self.issues],
            "stats": self.stats.to_dict(),
            "not_checked": list(self.not_checked),
            "validation": self.validation.to_dict() if self.validation else None,
        }

    def head(self) -> str:
        """One line: the verdict and the figures."""
        n = Counter(dict.fromkeys(_ORDER, 0))
        for code, count in self.counts.items():
            n[CODES[code].severity] += count
        tokens = f", {self.stats.tokens.total:,} tokens" if self.stats.tokens else ""
        verdict = "ok" if not n["error"] else "not ok"
        found = ", ".join(f"{n[s]:,} {s}{'s' if n[s] != 1 else ''}" for s in ("error", "warning"))
        rows = f"{self.stats.n_rows:,} row{'s' if self.stats.n_rows != 1 else ''}"
        return f"{self.path or 'rows'}: {verdict}: {rows}{tokens}; {found}"

    def by_code(self) -> list[tuple[str, int, Issue]]:
        """(code, how often, its first issue), the gravest first."""
        return by_code(self.issues, self.counts)

    def __str__(self) -> str:
        lines = [self.head()]
        for code, count, issue in self.by_code():
            place = _place(issue)
            more = f" (and {count - 1:,} more)" if count > 1 else ""
            lines.append(f"  {issue.severity:<7} {code}: {place + ': ' if place else ''}{issue.message}{more}")
            lines.append(f"    -> {issue.remedy}")
        lines += [f"  not checked: {reason}" for reason in self.not_checked]
        if self.validation is not None:
            lines.append(str(self.validation))
        return "\n".join(lines)

    def section(self) -> Section:
        """The blocks of a report: the verdict, a line per code, the figures of the file, and the validation file's."""
        blocks: list[Block] = [*issue_tables(self.by_code()), Facts(facts=self._figures())]
        not_checked = list(self.not_checked)
        if self.validation is not None:
            held_out = self.validation
            blocks += [
                Heading(text=held_out.head()),
                *issue_tables(held_out.by_code()),
                Facts(facts=held_out._figures()),
            ]
            not_checked += [f"{held_out.path}: {reason}" for reason in held_out.not_checked]
        return Section(
            title=f"Check of {self.path or 'the rows'}",
            verdict=self.head(),
            outcome="equivalent" if self.ok else "worse",
            blocks=tuple(blocks),
            not_checked=tuple(not_checked),
        )

    def _figures(self) -> dict[str, str]:
        tokens, labels = self.stats.tokens, self.stats.labels
        figures = {
            "method": self.method,
            "host": self.host,
            "base model": self.base_model,
            "bytes": f"{self.stats.size_bytes:,}",
            "tokens per row": tokens
            and f"{tokens.min:,} to {tokens.max:,}, mean {tokens.mean:,.1f}, p95 {tokens.p95:,}",
            "labels": labels and ", ".join(f"{label}: {n:,}" for label, n in labels.items()),
            "messages": ", ".join(f"{role}: {n:,}" for role, n in self.stats.roles.items()),
        }
        return {name: value for name, value in figures.items() if value}


def issue_of(code: str, message: str, *, line: int | None = None, path: str = "", remedy: str | None = None) -> Issue:
    """An issue with severity and, unless given, remedy from the table of codes."""
    about = CODES[code]
    return Issue(
        line=line, path=path, severity=about.severity, code=code, message=message, remedy=remedy or about.remedy
    )


def by_code(issues: Iterable[Issue], counts: Mapping[str, int]) -> list[tuple[str, int, Issue]]:
    """(code, how often, its first issue), the gravest first."""
    first: dict[str, Issue] = {}
    for issue in issues:
        first.setdefault(issue.code, issue)
    rows = [(code, counts[code], issue) for code, issue in first.items()]
    return sorted(rows, key=lambda row: (_ORDER[row[2].severity], row[2].line or 0, row[0]))


def issue_tables(found: Iterable[tuple[str, int, Issue]]) -> tuple[Table, ...]:
    """The table of a report with a line for each code, as `by_code` gives them; none where there is no issue."""
    rows = tuple(
        (code, issue.severity, f"{n:,}", _place(issue), issue.message, issue.remedy) for code, n, issue in found
    )
    head = ("code", "severity", "n", "first at", "found", "remedy")
    return (Table(head=head, rows=rows, label="Issues, the gravest first", holds_text=True),) if rows else ()


def _place(issue: Issue) -> str:
    return " ".join(part for part in (f"line {issue.line}" if issue.line else "", issue.path) if part)


@dataclass
class IssueLog:
    """Collects issues, at most `KEPT_PER_CODE` of each code, and counts the rest."""

    kept: list[Issue] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    place: str = ""
    """Which row of its line is being checked, such as `[2]`; it begins the paths."""

    def add(self, line: int | None, path: str, code: str, message: str, *, remedy: str | None = None) -> None:
        """Record one issue; severity and, unless given, remedy come from the table of codes."""
        self.counts[code] += 1
        if self.counts[code] <= KEPT_PER_CODE:
            if self.place and line is not None:
                path = f"{self.place}.{path}" if path else self.place
            self.kept.append(issue_of(code, message, line=line, path=path, remedy=remedy))

    def extend(self, issues: Iterable[Issue]) -> None:
        """Record issues that were made elsewhere."""
        for issue in issues:
            self.add(issue.line, issue.path, issue.code, issue.message, remedy=issue.remedy)

    def issues(self) -> tuple[Issue, ...]:
        """The issues in the order of the file; those of the whole file first."""
        return tuple(sorted(self.kept, key=lambda issue: (issue.line or 0, _ORDER[issue.severity])))
