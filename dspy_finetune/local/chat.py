"""Messages to token ids, the same for training and serving: `encode_prompt`, `encode_completion`, `training_turns`.

In: a tokenizer with a chat template, and OpenAI messages. Out: token ids. Control tokens such as `<|im_start|>` come
from the template alone: where a message's text spells one, it is encoded as the characters it is, so a text can never
open a turn.
Not covered: tools and images (refused), and the length limit (the engine and the recipes know their context).
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from dspy_finetune.errors import FinetuneError, UsageError
from dspy_finetune.local.schemas import ApiError, ChatRequest
from dspy_finetune.local.store import new_id

ROLES = ("system", "developer", "user", "assistant", "tool")
"""The roles that are accepted; `developer` is rendered as `system`, which open models were trained with."""

Message = Mapping[str, Any]

# Whether control tokens are read out of a text is a setting of the tokenizer, not of the call: threads must not mix.
_ENCODING = threading.Lock()


def message_text(message: Message) -> str:
    """The text of one message: a string, or text parts joined.

    Raises:
        UsageError: The role is unknown, or the content is not text.
    """
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UsageError(f"role {role!r} is not one of {', '.join(ROLES)}")
    if message.get("tool_calls") or message.get("function_call"):
        raise UsageError("tool calls are not supported by the local host; use plain text messages")
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        if content and len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
    raise UsageError(f"the content of a {role} message must be text, found {type(content).__name__}")


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Control tokens by their spelling: those that a tokenizer reads out of plain text unless told otherwise."""
    cached = tokenizer.__dict__.get("_dspy_finetune_specials")
    if cached is None:
        added = tokenizer.added_tokens_decoder
        cached = {token.content: number for number, token in added.items() if token.special}
        tokenizer.__dict__["_dspy_finetune_specials"] = cached
    return dict(cached)


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that is data: control tokens in it stay characters."""
    if not text:
        return []
    return _encode(tokenizer, text, as_text=True)


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation up to where the assistant speaks, in the model's own chat template.

    Where no text spells a control token, the result equals the tokenizer's own `apply_chat_template`.

    Raises:
        UsageError: No message, an unknown role, content that is not text, or a template that refuses the conversation.
    """
    if not messages:
        raise UsageError("messages is empty; at least one message is needed")
    turns = [
        {"role": "system" if message["role"] == "developer" else message["role"], "content": text}
        for message, text in ((message, message_text(message)) for message in messages)
    ]
    specials = special_tokens(tokenizer)
    if not any(token in turn["content"] for turn in turns for token in specials):
        return _encode(tokenizer, _render(tokenizer, turns), as_text=False)
    return _encode_apart(tokenizer, turns, specials)


def encode_completion(tokenizer: Any, text: str) -> list[int]:
    """Token ids of an assistant's answer, ended by the token that ends its turn."""
    return [*encode_text(tokenizer, text), end_of_turn(tokenizer)]


def end_of_turn(tokenizer: Any) -> int:
    """The token that the template writes after an assistant's text, else the tokenizer's end-of-text token."""
    cached = tokenizer.__dict__.get("_dspy_finetune_end")
    if cached is None:
        mark = "\ue000answer\ue001"
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": mark}]
        tail = _render(tokenizer, turns, generation=False).rpartition(mark)[2].lstrip()
        cached = next((number for token, number in special_tokens(tokenizer).items() if tail.startswith(token)), None)
        cached = tokenizer.eos_token_id if cached is None else cached
        if cached is None:
            raise UsageError("the tokenizer has no end-of-turn token: choose a chat model")
        tokenizer.__dict__["_dspy_finetune_end"] = cached
    return int(cached)


