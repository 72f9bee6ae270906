"""The embedded local server: find the one of a root folder, or start it, and stop it at exit.

In: a root folder. Out: its address and key, once it answers. The server is another program of this package, reached
over HTTP only and never imported; this module knows its command line, its `server.json` and `/healthz`, nothing else.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from dspy_finetune._files import file_error, process_lock
from dspy_finetune._progress import ProgressBar
from dspy_finetune.errors import HostError, MissingExtraError, UsageError
from dspy_finetune.tasks import ENCODER_PACKAGE, PACKAGED_ENCODER

HOME_VARIABLE = "DSPY_FINETUNE_HOME"
START_SECONDS = 120.0
STOP_SECONDS = 40.0
"""The server ends open requests (5 s) and lets its worker end a step (20 s); killed sooner, it leaves the worker."""

FULL_BYTES = 2**20

_STARTED: dict[str, subprocess.Popen[bytes]] = {}
_GUARD = threading.RLock()
# Loopback is never behind a proxy, whatever HTTP_PROXY says.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running local server."""

    url: str
    """The address of the API, with `/v1`."""
    pid: int | None
    """Its process; None where it was given by address."""
    key: str = field(repr=False)
    """The token that it wants; never shown."""


def home() -> Path:
    """Where the library keeps what outlives a process: $DSPY_FINETUNE_HOME, or `dspy-finetune` in the user's data."""
    given = os.environ.get(HOME_VARIABLE)
    if given:
        return Path(given).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "dspy-finetune"


def default_root() -> Path:
    """The embedded server's folder, as `serve` has it: $DSPY_FINETUNE_HOME, or a folder in the user's data."""
    return home() if os.environ.get(HOME_VARIABLE) else home() / "local"


def tokenizer_file(base: str) -> Path | None:
    """The tokenizer of a base model of the local host, if it lies on this machine: in a folder of its own, in the
    sentence encoder's package, or among the weights that the host has converted."""
    if base == PACKAGED_ENCODER and (spec := importlib.util.find_spec(ENCODER_PACKAGE)) is not None:
        folders = spec.submodule_search_locations or []
        return next((file for one in folders if (file := Path(one) / "model" / "tokenizer.json").is_file()), None)
    own = Path(base).expanduser() / "tokenizer.json"
    if own.is_file():
        return own
    if own.is_absolute():  # a folder without one
        return None
    shared = os.environ.get("XDG_CACHE_HOME")
    usual = (Path(shared) if shared else Path.home() / ".cache") / "dspy-finetune"
    cache = Path(os.environ.get("DSPY_FINETUNE_CACHE") or usual).expanduser()
    return next((cache / "models").glob(f"{glob.escape(base)}-*/tokenizer.json"), None)


def api_url(url: str) -> str:
    """The address of the API: `/v1` is added where only a host and port stand.

    >>> api_url("http://127.0.0.1:8000")
    'http://127.0.0.1:8000/v1'
    """
    bare = url.rstrip("/")
    return bare if bare.count("/") > 2 else f"{bare}/v1"


