"""From logits to an answer: choosing tokens, spelling them, and stopping.

In: the rows' logits and each request's settings. Out: chosen tokens with log-probabilities and the most likely others.
Log-probabilities are those of the model itself: temperature, top_p, biases, penalties and a form that the answer must
keep to change the choice, never the reported figures. Where a row cannot be answered, the others are.

Answers can be held to a form: any JSON object, a JSON schema, or the call of a tool, as OpenAI's API has them. A
`Grammar` is checked before the model is asked, and says, while an answer grows, which tokens may come next. llguidance
enforces it; it has no dependencies and one wheel for each platform (3 MB). JSON is written with one blank behind each
comma and colon, and objects have the properties that their schema names: a small model would otherwise add blanks and
keys without end.

Where a head decides with which label an answer begins, its probabilities stand in the place of the model's (`Opening`).
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dspy_finetune.local.schemas import ApiError

logger = logging.getLogger(__name__)

CALL_OPENS, CALL_CLOSES = "<tool_call>", "</tool_call>"
"""Around a tool's call where the answer may be text as well, as Qwen and Hermes models were trained to write it."""

_AS_TRAINED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `json.dumps` writes it, and the rows of training files."""
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}


def json_grammar(schema: Mapping[str, Any] | None) -> str:
    """The grammar of one JSON value that fits the schema; None: any object."""
    return _lark(["start: value", f"value: {_json(schema or _ANY_OBJECT)}"])


def tool_grammar(
    tools: Mapping[str, Mapping[str, Any] | None], *, is_forced: bool, answer: Mapping[str, Any] | None = None
) -> str:
    """The grammar of an answer where tools are offered.

    Args:
        tools: The schema of each tool's arguments, by the tool's name; None: it has none.
        is_forced: The answer must be a call, and is written without its marks.
        answer: What an answer that is no call must fit; None: any text that does not begin like a call.
    """
    lines = [f"call: {' | '.join(f'call_{number}' for number in range(len(tools)))}"]
    for number, (name, schema) in enumerate(tools.items()):
        opening = json.dumps(f'{{"name":{json.dumps(name)},"arguments":')
        lines.append(f'call_{number}: {opening} arguments_{number} "}}"')
        lines.append(f"arguments_{number}: {_json(schema or _NO_ARGUMENTS)}")
    if is_forced:
        return _lark(["start: call", *lines])
    lines.append(f"marked: {json.dumps(CALL_OPENS)} call {json.dumps(CALL_CLOSES)}")
    if answer is not None:
        return _lark(["start: value | marked", f"value: {_json(answer)}", *lines])
    return _lark(["start: TEXT | marked", f"TEXT: /(?s:.*)/ & ~/(?s:{CALL_OPENS}.*)/", *lines])


def check_grammar(grammar: str, param: str) -> None:
    """Refuse a grammar that cannot be followed, with the reason: an unknown part of JSON schema, a bad pattern."""
    from llguidance import LLMatcher  # part of the extra `local`

    problem = LLMatcher.validate_grammar(grammar)
    if problem:
        # Its first line; behind it stands the whole grammar. Of a pattern the reason stands below it.
        lines = problem.splitlines()
        reason = lines[0].partition("failed to compile JSON schema: ")
        text = reason[2] or reason[0]
        if text == "regex parse error:":
            why = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "it is no regex")
            text = f"pattern '{lines[1].strip()}': {why}"
        message = f"Invalid schema for '{param}': {text[:300]}"
        raise ApiError(400, message, code="invalid_json_schema", param=param)


MAX_PATTERNS = 12
"""Of one value: whether a text can fit 16 of them takes llguidance a second to work out, and 26 take it hours."""


def check_patterns(schema: Any, param: str) -> None:
    """Refuse a schema in which one value must fit too many patterns at once."""
    if isinstance(schema, list):
        for one in schema:
            check_patterns(one, param)
    elif isinstance(schema, Mapping):
        if "allOf" in schema and _n_patterns(schema) > MAX_PATTERNS:
            message = f"Invalid schema for '{param}': more than {MAX_PATTERNS} patterns for one value (allOf)."
            raise ApiError(400, message, code="invalid_json_schema", param=param)
        for one in schema.values():
            check_patterns(one, param)


def _n_patterns(schema: Any) -> int:
    if not isinstance(schema, Mapping):
        return 0
    lists = [one for key in ("allOf", "anyOf", "oneOf") if isinstance(one := schema.get(key), list)]
    branches = [branch for one in lists for branch in one]
    return isinstance(schema.get("pattern"), str) + sum(map(_n_patterns, branches))


def _lark(lines: Iterable[str]) -> str:
    from llguidance import LLMatcher  # part of the extra `local`

    return LLMatcher.grammar_from_lark("\n".join(lines))


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**_closed(schema), 'x-guidance': _AS_TRAINED})}"


def _closed(schema: Any) -> Any:
    """The schema with objects closed that name their properties; what several schemas describe together stays open."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {
        key: value if key in ("allOf", "const", "enum", "default") else _closed(value) for key, value in schema.items()
    }
    is_alone = not {"allOf", "anyOf", "oneOf", "$ref", "additionalProperties", "patternProperties"} & set(schema)
    if is_alone and schema.get("type") == "object" and isinstance(schema.get("properties"), Mapping):
        closed["additionalProperties"] = False
    return closed