def training_turns(tokenizer: Any, messages: Sequence[Message]) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, completion ids) for each assistant message that is trained on: all but those of `weight` 0.

    Raises:
        UsageError: No assistant message is left to train on, or one comes first.
    """
    pairs = []
    for index, message in enumerate(messages):
        if message.get("role") == "assistant" and message.get("weight", 1) != 0:
            text = message_text(message)
            pairs.append((encode_prompt(tokenizer, messages[:index]), encode_completion(tokenizer, text)))
    if not pairs:
        raise UsageError("no assistant message to train on")
    return pairs


def _encode(tokenizer: Any, text: str, *, as_text: bool) -> list[int]:
    with _ENCODING:
        ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=as_text)["input_ids"]
    return ids


def _render(tokenizer: Any, turns: list[dict[str, str]], *, generation: bool = True) -> str:
    # Templates refuse by raising Jinja's own error (a system message not supported, roles not alternating); Jinja is a
    # dependency of transformers, so its import waits until a tokenizer is there.
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)
    except TemplateError as error:
        raise UsageError(f"the model's chat template refuses this conversation: {error}") from error
    except ValueError as error:
        raise UsageError(f"the model has no chat template ({error}); choose an instruct model") from error
    return text


def _encode_apart(tokenizer: Any, turns: list[dict[str, str]], specials: Mapping[str, int]) -> list[int]:
    # The template is rendered around marks; its control tokens are found in that text, before any message is put in.
    # Template text and message text between two control tokens are encoded together, as the plain way does.
    marks = [f"\ue000{index}\ue001" for index in range(len(turns))]
    rendered = _render(tokenizer, [{**turn, "content": mark} for turn, mark in zip(turns, marks, strict=True)])
    contents = dict(zip(marks, (turn["content"] for turn in turns), strict=True))
    longest_first = sorted(specials, key=len, reverse=True)
    ids: list[int] = []
    for piece in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", rendered):
        if piece in specials:
            ids.append(specials[piece])
        else:
            # One pass with a function: a message that spells a mark is not looked at again.
            text = re.sub("\ue000\\d+\ue001", lambda found: contents.get(found.group(), found.group()), piece)
            ids.extend(encode_text(tokenizer, text))
    return ids


# ----------------------------------------------------------------------------------------------------
# Chat completions on the wire: requests checked, answers and streams in OpenAI's shapes.
#
# In: a `ChatRequest`. Out: a chat.completion, or server-sent chunks.
# Parameters that cannot be honoured are refused by name instead of being ignored.

DEFAULT_MAX_TOKENS = 512
"""The longest answer where the request names no limit: a small model that does not stop would go on for minutes."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
}
"""Parameters of OpenAI's that this host does not have, with the values that ask for nothing."""


class Engine(Protocol):
    """What is needed of engine.Engine, which imports torch."""

    def submit(self, model_id: str, messages: Any, settings: Any, *, n: int = 1, on_token: Any = None) -> Future[Any]:
        """Ask for answers."""
        ...


def check_request(body: ChatRequest) -> None:
    """Refuse what cannot be honoured."""
    extra = body.model_extra or {}
    for name, neutral in NEUTRAL.items():
        if extra.get(name) not in neutral:
            raise ApiError(
                400,
                f"Unsupported parameter: '{name}' is not supported by the local host.",
                code="unsupported_parameter",
                param=name,
            )
    kind = (extra.get("response_format") or {}).get("type", "text")
    # json_object only asks: the text comes as the model writes it, and the caller reads it as carefully as any other.
    if kind not in ("text", "json_object"):
        raise ApiError(
            400,
            f"Unsupported value: 'response_format' of type {kind!r} is not supported by the local host.",
            code="unsupported_value",
            param="response_format",
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(
            400, "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", param="top_logprobs"
        )


def api_error(error: BaseException) -> ApiError:
    """What the engine raised, as an answer to the client."""
    if isinstance(error, ApiError):
        return error
    if type(error).__name__ == "ContextLengthError":
        return ApiError(400, str(error), code="context_length_exceeded", param="messages")
    if isinstance(error, UsageError):
        return ApiError(400, str(error), param="messages", code="invalid_value")
    message = str(error) if isinstance(error, FinetuneError) else f"{type(error).__name__} while answering; see the log"
    return ApiError(500, message, kind="server_error", code="server_error")


def settings_of(body: ChatRequest) -> Any:
    """The engine's settings."""
    from dspy_finetune.local.sampling import Settings  # imports torch: only when a chat comes

    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Settings(
        max_tokens=body.max_completion_tokens or body.max_tokens or DEFAULT_MAX_TOKENS,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=stop,
        n_top=body.top_logprobs or 0,
    )


async def complete(engine: Engine, body: ChatRequest) -> dict[str, Any]:
    """The whole answer."""
    future = engine.submit(body.model, body.messages, settings_of(body), n=body.n or 1)
    try:
        completion = await asyncio.wrap_future(future)
    except Exception as error:
        raise api_error(error) from error
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []},
            "logprobs": _logprobs(completion.speller, answer.tokens) if body.logprobs else None,
            "finish_reason": answer.finish_reason,
        }
        for index, answer in enumerate(completion.answers)
    ]
    n_tokens = sum(len(answer.tokens) for answer in completion.answers)
    return {**_head(body, "chat.completion"), "choices": choices, "usage": _usage(completion.prompt_tokens, n_tokens)}


