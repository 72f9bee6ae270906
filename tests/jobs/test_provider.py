"""DSPy's optimizers train through the library: one paid job, a live model in the program, errors that are errors."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from dspy.teleprompt import BetterTogether, BootstrapFinetune

from dspy_finetune.errors import BudgetError, DataError, JobError, JobFailedError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.optimizers import FinetuneProvider, attach_adapter, load_program
from dspy_finetune.optimizers.provider import TunedLM, TunedPredict
from dspy_finetune.prompts import as_adapter, binary
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import FakeTime

BASE = "gpt-4.1-mini-2025-04-14"
CREATE = "POST /fine_tuning/jobs"
PROMPT = binary("Likes sailing.")
# The sentence that DSPy's ChatAdapter reads.
CHAT_REPLY = "[[ ## is_favorite ## ]]\ntrue\n\n[[ ## completed ## ]]"

pytestmark = pytest.mark.filterwarnings("ignore:.*dspy.LM.*:DeprecationWarning")


def examples(n: int = 14) -> list[dspy.Example]:
    return [dspy.Example(title=f"Boat {i}", is_favorite=True).with_inputs("title") for i in range(n)]


def right(example: Any, prediction: Any, trace: object = None) -> bool:
    return bool(prediction.is_favorite == example.is_favorite)


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    yield server
    server.close()


@pytest.fixture
def provider(host: Host, time: FakeTime) -> FinetuneProvider:
    return FinetuneProvider(host=host, suffix="boats", seed=3)


@pytest.fixture
def plain_prompt() -> Iterator[None]:
    with dspy.context(adapter=as_adapter(PROMPT)):
        yield


def program_of(provider: FinetuneProvider) -> Any:
    program = dspy.Predict(PROMPT.signature)
    program.set_lm(provider.lm(BASE, temperature=0.0, max_tokens=8, cache=False))
    return program


def bodies(fake: FakeOpenAI, route: str) -> list[Any]:
    return [body for name, body in fake.requests if name == route]


@pytest.mark.usefixtures("plain_prompt")
def test_bootstrap_finetune_gives_a_program_that_asks_the_hosts_tuned_model(
    provider: FinetuneProvider, fake: FakeOpenAI
) -> None:
    tuned = BootstrapFinetune(metric=right, num_threads=1).compile(program_of(provider), trainset=examples())
    assert tuned.lm.model == f"openai/ft:{BASE}:fake:boats:00000001"
    assert isinstance(tuned.lm, TunedLM)
    assert tuned.lm.host == provider.host
    assert (tuned.lm.kwargs["temperature"], tuned.lm.kwargs["max_tokens"]) == (0.0, 8)
    assert tuned(title="Boat 99").is_favorite is True
    assert bodies(fake, "POST /chat/completions")[-1]["model"] == f"ft:{BASE}:fake:boats:00000001"


@pytest.mark.usefixtures("plain_prompt")
def test_answers_that_could_not_be_read_are_not_trained_on(
    provider: FinetuneProvider, fake: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """BootstrapFinetune hands them over with a score of -1, which counts as good."""

    def answer(body: dict[str, Any]) -> str:
        return "perhaps" if body["messages"][-1]["content"].endswith("Boat 3") else "true"

    fake.answer = answer
    BootstrapFinetune(metric=right, num_threads=1).compile(program_of(provider), trainset=examples())
    rows = [json.loads(line)["messages"] for line in fake.contents["file-0001"].splitlines()]
    assert len(rows) == 13
    assert not [row for row in rows if "Boat 3" in row[-2]["content"]]
    assert "1 of 14 rows are left out" in caplog.text


@pytest.mark.usefixtures("plain_prompt")
def test_what_is_served_is_what_was_trained(provider: FinetuneProvider, fake: FakeOpenAI) -> None:
    """Byte for byte: the messages that the tuned model is asked with stand in its training file."""
    tuned = BootstrapFinetune(metric=right, num_threads=1).compile(program_of(provider), trainset=examples())
    tuned(title="Boat 3")
    asked = bodies(fake, "POST /chat/completions")[-1]["messages"]
    rows = [json.loads(line) for line in fake.contents["file-0001"].splitlines()]
    assert [*asked, {"role": "assistant", "content": "true"}] in [row["messages"] for row in rows]


@pytest.mark.usefixtures("plain_prompt")
def test_settings_go_to_the_host_and_the_same_rows_are_paid_once(host: Host, time: FakeTime, fake: FakeOpenAI) -> None:
    looks: list[str] = []
    provider = FinetuneProvider(
        host=host, suffix="s", seed=5, validation=0.2, hyperparameters={"n_epochs": 2},
        on_progress=lambda look: looks.append(look.status),
    )  # fmt: skip
    for _ in range(2):
        finetune = BootstrapFinetune(metric=right, num_threads=1, train_kwargs={"batch_size": 4})
        finetune.compile(program_of(provider), trainset=examples(20))
    (body,) = bodies(fake, CREATE)
    assert body["method"]["supervised"]["hyperparameters"] == {"n_epochs": 2, "batch_size": 4}
    assert (body["suffix"], body["seed"]) == ("s", 5)
    sizes = [len(fake.contents[body[name]].splitlines()) for name in ("training_file", "validation_file")]
    assert sizes == [16, 4]
    assert looks[-1] == "succeeded"


@pytest.mark.usefixtures("plain_prompt")
def test_a_failed_job_is_an_error_and_no_program(provider: FinetuneProvider, fake: FakeOpenAI) -> None:
    fake.script = ["running", "failed"]
    program = program_of(provider)
    with pytest.raises(JobFailedError, match="Line 3 is wrong") as caught:
        BootstrapFinetune(metric=right, num_threads=1).compile(program, trainset=examples())
    assert caught.value.job_id == "ftjob-0001"
    assert program.lm.model == f"openai/{BASE}"


@pytest.mark.usefixtures("plain_prompt")
def test_a_model_that_never_answers_is_not_handed_out(
    provider: FinetuneProvider, fake: FakeOpenAI, time: FakeTime
) -> None:
    program = program_of(provider)
    rows = [{"messages": PROMPT.training_messages(example)} for example in examples()]
    fake.fail("POST /chat/completions", status=404, times=99)
    job = program.lm.finetune(rows, "chat", {})
    with pytest.raises(JobError, match="does not serve it") as caught:
        job.result(60)
    assert caught.value.job_id == "ftjob-0001"
    assert sum(time.slept) >= 850


def test_rows_that_the_host_would_refuse_are_never_uploaded(provider: FinetuneProvider, fake: FakeOpenAI) -> None:
    rows = [{"messages": PROMPT.training_messages(example)} for example in examples(3)]
    job = provider.lm(BASE).finetune(rows, "chat", {})
    with pytest.raises(DataError, match="10"):
        job.result(60)
    assert not fake.requests


def test_the_budget_and_the_kind_of_rows_are_checked_first(host: Host, fake: FakeOpenAI) -> None:
    rows = [{"messages": PROMPT.training_messages(example)} for example in examples()]
    dear = FinetuneProvider(host=host, max_usd=0.0001).lm(BASE).finetune(rows, "chat", {})
    with pytest.raises(BudgetError, match=r"\$0\.0"):
        dear.result(60)
    other = FinetuneProvider(host=host, method="dpo").lm(BASE).finetune(rows, "chat", {})
    with pytest.raises(UsageError, match="to train dpo"):
        other.result(60)
    grouped = FinetuneProvider(host=host).lm(BASE).finetune(rows, "grpo_chat", {})
    with pytest.raises(UsageError, match="grpo_chat"):
        grouped.result(60)
    assert not fake.requests


def test_preference_rows_train_by_dpo(provider: FinetuneProvider, fake: FakeOpenAI) -> None:
    rows = [
        {
            "input": {"messages": PROMPT.messages(example)},
            "preferred_output": [{"role": "assistant", "content": "true"}],
            "non_preferred_output": [{"role": "assistant", "content": "false"}],
        }
        for example in examples()
    ]
    tuned = provider.lm(BASE).finetune(rows, None, {"beta": 0.2}).result(60)
    assert tuned.model.startswith("openai/ft:")
    assert bodies(fake, CREATE)[0]["method"]["dpo"]["hyperparameters"]["beta"] == 0.2


def test_a_handle_tells_its_job_and_cancels_it(provider: FinetuneProvider, fake: FakeOpenAI) -> None:
    fake.script = ["running"]
    rows = [{"messages": PROMPT.training_messages(example)} for example in examples()]
    hold = fake.hold("GET /fine_tuning/jobs/*/events", phase="before")
    provider.on_progress = lambda look: None
    job = provider.lm(BASE).finetune(rows, "chat", {})
    assert hold.reached.wait(60)
    assert job.status() == "running"
    assert job.cancel()
    hold.release()
    job.thread.join(60)
    assert job.cancelled()
    assert fake.jobs["ftjob-0001"]["status"] == "cancelled"


def test_a_plain_lm_is_pointed_at_the_host_by_launch(host: Host, fake: FakeOpenAI) -> None:
    provider = FinetuneProvider(host=host)
    lm = dspy.LM(f"openai/{BASE}", provider=provider)
    lm.launch()
    assert (lm.kwargs["api_base"], lm.kwargs["api_key"]) == (fake.url, "key-of-the-tests")
    own = dspy.LM(f"openai/{BASE}", provider=provider, api_key="mine")
    own.launch()
    assert "api_base" not in own.kwargs


def test_better_together_trains_and_keeps_the_better_program(host: Host, time: FakeTime, fake: FakeOpenAI) -> None:
    """The base model errs on the held-out titles, which are the first three; the tuned one does not."""

    def answer(body: dict[str, Any]) -> str:
        errs = any(f"Boat {i}\n" in body["messages"][-1]["content"] for i in range(3))
        return CHAT_REPLY.replace("true", "false") if errs and body["model"] == BASE else CHAT_REPLY

    fake.answer = answer
    provider = FinetuneProvider(host=host)
    program = dspy.Predict("title -> is_favorite: bool")
    program.set_lm(dspy.LM(f"openai/{BASE}", provider=provider, cache=False))
    optimizer = BetterTogether(metric=right, w=BootstrapFinetune(metric=right, num_threads=1))
    best = optimizer.compile(program, trainset=examples(15), valset_ratio=0.2, strategy="w", num_threads=1)
    assert [candidate["strategy"] for candidate in best.candidate_programs] == ["w", ""]
    assert [candidate["score"] for candidate in best.candidate_programs] == [100.0, 0.0]
    assert not best.flag_compilation_error_occurred
    assert best.lm.model == f"openai/ft:{BASE}:fake::00000001"
    assert best(title="Boat").is_favorite is True


def test_a_host_that_needs_a_deployment_asks_for_it_first(fake: FakeOpenAI) -> None:
    azure = Host.azure("https://example.openai.azure.com", api_key="k")
    with pytest.raises(UsageError, match="deploy="):
        FinetuneProvider(host=azure)
    FinetuneProvider(host=azure, deploy=lambda model: "my-deployment")


def test_another_prompt_than_the_trained_one_is_told(
    provider: FinetuneProvider, caplog: pytest.LogCaptureFixture, fake: FakeOpenAI
) -> None:
    """The trap of DSPy: rows are formatted by one adapter, the program is served with another."""
    adapter = as_adapter(PROMPT)
    rows = [{"messages": PROMPT.training_messages(example)} for example in examples()]
    lm = provider.lm(BASE, cache=False).finetune(rows, "chat", {}).result(60)
    program = dspy.Predict(PROMPT.signature)
    program.set_lm(lm)
    fake.reply = CHAT_REPLY
    with caplog.at_level(logging.WARNING, "dspy_finetune"):
        program(title="Boat")
    assert "attach_adapter" in caplog.text
    caplog.clear()
    fake.reply = "true"
    attach_adapter(program, adapter)
    assert program(title="Boat").is_favorite is True
    assert bodies(fake, "POST /chat/completions")[-1]["messages"] == PROMPT.messages({"title": "Boat"})
    assert not caplog.text


class Nested(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [dspy.Predict(PROMPT.signature)]
        self.why = dspy.ChainOfThought("title -> reason")

    def forward(self, title: str) -> Any:
        return self.steps[0](title=title)


@pytest.mark.parametrize("kind", ["prompt", "chat"])
def test_a_saved_program_comes_back_with_host_and_adapter(
    kind: Literal["prompt", "chat"], provider: FinetuneProvider, fake: FakeOpenAI, tmp_path: Path
) -> None:
    adapter = as_adapter(PROMPT) if kind == "prompt" else dspy.ChatAdapter()
    fake.reply = "true" if kind == "prompt" else CHAT_REPLY
    program = Nested()
    program.set_lm(provider.lm(f"ft:{BASE}:fake::1", cache=False))
    attach_adapter(program, adapter, predictors=["steps[0]"])
    program.save(tmp_path / "program.json")
    assert "key-of-the-tests" not in (tmp_path / "program.json").read_text()
    again = load_program(Nested(), tmp_path / "program.json")
    assert isinstance(again.steps[0], TunedPredict)
    assert again.steps[0].lm.host == provider.host
    assert type(again.why.predict) is dspy.Predict
    with dspy.context(adapter=dspy.JSONAdapter()):
        assert again(title="Boat").is_favorite is True
    program(title="Boat")
    first, second = bodies(fake, "POST /chat/completions")[-2:]
    assert first["messages"] == second["messages"]
    assert program.deepcopy().steps[0].adapter is not None


def test_an_adapter_of_ones_own_has_to_be_given_again(provider: FinetuneProvider, tmp_path: Path) -> None:
    class Own(dspy.ChatAdapter):
        pass

    program = dspy.Predict("title -> reason")
    program.set_lm(provider.lm(BASE))
    attach_adapter(program, Own())
    program.save(tmp_path / "program.json")
    with pytest.raises(UsageError, match="not DSPy's own"):
        load_program(dspy.Predict("title -> reason"), tmp_path / "program.json")


def test_only_plain_predictors_take_an_adapter() -> None:
    class Own(dspy.Predict):
        pass

    with pytest.raises(UsageError, match="is a Own"):
        attach_adapter(Own("title -> reason"))
    with pytest.raises(UsageError, match="no predictor named x"):
        attach_adapter(dspy.Predict("title -> reason"), predictors=["x"])
