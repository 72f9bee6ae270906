"""What both training recipes share: the model with its adapter, the trainer's settings, and telling how it goes.

In: a `TrainSpec`. Out: a loaded model, TRL settings, a callback that reports each step, and the `TrainResult` of a run.
The settings were measured on SmolLM2-135M: few steps want a high rate and small batches (see `schemas.py`).
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from dspy_finetune._files import sha256_file
from dspy_finetune._jsonl import read_jsonl
from dspy_finetune._optional import require
from dspy_finetune.local import features, memory, rates
from dspy_finetune.local.chat import encode_completion, encode_prompt, training_turns
from dspy_finetune.local.features import View
from dspy_finetune.local.forward import forest_of
from dspy_finetune.local.hardware import fast_dtype, set_attention
from dspy_finetune.local.heads import Head, fit, folds_of, numbers_of, to_scale
from dspy_finetune.local.memory import HEAD_CHUNK, Rows, Setup, Sizes, may_take, megabytes, weight_bytes
from dspy_finetune.local.memory import fit as fit_memory
from dspy_finetune.local.rates import Trial
from dspy_finetune.local.schemas import Emit, TrainResult, TrainSpec
from dspy_finetune.tasks import MAX_LABELS, MULTIPLIERS, Sweep, message_text, rows_of, sweep_of, task_of

MIN_HALF_TOKENS = 250
"""From so many distinct tokens in a batch on, a processor trains in bfloat16. With AMX and SmolLM2-135M a step is 1.30
times as fast at 280; at 180 it is 1.14 times, and whole jobs on such rows took as long as in float32
(benchmarks/results/local_host.md)."""
LORA_ALPHA = 16
LORA_DROPOUT = 0.05
WARMUP_SHARE = 0.1
"""The first tenth of the steps: with 0.05 and a rate of 2e-3 the adapter's first steps broke the model for good."""
# TRL turns it on: memory that a small model does not need, for a third more time. transformers 5.21 renamed it.
CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in transformers.TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)


