"""`dspy-finetune run`: from a labelled file to a tuned model and a verdict: the other commands, one after the other.

Each step is a command of this package, printed before it runs, so that any of them can be repeated or changed by hand;
every file it writes is kept in one folder, in which one run is at work at a time. A step whose files stand as it left
them, made of what is there now, is not done again; a job that was started is found again.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspy_finetune._files import file_error, read_json, sha256_file, try_lock, write_json
from dspy_finetune.cli.app import build_app, print_json, remark, talk, telling_once, warn
from dspy_finetune.cli.main import INTERRUPTED
from dspy_finetune.cli.options import CellDelimiter, Decimal, HostText, host_named, inputs_of
from dspy_finetune.errors import DataError, FinetuneError, UsageError

if TYPE_CHECKING:
    from dspy_finetune.data.fields import Columns
    from dspy_finetune.values import DecimalMark

NOTE = "run.json"
"""The commands of a run, and whether it came to its end."""
_PRESETS = {"binary": "binary", "pairs": "pairwise", "number": "number", "text": "answer"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the run."""

    title: str
    """What it does."""
    arguments: tuple[str, ...]
    """After `dspy-finetune`."""
    files: tuple[Path, ...] = ()
    """What it reads and writes; empty for one that is always done."""

    def state(self) -> dict[str, Any] | None:
        """What its files hold now, as JSON; None where one is missing."""
        if not self.files or not all(path.is_file() for path in self.files):
            return None
        return {
            "version": importlib.metadata.version("dspy-finetune"),
            "files": {str(path): sha256_file(path) for path in self.files},
        }

    def __str__(self) -> str:
        return f"dspy-finetune {' '.join(map(_quoted, self.arguments))}"


def _quoted(argument: str) -> str:
    """As a shell takes it and a person reads it: a signature's Literal['A', 'B'] in double quotes."""
    is_plain = "'" in argument and not set(argument) & set('"$`\\!')
    return f'"{argument}"' if is_plain else shlex.quote(argument)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run)


