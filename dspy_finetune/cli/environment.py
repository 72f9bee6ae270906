"""Keys from a `.env` file, and hosts by name: what the commands that talk to a host share.

In: options of the command line. Out: the environment, and a Host. A `.env` file holds lines `NAME=value`, read by
python-dotenv:

    # a comment; blank lines are passed over
    OPENAI_API_KEY=sk-...
    export AZURE_OPENAI_API_KEY="in quotes: # and blanks are part of the value"

A variable that is set already keeps its value: the environment wins over the file. Nothing in a value is expanded.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

from dspy_finetune._files import file_error
from dspy_finetune._optional import require
from dspy_finetune.errors import FileError, UsageError
from dspy_finetune.hosts import Host


def load_env(path: Path | None = None) -> None:
    """Put the variables of a `.env` file into the environment; those that are set already stay.

    Args:
        path: The file; None reads `.env` of the working folder, if there is one.

    Raises:
        FileError: A file that was named cannot be read.
    """
    source = path if path is not None else Path(".env")
    try:
        text = source.read_text(encoding="utf-8-sig")
    except OSError as error:
        if path is None:
            return
        raise file_error(error, path, "read") from error
    except UnicodeDecodeError as error:
        if path is None:
            return
        raise FileError(
            f"cannot read {path}: not UTF-8 (byte {error.start + 1}); save it as UTF-8", path=str(path)
        ) from error
    dotenv = require("dotenv", "cli", "reading a .env file")
    for name, value in dotenv.dotenv_values(stream=io.StringIO(text), interpolate=False).items():
        if value is not None:  # a line without `=`
            os.environ.setdefault(name, value)


def host_named(text: str, *, root: Path | None = None) -> Host:
    """A host by the name that `--host` takes.

    >>> host_named("https://llm.example.com/v1")
    Host.compatible('https://llm.example.com/v1')

    Args:
        text: openai, azure, local, or an address; `azure=ADDRESS` for a resource of Azure, `local=ADDRESS` for a server
            of this package, `NAME=ADDRESS` for another host with a name, whose key is then in NAME_API_KEY.
        root: The embedded server's folder.

    Raises:
        UsageError: It is none of these.
    """
    name, _, address = text.partition("=")
    if text == "openai":
        return Host.openai()
    if name == "azure":
        return Host.azure(address or None)
    if name == "local":
        return Host.local(address or None, root=root)
    if text.startswith(("http://", "https://")):
        return Host.compatible(text)
    if name.replace("-", "").isalnum() and address.startswith(("http://", "https://")):
        return Host.compatible(address, name=name)
    raise UsageError(f"--host {text}: expected openai, azure, local, an address, or NAME=ADDRESS")


def host_option(host: Host) -> str:
    """The options that name a host again, for a command that is shown to be copied."""
    facts = host.to_dict()
    url, name = facts.get("base_url"), facts["name"]
    text = {"openai": "openai", "azure": f"azure={url}", "local": f"local={url}" if url else "local"}.get(
        facts["kind"], f"{name}={url}" if name != "compatible" else str(url)
    )
    root = f" --root {facts['root']}" if "root" in facts else ""
    return f"--host {text}{root}"
