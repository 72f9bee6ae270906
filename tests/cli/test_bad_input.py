"""What a newcomer does wrong: one line that says what to do, an exit code, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import os
import resource
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dspy_finetune.cli.main import main
from dspy_finetune.errors import FinetuneError
from dspy_finetune.export import export_sft
from dspy_finetune.hosts import Host
from dspy_finetune.predictors import OpenAIPredictor
from dspy_finetune.prompts import binary

ROWS = "".join(
    f'{{"title": "A quiet town, part {n}", "is_favorite": {"true" if n % 2 else "false"}}}\n' for n in range(20)
)

CASES: list[tuple[str, int, str]] = [
    # Wrong usage
    ("", 2, "Usage: dspy-finetune"),
    ("nonsense", 2, "No such command 'nonsense' (see: dspy-finetune --help)"),
    ("export sft rows.jsonl --preset binary", 2, "Missing option '--out'"),
    ("export rft rows.jsonl --preset binary --out new.jsonl", 2, "'rft' is not one of 'sft', 'dpo'"),
    ("export sft rows.jsonl --preset binary --out new.jsonl --limt 3", 2, "No such option: --limt"),
    ("export sft rows.jsonl --preset binary --out new.jsonl --limit 0", 2, "--limit"),
    ("export sft rows.jsonl --out new.jsonl", 2, "give --preset or --signature, or else --prompt"),
    ("export sft rows.jsonl --preset binary --out rows.jsonl", 2, "rows.jsonl is the file that the examples come from"),
    ("export sft rows.jsonl --preset binary --out new.jsonl --dialect klingon", 2, "choose one of openai"),
    ("export sft rows.jsonl --preset binary --out new.jsonl --rename headline", 2, "old=new"),
    ("check train.jsonl --method best", 2, "choose one of sft, dpo, rft"),
    ("convert train.jsonl new.jsonl --to klingon", 2, "choose one of openai"),
    ("convert train.jsonl train.jsonl --to trl", 2, "is the input itself"),
    ("check train.jsonl --fix train.jsonl", 2, "would overwrite its input"),
    ("compare rows.jsonl --program saved.json", 2, "NAME=FILE"),
    ("plan train.jsonl --host nowhere", 2, "expected local, openai, azure"),
    ("plan train.jsonl --epochs many", 2, "from 1 to 50"),
    ("plan train.jsonl --metadata x", 2, "KEY=VALUE"),
    ("quickstart --size huge", 2, "choose one of full, small"),
    ("quickstart --rubric rubric.txt", 2, "give --data too"),
    ("quickstart --data rows.jsonl --rubric latin.jsonl", 2, "latin.jsonl is not UTF-8 (byte 15)"),
    ("serve --port 99999", 2, "65535"),
    ("serve --dtype int3", 2, "float32, bfloat16"),
    ("serve --root home --model folder", 2, "no config.json"),
    # Missing files
    ("export sft gone.jsonl --preset binary --out new.jsonl", 1, "gone.jsonl: no such file"),
    ("export sft rows.jsonl --prompt gone.json --out new.jsonl", 1, "gone.json: no such file"),
    ("export sft rows.jsonl --preset binary --rubric @gone --out new.jsonl", 1, "gone: no such file"),
    ("check gone.jsonl", 1, "gone.jsonl: no such file"),
    ("check train.jsonl --validation gone.jsonl", 1, "gone.jsonl: no such file"),
    ("convert gone.jsonl new.jsonl --to trl", 1, "gone.jsonl: no such file"),
    ("compare gone.jsonl --program a=saved.json", 1, "gone.jsonl: no such file"),
    ("compare rows.jsonl --program a=gone.json", 1, "gone.json: no such file"),
    ("plan gone.jsonl", 1, "gone.jsonl: no such file"),
    ("plan train.jsonl --env-file gone", 1, "gone: no such file"),
    ("quickstart --data gone.jsonl", 1, "gone.jsonl: no such file"),
    ("quickstart --data rows.jsonl --rubric gone", 1, "gone: no such file"),
    # Wrong columns
    ("export sft rows.jsonl --preset pairwise --out new.jsonl", 2, "no column 'title_a'; it has: title, is_favorite"),
    ("export sft rows.jsonl --preset binary --rename head=title --out new.jsonl", 2, "no column 'head'"),
    ("compare pairs.jsonl --program a=saved.json", 2, "no column 'title'"),
    ("quickstart --data rows.jsonl --text headline", 2, "no column 'headline'"),
    # Nothing in it, or too little
    ("export sft empty.jsonl --preset binary --out new.jsonl", 1, "empty.jsonl holds no rows"),
    ("convert empty.jsonl new.jsonl --to trl", 1, "empty.jsonl holds no rows"),
    ("compare empty.jsonl --program a=saved.json", 1, "empty.jsonl holds no rows"),
    ("plan empty.jsonl", 1, "empty.jsonl"),
    ("quickstart --data empty.jsonl", 1, "empty.jsonl holds no rows"),
    ("quickstart --data few.jsonl --out short", 1, "at least 10"),
    ("quickstart --data liked.jsonl --out short", 1, "is negative"),
    # A folder where a file should be, and the other way round
    ("check folder", 1, "folder: it is a folder; name a file"),
    ("convert folder new.jsonl --to trl", 1, "folder: it is a folder; name a file"),
    ("export sft folder --preset binary --out new.jsonl", 1, "cannot read folder"),
    ("compare rows.jsonl --program a=folder", 1, "folder holds no saved predictor"),
    ("plan folder", 1, "folder: it is a folder; name a file"),
    ("plan train.jsonl --env-file folder", 1, "folder: it is a folder; name a file"),
    ("export sft rows.jsonl --preset binary --out folder", 1, "folder: it is a folder; name a file"),
    ("export sft rows.jsonl --preset binary --out rows.jsonl/new.jsonl", 1, "a part of the path is a file"),
    ("convert train.jsonl rows.jsonl/new.jsonl --to trl", 1, "a part of the path is a file"),
    ("check train.jsonl --fix rows.jsonl/new.jsonl", 1, "a part of the path is a file"),
    ("quickstart --data rows.jsonl --out rows.jsonl", 1, "a part of the path is a file"),
    ("quickstart --data rows.jsonl --out rows.jsonl/new", 1, "a part of the path is a file"),
    ("serve --root rows.jsonl", 1, "a part of the path is a file"),
    # Files that cannot be read
    ("export sft latin.jsonl --preset binary --out new.jsonl", 1, "latin.jsonl:1: not UTF-8"),
    ("export sft utf16.jsonl --preset binary --out new.jsonl", 1, "the file is UTF-16"),
    ("convert latin.jsonl new.jsonl --to trl", 1, "latin.jsonl:1: not UTF-8: byte 0xe9 at byte offset 14"),
    ("quickstart --data latin.jsonl", 1, "latin.jsonl:1: not UTF-8"),
    ("plan train.jsonl --env-file latin.jsonl", 1, "not UTF-8"),
    ("compare rows.jsonl --program a=rows.jsonl", 1, "is not a saved predictor"),
    ("export sft rows.jsonl --prompt rows.jsonl --out new.jsonl", 1, "not JSON"),
    # No host, no key
    ("jobs list", 1, "set OPENAI_API_KEY"),
    ("models --host http://127.0.0.1:9/v1", 1, "check the address"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good files, broken ones, and none of the names that the commands would write."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "few.jsonl").write_text("".join(ROWS.splitlines(keepends=True)[:8]))
    (tmp_path / "liked.jsonl").write_text(ROWS.replace("false", "true"))
    (tmp_path / "pairs.jsonl").write_text('{"title_a": "Owls", "title_b": "Golf", "preferred": "A"}\n')
    (tmp_path / "rubric.txt").write_text("Likes quiet towns.")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "latin.jsonl").write_bytes('{"title": "café", "is_favorite": true}\n'.encode("latin-1"))
    (tmp_path / "utf16.jsonl").write_bytes(ROWS.encode("utf-16"))
    monkeypatch.chdir(tmp_path)
    titles = [{"title": f"A quiet town, part {n}", "is_favorite": n % 2 == 0} for n in range(12)]
    export_sft(titles, binary(), "train.jsonl")
    host = Host.compatible("http://127.0.0.1:9/v1", api_key="k")
    OpenAIPredictor(binary(), "some-model", host=host).save("saved.json")
    return tmp_path


def run(line: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(line))
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize(("line", "code", "phrase"), CASES, ids=[line or "nothing" for line, _, _ in CASES])
def test_what_is_wrong_is_said_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], line: str, code: int, phrase: str
) -> None:
    assert run(line) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert phrase in captured.err
    # What comes before the error is talk; a list of bad rows or the help may follow it.
    assert sum(text.startswith("error: ") for text in captured.err.splitlines()) == (line != "")
    assert not list(place.rglob("new.jsonl*"))
    assert not list(place.rglob("*.part"))


@pytest.mark.parametrize("line", ["check latin.jsonl", "check utf16.jsonl", "check empty.jsonl", "check rows.jsonl"])
def test_a_check_reports_faults_of_the_file_as_results(
    place: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    assert run(line) == 1
    captured = capsys.readouterr()
    assert "not ok" in captured.out
    assert "error:" not in captured.err


def test_a_row_with_a_wrong_label_is_named_by_its_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "rows.jsonl").write_text(ROWS + '{"title": "x", "is_favorite": "perhaps"}\n')
    assert run("export sft rows.jsonl --preset binary --out new.jsonl") == 1
    assert "rows.jsonl:21" in capsys.readouterr().err
    assert not (place / "new.jsonl").exists()


def test_a_port_in_use_is_named(place: Path, capsys: pytest.CaptureFixture[str], toy_weights: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(f"serve --root home --port {port}") == 1
    assert f"port {port} on 127.0.0.1 is in use; choose another with --port" in capsys.readouterr().err
    assert not (place / "home" / "server.json").exists()


@pytest.fixture
def toy_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port is looked at after the weights; they need not be there for that."""
    monkeypatch.setattr("dspy_finetune.local.server.check_base", lambda base: None)


