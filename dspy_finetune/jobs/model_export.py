"""A tuned model taken out of its host: files in a folder, or a repository on the Hugging Face hub.

In: a model of a host that gives models away (the local one does). Out: an `ExportedModel`: a folder that appears whole
or not at all, with a card, the lines that serve it, and for Ollama a Modelfile.

    peft     the LoRA adapter: PeftModel.from_pretrained, vLLM's --lora-modules
    merged   the whole model as safetensors with tokenizer and chat template
    gguf     one file for llama.cpp (f16, bf16, f32, q8_0)
    ollama   the same with a Modelfile: chat template, stop tokens, system prompt
    hub      one of the others, pushed to a repository
    head     a linear head and a loader of twenty lines, for models that are no chat models

Not covered: the conversion itself (the local host does it), and whether a server answers as the model does
(verification.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dspy_finetune._files import file_error, read_json
from dspy_finetune._optional import require
from dspy_finetune.catalog import parse_model_id
from dspy_finetune.errors import DataError, FileError, HostError, UsageError
from dspy_finetune.export.dataset import Manifest
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.protocol import part, present, whole_answer
from dspy_finetune.jobs.records import intent_of, job_facts, journal_of

MOST_LABELS = 64
"""With more different answers than this, a model does not choose among labels."""
NO_DERIVATIVES = ("-nd",)
UNKNOWN = "not known"


@dataclass(frozen=True, kw_only=True)
class Making:
    """A model's provenance, as far as it is known."""

    model: Mapping[str, Any]
    """`FinetunedModel.to_dict()`."""
    system: str | None = None
    """The system text that all training rows share; None where they have none, or several."""
    labels: tuple[str, ...] = ()
    """The different answers of the training rows, where there are few."""
    n_rows: int | None = None
    """Training rows."""
    prompt: Mapping[str, Any] | None = None
    """`PromptFormat.to_dict()`, where the manifest or the predictor has it."""
    calibration: Mapping[str, Any] | None = None
    """The calibration that was saved with the predictor."""
    report: Mapping[str, Any] | None = None
    """A saved report's `comparison`."""
    data_license: str | None = None
    """Of the training data, where the user names it."""
    notes: tuple[str, ...] = field(default=())
    """What could not be found, in sentences."""


def short_name(model_id: str) -> str:
    """A name for servers: letters, digits, dots and dashes.

    >>> short_name("ft:smollm2-135m-instruct:local:my-taste:3f2a9c")
    'my-taste-3f2a9c'
    >>> short_name("ft:HuggingFaceTB/SmolLM2-360M:local::3f2a9c:ckpt-step-8")
    'smollm2-360m-3f2a9c-step-8'
    """
    named = parse_model_id(model_id)
    parts = [named.suffix or named.base.rstrip("/").split("/")[-1], named.id or ""]
    if named.step is not None:
        parts.append(f"step-{named.step}")
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(part for part in parts if part).lower()).strip("-.") or "model"


def serve_lines(kind: str, place: str, name: str, facts: Mapping[str, Any], files: Sequence[str]) -> tuple[str, ...]:
    """The commands that serve an export.

    Args:
        kind: peft, merged, gguf, ollama or head.
        place: The folder, or the repository on the hub.
        name: What the server calls the model.
        facts: The export's.
        files: The names of its files.
    """
    where = shlex.quote(place)
    if kind == "peft":
        rank = int(facts.get("lora_rank") or 8)
        wide = f" --max-lora-rank {_lora_rank(rank)}" if rank > 16 else ""
        base = shlex.quote(str(facts["base_reference"]))
        return (f"vllm serve {base} --enable-lora{wide} --lora-modules {name}={where}",)
    if kind == "head":
        question = shlex.quote('[{"role": "user", "content": "..."}]')
        return (f"python {shlex.quote(str(Path(place) / 'predict.py'))} {question}",)
    if kind == "merged":
        return (
            f"vllm serve {where} --served-model-name {name}",
            f"transformers serve {where}",
            f"dspy-finetune serve --model {where}",
        )
    gguf = next((one for one in files if one.endswith(".gguf")), "model.gguf")
    path = shlex.quote(str(Path(place) / gguf))
    if kind == "gguf":
        return (f"llama-server -m {path} --alias {name} --jinja --port 8080",)
    modelfile = shlex.quote(str(Path(place) / "Modelfile"))
    return (f"ollama create {name} -f {modelfile}", f"ollama run {name}")


