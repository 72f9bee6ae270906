"""A host: where jobs run and models answer, as a small value that holds no client and shows no key.

In: an address, or the wish for the embedded server. Out: an `openai.OpenAI` client, a `dspy.LM`, this library's errors.
Chat is OpenAI's on every host; what differs stands in `KINDS`, and in a file for each API of its own (protocol.py).
Keys are read from the environment when they are needed; a key given as an argument stays in memory alone: it is in no
repr, dict, pickle or file, so after unpickling the environment must supply it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import os
import re
import shlex
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dspy_finetune._progress import told_if_slow
from dspy_finetune.errors import HostError, MalformedResponseError, UsageError
from dspy_finetune.hosts.embedded import (
    Server,
    api_url,
    default_root,
    ensure_server,
    is_alive,
    is_started_here,
    read_server,
    stop_server,
)
from dspy_finetune.hosts.failures import describe_failure, redact, scrub, tell_slow, tell_wait
from dspy_finetune.hosts.fireworks import KIND as FIREWORKS
from dspy_finetune.hosts.fireworks import FireworksApi
from dspy_finetune.hosts.nebius import KIND as NEBIUS
from dspy_finetune.hosts.nebius import NebiusApi
from dspy_finetune.hosts.protocol import HostApi, HostKind, KindName, OpenAIApi
from dspy_finetune.hosts.together import KIND as TOGETHER
from dspy_finetune.hosts.together import TogetherApi

if TYPE_CHECKING:
    from openai import OpenAI

    from dspy_finetune.hosts.lm import HostLM


# What only Azure needs: a tuned model answers after a deployment, made by the control plane and not by this API.
#
# In: the resource's address, a tuned model, names. Out: the exact command of Azure's own tool. Nothing is run: a
# deployment is billed by the hour, so a person decides.

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def resource_name(base_url: str) -> str:
    """The resource in an address.

    >>> resource_name("https://acme.openai.azure.com/openai/v1")
    'acme'
    """
    return (urlsplit(base_url).hostname or "").split(".")[0]


def deployment_command(
    base_url: str, model: str, *, deployment: str, resource_group: str, sku: str = "Standard", capacity: int = 1
) -> str:
    """The command that deploys a tuned model; afterwards it is asked for by the deployment's name.

    Args:
        base_url: The resource's address.
        model: The tuned model's id, such as `gpt-4.1-2025-04-14.ft-0123abcd`.
        deployment: What to call the deployment.
        resource_group: The resource's group.
        sku: "Standard", "GlobalStandard" or "DeveloperTier".
        capacity: In units of 1,000 tokens per minute.

    Raises:
        UsageError: The deployment's name is not one that Azure takes.
    """
    if not _NAME.fullmatch(deployment):
        raise UsageError(f"deployment {deployment!r}: expected 1 to 64 letters, digits, dots, - and _")
    words = ["az", "cognitiveservices", "account", "deployment", "create", "--resource-group", resource_group]
    words += ["--name", resource_name(base_url), "--deployment-name", deployment, "--model-name", model]
    words += ["--model-version", "1", "--model-format", "OpenAI", "--sku-capacity", str(capacity), "--sku-name", sku]
    return shlex.join(words)


# What differs between hosts, as data: one row per kind, so that no other module asks which kind it has; and the
# translation of each API that is not OpenAI's. What a host's models can do and cost, and what it asks of a file, stands
# in the catalog.

_WITH_OWN_API: tuple[tuple[HostKind, Callable[[OpenAI], HostApi]], ...] = (
    (NEBIUS, NebiusApi),
    (TOGETHER, TogetherApi),
    (FIREWORKS, FireworksApi),
)

KINDS: dict[KindName, HostKind] = {
    "local": HostKind(
        name="local",
        key_variables=("DSPY_FINETUNE_LOCAL_API_KEY",),
        # The embedded server stores a job before it answers; the seconds are for a request still in its socket.
        listing_lag_seconds=5.0,
        lists_models=True,
        has_structured_output=False,
        takes_n=True,
        poll_seconds=(0.5, 2.0),
        has_recipes=True,
        bounds={"learning_rate_multiplier": (1e-6, 1000), "beta": (1e-6, 2)},
        base_model="smollm2-135m-instruct",
        gives_weights=True,
    ),
    "openai": HostKind(
        name="openai",
        key_variables=("OPENAI_API_KEY",),
        url_variable="OPENAI_BASE_URL",
        # Nobody publishes a bound; a minute is far above what was seen.
        listing_lag_seconds=60.0,
        lists_models=True,
        takes_n=True,
        base_model="gpt-4.1-mini-2025-04-14",
    ),
    "azure": HostKind(
        name="azure",
        key_variables=("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
        needs_deployment=True,
        takes_n=True,
        poll_seconds=(10.0, 60.0),
        base_model="gpt-4.1-mini-2025-04-14",
    ),
    "compatible": HostKind(name="compatible", key_variables=()),
    **{kind.name: kind for kind, _ in _WITH_OWN_API},
}

OWN_APIS: dict[KindName, Callable[[OpenAI], HostApi]] = {kind.name: api for kind, api in _WITH_OWN_API}
"""Kind -> its own API; every other kind speaks OpenAI's."""

