"""A tuned model is made again on another host from what is recorded of it, and the new one is held against the old."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune.errors import BudgetError, DataError, UsageError
from dspy_finetune.evaluation.saved_programs import stored_answers
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import FinetunedModel, Plan, plan, sft_then_dpo
from dspy_finetune.migration import migrate, plan_migration
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import FakeTime, write_dpo, write_sft

BASE = "gpt-4.1-mini-2025-04-14"
CREATE = "POST /fine_tuning/jobs"
PROMPT = ft.prompts.binary("Likes sailing.")
ROWS = [{"title": f"{'Boat' if n % 2 else 'Tax'} {n}", "is_favorite": n % 2 == 1} for n in range(60)]

pytestmark = pytest.mark.filterwarnings("ignore:.*dspy.LM.*:DeprecationWarning")


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    """The old host."""
    server = FakeOpenAI()
    server.answer = answers_rightly
    yield server
    server.close()


@pytest.fixture
def other() -> Iterator[FakeOpenAI]:
    """The new host: a server of this package, by its address."""
    server = FakeOpenAI()
    server.answer = answers_rightly
    yield server
    server.close()


@pytest.fixture
def new_host(other: FakeOpenAI) -> Iterator[Host]:
    one = Host.local(other.url)
    yield one
    one.close()


def answers_rightly(body: dict[str, Any]) -> str:
    return "true" if "Boat" in body["messages"][-1]["content"] else "false"


def bodies(fake: FakeOpenAI) -> list[Any]:
    return [body for route, body in fake.requests if route == CREATE]


@pytest.fixture
def made(host: Host, tmp_path: Path) -> Plan:
    data = ft.export_sft(ROWS[:20], PROMPT, tmp_path / "train.jsonl", base_model=BASE)
    held_out = ft.export_sft(ROWS[20:32], PROMPT, tmp_path / "validation.jsonl", base_model=BASE)
    return plan(
        data, validation=held_out, base_model=BASE, host=host, suffix="taste", seed=5,
        hyperparameters={"n_epochs": 4, "learning_rate_multiplier": 0.5},
    )  # fmt: skip


@pytest.fixture
def old(made: Plan, time: FakeTime) -> FinetunedModel:
    return made.start().wait()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Leaves this machine's journal behind."""
    return lambda: monkeypatch.setenv("DSPY_FINETUNE_HOME", str(tmp_path / "elsewhere"))


def test_the_recorded_data_prompt_and_hyperparameters_are_used_again(
    old: FinetunedModel, made: Plan, new_host: Host, fake: FakeOpenAI, other: FakeOpenAI, time: FakeTime
) -> None:
    before = len(fake.requests)
    migration = migrate(old.id, to=new_host)
    moved = migration.start(max_usd=0.0).wait()
    assert len(fake.requests) == before, "the old host may be closed: what the journal knows is not asked for"
    (body,) = bodies(other)
    assert body["model"] == "smollm2-135m-instruct"
    assert body["method"]["supervised"]["hyperparameters"] == {"n_epochs": 4, "learning_rate_multiplier": 0.5}
    assert (body["suffix"], body["seed"]) == ("taste", 5)
    assert other.contents[body["training_file"]] == made.train.path.read_bytes()
    assert made.validation is not None
    assert other.contents[body["validation_file"]] == made.validation.path.read_bytes()
    assert (moved.data_sha256, moved.prompt_digest) == (old.data_sha256, PROMPT.digest)
    again = migrate(old.id, to=new_host).start().wait()
    assert (again.id, len(other.jobs)) == (moved.id, 1)


def test_a_recorded_value_that_the_new_host_refuses_is_told_and_left_to_it(
    made: Plan, host: Host, time: FakeTime
) -> None:
    """30 epochs are no reason to refuse the move to a host that takes 20 at most; given by hand, they are one."""
    old = (
        plan(made.train, base_model=BASE, host=host, hyperparameters={"n_epochs": 30, "batch_size": 64}).start().wait()
    )
    planned = plan_migration(old, to=Host.nebius())
    assert planned.plans[0].n_epochs == 5
    assert {one.name: one.value for one in planned.plans[0].hyperparameters}["batch_size"] == 64
    assert "n_epochs=30: nebius does not take that value, and another is chosen" in planned.warnings
    with pytest.raises(UsageError, match="n_epochs=30"):
        plan_migration(old, to=Host.nebius(), hyperparameters={"n_epochs": 30})
    with pytest.raises(UsageError, match="is not known to train gpt"):
        migrate(old, to=Host.nebius(), base_model="gpt-4.1-nano-2025-04-14")
    newer = migrate(old, to=Host.nebius(), base_model="gpt-4.1-nano-2025-04-14", allow_unknown_model=True)
    assert newer.plan.plans[0].base_model == "gpt-4.1-nano-2025-04-14"