def load_tokenizer(spec: TrainSpec) -> Any:
    """The tokenizer of a run, with threads and seeds set."""
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(spec.seed)
    if spec.n_threads:
        torch.set_num_threads(spec.n_threads)
    tokenizer = AutoTokenizer.from_pretrained(spec.model_folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def plan(spec: TrainSpec, rows: Rows, emit: Emit) -> Setup:
    """How the run computes, told as an event.

    Raises:
        MemoryShortError: It would not fit into the memory that is free.
        MissingExtraError: It would fit in four bits, and bitsandbytes is not installed.
    """
    on_gpu = spec.device != "cpu"
    batch_size = math.ceil(spec.batch_size / world_size())
    dtype = spec.dtype
    if dtype == "float16" and not on_gpu:
        emit({"message": "float16 trains on a GPU alone: the format is chosen as without --training-dtype"})
        dtype = "auto"
    if dtype == "auto":
        is_large = on_gpu or rows.largest(batch_size)[0] >= MIN_HALF_TOKENS
        dtype = fast_dtype(spec.device) if is_large else "float32"
    plain = Setup(dtype=dtype, is_cast=on_gpu)
    setups = [plain, replace(plain, is_checkpointed=True)]
    free = features.free_on(spec.device)
    if on_gpu:
        setups.append(replace(plain, is_checkpointed=True, is_four_bit=True))
    sizes = Sizes.of(spec.model_folder)
    fitting = fit_memory(sizes, rows, batch_size=batch_size, setups=setups, free=may_take(spec.memory_bytes, free))
    if fitting.setup.is_four_bit:
        require("bitsandbytes", "qlora", f"a base of {megabytes(weight_bytes(sizes, plain))} on this GPU")
    how = "four-bit weights, " if fitting.setup.is_four_bit else ""
    emit({"message": f"Training on {spec.device} in {how}{dtype}. {fitting.found}"})
    return fitting.setup


def load(spec: TrainSpec, setup: Setup) -> Any:
    """The model to train on."""
    set_attention(spec.device)
    options: dict[str, Any] = {"attn_implementation": "sdpa", "use_safetensors": True}
    dtype = getattr(torch, setup.dtype)
    if setup.is_four_bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        options["device_map"] = {"": spec.device}
    # Where it is not all cast: the sums between the layers stay in float32, and so do small updates.
    kept = dtype if setup.is_cast or setup.is_four_bit else torch.float32
    model = AutoModelForCausalLM.from_pretrained(spec.model_folder, dtype=kept, **options)
    if setup.is_four_bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if dtype != kept:
        # Frozen weights of products: cast once what autocast would cast in each step, to the same numbers.
        for module in model.base_model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = module.weight.data.to(dtype)
    return model


def world_size() -> int:
    """How many processes train together, as `accelerate launch` says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def in_any_process(flag: bool, device: Any) -> bool:
    """Whether it is so in one of the processes that train together: they stop at the same step, or wait for ever."""
    if world_size() == 1:
        return flag
    told = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
    return bool(told > 0)


def leave_group() -> None:
    """End this process's part in a training of several, once all have come so far; alone there is nothing to end.

    A process that ends with its connections open takes the threads that serve them by surprise, and may be aborted.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class AveragedGradients:
    """Part of a trainer: several processes train as one would on all of their rows.

    The losses go past the wrapper that would average gradients by itself, since they need the plain model's layers.
    """

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One process's loss and gradients, averaged over all."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]  # the trainer stands behind
        if world_size() > 1:
            trainer: Any = self
            gradients = [one.grad for one in trainer.model.parameters() if one.grad is not None]
            flat = torch.cat([one.flatten() for one in gradients])
            torch.distributed.all_reduce(flat)
            flat /= world_size()
            for gradient, part in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        return loss


def adapter() -> LoraConfig:
    """The low-rank adapter on all linear layers."""
    return LoraConfig(
        r=memory.LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_dropout=LORA_DROPOUT,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def settings(spec: TrainSpec, setup: Setup, *, is_validated: bool, keeps_best: bool = False) -> dict[str, Any]:
    """The keyword arguments that SFTConfig and DPOConfig share."""
    return {
        "output_dir": os.fspath(spec.output_folder),
        "num_train_epochs": spec.n_epochs,
        "per_device_train_batch_size": math.ceil(spec.batch_size / world_size()),
        "per_device_eval_batch_size": max(spec.batch_size, 8),
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": WARMUP_SHARE,
        "max_grad_norm": 1.0,
        "seed": spec.seed,
        "data_seed": spec.seed,
        "use_cpu": spec.device == "cpu",
        "bf16": setup.dtype == "bfloat16",
        "fp16": setup.dtype == "float16",
        CHECKPOINTING: setup.is_checkpointed,
        f"{CHECKPOINTING}_kwargs": {"use_reentrant": False} if setup.is_checkpointed else None,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "eval_strategy": "epoch" if is_validated else "no",
        # Validation loss turns before training loss does: the adapter of the best epoch is what is kept.
        "load_best_model_at_end": keeps_best,
        "metric_for_best_model": "loss" if keeps_best else None,
        "greater_is_better": False if keeps_best else None,
        # The trainer's own checkpoints keep optimizer and order: a paused or killed run goes on where it was.
        "save_strategy": "epoch",
        "save_total_limit": 3,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "max_length": None,
    }


class Reporter(TrainerCallback):
    """Tells each step to `emit`, and stops between two steps when asked to."""

    def __init__(self, emit: Emit, should_stop: Callable[[], bool]) -> None:
        self.emit = emit
        self.should_stop = should_stop
        self.stopped = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """One step's figures, under OpenAI's names."""
        logs = logs or {}
        if "loss" not in logs:
            return
        metrics: dict[str, Any] = {
            "step": state.global_step,
            "total_steps": state.max_steps,
            "train_loss": logs["loss"],
            "train_mean_token_accuracy": logs.get("mean_token_accuracy"),
        }
        for name in ("rewards/accuracies", "rewards/margins"):
            if name in logs:
                metrics["train_" + name.replace("/", "_")] = logs[name]
        self.emit(metrics)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """The whole validation file's figures, after each epoch."""
        metrics = metrics or {}
        self.emit(
            {
                "step": state.global_step,
                "total_steps": state.max_steps,
                "full_valid_loss": metrics.get("eval_loss"),
                "full_valid_mean_token_accuracy": metrics.get("eval_mean_token_accuracy"),
            }
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What an earlier pause left is done with, and would take the place of an epoch among those that are kept."""
        folder = Path(args.output_dir)
        epochs = {step for step, _ in epoch_checkpoints(folder)}
        for step, path in checkpoints(folder)[:-1]:
            if step not in epochs and state.is_world_process_zero:
                shutil.rmtree(path, ignore_errors=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Stop, with a checkpoint, as soon as somebody asks for it."""
        if in_any_process(self.should_stop(), args.device):
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True
        return control


def checkpoints(folder: Path) -> tuple[tuple[int, Path], ...]:
    """The (step, folder) of each complete checkpoint, oldest first."""
    found = []
    for path in folder.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        # trainer_state.json is written last: without it the checkpoint was cut off while being written.
        if match and (path / "trainer_state.json").is_file() and (path / "adapter_config.json").is_file():
            found.append((int(match[1]), path))
    return tuple(sorted(found))


def epoch_checkpoints(folder: Path) -> tuple[tuple[int, Path], ...]:
    """Those of `checkpoints` that stand at the end of an epoch: a pause leaves others, which are no models."""
    return tuple((step, path) for step, path in checkpoints(folder) if _epochs_done(path).is_integer())


def _epochs_done(checkpoint: Path) -> float:
    state = json.loads((checkpoint / "trainer_state.json").read_bytes())
    return round(float(state["epoch"]), 6)


def run(trainer: Any, spec: TrainSpec, reporter: Reporter, n_tokens: int) -> TrainResult:
    """Train from the newest checkpoint, if there is one, and save the adapter.

    Args:
        trainer: A TRL trainer with its PEFT model.
        spec: What it was built from.
        reporter: Its callback.
        n_tokens: Tokens of all examples, once.
    """
    trainer.remove_callback(PrinterCallback)
    done = checkpoints(spec.output_folder)
    trainer.train(resume_from_checkpoint=os.fspath(done[-1][1]) if done else None)
    folder = spec.output_folder / "adapter"
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(folder)
    state = trainer.state
    steps = state.global_step
    if state.best_model_checkpoint and trainer.args.load_best_model_at_end and not reporter.stopped:
        steps = int(state.best_model_checkpoint.rpartition("-")[2])
        reporter.emit({"message": f"Kept the adapter of step {steps}: lowest validation loss, {state.best_metric:.4g}"})
    return TrainResult(
        trained_tokens=n_tokens * spec.n_epochs,
        steps=steps,
        adapter=folder,
        stopped=reporter.stopped,
        checkpoints=epoch_checkpoints(spec.output_folder),
    )


# One forward pass over rows that begin alike: every shared prefix is computed once.
#
# In: a batch of token rows of which many begin with the same tokens: the same system prompt and rubric in each
# example, the same question before a chosen and a rejected answer. Out: the log-probability of each labelled token,
# equal to what separate rows would give, forward and backward. Not covered: models whose attention is not plain
# causal attention (sliding windows, recurrent layers).
#
# The rows are merged into a prefix tree. A node is a token together with all tokens before it, so its hidden state is
# the same in each row that passes through it. The tree's nodes stand in one row; node i attends to its ancestors
# alone, and its position is its depth. On a processor without an accelerator the cost of a step is its number of
# tokens: eight titles under a rubric of 80 tokens are 330 nodes instead of 980 tokens. Long rows that share little make
# several trees, side by side like the rows of a plain batch.


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """What a batch's labelled tokens got; every field is (B, L - 1), and zero where the label is -100."""

    log_probs: torch.Tensor
    """Log-probability of each next-token label."""
    is_top1: torch.Tensor
    """Whether the label is the most likely next token."""
    label_mask: torch.Tensor
    """Whether there is a label."""
    among_choices: torch.Tensor | None = None
    """(B,): negative log-likelihood of a row's answer among the answers there are; None where they are not known."""

    def loss(self) -> torch.Tensor:
        """Mean negative log-likelihood over the labels; 0 where there is none."""
        return -self.log_probs.sum() / self.label_mask.sum().clamp(min=1)

    def accuracy(self) -> float:
        """Share of labels that are the most likely token, in [0, 1]; 0 where there is none."""
        return float(self.is_top1.sum() / self.label_mask.sum().clamp(min=1))


Choices = Mapping[tuple[int, ...], Sequence[int]]
"""For each beginning of an answer the tokens with which one of the answers there are goes on."""


def choices_of(answers: Sequence[Sequence[int]]) -> Choices:
    """The tokens that may follow each beginning of these answers.

    Examples:
        >>> choices_of([[5, 1], [5, 6, 1]])
        {(): [5], (5,): [1, 6], (5, 6): [1]}
    """
    found: dict[tuple[int, ...], set[int]] = {}
    for answer in answers:
        for place, token in enumerate(answer):
            found.setdefault(tuple(answer[:place]), set()).add(token)
    return {beginning: sorted(tokens) for beginning, tokens in found.items()}


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of booleans as what is added to attention's scores.

    Attention would make this of booleans itself, once in each layer, and keep all of them for the backward pass: at
    1,000 nodes and 30 layers 120 MB.
    """
    kind = mask.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def score_rows(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    choices: Choices | None = None,
) -> TokenScores:
    """Score the labelled tokens of a padded batch by one pass over its prefix tree.

    Args:
        model: A causal language model of transformers, not wrapped by PEFT (adapters inside its layers are fine).
        input_ids: (B, L) tokens, padded on the right.
        attention_mask: (B, L), 1 where there is a token.
        labels: (B, L), -100 where nothing is scored.
        choices: The closed set of answers, where there is one: they are scored among one another, too.
    """
    lengths = attention_mask.sum(dim=1).tolist()
    rows = [row[:length] for row, length in zip(input_ids.tolist(), lengths, strict=True)]
    forest = forest_of(rows, int(model.config.get_text_config().hidden_size))
    device, most = input_ids.device, max(len(tree.tokens) for _, tree in forest)
    # Padding looks at itself: what looks at nothing is no number.
    mask = torch.eye(most, dtype=torch.bool, device=device).repeat(len(forest), 1, 1, 1)  # (G, 1, N, N), G trees
    for number, (_, tree) in enumerate(forest):
        mask[number, :, : len(tree.tokens), : len(tree.tokens)] = tree.attention_mask(device)[0]

    def padded(values: list[list[int]]) -> torch.Tensor:
        return torch.tensor([one + [0] * (most - len(one)) for one in values], device=device)

    backbone = model.base_model(
        input_ids=padded([tree.tokens for _, tree in forest]),
        position_ids=padded([tree.depths for _, tree in forest]),
        attention_mask=_additive(mask, model.dtype),
        use_cache=False,
    )
    paths = {
        row: [number * most + node for node in path]
        for number, (group, tree) in enumerate(forest)
        for row, path in zip(group, tree.paths, strict=True)
    }
    targets = labels[:, 1:]  # (B, L - 1): the token at position t is predicted from the hidden state at t - 1
    label_mask = targets != -100
    where = label_mask.nonzero().tolist()
    nodes = torch.tensor([paths[row][position] for row, position in where], dtype=torch.long, device=device)
    hidden = backbone.last_hidden_state.flatten(0, 1)[nodes]  # (M, D), M labels
    wanted = targets[label_mask]  # (M,), in the same row-major order as `where`
    # Only labelled positions meet the vocabulary: its 49,152 rows are a fifth of the small model's work.
    head = model.get_output_embeddings()
    log_probs, tops = [], []
    among = hidden.new_zeros(len(input_ids)).float()
    begun: dict[int, tuple[int, ...]] = {}
    for start in range(0, max(len(where), 1), HEAD_CHUNK):
        logits = head(hidden[start : start + HEAD_CHUNK]).float()  # (m, V)
        chosen = wanted[start : start + HEAD_CHUNK]
        log_probs.append(-F.cross_entropy(logits, chosen, reduction="none"))
        tops.append(logits.detach().argmax(-1) == chosen)
        for number, token in enumerate(chosen.tolist() if choices else ()):
            row = where[start + number][0]
            beginning = begun.get(row, ())
            allowed = list(choices.get(beginning, ())) if choices else []
            if len(allowed) > 1:
                lost = logits[number, allowed].logsumexp(0) - logits[number, token]
                among = among.index_add(0, torch.tensor([row], device=device), lost[None])
            begun[row] = (*beginning, token)

    def spread(parts: list[torch.Tensor]) -> torch.Tensor:
        values = torch.cat(parts)
        return values.new_zeros(label_mask.shape).masked_scatter(label_mask, values)

    return TokenScores(
        log_probs=spread(log_probs),
        is_top1=spread(tops),
        label_mask=label_mask,
        among_choices=among if choices else None,
    )


# Supervised fine-tuning: TRL's SFTTrainer with a LoRA adapter, loss on the assistant's words only.
#
# In: a `TrainSpec` whose files hold OpenAI's chat lines. Out: the adapter, checkpoints, and each step told to `emit`.
# The rows are tokenised by `chat.py`, the same code that serves: what is trained is what will be asked, token for
# token.

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


FORM_WEIGHT = 0.1
"""Of the loss over the whole vocabulary where the answers are a closed set.

Which of the answers is right is the loss; that one of them is written at all is learned at a tenth of the weight.
"""
MIN_HELD_OUT_ROWS = 100
"""From so many rows on, some are held out to find the best epoch, unless a validation file is given."""


class PrefixTreeSFTTrainer(AveragedGradients, SFTTrainer):
    """An SFTTrainer whose loss goes over the batch's prefix tree."""

    choices: Choices | None = None
    """The closed set of answers, where there is one."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean negative log-likelihood of the trained tokens."""
        assert not return_outputs
        plain = self.accelerator.unwrap_model(model).get_base_model()
        with self.accelerator.autocast():
            scores = score_rows(plain, inputs["input_ids"], inputs["attention_mask"], inputs["labels"], self.choices)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["mean_token_accuracy"].append(scores.accuracy())
        if scores.among_choices is None:
            return scores.loss()
        return scores.among_choices.mean() + FORM_WEIGHT * scores.loss()

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The loss of a held-out batch; TRL 1.14 asks transformers' own step, which wants logits beside it."""
        assert prediction_loss_only
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None


def load_rows(tokenizer: Any, path: Path) -> Dataset:
    """Tokenise a chat file."""
    return Dataset.from_list([row for _, line in read_jsonl(path) for row in tokenize(tokenizer, line["messages"])])


def train(spec: TrainSpec, *, emit: Emit, should_stop: Callable[[], bool]) -> TrainResult:
    """Train one adapter on chat lines: `TrainSpec` says what is given, `TrainResult` what comes back."""
    tokenizer = load_tokenizer(spec)
    rows = load_rows(tokenizer, spec.train_file)
    setup = plan(spec, Rows.of([(row["input_ids"], n_trained(row["labels"])) for row in rows]), emit)
    task = task_of(spec.train_file, told=spec.answers)
    closed = choices_of([encode_completion(tokenizer, label) for label in task.labels])
    job = SftJob(spec=spec, setup=setup, tokenizer=tokenizer, choices=closed if task.kind == "labels" else None)
    model = load(spec, setup)
    if spec.finds_rate:
        rate = find_rate(job, model, rows, emit=emit, should_stop=should_stop)
        if rate is None:
            return features.stopped()
        job = replace(job, spec=replace(spec, learning_rate=rate))
        transformers.set_seed(spec.seed)  # as if the rate had been given: what was tried leaves no trace
    held_out = load_rows(tokenizer, spec.validation_file) if spec.validation_file else None
    # With one epoch there is nothing to choose from, and every row is worth more as a row to learn from.
    if held_out is None and len(rows) >= MIN_HELD_OUT_ROWS and spec.n_epochs > 1:
        rows, held_out = _held_out(tokenizer, rows, spec.seed)
    reporter = Reporter(emit, should_stop)
    trainer = job.trainer(
        model,
        settings(
            job.spec, setup, is_validated=held_out is not None, keeps_best=held_out is not None and spec.n_epochs > 1
        ),
        rows,
        held_out,
        reporter,
    )
    result = run(trainer, spec, reporter, n_tokens=sum(len(ids) for ids in rows["input_ids"]))
    return replace(result, learning_rate=job.spec.learning_rate if spec.finds_rate else None)


@dataclass(frozen=True, kw_only=True)
class SftJob:
    """What the trainers of one supervised job share."""

    spec: TrainSpec
    setup: Setup
    tokenizer: Any
    choices: Choices | None
    """The closed set of answers, where there is one."""

    def trainer(
        self, model: Any, options: Mapping[str, Any], rows: Dataset, held_out: Dataset | None, callback: Any
    ) -> PrefixTreeSFTTrainer:
        """A trainer of a new adapter on a model."""
        trainer = PrefixTreeSFTTrainer(
            model=model,
            args=SFTConfig(**options, packing=False, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=rows,
            eval_dataset=held_out,
            data_collator=DataCollatorForLanguageModeling(pad_token_id=self.tokenizer.pad_token_id),
            processing_class=self.tokenizer,
            peft_config=adapter(),
            callbacks=[callback],
        )
        trainer.choices = self.choices
        return trainer


# A rate that is right for the rows: each of a few trains an adapter for some steps, and rows that none of them saw say
# which is best. The adapters are thrown away, and the job begins as if the rate had been given.


def find_rate(job: SftJob, model: Any, rows: Dataset, *, emit: Emit, should_stop: Callable[[], bool]) -> float | None:
    """The rate to train at, every candidate told to `emit`; None where it was stopped. The model is left as it was."""
    spec, usual = job.spec, job.spec.learning_rate
    sweep = sweep_of(len(rows), spec.n_epochs, spec.batch_size)
    parts = _held_out(job.tokenizer, rows, rates.SEED, len(rows) // sweep.n_held_out) if sweep else (rows, None)
    if sweep is None or parts[1] is None or world_size() > 1:
        why = (
            "several processes train the job" if world_size() > 1 else "its rows and epochs are too few to compare any"
        )
        emit({"message": f"Learning rate {usual:g}, the usual one: no others are tried, since {why}"})
        return usual
    candidates = [0.0, *(usual * multiplier for multiplier in MULTIPLIERS)]
    facts = {
        "base": rates.base_digest(spec.model_folder),
        "rows": sha256_file(spec.train_file),
        "method": f"sft, {spec.recipe}",
        "adapter": [memory.LORA_RANK, LORA_ALPHA, LORA_DROPOUT],
        "training": [spec.batch_size, WARMUP_SHARE, job.setup.dtype],
        "rates": candidates,
        "sweep": [sweep.n_steps, len(parts[1])],
    }
    path = rates.kept_at(facts)
    trials = rates.kept(path)
    told = "known from an earlier run on the same rows" if len(trials) == len(candidates) else "tried"
    share = f"{sweep.n_steps} steps each, then {len(parts[1])} rows held out of the training rows"
    emit({"message": f"Learning rates {', '.join(f'{rate:g}' for rate in candidates[1:])} are {told}: {share}"})
    for number, rate in enumerate(candidates):
        if number >= len(trials):
            trial = _tried(job, model, rate, sweep, parts, should_stop)
            if trial is None:
                return None
            trials.append(trial)
            rates.keep(path, facts, trials)
        emit(_told(trials[number], number - len(candidates) + 1))
    best, why = rates.best(trials, usual)
    emit({"message": f"Learning rate {best.rate:g}: {why}"})
    return best.rate


def _told(trial: Trial, step: int) -> dict[str, Any]:
    is_finite = math.isfinite(trial.loss)
    return {
        "step": step,  # before the first of the job
        "candidate": trial.name,
        "valid_loss": trial.loss if is_finite else None,
        "valid_loss_error": trial.loss_error if is_finite else None,
        "valid_mean_token_accuracy": trial.accuracy,
    }


class _Stopper(TrainerCallback):
    """Ends a training between two steps when asked to, and keeps nothing of it."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self.should_stop = should_stop
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.stopped = self.stopped or self.should_stop()
        control.should_training_stop = control.should_training_stop or self.stopped
        return control


def _tried(
    job: SftJob, model: Any, rate: float, sweep: Sweep, parts: tuple[Dataset, Dataset], should_stop: Callable[[], bool]
) -> Trial | None:
    """One rate, trained for the steps of a sweep and measured on the rows that were held out; None where stopped."""
    transformers.set_seed(rates.SEED)  # the same adapter to begin with, and the same rows, under each rate
    spec = replace(job.spec, learning_rate=rate, seed=rates.SEED)
    options = settings(spec, job.setup, is_validated=False)
    options |= {"max_steps": sweep.n_steps, "save_strategy": "no", "logging_strategy": "no"}
    stopper = _Stopper(should_stop)
    trainer = job.trainer(model, options, parts[0], None, stopper)
    trainer.remove_callback(PrinterCallback)
    if rate:
        trainer.train()
    trial: Trial | None = None if stopper.stopped else measured(trainer, parts[1], rate)
    trainer.model.unload()
    if rate or trial is None or job.choices is None:
        return trial
    # How often each label is right is all that can be known without a text; the untrained model knows less.
    n_each = Counter(_answer(labels) for labels in parts[0]["labels"])
    total = n_each.total() + len(n_each)
    losses = (-math.log((n_each[_answer(labels)] + 1) / total) for labels in parts[1]["labels"])
    return replace(trial, losses=tuple(losses))


def _answer(labels: Sequence[int]) -> tuple[int, ...]:
    return tuple(label for label in labels if label != IGNORED)


@torch.no_grad()
def measured(trainer: PrefixTreeSFTTrainer, rows: Dataset, rate: float) -> Trial:
    """How a trainer's model does on rows that it was not trained on."""
    trainer.model.eval()
    scored = []
    for start in range(0, len(rows), 8):
        batch = trainer.data_collator([rows[row] for row in range(start, min(start + 8, len(rows)))])
        ids, mask, labels = (batch[name].to(trainer.model.device) for name in ("input_ids", "attention_mask", "labels"))
        with trainer.accelerator.autocast():
            scored.append(score_rows(trainer.model.get_base_model(), ids, mask, labels, trainer.choices))
    tokens = torch.cat([one.label_mask.sum(dim=1) for one in scored])
    losses = -torch.cat([one.log_probs.sum(dim=1) for one in scored]) / tokens.float().mean()
    if trainer.choices:  # which label is right: that one is written at all is learned first, and by any rate
        losses = torch.cat([one.among_choices for one in scored if one.among_choices is not None])
    n_right = sum(int(one.is_top1.sum()) for one in scored)
    return Trial(rate=rate, losses=tuple(losses.tolist()), accuracy=n_right / max(1, int(tokens.sum())))


def n_trained(labels: Sequence[int]) -> int:
    """How many tokens of a row are trained."""
    return sum(label != IGNORED for label in labels)


def _held_out(tokenizer: Any, rows: Dataset, seed: int, n_folds: int | None = None) -> tuple[Dataset, Dataset | None]:
    """(rows to train on, a tenth to validate on): equal prompts, and a pair's two orders, are on one side.

    None in the place of the tenth where all rows ask the same.
    """
    n_folds = n_folds or max(10, math.ceil(len(rows) / 200))  # two hundred say enough
    asked = [
        tokenizer.decode(ids[: labels.count(IGNORED)])
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
    ]
    # A pair that is written in both orders has the same words twice, in another order.
    folds = folds_of([[" ".join(sorted(text.split()))] for text in asked], n_folds, seed)
    if not folds:
        return rows, None
    train, held_out = folds[0]
    return rows.select(train.tolist()), rows.select(held_out.tolist())


# Direct preference optimisation: TRL's DPOTrainer with a LoRA adapter, starting from any local model.
#
# In: a `TrainSpec` whose files hold OpenAI's preference lines. Out: the adapter, checkpoints, each step told to
# `emit`.
#
# The loss is the sigmoid loss of DPO (Rafailov et al. 2023, eq. 7) plus the mean negative log-likelihood of the
# preferred answer (weight 1, as in Pang et al. 2024, "Iterative reasoning preference optimization", eq. 2). DPO alone
# compares two answers and never teaches how an answer is written: a model that was trained to say "A" and is then
# given preferred and rejected explanations keeps saying "A" alone. The second term teaches the form.


class PrefixTreeDPOTrainer(AveragedGradients, DPOTrainer):
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
        with self.accelerator.autocast():
            scores = score_rows(tuned.get_base_model(), *rows)
        with torch.no_grad(), tuned.disable_adapter(), self.accelerator.autocast():
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


def load_dpo_rows(tokenizer: Any, path: Path) -> Dataset:
    """Tokenise a preference file."""
    rows = []
    for _, row in read_jsonl(path):
        rows.append(
            {
                "prompt_ids": encode_prompt(tokenizer, row["input"]["messages"]),
                "chosen_ids": encode_completion(tokenizer, message_text(row["preferred_output"][0])),
                "rejected_ids": encode_completion(tokenizer, message_text(row["non_preferred_output"][0])),
            }
        )
    return Dataset.from_list(rows)


def _as_one(row: dict[str, list[int]]) -> tuple[list[int], int]:
    """A preference row as (token ids, how many are trained): the question is computed once, and both answers."""
    answers = row["chosen_ids"] + row["rejected_ids"]
    return row["prompt_ids"] + answers, len(answers)


def train_dpo(spec: TrainSpec, *, emit: Emit, should_stop: Callable[[], bool]) -> TrainResult:
    """Train one adapter on preference lines: `TrainSpec` says what is given, `TrainResult` what comes back."""
    tokenizer = load_tokenizer(spec)
    rows = load_dpo_rows(tokenizer, spec.train_file)
    setup = plan(spec, Rows.of([_as_one(row) for row in rows]), emit)
    reporter = Reporter(emit, should_stop)
    trainer = PrefixTreeDPOTrainer(
        model=load(spec, setup),
        args=DPOConfig(**settings(spec, setup, is_validated=spec.validation_file is not None), beta=spec.beta),
        train_dataset=rows,
        eval_dataset=load_dpo_rows(tokenizer, spec.validation_file) if spec.validation_file else None,
        processing_class=tokenizer,
        peft_config=adapter(),
        callbacks=[reporter],
    )
    # Billed like OpenAI bills: the prompt and both answers.
    n_tokens = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    return run(trainer, spec, reporter, n_tokens=n_tokens)


# A head, then an adapter under it: starts where the frozen head stands, and is kept only where it is better.
#
# In: a `TrainSpec` whose files hold chat lines with labels or numbers. Out: the frozen head, or the adapter and
# the head that were trained together, whichever does better on rows that neither saw. On one reader's
# 440 titles two epochs at 1e-3 lifted the AUC from .752 to .772; on 1,000 news titles each epoch lowered it (.662,
# .655, .647): a held-out share decides.

HEAD_LORA_BATCH = 16


def train_head_lora(spec: TrainSpec, *, emit: Emit, should_stop: Callable[[], bool]) -> TrainResult:
    """Fit a head, then train an adapter and the head together; `TrainResult` has what was better on held-out rows.

    A run that was stopped begins anew.
    """
    rows = rows_of(spec.train_file)
    assert rows is not None  # the scheduler has looked
    prompts, answers = rows
    task = task_of(spec.train_file, MAX_LABELS, spec.answers)
    frozen = features.train_head(spec, emit=emit, should_stop=should_stop)
    if frozen.stopped or frozen.head is None:
        return frozen
    head = Head.load(frozen.head)
    view = View.from_dict(head.facts["view"])
    if "base" not in head.blocks:
        emit({"message": "No adapter was trained: the head that won does not read the base"})
        return frozen
    too_little = _joint_shortage(spec, view, prompts, answers)
    if too_little:
        emit({"message": f"No adapter was trained: {too_little}"})
        return frozen
    train, held_out = folds_of(features.items_of(prompts, view), 6, spec.seed)[0]
    if task.kind == "labels":
        train, held_out = _with_all_labels(train, held_out, answers)
    reader = features.Reader.open(
        spec.model_folder, encoder=spec.encoder_folder, blocks=head.blocks, device=spec.device
    )
    reader.should_stop = should_stop
    blocks = reader.read(prompts, view)
    values = torch.tensor(np.concatenate([blocks[name] for name in head.blocks], axis=1))
    # The head without the held-out rows, at the strength that was chosen: what the adapter has to beat.
    kept = {view.mode: {name: blocks[name][train] for name in head.blocks}}
    items = features.items_of([prompts[row] for row in train], view)
    refitted = fit(task, [answers[row] for row in train], kept, items, sets=[head.blocks])
    if refitted is None or refitted[0].scale != head.scale:
        emit({"message": "No adapter was trained: without the held-out rows another scale of the numbers wins"})
        return frozen
    joint = Joint(spec, reader, view, refitted[0], values)
    wanted = joint.wanted(answers)
    before = joint.losses(prompts, wanted, held_out)
    best: torch.Tensor | None = None
    best_step = step = 0
    n_steps = math.ceil(len(train) / HEAD_LORA_BATCH) * spec.n_epochs
    generator = torch.Generator().manual_seed(spec.seed)
    for _ in range(spec.n_epochs):
        order = torch.tensor(train)[torch.randperm(len(train), generator=generator)]
        for batch in order.split(HEAD_LORA_BATCH):
            if should_stop():
                return features.stopped()
            step += 1
            loss = joint.step(prompts, wanted, batch.tolist(), share=step / n_steps)
            told = frozen.steps + step
            emit({"step": told, "total_steps": frozen.steps + n_steps, "train_loss": loss})
        losses = joint.losses(prompts, wanted, held_out)
        emit({"step": told, "total_steps": frozen.steps + n_steps, "full_valid_loss": float(losses.mean())})
        if best is None or losses.mean() < best.mean():
            best, best_step = losses, step
            joint.save(spec.output_folder, head)
    assert best is not None  # there is an epoch at least
    gain = before - best
    error = float(gain.std() / math.sqrt(len(gain)))
    name = "log loss" if task.kind == "labels" else "absolute error"
    figures = (
        f"held-out {name} {float(best.mean()):.4g} with the adapter of the best epoch (step {best_step} of {n_steps}), "
        f"{float(before.mean()):.4g} of the frozen head; better by {float(gain.mean()):.2g} ± {error:.2g} on "
        f"{len(gain):,} rows"
    )
    if float(gain.mean()) <= error:
        emit({"message": f"Kept the frozen head: {figures}"})
        return frozen
    emit({"message": f"Kept the adapter under the head: {figures}"})
    return TrainResult(
        trained_tokens=frozen.trained_tokens * (1 + spec.n_epochs),
        steps=frozen.steps + n_steps,
        adapter=spec.output_folder / "adapter",
        stopped=False,
        checkpoints=(),
        head=spec.output_folder / "joint",
    )


def _joint_shortage(spec: TrainSpec, view: View, prompts: Sequence[Any], answers: Sequence[str]) -> str | None:
    """Why an adapter under the head does not fit into memory; None where it does."""
    sizes, reading = features.to_read(spec, prompts, answers)
    free = may_take(spec.memory_bytes, features.free_on(spec.device))
    batch_size = HEAD_LORA_BATCH * (2 if view.mode == "difference" else 1)
    dtype = str(_joint_dtype(spec.device)).removeprefix("torch.")
    needed = memory.joint_bytes(sizes, reading, batch_size=batch_size, dtype=dtype) if sizes else 0
    if free is None or needed <= free:
        return None
    return f"it needs about {megabytes(needed)} of memory, and {megabytes(free)} are free; the head stays as it is"


def _joint_dtype(device: str) -> torch.dtype:
    """What is multiplied in under a head: what the frozen head read in, on a CPU."""
    return features.feature_dtype(device) if device == "cpu" else torch.float32


def _with_all_labels(train: Any, held_out: Any, answers: Sequence[str]) -> tuple[Any, Any]:
    """(training rows, held-out rows), those whose label the training rows would lack moved to training."""
    known = {answers[row] for row in train}
    is_lacking = np.array([answers[row] not in known for row in held_out], dtype=bool)
    return np.concatenate([train, held_out[is_lacking]]), held_out[~is_lacking]


class Joint:
    """The first layers with an adapter, and the head on top, trained together."""

    def __init__(self, spec: TrainSpec, reader: Any, view: View, head: Head, values: torch.Tensor) -> None:
        load_tokenizer(spec)  # sets threads and seeds
        # On a GPU no trainer stands between that would move it there.
        self.model = get_peft_model(load(spec, Setup()), adapter()).to(spec.device)
        self.plain = self.model.get_base_model()
        self.layers = features.layer_numbers(self.plain.config.get_text_config().num_hidden_layers)
        self.device = torch.device(spec.device)
        values = values.to(self.device)
        self.reader, self.view, self.head, self.values = reader, view, head, values
        self.is_cpu_bf16 = _joint_dtype(spec.device) == torch.bfloat16
        # Over what the features deviate, one rate fits all weights.
        self.spread = values.std(dim=0).clamp(min=1e-6)
        self.weights = torch.nn.Parameter(torch.tensor(head.weights, device=self.device) * self.spread[:, None])
        is_biased = view.mode != "difference"
        self.bias = torch.nn.Parameter(torch.tensor(head.bias, device=self.device), requires_grad=is_biased)
        adapted = [one for one in self.model.parameters() if one.requires_grad]
        self.rate = spec.learning_rate
        self.optimizer = torch.optim.AdamW([*adapted, self.weights, self.bias], lr=self.rate, weight_decay=0.0)
        n_spans = len(view.shape.fields) if view.mode == "fields" else 1
        self.n_base = len(self.layers) * n_spans * self.plain.config.get_text_config().hidden_size
        assert head.blocks[0] == "base"

    def logits(self, prompts: Sequence[Any], rows: Sequence[int]) -> torch.Tensor:
        """(rows, labels)."""
        asked = [prompts[row] for row in rows]
        if self.view.mode == "difference":
            pairs = [self.view.singles(one) for one in asked]
            flat = [single for pair in pairs for single in pair or ()]
            means = self._means(flat, replace(self.view, mode="whole"))
            base = means[0::2] - means[1::2]
        else:
            base = self._means(asked, self.view)
        rest = self.values[list(rows), self.n_base :]
        return (torch.cat([base, rest], dim=1) / self.spread) @ self.weights + self.bias

    def wanted(self, answers: Sequence[str]) -> torch.Tensor:
        """(rows,): each row's label, or its number on the scale of the head."""
        if self.head.style is None:
            return torch.tensor([self.head.labels.index(answer) for answer in answers], device=self.device)
        numbers = to_scale(numbers_of(self.head.style, answers), self.head.scale)
        return torch.tensor(numbers, dtype=torch.float32, device=self.device)

    def _means(self, prompts: Sequence[Any], view: View) -> torch.Tensor:
        rows, spans, places = self.reader.tokens(prompts, [view])
        tokens, mask = features.padded(rows, self.plain)
        with (
            features.first_layers(self.plain, max(self.layers)) as backbone,
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.is_cpu_bf16),
        ):
            states = backbone(input_ids=tokens, attention_mask=mask, output_hidden_states=True).hidden_states
        means = [
            torch.stack(
                [states[layer][row, start:end].float().mean(0) for layer in self.layers for start, end in spans[row]]
            )
            for row in range(len(rows))
        ]
        return torch.stack(means).flatten(1)[places]

    def step(self, prompts: Sequence[Any], wanted: torch.Tensor, rows: Sequence[int], *, share: float) -> float:
        """One update; `share` of the steps are done, and the rate falls to nothing."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, share / WARMUP_SHARE, 1.0 - share + 1e-3)
        scores, targets = self.logits(prompts, rows), wanted[list(rows)]
        # Absolute error is what is measured; on the scale of the fit one dear row does not outweigh a hundred.
        is_number = self.head.kind == "numbers"
        loss = F.smooth_l1_loss(scores[:, 0], targets) if is_number else F.cross_entropy(scores, targets)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([one for group in self.optimizer.param_groups for one in group["params"]], 1.0)
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def losses(self, prompts: Sequence[Any], wanted: torch.Tensor, rows: Any) -> torch.Tensor:
        """Of each of these rows the negative log-likelihood, or the absolute error of the number."""
        self.model.eval()
        parts = []
        for start in range(0, len(rows), HEAD_LORA_BATCH):
            part = rows[start : start + HEAD_LORA_BATCH].tolist()
            scores, targets = self.logits(prompts, part), wanted[part]
            if self.head.kind == "labels":
                parts.append(F.cross_entropy(scores, targets, reduction="none").cpu())
            else:
                told, right = (self.head.values(one.cpu().double().numpy()) for one in (scores[:, 0], targets))
                parts.append(torch.tensor(np.abs(told - right), dtype=torch.float32))
        return torch.cat(parts)

    def save(self, folder: Path, frozen: Head) -> None:
        """Write the adapter and the head that stands on it; intervals stay those of the frozen head's residuals."""
        self.model.save_pretrained(folder / "adapter")
        weights = (self.weights.detach() / self.spread[:, None]).cpu().numpy()
        facts = {**frozen.facts, "adapter": "trained under the head"}
        replace(frozen, weights=weights, bias=self.bias.detach().cpu().numpy(), facts=facts).save(folder / "joint")
