"""`run` is the other commands in a row: what it prints can be typed, and a step that fails ends it."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from dspy_finetune.cli.app import build_app, telling_once
from dspy_finetune.cli.main import main
from dspy_finetune.cli.run import Step, follow, invoke

ROWS: dict[str, list[dict[str, Any]]] = {
    "titles": [{"headline": f"About thing number {n}", "liked": "yes" if n % 2 else "no"} for n in range(60)],
    "prices": [{"name": f"A box of {n} nails", "price": 1.5 * n + 1} for n in range(60)],
    "pairs": [
        {"title_a": f"About thing {n}", "title_b": f"On matter {n}", "preferred": "A" if n % 3 else "B"}
        for n in range(60)
    ],
    "two answers": [
        {"question": f"What is {n}?", "answer_a": f"It is {n}", "answer_b": f"A thing {n}", "best": "AB"[n % 2]}
        for n in range(60)
    ],
    "classes": [{"text": f"Some words about {n}", "label": ["spam", "ham", "eggs"][n % 3]} for n in range(60)],
    "lines": [
        {"Text left": f"Thing {n}", "Text right": f"No {n}", "class": ["left", "right"][n % 2]} for n in range(60)
    ],
    "spaces": [{"Film Title": f"A film about {n}", "Major Genre": ["Drama", "Epic"][n % 2]} for n in range(60)],
    "answers": [{"question": f"What is thing {n}?", "answer": f"It is a kind of {n}"} for n in range(60)],
}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def written(folder: Path, name: str) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("titles", "headline -> liked: bool"),
        ("prices", "name -> price: float"),
        ("pairs", "title_a, title_b -> preferred: Literal['A', 'B']"),
        ("two answers", "question, answer_a, answer_b -> best: Literal['A', 'B']"),
        ("classes", "text -> label: Literal['eggs', 'ham', 'spam']"),
        ("lines", "Text_left, Text_right -> class_: Literal['left', 'right']"),
        ("spaces", "Film_Title -> Major_Genre: Literal['Drama', 'Epic']"),
        ("answers", "question -> answer"),
    ],
)
def test_each_task_becomes_commands_that_the_command_line_takes(
    name: str, signature: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("run", str(written(tmp_path, name)), "--dry-run", "--out", "here") == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines] == ["advise", "split", "export", "train", "compare"]
    assert signature in lines[2]
    metrics = [value for option, value in zip(lines[-1], lines[-1][1:], strict=False) if option == "--metric"]
    assert metrics == (["token_f1", "exact_match"] if name == "answers" else [])
    group: Any = typer.main.get_command(build_app())
    for line in lines:
        group.commands[line[1]].make_context(line[1], line[2:])  # raises where an option or a value is wrong
    assert not (tmp_path / "here").exists()


def test_the_first_steps_do_what_they_say_and_a_failing_one_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # No host of that address answers: training fails, and nothing is compared.
    code = run(
        *("run", str(written(tmp_path, "titles")), "--out", "here", "--model", "some-model"),
        *("--host", "local=http://127.0.0.1:9/v1"),
    )
    told = capsys.readouterr().err
    assert code == 1
    assert "error:" in told
    assert "$ dspy-finetune train" in told
    assert "$ dspy-finetune compare" not in told
    assert json.loads(Path("here/advice.json").read_text())["columns"]["task"] == "binary"
    assert len(Path("here/train.jsonl").read_text().splitlines()) == 48
    assert len(Path("here/data/test.jsonl").read_text().splitlines()) == 12


def test_a_warning_of_an_earlier_step_is_not_said_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"title": f"About thing number {n // 2}", "is_favorite": n < 9} for n in range(60)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = typer.main.get_command(build_app())
    plan = Step(title="Plan", arguments=("plan", "train.jsonl", "--model", "gpt-4.1-mini-2025-04-14"))
    with telling_once():
        export = ("export", "sft", "rows.jsonl", "--preset", "binary", "--out", "train.jsonl")
        assert [invoke(command, Step(title="Export", arguments=export)), invoke(command, plan)] == [0, 0]
    shown = capsys.readouterr()
    assert shown.out.count("outputs are 'false'") == shown.out.count("the row is the same as line") == 1
    assert "train.jsonl:" not in shown.err
    assert "warning: " in shown.err, "what only the plan knows"
    assert invoke(command, plan) == 0
    assert "outputs are 'false'" in capsys.readouterr().err, "a command of its own says all"


def test_one_option_alone_names_the_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "prices")
    assert run("run", str(path), "--label", "price", "--number", "price", "--dry-run") == 2
    assert "give one of --label, --number and --pairs" in capsys.readouterr().err
    assert run("run", str(path), "--pairs", "price", "--dry-run") == 2
    assert "no two input columns such as title_a and title_b" in capsys.readouterr().err


def test_ctrl_c_says_in_which_step_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*rows: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dspy_finetune.evaluation.advise", press)
    rows = str(written(tmp_path, "titles"))
    assert run("run", rows, "--out", "a b") == 130
    *_, hint, last = capsys.readouterr().err.splitlines()
    assert hint.startswith("warning: stopped in step 1 of 5: go on with the same command; a job that was started is")
    assert last == "interrupted"
    # Without a name the folder is found by the commands that were begun in it; others get a folder of their own.
    for _ in range(2):
        assert run("run", rows) == 130
        *_, hint, last = capsys.readouterr().err.splitlines()
        assert "go on with the same command, or with --out runs/titles;" in hint
    assert run("run", rows, "--seed", "1") == 130
    assert "going on in" not in capsys.readouterr().err
    assert sorted(path.name for path in Path("runs").iterdir()) == ["titles", "titles-2"]
    assert run("run", rows) == 130
    assert "going on in runs/titles, where the same command was stopped" in capsys.readouterr().err


def test_what_stands_is_not_done_again_unless_its_rows_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def recorded(command: Any, step: Step) -> int:
        name = step.arguments[0]
        done.append(name)
        if name == "advise":  # takes seconds
            Path("o/advice.json").write_text("{}", encoding="utf-8")
        return {"advise": 0, "train": 130}[name] if name in ("advise", "train") else invoke(command, step)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dspy_finetune.cli.run.invoke", recorded)
    path = written(tmp_path, "titles")

    def again(*options: str) -> list[str]:
        done.clear()
        assert run("run", str(path), "--out", "o", *options) == 130
        return done

    assert again() == ["advise", "split", "export", "train"]
    before = {file: file.stat().st_mtime_ns for file in Path("o").rglob("*.jsonl")}
    assert again() == ["train"]
    assert "done already: o/train.jsonl" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in Path("o").rglob("*.jsonl")} == before
    Path("o/train.jsonl").write_text("", encoding="utf-8")
    assert again() == ["export", "train"]
    Path("rubric.txt").write_text("Bees.", encoding="utf-8")
    assert again("--rubric", "@rubric.txt") == ["export", "train"]
    Path("rubric.txt").write_text("Ants.", encoding="utf-8")
    assert again("--rubric", "@rubric.txt") == ["export", "train"]
    path.write_text(path.read_text(encoding="utf-8").replace("number 7", "number 700"), encoding="utf-8")
    assert again("--rubric", "@rubric.txt") == ["advise", "split", "export", "train"]


def test_one_run_at_a_time_is_at_work_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = str(written(tmp_path, "titles"))
    told: list[str] = []

    def second(*rows_asked: object, **options: object) -> None:
        """While the first run is in its first step."""
        assert run("run", rows, "--out", "runs/titles") == 2
        told.extend(line for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
        raise KeyboardInterrupt

    monkeypatch.setattr("dspy_finetune.evaluation.advise", second)
    assert run("run", rows) == 130
    wait = "wait for it, or give another --out"
    assert told == [f"error: runs/titles: another run is at work in this folder; {wait}"]


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dspy_finetune.evaluation.advise", lambda *rows, **options: pytest.fail("too late"))
    (tmp_path / "file").write_text("no folder")
    assert run("run", str(written(tmp_path, "titles")), "--out", str(tmp_path / "file" / "x")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot make {tmp_path / 'file' / 'x'}: a part of the path is a file, not a folder")


def test_null_cells_of_an_input_become_empty_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"title": f"A film {n}", "director": None if n % 3 else "Jo Doe", "liked": n % 2} for n in range(30)]
    Path("films.json").write_text(json.dumps(rows), encoding="utf-8")
    assert run("run", "films.json", "--text", "title", "--text", "director", "--dry-run", "--out", "here") == 0
    step = shlex.split(capsys.readouterr().out.splitlines()[1])
    assert step[1] == "split"
    assert run(*step[1:]) == 0
    written_rows = [json.loads(line) for line in Path("here/data/train.jsonl").read_text().splitlines()]
    assert {row["director"] for row in written_rows} == {"", "Jo Doe"}


def test_rows_of_one_label_are_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("same.csv").write_text(
        "text,liked\n" + "".join(f"About thing {n},{['yes', 'Yes', ' '][n % 3]}\n" for n in range(30)), encoding="utf-8"
    )
    assert run("run", "same.csv") == 1
    assert "Every row has the same liked, 'yes': there is nothing to tell apart" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("cells", "name", "options", "answer"),
    [
        (["0.1234", "0.5"], "share", ["--currency", "", "--decimals", "4"], "0.1234"),
        (["€63.89", "€7"], "cost", ["--currency", "€"], "€63.89"),
        (["-26", "14"], "score", ["--currency", ""], "-26"),
        (["7.0", "1,400"], "steps", ["--currency", ""], "1400"),
        (["-2.5", "14"], "score", ["--currency", ""], "14.00"),
        (["1,199.99", "5"], "price", [], "$1199.99"),
        (["45%", "3%"], "share", ["--unit", "%"], "45 %"),
        (["$45", "$3"], "price", [], "$45"),
    ],
)
def test_numbers_are_written_as_the_file_has_them(
    cells: list[str],
    name: str,
    options: list[str],
    answer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "".join(f'About thing {n},"{cells[n % 2]}"\n' for n in range(40))
    Path("x.csv").write_text(f"thing,{name}\n{lines}", encoding="utf-8")
    assert run("run", "x.csv", "--number", name, "--rubric", "How much?", "--out", "o", "--dry-run") == 0
    steps = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]
    exports = next(step for step in steps if step[0] == "export")
    place = exports.index("--rubric")
    assert exports[exports.index("--signature") + 2 : place] == options
    for step in (next(step for step in steps if step[0] == "split"), exports):
        assert invoke(typer.main.get_command(build_app()), Step(title="", arguments=tuple(step))) == 0
    rows = [json.loads(line)["messages"] for line in Path("o/train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert answer in [row[-1]["content"] for row in rows]
    assert rows[0][0]["content"].startswith("How much?\n\nAbout thing")


def test_amounts_in_several_currencies_are_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "".join(f"About thing {n},{'$€'[n % 2]}{n}\n" for n in range(40))
    Path("x.csv").write_text("thing,price\n" + lines, encoding="utf-8")
    assert run("run", "x.csv", "--dry-run") == 1
    assert "several currencies ($, €)" in capsys.readouterr().err


def test_numbers_with_a_unit_are_trained_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("files.csv").write_text("name,size\n" + "".join(f"File {n},{n * 0.13:.2f} MB\n" for n in range(60)))
    assert run("run", "files.csv", "--label", "size", "--dry-run", "--out", "x") == 0
    lines = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]
    assert "--unit MB" in " ".join(lines[2])
    assert run(*lines[1]) == 0
    assert run(*lines[2]) == 0
    sizes = {json.loads(line)["messages"][-1]["content"] for line in Path("x/train.jsonl").read_text().splitlines()}
    assert sizes < {f"{n * 0.13:.2f} MB" for n in range(60)}
    assert run("advise", "files.csv", "--label", "size", "--encoder", "none") == 0
    assert "absolute error" in capsys.readouterr().out
    assert run(*lines[2], "--currency", "$") == 2
    assert "give one of --currency and --unit" in capsys.readouterr().err


def test_a_first_file_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("quickstart", "--example", "my titles.csv") == 0
    assert capsys.readouterr().out == (
        "my titles.csv: 300 titles; next: dspy-finetune run 'my titles.csv' --label liked\n"
    )
    assert run("run", "my titles.csv", "--label", "liked", "--dry-run") == 0
    assert "headline -> liked: bool" in capsys.readouterr().out
    Path("my titles.csv").write_text("headline,liked\nMy own,yes\n", encoding="utf-8")
    assert run("quickstart", "--example", "my titles.csv") == 2
    assert "error: my titles.csv is there already; name a new file" in capsys.readouterr().err


def test_a_host_that_nobody_knows_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("run", str(written(tmp_path, "titles")), "--host", "nowhere") == 2
    assert "--host nowhere: expected local, openai" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_head_is_asked_for_where_an_adapter_would_learn_many_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "intents.csv"
    lines = [f"please do the thing number {n},intent_{n % 70}" for n in range(350)]
    path.write_text("\n".join(["text,intent", *lines]), encoding="utf-8")
    assert run("run", str(path), "--dry-run", "--out", str(tmp_path / "out")) == 0
    assert "--recipe head" in capsys.readouterr().out
    assert run("run", str(path), "--dry-run", "--out", str(tmp_path / "out"), "--host", "openai") == 0
    assert "--recipe" not in capsys.readouterr().out


def test_in_a_log_the_results_of_a_step_stand_before_the_next_heading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both streams in one file: stdout waits in its buffer there, stderr does not."""
    log = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(log))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(log, write_through=True))
    monkeypatch.setattr("dspy_finetune.cli.run.invoke", lambda command, step: print(f"did {step.title}") or 0)
    follow([Step(title=title, arguments=("doctor",)) for title in ("one", "two")], tmp_path, is_named=True)
    lines = [line for line in log.getvalue().decode().splitlines() if line and line[0] != "$"]
    assert lines == ["1/2 one", "did one", "2/2 two", "did two"]


