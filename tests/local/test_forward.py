"""Growing answers in one tree gives what each row alone gives, whoever joins or leaves on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dspy_finetune.local.forward import Decoder, PrefixCache, prefill

TRUNK = [3 + n % 40 for n in range(30)]
FIRST = [[*TRUNK, 50, 51], [*TRUNK, 52], [*TRUNK, 50, 53, 54]]
LATER = [[*TRUNK, 50, 51, 55], [60, 61, 62]]


@pytest.fixture
def model(toy_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).eval()


def alone(model: Any, row: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([row])).logits[0, -1]
    return logits


def grow(model: Any, decoder: Decoder, rows: list[list[int]], tokens: list[int]) -> None:
    """One step; each row's logits are those of a plain pass over the whole row."""
    logits = decoder.step(tokens)
    for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        row.append(token)
        assert torch.allclose(logits[place], alone(model, row), atol=1e-4)


def test_rows_may_join_and_leave_a_growing_tree(model: Any) -> None:
    cache = PrefixCache()
    rows = [list(row) for row in FIRST]
    decoder = prefill(model, rows, cache).decoder([0, 1, 2])
    grow(model, decoder, rows, [5, 6, 7])
    more = [list(row) for row in LATER]
    decoder.join(prefill(model, more[:1], cache).decoder([0]))
    decoder.join(prefill(model, more[1:], cache).decoder([0]))
    rows += more
    grow(model, decoder, rows, [8, 9, 10, 11, 12])
    for going in ([0, 2, 3, 4], [1, 3], [0]):
        decoder.keep(going)
        rows = [rows[place] for place in going]
        grow(model, decoder, rows, list(range(13, 13 + len(rows))))


def test_a_shared_beginning_is_held_once(model: Any) -> None:
    cache = PrefixCache()
    decoder = prefill(model, FIRST, cache).decoder([0, 1, 2])
    decoder.join(prefill(model, LATER[:1], cache).decoder([0]))
    n_prefixes = len({tuple(row[: end + 1]) for row in [*FIRST, LATER[0]] for end in range(len(row))})
    # Only rows[0]'s own beginning is looked for: one node of the late row, 50, is found; 51 and 55 come anew or shared.
    assert decoder._mask.shape[1] == n_prefixes