def test_a_job_is_as_good_a_name_as_its_model(
    old: FinetunedModel, new_host: Host, made: Plan, fake: FakeOpenAI, time: FakeTime
) -> None:
    before = len(fake.requests)
    planned = plan_migration(str(old.job_id), to=new_host)
    assert (planned.old.model, planned.old.base_model, len(fake.requests)) == (old.id, BASE, before)
    fake.script = ["failed"]
    failed = made.start(new=True)
    with pytest.raises(ft.errors.JobFailedError):
        failed.wait()
    with pytest.raises(UsageError, match="made no model"):
        plan_migration(failed.id, to=new_host)


@pytest.mark.parametrize("named", ["model", "job", "value"])
def test_without_journal_and_files_the_old_host_is_asked(
    named: str, old: FinetunedModel, made: Plan, new_host: Host, elsewhere: Callable[[], None], other: FakeOpenAI,
    host: Host, time: FakeTime,
) -> None:  # fmt: skip
    elsewhere()
    content = made.train.path.read_bytes()
    for path in made.train.path.parent.glob("*.jsonl"):
        path.unlink()
    what: dict[str, Any] = {"model": old.id, "job": old.job_id, "value": old}
    planned = plan_migration(what[named], to=new_host, host=host if named == "job" else None)
    assert planned.old.train.read_bytes() == content
    assert planned.old.validation is not None
    assert "learning_rate_multiplier: known only as the old host settled it" in " ".join(planned.warnings)
    planned.start().wait()
    # The small host says that it took 3 epochs.
    assert bodies(other)[0]["method"]["supervised"]["hyperparameters"] == {"n_epochs": 3}


