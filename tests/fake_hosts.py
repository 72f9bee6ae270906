"""Hosts with an API of their own, as their published descriptions tell it: each request is held to the description.

    server = FakeNebius()        # listens on 127.0.0.1; NEBIUS_BASE_URL=server.url
    server = FakeTogether()      # TOGETHER_BASE_URL=server.url
    server = FakeFireworks()     # FIREWORKS_BASE_URL=server.inference_url

A field that the description does not have, or one of a wrong type or range, is refused with 422: a test that passes
says that no request holds one. Sources: Nebius's description (api version 20260506, and the client generated from it on
2026-07-04); Together's (github.com/togethercomputer/openapi, 2.0.0 of 2026-04-28); the fields of Fireworks' generated
client 1.2.30. Nothing here was checked against a service.
"""

from __future__ import annotations

from datetime import datetime, timezone
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


# ---- Together AI

_LORA = _object(
    ["type", "lora_r", "lora_alpha"],
    type={"enum": ["Lora"]},
    lora_r=WHOLE,
    lora_alpha=WHOLE,
    lora_dropout=NUMBER,
    lora_trainable_modules=TEXT,
)
_SFT = _object(["method", "train_on_inputs"], method={"enum": ["sft"]}, train_on_inputs={"enum": [True, False, "auto"]})
_DPO = _object(
    ["method"],
    method={"enum": ["dpo"]},
    dpo_beta=NUMBER,
    rpo_alpha=NUMBER,
    dpo_normalize_logratios_by_length={"type": "boolean"},
    dpo_reference_free={"type": "boolean"},
    simpo_gamma=NUMBER,
)
TOGETHER_JOB = _object(
    ["training_file", "model"],
    training_file=TEXT,
    validation_file=TEXT,
    model=TEXT,
    n_epochs=WHOLE,
    n_checkpoints=WHOLE,
    n_evals=WHOLE,
    batch_size={"oneOf": [WHOLE, {"enum": ["max"]}]},
    learning_rate=NUMBER,
    lr_scheduler={"type": "object"},
    warmup_ratio=NUMBER,
    max_grad_norm=NUMBER,
    weight_decay=NUMBER,
    max_seq_length=WHOLE,
    packing={"type": "boolean"},
    random_seed={"type": ["integer", "null"]},
    suffix=TEXT,
    wandb_api_key=TEXT,
    wandb_base_url=TEXT,
    wandb_project_name=TEXT,
    wandb_name=TEXT,
    wandb_entity=TEXT,
    training_method={"oneOf": [_SFT, _DPO]},
    training_type={"anyOf": [_object(["type"], type={"enum": ["Full"]}), _LORA]},
    from_checkpoint=TEXT,
    from_hf_model=TEXT,
    hf_model_revision=TEXT,
    hf_api_token=TEXT,
    hf_output_repo_name=TEXT,
)
TOGETHER_UPLOAD = _object(
    ["purpose", "file_name", "file"],
    purpose={"enum": ["fine-tune", "eval", "batch-api"]},
    file_name=TEXT,
    file_type={"enum": ["csv", "jsonl", "parquet"]},
    file={},
    filename=TEXT,
)
TOGETHER_ENDPOINT = _object(
    ["model", "hardware", "autoscaling"],
    model=TEXT,
    hardware=TEXT,
    display_name=TEXT,
    autoscaling=_object(["min_replicas", "max_replicas"], min_replicas=WHOLE, max_replicas=WHOLE),
    inactive_timeout={"type": ["integer", "null"]},
    state={"enum": ["STARTED", "STOPPED"]},
    availability_zone=TEXT,
)


