"""The real server in a process of its own, on the toy model and the pretending worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import OpenAI

REPOSITORY = Path(__file__).parents[2]


@dataclass(kw_only=True)
class ToyServer:
    """A running server."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]
    clients: list[OpenAI] = field(default_factory=list)
    """Closed with the server: the collector may come to a socket before it comes to its client."""

    @property
    def url(self) -> str:
        return str(self.facts["url"])

    def client(self, **options: Any) -> OpenAI:
        client = OpenAI(base_url=self.url, api_key=options.pop("api_key", "local"), max_retries=0, **options)
        self.clients.append(client)
        return client

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(120)  # a worker may take 20 seconds to stop, and a busy machine its time
        self._close_clients()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return code

    def stopped(self) -> str:
        """Stop it as its user would, and give what it said on stderr."""
        self.process.terminate()
        _, said = self.process.communicate(timeout=120)
        self._close_clients()
        return str(said)

    def kill(self) -> None:
        self.process.kill()
        self.stop()

    def _close_clients(self) -> None:
        while self.clients:
            self.clients.pop().close()


def start_server(root: Path, model: Path, *, step_seconds: float = 0.01, **options: Any) -> ToyServer:
    """Start a server on a root and wait until it says where it is."""
    arguments = {"root": os.fspath(root), "models": [os.fspath(model)], "worker_module": "tests.local.toy_worker"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.local.toy_server", json.dumps({**arguments, **options})],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "TOY_STEP_SECONDS": str(step_seconds), "TOKENIZERS_PARALLELISM": "false"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(process.stderr.read())
    return ToyServer(process=process, facts=json.loads(line))


def main() -> None:
    from dspy_finetune.local import ServeOptions, serve, server

    server.GRACE_SECONDS = float(os.environ.get("TOY_GRACE_SECONDS", server.GRACE_SECONDS))
    given = json.loads(sys.argv[1])
    serve(ServeOptions(**{**given, "root": Path(given["root"]), "models": tuple(given["models"])}))


if __name__ == "__main__":
    main()
