"""A label, then a text: a head decides the label, an adapter writes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import dspy_finetune as ft
from dspy_finetune.errors import DataError, UsageError
from dspy_finetune.local import features, sampling
from dspy_finetune.local.chat import encode_text
from dspy_finetune.local.schemas import ApiError
from dspy_finetune.local.training import load_dpo_rows
from dspy_finetune.tasks import rows_of, task_of_answers
from tests.local.test_export_model import as_model
from tests.local.test_jobs import upload, wait
from tests.local.test_recipes import spec
from tests.local.toy_server import ToyServer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TRUE = ft.PromptFormat("text -> is_true: Literal['yes', 'no'], why: str", completion="{is_true}: {why}")


def examples(n: int) -> list[dict[str, Any]]:
    """A word tells the label; the reason is another in each row."""
    return [
        {
            "text": f"{'true' if i % 2 else 'reader'} {i}",
            "is_true": "yes" if i % 2 else "no",
            "why": f"it is {('true', 'false', 'reader')[i % 3]} {i}",
        }
        for i in range(n)
    ]


def sft_rows(n: int, prompt: ft.PromptFormat = TRUE) -> list[dict[str, Any]]:
    return [
        {"messages": [*prompt.messages(row), {"role": "assistant", "content": prompt.completion(row)}]}
        for row in examples(n)
    ]


def dpo_rows(n: int, answer: Any = TRUE.completion) -> list[dict[str, Any]]:
    return [
        {
            "input": {"messages": TRUE.messages(row)},
            "preferred_output": [{"role": "assistant", "content": answer(row)}],
            "non_preferred_output": [
                {"role": "assistant", "content": answer({**row, "is_true": "no" if row["is_true"] == "yes" else "yes"})}
            ],
        }
        for row in examples(n)
    ]


def train(server: ToyServer, rows: list[dict[str, Any]], *, model: str = "toy", **hyperparameters: Any) -> Any:
    name = "dpo" if "input" in rows[0] else "supervised"
    method: Any = {"type": name, name: {"hyperparameters": {"n_epochs": 1, **hyperparameters}}}
    client = server.client()
    job = client.fine_tuning.jobs.create(model=model, training_file=upload(client, rows), method=method)
    return wait(client, job.id)


def messages_of(server: ToyServer, job: Any) -> list[str]:
    return [event.message for event in server.client().fine_tuning.jobs.list_events(job.id, limit=100).data]


def ask(server: ToyServer, model: str, text: str, prompt: ft.PromptFormat = TRUE, **options: Any) -> Any:
    given: dict[str, Any] = {"temperature": 0, "logprobs": True, "top_logprobs": 5, "max_tokens": 12, **options}
    messages: Any = prompt.messages({"text": text})
    return server.client().chat.completions.create(model=model, messages=messages, **given)


@pytest.fixture(scope="module")
def explained(real: ToyServer) -> Any:
    done = train(real, sft_rows(40))
    assert done.status == "succeeded", done.error
    return done


def test_a_job_says_who_decides_and_the_label_has_the_heads_probability(real: ToyServer, explained: Any) -> None:
    told = messages_of(real, explained)
    assert any("every answer begins with one of 2 labels" in one and "Recipe: head+lora" in one for one in told)
    assert any(one.startswith("Chosen by cross-validation: ") for one in told)
    assert explained.hyperparameters.model_dump()["recipe"] == "head+lora"
    for text, label in (("true 400", "yes"), ("reader 401", "no")):
        answer = ask(real, explained.fine_tuned_model, text).choices[0]
        assert answer.message.content.startswith(f"{label}: ")
        first = answer.logprobs.content[0]
        assert len(first.top_logprobs) == 2
        assert sum(math.exp(one.logprob) for one in first.top_logprobs) == pytest.approx(1.0)
        told = ft.OpenAIPredictor(TRUE, explained.fine_tuned_model, host=ft.Host.local(real.url), max_tokens=12)(
            text=text
        )
        assert told.is_true == label
        assert told.probability == pytest.approx(math.exp(first.logprob), abs=1e-6)


def test_streams_samples_and_limits_are_those_of_a_model_that_writes(
    real: ToyServer, explained: Any, toy_model: Path
) -> None:
    model = explained.fine_tuned_model
    plain = ask(real, model, "true 400").choices[0]
    chunks = [chunk.choices[0] for chunk in ask(real, model, "true 400", stream=True) if chunk.choices]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == plain.message.content
    short = ask(real, model, "true 400", max_tokens=1).choices[0]
    assert (short.finish_reason, len(short.logprobs.content)) == ("length", 1)
    drawn = ask(real, model, "true reader 400", n=60, temperature=2, seed=1, max_tokens=4).choices
    labels = {one.message.content.partition(":")[0] for one in drawn}
    assert labels == {"yes", "no"}
    other = real.client().chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": "Who?"}], max_tokens=12
    )
    assert other.headers["x-dspy-finetune-prompt"] == "another shape than trained"
    no = encode_text(AutoTokenizer.from_pretrained(toy_model), "no: ")[0]
    biased = ask(real, model, "true 400", logit_bias={no: 100}).choices[0]
    assert biased.message.content.startswith("no: ")


def test_an_epochs_checkpoint_has_the_head_too(real: ToyServer) -> None:
    done = train(real, sft_rows(24), n_epochs=2)
    checkpoints = real.client().fine_tuning.jobs.checkpoints.list(done.id).data
    names = {one.fine_tuned_model_checkpoint for one in checkpoints}
    assert len(names) == 2
    for name in names:
        assert ask(real, name, "true 400").choices[0].message.content.startswith("yes: ")


def test_json_answers_are_decided_under_their_schema(real: ToyServer) -> None:
    prompt = ft.PromptFormat("text -> is_true: bool, why: str", completion="json")
    rows = [{**row, "is_true": row["is_true"] == "yes"} for row in examples(40)]
    lines = [
        {"messages": [*prompt.messages(row), {"role": "assistant", "content": prompt.completion(row)}]} for row in rows
    ]
    done = train(real, lines)
    assert done.status == "succeeded", done.error
    schema: Any = prompt.response_format
    for text, label in (("true 400", "true"), ("reader 401", "false")):
        plain = ask(real, done.fine_tuned_model, text, prompt).choices[0].message.content
        assert plain.startswith(f'{{"is_true": {label}, ')
        held = (
            ask(real, done.fine_tuned_model, text, prompt, response_format=schema, max_tokens=30)
            .choices[0]
            .message.content
        )
        assert held.startswith(f'{{"is_true": {label}, "why": "')
    other: Any = {"type": "json_object"}
    assert ask(real, done.fine_tuned_model, "true 400", prompt, response_format=other).choices[0].message.content


def test_preferences_train_a_head_for_their_label_unless_told_not_to(real: ToyServer) -> None:
    done = train(real, dpo_rows(40))
    assert done.status == "succeeded", done.error
    assert any("Recipe: head+lora" in one for one in messages_of(real, done))
    assert ask(real, done.fine_tuned_model, "true 400").choices[0].message.content.startswith("yes: ")
    alone = train(real, dpo_rows(20), recipe="lora")
    assert alone.status == "succeeded", alone.error
    assert len(ask(real, alone.fine_tuned_model, "true 400").choices[0].logprobs.content[0].top_logprobs) == 5
    refused = train(real, dpo_rows(20), recipe="head")
    assert (refused.status, refused.error.code) == ("failed", "invalid_recipe")


def test_preferences_between_labels_alone_are_decided_by_a_head(real: ToyServer) -> None:
    done = train(real, dpo_rows(40, answer=lambda row: row["is_true"]))
    assert done.status == "succeeded", done.error
    assert any("Recipe: head," in one for one in messages_of(real, done))
    assert ask(real, done.fine_tuned_model, "true 400").choices[0].message.content == "yes"
    assert ask(real, done.fine_tuned_model, "reader 401").choices[0].message.content == "no"


def test_few_preferences_leave_the_head_of_the_model_they_start_from(real: ToyServer, explained: Any) -> None:
    wrong = [{**row, "preferred_output": row["non_preferred_output"], "non_preferred_output": row["preferred_output"]}
             for row in dpo_rows(12)]  # fmt: skip
    done = train(real, wrong, model=explained.fine_tuned_model)
    assert any("The label stays the head's that was fitted on 40 rows" in one for one in messages_of(real, done))
    for text in ("true 400", "reader 401"):
        tokens = [
            ask(real, model, text).choices[0].logprobs.content[0]
            for model in (explained.fine_tuned_model, done.fine_tuned_model)
        ]
        assert tokens[0].logprob == pytest.approx(tokens[1].logprob, abs=1e-5)


def test_a_job_says_that_it_leaves_out_the_head_of_the_model_it_starts_from(real: ToyServer, explained: Any) -> None:
    done = train(real, dpo_rows(24)[1::2], model=explained.fine_tuned_model)  # one label alone: nothing to decide
    assert done.status == "succeeded", done.error
    assert any("linear head of the model that is trained on is left out" in one for one in messages_of(real, done))


def test_an_export_with_the_head_answers_alike_and_one_without_says_so(
    real: ToyServer, explained: Any, tmp_path: Path
) -> None:
    host = ft.Host.local(real.url)
    predictor = ft.OpenAIPredictor(TRUE, explained.fine_tuned_model, host=host, max_tokens=12, cache=False)
    model = as_model(real, explained.fine_tuned_model)
    made = model.export(tmp_path / "head", format="head", predictor=predictor)
    alone = ft.load_predictor(made.folder)
    for text in ("true 400", "reader 401"):
        here, there = alone(text=text), predictor(text=text)
        assert (here.is_true, here.why) == (there.is_true, there.why)
        assert here.probability == pytest.approx(there.probability, abs=1e-5)
    without = model.export(tmp_path / "peft", format="peft")
    assert any("linear head that decides" in one for one in without.warnings)
    assert without.verify is None
    assert "linear head that decides" in (tmp_path / "peft" / "README.md").read_text()


def test_a_run_that_goes_on_keeps_its_head(toy_model: Path, tmp_path: Path) -> None:
    job = spec(toy_model, tmp_path, "sft", sft_rows(24))
    told: list[Any] = []
    first = features.train_opening(job, emit=told.append, should_stop=lambda: False)
    assert first.head is not None
    assert not [row for row in told if "step" in row]
    before = (first.head / "head.json").stat().st_mtime_ns
    again = features.train_opening(job, emit=told.append, should_stop=lambda: True)
    assert (again.head, again.stopped) == (first.head, False)
    assert (first.head / "head.json").stat().st_mtime_ns == before
    other = spec(toy_model, tmp_path / "stopped", "sft", sft_rows(24))
    assert features.train_opening(other, emit=told.append, should_stop=lambda: True).stopped


def test_the_adapter_decides_where_a_head_cannot(toy_model: Path, tmp_path: Path) -> None:
    said: list[Any] = []
    alike = [{"messages": [TRUE.messages({"text": "the same"})[-1], row["messages"][-1]]} for row in sft_rows(24)]
    job = spec(toy_model, tmp_path, "sft", alike)
    done = features.train_opening(job, emit=said.append, should_stop=lambda: False)
    assert (done.head, done.stopped) == (None, False)
    assert any("all 24 prompts are the same" in row.get("message", "") for row in said)


@pytest.mark.parametrize(("labels", "is_apart"), [(["yes: ", "no: "], True), (["tr", "true"], False)])
def test_the_tokens_of_a_label_do_not_depend_on_what_follows(
    toy_model: Path, labels: list[str], is_apart: bool
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    pairs = [(f"{label}{text}", label) for label in labels for text in ("it", "ue", " the title", "")]
    found = features.opening_tokens(tokenizer, *zip(*pairs, strict=True))
    assert (found is not None) == is_apart
    if found is None:
        return
    for answer, label in pairs:
        ids = found[label]
        assert tuple(encode_text(tokenizer, answer))[: len(ids)] == ids
        assert label.startswith(tokenizer.decode(ids))


def test_what_begins_with_a_label_is_told_from_what_does_not() -> None:
    texts = [f"it is {i} of {i * 7 % 31}" for i in range(40)]
    layouts = {
        "{}: {}": ("A: ", "B: "),
        "{}\n{}": ("A\n", "B\n"),
        "answer: {}\nwhy: {}": ("answer: A\n", "answer: B\n"),
        '{{"answer": "{}", "why": "{}"}}': ('{"answer": "A", ', '{"answer": "B", '),
        "[[ ## answer ## ]]\n{}\n\n[[ ## why ## ]]\n{}": ("[[ ## answer ## ]]\nA\n", "[[ ## answer ## ]]\nB\n"),
        "{1}\n{0}": (),
        "{1}: {0}": (),
        "{1}": (),
    }
    for layout, openings in layouts.items():
        task = task_of_answers([layout.format("AB"[i % 2], text) for i, text in enumerate(texts)])
        assert (task.kind, task.openings) == ("text", openings), layout
    # A label whose text is missing in a row is no label before a text.
    assert task_of_answers([*(f"{'AB'[i % 2]}: {text}" for i, text in enumerate(texts)), "A: "]).openings == ()


def test_a_plan_says_the_recipe_of_preferences_and_refuses_a_wrong_one(tmp_path: Path, real: ToyServer) -> None:
    path = tmp_path / "dpo.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in dpo_rows(20)))
    host = ft.Host.local(real.url)
    made = ft.plan(path, base_model="toy", host=host, allow_unknown_model=True)
    assert made.choice is not None
    assert made.choice.recipe == "head+lora"
    assert ft.plan(path, base_model="toy", host=host, allow_unknown_model=True, hyperparameters={"recipe": "lora"})
    with pytest.raises(DataError, match='The recipe "head" needs labels or numbers, but every answer begins'):
        ft.plan(path, base_model="toy", host=host, allow_unknown_model=True, hyperparameters={"recipe": "head"})
    with pytest.raises(UsageError, match="jobs of the local host have it"):
        ft.plan(path, base_model="gpt-4.1-2025-04-14", host=ft.Host.openai(), hyperparameters={"recipe": "lora"})


def test_a_label_that_a_form_forbids_is_left_to_the_model() -> None:
    class Guide:
        def __init__(self, *tokens: int) -> None:
            self.tokens = tokens

        def allowed(self, n_tokens: int) -> list[bool]:
            return [token in self.tokens for token in range(n_tokens)]

    import torch

    opening: dict[tuple[int, ...], float] = {(1, 3): math.log(0.9), (2, 3): math.log(0.1)}
    settings = sampling.Settings(max_tokens=4, temperature=0, n_top=5)
    for tokens, expected, n_top in (((0, 1, 2, 4), 1, 2), ((0, 2, 4), 2, 1), ((0, 4), 4, 5)):
        guide: Any = Guide(*tokens)
        answer = sampling.Answer(settings=settings, generator=None, guide=guide, opening=sampling.Opening(opening))
        logits = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "from_numpy", torch.tensor)
            [token] = sampling.choose(logits, [answer])
        assert isinstance(token, sampling.Token)
        assert (token.id, len(token.top)) == (expected, n_top)


def test_the_likeliest_label_is_written_where_two_others_begin_alike() -> None:
    import torch

    opening: dict[tuple[int, ...], float] = {(1, 3): math.log(0.3), (1, 4): math.log(0.3), (2, 3): math.log(0.4)}

    def write(**options: Any) -> list[sampling.Token]:
        settings = sampling.Settings(max_tokens=4, n_top=5, **{"temperature": 0, **options})
        answer = sampling.Answer(settings=settings, generator=sampling.seeded(1, 0), opening=sampling.Opening(opening))
        for _ in range(2):
            [token] = sampling.choose(torch.zeros(1, 6), [answer])
            assert isinstance(token, sampling.Token)
            answer.tokens.append(token)
        return answer.tokens

    first, last = write()
    assert (first.id, last.id) == (2, 3)
    assert first.logprob == pytest.approx(math.log(0.4), abs=1e-6)
    assert [token for token, _ in first.top] == [1, 2]
    assert [math.exp(value) for _, value in first.top] == pytest.approx([0.6, 0.4])
    biased = write(logit_bias=((2, -100.0), (3, -100.0)))
    assert [token.id for token in biased] == [1, 4]
    assert sum(token.logprob for token in biased) == pytest.approx(math.log(0.3), abs=1e-6)


def test_preferences_without_a_label_of_the_head_leave_it_its_labels(toy_model: Path, tmp_path: Path) -> None:
    rows = sft_rows(40)
    for row in rows[::4]:
        row["messages"][-1]["content"] = row["messages"][-1]["content"].replace("no: ", "perhaps: ")
    before = features.train_opening(spec(toy_model, tmp_path / "sft", "sft", rows), emit=print, should_stop=bool)
    job = spec(toy_model, tmp_path / "dpo", "dpo", dpo_rows(12), start_head=before.head)
    after = features.train_opening(job, emit=print, should_stop=bool)
    assert before.head is not None
    assert after.head is not None
    assert (after.head / "head.json").read_text() == (before.head / "head.json").read_text()


def test_the_tokens_of_a_label_are_looked_for_at_the_beginning_alone(toy_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    n_decoded: list[int] = []

    class Counted:
        def decode(self, ids: Any, **options: Any) -> str:
            n_decoded.append(len(ids))
            return str(tokenizer.decode(ids, **options))

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, *given: Any, **options: Any) -> Any:
            return tokenizer(*given, **options)

    labels = ["yes: ", "no: "]
    assert features.opening_tokens(Counted(), [label + "title " * 200 for label in labels], labels)
    assert max(n_decoded) <= max(map(len, labels)) + 1


def test_preferences_whose_content_is_in_parts_are_read(toy_model: Path, tmp_path: Path) -> None:
    rows = dpo_rows(6)
    parts = [
        {
            **row,
            **{
                key: [{**row[key][0], "content": [{"type": "text", "text": row[key][0]["content"]}]}]
                for key in ("preferred_output", "non_preferred_output")
            },
        }
        for row in rows
    ]
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    of_parts, of_texts = (
        spec(toy_model, tmp_path / name, "dpo", given).train_file for name, given in (("a", parts), ("b", rows))
    )
    assert rows_of(of_parts) == rows_of(of_texts)
    assert load_dpo_rows(tokenizer, of_parts).to_list() == load_dpo_rows(tokenizer, of_texts).to_list()


def test_a_form_that_nothing_fits_costs_no_other_answer_its_token() -> None:
    import torch

    class Guide:
        def allowed(self, n_tokens: int) -> list[bool]:
            raise ApiError(400, "no JSON value fits")

    opening: dict[tuple[int, ...], float] = {(1, 3): math.log(0.9), (2, 3): math.log(0.1)}
    guides: list[Any] = [Guide(), None]
    answers = [
        sampling.Answer(
            settings=sampling.Settings(max_tokens=4, temperature=0),
            generator=None,
            guide=guide,
            opening=sampling.Opening(opening),
        )
        for guide in guides
    ]
    refused, token = sampling.choose(torch.zeros(2, 5), answers)
    assert isinstance(refused, ApiError)
    assert isinstance(token, sampling.Token)
    assert token.id == 1
