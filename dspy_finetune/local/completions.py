"""Chat completions: what a request may say, what the engine is asked, and the answer or stream in OpenAI's shapes.

In: a JSON body. Out: a chat.completion, or server-sent chunks. Parameters that cannot be honoured are refused by name
instead of being ignored. Tools are described to the model in its system message; a call is text to the model, between
marks (grammar.py), and a `tool_calls` entry to the client.
Not covered: images, audio, files, several calls in one answer.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from dspy_finetune.errors import FinetuneError, UsageError
from dspy_finetune.local.sampling import (
    CALL_CLOSES,
    CALL_OPENS,
    check_grammar,
    check_patterns,
    json_grammar,
    tool_grammar,
)
from dspy_finetune.local.schemas import ApiError, Body, Metadata, ModelName, OneFault, Seed, at_most
from dspy_finetune.local.store import new_id

DEFAULT_MAX_TOKENS = 512
"""The longest answer where the request names no limit: a small model that does not stop would go on for minutes."""

# What a request may say


def only(*values: Any) -> BeforeValidator:
    """Refuses every value but those that ask for nothing."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if any(type(value) is type(one) and value == one for one in values):
            return value
        message = "Unsupported parameter: '{name}' is not supported by the local host."
        raise PydanticCustomError("unsupported", message, {"name": info.field_name})

    return BeforeValidator(check)


def text_alone(*kinds: str) -> Callable[[Any], Any]:
    """Refuses parts of a message that are not text, by the name of what they are."""

    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            message = "content of type '{kind}' is not supported by the local host, which reads text alone"
            raise PydanticCustomError("unsupported_part", message, {"kind": kind[:50]})
        return value

    return check


class TextPart(Body):
    """A piece of text."""

    type: Literal["text"]
    text: str


class RefusalPart(Body):
    """A refusal of the assistant's."""

    type: Literal["refusal"]
    refusal: str


Parts = Annotated[
    list[Annotated[TextPart, BeforeValidator(text_alone("text", "refusal"))]], Field(min_length=1), OneFault()
]
AnyParts = Annotated[
    list[
        Annotated[TextPart | RefusalPart, Field(discriminator="type"), BeforeValidator(text_alone("text", "refusal"))]
    ],
    Field(min_length=1),
    OneFault(),
]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class SystemMessage(Body):
    """`system` and `developer`."""

    role: Literal["system", "developer"]
    content: str | Parts
    name: str | None = None


class UserMessage(Body):
    """`user`."""

    role: Literal["user"]
    content: str | Parts
    name: str | None = None


class CalledFunction(Body):
    """Which function was called, with its arguments as JSON text."""

    name: FunctionName
    arguments: str


class ToolCall(Body):
    """A call that the assistant made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Body):
    """`assistant`: text, a refusal, or calls of tools. What an earlier answer held may be sent back whole."""

    role: Literal["assistant"]
    content: str | AnyParts | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], OneFault()] | None = None
    function_call: Annotated[Any, only(None)] = None
    audio: Annotated[Any, only(None)] = None
    annotations: list[Any] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls and self.refusal is None:
            raise ValueError("an assistant message needs content or tool_calls")
        return self


class ToolMessage(Body):
    """`tool`: what a call gave."""

    role: Literal["tool"]
    content: str | Parts
    tool_call_id: str


AnyMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Body):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """A function's name."""

    name: FunctionName


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class JsonSchema(Body):
    """A named schema."""

    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFormat(Body):
    """Free text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class ChatRequest(Body):
    """The body of POST /chat/completions."""

    model: ModelName
    messages: Annotated[list[AnyMessage], Field(min_length=1), OneFault()]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=1024), at_most(1024)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # What changes nothing here, or only the price and the speed elsewhere.
    metadata: Metadata | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    # What this host does not have, with the values that ask for nothing.
    audio: Annotated[Any, only(None)] = None
    function_call: Annotated[Any, only(None, "none", "auto")] = None
    functions: Annotated[Any, only(None, [])] = None
    modalities: Annotated[Any, only(None, ["text"])] = None
    moderation: Annotated[Any, only(None)] = None
    prediction: Annotated[Any, only(None)] = None
    prompt_cache_options: Annotated[Any, only(None, {})] = None
    reasoning_effort: Annotated[Any, only(None, "none", "minimal")] = None
    store: Annotated[Any, only(None, False)] = None
    verbosity: Annotated[Any, only(None, "medium")] = None
    web_search_options: Annotated[Any, only(None)] = None

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise wrong("max_tokens", "max_tokens and max_completion_tokens cannot both be set")
        if self.top_logprobs is not None and not self.logprobs:
            message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
            raise wrong("top_logprobs", message)
        if self.stream_options is not None and not self.stream:
            message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            raise wrong("stream_options", message)
        called: set[str] = set()
        for number, turn in enumerate(self.messages):
            if isinstance(turn, AssistantMessage):
                called |= {call.id for call in turn.tool_calls or ()}
            if isinstance(turn, ToolMessage) and turn.tool_call_id not in called:
                text = "a message of role 'tool' must answer a call in the 'tool_calls' of a message before it"
                raise wrong(f"messages[{number}]", f"Invalid parameter: {text}.")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise wrong("tools", "Two tools have the same name.")
        if self.tool_choice not in (None, "none") and not names:
            raise wrong("tool_choice", "'tool_choice' is only allowed when 'tools' are specified.")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise wrong("tool_choice", f"There is no tool '{self.tool_choice.function.name}' in 'tools'.")
        return self


def wrong(param: str, message: str) -> PydanticCustomError:
    """What several parameters say together and must not: raised by a model's validator."""
    return PydanticCustomError("combination", "{message}", {"message": message, "param": param})


