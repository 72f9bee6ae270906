"""What spoils training silently: shortcuts to the right answer past the question, and preferences in a circle.

In: a `Sample`. Out: issues, and the figures behind them.

- **Phrase.** A run of up to 8 words that is in at least 90 % of the chosen answers and in at most 10 % of the
  rejected ones, or the other way round. Words of such a run must each be that frequent, so only runs of frequent
  words are counted.
- **Style.** A trait of letter case, punctuation, language or markup (`STYLES`) that is in at least 90 % of the chosen
  answers and in at most 10 % of the rejected ones, or the other way round.
- **Length.** `length_auc`: the chance that a chosen answer is longer than a rejected one of any row (Mann-Whitney U /
  n^2, ties half); `length_share`: the same within rows. Reported from 0.8 or up to 0.2, when a sign test says p < 0.01.
- **Position.** Of pairwise rows, how often the right answer is A; reported when an exact two-sided binomial test
  against one half says p < 0.01 and the share is off by 0.05 or more.
- **Labels.** The share of the most frequent output; reported from 0.8.

Fewer than 10 rows say nothing. Of preferences a graph is made: contradictions and cycles have no order to learn.
"""

from __future__ import annotations

import functools
import json
import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dspy_finetune.export.checks.report import KEPT_PER_CODE, Issue, IssueLog, issue_of

# The texts that the lint looks at: the first rows of a file, up to a bound, and its system prompt.
#
# In: rows one by one. Out: a `Sample`. Statistics of shortcuts are settled by some hundred rows; what is kept must not
# grow with the file.

MAX_ROWS = 20_000
MAX_CHARS = 4_000_000
"""Kept of all texts together; some 10 MB of memory at most."""
_MAX_ROW_CHARS = MAX_CHARS // 10
"""A longer row is passed over: it must not take the place of all that follow."""


class Sampled(NamedTuple):
    """One row."""

    line: int
    """Its line in the file."""
    question: str
    """Text of the last user message."""
    answers: tuple[str, ...]
    """The answer, or the preferred and the rejected one."""


class Sample:
    """The first rows of a file, and what all of them say of the system prompt."""

    def __init__(self) -> None:
        self.rows: list[Sampled] = []
        self.is_open = True
        """False once the bound is reached."""
        self.last_line = 0
        """The last line that is in the sample."""
        self.system: str | None = None
        """The system prompt of the first row."""
        self.is_constant = True
        """Whether every row has the first row's system prompt."""
        self.n_rows = 0
        """Rows seen, in the sample or not."""
        self._chars = 0

    def add(self, line: int, question: str, answers: tuple[str, ...]) -> None:
        """Keep a row."""
        n_chars = len(question) + sum(map(len, answers))
        if n_chars > _MAX_ROW_CHARS:
            return
        self._chars += n_chars
        if len(self.rows) >= MAX_ROWS or self._chars > MAX_CHARS:
            self.is_open = False
            return
        self.rows.append(Sampled(line, question, answers))
        self.last_line = line

    def add_system(self, system: str | None) -> None:
        """Note a row's system prompt."""
        if not self.n_rows:
            self.system = system
        elif self.is_constant and system != self.system:
            self.is_constant = False
        self.n_rows += 1

    @property
    def constant_system(self) -> str | None:
        """The system prompt that all rows share, if there is one."""
        return self.system if self.is_constant else None


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
    styles: tuple[Phrase, ...]
    """Traits of style that do, such as "is in Title Case"."""
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
        styles=tuple(find_styles(pairs[:MAX_PAIRS])) if is_enough else (),
        length_auc=auc([a for a, _ in lengths], [b for _, b in lengths]) if is_enough else None,
        length_share=sum((a > b) + (a == b) / 2 for a, b in lengths) / len(pairs) if is_enough else None,
        n_choices=len(choices),
        a_share=choices.count("A") / len(choices) if choices else None,
        majority_share=max(labels.values()) / n_labelled if labels and n_labelled >= MIN_ROWS else None,
    )


def shortcuts(figures: LintFigures, labels: dict[str, int] | None) -> Iterator[Issue]:
    """The issues that the figures tell."""
    for phrase in figures.phrases:
        yield issue_of(
            "shortcut-phrase",
            f'"{phrase.text}" stands in {phrase.chosen_share:.0%} of the chosen outputs '
            f"and in {phrase.rejected_share:.0%} of the rejected ones",
        )
    for style in figures.styles:
        yield issue_of(
            "shortcut-style",
            f"{style.chosen_share:.0%} of the chosen outputs and {style.rejected_share:.0%} of the rejected ones "
            f"{style.text}",
        )
    if figures.length_auc is not None and figures.length_share is not None:
        gap = max(abs(figures.length_auc - 0.5), abs(figures.length_share - 0.5))
        wins = round(figures.length_share * figures.n_pairs)
        # Half of the gap may come from chance in a few rows: the sign test must agree.
        if gap >= LENGTH_AUC - 0.5 and binomial_p(wins, figures.n_pairs) < SIGNIFICANT:
            longer = "chosen" if figures.length_share > 0.5 else "rejected"
            share = max(figures.length_share, 1 - figures.length_share)
            yield issue_of(
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
            yield issue_of("shortcut-position", found)
    if figures.majority_share is not None and figures.majority_share >= MAJORITY and labels and not is_lopsided:
        top = max(labels, key=lambda label: labels[label])
        n = sum(labels.values())
        found = f"{figures.majority_share:.0%} of {n:,} outputs are {top[:60]!r}, {n - labels[top]:,} are not"
        yield issue_of("label-imbalance", found)


def find_phrases(pairs: Sequence[tuple[str, ...]]) -> Iterator[Phrase]:
    """Phrases that stand in nearly all answers of one side and in nearly none of the other, longest first."""
    sides = {"chosen": [_words(pair[0]) for pair in pairs], "rejected": [_words(pair[1]) for pair in pairs]}
    n = len(pairs)
    runs = {side: _frequent_runs(texts) for side, texts in sides.items()}
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        found: list[tuple[str, ...]] = []
        for gram, n_rows in sorted(runs[side].items(), key=lambda item: (-len(item[0]), item[0])):
            if n_rows < FREQUENT * n or any(_holds(longer, gram) for longer in found):
                continue
            elsewhere = sum(_holds(text, gram) for text in sides[other])
            if elsewhere <= RARE * n:
                found.append(gram)
                shares = {side: n_rows / n, other: elsewhere / n}
                yield Phrase(
                    text=" ".join(gram), side=side, chosen_share=shares["chosen"], rejected_share=shares["rejected"]
                )


# Letter case is told of texts of several words: of one, a label's own spelling.
_CASED = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_SMALL = frozenset("a an the and or but of on in at to for by with from as is vs".split())  # noqa: SIM905  # words
_STOP_WORDS = {
    name: frozenset(words.split())
    for name, words in {
        "English": "the and is of to in that it was with this not are",
        "German": "der die das und ist nicht ein eine zu mit den sich auf",
        "French": "le la les et est une des du pas que dans pour il",
        "Spanish": "el los las es una que por con para no del se y",
        "Italian": "il gli è una che per con non del della sono di",
        "Portuguese": "os as é uma que por com para não do da em",
        "Dutch": "het een en is niet van dat op te met zijn voor",
    }.items()
}
_SCRIPTS = {
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff",
    "Arabic": "\u0600-\u06ff",
    "Hebrew": "\u0590-\u05ff",
    "Devanagari": "\u0900-\u097f",
    "Japanese": "\u3040-\u30ff",
    "Chinese": "\u4e00-\u9fff",
    "Korean": "\uac00-\ud7af",
    "Thai": "\u0e00-\u0e7f",
}


Trait = Callable[[str], "bool | None"]
"""Whether a text has a trait; None where it is too short to tell."""


def _has(pattern: str) -> Trait:
    found = re.compile(pattern, re.MULTILINE)
    return lambda text: found.search(text) is not None


def _case(is_so: Callable[[list[str]], bool]) -> Trait:
    """A trait of letter case, told of the words of a text."""

    def has(text: str) -> bool | None:
        words = _CASED.findall(text)
        return is_so(words) if len(words) > 1 else None

    return has


def _is_title(words: list[str]) -> bool:
    great = [word for i, word in enumerate(words) if not i or word.lower() not in _SMALL]
    return len(great) > 1 and all(word[0].isupper() for word in great) and not all(map(str.isupper, words))


@functools.lru_cache(maxsize=8192)
def _language(text: str) -> str | None:
    """The language whose small words are the most; None where too few are there to tell."""
    words = _CASED.findall(text.lower())
    counts = {name: sum(word in own for word in words) for name, own in _STOP_WORDS.items()}
    best, *others = sorted(counts, key=lambda name: -counts[name])
    return best if counts[best] >= 2 and counts[best] > counts[others[0]] else None


def _is_in(language: str) -> Trait:
    def has(text: str) -> bool | None:
        found = _language(text)
        return None if found is None else found == language

    return has


STYLES: dict[str, Trait] = {
    "are in Title Case": _case(_is_title),
    "are in lower case": _case(lambda words: all(map(str.islower, words))),
    "are in CAPITALS": _case(lambda words: all(map(str.isupper, words))),
    "begin with a capital": _case(lambda words: words[0][0].isupper()),
    "end with a full stop": _has(r"[.。]\s*\Z"),
    "end with a question mark": _has(r"[?？]\s*\Z"),
    "end with an exclamation mark": _has(r"[!！]\s*\Z"),
    "hold an exclamation mark": _has(r"[!！]"),
    "hold a question mark": _has(r"[?？]"),
    "hold a dash (—)": _has(r"[—–]"),
    "stand in quotation marks": _has(r"\A\s*[\"“„«].*[\"”“»]\s*\Z"),
    "hold an emoji": _has("[\U0001f300-\U0001faff\u2600-\u27bf]"),
    "hold a heading in Markdown": _has(r"^#{1,6} \S"),
    "hold a list": _has(r"^\s*(?:[-*•+]|\d+[.)]) +\S"),
    "hold bold text in Markdown": _has(r"\*\*\S|__\S"),
    "hold code in Markdown": _has(r"`[^`]+`|^```"),
    "hold a link": _has(r"https?://|\]\("),
    "hold HTML tags": _has(r"</?[a-zA-Z][\w-]*[^<>]*>"),
    "hold LaTeX": _has(r"\\\(|\\\[|\$\$|\\[a-z]+\{"),
    "have several paragraphs": _has(r"\S\s*\n\s*\n\s*\S"),
    **{f"are in {language}": _is_in(language) for language in _STOP_WORDS},
    **{f"hold {name} letters": _has(f"[{span}]") for name, span in _SCRIPTS.items()},
}
"""Traits of style, each as the end of a sentence about outputs."""


def find_styles(pairs: Sequence[tuple[str, ...]]) -> Iterator[Phrase]:
    """Traits of style that nearly all answers of one side have and nearly none of the other."""
    sides = [[pair[i][: 2 * _HALF_CHARS] for pair in pairs] for i in (0, 1)]
    for text, has in STYLES.items():
        told = [[value for value in map(has, side) if value is not None] for side in sides]
        if min(map(len, told)) < max(MIN_ROWS, FREQUENT * len(pairs)):
            continue
        chosen, rejected = (sum(values) / len(values) for values in told)
        if max(chosen, rejected) >= FREQUENT and min(chosen, rejected) <= RARE:
            side = "chosen" if chosen > rejected else "rejected"
            yield Phrase(text=text, side=side, chosen_share=chosen, rejected_share=rejected)


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


# Inputs that are empty: a question such as "Title: ", which ends where those of the other rows go on.
#
# In: the questions of rows and their lines. Out: `input-empty` issues. What belongs to the template is read off the
# rows themselves, so that a file of any origin can be checked: a line "Title:" with nothing behind it counts where at
# least half of the looked-at rows have a line that begins so, and some of them with something behind it. Not covered:
# an empty value inside a line ("Bees in , today"), and a field that is empty in nearly all rows.

_LABEL = r"[^\n:]{1,80}:"
_BARE = re.compile(rf"^({_LABEL})[^\S\n]*$(?=\Z|\n{_LABEL}(?:[^\S\n]|$))", re.MULTILINE)
"""A label with nothing behind it, at the end or before another label."""
_HEADED = re.compile(r"^(\[\[ ## \w+ ## \]\])\n[^\S\n]*\n|^(<(\w+)>)\n[^\S\n]*\n</\3>$", re.MULTILINE)
"""An empty field as DSPy's adapters write it."""
_MOST_PLACES, _MOST_CHARS = 1000, 500
_ASKED = 500
"""Maximum number of questions that the template is inferred from."""
_LEAST_SHARE, _LEAST_FILLED = 0.5, 0.05


def may_lack(question: str) -> bool:
    """Whether a question is worth a closer look; nearly none is."""
    return (
        question[-1:] == ":"
        or question[-1:].isspace()
        or ("\n" in question and (": \n" in question or ":\n" in question or "\n\n" in question))
    )


@dataclass
class _Place:
    """Rows in which nothing stands at one place."""

    n_rows: int = 0
    at: list[tuple[int, str]] = field(default_factory=list)  # line and JSON path of the first of them


class EmptyInputs:
    """Finds the rows whose question may lack an input, and tells those that do.

    >>> found, log = EmptyInputs(), IssueLog()
    >>> questions = ["Title: Bees", "Title: Ants", "Title: "]
    >>> for line, question in enumerate(questions, start=1):
    ...     if may_lack(question):
    ...         found.note(line, question, "messages[0].content")
    >>> found.report(log, questions)
    >>> [(issue.line, issue.message) for issue in log.issues()]
    [(3, 'nothing stands behind "Title:"')]
    """

    def __init__(self) -> None:
        self._labels: dict[str, _Place] = {}  # by label
        self._ends: dict[str, _Place] = {}  # by the question up to its last word and a blank
        self._alone: dict[str, _Place] = {}  # by the first label of questions that are nothing but labels
        self._headed: dict[str, _Place] = {}  # by an adapter's heading

    def note(self, line: int, question: str, path: str) -> None:
        """Take a row that may lack an input; `path` is the question's place in it."""
        whole = question.rstrip()
        headed = [match[1] or match[2] for match in _HEADED.finditer(question)]
        labels = [match[1] for match in _BARE.finditer(question)]
        if labels and not _BARE.sub("", question).strip():
            _add(self._alone, labels[0], line, path)
        elif headed:
            _add(self._headed, headed[0], line, path)
        elif labels:
            for label in labels:
                _add(self._labels, label, line, path)
        elif whole != question and len(whole) <= _MOST_CHARS:
            _add(self._ends, question[: len(whole) + 1], line, path)

    def report(self, log: IssueLog, questions: Sequence[str]) -> None:
        """Report the rows that lack an input, going by the questions of the first rows."""
        questions = questions[:: len(questions) // _ASKED + 1]
        for label, place in self._headed.items():
            _tell(log, place, f"nothing stands behind {_quoted(label)}")
        for places, least_filled in ((self._labels, _LEAST_FILLED), (self._alone, -1.0)):
            for label, place in places.items():
                if _is_template(label, questions, least_filled):
                    _tell(log, place, f"nothing stands behind {_quoted(label)}")
        for start, place in self._ends.items():
            longer = sum(question.startswith(start) and len(question.rstrip()) > len(start) for question in questions)
            if longer >= _LEAST_SHARE * len(questions) > 0:
                _tell(log, place, f"the question ends where others go on, behind {_quoted(start.rstrip()[-40:])}")


def _is_template(label: str, questions: Sequence[str], least_filled: float) -> bool:
    """Whether a label is part of what the rows share, and has something behind it in more than that share of them."""
    beginning = re.compile(rf"^{re.escape(label)}([^\S\n]*\S)?", re.MULTILINE)
    n_rows = n_filled = 0
    for question in questions:
        found = beginning.search(question)
        n_rows += found is not None
        n_filled += found is not None and found[1] is not None
    return n_rows >= _LEAST_SHARE * len(questions) and n_filled > least_filled * len(questions)


def _add(places: dict[str, _Place], key: str, line: int, path: str) -> None:
    place = places.get(key)
    if place is None:
        if len(places) >= _MOST_PLACES:
            return
        place = places[key] = _Place()
    place.n_rows += 1
    if len(place.at) < KEPT_PER_CODE:
        place.at.append((line, path))


def _tell(log: IssueLog, place: _Place, message: str) -> None:
    for line, path in place.at:
        log.add(line, path, "input-empty", message)
    log.counts["input-empty"] += place.n_rows - len(place.at)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# Preferences as a graph: contradictions (A > B and B > A) and cycles (A > B, B > C, C > A).
#
# In: pairs of texts, the better one first, with their lines. Out: issues that print the circle.
# A cycle of preferences has no order that a model could learn. One shortest cycle is reported for each knot of texts
# that are in circles together (strongly connected component); the rest of a knot mostly falls away when that one is
# mended.

MAX_REPORTED = 100
"""Cycles, and contradictions, that are listed."""

_SIDE = r"^(?:[ \t]*\[\[ ## \w+_{0} ## \]\]\s*\n|[ \t]*(?:\w+[ _])?{0}[ \t]*[:.)][ \t]*)(?P<text>\S.*)$"
_A = re.compile(_SIDE.format("a"), re.IGNORECASE | re.MULTILINE)
_B = re.compile(_SIDE.format("b"), re.IGNORECASE | re.MULTILINE)
_CHOICE = re.compile(
    r"\s*[\"'*(\[]*(?:\[\[ ## \w+ ## \]\]\s*)?"
    r"(?:(?:I(?: would|'d)? )?(?:choose|prefer|pick)|(?:the )?(?:answer|choice)(?: is)?|preferred)?"
    r"[:\s*(]*(?P<choice>[AB])(?=[\"'*)\]]*(?:[\s]*$|[:.,;)\n]|\s+[-–—]|\s*\[\[))",
    re.IGNORECASE,
)


def pair_of(question: str) -> tuple[str, str] | None:
    """The two texts of a pairwise question ("A: ..." and "B: ..." on lines of their own), or None.

    >>> pair_of("Which is better?\\nA: First\\nB: Second")
    ('First', 'Second')
    """
    a, b = _A.search(question), _B.search(question)
    return (a["text"].strip(), b["text"].strip()) if a and b else None


def choice_of(answer: str) -> str | None:
    """`A` or `B`, if the answer begins with a choice.

    >>> choice_of("I would choose B: Second. It is better.")
    'B'
    """
    found = _CHOICE.match(answer)
    return found["choice"].upper() if found else None


class PairGraph:
    """Texts as nodes; an edge from the better to the worse one, with the first line that says so."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, str], int] = {}
        self._names: list[str] = []
        self._worse: list[dict[int, int]] = []

    def add(self, line: int, better: str, worse: str, *, within: str = "") -> None:
        """Add a preference; `within` keeps apart texts that are compared in different places."""
        if better != worse:
            self._worse[self._node(better, within)].setdefault(self._node(worse, within), line)

    def _node(self, text: str, within: str) -> int:
        node = self._ids.setdefault((within, text), len(self._names))
        if node == len(self._names):
            self._names.append(text)
            self._worse.append({})
        return node

    def contradictions(self) -> Iterator[tuple[int, int]]:
        """Pairs of nodes that are preferred both ways."""
        for a, worse in enumerate(self._worse):
            for b in worse:
                if a < b and a in self._worse[b]:
                    yield a, b

    def cycles(self) -> Iterator[list[int]]:
        """One shortest cycle of at least three texts for each knot, contradictions left out."""
        graph = [{b for b in worse if a not in self._worse[b]} for a, worse in enumerate(self._worse)]
        for knot in _components(graph):
            members = set(knot)
            # The shortest circle through the first few texts of the knot: exact for small knots, short for large ones.
            found = [path for start in sorted(knot)[:50] if (path := _shortest(graph, start, members))]
            if found:
                yield min(found, key=len)

    def issues(self) -> Iterator[Issue]:
        """The issues of the graph."""
        for i, (a, b) in enumerate(self.contradictions()):
            if i == MAX_REPORTED:
                break
            first, second = self._worse[a][b], self._worse[b][a]
            if first > second:
                a, b, first, second = b, a, second, first
            found = f"{self._shown(a)} > {self._shown(b)} in line {first}, and the other way round here"
            yield issue_of("preference-contradiction", found, line=second)
        for i, cycle in enumerate(self.cycles()):
            if i == MAX_REPORTED:
                break
            edges = list(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
            lines = [self._worse[a][b] for a, b in edges]
            steps = [
                f"{self._shown(a)} > {self._shown(b)} (line {line})" for (a, b), line in zip(edges, lines, strict=True)
            ]
            yield issue_of("preference-cycle", ", ".join(steps), line=max(lines))

    def _shown(self, node: int) -> str:
        name = " ".join(self._names[node].split())
        return repr(name if len(name) <= 60 else name[:59] + "…")


def _components(graph: list[set[int]]) -> Iterator[list[int]]:
    """Strongly connected components of more than one node: Tarjan's algorithm, without recursion."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in range(len(graph)):
        if root in order:
            continue
        work = [(root, iter(graph[root]))]
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, children = work[-1]
            for child in children:
                if child not in order:
                    order[child] = low[child] = len(order)
                    stack.append(child)
                    on_stack.add(child)
                    work.append((child, iter(graph[child])))
                    break
                if child in on_stack:
                    low[node] = min(low[node], order[child])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == order[node]:
                    component = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component.append(member)
                        if member == node:
                            break
                    if len(component) > 1:
                        yield component


def _shortest(graph: list[set[int]], start: int, members: set[int]) -> list[int]:
    """The shortest way from a node back to itself, breadth first."""
    came_from: dict[int, int] = {}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        for child in sorted(graph[node] & members):
            if child == start:
                path = [node]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return path[::-1]
            if child not in came_from:
                came_from[child] = node
                waiting.append(child)
    return []
