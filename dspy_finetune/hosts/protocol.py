"""What the package asks of a host: files, jobs, events, models; and how a host that speaks OpenAI's API answers.

In: a client with the host's address and key. Out: jobs, events and checkpoints in OpenAI's shapes (jobs/records.py
reads them), files and models as small values. A host with an API of its own translates here and nowhere else
(nebius.py, together.py, fireworks.py); the rest of the package sees none of it. Chat is OpenAI's on every host (lm.py);
prices, limits and end dates stand in the catalog.

What a host answered is held to the shape that its API describes before anything is read from it; what is not so is a
MalformedResponseError, which `Host.talking` completes with the host's name: a proxy's page, an empty object, a text
where a list was promised. A fault of this library's own code is no such error and comes out as it is.

Some hosts keep no metadata with a job. There the digest of the intent goes into the job's suffix or id, as a tag that
is found again after a crash: `tag_of` and `metadata_of`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, TypeVar

from dspy_finetune.errors import MalformedResponseError

if TYPE_CHECKING:
    from openai import OpenAI

KindName = Literal["openai", "azure", "local", "compatible", "nebius", "together", "fireworks"]

UPLOAD_SECONDS = 600.0
"""Timeout of a host that has a file and says nothing: it may read the whole of it before it answers."""

INTENT_KEY = "dspy_finetune_intent"
ATTEMPT_KEY = "dspy_finetune_attempt"


@dataclass(frozen=True, kw_only=True)
class HostKind:
    """The facts that hold for every host of one kind."""

    name: KindName
    """The kind's name, as it stands in saved files."""
    key_variables: tuple[str, ...]
    """Environment variables that may hold the key, in the order in which they are tried."""
    listing_lag_seconds: float = 60.0
    """A job that is not listed this long after its creation does not exist."""
    needs_deployment: bool = False
    """A tuned model answers only after a deployment, which is billed by the hour, so that a person decides."""
    deployment: tuple[str, ...] = ()
    """The words of the host's own tool that deploy `{model}`, where that is all it needs."""
    lists_models: bool = False
    """GET /models/{id} tells whether a tuned model answers yet."""
    has_structured_output: bool = True
    """It can hold answers to a JSON schema (`response_format`)."""
    takes_n: bool = False
    """It gives several answers to one request (`n`), whose prompt it reads, and bills, once."""
    poll_seconds: tuple[float, float] = (5.0, 60.0)
    """The first and the longest pause between two looks at a job."""
    has_recipes: bool = False
    """It takes the hyperparameter `recipe`: a linear head, a LoRA adapter, or both."""
    base_model: str | None = None
    """A model that it tunes, for whoever has no wish of their own; None where only the user can know."""
    base_url: str | None = None
    """The address of its API; None where each host of the kind has its own."""
    url_variable: str | None = None
    """The environment variable that holds another address: of a gateway, for one."""
    has_metadata: bool = True
    """It keeps pairs of names and texts with a job; without them the intent's digest goes into suffix or id."""
    has_seed: bool = True
    """It takes a random seed."""
    takes_rate: Literal["multiplier", "absolute"] = "multiplier"
    """What it calls the learning rate: a factor on a rate of its own, or the rate itself."""
    has_adapters: bool = False
    """It takes `lora` (an adapter, or all weights where false) and `lora_rank`."""
    has_full: bool = False
    """It trains all weights, too: `lora=False`."""
    bounds: Mapping[str, tuple[float, float]] | None = None
    """Hyperparameter -> least and most, where they are narrower than OpenAI's."""
    bills_validation: bool = False
    """The tokens of the validation file are billed, once for each evaluation."""
    gives_weights: bool = False
    """A tuned model can be downloaded."""
    wandb_key: bool = False
    """Reporting to Weights & Biases needs its key in each job (WANDB_API_KEY); elsewhere it lies in the dashboard."""


