"""A job's figures as a table: from its result file, or from its events while there is none.

In: the file's bytes (CSV, plain or in base64), or events. Out: a list of rows, one dict per step; blanks are None.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import csv
import io
import math
from collections.abc import Iterable
from typing import Any

from dspy_finetune.jobs.records import Event

Row = dict[str, int | float | str | None]


def parse_metrics(content: bytes) -> list[Row]:
    """Read a result file. OpenAI sends it in base64, others as it is; both are taken.

    Returns:
        One row per step, `step` as a whole number; empty if the file holds no table.

    >>> parse_metrics(b"step,train_loss,valid_loss\\n1,2.5,\\n")
    [{'step': 1, 'train_loss': 2.5, 'valid_loss': None}]
    """
    text = _text(content)
    rows = []
    # A file with NUL characters is no table; Python 3.10's reader would raise at them.
    for line in csv.DictReader(io.StringIO(text)) if "\0" not in text else ():
        row: Row = {name: _number(value) for name, value in line.items() if name}
        step = row.get("step")
        if isinstance(step, float):
            row["step"] = int(step)
        rows.append(row)
    return rows


def metrics_from_events(events: Iterable[Event]) -> list[Row]:
    """The same table from the metrics events, one row per step; a later event fills and replaces an earlier one's."""
    by_step: dict[Any, Row] = {}
    for event in events:
        step = event.data.get("step")
        if event.type != "metrics" or not isinstance(step, (int, float)):
            continue
        row = by_step.setdefault(int(step), {"step": int(step)})
        for name, value in event.data.items():
            if name not in {"step", "total_steps"} and isinstance(value, (int, float, str)):
                row[name] = value
    names = list(dict.fromkeys(name for row in by_step.values() for name in row))
    return [{name: row.get(name) for name in names} for _, row in sorted(by_step.items())]


def _text(content: bytes) -> str:
    plain = content.lstrip(b"\xef\xbb\xbf")
    if not plain.lstrip().startswith(b"step"):
        with contextlib.suppress(binascii.Error, ValueError):  # neither: read as it stands
            plain = base64.b64decode(b"".join(plain.split()), validate=True)
    return plain.decode("utf-8-sig", "replace")


def _number(value: str | list[str] | None) -> int | float | str | None:
    if not isinstance(value, str) or not value.strip():
        return None
    try:
        number = float(value)
    except ValueError:
        return value
    if not math.isfinite(number):
        return None
    is_whole = "." not in value and "e" not in value.lower()
    return int(number) if is_whole else number
