"""Together AI: its own files and jobs, told in OpenAI's shapes; SFT and DPO, adapters and all weights.

Checked against the published description of 2026-04-28 (github.com/togethercomputer/openapi, version 2.0.0) and the
client `together` 3.1.1, not against the service. The client is heavy, so its few requests are made here. What differs
from OpenAI:

- `POST /files/upload` names the file in fields of its own; a job is `POST /fine-tunes`, with `training_method` (sft,
  dpo), `training_type` (Lora, Full) and an absolute `learning_rate`. It is measured on the validation file only if
  `n_evals` says how often, which is billed: once an epoch here.
- A job keeps no metadata: the intent's digest stands in the suffix.
- Statuses are other words; events carry no id and no losses, which `GET /fine-tunes/{id}/metrics` has.
- `POST /fine-tunes/estimate-price` wants the id of an uploaded file, and `plan` uploads nothing: the price stays to be
  asked of the host.
- A tuned model answers on a dedicated endpoint, billed by the minute: `deploy` and `undeploy` make and end one, and
  nothing here does so unasked. They are the description's /endpoints; the client has a newer /v2 of them. Bases whose
  name ends in -Reference cannot be hosted so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from dspy_finetune.errors import HostError
from dspy_finetune.hosts.protocol import (
    UPLOAD_SECONDS,
    HostFile,
    HostKind,
    HostModel,
    metadata_of,
    method_and_settings,
    part,
    present,
    rows,
    seconds_of,
    tagged_suffix,
    whole,
    whole_answer,
)

if TYPE_CHECKING:
    from openai import OpenAI

KIND = HostKind(
    name="together",
    key_variables=("TOGETHER_API_KEY",),
    needs_deployment=True,
    deployment=("tg", "endpoints", "deploy", "{model}", "--endpoint", "NAME"),
    poll_seconds=(10.0, 60.0),
    base_model="Qwen/Qwen3-8B",
    base_url="https://api.together.ai/v1",
    url_variable="TOGETHER_BASE_URL",
    has_metadata=False,
    takes_rate="absolute",
    has_adapters=True,
    has_full=True,
    bills_validation=True,
    gives_weights=True,
    wandb_key=True,
)

_STATUSES = {
    "pending": "queued",
    "compressing": "running",
    "uploading": "running",
    "cancel_requested": "cancelling",
    "error": "failed",
    "user_error": "failed",
    "completed": "succeeded",
}
LORA_RANK = 8
"""Sent where none was given: the description wants a rank with every adapter."""


class TogetherApi:
    """Together's files, jobs and models."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def upload(self, name: str, stream: BinaryIO) -> HostFile:
        """Send a training file."""
        answer: Any = self._client.with_options(timeout=UPLOAD_SECONDS).post(
            "/files/upload",
            body={"purpose": "fine-tune", "file_name": name, "file_type": "jsonl"},
            files=[("file", (name, stream))],
            options={"headers": {"Content-Type": "multipart/form-data"}},
            cast_to=object,
        )
        return _file(answer)

    def file(self, file_id: str) -> HostFile:
        """One file, by its id."""
        return _file(self._get(f"/files/{file_id}"))

    def files(self) -> Iterator[HostFile]:
        """The training files that are there."""
        return (_file(one) for one in rows(self._get("/files"), "data") if one.get("purpose") == "fine-tune")

    def content(self, file_id: str) -> bytes:
        """What a file holds."""
        content: bytes = self._client.files.content(file_id).content
        return content

    def create_job(self, body: Mapping[str, Any], *, base: str, timeout_seconds: float) -> Mapping[str, Any]:
        """Start a job; one from a tuned model names that model as its checkpoint."""
        client = self._client.with_options(max_retries=0, timeout=timeout_seconds)
        return _job(client.post("/fine-tunes", body=_request(body, base), cast_to=object))

    def job(self, job_id: str) -> Mapping[str, Any]:
        """One job."""
        return _job(self._get(f"/fine-tunes/{job_id}"))

    def jobs(self, metadata: Mapping[str, str] | None = None, *, limit: int = 100) -> Iterator[Mapping[str, Any]]:
        """The jobs, newest first; of an intent those whose suffix has its tag."""
        found = [_job(one, metadata) for one in rows(self._get("/fine-tunes"), "data")]
        return iter(sorted(found, key=lambda job: job["created_at"] or 0, reverse=True))

    def steer(self, job_id: str, step: Literal["cancel", "pause", "resume"]) -> Mapping[str, Any]:
        """Cancel a job; nothing else is offered."""
        if step != "cancel":
            raise HostError(f"together: cannot {step} the job {job_id}: it offers cancel alone", status=405)
        self._client.post(f"/fine-tunes/{job_id}/cancel", cast_to=object)
        return self.job(job_id)

    def events(self, job_id: str, known: Collection[str] = ()) -> Iterator[Mapping[str, Any]]:
        """A job's events, newest first; the losses of its steps among them."""
        listed = rows(self._get(f"/fine-tunes/{job_id}/events"), "data")
        told = [_event(job_id, number, one) for number, one in enumerate(listed)]
        steps = [_step(job_id, one) for one in rows(self._get(f"/fine-tunes/{job_id}/metrics"), "metrics")]
        everything = [*told, *(one for one in steps if one is not None)]
        return iter(everything[::-1])

    def checkpoints(self, job_id: str) -> Iterator[Mapping[str, Any]]:
        """Models from before the end of a job; each can be trained on from, and downloaded."""
        for one in rows(self._get(f"/fine-tunes/{job_id}/checkpoints"), "data"):
            name = f"{job_id}:{present(one, 'step')['step']}"
            yield {"id": name, "fine_tuned_model_checkpoint": name, "step_number": one["step"], "metrics": {}}

    def model(self, model: str) -> HostModel:
        """One model of the list; an error of status 404 where it is not in it."""
        found = next((one for one in self.models() if one.id == model), None)
        if found is None:
            raise HostError(f"together: the model {model} is not offered", status=404)
        return found

    def models(self) -> Iterator[HostModel]:
        """One's own tuned models, as the jobs name them, and what the host offers."""
        own: dict[str, HostModel] = {}
        for job in self.jobs():
            if job["status"] == "succeeded" and job["fine_tuned_model"]:
                name = job["fine_tuned_model"]
                own[name] = HostModel(id=name, created_at=job["finished_at"], base=job["model"])
        yield from own.values()
        for one in rows(self._client.get("/models", cast_to=object)):
            if present(one, "id")["id"] not in own:
                yield HostModel(id=one["id"], created_at=one.get("created"))

    def weights(self, job_id: str, *, merged: bool = False) -> bytes:
        """The archive of a job's model: its adapter, or the merged weights."""
        query = {"ft_id": job_id, "checkpoint": "merged" if merged else "adapter"}
        answer: Any = self._client.get("/finetune/download", cast_to=_response(), options={"params": query})
        content: bytes = answer.content
        return content

    def deploy(self, model: str, *, hardware: str, minutes_idle: int = 30) -> dict[str, Any]:
        """A dedicated endpoint, billed from now on until it is stopped; it stops itself when nobody asks."""
        body = {
            "model": model,
            "hardware": hardware,
            "autoscaling": {"min_replicas": 1, "max_replicas": 1},
            "inactive_timeout": minutes_idle,
        }
        once = self._client.with_options(max_retries=0)
        return present(whole_answer(once.post("/endpoints", body=body, cast_to=object)), "id")

    def undeploy(self, endpoint: str) -> None:
        """End an endpoint, by its id; the billing ends with it."""
        self._client.delete(f"/endpoints/{endpoint}", cast_to=_response())

    def _get(self, path: str) -> dict[str, Any]:
        return whole_answer(self._client.get(path, cast_to=object))