# What the engine is asked


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request as the engine takes it."""

    model: str
    messages: list[dict[str, str]]
    """Plain text under the roles system, user and assistant."""
    settings: Any
    """sampling.Settings."""
    n: int
    wants_logprobs: bool
    calls: Literal["none", "auto", "forced", "named"]
    """Whether an answer may be, or must be, the call of a tool."""


def ask(body: ChatRequest) -> Asked:
    """Work out what the engine is asked. Imports torch, and looks through the grammars: not for the event loop.

    Raises:
        ApiError: A schema that cannot be enforced.
    """
    from dspy_finetune.local.sampling import Settings  # imports torch: only when a chat comes

    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    calls = _calls(body)
    settings = Settings(
        max_tokens=body.max_completion_tokens or body.max_tokens or DEFAULT_MAX_TOKENS,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=stop,
        n_top=body.top_logprobs or 0,
        logit_bias=tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items()),
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        grammar=_grammar(body, calls),
    )
    return Asked(
        model=body.model,
        messages=_messages(body, calls),
        settings=settings,
        n=body.n or 1,
        wants_logprobs=bool(body.logprobs),
        calls=calls,
    )


def _calls(body: ChatRequest) -> Literal["none", "auto", "forced", "named"]:
    if not body.tools or body.tool_choice == "none":
        return "none"
    if isinstance(body.tool_choice, NamedTool):
        return "named"
    return "forced" if body.tool_choice == "required" else "auto"


def _grammar(body: ChatRequest, calls: str) -> str | None:
    wanted = body.response_format
    schema: dict[str, Any] | None = None
    if isinstance(wanted, SchemaFormat):
        schema = wanted.json_schema.schema_ or {"type": "object"}
        check_patterns(schema, "response_format")
        grammar = json_grammar(schema)
        check_grammar(grammar, "response_format")
    elif isinstance(wanted, ObjectFormat):
        schema = {"type": "object"}
        grammar = json_grammar(schema)
    if calls == "none":
        return grammar if schema is not None else None
    tools = {tool.function.name: tool.function.parameters for tool in body.tools or ()}
    if isinstance(body.tool_choice, NamedTool):
        tools = {body.tool_choice.function.name: tools[body.tool_choice.function.name]}
    check_patterns(list(tools.values()), "tools")
    grammar = tool_grammar(tools, is_forced=calls != "auto", answer=schema)
    check_grammar(grammar, "tools")
    return grammar


def _messages(body: ChatRequest, calls: str) -> list[dict[str, str]]:
    turns = [_plain(message) for message in body.messages]
    if calls == "none":
        return turns
    lines = ["You can call these tools:"]
    for tool in body.tools or ():
        lines.append(json.dumps(tool.function.model_dump(exclude_none=True, exclude={"strict"}), ensure_ascii=False))
    form = '{"name": ..., "arguments": {...}}'
    if calls == "auto":
        lines.append(f"To call a tool, answer with {CALL_OPENS}{form}{CALL_CLOSES} and nothing else.")
    elif isinstance(body.tool_choice, NamedTool):
        lines.append(f"Answer with a call of {body.tool_choice.function.name}: {form}")
    else:
        lines.append(f"Answer with a call of one of them: {form}")
    text = "\n".join(lines)
    if turns[0]["role"] == "system":
        return [{"role": "system", "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def _plain(message: SystemMessage | UserMessage | AssistantMessage | ToolMessage) -> dict[str, str]:
    """The message as text; calls and what they gave as open models were trained to read them."""
    text = _text(message.content)
    if isinstance(message, ToolMessage):
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    if isinstance(message, AssistantMessage):
        calls = [
            f'{CALL_OPENS}{{"name":{json.dumps(call.function.name)},"arguments":{call.function.arguments}}}{CALL_CLOSES}'
            for call in message.tool_calls or ()
        ]
        return {"role": "assistant", "content": "\n".join(filter(None, [text or message.refusal or "", *calls]))}
    return {"role": "user" if message.role == "user" else "system", "content": text}


def _text(content: str | Sequence[TextPart | RefusalPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


# What the engine answers


class Engine(Protocol):
    """What is needed of engine.Engine, which imports torch."""

    def submit(
        self,
        model_id: str,
        messages: Any,
        settings: Any,
        *,
        n: int = 1,
        on_token: Any = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Future[Any]:
        """Ask for answers."""
        ...


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of a tool, as the model wrote it."""

    name: str
    arguments: str
    """JSON text, cut off where the answer was."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One whole answer."""

    text: str
    call: Call | None
    logprobs: list[dict[str, Any]] | None
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class Answered:
    """All answers to a request."""

    choices: list[Choice]
    prompt_tokens: int
    completion_tokens: int
    notes: dict[str, str]
    """What else there is to say, as response headers."""

    def usage(self) -> dict[str, int]:
        """OpenAI's usage of a chat."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What a stream tells next of one answer."""

    index: int
    text: str = ""
    call: Call | None = None
    logprobs: list[dict[str, Any]] | None = None
    finish_reason: str | None = None


