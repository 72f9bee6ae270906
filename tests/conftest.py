"""What holds for every test: an empty environment, a home of its own, and no way out of the machine."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# On a crowded machine drawing an example can take a second, which says nothing about the test.
settings.register_profile("crowded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("crowded")

# Before DSPy is imported anywhere: its disk cache would carry answers from one run of the tests to the next, and its
# price list would be looked up on the network.
os.environ["DSPY_CACHEDIR"] = tempfile.mkdtemp(prefix="dspy-cache-")
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
# The base model's weights are converted once, for all tests that use the real one.
os.environ.setdefault("DSPY_FINETUNE_CACHE", str(Path.home() / ".cache" / "dspy-finetune"))
for name in [*os.environ]:
    if name.startswith(("OPENAI_", "AZURE_", "DSPY_FINETUNE_LOCAL", "DSPY_FINETUNE_CATALOG", "WANDB_")):
        del os.environ[name]


# The tests share the cores with each other: PyTorch's threads are not to spin while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_itemcollected(item: pytest.Item) -> None:
    """One training at a time: two on the same cores take far longer than one after the other."""
    if item.get_closest_marker("local"):
        item.add_marker(pytest.mark.xdist_group("training"))


@pytest.fixture(scope="session", autouse=True)
def event_loop_of_litellm() -> Iterator[None]:
    """LiteLLM asks for the main thread's event loop after a call, so that Python makes one which nobody closes."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from or left in the developer's home."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that leaves the machine is an error of the test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if host not in (None, "localhost") and not ipaddress.ip_address(host).is_loopback:
            raise AssertionError(f"a test tried to reach {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
