"""A model of this host written for other servers: a PEFT adapter, merged weights, or a GGUF file.

    root/exports/<export id>/    task.json -> child process -> files/, result.json

In: a tuned model (or a base). Out: files that are fetched like any other, and the facts that serving needs: the chat
template, how it writes each turn, the tokens that end an answer, and the base.
A chain of adapters becomes one: its rank is the sum of theirs, and it computes the same.
The conversion runs as `python -m dspy_finetune.local.export_model FOLDER`, so that it can neither stop the server nor
keep its memory; the exports are gone when the server starts anew.
GGUF is the one file that llama.cpp and Ollama read, with weights, tokenizer and chat template; it is written with the
`gguf` package. Architectures: Llama (SmolLM2 and Mistral among them), Qwen2 and Qwen3, with byte-level BPE tokenizers;
numbers in 32 or 16 bits, or 8 (q8_0). Any other model is refused by name: llama.cpp's own converter reads the merged
export.
Not covered: the card and the Modelfile (the client knows the prompt).
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dspy_finetune._files import file_error, sha256_file, write_json
from dspy_finetune._optional import require
from dspy_finetune.errors import FileError, FinetuneError, UsageError
from dspy_finetune.local.models import (
    PACKAGED_MODEL,
    base_folder,
    load_model,
    load_tokenizer,
)
from dspy_finetune.local.schemas import ApiError, Body, ModelName
from dspy_finetune.local.store import Store, new_id
from dspy_finetune.tasks import PACKAGED_ENCODER, is_encoder

PACKAGED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the packaged model is a 4-bit rounding of."""
PACKAGED_LICENSE = "apache-2.0"

PRECISIONS: dict[str, tuple[str, ...]] = {
    "peft": ("f32",),
    "merged": ("bf16", "f16", "f32"),
    "gguf": ("f16", "bf16", "f32", "q8_0"),
    "head": ("f32",),
}
"""Format -> number formats of the weights, the usual one first; for merged see `usual_precision`."""
MOST_F16 = 65504
"""The largest number in f16."""
WIDE_FAMILIES = ("gemma", "glm", "qwen2")
"""Model types whose activations overflow in f16: servers refuse the first two in it, or answer with NaN."""
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


class CreateExport(Body):
    """The body of POST /exports."""

    model: ModelName
    format: Literal["peft", "merged", "gguf", "head"]
    precision: ModelName | None = None