def run(
    data: Annotated[Path, typer.Argument(help="Labelled rows: json, jsonl, csv, tsv or parquet.")],
    label: Annotated[
        str | None, typer.Option(help="The label's column, where it cannot be told from the rows.")
    ] = None,
    number: Annotated[str | None, typer.Option(help="The label's column, whose values are numbers (a price).")] = None,
    pairs: Annotated[
        str | None, typer.Option(help="The label's column, which says A or B of two input columns (title_a, title_b).")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="An input column; may be repeated.")] = None,
    group_by: Annotated[
        str | None,
        typer.Option("--group-by", help="Rows with equal values of this column stay on one side of the split."),
    ] = None,
    rubric: Annotated[str | None, typer.Option(help="What the labels mean, for the prompt; or @FILE.")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="The folder for all files; a new one in runs/.")] = None,
    model: Annotated[str | None, typer.Option(help="The model to tune; the host's usual one without.")] = None,
    host: HostText = "local",
    delimiter: CellDelimiter = None,
    decimal: Decimal = ".",
    fractions: Annotated[str, typer.Option(help="Shares of train, validation and test.")] = "0.8,0,0.2",
    max_usd: Annotated[float | None, typer.Option("--max-usd", help="Refuse a plan that costs more.", min=0.0)] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the split and the training.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands, and run none.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the commands and the files as JSON.")] = False,
) -> None:
    """Advise, split, export, train, compare and report, in one command; each step's own command is printed.

    Exits as `compare` does: 0 if the tuned model is better or equivalent, 3 if undecided, 4 if worse.

    Example: dspy-finetune run titles.csv --label liked
    """
    from dspy_finetune.data import load_examples  # here: --help must not wait for dspy
    from dspy_finetune.data.fields import check_decimal, guess_columns
    from dspy_finetune.evaluation.advise import has_value, only_label
    from dspy_finetune.evaluation.baselines import ENCODER, has_encoder
    from dspy_finetune.tasks import MAX_CHOICES
    from dspy_finetune.values import fold

    host_named(host)  # a misspelt one is told before the first step
    chosen = [name for name in (label, number, pairs) if name is not None]
    if len(chosen) > 1:
        raise UsageError("give one of --label, --number and --pairs: each names the label's column")
    examples = load_examples(data, delimiter=delimiter)
    columns = guess_columns(examples, label=chosen[0] if chosen else None, inputs=text or None, decimal=decimal)
    if number is not None:
        columns = replace(columns, task="number", labels=())
    if columns.task == "number":
        check_decimal([example.get(columns.label) for example in examples], columns.label, decimal)
    if pairs is not None and columns.task != "pairs":
        found = ", ".join(map(repr, columns.labels[:4])) or columns.why
        raise UsageError(
            f"--pairs {pairs}: no two input columns such as title_a and title_b stand beside it that its values name "
            f"({found})"
        )
    columns.check_fields(data)
    labels = {fold(str(example[columns.label])) for example in examples if has_value(example, columns.label)}
    if len(labels) == 1:
        raise DataError(only_label(columns.label, examples[0][columns.label]))
    cells: tuple[str, ...] = () if delimiter is None else ("--delimiter", delimiter)
    cells += () if decimal == "." else ("--decimal", decimal)
    split = ("--fractions", fractions, "--seed", str(seed), *(("--group-by", group_by) if group_by else ()), *cells)
    # Rows with equal inputs stay on one side, whatever else they hold; and a null would be refused as an input.
    split += tuple(part for name in columns.inputs for part in ("--text", name))
    training = [*(("--model", model) if model else ()), *(("--max-usd", str(max_usd)) if max_usd is not None else ())]
    training += ["--host", host, "--seed", str(seed)]
    if host == "local" and len(columns.labels) > MAX_CHOICES:
        training += ["--recipe", "head"]  # by itself it would be an adapter, which takes hours for as many
    has_validation = fractions.split(",")[1:2] not in (["0"], ["0.0"], [])

    def steps_in(folder: Path) -> list[Step]:
        made = plan_steps(
            columns,
            data,
            folder,
            meaning=[*prompt_options(columns, examples, decimal), *(() if rubric is None else ("--rubric", rubric))],
            split=split,
            training=[*training, *(("--root", str(folder / "host")) if host == "local" else ())],
            has_validation=has_validation,
            cells=cells,
            encoder=("--encoder", ENCODER) if host == "local" and has_encoder() else (),
            metrics=metric_options(columns, examples),
        )
        return list(made)

    about = f"{columns.why}; {inputs_of(columns, examples[0].keys())}"
    if dry_run:
        remark(about)
        folder = to or new_folder(data.stem)
        told = {"folder": str(folder), "columns": columns.why, "commands": [str(step) for step in steps_in(folder)]}
        if as_json:
            print_json(told)
        else:
            print("\n".join(told["commands"]))
        return
    with claimed(to, data.stem, steps_in) as (folder, steps):
        if as_json:
            told = {"folder": str(folder), "columns": columns.why, "commands": [str(step) for step in steps]}
            print_json(told)
        remark(about)
        code = follow(steps, folder, is_named=to is not None)
    if not as_json:
        print(f"\nEverything is in {folder}; the report: {folder / 'report.html'}")
        print("In Python:  import dspy_finetune as ft")
        print(f"            predictor = ft.load_predictor({str(folder / 'predictor.json')!r})")
    if code:
        raise typer.Exit(code)


def follow(steps: Sequence[Step], folder: Path, *, is_named: bool) -> int:
    """Run the commands; the last one's exit code. Whatever stops one says how to go on."""
    command = typer.main.get_command(build_app())
    console = talk()
    code = 0
    done = {name: state for name, state in _note(folder).get("done", {}).items() if name in map(str, steps)}
    again = "the same command" if is_named else f"the same command, or with --out {shlex.quote(str(folder))}"
    with telling_once():
        for position, step in enumerate(steps, start=1):
            console.print(f"\n{position}/{len(steps)} {step.title}", style="bold", highlight=False)
            console.print(f"$ {step}", highlight=False, soft_wrap=True, markup=False)
            if (state := step.state()) is not None and state == done.get(str(step)):
                console.print(f"done already: {', '.join(map(str, step.files[1:]))}", highlight=False, markup=False)
                continue
            at = f"stopped in step {position} of {len(steps)}"
            stopped = f"{at}: go on with {again}; a job that was started is found again"
            try:
                code = invoke(command, step)
            except FinetuneError:
                warn([stopped])
                raise
            sys.stdout.flush()  # in a log its results stand before the next step's heading, which goes to stderr
            if code == INTERRUPTED:  # typer makes this code of Ctrl-C
                if sys.stderr.isatty():
                    print(file=sys.stderr)  # the terminal has written ^C where the next line begins
                warn([stopped])
                raise typer.Exit(code)
            if code and position < len(steps):
                raise typer.Exit(code)
            if not code and (state := step.state()) is not None:
                done[str(step)] = state
                _write_note(folder, steps, done, is_finished=False)
    if code != 1:
        _write_note(folder, steps, done, is_finished=True)
    return code


