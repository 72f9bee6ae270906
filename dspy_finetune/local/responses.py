"""The responses API, text in and text out: /v1/responses over the chats of completions.py.

In: a JSON body. Out: a response object, or its events as they come. Texts, earlier messages, calls of functions and
what they gave go in; a text, JSON of a schema, or one call comes out.
Not covered: anything that a server must remember (`previous_response_id`, `conversation`, `background`), other tools
than functions, images, files, reasoning. They are refused by name; `store` is taken and means nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dspy_finetune.local import completions
from dspy_finetune.local.completions import (
    Answered,
    ChatRequest,
    Choice,
    Engine,
    FunctionName,
    Stream,
    StreamOptions,
    only,
    text_alone,
)
from dspy_finetune.local.schemas import ApiError, Body, Metadata, ModelName, OneFault, parse
from dspy_finetune.local.store import new_id

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Body):
    """A piece of text; an earlier answer's pieces may come back whole."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class RefusalText(Body):
    """A piece of an earlier answer that was a refusal."""

    type: Literal["refusal"]
    refusal: str


Texts = Annotated[
    list[
        Annotated[
            InputText | RefusalText,
            Field(discriminator="type"),
            BeforeValidator(text_alone("input_text", "output_text", "text", "refusal")),
        ]
    ],
    Field(min_length=1),
    OneFault(),
]


class MessageItem(Body):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Texts
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Body):
    """A call that an earlier answer was."""

    type: Literal["function_call"]
    call_id: str
    name: FunctionName
    arguments: str
    id: str | None = None
    status: Status | None = None
    caller: Annotated[Any, only(None)] = None
    namespace: Annotated[Any, only(None)] = None


class OutputItem(Body):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Texts
    id: str | None = None
    status: Status | None = None


def _typed(value: Any) -> Any:
    # A message may leave its type out.
    return {"type": "message", **value} if isinstance(value, dict) and "role" in value else value


Item = Annotated[MessageItem | CallItem | OutputItem, Field(discriminator="type"), BeforeValidator(_typed)]


class FunctionTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Body):
    """The function that must be called."""

    type: Literal["function"]
    name: FunctionName