class FakeTogether(FakeOpenAI):
    """Together AI."""

    def __init__(self, *, key: str | None = None) -> None:
        super().__init__(key=key)
        self.script = ["pending", "running", "uploading", "completed"]
        self.tuned: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, dict[str, Any]] = {}

    def own_answer(
        self, command: str, path: list[str], body: Any, query: dict[str, list[str]]
    ) -> tuple[int, Any] | None:
        if path[0] == "files":
            return self.files_answer(command, path, body)
        if path[0] == "fine-tunes":
            return self.jobs_answer(command, path, body)
        if (command, path[0]) == ("GET", "models") and len(path) == 1:
            return 200, [{"id": "Qwen/Qwen3-8B", "object": "model", "created": 1, "type": "chat"}]
        if path == ["finetune", "download"]:
            wanted = query["checkpoint"][0]
            return (
                (200, f"{wanted} of {query['ft_id'][0]}".encode())
                if wanted in {"merged", "adapter"}
                else _bad("checkpoint")
            )
        if path[0] == "endpoints" and command == "POST":
            wrong = held_to(TOGETHER_ENDPOINT, body)
            if wrong:
                return _bad(wrong)
            made = {
                **body,
                "object": "endpoint",
                "id": "endpoint-1",
                "name": f"me/{body['model']}-1",
                "state": "PENDING",
            }
            self.endpoints["endpoint-1"] = made
            return 200, made
        if path[0] == "endpoints" and command == "DELETE":
            del self.endpoints[path[1]]
            return 204, b""
        return None if path[:2] == ["chat", "completions"] else _bad(f"no route {command} {path}", 404)

    def files_answer(self, command: str, path: list[str], body: Any) -> tuple[int, Any] | None:
        if (command, path) == ("POST", ["files", "upload"]):
            fields = {k: v.decode() if isinstance(v, bytes) and k != "file" else v for k, v in body.items()}
            wrong = held_to(TOGETHER_UPLOAD, fields)
            if wrong:
                return _bad(wrong)
            return 200, _together_file(self.upload(fields["file_name"], fields["purpose"], body["file"]))
        if command == "GET" and len(path) == 1:
            return 200, {"data": [_together_file(one) for one in self.files.values()]}
        if command == "GET" and len(path) == 2 and path[1] in self.files:
            return 200, _together_file(self.files[path[1]])
        return None

    def jobs_answer(self, command: str, path: list[str], body: Any) -> tuple[int, Any]:
        if len(path) == 1 and command == "POST":
            wrong = held_to(TOGETHER_JOB, body)
            if wrong is None and body["training_file"] not in self.files:
                wrong = f"file {body['training_file']} does not exist"
            return _bad(wrong) if wrong else (200, self.start(body))
        if len(path) == 1:
            # Without `from_checkpoint` and with the suffix, as the description's shorter form has it.
            return 200, {"data": list(self.tuned.values())}
        job = self.tuned.get(path[1])
        if job is None:
            return _bad(f"fine-tune {path[1]} not found", 404)
        if path[2:] == ["events"]:
            return 200, {"data": job["events"]}
        if path[2:] == ["metrics"]:
            return 200, {
                "metrics": [{"train/global_step": 1, "train/loss": 2.5}, {"train/global_step": 2, "train/loss": 1.25}]
            }
        if path[2:] == ["checkpoints"]:
            return 200, {
                "data": [{"step": 2, "path": "s3", "created_at": job["created_at"], "checkpoint_type": "Final"}]
            }
        if path[2:] == ["cancel"]:
            job["status"] = "cancelled"
            return 200, job
        self.move(job)
        # The long form of the description has no suffix.
        return 200, {name: value for name, value in job.items() if name not in {"suffix", "_seen"}}

    def start(self, body: dict[str, Any]) -> dict[str, Any]:
        identity = f"ft-{len(self.tuned) + 1:04d}"
        kept = {name: value for name, value in body.items() if name != "wandb_api_key"}
        self.tuned[identity] = {
            **kept,
            "id": identity,
            "status": "pending",
            "created_at": self.date(),
            "updated_at": self.date(),
            "model_output_name": f"me/{body['model'].rpartition('/')[2]}-{body['suffix']}-{len(self.tuned) + 1:08x}",
            "events": [self.event("job_pending", "Job created", f"h{len(self.tuned)}")],
            "_seen": 0,
        }  # fmt: skip
        return {name: value for name, value in self.tuned[identity].items() if name not in {"suffix", "_seen"}}

    def event(self, kind: str, message: str, digest: str, *, level: str = "info") -> dict[str, Any]:
        told = {"object": "fine-tune-event", "created_at": self.date(), "message": message, "type": kind}
        return {**told, "level": level, "hash": digest}

    def move(self, job: dict[str, Any]) -> None:
        if job["status"] in {"completed", "error", "cancelled"}:
            return
        job["status"] = self.script[min(job["_seen"], len(self.script) - 1)]
        job["_seen"] += 1
        job["updated_at"] = self.date()
        job["progress"] = {"estimate_available": job["status"] == "running", "seconds_remaining": 90}
        if job["status"] == "completed":
            job["token_count"] = 1200
        if job["status"] == "error":
            job["events"].append(self.event("job_error", "Line 3 is wrong.", "e", level="error"))

    def date(self) -> str:
        return datetime.fromtimestamp(self.now, timezone.utc).isoformat().replace("+00:00", "Z")


