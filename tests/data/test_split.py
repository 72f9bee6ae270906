"""Splits: every row once, no item on two sides, the shares kept, the same in every process, never a side left empty."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dspy_finetune.data import deduplicate, find_conflicts, find_leakage, make_pairs, split
from dspy_finetune.errors import DataError, EmptyDatasetError, RowsError, UsageError


def items(n: int, n_labels: int = 2) -> list[dspy.Example]:
    return [dspy.Example(title=f"Title {i}", label=i % n_labels, id=i).with_inputs("title") for i in range(n)]


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(3, 80),
    seed=st.integers(0, 5),
    fractions=st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.3, 0.2), (0.5, 0, 0.5), (1, 0, 0), (1 / 3, 1 / 3, 1 / 3)]),
)
def test_every_row_is_on_one_side_and_the_shares_are_kept(n: int, seed: int, fractions: tuple[float, ...]) -> None:
    rows = items(n)
    parts = split(rows, fractions, seed=seed)
    assert sorted(row.id for part in parts for row in part) == list(range(n))
    for part, share in zip(parts, fractions, strict=True):
        assert bool(part) == (share > 0)
        assert abs(len(part) - share * n) < 2
    assert [list(part) for part in split(rows, fractions, seed=seed)] == list(parts)


@settings(max_examples=50, deadline=None)
@given(
    n_rows=st.lists(st.integers(3, 40), min_size=1, max_size=6),
    seed=st.integers(0, 3),
    fractions=st.sampled_from([(0.8, 0.1, 0.1), (0.6, 0.2, 0.2), (0.7, 0, 0.3)]),
)
def test_stratified_sides_hold_each_label_in_equal_shares(
    n_rows: list[int], seed: int, fractions: tuple[float, ...]
) -> None:
    labels = [label for label, n in enumerate(n_rows) for _ in range(n)]
    rows = [dspy.Example(title=f"T{i}", label=label).with_inputs("title") for i, label in enumerate(labels)]
    parts = list(split(rows, fractions, stratify_by="label", seed=seed))
    least = min(share for share in fractions if share > 0)
    # Each label has at least one row a side, so a side gets more than its share where labels are rare.
    n_forced = sum(n * least < 1 for n in n_rows)
    for part, share in zip(parts, fractions, strict=True):
        for label, n in enumerate(n_rows):
            found = sum(row.label == label for row in part)
            assert abs(found - share * n) < 2
            assert bool(found) == (share > 0)
        assert abs(len(part) - share * len(rows)) <= 1 + 2 * n_forced


def test_rounding_does_not_starve_a_small_side_over_many_labels() -> None:
    train, validation, test = split(items(500, n_labels=100), stratify_by="label", seed=1)
    assert len(train) >= 300
    assert {row.label for row in validation} == {row.label for row in test} == set(range(100))
    train, validation, test = split(items(450, n_labels=30), stratify_by="label")
    assert (len(train), len(validation), len(test)) == (360, 45, 45)


@settings(max_examples=50, deadline=None)
@given(keys=st.lists(st.integers(0, 30), min_size=60, max_size=90), seed=st.integers(0, 3))
def test_a_group_is_never_parted(keys: list[int], seed: int) -> None:
    assume(len(set(keys)) >= 3)
    rows = [dspy.Example(title=f"T{i}", user=key) for i, key in enumerate(keys)]
    for group_by in ("user", lambda row: row.user):
        train, validation, test = ({row.user for row in part} for part in split(rows, group_by=group_by, seed=seed))
        assert train.isdisjoint(validation)
        assert train.isdisjoint(test)
        assert validation.isdisjoint(test)


@settings(max_examples=50, deadline=None)
@given(
    ends=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), min_size=30, max_size=60),
    group_by=st.sampled_from([None, ("title_a", "title_b")]),
)
def test_pairs_are_split_so_that_no_item_is_on_two_sides(ends: list[tuple[int, int]], group_by: Any) -> None:
    rows = [dspy.Example(title_a=f"Title {a}!", title_b=f"title  {b}", preferred="A") for a, b in ends]
    try:
        train, validation, test = split(rows, (0.6, 0.2, 0.2), group_by=group_by)
    except DataError as error:
        assert "share items" in str(error)  # noqa: PT017 -- few pairs may hang together as one group
        return
    assert len(train) + len(validation) + len(test) == len(rows)
    for one, other in ((train, validation), (train, test), (validation, test)):
        assert not find_leakage(one, other)


def test_duplicates_stay_together_without_being_asked_for() -> None:
    rows = [
        dspy.Example(title=title).with_inputs("title") for n in range(30) for title in (f"Title {n}", f"TITLE {n}!")
    ]
    train, validation, test = split(rows)
    assert not find_leakage(train, test)
    assert not find_leakage(train, validation)
    assert (len(train), len(validation), len(test)) == (48, 6, 6)


def test_pairs_that_all_hang_together_are_an_error_not_a_leak() -> None:
    rows = [dspy.Example(title=f"T{i}", is_favorite=i % 2 == 0) for i in range(20)]
    with pytest.raises(DataError, match="share items"):
        split(make_pairs(rows, n_per_positive=5))


def test_a_side_that_stays_empty_for_want_of_rows_blames_no_group() -> None:
    with pytest.raises(DataError, match="the test side would be empty: 2 rows, or those of each label, are too few"):
        split(items(2), (0.8, 0, 0.2), stratify_by="label", rare="train")


@pytest.mark.parametrize(
    "fractions", [(0.8, 0.1, 0.2), (0.5, 0.5), (1.2, -0.1, -0.1), (float("nan"), 0, 1), (0, 0, 0), ("a", 0, 1), 0.8]
)
def test_fractions_that_are_none_are_refused(fractions: Any) -> None:
    with pytest.raises(UsageError, match="fractions"):
        split(items(10), fractions)


def test_too_few_rows_are_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="2 rows cannot fill 3 sides"):
        split(items(2))
    with pytest.raises(DataError, match=r"value 1 has 1 row.*too few for 3 sides"):
        split([*items(20, 1), dspy.Example(title="x", label=1, id=99).with_inputs("title")], stratify_by="label")
    with pytest.raises(DataError, match="value '' has 1 row"):
        split([*items(20, 1), dspy.Example(title="x", label="", id=99).with_inputs("title")], stratify_by="label")
    with pytest.raises(EmptyDatasetError):
        split([])
    assert [len(side) for side in split(items(3))] == [1, 1, 1]


def test_rows_of_rare_labels_are_trained_on_and_told_where_that_is_asked_for() -> None:
    rows = [*items(20, 2), dspy.Example(title="x", label="odd", id=99), dspy.Example(title="y", label="rare", id=98)]
    rows += [dspy.Example(title="z", label="rare", id=97)]
    parts = split([row.with_inputs("title") for row in rows], (0.8, 0, 0.2), stratify_by="label", rare="train")
    assert [row.label for row in parts.test].count("odd") == 0
    assert [row.label for row in parts.train].count("odd") == 1
    assert {row.label for row in parts.test} == {0, 1, "rare"}  # two rows fill two sides
    assert parts.rare == ("odd",)
    assert parts.summary().endswith("in training alone, as too rare to stand on every side: 'odd'")
    with pytest.raises(DataError, match='rare="train"'):
        split(rows, (0, 0.5, 0.5), stratify_by="label", rare="train")


def test_a_wrong_field_is_told_with_the_nearest() -> None:
    for options in ({"group_by": "lable"}, {"stratify_by": "lable"}):
        with pytest.raises(UsageError, match='did you mean "label"'):
            split(items(10), **options)  # type: ignore[arg-type]  # mypy takes the values for every argument
    with pytest.raises(RowsError, match='row 2: field "label": missing'):
        split([dspy.Example(label=1), dspy.Example(x=1), dspy.Example(label=2)], stratify_by="label")


def test_split_and_pairs_are_the_same_in_every_process() -> None:
    code = """
