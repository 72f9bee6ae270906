"""Check a training file, or rows one by one while they are written: every issue at once, with line and remedy.

In: a path (`check`), or rows (`RowChecker`). Out: a `CheckReport`. Memory does not grow with the file: of each row two
hashes and its line number are kept, in a temporary file from 150,000 rows on; of each code at most 1000 issues, and for
the lint the texts of the first rows, up to a bound.

Tokens are counted where a base model or a tokenizer is named. Without one, rows for OpenAI and Azure are held to the
training context that all of their models share: only a row that may exceed it by its bytes is counted.
Not covered: what the host's moderation thinks of the texts, and whether the answers are right.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import IO, Any

from dspy_finetune._jsonl import MISSING, Entry, Fault, kind, read_entries
from dspy_finetune.catalog import Catalog, load_catalog
from dspy_finetune.errors import EmptyDatasetError, RowError, UsageError
from dspy_finetune.export.checks.codes import CODES, by_hand
from dspy_finetune.export.checks.mend import mend_row
from dspy_finetune.export.checks.report import KEPT_PER_CODE, CheckReport, CheckStats, IssueLog, TokenStats
from dspy_finetune.export.checks.rules import (
    RowFacts,
    check_row,
    pair_hash,
    plain_row,
    text_of,
)
from dspy_finetune.export.checks.shortcuts import EmptyInputs, Sample, lint_sample, may_lack
from dspy_finetune.export.dialects import DIALECTS, is_trained, rules_of
from dspy_finetune.export.formats import METHOD_OF, from_any, sniff
from dspy_finetune.export.tokens import TokenCounter, fast_counter

METHODS = {"sft": "sft", "supervised": "sft", "dpo": "dpo", "preference": "dpo", "rft": "rft", "reinforcement": "rft"}
"""The names of the methods: the library's and the hosts' own."""

_CONTEXT_OF = "gpt-4.1-mini-2025-04-14"
"""Its training context is that of every model OpenAI and Azure still train; rows are held to it where none is named."""
_MAX_RFT_ROWS = {"train": 50_000, "validation": 1_000}
_MAX_LABELS = 20
_MAX_LABEL_CHARS = 100


def method_named(method: str | None) -> str | None:
    """`sft`, `dpo`, `rft` or None, by any of the names in use. Raises UsageError."""
    if method is None:
        return None
    if method not in METHODS:
        raise UsageError(f'unknown method "{method}"; choose one of sft, dpo, rft')
    return METHODS[method]


class RowChecker:
    """Checks rows one by one; `finish` gives the report.

    >>> checker = RowChecker(method="sft")
    >>> for n in range(10):
    ...     question, answer = {"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}."}
    ...     checker.row(n + 1, {"messages": [question, answer]})
    >>> checker.finish().ok
    True
    """

    def __init__(
        self,
        *,
        method: str | None = None,
        base_model: str | None = None,
        host: str = "openai",
        role: str = "train",
        count: bool = True,
        tokenizer: Callable[[str], int] | None = None,
        lint: bool = True,
        catalog: Catalog | None = None,
    ) -> None:
        """Prepare a check.

        Args:
            method: `sft`, `dpo` or `rft`; None reads it off the first row.
            base_model: Whose limits apply and whose tokens are counted; an `ft:` id counts as its base.
            host: Whose limits apply: a name of the catalog; another host's name has no limits.
            role: `train` or `validation`, which have different limits.
            count: Count tokens, where a table or a tokenizer is known. Rows that come with their count are not
                counted again.
            tokenizer: Counts the tokens of a text, for models without a known table.
            lint: Look for what spoils training without being an error.
            catalog: Where the limits stand; the packaged one by default.
        """
        catalog = catalog or load_catalog()
        self._method = method_named(method)
        self._is_given = method is not None
        self._base_model, self._host, self._role = base_model, host, role
        self._rules = rules_of(host)
        self._has_order = self._rules.must_alternate or self._rules.is_system_first
        self._model_facts = catalog.model(base_model) if base_model is not None else None
        self._host_facts = catalog.host(host)
        self._model_methods = catalog.methods(base_model, host) if base_model is not None else None
        is_held = base_model is None and tokenizer is None and count and host in ("openai", "azure")
        self._context_of = _CONTEXT_OF if is_held else base_model
        limits = catalog.model(self._context_of) if self._context_of is not None else None
        self._limit = limits.train_context_tokens if limits is not None else None
        # No text has more tokens than bytes; half of the context leaves room for images, which have few.
        self._short_bytes = self._limit // 2 if is_held and self._limit is not None else None
        self._max_images = self._host_facts.max_images_per_row if self._host_facts is not None else None
        self._counter = fast_counter(base_model, tokenizer) if count else None
        self._long_counter: TokenCounter | None = None
        self._is_counting = count
        self._sample = Sample() if lint else None
        self._inputs = EmptyInputs()
        self.log = IssueLog()
        self.seen = SeenRows()
        self._shapes: Counter[tuple[str, ...]] = Counter()
        self._format: str | None = None  # of the first row that is not plain chat, where a host takes several
        self._tokens: Counter[int] = Counter()
        self._labels: dict[str, int] | None = {}
        self._is_table = False
        self._n_rows = self._n_unparseable = self._n_image_rows = self._size_bytes = 0

    def row(self, line: int, row: Any, raw_size: int = 0, *, n_tokens: int | None = None) -> None:
        """Check one row.

        Args:
            line: Its line in the file.
            row: The parsed row, in any shape: what is not an object is an issue.
            raw_size: Bytes of the line; 0 where it was not one plain line.
            n_tokens: Its tokens, where they have been counted already.
        """
        self._n_rows += 1
        self._size_bytes += raw_size
        if type(row) is not dict:
            remedy = 'wrap it: {"messages": [...]}' if isinstance(row, list) else None
            self.log.add(line, "", "row-not-object", f"the line is {kind(row)}, not an object", remedy=remedy)
            return
        if not self._plain_row(line, row):
            row = self._any_row(line, row)
        if n_tokens is not None:
            self._add_tokens(line, row, n_tokens)
        elif self._counter is not None:
            self._add_tokens(line, row, self._counter.row(row))
        elif self._short_bytes is not None and (raw_size or len(repr(row))) > self._short_bytes:
            self._hold_to_context(line, row)

    def _hold_to_context(self, line: int, row: dict[str, Any]) -> None:
        """Check the length of a row whose tokens are not to be counted in the figures."""
        self._long_counter = self._long_counter or fast_counter(self._context_of, None)
        assert self._long_counter is not None
        assert self._limit is not None
        n_tokens = self._long_counter.row(row)
        if n_tokens > self._limit:
            self._check_length(line, row, n_tokens)

    def _add_tokens(self, line: int, row: dict[str, Any], n_tokens: int) -> None:
        self._tokens[n_tokens] += 1
        if self._limit is not None and n_tokens > self._limit:
            self._check_length(line, row, n_tokens)

    def texts(self) -> tuple[Sample, dict[str, int] | None]:
        """What the lint looks at: the first rows' texts, and the labels of all rows."""
        return self._sample or Sample(), self._labels_found()

    def unparseable(self) -> None:
        """Count a line that is no row, so that it is not missed in the number of examples."""
        self._n_unparseable += 1

    def _plain_row(self, line: int, row: dict[str, Any]) -> bool:
        """Take a row of nothing but text, which has no fault; nearly all rows are such."""
        plain = plain_row(row, self._method)
        if plain is None:
            return False
        roles, prompt, output, question, system, answers = plain
        if self._format not in (None, "chat", "preference"):
            return False
        if self._has_order and not self._rules.takes_order(roles[: len(roles) - (self._method == "dpo")]):
            return False
        self._shapes[roles] += 1
        self.seen.add_hashes(line, prompt, output)
        self._count_label(answers[0])
        if (sample := self._sample) is not None:
            if sample.is_open:
                sample.add(line, question, answers)
            sample.add_system(system)
            if may_lack(question):
                self._inputs.note(line, question, self._question_path(roles))
        return True

    def _any_row(self, line: int, row: dict[str, Any]) -> dict[str, Any]:
        """Check a row of any kind; returns it in the host's spelling."""
        form = sniff(row)
        if self._method is None and form in METHOD_OF:
            self._method = METHOD_OF[form]
            if self._plain_row(line, row):
                return row
        method = self._method or "sft"
        found = IssueLog()
        facts = self._check(found, line, row, method)
        self._check_format(found, line, form, method)
        self._report(found, line, row, method)
        # A row in another spelling is told so, and then read as what it means: its other faults are worth knowing at
        # once.
        meant = row
        if METHOD_OF.get(form) == method and form not in ("chat", "preference"):
            try:
                meant = from_any(row)
            except RowError:  # the row is checked as it stands
                meant = row
            if facts is None and meant is not row:
                found = IssueLog()
                facts = self._check(found, line, meant, method)
                self._report(found, line, meant, method)
        if facts is not None:
            self._remember(line, facts)
        return meant

    def _check_format(self, log: IssueLog, line: int, form: str, method: str) -> None:
        """Where a host takes several formats, all rows of a file are in the format of the first."""
        own = "preference" if method == "dpo" else "chat"
        if not self._rules.formats or form not in (own, *self._rules.formats):
            return
        if self._format is None:
            self._format = own if self._shapes else form  # plain rows have come before
        if form != self._format:
            log.add(line, "", "mixed-formats", f"the row's format is {form}, that of the first row {self._format}")

    def _check(self, log: IssueLog, line: int, row: dict[str, Any], method: str) -> RowFacts | None:
        facts = check_row(
            log, line, row, method, rules=self._rules, is_given=self._is_given, max_images=self._max_images
        )
        if self._rules.check is not None and not any(issue.severity == "error" for issue in log.kept):
            try:
                self._rules.check(row, method)
            except UsageError as error:
                log.add(line, "", "host-refuses", str(error))
        return facts

    def _report(self, found: IssueLog, line: int, row: dict[str, Any], method: str) -> None:
        """Take a row's issues; what the fix cannot mend in it has a remedy for a person."""
        left: Counter[str] | None = None
        for issue in found.kept:
            remedy = issue.remedy
            if CODES[issue.code].fixable and self.log.counts[issue.code] < KEPT_PER_CODE:
                if left is None:
                    after = IssueLog()
                    mended = mend_row(row, method, self._rules)
                    self._check(after, line, mended.row, method)
                    left = after.counts
                remedy = by_hand(remedy) if left[issue.code] else remedy
            self.log.add(line, issue.path, issue.code, issue.message, remedy=remedy)
        for code, n in found.counts.items():
            self.log.counts[code] += max(0, n - KEPT_PER_CODE)

    def _remember(self, line: int, facts: RowFacts) -> None:
        self._shapes[tuple(facts.roles)] += 1
        self._n_image_rows += facts.n_images > 0
        self.seen.add(line, facts.prompt, facts.outputs)
        if facts.answers:
            self._count_label(facts.answers[0])
        if self._sample is not None:
            self._sample.add_system(facts.system)
            if self._sample.is_open and facts.answers:
                self._sample.add(line, facts.question, facts.answers)
            # A question that is blank as a whole is told by its message.
            if may_lack(facts.question) and facts.question.strip():
                self._inputs.note(line, facts.question, self._question_path(facts.roles))

    def _question_path(self, roles: Sequence[str]) -> str:
        """Where the last user message stands in a row of such roles."""
        at = max(i for i, role in enumerate(roles) if role == "user")
        return f"{'input.' if self._method == 'dpo' else ''}messages[{at}].content"

    def _count_label(self, text: str) -> None:
        labels = self._labels
        if labels is not None:
            labels[text] = labels.get(text, 0) + 1
            if len(labels) > _MAX_LABELS or len(text) > _MAX_LABEL_CHARS:
                self._labels = None

    def _check_length(self, line: int, row: dict[str, Any], n_tokens: int) -> None:
        limit, counter = self._limit, self._counter or self._long_counter or TokenCounter.for_model(self._context_of)
        assert limit is not None
        if counter is None:
            found = f"{n_tokens:,} tokens; the training context is {limit:,}: the last {n_tokens - limit:,} are cut off"
            self.log.add(line, "", "context-length", found)
            return
        outputs = [row[key] for key in ("preferred_output", "non_preferred_output") if isinstance(row.get(key), list)]
        if outputs:
            sizes = [counter.messages(output) - counter.messages([]) for output in outputs]
            # Each output is trained behind the prompt by itself: the longer of the two is what must fit.
            n_tokens, n_answer, path = n_tokens - sum(sizes) + max(sizes), max(sizes), ""
        else:
            messages = row.get("messages")
            messages = messages if isinstance(messages, list) else []
            at = [
                i
                for i, m in enumerate(messages)
                if isinstance(m, dict) and m.get("role") == "assistant" and is_trained(m)
            ]
            n_answer = counter.text(text_of(messages[at[-1]])) if at else 0
            path = f"messages[{at[-1]}]" if at else ""
        lost = n_tokens - limit
        if lost <= 0:
            return
        answer = "the whole answer among them" if lost >= n_answer else f"{lost:,} of the answer's {n_answer:,}"
        found = (
            f"{n_tokens:,} tokens; the training context is {limit:,}: the last {lost:,} tokens are cut off, {answer}"
        )
        self.log.add(line, path, "context-length", found)

    def finish(
        self, *, size_bytes: int | None = None, path: str | None = None, validation: CheckReport | None = None
    ) -> CheckReport:
        """Look at the rows together and give the report.

        Args:
            size_bytes: Of the file; None takes the sum of the rows' `raw_size`.
            path: Of the file, for the report's head.
            validation: The report of the validation file, to be held by this one.
        """
        size = self._size_bytes if size_bytes is None else size_bytes
        self._is_table = path is not None and self._host == "together" and Path(path).suffix == ".csv"
        if path is not None and self._rules.suffixes and Path(path).suffix not in self._rules.suffixes:
            taken = " and ".join(sorted(self._rules.suffixes))
            found = f'the file\'s name ends in "{Path(path).suffix}"; {self._host} takes {taken}'
            self.log.add(None, "", "file-extension", found)
        self._check_counts(size)
        self._check_model()
        self.seen.report(self.log, preferences=self._method == "dpo")
        self._keep_enough()
        if self._sample is not None:
            self.log.extend(lint_sample(self._sample, labels=self._labels_found()))
            self._inputs.report(self.log, [row.question for row in self._sample.rows])
        return CheckReport(
            path=path,
            method=self._method,
            host=self._host,
            base_model=self._base_model,
            issues=self.log.issues(),
            counts=dict(self.log.counts),
            stats=CheckStats(
                n_rows=self._n_rows,
                size_bytes=size,
                tokens=TokenStats.of(self._tokens),
                labels=self._labels_found(),
                roles=_roles(self._shapes),
            ),
            not_checked=tuple(self._not_checked()),
            validation=validation,
        )

    def _keep_enough(self) -> None:
        """Where the file would be too short without its repeated rows, the fix keeps them, and a person has to act."""
        least = (self._host_facts.min_rows or 1) if self._host_facts is not None else 1
        n = self._n_rows + self._n_unparseable
        if self._role == "train" and n - self.log.counts["duplicate-row"] < least <= n:
            remedy = f"put another example in its place: without it fewer than {least} rows are left"
            self.log.kept[:] = [
                replace(issue, remedy=remedy) if issue.code == "duplicate-row" else issue for issue in self.log.kept
            ]

    def _labels_found(self) -> dict[str, int] | None:
        # Ten different answers in ten rows are texts, not labels.
        labels = self._labels
        if not labels or 2 * len(labels) > sum(labels.values()):
            return None
        return dict(sorted(labels.items(), key=lambda item: (-item[1], item[0])))

    def _check_counts(self, size_bytes: int) -> None:
        n, host = self._n_rows + self._n_unparseable, self._host_facts
        least = host.min_rows if host is not None and host.min_rows is not None else 1
        most = host.max_rows if host is not None else None
        kind = "files"
        if self._method == "rft" and self._host in ("openai", "azure"):
            most, kind = _MAX_RFT_ROWS[self._role], f"reinforcement {self._role} files"
        if not n and "binary-file" not in self.log.counts:
            self.log.add(None, "", "empty-file", "the file holds no row")
        elif 0 < n < least and self._role == "train":
            found = f"the file has {n} example{'s' if n != 1 else ''}; {self._host} takes at least {least}"
            self.log.add(None, "", "too-few-examples", found)
        if most is not None and n > most:
            found = f"the file has {n:,} examples; {kind} take at most {most:,}"
            self.log.add(None, "", "too-many-examples", found)
        if host is None:
            return
        if host.max_file_bytes is not None and size_bytes > host.max_file_bytes:
            most_mb = host.max_file_bytes >> 20
            found = f"the file has {size_bytes / (1 << 20):,.0f} MB; {self._host} takes at most {most_mb:,} MB"
            self.log.add(None, "", "file-too-large", found)
        if host.max_image_rows is not None and self._n_image_rows > host.max_image_rows:
            found = f"{self._n_image_rows:,} examples hold images; at most {host.max_image_rows:,} are taken"
            self.log.add(None, "", "too-many-images", found)

    def _check_model(self) -> None:
        model, facts = self._base_model, self._model_facts
        if model is None:
            return
        methods = self._model_methods
        if methods is not None and self._method is not None and self._method not in methods:
            can = ", ".join(methods) or "nothing"
            self.log.add(None, "", "model-method", f"{self._host} trains {model} by {can}, not by {self._method}")
        if facts is None:
            if methods is None and self._host in ("openai", "azure"):
                self.log.add(None, "", "model-unknown", f"the model {model!r:.100} is not in the catalog")
            return
        if facts.host != self._host:
            return
        if self._n_image_rows and not facts.has_vision:
            self.log.add(
                None, "", "model-no-images", f"{self._n_image_rows:,} rows hold images, and {model} takes none"
            )
        if facts.shutdown_date is not None and facts.shutdown_date <= date.today():
            self.log.add(None, "", "model-shut-down", f"{model} was shut down on {facts.shutdown_date}")

    def _not_checked(self) -> list[str]:
        reasons, model = [], self._base_model
        if self._host_facts is None:
            reasons.append(f"size and number of rows: no limits of a host {self._host!r:.60} are known")
        if not self._tokens and self._n_rows:
            why = "no base model is named" if model is None else f"no token table is known for {model}"
            if self._short_bytes is None:
                why = why if self._is_counting else "counting was switched off"
                reasons.append(f"tokens and context length: {why}")
            else:
                reasons.append(f"tokens: {why} (rows are held to the training context of {self._context_of})")
        elif self._limit is None and self._n_rows:
            reasons.append("context length: the model's training context is not known")
        if self._is_table:
            reasons.append("CSV for training: Together's client takes CSV for evaluations; `--fix OUT` writes JSONL")
        if self._sample is not None and not self._sample.is_open:
            reasons.append(f"shortcuts and preference cycles behind line {self._sample.last_line}")
        return reasons


