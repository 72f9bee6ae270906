"""Fine-tuning jobs through OpenAI's own client, on a real server process."""

from __future__ import annotations

import base64
import csv
import io
import json
import time
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.local.toy_server import ToyServer
from tests.local.toy_worker import RATE_ROWS

CHAT_ROWS = [
    {"messages": [{"role": "user", "content": f"Title: {i}"}, {"role": "assistant", "content": "true"}]}
    for i in range(12)
]
PAIR_ROWS = [
    {
        "input": {"messages": [{"role": "user", "content": f"A: {i}\nB: {i + 1}"}]},
        "preferred_output": [{"role": "assistant", "content": "A"}],
        "non_preferred_output": [{"role": "assistant", "content": "B"}],
    }
    for i in range(12)
]


def upload(client: OpenAI, rows: list[Any]) -> str:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return client.files.create(file=("train.jsonl", content), purpose="fine-tune").id


def wait(client: OpenAI, job_id: str, *statuses: str, seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in (statuses or ("succeeded", "failed", "cancelled")):
            return job
        time.sleep(0.05)
    raise AssertionError(f"still {job.status} after {seconds} s")


@pytest.mark.parametrize(("given", "trained"), [({}, 2.0), ({"learning_rate_multiplier": 1.5}, 1.5)])
def test_a_job_tells_the_rate_that_it_chose_and_keeps_one_that_was_given(
    server: ToyServer, given: dict[str, Any], trained: float
) -> None:
    client = server.client()
    rows = [
        {"messages": [{"role": "user", "content": f"Title: {i}"}, {"role": "assistant", "content": "true"}]}
        for i in range(RATE_ROWS)
    ]
    job = client.fine_tuning.jobs.create(
        model="toy",
        training_file=upload(client, rows),
        extra_body={"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, **given}}}},
    )
    done = wait(client, job.id)
    assert done.method.supervised.hyperparameters.learning_rate_multiplier == pytest.approx(trained)


def test_a_job_goes_from_upload_to_a_model_that_answers(server: ToyServer) -> None:
    client = server.client()
    file_id = upload(client, CHAT_ROWS)
    job = client.fine_tuning.jobs.create(
        model="toy",
        training_file=file_id,
        suffix="my taste",
        seed=3,
        metadata={"intent": "abc"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    )
    assert job.status == "validating_files"
    done = wait(client, job.id)
    assert done.status == "succeeded", done.error
    assert done.fine_tuned_model.startswith("ft:toy:local:my-taste:")
    assert done.hyperparameters.n_epochs == 2
    assert done.hyperparameters.batch_size == 4
    assert done.method.supervised.hyperparameters.learning_rate_multiplier == 1.0
    assert (done.trained_tokens, done.seed, done.metadata) == (120, 3, {"intent": "abc"})
    assert done.error is None

    answer = client.chat.completions.create(
        model=done.fine_tuned_model,
        messages=[{"role": "user", "content": "Title: 3"}],
        max_tokens=1,
        temperature=0,
        logprobs=True,
        top_logprobs=5,
    )
    logprobs: Any = answer.choices[0].logprobs
    [token] = logprobs.content
    assert len(token.top_logprobs) == 5
    assert token.logprob == token.top_logprobs[0].logprob
    assert bytes(token.bytes).decode(errors="replace") == token.token == answer.choices[0].message.content
    listed = [model.id for model in client.models.list()]
    assert done.fine_tuned_model in listed


def test_events_are_paged_newest_first_without_loss_or_repetition(server: ToyServer) -> None:
    client = server.client()
    job = client.fine_tuning.jobs.create(model="toy", training_file=upload(client, CHAT_ROWS))
    wait(client, job.id, "succeeded")
    paged = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    whole = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    assert [event.id for event in paged] == [event.id for event in whole]
    assert len({event.id for event in paged}) == len(paged)
    messages = [event.message for event in reversed(paged)]
    assert messages[0] == f"Created fine-tuning job: {job.id}"
    assert messages[-1] == "The job has successfully completed"
    metrics: list[Any] = [event.data for event in reversed(paged) if event.type == "metrics"]
    assert [data["step"] for data in metrics] == list(range(1, 11))


def test_metrics_file_and_checkpoints_tell_the_steps(server: ToyServer) -> None:
    client = server.client()
    job = client.fine_tuning.jobs.create(model="toy", training_file=upload(client, CHAT_ROWS))
    done = wait(client, job.id, "succeeded")
    content = base64.b64decode(client.files.content(done.result_files[0]).content, validate=True)
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert list(rows[0]) == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    assert float(rows[1]["train_loss"]) == 0.5
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [checkpoint.step_number for checkpoint in checkpoints] == [10, 5]
    assert checkpoints[0].fine_tuned_model_checkpoint == done.fine_tuned_model
    assert checkpoints[1].fine_tuned_model_checkpoint == f"{done.fine_tuned_model}:ckpt-step-5"
    assert checkpoints[1].metrics.train_loss == 0.2
    client.models.retrieve(checkpoints[1].fine_tuned_model_checkpoint)


def test_a_dpo_job_starts_from_a_tuned_model(server: ToyServer) -> None:
    client = server.client()
    first = wait(client, client.fine_tuning.jobs.create(model="toy", training_file=upload(client, CHAT_ROWS)).id)
    job = client.fine_tuning.jobs.create(
        model=first.fine_tuned_model,
        training_file=upload(client, PAIR_ROWS),
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}},
    )
    second = wait(client, job.id)
    assert second.status == "succeeded", second.error
    assert second.fine_tuned_model.startswith("ft:toy:local::")
    assert second.method.dpo.hyperparameters.beta == 0.2
    assert second.hyperparameters.n_epochs == second.method.dpo.hyperparameters.n_epochs
    # Its own copy of the chain: the first model may go.
    client.models.delete(first.fine_tuned_model)
    messages: Any = [{"role": "user", "content": "A: x\nB: y"}]
    client.chat.completions.create(model=second.fine_tuned_model, messages=messages, max_tokens=1)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=first.fine_tuned_model, messages=messages, max_tokens=1)