def is_alive(pid: int | None) -> bool:
    """True while the process runs; True where that cannot be asked, as health then decides."""
    if pid is None or sys.platform == "win32":
        return True
    for process in list(_STARTED.values()):
        if process.pid == pid and process.poll() is not None:
            return False  # ours, and gone: without this a zombie still takes signal 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_healthy(url: str, *, timeout_seconds: float = 3.0) -> bool:
    """True if `/healthz` answers."""
    base = api_url(url).removesuffix("/v1")
    try:
        with _OPENER.open(f"{base}/healthz", timeout=timeout_seconds) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def read_server(root: Path) -> Server | None:
    """The server that the root's `server.json` speaks of, if its process lives."""
    try:
        facts = json.loads((root / "server.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict) or not isinstance(facts.get("url"), str):
        return None
    pid = facts.get("pid")
    pid = pid if isinstance(pid, int) else None
    if not is_alive(pid):
        return None
    key = facts.get("api_key") or facts.get("token") or "local"
    return Server(url=api_url(facts["url"]), pid=pid, key=str(key))


def find_server(root: Path) -> Server | None:
    """The running, answering server of this root folder, or None."""
    server = read_server(root)
    return server if server is not None and is_healthy(server.url) else None


def ensure_server(root: Path, *, model: str | None = None, timeout_seconds: float = START_SECONDS) -> Server:
    """Find the root's server or start it; two processes that ask at once share one.

    Raises:
        MissingExtraError: What the server needs is not installed.
        HostError: It did not come up in time; the message holds its log's last line.
        FileError: The root folder cannot be used.
        UsageError: The root's path is no text.
    """
    root = root.expanduser().absolute()
    try:
        str(root).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the path {str(root)!r} of the local host holds bytes that are no text here; set PYTHONUTF8=1, or choose "
            "another folder (--root)"
        ) from error
    found = find_server(root)
    if found is not None:
        return found
    _need_extra()
    with _GUARD, process_lock(root / "start.lock"):
        found = find_server(root)
        if found is not None:
            return found
        return _start(root, model, timeout_seconds)


def is_started_here(root: Path) -> bool:
    """Whether this process started the root's server, and so stops it at its own end."""
    process = _STARTED.get(str(root.expanduser().absolute()))
    return process is not None and process.poll() is None


def stop_server(root: Path, *, timeout_seconds: float = STOP_SECONDS) -> None:
    """Stop the server of this root, if this process started it."""
    with _GUARD:
        process = _STARTED.pop(str(root.expanduser().absolute()), None)
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _need_extra() -> None:
    for module in ("fastapi", "uvicorn", "python_multipart", "torch", "transformers", "trl", "peft"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(
                f'the local host needs the package "{module}", which is not installed:'
                ' pip install "dspy-finetune[local]"'
            )


def _command(root: Path, model: str | None) -> list[str]:
    command = [sys.executable, "-m", "dspy_finetune.local", "--root", str(root), "--host", "127.0.0.1", "--port", "0"]
    command += ["--die-with", str(os.getpid())]
    return command + (["--model", model] if model else [])


def _start(root: Path, model: str | None, timeout_seconds: float) -> Server:
    log_path = root / "server.log"
    try:
        # A file of a dead server would be read as the new one's.
        (root / "server.json").unlink(missing_ok=True)
        with open(log_path, "ab") as log:
            process = subprocess.Popen(
                _command(root, model),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C in the terminal is for the caller; the server is stopped at exit, in order.
                start_new_session=True,
            )
    except OSError as error:
        raise file_error(error, log_path, "start the local host with the log") from error
    _STARTED[str(root)] = process
    _stop_at_exit()
    deadline = time.monotonic() + timeout_seconds
    with ProgressBar(stays=False) as line:
        while process.poll() is None and time.monotonic() < deadline:
            found = find_server(root)
            if found is not None:
                return found
            line.show("starting the local host")
            time.sleep(0.05)
    ended = process.poll()
    last = last_line(log_path)
    stop_server(root)
    if "dspy-finetune[local]" in last:
        raise MissingExtraError(last.removeprefix("error: "))
    what = f"ended with code {ended}" if ended is not None else f"did not answer within {timeout_seconds:.0f} s"
    if not last:  # on a full disk its own words are lost
        is_full = shutil.disk_usage(root).free < FULL_BYTES
        last = (
            f"the disk of {root} is full; free some space or choose another folder (--root)" if is_full else "no output"
        )
    raise HostError(f"the local host {what}: {last} (whole log: {log_path})")


def last_line(path: Path) -> str:
    """The last line of a log that holds text; empty if there is none."""
    with contextlib.suppress(OSError):
        lines = path.read_bytes()[-8192:].decode("utf-8", "replace").splitlines()
        for line in reversed(lines):
            if line.strip():
                return line.strip()
    return ""


_registered_for: int | None = None


def _stop_at_exit() -> None:
    global _registered_for
    if _registered_for != os.getpid():
        _registered_for = os.getpid()
        atexit.register(_stop_all, os.getpid())


def _stop_all(owner: int) -> None:
    # A forked child inherits the list but not the servers.
    if owner == os.getpid():
        for root in list(_STARTED):
            stop_server(Path(root))
