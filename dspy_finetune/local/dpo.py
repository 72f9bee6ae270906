"""Direct preference optimisation: TRL's DPOTrainer with a LoRA adapter, starting from any local model.

In: a `TrainSpec` whose files hold OpenAI's preference lines. Out: the adapter, checkpoints, each step told to `emit`.

The loss is the sigmoid loss of DPO (Rafailov et al. 2023, eq. 7) plus the mean negative log-likelihood of the preferred
answer (weight 1, as in Pang et al. 2024, "Iterative reasoning preference optimization", eq. 2). DPO alone
compares two answers and never teaches how an answer is written: a model that was trained to say "A" and is then given
preferred and rejected explanations keeps saying "A" alone. The second term teaches the form.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional as F
from trl import DPOConfig, DPOTrainer

from dspy_finetune._files import read_jsonl
from dspy_finetune.local.chat import encode_completion, encode_prompt
from dspy_finetune.local.prefix_tree import score_rows
from dspy_finetune.local.recipe import Reporter, adapter, prepare, run, settings
from dspy_finetune.local.spec import Emit, TrainResult, TrainSpec


class PrefixTreeDPOTrainer(DPOTrainer):
    """A DPOTrainer over rows of token ids, whose loss goes over the batch's prefix tree.

    A preferred and a rejected answer share their question, and all questions share their system prompt.
    """

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        # The rows are tokenised already, by the code that serves.
        return dataset

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """DPO's sigmoid loss plus the mean negative log-likelihood of the preferred answers."""
        assert not return_outputs
        tuned = self.accelerator.unwrap_model(model)
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        rows = (inputs["input_ids"], inputs["attention_mask"], labels)
        scores = score_rows(tuned.get_base_model(), *rows)
        with torch.no_grad(), tuned.disable_adapter():
            reference = score_rows(tuned.get_base_model(), *rows)
        # The collator puts the preferred answers first, then the rejected ones: (2B, L - 1) -> two times (B,).
        rewards = self.beta * (scores.log_probs - reference.log_probs).sum(dim=1)
        chosen, rejected = rewards.chunk(2)
        seen = rewards.detach().chunk(2)
        of_chosen = scores.label_mask.clone()
        of_chosen[len(of_chosen) // 2 :] = False
        likelihood = -scores.log_probs[of_chosen].mean()
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["mean_token_accuracy"].append(float(scores.is_top1[of_chosen].float().mean()))
        metrics["rewards/accuracies"].append(float((seen[0] > seen[1]).float().mean()))
        metrics["rewards/margins"].append(float((seen[0] - seen[1]).mean()))
        return -F.logsigmoid(chosen - rejected).mean() + likelihood


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
    """Train one adapter on preference lines: `TrainSpec` says what is given, `TrainResult` what comes back."""
    model, tokenizer = prepare(spec)
    rows = load_rows(tokenizer, spec.train_file)
    reporter = Reporter(emit, should_stop)
    trainer = PrefixTreeDPOTrainer(
        model=model,
        args=DPOConfig(**settings(spec), beta=spec.beta),
        train_dataset=rows,
        eval_dataset=load_rows(tokenizer, spec.validation_file) if spec.validation_file else None,
        processing_class=tokenizer,
        peft_config=adapter(),
        callbacks=[reporter],
    )
    # Billed like OpenAI bills: the prompt and both answers.
    n_tokens = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    return run(trainer, spec, reporter, n_tokens=n_tokens)
