"""What every request passes before an endpoint sees it, and what every failure becomes after.

In: HTTP requests from anyone who can reach the port. Out: requests whose Host, Origin, key, size, parameters and JSON
are in order, or OpenAI's error body with a 4xx status; 5xx is left for this host's own faults.
A web page that the user happens to look at can reach a port on loopback too. It is kept out by its Origin and
Sec-Fetch-Site headers, and by a Host header that is not this machine's (a name that an attacker's DNS points here). No
CORS header is ever sent.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.datastructures import FormData, ImmutableMultiDict
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dspy_finetune._files import file_error
from dspy_finetune.errors import FinetuneError
from dspy_finetune.local.schemas import ApiError, JsonError, invalid, json_schema, stopping, strict_json
from dspy_finetune.local.store import is_no_space, new_id

logger = logging.getLogger(__name__)

MAX_UPLOAD_BYTES = 512 * 2**20
"""As OpenAI's /files."""
MAX_JSON_BYTES = 32 * 2**20
"""Of a body that is JSON."""
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
OPEN_PATHS = frozenset({"/healthz"})
"""Answered without a key."""


class TooLarge(ApiError):
    """A body beyond its limit."""

    def __init__(self, *, is_form: bool) -> None:
        if is_form:
            message = f"The file is larger than {MAX_UPLOAD_BYTES // 2**20} MB."
            super().__init__(413, message, code="file_too_large", param="file")
        else:
            message = f"The request is larger than {MAX_JSON_BYTES // 2**20} MB."
            super().__init__(413, message, code="request_too_large")


