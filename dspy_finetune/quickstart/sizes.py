"""How much of the main job is done: `full` for figures to believe, `small` to see that it runs.

In: a name. Out: a `Size`, with every count that the steps use.
"""

from __future__ import annotations

from dataclasses import dataclass

from dspy_finetune.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Size:
    """The counts of one size; training sets are cut to them, smaller data is used whole."""

    name: str
    """full or small."""
    n_titles: int
    """Titles to train the binary model on."""
    n_pairs: int
    """Pairs to train the pairwise model on."""
    n_explained: int
    """Explained pairs to train the DPO model on."""
    n_test_titles: int
    """Titles that all programs are asked about."""
    n_test_pairs: int
    """Pairs that all programs are asked about."""
    binary_epochs: int
    """Times through the titles."""
    pairwise_epochs: int
    """Times through the pairs."""


SIZES = {
    "full": Size(
        name="full",
        n_titles=440,
        n_pairs=320,
        n_explained=100,
        n_test_titles=150,
        n_test_pairs=80,
        binary_epochs=2,
        pairwise_epochs=1,
    ),
    "small": Size(
        name="small",
        n_titles=260,
        n_pairs=80,
        n_explained=24,
        n_test_titles=40,
        n_test_pairs=20,
        binary_epochs=2,
        pairwise_epochs=1,
    ),
}
"""What `dspy-finetune quickstart --size` accepts."""


def size_of(name: str) -> Size:
    """The size of that name. Raises UsageError."""
    if name not in SIZES:
        raise UsageError(f'unknown size "{name}"; choose one of {", ".join(SIZES)}')
    return SIZES[name]
