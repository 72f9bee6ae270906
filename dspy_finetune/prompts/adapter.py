"""DSPy's own adapters and this library's prompts, each as the other: `AdapterPrompt`, `as_adapter`.

In: a ChatAdapter, JSONAdapter or XMLAdapter, or a PromptFormat. Out: a PromptFormat that renders what the adapter
sends, or an adapter that sends what the prompt renders. All code that depends on DSPy's version stands here: 3.4
adapters give message dicts, 3.5 adapters give a `Prompt(system, messages)` of typed messages, told apart by what is
there. Not covered: tools, conversation history and native output types, which a saved prompt cannot hold.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError
from pydantic_core import PydanticUndefined

from dspy_finetune.errors import AnswerError, RowError, UsageError
from dspy_finetune.prompts.answers import (
    Codec,
    JsonLayout,
    checked_text,
    codec_of,
    field_text,
    is_optional,
    loads,
    plain_value,
)
from dspy_finetune.prompts.format import (
    RENDERING_VERSION,
    AnyPrompt,
    PromptFormat,
    as_prompt,
    digest_of,
    dump_signature,
    load_signature,
)
from dspy_finetune.values import answer_text, sections_of

logger = logging.getLogger(__name__)

_KINDS: dict[str, type[Any]] = {"chat": dspy.ChatAdapter, "json": dspy.JSONAdapter, "xml": dspy.XMLAdapter}
_MARKER = "<<CUSTOM-TYPE-START-IDENTIFIER>>"


class AdapterPrompt(PromptFormat, kind="adapter"):
    """The prompt that one of DSPy's adapters sends; made by `PromptFormat.from_adapter`.

    The rendering is DSPy's, so another DSPy release may render other bytes: the digest covers a rendered sample and
    changes then.
    """

    def __init__(
        self,
        signature: type[dspy.Signature] | str,
        adapter: Any = None,
        demos: Sequence[Mapping[str, Any] | dspy.Example] = (),
    ) -> None:
        self._signature = dspy.Signature(signature) if isinstance(signature, str) else signature
        self._kind = _kind_of(adapter)
        # Our own instance: the caller's callbacks and options change no byte for the types that are allowed here.
        self._adapter: Any = _KINDS[self._kind]()
        self.input_fields = tuple(self._signature.input_fields)
        self.output_fields = tuple(self._signature.output_fields)
        self.rubric = None
        self._saved_signature = dump_signature(self._signature)
        outputs = self._signature.output_fields
        self._codecs = {name: codec_of(field.annotation) for name, field in outputs.items()}
        self._takes_none = frozenset(
            name for name, field in self._signature.fields.items() if is_optional(field.annotation)
        )
        self._images = frozenset(
            field["name"] for field in self._saved_signature["inputs"] if "dspy" in str(field["type"])
        )
        self._demos = [self._plain_demo(demo) for demo in demos]
        self._sample = self._render({name: f"{{{name}}}" for name in self.input_fields})
        self._digest = digest_of(self._identity())

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> AdapterPrompt:
        """The inverse of `to_dict`. Raises UsageError."""
        try:
            return cls(load_signature(data["signature"]), data["adapter"], data["demos"])
        except (KeyError, TypeError) as error:
            raise UsageError(f"prompt: not a saved prompt ({type(error).__name__}: {error})") from error

    @property
    def system(self) -> str:
        """The system message that the adapter sends."""
        return str(self._sample[0]["content"])

    @property
    def user(self) -> str:
        """The user message that the adapter sends for inputs named {like} this."""
        return str(self._sample[-1]["content"])

    @property
    def label_field(self) -> None:
        """None: the adapter's answers open with a marker, not with a label."""
        return None

    @property
    def response_format(self) -> dict[str, Any] | None:
        """The JSON schema of the answer, for JSONAdapter; else None."""
        return JsonLayout(self._codecs).response_format() if self._kind == "json" else None

    @property
    def max_tokens(self) -> None:
        """None: the answers have no limit of their own."""
        return None

    @property
    def stop(self) -> tuple[str, ...]:
        """None to give: the answers end by themselves."""
        return ()

    def messages(self, example: Mapping[str, Any] | dspy.Example) -> list[dict[str, Any]]:
        """The messages that dspy.Predict would send with the adapter. Raises RowError, naming the field."""
        inputs = {}
        for name, field in self._signature.input_fields.items():
            if name not in example and field.default is not PydanticUndefined:
                inputs[name] = field.default
            else:
                inputs[name] = field_text(name, partial(self._checked_input, name), example)
        messages = self._render(inputs)
        if not self._images and not all(isinstance(message["content"], str) for message in messages):
            raise RowError(f"an input holds DSPy's own marker {_MARKER}", remedy="remove it from the text")
        return messages

    def _checked_input(self, name: str, value: Any) -> Any:
        if value is None and name in self._takes_none:
            return value
        if name not in self._images:
            plain = plain_value(value)  # refuses None and what has no text
            if isinstance(plain, str):
                checked_text(plain)
        return value

    def _render(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        return as_dicts(self._adapter.format(self._signature, [dict(demo) for demo in self._demos], inputs))

    def columns(self) -> None:
        """None: adapters render whole conversations."""

    def completion(self, example: Mapping[str, Any] | dspy.Example) -> str:
        """The assistant text as the adapter formats it. Raises RowError, naming the field."""
        outputs = {}
        for name, codec in self._codecs.items():
            outputs[name] = field_text(name, lambda value: value, example)
            if not (outputs[name] is None and name in self._takes_none):
                field_text(name, codec.encode, example)  # refuses what is none of its type
        text = str(self._adapter.format_assistant_message_content(self._signature, outputs))
        self._check_reads_back(outputs, text)
        return text

    def _check_reads_back(self, outputs: dict[str, Any], text: str) -> None:
        """A text that DSPy would read back as something else would train the model to be misread."""
        doubtful = [
            name
            for name, value in outputs.items()
            if isinstance(value, str) and (not value.isprintable() or "[[ ##" in value) and self._kind != "json"
        ]
        if not doubtful:
            return
        try:
            read = self.parse(text)
        except AnswerError:
            read = {}
        for name in doubtful:
            if _lines(read.get(name)) != _lines(outputs[name]):
                raise RowError(
                    f"DSPy's {type(self._adapter).__name__} could not read this text back",
                    field=name,
                    value=outputs[name],
                    remedy="remove its markers or control characters, or use a PromptFormat of templates",
                )

    def parse(self, text: str) -> dict[str, Any]:
        """The output values as the adapter reads them. Raises AnswerError."""
        if not isinstance(text, str) or not text.strip():
            raise AnswerError("the answer is empty", text=text if isinstance(text, str) else "")
        parsed, reason = self._parsed(text)
        raw = self._sections(text)
        values: dict[str, Any] = {}
        for name, codec in self._codecs.items():
            # Labels and numbers are read as everywhere in this library; DSPy takes a Literal only as it is spelled.
            if codec.kind in ("label", "number") and (name in raw or parsed is not None):
                values[name] = self._coded(name, codec, raw[name] if name in raw else (parsed or {}).get(name), text)
            elif parsed is not None:
                values[name] = parsed[name]
            elif name in raw and codec.annotation is str and isinstance(raw[name], str):
                values[name] = raw[name]
            else:
                raise AnswerError(f"the answer {text!r:.80} cannot be read: {reason}", text=text)
        return values

    def _parsed(self, text: str) -> tuple[dict[str, Any] | None, str]:
        """What DSPy reads, or None and why it cannot."""
        try:
            parsed: dict[str, Any] = self._adapter.parse(self._signature, text)
        except (AdapterParseError, ValueError, RecursionError) as error:
            # ValueError too: DSPy's readers let pydantic's and json's own errors through in places.
            return None, str(error).strip().partition("\n")[0]
        return parsed, ""

    def _coded(self, name: str, codec: Codec, value: Any, text: str) -> Any:
        try:
            return codec.read(value, name=name)
        except AnswerError as error:
            raise AnswerError(f"{name}: {error}", text=text) from error

    def _sections(self, text: str) -> dict[str, Any]:
        """The outputs' own texts (in JSON: values), as far as the adapter's layout stands in the answer."""
        try:
            body = answer_text(text)
        except AnswerError:
            return {}
        found: dict[str, Any] = {}
        if self._kind == "json":
            with contextlib.suppress(AnswerError):
                if isinstance(whole := loads(body), dict):
                    found = whole
        elif self._kind == "xml":
            for name in self._codecs:
                if len(texts := re.findall(rf"<{name}>(.*?)</{name}>", body, re.DOTALL)) == 1:
                    found[name] = texts[0].strip()
        else:
            found = sections_of(body)
        if not found and len(self._codecs) == 1:  # a model that leaves the marks out, and says the value alone
            found = dict.fromkeys(self._codecs, body)
        return found

    def inputs(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Not for DSPy's own layouts, which do not mark where a value ends. Raises UsageError."""
        raise UsageError("messages: DSPy's adapters do not write inputs so that they can be read back")

    def to_dict(self) -> dict[str, Any]:
        """All of the prompt as JSON types: the adapter's kind, the signature, the demos."""
        return {
            "kind": "adapter",
            "version": RENDERING_VERSION,
            "adapter": self._kind,
            "signature": self._saved_signature,
            "demos": self._demos,
        }

    def _identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = {"kind": "adapter", "version": RENDERING_VERSION, "adapter": self._kind}
        for index, message in enumerate(self._sample):
            identity[f"message {index} {message['role']}"] = message["content"]
        outputs = {name: f"{{{name}}}" for name in self.output_fields}
        identity["completion"] = self._adapter.format_assistant_message_content(self._signature, outputs)
        identity["inputs"] = {field["name"]: field["type"] for field in self._saved_signature["inputs"]}
        identity["outputs"] = [[field["name"], field["type"]] for field in self._saved_signature["outputs"]]
        return identity

    def _plain_demo(self, demo: Mapping[str, Any] | dspy.Example) -> dict[str, Any]:
        """A demo as JSON types: DSPy writes them as it writes the values themselves."""
        plain: dict[str, Any] = {}
        for name in self._signature.fields:
            if name in demo:
                try:
                    plain[name] = None if demo[name] is None else plain_value(demo[name])
                except RowError as error:
                    raise UsageError(f'demos: field "{name}": {error.problem}') from error
        return plain


def _lines(value: Any) -> list[str]:
    return value.strip().splitlines() if isinstance(value, str) else []


def _kind_of(adapter: Any) -> str:
    if adapter is None:
        return "chat"
    for kind, known in _KINDS.items():
        # Exactly these: what a subclass renders cannot be saved without its code.
        if adapter == kind or adapter is known or type(adapter) is known:
            return kind
    name = adapter.__name__ if isinstance(adapter, type) else type(adapter).__name__
    raise UsageError(f"adapter: dspy.ChatAdapter, dspy.JSONAdapter or dspy.XMLAdapter; got {name}")


class PromptAdapter(dspy.ChatAdapter):
    """A DSPy adapter that sends a PromptFormat's messages; made by `as_adapter`.

    A ChatAdapter by descent, because DSPy's fine-tuning asks for one. The fallback to JSON is off: it would make a
    second call with a prompt that the model was never trained on.
    """

    def __init__(self, prompt: PromptFormat) -> None:
        super().__init__(use_json_adapter_fallback=False)
        self.prompt = prompt
        self._has_warned = False

    def format(self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]) -> Any:
        """The prompt's messages for these inputs. Demos are left out: the model was trained without.

        Raises:
            UsageError: The signature has other fields than the prompt.
        """
        self._check(signature)
        if demos and not self._has_warned:
            self._has_warned = True
            logger.warning("%d demos are not sent: %r was trained without demos", len(demos), self.prompt)
        return _native(self.prompt.messages(inputs))

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """The prompt's reading of an answer. Raises DSPy's AdapterParseError, so that programs see what they expect."""
        self._check(signature)
        try:
            return self.prompt.parse(completion)
        except AnswerError as error:
            raise AdapterParseError(
                adapter_name=type(self).__name__, signature=signature, lm_response=completion, message=str(error)
            ) from error

    def format_assistant_message_content(
        self, signature: type[dspy.Signature], outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        """The prompt's completion, for DSPy's own fine-tuning data."""
        return self.prompt.completion(outputs)

    def format_finetune_data(
        self,
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
        outputs: dict[str, Any],
    ) -> dict[str, list[Any]]:
        """One training row with the prompt's messages and completion; without one where the answer could not be parsed.

        BootstrapFinetune scores such an answer -1 and keeps it, as it keeps every score but 0: a row that ends with the
        question is left out by `FinetuneProvider`.
        """
        self._check(signature)
        if hasattr(outputs, "completion_text"):  # dspy.teleprompt.bootstrap_trace.FailedPrediction
            return {"messages": self.prompt.messages(inputs)}
        answer = {"role": "assistant", "content": self.prompt.completion(outputs)}
        return {"messages": [*self.prompt.messages(inputs), answer]}

    def _check(self, signature: type[dspy.Signature]) -> None:
        found = (set(signature.input_fields), set(signature.output_fields))
        if found != (set(self.prompt.input_fields), set(self.prompt.output_fields)):
            raise UsageError(
                f"adapter: the prompt is for {self.prompt.signature.signature}, "
                f"the program asks {signature.signature}; "
                "use the adapter around the module that was trained, with dspy.context(adapter=...)"
            )


def as_adapter(prompt: AnyPrompt) -> PromptAdapter:
    """A DSPy adapter with which plain dspy.Predict sends the trained prompt, byte for byte.

    Example:
        >>> from dspy_finetune.prompts import binary
        >>> adapter = as_adapter(binary())
        >>> adapter.prompt.messages({"title": "Bees"})[1]["content"]
        'Title: Bees'

    Use it as `with dspy.context(lm=..., adapter=as_adapter(prompt)): dspy.Predict(prompt.signature)(title="Bees")`.
    """
    return PromptAdapter(as_prompt(prompt))


def as_dicts(rendered: Any) -> list[dict[str, Any]]:
    """What an adapter's format() gave, as message dicts: 3.4's list of dicts, or 3.5's Prompt(system, messages)."""
    if isinstance(rendered, list):
        return rendered
    messages = []
    if rendered.system:
        system = rendered.system
        messages.append({"role": "system", "content": system if isinstance(system, str) else _content(system)})
    for message in rendered.messages:
        messages.append({"role": message.role, "content": _content(message.parts)})
    return messages


def _content(parts: Sequence[Any]) -> str | list[dict[str, Any]]:
    """The content of typed parts: one text as itself, anything else as OpenAI's content parts."""
    if len(parts) == 1 and parts[0].type == "text":
        return str(parts[0].text)
    return [_part(part) for part in parts]


def _part(part: Any) -> dict[str, Any]:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    if part.type == "image":
        url = part.url or f"data:{part.media_type};base64,{part.data}"
        return {"type": "image_url", "image_url": {"url": url}}
    raise UsageError(f"messages: a part of type {part.type!r} cannot be trained; use text and images")


def _native(messages: list[dict[str, Any]]) -> Any:
    """Message dicts as this DSPy's adapters give them: 3.5 has a Prompt class, 3.4 has not."""
    prompt_class = getattr(dspy.adapters, "Prompt", None)
    if prompt_class is None:
        return messages
    # Imported here: the path belongs to the release that has the Prompt class.
    from dspy.lm15 import ImagePart, Message, TextPart

    def typed(content: Any) -> tuple[Any, ...]:
        if isinstance(content, str):
            return (TextPart(text=content),)
        return tuple(
            TextPart(text=part["text"]) if part["type"] == "text" else ImagePart(url=part["image_url"]["url"])
            for part in content
        )

    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system") or None
    typed_messages = tuple(
        Message(role=message["role"], parts=typed(message["content"]))
        for message in messages
        if message["role"] != "system"
    )
    return prompt_class(system=system, messages=typed_messages)
