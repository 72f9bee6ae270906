"""Every row format that is met in the wild, and what each means as a row of OpenAI's.

In: a parsed row. Out: its format (`sniff`), and the same row in OpenAI's shape (`as_openai`) with the keys that the
shape has no place for. One reading for the check, the fix, the conversion and the counting of tokens.
Not covered: faults inside the messages (checks/), lines for other hosts (dialects.py).

| format | who writes it |
|---|---|
| `messages` | OpenAI; with keys that carry meaning beside them: KTO, ms-swift, LLaMA-Factory |
| `input`, `preferred_output`, `non_preferred_output` | OpenAI since May 2025; `preferred_completion` before |
| `prompt`, `chosen`, `rejected` | TRL; answers as texts, messages, or whole chats (UltraFeedback) |
| `chosen`, `rejected` alone | whole chats (TRL), or transcripts of "Human:" and "Assistant:" (hh-rlhf) |
| `prompt`, `completion` | OpenAI's closed completion models, TRL |
| `conversations` of `from`, `value` or `role`, `content` | ShareGPT, FastChat, LLaMA-Factory, with tools as well |
| `instruction`, `input`, `output` or `chosen`, `rejected` | Alpaca, LLaMA-Factory |
| `query`, `response`, `rejected_response` | ms-swift |
| `text` | plain language modelling |

What is not known for certain is refused, never guessed: an answer must not end up in the prompt, and a turn that was
not to be trained must not be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from dspy_finetune.errors import RowError

Row: TypeAlias = dict[str, Any]
"""A training row."""
Method = Literal["sft", "dpo"]
"""What a row trains."""

RowFormat = Literal[
    "chat",
    "reinforcement",
    "preference",
    "preference-wrong-spelling",
    "preference-old-names",
    "trl-preference",
    "prompt-completion",
    "sharegpt",
    "foreign-sft",
    "foreign-preference",
    "other-method",
    "text",
    "unknown",
]

METHOD_OF: dict[str, str] = {
    "chat": "sft",
    "prompt-completion": "sft",
    "sharegpt": "sft",
    "foreign-sft": "sft",
    "text": "sft",
    "reinforcement": "rft",
    "preference": "dpo",
    "preference-wrong-spelling": "dpo",
    "preference-old-names": "dpo",
    "trl-preference": "dpo",
    "foreign-preference": "dpo",
}
"""What each format is meant to train."""

SHARED = ("tools", "parallel_tool_calls", "functions")
"""Keys beside the messages that belong to a row in every format."""
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
"""Keys of multimodal rows of LLaMA-Factory and ms-swift: what stands there is part of the prompt."""
WEIGHT_SPELLINGS = ("loss", "train", "training", "trainable")
"""How other trainers spell a message's weight: ms-swift, Axolotl."""
_OTHER_METHODS = {
    "kto_tag": "KTO (LLaMA-Factory)",
    "label": "KTO, or a classifier",
    "labels": "a classifier, or tokens that are ready",
    "margin": "a reward model",
    "input_ids": "tokens that are ready",
    "token_ids": "tokens that are ready",
}
"""Keys that say that a row is for another method than SFT, DPO and RFT."""
_MEANING = frozenset({*_OTHER_METHODS, *MEDIA, *WEIGHT_SPELLINGS, "weight", "system", "loss_scale", "mask"})
"""Keys that change what is trained: a row that has one must not be rewritten without it."""

PREFERRED = ("preferred_output", "preferred_completion", "preferred", "chosen")
REJECTED = ("non_preferred_output", "non_preferred_completion", "non_preferred", "rejected")