NAMED_HOSTS = tuple(kind for kind in KINDS if kind != "compatible")
"""Hosts that a name alone tells, in the order in which they are shown."""

ANSWER_SECONDS = 120.0
"""Timeout of a host that has the request and says nothing; the client's own is ten minutes, three times in a row."""

_AROUND_KEYS = " \t\r\n\v\f\u00a0\"'"
"""What stands around a key and is none of it: docker's --env-file leaves the quotes."""


def check_host(host: object) -> None:
    """Raise UsageError for a host's name in the place of a host, as the command line takes it."""
    if isinstance(host, str):
        raise UsageError(f"host={host!r:.60}: a Host is needed, such as ft.Host.local() or ft.Host.openai()")


class Host:
    """Where jobs run and models answer; make one with `Host.openai()`, `.azure()`, `.nebius()`, `.local()` and others.

    >>> Host.openai()
    Host.openai()
    >>> Host.compatible("https://llm.example.com/v1", name="example").to_dict()
    {'kind': 'compatible', 'name': 'example', 'base_url': 'https://llm.example.com/v1'}
    """

    def __init__(
        self,
        kind: KindName,
        *,
        name: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        key_variable: str | None = None,
        root: str | os.PathLike[str] | None = None,
        base_model: str | None = None,
        training_type: str | None = None,
    ) -> None:
        if kind not in KINDS:
            raise UsageError(f'unknown kind of host "{kind}": expected one of {", ".join(KINDS)}')
        self._kind: KindName = kind
        self._name = name or kind
        self._url = redact(base_url).rstrip("/") if base_url else None
        self._given_key = api_key
        self._key_variable = key_variable
        self._root = os.fspath(root) if root is not None else None
        self._base_model = base_model
        self._training_type = training_type
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._clients: dict[str, OpenAI] = {}
        self._server: Server | None = None

    @classmethod
    def openai(cls, api_key: str | None = None) -> Host:
        """OpenAI itself, or the gateway in OPENAI_BASE_URL; the key is OPENAI_API_KEY."""
        return cls("openai", api_key=api_key)

    @classmethod
    def azure(
        cls,
        endpoint: str | None = None,
        api_key: str | None = None,
        *,
        name: str | None = None,
        training_type: str | None = None,
    ) -> Host:
        """A resource of Azure OpenAI, by its v1 address; the key is AZURE_OPENAI_API_KEY.

        Args:
            endpoint: `https://RESOURCE.openai.azure.com`; without it AZURE_OPENAI_ENDPOINT.
            api_key: Kept in memory only.
            name: Another name than "azure" in messages and records.
            training_type: "Standard", "GlobalStandard" or "developerTier"; Azure's own default without it.

        Raises:
            UsageError: No endpoint, or an unknown training type.
        """
        endpoint = endpoint or os.environ.get("AZURE_OPENAI_ENDPOINT")
        if not endpoint:
            raise UsageError(
                "Host.azure needs the resource's endpoint: Host.azure('https://RESOURCE.openai.azure.com')"
            )
        if training_type not in {None, "Standard", "GlobalStandard", "developerTier"}:
            raise UsageError(
                f'unknown training_type "{training_type}": expected Standard, GlobalStandard or developerTier'
            )
        url = endpoint.rstrip("/").removesuffix("/openai")
        url = url if "/openai/" in url else f"{url}/openai/v1"
        return cls("azure", base_url=url, api_key=api_key, name=name, training_type=training_type)

    @classmethod
    def local(
        cls,
        url: str | None = None,
        *,
        root: str | os.PathLike[str] | None = None,
        base_model: str | None = None,
    ) -> Host:
        """The embedded server: found through its root folder, or started on first use and stopped at exit.

        Args:
            url: The address of a server that runs already; nothing is started then.
            root: Where its jobs and models live; $DSPY_FINETUNE_HOME or a folder in the user's data without it.
            base_model: The model that it loads at its start; it loads others when they are asked for.
        """
        return cls("local", base_url=api_url(url) if url else None, root=root, base_model=base_model)

    @classmethod
    def compatible(
        cls,
        base_url: str,
        api_key: str | None = None,
        name: str | None = None,
        *,
        api_key_variable: str | None = None,
    ) -> Host:
        """Any server that speaks OpenAI's API.

        Args:
            base_url: Its address, with `/v1` where it has that.
            api_key: Kept in memory only.
            name: What to call it in messages and records.
            api_key_variable: The environment variable that holds its key; `<NAME>_API_KEY` without it.
                OPENAI_API_KEY is never sent to another host of itself.
        """
        variable = api_key_variable or f"{(name or 'compatible').upper().replace('-', '_')}_API_KEY"
        return cls("compatible", base_url=base_url, api_key=api_key, name=name, key_variable=variable)

    @classmethod
    def nebius(cls, api_key: str | None = None, *, base_url: str | None = None) -> Host:
        """Nebius Token Factory; the key is NEBIUS_API_KEY.

        Args:
            api_key: Kept in memory only.
            base_url: Another address than NEBIUS_BASE_URL or Nebius's own: of a gateway, for one.
        """
        return cls("nebius", api_key=api_key, base_url=base_url)

    @classmethod
    def together(cls, api_key: str | None = None, *, base_url: str | None = None) -> Host:
        """Together AI; the key is TOGETHER_API_KEY.

        Args:
            api_key: Kept in memory only.
            base_url: Another address than TOGETHER_BASE_URL or Together's own.
        """
        return cls("together", api_key=api_key, base_url=base_url)

    @classmethod
    def fireworks(cls, api_key: str | None = None, *, base_url: str | None = None) -> Host:
        """Fireworks AI; the key is FIREWORKS_API_KEY, the account FIREWORKS_ACCOUNT_ID or the first that the key sees.

        Args:
            api_key: Kept in memory only.
            base_url: Another address than FIREWORKS_BASE_URL or Fireworks' own, with `/inference/v1`.
        """
        return cls("fireworks", api_key=api_key, base_url=base_url)

    @property
    def name(self) -> str:
        """What the host is called in messages and records."""
        return self._name

    @property
    def kind(self) -> HostKind:
        """The facts that hold for every host of its kind."""
        return KINDS[self._kind]

    @property
    def base_url(self) -> str | None:
        """The address of its API; None for OpenAI's own, and for an embedded server that has not been needed yet."""
        if self._url is None and self.kind.url_variable is not None:
            gateway = os.environ.get(self.kind.url_variable)
            return redact(gateway).rstrip("/") if gateway else self.kind.base_url
        if self._url is None and self._server is not None:
            return self._server.url
        return self._url

    @property
    def base_model(self) -> str:
        """The model to tune unless there is a wish for another; the one given to `Host.local`, else the kind's own.

        Raises:
            UsageError: Nobody can know what a compatible host tunes.
        """
        name = self._base_model or self.kind.base_model
        if name is None:
            raise UsageError(f"{self.name}: name the model to tune (base_model=...); its list is host.client().models")
        return name

    @property
    def root(self) -> Path | None:
        """The embedded server's folder; None for other hosts."""
        if self._kind != "local":
            return None
        return Path(self._root).expanduser().absolute() if self._root else default_root()

    def __repr__(self) -> str:
        parts = [repr(self._url)] if self._url else []
        if self._kind == "local" and self._root:
            parts.append(f"root={self._root!r}")
        if self._kind == "compatible" and self._name != "compatible":
            parts.append(f"name={self._name!r}")
        return f"Host.{self._kind}({', '.join(parts)})"

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Host) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.to_dict().items())))

    def to_dict(self) -> dict[str, str]:
        """A JSON-safe description without any key: `Host.from_dict` makes the host again."""
        fields = {
            "kind": self._kind,
            "name": self._name,
            "base_url": self._url,
            # From the file system's root: a saved predictor is loaded from other folders, too.
            "root": os.fspath(self.root) if self._root and self.root else None,
            "base_model": self._base_model,
            "training_type": self._training_type,
        }
        default = f"{self._name.upper().replace('-', '_')}_API_KEY"
        if self._key_variable and self._key_variable != default:
            fields["key_variable"] = self._key_variable
        return {name: value for name, value in fields.items() if value is not None}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Host:
        """The host that `to_dict` described; its key comes from the environment.

        Raises:
            UsageError: It is not such a description.
        """
        fields = dict(description)
        kind = fields.pop("kind", None)
        if kind == "compatible" and "key_variable" not in fields:
            fields["key_variable"] = f"{str(fields.get('name', kind)).upper().replace('-', '_')}_API_KEY"
        try:
            return cls(kind, **fields)
        except TypeError as error:
            raise UsageError(f"not a host's description: {sorted(description)}") from error

    def __getstate__(self) -> dict[str, Any]:
        dropped = {"_given_key", "_lock", "_clients", "_server"}
        return {name: value for name, value in self.__dict__.items() if name not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._given_key = None
        self._reset()

    def __copy__(self) -> Host:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Host:
        # A value is its own copy; so a program that is copied in memory keeps the key that it was given.
        return self

    def api_key(self) -> str:
        """The key: the one given, or the one in the environment now; without white space and quotes around it.

        Raises:
            HostError: There is none, or it holds what no key holds; names the variable.
        """
        if self._given_key and (key := self._given_key.strip(_AROUND_KEYS)):
            return self._checked(key, "the given api_key")
        variables = (self._key_variable,) if self._key_variable else self.kind.key_variables
        for variable in variables:
            if key := os.environ.get(variable, "").strip(_AROUND_KEYS):
                return self._checked(key, variable)
        if self._kind == "local":
            server = read_server(self.root) if self.root else None
            return server.key if server is not None and server.url == self._url else "local"
        if self._kind == "compatible" and (self._url or "").startswith(("http://127.0.0.1", "http://localhost")):
            return "none"  # servers on one's own machine seldom want a key
        raise HostError(f"{self.name}: no key; set {' or '.join(variables)} in the environment", code="no_api_key")

    def _checked(self, key: str, place: str) -> str:
        """A key that can stand in an HTTP header: pasted ones bring zero-width characters, or "Bearer "."""
        for number, character in enumerate(key, start=1):
            if not "!" <= character <= "~":
                raise HostError(
                    f"{self.name}: {place} holds a character that no key has (U+{ord(character):04X}, character "
                    f"{number} of {len(key)}); copy the key again",
                    code="invalid_api_key",
                )
        return key

    def connection(self) -> tuple[str | None, str]:
        """(the API's address, the key); starts the embedded server if it is needed.

        Raises:
            HostError: There is no key, or the embedded server does not come up.
            MissingExtraError: The embedded server is not installed.
        """
        if self._kind != "local" or self._url is not None:
            return self.base_url, self.api_key()
        with self._lock:
            if self._server is None or not is_alive(self._server.pid):
                assert self.root is not None
                self._close_clients()
                self._server = ensure_server(self.root, model=self._base_model)
            return self._server.url, self._server.key

    def is_connected(self) -> bool:
        """False if the next call has to look for the server again."""
        if self._kind != "local" or self._url is not None:
            return True
        return self._server is not None and is_alive(self._server.pid)

    def is_this_machine(self) -> bool:
        """Whether it is the local host, embedded or at a loopback address."""
        if self._kind != "local":
            return False
        return self._url is None or (urlsplit(self._url).hostname or "") in {"localhost", "127.0.0.1", "::1"}

    def stops_with_process(self) -> bool:
        """True for the embedded server that this process started: its jobs go on when it is started again."""
        return self._kind == "local" and self._url is None and self.root is not None and is_started_here(self.root)

    def client(self, **options: Any) -> OpenAI:
        """An `openai.OpenAI` client for this host; options such as `max_retries` and `timeout` go to it.

        Clients are kept and shared between threads; `close()` closes them.
        """
        # openai costs about a second to import, and `import dspy_finetune` must not pay it.
        import openai

        base_url, key = self.connection()
        name = repr((base_url, hash(key), sorted(options.items())))
        with self._lock:
            client = self._clients.get(name)
            if client is None:
                if self._kind != "openai":
                    # OPENAI_ORG_ID and OPENAI_PROJECT_ID are OpenAI's business alone.
                    hidden = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
                    options["default_headers"] = {**hidden, **options.get("default_headers", {})}
                # Loopback is never behind a proxy, whatever HTTP_PROXY says.
                own = (
                    openai.DefaultHttpxClient(trust_env=self._kind != "local") if "http_client" not in options else None
                )
                make = _client_class(self.name)
                client = make(api_key=key, base_url=base_url, **{"http_client": own, **options})
                if own is not None:
                    # Sockets are closed with the last client over them, a copy by `with_options` too. The transports
                    # stand in no cycle with it, so that none is collected before it is closed; at the interpreter's
                    # end the system closes them.
                    for transport in (own._transport, *own._mounts.values()):
                        if transport is not None:
                            weakref.finalize(own, transport.close).atexit = False
                self._clients[name] = client
            return client

    def api(self) -> HostApi:
        """Files, jobs and models of this host, in OpenAI's shapes whatever its own are."""
        import openai  # imported late, as in `client`

        return OWN_APIS.get(self._kind, OpenAIApi)(self.client(timeout=openai.Timeout(ANSWER_SECONDS, connect=5.0)))

    def close(self) -> None:
        """Close the clients, and stop the embedded server if this process started it."""
        with self._lock:
            self._close_clients()
            if self._kind == "local" and self._url is None and self.root is not None:
                stop_server(self.root)
            self._server = None

    def _close_clients(self) -> None:
        while self._clients:
            self._clients.popitem()[1].close()

    def training_options(self) -> dict[str, str]:
        """What this host wants in a create request beside OpenAI's own fields."""
        return {"trainingType": self._training_type} if self._training_type else {}

    def deployment_command(self, model: object, *, deployment: str, resource_group: str, sku: str = "Standard") -> str:
        """The command that makes a tuned model answer, on a host that wants a deployment first; empty on the others.

        Args:
            model: The tuned model.
            deployment: What to call the deployment; afterwards the model is asked for by this name.
            resource_group: The resource's group.
            sku: "Standard", "GlobalStandard" or "DeveloperTier".

        Raises:
            UsageError: The deployment's name is not one that the host takes.
        """
        if self.kind.deployment:
            return shlex.join(word.format(model=model) for word in self.kind.deployment)
        if not self.kind.needs_deployment:
            return ""
        return deployment_command(
            self._url or "", str(model), deployment=deployment, resource_group=resource_group, sku=sku
        )

    def dspy_name(self, model: object) -> str:
        """The model's name for DSPy: always `openai/<id>`, as a bare `ft:` id would take the slow LiteLLM route.

        >>> Host.openai().dspy_name("ft:gpt-4.1-mini-2025-04-14:acme::abc12345")
        'openai/ft:gpt-4.1-mini-2025-04-14:acme::abc12345'
        """
        return f"openai/{str(model).removeprefix('openai/')}"

    def lm(self, model: object, **options: Any) -> HostLM:
        """A `dspy.LM` of this host; options go to dspy.LM. It connects at its first call."""
        # dspy costs most of a second to import.
        from dspy_finetune.hosts.lm import HostLM

        return HostLM(self.dspy_name(model), host=self, **options)

    def cache_namespace(self) -> str:
        """What keeps this host's answers apart from another's in DSPy's cache; empty for OpenAI's own.

        The embedded server is known by its root, as its port changes from start to start.
        """
        if self._kind == "openai":
            return self.base_url or ""
        return f"{self._kind}:{self._url or self.root or self.base_url}"

    def error(self, exception: BaseException, doing: str = "") -> HostError:
        """The library's error for a client's exception, chained to it, with keys taken out.

        Args:
            exception: What `openai` raised.
            doing: What was asked, for the message.
        """
        return describe_failure(exception, host=self._name, doing=doing, secrets=self._secrets())

    def scrub(self, exception: BaseException) -> None:
        """Take this host's keys out of an exception, and out of those behind it, in place."""
        scrub(exception, self._secrets())

    def _secrets(self) -> list[str]:
        """What must never be shown: the keys, and whose they are."""
        variables = (self._key_variable,) if self._key_variable else self.kind.key_variables
        variables = (*variables, "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "WANDB_API_KEY")
        given = [self._given_key or "", self._server.key if self._server else ""]
        # "local" is no secret: it is what the embedded server takes where no key was set.
        found = [*(key for key in given if key != "local"), *(os.environ.get(name, "") for name in variables)]
        return [part for key in found for part in dict.fromkeys((key, key.strip())) if part]

    @contextlib.contextmanager
    def talking(self, doing: str) -> Iterator[None]:
        """A block whose `openai` exceptions come out as this library's errors; other exceptions are our own faults.

        Raises:
            HostError: Whatever the client raised.
            MalformedResponseError: The answer lacks what the host's description promises (hosts/protocol.py).
        """
        import openai

        # A server that is started first says so itself.
        text = f"waiting for the answer of {self._name}: {doing}"
        slow = told_if_slow(text, functools.partial(tell_slow, self._name))
        try:
            with slow if self.is_connected() else contextlib.nullcontext():
                yield
        except openai.OpenAIError as exception:
            raise self.error(exception, doing) from exception
        except (MalformedResponseError, json.JSONDecodeError) as exception:
            # JSON: the client reads an answer as what its header says.
            raise MalformedResponseError(
                f"{self.name}: cannot {doing}: the answer is not what its API describes"
                f" ({redact(str(exception), self._secrets())}); check the address, and try again",
                retryable=True,
            ) from exception


def host_option(host: Host) -> str:
    """The options that name a host again, for a command that is shown to be copied."""
    facts = host.to_dict()
    url, name = facts.get("base_url"), facts["name"]
    kind = facts["kind"]
    if kind == "compatible":
        text = f"{name}={url}" if name != "compatible" else str(url)
    else:
        text = f"{kind}={url}" if url else kind
    root = f" --root {facts['root']}" if "root" in facts else ""
    return f"--host {text}{root}"


_status: contextvars.ContextVar[int | None] = contextvars.ContextVar("dspy_finetune_status", default=None)


@functools.lru_cache(maxsize=64)
def _client_class(host: str) -> type[OpenAI]:
    """`openai.OpenAI`, which waits in silence between its tries, with a line for each long wait."""
    import openai  # imported late, as in `Host.client`

    class Client(openai.OpenAI):
        def _sleep_for_retry(self, **details: Any) -> None:
            token = _status.set(getattr(details.get("response"), "status_code", None))
            try:
                super()._sleep_for_retry(**details)
            finally:
                _status.reset(token)

        def _calculate_retry_timeout(self, *arguments: Any, **options: Any) -> float:
            seconds = super()._calculate_retry_timeout(*arguments, **options)
            tell_wait(host, seconds, _status.get())
            return seconds

    return Client
