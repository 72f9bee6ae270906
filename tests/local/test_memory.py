"""The memory estimate: against each tensor that a backward pass keeps, and measured peaks; told before a job."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from dspy_finetune.local import training, worker
from dspy_finetune.local.api import Host, create_app
from dspy_finetune.local.memory import MemoryShortError, Rows, Setup, Sizes, fit, kept_bytes, needed_bytes
from dspy_finetune.local.scheduler import Scheduler, Training
from dspy_finetune.local.store import Store
from tests.local.test_jobs import CHAT_ROWS

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
