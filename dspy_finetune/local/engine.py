"""Serving: one thread that reads prompts in batches, answers token by token, and keeps a few models in memory.

In: chat requests from any thread. Out: answers with exact log-probabilities, as futures, and each token to a callback.
Requests that wait together are read together; their shared beginning (system prompt, rubric) is computed once and kept
(forward.py). New requests are admitted between two tokens of the running answers, and read in passes of so many tokens
that the running answers wait for no more than one.
Measured on two shared cores with SmolLM2-135M and a 100-token prompt of which 75 are shared: docs/local-host.md.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import math
import os
import queue
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from dspy_finetune._progress import told_if_slow
from dspy_finetune.errors import FinetuneError
from dspy_finetune.local.chat import encode_prompt, end_of_turn, most_characters
from dspy_finetune.local.features import Reader, View, batches_of
from dspy_finetune.local.forward import MIN_SHARED, Decoder, PrefixCache, common_length, prefill
from dspy_finetune.local.hardware import THREADS_SECONDS, Threads, fast_dtype
from dspy_finetune.local.heads import Head
from dspy_finetune.local.memory import READ_TOKENS
from dspy_finetune.local.models import check_base, load_model, load_tokenizer
from dspy_finetune.local.sampling import (
    GREEDY,
    LOWEST_LOGPROB,
    Answer,
    Grammars,
    Opening,
    Settings,
    Speller,
    Token,
    choose,
    find_stop,
    sample,
    seeded,
)
from dspy_finetune.local.schemas import ApiError, stopping
from dspy_finetune.tasks import PACKAGED_ENCODER, is_encoder

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

MAX_BATCH_TOKENS = 1024
"""New tokens in one reading pass: beyond this a larger batch is no faster per token on a CPU."""
MIN_PASS_TOKENS = 128
"""Prompts that begin differently share a pass until it has this many tokens: a smaller pass wastes the processor."""
MAX_ROWS = 64
"""Answers that grow at the same time."""
WINDOW_SECONDS = 0.01
"""How long the first request of a batch waits for others."""
VECTORS = "\0vectors"
"""Behind the name of a model that is loaded for its embeddings."""
SHAPE_HEADER = "x-dspy-finetune-prompt"
OTHER_SHAPE = "another shape than trained"
INTERVAL_HEADER = "x-dspy-finetune-interval"
"""The interval of 90 % of a number, in the format of the answer."""


class ContextLengthError(FinetuneError, ValueError):
    """The prompt does not fit into the model's context."""


def too_long(most: int, found: int | str) -> ContextLengthError:
    """What a prompt of so many tokens is answered."""
    return ContextLengthError(
        f"This model's maximum context length is {most} tokens. However, your messages resulted in {found} tokens. "
        "Please shorten the messages."
    )


