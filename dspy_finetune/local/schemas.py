"""The shapes on the wire and on the disk, guarded by pydantic: requests, job records, model records.

In: JSON from a client or from the store. Out: typed values, OpenAI's own object shapes, and `ApiError`, its error body.
JSON is read strictly in one place, `strict_json`: what no later code could live with (NaN, half a character, nesting
without end) is refused there, for bodies, uploaded lines and batch lines alike.
Not covered: chat requests (completions.py), what a training file may hold (scheduler.py).

What "auto" means on this host is one rule for each hyperparameter, without torch, since the scheduler asks too:

- n_epochs: OpenAI's published rule: 3, more where that would show fewer than 100 examples, fewer above 25,000.
- batch_size: 4 up to 2,000 examples, else 8: small models on few steps want small batches.
- learning_rate_multiplier: 1, times the base rate: 1e-3 (LoRA r=8 on all linear layers of a 135M
  model, batches of 4: 540 titles twice gave 0.97 on held-out ones at 1e-3; 300 titles at 2e-3 in batches of 8 under a
  system prompt of 75 tokens stayed at chance, and at 3e-4 nothing was learned in three epochs of 200. DPO on 100
  explained pairs wrote whole sentences at 1e-3, and loops or nothing at 5e-4). A supervised LoRA job
  compares it with others by a short sweep where it has rows enough (rates.py). `evaluation.sweep` compares whole jobs.
- beta: 0.1.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, BinaryIO, Literal, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from dspy_finetune._files import file_error
from dspy_finetune.errors import RowError
from dspy_finetune.tasks import Answers, Recipe

MAX_DEPTH = 64
"""Lists and objects inside one another: JSON schemas need about 20."""
MAX_VALUES = 200_000
"""Names and values in one body or one line. A value may be 100 times as large in memory as in JSON (`[]`), and takes as
long to check as a kilobyte of text."""
MAX_PARAMETERS = 100
"""Of one object of a request; none has as many."""
MAX_LINE_BYTES = 64 * 2**20
"""Of one line of an uploaded file."""
MAX_NAME = 256
"""Characters of a model's name or a file's."""


class JsonError(ValueError):
    """Bytes that are not the JSON this host takes. The message goes on from "the body" or "line 3"."""


def strict_json(content: bytes) -> Any:
    """Read one JSON value.

    Raises:
        JsonError: It is not UTF-8 or not JSON; or it holds a number that is none (NaN, 1e999), half a character (a
            lone surrogate), lists and objects nested deeper than MAX_DEPTH, or more than MAX_VALUES names and values.
    """
    # Before it is parsed: 32 MB of `[],` are 10 million lists.
    if len(content) > MAX_VALUES and next(itertools.islice(_VALUE.finditer(content), MAX_VALUES, None), None):
        raise JsonError(f"holds more than {MAX_VALUES:,} names and values")
    try:
        value = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise JsonError(f"is not UTF-8 (byte {error.start + 1})") from error
    except RecursionError as error:
        raise JsonError(f"is nested deeper than {MAX_DEPTH} levels") from error
    except JsonError:
        raise
    except ValueError as error:
        if "integer string conversion" in str(error):  # Python's own bound, thousands of digits
            raise JsonError("holds an integer of more than 64 bits") from error
        raise JsonError(f"is not valid JSON ({str(error)[:200]})") from error
    _check_values(value)
    return value


# A string (to the end, where it has none), the opening of a list or object, or a word such as a number.
_VALUE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[^\s,:\[\]{}"]+', re.DOTALL)


def _refuse_constant(name: str) -> Any:
    raise JsonError(f"holds {name}, which is not a JSON number")


def _check_values(value: Any) -> None:
    waiting: list[tuple[Any, int]] = [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        if isinstance(one, str):
            _check_text(one)
        elif isinstance(one, float):
            if not math.isfinite(one):
                raise JsonError("holds a number that is too large")
        elif isinstance(one, int):
            if one.bit_length() > 64:
                raise JsonError("holds an integer of more than 64 bits")
        elif isinstance(one, list | dict):
            if depth > MAX_DEPTH:
                raise JsonError(f"is nested deeper than {MAX_DEPTH} levels")
            if isinstance(one, dict):
                waiting += [(key, depth) for key in one]
                one = one.values()
            waiting += [(inner, depth + 1) for inner in one]


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise JsonError("holds half a character (a lone surrogate such as \\ud800)") from error


def parse_rows(stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each line of JSONL that is not blank.

    Raises:
        RowError: A line is no JSON object; `.line` and `.problem` say which and why.
    """
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise RowError(f"the line is longer than {MAX_LINE_BYTES // 2**20} MB", line=number)
        if not line.strip():
            continue
        try:
            row = strict_json(line)
        except JsonError as error:
            raise RowError(f"the line {error}", line=number) from error
        if not isinstance(row, dict):
            raise RowError("the line is not a JSON dictionary", line=number)
        yield number, row


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`parse_rows` of a stored file. Raises RowError, and FileError where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            yield from parse_rows(stream)
    except OSError as error:
        raise file_error(error, path, "read") from error


