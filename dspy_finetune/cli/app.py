"""The commands put together, and how an error is told in one line.

Commands live in modules beside this one, alone or with those that belong to them; each module offers `register(app)`
and is named in COMMANDS.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

import dspy_finetune as ft
from dspy_finetune._files import json_text, read_text
from dspy_finetune._progress import is_quiet
from dspy_finetune.errors import DataError, FinetuneError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMANDS: tuple[str, ...] = (
    "quickstart",
    "run",
    "data",
    "doctor",
    "export",
    "serve",
    "predict",
    "compare",
    "curve",
    "train",
    "jobs",
    "hosts",
    "export_model",
    "migrate",
)
"""Modules of this package, in the order in which `--help` shows their commands."""


GROUPS = {
    "The rows": "--data --train --validation --test --examples --label --number --pairs --text --field --signature"
    " --delimiter --decimal --format --split --rename --limit --fractions --group-by --stratify-by --skip-bad --dedupe"
    " --keep --prefix --evaluate",
    "The prompt": "--unit --preset --prompt --rubric --both-orders",
    "The model and its training": "--model --base-model --method --epochs --batch-size --learning-rate-multiplier"
    " --learning-rate --lora-rank --full --beta --recipe --suffix --seed --metadata --wandb --allow-unknown-model"
    " --sizes --dialect --size",
    "Where it runs": "--host --root --env-file --from --to --lm --judge-host --threads --concurrency --jobs-at-once"
    " --timeout",
    "What it may cost": "--max-usd --allow-unknown-price --batch --calls --dry-run --new --no-wait --retry-failed",
    "What it is compared by": "--program --metric --judge --judge-rubric --embedder --encoder --reference --margin"
    " --subgroup --noise-floor --stored --no-compare",
    "What is written": "--example --out --save --html --markdown --plot --json --json-to --checkpoint --overwrite"
    " --folder --show --fix",
}
"""The options of a command by what they are about, as `--help` shows them where there are many."""
FEW_OPTIONS = 7
WIDE = 1000
"""Characters of a line where no terminal has a width."""


class GroupedCommand(TyperCommand):
    """A command whose help has its options in groups, and whose errors name a default of the user's own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click's."""
        with _naming_defaults(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """As click's."""
        with _naming_defaults(ctx):
            return super().invoke(ctx)

    def get_short_help_str(self, limit: int = WIDE) -> str:
        """The whole first sentence, which click would cut at the end of a line."""
        return super().get_short_help_str(WIDE)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """As click's, with a heading for each group."""
        records: dict[str, list[tuple[str, str]]] = {heading: [] for heading in ("Arguments", *GROUPS, "Options")}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            heading = next((one for one, names in GROUPS.items() if set(names.split()) & set(param.opts)), "Options")
            records["Arguments" if param.param_type_name == "argument" else heading].append(record)
        if sum(map(len, records.values())) - len(records["Arguments"]) <= FEW_OPTIONS:
            few = [one for heading in (*GROUPS, "Options") for one in records[heading]]
            records = {"Arguments": records["Arguments"], "Options": few}
        for heading, found in records.items():
            if found:
                with formatter.section(heading):
                    formatter.write_dl(found)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"dspy-finetune {ft.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def build_app() -> typer.Typer:
    """The whole command-line application."""
    app = typer.Typer(
        name="dspy-finetune",
        help="From labelled DSPy examples to a fine-tuned model inside a DSPy program, and an honest verdict.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        epilog="Anywhere on the line: --quiet for no progress and no remarks; --debug for the traceback of an error.",
    )
    app.callback()(_options)
    for name in COMMANDS:
        importlib.import_module(f"dspy_finetune.cli.{name}").register(app)
    for group in (app, *(found.typer_instance for found in app.registered_groups)):
        for command in group.registered_commands if group is not None else ():
            command.cls = GroupedCommand
    return app


def user_defaults(command: Any, path: Path) -> dict[str, Any]:
    """The user's own defaults of each command: environment variables, and `[tool.dspy-finetune]` of a pyproject.toml.

    A variable is named DSPY_FINETUNE_COMMAND_OPTION (DSPY_FINETUNE_TRAIN_HOST, DSPY_FINETUNE_JOBS_LIST_HOST) and wins
    over the file, whose tables are named as the commands (`train`, `jobs.list`) and hold options without their dashes.

    Raises:
        DataError: The file is no TOML.
        UsageError: The file names a command or an option that there is not.
    """
    return _defaults_below(command, _tables(path), path)


