"""Every row of the input is a row of the output, in order, whatever its answer was; and each is asked by the book."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import json
import threading
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune import bulk
from dspy_finetune.bulk.rate_limit import Timing
from dspy_finetune.errors import BudgetError, DataError, FileError, HostError, UsageError
from dspy_finetune.hosts import failures
from tests.bulk.conftest import FakeTime
from tests.loopback import Loopback, refusal

PROMPT = ft.prompts.binary("Likes bees.")


def tuned(loopback: Loopback, **options: Any) -> ft.OpenAIPredictor:
    return ft.OpenAIPredictor(PROMPT, "ft:m", host=loopback.host, **options)


def titles(n: int) -> list[dict[str, Any]]:
    return [{"title": f"title {'x' * (number % 5)}{number}", "id": number} for number in range(n)]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_come_out_in_order_with_what_the_predictor_itself_says(loopback: Loopback, tmp_path: Path) -> None:
    loopback.delay_seconds = lambda question: 0.02 if question.endswith("3") else 0.0
    predictor = tuned(loopback)
    done = bulk.predict(predictor, titles(60), tmp_path / "out.jsonl", keep=["id", "title"], concurrency=8)
    assert (done.n_rows, done.n_answered, done.n_requests, done.n_reused) == (60, 60, 60, 0)
    assert (done.n_input_tokens, done.n_output_tokens) == (600, 60)
    rows = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == list(range(60))
    for row in rows[:5]:
        alone = predictor(title=row["title"])
        assert (row["is_favorite"], row["probability"], row["coverage"]) == (
            alone.is_favorite,
            pytest.approx(alone.probability),
            pytest.approx(alone.coverage),
        )
        assert row["probabilities"] == {"true": alone.probabilities[True], "false": alone.probabilities[False]}
    assert not (tmp_path / "out.jsonl.checkpoint").exists()


class Taste(dspy.Signature):
    """Which?"""

    title: str = dspy.InputField()
    kind: Literal["essay", "news"] = dspy.OutputField()
    reason: str = dspy.OutputField()


@pytest.mark.parametrize(
    "make",
    [
        lambda host: ft.OpenAIPredictor(PROMPT, "ft:m", host=host, stop=["\n\n"], max_tokens=7),
        lambda host: ft.OpenAIPredictor(PROMPT, "openai/ft:m", host=host, logprobs=False),
        lambda host: ft.OpenAIPredictor(ft.prompts.number("How much?"), "m", host=host, n_samples=3, temperature=0.7),
        lambda host: ft.OpenAIPredictor(
            ft.prompts.number("How much?"), "m", host=ft.Host.local(host.base_url), n_samples=3
        ),
        lambda host: ft.OpenAIPredictor("picture: dspy.Image, title -> note", "m", host=host),
        lambda host: ft.OpenAIPredictor(
            ft.PromptFormat.from_adapter("picture: dspy.Image, title -> note"), "m", host=host
        ),
        lambda host: ft.OpenAIPredictor(ft.PromptFormat(Taste), "m", host=host),
        lambda host: ft.OpenAIPredictor(ft.PromptFormat(Taste, completion="json"), "m", host=host),
        lambda host: ft.OpenAIPredictor(ft.PromptFormat.from_adapter(Taste), "m", host=host),
        lambda host: ft.PairwisePredictor(ft.prompts.pairwise("Bees."), "m", host=host),
        lambda host: ft.DPOPredictor(ft.prompts.explained_pairwise("Bees."), "m", host=host, both_orders=True),
    ],
)
def test_the_requests_are_byte_for_byte_those_of_the_predictor(make: Any, loopback: Loopback, tmp_path: Path) -> None:
    predictor = make(loopback.host)
    inputs = {name: f"a “quoted” {name} {{x}}" for name in predictor.prompt.input_fields}
    if "picture" in inputs:
        inputs["picture"] = "data:image/png;base64,aGk="
    loopback.reply = lambda question: "A"
    with contextlib.suppress(
        ft.errors.AnswerError
    ):  # one answer does not suit every prompt; the requests are what counts
        predictor(**inputs)
    alone, loopback.bodies = loopback.bodies, []
    bulk.predict(predictor, [inputs], tmp_path / "out.jsonl")
    assert sorted(map(json.dumps, loopback.bodies)) == sorted(map(json.dumps, alone))
    assert [list(body) for body in loopback.bodies] == [list(body) for body in alone]


def test_both_orders_are_two_requests_and_one_row(loopback: Loopback, tmp_path: Path) -> None:
    loopback.reply = lambda question: "A"
    predictor = ft.PairwisePredictor(ft.prompts.pairwise("Bees."), "m", host=loopback.host)
    pairs = [{"title_a": f"one {number}", "title_b": f"two {number}"} for number in range(9)]
    done = bulk.predict(predictor, pairs, tmp_path / "out.jsonl")
    assert (done.n_answered, done.n_requests) == (9, 18)
    row, alone = read(tmp_path / "out.jsonl")[4], predictor(**pairs[4])
    assert row["preferred"] == alone.preferred
    assert (row["position_bias"], row["is_tie"]) == (pytest.approx(alone.position_bias), alone.is_tie)


def test_all_samples_of_a_row_are_one_request_until_the_host_refuses_them(loopback: Loopback, tmp_path: Path) -> None:
    loopback.reply = lambda question: "$12.00"
    host = ft.Host.local(loopback.url)
    predictor = ft.OpenAIPredictor(ft.prompts.number("How much?"), "m", host=host, n_samples=3)
    products = [{"product": f"lamp {number}"} for number in range(9)]
    done = bulk.predict(predictor, products, tmp_path / "out.jsonl")
    assert (done.n_answered, done.n_requests, done.n_input_tokens, done.n_output_tokens) == (9, 9, 90, 27)
    assert read(tmp_path / "out.jsonl")[8]["samples"] == [12.0] * 3
    told = {"error": {"message": "'n' must be 1", "param": "n"}}
    loopback.fault = lambda body, n: (400, {}, told) if "n" in body else None
    refused = bulk.predict(predictor, products, tmp_path / "two.jsonl")
    assert (refused.n_answered, refused.n_requests) == (9, 27)
    assert read(tmp_path / "two.jsonl") == read(tmp_path / "out.jsonl")


def test_each_kind_of_error_is_a_row_of_its_own(loopback: Loopback, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"title": "good"}\n{"title": "mumble"}\n{"title": "too long"}\nnot json\n{"titel": "x"}\n{"title": null}\n'
    )
    loopback.reply = lambda question: "perhaps" if "mumble" in question else "true"
    loopback.fault = lambda body, n: refusal(400, "context_length_exceeded") if "too long" in str(body) else None
    done = bulk.predict(tuned(loopback), source, tmp_path / "out.jsonl")
    assert (done.n_answered, done.n_parse_failures, done.n_failed, done.n_bad_rows) == (1, 1, 1, 3)
    rows = read(tmp_path / "out.jsonl")
    assert [row["status"] for row in rows] == ["answered", "parse_failure", "failed", *["bad_row"] * 3]
    assert rows[0]["error"] is None
    assert rows[1]["answer_text"] == "perhaps"
    assert "400" in rows[2]["error"]
    assert f"{source}:4" in rows[3]["error"]
    assert "titel" in rows[4]["error"]
    assert all(row["is_favorite"] is None for row in rows[1:])
    assert len(loopback.bodies) == 3


def test_a_long_wait_is_told_in_one_line(
    loopback: Loopback, tmp_path: Path, fake_time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    """For all rows that wait; of a day it is two minutes, after which the host is asked again."""
    failures._told_until.clear()
    loopback.fault = lambda body, n: refusal(429, Retry_After="86400") if len(loopback.bodies) == 1 else None
    done = bulk.predict(tuned(loopback), titles(30), tmp_path / "out.jsonl")
    assert done.n_answered == 30
    assert max(fake_time.slept) == pytest.approx(120.0, abs=1.0)
    told = [one.message for one in caplog.records if "waiting" in one.message]
    assert told == ["rate limited by loopback, waiting 120 s"]


def test_failures_that_pass_are_tried_again(loopback: Loopback, tmp_path: Path, fake_time: FakeTime) -> None:
    faults = {1: refusal(500), 2: (0, {}, {}), 3: refusal(503), 4: (200, {}, {"oops": 1})}
    loopback.fault = lambda body, n: faults.get(n)
    done = bulk.predict(tuned(loopback), titles(3), tmp_path / "out.jsonl")
    assert (done.n_answered, done.n_retries) == (3, 12)
    assert max(fake_time.slept) <= 60.0
    # Each wait is a random share, at least half, of one that doubles.
    assert min(seconds for seconds in fake_time.slept if seconds > 0) >= 0.25


def test_a_row_that_keeps_failing_fails_alone(loopback: Loopback, tmp_path: Path, fake_time: FakeTime) -> None:
    loopback.fault = lambda body, n: refusal(500) if "x2" in str(body) else None
    done = bulk.predict(tuned(loopback), titles(5), tmp_path / "out.jsonl", retry=bulk.RetryPolicy(max_retries=2))
    assert (done.n_answered, done.n_failed) == (4, 1)
    assert max(loopback.asked.values()) == 3


@pytest.mark.parametrize("named", [{}, {"Retry_After": "7"}, {"retry_after_ms": "7000"}])
def test_after_a_429_nothing_is_sent_until_the_host_says_so(
    named: dict[str, str], loopback: Loopback, tmp_path: Path, fake_time: FakeTime
) -> None:
    sent_at: list[tuple[float, bool]] = []

    def fault(body: Any, n: int) -> Any:
        is_refused = n == 1 and "x3" in str(body)
        sent_at.append((fake_time.now, is_refused))
        return refusal(429, None, **named) if is_refused else None

    loopback.fault = fault
    done = bulk.predict(tuned(loopback), titles(20), tmp_path / "out.jsonl", concurrency=1)
    assert (done.n_answered, done.n_retries) == (20, 1)
    at = next(number for number, (_, is_refused) in enumerate(sent_at) if is_refused)
    pause = sent_at[at + 1][0] - sent_at[at][0]
    assert pause == pytest.approx(7.0) if named else 0.25 <= pause <= 1.0


def test_429s_halve_the_concurrency_and_cost_no_row(loopback: Loopback, tmp_path: Path, fake_time: FakeTime) -> None:
    # A host that takes four at a time.
    loopback.fault = lambda body, n: refusal(429) if loopback.n_open > 4 else None
    loopback.delay_seconds = lambda question: 0.02
    looks: list[bulk.BulkProgress] = []
    done = bulk.predict(tuned(loopback), titles(150), tmp_path / "out.jsonl", on_progress=looks.append)
    assert (done.n_answered, done.n_failed) == (150, 0)
    assert done.n_retries > 0
    assert looks[-1].concurrency < 32
    assert (looks[-1].n_done, looks[-1].n_total, looks[-1].n_errors) == (150, 150, 0)


def test_an_empty_account_a_wrong_key_and_an_unknown_model_end_the_run(loopback: Loopback, tmp_path: Path) -> None:
    for fault in (refusal(429, "insufficient_quota"), refusal(401, "invalid_api_key"), refusal(404, "model_not_found")):
        loopback.fault = lambda body, n, fault=fault: fault  # type: ignore[misc]  # the default binds it now
        with pytest.raises(HostError) as caught:
            bulk.predict(tuned(loopback), titles(100), tmp_path / "out.jsonl")
        assert caught.value.status == fault[0]
        assert list(tmp_path.iterdir()) == []
    # Nor are a million rows asked that would all fail.
    loopback.fault = lambda body, n: refusal(400)
    loopback.bodies.clear()
    with pytest.raises(HostError, match="first 50 rows"):
        bulk.predict(tuned(loopback), titles(1000), tmp_path / "out.jsonl", concurrency=4)
    assert len(loopback.bodies) < 60


def test_a_silent_host_is_waited_for_and_then_the_run_can_go_on(
    loopback: Loopback, tmp_path: Path, fake_time: FakeTime
) -> None:
    n_before = 10
    loopback.fault = lambda body, n: (0, {}, {}) if len(loopback.answered) >= n_before else None
    options: dict[str, Any] = {"concurrency": 2, "retry": bulk.RetryPolicy(patience_seconds=100.0)}
    with pytest.raises(HostError, match="no answer") as caught:
        bulk.predict(tuned(loopback), titles(30), tmp_path / "out.jsonl", **options)
    assert caught.value.retryable
    assert sum(fake_time.slept) >= 100.0
    assert not (tmp_path / "out.jsonl").exists()
    loopback.fault = lambda body, n: None
    done = bulk.predict(tuned(loopback), titles(30), tmp_path / "out.jsonl", **options)
    assert (done.n_answered, done.n_failed) == (30, 0)
    assert done.n_reused >= n_before
    assert set(loopback.answered.values()) == {1}


def test_a_run_is_not_taken_up_with_anything_else(loopback: Loopback, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in titles(20)))

    def begin(rows: Any) -> None:
        (tmp_path / "out.jsonl.checkpoint").unlink(missing_ok=True)
        loopback.fault = lambda body, n: refusal(401) if len(loopback.answered) >= 5 else None
        loopback.answered.clear()
        with pytest.raises(HostError):
            bulk.predict(tuned(loopback), rows, out, concurrency=1)
        loopback.fault = lambda body, n: None

    begin(source)
    other_prompt = ft.OpenAIPredictor(ft.prompts.binary("Likes ants."), "ft:m", host=loopback.host)
    other_model = ft.OpenAIPredictor(PROMPT, "ft:other", host=loopback.host)
    for other, what in ((other_prompt, "prompt"), (other_model, "model"), (tuned(loopback, threshold=0.9), "options")):
        with pytest.raises(UsageError, match=f"another run: its {what} is"):
            bulk.predict(other, source, out)
    with pytest.raises(UsageError, match="its settings is"):
        bulk.predict(tuned(loopback), source, out, keep="all")
    with open(source, "a", encoding="utf-8") as stream:
        stream.write('{"title": "one more"}\n')
    with pytest.raises(UsageError, match="its input is"):
        bulk.predict(tuned(loopback), source, out)
    # Of rows in memory each row is compared, and their number.
    begin(titles(20))
    with pytest.raises(DataError, match="row 1 is not the row that was asked before"):
        bulk.predict(tuned(loopback), titles(20)[1:], out)
    with pytest.raises(DataError, match="has 3 rows"):
        bulk.predict(tuned(loopback), titles(3), out)
    assert bulk.predict(tuned(loopback), titles(20), out).n_reused == 5
    with pytest.raises(UsageError, match="there already"):
        bulk.predict(tuned(loopback), titles(20), out)
    assert bulk.predict(tuned(loopback), titles(2), out, overwrite=True).n_rows == 2


def test_two_processes_do_not_share_a_checkpoint(tmp_path: Path) -> None:
    def program(title: str) -> dspy.Prediction:
        with pytest.raises(FileError, match="another process"):
            bulk.predict(program, [{"title": "x"}], tmp_path / "out.jsonl")
        return dspy.Prediction(n=1)

    assert bulk.predict(program, [{"title": "x"}], tmp_path / "out.jsonl").n_answered == 1


def test_the_key_stands_in_no_file(loopback: Loopback, tmp_path: Path) -> None:
    key = loopback.host.api_key()
    loopback.fault = lambda body, n: refusal(401, f"bad-{key}") if len(loopback.answered) > 4 else None
    with pytest.raises(HostError) as caught:
        bulk.predict(tuned(loopback), titles(20), tmp_path / "out.jsonl", concurrency=2)
    assert loopback.keys == {f"Bearer {key}"}
    assert key not in str(caught.value)
    assert key.encode() not in (tmp_path / "out.jsonl.checkpoint").read_bytes()


def test_a_budget_is_never_passed(loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = tmp_path / "catalog.json"
    catalog.write_text(
        json.dumps(
            {
                "models": {
                    "m": {
                        "host": "compatible",
                        "methods": ["sft"],
                        "prices": {"input": 1000.0, "cached_input": 1000.0, "output": 5000.0},
                    }
                }
            }
        )
    )
    monkeypatch.setenv("DSPY_FINETUNE_CATALOG", str(catalog))
    predictor = ft.OpenAIPredictor(PROMPT, "ft:m:acme::abcd1234", host=loopback.host)
    each = (10 * 1000.0 + 1 * 5000.0) / 1e6
    with pytest.raises(BudgetError, match="max_usd=1"):
        bulk.predict(predictor, titles(200), tmp_path / "out.jsonl", max_usd=1.0)
    assert 0 < len(loopback.bodies) * each <= 1.0
    done = bulk.predict(predictor, titles(200), tmp_path / "out.jsonl", max_usd=100.0)
    assert done.cost_usd == pytest.approx(200 * each)
    with pytest.raises(BudgetError, match="cannot be kept"):
        bulk.predict(tuned(loopback), titles(2), tmp_path / "other.jsonl", max_usd=1.0)


def test_a_budget_that_cannot_be_kept_leaves_nothing_behind(loopback: Loopback, tmp_path: Path) -> None:
    """A call that is put right is not taken for another run."""
    with pytest.raises(BudgetError, match="cannot be kept"):
        bulk.predict(tuned(loopback), titles(3), tmp_path / "out.jsonl", max_usd=1.0)
    assert list(tmp_path.iterdir()) == []
    assert (
        bulk.predict(tuned(loopback), titles(3), tmp_path / "out.jsonl", files=bulk.FileOptions(limit=2)).n_answered
        == 2
    )


def test_a_kept_field_that_the_first_row_lacks_is_told(
    loopback: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bulk.predict(tuned(loopback), titles(2), tmp_path / "out.jsonl", keep=["id", "idd"])
    assert [row["idd"] for row in read(tmp_path / "out.jsonl")] == [None, None]
    assert [record.getMessage() for record in caplog.records] == [
        "keep: row 1 has no idd; the output holds null where a row has none"
    ]


def test_any_program_can_be_asked(tmp_path: Path) -> None:
    async def ask(title: str) -> dspy.Prediction:
        await asyncio.sleep(0)
        if title.endswith("1"):
            raise ft.errors.AnswerError("no", text="hm")
        if title.endswith("2"):
            raise ValueError("odd")
        return dspy.Prediction(n=len(title))

    done = bulk.predict(ask, titles(10), tmp_path / "out.jsonl", inputs=["title"], keep=["id"])
    assert (done.n_answered, done.n_parse_failures, done.n_failed, done.cost_usd) == (8, 1, 1, None)
    rows = read(tmp_path / "out.jsonl")
    assert rows[0] == {"id": 0, "n": 7, "status": "answered", "error": None, "answer_text": None}
    assert (rows[1]["answer_text"], rows[2]["error"]) == ("hm", "ValueError: odd")

    class Program(dspy.Module):
        def forward(self, title: str) -> dspy.Prediction:
            return dspy.Prediction(n=len(title))

    examples = [dspy.Example(title="abc", gold=3).with_inputs("title")]
    bulk.predict(Program(), examples, tmp_path / "module.jsonl", keep="all", prefix="predicted_")
    assert {"title", "gold", "predicted_n"} <= read(tmp_path / "module.jsonl")[0].keys()


def test_names_that_clash_are_told_before_anything_is_asked(loopback: Loopback, tmp_path: Path) -> None:
    rows = [{"title": "x", "is_favorite": True}]
    with pytest.raises(UsageError, match='"is_favorite" stands in the rows and in the answers'):
        bulk.predict(tuned(loopback), rows, tmp_path / "out.jsonl", keep=["is_favorite"])
    with pytest.raises(UsageError, match="titel"):
        bulk.predict(tuned(loopback), [{"titel": "x"}], tmp_path / "out.jsonl")
    with pytest.raises(UsageError, match=r"name the output .jsonl or .parquet"):
        bulk.predict(tuned(loopback), rows, tmp_path / "out.txt")
    assert loopback.bodies == []
    assert list(tmp_path.iterdir()) == []


def test_parquet_has_one_type_for_each_column(loopback: Loopback, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")

    def program(title: str, id: int) -> dspy.Prediction:
        odd: Any = {"a": 1} if id % 2 else "text"
        return dspy.Prediction(score=1 if id < 5 else 0.5, odd=odd, late=None if id < 9000 else "x", empty={})

    done = bulk.predict(program, titles(9001), tmp_path / "out.parquet", keep=["id"], concurrency=16)
    assert done.n_answered == 9001
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.num_rows == 9001
    kinds = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert kinds == {
        "id": "int64", "score": "double", "odd": "string", "late": "string", "empty": "string",
        "status": "string", "error": "string", "answer_text": "string",
    }  # fmt: skip
    assert table.column("id").to_pylist() == list(range(9001))
    assert table.column("odd").to_pylist()[:2] == ['"text"', '{"a": 1}']
    assert table.column("late").to_pylist()[-1] == "x"


def test_it_runs_beside_an_event_loop(loopback: Loopback, tmp_path: Path) -> None:
    async def notebook() -> bulk.BulkResult:
        return bulk.predict(tuned(loopback), titles(3), tmp_path / "out.jsonl")

    assert asyncio.run(notebook()).n_answered == 3


def test_it_can_be_awaited(loopback: Loopback, tmp_path: Path) -> None:
    """The caller's loop turns while rows are asked; the parameters are those of `predict`."""

    async def main() -> tuple[Any, int]:
        running = asyncio.ensure_future(bulk.apredict(tuned(loopback), titles(40), tmp_path / "out.jsonl"))
        n_turns = 0
        while not running.done():
            n_turns += 1
            await asyncio.sleep(0.001)
        return await running, n_turns

    done, n_turns = asyncio.run(main())
    assert done.n_answered == 40
    assert n_turns > 1
    assert inspect.signature(bulk.apredict) == inspect.signature(bulk.predict)


