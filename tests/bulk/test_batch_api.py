"""Batches: cut within the limits, joined by custom id, at most one for each file, across every kind of end."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dspy_finetune as ft
from dspy_finetune import bulk
from dspy_finetune.bulk import batch_api
from dspy_finetune.bulk.batch_api import BatchLimits
from dspy_finetune.bulk.rate_limit import Prices
from dspy_finetune.bulk.reader import Tokens
from dspy_finetune.bulk.run import BulkProgress
from dspy_finetune.errors import BudgetError, DataError, HostError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.jobs.records import CLOCK
from tests.fake_openai import FakeOpenAI

CREATE = "POST /*"


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def clock(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time moves only when something sleeps."""

    def sleep(seconds: float) -> None:
        fake.now += seconds

    monkeypatch.setattr(CLOCK, "now", lambda: fake.now)
    monkeypatch.setattr(CLOCK, "sleep", sleep)


def predictor(fake: FakeOpenAI, **options: Any) -> ft.OpenAIPredictor:
    host = Host.compatible(fake.url, "sk-secret-key-12345", name="fake")
    return ft.OpenAIPredictor(ft.prompts.binary("Bees."), "ft:m", host=host, logprobs=False, **options)


def titles(n: int) -> list[dict[str, Any]]:
    return [{"title": f"title {number}"} for number in range(n)]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_cut_into_files_and_joined_in_order(fake: FakeOpenAI, tmp_path: Path) -> None:
    fake.says = lambda body: (200, "true" if body["messages"][-1]["content"].endswith("7") else "false")
    rows: list[Any] = [*titles(25), {"titel": "x"}]
    looks: list[Any] = []
    done = batch_api.predict(
        predictor(fake),
        iter(rows),
        tmp_path / "out.jsonl",
        limits=BatchLimits(max_requests=10),
        on_progress=looks.append,
    )
    assert (done.n_rows, done.n_answered, done.n_bad_rows, done.n_input_tokens) == (26, 25, 1, 250)
    found = read(tmp_path / "out.jsonl")
    assert [row["title"] for row in found[:25]] == [row["title"] for row in titles(25)]
    assert [row["is_favorite"] for row in found] == [number % 10 == 7 for number in range(25)] + [None]
    uploads = [fake.contents[batch["input_file_id"]] for batch in fake.batches.values()]
    assert [content.count(b"\n") for content in uploads] == [10, 10, 5]
    first = json.loads(uploads[0].splitlines()[0])
    assert (first["custom_id"], first["method"], first["url"]) == ("row-0-0", "POST", "/v1/chat/completions")
    assert first["body"]["messages"] == predictor(fake).render(title="title 0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl"]
    assert (looks[-1].n_done, looks[-1].n_total) == (26, 26)
    # By size, too.
    n_before = len(fake.batches)
    done = batch_api.predict(predictor(fake), titles(10), tmp_path / "two.jsonl", limits=BatchLimits(max_bytes=2000))
    assert done.n_answered == 10
    assert all(len(fake.contents[batch["input_file_id"]]) <= 2000 for batch in [*fake.batches.values()][n_before:])
    assert len(fake.batches) - n_before > 1


def test_what_expired_or_may_pass_goes_into_another_batch(fake: FakeOpenAI, tmp_path: Path) -> None:
    fake.orders = ["expired"]
    tries: dict[str, int] = {}

    def says(body: dict[str, Any]) -> tuple[int, str]:
        question = body["messages"][-1]["content"]
        tries[question] = tries.get(question, 0) + 1
        if question.endswith("3"):
            return 400, "too long"
        return (500, "oops") if question.endswith("4") and tries[question] < 2 else (200, "true")

    fake.says = says
    done = batch_api.predict(predictor(fake), titles(9), tmp_path / "out.jsonl")
    assert (done.n_answered, done.n_failed) == (8, 1)
    assert "too long" in read(tmp_path / "out.jsonl")[3]["error"]
    # Not one that had its answer was asked again.
    assert {question: n for question, n in tries.items() if n > 1} == {"Title: title 4": 2}


@pytest.mark.parametrize("order", ["completed", "failed"])
def test_fewer_alternatives_are_asked_for_where_the_host_refuses(order: str, fake: FakeOpenAI, tmp_path: Path) -> None:
    """Of each request, or of the whole file: by the number that the host's error names, in the next batch."""
    refusal = "Invalid 'top_logprobs': must be at most 8."
    fake.orders = [order]
    fake.failed_batch = refusal
    fake.says = lambda body: (200, "true") if body["top_logprobs"] <= 8 else (400, refusal)
    host = Host.compatible(fake.url, "sk-secret-key-12345", name="fake")
    done = batch_api.predict(ft.OpenAIPredictor(ft.prompts.binary(), "m", host=host), titles(3), tmp_path / "o.jsonl")
    assert (done.n_answered, done.n_failed) == (3, 0)
    files = [fake.contents[batch["input_file_id"]].splitlines() for batch in fake.batches.values()]
    asked = [[json.loads(line)["body"] for line in lines] for lines in files]
    assert [{body["top_logprobs"] for body in bodies} for bodies in asked] == [{20}, {8}]
    assert [{**body, "top_logprobs": 8} for body in asked[0]] == asked[1]


