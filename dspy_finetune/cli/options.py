"""What several commands share: their common options, keys from a `.env` file, hosts and metrics by name.

In: options of the command line. Out: the environment, a Host, a metric. A judge is always named by the user: there is
none by default. A `.env` file holds lines `NAME=value`, read by python-dotenv:

    # a comment; blank lines are passed over
    OPENAI_API_KEY=sk-...
    export AZURE_OPENAI_API_KEY="in quotes: # and blanks are part of the value"

A variable that is set already keeps its value: the environment wins over the file. Nothing in a value is expanded.
Not covered: what the metrics compute (evaluation/metrics.py).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import dspy_finetune as ft
from dspy_finetune._files import file_error, read_text
from dspy_finetune._optional import require
from dspy_finetune.errors import FileError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.host import NAMED_HOSTS, OWN_APIS

if TYPE_CHECKING:
    from dspy_finetune.data.fields import Columns


def one_of(*names: str) -> Callable[[str], list[str]]:
    """What the shell offers for an option that takes one of these, or something that nobody can list.

    >>> one_of("full", "small")("s")
    ['small']
    """
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


a_host = one_of(*NAMED_HOSTS)
"""What the shell offers for a host."""
HostText = Annotated[
    str,
    typer.Option(
        "--host",
        help=f"{', '.join(NAMED_HOSTS)}, an address, or NAME=ADDRESS (key in NAME_API_KEY).",
        autocompletion=a_host,
    ),
]
RootPath = Annotated[Path | None, typer.Option("--root", help="With --host local: the folder of its jobs and models.")]
EnvPath = Annotated[Path | None, typer.Option("--env-file", help="Read keys from this file instead of ./.env.")]
CellDelimiter = Annotated[
    str | None,
    typer.Option(
        "--delimiter",
        help="Between the cells of a CSV file, such as ; or tab; read off its first line without.",
        callback=lambda given: "\t" if given in ("tab", "\\t") else given,
    ),
]
Decimal = Annotated[
    Literal[".", ","],
    typer.Option("--decimal", help='Before the decimals of numbers in the file: "," reads 1.199,99 as 1199.99.'),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]

JUDGED = ("rubric_preference", "rubric_score")
"""Metrics that ask a judge."""
EMBEDDED = ("semantic_similarity",)
"""Metrics that ask for vectors."""
PLAIN = (
    *("accuracy", "average_precision", "balanced_accuracy", "brier", "ece", "exact_match", "f1", "kendall_tau"),
    *("log_loss", "mcc", "mean_absolute_error", "median_absolute_error", "pairwise_accuracy", "precision", "recall"),
    *("roc_auc", "root_mean_squared_error", "root_mean_squared_log_error", "rouge_l", "token_f1"),
)
"""Metrics that need nothing but a field; by name, as the help shows them and must not wait for DSPy."""

_KNOWN = f"{', '.join(PLAIN)}, within=20%,40 (a share, a distance, or both), {', '.join((*JUDGED, *EMBEDDED))}"

a_metric = one_of(*PLAIN, "within=", *JUDGED, *EMBEDDED)
"""What the shell offers for a metric."""
MetricNames = Annotated[
    list[str] | None,
    typer.Option("--metric", help=f"Repeat it; the first decides. {_KNOWN}.", autocompletion=a_metric),
]
JudgeModel = Annotated[
    str | None, typer.Option("--judge", help="The model that judges, for rubric_score and rubric_preference.")
]
JudgeRubric = Annotated[
    str | None, typer.Option("--judge-rubric", help="What a good answer is, for the judge: text, or @FILE.")
]
Embedder = Annotated[
    str | None, typer.Option("--embedder", help="The model that gives vectors, for semantic_similarity.")
]
JudgeHost = Annotated[
    str,
    typer.Option("--judge-host", help="Where judge and embedder answer: as --host of `plan`.", autocompletion=a_host),
]


def inputs_of(columns: Columns, names: Iterable[str]) -> str:
    """Which columns are read, and which are not, as a remark says it.

    >>> from dspy_finetune.data.fields import Columns
    >>> found = Columns(task="binary", inputs=("text",), label="liked", labels=(True, False), why="")
    >>> inputs_of(found, ["id", "text", "liked", "place"])
    'inputs text; not read: id, place (--text names the inputs)'
    """
    told = f"inputs {', '.join(columns.inputs)}"
    others = [name for name in names if name not in (*columns.inputs, columns.label)]
    return f"{told}; not read: {', '.join(others)} (--text names the inputs)" if others else told


def load_env(path: Path | None = None) -> None:
    """Put the variables of a `.env` file into the environment; those that are set already stay.

    Args:
        path: The file; None reads `.env` of the working folder, if there is one.

    Raises:
        FileError: A file that was named cannot be read.
    """
    source = path if path is not None else Path(".env")
    try:
        text = source.read_text(encoding="utf-8-sig")
    except OSError as error:
        if path is None:
            return
        raise file_error(error, path, "read") from error
    except UnicodeDecodeError as error:
        if path is None:
            return
        raise FileError(
            f"cannot read {path}: not UTF-8 (byte {error.start + 1}); save it as UTF-8", path=str(path)
        ) from error
    dotenv = require("dotenv", "cli", "reading a .env file")
    for name, value in dotenv.dotenv_values(stream=io.StringIO(text), interpolate=False).items():
        if value is not None:  # a line without `=`
            os.environ.setdefault(name, value)


def delimiter_of(path: str, delimiter: str | None) -> str | None:
    """The delimiter for one of several files: it is for those that are tables of cells.

    >>> delimiter_of("train.jsonl", ";"), delimiter_of("test.csv", ";")
    (None, ';')
    """
    return None if path.lower().endswith((".json", ".jsonl", ".ndjson", ".parquet")) else delimiter


def host_named(text: str, *, root: Path | None = None, option: str = "--host") -> Host:
    """A host by the name that `--host` and its like take.

    >>> host_named("https://llm.example.com/v1")
    Host.compatible('https://llm.example.com/v1')

    Args:
        text: One of `NAMED_HOSTS`, or an address; `azure=ADDRESS` for a resource of Azure, `local=ADDRESS` for a server
            of this package, `NAME=ADDRESS` for another host with a name, whose key is then in NAME_API_KEY.
        root: The embedded server's folder.
        option: What the user gave it by, for the message.

    Raises:
        UsageError: It is none of these.
    """
    name, _, address = text.partition("=")
    if text == "openai":
        return Host.openai()
    if name == "azure":
        return Host.azure(address or None)
    for kind in OWN_APIS:
        if name == kind:
            return Host(kind, base_url=address or None)
    if name == "local":
        return Host.local(address or None, root=root)
    if text.startswith(("http://", "https://")):
        return Host.compatible(text)
    if name.replace("-", "").isalnum() and address.startswith(("http://", "https://")):
        return Host.compatible(address, name=name)
    raise UsageError(f"{option} {text}: expected {', '.join(NAMED_HOSTS)}, an address, or NAME=ADDRESS")


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Who judges, and by what."""

    judge: str | None = None
    """The judge's name on the host."""
    rubric: str | None = None
    """What a good answer is: a text, or @FILE."""
    embedder: str | None = None
    """The embedding model's name on the host."""
    host: str = "openai"
    """Where both answer."""


