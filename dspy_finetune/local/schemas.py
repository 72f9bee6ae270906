"""The shapes on the wire and on the disk, guarded by pydantic: requests, job records, model records.

In: JSON from a client or from the store. Out: typed values, and OpenAI's own object shapes.
Not covered: what a training file may hold (training_file.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

# ----------------------------------------------------------------------------------------------------
# What a training recipe is given and what it gives back: the one interface between the worker and sft.py, dpo.py.
#
# In: a `TrainSpec` with every hyperparameter already resolved. Out: a `TrainResult`. No torch is imported here.

Method = Literal["sft", "dpo"]
"""The two ways to train; on the wire they are called `supervised` and `dpo`."""

Emit = Callable[[dict[str, Any]], None]
"""Takes one step's metrics: step, total_steps, train_loss, and what else was measured at that step."""


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """One training run, resolved: nothing in it is left to choose."""

    method: Method
    model_folder: Path
    """A folder with merged safetensors and a tokenizer: a base model's, or a tuned model's."""
    train_file: Path
    """JSONL in OpenAI's schema of the method."""
    validation_file: Path | None
    output_folder: Path
    """The recipe writes `adapter/` (PEFT's save_pretrained) here, and `checkpoint-<step>/` after each epoch."""
    n_epochs: int
    batch_size: int
    learning_rate: float
    """The real rate of the optimizer, the multiplier applied."""
    beta: float
    """DPO's pull towards the starting model; sft ignores it."""
    seed: int
    device: str
    """"cpu", "cuda" or "cuda:N"."""
    n_threads: int | None
    """Threads for torch on the CPU; None leaves torch's own choice."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished, or stopped, training run left behind."""

    trained_tokens: int
    """Tokens of all examples times the epochs: what OpenAI bills."""
    steps: int
    adapter: Path
    """The folder with the LoRA adapter."""
    stopped: bool
    """True when `should_stop` ended the run early."""
    checkpoints: tuple[tuple[int, Path], ...]
    """(step, adapter folder) for each epoch, oldest first."""


class Recipe(Protocol):
    """The signature of `sft.train` and `dpo.train`."""

    def __call__(self, spec: TrainSpec, *, emit: Emit, should_stop: Callable[[], bool]) -> TrainResult:
        """Train, telling each step to `emit` and asking `should_stop` between steps."""
        ...


# ----------------------------------------------------------------------------------------------------
JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
"""OpenAI's statuses, with the `paused` that its pause call returns."""

FINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
"""The statuses that never change again."""

Epochs = Literal["auto"] | Annotated[int, Field(ge=1, le=50)]
BatchSize = Literal["auto"] | Annotated[int, Field(ge=1, le=256)]
Multiplier = Literal["auto"] | Annotated[float, Field(gt=0)]
Beta = Literal["auto"] | Annotated[float, Field(gt=0, le=2)]


class ApiError(Exception):
    """An answer that is an error: becomes OpenAI's body `{"error": {message, type, param, code}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.kind = status, message, code, param, kind

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class Hyperparameters(BaseModel):
    """What a request may give; None means that it was left out."""

    model_config = ConfigDict(extra="forbid")
    n_epochs: Epochs | None = None
    batch_size: BatchSize | None = None
    learning_rate_multiplier: Multiplier | None = None


class DpoHyperparameters(Hyperparameters):
    """The same, with DPO's beta."""

    beta: Beta | None = None


class SupervisedMethod(BaseModel):
    """`method.supervised`."""

    hyperparameters: Hyperparameters = Hyperparameters()


class DpoMethod(BaseModel):
    """`method.dpo`."""

    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class MethodChoice(BaseModel):
    """`method` of a job."""

    type: Literal["supervised", "dpo"]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None


class CreateJob(BaseModel):
    """The body of POST /fine_tuning/jobs. Integrations are accepted and do nothing here."""

    model: str
    training_file: str
    validation_file: str | None = None
    method: MethodChoice | None = None
    hyperparameters: Hyperparameters | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2147483647)] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    integrations: list[dict[str, Any]] | None = None

    def chosen(self) -> tuple[Method, dict[str, Any]]:
        """The method and the hyperparameters that were given, from `method` or from the deprecated top level."""
        choice = self.method
        if choice is not None and choice.type == "dpo":
            return "dpo", (choice.dpo or DpoMethod()).hyperparameters.model_dump(exclude_none=True)
        given = self.hyperparameters or Hyperparameters()
        if choice is not None and choice.supervised is not None:
            given = choice.supervised.hyperparameters
        return "sft", given.model_dump(exclude_none=True)


class StreamOptions(BaseModel):
    """`stream_options` of a chat request."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of POST /chat/completions. Parameters that this host cannot honour are refused in app.py."""

    model_config = ConfigDict(extra="allow")
    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ModelRecord(BaseModel):
    """A tuned model on the disk: a base, and adapters that are merged into it in this order."""

    id: str
    base: str
    """The base as it can be asked for: a packaged name, a Hugging Face id or a folder."""
    adapters: list[str]
    """Folders inside the model's own folder, in the order of merging."""
    job_id: str
    created_at: int

    def wire(self) -> dict[str, Any]:
        """OpenAI's model object, with the base beside it."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created_at,
            "owned_by": "local",
            "root": self.base,
            "parent": self.base,
        }


class FileRecord(BaseModel):
    """A stored file's facts."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str

    def wire(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {**self.model_dump(), "object": "file", "status": "processed", "status_details": None}


class JobRecord(BaseModel):
    """A job on the disk: what the client sees, and what the server needs to go on with it after a crash."""

    id: str
    created_at: int
    sequence: int
    """Nanoseconds of creation: the order of the queue, where seconds tie."""
    status: JobStatus = "validating_files"
    model: str
    method: Method
    given: dict[str, Any] = {}
    resolved: dict[str, int | float] | None = None
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, Any]] | None = None
    fine_tuned_model: str | None = None
    finished_at: int | None = None
    trained_tokens: int | None = None
    result_files: list[str] = []
    error: dict[str, str | None] | None = None
    checkpoints: list[dict[str, Any]] = []
    attempt: int = 0
    """How many workers were started for it."""
    crashes: int = 0
    """How often its worker vanished together with the server."""
    started_at: float | None = None

    def wire(self, *, estimated_finish: int | None = None) -> dict[str, Any]:
        """OpenAI's fine_tuning.job object; as there, top-level hyperparameters are null for DPO."""
        numbers: dict[str, Any] = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
        if self.method == "dpo":
            numbers["beta"] = "auto"
        numbers.update(self.given if self.resolved is None else self.resolved)
        kind = "dpo" if self.method == "dpo" else "supervised"
        return {
            "id": self.id,
            "object": "fine_tuning.job",
            "created_at": self.created_at,
            "finished_at": self.finished_at,
            "model": self.model,
            "fine_tuned_model": self.fine_tuned_model,
            "organization_id": "org-local",
            "status": self.status,
            "training_file": self.training_file,
            "validation_file": self.validation_file,
            "result_files": self.result_files,
            "trained_tokens": self.trained_tokens,
            "hyperparameters": numbers if self.method == "sft" else None,
            "method": {"type": kind, kind: {"hyperparameters": numbers}},
            "seed": self.seed,
            "estimated_finish": estimated_finish,
            "integrations": self.integrations or [],
            "metadata": self.metadata,
            "user_provided_suffix": self.suffix,
            "error": self.error,
        }
