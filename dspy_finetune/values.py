r"""THE reading of values: booleans, labels and numbers are written, read and compared here and nowhere else.

In: a value of a program's own type, or the text that a model wrote for it. Out: `LabelSet` and `NumberFormat`, the two
codecs, with `encode` (value -> text, for training), `decode` (text -> value) and `read` (value or text -> value);
`load_bool` and its like for a cell of a person's file, which are stricter. What cannot be read raises `AnswerError`
(from a file: `Unparseable`, with a remedy); it is never taken for wrong, for False or for 1. docs/values.md holds the
one table of what each text reads as; a test compares it with this module.

Reading goes from the text outwards in, and stops where one value alone can be meant:

1. the text itself;
2. without what a chat template leaves in it: `<|im_end|>`, `</s>`, a closed `<think>` block (`answer_text`);
3. without its frame: a code fence, `[[ ## field ## ]]`, a JSON object of one key, `**bold**`, quotes, one last mark;
4. without a lead that names no value: `Answer:`, `The answer is`, the field's own name.

Not covered: probabilities (predictors/probabilities.py), layouts of several outputs (prompts/answers.py), free text,
which stays as it is.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import json
import math
import re
import struct
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin

from dspy_finetune.errors import AnswerError, RowError, UsageError

TIE_WORDS = frozenset({"tie", "tied", "draw", "equal", "both", "neither", "same"})
"""What is written where neither of two sides is preferred."""
TRUE_WORDS = ("true", "yes", "y", "t", "1", "1.0")
"""The words for True, in any letter case; `1.0` is what pandas makes of a column with an empty cell."""
FALSE_WORDS = ("false", "no", "n", "f", "0", "0.0")
"""The words for False."""

_MAX_CHARS = 5000
"""The longest text in which a label or number is looked for, reasoning and frames aside; an int can be that long."""

MAX_LABELS = 20
"""More kinds of values in a column than these are numbers or free text."""

_MISSING = object()


class Unparseable(ValueError):
    """A cell of a file cannot be read as its field's type; the loader adds the place and makes it a RowError."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


# -- what surrounds an answer -----------------------------------------------------------------------------------------

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20, 0xFFE1: 0xA3, 0xFFE5: 0xA5}
"""Full-width letters, digits and marks as the plain ones. Not Unicode's NFKC, which reads 10² as 102."""
_INVISIBLE = dict.fromkeys([0x200B, 0x2060, 0xFEFF, 0xFE0E, 0xFE0F])
"""Zero-width blanks and the selectors between an emoji's coloured and plain form."""

_REASONING = r"[<\[◁](?P<slash>/?)(?:think|thinking|thought|reasoning|analysis|scratchpad|reflection)[>\]▷]"
_TOKEN = r"<[|｜][^<>\n]{1,60}[|｜]>|<\|[^<>|\s]{1,40}>|<[^<>|\s]{1,40}\|>"
_END = re.compile(
    rf"{_TOKEN}|</s>|<s>|<(?:eos|bos|pad|end_of_turn|start_of_turn)>|\[/?INST\]|\[EOS\]|<end_of_utterance>",
    re.IGNORECASE,
)
_START = re.compile(
    rf"\s*(?:(?:{_TOKEN}|<s>|<bos>|<start_of_turn>|\[/INST\])\s*)+(?:(?:assistant|model|ai|bot)\b\s*"
    rf"(?:<\|end_header_id\|>|<\|message\|>|:)?)?\s*",
    re.IGNORECASE,
)
_FINAL_CHANNEL = "<|channel|>final<|message|>"


@functools.cache
def _reasoning() -> tuple[re.Pattern[str], re.Pattern[str]]:
    mark = re.compile(_REASONING, re.IGNORECASE)
    return mark, re.compile(r"<[|｜]channel[|｜]>", re.IGNORECASE)


def answer_text(text: str) -> str:
    r"""What a model said, without its reasoning and without the marks that a chat template left in it.

    A closed `<think>` block is read past, empty or not; so is reasoning whose opening mark stood in the prompt. The
    first end mark ends the answer.

    >>> answer_text("<think>\n\n</think>\n\ntrue<|im_end|>")
    'true'

    Raises:
        AnswerError: Nothing is left, or the reasoning has no end.
    """
    body = text
    if "<" in text or "[" in text or "◁" in text:
        body = _without_reasoning(text)
        if (start := _START.match(body)) is not None:
            body = body[start.end() :]
        if (end := _END.search(body)) is not None:
            body = body[: end.start()]
    body = body.translate(_INVISIBLE).strip() if not body.isascii() else body.strip()
    if not body:
        raise AnswerError(
            f"the answer {text!r:.80} is empty" if not text.strip() else f"the answer {text!r:.80} holds no answer",
            text=text,
        )
    return body


_THOUGHT = re.compile(r"\s*(?:<think>.*?</think>\s*)+", re.DOTALL)
_LAST_MARKS = re.compile(rf"(?:{_TOKEN}|</s>|<(?:eos|end_of_turn)>|\s)+\Z")


def free_text(text: str) -> str:
    """A text answer as it is, but for a closed `<think>` block before it and end marks behind it.

    >>> free_text("<think>\\n\\n</think>\\n\\nParis <s>or so</s> it seems<|im_end|>")
    'Paris <s>or so</s> it seems'

    Raises:
        AnswerError: It is reasoning alone.
    """
    body = text
    if thought := _THOUGHT.match(text):
        body = text[thought.end() :]
    if ("<think>" in body[:20] and body.lstrip().startswith("<think>")) or (body != text and not body.strip()):
        raise AnswerError(f"the answer {text!r:.80} holds reasoning and no answer", text=text)
    tail = body[-400:]
    if "<" in tail and tail.rstrip().endswith(">") and (marks := _LAST_MARKS.search(tail)):
        body = body[: len(body) - len(marks.group())]
    return body


def _without_reasoning(text: str) -> str:
    mark, channel = _reasoning()
    if channel.search(text):  # the "harmony" format: analysis and final are channels of one text
        _, found, body = text.rpartition(_FINAL_CHANNEL)
        if not found:
            raise AnswerError(f"the answer {text!r:.80} holds reasoning and no answer", text=text)
        return body
    kept, depth, position = "", 0, 0
    for found_mark in mark.finditer(text):
        if found_mark["slash"]:
            if depth == 0:
                kept = ""  # the opening mark stood in the prompt: all so far was reasoning
            depth = max(depth - 1, 0)
        else:
            kept += "" if depth else text[position : found_mark.start()]
            depth += 1
        position = found_mark.end()
    if depth:
        raise AnswerError(f"the answer {text!r:.80} is reasoning that was cut off before the answer", text=text)
    return kept + text[position:]


def fold(text: str) -> str:
    """A label's text for comparing: letter case, outer and doubled blanks and an emoji's selector do not count."""
    if text.isascii():
        return text.casefold() if text.isalnum() else " ".join(text.split()).casefold()
    plain = unicodedata.normalize("NFC", text).translate(_FULL_WIDTH).translate(_INVISIBLE)
    return " ".join(plain.split()).casefold()


