"""Nebius Token Factory: OpenAI's files and jobs, with hyperparameters of its own and a step before a model answers.

Checked against the published description of 2026-05-06 (docs.tokenfactory.nebius.com, api version 20260506) and the
client generated from it on 2026-07-04, not against the service. What differs from OpenAI:

- `hyperparameters` holds an absolute `learning_rate`, `lora` and `lora_r`, and stands at the top: beside `method` it is
  refused. Nebius's own examples put 2e-5 into `learning_rate_multiplier`, a field that its description does not have.
- Supervised training alone; a job keeps no metadata, so the intent's digest goes into the suffix.
- A job ends without a model's name. Its last checkpoint becomes a model by POST /v0/models, which costs nothing: asked
  tokens are billed as the base model's. Only some bases are served so; elsewhere the checkpoint can be downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from dspy_finetune.errors import HostError
from dspy_finetune.hosts.protocol import (
    ATTEMPT_KEY,
    HostKind,
    HostModel,
    OpenAIApi,
    metadata_of,
    method_and_settings,
    part,
    plain,
    present,
    rows,
    tagged_suffix,
    whole,
    whole_answer,
)

if TYPE_CHECKING:
    from openai import OpenAI

KIND = HostKind(
    name="nebius",
    key_variables=("NEBIUS_API_KEY",),
    lists_models=True,
    poll_seconds=(10.0, 60.0),
    base_model="meta-llama/Llama-3.1-8B-Instruct",
    base_url="https://api.tokenfactory.nebius.com/v1",
    url_variable="NEBIUS_BASE_URL",
    has_metadata=False,
    takes_rate="absolute",
    has_adapters=True,
    has_full=True,
    bounds={"n_epochs": (1, 20), "batch_size": (1, 64), "lora_rank": (8, 128)},
    gives_weights=True,
    wandb_key=True,
)

_NAMES = {"lora_rank": "lora_r"}
_SERVED = ("Llama-3.1-8B-Instruct", "Llama-3.3-70B-Instruct")
"""Bases whose adapters answer without a machine of one's own."""