def test_a_cancelled_await_ends_the_asking_and_keeps_the_answers(tmp_path: Path) -> None:
    asked: list[str] = []
    has_begun = threading.Event()

    async def slowly(title: str) -> dict[str, Any]:
        asked.append(title)
        if len(asked) > 3:
            has_begun.set()
            await asyncio.sleep(3600)
        return {"liked": True}

    async def main() -> None:
        running = asyncio.ensure_future(
            bulk.apredict(slowly, titles(50), tmp_path / "out.jsonl", inputs=["title"], concurrency=4)
        )
        await asyncio.to_thread(has_begun.wait)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    n_asked = len(asked)
    assert n_asked < 50
    assert (tmp_path / "out.jsonl.checkpoint").read_bytes().count(b"\n") == 1 + 3
    assert not [one for one in threading.enumerate() if one.name.startswith("dspy-finetune-bulk")]


def test_ctrl_c_in_a_notebook_ends_the_asking_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a running loop the rows are asked in another thread, which Ctrl-C does not reach by itself."""
    has_begun = threading.Event()

    async def slowly(title: str) -> dict[str, Any]:
        if has_begun.is_set():
            await asyncio.sleep(3600)
        has_begun.set()
        return {"liked": True}

    def interrupted(future: Any) -> Any:
        has_begun.wait()
        raise KeyboardInterrupt

    async def cell() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(concurrent.futures.Future, "result", interrupted)
            bulk.predict(slowly, titles(50), tmp_path / "out.jsonl", inputs=["title"], concurrency=4)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(cell())
    assert not [one for one in threading.enumerate() if one.name.startswith("dspy-finetune-bulk")]
    assert (tmp_path / "out.jsonl.checkpoint").read_bytes().count(b"\n") == 2


def test_the_defaults_of_time_are_the_real_ones() -> None:
    timing = Timing()
    assert timing.sleep is asyncio.sleep
    assert timing.clock() > 0


def test_a_host_that_gives_fewer_alternatives_is_asked_for_fewer(
    loopback: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own refusal says how many; a run that goes on later starts with the same rows."""
    asked: list[int] = []

    def capped(body: dict[str, Any], n: int) -> Any:
        asked.append(body["top_logprobs"])
        if body["top_logprobs"] <= 5:
            return None
        problem = {"message": "top_logprobs must be between 0 and 5", "type": "invalid_request_error"}
        return 400, {}, {"error": problem}

    loopback.fault = capped
    done = bulk.predict(tuned(loopback), titles(30), tmp_path / "out.jsonl", concurrency=4)
    assert done.n_answered == 30
    assert (set(asked), asked.count(20) <= 4) == ({20, 5}, True)
    assert "top_logprobs=5 says so beforehand" in caplog.text