_PAIRS = {
    '"': '"',
    "'": "'",
    "`": "`",
    "“": "”",
    "„": "“",
    "‘": "’",
    "«": "»",
    "‹": "›",
    "「": "」",
    "*": "*",
    "_": "_",
}
_PAIRS |= {"(": ")", "[": "]"}
_MARKS = ".,;:!?)。、！？，：；．"
_BOXED = re.compile(r"\$*\s*\\boxed\{\s*(?:\\text\{(?P<text>[^{}]*)\}|(?P<body>[^{}]*))\s*\}\s*\.?\s*\$*")
_TAG = re.compile(r"<(?P<tag>[A-Za-z_][\w-]*)>(?P<body>[^<>]*)</(?P=tag)>")
_BOLD = re.compile(r"(?<![\w*_])(\*\*|__)(?=\S)(?P<body>.+?)(?<=\S)\1(?![\w*_])", re.DOTALL)
_BULLET = re.compile(r"(?:[-*•>:]\s+|#{1,6}\s+)")
_SECTION = re.compile(r"\[\[ ## (?P<name>\w+) ## \]\]")
_REASON_NAMES = frozenset({"reasoning", "rationale", "completed", "thought", "explanation"})
_ANSWER_NAMES = frozenset(
    {
        *("answer", "final_answer", "label", "output", "result", "response", "choice", "prediction", "preferred"),
        *("preference", "verdict", "decision", "category", "class", "classification", "sentiment", "score", "rating"),
        *("grade", "value", "number", "price", "estimate"),
    }
)


def _is_about(key: str, name: str | None) -> bool:
    """Whether a key or tag names the answer: the field's own name, or one of the usual words."""
    found = key.strip().casefold().replace("-", "_").replace(" ", "_")
    return found in _ANSWER_NAMES or (name is not None and found == name.casefold())


def _framed(body: str, name: str | None) -> str | None:
    """What stands in a frame around the whole of an answer; None without one."""
    if body.startswith(("```", "~~~")) and body.endswith(body[:3]) and len(body) > 6:
        first, _, rest = body[3:-3].partition("\n")
        return rest.strip() if rest and re.fullmatch(r"[\w+-]*[ \t]*", first) else body[3:-3].strip()
    if "[[ ## " in body:
        return _section(body, name)
    if body.startswith("{") and body.endswith("}"):
        return _only_value(body, name)
    if "\\boxed" in body and (found := _BOXED.fullmatch(body)):
        return (found["text"] or found["body"] or "").strip()
    if body.startswith("<") and (found := _TAG.fullmatch(body)) and _is_about(found["tag"], name):
        return found["body"].strip()
    return None


def sections_of(body: str) -> dict[str, str]:
    """The sections of DSPy's chat layout by name; none where a name stands twice."""
    marks = list(_SECTION.finditer(body))
    ends = [*(mark.start() for mark in marks[1:]), len(body)]
    found = {mark["name"]: body[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=False)}
    return found if len(found) == len(marks) else {}


def _section(body: str, name: str | None) -> str | None:
    """The one section that can hold the answer."""
    found = sections_of(body)
    if name is not None:
        return found.get(name)
    rest = [text for key, text in found.items() if key.casefold() not in _REASON_NAMES]
    return rest[0] if len(rest) == 1 else None


