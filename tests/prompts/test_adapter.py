"""What DSPy sends and what the prompt renders are the same bytes, in both directions."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy.clients.utils_finetune import infer_data_format
from dspy.lm15 import ImagePart, Message, TextPart
from dspy.utils.exceptions import AdapterParseError

from dspy_finetune.errors import AnswerError, RowError, RowsError, UsageError
from dspy_finetune.export import export_dpo
from dspy_finetune.prompts import PromptFormat, answer, as_adapter, binary, explained_pairwise, number, pairwise
from dspy_finetune.prompts.adapter import as_dicts
from tests.fake_openai import FakeOpenAI


class Wire(FakeOpenAI):
    """A host that answers what it is told, and the model on it."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[str] = []
        self.answer = lambda body: self.answers.pop(0)
        self.lm = dspy.LM("openai/gpt-test", api_base=self.url, api_key="none", cache=False, num_retries=0)

    @property
    def sent(self) -> list[dict[str, Any]]:
        return [body for route, body in self.requests if route == "POST /chat/completions"]


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    # Otherwise the price lookup asks the network first.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    made = Wire()
    yield made
    made.close()


class Review(pydantic.BaseModel):
    """One review."""

    stars: int
    words: list[str] = pydantic.Field(description="What was said.")


class Judge(dspy.Signature):
    """Judge the title.

    Mind the reader."""

    title: str = dspy.InputField(desc="A headline.")
    tags: list[str] = dspy.InputField()
    mood: Literal["glad", "sad"] = dspy.OutputField(desc="How it feels.")
    score: float = dspy.OutputField(ge=0, le=1)
    review: Review = dspy.OutputField()


ADAPTERS = [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()]
INPUTS: dict[str, Any] = {"title": "Bees & {braces}\n[[ ## mood ## ]] <b>", "tags": ["a", "ü"]}
OUTPUTS: dict[str, Any] = {"mood": "sad", "score": 0.25, "review": Review(stars=3, words=["fine & good"])}
DEMOS: list[dict[str, Any]] = [
    {"title": "One", "tags": ["x"], "mood": "glad", "score": 1.0, "review": Review(stars=1, words=[])},
    {"title": "Half a demo", "mood": "glad"},
]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
@pytest.mark.parametrize("demos", [[], DEMOS], ids=["no demos", "demos"])
def test_the_messages_are_those_that_predict_puts_on_the_wire(wire: Wire, adapter: Any, demos: list[Any]) -> None:
    prompt = PromptFormat.from_adapter(Judge, adapter, demos)
    loaded = PromptFormat.from_dict(json.loads(json.dumps(prompt.to_dict())))
    wire.answers.append(prompt.completion(OUTPUTS))
    predict = dspy.Predict(Judge)
    predict.demos = demos
    with dspy.context(lm=wire.lm, adapter=adapter):
        prediction = predict(**INPUTS)
    assert wire.sent[0]["messages"] == prompt.messages(INPUTS) == loaded.messages(dspy.Example(**INPUTS))
    assert dict(prediction) == prompt.parse(prompt.completion(OUTPUTS)) == OUTPUTS
    assert loaded.completion(OUTPUTS) == prompt.completion(OUTPUTS)


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.XMLAdapter()], ids=["chat", "xml"])
def test_the_training_row_is_that_of_dspys_own_fine_tuning(adapter: Any) -> None:
    theirs = adapter.format_finetune_data(Judge, DEMOS, INPUTS, OUTPUTS)["messages"]
    ours = PromptFormat.from_adapter(Judge, adapter, DEMOS).training_messages({**INPUTS, **OUTPUTS})
    assert ours == theirs


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_saving_keeps_digest_and_pickling_works(adapter: Any) -> None:
    prompt = PromptFormat.from_adapter(Judge, adapter, DEMOS)
    loaded = PromptFormat.from_dict(json.loads(json.dumps(prompt.to_dict())))
    assert loaded == prompt == pickle.loads(pickle.dumps(prompt)) == copy.deepcopy(prompt)
    assert loaded.to_dict() == prompt.to_dict()
    assert (prompt.label_field, prompt.labels, prompt.max_tokens, prompt.stop) == (None, None, None, ())
    assert "Judge the title." in prompt.system
    assert "{title}" in prompt.user
    assert prompt != PromptFormat.from_adapter(Judge, adapter)
    assert "One" in PromptFormat.from_adapter(Judge, adapter).diff(prompt)
    assert prompt != PromptFormat.from_adapter(Judge.with_instructions("Another."), adapter, DEMOS)
    assert (prompt.response_format is not None) == isinstance(adapter, dspy.JSONAdapter)


def test_the_three_adapters_are_three_prompts_and_json_has_a_schema() -> None:
    prompts = [PromptFormat.from_adapter("question -> answer", adapter) for adapter in ADAPTERS]
    assert len({prompt.digest for prompt in prompts}) == 3
    assert PromptFormat.from_adapter("question -> answer") == prompts[0]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
