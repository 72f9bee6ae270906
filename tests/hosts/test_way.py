"""On each host the whole way: plan, start, follow, predict, migrate; supervised and by preferences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_finetune.errors import UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import attach, plan
from dspy_finetune.jobs.records import CLOCK
from dspy_finetune.migration import migrate
from dspy_finetune.predictors import OpenAIPredictor
from dspy_finetune.prompts import PromptFormat
from tests.fake_hosts import FakeFireworks, FakeNebius, FakeTogether
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import FakeTime, write_dpo, write_sft

DOUBLES: dict[str, type[FakeOpenAI]] = {"nebius": FakeNebius, "together": FakeTogether, "fireworks": FakeFireworks}
BASES = {"local": "smollm2-135m-instruct", "nebius": None, "together": None, "fireworks": None}
PROMPT = PromptFormat("title -> liked: bool")


def reached(name: str, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The host of a name, at the address of its double."""
    if name in DOUBLES:
        url = server.inference_url if isinstance(server, FakeFireworks) else server.url
        monkeypatch.setenv(f"{name.upper()}_BASE_URL", url)
        monkeypatch.setenv(f"{name.upper()}_API_KEY", "key-of-the-tests")
        return {"nebius": Host.nebius, "together": Host.together, "fireworks": Host.fireworks}[name]()
    if name == "openai":
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-tests")
        return Host.openai()
    if name == "azure":
        return Host.azure(server.url.removesuffix("/v1"), "key-of-the-tests")
    return Host.local(server.url) if name == "local" else Host.compatible(server.url, "key-of-the-tests", name="acme")


@pytest.fixture
def elsewhere() -> Iterator[FakeOpenAI]:
    """Where the model is moved to."""
    server = FakeOpenAI()
    yield server
    server.close()


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("name", ["openai", "azure", "compatible", "local", "nebius", "together", "fireworks"])
def test_from_plan_to_migration(
    name: str, method: Any, elsewhere: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = DOUBLES.get(name, FakeOpenAI)()
    clock = FakeTime(server)
    monkeypatch.setattr(CLOCK, "now", clock.now)
    monkeypatch.setattr(CLOCK, "sleep", clock.sleep)
    monkeypatch.setenv("DSPY_FINETUNE_HOME", str(tmp_path / "home"))
    host = reached(name, server, monkeypatch)
    file = write_sft(tmp_path / "train.jsonl") if method == "sft" else write_dpo(tmp_path / "train.jsonl")
    base = BASES.get(name, "gpt-4.1-mini-2025-04-14") or host.base_model
    try:
        if (name, method) == ("nebius", "dpo"):
            with pytest.raises(UsageError, match=r"cannot be trained by dpo on nebius \(it offers: sft\)"):
                plan(file, base_model=base, method=method, host=host)
            return
        planned = plan(file, base_model=base, method=method, host=host)
        looks = list(planned.start(allow_unknown_price=True).follow())
        assert [look.status for look in looks][-1] == "succeeded"
        model = attach(looks[-1].facts.id, host=host).model()
        assert (model.base, model.method) == (base, method)
        assert OpenAIPredictor(PROMPT, model, host=host)(title="Sailing").liked is True
        target = Host.local(elsewhere.url)
        moved = migrate(model, to=target).start().wait()
        (sent,) = [body for route, body in elsewhere.requests if route == "POST /fine_tuning/jobs"]
        assert sent["method"]["type"] == ("dpo" if method == "dpo" else "supervised")
        assert elsewhere.contents[sent["training_file"]] == file.read_bytes()
        assert OpenAIPredictor(PROMPT, moved, host=target)(title="Sailing").liked is True
        target.close()
    finally:
        host.close()
        server.close()
