"""A chat model of a few thousand parameters with random weights and a tokenizer of its own: no download, milliseconds.

`build_toy_model(folder)` makes a model folder; "true", "false", "A" and "B" are one token each, as in the real model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "true false true false A B A B",
    "system user assistant Title: A: B: the reader likes this title or that one",
    "Answer with true or false. Which title does the reader prefer? Be brief.",
]
HIDDEN, LAYERS = 16, 2


def build_toy_model(folder: Path, *, context_tokens: int = 256, seed: int = 0) -> Path:
    """Write config, random weights and tokenizer into a folder, and return it."""
    import torch
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM

    fast: Any = transformers.PreTrainedTokenizerFast
    tokenizer = fast(
        tokenizer_object=_tokenizer(),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context_tokens,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
        # Wide enough that different prompts give clearly different answers.
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_toy_adapter(folder: Path, *, scale: float = 1.0, base: str = "toy") -> Path:
    """A LoRA adapter for the toy model, in PEFT's layout, without importing torch or peft."""
    import numpy as np
    from safetensors.numpy import save_file

    generator = np.random.default_rng(7)
    weights: dict[str, Any] = {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = generator.normal(size=(2, HIDDEN)).astype("float32")
        weights[f"{name}.lora_B.weight"] = (scale * generator.normal(size=(HIDDEN, 2))).astype("float32")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 20 + ["true", "false"] * 20, trainer)
    return tokenizer
