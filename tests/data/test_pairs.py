"""Pairs: the right side preferred, orders in balance, negatives drawn evenly, nothing twice, every spelling read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_finetune.data import make_pairs, swap
from dspy_finetune.errors import DataError, EmptyDatasetError, RowsError, UsageError


def labelled(n_positive: int, n_negative: int) -> list[dspy.Example]:
    rows = [dspy.Example(title=f"good {n}", is_favorite=True, reason=f"r{n}") for n in range(n_positive)]
    return rows + [dspy.Example(title=f"bad {n}", is_favorite=False, reason=f"s{n}") for n in range(n_negative)]


def preferred_text(row: dspy.Example) -> Any:
    return row[f"title_{row.preferred.lower()}"]


def unordered(rows: list[dspy.Example]) -> list[frozenset[str]]:
    return [frozenset((row.title_a, row.title_b)) for row in rows]


@settings(max_examples=50, deadline=None)
@given(n_positive=st.integers(1, 12), n_negative=st.integers(1, 12), n_each=st.integers(1, 15), seed=st.integers(0, 9))
def test_labelled_items_make_balanced_even_distinct_pairs(
    n_positive: int, n_negative: int, n_each: int, seed: int
) -> None:
    rows = labelled(n_positive, n_negative)
    pairs = make_pairs(rows, n_per_positive=n_each, seed=seed)
    assert len(pairs) == n_positive * min(n_each, n_negative)
    assert all(preferred_text(row).startswith("good") for row in pairs)
    sides = Counter(row.preferred for row in pairs)
    assert abs(sides["A"] - sides["B"]) <= 1
    assert len(set(unordered(pairs))) == len(pairs)
    used = Counter(text for pair in unordered(pairs) for text in pair)
    assert {used[f"good {n}"] for n in range(n_positive)} == {min(n_each, n_negative)}
    negatives = [used[f"bad {n}"] for n in range(n_negative)]
    assert max(negatives) - min(negatives) <= 1
    assert all(set(row.inputs().keys()) == {"title_a", "title_b"} for row in pairs)
    assert make_pairs(rows, n_per_positive=n_each, seed=seed) == pairs


def test_both_orders_give_every_pair_with_its_mirror() -> None:
    pairs = make_pairs(labelled(5, 5), n_per_positive=3, both_orders=True, carry="reason")
    assert len(pairs) == 30
    assert all(swap(one) == other for one, other in zip(pairs[::2], pairs[1::2], strict=True))
    assert Counter(row.preferred for row in pairs) == {"A": 15, "B": 15}
    assert max(Counter(unordered(pairs)).values()) == 2


def test_carried_fields_follow_their_side() -> None:
    for row in make_pairs(labelled(4, 4), carry=("reason",)):
        for side in "ab":
            kind, number = row[f"title_{side}"].split()
            assert row[f"reason_{side}"] == ("r" if kind == "good" else "s") + number


def test_sides_are_named_after_the_text_field() -> None:
    rows = [dspy.Example(headline="x", liked="yes"), dspy.Example(headline="y", liked="no")]
    (row,) = make_pairs(rows, text="headline", label="liked")
    assert {row.headline_a, row.headline_b} == {"x", "y"}
    assert row[f"headline_{row.preferred.lower()}"] == "x"


@settings(max_examples=50, deadline=None)
@given(
    ratings=st.lists(st.integers(0, 20), min_size=2, max_size=15),
    min_difference=st.integers(0, 8),
    n_each=st.integers(1, 4),
    ties=st.sampled_from(["drop", "keep"]),
)
def test_rated_items_pair_where_the_ratings_differ_enough(
    ratings: list[int], min_difference: int, n_each: int, ties: Any
) -> None:
    rows = [dspy.Example(title=f"t{i}", points=value) for i, value in enumerate(ratings)]
    value_of = {row.title: row.points for row in rows}
    gap = max(ratings) - min(ratings)
    options: dict[str, Any] = {"label": "points", "min_difference": min_difference, "n_per_positive": n_each}
    if ties == "drop" and (gap < min_difference or gap == 0):
        with pytest.raises(DataError, match="largest difference is"):
            make_pairs(rows, ties=ties, **options)
        return
    pairs = make_pairs(rows, ties=ties, **options)
    assert len(set(unordered(pairs))) == len(pairs)
    wins: Counter[str] = Counter()
    for row in pairs:
        difference = value_of[row.title_a] - value_of[row.title_b]
        is_close = difference == 0 or abs(difference) < min_difference
        assert row.preferred == ("tie" if is_close else "A" if difference > 0 else "B")
        wins[row.title_a if difference > 0 else row.title_b] += not is_close
    assert ties == "keep" or "tie" not in {row.preferred for row in pairs}
    assert max(wins.values()) <= n_each
    sides = Counter(row.preferred for row in pairs)
    assert abs(sides["A"] - sides["B"]) <= 1


def test_a_difference_that_floating_point_makes_a_little_smaller_counts() -> None:
    rows = [dspy.Example(title="x", score=0.3), dspy.Example(title="y", score=0.2)]
    assert len(make_pairs(rows, label="score", min_difference=0.1)) == 1


@pytest.mark.parametrize("name", ["preferred", "preference", "preferred_title"])
@pytest.mark.parametrize("value", ["B", "b", " B ", "title_b", "Title_B", "Bees", "bees!"])
def test_given_pairs_are_read_in_every_spelling(name: str, value: str) -> None:
    rows = [dspy.Example({"title_a": "Ants", "title_b": "Bees", name: value})]
    (row,) = make_pairs(rows, balance=False)
    assert row.toDict() == {"title_a": "Ants", "title_b": "Bees", "preferred": "B"}
    assert preferred_text(make_pairs(rows, seed=1)[0]) == "Bees"


def test_given_pairs_are_balanced_and_freed_of_repeats() -> None:
    rows = [dspy.Example(title_a=f"x{n}", title_b=f"y{n}", preference="A") for n in range(21)]
    repeats = [dspy.Example(title_a=f"Y{n}", title_b=f"X{n}!", preference="b") for n in range(5)]
    pairs = make_pairs(rows + repeats)
    assert len(pairs) == 21
    assert sorted(Counter(row.preferred for row in pairs).values()) == [10, 11]
    assert all(preferred_text(row).startswith("x") for row in pairs)
    assert [row.preferred for row in make_pairs(rows, balance=False)] == ["A"] * 21


def test_given_ties_are_dropped_or_kept() -> None:
    rows = [
        dspy.Example(title_a="a1", title_b="b1", preferred="tie"),
        dspy.Example(title_a="b1", title_b="a1", preferred="equal"),
        dspy.Example(title_a="a2", title_b="b2", preferred="A"),
    ]
    assert len(make_pairs(rows)) == 1
    assert sorted(row.preferred for row in make_pairs(rows, ties="keep", balance=False)) == ["A", "tie"]
    with pytest.raises(DataError, match="every pair is a tie"):
        make_pairs(rows[:1])


def test_given_pairs_carry_fields_of_a_side_and_of_the_pair() -> None:
    rows = [dspy.Example(title_a="x", title_b="y", preferred="B", why_a="1", why_b="2", explanation="e")]
    for seed in range(4):
        (row,) = make_pairs(rows, carry=("why", "explanation"), seed=seed)
        assert row.explanation == "e"
        assert (row.why_a, row.why_b) == (("2", "1") if row.title_a == "y" else ("1", "2"))


def test_every_unreadable_pair_is_listed() -> None:
    good = {"title_a": "Ants", "title_b": "Bees"}
    rows = [
        dspy.Example({**good, "preferred": "A"}),
        dspy.Example({**good, "preferred": "C"}),
        dspy.Example({**good}),
        dspy.Example({**good, "preferred": "A", "preference": "B"}),
        dspy.Example(title_a="Ants", title_b="ANTS", preferred="A"),
        dspy.Example(title_a="B", title_b="A", preferred="A"),
        dspy.Example(title_a="", title_b="x", preferred="A"),
        dspy.Example({**good, "preferred": None}),
        dspy.Example({**good, "preferred": True}),
    ]
    with pytest.raises(RowsError) as caught:
        make_pairs(rows)
    assert [error.line for error in caught.value.errors] == [2, 3, 4, 5, 6, 7, 8, 9]
    for line, said in (
        (2, "neither a side"),
        (3, "no preference"),
        (4, "disagree"),
        (5, "same text"),
        (6, "names side A"),
    ):
        assert said in str(caught.value.errors[line - 2])


def test_every_unreadable_item_is_listed() -> None:
    rows = [
        *labelled(2, 2),
        dspy.Example(title="", is_favorite=True),
        dspy.Example(title="x", is_favorite="perhaps"),
        dspy.Example(title="GOOD 0", is_favorite=False),
    ]
    with pytest.raises(RowsError) as caught:
        make_pairs(rows)
    assert [(error.line, error.field) for error in caught.value.errors] == [
        (5, "title"),
        (6, "is_favorite"),
        (7, "is_favorite"),
    ]
    assert "another is_favorite in row 1" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "options", "error", "said"),
    [
        (labelled(3, 0), {}, DataError, "none of the 3 items is negative"),
        (labelled(0, 3), {}, DataError, "none of the 3 items is positive"),
        ([], {}, EmptyDatasetError, "no examples"),
        (labelled(2, 2), {"label": "is_favourite"}, UsageError, 'did you mean "is_favorite"'),
        (labelled(2, 2), {"text": "headline"}, UsageError, "no field 'headline'"),
        (labelled(2, 2), {"carry": "url"}, UsageError, "no field 'url'"),
        (labelled(2, 2), {"ties": "keep"}, UsageError, "labelled items make no ties"),
        (labelled(2, 2), {"ties": "maybe"}, UsageError, "drop"),
        (labelled(2, 2), {"n_per_positive": 0}, UsageError, "n_per_positive=0"),
        (labelled(2, 2), {"min_difference": -1}, UsageError, "min_difference"),
        (labelled(2, 2), {"seed": "x"}, UsageError, "seed"),
        ([dspy.Example(title="x", points=5)], {"label": "points"}, RowsError, "for ratings give min_difference="),
        ([dspy.Example(title_a="x", title_b="y", preferred="A")], {"min_difference": 1}, UsageError, "pairs already"),
    ],
)
def test_what_cannot_be_paired_is_told(rows: list[dspy.Example], options: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        make_pairs(rows, **options)


@settings(max_examples=50, deadline=None)
@given(
    value=st.sampled_from(["A", "B", "a", " b ", "title_a", "TITLE_B", "Ants", "tie", None]),
    name=st.sampled_from(["preferred", "preference", "preferred_title"]),
)
def test_swapping_twice_gives_the_pair_back(value: Any, name: str) -> None:
    pair = dspy.Example({"title_a": "Ants", "title_b": "Bees", "why_a": 1, "why_b": 2, name: value, "id": 3})
    pair = pair.with_inputs("title_a", "title_b")
    swapped = swap(pair)
    assert swap(swapped) == pair
    assert (swapped.title_a, swapped.why_b, swapped.id) == ("Bees", 1, 3)
    assert set(swapped.inputs().keys()) == {"title_a", "title_b"}
    if value not in ("tie", None):
        assert preferred_text(make_pairs([swapped])[0]) == preferred_text(make_pairs([pair])[0])


def test_what_is_no_pair_cannot_be_swapped() -> None:
    with pytest.raises(UsageError, match="not a pair"):
        swap(dspy.Example(title="x"))
    with pytest.raises(UsageError, match="headline_a"):
        swap(dspy.Example(title_a="x", title_b="y"), text="headline")


def test_even_a_very_large_set_is_paired_in_reasonable_work() -> None:
    pairs = make_pairs(labelled(2000, 3000), n_per_positive=5)
    assert len(pairs) == 10_000
