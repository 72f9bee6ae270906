"""The dspy.LM of a host: DSPy's native route, the host's key at the last moment, and a cache of its own.

In: a host and a model id. Out: a `dspy.LM` that predictors and programs use. Four things a plain dspy.LM does not do:

- DSPy's cache key holds the model's name but not the address, so two hosts with a model of one name would share
  answers. Hosts other than OpenAI's own mix their identity into `rollout_id`, the field of the key that is not sent.
- With OPENAI_BASE_URL or OPENAI_API_BASE set, DSPy's "auto" leaves the native engine; here it is asked for by name.
- A pickled dspy.LM holds its key; this one drops key and address and asks its host again.
- DSPy's table of what models can do has no row for a tuned id, so its JSONAdapter would send a tuned model no schema
  where it sends its base one: collecting data and serving would differ. A tuned model can do what its base can.

Kept apart from host.py because it imports dspy, which costs most of a second.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy

from dspy_finetune.hosts.catalog import parse_model_id
from dspy_finetune.hosts.engine import HostEngine

if TYPE_CHECKING:
    from dspy_finetune.hosts.host import Host

# dspy/clients/backend_selection.py: client settings that only DSPy's LiteLLM route carries.
_NOT_NATIVE = frozenset(
    {"headers", "extra_headers", "api_version", "azure_ad_token_provider", "organization", "project", "extra_query"}
    | {"custom_llm_provider", "extra_body"}
)
_CONNECTION = ("api_key", "api_base")


class HostLM(dspy.LM):
    """A dspy.LM bound to a host; saved in a program's JSON it is a plain dspy.LM without address or key."""

    kwargs: dict[str, Any]

    def __init__(self, model: str, *, host: Host, **kwargs: Any) -> None:
        self._host = host
        self._cache_tag = host.cache_namespace()
        # An engine of its own holds the connection, and DSPy lets nothing about it into the settings then.
        self._has_own_engine = not isinstance(kwargs.get("engine", ""), str)
        self._is_connected = False
        if "engine" not in kwargs and not (_NOT_NATIVE & kwargs.keys()) and kwargs.get("model_type", "chat") != "text":
            kwargs["engine"] = "lm15"
        super().__init__(model, **kwargs)

    @property
    def host(self) -> Host:
        """Where the model answers."""
        return self._host

    @property
    def supports_function_calling(self) -> bool:
        """As dspy.LM; of a tuned model: whether its base does."""
        return super().supports_function_calling or self._base.supports_function_calling

    @property
    def supports_reasoning(self) -> bool:
        """As dspy.LM; of a tuned model: whether its base does."""
        return super().supports_reasoning or self._base.supports_reasoning

    @property
    def supports_response_schema(self) -> bool:
        """As dspy.LM; of a tuned model: whether its base does."""
        return super().supports_response_schema or self._base.supports_response_schema

    @property
    def supported_params(self) -> set[str]:
        """As dspy.LM; of a tuned model: those of its base too."""
        own: set[str] = super().supported_params
        return own | self._base.supported_params

    @property
    def _base(self) -> _Abilities:
        named = parse_model_id(self.model)
        return _abilities(named.base) if named.is_tuned and self.model_type == "chat" else _Abilities()

    def __call__(self, prompt: Any = None, **kwargs: Any) -> Any:
        """As dspy.LM: a Request gives a Response, other calls a list."""
        self._connect()
        try:
            return super().__call__(prompt, **self._with_tag(kwargs))
        except Exception as error:  # whatever it is goes on to the caller, without the key that a host repeated in it
            self._host.scrub(error)
            raise

    async def acall(self, prompt: Any = None, **kwargs: Any) -> Any:
        """As dspy.LM.acall."""
        self._connect()
        try:
            return await super().acall(prompt, **self._with_tag(kwargs))
        except Exception as error:  # as above
            self._host.scrub(error)
            raise

    def _connect(self) -> None:
        if self._has_own_engine:
            return
        if not self._is_connected or not self._host.is_connected():
            base_url, key = self._host.connection()
            # One assignment, so that another thread sees the old connection or the new one.
            self.kwargs = {**self.kwargs, **({"api_base": base_url} if base_url else {}), "api_key": key}
            self._is_connected = True

    def _with_tag(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if not self._cache_tag:
            return kwargs
        rollout = kwargs.get("rollout_id", self.kwargs.get("rollout_id"))
        return {**kwargs, "rollout_id": _tagged(self._cache_tag, rollout)}

    def _warn_zero_temp_rollout(self, temperature: float | None, rollout_id: Any) -> None:
        # The tag is not the user's wish for another sample: DSPy's warning is for that alone.
        wished = self.kwargs.get("rollout_id") if self._cache_tag else rollout_id
        super()._warn_zero_temp_rollout(temperature, wished)

    def dump_state(self) -> dict[str, Any]:
        """The state of a plain dspy.LM: loadable without trusting a class, and without address or key."""
        state: dict[str, Any] = super().dump_state()
        own = f"{type(self).__module__}.{type(self).__qualname__}"
        plain = {name: "dspy.clients.lm.LM" if value == own else value for name, value in state.items()}
        if isinstance(self.engine, HostEngine):
            # A way to ask, not a part of the model: saved is the route that asks the same.
            del plain["async_engine"]
            plain |= {"engine": "lm15"} | ({} if self.engine.timeout is None else {"timeout": self.engine.timeout})
        return {name: value for name, value in plain.items() if name not in _CONNECTION}

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state["kwargs"] = {name: value for name, value in state["kwargs"].items() if name not in _CONNECTION}
        state["_is_connected"] = False
        return state


@dataclass(frozen=True, kw_only=True)
class _Abilities:
    supports_function_calling: bool = False
    supports_reasoning: bool = False
    supports_response_schema: bool = False
    supported_params: frozenset[str] = frozenset()


@functools.lru_cache(maxsize=64)
def _abilities(base: str) -> _Abilities:
    """What DSPy knows of a base model; little where it does not know it."""
    lm = dspy.LM(f"openai/{base}", engine="lm15")
    return _Abilities(
        supports_function_calling=lm.supports_function_calling,
        supports_reasoning=lm.supports_reasoning,
        supports_response_schema=lm.supports_response_schema,
        supported_params=frozenset(lm.supported_params),
    )


def _tagged(namespace: str, rollout_id: Any) -> int:
    """A whole number, as DSPy's field wants, that differs by host and by the caller's own rollout."""
    digest = hashlib.sha256(f"{namespace}\x00{rollout_id!r}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
