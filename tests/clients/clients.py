"""Other people's clients against the local host: structured output, tools, streams, out of the box.

    python clients.py URL MODEL

Run by run.py in an environment of its own. Prints a line for each client and exits with 1 when one of them fails.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, Literal

import pydantic

URL, MODEL = sys.argv[1], sys.argv[2]
os.environ["OPENAI_API_KEY"], os.environ["OPENAI_BASE_URL"] = "local", URL
# What would tell strangers about this run.
os.environ |= {"LANGSMITH_TRACING": "false", "DO_NOT_TRACK": "1"}


class Paint(pydantic.BaseModel):
    """A paint."""

    colour: Literal["red", "green"]
    sure: bool


def openai_client() -> None:
    """chat.completions.parse, a stream, responses.parse."""
    from openai import OpenAI

    client = OpenAI(_strict_response_validation=True)
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 60}
    assert client.chat.completions.parse(**asked, response_format=Paint).choices[0].message.parsed
    with client.chat.completions.stream(**asked) as stream:
        assert [event for event in stream if event.type == "chunk"]
    assert client.responses.parse(model=MODEL, input="x", text_format=Paint, max_output_tokens=60).output_parsed


def langchain() -> None:
    """ChatOpenAI: plain, streamed, structured output by each of its methods, a bound tool, the responses API."""
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL, max_tokens=60, temperature=0)
    assert isinstance(model.invoke("x").content, str)
    assert list(model.stream("x"))
    for method in ("json_schema", "function_calling"):
        found = model.with_structured_output(Paint, method=method).invoke("x")
        assert isinstance(found, Paint), method
    bound = model.bind_tools([Paint], tool_choice="any")
    assert bound.invoke("x").tool_calls[0]["name"] == "Paint"
    assert ChatOpenAI(model=MODEL, max_tokens=60, use_responses_api=True).invoke("x").content is not None


def instructor_client() -> None:
    """Every mode that asks OpenAI's API for a form."""
    import instructor
    from openai import OpenAI

    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(OpenAI(), mode=mode)
        found = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], response_model=Paint, max_tokens=60, max_retries=1
        )
        assert isinstance(found, Paint), mode


def pydantic_ai() -> None:
    """An agent with a typed output, by tools and by a native schema, over both APIs."""
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel

    for model in (OpenAIChatModel(MODEL), OpenAIResponsesModel(MODEL)):
        for wanted in (Paint, NativeOutput(Paint)):
            agent: Any = Agent(model, output_type=wanted, model_settings={"max_tokens": 80})
            assert isinstance(agent.run_sync("x").output, Paint)


def llm_tool() -> None:
    """`llm`: a prompt, a stream and a schema."""
    from llm.default_plugins.openai_models import Chat

    model = Chat(MODEL, model_name=MODEL, api_base=URL, supports_schema=True)
    model.key = "local"
    assert isinstance(model.prompt("x", stream=False, max_tokens=8).text(), str)
    assert list(model.prompt("x", stream=True, max_tokens=8))
    text = model.prompt("x", stream=False, schema=Paint.model_json_schema(), max_tokens=60).text()
    Paint.model_validate_json(text)


CLIENTS: dict[str, Callable[[], None]] = {
    "openai": openai_client,
    "langchain-openai": langchain,
    "instructor": instructor_client,
    "pydantic-ai": pydantic_ai,
    "llm": llm_tool,
}


def main() -> int:
    """Each client once."""
    from importlib.metadata import version

    failed = 0
    for name, check in CLIENTS.items():
        package = "pydantic-ai-slim" if name == "pydantic-ai" else name
        try:
            check()
            print(f"{name} {version(package)}: ok", flush=True)
        except Exception:
            failed += 1
            print(f"{name} {version(package)}: FAILED\n{traceback.format_exc()}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
