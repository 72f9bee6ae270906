"""The endpoints: OpenAI's files, fine_tuning.jobs, models, chat.completions and batches, over store and engine.

In: HTTP requests. Out: OpenAI's object shapes and error bodies, so that OpenAI's own client cannot tell.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import os
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from dspy_finetune._jsonl import read_jsonl
from dspy_finetune.errors import FileError, FinetuneError, RowError
from dspy_finetune.local import chat
from dspy_finetune.local.batches import Batches, CreateBatch
from dspy_finetune.local.models import base_folder, base_name, check_base
from dspy_finetune.local.scheduler import Scheduler, estimated_finish
from dspy_finetune.local.schemas import ApiError, ChatRequest, CreateJob, JobRecord
from dspy_finetune.local.store import Store, append_event, derived_id, new_id

logger = logging.getLogger(__name__)

MAX_UPLOAD_BYTES = 512 * 2**20
"""As OpenAI's /files."""


PURPOSES = ("fine-tune", "batch")
"""What files may be uploaded for."""


class Host:
    """What the endpoints work on, put together from the options of the command line."""

    def __init__(
        self,
        store: Store,
        scheduler: Scheduler,
        *,
        base_models: Sequence[str],
        api_key: str | None = None,
        open_bases: bool = True,
        dtype: str = "float32",
        max_models: int = 4,
    ) -> None:
        self.store = store
        self.scheduler = scheduler
        self.base_models = tuple(base_models)
        self.api_key = api_key
        self.open_bases = open_bases
        self.dtype = dtype
        self.max_models = max_models
        self.started_at = int(time.time())
        self.batches = Batches(store, complete=self.complete, check_model=self.check_model)
        self._engine: Any = None
        self._starting = threading.Lock()

    @property
    def engine(self) -> Any:
        """The engine, started with the first chat: it imports torch, which takes seconds."""
        with self._starting:
            if self._engine is None:
                from dspy_finetune.local.engine import Engine

                self._engine = Engine(
                    self.source,
                    device=self.scheduler.device,
                    dtype=self.dtype,
                    max_models=self.max_models,
                    n_threads=self.scheduler.n_threads,
                )
            return self._engine

    def base(self, model: str) -> str | None:
        """The base that is asked for by this name, or None."""
        for base in self.base_models:
            if model in (base, base_name(base)):
                return base
        if self.open_bases and not model.startswith("ft:"):
            try:
                check_base(model)
            except FinetuneError:
                return None
            return model
        return None

    def check_model(self, model: str, *, status: int = 404) -> None:
        """Raise OpenAI's answer to a model that does not exist."""
        if self.store.model(model) is None and self.base(model) is None:
            raise ApiError(
                status,
                f"The model `{model}` does not exist or you do not have access to it.",
                code="model_not_found",
                param="model",
            )

    def source(self, model: str) -> Any:
        """Where the weights of a model are, for the engine."""
        from dspy_finetune.local.engine import Source

        self.check_model(model)
        tuned = self.store.model(model)
        folder = base_folder(tuned.base if tuned else self.base(model) or model, progress=logger.warning)
        return Source(folder=folder, adapters=tuple(self.store.adapters(model)))

    async def complete(self, body: ChatRequest) -> dict[str, Any]:
        """The whole answer to a chat."""
        chat.check_request(body)
        self.check_model(body.model)
        # The engine's first start imports torch: in a thread, so that other requests are answered meanwhile.
        engine = await asyncio.to_thread(lambda: self.engine)
        return await chat.complete(engine, body)

    def close(self) -> None:
        """Stop the batches, the workers and the engine."""
        self.batches.close()
        self.scheduler.close()
        if self._engine is not None:
            self._engine.close()


