"""The three predictors over a real connection: what is sent, what is read, and what DSPy may do to them."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune import bulk
from dspy_finetune.errors import HostError
from dspy_finetune.predictors.pairwise import argues_for

from .conftest import ChatServer

RUBRIC = "Likes pieces that explain how things work. Skips {hype} and “news”."
TITLES = ["Why lock gates lean upstream", 'Ten "habits" of {founders}\nB: true', "<|im_start|>system ☃"]


def predictor(chat: ChatServer, **options: Any) -> ft.OpenAIPredictor:
    options.setdefault("cache", False)
    return ft.OpenAIPredictor(ft.prompts.binary(RUBRIC), "ft:base:org::abc", host=chat.host, **options)


def pairwise(chat: ChatServer, **options: Any) -> ft.PairwisePredictor:
    return ft.PairwisePredictor(ft.prompts.pairwise(RUBRIC), "ft:base:org::abc", host=chat.host, cache=False, **options)


def explained(chat: ChatServer, **options: Any) -> ft.DPOPredictor:
    prompt = ft.prompts.explained_pairwise(RUBRIC)
    return ft.DPOPredictor(prompt, "ft:base:org::abc", host=chat.host, cache=False, **options)


# -- what is trained is what is sent --------------------------------------------------------------------------------


def trained_messages(path: Path) -> list[Any]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["input"]["messages"] if "input" in row else row["messages"][:-1] for row in rows]


@pytest.mark.parametrize("kind", ["binary", "pairwise", "dpo"])
def test_the_messages_of_the_training_file_are_the_messages_on_the_wire(
    kind: str, chat: ChatServer, tmp_path: Path
) -> None:
    """Byte for byte, for titles with quotes, braces, line breaks and role markers."""
    path = tmp_path / "train.jsonl"
    if kind == "binary":
        rows = [dspy.Example(title=title, is_favorite=True).with_inputs("title") for title in TITLES]
        tuned: Any = predictor(chat)
        ft.export_sft(rows, tuned.prompt, path)
    else:
        rows = [
            dspy.Example(title_a=title, title_b="Ten gadgets", preferred="A", explanation="Shows how.").with_inputs(
                "title_a", "title_b"
            )
            for title in TITLES
        ]
        chat.answer = lambda body: [("A", {"A": 0.8, "B": 0.2}), (": Shows how.", {": Shows how.": 1.0})][
            : 1 if kind == "pairwise" else 2
        ]
        tuned = pairwise(chat, both_orders=False) if kind == "pairwise" else explained(chat)
        (ft.export_sft if kind == "pairwise" else ft.export_dpo)(rows, tuned.prompt, path)
    for row in rows:
        tuned(**row.inputs())
    sent = [body["messages"] for body in chat.bodies]
    expected = trained_messages(path)
    assert [json.dumps(messages, ensure_ascii=False).encode() for messages in sent] == [
        json.dumps(messages, ensure_ascii=False).encode() for messages in expected
    ]
    assert sent[0] == tuned.render(**rows[0].inputs())


# -- OpenAIPredictor ------------------------------------------------------------------------------------------------


def test_a_bool_comes_with_its_probability(chat: ChatServer) -> None:
    chat.answer = lambda body: [("true", {"true": 0.6, "false": 0.2, "The": 0.2})]
    prediction = predictor(chat)(title="Lock gates")
    assert prediction.is_favorite is True
    assert prediction.probability == pytest.approx(0.75)
    assert prediction.probabilities == pytest.approx({True: 0.75, False: 0.25})
    assert prediction.coverage == pytest.approx(0.8)


def test_the_threshold_decides_a_bool(chat: ChatServer) -> None:
    chat.answer = lambda body: [("true", {"true": 0.75, "false": 0.25})]
    assert predictor(chat, threshold=0.8)(title="x").is_favorite is False
    with pytest.raises(ft.errors.UsageError, match="threshold"):
        predictor(chat, threshold=1.5)


def test_a_literal_is_its_most_probable_label(chat: ChatServer) -> None:
    class Triage(dspy.Signature):
        """Sort the ticket."""

        ticket: str = dspy.InputField()
        queue: Literal["billing", "bug", "other"] = dspy.OutputField()

    chat.answer = lambda body: [("bug", {"bug": 0.5, " billing": 0.3, "other": 0.1})]
    prediction = ft.OpenAIPredictor(ft.PromptFormat(Triage), "m", host=chat.host, cache=False)(ticket="It crashes")
    assert (prediction.queue, prediction.probability) == ("bug", pytest.approx(5 / 9))


def test_a_rating_is_the_number_that_was_said(chat: ChatServer) -> None:
    """1 begins 10: an answer that ends after its first token is 1 all the same."""
    signature = dspy.Signature("review -> stars: int").with_updated_fields("stars", type_=Literal[1, 2, 5, 10])
    predictor = ft.OpenAIPredictor(ft.PromptFormat(signature), "tuned", host=chat.host, cache=False)
    chat.answer = lambda body: [("1", {"1": 0.8, "2": 0.1, "10": 0.05})]
    answer = predictor(review="Dull from the first page.")
    assert (answer.stars, answer.coverage) == (1, pytest.approx(0.95))
    assert answer.probabilities == pytest.approx({1: 16 / 19, 2: 2 / 19, 5: 0.0, 10: 1 / 19})


def test_an_answer_whose_tokens_name_no_label_has_a_coverage_of_zero(chat: ChatServer) -> None:
    predictor = ft.OpenAIPredictor(ft.prompts.binary(), "tuned", host=chat.host, logprobs=True, cache=False)
    chat.answer = lambda body: [('"', {'"': 1.0}), ("true", {"true": 1.0}), ('"', {'"': 1.0})]
    answer = predictor(title="Why lock gates lean upstream")
    assert (answer.is_favorite, answer.probability, answer.coverage) == (True, None, 0.0)


@pytest.mark.parametrize("model", [None, "", 7])
def test_a_model_without_an_id_is_refused(model: Any, chat: ChatServer) -> None:
    """A job that made no model has none to give."""
    with pytest.raises(ft.errors.UsageError, match="model must be"):
        ft.OpenAIPredictor(ft.prompts.binary(), model, host=chat.host)


def test_text_and_numbers_are_read_by_the_prompt(chat: ChatServer) -> None:
    chat.answer = lambda body: [("$1,199.99", {})]
    price = ft.OpenAIPredictor(ft.prompts.number(), "m", host=chat.host, cache=False)(product="A lamp").price
    assert price == pytest.approx(1199.99)
    assert "logprobs" not in chat.bodies[-1]


def test_answers_in_json_are_held_to_their_schema_where_the_host_can(chat: ChatServer) -> None:
    chat.answer = lambda body: [('{"topic": "locks", "stars": 4}', {})]
    prompt = ft.PromptFormat("title -> topic: str, stars: int", completion="json")
    tuned = ft.OpenAIPredictor(prompt, "m", host=chat.host, cache=False)
    assert dict(tuned(title="x").items()) == {"topic": "locks", "stars": 4}
    assert chat.bodies[-1]["response_format"] == prompt.response_format
    local = ft.OpenAIPredictor(prompt, "m", host=ft.Host.local(chat.url), cache=False)
    assert local(title="x").stars == 4
    assert "response_format" not in chat.bodies[-1]


@pytest.mark.parametrize("text", ["maybe", "true or false", "", "B"])
def test_an_answer_that_cannot_be_read_is_an_error_and_never_a_default(text: str, chat: ChatServer) -> None:
    chat.answer = lambda body: [(text, {"true": 0.4, "false": 0.1})] if text else []
    with pytest.raises(ft.errors.AnswerError) as caught:
        predictor(chat)(title="x")
    assert caught.value.text == text


def test_no_logprobs_give_no_invented_number(chat: ChatServer, caplog: pytest.LogCaptureFixture) -> None:
    """None, said once; or an error where they were asked for."""
    chat.sends_logprobs = False
    tuned = predictor(chat)
    with caplog.at_level(logging.WARNING, logger="dspy_finetune"):
        assert [tuned(title=title).probability for title in ("x", "y")] == [None, None]
    assert len([record for record in caplog.records if "log-probabilities" in record.message]) == 1
    with pytest.raises(ft.errors.LogprobsError, match="no log-probabilities"):
        predictor(chat, logprobs=True)(title="x")


def test_a_model_of_another_prompt_is_refused() -> None:
    model = ft.FinetunedModel(id="ft:x", base="x", host_name="openai", prompt_digest=ft.prompts.binary("One.").digest)
    ft.OpenAIPredictor(ft.prompts.binary("One."), model)
    with pytest.raises(ft.errors.PromptMismatchError, match="was trained on the prompt"):
        ft.OpenAIPredictor(ft.prompts.binary("Another."), model)


# -- PairwisePredictor ----------------------------------------------------------------------------------------------


def leaning(first: float) -> Any:
    """A model that likes gates whatever its place, and adds `first` to whatever stands first."""

    def answer(body: dict[str, Any]) -> list[Any]:
        text = body["messages"][-1]["content"].splitlines()[0]
        of_a = min(max((0.7 if "gates" in text else 0.3) + first, 0.01), 0.99)
        return [("A" if of_a >= 0.5 else "B", {"A": of_a, "B": 1 - of_a})]

    return answer


def test_both_orders_cancel_the_bias_to_a_place(chat: ChatServer) -> None:
    chat.answer = leaning(0.25)
    prediction = pairwise(chat)(title_a="Ten gadgets", title_b="Lock gates")
    assert (prediction.preferred, prediction.probability) == ("B", pytest.approx(0.7))
    assert prediction.position_bias == pytest.approx(0.25)
    assert prediction.probabilities == pytest.approx({"A": 0.3, "B": 0.7})
    assert prediction.is_tie is False
    contents = [body["messages"][-1]["content"] for body in chat.bodies]
    assert contents == ["A: Ten gadgets\nB: Lock gates", "A: Lock gates\nB: Ten gadgets"]


def test_one_order_is_taken_as_it_comes(chat: ChatServer) -> None:
    chat.answer = leaning(0.25)
    prediction = pairwise(chat, both_orders=False)(title_a="Ten gadgets", title_b="Lock gates")
    assert (prediction.preferred, prediction.position_bias, len(chat.bodies)) == ("A", None, 1)


def test_a_small_difference_is_a_tie_within_the_margin(chat: ChatServer) -> None:
    chat.answer = lambda body: [("A", {"A": 0.6, "B": 0.4})]
    assert pairwise(chat, margin=0.1)(title_a="x", title_b="y").is_tie is True


def test_without_logprobs_words_decide_and_a_contradiction_is_a_tie(chat: ChatServer) -> None:
    chat.sends_logprobs = False
    chat.answer = lambda body: [("A", {})]
    prediction = pairwise(chat)(title_a="x", title_b="y")
    assert (prediction.preferred, prediction.probability, prediction.is_tie) == ("A", None, True)


def test_a_prompt_that_is_not_pairwise_is_refused(chat: ChatServer) -> None:
    with pytest.raises(ft.errors.UsageError, match="_a and _b"):
        ft.PairwisePredictor(ft.prompts.binary(), "m", host=chat.host)
    with pytest.raises(ft.errors.UsageError, match="text output"):
        ft.DPOPredictor(ft.prompts.pairwise(), "m", host=chat.host)


# -- DPOPredictor ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "consistent"),
    [
        (": Shows what the gates do", True),
        (": Lists gadgets to buy", False),
        (": I like it", None),
    ],
)
def test_the_explanation_is_held_against_the_choice(words: str, consistent: bool | None, chat: ChatServer) -> None:
    chat.answer = lambda body: [("A", {"A": 0.9, "B": 0.1}), (words, {})]
    prediction = explained(chat)(title_a="Why lock gates lean", title_b="Ten gadgets")
    assert (prediction.preferred, prediction.explanation) == ("A", words[2:])
    assert prediction.consistent is consistent
    assert prediction.probability == pytest.approx(0.9)


def test_the_words_come_from_the_order_that_decided(chat: ChatServer) -> None:
    def answer(body: dict[str, Any]) -> list[Any]:
        gates_first = "gates" in body["messages"][-1]["content"].splitlines()[0]
        if gates_first:
            return [("A", {"A": 0.9, "B": 0.1}), (": the gates explain", {})]
        return [("A", {"A": 0.6, "B": 0.4}), (": gadgets are fun", {})]

    chat.answer = answer
    prediction = explained(chat, both_orders=True)(title_a="Ten gadgets", title_b="Why gates lean")
    assert (prediction.preferred, prediction.explanation, prediction.consistent) == ("B", "the gates explain", True)


def test_an_explanation_without_a_choice_cannot_be_read(chat: ChatServer) -> None:
    """The parser that called everything without an A a B is the fault this library was made against."""
    chat.answer = lambda body: [("Both are fine articles.", {"A": 0.1, "B": 0.1})]
    with pytest.raises(ft.errors.AnswerError):
        explained(chat)(title_a="x", title_b="y")


def test_argues_for_counts_words_of_one_side_only() -> None:
    assert argues_for("bridge", "Bridges of iron", "Bridges of paper") is None
    assert argues_for("iron", "Bridges of iron", "Bridges of paper") is True


# -- what DSPy does to a program ------------------------------------------------------------------------------------


class Program(dspy.Module):
    """A predictor nested in a list and a dict, as users' programs have it."""

    def __init__(self, tuned: ft.OpenAIPredictor) -> None:
        super().__init__()
        self.main = tuned
        self.others = [tuned.deepcopy()]
        self.named = {"third": tuned.deepcopy()}

    def forward(self, title: str) -> dspy.Prediction:
        return self.main(title=title)


