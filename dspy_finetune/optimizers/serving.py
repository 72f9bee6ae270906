"""Tuned models in a DSPy program: each predictor keeps the adapter that its model was trained with.

In: a program, a tuned model, the adapter of its training. Out: the same program, whose predictors ask the tuned model
through that adapter, whatever `dspy.settings` say, and which saves and loads with it.
Not covered: `PromptFormat` predictors (predictors/), which hold their prompt themselves.

DSPy formats the training rows with one adapter and serves with the one in its settings at that moment; nothing ties the
two together, and a model that is asked with another prompt than it was trained on answers badly without saying so.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import dspy

from dspy_finetune.errors import UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.lm import HostLM
from dspy_finetune.prompts import PromptFormat, as_adapter
from dspy_finetune.prompts.adapter import PromptAdapter

logger = logging.getLogger(__name__)

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
