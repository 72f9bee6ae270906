"""The passes through the network: many prompts at once, each shared beginning computed once.

In: token rows. Out: the logits after each row, and keys and values to go on from.
Rows that begin alike are merged into a prefix tree (prefix_tree.py) whose nodes stand in one row of the batch, so that
no token is padding and none is computed twice; what an earlier batch began with comes from a cache of keys and values.
Not covered: models whose attention is not plain causal attention (sliding windows, recurrent layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from dspy_finetune.local.prefix_tree import PrefixTree

MIN_SHARED = 16
"""A cached beginning shorter than this is not worth the bookkeeping."""

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (batch, heads, length, width)."""


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two rows share at their beginning.

    Examples:
        >>> common_length([1, 2, 3], [1, 2, 4, 5])
        2
    """
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


class PrefixCache:
    """Keys and values of recent beginnings, least recently used out first."""

    def __init__(self, *, max_bytes: int = 256 * 2**20) -> None:
        self.max_bytes = max_bytes
        self.entries: list[tuple[tuple[int, ...], Layers]] = []  # most recently used last

    def longest(self, row: Sequence[int]) -> tuple[int, Layers | None]:
        """The longest cached beginning of a row: its length, and the keys and values that begin with it."""
        best, found = 0, -1
        for index, (tokens, _) in enumerate(self.entries):
            length = common_length(tokens, row)
            if length > best:
                best, found = length, index
        if best < MIN_SHARED:
            return 0, None
        self.entries.append(self.entries.pop(found))
        return best, self.entries[-1][1]

    def put(self, tokens: Sequence[int], layers: Layers) -> None:
        """Keep a beginning; entries that it contains go."""
        new = tuple(tokens)
        self.entries = [entry for entry in self.entries if new[: len(entry[0])] != entry[0]]
        self.entries.append((new, layers))
        while len(self.entries) > 1 and sum(_size(layers) for _, layers in self.entries) > self.max_bytes:
            self.entries.pop(0)


def _size(layers: Layers) -> int:
    return sum(tensor.nbytes for pair in layers for tensor in pair)


class Prefilled:
    """Rows whose prompts have been read: logits for their next tokens, and what is needed to go on."""

    def __init__(self, model: Any, logits: torch.Tensor, layers: Layers, places: list[list[int]]) -> None:
        self.logits = logits  # (B, V)
        self._model = model
        self._layers = layers
        self._places = places  # for each row, where its tokens stand along the length of `layers`

    def path(self, row: int, length: int) -> Layers:
        """Keys and values of the first tokens of one row."""
        index = torch.tensor(self._places[row][:length], device=self.logits.device)
        return [(keys.index_select(2, index), values.index_select(2, index)) for keys, values in self._layers]

    def decoder(self, rows: Sequence[int]) -> Decoder:
        """Go on with these rows, token by token."""
        return Decoder(self._model, self._layers, [self._places[row] for row in rows])


@torch.inference_mode()
def prefill(model: Any, rows: Sequence[Sequence[int]], cache: PrefixCache) -> Prefilled:
    """Read the prompts of all rows in one pass."""
    shared, kept = cache.longest(rows[0])
    shared = min(shared, *(common_length(rows[0], row) for row in rows), *(len(row) - 1 for row in rows))
    if shared < MIN_SHARED or kept is None:
        shared, kept = 0, None
    tree = PrefixTree.of([row[shared:] for row in rows])
    n_nodes = len(tree.tokens)
    device = model.device
    mask = torch.cat([torch.ones(1, 1, n_nodes, shared, dtype=torch.bool), tree.attention_mask()], dim=-1)
    past = _cache_of([(keys[:, :, :shared], values[:, :, :shared]) for keys, values in kept] if kept else [])
    ends = torch.tensor([path[-1] for path in tree.paths], device=device)
    output = model(
        input_ids=torch.tensor([tree.tokens], device=device),
        position_ids=torch.tensor([tree.depths], device=device) + shared,
        attention_mask=mask.to(device),
        past_key_values=past,
        use_cache=True,
        logits_to_keep=ends,
    )
    layers = [(layer.keys, layer.values) for layer in past.layers]
    places = [[*range(shared), *(shared + node for node in path)] for path in tree.paths]
    filled = Prefilled(model, output.logits[0].float(), layers, places)
    # What the rows share is worth keeping for the next batch; of a single row nobody knows, so all of it.
    trunk = min(common_length(rows[0], row) for row in rows)
    if trunk >= MIN_SHARED and trunk - shared > shared:
        cache.put(rows[0][:trunk], filled.path(0, trunk))
    return filled


class Decoder:
    """Token-by-token passes over rows that were prefilled together."""

    def __init__(self, model: Any, layers: Layers, places: list[list[int]]) -> None:
        self._model = model
        width = max(map(len, places))
        device = model.device
        # Rows are padded on the left, so that all of them grow at the same end.
        index = torch.tensor([[0] * (width - len(row)) + row for row in places], device=device)  # (B, W)
        mask = [[False] * (width - len(row)) + [True] * len(row) for row in places]
        self._mask = torch.tensor(mask, device=device)
        self._positions = torch.tensor([[len(row)] for row in places], device=device)
        gathered = [(keys[0][:, index].transpose(0, 1), values[0][:, index].transpose(0, 1)) for keys, values in layers]
        self._past = _cache_of(gathered)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each row and return the logits (B, V) after it."""
        device = self._mask.device
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        output = self._model(
            input_ids=torch.tensor([[token] for token in tokens], device=device),
            position_ids=self._positions,
            attention_mask=self._mask[:, None, None, :],
            past_key_values=self._past,
            use_cache=True,
            logits_to_keep=1,
        )
        self._positions = self._positions + 1
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        index = torch.tensor(rows, device=self._mask.device)
        self._mask, self._positions = self._mask[index], self._positions[index]
        self._past = _cache_of([(layer.keys[index], layer.values[index]) for layer in self._past.layers])


def _cache_of(layers: Layers) -> Any:
    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache
