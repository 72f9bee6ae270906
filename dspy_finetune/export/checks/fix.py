"""Write a corrected copy of a training file, and say what was changed and what could not be.

In: a file in whatever state. Out: a copy with one row per line, and a `FixReport`. The input is never touched. Rows
without a fault are copied byte for byte; rows that cannot be read are left out and listed. Fixing a fixed file
changes nothing.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dspy_finetune._files import BOM, atomic_writer
from dspy_finetune._jsonl import MISSING, Entry
from dspy_finetune.catalog import load_catalog
from dspy_finetune.errors import UsageError
from dspy_finetune.export.checks.checker import check, entries_of, method_named
from dspy_finetune.export.checks.codes import CODES
from dspy_finetune.export.checks.mend import mend_row
from dspy_finetune.export.checks.report import KEPT_PER_CODE, CheckReport, IssueLog
from dspy_finetune.export.checks.rules import check_row
from dspy_finetune.export.dialects import DIALECTS, rules_of
from dspy_finetune.export.formats import METHOD_OF, sniff
from dspy_finetune.report.blocks import Block, Facts, Heading, Section, Table
from dspy_finetune.report.page import Reported


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that was done, or left out."""

    line: int | None
    """Line of the input; None for what was done to the whole file."""
    path: str
    """Place inside the row."""
    code: str
    """The code of the fault."""
    message: str
    """What was done, or why not."""

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{_place(self)}: [{self.code}] {self.message}"


@dataclass(frozen=True, kw_only=True)
class FixReport(Reported):
    """What a fix did."""

    source: str
    """The input."""
    out: str
    """The corrected copy."""
    changes: tuple[Change, ...]
    """What was changed, by line of the input; at most 1000 of each code."""
    left_out: tuple[Change, ...]
    """Lines that hold nothing that could be read as a row; at most 1000 of each code."""
    kept: tuple[Change, ...]
    """What was left as it is on purpose, and why: repeated rows without which the file would be too short."""
    counts: dict[str, int]
    """Changes per code, those not listed included."""
    n_rows: int
    """Rows of the copy."""
    report: CheckReport
    """The check of the copy: what is still wrong, by line of the copy."""

    @property
    def ok(self) -> bool:
        """True where the copy has no error and no row was left out."""
        return self.report.ok and not self.left_out

    def to_dict(self) -> dict[str, Any]:
        """The whole report, ready for JSON."""
        return {
            "source": self.source,
            "out": self.out,
            "ok": self.ok,
            "n_rows": self.n_rows,
            "counts": self.counts,
            "changes": [change.to_dict() for change in self.changes],
            "left_out": [change.to_dict() for change in self.left_out],
            "kept": [change.to_dict() for change in self.kept],
            "report": self.report.to_dict(),
        }

    def __str__(self) -> str:
        n = sum(self.counts.values())
        lines = [self._head()]
        lines += [f"  changed  {change}" for change in self.changes[:50]]
        if n > 50:
            lines.append(f"  changed  ... and {n - 50:,} more")
        lines += [f"  kept     {change}" for change in self.kept[:50]]
        lines += [f"  left out {change}" for change in self.left_out[:50]]
        if len(self.left_out) > 50:
            lines.append(f"  left out ... and {len(self.left_out) - 50:,} more")
        return "\n".join([*lines, str(self.report)])

    def section(self) -> Section:
        """The blocks of a report: what was changed, kept and left out, and the check of the copy."""
        blocks: list[Block] = []
        if self.counts:
            blocks.append(Facts(facts={code: f"{n:,}" for code, n in self.counts.items()}))
        kinds = (("changed", self.changes), ("kept", self.kept), ("left out", self.left_out))
        rows = tuple((what, _place(one), one.code, one.message) for what, done in kinds for one in done[:50])
        if rows:
            head = ("what", "where", "code", "message")
            blocks.append(Table(head=head, rows=rows, label="Changes, at most 50 of each kind", holds_text=True))
        checked = self.report.section()
        return Section(
            title=f"Fix of {self.source}",
            verdict=self._head(),
            outcome="equivalent" if self.ok else "worse",
            blocks=(*blocks, Heading(text=self.report.head()), *checked.blocks),
            not_checked=checked.not_checked,
        )

    def _head(self) -> str:
        n = sum(self.counts.values())
        return f"{self.source} -> {self.out}: {n:,} change{'s' if n != 1 else ''}, {self.n_rows:,} rows"


def _place(change: Change) -> str:
    return " ".join(part for part in (f"line {change.line}" if change.line else "file", change.path) if part)