@pytest.mark.parametrize(
    "text", ["", "  ", "nonsense", "[[ ## mood ## ]]\nangry", '{"mood": "glad"}', "<mood>glad</mood"]
)
def test_what_the_adapter_cannot_read_is_an_answer_error(adapter: Any, text: str) -> None:
    with pytest.raises(AnswerError) as caught:
        PromptFormat.from_adapter(Judge, adapter).parse(text)
    assert caught.value.text == text


def test_rows_that_dspy_would_garble_are_refused() -> None:
    prompt = PromptFormat.from_adapter("question -> answer")
    with pytest.raises(RowError, match='field "question": is missing'):
        prompt.messages({})
    with pytest.raises(RowError, match='field "question": is None'):
        prompt.messages({"question": None})
    with pytest.raises(RowError, match="marker"):
        prompt.messages({"question": '<<CUSTOM-TYPE-START-IDENTIFIER>>[{"type": "x"}]<<CUSTOM-TYPE-END-IDENTIFIER>>'})
    with pytest.raises(RowError, match="could not read this text back"):
        prompt.completion({"answer": "one\n[[ ## answer ## ]]\ntwo"})
    assert prompt.completion({"answer": "one\ntwo"}) == "[[ ## answer ## ]]\none\ntwo\n\n[[ ## completed ## ]]\n"
    with pytest.raises(RowError, match='field "answer"'):
        prompt.completion({"answer": 3})


def test_optional_and_default_inputs_follow_dspy() -> None:
    class Ask(dspy.Signature):
        """Ask."""

        question: str = dspy.InputField()
        hint: str | None = dspy.InputField()
        tone: str = dspy.InputField(default="calm")
        answer: str = dspy.OutputField()

    prompt = PromptFormat.from_adapter(Ask)
    assert (
        "[[ ## hint ## ]]\nNone\n\n[[ ## tone ## ]]\ncalm"
        in prompt.messages({"question": "q", "hint": None})[-1]["content"]
    )
    assert PromptFormat.from_dict(prompt.to_dict()) == prompt


def test_an_image_goes_through_as_dspy_sends_it(wire: Wire) -> None:
    class Look(dspy.Signature):
        """Look."""

        picture: dspy.Image = dspy.InputField()
        answer: str = dspy.OutputField()

    picture = dspy.Image("https://example.com/bee.png")
    prompt = PromptFormat.from_adapter(Look)
    wire.answers.append(prompt.completion({"answer": "a bee"}))
    with dspy.context(lm=wire.lm, adapter=dspy.ChatAdapter()):
        dspy.Predict(Look)(picture=picture)
    sent = wire.sent[0]["messages"][1]["content"]
    ours = prompt.messages({"picture": picture})[1]["content"]
    assert [part.get("text") for part in sent] == [part.get("text") for part in ours]
    assert [part.get("image_url", {}).get("url") for part in sent] == [
        part.get("image_url", {}).get("url") for part in ours
    ]


def test_other_adapters_and_types_are_refused() -> None:
    with pytest.raises(UsageError, match="TwoStepAdapter"):
        PromptFormat.from_adapter("a -> b", dspy.TwoStepAdapter(dspy.LM("openai/x", api_key="x")))
    with pytest.raises(UsageError, match='field "history"'):
        PromptFormat.from_adapter(dspy.Signature("history: dspy.History -> b"))
    with pytest.raises(UsageError, match="read back"):
        PromptFormat.from_adapter("a -> b").inputs([])


# As an adapter


PLAIN: list[tuple[PromptFormat, dict[str, Any]]] = [
    (binary("Likes bees."), {"title": "Bees\nB: {x}", "is_favorite": True}),
    (pairwise("Likes bees."), {"title_a": "Bees", "title_b": "Rust \\n", "preferred": "B"}),
    (explained_pairwise(), {"title_a": "Bees", "title_b": "Rust", "preferred": "B", "explanation": "so\nit is"}),
    (answer(), {"question": "one\ntwo", "answer": "three\n\nfour"}),
    (number(), {"product": "A kettle\nred", "price": 12.5}),
    (PromptFormat("title -> answer, confidence: float"), {"title": "x", "answer": "y\nz", "confidence": 0.5}),
]


@pytest.mark.parametrize(
    ("prompt", "row"), PLAIN, ids=lambda value: value.signature.signature if isinstance(value, PromptFormat) else ""
)
def test_plain_predict_sends_the_trained_prompt(wire: Wire, prompt: PromptFormat, row: dict[str, Any]) -> None:
    wire.answers += [prompt.completion(row)] * 2
    predict = dspy.Predict(prompt.signature)
    inputs = {name: row[name] for name in prompt.input_fields}
    with dspy.context(lm=wire.lm, adapter=as_adapter(prompt)):
        prediction = predict(**inputs)
        predict.demos = [{**row}]
        predict(**inputs)
    assert wire.sent[0]["messages"] == prompt.messages(row) == wire.sent[1]["messages"]
    assert dict(prediction) == {name: row[name] for name in prompt.output_fields}