class _Defaults(dict[str, Any]):
    """One command's defaults; `places` says of each where it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, str] = {}


@contextlib.contextmanager
def _naming_defaults(context: Any) -> Iterator[None]:
    """To an error that speaks of an option, or of its value, is added where the default that it took stands."""
    try:
        yield
    except Exception as error:
        defaults = context.default_map
        text = str(error.format_message() if hasattr(error, "format_message") else error)
        for param in context.command.params if isinstance(defaults, _Defaults) else ():
            source = context.get_parameter_source(param.name)
            if param.name not in defaults or source is None or source.name != "DEFAULT_MAP":
                continue
            option = max(param.opts, key=len)
            values = [str(value) for value in _as_list(defaults[param.name]) if len(str(value)) > 1]
            word = re.escape(option.lstrip("-")).replace("\\-", "[-_]")
            if re.search(rf"\b{word}\b", text) or any(value in text for value in values):
                notes = getattr(error, "__notes__", [])
                error.__notes__ = [*notes, f"{option} is set by {defaults.places[param.name]}"]  # type: ignore[attr-defined]  # no method of Python 3.10
        raise


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _defaults_below(group: Any, tables: dict[str, Any], path: Path, words: tuple[str, ...] = ()) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for name, table in tables.items():
        if name not in group.commands or not isinstance(table, dict):
            known = ", ".join(group.commands)
            told = ".".join((*words, name))
            raise UsageError(f"{path}: [tool.dspy-finetune.{told}] names no command; the commands are {known}")
    for name, one in group.commands.items():
        below, given = (*words, name), tables.get(name, {})
        is_group = hasattr(one, "commands")
        found = _defaults_below(one, given, path, below) if is_group else _defaults_of(one, given, path, below)
        if found:
            defaults[name] = found
    return defaults


def _defaults_of(command: Any, given: dict[str, Any], path: Path, words: tuple[str, ...]) -> dict[str, Any]:
    options = {opt[2:]: param for param in command.params for opt in param.opts if opt[:2] == "--"}
    told = f"[tool.dspy-finetune.{'.'.join(words)}]"
    for option in given:
        if option not in options:
            raise UsageError(f"{path}: {told} has no option {option!r}; see {' '.join(words)} --help")
    defaults = _Defaults()
    for option, param in options.items():
        variable = "_".join(("dspy_finetune", *words, option)).upper().replace("-", "_")
        value = os.environ.get(variable, given.get(option))
        if value is not None:
            is_list = getattr(param, "multiple", False) and isinstance(value, str)
            defaults[param.name] = value.split(",") if is_list else value
            defaults.places[param.name] = variable if variable in os.environ else f"{told} of {path}"
    return defaults


def _tables(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    text = read_text(path)
    if "dspy-finetune" not in text:
        return {}
    try:
        return dict(tomllib.loads(text).get("tool", {}).get("dspy-finetune", {}))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: not TOML ({error}); mend it, or run the command in another folder") from error


def describe_error(error: Exception) -> tuple[str, int]:
    """One line for the user and the exit code: 2 for wrong usage, 1 for everything else."""
    if isinstance(error, FinetuneError):
        return f"error: {error}{notes_of(error)}", 2 if isinstance(error, UsageError) else 1
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"error: cannot write {error.filename or 'the output'}: {error.strerror}{notes_of(error)}", 1
    text = " ".join(str(error).split()) or "no message"
    return f"error: {type(error).__name__}: {text}{notes_of(error)} (run again with --debug to see where)", 1


def notes_of(error: Exception) -> str:
    """What was added to an error on its way: which default of the user's own it speaks of."""
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()))


def print_json(value: Any) -> None:
    """Print one JSON value on stdout: what `--json` gives."""
    print(json_text(value, default=str))


def talk() -> Console:
    """Where progress and remarks go: stderr, so that stdout holds results alone; nowhere with --quiet."""
    return Console(stderr=True, quiet=is_quiet(), **_size(sys.stderr), file=_unpadded(sys.stderr))


def out() -> Console:
    """Where results go: stdout."""
    return Console(**_size(sys.stdout), file=_unpadded(sys.stdout))


class _Unpadded:
    """A stream without the blanks that rich fills the cells of a table's last column with."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(re.sub(r" +(?=\n)", "", text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _unpadded(stream: Any) -> Any:
    return stream if stream.isatty() else _Unpadded(stream)


def _size(stream: Any) -> dict[str, Any]:
    """In a pipe or a file no line is broken and no id cut short."""
    if stream.isatty():
        # Rich takes a terminal without control codes for 80 columns, unless it is told the height, too.
        columns, lines = shutil.get_terminal_size()
        return {"width": columns, "height": lines}
    return {"width": None if "COLUMNS" in os.environ else WIDE, "height": None}


def fit(text: str, stream: Any, *, indent: int = 0) -> str:
    """Text as it is written to this stream: to a terminal with lines and tables of its width, elsewhere unchanged."""
    if not stream.isatty():
        return text
    from dspy_finetune.report.blocks import fitted  # here: --help must not wait for it

    return fitted(text, shutil.get_terminal_size().columns, indent=indent)


def say(text: str, *, indent: int = 0) -> None:
    """Print a result on stdout, in lines of the terminal's width."""
    print(fit(text, sys.stdout, indent=indent))


def remark(text: str, *, style: str = "", indent: int = 0) -> None:
    """Say something on stderr that --quiet leaves out, in lines of the terminal's width."""
    talk().print(fit(text, sys.stderr, indent=indent), style=style, highlight=False, soft_wrap=True, markup=False)


_told: ContextVar[set[str] | None] = ContextVar("told", default=None)


@contextlib.contextmanager
def telling_once() -> Iterator[None]:
    """Several commands in a row: what one has warned of, the next ones do not say again."""
    token = _told.set(set())
    try:
        yield
    finally:
        _told.reset(token)


def is_a_step() -> bool:
    """Whether this is one of several commands in a row, whose caller says how to go on."""
    return _told.get() is not None


def count_as_told(notes: Sequence[str]) -> None:
    """Warnings that were shown in another form."""
    told = _told.get()
    if told is not None:
        told.update(notes)


def warn(notes: Sequence[str]) -> None:
    """Warnings, on stderr; --quiet leaves them."""
    console = Console(stderr=True)
    for note in (one for one in notes if one not in (_told.get() or ())):
        text = fit(f"warning: {note}", sys.stderr, indent=2)
        console.print(text, style="yellow", highlight=False, soft_wrap=True, markup=False)
    count_as_told(notes)
