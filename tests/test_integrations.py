"""Results handed on: frames of pandas and polars, runs of MLflow and Weights & Biases, read back as their owners do.

MLflow and wandb stand in the environment of `make test-integrations`; elsewhere their tests are skipped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pandas as pd
import pytest

import dspy_finetune as ft
from dspy_finetune.errors import RowError, UsageError
from tests.fake_openai import FakeOpenAI

TITLES = ["On bees", "On taxes", "On hives", "On rates"]
ROWS = [dspy.Example(title=title, liked="ee" in title or "hive" in title).with_inputs("title") for title in TITLES]
KEY = "sk-planted-0123456789abcdef"


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    server.answer = lambda body: "true" if "bees" in str(body["messages"]) else "false"
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield server
    server.close()


@pytest.fixture
def tuned(openai: FakeOpenAI) -> ft.OpenAIPredictor:
    return ft.OpenAIPredictor("title -> liked: bool", "ft:gpt-4.1-mini:acme::1", logprobs=False, cache=False)


def yes(title: str) -> dspy.Prediction:
    return dspy.Prediction(liked=True)


@pytest.fixture
def report(tuned: ft.OpenAIPredictor) -> ft.ComparisonReport:
    made = ft.compare({"tuned": tuned, "always yes": yes}, ROWS, [ft.metrics.accuracy("liked")], num_threads=1)
    return made.annotated(training={"tuned": [(1, 2.5), (2, 1.25)]})


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_comparison_is_a_row_for_each_item_or_for_each_score(library: str, report: ft.ComparisonReport) -> None:
    as_frame = {"pandas": ft.integrations.to_pandas, "polars": ft.integrations.to_polars}[library]
    items = as_frame(report)
    assert list(items["title"]) == TITLES
    assert list(items["tuned: liked"]) == [True, False, False, False]
    assert list(items["tuned: accuracy"]) == [1.0, 1.0, 0.0, 1.0]
    assert list(items["always yes: outcome"]) == ["answered"] * 4
    scores = as_frame(report, rows="scores")
    assert list(scores["program"]) == ["tuned", "always yes"]
    # A second definition: the share of items that were right.
    assert list(scores["value"]) == [sum(items[f"{name}: accuracy"]) / 4 for name in scores["program"]]
    with pytest.raises(UsageError, match='rows: "items" or "scores", found \'answers\''):
        as_frame(report, rows="answers")  # type: ignore[arg-type]  # it is not there, which is the test


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_examples_go_into_a_frame_and_come_back(library: str) -> None:
    as_frame = {"pandas": ft.integrations.to_pandas, "polars": ft.integrations.to_polars}[library]
    again = ft.load_examples(as_frame(ROWS), inputs=["title"])
    assert [one.toDict() for one in again] == [one.toDict() for one in ROWS]


def test_a_bulk_output_is_a_frame_in_the_order_of_its_input(tuned: ft.OpenAIPredictor, tmp_path: Path) -> None:
    result = ft.bulk.predict(tuned, pd.DataFrame({"title": TITLES}), tmp_path / "out.jsonl")
    frame = ft.integrations.to_pandas(result)
    assert list(frame["title"]) == TITLES
    assert list(frame["liked"]) == [True, False, False, False]
    with open(result.output, "a", encoding="utf-8") as stream:
        stream.write('{"title": "torn\n')
    with pytest.raises(RowError, match=r"out\.jsonl:5"):
        ft.integrations.to_polars(result)


def test_figures_have_names_that_trackers_take_and_leave_out_what_is_not_known(report: ft.ComparisonReport) -> None:
    found = ft.integrations.figures(report)
    assert found["tuned/accuracy"] == 0.75
    assert found["tuned/accuracy.low"] < 0.75 < found["tuned/accuracy.high"]
    assert found["always yes/n"] == 4
    assert "always yes/cost_usd" not in found
    assert all(math.isfinite(value) for value in found.values())


# MLflow's and its dependencies' own warnings are theirs.
@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_figures_and_report_and_gives_the_program_back(
    report: ft.ComparisonReport, tuned: ft.OpenAIPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded as MLflow's dspy flavor it gives the same answers; no key lies in what MLflow keeps."""
    mlflow = pytest.importorskip("mlflow", reason="make test-integrations installs MLflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    # A configured language model stands in DSPy's settings, which MLflow pickles.
    with dspy.context(lm=dspy.LM("openai/gpt-4.1-mini", api_key=KEY)), mlflow.start_run() as run:
        uri = ft.integrations.log_to_mlflow(report, predictor=tuned, input_example={"title": "On bees"})
    kept = mlflow.MlflowClient().get_run(run.info.run_id).data
    assert kept.metrics["tuned/accuracy"] == 0.75
    assert kept.metrics["loss/tuned"] == 1.25
    assert kept.tags["verdict"] == report.verdict
    files = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=str(tmp_path / "got"))
    again = ft.ComparisonReport.from_json(Path(files) / "report.json")
    assert again.verdict == report.verdict
    assert (Path(files) / "report.html").read_text(encoding="utf-8").startswith("<!doctype html")
    assert uri is not None
    loaded = mlflow.dspy.load_model(uri)
    assert [loaded(title=title).liked for title in TITLES] == [tuned(title=title).liked for title in TITLES]
    asked = mlflow.pyfunc.load_model(uri).predict({"title": "On bees"})
    assert asked["liked"] is True
    kept_bytes = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert kept_bytes
    assert not any(KEY.encode() in content for content in kept_bytes)


@pytest.mark.filterwarnings("ignore")  # as above
def test_wandb_keeps_summary_and_files_offline(
    report: ft.ComparisonReport, tuned: ft.OpenAIPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the offline run's folder: the summary, the report, the predictor, and no key."""
    wandb = pytest.importorskip("wandb", reason="make test-integrations installs wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    run = wandb.init(project="taste", mode="offline", dir=str(tmp_path))
    ft.integrations.log_to_wandb(report, run, predictor=tuned)
    assert run.summary["tuned/accuracy"] == 0.75
    assert run.summary["verdict"] == report.verdict
    run.finish()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    (page,) = [path for path in files if path.suffix == ".html"]
    assert report.verdict.split(".")[0] in page.read_text(encoding="utf-8")
    (table,) = [path for path in files if path.name.endswith(".table.json")]
    assert [row[0] for row in json.loads(table.read_text())["data"]] == TITLES
    saved = [path for path in files if b"prompt_digest" in path.read_bytes() and path.suffix != ".wandb"]
    assert saved
    loaded: Any = ft.load_predictor(_as_json(saved[0], tmp_path))
    assert [loaded(title=title).liked for title in TITLES] == [tuned(title=title).liked for title in TITLES]
    assert not any(KEY.encode() in path.read_bytes() for path in files)


def _as_json(path: Path, folder: Path) -> Path:
    # wandb names staged files by their digest.
    copy = folder / "copy.json"
    copy.write_bytes(path.read_bytes())
    return copy
