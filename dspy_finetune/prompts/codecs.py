"""What a value's text is: input values for prompts, output codecs for completions.

In: a field's value or annotation. Out: `input_text` for prompts; `codec_of(annotation)` with `encode` and `decode` for
answers. Inputs: a str stands as it is, an Enum member of str as its value; numbers, bools, lists, dicts, dataclasses
and pydantic models as JSON. Outputs: labels and numbers by their codecs, str as it is, everything else as JSON. Not
covered: layout (completion.py).
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin

import dspy
import pydantic
import pydantic_core

from dspy_finetune.errors import AnswerError, RowError, UsageError
from dspy_finetune.prompts.template import json_line

# ----------------------------------------------------------------------------------------------------
# The codec between label values and label texts: `LabelSet`.
#
# In: a bool, Literal or Enum annotation, or a mapping value -> text. Out: `encode` (value -> text) and `decode` (text
# -> value). `decode` forgives case, surrounding whitespace, one pair of quotes and one trailing punctuation mark,
# where only one label can be meant; everything else raises `AnswerError` and keeps the text. Not covered:
# probabilities (predictors read them).

_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "*": "*"}
_MARKS = ".,;:!?"
_MISSING = object()


class LabelSet(Mapping[Any, str]):
    """An ordered mapping from label values to the texts a model writes for them.

    Example:
        >>> labels = LabelSet({True: "true", False: "false"})
        >>> labels.encode(True), labels.decode(" False. ")
        ('true', False)

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
        self._value_by_text: dict[str, Hashable] = {}
        self._folded: dict[str, list[Hashable]] = {}
        for value, text in self._text_by_value.items():
            if not isinstance(text, str) or not text.strip():
                raise UsageError(f"labels: the text of {value!r} must hold something to read, got {text!r}")
            if text.strip() in self._value_by_text:
                raise UsageError(f"labels: two labels have the text {text.strip()!r}; give each value its own text")
            self._value_by_text[text.strip()] = value
            self._folded.setdefault(text.strip().casefold(), []).append(value)
        # bool is a kind of int and True == 1: the types are compared too, so that 1 is not taken for True.
        self._types = frozenset(type(value) for value in self._text_by_value)

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
        texts = [_text(member) for member in members]
        for text in texts:
            if texts.count(text) > 1:
                raise UsageError(f"labels: two labels have the text {text!r}; give each value its own text")
        return cls(dict(zip(members, texts, strict=True)))

    @property
    def texts(self) -> tuple[str, ...]:
        """The label texts, in order."""
        return tuple(self._text_by_value.values())

    @property
    def values_in_order(self) -> tuple[Any, ...]:
        """The label values, in order."""
        return tuple(self._text_by_value)

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

    def encode_all(self, values: Sequence[Any]) -> list[str]:
        """The texts of many values. Raises RowError."""
        if self._types.issuperset(map(type, values)):
            try:
                return list(map(self._text_by_value.__getitem__, values))
            except KeyError:
                pass  # encode says which
        return [self.encode(value) for value in values]

    def _encode_kin(self, value: Any) -> str:
        """Encode what stands for a label: an Enum member for its value or the reverse, a numpy scalar, a str kind."""
        kin: list[Any] = []
        if isinstance(value, enum.Enum):
            kin.append(value.value)
        elif isinstance(value, str):
            kin.append(str(value))
        elif type(value).__module__ == "numpy" and hasattr(value, "item"):
            kin.append(value.item())
        else:
            kin.append(value)
        for candidate in kin:
            for label, text in self._text_by_value.items():
                label_value = label.value if isinstance(label, enum.Enum) else label
                if type(label_value) is type(candidate) and label_value == candidate:
                    return text
        raise RowError(
            f"{value!r:.80} ({type(value).__name__}) is none of the labels {self._listed()}",
            value=value,
            remedy="correct the row, or convert the column with load_examples(types=...)",
        )

    def decode(self, text: str) -> Any:
        """The value that a text names.

        Raises:
            AnswerError: The text is no label, or could be more than one; `.text` keeps it.
        """
        trimmed = text.strip()
        value = self._value_by_text.get(trimmed, _MISSING)
        if value is not _MISSING:
            return value
        forms = _readings(trimmed)
        exact = {self._value_by_text[form]: None for form in forms if form in self._value_by_text}
        if len(exact) == 1:
            return next(iter(exact))
        folded = {value: None for form in forms for value in self._folded.get(form.casefold(), ())}
        if len(folded) == 1 and not exact:
            return next(iter(folded))
        problem = "could be more than one of the labels" if exact or folded else "is none of the labels"
        raise AnswerError(f"the answer {text!r:.80} {problem} {self._listed()}", text=text)

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


