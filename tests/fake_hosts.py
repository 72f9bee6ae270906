"""Hosts with an API of their own, as their published descriptions tell it: each request is held to the description.

    server = FakeNebius()        # listens on 127.0.0.1; NEBIUS_BASE_URL=server.url

A field that the description does not have, or one of a wrong type or range, is refused with 422: a test that passes
says that no request holds one. Sources: Nebius's description (api version 20260506, and the client generated from it on
2026-07-04). Nothing here was checked against a service.
"""

from __future__ import annotations

from typing import Any

import jsonschema

from tests.fake_openai import FakeOpenAI


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


TEXT = {"type": "string"}
WHOLE = {"type": "integer"}
NUMBER = {"type": "number"}


def held_to(schema: dict[str, Any], body: Any) -> str | None:
    """What a description says against a body; None if nothing."""
    first = next(iter(jsonschema.Draft202012Validator(schema).iter_errors(body)), None)
    return None if first is None else f"{'.'.join(map(str, first.absolute_path)) or 'body'}: {first.message}"


# ---- Nebius Token Factory

NEBIUS_JOB = _object(
    ["model", "training_file"],
    model=TEXT,
    training_file=TEXT,
    validation_file=TEXT,
    from_checkpoint={"type": "object"},
    method={"type": "object"},
    hyperparameters=_object(
        [],
        batch_size={"type": "integer", "minimum": 1, "maximum": 64},
        learning_rate={"type": "number", "minimum": 0},
        n_epochs={"type": "integer", "minimum": 1, "maximum": 20},
        warmup_ratio={"type": "number", "minimum": 0, "maximum": 1},
        weight_decay={"type": "number", "minimum": 0},
        packing={"type": "boolean"},
        max_grad_norm={"type": "number", "exclusiveMinimum": 0},
        context_length={"type": "integer", "minimum": 8192, "maximum": 131072},
        lora={"type": "boolean"},
        lora_r={"type": "integer", "minimum": 8, "maximum": 128},
        lora_alpha={"type": "integer", "minimum": 8},
        lora_dropout={"type": "number", "minimum": 0, "maximum": 1},
    ),
    integrations={"type": "array"},
    seed=WHOLE,
    suffix={"type": "string", "maxLength": 64},
    tags={"type": "array", "items": TEXT},
)
NEBIUS_MODEL = _object(["name", "base_model", "source"], name=TEXT, base_model=TEXT, source=TEXT, description=TEXT)


class FakeNebius(FakeOpenAI):
    """Nebius Token Factory."""

    def __init__(self, *, key: str | None = None) -> None:
        super().__init__(key=key)
        self.custom: dict[str, dict[str, Any]] = {}
        self.validating = 1  # how many looks at a custom model find it not active yet

    def own_answer(
        self, command: str, path: list[str], body: Any, query: dict[str, list[str]]
    ) -> tuple[int, Any] | None:
        if (command, path) == ("POST", ["fine_tuning", "jobs"]):
            wrong = held_to(NEBIUS_JOB, body)
            if wrong is None and "method" in body and "hyperparameters" in body:
                wrong = "Only one of 'method' or 'hyperparameters' must be provided"
            return _unprocessable(wrong) if wrong else None
        if (command, path) == ("POST", ["v0", "models"]):
            wrong = held_to(NEBIUS_MODEL, body)
            return _unprocessable(wrong) if wrong else (200, self.publish(body))
        if (command, path) == ("GET", ["v0", "models"]):
            self.validating -= 1
            for one in self.custom.values():
                one["status"] = "active" if self.validating < 0 else "validating"
            return 200, {"models": list(self.custom.values())}
        return None

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        made = super().create(body)
        del made["metadata"]
        made.update(suffix=body.get("suffix"), hyperparameters=body.get("hyperparameters"), method=None)
        return made

    def succeed(self, job: dict[str, Any]) -> None:
        files = [self.upload(f"{job['id']}/{name}", "fine-tune", b"{}")["id"] for name in ("adapter_config.json",)]
        job.update(status="succeeded", finished_at=self.now, trained_tokens=1200)
        self.emit(job["id"], "Training completed successfully")
        for step in (1, 2):
            self.checkpoints[job["id"]].append(
                {
                    "id": f"ftckpt_{job['id']}_{step}",
                    "object": "fine_tuning.job.checkpoint",
                    "created_at": self.now,
                    "fine_tuned_model_checkpoint": f"{job['id']}:{step}",
                    "fine_tuning_job_id": job["id"],
                    "metrics": {"step": step, "train_loss": 2.5 / step},
                    "step_number": step,
                    "result_files": files,
                }
            )

    def publish(self, body: dict[str, Any]) -> dict[str, Any]:
        job, _, checkpoint = body["source"].partition(":")
        name = f"{body['base_model']}-LoRa:{body['name']}-Ab{len(self.custom) + 1:02d}"
        self.custom[name] = {
            "name": name,
            "base_model": body["base_model"],
            "source": body["source"],
            "job_id": job,
            "checkpoint_id": checkpoint,
            "created_at": self.now,
            "status": "validating",
        }
        return self.custom[name]


def _unprocessable(message: str) -> tuple[int, Any]:
    return 422, {"detail": [{"loc": ["body"], "msg": message, "type": "value_error"}]}
