"""PreferenceFinetune: pairs from a program's own runs, one paid job, tuned predictors served as they were trained."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.teleprompt import BetterTogether

from dspy_finetune.errors import BudgetError, DataError, EmptyDatasetError, JobFailedError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import attach
from dspy_finetune.optimizers import PreferenceFinetune, PreferenceOptions
from dspy_finetune.optimizers.provider import TunedPredict
from dspy_finetune.prompts import PromptFormat, as_adapter, binary
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import FakeTime
from tests.local.toy import build_toy_model
from tests.local.toy_server import start_server

BASE = "gpt-4.1-mini-2025-04-14"
CREATE = "POST /fine_tuning/jobs"
PROMPT = binary("Likes sailing.")


def examples(n: int = 15) -> list[dspy.Example]:
    return [dspy.Example(title=f"Boat {i}", is_favorite=i % 2 == 0).with_inputs("title") for i in range(n)]


def right(example: Any, prediction: Any, trace: object = None) -> bool:
    return bool(prediction.is_favorite == example.is_favorite)


def number_of(body: dict[str, Any]) -> int:
    found = re.search(r"Boat (\d+)", body["messages"][-1]["content"])
    return int(found[1]) if found else 0


class Reader:
    """A model of two minds: the base answers true, false or nothing readable in turn; the tuned one is right."""

    def __init__(self) -> None:
        self.n_asked = 0

    def __call__(self, body: dict[str, Any]) -> str:
        if body["model"].startswith("ft:"):
            return "true" if number_of(body) % 2 == 0 else "false"
        self.n_asked += 1
        return ("true", "false", "Well, it depends")[self.n_asked % 3]


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    server.answer = Reader()
    yield server
    server.close()


@pytest.fixture
def program(host: Host) -> Any:
    made = dspy.Predict(PROMPT.signature)
    made.set_lm(host.lm(BASE, max_tokens=8, cache=False))
    return made


def finetune(time: FakeTime, **options: Any) -> PreferenceFinetune:
    names = {field.name for field in dataclasses.fields(PreferenceOptions)}
    rare = {"adapter": as_adapter(PROMPT)} | {name: options.pop(name) for name in names & set(options)}
    return PreferenceFinetune(right, options=PreferenceOptions(**rare), **options)


def rows(fake: FakeOpenAI, file: str = "file-0001") -> list[Any]:
    return [json.loads(line) for line in fake.contents[file].splitlines()]


def bodies(fake: FakeOpenAI, route: str = CREATE) -> list[Any]:
    return [body for name, body in fake.requests if name == route]


def test_a_copy_with_a_tuned_model_comes_back_and_the_student_stays(
    program: Any, fake: FakeOpenAI, time: FakeTime
) -> None:
    tuned = finetune(time, suffix="taste", hyperparameters={"beta": 0.3}).compile(
        program, trainset=examples(), valset=examples(6)
    )
    assert tuned.lm.model == f"openai/ft:{BASE}:fake:taste:00000001"
    assert (type(tuned), type(program)) == (TunedPredict, dspy.Predict)
    assert program.lm.model == f"openai/{BASE}"
    assert [tuned(title=f"Boat {i}").is_favorite for i in range(4)] == [True, False, True, False]
    assert tuned.tuning.score_after == 1.0
    assert tuned.tuning.score_before < 1.0
    assert tuned.tuning.models["self"].prompt_digest == PROMPT.digest
    (body,) = bodies(fake)
    assert body["method"]["dpo"]["hyperparameters"]["beta"] == 0.3


def test_the_metric_chooses_and_unreadable_answers_are_worse_ones(
    program: Any, fake: FakeOpenAI, time: FakeTime
) -> None:
    """Each line: the prompt as served, the answer that the metric likes, and one that it does not, read or not."""
    tuned = finetune(time).compile(program, trainset=examples())
    lines = rows(fake)
    by_user = {PROMPT.messages(example)[-1]["content"]: example for example in examples()}
    rejected = set()
    for line in lines:
        example = by_user[line["input"]["messages"][-1]["content"]]
        assert line["input"]["messages"] == PROMPT.messages(example)
        assert line["preferred_output"][0]["content"] == PROMPT.completion(example)
        rejected.add(line["non_preferred_output"][0]["content"])
    assert rejected == {"true", "false", "Well, it depends"}
    assert tuned.tuning.n_pairs == {"self": len(lines)}


def test_unreadable_answers_can_be_left_out(program: Any, fake: FakeOpenAI, time: FakeTime) -> None:
    tuned = finetune(time, parse_failure_score=None).compile(program, trainset=examples())
    assert {line["non_preferred_output"][0]["content"] for line in rows(fake)} == {"true", "false"}
    assert tuned.tuning.skipped["run failed"] > 0


def test_the_tuned_program_ignores_the_adapter_of_the_moment(program: Any, fake: FakeOpenAI, time: FakeTime) -> None:
    tuned = finetune(time).compile(program, trainset=examples())
    with dspy.context(adapter=dspy.JSONAdapter()):
        tuned(title="Boat 3")
    assert bodies(fake, "POST /chat/completions")[-1]["messages"] == PROMPT.messages({"title": "Boat 3"})


def test_compiling_again_pays_nothing(program: Any, fake: FakeOpenAI, time: FakeTime) -> None:
    program.set_lm(program.lm.copy(cache=True))
    first = finetune(time).compile(program, trainset=examples())
    again = finetune(time).compile(program, trainset=examples())
    assert again.lm.model == first.lm.model
    assert (len(bodies(fake)), fake.count("POST /files")) == (1, 1)


def test_too_few_pairs_are_an_error_before_anything_is_uploaded(program: Any, fake: FakeOpenAI, time: FakeTime) -> None:
    with pytest.raises(DataError, match=r"only 4 different pairs came of 4 examples with 4 samples.*10 are needed"):
        finetune(time).compile(program, trainset=examples(4))
    fake.answer = lambda body: "true"
    with pytest.raises(DataError, match="all answers alike: 15"):
        finetune(time).compile(program, trainset=examples())
    with pytest.raises(EmptyDatasetError):
        finetune(time).compile(program, trainset=[])
    assert not bodies(fake)
    assert not fake.files


def test_the_budget_holds_over_all_jobs(program: Any, fake: FakeOpenAI, time: FakeTime) -> None:
    with pytest.raises(BudgetError):
        finetune(time, max_usd=0.0001, method="sft_then_dpo").compile(program, trainset=examples())
    assert not fake.files


def test_a_failed_job_leaves_no_program(program: Any, fake: FakeOpenAI, time: FakeTime) -> None:
    fake.script = ["failed"]
    with pytest.raises(JobFailedError, match="Line 3"):
        finetune(time).compile(program, trainset=examples())


def test_sft_then_dpo_trains_the_preferred_answers_first(program: Any, fake: FakeOpenAI, time: FakeTime) -> None:
    tuned = finetune(time, method="sft_then_dpo", sft_hyperparameters={"n_epochs": 1}).compile(
        program, trainset=examples()
    )
    first, second = bodies(fake)
    assert (first["method"]["type"], second["method"]["type"]) == ("supervised", "dpo")
    assert second["model"] == f"ft:{BASE}:fake::00000001"
    assert tuned.lm.model.endswith(":00000002")
    for line in rows(fake, first["training_file"]):
        assert line["messages"][-1]["content"] in {"true", "false"}


class TwoSteps(dspy.Module):
    """The first step names the boat, the second judges it."""

    def __init__(self) -> None:
        super().__init__()
        self.name = dspy.Predict("title -> boat")
        self.judge = dspy.ChainOfThought("boat -> is_favorite: bool")

    def forward(self, title: str) -> Any:
        boat = self.name(title=title).boat
        return dspy.Prediction(boat=boat, is_favorite=self.judge(boat=boat).is_favorite)


class Chatter:
    """Two steps in DSPy's own layout. A boat that is called a ship is never judged; else the judge errs in turn."""

    def __init__(self) -> None:
        self.n_named = self.n_judged = 0

    def __call__(self, body: dict[str, Any]) -> str:
        number = number_of(body)
        if body["messages"][-1]["content"].startswith("[[ ## title"):
            self.n_named += 1
            name = "Ship" if self.n_named % 3 == 0 else "Boat"
            return f"[[ ## boat ## ]]\n{name} {number}\n\n[[ ## completed ## ]]"
        self.n_judged += 1
        is_favorite = (number % 2 == 0) == (self.n_judged % 2 == 0)
        return f"[[ ## reasoning ## ]]\nSo.\n\n[[ ## is_favorite ## ]]\n{is_favorite}\n\n[[ ## completed ## ]]"


