"""The main job from end to end: on the toy model in seconds, and on the real one with an accuracy to reach."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer

import dspy_finetune as ft
from dspy_finetune.cli.app import build_app
from dspy_finetune.cli.main import main
from dspy_finetune.quickstart import RUBRIC, SIZES, Material, Size, Step, load_titles, prepare, run
from tests.local.toy import build_toy_model

SCHEMAS = Path(__file__).parent / "export" / "schemas"
TINY = Size(
    name="tiny",
    n_titles=40,
    n_pairs=12,
    n_explained=10,
    n_test_titles=12,
    n_test_pairs=6,
    binary_epochs=1,
    pairwise_epochs=1,
)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[ft.Host]:
    one = ft.Host.local(root=tmp_path / "host")
    yield one
    one.close()


def titles_of(rows: list[Any]) -> set[str]:
    return {row[name] for row in rows for name in ("title", "title_a", "title_b") if name in row}


@pytest.mark.parametrize("seed", range(3))
def test_no_title_stands_on_two_sides(seed: int) -> None:
    material: Material = prepare(load_titles(), SIZES["full"], seed)
    train = titles_of([*material.train, *material.train_pairs, *material.explained])
    test = titles_of([*material.test, *material.test_pairs])
    assert not train & test
    assert not titles_of(material.validation) & (train | test)
    first_places = [pair["preferred"] == "A" for pair in material.test_pairs]
    assert 0.4 <= sum(first_places) / len(first_places) <= 0.6
    assert all(pair["explanation"] for pair in material.explained)


def without_reason(row: Any) -> Any:
    return row.without("reason") if "reason" in row else row


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("has_reasons", [True, False])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_main_job_runs_from_titles_to_report(tmp_path: Path, host: ft.Host, has_reasons: bool) -> None:
    """Three files in OpenAI's schemas, heads for the labels, weights for the preferences, three predictors."""
    titles = [row if has_reasons else without_reason(row) for row in load_titles()]
    toy = build_toy_model(tmp_path / "toy", context_tokens=4096)
    told: list[Step] = []
    out = tmp_path / "out"
    result = run(titles, RUBRIC, out, size=TINY, base_model=str(toy), host=host, on_step=told.append)

    for name, schema in (("binary", "sft"), ("pairwise", "sft"), ("dpo", "dpo")):
        rules = json.loads((SCHEMAS / f"{schema}.json").read_text())
        lines = (out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        for line in lines:
            jsonschema.validate(json.loads(line), rules)
        assert len(lines) == {"binary": 40, "pairwise": 12, "dpo": 10}[name]

    jobs = {job.facts.fine_tuned_model: job.facts for job in ft.list_jobs(host=host)}
    assert set(jobs) == {model.id for model in result.models.values()}
    assert [result.models[name].method for name in ("binary", "pairwise", "dpo")] == ["sft", "sft", "dpo"]
    # A head decides which is preferred: the adapter learns to say why, first from the reasons alone.
    assert jobs[result.models["dpo"].id].model == (result.models["reasons"].id if has_reasons else str(toy))
    assert all("Recipe: head" in result.recipes[name] for name in ("binary", "pairwise"))
    assert ("Recipe: head+lora," if has_reasons else "Recipe: head,") in result.recipes["dpo"]
    assert jobs[result.models["pairwise"].id].model == result.models["binary"].id

    fitted = {"minilm-l6 + logistic", "TF-IDF + logistic", "majority"}
    assert {row.name for row in result.titles.rows} >= {"tuned", "untuned, same prompt", *fitted}
    assert {row.name for row in result.pairs.rows} >= {"tuned, pairwise", "tuned, DPO", *fitted}
    assert {row.n for row in (*result.titles.rows, *result.pairs.rows)} == {12, 6}
    assert not [row.name for row in (*result.titles.rows, *result.pairs.rows) if row.n_failed]
    page = result.report.read_text(encoding="utf-8")
    assert "Is it a favorite?" in page
    assert "Which of two is preferred?" in page
    assert json.loads((out / "results.json").read_text())["seconds"]
    assert {step.number for step in told} == {1, 2, 3, 4, 5, 6, 7}

    commands = [shlex.split(step.command)[1:] for step in told if step.command]
    assert [words[0] for words in commands] == ["export"] * 3 + ["train"] * (3 + has_reasons) + ["compare"] * 2
    for words in commands:
        # The command line takes each, and the export writes the same file again.
        group: Any = typer.main.get_command(build_app())
        group.commands[words[0]].make_context(words[0], words[1:])
        if words[0] == "export":
            at = words.index("--out") + 1
            file, words[at] = Path(words[at]), str(tmp_path / "again.jsonl")
            with pytest.raises(SystemExit) as stop:
                main(words)
            assert stop.value.code == 0
            assert (tmp_path / "again.jsonl").read_bytes() == file.read_bytes()
        if words[0] == "compare":
            assert all(
                Path(words[at + 1].split("=")[1]).exists() for at, word in enumerate(words) if word == "--program"
            )

    loaded = ft.load_predictor(result.predictors["binary"], host=host)
    assert loaded.model == result.models["binary"].id
    assert loaded.render(title="x")[0]["content"].endswith(RUBRIC)