# What a training recipe is given and what it gives back: the one interface between the worker and training.py.

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
    dtype: str = "auto"
    """What is multiplied in: float32, bfloat16 or float16; "auto": what is fast on the device."""
    memory_bytes: int | None = None
    """What the run may take; None: what is free."""
    recipe: Recipe = "lora"
    """What is trained; "auto" has been settled by now."""
    answers: Answers = "auto"
    """What the answers are said to be."""
    finds_rate: bool = False
    """Whether a supervised LoRA job may take a better rate, found by a short sweep on its rows."""
    base: str = ""
    """The base's name, for the card of a head."""
    encoder_folder: Path | None = None
    """A sentence encoder whose features may stand beside the base's; None where there is none."""
    start_head: Path | None = None
    """The linear head of the tuned model that is trained on; None where it has none."""
    n_adapters: int = 0
    """How many adapters are merged into `model_folder`."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished, or stopped, training run left behind."""

    trained_tokens: int
    """Tokens of all examples times the epochs: what OpenAI bills."""
    steps: int
    adapter: Path | None
    """The folder with the LoRA adapter; None where the base stays as it is."""
    stopped: bool
    """True when `should_stop` ended the run early."""
    checkpoints: tuple[tuple[int, Path], ...]
    """(step, adapter folder) for each epoch, oldest first."""
    head: Path | None = None
    """The folder with the linear head; None where the model itself answers."""
    learning_rate: float | None = None
    """The rate that was trained at, where it was the recipe's to choose."""


class Trainer(Protocol):
    """The signature of `features.train_head`, `training.train` and `training.train_dpo`."""

    def __call__(self, spec: TrainSpec, *, emit: Emit, should_stop: Callable[[], bool]) -> TrainResult:
        """Train, telling each step to `emit` and asking `should_stop` between steps."""
        ...


JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
"""OpenAI's statuses, and `paused`: see `JobRecord.wire`."""

FINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
"""The statuses that never change again."""


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


def stopping() -> ApiError:
    """The answer to what the server did not get to before it was stopped."""
    message = "The server is stopping; ask again once it has been started."
    return ApiError(503, message, kind="server_error", code="server_stopping")


