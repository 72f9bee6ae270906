"""The local host on a GPU: what it trains and serves there is what a CPU does, in the formats that GPUs are fast in.

Skipped where torch sees no GPU.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from dspy_finetune.local import features, hardware, memory, training
from dspy_finetune.local.chat import encode_prompt
from dspy_finetune.local.engine import Engine, Source
from dspy_finetune.local.heads import Head
from dspy_finetune.local.models import load_model, load_tokenizer
from dspy_finetune.local.sampling import Settings
from dspy_finetune.local.schemas import TrainSpec
from tests.local.test_engine import TEXTS, conversation, plain
from tests.local.test_jobs import upload, wait
from tests.local.test_recipes import answer_probability, chat_rows, preference_rows, question, spec
from tests.local.toy_server import start_server

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore::FutureWarning:trl")

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)


@pytest.fixture(scope="module")
def model(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty million random weights behind the toy's tokenizer: where four bits make a difference."""
    folder = tmp_path_factory.mktemp("models") / "larger"
    config = transformers.AutoConfig.from_pretrained(toy_model)
    config.update(
        {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 64, "initializer_range": 0.02}
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    load_tokenizer(toy_model).save_pretrained(folder)
    return folder


@pytest.fixture
def on_gpu(model: Path, tmp_path: Path) -> Any:
    """A job's settings, to be run on the GPU in the format that it chooses."""

    def made(method: str, rows: list[dict[str, Any]], name: str = "job", **changes: Any) -> TrainSpec:
        options = {"n_epochs": 4, "learning_rate": 2e-3, "dtype": "auto", **changes}
        return replace(spec(model, tmp_path / name, method, rows, **options), device="cuda")

    return made


def run(job: TrainSpec, recipe: Any = training.train) -> tuple[Any, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    return recipe(job, emit=told.append, should_stop=lambda: False), told


def losses(told: Sequence[dict[str, Any]]) -> list[float]:
    return [row["train_loss"] for row in told if "train_loss" in row]


def labelled(n: int = 40) -> list[dict[str, Any]]:
    return [
        {"messages": [*question(f"{word} {n}"), {"role": "assistant", "content": answer}]}
        for n in range(n // 2)
        for word, answer in (("reader", "yes"), ("point", "no"))
    ]


def test_an_adapter_learns_in_the_gpus_format(on_gpu: Any, model: Path) -> None:
    result, told = run(on_gpu("sft", chat_rows()))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert told[0]["message"].startswith(f"Training on cuda in {hardware.fast_dtype('cuda')}. Estimated memory: ")
    assert losses(told)[-1] < 0.7 * losses(told)[0]
    # Asked on the CPU in float32: what was learned is in the file.
    before, after = (answer_probability(model, one, question("A 3"), "true") for one in (None, result))
    assert after > 10 * before


def test_formats_and_ways_to_save_memory_take_nearly_the_same_steps(on_gpu: Any, model: Path) -> None:
    """float16 as on cards before Ampere, layers computed again, four-bit weights: each chosen by what is free."""
    rows = chat_rows()
    read = training.load_rows(load_tokenizer(model), on_gpu("sft", rows).train_file)
    largest = memory.Rows.of([(row["input_ids"], 2) for row in read]).largest(4)
    plain = memory.Setup(dtype=hardware.fast_dtype("cuda"), is_cast=True)
    checkpointed = replace(plain, is_checkpointed=True)
    short, shorter = (memory.needed_bytes(memory.Sizes.of(model), *largest, one) - 1 for one in (plain, checkpointed))
    assert short > shorter
    ways: dict[str, dict[str, Any]] = {
        "float32": {"dtype": "float32"}, "chosen": {}, "float16": {"dtype": "float16"},
        "computed again": {"memory_bytes": short}, "four-bit": {"memory_bytes": shorter},
    }  # fmt: skip
    found = {}
    for name, changes in ways.items():
        if name == "four-bit":
            pytest.importorskip("bitsandbytes")
        _, told = run(on_gpu("sft", rows, name, **changes))
        message = told[0]["message"]
        assert ("computed again" in message, "four-bit" in message) == (
            name in ("computed again", "four-bit"),
            name == "four-bit",
        )
        found[name] = losses(told)
    for name, values in found.items():
        assert values[0] == pytest.approx(found["float32"][0], rel=0.1 if name == "four-bit" else 0.02), name
        assert values[-1] < 0.7 * values[0], name
    assert found["computed again"] == pytest.approx(found["chosen"], rel=0.1)


def test_the_estimate_is_not_below_what_a_job_takes(on_gpu: Any, model: Path) -> None:
    """Of the GPU's memory; the estimate counts the process's own memory too, which stands elsewhere."""
    job = on_gpu("sft", chat_rows(64), batch_size=32, n_epochs=1)
    read = training.load_rows(load_tokenizer(model), job.train_file)
    largest = memory.Rows.of([(row["input_ids"], 2) for row in read]).largest(32)
    needed = memory.needed_bytes(
        memory.Sizes.of(model), *largest, memory.Setup(dtype=hardware.fast_dtype("cuda"), is_cast=True)
    )
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(job)
    assert torch.cuda.max_memory_allocated() - before < needed - memory.RUNTIME_BYTES


def test_a_stopped_job_goes_on_from_its_checkpoint(on_gpu: Any) -> None:
    job = on_gpu("sft", chat_rows(), n_epochs=3)
    first: list[dict[str, Any]] = []
    assert training.train(job, emit=first.append, should_stop=lambda: len(losses(first)) >= 5).stopped
    result, rest = run(job)
    assert [row["step"] for row in first + rest if "step" in row] == list(range(1, 10))
    assert not result.stopped


def test_preferences_are_learned(on_gpu: Any) -> None:
    _, told = run(on_gpu("dpo", preference_rows(), learning_rate=0.01), training.train_dpo)
    assert losses(told)[-1] < 0.7 * losses(told)[0]
    assert told[-1]["train_rewards_accuracies"] == 1.0


def test_a_head_reads_on_the_gpu_what_it_reads_on_a_cpu(on_gpu: Any, tmp_path: Path) -> None:
    job = on_gpu("sft", labelled())
    result, told = run(job, features.train_head)
    assert told[0]["message"].startswith("Reading on cuda. Estimated memory: ")
    head = Head.load(result.head)
    view = features.View.from_dict(head.facts["view"])
    prompts = [row["messages"][:-1] for row in labelled()]
    found = {}
    for device in ("cpu", "cuda"):
        reader = features.Reader.open(job.model_folder, blocks=head.blocks, device=device)
        found[device] = np.exp(head.log_probabilities(reader.read(prompts, view)))
    assert found["cuda"] == pytest.approx(found["cpu"], abs=0.05)
    answers = [row["messages"][-1]["content"] for row in labelled()]
    assert [head.labels[best] for best in found["cuda"].argmax(axis=1)] == answers


def test_an_adapter_under_a_head_trains_on_the_gpu(on_gpu: Any) -> None:
    result, told = run(on_gpu("sft", labelled(), n_epochs=2, recipe="head+lora"), training.train_head_lora)
    assert result.head is not None
    assert any("candidate" in row and math.isfinite(row["valid_loss"]) for row in told)


@pytest.fixture
def engine(model: Path, toy_model: Path) -> Iterator[Engine]:
    sources = {"toy": Source(folder=toy_model), "larger": Source(folder=model)}
    running = Engine(sources.__getitem__, device="cuda", dtype="float32")
    yield running
    running.close()


def test_answers_on_the_gpu_are_those_of_a_plain_pass_on_the_cpu(engine: Engine, toy_model: Path) -> None:
    model, tokenizer = load_model(toy_model, []), load_tokenizer(toy_model)
    settings = Settings(max_tokens=8, temperature=0, n_top=20)
    chats = [conversation(text, number % 2) for number, text in enumerate(TEXTS * 4)]
    futures = [engine.submit("toy", chat, settings) for chat in chats]
    for chat, future in zip(chats, futures, strict=True):
        [answer] = future.result(60).answers
        ids = encode_prompt(tokenizer, chat)
        for token in answer.tokens:
            expected = plain(model, ids)
            assert token.id == int(expected.argmax())
            assert [value for _, value in token.top] == pytest.approx(
                torch.topk(expected, 20).values.tolist(), abs=1e-3
            )
            ids.append(token.id)


def test_half_precision_stays_near_and_a_seed_repeats_an_answer(toy_model: Path) -> None:
    running = Engine({"toy": Source(folder=toy_model)}.__getitem__, device="cuda")
    try:
        assert running.dtype == hardware.fast_dtype("cuda")
        model, tokenizer = load_model(toy_model, []), load_tokenizer(toy_model)
        asked = Settings(max_tokens=1, temperature=0, n_top=5)
        for text in TEXTS:
            [answer] = running.submit("toy", conversation(text), asked).result(60).answers
            expected = plain(model, encode_prompt(tokenizer, conversation(text)))
            for token, logprob in answer.tokens[0].top:
                assert logprob == pytest.approx(float(expected[token]), abs=0.2)
        drawn = Settings(max_tokens=8, temperature=1.5, seed=5)
        texts = [
            [answer.text for answer in running.submit("toy", conversation("x"), drawn, n=3).result(60).answers]
            for _ in range(2)
        ]
        assert texts[0] == texts[1]
        assert len(set(texts[0])) == 3
    finally:
        running.close()


def test_vectors_and_schemas_and_a_model_that_is_forgotten(engine: Engine) -> None:
    gc.collect()
    before = torch.cuda.memory_allocated()
    vectors, _ = engine.embed("larger", ["true false", "reader", "true false"]).result(60)
    assert np.linalg.norm(np.asarray(vectors), axis=1) == pytest.approx(np.ones(3), abs=1e-3)
    [answer] = engine.submit("larger", conversation("x"), Settings(max_tokens=1, temperature=0)).result(60).answers
    assert answer.tokens
    assert torch.cuda.memory_allocated() > before + 40e6
    engine.forget("larger")
    engine.submit("toy", conversation("x"), Settings(max_tokens=1)).result(60)
    gc.collect()
    assert torch.cuda.memory_allocated() < before + 40e6


def test_a_whole_job_through_the_server(model: Path, tmp_path: Path) -> None:
    server = start_server(tmp_path / "root", model, worker_module="dspy_finetune.local.worker")
    try:
        client = server.client()
        options: Any = {"n_epochs": 2, "batch_size": 4, "recipe": "lora"}
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": options}}
        job = client.fine_tuning.jobs.create(model=model.name, training_file=upload(client, chat_rows()), method=method)
        job = wait(client, job.id)
        assert job.status == "succeeded", job.error
        events = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
        assert any(event.startswith("Training on cuda in ") for event in events)
        asked: Any = question("A 3")
        answer = client.chat.completions.create(
            model=str(job.fine_tuned_model), messages=asked, max_tokens=1, logprobs=True
        )
        assert answer.choices[0].logprobs
    finally:
        server.stop()
