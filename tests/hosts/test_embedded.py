"""The embedded server is found or started once, dies with its user, and tells why it did not start."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dspy_finetune.errors import HostError, MissingExtraError, UsageError
from dspy_finetune.hosts import Host, embedded

# Stands for `python -m dspy_finetune.local`: the same options, the same server.json, no torch.
SERVER = """
import json, os, pathlib, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
root = pathlib.Path(options["--root"])
if (root / "refuse").exists():
    words = (root / "refuse").read_text()
    print("loading" if words else ""); sys.exit(words)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"object": "list", "data": []}'
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
facts = {"url": f"http://127.0.0.1:{server.server_port}/v1", "pid": os.getpid(), "api_key": "token", "argv": sys.argv}
with open(root / "starts", "a") as stream: stream.write("x")
(root / "server.json").write_text(json.dumps(facts))
def watch():
    while os.getppid() == int(options["--die-with"]): time.sleep(0.05)
    os._exit(0)
threading.Thread(target=watch, daemon=True).start()
server.serve_forever()
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    folder = tmp_path / "root"
    folder.mkdir()
    command = embedded._command

    def stand_in(root: Path, model: str | None) -> list[str]:
        arguments = command(root, model)
        assert arguments[:3] == [sys.executable, "-m", "dspy_finetune.local"]
        return [sys.executable, str(script), *arguments[3:]]

    monkeypatch.setattr(embedded, "_command", stand_in)
    yield folder
    embedded.stop_server(folder)


def test_the_first_use_starts_it_and_the_second_finds_it(root: Path) -> None:
    host = Host.local(root=root, base_model="toy")
    assert host.base_url is None
    assert not host.stops_with_process()
    assert not (root / "starts").exists()
    assert host.client().models.list().data == []
    assert host.client().api_key == "token"
    other = Host.local(root=root)
    assert other.connection() == host.connection()
    # Who follows a job says so: what runs elsewhere goes on, this does not.
    assert host.stops_with_process()
    assert not Host.local(str(host.base_url)).stops_with_process()
    assert (root / "starts").read_text() == "x"
    facts = json.loads((root / "server.json").read_text())
    assert facts["argv"][-2:] == ["--model", "toy"]
    assert (root / "server.log").exists()
    host.close()
    assert not host.stops_with_process()
    assert embedded.find_server(root) is None


def test_threads_that_ask_at_once_start_one(root: Path) -> None:
    found: list[str | None] = []
    threads = [threading.Thread(target=lambda: found.append(Host.local(root=root).connection()[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert (root / "starts").read_text() == "x"


def test_a_server_that_died_is_started_again_in_the_same_host(root: Path) -> None:
    host = Host.local(root=root)
    first = host.connection()
    embedded.stop_server(root)
    assert not host.is_connected()
    assert host.connection() != first
    assert host.client().models.list().data == []


def test_a_stale_server_file_is_not_believed(root: Path) -> None:
    (root / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:9/v1", "pid": os.getpid()}))
    assert embedded.find_server(root) is None
    (root / "server.json").write_text("{torn")
    assert embedded.read_server(root) is None
    assert Host.local(root=root).client().models.list().data == []


def test_a_server_that_does_not_start_says_why(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "refuse").write_text("error: the disk is full")
    with pytest.raises(HostError, match=r"ended with code 1: error: the disk is full .*server\.log"):
        Host.local(root=root).client()
    (root / "refuse").write_text("")
    (root / "server.log").unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(HostError, match=r"the disk of .* is full; free some space"):  # where its own words are lost
        Host.local(root=root).client()
    (root / "refuse").write_text('error: it needs "trl": pip install "dspy-finetune[local]"')
    with pytest.raises(MissingExtraError, match=r"dspy-finetune\[local\]"):
        Host.local(root=root).client()


def test_a_missing_extra_is_told_before_anything_starts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(MissingExtraError, match=r'"torch".*pip install "dspy-finetune\[local\]"'):
        Host.local(root=root).client()
    assert not (root / "starts").exists()


def test_a_root_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="part of the path is a file"):
        Host.local(root=tmp_path / "file" / "root").client()


def _start_and_leave(root: Path, script: Path) -> None:
    command = embedded._command
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            embedded, "_command", lambda folder, model: [sys.executable, str(script), *command(folder, model)[3:]]
        )
        Host.local(root=root).client()


def test_the_server_ends_with_the_process_that_started_it(root: Path, tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_start_and_leave, args=(root, tmp_path / "server.py"))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert (root / "starts").read_text() == "x"
    assert embedded.find_server(root) is None


def test_importing_and_describing_a_local_host_starts_nothing(root: Path) -> None:
    host = Host.local(root=root)
    assert repr(host) == f"Host.local(root={str(root)!r})"
    assert host.to_dict() == {"kind": "local", "name": "local", "root": str(root)}
    host.lm("m")
    host.close()
    assert list(root.iterdir()) == []


def test_a_path_that_is_no_text_is_refused_before_the_server_starts(tmp_path: Path) -> None:
    """The server names its root in JSON, and would not answer at all."""
    with pytest.raises(UsageError, match=r"PYTHONUTF8=1"):
        embedded.ensure_server(tmp_path / "b\udcfcro")
    assert list(tmp_path.iterdir()) == []


def test_a_program_is_served_whatever_defaults_lie_in_the_folder_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are for people's commands; a file that is no TOML kept the host from starting."""
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text("[tool.dspy-finetune", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["dspy_finetune.local", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("dspy_finetune.local", run_name="__main__")
    said = capsys.readouterr()
    assert (stop.value.code, said.err) == (0, "")
    assert "dspy-finetune serve" in said.out