def invalid(
    errors: Sequence[Mapping[str, Any]], body: Any, described: Mapping[str, Any] = MappingProxyType({})
) -> ApiError:
    """The answer to a body that pydantic refused: one message and the parameter that it is about.

    Args:
        errors: pydantic's.
        body: What was refused.
        described: The body's JSON schema: which parameters there are, and their ranges.

    Examples:
        >>> error = {"type": "extra_forbidden", "loc": ("temprature",), "msg": ""}
        >>> invalid([error], {"temprature": 1}, {"properties": {"temperature": {}}}).message
        "Unknown parameter: 'temprature'. Did you mean 'temperature'?"
    """
    found = [(_path(error, body), error) for error in errors]
    # A union tells one error for each of its branches: the branch that got furthest is what was meant.
    found = [(path, error) for path, error in found if path[:1] == found[0][0][:1]]
    path = max((path for path, _ in found), key=len)
    same = [error for other, error in found if other == path]
    error = next((error for error in same if not _is_type_error(error)), same[0])
    given = error.get("ctx") or {}
    if error["type"] == "combination":  # what several parameters say together
        return ApiError(400, str(error["msg"]), param=given["param"])
    if error["type"].startswith("union_tag"):
        path = (*path, str(given["discriminator"]).strip("'"))
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    kind, message = error["type"], str(error["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = described.get("properties", ()) if len(path) == 1 else ()
        near = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return ApiError(400, f"Unknown parameter: '{param}'.{hint}", code="unknown_parameter", param=param)
    if kind == "union_tag_invalid":
        message = f"Invalid value: '{given['tag']}'. Supported values are: {given['expected_tags']}."
        return ApiError(400, message, code="invalid_value", param=param)
    if kind in ("missing", "union_tag_not_found"):
        message = f"Missing required parameter: '{param}'." if param else "The request has no body."
        return ApiError(400, message, code="missing_required_parameter", param=param or None)
    if _is_type_error(error):
        wanted = " or ".join(dict.fromkeys(_wanted(one) for one in same))
        message = f"Invalid type for '{param}': expected {wanted}, but got {_name_of(error.get('input'))} instead."
        return ApiError(400, message, code="invalid_type", param=param or None)
    if kind == "unsupported":
        return ApiError(400, message, code="unsupported_parameter", param=param or None)
    message = _range(error, path, described) or message
    where = f"Invalid value for '{param}'" if param else "Invalid request"
    return ApiError(400, f"{where}: {message}", code="invalid_value", param=param or None)


def _range(error: Mapping[str, Any], path: Sequence[str | int], described: Mapping[str, Any]) -> str | None:
    """What a number, or a number of characters or items, may be, and what it is; None where that is not the fault."""
    kind, given = error["type"], error.get("input")
    if kind.startswith(("greater_than", "less_than", "int_parsing")):
        bounds, unit, found = ("minimum", "maximum"), "", json.dumps(given)[:100]
    elif kind in ("string_too_long", "string_too_short"):
        bounds, unit, found = ("minLength", "maxLength"), " characters", str(len(str(given)))
    elif kind in ("too_long", "too_short") and isinstance(given, list | dict):
        names = ("minProperties", "maxProperties") if isinstance(given, dict) else ("minItems", "maxItems")
        bounds, unit, found = names, " entries", str(len(given))
    else:
        return None
    for node in _nodes(described, path):
        low, high = (node.get(name) for name in bounds)
        number = "" if unit else {"integer": "an integer ", "number": "a number "}.get(str(node.get("type")), "")
        if low is not None and high is not None:
            return f"expected {number}from {low} to {high}{unit}, found {found}"
        if low is not None or high is not None:
            edge = f"at least {low}" if high is None else f"at most {high}"
            return f"expected {number}{edge}{unit}, found {found}"
    return f"expected an integer, found {found}" if kind == "int_parsing" else None


def _nodes(described: Mapping[str, Any], path: Sequence[str | int]) -> list[Mapping[str, Any]]:
    """What a JSON schema says of the place in a body that the path leads to: one node for each branch of a union."""
    nodes = _branches(described, described)
    for part in path:
        inner = [_inner(node, part) for node in nodes]
        nodes = [branch for node in inner if isinstance(node, Mapping) for branch in _branches(node, described)]
    return nodes


def _inner(node: Mapping[str, Any], part: str | int) -> Any:
    if isinstance(part, int):
        return node.get("items")
    others = node.get("additionalProperties") or next(iter(node.get("patternProperties", {}).values()), None)
    return node.get("properties", {}).get(part, others)


def _branches(node: Mapping[str, Any], described: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "$ref" in node:
        node = described["$defs"][node["$ref"].removeprefix("#/$defs/")]
    inner = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    return [branch for one in inner for branch in _branches(one, described)] if inner else [node]


@functools.cache
def json_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a body, by the names on the wire."""
    return kind.model_json_schema()


def _path(error: Mapping[str, Any], body: Any) -> tuple[str | int, ...]:
    # pydantic's place holds names of a union's branches too; what leads through the body is the client's own place.
    path: list[str | int] = []
    for number, part in enumerate(error["loc"], start=1):
        is_absent = error["type"] == "missing" and number == len(error["loc"])
        if isinstance(body, dict) and part in body:
            body = body[str(part)]
        elif isinstance(body, list) and isinstance(part, int) and part < len(body):
            body = body[part]
        elif not is_absent:
            continue
        path.append(part)
    return tuple(path)


_KINDS = {
    "string": "a string", "int": "an integer", "float": "a number", "bool": "a boolean", "list": "an array",
    "dict": "an object", "model": "an object", "model_attributes": "an object", "mapping": "an object",
    "file": "a file",
}  # fmt: skip


def _is_type_error(error: Mapping[str, Any]) -> bool:
    return error["type"].removesuffix("_type") in _KINDS and error["type"].endswith("_type")


def _wanted(error: Mapping[str, Any]) -> str:
    return _KINDS.get(error["type"].removesuffix("_type")) or str(error.get("ctx", {}).get("expected", error["msg"]))


def _name_of(value: Any) -> str:
    names: dict[type, str] = {
        str: "a string", bool: "a boolean", int: "an integer", float: "a number", list: "an array", dict: "an object"
    }  # fmt: skip
    return "null" if value is None else names.get(type(value), "something else")


Parsed = TypeVar("Parsed", bound=BaseModel)


def parse(kind: type[Parsed], body: Any) -> Parsed:
    """A body that comes inside another one, such as a batch's line. Raises ApiError."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise invalid(error.errors(), body, json_schema(kind)) from error


class Body(BaseModel):
    """A part of a request: wrong types and unknown parameters are errors, never guessed at."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, value: Any) -> Any:
        # A fault takes 50 microseconds to tell, and the answer names one: lists of requests fail fast, objects here.
        return _refuse_more(value, MAX_PARAMETERS)


class OneFault(FailFast):
    """Ends the checking of a list at its first fault. FailFast itself cannot stand in a union: it has no hash."""

    def __hash__(self) -> int:
        """As equality has it."""
        return hash(self.fail_fast)


def at_most(n: int) -> BeforeValidator:
    """Refuses a larger object before its values are looked at; the `max_length` beside it is for the schema."""
    return BeforeValidator(lambda value: _refuse_more(value, n))


def _refuse_more(value: Any, n: int) -> Any:
    if isinstance(value, dict) and len(value) > n:
        raise PydanticKnownError("too_long", {"field_type": "Dictionary", "max_length": n, "actual_length": len(value)})
    return value


def _auto(lowest: float, highest: float, kind: Literal["an integer", "a number"]) -> BeforeValidator:
    def check(value: Any) -> Any:
        is_number = isinstance(value, int if kind == "an integer" else (int, float)) and not isinstance(value, bool)
        if value is None or value == "auto" or (is_number and lowest <= value <= highest):
            return value
        shown = json.dumps(value)[:50]
        raise PydanticCustomError(
            "range",
            "expected 'auto' or {kind} from {lowest} to {highest}, found {shown}",
            {"kind": kind, "lowest": f"{lowest:g}", "highest": f"{highest:g}", "shown": shown},
        )

    return BeforeValidator(check)


Auto = Literal["auto"]
Epochs = Annotated[Auto | Annotated[int, Field(ge=1, le=50)] | None, _auto(1, 50, "an integer")]
BatchSize = Annotated[Auto | Annotated[int, Field(ge=1, le=256)] | None, _auto(1, 256, "an integer")]
Multiplier = Annotated[Auto | Annotated[float, Field(ge=1e-6, le=1000)] | None, _auto(1e-6, 1000, "a number")]
Beta = Annotated[Auto | Annotated[float, Field(ge=1e-6, le=2)] | None, _auto(1e-6, 2, "a number")]

ModelName = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16), at_most(16)
]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class ExpiresAfter(Body):
    """When a file goes: so many seconds after it was made. An hour to thirty days, as OpenAI has it."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2592000)]


class Hyperparameters(Body):
    """What a request may give; None means that it was left out."""

    n_epochs: Epochs = None
    batch_size: BatchSize = None
    learning_rate_multiplier: Multiplier = None


class SupervisedHyperparameters(Hyperparameters):
    """The same, with what is trained: this host's own extension."""

    recipe: Recipe | None = None
    answers: Answers | None = None


class DpoHyperparameters(SupervisedHyperparameters):
    """The same, with DPO's beta."""

    beta: Beta = None


class SupervisedMethod(Body):
    """`method.supervised`."""

    hyperparameters: SupervisedHyperparameters | None = None


class DpoMethod(Body):
    """`method.dpo`."""

    hyperparameters: DpoHyperparameters | None = None


class MethodChoice(Body):
    """`method` of a job."""

    type: Literal["supervised", "dpo"]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None

    @model_validator(mode="after")
    def _one_method(self) -> MethodChoice:
        other = "supervised" if self.type == "dpo" else "dpo"
        if getattr(self, other) is not None:
            raise ValueError(f"the type is {self.type}, but '{other}' is given too")
        return self


class Wandb(Body):
    """What an integration of Weights & Biases names."""

    project: Name
    name: Name | None = None
    entity: Name | None = None
    tags: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=50)] | None = None


class Integration(Body):
    """An integration: accepted, and does nothing here."""

    type: Literal["wandb"]
    wandb: Wandb


class CreateJob(Body):
    """The body of POST /fine_tuning/jobs."""

    model: ModelName
    training_file: Name
    validation_file: Name | None = None
    method: MethodChoice | None = None
    hyperparameters: SupervisedHyperparameters | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2147483647)] | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[Integration], Field(max_length=5)] | None = None

    def chosen(self) -> tuple[Method, dict[str, Any]]:
        """The method and the hyperparameters that were given, from `method` or from the deprecated top level."""
        choice = self.method
        given: Hyperparameters | None = self.hyperparameters
        if choice is not None and choice.type == "dpo":
            given = choice.dpo.hyperparameters if choice.dpo else None
        elif choice is not None and choice.supervised is not None:
            given = choice.supervised.hyperparameters
        method: Method = "dpo" if choice is not None and choice.type == "dpo" else "sft"
        return method, given.model_dump(exclude_none=True) if given else {}


