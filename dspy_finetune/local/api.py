"""The endpoints: OpenAI's files, fine_tuning.jobs, models, chat.completions and batches, over store and engine.

In: HTTP requests. Out: OpenAI's object shapes and error bodies, so that OpenAI's own client cannot tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

from fastapi import FastAPI, Form, Path, Query, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from dspy_finetune._progress import told_if_slow
from dspy_finetune.errors import FinetuneError, RowError, UsageError
from dspy_finetune.local import completions, responses
from dspy_finetune.local.batches import Batches, CreateBatch
from dspy_finetune.local.completions import ChatRequest, EmbeddingRequest
from dspy_finetune.local.export_model import CreateExport, Exports
from dspy_finetune.local.guards import LOOPBACK_NAMES, Guard, GuardedRoute, add_error_answers
from dspy_finetune.local.models import base_folder, base_name, check_base, is_available, packaged_encoder
from dspy_finetune.local.responses import ResponsesRequest
from dspy_finetune.local.scheduler import Scheduler, estimated_finish
from dspy_finetune.local.schemas import MAX_NAME, ApiError, CreateJob, FileRecord, JobRecord, parse, parse_rows
from dspy_finetune.local.store import (
    CompleteUpload,
    CreateUpload,
    Store,
    Uploads,
    append_event,
    derived_id,
    new_id,
    next_sequence,
)

logger = logging.getLogger(__name__)

REMEMBER_SECONDS = 60.0
"""How long the hub's word on a model holds."""
MAX_REMEMBERED = 1000

