"""A linear head from its exported folder as the language model of a predictor: asked in this process, without a host.

In: the folder that `export-model --format head` wrote. Out: what `load_predictor(FOLDER)` needs: the saved predictor's
facts, and a `dspy.LM` whose engine answers by the head, with the host's own log-probabilities.
Not covered: how the head computes (local/offline.py, the one module of the local host that predictors know; it is
imported with the first question, as it imports torch).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dspy_finetune._files import read_json, sha256_file
from dspy_finetune._optional import require
from dspy_finetune.errors import DataError
from dspy_finetune.hosts.lm import HostLM

_FILES = ("head.json", "head.safetensors", "base.json")
_OWN_SETTINGS = ("cache", "num_retries", "callbacks", "rollout_id")


def is_head(folder: Path) -> bool:
    """Whether a folder holds an exported head, whole."""
    return all((folder / name).is_file() for name in _FILES)


def saved_state(folder: Path) -> dict[str, Any]:
    """What was saved with an exported model: `predictor.json`, or of a head with a known prompt the plain predictor.

    Raises:
        DataError: The folder holds no exported model, or one whose prompt nobody knows.
    """
    if (folder / "predictor.json").is_file():
        return read_json(folder / "predictor.json", "a saved predictor", "export the model again")
    if not is_head(folder):
        raise DataError(
            f"{folder} holds no saved predictor: expected predictor.json, or an exported head ({', '.join(_FILES)});"
            " a program that DSPy saved as a folder is loaded by dspy.load"
        )
    if not (folder / "prompt.json").is_file():
        raise DataError(
            f"{folder} does not say which prompt its head was trained with: export it again with"
            " predictor=... (--predictor FILE)"
        )
    base = read_json(folder / "base.json", "an exported head", "export the model again")
    return {"prompt": read_json(folder / "prompt.json", "a prompt", "export again"), "model": str(base.get("model"))}


def head_lm(folder: Path, model: str, options: Mapping[str, Any]) -> HostLM:
    """The language model; DSPy's cache knows it by the head's own bytes.

    Raises:
        DataError: The folder holds no head any more.
    """
    if not is_head(folder):
        raise DataError(f"{folder} holds no exported head any more; load the predictor from where it is now")
    kept = {name: value for name, value in options.items() if name in _OWN_SETTINGS}
    return HostLM(
        f"openai/{model.removeprefix('openai/')}",
        host=_Place(sha256_file(folder / "head.safetensors")),
        engine=HeadEngine(folder),
        async_engine=AsyncHeadEngine(folder),
        **kept,
    )


class _Place:
    """What a `HostLM` asks of its host, where there is none."""

    kind = SimpleNamespace(name="folder")

    def __init__(self, digest: str) -> None:
        self._digest = digest

    def connection(self) -> tuple[str | None, str]:
        """No address: the engine needs none."""
        return None, ""

    def is_connected(self) -> bool:
        """Always."""
        return True

    def cache_namespace(self) -> str:
        """The head's own bytes."""
        return f"head:{self._digest}"

    def scrub(self, exception: BaseException) -> None:
        """There is no key."""

    def to_dict(self) -> dict[str, str]:
        """Not a host that could be made again."""
        return {}


class HeadEngine:
    """Answers DSPy's requests by the head in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def complete(self, request: Any) -> Any:
        """One answer, as DSPy reads one."""
        return _response(_offline().complete(self.folder, _body(request)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class AsyncHeadEngine(HeadEngine):
    """The same for asynchronous calls."""

    async def complete(self, request: Any) -> Any:
        """One answer, as DSPy reads one."""
        return _response(await _offline().acomplete(self.folder, _body(request)))


def _offline() -> Any:
    return require("dspy_finetune.local.offline", "local", "a head without its host")


def _body(request: Any) -> dict[str, Any]:
    config = request.config
    said = [{"role": one.role, "content": "".join(part.text for part in one.parts)} for one in request.messages]
    return {
        "model": request.model.removeprefix("openai/"),
        "messages": [*([{"role": "system", "content": request.system}] if request.system else []), *said],
        "temperature": config.temperature,
        "max_completion_tokens": config.max_tokens,
        "stop": list(config.stop) or None,
        "response_format": _wire_format(config.response_format),
        **({} if config.logprobs is None else {"logprobs": True, "top_logprobs": config.logprobs}),
    }


def _wire_format(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    # A Request has OpenAI's fields one level higher.
    if given is None or "schema" not in given:
        return None if given is None else dict(given)
    return {"type": given["type"], "json_schema": {name: one for name, one in given.items() if name != "type"}}


def _response(body: Mapping[str, Any]) -> Any:
    from dspy.lm15 import response_from_openai_chat  # imported late, as in base.py

    return response_from_openai_chat(body)
