"""Direct preference optimisation: TRL's DPOTrainer with a LoRA adapter, starting from any local model.

In: a `TrainSpec` whose files hold OpenAI's preference lines. Out: the adapter, checkpoints, and each step told to `emit`.

The loss is the sigmoid loss of DPO (Rafailov et al. 2023, eq. 7) plus the mean negative log-likelihood of the preferred
answer (TRL's loss type "sft", weight 1, as in Pang et al. 2024, "Iterative reasoning preference optimization"). DPO alone
compares two answers and never teaches how an answer is written: a model that was trained to say "A" and is then given
preferred and rejected explanations keeps saying "A" alone. The second term teaches the form.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from dspy_finetune._files import read_jsonl
from dspy_finetune.local.chat import encode_completion, encode_prompt
from dspy_finetune.local.recipe import Reporter, adapter, prepare, run, settings
from dspy_finetune.local.spec import Emit, TrainResult, TrainSpec


class TokenizedDPOTrainer(DPOTrainer):  # type: ignore[misc]  # trl ships no types
    """A DPOTrainer over rows that are token ids already, so that training and serving share one tokenisation."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def load_rows(tokenizer: Any, path: Path) -> Dataset:
    """Tokenise a preference file."""
    rows = []
    for _, row in read_jsonl(path):
        rows.append(
            {
                "prompt_ids": encode_prompt(tokenizer, row["input"]["messages"]),
                "chosen_ids": encode_completion(tokenizer, row["preferred_output"][0].get("content") or ""),
                "rejected_ids": encode_completion(tokenizer, row["non_preferred_output"][0].get("content") or ""),
            }
        )
    return Dataset.from_list(rows)


def train(spec: TrainSpec, *, emit: Emit, should_stop: Callable[[], bool]) -> TrainResult:
    """Train one adapter on preference lines. See `TrainSpec` for what is given and `TrainResult` for what comes back."""
    model, tokenizer = prepare(spec)
    rows = load_rows(tokenizer, spec.train_file)
    reporter = Reporter(emit, should_stop)
    trainer = TokenizedDPOTrainer(
        model=model,
        args=DPOConfig(**settings(spec), beta=spec.beta, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0]),
        train_dataset=rows,
        eval_dataset=load_rows(tokenizer, spec.validation_file) if spec.validation_file else None,
        processing_class=tokenizer,
        peft_config=adapter(),
        callbacks=[reporter],
    )
    # Billed like OpenAI bills: the prompt and both answers.
    n_tokens = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    return run(trainer, spec, reporter, n_tokens=n_tokens)