def test_a_nested_predictor_survives_save_and_load(chat: ChatServer, tmp_path: Path) -> None:
    program = Program(predictor(chat, threshold=0.3))
    program.save(tmp_path / "program.json")
    fresh = Program(ft.OpenAIPredictor(ft.prompts.binary(RUBRIC), "ft:other", host=chat.host))
    fresh.load(tmp_path / "program.json")
    for loaded in (fresh.main, fresh.others[0], fresh.named["third"]):
        assert (loaded.model, loaded.threshold) == ("ft:base:org::abc", 0.3)
    assert "test-key" not in (tmp_path / "program.json").read_text()


def test_one_file_holds_the_predictor(chat: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, host, prompt and threshold come back; the key does not travel."""
    path = tmp_path / "tuned.json"
    predictor(chat, threshold=0.3).save(path)
    assert "test-key" not in path.read_text()
    monkeypatch.setenv("LOOPBACK_API_KEY", "another-key")
    loaded = ft.load_predictor(path)
    assert isinstance(loaded, ft.OpenAIPredictor)
    assert loaded.threshold == 0.3
    assert loaded.render(title="x") == predictor(chat).render(title="x")
    assert loaded(title="x").is_favorite is True
    assert loaded.lm.model == "openai/ft:base:org::abc"


def test_a_predictor_finds_its_local_host_beside_it_and_makes_no_empty_one(tmp_path: Path) -> None:
    """The folder of a `run` is renamed: host and file move together. A file alone must start no host without models."""
    (tmp_path / "old" / "host" / "models").mkdir(parents=True)
    prompt, file = ft.prompts.binary(RUBRIC), tmp_path / "new" / "predictor.json"
    ft.OpenAIPredictor(prompt, "ft:toy::1", host=ft.Host.local(root=tmp_path / "old" / "host")).save(
        tmp_path / "old" / "predictor.json"
    )
    (tmp_path / "old").rename(tmp_path / "new")
    found = ft.load_predictor(file).host
    assert found is not None
    assert found.root == tmp_path / "new" / "host"
    file.rename(tmp_path / "alone.json")
    alone = ft.load_predictor(tmp_path / "alone.json")
    with pytest.raises(HostError, match=r"old/host, in which ft:toy::1 was trained, is not there"):
        alone(title="x")
    with pytest.raises(HostError, match=r"is not there"):
        bulk.predict(alone, [{"title": "x"}], tmp_path / "answers.jsonl")
    assert not (tmp_path / "old").exists()


def test_the_file_says_where_the_model_comes_from(chat: ChatServer, tmp_path: Path) -> None:
    prompt = ft.prompts.binary(RUBRIC)
    model = ft.FinetunedModel(
        id="ft:base:org::abc", base="base", host_name="loopback", host_description=chat.host.to_dict(),
        job_id="ftjob-1", prompt_digest=prompt.digest, data_sha256="ab12", hyperparameters={"n_epochs": 3}, seed=7,
    )  # fmt: skip
    ft.OpenAIPredictor(prompt, model).save(tmp_path / "tuned.json")
    loaded = ft.load_predictor(tmp_path / "tuned.json")
    assert loaded.provenance is not None
    assert ft.FinetunedModel.from_dict(loaded.provenance) == model
    assert ft.OpenAIPredictor(prompt, "ft:base:org::abc").provenance is None


@pytest.mark.parametrize(
    "content",
    ["{", "{}", '{"predictor": []}', '{"predictor": "Nobody"}', '{"predictor": "OpenAIPredictor", "version": 99}'],
)
def test_what_is_not_a_saved_predictor_is_said_so(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ft.errors.DataError, match=r"saved predictor"):
        ft.load_predictor(path)
    with pytest.raises(ft.errors.FileError, match="no such file"):
        ft.load_predictor(tmp_path / "missing.json")


@pytest.mark.parametrize("field", ["model", "host", "prompt", "prompt_digest", "max_tokens"])
@pytest.mark.parametrize("is_gone", [True, False])
def test_a_damaged_file_says_where(field: str, is_gone: bool, chat: ChatServer, tmp_path: Path) -> None:
    predictor(chat).save(tmp_path / "tuned.json")
    state = json.loads((tmp_path / "tuned.json").read_text("utf-8"))
    if is_gone or field == "max_tokens":
        del state[field]
    else:
        state[field] = 7
    (tmp_path / "tuned.json").write_text(json.dumps(state), "utf-8")
    with pytest.raises(ft.errors.DataError, match=f"damaged, in {field};"):
        ft.load_predictor(tmp_path / "tuned.json")


def test_a_prompt_that_was_changed_in_the_file_is_refused(chat: ChatServer, tmp_path: Path) -> None:
    predictor(chat).save(tmp_path / "tuned.json")
    text = (tmp_path / "tuned.json").read_text("utf-8")
    (tmp_path / "tuned.json").write_text(text.replace("how things work", "how things fail"), "utf-8")
    with pytest.raises(ft.errors.PromptMismatchError, match="was changed in its file"):
        ft.load_predictor(tmp_path / "tuned.json")


def test_loading_under_another_prompt_shows_the_difference(chat: ChatServer, tmp_path: Path) -> None:
    predictor(chat).save(tmp_path / "tuned.json")
    other = ft.OpenAIPredictor(ft.prompts.binary("Something else."), "m", host=chat.host)
    with pytest.raises(ft.errors.PromptMismatchError, match=r"(?s)Something else.*explain how things work"):
        other.load(tmp_path / "tuned.json")
    assert other.model == "m"


def test_set_lm_and_optimizers_leave_model_and_prompt_alone(chat: ChatServer) -> None:
    program = Program(predictor(chat))
    program.set_lm(dspy.LM("openai/someone-else", api_base=chat.url, api_key="k"))
    optimizer = dspy.BootstrapFewShot(metric=ft.metrics.accuracy("is_favorite"), max_rounds=1)
    examples = [dspy.Example(title=title, is_favorite=True).with_inputs("title") for title in TITLES]
    compiled = optimizer.compile(program, trainset=examples)
    assert compiled(title="x").is_favorite is True
    assert {body["model"] for body in chat.bodies} == {"ft:base:org::abc"}
    assert chat.bodies[-1]["messages"] == predictor(chat).render(title="x")


def test_copies_pickles_threads_and_async_give_the_same_answer(
    chat: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPBACK_API_KEY", "another-key")
    tuned = predictor(chat)
    expected = dict(tuned(title="x").items())
    pickled = pickle.dumps(tuned)
    assert b"test-key" not in pickled
    for twin in (tuned.deepcopy(), pickle.loads(pickled)):
        assert dict(twin(title="x").items()) == expected
    assert dict(asyncio.run(tuned.acall(title="x")).items()) == expected
    examples = [dspy.Example(title=f"{n}", is_favorite=True).with_inputs("title") for n in range(8)]
    assert [item.is_favorite for item in tuned.batch(examples, num_threads=4, disable_progress_bar=True)] == [True] * 8
    evaluate = dspy.Evaluate(devset=examples, metric=ft.metrics.accuracy("is_favorite"), num_threads=4)
    assert evaluate(tuned).score == 100.0


def test_pairwise_asks_both_orders_at_once_when_async(chat: ChatServer) -> None:
    chat.answer = leaning(0.1)
    prediction = asyncio.run(pairwise(chat).acall(title_a="Lock gates", title_b="Ten gadgets"))
    assert (prediction.preferred, prediction.position_bias) == ("A", pytest.approx(0.1))


def test_usage_is_reported(chat: ChatServer) -> None:
    chat.answer = leaning(0.0)
    with dspy.context(track_usage=True):
        prediction = pairwise(chat)(title_a="x", title_b="y")
    assert sum(usage["total_tokens"] for usage in prediction.get_lm_usage().values()) == 24


def test_a_ready_language_model_is_used_as_it_is(chat: ChatServer) -> None:
    lm = dspy.LM("openai/mine", api_base=chat.url, api_key="secret-of-mine", cache=False)
    tuned = ft.OpenAIPredictor(ft.prompts.binary(), "mine", lm=lm)
    assert tuned(title="x").is_favorite is True
    assert tuned.deepcopy().lm is lm
    assert b"secret-of-mine" not in pickle.dumps(tuned)
