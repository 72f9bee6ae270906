"""The lint finds shortcuts, imbalance, contradictions and cycles with their figures; balanced data is left alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from dspy_finetune.errors import UsageError
from dspy_finetune.export import export_sft, lint
from dspy_finetune.export.checks.shortcuts import PairGraph, auc, binomial_p, choice_of, pair_of
from dspy_finetune.prompts import binary

from .test_checks import BROKEN, GOOD, write


def pair(number: int, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": f"question {number}"}]},
        "preferred_output": [{"role": "assistant", "content": chosen}],
        "non_preferred_output": [{"role": "assistant", "content": rejected}],
    }


def test_the_phrases_of_the_taste_document_are_found() -> None:
    report = lint(BROKEN / "shortcut-phrase.jsonl")
    chosen = [phrase for phrase in report.figures.phrases if phrase.side == "chosen"]
    rejected = [phrase for phrase in report.figures.phrases if phrase.side == "rejected"]
    assert any("aligns better with the taste preferences" in phrase.text for phrase in chosen)
    assert any("seems more interesting" in phrase.text for phrase in rejected)
    assert all((phrase.chosen_share, phrase.rejected_share) == (1.0, 0.0) for phrase in chosen)
    assert not report.ok


def test_answers_from_one_template_have_no_shortcut(tmp_path: Path) -> None:
    rows = [
        pair(i, f"I choose {'AB'[i % 2]}: it is title {i}.", f"I choose {'BA'[i % 2]}: it is title {i}.")
        for i in range(40)
    ]
    report = lint(write(tmp_path / "rows.jsonl", rows))
    assert report.issues == ()
    assert report.figures.length_auc == report.figures.length_share == 0.5


def test_length_and_position_are_measured(tmp_path: Path) -> None:
    generator = random.Random(0)
    words = [f"w{i}" for i in range(1000)]
    rows = [pair(i, " ".join(generator.sample(words, 9)), " ".join(generator.sample(words, 4))) for i in range(50)]
    assert lint(write(tmp_path / "rows.jsonl", rows)).codes == {"shortcut-length"}
    assert lint(BROKEN / "shortcut-position.jsonl").figures.a_share == pytest.approx(23 / 24)


def test_a_rare_label_is_counted_and_no_row_is_asked_to_go(tmp_path: Path) -> None:
    """A balanced file would make probabilities wrong, and throw rows away."""
    rows = [dspy.Example(title=f"title {n} {'rare' * (n < 4)}", liked=n < 4).with_inputs("title") for n in range(200)]
    report = export_sft(rows, binary("title -> liked: bool"), tmp_path / "rows.jsonl").report
    [issue] = [one for one in report.issues if one.code == "label-imbalance"]
    assert issue.message == "98% of 200 outputs are 'false', 4 are not"
    assert "add rows of the others; drop none" in issue.remedy


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_auc_is_that_of_scikit_learn(xs: list[int], ys: list[int]) -> None:
    expected = roc_auc_score([1] * len(xs) + [0] * len(ys), xs + ys)
    assert auc(xs, ys) == pytest.approx(expected)


@given(st.integers(0, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_binomial_test_is_that_of_scipy(drawn: tuple[int, int]) -> None:
    k, n = drawn
    expected = stats.binomtest(k, n).pvalue if n else 1.0
    assert binomial_p(k, n) == pytest.approx(expected, abs=1e-9)


def test_a_cycle_is_printed_with_its_lines() -> None:
    [issue] = lint(BROKEN / "preference-cycle.jsonl").issues
    assert "'slow tea' > 'old ships' (line 13)" in issue.message
    assert "(line 14)" in issue.message
    assert "(line 15)" in issue.message


@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda edge: edge[0] != edge[1]), max_size=20))
def test_cycles_are_found_exactly_where_there_are_some(edges: set[tuple[int, int]]) -> None:
    graph = PairGraph()
    for line, (a, b) in enumerate(sorted(edges), start=1):
        graph.add(line, str(a), str(b))
    one_way = {(a, b) for a, b in edges if (b, a) not in edges}
    reach = set(one_way)
    for _ in range(7):
        reach |= {(a, d) for a, b in reach for c, d in one_way if b == c}
    assert bool(list(graph.cycles())) == any((a, a) in reach for a in range(7))
    assert len(list(graph.contradictions())) == sum((b, a) in edges for a, b in edges) // 2
    for issue in graph.issues():
        assert issue.line


def test_pairs_of_examples_are_read_in_all_three_spellings() -> None:
    examples = [
        dspy.Example(title_a="x", title_b="y", preferred="A"),
        dspy.Example(title_a="y", title_b="z", preference="A"),
        {"title_a": "z", "title_b": "x", "preferred_title": "z"},
        {"title_a": "y", "title_b": "x", "preferred": "A"},
        {"unrelated": 1},
    ]
    assert lint(examples).codes == {"preference-contradiction"}
    assert lint(examples[:3]).codes == {"preference-cycle"}
    with pytest.raises(UsageError, match="row 1 is int"):
        lint([1])


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("A", "A"), ("b", "B"), ("A: because", "A"), ("**B**", "B"), ("I would choose B: x", "B"), ("Answer: A.", "A"),
        ("[[ ## preferred ## ]]\nA", "A"), ("A great title", None), ("Both", None), ("", None), ("true", None),
    ],
)  # fmt: skip
def test_choices_are_read_and_never_guessed(answer: str, choice: str | None) -> None:
    assert choice_of(answer) == choice


def test_pairwise_questions_are_read_in_the_usual_layouts() -> None:
    assert pair_of("Which?\n\nTitle A: one\nTitle B: two\nSay A or B.") == ("one", "two")
    assert pair_of("[[ ## title_a ## ]]\none\n\n[[ ## title_b ## ]]\ntwo") == ("one", "two")
    assert pair_of("Title: A quiet town") is None


def test_the_system_prompt_is_told_and_compared_with_the_one_served(tmp_path: Path) -> None:
    prompt, other = binary("I like even numbers."), binary("I like odd numbers.")
    examples = [dspy.Example(title=f"Title {i}", is_favorite=i % 2 == 0).with_inputs("title") for i in range(12)]
    path = export_sft(examples, prompt, tmp_path / "train.jsonl").path
    report = lint(path, prompt=prompt)
    assert report.codes == {"constant-system-prompt"}
    assert report.system_prompt is not None
    assert "I like even numbers." in report.system_prompt
    assert report.ok
    assert "prompt-mismatch" in lint(path, prompt=other).codes
    (tmp_path / "train.jsonl.manifest.json").unlink()
    assert "prompt-mismatch" in lint(path, prompt=other).codes
    assert "prompt-mismatch" in lint(GOOD / "chat.jsonl", prompt=prompt).codes
    assert "even" in str(report)
    assert report.to_dict()["figures"]["majority_share"] == 0.5
