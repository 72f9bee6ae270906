"""A tuned model taken out of its host: files in a folder, or a repository on the Hugging Face hub.

In: a model of a host that gives models away (the local one does). Out: an `ExportedModel`: a folder that appears whole
or not at all, with a card, and the lines that serve it.

    peft     the LoRA adapter: PeftModel.from_pretrained, vLLM's --lora-modules
    merged   the whole model as safetensors with tokenizer and chat template
    gguf     one file for llama.cpp (f16, bf16, f32, q8_0)
    ollama   the same with a Modelfile: chat template, stop tokens, system prompt
    hub      one of the others, pushed to a repository
    head     a linear head and a loader of twenty lines, for models that are no chat models

Not covered: the conversion itself (the local host does it), and whether a server answers as the model does (verify.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dspy_finetune._files import file_error, read_json
from dspy_finetune._optional import require
from dspy_finetune.errors import DataError, FileError, HostError, UsageError
from dspy_finetune.export.dataset import Manifest
from dspy_finetune.hosts import Host
from dspy_finetune.jobs.model_card import (
    MOST_LABELS,
    NO_DERIVATIVES,
    Making,
    model_card,
    modelfile,
    serve_lines,
    short_name,
    verify_line,
)
from dspy_finetune.jobs.options import journal_of
from dspy_finetune.jobs.records import job_facts

ModelFormat = Literal["peft", "merged", "gguf", "ollama", "hub", "head"]
Weights = Literal["peft", "merged", "gguf", "head"]

POLL_SECONDS = 0.5
ROOM = 1.05
"""Of the files' size must be free on the disk."""


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A model outside of its host."""

    model: str
    """Its id on the host."""
    format: str
    """peft, merged, gguf, ollama, hub or head."""
    precision: str
    """The weights' number format."""
    folder: Path
    """Where the files are."""
    files: tuple[str, ...]
    """Their names."""
    name: str
    """What the serve lines call the model."""
    serve: tuple[str, ...]
    """The commands that serve it."""
    verify: str | None
    """The command that holds such a server against the model; None for a head, which no server answers by."""
    url: str | None = None
    """Its page on the hub; None for other formats."""
    warnings: tuple[str, ...] = field(default=())
    """What should be known before it is used."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        listed = {name: list(getattr(self, name)) for name in ("files", "serve", "warnings")}
        return {**self.__dict__, **listed, "folder": str(self.folder)}


def export_model(
    model: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    host: Host,
    format: ModelFormat = "merged",
    precision: str | None = None,
    repo: str | None = None,
    weights: Weights = "merged",
    private: bool = True,
    predictor: Any = None,
    report: Any = None,
    data_license: str | None = None,
    on_progress: Callable[[str], object] | None = None,
) -> ExportedModel:
    """Write a model into a folder; see `FinetunedModel.export`."""
    if format not in get_args(ModelFormat):
        raise UsageError(f'unknown format "{format}": expected one of {", ".join(get_args(ModelFormat))}')
    if format == "hub" and (repo is None or repo.count("/") != 1):
        raise UsageError('format "hub" needs the repository: repo="owner/name" (--repo owner/name)')
    if format != "hub" and repo is not None:
        raise UsageError(f'repo is for format "hub"; "{format}" writes into the folder')
    target = Path(folder).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already and not empty; name another folder, or remove it")
    if host.kind.name != "local":
        raise UsageError(
            f"{host.name} gives its tuned models to nobody; train the same file on a host that does:"
            f" dspy-finetune migrate {model['id']} --to local"
        )
    saved, compared = _saved_predictor(predictor), _saved_report(report)
    say = on_progress or (lambda text: None)
    kind = weights if format == "hub" else format
    export = _Export(host, str(model["id"]), "gguf" if kind == "ollama" else kind, precision)
    with export.made(say) as made:
        making = _making(model, host, made, saved, compared, data_license)
        facts = made["facts"]
        if format == "hub":
            _check_license(facts.get("base_license"))
        name = short_name(str(model["id"]))
        names = tuple(str(one["name"]) for one in made["files"])
        serve = serve_lines(kind, str(repo or target), name, facts, names)
        card = model_card(making, facts, kind=kind, precision=made["precision"], files=names, name=name, repo=repo)
        extra = {"README.md": card}
        if kind == "ollama":
            extra["Modelfile"] = modelfile(names[0], facts, making.system)
        if saved is not None:
            extra["predictor.json"] = json.dumps(saved, ensure_ascii=False, indent=2) + "\n"
        with _whole_folder(target) as part:
            export.fetch(made["files"], part, say)
            for file_name, text in extra.items():
                (part / file_name).write_text(text, encoding="utf-8")
    url = _push(target, str(repo), private=private, say=say) if format == "hub" else None
    return ExportedModel(
        model=str(model["id"]),
        format=format,
        precision=str(made["precision"]),
        folder=target,
        files=(*names, *extra),
        name=name,
        serve=serve,
        verify=None if kind == "head" else verify_line(kind, str(model["id"]), name),
        url=url,
        warnings=_warnings(kind, facts, making),
    )


class _Export:
    """One export on the local host, from the request to the last file."""

    def __init__(self, host: Host, model: str, kind: str, precision: str | None) -> None:
        self._host = host
        self._model = model
        self._body = {"model": model, "format": kind, **({"precision": precision} if precision else {})}

    @contextlib.contextmanager
    def made(self, say: Callable[[str], object]) -> Iterator[dict[str, Any]]:
        """The finished export; it is forgotten by the host when the block ends."""
        client = self._host.client()
        doing = f"export {self._model} as {self._body['format']}"
        with self._host.talking(doing):
            state: dict[str, Any] = client.post("/exports", body=self._body, cast_to=dict[str, Any])
        try:
            say(f"converting {self._model}")
            while state["status"] == "running":
                time.sleep(POLL_SECONDS)
                with self._host.talking(doing):
                    state = client.get(f"/exports/{state['id']}", cast_to=dict[str, Any])
            if state["error"]:
                code, message = state["error"].get("code"), state["error"]["message"]
                raise HostError(f"{self._host.name}: cannot {doing}: {message}", code=code)
            yield state
        finally:
            with contextlib.suppress(HostError), self._host.talking(doing):
                client.delete(f"/exports/{state['id']}", cast_to=dict[str, Any])

    def fetch(self, files: Iterable[Mapping[str, Any]], folder: Path, say: Callable[[str], object]) -> None:
        """Bring the files into a folder, each held against its hash."""
        files = list(files)
        needed = sum(int(one["bytes"]) for one in files)
        free = shutil.disk_usage(folder).free
        if free < needed * ROOM:
            raise FileError(
                f"cannot write {folder.parent}: the model takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free;"
                " free some space or choose another place",
                path=str(folder.parent),
            )
        for one in files:
            say(f"fetching {one['name']}")
            path = folder / str(one["name"])
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with (
                self._host.talking(f"fetch {one['name']}"),
                self._host.client().files.with_streaming_response.content(str(one["id"])) as answer,
                open(path, "wb") as stream,
            ):
                for block in answer.iter_bytes(1 << 20):
                    digest.update(block)
                    stream.write(block)
            if digest.hexdigest() != one["sha256"]:
                raise HostError(f"{self._host.name}: {one['name']} came damaged; export again", retryable=True)


@contextlib.contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder beside the target that takes its name when the block ends without an error."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise file_error(error, target, "write") from error
    try:
        yield part
        part.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            target.rmdir()  # it was looked at: there, it is empty
        os.replace(part, target)
    except FileError:
        raise
    except OSError as error:
        raise file_error(error, target, "write") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


# ---- how it was made


def _making(
    model: Mapping[str, Any],
    host: Host,
    made: Mapping[str, Any],
    predictor: Mapping[str, Any] | None,
    comparison: Mapping[str, Any] | None,
    data_license: str | None,
) -> Making:
    known = dict(model)
    notes: list[str] = []
    job_id = made.get("job_id") or known.get("job_id")
    rows: list[Any] = []
    if job_id:
        try:
            with host.talking(f"ask for the job {job_id}"):
                facts = job_facts(host.client().fine_tuning.jobs.retrieve(str(job_id)))
            told = {name: getattr(facts, name) for name in ("method", "trained_tokens", "hyperparameters", "seed")}
            known.update({name: value for name, value in told.items() if value}, job_id=facts.id)
            content = b""
            if facts.training_file:
                with host.talking("fetch the training file"):
                    content = host.client().files.content(facts.training_file).content
            known["data_sha256"] = known.get("data_sha256") or hashlib.sha256(content).hexdigest()
            rows = [json.loads(line) for line in content.splitlines() if line.strip()]
        except (HostError, ValueError) as error:
            notes.append(f"The training file could not be read ({error}): system prompt and labels are not told here.")
    manifest = _manifest(host, str(job_id)) if job_id else None
    prompt = (predictor or {}).get("prompt") or (manifest.prompt if manifest else None)
    known["prompt_digest"] = known.get("prompt_digest") or (
        (predictor or {}).get("prompt_digest") or (manifest.prompt_digest if manifest else None)
    )
    systems, answers = _texts(rows)
    return Making(
        model=known,
        system=systems.pop() if len(systems) == 1 else None,
        labels=tuple(sorted(answers)) if 0 < len(answers) <= min(MOST_LABELS, len(rows) // 2) else (),
        n_rows=len(rows) or None,
        prompt=prompt,
        calibration=(predictor or {}).get("calibration"),
        report=comparison,
        data_license=data_license,
        notes=tuple(notes),
    )


def _texts(rows: Iterable[Any]) -> tuple[set[str | None], set[str]]:
    """The different system texts (None where there is none) and answers of training rows."""
    systems: set[str | None] = set()
    answers: set[str] = set()
    for row in rows:
        pairs = row.get("input")
        messages = pairs["messages"] if isinstance(pairs, Mapping) else row["messages"]
        system = next((one.get("content") for one in messages if one.get("role") in ("system", "developer")), None)
        systems.add(system if isinstance(system, str) else None)
        replies = [one for key in ("preferred_output", "non_preferred_output") for one in row.get(key) or ()]
        replies = replies or [one for one in messages if one.get("role") == "assistant"]
        answers |= {str(one.get("content")) for one in replies}
    return systems, answers


def _manifest(host: Host, job_id: str) -> Manifest | None:
    """The manifest beside the training file, where this machine's journal knows that file."""
    entries = journal_of(host).entries()
    intents = {entry.intent for entry in entries if entry.facts.get("job_id") == job_id}
    for entry in reversed(entries):
        if entry.event == "intent" and entry.intent in intents and entry.facts.get("train"):
            try:
                manifest = Manifest.read(str(entry.facts["train"]))
            except (DataError, FileError):
                return None
            return manifest if manifest and manifest.sha256 == entry.facts.get("data_sha256") else None
    return None