class NebiusApi(OpenAIApi):
    """Files as OpenAI's; jobs and models as Nebius has them."""

    def __init__(self, client: OpenAI) -> None:
        super().__init__(client)
        self._models_url = str(client.base_url).rstrip("/").removesuffix("/v1") + "/v0/models"

    def create_job(self, body: Mapping[str, Any], *, base: str, timeout_seconds: float) -> Mapping[str, Any]:
        """Start a job with Nebius's own hyperparameters."""
        if body["model"] != base:
            raise HostError(
                f"nebius: cannot train on from {body['model']}: its description does not say how a checkpoint of one's"
                f" own is named; train from {base}"
            )
        _, settings = method_and_settings(body)
        sent = {
            "model": base,
            "training_file": body["training_file"],
            "hyperparameters": {_NAMES.get(name, name): value for name, value in settings.items()},
            "suffix": tagged_suffix(body),
            **{name: body[name] for name in ("validation_file", "seed", "integrations") if name in body},
        }
        client = self._client.with_options(max_retries=0, timeout=timeout_seconds)
        made: Any = client.post("/fine_tuning/jobs", body=sent, cast_to=object)
        return _job(made)

    def job(self, job_id: str) -> Mapping[str, Any]:
        """One job; one that has succeeded names the model that its last checkpoint became."""
        job = _job(super().job(job_id))
        if job.get("status") == "succeeded":
            try:
                job["fine_tuned_model"] = self._published(job)
            except Exception as error:  # the client's, which is imported late
                if getattr(error, "status_code", None) != 404:
                    raise
                # Passed on as a 404 it would be told as a job that is gone.
                message = (
                    f"nebius: the job {job_id} has succeeded, and its model cannot be asked for (HTTP 404 at "
                    f"{self._models_url}); its weights are files: host.api().weights({job_id!r})"
                )
                raise HostError(message, status=409) from error
        return job

    def jobs(self, metadata: Mapping[str, str] | None = None, *, limit: int = 100) -> Iterator[Mapping[str, Any]]:
        """The jobs, newest first; of an intent those whose suffix has its tag."""
        names = {one["job_id"]: one["name"] for one in self._custom() if one.get("job_id")}
        for value in super().jobs(limit=limit):
            job = _job(value, metadata)
            job["fine_tuned_model"] = names.get(job["id"])
            yield job

    def steer(self, job_id: str, step: Literal["cancel", "pause", "resume"]) -> Mapping[str, Any]:
        """Cancel a job; nothing else is offered."""
        if step != "cancel":
            raise HostError(f"nebius: cannot {step} the job {job_id}: it offers cancel alone", status=405)
        return _job(super().steer(job_id, step))

    def model(self, model: str) -> HostModel:
        """A tuned model once it is active, or a base model."""
        for one in self._custom():
            if one["name"] == model:
                if one["status"] == "error":
                    why = one.get("status_reason") or "no reason given"
                    raise HostError(f"nebius: {model} does not answer: {why}", status=409)
                if one["status"] != "active":
                    raise HostError(f"nebius: {model} is {one['status']}", status=404)
                return _model(one)
        return super().model(model)

    def models(self) -> Iterator[HostModel]:
        """Base models, and those of one's own that answer."""
        own = {one["name"]: _model(one) for one in self._custom() if one["status"] == "active"}
        yield from own.values()
        yield from (one for one in super().models() if one.id not in own)

    def weights(self, job_id: str) -> dict[str, str]:
        """File name -> file id of the last checkpoint."""
        last = self._last_checkpoint(job_id)
        return {self.file(str(one)).name.rpartition("/")[2]: str(one) for one in (last or {}).get("result_files") or ()}

    def _custom(self) -> list[dict[str, Any]]:
        listed = whole_answer(self._client.get(self._models_url, cast_to=object))
        found = rows(listed, "models") or rows(listed, "data")
        return [present(one, "name", "status") for one in found]

    def _last_checkpoint(self, job_id: str) -> dict[str, Any] | None:
        made = [present(dict(one), "id") for one in self.checkpoints(job_id)]
        return max(made, key=lambda one: whole(one.get("step_number")) or 0, default=None)

    def _published(self, job: Mapping[str, Any]) -> str | None:
        """The model of a job's last checkpoint, made if it is not there; the checkpoint itself if none is served."""
        for one in self._custom():
            if one.get("job_id") == job["id"] and one["status"] != "deleted":
                return str(one["name"])
        last = self._last_checkpoint(job["id"])
        if last is None:
            return None
        source = f"{job['id']}:{last['id']}"
        if not job["metadata"]:
            return source  # somebody else's job: to look at it changes nothing
        if not job["hyperparameters"].get("lora") or not str(job.get("model")).endswith(_SERVED):
            return source
        # Once: where the reply is lost, the next look finds the model.
        made: Any = self._client.with_options(max_retries=0).post(
            self._models_url,
            body={"name": str(job.get("suffix") or job["id"]), "base_model": job["model"], "source": source},
            cast_to=object,
        )
        return str(present(whole_answer(made), "name")["name"])


def _job(value: Mapping[str, Any], wanted: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A job as OpenAI would tell it: with the metadata that its suffix stands for."""
    job = present(whole_answer(plain(value)), "id")
    settings = dict(part(job, "hyperparameters"))
    if "lora_r" in settings:
        settings["lora_rank"] = settings.pop("lora_r")
    found = metadata_of(str(job.get("suffix") or ""), wanted)
    return {**job, "hyperparameters": settings, "metadata": found if ATTEMPT_KEY in found else {}}


def _model(one: Mapping[str, Any]) -> HostModel:
    return HostModel(id=one["name"], created_at=one.get("created_at"), base=one["name"].partition("-LoRa:")[0])
