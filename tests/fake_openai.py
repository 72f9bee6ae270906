"""A small OpenAI: files, fine-tuning jobs, models, chat and batches over HTTP, with faults on order.

    server = FakeOpenAI()                               # listens on 127.0.0.1, a free port
    server.fail("POST /fine_tuning/jobs", status=429)   # the next one is answered with 429
    server.drop("POST /fine_tuning/jobs")               # the next one is done, and the connection cut before the answer
    server.hold("POST /files", phase="after")           # the next one waits: .reached.wait(), .release()

    server.answer = lambda body: "true"                 # the reply to a chat request; without it, `reply` stands
    server.orders = ["expired"]                         # how the next batches end

The state stands open: `server.jobs`, `server.files`, `server.requests`. Time moves only by `server.now`.
"""

from __future__ import annotations

import base64
import contextlib
import email
import email.policy
import json
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

STEPS = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,2.5,0.4,,\n2,1.25,0.7,1.5,0.6\n"


@dataclass
class Fault:
    """What happens to one coming request."""

    route: str
    status: int | None = None
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    is_drop: bool = False
    is_done: bool = False  # the work is done before the fault shows


@dataclass
class Hold:
    """A request that waits until it is released."""

    route: str
    phase: str
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self.released.set()


class FakeOpenAI:
    """The server and its state."""

    def __init__(self, *, key: str | None = None) -> None:
        self.key = key
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.checkpoints: dict[str, list[dict[str, Any]]] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.faults: list[Fault] = []
        self.holds: list[Hold] = []
        self.keeps_metadata = True
        self.filters_metadata = True
        self.listing_lag = 0  # how many list calls do not show a job yet
        self.script = ["validating_files", "queued", "running", "succeeded"]
        self.failure = {"code": "invalid_training_file", "message": "Line 3 is wrong.", "param": "training_file"}
        self.now: float = 1_795_000_000
        self.reply = "true"
        self.answer: Callable[[dict[str, Any]], str] | None = None
        self.batches: dict[str, dict[str, Any]] = {}
        # How the next batches end: "completed" (without an order), "expired", "queue_full", "failed"; "slow" is half
        # done at the first look and completed at the second.
        self.orders: list[str] = []
        self.failed_batch = ""  # the host's words for it
        self.asked: list[str] = []
        self.says: Callable[[dict[str, Any]], tuple[int, str]] = lambda body: (200, "true")
        self.listed: dict[str, float] = {}  # token -> log-probability, listed at the reply's one place
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"fake": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def close(self) -> None:
        for hold in self.holds:
            hold.release()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    # ---- faults on order

    def fail(
        self,
        route: str,
        *,
        status: int,
        times: int = 1,
        headers: dict[str, str] | None = None,
        body: Any = "",
        done=False,
    ) -> None:
        answer = {"error": {"message": f"fake {status}", "type": "fake", "code": None, "param": None}}
        for _ in range(times):
            self.faults.append(
                Fault(route, status=status, body=answer if body == "" else body, headers=headers or {}, is_done=done)
            )

    def drop(self, route: str, *, done: bool = True) -> None:
        self.faults.append(Fault(route, is_drop=True, is_done=done))

    def hold(self, route: str, *, phase: str) -> Hold:
        hold = Hold(route, phase)
        self.holds.append(hold)
        return hold

    def count(self, route: str) -> int:
        return sum(1 for name, _ in self.requests if name == route)

    def own_answer(
        self, command: str, path: list[str], body: Any, query: dict[str, list[str]]
    ) -> tuple[int, Any] | None:
        """What a host with an API of its own answers (fake_hosts.py); None leaves it to this one."""
        return None

    # ---- what the routes do

    def upload(self, name: str, purpose: str, content: bytes) -> dict[str, Any]:
        identity = f"file-{len(self.files) + 1:04d}"
        self.contents[identity] = content
        self.files[identity] = {
            "id": identity,
            "object": "file",
            "bytes": len(content),
            "created_at": self.now,
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        return self.files[identity]

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        number = len(self.jobs) + 1
        identity = f"ftjob-{number:04d}"
        self.jobs[identity] = {
            "id": identity,
            "object": "fine_tuning.job",
            "created_at": self.now,
            "finished_at": None,
            "model": body["model"],
            "fine_tuned_model": None,
            "organization_id": "org-fake",
            "status": "validating_files",
            "training_file": body["training_file"],
            "validation_file": body.get("validation_file"),
            "result_files": [],
            "trained_tokens": None,
            "hyperparameters": None,
            "method": body.get("method"),
            "seed": body.get("seed", 7),
            "estimated_finish": None,
            "integrations": body.get("integrations") or [],
            "metadata": body.get("metadata") if self.keeps_metadata else None,
            "error": {"code": None, "message": None, "param": None},
            "_suffix": body.get("suffix", ""),
            "_number": number,
            "_seen": 0,
            "_hidden": self.listing_lag,
        }
        self.events[identity] = []
        self.checkpoints[identity] = []
        self.emit(identity, f"Created fine-tuning job: {identity}")
        return self.jobs[identity]

    def emit(self, job: str, message: str, **data: Any) -> None:
        events = self.events[job]
        events.append(
            {
                "id": f"ftevent-{job[6:]}-{len(events):04d}",
                "object": "fine_tuning.job.event",
                "created_at": self.now,
                "level": "info",
                "message": message,
                "type": "metrics" if data else "message",
                "data": data or {},
            }
        )

    def advance(self, job: dict[str, Any]) -> None:
        if job["status"] in {"succeeded", "failed", "cancelled", "paused"}:
            return
        job["status"] = self.script[min(job["_seen"], len(self.script) - 1)]
        job["_seen"] += 1
        if job["status"] == "running":
            self.emit(job["id"], "Step 1/2: training loss=2.50", step=1, total_steps=2, train_loss=2.5)
        if job["status"] == "succeeded":
            self.succeed(job)
        if job["status"] == "failed":
            job["error"] = self.failure
            job["finished_at"] = self.now

    def succeed(self, job: dict[str, Any]) -> None:
        base = job["model"].split(":")[1] if job["model"].startswith("ft:") else job["model"]
        name = f"ft:{base}:fake:{job['_suffix']}:{job['_number']:08d}"
        result = self.upload("step_metrics.csv", "fine-tune-results", base64.b64encode(STEPS.encode()))
        job.update(
            status="succeeded",
            fine_tuned_model=name,
            finished_at=self.now,
            trained_tokens=1200,
            result_files=[result["id"]],
            hyperparameters={"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8},
        )
        self.models[name] = {"id": name, "object": "model", "created": self.now, "owned_by": "org-fake"}
        self.emit(job["id"], "Step 2/2: training loss=1.25", step=2, total_steps=2, train_loss=1.25)
        self.emit(job["id"], "The job has successfully completed")
        self.checkpoints[job["id"]].append(
            {
                "id": f"ftckpt_{job['_number']}",
                "object": "fine_tuning.job.checkpoint",
                "created_at": self.now,
                "fine_tuned_model_checkpoint": f"{name}:ckpt-step-1",
                "fine_tuning_job_id": job["id"],
                "metrics": {"step": 1, "train_loss": 2.5},
                "step_number": 1,
            }
        )

    # ---- batches

    def create_batch(self, body: dict[str, Any]) -> dict[str, Any]:
        identity = f"batch_{len(self.batches) + 1}"
        self.batches[identity] = {
            "id": identity, "object": "batch", "endpoint": body["endpoint"], "errors": None,
            "input_file_id": body["input_file_id"], "completion_window": "24h", "status": "in_progress",
            "output_file_id": None, "error_file_id": None, "created_at": int(self.now), "metadata": body["metadata"],
            "order": self.orders.pop(0) if self.orders else "completed",
        }  # fmt: skip
        return self.batches[identity]

    def end(self, batch: dict[str, Any]) -> None:
        if batch["status"] != "in_progress":
            return
        order = batch["order"]
        if order == "slow":
            n_rows = self.contents[batch["input_file_id"]].count(b"\n")
            batch["request_counts"] = {"total": n_rows, "completed": n_rows // 2, "failed": 0}
            batch["order"] = "completed"
            return
        if order in ("queue_full", "failed"):
            code = "token_limit_exceeded" if order == "queue_full" else "invalid_json_line"
            error = {"code": code, "message": self.failed_batch or f"no: {order}", "line": None, "param": None}
            batch.update(status="failed", errors={"object": "list", "data": [error]})
            return
        rows = [json.loads(line) for line in self.contents[batch["input_file_id"]].splitlines()]
        random.Random(0).shuffle(rows)
        output: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for number, row in enumerate(rows):
            if order == "expired" and number % 2:
                error = {"code": "batch_expired", "message": "too late"}
                errors.append({"id": "r", "custom_id": row["custom_id"], "response": None, "error": error})
                continue
            self.asked.append(row["custom_id"])
            status, text = self.says(row["body"])
            message = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
            body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
            if status != 200:
                body = {"error": {"message": text, "code": None}}
            line = {"custom_id": row["custom_id"], "response": {"status_code": status, "body": body}, "error": None}
            (output if status == 200 else errors).append(line)
        for name, lines in (("output_file_id", output), ("error_file_id", errors)):
            if lines:
                content = "".join(json.dumps(line) + "\n" for line in lines).encode()
                batch[name] = self.upload(name, "batch_output", content)["id"]
        batch["status"] = order
        batch["request_counts"] = {"total": len(rows), "completed": len(output), "failed": len(errors)}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeOpenAI
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: tests read the state."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The Date of an answer: time moves only by `now`."""
        return super().date_time_string(self.fake.now if timestamp is None else timestamp)

    def do_GET(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def do_DELETE(self) -> None:
        self.serve()

    def serve(self) -> None:
        parts = urlsplit(self.path)
        path = [unquote(part) for part in parts.path.removeprefix("/openai").removeprefix("/v1").strip("/").split("/")]
        length = int(self.headers.get("Content-Length") or 0)
        with self.waits(path, "before"), contextlib.suppress(ConnectionError):
            raw = self.rfile.read(length)
            with self.fake.lock:
                route = _route(self.command, path)
                body = self.body(raw)
                self.fake.requests.append((route, body))
                self.fake.headers.append(dict(self.headers.items()))
                fault = next((one for one in self.fake.faults if one.route == route), None)
                if fault is not None:
                    self.fake.faults.remove(fault)
                if fault is None or fault.is_done:
                    status, answer = self.answer(route, path, body, parse_qs(parts.query))
            with self.waits(path, "after"):
                if fault is not None and fault.is_drop:
                    self.close_connection = True
                    self.connection.close()
                elif fault is not None:
                    assert fault.status is not None
                    self.send(fault.status, fault.body, fault.headers)
                else:
                    self.send(status, answer)

    @contextlib.contextmanager
    def waits(self, path: list[str], phase: str) -> Iterator[None]:
        route = _route(self.command, path)
        for hold in list(self.fake.holds):
            if hold.route == route and hold.phase == phase and not hold.reached.is_set():
                hold.reached.set()
                hold.released.wait(30)
        yield

    def body(self, raw: bytes) -> Any:
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("multipart/"):
            message = email.message_from_bytes(
                b"Content-Type: " + kind.encode() + b"\r\n\r\n" + raw, policy=email.policy.HTTP
            )
            fields: dict[str, Any] = {}
            for part in message.iter_parts():
                name = str(part.get_param("name", header="content-disposition"))
                fields[name] = part.get_payload(decode=True)
                if part.get_filename():
                    fields["filename"] = part.get_filename()
            return fields
        return json.loads(raw) if raw else None

    def send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        payload = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("x-request-id", f"req_{len(self.fake.requests)}")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def answer(self, route: str, path: list[str], body: Any, query: dict[str, list[str]]) -> tuple[int, Any]:
        fake = self.fake
        if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
            return _refuse(401, f"Incorrect API key provided: {self.headers.get('Authorization')}", "invalid_api_key")
        own = fake.own_answer(self.command, path, body, query)
        if own is not None:
            return own
        if route == "POST /files":
            return 200, fake.upload(body["filename"], body["purpose"].decode(), body["file"])
        if route == "GET /files":
            return 200, _page(list(fake.files.values()), query)
        if path[0] == "files":
            return self.one_file(route, path[1])
        if route == "POST /fine_tuning/jobs":
            return 200, _public(fake.create(body))
        if route == "GET /fine_tuning/jobs":
            return 200, self.listing(query)
        if path[:2] == ["fine_tuning", "jobs"]:
            return self.one_job(route, path[2], query)
        if route == "GET /models/*":
            model = fake.models.get(path[1])
            return (200, model) if model else _refuse(404, f"The model '{path[1]}' does not exist", "model_not_found")
        if route == "GET /models":
            return 200, {"object": "list", "data": list(fake.models.values())}
        if route == "POST /chat/completions":
            reply = fake.answer(body) if fake.answer is not None else fake.reply
            return 200, _completion(body["model"], reply, fake.listed if body.get("logprobs") else {})
        if path[0] == "batches":
            return self.batch(path, body)
        return _refuse(404, f"no route {route}", "not_found")

    def batch(self, path: list[str], body: Any) -> tuple[int, Any]:
        if len(path) == 1 and self.command == "POST":
            return 200, self.fake.create_batch(body)
        if len(path) == 1:
            return 200, {"object": "list", "data": list(reversed(self.fake.batches.values())), "has_more": False}
        self.fake.end(self.fake.batches[path[1]])
        return 200, self.fake.batches[path[1]]

    def listing(self, query: dict[str, list[str]]) -> dict[str, Any]:
        wanted = {name[9:-1]: values[0] for name, values in query.items() if name.startswith("metadata[")}
        shown = []
        for job in reversed(self.fake.jobs.values()):
            if job["_hidden"] > 0:
                job["_hidden"] -= 1
                continue
            metadata = job.get("metadata") or {}
            if not self.fake.filters_metadata or all(metadata.get(name) == value for name, value in wanted.items()):
                shown.append(_public(job))
        return _page(shown, query)

    def one_file(self, route: str, identity: str) -> tuple[int, Any]:
        if identity not in self.fake.files:
            return _refuse(404, f"No such File object: {identity}", None)
        if route == "GET /files/*/content":
            return 200, self.fake.contents[identity]
        if route == "DELETE /files/*":
            del self.fake.files[identity]
            return 200, {"id": identity, "object": "file", "deleted": True}
        return 200, self.fake.files[identity]

    def one_job(self, route: str, identity: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        job = self.fake.jobs.get(identity)
        if job is None:
            return _refuse(404, f"Could not find fine tune: {identity}", "fine_tune_not_found")
        if route == "GET /fine_tuning/jobs/*":
            self.fake.advance(job)
        elif route == "GET /fine_tuning/jobs/*/events":
            return 200, _page(list(reversed(self.fake.events[identity])), query)
        elif route == "GET /fine_tuning/jobs/*/checkpoints":
            return 200, _page(self.fake.checkpoints[identity], query)
        elif route == "POST /fine_tuning/jobs/*/cancel":
            job["status"] = "cancelled"
        elif route == "POST /fine_tuning/jobs/*/pause":
            job["status"] = "paused"
        elif route == "POST /fine_tuning/jobs/*/resume":
            job["status"] = "queued"
        return 200, _public(job)


def _route(command: str, path: list[str]) -> str:
    fixed = {"files", "fine_tuning", "jobs", "models", "chat", "completions"}
    fixed |= {"content", "events", "checkpoints", "cancel", "pause", "resume"}
    fixed |= {
        "v0",
        "fine-tunes",
        "upload",
        "endpoints",
        "datasets",
        "supervisedFineTuningJobs",
        "dpoJobs",
        "deployments",
    }
    return f"{command} /" + "/".join(part if part in fixed else "*" for part in path)


def _public(job: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.items() if not name.startswith("_")}


def _refuse(status: int, message: str, code: str | None) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "invalid_request_error", "code": code, "param": None}}


def _page(rows: list[Any], query: dict[str, list[str]]) -> dict[str, Any]:
    limit = int(query.get("limit", ["20"])[0])
    after = query.get("after", [""])[0]
    start = next((index + 1 for index, row in enumerate(rows) if row["id"] == after), 0)
    page = rows[start : start + limit]
    more = start + limit < len(rows)
    edges = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
    return {"object": "list", "data": page, "has_more": more, **edges}


def _completion(model: str, text: str, listed: dict[str, float]) -> dict[str, Any]:
    top = [{"token": token, "logprob": logprob, "bytes": list(token.encode())} for token, logprob in listed.items()]
    logprobs = {"content": [{**top[0], "top_logprobs": top}], "refusal": None} if top else None
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    }