class Guard:
    """The outermost layer: who may ask, how much, and the headers of every answer."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, names: frozenset[str] | None) -> None:
        self.app = app
        self.api_key = api_key
        self.names = names
        """Names in the Host header that are this server's; None takes any, where a key is asked for."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer at once, or hand on with the body's size watched."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["path"].startswith(("http://", "https://")):  # as clients ask a proxy: its host is the one that counts
            whole = urlsplit(scope["path"])
            headers["host"] = whole.netloc
            scope = {**scope, "path": whole.path or "/", "raw_path": quote(whole.path or "/").encode()}
        if scope["method"] == "HEAD":  # what GET says, without its body: uvicorn, which still sees HEAD, leaves it out
            scope = {**scope, "method": "GET"}
        error = self._refuse(scope["path"], headers)
        is_form = headers.get("content-type", "").startswith("multipart/")
        limit = (MAX_UPLOAD_BYTES if is_form else MAX_JSON_BYTES) + 2**20  # what stands around a file
        if error is None and _number(headers.get("content-length")) > limit:
            error = TooLarge(is_form=is_form)
        answered = False

        async def told(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", new_id("req_").encode()),
                    (b"openai-processing-ms", b"0"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        if error is not None:
            await answer(error)(scope, receive, told)
            return
        n_bytes = 0

        async def counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > limit:
                raise TooLarge(is_form=is_form)
            return message

        try:
            await self.app(scope, counted, told)
        except TooLarge as too_large:
            if answered:
                raise
            await answer(too_large)(scope, receive, told)
        except asyncio.CancelledError:
            # The server stops, and has waited long enough. Raised on, this would be a traceback for each request.
            if not answered:
                await answer(stopping())(scope, receive, told)

    def _refuse(self, path: str, headers: dict[str, str]) -> ApiError | None:
        host = headers.get("host", "")
        if self.names is not None and _host_name(host) not in self.names:
            message = f"This server does not answer for the host {host[:100]!r}; use its own address."
            return ApiError(403, message, code="forbidden_host")
        origin = headers.get("origin")
        is_foreign = origin is not None and origin.partition("://")[2] != host
        if is_foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            message = "Requests from web pages are refused; this server is for programs on this machine."
            return ApiError(403, message, code="forbidden_origin")
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            message = f"A body of 'Content-Encoding: {encoding[:40]}' is not read here; send it as it is."
            return ApiError(415, message, code="unsupported_content_encoding")
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if (
            self.api_key
            and path not in OPEN_PATHS
            and not hmac.compare_digest(given.encode("utf-8", "replace"), self.api_key.encode("utf-8", "replace"))
        ):
            return ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
        return None


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else 0


class GuardedRoute(APIRoute):
    """A route whose JSON body is read strictly, and whose query parameters are the declared ones."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler with the checks before it."""
        handle = super().get_route_handler()
        known = {field.alias for field in self.dependant.query_params}
        body = {field.alias: field.field_info for field in self.dependant.body_params}
        is_form = any(isinstance(one, Form) for one in body.values())

        async def guarded(request: Request) -> Response:
            for name in request.query_params:
                if name not in known and not ("metadata" in known and name.startswith("metadata[")):
                    raise _unknown(name)
            _refuse_repeated(request.query_params)
            strict = _StrictRequest(request.scope, request.receive)
            if body:
                _check_content_type(request.headers.get("content-type", ""), is_form=is_form)
            if is_form:
                async with strict.form() as form:
                    for name in form:
                        if name not in body:
                            raise _unknown(name)
                    _refuse_repeated(form)
                    return await handle(strict)
            return await handle(strict)

        return guarded


def _unknown(name: str) -> ApiError:
    return ApiError(400, f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)


def _refuse_repeated(given: ImmutableMultiDict[str, Any]) -> None:
    for name in given:
        if len(given.getlist(name)) > 1:
            raise ApiError(400, f"Duplicate parameter: '{name}'.", code="duplicate_parameter", param=name)


def _check_content_type(given: str, *, is_form: bool) -> None:
    kind = given.partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    if kind == "multipart/form-data" if is_form else is_json or not (kind or is_form):
        return
    wanted = "multipart/form-data" if is_form else "application/json"
    found = f"you specified the header 'Content-Type: {given[:100]}'" if given else "there is no header 'Content-Type'"
    message = (
        f"Unsupported content type: '{given[:100]}'. This API method only accepts '{wanted}' requests, but {found}. "
        "Please try again with a supported content type."
    )
    raise ApiError(415, message, code="unsupported_content_type")


class _StrictRequest(Request):
    async def json(self) -> Any:
        """The body, read by `strict_json`."""
        try:
            return strict_json(await self.body())
        except JsonError as error:
            raise ApiError(400, f"The body of your request {error}.", code="invalid_json") from error


def answer(error: ApiError) -> JSONResponse:
    """OpenAI's error body."""
    return JSONResponse(error.body(), status_code=error.status)


def add_error_answers(app: FastAPI) -> None:
    """Turn what endpoints raise into OpenAI's error bodies."""

    @app.exception_handler(ApiError)
    async def on_api_error(request: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = first["loc"][0] if first["loc"] else "body"
        errors = [{**one, "loc": one["loc"][1:]} for one in error.errors() if one["loc"][:1] == first["loc"][:1]]
        route = request.scope["route"].dependant
        if place != "body":
            body: Any = dict(request.query_params if place == "query" else request.path_params)
            described = _described(route.query_params if place == "query" else route.path_params)
            return answer(invalid([{**one, "loc": one["loc"][:1]} for one in errors], body, described))
        if isinstance(error.body, FormData):
            errors = [
                {**one, "type": "file_type"} if str(one["msg"]).endswith("<class 'str'>") else one for one in errors
            ]
            return answer(invalid(errors, dict(error.body), _described(route.body_params)))
        if not isinstance(error.body, dict) and error.body is not None:
            message = "The body must be a JSON object, sent as application/json."
            return answer(ApiError(400, message, code="invalid_json"))
        kind = route.body_params[0].field_info.annotation
        return answer(invalid(errors, error.body or {}, json_schema(kind)))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        cause = error.__cause__  # FastAPI wraps whatever stops the reading of a body
        if isinstance(cause, ApiError):
            return answer(cause)
        if isinstance(cause, OSError):
            return _failure(request, cause)
        if error.status_code == 405:
            return _other_method(request)
        message = (
            f"Invalid URL ({request.method} {request.url.path})" if error.status_code == 404 else str(error.detail)
        )
        return answer(ApiError(error.status_code, message))

    @app.exception_handler(FinetuneError)
    @app.exception_handler(OSError)
    async def on_failure(request: Request, error: Exception) -> JSONResponse:
        return _failure(request, error)

    @app.exception_handler(Exception)
    async def on_fault(request: Request, error: Exception) -> JSONResponse:
        message = f"{type(error).__name__} while answering; see the server's log."
        return answer(ApiError(500, message, kind="server_error", code="server_error"))


def _failure(request: Request, error: Exception) -> JSONResponse:
    is_full = is_no_space(error)
    if isinstance(error, OSError) and not isinstance(error, FinetuneError):  # an upload's, while it comes
        error = file_error(error, Path(error.filename or tempfile.gettempdir()), "write to")
    if is_full:
        return answer(ApiError(507, str(error), kind="server_error", code="no_space"))
    logger.error("%s %s: %s", request.method, request.url.path, error)
    return answer(ApiError(500, str(error), kind="server_error", code="server_error"))


def _other_method(request: Request) -> JSONResponse:
    allowed = {
        method
        for route in request.app.routes
        if route.matches(dict(request.scope))[0] is not Match.NONE
        for method in route.methods
    }
    message = f"Not allowed to {request.method} on {request.url.path}; it takes {', '.join(sorted(allowed))}."
    told = answer(ApiError(405, message, code="method_not_supported"))
    told.headers["allow"] = ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))
    return told


def _described(fields: Sequence[Any]) -> dict[str, Any]:
    """FastAPI's parameters of a query, a path or a form as one JSON schema."""
    kinds: dict[str, Any] = {field.alias: Annotated[field.field_info.annotation, field.field_info] for field in fields}
    return {"properties": {name: TypeAdapter(kind).json_schema() for name, kind in kinds.items()}}
