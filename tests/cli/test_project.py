"""The commands around a project of one's own: split, init, doctor, and defaults from pyproject.toml and environment."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import dspy_finetune as ft
from dspy_finetune.cli import data
from dspy_finetune.cli.doctor import examine
from dspy_finetune.cli.main import main
from dspy_finetune.evaluation.metrics import Metric
from tests.fake_openai import FakeOpenAI


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


@pytest.fixture
def titles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "titles.csv"
    rows = "".join(f"{n},A title about thing {n % 35},{'yes' if n % 35 % 2 else 'no'}\n" for n in range(40))
    path.write_text("id,headline,liked\n" + rows, encoding="utf-8")
    return path


def test_split_writes_every_row_once_and_parts_no_duplicates(titles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Rows 35 to 39 repeat the titles of rows 0 to 4.
    assert (
        run("split", str(titles), "--out", "data", "--fractions", "0.6,0.2,0.2", "--json", "--group-by", "headline")
        == 0
    )
    facts = json.loads(capsys.readouterr().out)
    parts = {
        name: [json.loads(line) for line in Path(one["path"]).read_text().splitlines()] for name, one in facts.items()
    }
    assert sorted(int(row["id"]) for rows in parts.values() for row in rows) == list(range(40))
    texts = [{row["headline"] for row in rows} for rows in parts.values()]
    assert all(not texts[one] & texts[other] for one in range(3) for other in range(one))


def test_split_says_how_fractions_are_written(titles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("split", str(titles), "--out", "data", "--fractions", "80%") == 2
    assert "write three numbers, such as 0.8,0.1,0.1" in capsys.readouterr().err


def test_init_writes_a_script_for_the_file_and_overwrites_none(
    titles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("init", str(titles)) == 0
    source = Path("finetune-project/finetune.py").read_text(encoding="utf-8")
    compile(source, "finetune.py", "exec")
    assert "headline: str = dspy.InputField()" in source
    assert "liked: bool = dspy.OutputField()" in source
    assert "inputs headline" in capsys.readouterr().err
    assert run("init", str(titles)) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (
            {"from": "A line of text {n}", "the class!": "{yes}"},
            ["from_: str = dspy.InputField()", "the_class: bool = dspy.OutputField()", "accuracy('the_class')"],
        ),
        (
            {"about it": "A line of text {n}", "installed size": "{n}.125"},
            ["installed_size: float", "ft.prompts.number(Task, currency='', decimals=3)"],
        ),
        (
            {"name": "A line of text {n}", "age": "{n}"},
            ["    age: int = dspy.OutputField()", "ft.prompts.number(Task, currency='')"],
        ),
        (
            {
                "Ticket #": "{n}",
                "Body Text": "It is slow {n}",
                'Priority "1-5"?': '"{yes}"',
                "Created At": "2026-01-01",
            },
            ["    Body_Text: str = ", '"""Does this hold: Priority \\"1-5\\"?"""', "Priority_1_5: bool = "],
        ),
        (
            {"text": "A line {n}", "stars": "{stars}"},
            ["    stars: Literal[1, 2, 3] = dspy.OutputField()"],
        ),
        (
            {"Text left": "A line {n}", "Text right": "A word {n}", "class": "{left}"},
            ["class_: Literal['left', 'right'] = dspy.OutputField()", "ft.PromptFormat(Task)", "ft.OpenAIPredictor("],
        ),
    ],
)
def test_init_writes_a_script_that_loads_columns_of_any_name(
    columns: dict[str, str], lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = [
        {"n": n, "yes": ["yes", "no"][n % 2], "left": ["left", "right"][n % 2], "stars": n % 3 + 1} for n in range(40)
    ]
    rows = [",".join(cell.format(**row) for cell in columns.values()) for row in cells]
    Path("x.csv").write_text("\n".join([",".join(columns), *rows]), encoding="utf-8")
    assert run("init", "x.csv") == 0
    source = Path("finetune-project/finetune.py").read_text(encoding="utf-8")
    for line in lines:
        assert line in source
    # The script as far as it asks no host: the signature is read, the rows are loaded, the prompt renders them.
    names: dict[str, Any] = {"__name__": "script"}
    exec(
        compile(
            source.partition("    # The local host trains")[0] + "    return prompt, train\n",
            "x",
            "exec",
            dont_inherit=True,
        ),
        names,
    )
    prompt, train = names["main"]()
    assert prompt.training_messages(train[0])


def test_init_asks_about_numbers_that_its_script_could_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("thing;price\n" + "".join(f"About thing {n};{n},50\n" for n in range(40)))
    assert run("init", "x.csv") == 1
    assert "(--decimal ,)" in capsys.readouterr().err
    assert not Path("finetune-project").exists()
    assert run("init", "x.csv", "--decimal", ",") == 0


@pytest.mark.parametrize("task", data._PRESETS)
def test_init_names_metrics_and_prompts_that_there_are(task: str) -> None:
    prompt, predictor, metric = data._PRESETS[task]
    assert isinstance(getattr(ft.metrics, metric)("label"), Metric)
    assert callable(eval(prompt.partition("(")[0], {"ft": ft}))
    assert callable(eval(predictor, {"ft": ft}))


def test_defaults_come_from_the_line_then_the_environment_then_the_file(
    titles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("pyproject.toml").write_text('[tool.dspy-finetune.split]\nout = "from-file"\n', encoding="utf-8")
    assert run("split", str(titles)) == 0
    assert Path("from-file/train.jsonl").exists()
    monkeypatch.setenv("DSPY_FINETUNE_SPLIT_OUT", "from-environment")
    assert run("split", str(titles)) == 0
    assert Path("from-environment/train.jsonl").exists()
    assert run("split", str(titles), "--out", "from-line") == 0
    assert Path("from-line/train.jsonl").exists()


def test_a_default_for_a_command_that_there_is_not_is_named(titles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pyproject.toml").write_text("[tool.dspy-finetune.trian]\nseed = 1\n", encoding="utf-8")
    assert run("split", str(titles), "--out", "data") == 2
    assert "[tool.dspy-finetune.trian] names no command" in capsys.readouterr().err


def test_an_error_of_a_default_names_where_it_stands(
    titles: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("pyproject.toml").write_text("[tool.dspy-finetune.split]\nfractions = [1, 2]\n", encoding="utf-8")
    assert run("split", str(titles), "--out", "x") == 2
    assert "--fractions is set by [tool.dspy-finetune.split] of pyproject.toml" in capsys.readouterr().err
    monkeypatch.setenv("DSPY_FINETUNE_SPLIT_SEED", "some")
    assert run("split", str(titles), "--out", "x", "--fractions", "1,2") == 2
    told = capsys.readouterr().err
    assert "'--seed': " in told
    assert "; --seed is set by DSPY_FINETUNE_SPLIT_SEED (see: " in told
    assert run("split", str(titles), "--out", "x", "--fractions", "1,2", "--seed", "1") == 2
    assert "is set by" not in capsys.readouterr().err


def test_commands_of_a_group_have_defaults_too(
    titles: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("pyproject.toml").write_text('[tool.dspy-finetune.jobs.list]\nhost = "of-file"\n', encoding="utf-8")
    assert run("jobs", "list") == 2
    assert "--host of-file: expected" in capsys.readouterr().err
    monkeypatch.setenv("DSPY_FINETUNE_JOBS_LIST_HOST", "of-environment")
    assert run("jobs", "list") == 2
    assert "--host of-environment: expected" in capsys.readouterr().err
    for table, told in (
        ("jobs.lst", "[tool.dspy-finetune.jobs.lst] names no command; the commands are list, "),
        ("jobs.show", "[tool.dspy-finetune.jobs.show] has no option 'hst'; see jobs show --help"),
    ):
        Path("pyproject.toml").write_text(f'[tool.dspy-finetune.{table}]\nhst = "local"\n', encoding="utf-8")
        assert run("jobs", "list") == 2
        assert told in capsys.readouterr().err


def test_doctor_never_shows_a_key_and_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-secret-of-a-test")
    # Some environments of the tests have no torch: then the main job cannot run there, and doctor says so.
    has_local = all(importlib.util.find_spec(name) for name in ("torch", "trl", "fastapi"))
    assert run("doctor", "--offline") == (0 if has_local else 1)
    shown = capsys.readouterr().out
    assert ("PROBLEM" in shown) is not has_local
    assert ('pip install "dspy-finetune[local]"' in shown) is not has_local
    assert "OPENAI_API_KEY is set" in shown
    assert "planted" not in shown
    monkeypatch.delenv("OPENAI_API_KEY")
    absent = [one for one in examine(offline=True) if one.area == "keys"]
    assert [one.level for one in absent] == ["warning"]
    assert "export OPENAI_API_KEY" in absent[0].remedy


def test_doctor_asks_each_host_whose_key_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeOpenAI()
    for name in ("NEBIUS", "FIREWORKS"):
        monkeypatch.setenv(f"{name}_API_KEY", "sk-planted")
    monkeypatch.setenv("NEBIUS_BASE_URL", server.url)
    monkeypatch.setenv("FIREWORKS_BASE_URL", "http://127.0.0.1:9/v1")  # nothing listens there
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "sk-planted")  # and no address
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT", raising=False)
    found = [one for one in examine() if one.area in ("keys", "hosts") and "training end" not in one.text]
    server.close()
    told = {one.text.split()[0].rstrip(":"): (one.level, one.text) for one in found}
    assert told["nebius"] == ("ok", "nebius: reachable, the key is accepted")
    assert told["NEBIUS_API_KEY"] == ("ok", "NEBIUS_API_KEY is set")
    assert [told[name][0] for name in ("azure", "fireworks", "OPENAI_API_KEY")] == ["warning"] * 3
    assert "TOGETHER_API_KEY" not in told
    assert "planted" not in str(found)
    assert [one for one in examine(offline=True) if one.text.startswith("nebius:")] == []


def test_quiet_leaves_results_and_errors(titles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("split", str(titles), "--out", "data", "--quiet") == 0
    said = capsys.readouterr()
    assert "data/train.jsonl: 32 rows" in said.out
    assert said.err == ""
    assert run("split", str(titles), "--out", "data") == 0
    assert capsys.readouterr().err != ""
    assert run("--quiet", "split", "gone.csv", "--out", "data") == 1
    assert "gone.csv: no such file" in capsys.readouterr().err


def test_a_delimiter_can_be_given_wherever_a_table_is_read(titles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commas in the header hide that another character parts the cells."""
    text = titles.read_text(encoding="utf-8").replace(",", "\t").replace("headline", "headline, in full")
    titles.with_suffix(".txt").write_text(text, encoding="utf-8")
    assert run("split", "titles.txt", "--out", "data", "--delimiter", "tab") == 0
    assert set(json.loads(Path("data/test.jsonl").read_text().splitlines()[0])) == {"id", "headline, in full", "liked"}
    assert run("init", "titles.txt", "--delimiter", "tab", "--label", "liked") == 0
    assert "signature=Task, delimiter='\\t')" in Path("finetune-project/finetune.py").read_text(encoding="utf-8")
    assert run("run", "titles.txt", "--delimiter", ";;", "--dry-run") == 2
    assert "give the one character between cells" in capsys.readouterr().err