SPEAKERS = {
    **dict.fromkeys(("human", "user", "prompter", "person"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot", "bing", "bard", "ai", "claude"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
"""Who speaks in `conversations`, by the names that data sets use."""
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):[ ]?")
_PROMPT_ENDS = ("\n\n###\n\n", "\n\n===\n\n", "\n\n---\n\n", "\n\n===>\n\n", "\n\n--->\n\n", " ->")
"""Separators that OpenAI's old preparation tool put behind each prompt."""
_COMPLETION_ENDS = (" END", "\n\n###", "###", " ***", "***", "+++", "&&&", "$$$", "@@@", "%%%")
"""Stop sequences that it put behind each completion."""


class Read(NamedTuple):
    """A row in OpenAI's shape."""

    row: Row
    """The row: `messages`, or `input`, `preferred_output` and `non_preferred_output`."""
    rest: Row
    """Keys that the shape has no place for."""
    notes: tuple[str, ...] = ()
    """What was done beside renaming."""


def present(row: Mapping[str, Any]) -> Row:
    """The row without keys that stand for nothing: Arrow writes null for what is absent, others an empty list."""
    return {
        key: value
        for key, value in row.items()
        if value is not None and not (key in (*MEDIA, "history", "system") and value in ([], ""))
    }


def sniff(row: Mapping[str, Any]) -> RowFormat:
    """The format of a row, by its keys."""
    row = present(row)
    if "preferred_output" in row or "non_preferred_output" in row:
        return "preference"
    if "preferred_completion" in row or "non_preferred_completion" in row:
        return "preference-old-names"
    rejected = "rejected" in row or "non_preferred" in row
    has_dialogue = "messages" in row or "conversations" in row or "prompt" in row or "query" in row
    if "kto_tag" in row or (isinstance(row.get("label"), bool) and has_dialogue and not rejected):
        return "other-method"
    if "rejected_response" in row or "rejected_messages" in row:
        return "foreign-preference"
    if "chosen" in row and rejected:
        if "conversations" in row or "instruction" in row or _is_transcript(row["chosen"]):
            return "foreign-preference"
        if "prompt" in row or "messages" not in row:
            return "trl-preference"
    # A lone "preferred" beside messages may be a grader's key of a reinforcement row; with its counterpart it is a
    # preference.
    if ("preferred" in row or "chosen" in row) and (rejected or isinstance(row.get("preferred"), list)):
        return "preference-wrong-spelling"
    if isinstance(row.get("input"), dict) and "messages" in row["input"]:
        return "preference"
    if "messages" in row:
        return "reinforcement" if _is_reinforcement(row) else "chat"
    if "prompt" in row and "completion" in row:
        return "prompt-completion"
    if isinstance(row.get("conversations"), list):
        return "sharegpt"
    if ("instruction" in row and ("output" in row or "response" in row)) or ("query" in row and "response" in row):
        return "foreign-sft"
    return "text" if isinstance(row.get("text"), str) else "unknown"


def _is_reinforcement(row: Row) -> bool:
    messages = row["messages"]
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        return False
    roles = [message.get("role") for message in messages]
    # Keys beside the messages feed graders; without an answer to imitate they are what the row trains on.
    own = {"messages", *SHARED}
    return roles[-1] == "user" and "assistant" not in roles and not row.keys() <= own and "system" not in roles


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and len(_TRANSCRIPT.findall(value)) >= 2


def method_of(row: Mapping[str, Any]) -> Method:
    """What a row of any format trains: `"dpo"` when it holds two answers, else `"sft"`."""
    return "dpo" if METHOD_OF.get(sniff(row)) == "dpo" or "rejected" in row else "sft"


def is_trl(row: Mapping[str, Any]) -> bool:
    """Whether a row is in TRL's shape; otherwise it is taken for OpenAI's."""
    return any(key in row for key in ("prompt", "completion", "chosen", "rejected"))


def shape_named(row: Mapping[str, Any]) -> str:
    """The shape of a row, in words."""
    return "TRL's shape (prompt, completion, chosen, rejected)" if is_trl(row) else "OpenAI's shape (messages, input)"


def from_any(row: Any) -> Row:
    """A row of any format in OpenAI's shape.

    Raises:
        RowError: It is no training row, or it has a key that changes what is trained and that would be lost.
    """
    if not isinstance(row, dict):
        raise RowError("not a JSON object", value=row, remedy="one object per line")
    read = as_openai(row)
    for key in read.rest:
        if key in _MEANING:
            raise RowError(
                f'the key "{key}" changes what is trained, and a training row has no place for it',
                field=key,
                value=read.rest[key],
                remedy=other_method(row) or "take it out of the row, or train where it is read",
            )
    # What a chat row holds beside its messages is the user's own; the other shapes have no place for it.
    return {**read.row, **read.rest} if "messages" in read.row and "messages" in row else read.row


def other_method(row: Mapping[str, Any]) -> str | None:
    """What a row of another method than SFT, DPO and RFT is for, in a sentence; None for rows of these."""
    row = present(row)
    if isinstance(row.get("label"), bool) or "kto_tag" in row:
        return "this is a row for KTO, an answer and whether it is wanted: train it with TRL, or pair good and bad ones"
    if key := next((key for key in MEDIA if key in row), None):
        return f"a multimodal row of LLaMA-Factory or ms-swift: write its {key} as image parts of the user's message"
    if key := next((key for key in _OTHER_METHODS if key in row), None):
        return f'"{key}" belongs to a row for {_OTHER_METHODS[key]}: take it out, or train it where it is read'
    return None


def as_openai(row: Row) -> Read:
    """The row in OpenAI's shape.

    Raises:
        RowError: It is in no known format, or what it means is not certain.
    """
    form = sniff(row)
    given = present(row)
    if form in ("chat", "reinforcement"):
        return _chat(given)
    if form in ("preference", "preference-old-names", "preference-wrong-spelling", "trl-preference"):
        return _preference(given)
    if form == "foreign-preference":
        return _foreign_preference(given)
    if form == "prompt-completion":
        return _prompt_completion(given)
    if form == "sharegpt":
        messages, used = _sharegpt(given)
        return _read({"messages": messages}, given, used)
    if form == "foreign-sft":
        messages, used = _instruction(given)
        key = "output" if "instruction" in given and "output" in given else "response"
        answer = _messages(given[key], "assistant")
        return _read({"messages": [*messages, *answer]}, given, {*used, key})
    if form == "other-method":
        raise RowError("a row for another method", value=list(row), remedy=other_method(row))
    if form == "text":
        raise RowError(
            "plain text, without a question and an answer",
            field="text",
            value=row["text"],
            remedy="write the rows as messages, or train where text is taken (Together, Nebius, TRL)",
        )
    raise RowError(
        f"unknown line format with the keys {', '.join(sorted(map(str, row))) or '(none)'}",
        value=list(row),
        remedy='expected "messages", "prompt" and "completion", or a prompt with two answers',
    )


def _read(made: Row, given: Row, used: Iterable[str], notes: tuple[str, ...] = ()) -> Read:
    """The row with its tools, and what is left over."""
    taken = {*used, *SHARED}
    target = made.get("input", made)
    for key in SHARED:
        if key in given and key not in target:
            target[key] = _tools(given[key]) if key == "tools" else given[key]
    return Read(made, {key: value for key, value in given.items() if key not in taken}, notes)


def _tools(value: Any) -> Any:
    """Tools as OpenAI writes them: a list of {"type": "function", "function": {...}}, read from its JSON if need be."""
    value = from_json(value)
    if not isinstance(value, list):
        return value
    return [{"type": "function", "function": tool} if _is_bare(tool) else tool for tool in value]


def _is_bare(tool: Any) -> bool:
    return isinstance(tool, dict) and "name" in tool and "function" not in tool


def from_json(value: Any) -> Any:
    """A list or object that was written as a JSON string, as Arrow tables hold it; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


# The formats, one by one.


def _chat(given: Row) -> Read:
    messages = from_json(given["messages"])
    if isinstance(messages, list) and isinstance(system := given.get("system"), str):
        return _read({"messages": _with_system(system, messages)}, given, {"messages", "system"})
    return _read({"messages": messages}, given, {"messages"})


def _with_system(system: Any, messages: list[Any]) -> list[Any]:
    """The messages with the system prompt that stands beside them. Raises RowError where there are two."""
    if not isinstance(system, str) or not system.strip():
        return messages
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    if first.get("role") not in ("system", "developer"):
        return [{"role": "system", "content": system}, *messages]
    if first.get("content") != system:
        raise RowError(
            "one system prompt stands beside the messages and another one among them",
            field="system",
            value=system,
            remedy="keep one of them",
        )
    return messages


def _prompt_completion(given: Row) -> Read:
    notes: tuple[str, ...] = ()
    prompt, completion = given["prompt"], given["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        prompt, completion, notes = _without_separators(prompt, completion)
    before = [_muted(message) for message in _messages(prompt, "user")]
    made = {"messages": _with_system(given.get("system"), [*before, *_messages(completion, "assistant")])}
    return _read(made, given, {"prompt", "completion", "system"}, notes)


def _without_separators(prompt: str, completion: str) -> tuple[str, str, tuple[str, ...]]:
    """The texts without the marks that completion models needed and chat models learn to repeat."""
    end = next((end for end in _PROMPT_ENDS if prompt.endswith(end) and len(prompt) > len(end)), None)
    if end is None:
        return prompt, completion, ()
    stop = next((stop for stop in _COMPLETION_ENDS if completion.endswith(stop) and len(completion) > len(stop)), "")
    answer = completion[: len(completion) - len(stop)].strip(" \n")
    note = f"took the separator {end!r} from the prompt" + (f" and {stop!r} from the answer" if stop else "")
    return prompt[: -len(end)], answer or completion, (note,)


def _muted(message: Any) -> Any:
    """An assistant message of a prompt, which is not trained."""
    if isinstance(message, dict) and message.get("role") == "assistant":
        return {**message, "weight": 0}
    return message


def _messages(value: Any, role: str) -> list[Any]:
    """A text, a message or a list of messages as messages. Raises RowError."""
    value = from_json(value)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError("neither text nor a list of messages", value=value, remedy="see docs/export.md")
    return [_message(message) for message in value]


def _message(message: Any) -> Any:
    """A message with its tool calls as OpenAI writes them; a turn of ShareGPT is one as well."""
    if not isinstance(message, dict):
        return message
    if "role" not in message and "from" in message and "value" in message:
        role = SPEAKERS.get(str(message["from"]).lower(), str(message["from"]))
        rest = {key: item for key, item in message.items() if key not in ("from", "value")}
        message = {"role": role, "content": message["value"], **rest}
    if isinstance(calls := message.get("tool_calls"), list):
        return {**message, "tool_calls": [_call(call) for call in calls]}
    return message


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict | list):
        return call
    return {**call, "function": {**function, "arguments": _dumped(function["arguments"])}}


def _dumped(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _preference(given: Row) -> Read:
    chosen_key, rejected_key = _answer_keys(given)
    for key in (chosen_key, rejected_key):
        if key not in given:
            raise RowError("one answer is missing", field=key, value=list(given), remedy="a DPO line holds two answers")
    chosen, rejected = (_messages(given[key], "assistant") for key in (chosen_key, rejected_key))
    used = {chosen_key, rejected_key, "system"}
    shared: Row = {}
    inner = given.get("input")
    prompt: list[Any] | None = None
    if isinstance(inner, dict) and isinstance(from_json(inner.get("messages")), list):
        prompt, used = _messages(inner["messages"], "user"), {*used, "input"}
        shared = {key: item for key, item in inner.items() if key != "messages" and item is not None}
        if "tools" in shared:
            shared["tools"] = _tools(shared["tools"])
    elif "prompt" in given:
        prompt, used = _messages(given["prompt"], "user"), {*used, "prompt"}
    elif isinstance(from_json(given.get("messages")), list):
        prompt, used = _messages(given["messages"], "user"), {*used, "messages"}
    if _is_whole(chosen) or _is_whole(rejected):
        asked = prompt
        prompt, chosen, rejected = _divided(chosen, rejected)
        if asked is not None:
            _check_prompt(asked, prompt)
    if not prompt:
        raise RowError(
            "two answers and no prompt that they answer",
            field="prompt",
            value=list(given),
            remedy='add "prompt", or write both as whole chats that begin alike',
        )
    made = {
        "input": {"messages": _with_system(given.get("system"), prompt), **shared},
        "preferred_output": chosen,
        "non_preferred_output": rejected,
    }
    return _read(made, given, used)


def _answer_keys(given: Row) -> tuple[str, str]:
    chosen = next((key for key in PREFERRED if key in given), None)
    rejected = next((key for key in REJECTED if key in given), None)
    pairs = dict(zip(PREFERRED, REJECTED, strict=True))
    back = dict(zip(REJECTED, PREFERRED, strict=True))
    return chosen or back[rejected or REJECTED[-1]], rejected or pairs[chosen or PREFERRED[-1]]


def _is_whole(answer: list[Any]) -> bool:
    """Whether an answer is a whole chat, which begins with the question."""
    return len(answer) > 1 and isinstance(answer[0], dict) and answer[0].get("role") in ("system", "user", "developer")


def _divided(chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Two whole chats as what they share and how each goes on. Raises RowError where they begin differently."""
    most = min(len(chosen), len(rejected)) - 1
    n = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    if n < 1:
        raise RowError(
            "the two chats share no beginning that could be the prompt",
            value=chosen[:1],
            remedy="write both answers to one and the same prompt",
        )
    return chosen[:n], chosen[n:], rejected[n:]


def _check_prompt(asked: list[Any], prompt: list[Any]) -> None:
    """The prompt that stands beside whole chats must be the one in them, or a part of it. Raises RowError."""
    texts = [message.get("content") for message in prompt if isinstance(message, dict)]
    for message in asked:
        content = message.get("content") if isinstance(message, dict) else None
        is_answer = isinstance(message, dict) and message.get("role") == "assistant" and message not in prompt
        if content not in texts and not is_answer:
            raise RowError(
                "the prompt is not the one that the two chats begin with",
                field="prompt",
                value=content,
                remedy="keep one of the two, or correct it",
            )


def _foreign_preference(given: Row) -> Read:
    if "rejected_response" in given or "rejected_messages" in given:
        return _swift_preference(given)
    if _is_transcript(given["chosen"]):
        chosen, rejected = (_transcript(given[key], key) for key in ("chosen", "rejected"))
        prompt, chosen, rejected = _divided(chosen, rejected)
        used = {"chosen", "rejected"}
    elif "conversations" in given:
        prompt, used = _sharegpt(given)
        chosen, rejected = (_messages(given[key], "assistant") for key in ("chosen", "rejected"))
        used |= {"chosen", "rejected"}
    else:
        prompt, used = _instruction(given)
        chosen, rejected = (_messages(given[key], "assistant") for key in ("chosen", "rejected"))
        used |= {"chosen", "rejected"}
    made = {"input": {"messages": prompt}, "preferred_output": chosen, "non_preferred_output": rejected}
    return _read(made, given, used)


def _swift_preference(given: Row) -> Read:
    """ms-swift: the last answer is the chosen one, the rejected one stands beside."""
    key = "rejected_messages" if "rejected_messages" in given else "rejected_response"
    if "messages" in given:
        whole = _messages(given["messages"], "user")
        messages, used = _with_system(given.get("system"), whole), {"messages", "system"}
    else:
        asked, used = _instruction(given)
        if "response" not in given:
            raise RowError("one answer is missing", field="response", value=list(given), remedy="add the chosen answer")
        messages, used = [*asked, *_messages(given["response"], "assistant")], {*used, "response"}
    if not messages or not isinstance(messages[-1], dict) or messages[-1].get("role") != "assistant":
        raise RowError(
            "the last message is not the chosen answer",
            field="messages",
            remedy=f"end with it, beside {key}",
        )
    prompt, chosen = messages[:-1], messages[-1:]
    rejected = _messages(given[key], "assistant")
    if _is_whole(rejected):
        prompt, chosen, rejected = _divided(messages, rejected)
    made = {"input": {"messages": prompt}, "preferred_output": chosen, "non_preferred_output": rejected}
    return _read(made, given, {*used, key})


def _transcript(text: Any, key: str) -> list[Any]:
    """hh-rlhf's transcripts as messages. Raises RowError."""
    parts = _TRANSCRIPT.split(text) if isinstance(text, str) else []
    if len(parts) < 3 or parts[0].strip():
        raise RowError('no transcript of "Human:" and "Assistant:"', field=key, value=text, remedy="see docs/export.md")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)]


