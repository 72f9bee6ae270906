"""The local host: an OpenAI-compatible server that really trains and serves small open models on this machine.

It is reached over HTTP, by any client of OpenAI's API:

    $ dspy-finetune serve --port 8000
    {"url": "http://127.0.0.1:8000/v1", "pid": 4711, "root": "/home/me/.local/share/dspy-finetune/local", ...}
    $ curl http://127.0.0.1:8000/v1/models
    {"object":"list","data":[{"id":"smollm2-135m-instruct", ...}]}

What `serve` is given, and its defaults:

    >>> from pathlib import Path
    >>> from dspy_finetune.local import ServeOptions
    >>> ServeOptions(root=Path("runs/host")).models
    ('smollm2-135m-instruct',)
"""

import os

# Before torch is loaded, as its OpenMP reads this once. Threads that spin while they wait take the cores from whatever
# else runs: with busy neighbours on two cores, matrix products ran 2.5 to 2.8 times as fast with passive waiting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from dspy_finetune.local.server import ServeOptions, default_root, serve

__all__ = ["ServeOptions", "default_root", "serve"]