def _check_characters(tokenizer: Any, messages: Sequence[Mapping[str, Any]], most: int) -> None:
    """Refuse what cannot fit, without encoding it."""
    if sum(len(message["content"]) for message in messages) > most_characters(tokenizer, most):
        raise too_long(most, f"more than {most}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model's weights are."""

    folder: Path
    adapters: tuple[Path, ...] = ()
    head: Path | None = None
    """A linear head that answers in the model's place, or decides with which label the model's answer begins."""
    encoder: Path | None = None
    """The sentence encoder that is installed, which a head may read with."""


@dataclass(kw_only=True)
class Completion:
    """All answers to one request."""

    prompt_tokens: int
    answers: list[Answer]
    speller: Speller | Options


@dataclass(kw_only=True)
class _Request:
    model_id: str
    messages: Sequence[Mapping[str, Any]]
    settings: Settings
    n: int
    future: Future[Completion]
    on_token: Callable[[int, Answer, Any], bool] | None
    is_wanted: Callable[[], bool]
    left: int = 0
    completion: Completion | None = None


@dataclass(kw_only=True)
class _Embedding:
    """Texts that wait for their vectors."""

    model_id: str
    texts: Sequence[str]
    future: Future[tuple[Any, int]]
    is_wanted: Callable[[], bool]
    n: int = 1
    lengths: list[int] = field(default_factory=list)
    """Tokens of each text; what follows is known from here on."""
    left: deque[list[int]] = field(default_factory=deque)
    """The places of the texts that are still to be read, pass by pass."""
    vectors: dict[int, Any] = field(default_factory=dict)
    """By the text's place."""


@dataclass(kw_only=True)
class _Row:
    """One answer in work."""

    request: _Request
    index: int
    prompt: list[int]
    answer: Answer


@dataclass(kw_only=True)
class _Pass:
    """Prompts that are read at once."""

    requests: Sequence[_Request]
    read: Callable[[], None]
    n_rows: int


class _Loaded:
    """A model in memory, and the head that decides with which label its answers begin, where it has one."""

    def __init__(self, source: Source, *, device: str, dtype: str, opening: _LoadedHead | None) -> None:
        self.opening = opening
        self.tokenizer = load_tokenizer(source.folder)
        self.model = load_model(source.folder, source.adapters, device=device, dtype=dtype)
        self.cache = PrefixCache()
        self.speller = Speller(self.tokenizer)
        self.context_tokens = int(self.model.config.get_text_config().max_position_embeddings)
        ends = {end_of_turn(self.tokenizer), self.tokenizer.eos_token_id}
        more = self.model.generation_config.eos_token_id
        self.ends = (ends | set(more if isinstance(more, list) else [more])) - {None}
        self.grammars = Grammars(self.tokenizer, self.ends)

    def decide(self, rows: Sequence[_Row]) -> None:
        """Give each answer the labels with which it may begin."""
        if self.opening is None:
            return
        requests = list({id(row.request): row.request for row in rows}.values())
        found = self.opening.openings([request.messages for request in requests])
        known = {id(request): one for request, one in zip(requests, found, strict=True)}
        for row in rows:
            row.answer.opening, row.answer.notes = known[id(row.request)]


class Options:
    """What a head may answer, in the place of a tokenizer's tokens: each whole answer is one token.

    Of an answer that holds several labels each is one, with its log-probability after those before it.
    """

    def __init__(
        self,
        texts: Sequence[str],
        log_probs: Sequence[float],
        greedy: int,
        notes: dict[str, str],
        outputs: Sequence[Sequence[str]] = (),
    ) -> None:
        self.outputs = outputs or (texts,)
        self.texts = list(itertools.chain.from_iterable(self.outputs))
        self.log_probs = np.array([max(value, LOWEST_LOGPROB) for value in log_probs])
        self.greedy = greedy
        self.notes = notes

    def bytes_of(self, token: int) -> bytes:
        """A token's text in UTF-8."""
        return self.text_of(token).encode()

    def text_of(self, token: int) -> str:
        """A token's text."""
        return self.texts[token]

    def answer(self, answer: Answer) -> None:
        """Choose one, by the request's temperature and top_p; its log-probability is the head's own."""
        settings = answer.settings
        is_greedy = settings.temperature < GREEDY or settings.top_p < GREEDY
        scores = torch.tensor(self.log_probs)
        chosen = self.greedy if is_greedy else sample(scores, settings, answer.generator)
        answer.tokens = self._tokens(chosen, settings.n_top)
        answer.text, answer.finish_reason = "".join(self.texts[token.id] for token in answer.tokens), "stop"
        answer.notes = self.notes
        if len(answer.tokens) > settings.max_tokens:
            answer.tokens, answer.finish_reason = answer.tokens[: settings.max_tokens], "length"
            answer.text = "".join(self.texts[token.id] for token in answer.tokens)
        place = find_stop(answer.text, settings.stop)
        if place is not None:
            starts = itertools.accumulate((len(self.texts[token.id]) for token in answer.tokens), initial=0)
            answer.tokens = [token for token, start in zip(answer.tokens, starts, strict=False) if start < place]
            answer.text, answer.finish_reason = answer.text[:place], "stop"

    def _tokens(self, chosen: int, n_top: int) -> list[Token]:
        """The chosen answer's labels, each with the likeliest ones at its place."""
        sizes = tuple(map(len, self.outputs))
        log_probs, first = self.log_probs.reshape(sizes), 0
        tokens: list[Token] = []
        for own in np.unravel_index(chosen, sizes):
            # Whatever follows: summed over the places behind this one.
            here = np.logaddexp.reduce(log_probs.reshape(len(log_probs), -1), axis=1)
            here = here - np.logaddexp.reduce(here) if tokens else here
            order = np.argsort(-here, kind="stable")[:n_top]
            top = tuple((first + int(index), float(here[index])) for index in order)
            tokens.append(Token(id=first + int(own), logprob=float(here[own]), top=top))
            first, log_probs = first + len(log_probs), log_probs[own]
        return tokens


class _LoadedHead:
    """A head in memory, with what reads its prompts."""

    def __init__(self, source: Source, *, device: str) -> None:
        assert source.head is not None
        self.head = Head.load(source.head)
        source = replace(source, adapters=source.adapters[: self.head.n_adapters])
        self.view = View.from_dict(self.head.facts["view"])
        needs_encoder = "encoder" in self.head.blocks and not is_encoder(source.folder)
        if needs_encoder and source.encoder is None:
            check_base(PACKAGED_ENCODER)  # says what to install
        self.reader = Reader.open(
            source.folder, adapters=source.adapters, encoder=source.encoder, blocks=self.head.blocks, device=device
        )

    def tokens(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """A prompt's tokens."""
        return self.reader.prompt_tokens(messages)

    def options(self, prompts: Sequence[Sequence[Mapping[str, Any]]]) -> list[Options]:
        """What may be answered to each prompt."""
        blocks, notes = self.reader.read(prompts, self.view), self._notes(prompts)
        if self.head.kind == "labels":
            return [
                Options(self.head.labels, row.tolist(), int(row.argmax()), note, self.head.outputs)
                for row, note in zip(self.head.log_probabilities(blocks), notes, strict=True)
            ]
        style = self.head.style
        assert style is not None
        found = []
        for median, quantiles, (low, high), note in zip(
            self.head.numbers(blocks), self.head.quantiles(blocks), self.head.intervals(blocks), notes, strict=True
        ):
            # Equally likely values, the median among them: draws at temperature 1 follow the distribution.
            shares = Counter([style.write(median), *map(style.write, quantiles)])
            log_probs = [math.log(count / shares.total()) for count in shares.values()]
            # Plain numbers: a format may hold blanks ("12 %") and what no header can (a euro sign).
            interval = f"{low:.{style.decimals}f} {high:.{style.decimals}f}"
            found.append(Options(list(shares), log_probs, 0, {**note, INTERVAL_HEADER: interval}))
        return found

    def openings(self, prompts: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[Opening, dict[str, str]]]:
        """With which labels the answer to each prompt may begin, and what else there is to say."""
        blocks, notes = self.reader.read(prompts, self.view), self._notes(prompts)
        return [
            (Opening(dict(zip(self.head.openings, row.tolist(), strict=True))), note)
            for row, note in zip(self.head.log_probabilities(blocks), notes, strict=True)
        ]

    def _notes(self, prompts: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
        return [{} if self.reader.fits(one, self.view) else {SHAPE_HEADER: OTHER_SHAPE} for one in prompts]


class _LoadedEncoder:
    """What makes vectors alone: a sentence encoder, or a base's middle layer."""

    def __init__(self, source: Source, *, device: str) -> None:
        self.reader = Reader.open(source.folder, adapters=source.adapters, device=device)


@dataclass(kw_only=True)
class _Batch:
    """Answers that grow together."""

    loaded: _Loaded
    rows: list[_Row]
    decoder: Decoder


class Engine:
    """Answers chat requests. `find(model_id)` tells where weights are, and raises where there is no such model."""

    def __init__(
        self,
        find: Callable[[str], Source],
        *,
        device: str | None = None,
        dtype: str = "auto",
        max_models: int = 4,
        n_threads: int | None = None,
    ) -> None:
        self.find = find
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # On a CPU half precision moves log-probabilities; on a GPU it is what everybody serves in.
        self.dtype = ("float32" if self.device == "cpu" else fast_dtype(self.device)) if dtype == "auto" else dtype
        self.max_models = max_models
        self.n_threads = n_threads
        self._loaded: OrderedDict[str, _Loaded | _LoadedHead | _LoadedEncoder] = OrderedDict()
        self._waiting: queue.Queue[_Request | _Embedding | None] = queue.Queue()
        self._batches: list[_Batch] = []
        self._passes: deque[_Pass] = deque()
        self._embeddings: deque[_Embedding] = deque()
        self._forgotten: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        model_id: str,
        messages: Sequence[Mapping[str, Any]],
        settings: Settings,
        *,
        n: int = 1,
        on_token: Callable[[int, Answer, Any], bool] | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Future[Completion]:
        """Ask for `n` answers; `on_token(index, answer, speller)` is called in the engine's thread as each grows.

        An `on_token` that returns False ends the answer there: its reader has gone. `is_wanted` is asked before the
        prompt is read.
        """
        future: Future[Completion] = Future()
        self._put(
            _Request(
                model_id=model_id,
                messages=messages,
                settings=settings,
                n=n,
                future=future,
                on_token=on_token,
                is_wanted=is_wanted,
                left=n,
            )
        )
        return future

    def embed(
        self, model_id: str, texts: Sequence[str], *, is_wanted: Callable[[], bool] = lambda: True
    ) -> Future[tuple[Any, int]]:
        """Ask for (a vector of length one for each text, how many tokens they have).

        `is_wanted` is asked before each pass: where it says False, the rest is not read.
        """
        future: Future[tuple[Any, int]] = Future()
        self._put(_Embedding(model_id=model_id, texts=texts, future=future, is_wanted=is_wanted))
        return future

    def _put(self, request: _Request | _Embedding) -> None:
        if self._closing.is_set():
            request.future.set_exception(stopping())
        else:
            self._waiting.put(request)

    def health(self) -> dict[str, Any]:
        """Whether the thread that answers runs, and how many answers grow or wait to be read."""
        return {"ok": self._thread.is_alive(), "n_rows": self._n_rows()}

    def _n_rows(self) -> int:
        growing, waiting = self._batches.copy(), self._passes.copy()
        n_read = sum(one.n_rows for one in waiting) + len(self._embeddings)
        return sum(len(batch.rows) for batch in growing) + n_read

    def forget(self, model_id: str) -> None:
        """Drop a model that was deleted."""
        self._forgotten.put(model_id)

    def begin_close(self) -> None:
        """Answer nothing more: what waits or grows fails after the step that is going on, with status 503."""
        self._closing.set()
        self._waiting.put(None)

    def close(self) -> None:
        """End the thread."""
        self.begin_close()
        self._thread.join(timeout=5)

    def _give_up(self, requests: list[_Request | _Embedding]) -> None:
        grown: list[_Request | _Embedding] = [
            *(row.request for batch in self._batches for row in batch.rows),
            *(request for one in self._passes for request in one.requests),
            *self._embeddings,
        ]
        self._batches = []
        self._passes.clear()
        self._embeddings.clear()
        while not self._waiting.empty():
            request = self._waiting.get()
            requests += [request] if request is not None else []
        for one in (*grown, *requests):
            if not one.future.done():
                with contextlib.suppress(InvalidStateError):  # its reader has just left
                    one.future.set_exception(stopping())

    def _loop(self) -> None:
        if self.n_threads:
            torch.set_num_threads(self.n_threads)
        threads = Threads() if self.n_threads is None and "OMP_NUM_THREADS" not in os.environ else None
        until = 0.0
        while True:
            requests = self._gather()
            if self._closing.is_set():
                self._give_up(requests)
                return
            if threads is not None and time.monotonic() >= until:
                torch.set_num_threads(threads.now())
                until = time.monotonic() + THREADS_SECONDS
            while not self._forgotten.empty():
                gone = self._forgotten.get()
                for name in (gone, f"{gone}{VECTORS}"):
                    self._loaded.pop(name, None)
            self._passes.extend(self._open(requests))
            # One pass and one step in turn: no request, however large, keeps the others waiting for longer than that.
            if self._passes:
                one = self._passes.popleft()
                self._guard(one.requests, one.read)
            if self._embeddings:
                embedding = self._embeddings.popleft()
                if self._guard([embedding], functools.partial(self._embed, embedding)) and embedding.left:
                    self._embeddings.append(embedding)
            for batch in list(self._batches):
                if not self._guard([row.request for row in batch.rows], functools.partial(self._grow, batch)):
                    batch.rows.clear()
            self._batches = [batch for batch in self._batches if batch.rows]

    def _guard(self, requests: Sequence[_Request | _Embedding], work: Callable[[], None]) -> bool:
        try:
            work()
        except BaseException as error:  # one bad batch must not take down the thread that answers everybody
            logger.exception("a batch failed")
            for request in requests:
                if not request.future.done():
                    request.future.set_exception(_plain(error))
            return False
        return True

    def _gather(self) -> list[_Request | _Embedding]:
        """What waits; with nothing in work, wait for a first request and a moment longer for others."""
        requests: list[_Request | _Embedding] = []
        n_rows = self._n_rows()
        deadline = 0.0
        while n_rows < MAX_ROWS:
            is_working = bool(self._batches or self._passes or self._embeddings)
            idle = not is_working and not requests
            seconds = max(0.0, deadline - time.monotonic())
            try:
                request = self._waiting.get(block=idle or seconds > 0, timeout=None if idle else seconds)
            except queue.Empty:
                break
            if request is None:  # the engine closes
                break
            requests.append(request)
            n_rows += request.n
            if len(requests) == 1 and not is_working:
                deadline = time.monotonic() + WINDOW_SECONDS
        return requests

    def _open(self, requests: list[_Request | _Embedding]) -> list[_Pass]:
        """What is to be read: grouped by model and shared beginning, in passes of at most so many new tokens."""
        by_model: dict[str, tuple[_Loaded, list[_Row]]] = {}
        by_head: dict[str, tuple[_LoadedHead, list[_Request]]] = {}
        for request in requests:
            if not request.future.set_running_or_notify_cancel():
                continue
            try:
                if isinstance(request, _Embedding):
                    request.lengths = self._vectors(request.model_id).text_lengths(request.texts)
                    request.left.extend(batches_of(request.lengths))
                    self._embeddings.append(request)
                    continue
                loaded = self._load(request.model_id)
                if isinstance(loaded, _LoadedHead):
                    _check_head(loaded, request)
                    by_head.setdefault(request.model_id, (loaded, []))[1].append(request)
                    continue
                if isinstance(loaded, _LoadedEncoder):
                    message = f"{request.model_id} is a sentence encoder: it makes embeddings and writes no text."
                    raise ApiError(400, message, code="unsupported_model", param="model")
                rows = self._admit(loaded, request)
            except BaseException as error:  # whatever is wrong with one request or its model is that request's answer
                if not isinstance(error, FinetuneError | ApiError):
                    logger.exception("cannot open a request for %s", request.model_id)
                request.future.set_exception(_plain(error))
                continue
            by_model.setdefault(request.model_id, (loaded, []))[1].extend(rows)
        chats = [
            _Pass(
                requests=[row.request for row in part],
                read=functools.partial(self._begin, loaded, part),
                n_rows=len(part),
            )
            for loaded, rows in by_model.values()
            for part in _passes(rows, lambda row: row.prompt, max_tokens=MAX_BATCH_TOKENS)
        ]
        heads = [
            _Pass(requests=part, read=functools.partial(_answer_by_head, head, part), n_rows=sum(one.n for one in part))
            for head, asked in by_head.values()
            for part in _passes(asked, functools.partial(_prompt_of, head), max_tokens=READ_TOKENS)
        ]
        return [*chats, *heads]

    def _embed(self, request: _Embedding) -> None:
        places = request.left.popleft()
        if not _is_wanted(request):
            request.left.clear()
            return
        vectors = self._vectors(request.model_id).embed([request.texts[place] for place in places])
        request.vectors.update(zip(places, vectors, strict=True))
        if not request.left:
            found = np.stack([request.vectors[place] for place in range(len(request.texts))])
            request.future.set_result((found, sum(request.lengths)))

    def _admit(self, loaded: _Loaded, request: _Request) -> list[_Row]:
        _check_characters(loaded.tokenizer, request.messages, loaded.context_tokens)
        prompt = encode_prompt(loaded.tokenizer, request.messages)
        room = loaded.context_tokens - len(prompt)
        if room < 1:
            raise too_long(loaded.context_tokens, len(prompt))
        settings = request.settings
        if settings.max_tokens > room:
            settings = replace(settings, max_tokens=room)
        answers = [
            Answer(
                settings=settings,
                generator=seeded(settings.seed, index),
                guide=loaded.grammars.start(settings.grammar) if settings.grammar else None,
            )
            for index in range(request.n)
        ]
        request.completion = Completion(prompt_tokens=len(prompt), answers=answers, speller=loaded.speller)
        return [_Row(request=request, index=i, prompt=prompt, answer=one) for i, one in enumerate(answers)]

    def _load(self, model_id: str) -> _Loaded | _LoadedHead | _LoadedEncoder:
        if model_id not in self._loaded:
            source = self.find(model_id)
            self._make_room()
            with told_if_slow(f"requests wait for {model_id} to be loaded", logger.warning):
                head = _LoadedHead(source, device=self.device) if source.head is not None else None
                if head is not None and not head.head.openings:
                    self._loaded[model_id] = head
                elif is_encoder(source.folder):
                    self._loaded[model_id] = _LoadedEncoder(source, device=self.device)
                else:
                    self._loaded[model_id] = _Loaded(source, device=self.device, dtype=self.dtype, opening=head)
        self._loaded.move_to_end(model_id)
        return self._loaded[model_id]

    def _vectors(self, model_id: str) -> Reader:
        """What makes embeddings: beside the model that answers, which may be a head or have another precision."""
        name = f"{model_id}{VECTORS}"
        if name not in self._loaded:
            source = self.find(model_id)
            self._make_room()
            self._loaded[name] = _LoadedEncoder(source, device=self.device)
        self._loaded.move_to_end(name)
        loaded = self._loaded[name]
        assert isinstance(loaded, _LoadedEncoder)
        return loaded.reader

    def _make_room(self) -> None:
        while len(self._loaded) >= self.max_models:
            self._loaded.popitem(last=False)

    def _begin(self, loaded: _Loaded, rows: list[_Row]) -> None:
        rows = [row for row in rows if _is_wanted(row.request)]
        if not rows:
            return
        loaded.decide(rows)
        filled = prefill(loaded.model, [row.prompt for row in rows], loaded.cache)
        tokens = choose(filled.logits, [row.answer for row in rows])
        going = [
            index for index, (row, token) in enumerate(zip(rows, tokens, strict=True)) if _grow_row(loaded, row, token)
        ]
        if going:
            growing, decoder = [rows[index] for index in going], filled.decoder(going)
            for batch in self._batches:
                if batch.loaded is loaded:
                    batch.decoder.join(decoder)
                    batch.rows += growing
                    return
            self._batches.append(_Batch(loaded=loaded, rows=growing, decoder=decoder))

    def _grow(self, batch: _Batch) -> None:
        logits = batch.decoder.step([row.answer.tokens[-1].id for row in batch.rows])
        tokens = choose(logits, [row.answer for row in batch.rows])
        pairs = zip(batch.rows, tokens, strict=True)
        going = [index for index, (row, token) in enumerate(pairs) if _grow_row(batch.loaded, row, token)]
        if going and len(going) < len(batch.rows):
            batch.decoder.keep(going)
        batch.rows[:] = [batch.rows[index] for index in going]


def _plain(error: BaseException) -> Exception:
    """A panic of the tokenizer's or the grammar's Rust is no Exception, and nobody who waits would catch it."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")


def _check_head(loaded: _LoadedHead, request: _Request) -> None:
    """Refuse what a head cannot honour, and a prompt that its base cannot read."""
    settings, most = request.settings, loaded.reader.context_tokens
    if most is not None and loaded.reader.base is not None:
        _check_characters(loaded.reader.base[0], request.messages, most)
        if (found := len(loaded.tokens(request.messages))) > most:
            raise too_long(most, found)
    if settings.logit_bias:
        message = "A linear head has no tokens to bias: its answers are labels or numbers."
        raise ApiError(400, message, code="unsupported_parameter", param="logit_bias")
    if settings.grammar is not None and not all(_is_json(label) for label in loaded.head.labels or ("",)):
        message = "A linear head answers in the format it was trained on, which is not JSON."
        raise ApiError(400, message, code="unsupported_parameter", param="response_format")


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _answer_by_head(loaded: _LoadedHead, requests: Sequence[_Request]) -> None:
    requests = [request for request in requests if _is_wanted(request)]
    if not requests:
        return
    for request, options in zip(requests, loaded.options([request.messages for request in requests]), strict=True):
        settings = request.settings
        answers = [Answer(settings=settings, generator=seeded(settings.seed, index)) for index in range(request.n)]
        for index, answer in enumerate(answers):
            options.answer(answer)
            if request.on_token is not None:
                request.on_token(index, answer, options)
        n_tokens = len(loaded.tokens(request.messages))
        request.future.set_result(Completion(prompt_tokens=n_tokens, answers=answers, speller=options))


def _is_wanted(request: _Request | _Embedding) -> bool:
    """Whether somebody still waits for it; where nobody does, it ends here."""
    if request.future.done():
        return False
    if not request.is_wanted():
        request.future.set_exception(ApiError(499, "The client has left.", code="client_closed_request"))
        return False
    return True


def _prompt_of(head: _LoadedHead, request: _Request) -> list[int]:
    return head.tokens(request.messages)


def _passes(items: Sequence[Item], tokens_of: Callable[[Item], Sequence[int]], *, max_tokens: int) -> list[list[Item]]:
    """What begins alike stands together; a pass ends where the beginning changes or the new tokens are too many."""
    parts: list[list[Item]] = []
    before: Sequence[int] = ()
    n_tokens = 0
    for prompt, _, item in sorted((tokens_of(item), number, item) for number, item in enumerate(items)):
        shared = common_length(before, prompt) if parts else 0
        new = len(prompt) - shared
        alike = shared >= MIN_SHARED or n_tokens < MIN_PASS_TOKENS
        if parts and alike and n_tokens + new <= max_tokens:
            parts[-1].append(item)
            n_tokens += new
        else:
            parts.append([item])
            n_tokens = len(prompt)
        before = prompt
    return parts


def _grow_row(loaded: _Loaded, row: _Row, token: Token | Exception) -> bool:
    """Add a token to an answer; False when the answer has ended. What fails fails its own request."""
    if row.request.future.done():
        return False
    try:
        if isinstance(token, Exception):
            raise token
        return _add(loaded, row, token)
    except Exception as error:
        row.request.future.set_exception(error)
        return False


def _add(loaded: _Loaded, row: _Row, token: Token) -> bool:
    answer, request = row.answer, row.request
    if answer.guide is not None:
        answer.guide.take(token.id)
    if token.id in loaded.ends:
        answer.finish_reason = "stop"
    else:
        answer.tokens.append(token)
        answer.text = loaded.speller.text(answer.tokens)
        place = find_stop(answer.text, answer.settings.stop)
        if place is not None:
            answer.text, answer.finish_reason = answer.text[:place], "stop"
            while answer.tokens and len(loaded.speller.text(answer.tokens[:-1])) >= place:
                answer.tokens.pop()
        elif answer.guide is not None and answer.guide.is_over:
            answer.finish_reason = "stop"
        elif len(answer.tokens) >= answer.settings.max_tokens:
            answer.finish_reason = "length"
    if request.on_token is not None and not request.on_token(row.index, answer, loaded.speller):
        answer.finish_reason = answer.finish_reason or "stop"
    if answer.finish_reason is None:
        return True
    request.left -= 1
    if request.left == 0 and request.completion is not None and not request.future.done():
        request.future.set_result(request.completion)
    return False
