"""Label masses from token log-probabilities, against sums done by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_finetune.hosts.lm import Position, spelling
from dspy_finetune.predictors.probabilities import label_masses, label_shares


def at(chosen: str, **shares: float) -> Position:
    return chosen, {token: math.log(share) for token, share in shares.items()}


def test_spellings_of_one_label_are_summed() -> None:
    """Case and a leading space are the tokenizer's business."""
    position = ("true", {token: math.log(share) for token, share in {"true": 0.5, " True": 0.2, "false": 0.2}.items()})
    masses = label_masses([position], ["true", "false"])
    assert masses == pytest.approx({"true": 0.7, "false": 0.2})
    assert label_shares([position], ["true", "false"])[0] == pytest.approx({"true": 7 / 9, "false": 2 / 9})


def test_other_tokens_lower_the_coverage_and_nothing_else() -> None:
    masses = label_masses([at("A", A=0.3, B=0.1, The=0.6)], ["A", "B"])
    assert sum(masses.values()) == pytest.approx(0.4)
    assert label_shares([at("A", A=0.3, B=0.1, The=0.6)], ["A", "B"])[0] == pytest.approx({"A": 0.75, "B": 0.25})


def test_a_longer_word_that_begins_with_a_label_is_not_that_label() -> None:
    assert label_masses([at("An", An=1.0)], ["A", "B"]) == {"A": 0.0, "B": 0.0}


def test_whole_answers_of_several_lines_count_for_the_label_that_they_begin_with() -> None:
    """A head that answers "good" with a number writes each answer as one token: the label's share is their sum."""
    shares = {"good\nScore: 6": 0.4, "good\nScore: 9": 0.25, "bad\nScore: 3": 0.3, "goods\nScore: 1": 0.05}
    position = ("good\nScore: 6", {token: math.log(share) for token, share in shares.items()})
    assert label_masses([position], ["good", "bad"]) == pytest.approx({"good": 0.65, "bad": 0.3})


def test_a_shared_first_token_is_told_apart_by_the_next() -> None:
    """un|likely against un|decided: the first token's mass is shared as the second position says."""
    positions = [at("un", un=0.8, likely=0.2), at("likely", likely=0.75, decided=0.25)]
    masses = label_masses(positions, ["unlikely", "undecided", "likely"])
    assert masses == pytest.approx({"unlikely": 0.6, "undecided": 0.2, "likely": 0.2})


def test_the_road_not_taken_takes_nothing_from_the_answer_that_was_given() -> None:
    """The model went to "likely": how "un" would have gone on is not known, but it would not have been "likely"."""
    masses = label_masses([at("likely", un=0.3, likely=0.7)], ["unlikely", "undecided", "likely"])
    assert masses == pytest.approx({"unlikely": 0.15, "undecided": 0.15, "likely": 0.7})


def test_an_answer_that_ends_is_the_label_that_ends_there() -> None:
    """The end of an answer is no token: hosts list nothing at its place."""
    masses = label_masses([at("no", no=0.6, **{"not": 0.4})], ["no", "not sure"])
    assert masses == pytest.approx({"no": 0.6, "not sure": 0.4})


def test_a_number_that_begins_another_is_itself_where_the_other_has_a_token() -> None:
    """A tokenizer that knows "10" writes it so, and "1" is 1."""
    labels = [str(number) for number in range(1, 11)]
    masses = label_masses([at("7", **{"7": 0.5, "1": 0.3, "10": 0.2})], labels)
    assert {label: mass for label, mass in masses.items() if mass} == pytest.approx({"7": 0.5, "1": 0.3, "10": 0.2})
    digits = label_masses([at("1", **{"1": 0.8, "9": 0.2}), at("0", **{"0": 0.75, "<end>": 0.25})], labels)
    assert {label: mass for label, mass in digits.items() if mass} == pytest.approx({"1": 0.2, "10": 0.6, "9": 0.2})


def test_another_case_of_the_chosen_token_goes_on_as_that_one_did() -> None:
    positions = [at("Un", Un=0.5, un=0.3, likely=0.2), at("likely", likely=0.75, decided=0.25)]
    masses = label_masses(positions, ["unlikely", "undecided", "likely"])
    assert masses == pytest.approx({"unlikely": 0.6, "undecided": 0.2, "likely": 0.2})


def test_blank_tokens_before_the_label_are_passed_over() -> None:
    masses = label_masses([at("\n", **{"\n": 0.8, "A": 0.2}), at("A", A=0.75, B=0.25)], ["A", "B"])
    assert masses == pytest.approx({"A": 0.8, "B": 0.2})


def test_labels_that_differ_in_case_alone_are_told_apart_by_it() -> None:
    assert label_masses([at("A", A=0.7, a=0.2, B=0.1)], ["A", "a", "b"]) == pytest.approx(
        {"A": 0.7, "a": 0.2, "b": 0.1}
    )


def test_labels_whose_characters_are_several_tokens() -> None:
    """A byte-level tokenizer cuts a thumb in two; its parts are told apart by their bytes."""
    thumbs = list("👍".encode()), list("👎".encode())
    first, up, down = (
        spelling("bytes:\\xf0", thumbs[0][:3]),
        spelling("\ufffd", thumbs[0][3:]),
        spelling("\ufffd", thumbs[1][3:]),
    )
    positions = [(first, {first: math.log(0.9)}), (up, {up: math.log(0.8), down: math.log(0.2)})]
    assert label_masses(positions, ["👍", "👎"]) == pytest.approx({"👍": 0.72, "👎": 0.18})


def test_a_label_that_begins_another_ends_where_the_text_goes_on_otherwise() -> None:
    masses = label_masses([at("yes", yes=0.9, no=0.1), ("<end>", {"<end>": math.log(0.6), " sir": math.log(0.4)})],
                          ["yes", "yes sir", "no"])  # fmt: skip
    assert masses == pytest.approx({"yes": 0.9 * 0.6, "yes sir": 0.9 * 0.4, "no": 0.1})


def test_nothing_on_any_label_is_no_probability() -> None:
    assert label_shares([at("The", The=1.0)], ["A", "B"]) == (None, 0.0)
    assert label_shares([], ["A", "B"]) == (None, 0.0)


@given(st.lists(st.floats(0.001, 1.0), min_size=2, max_size=8))
def test_masses_never_exceed_the_whole(weights: list[float]) -> None:
    """Whatever a host lists, the masses are shares of what it listed."""
    tokens = ["A", "B", " A", "a", "Apple", "", " ", "AB"][: len(weights)]
    total = sum(weights)
    listed = {token: math.log(weight / total) for token, weight in zip(tokens, weights, strict=True)}
    masses = label_masses([(tokens[0], listed)], ["A", "B", "AB"])
    assert all(0.0 <= mass <= 1.0 + 1e-9 for mass in masses.values())
    assert sum(masses.values()) <= 1.0 + 1e-9