_VERIFY = (
    "Then see that the server answers as the model does: an endpoint that misses the adapter or the chat template"
    " answers too, only otherwise."
)
_PORTS = {"gguf": 8080, "ollama": 11434}


def verify_line(kind: str, model_id: str, name: str) -> str:
    """The command that verifies that the server answers as the model does, at the port where such servers listen."""
    return f"dspy-finetune verify {shlex.quote(model_id)} --at http://127.0.0.1:{_PORTS.get(kind, 8000)}/v1 --as {name}"


def _lora_rank(rank: int) -> int:
    # vLLM takes these and no others.
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)


def modelfile(gguf: str, facts: Mapping[str, Any], system: str | None) -> str:
    """Ollama's description of a model: the very template that it was trained with, in Go's words.

    Args:
        gguf: The weights' file name, beside the Modelfile.
        facts: The export's.
        system: The system text of the training rows.

    Raises:
        UsageError: The chat template has no form that Ollama's can take.
    """
    turns = facts.get("turns")
    if not turns:
        raise UsageError(
            "the chat template of this model cannot be told as Ollama's: it does more than write each turn between two"
            " texts; export it as gguf and serve it with llama-server, which reads the template itself"
        )
    roles = {role: (str(turns[role][0]), str(turns[role][1])) for role in ("system", "user", "assistant")}
    bos = facts.get("bos")
    if bos:
        # Ollama writes the opening token itself.
        roles = {role: (before.removeprefix(str(bos)), after) for role, (before, after) in roles.items()}
    branches = [
        f'{{{{ {"else if" if number else "if"} eq .Role "{role}" }}}}{_go(before)}{{{{ .Content }}}}{_go(after)}'
        for number, (role, (before, after)) in enumerate(roles.items())
    ]
    template = f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{_go(str(turns['opening']))}"
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""']
    spoken = system if system is not None else facts.get("default_system")
    if spoken:
        lines.append(f"SYSTEM {_quoted(str(spoken))}")
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in facts["stop"]]
    lines += [
        # Ollama's own defaults cut long prompts in silence, punish repeated words and draw at random.
        f"PARAMETER num_ctx {min(int(facts['context_tokens']), 8192)}",
        "PARAMETER repeat_penalty 1.0",
        "PARAMETER temperature 0",
    ]
    return "\n".join(lines) + "\n"


def _go(text: str) -> str:
    if '"""' in text:
        raise UsageError('the chat template writes """, which a Modelfile cannot hold; export the model as gguf')
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    if '"""' in text:
        raise UsageError('the system prompt holds """, which a Modelfile cannot hold; export the model as gguf')
    return f'"""{text}"""'


def model_card(
    making: Making,
    facts: Mapping[str, Any],
    *,
    kind: str,
    precision: str,
    files: Sequence[str],
    name: str,
    repo: str | None = None,
) -> str:
    """The model card, in Markdown with the head that the Hugging Face hub reads."""
    # The card travels: where the folder lies on this machine is nobody's business.
    serve = serve_lines(kind, repo or ".", name, facts, files)
    model = making.model
    parts = [
        _head(making, facts, kind),
        f"# {name}",
        f"`{model['id']}`: {_method(model)} of `{facts['base_reference']}` with"
        " [dspy-finetune](https://pypi.org/project/dspy-finetune/), " + _what(kind, precision, facts),
        "## Serve it",
        "" if repo else "In this folder:",
        _fenced("\n".join(serve), "bash"),
        *([_VERIFY, _fenced(verify_line(kind, str(model["id"]), name), "bash")] if _is_whole(kind, facts) else []),
        *([] if kind == "head" or making.prompt is None else [_ASK, _fenced(_asked(kind, name), "python")]),
        "## The prompt it was trained with",
        _prompt(making),
        *_labels(making),
        *_figures(making),
        *_calibration(making),
        "## How it was made",
        _table(_made(making, facts)),
        "## Licences",
        _table(
            {
                "base model": facts.get("base_license") or f"{UNKNOWN}: look at the base model's own card",
                "training data": making.data_license or f"{UNKNOWN}: its owner has to say",
            }
        ),
        "## Versions",
        _table(facts.get("versions") or {}),
    ]
    parts += [f"> {note}" for note in making.notes]
    return "\n\n".join(part for part in parts if part) + "\n"


_ASK = "In a DSPy program, with the prompt below as `prompt.json`:"


