"""The prefix tree gives what separate rows give: log-probabilities, losses and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from dspy_finetune.local.forward import MAX_PADDING, PrefixTree, forest_of
from dspy_finetune.local.training import score_rows

ROWS = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 10, 11], [5, 6, 12], [13, 6, 7], [5, 6, 7, 8, 9]]
APART = [[row, *range(5, 12 + row % 2)] for row in range(5, 9)]


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=8))
def test_each_path_spells_its_row_and_no_prefix_stands_twice(rows: list[list[int]]) -> None:
    tree = PrefixTree.of(rows)
    for row, path in zip(rows, tree.paths, strict=True):
        assert [tree.tokens[node] for node in path] == row
        assert [tree.depths[node] for node in path] == list(range(len(row)))
    prefixes = {tuple(row[: end + 1]) for row in rows for end in range(len(row))}
    assert len(tree.tokens) == len(prefixes)
    mask = tree.attention_mask()[0, 0]
    for path in tree.paths:
        for place, node in enumerate(path):
            assert mask[node].nonzero().flatten().tolist() == sorted(path[: place + 1])


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=12))
def test_each_row_stands_in_one_tree_and_little_is_padding(rows: list[list[int]]) -> None:
    forest = forest_of(rows, hidden=1)
    assert sorted(number for group, _ in forest for number in group) == list(range(len(rows)))
    for group, tree in forest:
        assert tree == PrefixTree.of([rows[number] for number in group])
    most = max(len(tree.tokens) for _, tree in forest)
    assert len(forest) * most <= MAX_PADDING * len(PrefixTree.of(rows).tokens) or len(forest) == 1


def test_rows_that_share_little_stand_side_by_side_and_those_that_share_much_in_one_tree() -> None:
    long = [[row, *range(300)] for row in range(8)]
    assert [group for group, _ in forest_of(long, hidden=64)] == [[row] for row in range(8)]
    shared = [[*range(300), row] for row in range(8)]
    assert len(forest_of(shared, hidden=64)) == 1
    # A preferred and a rejected answer stay with their question.
    pairs = [[row // 2, *range(300), row] for row in range(8)]
    assert [group for group, _ in forest_of(pairs, hidden=64)] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def padded(rows: list[list[int]], n_labels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for place, row in enumerate(rows):
        input_ids[place, : len(row)] = torch.tensor(row)
        attention_mask[place, : len(row)] = 1
        labels[place, len(row) - n_labels : len(row)] = torch.tensor(row[-n_labels:])
    return input_ids, attention_mask, labels


@pytest.mark.parametrize(("rows", "n_trees"), [(ROWS, 1), (APART, 4)])
def test_scores_and_gradients_equal_those_of_separate_rows(
    toy_model: Path, rows: list[list[int]], n_trees: int
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float64)
    batch = padded(rows, n_labels=2)
    assert len(forest_of(rows, 16)) == n_trees
    scores = score_rows(model, *batch)
    scores.loss().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    losses = []
    for place, row in enumerate(rows):
        logits = model(input_ids=torch.tensor([row])).logits[0]
        log_probs = F.log_softmax(logits, -1)
        for position in range(len(row) - 2, len(row)):
            expected = log_probs[position - 1, row[position]]
            assert scores.log_probs[place, position - 1].item() == pytest.approx(expected.item(), abs=1e-6)
            assert bool(scores.is_top1[place, position - 1]) == (int(logits[position - 1].argmax()) == row[position])
            losses.append(-expected)
    torch.stack(losses).mean().backward()
    for found, parameter in zip(gradients, model.parameters(), strict=True):
        assert torch.allclose(found, parameter.grad, atol=1e-6)


def test_no_label_is_a_loss_of_zero(toy_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    input_ids, attention_mask, labels = padded(ROWS, n_labels=1)
    scores = score_rows(model, input_ids, attention_mask, labels.fill_(-100))
    assert (scores.loss().item(), scores.accuracy()) == (0.0, 0.0)
