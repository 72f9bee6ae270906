"""Messages to token ids, the same for training and serving: `encode_prompt`, `encode_completion`, `training_turns`.

In: a tokenizer with a chat template, and OpenAI messages. Out: token ids. Control tokens such as `<|im_start|>` come
from the template alone: where a message's text spells one, it is encoded as the characters it is, so a text can never
open a turn.
Not covered: calls of tools (completions.py writes them as text), images (refused), and the length limit (the engine and
the recipes know their context).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from dspy_finetune.errors import UsageError
from dspy_finetune.tasks import Message, message_text

# Whether control tokens are read out of a text is a setting of the tokenizer, not of the call: threads must not mix.
_ENCODING = threading.Lock()


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


def most_characters(tokenizer: Any, n_tokens: int) -> int:
    """How many characters so many tokens can stand for: a longer text is too long, and need not be encoded to know it.

    Encoding takes seconds for each megabyte, in the thread that answers everybody. A token has at most as many
    characters as its spelling.
    """
    cached = tokenizer.__dict__.get("_dspy_finetune_longest")
    if cached is None:
        cached = tokenizer.__dict__["_dspy_finetune_longest"] = max(map(len, tokenizer.get_vocab()), default=1)
    return int(cached) * n_tokens


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