class _Copy:
    """Takes the pieces of a file and gives the lines of the corrected one."""

    def __init__(self, *, method: str | None, host: str) -> None:
        self._method = method
        self._host, self._rules = host, rules_of(host)
        self._seen: dict[tuple[int, tuple[int, ...]], int] = {}
        facts = load_catalog().host(host)
        self.least = (facts.min_rows or 1) if facts is not None else 1
        self._spare: list[tuple[int | None, int, bytes]] = []
        self.n_rows = 0
        self._left: Counter[str] = Counter()
        self.wants_bom = host in DIALECTS and DIALECTS[host].bom
        self.has_bom = False
        self.changes: list[Change] = []
        self.left_out: list[Change] = []
        self.kept: list[Change] = []
        self.counts: Counter[str] = Counter()

    def change(self, line: int | None, path: str, code: str, message: str) -> None:
        self.counts[code] += 1
        if self.counts[code] <= KEPT_PER_CODE:
            self.changes.append(Change(line=line, path=path, code=code, message=message))

    def leave_out(self, line: int | None, code: str, message: str) -> None:
        self._left[code] += 1
        if self._left[code] <= KEPT_PER_CODE:
            self.left_out.append(Change(line=line, path="", code=code, message=message))

    def line(self, entry: Entry) -> bytes | None:
        """The line of the copy, or None where the piece gives none."""
        for fault in entry.faults:
            if fault.code == "bom" and self.wants_bom:
                self.has_bom = True
            elif CODES[fault.code].fixable:
                self.change(entry.line, fault.path, fault.code, f"mended: {fault.message}")
            elif entry.value is MISSING:
                self.leave_out(entry.line, fault.code, fault.message)
        return None if entry.value is MISSING else self._row(entry)

    def _row(self, entry: Entry) -> bytes | None:
        mended = mend_row(entry.value, self._method, self._rules)
        if not isinstance(mended.row, dict):
            self.leave_out(entry.line, "row-not-object", "the line is JSON, but not an object")
            return None
        if self._method is None:
            self._method = METHOD_OF.get(sniff(mended.row))
        for code, path, message in mended.changes:
            self.change(entry.line, path, code, message)
        line = entry.raw.rstrip(b"\r\n") if entry.raw and not mended.changes else _encode(mended.row)
        first = self._first_like(mended.row, entry.line or 1)
        if first is None:
            self.n_rows += 1
            return line
        if self.n_rows < self.least:
            self._spare.append((entry.line, first, line))
        else:
            self.change(entry.line, "", "duplicate-row", f"dropped: the same as line {first}")
        return None

    def spare_lines(self) -> Iterator[bytes]:
        """Repeated rows that the file needs: without them the host would refuse it as too short."""
        is_enough = self.n_rows + len(self._spare) >= self.least
        for line, first, row in self._spare:
            if self.n_rows >= self.least or not is_enough:
                self.change(line, "", "duplicate-row", f"dropped: the same as line {first}")
                continue
            self.n_rows += 1
            reason = f"kept: the same as line {first}, but without it fewer than {self.least} rows would be left"
            self.kept.append(Change(line=line, path="", code="duplicate-row", message=reason))
            yield row

    def _first_like(self, row: dict[str, Any], line: int) -> int | None:
        """The line of an equal row before, by the check's own measure of equality."""
        facts = check_row(IssueLog(), line, row, self._method or "sft", rules=self._rules)
        if facts is None:
            return None
        first = self._seen.setdefault((facts.prompt, facts.outputs), line)
        return first if first != line else None


def fix(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    method: str | None = None,
    base_model: str | None = None,
    host: str = "openai",
    count: bool = True,
) -> FixReport:
    """Write a corrected copy of a training file.

    Args:
        path: The file, in whatever state; it is not touched.
        out: The corrected copy; another file than `path`.
        method: `sft`, `dpo` or `rft`; None reads it off the first row.
        base_model: For the check of the copy.
        host: Whose file form is written: Azure's has a byte-order mark, TRL's keeps its own row formats.
        count: Count tokens in the check of the copy.

    Raises:
        FileError: The input cannot be read or the copy not written.
        UsageError: `out` is the input, or the method is unknown.
    """
    source, target = Path(path), Path(out)
    if source.resolve() == target.resolve() or (target.exists() and source.exists() and source.samefile(target)):
        raise UsageError(f"the corrected copy would overwrite its input, {source}; choose another name for it")
    copy = _Copy(method=method_named(method), host=host)
    with atomic_writer(target) as stream:
        if copy.wants_bom:
            stream.write(BOM)
        for entry in entries_of(source):
            line = copy.line(entry)
            if line is not None:
                stream.write(line + b"\n")
        stream.writelines(line + b"\n" for line in copy.spare_lines())
    if copy.wants_bom and not copy.has_bom:
        copy.change(None, "", "bom-missing", f"added the byte-order mark that {host} asks for")
    return FixReport(
        source=os.fspath(path),
        out=os.fspath(out),
        changes=tuple(sorted(copy.changes, key=lambda change: change.line or 0)),
        left_out=tuple(copy.left_out),
        kept=tuple(copy.kept),
        counts=dict(copy.counts),
        n_rows=copy.n_rows,
        report=check(target, method=method, base_model=base_model, host=host, count=count),
    )


def _encode(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        # Half of a surrogate pair has no bytes, only an escape.
        return json.dumps(row, separators=(",", ":")).encode("ascii")
