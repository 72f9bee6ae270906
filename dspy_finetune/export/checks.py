"""Check a training file: every issue at once, with line, place and remedy.

In: a path. Out: a `CheckReport`. `RowChecker` does the same for rows while they are written.
Not covered: what the host's moderation thinks of the texts, and whether the answers are right.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dspy_finetune.export.check_file import read_entries
from dspy_finetune.export.check_report import CheckReport, CheckStats, Issue, TokenStats
from dspy_finetune.export.check_text import MISSING
from dspy_finetune.export.dialects import DIALECTS
from dspy_finetune.export.row_checker import RowChecker, method_named

__all__ = ["CheckReport", "CheckStats", "Issue", "RowChecker", "TokenStats", "check", "method_named"]


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
        held = _check_file(theirs, validation, host)
    checker = RowChecker(**options)
    return _check_file(checker, path, host, validation=theirs, held=held)


def _check_file(
    checker: RowChecker,
    path: str | os.PathLike[str],
    host: str,
    *,
    validation: RowChecker | None = None,
    held: CheckReport | None = None,
) -> CheckReport:
    log, wants_bom, has_bom = checker.log, DIALECTS[host].bom if host in DIALECTS else False, False
    for line, value, raw, faults in read_entries(path):
        for fault in faults:
            has_bom = has_bom or fault.code == "bom"
            if fault.code != "bom" or not wants_bom:
                log.add(line, fault.path, fault.code, fault.message)
        if value is not MISSING:
            checker.row(line or 1, value, len(raw))
        elif line is not None and faults and faults[0].code != "blank-line":
            checker.unreadable()
    if wants_bom and not has_bom:
        log.add(None, "", "bom-missing", f"the file has no byte-order mark, which {host} asks for")
    if Path(path).suffix != ".jsonl" and host in ("openai", "azure"):
        log.add(None, "", "file-extension", f'the file\'s name ends in "{Path(path).suffix}"; only .jsonl is taken')
    if validation is not None:
        checker.seen.report_overlap(log, validation.seen)
    return checker.finish(size_bytes=os.path.getsize(path), path=os.fspath(path), validation=held)
