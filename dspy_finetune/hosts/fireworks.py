"""Fireworks AI: its own datasets and jobs, told in OpenAI's shapes; SFT and DPO of adapters.

Checked against the fields of its client `fireworks-ai` 1.2.30, which is generated from its description, and its guide
"Fine-tuning via API", read on 2026-11-26; not against the service. What differs from OpenAI:

- Everything lies under an account: FIREWORKS_ACCOUNT_ID, or the first one that the key sees.
- A dataset has a name that we choose, from the file's name with its hash; a job has an id that we choose, from the
  intent's digest. So a second request for the same job is refused by the host itself (409), and the job is found.
- Preferences are a kind of job of their own. Its loss must be said to be DPO: unspecified, it is GRPO.
- No events, checkpoints, or seeds. A tuned model answers on a deployment that is billed by the second.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from dspy_finetune.errors import HostError, MalformedResponseError
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
    tag_of,
    whole_answer,
)

if TYPE_CHECKING:
    from openai import OpenAI

ACCOUNT_VARIABLE = "FIREWORKS_ACCOUNT_ID"

KIND = HostKind(
    name="fireworks",
    key_variables=("FIREWORKS_API_KEY",),
    needs_deployment=True,
    deployment=("firectl", "deployment", "create", "{model}"),
    poll_seconds=(10.0, 60.0),
    base_model="accounts/fireworks/models/qwen3-8b",
    base_url="https://api.fireworks.ai/inference/v1",
    url_variable="FIREWORKS_BASE_URL",
    has_metadata=False,
    has_seed=False,
    takes_rate="absolute",
    has_adapters=True,
    bounds={"beta": (0.0, 0.5)},
    gives_weights=True,
    wandb_key=True,
)

_STATUSES = {
    "CREATING": "validating_files",
    "CREATING_INPUT_DATASET": "validating_files",
    "VALIDATING": "validating_files",
    "PENDING": "queued",
    "RE_QUEUEING": "queued",
    "RUNNING": "running",
    "WRITING_RESULTS": "running",
    "PAUSED": "paused",
    "COMPLETED": "succeeded",
    "EARLY_STOPPED": "succeeded",
    "FAILED": "failed",
    "EXPIRED": "failed",
    "CANCELLED": "cancelled",
    "CANCELLING": "cancelling",
    "IDLE": "queued",
    "DELETING": "cancelled",
    "DELETING_CLEANING_UP": "cancelled",
    "DELETED": "cancelled",
}
_KINDS = {"sft": ("supervisedFineTuningJobs", "supervisedFineTuningJobId"), "dpo": ("dpoJobs", "dpoJobId")}


class FireworksApi:
    """Fireworks' datasets, jobs and models."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client
        self._root = str(client.base_url).rstrip("/").removesuffix("/inference/v1") + "/v1"
        self._account = ""

    def upload(self, name: str, stream: BinaryIO) -> HostFile:
        """Make a dataset and send its file."""
        content = stream.read()
        identity = _dataset_id(name)
        rows = sum(1 for line in content.splitlines() if line.strip())
        made = {"displayName": name, "exampleCount": str(rows), "format": "CHAT", "userUploaded": {}}
        # 409: an earlier try made it, and died or was cut off before the bytes were there.
        from openai import ConflictError  # here, as openai costs a second to import

        with contextlib.suppress(ConflictError):
            self._post(self._url("datasets"), {"datasetId": identity, "dataset": made})
        self._client.with_options(timeout=UPLOAD_SECONDS).post(
            self._url(f"datasets/{identity}:upload"),
            body={},
            files=[("file", (name, content))],
            options={"headers": {"Content-Type": "multipart/form-data"}},
            cast_to=object,
        )
        return self.file(identity)

    def file(self, file_id: str) -> HostFile:
        """One dataset, by its name."""
        return _file(self._get(self._url(f"datasets/{file_id.rpartition('/')[2]}")))

    def files(self) -> Iterator[HostFile]:
        """The datasets that are there."""
        return (_file(one) for one in self._pages("datasets"))

    def content(self, file_id: str) -> bytes:
        """What a dataset holds; its host signs an address for each of its files."""
        told = self._get(self._url(f"datasets/{file_id.rpartition('/')[2]}:getDownloadEndpoint"))
        return b"".join(self._fetched(url) for url in (told.get("filenameToSignedUrls") or {}).values())

    def create_job(self, body: Mapping[str, Any], *, base: str, timeout_seconds: float) -> Mapping[str, Any]:
        """Start a job under an id of its intent."""
        method, settings = method_and_settings(body)
        kind, id_name = _KINDS[method]
        identity = tag_of(body["metadata"])
        output = "-".join(part for part in (body.get("suffix"), identity) if part).lower()
        training = _training(settings, output)
        training["baseModel" if body["model"] == base else "warmStartFrom"] = body["model"]
        sent: dict[str, Any] = {"dataset": self._name("datasets", body["training_file"]), "displayName": output}
        for one in body.get("integrations", ()):
            wandb = {"apiKey": "api_key", "project": "project", "entity": "entity"}
            given = {field: one["wandb"][name] for field, name in wandb.items() if one["wandb"].get(name)}
            sent["wandbConfig"] = {"enabled": True, **given}
        if method == "dpo":
            beta = {"dpo": {"beta": settings["beta"]}} if "beta" in settings else {}
            sent.update(trainingConfig=training, lossConfig={"method": "DPO", **beta})
        else:
            sent.update(training)
            if "validation_file" in body:
                sent["evaluationDataset"] = self._name("datasets", body["validation_file"])
        client = self._client.with_options(max_retries=0, timeout=timeout_seconds)
        made = client.post(self._url(kind), body=sent, options={"params": {id_name: identity}}, cast_to=object)
        return _job(made)

    def job(self, job_id: str) -> Mapping[str, Any]:
        """One job."""
        return _job(self._get(self._url(job_id)))

    def jobs(self, metadata: Mapping[str, str] | None = None, *, limit: int = 100) -> Iterator[Mapping[str, Any]]:
        """The jobs of both kinds, newest first; of an intent those whose id has its tag."""
        found = [_job(one, metadata) for kind, _ in _KINDS.values() for one in self._pages(kind)]
        return iter(sorted(found, key=lambda job: job["created_at"] or 0, reverse=True))

    def steer(self, job_id: str, step: Literal["cancel", "pause", "resume"]) -> Mapping[str, Any]:
        """Cancel or resume a job."""
        if step == "pause":
            raise HostError(f"fireworks: cannot pause the job {job_id}: it offers cancel and resume alone", status=405)
        self._post(self._url(f"{job_id}:{step}"), {})
        return self.job(job_id)

    def events(self, job_id: str, known: Collection[str] = ()) -> Iterator[Mapping[str, Any]]:
        """None: the host tells how far a job is, and no more."""
        return iter(())

    def checkpoints(self, job_id: str) -> Iterator[Mapping[str, Any]]:
        """None."""
        return iter(())

    def model(self, model: str) -> HostModel:
        """One model, by its whole name `accounts/ACCOUNT/models/NAME`."""
        return _model(self._get(f"{self._root}/{model}"))

    def models(self) -> Iterator[HostModel]:
        """The account's own models."""
        return (_model(one) for one in self._pages("models"))

    def weights(self, model: str) -> dict[str, str]:
        """File name -> signed address of a model's files."""
        told = self._get(f"{self._root}/{model}:getDownloadEndpoint")
        return dict(part(told, "filenameToSignedUrls"))

    def deploy(self, model: str, *, hardware: str = "NVIDIA_H100_80GB") -> dict[str, Any]:
        """A deployment of the tuned model, billed from now on; it goes down to none when nobody asks."""
        body = {"baseModel": model, "acceleratorType": hardware, "minReplicaCount": 0, "maxReplicaCount": 1}
        return self._post(self._url("deployments"), body, once=True)

    def _url(self, path: str) -> str:
        if not self._account:
            named = os.environ.get(ACCOUNT_VARIABLE, "").strip()
            self._account = named or self._first_account()
        return f"{self._root}/accounts/{self._account}/{path}"

    def _first_account(self) -> str:
        listed = [present(one, "name") for one in rows(self._get(f"{self._root}/accounts"), "accounts")]
        if not listed:
            raise HostError(f"fireworks: the key sees no account; set {ACCOUNT_VARIABLE}")
        return str(listed[0]["name"]).rpartition("/")[2]

    def _name(self, kind: str, identity: str) -> str:
        return self._url(f"{kind}/{identity.rpartition('/')[2]}").removeprefix(f"{self._root}/")

    def _get(self, url: str, **params: str) -> dict[str, Any]:
        return whole_answer(self._client.get(url, cast_to=object, options={"params": params}))

    def _post(self, url: str, body: Mapping[str, Any], *, once: bool = False) -> dict[str, Any]:
        client = self._client.with_options(max_retries=0) if once else self._client
        return whole_answer(client.post(url, body=body, cast_to=object))

    def _pages(self, kind: str) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            page = self._get(self._url(kind), pageSize="200", **({"pageToken": token} if token else {}))
            yield from rows(page, kind)
            before, token = token, str(page.get("nextPageToken") or "")
            if token in ("", before):  # the same page again would be so for ever
                return

    def _fetched(self, url: str) -> bytes:
        # A signed address is another server's: it must not see the key.
        from openai import DefaultHttpxClient

        with DefaultHttpxClient() as http:
            answer = http.get(url)
            answer.raise_for_status()
            return bytes(answer.content)


