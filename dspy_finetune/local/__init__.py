"""The local host: an OpenAI-compatible server that really trains and serves small open models on this machine.

It is reached over HTTP, by any client of OpenAI's API:

    $ dspy-finetune serve --port 8000
    {"url": "http://127.0.0.1:8000/v1", "pid": 4711, "root": "/home/me/.local/share/dspy-finetune/local", ...}

    >>> from openai import OpenAI  # doctest: +SKIP
    >>> client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="local")  # doctest: +SKIP
    >>> [model.id for model in client.models.list()]  # doctest: +SKIP
    ['smollm2-135m-instruct']
"""

from dspy_finetune.local.server import ServeOptions, default_root, serve

__all__ = ["ServeOptions", "default_root", "serve"]