def _response() -> Any:
    # openai costs a second to import; its class stands for "the answer's bytes as they came".
    from openai import HttpxBinaryResponseContent

    return HttpxBinaryResponseContent


def _request(body: Mapping[str, Any], base: str) -> dict[str, Any]:
    method, settings = method_and_settings(body)
    sent: dict[str, Any] = {"training_file": body["training_file"], "suffix": tagged_suffix(body)}
    # The description wants a model; its client sends none with a checkpoint, whose base is known.
    sent["model"] = base
    if body["model"] != base:
        sent["from_checkpoint"] = body["model"]
    sent.update({name: settings[name] for name in ("n_epochs", "batch_size", "learning_rate") if name in settings})
    if method == "dpo":
        beta = {"dpo_beta": settings["beta"]} if "beta" in settings else {}
        sent["training_method"] = {"method": "dpo", **beta}
    else:
        sent["training_method"] = {"method": "sft", "train_on_inputs": "auto"}
    if settings.get("lora", True):
        rank = settings.get("lora_rank", LORA_RANK)
        sent["training_type"] = {"type": "Lora", "lora_r": rank, "lora_alpha": 2 * rank}
    else:
        sent["training_type"] = {"type": "Full"}
    if "validation_file" in body:
        sent.update(validation_file=body["validation_file"], n_evals=settings.get("n_epochs", 1))
    if "seed" in body:
        sent["random_seed"] = body["seed"]
    for one in body.get("integrations", ()):
        wandb = one["wandb"]
        named = {
            "wandb_api_key": "api_key",
            "wandb_project_name": "project",
            "wandb_name": "name",
            "wandb_entity": "entity",
        }
        sent.update({field: wandb[name] for field, name in named.items() if wandb.get(name)})
    return sent