ABSENT = [
    ("typer", "--help", "cli"),
    ("rich", "check train.jsonl", "cli"),
    ("sklearn", "compare rows.jsonl --program a=saved.json --train rows.jsonl", "eval"),
    ("scipy", "compare rows.jsonl --program a=saved.json --train rows.jsonl", "eval"),
    ("jinja2", "compare rows.jsonl --program a=saved.json --html new.html", "report"),
    ("matplotlib", "compare rows.jsonl --program a=saved.json --html new.html", "report"),
    ("pyarrow", "export sft rows.parquet --preset binary --out new.jsonl", "data"),
    ("datasets", "export sft hf://folder --preset binary --out new.jsonl", "data"),
    *((name, "serve --root home", "local") for name in ("torch", "trl", "fastapi", "uvicorn", "python_multipart")),
]


@pytest.mark.parametrize(("module", "line", "extra"), ABSENT, ids=[module for module, _, _ in ABSENT])
def test_a_missing_package_is_named_with_its_extra(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    line: str,
    extra: str,
) -> None:
    # None in sys.modules is how Python spells "cannot be imported"; parts that are loaded already count too.
    for name in [module, *(loaded for loaded in sys.modules if loaded.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    # Where scipy is missing scikit-learn is not loaded either: an earlier test may have loaded it.
    for name in [loaded for loaded in sys.modules if module == "scipy" and loaded.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    asked: list[object] = []
    monkeypatch.setattr(OpenAIPredictor, "__call__", lambda self, **inputs: asked.append(inputs))
    (place / "rows.parquet").write_bytes(b"PAR1")
    assert run(line) == 1
    (told,) = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
    assert module in told
    assert f'pip install "dspy-finetune[{extra}]"' in told
    assert asked == []  # nothing is paid for before it is known that the report can be written
    assert not list(place.rglob("new.*"))


WRITERS = [
    "export sft rows.jsonl --preset binary --out new.jsonl",
    "convert train.jsonl new.jsonl --to trl",
    "check train.jsonl --fix new.jsonl",
]


@pytest.mark.parametrize("line", WRITERS)
def test_a_full_disk_leaves_no_file(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = sorted(place.iterdir())
    assert run(line) == 1
    assert "no space left on the device; free some space" in capsys.readouterr().err
    assert sorted(place.iterdir()) == before


def test_a_write_that_stops_half_way_leaves_no_file(place: Path) -> None:
    # The system itself stops the write here, after 1,000 of about 3,000 bytes.
    done = subprocess.run(
        [sys.executable, "-m", "dspy_finetune.cli.main", *shlex.split(WRITERS[0])],
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "DSPY_FINETUNE_QUIET": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: cannot write new.jsonl: the file is larger than is allowed here")
    assert not [path for path in place.iterdir() if "new.jsonl" in path.name]


def test_lost_connections_are_told_with_their_reason(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "rows.jsonl").write_text("".join(ROWS.splitlines(keepends=True)[:2]))
    run("compare rows.jsonl --program a=saved.json")
    assert "warning: a: 2 of 2 calls failed" in capsys.readouterr().err


def test_debug_shows_where_it_happened(place: Path) -> None:
    with pytest.raises(FinetuneError, match="no such file"):
        main(["check", "gone.jsonl", "--debug"])


def test_a_reader_that_goes_away_is_no_error(place: Path) -> None:
    command = f"{sys.executable} -m dspy_finetune.cli.main check train.jsonl --show 12 --quiet"
    line = f"{command} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is always full is Linux's")
@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("--version > /dev/full", 1, "error: cannot write the output: No space left on device\n"),
        (
            "check train.jsonl --show 12 --quiet > /dev/full",
            1,
            "error: cannot write the output: No space left on device\n",
        ),
        ("check train.jsonl --quiet >&-", 0, ""),
        ("check gone.jsonl --quiet 2>&-", 1, ""),
    ],
)
def test_an_output_that_is_full_or_closed_ends_in_one_line_at_most(
    command: str, code: int, told: str, place: Path
) -> None:
    line = f"{sys.executable} -m dspy_finetune.cli.main {command}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, told)


def test_a_folder_in_the_place_of_a_training_file_is_told_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hosts folder") == 1
    assert capsys.readouterr() == ("", "error: cannot read folder: it is a folder; name a file\n")
