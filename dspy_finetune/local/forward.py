"""The passes through the network: many prompts at once, each shared beginning computed once.

In: token rows. Out: the logits after each row, and keys and values to go on from.
Rows that begin alike are merged into a prefix tree whose nodes stand in one row of the batch, so that
no token is padding and none is computed twice; what an earlier batch began with comes from a cache of keys and values.
Not covered: models whose attention is not plain causal attention (sliding windows, recurrent layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

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


@dataclass(frozen=True, kw_only=True)
class PrefixTree:
    """Rows merged by their common prefixes."""

    tokens: list[int]
    """The token of each node; the nodes below one follow it at once. N nodes."""
    depths: list[int]
    """The position of each node in its rows, from 0."""
    paths: list[list[int]]
    """For each row the node at each of its positions."""
    ends: list[int]
    """For each node the number behind the last one that stands below it."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> PrefixTree:
        """Merge the rows. The rows must not be padded."""
        tokens: list[int] = []
        depths: list[int] = []
        ends: list[int] = []
        paths: list[list[int]] = [[] for _ in rows]
        before: Sequence[int] = ()
        path: list[int] = []
        for number in sorted(range(len(rows)), key=lambda number: list(rows[number])):
            row = rows[number]
            shared = common_length(before, row)
            path = [*path[:shared], *range(len(tokens), len(tokens) + len(row) - shared)]
            tokens += row[shared:]
            depths += range(shared, len(row))
            ends += [0] * (len(row) - shared)
            for node in path:
                ends[node] = len(tokens)
            before, paths[number] = row, path
        return cls(tokens=tokens, depths=depths, paths=paths, ends=ends)

    def attention_mask(self, device: Any = None) -> torch.Tensor:
        """(1, 1, N, N) booleans: may node i look at node j?"""
        nodes = torch.arange(len(self.tokens), device=device)
        ends = torch.tensor(self.ends, device=device)
        return ((nodes[None, :] <= nodes[:, None]) & (nodes[:, None] < ends[None, :]))[None, None]


ATTENTION_EVEN = 6
"""Looking at so many times `hidden_size` nodes takes a token as much work as a layer's products, for models of the
Llama kind."""
MAX_PADDING = 1.1
"""Nodes and padding, over nodes alone: memory was estimated for the nodes."""


