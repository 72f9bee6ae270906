"""What hosts send where they send no plain answer: each is read as what it is, by single calls and by bulk alike."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune import bulk
from dspy_finetune.export.cost import inference_cost
from tests.fake_openai import FakeOpenAI

from .conftest import ChatServer

BINARY = ft.prompts.binary()
ANSWER = ft.PromptFormat(dspy.Signature("question -> answer"))


def completion(text: str | None, finish: str = "stop", logprobs: Any = None, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "usage": usage,
            "choices": [{**choice, "logprobs": logprobs}]}  # fmt: skip


def says(chat: ChatServer, completion: dict[str, Any]) -> None:
    def reply(body: dict[str, Any], question: str) -> dict[str, Any]:
        return completion

    chat.completion = reply  # type: ignore[method-assign]  # a test's own server


def told(token: str, logprob: Any, top: Any = ()) -> dict[str, Any]:
    return {"content": [{"token": token, "logprob": logprob, "bytes": None, "top_logprobs": top}]}


def both(predictor: ft.OpenAIPredictor, inputs: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The output rows of a synchronous call, of an asynchronous one, and of a bulk run."""
    bulk.predict(predictor, [inputs], folder / "out.jsonl", keep=[], overwrite=True)
    row = json.loads((folder / "out.jsonl").read_text("utf-8"))
    found = []
    for answer in (predictor(**inputs), asyncio.run(predictor.acall(**inputs))):
        found.append(json.loads(json.dumps({str(name).lower(): value for name, value in answer.items()}, default=str)))
    return [*found, {name: row[name] for name in found[0]}]


PROBLEMS = {
    "refusal": completion(None, refusal="I cannot help with that."),
    "content_filter": completion("The answer is", finish="content_filter"),
    "length": completion("The answer is that", finish="length"),
    "reasoning_only": completion(None, reasoning_content="Let me think about bees."),
    "tool_calls": completion(
        None, "tool_calls", tool_calls=[{"id": "1", "type": "function", "function": {"name": "f"}}]
    ),
    "no_choices": {**completion("x"), "choices": []},
}


@pytest.mark.parametrize("reason", [*PROBLEMS, "thought"])
def test_what_is_no_answer_is_an_error_that_names_which(reason: str, chat: ChatServer, tmp_path: Path) -> None:
    """A text predictor gave '' for it, and bulk called it answered."""
    body = PROBLEMS.get(reason, completion("<think>\nFirst, bees."))
    reason = "reasoning_only" if reason == "thought" else reason
    says(chat, body)
    predictor = ft.OpenAIPredictor(ANSWER, "tuned", host=chat.host, cache=False)
    for is_async in (False, True):
        with pytest.raises(ft.errors.NoAnswerError) as caught:
            asyncio.run(predictor.acall(question="Why?")) if is_async else predictor(question="Why?")
        assert caught.value.reason == reason
    assert len(predictor.lm.history) == 2  # what came is kept there
    bulk.predict(predictor, [{"question": "Why?"}], tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text("utf-8"))["status"] != "answered"


def test_a_label_that_is_cut_off_is_a_label_and_half_a_number_is_none(chat: ChatServer) -> None:
    says(chat, completion("true", finish="length"))
    assert ft.OpenAIPredictor(BINARY, "tuned", host=chat.host, cache=False)(title="x").is_favorite is True
    says(chat, completion("$1", finish="length"))
    with pytest.raises(ft.errors.NoAnswerError, match="max_tokens"):
        ft.OpenAIPredictor(ft.prompts.number(), "tuned", host=chat.host, cache=False)(product="A lamp")


@pytest.mark.parametrize("thought", ["<think>\n\n</think>\n\n", "<think>bees are fine</think>"])
def test_a_closed_think_block_is_read_past_its_tokens_too(thought: str, chat: ChatServer, tmp_path: Path) -> None:
    tokens = ["<think>", thought[7:-8].replace("</think>", "") or " ", "</think>", "\n\n"]
    text = "".join(tokens) + "true"
    listed = [{"token": token, "logprob": 0.0, "top_logprobs": [{"token": token, "logprob": 0.0}]} for token in tokens]
    top = [{"token": name, "logprob": math.log(share)} for name, share in (("true", 0.75), ("false", 0.25))]
    listed.append({"token": "true", "logprob": math.log(0.75), "top_logprobs": top})
    says(chat, completion(text, logprobs={"content": listed}))
    predictor = ft.OpenAIPredictor(BINARY, "tuned", host=chat.host, cache=False)
    for row in both(predictor, {"title": "x"}, tmp_path):
        assert row["is_favorite"] is True
        assert row["probability"] == pytest.approx(0.75)


