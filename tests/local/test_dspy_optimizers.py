"""DSPy's own optimizers train the real small model on the real local host, and give a program back that asks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.teleprompt import BetterTogether, BootstrapFinetune

import dspy_finetune as ft
from dspy_finetune.prompts import as_adapter
from dspy_finetune.quickstart import load_titles

pytestmark = [pytest.mark.local, pytest.mark.filterwarnings("ignore:.*dspy.LM.*:DeprecationWarning")]

BASE = "smollm2-135m-instruct"
PROMPT = ft.prompts.binary()
N_TITLES, N_HELD_OUT = 64, 8


@pytest.fixture
def host(tmp_path: Path) -> Iterator[ft.Host]:
    one = ft.Host.local(root=tmp_path / "host")
    yield one
    one.close()


def is_right(example: Any, prediction: Any, trace: object = None) -> bool:
    return bool(example.is_favorite == prediction.is_favorite)


def test_bootstrap_finetune_and_better_together_from_titles_to_a_tuned_program(host: ft.Host) -> None:
    """The model is trained on those of its own answers that are right; both optimizers find the same paid job."""
    rows = [row.without("reason") if "reason" in row else row for row in load_titles()[: N_TITLES + N_HELD_OUT]]
    titles = [dspy.Example(title=row.title, is_favorite=row.is_favorite).with_inputs("title") for row in rows]
    train, held_out = titles[N_HELD_OUT:], titles[:N_HELD_OUT]
    statuses: list[str] = []
    provider = ft.FinetuneProvider(
        host=host, suffix="boot", seed=1, validation=0.1, hyperparameters={"n_epochs": 1}, max_usd=0.0,
        on_progress=lambda look: statuses.append(look.status),
    )  # fmt: skip

    def student() -> Any:
        program = dspy.Predict(PROMPT.signature)
        program.set_lm(provider.lm(temperature=0.0, max_tokens=4))
        return program

    with dspy.context(adapter=as_adapter(PROMPT)):
        tuned = BootstrapFinetune(metric=is_right, num_threads=8).compile(student(), trainset=train)
        assert tuned.lm.model.startswith(f"openai/ft:{BASE}:local:boot:")
        assert type(tuned(title=held_out[0].title).is_favorite) is bool

        optimizer = BetterTogether(metric=is_right, w=BootstrapFinetune(metric=is_right, num_threads=8))
        best = optimizer.compile(
            student(), trainset=train, valset=held_out, strategy="w", num_threads=8,
            shuffle_trainset_between_steps=False,
        )  # fmt: skip
    assert not best.flag_compilation_error_occurred
    candidates = {one["strategy"]: one for one in best.candidate_programs}
    assert set(candidates) == {"", "w"}
    assert candidates["w"]["program"].lm.model == tuned.lm.model
    assert best.candidate_programs[0]["score"] == max(one["score"] for one in candidates.values())

    (job,) = ft.list_jobs(host=host)
    assert (job.facts.fine_tuned_model, job.facts.seed) == (tuned.lm.model.removeprefix("openai/"), 1)
    assert {"running", "succeeded"} <= set(statuses)
    # Every answer is one of two labels, so a head was trained: each candidate has its cross-validated loss.
    losses = [row["valid_loss"] for row in job.metrics()]
    assert losses
    assert all(isinstance(loss, float) and loss > 0 for loss in losses)
    # What is served is what was trained, byte for byte.
    files = [path for path in (host.root or Path()).rglob("train-sft-*.jsonl") if "training" in path.parts]
    trained = [json.loads(line)["messages"] for line in files[0].read_text(encoding="utf-8").splitlines()]
    shown = next(row for row in train if PROMPT.messages(row) == trained[0][:-1])
    assert trained[0][-1]["content"] == ("true" if shown.is_favorite else "false")