def _text(member: Any) -> str:
    value = member.value if isinstance(member, enum.Enum) else member
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return str(value)
    raise UsageError(f"labels: {member!r} is neither str, int nor bool; give its text with labels={{value: text}}")


def _readings(trimmed: str) -> list[str]:
    """The text itself, and it without one pair of quotes, one trailing mark, or both in either order."""
    unquoted, unmarked = _unquote(trimmed), _unmark(trimmed)
    forms = [trimmed, unquoted, unmarked, _unmark(unquoted), _unquote(unmarked)]
    return [form for form in dict.fromkeys(forms) if form]


def _unquote(text: str) -> str:
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        return text[2:-2].strip()
    if len(text) > 2 and _QUOTES.get(text[0]) == text[-1]:
        return text[1:-1].strip()
    return text


def _unmark(text: str) -> str:
    return text[:-1].rstrip() if len(text) > 1 and text[-1] in _MARKS else text


# ----------------------------------------------------------------------------------------------------
# The codec between numbers and number texts: `NumberFormat`.
#
# In: int, float or Decimal. Out: `encode` (number -> "$1199.99") and `decode` (text -> number), which reads what models
# write.
#
# `decode` reads, after trimming whitespace, quotes and one trailing mark:
# - plain numbers (`12`, `-3.5`, `.5`, `1e+22`) and the currency sign or code before, after or both (`$1199.99`, `-$5`,
#   `1199.99 USD`, `$1199.99 USD`);
# - thousands separators: `1,199.99`, `1 199.99`, `1'199.99`, and `1,199` (a comma before exactly three digits groups);
# - a European spelling where it can mean one thing only: `1.199,99`, `1.199.999`, `1199,99`;
# - a lead without digits such as `Price:`, `The price is`, `The price of the lamp is`, `about`, `~`; and a range,
#   `12-15`, as its midpoint (`strict=True` refuses `about`, `~` and ranges).
#
# Everything else raises `AnswerError`: another currency, `1.199` where prices have two decimals, `5k`, `10%`, two
# numbers, words.

