"""What a frozen model makes of a prompt: the average of its middle layers over the part in which prompts differ.

In: chat messages, a model and its tokenizer. Out: one vector for each prompt, layer and field, as numpy arrays.
All prompts of a task begin alike (system message, rubric) and end alike (the template's last words). These tokens say
nothing about the row: they are computed once and left out of the average. Where lines of the user's message begin
with the same names in every row ("A: ...", "B: ...", or DSPy's "[[ ## a ## ]]"), each field has an average of its own,
however many lines it has.
Measured on SmolLM2-135M: averages beat the last token nearly everywhere, and the last layer is never the best.
A sentence encoder gives its own vector for the text of each field (mean over its tokens, length one), and of two or
three fields how they agree: what a linear model cannot see in vectors that stand side by side.
Not covered: what is learned from the vectors (heads.py).
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from dspy_finetune.errors import DataError
from dspy_finetune.local.chat import encode_prompt, encode_text, most_characters
from dspy_finetune.local.forward import common_length
from dspy_finetune.local.hardware import fast_dtype, free_memory
from dspy_finetune.local.heads import Candidate, Head, Mode, fit, numbers_of, sets_of
from dspy_finetune.local.memory import READ_PLACES, READ_TOKENS, Reading, Sizes, check_reading, may_take
from dspy_finetune.local.models import load_encoder, load_model, load_tokenizer
from dspy_finetune.local.schemas import ApiError, Emit, TrainResult, TrainSpec
from dspy_finetune.local.words import Words
from dspy_finetune.tasks import (
    MAX_AGREEING,
    MAX_LABELS,
    Messages,
    agreement,
    compared_pair,
    is_encoder,
    message_text,
    openings_of,
    rows_of,
    task_of_answers,
)

Array = NDArray[np.float32]
Span = tuple[int, int]

DEPTHS = (1 / 3, 1 / 2, 2 / 3, 5 / 6)
"""The layers that are tried, by relative depth: 10, 15, 20 and 25 of SmolLM2's 30."""
MAX_SPAN_TOKENS = 384
"""A longer text is cut: the average of its beginning says what the text is about."""
MAX_ENCODER_TOKENS = 256
"""all-MiniLM-L6-v2 was trained on no more."""
MAX_ENCODER_CHARACTERS = 64 * MAX_ENCODER_TOKENS
MAX_EMBEDDED_TOKENS = 300_000
"""Of one request for embeddings, as OpenAI's."""
MAX_EMBEDDED_CHARACTERS = 16 * MAX_EMBEDDED_TOKENS
"""Of one request: no text has as many for each token, and so much more is refused without being encoded."""
MAX_FIELDS = 8
_FIELD = re.compile(r"(?P<line>[^\W\d][\w .-]{0,39}):(?:\s|$)|\[\[ ## (?P<marker>\w+) ## \]\]\s*$")
"""A line with which a field begins: `Name: text`, or the name between the marks of DSPy's chat and JSON adapters."""


class Stopped(Exception):
    """Somebody asked for the reading to end."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What all prompts of a task have in common."""

    prefix: tuple[int, ...] = ()
    """The tokens with which every prompt begins; none where only the sentence encoder reads."""
    suffix: tuple[int, ...] = ()
    """The tokens with which every prompt ends."""
    opening: str = ""
    """The words with which every user message begins: before the first name, where its lines have names."""
    fields: tuple[str, ...] = ()
    """The names with which fields of every user message begin; empty where they have none in common."""
    closing: str = ""
    """The lines with which every user message ends, from a line break on: no field's, and not about the row."""

    @classmethod
    def of(cls, tokenizer: Any, prompts: Sequence[Messages]) -> Shape:
        """What these prompts have in common; `tokenizer` is None where only the sentence encoder reads."""
        rows = [encode_prompt(tokenizer, messages) for messages in prompts] if tokenizer else [[]]
        prefix = rows[0][: min(common_length(rows[0], row) for row in rows)]
        room = min(len(row) for row in rows) - len(prefix)
        suffix_length = min(room, *(common_length(rows[0][::-1], row[::-1]) for row in rows))
        texts, fields = [asked(messages) for messages in prompts], shared_fields(prompts)
        return cls(
            prefix=tuple(prefix),
            suffix=tuple(rows[0][len(rows[0]) - suffix_length :]),
            opening=texts[0][: field_places(texts[0], fields)[0].begin] if fields else _shared_words(texts),
            fields=fields,
            closing=shared_closing(texts, fields),
        )

    def fits(self, row: Sequence[int] | None, messages: Messages) -> bool:
        """Whether a prompt begins, ends and is named like those the shape was taken from; tokens None are not read."""
        if row is None:
            return self.is_named(messages) and asked(messages).startswith(self.opening)
        is_long = len(row) >= len(self.prefix) + len(self.suffix)
        is_framed = is_long and tuple(row[: len(self.prefix)]) == self.prefix
        is_ended = tuple(row[len(row) - len(self.suffix) :]) == self.suffix
        return is_framed and is_ended and self.is_named(messages) and asked(messages).startswith(self.opening)

    def whole_span(self, row: Sequence[int]) -> Span:
        """Where the row differs from others."""
        start = common_length(self.prefix, row)
        end = max(start, len(row) - common_length(self.suffix[::-1], row[start:][::-1]))
        return _cut((start, end) if start < end else (max(0, end - 1), max(1, end)))

    def field_spans(self, tokenizer: Any, messages: Messages, row: Sequence[int]) -> list[Span]:
        """One span of the row's tokens for each field; a prompt without the names is one text in each field's place."""
        text = asked(messages)
        places = field_places(text, self.fields)
        if not places:
            return [self.whole_span(row)] * len(self.fields)
        # A message that ends earlier has the same tokens up to where it ends: no offsets of the tokenizer are needed.
        spans = []
        last = len(row) - common_length(self.suffix[::-1], row[::-1])  # the template's last words are no field's
        for place in places:
            start, end = (
                min(last, common_length(row, encode_prompt(tokenizer, with_asked(messages, text[:length]))))
                for length in (place.start, place.end)
            )
            spans.append(_cut((start, end) if start < end else (max(0, end - 1), max(1, end))))
        return spans

    def texts(self, messages: Messages) -> list[str]:
        """The text of each field, or the user's message without its opening."""
        text = asked(messages).removesuffix(self.closing)
        values = field_values(text, self.fields)
        return list(values.values()) or [text.removeprefix(self.opening) or text] * max(1, len(self.fields))

    def is_named(self, messages: Messages) -> bool:
        """Whether the user's message has the fields, in their order, and no more before them than all had."""
        places = field_places(asked(messages), self.fields)
        return not self.fields or (bool(places) and places[0].begin <= len(self.opening))


