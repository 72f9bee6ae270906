"""From logits to an answer: choosing tokens, spelling them, and stopping.

In: the rows' logits and each request's settings. Out: chosen tokens with log-probabilities and the most likely others.
Log-probabilities are those of the model itself: temperature, top_p, biases, penalties and a form that the answer must
keep to change the choice, never the reported figures. Where a row cannot be answered, the others are.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dspy_finetune.local.grammar import Guide
from dspy_finetune.local.schemas import ApiError

GREEDY = 1e-5
"""A temperature or top_p below this leaves the most likely token alone."""
LOWEST_LOGPROB = -9999.0
"""What OpenAI reports for a token that cannot come: JSON has no infinity."""


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
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit)."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that the answer has it already."""
    presence_penalty: float = 0.0
    """Taken once from each token that the answer has already."""
    grammar: str | None = None
    """What the answer must keep to (grammar.py)."""


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
    guide: Guide | None = None
    """Which tokens may come next, where the answer must keep to a form."""
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    """`stop`, `length`, or None while it grows."""
    notes: dict[str, str] = field(default_factory=dict)
    """What else there is to say, as response headers."""


def choose(logits: torch.Tensor, answers: Sequence[Answer]) -> list[Token | Exception]:
    """Choose the next token of each row, or say why it has none. `logits` is (B, V), float32."""
    log_probs = torch.log_softmax(logits, dim=-1)
    n_top = max(answer.settings.n_top for answer in answers)
    best = torch.topk(log_probs, max(n_top, 1), dim=-1)
    values, ids = best.values.tolist(), best.indices.tolist()
    chosen: list[Token | Exception] = []
    for row, answer in enumerate(answers):
        try:
            token = _next(log_probs[row], ids[row][0], answer)
            top = [(one, max(value, LOWEST_LOGPROB)) for one, value in zip(ids[row], values[row], strict=True)]
            logprob = max(float(log_probs[row, token]), LOWEST_LOGPROB)
            if math.isnan(logprob):
                message = "The model's figures are no numbers: its training diverged; train it with a lower rate."
                raise ApiError(400, message, code="model_diverged", param="model")
            chosen.append(Token(id=token, logprob=logprob, top=tuple(top[: answer.settings.n_top])))
        except Exception as error:  # one request's fault is its own
            chosen.append(error)
    return chosen


def _next(log_probs: torch.Tensor, best: int, answer: Answer) -> int:
    settings = answer.settings
    is_greedy = settings.temperature < GREEDY or settings.top_p < GREEDY
    changes = settings.logit_bias or settings.frequency_penalty or settings.presence_penalty or answer.guide
    if not changes:
        return best if is_greedy else sample(log_probs, settings, answer.generator)
    scores = _changed(log_probs.cpu(), answer)
    return int(scores.argmax()) if is_greedy else sample(scores, settings, answer.generator)


def _changed(log_probs: torch.Tensor, answer: Answer) -> torch.Tensor:
    """The scores (V,) after biases, penalties and the answer's form."""
    settings, scores = answer.settings, log_probs.clone()
    for token, bias in settings.logit_bias:
        if token >= len(scores):
            message = f"Invalid key in 'logit_bias': {token}. The model has the tokens 0 to {len(scores) - 1}."
            raise ApiError(400, message, code="invalid_value", param="logit_bias")
        scores[token] += bias
    for token, count in Counter(token.id for token in answer.tokens).items():
        scores[token] -= settings.frequency_penalty * count + settings.presence_penalty
    if answer.guide is not None:
        scores[~torch.from_numpy(answer.guide.allowed(len(scores)))] = -math.inf
    return scores


def sample(scores: torch.Tensor, settings: Settings, generator: torch.Generator | None) -> int:
    """Draw one index by its score, at the request's temperature and top_p."""
    # In double, and from the largest score downwards: a temperature of 1e-5 must not overflow.
    wide = scores.cpu().double()
    probabilities = torch.softmax((wide - wide.max()) / settings.temperature, dim=-1)
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