@contextlib.contextmanager
def claimed(to: Path | None, name: str, steps_in: Callable[[Path], list[Step]]) -> Iterator[tuple[Path, list[Step]]]:
    """A folder in which no other run is at work, and the commands there.

    Without a name for it the one in which the same commands were stopped, else a new one.

    Raises:
        UsageError: Another run is at work in the folder that was named.
        FileError: It cannot be made, or written to.
    """

    def is_ours(path: Path) -> bool:
        return not path.exists() or was_stopped(path, steps_in(path))

    for folder in [to] if to is not None else names_of(name, is_ours):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise file_error(error, folder, "make") from error
        lock = try_lock(folder / f".{NOTE}.lock")
        if lock is not None:
            break
    else:
        raise UsageError(f"{to}: another run is at work in this folder; wait for it, or give another --out")
    steps = steps_in(folder)
    try:
        if to is None and (folder / NOTE).exists():
            remark(f"going on in {folder}, where the same command was stopped; --out NAME begins anew")
        _write_note(folder, steps, _note(folder).get("done", {}), is_finished=False)
        yield folder, steps
    finally:
        os.close(lock)


def was_stopped(folder: Path, steps: Sequence[Step]) -> bool:
    """Whether these very commands were begun in a folder and not ended."""
    told = _note(folder)
    return told.get("commands") == [str(step) for step in steps] and told.get("is_finished") is False


def _note(folder: Path) -> dict[str, Any]:
    """What is noted of the run in a folder; nothing where there is no note that can be read."""
    try:
        told = read_json(folder / NOTE, "the note of a run", "give another --out")
    except FinetuneError:
        return {}
    return told if isinstance(told.get("done", {}), dict) else {}


def _write_note(folder: Path, steps: Sequence[Step], done: dict[str, Any], *, is_finished: bool) -> None:
    write_json(folder / NOTE, {"commands": [str(step) for step in steps], "is_finished": is_finished, "done": done})


def plan_steps(
    columns: Columns,
    data: Path,
    folder: Path,
    *,
    meaning: Sequence[str],
    split: Sequence[str],
    training: Sequence[str],
    has_validation: bool,
    cells: Sequence[str] = (),
    encoder: Sequence[str] = (),
    metrics: Sequence[str] = (),
) -> Iterator[Step]:
    """The commands, in order."""
    from dspy_finetune.export.dataset import manifest_path  # here: --help must not wait for dspy

    rows, train = folder / "data", folder / "train.jsonl"
    told_in = tuple(Path(part[1:]) for part in meaning if part.startswith("@"))  # a rubric in a file
    signature = signature_text(columns)
    told = [part for name in columns.inputs for part in ("--text", name)]
    yield Step(
        title="Is it worth it?",
        arguments=(
            "advise",
            str(data),
            "--label",
            columns.label,
            *told,
            *cells,
            "--json-to",
            str(folder / "advice.json"),
        ),
        files=(data, folder / "advice.json"),
    )
    answer = ({"number": "--number", "pairs": "--pairs"}.get(columns.task, "--label"), columns.label)
    parts = ("train", *(("validation",) if has_validation else ()), "test")
    stratify = ("--stratify-by", columns.label) if columns.task in ("binary", "labels") else ()
    yield Step(
        title="Split",
        arguments=("split", str(data), "--out", str(rows), *split, *answer, *stratify),
        files=(data, *(rows / f"{name}.jsonl" for name in parts)),
    )
    # The preset asks for A or B, and compares fields that end in _a and _b; other names are a choice of two labels.
    is_preset = columns.task in _PRESETS and (columns.task != "pairs" or columns.is_a_or_b)
    preset = ("--preset", _PRESETS[columns.task]) if is_preset else ()
    # Without rows of its own to validate on, the local host holds some of the training rows out by itself.
    files = {"train": train} | ({"validation": folder / "validation.jsonl"} if has_validation else {})
    for name, to in files.items():
        yield Step(
            title=f"Write the {'training' if name == 'train' else name} file",
            arguments=(
                *("export", "sft", str(rows / f"{name}.jsonl"), *preset, "--signature", signature, *meaning),
                *("--out", str(to)),
            ),
            files=(rows / f"{name}.jsonl", *told_in, to, manifest_path(to)),
        )
    yield Step(
        title="Train",
        arguments=(
            *("train", str(train), *(("--validation", str(files["validation"])) if has_validation else ()), *training),
            *("--save", str(folder / "predictor.json")),
        ),
    )
    yield Step(
        title="Compare",
        arguments=(
            *("compare", str(rows / "test.jsonl"), "--program", f"tuned={folder / 'predictor.json'}"),
            *metrics,
            *("--train", str(rows / "train.jsonl"), *encoder, "--html", str(folder / "report.html")),
            *("--json-to", str(folder / "report.json")),
        ),
    )


