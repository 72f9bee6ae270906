"""How much memory a training run will take, and what would fit where that is too much.

In: a model folder, the rows' lengths, the batch size, the bytes that are free. Out: a `Fit`, or `MemoryShortError` with
the setting that would fit.
What the backward pass needs was counted tensor by tensor on models of the Llama kind (tests/local/test_memory.py counts
again); others differ by some tens of per cent. Measured with SmolLM2-135M in float32, memory of the process without
mapped files: docs/local-host.md has the figures. A head takes the frozen models, one pass over the longest rows, and
the features of all rows, of which choosing by cross-validation makes copies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dspy_finetune.errors import FinetuneError
from dspy_finetune.local.forward import common_length
from dspy_finetune.tasks import MAX_CV_ROWS

RUNTIME_BYTES = 350 * 2**20
"""Python, torch, transformers and TRL, imported: 341 MB seen."""
GAPS = 1.35
"""Of what is counted: gradients on their way, and what the allocator cannot give back. Seen from 1.15 to 1.56."""
ADAPTER_COPIES = 16
"""Bytes of each number of the adapter: itself, its gradient and the optimizer's two averages, in float32."""
HEAD_CHUNK = 1024
"""How many positions are projected onto the vocabulary at a time: 1,024 x 49,152 floats are 200 MB."""
LORA_RANK = 8
"""Of the adapter."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class MemoryShortError(FinetuneError, MemoryError):
    """The run does not fit into the memory that is free."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The numbers of a model that decide what training it takes."""

    n_parameters: int
    hidden: int
    attention: int
    """Heads times their width."""
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    kv: int = 0
    """Width of the keys, and of the values, of one token in one layer; 0: as wide as attention."""

    @classmethod
    def of(cls, folder: Path) -> Sizes:
        """From a model folder's config and the headers of its weights; nothing is loaded."""
        from transformers import AutoConfig  # seconds of import, which the server does without

        config: Any = AutoConfig.from_pretrained(folder).get_text_config()
        hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
        width = getattr(config, "head_dim", None) or hidden // heads
        return cls(
            n_parameters=sum(map(_n_numbers, folder.glob("*.safetensors"))),
            hidden=hidden,
            attention=heads * width,
            intermediate=int(getattr(config, "intermediate_size", None) or 4 * hidden),
            layers=int(config.num_hidden_layers),
            heads=heads,
            vocabulary=int(config.vocab_size),
            kv=int(getattr(config, "num_key_value_heads", None) or heads) * width,
        )


