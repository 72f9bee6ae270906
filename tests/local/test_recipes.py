"""The training recipes on the toy model: they learn, they stop when told to, they go on where they were."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspy_finetune.local import training
from dspy_finetune.local.chat import encode_completion, encode_prompt
from dspy_finetune.local.memory import Rows, Setup, Sizes, needed_bytes
from dspy_finetune.local.schemas import TrainResult, TrainSpec

# TRL still reads names that transformers is about to drop; its business, not ours.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore::FutureWarning:trl")

SYSTEM = {"role": "system", "content": "Answer with true or false."}


def question(text: str) -> list[dict[str, Any]]:
    return [SYSTEM, {"role": "user", "content": f"Title: {text}"}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat_rows(n: int = 12) -> list[dict[str, Any]]:
    """Always "true": what a toy can learn."""
    return [{"messages": [*question(f"A {i}"), {"role": "assistant", "content": "true"}]} for i in range(n)]


def preference_rows(n: int = 12) -> list[dict[str, Any]]:
    return [
        {
            "input": {"messages": question(f"B {i}")},
            "preferred_output": [{"role": "assistant", "content": "A"}],
            "non_preferred_output": [{"role": "assistant", "content": "B"}],
        }
        for i in range(n)
    ]


def spec(toy: Path, folder: Path, method: Any, rows: list[dict[str, Any]], **options: Any) -> TrainSpec:
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "validation_file": None,
        "n_epochs": 10,
        "batch_size": 4,
        "learning_rate": 0.05,
        "beta": 0.1,
        "seed": 0,
        "dtype": "float32",  # the same numbers on every processor
        **options,
    }
    return TrainSpec(
        method=method,
        model_folder=toy,
        train_file=write(folder / "train.jsonl", rows),
        output_folder=folder / "out",
        device="cpu",
        n_threads=1,
        **settings,
    )


def steps_of(told: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in told if "step" in row]


def answer_probability(toy: Path, result: TrainResult | None, messages: list[dict[str, Any]], answer: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(toy)
    model: Any = AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float32)
    if result is not None:
        model = PeftModel.from_pretrained(model, result.adapter)
    prompt, token = encode_prompt(tokenizer, messages), encode_completion(tokenizer, answer)[0]
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)[token])


def test_sft_learns_the_answers_and_tells_every_step(toy_model: Path, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    rows = chat_rows()
    held_out = write(tmp_path / "validation.jsonl", chat_rows(4))
    job = spec(toy_model, tmp_path, "sft", rows, validation_file=held_out)
    result = training.train(job, emit=told.append, should_stop=lambda: False)
    before = answer_probability(toy_model, None, question("A 3"), "true")
    after = answer_probability(toy_model, result, question("A 3"), "true")
    # A random toy of 16 dimensions learns no more than this; the real model's test asks for an accuracy.
    assert after > 50 * before
    steps = [row for row in told if "train_loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 31))
    assert {row["total_steps"] for row in steps} == {30}
    assert steps[-1]["train_loss"] < 0.7 * steps[0]["train_loss"]
    assert len([row for row in told if "full_valid_loss" in row]) == 10
    assert [step for step, _ in result.checkpoints] == [24, 27, 30]
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    tokens = sum(
        len(encode_prompt(tokenizer, row["messages"][:2])) + len(encode_completion(tokenizer, "true")) for row in rows
    )
    assert result.trained_tokens == 10 * tokens


def test_only_weighted_assistant_messages_are_trained(toy_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    messages = [
        *question("A"),
        {"role": "assistant", "content": "false", "weight": 0},
        {"role": "user", "content": "B"},
        {"role": "assistant", "content": "true"},
    ]
    (row,) = training.tokenize(tokenizer, messages)
    trained = [label for label in row["labels"] if label != training.IGNORED]
    assert trained == encode_completion(tokenizer, "true")
    assert row["input_ids"] == encode_prompt(tokenizer, messages[:4]) + trained


def test_dpo_moves_the_preference_and_starts_at_the_reference(toy_model: Path, tmp_path: Path) -> None:
    """Before the first update both models are the same: the sigmoid loss is ln 2, and the margin 0."""
    told: list[dict[str, Any]] = []
    job = spec(toy_model, tmp_path, "dpo", preference_rows(), learning_rate=0.02)
    result = training.train_dpo(job, emit=told.append, should_stop=lambda: False)
    likelihood = -sum(
        math.log(answer_probability(toy_model, None, question(f"B {i}"), "A")) for i in range(12)
    ) / 12  # fmt: skip
    told = [row for row in told if "train_loss" in row]
    assert told[0]["train_rewards_margins"] == pytest.approx(0.0, abs=1e-6)
    assert told[0]["train_loss"] > math.log(2)
    assert told[0]["train_loss"] < math.log(2) + 2 * likelihood + 5
    assert told[-1]["train_rewards_margins"] > 0
    messages = question("B 99")
    assert answer_probability(toy_model, result, messages, "A") > answer_probability(toy_model, None, messages, "A")
    assert answer_probability(toy_model, result, messages, "B") < answer_probability(toy_model, None, messages, "B")


def test_a_stopped_run_goes_on_from_its_checkpoint(toy_model: Path, tmp_path: Path) -> None:
    """Stopped after step 5 and started again, it takes the steps that were left and no other."""
    first: list[dict[str, Any]] = []
    job = spec(toy_model, tmp_path, "sft", chat_rows(), n_epochs=3)
    stopped = training.train(job, emit=first.append, should_stop=lambda: len(steps_of(first)) >= 4)
    assert stopped.stopped
    # The pause left a checkpoint to go on from, in the middle of an epoch: it is no model that anybody asked for.
    assert [step for step, _ in training.checkpoints(job.output_folder)] == [3, 5]
    assert [step for step, _ in stopped.checkpoints] == [3]
    rest: list[dict[str, Any]] = []
    result = training.train(job, emit=rest.append, should_stop=lambda: False)
    assert not result.stopped
    assert steps_of(first + rest) == list(range(1, 10))
    assert [step for step, _ in result.checkpoints] == [3, 6, 9]


def test_a_run_paused_at_its_first_step_publishes_no_checkpoint(toy_model: Path, tmp_path: Path) -> None:
    job = spec(toy_model, tmp_path, "sft", chat_rows(), n_epochs=1)
    paused = training.train(job, emit=lambda told: None, should_stop=lambda: True)
    assert (paused.stopped, paused.steps, paused.checkpoints) == (True, 1, ())
    assert [step for step, _ in training.checkpoints(job.output_folder)] == [1]


def test_half_precision_and_less_memory_take_nearly_the_same_steps(toy_model: Path, tmp_path: Path) -> None:
    """bfloat16 has three significant digits; what is computed again instead of kept is the same."""
    losses = []
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    ids = [row["input_ids"] for row in training.load_rows(tokenizer, write(tmp_path / "rows.jsonl", chat_rows()))]
    largest = Rows.of([(one, 2) for one in ids]).largest(4)
    short = needed_bytes(Sizes.of(toy_model), *largest, Setup()) - 1
    runs: dict[str, dict[str, Any]] = {"plain": {}, "half": {"dtype": "bfloat16"}, "frugal": {"memory_bytes": short}}
    for name, changes in runs.items():
        told: list[dict[str, Any]] = []
        job = spec(toy_model, tmp_path / name, "sft", chat_rows(), n_epochs=1, **changes)
        training.train(job, emit=told.append, should_stop=lambda: False)
        losses.append([row["train_loss"] for row in told if "train_loss" in row])
        message = told[0]["message"]
        assert ("bfloat16" in message, "computed again" in message) == (name == "half", name == "frugal")
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
    assert losses[2] == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.parametrize(("n_tokens", "expected"), [(30, "float32"), (300, "bfloat16")])
def test_half_precision_is_chosen_where_it_is_faster(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_tokens: int, expected: str
) -> None:
    """On a processor that has it, and for batches large enough; what is set by hand is taken as it is."""
    monkeypatch.setattr(training, "fast_dtype", lambda device: "bfloat16")
    rows = Rows.of([([first, *range(n_tokens)], 1) for first in range(4)])
    for asked, chosen in (("auto", expected), ("float32", "float32"), ("bfloat16", "bfloat16")):
        told: list[dict[str, Any]] = []
        job = spec(toy_model, tmp_path / asked, "sft", chat_rows(), dtype=asked)
        assert training.plan(job, rows, told.append).dtype == chosen
        assert told[0]["message"].startswith(f"Training on cpu in {chosen}. Estimated memory: ")
    told = []
    job = spec(toy_model, tmp_path / "float16", "sft", chat_rows(), dtype="float16")
    assert training.plan(job, rows, told.append).dtype == expected
    assert told[0]["message"].startswith("float16 trains on a GPU alone: ")


def test_the_same_seed_gives_the_same_losses(toy_model: Path, tmp_path: Path) -> None:
    losses = []
    for name in ("one", "two"):
        told: list[dict[str, Any]] = []
        training.train(
            spec(toy_model, tmp_path / name, "sft", chat_rows(), n_epochs=1),
            emit=told.append,
            should_stop=lambda: False,
        )
        losses.append([row["train_loss"] for row in told if "train_loss" in row])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_answers_of_a_closed_set_are_scored_among_one_another(toy_model: Path) -> None:
    """Against a plain softmax over whole answers: "true", "true A" and "false", of which one begins another."""
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    model: Any = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    answers = [encode_completion(tokenizer, text) for text in ("true", "true A", "false")]
    prompt = encode_prompt(tokenizer, question("A 3"))
    choices = training.choices_of(answers)
    losses = []
    for answer in answers:
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[training.IGNORED] * len(prompt) + answer])
        scores = training.score_rows(model, ids, torch.ones_like(ids), labels, choices)
        assert scores.among_choices is not None
        losses.append(float(scores.among_choices.detach()))
    # Each step's softmax is over the tokens with which an answer can go on, so the answers' probabilities sum to one.
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1.0, abs=1e-5)
    first = sorted({answer[0] for answer in answers})
    logits = model(input_ids=torch.tensor([prompt])).logits.detach()[0, -1][first].softmax(-1)
    assert math.exp(-losses[2]) == pytest.approx(float(logits[first.index(answers[2][0])]), abs=1e-5)


def test_the_best_epoch_is_kept_by_the_loss_on_held_out_rows(toy_model: Path, tmp_path: Path) -> None:
    """At a rate that ruins the model in the end, what is kept is the epoch with the lowest validation loss."""
    told: list[dict[str, Any]] = []
    rows = [
        {"messages": [*question(f"A {i}"), {"role": "assistant", "content": ["true", "false"][i % 2]}]}
        for i in range(100)
    ]
    job = spec(toy_model, tmp_path, "sft", rows, n_epochs=4, batch_size=10, learning_rate=0.5)
    result = training.train(job, emit=told.append, should_stop=lambda: False)
    validated = {row["step"]: row["full_valid_loss"] for row in told if "full_valid_loss" in row}
    assert len(validated) == 4
    assert result.steps == min(validated, key=lambda step: validated[step])
    assert result.steps in {step for step, _ in result.checkpoints}
    kept = dict(result.checkpoints)[result.steps]
    assert result.adapter is not None
    names = "adapter_model.safetensors"
    from safetensors.torch import load_file

    best, saved = load_file(kept / names), load_file(result.adapter / names)
    assert all(torch.equal(best[name], saved[name]) for name in best)
    assert any("Kept the adapter" in row.get("message", "") for row in told)


def test_both_orders_of_a_pair_are_held_out_together(toy_model: Path) -> None:
    """The mirror of a pair that is trained on would tell the answer of the one that is held out."""
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    pairs = [(f"bees {n}", f"tax {n}") for n in range(60)]
    messages = [
        [{"role": "user", "content": f"A: {a}\nB: {b}"}, {"role": "assistant", "content": answer}]
        for one, other in pairs
        for a, b, answer in ((one, other, "A"), (other, one, "B"))
    ]
    rows = Dataset.from_list([row for one in messages for row in training.tokenize(tokenizer, one)])
    train, held_out = training._held_out(tokenizer, rows, seed=0)
    assert held_out is not None
    assert len(held_out) == 12
    # The answers differ between the orders: what is equal is the words of the question.
    words = [
        {" ".join(sorted(tokenizer.decode(ids[:-2]).split())) for ids in part["input_ids"]}
        for part in (train, held_out)
    ]
    assert not words[0] & words[1]