@dataclass(frozen=True, kw_only=True)
class HostFile:
    """A file on a host."""

    id: str
    """The host's id."""
    name: str
    """As it was uploaded."""
    size_bytes: int | None
    """None where the host does not say."""
    status: str
    """processed, error, incomplete where its bytes are still to come, or another word while the host reads it."""


@dataclass(frozen=True, kw_only=True)
class HostModel:
    """A model that a host offers."""

    id: str
    """The name to ask it by."""
    created_at: int | None = None
    """Seconds since 1970."""
    shutdown_date: str | None = None
    """By the host, as it writes it; None where it does not say."""
    base: str | None = None
    """What it was tuned from, where the host says so; None also for a base model."""


class HostApi(Protocol):
    """What is asked of a host. Each call may raise what the client raises; `Host.talking` makes errors of it."""

    def upload(self, name: str, stream: BinaryIO) -> HostFile:
        """Send a training file."""

    def file(self, file_id: str) -> HostFile:
        """One file, by its id."""

    def files(self) -> Iterator[HostFile]:
        """The training files that are there."""

    def content(self, file_id: str) -> bytes:
        """What a file holds."""

    def create_job(self, body: Mapping[str, Any], *, base: str, timeout_seconds: float) -> Mapping[str, Any]:
        """Start a job; asked once, never again by itself. `body` is OpenAI's, `base` the base of a tuned model."""

    def job(self, job_id: str) -> Mapping[str, Any]:
        """One job."""

    def jobs(self, metadata: Mapping[str, str] | None = None, *, limit: int = 100) -> Iterator[Mapping[str, Any]]:
        """The jobs, newest first; those with this metadata where the host can tell. `limit` is of one page."""

    def steer(self, job_id: str, step: Literal["cancel", "pause", "resume"]) -> Mapping[str, Any]:
        """Cancel, pause or resume a job."""

    def events(self, job_id: str, known: Collection[str] = ()) -> Iterator[Mapping[str, Any]]:
        """A job's events, newest first; those before the `known` ids may be left out."""

    def checkpoints(self, job_id: str) -> Iterator[Mapping[str, Any]]:
        """Models from before the end of a job."""

    def model(self, model: str) -> HostModel:
        """One model; an error of status 404 where it does not answer."""

    def models(self) -> Iterator[HostModel]:
        """The models that are offered."""


# The shapes of answers.

Value = TypeVar("Value")
SHOWN_CHARS = 80


def present(value: Value, *paths: str) -> Value:
    """The value itself, if each path leads to something in it: `choices.message` looks into every one of a list.

    Raises:
        MalformedResponseError: Something is missing; names it.

    >>> present({"id": "ftjob-1", "data": [{"id": 1}]}, "id", "data.id")["id"]
    'ftjob-1'
    """
    for path in paths:
        level: list[Any] = [value]
        for name in path.split("."):
            found: list[Any] = []
            for one in level:
                part = one.get(name) if isinstance(one, Mapping) else getattr(one, name, None)
                found += part if isinstance(part, list) else [part]
            if not found or any(one is None for one in found):
                raise MalformedResponseError(f'it has no "{path}": {_shown(value)}')
            level = found
    return value


