from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from dspy_finetune.bulk import rate_limit
from dspy_finetune.bulk.rate_limit import Timing
from tests.loopback import Loopback


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    server = Loopback()
    yield server
    server.close()


class FakeTime:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    @property
    def timing(self) -> Timing:
        return Timing(clock=lambda: self.now, sleep=self.sleep, generator=random.Random(0))


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """Runs of this test go by it."""
    found = FakeTime()
    monkeypatch.setattr(rate_limit, "SYSTEM_TIMING", found.timing)
    return found
