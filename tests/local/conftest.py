from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.toy import build_toy_model
from tests.local.toy_server import ToyServer, start_server


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_model(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Iterator[ToyServer]:
    """One server for all tests that do not stop it."""
    running = start_server(tmp_path_factory.mktemp("host") / "root", toy_model)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def roomy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyServer]:
    """One server whose model has room for tools and conversations."""
    model = build_toy_model(tmp_path_factory.mktemp("roomy") / "toy", context_tokens=2048)
    running = start_server(tmp_path_factory.mktemp("roomy-host") / "root", model)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Iterator[ToyServer]:
    """A server that trains with the package's own worker."""
    root = tmp_path_factory.mktemp("real") / "root"
    running = start_server(root, toy_model, worker_module="dspy_finetune.local.worker")
    yield running
    running.stop()