async def stream(engine: Engine, body: ChatRequest) -> AsyncIterator[str]:
    """Server-sent chunks. Errors before the first token are raised before anything is sent."""
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[tuple[int, str, Any, str | None] | None] = asyncio.Queue()
    settings = settings_of(body)
    is_open = True
    sent: dict[int, tuple[int, int]] = {}  # for each answer how many characters and tokens went out
    # What may be the beginning of a stop string is kept back until it is known.
    held = max((len(word) - 1 for word in settings.stop), default=0)

    def on_token(index: int, answer: Any, speller: Any) -> bool:
        n_characters, n_tokens = sent.get(index, (0, 0))
        end = len(answer.text) if answer.finish_reason else len(answer.text) - held
        ready = answer.text[n_characters:end] if end > n_characters else ""
        if answer.finish_reason is None and (not ready or answer.text.endswith("\ufffd")):
            return is_open  # half a character: wait for the rest
        sent[index] = (n_characters + len(ready), len(answer.tokens))
        logprobs = _logprobs(speller, answer.tokens[n_tokens:]) if body.logprobs else None
        loop.call_soon_threadsafe(news.put_nowait, (index, ready, logprobs, answer.finish_reason))
        return is_open

    future = engine.submit(body.model, body.messages, settings, n=body.n or 1, on_token=on_token)
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(news.put_nowait, None))
    first = await news.get()
    if first is None and (error := future.exception()) is not None:
        raise api_error(error) from error

    async def chunks() -> AsyncIterator[str]:
        nonlocal is_open
        head = _head(body, "chat.completion.chunk")
        try:
            for index in range(body.n or 1):
                yield _chunk(head, index, {"role": "assistant", "content": "", "refusal": None})
            item = first
            while item is not None:
                index, text, logprobs, reason = item
                if text or (logprobs and logprobs["content"]):
                    yield _chunk(head, index, {"content": text}, logprobs=logprobs)
                if reason:
                    yield _chunk(head, index, {}, reason=reason)
                item = await news.get()
            completion = await asyncio.wrap_future(future)
            if body.stream_options and body.stream_options.include_usage:
                usage = _usage(completion.prompt_tokens, sum(len(answer.tokens) for answer in completion.answers))
                yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            is_open = False

    return chunks()


def _chunk(
    head: dict[str, Any], index: int, delta: dict[str, Any], *, reason: str | None = None, logprobs: Any = None
) -> str:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"


def _head(body: ChatRequest, kind: str) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl-"),
        "object": kind,
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": "local",
    }


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _logprobs(speller: Any, tokens: Any) -> dict[str, Any]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": speller.text_of(token), "logprob": logprob, "bytes": list(speller.bytes_of(token))}

    content = [
        {**entry(token.id, token.logprob), "top_logprobs": [entry(other, value) for other, value in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}