import dspy
from dspy_finetune.data import make_pairs, split
rows = [dspy.Example(title=f"T{i}", is_favorite=i % 3 == 0) for i in range(60)]
train, validation, test = split(rows, stratify_by="is_favorite", group_by="title", seed=3)
print([row.title for row in test], [row.toDict() for row in make_pairs(train, seed=4)][:9])
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_another_seed_gives_another_split() -> None:
    assert split(items(50), seed=1).test != split(items(50), seed=2).test
    assert "train 40, validation 5, test 5" in split(items(50)).summary()


@pytest.mark.parametrize(
    "rows", ["rows.jsonl", Path("rows.jsonl"), {"title": "Bees"}, None, pd.DataFrame({"title": ["Bees"]})]
)
@pytest.mark.parametrize("use", [split, make_pairs, deduplicate, lambda rows: find_conflicts(rows, label="liked")])
def test_what_is_to_be_loaded_first_is_said(use: Any, rows: Any) -> None:
    with pytest.raises(UsageError, match="load them with load_examples first"):
        use(rows)


@pytest.mark.parametrize("nothing", [None, "", "  ", float("nan")])
@pytest.mark.parametrize("by", ["site", lambda row: row.site], ids=["field", "function"])
def test_rows_without_a_group_are_each_their_own(nothing: Any, by: Any, caplog: pytest.LogCaptureFixture) -> None:
    """40 of 60 rows without a site are 40 groups, not one that fills a side."""
    rows = [
        dspy.Example(title=f"Title {n}", site=nothing if n < 40 else f"s{n % 4}").with_inputs("title")
        for n in range(60)
    ]
    found = split(rows, (0.5, 0.25, 0.25), group_by=by, seed=3)
    assert (found.n_groups, found.n_ungrouped) == (44, 40)
    assert [len(side) for side in found] == [30, 15, 15]
    assert all(1 <= sum(n < 40 for n in map(number_of, side)) < 40 for side in found)
    sites = [{row.site for row in side if number_of(row) >= 40} for side in found]
    assert not any(sites[one] & sites[other] for one in range(3) for other in range(one))
    assert "40 of 60 rows have no value to group by; each is a group of its own" in caplog.text
    assert "40 rows without a group, each its own" in found.summary()


def number_of(row: dspy.Example) -> int:
    return int(row.title.split()[1])


def test_a_pair_with_one_side_missing_is_grouped_by_the_other() -> None:
    rows = [
        dspy.Example(a="x", b=None),
        dspy.Example(a=None, b="x"),
        dspy.Example(a=None, b=None),
        dspy.Example(a="y", b="z"),
    ]
    assert split(rows, (0.5, 0.5, 0.0), group_by=("a", "b")).n_groups == 3
