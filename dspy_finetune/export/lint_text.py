"""Shortcuts: what lets a model tell the right answer without reading the question.

In: a `Sample`. Out: issues, and the figures behind them.

- **Phrase.** A run of up to 8 words that is in at least 90 % of the chosen answers and in at most 10 % of the
  rejected ones, or the other way round. Words of such a run must each be that frequent, so only runs of frequent
  words are counted.
- **Length.** `length_auc`: the chance that a chosen answer is longer than a rejected one of any row (Mann-Whitney U /
  n^2, ties half); `length_share`: the same within rows. Reported from 0.8 or up to 0.2, when a sign test says p < 0.01.
- **Position.** Of pairwise rows, how often the right answer is A; reported when an exact two-sided binomial test
  against one half says p < 0.01 and the share is off by 0.05 or more.
- **Labels.** The share of the most frequent output; reported from 0.8.

Fewer than 10 rows say nothing.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dspy_finetune.export.check_codes import CODES
from dspy_finetune.export.check_report import Issue
from dspy_finetune.export.lint_graph import PairGraph, choice_of, pair_of
from dspy_finetune.export.lint_sample import Sample, Sampled

MIN_ROWS = 10
MAX_PAIRS = 2_000
"""Answers whose words are counted."""
FREQUENT, RARE = 0.9, 0.1
LENGTH_AUC = 0.8
MAJORITY = 0.8
SIGNIFICANT = 0.01
MIN_POSITION_GAP = 0.05
_MAX_WORDS = 8
_HALF_CHARS = 1_000

_WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A run of words that stands on one side."""

    text: str
    """The words, in lower case."""
    side: str
    """`chosen` or `rejected`: where it stands."""
    chosen_share: float
    """Of the chosen answers that hold it, 0 to 1."""
    rejected_share: float
    """Of the rejected answers that hold it, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class LintFigures:
    """The figures behind the lint's issues; None where they cannot be told."""

    n_rows: int
    """Rows looked at."""
    n_pairs: int
    """Of them, rows with a chosen and a rejected answer."""
    phrases: tuple[Phrase, ...]
    """Phrases that tell chosen from rejected."""
    length_auc: float | None
    """Chance that a chosen answer is longer than any rejected one, 0 to 1; 0.5 is no shortcut."""
    length_share: float | None
    """Share of rows whose chosen answer is the longer one, ties half; 0.5 is no shortcut."""
    n_choices: int
    """Rows that choose between A and B."""
    a_share: float | None
    """Share of them whose right answer is A; 0.5 is no shortcut."""
    majority_share: float | None
    """Share of the most frequent output, where the outputs are labels."""


def issue(code: str, message: str, *, line: int | None = None, path: str = "", remedy: str | None = None) -> Issue:
    """An issue with severity and remedy from the table of codes."""
    about = CODES[code]
    return Issue(
        line=line, path=path, severity=about.severity, code=code, message=message, remedy=remedy or about.remedy
    )


def lint_sample(sample: Sample, *, labels: dict[str, int] | None) -> list[Issue]:
    """The issues of a sample, those of its preference graph among them."""
    figures = measure(sample.rows, labels)
    return [*shortcuts(figures, labels), *graph_of(sample.rows).issues()]


def measure(rows: Sequence[Sampled], labels: dict[str, int] | None) -> LintFigures:
    """The figures of the rows."""
    pairs = [row.answers for row in rows if len(row.answers) == 2]
    choices = [choice for row, choice in zip(rows, choices_of(rows), strict=True) if choice and pair_of(row.question)]
    is_enough = len(pairs) >= MIN_ROWS
    lengths = [(len(chosen), len(rejected)) for chosen, rejected in pairs]
    n_labelled = sum(labels.values()) if labels else 0
    return LintFigures(
        n_rows=len(rows),
        n_pairs=len(pairs),
        phrases=tuple(find_phrases(pairs[:MAX_PAIRS])) if is_enough else (),
        length_auc=auc([a for a, _ in lengths], [b for _, b in lengths]) if is_enough else None,
        length_share=sum((a > b) + (a == b) / 2 for a, b in lengths) / len(pairs) if is_enough else None,
        n_choices=len(choices),
        a_share=choices.count("A") / len(choices) if choices else None,
        majority_share=max(labels.values()) / n_labelled if labels and n_labelled >= MIN_ROWS else None,
    )