def right_boat(example: Any, prediction: Any, trace: object = None) -> bool:
    return right(example, prediction) and prediction.boat.startswith("Boat")


@pytest.mark.parametrize(("multitask", "n_jobs"), [(True, 1), (False, 2)])
def test_each_predictor_of_a_program_learns_from_its_own_pairs(
    host: Host, fake: FakeOpenAI, time: FakeTime, multitask: bool, n_jobs: int
) -> None:
    fake.answer = Chatter()
    program = TwoSteps()
    program.set_lm(host.lm(BASE, cache=False))
    optimizer = PreferenceFinetune(right_boat, n_samples=6, options=PreferenceOptions(multitask=multitask))
    tuned = optimizer.compile(program, trainset=examples())
    assert set(tuned.tuning.models) == {"name", "judge.predict"}
    assert len(bodies(fake)) == n_jobs
    files = [row for body in bodies(fake) for row in rows(fake, body["training_file"])]
    named = [row for row in files if row["input"]["messages"][-1]["content"].startswith("[[ ## title")]
    assert {row["preferred_output"][0]["content"].split()[5] for row in named} == {"Boat"}
    assert {row["non_preferred_output"][0]["content"].split()[5] for row in named} == {"Ship"}
    assert len(named) == tuned.tuning.n_pairs["name"]
    assert (tuned.name.lm is tuned.judge.predict.lm) == multitask
    asked = next(row["input"]["messages"] for row in files if row not in named)
    tuned.judge(boat=re.findall(r"Boat \d+", asked[-1]["content"])[0])
    assert bodies(fake, "POST /chat/completions")[-1]["messages"] == asked