@dataclass(frozen=True, kw_only=True)
class View:
    """How a prompt becomes features: as one text, field by field, by how fields agree, or as the difference of two."""

    mode: Mode
    shape: Shape
    compared: tuple[str, ...] = ()
    """For "difference" the two fields' names: the one that the first label names, then the other."""
    written: tuple[str, ...] = ()
    """For "difference" all names in their order in the message: the two, and those that both are read with."""
    words: Words | None = None
    """The words of the training rows, where they are features too."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> View:
        """Read what `to_dict` gave."""
        shape = Shape(**{name: _tuple(value) for name, value in facts["shape"].items()})
        known = facts.get("words")  # a head of an earlier version has none
        words = Words(**{name: _tuple(value) for name, value in known.items()}) if known else None
        return cls(**{**{name: _tuple(value) for name, value in facts.items()}, "shape": shape, "words": words})

    def with_words(self, prompts: Sequence[Messages]) -> View:
        """With the words of these prompts."""
        flat = [single for messages in prompts for single in self.singles(messages) or []] if self.compared else prompts
        return replace(self, words=Words.of([self.text(messages) for messages in flat]))

    @property
    def context(self) -> tuple[str, ...]:
        """For "difference" the names of the fields that belong to neither of the two: the question of two answers."""
        return tuple(name for name in self.written if name not in self.compared)

    def text(self, messages: Messages) -> str:
        """What the words are read from: all fields' texts."""
        return "\n".join(self.texts(messages))

    def texts(self, messages: Messages) -> list[str]:
        """The fields' texts; of one side of a pair that side alone."""
        texts = self.shape.texts(messages)
        if not self.shape.is_named(messages):
            return texts[:1]
        return texts[len(self.context) :]

    def singles(self, messages: Messages) -> list[Messages] | None:
        """The prompts in which each of two fields stands alone, the first label's first; None where they are not there.

        Each is read in the first one's place, behind what both are read with: what is read behind another text depends
        on that text.
        """
        text = asked(messages).removesuffix(self.shape.closing)
        values, places = field_values(text, self.written), field_places(text, self.written)
        if not values:
            return None
        before = text[: places[0].begin]
        before += "".join(f"{one.head}{values[one.name]}\n" for one in places if one.name in self.context)
        first = next(one for one in places if one.name in self.compared)
        return [with_asked(messages, f"{before}{first.head}{values[name]}") for name in self.compared]


def views_of(
    tokenizer: Any, prompts: Sequence[Messages], labels: Sequence[str], *, has_encoder: bool = True
) -> list[View]:
    """The ways to read a training file's prompts, the plain one first; which is best is for cross-validation to say."""
    fields = shared_fields(prompts)
    compared = compared_pair(fields, labels)
    if compared is not None:
        closing = shared_closing([asked(messages) for messages in prompts], fields)
        names = View(mode="difference", shape=Shape(closing=closing), compared=compared, written=fields)
        singles = [single for messages in prompts for single in names.singles(messages) or []]
        return [replace(names, shape=replace(Shape.of(tokenizer, singles), closing=closing))]
    shape = Shape.of(tokenizer, prompts)
    modes: list[Mode] = ["whole"]
    modes += ["fields"] if len(fields) > 1 else []
    modes += ["agreement"] if has_encoder and 1 < len(fields) <= MAX_AGREEING else []
    return [View(mode=mode, shape=shape) for mode in modes]