def check(
    path: str | os.PathLike[str],
    *,
    method: str | None = None,
    base_model: str | None = None,
    host: str = "openai",
    validation: str | os.PathLike[str] | None = None,
    count: bool = True,
    tokenizer: Callable[[str], int] | None = None,
    lint: bool = True,
) -> CheckReport:
    """Report every issue of a training file at once.

    Args:
        path: The file, in whatever state.
        method: `sft`, `dpo` or `rft`; None reads it off the first row.
        base_model: Whose limits apply and whose tokens are counted. None counts none; for OpenAI and Azure, rows are
            then held to the training context that their models share.
        host: Whose limits apply: `openai`, `azure`, `fireworks`, `together`, `trl`, `local` or any other name.
        validation: The validation file: it is checked as well, and compared with this one.
        count: Count tokens where a model or a tokenizer is named; the slow half of a check.
        tokenizer: Counts the tokens of a text, for models without a known table.
        lint: Look for what spoils training without being an error.

    Raises:
        FileError: A file cannot be read.
        UsageError: The method is unknown.
    """
    held: CheckReport | None = None
    theirs: RowChecker | None = None
    options: dict[str, Any] = {"method": method, "base_model": base_model, "host": host, "count": count}
    options |= {"tokenizer": tokenizer, "lint": lint}
    if validation is not None:
        theirs = RowChecker(role="validation", **options)
        held = check_file(theirs, validation, host)
    checker = RowChecker(**options)
    return check_file(checker, path, host, validation=theirs, held=held)