def test_columns_that_nobody_reads_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"{n},Some words about {n},{'mail' if n % 2 else 'chat'},{'yes' if n % 3 else 'no'}" for n in range(60)]
    Path("rows.csv").write_text("\n".join(["Ticket ID,Message,Channel,liked", *lines]), encoding="utf-8")
    assert run("run", "rows.csv", "--dry-run") == 0
    assert "inputs Message; not read: Ticket ID, Channel (--text names the inputs)" in capsys.readouterr().err


def test_after_ctrl_c_at_a_terminal_the_remark_begins_a_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal writes ^C at the cursor: a remark behind it would be broken in a word."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)

    def press(command: object, step: Step) -> int:
        screen.write("^C")
        return 130

    monkeypatch.setattr("dspy_finetune.cli.run.invoke", press)
    with pytest.raises(typer.Exit):
        follow([Step(title="one", arguments=("doctor",))], tmp_path, is_named=True)
    after = screen.getvalue().partition("^C")[2]
    assert after.startswith("\n")
    assert "stopped in step 1 of 1" in after


@pytest.mark.parametrize(("n_rare", "expected"), [(12, True), (60, False), (3, False)])
def test_rare_labels_are_compared_by_the_order_of_their_probabilities(
    n_rare: int, expected: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where 10 % are positive, always saying no is right in 90 %, and no program is told from another by accuracy."""
    lines = [json.dumps({"title": f"On bees, part {n}", "liked": n < n_rare}) for n in range(120)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    assert run("run", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out"), "--dry-run") == 0
    assert ("--metric roc_auc --metric accuracy" in capsys.readouterr().out) is expected