MIN_RARE = 10
"""So many rows of the rarer label leave some to test on."""


def metric_options(columns: Columns, rows: Sequence[Any]) -> tuple[str, ...]:
    """What the programs are compared by, where the usual metric would hardly differ."""
    from dspy_finetune.evaluation.advise import RARE, has_value  # here: --help must not wait for dspy

    if columns.task == "text":  # of several words, which hardly ever are the expected ones to the letter
        return ("--metric", "token_f1", "--metric", "exact_match")
    labels = Counter(str(row[columns.label]).strip().casefold() for row in rows if has_value(row, columns.label))
    n_usual = max(labels.values(), default=0)
    # Always saying no is right in 98 % where 2 % are positive: how well the rows are ordered shows more.
    is_rare = columns.task == "binary" and n_usual >= RARE * labels.total() and labels.total() - n_usual >= MIN_RARE
    return ("--metric", "roc_auc", "--metric", "accuracy") if is_rare else ()


def prompt_options(columns: Columns, rows: Sequence[Any], decimal: DecimalMark) -> Iterator[str]:
    """What the export has to be told of the label's numbers: a currency or unit, and how many decimals."""
    from dspy_finetune.data.fields import number_options  # here: --help must not wait for dspy

    if columns.task == "number":
        cells = [row.get(columns.label) for row in rows]
        options = number_options(cells, columns.label, decimal)
        if options.pop("position", "before") == "after":
            options = {"unit": options.pop("currency"), **options}
        for name, value in options.items():
            yield from (f"--{name}", str(value))


def signature_text(columns: Columns) -> str:
    """The task as a DSPy signature in one line."""
    from dspy_finetune.data.fields import field_name  # here: --help must not wait for dspy

    kind = "" if columns.annotation == "str" else f": {columns.annotation}"
    return f"{', '.join(map(field_name, columns.inputs))} -> {field_name(columns.label)}{kind}"


def invoke(command: Callable[..., object], step: Step) -> int:
    """Run one command in this process, and give its exit code; errors pass through as they are."""
    try:
        code = command(list(step.arguments), prog_name="dspy-finetune", standalone_mode=False)
    except typer.Exit as stop:
        return int(stop.exit_code)
    return code if isinstance(code, int) else 0


def names_of(name: str, is_fit: Callable[[Path], bool]) -> Iterator[Path]:
    """runs/NAME, runs/NAME-2 and so on: those that fit."""
    base = Path("runs") / name
    names = (base if number == 1 else base.with_name(f"{name}-{number}") for number in itertools.count(1))
    return (path for path in names if is_fit(path))


def new_folder(name: str) -> Path:
    """runs/NAME, or the first runs/NAME-N that is not there yet."""
    return next(names_of(name, lambda path: not path.exists()))