def forest_of(rows: Sequence[Sequence[int]], hidden: int) -> list[tuple[list[int], PrefixTree]]:
    """(which rows, their tree) of each tree, so that reading them side by side is the least work.

    In one tree each node is measured against all others, of which most are in other rows: for long rows that share
    little that is more work than the layers' products. Trees side by side are padded to the largest.
    """

    def work(trees: Sequence[tuple[list[int], PrefixTree]]) -> float:
        most = max(len(tree.tokens) for _, tree in trees)
        return len(trees) * most * (ATTENTION_EVEN * hidden + most)

    whole = PrefixTree.of(rows)
    n_nodes = len(whole.tokens)
    best = [(list(range(len(rows))), whole)]
    order = sorted(range(len(rows)), key=lambda number: list(rows[number]))
    longest, most = max(map(len, rows)), n_nodes
    while most > longest:
        most = max(longest, most // 2)
        groups: list[list[int]] = []
        taken, before = most, rows[order[0]]
        for number in order:
            more = len(rows[number]) - (common_length(before, rows[number]) if groups else 0)
            if taken + more > most:
                groups.append([])
                taken, more = 0, len(rows[number])
            groups[-1].append(number)
            taken, before = taken + more, rows[number]
        trees = [(group, PrefixTree.of([rows[number] for number in group])) for group in groups]
        n_places = len(trees) * max(len(tree.tokens) for _, tree in trees)
        if n_places <= MAX_PADDING * n_nodes and work(trees) < work(best):
            best = trees
    return best


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

    def __init__(
        self,
        model: Any,
        logits: torch.Tensor,
        layers: Layers,
        places: list[list[int]],
        rows: Sequence[Sequence[int]],
    ) -> None:
        self.logits = logits  # (B, V)
        self._model = model
        self._layers = layers
        self._places = places  # for each row, where its tokens stand along the length of `layers`
        self._rows = rows

    def path(self, row: int, length: int) -> Layers:
        """Keys and values of the first tokens of one row."""
        index = torch.tensor(self._places[row][:length], device=self.logits.device)
        return [(keys.index_select(2, index), values.index_select(2, index)) for keys, values in self._layers]

    def decoder(self, rows: Sequence[int]) -> Decoder:
        """Go on with these rows, token by token."""
        tokens = [list(self._rows[row]) for row in rows]
        return Decoder(self._model, self._layers, [list(self._places[row]) for row in rows], tokens)


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
    mask = torch.cat(
        [torch.ones(1, 1, n_nodes, shared, dtype=torch.bool, device=device), tree.attention_mask(device)], dim=-1
    )
    past = _cache_of([(keys[:, :, :shared], values[:, :, :shared]) for keys, values in kept] if kept else [])
    ends = torch.tensor([path[-1] for path in tree.paths], device=device)
    output = model(
        input_ids=torch.tensor([tree.tokens], device=device),
        position_ids=torch.tensor([tree.depths], device=device) + shared,
        attention_mask=mask,
        past_key_values=past,
        use_cache=True,
        logits_to_keep=ends,
    )
    layers = [(layer.keys, layer.values) for layer in past.layers]
    places = [[*range(shared), *(shared + node for node in path)] for path in tree.paths]
    filled = Prefilled(model, output.logits[0].float(), layers, places, rows)
    # What the rows share is worth keeping for the next batch; of a single row nobody knows, so all of it.
    trunk = min(common_length(rows[0], row) for row in rows)
    if trunk >= MIN_SHARED and trunk - shared > shared:
        cache.put(rows[0][:trunk], filled.path(0, trunk))
    return filled


class Decoder:
    """Token-by-token passes over rows that stand in one prefix tree.

    A step appends one node for each row; a node sees its own row alone. A shared beginning of 800 tokens is held once,
    not once for each row, and rows that come later join the tree: one pass reads the weights for all of them, and
    reading the weights is what a step on a CPU costs.
    """

    def __init__(self, model: Any, layers: Layers, places: list[list[int]], tokens: list[list[int]]) -> None:
        self._model = model
        self._places = places  # for each row, where its tokens stand along the length of the cache
        self._tokens = tokens  # for each row, what stands there
        self._set(layers)

    def _set(self, layers: Layers) -> None:
        self._past = _cache_of(layers)
        self._mask = torch.zeros(len(self._places), layers[0][0].shape[2], dtype=torch.bool)  # (B, N)
        for row, places in enumerate(self._places):
            self._mask[row, places] = True

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each row and return the logits (B, V) after it."""
        device, n_rows, n_nodes = self._model.device, len(tokens), self._mask.shape[1]
        self._mask = torch.cat([self._mask, torch.eye(n_rows, dtype=torch.bool)], dim=1)
        output = self._model(
            input_ids=torch.tensor([list(tokens)], device=device),
            position_ids=torch.tensor([[len(places) for places in self._places]], device=device),
            attention_mask=self._mask[None, None].to(device),
            past_key_values=self._past,
            use_cache=True,
        )
        for row, token in enumerate(tokens):
            self._places[row].append(n_nodes + row)
            self._tokens[row].append(token)
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone; what only the others needed is dropped once it is more than half."""
        self._places = [self._places[row] for row in rows]
        self._tokens = [self._tokens[row] for row in rows]
        self._mask = self._mask[torch.tensor(list(rows))]
        if 2 * int(self._mask.any(dim=0).sum()) < self._mask.shape[1]:
            self._compact()

    @torch.inference_mode()
    def join(self, other: Decoder) -> None:
        """Take over the rows of another decoder of the same model, behind one's own."""
        self._compact()
        other._compact()
        n_nodes = self._mask.shape[1]
        trunk_tokens, trunk_places = self._tokens[0], self._places[0]
        taken: dict[int, int] = {}  # a node of the other tree -> its node in this one
        for tokens, places in zip(other._tokens, other._places, strict=True):
            for depth in range(common_length(trunk_tokens, tokens)):
                taken[places[depth]] = trunk_places[depth]
        fresh = [node for node in range(other._mask.shape[1]) if node not in taken]
        taken.update({node: n_nodes + number for number, node in enumerate(fresh)})
        # Without a type an empty list (two equal prompts) gives floats, which index nothing.
        index = torch.tensor(fresh, dtype=torch.long, device=self._model.device)
        layers = [
            (
                torch.cat([own.keys, more.keys.index_select(2, index)], dim=2),
                torch.cat([own.values, more.values.index_select(2, index)], dim=2),
            )
            for own, more in zip(self._past.layers, other._past.layers, strict=True)
        ]
        self._places += [[taken[node] for node in places] for places in other._places]
        self._tokens += other._tokens
        self._set(layers)

    @torch.inference_mode()
    def _compact(self) -> None:
        used = self._mask.any(dim=0).nonzero().flatten().tolist()
        if len(used) == self._mask.shape[1]:
            return
        renumbered = {node: number for number, node in enumerate(used)}
        self._places = [[renumbered[node] for node in places] for places in self._places]
        index = torch.tensor(used, device=self._model.device)
        self._set(
            [(layer.keys.index_select(2, index), layer.values.index_select(2, index)) for layer in self._past.layers]
        )


def _cache_of(layers: Layers) -> Any:
    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache
