"""Results where a team keeps them: MLflow, Weights & Biases, pandas and polars frames.

In: a comparison, a predictor, examples, a bulk output. Out: metrics, reports and programs in a tracking run; frames.
Frames come in by `load_examples(frame)`; models go to the Hugging Face hub by `model.export(format="hub")`.

import dspy_finetune as ft

with mlflow.start_run():
    ft.integrations.log_to_mlflow(report, predictor=tuned)
frame = ft.integrations.to_pandas(report)

Not covered: following a job while it runs (`ft.WandB` has the host report it).
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dspy_finetune._optional import require
from dspy_finetune.bulk import BulkResult
from dspy_finetune.data.readers import open_source
from dspy_finetune.errors import RowError, UsageError
from dspy_finetune.evaluation import ComparisonReport

if TYPE_CHECKING:
    import dspy
    import pandas
    import polars

logger = logging.getLogger(__name__)

Rows = Literal["items", "scores"]
"""Of a report: one row for each item with what each program said, or one for each program and metric."""

_NAME = re.compile(r"[^\w./ -]+", re.ASCII)


def to_pandas(
    result: ComparisonReport | BulkResult | Iterable[dspy.Example], *, rows: Rows = "items"
) -> pandas.DataFrame:
    """A comparison, the output of `bulk.predict`, or examples as a pandas DataFrame.

    Args:
        result: What `compare` or `bulk.predict` gave, or examples.
        rows: Of a comparison: "items" (inputs and labels; of each program its answer, outcome, score and latency) or
            "scores" (of each program and metric the value with its interval, and the counts).

    Raises:
        MissingExtraError: pandas is not installed.
        RowError: A row of the bulk output cannot be read.
    """
    return require("pandas", "data", "a pandas DataFrame").DataFrame(list(_rows(result, rows)))


def to_polars(
    result: ComparisonReport | BulkResult | Iterable[dspy.Example], *, rows: Rows = "items"
) -> polars.DataFrame:
    """The same as a polars DataFrame. Arguments and errors as of `to_pandas`."""
    library = require("polars", "polars", "a polars DataFrame")
    # Of all rows: a column may begin with missing values.
    return library.DataFrame(list(_rows(result, rows)), infer_schema_length=None)


def _rows(result: Any, rows: str) -> Iterator[dict[str, Any]]:
    if rows not in get_args(Rows):
        raise UsageError(f'rows: "items" or "scores", found {rows!r}')
    if isinstance(result, ComparisonReport):
        return _items(result) if rows == "items" else _scores(result)
    if isinstance(result, BulkResult):
        return _output(result)
    return (example.toDict() for example in result)


def _items(report: ComparisonReport) -> Iterator[dict[str, Any]]:
    made = report.comparison
    for index, item in enumerate(made.items):
        row = {**item.inputs, **item.labels}
        for name, answers in made.answers.items():
            answer = answers[index]
            row |= {f"{name}: {field}": value for field, value in answer.outputs.items()}
            row |= {f"{name}: outcome": answer.outcome, f"{name}: latency_ms": answer.latency_ms}
            scored = {metric: of[name][index] for metric, of in made.item_scores.items() if name in of}
            row |= {f"{name}: {metric}": score for metric, score in scored.items()}
        yield row


def _scores(report: ComparisonReport) -> Iterator[dict[str, Any]]:
    names = ("n_wrong", "n_parse_failures", "n_no_answer", "n_failed", "seconds", "latency_p50_ms", "cost_usd")
    for program in report.rows:
        for metric, score in program.scores.items():
            known = {"program": program.name, "metric": metric, "value": score.value, "low": score.low}
            yield {**known, "high": score.high, "n": score.n, **{name: getattr(program, name) for name in names}}


def _output(result: BulkResult) -> Iterator[dict[str, Any]]:
    for _, row in open_source(result.output, format=None, split=None).rows:
        if isinstance(row, RowError):
            raise row
        yield dict(row)


def figures(report: ComparisonReport) -> dict[str, float]:
    """The comparison's numbers by names that trackers take: `program/metric`, its interval, the counts, the time.

    What is not known has no name here: a tracker would show it as 0.
    """
    found: dict[str, Any] = {}
    for program in report.rows:
        for metric, score in program.scores.items():
            found[f"{program.name}/{metric}"] = score.value
            found |= {f"{program.name}/{metric}.low": score.low, f"{program.name}/{metric}.high": score.high}
        counts = ("n", "n_wrong", "n_parse_failures", "n_no_answer", "n_failed", "seconds", "cost_usd")
        found |= {f"{program.name}/{name}": getattr(program, name) for name in counts}
    return {_NAME.sub("_", name): float(value) for name, value in found.items() if value is not None}


def log_to_mlflow(
    report: ComparisonReport,
    *,
    predictor: dspy.Module | None = None,
    name: str = "predictor",
    input_example: Mapping[str, Any] | None = None,
) -> str | None:
    """Log a comparison to MLflow's active run, or to a new one: figures, verdict, losses, report.

    Args:
        report: What `compare` gave; `report.annotated(training={"tuned": job})` brings the losses along.
        predictor: A tuned predictor or a program with one, logged as MLflow's dspy flavor:
            `mlflow.dspy.load_model(uri)` brings it back, to ask the same host with the key of that environment.
        name: What the model is called in the run.
        input_example: Inputs of one call, from which MLflow takes the model's signature; the predictor is asked once.

    Returns:
        The logged model's URI; None without a predictor.

    Raises:
        MissingExtraError: MLflow is not installed.
    """
    mlflow = require("mlflow", "mlflow", "logging to MLflow")
    run = mlflow.active_run()
    if run is None:
        with mlflow.start_run():
            return log_to_mlflow(report, predictor=predictor, name=name, input_example=input_example)
    mlflow.log_metrics(figures(report))
    mlflow.set_tags({"verdict": report.verdict, "outcome": report.outcome or "none"})
    for curve, points in report.training.items():
        for step, loss in points:
            mlflow.log_metric(f"loss/{_NAME.sub('_', curve)}", loss, step=int(step))
    with tempfile.TemporaryDirectory() as folder:
        _files(report, Path(folder))
        mlflow.log_artifacts(folder)
    return None if predictor is None else _log_program(predictor, name, input_example)


def _log_program(predictor: Any, name: str, input_example: Mapping[str, Any] | None) -> str:
    flavor = require("mlflow.dspy", "mlflow", "MLflow's dspy flavor")
    import dspy  # imported late: it takes most of a second

    example = None if input_example is None else dict(input_example)
    # MLflow pickles dspy.settings as well, in which a configured language model holds its key.
    with dspy.context(lm=None):
        return str(flavor.log_model(predictor, name=name, input_example=example).model_uri)


def log_to_wandb(report: ComparisonReport, run: Any, *, predictor: Any = None, name: str = "predictor") -> None:
    """Log a comparison to a run of Weights & Biases, offline ones too: summary, losses, items, report, predictor.

    Args:
        report: What `compare` gave.
        run: What `wandb.init(...)` gave.
        predictor: A tuned predictor; its saved file, without a key, becomes an artifact that `ft.load_predictor` reads.
        name: What the artifact is called.

    Raises:
        MissingExtraError: wandb is not installed.
    """
    wandb = require("wandb", "wandb", "logging to Weights & Biases")
    run.summary.update({**figures(report), "verdict": report.verdict, "outcome": report.outcome})
    for curve, points in report.training.items():
        run.define_metric(f"loss/{curve}", step_metric="step")
        for step, loss in points:
            run.log({f"loss/{curve}": loss, "step": step})
    rows = list(_items(report))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = wandb.Table(columns=columns, data=[[_cell(row.get(column)) for column in columns] for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        page = _files(report, Path(folder))
        run.log({"report": wandb.Html(page.read_text(encoding="utf-8"), inject=False), "items": table})
        if predictor is not None:
            predictor.save(Path(folder) / "predictor.json")
            artifact = wandb.Artifact(name, type="predictor")
            artifact.add_file(str(Path(folder) / "predictor.json"))
            run.log_artifact(artifact)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _files(report: ComparisonReport, folder: Path) -> Path:
    """Write the report's two files; the page's path."""
    report.to_json(folder / "report.json")
    report.to_html(folder / "report.html")
    return folder / "report.html"
