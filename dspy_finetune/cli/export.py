"""`dspy-finetune check`, `export` and `convert`: training files: their issues, from labelled rows, to other formats."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dspy_finetune.cli.app import count_as_told, out, print_json, remark, say, talk
from dspy_finetune.cli.options import CellDelimiter, Decimal, one_of

if TYPE_CHECKING:
    from dspy_finetune.export import TrainingFile
    from dspy_finetune.prompts import PromptFormat
    from dspy_finetune.values import DecimalMark

DIALECTS = ("openai", "azure", "together", "fireworks", "nebius", "trl")
"""Formats of training files; by name, as the help shows them and must not wait for DSPy."""
Preset = Literal["binary", "pairwise", "explained_pairwise", "answer", "number"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("check")(check_command)
    app.command("export")(export)
    app.command("convert")(convert)


def export(
    method: Annotated[Literal["sft", "dpo"], typer.Argument(help="What the file trains.")],
    data: Annotated[str, typer.Argument(help="Rows: json, jsonl, csv, tsv, parquet, hf://owner/name, or - for stdin.")],
    to: Annotated[Path, typer.Option("--out", help="The JSONL file; its manifest goes beside it.")],
    preset: Annotated[Preset | None, typer.Option(help="A ready-made prompt.")] = None,
    prompt: Annotated[
        Path | None,
        typer.Option(help="A saved prompt: PromptFormat.to_dict as JSON, or a manifest that holds one."),
    ] = None,
    signature: Annotated[
        str | None,
        typer.Option(help='A DSPy signature, "headline -> liked: bool": your fields for the preset, or alone.'),
    ] = None,
    rubric: Annotated[
        str | None, typer.Option(help="Text for the preset's system message (of number: the task), or @FILE.")
    ] = None,
    currency: Annotated[
        str | None,
        typer.Option(
            help='With --preset number: the currency sign, "" for bare numbers; else as DATA has it, or $ for a price.'
        ),
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="With --preset number: the unit behind each number, such as MB or %.")
    ] = None,
    decimals: Annotated[
        int | None,
        typer.Option(help="With --preset number: digits after the point; without, as DATA has it, 2 at least.", min=0),
    ] = None,
    rename: Annotated[list[str] | None, typer.Option(help="old=new, for a column; may be repeated.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Count tokens and check limits for this model.")] = None,
    dialect: Annotated[str, typer.Option(help=f"{', '.join(DIALECTS)}.", autocompletion=one_of(*DIALECTS))] = "openai",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out and count them.")] = False,
    dedupe: Annotated[bool, typer.Option("--dedupe", help="Leave out lines that equal an earlier one.")] = False,
    split: Annotated[str | None, typer.Option(help="Split of a Hugging Face dataset.")] = None,
    file_format: Annotated[
        Literal["json", "jsonl", "csv", "tsv", "parquet"] | None,
        typer.Option("--format", help="What DATA is, where its name and first bytes do not tell."),
    ] = None,
    delimiter: CellDelimiter = None,
    decimal: Decimal = ".",
    limit: Annotated[int | None, typer.Option(help="Maximum number of rows.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Draws the rejected label where there are several (dpo).")] = 0,
    both_orders: Annotated[
        bool, typer.Option("--both-orders", help="Write every pair a second time with its sides exchanged.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest and the report as JSON.")] = False,
) -> None:
    """Write a training file from labelled rows, check it, and put a manifest beside it.

    Example: dspy-finetune export sft titles.csv --preset binary --signature "headline -> liked: bool" --out train.jsonl
    """
    # Loading and exporting bring dspy; --help must not wait for it.
    from dspy_finetune.data import iter_examples
    from dspy_finetune.export import export_dpo, export_sft

    reading: dict[str, Any] = {
        "rename": renames(rename or []),
        "format": file_format,
        "delimiter": delimiter,
        "split": split,
        "on_error": "skip" if skip_bad else "raise",
    }
    number: dict[str, Any] = {"currency": currency, "unit": unit, "decimals": decimals}
    form = prompt_named(preset, prompt, rubric, signature, **number)
    if preset == "number" and data != "-" and set(number.values()) == {None}:
        first = iter_examples(data, **reading, limit=min(limit or N_LOOKED_AT, N_LOOKED_AT))
        form = prompt_named(preset, prompt, rubric, signature, **number_of(first, form, decimal))
    examples = iter_examples(data, signature=form.signature, decimal=decimal, limit=limit, **reading)
    options: dict[str, Any] = {
        "base_model": base_model,
        "dialect": dialect,
        "on_error": "skip" if skip_bad else "raise",
        "dedupe": dedupe,
        "both_orders": both_orders,
    }
    if method == "sft":
        dataset = export_sft(examples, form, to, **options)
    else:
        dataset = export_dpo(examples, form, to, seed=seed, **options)
    if examples.n_skipped:
        talk().print(examples.summary(), highlight=False, markup=False, soft_wrap=True)
    show_dataset(dataset, as_json=as_json)


def convert(
    path: Annotated[Path, typer.Argument(help="The training file; it is never touched.")],
    copy: Annotated[Path, typer.Argument(metavar="OUT", help="The copy; its manifest goes beside it.")],
    to: Annotated[str, typer.Option(help=f"{', '.join(DIALECTS)}.", autocompletion=one_of(*DIALECTS))],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Refuse lines of another dialect; default: take each as what it is.",
            autocompletion=one_of(*DIALECTS),
        ),
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="Count tokens and check limits for this model.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines out and count them.")] = False,
    dedupe: Annotated[bool, typer.Option("--dedupe", help="Leave out lines that equal an earlier one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest and the report as JSON.")] = False,
) -> None:
    """Write a copy of a training file in another host's format.

    Example: dspy-finetune convert train.jsonl together.jsonl --to together
    """
    # Imported here: --help must not wait for the tokenizer and the checks.
    from dspy_finetune.export import convert as convert_file

    dataset = convert_file(
        path,
        copy,
        to=to,
        from_=from_,
        base_model=base_model,
        on_error="skip" if skip_bad else "raise",
        dedupe=dedupe,
    )
    show_dataset(dataset, as_json=as_json)


def show_dataset(dataset: TrainingFile, *, as_json: bool) -> None:
    """Print what was written; exits with 1 when the report has errors."""
    from dspy_finetune.export.checks.show import visible  # here: --help must not wait for the export's modules

    manifest = dataset.manifest
    if as_json:
        print_json({"path": str(dataset.path), "manifest": manifest.to_dict(), "report": dataset.report.to_dict()})
    else:
        tokens = "" if manifest.n_tokens is None else f", {manifest.n_tokens:,} tokens"
        lines = [f"{dataset.path}: {manifest.n_rows_out:,} rows{tokens} ({manifest.dialect} {manifest.method})"]
        if manifest.both_orders:
            lines.append("  every pair stands in both orders")
        lines += [f"  left out: {n:,} x {reason}" for reason, n in manifest.skipped.items()]
        lines += [f'  left behind: the key "{key}" of {n:,} rows' for key, n in manifest.left_behind.items()]
        # Not the console: it would wrap the lines of a report that is piped into a file.
        say(visible("\n".join([*lines, str(dataset.report)])), indent=4)
        count_as_told(dataset.warnings)
    if not dataset.report.ok:
        raise typer.Exit(1)


N_LOOKED_AT = 1000
"""Rows from which the unit and decimals of --preset number are told."""


def number_of(rows: Iterable[Any], form: PromptFormat, decimal: DecimalMark) -> dict[str, Any]:
    """How these rows' own numbers are written, as `prompt_named` takes it."""
    from dspy_finetune.data.fields import number_options

    name = next(iter(form.signature.output_fields))
    return number_options([row.get(name) for row in rows], name, decimal)