class Event(BaseModel):
    """One event of a job, as it is kept and as clients see it."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class ModelRecord(BaseModel):
    """A tuned model on the disk: a base, and adapters that are merged into it in this order."""

    id: str
    base: str
    """The base as it can be asked for: a packaged name, a Hugging Face id or a folder."""
    adapters: list[str]
    """Folders inside the model's own folder, in the order of merging."""
    head: str | None = None
    """The folder of the linear head inside the model's own; None where the model itself answers."""
    job_id: str
    created_at: int
    sequence: int = 0
    """Nanoseconds of creation: the order of lists, where seconds tie."""

    def wire(self) -> dict[str, Any]:
        """OpenAI's model object, with the base beside it."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created_at,
            "owned_by": "local",
            "root": self.base,
            "parent": self.base,
            **(
                {"description": "LoRA, linear head" if self.adapters else "base frozen, linear head"}
                if self.head
                else {}
            ),
        }


class FileRecord(BaseModel):
    """A stored file's facts."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    sequence: int = 0
    """Nanoseconds of creation: the order of lists, where seconds tie."""
    expires_at: int | None = None

    def wire(self) -> dict[str, Any]:
        """OpenAI's file object."""
        facts = self.model_dump(exclude={"sequence"})
        return {**facts, "object": "file", "status": "processed", "status_details": None}


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
    resolved: dict[str, Any] | None = None
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
        """OpenAI's fine_tuning.job object."""
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
            # OpenAI's schema and the types of its clients know no `paused`: one such job made a strict client refuse
            # the whole list. It waits, as a queued one does, and the field beside says that it is held.
            "status": "queued" if self.status == "paused" else self.status,
            "paused": self.status == "paused",
            "training_file": self.training_file,
            "validation_file": self.validation_file,
            "result_files": self.result_files,
            "trained_tokens": self.trained_tokens,
            "hyperparameters": {name: value for name, value in numbers.items() if name != "beta"},
            "method": {"type": kind, kind: {"hyperparameters": numbers}},
            "seed": self.seed,
            "estimated_finish": estimated_finish,
            "integrations": self.integrations or [],
            "metadata": self.metadata,
            "user_provided_suffix": self.suffix,
            "error": self.error,
        }


