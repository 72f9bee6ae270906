"""The clients that people have, against the host: LiteLLM and DSPy with both its adapters.

The model knows nothing; what it must write is held by the host. More clients: `make clients` (tests/clients/).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import dspy
import pytest

from tests.local.toy import build_toy_model
from tests.local.toy_server import ToyServer, start_server

# LiteLLM asks for a schema where it knows the model's name as one that keeps to schemas.
NAME = "gpt-4o-mini"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyServer]:
    model = build_toy_model(tmp_path_factory.mktemp("models") / NAME, context_tokens=4096)
    running = start_server(tmp_path_factory.mktemp("clients") / "root", model)
    yield running
    running.stop()


class Paint(dspy.Signature):
    """Choose a paint."""

    wall: str = dspy.InputField()
    colour: Literal["red", "green"] = dspy.OutputField()
    sure: bool = dspy.OutputField()


@pytest.mark.parametrize("adapter", [dspy.JSONAdapter(), dspy.ChatAdapter()], ids=["json", "chat"])
def test_dspy_gets_typed_answers_from_a_model_that_knows_nothing(server: ToyServer, adapter: Any) -> None:
    """ChatAdapter's form is not a schema: DSPy falls back on JSON when the model does not keep to it."""
    lm = dspy.LM(f"openai/{NAME}", api_base=server.url, api_key="local", max_tokens=60, temperature=0, cache=False)
    with dspy.context(lm=lm, adapter=adapter):
        found = dspy.Predict(Paint)(wall="north")
    assert found.colour in ("red", "green")
    assert isinstance(found.sure, bool)
    assert lm.history[-1]["usage"]["completion_tokens"] > 0


def test_dspy_streams_and_asks_for_several(server: ToyServer) -> None:
    lm = dspy.LM(f"openai/{NAME}", api_base=server.url, api_key="local", max_tokens=8, cache=False)
    assert len(lm(messages=[{"role": "user", "content": "x"}], n=3, temperature=1.0)) == 3


def test_litellm_chats_streams_and_calls_tools(server: ToyServer) -> None:
    import litellm

    asked: dict[str, Any] = {
        "model": f"openai/{NAME}",
        "api_base": server.url,
        "api_key": "local",
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 0,
        "max_tokens": 60,
    }
    whole = litellm.completion(**asked)
    parts = [one.choices[0].delta.content or "" for one in litellm.completion(**asked, stream=True)]
    assert "".join(parts) == whole.choices[0].message.content
    parameters = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "add", "parameters": parameters}}
    found = litellm.completion(**asked, tools=[tool], tool_choice="required").choices[0].message.tool_calls[0]
    assert json.loads(found.function.arguments)["a"] in (1, 2)
    with pytest.raises(litellm.exceptions.BadRequestError):
        litellm.completion(**{**asked, "max_tokens": 0})
    answer = litellm.responses(model=f"openai/{NAME}", api_base=server.url, api_key="local", input="x")
    assert answer.status in ("completed", "incomplete")
