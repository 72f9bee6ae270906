r"""Templates with `{field}` slots whose values can never be read as template: `Template`.

In: a template and the names it may use. Out: `render` (values -> text) and `read` (text -> values), each other's
inverse.

The language: `{name}` is replaced by a field; `{{` and `}}` are literal braces. Values are inserted, never read again.
How a value is written follows from where its slot stands, so that different values always give different texts:

- **text**: the only slot of the template, alone on its line. The value stands as it is, line breaks included.
- **line**: the only slot on its line. The value stands as it is on one line; a line break inside it is written as a
  visible escape: `\n`, `\r`, or `\u2028` and the like for the rarer ones. A backslash is doubled only where it would
  read as such an escape (before `n`, `r`, `u`, another backslash or a line break). Any other text stays byte for byte.
- **json**: one of several slots on a line, or a field of a list, dict or model. The value is written as JSON: a text in
  double quotes.

`{name:text}`, `{name:line}` and `{name:json}` choose by hand; `text` is allowed where the value can still be read
back: at the template's end, or as its only slot. Not covered: what a value's text is (values.py), roles (format.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dspy_finetune.errors import UsageError

Mode = Literal["text", "line", "json", "coded"]

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
# What str.splitlines() takes for the end of a line.
LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_ESCAPED = re.compile(rf"\\(?=[\\nru{LINE_BREAKS}])|[{LINE_BREAKS}]")
_UNESCAPED = re.compile(r"\\(?:([\\nr])|u([0-9a-f]{4}))")
_BREAK = re.compile(f"[{LINE_BREAKS}]")
_DECODER = json.JSONDecoder()


def escape_line(text: str) -> str:
    r"""Write a text on one line, reversibly; a text without line breaks and `\n`-like pairs stays as it is.

    >>> escape_line("one\nB: two"), escape_line("50% off, {really}")
    ('one\\nB: two', '50% off, {really}')
    """
    if text.isprintable() and "\\" not in text:  # no line break is printable
        return text
    return _ESCAPED.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    found = match.group()
    return {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}.get(found) or f"\\u{ord(found):04x}"


def unescape_line(text: str) -> str:
    """The inverse of `escape_line`."""
    return _UNESCAPED.sub(_unescape, text) if "\\" in text else text


def _unescape(match: re.Match[str]) -> str:
    short, code = match.groups()
    if short:
        return {"n": "\n", "r": "\r"}.get(short, "\\")
    character = chr(int(code, 16))
    # Only a line break is ever written as a code; any other code is the text's own.
    return character if character in LINE_BREAKS else match.group()


def json_line(value: Any) -> str:
    """JSON on one line: what JSON leaves as it is but ends a line (U+2028 and the like) is written as a JSON escape."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if text.isprintable() else _BREAK.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One `{field}` of a template."""

    name: str
    """The field."""
    mode: Mode
    """How its value is written."""
    is_optional: bool = False
    """Whether its value may be None."""


