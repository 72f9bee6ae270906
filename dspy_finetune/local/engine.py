"""Serving: one thread that reads prompts in batches, answers token by token, and keeps a few models in memory.

In: chat requests from any thread. Out: answers with exact log-probabilities, as futures, and each token to a callback.
Requests that wait together are read together; their shared beginning (system prompt, rubric) is computed once and kept
(forward.py). New requests are admitted between two tokens of the running answers.
Measured on two shared cores with SmolLM2-135M and a 100-token prompt of which 75 are shared: docs/local-host.md.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dspy_finetune.errors import FinetuneError
from dspy_finetune.local.chat import encode_prompt, end_of_turn
from dspy_finetune.local.forward import MIN_SHARED, Decoder, PrefixCache, common_length, prefill
from dspy_finetune.local.grammar import Grammars
from dspy_finetune.local.models import load_model, load_tokenizer
from dspy_finetune.local.sampling import Answer, Settings, Speller, Token, choose, find_stop, seeded
from dspy_finetune.local.schemas import ApiError

logger = logging.getLogger(__name__)

MAX_BATCH_TOKENS = 1024
"""New tokens in one reading pass: beyond this a larger batch is no faster per token on a CPU."""
MIN_PASS_TOKENS = 128
"""Prompts that begin differently share a pass until it has this many tokens: a smaller pass wastes the processor."""
MAX_ROWS = 64
"""Answers that grow at the same time."""
WINDOW_SECONDS = 0.01
"""How long the first request of a batch waits for others."""


class ContextLengthError(FinetuneError, ValueError):
    """The prompt does not fit into the model's context."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model's weights are."""

    folder: Path
    adapters: tuple[Path, ...] = ()


@dataclass(kw_only=True)
class Completion:
    """All answers to one request."""

    prompt_tokens: int
    answers: list[Answer]
    speller: Speller


@dataclass(kw_only=True)
class _Request:
    model_id: str
    messages: Sequence[Mapping[str, Any]]
    settings: Settings
    n: int
    future: Future[Completion]
    on_token: Callable[[int, Answer, Speller], bool] | None
    left: int = 0
    completion: Completion | None = None


@dataclass(kw_only=True)
class _Row:
    """One answer in work."""

    request: _Request
    index: int
    prompt: list[int]
    answer: Answer


class _Loaded:
    """A model in memory."""

    def __init__(self, source: Source, *, device: str, dtype: str) -> None:
        self.tokenizer = load_tokenizer(source.folder)
        self.model = load_model(source.folder, source.adapters, device=device, dtype=dtype)
        self.cache = PrefixCache()
        self.speller = Speller(self.tokenizer)
        self.context_tokens = int(self.model.config.get_text_config().max_position_embeddings)
        ends = {end_of_turn(self.tokenizer), self.tokenizer.eos_token_id}
        more = self.model.generation_config.eos_token_id
        self.ends = (ends | set(more if isinstance(more, list) else [more])) - {None}
        self.grammars = Grammars(self.tokenizer, self.ends)


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
        dtype: str = "float32",
        max_models: int = 4,
        n_threads: int | None = None,
    ) -> None:
        self.find = find
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype
        self.max_models = max_models
        self.n_threads = n_threads
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._waiting: queue.Queue[_Request | None] = queue.Queue()
        self._batches: list[_Batch] = []
        self._forgotten: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        model_id: str,
        messages: Sequence[Mapping[str, Any]],
        settings: Settings,
        *,
        n: int = 1,
        on_token: Callable[[int, Answer, Speller], bool] | None = None,
    ) -> Future[Completion]:
        """Ask for `n` answers; `on_token(index, answer, speller)` is called in the engine's thread as each grows.

        An `on_token` that returns False ends the answer there: its reader has gone.
        """
        future: Future[Completion] = Future()
        self._waiting.put(
            _Request(
                model_id=model_id, messages=messages, settings=settings, n=n, future=future, on_token=on_token, left=n
            )
        )
        return future

    def health(self) -> dict[str, Any]:
        """Whether the thread that answers runs, and how many answers grow."""
        return {"ok": self._thread.is_alive(), "n_rows": sum(len(batch.rows) for batch in list(self._batches))}

    def forget(self, model_id: str) -> None:
        """Drop a model that was deleted."""
        self._forgotten.put(model_id)

    def close(self) -> None:
        """End the thread; what waits is cancelled."""
        self._waiting.put(None)
        self._thread.join(timeout=5)

    def _loop(self) -> None:
        if self.n_threads:
            torch.set_num_threads(self.n_threads)
        while True:
            requests = self._gather()
            if requests is None:
                return
            while not self._forgotten.empty():
                self._loaded.pop(self._forgotten.get(), None)
            for loaded, rows in self._open(requests):
                self._guard(rows, functools.partial(self._begin, loaded, rows))
            for batch in list(self._batches):
                self._guard(batch.rows, functools.partial(self._grow, batch))
            self._batches = [batch for batch in self._batches if batch.rows]

    def _guard(self, rows: list[_Row], work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # one bad batch must not take down the thread that answers everybody
            logger.exception("a batch failed")
            for row in rows:
                if not row.request.future.done():
                    row.request.future.set_exception(error)
            rows.clear()

    def _gather(self) -> list[_Request] | None:
        """What waits; with nothing in work, wait for a first request and a moment longer for others."""
        requests: list[_Request] = []
        n_rows = sum(len(batch.rows) for batch in self._batches)
        deadline = 0.0
        while n_rows < MAX_ROWS:
            idle = not self._batches and not requests
            seconds = max(0.0, deadline - time.monotonic())
            try:
                request = self._waiting.get(block=idle or seconds > 0, timeout=None if idle else seconds)
            except queue.Empty:
                break
            if request is None:
                return None
            requests.append(request)
            n_rows += request.n
            if len(requests) == 1 and not self._batches:
                deadline = time.monotonic() + WINDOW_SECONDS
        return requests

    def _open(self, requests: list[_Request]) -> list[tuple[_Loaded, list[_Row]]]:
        """Rows to read, grouped by model and shared beginning, in passes of at most MAX_BATCH_TOKENS new tokens."""
        by_model: dict[str, tuple[_Loaded, list[_Row]]] = {}
        for request in requests:
            if not request.future.set_running_or_notify_cancel():
                continue
            try:
                loaded, rows = self._admit(request)
            except Exception as error:  # whatever is wrong with one request or its model is that request's answer
                if not isinstance(error, FinetuneError | ApiError):
                    logger.exception("cannot open a request for %s", request.model_id)
                request.future.set_exception(error)
                continue
            by_model.setdefault(request.model_id, (loaded, []))[1].extend(rows)
        return [
            (loaded, part) for loaded, rows in by_model.values() for part in _passes(rows, max_tokens=MAX_BATCH_TOKENS)
        ]

    def _admit(self, request: _Request) -> tuple[_Loaded, list[_Row]]:
        loaded = self._load(request.model_id)
        prompt = encode_prompt(loaded.tokenizer, request.messages)
        room = loaded.context_tokens - len(prompt)
        if room < 1:
            raise ContextLengthError(
                f"This model's maximum context length is {loaded.context_tokens} tokens. "
                f"However, your messages resulted in {len(prompt)} tokens. Please shorten the messages."
            )
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
        return loaded, [_Row(request=request, index=i, prompt=prompt, answer=one) for i, one in enumerate(answers)]

    def _load(self, model_id: str) -> _Loaded:
        if model_id not in self._loaded:
            source = self.find(model_id)
            while len(self._loaded) >= self.max_models:
                self._loaded.popitem(last=False)
            self._loaded[model_id] = _Loaded(source, device=self.device, dtype=self.dtype)
        self._loaded.move_to_end(model_id)
        return self._loaded[model_id]

    def _begin(self, loaded: _Loaded, rows: list[_Row]) -> None:
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


def _passes(rows: list[_Row], *, max_tokens: int) -> list[list[_Row]]:
    """Rows that begin alike stand together; a pass ends where the beginning changes or the new tokens are too many."""
    parts: list[list[_Row]] = []
    n_tokens = 0
    for row in sorted(rows, key=lambda row: row.prompt):
        shared = common_length(parts[-1][-1].prompt, row.prompt) if parts else 0
        new = len(row.prompt) - shared
        alike = shared >= MIN_SHARED or n_tokens < MIN_PASS_TOKENS
        if parts and alike and n_tokens + new <= max_tokens:
            parts[-1].append(row)
            n_tokens += new
        else:
            parts.append([row])
            n_tokens = len(row.prompt)
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