def _n_numbers(path: Path) -> int:
    """How many numbers a safetensors file holds: eight bytes say how long the JSON is that names their shapes."""
    with open(path, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a training file's rows take, each computed once: see `forward.PrefixTree`."""

    shared: int
    """Tokens with which all of them begin."""
    tokens: Sequence[int]
    """Tokens of each row behind those, longest first."""
    labels: Sequence[int]
    """Trained tokens of each row, most first."""

    @classmethod
    def of(cls, rows: Sequence[tuple[Sequence[int], int]]) -> Rows:
        """From (token ids, how many of them are trained) of each row."""
        ids = [list(tokens) for tokens, _ in rows]
        shared = common_length(min(ids), max(ids)) if ids else 0
        return cls(
            shared=shared,
            tokens=sorted((len(one) - shared for one in ids), reverse=True),
            labels=sorted((n for _, n in rows), reverse=True),
        )

    def largest(self, batch_size: int) -> tuple[int, int]:
        """(distinct tokens, trained tokens) of the largest batch that can come up, or a little more."""
        return self.shared + sum(self.tokens[:batch_size]), sum(self.labels[:batch_size])


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a run computes."""

    dtype: str = "float32"
    """What is multiplied in."""
    is_checkpointed: bool = False
    """Whether the layers' inner values are computed again in the backward pass instead of kept."""
    is_four_bit: bool = False
    """Whether the base's weights stand in four bits, which takes a GPU and bitsandbytes."""
    is_cast: bool = False
    """Whether all of the base is in `dtype`; else its products' weights alone are."""


def kept_bytes(sizes: Sizes, n_tokens: int, n_labels: int, setup: Setup) -> int:
    """What the forward pass leaves for the backward pass."""
    h, a, i, width = sizes.hidden, sizes.attention, sizes.intermediate, BYTES[setup.dtype]
    # Of each token in each layer: what the norms and the sums take stays in float32, what the products take does not.
    layer = 4 * (6 * h + i + 2 + sizes.heads) + width * (6 * h + 4 * a + 4 * i + 7 * LORA_RANK)
    inputs = 4 * h
    per_token = sizes.layers * inputs + layer if setup.is_checkpointed else sizes.layers * layer
    mask = width * n_tokens**2
    return n_tokens * (per_token + 2 * inputs) + mask + 4 * n_labels * sizes.vocabulary


def needed_bytes(sizes: Sizes, n_tokens: int, n_labels: int, setup: Setup) -> int:
    """The peak of a run whose largest batch has so many distinct and so many trained tokens."""
    # Logits, their gradient and the reference's, of one chunk at a time.
    passing = 12 * min(n_labels, HEAD_CHUNK) * sizes.vocabulary
    kept = GAPS * kept_bytes(sizes, n_tokens, n_labels, setup)
    running = weight_bytes(sizes, setup) + adapter_bytes(sizes) + passing + kept
    loading = 0 if setup.is_cast or setup.is_four_bit else BYTES["float32"] * sizes.n_parameters
    return round(RUNTIME_BYTES + max(running, loading))


# Heads


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the recipe "head" reads and fits."""

    n_rows: int
    """Rows of the training file."""
    shared: int
    """Tokens with which all prompts begin."""
    lengths: Sequence[int]
    """Tokens of each prompt behind those, as far as they are read."""
    layers: Sequence[int]
    """After how many layers states are kept."""
    n_vectors: int
    """Averages that are kept for each row and layer, over all ways to read a prompt."""
    n_widest: int
    """Averages of a row in the widest of these ways."""
    encoder: Sizes | None = None
    """The sentence encoder that reads beside the base, or in its place."""
    n_words: int = 0
    """Words that are features, too."""

    def first(self, n_rows: int) -> Reading:
        """With fewer rows."""
        share = n_rows / max(1, self.n_rows)
        return replace(self, n_rows=n_rows, lengths=self.lengths[: max(1, math.ceil(len(self.lengths) * share))])


FIT_FOLDS = 5
"""Of cross-validation, at most."""
READ_TOKENS = 2048
"""New tokens that are read in one pass."""
READ_PLACES = 16_384
"""Keys and values in one pass: a rubric of 1,000 tokens before titles of ten was 200 copies, 8 GB of SmolLM2's."""


def reading_bytes(sizes: Sizes | None, reading: Reading, *, width: int = 4) -> int:
    """The peak of fitting a head: while prompts are read, or candidates are fitted.

    Models are loaded in float32; what is given back when they are cast stays with the process, as was seen.

    Args:
        sizes: The base's; None where the sentence encoder reads alone.
        reading: The rows.
        width: Bytes of the base's numbers while it reads.
    """
    loaded = sum(4 * one.n_parameters for one in (sizes, reading.encoder) if one)
    wide = [one.hidden * n for one, n in ((sizes, len(reading.layers)), (reading.encoder, 1)) if one]
    features = 4 * reading.n_rows * (reading.n_vectors * sum(wide) + reading.n_words)
    reads = GAPS * _pass_bytes(sizes, reading, width) if sizes else 0
    fits = _fit_bytes(reading.n_rows, reading.n_widest * sum(wide) + reading.n_words)
    return round(RUNTIME_BYTES + loaded + features + max(reads, fits))


def _pass_bytes(sizes: Sizes, reading: Reading, width: int) -> float:
    """Of the largest pass: states of all layers that are run, one layer's inner values, keys, values and the mask."""
    longest = max(reading.lengths, default=1)
    tokens = max(longest, min(READ_TOKENS, sum(reading.lengths)))
    places = max(reading.shared + longest, min(READ_PLACES, (reading.shared + longest) * len(reading.lengths)))
    inner = 4 * sizes.hidden + 3 * sizes.attention + 3 * sizes.intermediate
    deepest = max(reading.layers)
    states = tokens * (width * (deepest + 1) * sizes.hidden + 4 * sizes.hidden)
    # The rubric's own, and the copy that each row of a pass has.
    cache = 2 * width * deepest * (sizes.kv or sizes.attention) * (places + reading.shared)
    mask = 4 * longest * places
    return states + max(tokens, reading.shared) * width * inner + cache + mask


def _fit_bytes(n_rows: int, width: int) -> float:
    """Of choosing and fitting in double precision: standardised features, and the folds' rows in their own space."""
    chosen = min(n_rows, MAX_CV_ROWS)
    standardising = 24 * n_rows * width

    def rotated(rows: int, folds: int) -> float:
        if rows < width:  # as many coordinates as rows
            return 8 * (folds * rows * rows + 4 * rows * rows + 2 * rows * width)
        return 8 * ((folds + 1) * rows * width + width * width)

    return max(standardising, 8 * chosen * width + rotated(chosen, FIT_FOLDS), 8 * n_rows * width + rotated(n_rows, 1))


def check_reading(sizes: Sizes | None, reading: Reading, *, free: int | None, width: int = 4) -> str:
    """The estimate in words.

    Raises:
        MemoryShortError: It does not fit; the message says what would.
    """
    needed = reading_bytes(sizes, reading, width=width)
    if free is None:
        return f"Estimated memory: {megabytes(needed)}"
    if needed <= free:
        return f"Estimated memory: {megabytes(needed)} of {megabytes(free)} that are free"
    told = f"fitting a head needs about {megabytes(needed)} of memory, and {megabytes(free)} are free"
    fitting = next(
        (
            n_rows
            for n_rows in range(reading.n_rows, 9, -max(1, reading.n_rows // 64))
            if reading_bytes(sizes, reading.first(n_rows), width=width) <= free
        ),
        None,
    )
    if fitting:
        raise MemoryShortError(f"{told}; {fitting:,} of the {reading.n_rows:,} rows would fit")
    short = replace(reading.first(10), shared=min(reading.shared, 64), lengths=[min(64, max(reading.lengths))])
    if reading_bytes(sizes, short, width=width) <= free:
        longest = reading.shared + max(reading.lengths)
        raise MemoryShortError(f"{told}; shorter prompts would fit: the longest has {longest:,} tokens")
    raise MemoryShortError(f"{told}; not even ten short rows would fit: free some memory, or take a smaller base model")


def joint_bytes(sizes: Sizes, reading: Reading, *, batch_size: int, dtype: str = "float32") -> int:
    """The peak of training an adapter under a head, beside the models that fitted the head.

    Rows of a step stand side by side, each as long as the longest: no beginning is shared. Weights are in float32, and
    `dtype` is what is multiplied in. Seen with SmolLM2-135M, 16 rows of 114 tokens in bfloat16: 4,232 MB.
    """
    longest = reading.shared + max(reading.lengths)
    n_tokens = batch_size * longest
    read = replace(sizes, layers=max(reading.layers))
    kept = kept_bytes(read, n_tokens, 0, Setup(dtype=dtype)) + BYTES[dtype] * (batch_size * longest**2 - n_tokens**2)
    states = BYTES["float32"] * n_tokens * sizes.hidden * (max(reading.layers) + 1)
    reader = 4 * sizes.n_parameters + (4 * reading.encoder.n_parameters if reading.encoder else 0)
    features = 8 * reading.n_rows * reading.n_vectors * sizes.hidden * len(reading.layers)
    running = weight_bytes(sizes, Setup()) + adapter_bytes(sizes) + GAPS * (kept + states)
    return round(RUNTIME_BYTES + reader + features + running)


def adapter_bytes(sizes: Sizes) -> int:
    """The adapter with its gradients and the optimizer's averages."""
    linear = 4 * (sizes.hidden + sizes.attention) + 3 * (sizes.hidden + sizes.intermediate)
    return ADAPTER_COPIES * LORA_RANK * sizes.layers * linear


def weight_bytes(sizes: Sizes, setup: Setup) -> float:
    """What the base's weights take while it trains."""
    table = sizes.vocabulary * sizes.hidden
    if setup.is_four_bit:
        # Half a byte and the blocks' scales; embeddings and the vocabulary's projection stay in two bytes.
        return 0.55 * (sizes.n_parameters - table) + 2 * table
    if setup.is_cast or setup.dtype == "float32":
        return BYTES[setup.dtype] * sizes.n_parameters
    # The embeddings stay in float32, and where they are the vocabulary's projection, too, a copy is made in each step.
    return BYTES[setup.dtype] * (sizes.n_parameters + 2 * table)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A run that fits."""

    setup: Setup
    needed: int
    free: int | None

    @property
    def found(self) -> str:
        """The estimate in words."""
        free = "" if self.free is None else f" of {megabytes(self.free)} that are free"
        how = "; the layers' inner values are computed again instead of kept" if self.setup.is_checkpointed else ""
        return f"Estimated memory: {megabytes(self.needed)}{free}{how}"


def fit(sizes: Sizes, rows: Rows, *, batch_size: int, setups: Sequence[Setup], free: int | None) -> Fit:
    """The first of these setups that fits.

    Args:
        sizes: The model's.
        rows: The training file's.
        batch_size: Rows of a step on this device.
        setups: From the fastest to the most frugal.
        free: Bytes that the run may take; None: unknown, so the first setup is taken.

    Raises:
        MemoryShortError: None of them fits; the message says what would.
    """
    for setup in setups:
        needed = needed_bytes(sizes, *rows.largest(batch_size), setup)
        if free is None or needed <= free:
            return Fit(setup=setup, needed=needed, free=free)
    frugal = setups[-1]
    told = f"training needs about {megabytes(needed)} of memory, and {megabytes(free or 0)} are free"
    raise MemoryShortError(f"{told}; {_remedy(sizes, rows, batch_size, frugal, free or 0)}")


def _remedy(sizes: Sizes, rows: Rows, batch_size: int, setup: Setup, free: int) -> str:
    for smaller in range(min(batch_size, len(rows.tokens)) - 1, 0, -1):
        needed = needed_bytes(sizes, *rows.largest(smaller), setup)
        if needed <= free:
            return f"batch_size {smaller} would take {megabytes(needed)}"
    longest, n_labels = rows.largest(1)
    for n_tokens in range(longest, 15, -max(1, longest // 64)):
        if needed_bytes(sizes, n_tokens, min(n_labels, n_tokens), setup) <= free:
            return f"rows of at most {n_tokens} tokens at batch_size 1 would fit (the longest has {longest})"
    return "not even one short row would fit: free some memory, or take a smaller base model"


def megabytes(n_bytes: float) -> str:
    """A size in words.

    Examples:
        >>> megabytes(1_796_000_000), megabytes(12_000_000_000)
        ('1,796 MB', '12.0 GB')
    """
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e10 else f"{n_bytes / 1e6:,.0f} MB"


def may_take(limit: int | None, free: int | None) -> int | None:
    """What a run may take: what is free, and not more than was set by hand."""
    return min((one for one in (limit, free) if one is not None), default=None)
