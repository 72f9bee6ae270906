"""An exported head asked in this process: the very completions that the host would send, without a host.

In: the folder that `export-model --format head` wrote, and the body of a chat request. Out: a chat.completion.
Not covered: whose prompt that is (predictors/base.py).
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dspy_finetune.errors import UsageError
from dspy_finetune.local.completions import Asked, ChatRequest, api_error, as_completion, ask
from dspy_finetune.local.engine import Engine, Source
from dspy_finetune.local.models import base_folder


def complete(folder: Path, body: Mapping[str, Any]) -> dict[str, Any]:
    """One attempt; threads that ask at the same time are answered in one pass.

    Raises:
        UsageError: The base is not on this machine, or the request wants what a head does not have.
    """
    request, asked = _read(body)
    future = _engine(os.getpid()).submit(os.fspath(folder), asked.messages, asked.settings, n=asked.n)
    try:
        return as_completion(request, asked, future.result())
    except Exception as error:  # whatever it is: the caller knows the error tree alone
        raise _told(error, folder) from error


async def acomplete(folder: Path, body: Mapping[str, Any]) -> dict[str, Any]:
    """The same without blocking the event loop. Raises as `complete`."""
    request, asked = await asyncio.to_thread(_read, body)
    engine = await asyncio.to_thread(_engine, os.getpid())
    future = engine.submit(os.fspath(folder), asked.messages, asked.settings, n=asked.n)
    try:
        return as_completion(request, asked, await asyncio.wrap_future(future))
    except Exception as error:  # as above
        raise _told(error, folder) from error


def _read(body: Mapping[str, Any]) -> tuple[ChatRequest, Asked]:
    request = ChatRequest.model_validate(body)
    return request, ask(request)


def _told(error: Exception, folder: Path) -> UsageError:
    return UsageError(f"{folder}: {api_error(error)}")


@functools.lru_cache(maxsize=1)
def _engine(process: int) -> Engine:
    # One for all heads, so that they share its few places in memory; a forked process has no thread of its parent's.
    return Engine(_source)


def _source(folder: str) -> Source:
    place = Path(folder)
    named, head = (json.loads((place / name).read_bytes()) for name in ("base.json", "head.json"))
    encoder = base_folder(named["encoder"]) if named["encoder"] and "encoder" in head["blocks"] else None
    adapters = tuple(sorted(place.glob("adapter-*")))
    return Source(folder=base_folder(named["base"]), adapters=adapters, head=place, encoder=encoder)