def _only_value(body: str, name: str | None) -> str | None:
    """The value of a JSON object's only key, if that names the answer."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    keys = [key for key in found if _is_about(key, name)] if len(found) > 1 else list(found)
    if len(found) > 1:
        keys = [key for key in keys if name is not None and key.casefold() == name.casefold()]
    if len(keys) != 1 or not _is_about(keys[0], name):
        return None
    value = found[keys[0]]
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, (bool, int, float)) else None


@functools.lru_cache(maxsize=256)
def label_lead(name: str | None) -> re.Pattern[str]:
    """What may stand before a label without naming one. There is no "not" in it, and none may stand after it."""
    own = "" if not name else "|" + r"[\s_]+".join(map(re.escape, name.split("_")))
    noun = (
        r"answer|label|choice|pick|preference|preferred|prediction|classification|category|class|verdict|decision|output"
        rf"|result|response|grade|score|rating|sentiment|option{own}"
    )
    return re.compile(
        r"(?:(?:so|therefore|thus|hence|okay|ok|sure|certainly|of course)\s*[,.:!]\s*)?(?:"
        rf"(?:(?:the|my|our)\s+)?(?:(?:final|correct|best|right|predicted|most\s+likely)\s+)?(?:{noun})"
        rf"(?:\s+(?:is|would\s+be|should\s+be)\b\s*:?|\s*(?::|=|->|→|\n))"
        r"|i(?:\s+would|['’]d|\s+will|['’]ll)?\s+(?:choose|pick|prefer|select|go\s+with|say|answer)\b\s*:?"
        r"|(?:it|this|that)(?:\s+is|['’]s)\b\s*:?"
        r")\s*(?:(?:title|option|article|item|choice|label)\s+)?"
        r"|(?:title|option|article|item|choice|label|answer)\s+",
        re.IGNORECASE,
    )


def _unquote(text: str) -> str:
    if len(text) > 4 and text[:2] in ("**", "__") and text.endswith(text[:2]):
        return text[2:-2].strip()
    if len(text) > 2 and _PAIRS.get(text[0]) == text[-1]:
        return text[1:-1].strip()
    return text


def _unmark(text: str) -> str:
    if text[-1:] == ")" and "(" in text:
        return text
    return text[:-1].rstrip() if len(text) > 1 and text[-1] in _MARKS else text


def _readings(text: str) -> list[str]:
    """The text itself, and it without one or two pairs of quotes, one last mark, or both in either order."""
    unquoted, unmarked = _unquote(text), _unmark(text)
    twice = _unquote(unquoted)
    forms = [text, unquoted, unmarked, _unmark(unquoted), _unquote(unmarked), twice, _unmark(twice)]
    return [form for form in dict.fromkeys([*forms, _unquote(_unquote(unmarked))]) if form]


def _stages(body: str, name: str | None) -> Iterator[list[str]]:
    """The forms of an answer, from the text itself inwards; a later one counts only where the earlier gave nothing."""
    yield _readings(body)
    inner, n_frames = body, 0
    while n_frames < 4 and (framed := _framed(inner, name)):
        inner, n_frames = framed, n_frames + 1
    if len(inner) > _MAX_CHARS:  # no label; the patterns below would take long over it
        return
    plain = _BOLD.sub(lambda match: match["body"], inner).strip()
    if bullet := _BULLET.match(plain):
        plain = plain[bullet.end() :].strip()
    if plain != body:
        yield _readings(plain)
    for start in dict.fromkeys([plain, _unquote(plain)]):
        if lead := label_lead(name).match(start):
            rest = start[lead.end() :].strip()
            if framed := _framed(rest, name):
                rest = framed
            if rest:
                yield _readings(rest)


# -- labels -----------------------------------------------------------------------------------------------------------


def plain_label(value: Any) -> Any:
    """A label as a plain value: an Enum member as its value, numpy's scalars as Python's, 3.0 as 3."""
    if type(value) in (str, bool, int):
        return value
    if isinstance(value, enum.Enum):
        value = value.value
    if type(value).__module__.partition(".")[0] in ("numpy", "torch") and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, (float, Decimal)) and not isinstance(value, bool):
        # A table with one empty cell reads all its whole numbers as 3.0.
        return int(value) if math.isfinite(value) and value == int(value) else value
    return str(value) if isinstance(value, str) and type(value) is not str else value


def label_text(value: Any) -> str:
    """A label as text, the same for True, "True" and " true. ", for 3, 3.0 and "3", for an Enum member and its value.

    Texts are read as answers are: without a frame, quotes, a last mark or a lead.

    >>> label_text(True), label_text("A."), label_text("**Answer:** red"), label_text(3.0)
    ('true', 'a', 'red', '3')
    """
    plain = plain_label(value)
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if not isinstance(plain, str):
        return fold(str(plain))
    if plain.isalnum() and plain.isascii():
        return plain.casefold()
    if plain.isascii() and plain.replace(" ", "").isalnum() and not label_lead(None).match(plain.strip()):
        return fold(plain)
    try:
        return _folded_label(_innermost(answer_text(plain)))
    except AnswerError:
        return fold(plain)


def bare_label(value: Any) -> Any:
    """A label as a plain value; a text without what surrounds the label in it, its letter case kept.

    >>> bare_label("**Answer:** Red."), bare_label(3.0), bare_label(True)
    ('Red', 3, True)

    Raises:
        AnswerError: There is nothing to read.
    """
    plain = plain_label(value)
    check_answer(plain)
    return _innermost(answer_text(plain)) if isinstance(plain, str) else plain


def _innermost(body: str) -> str:
    text = body
    for forms in _stages(body, None):
        text = forms[0]
    return _unquote(_unmark(_unquote(text))) or text


def _folded_label(text: str) -> str:
    return fold(whole[1]) if (whole := _WHOLE.fullmatch(text)) else fold(text)


_WHOLE = re.compile(r"([+-]?\d+)\.0+", re.ASCII)


class _Index:
    """Which of some values a text names: in its own spelling first, else whatever its letter case, where it is one."""

    def __init__(self, texts: Iterable[tuple[str, Any]], *, is_bool: bool = False, has_synonyms: bool = True) -> None:
        self.exact: dict[str, Any] = {}
        self.folded: dict[str, list[Any]] = {}
        for text, value in texts:
            self.exact.setdefault(text.strip(), value)
            known = self.folded.setdefault(fold(text), [])
            if not any(one is value or (type(one) is type(value) and one == value) for one in known):
                known.append(value)
        if has_synonyms:
            self._add_bool_words(is_bool)
        self._has_whole = any(re.fullmatch(r"[+-]?\d+", text, re.ASCII) for text in self.exact)

    def _add_bool_words(self, is_bool: bool) -> None:
        sides = ((True, TRUE_WORDS), (False, FALSE_WORDS))
        if is_bool:
            # A text that is the other side's word, as in {True: "no", False: "yes"}, leaves no word to be trusted.
            own = {word: value for value, words in sides for word in words}
            if any(own.get(text, value) is not value for text, values in self.folded.items() for value in values):
                return
            for value, words in sides:
                for word in words:
                    self.folded.setdefault(word, [value])
            return
        for pair, other in ((("true", "false"), ("yes", "no")), (("yes", "no"), ("true", "false"))):
            if set(self.folded) == set(pair):
                for text, word in zip(pair, other, strict=True):
                    self.folded[word] = self.folded[text]

    def find(self, forms: Sequence[str]) -> list[Any]:
        """The values that the forms may name: none, one, or several that cannot be told apart."""
        exact = _distinct(self.exact[form] for form in forms if form in self.exact)
        if exact:
            return exact
        return _distinct(value for form in forms for value in self.folded_of(form))

    def folded_of(self, form: str) -> list[Any]:
        found = self.folded.get(key := fold(form), [])
        if not found and self._has_whole and (whole := _WHOLE.fullmatch(key)):
            found = self.folded.get(whole[1], [])
        return found


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if not any(one is value or (type(one) is type(value) and one == value) for one in found):
            found.append(value)
    return found


class LabelSet(Mapping[Any, str]):
    """An ordered mapping from label values to the texts a model writes for them.

    Example:
        >>> labels = LabelSet({True: "true", False: "false"})
        >>> labels.encode(True), labels.decode(" False. "), labels.decode("The answer is yes")
        ('true', False, True)

    Two texts may differ in case alone ("A" and "a"): then an answer must match the case. Two texts that differ only in
    surrounding whitespace are refused, because many chat templates trim it away.

    Args:
        labels: Value -> text, in order.

    Raises:
        UsageError: Fewer than two labels, a blank text, the same text or an equal value twice.
    """

    def __init__(self, labels: Mapping[Any, str]) -> None:
        self._text_by_value: dict[Hashable, str] = dict(labels)
        if len(self._text_by_value) < 2:
            raise UsageError(f"labels: at least two labels are needed, got {len(self._text_by_value)}")
        seen: set[str] = set()
        for value, text in self._text_by_value.items():
            if not isinstance(text, str) or not text.strip():
                raise UsageError(f"labels: the text of {value!r} must hold something to read, got {text!r}")
            if text.strip() in seen:
                raise UsageError(f"labels: two labels have the text {text.strip()!r}; give each value its own text")
            seen.add(text.strip())
        # bool is a kind of int and True == 1: the types are compared too, so that 1 is not taken for True.
        self._types = frozenset(type(value) for value in self._text_by_value)
        self._is_bool = self._types == {bool}
        self._index = _Index(((text, value) for value, text in self._text_by_value.items()), is_bool=self._is_bool)

    @classmethod
    def of(cls, annotation: Any) -> LabelSet | None:
        """The labels of a bool, Literal or Enum annotation; None for any other type.

        bool gives "true" and "false", a Literal its members' texts, an Enum its members' values.

        Raises:
            UsageError: The members cannot be told apart by their texts, or are neither str, int nor bool.
        """
        if annotation is bool:
            return cls({True: "true", False: "false"})
        members: Sequence[Any]
        if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
            members = list(annotation)
        elif get_origin(annotation) is Literal:
            members = get_args(annotation)
        else:
            return None
        seen: list[Any] = []
        for member in members:
            if any(member == other and type(member) is not type(other) for other in seen):
                raise UsageError(f"labels: {member!r} equals another label of another type; they cannot be told apart")
            seen.append(member)
        texts = [_member_text(member) for member in members]
        for text in texts:
            if texts.count(text) > 1:
                raise UsageError(f"labels: two labels have the text {text!r}; give each value its own text")
        return cls(dict(zip(members, texts, strict=True)))

    @classmethod
    def among(cls, values: Iterable[Any]) -> LabelSet | None:
        """The labels of a column; None for fewer than two, or more kinds than a column of labels has.

        A column has labels where it holds at most `MAX_LABELS` kinds, each twice in the mean: then another answer is no
        label. A column of True and False, as values or as words for them, is read as a bool is, even where one of the
        two is missing.
        """
        given = list(values)
        kinds: dict[str, Any] = {}
        for value in given:
            kinds.setdefault(label_text(value), value)
        if any(isinstance(plain_label(value), bool) or label_text(value) in ("true", "false") for value in given):
            with contextlib.suppress(AnswerError):
                for value in kinds.values():
                    BOOL.read(value)
                return BOOL
        if not 2 <= len(kinds) <= min(MAX_LABELS, max(len(given) // 2, 2)) or "" in kinds:
            return None
        return cls({value: shown_label(value) for value in kinds.values()})

    @property
    def texts(self) -> tuple[str, ...]:
        """The label texts, in order."""
        return tuple(self._text_by_value.values())

    @property
    def values_in_order(self) -> tuple[Any, ...]:
        """The label values, in order."""
        return tuple(self._text_by_value)

    @property
    def spellings(self) -> tuple[str, ...]:
        """The label texts and the other words that are read for them, such as "yes" for True."""
        return tuple(dict.fromkeys([*self.texts, *self._index.folded]))

    def encode(self, value: Any) -> str:
        """The text of a value.

        Raises:
            RowError: The value is none of the labels. 1 is not True, "true" is not True.
        """
        if type(value) in self._types:
            text = self._text_by_value.get(value)
            if text is not None:
                return text
        return self._encode_kin(value)

    def _encode_kin(self, value: Any) -> str:
        """Encode what stands for a label: an Enum member for its value or the reverse, a numpy scalar, a str kind."""
        label = self._same_value(value, is_whole_enough=False)
        if label is _MISSING:
            raise RowError(
                f"{value!r:.80} ({type(value).__name__}) is none of the labels {self._listed()}",
                value=value,
                remedy="correct the row, or convert the column with load_examples(types=...)",
            )
        return self._text_by_value[label]

    def _same_value(self, value: Any, *, is_whole_enough: bool = True) -> Any:
        """The label of the same type and value, or _MISSING."""
        plain = value if isinstance(value, float) and not is_whole_enough else plain_label(value)
        for label in self._text_by_value:
            own = plain_label(label)
            if label is value or (type(own) is type(plain) and own == plain):
                return label
        return _MISSING

    def decode(self, text: str, *, name: str | None = None) -> Any:
        """The value that a text names; `name` is the field's, which may stand before it.

        Raises:
            AnswerError: The text is no label, or could be more than one; `.text` keeps it.
        """
        value = self._index.exact.get(text.strip(), _MISSING)
        if value is not _MISSING:
            return value
        for forms in _stages(answer_text(text), name):
            found = self._index.find(forms)
            if len(found) == 1:
                return found[0]
            if found:
                raise AnswerError(
                    f"the answer {text!r:.80} could be more than one of the labels {self._listed()}", text=text
                )
        raise AnswerError(f"the answer {text!r:.80} is none of the labels {self._listed()}", text=text)

    def read(self, value: Any, *, name: str | None = None) -> Any:
        """The label that a program's answer is: a label itself, what equals it, or a text that names it.

        3.0 and "3" are 3. True is no number and 1 is no bool: they are none of each other's labels.

        Raises:
            AnswerError: It is none of the labels, or could be more than one.
        """
        if isinstance(value, str) and type(value) is str:
            return self.decode(value, name=name)
        label = self._same_value(value)
        if label is not _MISSING:
            return label
        plain = plain_label(value)
        if plain is None:
            raise AnswerError("the answer is empty (None)", text="")
        # True is none of the numbers 1 and 0, and they are none of True and False: only their words are.
        is_of_kind = self._is_words() if isinstance(plain, bool) else not (self._is_bool and isinstance(plain, int))
        if is_of_kind and isinstance(plain, (str, int)):
            try:
                return self.decode(_member_text(plain), name=name)
            except AnswerError:
                pass
        raise AnswerError(f"the answer {value!r:.80} is none of the labels {self._listed()}", text=str(value))

    @property
    def is_case_sensitive(self) -> bool:
        """Whether two of the texts differ in letter case alone."""
        return any(len(values) > 1 for values in self._index.folded.values())

    def key(self, value: Any) -> str:
        """The text by which an answer's label is counted: `label_text`, or the exact text where letter case matters.

        Raises:
            AnswerError: The answer is none of the labels.
        """
        label = self.read(value)
        return self._text_by_value[label] if self.is_case_sensitive else label_text(label)

    def _is_words(self) -> bool:
        """Whether a bool can stand for one of these labels: where they are words, not numbers."""
        return not all(isinstance(plain_label(label), int) for label in self)

    def _listed(self) -> str:
        shown = ", ".join(f'"{text}"' for text in self.texts[:12])
        return shown + (f" and {len(self) - 12} more" if len(self) > 12 else "")

    def __getitem__(self, value: Any) -> str:
        return self._text_by_value[value]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._text_by_value)

    def __len__(self) -> int:
        return len(self._text_by_value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelSet) and list(self.items()) == list(other.items()) and self._types == other._types

    def __hash__(self) -> int:
        return hash(self.texts)

    def __repr__(self) -> str:
        return f"LabelSet({self._text_by_value!r})"


BOOL = LabelSet({True: "true", False: "false"})
"""The labels of a bool."""


def _member_text(member: Any) -> str:
    value = member.value if isinstance(member, enum.Enum) else member
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return str(value)
    raise UsageError(f"labels: {member!r} is neither str, int nor bool; give its text with labels={{value: text}}")


def shown_label(value: Any) -> str:
    """A label as its file writes it; a bool in lower case, a whole number without `.0`.

    >>> shown_label("Very Good "), shown_label(True), shown_label(3.0)
    ('Very Good', 'true', '3')
    """
    plain = plain_label(value)
    return plain.strip() if isinstance(plain, str) else label_text(plain)


def label_column(values: Sequence[Any]) -> tuple[list[str], dict[str, Any]]:
    """Each label of a column as its text, and the value that each text stands for: the first seen, of a bool the bool.

    >>> label_column([True, "yes", "False"]), label_column(["A", "a.", "B"])
    ((['true', 'true', 'false'], {'true': True, 'false': False}), (['a', 'a', 'b'], {'a': 'A', 'b': 'B'}))
    """
    is_bool = LabelSet.among(values) is BOOL and any(isinstance(plain_label(value), bool) for value in values)
    known = [BOOL.read(value) for value in values] if is_bool else list(values)
    texts = [label_text(value) for value in known]
    originals: dict[str, Any] = {}
    for text, value in zip(texts, known, strict=True):
        originals.setdefault(text, value)
    return texts, originals


def is_yes_no(labels: Iterable[Any]) -> bool:
    """Whether the labels are True and False; 1 and 0, which equal them, are not."""
    found = list(labels)
    return len(found) == 2 and all(isinstance(label, bool) for label in found)


def match_label(value: Any, labels: Sequence[Any]) -> Any | None:
    """The one of some labels that a program's answer names, as `LabelSet.read` reads it; None where it names none.

    >>> match_label("True.", [True, False]), match_label("a", ["A", "B"]), match_label(3.0, ["3", "4"])
    (True, 'A', '3')
    """
    known = list(labels)
    found = _labels_of(known)
    if found is None:
        return next((label for label in known if same_label(label, value)), None)
    try:
        return found.read(value)
    except AnswerError:
        return None


def _labels_of(labels: Sequence[Any]) -> LabelSet | None:
    try:
        return _made_labels(tuple((type(label), label) for label in labels))
    except (TypeError, UsageError):  # labels that cannot be hashed, or too few, or two of one text
        return None


@functools.lru_cache(maxsize=512)
def _made_labels(labels: tuple[tuple[type, Any], ...]) -> LabelSet:
    if labels and {label for _, label in labels} <= {True, False} and all(kind is bool for kind, _ in labels):
        return BOOL
    return LabelSet({label: shown_label(label) for _, label in labels})


def same_label(one: Any, other: Any) -> bool:
    """Whether two values are the same label; what cannot be read is the same as nothing.

    >>> same_label(True, "Yes."), same_label("red", "**Red**"), same_label("A", "B"), same_label(True, "maybe")
    (True, True, False, False)
    """
    try:
        return is_label(one, other)
    except AnswerError:
        return False


def is_label(expected: Any, answer: Any) -> bool:
    """Whether an answer names the expected label, where the other labels are not known.

    Raises:
        AnswerError: The answer cannot be read: it is empty, or no word for True or False where one is expected.
    """
    text = label_text(expected)
    if text in ("true", "false"):
        return label_text(BOOL.read(answer)) == text
    if text in ("yes", "no") and label_text(answer) in ("true", "false"):
        return (label_text(answer) == "true") is (text == "yes")
    check_answer(answer)
    return label_text(answer) == text


def check_answer(answer: Any) -> None:
    """Raises AnswerError where there is nothing to read: None, no text, or reasoning alone."""
    if isinstance(answer, str):
        answer_text(answer)
    elif answer is None:
        raise AnswerError("the answer is empty (None)", text="")


# -- numbers ----------------------------------------------------------------------------------------------------------

_CODES = {
    "$": ("us$", "usd", "us dollars", "us dollar", "dollars", "dollar"),
    "€": ("eur", "euros", "euro"),
    "£": ("gbp", "pounds sterling", "pounds", "pound"),
    "¥": ("jpy", "yen", "円"),
    "₹": ("inr", "rs", "rupees", "rupee"),
    "CHF": ("chf", "sfr", "swiss francs", "francs"),
    "CAD": ("cad", "c$", "ca$"),
    "AUD": ("aud", "a$", "au$"),
    "CNY": ("cny", "rmb", "yuan"),
    "SEK": ("sek",),
    "NOK": ("nok",),
    "DKK": ("dkk",),
    "PLN": ("pln", "zł"),
    "BRL": ("brl", "r$"),
    "MXN": ("mxn", "mex$"),
    "KRW": ("krw", "₩", "won"),
    "RUB": ("rub", "₽"),
    "TRY": ("try", "₺"),
}
_CURRENCY_OF = {mark.casefold(): sign for sign, codes in _CODES.items() for mark in (sign, *codes)}
_NUMBER_LEAD = (
    r"(?:(?:so|therefore|thus|hence|okay|ok|sure)\s*[,.:!]\s*)?"
    r"(?:(?:the\s+|my\s+|its\s+)?(?:estimated\s+|final\s+|predicted\s+|correct\s+)?"
    r"(?:price|cost|value|answer|estimate|total|number|amount|score|rating|prediction|result{own})"
    r"(?:\s+(?:of|for)\s[^\d.:!?\n]{{1,80}}?)?\s*(?:\b(?:is|would\s+be)\b|:|=|\n)\s*:?\s*"
    r"|(?:it|this|that|i)(?:\s+(?:costs?|would\s+cost|is\s+worth|is|would\s+(?:say|estimate|guess)|(?:say|estimate|guess))"
    r"|['’]s|['’]d\s+(?:say|estimate|guess))\b\s*:?\s*)?"
    r"(?:about|around|approximately|approx\.?|roughly|circa|ca\.|~|≈)?\s*"
)
_APPROXIMATE = re.compile(r"about|around|approx|roughly|circa|ca\.|~|≈", re.IGNORECASE)
_RANGE = re.compile(r"(?P<low>[^–—]*?\d[^–—]*?)\s*(?:-|–|—|\bto\b)\s*(?P<high>\D{0,8}\d.*)", re.IGNORECASE | re.DOTALL)
_PLAIN = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_USUAL = re.compile(r"-?\$?(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?", re.ASCII)
_GROUPED = re.compile(
    r"[1-9]\d{0,2}(?:(?P<mark>[,\u0020\u00a0\u202f\u2009'’])\d{3})(?:(?P=mark)\d{3})*(?:\.\d*)?", re.ASCII
)
_LAKHS = re.compile(r"[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d*)?", re.ASCII)
_EUROPEAN = re.compile(
    r"[1-9]\d{0,2}(?:\.\d{3})+,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,}|[1-9]\d{0,2}(?:[\u0020\u00a0\u202f]\d{3})+,\d{1,2}"
    r"|0,\d+|\d+,(?:\d{1,2}|\d{4,})",
    re.ASCII,
)
_AMBIGUOUS = re.compile(r"[1-9]\d{0,2}\.\d{3}", re.ASCII)
_EXPONENT = re.compile(r"[eE]", re.ASCII)
_FILE_REMEDY = "write it like 1199.99 or $1,199.99"
_COMMA_REMEDY = f'{_FILE_REMEDY}; of a file with decimal commas say decimal="," (--decimal ,)'
_EXCHANGED = str.maketrans(".,", ",.")

DecimalMark = Literal[".", ","]
"""What stands before the decimals in a file."""


@functools.lru_cache(maxsize=256)
def _number_lead(name: str | None) -> re.Pattern[str]:
    own = "" if not name else "|" + r"[\s_]+".join(map(re.escape, name.split("_")))
    return re.compile(_NUMBER_LEAD.format(own=own), re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class NumberFormat:
    """How a number is written, and how strictly an answer is read.

    Example:
        >>> price = NumberFormat(decimals=2, currency="$")
        >>> price.encode(1199.99), price.decode("$1,199.99"), price.decode("Price: about 40 USD.")
        ('$1199.99', 1199.99, 40.0)
    """

    decimals: int | None = None
    """Digits after the point; None writes the shortest text that gives the same number back."""
    currency: str = ""
    """A sign such as "$" or a code such as "USD"; empty for bare numbers."""
    position: Literal["before", "after"] = "before"
    """Where the currency stands: "$5.00", or "5.00 USD"."""
    thousands: bool = False
    """Whether to write "1,199.99"; reading accepts both anyway."""
    strict: bool = False
    """Whether "about 12" and "12-15" are refused instead of read as 12 and 13.5."""
    kind: Literal["float", "int", "decimal"] = "float"
    """The type of number that `decode` returns."""
    scale: Literal["plain", "log"] = "plain"
    """"log" writes ln(1 + value), without the currency: two decimals tell a price to half a percent, whatever its size.
    `decode` gives the value back; `read` takes another program's answer, which is the value itself."""

    def __post_init__(self) -> None:
        if self.decimals is not None and not 0 <= self.decimals <= 12:
            raise UsageError(f"decimals: 0 to 12, or None for the shortest text; got {self.decimals}")
        if self.position not in ("before", "after"):
            raise UsageError(f'position: "before" or "after"; got {self.position!r}')
        if re.search(r"[\d\s.,+-]", self.currency):
            raise UsageError(f"currency: a sign or a code without digits, spaces and separators; got {self.currency!r}")
        if self.scale not in ("plain", "log"):
            raise UsageError(f'scale: "plain" or "log"; got {self.scale!r}')

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; a plain scale is left out, so that prompts of earlier releases keep their digests."""
        return {name: value for name, value in vars(self).items() if (name, value) != ("scale", "plain")}

    def encode(self, value: Any) -> str:
        """The text of a number.

        Raises:
            RowError: Not a finite number of the right kind, or one that these decimals would round to another number.
        """
        number = self._number(value)
        if self.scale == "log":
            return self._digits(_log1p(number, value))
        text = self._digits(number.copy_abs() if isinstance(number, Decimal) else abs(number))
        if self.decimals is not None:
            self._check_rounding(number, text)
        # What rounds to nothing has no sign: -1e-320 with two decimals is 0.00. A bare -0.0 keeps its own.
        negative = number < 0 or (self.decimals is None and str(number).startswith("-"))
        sign = "-" if negative and (self.decimals is None or re.search(r"[1-9]", text)) else ""
        if not self.currency:
            return sign + text
        return f"{sign}{self.currency}{text}" if self.position == "before" else f"{sign}{text} {self.currency}"

    def _check_rounding(self, number: Any, text: str) -> None:
        """A small price that is written $0.00 would train the model to say that things are free."""
        written = text.replace(",", "")
        if isinstance(number, float) and float(written) == abs(number):
            return
        needed = decimals_needed(number)
        if needed > (self.decimals or 0):
            raise RowError(
                f"{number} would be written {text}, which is another number",
                value=number,
                remedy=f"use decimals={needed}, or decimals=None for all that there are, or round the column",
            )

    def _number(self, value: Any) -> Any:
        if type(value) is float and self.kind == "float" and math.isfinite(value):
            return value
        right = isinstance(value, (Real, Decimal)) and not _is_bool(value)
        if self.kind == "int":
            right = isinstance(value, Integral) and not _is_bool(value)
        if not right:
            raise RowError(
                f"{value!r:.80} ({type(value).__name__}) is not a number of type {self.kind}",
                value=value,
                remedy="correct the row, or convert the column with load_examples(types=...)",
            )
        number = int(value) if self.kind == "int" else value if isinstance(value, Decimal) else float(value)
        if number != number or number in (float("inf"), float("-inf")):
            raise RowError(f"{value!r} is not a finite number", value=value, remedy="drop or correct the row")
        if self.kind == "decimal" and not isinstance(number, Decimal):
            number = Decimal(str(number)) if not isinstance(value, Integral) else Decimal(int(value))
        return float(number) if self.kind == "float" else number

    def _digits(self, number: Any) -> str:
        if self.decimals is not None:
            return f"{number:{',' if self.thousands else ''}.{self.decimals}f}"
        text = _shortest(number)
        whole, point, rest = text.partition(".")
        return f"{int(whole):,}{point}{rest}" if self.thousands and whole.isdigit() else text

    def decode(self, text: str, *, name: str | None = None) -> int | float | Decimal:
        """The number that a text names, by the table in docs/values.md; `name` is the field's and may stand before it.

        Raises:
            AnswerError: The text is not one number, or could be read as two different ones; `.text` keeps it.
        """
        number = self._named(text, name)
        if self.scale == "log":
            if abs(number) > 700:  # e^709 is the largest float
                raise AnswerError(f"the answer {text!r:.80} is too large for a logarithm", text=text)
            number = Decimal(repr(math.expm1(number)))
            number = Decimal(round(number)) if self.kind == "int" else number
        return self._of_kind(number, text)

    def _named(self, text: str, name: str | None) -> Decimal:
        """The number that stands in a text."""
        body = _bare(_plain_number(answer_text(text), name))
        if len(body) > _MAX_CHARS:
            raise AnswerError(f"the answer {text!r:.80} is not a number{self._expected()}", text=text)
        lead = _number_lead(name).match(body)
        assert lead is not None, "every part of the lead is optional"
        if self.strict and _APPROXIMATE.search(lead.group()):
            raise AnswerError(f"the answer {text!r:.80} is only approximate", text=text)
        body = _bare(body[lead.end() :])
        try:
            number = self._one(body, text)
            if number is None:
                number = self._midpoint(body, text)
        except ArithmeticError:  # an exponent beyond what decimals hold
            number = None
        if number is None or self._is_too_large(number):
            raise AnswerError(f"the answer {text!r:.80} is not a number{self._expected()}", text=text)
        return number

    def read(self, value: Any, *, name: str | None = None) -> int | float | Decimal:
        """The number that a program's answer is: a number, or a text that names one. A bool is none.

        Raises:
            AnswerError: It is not one finite number.
        """
        if isinstance(value, enum.Enum):
            value = value.value
        if isinstance(value, str):
            return self._of_kind(self._named(value, name), value)
        number: Decimal | None = None
        if not _is_bool(value) and not isinstance(value, complex):
            try:
                if isinstance(value, Decimal):
                    number = value
                elif isinstance(value, Integral):
                    number = Decimal(int(value))
                elif hasattr(value, "__float__") or hasattr(value, "item"):
                    number = Decimal(repr(float(value)))
            except (TypeError, ValueError, OverflowError, RuntimeError):
                number = None
        if number is None or not number.is_finite() or self._is_too_large(number):
            raise AnswerError(f"{str(value)[:80]!r} is not a number", text=str(value))
        return self._of_kind(number, str(value))

    def _of_kind(self, number: Decimal, text: str) -> int | float | Decimal:
        if self.kind == "int":
            if number != number.to_integral_value():
                raise AnswerError(f"the answer {text!r:.80} is not a whole number", text=text)
            return int(number)
        return number if self.kind == "decimal" else float(number)

    def _is_too_large(self, number: Decimal) -> bool:
        if self.kind == "int":
            return number.adjusted() > 4000  # Python writes no int of more than 4300 digits
        return self.kind == "float" and math.isinf(float(number))

    def _midpoint(self, body: str, text: str) -> Decimal | None:
        # A range is short; the pattern would take long over a long text.
        match = _RANGE.fullmatch(body) if len(body) <= 80 else None
        if not match:
            return None
        low, high = self._one(match["low"], text), self._one(match["high"], text)
        if low is None or high is None:
            return None
        if self.strict or not 0 <= low <= high:
            raise AnswerError(f"the answer {text!r:.80} is a range, not one number", text=text)
        return (low + high) / 2

    def _one(self, body: str, text: str) -> Decimal | None:
        """One number with its sign and currency; None where the text has another form."""
        found = _amount(body, self.currency)
        if found is None:
            return None
        sign, digits, currencies = found
        own = _currency_of(self.currency, self.currency)
        if len(currencies) > 1 or (currencies and self.currency and currencies != {own}):
            raise AnswerError(f"the answer {text!r:.80} is not a number{self._expected()}", text=text)
        has_few_decimals = self.decimals is not None and self.decimals != 3 and self.scale == "plain"
        if has_few_decimals and _AMBIGUOUS.fullmatch(digits):
            raise AnswerError(f"the answer {text!r:.80} could mean {digits} or {digits.replace('.', '')}", text=text)
        plain = _separated(digits)
        return None if plain is None else Decimal(sign + plain)

    def _expected(self) -> str:
        return f" in {self.currency}" if self.currency else ""


def _log1p(number: Any, value: Any) -> float:
    if number < 0:
        raise RowError(f"{value!r:.80} has no logarithm", value=value, remedy='drop the row, or use scale="plain"')
    return math.log1p(number)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")  # numpy's too


def shortest_single(number: float) -> float:
    """The number with the fewest digits that is the same float32.

    >>> shortest_single(3.799999952316284), shortest_single(0.5), shortest_single(16777216.0)
    (3.8, 0.5, 16777216.0)
    """
    if not math.isfinite(number):
        return number
    texts = (f"{number:.{digits}g}" for digits in range(6, 10))
    return next((found for text in texts if _is_same_single(found := float(text), number)), number)


def _is_same_single(one: float, other: float) -> bool:
    try:
        return struct.pack("f", one) == struct.pack("f", other)
    except OverflowError:  # rounded up beyond the greatest
        return False


def decimals_needed(number: Any) -> int:
    """The digits after the point that a number has, the noise of its binary form left out.

    >>> decimals_needed(0.0012), decimals_needed(0.1 + 0.2), decimals_needed(12.0)
    (4, 1, 0)
    """
    if isinstance(number, Integral):
        return 0
    if isinstance(number, Decimal):
        return max(-int(number.normalize().as_tuple().exponent), 0)
    exact = Decimal(repr(float(number)))
    # A float32 column read as float holds 19.989999771118164 for 19.99.
    is_single = abs(number) < 3e38 and struct.unpack("f", struct.pack("f", number))[0] == number
    noise = abs(exact) * (Decimal(2) ** -24 if is_single else Decimal("1e-12"))
    for decimals in range(max(-int(exact.normalize().as_tuple().exponent), 0)):
        if abs(exact - round(exact, decimals)) <= noise:
            return decimals
    return max(-int(exact.normalize().as_tuple().exponent), 0)


_DECIMALS = re.compile(r"\bdecimals=(\d+)")


def with_column_decimals(errors: Sequence[RowError]) -> list[RowError]:
    """The errors; where numbers would be rounded, each names the decimals that hold all of its column's."""
    needed: dict[str | None, int] = {}
    for error in errors:
        if match := _DECIMALS.search(error.remedy or ""):
            needed[error.field] = max(needed.get(error.field, 0), int(match[1]))
    found = []
    for error in errors:
        if _DECIMALS.search(error.remedy or ""):
            remedy = _DECIMALS.sub(f"decimals={needed[error.field]}", error.remedy or "")
            given, error = (
                error,
                RowError(error.problem, path=error.path, line=error.line, field=error.field, remedy=remedy),
            )
            error.value = given.value
        found.append(error)
    return found


def _shortest(number: Any) -> str:
    """The shortest text that gives the same number back, without an exponent where digits will do."""
    if isinstance(number, Decimal):
        return f"{number:f}" if -30 < number.adjusted() < 60 else str(number)
    try:
        return repr(number)
    except ValueError as error:  # Python writes no int of more than 4300 digits
        raise RowError("has too many digits to write", remedy="correct the row") from error


def _plain_number(body: str, name: str | None) -> str:
    """A number's text in plain characters, out of its frame and its bold marks."""
    n_frames = 0
    while n_frames < 4 and (framed := _framed(body, name)):
        body, n_frames = framed, n_frames + 1
    body = body if body.isascii() else body.translate(_FULL_WIDTH)
    if len(body) > _MAX_CHARS:
        return body
    body = _BOLD.sub(lambda match: match["body"], body) if "**" in body or "__" in body else body
    return body.replace("`", "") if body.count("`") == 2 else body


def _bare(text: str) -> str:
    """Without surrounding whitespace, one pair of quotes or bold marks, one trailing mark."""
    body = text.strip()
    for _ in range(2):
        if len(body) > 4 and body.startswith("**") and body.endswith("**"):
            body = body[2:-2].strip()
        elif len(body) > 2 and body[0] in "\"'`“‘*_" and body[-1] == _PAIRS[body[0]]:
            body = body[1:-1].strip()
        if len(body) > 1 and body[-1] in ".,;!。" and body[-2] not in ".,":
            body = body[:-1].rstrip()
    return body


