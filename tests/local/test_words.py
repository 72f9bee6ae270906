"""Words are weighed as scikit-learn weighs them, and a head that reads them is served as it was fitted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dspy_finetune import tasks
from dspy_finetune.local.words import MAX_TERMS, Words

TEXTS = ["Bees, bees and heather", "heather honey; Bees and", "Die Größe der BIENEN", "die grosse grösse", "x 2 10 10"]


def test_weights_are_those_of_scikit_learn() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    plain = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode", min_df=2).fit(TEXTS)
    words = Words.of(TEXTS)
    assert words is not None
    assert list(words.terms) == list(plain.get_feature_names_out())
    asked = [*TEXTS, "bees in the heather", "nothing known", ""]
    assert words.vectors(asked) == pytest.approx(plain.transform(asked).toarray(), abs=1e-6)


def test_words_of_any_script_are_told() -> None:
    """Chinese writes no blanks between words, and words of Hindi hold vowel signs that are no letters to `re`."""
    words = Words.of(["房间很大，很干净", "很大的房间!", "कौन सा तेल है?", "यह कौन है"])
    assert words is not None
    told = {"房", "间", "房 间", "很", "大", "很 大"}
    assert told <= set(words.terms)
    assert len(words.terms) == len(told) + 2  # and the two words of Hindi, whose accents are stripped as all are
    text = pytest.importorskip("sklearn.feature_extraction.text")
    pattern = tasks.word_pattern(2)
    assert re.findall(pattern, "Die Größe, a 2x x_1 naïve") == re.findall(r"\b\w\w+\b", "Die Größe, a 2x x_1 naïve")
    plain = text.TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode", min_df=2, token_pattern=pattern
    ).fit(["房间很大，很干净", "很大的房间!", "कौन सा तेल है?", "यह कौन है"])
    assert list(words.terms) == list(plain.get_feature_names_out())


def test_texts_that_share_no_word_have_none_and_many_words_are_cut_to_the_most_frequent() -> None:
    assert Words.of(["one thing", "another"]) is None
    assert Words.of([]) is None
    many = Words.of([*[" ".join(f"w{n}" for n in range(MAX_TERMS))] * 2, "w7 w8", "zzz", "zzz", "zzz"])
    assert many is not None
    assert len(many.terms) == MAX_TERMS
    assert {"w7", "w8", "w7 w8", "zzz"} <= set(many.terms)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_head_reads_words_where_they_tell_the_label_and_keeps_them_with_it(toy_model: Path, tmp_path: Path) -> None:
    """Each label is told by one word among a dozen of numbers: a toy model's averages say little of it."""
    from dspy_finetune.local import features, heads
    from tests.local.test_heads import chat_rows
    from tests.local.test_recipes import spec

    generator = np.random.default_rng(0)
    filler = [" ".join(map(str, generator.integers(1000, 9999, 12))) for _ in range(96)]
    rows = chat_rows([f"{text} word{i % 4}x" for i, text in enumerate(filler)], [f"label {i % 4}" for i in range(96)])
    said: list[dict[str, object]] = []
    done = features.train_head(spec(toy_model, tmp_path, "sft", rows), emit=said.append, should_stop=lambda: False)
    assert done.head is not None
    head = heads.Head.load(done.head)
    assert "words" in head.blocks
    assert any("the words" in str(row.get("candidate")) for row in said)
    view = features.View.from_dict(head.facts["view"])
    reader = features.Reader.open(toy_model)
    new = [[{"role": "user", "content": f"1234 5678 word{i}x 4321 8765"}] for i in range(4)]
    assert head.log_probabilities(reader.read(new, view)).argmax(axis=1).tolist() == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_head_that_compares_says_one_half_of_a_prompt_without_the_two_fields(toy_model: Path, tmp_path: Path) -> None:
    from dspy_finetune.local import features, heads
    from tests.local.test_heads import chat_rows
    from tests.local.test_recipes import spec

    texts = [f"A: {['good', 'bad'][i % 2]} {i}\nB: {['bad', 'good'][i % 2]} {i}" for i in range(24)]
    done = features.train_head(
        spec(toy_model, tmp_path, "sft", chat_rows(texts, ["A", "B"] * 12)),
        emit=lambda row: None,
        should_stop=lambda: False,
    )
    assert done.head is not None
    head = heads.Head.load(done.head)
    assert head.mode == "difference"
    reader = features.Reader.open(toy_model)
    blocks = reader.read([[{"role": "user", "content": "Hello"}]], features.View.from_dict(head.facts["view"]))
    assert np.exp(head.log_probabilities(blocks)) == pytest.approx(np.array([[0.5, 0.5]]))


def test_words_come_first_only_where_they_win_by_more_than_the_noise() -> None:
    """A difference within the standard error of its rows leaves the models' features first."""
    from dspy_finetune.local import heads

    def tried(blocks: tuple[str, ...], losses: np.ndarray) -> heads._Tried:
        loss = float(np.nanmean(losses))
        return heads.Candidate(blocks=blocks, mode="whole", strengths=(1.0,), loss=loss, loss_error=0.1), losses, losses

    noise = np.random.default_rng(0).normal(size=200)
    plain = tried(("base",), np.zeros(200))
    for gain, first in ((0.5, ("base", "words")), (0.01, ("base",))):
        losses = noise - noise.mean() - gain
        losses[3] = np.nan  # a row that no fold left out
        ordered = heads._best_first([plain, tried(("base", "words"), losses)])
        assert ordered[0][0].blocks == first
        assert len(ordered) == 2