class Reader:
    """Makes features of prompts with a frozen causal base, a sentence encoder, or both."""

    def __init__(self, *, base: tuple[Any, Any] | None = None, encoder: tuple[Any, Any] | None = None) -> None:
        self.base = base  # (tokenizer, model)
        self.encoder = encoder
        self.should_stop: Callable[[], bool] = lambda: False
        self.n_cut: dict[Mode, int] = {}
        """For each way to read: of how many prompts a part was longer than MAX_SPAN_TOKENS, in the last call."""
        self.n_cut_encoder: dict[Mode, int] = {}
        """The same of the sentence encoder and MAX_ENCODER_TOKENS."""
        assert base or encoder

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        adapters: Sequence[Path] = (),
        encoder: Path | None = None,
        blocks: Sequence[str] = (),
        device: str = "cpu",
    ) -> Reader:
        """Load a causal base and the encoder that may stand beside it, or a folder that is an encoder itself.

        Args:
            folder: The base.
            adapters: Merged into it.
            encoder: The sentence encoder's folder.
            blocks: Which of "base" and "encoder" are needed; empty for all there are.
            device: As torch names it.
        """
        if is_encoder(folder):
            return cls(encoder=load_encoder(folder, device=device))
        base = None
        if not blocks or "base" in blocks:
            dtype = str(feature_dtype(device)).removeprefix("torch.")
            base = (load_tokenizer(folder), load_model(folder, adapters, device=device, dtype=dtype))
        wants_encoder = encoder is not None and (not blocks or "encoder" in blocks)
        return cls(base=base, encoder=load_encoder(encoder, device=device) if encoder and wants_encoder else None)

    def prompt_tokens(self, messages: Messages) -> list[int]:
        """A prompt for the tokenizer that reads all of it."""
        if self.base:
            row: list[int] = encode_prompt(self.base[0], messages)
            return row
        assert self.encoder
        return encoded(self.encoder[0], [asked(messages)])[0]

    def text_lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of each text `embed` reads. Raises ApiError where one, or all together, are too long."""
        if self.base is not None:
            self._check_characters(self.base[0], texts)
        rows = self._text_tokens(texts)
        if self.base is not None:
            _check_lengths(rows, self.context_tokens)
        return [len(row) for row in rows]

    def _check_characters(self, tokenizer: Any, texts: Sequence[str]) -> None:
        """Refuse what is too long by far without encoding it."""
        most = self.context_tokens or MAX_EMBEDDED_TOKENS
        for place, text in enumerate(texts):
            if len(text) > most_characters(tokenizer, most):
                raise _too_long(most, place, f"more than {most}")
        if sum(map(len, texts)) > MAX_EMBEDDED_CHARACTERS:
            raise _too_many(f"more than {MAX_EMBEDDED_TOKENS}")

    def _text_tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if self.base is not None:
            return [encode_text(self.base[0], text) or [0] for text in texts]
        assert self.encoder
        return encoded(self.encoder[0], texts)

    def embed(self, texts: Sequence[str]) -> Array:
        """Vectors of length one: an encoder's own, or a base's middle layer averaged."""
        if self.base is None:
            assert self.encoder
            tokenizer, model = self.encoder
            found: Array = sentence_vectors(model, tokenizer, texts)
            return found
        rows, model = self._text_tokens(texts), self.base[1]
        layer = layer_numbers(model.config.get_text_config().num_hidden_layers)[1:2] or (1,)
        means: Array = hidden_means(model, rows, [[(0, len(row))] for row in rows], layer)[:, 0, 0]
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        vectors = means / np.where(lengths > 0, lengths, 1)
        return vectors.astype(np.float32, copy=False)

    @property
    def context_tokens(self) -> int | None:
        """How many tokens the base reads; None where the sentence encoder, which cuts its texts, reads alone."""
        return int(self.base[1].config.get_text_config().max_position_embeddings) if self.base else None

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer, or None."""
        return self.base[0] if self.base else None

    def read_all(self, prompts: Sequence[Messages], views: Sequence[View]) -> dict[Mode, dict[str, Array]]:
        """Each view's features; all views of one shape are told from one reading of each text."""
        modes = {view.mode: view for view in views}
        if not {"whole", "fields"} <= modes.keys():
            return {mode: self.read(prompts, view) for mode, view in modes.items()}
        read = (modes["whole"], modes["fields"])
        base = self._read_base(prompts, read) if self.base else [None, None]
        found = {view.mode: self._blocks(prompts, view, base=values) for view, values in zip(read, base, strict=True)}
        if "agreement" in modes:
            found["agreement"] = {name: values for name, values in found["whole"].items() if name == "base"}
            vectors = found["fields"]["encoder"].reshape(len(prompts), len(modes["fields"].shape.fields), -1)
            found["agreement"]["encoder"] = np.stack([agreement(row) for row in vectors])
            # A reader that has kept all texts cuts none anew.
            self.n_cut_encoder["agreement"] = self.n_cut_encoder.get("fields", 0)
        return found

    def read(self, prompts: Sequence[Messages], view: View) -> dict[str, Array]:
        """Each model's features: (prompts, width)."""
        if view.mode != "difference":
            return self._blocks(prompts, view)
        pairs = [view.singles(messages) for messages in prompts]
        flat = [single for pair in pairs for single in pair or []]
        blocks = self._blocks(flat, replace(view, mode="whole")) if flat else {}
        result = {}
        for name, values in blocks.items():
            result[name] = np.zeros((len(prompts), values.shape[1]), np.float32)
            found = [row for row, pair in enumerate(pairs) if pair is not None]
            result[name][found] = values[0::2] - values[1::2]
        # A prompt without the two fields says nothing about them: no difference, and equal probabilities.
        return result or {name: np.zeros((len(prompts), n), np.float32) for name, n in self._widths(view).items()}

    def fits(self, messages: Messages, view: View) -> bool:
        """Whether a prompt has the shape of those it was trained on."""
        if view.mode == "difference":
            singles = view.singles(messages)
            return singles is not None and all(self._fits(single, view.shape) for single in singles)
        return self._fits(messages, view.shape)

    def _fits(self, messages: Messages, shape: Shape) -> bool:
        return shape.fits(encode_prompt(self.tokenizer, messages) if self.base else None, messages)

    def _widths(self, view: View) -> dict[str, int]:
        """How many features one text has of each kind."""
        found = {}
        if self.base:
            sizes = self.base[1].config.get_text_config()
            found["base"] = len(layer_numbers(sizes.num_hidden_layers)) * int(sizes.hidden_size)
        if self.encoder:
            found["encoder"] = int(self.encoder[1].config.hidden_size)
        return found | ({"words": len(view.words.terms)} if view.words else {})

    def _blocks(self, prompts: Sequence[Messages], view: View, base: Array | None = None) -> dict[str, Array]:
        """Each model's features; `base` where the base has read the prompts before."""
        blocks = {}
        if self.base:
            blocks["base"] = self._read_base(prompts, [view])[0] if base is None else base
        if self.encoder:
            blocks["encoder"] = self._read_encoder(prompts, view)
        if view.words:
            blocks["words"] = view.words.vectors([view.text(messages) for messages in prompts])
        return blocks

    def _read_base(self, prompts: Sequence[Messages], views: Sequence[View]) -> list[Array]:
        """The averages of each view, all from one pass over the prompts."""
        assert self.base
        _, model = self.base
        rows, spans, places = self.tokens(prompts, views)
        layers = layer_numbers(model.config.get_text_config().num_hidden_layers)
        means = hidden_means(model, rows, spans, layers, self.should_stop)
        return [means[:, :, part].reshape(len(rows), -1)[places] for part in self.parts(views)]

    @staticmethod
    def parts(views: Sequence[View]) -> list[slice]:
        """Which of a row's spans are each view's."""
        sizes = [len(view.shape.fields) if view.mode == "fields" else 1 for view in views]
        return [slice(sum(sizes[:place]), sum(sizes[: place + 1])) for place in range(len(sizes))]

    def tokens(
        self, prompts: Sequence[Messages], views: Sequence[View]
    ) -> tuple[list[list[int]], list[list[Span]], list[int]]:
        """(distinct rows of tokens up to the last that is averaged, their spans, which row each prompt is).

        The spans of all views stand one after the other. A token's states do not depend on those behind it.
        """
        tokenizer = self.tokenizer
        keys: dict[tuple[Any, ...], int] = {}  # an item that stands in many pairs is read once
        places: list[int] = []
        rows: list[list[int]] = []
        spans: list[list[Span]] = []
        for messages in prompts:
            row = encode_prompt(tokenizer, messages)
            span = [one for view in views for one in self._spans(messages, row, view)]
            end = max(stop for _, stop in span)
            key = (*row[:end], *span)
            if key not in keys:
                keys[key] = len(rows)
                rows.append(row[:end])
                spans.append(span)
            places.append(keys[key])
        for view, part in zip(views, self.parts(views), strict=True):
            is_cut = [any(end - start >= MAX_SPAN_TOKENS for start, end in span[part]) for span in spans]
            self.n_cut[view.mode] = sum(is_cut[place] for place in places)
        return rows, spans, places

    def _spans(self, messages: Messages, row: Sequence[int], view: View) -> list[Span]:
        """What is averaged of one prompt."""
        is_one = view.mode != "fields"
        if is_one and not view.context:
            return [view.shape.whole_span(row)]
        spans = view.shape.field_spans(self.tokenizer, messages, row)[len(view.context) :]
        # One side of a pair: what both are read with is no part of the average.
        return [_cut((spans[0][0], spans[-1][1]))] if is_one else spans

    def _read_encoder(self, prompts: Sequence[Messages], view: View) -> Array:
        assert self.encoder
        tokenizer, model = self.encoder
        if view.mode == "whole":
            texts = [[" ".join(view.texts(messages))] for messages in prompts]
        else:
            texts = [view.shape.texts(messages) for messages in prompts]
        distinct = {text: number for number, text in enumerate(dict.fromkeys(text for row in texts for text in row))}
        vectors = sentence_vectors(model, tokenizer, list(distinct))
        is_cut = [len(ids) >= MAX_ENCODER_TOKENS for ids in encoded(tokenizer, list(distinct))]
        self.n_cut_encoder[view.mode] = sum(any(is_cut[distinct[text]] for text in row) for row in texts)
        found = [vectors[[distinct[text] for text in row]] for row in texts]
        return np.stack([agreement(row) if view.mode == "agreement" else row.reshape(-1) for row in found])