def _amount(body: str, own: str = "") -> tuple[str, str, set[str]] | None:
    """Sign, digits and the currencies before and after them; None where another word than `own` stands there."""
    body = body.strip().replace("\u2212", "-")
    if len(body) > _MAX_CHARS:
        return None
    sign, body = _sign(body)
    currencies: set[str] = set()
    if match := re.match(r"[^\d.,+\s-]+", body):
        currency = _currency_of(match.group(), own)
        if not currency:
            return None
        currencies.add(currency)
        body = body[match.end() :].lstrip()
    if not sign:
        sign, body = _sign(body)
    if match := re.search(r"(?<=[\d.])\s*([^\d.,+'’\s-][^\d,+'’-]*)$", body):
        currency = _currency_of(match.group(1).rstrip("."), own)
        if not currency:
            return None
        currencies.add(currency)
        body = body[: match.start()]
    return sign, body, currencies


def _sign(body: str) -> tuple[str, str]:
    # "- 5" is as likely an item of a list as a negative number; "- $5" is none.
    if body[:1] in ("-", "+") and not re.match(r"[-+]\s+[\d.]", body):
        return body[0].replace("+", ""), body[1:].lstrip()
    return "", body


def _currency_of(mark: str, own: str = "") -> str:
    """The currency that a sign, code or word stands for; "" for any other word than `own`."""
    known = _CURRENCY_OF.get(mark.casefold())
    if known is not None:
        return known
    if own and mark.casefold() == own.casefold():
        return own
    return mark if len(mark) == 1 and unicodedata.category(mark) == "Sc" else ""


