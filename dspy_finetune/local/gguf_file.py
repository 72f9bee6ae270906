"""A model in memory -> one GGUF file, as llama.cpp and Ollama read it; written with the `gguf` package.

In: a merged causal model of transformers and its tokenizer. Out: a file with weights, tokenizer and chat template.
Architectures: Llama (SmolLM2 and Mistral among them), Qwen2 and Qwen3, with byte-level BPE tokenizers; numbers in 32 or
16 bits, or 8 (q8_0). Any other model is refused by name: llama.cpp's own converter reads the merged export.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from dspy_finetune._optional import require
from dspy_finetune.errors import UsageError

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