def test_jobs_are_found_by_metadata_and_paged(server: ToyServer) -> None:
    client = server.client()
    file_id = upload(client, CHAT_ROWS)
    made = [
        client.fine_tuning.jobs.create(model="toy", training_file=file_id, metadata={"batch": "m", "n": str(i)}).id
        for i in range(3)
    ]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"batch": "m"}, limit=2)] == made[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"batch": "m", "n": "1"})] == [made[1]]
    assert client.fine_tuning.jobs.list(metadata={"batch": "other"}).data == []
    for job_id in made:
        assert wait(client, job_id).status == "succeeded"


@pytest.mark.parametrize(
    ("rows", "method", "code", "words"),
    [
        (CHAT_ROWS[:7], "supervised", "invalid_n_examples", "7 example(s)"),
        (PAIR_ROWS, "supervised", "invalid_training_file", "preference format"),
        (CHAT_ROWS, "dpo", "invalid_training_file", "fine-tune-chat format"),
        (
            [*CHAT_ROWS, {"messages": [{"role": "boss", "content": "x"}]}],
            "supervised",
            "invalid_training_file",
            "Line 13",
        ),
        ([*PAIR_ROWS, {"input": {"messages": []}}], "dpo", "invalid_training_file", "Line 13"),
        (
            [{"messages": [{"role": "user", "content": "x"}]}] * 10,
            "supervised",
            "invalid_training_file",
            "no assistant",
        ),
    ],
)
def test_a_bad_training_file_fails_the_job_with_openais_code(
    server: ToyServer, rows: list[Any], method: Any, code: str, words: str
) -> None:
    client = server.client()
    job = client.fine_tuning.jobs.create(model="toy", training_file=upload(client, rows), method={"type": method})
    failed = wait(client, job.id)
    assert (failed.status, failed.error.code, failed.error.param) == ("failed", code, "training_file")
    assert words in failed.error.message
