"""Metrics by the names that `--metric` takes, and the judge that some of them ask.

In: a name, a field, who judges. Out: a metric. A judge is always named by the user: there is none by default.
Not covered: what the metrics compute (evaluation/metrics.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from dspy_finetune._files import read_text
from dspy_finetune.cli.environment import host_named
from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation import metrics
from dspy_finetune.evaluation.baselines import HostEmbedder

JUDGED = ("rubric_preference", "rubric_score")
"""Metrics that ask a judge."""
EMBEDDED = ("semantic_similarity",)
"""Metrics that ask for vectors."""
PLAIN = tuple(
    name
    for name in metrics.__all__
    if name.islower() and name not in {"within", "per_class", "order_agreement", *JUDGED, *EMBEDDED}
)
"""Metrics that need nothing but a field."""

_KNOWN = f"{', '.join(PLAIN)}, within=20%,40 (a share, a distance, or both), {', '.join((*JUDGED, *EMBEDDED))}"

MetricNames = Annotated[list[str] | None, typer.Option("--metric", help=f"Repeat it; the first decides. {_KNOWN}.")]
JudgeModel = Annotated[
    str | None, typer.Option("--judge", help="The model that judges, for rubric_score and rubric_preference.")
]
JudgeRubric = Annotated[
    str | None, typer.Option("--judge-rubric", help="What a good answer is, for the judge: text, or @FILE.")
]
Embedder = Annotated[
    str | None, typer.Option("--embedder", help="The model that gives vectors, for semantic_similarity.")
]
JudgeHost = Annotated[str, typer.Option("--judge-host", help="Where judge and embedder answer: as --host of `plan`.")]


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
        return getattr(metrics, name)(field)
    if name.partition("=")[0] == "within":
        return _within(name, field)
    if name in JUDGED:
        if judging.judge is None or judging.rubric is None:
            raise UsageError(
                f"--metric {name} needs --judge MODEL and --judge-rubric TEXT (or @FILE): who judges, and by what; "
                "there is no judge by default"
            )
        lm = host_named(judging.host).lm(judging.judge)
        return getattr(metrics, name)(field, rubric=_text(judging.rubric), lm=lm)
    if name in EMBEDDED:
        if judging.embedder is None:
            raise UsageError(f"--metric {name} needs --embedder MODEL, such as text-embedding-3-small")
        return metrics.semantic_similarity(field, HostEmbedder(judging.embedder, host=host_named(judging.host)))
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
    return metrics.within(field, absolute=distance, relative=share)


def _text(given: str) -> str:
    return read_text(given[1:]) if given.startswith("@") else given