def metrics_named(names: Sequence[str], field: str, judging: Judging) -> list[Any]:
    """Metrics by the names that `--metric` takes.

    Raises:
        UsageError: There is no such metric, a judge or its rubric is missing, or one was named that nobody asks.
        FileError: The rubric's file cannot be read.
    """
    for option, value, users in (
        ("--judge", judging.judge, JUDGED),
        ("--judge-rubric", judging.rubric, JUDGED),
        ("--embedder", judging.embedder, EMBEDDED),
    ):
        if value is not None and not set(users) & set(names):
            raise UsageError(f"{option} is asked by no metric here; add --metric {' or --metric '.join(users)}")
    return [_named(name, field, judging) for name in names]


def _named(name: str, field: str, judging: Judging) -> Any:
    if name in PLAIN:
        return getattr(ft.metrics, name)(field)
    if name.partition("=")[0] == "within":
        return _within(name, field)
    if name in JUDGED:
        if judging.judge is None or judging.rubric is None:
            raise UsageError(
                f"--metric {name} needs --judge MODEL and --judge-rubric TEXT (or @FILE): who judges, and by what; "
                "there is no judge by default"
            )
        lm = host_named(judging.host, option="--judge-host").lm(judging.judge)
        return getattr(ft.metrics, name)(field, rubric=_text(judging.rubric), lm=lm)
    if name in EMBEDDED:
        if judging.embedder is None:
            raise UsageError(f"--metric {name} needs --embedder MODEL, such as text-embedding-3-small")
        return ft.metrics.semantic_similarity(
            field,
            ft.evaluation.baselines.HostEmbedder(
                judging.embedder, host=host_named(judging.host, option="--judge-host")
            ),
        )
    raise UsageError(f"no metric {name!r}; there are: {_KNOWN}")


def _within(name: str, field: str) -> Any:
    share = distance = None
    try:
        for part in name.removeprefix("within").removeprefix("=").split(","):
            if part.strip().endswith("%"):
                share = float(part.strip()[:-1]) / 100
            else:
                distance = float(part)
    except ValueError as error:
        raise UsageError(f"--metric {name}: expected a share or a distance, such as within=20%,40") from error
    return ft.metrics.within(field, absolute=distance, relative=share)


def _text(given: str) -> str:
    return read_text(given[1:]) if given.startswith("@") else given
