"""OpenAI's batch interface in small: what is uploaded is answered at the first look, in the way that a test orders."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tests.fake_openai import FakeOpenAI, _Handler

Line = dict[str, Any]


class FakeBatches(FakeOpenAI):
    """`orders` holds how the next batches end: "completed" (the default), "expired", "queue_full", "failed"; "slow"
    is half done at the first look and completed at the second."""

    def __init__(self) -> None:
        super().__init__()
        self.http.RequestHandlerClass = type("Handler", (_BatchHandler,), {"fake": self})
        self.batches: dict[str, Line] = {}
        self.orders: list[str] = []
        self.asked: list[str] = []
        self.says: Callable[[Line], tuple[int, str]] = lambda body: (200, "true")

    def create_batch(self, body: Line) -> Line:
        identity = f"batch_{len(self.batches) + 1}"
        self.batches[identity] = {
            "id": identity, "object": "batch", "endpoint": body["endpoint"], "errors": None,
            "input_file_id": body["input_file_id"], "completion_window": "24h", "status": "in_progress",
            "output_file_id": None, "error_file_id": None, "created_at": int(self.now), "metadata": body["metadata"],
            "order": self.orders.pop(0) if self.orders else "completed",
        }  # fmt: skip
        return self.batches[identity]

    def end(self, batch: Line) -> None:
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
            error = {"code": code, "message": f"no: {order}", "line": None, "param": None}
            batch.update(status="failed", errors={"object": "list", "data": [error]})
            return
        rows = [json.loads(line) for line in self.contents[batch["input_file_id"]].splitlines()]
        random.Random(0).shuffle(rows)
        output: list[Line] = []
        errors: list[Line] = []
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


class _BatchHandler(_Handler):
    fake: FakeBatches

    def answer(self, route: str, path: list[str], body: Any, query: dict[str, list[str]]) -> tuple[int, Any]:
        if path[0] != "batches":
            return super().answer(route, path, body, query)
        if len(path) == 1 and self.command == "POST":
            return 200, self.fake.create_batch(body)
        if len(path) == 1:
            return 200, {"object": "list", "data": list(reversed(self.fake.batches.values())), "has_more": False}
        self.fake.end(self.fake.batches[path[1]])
        return 200, self.fake.batches[path[1]]