class Template:
    """A compiled template.

    Args:
        source: The template text.
        names: The names that it may use.
        what: What it is called in messages: "user", "system" or "completion".
        coded: Names whose texts are drawn from a small language of their own (labels, numbers): written bare, even
        beside others. structured: Names whose values are always written as JSON. optional: Names whose values may be
        None.

    Raises:
        UsageError: An unknown name, a lone brace, two slots that touch, or a mode that could not be read back.
    """

    def __init__(
        self,
        source: str,
        names: Collection[str],
        *,
        what: str,
        coded: Collection[str] = (),
        structured: Collection[str] = (),
        optional: Collection[str] = (),
    ) -> None:
        self.source = source
        self.what = what
        self._coded, self._structured, self._optional = frozenset(coded), frozenset(structured), frozenset(optional)
        self.parts: tuple[str | Slot, ...] = self._resolve(self._parse(source, names))
        self.names: tuple[str, ...] = tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Slot)))

    def _parse(self, source: str, names: Collection[str]) -> list[str | tuple[str, str]]:
        """Split into literal texts (braces undoubled) and (name, mode asked for) pairs."""
        parts: list[str | tuple[str, str]] = []
        literal, end = "", 0
        for token in _TOKEN.finditer(source):
            literal, end = literal + source[end : token.start()], token.end()
            if token.group() in ("{{", "}}"):
                literal += token.group()[0]
            elif token.group(1) is None:
                raise UsageError(
                    f'{self.what}: a lone "{token.group()}" at {token.start()}; write it twice for a literal brace'
                )
            else:
                name, _, mode = token.group(1).partition(":")
                if name not in names or mode not in ("", "text", "line", "json"):
                    known = ", ".join(f"{{{known}}}" for known in names) or "none"
                    raise UsageError(
                        f"{self.what}: unknown placeholder {token.group()}; known here: {known} "
                        "(write {{ and }} for literal braces)"
                    )
                parts += [literal, (name, mode)] if literal else [(name, mode)]
                literal = ""
        return [*parts, literal + source[end:]] if literal + source[end:] else parts

    def _resolve(self, parts: list[str | tuple[str, str]]) -> tuple[str | Slot, ...]:
        n_slots = sum(not isinstance(part, str) for part in parts)
        resolved: list[str | Slot] = []
        for index, part in enumerate(parts):
            if isinstance(part, str):
                resolved.append(part)
                continue
            name, asked = part
            line_left = _line_neighbours(reversed(parts[:index]), from_end=True)
            line_right = _line_neighbours(iter(parts[index + 1 :]), from_end=False)
            following = parts[index + 1] if index + 1 < len(parts) else None
            if following is not None and not isinstance(following, str):
                raise UsageError(f"{self.what}: {{{name}}} and {{{following[0]}}} touch; put some text between them")
            if asked == "text" and following is not None and n_slots > 1:
                raise UsageError(
                    f"{self.what}: {{{name}:text}} could not be read back here; "
                    f"put it at the end, or use {{{name}:line}}"
                )
            mode = asked or self._mode(name, n_slots, line_left, line_right)
            if asked in ("text", "line") and n_slots > 1 and any(not isinstance(part, str) for part in line_right):
                raise UsageError(f"{self.what}: {{{name}:{asked}}} has another slot on its line; use {{{name}:json}}")
            if name in self._structured:
                mode = "json"
            elif name in self._coded:
                mode = "coded"
            self._check_separator(name, mode, following)
            # The pattern above admits the modes only.
            resolved.append(Slot(name=name, mode=mode, is_optional=name in self._optional))  # type: ignore[arg-type]
        return tuple(resolved)

    def _mode(
        self, name: str, n_slots: int, left: list[str | tuple[str, str]], right: list[str | tuple[str, str]]
    ) -> str:
        alone = not left and not right
        if n_slots == 1:
            return "text" if alone else "line"
        others_left = [part for part in left if not isinstance(part, str)]
        others_right = [part for part in right if not isinstance(part, str)]
        if not others_right and all(part[0] in self._coded for part in others_left):
            return "line"
        return "json"

    def _check_separator(self, name: str, mode: str, following: object) -> None:
        """A bare number must be followed by something that cannot belong to it."""
        if mode == "json" and isinstance(following, str) and re.match(r"[\w.+-]", following):
            raise UsageError(
                f"{self.what}: {{{name}}} is followed by {following[:1]!r}; put a space or a mark between them"
            )

    def read(
        self, text: str, ends: Mapping[str, Callable[[str, int, str], int]] | None = None
    ) -> dict[str, Any] | None:
        """The values back from a rendered text, or None where the text does not have the template's form.

        Args:
            text: What `render` made.
            ends: For each coded name, a function (text, start, the literal that follows) -> end of the value, or -1.
        """
        values: dict[str, Any] = {}
        position = 0
        for index, part in enumerate(self.parts):
            if isinstance(part, str):
                if not text.startswith(part, position):
                    return None
                position += len(part)
                continue
            following = self.parts[index + 1] if index + 1 < len(self.parts) else ""
            assert isinstance(following, str), "slots never touch"
            if part.mode == "json":
                try:
                    value, end = _DECODER.raw_decode(text, position)
                except ValueError:
                    return None
            elif part.mode == "coded":
                end = ends[part.name](text, position, following) if ends else -1
                value = text[position:end]
            elif part.mode == "text":
                end = len(text) - len(following)
                value = text[position:end]
            else:
                line_end = text.find("\n", position)
                end = (len(text) if line_end < 0 else line_end) - len(following.partition("\n")[0])
                value = unescape_line(text[position : max(end, position)])
            if end < position:
                return None
            values.setdefault(part.name, value)
            position = end
        return values if position == len(text) else None


def _line_neighbours(parts: Any, *, from_end: bool) -> list[str | tuple[str, str]]:
    """The parts on the same line, going away from a slot."""
    found: list[str | tuple[str, str]] = []
    for part in parts:
        if not isinstance(part, str):
            found.append(part)
            continue
        on_line = part.rpartition("\n")[2] if from_end else part.partition("\n")[0]
        if on_line:
            found.append(on_line)
        if "\n" in part:
            break
    return found


def literal(text: str) -> str:
    """A text as template source that means itself: braces doubled."""
    return text.replace("{", "{{").replace("}", "}}")