def _separated(body: str) -> str | None:
    """The digits with a plain decimal point; None where they are not grouped as any number is."""
    if _PLAIN.fullmatch(body):
        return body
    if _GROUPED.fullmatch(body) or _LAKHS.fullmatch(body):
        return re.sub(r"[,\s'’]", "", body)
    if _EUROPEAN.fullmatch(body):
        return re.sub(r"[.\s]", "", body).replace(",", ".")
    return None


NUMBER = NumberFormat()
"""How a bare number is read, where nothing is known about its format."""


def read_number(value: Any, *, name: str | None = None) -> float:
    """A number from a number or from a text such as "$1,199.99" or "about 40". A bool is none.

    Raises:
        AnswerError: It is not one number, or not finite.
    """
    return float(NUMBER.read(value, name=name))


# -- cells of a person's file -----------------------------------------------------------------------------------------


def load_bool(value: Any) -> bool:
    """A boolean from a file: True, False, 1, 0 and the words for them.

    >>> load_bool("Yes"), load_bool("0.0"), load_bool(1.0)
    (True, False, True)

    Raises:
        Unparseable: The value is none of the accepted spellings.
    """
    plain = plain_label(value)
    if isinstance(plain, bool):
        return plain
    if isinstance(plain, (str, int)):
        word = str(plain).strip().casefold()
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS:
            return False
    raise Unparseable(f"{shown(value)} is not a boolean", "write true or false (also read: yes/no, y/n, t/f, 1/0)")