_CALL = re.compile(r'\s*\{"name":\s*("(?:[^"\\]|\\.)*"),\s*"arguments":\s*(.*)', re.DOTALL)


def read_call(text: str, calls: str) -> Call | None:
    """The call that a text is, or None where it is an answer.

    Examples:
        >>> read_call('<tool_call>{"name":"add","arguments":{"a":1}}</tool_call>', "auto")
        Call(name='add', arguments='{"a":1}')
        >>> read_call('{"name":"add","arguments":{"a"', "forced")
        Call(name='add', arguments='{"a"')
        >>> read_call("two", "auto") is None
        True
    """
    if calls == "none" or (calls == "auto" and not text.startswith(CALL_OPENS)):
        return None
    match = _CALL.match(text.removeprefix(CALL_OPENS))
    if match is None:
        return None
    inner = match[2].removesuffix(CALL_CLOSES)
    try:
        end = json.JSONDecoder().raw_decode(inner)[1]
    except ValueError:  # cut off
        end = len(inner)
    return Call(name=json.loads(match[1]), arguments=inner[:end])


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


def _choice(asked: Asked, speller: Any, answer: Any) -> Choice:
    call = read_call(answer.text, asked.calls)
    reason = answer.finish_reason
    if call is not None and reason == "stop" and asked.calls != "named":
        reason = "tool_calls"
    logprobs = _logprobs(speller, answer.tokens) if asked.wants_logprobs and call is None else None
    return Choice(text="" if call else answer.text, call=call, logprobs=logprobs, finish_reason=reason)


def _answered(asked: Asked, completion: Any) -> Answered:
    return Answered(
        choices=[_choice(asked, completion.speller, answer) for answer in completion.answers],
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=sum(len(answer.tokens) for answer in completion.answers),
        notes=completion.answers[0].notes,
    )