def _asked(kind: str, name: str) -> str:
    url = f"http://127.0.0.1:{_PORTS.get(kind, 8000)}/v1"
    return (
        "import json\nfrom pathlib import Path\n\nimport dspy_finetune as ft\n\n"
        'prompt = ft.PromptFormat.from_dict(json.loads(Path("prompt.json").read_text()))\n'
        f'predictor = ft.OpenAIPredictor(prompt, "{name}", host=ft.Host.compatible("{url}"))'
    )


def _head(making: Making, facts: Mapping[str, Any], kind: str) -> str:
    relation = {"peft": "adapter", "merged": "finetune", "head": "finetune"}.get(kind, "quantized")
    library = {"peft": "peft", "merged": "transformers", "head": "dspy-finetune"}.get(kind, "gguf")
    base = str(facts["base_reference"])
    lines = ["---"]
    if facts.get("base_license"):
        lines.append(f"license: {facts['base_license']}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        lines += [f"base_model: {base}", f"base_model_relation: {relation}"]
    task = "text-classification" if kind == "head" and not facts.get("writes_text") else "text-generation"
    lines += [f"library_name: {library}", f"pipeline_tag: {task}", "tags:", "- dspy", "- dspy-finetune"]
    return "\n".join([*lines, f"- {making.model['method']}", "---"])


def _method(model: Mapping[str, Any]) -> str:
    method = str(model["method"])
    return {"sft": "supervised fine-tuning", "dpo": "direct preference optimisation"}.get(method, method)


def _what(kind: str, precision: str, facts: Mapping[str, Any]) -> str:
    n_adapters = int(facts.get("n_adapters") or 0)
    chain = f" ({n_adapters} adapters joined, rank {facts.get('lora_rank')})" if n_adapters > 1 else ""
    rounded = (
        " The base that it was trained on is a 4-bit rounding of that model; for the very same answers serve the"
        " adapter on the rounded base: `dspy-finetune export-model smollm2-135m-instruct --format merged`."
        if facts.get("base_is_rounded") and kind == "peft"
        else ""
    )
    words = {
        "peft": f"as a LoRA adapter{chain}; it needs the base beside it.{rounded}",
        "merged": f"as a whole model in {precision}.",
        "gguf": f"as one GGUF file in {precision}.",
        "ollama": f"as one GGUF file in {precision} with a Modelfile.",
        "head": f"as {_head_of(facts)}: one matrix over averages of the base's states. It is no chat model;"
        " no other server answers by it. `ft.load_predictor(FOLDER)` makes a DSPy module of it that needs no server,"
        " and `predict.py` is the whole way in twenty lines. `head.json` says what is averaged; `head.safetensors`"
        " holds `weights` (features, labels) and `bias`.",
    }
    return words[kind] + (f" {_LACKS_HEAD}" if facts.get("lacks_head") else "")


_LACKS_HEAD = (
    "The linear head that decides with which label an answer begins is not part of it: here the weights decide. The"
    " format `head` has both."
)


def _head_of(facts: Mapping[str, Any]) -> str:
    """What an exported head is."""
    if facts.get("writes_text"):
        return "a LoRA adapter that writes, and a linear head that decides with which label an answer begins"
    return "a linear head on a frozen base"


def _is_whole(kind: str, facts: Mapping[str, Any]) -> bool:
    """Whether a chat server with the export answers as the model does."""
    return kind != "head" and not facts.get("lacks_head")


def _prompt(making: Making) -> str:
    digest = making.model.get("prompt_digest")
    parts = []
    if digest:
        parts.append(f"Digest `{digest}`; a predictor with another prompt is refused.")
    if making.prompt is not None:
        for role in ("system", "user", "completion"):
            text = making.prompt.get(role)
            if isinstance(text, str) and text:
                parts += [f"{role}:", _fenced(text, "text")]
        parts += [
            "In full, as `ft.PromptFormat.from_dict` reads it:",
            _fenced(json.dumps(making.prompt, ensure_ascii=False, indent=1), "json"),
        ]
    elif making.system:
        parts += ["system (the same in all training rows):", _fenced(making.system, "text")]
    return "\n\n".join(parts) or "No manifest of the training file was found, and its rows share no system text."


def _labels(making: Making) -> list[str]:
    if not making.labels:
        return []
    return ["## Labels", ", ".join(f"`{label}`" for label in making.labels)]


def _figures(making: Making) -> list[str]:
    if making.report is None:
        return ["## Figures", "None were given with the export (`report=`, `--report`)."]
    comparison = making.report
    rows = []
    for program in comparison["programs"]:
        scores = "; ".join(f"{metric} {_interval(score)}" for metric, score in program["scores"].items())
        rows.append(f"| {program['name']} | {program['n']} | {scores} |")
    share = round(100 * float(comparison.get("confidence") or 0.95))
    head = f"| program | items | figures ({share}% intervals) |\n| --- | --- | --- |"
    return ["## Figures", "On items that were not trained on:", "\n".join([head, *rows])]


def _interval(score: Mapping[str, Any]) -> str:
    value, low, high = (score.get(name) for name in ("value", "low", "high"))
    if value is None:
        return "not known"
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")


def _calibration(making: Making) -> list[str]:
    if making.calibration is None:
        return []
    fitted = making.calibration
    text = f"By {fitted.get('method') or fitted['how']} on {fitted['n']} examples"  # "how" until 0.1
    errors = [
        f"{when} {fitted[when]['calibration_error']:.3f}"
        for when in ("before", "after")
        if isinstance(fitted.get(when), Mapping)
    ]
    text += f"; expected calibration error {', '.join(errors)}" if errors else ""
    return ["## Calibration", f"{text}. It belongs to the predictor's file and is not in the weights."]


def _made(making: Making, facts: Mapping[str, Any]) -> dict[str, Any]:
    model = making.model
    return {
        "base model": facts["base_reference"],
        "method": model["method"],
        "training rows": making.n_rows,
        "training file, sha256": model.get("data_sha256"),
        "trained tokens": model.get("trained_tokens"),
        "hyperparameters": ", ".join(f"{name}={value}" for name, value in (model.get("hyperparameters") or {}).items()),
        "seed": model.get("seed"),
        "trained on": model.get("host_name"),
        "job": model.get("job_id"),
        "context, tokens": facts.get("context_tokens"),
        "answers end with": ", ".join(f"`{stop}`" for stop in facts.get("stop") or ()),
    }


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in values.items() if value not in (None, "")]
    return "\n".join(["| | |", "| --- | --- |", *rows]) if rows else UNKNOWN


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


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
    """The command that verifies such a server's answers; None where a head decides, which no such server has."""
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
    if host.kind.gives_weights and host.kind.name != "local":
        raise UsageError(
            f"{host.name} gives its models by a download of its own, which is not made into an export here:"
            " host.api().weights(...), as docs/hosts.md shows"
        )
    if host.kind.name != "local":
        raise UsageError(
            f"{host.name} gives its tuned models to nobody; train the same file on a host that does:"
            f" dspy-finetune migrate {model['id']} --to local"
        )
    saved, compared = _saved_predictor(predictor), _saved_report(report, str(model["id"]))
    if saved is not None and saved.get("model") not in (None, str(model["id"])):
        raise UsageError(f"the given predictor asks {saved['model']}, not {model['id']}; give the one of this model")
    if saved is not None and format == "hub":
        saved = _without_places(saved)
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
        elif kind == "head" and making.prompt is not None:
            # `load_predictor(folder)` asks with it.
            extra["prompt.json"] = json.dumps(making.prompt, ensure_ascii=False, indent=2) + "\n"
        with _whole_folder(target) as part:
            export.fetch(made["files"], part, say)
            for file_name, text in extra.items():
                (part / file_name).write_text(text, encoding="utf-8")
    url = push(target, str(repo), private=private, say=say) if format == "hub" else None
    return ExportedModel(
        model=str(model["id"]),
        format=format,
        precision=str(made["precision"]),
        folder=target,
        files=(*names, *extra),
        name=name,
        serve=serve,
        verify=verify_line(kind, str(model["id"]), name) if _is_whole(kind, facts) else None,
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
            state = self._state(client.post("/exports", body=self._body, cast_to=object))
        try:
            say(f"converting {self._model}")
            while state["status"] == "running":
                time.sleep(POLL_SECONDS)
                with self._host.talking(doing):
                    state = self._state(client.get(f"/exports/{state['id']}", cast_to=object))
            if failure := part(state, "error"):
                code, message = failure.get("code"), failure.get("message")
                raise HostError(f"{self._host.name}: cannot {doing}: {message}", code=code)
            yield state
        finally:
            with contextlib.suppress(HostError), self._host.talking(doing):
                client.delete(f"/exports/{state['id']}", cast_to=object)

    def _state(self, answer: Any) -> dict[str, Any]:
        return present(whole_answer(answer), "id", "status")

    def fetch(self, files: Iterable[Mapping[str, Any]], folder: Path, say: Callable[[str], object]) -> None:
        """Download the files into a folder, each verified by its SHA-256."""
        files = list(files)
        needed = sum(int(one["bytes"]) for one in files)
        free = shutil.disk_usage(folder).free
        if free < needed * ROOM:
            raise FileError(
                f"cannot write {folder.parent}: the model takes {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are"
                " free; free some space or choose another place",
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
                facts = job_facts(host.api().job(str(job_id)))
            told = {name: getattr(facts, name) for name in ("method", "trained_tokens", "hyperparameters", "seed")}
            known.update({name: value for name, value in told.items() if value}, job_id=facts.id)
            content = b""
            if facts.training_file:
                with host.talking("fetch the training file"):
                    content = host.api().content(facts.training_file)
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
    wanted = intent_of(journal_of(host), job_id)
    if wanted is None or not wanted.facts.get("train"):
        return None
    try:
        manifest = Manifest.read(str(wanted.facts["train"]))
    except (DataError, FileError):
        return None
    return manifest if manifest and manifest.sha256 == wanted.facts.get("data_sha256") else None


def _saved_predictor(given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        return read_json(given, "a saved predictor", "save one with predictor.save(path)")
    return dict(given.dump_state())


def _without_places(predictor: Mapping[str, Any]) -> dict[str, Any]:
    """A saved predictor for others: where the model lies on this machine is nobody's business."""
    told = {name: value for name, value in predictor.items() if name != "provenance"}
    if isinstance(known := predictor.get("provenance"), Mapping):
        told["provenance"] = {name: value for name, value in known.items() if name != "host_description"}
    return {**told, "host": None}


def _saved_report(given: Any, model: str) -> Mapping[str, Any] | None:
    """A report's `comparison`; of a file of several, as the quickstart writes one, that which names the model."""
    if given is None:
        return None
    remedy = "write one with report.to_json(path), or compare --json"
    values = read_json(given, "a report", remedy) if isinstance(given, (str, os.PathLike)) else given.to_dict()
    found = values.get("comparison", values)
    if isinstance(found, Mapping) and "programs" not in found:
        several = [one for one in values.values() if isinstance(one, Mapping) and "comparison" in one]
        found = next((one["comparison"] for one in several if model in json.dumps(one)), found)
    if not isinstance(found, Mapping) or "programs" not in found:
        raise UsageError(f'the report holds no "comparison" with "programs" of {model}; {remedy}')
    return found


def _check_license(name: str | None) -> None:
    if name and any(name.lower().endswith(end) or f"{end}-" in name.lower() for end in NO_DERIVATIVES):
        raise UsageError(
            f"the base model's licence ({name}) forbids passing on what is made from it; export it into a folder of"
            " your own, or train on another base"
        )


def push(folder: Path, repo: str, *, private: bool, say: Callable[[str], object]) -> str:
    """Push a folder to the Hugging Face hub; its page. Raises HostError."""
    hub = require("huggingface_hub", "local", "pushing to the Hugging Face hub")
    api = hub.HfApi()
    say(f"pushing to {repo}")
    try:
        url = str(api.create_repo(repo, private=private, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export of dspy-finetune")
    except Exception as error:  # of requests, httpx or httpx2 by the version: they have no base class in common
        reason = " ".join(str(error).split())[:200]
        raise HostError(
            f"the Hugging Face hub took no {repo} ({reason}); the files are in {folder}: check HF_TOKEN, the name and"
            f" the network, then: hf upload {repo} {folder}"
        ) from error
    return url


def _warnings(kind: str, facts: Mapping[str, Any], making: Making) -> tuple[str, ...]:
    notes = list(making.notes)
    if facts.get("lacks_head"):
        notes.append(_LACKS_HEAD)
    if kind == "peft" and facts.get("base_is_rounded"):
        notes.append(
            f"the adapter was trained on a 4-bit rounding of {facts['base_reference']}; on the unrounded base its"
            " answers differ a little: export the base too (export-model smollm2-135m-instruct --format merged)"
        )
    if not facts.get("base_license"):
        notes.append(f"nobody knows the licence of {facts['base_reference']}; look before you pass the model on")
    return tuple(notes)