def _check_lengths(rows: Sequence[Sequence[int]], most: int | None) -> None:
    for place, row in enumerate(rows):
        if most is not None and len(row) > most:
            raise _too_long(most, place, len(row))
    total = sum(map(len, rows))
    if total > MAX_EMBEDDED_TOKENS:
        raise _too_many(total)


def _too_long(most: int, place: int, found: int | str) -> ApiError:
    message = (
        f"This model's maximum context length is {most} tokens, however the input {place} has {found}. "
        "Please shorten it."
    )
    return ApiError(400, message, code="context_length_exceeded", param="input")


def _too_many(total: int | str) -> ApiError:
    message = f"The inputs have {total} tokens; one request takes {MAX_EMBEDDED_TOKENS}. Please ask several times."
    return ApiError(400, message, code="invalid_value", param="input")


def asked(messages: Messages) -> str:
    """The text of the last user message, "" where there is none."""
    users = [message_text(message) for message in messages if message.get("role") == "user"]
    return users[-1] if users else ""


def with_asked(messages: Messages, text: str) -> list[Mapping[str, Any]]:
    """The messages with another text in the last user message."""
    place = max(index for index, message in enumerate(messages) if message.get("role") == "user")
    return [*messages[:place], {**messages[place], "content": text}, *messages[place + 1 :]]


