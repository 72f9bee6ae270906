"""The running server: binds a port, tells where it is, and stops with everything it started.

In: options. Out: one JSON line on stdout, root/server.json (mode 600), and a server until SIGTERM, Ctrl-C or the death
of the process it belongs to. A server that others can reach asks for a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import os
import queue
import resource
import shutil
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_finetune._files import atomic_writer, file_error, try_lock
from dspy_finetune._optional import require
from dspy_finetune._progress import told_if_slow
from dspy_finetune.errors import HostError, UsageError
from dspy_finetune.local.models import PACKAGED_MODEL, check_base

logger = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""How long requests in work may take once the server is asked to stop; after half of it the engine gives up."""
KEEP_ALIVE_SECONDS = 120
"""How long an idle connection is kept: longer than clients keep theirs (httpx 5, aiohttp 15, Go 90 seconds), since one
that is closed as a request goes out is a failure at the client. uvicorn's own 5 met httpx's."""
LEAVE_SECONDS = 2.0
"""How long the process may take to end once all is stopped."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What `dspy-finetune serve` was asked for."""

    root: Path
    """Where files, jobs and models are kept."""
    host: str = "127.0.0.1"
    """Where to listen. Beyond loopback `api_key` is needed."""
    allowed_hosts: tuple[str, ...] = ()
    """More names that the Host header may have, such as a proxy's; those of loopback always may."""
    port: int = 0
    """0: a free one."""
    models: tuple[str, ...] = (PACKAGED_MODEL,)
    """Base models that are offered."""
    api_key: str | None = None
    """None: any key is accepted."""
    die_with: int | None = None
    """Stop when this process is gone."""
    device: str | None = None
    """None: the GPU where there is one."""
    n_threads: int | None = None
    """None: what OMP_NUM_THREADS says, else as many as the affinity, a container's quota and other programs leave."""
    dtype: str = "auto"
    """Serving's number format; "auto": float32 on a CPU, half precision on a GPU."""
    training_dtype: str = "auto"
    """The number format of training's products; "auto": what is fast on the device."""
    memory_gb: float | None = None
    """What a job may take, in units of 1e9 bytes; None: what is free."""
    n_processes: int = 1
    """Processes that train one job together: one for each GPU."""
    launch_config: Path | None = None
    """A file of `accelerate config` that says how to start them; None: on this machine."""
    max_models: int = 4
    """Models in memory at the same time."""
    worker_module: str = "dspy_finetune.local.worker"
    """The module that is run for each job."""


def default_root() -> Path:
    """Where the host keeps its state when nothing else is said: DSPY_FINETUNE_HOME, else XDG_DATA_HOME's folder."""
    given = os.environ.get("DSPY_FINETUNE_HOME")
    if given:
        return Path(given).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "dspy-finetune" / "local"