_CODES = {
    "$": ("us$", "usd", "dollars", "dollar"),
    "€": ("eur", "euros", "euro"),
    "£": ("gbp", "pounds"),
    "¥": ("jpy", "yen"),
    "₹": ("inr", "rs", "rupees"),
}
_ANY = sorted({mark for sign, codes in _CODES.items() for mark in (sign, *codes)}, key=len, reverse=True)
_LEAD = re.compile(
    r"(?:(?:the\s+|my\s+|its\s+)?(?:estimated\s+|final\s+)?(?:price|cost|value|answer|estimate|total|number)"
    r"(?:\s+(?:of|for)\s[^\d.:!?\n]{1,80}?)?\s*(?:\b(?:is|would\s+be)\b|:|=)\s*)?"
    r"(?:about|around|approximately|approx\.?|roughly|circa|ca\.|~|≈)?\s*",
    re.IGNORECASE,
)
_APPROXIMATE = re.compile(r"about|around|approx|roughly|circa|ca\.|~|≈", re.IGNORECASE)
_RANGE = re.compile(r"(?P<low>[^–—]*?\d[^–—]*?)\s*(?:-|–|—|\bto\b)\s*(?P<high>\D{0,8}\d.*)", re.IGNORECASE | re.DOTALL)
_PLAIN = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_GROUPED = re.compile(r"\d{1,3}(?:(?P<mark>[,\u0020\u00a0\u202f'’])\d{3})(?:(?P=mark)\d{3})*(?:\.\d*)?", re.ASCII)
_EUROPEAN = re.compile(
    r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}|\d{1,3}(?:[\u0020\u00a0\u202f]\d{3})+,\d{1,2}|\d+,(?:\d{1,2}|\d{4,})",
    re.ASCII,
)
_AMBIGUOUS = re.compile(r"[1-9]\d{0,2}\.\d{3}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class NumberFormat:
    """How a number is written, and how strictly an answer is read.

    Example:
        >>> price = NumberFormat(decimals=2, currency="$")
        >>> price.encode(1199.99), price.decode("$1,199.99")
        ('$1199.99', 1199.99)
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

    def __post_init__(self) -> None:
        if self.decimals is not None and not 0 <= self.decimals <= 12:
            raise UsageError(f"decimals: 0 to 12, or None for the shortest text; got {self.decimals}")
        if self.position not in ("before", "after"):
            raise UsageError(f'position: "before" or "after"; got {self.position!r}')
        if re.search(r"[\d\s.,+-]", self.currency):
            raise UsageError(f"currency: a sign or a code without digits, spaces and separators; got {self.currency!r}")

    def encode(self, value: Any) -> str:
        """The text of a number.

        Raises:
            RowError: Not a finite number of the right kind. A text such as "12" is not a number.
        """
        number = self._number(value)
        text = self._digits(number.copy_abs() if isinstance(number, Decimal) else abs(number))
        # What rounds to nothing has no sign: -0.001 with two decimals is 0.00. A bare -0.0 keeps its own.
        negative = number < 0 or (self.decimals is None and str(number).startswith("-"))
        sign = "-" if negative and (self.decimals is None or re.search(r"[1-9]", text)) else ""
        if not self.currency:
            return sign + text
        return f"{sign}{self.currency}{text}" if self.position == "before" else f"{sign}{text} {self.currency}"

    def _number(self, value: Any) -> Any:
        if type(value) is float and self.kind == "float" and math.isfinite(value):
            return value
        right = isinstance(value, (Real, Decimal)) and not isinstance(value, bool)
        if self.kind == "int":
            right = isinstance(value, Integral) and not isinstance(value, bool)
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

    def decode(self, text: str) -> int | float | Decimal:
        """The number that a text names, by the rules at the module's head.

        Raises:
            AnswerError: The text is not one number, or could be read as two different ones; `.text` keeps it.
        """
        body = _bare(text)
        lead = _LEAD.match(body)
        assert lead is not None, "every part of the lead is optional"
        if self.strict and _APPROXIMATE.search(lead.group()):
            raise AnswerError(f"the answer {text!r:.80} is only approximate", text=text)
        body = body[lead.end() :]
        try:
            number = self._one(body, text)
            if number is None:
                number = self._midpoint(body, text)
        except ArithmeticError:  # an exponent beyond what decimals hold
            number = None
        if number is None or self._is_too_large(number):
            raise AnswerError(f"the answer {text!r:.80} is not a number", text=text)
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
        body = body.strip().replace("\u2212", "-")
        sign, body = _sign(body)
        body = self._currency_before(body, text)
        if not sign:
            sign, body = _sign(body)
        body = self._currency_after(body, text)
        digits = self._separated(body, text)
        return None if digits is None else Decimal(sign + digits)

    def _separated(self, body: str, text: str) -> str | None:
        """The digits with a plain decimal point; None where they are not grouped as any number is."""
        if self.decimals is not None and self.decimals != 3 and _AMBIGUOUS.fullmatch(body):
            raise AnswerError(f"the answer {text!r:.80} could mean {body} or {body.replace('.', '')}", text=text)
        if _PLAIN.fullmatch(body):
            return body
        if _GROUPED.fullmatch(body):
            return re.sub(r"[,\s'’]", "", body)
        if _EUROPEAN.fullmatch(body):
            return re.sub(r"[.\s]", "", body).replace(",", ".")
        return None

    def _marks(self) -> set[str]:
        """The spellings of this format's currency; of any known currency where the format has none."""
        if not self.currency:
            return set(_ANY)
        own = self.currency.casefold()
        return {own}.union(*({sign, *codes} for sign, codes in _CODES.items() if own == sign or own in codes))

    def _currency_before(self, body: str, text: str) -> str:
        match = re.match(r"[^\d.,+\s-]+", body)
        if not match:
            return body
        if match.group().casefold() not in self._marks():
            raise AnswerError(f"the answer {text!r:.80} is not a number{self._expected()}", text=text)
        return body[match.end() :].lstrip()

    def _currency_after(self, body: str, text: str) -> str:
        match = re.search(r"(?<=[\d.])\s*([^\d.,+\s'’-]+)$", body)
        if not match or re.fullmatch(r"[eE]", match.group(1)):
            return body
        if match.group(1).casefold() not in self._marks():
            raise AnswerError(f"the answer {text!r:.80} is not a number{self._expected()}", text=text)
        return body[: match.start()]

    def _expected(self) -> str:
        return f" in {self.currency}" if self.currency else ""


def _shortest(number: Any) -> str:
    """The shortest text that gives the same number back, without an exponent where digits will do."""
    if isinstance(number, Decimal):
        return f"{number:f}" if -30 < number.adjusted() < 60 else str(number)
    try:
        return repr(number)
    except ValueError as error:  # Python writes no int of more than 4300 digits
        raise RowError("has too many digits to write", remedy="correct the row") from error


def _sign(body: str) -> tuple[str, str]:
    if body[:1] in ("-", "+"):
        return body[0].replace("+", ""), body[1:].lstrip()
    return "", body


def _bare(text: str) -> str:
    """Without surrounding whitespace, one pair of quotes or bold marks, one trailing mark."""
    body = text.strip()
    for _ in range(2):
        if len(body) > 4 and body.startswith("**") and body.endswith("**"):
            body = body[2:-2].strip()
        elif len(body) > 2 and body[0] in "\"'`" and body[-1] == body[0]:
            body = body[1:-1].strip()
        if len(body) > 1 and body[-1] in ".,;!" and body[-2] not in ".,":
            body = body[:-1].rstrip()
    return body


# ----------------------------------------------------------------------------------------------------
CodecKind = Literal["text", "label", "number", "json"]


def plain_value(value: Any) -> Any:
    """A value as JSON types, a str kind as str. Raises RowError where JSON cannot hold it."""
    if value is None:
        raise RowError("is None", value=value, remedy="give every field a value, or drop the row")
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, dspy.Image):
        raise RowError("is an image in a field of text", value=value, remedy="annotate the field as dspy.Image")
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    try:
        return pydantic_core.to_jsonable_python(value, inf_nan_mode="constants")
    except (ValueError, TypeError) as error:
        raise RowError(
            f"a {type(value).__name__} has no JSON form", value=value, remedy="give text, numbers, lists or models"
        ) from error