class TextFormat(Body):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    name: FunctionName
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(Body):
    """`text`."""

    format: Annotated[TextFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Annotated[Any, only(None, "medium")] = None


class ResponsesRequest(Body):
    """The body of POST /responses."""

    model: ModelName
    input: str | Annotated[list[Item], Field(min_length=1), OneFault()]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], OneFault()] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # What changes nothing here, or only the price and the speed elsewhere.
    metadata: Metadata | None = None
    store: bool | None = None
    truncation: Literal["disabled"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    # What this host does not have, with the values that ask for nothing.
    background: Annotated[Any, only(None, False)] = None
    context_management: Annotated[Any, only(None, [])] = None
    conversation: Annotated[Any, only(None)] = None
    image: Annotated[Any, only(None)] = None
    moderation: Annotated[Any, only(None)] = None
    previous_response_id: Annotated[Any, only(None)] = None
    prompt: Annotated[Any, only(None)] = None
    prompt_cache_options: Annotated[Any, only(None, {})] = None
    reasoning: Annotated[Any, only(None, {})] = None

    @model_validator(mode="after")
    def _fits_together(self) -> ResponsesRequest:
        if self.stream_options is not None and not self.stream:
            message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            raise completions.wrong("stream_options", message)
        return self


def to_chat(body: ResponsesRequest) -> ChatRequest:
    """The same request as a chat.

    Raises:
        ApiError: What the chat refuses, by the names of this API.
    """
    items: list[Any] = [MessageItem(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    called: set[str] = set()
    for item in items:
        if isinstance(item, CallItem):
            called.add(item.call_id)
        elif isinstance(item, OutputItem) and item.call_id not in called:
            message = f"No tool call found for function call output with call_id {item.call_id[:100]}."
            raise ApiError(400, message, param="input", code="invalid_value")
    turns = [_turn(item) for item in items]
    if body.instructions:
        turns.insert(0, {"role": "system", "content": body.instructions})
    chat: dict[str, Any] = {
        "model": body.model,
        "messages": _joined(turns),
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "stream": body.stream,
    }
    if body.include or body.top_logprobs:
        chat |= {"logprobs": True, "top_logprobs": body.top_logprobs}
    wanted = body.text.format if body.text else None
    if isinstance(wanted, SchemaFormat):
        given = wanted.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
        chat["response_format"] = {"type": "json_schema", "json_schema": given}
    elif wanted is not None:
        chat["response_format"] = {"type": wanted.type}
    if body.tools:
        chat["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in body.tools
        ]
    if isinstance(body.tool_choice, NamedTool):
        chat["tool_choice"] = {"type": "function", "function": {"name": body.tool_choice.name}}
    elif body.tools or body.tool_choice == "required":
        chat["tool_choice"] = body.tool_choice
    return parse(ChatRequest, chat)


def _turn(item: MessageItem | CallItem | OutputItem) -> dict[str, Any]:
    if isinstance(item, CallItem):
        call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if isinstance(item, OutputItem):
        return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
    return {"role": item.role, "content": _text(item.content)}


def _joined(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Instructions and a system message that follows are one: templates know one system message, at the beginning."""
    if len(turns) > 1 and all(turn["role"] in ("system", "developer") for turn in turns[:2]):
        first = {"role": "system", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
        return _joined([first, *turns[2:]])
    return turns


def _text(content: str | list[InputText | RefusalText]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text if isinstance(part, InputText) else part.refusal for part in content)


# The answer


_NAMES = {"messages": "input", "response_format": "text.format", "max_completion_tokens": "max_output_tokens"}
"""What the chat's parameters are called here."""


@contextlib.contextmanager
def _own_names() -> Iterator[None]:
    """What the chat refuses, told by the names of this API."""
    try:
        yield
    except ApiError as error:
        name = _NAMES.get(error.param or "")
        if name is None:
            raise
        message = error.message.replace(f"'{error.param}'", f"'{name}'").replace("your messages", "your input")
        message = message.replace("the messages", "the input")
        raise ApiError(error.status, message, code=error.code, param=name, kind=error.kind) from error


async def respond(engine: Engine, body: ResponsesRequest) -> dict[str, Any]:
    """The response object."""
    with _own_names():
        chat = to_chat(body)
        answered = await completions.whole(engine, await asyncio.to_thread(completions.ask, chat))
    return _finished(_response(body), answered, [_item(answered.choices[0])])


async def stream(engine: Engine, body: ResponsesRequest) -> AsyncIterator[str]:
    """The response's events. Errors before the first token are raised before anything is sent."""
    with _own_names():
        chat = to_chat(body)
        source = await Stream(engine, await asyncio.to_thread(completions.ask, chat)).open()
    return _events(source, body)


def _response(body: ResponsesRequest) -> dict[str, Any]:
    wanted = body.text.format if body.text else None
    form = {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True, exclude_none=True)
    choice = body.tool_choice.model_dump() if isinstance(body.tool_choice, NamedTool) else body.tool_choice
    tools = [
        {"description": None, "parameters": None, "strict": None, **tool.model_dump()} for tool in body.tools or ()
    ]
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "model": body.model,
        "output": [],
        "parallel_tool_calls": False if body.parallel_tool_calls is None else body.parallel_tool_calls,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": form, "verbosity": "medium"},
        "tool_choice": choice or "auto",
        "tools": tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }


def _finished(response: dict[str, Any], answered: Answered, output: list[dict[str, Any]]) -> dict[str, Any]:
    is_cut = answered.choices[0].finish_reason == "length"
    usage = {
        "input_tokens": answered.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": answered.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answered.prompt_tokens + answered.completion_tokens,
    }
    return {
        **response,
        "status": "incomplete" if is_cut else "completed",
        "completed_at": None if is_cut else int(time.time()),
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "output": output,
        "usage": usage,
    }


def _item(choice: Choice, item_id: str | None = None) -> dict[str, Any]:
    status = "incomplete" if choice.finish_reason == "length" else "completed"
    if choice.call is not None:
        return {
            "id": item_id or new_id("fc_"),
            "type": "function_call",
            "call_id": new_id("call_"),
            "name": choice.call.name,
            "arguments": choice.call.arguments,
            "status": status,
        }
    part = _part(choice.text, choice.logprobs)
    return {
        "id": item_id or new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [part],
    }


def _part(text: str, logprobs: list[dict[str, Any]] | None) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


class _Teller:
    """Writes events, numbered."""

    def __init__(self) -> None:
        self.n_told = 0

    def __call__(self, kind: str, **fields: Any) -> str:
        event = {"type": kind, "sequence_number": self.n_told, **fields}
        self.n_told += 1
        return f"event: {kind}\ndata: {json.dumps(event)}\n\n"


async def _events(source: Stream, body: ResponsesRequest) -> AsyncIterator[str]:
    tell, response, item_id = _Teller(), _response(body), new_id("msg_")
    place = {"item_id": item_id, "output_index": 0, "content_index": 0}
    has_message = False
    try:
        yield tell("response.created", response=response)
        yield tell("response.in_progress", response=response)
        async for piece in source.pieces():
            if (piece.text or piece.logprobs) and not has_message:
                has_message = True
                begun = {"id": item_id, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
                yield tell("response.output_item.added", output_index=0, item=begun)
                yield tell("response.content_part.added", **place, part=_part("", None))
            if piece.text or piece.logprobs:
                yield tell("response.output_text.delta", **place, delta=piece.text, logprobs=piece.logprobs or [])
        answered = source.answered
        assert answered is not None
        choice = answered.choices[0]
        if choice.call is not None:
            item = _item(choice)
            for event in _call_events(tell, item):
                yield event
        else:
            item = _item(choice, item_id)
            part = item["content"][0]
            if not has_message:  # an empty answer is a message too
                started = {**item, "status": "in_progress", "content": []}
                yield tell("response.output_item.added", output_index=0, item=started)
                yield tell("response.content_part.added", **place, part=_part("", None))
            yield tell("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
            yield tell("response.content_part.done", **place, part=part)
        yield tell("response.output_item.done", output_index=0, item=item)
        finished = _finished(response, answered, [item])
        yield tell(f"response.{finished['status']}", response=finished)
    except ApiError as error:  # what was sent cannot be taken back: the stream ends with the error
        yield tell("error", code=error.code, message=error.message, param=error.param)
    finally:
        source.close()


def _call_events(tell: _Teller, item: dict[str, Any]) -> list[str]:
    place = {"item_id": item["id"], "output_index": 0}
    started = {**item, "arguments": "", "status": "in_progress"}
    return [
        tell("response.output_item.added", output_index=0, item=started),
        tell("response.function_call_arguments.delta", **place, delta=item["arguments"]),
        tell("response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"]),
    ]