def test_a_full_queue_is_waited_for(fake: FakeOpenAI, tmp_path: Path) -> None:
    fake.orders = ["completed", "queue_full", "queue_full", "completed"]
    began = fake.now
    done = batch_api.predict(predictor(fake), titles(4), tmp_path / "out.jsonl", limits=BatchLimits(max_requests=2))
    assert done.n_answered == 4
    assert [batch["status"] for batch in fake.batches.values()] == ["completed", "failed", "failed", "completed"]
    assert fake.now - began >= 180
    assert len(fake.asked) == 4


def test_a_batch_that_is_wrong_ends_the_run_with_its_reason(fake: FakeOpenAI, tmp_path: Path) -> None:
    fake.orders = ["failed"]
    with pytest.raises(HostError, match="no: failed"):
        batch_api.predict(predictor(fake), titles(2), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("is_done", [True, False])
def test_an_answer_that_is_lost_makes_no_second_batch(is_done: bool, fake: FakeOpenAI, tmp_path: Path) -> None:
    fake.drop(CREATE, done=is_done)
    done = batch_api.predict(predictor(fake), titles(3), tmp_path / "out.jsonl")
    assert done.n_answered == 3
    assert len(fake.batches) == 1
    assert len(fake.asked) == 3


class Killed(BaseException):
    """Ends a run as abruptly as Python allows; nothing of ours catches it."""


@pytest.mark.parametrize("step", range(8))
def test_a_run_that_dies_anywhere_goes_on_without_a_second_batch(
    step: int, fake: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspy_finetune.jobs.records import Journal

    append = Journal.append
    n_written = 0

    def dying(self: Journal, *arguments: Any, **facts: Any) -> Any:
        nonlocal n_written
        n_written += 1
        if n_written == step // 2 + 1:
            if step % 2:
                append(self, *arguments, **facts)
            raise Killed
        return append(self, *arguments, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", dying)
        with pytest.raises(Killed):
            batch_api.predict(predictor(fake), titles(3), tmp_path / "out.jsonl")
    done = batch_api.predict(predictor(fake), titles(3), tmp_path / "out.jsonl")
    assert done.n_answered == 3
    assert len(fake.batches) == 1
    assert len(fake.asked) == 3


def test_another_run_is_refused_and_no_key_is_written(fake: FakeOpenAI, tmp_path: Path) -> None:
    fake.orders = ["failed"]
    with pytest.raises(HostError):
        batch_api.predict(predictor(fake), titles(2), tmp_path / "out.jsonl")
    with pytest.raises(UsageError, match="its options differs"):
        batch_api.predict(predictor(fake, threshold=0.9), titles(2), tmp_path / "out.jsonl")
    files = [path for path in (tmp_path / "out.jsonl.batch").rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert all(b"secret" not in path.read_bytes() for path in files)
    with pytest.raises(UsageError, match=r"use bulk\.predict"):
        batch_api.predict(lambda title: None, titles(2), tmp_path / "x.jsonl")  # type: ignore[arg-type]


def test_batches_cost_half_and_a_budget_is_asked_before_anything_is_sent(fake: FakeOpenAI, tmp_path: Path) -> None:
    name = "ft:gpt-4.1-mini-2025-04-14:acme::abcd1234"
    dear = ft.OpenAIPredictor(ft.prompts.binary("Bees."), name, host=Host.openai("sk-x"))
    used = Tokens(n_input=1_000_000, n_output=1_000_000)
    whole, half = Prices(dear).usd(used), Prices(dear, is_batch=True).usd(used)
    assert whole is not None
    assert half == pytest.approx(whole / 2)
    with pytest.raises(BudgetError, match="cannot be kept"):
        batch_api.predict(predictor(fake), titles(2), tmp_path / "out.jsonl", max_usd=1.0)
    assert fake.files == {}


def test_progress_tells_rate_time_left_and_cost(
    fake: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look each 30 s: nothing sent, half of 20 rows, all of them; $1 a million tokens, of answers that are here."""
    monkeypatch.setattr(Prices, "usd", lambda self, used: (used.n_input + used.n_output) / 1e6)
    fake.orders = ["slow"]
    looks: list[BulkProgress] = []
    batch_api.predict(predictor(fake), titles(20), tmp_path / "out.jsonl", on_progress=looks.append)
    assert [look.n_done for look in looks] == [0, 10, 20]
    assert [look.rows_per_second for look in looks] == [None, pytest.approx(10 / 30), pytest.approx(20 / 60)]
    assert [look.eta_seconds for look in looks] == [None, pytest.approx(30), 0]
    assert [look.cost_usd for look in looks] == [0, 0, pytest.approx(220e-6)]


def test_progress_of_a_run_that_goes_on_counts_what_was_answered_before(fake: FakeOpenAI, tmp_path: Path) -> None:
    fake.orders = ["completed", "failed"]
    with pytest.raises(HostError):
        batch_api.predict(predictor(fake), titles(8), tmp_path / "out.jsonl", limits=BatchLimits(max_requests=4))
    looks: list[BulkProgress] = []
    batch_api.predict(
        predictor(fake),
        titles(8),
        tmp_path / "out.jsonl",
        limits=BatchLimits(max_requests=4),
        on_progress=looks.append,
    )
    assert [(look.n_done, look.n_reused) for look in looks] == [(4, 4), (8, 4)]
    assert looks[-1].rows_per_second == pytest.approx(4 / 30)
    assert len(fake.asked) == 8


def test_rows_in_memory_that_have_changed_are_not_answered_with_the_old_ones(fake: FakeOpenAI, tmp_path: Path) -> None:
    """A list has no file whose hash would tell."""
    fake.orders = ["failed"]
    with pytest.raises(HostError):
        batch_api.predict(predictor(fake), titles(3), tmp_path / "out.jsonl")
    for others in ([{"title": "another"}, *titles(2)], titles(2), titles(4)):
        with pytest.raises(DataError, match="is not what was asked before"):
            batch_api.predict(predictor(fake), others, tmp_path / "out.jsonl")
    assert batch_api.predict(predictor(fake), titles(3), tmp_path / "out.jsonl").n_answered == 3


def test_a_call_that_sent_nothing_may_be_put_right(fake: FakeOpenAI, tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        batch_api.predict(predictor(fake), titles(2), tmp_path / "out.jsonl", max_usd=1.0)
    done = batch_api.predict(predictor(fake, threshold=0.9), titles(3), tmp_path / "out.jsonl")
    assert done.n_answered == 3


def test_a_line_that_is_no_answer_is_asked_again(
    fake: FakeOpenAI, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upload = fake.upload

    def broken(name: str, purpose: str, content: bytes) -> Any:
        is_first = purpose == "batch_output" and len(fake.batches) == 1
        return upload(name, purpose, content.replace(b'{"custom_id"', b'["custom_id"', 1) if is_first else content)

    fake.upload = broken  # type: ignore[method-assign]
    assert batch_api.predict(predictor(fake), titles(3), tmp_path / "out.jsonl").n_answered == 3
    assert (len(fake.asked), len(fake.batches)) == (4, 2)
    assert "begins no answer" in caplog.text


def test_a_damaged_folder_is_told_in_one_line(fake: FakeOpenAI, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.batch").mkdir()
    (tmp_path / "out.jsonl.batch" / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json is not a run by batches: .*; remove the folder"):
        batch_api.predict(predictor(fake), titles(3), tmp_path / "out.jsonl")


def test_the_shared_options_are_those_of_bulk_predict() -> None:
    own, other = (inspect.signature(function).parameters for function in (batch_api.predict, bulk.predict))
    shared = own.keys() & other.keys() - {"predictor"}
    assert shared >= {"keep", "prefix", "max_usd", "overwrite", "on_progress", "files"}
    assert {name: own[name] for name in shared} == {name: other[name] for name in shared}


def test_both_orders_stand_in_one_part(fake: FakeOpenAI, tmp_path: Path) -> None:
    fake.says = lambda body: (200, "A")
    host = Host.compatible(fake.url, "k", name="fake")
    pairwise = ft.PairwisePredictor(ft.prompts.pairwise("Bees."), "m", host=host, logprobs=False)
    pairs = [{"title_a": f"one {number}", "title_b": "two"} for number in range(5)]
    done = batch_api.predict(pairwise, pairs, tmp_path / "out.jsonl", limits=BatchLimits(max_requests=5))
    assert (done.n_answered, done.n_requests) == (5, 10)
    assert [content.count(b"\n") for content in fake.contents.values() if b"POST" in content] == [4, 4, 2]
    assert all(row["is_tie"] for row in read(tmp_path / "out.jsonl"))
