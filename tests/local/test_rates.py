"""The sweep over learning rates: how long it may be, what it chooses, what it remembers."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from dspy_finetune.local import rates, training
from dspy_finetune.local.chat import encode_completion
from dspy_finetune.local.memory import Setup
from dspy_finetune.local.rates import Trial
from dspy_finetune.local.worker import Metrics
from dspy_finetune.tasks import MAX_STEPS, MIN_STEPS, MULTIPLIERS, Sweep, sweep_of
from tests.local.test_recipes import chat_rows, question, spec, steps_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore::FutureWarning:trl")


@pytest.mark.parametrize("n_rows", [10, 150, 509, 510, 600, 2000, 2001, 50_000])
@pytest.mark.parametrize("n_epochs", [1, 3, 25])
def test_a_sweep_stays_within_its_share_of_the_job(n_rows: int, n_epochs: int) -> None:
    batch_size = 4 if n_rows <= 2000 else 8
    sweep = sweep_of(n_rows, n_epochs, batch_size)
    if sweep is None:
        return
    trained = len(MULTIPLIERS) * sweep.n_steps * batch_size
    read = (1 + len(MULTIPLIERS)) * sweep.n_held_out / 3  # forward alone, once without training
    assert trained + read <= 0.15 * n_rows * n_epochs
    assert MIN_STEPS <= sweep.n_steps <= MAX_STEPS


def test_few_rows_or_epochs_are_not_searched() -> None:
    found = [sweep_of(n_rows, n_epochs, 4) is None for n_rows, n_epochs in ((509, 3), (510, 3), (510, 1))]
    assert found == [True, False, True]


def trial(rate: float, *losses: float) -> Trial:
    return Trial(rate=rate, losses=losses, accuracy=0.5)


UNTRAINED = trial(0.0, 4.9, 4.9, 4.9, 4.9)


def test_another_rate_has_to_win_by_more_than_its_noise() -> None:
    usual = trial(1e-3, 1.0, 2.0, 3.0, 4.0)
    clear = trial(2e-3, 0.8, 1.7, 2.9, 3.6)  # better by 0.2, 0.3, 0.1 and 0.4
    gains = [0.2, 0.3, 0.1, 0.4]
    assert statistics.mean(gains) > statistics.stdev(gains) / 2
    assert rates.best([UNTRAINED, trial(3e-4, 4.8, 4.8, 4.8, 4.8), usual, clear], 1e-3)[0] is clear
    unclear = trial(2e-3, 0.0, 2.5, 3.5, 3.9)  # better by 1.0, -0.5, -0.5 and 0.1: 0.025 with an error of 0.35
    chosen, why = rates.best([UNTRAINED, unclear, usual], 1e-3)
    assert chosen is usual
    assert "0.025 ± 0.35 on 4 held-out rows, within one standard error" in why
    assert rates.best([UNTRAINED, usual, trial(2e-3, 5.0, 5.0, 5.0, 5.0)], 1e-3)[0] is usual


def test_a_rate_that_has_learned_nothing_is_not_taken() -> None:
    """The one that goes astray the least is ahead of the others, and no better than no training."""
    usual, slow = trial(1e-3, 1.0, 1.1, 0.9, 1.2), trial(3e-4, 0.7, 0.8, 0.6, 0.8)
    chosen, why = rates.best([trial(0.0, 0.7, 0.7, 0.7, 0.7), slow, usual], 1e-3)
    assert (chosen, "has learned nothing yet" in why) == (usual, True)
    assert rates.best([trial(0.0, 1.7, 1.7, 1.7, 1.7), slow, usual], 1e-3)[0] is slow


def test_a_larger_rate_has_to_win_by_a_tenth_of_what_the_usual_one_has_learned() -> None:
    """Of 2.0 that the usual rate has learned, 0.1 is a start that more steps make up for, and 0.3 is not."""
    untrained, usual = trial(0.0, 4.0, 4.0, 4.0), trial(1e-3, 2.0, 1.9, 2.1)
    ahead, far_ahead = trial(2e-3, 1.9, 1.8, 2.0), trial(2e-3, 1.7, 1.6, 1.8)
    chosen, why = rates.best([untrained, usual, ahead], 1e-3)
    assert (chosen, "less than 10% of what the usual rate has learned" in why) == (usual, True)
    assert rates.best([untrained, usual, far_ahead], 1e-3)[0] is far_ahead
    slower = replace(ahead, rate=3e-4)
    assert rates.best([untrained, usual, slower], 1e-3)[0] is slower


def test_a_rate_that_broke_the_model_is_never_taken() -> None:
    untrained, broken = trial(0.0, 3.0, 3.0), trial(2e-3, math.nan, 1.0)
    assert rates.best([untrained, trial(1e-3, 2.0, 2.0), broken], 1e-3)[0].rate == 1e-3
    assert rates.best([untrained, trial(1e-3, math.nan, 1.0), trial(3e-4, 2.0, 2.0)], 1e-3)[0].rate == 3e-4
    assert rates.best([untrained, trial(1e-3, math.nan, 1.0), replace(broken, rate=3e-4)], 1e-3)[0].rate == 1e-3


def test_what_is_kept_depends_on_all_that_the_losses_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_FINETUNE_CACHE", str(tmp_path))
    facts = {"rows": "one", "rates": [1e-3]}
    path = rates.kept_at(facts)
    assert path.parent == tmp_path / "rates"
    assert path == rates.kept_at(dict(reversed(facts.items())))
    assert path != rates.kept_at({**facts, "rows": "two"})
    assert rates.kept(path) == []
    found = [trial(1e-3, 1.5, math.nan)]
    rates.keep(path, facts, found)
    assert repr(rates.kept(path)) == repr(found)
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert rates.kept(path) == []
    path.write_text('{"trials": [{"rate": 1}]}', encoding="utf-8")
    assert rates.kept(path) == []


def test_the_digest_of_a_base_changes_with_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = rates.base_digest(tmp_path)
    (tmp_path / "tokenizer.json").write_text("of no weight")
    assert rates.base_digest(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert rates.base_digest(tmp_path) != before


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three steps for each rate, and a cache of the test's own."""
    monkeypatch.setenv("DSPY_FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(training, "sweep_of", lambda *args: Sweep(n_steps=3, n_held_out=4))
    return tmp_path / "cache" / "rates"


def test_a_job_tries_rates_and_trains_as_if_its_choice_had_been_given(
    toy_model: Path, tmp_path: Path, short: Path
) -> None:
    told: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"n_epochs": 1, "batch_size": 10, "learning_rate": 0.01}
    job = spec(toy_model, tmp_path / "one", "sft", chat_rows(40), finds_rate=True, **settings)
    result = training.train(job, emit=told.append, should_stop=lambda: False)
    tried = [row for row in told if "candidate" in row]
    assert [row["step"] for row in tried] == [-3, -2, -1, 0]
    named = [f"learning rate {rate}" for rate in ("0.003", "0.01", "0.02")]
    assert [row["candidate"] for row in tried] == ["no training", *named]
    # Always the same answer: the faster, the better.
    losses = [row["valid_loss"] for row in tried]
    assert losses == sorted(losses, reverse=True)
    assert result.learning_rate == 0.02
    messages = [row["message"] for row in told if "message" in row]
    assert "Learning rates 0.003, 0.01, 0.02 are tried: 3 steps each, then 4 rows held out" in messages[1]
    assert messages[2].startswith("Learning rate 0.02: learning rate 0.02 is better by ")
    given: list[dict[str, Any]] = []
    job = spec(toy_model, tmp_path / "two", "sft", chat_rows(40), **{**settings, "learning_rate": 0.02})
    plain = training.train(job, emit=given.append, should_stop=lambda: False)
    assert plain.learning_rate is None
    steps = [[row["train_loss"] for row in one if "train_loss" in row] for one in (told, given)]
    assert steps[0] == pytest.approx(steps[1], abs=1e-6)
    assert [path.name for path in (tmp_path / "one" / "out").glob("checkpoint-*")] == ["checkpoint-4"]


