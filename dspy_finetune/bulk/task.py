"""task.py: what a bulk run asks and where it writes: the same for every way of asking.

In: a program, a source of rows, an output. Out: a `Task`: the rows ready to be asked, the output's format, and what the
run is, in words that a later run with the same output is compared with. Nothing has been asked yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import dspy

from dspy_finetune.bulk.output import OutputFormat, output_format
from dspy_finetune.bulk.rows import Rows, dump_json, fingerprint, load_json
from dspy_finetune.data.sources import Format
from dspy_finetune.errors import UsageError
from dspy_finetune.predictors.base import FinetunedPredictor

_output_format = output_format  # the argument of the same name hides it


class RowOptions(TypedDict, total=False):
    """What `bulk.predict` says of rows and output, for the other ways of asking; see there."""

    keep: Literal["inputs", "all"] | Sequence[str]
    prefix: str
    rename: Mapping[str, str] | None
    format: Format | None
    split: str | None
    limit: int | None
    output_format: OutputFormat | None
    overwrite: bool


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked, and where the answers go."""

    rows: Rows
    """What is asked."""
    n_total: int | None
    """How many rows there are; None where that cannot be known beforehand. Lines of a text file."""
    output: Path
    """The file."""
    format: OutputFormat
    """Its format."""
    described: dict[str, Any]
    """What the run is, as JSON values without secrets: all of them must be the same when it is taken up again."""

    @classmethod
    def of(
        cls,
        program: Callable[..., Any],
        examples: Any,
        output: Path,
        *,
        kept_at: Path,
        inputs: Sequence[str] | None = None,
        keep: Literal["inputs", "all"] | Sequence[str] = "inputs",
        prefix: str = "",
        rename: Mapping[str, str] | None = None,
        format: Format | None = None,
        split: str | None = None,
        limit: int | None = None,
        output_format: OutputFormat | None = None,
        overwrite: bool = False,
    ) -> Task:
        """The arguments of `bulk.predict` made into a task; `kept_at` is where a run under way keeps its answers.

        Raises:
            UsageError: An argument is wrong, or the output is there already.
            FileError: The source cannot be read.
            MissingExtraError: Parquet without the extra `data`.
        """
        kind = _output_format(output, output_format)
        if output.exists() and not kept_at.exists() and not overwrite:
            raise UsageError(f"{output} is there already; choose another output, or overwrite=True replaces it")
        rows = Rows(
            program, examples, inputs=inputs, keep=keep, prefix=prefix, rename=rename, format=format, split=split,
            limit=limit,
        )  # fmt: skip
        marks = fingerprint(examples)
        kept = keep if isinstance(keep, str) else list(keep)
        settings = {"keep": kept, "prefix": prefix, "rename": dict(rename or {})}
        return cls(
            rows=rows,
            n_total=_n_total(examples, marks, limit),
            output=output,
            format=kind,
            described={**_describe(program), "input": marks.get("sha256"), "limit": limit, "settings": settings},
        )


def _describe(program: Any) -> dict[str, Any]:
    """What a program is: enough to refuse another one, and nothing secret.

    The state of a program that is not one of this library's predictors may hold headers with keys, so that only its
    hash is written. What a plain function does cannot be told: it goes by its name.
    """
    if isinstance(program, FinetunedPredictor):
        state = load_json(dump_json(program.dump_state()))
        del state["prompt"]  # its digest stands for it
        named = {"program": "predictor", "model": "model", "host": "host", "prompt": "prompt_digest"}
        return {name: state.pop(key) for name, key in named.items()} | {"options": state}
    kind = program if isinstance(program, type) or hasattr(program, "__qualname__") else type(program)
    saved = program.dump_state() if isinstance(program, dspy.Module) else None
    return {"program": f"{kind.__module__}.{kind.__qualname__}", "options": _hash(saved)}


def _hash(state: Any) -> str:
    return hashlib.sha256(dump_json(state)).hexdigest()


def _n_total(examples: Any, marks: Mapping[str, Any], limit: int | None) -> int | None:
    found: int | None = None
    if marks:
        suffix = Path(examples).suffix.lower()
        if suffix in (".jsonl", ".ndjson"):
            found = marks["n_lines"]
        elif suffix in (".csv", ".tsv", ".tab"):
            found = max(marks["n_lines"] - 1, 0)
    elif hasattr(examples, "__len__"):
        found = len(examples)
    if found is None:
        return None
    return found if limit is None else min(found, limit)
