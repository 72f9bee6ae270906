"""The memory estimate: against each tensor that a backward pass keeps, and measured peaks; told before a job."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from dspy_finetune import tasks
from dspy_finetune.local import features, heads, training, worker
from dspy_finetune.local.api import Host, create_app
from dspy_finetune.local.features import batches_of
from dspy_finetune.local.memory import (
    READ_PLACES,
    READ_TOKENS,
    MemoryShortError,
    Reading,
    Rows,
    Setup,
    Sizes,
    check_reading,
    fit,
    joint_bytes,
    kept_bytes,
    needed_bytes,
    reading_bytes,
)
from dspy_finetune.local.scheduler import Scheduler, Training
from dspy_finetune.local.store import Store
from tests.local.test_jobs import CHAT_ROWS
from tests.local.test_recipes import spec

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

SMOLLM2 = Sizes(
    n_parameters=134_515_008, hidden=576, attention=576, intermediate=1536, layers=30, heads=9, vocabulary=49_152
)


def counted(config: LlamaConfig, ids: torch.Tensor, n_labels: int, setup: Setup) -> int:
    """Bytes of all that autograd keeps of one forward pass, the model's own numbers aside."""
    model: Any = LlamaForCausalLM(config)
    if setup.dtype != "float32":
        for module in model.base_model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = module.weight.data.to(torch.bfloat16)
    tuned: Any = get_peft_model(model, training.adapter())
    tuned.train()
    if setup.is_checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    own = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept: dict[int, tuple[int, Any]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other takes its place
        return tensor

    labels = torch.full_like(ids, -100)
    labels[:, -n_labels:] = ids[:, -n_labels:]
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=setup.dtype != "float32"),
    ):
        training.score_rows(tuned.get_base_model(), ids, torch.ones_like(ids), labels).loss()
    return sum(n_bytes for n_bytes, _ in kept.values())


@pytest.mark.parametrize(
    ("changes", "n_labels", "setup"),
    [
        ({}, 1, Setup()),
        ({"hidden_size": 128, "num_hidden_layers": 3}, 1, Setup()),
        ({"intermediate_size": 384, "vocab_size": 2048}, 30, Setup()),
        ({"head_dim": 32}, 5, Setup(dtype="bfloat16")),
        ({"vocab_size": 2048}, 30, Setup(dtype="bfloat16")),
    ],
)
def test_what_is_kept_for_the_backward_pass_is_what_autograd_keeps(
    changes: dict[str, Any], n_labels: int, setup: Setup
) -> None:
    given = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "vocab_size": 512, **changes}
    config = LlamaConfig(**given, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    sizes = Sizes(
        n_parameters=0,
        hidden=config.hidden_size,
        attention=4 * config.head_dim,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=4,
        vocabulary=config.vocab_size,
    )
    ids = torch.randint(3, 512, (3, 100), generator=torch.Generator().manual_seed(0))
    expected = counted(config, ids, n_labels, setup)
    assert kept_bytes(sizes, 300, 3 * n_labels, setup) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("n_tokens", "n_labels", "peak_mb"),
    [(52, 2, 1091), (287, 8, 1845), (363, 84, 2153), (1040, 4, 4251), (1032, 2, 3396)],
)
def test_the_estimate_is_within_a_quarter_of_measured_peaks(n_tokens: int, n_labels: int, peak_mb: int) -> None:
    """Peaks of anonymous memory of whole runs of SmolLM2-135M in float32, on two shared cores."""
    assert needed_bytes(SMOLLM2, n_tokens, n_labels, Setup()) == pytest.approx(peak_mb * 2**20, rel=0.25)


def test_sizes_are_those_of_the_model(toy_model: Path) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(toy_model)
    found = Sizes.of(toy_model)
    assert found.n_parameters == sum(one.numel() for one in model.parameters())
    assert (found.hidden, found.layers, found.heads, found.attention) == (16, 2, 4, 16)


def test_a_beginning_that_all_rows_share_is_counted_once() -> None:
    rows = Rows.of([([1, 2, 3, 4, 5], 1), ([1, 2, 9], 2), ([1, 2, 3, 7], 1)])
    assert rows.largest(1) == (5, 2)
    assert rows.largest(2) == (2 + 3 + 2, 3)
    assert rows.largest(9) == (2 + 3 + 2 + 1, 4)


