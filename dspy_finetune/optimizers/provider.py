"""`FinetuneProvider`: DSPy's own optimizers (BootstrapFinetune, BetterTogether) train through this library.

In: DSPy's training rows, from `LM.finetune`. Out: the tuned model's LM on the same host, once it answers.
Rows are checked before anything is uploaded, the same rows are paid once (the journal), and a job that fails raises:
DSPy hands errors over as the job's *result*, so `FinetuneTrainingJob` puts that right.
Not covered: making the rows, which is the optimizer's part.

Each predictor keeps the adapter that its model was trained with (`attach_adapter`): it asks the tuned model through
that adapter, whatever `dspy.settings` say, and saves and loads with it. DSPy formats the training rows with one adapter
and serves with the one in its settings at that moment; nothing ties the two together, and a model that is asked with
another prompt than it was trained on answers badly without saying so. `PromptFormat` predictors (predictors/) hold
their prompt themselves.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any, overload

import dspy
from dspy.clients.provider import Provider, TrainingJob

from dspy_finetune._progress import told_if_slow
from dspy_finetune.errors import BudgetError, HostError, JobError, UsageError
from dspy_finetune.export import TrainingFile, export_dpo, export_sft
from dspy_finetune.export.dialects import DIALECTS
from dspy_finetune.export.formats import method_of
from dspy_finetune.hosts import Host, load_catalog, strip_model_id
from dspy_finetune.hosts.lm import HostLM
from dspy_finetune.jobs.job import Job, JobProgress
from dspy_finetune.jobs.model import FinetunedModel
from dspy_finetune.jobs.plan import Method, Plan, Source, plan, unknown_price
from dspy_finetune.jobs.records import CLOCK, catalog_name, journal_of
from dspy_finetune.jobs.sequence import SequenceJob, SequencePlan, sft_then_dpo
from dspy_finetune.prompts import PromptFormat, as_adapter
from dspy_finetune.prompts.adapter import PromptAdapter

logger = logging.getLogger(__name__)


READY_SECONDS = 900.0
"""How long a tuned model may take to answer after its job's success."""


class FinetuneTrainingJob(TrainingJob):
    """DSPy's handle of a training: a future whose errors are errors, and whose host's job can be looked at."""

    def __init__(self, thread: Thread | None = None, **settings: Any) -> None:
        super().__init__(thread=thread, **settings)
        if thread is not None:
            # Ctrl-C must end the program although the thread goes on asking; the job itself lives on the host.
            thread.daemon = True
        self.job: Job | None = None
        """The host's job; None until it is created."""
        self.tuned: FinetunedModel | None = None
        """What it made; None until then."""
        self.serve: Callable[[Any], TunedLM] | None = None

    def set_result(self, result: Any) -> None:
        """DSPy's wrapper gives the tuned LM, or the error, here."""
        if self.cancelled():
            return
        if isinstance(result, BaseException):
            self.set_exception(result)
            return
        super().set_result(self.serve(result) if self.serve is not None else result)

    def status(self) -> str:
        """The job's status in the host's word; `"not_started"` until there is one."""
        return self.job.status if self.job is not None else "not_started"

    def cancel(self) -> bool:
        """Cancel the host's job too, if it has not ended."""
        if self.job is not None and not self.job.facts.is_final:
            self.job.cancel()
        is_cancelled: bool = Future.cancel(self)  # DSPy's own returns nothing
        return is_cancelled


