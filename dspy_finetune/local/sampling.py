"""From logits to an answer: choosing tokens, spelling them, and stopping.

In: the rows' logits and each request's settings. Out: chosen tokens with log-probabilities and the most likely others.
Log-probabilities are those of the model itself: temperature and top_p change the choice, never the reported figures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one answer is generated."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n_top: int = 0
    """How many most likely tokens to report at each position."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """A generated token: its id, its log-probability, and the most likely ids with theirs, best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(kw_only=True)
class Answer:
    """One answer as it grows."""

    settings: Settings
    generator: torch.Generator | None
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    """`stop`, `length`, or None while it grows."""


def choose(logits: torch.Tensor, answers: Sequence[Answer]) -> list[Token]:
    """Choose the next token of each row. `logits` is (B, V), float32."""
    log_probs = torch.log_softmax(logits, dim=-1)
    n_top = max(answer.settings.n_top for answer in answers)
    best = torch.topk(log_probs, max(n_top, 1), dim=-1)
    values, ids = best.values.tolist(), best.indices.tolist()
    chosen = []
    for row, answer in enumerate(answers):
        settings = answer.settings
        token = ids[row][0] if settings.temperature == 0 else _sample(log_probs[row], settings, answer.generator)
        top = tuple(zip(ids[row][: settings.n_top], values[row][: settings.n_top], strict=True))
        chosen.append(Token(id=token, logprob=float(log_probs[row, token]), top=top))
    return chosen


def _sample(log_probs: torch.Tensor, settings: Settings, generator: torch.Generator | None) -> int:
    probabilities = torch.softmax(log_probs.cpu() / settings.temperature, dim=-1)
    if settings.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        # A token stays when the mass before it is below top_p: the most likely one always does.
        ordered[ordered.cumsum(0) - ordered >= settings.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter(0, order, ordered)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def seeded(seed: int | None, index: int) -> torch.Generator | None:
    """A generator for the answer of this index; None where the request gives no seed."""
    return None if seed is None else torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop string begins, or None."""
    places = [place for place in (text.find(word) for word in stop if word) if place >= 0]
    return min(places) if places else None


class Speller:
    """Text and bytes of single tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._is_byte_level = "ByteLevel" in str(getattr(tokenizer.backend_tokenizer, "decoder", ""))
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """The bytes that the token stands for; several tokens may be needed for one character."""
        if token not in self._known:
            self._known[token] = self._spell(token)
        return self._known[token]

    def text_of(self, token: int) -> str:
        """The bytes as text, with a replacement character for a part of a character."""
        return self.bytes_of(token).decode("utf-8", errors="replace")

    def text(self, tokens: Sequence[Token]) -> str:
        """The text of a whole answer."""
        return b"".join(self.bytes_of(token.id) for token in tokens).decode("utf-8", errors="replace")

    def _spell(self, token: int) -> bytes:
        piece: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # the model's head has more rows than the tokenizer has tokens
            return b""
        if token in self._tokenizer.added_tokens_decoder:
            return piece.encode()
        if self._is_byte_level:
            return bytes(_BYTE_OF[character] for character in piece if character in _BYTE_OF)
        if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece):
            return bytes([int(match[1], 16)])
        return piece.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    # GPT-2's alphabet: printable bytes stand for themselves, the others for characters from 256 upwards.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
