"""`migrate`: make a tuned model again on another host, and hold the new one against the old.

In: a tuned model (its id, its job's, a saved predictor), and where to. Out: a `Migration`: a plan that costs nothing,
its start, and a report of new against old, by the old one's answers of before or by fresh ones.
Not covered: how a model was made and the plan itself (jobs/recipe.py, jobs/migration.py), the statistics (evaluation/).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from dspy_finetune._files import read_jsonl
from dspy_finetune.errors import HostError, UsageError
from dspy_finetune.evaluation import metrics as all_metrics
from dspy_finetune.evaluation.answers import Program
from dspy_finetune.evaluation.metric_types import AnyMetric
from dspy_finetune.evaluation.stored import StoredAnswers, stored_answers
from dspy_finetune.evaluation.usual import usual_metric
from dspy_finetune.export.dialects import method_of
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import FinetunedModel
from dspy_finetune.jobs.clock import SYSTEM_CLOCK, Clock
from dspy_finetune.jobs.migration import MigrationPlan, plan_migration
from dspy_finetune.jobs.sequence import SequenceJob
from dspy_finetune.predictors import DPOPredictor, OpenAIPredictor, PairwisePredictor, load_predictor
from dspy_finetune.predictors.base import FinetunedPredictor
from dspy_finetune.predictors.pairwise import sides
from dspy_finetune.prompts import PromptFormat
from dspy_finetune.report.compare import compare
from dspy_finetune.report.numbers import Report

NEW, OLD = "new", "old"
"""What the two are called in the report."""


@dataclass(frozen=True, kw_only=True)
class Migration:
    """A model on its way to another host; nothing has been started."""

    plan: MigrationPlan
    """What is trained there, what it costs, and what should be known before."""
    old_predictor: FinetunedPredictor | None
    """The old model in use; None where its prompt is not known."""

    def start(
        self,
        max_usd: float | None = None,
        *,
        new: bool = False,
        allow_unknown_price: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> SequenceJob:
        """Start it; `.wait()` of what is returned gives the new model. As `Plan.start`: paid once."""
        return self.plan.start(max_usd, new=new, allow_unknown_price=allow_unknown_price, clock=clock)

    def new_predictor(self, model: FinetunedModel | str, *, host: Host | None = None) -> FinetunedPredictor:
        """The old predictor with the new model in its place; save it, and load it where the old one was.

        Args:
            model: What the job made.
            host: Where it answers; the new host without it.

        Raises:
            UsageError: The prompt is not known.
        """
        if self.old_predictor is None:
            raise UsageError(
                f"{self.plan.old.train.name} has no manifest with its prompt; give a saved predictor instead of the"
                " model's id, or build one with the prompt: OpenAIPredictor(prompt, model)"
            )
        place = host or self.plan.host
        # The calibration stays behind: it was fitted to the old model's probabilities.
        state = {name: value for name, value in self.old_predictor.dump_state().items() if name != "calibration"}
        made = type(self.old_predictor)(self.old_predictor.prompt, str(model), host=place)
        return made.load_state({**state, "model": str(model), "host": place.to_dict()})

    def compare(
        self,
        model: FinetunedModel | str,
        examples: Sequence[Any] | None = None,
        metrics: Sequence[AnyMetric] | None = None,
        *,
        stored: str | os.PathLike[str] | StoredAnswers | None = None,
        margin: float | None = None,
        host: Host | None = None,
        **options: Any,
    ) -> Report:
        """Hold the new model against the old one on the same items.

        Args:
            model: What the job made.
            examples: Labelled examples that neither was trained on. None takes the file that the training was measured
                on, as chat messages with their answers.
            metrics: As for `compare`; the usual one for the prompt without them.
            stored: The old model's answers of before, as `report.to_json` keeps them; None asks it now.
            margin: A difference that does not matter; allows "equivalent", which is what a move hopes for.
            host: Where the new model answers, if not at the new host's own address.
            **options: For `compare`: checkpoint, n_threads, on_progress, and so on.

        Raises:
            UsageError: There is nothing to compare on, or the old model does not answer any more and no answers are
                stored.
            HostError: A host refused.
        """
        place = host or self.plan.host
        programs: dict[str, Program]
        if examples is None:
            rows = _chat_rows(self.plan)
            chosen: Sequence[AnyMetric] = metrics or [all_metrics.exact_match("answer")]
            old = self.plan.old
            programs = {NEW: _Chat(str(model), place), OLD: _Chat(old.model, old.host)}
        else:
            rows = list(examples)
            made = self.new_predictor(model, host=place)
            assert self.old_predictor is not None
            chosen = metrics or [_usual(made.prompt)]
            programs = {NEW: made, OLD: self.old_predictor}
        if stored is not None:
            before = stored if isinstance(stored, StoredAnswers) else stored_answers(stored)
            rows = [row for row in rows if before.knows(dict(row.inputs().items()))]
            if not rows:
                raise UsageError(
                    f"none of the items is among the {len(before)} that {before.program} was asked about when its"
                    " answers were stored; give the same rows"
                )
            programs[OLD] = before
        else:
            self._need_old()
        cards = {
            "Models": {NEW: f"{model} on {place.name}", OLD: f"{self.plan.old.model} on {self.plan.old.host.name}"},
            "Old answers": {"are": "fresh" if stored is None else "stored", "items": str(len(rows))},
        }
        return compare(
            programs,
            rows,
            chosen,
            candidate=NEW,
            reference=OLD,
            margin=margin,
            title=f"{self.plan.old.model} moved to {place.name}",
            cards=cards,
            **options,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return self.plan.to_dict()

    def __str__(self) -> str:
        return str(self.plan)

    def _need_old(self) -> None:
        old = self.plan.old
        if not old.host.kind.lists_models:
            return
        try:
            with old.host.talking(f"ask for the model {old.model}"):
                old.host.client().models.retrieve(old.model)
        except HostError as error:
            if error.status != 404:
                raise
            raise UsageError(
                f"{old.model} does not answer any more on {old.host.name}; compare with answers that were kept before:"
                " stored=... (--stored REPORT.json), from report.to_json(path) or compare --json-to"
            ) from error


def migrate(
    model: str | os.PathLike[str] | FinetunedModel | FinetunedPredictor,
    *,
    to: Host,
    host: Host | None = None,
    base_model: str | None = None,
    train: str | Path | None = None,
    validation: str | Path | None = None,
    prompt: PromptFormat | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    suffix: str | None = None,
    seed: int | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Migration:
    """Plan to train the same model on another host: same data, same prompt, same hyperparameters.

    Nothing is uploaded. `migration.start(max_usd=...)` trains, at most once; `migration.compare(model, examples)` tells
    whether the new one is worse.

    Args:
        model: The tuned model: its id, the id of the job that made it, a `FinetunedModel`, a predictor, or the file of
            a saved one. A model that was tuned from a tuned model is made again from the start.
        to: The new host.
        host: The old one; this machine's journal knows it without being told.
        base_model: What is tuned there; without it the same base where the new host trains it, else its usual one.
        train: The training file, where it is neither where it was nor to be had from the old host.
        validation: The file to measure on, likewise.
        prompt: What the rows were rendered with, where no manifest says so.
        hyperparameters: To change some of the recorded ones.
        suffix: Another one than the old model's.
        seed: Another one than the old job's.
        clock: For tests.

    Raises:
        UsageError: Nobody knows how the model was made, or an argument is wrong.
        DataError: A file is not the one it was trained on, or the new host would refuse it.
        HostError: The old host refused, or did not answer, and the journal does not know enough.
    """
    predictor = _predictor_of(model)
    name: str | FinetunedModel = predictor.model if predictor is not None else _named(model)
    planned = plan_migration(
        name,
        to=to,
        host=host or (predictor.host if predictor is not None else None),
        base_model=base_model,
        train=train,
        validation=validation,
        hyperparameters=hyperparameters,
        suffix=suffix,
        seed=seed,
        clock=clock,
    )
    known = prompt or planned.old.prompt
    if predictor is None and known is not None:
        predictor = _predictor(known, planned.old.model, planned.old.host)
    return Migration(plan=planned, old_predictor=predictor)


def _predictor_of(model: object) -> FinetunedPredictor | None:
    if isinstance(model, FinetunedPredictor):
        return model
    if isinstance(model, FinetunedModel):
        return None
    path = Path(str(model))
    return load_predictor(path) if path.suffix == ".json" else None


def _named(model: Any) -> str | FinetunedModel:
    return model if isinstance(model, FinetunedModel) else str(model)


def _predictor(prompt: PromptFormat, model: str, host: Host) -> FinetunedPredictor:
    """The predictor that fits a prompt: two sides are asked in both orders."""
    try:
        sides(prompt)
    except UsageError:
        return OpenAIPredictor(prompt, model, host=host)
    if len(prompt.output_fields) > 1:
        return DPOPredictor(prompt, model, both_orders=True, host=host)
    return PairwisePredictor(prompt, model, host=host)


def _usual(prompt: PromptFormat) -> AnyMetric:
    field = prompt.label_field or prompt.output_fields[0]
    metric: AnyMetric = getattr(all_metrics, usual_metric(prompt, field))(field)
    return metric


class _Chat:
    """A model as it stands: messages in, its text out."""

    def __init__(self, model: str, host: Host) -> None:
        self._model = model
        self._host = host

    def __call__(self, messages: Any) -> dspy.Prediction:
        with self._host.talking(f"ask {self._model}"):
            answered = self._host.client().chat.completions.create(
                model=self._model, messages=messages, temperature=0, max_tokens=256
            )
        return dspy.Prediction(answer=answered.choices[0].message.content or "")


def _chat_rows(plan: MigrationPlan) -> list[dspy.Example]:
    """The rows that the training was measured on, as questions with their right answers."""
    path = plan.old.validation
    if path is None:
        raise UsageError(
            f"there is nothing to compare on: {plan.old.model} was trained without a validation file; give labelled"
            " rows that it was not trained on (examples=..., --examples FILE)"
        )
    rows = []
    for _, row in read_jsonl(path):
        if method_of(row) == "dpo":
            messages, answer = row["input"]["messages"], row["preferred_output"][-1]["content"]
        else:
            messages, answer = row["messages"][:-1], row["messages"][-1]["content"]
        rows.append(dspy.Example(messages=messages, answer=answer).with_inputs("messages"))
    return rows