def _file(answer: Any) -> HostFile:
    value = present(whole_answer(answer), "id", "filename")
    status = "processed" if value.get("Processed", True) else "pending"
    return HostFile(id=value["id"], name=value["filename"], size_bytes=value.get("bytes"), status=status)


def _job(answer: Any, wanted: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A job in OpenAI's shape."""
    value = present(whole_answer(answer), "id")
    said = str(value.get("status") or "unknown")
    status = _STATUSES.get(said, said)
    method = part(value, "training_method").get("method", "sft")
    kind = "dpo" if method == "dpo" else "supervised"
    lora = part(value, "training_type")
    settings = {name: value.get(name) for name in ("n_epochs", "batch_size", "learning_rate")}
    settings.update(lora=lora.get("type") != "Full", lora_rank=lora.get("lora_r"))
    created = seconds_of(value.get("created_at"))
    left = part(value, "progress")
    errors = [one for one in rows(value, "events") if one.get("type") == "job_error" or _level(one) == "error"]
    named = f"{value.get('suffix') or ''} {value.get('model_output_name') or ''}"
    return {
        "id": value["id"],
        "status": status,
        "model": value.get("model"),
        "method": {"type": kind},
        "hyperparameters": settings,
        "fine_tuned_model": value.get("model_output_name") if status == "succeeded" else None,
        "created_at": created,
        "finished_at": seconds_of(value.get("updated_at")) if status in {"succeeded", "failed", "cancelled"} else None,
        "estimated_finish": _ends(value.get("updated_at"), left),
        "trained_tokens": value.get("token_count") or None,
        "training_file": value.get("training_file"),
        "validation_file": value.get("validation_file"),
        "seed": value.get("random_seed"),
        "metadata": metadata_of(named, wanted),
        "error": {"code": "job_error", "message": errors[-1].get("message")} if status == "failed" and errors else {},
    }


def _ends(updated: Any, progress: Mapping[str, Any]) -> int | None:
    seen = seconds_of(updated)
    left = whole(progress.get("seconds_remaining"))
    if not progress.get("estimate_available") or seen is None or left is None:
        return None
    return seen + left


def _event(job_id: str, number: int, value: Mapping[str, Any]) -> dict[str, Any]:
    identity = value.get("hash") or f"{job_id}-{number}"
    message = value.get("message") or value.get("type")
    return {
        "id": identity,
        "created_at": seconds_of(value.get("created_at")),
        "level": _level(value),
        "message": message,
    }


def _level(value: Mapping[str, Any]) -> str:
    # The description writes small letters, its client capitals.
    return {"warning": "warn", "error": "error"}.get(str(value.get("level")).lower(), "info")


def _step(job_id: str, value: Mapping[str, Any]) -> dict[str, Any] | None:
    step, loss = whole(value.get("train/global_step")), value.get("train/loss")
    if step is None:
        return None
    data = {"step": step, **({"train_loss": loss} if loss is not None else {})}
    if "eval/loss" in value:
        data["valid_loss"] = value["eval/loss"]
    return {"id": f"{job_id}-step-{step}", "type": "metrics", "message": f"Step {step}", "data": data}