_RUBRIC_OF = {"answer": "system", "number": "task"}
"""What a preset without a rubric calls the text in its place."""


def prompt_named(
    preset: str | None, saved: Path | None, rubric: str | None, signature: str | None = None, **number: Any
) -> PromptFormat:
    """The prompt that `--preset`, `--signature` or `--prompt` names. Raises UsageError, FileError."""
    from dspy_finetune import prompts
    from dspy_finetune._files import read_json, read_text
    from dspy_finetune.errors import UsageError

    if (preset is None and signature is None) == (saved is None):
        raise UsageError("give --preset or --signature, or else --prompt: the rows are rendered by it")
    given = {name: value for name, value in number.items() if value is not None}
    if given and preset != "number":
        raise UsageError(f"--{next(iter(given))} says how --preset number writes its numbers")
    if "unit" in given:
        if "currency" in given:
            raise UsageError("give one of --currency and --unit: a number has one of them")
        given |= {"currency": given.pop("unit"), "position": "after"}
    if rubric is not None and rubric.startswith("@"):
        rubric = read_text(rubric[1:])
    if saved is not None:
        if rubric is not None:
            raise UsageError("--rubric belongs to --preset and --signature; a saved prompt holds its own")
        values = read_json(saved, "a saved prompt", "save one with PromptFormat.to_dict, or name a manifest")
        return prompts.PromptFormat.from_dict(values["prompt"] if isinstance(values.get("prompt"), dict) else values)
    options: dict[str, Any] = {} if rubric is None else {"rubric": rubric}
    if preset is None:
        assert signature is not None
        return prompts.PromptFormat(signature, **options)
    if rubric is not None:
        options = {_RUBRIC_OF.get(preset, "rubric"): rubric}
    made: PromptFormat = getattr(prompts, preset)(signature, **options, **given)
    return made


def renames(pairs: list[str]) -> dict[str, str]:
    """The columns of `--rename old=new`. Raises UsageError."""
    from dspy_finetune.errors import UsageError

    found = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise UsageError(f"--rename {pair}: write it as old=new, such as headline=title")
        found[old] = new
    return found


def check_command(
    file: Annotated[str, typer.Argument(help="The training file; - reads standard input.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="sft, dpo or rft; read off the rows if left out.", autocompletion=one_of("sft", "dpo", "rft")
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The base model, for its limits and token counts.")] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help=f"Whose limits apply: {', '.join(DIALECTS)}, local; openai without.",
            autocompletion=one_of(*DIALECTS, "local"),
        ),
    ] = None,
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
    # Here: --help must not wait for the export's modules.
    from dspy_finetune.export.checks.checker import check
    from dspy_finetune.export.checks.codes import CODES
    from dspy_finetune.export.checks.fix import fix
    from dspy_finetune.export.checks.show import show, visible

    limits = host or "openai"
    with _file(file) as path:
        if fix_to is not None:
            fixed = fix(path, fix_to, method=method, base_model=model, host=limits)
        report = check(path, method=method, base_model=model, host=limits, validation=validation)
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
    if host is None and not report.ok:
        remark("held to the limits of openai, as no host is named: --host local (or another) checks for that one")
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
        from dspy_finetune.errors import UsageError

        raise UsageError("- reads standard input, and nothing is piped in; name a file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdin.jsonl"
        with path.open("wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
        yield path