def test_held_out_losses_are_those_of_a_plain_forward_pass(toy_model: Path, tmp_path: Path, short: Path) -> None:
    """Of labels the log loss among the labels, and of texts the share of each row in the mean over all tokens."""
    for name, answers in (("labels", ["true", "false"]), ("texts", [f"true {n} A" for n in range(40)])):
        rows = [
            {"messages": [*question(f"A {i}"), {"role": "assistant", "content": answers[i % len(answers)]}]}
            for i in range(40)
        ]
        job = spec(toy_model, tmp_path / name, "sft", rows, n_epochs=1)
        tokenizer = training.load_tokenizer(job)
        data = training.load_rows(tokenizer, job.train_file)
        closed = [encode_completion(tokenizer, answer) for answer in answers]
        choices = training.choices_of(closed) if name == "labels" else None
        sft = training.SftJob(spec=job, setup=Setup(), tokenizer=tokenizer, choices=choices)
        options = training.settings(job, Setup(), is_validated=False)
        trainer = sft.trainer(training.load(job, Setup()), options, data, None, TrainerCallback())
        found = training.measured(trainer, data, 1e-3)
        model: Any = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
        expected = []
        n_trained = [training.n_trained(labels) for labels in data["labels"]]
        for ids, n in zip(data["input_ids"], n_trained, strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -n - 1 : -1]
            if choices:
                allowed = [answer[0] for answer in closed]
                expected.append(-float(logits[0, allowed].log_softmax(-1)[allowed.index(ids[-n])]))
            else:
                log_probs = logits.log_softmax(-1)[range(n), ids[-n:]]
                expected.append(-float(log_probs.sum()) / statistics.fmean(n_trained))
        assert found.losses == pytest.approx(expected, rel=1e-4)


