"""`PreferenceFinetune`: a DSPy optimizer that trains a program's models by DPO on its own better and worse answers.

In: a program, examples and a metric. Out: a copy of the program whose predictors ask tuned models, through the adapter
that they were trained with. Not covered: training on right answers (DSPy's BootstrapFinetune with a FinetuneProvider).

    sample    each example runs `n_samples` times; the metric scores each run
    pair      of a predictor's answers to the same inputs, the better is preferred to the worse
    train     one job for each language model (or each predictor); checked and priced before anything is uploaded
    serve     the tuned models take their predictors' places once they answer

The pairs of a run on a small model are its own words, so training moves what the model does already; where it never
answers well, it has nothing to prefer, and examples with right answers are the better teacher.
"""

from __future__ import annotations

import contextvars
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import dspy
from dspy.teleprompt.teleprompt import Teleprompter

from dspy_finetune._progress import ProgressBar
from dspy_finetune.errors import DataError, EmptyDatasetError, RowError, UsageError
from dspy_finetune.export import Preferences, TrainingFile, export_dpo
from dspy_finetune.export.preferences import Strategy, preferences_from_program, render_preference, score_of
from dspy_finetune.hosts import Host, load_catalog, strip_model_id
from dspy_finetune.hosts.lm import HostLM
from dspy_finetune.jobs.job import JobProgress
from dspy_finetune.jobs.model import FinetunedModel
from dspy_finetune.jobs.plan import Plan
from dspy_finetune.jobs.records import catalog_name
from dspy_finetune.jobs.sequence import SequencePlan
from dspy_finetune.optimizers.provider import (
    FinetuneProvider,
    TunedPredict,
    attach_adapter,
    prompt_of,
    systems_of,
    tuned_lm,
)

logger = logging.getLogger(__name__)

TrainingMethod = Literal["dpo", "sft_then_dpo"]
MIN_PAIRS = 10
"""What every host asks for at least, where the catalog says nothing else."""


@dataclass(frozen=True, kw_only=True)
class PreferenceTuning:
    """What a compile did; `tuning` of the program that it returns."""

    models: Mapping[str, FinetunedModel]
    """Predictor -> the model that it asks now."""
    n_pairs: Mapping[str, int]
    """Predictor -> pairs that it was trained on, before equal ones were joined."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> runs and prompts that gave no pair."""
    score_before: float | None = None
    """The student's mean metric on `valset`; None without one."""
    score_after: float | None = None
    """The tuned program's."""


@dataclass(frozen=True, kw_only=True)
class _Training:
    """One job that is to come: whose pairs, on which base, in which file."""

    predictors: tuple[str, ...]
    base_model: str
    systems: frozenset[str | None]
    dpo: TrainingFile


@dataclass(frozen=True, kw_only=True)
class PreferenceOptions:
    """What a `PreferenceFinetune` needs to be told less often."""

    adapter: Any = None
    """What the prompts are made with, in sampling, training and serving; `as_adapter(prompt)` for a PromptFormat. None
    takes the one in `dspy.settings`, else dspy.ChatAdapter."""
    predictors: Sequence[str] | None = None
    """Names of the predictors to tune; None tunes all."""
    multitask: bool = True
    """One job for all predictors that share a model; False makes one for each predictor."""
    min_pairs: int | None = None
    """Fewer than these are not trained on; None takes what the host asks for at least."""
    parse_failure_score: float | None = 0.0
    """The score of a run that ends because an answer could not be parsed, on the metric's scale: such answers become
    worse ones. None leaves these runs out."""
    sft_hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """Of the SFT job of `method="sft_then_dpo"`."""
    seed: int = 0
    """Of sampling and training."""
    suffix: str | None = None
    """A part of the tuned model's name."""
    allow_unknown_price: bool = False
    """Train although nobody knows the price."""
    on_progress: Callable[[JobProgress], object] | None = None
    """Is told after each look at a job."""
    timeout_seconds: float | None = None
    """Stop waiting for a job after so long; it is left alive."""
    new: bool = False
    """Train again although the same was trained before."""
    deploy: Callable[[FinetunedModel], str] | None = None
    """For hosts that serve a model only after its deployment; see `FinetuneProvider`."""