class Grammars:
    """What follows grammars in the tokens of one model."""

    def __init__(self, tokenizer: Any, ends: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = sorted(ends)
        self._tokens: Any = None
        self._started: OrderedDict[str, Any] = OrderedDict()

    def start(self, grammar: str) -> Guide:
        """A guide for one answer. A grammar is compiled once: one of 3,000 properties takes seconds, `n` may be 128."""
        from llguidance import LLMatcher, hf  # part of the extra `local`

        if self._tokens is None:  # a second for a large vocabulary, once
            self._tokens = hf.from_tokenizer(self._tokenizer, eos_token=self._ends)
        if grammar not in self._started:
            # What goes wrong is the request's answer (`Guide.allowed`), and no line on stderr.
            self._started[grammar] = LLMatcher(self._tokens, grammar, log_level=0)
        self._started.move_to_end(grammar)
        if len(self._started) > MAX_GRAMMARS:
            self._started.popitem(last=False)
        return Guide(self._started[grammar].deep_copy(), self._tokens.vocab_size, self._ends)


class Guide:
    """Which tokens may come next in one answer."""

    def __init__(self, matcher: Any, n_tokens: int, ends: Sequence[int]) -> None:
        self._matcher = matcher
        self._n_tokens = n_tokens
        self._ends = list(ends)

    @property
    def is_over(self) -> bool:
        """Nothing can follow: the answer is complete."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def allowed(self, n_tokens: int) -> Any:
        """A numpy array of `n_tokens` booleans: the model's rows, of which a tokenizer may name fewer."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        found = np.zeros(n_tokens, dtype=bool)
        known = np.unpackbits(bits, bitorder="little")[: min(n_tokens, self._n_tokens)].astype(bool)
        found[: len(known)] = known
        if self._matcher.is_error() or not found.any():
            logger.info("no token can follow: %s", self._matcher.get_error())
            message = "Invalid schema for 'response_format': no JSON value that ends can fit it."
            raise ApiError(400, message, code="invalid_json_schema", param="response_format")
        return found

    def take(self, token: int) -> None:
        """Go on after a token."""
        if token not in self._ends:
            self._matcher.consume_token(token)


MAX_GRAMMARS = 16
"""Kept for each model, ready to begin."""
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


class Opening:
    """The labels with which an answer may begin, token by token.

    >>> opening = Opening({(5, 1): math.log(0.75), (5, 2): math.log(0.25)})
    >>> {token: round(math.exp(log_prob), 2) for token, log_prob in opening.after([]).items()}
    {5: 1.0}
    """

    def __init__(self, log_probs: Mapping[tuple[int, ...], float]) -> None:
        self._log_probs = log_probs

    def after(self, tokens: Sequence[Token], *, likeliest: bool = False) -> dict[int, float] | None:
        """For each token that may come next the log-probability of its labels, all together or the likeliest alone.

        None where the label is written.
        """
        begun = tuple(token.id for token in tokens)
        found: dict[int, float] = {}
        for label, log_prob in self._log_probs.items():
            if label[: len(begun)] == begun and len(label) > len(begun):
                token = label[len(begun)]
                join = max if likeliest else np.logaddexp
                found[token] = float(join(found.get(token, -math.inf), log_prob))
        return found or None


@dataclass(kw_only=True)
class Answer:
    """One answer as it grows."""

    settings: Settings
    generator: torch.Generator | None
    guide: Guide | None = None
    """Which tokens may come next, where the answer must keep to a form."""
    opening: Opening | None = None
    """With what it begins, where a head decides that."""
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    """`stop`, `length`, or None while it grows."""
    notes: dict[str, str] = field(default_factory=dict)
    """What else there is to say, as response headers."""


def choose(logits: torch.Tensor, answers: Sequence[Answer]) -> list[Token | Exception]:
    """Choose the next token of each row, or say why it has none. `logits` is (B, V), float32."""
    for row, answer in enumerate(answers):
        if known := _opening_tokens(answer, logits.shape[1]):
            logits = logits.clone()
            logits[row] = _alone(known, logits[row])
    log_probs = torch.log_softmax(logits, dim=-1)
    n_top = max(answer.settings.n_top for answer in answers)
    best = torch.topk(log_probs, max(n_top, 1), dim=-1)
    values, ids = best.values.tolist(), best.indices.tolist()
    chosen: list[Token | Exception] = []
    for row, answer in enumerate(answers):
        try:
            token = _next(log_probs[row], ids[row][0], answer)
            top = [(one, max(value, LOWEST_LOGPROB)) for one, value in zip(ids[row], values[row], strict=True)]
            if answer.opening is not None:  # labels alone
                top = [(one, value) for one, value in top if value > LOWEST_LOGPROB]
            logprob = max(float(log_probs[row, token]), LOWEST_LOGPROB)
            if math.isnan(logprob):
                message = "The model's figures are no numbers: its training diverged; train it with a lower rate."
                raise ApiError(400, message, code="model_diverged", param="model")
            chosen.append(Token(id=token, logprob=logprob, top=tuple(top[: answer.settings.n_top])))
        except Exception as error:  # one request's fault is its own
            chosen.append(error)
    return chosen


def _opening_tokens(answer: Answer, n_tokens: int, *, likeliest: bool = False) -> dict[int, float] | None:
    """What a head lets come next; None where the model chooses, as in a form that no label fits."""
    known = answer.opening.after(answer.tokens, likeliest=likeliest) if answer.opening is not None else None
    if known and answer.guide is not None:
        try:
            allowed = answer.guide.allowed(n_tokens)
        except ApiError:  # this request's own fault, which `choose` meets again where it answers for one row
            allowed = np.zeros(n_tokens, dtype=bool)
        known = {token: log_prob for token, log_prob in known.items() if allowed[token]}
    if not known:
        answer.opening = None
    return known


def _alone(known: Mapping[int, float], like: torch.Tensor) -> torch.Tensor:
    """The scores (V,) where these tokens alone may come."""
    scores = torch.full_like(like, -math.inf)
    scores[list(known)] = like.new_tensor(list(known.values()))
    return scores


def _next(log_probs: torch.Tensor, best: int, answer: Answer) -> int:
    settings = answer.settings
    is_greedy = settings.temperature < GREEDY or settings.top_p < GREEDY
    if is_greedy and (known := _opening_tokens(answer, len(log_probs), likeliest=True)):
        # The likeliest label, which need not begin with the token with which most of the probability begins.
        log_probs = _alone(known, log_probs)
        best = int(log_probs.argmax())
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
