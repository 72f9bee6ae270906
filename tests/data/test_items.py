"""Duplicates, conflicts and leakage are found, exactly and normalised, and named by their rows."""

from __future__ import annotations

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_finetune.data import deduplicate, find_conflicts, find_leakage, normalize_text
from dspy_finetune.errors import EmptyDatasetError, LeakageError, RowsError, UsageError


def titles(*texts: str) -> list[dspy.Example]:
    return [dspy.Example(title=text).with_inputs("title") for text in texts]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Don't panic!", "dont  PANIC"),
        ("state-of-the-art", "State of the art"),
        ("ﬁne　print", "fine print"),
        ("Straße", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("“Quoted” — twice…", "quoted twice"),
        ("soft\u00adhyphen", "softhyphen"),
    ],
)
def test_what_counts_as_the_same_text(one: str, other: str) -> None:
    assert normalize_text(one) == normalize_text(other)
    assert len(deduplicate(titles(one, other), how="normalized")) == 1
    assert len(deduplicate(titles(one, other), how="exact")) == 2


@pytest.mark.parametrize(
    ("one", "other"), [("C", "C#"), ("C", "C++"), ("5", "5%"), ("3.5", "35"), ("???", "!!!"), ("🙂", "🙁")]
)
def test_what_does_not(one: str, other: str) -> None:
    assert normalize_text(one) != normalize_text(other)


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=30))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalize_text(normalize_text(text)) == normalize_text(text)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.sampled_from(["a", "A", "a!", "b", "B ", "c"]), min_size=1, max_size=12))
def test_deduplication_keeps_the_first_of_each_and_accounts_for_the_rest(texts: list[str]) -> None:
    result = deduplicate(titles(*texts), how="normalized")
    firsts = list({normalize_text(text): text for text in reversed(texts)}.values())
    assert sorted(row.title for row in result) == sorted(firsts)
    assert len(result) + len(result.duplicates) == len(texts)
    for gone in result.duplicates:
        assert normalize_text(texts[gone.row - 1]) == normalize_text(texts[gone.first_row - 1])
        assert gone.first_row < gone.row


LABELLED = [
    dspy.Example(title="Ants", liked=True),
    dspy.Example(title="ANTS!", liked=False),
    dspy.Example(title="Bees", liked=True),
    dspy.Example(title="bees", liked=True),
]


def test_contradicting_labels_are_reported_and_handled_as_asked() -> None:
    first = deduplicate(LABELLED, by="title", how="normalized", label="liked")
    assert [row.title for row in first] == ["Ants", "Bees"]
    assert [(found.text, found.rows, found.labels) for found in first.conflicts] == [("Ants", (1, 2), (True, False))]
    assert "row 1: True, row 2: False" in first.summary()
    dropped = deduplicate(LABELLED, by="title", how="normalized", label="liked", on_conflict="drop")
    assert [row.title for row in dropped] == ["Bees"]
    assert len(dropped) + len(dropped.duplicates) == len(LABELLED)
    with pytest.raises(RowsError, match="row 2: 'Ants' has contradicting labels"):
        deduplicate(LABELLED, by="title", how="normalized", label="liked", on_conflict="raise")
    assert deduplicate(LABELLED, by="title", label="liked").conflicts == []


def test_conflicts_are_found_in_items() -> None:
    (found,) = find_conflicts(LABELLED, by="title", label="liked")
    assert found.rows == (1, 2)
    assert find_conflicts(LABELLED, by="title", label="liked", how="exact") == []
    marked = [row.with_inputs("title") for row in LABELLED]
    assert find_conflicts(marked) == [found]
    with pytest.raises(UsageError, match="label"):
        find_conflicts(LABELLED, by="title")


def test_conflicts_are_found_in_pairs_in_either_order_and_spelling() -> None:
    pairs = [
        dspy.Example(title_a="Ants", title_b="Bees", preferred="A"),
        dspy.Example(title_a="bees", title_b="ants", preferred="b"),
        dspy.Example(title_a="Bees", title_b="Ants", preferred="title_a"),
        dspy.Example(title_a="Cats", title_b="Dogs", preferred="Cats"),
    ]
    (found,) = find_conflicts(pairs)
    assert found.rows == (1, 2, 3)
    assert found.labels == ("Ants", "ants", "Bees")
    with pytest.raises(RowsError, match="neither a side"):
        find_conflicts([dspy.Example(title_a="Ants", title_b="Bees", preferred="C")])