def load_number(value: Any, decimal: DecimalMark = ".") -> float:
    """A finite number from a file, with one currency and thousands separators if there are any.

    >>> load_number("$1,199.99"), load_number("-$5"), load_number("1199.99 USD"), load_number(12)
    (1199.99, -5.0, 1199.99, 12.0)
    >>> load_number("1.199,99 €", ",")
    1199.99

    Raises:
        Unparseable: The value is not a number, or can be read as more than one.
    """
    if type(value) is float and math.isfinite(value):
        return value
    if (
        decimal == "." and isinstance(value, str) and _USUAL.fullmatch(value)
    ):  # as most cells are; the rest of this reads the others
        number = float(value.replace("$", "").replace(",", ""))
        if math.isfinite(number):
            return number
    return float(_load_decimal(value, NUMBER, decimal))


_UNIT = re.compile(
    r"(?P<number>[-+\u2212]?\d[\d.,'’ \u00a0\u202f]*?)(?P<gap>\s*)(?P<unit>[%‰°]|°?[^\W\d_][^\s\d.,+-]*)"
)
_MULTIPLIERS = frozenset({"e", "k", "m", "b", "t", "bn", "mn", "tn"})
"""Right behind the digits these are no unit: "5k" is 5,000."""


def split_unit(cell: Any) -> tuple[str, str]:
    """(the number, the unit behind it) of a cell in a file; ("", "") where it has none. A currency is no unit.

    >>> split_unit("83%"), split_unit("0.04 MB"), split_unit("12 EUR"), split_unit("5k")
    (('83', '%'), ('0.04', 'MB'), ('', ''), ('', ''))
    """
    found = _UNIT.fullmatch(cell.strip()) if isinstance(cell, str) and len(cell) <= _MAX_CHARS else None
    if found is None or _currency_of(found["unit"]) or not (found["unit"][0].isalpha() or found["unit"][0] in "%‰°"):
        return "", ""
    is_multiplier = not found["gap"] and found["unit"].casefold() in _MULTIPLIERS
    return ("", "") if is_multiplier else (found["number"], found["unit"])