def create_app(host: Host) -> FastAPI:
    """The application of one host."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        host.scheduler.start()
        host.batches.start()
        yield
        host.close()

    app = FastAPI(title="dspy-finetune local host", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _add_guards(app, host)
    _add_files(app, host)
    _add_jobs(app, host)
    _add_models(app, host)
    _add_batches(app, host)

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        return {"status": "ok", "pid": os.getpid(), "root": os.fspath(host.store.root), "started_at": host.started_at}

    return app


def _add_guards(app: FastAPI, host: Host) -> None:
    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Any]) -> Any:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        error = None
        if host.api_key and request.url.path != "/healthz" and not hmac.compare_digest(given, host.api_key):
            error = ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
        elif int(request.headers.get("content-length") or 0) > MAX_UPLOAD_BYTES + 2**20:
            error = ApiError(413, "The file is larger than 512 MB.", code="file_too_large", param="file")
        response = await call_next(request) if error is None else _answer(error)
        response.headers["x-request-id"] = new_id("req_")
        response.headers["openai-processing-ms"] = "0"
        return response

    @app.exception_handler(ApiError)
    async def on_api_error(request: Request, error: ApiError) -> JSONResponse:
        return _answer(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        names = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        where = ".".join(part for part in names if not part.startswith(("function-", "constrained-", "literal[")))
        message = f"Invalid value for '{where}': {first['msg']}" if where else f"Invalid request: {first['msg']}"
        return _answer(ApiError(400, message, code="invalid_value", param=where or None))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        message = (
            f"Invalid URL ({request.method} {request.url.path})" if error.status_code == 404 else str(error.detail)
        )
        return _answer(ApiError(error.status_code, message))

    @app.exception_handler(FinetuneError)
    @app.exception_handler(OSError)
    async def on_failure(request: Request, error: Exception) -> JSONResponse:
        cause = error.__cause__ if isinstance(error, FileError) else error
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return _answer(ApiError(507, str(error), kind="server_error", code="no_space"))
        logger.error("%s %s: %s", request.method, request.url.path, error)
        return _answer(ApiError(500, str(error), kind="server_error", code="server_error"))


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status)


def _page(items: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """One page of a list. An `after` that is not in the list is an error: nothing is silently repeated."""
    start = 0
    if after is not None:
        places = [index for index, item in enumerate(items) if item["id"] == after]
        if not places:
            raise ApiError(400, f"Invalid cursor: {after}", code="invalid_cursor", param="after")
        start = places[0] + 1
    data = items[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": start + limit < len(items),
    }


Limit = Annotated[int, Query(ge=1, le=10_000)]


def _add_files(app: FastAPI, host: Host) -> None:
    store = host.store

    @app.post("/v1/files")
    def upload(file: UploadFile, purpose: Annotated[str, Form()]) -> dict[str, Any]:
        if purpose not in PURPOSES:
            raise ApiError(400, f"'{purpose}' is not one of {list(PURPOSES)} - 'purpose'", param="purpose")
        if (file.size or 0) > MAX_UPLOAD_BYTES:
            raise ApiError(413, "The file is larger than 512 MB.", code="file_too_large", param="file")
        if not file.size:
            raise ApiError(400, "File is empty.", param="file", code="empty_file")
        record = store.add_file(file.file, file.filename or "file.jsonl", purpose)
        try:
            for line, row in read_jsonl(store.content(record.id)):
                if not isinstance(row, dict):
                    raise _not_jsonl(line)
        except RowError as error:
            store.delete_file(record.id)
            raise _not_jsonl(error.line) from error
        except ApiError:
            store.delete_file(record.id)
            raise
        return record.wire()

    @app.get("/v1/files")
    def list_files(
        after: str | None = None, limit: Limit = 10_000, purpose: str | None = None, order: str = "desc"
    ) -> dict[str, Any]:
        records = [record.wire() for record in store.files() if purpose in (None, record.purpose)]
        return _page(records if order == "desc" else records[::-1], after, limit)

    @app.get("/v1/files/{file_id}")
    def retrieve_file(file_id: str) -> dict[str, Any]:
        return store.file(file_id).wire()

    @app.get("/v1/files/{file_id}/content")
    def file_content(file_id: str) -> FileResponse:
        return FileResponse(store.content(file_id), media_type="application/octet-stream")

    @app.delete("/v1/files/{file_id}")
    def delete_file(file_id: str) -> dict[str, Any]:
        store.delete_file(file_id)
        return {"id": file_id, "object": "file", "deleted": True}


def _add_batches(app: FastAPI, host: Host) -> None:
    @app.post("/v1/batches")
    def create_batch(body: CreateBatch) -> dict[str, Any]:
        return host.batches.create(body)

    @app.get("/v1/batches")
    def list_batches(after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
        return _page(host.batches.all(), after, limit)

    @app.get("/v1/batches/{batch_id}")
    def retrieve_batch(batch_id: str) -> dict[str, Any]:
        return host.batches.retrieve(batch_id)

    @app.post("/v1/batches/{batch_id}/cancel")
    def cancel_batch(batch_id: str) -> dict[str, Any]:
        return host.batches.cancel(batch_id)


def _not_jsonl(line: int | None) -> ApiError:
    message = "Expected file to have JSONL format, where every line is a valid JSON dictionary."
    return ApiError(400, f"{message} Line {line} is not a dictionary.", code="invalid_file_format", param="file")


def _add_jobs(app: FastAPI, host: Host) -> None:
    store, scheduler = host.store, host.scheduler

    def wire(job: JobRecord) -> dict[str, Any]:
        return job.wire(estimated_finish=estimated_finish(job, store.events))

    @app.post("/v1/fine_tuning/jobs")
    def create_job(body: CreateJob) -> dict[str, Any]:
        host.check_model(body.model, status=400)
        for param in ("training_file", "validation_file"):
            file_id = getattr(body, param)
            if file_id is not None and store.file(file_id, param=param).purpose != "fine-tune":
                raise ApiError(400, f"File {file_id} has another purpose than fine-tune.", param=param)
        method, given = body.chosen()
        now = time.time()
        job = JobRecord(
            id=new_id("ftjob-"),
            created_at=int(now),
            sequence=time.time_ns(),
            model=host.base(body.model) or body.model,
            method=method,
            given=given,
            training_file=body.training_file,
            validation_file=body.validation_file,
            suffix=body.suffix,
            seed=random.randrange(2**31) if body.seed is None else body.seed,
            metadata=body.metadata,
            integrations=body.integrations,
        )
        folder = store.job_folder(job.id)
        folder.mkdir()
        message = f"Created fine-tuning job: {job.id}"
        append_event(folder, message, event_id=derived_id("ftevent-", job.id, message))
        store.save_job(job)
        return wire(job)

    @app.get("/v1/fine_tuning/jobs")
    def list_jobs(request: Request, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
        wanted = {
            match[1]: value
            for name, value in request.query_params.items()
            if (match := re.fullmatch(r"metadata\[(.+)\]", name))
        }
        jobs = store.jobs()
        if request.query_params.get("metadata") == "null":
            jobs = [job for job in jobs if not job.metadata]
        jobs = [job for job in jobs if wanted.items() <= (job.metadata or {}).items()]
        return _page([wire(job) for job in jobs], after, limit)

    @app.get("/v1/fine_tuning/jobs/{job_id}")
    def retrieve_job(job_id: str) -> dict[str, Any]:
        return wire(store.job(job_id))

    @app.get("/v1/fine_tuning/jobs/{job_id}/events")
    def list_events(job_id: str, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
        return _page(store.events(job_id)[::-1], after, limit)

    @app.get("/v1/fine_tuning/jobs/{job_id}/checkpoints")
    def list_checkpoints(job_id: str, after: str | None = None, limit: Limit = 10) -> dict[str, Any]:
        return _page(store.job(job_id).checkpoints[::-1], after, limit)

    @app.post("/v1/fine_tuning/jobs/{job_id}/cancel")
    def cancel_job(job_id: str) -> dict[str, Any]:
        return wire(scheduler.cancel(job_id))

    @app.post("/v1/fine_tuning/jobs/{job_id}/pause")
    def pause_job(job_id: str) -> dict[str, Any]:
        return wire(scheduler.pause(job_id))

    @app.post("/v1/fine_tuning/jobs/{job_id}/resume")
    def resume_job(job_id: str) -> dict[str, Any]:
        return wire(scheduler.resume(job_id))


def _add_models(app: FastAPI, host: Host) -> None:
    store = host.store

    def base_wire(base: str) -> dict[str, Any]:
        return {"id": base, "object": "model", "created": host.started_at, "owned_by": "local"}

    @app.get("/v1/models")
    def list_models() -> dict[str, Any]:
        data = [base_wire(base) for base in host.base_models] + [record.wire() for record in store.models()]
        return {"object": "list", "data": data}

    @app.get("/v1/models/{model_id:path}")
    def retrieve_model(model_id: str) -> dict[str, Any]:
        host.check_model(model_id)
        tuned = store.model(model_id)
        return tuned.wire() if tuned else base_wire(model_id)

    @app.delete("/v1/models/{model_id:path}")
    def delete_model(model_id: str) -> dict[str, Any]:
        host.check_model(model_id)
        if not store.delete_model(model_id):
            raise ApiError(403, "Base models cannot be deleted.", code="forbidden", param="model")
        host.engine.forget(model_id)
        return {"id": model_id, "object": "model", "deleted": True}

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest) -> Response:
        if not body.stream:
            return JSONResponse(await host.complete(body))
        chat.check_request(body)
        host.check_model(body.model)
        engine = await run_in_threadpool(lambda: host.engine)
        return StreamingResponse(await chat.stream(engine, body), media_type="text/event-stream")
