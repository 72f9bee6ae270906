"""Start the local host on a toy model, and run other people's clients against it: see `make clients`.

python -m tests.clients.run --python .venv/clients/bin/python --npm .venv/clients/npm
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.local.toy import build_toy_model
from tests.local.toy_server import start_server

HERE = Path(__file__).resolve().parent
NAME = "gpt-4o-mini"
"""The toy model goes by a name that clients know as one that keeps to schemas."""


def main() -> int:
    """Both families of clients."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--python", help="of the environment with the clients")
    asked.add_argument("--npm", help="a folder in which openai and zod were installed")
    given = asked.parse_args()
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        model = build_toy_model(Path(folder) / NAME, context_tokens=4096)
        server = start_server(Path(folder) / "root", model)
        try:
            if given.python:
                command = [given.python, str(HERE / "clients.py"), server.url, NAME]
                codes.append(subprocess.run(command, check=False, cwd=folder).returncode)
            if given.npm:
                command = ["node", str(HERE / "client.mjs"), server.url, NAME]
                codes.append(subprocess.run(command, check=False, cwd=given.npm).returncode)
        finally:
            server.stop()
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