def test_the_first_setup_that_fits_is_taken_and_the_refusal_names_what_would_fit() -> None:
    rows = Rows.of([([number, *range(499)], 1) for number in range(8)])
    plain, frugal = Setup(), Setup(is_checkpointed=True)

    def at(free_mb: int, batch_size: int = 4, rows: Rows = rows) -> Setup:
        return fit(SMOLLM2, rows, batch_size=batch_size, setups=[plain, frugal], free=free_mb * 10**6).setup

    assert at(20_000) == plain
    assert at(3_000) == frugal
    with pytest.raises(MemoryShortError, match=r"1,400 MB are free; batch_size \d would take 1,\d\d\d MB"):
        at(1_400, 8)
    long = Rows.of([(list(range(8000)), 1)])
    with pytest.raises(MemoryShortError, match=r"rows of at most \d+ tokens at batch_size 1 would fit \(.* 8000"):
        at(1_400, 1, long)
    with pytest.raises(MemoryShortError, match="take a smaller base model"):
        at(500)
    assert fit(SMOLLM2, rows, batch_size=4, setups=[plain], free=None).setup == plain


ENCODER = Sizes(
    n_parameters=22_713_216, hidden=384, attention=384, intermediate=1536, layers=6, heads=12, vocabulary=30_522
)


@pytest.mark.parametrize(("n_rows", "shared", "peak_mb"), [(24, 92, 1089), (60, 2300, 1600)])
def test_the_estimate_of_a_head_is_within_a_quarter_of_measured_peaks(n_rows: int, shared: int, peak_mb: int) -> None:
    """Peaks of anonymous memory of whole runs of SmolLM2-135M and MiniLM, read in bfloat16, on two shared cores."""
    base = replace(SMOLLM2, kv=192)
    reading = Reading(
        n_rows=n_rows, shared=shared, lengths=[22] * n_rows, layers=(10, 15, 20, 25), n_vectors=1, n_widest=1,
        encoder=ENCODER,
    )  # fmt: skip
    assert reading_bytes(base, reading, width=2) == pytest.approx(peak_mb * 2**20, rel=0.25)


def test_many_short_rows_behind_a_long_rubric_are_read_in_passes_whose_keys_and_values_fit() -> None:
    lengths = [10] * 300 + [3000, 17]
    for shared in (0, 2000, 50_000):
        found = list(batches_of(lengths, shared))
        assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
        for batch in found:
            longest = max(lengths[index] for index in batch)
            assert len(batch) == 1 or len(batch) * longest <= READ_TOKENS
            assert len(batch) == 1 or len(batch) * (shared + longest) <= READ_PLACES


