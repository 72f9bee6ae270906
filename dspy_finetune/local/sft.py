"""Supervised fine-tuning: TRL's SFTTrainer with a LoRA adapter, loss on the assistant's words only.

In: a `TrainSpec` whose files hold OpenAI's chat lines. Out: the adapter, checkpoints, and each step told to `emit`.
The rows are tokenised by `chat.py`, the same code that serves: what is trained is what will be asked, token for token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from dspy_finetune._files import read_jsonl
from dspy_finetune.local.chat import training_turns
from dspy_finetune.local.prefix_tree import score_rows
from dspy_finetune.local.recipe import Reporter, adapter, prepare, run, settings
from dspy_finetune.local.spec import Emit, TrainResult, TrainSpec

IGNORED = -100
"""The label of a token that is not trained, in transformers and TRL."""


def tokenize(tokenizer: Any, messages: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` of each answer to train on: one row per assistant message whose weight is not 0.

    The turns of a conversation repeat their beginning; the prefix tree computes it once when they share a batch.
    """
    return [
        {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}
        for prompt, answer in training_turns(tokenizer, messages)
    ]


class PrefixTreeSFTTrainer(SFTTrainer):
    """An SFTTrainer whose loss goes over the batch's prefix tree."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean negative log-likelihood of the trained tokens."""
        assert not return_outputs
        plain = self.accelerator.unwrap_model(model).get_base_model()
        scores = score_rows(plain, inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["mean_token_accuracy"].append(scores.accuracy())
        return scores.loss()


def load_rows(tokenizer: Any, path: Path) -> Dataset:
    """Tokenise a chat file."""
    return Dataset.from_list([row for _, line in read_jsonl(path) for row in tokenize(tokenizer, line["messages"])])


def train(spec: TrainSpec, *, emit: Emit, should_stop: Callable[[], bool]) -> TrainResult:
    """Train one adapter on chat lines: `TrainSpec` says what is given, `TrainResult` what comes back."""
    model, tokenizer = prepare(spec)
    rows = load_rows(tokenizer, spec.train_file)
    reporter = Reporter(emit, should_stop)
    trainer = PrefixTreeSFTTrainer(
        model=model,
        args=SFTConfig(**settings(spec), packing=False, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=rows,
        eval_dataset=load_rows(tokenizer, spec.validation_file) if spec.validation_file else None,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id),
        processing_class=tokenizer,
        peft_config=adapter(),
        callbacks=[reporter],
    )
    return run(trainer, spec, reporter, n_tokens=sum(len(ids) for ids in rows["input_ids"]))