def input_text(value: Any) -> str:
    """The text of an input value: a str as it is, anything else as JSON on one line. Raises RowError."""
    plain = plain_value(value)
    return checked_text(plain) if isinstance(plain, str) else input_json(plain)


def input_json(value: Any) -> str:
    """The JSON text of an input value, a str in double quotes. Raises RowError."""
    try:
        return checked_text(json_line(plain_value(value)))
    except ValueError as error:
        if isinstance(error, RowError):
            raise
        raise RowError(
            f"{value!r:.80} holds a number that is not finite", value=value, remedy="correct the row"
        ) from error


def is_structured(annotation: Any) -> bool:
    """Whether a type's values are lists, dicts or models, which stand in prompts as JSON."""
    if annotation in (list, dict) or get_origin(annotation) in (list, dict):
        return True
    return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def checked_text(text: str) -> str:
    """The text itself. Raises RowError for half a surrogate pair, which neither a UTF-8 file nor a host can carry."""
    if text.isascii():  # which is known without looking at it
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(
            f"character {error.start} is half of a surrogate pair ({text[error.start]!r})",
            value=text,
            remedy="repair the text's encoding",
        ) from error
    return text


def image_parts(value: Any) -> list[dict[str, Any]]:
    """The content parts of an image field: a dspy.Image, its URL, or a list of them. Raises RowError."""
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in image_parts(item)]
    url = value.url if isinstance(value, dspy.Image) else value
    if not isinstance(url, str) or not url.startswith(("http://", "https://", "data:image/")):
        raise RowError(
            f"{value!r:.60} is not an image",
            value=value,
            remedy="give a dspy.Image, an http(s) URL or a data:image/ URL",
        )
    return [{"type": "image_url", "image_url": {"url": url}}]


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How one output is written and read."""

    annotation: Any
    """The output's type."""
    labels: LabelSet | None = None
    """The labels, where the output is one of a few."""
    number: NumberFormat | None = None
    """The number format, where the output is a number."""

    @property
    def kind(self) -> CodecKind:
        """What the text is."""
        if self.labels is not None:
            return "label"
        if self.number is not None:
            return "number"
        return "text" if self.annotation is str else "json"

    def encode(self, value: Any) -> str:
        """The text of a value. Raises RowError."""
        if self.labels is not None:
            return self.labels.encode(value)
        if value is None and self.kind != "json":
            raise RowError("is None", value=value, remedy="give every output a value, or drop the row")
        if self.number is not None:
            return self.number.encode(value)
        if self.annotation is not str:
            return checked_text(json_line(self.to_json(value)))
        if not isinstance(value, str):
            raise RowError(
                f"{value!r:.80} ({type(value).__name__}) is not a text",
                value=value,
                remedy="convert it, or annotate the output",
            )
        return checked_text(str(value.value) if isinstance(value, enum.Enum) else value)

    def decode(self, text: str) -> Any:
        """The value of a text. Raises AnswerError."""
        if self.labels is not None:
            return self.labels.decode(text)
        if self.number is not None:
            return self.number.decode(text)
        return text if self.annotation is str else self.from_json(loads(text), text)

    def to_json(self, value: Any) -> Any:
        """The value as JSON types, for a JSON answer. Raises RowError."""
        if self.labels is not None:
            text = self.labels.encode(value)
            return value_of_text if (value_of_text := self._native(text)) is not None else text
        if self.kind == "text":
            return self.encode(value)
        if self.number is not None:
            self.number.encode(value)  # refuses what is no number
            return (
                int(value) if self.number.kind == "int" else str(value) if isinstance(value, Decimal) else float(value)
            )
        try:
            # By way of JSON: a model or Enum of the user's and the one that a saved prompt rebuilt are the same there.
            bare = json.dumps(None if value is None else plain_value(value), allow_nan=False)
            checked = self._adapter.validate_json(bare, strict=True)
            plain = self._adapter.dump_python(checked, mode="json")
            json.dumps(plain, allow_nan=False)
        except RowError:
            raise
        except ValueError as error:
            raise RowError(
                f"{value!r:.80} does not fit the output's type ({_first_line(error)})",
                value=value,
                remedy="correct the row",
            ) from error
        return plain

    def from_json(self, value: Any, text: str) -> Any:
        """The value from JSON types. Raises AnswerError."""
        if self.labels is not None:
            if isinstance(value, str):
                return self.labels.decode(value)
            for label, label_text in self.labels.items():
                if type(self._native(label_text)) is type(value) and self._native(label_text) == value:
                    return label
            raise AnswerError(f"the answer {text!r:.80} holds {value!r:.40}, which is no label", text=text)
        try:
            # In JSON mode, strictly: "5" is no number and 1 is not true, but a date is its text.
            return self._adapter.validate_json(json.dumps(value), strict=True)
        except ValueError as error:
            raise AnswerError(
                f"the answer {text!r:.80} does not fit the output's type ({_first_line(error)})", text=text
            ) from error

    def _native(self, text: str) -> bool | int | None:
        """A bool or int label stands in JSON as itself, if its text is the usual one."""
        assert self.labels is not None
        for label, label_text in self.labels.items():
            if label_text == text and type(label) in (bool, int) and text == json.dumps(label):
                return bool(label) if type(label) is bool else int(label)
        return None

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of the value in a JSON answer."""
        if self.labels is None:
            return self._adapter.json_schema()
        if all(type(label) is bool and self._native(text) is not None for label, text in self.labels.items()):
            return {"type": "boolean"}
        if all(type(label) is int and self._native(text) is not None for label, text in self.labels.items()):
            return {"type": "integer", "enum": list(self.labels)}
        return {"type": "string", "enum": [*self.labels.texts]}

    @cached_property
    def _adapter(self) -> pydantic.TypeAdapter[Any]:
        return pydantic.TypeAdapter(self.annotation)


def codec_of(annotation: Any, *, labels: LabelSet | None = None, number: NumberFormat | None = None) -> Codec:
    """The codec of an output's type. Raises UsageError where a number format is given to what is no number."""
    kinds: dict[Any, Literal["float", "int", "decimal"]] = {float: "float", int: "int", Decimal: "decimal"}
    kind = kinds.get(annotation) if isinstance(annotation, type) else None
    if number is not None and kind is None:
        raise UsageError(f"number: the output's type {annotation!r} is not int, float or Decimal")
    if labels is not None:
        return Codec(annotation=annotation, labels=labels)
    if kind is not None:
        base = number or NumberFormat()
        return Codec(
            annotation=annotation,
            number=NumberFormat(
                decimals=base.decimals,
                currency=base.currency,
                position=base.position,
                thousands=base.thousands,
                strict=base.strict,
                kind=kind,
            ),
        )
    return Codec(annotation=annotation, labels=LabelSet.of(annotation))


def loads(text: str) -> Any:
    """Parse a JSON answer strictly: one value, maybe in a fenced block; no doubled keys, no NaN. Raises AnswerError."""
    body = text.strip()
    if body.startswith("```") and body.endswith("```") and "\n" in body:
        body = body[3:-3].partition("\n")[2]
    try:
        return json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise AnswerError(f"the answer {text!r:.80} is not JSON ({_first_line(error)})", text=text) from error


def _unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same key twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _first_line(error: BaseException) -> str:
    if isinstance(error, pydantic.ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
    return str(error).splitlines()[0] if str(error) else type(error).__name__