def _instruction(given: Row) -> tuple[list[Any], set[str]]:
    """Alpaca's and ms-swift's questions as messages, with the keys that were read."""
    key = "instruction" if "instruction" in given else "query"
    if not isinstance(given.get(key), str):
        raise RowError("no text", field=key, value=given.get(key), remedy="the question is a text")
    question, used = given[key], {key, "system", "history"}
    more = given.get("input")
    if key == "instruction" and "input" in given:
        if not isinstance(more, str):
            raise RowError("no text", field="input", value=more, remedy="the input of an instruction is a text")
        used.add("input")
        question = f"{question}\n{more}" if more.strip() else question
    before: list[Any] = []
    for turn in given.get("history") or []:
        if not isinstance(turn, list | tuple) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise RowError("no question and answer", field="history", value=turn, remedy='write [["?", "!"], ...]')
        before += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return _with_system(given.get("system"), [*before, {"role": "user", "content": question}]), used


def _sharegpt(given: Row) -> tuple[list[Any], set[str]]:
    """The turns of `conversations` as messages, with the keys that were read. Raises RowError."""
    messages: list[Any] = []
    calls: list[str] = []
    n_calls = 0
    for i, turn in enumerate(given["conversations"]):
        at = f"conversations[{i}]"
        if not isinstance(turn, dict):
            raise RowError("a turn is not an object", field=at, value=turn, remedy='{"from": ..., "value": ...}')
        who = "role" if "role" in turn and "from" not in turn else "from"
        what = "content" if "content" in turn and "value" not in turn else "value"
        role = SPEAKERS.get(str(turn.get(who)).strip().lower())
        if role is None:
            known = ", ".join(sorted(SPEAKERS))
            found = f"{turn.get(who)!r:.40} is not known to speak"
            raise RowError(found, field=at, value=turn, remedy=f"one of {known}")
        rest = {key: item for key, item in turn.items() if key not in (who, what) and item is not None}
        content = turn.get(what)
        if role == "call":
            made = _called(content, at, n_calls)
            calls = [call["id"] for call in made]
            n_calls += len(made)
            messages.append({"role": "assistant", "tool_calls": made, **rest})
            continue
        if not isinstance(content, str) and not (what == "content" and "tool_calls" in turn):
            raise RowError("a turn has no text", field=f"{at}.{what}", value=content, remedy="a turn's value is a text")
        message = {"role": role, "content": content, **rest} if content is not None else {"role": role, **rest}
        if role == "tool" and "tool_call_id" not in message:
            if not calls:
                raise RowError("a tool answers, and nothing called it", field=at, value=turn, remedy="add the call")
            message["tool_call_id"] = calls.pop(0)
        messages.append(_message(message))
    return _with_system(given.get("system"), messages), {"conversations", "system"}


def _called(value: Any, at: str, n_before: int) -> list[Row]:
    """LLaMA-Factory's `function_call` turn as tool calls. Raises RowError."""
    found = from_json(value)
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise RowError("no tool call", field=at, value=value, remedy='write {"name": ..., "arguments": {...}}')
    return [
        {
            "id": str(call.get("id") or f"call_{n_before + i}"),
            "type": "function",
            "function": {"name": call["name"], "arguments": _dumped(call.get("arguments", {}))},
        }
        for i, call in enumerate(calls, start=1)
    ]
