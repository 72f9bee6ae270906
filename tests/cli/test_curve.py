"""`dspy-finetune curve` and `sweep`: the table, the files, one line for each fault, and no job paid for twice."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_finetune.cli.main import main
from tests.fake_hosts import FakeNebius
from tests.fake_openai import FakeOpenAI


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    server.script = ["succeeded"]
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("DSPY_FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name, n in (("train", 24), ("test", 12)):
        rows = [{"title": f"{name} {number}", "is_favorite": number % 2 == 0} for number in range(n)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield server
    server.close()


def run(*options: str, command: str = "curve") -> int:
    asked = "--test" if command == "curve" else "--validation"
    with pytest.raises(SystemExit) as stop:
        main([command, "train.jsonl", asked, "test.jsonl", "--preset", "binary", *options])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_it_prints_the_table_and_writes_the_files_and_the_second_call_trains_nothing(fake, capsys):
    model = ("--model", "gpt-4.1-nano-2025-04-14", "--epochs", "2")
    options = ("--sizes", "10,20", *model, "--html", "c.html", "--plot", "c.png", "--json-to", "c.json")
    assert run(*options) == 0
    shown = capsys.readouterr()
    assert "gpt-4.1-nano-2025-04-14, 2 epochs: accuracy [95%]" in shown.out
    assert "100 examples beyond 20 would change accuracy by +0.000 [+0.000, +0.000]" in shown.out
    assert "training" in shown.err
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in Path("c.html").read_text()
    assert run(*options, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {**json.loads(Path("c.json").read_text())}
    assert [run["is_new"] for run in printed["curve"]["runs"]] == [False, False]
    assert len(fake.jobs) == 2


def test_faults_are_one_line_and_the_right_code(fake, capsys):
    assert run("--sizes", "ten") == 2
    assert "--sizes ten" in capsys.readouterr().err
    assert run("--sizes", "10,20", "--max-usd", "0") == 1
    assert "more than the allowed $0.00" in capsys.readouterr().err
    assert run("--metric", "niceness") == 2
    fake.script = ["failed"]
    assert run("--sizes", "10") == 1
    assert "no model" in capsys.readouterr().out


def test_a_sweep_goes_over_hosts_and_saves_the_best(fake, capsys, monkeypatch):
    other = FakeNebius()
    other.script = ["succeeded"]
    monkeypatch.setenv("NEBIUS_BASE_URL", other.url)
    monkeypatch.setenv("NEBIUS_API_KEY", "k")
    # The other host is right about every row, ours (which always answers true) about half.
    other.answer = lambda body: str(int(body["messages"][-1]["content"].split()[-1]) % 2 == 0).lower()
    llama = "meta-llama/Llama-3.1-8B-Instruct"
    options = ("--model", "gpt-4.1-nano-2025-04-14", "--model", f"{llama}@nebius", "--epochs", "1,2")
    files = ("--learning-rate", "1e-5", "--max-usd", "5", "--save", "best.json", "--json-to", "s.json")
    assert run(*options, *files, command="sweep") == 0
    shown = capsys.readouterr()
    assert f"{llama} on nebius, n_epochs=1, learning_rate=1e-05 is the best of 4" in shown.out
    saved = json.loads(Path("best.json").read_text())
    assert saved["host"]["kind"] == "nebius"
    assert saved["model"] == json.loads(Path("s.json").read_text())["sweep"]["model"]["id"]
    assert (len(fake.jobs), len(other.jobs)) == (2, 2)
    assert run(*options, "--learning-rate", "1e-5", command="sweep") == 0
    assert (len(fake.jobs), len(other.jobs)) == (2, 2)
    other.close()


def test_faults_of_a_sweep_are_one_line_and_the_right_code(fake, capsys):
    for options, code, said in (
        (("--model", "m@nowhere"), 2, "--model m@nowhere: expected MODEL@HOST"),
        (("--learning-rate", "1e-5"), 2, 'no host of this sweep has a hyperparameter "learning_rate"'),
        (("--epochs", "1,x"), 2, "n_epochs='x'"),
        (("--epochs", "1,2", "--max-usd", "0"), 1, "more than the allowed $0.00"),
    ):
        named = () if "--model" in options else ("--model", "gpt-4.1-nano-2025-04-14")
        assert run(*options, *named, command="sweep") == code
        shown = capsys.readouterr().err
        assert said in shown
        assert len(shown.strip().splitlines()) == 1
    assert not fake.jobs