BASE_LEARNING_RATE: dict[Method, float] = {"sft": 1e-3, "dpo": 1e-3}
"""The optimizer's rate at learning_rate_multiplier 1."""


def auto_epochs(n_examples: int) -> int:
    """OpenAI's default number of epochs.

    Examples:
        >>> [auto_epochs(n) for n in (10, 33, 34, 1000, 20000)]
        [10, 3, 3, 3, 1]
    """
    if n_examples * 3 < 100:
        return max(1, min(25, 100 // max(1, n_examples)))
    if n_examples * 3 > 25_000:
        return max(1, 25_000 // n_examples)
    return 3


def resolve(method: Method, given: Mapping[str, Any], n_examples: int) -> dict[str, Any]:
    """The job's hyperparameters with nothing left to choose but `recipe`; `beta` stands there for dpo alone."""

    def chosen(name: str, default: int | float) -> int | float:
        value = given.get(name)
        return default if value is None or value == "auto" else value

    resolved: dict[str, Any] = {
        "n_epochs": chosen("n_epochs", auto_epochs(n_examples)),
        "batch_size": min(chosen("batch_size", 4 if n_examples <= 2000 else 8), max(1, n_examples)),
        "learning_rate_multiplier": chosen("learning_rate_multiplier", 1.0),
    }
    if method == "dpo":
        resolved["beta"] = chosen("beta", 0.1)
    return resolved


def learning_rate(method: Method, resolved: Mapping[str, Any]) -> float:
    """The optimizer's real rate."""
    return BASE_LEARNING_RATE[method] * float(resolved["learning_rate_multiplier"])
