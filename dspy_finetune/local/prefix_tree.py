"""One forward pass over rows that begin alike: every shared prefix is computed once.

In: a batch of token rows of which many begin with the same tokens: the same system prompt and rubric in each example,
the same question before a chosen and a rejected answer. Out: the log-probability of each labelled token, equal to what
separate rows would give, forward and backward.
Not covered: models whose attention is not plain causal attention (sliding windows, recurrent layers).

The rows are merged into a prefix tree. A node is a token together with all tokens before it, so its hidden state is the
same in each row that passes through it. The tree's nodes stand in one row; node i attends to its ancestors alone, and
its position is its depth. On a processor without an accelerator the cost of a step is its number of tokens: eight
titles under a rubric of 80 tokens are 330 nodes instead of 980 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

HEAD_CHUNK = 1024
"""How many positions are projected onto the vocabulary at a time: 1,024 x 49,152 floats are 200 MB."""


@dataclass(frozen=True, kw_only=True)
class PrefixTree:
    """Rows merged by their common prefixes."""

    tokens: list[int]
    """The token of each node, parents before children. N nodes."""
    depths: list[int]
    """The position of each node in its rows, from 0."""
    paths: list[list[int]]
    """For each row the node at each of its positions."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> PrefixTree:
        """Merge the rows. The rows must not be padded."""
        tokens: list[int] = []
        depths: list[int] = []
        children: dict[tuple[int, int], int] = {}
        paths: list[list[int]] = []
        for row in rows:
            parent, path = -1, []
            for depth, token in enumerate(row):
                node = children.get((parent, token))
                if node is None:
                    node = children[parent, token] = len(tokens)
                    tokens.append(token)
                    depths.append(depth)
                path.append(node)
                parent = node
            paths.append(path)
        return cls(tokens=tokens, depths=depths, paths=paths)

    def attention_mask(self) -> torch.Tensor:
        """(1, 1, N, N) booleans: may node i look at node j?"""
        n_nodes = len(self.tokens)
        mask = torch.zeros(n_nodes, n_nodes, dtype=torch.bool)
        for path in self.paths:
            nodes = torch.tensor(path)
            mask[nodes[:, None], nodes[None, :]] |= torch.ones(len(path), len(path), dtype=torch.bool).tril()
        return mask[None, None]


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """What a batch's labelled tokens got; every field is (B, L - 1), and zero where the label is -100."""

    log_probs: torch.Tensor
    """Log-probability of each next-token label."""
    is_top1: torch.Tensor
    """Whether the label is the most likely next token."""
    label_mask: torch.Tensor
    """Whether there is a label."""

    def loss(self) -> torch.Tensor:
        """Mean negative log-likelihood over the labels; 0 where there is none."""
        return -self.log_probs.sum() / self.label_mask.sum().clamp(min=1)

    def accuracy(self) -> float:
        """Share of labels that are the most likely token, in [0, 1]; 0 where there is none."""
        return float(self.is_top1.sum() / self.label_mask.sum().clamp(min=1))


def score_rows(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> TokenScores:
    """Score the labelled tokens of a padded batch by one pass over its prefix tree.

    Args:
        model: A causal language model of transformers, not wrapped by PEFT (adapters inside its layers are fine).
        input_ids: (B, L) tokens, padded on the right.
        attention_mask: (B, L), 1 where there is a token.
        labels: (B, L), -100 where nothing is scored.
    """
    lengths = attention_mask.sum(dim=1).tolist()
    tree = PrefixTree.of([row[:length] for row, length in zip(input_ids.tolist(), lengths, strict=True)])
    device = input_ids.device
    backbone = model.base_model(
        input_ids=torch.tensor([tree.tokens], device=device),
        position_ids=torch.tensor([tree.depths], device=device),
        attention_mask=tree.attention_mask().to(device),
        use_cache=False,
    )
    targets = labels[:, 1:]  # (B, L - 1): the token at position t is predicted from the hidden state at t - 1
    label_mask = targets != -100
    where = label_mask.nonzero().tolist()
    nodes = torch.tensor([tree.paths[row][position] for row, position in where], dtype=torch.long, device=device)
    hidden = backbone.last_hidden_state[0][nodes]  # (M, D), M labels
    wanted = targets[label_mask]  # (M,), in the same row-major order as `where`
    # Only labelled positions meet the vocabulary: its 49,152 rows are a fifth of the small model's work.
    head = model.get_output_embeddings()
    log_probs, tops = [], []
    for start in range(0, max(len(where), 1), HEAD_CHUNK):
        logits = head(hidden[start : start + HEAD_CHUNK]).float()  # (m, V)
        chosen = wanted[start : start + HEAD_CHUNK]
        log_probs.append(-F.cross_entropy(logits, chosen, reduction="none"))
        tops.append(logits.detach().argmax(-1) == chosen)

    def spread(parts: list[torch.Tensor]) -> torch.Tensor:
        values = torch.cat(parts)
        return values.new_zeros(label_mask.shape).masked_scatter(label_mask, values)

    return TokenScores(log_probs=spread(log_probs), is_top1=spread(tops), label_mask=label_mask)