def _together_file(one: dict[str, Any]) -> dict[str, Any]:
    kept = {name: one[name] for name in ("id", "object", "created_at", "filename", "bytes", "purpose")}
    return {**kept, "FileType": "jsonl", "Processed": True, "created_at": int(one["created_at"])}


def _bad(message: str, status: int = 400) -> tuple[int, Any]:
    return status, {"error": {"type": "invalid_request_error", "message": message, "code": None, "param": None}}


# ---- Fireworks AI

_WANDB = _object([], enabled={"type": "boolean"}, apiKey=TEXT, project=TEXT, entity=TEXT, runId=TEXT)
_TRAINING = {
    "baseModel": TEXT,
    "warmStartFrom": TEXT,
    "outputModel": TEXT,
    "epochs": WHOLE,
    "batchSize": WHOLE,
    "batchSizeSamples": WHOLE,
    "learningRate": NUMBER,
    "learningRateWarmupSteps": WHOLE,
    "gradientAccumulationSteps": WHOLE,
    "loraRank": WHOLE,
    "maxContextLength": WHOLE,
    "jinjaTemplate": TEXT,
    "optimizerWeightDecay": NUMBER,
    "region": TEXT,
}
FIREWORKS_SFT = _object(
    ["dataset"],
    **_TRAINING,
    dataset=TEXT,
    displayName=TEXT,
    evaluationDataset=TEXT,
    earlyStop={"type": "boolean"},
    isTurbo={"type": "boolean"},
    wandbConfig=_WANDB,
)
FIREWORKS_DPO = _object(
    ["dataset"],
    dataset=TEXT,
    displayName=TEXT,
    trainingConfig=_object([], **_TRAINING),
    wandbConfig=_WANDB,
    lossConfig=_object(
        [],
        method={"enum": ["METHOD_UNSPECIFIED", "GRPO", "DAPO", "DPO", "ORPO", "GSPO_TOKEN"]},
        klBeta=NUMBER,
        dpo=_object([], beta={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5}),
    ),
)
FIREWORKS_DATASET = _object(
    ["dataset", "datasetId"],
    datasetId={"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"},
    dataset=_object(
        [],
        displayName=TEXT,
        exampleCount=TEXT,
        externalUrl=TEXT,
        format={"enum": ["FORMAT_UNSPECIFIED", "CHAT", "COMPLETION", "RL"]},
        userUploaded={"type": "object"},
    ),
)


class FakeFireworks(FakeOpenAI):
    """Fireworks AI, with one account named `me`."""

    def __init__(self, *, key: str | None = None) -> None:
        super().__init__(key=key)
        self.inference_url = self.url.removesuffix("/v1") + "/inference/v1"
        self.script = ["VALIDATING", "RUNNING", "COMPLETED"]
        self.datasets: dict[str, dict[str, Any]] = {}
        self.tuned: dict[str, dict[str, Any]] = {}

    def own_answer(
        self, command: str, path: list[str], body: Any, query: dict[str, list[str]]
    ) -> tuple[int, Any] | None:
        if path[0] == "inference":  # the chat of any host
            return 200, self.chat(body)
        if path == ["accounts"]:
            return 200, {"accounts": [{"name": "accounts/me"}]}
        kind, rest = path[2], path[3:]
        if kind == "datasets":
            return self.dataset_answer(command, rest, body)
        if kind in {"supervisedFineTuningJobs", "dpoJobs"}:
            return self.job_answer(command, kind, rest, body, query)
        if kind == "models" and rest:
            found = [
                job for job in self.tuned.values() if self.output(job) == rest[0] and job["state"].endswith("COMPLETED")
            ]
            return (200, self.model(found[0])) if found else _grpc(404, 5, f"model {rest[0]} not found")
        if kind == "models":
            return 200, {
                "models": [self.model(job) for job in self.tuned.values() if job["state"].endswith("COMPLETED")]
            }
        return _grpc(404, 5, f"no route {command} {path}")

    def dataset_answer(self, command: str, rest: list[str], body: Any) -> tuple[int, Any]:
        if command == "POST" and not rest:
            wrong = held_to(FIREWORKS_DATASET, body)
            if wrong:
                return _grpc(400, 3, wrong)
            identity = body["datasetId"]
            self.datasets[identity] = {
                **body["dataset"],
                "name": f"accounts/me/datasets/{identity}",
                "state": "UPLOADING",
            }
            return 200, self.datasets[identity]
        if not rest:
            return 200, {"datasets": list(self.datasets.values())}
        identity, _, verb = rest[0].partition(":")
        if identity not in self.datasets:
            return _grpc(404, 5, f"dataset {identity} not found")
        if verb == "upload":
            self.contents[identity] = body["file"]
            self.datasets[identity]["state"] = "READY"
        if verb == "getDownloadEndpoint":
            signed = f"{self.url}/signed/{identity}"
            return 200, {"filenameToSignedUrls": {"train.jsonl": signed}}
        return 200, self.datasets[identity]

    def job_answer(
        self, command: str, kind: str, rest: list[str], body: Any, query: dict[str, list[str]]
    ) -> tuple[int, Any]:
        if command == "POST" and not rest:
            schema = FIREWORKS_DPO if kind == "dpoJobs" else FIREWORKS_SFT
            identity = query[f"{kind[:-1]}Id"][0]
            wrong = held_to(schema, body)
            if wrong is None and body["dataset"].rpartition("/")[2] not in self.datasets:
                wrong = f"dataset {body['dataset']} not found"
            if wrong:
                return _grpc(400, 3, wrong)
            name = f"accounts/me/{kind}/{identity}"
            if name in self.tuned:
                return _grpc(409, 6, f"{name} already exists")
            self.tuned[name] = {
                **body,
                "name": name,
                "state": "JOB_STATE_CREATING",
                "createTime": self.date(),
                "_seen": 0,
            }
            return 200, self.shown(self.tuned[name])
        if not rest:
            return 200, {kind: [self.shown(job) for name, job in self.tuned.items() if f"/{kind}/" in name]}
        identity, _, verb = rest[0].partition(":")
        job = self.tuned.get(f"accounts/me/{kind}/{identity}")
        if job is None:
            return _grpc(404, 5, f"job {identity} not found")
        if verb == "cancel":
            job["state"] = "JOB_STATE_CANCELLED"
        elif not job["state"].endswith(("COMPLETED", "FAILED", "CANCELLED")):
            job["state"] = f"JOB_STATE_{self.script[min(job['_seen'], len(self.script) - 1)]}"
            job["_seen"] += 1
            if job["state"].endswith("COMPLETED"):
                job.update(completedTime=self.date(), jobProgress={"percent": 100, "inputTokens": 1200})
            if job["state"].endswith("FAILED"):
                job["status"] = {"code": "INVALID_ARGUMENT", "message": "Line 3 is wrong."}
        return 200, self.shown(job)

    def shown(self, job: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in job.items() if name != "_seen"}

    def output(self, job: dict[str, Any]) -> str:
        return str((job.get("trainingConfig") or job)["outputModel"])

    def model(self, job: dict[str, Any]) -> dict[str, Any]:
        base = (job.get("trainingConfig") or job).get("baseModel")
        name = f"accounts/me/models/{self.output(job)}"
        return {"name": name, "kind": "HF_PEFT_ADDON", "peftDetails": {"baseModel": base}, "createTime": self.date()}

    def chat(self, body: Any) -> dict[str, Any]:
        text = self.answer(body) if self.answer is not None else self.reply
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        return {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }

    def date(self) -> str:
        return datetime.fromtimestamp(self.now, timezone.utc).isoformat().replace("+00:00", "Z")


def _grpc(status: int, code: int, message: str) -> tuple[int, Any]:
    return status, {"code": code, "message": message, "details": []}


def _unprocessable(message: str) -> tuple[int, Any]:
    return 422, {"detail": [{"loc": ["body"], "msg": message, "type": "value_error"}]}