def _saved_predictor(given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        return read_json(given, "a saved predictor", "save one with predictor.save(path)")
    return dict(given.dump_state())


def _saved_report(given: Any) -> Mapping[str, Any] | None:
    if given is None:
        return None
    remedy = "write one with report.to_json(path), or compare --json"
    values = read_json(given, "a report", remedy) if isinstance(given, (str, os.PathLike)) else given.to_dict()
    found = values.get("comparison", values)
    if not isinstance(found, Mapping) or "programs" not in found:
        raise UsageError(f'the report holds no "comparison" with "programs"; {remedy}')
    return found


# ---- the hub


def _check_license(name: str | None) -> None:
    if name and any(name.lower().endswith(end) or f"{end}-" in name.lower() for end in NO_DERIVATIVES):
        raise UsageError(
            f"the base model's licence ({name}) forbids passing on what is made from it; export it into a folder of"
            " your own, or train on another base"
        )


def _push(folder: Path, repo: str, *, private: bool, say: Callable[[str], object]) -> str:
    hub = require("huggingface_hub", "local", "pushing to the Hugging Face hub")
    api = hub.HfApi()
    say(f"pushing to {repo}")
    try:
        url = str(api.create_repo(repo, private=private, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export of dspy-finetune")
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise HostError(
            f"the Hugging Face hub took no {repo} ({reason}); the files are in {folder}: check HF_TOKEN and the name,"
            f" then: hf upload {repo} {folder}"
        ) from error
    return url


def _warnings(kind: str, facts: Mapping[str, Any], making: Making) -> tuple[str, ...]:
    notes = list(making.notes)
    if kind == "peft" and facts.get("base_is_rounded"):
        notes.append(
            f"the adapter was trained on a 4-bit rounding of {facts['base_reference']}; on the unrounded base its"
            " answers differ a little: export the base too (export-model smollm2-135m-instruct --format merged)"
        )
    if not facts.get("base_license"):
        notes.append(f"nobody knows the licence of {facts['base_reference']}; look before you pass the model on")
    return tuple(notes)