def test_a_journal_of_the_first_schema_is_enough_with_the_file(
    old: FinetunedModel, made: Plan, new_host: Host, time: FakeTime
) -> None:
    path = Path(os.environ["DSPY_FINETUNE_HOME"]) / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["v"] = 1
        for name in ("suffix", "seed", "data_sha256"):
            line.pop(name, None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    planned = plan_migration(old.id, to=new_host)
    assert (planned.old.train, planned.old.suffix, planned.old.base_model) == (made.train.path, "taste", BASE)


def test_with_the_file_the_name_is_enough_where_the_old_host_has_closed(
    old: FinetunedModel, made: Plan, new_host: Host, fake: FakeOpenAI, elsewhere: Callable[[], None], tmp_path: Path
) -> None:
    elsewhere()
    fake.fail("GET /fine_tuning/jobs", status=403, times=9)
    planned = plan_migration(old.id, to=new_host, train=made.train.path)
    assert (planned.old.base_model, planned.old.method, planned.old.suffix) == (BASE, "sft", "taste")
    assert planned.plans[0].train.prompt_digest == PROMPT.digest
    assert "the base is read off the model's name" in " ".join(planned.warnings)
    pairs = write_dpo(tmp_path / "pairs.jsonl")
    assert plan_migration(old.id, to=new_host, train=pairs).old.method == "dpo"


def test_a_model_tuned_from_a_tuned_one_is_made_again_from_the_start(
    host: Host, new_host: Host, other: FakeOpenAI, time: FakeTime, tmp_path: Path
) -> None:
    first = sft_then_dpo(
        write_dpo(tmp_path / "pairs.jsonl"), base_model=BASE, host=host, dpo_hyperparameters={"beta": 0.3}
    )
    old = first.start().wait()
    planned = plan_migration(old.id, to=new_host)
    assert [one.method for one in planned.plans] == ["sft", "dpo"]
    moved = planned.start(max_usd=0.0).wait()
    one, two = bodies(other)
    assert (one["model"], two["model"]) == ("smollm2-135m-instruct", "ft:smollm2-135m-instruct:fake::00000001")
    assert two["method"]["dpo"]["hyperparameters"]["beta"] == 0.3
    assert moved.method == "dpo"


def test_what_cannot_be_found_is_said_with_what_to_give(
    old: FinetunedModel, made: Plan, new_host: Host, host: Host, fake: FakeOpenAI, time: FakeTime,
    elsewhere: Callable[[], None], tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(DataError, match="not the file that"):
        plan_migration(old.id, to=new_host, train=write_sft(tmp_path / "other.jsonl"))
    with pytest.raises(UsageError, match="already"):
        plan_migration(old.id, to=host)
    elsewhere()
    with pytest.raises(UsageError, match="nobody knows how"):
        plan_migration("ft:gpt-4.1-mini-2025-04-14:fake::nobody00", to=new_host)
    with pytest.raises(UsageError, match="--from"):
        plan_migration("gpt-4.1-2025-04-14.ft-0123456789abcdef0123456789abcdef", to=new_host)
    made.train.path.unlink()
    fake.fail("GET /files/*/content", status=403, times=9)
    with pytest.raises(UsageError, match=r"403.*--train"):
        plan_migration(old.id, to=new_host)


def test_a_price_that_nobody_knows_and_a_model_that_nobody_named(
    old: FinetunedModel, other: FakeOpenAI, time: FakeTime
) -> None:
    there = Host.compatible(other.url, "k", name="there")
    with pytest.raises(UsageError, match="base_model"):
        plan_migration(old.id, to=there)
    planned = plan_migration(old.id, to=there, base_model="llama")
    with pytest.raises(BudgetError, match="allow_unknown_price"):
        planned.start()
    assert not bodies(other)
    assert planned.start(allow_unknown_price=True).wait().id.startswith("ft:llama:")


def test_another_hosts_form_of_file_is_written(old: FinetunedModel, made: Plan, time: FakeTime) -> None:
    azure = Host.azure("https://example.openai.azure.com", "k")
    planned = plan_migration(old.id, to=azure)
    assert planned.plans[0].base_model == BASE
    assert planned.plans[0].train.path.read_bytes() == b"\xef\xbb\xbf" + made.train.path.read_bytes()
    assert planned.plans[0].train.prompt_digest == PROMPT.digest


# ---- new against old


@pytest.fixture
def unseen() -> list[dspy.Example]:
    return [dspy.Example(row).with_inputs("title") for row in ROWS[32:]]


def test_a_new_model_that_is_worse_is_said_to_be(
    old: FinetunedModel, new_host: Host, other: FakeOpenAI, time: FakeTime, unseen: list[dspy.Example]
) -> None:
    other.answer = lambda body: "true"
    migration = migrate(old, to=new_host)
    moved = migration.start().wait()
    report = migration.compare(moved, unseen)
    assert (report.outcome, report.exit_code) == ("worse", 4)
    assert [row.name for row in report.rows] == ["new", "old"]
    assert [row.scores["accuracy"].value for row in report.rows] == [0.5, 1.0]


def test_answers_of_before_stand_in_for_a_model_that_is_gone(
    old: FinetunedModel, new_host: Host, fake: FakeOpenAI, time: FakeTime, unseen: list[dspy.Example],
    tmp_path: Path,
) -> None:  # fmt: skip
    kept = tmp_path / "before.json"
    fake.answer = lambda body: "perhaps" if "Boat 33" in body["messages"][-1]["content"] else answers_rightly(body)
    before = ft.compare({"tuned": ft.OpenAIPredictor(PROMPT, old)}, unseen[:20], [ft.metrics.accuracy("is_favorite")])
    before.to_json(kept)
    fake.models.clear()
    migration = migrate(old, to=new_host)
    moved = migration.start().wait()
    with pytest.raises(UsageError, match="--stored"):
        migration.compare(moved, unseen)
    n_asked = fake.count("POST /chat/completions")
    report = migration.compare(moved, unseen, stored=kept, margin=0.2)
    assert fake.count("POST /chat/completions") == n_asked
    assert [(row.n, row.n_parse_failures) for row in report.rows] == [(20, 0), (20, 1)]
    assert report.outcome != "worse"
    with pytest.raises(UsageError, match="none of the items"):
        migration.compare(moved, unseen[20:], stored=kept)
    with pytest.raises(UsageError, match=r"before\.json.*tuned"):
        stored_answers(kept, "nobody")
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(DataError, match="not a report"):
        stored_answers(tmp_path / "no.json")


def test_without_examples_the_file_that_was_measured_on_decides(
    old: FinetunedModel, new_host: Host, time: FakeTime
) -> None:
    migration = migrate(old, to=new_host)
    report = migration.compare(migration.start().wait())
    assert [(row.n, *(one.value for one in row.scores.values())) for row in report.rows] == [(12, 1.0), (12, 1.0)]


def test_a_saved_predictor_moves_with_its_settings(
    old: FinetunedModel, new_host: Host, time: FakeTime, tmp_path: Path
) -> None:
    predictor = ft.OpenAIPredictor(PROMPT, old, threshold=0.7, max_tokens=3)
    predictor.save(tmp_path / "old.json")
    migration = migrate(tmp_path / "old.json", to=new_host)
    moved = migration.start().wait()
    migration.new_predictor(moved).save(tmp_path / "new.json")
    again = ft.load_predictor(tmp_path / "new.json")
    assert isinstance(again, ft.OpenAIPredictor)
    assert (again.threshold, again.max_tokens, again.prompt.digest) == (0.7, 3, PROMPT.digest)
    assert (again.model, again.host) == (moved.id, new_host)
    assert again(title="Boat 1").is_favorite is True


def test_a_file_without_its_prompt_is_compared_as_it_stands(
    host: Host, new_host: Host, time: FakeTime, tmp_path: Path
) -> None:
    made = plan(write_sft(tmp_path / "bare.jsonl"), base_model=BASE, host=host)
    migration = migrate(made.start().wait().id, to=new_host)
    assert "has no manifest" in " ".join(migration.plan.warnings)
    page = migration.markdown()
    assert str(migration).splitlines()[0].removesuffix(":") in page.replace("\\", "")
    assert f"1. {migration.plan.plans[0]}" in page
    with pytest.raises(UsageError, match="saved predictor"):
        migration.new_predictor("ft:x")
    with pytest.raises(UsageError, match="nothing to compare on"):
        migration.compare("ft:x")
