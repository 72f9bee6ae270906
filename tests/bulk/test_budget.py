"""The budget: never passed, and never waiting for money when nothing is under way that could free any."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dspy_finetune.bulk.rate_limit import Budget, Prices
from dspy_finetune.bulk.reader import Tokens


class TenthsOfADollar(Prices):
    """A prompt token costs 0.1, which floating point cannot add up exactly."""

    def __init__(self) -> None:
        self.unknown = None

    def usd(self, tokens: Tokens) -> float:
        return 0.1 * tokens.n_input


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30), order=st.randoms(use_true_random=False))
def test_it_waits_just_while_something_is_under_way(sizes: list[int], order: random.Random) -> None:
    budget = Budget(1000.0, TenthsOfADollar(), Tokens())
    under_way = [budget.reserve(b"x" * size, 0) for size in sizes]
    order.shuffle(under_way)
    for reserved in under_way:
        assert budget.is_waiting
        assert reserved is not None
        budget.settle(reserved, Tokens(n_input=1))
    assert not budget.is_waiting


def test_rounding_leaves_nothing_to_wait_for() -> None:
    assert 0.1 + 0.2 + 0.3 - 0.3 - 0.2 - 0.1 != 0.0
    budget = Budget(0.65, TenthsOfADollar(), Tokens())
    under_way = [budget.reserve(b"x" * size, 0) for size in (1, 2, 3)]
    assert budget.reserve(b"x", 0) is None
    for reserved in reversed(under_way):
        assert reserved is not None
        budget.settle(reserved, None)
    assert budget.reserve(b"x", 0) is None
    assert not budget.is_waiting
    assert "is spent" in str(budget.error())
