"""`dspy-finetune compare`: the table, the files and the exit code that a gate in CI reads."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest

from dspy_finetune.cli.main import main
from dspy_finetune.cli.options import Judging, metrics_named
from dspy_finetune.errors import AnswerError
from dspy_finetune.hosts import Host
from dspy_finetune.predictors import OpenAIPredictor
from dspy_finetune.prompts import answer as answer_prompt
from dspy_finetune.prompts import binary, pairwise
from tests.fake_openai import FakeOpenAI

ROWS = [{"title": f"{'tides' if n % 3 else 'taxes'} {n}", "is_favorite": bool(n % 2)} for n in range(40)]


class Saved:
    """Stands for a saved predictor: right except for every `every`-th row."""

    def __init__(self, every: int) -> None:
        self.every, self.prompt = every, binary()

    def __call__(self, title: str) -> dspy.Prediction:
        number = int(title.split()[1])
        if number == 5 and self.every == 2:
            raise AnswerError("cannot read it", text="?")
        return dspy.Prediction(is_favorite=(number % 2 == 1) != (number % self.every == 0))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setattr("dspy_finetune.load_predictor", lambda name: Saved(int(Path(name).stem)))
    return str(path)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["compare", *arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize(("first", "second", "code"), [("50", "2", 0), ("2", "50", 4), ("9", "10", 3)])
def test_the_exit_code_is_the_verdict(rows, capsys, first, second, code):
    assert run(rows, "--program", f"a={first}.json", "--program", f"b={second}.json") == code
    shown = capsys.readouterr().out
    assert "accuracy [95%]" in shown
    assert "parse failures" in shown


def test_it_writes_the_report_and_prints_json_alone_on_stdout(rows, tmp_path, capsys):
    files = {kind: tmp_path / f"report.{kind}" for kind in ("html", "markdown", "json-to")}
    options = [part for kind, path in files.items() for part in (f"--{kind}", str(path))]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps({"title": f"moss {n}x", "is_favorite": n < 6}) + "\n" for n in range(9)))
    code = run(
        rows,
        "--program",
        "a=50.json",
        "--train",
        str(train),
        "--metric",
        "accuracy",
        "--metric",
        "f1",
        "--json",
        *options,
    )
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert code == 0
    assert "training file" not in captured.err
    assert [row["name"] for row in printed["comparison"]["programs"]] == ["a", "TF-IDF + logistic", "majority"]
    assert all(path.stat().st_size > 500 for path in files.values())


def test_wrong_usage_is_one_line_and_code_two(rows, capsys):
    assert run(rows, "--program", "a.json") == 2
    assert "NAME=FILE" in capsys.readouterr().err
    assert run(rows, "--program", "a=5.json", "--program", "a=6.json") == 2
    assert run(rows, "--program", "a=5.json", "--metric", "niceness") == 2
    assert "there are: accuracy" in capsys.readouterr().err


def test_rows_that_were_trained_on_are_told(rows, capsys):
    run(rows, "--program", "a=50.json", "--train", rows)
    assert "40 of 40 rows stand in the training file too" in capsys.readouterr().err


def test_the_untuned_model_and_few_shot_are_asked_on_the_same_host(tmp_path, monkeypatch, capsys):
    server = FakeOpenAI()
    server.answer = lambda body: "[[ ## is_favorite ## ]]\nTrue" if "[[ ##" in str(body) else "true"
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    try:
        OpenAIPredictor(binary(), "ft:gpt-4.1-nano-2025-04-14:x::1", host=Host.openai()).save(tmp_path / "tuned.json")
        for name in ("rows", "train"):
            lines = [json.dumps({"title": f"{name} {n}", "is_favorite": n % 2 == 0}) for n in range(6)]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        options = ("--train", str(tmp_path / "train.jsonl"), "--base-model", "gpt-4.1-nano-2025-04-14", "--json")
        assert run(str(tmp_path / "rows.jsonl"), "--program", f"tuned={tmp_path / 'tuned.json'}", *options) == 3
        captured = capsys.readouterr()
        rows = {row["name"]: row for row in json.loads(captured.out)["comparison"]["programs"]}
        untuned, few_shot = "gpt-4.1-nano-2025-04-14, untuned", "gpt-4.1-nano-2025-04-14, nearest few-shot"
        optimized = "gpt-4.1-nano-2025-04-14, optimized prompt"
        assert list(rows) == ["tuned", "TF-IDF + logistic", "majority", untuned, few_shot, optimized]
        assert [
            (rows[name]["n_failed"], rows[name]["n_parse_failures"]) for name in (untuned, few_shot, optimized)
        ] == [(0, 0)] * 3
        assert "not compared with" not in captured.err
    finally:
        server.close()


def test_a_program_without_a_model_is_told_before_anything_is_asked(tmp_path, rows, monkeypatch, capsys):
    """Public files of optimized programs name no model: 40 failed calls would pass for 40 wrong answers."""
    dspy.Predict("title -> is_favorite: bool").save(tmp_path / "q.json")
    monkeypatch.setattr(
        "dspy_finetune.evaluation.saved_programs.is_dspy_program", lambda name: str(name).endswith("q.json")
    )
    assert run(rows, "--program", "tuned=50.json", "--program", f"plain={tmp_path / 'q.json'}") == 2
    captured = capsys.readouterr()
    assert "names no language model; add --lm MODEL" in captured.err
    assert "asking" not in captured.err


def test_what_was_not_compared_with_is_told(rows, capsys):
    run(rows, "--program", "a=50.json")
    told = " ".join(capsys.readouterr().err.split())
    assert "not compared with: baselines on the same rows (--train); the untuned model (--base-model)" in told


def test_groups_parts_and_the_noise_floor_can_be_asked_for(tmp_path, rows, capsys):
    lines = [{**row, "ten": number // 10, "kind": str(row["title"]).split()[0]} for number, row in enumerate(ROWS)]
    path = tmp_path / "more.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--group-by", "ten", "--subgroup", "kind", "--noise-floor", "5", "--json")
    assert run(str(path), "--program", "a=50.json", "--program", "b=2.json", *options) in {0, 3}
    found = json.loads(capsys.readouterr().out)["comparison"]
    assert found["n_groups"] == 4
    assert {row["value"] for row in found["subgroups"]} == {"tides", "taxes"}
    assert [(one["program"], one["n"], one["n_changed"]) for one in found["noise_floor"]] == [("a", 5, 0), ("b", 5, 0)]


def test_pairs_get_the_baseline_for_pairs(tmp_path, monkeypatch):
    class SavedPairs:
        prompt = pairwise()

        def __call__(self, title_a: str, title_b: str) -> dspy.Prediction:
            return dspy.Prediction(preferred="A")

    path = tmp_path / "pairs.jsonl"
    rows = [{"title_a": f"owls {n}", "title_b": f"golf {n}", "preferred": "AB"[n % 2]} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("dspy_finetune.load_predictor", lambda name: SavedPairs())
    assert run(str(path), "--program", "a=x.json", "--train", str(path)) in {0, 3, 4}


QUIZ = [{"question": f"What is {n}?", "answer": f"It is {n}"} for n in range(6)]


@pytest.fixture
def quiz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, FakeOpenAI]]:
    """A file of questions, and a host on which a judge named strict-1 prefers what stands first."""
    server = FakeOpenAI()
    server.answer = lambda body: "[[ ## better ## ]]\n1" if "better" in str(body) else "[[ ## grade ## ]]\n4"
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")

    class SavedAnswers:
        prompt = answer_prompt()
        host = None

        def __call__(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer="Nobody knows")

    monkeypatch.setattr("dspy_finetune.load_predictor", lambda name: SavedAnswers())
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUIZ))
    yield str(path), server
    server.close()


def test_a_judge_is_named_by_the_user_and_in_the_report(quiz, tmp_path, capsys):
    path, server = quiz
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("Short and true.")
    judged = ("--metric", "rubric_preference", "--metric", "rubric_score", "--judge", "strict-1")
    assert run(path, "--program", "a=x.json", *judged, "--judge-rubric", f"@{rubric}", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["comparison"]["programs"]
    # Loving the first place in both orders, it decides nothing.
    assert row["scores"]["preferred to the reference by openai/strict-1"]["value"] == 0.5
    assert row["scores"]["rubric score by openai/strict-1"]["value"] == 0.75
    assert found["cards"]["Rubric score by openai/strict-1"]["rubric"] == "Short and true."
    assert {body["model"] for _, body in server.requests} == {"strict-1"}
    assert len(server.requests) == 3 * len(QUIZ)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--metric", "rubric_score"), "needs --judge MODEL and --judge-rubric TEXT"),
        (("--metric", "rubric_preference", "--judge", "gpt"), "needs --judge MODEL and --judge-rubric TEXT"),
        (("--metric", "semantic_similarity"), "needs --embedder MODEL"),
        (("--metric", "token_f1", "--judge", "gpt"), "--judge is asked by no metric"),
        (("--metric", "within=near"), "within=20%,40"),
        (("--metric", "rubric_score", "--judge", "gpt", "--judge-rubric", " "), "the rubric is empty"),
        (
            ("--metric", "rubric_score", "--judge", "gpt", "--judge-rubric", "x", "--judge-host", "moon"),
            "--judge-host moon",
        ),
    ],
)
def test_a_judge_that_is_missing_or_superfluous_is_told_in_one_line(quiz, capsys, options, said):
    assert run(quiz[0], "--program", "a=x.json", *options) == 2
    assert said in capsys.readouterr().err


def test_a_rubric_that_is_no_text_is_told_in_one_line(quiz, tmp_path, capsys):
    rubric = tmp_path / "rubric.docx"
    rubric.write_bytes(b"PK\x03\x04 \xff")
    judged = ("--metric", "rubric_score", "--judge", "gpt", "--judge-rubric", f"@{rubric}")
    assert run(quiz[0], "--program", "a=x.json", *judged) == 2
    assert "is not UTF-8 (byte 6); save it as UTF-8" in capsys.readouterr().err.replace("\n", " ")


def test_shares_of_near_numbers_can_be_asked_for():
    (near,) = metrics_named(["within=20%,40"], "price", Judging())
    assert (near.name, near(dspy.Example(price=100), dspy.Prediction(price=139))) == ("within 20% or 40", 1.0)
    assert metrics_named(["within=5"], "price", Judging())[0].name == "within 5"


def test_vectors_come_from_the_named_model_in_the_order_of_the_texts(monkeypatch):
    asked = []

    def create(**options: Any) -> SimpleNamespace:
        asked.append(options)
        vectors = [SimpleNamespace(index=n, embedding=[1.0, float(n)]) for n in range(len(options["input"]))]
        return SimpleNamespace(data=vectors[::-1])

    monkeypatch.setattr(Host, "client", lambda self: SimpleNamespace(embeddings=SimpleNamespace(create=create)))
    (alike,) = metrics_named(["semantic_similarity"], "answer", Judging(embedder="vectors-1"))
    assert alike.name == "semantic similarity by vectors-1"
    assert alike(dspy.Example(answer="one"), dspy.Prediction(answer="two")) == pytest.approx(0.5**0.5)
    assert asked == [{"model": "vectors-1", "input": ["one", "two"]}]
    assert alike.function.vectors.embed(["x", "y"]) == [[1.0, 0.0], [1.0, 1.0]]