@settings(max_examples=50, deadline=None)
@given(
    left=st.lists(st.integers(0, 20), max_size=12),
    right=st.lists(st.integers(0, 20), max_size=12),
)
def test_leakage_is_what_two_sets_share(left: list[int], right: list[int]) -> None:
    a, b = titles(*(f"Title {n}" for n in left)), titles(*(f"TITLE: {n}" for n in right))
    leakage = find_leakage(a, b)
    shared = set(left) & set(right)
    assert {item.text for item in leakage} == {f"title {n}" for n in shared}
    assert (leakage.n_rows_a, leakage.n_rows_b) == (sum(n in shared for n in left), sum(n in shared for n in right))
    assert bool(leakage) == bool(shared) == bool(len(leakage))
    assert not find_leakage(a, b, how="exact")


def test_leakage_between_items_and_pairs_names_the_first_rows() -> None:
    pairs = [dspy.Example(title_a=f"T{n}", title_b=f"T{n + 1}", preferred="A") for n in range(20)]
    leakage = find_leakage(pairs, titles("t0", "other", "T5."))
    assert [(item.text, item.rows_a, item.rows_b) for item in leakage] == [("t0", (1,), (1,)), ("t5", (5, 6), (3,))]
    assert "'t5' stands in rows 5, 6 of the first set and row 3 of the second" in leakage.summary()
    with pytest.raises(LeakageError, match="2 items in both sets"):
        leakage.raise_if_any()
    find_leakage(pairs, titles("x")).raise_if_any()
    assert "no leakage" in find_leakage(pairs, titles("x")).summary()


def test_leakage_of_pairs_is_found_across_sides_and_by_named_fields() -> None:
    one = [dspy.Example(headline_a="Ants", headline_b="Bees")]
    other = [dspy.Example(headline_a="Cats", headline_b="ants")]
    assert find_leakage(one, other)
    assert find_leakage(one, other, by=("headline_a", "headline_b"))
    assert not find_leakage(one, other, by="headline_a")
    assert find_leakage(one, other, by=lambda row: (row.headline_a, row.headline_b))


def test_several_inputs_make_one_item() -> None:
    one = [dspy.Example(context="x", question="q1", answer="1").with_inputs("context", "question")]
    other = [dspy.Example(context="x", question="q2", answer="1").with_inputs("context", "question")]
    assert not find_leakage(one, other)
    assert find_leakage(one, one)


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(UsageError, match="how="):
        find_leakage(titles("a"), titles("b"), how="fuzzy")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(UsageError, match="on_conflict"):
        deduplicate(titles("a"), on_conflict="last")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(UsageError, match='did you mean "title"'):
        deduplicate(titles("a"), by="titel")
    with pytest.raises(EmptyDatasetError):
        deduplicate([])
    with pytest.raises(RowsError, match="row 2: a str is not an example"):
        deduplicate([dspy.Example(a=1), "x"])


def test_rows_without_a_key_are_no_duplicates_conflicts_or_leaks() -> None:
    """Two rows whose address is not known are not the same page."""
    rows = [dspy.Example(url=url, liked=n % 2 == 0) for n, url in enumerate([None, "", None, "u", "u", float("nan")])]
    assert [one.row for one in deduplicate(rows, by="url").duplicates] == [5]
    assert [one.rows for one in find_conflicts(rows, by="url", label="liked")] == [(4, 5)]
    assert [one.text for one in find_leakage(rows[:4], rows[4:], by="url")] == ["u"]
    both = [dspy.Example(url="u", lang=None), dspy.Example(url="u", lang=None), dspy.Example(url=None, lang=None)]
    assert [one.row for one in deduplicate([*both, both[2]], by=("url", "lang")).duplicates] == [2]