class Exports:
    """The exports of one server, each a child process and a folder."""

    def __init__(self, store: Store) -> None:
        self.folder = store.root / "exports"
        self._store = store
        self._lock = threading.Lock()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        # What an earlier server left was fetched, or nobody wants it.
        shutil.rmtree(self.folder, ignore_errors=True)

    def create(self, body: CreateExport, *, base: str) -> dict[str, Any]:
        """Start one.

        Args:
            body: What is asked for; its model exists.
            base: The base of the model, as it can be asked for.
        """
        precision = body.precision or (None if body.format == "merged" else PRECISIONS[body.format][0])
        if precision is not None and precision not in PRECISIONS[body.format]:
            known = ", ".join(PRECISIONS[body.format])
            raise ApiError(400, f"'{precision}' is not one of {known} for {body.format}", param="precision")
        record = self._store.model(body.model)
        if body.format == "peft" and record is None:
            raise ApiError(400, f"{body.model} is a base model and has no adapter; export it as merged", param="format")
        head = self._store.head(body.model)
        if head is not None and body.format != "head" and not _writes_text(head):
            message = (
                f"{body.model} is a linear head on a frozen base and no chat model: export it as head, or train it"
            )
            raise ApiError(400, f'{message} anew with the recipe "lora"', param="format")
        if head is None and body.format == "head":
            raise ApiError(400, f"{body.model} has no linear head; export it as peft, merged or gguf", param="format")
        task = {
            "model": body.model,
            "base": base,
            "adapters": [os.fspath(path) for path in self._store.adapters(body.model)],
            "head": os.fspath(head) if head is not None else None,
            "format": body.format,
            "precision": precision,
            "job_id": record.job_id if record else None,
        }
        export_id = new_id("export-")
        folder = self.folder / export_id
        write_json(folder / "task.json", task)
        with open(folder / "log.txt", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dspy_finetune.local.export_model", os.fspath(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        with self._lock:
            self._running[export_id] = process
        return self.wire(export_id)

    def wire(self, export_id: str) -> dict[str, Any]:
        """How it stands, or a 404."""
        folder = self._folder(export_id)
        task = json.loads((folder / "task.json").read_bytes())
        process = self._running[export_id]
        result: dict[str, Any] = {"error": None, "files": [], "facts": None}
        status = "running"
        if process.poll() is not None:
            try:
                result.update(json.loads((folder / "result.json").read_bytes()))
            except FileNotFoundError:
                message = f"the conversion ended with code {process.returncode}: {_last_words(folder / 'log.txt')}"
                result["error"] = {"code": "server_error", "message": message, "param": None}
            status = "failed" if result["error"] else "succeeded"
        shown = {name: task[name] for name in ("model", "base", "format", "precision", "job_id")}
        if shown["precision"] is None and result["facts"]:
            shown["precision"] = result["facts"]["precision"]
        return {"id": export_id, "object": "model.export", "status": status, **shown, **result}

    def file(self, file_id: str) -> Path | None:
        """Where a file of an export lies, by the id that it is fetched by; None for any other file."""
        match = re.fullmatch(r"file-(export-[a-z0-9]+)-(\d+)", file_id)
        if match is None or match[1] not in self._running:
            return None
        files = self.wire(match[1])["files"]
        number = int(match[2])
        return self.folder / match[1] / "files" / files[number]["name"] if number < len(files) else None

    def delete(self, export_id: str) -> None:
        """Stop it, and forget its files."""
        folder = self._folder(export_id)
        with self._lock:
            process = self._running.pop(export_id)
        _stop(process)
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Stop all."""
        for process in self._running.values():
            _stop(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _folder(self, export_id: str) -> Path:
        if export_id not in self._running:
            raise ApiError(404, f"No such export: {export_id}", param="id")
        return self.folder / export_id


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "not enough memory, perhaps"


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def run_export(folder: Path) -> None:
    """Do what task.json says, and write what came out to result.json."""
    task = json.loads((folder / "task.json").read_bytes())
    files = folder / "files"
    try:
        files.mkdir(exist_ok=True)
        facts = convert(task, files)
        names = sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file())
        listed = [
            {
                "id": f"file-{folder.name}-{number}",
                "name": name,
                "bytes": (files / name).stat().st_size,
                "sha256": sha256_file(files / name),
            }
            for number, name in enumerate(names)
        ]
        result: dict[str, Any] = {"facts": facts, "files": listed}
    except FinetuneError as error:
        code = "no_space" if isinstance(error, FileError) and "no space" in str(error) else "cannot_export"
        result = {"error": {"code": code, "message": str(error), "param": None}}
    except (OSError, MemoryError) as error:
        problem = file_error(error, files, "write") if isinstance(error, OSError) else "not enough memory to convert it"
        code = "no_space" if "no space" in str(problem) else "server_error"
        result = {"error": {"code": code, "message": str(problem), "param": None}}
    except Exception as error:  # whatever a library raises must become the export's error, or the client waits for ever
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        result = {"error": {"code": "server_error", "message": message, "param": None}}
    write_json(folder / "result.json", result)


def convert(task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write the files of one export into a folder, and return what serving them needs to know.

    Raises:
        UsageError: This model cannot be written so; says how else.
        MissingExtraError: A package is missing.
        FileError: No space, or no permission.
    """
    base = base_folder(task["base"])
    adapters = [Path(path) for path in task["adapters"]]
    if task["format"] == "head":
        return _write_head(task, base, adapters, folder)
    if is_encoder(base):
        raise UsageError(
            f"{task['base']} is a sentence encoder; transformers and vLLM load its folder as it is: {base}"
        )
    tokenizer = load_tokenizer(base)
    facts = _facts(task, base, tokenizer)
    if task["format"] == "peft":
        facts["lora_rank"] = _write_adapter(adapters, folder, base_name=facts["base_reference"])
        tokenizer.save_pretrained(folder)
        return facts
    if task["format"] == "gguf":
        check_convertible(_config(base), tokenizer)
        model = load_model(base, adapters)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(task["model"])).strip("-")
        path = folder / f"model-{task['precision']}.gguf"
        write_gguf(model, tokenizer, base, path, precision=task["precision"], name=name)
        return facts
    model = load_model(base, adapters)
    facts["precision"] = task["precision"] or usual_precision(model)
    model = model.to(dtype=_torch_type(facts["precision"]))
    # Servers stop at these: the token that ends a turn is what every trained answer ends with.
    model.generation_config.eos_token_id = facts["stop_ids"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return facts


def usual_precision(model: Any) -> str:
    """f16, which rounds what the adapters add eight times finer than bf16; bf16 where f16 is not wide enough.

    A DPO model of the packaged base lay 0.11 nats from itself in bf16. Weights beyond f16, and the families whose
    activations leave it, keep bf16.
    """
    is_within = all(float(one.abs().max()) < MOST_F16 for one in model.parameters() if one.numel())
    return "f16" if is_within and not str(model.config.model_type).startswith(WIDE_FAMILIES) else "bf16"


def _torch_type(precision: str) -> Any:
    return getattr(require("torch", "local", "the local host"), _DTYPES[precision])


def _config(base: Path) -> Any:
    return require("transformers", "local", "the local host").AutoConfig.from_pretrained(base)


def _facts(task: Mapping[str, Any], base: Path, tokenizer: Any) -> dict[str, Any]:
    from dspy_finetune.local.chat import end_of_turn

    config = _config(base)
    ends = dict.fromkeys((end_of_turn(tokenizer), tokenizer.eos_token_id))
    ends.pop(None, None)
    named, license_name = _origin(task["base"], base)
    turns = turn_parts(tokenizer)
    return {
        "base_reference": named,
        "base_is_rounded": task["base"] == PACKAGED_MODEL,
        "base_license": license_name,
        "architecture": (config.architectures or [type(config).__name__])[0],
        "context_tokens": int(config.get_text_config().max_position_embeddings),
        "n_adapters": len(task["adapters"]),
        "lora_rank": None,
        "chat_template": tokenizer.chat_template,
        "default_system": turns.pop("default_system") if turns else None,
        "turns": turns,
        "bos": tokenizer.bos_token if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else None,
        "stop": [tokenizer.convert_ids_to_tokens(number) for number in ends],
        "stop_ids": list(ends),
        "lacks_head": task["head"] is not None,
        "versions": _versions(),
    }


def _writes_text(head: Path) -> bool:
    """Whether an adapter writes on where the head has decided the label."""
    return bool(json.loads((head / "head.json").read_bytes()).get("openings"))


def _versions() -> dict[str, str]:
    names = ("dspy-finetune", "dspy", "torch", "transformers", "peft", "gguf", "scikit-learn")
    return {name: importlib.metadata.version(name) for name in names if _has(name)}


def _has(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _origin(base: str, folder: Path) -> tuple[str, str | None]:
    """What others call the base, and its licence where its own card names one."""
    if base == PACKAGED_MODEL:
        return PACKAGED_HUB_ID, PACKAGED_LICENSE
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return base, None
    head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    named = re.search(r"^license:\s*(\S+)", head[1], re.MULTILINE) if head else None
    return base, named[1].strip("\"'") if named else None


def _write_adapter(adapters: Sequence[Path], folder: Path, *, base_name: str) -> int:
    """Write one adapter that computes what the chain computes; returns its rank."""
    if len(adapters) == 1:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(adapters[0] / name, folder / name)
    else:
        _join(adapters, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_bytes())
    config["base_model_name_or_path"] = base_name
    write_json(path, config)
    return int(config["r"])


def _join(adapters: Sequence[Path], folder: Path) -> None:
    """Side by side: B1 A1 + B2 A2 is [B1 B2] times [A1; A2], so the ranks add up and nothing is lost."""
    torch = require("torch", "local", "the local host")
    safetensors = require("safetensors.torch", "local", "the local host")
    configs = [json.loads((adapter / "adapter_config.json").read_bytes()) for adapter in adapters]
    rank = sum(int(config["r"]) for config in configs)
    joined: dict[str, Any] = {}
    start = 0
    for adapter, config in zip(adapters, configs, strict=True):
        weights = safetensors.load_file(adapter / "adapter_model.safetensors")
        plain = all(re.search(r"\.lora_[AB]\.weight$", name) for name in weights)
        if not plain or config.get("use_dora") or config.get("rank_pattern") or config.get("alpha_pattern"):
            raise UsageError(
                "a chain with more than plain low-rank weights is no single adapter; export it as merged instead"
            )
        own = int(config["r"])
        scale = float(config["lora_alpha"]) / (own**0.5 if config.get("use_rslora") else own)
        for name, tensor in weights.items():
            is_first = name.endswith("lora_A.weight")
            shape = (rank, tensor.shape[1]) if is_first else (tensor.shape[0], rank)
            # A layer that one of the adapters leaves alone keeps zeros there.
            whole = joined.setdefault(name, torch.zeros(shape, dtype=torch.float32))
            if is_first:
                whole[start : start + own] = tensor.float()
            else:
                whole[:, start : start + own] = scale * tensor.float()
        start += own
    layers = sorted({name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for name in joined})
    merged = {**configs[-1], "r": rank, "lora_alpha": rank, "use_rslora": False, "target_modules": layers}
    safetensors.save_file(joined, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", merged)


_LOADER = '''"""Ask the head, without a server: python predict.py '[{"role": "user", "content": "Title: ..."}]'

Needs: pip install "dspy-finetune[local]". The base's states are averaged, and the head is one matrix.
"""

import json
import sys
from pathlib import Path

import numpy as np

from dspy_finetune.local.features import Reader, View
from dspy_finetune.local.heads import Head
from dspy_finetune.local.models import base_folder

HERE = Path(__file__).parent
named = json.loads((HERE / "base.json").read_text(encoding="utf-8"))
head = Head.load(HERE)
encoder = base_folder(named["encoder"]) if "encoder" in head.blocks and named["encoder"] else None
adapters = sorted(HERE.glob("adapter-*"))[: head.n_adapters]
reader = Reader.open(base_folder(named["base"]), adapters=adapters, encoder=encoder, blocks=head.blocks)


def predict(messages):
    """The probability of each label, or the number."""
    blocks = reader.read([messages], View.from_dict(head.facts["view"]))
    if head.kind == "labels":
        return dict(zip(head.labels, np.exp(head.log_probabilities(blocks)[0]).tolist()))
    return head.numbers(blocks)[0]


if __name__ == "__main__":
    print(json.dumps(predict(json.loads(sys.argv[1])), ensure_ascii=False))
'''


def _write_head(task: Mapping[str, Any], base: Path, adapters: Sequence[Path], folder: Path) -> dict[str, Any]:
    """The head as JSON and safetensors, the adapters under it, what it reads with, and a loader."""
    for name in ("head.json", "head.safetensors"):
        shutil.copyfile(Path(task["head"]) / name, folder / name)
    for number, adapter in enumerate(adapters):
        shutil.copytree(adapter, folder / f"adapter-{number}")
    encoder = None if is_encoder(base) else PACKAGED_ENCODER
    write_json(folder / "base.json", {"model": task["model"], "base": task["base"], "encoder": encoder})
    (folder / "predict.py").write_text(_LOADER, encoding="utf-8")
    named, license_name = _origin(task["base"], base)
    facts = json.loads((folder / "head.json").read_bytes())
    return {
        "base_reference": named,
        "base_is_rounded": False,
        "base_license": license_name,
        "n_adapters": len(adapters),
        "head": {"kind": facts["kind"], "blocks": facts["blocks"], "mode": facts["mode"]},
        "writes_text": _writes_text(folder),
        "labels": facts["labels"],
        "stop": [],
        "versions": _versions(),
    }


_MARKS = {"system": "\ue000s\ue001", "user": "\ue000u\ue001", "assistant": "\ue000a\ue001"}


def turn_parts(tokenizer: Any) -> dict[str, Any] | None:
    """What a template writes before and after each role's text, for servers whose templates are not Jinja.

    Returns:
        `system`, `user`, `assistant`: (before, after); `opening`: what starts the answer; `default_system`: the system
        text that it adds where there is none. None where the template cannot be told in these parts: every part is
        checked by putting conversations together from them.
    """

    from jinja2 import TemplateError

    def render(roles: Sequence[str], *, generation: bool = False) -> str:
        turns = [{"role": role, "content": _MARKS[role]} for role in roles]
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)
        return text

    system, user, assistant = _MARKS.values()
    try:
        chat = render(["system", "user", "assistant", "user"])
        after_user = render(["system", "user"]).rpartition(user)[2]
        after_assistant = render(["system", "user", "assistant"]).rpartition(assistant)[2]
        opening = render(["system", "user"], generation=True).rpartition(user)[2].removeprefix(after_user)
        before_system, rest = chat.split(system)
        between, rest = rest.split(user, 1)
        before_assistant, rest = rest.split(assistant)
        before_user = rest.split(user)[0].removeprefix(after_assistant)
        alone = render(["user"])
    # A template is somebody's program: it may refuse any of these conversations, or fail on one.
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None
    parts: dict[str, Any] = {
        "system": (before_system, between.removesuffix(before_user)),
        "user": (before_user, after_user),
        "assistant": (before_assistant.removeprefix(after_user), after_assistant),
        "opening": opening,
        "default_system": None,
    }
    added = alone.removesuffix(before_user + user + after_user)
    if added.startswith(before_system) and added.endswith(parts["system"][1]) and len(added) > len(before_system):
        parts["default_system"] = added[len(before_system) : len(added) - len(parts["system"][1])]

    def compose(roles: Sequence[str]) -> str:
        return "".join(parts[role][0] + _MARKS[role] + parts[role][1] for role in roles)

    talks = (["system", "user"], ["system", "user", "assistant"], ["system", "user", "assistant", "user", "assistant"])
    if any(render(talk) != compose(talk) for talk in talks):
        return None
    return parts if alone.endswith(compose(["user"])) else None


def main() -> None:
    """Run the export whose folder is named on the command line."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_export(Path(sys.argv[1]))


GgufPrecision = Literal["f32", "f16", "bf16", "q8_0"]

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_ELSEWHERE = (
    "export it as merged, and convert the folder with llama.cpp's own script: python convert_hf_to_gguf.py FOLDER"
)
# How a text is cut before BPE, by the pattern in tokenizer.json; llama.cpp knows each by a name.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    _CONTRACTIONS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + r"\p{N}" + _REST: "qwen2",
}


def check_convertible(config: Any, tokenizer: Any) -> None:
    """Say at once, before any weights are loaded, when a model cannot be written as GGUF.

    Raises:
        UsageError: The architecture or the tokenizer is not one of those that are covered.
    """
    _architecture(config)
    _pretokenizer(tokenizer)
    scaling = config.rope_parameters.get("rope_type", "default")
    if scaling not in {"default", "llama3", "linear"}:
        raise UsageError(f"positions scaled by {scaling!r} are not written as GGUF here; {_ELSEWHERE}")
    if config.model_type == "mistral" and getattr(config, "sliding_window", None):
        raise UsageError(f"attention in a sliding window is not written as GGUF here; {_ELSEWHERE}")


def write_gguf(model: Any, tokenizer: Any, folder: Path, path: Path, *, precision: GgufPrecision, name: str) -> None:
    """Write the file.

    Args:
        model: The merged model, in float32.
        tokenizer: Its tokenizer.
        folder: Where the tokenizer's files lie.
        path: The file to write.
        precision: Of the matrices; vectors stay in float32, as llama.cpp wants them.
        name: What the model is called inside the file.
    """
    gguf = require("gguf", "local", "a GGUF file")
    config = model.config
    check_convertible(config, tokenizer)
    writer = gguf.GGUFWriter(path, _architecture(config))
    writer.add_type("model")
    writer.add_name(name)
    kinds = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[kinds[precision]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_config(writer, config, gguf)
    _add_tokenizer(writer, config, tokenizer, folder, gguf)
    for tensor_name, array in _tensors(model, gguf):
        _add_tensor(writer, tensor_name, array, gguf.GGMLQuantizationType[precision.upper()], gguf)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _architecture(config: Any) -> str:
    named = (config.architectures or [type(config).__name__])[0]
    if named not in _ARCHITECTURES:
        raise UsageError(f"{named} is not written as GGUF here (it covers {', '.join(_ARCHITECTURES)}); {_ELSEWHERE}")
    return _ARCHITECTURES[named]


def _pretokenizer(tokenizer: Any) -> str:
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = described["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    kinds = [step.get("type") for step in steps]
    if described["model"]["type"] == "BPE" and kinds and kinds[-1] == "ByteLevel":
        cuts_itself = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and cuts_itself:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and cuts_itself:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not cuts_itself:
            known = _SPLITS.get(str(steps[0].get("pattern", {}).get("Regex")))
            if known is not None:
                return known
    raise UsageError(
        f"a tokenizer of {described['model']['type']} cut by {kinds} is not written as GGUF here; {_ELSEWHERE}"
    )


def _add_config(writer: Any, config: Any, gguf: Any) -> None:
    n_heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_size)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_vocab_size(config.vocab_size)
    if config.rope_parameters.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def _add_tokenizer(writer: Any, config: Any, tokenizer: Any, folder: Path, gguf: Any) -> None:
    spelled = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for number in range(config.vocab_size):
        if number not in spelled:
            tokens.append(f"[PAD{number}]")
            kinds.append(gguf.TokenType.UNUSED)
            continue
        tokens.append(spelled[number])
        if number not in added:
            kinds.append(gguf.TokenType.NORMAL)
        else:
            kinds.append(gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pretokenizer(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=config.vocab_size)
    # What a template writes is all that stands before a chat: a second opening token would be one that nobody trained.
    special.add_special_token["bos"] = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    special.chat_template = tokenizer.chat_template
    special.add_to_gguf(writer, quiet=True)


def _tensors(model: Any, gguf: Any) -> Iterator[tuple[str, Any]]:
    config = model.config
    architecture = _architecture(config)
    kind = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise UsageError(f"the model's tensor {name} has no place in a GGUF file; {_ELSEWHERE}")
        array = tensor.detach().float().cpu().numpy()
        part = name.split(".")[-2]
        if architecture == "llama" and part in heads:
            # llama.cpp pairs the two halves of each rotary dimension side by side; transformers keeps them apart.
            rows = array.reshape(heads[part], 2, array.shape[0] // heads[part] // 2, *array.shape[1:])
            array = rows.swapaxes(1, 2).reshape(array.shape)
        yield target, array
    if config.rope_parameters.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config)


def _llama3_factors(config: Any) -> Any:
    """By how much each rotary frequency is slowed down, as Llama 3.1 scales them."""
    import numpy as np

    rope = config.rope_parameters
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    trained = rope["original_max_position_embeddings"]
    factors = []
    for index in range(0, size, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (index / size)
        if wavelength < trained / high:
            factors.append(1.0)
        elif wavelength > trained / low:
            factors.append(float(rope["factor"]))
        else:
            share = (trained / wavelength - low) / (high - low)
            factors.append(1 / ((1 - share) / rope["factor"] + share))
    return np.array(factors, dtype=np.float32)


def _add_tensor(writer: Any, name: str, array: Any, wanted: Any, gguf: Any) -> None:
    kinds = gguf.GGMLQuantizationType
    kind = kinds.F32 if array.ndim == 1 else wanted
    block_size = gguf.GGML_QUANT_SIZES[kind][0]
    if array.shape[-1] % block_size:
        kind = kinds.F16  # q8_0 takes rows in blocks of 32
    writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)


if __name__ == "__main__":
    main()
