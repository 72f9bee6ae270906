"""The packaged titles are clean, balanced and cannot be told apart by their words alone."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from dspy_finetune.data import load_examples
from dspy_finetune.errors import UsageError
from dspy_finetune.quickstart import (
    EXAMPLE_OPTIONS,
    RUBRIC,
    ExampleKind,
    load_rubric,
    load_titles,
    read_titles,
    write_example,
)

EXAMPLES = load_titles()
TITLES = [example.title for example in EXAMPLES]
LABELS = np.array([example.is_favorite for example in EXAMPLES])


def words(text: str) -> list[str]:
    """Return the lower-cased words and numbers of a text, in order."""
    return re.findall(r"[a-z0-9]+", text.lower())


def test_there_are_enough_rows_and_each_has_its_fields() -> None:
    """At least 600 rows, each with an id of its own, a title of sane length and a bool."""
    assert len(EXAMPLES) >= 600
    assert len({example.id for example in EXAMPLES}) == len(EXAMPLES)
    assert all(isinstance(example.is_favorite, bool) for example in EXAMPLES)
    assert all(10 <= len(title) <= 110 and title == title.strip() for title in TITLES)


def test_only_the_title_is_an_input() -> None:
    """Neither the label nor the reason can reach a prompt as an input."""
    assert {tuple(example.inputs().keys()) for example in EXAMPLES} == {("title",)}


def test_no_title_appears_twice() -> None:
    """Titles stay distinct after case and punctuation are dropped."""
    assert len({" ".join(words(title)) for title in TITLES}) == len(TITLES)


def test_no_two_titles_are_near_duplicates() -> None:
    """No two titles share more than 70 % of their words, so no split can leak a title into the other side."""
    sets = [set(words(title)) for title in TITLES]
    close = [
        (TITLES[i], TITLES[j])
        for i, left in enumerate(sets)
        for j, right in enumerate(sets[:i])
        if len(left & right) / len(left | right) > 0.7
    ]
    assert close == []


def test_labels_are_balanced() -> None:
    """Between 48 and 52 % of the titles are liked."""
    assert 0.48 <= LABELS.mean() <= 0.52


def test_order_tells_nothing_about_labels() -> None:
    """The label does not run in blocks: the first half of the file is balanced too, and so are its quarters."""
    for quarter in np.array_split(LABELS, 4):
        assert 0.4 <= quarter.mean() <= 0.6


def test_the_rubric_has_40_to_80_words() -> None:
    """The rubric fits a short system message."""
    assert load_rubric() == RUBRIC
    assert 40 <= len(RUBRIC.split()) <= 80


def test_most_titles_of_both_sides_carry_a_distinct_reason() -> None:
    """At least 55 % of either side has a reason of one short sentence, and no reason is used twice."""
    for liked in (True, False):
        side = [example for example in EXAMPLES if example.is_favorite is liked]
        reasons = [example.reason for example in side if "reason" in example]
        assert len(reasons) >= 0.55 * len(side)
        assert len(set(reasons)) == len(reasons)
        assert all(6 <= len(reason.split()) <= 20 and reason.endswith(".") for reason in reasons)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bag_of_words_stays_under_85_percent(seed: int) -> None:
    """TF-IDF of words and word pairs with logistic regression, trained on 80 %, misses at least 15 % of the rest."""
    order = np.random.default_rng(seed).permutation(len(TITLES))
    cut = int(0.8 * len(order))
    train, test = order[:cut], order[cut:]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000))
    model.fit([TITLES[i] for i in train], LABELS[train])
    accuracy = (model.predict([TITLES[i] for i in test]) == LABELS[test]).mean()
    # Under chance would mean that titles mirror each other across labels, which is as artificial as a keyword.
    assert 0.5 <= accuracy < 0.85


def test_no_single_word_separates_the_sides() -> None:
    """Deciding by whether one word is present is right for less than 60 % of the titles, whichever word it is."""
    liked: Counter[str] = Counter()
    disliked: Counter[str] = Counter()
    for title, label in zip(TITLES, LABELS, strict=True):
        (liked if label else disliked).update(set(words(title)))
    n_liked, n_disliked = int(LABELS.sum()), int((~LABELS).sum())
    best = 0.0
    for word in liked | disliked:
        accuracy = (liked[word] + n_disliked - disliked[word]) / (n_liked + n_disliked)
        best = max(best, accuracy, 1 - accuracy)
    assert best < 0.6


def test_the_label_that_was_chosen_counts_whatever_else_the_file_holds(tmp_path: Path) -> None:
    """A file of the user's own may hold a field with the name that the main job gives to the label."""
    path = tmp_path / "mine.jsonl"
    path.write_text('{"headline": "Bees", "title": "x", "is_favorite": false, "liked": "yes", "reason": "so"}\n')
    [example], rubric = read_titles(path, text="headline", label="liked", rubric=None)
    assert (example.title, example.is_favorite, example.reason, rubric) == ("Bees", True, "so", "")
    assert example.inputs().toDict() == {"title": "Bees"}
    with pytest.raises(UsageError, match="no column 'lied'"):
        read_titles(path, text="headline", label="lied", rubric=None)


def test_an_example_file_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    """The command and the Python of a page may follow each other in one folder; a file of the user's own is kept."""
    path = tmp_path / "titles.csv"
    assert write_example(path) == write_example(path) == 300
    path.write_text("headline,liked\nMy own,yes\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"titles\.csv is there already"):
        write_example(path)
    assert path.read_text(encoding="utf-8") == "headline,liked\nMy own,yes\n"


@pytest.mark.parametrize("kind", ["titles", "pairs", "prices", "questions"])
def test_the_command_that_an_example_file_names_reads_its_rows(kind: ExampleKind, tmp_path: Path) -> None:
    """Its label column is in the file, and so are the inputs that it names."""
    n_rows = write_example(tmp_path / "rows.csv", kind)
    rows = load_examples(tmp_path / "rows.csv")
    assert len(rows) == n_rows
    words = EXAMPLE_OPTIONS[kind].split()
    assert set(words[1::2]) <= set(rows[0].keys())


def test_no_title_stands_in_two_example_pairs(tmp_path: Path) -> None:
    """So that pairs are independent, however they are split; and each has a reason."""
    n_pairs = write_example(tmp_path / "pairs.csv", "pairs")
    rows = load_examples(tmp_path / "pairs.csv")
    assert len({row[side] for row in rows for side in ("title_a", "title_b")}) == 2 * n_pairs
    assert all(row.explanation for row in rows)
    assert abs(sum(row.preferred == "A" for row in rows) - n_pairs / 2) <= 1