def shared_fields(prompts: Sequence[Messages]) -> tuple[str, ...]:
    """The names that begin lines of every user message, in one order; none where what stands before the first differs.

    A value may have several lines, and names of its own that other prompts lack.
    """
    found: tuple[str, ...] = ()
    opening: list[str] = []
    for number, messages in enumerate(prompts):
        lines = asked(messages).split("\n")
        matches = [_FIELD.match(line) for line in lines]
        names = tuple(dict.fromkeys(match["line"] or match["marker"] for match in matches if match))
        before = lines[: next((place for place, match in enumerate(matches) if match), len(lines))]
        opening = opening if number else before
        if before != opening or (number and found[:1] != names[:1]):
            return ()
        found = tuple(name for name in found if name in names) if number else names
        if tuple(name for name in names if name in found) != found:
            return ()
    return found if 0 < len(found) <= MAX_FIELDS else ()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a field stands in a text."""

    name: str
    begin: int
    """Where its name begins."""
    start: int
    """Where its text begins, behind the name and its marks."""
    end: int
    is_marked: bool
    """Whether it is written as DSPy's adapters write it, the name on a line of its own."""

    @property
    def head(self) -> str:
        """What stands before the text."""
        return f"[[ ## {self.name} ## ]]\n" if self.is_marked else f"{self.name}: "


def field_places(text: str, fields: Sequence[str]) -> list[Place]:
    """Where each field stands; nothing where they are not all there in this order.

    What stands before the first is the task's, or nothing.
    """
    found: list[Place] = []
    begin = 0
    for line in text.split("\n"):
        match = _FIELD.match(line) if len(found) < len(fields) else None
        name = match and (match["line"] or match["marker"])
        if match and name and name == fields[len(found)]:
            found = [*found[:-1], *(replace(one, end=begin - 1) for one in found[-1:])]
            is_marked = match["marker"] is not None
            start = begin + (len(line.rstrip()) if is_marked else len(name) + 1)
            found.append(Place(name=name, begin=begin, start=start, end=len(text), is_marked=is_marked))
        begin += len(line) + 1
    return found if len(found) == len(fields) else []


def field_values(text: str, fields: Sequence[str]) -> dict[str, str]:
    """The text of each field, without its name; empty where they are not all there in this order."""
    return {place.name: text[place.start : place.end].strip() for place in field_places(text, fields)}


def shared_closing(texts: Sequence[str], fields: Sequence[str]) -> str:
    """The lines with which all texts end, with the line break before them; none of a field's name."""
    backwards = [text[::-1] for text in texts]
    first, last = min(backwards), max(backwards)
    n_shared = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(map(len, (first, last)))
    )
    starts = [places[-1].start if (places := field_places(text, fields)) else 0 for text in texts]
    room = min(len(text) - start for text, start in zip(texts, starts, strict=True))
    if len(set(texts)) < 2:
        return ""
    shared = first[: min(n_shared, room)][::-1]
    return shared[shared.find("\n") :] if "\n" in shared else ""


def layer_numbers(n_layers: int) -> tuple[int, ...]:
    """How many layers are run for each depth that is tried.

    Examples:
        >>> layer_numbers(30), layer_numbers(2)
        ((10, 15, 20, 25), (1, 2))
    """
    return tuple(sorted({min(n_layers, max(1, round(depth * n_layers))) for depth in DEPTHS}))


def feature_dtype(device: str) -> torch.dtype:
    """bfloat16 where the device multiplies fastest in it, else float32: states of middle layers go beyond float16.

    With AVX512-BF16 alone prompts are read in a third of float32's time, too (120 of 60 tokens in 2.4 s for 8.0); a
    head on 440 titles then had the same features and strength on four splits, and its AUC moved by .0006 at most.
    """
    return torch.bfloat16 if fast_dtype(device) == "bfloat16" else torch.float32