async def whole(engine: Engine, asked: Asked) -> Answered:
    """The whole answer. Cancelled, it ends the computing at the next token."""
    is_open = True
    future = engine.submit(
        asked.model,
        asked.messages,
        asked.settings,
        n=asked.n,
        on_token=lambda *_: is_open,
        is_wanted=lambda: is_open,
    )
    try:
        return _answered(asked, await asyncio.wrap_future(future))
    except Exception as error:
        raise api_error(error) from error
    finally:
        is_open = False


class Stream:
    """The pieces of an answer as they come. Errors before the first token are raised by `open`."""

    def __init__(self, engine: Engine, asked: Asked) -> None:
        self.asked = asked
        self.answered: Answered | None = None
        """The whole, once all pieces have come."""
        self._engine = engine
        self._is_open = True
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Piece | None] = asyncio.Queue()
        self._sent: dict[int, tuple[int, int]] = {}  # for each answer how many characters and tokens went out
        # What may be the beginning of a stop string is kept back until it is known.
        self._held = max((len(word) - 1 for word in asked.settings.stop), default=0)
        self._first: Piece | None = None
        self.notes: dict[str, str] = {}
        """What else there is to say, as response headers; known once the first token has come."""

    async def open(self) -> Stream:
        """Wait for the first token."""
        asked = self.asked
        future = self._engine.submit(
            asked.model,
            asked.messages,
            asked.settings,
            n=asked.n,
            on_token=self._on_token,
            is_wanted=lambda: self._is_open,
        )
        self._future = future
        future.add_done_callback(lambda _: self._tell(None))
        try:
            self._first = await self._news.get()
        except asyncio.CancelledError:
            self.close()
            raise
        if self._first is None and (error := future.exception()) is not None:
            raise api_error(error) from error
        return self

    def close(self) -> None:
        """End the computing at the next token."""
        self._is_open = False
        self._future.cancel()

    async def pieces(self) -> AsyncIterator[Piece]:
        """All pieces; then `answered` holds the whole."""
        try:
            piece = self._first
            while piece is not None:
                yield piece
                piece = await self._news.get()
            self.answered = _answered(self.asked, await asyncio.wrap_future(self._future))
        except Exception as error:
            raise api_error(error) from error
        finally:
            self.close()

    def _tell(self, piece: Piece | None) -> None:
        self._loop.call_soon_threadsafe(self._news.put_nowait, piece)

    def _on_token(self, index: int, answer: Any, speller: Any) -> bool:
        """In the engine's thread."""
        self.notes = answer.notes
        n_characters, n_tokens = self._sent.get(index, (0, 0))
        end = len(answer.text) if answer.finish_reason else len(answer.text) - self._held
        ready = answer.text[n_characters:end] if end > n_characters else ""
        if answer.finish_reason is None and (
            not ready or answer.text.endswith("\ufffd") or self._may_call(answer.text)
        ):
            return self._is_open  # half a character, or perhaps a call: wait for the rest
        choice = _choice(self.asked, speller, answer) if answer.finish_reason else None
        logprobs = _logprobs(speller, answer.tokens[n_tokens:]) if self.asked.wants_logprobs else None
        if choice is not None and choice.call is not None:
            ready, logprobs = "", None
        self._sent[index] = (n_characters + len(ready), len(answer.tokens))
        self._tell(
            Piece(
                index=index,
                text=ready,
                call=choice.call if choice else None,
                logprobs=logprobs,
                finish_reason=choice.finish_reason if choice else None,
            )
        )
        return self._is_open

    def _may_call(self, text: str) -> bool:
        if self.asked.calls == "auto":
            return text.startswith(CALL_OPENS[: len(text)])
        return self.asked.calls != "none"


def _logprobs(speller: Any, tokens: Any) -> list[dict[str, Any]]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": speller.text_of(token), "logprob": logprob, "bytes": list(speller.bytes_of(token))}

    return [
        {**entry(token.id, token.logprob), "top_logprobs": [entry(other, value) for other, value in token.top]}
        for token in tokens
    ]


# OpenAI's shapes