class NumberColumn:
    """A column's cells as numbers: where the first has a unit, each has to have the same.

    >>> read = NumberColumn(load_number)
    >>> read("0.04 MB"), read("12 MB")
    (0.04, 12.0)
    """

    def __init__(self, load: Callable[[Any], float]) -> None:
        self._load = load
        self._unit: str | None = None

    def __call__(self, cell: Any) -> float:
        """The number. Raises Unparseable."""
        try:
            number, unit = self._load(cell), ""
        except Unparseable:
            text, unit = split_unit(cell)
            if not unit:
                raise
            number = self._load(text)
        if self._unit is None:
            self._unit = unit
        if unit != self._unit:
            told = [f"in {one}" if one else "without a unit" for one in (unit, self._unit)]
            raise Unparseable(
                f"{shown(cell)} is {told[0]}, and a row before it is {told[1]}", "write the whole column in one unit"
            )
        return number


_MONEY = re.compile(
    r"(^|_)(price|cost|fee|fare|rent|salary|wage|income|revenue|sales|budget|amount|usd|dollars?)s?($|_)", re.IGNORECASE
)


def usual_currency(name: str) -> str:
    """The currency of bare numbers in a field: dollars where its name says money, else none.

    >>> usual_currency("sale price"), usual_currency("installed_size")
    ('$', '')
    """
    return "$" if _MONEY.search(name.strip().replace(" ", "_")) else ""


def currency_of(cell: Any) -> str:
    """The sign of the currency of an amount in a file, "" for a bare number or none.

    >>> currency_of("12 EUR"), currency_of("-$5"), currency_of("40"), currency_of(40)
    ('€', '$', '', '')
    """
    found = _amount(cell) if isinstance(cell, str) else None
    return next(iter(found[2]), "") if found is not None else ""


def load_int(value: Any, decimal: DecimalMark = ".") -> int:
    """A whole number from a file, exact however large it is; 3.0 is 3. Raises Unparseable."""
    number = _load_decimal(value, NumberFormat(kind="int"), decimal)
    if number != number.to_integral_value():
        raise Unparseable(
            f"{shown(value)} is not a whole number", "write a whole number, or give the field the type float"
        )
    return int(number)


def _load_decimal(value: Any, style: NumberFormat, decimal: DecimalMark) -> Decimal:
    number: Decimal | None = None
    if isinstance(value, str):
        found = _amount(value.translate(_EXCHANGED) if decimal == "," else value)
        is_grouped = found is not None and _GROUPED.fullmatch(found[1]) is not None and not re.search(r"\s", found[1])
        if found is not None and len(found[2]) <= 1 and (_PLAIN.fullmatch(found[1]) or is_grouped):
            # Digits in threes behind a comma or an apostrophe are one number in every country's writing; those behind a
            # blank may be two.
            number = _decimal(found[0] + re.sub(r"[^\d.eE+-]", "", found[1]))
    elif value is not None:
        with contextlib.suppress(AnswerError):
            number = Decimal(NumberFormat(kind="decimal").read(value))
    if number is None or style._is_too_large(number):
        raise _not_a_number(value, decimal)
    return number


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text)
    except ArithmeticError:
        return None


_IN_PARENTHESES = re.compile(r"(?P<before>[^\d()]*)\((?P<body>[^()]+)\)(?P<after>[^\d()]*)")


def negative_of(value: Any, decimal: DecimalMark = ".") -> str:
    """With a minus the amount that accounting writes in parentheses; "" for any other cell.

    >>> negative_of("(1,234.00)"), negative_of("$(5)"), negative_of("(about 5)"), negative_of("5")
    ('-1,234.00', '-$5', '', '')
    """
    found = _IN_PARENTHESES.fullmatch(value.strip()) if isinstance(value, str) and len(value) <= _MAX_CHARS else None
    if found is None:
        return ""
    text = "-" + "".join(part.strip() for part in found.groups())
    with contextlib.suppress(Unparseable):
        return text if _load_decimal(text, NUMBER, decimal) < 0 else ""
    return ""


def _not_a_number(value: Any, decimal: DecimalMark) -> Unparseable:
    if negative := negative_of(value, decimal):
        # A file of a shop has its counts of reviews in parentheses, too.
        return Unparseable(
            f"{shown(value)} is not a plain number; in accounting it means {negative}",
            "write it with a minus, or without parentheses where none is meant",
        )
    if decimal == ",":
        return Unparseable(
            f"{shown(value)} is not a number with a decimal comma", "write it like 1199,99 or 1.199,99 €"
        )
    if not isinstance(value, str):
        is_number = isinstance(value, Real) and not _is_bool(value)
        return Unparseable(f"{shown(value)} is not a {'finite ' if is_number else ''}number", _FILE_REMEDY)
    # What an answer would be read as is asked about, not taken: a column's spelling is a person's to decide.
    guess, remedy = "", _FILE_REMEDY
    with contextlib.suppress(AnswerError):
        guess = f"; it may mean {NUMBER.decode(value):.15g}"
    if "," in value and re.fullmatch(r"[0-9.,]+", _digits_of(value)[:_MAX_CHARS]):
        problem, remedy = "ambiguous: the comma does not part groups of three digits", _COMMA_REMEDY
    else:
        problem = "not a plain number" if guess else "not a number"
    return Unparseable(f"{shown(value)} is {problem}{guess}", remedy)


def _digits_of(value: str) -> str:
    found = _amount(value)
    return found[1] if found is not None else value


def choice_loader(options: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A function from a cell to the one of some options (text -> value) that it names.

    It names one by its own spelling, or but for case, outer blanks and a `.0`. The function raises Unparseable.

    >>> load = choice_loader({"A": "A", "3": 3})
    >>> load(" a "), load("3.0"), load(3.0)
    ('A', 3, 3)
    """
    index = _Index(options.items(), has_synonyms=False)
    known = _distinct(options.values())

    def load(value: Any) -> Any:
        for option in known:
            # type too: True == 1, but they are two labels.
            if type(option) is type(value) and option == value:
                return option
        plain = plain_label(value)
        if isinstance(plain, (str, int)) and not (isinstance(plain, bool) and str(plain) not in options):
            if (text := str(plain)) in options:
                return options[text]
            if len(found := _distinct(index.folded_of(text))) == 1:
                return found[0]
        raise Unparseable(f"{shown(value)} is not one of the choices", f"write one of: {', '.join(options)}")

    return load


def shown(value: Any) -> str:
    """A cell as a message shows it, cut to 60 characters."""
    if value is None:
        return "missing (null)"
    if isinstance(value, str) and value == "":
        return "an empty cell"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def score_value(value: Any) -> float:
    """A metric's return value as a float: a number, a bool, or a prediction with a `score`, as DSPy allows.

    Raises:
        UsageError: It is neither, or not finite.
    """
    try:
        if isinstance(value, (str, bytes)):  # float() would read some of them
            raise TypeError("a text")
        score = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"a metric returned {' '.join(repr(value).split()):.80}; it must return a number, a bool or a prediction "
            "with a score"
        ) from error
    if not math.isfinite(score):
        raise UsageError(
            f"a metric returned {score}; it must return a finite number, or raise ft.errors.AnswerError where the "
            "answer cannot be read"
        )
    return score
