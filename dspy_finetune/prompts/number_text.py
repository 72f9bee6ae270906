r"""The codec between numbers and number texts: `NumberFormat`.

In: int, float or Decimal. Out: `encode` (number -> "$1199.99") and `decode` (text -> number), which reads what models
write.

`decode` reads, after trimming whitespace, quotes and one trailing mark:
- plain numbers (`12`, `-3.5`, `.5`, `1e+22`) and the currency sign or code before, after or both (`$1199.99`, `-$5`,
  `1199.99 USD`, `$1199.99 USD`);
- thousands separators: `1,199.99`, `1 199.99`, `1'199.99`, and `1,199` (a comma before exactly three digits groups);
- a European spelling where it can mean one thing only: `1.199,99`, `1.199.999`, `1199,99`;
- a lead without digits such as `Price:`, `The price is`, `The price of the lamp is`, `about`, `~`; and a range,
  `12-15`, as its midpoint (`strict=True` refuses `about`, `~` and ranges).

Everything else raises `AnswerError`: another currency, `1.199` where prices have two decimals, `5k`, `10%`, two
numbers, words.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Literal

from dspy_finetune.errors import AnswerError, RowError, UsageError

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