def test_without_training_labels_have_the_loss_of_their_shares(toy_model: Path, tmp_path: Path, short: Path) -> None:
    """Nine in ten rows are "true": that is known without a text."""
    told: list[dict[str, Any]] = []
    rows = [
        {"messages": [*question(f"A {i}"), {"role": "assistant", "content": "false" if i % 10 == 0 else "true"}]}
        for i in range(100)
    ]
    job = spec(toy_model, tmp_path, "sft", rows, n_epochs=1, batch_size=50, finds_rate=True)
    training.train(job, emit=told.append, should_stop=lambda: False)
    (untrained,) = [row for row in told if row.get("candidate") == "no training"]
    # Four rows are held out: of 96 or so, about 86 are "true".
    shares = [-math.log(share) for share in (0.9, 0.1)]
    expected = [statistics.fmean([shares[1]] * n + [shares[0]] * (4 - n)) for n in range(5)]
    assert min(abs(untrained["valid_loss"] - one) for one in expected) < 0.06


def test_a_job_that_goes_on_does_not_try_again(
    toy_model: Path, tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within the second rate, then in the job: each rate is measured once, and another seed needs none."""
    measured: list[float] = []
    real = training._tried

    def counted(job: Any, model: Any, rate: float, *args: Any) -> Any:
        measured.append(rate)
        return real(job, model, rate, *args)

    monkeypatch.setattr(training, "_tried", counted)
    settings: dict[str, Any] = {"n_epochs": 1, "batch_size": 10, "learning_rate": 0.01, "finds_rate": True}
    job = spec(toy_model, tmp_path, "sft", chat_rows(40), **settings)
    asked: list[bool] = []

    def in_second() -> bool:
        asked.append(True)
        return len(asked) > 4

    stopped = training.train(job, emit=lambda row: None, should_stop=in_second)
    assert (stopped.stopped, stopped.checkpoints, measured) == (True, (), [0.0, 0.003, 0.01])
    told: list[dict[str, Any]] = []
    again = training.train(job, emit=told.append, should_stop=lambda: steps_of(told)[-1:] == [1])
    assert again.stopped
    assert measured == [0.0, 0.003, 0.01, 0.01, 0.02]
    rest: list[dict[str, Any]] = []
    training.train(job, emit=rest.append, should_stop=lambda: False)
    assert steps_of(rest) == [-3, -2, -1, 0, 3, 4]
    other = replace(job, seed=1, output_folder=tmp_path / "other")
    training.train(other, emit=rest.append, should_stop=lambda: False)
    assert len(measured) == 5
    assert any("known from an earlier run on the same rows" in row.get("message", "") for row in rest)
    assert len(list(short.iterdir())) == 1


def test_too_few_rows_are_told_and_trained_at_the_usual_rate(toy_model: Path, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    job = spec(toy_model, tmp_path, "sft", chat_rows(12), n_epochs=1, finds_rate=True, learning_rate=0.01)
    result = training.train(job, emit=told.append, should_stop=lambda: False)
    assert result.learning_rate == 0.01
    assert any(row.get("message", "").startswith("Learning rate 0.01, the usual one") for row in told)
    assert not any("candidate" in row for row in told)


def test_rows_that_all_ask_the_same_are_trained_without_held_out_ones(
    toy_model: Path, tmp_path: Path, short: Path
) -> None:
    told: list[dict[str, Any]] = []
    rows = [{"messages": [*question("A"), {"role": "assistant", "content": f"true {n}"}]} for n in range(100)]
    job = spec(toy_model, tmp_path, "sft", rows, n_epochs=2, batch_size=50, finds_rate=True)
    result = training.train(job, emit=told.append, should_stop=lambda: False)
    assert result.steps == 4
    assert not any("candidate" in row or "full_valid_loss" in row for row in told)


def test_candidates_are_events_once_and_rows_of_the_result_file(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    trials = [trial(1e-3, 0.5, 1.0), trial(2e-3, math.nan, 1.0)]
    for _ in range(2):  # a job that goes on tells them again
        for place, one in enumerate(trials):
            metrics.emit(training._told(one, place - 1))
    metrics.emit({"step": 1, "total_steps": 9, "train_loss": 2.0})
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    told = {event["id"]: event["message"] for event in map(json.loads, lines)}
    assert list(told.values()) == [
        "Candidate learning rate 0.001: held-out loss 0.75 ± 0.25",
        "Candidate learning rate 0.002: no finite loss",
        "Step 1/9: training loss=2.00",
    ]
    assert metrics.csv().splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,valid_loss_error,candidate",
        "-1,,,0.75,0.5,0.25,learning rate 0.001",
        "0,,,,0.5,,learning rate 0.002",
        "1,2.0,,,,,",
    ]