def test_rows_without_a_label_are_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As a file from Excel in German is: a byte-order mark, semicolons, decimal commas, a cell without a price."""
    monkeypatch.chdir(tmp_path)
    table = ["Titel;Preis", *(f"Uhr Nummer {n};1.{n:03},50 €" for n in range(20)), "Uhr ohne Preis;"]
    (tmp_path / "uhren.csv").write_text("\r\n".join(table), encoding="utf-8-sig")
    assert run("split", str(tmp_path / "uhren.csv"), "--number", "Preis", "--out", "data") == 1
    assert 'say decimal="," (--decimal ,)' in capsys.readouterr().err
    options = ["--number", "Preis", "--decimal", ",", "--fractions", "0.8,0,0.2", "--out", "data"]
    assert run("split", str(tmp_path / "uhren.csv"), *options) == 0
    assert "1 of 21 rows have no 'Preis' and are left out: row 21 of" in capsys.readouterr().err
    found = [
        json.loads(line) for name in ("train", "test") for line in Path(f"data/{name}.jsonl").read_text().splitlines()
    ]
    assert sorted(row["Preis"] for row in found) == [1000.5 + n for n in range(20)]
    assert run("split", str(tmp_path / "uhren.csv"), "--label", "Pries", "--out", "data") == 2
    assert 'did you mean "Preis"?' in capsys.readouterr().err


def test_rows_with_equal_inputs_stay_together_whatever_their_number_is(tmp_path: Path) -> None:
    """An id makes every row another one; the inputs tell that it is not."""
    path = tmp_path / "claims.csv"
    path.write_text(
        "ref,text,paid\n" + "".join(f"R{n},claim number {n % 20},{n}\n" for n in range(60)), encoding="utf-8"
    )
    out = tmp_path / "parts"
    assert (
        run("split", str(path), "--text", "text", "--number", "paid", "--out", str(out), "--fractions", "0.8,0,0.2")
        == 0
    )
    sides = [
        {json.loads(line)["text"] for line in (out / f"{name}.jsonl").read_text().splitlines()}
        for name in ("train", "test")
    ]
    assert not sides[0] & sides[1]


def test_pairs_are_written_by_their_sides_and_ties_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.csv"
    lines = [f"thing {n},matter {n},{('thing', 'matter')[n % 2]} {n}" for n in range(20)]
    path.write_text("\n".join(["title_a,title_b,preferred_title", *lines, "x,y,tie", ""]), encoding="utf-8")
    assert run("split", str(path), "--pairs", "preferred_title", "--out", str(tmp_path / "parts")) == 0
    assert "1 of 21 rows prefer neither side" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "parts" / "train.jsonl").read_text().splitlines()]
    assert all(row["preferred_title"] == "AB"[int(row["title_a"].split()[1]) % 2] for row in rows)
    assert run("split", str(path), "--pairs", "title_a", "--out", str(tmp_path / "parts")) == 2


@pytest.mark.parametrize(
    ("column", "cells", "expected"),
    [
        ("score", ["3.799999952316284", "2.5999999046325684"], ["3.80", "2.60"]),
        ("price", ["€5", "€7.125"], ["€5.000", "€7.125"]),
        ("price", ["5", "7"], ["$5.00", "$7.00"]),
        ("size", ["5 MB", "7 MB"], ["5.00 MB", "7.00 MB"]),
    ],
)
def test_an_export_writes_numbers_as_the_file_has_them(
    column: str, cells: list[str], expected: list[str], tmp_path: Path
) -> None:
    """Marks, euros and megabytes were all written as dollars, unless `run` did the export."""
    rows = tmp_path / "rows.csv"
    rows.write_text(f"text,{column}\n" + "".join(f"row {n},{cell}\n" for n, cell in enumerate(cells)), encoding="utf-8")
    out = tmp_path / "train.jsonl"
    prompt = ["--preset", "number", "--signature", f"text -> {column}: float"]
    with pytest.raises(SystemExit):  # there are fewer rows than a host takes
        main(["export", "sft", str(rows), *prompt, "--out", str(out)])
    written = [json.loads(line)["messages"][-1]["content"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert written == expected