def entries_of(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """Every piece of a file; a CSV file's rows are those of its lines, with their cells as texts.

    Raises:
        FileError: The file cannot be opened or read.
    """
    if Path(path).suffix.lower() not in (".csv", ".tsv"):
        yield from read_entries(path)
        return
    from dspy_finetune.data.readers import open_source  # lazy: only a table needs the loader

    yield Entry(None, MISSING, (Fault(code="csv-file", message="the file is CSV"),))
    try:
        for line, row in open_source(path, format=None, split=None).rows:
            if isinstance(row, RowError):
                yield Entry(line, MISSING, (Fault(code="csv-row", message=row.problem, remedy=row.remedy or ""),))
            else:
                yield Entry(line, row)
    except RowError as error:  # a header that cannot be trusted, a quote that never closes
        found = Fault(code="csv-row", message=error.problem, remedy=error.remedy or "")
        yield Entry(error.line or 1, MISSING, (found,))
    except EmptyDatasetError:
        return


def check_file(
    checker: RowChecker,
    path: str | os.PathLike[str],
    host: str,
    *,
    validation: RowChecker | None = None,
    held: CheckReport | None = None,
) -> CheckReport:
    """Give a checker all rows of a file, and its report. Raises FileError."""
    log, wants_bom, has_bom = checker.log, DIALECTS[host].bom if host in DIALECTS else False, False
    for line, value, faults, raw, place in entries_of(path):
        log.place = place
        for fault in faults:
            has_bom = has_bom or fault.code == "bom"
            is_taken = (fault.code == "bom" and wants_bom) or (fault.code == "csv-file" and host == "together")
            if not is_taken:
                log.add(line, fault.path, fault.code, fault.message)
        if value is not MISSING:
            checker.row(line or 1, value, len(raw))
        elif line is not None and faults and faults[0].code != "blank-line":
            checker.unparseable()
    log.place = ""
    if wants_bom and not has_bom:
        log.add(None, "", "bom-missing", f"the file has no byte-order mark, which {host} asks for")
    if validation is not None:
        checker.seen.report_overlap(log, validation.seen)
    return checker.finish(size_bytes=os.path.getsize(path), path=os.fspath(path), validation=held)


def _roles(shapes: Counter[tuple[str, ...]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for roles, n in shapes.items():
        for role in roles:
            counts[role] += n
    return dict(counts.most_common())


# Between rows: duplicates, contradictions, rows on both sides of a split.
#
# In: two 64-bit hashes and a line number per row. Out: issues. Memory is bounded: beyond `_IN_MEMORY` rows the hashes
# (20 bytes a row) wait in a temporary file, and the rows that may stand twice are looked at some at a time. Hashes are
# Python's own, keyed anew in each process; two different rows of two million meet by chance once in ten million files.

_IN_MEMORY = 150_000
"""Rows whose hashes are kept in memory: 3 MB, and as much again while they are read back. A file of no more is first
asked as a whole whether any prompt stands twice: sets of the hashes take 5 MB.
"""
_AT_ONCE = 30_000
"""Repeated rows whose hashes are compared together: their dicts take up to 10 MB, those of two million 500 MB."""
_MARKS = 1 << 22
"""Most bytes of the marks that tell which prompts may stand twice."""

Seen = tuple[int, int, int]
"""A row: the hash of its prompt, that of its output, its line."""


class SeenRows:
    """The hashes of the rows seen so far."""

    def __init__(self) -> None:
        self._columns = _columns()
        self._spilled: IO[bytes] | None = None
        self._pieces: list[int] = []  # rows of each piece of the temporary file

    def __len__(self) -> int:
        return sum(self._pieces) + len(self._columns[0])

    def add(self, line: int, prompt: int, outputs: tuple[int, ...]) -> None:
        """Remember a row: the hashes of its prompt, and of its output or of the preferred and the rejected one."""
        self.add_hashes(line, prompt, pair_hash(*outputs) if len(outputs) == 2 else outputs[0] if outputs else 0)

    def add_hashes(self, line: int, prompt: int, output: int) -> None:
        """Remember a row whose outputs are one hash already."""
        prompts, answers, lines = self._columns
        prompts.append(prompt)
        answers.append(output)
        lines.append(line & 0xFFFFFFFF)
        if len(prompts) >= _IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        # Without room for a temporary file the hashes stay where they are: the check goes on, in more memory.
        with contextlib.suppress(OSError):
            if self._spilled is None:
                self._spilled = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the rows
                weakref.finalize(self, self._spilled.close)
            self._spilled.seek(20 * sum(self._pieces))
            for column in self._columns:
                self._spilled.write(column.tobytes())
            self._spilled.flush()
            self._pieces.append(len(self._columns[0]))
            self._columns = _columns()

    def _parts(self) -> Iterator[tuple[array[int], array[int], array[int]]]:
        """The columns, piece by piece, in the order of the rows."""
        if self._spilled is not None:
            self._spilled.seek(0)
            for n in self._pieces:
                columns = _columns()
                for column in columns:
                    column.frombytes(self._spilled.read(n * column.itemsize))
                yield columns
        yield self._columns

    def _prompts(self) -> Iterator[int]:
        for prompts, _, _ in self._parts():
            yield from prompts

    def _rows(self, marks: _Marks, bucket: int, n_buckets: int) -> Iterator[Seen]:
        """Those rows of a bucket whose prompts stand twice, but for a few that do not."""
        return (
            (prompt, output, line)
            for part in self._parts()
            for prompt, output, line in zip(*part, strict=True)
            if prompt % n_buckets == bucket and marks.is_repeated(prompt)
        )

    def report(self, log: IssueLog, *, preferences: bool) -> None:
        """Report duplicates and contradictions."""
        if not self._pieces and _are_distinct(self._columns[0]):
            return
        marks, n_buckets = _repeated(self)
        for bucket in range(n_buckets):
            _report_rows(log, self._rows(marks, bucket, n_buckets), preferences=preferences)

    def report_overlap(self, log: IssueLog, validation: SeenRows) -> None:
        """Report the rows and prompts that are in the validation rows as well."""
        marks, n_buckets = _repeated(self, validation)
        for bucket in range(n_buckets):
            _report_overlap(log, self._rows(marks, bucket, n_buckets), validation._rows(marks, bucket, n_buckets))


def _are_distinct(hashes: array[int]) -> bool:
    """Whether no hash stands twice; a half at a time, which takes half the memory of a set of all."""
    middle = len(hashes) // 2
    first = set(hashes[:middle])
    if len(first) < middle or not first.isdisjoint(hashes[middle:]):
        return False
    del first
    return len(set(hashes[middle:])) == len(hashes) - middle


def _repeated(*sets: SeenRows) -> tuple[_Marks, int]:
    """Marks that tell which prompts stand twice, and in how many parts to look at their rows one after the other.

    Marked twice over: of a million different prompts some 60,000 share a slot of the first marks, and a hundred of
    those one of the second, which other bits of the hash name.
    """
    first = _Marks(sum(map(len, sets)))
    n_shared = sum([first.add(rows._prompts()) for rows in sets])
    if not n_shared:
        return first, 0
    second = _Marks(4 * n_shared, shift=32)
    n_repeated = sum([second.add(filter(first.is_repeated, rows._prompts())) for rows in sets])
    # The first row of each repeated prompt was not counted.
    return second, 2 * n_repeated // _AT_ONCE + 1 if n_repeated else 0


class _Marks:
    """Two bits for each of some slots; a prompt's hash, from the bit `shift` on, names its slot.

    Different prompts may share a slot, and then look repeated: marks say which prompts need no closer look.
    """

    def __init__(self, n_rows: int, *, shift: int = 0) -> None:
        size = 1
        while size < min(4 * n_rows, _MARKS):
            size *= 2
        self._bits = bytearray(size)
        self._mask = size - 1
        self._shift = shift

    def add(self, prompts: Iterable[int]) -> int:
        """Mark prompts; how many of them found their slot marked."""
        bits, mask, shift, n_repeated = self._bits, self._mask, self._shift, 0
        for prompt in prompts:
            prompt >>= shift
            # Four slots to a byte, two bits each: seen, and seen again.
            at, seen = (prompt >> 2) & mask, 1 << ((prompt & 3) << 1)
            found = bits[at]
            if found & seen:
                n_repeated += 1
                bits[at] = found | seen << 1
            else:
                bits[at] = found | seen
        return n_repeated

    def is_repeated(self, prompt: int) -> bool:
        """Whether a prompt's slot was marked twice."""
        prompt >>= self._shift
        return bool(self._bits[(prompt >> 2) & self._mask] & 2 << ((prompt & 3) << 1))


def _columns() -> tuple[array[int], array[int], array[int]]:
    return array("q"), array("q"), array("I")


def _report_rows(log: IssueLog, rows: Iterable[Seen], *, preferences: bool) -> None:
    groups: dict[int, dict[int, int]] = {}
    for prompt, output, line in rows:
        group = groups.setdefault(prompt, {})
        if output in group:
            log.add(line, "", "duplicate-row", f"the row is the same as line {group[output]}")
            continue
        if preferences and output ^ 1 in group:
            found = f"the outputs that line {group[output ^ 1]} prefers and rejects are reversed here"
            log.add(line, "", "preference-reversed", found)
        elif group and not preferences:
            first = next(iter(group.values()))
            log.add(line, "", "conflicting-rows", f"line {first} has the same prompt and another output")
        group[output] = line


def _report_overlap(log: IssueLog, mine: Iterable[Seen], theirs: Iterable[Seen]) -> None:
    known: dict[int, dict[int, int]] = {}
    for prompt, output, line in theirs:
        known.setdefault(prompt, {}).setdefault(output, line)
    for prompt, output, line in mine:
        outputs = known.get(prompt)
        if outputs is None:
            continue
        same = outputs.get(output)
        if same is not None:
            found = f"the row is also line {same} of the validation file"
            log.add(line, "", "train-validation-overlap", found)
        else:
            first = next(iter(outputs.values()))
            found = f"line {first} of the validation file has the same prompt and another output"
            log.add(line, "", "train-validation-same-prompt", found)