async def complete(engine: Engine, body: ChatRequest, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """The chat.completion; what is to be said in the response's headers is put into `headers`."""
    answered = await whole(engine, await asyncio.to_thread(ask, body))
    if headers is not None:
        headers.update(answered.notes)
    return _completion(body, answered)


def as_completion(body: ChatRequest, asked: Asked, completion: Any) -> dict[str, Any]:
    """The chat.completion of what the engine computed."""
    return _completion(body, _answered(asked, completion))


def _completion(body: ChatRequest, answered: Answered) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": _message(choice),
            "logprobs": _content(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }
        for index, choice in enumerate(answered.choices)
    ]
    return {**_head(body, "chat.completion"), "choices": choices, "usage": answered.usage()}


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []}
    if choice.call is not None:
        message |= {"content": None, "tool_calls": [_tool_call(choice.call)]}
    return message


def _tool_call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": new_id("call_"), "type": "function", "function": function}


def _content(logprobs: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if logprobs is None else {"content": logprobs, "refusal": None}


async def stream(engine: Engine, body: ChatRequest, headers: dict[str, str] | None = None) -> AsyncIterator[str]:
    """Server-sent chunks. Errors before the first token are raised before anything is sent."""
    source = await Stream(engine, await asyncio.to_thread(ask, body)).open()
    if headers is not None:
        headers.update(source.notes)
    return _chunks(source, body)


async def _chunks(source: Stream, body: ChatRequest) -> AsyncIterator[str]:
    head = _head(body, "chat.completion.chunk")
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    if wants_usage:
        head["usage"] = None  # on every chunk but the last, as OpenAI has it

    def chunk(index: int, delta: dict[str, Any], *, reason: str | None = None, logprobs: Any = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

    try:
        for index in range(body.n or 1):
            yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        async for piece in source.pieces():
            if piece.text or piece.logprobs:
                yield chunk(piece.index, {"content": piece.text}, logprobs=_content(piece.logprobs))
            if piece.call is not None:
                yield chunk(piece.index, {"tool_calls": [{"index": 0, **_tool_call(piece.call)}]})
            if piece.finish_reason:
                yield chunk(piece.index, {}, reason=piece.finish_reason)
        if wants_usage and source.answered is not None:
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': source.answered.usage()})}\n\n"
    except ApiError as error:  # what was sent cannot be taken back: the stream ends with the error
        yield f"data: {json.dumps(error.body())}\n\n"
        return
    finally:
        source.close()
    yield "data: [DONE]\n\n"


def _head(body: ChatRequest, kind: str) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl-"),
        "object": kind,
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": "local",
    }


# Embeddings


def _no_tokens(value: Any) -> Any:
    # Token ids come from clients that count with the tokenizer of OpenAI's models: read as a local model's own, they
    # would give vectors of other texts, and nobody would notice.
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list) and first:
        first = first[0]
    if isinstance(first, int) and not isinstance(first, bool):
        message = (
            "arrays of token ids are not read here, where each model has a tokenizer of its own; send texts "
            "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
        )
        raise PydanticCustomError("unsupported_tokens", "{message}", {"message": message})
    return value


class EmbeddingRequest(Body):
    """The body of POST /v1/embeddings."""

    model: ModelName
    input: Annotated[
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=2048)],
        BeforeValidator(_no_tokens),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


async def embed(engine: Any, body: EmbeddingRequest) -> dict[str, Any]:
    """The list of embeddings: vectors of length one. Cancelled, it ends the computing at the next pass.

    Raises:
        ApiError: More dimensions are asked for than the model has.
    """
    texts = [body.input] if isinstance(body.input, str) else body.input
    is_open = True
    try:
        vectors, n_tokens = await asyncio.wrap_future(engine.embed(body.model, texts, is_wanted=lambda: is_open))
    except Exception as error:
        raise api_error(error) from error
    finally:
        is_open = False
    if body.dimensions is not None:
        if body.dimensions > vectors.shape[1]:
            message = f"The model has {vectors.shape[1]} dimensions, not {body.dimensions}."
            raise ApiError(400, message, code="invalid_value", param="dimensions")
        vectors = vectors[:, : body.dimensions]
        vectors = vectors / (((vectors**2).sum(axis=1, keepdims=True)) ** 0.5).clip(1e-12)

    def written(vector: Any) -> Any:
        if body.encoding_format == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return [float(value) for value in vector]

    data = [
        {"object": "embedding", "index": index, "embedding": written(vector)} for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "data": data, "model": body.model, "usage": usage}