def _training(settings: Mapping[str, Any], output: str) -> dict[str, Any]:
    """The settings under Fireworks' names. Its `batchSize` counts tokens; rows are `batchSizeSamples`."""
    names = {
        "n_epochs": "epochs",
        "batch_size": "batchSizeSamples",
        "learning_rate": "learningRate",
        "lora_rank": "loraRank",
    }
    return {"outputModel": output, **{names[name]: value for name, value in settings.items() if name in names}}


def _dataset_id(name: str) -> str:
    """A name as Fireworks takes it: small letters, digits and hyphens, up to 63, the hash at its end kept."""
    return re.sub(r"[^a-z0-9]+", "-", name.removesuffix(".jsonl").lower()).strip("-")[-63:].strip("-")


def _file(answer: Any) -> HostFile:
    value = present(whole_answer(answer), "name")
    identity = str(value["name"]).rpartition("/")[2]
    status = part(value, "status").get("code", "OK")
    states = {"READY": "processed", "UPLOADING": "incomplete"}
    word = "error" if status != "OK" else states.get(str(value.get("state")), "pending")
    return HostFile(id=identity, name=str(value.get("displayName") or identity), size_bytes=None, status=word)


def _job(answer: Any, wanted: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A job in OpenAI's shape; its id is `KIND/ID`."""
    value = present(whole_answer(answer), "name")
    words = str(value["name"]).split("/")  # accounts/ACCOUNT/KIND/ID
    if len(words) < 4:
        raise MalformedResponseError(f"it names no job: {value['name']}")
    account, (kind, identity) = words[1], words[-2:]
    training = part(value, "trainingConfig") or value
    state = str(value.get("state") or "").removeprefix("JOB_STATE_")
    status = _STATUSES.get(state, state.lower() or "unknown")
    settings = {
        "n_epochs": training.get("epochs"),
        "batch_size": training.get("batchSizeSamples"),
        "learning_rate": training.get("learningRate"),
        "lora_rank": training.get("loraRank"),
        "lora": True,
    }
    told = part(value, "status")
    output = str(training.get("outputModel") or identity)
    progress = part(value, "jobProgress")
    return {
        "id": f"{kind}/{identity}",
        "status": status,
        "model": training.get("baseModel") or training.get("warmStartFrom"),
        "method": {"type": "dpo" if kind == "dpoJobs" else "supervised"},
        "hyperparameters": settings,
        "fine_tuned_model": (output if "/" in output else f"accounts/{account}/models/{output}")
        if status == "succeeded"
        else None,
        "created_at": seconds_of(value.get("createTime")),
        "finished_at": seconds_of(value.get("completedTime")),
        "trained_tokens": progress.get("inputTokens") or None,
        "training_file": str(value.get("dataset") or "").rpartition("/")[2] or None,
        "validation_file": str(value.get("evaluationDataset") or "").rpartition("/")[2] or None,
        "metadata": metadata_of(identity, wanted),
        "error": {"code": told.get("code"), "message": told.get("message")} if status == "failed" else {},
    }


def _model(answer: Any) -> HostModel:
    value = present(whole_answer(answer), "name")
    details = part(value, "peftDetails")
    return HostModel(
        id=str(value["name"]), created_at=seconds_of(value.get("createTime")), base=details.get("baseModel")
    )