@pytest.mark.parametrize("top", [[], None, [{"token": "true", "logprob": math.log(0.22), "bytes": None}]])
def test_no_alternatives_are_no_certainty(top: Any, chat: ChatServer, tmp_path: Path) -> None:
    """The one token's own probability is all that is known; the cascade asks the expensive model."""
    says(chat, completion("true", logprobs=told("true", math.log(0.22), top)))
    predictor = ft.OpenAIPredictor(BINARY, "tuned", host=chat.host, cache=False)
    answer = predictor(title="x")
    assert (answer.is_favorite, answer.probability, answer.coverage) == (True, pytest.approx(0.22), pytest.approx(0.22))
    assert answer.probabilities == {True: pytest.approx(0.22), False: None}
    cascade = ft.Cascade([predictor, lambda title: {"is_favorite": False}], min_confidence=0.8)(title="x")
    assert (cascade.escalated, cascade.confidence) == (True, pytest.approx(0.22))
    ensemble = ft.Ensemble([predictor, lambda title: {"is_favorite": False}])(title="x")
    assert (ensemble.n_failed, ensemble.probability) == (0, None)
    for row in both(predictor, {"title": "x"}, tmp_path):
        assert row["probability"] == pytest.approx(0.22)


def test_two_orders_without_alternatives_know_the_share_of_what_both_chose(chat: ChatServer) -> None:
    predictor = ft.PairwisePredictor(ft.prompts.pairwise(), "tuned", host=chat.host, cache=False)
    chat.answer = lambda body: [("A", {"A": 0.6}) if "A: one" in str(body["messages"]) else ("B", {"B": 0.4})]
    answer = predictor(title_a="one", title_b="two")
    assert (answer.preferred, answer.is_tie, answer.position_bias) == ("A", False, None)
    assert answer.probabilities == {"A": pytest.approx(0.5), "B": None}
    chat.answer = lambda body: [("A", {"A": 0.6})]
    answer = predictor(title_a="one", title_b="two")
    assert (answer.is_tie, answer.probabilities, answer.coverage) == (True, None, pytest.approx(0.6))


ODD: list[Any] = [
    told("true", None),
    told("true", float("-inf")),
    told("true", "high", "none"),
    told("true", 4.5),
    {"content": [None, 7]},
    {"content": [{"token": None, "logprob": -1.0}]},
    "none",
    [],
]


@pytest.mark.parametrize("logprobs", ODD)
def test_odd_log_probabilities_cost_no_answer(logprobs: Any, chat: ChatServer, tmp_path: Path) -> None:
    """Side data is optional: one null ended a whole bulk run, and again at each restart."""
    body = completion("true", logprobs=logprobs)
    body["usage"] = {"prompt_tokens": None, "completion_tokens": "1", "total_tokens": -4, "prompt_tokens_details": 3}
    says(chat, body)
    predictor = ft.OpenAIPredictor(BINARY, "tuned", host=chat.host, cache=False)
    for row in both(predictor, {"title": "x"}, tmp_path):
        assert (row["is_favorite"], row["probability"]) == (True, None)