@torch.inference_mode()
def hidden_means(
    model: Any,
    rows: Sequence[Sequence[int]],
    spans: Sequence[Sequence[Span]],
    layers: Sequence[int],
    should_stop: Callable[[], bool] = lambda: False,
) -> Array:
    """Averages of hidden states: (rows, layers, spans, width).

    Args:
        model: A causal model of transformers.
        rows: Token ids of each prompt.
        spans: For each row as many (start, end) as any other.
        layers: After how many layers the states are read.
        should_stop: Asked between two batches.

    Raises:
        Stopped: Somebody asked to.
    """
    n_spans = len(spans[0])
    result = np.zeros((len(rows), len(layers), n_spans, model.config.get_text_config().hidden_size), np.float32)
    shared = min(common_length(rows[0], row) for row in rows) if len(rows) > 1 else 0
    # Nothing behind the last averaged token is needed, and at least one token has to be left to read.
    ends = [max(end for _, end in places) for places in spans]
    shared = min(shared, *(start for places in spans for start, _ in places))
    with first_layers(model, max(layers)) as backbone:
        past = backbone(input_ids=_tensor([list(rows[0][:shared])], model), use_cache=True) if shared else None
        for batch in batches_of([end - shared for end in ends], shared):
            if should_stop():
                raise Stopped
            tokens = [list(rows[index][shared : ends[index]]) for index in batch]
            states = _read(backbone, model, tokens, past.past_key_values if past else None, shared)
            for place, layer in enumerate(layers):
                hidden = states[layer]  # (B, L, D)
                for row, index in enumerate(batch):
                    for number, (start, end) in enumerate(spans[index]):
                        mean = hidden[row, start - shared : end - shared].float().mean(0)
                        result[index, place, number] = mean.cpu().numpy()
    return result


def encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """A sentence encoder's tokens."""
    # A tokenizer encodes the whole of a text before it cuts it.
    cut = [text[:MAX_ENCODER_CHARACTERS] for text in texts]
    return [tokenizer(text, truncation=True, max_length=MAX_ENCODER_TOKENS)["input_ids"] for text in cut]


@torch.inference_mode()
def sentence_vectors(model: Any, tokenizer: Any, texts: Sequence[str]) -> Array:
    """A sentence encoder's vectors: mean over tokens, of length one. (texts, width)."""
    ids = encoded(tokenizer, texts)
    result = np.zeros((len(texts), model.config.hidden_size), np.float32)
    for batch in batches_of([len(row) for row in ids]):
        tokens, mask = padded([ids[index] for index in batch], model)
        hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        weight = mask[:, :, None].float()
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        result[batch] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
    return result


def _read(backbone: Any, model: Any, tokens: list[list[int]], past: Any, shared: int) -> Any:
    ids, mask = padded(tokens, model)
    cache = None
    if past is not None:
        cache = DynamicCache()
        for number, layer in enumerate(past.layers[: len(backbone.layers)]):
            cache.update(
                layer.keys.expand(len(tokens), -1, -1, -1), layer.values.expand(len(tokens), -1, -1, -1), number
            )
        mask = torch.cat([mask.new_ones(len(tokens), shared), mask], dim=1)
    output = backbone(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=cache is not None,
        output_hidden_states=True,
    )
    return output.hidden_states


@contextlib.contextmanager
def first_layers(model: Any, n_layers: int) -> Iterator[Any]:
    """The model's backbone with its first layers alone, and without the norm behind the last."""
    # The layers above the deepest that is read are not run; the final norm is not part of a middle layer's states.
    backbone = model.base_model
    kept = backbone.layers
    backbone.layers = kept[:n_layers]
    norm, backbone.norm = backbone.norm, torch.nn.Identity()
    try:
        yield backbone
    finally:
        backbone.layers, backbone.norm = kept, norm


def padded(rows: list[list[int]], model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, mask) of rows as long as the longest, padded on the right."""
    longest = max(len(row) for row in rows)
    tokens = _tensor([row + [0] * (longest - len(row)) for row in rows], model)
    mask = _tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], model)
    return tokens, mask


def _tensor(values: Any, model: Any) -> torch.Tensor:
    return torch.tensor(values, device=model.device)


def batches_of(lengths: Sequence[int], shared: int = 0) -> Iterator[list[int]]:
    """Rows of like length together, so that little is padding.

    Args:
        lengths: New tokens of each row.
        shared: Tokens before them, whose keys and values each row of a batch has a copy of.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        n_rows = len(batch) + 1
        if batch and (lengths[index] * n_rows > READ_TOKENS or (shared + lengths[index]) * n_rows > READ_PLACES):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _cut(span: Span) -> Span:
    return span[0], min(span[1], span[0] + MAX_SPAN_TOKENS)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _shared_words(texts: Sequence[str]) -> str:
    """The beginning that all texts share, up to the end of a word."""
    first, last = min(texts), max(texts)
    shared = first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
    if shared == first:  # one text is all that is shared, or they are equal: nothing is left to cut
        return ""
    return shared[: shared.rfind(" ") + 1] if " " in shared else shared[: shared.rfind("\n") + 1]


# The recipe "head": features of every row, candidates by cross-validation, one small model.


def train_head(spec: TrainSpec, *, emit: Emit, should_stop: Callable[[], bool]) -> TrainResult:
    """Fit a head on chat lines: `TrainSpec` says what is given, `TrainResult` what comes back.

    A run that was stopped begins anew: reading takes seconds.
    """
    if spec.n_threads:
        torch.set_num_threads(spec.n_threads)
    rows = rows_of(spec.train_file)
    assert rows is not None  # the scheduler has looked
    reader = open_reader(spec, *rows, emit=emit, should_stop=should_stop)
    fitted = fit_rows(spec, reader, *rows, emit=emit)
    if fitted is None:
        return stopped()
    head, view, n_sets = fitted
    if spec.validation_file is not None:
        emit({"step": n_sets, "total_steps": n_sets, **_validated(spec.validation_file, reader, view, head)})
    folder = spec.output_folder / "head"
    head.save(folder)
    n_tokens = sum(len(reader.prompt_tokens(messages)) for messages in rows[0])
    return TrainResult(trained_tokens=n_tokens, steps=n_sets, adapter=None, stopped=False, checkpoints=(), head=folder)