def test_the_predictors_to_tune_can_be_named(host: Host, fake: FakeOpenAI, time: FakeTime) -> None:
    fake.answer = Chatter()
    program = TwoSteps()
    program.set_lm(host.lm(BASE, cache=False))
    optimizer = PreferenceFinetune(right_boat, n_samples=6, options=PreferenceOptions(predictors=["name"]))
    tuned = optimizer.compile(program, trainset=examples())
    assert set(tuned.tuning.models) == {"name"}
    assert tuned.judge.predict.lm.model == f"openai/{BASE}"
    assert type(tuned.judge.predict) is dspy.Predict


def test_arguments_are_checked(program: Any, time: FakeTime) -> None:
    with pytest.raises(UsageError, match="choose"):
        PreferenceFinetune(right, method="ppo")  # type: ignore[arg-type]  # the error is the test
    with pytest.raises(UsageError, match="sft_hyperparameters"):
        PreferenceFinetune(right, options=PreferenceOptions(sft_hyperparameters={"n_epochs": 1}))
    with pytest.raises(UsageError, match="num_trials"):
        finetune(time).compile(program, trainset=examples(), num_trials=3)
    with pytest.raises(UsageError, match="no language model"):
        finetune(time).compile(dspy.Predict(PROMPT.signature), trainset=examples())
    other = dspy.Predict(PROMPT.signature)
    other.set_lm(dspy.LM("openai/some-model", api_key="k"))
    with pytest.raises(UsageError, match="where to train"):
        finetune(time).compile(other, trainset=examples())


def test_it_is_a_step_of_better_together(program: Any, fake: FakeOpenAI, time: FakeTime) -> None:
    optimizer = BetterTogether(metric=right, d=finetune(time))
    with dspy.context(adapter=as_adapter(PROMPT)):
        best = optimizer.compile(program, trainset=examples(20), valset_ratio=0.25, strategy="d", num_threads=1)
    assert not best.flag_compilation_error_occurred
    assert best.candidate_programs[0]["strategy"] == "d"
    assert best.candidate_programs[0]["score"] == 100.0
    assert best.lm.model.startswith("openai/ft:")


def test_on_the_local_server_from_samples_to_answers(tmp_path: Path) -> None:
    """The whole way over HTTP: samples of a random model, a DPO job in its worker, answers of the tuned one."""
    pytest.importorskip("torch", reason="the local host needs the extra `local`")
    server = start_server(tmp_path / "root", build_toy_model(tmp_path / "toy"))
    try:
        host = Host.local(server.url)
        prompt = PromptFormat("question -> answer", system="Answer.", user="{question}")
        program = dspy.Predict(prompt.signature)
        program.set_lm(host.lm("toy", max_tokens=8))
        optimizer = PreferenceFinetune(
            lambda example, prediction: float(len(prediction.answer)),
            options=PreferenceOptions(adapter=as_adapter(prompt)),
            num_threads=2,
        )
        questions = [dspy.Example(question=f"Title: {i}").with_inputs("question") for i in range(14)]
        tuned = optimizer.compile(program, trainset=questions)
        model = tuned.tuning.models["self"]
        assert re.fullmatch(r"ft:toy:local::\w{8}", model.id)
        assert model.method == "dpo"
        assert attach(str(model.job_id), host=host).status == "succeeded"
        assert tuned(question="Title: 3").answer is not None
        assert tuned.lm.model == f"openai/{model.id}"
        host.close()
    finally:
        server.stop()
