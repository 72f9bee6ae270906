"""Recorded exchanges with a host: how they are filtered, matched and played again.

    with recorder("none").use_cassette("sft.json"):     # answers from the file; any other request is an error
        ...

What is kept is listed, not what is left out: of the headers the content type alone, so that no key, cookie,
organisation or request id can stand in a cassette, whatever a host calls them. Organisation ids and keys are taken out
of bodies too. vcrpy takes the place of both HTTP libraries that the openai package has used, httpx and httpx2, so one
cassette serves every version of it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import vcr

from dspy_finetune.hosts.failures import redact

FOLDER = Path(__file__).parent / "jobs" / "cassettes"
BOUNDARY = "cassette-boundary"
SECRET_VARIABLES = ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "AZURE_OPENAI_API_KEY")

_KEPT_HEADERS = {"content-type"}
_SECRET_QUERIES = ["api-key", "api_key", "key", "sig"]
_ID_FIELDS = {"organization_id": "org-filtered", "request_id": "req_filtered"}
_ID_SHAPES = {re.compile(r"\borg-[A-Za-z0-9]{4,}"): "org-filtered", re.compile(r"\breq_[A-Za-z0-9]+"): "req_filtered"}


def recorder(mode: str, *, folder: Path = FOLDER) -> Any:
    """A vcrpy recorder: `"none"` plays and never records, `"all"` records anew."""
    return vcr.VCR(
        serializer="json",
        cassette_library_dir=str(folder),
        record_mode=mode,
        match_on=["method", "uri", "body"],
        filter_query_parameters=_SECRET_QUERIES,
        before_record_request=_filtered_request,
        before_record_response=_filtered_response,
        decode_compressed_response=True,
    )


def _filtered_request(request: Any) -> Any:
    boundary = re.search(r"boundary=([^;\s]+)", str(request.headers.get("content-type", "")))
    body = bytes(request.body or b"")
    if boundary is not None:
        # Drawn anew for each upload.
        body = body.replace(boundary.group(1).encode(), BOUNDARY.encode())
    kind = re.sub(r"boundary=[^;\s]+", f"boundary={BOUNDARY}", str(request.headers.get("content-type", "")))
    request.headers = {"content-type": kind} if kind else {}
    request.body = _filtered(body) or None
    return request


def _filtered_response(response: dict[str, Any]) -> dict[str, Any]:
    headers = {name: values for name, values in response["headers"].items() if name.lower() in _KEPT_HEADERS}
    return {
        "status": response["status"],
        "headers": headers,
        "body": {"string": _filtered(response["body"]["string"] or b"")},
    }


def _filtered(body: bytes) -> bytes:
    text = body.decode("utf-8")
    try:
        value = json.loads(text)
    except ValueError:
        pass
    else:
        text = json.dumps(_without_ids(value), ensure_ascii=False)
    for shape, instead in _ID_SHAPES.items():
        text = shape.sub(instead, text)
    return redact(text, [os.environ.get(name, "") for name in SECRET_VARIABLES]).encode()


def _without_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_ids(one) for one in value]
    if isinstance(value, str) and value.startswith(tempfile.gettempdir()):
        return Path(value).name  # a folder of the machine that recorded
    if isinstance(value, dict):
        return {
            name: _ID_FIELDS[name] if name in _ID_FIELDS and one is not None else _without_ids(one)
            for name, one in value.items()
        }
    return value