def serve(options: ServeOptions) -> None:
    """Run until stopped.

    Raises:
        MissingExtraError: The extra `local`, or the packaged weights, are not installed.
        HostError: The port is in use, or another server has this root.
        FileError: The root cannot be written to.
        UsageError: A base model cannot be had, or no key stands before an address that others can reach.
    """
    uvicorn = require("uvicorn", "local", "the local host")
    for module in ("fastapi", "python_multipart", "torch", "transformers", "trl", "peft", "llguidance"):
        _find(module)
    is_local = is_loopback(options.host)
    if not is_local and not options.api_key:
        raise UsageError(
            f"--host {options.host} can be reached by others, and no key is asked for; give one with --api-key (or "
            "DSPY_FINETUNE_LOCAL_API_KEY), or listen on 127.0.0.1"
        )
    for base in options.models:
        check_base(base)
    _raise_open_files()
    # FastAPI and the store are imported late: an option that is wrong is told at once, without them.
    with told_if_slow("starting the local host: importing FastAPI", _say):
        from dspy_finetune.local.api import Host, create_app
        from dspy_finetune.local.guards import LOOPBACK_NAMES
        from dspy_finetune.local.scheduler import STOP_SECONDS, Scheduler, Training
        from dspy_finetune.local.store import Store

    root = options.root.expanduser().resolve()
    with told_if_slow(f"starting the local host: reading the records in {root}", _say):
        store = Store(root)
    lock = try_lock(store.root / "server.lock")
    if lock is None:
        raise HostError(
            f"another server already uses {store.root}{_address(store.root)}; use it, or choose another --root"
        )
    _clear_incoming(store.root / "incoming")
    listener = _bind(options.host, options.port)
    scheduler = Scheduler(
        store,
        device=options.device,
        n_threads=options.n_threads,
        training=Training(
            dtype=options.training_dtype,
            memory_bytes=None if options.memory_gb is None else round(options.memory_gb * 1e9),
            n_processes=options.n_processes,
            launch_config=options.launch_config,
        ),
        worker_module=options.worker_module,
    )
    host = Host(
        store,
        scheduler,
        base_models=options.models,
        api_key=options.api_key,
        open_bases=is_local,
        dtype=options.dtype,
        max_models=options.max_models,
        # Who has the key may come by any name; without one, a name that is not ours is an attack by DNS.
        names=LOOPBACK_NAMES | {options.host.lower(), *map(str.lower, options.allowed_hosts)} if is_local else None,
    )
    shown = f"[{options.host}]" if ":" in options.host else options.host
    facts = {
        "url": f"http://{shown}:{listener.getsockname()[1]}/v1",
        "pid": os.getpid(),
        "root": os.fspath(store.root),
        "models": list(options.models),
    }

    class Server(uvicorn.Server):  # type: ignore[name-defined]  # uvicorn comes through require()
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                _announce(store.root, facts, options.api_key)

        async def shutdown(self, sockets: Any = None) -> None:
            jobs = await asyncio.to_thread(host.begin_close)
            n_requests = len(self.server_state.tasks)
            if jobs or n_requests:
                waits = [f"{n_requests} requests (at most {GRACE_SECONDS:.0f} seconds)"] if n_requests else []
                waits += [f"the step of {job.id} (at most {STOP_SECONDS:.0f} seconds)" for job in jobs]
                logger.warning("stopping; waiting for %s", " and ".join(waits))
            asyncio.get_running_loop().call_later(GRACE_SECONDS / 2, host.give_up)
            await super().shutdown(sockets=sockets)
            # Here, not after run(): that ends by raising the signal again, which for SIGTERM ends the process at once.
            (store.root / "server.json").unlink(missing_ok=True)
            threading.Thread(target=_leave, args=(log,), name="leave", daemon=True).start()
            log.flush()

    config = uvicorn.Config(
        create_app(host),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        lifespan="on",
    )
    server = Server(config)
    log = Log()
    if options.die_with is not None:
        threading.Thread(target=_follow, args=(options.die_with, server), name="follow", daemon=True).start()
    logging.basicConfig(handlers=[log], level=logging.WARNING, format="%(message)s")
    try:
        server.run(sockets=[listener])
    finally:
        log.flush()
        listener.close()
        os.close(lock)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone.

    Examples:
        >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8", "0.0.0.0", "", "a.example")]
        [True, True, True, True, False, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _clear_incoming(folder: Path) -> None:
    """Where uploads stand while they come: on the root's disk, not in a /tmp that may be memory."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise file_error(error, folder, "write to") from error
    tempfile.tempdir = os.fspath(folder)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody need listen
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


MOST_OPEN_FILES = 8192
"""Each client takes one. Often a process may have 1024, on macOS 256, unless it asks for more."""


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _find(module: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        require(module, "local", "the local host")


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise HostError(
                f"port {port} on {host} is in use; choose another with --port (0 finds a free one)"
            ) from error
        if isinstance(error, OSError) and error.errno == errno.EACCES:
            raise HostError(f"no permission to use port {port}; choose one above 1023 with --port") from error
        raise UsageError(f"cannot listen on {host} port {port}: {error}") from error
    return listener


def _announce(root: Path, facts: dict[str, Any], api_key: str | None) -> None:
    described = {**facts, "api_key": api_key or "local", "started_at": time.time()}
    mask = os.umask(0o077)
    try:
        with atomic_writer(root / "server.json") as stream:
            stream.write(json.dumps(described, indent=2).encode() + b"\n")
    finally:
        os.umask(mask)
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _address(root: Path) -> str:
    try:
        return f" at {json.loads((root / 'server.json').read_bytes())['url']}"
    except (OSError, ValueError, KeyError):
        return ""


class Log(logging.Handler):
    """The log on stderr, written by a thread of its own.

    Whoever started the server may leave its stderr unread: a pipe takes 64 KB, then a write waits for ever. It must not
    be a thread that answers which waits.
    """

    def __init__(self, descriptor: int = 2, *, most: int = 1000) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(most)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line into the queue; with too many in it, it is lost."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(self.format(record).encode("utf-8", "replace") + b"\n")

    def flush(self) -> None:
        """Give what stands in the queue a moment to be written."""
        until = time.monotonic() + 0.5
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.01)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            with contextlib.suppress(OSError):
                while line:
                    line = line[os.write(self._descriptor, line) :]
            self._lines.task_done()


def _leave(log: Log) -> None:
    """End the process where threads hold it up that have nothing more to do: whoever asked them has his answer."""
    time.sleep(LEAVE_SECONDS)
    names = ", ".join(sorted(one.name for one in threading.enumerate() if not one.daemon))
    logger.warning("ended while %s still worked", names)
    log.flush()
    os._exit(0)


def _follow(pid: int, server: Any) -> None:
    # The parent's number may live on in a zombie or in a stranger: being handed to another parent is the surer sign.
    is_child = os.getppid() == pid
    while not server.should_exit:
        time.sleep(0.3)
        if is_child:
            gone = os.getppid() != pid
        else:
            try:
                os.kill(pid, 0)
                gone = False
            except PermissionError:
                gone = False
            except ProcessLookupError:
                gone = True
        if gone:
            server.should_exit = True