def part(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object in an answer; empty where it is left out or null.

    Raises:
        MalformedResponseError: It is something else.
    """
    found = value.get(name)
    if found is not None and not isinstance(found, Mapping):
        raise MalformedResponseError(f'"{name}" is no object: {_shown(found)}')
    return found or {}


def rows(value: Any, name: str | None = None) -> list[dict[str, Any]]:
    """The objects of a list: of the answer itself, or of a field of it; empty where the field is left out or null.

    Raises:
        MalformedResponseError: It is no list of objects.
    """
    found = value if name is None else whole_answer(value).get(name)
    if found is None and name is not None:
        return []
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise MalformedResponseError(f"{'the answer' if name is None else name} is no list of objects: {_shown(found)}")
    return [dict(one) for one in found]


def whole_answer(value: Any) -> dict[str, Any]:
    """An answer that is an object.

    Raises:
        MalformedResponseError: It is something else.
    """
    if not isinstance(value, Mapping):
        raise MalformedResponseError(f"it is no object: {_shown(value)}")
    return dict(value)


def page(response: Any) -> dict[str, Any]:
    """One page of a list of OpenAI's, from a client's raw response.

    Raises:
        MalformedResponseError: It is no such list.
    """
    told = whole_answer(_parsed(response.content))
    if not isinstance(told.get("data"), list):
        raise MalformedResponseError(f'it has no "data": {_shown(told)}')
    return told


PAGE = 100
"""Events or checkpoints of one request."""


def pages(ask: Callable[..., Any], **options: Any) -> Iterator[dict[str, Any]]:
    """What a list of OpenAI's holds, page after page; a host that gives the same page again is not asked for ever.

    Args:
        ask: A client's `list` with its raw response.
        options: What it is asked with.

    Raises:
        MalformedResponseError: A page is no list.
    """
    seen = set[Any]()
    while True:
        told = page(ask(**options))
        found = rows(told, "data")
        first = found[0].get("id") if found else None
        if first is None or first in seen:
            yield from (found if first is None else ())
            return
        yield from found
        if told.get("has_more") is False or found[-1].get("id") is None:
            return
        seen.add(first)
        options = {**options, "after": found[-1]["id"]}


def whole(value: Any) -> int | None:
    """A number as a whole one; None where it is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return int(value) if is_number else None


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise MalformedResponseError(f"it is no JSON: {_shown(content.decode('utf-8', 'replace'))}") from error


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def plain(value: Any) -> dict[str, Any]:
    """The dict behind a client's object, fields it does not know included."""
    if isinstance(value, Mapping):
        return dict(value)
    dump = getattr(value, "model_dump", None)
    return dict(dump(mode="python", warnings=False)) if callable(dump) else {}


def seconds_of(text: Any) -> int | None:
    """Seconds since 1970 of a date as hosts write it; None where it is none.

    >>> seconds_of("2026-11-26T18:00:00Z"), seconds_of(None)
    (1795716000, None)
    """
    try:
        return int(datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", str(text)).replace("Z", "+00:00")).timestamp())
    except (ValueError, OverflowError):
        return None


class OpenAIApi:
    """Files, jobs and models by OpenAI's own client."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def upload(self, name: str, stream: BinaryIO) -> HostFile:
        """Send a training file."""
        client = self._client.with_options(timeout=UPLOAD_SECONDS)
        return _file(client.files.create(file=(name, stream), purpose="fine-tune"))

    def file(self, file_id: str) -> HostFile:
        """One file, by its id."""
        return _file(self._client.files.retrieve(file_id))

    def files(self) -> Iterator[HostFile]:
        """The training files that are there."""
        listed = self._client.with_raw_response.files.list
        return (_file(one) for one in pages(listed, purpose="fine-tune", limit=1000))

    def content(self, file_id: str) -> bytes:
        """What a file holds."""
        content: bytes = self._client.files.content(file_id).content
        return content

    def create_job(self, body: Mapping[str, Any], *, base: str, timeout_seconds: float) -> Mapping[str, Any]:
        """Start a job; the base of a tuned model is in its name."""
        # The SDK's own retry would ask a second time without knowing what became of the first.
        client = self._client.with_options(max_retries=0, timeout=timeout_seconds)
        return plain(present(client.fine_tuning.jobs.create(**body), "id"))

    def job(self, job_id: str) -> Mapping[str, Any]:
        """One job."""
        return plain(present(self._client.fine_tuning.jobs.retrieve(job_id), "id"))

    def jobs(self, metadata: Mapping[str, str] | None = None, *, limit: int = 100) -> Iterator[Mapping[str, Any]]:
        """The jobs, newest first; with this metadata where the host knows the filter."""
        options: dict[str, Any] = {"metadata": dict(metadata)} if metadata else {}
        listed = self._client.with_raw_response.fine_tuning.jobs.list
        return (present(one, "id") for one in pages(listed, limit=limit, **options))

    def steer(self, job_id: str, step: Literal["cancel", "pause", "resume"]) -> Mapping[str, Any]:
        """Cancel, pause or resume a job."""
        return plain(present(getattr(self._client.fine_tuning.jobs, step)(job_id), "id"))

    def events(self, job_id: str, known: Collection[str] = ()) -> Iterator[Mapping[str, Any]]:
        """A job's events, newest first, until as many known ones as a page holds: some come late, behind newer ones."""
        listed, n_known = self._client.with_raw_response.fine_tuning.jobs.list_events, 0
        for one in pages(listed, fine_tuning_job_id=job_id, limit=PAGE):
            yield one
            n_known = n_known + 1 if one.get("id") in known else 0
            if n_known == PAGE:
                return

    def checkpoints(self, job_id: str) -> Iterator[Mapping[str, Any]]:
        """Models from before the end of a job."""
        listed = self._client.with_raw_response.fine_tuning.jobs.checkpoints.list
        return pages(listed, fine_tuning_job_id=job_id, limit=PAGE)

    def model(self, model: str) -> HostModel:
        """One model."""
        return _model(self._client.models.retrieve(model))

    def models(self) -> Iterator[HostModel]:
        """The models that are offered."""
        return (_model(one) for one in rows(page(self._client.with_raw_response.models.list()), "data"))


def _file(value: Any) -> HostFile:
    told = plain(present(value, "id"))
    # Nebius and others leave the status out once a file is read.
    status = str(told.get("status") or "processed")
    return HostFile(id=str(told["id"]), name=str(told.get("filename")), size_bytes=told.get("bytes"), status=status)


def _model(value: Any) -> HostModel:
    told = plain(present(value, "id"))
    # The date is in OpenAI's description and not yet in the client's types.
    ends = told.get("shutdown_date")
    created = whole(told.get("created"))
    return HostModel(id=str(told["id"]), created_at=created, shutdown_date=ends if isinstance(ends, str) else None)


_TAG = re.compile(r"df([0-9a-f]{12})x(\d+)")
TAG_CHARS = 20
"""What a tag takes of a suffix, its hyphen among them."""


def tag_of(metadata: Mapping[str, str]) -> str:
    """The intent's digest and the attempt, in letters and digits.

    >>> tag_of({INTENT_KEY: "0123456789abcdef", ATTEMPT_KEY: "2"})
    'df0123456789abx2'
    """
    return f"df{metadata[INTENT_KEY][:12]}x{metadata.get(ATTEMPT_KEY, '1')}"


def metadata_of(text: str, wanted: Mapping[str, str] | None = None) -> dict[str, str]:
    """The metadata that a tagged suffix, name or id stands for; empty without a tag.

    A tag holds a part of the digest: it is completed from what is looked for, if that begins so.

    >>> metadata_of("titles-df0123456789abx2", {INTENT_KEY: "0123456789abcdef"})
    {'dspy_finetune_intent': '0123456789abcdef', 'dspy_finetune_attempt': '2'}
    """
    found = _TAG.search(text)
    if found is None:
        return {}
    intent = (wanted or {}).get(INTENT_KEY, "")
    return {INTENT_KEY: intent if intent.startswith(found[1]) else found[1], ATTEMPT_KEY: found[2]}


def tagged_suffix(body: Mapping[str, Any]) -> str:
    """The suffix of a job's body with its tag behind it."""
    return "-".join(part for part in (body.get("suffix"), tag_of(body["metadata"])) if part)


def method_and_settings(body: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """("sft" or "dpo", the hyperparameters) of a job's body in OpenAI's shape.

    >>> method_and_settings({"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}})
    ('sft', {'n_epochs': 3})
    """
    method = body["method"]
    settings = dict(method.get(method["type"], {}).get("hyperparameters", {}))
    settings = {name: value for name, value in settings.items() if value != "auto"}
    return ("dpo" if method["type"] == "dpo" else "sft"), settings