def shortcuts(figures: LintFigures, labels: dict[str, int] | None) -> Iterator[Issue]:
    """The issues that the figures tell."""
    for phrase in figures.phrases:
        yield issue(
            "shortcut-phrase",
            f'"{phrase.text}" stands in {phrase.chosen_share:.0%} of the chosen outputs '
            f"and in {phrase.rejected_share:.0%} of the rejected ones",
        )
    if figures.length_auc is not None and figures.length_share is not None:
        gap = max(abs(figures.length_auc - 0.5), abs(figures.length_share - 0.5))
        wins = round(figures.length_share * figures.n_pairs)
        # Half of the gap may come from chance in a few rows: the sign test must agree.
        if gap >= LENGTH_AUC - 0.5 and binomial_p(wins, figures.n_pairs) < SIGNIFICANT:
            longer = "chosen" if figures.length_share > 0.5 else "rejected"
            share = max(figures.length_share, 1 - figures.length_share)
            yield issue(
                "shortcut-length",
                f"the {longer} output is the longer one in {share:.0%} of {figures.n_pairs:,} rows "
                f"(AUC of length {figures.length_auc:.2f})",
            )
    is_lopsided = False
    if figures.a_share is not None and figures.n_choices >= MIN_ROWS:
        p = binomial_p(round(figures.a_share * figures.n_choices), figures.n_choices)
        is_lopsided = p < SIGNIFICANT and abs(figures.a_share - 0.5) >= MIN_POSITION_GAP
        if is_lopsided:
            found = f"A is right in {figures.a_share:.0%} of {figures.n_choices:,} choices (p = {p:.2g} for one half)"
            yield issue("shortcut-position", found)
    if figures.majority_share is not None and figures.majority_share >= MAJORITY and labels and not is_lopsided:
        top = max(labels, key=lambda label: labels[label])
        found = f"{figures.majority_share:.0%} of {sum(labels.values()):,} outputs are {top[:60]!r}"
        yield issue("label-imbalance", found)


def find_phrases(pairs: Sequence[tuple[str, ...]]) -> Iterator[Phrase]:
    """Phrases that stand in nearly all answers of one side and in nearly none of the other, longest first."""
    sides = {"chosen": [_words(pair[0]) for pair in pairs], "rejected": [_words(pair[1]) for pair in pairs]}
    n = len(pairs)
    runs = {side: _frequent_runs(texts) for side, texts in sides.items()}
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        found: list[tuple[str, ...]] = []
        for gram, count in sorted(runs[side].items(), key=lambda item: (-len(item[0]), item[0])):
            if count < FREQUENT * n or any(_holds(longer, gram) for longer in found):
                continue
            elsewhere = sum(_holds(text, gram) for text in sides[other])
            if elsewhere <= RARE * n:
                found.append(gram)
                shares = {side: count / n, other: elsewhere / n}
                yield Phrase(
                    text=" ".join(gram), side=side, chosen_share=shares["chosen"], rejected_share=shares["rejected"]
                )


def _words(text: str) -> tuple[str, ...]:
    if len(text) > 2 * _HALF_CHARS:
        text = text[:_HALF_CHARS] + "\n" + text[-_HALF_CHARS:]
    return tuple(_WORDS.findall(text.lower()))


def _frequent_runs(texts: Sequence[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
    """In how many texts each run of frequent words stands."""
    n_texts: Counter[str] = Counter()
    for words in texts:
        n_texts.update(set(words))
    frequent = {word for word, n in n_texts.items() if n >= FREQUENT * len(texts)}
    runs: Counter[tuple[str, ...]] = Counter()
    for words in texts:
        grams: set[tuple[str, ...]] = set()
        start = 0
        for end in range(len(words) + 1):
            if end < len(words) and words[end] in frequent:
                continue
            for i in range(start, end):
                grams.update(words[i:j] for j in range(i + 1, min(end, i + _MAX_WORDS) + 1))
            start = end + 1
        runs.update(grams)
    return runs


def _holds(words: tuple[str, ...], gram: tuple[str, ...]) -> bool:
    if gram[0] not in words:
        return False
    n = len(gram)
    return any(words[i : i + n] == gram for i in range(len(words) - n + 1))


def auc(xs: Sequence[float], ys: Sequence[float]) -> float:
    """P(x > y) + P(x = y) / 2 for x and y drawn at random: Mann-Whitney's U / n^2; nan for nothing."""
    if not xs or not ys:
        return math.nan
    ordered = sorted(ys)
    wins = sum(bisect_left(ordered, x) + bisect_right(ordered, x) for x in xs) / 2
    return wins / (len(xs) * len(ys))


def binomial_p(k: int, n: int) -> float:
    """Two-sided exact p-value of k successes of n against one half; 1 for n = 0.

    With p = 1/2 the distribution is symmetric, so the two-sided value is twice the smaller tail.
    """
    tail = min(k, n - k)
    log_half = n * math.log(0.5)
    total = math.lgamma(n + 1)
    terms = (math.exp(total - math.lgamma(i + 1) - math.lgamma(n - i + 1) + log_half) for i in range(tail + 1))
    return min(1.0, 2 * math.fsum(terms))


def choices_of(rows: Sequence[Sampled]) -> list[str | None]:
    """`A`, `B` or None for each row's answer; each distinct answer is read once, since labels repeat."""
    known = {answer: choice_of(answer) for answer in {row.answers[0] for row in rows}}
    return [known[row.answers[0]] for row in rows]


def graph_of(rows: Sequence[Sampled]) -> PairGraph:
    """The preferences that the rows state: between the texts of a pairwise question, or two outputs of one prompt."""
    graph = PairGraph()
    for row, choice in zip(rows, choices_of(rows), strict=True):
        pair = pair_of(row.question) if choice else None
        if pair:
            winner, loser = pair if choice == "A" else pair[::-1]
            graph.add(row.line, winner, loser)
        elif len(row.answers) == 2:
            # Two answers to one question: the same answer to another question is another thing.
            graph.add(row.line, row.answers[0], row.answers[1], within=row.question)
    return graph
