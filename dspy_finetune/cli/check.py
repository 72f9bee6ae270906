"""`dspy-finetune check`: every issue of a training file; a corrected copy; a look at the rows."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dspy_finetune.cli.app import out, print_json, say, talk
from dspy_finetune.errors import UsageError
from dspy_finetune.export.checks.checker import check
from dspy_finetune.export.checks.codes import CODES
from dspy_finetune.export.checks.fix import fix
from dspy_finetune.export.checks.show import show, visible
from dspy_finetune.export.dialects import DIALECTS


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("check")(check_command)


def check_command(
    file: Annotated[str, typer.Argument(help="The training file; - reads standard input.")],
    method: Annotated[str | None, typer.Option(help="sft, dpo or rft; read off the rows if left out.")] = None,
    model: Annotated[str | None, typer.Option(help="The base model, for its limits and token counts.")] = None,
    host: Annotated[str, typer.Option(help=f"Whose limits apply: {', '.join(DIALECTS)}, local.")] = "openai",
    validation: Annotated[Path | None, typer.Option(help="The validation file: checked as well, and compared.")] = None,
    fix_to: Annotated[
        Path | None, typer.Option("--fix", help="Write a corrected copy here; FILE is not touched.")
    ] = None,
    n_shown: Annotated[
        int, typer.Option("--show", min=0, help="Show this many rows, with what is trained marked.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Report every issue of a training file at once. Exits with 1 if there is an error.

    Example: dspy-finetune check train.jsonl --method sft --fix fixed.jsonl
    """
    with _file(file) as path:
        if fix_to is not None:
            fixed = fix(path, fix_to, method=method, base_model=model, host=host)
        report = check(path, method=method, base_model=model, host=host, validation=validation)
        if file == "-":
            report = dataclasses.replace(report, path="<stdin>")
        if as_json:
            result: dict[str, Any] = report.to_dict()
            if fix_to is not None:
                result["fix"] = fixed.to_dict()
            print_json(result)
        else:
            for row in show(path, n_shown, method=report.method) if n_shown else ():
                out().print(row, soft_wrap=True)
            say(visible(str(report)), indent=4)
            if fix_to is not None:
                say(visible(str(fixed)), indent=4)
            elif any(CODES[code].fixable for code in report.codes):
                talk().print("--fix OUT writes a corrected copy", style="dim")
    # A corrected copy is what was asked for: then its state decides, not that of the broken input.
    is_ok = report.ok if fix_to is None else fixed.ok
    if not is_ok:
        raise typer.Exit(1)


@contextlib.contextmanager
def _file(name: str) -> Iterator[Path]:
    """The file, or standard input in a file of its own: a check reads it more than once."""
    if name != "-":
        yield Path(name)
        return
    if sys.stdin.isatty():
        raise UsageError("- reads standard input, and nothing is piped in; name a file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdin.jsonl"
        with path.open("wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
        yield path
