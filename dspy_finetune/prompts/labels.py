"""The codec between label values and label texts: `LabelSet`.

In: a bool, Literal or Enum annotation, or a mapping value -> text. Out: `encode` (value -> text) and `decode` (text ->
value). `decode` forgives case, surrounding whitespace, one pair of quotes and one trailing punctuation mark, where
only one label can be meant; everything else raises `AnswerError` and keeps the text. Not covered: probabilities
(predictors read them).
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from dspy_finetune.errors import AnswerError, RowError, UsageError

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
