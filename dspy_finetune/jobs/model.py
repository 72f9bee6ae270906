"""A tuned model, as a value: its id, and everything about its making that later steps need.

In: a finished job. Out: `FinetunedModel`, which is its id wherever a text is wanted, and travels as JSON.
Not covered: asking it (predictors/).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from dspy_finetune.errors import HostError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.jobs.clock import SYSTEM_CLOCK, Clock

logger = logging.getLogger(__name__)

READY_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class FinetunedModel:
    """A model that a job made; `str(model)` is its id."""

    id: str
    """The name to ask it by."""
    base: str
    """The base model's name."""
    host_name: str
    """Where it was trained."""
    host_description: dict[str, str] = field(default_factory=dict)
    """`Host.to_dict()`: address, never a key."""
    method: str = "sft"
    """sft or dpo."""
    job_id: str | None = None
    """The job that made it."""
    prompt_digest: str | None = None
    """Digest of the prompt it was trained with; predictors compare it with theirs."""
    data_sha256: str | None = None
    """Of the training file."""
    trained_tokens: int | None = None
    """As the host counted them."""
    cost_usd: float | None = None
    """Trained tokens times the price; None where one of them is unknown."""
    estimated_cost_usd: float | None = None
    """What the plan said."""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """As the host resolved them."""
    seed: int | None = None
    """The random seed."""

    def __str__(self) -> str:
        return self.id

    @property
    def host(self) -> Host:
        """Where it answers; the key comes from the environment."""
        return Host.from_dict(self.host_description) if self.host_description else Host.openai()

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; `from_dict` brings it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FinetunedModel:
        """The model that `to_dict` described; fields this version does not know are left out.

        Raises:
            UsageError: It is not such a description.
        """
        known = {item.name for item in fields(cls)}
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except TypeError as error:
            raise UsageError(f"not a model's description ({error})") from error

    def wait_until_ready(
        self, *, host: Host | None = None, timeout_seconds: float = READY_SECONDS, clock: Clock = SYSTEM_CLOCK
    ) -> bool:
        """Wait until the host knows the model: after a job's success it can answer 404 for minutes.

        Returns:
            False if the time ran out; the model may still come.

        Raises:
            HostError: The host refused for another reason.
        """
        host = host or self.host
        deadline = clock.now() + timeout_seconds
        pause = 1.0
        while True:
            try:
                with host.talking(f"ask for the model {self.id}"):
                    host.client().models.retrieve(self.id)
                return True
            except HostError as error:
                if error.status != 404 and not error.retryable:
                    raise
            if clock.now() + pause > deadline:
                logger.warning("%s: %s does not answer yet after %.0f s", host.name, self.id, timeout_seconds)
                return False
            clock.sleep(pause)
            pause = min(pause * 2, 30.0)