@pytest.mark.parametrize("kind", ["openai", "azure"])
@pytest.mark.parametrize("logprobs", [told("true", None), "none"])
def test_odd_log_probabilities_of_untuned_models_cost_no_answer(
    logprobs: Any, kind: str, chat: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models whose price DSPy knows are asked and read as tuned ones are."""
    says(chat, {**completion("true", logprobs=logprobs), "model": "gpt-4o-mini"})
    monkeypatch.setattr(ft.Host, "connection", lambda self: (chat.url, "k"))
    host = ft.Host.openai() if kind == "openai" else ft.Host.azure("https://x.openai.azure.com")
    predictor = ft.OpenAIPredictor(BINARY, "gpt-4o-mini", host=host, cache=False)
    for found in (predictor(title="x"), asyncio.run(predictor.acall(title="x"))):
        assert (found.is_favorite, found.probability) == (True, None)


def test_an_untuned_models_answer_costs_what_dspys_own_route_says(
    chat: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ft.Host, "connection", lambda self: (chat.url, "k"))
    predictor = ft.OpenAIPredictor(BINARY, "gpt-4o-mini", host=ft.Host.openai(), cache=False)
    predictor(title="x")
    plain = dspy.LM("openai/gpt-4o-mini", api_base=chat.url, api_key="k", cache=False, engine="lm15")
    plain("x")
    assert predictor.lm.history[-1]["cost"] == pytest.approx(plain.history[-1]["cost"])
    assert predictor.lm.history[-1]["cost_details"] == plain.history[-1]["cost_details"]


def test_one_odd_alternative_is_passed_over(chat: ChatServer, tmp_path: Path) -> None:
    top = [{"token": "true", "logprob": math.log(0.6)}, {"token": "false", "logprob": math.log(0.4)}]
    odd = [{"token": "x", "logprob": None}, {"token": 7, "logprob": -1.0}, {"token": "y", "logprob": float("-inf")}, 3]
    says(chat, completion("true", logprobs=told("true", math.log(0.6), [*top, *odd])))
    predictor = ft.OpenAIPredictor(BINARY, "tuned", host=chat.host, cache=False)
    for row in both(predictor, {"title": "x"}, tmp_path):
        assert row["probability"] == pytest.approx(0.6)


def test_a_signature_is_enough(chat: ChatServer) -> None:
    """A class or a string; a label, a number or a text by its output."""

    class Topic(dspy.Signature):
        """What is the title about?"""

        title: str = dspy.InputField()
        topic: Literal["bees", "boats"] = dspy.OutputField()

    chat.answer = lambda body: [("boats", {"boats": 0.7, "bees": 0.3})]
    answer = ft.OpenAIPredictor(Topic, "tuned", host=chat.host, cache=False)(title="Lock gates")
    assert (answer.topic, answer.probability) == ("boats", pytest.approx(0.7))
    assert "What is the title about?" in chat.bodies[-1]["messages"][0]["content"]
    chat.answer = lambda body: [("true", {"true": 0.9, "false": 0.1})]
    assert ft.OpenAIPredictor("title -> liked: bool", "tuned", host=chat.host, cache=False)(title="x").liked is True
    chat.answer = lambda body: [("41.5", {})]
    assert ft.OpenAIPredictor("item -> price: float", "tuned", host=chat.host, cache=False)(item="x").price == 41.5
    chat.answer = lambda body: [("Because.", {})]
    assert ft.OpenAIPredictor("why -> answer", "tuned", host=chat.host, cache=False)(why="x").answer == "Because."
    with pytest.raises(ft.errors.UsageError, match=r"or a dspy\.Signature, .* found 7"):
        ft.OpenAIPredictor(7, "tuned", host=chat.host)  # type: ignore[arg-type]  # which is the test


def test_fewer_alternatives_are_asked_for_where_the_host_refuses(fake: FakeOpenAI, tmp_path: Path) -> None:
    """Once, by the number that its own error names; a second refusal is the caller's."""
    host = ft.Host.compatible(fake.url, "k")
    problem = {"error": {"message": "Invalid 'top_logprobs': must be at most 8.", "type": "invalid_request_error"}}
    fake.fail("POST /chat/completions", status=400, body=problem)
    predictor = ft.OpenAIPredictor(BINARY, "tuned", host=host, cache=False)
    assert predictor(title="x").is_favorite is True
    assert [body["top_logprobs"] for _, body in fake.requests] == [20, 8]
    assert asyncio.run(predictor.acall(title="y")).is_favorite is True
    assert fake.requests[-1][1]["top_logprobs"] == 8
    predictor.save(tmp_path / "capped.json")
    assert ft.load_predictor(tmp_path / "capped.json").top_logprobs == 8
    ft.OpenAIPredictor(BINARY, "tuned", host=host, cache=False, top_logprobs=5)(title="x")
    assert fake.requests[-1][1]["top_logprobs"] == 5
    fake.fail("POST /chat/completions", status=400, body={"error": {"message": "temperature must be 1"}})
    with pytest.raises(Exception, match="temperature"):
        predictor(title="z")
    for wrong in (0, 21, True, "5"):
        with pytest.raises(ft.errors.UsageError, match="top_logprobs must be a whole number from 1 to 20"):
            ft.OpenAIPredictor(BINARY, "tuned", host=host, top_logprobs=wrong)  # type: ignore[arg-type]  # the test


def test_the_history_tells_the_cost_of_a_tuned_model(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the catalog; None where nobody knows a price."""
    monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
    model = "ft:gpt-4.1-mini-2025-04-14:acme::abc12345"
    predictor = ft.OpenAIPredictor(BINARY, model, host=ft.Host.openai("k"), cache=False)
    predictor(title="x")
    entry = predictor.lm.history[-1]
    usage = entry["usage"]
    expected = inference_cost(
        model, n_requests=1, n_input_tokens=usage["prompt_tokens"], n_output_tokens=usage["completion_tokens"]
    )
    assert entry["cost"] == pytest.approx(expected.cost_usd)
    assert entry["cost"] > 0
    unknown = ft.OpenAIPredictor(BINARY, "tuned", host=ft.Host.compatible(fake.url, "k"), cache=False)
    unknown(title="x")
    assert unknown.lm.history[-1]["cost"] is None


def test_refusals_are_counted_apart_from_what_cannot_be_read(chat: ChatServer) -> None:
    """In `compare` as in bulk: a refusal is no parse failure, and no failed call."""
    replies = {"refused": PROBLEMS["refusal"], "cut": PROBLEMS["length"], "fine": completion("Because.")}

    def reply(body: dict[str, Any], question: str) -> dict[str, Any]:
        return replies[body["messages"][-1]["content"].rpartition(" ")[2]]

    chat.completion = reply  # type: ignore[method-assign]  # a test's own server
    tuned = ft.OpenAIPredictor(ANSWER, "tuned", host=chat.host, cache=False)
    rows = [dspy.Example(question=name, answer="Because.").with_inputs("question") for name in [*replies, "fine"]]
    report = ft.compare(
        {"tuned": tuned, "plain": lambda question: {"answer": "No."}}, rows, [ft.metrics.exact_match("answer")]
    )
    row = report.comparison.programs[0]
    assert (row.n, row.n_no_answer, row.n_parse_failures, row.n_failed) == (4, 2, 0, 0)
    assert "no answer" in report.table()