class PreferenceFinetune(Teleprompter):
    """Sample a program, let the metric choose, and train by direct preference optimization.

    Args:
        metric: `metric(example, prediction) -> float | bool`, higher is better; None counts as not scored.
        base_model: What is tuned; None takes each predictor's own model.
        host: Where to train and serve; None takes the host of the predictors' LMs (`host.lm(...)`).
        n_samples: Runs of each example.
        temperature: Of the sampling.
        min_difference: Pairs whose scores differ by less are left out.
        strategy: `"best_vs_worst"`: at most one pair for each prompt; `"all_pairs"`: every pair that differs enough.
        method: `"dpo"`, or `"sft_then_dpo"`: first train on the preferred answers, then prefer them.
        hyperparameters: Of the DPO job: `n_epochs`, `batch_size`, `learning_rate_multiplier`, `beta`.
        max_usd: More than this, over all jobs, is not started.
        num_threads: Runs at the same time.
        options: Adapter, predictors, seed, suffix and the rest.
    """

    def __init__(
        self,
        metric: Callable[..., Any],
        *,
        base_model: str | FinetunedModel | None = None,
        host: Host | None = None,
        n_samples: int = 4,
        temperature: float = 1.0,
        min_difference: float = 0.0,
        strategy: Strategy = "best_vs_worst",
        method: TrainingMethod = "dpo",
        hyperparameters: Mapping[str, Any] | None = None,
        max_usd: float | None = None,
        num_threads: int = 1,
        options: PreferenceOptions | None = None,
    ) -> None:
        super().__init__()
        self.options = options or PreferenceOptions()
        if method not in ("dpo", "sft_then_dpo"):
            raise UsageError(f'method="{method}" is unknown; choose "dpo" or "sft_then_dpo"')
        if self.options.sft_hyperparameters and method == "dpo":
            raise UsageError('sft_hyperparameters belong to method="sft_then_dpo"')
        self.metric = metric
        self.base_model = base_model
        self.host = host
        self.n_samples = n_samples
        self.temperature = temperature
        self.min_difference = min_difference
        self.strategy: Strategy = strategy
        self.method = method
        self.hyperparameters = dict(hyperparameters or {})
        self.max_usd = max_usd
        self.num_threads = num_threads

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: Any = None,
        valset: Sequence[dspy.Example] | None = None,
        **options: Any,
    ) -> Any:
        """A copy of the program with tuned models; `.tuning` of it tells what was done.

        Args:
            student: The program; it is left as it is. Each predictor needs a language model, its own or the configured.
            trainset: Examples with their inputs marked; what else they hold is the metric's.
            teacher: Not used: the program learns from its own answers.
            valset: Held-out examples; student and result are scored on them, and a loss is logged.
            **options: None is known; DSPy's signature has them.

        Raises:
            UsageError: No language model, no host, or a setting is wrong.
            DataError: Too few pairs, or the host would refuse them; nothing was uploaded.
            BudgetError: It costs more than allowed; nothing was uploaded.
            JobError: A job failed, or its model does not answer.
            HostError: The host refused, or did not answer.
        """
        if options:
            raise UsageError(f"compile has no argument {sorted(options)[0]}; options are given to PreferenceFinetune")
        if not trainset:
            raise EmptyDatasetError("trainset is empty: there is nothing to sample from")
        program, names = self._prepared(student)
        by_name = dict(program.named_predictors())
        provider = self._provider(by_name[names[0]].lm)
        found = preferences_from_program(
            program,
            trainset,
            self.metric,
            n_samples=self.n_samples,
            min_difference=self.min_difference,
            strategy=self.strategy,
            temperature=self.temperature,
            predictors=names,
            num_threads=self.num_threads,
            seed=self.options.seed,
            parse_failure_score=self.options.parse_failure_score,
        )
        pairs = {name: found.of(name) for name in names if found.of(name)}
        self._need(len(found), found, provider)
        trainings = [self._training(group, by_name, pairs, provider) for group in self._groups(pairs, by_name)]
        for training in trainings:
            self._need(training.dpo.n_rows, found, provider, training.predictors)
        before = self._mean_score(program, valset)
        models = self._train(trainings, provider, by_name)
        after = self._mean_score(program, valset)
        if before is not None and after is not None and after < before:
            logger.warning("the tuned program scores %.3f on valset, the program before %.3f", after, before)
        program.tuning = PreferenceTuning(
            models=models,
            n_pairs={name: len(of_name) for name, of_name in pairs.items()},
            skipped=found.skipped,
            score_before=before,
            score_after=after,
        )
        return program

    def _prepared(self, student: dspy.Module) -> tuple[Any, list[str]]:
        """(a copy whose predictors have LMs of their own and the adapter, the names of those to tune)."""
        program = student.deepcopy()
        lms = [predictor.lm or dspy.settings.lm for predictor in student.predictors()]
        for (name, predictor), lm in zip(program.named_predictors(), lms, strict=True):
            if lm is None:
                raise UsageError(
                    f"predictor {name} has no language model; use dspy.configure(lm=...) or program.set_lm(...)"
                )
            predictor.lm = lm  # the same object, so that predictors which shared a model still do
        every = [name for name, _ in program.named_predictors()]
        names = every if self.options.predictors is None else list(self.options.predictors)
        if not names:
            raise UsageError("the program has no dspy.Predict to tune")
        attach_adapter(program, self.options.adapter, predictors=names)
        return program, names

    def _provider(self, lm: Any) -> FinetuneProvider:
        return FinetuneProvider(
            host=self._host(lm),
            suffix=self.options.suffix,
            seed=self.options.seed,
            max_usd=self.max_usd,
            allow_unknown_price=self.options.allow_unknown_price,
            on_progress=self.options.on_progress,
            timeout_seconds=self.options.timeout_seconds,
            new=self.options.new,
            deploy=self.options.deploy,
        )

    def _host(self, lm: Any) -> Host:
        if self.host is not None:
            return self.host
        if isinstance(lm, HostLM):
            host: Host = lm.host
            return host
        provider = getattr(lm, "provider", None)
        if isinstance(provider, FinetuneProvider):
            return provider.host
        raise UsageError("say where to train: PreferenceFinetune(metric, host=...), or a program with host.lm(...)")

    def _base_of(self, lm: Any) -> str:
        if self.base_model is not None:
            return str(self.base_model)
        name = str(lm.model)
        if "/" in name and not name.startswith("openai/") and not isinstance(lm, HostLM):
            raise UsageError(f"the program asks {name}, which cannot be tuned here; name base_model=...")
        return name.removeprefix("openai/")

    def _need(
        self, n: int, found: Preferences, provider: FinetuneProvider, predictors: Sequence[str] | None = None
    ) -> None:
        catalog = load_catalog()
        facts = catalog.host(catalog_name(provider.host, catalog))
        needed = self.options.min_pairs or (facts.min_rows if facts is not None else None) or MIN_PAIRS
        if n >= needed:
            return
        whose = f" of {', '.join(predictors)}" if predictors else ""
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(found.skipped.items())) or "none"
        raise DataError(
            f"only {n} different pair{'s' if n != 1 else ''}{whose} came of {found.n_examples} examples with"
            f" {self.n_samples} samples each, and {needed} are needed (what gave none: {reasons}); nothing was"
            " uploaded. Give more examples or samples, a higher temperature, or a metric that tells answers apart"
        )

    def _groups(self, pairs: Mapping[str, Any], by_name: Mapping[str, Any]) -> list[tuple[str, ...]]:
        if not self.options.multitask:
            return [(name,) for name in pairs]
        groups: dict[str, list[str]] = {}
        for name in pairs:
            groups.setdefault(self._base_of(by_name[name].lm), []).append(name)
        return [tuple(names) for names in groups.values()]

    def _training(
        self,
        names: tuple[str, ...],
        by_name: Mapping[str, Any],
        pairs: Mapping[str, Preferences],
        provider: FinetuneProvider,
    ) -> _Training:
        """Write the training files of a group of predictors."""
        base = self._base_of(by_name[names[0]].lm)
        prompts = {name: prompt_of(by_name[name], by_name[name].adapter) for name in names}
        rows = []
        for name in names:
            for preference in pairs[name]:
                try:
                    messages, better, worse = render_preference(preference, prompts[name])
                except RowError as error:
                    logger.warning("a pair of %s is left out: %s", name, error)
                    continue
                answers = [[{"role": "assistant", "content": text}] for text in (better, worse)]
                row = {
                    "input": {"messages": messages},
                    "preferred_output": answers[0],
                    "non_preferred_output": answers[1],
                }
                rows.append(row)
        options: dict[str, Any] = {
            "base_model": strip_model_id(base),
            "dialect": provider.dialect,
            "dedupe": True,
        }
        content = json.dumps(rows, ensure_ascii=True)
        # With one predictor the file belongs to one prompt, which the manifest then keeps, and the model's record.
        prompt = prompts[names[0]] if len(names) == 1 else None
        given: Any = pairs[names[0]] if prompt is not None else rows
        path = provider.path_for("preferences", content)
        dpo = export_dpo(given, prompt, path, on_error="skip", **options)
        return _Training(predictors=names, base_model=base, systems=systems_of(rows), dpo=dpo)

    def _train(
        self, trainings: Sequence[_Training], provider: FinetuneProvider, by_name: Mapping[str, Any]
    ) -> dict[str, FinetunedModel]:
        plans: list[Plan | SequencePlan] = []
        for training in trainings:
            if self.method == "sft_then_dpo":
                plans.append(
                    provider.plan_both(
                        training.dpo,
                        base_model=training.base_model,
                        sft_hyperparameters=self.options.sft_hyperparameters,
                        hyperparameters=self.hyperparameters,
                    )
                )
            else:
                plans.append(
                    provider.plan(training.dpo, base_model=training.base_model, hyperparameters=self.hyperparameters)
                )
        provider.check_budget(plans)
        jobs = [provider.start(settled) for settled in plans]
        results = [provider.finish(job) for job in jobs]
        models = {}
        for training, (tuned, name) in zip(trainings, results, strict=True):
            served: dict[int, Any] = {}
            for predictor_name in training.predictors:
                predictor = by_name[predictor_name]
                assert isinstance(predictor, TunedPredict)
                before = predictor.lm
                if id(before) not in served:
                    served[id(before)] = tuned_lm(
                        before, name, host=provider.host, systems=training.systems, provider=provider
                    )
                predictor.lm = served[id(before)]
                models[predictor_name] = tuned
        return models

    def _mean_score(self, program: Any, examples: Sequence[dspy.Example] | None) -> float | None:
        """The mean metric; a run that ends in an error counts as `parse_failure_score`, or 0."""
        if not examples:
            return None

        def score(example: dspy.Example) -> float:
            try:
                return score_of(self.metric(example, program(**example.inputs()))) or 0.0
            except UsageError:
                raise
            except Exception as error:  # the program and the metric are the user's: one failed run is one bad score
                logger.warning("an example of valset failed: %s: %s", type(error).__name__, error)
                return self.options.parse_failure_score or 0.0

        total = 0.0
        with ThreadPoolExecutor(max_workers=max(1, self.num_threads)) as pool, ProgressBar() as line:
            contexts = [contextvars.copy_context() for _ in examples]
            scores = pool.map(lambda pair: pair[0].run(score, pair[1]), zip(contexts, examples, strict=True))
            for n_done, one in enumerate(scores, start=1):
                total += one
                line.show("scoring on valset", n_done, len(examples))
        return total / len(examples)