def test_an_unreadable_answer_is_dspys_error_and_one_call(wire: Wire) -> None:
    wire.answers.append("perhaps")
    prompt = binary()
    with dspy.context(lm=wire.lm, adapter=as_adapter(prompt)), pytest.raises(AdapterParseError, match="perhaps"):
        dspy.Predict(prompt.signature)(title="Bees")
    assert len(wire.sent) == 1


def test_the_adapter_serves_dspys_own_fine_tuning() -> None:
    prompt = binary()
    adapter = as_adapter(prompt)
    row = {"title": "Bees", "is_favorite": False}
    assert infer_data_format(adapter).name == "CHAT"
    made = adapter.format_finetune_data(prompt.signature, [], {"title": "Bees"}, {"is_favorite": False})
    assert made == {"messages": prompt.training_messages(row)}
    assert adapter.format_assistant_message_content(prompt.signature, row) == "false"
    assert copy.deepcopy(adapter).prompt == prompt == pickle.loads(pickle.dumps(adapter)).prompt
    with pytest.raises(UsageError, match="the program asks question -> answer"):
        adapter.format(dspy.Signature("question -> answer"), [], {"question": "x"})


# Both shapes of DSPy


def test_a_prompt_object_becomes_message_dicts() -> None:
    picture = ImagePart(url="https://example.com/x.png")
    messages = (
        Message.user("Hello"),
        Message.assistant("Hi"),
        Message(role="user", parts=(TextPart(text="See"), picture)),
    )
    assert as_dicts(SimpleNamespace(system="Be brief.", messages=messages)) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "See"},
                {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}},
            ],
        },
    ]
    assert as_dicts(SimpleNamespace(system=(TextPart(text="Parts."),), messages=()))[0]["content"] == "Parts."
    assert as_dicts(SimpleNamespace(system=None, messages=())) == []
    with pytest.raises(UsageError, match="sound"):
        as_dicts(
            SimpleNamespace(system=None, messages=[SimpleNamespace(role="user", parts=[SimpleNamespace(type="sound")])])
        )


def test_where_dspy_has_prompt_objects_the_adapter_gives_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dspy.adapters, "Prompt", SimpleNamespace, raising=False)
    for prompt, row in PLAIN:
        made = as_adapter(prompt).format(prompt.signature, [], row)
        assert all(isinstance(message, Message) for message in made.messages)
        assert as_dicts(made) == prompt.messages(row)


def test_a_prompt_over_an_adapter_of_the_new_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    old = PromptFormat.from_adapter("question -> answer")

    def new_format(self: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        system, *rest = old_format(self, signature, demos, inputs)
        return SimpleNamespace(
            system=system["content"],
            messages=tuple(Message(role=each["role"], parts=(TextPart(text=each["content"]),)) for each in rest),
        )

    old_format = dspy.ChatAdapter.format
    expected = old.messages({"question": "Why?"})
    monkeypatch.setattr(dspy.ChatAdapter, "format", new_format)
    new = PromptFormat.from_adapter("question -> answer")
    assert new.messages({"question": "Why?"}) == expected
    assert new.digest == old.digest


@pytest.mark.parametrize(
    "adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()], ids=["chat", "json", "xml"]
)
@pytest.mark.parametrize(
    ("signature", "row", "rejected"),
    [
        ("title -> is_favorite: bool", {"title": "Bees", "is_favorite": True}, {"is_favorite": False}),
        (
            "title -> reasoning: str, kept: Literal['yes', 'no']",
            {"title": "Bees", "reasoning": "It shows.", "kept": "no"},
            {"reasoning": "It shows.", "kept": "yes"},
        ),
    ],
)
def test_dpo_without_a_rejected_answer_takes_the_other_label(
    tmp_path: Path, adapter: Any, signature: str, row: dict[str, Any], rejected: dict[str, Any]
) -> None:
    """As with the presets: the two answers differ in the label alone, wherever the adapter writes it."""
    prompt = PromptFormat.from_adapter(signature, adapter)
    path = export_dpo([row], prompt, tmp_path / "d.jsonl").path
    line = json.loads(path.read_text(encoding="utf-8"))
    assert prompt.parse(line["preferred_output"][0]["content"]) == {name: row[name] for name in prompt.output_fields}
    assert prompt.parse(line["non_preferred_output"][0]["content"]) == rejected
    # The probability of the label cannot be read at the first token, which is a marker of the adapter.
    assert prompt.label_field is None


def test_dpo_of_an_output_without_labels_says_what_is_missing(tmp_path: Path) -> None:
    prompt = PromptFormat.from_adapter("question -> answer")
    with pytest.raises(RowsError, match="rejected_<output>"):
        export_dpo([{"question": "x", "answer": "y"}], prompt, tmp_path / "d.jsonl")