def test_a_head_that_cannot_fit_is_refused_before_a_model_is_loaded_and_the_refusal_names_what_would_fit(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Title: {number}"}, {"role": "assistant", "content": answer}]}
        for number, answer in enumerate(["true", "false"] * 10)
    ]
    job = replace(spec(toy_model, tmp_path, "sft", rows), memory_bytes=10**6)
    monkeypatch.setattr(features.Reader, "open", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(MemoryShortError, match=r"fitting a head needs about \d+ MB of memory, and 1 MB are free; not"):
        features.train_head(job, emit=lambda told: None, should_stop=lambda: False)
    sizes, reading = features.to_read(job, *(tasks.rows_of(job.train_file) or ((), ())))
    assert sizes is not None
    assert (reading.n_rows, len(reading.lengths), reading.layers) == (20, 20, (1, 2))
    many = replace(reading, n_rows=100_000)
    free = reading_bytes(sizes, many.first(60_000))
    with pytest.raises(MemoryShortError, match=r"; (59|60),\d\d\d of the 100,000 rows would fit"):
        check_reading(sizes, many, free=free)
    long = replace(reading, shared=10**7)
    with pytest.raises(MemoryShortError, match=r"shorter prompts would fit: the longest has 10,0"):
        check_reading(sizes, long, free=10**9)
    assert check_reading(sizes, reading, free=None).startswith("Estimated memory: ")


def test_an_adapter_under_a_head_needs_what_its_longest_rows_need() -> None:
    reading = Reading(n_rows=10, shared=0, lengths=[40] * 10, layers=(10, 25), n_vectors=1, n_widest=1)
    short, long = (joint_bytes(SMOLLM2, replace(reading, lengths=[length]), batch_size=16) for length in (40, 400))
    assert long - short == pytest.approx(
        1.35
        * (
            kept_bytes(replace(SMOLLM2, layers=25), 16 * 400, 0, Setup())
            - kept_bytes(replace(SMOLLM2, layers=25), 16 * 40, 0, Setup())
            - 4 * ((16 * 400) ** 2 - 16 * 400**2 - (16 * 40) ** 2 + 16 * 40**2)
            + 4 * 16 * 360 * 576 * 26
        ),
        rel=1e-6,
    )


def test_the_estimate_of_an_adapter_under_a_head_is_within_a_quarter_of_the_measured_peak() -> None:
    reading = Reading(n_rows=40, shared=92, lengths=[22] * 40, layers=(10, 15, 20, 25), n_vectors=1, n_widest=1)
    needed = joint_bytes(replace(SMOLLM2, kv=192), reading, batch_size=16, dtype="bfloat16")
    assert needed == pytest.approx(4232 * 2**20, rel=0.25)


def test_an_adapter_under_a_head_trains_where_the_job_says(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that has no numbers: whatever stood elsewhere could not be computed with."""
    texts = [f"Title: {'true ' * (number % 5)}{number}" for number in range(20)]
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": ["yes", "no"][number % 2]}]}
        for number, text in enumerate(texts)
    ]
    job = spec(toy_model, tmp_path, "sft", rows)
    prompts = [row["messages"][:1] for row in rows]
    reader = features.Reader.open(toy_model)
    view = features.View(mode="whole", shape=features.Shape.of(reader.tokenizer, prompts))
    values = torch.tensor(reader.read(prompts, view)["base"])
    head = heads.Head(
        kind="labels", blocks=("base",), mode="whole", labels=("no", "yes"), bias=np.zeros(2, np.float32),
        weights=np.zeros((values.shape[1], 2), np.float32),
    )  # fmt: skip
    joint = training.Joint(replace(job, device="meta"), reader, view, head, values)
    padded = features.padded
    # transformers looks into a mask to leave it out where all is seen.
    monkeypatch.setattr(features, "padded", lambda rows, model: (padded(rows, model)[0], None))
    loss = torch.nn.functional.cross_entropy(joint.logits(prompts, [0, 1, 2]), joint.wanted(["yes", "no", "yes"]))
    loss.backward()
    trained = [one for group in joint.optimizer.param_groups for one in group["params"]]
    assert {one.device.type for one in (loss, *trained, *joint.model.parameters())} == {"meta"}
    assert joint.weights.grad is not None


def test_a_job_that_cannot_fit_is_refused_before_it_starts(
    tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of a job, with its worker in this process: starting one brings torch and TRL anew."""

    class Done:
        pid, returncode = 0, 0

        def __init__(self, command: list[str], **options: Any) -> None:
            monkeypatch.setattr(signal, "signal", lambda *_: None)
            (Path(command[-1]) / "work").mkdir()
            worker.run_job(Path(command[-1]))

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Done)
    store = Store(tmp_path)
    scheduler = Scheduler(store, device="cpu", n_threads=1, training=Training(memory_bytes=100 * 10**6))
    client = TestClient(create_app(Host(store, scheduler, base_models=[str(toy_model)])), base_url="http://127.0.0.1")
    content = "".join(json.dumps(row) + "\n" for row in CHAT_ROWS)
    sent = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("x.jsonl", content)})
    method = {"type": "supervised", "supervised": {"hyperparameters": {"recipe": "lora"}}}
    body = {"model": "toy", "training_file": sent.json()["id"], "method": method}
    job_id = client.post("/v1/fine_tuning/jobs", json=body).json()["id"]
    for _ in range(2):
        scheduler.tick()
    scheduler.tick()
    job = client.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    assert (job["status"], job["error"]["code"]) == ("failed", "insufficient_memory")
    assert job["error"]["param"] == "hyperparameters.batch_size"
    assert re.match(
        r"training needs about \d+ MB of memory, and 100 MB are free; not even one", job["error"]["message"]
    )
