"""Schemathesis over the local host's own description: no answer may be a server's fault.

    python -m tests.soak.fuzz --minutes 20 --schemathesis .venv/soak/bin/schemathesis

A server on a toy model is started, with files, jobs, models, batches and uploads in it; their ids stand in the
description as what ids may be, so that requests reach what lies behind the first look. Exit code 0: no 5xx.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.local.test_batches import lines, submit
from tests.local.test_jobs import CHAT_ROWS, upload, wait
from tests.local.toy import build_toy_model
from tests.local.toy_server import ToyServer, start_server


def seeds(server: ToyServer) -> dict[str, list[str]]:
    """Ids of everything, by the name of the parameter or field that takes them."""
    client = server.client()
    files = [upload(client, CHAT_ROWS) for _ in range(30)]
    for_batches = [client.files.create(file=("in.jsonl", lines(1)), purpose="batch").id for _ in range(10)]
    jobs = [client.fine_tuning.jobs.create(model="toy", training_file=one).id for one in files[:6]]
    tuned = wait(client, jobs[0]).fine_tuned_model
    client.fine_tuning.jobs.pause(client.fine_tuning.jobs.create(model="toy", training_file=files[6]).id)
    batches = [submit(client, lines(1)) for _ in range(2)]
    given: Any = {"bytes": 10, "filename": "x.jsonl", "mime_type": "text/plain", "purpose": "fine-tune"}
    uploads = [client.uploads.create(**given).id for _ in range(5)]
    parts = [client.uploads.parts.create(one, data=b'{"a": 1}\n\n').id for one in uploads]
    return {
        "file_id": files[7:], "training_file": files, "validation_file": files[:3], "input_file_id": for_batches,
        "job_id": jobs, "batch_id": batches, "upload_id": uploads, "part_ids": parts, "model": ["toy", tuned],
        "model_id": ["toy", tuned], "after": [*files[-2:], *jobs[:2]],
    }  # fmt: skip


def seed(part: Any, ids: dict[str, list[str]]) -> None:
    """Put the ids into a description, in place."""
    if isinstance(part, list):
        for one in part:
            seed(one, ids)
    elif isinstance(part, dict):
        if isinstance(part.get("name"), str) and part["name"] in ids and "schema" in part:
            part["schema"] = {"type": "string", "enum": ids[part["name"]]}
        for name, inner in (part.get("properties") or {}).items():
            if name == "part_ids":
                inner["items"] = {"type": "string", "enum": ids[name]}
            elif name in ids:
                part["properties"][name] = {"type": "string", "enum": ids[name]}
            elif name == "n":
                part["properties"][name] = {"type": "integer", "minimum": 1, "maximum": 4}
        for inner in part.values():
            seed(inner, ids)


def main() -> int:
    """Run for the minutes that are asked for."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--minutes", type=float, default=20)
    asked.add_argument("--schemathesis", default="schemathesis")
    asked.add_argument("--seed", type=int, default=1)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(Path(folder) / "root", build_toy_model(Path(folder) / "toy"))
        try:
            base = server.url.removesuffix("/v1")
            with urllib.request.urlopen(f"{base}/openapi.json") as answer:
                described = json.load(answer)
            seed(described, seeds(server))
            path = Path(folder) / "openapi.json"
            path.write_text(json.dumps(described))
            command = [given.schemathesis, "run", str(path), "--url", base, "--checks", "not_a_server_error"]
            command += ["--max-time", str(int(given.minutes * 60)), "--continue-on-failure", "--workers", "1"]
            command += ["--seed", str(given.seed), "--request-timeout", "120", "--suppress-health-check", "all"]
            command += ["--generation-database", "none", "--no-color"]
            started = time.monotonic()
            code = subprocess.run(command, check=False).returncode
            with urllib.request.urlopen(f"{base}/healthz") as answer:
                health = json.load(answer)
            print(json.dumps({"seconds": round(time.monotonic() - started), "code": code, "health": health}, indent=2))
            return 0 if code == 0 and health["status"] == "ok" and not health["damaged"] else 1
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