def train_opening(spec: TrainSpec, *, emit: Emit, should_stop: Callable[[], bool]) -> TrainResult:
    """Fit the head that decides with which label an answer begins, before an adapter learns to write what follows.

    Preferences that go on from a model with such a head keep it where it was fitted on more rows than they are:
    corrections of a model's mistakes alone would teach the opposite of what it knows.
    """
    folder = spec.output_folder / "head"
    done = TrainResult(trained_tokens=0, steps=0, adapter=None, stopped=False, checkpoints=(), head=folder)
    if (folder / "head.json").is_file():  # a run that goes on
        return done
    rows = rows_of(spec.train_file)
    assert rows is not None  # the scheduler has looked
    prompts, answers = rows
    labels = openings_of(answers)
    tokens = opening_tokens(load_tokenizer(spec.model_folder), answers, labels)
    if tokens is None:
        emit({"message": "The adapter decides the label, too: in tokens it does not stand apart from the text"})
        return replace(done, head=None)

    def tell(facts: dict[str, Any]) -> None:
        if "message" in facts:  # the steps are the adapter's
            emit(facts)

    reader = open_reader(spec, prompts, labels, emit=tell, should_stop=should_stop)
    before = Head.load(spec.start_head) if spec.method == "dpo" and spec.start_head else None
    if before is not None and before.openings and set(before.labels) >= set(labels):
        view = View.from_dict(before.facts["view"])
        if before.facts["n_rows"] >= len(labels) and all(reader.fits(messages, view) for messages in prompts):
            emit({"message": f"The label stays the head's that was fitted on {before.facts['n_rows']:,} rows"})
            before.save(folder)
            return done
    try:
        fitted = fit_rows(spec, reader, prompts, labels, emit=tell)
    except DataError as error:
        emit({"message": f"The adapter decides the label, too: {error}"})
        return replace(done, head=None)
    if fitted is None:
        return stopped()
    head = fitted[0]
    head.openings, head.n_adapters = tuple(tokens[label] for label in head.labels), spec.n_adapters
    head.save(folder)
    return done


def opening_tokens(tokenizer: Any, answers: Sequence[str], labels: Sequence[str]) -> dict[str, tuple[int, ...]] | None:
    """The tokens with which answers begin that have the same label; None where one label's are also another's.

    Args:
        tokenizer: The model's.
        answers: Whole answers.
        labels: What each begins with.
    """
    found: dict[str, tuple[int, ...]] = {}
    for answer, label in zip(answers, labels, strict=True):
        ids = tuple(encode_text(tokenizer, answer))
        if label not in found:
            most = min(len(ids), len(label.encode()) + 1)  # a token is a byte or more, but for a blank before the first
            decoded = (tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False) for end in range(most + 1))
            found[label] = ids[: max(end for end, text in enumerate(decoded) if label.startswith(text))]
        found[label] = ids[: common_length(ids, found[label])]
    ordered = sorted(found.values())
    is_apart = all(other[: len(one)] != one for one, other in itertools.pairwise(ordered))
    return found if is_apart and all(ordered) else None


def open_reader(
    spec: TrainSpec, prompts: Sequence[Messages], answers: Sequence[str], *, emit: Emit, should_stop: Callable[[], bool]
) -> Reader:
    """What reads the prompts of a job, told as an event; raises MemoryShortError where it would not fit."""
    free, width = may_take(spec.memory_bytes, free_on(spec.device)), feature_dtype(spec.device).itemsize
    found = check_reading(*to_read(spec, prompts, answers), free=free, width=width)
    emit({"message": f"Reading on {spec.device}. {found}"})
    reader = Reader.open(spec.model_folder, encoder=spec.encoder_folder, device=spec.device)
    reader.should_stop = should_stop
    return reader


def to_read(spec: TrainSpec, prompts: Sequence[Messages], answers: Sequence[str]) -> tuple[Sizes | None, Reading]:
    """What the memory estimate asks for; no model is loaded."""
    alone = is_encoder(spec.model_folder)
    tokenizer = None if alone else load_tokenizer(spec.model_folder)
    sizes = None if alone else Sizes.of(spec.model_folder)
    other = spec.model_folder if alone else spec.encoder_folder
    fields = shared_fields(prompts)
    n_fields = max(1, len(fields))
    is_pair = compared_pair(fields, task_of_answers(answers, MAX_LABELS, spec.answers).labels) is not None
    rows = [encode_prompt(tokenizer, messages) for messages in prompts] if tokenizer else [[0] for _ in prompts]
    shared = common_length(min(rows), max(rows))
    words = Words.of([asked(messages) for messages in prompts])
    most = MAX_SPAN_TOKENS if n_fields == 1 else max(map(len, rows))
    return sizes, Reading(
        n_rows=len(rows),
        shared=shared,
        lengths=sorted((max(1, min(most, len(row) - shared)) for row in rows), reverse=True),
        layers=layer_numbers(sizes.layers if sizes else 1),
        # A pair: each item alone, and the difference. Fields: the whole prompt, each of them, and how they agree.
        n_vectors=3 if is_pair else n_fields + (n_fields > 1) + (1 < n_fields <= MAX_AGREEING),
        n_widest=1 if is_pair else n_fields,
        encoder=Sizes.of(other) if other else None,
        n_words=len(words.terms) if words else 0,
    )