Result = TypeVar("Result")
Asking = TypeVar("Asking", ChatRequest, ResponsesRequest)


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
        dtype: str = "auto",
        max_models: int = 4,
        names: frozenset[str] | None = LOOPBACK_NAMES,
    ) -> None:
        self.store = store
        self.scheduler = scheduler
        self.base_models = tuple(base_models)
        self.api_key = api_key
        self.open_bases = open_bases
        self.dtype = dtype
        self.max_models = max_models
        self.started_at = int(time.time())
        self.names = names
        """Names that the Host header may have; None where a key is asked for instead."""
        self.uploads = Uploads(store, functools.partial(add_upload, store))
        self.batches = Batches(
            store,
            {
                "/v1/chat/completions": lambda body: self.complete(_unstreamed(parse(ChatRequest, body))),
                "/v1/responses": lambda body: self.respond(_unstreamed(parse(ResponsesRequest, body))),
                "/v1/embeddings": lambda body: self.embed(parse(EmbeddingRequest, body)),
            },
        )
        self._available: dict[str, tuple[bool, float]] = {}
        self.exports = Exports(store)
        self._engine: Any = None
        self._starting = threading.Lock()

    @property
    def engine(self) -> Any:
        """The engine, started with the first chat: it imports torch, which takes seconds."""
        with self._starting:
            if self._engine is None:
                with told_if_slow("the first answer waits for PyTorch to be imported", logger.warning):
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
        is_name = len(model) <= MAX_NAME and model.isprintable()
        if self.open_bases and is_name and not model.startswith("ft:"):
            # A client's text meets the file system here: `~nobody/x` and the like are no models, not faults.
            with contextlib.suppress(FinetuneError, OSError, ValueError, RuntimeError):
                check_base(model)
                return model if self._is_available(model) else None
        return None

    def _is_available(self, base: str) -> bool:
        # The hub is asked about a name once in a while, not for each request.
        known, until = self._available.get(base, (False, 0.0))
        if time.monotonic() >= until:
            known = is_available(base)
            if len(self._available) > MAX_REMEMBERED:
                self._available.clear()
            self._available[base] = (known, time.monotonic() + REMEMBER_SECONDS)
        return known

    def check_model(self, model: str, *, status: int = 404) -> None:
        """Raise OpenAI's answer to a model that does not exist."""
        if self.store.model(model) is None and self.base(model) is None:
            raise no_model(model, status=status)

    def source(self, model: str) -> Any:
        """Where the weights of a model are, for the engine."""
        from dspy_finetune.local.engine import Source

        self.check_model(model)
        tuned = self.store.model(model)
        try:
            folder = base_folder(tuned.base if tuned else self.base(model) or model, progress=logger.warning)
        except UsageError as error:
            raise no_model(model, why=str(error)) from error
        return Source(
            folder=folder,
            adapters=tuple(self.store.adapters(model)),
            head=self.store.head(model),
            encoder=packaged_encoder(),
        )

    async def ready_engine(self) -> Any:
        """The engine. Its first start imports torch: in a thread, so that other requests are answered meanwhile."""
        return await asyncio.to_thread(lambda: self.engine)

    async def complete(self, body: ChatRequest, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """The whole answer to a chat; what its response's headers are to say is put into `headers`."""
        await asyncio.to_thread(self.check_model, body.model)  # which may ask the hub
        return await completions.complete(await self.ready_engine(), body, headers)

    async def respond(self, body: ResponsesRequest) -> dict[str, Any]:
        """The whole response."""
        await asyncio.to_thread(self.check_model, body.model)
        return await responses.respond(await self.ready_engine(), body)

    async def embed(self, body: EmbeddingRequest) -> dict[str, Any]:
        """The list of embeddings."""
        await asyncio.to_thread(self.check_model, body.model)
        return await completions.embed(await self.ready_engine(), body)

    def health(self) -> dict[str, Any]:
        """Whether all that serves in the background works, and what was set aside as damaged."""
        threads = {"scheduler": self.scheduler.thread.health(), "batches": self.batches.thread.health()}
        if self._engine is not None:
            threads["engine"] = self._engine.health()
        is_ok = all(one["ok"] for one in threads.values())
        return {
            "status": "ok" if is_ok else "degraded",
            "pid": os.getpid(),
            "root": os.fspath(self.store.root),
            "started_at": self.started_at,
            "threads": threads,
            "damaged": list(self.store.damaged),
        }

    def forget(self, model: str) -> None:
        """Drop a deleted model from memory, if anything was loaded at all."""
        with self._starting:
            if self._engine is not None:
                self._engine.forget(model)

    def begin_close(self) -> list[JobRecord]:
        """Take up nothing new in the background, and ask the workers to stop; the jobs whose workers still do."""
        self.batches.thread.closing.set()
        return self.scheduler.begin_close()

    def give_up(self) -> None:
        """Answer what waits for the engine with an error."""
        if self._engine is not None:
            self._engine.begin_close()

    def close(self) -> None:
        """Stop the batches, the exports, the workers and the engine."""
        self.batches.close()
        self.exports.close()
        self.scheduler.close()
        if self._engine is not None:
            self._engine.close()


def _unstreamed(body: Asking) -> Asking:
    if body.stream:
        raise ApiError(400, "Streaming is not supported in batches.", param="stream")
    return body


def no_model(model: str, *, status: int = 404, why: str | None = None) -> ApiError:
    """OpenAI's answer to a model that does not exist."""
    message = f"The model `{model[:MAX_NAME]}` does not exist or you do not have access to it."
    return ApiError(status, f"{message} ({why})" if why else message, code="model_not_found", param="model")


def create_app(host: Host) -> FastAPI:
    """The application of one host."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        host.scheduler.start()
        host.batches.start()
        yield
        await asyncio.to_thread(host.close)

    app = FastAPI(title="dspy-finetune local host", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.router.route_class = GuardedRoute
    app.add_middleware(Guard, api_key=host.api_key, names=host.names)
    add_error_answers(app)
    _add_files(app, host)
    _add_uploads(app, host)
    _add_jobs(app, host)
    _add_models(app, host)
    _add_chat(app, host)
    _add_batches(app, host)
    _add_exports(app, host)

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        return host.health()

    return app


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
ShortLimit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=MAX_NAME)]
Order = Literal["asc", "desc"]
ModelId = Annotated[str, Path(max_length=MAX_NAME)]


def _add_files(app: FastAPI, host: Host) -> None:
    store = host.store

    @app.post("/v1/files")
    def upload(
        file: UploadFile,
        purpose: Annotated[Literal["fine-tune", "batch"], Form()],
        anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
        seconds: Annotated[int | None, Form(alias="expires_after[seconds]", ge=3600, le=2592000)] = None,
    ) -> dict[str, Any]:
        if (anchor is None) != (seconds is None):
            message = "expires_after needs both anchor and seconds."
            raise ApiError(400, message, param="expires_after", code="missing_required_parameter")
        return add_upload(store, file.file, file.filename, purpose, seconds).wire()

    @app.get("/v1/files")
    def list_files(
        after: After = None, limit: Limit = 10_000, purpose: After = None, order: Order = "desc"
    ) -> dict[str, Any]:
        records = [record.wire() for record in store.files() if purpose in (None, record.purpose)]
        return _page(records if order == "desc" else records[::-1], after, limit)

    @app.get("/v1/files/{file_id}")
    def retrieve_file(file_id: str) -> dict[str, Any]:
        return store.file(file_id).wire()

    @app.get("/v1/files/{file_id}/content")
    def file_content(file_id: str) -> FileResponse:
        path = host.exports.file(file_id) or store.content(file_id)
        if not path.is_file():  # somebody else took its bytes away
            raise ApiError(404, f"The content of {file_id} is gone; delete the file and upload it again.", param="id")
        return FileResponse(path, media_type="application/octet-stream")

    @app.delete("/v1/files/{file_id}")
    def delete_file(file_id: str) -> dict[str, Any]:
        store.delete_file(file_id)
        return {"id": file_id, "object": "file", "deleted": True}


def _add_batches(app: FastAPI, host: Host) -> None:
    @app.post("/v1/batches")
    def create_batch(body: CreateBatch) -> dict[str, Any]:
        return host.batches.create(body)

    @app.get("/v1/batches")
    def list_batches(after: After = None, limit: ShortLimit = 20) -> dict[str, Any]:
        return _page(host.batches.all(), after, limit)

    @app.get("/v1/batches/{batch_id}")
    def retrieve_batch(batch_id: str) -> dict[str, Any]:
        return host.batches.retrieve(batch_id)

    @app.post("/v1/batches/{batch_id}/cancel")
    def cancel_batch(batch_id: str) -> dict[str, Any]:
        return host.batches.cancel(batch_id)


def _add_uploads(app: FastAPI, host: Host) -> None:
    @app.post("/v1/uploads")
    def create_upload(body: CreateUpload) -> dict[str, Any]:
        return host.uploads.create(body)

    @app.post("/v1/uploads/{upload_id}/parts")
    def add_part(upload_id: str, data: UploadFile) -> dict[str, Any]:
        return host.uploads.add_part(upload_id, data.file)

    @app.post("/v1/uploads/{upload_id}/complete")
    def complete_upload(upload_id: str, body: CompleteUpload) -> dict[str, Any]:
        return host.uploads.complete(upload_id, body)

    @app.post("/v1/uploads/{upload_id}/cancel")
    def cancel_upload(upload_id: str) -> dict[str, Any]:
        return host.uploads.cancel(upload_id)


def add_upload(
    store: Store, content: BinaryIO, filename: str | None, purpose: str, expires_after_seconds: int | None
) -> FileRecord:
    """Check an uploaded file line by line, then keep it."""
    name = filename or "file.jsonl"
    if len(name) > MAX_NAME:
        raise ApiError(400, f"The file's name is longer than {MAX_NAME} characters.", param="file")
    n_rows = 0
    try:
        content.seek(0)
        for _ in parse_rows(content):
            n_rows += 1
    except RowError as error:
        message = "Expected file to have JSONL format, where every line is a valid JSON dictionary."
        what = f"{message} Line {error.line}: {error.problem}."
        raise ApiError(400, what, code="invalid_file_format", param="file") from error
    if not n_rows:
        raise ApiError(400, "File is empty.", param="file", code="empty_file")
    content.seek(0)
    return store.add_file(content, name, purpose, expires_after_seconds=expires_after_seconds)


def _add_exports(app: FastAPI, host: Host) -> None:
    """Models for other servers; not OpenAI's API. The files of an export are fetched as any other file is."""

    @app.post("/v1/exports")
    def create_export(body: CreateExport) -> dict[str, Any]:
        host.check_model(body.model)
        tuned = host.store.model(body.model)
        return host.exports.create(body, base=tuned.base if tuned else host.base(body.model) or body.model)

    @app.get("/v1/exports/{export_id}")
    def retrieve_export(export_id: str) -> dict[str, Any]:
        return host.exports.wire(export_id)

    @app.delete("/v1/exports/{export_id}")
    def delete_export(export_id: str) -> dict[str, Any]:
        host.exports.delete(export_id)
        return {"id": export_id, "object": "model.export", "deleted": True}


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
            sequence=next_sequence(other.sequence for other in store.jobs()),
            model=host.base(body.model) or body.model,
            method=method,
            given=given,
            training_file=body.training_file,
            validation_file=body.validation_file,
            suffix=body.suffix,
            seed=random.randrange(2**31) if body.seed is None else body.seed,
            metadata=body.metadata,
            integrations=[one.model_dump(exclude_none=True) for one in body.integrations or ()] or None,
        )
        folder = store.job_folder(job.id)
        folder.mkdir()
        message = f"Created fine-tuning job: {job.id}"
        append_event(folder, message, event_id=derived_id("ftevent-", job.id, message))
        store.save_job(job)
        return wire(job)

    @app.get("/v1/fine_tuning/jobs")
    def list_jobs(
        request: Request, after: After = None, limit: ShortLimit = 20, metadata: After = None
    ) -> dict[str, Any]:
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
    def list_events(job_id: str, after: After = None, limit: Limit = 20) -> dict[str, Any]:
        return _page([*scheduler.trouble(store.job(job_id)), *store.events(job_id)[::-1]], after, limit)

    @app.get("/v1/fine_tuning/jobs/{job_id}/checkpoints")
    def list_checkpoints(job_id: str, after: After = None, limit: Limit = 10) -> dict[str, Any]:
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
    def retrieve_model(model_id: ModelId) -> dict[str, Any]:
        host.check_model(model_id)
        tuned = store.model(model_id)
        return tuned.wire() if tuned else base_wire(model_id)

    @app.delete("/v1/models/{model_id:path}")
    def delete_model(model_id: ModelId) -> dict[str, Any]:
        host.check_model(model_id)
        if not store.delete_model(model_id):
            raise ApiError(403, "Base models cannot be deleted.", code="forbidden", param="model")
        host.forget(model_id)
        return {"id": model_id, "object": "model", "deleted": True}


def _add_chat(app: FastAPI, host: Host) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        headers: dict[str, str] = {}
        if not body.stream:
            answer = await _while_wanted(request, host.complete(body, headers=headers))
            return JSONResponse(answer, headers=headers)
        await asyncio.to_thread(host.check_model, body.model)
        chunks = await _while_wanted(request, completions.stream(await host.ready_engine(), body, headers))
        return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> dict[str, Any]:
        return await _while_wanted(request, host.embed(body))

    @app.post("/v1/responses")
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        if not body.stream:
            return JSONResponse(await _while_wanted(request, host.respond(body)))
        await asyncio.to_thread(host.check_model, body.model)
        events = responses.stream(await host.ready_engine(), body)
        return StreamingResponse(await _while_wanted(request, events), media_type="text/event-stream")


async def _while_wanted(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work as long as the client waits for it."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_leaves(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            raise ApiError(499, "The client has left.", code="client_closed_request")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