class FinetuneProvider(Provider):
    """What `dspy.LM(model, provider=FinetuneProvider(host=...))` trains with.

    Args:
        host: Where to train and to serve.
        method: `"sft"` or `"dpo"`; None goes by the rows. DSPy's own optimizers make sft rows.
        suffix: A part of the tuned model's name.
        seed: Of the training, and of the rows that are held out.
        validation: Rows to measure on while training: a file, or the share of the rows, such as 0.1, that is held out.
        hyperparameters: `n_epochs` and so on; an optimizer's `train_kwargs` go before them.
        max_usd: A training that costs more is not started.
        allow_unknown_price: Train although nobody knows the price.
        on_progress: Is told after each look at the job.
        timeout_seconds: Stop waiting after so long; the job is left alive.
        new: Train again although the same was trained before.
        deploy: For hosts that serve a model only after its deployment: is given the tuned model, deploys it, and
            returns the name to ask by.

    Raises:
        UsageError: The host needs a deployment and `deploy` is not given, or `validation` is no share.
    """

    def __init__(
        self,
        *,
        host: Host,
        method: Method | None = None,
        suffix: str | None = None,
        seed: int | None = None,
        validation: float | Source | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        max_usd: float | None = None,
        allow_unknown_price: bool = False,
        on_progress: Callable[[JobProgress], object] | None = None,
        timeout_seconds: float | None = None,
        new: bool = False,
        deploy: Callable[[FinetunedModel], str] | None = None,
    ) -> None:
        super().__init__()
        if host.kind.needs_deployment and deploy is None:
            raise UsageError(
                f"{host.name} serves a tuned model only after a deployment: give deploy=, a function that deploys the"
                " FinetunedModel and returns the deployment's name"
            )
        if isinstance(validation, (int, float)) and not 0 < validation < 1:
            raise UsageError(f"validation={validation}: a share lies between 0 and 1, such as 0.1; or give a file")
        self.finetunable = True
        self.TrainingJob = FinetuneTrainingJob
        self.host = host
        self.method = method
        self.suffix = suffix
        self.seed = seed
        self.validation = validation
        self.hyperparameters = dict(hyperparameters or {})
        self.max_usd = max_usd
        self.allow_unknown_price = allow_unknown_price
        self.on_progress = on_progress
        self.timeout_seconds = timeout_seconds
        self.new = new
        self.deploy = deploy

    def __repr__(self) -> str:
        return f"FinetuneProvider(host={self.host!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> FinetuneProvider:
        # Optimizers copy programs, LMs and all; on_progress may hold what cannot be copied.
        return self

    def lm(self, model: str | None = None, **options: Any) -> HostLM:
        """The LM of a model on this host, trainable through this provider; what a program starts with.

        Args:
            model: The host's own base model without it.
            **options: For dspy.LM.
        """
        return self.host.lm(model or self.host.base_model, provider=self, **options)

    def launch(self, lm: Any, launch_kwargs: dict[str, Any] | None = None) -> None:
        """Point a plain dspy.LM at the host, unless it was given an address or a key; BetterTogether calls it first."""
        if isinstance(lm, HostLM) or {"api_base", "base_url", "api_key"} & lm.kwargs.keys():
            return
        base_url, key = self.host.connection()
        lm.kwargs = {**lm.kwargs, "api_key": key, **({"api_base": base_url} if base_url else {})}

    def kill(self, lm: Any, launch_kwargs: dict[str, Any] | None = None) -> None:
        """Nothing to stop: the host serves others too."""

    def finetune(
        self,
        job: FinetuneTrainingJob,
        model: str,
        train_data: Sequence[Mapping[str, Any]],
        train_data_format: Any = None,
        train_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Train on DSPy's rows and wait until the model answers.

        Raises:
            UsageError: The rows are of a kind that cannot be trained, or a setting is wrong.
            DataError: The host would refuse the rows; nothing was uploaded.
            BudgetError: It costs more than allowed; nothing was uploaded.
            JobError: The job failed or was cancelled, or its model does not answer.
            HostError: The host refused, or did not answer.
        """
        rows = _answered(train_data)
        method = self._method_of(rows, train_data_format)
        train, validation = self.write_rows(rows, method, base_model=model)
        settled = self.plan(
            train,
            base_model=model,
            validation=validation,
            hyperparameters={**self.hyperparameters, **(train_kwargs or {})},
        )
        job.job = self.start(settled)
        job.tuned, name = self.finish(job.job)
        systems = systems_of(rows)
        job.serve = lambda lm: tuned_lm(lm, name, host=self.host, systems=systems, provider=self)
        return self.host.dspy_name(name)

    def write_rows(
        self, rows: Sequence[dict[str, Any]], method: Method, *, base_model: str
    ) -> tuple[TrainingFile, Source | None]:
        """Ready rows as a checked file, and one of those held out, beside the journal; equal rows give equal files."""
        validation = None if isinstance(self.validation, (int, float)) else self.validation
        if isinstance(self.validation, (int, float)):
            rows, held_out = _hold_out(rows, self.validation, self.seed or 0)
            validation = self._write(held_out, method, base_model, "validation")
        return self._write(rows, method, base_model, "train"), validation

    def path_for(self, name: str, content: str) -> Any:
        """Where a training file of this content goes."""
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        folder = journal_of(self.host).path.parent / "training"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}-{digest}.jsonl"

    @property
    def dialect(self) -> str:
        """How the host wants its files."""
        name = catalog_name(self.host, load_catalog())
        return name if name in DIALECTS else "openai"

    def plan(
        self,
        train: Source,
        *,
        base_model: str | FinetunedModel,
        validation: Source | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> Plan:
        """The plan of one training with this provider's settings; logs its warnings."""
        settled = plan(
            train,
            validation=validation,
            base_model=base_model,
            host=self.host,
            hyperparameters=hyperparameters,
            suffix=self.suffix,
            seed=self.seed,
        )
        _tell(settled.warnings)
        return settled

    def plan_both(
        self,
        pairs: Source,
        *,
        base_model: str | FinetunedModel,
        sft_hyperparameters: Mapping[str, Any],
        hyperparameters: Mapping[str, Any],
    ) -> SequencePlan:
        """The plan of SFT on the preferred answers and DPO from there; logs its warnings."""
        settled = sft_then_dpo(
            pairs,
            base_model=base_model,
            host=self.host,
            sft_hyperparameters=sft_hyperparameters,
            dpo_hyperparameters=hyperparameters,
            suffix=self.suffix,
            seed=self.seed,
        )
        _tell(settled.warnings)
        return settled

    def check_budget(self, plans: Sequence[Plan | SequencePlan]) -> None:
        """Several plans as one sum. Raises BudgetError."""
        unknown = [settled for settled in plans if settled.cost_usd is None]
        if unknown and not self.allow_unknown_price:
            first = unknown[0].sft if isinstance(unknown[0], SequencePlan) else unknown[0]
            raise unknown_price(first.base_model, self.host, self.max_usd)
        total = sum(settled.cost_usd or 0.0 for settled in plans)
        if self.max_usd is not None and total > self.max_usd:
            raise BudgetError(
                f"the training costs ${total:,.2f}, more than the allowed ${self.max_usd:,.2f}; train on"
                " fewer rows or epochs, on a cheaper model, or allow more"
            )

    @overload
    def start(self, settled: Plan) -> Job: ...

    @overload
    def start(self, settled: Plan | SequencePlan) -> Job | SequenceJob: ...

    def start(self, settled: Plan | SequencePlan) -> Job | SequenceJob:
        """The plan's job: made now, or found if the same was started before."""
        logger.info("%s", settled)
        return settled.start(self.max_usd, new=self.new, allow_unknown_price=self.allow_unknown_price)

    def finish(self, job: Job | SequenceJob) -> tuple[FinetunedModel, str]:
        """(the job's model, the name that it answers by), once it does.

        Raises:
            JobError: The job failed, or its model does not answer in time.
        """
        tuned = job.wait(self.timeout_seconds, self.on_progress)
        name = self.deploy(tuned) if self.deploy is not None else tuned.id
        self._await_answer(name, job)
        return tuned, name

    def _await_answer(self, name: str, job: Job | SequenceJob) -> None:
        """One token from the model: a program must not be handed a model that is dead."""
        deadline, pause = CLOCK.now() + READY_SECONDS, 1.0
        with told_if_slow(f"waiting for {self.host.name} to serve {name}", logger.warning):
            while True:
                try:
                    with self.host.talking(f"ask {name} for its first answer"):
                        self.host.client().chat.completions.create(
                            model=name, messages=[{"role": "user", "content": "Hello"}], max_tokens=1
                        )
                    return
                except HostError as error:
                    if error.status != 404 and not error.retryable:
                        raise
                    if CLOCK.now() + pause > deadline:
                        raise JobError(
                            f"{job.id} made {name}, but {self.host.name} does not serve it after {READY_SECONDS:.0f} s;"
                            f" nothing was changed: run the same again later, or attach({job.id!r})",
                            job_id=job.id,
                        ) from error
                CLOCK.sleep(pause)
                pause = min(pause * 2, 30.0)

    def _method_of(self, rows: Sequence[Mapping[str, Any]], train_data_format: Any) -> Method:
        word = getattr(train_data_format, "value", train_data_format)
        if word not in {None, "chat", "dpo"}:
            raise UsageError(
                f'train_data_format="{word}" cannot be trained by this provider: it takes chat rows and preference rows'
            )
        found = {method_of(row) for row in rows}
        method = self.method or ("dpo" if found == {"dpo"} else "sft")
        if found - {method}:
            raise UsageError(f"the provider is to train {method}, but rows are for {', '.join(sorted(found))}")
        return method

    def _write(self, rows: Sequence[dict[str, Any]], method: Method, base_model: str, name: str) -> TrainingFile:
        path = self.path_for(f"{name}-{method}", "\n".join(map(_line, rows)))
        export = export_dpo if method == "dpo" else export_sft
        return export(rows, None, path, base_model=strip_model_id(_bare(base_model)), dialect=self.dialect)


def systems_of(rows: Sequence[Mapping[str, Any]]) -> frozenset[str | None]:
    """The different system messages of training rows; empty where there are too many to be a fixed prompt."""
    found: set[str | None] = set()
    for row in rows:
        found.add(system_of(row["input"]["messages"] if "input" in row else row["messages"]))
        if len(found) > MAX_SYSTEMS:
            return frozenset()
    return frozenset(found)


def _answered(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows that hold an answer to train on: an optimizer gives those of answers that could not be parsed too."""
    answered = [dict(row) for row in rows if not row.get("messages") or row["messages"][-1].get("role") == "assistant"]
    if len(answered) < len(rows):
        logger.warning(
            "%d of %d rows are left out: the program's answer could not be read", len(rows) - len(answered), len(rows)
        )
    return answered


def _tell(warnings: Sequence[str]) -> None:
    for warning in warnings:
        logger.warning("%s", warning)


def _hold_out(
    rows: Sequence[dict[str, Any]], share: float, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two parts of the rows; equal rows stay together, so that none is trained on and measured on."""
    lines = sorted({_line(row) for row in rows})
    held = set(random.Random(seed).sample(lines, min(len(lines) - 1, max(1, round(share * len(lines))))))
    return [row for row in rows if _line(row) not in held], [row for row in rows if _line(row) in held]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, ensure_ascii=False, default=repr)


def _bare(model: str) -> str:
    return model.removeprefix("openai/")


MAX_SYSTEMS = 64
"""More different system messages than these come from a template with inputs in it, and cannot be compared."""

_KINDS: dict[str, type[Any]] = {"chat": dspy.ChatAdapter, "json": dspy.JSONAdapter, "xml": dspy.XMLAdapter}
_CONNECTION = frozenset({"api_key", "api_base", "base_url", "model_list"})
_SETTINGS = ("model_type", "cache", "callbacks", "num_retries", "launch_kwargs", "train_kwargs", "use_developer_role")


class TunedLM(HostLM):
    """The LM of a tuned model; says so, once, when it is asked with a system message that it was never trained on."""

    def __init__(self, model: str, *, host: Host, systems: Collection[str | None] = (), **kwargs: Any) -> None:
        super().__init__(model, host=host, **kwargs)
        self._systems = frozenset(systems) if len(systems) <= MAX_SYSTEMS else frozenset()
        self._has_warned = False

    def __call__(self, prompt: Any = None, **kwargs: Any) -> Any:
        """As dspy.LM."""
        self._compare(prompt, kwargs)
        return super().__call__(prompt, **kwargs)

    async def acall(self, prompt: Any = None, **kwargs: Any) -> Any:
        """As dspy.LM.acall."""
        self._compare(prompt, kwargs)
        return await super().acall(prompt, **kwargs)

    def _compare(self, prompt: Any, kwargs: Mapping[str, Any]) -> None:
        if self._has_warned or not self._systems:
            return
        if kwargs.get("messages"):
            system = system_of(kwargs["messages"])
        elif hasattr(prompt, "system"):  # a dspy.lm15.Request
            system = prompt.system if isinstance(prompt.system, str) or prompt.system is None else None
        else:
            return
        if system not in self._systems:
            self._has_warned = True
            logger.warning(
                "%s is asked with a system message that it was not trained on; if its prompt was not changed on"
                " purpose, give the program the adapter of the training: attach_adapter(program, adapter)",
                self.model,
            )


class TunedPredict(dspy.Predict):
    """A dspy.Predict that asks through its own adapter; `attach_adapter` makes it of a dspy.Predict in place."""

    adapter: Any

    def forward(self, **kwargs: Any) -> Any:
        """As dspy.Predict."""
        with dspy.context(adapter=self.adapter):
            return super().forward(**kwargs)

    async def aforward(self, **kwargs: Any) -> Any:
        """As dspy.Predict."""
        with dspy.context(adapter=self.adapter):
            return await super().aforward(**kwargs)

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The state of a dspy.Predict, and what makes it tuned: adapter, host and model."""
        state: dict[str, Any] = super().dump_state(json_mode)
        host = self.lm.host.to_dict() if isinstance(self.lm, HostLM) else None
        tuned = {"adapter": describe_adapter(self.adapter), "host": host, "model": getattr(self.lm, "model", None)}
        return {**state, "finetuned": tuned}


def attach_adapter(program: dspy.Module, adapter: Any = None, *, predictors: Iterable[str] | None = None) -> Any:
    """Tie predictors to an adapter for good, in place.

    Args:
        program: Its `dspy.Predict`s become `TunedPredict`s; modules around them stay what they are.
        adapter: What the model was trained with. None takes the one in `dspy.settings`, else dspy.ChatAdapter, and
            leaves predictors that have one already. Its fallback to JSON is turned off: that second call would have a
            prompt that the model was never trained on.
        predictors: Names as in `program.named_predictors()`; None takes all.

    Returns:
        The program.

    Raises:
        UsageError: A predictor is a subclass of dspy.Predict of its own, or a name is unknown.
    """
    named = dict(program.named_predictors())
    wanted = list(named) if predictors is None else list(predictors)
    unknown = sorted(set(wanted) - set(named))
    if unknown:
        raise UsageError(f"no predictor named {', '.join(unknown)}; the program has {', '.join(named) or 'none'}")
    chosen = without_fallback(adapter or dspy.settings.adapter or dspy.ChatAdapter())
    for name in wanted:
        predictor = named[name]
        if isinstance(predictor, TunedPredict):
            predictor.adapter = predictor.adapter if adapter is None else chosen
            continue
        if type(predictor) is not dspy.Predict:
            raise UsageError(
                f"predictor {name} is a {type(predictor).__name__}: an adapter can be tied to a plain dspy.Predict"
                " only; give the adapter to dspy.configure(adapter=...)"
            )
        # In place, so that whatever holds the predictor (a list, a ChainOfThought) need not be known.
        predictor.__class__ = TunedPredict
        predictor.adapter = chosen
    return program


def load_program(program: dspy.Module, path: str | os.PathLike[str], *, host: Host | None = None) -> Any:
    """Load what `program.save(path)` wrote into a fresh program, with its tuned models, their hosts and adapters.

    `program.load(path)` alone brings the prompts and the models' names back, but neither host nor adapter.

    Args:
        program: A new program of the same class.
        path: The JSON file.
        host: Another host than the recorded one.

    Raises:
        UsageError: The program was tuned with an adapter of the user's own class.
    """
    program.load(path)
    for name, predictor in program.named_predictors():
        state = predictor.__dict__.pop("finetuned", None)
        if not isinstance(state, dict):
            continue
        if state["adapter"] is None:
            raise UsageError(
                f"predictor {name} was tuned with an adapter of a class that is not DSPy's own; load with"
                " program.load(path), then attach_adapter(program, adapter)"
            )
        attach_adapter(program, _adapter_of(state["adapter"]), predictors=[name])
        place = host or (Host.from_dict(state["host"]) if state["host"] else None)
        if place is not None and predictor.lm is not None:
            predictor.lm = tuned_lm(predictor.lm, state["model"], host=place)
    return program


def tuned_lm(
    lm: Any, model: object, *, host: Host, systems: Collection[str | None] = (), provider: Any = None
) -> TunedLM:
    """The LM of a tuned model with the settings (temperature, max_tokens, cache, ...) of the LM that it replaces."""
    options = {name: getattr(lm, name) for name in _SETTINGS if getattr(lm, name, None) is not None}
    tuned = TunedLM(host.dspy_name(model), host=host, systems=systems, provider=provider, **options)
    kept = {name: value for name, value in dict(getattr(lm, "kwargs", {})).items() if name not in _CONNECTION}
    tuned.kwargs = {**tuned.kwargs, **kept}
    return tuned


def system_of(messages: Iterable[Mapping[str, Any]]) -> str | None:
    """The system messages as one text; None without any, or where one is not plain text."""
    parts = [message["content"] for message in messages if message.get("role") == "system"]
    return "\n\n".join(parts) if parts and all(isinstance(part, str) for part in parts) else None


def without_fallback(adapter: Any) -> Any:
    """The same adapter, without its second try in JSON."""
    if not getattr(adapter, "use_json_adapter_fallback", False):
        return adapter
    plain = copy.copy(adapter)
    plain.use_json_adapter_fallback = False
    return plain


def prompt_of(predictor: Any, adapter: Any) -> PromptFormat:
    """What a predictor sends through an adapter, as a prompt that can be exported.

    Raises:
        UsageError: The adapter is neither one of DSPy's own nor made by `as_adapter`, or a type cannot be exported.
    """
    if isinstance(adapter, PromptAdapter):
        return adapter.prompt
    return PromptFormat.from_adapter(predictor.signature, adapter, predictor.demos)


def describe_adapter(adapter: Any) -> dict[str, Any] | None:
    """The adapter as JSON types; None for a class of the user's own."""
    if isinstance(adapter, PromptAdapter):
        return {"kind": "prompt", "prompt": adapter.prompt.to_dict()}
    for kind, known in _KINDS.items():
        if type(adapter) is known:
            return {"kind": kind}
    return None


def _adapter_of(description: Mapping[str, Any]) -> Any:
    if description["kind"] == "prompt":
        return as_adapter(PromptFormat.from_dict(description["prompt"]))
    return _KINDS[description["kind"]]()