def free_on(device: str) -> int | None:
    """Bytes that are free where models are loaded."""
    return free_memory() if device == "cpu" else int(torch.cuda.mem_get_info(device)[0])


def fit_rows(
    spec: TrainSpec, reader: Reader, prompts: Sequence[Messages], answers: Sequence[str], *, emit: Emit
) -> tuple[Head, View, int] | None:
    """(the head chosen by cross-validation, how it reads prompts, how many sets of features were tried).

    None where it was stopped.
    """
    task = task_of_answers(answers, MAX_LABELS, spec.answers)
    first, *others = views_of(reader.tokenizer, prompts, task.labels, has_encoder=reader.encoder is not None)
    # Words are the same however a prompt's fields are averaged: they are tried once.
    views = {view.mode: view for view in (first.with_words(prompts), *others)}
    try:
        blocks = reader.read_all(prompts, list(views.values()))
    except Stopped:
        return None
    n_sets = sum(len(sets_of(of_mode, mode)) for mode, of_mode in blocks.items())
    told: list[Candidate] = []

    def tell(candidate: Candidate) -> None:
        told.append(candidate)
        emit(
            {
                "step": len(told),
                "total_steps": n_sets,
                "candidate": candidate.name,
                "valid_loss": candidate.loss,
                "valid_loss_error": candidate.loss_error,
                "valid_mean_token_accuracy": candidate.accuracy,
            }
        )

    # Pairs share items; elsewhere a row is its own item, and equal rows are one.
    items = items_of(prompts, next(iter(views.values())))
    fitted = fit(task, answers, blocks, items, seed=spec.seed, tell=tell, should_stop=reader.should_stop)
    if fitted is None:
        return None
    head, candidates = fitted
    view = views[head.mode]
    view = view if "words" in head.blocks else replace(view, words=None)
    head.facts |= {
        "base": spec.base,
        "found": task.found,
        "n_rows": len(answers),
        "view": view.to_dict(),
        "dtype": str(feature_dtype(spec.device)).removeprefix("torch."),
    }
    for block, who, counts, most in (
        ("base", "the base", reader.n_cut, MAX_SPAN_TOKENS),
        ("encoder", "the sentence encoder", reader.n_cut_encoder, MAX_ENCODER_TOKENS),
    ):
        n_cut = counts.get(head.mode, counts.get("whole", 0))
        if n_cut and block in head.blocks:
            text = f"{n_cut:,} of {len(answers):,} rows have a text of more than {most} tokens"
            emit({"message": f"{text}, of which {who} reads the first {most}"})
    emit({"message": _chosen(candidates[0], head, answers)})
    return head, view, n_sets


def stopped() -> TrainResult:
    """What a run that was stopped comes back with."""
    return TrainResult(trained_tokens=0, steps=0, adapter=None, stopped=True, checkpoints=())


def items_of(prompts: Sequence[Messages], view: View) -> list[list[str]]:
    """What each row is about, for the folds: the two texts of a pair, else the prompt itself."""
    found = []
    for messages in prompts:
        singles = view.singles(messages) if view.mode == "difference" else None
        found.append([asked(single) for single in singles] if singles else [repr(messages)])
    return found


def _chosen(best: Candidate, head: Head, answers: Sequence[str]) -> str:
    figures = f"{best.loss:.4g} ± {best.loss_error:.2g}"
    if head.style is None:
        shares = np.array(list(Counter(answers).values())) / len(answers)
        guess = float(-(shares * np.log(shares)).sum())
        return (
            f"Chosen by cross-validation: {best.name}; log loss {figures} (the labels' shares alone: {guess:.4g}), "
            f"accuracy {best.accuracy:.3f} (the most frequent label: {shares.max():.3f})"
        )
    values = numbers_of(head.style, answers)
    guess = float(np.abs(values - np.median(values)).mean())
    return f"Chosen by cross-validation: {best.name}; absolute error {figures} (the median alone: {guess:.4g})"


def _validated(path: Path, reader: Reader, view: View, head: Head) -> dict[str, Any]:
    """The head's figures on the validation file; rows with answers that training never saw are left out."""
    rows = rows_of(path)
    if rows is None:
        return {}
    style = head.style
    known = [(p, a) for p, a in zip(*rows, strict=True) if a in head.labels or (style and style.read(a) is not None)]
    if not known:
        return {}
    blocks = reader.read([prompt for prompt, _ in known], view)
    if style is not None:
        errors = np.abs(np.array(head.numbers(blocks)) - numbers_of(style, [a for _, a in known]))
        return {"full_valid_loss": float(errors.mean())}
    log_probs = head.log_probabilities(blocks)
    right = [head.labels.index(answer) for _, answer in known]
    return {
        "full_valid_loss": float(-log_probs[np.arange(len(known)), right].mean()),
        "full_valid_mean_token_accuracy": float((log_probs.argmax(axis=1) == right).mean()),
    }
